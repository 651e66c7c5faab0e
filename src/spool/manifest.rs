//! The list of a spool's segments, in a file of its own: what should be in the directory, whatever is.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice};

use super::Seq;
use super::disk::{Disk, remedied, remedy_of_reading, says_remedy};
use super::frame::{FIRSTS, Fields, crc};

/// The two files that are written in turn, so that a write that is torn leaves the other.
pub(super) const NAMES: [&str; 2] = ["manifest.0", "manifest.1"];

/// Numbers that are set aside for a segment. More than one that is not larger than it should be can hold frames; one
/// that needs more sets more aside.
const SET_ASIDE: Seq = 1 << 20;
/// A manifest is not read beyond this; it would be one of a million segments.
const MOST_BYTES: usize = 16 << 20;
/// Files are a multiple of this long, and do not become shorter: one that is written on a full disk needs no more of it.
const BLOCK: usize = 4_096;

const MAGIC: [u8; 4] = [0xf5, b'S', b'm', 1];
/// Bytes before the segments.
const HEADER: usize = 56;
/// Bytes of a segment.
const ENTRY: usize = 16;
/// In an entry's number of chunks: it may hold more.
const OPEN: u64 = 1 << 63;

/// A segment that was begun, and not found finished since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Chunks that were not finished when this was written.
    pub(super) unfinished: u64,
    /// It was written to then: there may be more.
    pub(super) open: bool,
}

impl Entry {
    /// Whether anything is lost with it.
    pub(super) fn may_hold_chunks(self) -> bool {
        self.open || self.unfinished > 0
    }
}

/// What is in one of the two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    /// One more with each that is synced.
    pub(super) generation: u64,
    /// One more with each that is written behind the synced one of the same generation, and is not synced.
    pub(super) revision: u64,
    pub(super) spool: u64,
    /// Of segments before this one nothing is known but what is listed: an earlier version began them.
    pub(super) since: Seq,
    /// Greater than every number that was ever given to a frame.
    pub(super) numbers: Seq,
    /// Never empty. The last one is the newest that was ever begun.
    pub(super) segments: BTreeMap<Seq, Entry>,
}

impl Manifest {
    pub(super) fn newest(&self) -> Seq {
        self.segments
            .last_key_value()
            .map_or(0, |(first, _)| *first)
    }

    /// Whether a segment was begun and is finished.
    pub(super) fn is_finished(&self, segment: Seq) -> bool {
        (self.since..self.newest()).contains(&segment) && !self.segments.contains_key(&segment)
    }

    fn encode(&self) -> Vec<u8> {
        let len = HEADER + self.segments.len() * ENTRY;
        let mut bytes = Vec::with_capacity(len.next_multiple_of(BLOCK));
        bytes.extend(MAGIC);
        bytes.extend([0; 4]);
        for number in [
            self.segments.len() as u64,
            self.generation,
            self.revision,
            self.spool,
            self.since,
            self.numbers,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        for (first, entry) in &self.segments {
            let open = if entry.open { OPEN } else { 0 };
            bytes.extend(first.to_le_bytes());
            bytes.extend((entry.unfinished | open).to_le_bytes());
        }
        let crc = crc(&[&bytes[8..]]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(len.next_multiple_of(BLOCK), 0);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Manifest> {
        let mut fields = Fields(bytes);
        if fields.take()? != MAGIC {
            return None;
        }
        let written = fields.u32()?;
        let count = usize::try_from(fields.u64()?).ok()?;
        let len = count.checked_mul(ENTRY)?.checked_add(HEADER)?;
        if crc(&[bytes.get(8..len)?]) != written {
            return None;
        }
        let mut manifest = Manifest {
            generation: fields.u64()?,
            revision: fields.u64()?,
            spool: fields.u64()?,
            since: fields.u64()?,
            numbers: fields.u64()?,
            segments: BTreeMap::new(),
        };
        for _ in 0..count {
            let (first, unfinished) = (fields.u64()?, fields.u64()?);
            let entry = Entry {
                unfinished: unfinished & !OPEN,
                open: unfinished & OPEN != 0,
            };
            manifest.segments.insert(first, entry);
        }
        let sound = count > 0 && manifest.newest() < manifest.numbers && manifest.numbers < FIRSTS;
        sound.then_some(manifest)
    }
}

/// What is in the two files. What is no manifest is none; what the disk does not give might be one.
pub(super) fn read(disk: &dyn Disk) -> io::Result<[Option<Manifest>; 2]> {
    let one = |name| {
        let mut bytes = Vec::new();
        let read = disk
            .open(name)
            .and_then(|file| file.read_at(&mut bytes, MOST_BYTES, 0));
        match read {
            Ok(()) => Ok(Manifest::decode(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if says_remedy(&error) => {
                let words = format!("{name} cannot be opened: {error}");
                Err(remedied(error.kind(), words))
            }
            Err(error) => {
                let remedy = remedy_of_reading(&error, "remove it while every .seg file is there");
                Err(remedied(
                    error.kind(),
                    format!(
                        "{name} cannot be read: {error}; it says which files should be in the spool's folder, and the spool is \
                         not started without it. {remedy}"
                    ),
                ))
            }
        }
    };
    Ok([one(NAMES[0])?, one(NAMES[1])?])
}

/// The newest one of a spool (of any: `None`), and which file it is in.
pub(super) fn newest(
    found: &[Option<Manifest>; 2],
    spool: Option<u64>,
) -> Option<(usize, &Manifest)> {
    let there = found.iter().enumerate();
    there
        .filter_map(|(slot, manifest)| Some((slot, manifest.as_ref()?)))
        .filter(|(_, manifest)| spool.is_none_or(|spool| manifest.spool == spool))
        .max_by_key(|(_, manifest)| (manifest.generation, manifest.revision))
}

/// Writes manifests.
#[derive(Debug)]
pub(super) struct Keeper {
    /// [`Manifest::since`].
    since: Seq,
    /// The generation before this run's first.
    before: u64,
    /// What is durable, and which file it is in.
    durable: Option<(usize, Manifest)>,
    /// This run wrote it. A segment that no manifest lists, and that this run did not find, is known by its generation then.
    is_own: bool,
    /// What was written last, synced or not.
    written: Option<Manifest>,
    /// Whether the files' names are durable.
    named: [bool; 2],
}

impl Keeper {
    /// Begins where there was none that counts. `next` is the number of the next frame, `generation` is none before that of
    /// anything that is there.
    pub(super) fn new(next: Seq, generation: u64) -> Keeper {
        Keeper {
            since: next,
            before: generation,
            durable: None,
            is_own: false,
            written: None,
            named: [false; 2],
        }
    }

    /// Goes on behind a manifest of an earlier run, which is made durable. The directory is still to be synced.
    pub(super) fn resume(
        disk: &dyn Disk,
        (slot, manifest): (usize, Manifest),
    ) -> io::Result<Keeper> {
        disk.open(NAMES[slot])?.sync()?;
        Ok(Keeper {
            since: manifest.since,
            before: manifest.generation,
            written: Some(manifest.clone()),
            durable: Some((slot, manifest)),
            is_own: false,
            named: [true; 2],
        })
    }

    fn sure(&self) -> Option<&Manifest> {
        self.durable.as_ref().map(|(_, manifest)| manifest)
    }

    /// The generation that is durable next.
    pub(super) fn next_generation(&self) -> u64 {
        self.sure().map_or(self.before, |sure| sure.generation) + 1
    }

    /// Whether it is on the medium that a segment is written to, with numbers before `end`.
    pub(super) fn covers(&self, segment: Seq, end: Seq) -> bool {
        self.sure().is_some_and(|sure| {
            let is_open = sure.segments.get(&segment).is_some_and(|entry| entry.open);
            self.is_own && is_open && end <= sure.numbers
        })
    }

    /// Whether it is on the medium that a segment is there.
    pub(super) fn lists(&self, segment: Seq) -> bool {
        self.sure()
            .is_some_and(|sure| sure.segments.contains_key(&segment))
    }

    /// Whether it is on the medium that a segment is not needed.
    pub(super) fn is_without(&self, segment: Seq) -> bool {
        self.sure()
            .is_some_and(|sure| segment < sure.newest() && !sure.segments.contains_key(&segment))
    }

    /// Whether segments are written already as they are.
    pub(super) fn says(&self, segments: &BTreeMap<Seq, Entry>) -> bool {
        let written = self.written.as_ref();
        written.is_some_and(|written| written.segments == *segments)
    }

    /// Whether the file of the durable one was taken away.
    pub(super) fn is_gone(&self, disk: &dyn Disk) -> bool {
        self.durable.as_ref().is_some_and(|(slot, _)| {
            let found = disk.id(NAMES[*slot]);
            found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        })
    }

    /// The files are gone. Numbers and generations go on.
    pub(super) fn forget(&mut self) {
        self.written = None;
        self.named = [false; 2];
        if let Some((_, sure)) = &mut self.durable {
            sure.segments.clear();
        }
    }

    /// Writes one that lists these segments, where `next` is behind the last frame's number, into the file that does
    /// not have the durable one. Not synced, it is a help to whoever reads it, and replaces nothing.
    pub(super) fn write(
        &mut self,
        disk: &dyn Disk,
        spool: u64,
        segments: BTreeMap<Seq, Entry>,
        next: Seq,
        synced: bool,
    ) -> io::Result<()> {
        let (generation, revision) = match (synced, self.sure()) {
            (true, _) => (self.next_generation(), 0),
            (false, Some(sure)) => {
                let last = self
                    .written
                    .as_ref()
                    .map_or(sure.revision, |last| last.revision);
                (sure.generation, last + 1)
            }
            (false, None) => return Ok(()),
        };
        let manifest = Manifest {
            generation,
            revision,
            spool,
            since: self.since,
            numbers: (next + SET_ASIDE).max(self.sure().map_or(0, |sure| sure.numbers)),
            segments,
        };
        let slot = self.durable.as_ref().map_or(0, |(slot, _)| 1 - slot);
        self.written = None;
        let put = self.put(disk, slot, &manifest.encode(), synced);
        put.map_err(|error| unwritten(NAMES[slot], error))?;
        self.written = Some(manifest.clone());
        if synced {
            self.durable = Some((slot, manifest));
            self.is_own = true;
        }
        Ok(())
    }

    fn put(&mut self, disk: &dyn Disk, slot: usize, bytes: &[u8], synced: bool) -> io::Result<()> {
        let name = NAMES[slot];
        let file = match disk.open(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.named[slot] = false;
                disk.create(name)?
            }
            opened => opened?,
        };
        file.write_at(&[IoSlice::new(bytes)], 0)?;
        // The other's turn may come when the disk is full.
        if !self.named[slot]
            && let Ok(other) = disk.create(NAMES[1 - slot])
        {
            self.named[1 - slot] = false;
            let _ = other.write_at(&[IoSlice::new(&[0; BLOCK])], 0);
        }
        if !synced {
            return Ok(());
        }
        file.sync()?;
        if !self.named[slot] {
            disk.sync_dir()?;
            self.named = [true; 2];
        }
        Ok(())
    }
}

fn unwritten(name: &str, error: io::Error) -> io::Error {
    match says_remedy(&error) {
        true => error,
        false => io::Error::new(error.kind(), format!("{name} cannot be written: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_what_was_written_and_no_flipped_bit_passes() {
        let entry = |unfinished, open| Entry { unfinished, open };
        let manifest = Manifest {
            generation: 7,
            revision: 2,
            spool: 0x0102_0304_0506_0708,
            since: 3,
            numbers: 1 << 40,
            segments: BTreeMap::from([
                (1, entry(4, false)),
                (9, entry(0, false)),
                (20, entry(1, true)),
            ]),
        };
        let bytes = manifest.encode();
        assert_eq!(bytes.len(), BLOCK);
        assert_eq!(Manifest::decode(&bytes).as_ref(), Some(&manifest));
        let len = HEADER + 3 * ENTRY;
        for bit in 0..len * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Manifest::decode(&flipped), None, "bit {bit}");
        }
        for cut in 0..len {
            assert_eq!(Manifest::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        let finished: Vec<Seq> = (0..25)
            .filter(|first| manifest.is_finished(*first))
            .collect();
        let between = (3..9).chain(10..20);
        assert_eq!(finished, between.collect::<Vec<_>>());
    }

    #[test]
    fn numbers_that_no_spool_gives_are_not_believed() {
        for (newest, numbers) in [(5, 5), (FIRSTS, FIRSTS + 1), (5, FIRSTS)] {
            let manifest = Manifest {
                generation: 1,
                revision: 0,
                spool: 1,
                since: 1,
                numbers,
                segments: BTreeMap::from([(newest, Entry::default())]),
            };
            assert_eq!(
                Manifest::decode(&manifest.encode()),
                None,
                "{newest}, {numbers}"
            );
        }
    }
}
