//! Events become JSON lines, in one pass over their msgpack.
//!
//! What is written is valid JSON whatever the msgpack holds: raw UTF-8 with U+FFFD for bytes that are
//! none, binary as text where it is UTF-8 and as base64 where it is not, extension values as base64, every
//! key a string, no NaN, 64-bit integers digit for digit. Only what JSON demands is escaped. Containers are
//! walked with a stack on the heap, to [`MAX_DEPTH`].
//!
//! Two things make it fast. Strings are copied and searched for escapes a [`Block`] at a time. And keys
//! are hardly looked at: logs have the same keys in the same order again and again, so that each key's
//! text is kept as it stands in a line ([`Keys`]), with the two keys that came after it last.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::codec::msgpack::{Cursor, Event, Events, Head, Malformed, Token, lookup};
use crate::codec::time::{TimeFormat, write_iso8601};
use crate::ids::Time;
use simd::{BLOCK, Block, JsonWriter, Kernel, Key, Level, Pair, Source};

#[allow(
    unsafe_code,
    reason = "reads and writes whole blocks; every line of it carries its proof"
)]
pub mod simd;

/// Containers within containers, the record itself included. Deeper than this common JSON readers give
/// up (128 in serde_json, 64 to 1,000 elsewhere), so that the line would be lost further down.
pub const MAX_DEPTH: usize = 100;

/// What a record looks like.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Send only this key's value.
    pub log_key: Option<String>,
    /// Send only these top-level keys; all where it is empty.
    pub data_keys: Vec<String>,
    /// Add the event's time under a key.
    pub time: Option<(String, TimeFormat)>,
    /// Add the tag under a key.
    pub tag_key: Option<String>,
    /// Add the record's metadata and its group under a key.
    pub metadata_key: Option<String>,
    /// Put this in the place of every dot in a key.
    pub replace_dots: Option<String>,
}

/// Why an event became no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It has no `log_key`, and so nothing to send.
    NoLogKey,
    /// It is nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// It is no whole event. One that was decoded is.
    Malformed,
}

impl From<Malformed> for Skip {
    fn from(_: Malformed) -> Skip {
        Skip::Malformed
    }
}

/// A container around the one that is being written.
#[derive(Clone, Copy)]
struct Open {
    /// Values (pairs in a map) still to come.
    left: u32,
    place: Place,
    /// Where in the text it begins.
    start: usize,
}

/// Writes events as JSON lines. Holds only scratch space between events.
pub struct Encoder<'o> {
    options: &'o Options,
    level: Level,
    keys: Keys<'o>,
    open: Box<[Open; MAX_DEPTH + 1]>,
    /// The key of the event's time, as it stands in a line.
    time_key: Vec<u8>,
    /// The event time's text, and the second it is of, where it is the same for all of a second.
    clock: Option<(i64, Vec<u8>)>,
}

impl<'o> Encoder<'o> {
    /// An encoder for records that look as `options` say.
    pub fn new(options: &'o Options) -> Self {
        Encoder::at_level(options, Level::best())
    }

    /// An encoder that uses these instructions.
    pub fn at_level(options: &'o Options, level: Level) -> Self {
        let mut time_key = Vec::new();
        if let Some((key, _)) = &options.time {
            our_key(key, &mut time_key);
        }
        Encoder {
            options,
            level,
            keys: Keys::new(options),
            open: Box::new(
                [Open {
                    left: 0,
                    place: Place::Nowhere,
                    start: 0,
                }; MAX_DEPTH + 1],
            ),
            time_key,
            clock: None,
        }
    }

    /// Appends `event` and a newline to `out`, or nothing at all and why.
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

    /// Appends events while they are decoded, each with a newline, for as long as each one's head is `wanted`.
    /// Tells `written` where in `out` each line ends. `events` goes on with the first that was not written;
    /// where that was wanted, the error says why it is none that can be written so.
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

    /// Appends an event and a newline, or nothing. Gives where its body ends.
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
        let (end, mut pen) = self.items::<B>(head.bytes, at, record, JsonWriter::of(out))?;
        let options = self.options;
        if options.time.is_some() || options.tag_key.is_some() || options.metadata_key.is_some() {
            let out = pen.finish();
            self.ours(tag, head, out)?;
            pen = JsonWriter::of(out);
        }
        pen.close(start, true);
        pen.newline();
        pen.finish();
        Ok(end)
    }

    /// Writes what we add to a record, each with a comma before it.
    fn ours(&mut self, tag: &[u8], head: &Head<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        let options = self.options;
        if let Some((_, format)) = &options.time {
            out.extend_from_slice(&self.time_key);
            self.time(head.time, format, out);
        }
        if let Some(key) = &options.tag_key {
            our_key(key, out);
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
            TimeFormat::Iso8601 | TimeFormat::Strftime(_) => match &mut self.clock {
                Some((second, text)) if *second == time.seconds => text,
                clock => {
                    let mut text = Vec::new();
                    if let TimeFormat::Strftime(format) = format {
                        let mut words = String::new();
                        format.write(time, &mut words);
                        string(words.as_bytes(), &mut text);
                    } else {
                        text.push(b'"');
                        write_iso8601(time, &mut text);
                        text.push(b'"');
                    }
                    &mut clock.insert((time.seconds, text)).1
                }
            },
        };
        let start = out.len();
        out.extend_from_slice(text);
        if matches!(format, TimeFormat::Iso8601) {
            // …31.123Z": the second's text with this event's milliseconds.
            let digits = out.len() - ISO_8601_END..out.len() - 2;
            debug_assert!(digits.start > start);
            let millis = time.nanos / 1_000_000;
            for (digit, unit) in out[digits].iter_mut().zip([100, 10, 1]) {
                *digit = b'0' + (millis / unit % 10) as u8;
            }
        }
    }

    /// `"key":{…metadata, …resource and scope, "group":{…}}`; nothing where there is none of them.
    fn metadata(&mut self, key: &str, head: &Head<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        let before = out.len();
        our_key(key, out);
        let start = out.len();
        self.pairs(head.metadata, out)?;
        if let Some(group) = head.group {
            self.pairs(group.body, out)?;
            let (pairs, at) = match group.metadata {
                [] => (0, 0),
                metadata => map_head(metadata, 0)?,
            };
            if pairs > 0 {
                our_key("group", out);
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

    /// Writes a whole map's pairs, each with a comma before it.
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
        self.items_apart(map, at, pairs, out)?;
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
        self.items_apart(bytes, at, container, out)?;
        close(start, container.place != Place::Array, out);
        Ok(())
    }

    /// Writes what is in a container that is none of the record's.
    fn items_apart(
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

    /// Writes what is in a container, each with a comma before it: [`JsonWriter::close`] makes the first comma the
    /// container's bracket. Gives where in `bytes` it ends.
    #[inline(always)]
    fn items<'v, B: Block>(
        &mut self,
        bytes: &[u8],
        mut at: usize,
        container: Container,
        mut pen: JsonWriter<'v>,
    ) -> Result<(usize, JsonWriter<'v>), Skip> {
        let Keys {
            rules,
            seen,
            last: first_key,
        } = &mut self.keys;
        let seen = &mut **seen;
        let mut last = *first_key;
        let open = &mut *self.open;
        let mut opened = 0;
        let Container {
            mut left,
            mut place,
            depth,
            metadata,
        } = container;
        let mut start = pen.len();
        let source = Source::new(bytes);
        'item: loop {
            if left == 0 {
                if opened == 0 {
                    *first_key = last;
                    return Ok((at, pen));
                }
                pen.close(start, place != Place::Array);
                opened -= 1;
                Open { left, place, start } = open[opened];
                continue;
            }
            left -= 1;
            let (here, value) = 'key: {
                if let Some(pair) = source.pair(at)
                    && let Some((key, value)) = foreseen::<B>(seen, &mut last, pair, place)
                {
                    at += key.raw_len();
                    break 'key (pen.room().key::<B>(key), Some(value));
                }
                if place == Place::Array {
                    break 'key (pen.room().comma(), source.value(at));
                }
                let out = pen.finish();
                let (end, slot, kept) = rules.unforeseen(seen, bytes, at, place, out)?;
                pen = JsonWriter::of(out);
                at = end;
                if let Some(slot) = slot {
                    seen[usize::from(last)].follow(slot);
                    last = slot;
                }
                if !kept {
                    let mut value = Cursor::at(bytes, at);
                    value.value()?;
                    at = value.position();
                    continue 'item;
                }
                (pen.room().behind_key(), source.value(at))
            };
            let token = 'token: {
                // What most records are made of. All else, and the last bytes, are read as tokens.
                if let Some(value) = value {
                    let first = value.first();
                    let len = usize::from(first.wrapping_sub(0xa0));
                    if len < BLOCK {
                        at += 1;
                        if let Err(here) = here.plain_string::<B>(value.rest(), len) {
                            here.string::<B>(source, at, at + len);
                        }
                        at += len;
                        continue 'item;
                    }
                    match first {
                        0x00..=0x7f => {
                            at += 1;
                            here.number(first.into());
                            continue 'item;
                        }
                        0xcc..=0xce => {
                            let size = 1 << (first - 0xcc);
                            at += 1 + size;
                            here.number(u32::from_be_bytes(*value.rest()) >> (32 - 8 * size));
                            continue 'item;
                        }
                        0xc0 | 0xc2 | 0xc3 => {
                            at += 1;
                            here.short(WORDS[usize::from(first & 3)]);
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
                    here.string::<B>(source, at - text.len(), at);
                    continue 'item;
                }
                Token::Bin(bytes) if !metadata => {
                    here.string_or::<B>(source, at - bytes.len(), at, write_base64);
                    continue 'item;
                }
                Token::F64(n) if n.is_finite() => {
                    here.float(n);
                    continue 'item;
                }
                scalar => {
                    let out = pen.finish();
                    write_item(scalar, out);
                    pen = JsonWriter::of(out);
                    continue 'item;
                }
            };
            if inner > 0 && depth + opened >= MAX_DEPTH {
                return Err(Skip::TooDeep);
            }
            open[opened] = Open { left, place, start };
            opened += 1;
            (left, place, start) = (inner, inner_place, pen.len());
        }
    }
}

/// JSON's words, by the lowest two bits of msgpack's byte for each.
const WORDS: [&str; 4] = ["null", "", "false", "true"];

/// The last of an ISO 8601 time: milliseconds, `Z`, and a quote.
const ISO_8601_END: usize = 5;

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

/// [`Encoder::items_apart`].
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
        let pen = JsonWriter::of(self.out);
        let (_, pen) = self
            .encoder
            .items::<B>(self.bytes, self.at, self.container, pen)?;
        pen.finish();
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
            self.events.pass(end);
            (self.written)(self.out.len());
        }
        Ok(())
    }
}

/// A container whose items are to be written.
#[derive(Clone, Copy)]
struct Container {
    /// Values (pairs in a map).
    left: u32,
    /// Where its items stand.
    place: Place,
    /// Containers that are open with it.
    depth: usize,
    /// Whether it is a record's or a group's metadata.
    metadata: bool,
}

/// Where something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the record itself, with the keys that the user chooses from.
    Record,
    /// In a map within it.
    Map,
    /// In an array.
    Array,
    /// A key that is not written.
    Nowhere,
}

/// Makes a container of items that were written from `start` on, each with a comma before it.
fn close(start: usize, map: bool, out: &mut Vec<u8>) {
    let mut pen = JsonWriter::of(out);
    pen.close(start, map);
    pen.finish();
}

/// Pairs in the map at `at`, and where the first of them begins.
#[inline(always)]
fn map_head(bytes: &[u8], at: usize) -> Result<(u32, usize), Skip> {
    // The two forms that hosts use.
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

fn our_key(key: &str, out: &mut Vec<u8>) {
    out.push(b',');
    string(key.as_bytes(), out);
    out.push(b':');
}

/// Keys that were seen, as they stand in a line: `,"key":`.
struct Keys<'o> {
    rules: Rules<'o>,
    /// By their hash; where there is no room for one, it takes another's place.
    seen: Box<[Seen; SEEN]>,
    /// The one before, and so whose guess is next.
    last: u8,
}

/// What is written of a key.
struct Rules<'o> {
    replace_dots: Option<&'o str>,
    /// Keys that we write ourselves, as they stand in a line: the record's own give way that come out the
    /// same, since a JSON object with one key twice is refused by some readers.
    ours: HashSet<Vec<u8>>,
    data_keys: HashSet<&'o [u8]>,
}

/// Keys that are kept: as many as a byte can tell apart.
const SEEN: usize = 256;
/// Places where one may be.
const NEAR: u8 = 8;

/// One key.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Seen {
    key: Key,
    /// Where it was seen, and is written.
    written: Place,
    /// The last two keys that came after it, the latest first.
    next: [u8; 2],
}

impl Seen {
    /// Nothing yet. No key begins with the byte that msgpack never uses.
    fn nothing() -> Seen {
        Seen {
            key: Key::new(&[0xc1], b"").expect("short"),
            written: Place::Nowhere,
            next: [0; 2],
        }
    }

    /// Notes which key came after it.
    fn follow(&mut self, slot: u8) {
        self.next = [slot, self.next[0]];
    }

    /// The pair's value, where the pair's key is this one, and is written.
    #[inline(always)]
    fn value<'a, B: Block>(&self, pair: Pair<'a>, place: Place) -> Option<simd::Value<'a>> {
        if self.written != place {
            return None;
        }
        pair.behind::<B>(&self.key)
    }

    fn is_nothing(&self) -> bool {
        self.key.raw() == [0xc1]
    }

    fn is(&self, raw: &[u8], place: Place) -> bool {
        let written = self.written == place;
        // Only the record's keys are left out.
        let left_out = self.written == Place::Nowhere && place == Place::Record;
        (written || left_out) && self.key.raw() == raw
    }
}

impl<'o> Keys<'o> {
    fn new(options: &'o Options) -> Self {
        let ours = [
            options.time.as_ref().map(|(key, _)| key),
            options.tag_key.as_ref(),
            options.metadata_key.as_ref(),
        ];
        let written = |key: &String| {
            let mut text = Vec::new();
            our_key(key, &mut text);
            text
        };
        Keys {
            rules: Rules {
                replace_dots: options.replace_dots.as_deref(),
                ours: ours.into_iter().flatten().map(written).collect(),
                data_keys: options.data_keys.iter().map(String::as_bytes).collect(),
            },
            seen: Box::new([Seen::nothing(); SEEN]),
            last: 0,
        }
    }
}

/// The pair's key and value, where the key is one of the two that came after the `last` one before. Makes it
/// the last one.
#[inline(always)]
fn foreseen<'s, 'a, B: Block>(
    seen: &'s mut [Seen; SEEN],
    last: &mut u8,
    pair: Pair<'a>,
    place: Place,
) -> Option<(&'s Key, simd::Value<'a>)> {
    let [next, other] = seen[usize::from(*last)].next;
    if let Some(value) = seen[usize::from(next)].value::<B>(pair, place) {
        *last = next;
        return Some((&seen[usize::from(next)].key, value));
    }
    let value = seen[usize::from(other)].value::<B>(pair, place)?;
    seen[usize::from(*last)].follow(other);
    *last = other;
    Some((&seen[usize::from(other)].key, value))
}

/// Where a key is kept, or may be.
fn slot(seen: &[Seen; SEEN], raw: &[u8], place: Place) -> u8 {
    // FNV-1a: short, and keys that collide only cost time.
    let hash = raw.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 32)) as u8;
    let mut near = (0..NEAR).map(|step| hash.wrapping_add(step));
    near.find(|slot| {
        let seen = &seen[usize::from(*slot)];
        seen.is_nothing() || seen.is(raw, place)
    })
    .unwrap_or(hash)
}

impl Rules<'_> {
    /// Writes a key that did not come after the last one before, or nothing where the record's key is not
    /// to be written. Gives where it ends, where it is kept, and whether it was written.
    #[inline(never)]
    fn unforeseen(
        &self,
        seen: &mut [Seen; SEEN],
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
        let slot = slot(seen, raw, place);
        let seen = &mut seen[usize::from(slot)];
        if seen.is(raw, place) {
            out.extend_from_slice(seen.key.text());
            return Ok((end, Some(slot), seen.written != Place::Nowhere));
        }
        let start = out.len();
        out.push(b',');
        self.new_key(token, raw, out);
        out.push(b':');
        let kept =
            place == Place::Map || (self.wanted(token) && !self.ours.contains(&out[start..]));
        if !kept {
            out.truncate(start);
        }
        let Some(key) = Key::new(raw, &out[start..]) else {
            return Ok((end, None, kept));
        };
        seen.key = key;
        seen.written = if kept { place } else { Place::Nowhere };
        Ok((end, Some(slot), kept))
    }

    fn wanted(&self, key: Token<'_>) -> bool {
        self.data_keys.is_empty()
            || matches!(key, Token::Str(name) | Token::Bin(name) if self.data_keys.contains(name))
    }

    /// Writes a key as a JSON string, whatever it is in msgpack.
    fn new_key(&self, token: Token<'_>, raw: &[u8], out: &mut Vec<u8>) {
        let mut scratch = Vec::new();
        let name: &[u8] = match (token.text(), token) {
            (Some(name), _) => name,
            (None, Token::Bin(bytes) | Token::Ext(_, bytes)) => {
                base64(bytes, &mut scratch);
                &scratch
            }
            (None, Token::Array(_) | Token::Map(_)) => {
                // A container as a key is written as its own msgpack: its JSON could nest keys in keys
                // without end.
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

/// Writes a scalar behind its key or comma. Where it is binary, it is metadata's.
#[inline(never)]
fn write_item(token: Token<'_>, out: &mut Vec<u8>) {
    match token {
        Token::Bin(id) if is_id(id, out) => write_base64(id, out),
        scalar => write_scalar(scalar, out),
    }
}

/// Whether binary in metadata, behind its key at the end of `written`, is one of OTLP's ids. Ids are random bytes,
/// and one in a hundred of eight bytes happens to be UTF-8: they are all base64, so that they compare.
fn is_id(bytes: &[u8], written: &[u8]) -> bool {
    // No other key ends so: a quote within one stands behind a backslash.
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

/// Hexadecimal digits, in lower case.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Appends a JSON string: quotes, escapes only where JSON demands them, U+FFFD for what is not UTF-8.
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
            // 1.09765625: 1.0976563 lies as near and is as short. Of the two, the one that ends in an even digit.
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
    fn bytes_that_are_no_text_become_replacement_characters() {
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

    /// The three forms that binary has, at the borders between them and of blocks, as value and as key: text,
    /// text but for its last byte, and text whose last letter is cut off.
    #[test]
    fn binary_of_any_length_is_text_or_base64_as_a_whole() {
        const LENGTHS: [usize; 10] = [1, 31, 32, 33, 64, 255, 256, 65_535, 65_536, 1_000_003];
        // Miri takes some thousand times as long.
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
            // What is no text is JSON, here as anywhere.
            (
                map(vec![(bin("log"), Value::Binary(b"caf\xe9\n".to_vec()))]),
                Ok("\"Y2Fm6Qo=\"\n"),
            ),
            (
                map(vec![(bin("log"), map(vec![(bin("k"), bin("v"))]))]),
                Ok("{\"k\":\"v\"}\n"),
            ),
            // Of two keys that are the same, the first.
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
    fn metadata_and_group_stand_under_their_key() {
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

    /// Random bytes are text now and then: an id in eight bytes is once in a hundred.
    #[test]
    fn ids_in_metadata_are_base64_also_where_they_happen_to_be_text() {
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
            // The record's own keys mean what their bytes say, and so does all else in metadata.
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
    fn a_key_that_comes_out_like_one_of_ours_gives_way_however_it_was_written() {
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
        /// Whatever a record holds, its line is one JSON object, and reads back as what went in.
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
