//! Lines of many folders that wait for their objects in a file.
//!
//! With thousands of folders the memory for open objects is full long before the objects are large or old enough to be
//! sealed. Then all of their lines are *spilled*: written to a temporary file as a *run*, sorted by folder. When the oldest
//! line is due, the runs are merged, each read once from front to back: every folder becomes one object with all of its
//! lines, however many chunks these came from.
//!
//! The file is a cache and no record. The events stay in the spool, unsettled, until their object is stored; the file has no
//! name, so nothing of it is left after the process ends, and a restart reads the events from the spool again. So does the
//! caller with what cannot be read back, for which it keeps the numbers of all spilled events ([`Left`]).
//!
//! # Format
//!
//! An entry holds what one open object held: the lengths of its head and its body and the CRC-32 of both (32 bits each,
//! little-endian), the head (msgpack), and the body: packed blocks, then rows that are not packed yet.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use libdeflater::Crc;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::ack::{AckGuard, add_in_order, count, ranges};
use super::objects::OpenObject;
use crate::buffers::Payload;
use crate::format::{Block, Body, Format, Sealing};
use crate::ids::{EventSet, Time};
use crate::spool::Seq;

/// The length of what precedes an entry's head, in bytes.
const PREFIX: usize = 12;
/// The size of writes, in bytes.
const WRITE_BYTES: usize = 1024 * 1024;
/// The minimum and the maximum number of bytes read at once from each run. A larger entry is read whole.
const READ_BYTES: (usize, usize) = (4 * 1024, 128 * 1024);
/// The approximate memory use of a chunk's entry in a map, besides its set of events.
const CHUNK_BYTES: usize = 64;

/// Runs that wait to be merged, in one file.
pub(super) struct Spill {
    file: Arc<File>,
    /// The runs' places in the file.
    runs: Vec<Range<u64>>,
    /// The end of the last one, in bytes.
    end: u64,
    tags: Tags,
    /// The length of the longest entry, in bytes.
    longest: usize,
    /// The time at which the oldest line was added to its object.
    since: Instant,
}

/// Events by chunk, as sorted ranges; a chunk may be named more than once.
pub(super) type ByChunk = Vec<(Seq, Vec<Range<u32>>)>;

/// The tags of the chunks that the lines came from. Entries refer to them by number: a tag may be long, and each chunk has
/// lines in many folders.
#[derive(Default)]
struct Tags {
    all: Vec<Arc<[u8]>>,
    numbers: HashMap<Arc<[u8]>, u32>,
}

impl Tags {
    fn number(&mut self, tag: &Arc<[u8]>) -> u32 {
        let next = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(Arc::clone(tag)).or_insert(next);
        if number == next {
            self.all.push(Arc::clone(tag));
        }
        number
    }

    /// Returns the approximate memory use.
    fn bytes(&self) -> usize {
        let tags = self.all.iter().map(|tag| CHUNK_BYTES + tag.len());
        tags.sum()
    }

    fn get(&self, number: u32) -> Arc<[u8]> {
        self.all.get(number as usize).cloned().unwrap_or_default()
    }
}

/// The spilled events that are in no object yet, by chunk.
#[derive(Default)]
pub(super) struct Left {
    chunks: HashMap<Seq, (EventSet, u64)>,
    bytes: usize,
}

impl Left {
    /// Adds events of a chunk that are not in it.
    pub(super) fn add(&mut self, chunk: Seq, events: &[Range<u32>]) {
        let (set, left) = self.chunks.entry(chunk).or_insert_with(|| {
            self.bytes += CHUNK_BYTES;
            (EventSet::default(), 0)
        });
        self.bytes -= set.footprint();
        set.extend(events);
        *left += count(events);
        self.bytes += set.footprint();
    }

    /// Removes events of a chunk that are in it.
    pub(super) fn remove(&mut self, chunk: Seq, events: &[Range<u32>]) {
        let Some((set, left)) = self.chunks.get_mut(&chunk) else {
            return;
        };
        set.remove(events);
        *left = left.saturating_sub(count(events));
        if *left == 0 {
            self.bytes -= CHUNK_BYTES + set.footprint();
            self.chunks.remove(&chunk);
        }
    }

    /// Returns whether events of the chunk are left.
    pub(super) fn holds(&self, chunk: Seq) -> bool {
        self.chunks.contains_key(&chunk)
    }

    /// Returns the approximate memory use.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns all of them, oldest chunk first.
    pub(super) fn into_events(self) -> ByChunk {
        let mut chunks: Vec<_> = self.chunks.into_iter().collect();
        chunks.sort_unstable_by_key(|(chunk, _)| *chunk);
        let events = |(chunk, (set, _)): (Seq, (EventSet, u64))| (chunk, set.ranges());
        chunks.into_iter().map(events).collect()
    }
}

/// What an entry says of its lines.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    folder: String,
    target: String,
    tag: u32,
    /// The time of the first event: seconds and nanoseconds.
    first: (i64, u32),
    lines: u64,
    /// The chunks, and the first event of each range and the one after its last, in the order of the rows.
    contents: Vec<(Seq, Vec<u32>)>,
    /// Of each packed block its length in bytes, that of its rows, and its mark.
    blocks: Vec<(u32, u32, u32)>,
}

/// The events of an open object, in the order of its rows.
fn events_of<'g>(guards: impl Iterator<Item = &'g AckGuard>) -> ByChunk {
    let mut chunks = ByChunk::new();
    for (chunk, events, _) in guards.filter_map(AckGuard::of_chunk) {
        for ascending in events.chunk_by(|event, next| event < next) {
            add_in_order(&mut chunks, chunk, ranges(ascending));
        }
    }
    chunks
}

impl Spill {
    /// Creates an empty file without a name in `dir`.
    pub(super) fn create(dir: &Path) -> io::Result<Spill> {
        Ok(Spill {
            file: Arc::new(tempfile::tempfile_in(dir)?),
            runs: Vec::new(),
            end: 0,
            tags: Tags::default(),
            longest: 0,
            since: Instant::now(),
        })
    }

    /// Writes open objects as a run, and returns their events. On an error nothing has changed.
    pub(super) fn write(&mut self, objects: &mut [(String, OpenObject)]) -> io::Result<ByChunk> {
        let written = self.write_run(objects);
        if written.is_err() {
            // The disk may be full: whoever else needs it gets the space back.
            let _ = self.file.set_len(self.end);
        }
        written
    }

    fn write_run(&mut self, objects: &mut [(String, OpenObject)]) -> io::Result<ByChunk> {
        objects.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let at = Appending {
            file: &self.file,
            at: self.end,
        };
        let mut out = BufWriter::with_capacity(WRITE_BYTES, at);
        let mut written = ByChunk::new();
        for (folder, object) in &*objects {
            let contents = events_of(object.guards());
            let tag = object.guards().next().map(AckGuard::tag);
            let head = Head {
                folder: folder.clone(),
                target: object.target().to_string(),
                tag: tag.map_or(u32::MAX, |tag| self.tags.number(tag)),
                first: (object.first().seconds, object.first().nanos),
                lines: object.lines(),
                contents: contents
                    .iter()
                    .map(|(chunk, runs)| (*chunk, bounds(runs)))
                    .collect(),
                blocks: object.body().blocks().iter().map(lengths).collect(),
            };
            let length = write_entry(&mut out, &head, object.body())?;
            self.longest = self.longest.max(length);
            written.extend(contents);
        }
        let end = out.into_inner().map_err(io::IntoInnerError::into_error)?.at;
        if self.runs.is_empty() {
            self.since = Instant::now();
        }
        let since = objects.iter().map(|(_, object)| object.since());
        self.since = since.fold(self.since, Instant::min);
        self.runs.push(self.end..end);
        self.end = end;
        Ok(written)
    }

    /// Returns when the oldest line was added to its object.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Returns the size of the file, in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        self.end
    }

    /// Returns the approximate memory that merging takes at the most: each run's current entry, in bytes.
    pub(super) fn merge_bytes(&self) -> usize {
        self.runs.len() * self.longest
    }

    /// Returns the number of runs.
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Returns the approximate memory use.
    pub(super) fn bytes(&self) -> usize {
        self.tags.bytes()
    }

    /// Starts merging the runs, with about `memory` bytes for reading.
    pub(super) fn merge(self, memory: usize) -> Merge {
        let (least, most) = READ_BYTES;
        let ahead = (memory / self.runs.len().max(1)).clamp(least, most);
        Merge {
            cursors: self
                .runs
                .into_iter()
                .map(|run| Cursor::new(run, ahead))
                .collect(),
            heads: BinaryHeap::new(),
            started: false,
            file: self.file,
            tags: self.tags,
        }
    }
}

/// Writes at increasing offsets, and leaves the file's own position alone.
struct Appending<'f> {
    file: &'f File,
    at: u64,
}

impl Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes an entry, and returns its length in bytes.
fn write_entry(out: &mut impl Write, head: &Head, body: &Body) -> io::Result<usize> {
    let head = rmp_serde::to_vec(head).map_err(io::Error::other)?;
    let mut crc = Crc::new();
    crc.update(&head);
    let mut len = 0;
    for part in parts(body) {
        crc.update(part);
        len += part.len();
    }
    let lengths = [head.len(), len].map(u32::try_from);
    let [Ok(head_len), Ok(len)] = lengths else {
        return Err(io::Error::from(ErrorKind::FileTooLarge));
    };
    for number in [head_len, len, crc.sum()] {
        out.write_all(&number.to_le_bytes())?;
    }
    out.write_all(&head)?;
    parts(body).try_for_each(|part| out.write_all(part))?;
    Ok(PREFIX + head.len() + len as usize)
}

/// Returns what a head says of a block.
fn lengths(block: &Block) -> (u32, u32, u32) {
    let packed = u32::try_from(block.packed.len()).unwrap_or(u32::MAX);
    (packed, block.len, block.mark)
}

/// Returns the packed blocks, and then the rows that are not packed yet.
fn parts(body: &Body) -> impl Iterator<Item = &[u8]> {
    let blocks = body.blocks().iter().map(|block| &block.packed[..]);
    blocks.chain(std::iter::once(body.open()))
}

fn bounds(runs: &[Range<u32>]) -> Vec<u32> {
    runs.iter().flat_map(|run| [run.start, run.end]).collect()
}

fn runs(bounds: &[u32]) -> Vec<Range<u32>> {
    let (pairs, _) = bounds.as_chunks();
    pairs.iter().map(|&[start, end]| start..end).collect()
}

/// An object made from spilled lines.
pub(super) struct SpilledObject {
    /// The target of its folder.
    pub(super) target: Arc<str>,
    /// Its folder, below the store's prefix.
    pub(super) folder: String,
    /// The time of its first event.
    pub(super) first: Time,
    /// The tag of its first chunk.
    pub(super) tag: Arc<[u8]>,
    /// What is to be stored.
    pub(super) body: Sealing,
    /// Its events, in the order of its rows.
    pub(super) events: ByChunk,
    /// The number of lines.
    pub(super) lines: u64,
    /// What it is made by.
    pub(super) format: Arc<dyn Format>,
}

/// Reads runs in parallel, folder by folder.
pub(super) struct Merge {
    file: Arc<File>,
    cursors: Vec<Cursor>,
    /// The next folder of each run.
    heads: BinaryHeap<Reverse<(String, usize)>>,
    started: bool,
    tags: Tags,
}

impl Merge {
    /// Builds the next object: all lines of the next folder, or as many as `object_bytes` allow. `None`: that was all.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or its bytes are damaged.
    pub(super) fn next(
        &mut self,
        format: &Arc<dyn Format>,
        object_bytes: usize,
    ) -> io::Result<Option<SpilledObject>> {
        if !std::mem::replace(&mut self.started, true) {
            for run in 0..self.cursors.len() {
                self.advance(run)?;
            }
        }
        let Some(Reverse((folder, _))) = self.heads.peek() else {
            return Ok(None);
        };
        let folder = folder.clone();
        let mut body = Body::new(format);
        let mut object: Option<SpilledObject> = None;
        let mut events = ByChunk::new();
        while let Some(Reverse((next, run))) = self.heads.peek()
            && *next == folder
        {
            let run = *run;
            let entry = self.cursors[run].entry()?;
            // More cannot be known before it is packed.
            if object.is_some()
                && body.most() + format.stored_bytes(entry.body.len()) > object_bytes
            {
                break;
            }
            let head = entry.head;
            let (mut blocks, mut open) = (Vec::with_capacity(head.blocks.len()), entry.body);
            for &(packed, len, mark) in &head.blocks {
                let (block, rest) = open.split_at_checked(packed as usize).ok_or_else(damaged)?;
                let packed = Bytes::copy_from_slice(block);
                blocks.push(Block { packed, len, mark });
                open = rest;
            }
            body.push_blocks(blocks, open)?;
            let object = object.get_or_insert_with(|| SpilledObject {
                target: head.target.as_str().into(),
                folder: head.folder.clone(),
                first: Time {
                    seconds: head.first.0,
                    nanos: head.first.1,
                },
                tag: self.tags.get(head.tag),
                body: Sealing::Done(Payload::default()),
                events: Vec::new(),
                lines: 0,
                format: Arc::clone(format),
            });
            object.lines += head.lines;
            for (chunk, bounds) in &head.contents {
                add_in_order(&mut events, *chunk, runs(bounds));
            }
            self.heads.pop();
            self.advance(run)?;
        }
        Ok(object.map(|mut object| {
            object.body = body.seal();
            object.events = events;
            object
        }))
    }

    /// Reads the next entry of a run.
    fn advance(&mut self, run: usize) -> io::Result<()> {
        if let Some(folder) = self.cursors[run].advance(&self.file)? {
            self.heads.push(Reverse((folder, run)));
        }
        Ok(())
    }

    /// Returns the approximate memory use.
    pub(super) fn bytes(&self) -> usize {
        let cursors = self.cursors.iter().map(|cursor| cursor.buffer.capacity());
        self.tags.bytes() + cursors.sum::<usize>()
    }
}

/// A run that is read from front to back.
struct Cursor {
    /// The part of the file that is not in the buffer yet.
    rest: Range<u64>,
    /// The number of bytes read at once.
    ahead: usize,
    buffer: Vec<u8>,
    /// The place in the buffer of what follows the current entry.
    at: usize,
    /// The current entry: its head, and the place of its body in the buffer.
    current: Option<(Head, Range<usize>)>,
}

/// The current entry of a run.
struct Entry<'c> {
    head: &'c Head,
    body: &'c [u8],
}

impl Cursor {
    fn new(run: Range<u64>, ahead: usize) -> Cursor {
        Cursor {
            rest: run,
            ahead,
            buffer: Vec::new(),
            at: 0,
            current: None,
        }
    }

    /// Reads the next entry. Returns its folder, or `None` at the end of the run.
    fn advance(&mut self, file: &File) -> io::Result<Option<String>> {
        self.current = None;
        if self.at == self.buffer.len() && self.rest.is_empty() {
            self.buffer = Vec::new();
            self.at = 0;
            return Ok(None);
        }
        self.fill(file, PREFIX)?;
        let number = |at: usize| {
            let bytes = self.buffer[self.at + at..].first_chunk();
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let (head_len, body_len) = (number(0) as usize, number(4) as usize);
        let crc = number(8);
        self.fill(file, PREFIX + head_len + body_len)?;
        let entry = &self.buffer[self.at + PREFIX..][..head_len + body_len];
        let mut actual = Crc::new();
        actual.update(entry);
        if actual.sum() != crc {
            return Err(damaged());
        }
        let head: Head = rmp_serde::from_slice(&entry[..head_len]).map_err(|_| damaged())?;
        let body = self.at + PREFIX + head_len;
        let folder = head.folder.clone();
        self.current = Some((head, body..body + body_len));
        self.at = body + body_len;
        Ok(Some(folder))
    }

    /// Makes `wanted` bytes available from the current place on.
    fn fill(&mut self, file: &File, wanted: usize) -> io::Result<()> {
        let available = self.buffer.len() - self.at;
        if available >= wanted {
            return Ok(());
        }
        self.buffer.drain(..self.at);
        self.at = 0;
        let missing = (wanted - available) as u64;
        let unread = self.rest.end - self.rest.start;
        if missing > unread {
            return Err(damaged());
        }
        let more = missing.max(self.ahead as u64).min(unread) as usize;
        let from = self.buffer.len();
        self.buffer.reserve_exact(more);
        self.buffer.resize(from + more, 0);
        let read = file.read_exact_at(&mut self.buffer[from..], self.rest.start);
        if read.is_err() {
            self.buffer.truncate(from);
        }
        read?;
        self.rest.start += more as u64;
        Ok(())
    }

    fn entry(&self) -> io::Result<Entry<'_>> {
        let (head, body) = self.current.as_ref().ok_or_else(damaged)?;
        Ok(Entry {
            head,
            body: &self.buffer[body.clone()],
        })
    }
}

fn damaged() -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        "spilled lines were not read back as they were written",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;
    use crate::codec::Part;
    use crate::compress::Compression;
    use crate::delivery::ack::{AckTracker, Owner};
    use crate::delivery::objects::{Bounds, Objects};
    use crate::format::BLOCK_BYTES;
    use crate::format::json_lines::Lines;

    fn tracker(chunk: Seq, tag: &[u8]) -> Arc<AckTracker> {
        let (completed, _) = mpsc::unbounded_channel();
        let owner = Owner::Chunk(chunk);
        Arc::new(AckTracker::of_chunk(
            tag,
            EventSet::default(),
            owner,
            completed,
        ))
    }

    fn format(compression: Compression) -> Arc<dyn Format> {
        Arc::new(Lines::new(compression, BLOCK_BYTES))
    }

    /// Open objects that are never full.
    fn objects(compression: Compression) -> Objects {
        Objects::new(
            format(compression),
            Bounds {
                object_bytes: usize::MAX,
                age: std::time::Duration::MAX,
                bytes: usize::MAX,
            },
        )
    }

    /// A part of one chunk: `lines` lines of `width` bytes in a folder, from event `from` on.
    fn part(folder: &str, chunk: Seq, from: u32, lines: u32, width: usize) -> Part {
        let mut part = Part {
            name: folder.to_owned(),
            target: None,
            first: Time {
                seconds: i64::from(from),
                nanos: 7,
            },
            text: Vec::new(),
            ends: Vec::new(),
            events: Vec::new(),
        };
        for event in from..from + lines {
            part.text
                .extend(format!("{chunk}/{event:0width$}\n").into_bytes());
            part.ends.push(part.text.len());
            part.events.push(event);
        }
        part
    }

    fn text(compression: Compression, object: &SpilledObject) -> String {
        let bytes = object.body.made().to_bytes();
        let bytes = match compression {
            Compression::Zstd(_) => zstd::decode_all(&bytes[..]).expect("zstd frames"),
            _ => bytes.to_vec(),
        };
        String::from_utf8(bytes).expect("text")
    }

    /// The parts of a run: folder, chunk, first event, number of lines, width.
    type Run = Vec<(u8, Seq, u32, u32, usize)>;

    /// Spills runs.
    fn spill(compression: Compression, runs: &[Run]) -> Spill {
        let mut spill = Spill::create(&std::env::temp_dir()).expect("a file");
        for run in runs {
            let mut objects = objects(compression);
            for &(folder, chunk, from, lines, width) in run {
                let folder = format!("f{folder}");
                let tracker = tracker(chunk, b"tag");
                let target = folder.as_str().into();
                let part = part(&folder, chunk, from, lines, width);
                let full = objects.add(part, &target, &tracker, Instant::now());
                assert!(full.is_empty());
            }
            spill
                .write(&mut objects.take_all())
                .expect("a disk with room");
        }
        spill
    }

    fn all(mut merge: Merge, compression: Compression, most: usize) -> Vec<SpilledObject> {
        let format = format(compression);
        std::iter::from_fn(|| merge.next(&format, most).expect("a disk that reads")).collect()
    }

    /// Runs of parts without two of the same events.
    fn runs() -> impl Strategy<Value = Vec<Run>> {
        let part = (
            0u8..6,
            1u64..5,
            1u32..30,
            prop_oneof![9 => 1usize..40, 1 => 9_000usize..12_000],
        );
        let runs = proptest::collection::vec(proptest::collection::vec(part, 1..8), 1..6);
        runs.prop_map(|runs| {
            let mut next = 0;
            let number = |(folder, chunk, lines, width): (u8, Seq, u32, usize)| {
                next += lines + 1;
                (folder, chunk, next - lines, lines, width)
            };
            let mut number = number;
            runs.into_iter()
                .map(|run| run.into_iter().map(&mut number).collect())
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 200 }))]

        #[test]
        fn merged_runs_are_their_lines_sorted_by_folder_and_otherwise_in_order(
            runs in runs(),
            compressed in any::<bool>(),
            memory in prop_oneof![Just(0usize), Just(1 << 20)],
            most in prop_oneof![Just(usize::MAX), 1_000usize..100_000],
        ) {
            let compression = match compressed {
                true => Compression::Zstd(1),
                false => Compression::None,
            };
            let made = all(spill(compression, &runs).merge(memory), compression, most);
            let mut expected: BTreeMap<String, (String, Vec<(Seq, u32)>)> = BTreeMap::new();
            for (folder, chunk, from, lines, width) in runs.iter().flatten().copied() {
                let folder = format!("f{folder}");
                let part = part(&folder, chunk, from, lines, width);
                let (text, events) = expected.entry(folder).or_default();
                text.push_str(&String::from_utf8(part.text).unwrap());
                events.extend(part.events.iter().map(|event| (chunk, *event)));
            }
            let mut actual: BTreeMap<String, (String, Vec<(Seq, u32)>)> = BTreeMap::new();
            prop_assert!(made.is_sorted_by(|a, b| a.folder <= b.folder));
            for object in &made {
                prop_assert_eq!(&*object.target, &object.folder);
                prop_assert_eq!(&object.tag[..], b"tag");
                prop_assert_eq!(object.first.nanos, 7);
                let (all, events) = actual.entry(object.folder.clone()).or_default();
                let text = text(compression, object);
                prop_assert_eq!(text.lines().count() as u64, object.lines);
                // Its events are those of its lines, in order.
                let of_lines: Vec<(Seq, u32)> = text
                    .lines()
                    .map(|line| line.split_once('/').unwrap())
                    .map(|(chunk, event)| (chunk.parse().unwrap(), event.parse().unwrap()))
                    .collect();
                let named = object.events.iter();
                let named = named.flat_map(|(chunk, runs)| {
                    runs.iter().cloned().flatten().map(|event| (*chunk, event))
                });
                prop_assert_eq!(&of_lines, &named.collect::<Vec<_>>());
                all.push_str(&text);
                events.extend(of_lines);
            }
            if most == usize::MAX {
                prop_assert_eq!(made.len(), expected.len());
            }
            for (folder, (text, events)) in &mut expected {
                let (found, named) = actual.remove(folder).expect("each folder has an object");
                prop_assert_eq!(&found, text);
                events.sort_unstable();
                let mut named = named;
                named.sort_unstable();
                prop_assert_eq!(&named, events);
            }
            prop_assert!(actual.is_empty());
        }

        #[test]
        fn a_changed_bit_is_noticed(bit in any::<prop::sample::Index>()) {
            let spill = spill(Compression::None, &[vec![(1, 1, 0, 3, 5)], vec![(1, 2, 0, 3, 5), (2, 2, 9, 1, 5)]]);
            let file = Arc::clone(&spill.file);
            let bit = bit.index(usize::try_from(spill.file_bytes()).unwrap() * 8);
            let mut byte = [0];
            file.read_exact_at(&mut byte, bit as u64 / 8).unwrap();
            byte[0] ^= 1 << (bit % 8);
            file.write_at(&byte, bit as u64 / 8).unwrap();
            let mut merge = spill.merge(1 << 20);
            let mut made = 0;
            let failed = loop {
                match merge.next(&format(Compression::None), usize::MAX) {
                    Ok(Some(_)) => made += 1,
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            prop_assert!(failed, "{made} objects were made");
        }
    }

    #[test]
    fn objects_stay_within_their_size() {
        let runs: Vec<Run> = (0..20u32)
            .map(|run| vec![(1, 1, run * 100, 50, 100)])
            .collect();
        for most in [6_000, 20_000] {
            let made = all(
                spill(Compression::None, &runs).merge(0),
                Compression::None,
                most,
            );
            let sizes: Vec<usize> = made.iter().map(|object| object.body.made().len()).collect();
            assert!(sizes.iter().all(|size| *size <= most), "{sizes:?}");
            assert!(sizes.iter().all(|size| *size > most / 2), "{sizes:?}");
        }
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // ranges of events, not events
    fn what_is_left_is_what_was_added_and_not_removed() {
        let mut left = Left::default();
        left.add(1, &[0..10, 20..30]);
        left.add(2, &[5..6]);
        left.add(1, &[15..16]);
        left.remove(1, &[0..10, 22..23]);
        left.remove(2, &[5..6]);
        assert!(left.holds(1) && !left.holds(2));
        assert_eq!(left.into_events(), [(1, vec![15..16, 20..22, 23..30])]);
        let mut left = Left::default();
        left.add(7, &[100..200]);
        assert!(left.bytes() > 0);
        left.remove(7, &[100..200]);
        assert_eq!((left.holds(7), left.bytes()), (false, 0));
    }
}
