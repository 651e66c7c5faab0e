//! Encodes a chunk's events as lines, grouped by destination name. No I/O.
//!
//! A chunk is encoded in *steps* of bounded memory. The fields that are added to each event (the tag, a group's
//! resource) and JSON's escapes may take thousands of times the chunk's size, and each name becomes an object. So an
//! upper bound is computed before anything is written, and a step ends where the next event might exceed its memory.
//! The boundaries of steps depend on the chunk and the configuration alone: in direct mode they determine the contents
//! of an object, which its name identifies.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::buffers;
use crate::ids::{EventSet, Time};
use crate::metrics::Reason;
use json::{MAX_DEPTH, Options, Skip, string};
use msgpack::{Event, Events, Head, Item};
use rejected::Letter;
use rows::{AnyEncoder, RowFormat};
use template::Template;
use time::TimeFormat;

pub mod extract;
pub mod json;
pub mod msgpack;
pub mod rejected;
pub mod rows;
pub mod template;
pub mod time;

/// The memory of a step, in bytes. A typical chunk, of about 2 MB, is one step.
pub const STEP_BYTES: usize = 8 * 1024 * 1024;
/// A step ends when less than this fraction of its memory is left, rather than take ever smaller portions.
const MIN_STEP_SHARE: usize = 16;
/// The approximate size of a letter without its record.
const LETTER_BYTES: usize = 512;
/// The smallest event that [`Events::head`] returns: everything before its body, and an empty body.
const MIN_HEADED_EVENT: usize = 14;
/// The smallest event in any form: an array of a number and an empty map.
const MIN_EVENT: usize = 3;
/// The approximate size of a typical event.
const TYPICAL_EVENT: usize = 200;
/// The most bytes of JSON for a byte of msgpack: six for a control character, seven on average for a pair of booleans.
const MAX_PER_BYTE: usize = 7;
/// The bound of a group's fields beyond which they are measured.
const UNMEASURED_BYTES: usize = 16 * 1024;
/// The longest time in any format but the user's own.
const TIME_BYTES: usize = 48;
/// The punctuation around an added field: comma, quotes, colon, brackets, and the key `group`.
const PUNCTUATION_BYTES: usize = 16;
/// The letter of a line that is too long contains the line, as a reader would have seen it, unless the line is longer
/// than this multiple of the raw event.
const MAX_LETTER_GROWTH: usize = 4;

/// A chunk's lines for one name.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The delivery stream, or the object's folder.
    pub name: String,
    /// What its destination is known by if names change with time ([`Encoding::targets`]).
    pub target: Option<String>,
    /// The time of the first event.
    pub first: Time,
    /// The lines.
    pub text: Vec<u8>,
    /// The end of each line in `text`, its newline included.
    pub ends: Vec<usize>,
    /// The event of each line, by its ordinal in the chunk.
    pub events: Vec<u32>,
}

/// A position between two events of a chunk, where a step starts. The default is the chunk's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    at: msgpack::Place,
    /// The ordinal of the next event.
    event: u32,
}

impl Place {
    /// The number of the chunk's bytes before it.
    pub fn offset(&self) -> usize {
        self.at.offset()
    }
}

/// The result of a step.
#[derive(Debug, Default)]
pub struct Encoded {
    /// The lines by name, in the order of their first events.
    pub parts: Vec<Part>,
    /// The letters of bytes that could not be decoded and of events that could not be encoded.
    pub letters: Vec<Letter>,
    /// The event of each letter, by its ordinal in the chunk.
    pub lettered: Vec<u32>,
    /// The events without the `log_key`, by their ordinals in the chunk.
    pub skipped: Vec<u32>,
    /// The number of events in the chunk up to the step's end, skipped ones included.
    pub events: u32,
    /// The start of the next step; `None` at the chunk's end.
    pub next: Option<Place>,
}

impl Encoded {
    /// Returns a suffix of names that tells the objects of this step, which started at `from`, from those of the chunk's
    /// other steps: the range of its events. Empty if the chunk is one step. The range is needed since the boundaries of
    /// steps may change with an upgrade, and an object of the same name must have the same contents.
    pub fn mark(&self, from: Place) -> String {
        match (from.event, self.next) {
            (0, None) => String::new(),
            (first, _) => format!("-e{first}-{}", self.events),
        }
    }

    /// Adds the letter of one event.
    pub fn letter(&mut self, event: u32, letter: Letter) {
        self.lettered.push(event);
        self.letters.push(letter);
    }

    /// Drops the letters of the given events.
    pub fn drop_letters(&mut self, of: &EventSet) {
        let mut events = self.lettered.iter();
        self.letters
            .retain(|_| !events.next().is_some_and(|event| of.contains(*event)));
        self.lettered.retain(|event| !of.contains(*event));
    }
}

/// An error: the next event may need this many bytes, which exceeds the memory. Nothing was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsMore(pub usize);

/// Encodes a chunk's first step, without a limit on the length of lines.
pub fn encode(
    options: &Options,
    names: &Template,
    tag: &[u8],
    data: &[u8],
    wanted: impl Fn(u32) -> bool,
) -> Encoded {
    let (encoding, tag) = (Encoding::new(options, names), tag.into());
    let mut steps = encoding.steps(&tag, data, wanted);
    steps.next().unwrap_or_default()
}

/// The encoding of chunks.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'o> {
    /// The contents of a line.
    pub options: &'o Options,
    /// The rows that events become, if these are not lines.
    pub rows: Option<&'o dyn RowFormat>,
    /// The template of destination names.
    pub names: &'o Template,
    /// Names each event's target, if that differs from its name.
    pub targets: Option<&'o Template>,
    /// The longest line that any target accepts, in bytes, its newline included. A longer one becomes a letter.
    pub longest_line: usize,
    /// The memory overhead of a line, in bytes.
    pub line_bytes: usize,
    /// The memory overhead of a name, in bytes.
    pub name_bytes: usize,
    /// The memory of a step, in bytes: [`STEP_BYTES`] except in tests.
    pub step_bytes: usize,
}

impl<'o> Encoding<'o> {
    /// Creates an encoding without a limit on the length of lines, and without overheads.
    pub fn new(options: &'o Options, names: &'o Template) -> Self {
        Encoding {
            options,
            rows: None,
            names,
            targets: None,
            longest_line: usize::MAX,
            line_bytes: 0,
            name_bytes: 0,
            step_bytes: STEP_BYTES,
        }
    }

    /// Encodes a chunk from a position on, until the step is full or the chunk ends. Skips events whose ordinals are not
    /// `wanted`. `memory` is the number of bytes that were reserved: [`Encoding::most`], or what [`NeedsMore`] required.
    pub fn step(
        &self,
        tag: &Arc<[u8]>,
        data: &[u8],
        from: Place,
        memory: usize,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Encoded, NeedsMore> {
        let mut step = Step {
            encoding: self,
            encoder: AnyEncoder::new(self.options, self.rows),
            added: AddedFields::new(self, tag),
            tag,
            tag_text: String::from_utf8_lossy(tag),
            sorter: Sorter::new(self.names, self.targets),
            events: Events::from(data, from.at),
            encoded: Encoded {
                events: from.event,
                ..Encoded::default()
            },
            first: from.event,
            left: self.step_bytes,
            memory,
            kept_group: None,
        };
        loop {
            if step.has_events() && step.left < self.step_bytes / MIN_STEP_SHARE {
                let next = Some(step.events.place()).filter(|_| step.events.left() > 0);
                return Ok(step.end(next));
            }
            // The fast path encodes events while it decodes them, as long as their seconds are the same. The others are
            // decoded first.
            if step.sorter.constant_within_a_second
                && wanted(step.encoded.events)
                && step.lines(&wanted)
            {
                continue;
            }
            let here = step.events.place();
            match step.event(&wanted) {
                Progress::Consumed => {}
                Progress::End => return Ok(step.end(None)),
                Progress::NoRoom(_) if step.has_events() => {
                    return Ok(step.end(Some(here)));
                }
                Progress::NoRoom(bytes) => return Err(NeedsMore(bytes)),
            }
        }
    }

    /// Returns the memory, in bytes, to reserve for the step at a position. A single large event may need more.
    pub fn most(&self, tag: &[u8], data: &[u8], from: Place) -> usize {
        let left = data.len() - from.at.offset();
        if self.options.metadata_key.is_some() {
            // A group's fields, which may be most of the chunk, are added to each of its events.
            return self.step_bytes;
        }
        let each = AddedFields::new(self, tag).fixed + self.line_bytes + self.name_bytes;
        let events = left / MIN_EVENT + 1;
        let most =
            (self.per_byte() * left).saturating_add(events.saturating_mul(each.max(LETTER_BYTES)));
        most.min(self.step_bytes)
    }

    /// Returns all steps of a chunk, without a limit on memory.
    pub fn steps<'c>(
        &'c self,
        tag: &'c Arc<[u8]>,
        data: &'c [u8],
        wanted: impl Fn(u32) -> bool + 'c,
    ) -> impl Iterator<Item = Encoded> + 'c {
        let mut next = Some(Place::default());
        std::iter::from_fn(move || {
            let step = self.step(tag, data, next?, usize::MAX, &wanted);
            let encoded = step.expect("memory is unlimited");
            next = encoded.next;
            Some(encoded)
        })
    }

    /// The most bytes that a byte of an event may become.
    fn per_byte(&self) -> usize {
        let dot = self.options.replace_dots.as_ref();
        dot.map_or(0, |dot| json_len(dot.as_bytes()))
            .max(MAX_PER_BYTE)
    }
}

/// The result of [`Step::event`].
enum Progress {
    /// The next event became a line or a letter, or was skipped.
    Consumed,
    /// The chunk has no more events.
    End,
    /// The next event was not consumed, since it may need this many bytes.
    NoRoom(usize),
}

/// A step in progress.
struct Step<'s, 'o, 'd> {
    encoding: &'s Encoding<'o>,
    encoder: AnyEncoder<'o>,
    added: AddedFields<'s, 'o>,
    tag: &'d Arc<[u8]>,
    tag_text: Cow<'d, str>,
    sorter: Sorter<'o>,
    events: Events<'d>,
    encoded: Encoded,
    /// The ordinal of its first event.
    first: u32,
    /// The memory left, in bytes.
    left: usize,
    /// The memory that was reserved, in bytes. Where it exceeds a step's, the first event may use it.
    memory: usize,
    /// The offset of the group's marker that the last letter with one contains.
    kept_group: Option<usize>,
}

impl Step<'_, '_, '_> {
    /// Whether an event was consumed.
    fn has_events(&self) -> bool {
        self.encoded.events > self.first
    }

    /// The memory for the next event, in bytes.
    fn room(&self) -> usize {
        match self.has_events() {
            true => self.left,
            false => self.memory.max(self.encoding.step_bytes),
        }
    }

    fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Encodes events while it decodes them, as long as their upper bound fits. Returns whether to try again before
    /// [`Step::event`].
    fn lines(&mut self, wanted: impl Fn(u32) -> bool) -> bool {
        let room = self.room();
        let Ok(added) = self
            .added
            .max_bytes(self.tag, &mut self.encoder, &self.events, room)
        else {
            return false;
        };
        self.events.look_ahead(self.safe_bytes(added));
        let Some(head) = self.events.head() else {
            return false;
        };
        let index = self.part(&event_of_head(&head));
        let part = &mut self.encoded.parts[index];
        let (lines, bytes) = (part.ends.len(), part.text.len());
        let next = Cell::new(self.encoded.events);
        let written = self.encoder.lines(
            self.tag,
            &mut self.events,
            &mut part.text,
            |now| now.time.seconds == head.time.seconds && wanted(next.get()),
            |end| {
                if part.ends.is_empty() {
                    part.first = head.time;
                }
                part.ends.push(end);
                part.events.push(next.get());
                next.set(next.get() + 1);
            },
        );
        self.encoded.events = next.get();
        let lines = part.ends.len() - lines;
        let taken = part.text.len() - bytes + lines * self.encoding.line_bytes;
        debug_assert!(taken <= self.left, "{taken} of {}", self.left);
        self.take(taken);
        written.is_ok()
    }

    /// Returns the number of bytes of the chunk whose lines are certain to fit, and certain not to be too long.
    fn safe_bytes(&self, added: usize) -> usize {
        let per_byte = self.encoding.per_byte();
        let all = self.left.saturating_sub(self.encoding.name_bytes);
        let each = added + self.encoding.line_bytes;
        let all = all / (per_byte + each.div_ceil(MIN_HEADED_EVENT));
        let one = self.encoding.longest_line.saturating_sub(added) / per_byte;
        all.min(one)
    }

    /// Decodes and encodes one event.
    fn event(&mut self, wanted: impl Fn(u32) -> bool) -> Progress {
        let number = self.encoded.events;
        let Some(item) = self.events.next() else {
            return Progress::End;
        };
        if !wanted(number) {
            self.encoded.events += 1;
            return Progress::Consumed;
        }
        let event = match item {
            Item::Event(event) => event,
            Item::Malformed {
                bytes,
                offset,
                reason,
            } => {
                let len = bytes.len();
                let detail = format!("{len} bytes at offset {offset} of a chunk: {reason}");
                return self.letter(Reason::Malformed, detail, bytes.to_vec());
            }
        };
        let room = self.room();
        let added = match self
            .added
            .max_bytes(self.tag, &mut self.encoder, &self.events, room)
        {
            Ok(added) => added,
            Err(NeedsMore(bytes)) => return Progress::NoRoom(bytes),
        };
        let (longest, least) = (self.encoding.longest_line, self.added.least);
        if least > longest {
            let detail = format!(
                "a record of more than {least} bytes; the destination takes at most {longest}"
            );
            return self.raw_letter(Reason::TooLarge, detail, event.raw);
        }
        let overhead = self.encoding.line_bytes + self.encoding.name_bytes;
        let most = self.encoding.per_byte() * event.raw.len() + added + overhead;
        if most > room {
            return Progress::NoRoom(most);
        }
        let index = self.part(&event);
        let part = &mut self.encoded.parts[index];
        let start = part.text.len();
        let written = self.encoder.line(self.tag, &event, &mut part.text);
        let bytes = part.text.len() - start;
        debug_assert!(bytes + overhead <= most, "{bytes} of {most}");
        match written {
            Ok(()) if bytes > longest => {
                let detail =
                    format!("a record of {bytes} bytes; the destination takes at most {longest}");
                let line = part.text.split_off(start);
                if bytes > MAX_LETTER_GROWTH * event.raw.len() {
                    return self.raw_letter(Reason::TooLarge, detail, event.raw);
                }
                self.letter(Reason::TooLarge, detail, line[..bytes - 1].to_vec())
            }
            Ok(()) => {
                if part.ends.is_empty() {
                    part.first = event.time;
                }
                part.ends.push(part.text.len());
                part.events.push(number);
                self.encoded.events += 1;
                self.take(bytes + self.encoding.line_bytes);
                Progress::Consumed
            }
            Err(Skip::NoLogKey) => {
                self.encoded.skipped.push(number);
                self.encoded.events += 1;
                Progress::Consumed
            }
            Err(reason @ (Skip::TooDeep | Skip::Malformed)) => {
                debug_assert_eq!(reason, Skip::TooDeep, "a decoded event is whole");
                let detail = format!("nested deeper than {MAX_DEPTH} levels");
                self.raw_letter(Reason::TooDeep, detail, event.raw)
            }
        }
    }

    /// Returns the index of the part that an event belongs to.
    fn part(&mut self, event: &Event<'_>) -> usize {
        let parts = &mut self.encoded.parts;
        let (known, rest) = (parts.len(), self.events.left());
        // An estimate: JSON is about a quarter longer than msgpack, plus the added fields.
        let text = rest + rest / 4 + rest / TYPICAL_EVENT * self.added.most;
        let text = text.min(self.encoding.step_bytes);
        let index = self.sorter.part(&self.tag_text, event, text, parts);
        if parts.len() > known {
            let name = parts[index].name.len();
            self.take(self.encoding.name_bytes + name);
        }
        index
    }

    /// Adds a letter for the current event.
    fn letter(&mut self, reason: Reason, detail: String, record: Vec<u8>) -> Progress {
        let bytes = LETTER_BYTES + record.len();
        if bytes > self.room() {
            return Progress::NoRoom(bytes);
        }
        self.take(bytes);
        let letter = Letter {
            tag: Arc::clone(self.tag),
            reason,
            detail,
            target: None,
            request_id: None,
            record: record.into(),
        };
        self.encoded.letter(self.encoded.events, letter);
        self.encoded.events += 1;
        Progress::Consumed
    }

    /// Adds a letter with the raw event. The first one of a group also contains the group's marker, so that everything
    /// the lines would have contained is kept, but only once.
    fn raw_letter(&mut self, reason: Reason, mut detail: String, raw: &[u8]) -> Progress {
        detail.push_str("; the event is kept as msgpack");
        let mut record = Vec::new();
        let group = match self.encoding.options.metadata_key {
            Some(_) => self.events.group().map(|(marker, _)| marker),
            None => None,
        };
        if let Some(marker) = group {
            if self.kept_group == group {
                detail.push_str(", its group's marker in an earlier letter of the chunk");
            } else {
                detail.push_str(" after its group's marker");
                record.extend_from_slice(self.events.group_marker(marker));
            }
        }
        record.extend_from_slice(raw);
        let progress = self.letter(reason, detail, record);
        if let Progress::Consumed = progress {
            self.kept_group = group;
        }
        progress
    }

    /// Ends the step at a position, or at the chunk's end.
    fn end(mut self, next: Option<msgpack::Place>) -> Encoded {
        self.encoded.parts.retain(|part| !part.ends.is_empty());
        self.encoded.next = next.map(|at| Place {
            at,
            event: self.encoded.events,
        });
        self.encoded
    }
}

/// The size of the fields that are added to an event: the time, the tag, the group's resource.
struct AddedFields<'s, 'o> {
    encoding: &'s Encoding<'o>,
    /// The most bytes of all fields but the group's.
    fixed: usize,
    /// The number of bytes of the tag.
    tag: usize,
    /// The fewest bytes for the current event.
    least: usize,
    /// The most bytes for the current event.
    most: usize,
    /// The offset of the last measured group's marker, and the length of an empty record's line in that group.
    measured: Option<(usize, usize)>,
}

impl<'s, 'o> AddedFields<'s, 'o> {
    fn new(encoding: &'s Encoding<'o>, tag: &[u8]) -> Self {
        let options = encoding.options;
        let (mut fixed, mut tag_bytes) = (0, 0);
        if let Some(rows) = encoding.rows {
            fixed += rows.row_bytes(tag);
        }
        // With `log_key` only that value is sent, and nothing added.
        if options.log_key.is_none() {
            if let Some((key, format)) = &options.time {
                fixed += json_len(key.as_bytes()) + PUNCTUATION_BYTES + TIME_BYTES;
                if let TimeFormat::Strftime(format) = format {
                    // The length for a Thursday in January; no other day, month or number is four times as long.
                    let mut text = String::new();
                    format.write(Time::default(), &mut text);
                    fixed += 4 * json_len(text.as_bytes());
                }
            }
            if let Some(key) = &options.tag_key {
                tag_bytes = json_len(tag);
                fixed += json_len(key.as_bytes()) + PUNCTUATION_BYTES + tag_bytes;
            }
            if let Some(key) = &options.metadata_key {
                fixed += json_len(key.as_bytes()) + 2 * PUNCTUATION_BYTES;
            }
        }
        AddedFields {
            encoding,
            fixed,
            tag: tag_bytes,
            least: tag_bytes,
            most: fixed,
            measured: None,
        }
    }

    /// Returns the most bytes that are added to the current or the next event. Measuring them may need as much memory as
    /// `room`.
    fn max_bytes(
        &mut self,
        tag: &[u8],
        encoder: &mut AnyEncoder<'_>,
        events: &Events<'_>,
        room: usize,
    ) -> Result<usize, NeedsMore> {
        let options = self.encoding.options;
        let group = match (&options.metadata_key, &options.log_key) {
            (Some(_), None) => events.group(),
            _ => None,
        };
        (self.least, self.most) = (self.tag, self.fixed);
        let Some((marker, group)) = group else {
            return Ok(self.most);
        };
        let bytes = group.body.len() + group.metadata.len();
        let most = self.encoding.per_byte() * bytes + self.fixed;
        if most <= UNMEASURED_BYTES {
            self.most = most;
            return Ok(most);
        }
        if self.measured.is_none_or(|(at, _)| at != marker) {
            if most > room {
                return Err(NeedsMore(most));
            }
            let event = Event {
                time: Time::default(),
                metadata: &[],
                body: b"\x80",
                group: Some(group),
                raw: &[],
            };
            let mut line = Vec::with_capacity(bytes + self.fixed);
            // An error here recurs when the event is encoded.
            let _ = encoder.line(tag, &event, &mut line);
            self.measured = Some((marker, line.len()));
        }
        if let Some((_, empty)) = self.measured {
            (self.least, self.most) = (empty, empty + self.fixed);
        }
        Ok(self.most)
    }
}

/// Returns the length of a text as a JSON string.
fn json_len(text: &[u8]) -> usize {
    let mut json = Vec::new();
    string(text, &mut json);
    json.len()
}

/// Returns an event with a head's fields and no body: enough for a name that is constant within a second.
fn event_of_head<'a>(head: &Head<'a>) -> Event<'a> {
    Event {
        time: head.time,
        metadata: head.metadata,
        body: &[],
        group: head.group,
        raw: &[],
    }
}

/// Assigns events to parts, and avoids rendering their names where it can.
struct Sorter<'t> {
    names: &'t Template,
    targets: Option<&'t Template>,
    constant_within_a_second: bool,
    last: Option<(i64, usize)>,
    known: HashMap<String, usize>,
}

impl<'t> Sorter<'t> {
    fn new(names: &'t Template, targets: Option<&'t Template>) -> Self {
        Sorter {
            names,
            targets,
            constant_within_a_second: names.constant_within_a_second(),
            last: None,
            known: HashMap::new(),
        }
    }

    /// Returns the index of an event's part. The first part is created with a capacity of `text` bytes, since it is
    /// likely the only one.
    fn part(&mut self, tag: &str, event: &Event<'_>, text: usize, parts: &mut Vec<Part>) -> usize {
        let second = event.time.seconds;
        if let (true, Some((last, index))) = (self.constant_within_a_second, self.last)
            && last == second
        {
            return index;
        }
        let mut name = String::new();
        self.names.render(tag, event, &mut name);
        let targets = self.targets;
        let index = *self.known.entry(name).or_insert_with_key(|name| {
            let target = |names: &Template| {
                let mut target = String::new();
                names.render(tag, event, &mut target);
                target
            };
            let capacity = if parts.is_empty() { text } else { 0 };
            parts.push(Part {
                name: name.clone(),
                target: targets.map(target),
                first: event.time,
                text: buffers::take(capacity),
                ends: Vec::new(),
                events: Vec::new(),
            });
            parts.len() - 1
        });
        self.last = Some((second, index));
        index
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn chunk(bodies: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (second, body) in bodies {
            bytes.extend_from_slice(b"\x92\x92\xd7\x00");
            bytes.extend_from_slice(&second.to_be_bytes());
            bytes.extend_from_slice(b"\0\0\0\0\x80");
            bytes.extend_from_slice(body);
        }
        bytes
    }

    /// Encodes a chunk that is one step.
    fn step(template: &str, data: &[u8], wanted: fn(u32) -> bool) -> Encoded {
        let names = Template::parse(template, true).unwrap();
        let encoded = encode(&Options::default(), &names, b"t", data, wanted);
        assert_eq!(encoded.next, None);
        encoded
    }

    fn sorted(template: &str, data: &[u8]) -> Vec<(String, i64, String)> {
        step(template, data, |_| true)
            .parts
            .into_iter()
            .map(|part| {
                (
                    part.name,
                    part.first.seconds,
                    String::from_utf8(part.text).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn events_are_sorted_by_their_own_time_and_keys() {
        let data = chunk(&[
            (3_599, b"\x81\xa1k\xa1a"),
            (3_600, b"\x81\xa1k\xa1b"),
            (3_599, b"\x81\xa1k\xa1c"),
            (3_600, b"\x81\xa1k\xa1a"),
        ]);
        assert_eq!(
            sorted("%H", &data),
            [
                (
                    "00".into(),
                    3_599,
                    "{\"k\":\"a\"}\n{\"k\":\"c\"}\n".to_owned()
                ),
                (
                    "01".into(),
                    3_600,
                    "{\"k\":\"b\"}\n{\"k\":\"a\"}\n".to_owned()
                ),
            ]
        );
        assert_eq!(
            sorted("{record.k}", &data)
                .iter()
                .map(|(name, ..)| name.as_str())
                .collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
    }

    #[test]
    fn events_that_cannot_be_encoded_become_letters_without_an_empty_part() {
        let mut deep = b"\x81\xa1k".to_vec();
        deep.extend([0x91; 10_000]);
        deep.push(0xc0);
        let mut data = chunk(&[(1, &deep)]);
        data.extend_from_slice(b"\xc1\xc1");
        let encoded = step("{record.k}", &data, |_| true);
        assert!(encoded.parts.is_empty());
        let reasons: Vec<&str> = encoded
            .letters
            .iter()
            .map(|letter| letter.reason.as_str())
            .collect();
        assert_eq!(reasons, ["too_deep", "malformed"]);
        assert_eq!(encoded.letters[0].record.len(), data.len() - 2);
        assert_eq!(encoded.letters[1].record, b"\xc1\xc1".to_vec().into());
    }

    #[test]
    fn lines_among_letters_keep_their_numbers_and_a_part_the_time_of_its_first_line() {
        let good = b"\x81\xa1k\xa1a";
        let deep = [b"\x81\xa1k".as_slice(), &[0x91; 200], &[0xc0]].concat();
        let data = chunk(&[
            (4, &deep),
            (5, good),
            (5, &deep),
            (5, &deep),
            (5, good),
            (7, good),
        ]);
        let encoded = step("x", &data, |_| true);
        let [part] = &encoded.parts[..] else {
            panic!("{:?}", encoded.parts);
        };
        assert_eq!(part.first.seconds, 5);
        assert_eq!(part.events, [1, 4, 5]);
        assert_eq!(part.ends, [10, 20, 30]);
        assert_eq!(encoded.lettered, [0, 2, 3]);
        assert_eq!(encoded.events, 6);
    }

    #[test]
    fn events_that_are_not_wanted_are_skipped_by_their_ordinal() {
        let data = chunk(&[
            (1, b"\x81\xa1k\xa1a"),
            (1, b"\x81\xa1k\xa1b"),
            (1, b"\x81\xa1k\xa1c"),
        ]);
        let encoded = step("x", &data, |event| event != 1);
        assert_eq!(encoded.parts[0].text, b"{\"k\":\"a\"}\n{\"k\":\"c\"}\n");
        assert_eq!(encoded.parts[0].events, [0, 2]);
        assert_eq!(encoded.events, 3);
    }

    /// Encodes a chunk step by step, with the memory that each requires, as delivery does.
    fn steps(encoding: &Encoding<'_>, tag: &Arc<[u8]>, data: &[u8]) -> Vec<Encoded> {
        let mut steps = Vec::new();
        let mut next = Some(Place::default());
        while let Some(from) = next {
            let mut memory = encoding.most(tag, data, from);
            let encoded = loop {
                match encoding.step(tag, data, from, memory, |_| true) {
                    Ok(encoded) => break encoded,
                    Err(NeedsMore(more)) => {
                        assert!(more > memory.max(encoding.step_bytes), "{more} of {memory}");
                        memory = more;
                    }
                }
            };
            let held = held(encoding, &encoded);
            assert!(held <= memory, "{held} of {memory}");
            next = encoded.next;
            steps.push(encoded);
        }
        steps
    }

    /// Returns the memory of a step's lines and letters, in bytes.
    fn held(encoding: &Encoding<'_>, encoded: &Encoded) -> usize {
        let part = |part: &Part| part.text.len() + part.ends.len() * encoding.line_bytes;
        let parts: usize = encoded.parts.iter().map(part).sum();
        let letters = encoded.letters.iter().map(|letter| letter.record.len());
        parts + letters.sum::<usize>()
    }

    /// Returns the lines of all steps by name, their events, and those of the letters.
    fn gathered(steps: Vec<Encoded>) -> (BTreeMap<String, Vec<u8>>, Vec<u32>, Vec<u32>) {
        let mut lines: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let (mut events, mut lettered) = (Vec::new(), Vec::new());
        for step in steps {
            for part in step.parts {
                lines.entry(part.name).or_default().extend(part.text);
                events.extend(part.events);
            }
            lettered.extend(step.lettered);
        }
        events.sort_unstable();
        (lines, events, lettered)
    }

    /// Keys and values of a few bytes that JSON expands, and some that it does not.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let text = |byte: u8, len: usize| {
            let mut value = Vec::new();
            rmp::encode::write_str_len(&mut value, len as u32).unwrap();
            value.extend(std::iter::repeat_n(byte, len));
            value
        };
        prop_oneof![
            Just(b"\xc0".to_vec()),
            Just(b"\xc2".to_vec()),
            Just(b"\x7f".to_vec()),
            Just(b"\xe0".to_vec()),
            Just(b"\x90".to_vec()),
            Just(b"\x80".to_vec()),
            Just(b"\xd4\x05\xff".to_vec()),
            Just(b"\xca\x80\x80\0\0".to_vec()),
            Just(b"\xd0\x80".to_vec()),
            (
                prop_oneof![Just(1u8), Just(b'.'), Just(b'x'), Just(0xff), Just(b'"')],
                0usize..300
            )
                .prop_map(move |(byte, len)| text(byte, len)),
        ]
    }

    pub(super) fn any_event() -> impl Strategy<Value = Vec<u8>> {
        let body = proptest::collection::vec((value(), value()), 0..4);
        (0u32..3, body, 0u8..20).prop_map(|(second, pairs, kind)| {
            let mut event = match kind {
                // A group's start and end, the older form, malformed bytes, and an ordinary event.
                0 => b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80".to_vec(),
                1 => b"\x92\x92\xd7\x00\xff\xff\xff\xfe\0\0\0\0\x80".to_vec(),
                2 => vec![0x92, second as u8],
                3 => return b"\xc1".to_vec(),
                _ => [
                    b"\x92\x92\xd7\x00\0\0\0",
                    &[second as u8][..],
                    b"\0\0\0\0\x80",
                ]
                .concat(),
            };
            event.push(0x80 | pairs.len() as u8);
            event.extend(
                pairs
                    .into_iter()
                    .flat_map(|(key, value)| [key, value].concat()),
            );
            event
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 400 }))]

        /// For any chunk, steps stay within their memory and together yield the whole chunk.
        #[test]
        fn steps_are_bounded_and_make_up_the_chunk(
            events in proptest::collection::vec(any_event(), 0..40),
            tag_len in prop_oneof![Just(3usize), Just(2_000)],
            options in 0u8..16,
            template in prop_oneof![Just("x"), Just("%S"), Just("{record.x}")],
            longest in prop_oneof![Just(usize::MAX), Just(1_500), Just(200)],
            step_bytes in 1_000usize..20_000,
        ) {
            let on = |bit: u8, key: &str| (options & bit != 0).then(|| key.to_owned());
            let options = Options {
                time: on(1, "t").map(|key| (key, TimeFormat::Iso8601)),
                tag_key: on(2, "\u{1}tag"),
                metadata_key: on(4, "meta"),
                replace_dots: on(8, "\u{1}\u{1}"),
                ..Options::default()
            };
            let names = Template::parse(template, true).unwrap();
            let tag: Arc<[u8]> = vec![b'\n'; tag_len].into();
            let data = events.concat();
            let whole = Encoding { longest_line: longest, ..Encoding::new(&options, &names) };
            let encoding = Encoding { step_bytes, line_bytes: 40, name_bytes: 100, ..whole };
            let parts = steps(&encoding, &tag, &data);
            for part in parts.iter().flat_map(|step| &step.parts) {
                let starts = std::iter::once(0).chain(part.ends.iter().copied());
                let lines = starts.zip(&part.ends).map(|(start, end)| end - start);
                prop_assert!(lines.max() <= Some(longest));
            }
            let again = steps(&encoding, &tag, &data);
            let nexts = |steps: &[Encoded]| steps.iter().map(|step| step.next).collect::<Vec<_>>();
            prop_assert_eq!(nexts(&parts), nexts(&again));
            let (lines, events, lettered) = gathered(parts);
            let (all_lines, all_events, all_lettered) = gathered(steps(&whole, &tag, &data));
            prop_assert_eq!(lettered, all_lettered);
            prop_assert_eq!(events, all_events);
            prop_assert!(lines == all_lines);
        }
    }

    #[test]
    fn a_line_that_exceeds_a_record_is_kept_raw_and_its_group_once() {
        let mut data = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80\x81\xa1r".to_vec();
        rmp::encode::write_str(&mut data, &"y".repeat(20_000)).unwrap();
        let group = data.len();
        let events = chunk(&[(1, b"\x81\xa1k\xa1a"), (1, b"\x81\xa1k\xa1b")]);
        let event = events.len() / 2;
        data.extend_from_slice(&events);
        let options = Options {
            metadata_key: Some("m".into()),
            ..Options::default()
        };
        let names = Template::parse("x", true).unwrap();
        for longest_line in [10_000, 20_010, 20_020] {
            let encoding = Encoding {
                longest_line,
                ..Encoding::new(&options, &names)
            };
            let tag = b"t"[..].into();
            let mut steps = encoding.steps(&tag, &data, |_| true);
            let encoded = steps.next().unwrap();
            assert!(encoded.parts.is_empty());
            assert_eq!(encoded.lettered, [0, 1]);
            let records: Vec<_> = encoded
                .letters
                .iter()
                .map(|letter| letter.record.to_bytes())
                .collect();
            assert_eq!(records[0], data[..group + event]);
            assert_eq!(records[1], data[group + event..]);
            assert!(
                encoded.letters[0]
                    .detail
                    .ends_with("after its group's marker")
            );
            assert!(
                encoded.letters[1]
                    .detail
                    .ends_with("its group's marker in an earlier letter of the chunk")
            );
        }
    }

    #[test]
    fn an_empty_chunk_has_neither_lines_nor_letters() {
        let encoded = step("x", b"", |_| true);
        assert!(encoded.parts.is_empty() && encoded.letters.is_empty());
    }
}
