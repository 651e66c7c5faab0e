//! Encodes events as JSON lines, in one pass over their msgpack.
//!
//! The output is valid JSON for any msgpack: raw UTF-8 with U+FFFD for invalid bytes, binary as text where it is
//! UTF-8 and as base64 otherwise, extension values as base64, every key a string, `null` for NaN and infinities,
//! 64-bit integers digit for digit. Only what JSON requires is escaped. Containers are walked with a stack on the
//! heap, to [`MAX_DEPTH`].
//!
//! Two things make it fast. Strings are copied and scanned for escapes one [`Block`] at a time. And keys are
//! predicted: logs repeat the same keys in the same order, so the [`KeyCache`] holds each key as it is written,
//! together with the two keys that last followed it.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::codec::msgpack::{Cursor, Event, Events, Head, Malformed, Token, lookup};
use crate::codec::time::{TimeFormat, write_iso8601};
use crate::ids::Time;
use simd::{BLOCK, Block, JsonWriter, Kernel, Key, Level, Pair, Source};

#[allow(
    unsafe_code,
    reason = "reads and writes whole blocks; every unsafe line has a SAFETY comment"
)]
pub mod simd;

/// The most levels of nesting, the record itself included. Common JSON readers have limits of their own (128 in
/// serde_json, 64 to 1,000 elsewhere), beyond which the line would be lost downstream.
pub const MAX_DEPTH: usize = 100;

/// The contents of a line.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Send only this key's value.
    pub log_key: Option<String>,
    /// Send only these top-level keys; all keys where it is empty.
    pub data_keys: Vec<String>,
    /// Add the event's time under this key.
    pub time: Option<(String, TimeFormat)>,
    /// Add the tag under this key.
    pub tag_key: Option<String>,
    /// Add the record's metadata and its group under this key.
    pub metadata_key: Option<String>,
    /// Replace every dot in a key with this.
    pub replace_dots: Option<String>,
}

/// The reason why an event was not encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The event has no `log_key`, and so nothing to send.
    NoLogKey,
    /// The event is nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// The bytes are not a whole event. Does not occur for an [`Event`] that was decoded.
    Malformed,
}

impl From<Malformed> for Skip {
    fn from(_: Malformed) -> Skip {
        Skip::Malformed
    }
}

/// A container that encloses the current one.
#[derive(Clone, Copy)]
struct Open {
    /// The number of values (in a map, pairs) still to write.
    left: u32,
    place: Place,
    /// The offset of its first byte in the output.
    start: usize,
}

/// Encodes events as JSON lines. Between events it holds only caches and scratch space.
pub struct Encoder<'o> {
    options: &'o Options,
    level: Level,
    keys: KeyCache<'o>,
    open: Box<[Open; MAX_DEPTH + 1]>,
    /// The key of the event's time, as it is written.
    time_key: Vec<u8>,
    /// The last second and its text, for formats that are constant within a second but for milliseconds.
    cached_time: Option<(i64, Vec<u8>)>,
}

impl<'o> Encoder<'o> {
    /// Creates an encoder that uses the best instructions of this machine.
    pub fn new(options: &'o Options) -> Self {
        Encoder::at_level(options, Level::best())
    }

    /// Creates an encoder that uses the instructions of `level`.
    pub fn at_level(options: &'o Options, level: Level) -> Self {
        let mut time_key = Vec::new();
        if let Some((key, _)) = &options.time {
            write_key(key, &mut time_key);
        }
        Encoder {
            options,
            level,
            keys: KeyCache::new(options),
            open: Box::new(
                [Open {
                    left: 0,
                    place: Place::Nowhere,
                    start: 0,
                }; MAX_DEPTH + 1],
            ),
            time_key,
            cached_time: None,
        }
    }

    /// Appends `event` and a newline to `out`. On an error `out` is unchanged.
    pub fn line(&mut self, tag: &[u8], event: &Event<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        let head = Head {
            time: event.time,
            metadata: event.metadata,
            group: event.group,
            bytes: event.body,
            body: 0,
        };
        let level = self.level;
        level.run(Line {
            encoder: self,
            tag,
            head,
            out,
        })
    }

    /// Appends events while it decodes them, each with a newline, as long as their heads are `wanted`. Calls `written`
    /// with the end of each line in `out`. Leaves `events` at the first event that was not written; an error means
    /// that this one was wanted, but cannot be encoded.
    pub fn lines(
        &mut self,
        tag: &[u8],
        events: &mut Events<'_>,
        out: &mut Vec<u8>,
        wanted: impl FnMut(&Head<'_>) -> bool,
        written: impl FnMut(usize),
    ) -> Result<(), Skip> {
        let level = self.level;
        level.run(Lines {
            encoder: self,
            tag,
            events,
            out,
            wanted,
            written,
        })
    }

    /// Appends an event and a newline, or nothing on an error. Returns the end of its body.
    #[inline(always)]
    fn event<B: Block>(
        &mut self,
        tag: &[u8],
        head: &Head<'_>,
        out: &mut Vec<u8>,
    ) -> Result<usize, Skip> {
        let start = out.len();
        let written = match &self.options.log_key {
            Some(key) => self.log_value(key, head, out),
            None => self.record::<B>(tag, head, out),
        };
        if written.is_err() {
            out.truncate(start);
        }
        written
    }

    fn log_value(&mut self, key: &str, head: &Head<'_>, out: &mut Vec<u8>) -> Result<usize, Skip> {
        let mut body = Cursor::at(head.bytes, head.body);
        let body = body.value()?;
        let value = lookup(body, &[key]).ok_or(Skip::NoLogKey)?;
        let mut cursor = Cursor::new(value);
        let token = cursor.token()?;
        let container = |left, place| Container {
            left,
            place,
            depth: 1,
            metadata: false,
        };
        let at = cursor.position();
        match (token.text(), token) {
            (Some(text), _) => out.extend_from_slice(text),
            (None, Token::Array(left)) => {
                self.container(value, at, container(left, Place::Array), out)?;
            }
            (None, Token::Map(left)) => {
                self.container(value, at, container(left, Place::Map), out)?;
            }
            (None, scalar) => write_scalar(scalar, out),
        }
        out.push(b'\n');
        Ok(head.body + body.len())
    }

    #[inline(always)]
    fn record<B: Block>(
        &mut self,
        tag: &[u8],
        head: &Head<'_>,
        out: &mut Vec<u8>,
    ) -> Result<usize, Skip> {
        let (left, at) = map_head(head.bytes, head.body)?;
        let start = out.len();
        let record = Container {
            left,
            place: Place::Record,
            depth: 1,
            metadata: false,
        };
        let (end, mut writer) = self.items::<B>(head.bytes, at, record, JsonWriter::of(out))?;
        let options = self.options;
        if options.time.is_some() || options.tag_key.is_some() || options.metadata_key.is_some() {
            let out = writer.finish();
            self.added_fields(tag, head, out)?;
            writer = JsonWriter::of(out);
        }
        writer.close(start, true);
        writer.newline();
        writer.finish();
        Ok(end)
    }

    /// Writes the fields that are added to a record, each after a comma.
    fn added_fields(&mut self, tag: &[u8], head: &Head<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        let options = self.options;
        if let Some((_, format)) = &options.time {
            out.extend_from_slice(&self.time_key);
            self.time(head.time, format, out);
        }
        if let Some(key) = &options.tag_key {
            write_key(key, out);
            string(tag, out);
        }
        if let Some(key) = &options.metadata_key {
            self.metadata(key, head, out)?;
        }
        Ok(())
    }

    fn time(&mut self, time: Time, format: &TimeFormat, out: &mut Vec<u8>) {
        let text = match format {
            TimeFormat::Epoch => return number(time.seconds, out),
            TimeFormat::EpochMs => {
                let whole = i128::from(time.seconds) * 1_000;
                return number(whole + i128::from(time.nanos / 1_000_000), out);
            }
            TimeFormat::Strftime(format) if !format.whole_seconds() => {
                let mut text = String::new();
                format.write(time, &mut text);
                return string(text.as_bytes(), out);
            }
            TimeFormat::Iso8601 | TimeFormat::Strftime(_) => match &mut self.cached_time {
                Some((second, text)) if *second == time.seconds => text,
                cached_time => {
                    let mut text = Vec::new();
                    if let TimeFormat::Strftime(format) = format {
                        let mut formatted = String::new();
                        format.write(time, &mut formatted);
                        string(formatted.as_bytes(), &mut text);
                    } else {
                        text.push(b'"');
                        write_iso8601(time, &mut text);
                        text.push(b'"');
                    }
                    &mut cached_time.insert((time.seconds, text)).1
                }
            },
        };
        let start = out.len();
        out.extend_from_slice(text);
        if matches!(format, TimeFormat::Iso8601) {
            // …31.123Z": the cached second, with this event's milliseconds.
            let digits = out.len() - ISO_8601_TAIL..out.len() - 2;
            debug_assert!(digits.start > start);
            let millis = time.nanos / 1_000_000;
            for (digit, unit) in out[digits].iter_mut().zip([100, 10, 1]) {
                *digit = b'0' + (millis / unit % 10) as u8;
            }
        }
    }

    /// Appends a whole value, as it would be in a record's map of this depth. On an error `out` may have a part of it.
    pub fn value(&mut self, value: &[u8], depth: usize, out: &mut Vec<u8>) -> Result<(), Skip> {
        let mut cursor = Cursor::new(value);
        let token = cursor.token()?;
        let (left, place) = match token {
            Token::Map(left) => (left, Place::Map),
            Token::Array(left) => (left, Place::Array),
            scalar => {
                write_scalar(scalar, out);
                return Ok(());
            }
        };
        if left > 0 && depth >= MAX_DEPTH {
            return Err(Skip::TooDeep);
        }
        let container = Container {
            left,
            place,
            depth: depth + 1,
            metadata: false,
        };
        self.container(value, cursor.position(), container, out)
    }

    /// Appends a whole key of any type as a JSON string.
    pub fn key_text(&self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), Skip> {
        let token = Cursor::new(raw).token()?;
        self.keys.rules.new_key(token, raw, out);
        Ok(())
    }

    /// Appends a record's metadata and its group as an object, or nothing where they are empty.
    pub fn metadata_value(&mut self, head: &Head<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        let start = out.len();
        self.metadata("", head, out)?;
        // The key, `,"":`.
        if out.len() > start {
            out.drain(start..start + 4);
        }
        Ok(())
    }

    /// Writes `"key":{…metadata, …resource and scope, "group":{…}}`, or nothing where all of them are empty.
    fn metadata(&mut self, key: &str, head: &Head<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        let before = out.len();
        write_key(key, out);
        let start = out.len();
        self.pairs(head.metadata, out)?;
        if let Some(group) = head.group {
            self.pairs(group.body, out)?;
            let (pairs, at) = match group.metadata {
                [] => (0, 0),
                metadata => map_head(metadata, 0)?,
            };
            if pairs > 0 {
                write_key("group", out);
                let pairs = Container {
                    left: pairs,
                    place: Place::Map,
                    depth: 3,
                    metadata: true,
                };
                self.container(group.metadata, at, pairs, out)?;
            }
        }
        if out.len() == start {
            out.truncate(before);
        } else {
            close(start, true, out);
        }
        Ok(())
    }

    /// Writes the pairs of a map, each after a comma.
    fn pairs(&mut self, map: &[u8], out: &mut Vec<u8>) -> Result<(), Skip> {
        if map.is_empty() {
            return Ok(());
        }
        let (left, at) = map_head(map, 0)?;
        let pairs = Container {
            left,
            place: Place::Map,
            depth: 2,
            metadata: true,
        };
        self.dispatch_items(map, at, pairs, out)?;
        Ok(())
    }

    /// Writes a container.
    fn container(
        &mut self,
        bytes: &[u8],
        at: usize,
        container: Container,
        out: &mut Vec<u8>,
    ) -> Result<(), Skip> {
        let start = out.len();
        self.dispatch_items(bytes, at, container, out)?;
        close(start, container.place != Place::Array, out);
        Ok(())
    }

    /// Writes the items of a container outside the record, as [`Encoder::items`] does, for code that is not compiled
    /// for the level's instructions.
    fn dispatch_items(
        &mut self,
        bytes: &[u8],
        at: usize,
        container: Container,
        out: &mut Vec<u8>,
    ) -> Result<(), Skip> {
        let level = self.level;
        level.run(Items {
            encoder: self,
            bytes,
            at,
            container,
            out,
        })
    }

    /// Writes the items of a container, each after a comma: [`JsonWriter::close`] replaces the first comma with the
    /// container's bracket. Returns the container's end in `bytes`.
    #[inline(always)]
    fn items<'v, B: Block>(
        &mut self,
        bytes: &[u8],
        mut at: usize,
        container: Container,
        mut writer: JsonWriter<'v>,
    ) -> Result<(usize, JsonWriter<'v>), Skip> {
        let KeyCache {
            rules,
            cached,
            last: first_key,
        } = &mut self.keys;
        let cached = &mut **cached;
        let mut last = *first_key;
        let open = &mut *self.open;
        let mut opened = 0;
        let Container {
            mut left,
            mut place,
            depth,
            metadata,
        } = container;
        let mut start = writer.len();
        let source = Source::new(bytes);
        'item: loop {
            if left == 0 {
                if opened == 0 {
                    *first_key = last;
                    return Ok((at, writer));
                }
                writer.close(start, place != Place::Array);
                opened -= 1;
                Open { left, place, start } = open[opened];
                continue;
            }
            left -= 1;
            let (slot, value) = 'key: {
                if let Some(pair) = source.pair(at)
                    && let Some((key, value)) = predicted::<B>(cached, &mut last, pair, place)
                {
                    at += key.raw_len();
                    break 'key (writer.slot().key::<B>(key), Some(value));
                }
                if place == Place::Array {
                    break 'key (writer.slot().comma(), source.value(at));
                }
                let out = writer.finish();
                let (end, index, kept) = rules.unpredicted(cached, bytes, at, place, out)?;
                writer = JsonWriter::of(out);
                at = end;
                if let Some(index) = index {
                    cached[usize::from(last)].record_next(index);
                    last = index;
                }
                if !kept {
                    let mut value = Cursor::at(bytes, at);
                    value.value()?;
                    at = value.position();
                    continue 'item;
                }
                (writer.slot().after_key(), source.value(at))
            };
            let token = 'token: {
                // The common types. All others, and the last bytes of the chunk, take the path through `token`.
                if let Some(value) = value {
                    let first = value.first();
                    let len = usize::from(first.wrapping_sub(0xa0));
                    if len < BLOCK {
                        at += 1;
                        if let Err(slot) = slot.plain_string::<B>(value.rest(), len) {
                            slot.string::<B>(source, at, at + len);
                        }
                        at += len;
                        continue 'item;
                    }
                    match first {
                        0x00..=0x7f => {
                            at += 1;
                            slot.number(first.into());
                            continue 'item;
                        }
                        0xcc..=0xce => {
                            let size = 1 << (first - 0xcc);
                            at += 1 + size;
                            slot.number(u32::from_be_bytes(*value.rest()) >> (32 - 8 * size));
                            continue 'item;
                        }
                        0xc0 | 0xc2 | 0xc3 => {
                            at += 1;
                            slot.short(LITERALS[usize::from(first & 3)]);
                            continue 'item;
                        }
                        0xd9 => {
                            let [len] = *value.rest();
                            let start = at + 2;
                            at = start + usize::from(len);
                            break 'token Token::Str(bytes.get(start..at).ok_or(Skip::Malformed)?);
                        }
                        0xc4 => {
                            let [len] = *value.rest();
                            let start = at + 2;
                            at = start + usize::from(len);
                            break 'token Token::Bin(bytes.get(start..at).ok_or(Skip::Malformed)?);
                        }
                        0x80..=0x8f => {
                            at += 1;
                            break 'token Token::Map((first & 0x0f).into());
                        }
                        0xcb => {
                            at += 9;
                            break 'token Token::F64(f64::from_be_bytes(*value.rest()));
                        }
                        _ => {}
                    }
                }
                let mut cursor = Cursor::at(bytes, at);
                let token = cursor.token()?;
                at = cursor.position();
                token
            };
            let (inner, inner_place) = match token {
                Token::Map(inner) => (inner, Place::Map),
                Token::Array(inner) => (inner, Place::Array),
                Token::Str(text) => {
                    slot.string::<B>(source, at - text.len(), at);
                    continue 'item;
                }
                Token::Bin(bytes) if !metadata => {
                    slot.string_or_else::<B>(source, at - bytes.len(), at, write_base64);
                    continue 'item;
                }
                Token::F64(n) if n.is_finite() => {
                    slot.float(n);
                    continue 'item;
                }
                scalar => {
                    let out = writer.finish();
                    write_item(scalar, out);
                    writer = JsonWriter::of(out);
                    continue 'item;
                }
            };
            if inner > 0 && depth + opened >= MAX_DEPTH {
                return Err(Skip::TooDeep);
            }
            open[opened] = Open { left, place, start };
            opened += 1;
            (left, place, start) = (inner, inner_place, writer.len());
        }
    }
}

/// JSON's literals, indexed by the lowest two bits of their msgpack bytes.
const LITERALS: [&str; 4] = ["null", "", "false", "true"];

/// The length of the end of a quoted ISO 8601 time: three digits, `Z` and a quote.
const ISO_8601_TAIL: usize = 5;

/// [`Encoder::line`].
struct Line<'e, 'o, 'a> {
    encoder: &'e mut Encoder<'o>,
    tag: &'a [u8],
    head: Head<'a>,
    out: &'e mut Vec<u8>,
}

impl Kernel for Line<'_, '_, '_> {
    type Output = Result<(), Skip>;

    #[inline(always)]
    fn run<B: Block>(self) -> Result<(), Skip> {
        let end = self.encoder.event::<B>(self.tag, &self.head, self.out);
        end.map(|_| ())
    }
}

/// [`Encoder::dispatch_items`].
struct Items<'e, 'o> {
    encoder: &'e mut Encoder<'o>,
    bytes: &'e [u8],
    at: usize,
    container: Container,
    out: &'e mut Vec<u8>,
}

impl Kernel for Items<'_, '_> {
    type Output = Result<(), Skip>;

    #[inline(always)]
    fn run<B: Block>(self) -> Result<(), Skip> {
        let writer = JsonWriter::of(self.out);
        let (_, writer) = self
            .encoder
            .items::<B>(self.bytes, self.at, self.container, writer)?;
        writer.finish();
        Ok(())
    }
}

/// [`Encoder::lines`].
struct Lines<'e, 'o, 'a, Wanted, Written> {
    encoder: &'e mut Encoder<'o>,
    tag: &'e [u8],
    events: &'e mut Events<'a>,
    out: &'e mut Vec<u8>,
    wanted: Wanted,
    written: Written,
}

impl<Wanted, Written> Kernel for Lines<'_, '_, '_, Wanted, Written>
where
    Wanted: FnMut(&Head<'_>) -> bool,
    Written: FnMut(usize),
{
    type Output = Result<(), Skip>;

    #[inline(always)]
    fn run<B: Block>(mut self) -> Result<(), Skip> {
        while let Some(head) = self.events.head()
            && (self.wanted)(&head)
        {
            let end = self.encoder.event::<B>(self.tag, &head, self.out)?;
            self.events.advance_to(end);
            (self.written)(self.out.len());
        }
        Ok(())
    }
}

/// A container to write.
#[derive(Clone, Copy)]
struct Container {
    /// The number of values (in a map, pairs).
    left: u32,
    /// The place of its items.
    place: Place,
    /// The nesting depth, itself included.
    depth: usize,
    /// Whether it is a record's or a group's metadata.
    metadata: bool,
}

/// The place of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The record itself: the keys that `data_keys` selects from.
    Record,
    /// A nested map.
    Map,
    /// An array.
    Array,
    /// Not written: the key is left out.
    Nowhere,
}

/// Brackets the items that were written from `start` on. See [`JsonWriter::close`].
fn close(start: usize, map: bool, out: &mut Vec<u8>) {
    let mut writer = JsonWriter::of(out);
    writer.close(start, map);
    writer.finish();
}

/// Returns the number of pairs of the map at `at`, and the offset of the first.
#[inline(always)]
fn map_head(bytes: &[u8], at: usize) -> Result<(u32, usize), Skip> {
    // The two encodings that hosts write.
    match bytes.get(at..).and_then(<[u8]>::split_first_chunk) {
        Some(([0xdf, a, b, c, d], _)) => return Ok((u32::from_be_bytes([*a, *b, *c, *d]), at + 5)),
        Some(([small @ 0x80..=0x8f, ..], _)) => return Ok((u32::from(small & 0x0f), at + 1)),
        _ => {}
    }
    let mut cursor = Cursor::at(bytes, at);
    match cursor.token()? {
        Token::Map(pairs) => Ok((pairs, cursor.position())),
        _ => Err(Skip::Malformed),
    }
}

fn write_key(key: &str, out: &mut Vec<u8>) {
    out.push(b',');
    string(key.as_bytes(), out);
    out.push(b':');
}

/// The cache of keys in their written form: `,"key":`.
struct KeyCache<'o> {
    rules: Rules<'o>,
    /// A hash table with linear probing; when all probes are taken, a key evicts another.
    cached: Box<[CachedKey; CACHED_KEYS]>,
    /// The index of the previous key, whose successors are the prediction.
    last: u8,
}

/// The rules for a record's keys.
struct Rules<'o> {
    replace_dots: Option<&'o str>,
    /// The written form of the keys that are added. They replace a record's own keys of the same form, since some
    /// readers reject a JSON object with duplicate keys.
    added: HashSet<Vec<u8>>,
    data_keys: HashSet<&'o [u8]>,
}

/// The size of the key cache, so that an index is one byte.
const CACHED_KEYS: usize = 256;
/// The number of slots where a key may be cached.
const PROBES: u8 = 8;

/// A slot of the key cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct CachedKey {
    key: Key,
    /// The place where the key is written.
    written: Place,
    /// The indices of the last two keys that followed it, the latest first.
    next: [u8; 2],
}

impl CachedKey {
    /// An unused slot. No key begins with 0xc1, which msgpack reserves.
    fn empty() -> CachedKey {
        CachedKey {
            key: Key::new(&[0xc1], b"").expect("short"),
            written: Place::Nowhere,
            next: [0; 2],
        }
    }

    /// Records the key that followed.
    fn record_next(&mut self, index: u8) {
        self.next = [index, self.next[0]];
    }

    /// Returns the pair's value if its key is this one and is written at `place`.
    #[inline(always)]
    fn value<'a, B: Block>(&self, pair: Pair<'a>, place: Place) -> Option<simd::Value<'a>> {
        if self.written != place {
            return None;
        }
        pair.value_after::<B>(&self.key)
    }

    fn is_empty(&self) -> bool {
        self.key.raw() == [0xc1]
    }

    fn matches(&self, raw: &[u8], place: Place) -> bool {
        let written = self.written == place;
        // Only a record's top-level keys are left out.
        let left_out = self.written == Place::Nowhere && place == Place::Record;
        (written || left_out) && self.key.raw() == raw
    }
}

impl<'o> KeyCache<'o> {
    fn new(options: &'o Options) -> Self {
        let added = [
            options.time.as_ref().map(|(key, _)| key),
            options.tag_key.as_ref(),
            options.metadata_key.as_ref(),
        ];
        let written = |key: &String| {
            let mut text = Vec::new();
            write_key(key, &mut text);
            text
        };
        KeyCache {
            rules: Rules {
                replace_dots: options.replace_dots.as_deref(),
                added: added.into_iter().flatten().map(written).collect(),
                data_keys: options.data_keys.iter().map(String::as_bytes).collect(),
            },
            cached: Box::new([CachedKey::empty(); CACHED_KEYS]),
            last: 0,
        }
    }
}

/// Returns the pair's key and value if the key is one of the two that last followed `last`, and makes it the `last`
/// one.
#[inline(always)]
fn predicted<'s, 'a, B: Block>(
    cached: &'s mut [CachedKey; CACHED_KEYS],
    last: &mut u8,
    pair: Pair<'a>,
    place: Place,
) -> Option<(&'s Key, simd::Value<'a>)> {
    let [next, other] = cached[usize::from(*last)].next;
    if let Some(value) = cached[usize::from(next)].value::<B>(pair, place) {
        *last = next;
        return Some((&cached[usize::from(next)].key, value));
    }
    let value = cached[usize::from(other)].value::<B>(pair, place)?;
    cached[usize::from(*last)].record_next(other);
    *last = other;
    Some((&cached[usize::from(other)].key, value))
}

/// Returns the cache slot that holds a key, or the one to put it in.
fn cache_index(cached: &[CachedKey; CACHED_KEYS], raw: &[u8], place: Place) -> u8 {
    // FNV-1a: it is short, and collisions only cost time.
    let hash = raw.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 32)) as u8;
    let mut probes = (0..PROBES).map(|step| hash.wrapping_add(step));
    probes
        .find(|index| {
            let cached = &cached[usize::from(*index)];
            cached.is_empty() || cached.matches(raw, place)
        })
        .unwrap_or(hash)
}

impl Rules<'_> {
    /// Writes a key that was not predicted, unless it is left out. Returns its end, its cache index if it was short
    /// enough to be cached, and whether it was written.
    #[inline(never)]
    fn unpredicted(
        &self,
        cached: &mut [CachedKey; CACHED_KEYS],
        bytes: &[u8],
        at: usize,
        place: Place,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<u8>, bool), Skip> {
        let mut cursor = Cursor::at(bytes, at);
        let token = cursor.token()?;
        if let Token::Array(_) | Token::Map(_) = token {
            cursor = Cursor::at(bytes, at);
            cursor.value()?;
        }
        let end = cursor.position();
        let raw = &bytes[at..end];
        let index = cache_index(cached, raw, place);
        let cached = &mut cached[usize::from(index)];
        if cached.matches(raw, place) {
            out.extend_from_slice(cached.key.text());
            return Ok((end, Some(index), cached.written != Place::Nowhere));
        }
        let start = out.len();
        out.push(b',');
        self.new_key(token, raw, out);
        out.push(b':');
        let kept =
            place == Place::Map || (self.wanted(token) && !self.added.contains(&out[start..]));
        if !kept {
            out.truncate(start);
        }
        let Some(key) = Key::new(raw, &out[start..]) else {
            return Ok((end, None, kept));
        };
        cached.key = key;
        cached.written = if kept { place } else { Place::Nowhere };
        Ok((end, Some(index), kept))
    }

    fn wanted(&self, key: Token<'_>) -> bool {
        self.data_keys.is_empty()
            || matches!(key, Token::Str(name) | Token::Bin(name) if self.data_keys.contains(name))
    }

    /// Writes a key of any msgpack type as a JSON string.
    fn new_key(&self, token: Token<'_>, raw: &[u8], out: &mut Vec<u8>) {
        let mut scratch = Vec::new();
        let name: &[u8] = match (token.text(), token) {
            (Some(name), _) => name,
            (None, Token::Bin(bytes) | Token::Ext(_, bytes)) => {
                base64(bytes, &mut scratch);
                &scratch
            }
            (None, Token::Array(_) | Token::Map(_)) => {
                // A container as a key is written as its raw msgpack: as JSON, keys could nest in keys without limit.
                base64(raw, &mut scratch);
                &scratch
            }
            (None, scalar) => {
                write_scalar(scalar, &mut scratch);
                &scratch
            }
        };
        match &self.replace_dots {
            Some(replacement) if name.contains(&b'.') => {
                let parts: Vec<&[u8]> = name.split(|byte| *byte == b'.').collect();
                string(&parts.join(replacement.as_bytes()), out);
            }
            _ => string(name, out),
        }
    }
}

fn write_scalar(token: Token<'_>, out: &mut Vec<u8>) {
    match token {
        Token::Nil | Token::Array(_) | Token::Map(_) => out.extend_from_slice(b"null"),
        Token::Bool(true) => out.extend_from_slice(b"true"),
        Token::Bool(false) => out.extend_from_slice(b"false"),
        Token::Int(n) => number(n, out),
        Token::Uint(n) => number(n, out),
        // The shortest digits that read back as the same 32-bit float: 1.1, not 1.100000023841858.
        Token::F32(n) if n.is_finite() => {
            out.extend_from_slice(zmij::Buffer::new().format_finite(n).as_bytes());
        }
        Token::F64(n) if n.is_finite() => {
            out.extend_from_slice(zmij::Buffer::new().format_finite(n).as_bytes());
        }
        Token::F32(_) | Token::F64(_) => out.extend_from_slice(b"null"),
        Token::Str(text) => string(text, out),
        Token::Bin(bytes) if std::str::from_utf8(bytes).is_ok() => string(bytes, out),
        Token::Bin(bytes) | Token::Ext(_, bytes) => write_base64(bytes, out),
    }
}

fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    base64(bytes, out);
    out.push(b'"');
}

/// Writes a scalar after its key or comma. Binary comes here only from metadata.
#[inline(never)]
fn write_item(token: Token<'_>, out: &mut Vec<u8>) {
    match token {
        Token::Bin(id) if is_id(id, out) => write_base64(id, out),
        scalar => write_scalar(scalar, out),
    }
}

/// Whether binary in metadata, whose key `written` ends with, is an OTLP id. Ids are random, and one in a hundred of
/// eight bytes is valid UTF-8 by chance: all are written as base64, so that they compare.
fn is_id(bytes: &[u8], written: &[u8]) -> bool {
    // No other key ends like this, since quotes within keys are escaped.
    match bytes.len() {
        16 => written.ends_with(b",\"trace_id\":"),
        8 => written.ends_with(b",\"span_id\":"),
        _ => false,
    }
}

fn number(n: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// Appends standard base64 with padding.
pub fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    base64_simd::STANDARD.encode_append(bytes, out);
}

/// Returns bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Appends a quoted JSON string, with only the required escapes, and U+FFFD for invalid UTF-8.
pub fn string(bytes: &[u8], out: &mut Vec<u8>) {
    simd::append_string(bytes, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::msgpack::Group;
    use crate::codec::time::Strftime;
    use crate::ids::Time;
    use rmpv::Value;

    fn pack(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }

    fn map(pairs: Vec<(Value, Value)>) -> Value {
        Value::Map(pairs)
    }

    fn event(body: &[u8]) -> Event<'_> {
        Event {
            time: Time {
                seconds: 1_751_489_071,
                nanos: 123_456_789,
            },
            metadata: &[],
            body,
            group: None,
            raw: &[],
        }
    }

    fn line(options: &Options, body: &Value) -> Result<String, Skip> {
        let mut out = b"before\n".to_vec();
        let body = pack(body);
        let written = Encoder::new(options).line(b"app.http", &event(&body), &mut out);
        assert!(out.starts_with(b"before\n"));
        let text = String::from_utf8(out[7..].to_vec()).expect("UTF-8");
        written.map(|()| text)
    }

    #[test]
    fn every_value_is_valid_json() {
        let cases: Vec<(Value, &str)> = vec![
            (Value::from(u64::MAX), "18446744073709551615"),
            (Value::from(i64::MIN), "-9223372036854775808"),
            (Value::F64(f64::NAN), "null"),
            (Value::F64(f64::INFINITY), "null"),
            (Value::F32(f32::NEG_INFINITY), "null"),
            (Value::F32(1.1), "1.1"),
            // 1.09765625: 1.0976563 is as close and as short. Ties go to the even digit.
            (Value::F32(1.0 + 25.0 / 256.0), "1.0976562"),
            (Value::F64(0.1), "0.1"),
            (Value::F64(-0.0), "-0.0"),
            (Value::F64(1e300), "1e+300"),
            (Value::Binary(vec![0, 1, 255]), "\"AAH/\""),
            (Value::Ext(5, b"abc".to_vec()), "\"YWJj\""),
            (
                Value::from("회원 😀 \u{2028}\u{7f}"),
                "\"회원 😀 \u{2028}\u{7f}\"",
            ),
            (
                Value::from("q\" b\\ / \n\r\t\u{8}\u{c}\0\u{1b}"),
                r#""q\" b\\ / \n\r\t\b\f\u0000\u001b""#,
            ),
            (Value::Array(vec![]), "[]"),
            (map(vec![]), "{}"),
            (
                Value::Array(vec![
                    Value::Nil,
                    Value::from(true),
                    map(vec![("a".into(), Value::Array(vec![1.into()]))]),
                ]),
                r#"[null,true,{"a":[1]}]"#,
            ),
        ];
        for (value, expected) in cases {
            let text = line(&Options::default(), &map(vec![("v".into(), value)])).unwrap();
            assert_eq!(text, format!("{{\"v\":{expected}}}\n"));
            serde_json::from_str::<serde_json::Value>(&text).expect("valid JSON");
        }
    }

    #[test]
    fn invalid_utf8_becomes_replacement_characters() {
        for (bytes, expected) in [
            (&b"caf\xe9 end"[..], "caf\u{fffd} end"),
            (b"cut \xed\x9a", "cut \u{fffd}"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        ] {
            let mut out = Vec::new();
            string(bytes, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("\"{expected}\""));
        }
    }

    /// Text as Fluentd forwards it.
    fn bin(text: &str) -> Value {
        Value::Binary(text.as_bytes().to_vec())
    }

    #[test]
    fn binary_that_is_utf8_is_text() {
        let options = Options {
            replace_dots: Some("_".into()),
            tag_key: Some("tag".into()),
            ..Options::default()
        };
        let body = map(vec![
            (bin("log"), bin("q\" \n 회원")),
            (bin("a.b"), map(vec![(bin("c.d"), bin("e.f"))])),
            (bin("tag"), bin("the app's own")),
            (bin(""), bin("")),
            (
                "nested".into(),
                Value::Array(vec![bin("x"), Value::Binary(vec![0xe9])]),
            ),
        ]);
        assert_eq!(
            line(&options, &body).unwrap(),
            "{\"log\":\"q\\\" \\n 회원\",\"a_b\":{\"c_d\":\"e.f\"},\"\":\"\",\
             \"nested\":[\"x\",\"6Q==\"],\"tag\":\"app.http\"}\n"
        );
    }

    /// Binary of all three msgpack lengths and around block boundaries, as value and as key: valid UTF-8, with an
    /// invalid last byte, and with a truncated last character.
    #[test]
    fn binary_of_any_length_is_text_or_base64_as_a_whole() {
        const LENGTHS: [usize; 10] = [1, 31, 32, 33, 64, 255, 256, 65_535, 65_536, 1_000_003];
        // Miri is about a thousand times slower.
        let longest = if cfg!(miri) { 256 } else { usize::MAX };
        for len in LENGTHS.into_iter().filter(|len| *len <= longest) {
            for (last, is_text) in [
                (&b"a"[..], true),
                ("회".as_bytes(), true),
                (b"\xff", false),
                (b"\xed\x9a", false),
            ] {
                let mut bytes = vec![b'x'; len];
                bytes.extend_from_slice(last);
                let expected = match is_text {
                    true => String::from_utf8(bytes.clone()).unwrap(),
                    false => {
                        let mut text = Vec::new();
                        base64(&bytes, &mut text);
                        String::from_utf8(text).unwrap()
                    }
                };
                let value = Value::Binary(bytes);
                let body = map(vec![("v".into(), value.clone()), (value, 1.into())]);
                assert_eq!(
                    line(&Options::default(), &body).unwrap(),
                    format!("{{\"v\":\"{expected}\",\"{expected}\":1}}\n"),
                    "{len} and {last:x?}"
                );
            }
        }
    }

    #[test]
    fn every_key_is_a_string() {
        let keys = vec![
            (Value::from(1), "1"),
            (Value::from(true), "true"),
            (Value::Nil, "null"),
            (Value::F64(2.5), "2.5"),
            (Value::Binary(vec![255]), "/w=="),
            (Value::Binary(b"log".to_vec()), "log"),
            (Value::Array(vec![1.into()]), "kQE="),
            (map(vec![(1.into(), 2.into())]), "gQEC"),
            (Value::from("\""), "\\\""),
        ];
        for (key, expected) in keys {
            let inner = map(vec![(key.clone(), 0.into())]);
            let text = line(&Options::default(), &map(vec![(key, inner)])).unwrap();
            assert_eq!(text, format!("{{\"{expected}\":{{\"{expected}\":0}}}}\n"));
        }
    }

    #[test]
    fn depth_is_bounded_and_nothing_half_written() {
        let nested = |depth: usize| {
            let mut value = Value::Nil;
            for _ in 0..depth {
                value = Value::Array(vec![value]);
            }
            map(vec![("d".into(), value)])
        };
        let deepest = line(&Options::default(), &nested(MAX_DEPTH - 1)).unwrap();
        serde_json::from_str::<serde_json::Value>(&deepest).expect("readable by others");
        assert_eq!(
            line(&Options::default(), &nested(MAX_DEPTH)),
            Err(Skip::TooDeep)
        );
        let alone = Options {
            log_key: Some("d".into()),
            ..Options::default()
        };
        assert!(line(&alone, &nested(MAX_DEPTH)).is_ok());
        assert_eq!(line(&alone, &nested(MAX_DEPTH + 1)), Err(Skip::TooDeep));
    }

    #[test]
    fn log_key_sends_one_value_as_it_is() {
        let options = Options {
            log_key: Some("log".into()),
            ..Options::default()
        };
        let cases = [
            (
                map(vec![
                    ("logger".into(), 1.into()),
                    ("log".into(), "a \"b\" 회".into()),
                ]),
                Ok("a \"b\" 회\n"),
            ),
            (
                map(vec![("log".into(), map(vec![("n".into(), 1.into())]))]),
                Ok("{\"n\":1}\n"),
            ),
            (
                map(vec![(bin("log"), bin("a \"b\" 회"))]),
                Ok("a \"b\" 회\n"),
            ),
            (map(vec![(bin("log"), bin(""))]), Ok("\n")),
            // Other values are written as JSON.
            (
                map(vec![(bin("log"), Value::Binary(b"caf\xe9\n".to_vec()))]),
                Ok("\"Y2Fm6Qo=\"\n"),
            ),
            (
                map(vec![(bin("log"), map(vec![(bin("k"), bin("v"))]))]),
                Ok("{\"k\":\"v\"}\n"),
            ),
            // The first of two equal keys counts.
            (
                map(vec![("log".into(), 1.into()), (bin("log"), 2.into())]),
                Ok("1\n"),
            ),
            (
                map(vec![(bin("log"), 2.into()), ("log".into(), 1.into())]),
                Ok("2\n"),
            ),
            (
                map(vec![("logger".into(), "prefix only".into())]),
                Err(Skip::NoLogKey),
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(
                line(&options, &body).as_deref(),
                expected.as_ref().map(|s| &**s)
            );
        }
    }

    #[test]
    fn data_keys_choose_top_level_keys_exactly() {
        let options = Options {
            data_keys: vec!["a".into(), "b".into()],
            ..Options::default()
        };
        let body = map(vec![
            ("ab".into(), 0.into()),
            ("b".into(), map(vec![("c".into(), 1.into())])),
            (1.into(), 2.into()),
            ("a".into(), 3.into()),
            (Value::Ext(1, b"a".to_vec()), 4.into()),
            (bin("a"), bin("5")),
            (bin("b.c"), 6.into()),
        ]);
        assert_eq!(
            line(&options, &body).unwrap(),
            "{\"b\":{\"c\":1},\"a\":3,\"a\":\"5\"}\n"
        );
    }

    #[test]
    fn time_and_tag_are_added_once() {
        let formats = [
            (TimeFormat::Iso8601, "\"2025-07-02T20:44:31.123Z\""),
            (TimeFormat::Epoch, "1751489071"),
            (TimeFormat::EpochMs, "1751489071123"),
            (
                TimeFormat::Strftime(Strftime::parse("%H:%M:%S.%6N").unwrap()),
                "\"20:44:31.123456\"",
            ),
        ];
        for (format, expected) in formats {
            let options = Options {
                time: Some(("time".into(), format)),
                tag_key: Some("tag".into()),
                ..Options::default()
            };
            for body in [
                map(vec![]),
                map(vec![("time".into(), "the app's own".into())]),
            ] {
                assert_eq!(
                    line(&options, &body).unwrap(),
                    format!("{{\"time\":{expected},\"tag\":\"app.http\"}}\n")
                );
            }
        }
    }

    #[test]
    fn metadata_and_group_are_written_under_their_key() {
        let options = Options {
            metadata_key: Some("meta".into()),
            ..Options::default()
        };
        let empty = pack(&map(vec![]));
        let metadata = pack(&map(vec![(
            "otlp".into(),
            map(vec![("severity_number".into(), 17.into())]),
        )]));
        let resource = pack(&map(vec![("resource".into(), map(vec![]))]));
        let schema = pack(&map(vec![("schema".into(), "otlp".into())]));
        let group = Group {
            metadata: &schema,
            body: &resource,
        };
        let unmarked = Group {
            metadata: b"",
            ..group
        };
        let cases = [
            (&empty, None, "{}\n"),
            (
                &metadata,
                None,
                "{\"meta\":{\"otlp\":{\"severity_number\":17}}}\n",
            ),
            (
                &empty,
                Some(group),
                "{\"meta\":{\"resource\":{},\"group\":{\"schema\":\"otlp\"}}}\n",
            ),
            (
                &metadata,
                Some(group),
                "{\"meta\":{\"otlp\":{\"severity_number\":17},\"resource\":{},\"group\":{\"schema\":\"otlp\"}}}\n",
            ),
            (&empty, Some(unmarked), "{\"meta\":{\"resource\":{}}}\n"),
        ];
        for (metadata, group, expected) in cases {
            let mut out = Vec::new();
            let event = Event {
                metadata,
                group,
                ..event(&empty)
            };
            Encoder::new(&options).line(b"t", &event, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn ids_in_metadata_are_base64_even_where_they_happen_to_be_text() {
        let options = Options {
            metadata_key: Some("meta".into()),
            ..Options::default()
        };
        let ids = |key: fn(&'static str) -> Value| {
            map(vec![
                (key("trace_id"), bin("0123456789abcdef")),
                (key("span_id"), bin("01234567")),
            ])
        };
        let expected = "{\"trace_id\":\"MDEyMzQ1Njc4OWFiY2RlZg==\",\"span_id\":\"MDEyMzQ1Njc=\"}";
        let text = "{\"trace_id\":\"0123456789abcdef\",\"span_id\":\"01234567\"}";
        for key in [Value::from, bin] {
            let metadata = pack(&map(vec![("otlp".into(), ids(key))]));
            // Neither a record's own keys nor other metadata is treated as an id.
            let body = pack(&ids(key));
            let others = pack(&map(vec![
                (bin("schema"), bin("otlp")),
                ("id".into(), bin("01234567")),
                ("trace_id".into(), bin("0123456789abcdef0123456789abcdef")),
                ("span_id".into(), Value::Array(vec![bin("01234567")])),
                ("my_span_id".into(), bin("01234567")),
                ("\",\"span_id".into(), bin("01234567")),
            ]));
            let group = Group {
                metadata: &others,
                body: b"\x80",
            };
            let event = Event {
                metadata: &metadata,
                group: Some(group),
                ..event(&body)
            };
            let mut out = Vec::new();
            Encoder::new(&options).line(b"t", &event, &mut out).unwrap();
            let fields = text.trim_end_matches('}');
            assert_eq!(
                String::from_utf8(out).unwrap(),
                format!(
                    "{fields},\"meta\":{{\"otlp\":{expected},\"group\":{{\"schema\":\"otlp\",\"id\":\"01234567\",\
                     \"trace_id\":\"0123456789abcdef0123456789abcdef\",\"span_id\":[\"01234567\"],\
                     \"my_span_id\":\"01234567\",\"\\\",\\\"span_id\":\"01234567\"}}}}}}\n"
                )
            );
        }
    }

    #[test]
    fn dots_are_replaced_in_keys_at_every_depth() {
        let options = Options {
            replace_dots: Some("_".into()),
            ..Options::default()
        };
        let body = map(vec![(
            "a.b".into(),
            Value::Array(vec![map(vec![
                ("c.d.".into(), "left.alone".into()),
                (Value::F64(2.5), 1.into()),
            ])]),
        )]);
        assert_eq!(
            line(&options, &body).unwrap(),
            "{\"a_b\":[{\"c_d_\":\"left.alone\",\"2_5\":1}]}\n"
        );
    }

    #[test]
    fn an_added_key_replaces_a_records_key_that_is_written_the_same() {
        let options = Options {
            tag_key: Some("a_b".into()),
            time: Some(("5".into(), TimeFormat::Epoch)),
            replace_dots: Some("_".into()),
            ..Options::default()
        };
        // {"a.b": 1, 5: 2, "c": 3}: a dot that is replaced, a number that becomes a string.
        let body = b"\x83\xa3a.b\x01\x05\x02\xa1c\x03";
        let data = [b"\x92\x92\xd7\0\0\0\0\x07\0\0\0\0\x80".as_slice(), body].concat();
        let Some(crate::codec::msgpack::Item::Event(event)) =
            crate::codec::msgpack::Events::new(&data).next()
        else {
            panic!("an event");
        };
        let mut line = Vec::new();
        Encoder::new(&options)
            .line(b"t", &event, &mut line)
            .unwrap();
        assert_eq!(line, b"{\"c\":3,\"5\":7,\"a_b\":\"t\"}\n");
    }

    proptest::proptest! {
        /// Any record becomes one line that is one JSON value.
        #[test]
        fn any_record_is_one_valid_line(body in proptest::collection::vec((strings(), values()), 0..8)) {
            let body = map(body);
            if let Ok(text) = line(&Options::default(), &body) {
                proptest::prop_assert_eq!(text.bytes().filter(|b| *b == b'\n').count(), 1);
                serde_json::from_str::<serde_json::Value>(&text).expect("valid JSON");
            }
        }
    }

    fn strings() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        proptest::collection::vec(any::<u8>(), 0..24).prop_map(|bytes| {
            Value::String(rmpv::Utf8String::from(
                String::from_utf8(bytes).unwrap_or_default(),
            ))
        })
    }

    fn values() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::F64),
            any::<f32>().prop_map(Value::F32),
            any::<bool>().prop_map(Value::from),
            strings(),
            proptest::collection::vec(any::<u8>(), 0..24).prop_map(Value::Binary),
            (any::<i8>(), proptest::collection::vec(any::<u8>(), 0..24))
                .prop_map(|(k, b)| Value::Ext(k, b)),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                proptest::collection::vec((inner.clone(), inner), 0..6).prop_map(Value::Map),
            ]
        })
    }
}
