//! The writer thread: the only one that appends to segments, begins them and removes them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::disk::{File, LockState, says_remedy, with_remedy};
use super::frame::{
    Begin, END, HEADER, Head, Kind, PLAIN_VERSION, QUARANTINE, RESERVE, VERSION, copy_name,
    displaced_name, padding, segment_first, segment_name, spare_name,
};
use super::manifest::{Checkpoint, Entry as ManifestEntry, ManifestWriter};
use super::note::Moved;
use super::recovery::copy_bytes;
use super::scan::Place;
use super::{
    Active, Appended, Durability, Refusal, SPARE_SHARE, SegmentInfo, Seq, Shared, State, lock_lost,
    no_room_to_relocate,
};
use crate::ids::Time;
use crate::ids::chunk_id;

/// The maximum size of a group, in bytes. In a larger one the first append would wait too long for the last.
const GROUP_BYTES: u64 = 8 << 20;
/// The maximum number of segments remembered that were finished while missing, to be removed if they come back.
const MAX_FINISHED_MISSING: usize = 64;
/// The maximum number of files kept for each segment that were found in its place.
const MAX_DISPLACED: u32 = 8;
/// The number of closed segments checked at once: all are checked within seconds, without delaying a flush.
const CHECKED_AT_ONCE: usize = 64;
/// The time limit for removing finished segments at close.
const CLOSE_CLEANUP_LIMIT: Duration = Duration::from_secs(1);
/// The maximum size of notes that are written and not synced, in bytes: they are held in memory until then.
const MAX_UNSYNCED_NOTES: u64 = 1 << 20;

/// A request to the writer thread.
pub(super) enum Job {
    /// Append a chunk.
    Chunk {
        slot: Arc<Slot>,
        /// The length of its frame, which is reserved.
        length: u64,
        answer: oneshot::Sender<Result<Appended, Refusal>>,
    },
    /// Write a note.
    Note {
        payload: Bytes,
        durability: Durability,
        /// Greater than the number of the note's batch.
        next_batch: u64,
        answer: oneshot::Sender<io::Result<()>>,
    },
    /// Write events of older chunks again.
    Relocation {
        relocating: Relocating,
        answer: oneshot::Sender<io::Result<Seq>>,
    },
    /// Remove finished segments.
    CleanUp,
    /// Check whether a restart would find everything accepted.
    Look,
    /// Send a message once all work is done.
    #[cfg(test)]
    WaitIdle(std::sync::mpsc::Sender<()>),
    /// End; `shrink`: leave as little as possible on disk.
    Stop { shrink: bool },
}

/// A queued chunk. It is taken out once: by the thread, which writes it, or by a caller that gives up, which drops its
/// bytes at once.
pub(super) struct Slot(Mutex<Option<Waiting>>);

/// The contents of a [`Slot`].
pub(super) struct Waiting {
    /// The header, still without number and spool.
    pub(super) head: Head,
    /// The CRC-32 of tag and data.
    pub(super) crc: u32,
    pub(super) tag: Box<[u8]>,
    pub(super) data: Bytes,
}

/// A queued relocation. The length of its frame is reserved.
pub(super) struct Relocating {
    /// The header, still without number and spool.
    pub(super) head: Head,
    /// The CRC-32 of tag and data.
    pub(super) crc: u32,
    /// The tag, and what precedes the events in the data.
    pub(super) before_events: Box<[u8]>,
    /// The length of what precedes the events in the data, in bytes.
    pub(super) origins: u32,
    pub(super) events: Bytes,
}

impl Slot {
    pub(super) fn new(waiting: Waiting) -> Slot {
        Slot(Mutex::new(Some(waiting)))
    }

    pub(super) fn take(&self) -> Option<Waiting> {
        self.0.lock().expect("nothing panics with this lock").take()
    }
}

/// The header of a note, without number and spool, which are filled in when it is written.
fn note_head(payload: &[u8]) -> Head {
    Head {
        kind: Kind::Note,
        number: 0,
        spool: 0,
        tag_len: 0,
        data_len: u32::try_from(payload.len()).expect("checked before it was queued"),
        arrived: Time::default(),
        id: chunk_id(b"", payload),
    }
}

/// One frame of a group.
struct GroupEntry {
    head: Head,
    /// The tag; of a relocated chunk, what precedes the events in the data as well.
    tag: Box<[u8]>,
    data: Bytes,
    waiter: Waiter,
}

/// Assigns consecutive numbers to frames.
fn number<'h>(heads: impl Iterator<Item = &'h mut Head>, first: Seq, spool: u64) {
    for (head, number) in heads.zip(first..) {
        head.number = number;
        head.spool = spool;
    }
}

/// The caller that waits for a frame.
enum Waiter {
    Chunk {
        crc: u32,
        answer: oneshot::Sender<Result<Appended, Refusal>>,
    },
    Note {
        durability: Durability,
        next_batch: u64,
        answer: oneshot::Sender<io::Result<()>>,
    },
    Relocation {
        crc: u32,
        origins: u32,
        answer: oneshot::Sender<io::Result<Seq>>,
    },
}

impl GroupEntry {
    fn frame(&self) -> (&Head, &[u8], &[u8]) {
        (&self.head, &self.tag, &self.data)
    }

    /// Whether it is a chunk that is to be delivered, appended or relocated.
    fn is_chunk(&self) -> bool {
        self.head.kind.is_chunk()
    }

    fn is_relocated(&self) -> bool {
        self.head.kind == Kind::Relocated
    }

    fn wants_sync(&self) -> bool {
        match self.waiter {
            Waiter::Chunk { .. } | Waiter::Relocation { .. } => true,
            Waiter::Note { durability, .. } => durability == Durability::Synced,
        }
    }
}

/// A segment that failed to begin, and whose file could not be removed.
struct Debris {
    /// The possible names of the file.
    names: Vec<String>,
    bytes: u64,
}

/// A finished segment's file that a later segment may overwrite.
struct Spare {
    name: String,
    bytes: u64,
}

/// The place of the next group.
struct Plan {
    /// The number of bytes in its segment before it.
    base: u64,
    /// The number of those that are still to be written.
    begin: u64,
    /// Its segment's format version allows, or will allow, relocated chunks.
    takes_relocations: bool,
}

/// The state of the writer thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    /// A job taken from the queue that did not fit the group.
    deferred: Option<Job>,
    /// `None`: the next group begins a segment.
    active: Option<Active>,
    /// The number of the next frame.
    next: Seq,
    /// Notes that are acknowledged and not synced. If their segment is abandoned, the next one begins with them.
    unsynced_notes: Vec<(Head, Bytes)>,
    /// Abandoned segments that could not be truncated, with their valid length.
    untrimmed: Vec<(Seq, u64)>,
    debris: Option<Debris>,
    /// A removal is not durable yet. The next new segment or removal makes it so.
    removed: bool,
    /// Spares whose names are durable.
    spares: VecDeque<Spare>,
    /// Spares whose names are not durable: a crash may turn them into segments again, so they must not be overwritten.
    unsynced_spares: Vec<Spare>,
    /// Finished segments become spares.
    keeps_spares: bool,
    /// The reserve exists.
    has_reserve: bool,
    /// A look was requested while a group was gathered.
    look_requested: bool,
    /// Something failed: check before more chunks are written.
    needs_look: bool,
    /// A restored segment's name is not durable yet.
    name_unsynced: bool,
    /// The lock was lost for a while, and it is not verified yet that no other process changed anything.
    unverified: bool,
    /// Another process changed the directory: this one leaves it alone.
    changed_by_other: bool,
    /// The closed segment to check next.
    next_checked: Seq,
    /// Segments of which a partial copy may exist.
    partial_copies: BTreeSet<Seq>,
    /// Finished segments that were missing when they were to be removed.
    finished_missing: VecDeque<Seq>,
    manifest: ManifestWriter,
    /// Not all numbers before `next` are known to be used: missing segments may have some of them.
    after_gap: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        jobs: Receiver<Job>,
        active: Option<Active>,
        next: Seq,
        manifest: ManifestWriter,
        after_gap: bool,
    ) -> Writer {
        Writer {
            shared,
            jobs,
            deferred: None,
            active,
            next,
            unsynced_notes: Vec::new(),
            untrimmed: Vec::new(),
            debris: None,
            removed: false,
            spares: VecDeque::new(),
            unsynced_spares: Vec::new(),
            keeps_spares: true,
            has_reserve: false,
            look_requested: false,
            needs_look: false,
            name_unsynced: false,
            unverified: false,
            changed_by_other: false,
            next_checked: 0,
            partial_copies: BTreeSet::new(),
            finished_missing: VecDeque::new(),
            manifest,
            after_gap,
        }
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        while let Some(job) = self.next_job() {
            match job {
                Job::CleanUp => drop(self.clean_up()),
                Job::Look => drop(self.look()),
                #[cfg(test)]
                Job::WaitIdle(done) => {
                    while self.needs_cleanup() && self.clean_up() {}
                    let _ = done.send(());
                }
                Job::Stop { shrink } => {
                    if shrink {
                        self.shrink();
                    }
                    return;
                }
                Job::Chunk { .. } | Job::Note { .. } | Job::Relocation { .. } => {
                    let group = self.gather(job);
                    if !group.is_empty() {
                        self.commit(group);
                    }
                    if std::mem::take(&mut self.look_requested) {
                        let _ = self.look();
                    }
                    // Covers all requests so far; a later request queues its own job.
                    self.state().cleanup_queued = false;
                    if self.needs_cleanup() {
                        self.clean_up();
                    }
                }
            }
        }
    }

    /// The next job. Cleans up step by step while the queue is empty. `None`: all senders are gone.
    fn next_job(&mut self) -> Option<Job> {
        loop {
            let queued = self.deferred.take().or_else(|| self.jobs.try_recv().ok());
            if queued.is_some() {
                return queued;
            }
            if !(self.needs_cleanup() && self.clean_up()) {
                return self.jobs.recv().ok();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// Builds a group from `first` and the queued jobs that fit.
    fn gather(&mut self, first: Job) -> Vec<GroupEntry> {
        let mut group: Vec<GroupEntry> = Vec::new();
        let mut bytes = 0;
        let mut plan = Plan {
            base: 0,
            begin: 0,
            takes_relocations: false,
        };
        let mut next = Some(first);
        while let Some(job) = next.take().or_else(|| self.jobs.try_recv().ok()) {
            let length = match &job {
                Job::Chunk { length, .. } => *length,
                Job::Note { payload, .. } => note_length(payload),
                Job::Relocation { relocating, .. } => relocating.head.length(),
                // Done after the group.
                Job::CleanUp => continue,
                Job::Look => {
                    self.look_requested = true;
                    continue;
                }
                _ => {
                    self.deferred = Some(job);
                    break;
                }
            };
            let relocates = matches!(job, Job::Relocation { .. });
            if group.is_empty() {
                plan = self.plan(length, relocates);
            } else if bytes + length > GROUP_BYTES
                || plan.base + bytes + length > self.shared.limits.segment_bytes
                || relocates && !plan.takes_relocations
            {
                self.deferred = Some(job);
                break;
            }
            let entry = match job {
                Job::Chunk { slot, answer, .. } => self.dequeue_chunk(&slot, answer, &plan, bytes),
                Job::Note {
                    payload,
                    durability,
                    next_batch,
                    answer,
                } => Some(GroupEntry {
                    head: note_head(&payload),
                    tag: Box::default(),
                    data: payload,
                    waiter: Waiter::Note {
                        durability,
                        next_batch,
                        answer,
                    },
                }),
                Job::Relocation { relocating, answer } => {
                    self.take_relocation(relocating, answer, &plan, bytes)
                }
                _ => None,
            };
            if let Some(entry) = entry {
                bytes += length;
                group.push(entry);
            }
        }
        group
    }

    fn plan(&self, length: u64, relocates: bool) -> Plan {
        match &self.active {
            Some(active) if self.fits(active, length, relocates) => Plan {
                base: active.len,
                begin: 0,
                takes_relocations: active.version == VERSION,
            },
            _ => {
                let unsynced_notes: u64 = self
                    .unsynced_notes
                    .iter()
                    .map(|(head, _)| head.length())
                    .sum();
                let begin = Begin::length(self.state().window.len()) + unsynced_notes;
                Plan {
                    base: begin,
                    begin,
                    takes_relocations: true,
                }
            }
        }
    }

    /// Whether `bytes`, with relocated chunks among them if the group `relocates`, fit into the active segment. A frame larger
    /// than a segment gets one of its own.
    fn fits(&self, active: &Active, bytes: u64, relocates: bool) -> bool {
        (active.bare || active.len + bytes <= self.shared.limits.segment_bytes)
            && (active.version == VERSION || !relocates)
    }

    /// Dequeues a chunk, unless its caller has given up or it does not fit after `before` bytes.
    fn dequeue_chunk(
        &mut self,
        slot: &Slot,
        answer: oneshot::Sender<Result<Appended, Refusal>>,
        plan: &Plan,
        before: u64,
    ) -> Option<GroupEntry> {
        let Waiting {
            head,
            crc,
            tag,
            data,
        } = slot.take()?;
        let limit = self.shared.limits.limit;
        if !self.find_room(plan, before + head.length(), limit) {
            let mut state = self.state();
            state.reserved -= head.length();
            state.needs_space = true;
            let bytes = state.bytes;
            drop(state);
            drop(data);
            let _ = answer.send(Err(Refusal::Full { bytes, limit }));
            return None;
        }
        Some(GroupEntry {
            head,
            tag,
            data,
            waiter: Waiter::Chunk { crc, answer },
        })
    }

    /// Takes a relocation into a group, unless it does not fit after `before` bytes.
    fn take_relocation(
        &mut self,
        relocating: Relocating,
        answer: oneshot::Sender<io::Result<Seq>>,
        plan: &Plan,
        before: u64,
    ) -> Option<GroupEntry> {
        let Relocating {
            head,
            crc,
            before_events,
            origins,
            events,
        } = relocating;
        let limit = self.state().relocation_limit(&self.shared.limits);
        if !self.find_room(plan, before + head.length(), limit) {
            let mut state = self.state();
            state.reserved -= head.length();
            let bytes = state.bytes;
            drop(state);
            drop(events);
            let _ = answer.send(Err(no_room_to_relocate(bytes, limit)));
            return None;
        }
        Some(GroupEntry {
            head,
            tag: before_events,
            data: events,
            waiter: Waiter::Relocation {
                crc,
                origins,
                answer,
            },
        })
    }

    /// Whether a group of `bytes` fits below a limit. Removes spares and finished segments for it.
    fn find_room(&mut self, plan: &Plan, bytes: u64, limit: u64) -> bool {
        let needed = plan.begin + bytes;
        let in_new_segment = plan.begin > 0;
        let mut fits = self.make_room(in_new_segment, needed, limit);
        while !fits && self.clean_up() {
            fits = self.make_room(in_new_segment, needed, limit);
        }
        fits
    }

    /// Whether `needed` bytes fit below a limit. Removes spares for them.
    fn make_room(&mut self, in_new_segment: bool, needed: u64, limit: u64) -> bool {
        loop {
            let state = self.state();
            let used = match in_new_segment {
                true => state.bytes,
                false => state.used(),
            };
            let spares = state.spares;
            drop(state);
            if used + needed + spares <= limit {
                return true;
            }
            if used + needed > limit || !self.drop_spare() {
                return false;
            }
        }
    }

    /// Removes a spare. Returns whether one was removed.
    fn drop_spare(&mut self) -> bool {
        let Some(spare) = self
            .unsynced_spares
            .pop()
            .or_else(|| self.spares.pop_back())
        else {
            return false;
        };
        if self.remove(&spare.name).is_err() {
            self.unsynced_spares.push(spare);
            return false;
        }
        self.state().spares -= spare.bytes;
        true
    }

    /// Removes a file if it exists.
    fn remove(&self, name: &str) -> io::Result<()> {
        match self.shared.disk.remove(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Writes a group, and answers all callers in it.
    fn commit(&mut self, mut group: Vec<GroupEntry>) {
        if let Err(error) = self.prepare_for_chunks(&group) {
            // Notes can be written wherever the directory is, since their chunks are in it as well.
            let all = self.state().lock_lost;
            let refused = group.extract_if(.., |entry| all || entry.is_chunk());
            let refused = refused.collect();
            self.refuse(refused, &error);
            if group.is_empty() {
                return;
            }
        }
        let mut written = self.write(&mut group);
        if matches!(&written, Err(error) if error.kind() == ErrorKind::NotFound) {
            // The directory was deleted, or a spare: retry with another.
            written = self.look().and_then(|()| self.write(&mut group));
        }
        match written {
            Ok(start) => self.publish(group, start),
            Err(error) => {
                self.needs_look = true;
                // The disk may be full below the limit.
                while self.drop_spare() {}
                match is_full(&error) {
                    // Finished chunks in the newest segment may be what fills the disk.
                    true if group.iter().any(GroupEntry::is_chunk) => {
                        self.state().needs_space = true
                    }
                    true => self.release_reserve(),
                    false => {}
                }
                self.refuse(group, &error);
            }
        }
    }

    /// Checks what must hold before chunks are written.
    fn prepare_for_chunks(&mut self, group: &[GroupEntry]) -> io::Result<()> {
        if self.needs_look {
            self.look()?;
        }
        self.ensure_reserve(group)
    }

    /// Creates the reserve before chunks are written. Fails if the disk has no space for it, since other programs may fill
    /// the disk as well. After any other error the spool goes on without one.
    fn ensure_reserve(&mut self, group: &[GroupEntry]) -> io::Result<()> {
        if self.has_reserve || !group.iter().any(GroupEntry::is_chunk) {
            return Ok(());
        }
        if self.state().needs_rotation() {
            // Rotate first, so that the current segment can be removed.
            return Err(ErrorKind::StorageFull.into());
        }
        let disk = &self.shared.disk;
        let file = match disk.create(RESERVE) {
            // Left by an earlier run.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => disk.open(RESERVE),
            created => created,
        };
        let zeros = vec![0; self.shared.limits.reserve_bytes()];
        match file.and_then(|file| file.write_at(&[IoSlice::new(&zeros)], 0)) {
            Err(error) if is_full(&error) => {
                // A partial reserve only takes space. The next chunk may use the space of the spares.
                let _ = self.remove(RESERVE);
                while self.drop_spare() {}
                Err(error)
            }
            made => {
                self.has_reserve = made.is_ok();
                Ok(())
            }
        }
    }

    /// Gives the space of the reserve to notes. Callers retry their notes.
    fn release_reserve(&mut self) {
        // If this fails, it is retried when the next note fails.
        self.has_reserve = self.remove(RESERVE).is_err() && self.has_reserve;
    }

    /// Writes a group, and syncs it if any entry needs that. Returns the segment and the group's offset.
    fn write(&mut self, group: &mut [GroupEntry]) -> io::Result<(Seq, u64)> {
        let bytes: u64 = group.iter().map(|entry| entry.head.length()).sum();
        let relocates = group.iter().any(GroupEntry::is_relocated);
        let fits = |active: &Active| self.fits(active, bytes, relocates);
        if !self.active.as_ref().is_some_and(fits) {
            return self.rotate(group);
        }
        let heads = group.iter_mut().map(|entry| &mut entry.head);
        number(heads, self.next, self.shared.spool);
        self.reserve_numbers(group.len() as u64)?;
        let active = self.active.as_mut().expect("it was looked at");
        let start = (active.first, active.len);
        let place = active.len..active.len + bytes;
        let frames = group.iter().map(GroupEntry::frame);
        if let Err(error) = write_frames(&*active.file, place, active.capacity, frames) {
            self.undo_write();
            return Err(error);
        }
        active.capacity = active.capacity.max(start.1 + bytes);
        let unsynced: u64 = self
            .unsynced_notes
            .iter()
            .map(|(head, _)| head.length())
            .sum();
        let synced =
            group.iter().any(GroupEntry::wants_sync) || unsynced + bytes > MAX_UNSYNCED_NOTES;
        if synced && let Err(error) = active.file.sync() {
            self.abandon_segment();
            return Err(error);
        }
        if let Err(error) =
            self.verify_reachable(start.1 + bytes, group.iter().any(GroupEntry::is_chunk))
        {
            self.undo_write();
            return Err(error);
        }
        if synced {
            self.unsynced_notes.clear();
        } else {
            let notes = |entry: &&GroupEntry| matches!(entry.waiter, Waiter::Note { .. });
            let fresh = group.iter().filter(notes).map(|e| (e.head, e.data.clone()));
            self.unsynced_notes.extend(fresh);
        }
        let active = self.active.as_mut().expect("it was written to");
        active.len += bytes;
        active.bare = false;
        self.next += group.len() as u64;
        Ok(start)
    }

    /// Makes the manifest cover the active segment's numbers and those of `frames` more, so that a run that does not find
    /// the segment never reuses them.
    fn reserve_numbers(&mut self, frames: u64) -> io::Result<()> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        let end = self.next + frames;
        if self.manifest.covers(active.first, end) {
            return Ok(());
        }
        let segments = self.manifest_entries();
        self.write_manifest(segments, end, true)
    }

    fn manifest_entries(&self) -> BTreeMap<Seq, ManifestEntry> {
        let active = self.active.as_ref().map(|active| active.first);
        self.state()
            .manifest_entries(active, self.unsynced_notes.is_empty())
    }

    fn write_manifest(
        &mut self,
        segments: BTreeMap<Seq, ManifestEntry>,
        next: Seq,
        synced: bool,
    ) -> io::Result<()> {
        let shared = &self.shared;
        self.manifest
            .write(&*shared.disk, shared.spool, segments, next, synced)
    }

    /// Makes the manifest list the newest segment, whichever run began it.
    pub(super) fn ensure_newest_listed(&mut self) -> io::Result<()> {
        let newest = self
            .state()
            .segments
            .last_key_value()
            .map(|(newest, _)| *newest);
        match newest {
            Some(newest) if !self.manifest.lists(newest) => {
                let segments = self.manifest_entries();
                self.write_manifest(segments, self.next, true)
            }
            _ => Ok(()),
        }
    }

    /// Brings the manifest up to date, for a run that misses a segment after this process died.
    fn update_manifest(&mut self) -> io::Result<()> {
        if self.state().segments.is_empty() {
            return Ok(());
        }
        if self.manifest.is_removed(&*self.shared.disk) {
            self.manifest.forget();
        }
        self.ensure_newest_listed()?;
        self.reserve_numbers(0)?;
        let segments = self.manifest_entries();
        if self.manifest.is_current(&segments) {
            return Ok(());
        }
        self.write_manifest(segments, self.next, false)
    }

    /// Makes the manifest omit a segment, so that a run that finds it again treats it as finished.
    fn unlist(&mut self, segment: Seq) -> io::Result<()> {
        if self.manifest.omits(segment) {
            return Ok(());
        }
        let segments = self.manifest_entries();
        self.write_manifest(segments, self.next, true)
    }

    /// Ensures that a restart finds the first `end` bytes of the active segment: that its file still has its name and, if
    /// chunks are to be acknowledged, the directory its path.
    fn verify_reachable(&mut self, end: u64, chunks: bool) -> io::Result<()> {
        if let Some(active) = &self.active {
            let (first, file) = (active.first, Arc::clone(&active.file));
            self.ensure_name(first, &file, end)?;
        }
        if self.name_unsynced {
            self.sync_dir()?;
        }
        match chunks {
            true => self.shared.disk.check(),
            false => Ok(()),
        }
    }

    /// Records in the ledger what a written group settles.
    fn keep_ledger(&self, group: &[GroupEntry], segment: Seq, mut offset: u64) {
        let mut live = self.shared.live();
        for GroupEntry {
            head,
            tag,
            data,
            waiter,
        } in group
        {
            match waiter {
                Waiter::Chunk { .. } => {}
                Waiter::Note { .. } => live.apply(head.number, data),
                Waiter::Relocation { .. } => {
                    let moved = Moved {
                        chunk: head.number,
                        segment,
                        offset,
                    };
                    live.relocate(moved, &tag[head.tag_len as usize..]);
                }
            }
            offset += head.length();
        }
    }

    /// Saves the ledger as it is when a segment begins.
    fn checkpoint(&self, segment: Seq) -> Option<Checkpoint> {
        let oldest = {
            let state = self.state();
            let oldest = state.segments.keys().next().copied();
            let absent = state.absent.keys().next().copied();
            oldest.into_iter().chain(absent).min()
        };
        let ledger = self.shared.live().save(oldest.unwrap_or(segment))?;
        Some(Checkpoint {
            segment,
            ledger: ledger.into(),
        })
    }

    /// Makes a written group visible, and answers its callers.
    fn publish(&mut self, group: Vec<GroupEntry>, (segment, mut offset): (Seq, u64)) {
        let mut kept = false;
        let capacity = self.active.as_ref().map_or(0, |active| active.capacity);
        self.keep_ledger(&group, segment, offset);
        {
            let mut state = self.shared.state();
            for GroupEntry { head, waiter, .. } in &group {
                match waiter {
                    Waiter::Note { next_batch, .. } => {
                        state.next_batch = state.next_batch.max(*next_batch);
                    }
                    Waiter::Chunk { crc, .. } => {
                        kept = true;
                        state.reserved -= head.length();
                        state.keep(
                            head.number,
                            Place::new(segment, offset, head, 0, Some(*crc)),
                            self.shared.limits.window,
                        );
                    }
                    Waiter::Relocation { crc, origins, .. } => {
                        kept = true;
                        state.reserved -= head.length();
                        let place = Place::new(segment, offset, head, *origins, Some(*crc));
                        state.show(head.number, place);
                    }
                }
                offset += head.length();
            }
            state.resize(segment, capacity);
            state.mark_written(segment);
            state.slack = capacity - offset;
        }
        if kept {
            self.shared.more.notify_waiters();
        }
        for GroupEntry {
            head, data, waiter, ..
        } in group
        {
            // The host waits until no clone of its bytes is left.
            drop(data);
            match waiter {
                Waiter::Chunk { answer, .. } => drop(answer.send(Ok(Appended::Kept))),
                Waiter::Note { answer, .. } => drop(answer.send(Ok(()))),
                Waiter::Relocation { answer, .. } => drop(answer.send(Ok(head.number))),
            }
        }
    }

    /// Answers all callers of a group with an error.
    fn refuse(&mut self, group: Vec<GroupEntry>, error: &io::Error) {
        for GroupEntry {
            head, data, waiter, ..
        } in group
        {
            drop(data);
            match waiter {
                Waiter::Chunk { answer, .. } => {
                    self.state().reserved -= head.length();
                    let _ = answer.send(Err(Refusal::Disk(clone_error(error))));
                }
                Waiter::Note { answer, .. } => drop(answer.send(Err(clone_error(error)))),
                Waiter::Relocation { answer, .. } => {
                    self.state().reserved -= head.length();
                    let _ = answer.send(Err(clone_error(error)));
                }
            }
        }
    }

    /// Truncates what a failed write may have left. If that verifiably succeeds, the segment stays active: on a full disk, a
    /// new segment for each attempt would make matters worse.
    fn undo_write(&mut self) {
        let Some(active) = &self.active else { return };
        self.state().mark_unreusable(active.first);
        let undone = active
            .file
            .truncate(active.len)
            .and_then(|()| active.file.len())
            .is_ok_and(|len| len == active.len)
            && active.file.sync().is_ok();
        if undone {
            self.clear_slack();
            self.unsynced_notes.clear();
        } else {
            self.abandon_segment();
        }
    }

    /// Stops writing to the active segment. Its unsynced frames are void; the notes among them are written again.
    fn abandon_segment(&mut self) {
        let Some(active) = self.close_segment() else {
            return;
        };
        self.state().mark_unreusable(active.first);
        self.next -= self.unsynced_notes.len() as u64;
        self.untrimmed.push((active.first, active.len));
        self.trim(&*active.file, active.first, active.len);
    }

    /// Truncates an abandoned segment to its valid length, and records its resulting size.
    fn trim(&mut self, file: &dyn File, first: Seq, good: u64) {
        let len = match file.truncate(good) {
            Ok(()) => {
                self.untrimmed.retain(|(segment, _)| *segment != first);
                Ok(good)
            }
            Err(_) => file.len(),
        };
        if let Ok(len) = len {
            let mut state = self.state();
            state.resize(first, len);
            state.mark_written(first);
        }
    }

    /// Stops writing to the active segment.
    fn close_segment(&mut self) -> Option<Active> {
        self.state().slack = 0;
        self.active.take()
    }

    /// Continues in a new segment that contains a group. Returns the segment and the group's offset. Even on failure the old
    /// segment stays closed: the new one may exist after a crash, which would void frames of the old one with the same
    /// numbers.
    fn rotate(&mut self, group: &mut [GroupEntry]) -> io::Result<(Seq, u64)> {
        if self.sync_notes().is_err() {
            self.abandon_segment();
        }
        self.close_segment();
        self.begin_segment(group)
    }

    /// Syncs the notes that were only written.
    fn sync_notes(&mut self) -> io::Result<()> {
        if let (false, Some(active)) = (self.unsynced_notes.is_empty(), &self.active) {
            active.file.sync()?;
            self.unsynced_notes.clear();
        }
        Ok(())
    }

    /// Begins a segment with the window, the unsynced notes and a group, and makes it durable before anything in it counts:
    /// which earlier frames it voids must not be lost afterwards. The group shares the write and the sync, since it is what
    /// waits for the segment.
    fn begin_segment(&mut self, group: &mut [GroupEntry]) -> io::Result<(Seq, u64)> {
        self.clear_debris()?;
        let first = self.next;
        let name = segment_name(first);
        let (file, spare) = self.obtain_file(&name)?;
        let file: Arc<dyn File> = file.into();
        let capacity = spare.as_ref().map_or(0, |spare| spare.bytes);
        // Versions of Ferry that do not know relocated chunks go on reading segments without any.
        let version = match group.iter().any(GroupEntry::is_relocated) {
            true => VERSION,
            false => PLAIN_VERSION,
        };
        let (window, previous) = {
            let state = self.state();
            let reused = spare.is_some();
            let window = Begin::encode(version, reused, state.next_batch, state.window.iter());
            let newest = state.segments.last_key_value().map(|(newest, _)| *newest);
            let absent = state.absent.last_key_value().map(|(newest, _)| *newest);
            (window, newest.max(absent).unwrap_or(0))
        };
        let begin = Head {
            kind: Kind::Begin,
            arrived: Head::begin_fields(previous, self.manifest.next_generation(), !self.after_gap),
            ..note_head(&window)
        };
        let mut frames = Vec::from([(begin, Bytes::from(window))]);
        frames.append(&mut self.unsynced_notes.clone());
        let heads = frames.iter_mut().map(|(head, _)| head);
        let heads = heads.chain(group.iter_mut().map(|entry| &mut entry.head));
        number(heads, first, self.shared.spool);
        let before: u64 = frames.iter().map(|(head, _)| head.length()).sum();
        let len = before + group.iter().map(|entry| entry.head.length()).sum::<u64>();
        let own = frames.iter().map(|(head, data)| (head, &[][..], &data[..]));
        let all = own.chain(group.iter().map(GroupEntry::frame));
        let begun = write_frames(&*file, 0..len, capacity, all)
            .and_then(|()| file.sync())
            .and_then(|()| match &spare {
                Some(spare) => self.shared.disk.rename(&spare.name, &name),
                None => Ok(()),
            })
            .and_then(|()| self.sync_dir())
            .and_then(|()| match self.shared.disk.id(&name)? == file.id() {
                true if group.iter().any(GroupEntry::is_chunk) => self.shared.disk.check(),
                true => Ok(()),
                false => Err(io::Error::other(format!(
                    "{name} was replaced while it was created"
                ))),
            });
        // Before anything in it is acknowledged, and after it is durable: otherwise it would be reported missing.
        let end = first + (frames.len() + group.len()) as u64;
        // Without a new one the older one stays: the notes since then follow it.
        if let Some(checkpoint) = self.checkpoint(first) {
            self.manifest.set_checkpoint(checkpoint);
        }
        let begun = begun.and_then(|()| {
            let chunks = group.iter().filter(|entry| entry.is_chunk()).count();
            let mut segments = self.state().manifest_entries(None, true);
            let entry = ManifestEntry {
                unfinished: chunks as u64,
                open: true,
            };
            segments.insert(first, entry);
            self.write_manifest(segments, end, true)
        });
        self.state().spares -= capacity;
        let capacity = capacity.max(len);
        if let Err(error) = begun {
            let bytes = file.len().unwrap_or(capacity);
            self.state().bytes += bytes;
            let names = spare.map(|spare| spare.name).into_iter();
            let names = names.chain([name]).collect();
            self.debris = Some(Debris { names, bytes });
            let _ = self.clear_debris();
            return Err(error);
        }
        self.shared.live().begin(first);
        self.next = end;
        self.after_gap = false;
        self.unsynced_notes.clear();
        let bare = end == first + 1;
        self.shared.handles.set_active(first, &file);
        self.active = Some(Active {
            file,
            first,
            len,
            capacity,
            bare,
            version,
        });
        let mut state = self.state();
        state.bytes += capacity;
        state.slack = capacity - len;
        state.segments.insert(
            first,
            SegmentInfo {
                bytes: capacity,
                unfinished: 0,
                indexed: true,
                listed: true,
                has_begin: true,
                bare,
                reusable: true,
            },
        );
        state.begin_resident(first, self.shared.limits.indexed);
        Ok((first, before))
    }

    /// A file for a segment: a spare, which is still to be renamed, or a new file.
    fn obtain_file(&mut self, name: &str) -> io::Result<(Box<dyn File>, Option<Spare>)> {
        while let Some(spare) = self.spares.pop_front() {
            match self.shared.disk.open(&spare.name) {
                Ok(file) => return Ok((file, Some(spare))),
                Err(error) if says_remedy(&error) => {
                    self.spares.push_front(spare);
                    return Err(error);
                }
                // Perhaps it can be removed.
                Err(_) => {
                    self.unsynced_spares.push(spare);
                    if !self.drop_spare() {
                        break;
                    }
                }
            }
        }
        Ok((self.create(name)?, None))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let disk = &self.shared.disk;
        match disk.create(name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // An earlier attempt failed after creating it.
                if disk.open(name)?.len()? > 0 {
                    return Err(error);
                }
                disk.remove(name)?;
                disk.create(name)
            }
            created => created,
        }
    }

    fn clear_debris(&mut self) -> io::Result<()> {
        let Some(debris) = &self.debris else {
            return Ok(());
        };
        for name in &debris.names {
            self.remove(name)?;
        }
        let bytes = debris.bytes;
        self.debris = None;
        self.state().bytes -= bytes;
        Ok(())
    }

    /// Ensures that the next start finds everything accepted: that the directory exists, is locked and at its path, and that
    /// the open files have their names. Records closed segments that are missing.
    fn look(&mut self) -> io::Result<()> {
        let checked = self.check_directory();
        self.needs_look = checked.is_err();
        let mut state = self.state();
        state.look_queued = false;
        state.trouble = checked.as_ref().err().map(ToString::to_string);
        drop(state);
        checked
    }

    fn check_directory(&mut self) -> io::Result<()> {
        self.ensure_locked()?;
        self.has_reserve = self.has_reserve && !self.is_gone(RESERVE);
        self.shared.suspects.look();
        self.count_quarantined();
        let mut named = Ok(());
        let handles = self.shared.handles.all();
        for (segment, file) in &handles {
            let active = self
                .active
                .as_ref()
                .filter(|active| active.first == *segment);
            let len = match active {
                Some(active) => Ok(active.len),
                None => file.len(),
            };
            let kept = len.and_then(|len| self.ensure_name(*segment, file, len));
            self.shared.handles.set_unlinked(*segment, kept.is_err());
            named = named.and(kept);
        }
        self.check_closed_segments(&handles);
        for segment in std::mem::take(&mut self.finished_missing) {
            let name = segment_name(segment);
            if self.is_gone(&name) || self.shared.disk.remove(&name).is_err() {
                self.finished_missing.push_back(segment);
            } else {
                self.removed = true;
            }
        }
        // Even if another file's name could not be restored: the restored ones must be durable.
        if self.name_unsynced {
            self.sync_dir()?;
        }
        named?;
        // If this fails, it is retried before anything more is acknowledged.
        let _ = self.update_manifest();
        self.shared.disk.check()
    }

    /// Updates the size of `quarantine/`, from which an operator may have removed files.
    fn count_quarantined(&self) {
        if self.state().quarantined == 0 {
            return;
        }
        if let Ok(files) = self.shared.disk.list() {
            let quarantined = files
                .iter()
                .filter(|(name, _)| name.starts_with(QUARANTINE));
            let bytes = quarantined.map(|(_, bytes)| bytes).sum();
            self.state().set_quarantined(bytes);
        }
    }

    fn is_gone(&self, name: &str) -> bool {
        let found = self.shared.disk.id(name);
        found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }

    fn notice(&self, kind: &'static str, words: String) {
        self.state().notices.push((kind, words));
    }

    /// Ensures that the directory exists, and that no other process writes into it.
    fn ensure_locked(&mut self) -> io::Result<()> {
        match self.shared.disk.ensure_locked() {
            Ok(LockState::Held) => {}
            Ok(LockState::FileRecreated) => {
                self.unverified = true;
                self.notice(
                    "spool_lock",
                    "the file lock was removed from the spool's folder and is recreated: remove nothing there while \
                     Fluent Bit runs"
                        .to_owned(),
                );
            }
            Ok(LockState::DirRecreated) => {
                self.removed = false;
                self.has_reserve = false;
                self.spares.clear();
                self.unsynced_spares.clear();
                self.manifest.forget();
                self.state().spares = 0;
                self.notice(
                    "spool_deleted",
                    "the spool's folder was deleted and is recreated: the segments that were open are written there again"
                        .to_owned(),
                );
            }
            Err(error) => {
                if error.kind() == ErrorKind::WouldBlock {
                    self.state().lock_lost = true;
                    self.unverified = true;
                }
                return Err(error);
            }
        }
        if self.unverified && !self.changed_by_other {
            // Another process has its own record of what is finished, and of the last segment's length.
            self.changed_by_other = !self.is_unchanged()?;
            self.unverified = self.changed_by_other;
            self.state().lock_lost = self.changed_by_other;
        }
        match self.changed_by_other {
            true => Err(lock_lost()),
            false => Ok(()),
        }
    }

    /// Whether no other process began a segment or wrote to the active one.
    fn is_unchanged(&self) -> io::Result<bool> {
        let files = self.shared.disk.list()?;
        let debris = self.debris.iter().flat_map(|debris| &debris.names);
        let is_debris = |name: &String| debris.clone().any(|debris| debris == name);
        let is_new = |name| segment_first(name).is_some_and(|first| first >= self.next);
        let mut names = files.iter().map(|(name, _)| name);
        if names.any(|name| is_new(name) && !is_debris(name)) {
            return Ok(false);
        }
        match &self.active {
            Some(active) => Ok(active.file.len()? == active.capacity),
            None => Ok(true),
        }
    }

    /// Ensures that the first `len` bytes of an open file are under their segment's name.
    fn ensure_name(&mut self, segment: Seq, file: &Arc<dyn File>, len: u64) -> io::Result<()> {
        let name = segment_name(segment);
        let found = match self.shared.disk.id(&name) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found?),
        };
        if found == Some(file.id()) {
            return Ok(());
        }
        let is_active = self
            .active
            .as_ref()
            .is_some_and(|active| active.first == segment);
        let known = self.state().segments.get(&segment).map(|info| info.bytes);
        if known.is_none() || !is_active && known.is_some_and(|known| len < known) {
            // The segment is finished, or the open file is itself too short.
            self.shared.handles.forget(segment);
            return Ok(());
        }
        let lost = |error: io::Error| {
            let words = format!(
                "{name} was taken away while it was in use, and cannot be written again: {error}"
            );
            with_remedy(error.kind(), words)
        };
        self.ensure_locked()?;
        let copy = match self.copy(segment, &**file, len, found.is_some()) {
            Err(error) if is_full(&error) => {
                // The next attempt may use the space of the spares.
                while self.drop_spare() {}
                return Err(lost(error));
            }
            copied => copied.map_err(lost)?,
        };
        self.shared.handles.replace(segment, &copy);
        {
            let mut state = self.shared.state();
            state.mark_present(segment);
            state.resize(segment, len);
            if is_active {
                state.slack = 0;
            }
        }
        if let Some(active) = self
            .active
            .as_mut()
            .filter(|active| active.first == segment)
        {
            active.file = copy;
            active.capacity = len;
        }
        self.notice(
            "spool_written_again",
            format!(
                "{name} was taken away while it was in use: its content was written again under its name; do not put the old \
                 file back"
            ),
        );
        Ok(())
    }

    /// Moves the file found under a segment's name to the quarantine.
    fn displace(&mut self, segment: Seq) -> io::Result<()> {
        let (disk, name) = (&self.shared.disk, segment_name(segment));
        let bytes = disk.open(&name).and_then(|file| file.len()).unwrap_or(0);
        let mut asides = (1..=MAX_DISPLACED).map(|n| displaced_name(segment, n));
        let Some(aside) = asides.find(|aside| self.is_gone(aside)) else {
            return Err(io::Error::other(format!(
                "another file has replaced it {MAX_DISPLACED} times; stop what does that, and empty {QUARANTINE}"
            )));
        };
        match disk.rename(&name, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        self.state().bytes += bytes;
        self.notice(
            "spool_displaced",
            format!(
                "another file was put in place of {name}: it was moved to {aside}, and is not read"
            ),
        );
        Ok(())
    }

    /// Copies the first `len` bytes of a file to a new one with a segment's name. As when a spare becomes a segment, it is
    /// renamed once it is durable. Only then is the file that has the name (`taken`) moved away: if there is no space for a
    /// copy, that file may be all that is left after a crash.
    fn copy(
        &mut self,
        segment: Seq,
        file: &dyn File,
        len: u64,
        taken: bool,
    ) -> io::Result<Arc<dyn File>> {
        let disk = &self.shared.disk;
        let (copy, name) = (copy_name(segment), segment_name(segment));
        // Left by an earlier attempt.
        self.remove(&copy)?;
        self.partial_copies.insert(segment);
        let made: Arc<dyn File> = disk.create(&copy)?.into();
        let copied = copy_bytes(file, 0, len, &*made)
            .and_then(|copied| match copied == len {
                true => made.sync(),
                false => Err(ErrorKind::UnexpectedEof.into()),
            })
            .and_then(|()| match taken {
                true => self.displace(segment),
                false => Ok(()),
            })
            .and_then(|()| self.shared.disk.rename(&copy, &name));
        if let Err(error) = copied {
            self.drop_copy(segment);
            return Err(error);
        }
        self.partial_copies.remove(&segment);
        self.name_unsynced = true;
        Ok(made)
    }

    /// Removes a partial copy of a segment, which the next start would use as the segment.
    fn drop_copy(&mut self, segment: Seq) {
        if self.partial_copies.contains(&segment) && self.remove(&copy_name(segment)).is_ok() {
            self.partial_copies.remove(&segment);
        }
    }

    /// Checks whether some of the closed segments still exist: a different part of them with each call.
    fn check_closed_segments(&mut self, open: &[(Seq, Arc<dyn File>)]) {
        let segments: Vec<Seq> = {
            let state = self.state();
            let after = state.segments.range(self.next_checked..);
            let before = state.segments.range(..self.next_checked);
            after
                .chain(before)
                .filter(|(first, info)| {
                    info.may_hold_chunks() && !open.iter().any(|(segment, _)| segment == *first)
                })
                .map(|(first, _)| *first)
                .take(CHECKED_AT_ONCE)
                .collect()
        };
        self.next_checked = segments.last().map_or(0, |last| last + 1);
        for segment in segments {
            let name = segment_name(segment);
            let missed = self.state().missing.get(&segment).copied();
            match (self.shared.disk.id(&name), missed) {
                (Ok(_), Some(bytes)) => {
                    let file = self.shared.disk.open(&name);
                    if file
                        .and_then(|file| file.len())
                        .is_ok_and(|len| len >= bytes)
                    {
                        self.state().mark_present(segment);
                    }
                }
                (Err(error), None) if error.kind() == ErrorKind::NotFound => {
                    self.state().mark_missing(segment);
                }
                _ => {}
            }
        }
        // One that is back may be to be indexed.
        self.shared.work.notify_one();
    }

    fn needs_cleanup(&self) -> bool {
        let state = self.state();
        !self.untrimmed.is_empty()
            || self.debris.is_some()
            || state.removable().is_some()
            || state.needs_rotation()
    }

    /// Does one step of the cleanup. Returns whether there may be more to do now; a failed step is retried with a later job.
    ///
    /// Removes one segment at a time: each costs an fsync, there may be thousands, and appends must not wait for all.
    pub(super) fn clean_up(&mut self) -> bool {
        self.state().cleanup_queued = false;
        if self.state().lock_lost {
            return false;
        }
        for (first, good) in self.untrimmed.clone() {
            match self.shared.disk.open(&segment_name(first)) {
                Ok(file) => self.trim(&*file, first, good),
                // A missing file may be put back.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let is_needed = self.state().segments.contains_key(&first);
                    self.untrimmed
                        .retain(|(segment, _)| *segment != first || is_needed);
                }
                Err(_) => {}
            }
        }
        let _ = self.clear_debris();
        let removable = self.state().removable();
        if let Some(first) = removable {
            return self.remove_finished(first).is_ok();
        }
        let roll = self.state().needs_rotation();
        if !roll {
            return false;
        }
        match self.rotate(&mut []) {
            Ok(_) => {
                self.state().needs_space = false;
                true
            }
            Err(_) => {
                self.release_reserve();
                false
            }
        }
    }

    /// Removes the oldest segment, which is finished.
    fn remove_finished(&mut self, first: Seq) -> io::Result<()> {
        self.drop_copy(first);
        // If it comes back after a power cut, all newer ones must still exist.
        self.sync_removals()?;
        self.secure_notes()?;
        // If that fails, the next start reports it missing.
        let _ = self.unlist(first);
        let (name, spare) = (segment_name(first), spare_name(first));
        let kept = self.can_become_spare(first) && self.shared.disk.rename(&name, &spare).is_ok();
        if !kept {
            match self.shared.disk.remove(&name) {
                // If it is put back, the next start must not deliver it again.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.finished_missing.push_back(first)
                }
                removed => removed?,
            }
            self.finished_missing.truncate(MAX_FINISHED_MISSING);
        }
        self.removed = true;
        self.untrimmed.retain(|(segment, _)| *segment != first);
        self.shared.handles.forget(first);
        let bytes = self.state().remove_segment(first);
        if kept {
            self.state().spares += bytes;
            self.unsynced_spares.push(Spare { name: spare, bytes });
        }
        Ok(())
    }

    /// Whether a finished segment's file is worth reusing, and there is space to keep it.
    fn can_become_spare(&self, first: Seq) -> bool {
        let state = self.state();
        let limits = &self.shared.limits;
        let Some(info) = state.segments.get(&first) else {
            return false;
        };
        self.keeps_spares
            && info.reusable
            && info.bytes >= limits.segment_bytes / 2
            && state.spares + info.bytes <= limits.limit / SPARE_SHARE
    }

    fn sync_removals(&mut self) -> io::Result<()> {
        match self.removed {
            true => self.sync_dir(),
            false => Ok(()),
        }
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.shared.disk.sync_dir()?;
        self.removed = false;
        self.name_unsynced = false;
        self.spares.extend(self.unsynced_spares.drain(..));
        Ok(())
    }

    /// Makes durable what the oldest segments would otherwise still be needed for: the notes, and a readable Begin frame in
    /// the newest segment.
    fn secure_notes(&mut self) -> io::Result<()> {
        if self.sync_notes().is_err() {
            self.abandon_segment();
        }
        let begun = self.state().newest_has_begin();
        if self.unsynced_notes.is_empty() && begun {
            return Ok(());
        }
        self.close_segment();
        self.begin_segment(&mut []).map(drop)
    }

    /// Makes everything durable, and leaves one bare segment if every chunk is finished.
    fn shrink(&mut self) {
        // A file without a name is gone when the process ends.
        let _ = self.look();
        let untouched = self.state().segments.is_empty() || self.state().lock_lost;
        if untouched {
            return;
        }
        self.keeps_spares = false;
        while self.drop_spare() {}
        self.release_reserve();
        let _ = self.secure_notes();
        let roll = self.state().can_shrink();
        if roll {
            let _ = self.rotate(&mut []);
        }
        // Anything left is removed by the next start, which may already be waiting for the directory.
        let since = Instant::now();
        while self.needs_cleanup() && self.clean_up() && since.elapsed() < CLOSE_CLEANUP_LIMIT {}
        self.trim_slack();
        let _ = self.sync_removals();
        let segments = self
            .state()
            .manifest_entries(None, self.unsynced_notes.is_empty());
        let _ = self.write_manifest(segments, self.next, true);
    }

    /// Truncates the active segment's file after its last frame.
    fn trim_slack(&mut self) {
        if let Some(active) = &self.active
            && active.capacity > active.len
            && active.file.truncate(active.len).is_ok()
        {
            self.clear_slack();
        }
    }

    /// Records that the active segment's file ends with its last frame.
    fn clear_slack(&mut self) {
        if let Some(active) = &mut self.active {
            active.capacity = active.len;
            let mut state = self.shared.state();
            state.resize(active.first, active.len);
            state.slack = 0;
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    [ErrorKind::StorageFull, ErrorKind::QuotaExceeded].contains(&error.kind())
}

fn note_length(payload: &[u8]) -> u64 {
    let payload = payload.len() as u64;
    HEADER + payload + padding(payload).len() as u64
}

/// Writes frames into a file of `capacity` bytes without copying them, and marks their end where the file's former contents
/// follow.
fn write_frames<'a>(
    file: &dyn File,
    place: Range<u64>,
    capacity: u64,
    frames: impl Iterator<Item = (&'a Head, &'a [u8], &'a [u8])> + Clone,
) -> io::Result<()> {
    let heads: Vec<_> = frames.clone().map(|(head, ..)| head.encode()).collect();
    let mut parts = Vec::with_capacity(heads.len() * 4);
    for (encoded, (head, tag, data)) in heads.iter().zip(frames) {
        for part in [&encoded[..], tag, data, padding(head.payload())] {
            if !part.is_empty() {
                parts.push(IoSlice::new(part));
            }
        }
    }
    if place.end < capacity {
        parts.push(IoSlice::new(&END));
    }
    file.write_at(&parts, place.start)
}

/// Clones an error, for another waiter.
fn clone_error(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None if says_remedy(error) => with_remedy(error.kind(), error.to_string()),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
