//! Copies some of a chunk's events into a chunk of their own, so that the rest of it need not be kept for them.
//!
//! A whole event reads the same wherever it stands, and so does a group's marker: both are copied as they are. Bytes
//! that are not an event are another matter. Where they end, and what is wrong with them, may depend on all that
//! follows: a length may reach over it, the search for the next event may stop at another one, and the budget of that
//! search depends on the chunk's length. So a copy with such bytes in it is decoded again, and made without them where
//! they came out differently.

use std::ops::Range;

use super::Place;
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
    /// The wanted events before `next` that are bytes which would not decode to the same letter elsewhere. Sorted ranges
    /// with gaps between them; whole events are never among them.
    pub kept: Vec<Range<u32>>,
    /// The position before the first wanted event that was left since `data` would have become too long; `None` if the
    /// rest of the chunk has none.
    pub next: Option<Place>,
}

/// Returns the wanted events of a chunk from a position on, as a chunk of their own of about `most_bytes` or less; a
/// single event may be longer.
///
/// In whatever way it is encoded, the result gives what the original gives with the events [`Extracted::taken`] as
/// filter: the same parts, letters and skipped events, with the events numbered from 0. Three things may differ:
/// - The letter of bytes that are not an event names their offset in its own chunk.
/// - If there are such bytes, the parts may come in another order.
/// - A chunk of several steps may be divided elsewhere. A letter contains its group's marker if it is the group's first
///   in its step.
///
/// `wanted` may be asked twice about an event, and must give the same answer.
pub fn extract(
    data: &[u8],
    from: Place,
    most_bytes: usize,
    wanted: impl Fn(u32) -> bool,
) -> Extracted {
    let (extracted, malformed) = copy(data, from, most_bytes, &wanted, true);
    if !malformed || decodes_the_same(data, from, &extracted) {
        return extracted;
    }
    copy(data, from, most_bytes, &wanted, false).0
}

/// Copies the wanted events, those that are not whole only `with_malformed`. Also returns whether there was one of them.
fn copy(
    data: &[u8],
    from: Place,
    most_bytes: usize,
    wanted: impl Fn(u32) -> bool,
    with_malformed: bool,
) -> (Extracted, bool) {
    let mut extracted = Extracted::default();
    let mut events = Events::from(data, from.at);
    let mut number = from.event;
    // The offset of the marker of the group that is open at the end of the copy.
    let mut open = None;
    let (mut malformed, mut last_malformed) = (false, false);
    loop {
        let here = Place {
            at: events.place(),
            event: number,
        };
        let Some(item) = events.next() else {
            return (extracted, malformed);
        };
        number += 1;
        if !wanted(here.event) {
            continue;
        }
        let (group, raw) = match item {
            Item::Event(event) => (events.group().map(|(marker, _)| marker), event.raw),
            // Their letter has no group. Two of them in a row would be one.
            Item::Malformed { bytes, .. } if with_malformed && !last_malformed => (open, bytes),
            Item::Malformed { .. } => {
                add(&mut extracted.kept, here.event);
                continue;
            }
        };
        // Each marker is copied once at most, and is a group of its own even if it equals the one before: what letters
        // say of their group's marker depends on it.
        let marker = match group {
            _ if group == open => &[],
            Some(at) => events.group_marker(at),
            None => GROUP_END,
        };
        let len = extracted.data.len() + marker.len() + raw.len();
        if extracted.events > 0 && len > most_bytes {
            extracted.next = Some(here);
            return (extracted, malformed);
        }
        extracted.data.extend_from_slice(marker);
        extracted.data.extend_from_slice(raw);
        extracted.events += 1;
        add(&mut extracted.taken, here.event);
        open = group;
        extracted.in_group = open.is_some();
        last_malformed = matches!(item, Item::Malformed { .. });
        malformed |= last_malformed;
    }
}

/// Copies whole events into several chunks in one pass: `chunk_of` returns the index of each wanted event's chunk, below
/// `chunks`. Each result is what [`extract`] returns for its events, except that bytes which are not an event stay where
/// they are and are in no result.
pub fn extract_each(
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

/// Whether a copy has the items that it was made of. Both chunks are decoded side by side: a list of the items might
/// take many times their memory.
fn decodes_the_same(data: &[u8], from: Place, extracted: &Extracted) -> bool {
    let numbered = (from.event..).zip(Events::from(data, from.at));
    let mut taken = extracted.taken.iter().cloned().flatten().peekable();
    let mut originals = numbered.filter(|(event, _)| taken.next_if_eq(event).is_some());
    let mut copies = Events::new(&extracted.data);
    // What is compared is where each ends and what is wrong with it. Groups need not be: the markers lie between items.
    (0..extracted.events).all(|_| match (originals.next(), copies.next()) {
        (Some((_, Item::Event(original))), Some(Item::Event(copy))) => original.raw == copy.raw,
        (
            Some((_, Item::Malformed { bytes, reason, .. })),
            Some(Item::Malformed {
                bytes: copy,
                reason: now,
                ..
            }),
        ) => bytes == copy && reason == now,
        _ => false,
    }) && copies.next().is_none()
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
    use crate::codec::{Encoded, Encoding, Part};
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

    /// A case: what it is, a chunk, its wanted events, what is extracted, and the events that are kept.
    type Case<'a> = (&'a str, Pieces<'a>, &'a [u32], Pieces<'a>, &'a [u32]);

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
        fn of(
            encoding: &Encoding<'_>,
            data: &[u8],
            from: Place,
            wanted: impl Fn(u32) -> bool,
        ) -> Given {
            let tag: Arc<[u8]> = TAG.into();
            let mut given = Given {
                parts: Vec::new(),
                letters: Vec::new(),
                skipped: Vec::new(),
            };
            let mut next = Some(from);
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
    fn checked(
        data: &[u8],
        from: Place,
        most_bytes: usize,
        wanted: impl Fn(u32) -> bool,
    ) -> Extracted {
        let extracted = extract(data, from, most_bytes, &wanted);
        let Extracted {
            taken, kept, next, ..
        } = &extracted;
        for ranges in [taken, kept] {
            assert!(ranges.iter().all(|range| !range.is_empty()), "{ranges:?}");
            assert!(ranges.is_sorted_by(|a, b| a.end < b.start), "{ranges:?}");
        }
        let numbers: Vec<u32> = taken.iter().cloned().flatten().collect();
        assert_eq!(numbers.len(), extracted.events as usize);
        if extracted.events > 1 {
            assert!(extracted.data.len() <= most_bytes);
        }
        // Each wanted event is in one of them, up to the end.
        let (is_taken, is_kept) = (set(taken), set(kept));
        let mut items = Events::from(data, from.at);
        for (event, item) in (from.event..).zip(items.by_ref()) {
            let before_end = next.is_none_or(|next| event < next.event);
            let in_one = is_taken.contains(event) != is_kept.contains(event);
            assert_eq!(in_one, before_end && wanted(event), "{event}");
            assert!(!is_kept.contains(event) || matches!(item, Item::Malformed { .. }));
        }
        assert!(next.is_none_or(|next| wanted(next.event)));
        assert_eq!(
            Events::new(&extracted.data).count(),
            extracted.events as usize
        );

        for (options, names, targets, longest_line) in &configurations() {
            let whole = Encoding {
                targets: targets.as_ref(),
                longest_line: *longest_line,
                step_bytes: 1 << 30,
                ..Encoding::new(options, names)
            };
            let copy = |encoding: &Encoding<'_>| {
                let mut copy = Given::of(encoding, &extracted.data, Place::default(), |_| true);
                for number in copy.numbers() {
                    *number = numbers[*number as usize];
                }
                copy
            };
            let original = |encoding: &Encoding<'_>| {
                Given::of(encoding, data, from, |event| is_taken.contains(event))
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

    /// All of a chunk from its start.
    fn all(data: &[u8], wanted: &[u32]) -> Extracted {
        checked(data, Place::default(), usize::MAX, |event| {
            wanted.contains(&event)
        })
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
            let extracted = all(&chunk.concat(), wanted);
            assert_eq!(extracted.data, expected.concat(), "{what}");
            assert_eq!(extracted.kept, [], "{what}");
            assert_eq!(extracted.next, None, "{what}");
        }
    }

    #[test]
    fn the_ranges_are_those_of_the_original() {
        let extracted = all(&[A, B, START, A, B, A, END, B].concat(), &[1, 2, 4, 5, 9]);
        assert_eq!(extracted.taken, [1..3, 4..6]);
        assert_eq!(extracted.events, 4);
    }

    /// Bytes that are not an event, and the wanted events: which of them are copied, and which are kept.
    #[test]
    fn malformed_bytes_are_copied_where_their_letter_stays_the_same() {
        let cases: &[Case<'_>] = &[
            ("only that", &[VALUE], &[0], &[VALUE], &[]),
            ("not wanted", &[A, RESERVED, B], &[0, 2], &[A, B], &[]),
            ("a value", &[A, VALUE, A, OLD], &[1, 3], &[VALUE, OLD], &[]),
            (
                "no value, before an event that is found",
                &[A, RESERVED, A, B],
                &[1, 3],
                &[RESERVED, B],
                &[],
            ),
            (
                "no value, before an event that is not found",
                &[A, RESERVED, A, OLD],
                &[0, 1, 3],
                &[A, OLD],
                &[1],
            ),
            (
                "more than any chunk has",
                &[A, ENDLESS, A, B],
                &[1, 3],
                &[ENDLESS, B],
                &[],
            ),
            (
                "a length that reaches over what is not copied",
                &[LONG, A, A, A],
                &[0, 3],
                &[A],
                &[0],
            ),
            (
                "a length that reaches over what is copied",
                &[B, LONG, A, A, A],
                &[1, 2, 3, 4],
                &[LONG, A, A, A],
                &[],
            ),
            (
                "a marker with a wrong length",
                &[A, SPANNING, A, B, A],
                &[1, 2, 3],
                &[SPANNING, A, B],
                &[],
            ),
            (
                "two of them that would be one",
                &[VALUE, A, VALUE, A],
                &[0, 2, 3],
                &[VALUE, A],
                &[2],
            ),
            (
                "between the events of a group",
                &[START, A, VALUE, A, END, B],
                &[1, 2, 3],
                &[VALUE, START, A, END, B],
                &[],
            ),
            (
                "an event that is cut off",
                &[START, A, B, &A[..15]],
                &[0, 2],
                &[START, A, &A[..15]],
                &[],
            ),
            (
                "rubbish at the end",
                &[A, B, &[0xc1, 0x92, 0x92]],
                &[1, 2],
                &[B, &[0xc1, 0x92, 0x92]],
                &[],
            ),
        ];
        for (what, chunk, wanted, expected, kept) in cases {
            let extracted = all(&chunk.concat(), wanted);
            assert_eq!(extracted.data, expected.concat(), "{what}");
            assert!(
                extracted
                    .kept
                    .iter()
                    .cloned()
                    .flatten()
                    .eq(kept.iter().copied()),
                "{what}"
            );
        }
    }

    #[test]
    fn a_chunk_is_extracted_in_pieces_of_bounded_size() {
        let data = [START, A, B, A, VALUE, A, END, DEEP, B].concat();
        let fits = START.len() + A.len() + B.len();
        for (most_bytes, expected) in [
            (0, vec![1, 1, 1, 1, 1, 1, 1]),
            (fits - 1, vec![1, 1, 2, 1, 1, 1]),
            (fits, vec![2, 3, 1, 1]),
            (usize::MAX, vec![7]),
        ] {
            let (mut next, mut pieces) = (Some(Place::default()), Vec::new());
            while let Some(from) = next {
                let piece = checked(&data, from, most_bytes, |_| true);
                next = piece.next;
                pieces.push(piece.events);
            }
            assert_eq!(pieces, expected, "{most_bytes}");
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
            let from = Place::default();
            let whole = checked(&data, from, usize::MAX, |_| true);
            assert!(whole.kept.is_empty() && whole.next.is_none(), "{path:?}");
            for rest in 0..3 {
                let some = checked(&data, from, usize::MAX, |event| event % 3 == rest);
                assert!(some.kept.is_empty() && some.data.len() <= data.len());
            }
        }
    }

    #[test]
    fn a_hostile_chunk_costs_linear_time_and_memory() {
        let most = |data: &[u8]| {
            let extracted = extract(data, Place::default(), usize::MAX, |event| event % 3 != 1);
            let ends = Events::new(data).count() * (GROUP_END.len() - 12);
            assert!(extracted.data.len() <= data.len() + ends);
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

        /// Any events of any chunk are extracted as what they were, whole or in pieces.
        #[test]
        fn what_is_extracted_encodes_as_before(
            pieces in pieces(),
            wanted in prop_oneof![Just(u32::MAX), any::<u32>()],
            most_bytes in prop_oneof![Just(usize::MAX), 0usize..2_000],
        ) {
            let data = pieces.concat();
            let mut next = Some(Place::default());
            while let Some(from) = next {
                next = checked(&data, from, most_bytes, |event| wanted >> (event % 32) & 1 == 1).next;
            }
        }

        /// Whole events are copied into several chunks as each would be by itself.
        #[test]
        fn each_of_several_copies_is_what_it_would_be_alone(pieces in pieces(), chunk_of in any::<u32>()) {
            let data = pieces.concat();
            let of = |event: u32| Some((chunk_of >> (event % 31) & 3) as usize);
            for (at, copy) in extract_each(&data, 3, of).into_iter().enumerate() {
                let taken: Vec<u32> = copy.taken.iter().cloned().flatten().collect();
                prop_assert!(taken.iter().all(|event| of(*event) == Some(at)));
                let alone = extract(&data, Place::default(), usize::MAX, |event| taken.contains(&event));
                prop_assert_eq!(copy, alone);
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
            checked(&data, Place::default(), usize::MAX, |_| true);
        }
    }
}
