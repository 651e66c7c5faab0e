//! One chunk's events become lines, sorted by where they go. Pure.
//!
//! A chunk is encoded in *steps*. What is added to each event (the tag, a group's resource) and what JSON makes of
//! it may be thousands of times the chunk's bytes, and each name becomes an object. So nothing is written before
//! it is known how much it can be, at most, and a step ends where the next event might go beyond its bound.
//! Where steps end depends on the chunk and the configuration alone: in direct mode that decides what is in an
//! object, which its name identifies.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::buffers;
use crate::ids::{EventSet, Time};
use crate::metrics::Reason;
use json::{Encoder, MAX_DEPTH, Options, Skip, string};
use msgpack::{Event, Events, Head, Item};
use rejected::Letter;
use template::Template;
use time::TimeFormat;

pub mod json;
pub mod msgpack;
pub mod rejected;
pub mod template;
pub mod time;

/// What a step may hold. An ordinary chunk, of some 2 MB, is one step.
pub const STEP_BYTES: usize = 8 * 1024 * 1024;
/// Where less than this part of a step is left, it ends: what remains would be taken in ever smaller portions.
const CRUMB_SHARE: usize = 16;
/// What a letter takes beside its record, about.
const LETTER_BYTES: usize = 512;
/// Bytes of an event that [`Events::head`] hands out, at least: all before its body, and an empty body.
const LEAST_HEADED: usize = 14;
/// Bytes of an event in any form, at least: an array of a number and an empty map.
const LEAST_EVENT: usize = 3;
/// Bytes of an event, about.
const ORDINARY_EVENT: usize = 200;
/// JSON's bytes for one of msgpack's, at most: of a control character six, of a pair of truth values seven.
const MOST_PER_BYTE: usize = 7;
/// What a group adds is measured where it might be more than this.
const UNMEASURED_BYTES: usize = 16 * 1024;
/// The time in a line, in whatever form but the user's own.
const TIME_BYTES: usize = 48;
/// What stands around what is added: a comma, quotes, a colon, brackets, the name of the group.
const MARKS_BYTES: usize = 16;
/// The letter of a line that is too long has the line, as a reader would have seen it, unless that is more than so
/// many times the event's own bytes.
const WORTH_READING: usize = 4;

/// A chunk's lines for one name.
#[derive(Debug)]
pub struct Part {
    /// The delivery stream, or the object's folder.
    pub name: String,
    /// What its destination is known by where names change with time ([`Encoding::targets`]).
    pub target: Option<String>,
    /// When the first of its events happened.
    pub first: Time,
    /// The lines.
    pub text: Vec<u8>,
    /// Where in `text` each line ends, its newline included.
    pub ends: Vec<usize>,
    /// Each line's event, by its number in the chunk.
    pub events: Vec<u32>,
}

/// A place between two events of a chunk, where a step begins. The default is the chunk's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    at: msgpack::Place,
    /// The number of the next event.
    event: u32,
}

/// What became of the events of a step.
#[derive(Debug, Default)]
pub struct Encoded {
    /// In the order of their first events.
    pub parts: Vec<Part>,
    /// What could not be read, or not be written.
    pub letters: Vec<Letter>,
    /// The event that each letter is of, by its number in the chunk.
    pub lettered: Vec<u32>,
    /// Events without the `log_key`, by their numbers in the chunk.
    pub skipped: Vec<u32>,
    /// How many events the chunk has up to the step's end, those passed over among them.
    pub events: u32,
    /// Where the next step begins; `None` at the chunk's end.
    pub next: Option<Place>,
}

impl Encoded {
    /// What tells the objects of a step that began at `from` from those of the chunk's other steps: the numbers of its
    /// events. Empty where the chunk is one step. Of a chunk that comes again after an upgrade, steps may end
    /// elsewhere; an object of the same name would then pass for what is not in it.
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

    /// Drops the letters of these events.
    pub fn drop_letters(&mut self, of: &EventSet) {
        let mut events = self.lettered.iter();
        self.letters
            .retain(|_| !events.next().is_some_and(|event| of.contains(*event)));
        self.lettered.retain(|event| !of.contains(*event));
    }
}

/// The next event may need up to this many bytes, which is more than there are. Nothing was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsMore(pub usize);

/// Encodes a chunk that is one step, or the first step of a longer one, for somebody who takes lines of any length.
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

/// How chunks are encoded.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'o> {
    /// What a line looks like.
    pub options: &'o Options,
    /// Where each event goes.
    pub names: &'o Template,
    /// Names each event's target, where that is something else.
    pub targets: Option<&'o Template>,
    /// Bytes of the longest line that any target takes, its newline included. A longer one becomes a letter.
    pub longest_line: usize,
    /// Bytes of memory that a line is taken to need beside its text.
    pub line_bytes: usize,
    /// The same for a name.
    pub name_bytes: usize,
    /// Bytes of memory that a step may need: [`STEP_BYTES`], where it is no test that wants to see steps.
    pub step_bytes: usize,
}

impl<'o> Encoding<'o> {
    /// For somebody who takes lines of any length, and needs nothing beside them.
    pub fn new(options: &'o Options, names: &'o Template) -> Self {
        Encoding {
            options,
            names,
            targets: None,
            longest_line: usize::MAX,
            line_bytes: 0,
            name_bytes: 0,
            step_bytes: STEP_BYTES,
        }
    }

    /// Encodes a chunk from a place on, until the step is full, or the chunk ends. Events that are not `wanted`, by
    /// their number, are passed over. There are `memory` bytes for it: [`Encoding::most`], or what was asked for.
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
            encoder: Encoder::new(self.options),
            added: Added::new(self, tag),
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
            if step.begun() && step.left < self.step_bytes / CRUMB_SHARE {
                let next = Some(step.events.place()).filter(|_| step.events.left() > 0);
                return Ok(step.end(next));
            }
            // Most events are written while they are decoded, all of a second to the same part. What that
            // stumbles over is decoded first.
            if step.sorter.steady && wanted(step.encoded.events) && step.lines(&wanted) {
                continue;
            }
            let here = step.events.place();
            match step.event(&wanted) {
                Taken::Event => {}
                Taken::End => return Ok(step.end(None)),
                Taken::NoRoom(_) if step.begun() => return Ok(step.end(Some(here))),
                Taken::NoRoom(bytes) => return Err(NeedsMore(bytes)),
            }
        }
    }

    /// Bytes of memory that the step from a place on needs, at most, unless it asks for more.
    pub fn most(&self, tag: &[u8], data: &[u8], from: Place) -> usize {
        let left = data.len() - from.at.offset();
        if self.options.metadata_key.is_some() {
            // A group may add any part of the chunk to each of its events.
            return self.step_bytes;
        }
        let each = Added::new(self, tag).fixed + self.line_bytes + self.name_bytes;
        let events = left / LEAST_EVENT + 1;
        let most =
            (self.per_byte() * left).saturating_add(events.saturating_mul(each.max(LETTER_BYTES)));
        most.min(self.step_bytes)
    }

    /// All steps of a chunk, however much memory they need.
    pub fn steps<'c>(
        &'c self,
        tag: &'c Arc<[u8]>,
        data: &'c [u8],
        wanted: impl Fn(u32) -> bool + 'c,
    ) -> impl Iterator<Item = Encoded> + 'c {
        let mut next = Some(Place::default());
        std::iter::from_fn(move || {
            let step = self.step(tag, data, next?, usize::MAX, &wanted);
            let encoded = step.expect("there is as much memory as it may ask for");
            next = encoded.next;
            Some(encoded)
        })
    }

    /// Bytes that one of an event's becomes, at most.
    fn per_byte(&self) -> usize {
        let dot = self.options.replace_dots.as_ref();
        dot.map_or(0, |dot| escaped(dot.as_bytes()))
            .max(MOST_PER_BYTE)
    }
}

/// What came of trying to take the next event.
enum Taken {
    /// It is taken: as a line, as a letter, or passed over.
    Event,
    /// There is none.
    End,
    /// It is not, since it might need so many bytes.
    NoRoom(usize),
}

/// A step that is being encoded.
struct Step<'s, 'o, 'd> {
    encoding: &'s Encoding<'o>,
    encoder: Encoder<'o>,
    added: Added<'s, 'o>,
    tag: &'d Arc<[u8]>,
    tag_text: Cow<'d, str>,
    sorter: Sorter<'o>,
    events: Events<'d>,
    encoded: Encoded,
    /// The number of its first event.
    first: u32,
    /// Bytes that it may still hold.
    left: usize,
    /// Bytes that its first event may need, where that is more.
    memory: usize,
    /// The last letter with a group's mark has that of the group whose mark stands here.
    kept_group: Option<usize>,
}

impl Step<'_, '_, '_> {
    /// Whether an event is taken.
    fn begun(&self) -> bool {
        self.encoded.events > self.first
    }

    /// Bytes that the next event may need.
    fn room(&self) -> usize {
        match self.begun() {
            true => self.left,
            false => self.memory.max(self.encoding.step_bytes),
        }
    }

    fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Writes events while they are decoded, for as long as whatever is in them fits. Whether any was written, and
    /// the next may be.
    fn lines(&mut self, wanted: impl Fn(u32) -> bool) -> bool {
        let room = self.room();
        let Ok(added) = self
            .added
            .most(self.tag, &mut self.encoder, &self.events, room)
        else {
            return false;
        };
        self.events.look_ahead(self.safe(added));
        let Some(head) = self.events.head() else {
            return false;
        };
        let index = self.part(&of(&head));
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

    /// So many bytes of the chunk fit as lines, whatever is in them, and none of these lines is too long.
    fn safe(&self, added: usize) -> usize {
        let per_byte = self.encoding.per_byte();
        let all = self.left.saturating_sub(self.encoding.name_bytes);
        let each = added + self.encoding.line_bytes;
        let all = all / (per_byte + each.div_ceil(LEAST_HEADED));
        let one = self.encoding.longest_line.saturating_sub(added) / per_byte;
        all.min(one)
    }

    /// Takes an event that is decoded as a whole.
    fn event(&mut self, wanted: impl Fn(u32) -> bool) -> Taken {
        let number = self.encoded.events;
        let Some(item) = self.events.next() else {
            return Taken::End;
        };
        if !wanted(number) {
            self.encoded.events += 1;
            return Taken::Event;
        }
        let event = match item {
            Item::Event(event) => event,
            Item::Malformed {
                bytes,
                offset,
                reason,
            } => {
                let len = bytes.len();
                let what = format!("{len} bytes at offset {offset} of a chunk: {reason}");
                return self.letter(Reason::Malformed, what, bytes.to_vec());
            }
        };
        let room = self.room();
        let added = match self
            .added
            .most(self.tag, &mut self.encoder, &self.events, room)
        {
            Ok(added) => added,
            Err(NeedsMore(bytes)) => return Taken::NoRoom(bytes),
        };
        let (longest, least) = (self.encoding.longest_line, self.added.least);
        if least > longest {
            let what = format!(
                "a record of more than {least} bytes; the destination takes at most {longest}"
            );
            return self.raw_letter(Reason::TooLarge, what, event.raw);
        }
        let beside = self.encoding.line_bytes + self.encoding.name_bytes;
        let most = self.encoding.per_byte() * event.raw.len() + added + beside;
        if most > room {
            return Taken::NoRoom(most);
        }
        let index = self.part(&event);
        let part = &mut self.encoded.parts[index];
        let start = part.text.len();
        let written = self.encoder.line(self.tag, &event, &mut part.text);
        let bytes = part.text.len() - start;
        debug_assert!(bytes + beside <= most, "{bytes} of {most}");
        match written {
            Ok(()) if bytes > longest => {
                let what =
                    format!("a record of {bytes} bytes; the destination takes at most {longest}");
                let line = part.text.split_off(start);
                if bytes > WORTH_READING * event.raw.len() {
                    return self.raw_letter(Reason::TooLarge, what, event.raw);
                }
                self.letter(Reason::TooLarge, what, line[..bytes - 1].to_vec())
            }
            Ok(()) => {
                if part.ends.is_empty() {
                    part.first = event.time;
                }
                part.ends.push(part.text.len());
                part.events.push(number);
                self.encoded.events += 1;
                self.take(bytes + self.encoding.line_bytes);
                Taken::Event
            }
            Err(Skip::NoLogKey) => {
                self.encoded.skipped.push(number);
                self.encoded.events += 1;
                Taken::Event
            }
            Err(reason @ (Skip::TooDeep | Skip::Malformed)) => {
                debug_assert_eq!(reason, Skip::TooDeep, "a decoded event is whole");
                let what = format!("nested deeper than {MAX_DEPTH} levels");
                self.raw_letter(Reason::TooDeep, what, event.raw)
            }
        }
    }

    /// The part that an event belongs to, by its place among them.
    fn part(&mut self, event: &Event<'_>) -> usize {
        let parts = &mut self.encoded.parts;
        let (known, rest) = (parts.len(), self.events.left());
        // JSON is about as long as its msgpack, and what is added to it.
        let text = rest + rest / 4 + rest / ORDINARY_EVENT * self.added.last;
        let text = text.min(self.encoding.step_bytes);
        let index = self.sorter.part(&self.tag_text, event, text, parts);
        if parts.len() > known {
            let name = parts[index].name.len();
            self.take(self.encoding.name_bytes + name);
        }
        index
    }

    /// Makes the event that was read last a letter.
    fn letter(&mut self, reason: Reason, detail: String, record: Vec<u8>) -> Taken {
        let bytes = LETTER_BYTES + record.len();
        if bytes > self.room() {
            return Taken::NoRoom(bytes);
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
        Taken::Event
    }

    /// The same with the event as it came. Of those in a group the first has the group's mark before it: all that
    /// would have stood in the line is kept, but once.
    fn raw_letter(&mut self, reason: Reason, mut detail: String, raw: &[u8]) -> Taken {
        detail.push_str("; the event is kept as msgpack");
        let mut record = Vec::new();
        let group = match self.encoding.options.metadata_key {
            Some(_) => self.events.group().map(|(mark, _)| mark),
            None => None,
        };
        if let Some(mark) = group {
            if self.kept_group == group {
                detail.push_str(", its group in an earlier letter of its chunk");
            } else {
                detail.push_str(" behind its group's mark");
                record.extend_from_slice(self.events.mark(mark));
            }
        }
        record.extend_from_slice(raw);
        let taken = self.letter(reason, detail, record);
        if let Taken::Event = taken {
            self.kept_group = group;
        }
        taken
    }

    /// Ends the step: before the event at a place, or at the chunk's end.
    fn end(mut self, next: Option<msgpack::Place>) -> Encoded {
        self.encoded.parts.retain(|part| !part.ends.is_empty());
        self.encoded.next = next.map(|at| Place {
            at,
            event: self.encoded.events,
        });
        self.encoded
    }
}

/// What is added to each event: the time, the tag, the group's resource.
struct Added<'s, 'o> {
    encoding: &'s Encoding<'o>,
    /// Bytes of it that are no group's, at most.
    fixed: usize,
    /// Bytes of the tag.
    tag: usize,
    /// Bytes that are added to the event asked for last, at least.
    least: usize,
    /// The same, at most.
    last: usize,
    /// Of the group whose mark stands here: the length of an empty record's line.
    measured: Option<(usize, usize)>,
}

impl<'s, 'o> Added<'s, 'o> {
    fn new(encoding: &'s Encoding<'o>, tag: &[u8]) -> Self {
        let options = encoding.options;
        let (mut fixed, mut tag_bytes) = (0, 0);
        // Where only a value is sent, nothing is added to it.
        if options.log_key.is_none() {
            if let Some((key, format)) = &options.time {
                fixed += escaped(key.as_bytes()) + MARKS_BYTES + TIME_BYTES;
                if let TimeFormat::Strftime(format) = format {
                    // Of a Thursday in January: no other day, month or number has four times its letters.
                    let mut text = String::new();
                    format.write(Time::default(), &mut text);
                    fixed += 4 * escaped(text.as_bytes());
                }
            }
            if let Some(key) = &options.tag_key {
                tag_bytes = escaped(tag);
                fixed += escaped(key.as_bytes()) + MARKS_BYTES + tag_bytes;
            }
            if let Some(key) = &options.metadata_key {
                fixed += escaped(key.as_bytes()) + 2 * MARKS_BYTES;
            }
        }
        Added {
            encoding,
            fixed,
            tag: tag_bytes,
            least: tag_bytes,
            last: fixed,
            measured: None,
        }
    }

    /// Bytes that are added to the event that stands next, or was read last, at most. To find that out may take as many.
    fn most(
        &mut self,
        tag: &[u8],
        encoder: &mut Encoder<'_>,
        events: &Events<'_>,
        room: usize,
    ) -> Result<usize, NeedsMore> {
        let options = self.encoding.options;
        let group = match (&options.metadata_key, &options.log_key) {
            (Some(_), None) => events.group(),
            _ => None,
        };
        (self.least, self.last) = (self.tag, self.fixed);
        let Some((mark, group)) = group else {
            return Ok(self.last);
        };
        let bytes = group.body.len() + group.metadata.len();
        let most = self.encoding.per_byte() * bytes + self.fixed;
        if most <= UNMEASURED_BYTES {
            self.last = most;
            return Ok(most);
        }
        if self.measured.is_none_or(|(at, _)| at != mark) {
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
            // What cannot be written is found out again with the event.
            let _ = encoder.line(tag, &event, &mut line);
            self.measured = Some((mark, line.len()));
        }
        if let Some((_, empty)) = self.measured {
            (self.least, self.last) = (empty, empty + self.fixed);
        }
        Ok(self.last)
    }
}

/// Bytes of a text as it stands in JSON.
fn escaped(text: &[u8]) -> usize {
    let mut json = Vec::new();
    string(text, &mut json);
    json.len()
}

/// An event as far as its head tells: enough for a name that is the same within a second.
fn of<'a>(head: &Head<'a>) -> Event<'a> {
    Event {
        time: head.time,
        metadata: head.metadata,
        body: &[],
        group: head.group,
        raw: &[],
    }
}

/// Finds the part an event belongs to, with as little rendering of names as possible.
struct Sorter<'t> {
    names: &'t Template,
    targets: Option<&'t Template>,
    steady: bool,
    last: Option<(i64, usize)>,
    known: HashMap<String, usize>,
}

impl<'t> Sorter<'t> {
    fn new(names: &'t Template, targets: Option<&'t Template>) -> Self {
        Sorter {
            names,
            targets,
            steady: names.steady_within_a_second(),
            last: None,
            known: HashMap::new(),
        }
    }

    /// Which of the parts that is. The first has room for so much text: it is likely the only one.
    fn part(&mut self, tag: &str, event: &Event<'_>, text: usize, parts: &mut Vec<Part>) -> usize {
        let second = event.time.seconds;
        if let (true, Some((last, index))) = (self.steady, self.last)
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

    /// All of a chunk that is one step.
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
    fn what_cannot_be_a_line_becomes_a_letter_and_no_empty_part() {
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
    fn events_that_are_not_wanted_are_passed_over_by_their_number() {
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

    /// Each step by what it is asked for, as delivery does.
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

    /// Bytes that a step holds, but for the letters of one event that goes alone.
    fn held(encoding: &Encoding<'_>, encoded: &Encoded) -> usize {
        let part = |part: &Part| part.text.len() + part.ends.len() * encoding.line_bytes;
        let parts: usize = encoded.parts.iter().map(part).sum();
        let letters = encoded.letters.iter().map(|letter| letter.record.len());
        parts + letters.sum::<usize>()
    }

    /// The lines of all steps, by name, and the events of the letters.
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

    /// Keys and values of one byte, or a few, that become many; and some that do not.
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

    fn any_event() -> impl Strategy<Value = Vec<u8>> {
        let body = proptest::collection::vec((value(), value()), 0..4);
        (0u32..3, body, 0u8..20).prop_map(|(second, pairs, kind)| {
            let mut event = match kind {
                // A group begins, or ends, or there is none; the older form; what is no event.
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

        /// Whatever is in a chunk: steps hold no more than they may, and together they are the chunk.
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
    fn a_line_that_no_record_can_hold_is_kept_as_it_came_and_its_group_once() {
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
                    .ends_with("behind its group's mark")
            );
            assert!(
                encoded.letters[1]
                    .detail
                    .ends_with("in an earlier letter of its chunk")
            );
        }
    }

    #[test]
    fn an_empty_chunk_is_no_lines_and_no_trouble() {
        let encoded = step("x", b"", |_| true);
        assert!(encoded.parts.is_empty() && encoded.letters.is_empty());
    }
}
