//! Notes as bytes, and what all notes of a log amount to.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use rmp::decode::{self, RmpRead as _};
use rmp::encode;

use super::{Content, Events, Note, Pending, Seq};

const BEGUN: u64 = 1;
const ENDED: u64 = 2;
const DONE: u64 = 3;

/// A note's payload: msgpack, an array of the note's kind and its fields.
pub(super) fn encode(note: &Note) -> Vec<u8> {
    let mut out = Vec::new();
    match note {
        Note::Begun {
            batch,
            name,
            token,
            lines,
            contents,
        } => {
            array(&mut out, 6);
            uint(&mut out, BEGUN);
            uint(&mut out, *batch);
            text(&mut out, name);
            text(&mut out, token);
            uint(&mut out, *lines);
            put_contents(&mut out, contents);
        }
        Note::Ended { batch, delivered } => {
            array(&mut out, 3);
            uint(&mut out, ENDED);
            uint(&mut out, *batch);
            match delivered {
                Some(contents) => put_contents(&mut out, contents),
                None => nil(&mut out),
            }
        }
        Note::Done { contents } => {
            array(&mut out, 2);
            uint(&mut out, DONE);
            put_contents(&mut out, contents);
        }
    }
    out
}

const INFALLIBLE: &str = "a vector takes all bytes";

fn array(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("a note has fewer than 2^32 parts");
    encode::write_array_len(out, len).expect(INFALLIBLE);
}

fn uint(out: &mut Vec<u8>, number: u64) {
    encode::write_uint(out, number).expect(INFALLIBLE);
}

fn text(out: &mut Vec<u8>, text: &str) {
    encode::write_str(out, text).expect(INFALLIBLE);
}

fn nil(out: &mut Vec<u8>) {
    encode::write_nil(out).expect(INFALLIBLE);
}

fn put_contents(out: &mut Vec<u8>, contents: &[Content]) {
    array(out, contents.len());
    for content in contents {
        array(out, 2);
        uint(out, content.chunk);
        match &content.events {
            Events::All => nil(out),
            Events::Runs(runs) => {
                array(out, runs.len() * 2);
                for run in runs {
                    uint(out, run.start.into());
                    uint(out, run.end.into());
                }
            }
        }
    }
}

/// The note in a payload, if it is one that this version writes.
pub(super) fn decode(payload: &[u8]) -> Option<Note> {
    let mut reader = Reader(payload);
    let fields = reader.array()?;
    let note = match (reader.uint()?, fields) {
        (BEGUN, 6) => Note::Begun {
            batch: reader.uint()?,
            name: reader.text()?,
            token: reader.text()?,
            lines: reader.uint()?,
            contents: reader.contents()?,
        },
        (ENDED, 3) => Note::Ended {
            batch: reader.uint()?,
            delivered: match reader.nil() {
                true => None,
                false => Some(reader.contents()?),
            },
        },
        (DONE, 2) => Note::Done {
            contents: reader.contents()?,
        },
        _ => return None,
    };
    reader.0.is_empty().then_some(note)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn uint<T: TryFrom<u64>>(&mut self) -> Option<T> {
        let number: u64 = decode::read_int(&mut self.0).ok()?;
        number.try_into().ok()
    }

    fn array(&mut self) -> Option<usize> {
        let len = decode::read_array_len(&mut self.0).ok()? as usize;
        // Every part has a byte at least: nothing is reserved for what cannot be there.
        (len <= self.0.len()).then_some(len)
    }

    fn text(&mut self) -> Option<String> {
        let len = decode::read_str_len(&mut self.0).ok()? as usize;
        if len > self.0.len() {
            return None;
        }
        let mut bytes = vec![0; len];
        self.0.read_exact_buf(&mut bytes).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// Whether a nil stands here; it is passed over.
    fn nil(&mut self) -> bool {
        let mut ahead = self.0;
        let nil = decode::read_nil(&mut ahead).is_ok();
        if nil {
            self.0 = ahead;
        }
        nil
    }

    fn contents(&mut self) -> Option<Vec<Content>> {
        let len = self.array()?;
        (0..len).map(|_| self.content()).collect()
    }

    fn content(&mut self) -> Option<Content> {
        if self.array()? != 2 {
            return None;
        }
        let chunk = self.uint()?;
        if self.nil() {
            let events = Events::All;
            return Some(Content { chunk, events });
        }
        let bounds = self.array()?;
        let runs: Option<Vec<_>> = (0..bounds / 2)
            .map(|_| Some(self.uint()?..self.uint()?))
            .collect();
        let events = Events::Runs(runs?);
        (bounds % 2 == 0).then_some(Content { chunk, events })
    }
}

/// Adds `more` to runs that are sorted, not touching and not empty, and keeps them so.
fn unite(runs: &mut Vec<Range<u32>>, more: &[Range<u32>]) {
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

/// What the notes of a log say, taken in their order.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pending: BTreeMap<u64, Pending>,
    settled: HashMap<Seq, Events>,
    next_batch: u64,
}

impl Ledger {
    /// A segment begins that says so of the batches before it.
    pub(super) fn batches_before(&mut self, next_batch: u64) {
        self.next_batch = self.next_batch.max(next_batch);
    }

    pub(super) fn take(&mut self, note: Note) {
        match note {
            Note::Begun {
                batch,
                name,
                token,
                lines,
                contents,
            } => {
                self.batches_before(batch.saturating_add(1));
                let pending = Pending {
                    batch,
                    name,
                    token,
                    lines,
                    contents,
                };
                self.pending.insert(batch, pending);
            }
            Note::Ended { batch, delivered } => {
                self.batches_before(batch.saturating_add(1));
                let begun = self.pending.remove(&batch);
                let all = begun.map(|pending| pending.contents).unwrap_or_default();
                self.settle(delivered.unwrap_or(all));
            }
            Note::Done { contents } => self.settle(contents),
        }
    }

    fn settle(&mut self, contents: Vec<Content>) {
        for Content { chunk, events } in contents {
            let settled = self.settled.entry(chunk);
            let settled = settled.or_insert_with(|| Events::Runs(Vec::new()));
            match (settled, &events) {
                (Events::All, _) => {}
                (Events::Runs(runs), Events::Runs(more)) => unite(runs, more),
                (settled, Events::All) => *settled = Events::All,
            }
        }
    }

    /// What is settled of a chunk.
    pub(super) fn settled(&self, chunk: Seq) -> Option<&Events> {
        self.settled.get(&chunk)
    }

    /// Greater than every batch number seen.
    pub(super) fn next_batch(&self) -> u64 {
        self.next_batch
    }

    /// Batches begun and not ended that have something of a chunk for which `matters` is true. A batch
    /// of finished chunks only has nothing left to lose.
    pub(super) fn pending(&self, matters: impl Fn(Seq) -> bool) -> Vec<Pending> {
        let mattering =
            |pending: &&Pending| pending.contents.iter().any(|part| matters(part.chunk));
        self.pending.values().filter(mattering).cloned().collect()
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
                    unite(&mut runs, std::slice::from_ref(&(event..event + 1)));
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
            (any::<u64>(), ".{0,40}", ".{0,9}", any::<u64>(), contents()).prop_map(
                |(batch, name, token, lines, contents)| Note::Begun {
                    batch,
                    name,
                    token,
                    lines,
                    contents
                }
            ),
            (any::<u64>(), proptest::option::of(contents()))
                .prop_map(|(batch, delivered)| Note::Ended { batch, delivered }),
            contents().prop_map(|contents| Note::Done { contents }),
        ]
    }

    proptest! {
        #![proptest_config(crate::spool::tests::cases(256))]

        #[test]
        fn a_note_is_read_as_it_was_written_and_no_part_of_it_is_one(note in notes()) {
            let bytes = encode(&note);
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut]), None);
            }
            prop_assert_eq!(decode(&bytes), Some(note));
        }

        #[test]
        fn bytes_that_are_no_note_are_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(note) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&note)), Some(note));
            }
        }

        #[test]
        fn runs_unite_to_the_same_events_sorted_and_apart(
            a in proptest::collection::vec((0u32..60, 0u32..9), 0..9),
            b in proptest::collection::vec((0u32..60, 0u32..9), 0..9),
        ) {
            let runs = |pairs: &[(u32, u32)]| -> Vec<Range<u32>> {
                pairs.iter().map(|(start, len)| *start..start + len).collect()
            };
            let (a, b) = (runs(&a), runs(&b));
            let mut united = Vec::new();
            unite(&mut united, &a);
            unite(&mut united, &b);
            prop_assert!(united.iter().all(|run| !run.is_empty()));
            prop_assert!(united.windows(2).all(|pair| pair[0].end < pair[1].start));
            for event in 0..80 {
                let is = |runs: &[Range<u32>]| runs.iter().any(|run| run.contains(&event));
                prop_assert_eq!(is(&united), is(&a) || is(&b));
            }
        }
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
        }
    }

    #[test]
    fn a_batch_is_pending_until_it_ends_and_then_its_events_are_settled() {
        let mut ledger = Ledger::default();
        ledger.take(begun(4, &[runs(1, &[(0, 2)]), all(2)]));
        ledger.take(begun(5, &[runs(1, &[(2, 3)])]));
        ledger.take(Note::Ended {
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
        // Of the other, a part was delivered; the rest is nobody's.
        ledger.take(Note::Ended {
            batch: 5,
            delivered: Some(Vec::new()),
        });
        assert_eq!(numbers(&ledger), [] as [u64; 0]);
        assert_eq!(ledger.settled(1), Some(&settled));
        assert_eq!(ledger.next_batch(), 6);
    }

    #[test]
    fn a_batch_of_finished_chunks_only_is_not_pending() {
        let mut ledger = Ledger::default();
        ledger.take(begun(1, &[all(1), all(2)]));
        assert_eq!(ledger.pending(|chunk| chunk == 2).len(), 1);
        assert_eq!(ledger.pending(|chunk| chunk == 3).len(), 0);
    }
}
