//! Open objects: one for each folder, built from the rows of many chunks, in whatever format ([`crate::format`]).
//!
//! When all together take too much memory, the largest are sealed, as long as they are worth a request. If there are only
//! small ones, the caller spills them ([`Objects::wants_spill`]).
//!
//! Rows are gathered in blocks that are packed one by one. So an object's size is known as it grows, and where the blocks
//! are stored as they are it never exceeds its limit unless a single block does.
//! Pure: time is an argument, and nothing is sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::buffers;
use crate::codec::Part;
use crate::delivery::ack::{AckGuard, AckTracker};
use crate::format::{Block, Body, Format, Sealing};
use crate::ids::Time;
use crate::metrics::Sealed;

/// The compressed size below which no object is sealed to free memory, in bytes, unless it takes a quarter of it. A request costs as much as storing this for
/// a month, on S3: $5 for a million requests, $0.023 for a GB.
const MIN_SEALED_BYTES: usize = 256 * 1024;
/// The approximate overhead of an open object, besides its bytes and its folder's name.
const OPEN_BYTES: usize = 768;

/// The bounds of objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// `blob_max_size`: the compressed bytes of one object.
    pub(super) object_bytes: usize,
    /// `blob_max_age`: the time since its first line was added, which after a backlog is not its arrival.
    pub(super) age: Duration,
    /// The bytes of all open objects together.
    pub(super) bytes: usize,
}

/// An open object.
pub(super) struct OpenObject {
    /// The target of its folder.
    target: Arc<str>,
    /// The time of its first event.
    first: Time,
    /// The time at which that event was added.
    since: Instant,
    body: Body,
    /// The guards of what is packed; `block_guards` has those of the block being gathered.
    guards: Vec<AckGuard>,
    block_guards: Vec<AckGuard>,
    lines: u64,
    block_lines: u64,
    guard_bytes: usize,
}

/// A sealed object.
pub(super) struct SealedObject {
    /// The target of its folder.
    pub(super) target: Arc<str>,
    /// Its folder, below the store's prefix.
    pub(super) folder: String,
    /// The time of its first event.
    pub(super) first: Time,
    /// What is to be stored.
    pub(super) body: Sealing,
    /// The guards of its events.
    pub(super) guards: Vec<AckGuard>,
    /// The number of lines.
    pub(super) lines: u64,
    /// The reason why it was sealed.
    pub(super) why: Sealed,
    /// What it is made by.
    pub(super) format: Arc<dyn Format>,
}

/// The open objects of one instance.
pub(super) struct Objects {
    format: Arc<dyn Format>,
    bounds: Bounds,
    open: HashMap<String, OpenObject>,
    bytes: usize,
    /// The part of the bytes of all objects that is taken by the chunks they are made from.
    chunk_bytes: usize,
}

impl OpenObject {
    fn new(target: &Arc<str>, first: Time, now: Instant, format: &Arc<dyn Format>) -> OpenObject {
        OpenObject {
            target: Arc::clone(target),
            first,
            since: now,
            body: Body::new(format),
            guards: Vec::new(),
            block_guards: Vec::new(),
            lines: 0,
            block_lines: 0,
            guard_bytes: 0,
        }
    }

    /// Returns the target of its folder.
    pub(super) fn target(&self) -> &Arc<str> {
        &self.target
    }

    /// Returns the time of its first event.
    pub(super) fn first(&self) -> Time {
        self.first
    }

    /// Returns the time at which that event was added.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Returns its lines.
    pub(super) fn body(&self) -> &Body {
        &self.body
    }

    /// Returns the number of its lines.
    pub(super) fn lines(&self) -> u64 {
        self.lines + self.block_lines
    }

    /// Returns the guards of its events.
    pub(super) fn guards(&self) -> impl Iterator<Item = &AckGuard> {
        self.guards.iter().chain(&self.block_guards)
    }

    /// Returns the guards of its events, and drops its lines.
    pub(super) fn into_guards(self) -> impl Iterator<Item = AckGuard> {
        self.guards.into_iter().chain(self.block_guards)
    }

    fn bytes(&self) -> usize {
        OPEN_BYTES + self.body.bytes() + self.guard_bytes
    }

    fn seal(mut self, folder: String, why: Sealed) -> SealedObject {
        self.guards.append(&mut self.block_guards);
        SealedObject {
            target: self.target,
            folder,
            first: self.first,
            format: Arc::clone(self.body.format()),
            body: self.body.seal(),
            guards: self.guards,
            lines: self.lines + self.block_lines,
            why,
        }
    }
}

impl Objects {
    pub(super) fn new(format: Arc<dyn Format>, bounds: Bounds) -> Objects {
        Objects {
            format,
            bounds,
            open: HashMap::new(),
            bytes: 0,
            chunk_bytes: 0,
        }
    }

    /// Adds a part of a chunk to its folder's object. Returns the objects that are full.
    pub(super) fn add(
        &mut self,
        part: Part,
        target: &Arc<str>,
        tracker: &Arc<AckTracker>,
        now: Instant,
    ) -> Vec<SealedObject> {
        let mut sealed = Vec::new();
        let events: Arc<[u32]> = part.events.into();
        let (mut row, mut start) = (0, 0);
        while row < events.len() {
            let mut open = match self.open.remove(&part.name) {
                Some(open) => {
                    self.bytes -= open.bytes();
                    open
                }
                None => OpenObject::new(target, part.first, now, &self.format),
            };
            let (fitting, full) = open.body.fitting(&part.ends[row..], start);
            let run = row..row + fitting;
            let end = run.end.checked_sub(1).map_or(0, |last| part.ends[last]);
            let rows = &part.text[start..end];
            (row, start) = (run.end, end);
            if fitting > 0 {
                open.block_lines += fitting as u64;
                let guard = tracker.guard(&events, run);
                open.guard_bytes += guard.footprint();
                open.block_guards.push(guard);
            }
            if full {
                let block = open.body.end_block(rows);
                open = self.close_block(block, &part.name, part.first, open, now, &mut sealed);
            } else {
                open.body.append(rows);
            }
            if open.body.stored_bytes() >= self.bounds.object_bytes {
                sealed.push(open.seal(part.name.clone(), Sealed::Size));
            } else {
                self.bytes += open.bytes();
                self.open.insert(part.name.clone(), open);
            }
        }
        buffers::give(part.text);
        sealed.extend(self.trim());
        sealed
    }

    /// Adds a packed block. If the object has no room for it, the object is sealed without it, and the block starts the
    /// next one.
    fn close_block(
        &self,
        block: Block,
        folder: &str,
        first: Time,
        mut open: OpenObject,
        now: Instant,
        sealed: &mut Vec<SealedObject>,
    ) -> OpenObject {
        let guards = std::mem::take(&mut open.block_guards);
        let lines = std::mem::take(&mut open.block_lines);
        let with = self
            .format
            .stored_bytes(open.body.packed_bytes() + block.packed.len());
        if with > self.bounds.object_bytes && !open.body.has_no_block() {
            let mut next = OpenObject::new(&open.target, first, now, &self.format);
            next.guard_bytes = guards.iter().map(AckGuard::footprint).sum();
            sealed.push(open.seal(folder.to_owned(), Sealed::Size));
            open = next;
        }
        open.body.add_block(block);
        open.guards.extend(guards);
        open.lines += lines;
        open
    }

    /// Seals the largest objects while all take too many bytes, except for small ones.
    fn trim(&mut self) -> Vec<SealedObject> {
        self.trim_to(MIN_SEALED_BYTES.min(self.bounds.bytes / 4))
    }

    /// Seals the largest objects while all take too many bytes, however small they are: they cannot be spilled.
    pub(super) fn seal_largest(&mut self) -> Vec<SealedObject> {
        self.trim_to(0)
    }

    fn trim_to(&mut self, least: usize) -> Vec<SealedObject> {
        let mut sealed = Vec::new();
        while self.wants_spill() {
            let large = self.open.iter();
            let large = large.filter(|(_, open)| open.body.likely_bytes() >= least);
            let large = large.max_by_key(|(_, open)| (open.bytes(), std::cmp::Reverse(open.since)));
            let Some(folder) = large.map(|(folder, _)| folder.clone()) else {
                break;
            };
            sealed.extend(self.seal(&folder, Sealed::Memory));
        }
        sealed
    }

    /// Returns whether the objects take too many bytes, though all of them are small.
    pub(super) fn wants_spill(&self) -> bool {
        self.bytes > self.bounds.bytes.saturating_sub(self.chunk_bytes)
    }

    /// Takes all objects, with their folders.
    pub(super) fn take_all(&mut self) -> Vec<(String, OpenObject)> {
        self.bytes = 0;
        self.open.drain().collect()
    }

    /// Puts back objects that were taken. Nothing else was added meanwhile.
    pub(super) fn put_back(&mut self, objects: Vec<(String, OpenObject)>) {
        for (folder, open) in objects {
            self.bytes += open.bytes();
            self.open.insert(folder, open);
        }
    }

    fn seal(&mut self, folder: &str, why: Sealed) -> Vec<SealedObject> {
        let Some((folder, mut open)) = self.open.remove_entry(folder) else {
            return Vec::new();
        };
        self.bytes -= open.bytes();
        let (first, since) = (open.first, open.since);
        let mut sealed = Vec::new();
        if !open.body.open().is_empty() {
            let block = open.body.end_block(&[]);
            open = self.close_block(block, &folder, first, open, since, &mut sealed);
        }
        sealed.push(open.seal(folder, why));
        sealed
    }

    /// Drops the objects of an unavailable target: their events are deferred.
    pub(super) fn defer(&mut self, target: &Arc<str>) {
        let of = |_: &String, open: &mut OpenObject| open.target == *target;
        for (_, open) in self.open.extract_if(of) {
            self.bytes -= open.bytes();
            for guard in open.guards.into_iter().chain(open.block_guards) {
                guard.defer(target, None);
            }
        }
    }

    fn seal_matching(
        &mut self,
        why: Sealed,
        matches: impl Fn(&OpenObject) -> bool,
    ) -> Vec<SealedObject> {
        let those = self.open.iter().filter(|(_, open)| matches(open));
        let folders: Vec<String> = those.map(|(folder, _)| folder.clone()).collect();
        let sealed = folders.iter().flat_map(|folder| self.seal(folder, why));
        sealed.collect()
    }

    /// Reserves memory for the chunks that the objects are made from, which are held until all of their objects are
    /// stored.
    pub(super) fn reserve_for_chunks(&mut self, bytes: usize) {
        self.chunk_bytes = bytes;
    }

    /// Returns the approximate memory use of all objects.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns when the next object reaches its maximum age.
    pub(super) fn due(&self) -> Option<Instant> {
        let oldest = self.open.values().map(|open| open.since).min()?;
        Some(oldest + self.bounds.age)
    }

    /// Seals the objects that have reached their maximum age.
    pub(super) fn seal_aged(&mut self, now: Instant) -> Vec<SealedObject> {
        let age = self.bounds.age;
        self.seal_matching(Sealed::Age, |open| open.since + age <= now)
    }

    /// Seals all objects because the memory or the spool that holds them is filling up.
    pub(super) fn seal_for_room(&mut self) -> Vec<SealedObject> {
        self.seal_matching(Sealed::Memory, |_| true)
    }

    /// Seals all objects, at the end.
    pub(super) fn seal_all(&mut self) -> Vec<SealedObject> {
        self.seal_matching(Sealed::Stop, |_| true)
    }

    /// Returns the settings that objects are built with.
    pub(super) fn settings(&self) -> (Arc<dyn Format>, Bounds) {
        (Arc::clone(&self.format), self.bounds)
    }

    /// Returns whether no object is open.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Compression;
    use crate::delivery::ack::Owner;
    use crate::format::BLOCK_BYTES;
    use crate::format::json_lines::Lines;
    use crate::ids::EventSet;
    use flate2::read::MultiGzDecoder;
    use std::io::Read as _;
    use tokio::sync::mpsc;

    fn tracker(chunk: u64) -> Arc<AckTracker> {
        let (completed, _) = mpsc::unbounded_channel();
        let tracker = Arc::new(AckTracker::of_chunk(
            b"t",
            EventSet::default(),
            Owner::Chunk(chunk),
            completed,
        ));
        tracker.has_events(1_000_000);
        tracker
    }

    /// A part of lines that do not compress well.
    fn part(folder: &str, from: u32, lines: u32) -> Part {
        let mut part = Part {
            name: folder.to_owned(),
            target: None,
            first: Time {
                seconds: i64::from(from),
                nanos: 0,
            },
            text: Vec::new(),
            ends: Vec::new(),
            events: Vec::new(),
        };
        for event in from..from + lines {
            let noise = blake3::hash(&event.to_le_bytes());
            part.text
                .extend_from_slice(format!("{event} {}\n", noise.to_hex()).as_bytes());
            part.ends.push(part.text.len());
            part.events.push(event);
        }
        part
    }

    fn target() -> Arc<str> {
        "".into()
    }

    fn objects(compression: Compression, object_bytes: usize, bytes: usize) -> Objects {
        let block = BLOCK_BYTES.min(object_bytes);
        Objects::new(
            Arc::new(Lines::new(compression, block)),
            Bounds {
                object_bytes,
                age: Duration::from_secs(300),
                bytes,
            },
        )
    }

    fn text(sealed: &SealedObject) -> String {
        let mut text = String::new();
        let body = sealed.body.made().to_bytes();
        let mut reader = MultiGzDecoder::new(&body[..]);
        reader.read_to_string(&mut text).expect("gzip");
        text
    }

    fn events(sealed: &SealedObject) -> Vec<u32> {
        let each = sealed.guards.iter();
        each.filter_map(|guard| guard.of_chunk())
            .flat_map(|(_, events, _)| events.to_vec())
            .collect()
    }

    #[test]
    fn an_object_is_sealed_by_its_compressed_size_and_never_larger() {
        let most = 500_000;
        let mut objects = objects(Compression::Gzip(2), most, usize::MAX);
        let tracker = tracker(1);
        let mut sealed = Vec::new();
        for n in 0..20 {
            sealed.extend(objects.add(
                part("a", n * 2_000, 2_000),
                &target(),
                &tracker,
                Instant::now(),
            ));
        }
        assert!(sealed.len() >= 3, "{}", sealed.len());
        for object in &sealed {
            assert_eq!(object.why, Sealed::Size);
            assert!(
                object.body.made().len() <= most,
                "{}",
                object.body.made().len()
            );
            assert!(
                object.body.made().len() > most / 2,
                "{}",
                object.body.made().len()
            );
        }
        sealed.extend(objects.seal_all());
        assert!(objects.is_empty() && objects.bytes == 0);
        let mut seen = Vec::new();
        for object in &sealed {
            let text = text(object);
            let numbers: Vec<u32> = text
                .lines()
                .map(|line| line.split(' ').next().unwrap().parse().unwrap())
                .collect();
            assert_eq!(numbers, events(object), "its guards are those of its lines");
            assert_eq!(numbers.len() as u64, object.lines);
            seen.extend(numbers);
        }
        assert_eq!(
            seen,
            (0..40_000).collect::<Vec<_>>(),
            "each line once, in order"
        );
    }

    #[test]
    fn uncompressed_objects_stay_within_their_size_too() {
        for most in [10_000, 300_000, 1_000_000] {
            let mut objects = objects(Compression::None, most, usize::MAX);
            let tracker = tracker(1);
            let mut sealed = Vec::new();
            for n in 0..10 {
                sealed.extend(objects.add(
                    part("a", n * 2_000, 2_000),
                    &target(),
                    &tracker,
                    Instant::now(),
                ));
            }
            sealed.extend(objects.seal_all());
            let largest = sealed.iter().map(|object| object.body.made().len()).max();
            assert!(largest <= Some(most), "{most}: {largest:?}");
            let all: Vec<u32> = sealed.iter().flat_map(events).collect();
            assert_eq!(all, (0..20_000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn age_counts_from_the_first_line_and_memory_seals_the_largest() {
        let start = Instant::now();
        let mut objects = objects(Compression::None, usize::MAX, 100_000);
        let tracker = tracker(1);
        assert!(objects.due().is_none());
        assert!(
            objects
                .add(part("a", 0, 10), &target(), &tracker, start)
                .is_empty()
        );
        let later = start + Duration::from_secs(10);
        assert!(
            objects
                .add(part("a", 10, 10), &target(), &tracker, later)
                .is_empty()
        );
        assert!(
            objects
                .add(part("b", 20, 10), &target(), &tracker, later)
                .is_empty()
        );
        assert_eq!(objects.due(), Some(start + Duration::from_secs(300)));
        let aged = objects.seal_aged(start + Duration::from_secs(300));
        assert_eq!(aged.len(), 1);
        assert_eq!((aged[0].folder.as_str(), aged[0].why), ("a", Sealed::Age));
        assert_eq!(aged[0].first.seconds, 0);
        let sealed = objects.add(part("c", 30, 2_000), &target(), &tracker, later);
        assert_eq!(sealed.len(), 1);
        assert_eq!(
            (sealed[0].folder.as_str(), sealed[0].why),
            ("c", Sealed::Memory)
        );
    }

    #[test]
    fn small_objects_are_not_sealed_for_memory_but_taken_together() {
        let start = Instant::now();
        let mut objects = objects(Compression::None, usize::MAX, 100_000);
        let tracker = tracker(1);
        let mut added = 0;
        while !objects.wants_spill() {
            let folder = part(&format!("f{added}"), added, 1);
            assert!(objects.add(folder, &target(), &tracker, start).is_empty());
            added += 1;
        }
        assert!(added > 50, "{added}");
        let bytes = objects.bytes();
        let mut taken = objects.take_all();
        assert_eq!((taken.len(), objects.bytes()), (added as usize, 0));
        assert!(objects.is_empty() && !objects.wants_spill());
        taken.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let (folder, open) = &taken[1];
        assert_eq!((folder.as_str(), open.lines()), ("f1", 1));
        objects.put_back(taken);
        assert_eq!(objects.bytes(), bytes);
        // Without a disk to spill to, memory is bounded all the same.
        let sealed = objects.seal_largest();
        assert!(!sealed.is_empty() && !objects.wants_spill());
        assert!(sealed.iter().all(|object| object.why == Sealed::Memory));
        assert_eq!(objects.seal_all().len() + sealed.len(), added as usize);
        assert_eq!(objects.bytes(), 0);
    }

    #[test]
    fn a_large_object_is_sealed_for_memory_and_the_small_ones_beside_it_stay_open() {
        let mut objects = objects(Compression::None, usize::MAX, 200_000);
        let tracker = tracker(1);
        let now = Instant::now();
        for n in 0..20 {
            let small = part(&format!("f{n}"), n, 1);
            assert!(objects.add(small, &target(), &tracker, now).is_empty());
        }
        let sealed = objects.add(part("large", 100, 3_000), &target(), &tracker, now);
        let folders: Vec<&str> = sealed.iter().map(|object| object.folder.as_str()).collect();
        assert_eq!(folders, ["large"]);
        assert_eq!(objects.take_all().len(), 20);
    }
}
