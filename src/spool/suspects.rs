//! Which chunk is being worked on, in a file that outlives the process.
//!
//! A chunk whose encoding ends the process, for want of memory or by an abort, would end every start, and hold back all
//! chunks behind it for ever. So whoever is about to work on a chunk's bytes has its number written into the file
//! `suspects` before, and taken out behind. The next run reads there what the last one died of, if it died of a chunk:
//!
//! - A chunk at which a process ended is a *suspect*. The others go first; when the process has lived for some seconds, it
//!   is worked on alone. What a chance kill leaves behind is acquitted by that, when the same work is done.
//! - A suspect at which the process ends once more, while it was alone, is *condemned*: it is not read again but set aside.
//!
//! The file is not synced. It is about the end of a process, which the page cache outlives; what a power cut makes of it is
//! harmless. Nothing depends on it: where it cannot be read, a chunk needs two more ends of a process to be found
//! out; where it cannot be written, none is. Versions that do not know the file leave it alone.
//!
//! # Format
//!
//! 512 bytes, which one write puts there:
//!
//! ```text
//!  0  magic     f5 'S' 'u' 0a
//!  4  checksum  CRC-32 of bytes 8 to 511
//!  8  version   1
//! 12  zero
//! 16  spool     the spool's own random number, 64 bits
//! 24  zero
//! 32  15 entries of 32 bytes: the chunk that is being worked on, then suspects
//!       0  chunk  its number, 64 bits
//!       8  work   0 no entry, 1 deliver, 2 rebuild, 3 letters
//!      12  ends   of processes at this work: of a suspect, how many there were; else what it counted as when it began
//!      16  id     the chunk's, 16 bytes
//! ```
//!
//! All numbers are little-endian; where nothing is said they have 32 bits.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Seq;
use super::disk::{Disk, File};
use super::frame::{Fields, SUSPECTS, crc};
use crate::ids::ChunkId;

/// Bytes of the file.
const BYTES: usize = 512;
const MAGIC: [u8; 4] = [0xf5, b'S', b'u', 0x0a];
const VERSION: u32 = 1;
/// Bytes before the entries.
const HEADER: usize = 32;
/// Bytes of an entry.
const ENTRY: usize = 32;
/// Suspects that are remembered: what there is room for. Each end of a process makes one at most.
const MOST: usize = (BYTES - HEADER) / ENTRY - 1;
/// So many ends of a process condemn a chunk.
const FATAL: u32 = 2;

/// What is done with a chunk's bytes. What ends the process at one kind of work may pass another, so that acquits of
/// its own kind only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read and encode it, to be sent.
    Deliver,
    /// Encode it again for an object that had begun before a restart.
    Rebuild,
    /// Encode it again for dead letters that had to wait.
    Letters,
}

/// A chunk at which a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Its number.
    pub chunk: Seq,
    /// What was done with it.
    pub work: Work,
    /// How often a process ended meanwhile: each time but the first, it was alone.
    pub ends: u32,
    pub(super) id: ChunkId,
}

impl Suspect {
    /// Whether it is to be set aside, and not read again.
    pub fn is_condemned(&self) -> bool {
        self.ends >= FATAL
    }
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// The chunk that is being worked on. Its ends: those that it has already, where this is done alone; else 0.
    under_way: Option<Suspect>,
    /// At most [`MOST`], each of another chunk.
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

    /// What some bytes say of a spool. `None`: they are no such file, or another version's or spool's.
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

    /// Work on a chunk begins, and with that, all other work is over.
    fn begin(&mut self, chunk: Seq, id: ChunkId, work: Work, alone: bool) {
        let known = self.find(chunk).filter(|known| known.work == work && alone);
        let ends = known.map_or(0, |known| known.ends);
        // It is not read any more, and nothing that happens now is its fault.
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

    /// This work on a chunk was done, and the process lives.
    fn acquit(&mut self, chunk: Seq, work: Work) {
        self.suspects
            .retain(|suspect| suspect.chunk != chunk || suspect.work != work);
        if let Some(under_way) = &mut self.under_way
            && (under_way.chunk, under_way.work) == (chunk, work)
        {
            under_way.ends = 0;
        }
    }

    /// A new run begins. What was being worked on is what the last one ended at; what the spool does not hold any more is
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
        let excess = self.suspects.len().saturating_sub(MOST);
        self.suspects.drain(..excess);
    }

    /// The chunk that is being worked on, or was when the process ended.
    pub(super) fn under_way(&self) -> Option<Suspect> {
        self.under_way
    }

    pub(super) fn suspects(&self) -> &[Suspect] {
        &self.suspects
    }
}

/// What is in the file of a directory. An error says why nothing of it can be known.
pub(super) fn read(disk: &dyn Disk, spool: u64) -> Result<Record, String> {
    let mut bytes = Vec::new();
    let file = disk.open(SUSPECTS);
    match file.and_then(|file| file.read_at(&mut bytes, BYTES, 0)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Record::default()),
        Err(error) => return Err(error.to_string()),
        // It was made, and the process or the machine stopped.
        Ok(()) if bytes.is_empty() => return Ok(Record::default()),
        Ok(()) => {}
    }
    let words = "it is torn, or another version's or another spool's";
    Record::decode(&bytes, spool).ok_or_else(|| words.to_owned())
}

/// The record of a spool at work, and its file.
pub(super) struct Suspects {
    disk: Arc<dyn Disk>,
    spool: u64,
    kept: Mutex<Kept>,
}

struct Kept {
    record: Record,
    /// Open since it was first written to.
    file: Option<Box<dyn File>>,
    /// It was said that it cannot be written.
    said: bool,
    closed: bool,
}

impl Suspects {
    /// Goes on with what an earlier run left. The words, if there are any, are a warning.
    pub(super) fn resume(
        disk: &Arc<dyn Disk>,
        spool: u64,
        left: Record,
        holds: impl Fn(&Suspect) -> bool,
    ) -> (Suspects, Option<String>) {
        let suspects = Suspects {
            disk: Arc::clone(disk),
            spool,
            kept: Mutex::new(Kept {
                record: left,
                file: None,
                said: false,
                closed: false,
            }),
        };
        let words = suspects.change(|record| record.resume(holds));
        (suspects, words)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("nothing panics with this lock")
    }

    /// Changes the record, and the file where that changed anything. Gives what is to be said: that this cannot be done,
    /// once. Blocks on the disk.
    fn change(&self, change: impl FnOnce(&mut Record)) -> Option<String> {
        let mut kept = self.kept();
        if kept.closed {
            return None;
        }
        let before = kept.record.clone();
        change(&mut kept.record);
        if kept.record == before {
            return None;
        }
        let error = self.write(&mut kept).err()?;
        let said = std::mem::replace(&mut kept.said, true);
        (!said).then(|| {
            format!(
                "{SUSPECTS} cannot be written: {error}. Should a chunk end the process again and again, it is not found out and \
                 set aside"
            )
        })
    }

    fn write(&self, kept: &mut Kept) -> io::Result<()> {
        let file = match kept.file.take() {
            Some(file) => file,
            None => match self.disk.create(SUSPECTS) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    self.disk.open(SUSPECTS)?
                }
                created => created?,
            },
        };
        let bytes = kept.record.encode(self.spool);
        file.write_at(&[IoSlice::new(&bytes)], 0)?;
        kept.file = Some(file);
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
        self.kept().record.condemns(chunk)
    }

    pub(super) fn all(&self) -> Vec<Suspect> {
        self.kept().record.suspects.clone()
    }

    /// The file is made again where somebody took it away.
    pub(super) fn look(&self) {
        let mut kept = self.kept();
        let is_there = |file: &dyn File| self.disk.id(SUSPECTS).is_ok_and(|id| id == file.id());
        if !kept.file.as_deref().is_some_and(is_there) {
            kept.file = None;
        }
    }

    /// The run ends: from now on nothing is worked on.
    pub(super) fn close(&self) {
        let _ = self.end();
        self.kept().closed = true;
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

    /// A process ends, and another begins; what it knows is what the file says.
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
        // Others are at work with it: that is no proof.
        begin(&mut record, 3, false);
        end(&mut record);
        assert_eq!(ends(&record), [(3, 1)]);
        // It was not even begun.
        end(&mut record);
        assert_eq!(ends(&record), [(3, 1)]);
        begin(&mut record, 3, true);
        assert!(!record.condemns(3));
        end(&mut record);
        assert!(record.condemns(3));
        // Who sets it aside may be killed at that, as often as it likes.
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
        // An end at other work begins the count anew.
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
    fn a_rest_is_nobodys_fault_and_what_comes_next_takes_the_place_of_what_was() {
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
        let kept = 20 - MOST as Seq + 1..=20;
        assert_eq!(
            ends(&record),
            kept.map(|chunk| (chunk, 1)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn no_flipped_bit_and_no_cut_passes_nor_does_another_spool() {
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

        /// Whatever stands there, also with a right checksum, no chunk is condemned by more than it says, and what
        /// comes of it can be written and read again.
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
            prop_assert!(record.suspects.len() <= MOST);
            prop_assert_eq!(Record::decode(&record.encode(SPOOL), SPOOL), Some(record.clone()));
            record.resume(|_| true);
            prop_assert!(record.suspects.len() <= MOST);
            prop_assert!(record.suspects.iter().all(|it| (1..=FATAL).contains(&it.ends)));
            record.resume(|_| false);
            prop_assert_eq!(record, Record::default());
        }

        /// In whatever order things happen: a chunk is condemned only if a process ended at it alone, when one had ended
        /// at the same work already and it was not acquitted since.
        #[test]
        fn only_two_ends_at_the_same_work_condemn(
            steps in prop::collection::vec((0..6u8, 1..5u64, work(), any::<bool>()), 0..200),
        ) {
            let mut record = Record::default();
            // The story, told another way: ends by chunk and work, and what is under way.
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
                        // Only what could be done is done.
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
                let mut told: Vec<_> = record.suspects.iter().map(|it| (it.chunk, (it.work, it.ends))).collect();
                told.sort_by_key(|(chunk, _)| *chunk);
                prop_assert_eq!(told, blamed.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }
}
