//! The manifest: the list of the segments that should exist.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice};

use bytes::Bytes;

use super::Seq;
use super::disk::{Disk, remedy_of_reading, says_remedy, with_remedy};
use super::frame::{FIRST_LIMIT, Fields, crc};

/// The two files, written alternately, so that a torn write leaves the other one.
pub(super) const NAMES: [&str; 2] = ["manifest.0", "manifest.1"];

/// The number of frame numbers reserved at a time. More than the frames of a segment of regular size; a larger one
/// reserves again.
const RESERVED_NUMBERS: Seq = 1 << 20;
/// The maximum number of bytes read of a manifest: enough for a million segments.
const MAX_BYTES: usize = 16 << 20;
/// File sizes are multiples of this and do not shrink, so that rewriting a manifest needs no space on a full disk.
const BLOCK: usize = 4_096;

const MAGIC: [u8; 4] = [0xf5, b'S', b'm', 1];
/// The length of the header, in bytes.
const HEADER: usize = 56;
/// The length of an entry, in bytes.
const ENTRY: usize = 16;
/// The first bytes of a checkpoint, which follows the entries.
const CHECKPOINT_MAGIC: [u8; 4] = [0xf5, b'S', b'c', 1];
/// The length of a checkpoint's header, in bytes: magic, CRC-32 of what follows, segment and length (64 bits each).
const CHECKPOINT_HEADER: usize = 24;
/// The bit in an entry's number of chunks that marks the segment as open.
const OPEN: u64 = 1 << 63;

/// A segment that was begun and is not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The number of unfinished chunks when the manifest was written.
    pub(super) unfinished: u64,
    /// The segment was still being written then: there may be more.
    pub(super) open: bool,
}

impl Entry {
    /// Whether losing the segment may lose chunks.
    pub(super) fn may_hold_chunks(self) -> bool {
        self.open || self.unfinished > 0
    }
}

/// The contents of one of the two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Incremented with each synced write.
    pub(super) generation: u64,
    /// Incremented with each unsynced write of the same generation.
    pub(super) revision: u64,
    pub(super) spool: u64,
    /// The first segment that is fully covered: older ones were begun by an earlier version, and may be unlisted.
    pub(super) since: Seq,
    /// Greater than every frame number ever used.
    pub(super) numbers: Seq,
    /// Never empty. The last one is the newest ever begun.
    pub(super) segments: BTreeMap<Seq, Entry>,
    /// Ignored by versions that do not know it, and if it is damaged.
    pub(super) checkpoint: Option<Checkpoint>,
}

/// The delivery state of the log when a segment began, so that a start needs no older notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// The segment.
    pub(super) segment: Seq,
    /// The saved ledger.
    pub(super) ledger: Bytes,
}

impl Checkpoint {
    fn encode_into(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend(CHECKPOINT_MAGIC);
        bytes.extend([0; 4]);
        bytes.extend(self.segment.to_le_bytes());
        bytes.extend((self.ledger.len() as u64).to_le_bytes());
        bytes.extend(&self.ledger[..]);
        let crc = crc(&[&bytes[start + 8..]]);
        bytes[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Checkpoint> {
        let mut fields = Fields(bytes);
        if fields.take()? != CHECKPOINT_MAGIC {
            return None;
        }
        let (written, segment, len) = (fields.u32()?, fields.u64()?, fields.u64()?);
        let end = CHECKPOINT_HEADER.checked_add(usize::try_from(len).ok()?)?;
        let is_whole = crc(&[bytes.get(8..end)?]) == written;
        is_whole.then(|| Checkpoint {
            segment,
            ledger: Bytes::copy_from_slice(&bytes[CHECKPOINT_HEADER..end]),
        })
    }
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
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint.encode_into(&mut bytes);
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
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
            checkpoint: Checkpoint::decode(&bytes[len..]),
        };
        for _ in 0..count {
            let (first, unfinished) = (fields.u64()?, fields.u64()?);
            let entry = Entry {
                unfinished: unfinished & !OPEN,
                open: unfinished & OPEN != 0,
            };
            manifest.segments.insert(first, entry);
        }
        let sound =
            count > 0 && manifest.newest() < manifest.numbers && manifest.numbers < FIRST_LIMIT;
        sound.then_some(manifest)
    }
}

/// Reads the two files. Contents that are no valid manifest are ignored; a read error is returned, since the file may be
/// valid.
pub(super) fn read(disk: &dyn Disk) -> io::Result<[Option<Manifest>; 2]> {
    let one = |name| {
        let mut bytes = Vec::new();
        let read = disk
            .open(name)
            .and_then(|file| file.read_at(&mut bytes, MAX_BYTES, 0));
        match read {
            Ok(()) => Ok(Manifest::decode(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if says_remedy(&error) => {
                let words = format!("{name} cannot be opened: {error}");
                Err(with_remedy(error.kind(), words))
            }
            Err(error) => {
                let remedy = remedy_of_reading(&error, "remove it while every .seg file is there");
                Err(with_remedy(
                    error.kind(),
                    format!(
                        "{name} cannot be read: {error}; it lists the files that should be in the spool's folder, so the spool \
                         does not start without it. {remedy}"
                    ),
                ))
            }
        }
    };
    Ok([one(NAMES[0])?, one(NAMES[1])?])
}

/// The newest manifest of a spool (`None`: of any), with the index of its file.
pub(super) fn newest(
    found: &[Option<Manifest>; 2],
    spool: Option<u64>,
) -> Option<(usize, &Manifest)> {
    let files = found.iter().enumerate();
    files
        .filter_map(|(slot, manifest)| Some((slot, manifest.as_ref()?)))
        .filter(|(_, manifest)| spool.is_none_or(|spool| manifest.spool == spool))
        .max_by_key(|(_, manifest)| (manifest.generation, manifest.revision))
}

/// The writer of the manifest.
#[derive(Debug)]
pub(super) struct ManifestWriter {
    /// [`Manifest::since`].
    since: Seq,
    /// The generation before this run's first.
    base_generation: u64,
    /// The last synced manifest, with the index of its file.
    durable: Option<(usize, Manifest)>,
    /// This run wrote the durable manifest, so the generation identifies a segment that is neither listed nor found by it.
    written_by_this_run: bool,
    /// The manifest written last, synced or not.
    written: Option<Manifest>,
    /// Whether the files' names are durable.
    name_synced: [bool; 2],
    /// That of the newest segment, or an older one if that has none.
    checkpoint: Option<Checkpoint>,
}

impl ManifestWriter {
    /// Starts without a manifest. `next` is the number of the next frame; `generation` is at least that of every existing
    /// segment and manifest.
    pub(super) fn new(next: Seq, generation: u64) -> ManifestWriter {
        ManifestWriter {
            since: next,
            base_generation: generation,
            durable: None,
            written_by_this_run: false,
            written: None,
            name_synced: [false; 2],
            checkpoint: None,
        }
    }

    /// Continues from a manifest of an earlier run, after syncing it. The caller must sync the directory.
    pub(super) fn resume(
        disk: &dyn Disk,
        (slot, manifest): (usize, Manifest),
    ) -> io::Result<ManifestWriter> {
        disk.open(NAMES[slot])?.sync()?;
        Ok(ManifestWriter {
            since: manifest.since,
            base_generation: manifest.generation,
            checkpoint: manifest.checkpoint.clone(),
            written: Some(manifest.clone()),
            durable: Some((slot, manifest)),
            written_by_this_run: false,
            name_synced: [true; 2],
        })
    }

    /// Sets the checkpoint of a segment that begins, for all manifests until another one is set.
    pub(super) fn set_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = Some(checkpoint);
    }

    fn durable_manifest(&self) -> Option<&Manifest> {
        self.durable.as_ref().map(|(_, manifest)| manifest)
    }

    /// The generation of the next synced manifest.
    pub(super) fn next_generation(&self) -> u64 {
        self.durable_manifest()
            .map_or(self.base_generation, |durable| durable.generation)
            + 1
    }

    /// Whether a durable manifest of this run lists a segment as open, and reserves all numbers before `end`.
    pub(super) fn covers(&self, segment: Seq, end: Seq) -> bool {
        self.durable_manifest().is_some_and(|durable| {
            let is_open = durable
                .segments
                .get(&segment)
                .is_some_and(|entry| entry.open);
            self.written_by_this_run && is_open && end <= durable.numbers
        })
    }

    /// Whether the durable manifest lists a segment.
    pub(super) fn lists(&self, segment: Seq) -> bool {
        self.durable_manifest()
            .is_some_and(|durable| durable.segments.contains_key(&segment))
    }

    /// Whether the durable manifest covers a segment and does not list it.
    pub(super) fn omits(&self, segment: Seq) -> bool {
        self.durable_manifest().is_some_and(|durable| {
            segment < durable.newest() && !durable.segments.contains_key(&segment)
        })
    }

    /// Whether the manifest written last lists exactly these segments.
    pub(super) fn is_current(&self, segments: &BTreeMap<Seq, Entry>) -> bool {
        let written = self.written.as_ref();
        written.is_some_and(|written| written.segments == *segments)
    }

    /// Whether the durable manifest's file was removed.
    pub(super) fn is_removed(&self, disk: &dyn Disk) -> bool {
        self.durable.as_ref().is_some_and(|(slot, _)| {
            let found = disk.id(NAMES[*slot]);
            found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        })
    }

    /// Records that the files were removed. Numbers and generations continue.
    pub(super) fn forget(&mut self) {
        self.written = None;
        self.name_synced = [false; 2];
        if let Some((_, durable)) = &mut self.durable {
            durable.segments.clear();
        }
    }

    /// Writes a manifest that lists these segments into the file that does not hold the durable one. `next` is the next
    /// frame number. Without a sync it is best effort, and does not replace the durable one.
    pub(super) fn write(
        &mut self,
        disk: &dyn Disk,
        spool: u64,
        segments: BTreeMap<Seq, Entry>,
        next: Seq,
        synced: bool,
    ) -> io::Result<()> {
        let (generation, revision) = match (synced, self.durable_manifest()) {
            (true, _) => (self.next_generation(), 0),
            (false, Some(durable)) => {
                let last = self
                    .written
                    .as_ref()
                    .map_or(durable.revision, |last| last.revision);
                (durable.generation, last + 1)
            }
            (false, None) => return Ok(()),
        };
        let mut manifest = Manifest {
            generation,
            revision,
            spool,
            since: self.since,
            numbers: (next + RESERVED_NUMBERS)
                .max(self.durable_manifest().map_or(0, |durable| durable.numbers)),
            segments,
            checkpoint: self.checkpoint.clone(),
        };
        let slot = self.durable.as_ref().map_or(0, |(slot, _)| 1 - slot);
        self.written = None;
        let mut result = self.write_file(disk, slot, &manifest.encode(), synced);
        // On a full disk there may be room for no more than before.
        if result.is_err() && manifest.checkpoint.take().is_some() {
            result = self.write_file(disk, slot, &manifest.encode(), synced);
        }
        result.map_err(|error| write_error(NAMES[slot], error))?;
        self.written = Some(manifest.clone());
        if synced {
            self.durable = Some((slot, manifest));
            self.written_by_this_run = true;
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        disk: &dyn Disk,
        slot: usize,
        bytes: &[u8],
        synced: bool,
    ) -> io::Result<()> {
        let name = NAMES[slot];
        let file = match disk.open(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.name_synced[slot] = false;
                disk.create(name)?
            }
            opened => opened?,
        };
        file.write_at(&[IoSlice::new(bytes)], 0)?;
        // Create the other file too: the disk may be full when it is needed.
        if !self.name_synced[slot]
            && let Ok(other) = disk.create(NAMES[1 - slot])
        {
            self.name_synced[1 - slot] = false;
            let _ = other.write_at(&[IoSlice::new(&[0; BLOCK])], 0);
        }
        if !synced {
            return Ok(());
        }
        file.sync()?;
        if !self.name_synced[slot] {
            disk.sync_dir()?;
            self.name_synced = [true; 2];
        }
        Ok(())
    }
}

fn write_error(name: &str, error: io::Error) -> io::Error {
    match says_remedy(&error) {
        true => error,
        false => io::Error::new(error.kind(), format!("{name} cannot be written: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_survives_a_round_trip_and_a_flipped_bit_is_detected() {
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
            checkpoint: None,
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
    fn a_damaged_checkpoint_is_ignored_and_the_rest_counts() {
        let plain = Manifest {
            generation: 7,
            revision: 2,
            spool: 1,
            since: 3,
            numbers: 1 << 40,
            segments: BTreeMap::from([(9, Entry::default())]),
            checkpoint: None,
        };
        let whole = Manifest {
            checkpoint: Some(Checkpoint {
                segment: 9,
                ledger: Bytes::from_static(b"anything at all"),
            }),
            ..plain.clone()
        };
        let bytes = whole.encode();
        assert_eq!(Manifest::decode(&bytes), Some(whole));
        let start = HEADER + ENTRY;
        let end = start + CHECKPOINT_HEADER + 15;
        for bit in start * 8..end * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Manifest::decode(&flipped).as_ref(),
                Some(&plain),
                "bit {bit}"
            );
        }
        for cut in start..end {
            assert_eq!(
                Manifest::decode(&bytes[..cut]).as_ref(),
                Some(&plain),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn impossible_numbers_are_rejected() {
        for (newest, numbers) in [(5, 5), (FIRST_LIMIT, FIRST_LIMIT + 1), (5, FIRST_LIMIT)] {
            let manifest = Manifest {
                generation: 1,
                revision: 0,
                spool: 1,
                since: 1,
                numbers,
                segments: BTreeMap::from([(newest, Entry::default())]),
                checkpoint: None,
            };
            assert_eq!(
                Manifest::decode(&manifest.encode()),
                None,
                "{newest}, {numbers}"
            );
        }
    }
}
