//! The byte format of notes and of a relocated chunk's origins, and the ledger that results from all of a log.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Content, Events, Note, Pending, Seq};

const BEGUN: u8 = 1;
const ENDED: u8 = 2;
const DONE: u8 = 3;

// A note is a msgpack array of its kind and its fields.
#[derive(Serialize, Deserialize)]
struct Begun<S> {
    /// [`BEGUN`].
    kind: u8,
    batch: u64,
    name: S,
    token: S,
    lines: u64,
    contents: Parts,
    /// Versions before recipes neither write nor read it.
    #[serde(default = "no_recipe", skip_serializing_if = "Option::is_none")]
    recipe: Option<S>,
}

fn no_recipe<S>() -> Option<S> {
    None
}

/// Kind, batch, delivered events (nil: all).
type Ended = (u8, u64, Option<Parts>);
/// Kind, contents.
type Done = (u8, Parts);
/// For each chunk its events: nil for all, otherwise the start and end of each run, flattened.
type Parts = Vec<(Seq, Option<Vec<u32>>)>;

/// Encodes a note as a payload.
pub(super) fn encode(note: &Note) -> Vec<u8> {
    match note {
        Note::Begun {
            batch,
            name,
            token,
            lines,
            contents,
            recipe,
        } => write(&Begun::<&str> {
            kind: BEGUN,
            batch: *batch,
            name,
            token,
            lines: *lines,
            contents: parts(contents),
            recipe: recipe.as_deref(),
        }),
        Note::Ended { batch, delivered } => {
            let ended: Ended = (ENDED, *batch, delivered.as_deref().map(parts));
            write(&ended)
        }
        Note::Done { contents } => {
            let done: Done = (DONE, parts(contents));
            write(&done)
        }
    }
}

/// Decodes a payload. Returns `None` if this version does not write such notes.
pub(super) fn decode(payload: &[u8]) -> Option<Note> {
    // The array's length, and its first element, the kind.
    let note = match payload {
        [0x96 | 0x97, BEGUN, ..] => {
            let begun: Begun<String> = read(payload)?;
            Note::Begun {
                batch: begun.batch,
                name: begun.name,
                token: begun.token,
                lines: begun.lines,
                contents: contents(begun.contents)?,
                recipe: begun.recipe,
            }
        }
        [0x93, ENDED, ..] => {
            let (_, batch, delivered): Ended = read(payload)?;
            let delivered = match delivered {
                Some(parts) => Some(contents(parts)?),
                None => None,
            };
            Note::Ended { batch, delivered }
        }
        [0x92, DONE, ..] => {
            let (_, parts): Done = read(payload)?;
            Note::Done {
                contents: contents(parts)?,
            }
        }
        _ => return None,
    };
    Some(note)
}

/// Encodes what a relocated chunk's data begins with: the length of its origins, and these.
pub(super) fn encode_origins(origins: &[Content]) -> Vec<u8> {
    let origins = write(&parts(origins));
    // Longer ones make the data too long: see `Spool::relocate`.
    let len = u32::try_from(origins.len()).unwrap_or(u32::MAX);
    [&len.to_le_bytes()[..], &origins].concat()
}

/// Decodes a relocated chunk's origins from its data. Returns them with the number of bytes before the events.
pub(super) fn decode_origins(data: &[u8]) -> Option<(Vec<Content>, u32)> {
    let (len, rest) = data.split_first_chunk()?;
    let len = u32::from_le_bytes(*len);
    let origins = read(rest.get(..len as usize)?)?;
    let before = len.checked_add(u32::BITS / 8)?;
    Some((contents(origins)?, before))
}

fn write(note: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(note).expect("writing to a vector does not fail")
}

/// Reads a value that must take up all of `payload`.
fn read<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    let mut rest = payload;
    let note = rmp_serde::from_read(&mut rest).ok()?;
    rest.is_empty().then_some(note)
}

fn parts(contents: &[Content]) -> Parts {
    let bounds = |events: &Events| match events {
        Events::All => None,
        Events::Runs(runs) => Some(runs.iter().flat_map(|run| [run.start, run.end]).collect()),
    };
    let part = |content: &Content| (content.chunk, bounds(&content.events));
    contents.iter().map(part).collect()
}

fn contents(parts: Parts) -> Option<Vec<Content>> {
    let content = |(chunk, bounds): (Seq, Option<Vec<u32>>)| {
        let events = match bounds {
            None => Events::All,
            Some(bounds) => {
                let (pairs, rest) = bounds.as_chunks();
                let runs = pairs.iter().map(|&[start, end]| start..end).collect();
                rest.is_empty().then_some(Events::Runs(runs))?
            }
        };
        Some(Content { chunk, events })
    };
    parts.into_iter().map(content).collect()
}

/// Merges `more` into runs, which stay sorted, non-adjacent and non-empty.
pub(crate) fn merge(runs: &mut Vec<Range<u32>>, more: &[Range<u32>]) {
    runs.extend(more.iter().filter(|run| !run.is_empty()).cloned());
    runs.sort_unstable_by_key(|run| run.start);
    runs.dedup_by(|next, run| {
        let touches = next.start <= run.end;
        if touches {
            run.end = run.end.max(next.end);
        }
        touches
    });
}

fn add(to: &mut BTreeMap<Seq, Events>, contents: &[Content]) {
    for Content { chunk, events } in contents {
        let there = to.entry(*chunk);
        let there = there.or_insert_with(|| Events::Runs(Vec::new()));
        match (there, events) {
            (Events::All, _) => {}
            (Events::Runs(runs), Events::Runs(more)) => merge(runs, more),
            (there, Events::All) => *there = Events::All,
        }
    }
}

/// A set of frame numbers, kept as ranges: what a log has finished is mostly consecutive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// The end of each range, by its start. They do not touch.
    ranges: BTreeMap<Seq, Seq>,
}

impl Numbers {
    pub(super) fn contains(&self, number: Seq) -> bool {
        let before = self.ranges.range(..=number).next_back();
        before.is_some_and(|(_, end)| number < *end)
    }

    /// Drops all numbers below another.
    fn forget_before(&mut self, number: Seq) {
        let kept = self.ranges.split_off(&number);
        let cut = self.ranges.last_key_value().map(|(_, end)| *end);
        self.ranges = kept;
        if let Some(end) = cut.filter(|end| *end > number) {
            self.ranges.insert(number, end);
        }
    }

    /// Adds a number. Returns whether it is new.
    pub(super) fn insert(&mut self, number: Seq) -> bool {
        let before = self.ranges.range(..=number).next_back();
        let start = match before.map(|(start, end)| (*start, *end)) {
            Some((_, end)) if number < end => return false,
            Some((start, end)) if number == end => start,
            _ => number,
        };
        // A note may name any number, however impossible.
        let next = number.saturating_add(1);
        let end = self.ranges.remove(&next).unwrap_or(next);
        self.ranges.insert(start, end);
        true
    }
}

/// Where a relocated chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// The number of the chunk.
    pub(super) chunk: Seq,
    /// The first number of its segment.
    pub(super) segment: Seq,
    /// The offset of its frame.
    pub(super) offset: u64,
}

/// The maximum size of a ledger that is saved, in bytes.
const MAX_SAVED: usize = 1 << 20;

/// A saved ledger: the starts and ends of the ranges of finished numbers, flattened; the settled events of other chunks; the
/// pending batches; the next batch; and of each relocated chunk its number, segment, offset and last origin.
type Saved = (
    Vec<Seq>,
    Parts,
    Vec<Begun<String>>,
    u64,
    Vec<(Seq, Seq, u64, Seq)>,
);

/// What [`Ledger::settled`] refers to for a finished chunk.
static WHOLE: Events = Events::All;

/// The state that results from a log's notes and relocated chunks, applied in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pending: BTreeMap<u64, Pending>,
    /// The chunks that are settled as a whole, and the frames that are no chunks, so that ranges are long.
    finished: Numbers,
    /// The settled events of others.
    settled: BTreeMap<Seq, Events>,
    /// The events that are in relocated chunks.
    relocated: BTreeMap<Seq, Events>,
    /// The relocated chunks, with the last of their origins.
    moved: BTreeMap<Seq, (Moved, Seq)>,
    next_batch: u64,
}

impl Ledger {
    /// Raises the next batch number, as stated by a segment's Begin frame.
    pub(super) fn raise_next_batch(&mut self, next_batch: u64) {
        self.next_batch = self.next_batch.max(next_batch);
    }

    /// Records that a frame is no chunk.
    pub(super) fn pass(&mut self, number: Seq) {
        self.finished.insert(number);
    }

    pub(super) fn apply(&mut self, note: Note) {
        match note {
            Note::Begun {
                batch,
                name,
                token,
                lines,
                contents,
                recipe,
            } => {
                self.raise_next_batch(batch.saturating_add(1));
                let pending = Pending {
                    batch,
                    name,
                    token,
                    lines,
                    contents,
                    recipe,
                };
                self.pending.insert(batch, pending);
            }
            Note::Ended { batch, delivered } => {
                self.raise_next_batch(batch.saturating_add(1));
                let begun = self.pending.remove(&batch);
                let all = begun.map(|pending| pending.contents).unwrap_or_default();
                self.settle(delivered.unwrap_or(all));
            }
            Note::Done { contents } => self.settle(contents),
        }
    }

    /// Settles what a relocated chunk holds where it was before.
    pub(super) fn relocate_to(&mut self, moved: Moved, origins: Vec<Content>) {
        let last = origins.iter().map(|origin| origin.chunk).max();
        self.moved
            .extend(last.map(|last| (moved.chunk, (moved, last))));
        self.relocate(origins);
    }

    /// The relocated chunks that settle events of chunks that may still exist.
    pub(super) fn moved(&self) -> impl Iterator<Item = Moved> {
        self.moved.values().map(|(moved, _)| *moved)
    }

    fn relocate(&mut self, origins: Vec<Content>) {
        add(&mut self.relocated, &origins);
        self.settle(origins);
    }

    fn settle(&mut self, contents: Vec<Content>) {
        for content in contents {
            match &content.events {
                _ if self.finished.contains(content.chunk) => {}
                Events::All => {
                    self.settled.remove(&content.chunk);
                    self.finished.insert(content.chunk);
                }
                Events::Runs(_) => add(&mut self.settled, &[content]),
            }
        }
    }

    /// The settled events of a chunk.
    pub(super) fn settled(&self, chunk: Seq) -> Option<&Events> {
        match self.finished.contains(chunk) {
            true => Some(&WHOLE),
            false => self.settled.get(&chunk),
        }
    }

    /// The events of a chunk that are in relocated chunks.
    pub(super) fn relocated(&self, chunk: Seq) -> Option<&Events> {
        self.relocated.get(&chunk)
    }

    /// Greater than every batch number so far.
    pub(super) fn next_batch(&self) -> u64 {
        self.next_batch
    }

    /// Drops everything about chunks before the oldest segment, which no longer exist.
    pub(super) fn forget_before(&mut self, oldest: Seq) {
        self.finished.forget_before(oldest);
        self.settled = self.settled.split_off(&oldest);
        self.relocated = self.relocated.split_off(&oldest);
        self.moved.retain(|_, (_, last)| *last >= oldest);
        self.pending.retain(|_, pending| {
            let mut chunks = pending.contents.iter().map(|content| content.chunk);
            chunks.any(|chunk| chunk >= oldest)
        });
    }

    /// Encodes the ledger, unless it is too large.
    pub(super) fn save(&self) -> Option<Vec<u8>> {
        // Before anything is copied: a note has at least some bytes for each.
        if self.finished.ranges.len() + self.settled.len() > MAX_SAVED / 8 {
            return None;
        }
        let ranges = self.finished.ranges.iter();
        let settled = self.settled.iter().map(|(chunk, events)| Content {
            chunk: *chunk,
            events: events.clone(),
        });
        let begun = self.pending.values().map(|pending| {
            let Pending {
                batch,
                name,
                token,
                lines,
                contents,
                recipe,
            } = pending.clone();
            Begun {
                kind: BEGUN,
                batch,
                name,
                token,
                lines,
                contents: parts(&contents),
                recipe,
            }
        });
        let moved = self.moved.values();
        let saved: Saved = (
            ranges.flat_map(|(start, end)| [*start, *end]).collect(),
            parts(&settled.collect::<Vec<_>>()),
            begun.collect(),
            self.next_batch,
            moved
                .map(|(moved, last)| (moved.chunk, moved.segment, moved.offset, *last))
                .collect(),
        );
        let saved = write(&saved);
        (saved.len() <= MAX_SAVED).then_some(saved)
    }

    /// Decodes a saved ledger.
    pub(super) fn restore(saved: &[u8]) -> Option<Ledger> {
        let (ranges, settled, begun, next_batch, moved): Saved = read(saved)?;
        let (ranges, rest) = ranges.as_chunks();
        if !rest.is_empty() {
            return None;
        }
        let pending = begun.into_iter().map(|begun| {
            let pending = Pending {
                batch: begun.batch,
                name: begun.name,
                token: begun.token,
                lines: begun.lines,
                contents: contents(begun.contents)?,
                recipe: begun.recipe,
            };
            Some((begun.batch, pending))
        });
        let settled = contents(settled)?.into_iter();
        let moved = moved.into_iter().map(|(chunk, segment, offset, last)| {
            let moved = Moved {
                chunk,
                segment,
                offset,
            };
            (chunk, (moved, last))
        });
        Some(Ledger {
            pending: pending.collect::<Option<_>>()?,
            finished: Numbers {
                ranges: ranges.iter().map(|&[start, end]| (start, end)).collect(),
            },
            settled: settled.map(|it| (it.chunk, it.events)).collect(),
            relocated: BTreeMap::new(),
            moved: moved.collect(),
            next_batch,
        })
    }

    /// The chunks in batches begun and not ended that are not settled as a whole.
    pub(super) fn pending_chunks(&self) -> impl Iterator<Item = Seq> {
        let contents = self.pending.values().flat_map(|it| &it.contents);
        let chunks = contents.map(|content| content.chunk);
        chunks.filter(|chunk| !self.finished.contains(*chunk))
    }

    /// Batches begun and not ended that contain an unfinished chunk. The others have nothing left to deliver.
    pub(super) fn pending(&self, is_unfinished: impl Fn(Seq) -> bool) -> Vec<Pending> {
        let needed = |pending: &&Pending| {
            let mut chunks = pending.contents.iter().map(|part| part.chunk);
            chunks.any(&is_unfinished)
        };
        self.pending.values().filter(needed).cloned().collect()
    }
}

/// The ledger of the whole log, kept up to date while the log is written.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// `None`: not known yet.
    pub(super) ledger: Option<Ledger>,
    /// Every note is in it, also those of segments that are missing and may come back. Otherwise it is not saved.
    pub(super) is_whole: bool,
    /// Something was written before the ledger was known.
    missed: bool,
}

impl Live {
    /// The ledger of a log as it was read at the start.
    pub(super) fn new(ledger: Ledger, is_whole: bool) -> Live {
        Live {
            ledger: Some(ledger),
            is_whole,
            missed: false,
        }
    }

    /// Sets the ledger as it was at the start, when it becomes known.
    pub(super) fn set(&mut self, ledger: Ledger, is_whole: bool) {
        self.ledger = Some(ledger);
        self.is_whole = is_whole && !self.missed;
    }

    /// Applies a note that was written as the frame `number`.
    pub(super) fn apply(&mut self, number: Seq, payload: &[u8]) {
        self.missed |= self.ledger.is_none();
        if let Some(ledger) = &mut self.ledger
            && let Some(note) = decode(payload)
        {
            ledger.apply(note);
            ledger.pass(number);
        }
    }

    /// Applies a relocation that was written, with what its data begins with.
    pub(super) fn relocate(&mut self, moved: Moved, before_events: &[u8]) {
        self.missed |= self.ledger.is_none();
        if let Some(ledger) = &mut self.ledger
            && let Some((origins, _)) = decode_origins(before_events)
        {
            ledger.relocate_to(moved, origins);
        }
    }

    /// Records that a segment began.
    pub(super) fn begin(&mut self, segment: Seq) {
        if let Some(ledger) = &mut self.ledger {
            ledger.pass(segment);
        }
    }

    /// Encodes the ledger of a log whose oldest segment is `oldest`, if it is whole and small enough.
    pub(super) fn save(&mut self, oldest: Seq) -> Option<Vec<u8>> {
        let ledger = self.ledger.as_mut()?;
        ledger.forget_before(oldest);
        self.is_whole.then(|| ledger.save()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = Events> {
        prop_oneof![
            Just(Events::All),
            proptest::collection::btree_set(0u32..40, 0..20).prop_map(|set| {
                let mut runs = Vec::new();
                for event in set {
                    merge(&mut runs, std::slice::from_ref(&(event..event + 1)));
                }
                Events::Runs(runs)
            })
        ]
    }

    fn contents() -> impl Strategy<Value = Vec<Content>> {
        let content = (any::<u64>(), events());
        let content = content.prop_map(|(chunk, events)| Content { chunk, events });
        proptest::collection::vec(content, 0..4)
    }

    fn notes() -> impl Strategy<Value = Note> {
        prop_oneof![
            (
                any::<u64>(),
                ".{0,40}",
                ".{0,9}",
                any::<u64>(),
                contents(),
                proptest::option::of(".{0,40}")
            )
                .prop_map(|(batch, name, token, lines, contents, recipe)| {
                    Note::Begun {
                        batch,
                        name,
                        token,
                        lines,
                        contents,
                        recipe,
                    }
                }),
            (any::<u64>(), proptest::option::of(contents()))
                .prop_map(|(batch, delivered)| Note::Ended { batch, delivered }),
            contents().prop_map(|contents| Note::Done { contents }),
        ]
    }

    proptest! {
        #![proptest_config(crate::spool::tests::cases(256))]

        #[test]
        fn a_note_is_read_as_it_was_written_and_a_part_of_it_is_rejected(note in notes()) {
            let bytes = encode(&note);
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut]), None);
            }
            prop_assert_eq!(decode(&bytes), Some(note));
        }

        #[test]
        fn a_saved_ledger_is_restored_as_it_was(
            notes in proptest::collection::vec(notes(), 0..12),
            passed in proptest::collection::vec(any::<u64>(), 0..9),
            moved in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), contents()), 0..4),
        ) {
            let mut ledger = Ledger::default();
            for note in notes {
                ledger.apply(note);
            }
            for number in passed {
                ledger.pass(number);
            }
            for (chunk, segment, offset, origins) in moved {
                ledger.relocate_to(Moved { chunk, segment, offset }, origins);
            }
            // For the tool only.
            ledger.relocated.clear();
            let saved = ledger.save().unwrap();
            prop_assert_eq!(Ledger::restore(&saved), Some(ledger));
            for cut in 0..saved.len() {
                prop_assert_eq!(Ledger::restore(&saved[..cut]), None);
            }
        }

        #[test]
        fn numbers_are_a_set(
            steps in proptest::collection::vec((0u64..40, proptest::bool::weighted(0.1)), 0..80),
        ) {
            let (mut numbers, mut set) = (Numbers::default(), std::collections::BTreeSet::new());
            for (number, cuts) in steps {
                if cuts {
                    numbers.forget_before(number);
                    set = set.split_off(&number);
                } else {
                    prop_assert_eq!(numbers.insert(number), set.insert(number));
                }
                for number in 0..42 {
                    prop_assert_eq!(numbers.contains(number), set.contains(&number));
                }
                let ends: Vec<_> = numbers.ranges.iter().flat_map(|(a, b)| [*a, *b]).collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", ends);
            }
        }

        #[test]
        fn origins_are_read_as_they_were_written_and_the_events_follow_them(
            origins in contents(),
            events in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let encoded = encode_origins(&origins);
            for cut in 0..encoded.len() {
                prop_assert_eq!(decode_origins(&encoded[..cut]), None);
            }
            let data = [&encoded[..], &events].concat();
            let (read, before) = decode_origins(&data).unwrap();
            prop_assert_eq!(read, origins);
            prop_assert_eq!(&data[before as usize..], &events[..]);
        }

        #[test]
        fn arbitrary_bytes_are_rejected_or_decode_to_origins(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some((origins, before)) = decode_origins(&bytes) {
                prop_assert!(before as usize <= bytes.len());
                let (again, _) = decode_origins(&encode_origins(&origins)).unwrap();
                prop_assert_eq!(again, origins);
            }
        }

        #[test]
        fn arbitrary_bytes_are_rejected_or_decode_to_a_note(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(note) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&note)), Some(note));
            }
        }

        #[test]
        fn merged_runs_hold_the_same_events_sorted_and_non_adjacent(
            a in proptest::collection::vec((0u32..60, 0u32..9), 0..9),
            b in proptest::collection::vec((0u32..60, 0u32..9), 0..9),
        ) {
            let runs = |pairs: &[(u32, u32)]| -> Vec<Range<u32>> {
                pairs.iter().map(|(start, len)| *start..start + len).collect()
            };
            let (a, b) = (runs(&a), runs(&b));
            let mut united = Vec::new();
            merge(&mut united, &a);
            merge(&mut united, &b);
            prop_assert!(united.iter().all(|run| !run.is_empty()));
            prop_assert!(united.windows(2).all(|pair| pair[0].end < pair[1].start));
            for event in 0..80 {
                let is = |runs: &[Range<u32>]| runs.iter().any(|run| run.contains(&event));
                prop_assert_eq!(is(&united), is(&a) || is(&b));
            }
        }
    }

    #[test]
    fn notes_are_encoded_as_in_the_first_version() {
        for (note, bytes) in [
            (
                begun(5, &[all(1)]),
                "9601 05 a86f626a6563742d35 a174 03 91 92 01 c0",
            ),
            (
                Note::Ended {
                    batch: 256,
                    delivered: None,
                },
                "9302 cd0100 c0",
            ),
            (
                Note::Ended {
                    batch: 1,
                    delivered: Some(Vec::new()),
                },
                "9302 01 90",
            ),
            (
                Note::Done {
                    contents: vec![all(7), runs(1 << 32, &[(1, 3), (200, 70_000)])],
                },
                "9203 92 9207c0 92cf0000000100000000 94 01 03 ccc8 ce00011170",
            ),
        ] {
            let hex: String = encode(&note).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, bytes.replace(' ', ""), "{note:?}");
        }
    }

    #[test]
    fn origins_are_encoded_as_in_the_first_version_that_relocates() {
        let origins = [all(7), runs(8, &[(1, 3)])];
        let hex: String = encode_origins(&origins)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(hex, "09000000 92 9207c0 9208920103".replace(' ', ""));
    }

    #[test]
    fn a_relocated_chunk_settles_its_origins_as_a_note_does() {
        let mut ledger = Ledger::default();
        ledger.apply(Note::Done {
            contents: vec![runs(1, &[(0, 2)])],
        });
        ledger.relocate(vec![runs(1, &[(2, 3), (6, 8)]), all(2)]);
        let events = |runs: &[Range<u32>]| Some(Events::Runs(runs.to_vec()));
        assert_eq!(ledger.settled(1).cloned(), events(&[0..3, 6..8]));
        assert_eq!(ledger.settled(2), Some(&Events::All));
        assert_eq!(ledger.relocated(1).cloned(), events(&[2..3, 6..8]));
        assert_eq!(ledger.relocated(3), None);
    }

    fn runs(chunk: Seq, runs: &[(u32, u32)]) -> Content {
        let runs = runs.iter().map(|(start, end)| *start..*end).collect();
        let events = Events::Runs(runs);
        Content { chunk, events }
    }

    fn all(chunk: Seq) -> Content {
        let events = Events::All;
        Content { chunk, events }
    }

    fn begun(batch: u64, contents: &[Content]) -> Note {
        Note::Begun {
            batch,
            name: format!("object-{batch}"),
            token: "t".into(),
            lines: 3,
            contents: contents.to_vec(),
            recipe: None,
        }
    }

    /// Versions before recipes wrote and read arrays of six.
    #[test]
    fn a_note_without_a_recipe_has_the_bytes_of_earlier_versions() {
        let earlier: (u8, u64, &str, &str, u64, Parts) =
            (BEGUN, 4, "object-4", "t", 3, vec![(2, None)]);
        let bytes = encode(&begun(4, &[all(2)]));
        assert_eq!(bytes, rmp_serde::to_vec(&earlier).unwrap());
        assert_eq!(decode(&bytes), Some(begun(4, &[all(2)])));
        type Earlier = (
            Vec<Seq>,
            Parts,
            Vec<(u8, u64, String, String, u64, Parts)>,
            u64,
            Vec<(Seq, Seq, u64, Seq)>,
        );
        let begun_before = (BEGUN, 4, "object-4".into(), "t".into(), 3, vec![(2, None)]);
        let saved: Earlier = (Vec::new(), Vec::new(), vec![begun_before], 5, Vec::new());
        let restored = Ledger::restore(&rmp_serde::to_vec(&saved).unwrap()).unwrap();
        let mut ledger = Ledger::default();
        ledger.apply(begun(4, &[all(2)]));
        assert_eq!(restored, ledger);
    }

    #[test]
    fn a_batch_is_pending_until_it_ends_and_then_its_events_are_settled() {
        let mut ledger = Ledger::default();
        ledger.apply(begun(4, &[runs(1, &[(0, 2)]), all(2)]));
        ledger.apply(begun(5, &[runs(1, &[(2, 3)])]));
        ledger.apply(Note::Ended {
            batch: 4,
            delivered: None,
        });
        let numbers = |ledger: &Ledger| -> Vec<u64> {
            let pending = ledger.pending(|_| true);
            pending.iter().map(|pending| pending.batch).collect()
        };
        assert_eq!(numbers(&ledger), [5]);
        let Content {
            events: settled, ..
        } = runs(1, &[(0, 2)]);
        assert_eq!(ledger.settled(1), Some(&settled));
        assert_eq!(ledger.settled(2), Some(&Events::All));
        // The other batch ended with nothing delivered: its events belong to no batch any more.
        ledger.apply(Note::Ended {
            batch: 5,
            delivered: Some(Vec::new()),
        });
        assert_eq!(numbers(&ledger), [] as [u64; 0]);
        assert_eq!(ledger.settled(1), Some(&settled));
        assert_eq!(ledger.next_batch(), 6);
    }

    #[test]
    fn what_no_longer_exists_is_forgotten_and_a_ledger_that_is_too_large_is_not_saved() {
        let mut live = Live::new(Ledger::default(), true);
        let settled = |chunk| Note::Done {
            contents: vec![runs(chunk, &[(1, 3)])],
        };
        let most = MAX_SAVED as Seq / 8;
        for chunk in 1..=most + 1 {
            live.apply(0, &encode(&settled(chunk)));
        }
        live.apply(0, &encode(&begun(1, &[all(5)])));
        assert_eq!(live.save(1), None);
        let small = live.save(most).unwrap();
        let restored = Ledger::restore(&small).unwrap();
        assert_eq!(restored.settled.len(), 2);
        assert_eq!(restored.pending(|_| true), []);
        assert_eq!(restored.next_batch(), 2);
        live.is_whole = false;
        assert_eq!(live.save(most), None);
    }

    #[test]
    fn a_batch_of_finished_chunks_only_is_not_pending() {
        let mut ledger = Ledger::default();
        ledger.apply(begun(1, &[all(1), all(2)]));
        assert_eq!(ledger.pending(|chunk| chunk == 2).len(), 1);
        assert_eq!(ledger.pending(|chunk| chunk == 3).len(), 0);
    }
}
