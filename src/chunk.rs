//! One chunk's events become lines, sorted by where they go. Pure.

use std::cell::Cell;
use std::collections::HashMap;

use crate::buffers;
use crate::dead_letter::Letter;
use crate::decode::{Event, Events, Head, Item, Time};
use crate::encode::{Encoder, MAX_DEPTH, Options, Skip};
use crate::metrics::Reason;
use crate::settle::EventSet;
use crate::template::Template;

/// A chunk's lines for one name.
#[derive(Debug)]
pub struct Part {
    /// The delivery stream, or the object's folder.
    pub name: String,
    /// When the first of its events happened.
    pub first: Time,
    /// The lines.
    pub text: Vec<u8>,
    /// Where in `text` each line ends, its newline included.
    pub ends: Vec<usize>,
    /// Each line's event, by its number in the chunk.
    pub events: Vec<u32>,
}

/// What became of a chunk's events.
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
    /// How many events the chunk has, those passed over among them.
    pub events: u32,
}

impl Encoded {
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

/// Encodes a chunk; `names` says where each event goes. Events that are not `wanted`, by their number,
/// are passed over.
pub fn encode(
    options: &Options,
    names: &Template,
    tag: &[u8],
    data: &[u8],
    wanted: impl Fn(u32) -> bool,
) -> Encoded {
    let tag_text = String::from_utf8_lossy(tag);
    let mut encoder = Encoder::new(options);
    let mut encoded = Encoded::default();
    let mut sorter = Sorter::new(names);
    let mut events = Events::new(data);
    loop {
        // Most events are written while they are decoded, all of a second to the same part. What that
        // stumbles over is decoded first.
        if sorter.steady
            && wanted(encoded.events)
            && let Some(head) = events.head()
        {
            let part = sorter.part(&tag_text, &of(&head), data.len(), &mut encoded.parts);
            let next = Cell::new(encoded.events);
            let written = encoder.lines(
                tag,
                &mut events,
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
            encoded.events = next.get();
            if written.is_ok() {
                continue;
            }
        }
        let number = encoded.events;
        let Some(item) = events.next() else { break };
        encoded.events += 1;
        if !wanted(number) {
            continue;
        }
        let event = match item {
            Item::Event(event) => event,
            Item::Malformed {
                bytes,
                offset,
                reason,
            } => {
                encoded.letter(
                    number,
                    Letter {
                        tag: tag.to_vec(),
                        reason: Reason::Malformed,
                        detail: format!(
                            "{} bytes at offset {offset} of a chunk: {reason}",
                            bytes.len()
                        ),
                        target: None,
                        request_id: None,
                        record: bytes.to_vec(),
                    },
                );
                continue;
            }
        };
        let part = sorter.part(&tag_text, &event, data.len(), &mut encoded.parts);
        match encoder.line(tag, &event, &mut part.text) {
            Ok(()) => {
                if part.ends.is_empty() {
                    part.first = event.time;
                }
                part.ends.push(part.text.len());
                part.events.push(number);
            }
            Err(Skip::NoLogKey) => encoded.skipped.push(number),
            Err(reason @ (Skip::TooDeep | Skip::Malformed)) => {
                debug_assert_eq!(reason, Skip::TooDeep, "a decoded event is whole");
                encoded.letter(
                    number,
                    Letter {
                        tag: tag.to_vec(),
                        reason: Reason::TooDeep,
                        detail: format!(
                            "nested deeper than {MAX_DEPTH} levels; the event is kept as msgpack"
                        ),
                        target: None,
                        request_id: None,
                        record: event.raw.to_vec(),
                    },
                );
            }
        }
    }
    encoded.parts.retain(|part| !part.ends.is_empty());
    encoded
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
    steady: bool,
    last: Option<(i64, usize)>,
    known: HashMap<String, usize>,
}

impl<'t> Sorter<'t> {
    fn new(names: &'t Template) -> Self {
        Sorter {
            names,
            steady: names.steady_within_a_second(),
            last: None,
            known: HashMap::new(),
        }
    }

    fn part<'p>(
        &mut self,
        tag: &str,
        event: &Event<'_>,
        chunk_len: usize,
        parts: &'p mut Vec<Part>,
    ) -> &'p mut Part {
        let second = event.time.seconds;
        if let (true, Some((last, index))) = (self.steady, self.last)
            && last == second
        {
            return &mut parts[index];
        }
        let mut name = String::new();
        self.names.render(tag, event, &mut name);
        let index = *self.known.entry(name).or_insert_with_key(|name| {
            // The first part is likely the only one, and JSON is about as long as its msgpack.
            let capacity = if parts.is_empty() {
                chunk_len + chunk_len / 4
            } else {
                0
            };
            parts.push(Part {
                name: name.clone(),
                first: event.time,
                text: buffers::take(capacity),
                ends: Vec::new(),
                events: Vec::new(),
            });
            parts.len() - 1
        });
        self.last = Some((second, index));
        &mut parts[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn sorted(template: &str, data: &[u8]) -> Vec<(String, i64, String)> {
        encode(
            &Options::default(),
            &Template::parse(template, true).unwrap(),
            b"t",
            data,
            |_| true,
        )
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
        let encoded = encode(
            &Options::default(),
            &Template::parse("{record.k}", true).unwrap(),
            b"t",
            &data,
            |_| true,
        );
        assert!(encoded.parts.is_empty());
        let reasons: Vec<&str> = encoded
            .letters
            .iter()
            .map(|letter| letter.reason.as_str())
            .collect();
        assert_eq!(reasons, ["too_deep", "malformed"]);
        assert_eq!(encoded.letters[0].record.len(), data.len() - 2);
        assert_eq!(encoded.letters[1].record, b"\xc1\xc1");
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
        let names = Template::parse("x", true).unwrap();
        let encoded = encode(&Options::default(), &names, b"t", &data, |_| true);
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
        let names = Template::parse("x", true).unwrap();
        let encoded = encode(&Options::default(), &names, b"t", &data, |event| event != 1);
        assert_eq!(encoded.parts[0].text, b"{\"k\":\"a\"}\n{\"k\":\"c\"}\n");
        assert_eq!(encoded.parts[0].events, [0, 2]);
        assert_eq!(encoded.events, 3);
    }

    #[test]
    fn an_empty_chunk_is_no_lines_and_no_trouble() {
        let encoded = encode(
            &Options::default(),
            &Template::parse("x", true).unwrap(),
            b"t",
            b"",
            |_| true,
        );
        assert!(encoded.parts.is_empty() && encoded.letters.is_empty());
    }
}
