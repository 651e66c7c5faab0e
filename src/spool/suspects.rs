//! The record of the chunk being worked on, in a file that outlives the process.
//!
//! A chunk whose encoding ends the process, out of memory or by an abort, would end every later run too, and hold back all
//! younger chunks for ever. So a chunk's number is written into the file `suspects` before its bytes are worked on, and
//! removed afterwards. If the process ends in between, the next run knows at which chunk:
//!
//! - A chunk at which a process ended is a *suspect*. Other chunks go first; once the process has run for some seconds, the
//!   suspect is worked on alone. If the same work succeeds, it is acquitted: the first end was a coincidence.
//! - A suspect at which the process ends again, while it was alone, is *condemned*: it is not read again but set aside.
//!
//! The file is not synced: it is about the end of a process, which the page cache survives, and damage by a power cut is
//! harmless. Nothing depends on it: if it cannot be read, a bad chunk has to end the process twice more to be found; if it
//! cannot be written, none is found. Versions that do not know the file leave it alone.
//!
//! # Format
//!
//! 512 bytes, written at once:
//!
//! ```text
//!  0  magic     f5 'S' 'u' 0a
//!  4  checksum  CRC-32 of bytes 8 to 511
//!  8  version   1
//! 12  zero
//! 16  spool     random id of the spool, 64 bits
//! 24  zero
//! 32  15 entries of 32 bytes: the chunk being worked on, then suspects
//!       0  chunk  number, 64 bits
//!       8  work   0 no entry, 1 deliver, 2 rebuild, 3 letters
//!      12  ends   of processes at this work; for the chunk being worked on: the count when the work began
//!      16  id     of the chunk, 16 bytes
//! ```
//!
//! Numbers are little-endian and have 32 bits unless stated otherwise.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Seq;
use super::disk::{Disk, File};
use super::frame::{Fields, SUSPECTS, crc};
use crate::ids::ChunkId;

/// The size of the file, in bytes.
const BYTES: usize = 512;
const MAGIC: [u8; 4] = [0xf5, b'S', b'u', 0x0a];
const VERSION: u32 = 1;
/// The length of the header, in bytes.
const HEADER: usize = 32;
/// The length of an entry, in bytes.
const ENTRY: usize = 32;
/// The maximum number of suspects, given by the size of the file. Each end of a process adds at most one.
const MAX_SUSPECTS: usize = (BYTES - HEADER) / ENTRY - 1;
/// The number of ends of a process that condemn a chunk.
const FATAL: u32 = 2;

/// A kind of work on a chunk's bytes. One kind may end the process where another does not, so success acquits a chunk only
/// of its own kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reading and encoding, to be sent.
    Deliver,
    /// Encoding again, for an object begun before a restart.
    Rebuild,
    /// Encoding again, for dead letters that had to wait.
    Letters,
}

/// A chunk at which a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The chunk's number.
    pub chunk: Seq,
    /// The work during which the process ended.
    pub work: Work,
    /// The number of times a process ended at it. Except for the first time it was alone.
    pub ends: u32,
    pub(super) id: ChunkId,
}

impl Suspect {
    /// Whether the chunk must be set aside, and not read again.
    pub fn is_condemned(&self) -> bool {
        self.ends >= FATAL
    }
}

/// The contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// The chunk being worked on. Its `ends` are its previous ones if it is alone, otherwise 0.
    under_way: Option<Suspect>,
    /// At most [`MAX_SUSPECTS`], each of a different chunk.
    suspects: Vec<Suspect>,
}

impl Record {
    pub(super) fn encode(&self, spool: u64) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&spool.to_le_bytes());
        let suspects = self.suspects.iter().map(Some);
        let entries = std::iter::once(self.under_way.as_ref()).chain(suspects);
        for (entry, at) in entries.zip(bytes[HEADER..].chunks_exact_mut(ENTRY)) {
            let Some(entry) = entry else { continue };
            let work: u32 = match entry.work {
                Work::Deliver => 1,
                Work::Rebuild => 2,
                Work::Letters => 3,
            };
            at[..8].copy_from_slice(&entry.chunk.to_le_bytes());
            at[8..12].copy_from_slice(&work.to_le_bytes());
            at[12..16].copy_from_slice(&entry.ends.to_le_bytes());
            at[16..].copy_from_slice(&entry.id);
        }
        let crc = crc(&[&bytes[8..]]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the file of a spool. Returns `None` if it is invalid, or of another version or spool.
    pub(super) fn decode(bytes: &[u8], spool: u64) -> Option<Record> {
        let bytes = bytes.get(..BYTES)?;
        let mut fields = Fields(bytes.strip_prefix(&MAGIC)?);
        if fields.u32()? != crc(&[&bytes[8..]]) || fields.u32()? != VERSION {
            return None;
        }
        fields.u32()?;
        if fields.u64()? != spool {
            return None;
        }
        let mut entries = bytes[HEADER..].chunks_exact(ENTRY).map(|entry| {
            let mut fields = Fields(entry);
            let chunk = fields.u64()?;
            let work = match fields.u32()? {
                1 => Work::Deliver,
                2 => Work::Rebuild,
                3 => Work::Letters,
                _ => return None,
            };
            Some(Suspect {
                chunk,
                work,
                ends: fields.u32()?.min(FATAL),
                id: fields.take()?,
            })
        });
        let mut record = Record {
            under_way: entries.next().flatten(),
            suspects: Vec::new(),
        };
        for suspect in entries.flatten().filter(|suspect| suspect.ends > 0) {
            if record.find(suspect.chunk).is_none() {
                record.suspects.push(suspect);
            }
        }
        Some(record)
    }

    fn find(&self, chunk: Seq) -> Option<&Suspect> {
        self.suspects.iter().find(|suspect| suspect.chunk == chunk)
    }

    fn condemns(&self, chunk: Seq) -> bool {
        self.find(chunk).is_some_and(Suspect::is_condemned)
    }

    /// Records that work on a chunk begins, and that all other work has ended.
    fn begin(&mut self, chunk: Seq, id: ChunkId, work: Work, alone: bool) {
        let known = self.find(chunk).filter(|known| known.work == work && alone);
        let ends = known.map_or(0, |known| known.ends);
        // A condemned chunk is not read any more, so it cannot end the process.
        let under_way = (!self.condemns(chunk)).then_some(Suspect {
            chunk,
            work,
            ends,
            id,
        });
        self.under_way = under_way;
    }

    fn end(&mut self) {
        self.under_way = None;
    }

    /// Records that the process survived this work on a chunk.
    fn acquit(&mut self, chunk: Seq, work: Work) {
        self.suspects
            .retain(|suspect| suspect.chunk != chunk || suspect.work != work);
        if let Some(under_way) = &mut self.under_way
            && (under_way.chunk, under_way.work) == (chunk, work)
        {
            under_way.ends = 0;
        }
    }

    /// Starts a new run: the chunk being worked on becomes a suspect, and chunks that the spool no longer holds are
    /// forgotten.
    fn resume(&mut self, holds: impl Fn(&Suspect) -> bool) {
        if let Some(found) = self.under_way.take() {
            self.suspects.retain(|suspect| suspect.chunk != found.chunk);
            self.suspects.push(Suspect {
                ends: (found.ends + 1).min(FATAL),
                ..found
            });
        }
        self.suspects.retain(holds);
        let excess = self.suspects.len().saturating_sub(MAX_SUSPECTS);
        self.suspects.drain(..excess);
    }

    /// The chunk being worked on, or that was when the process ended.
    pub(super) fn under_way(&self) -> Option<Suspect> {
        self.under_way
    }

    pub(super) fn suspects(&self) -> &[Suspect] {
        &self.suspects
    }
}

/// Reads the file of a directory. The error says why it is unusable.
pub(super) fn read(disk: &dyn Disk, spool: u64) -> Result<Record, String> {
    let mut bytes = Vec::new();
    let file = disk.open(SUSPECTS);
    match file.and_then(|file| file.read_at(&mut bytes, BYTES, 0)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Record::default()),
        Err(error) => return Err(error.to_string()),
        // Created just before the process or the machine stopped.
        Ok(()) if bytes.is_empty() => return Ok(Record::default()),
        Ok(()) => {}
    }
    let words = "it is damaged, or belongs to another version or another spool";
    Record::decode(&bytes, spool).ok_or_else(|| words.to_owned())
}

/// The record of a running spool, and its file.
pub(super) struct Suspects {
    disk: Arc<dyn Disk>,
    spool: u64,
    state: Mutex<State>,
}

struct State {
    record: Record,
    /// Open since the first write.
    file: Option<Box<dyn File>>,
    /// The warning that it cannot be written was given.
    warned: bool,
    /// The record of earlier runs was taken over.
    is_resumed: bool,
    closed: bool,
}

impl Suspects {
    /// Takes the record of an earlier run, to be [resumed](Suspects::resume).
    pub(super) fn new(disk: &Arc<dyn Disk>, spool: u64, left: Record) -> Suspects {
        Suspects {
            disk: Arc::clone(disk),
            spool,
            state: Mutex::new(State {
                record: left,
                file: None,
                warned: false,
                is_resumed: false,
                closed: false,
            }),
        }
    }

    /// Continues from the record of an earlier run, before any work begins. The string, if any, is a warning.
    pub(super) fn resume(&self, holds: impl Fn(&Suspect) -> bool) -> Option<String> {
        self.state().is_resumed = true;
        self.change(|record| record.resume(holds))
    }

    /// The chunks that the record of an earlier run names.
    pub(super) fn named(&self) -> Vec<Seq> {
        let state = self.state();
        let under_way = state.record.under_way.iter();
        let named = under_way.chain(&state.record.suspects);
        named.map(|suspect| suspect.chunk).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with this lock")
    }

    /// Changes the record, and writes the file if the record differs. Returns a warning the first time that fails. Blocks on
    /// the disk.
    fn change(&self, change: impl FnOnce(&mut Record)) -> Option<String> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let before = state.record.clone();
        change(&mut state.record);
        if state.record == before {
            return None;
        }
        let error = self.write(&mut state).err()?;
        let warned = std::mem::replace(&mut state.warned, true);
        (!warned).then(|| {
            format!(
                "{SUSPECTS} cannot be written: {error}. Until it can, a chunk that ends the process again and again is not \
                 set aside"
            )
        })
    }

    fn write(&self, state: &mut State) -> io::Result<()> {
        let file = match state.file.take() {
            Some(file) => file,
            None => match self.disk.create(SUSPECTS) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    self.disk.open(SUSPECTS)?
                }
                created => created?,
            },
        };
        let bytes = state.record.encode(self.spool);
        file.write_at(&[IoSlice::new(&bytes)], 0)?;
        state.file = Some(file);
        Ok(())
    }

    pub(super) fn begin(&self, chunk: Seq, id: ChunkId, work: Work, alone: bool) -> Option<String> {
        self.change(|record| record.begin(chunk, id, work, alone))
    }

    pub(super) fn end(&self) -> Option<String> {
        self.change(Record::end)
    }

    pub(super) fn acquit(&self, chunk: Seq, work: Work) -> Option<String> {
        self.change(|record| record.acquit(chunk, work))
    }

    pub(super) fn condemns(&self, chunk: Seq) -> bool {
        self.state().record.condemns(chunk)
    }

    pub(super) fn all(&self) -> Vec<Suspect> {
        self.state().record.suspects.clone()
    }

    /// Has the file recreated if it was removed.
    pub(super) fn look(&self) {
        let mut state = self.state();
        let is_there = |file: &dyn File| self.disk.id(SUSPECTS).is_ok_and(|id| id == file.id());
        if !state.file.as_deref().is_some_and(is_there) {
            state.file = None;
        }
    }

    /// Ends the run: later changes are ignored.
    pub(super) fn close(&self) {
        // Before it is resumed, what ended the last run is still recorded as under way.
        if self.state().is_resumed {
            let _ = self.end();
        }
        self.state().closed = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::cases;
    use super::*;

    const SPOOL: u64 = 7;

    fn id(chunk: Seq) -> ChunkId {
        let mut id = [0xab; 16];
        id[..8].copy_from_slice(&chunk.to_le_bytes());
        id
    }

    fn work() -> impl Strategy<Value = Work> {
        prop_oneof![
            Just(Work::Deliver),
            Just(Work::Rebuild),
            Just(Work::Letters)
        ]
    }

    fn begin(record: &mut Record, chunk: Seq, alone: bool) {
        record.begin(chunk, id(chunk), Work::Deliver, alone);
    }

    fn ends(record: &Record) -> Vec<(Seq, u32)> {
        let suspects = record.suspects.iter();
        suspects
            .map(|suspect| (suspect.chunk, suspect.ends))
            .collect()
    }

    /// A process ends, and another begins that knows only the file.
    fn end(record: &mut Record) {
        *record = Record::decode(&record.encode(SPOOL), SPOOL).expect("what was written");
        record.resume(|_| true);
    }

    #[test]
    fn a_chunk_at_which_two_processes_end_is_condemned_if_it_was_alone() {
        let mut record = Record::default();
        begin(&mut record, 3, false);
        end(&mut record);
        assert_eq!(ends(&record), [(3, 1)]);
        // Not alone: that proves nothing.
        begin(&mut record, 3, false);
        end(&mut record);
        assert_eq!(ends(&record), [(3, 1)]);
        // No work was begun.
        end(&mut record);
        assert_eq!(ends(&record), [(3, 1)]);
        begin(&mut record, 3, true);
        assert!(!record.condemns(3));
        end(&mut record);
        assert!(record.condemns(3));
        // Setting it aside may be interrupted any number of times.
        begin(&mut record, 3, true);
        end(&mut record);
        begin(&mut record, 3, false);
        end(&mut record);
        assert_eq!(ends(&record), [(3, 2)]);
        record.resume(|_| false);
        assert_eq!(record, Record::default());
    }

    #[test]
    fn the_same_work_done_acquits_and_other_work_does_not() {
        let mut record = Record::default();
        record.begin(3, id(3), Work::Letters, false);
        end(&mut record);
        record.begin(3, id(3), Work::Deliver, true);
        record.acquit(3, Work::Deliver);
        assert_eq!(ends(&record), [(3, 1)]);
        // An end at other work restarts the count.
        let mut other = record.clone();
        other.begin(3, id(3), Work::Deliver, true);
        end(&mut other);
        assert_eq!(ends(&other), [(3, 1)]);
        record.begin(3, id(3), Work::Letters, true);
        record.acquit(3, Work::Letters);
        record.end();
        assert_eq!(record, Record::default());
    }

    #[test]
    fn an_end_while_idle_blames_no_chunk_and_the_next_chunk_replaces_the_last() {
        let mut record = Record::default();
        begin(&mut record, 3, false);
        begin(&mut record, 4, false);
        end(&mut record);
        assert_eq!(ends(&record), [(4, 1)]);
        begin(&mut record, 5, false);
        record.end();
        end(&mut record);
        assert_eq!(ends(&record), [(4, 1)]);
    }

    #[test]
    fn the_oldest_suspect_makes_room() {
        let mut record = Record::default();
        for chunk in 1..=20 {
            begin(&mut record, chunk, false);
            end(&mut record);
        }
        let state = 20 - MAX_SUSPECTS as Seq + 1..=20;
        assert_eq!(
            ends(&record),
            state.map(|chunk| (chunk, 1)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_flipped_bit_a_cut_and_another_spool_are_detected() {
        let mut record = Record::default();
        begin(&mut record, 3, false);
        end(&mut record);
        begin(&mut record, 9, false);
        let bytes = record.encode(SPOOL);
        assert_eq!(Record::decode(&bytes, SPOOL), Some(record));
        assert_eq!(Record::decode(&bytes, SPOOL + 1), None);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&flipped, SPOOL), None, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..cut], SPOOL), None, "cut at {cut}");
        }
    }

    proptest! {
        #![proptest_config(cases(256))]

        /// Arbitrary bytes, even with a valid checksum, decode to a record within its limits that can be written and read
        /// again.
        #[test]
        fn any_bytes_are_harmless(
            mut bytes in prop::collection::vec(any::<u8>(), 0..BYTES + 100),
            small in prop::collection::vec((0..BYTES, 0u8..4), 0..200),
            sealed in any::<bool>(),
        ) {
            if sealed {
                bytes.resize(BYTES, 0);
                for (at, byte) in small {
                    bytes[at] = byte;
                }
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                bytes[16..24].copy_from_slice(&SPOOL.to_le_bytes());
                let crc = crc(&[&bytes[8..]]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            let read = Record::decode(&bytes, SPOOL);
            prop_assert_eq!(read.is_some(), sealed);
            let Some(mut record) = read else { return Ok(()) };
            prop_assert!(record.suspects.len() <= MAX_SUSPECTS);
            prop_assert_eq!(Record::decode(&record.encode(SPOOL), SPOOL), Some(record.clone()));
            record.resume(|_| true);
            prop_assert!(record.suspects.len() <= MAX_SUSPECTS);
            prop_assert!(record.suspects.iter().all(|it| (1..=FATAL).contains(&it.ends)));
            record.resume(|_| false);
            prop_assert_eq!(record, Record::default());
        }

        /// In any order of steps, a chunk is condemned only if a process ended at it alone, after one had ended at the same
        /// work and it was not acquitted since.
        #[test]
        fn only_two_ends_at_the_same_work_condemn(
            steps in prop::collection::vec((0..6u8, 1..5u64, work(), any::<bool>()), 0..200),
        ) {
            let mut record = Record::default();
            // A reference model: ends by chunk and work, and the work under way.
            let mut blamed: std::collections::BTreeMap<Seq, (Work, u32)> = Default::default();
            let mut under_way = None;
            for (step, chunk, work, alone) in steps {
                match step {
                    0..3 => {
                        record.begin(chunk, id(chunk), work, alone);
                        let condemned = blamed.get(&chunk).is_some_and(|(_, ends)| *ends == 2);
                        under_way = (!condemned).then_some((chunk, work, alone));
                    }
                    3 => {
                        record.end();
                        under_way = None;
                    }
                    4 => {
                        // Work on a condemned chunk cannot succeed.
                        if !record.condemns(chunk) {
                            record.acquit(chunk, work);
                            blamed.retain(|of, (at, _)| *of != chunk || *at != work);
                        }
                        record.end();
                        under_way = None;
                    }
                    _ => {
                        end(&mut record);
                        if let Some((chunk, work, alone)) = under_way.take() {
                            let again = alone
                                && blamed.get(&chunk).is_some_and(|(at, ends)| *at == work && *ends == 1);
                            blamed.insert(chunk, (work, if again { 2 } else { 1 }));
                        }
                    }
                }
                let mut actual: Vec<_> = record.suspects.iter().map(|it| (it.chunk, (it.work, it.ends))).collect();
                actual.sort_by_key(|(chunk, _)| *chunk);
                prop_assert_eq!(actual, blamed.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }
}
