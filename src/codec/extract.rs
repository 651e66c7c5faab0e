//! Copies some of a chunk's events into chunks of their own, so that the rest of it need not be kept for them.
//!
//! A whole event reads the same wherever it stands, and so does a group's marker: both are copied as they are. Bytes that
//! are not an event are not copied: where they end, and what is wrong with them, depends on what follows them.

use std::ops::Range;

use super::msgpack::{Events, Item};

/// The marker that ends a group, as hosts write it.
pub const GROUP_END: &[u8] = b"\x92\x92\xd7\x00\xff\xff\xff\xfe\0\0\0\0\x80\x80";

/// Events of a chunk, as a chunk of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The events, and the markers of their groups. No longer than the original, but for a few bytes where a group ends.
    pub data: Vec<u8>,
    /// The number of events in `data`, which the encoder numbers from 0.
    pub events: u32,
    /// Whether `data` ends within a group. [`GROUP_END`] has to follow before events of another chunk do.
    pub in_group: bool,
    /// The same events by their ordinals in the original: sorted ranges with gaps between them.
    pub taken: Vec<Range<u32>>,
}

/// Copies events into several chunks in one pass: `chunk_of` returns the index of each wanted event's chunk, below `chunks`.
///
/// In whatever way it is encoded, each result gives what the original gives with the events [`Extracted::taken`] as
/// filter: the same parts, letters and skipped events, with the events numbered from 0. Bytes that are not an event stay
/// where they are, and are in no result. A chunk of several steps may be divided elsewhere: a letter contains its group's
/// marker if it is the group's first in its step.
pub fn extract(
    data: &[u8],
    chunks: usize,
    chunk_of: impl Fn(u32) -> Option<usize>,
) -> Vec<Extracted> {
    let mut extracted: Vec<Extracted> = (0..chunks).map(|_| Extracted::default()).collect();
    // For each chunk, the offset of the marker of the group that is open at its end.
    let mut open = vec![None; chunks];
    let mut events = Events::new(data);
    let mut number = 0;
    while let Some(item) = events.next() {
        let event = number;
        number += 1;
        let (Some(at), Item::Event(item)) = (chunk_of(event), item) else {
            continue;
        };
        let (Some(chunk), Some(open)) = (extracted.get_mut(at), open.get_mut(at)) else {
            continue;
        };
        let group = events.group().map(|(marker, _)| marker);
        // Each marker is copied once at most, and is a group of its own even if it equals the one before: what letters
        // say of their group's marker depends on it.
        match group {
            _ if group == *open => {}
            Some(at) => chunk.data.extend_from_slice(events.group_marker(at)),
            None => chunk.data.extend_from_slice(GROUP_END),
        }
        chunk.data.extend_from_slice(item.raw);
        chunk.events += 1;
        chunk.in_group = group.is_some();
        add(&mut chunk.taken, event);
        *open = group;
    }
    extracted
}

/// Adds an event to sorted ranges that end before it.
fn add(ranges: &mut Vec<Range<u32>>, event: u32) {
    match ranges.last_mut() {
        Some(last) if last.end == event => last.end += 1,
        _ => ranges.push(event..event + 1),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::codec::json::Options;
    use crate::codec::rejected::Letter;
    use crate::codec::template::Template;
    use crate::codec::tests::any_event;
    use crate::codec::time::TimeFormat;
    use crate::codec::{Encoded, Encoding, Part, Place};
    use crate::ids::EventSet;
    use crate::metrics::Reason;

    const START: &[u8] = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x81\xa1s\x01\x81\xa1r\x01";
    const OTHER: &[u8] = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80\x81\xa1r\x02";
    const END: &[u8] = GROUP_END;
    const A: &[u8] = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\x01\x80\x81\xa1k\xa1a";
    const B: &[u8] = b"\x92\x92\xd7\x00\0\0\0\x02\0\0\0\x02\x81\xa1m\x01\x81\xa3log\xa1b";
    /// An event of the older form, whose time does not tell it from other values.
    const OLD: &[u8] = b"\x92\x03\x81\xa1k\xa1c";
    /// An event that is nested too deep to be encoded, so that its letter has the marker of its group.
    const DEEP: &[u8] = &{
        let mut event = [0x91; 220];
        let head = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\x01\x80\x81\xa1k";
        let mut at = 0;
        while at < head.len() {
            event[at] = head[at];
            at += 1;
        }
        event[219] = 0xc0;
        event
    };
    /// A value that is no event.
    const VALUE: &[u8] = b"\xa4oops";
    /// Bytes that are no value.
    const RESERVED: &[u8] = b"\xc1\xc1";
    /// An event whose body claims to be larger than any chunk.
    const ENDLESS: &[u8] = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\0\x80\x81\xa1k\xdb\xff\xff\xff\xff";
    /// An event whose body is a string of 40 bytes that follow it.
    const LONG: &[u8] = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\0\x80\xd9\x28";
    /// A marker whose resource claims to be the two values behind it.
    const SPANNING: &[u8] = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80\x81\xa1r\x92";

    /// What a chunk consists of.
    type Pieces<'a> = &'a [&'a [u8]];

    /// A case: what it is, a chunk, its wanted events, and what is extracted.
    type Case<'a> = (&'a str, Pieces<'a>, &'a [u32], Pieces<'a>);

    const TAG: &[u8] = b"app.\xffhttp";

    /// Configurations that between them use everything that lines, names and letters are made of.
    fn configurations() -> Vec<(Options, Template, Option<Template>, usize)> {
        let key = |key: &str| Some(key.to_owned());
        let template = |text| Template::parse(text, true).unwrap();
        let plain = Options::default();
        let all = Options {
            time: Some(("t".into(), TimeFormat::Iso8601)),
            tag_key: key("tag"),
            metadata_key: key("meta"),
            replace_dots: key("_"),
            ..Options::default()
        };
        let metadata = Options {
            metadata_key: key("meta"),
            ..Options::default()
        };
        let log = Options {
            log_key: key("log"),
            ..metadata.clone()
        };
        let some = Options {
            data_keys: vec!["k".into(), "x".into()],
            ..Options::default()
        };
        vec![
            (plain, template("x"), None, usize::MAX),
            (all, template("{tag[1]}/%S"), None, usize::MAX),
            (
                metadata,
                template("{record.k|none}"),
                Some(template("%M{tag}")),
                200,
            ),
            (log, template("%S.%3N"), None, usize::MAX),
            (some, template("{record.log}"), None, 12),
        ]
    }

    /// What the encoding of a chunk from a position on gives, whatever its steps, but for the offsets in letters.
    #[derive(Debug, PartialEq)]
    struct Given {
        parts: Vec<Part>,
        letters: Vec<(u32, Letter)>,
        skipped: Vec<u32>,
    }

    impl Given {
        fn of(encoding: &Encoding<'_>, data: &[u8], wanted: impl Fn(u32) -> bool) -> Given {
            let tag: Arc<[u8]> = TAG.into();
            let mut given = Given {
                parts: Vec::new(),
                letters: Vec::new(),
                skipped: Vec::new(),
            };
            let mut next = Some(Place::default());
            while let Some(from) = next {
                let step: Encoded = encoding
                    .step(&tag, data, from, usize::MAX, &wanted)
                    .unwrap();
                next = step.next;
                for mut part in step.parts {
                    let parts = &mut given.parts;
                    let Some(known) = parts.iter_mut().find(|known| known.name == part.name) else {
                        parts.push(part);
                        continue;
                    };
                    let before = known.text.len();
                    known.text.append(&mut part.text);
                    known.ends.extend(part.ends.iter().map(|end| before + end));
                    known.events.append(&mut part.events);
                }
                for (event, mut letter) in step.lettered.into_iter().zip(step.letters) {
                    if letter.reason == Reason::Malformed {
                        let (bytes, rest) = letter.detail.split_once(" at offset ").unwrap();
                        let (_, reason) = rest.split_once(" of a chunk: ").unwrap();
                        letter.detail = format!("{bytes}: {reason}");
                    }
                    given.letters.push((event, letter));
                }
                given.skipped.extend(step.skipped);
            }
            // A part may have been begun by bytes that then became a letter.
            given.parts.sort_by(|a, b| a.name.cmp(&b.name));
            given
        }

        fn numbers(&mut self) -> impl Iterator<Item = &mut u32> {
            let parts = self.parts.iter_mut().flat_map(|part| &mut part.events);
            let letters = self.letters.iter_mut().map(|(event, _)| event);
            parts.chain(letters).chain(&mut self.skipped)
        }

        /// Without what differs between the letters of different steps.
        fn without_letters(mut self) -> (Given, Vec<u32>) {
            let lettered = self.letters.drain(..).map(|(event, _)| event).collect();
            (self, lettered)
        }
    }

    fn set(ranges: &[Range<u32>]) -> EventSet {
        let mut set = EventSet::default();
        set.extend(ranges);
        set
    }

    /// Extracts the wanted events and asserts that the result encodes as the original does.
    fn checked(data: &[u8], wanted: impl Fn(u32) -> bool) -> Extracted {
        let mut copies = extract(data, 1, |event| wanted(event).then_some(0));
        let extracted = copies.remove(0);
        let taken = &extracted.taken;
        assert!(taken.iter().all(|range| !range.is_empty()), "{taken:?}");
        assert!(taken.is_sorted_by(|a, b| a.end < b.start), "{taken:?}");
        let numbers: Vec<u32> = taken.iter().cloned().flatten().collect();
        assert_eq!(numbers.len(), extracted.events as usize);
        // Each wanted event that is whole is in it.
        let is_taken = set(taken);
        for (event, item) in (0..).zip(Events::new(data)) {
            let is_whole = matches!(item, Item::Event(_));
            assert_eq!(
                is_taken.contains(event),
                is_whole && wanted(event),
                "{event}"
            );
        }
        let items = Events::new(&extracted.data);
        assert_eq!(items.count(), extracted.events as usize);

        for (options, names, targets, longest_line) in &configurations() {
            let whole = Encoding {
                targets: targets.as_ref(),
                longest_line: *longest_line,
                step_bytes: 1 << 30,
                ..Encoding::new(options, names)
            };
            let copy = |encoding: &Encoding<'_>| {
                let mut copy = Given::of(encoding, &extracted.data, |_| true);
                for number in copy.numbers() {
                    *number = numbers[*number as usize];
                }
                copy
            };
            let original = |encoding: &Encoding<'_>| {
                Given::of(encoding, data, |event| is_taken.contains(event))
            };
            assert_eq!(copy(&whole), original(&whole), "{options:?}");
            // The boundaries of steps may differ.
            let steps = Encoding {
                step_bytes: 1_000,
                line_bytes: 40,
                name_bytes: 100,
                ..whole
            };
            assert_eq!(
                copy(&steps).without_letters(),
                original(&steps).without_letters()
            );
        }
        extracted
    }

    fn some(data: &[u8], wanted: &[u32]) -> Extracted {
        checked(data, |event| wanted.contains(&event))
    }

    #[test]
    fn events_are_copied_as_they_are_and_groups_once() {
        let cases: &[(&str, Pieces<'_>, &[u32], Pieces<'_>)] = &[
            ("an empty chunk", &[], &[0, 1], &[]),
            ("nothing wanted", &[A, START, B, END], &[], &[]),
            ("ordinals beyond the chunk", &[A], &[7], &[]),
            ("every form", &[A, B, OLD], &[0, 1, 2], &[A, B, OLD]),
            ("some of them", &[A, B, OLD, A], &[1, 3], &[B, A]),
            (
                "groups without wanted events",
                &[START, A, END, B, OTHER, A, END, OLD],
                &[1, 3],
                &[B, OLD],
            ),
            (
                "a group's later events",
                &[START, A, B, A, B, END],
                &[1, 3],
                &[START, B, B],
            ),
            (
                "an event after a group",
                &[START, A, B, END, A, B],
                &[0, 3],
                &[START, A, END, B],
            ),
            (
                "a group that is not ended, and one that replaces it",
                &[START, A, OTHER, B, A, END, END, B],
                &[0, 2, 3],
                &[START, A, OTHER, A, END, B],
            ),
            (
                "a group that begins again is another",
                &[START, DEEP, START, DEEP, DEEP],
                &[0, 1, 2],
                &[START, DEEP, START, DEEP, DEEP],
            ),
            (
                "a group that is open at the end",
                &[A, START, B],
                &[0, 1],
                &[A, START, B],
            ),
            (
                "an end without a group",
                &[END, A, END, B],
                &[0, 1],
                &[A, B],
            ),
            (
                "letters of a group",
                &[A, START, DEEP, A, DEEP, END, DEEP],
                &[1, 3, 4],
                &[START, DEEP, DEEP, END, DEEP],
            ),
        ];
        for (what, chunk, wanted, expected) in cases {
            let extracted = some(&chunk.concat(), wanted);
            assert_eq!(extracted.data, expected.concat(), "{what}");
        }
    }

    #[test]
    fn the_ranges_are_those_of_the_original() {
        let extracted = some(&[A, B, START, A, B, A, END, B].concat(), &[1, 2, 4, 5, 9]);
        assert_eq!(extracted.taken, [1..3, 4..6]);
        assert_eq!(extracted.events, 4);
    }

    #[test]
    fn bytes_that_are_not_an_event_stay_where_they_are() {
        let cases: &[Case<'_>] = &[
            ("only that", &[VALUE], &[0], &[]),
            ("not wanted", &[A, RESERVED, B], &[0, 2], &[A, B]),
            ("a value", &[A, VALUE, A, OLD], &[1, 3], &[OLD]),
            (
                "no value, before an event that is found",
                &[A, RESERVED, A, B],
                &[1, 3],
                &[B],
            ),
            (
                "no value, before an event that is not found",
                &[A, RESERVED, A, OLD],
                &[0, 1, 3],
                &[A, OLD],
            ),
            (
                "more than any chunk has",
                &[A, ENDLESS, A, B],
                &[1, 3],
                &[B],
            ),
            (
                "a length that reaches over what is not copied",
                &[LONG, A, A, A],
                &[0, 3],
                &[A],
            ),
            (
                "a length that reaches over what is copied",
                &[B, LONG, A, A, A],
                &[1, 2, 3, 4],
                &[A, A, A],
            ),
            (
                "a marker with a wrong length",
                &[A, SPANNING, A, B, A],
                &[1, 2, 3],
                &[A, B],
            ),
            (
                "two of them that would be one",
                &[VALUE, A, VALUE, A],
                &[0, 2, 3],
                &[A],
            ),
            (
                "between the events of a group",
                &[START, A, VALUE, A, END, B],
                &[1, 2, 3],
                &[START, A, END, B],
            ),
            (
                "an event that is cut off",
                &[START, A, B, &A[..15]],
                &[0, 2],
                &[START, A],
            ),
            (
                "rubbish at the end",
                &[A, B, &[0xc1, 0x92, 0x92]],
                &[1, 2],
                &[B],
            ),
        ];
        for (what, chunk, wanted, expected) in cases {
            let extracted = some(&chunk.concat(), wanted);
            assert_eq!(extracted.data, expected.concat(), "{what}");
        }
    }

    #[test]
    fn real_chunks_are_extracted() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chunks");
        let files = std::fs::read_dir(folder).unwrap();
        let chunks: Vec<_> = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "msgpack"))
            .collect();
        assert!(!chunks.is_empty());
        for path in chunks {
            let data = std::fs::read(&path).unwrap();
            let whole = checked(&data, |_| true);
            assert_eq!(
                whole.events as usize,
                Events::new(&data).count(),
                "{path:?}"
            );
            for rest in 0..3 {
                let some = checked(&data, |event| event % 3 == rest);
                assert!(some.data.len() <= data.len());
            }
        }
    }

    #[test]
    fn a_hostile_chunk_costs_linear_time_and_memory() {
        let most = |data: &[u8]| {
            let extracted = extract(data, 1, |event| (event % 3 != 1).then_some(0));
            let ends = Events::new(data).count() * (GROUP_END.len() - 12);
            assert!(extracted[0].data.len() <= data.len() + ends);
        };
        // Heads whose bodies extend to the chunk's end, before and between whole events.
        let head = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\0\x80\xdd\x7f\xff\xff\xff";
        most(&head.repeat(50_000));
        most(&[&head[..], A].concat().repeat(50_000));
        // A large group that malformed bytes and events share, and many small ones.
        let mut large = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80\x81\xa1r".to_vec();
        rmp::encode::write_bin(&mut large, &[0; 1_000_000]).unwrap();
        most(&[large, [VALUE, OLD].concat().repeat(50_000)].concat());
        let end = b"\x92\xd7\x00\xff\xff\xff\xfe\0\0\0\0\x80";
        most(&[START, OLD, end, OLD].concat().repeat(50_000));
    }

    fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let fixed = [
            START, OTHER, END, A, B, OLD, DEEP, VALUE, RESERVED, ENDLESS, LONG, SPANNING,
        ];
        let fixed = proptest::sample::select(fixed.map(<[u8]>::to_vec).to_vec());
        let cut = (fixed.clone(), 0usize..40).prop_map(|(mut bytes, len)| {
            bytes.truncate(len);
            bytes
        });
        let piece = prop_oneof![
            4 => any_event(),
            6 => fixed,
            1 => cut,
            1 => proptest::collection::vec(any::<u8>(), 0..20),
        ];
        proptest::collection::vec(piece, 0..24)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 600 }))]

        /// Any events of any chunk are extracted as what they were.
        #[test]
        fn what_is_extracted_encodes_as_before(
            pieces in pieces(),
            wanted in prop_oneof![Just(u32::MAX), any::<u32>()],
        ) {
            checked(&pieces.concat(), |event| wanted >> (event % 32) & 1 == 1);
        }

        /// Events are copied into several chunks as into each by itself.
        #[test]
        fn each_of_several_copies_is_what_it_would_be_alone(pieces in pieces(), chunk_of in any::<u32>()) {
            let data = pieces.concat();
            let of = |event: u32| Some((chunk_of >> (event % 31) & 3) as usize);
            for (at, copy) in extract(&data, 3, of).into_iter().enumerate() {
                prop_assert_eq!(copy, checked(&data, |event| of(event) == Some(at)));
            }
        }

        /// Neither do bytes that are no chunk at all make it fail.
        #[test]
        fn any_bytes_are_extracted(
            data in proptest::collection::vec(
                prop_oneof![Just(0x92u8), Just(0xd7), Just(0), Just(0x80), Just(0xff), any::<u8>()],
                0..80,
            ),
        ) {
            checked(&data, |_| true);
        }
    }
}
