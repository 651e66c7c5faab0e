//! The thread that writes: it alone appends to segments, begins them and removes them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::disk::{File, Held, remedied, says_remedy};
use super::frame::{
    Begin, END, HEADER, Head, Kind, QUARANTINE, RESERVE, copy_name, displaced_name, padding,
    segment_first, segment_name, spare_name,
};
use super::manifest::{Entry as Listed, Keeper};
use super::recovery::copy_bytes;
use super::scan::Place;
use super::{
    Active, Appended, Durability, Holding, Refusal, SPARE_SHARE, Seq, Shared, State, ousted,
};
use crate::ids::Time;
use crate::ids::chunk_id;

/// Bytes that are written and synced at once. More would make the first in the group wait for the last.
const GROUP_BYTES: u64 = 8 << 20;
/// Segments that were taken away and finished all the same which are removed when they are put back, at most.
const MOST_GHOSTS: usize = 64;
/// Files that took a segment's place which are kept, for each segment.
const MOST_DISPLACED: u32 = 8;
/// Segments that are not open and are looked for at once: all of them within seconds, and none of them costs a flush.
const LOOKED_FOR_AT_ONCE: usize = 64;
/// How long removing what is finished may take at the end.
const TIDIED_AT_CLOSE: Duration = Duration::from_secs(1);
/// Bytes of notes that may be written without being synced: they are held in memory as long.
const CARRIED_BYTES: u64 = 1 << 20;

/// What the thread is asked to do.
pub(super) enum Job {
    /// Keep a chunk.
    Chunk {
        slot: Arc<Slot>,
        /// Bytes of its frame: reserved since it waits.
        length: u64,
        answer: oneshot::Sender<Result<Appended, Refusal>>,
    },
    /// Write a note.
    Note {
        payload: Bytes,
        durability: Durability,
        /// Greater than the number of the batch it is about.
        next_batch: u64,
        answer: oneshot::Sender<io::Result<()>>,
    },
    /// Remove what is finished.
    Tidy,
    /// See whether a restart would find what was accepted.
    Look,
    /// Say when everything before it is done.
    #[cfg(test)]
    Rest(std::sync::mpsc::Sender<()>),
    /// End; `shorten`: leave as little as possible behind.
    Stop { shorten: bool },
}

/// A chunk that waits in the queue. Whoever takes it out first decides: the thread writes it, or the caller
/// gives up, and then its bytes are let go at once.
pub(super) struct Slot(Mutex<Option<Waiting>>);

/// A chunk that waits.
pub(super) struct Waiting {
    /// Its header, the number and the spool still missing.
    pub(super) head: Head,
    /// Of its tag and its data.
    pub(super) crc: u32,
    pub(super) tag: Box<[u8]>,
    pub(super) data: Bytes,
}

impl Slot {
    pub(super) fn new(waiting: Waiting) -> Slot {
        Slot(Mutex::new(Some(waiting)))
    }

    pub(super) fn take(&self) -> Option<Waiting> {
        self.0.lock().expect("nothing panics with this lock").take()
    }
}

/// The header of a note. Its number and the spool are filled in when it is written.
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
struct Entry {
    head: Head,
    tag: Box<[u8]>,
    data: Bytes,
    then: Then,
}

/// Numbers frames one up.
fn number<'h>(heads: impl Iterator<Item = &'h mut Head>, first: Seq, spool: u64) {
    for (head, number) in heads.zip(first..) {
        head.number = number;
        head.spool = spool;
    }
}

/// Who waits for it.
enum Then {
    Chunk {
        crc: u32,
        answer: oneshot::Sender<Result<Appended, Refusal>>,
    },
    Note {
        durability: Durability,
        next_batch: u64,
        answer: oneshot::Sender<io::Result<()>>,
    },
}

impl Entry {
    fn frame(&self) -> (&Head, &[u8], &[u8]) {
        (&self.head, &self.tag, &self.data)
    }

    fn is_chunk(&self) -> bool {
        matches!(self.then, Then::Chunk { .. })
    }

    fn wants_sync(&self) -> bool {
        match self.then {
            Then::Chunk { .. } => true,
            Then::Note { durability, .. } => durability == Durability::Synced,
        }
    }
}

/// A file that was begun, was not finished, and could not be removed.
struct Debris {
    /// Those that it may have.
    names: Vec<String>,
    bytes: u64,
}

/// A finished segment's file, to be written again.
struct Spare {
    name: String,
    bytes: u64,
}

/// Where the next group goes.
struct Plan {
    /// Bytes in its segment before it.
    base: u64,
    /// How many of them are still to be written.
    begin: u64,
}

/// The thread's own.
pub(super) struct Writer {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    /// Taken from the queue, and no part of the group that was gathered.
    held: Option<Job>,
    /// `None`: the next group begins a segment.
    active: Option<Active>,
    /// The number of the next frame.
    next: Seq,
    /// Notes that were written and answered, and not synced. When their segment is given up, the next one
    /// begins with them.
    carried: Vec<(Head, Bytes)>,
    /// Segments that were given up and could not be cut to their good length, and that length.
    untrimmed: Vec<(Seq, u64)>,
    debris: Option<Debris>,
    /// A removal is not durable yet. The next segment's beginning makes it so, or the next removal.
    removed: bool,
    /// Spares whose names are durable.
    spares: VecDeque<Spare>,
    /// Spares whose names are not: after a crash they may be segments again, and must be what they were.
    settling: Vec<Spare>,
    /// Finished segments become spares.
    keeps_spares: bool,
    /// The reserve is there.
    reserve: bool,
    /// Somebody asked for a look while a group was gathered.
    to_look: bool,
    /// Something failed: before more chunks are written, it is looked at.
    astray: bool,
    /// A segment's file has its name, and that is not durable yet.
    unsettled: bool,
    /// The lock was lost for a while, and nobody has looked yet whether another process changed something then.
    unverified: bool,
    /// It did: this one leaves the directory alone.
    changed: bool,
    /// The segment that is looked for next.
    looked_for: Seq,
    /// Segments that were to be copied, and of which half a copy may be there.
    half_made: BTreeSet<Seq>,
    /// Finished segments that were not there when they were to be removed.
    ghosts: VecDeque<Seq>,
    keeper: Keeper,
    /// The numbers before `next` are not all used: segments that are away may have some of them.
    apart: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        jobs: Receiver<Job>,
        active: Option<Active>,
        next: Seq,
        keeper: Keeper,
        apart: bool,
    ) -> Writer {
        Writer {
            shared,
            jobs,
            held: None,
            active,
            next,
            carried: Vec::new(),
            untrimmed: Vec::new(),
            debris: None,
            removed: false,
            spares: VecDeque::new(),
            settling: Vec::new(),
            keeps_spares: true,
            reserve: false,
            to_look: false,
            astray: false,
            unsettled: false,
            unverified: false,
            changed: false,
            looked_for: 0,
            half_made: BTreeSet::new(),
            ghosts: VecDeque::new(),
            keeper,
            apart,
        }
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        while let Some(job) = self.next_job() {
            match job {
                Job::Tidy => drop(self.tidy()),
                Job::Look => drop(self.look()),
                #[cfg(test)]
                Job::Rest(done) => {
                    while self.is_untidy() && self.tidy() {}
                    let _ = done.send(());
                }
                Job::Stop { shorten } => {
                    if shorten {
                        self.shorten();
                    }
                    return;
                }
                Job::Chunk { .. } | Job::Note { .. } => {
                    let group = self.gather(job);
                    if !group.is_empty() {
                        self.commit(group);
                    }
                    if std::mem::take(&mut self.to_look) {
                        let _ = self.look();
                    }
                    // Who asked meanwhile was heard here; who asks from now on is heard by a job of its own.
                    self.state().tidying = false;
                    if self.is_untidy() {
                        self.tidy();
                    }
                }
            }
        }
    }

    /// What is to be done next. While nobody waits, it is tidied up bit by bit. `None`: nobody is left to ask.
    fn next_job(&mut self) -> Option<Job> {
        loop {
            let waits = self.held.take().or_else(|| self.jobs.try_recv().ok());
            if waits.is_some() {
                return waits;
            }
            if !(self.is_untidy() && self.tidy()) {
                return self.jobs.recv().ok();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// The first of a group, and what else waits and fits.
    fn gather(&mut self, first: Job) -> Vec<Entry> {
        let mut group: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut plan = Plan { base: 0, begin: 0 };
        let mut next = Some(first);
        while let Some(job) = next.take().or_else(|| self.jobs.try_recv().ok()) {
            let length = match &job {
                Job::Chunk { length, .. } => *length,
                Job::Note { payload, .. } => note_length(payload),
                // These are seen to behind the group.
                Job::Tidy => continue,
                Job::Look => {
                    self.to_look = true;
                    continue;
                }
                _ => {
                    self.held = Some(job);
                    break;
                }
            };
            if group.is_empty() {
                plan = self.plan(length);
            } else if bytes + length > GROUP_BYTES
                || plan.base + bytes + length > self.shared.limits.segment_bytes
            {
                self.held = Some(job);
                break;
            }
            let entry = match job {
                Job::Chunk { slot, answer, .. } => self.take_chunk(&slot, answer, &plan, bytes),
                Job::Note {
                    payload,
                    durability,
                    next_batch,
                    answer,
                } => Some(Entry {
                    head: note_head(&payload),
                    tag: Box::default(),
                    data: payload,
                    then: Then::Note {
                        durability,
                        next_batch,
                        answer,
                    },
                }),
                _ => None,
            };
            if let Some(entry) = entry {
                bytes += length;
                group.push(entry);
            }
        }
        group
    }

    fn plan(&self, length: u64) -> Plan {
        match &self.active {
            Some(active) if self.takes(active, length) => Plan {
                base: active.len,
                begin: 0,
            },
            _ => {
                let carried: u64 = self.carried.iter().map(|(head, _)| head.length()).sum();
                let begin = Begin::length(self.state().window.len()) + carried;
                Plan { base: begin, begin }
            }
        }
    }

    /// Whether so many bytes go into the active segment. A frame larger than a segment gets one of its own.
    fn takes(&self, active: &Active, bytes: u64) -> bool {
        active.bare || active.len + bytes <= self.shared.limits.segment_bytes
    }

    /// A chunk's entry, unless its caller has given it up or it does not fit behind `before` bytes.
    fn take_chunk(
        &mut self,
        slot: &Slot,
        answer: oneshot::Sender<Result<Appended, Refusal>>,
        plan: &Plan,
        before: u64,
    ) -> Option<Entry> {
        let Waiting {
            head,
            crc,
            tag,
            data,
        } = slot.take()?;
        let limit = self.shared.limits.limit;
        let needed = plan.begin + before + head.length();
        let in_new_segment = plan.begin > 0;
        let mut fits = self.make_room(in_new_segment, needed);
        while !fits && self.tidy() {
            fits = self.make_room(in_new_segment, needed);
        }
        if !fits {
            let mut state = self.state();
            state.reserved -= head.length();
            state.needs_space = true;
            let bytes = state.bytes;
            drop(state);
            drop(data);
            let _ = answer.send(Err(Refusal::Full { bytes, limit }));
            return None;
        }
        Some(Entry {
            head,
            tag,
            data,
            then: Then::Chunk { crc, answer },
        })
    }

    /// Whether so many bytes fit below the limit. Spares give way to them.
    fn make_room(&mut self, in_new_segment: bool, needed: u64) -> bool {
        loop {
            let state = self.state();
            let used = match in_new_segment {
                true => state.bytes,
                false => state.used(),
            };
            let (spares, limit) = (state.spares, self.shared.limits.limit);
            drop(state);
            if used + needed + spares <= limit {
                return true;
            }
            if used + needed > limit || !self.drop_spare() {
                return false;
            }
        }
    }

    /// Removes a spare. Whether there was one that could be removed.
    fn drop_spare(&mut self) -> bool {
        let Some(spare) = self.settling.pop().or_else(|| self.spares.pop_back()) else {
            return false;
        };
        if self.remove(&spare.name).is_err() {
            self.settling.push(spare);
            return false;
        }
        self.state().spares -= spare.bytes;
        true
    }

    /// Removes a file, if it is there.
    fn remove(&self, name: &str) -> io::Result<()> {
        match self.shared.disk.remove(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Writes a group, and answers all in it.
    fn commit(&mut self, mut group: Vec<Entry>) {
        if let Err(error) = self.admit(&group) {
            // What is to be said of chunks that are here already can be written wherever the directory is.
            let all = self.state().ousted;
            let refused = group.extract_if(.., |entry| all || entry.is_chunk());
            let refused = refused.collect();
            self.refuse(refused, &error);
            if group.is_empty() {
                return;
            }
        }
        let mut written = self.write(&mut group);
        if matches!(&written, Err(error) if error.kind() == ErrorKind::NotFound) {
            // The directory was deleted, or a spare: there may be another one.
            written = self.look().and_then(|()| self.write(&mut group));
        }
        match written {
            Ok(start) => self.publish(group, start),
            Err(error) => {
                self.astray = true;
                // The disk may be full below the limit.
                while self.drop_spare() {}
                match is_full(&error) {
                    // What is finished in the newest segment may be what fills it.
                    true if group.iter().any(Entry::is_chunk) => self.state().needs_space = true,
                    true => self.release_reserve(),
                    false => {}
                }
                self.refuse(group, &error);
            }
        }
    }

    /// Whether chunks may be written.
    fn admit(&mut self, group: &[Entry]) -> io::Result<()> {
        if self.astray {
            self.look()?;
        }
        self.keep_reserve(group)
    }

    /// Sees to it that a reserve is there before chunks are written. Fails where there is no room for it: other
    /// programs may fill the disk as well. Where it cannot be made for another reason, all goes on without.
    fn keep_reserve(&mut self, group: &[Entry]) -> io::Result<()> {
        if self.reserve || !group.iter().any(Entry::is_chunk) {
            return Ok(());
        }
        if self.state().wants_room() {
            // A new segment comes first: the one that is there can go then.
            return Err(ErrorKind::StorageFull.into());
        }
        let disk = &self.shared.disk;
        let file = match disk.create(RESERVE) {
            // An earlier run's.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => disk.open(RESERVE),
            created => created,
        };
        let zeros = vec![0; self.shared.limits.reserve_bytes()];
        match file.and_then(|file| file.write_at(&[IoSlice::new(&zeros)], 0)) {
            Err(error) if is_full(&error) => {
                // Half of it would only be in the way. The next chunk may find the room of spares.
                let _ = self.remove(RESERVE);
                while self.drop_spare() {}
                Err(error)
            }
            made => {
                self.reserve = made.is_ok();
                Ok(())
            }
        }
    }

    /// Gives the reserve's room to notes. Whoever waits for one tries again.
    fn release_reserve(&mut self) {
        // Where it cannot be removed now, it is when the next note fails.
        self.reserve = self.remove(RESERVE).is_err() && self.reserve;
    }

    /// Writes a group, and syncs it if anybody in it asks for that. Gives the segment, and where in it the
    /// group begins.
    fn write(&mut self, group: &mut [Entry]) -> io::Result<(Seq, u64)> {
        let bytes: u64 = group.iter().map(|entry| entry.head.length()).sum();
        let fits = |active: &Active| self.takes(active, bytes);
        if !self.active.as_ref().is_some_and(fits) {
            return self.rotate(group);
        }
        let heads = group.iter_mut().map(|entry| &mut entry.head);
        number(heads, self.next, self.shared.spool);
        self.see_to_manifest(group.len() as u64)?;
        let active = self.active.as_mut().expect("it was looked at");
        let start = (active.first, active.len);
        let place = active.len..active.len + bytes;
        let frames = group.iter().map(Entry::frame);
        if let Err(error) = write_frames(&*active.file, place, active.capacity, frames) {
            self.unwrite();
            return Err(error);
        }
        active.capacity = active.capacity.max(start.1 + bytes);
        let unsynced: u64 = self.carried.iter().map(|(head, _)| head.length()).sum();
        let synced = group.iter().any(Entry::wants_sync) || unsynced + bytes > CARRIED_BYTES;
        if synced && let Err(error) = active.file.sync() {
            self.give_up();
            return Err(error);
        }
        if let Err(error) = self.confirm(start.1 + bytes, group.iter().any(Entry::is_chunk)) {
            self.unwrite();
            return Err(error);
        }
        if synced {
            self.carried.clear();
        } else {
            let notes = |entry: &&Entry| matches!(entry.then, Then::Note { .. });
            let fresh = group.iter().filter(notes).map(|e| (e.head, e.data.clone()));
            self.carried.extend(fresh);
        }
        let active = self.active.as_mut().expect("it was written to");
        active.len += bytes;
        active.bare = false;
        self.next += group.len() as u64;
        Ok(start)
    }

    /// Sees to it that a run which does not find the active segment gives its numbers to no other frame: those of so many
    /// more frames neither.
    fn see_to_manifest(&mut self, frames: u64) -> io::Result<()> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        let end = self.next + frames;
        if self.keeper.covers(active.first, end) {
            return Ok(());
        }
        let segments = self.listed();
        self.write_manifest(segments, end, true)
    }

    fn listed(&self) -> BTreeMap<Seq, Listed> {
        let active = self.active.as_ref().map(|active| active.first);
        self.state().listed(active, self.carried.is_empty())
    }

    fn write_manifest(
        &mut self,
        segments: BTreeMap<Seq, Listed>,
        next: Seq,
        synced: bool,
    ) -> io::Result<()> {
        let shared = &self.shared;
        self.keeper
            .write(&*shared.disk, shared.spool, segments, next, synced)
    }

    /// Sees to it that the newest segment is listed, whoever began it.
    pub(super) fn list_newest(&mut self) -> io::Result<()> {
        let newest = self
            .state()
            .segments
            .last_key_value()
            .map(|(newest, _)| *newest);
        match newest {
            Some(newest) if !self.keeper.lists(newest) => {
                let segments = self.listed();
                self.write_manifest(segments, self.next, true)
            }
            _ => Ok(()),
        }
    }

    /// Brings the manifest up to date, for whoever misses a segment after this process died.
    fn update_manifest(&mut self) -> io::Result<()> {
        if self.state().segments.is_empty() {
            return Ok(());
        }
        if self.keeper.is_gone(&*self.shared.disk) {
            self.keeper.forget();
        }
        self.list_newest()?;
        self.see_to_manifest(0)?;
        let segments = self.listed();
        if self.keeper.says(&segments) {
            return Ok(());
        }
        self.write_manifest(segments, self.next, false)
    }

    /// Sees to it that a run which finds this segment again takes it for finished.
    fn strike_off(&mut self, segment: Seq) -> io::Result<()> {
        if self.keeper.is_without(segment) {
            return Ok(());
        }
        let segments = self.listed();
        self.write_manifest(segments, self.next, true)
    }

    /// Sees to it that a restart finds what was written, down to `end` in the active segment: that the file still has its name
    /// and, where chunks are to be answered, the directory its path.
    fn confirm(&mut self, end: u64, chunks: bool) -> io::Result<()> {
        if let Some(active) = &self.active {
            let (first, file) = (active.first, Arc::clone(&active.file));
            self.keep_name(first, &file, end)?;
        }
        if self.unsettled {
            self.sync_dir()?;
        }
        match chunks {
            true => self.shared.disk.check(),
            false => Ok(()),
        }
    }

    /// Makes what was written visible, and answers.
    fn publish(&mut self, group: Vec<Entry>, (segment, mut offset): (Seq, u64)) {
        let mut kept = false;
        let capacity = self.active.as_ref().map_or(0, |active| active.capacity);
        {
            let mut state = self.shared.state();
            for Entry { head, then, .. } in &group {
                match then {
                    Then::Note { next_batch, .. } => {
                        state.next_batch = state.next_batch.max(*next_batch);
                    }
                    Then::Chunk { crc, .. } => {
                        kept = true;
                        state.reserved -= head.length();
                        state.keep(
                            head.number,
                            Place::new(segment, offset, head, Some(*crc)),
                            self.shared.limits.window,
                        );
                    }
                }
                offset += head.length();
            }
            state.resize(segment, capacity);
            state.touch(segment);
            state.room = capacity - offset;
        }
        if kept {
            self.shared.more.notify_waiters();
        }
        for Entry { data, then, .. } in group {
            // The host waits until nobody holds its bytes any more.
            drop(data);
            match then {
                Then::Chunk { answer, .. } => drop(answer.send(Ok(Appended::Kept))),
                Then::Note { answer, .. } => drop(answer.send(Ok(()))),
            }
        }
    }

    /// Answers that nothing of the group was kept.
    fn refuse(&mut self, group: Vec<Entry>, error: &io::Error) {
        for Entry {
            head, data, then, ..
        } in group
        {
            drop(data);
            match then {
                Then::Chunk { answer, .. } => {
                    self.state().reserved -= head.length();
                    let _ = answer.send(Err(Refusal::Disk(same(error))));
                }
                Then::Note { answer, .. } => drop(answer.send(Err(same(error)))),
            }
        }
    }

    /// Takes back what a failed write may have left. Only where that certainly succeeds the segment is
    /// gone on with: on a disk that is full, a new one for each attempt would make matters worse.
    fn unwrite(&mut self) {
        let Some(active) = &self.active else { return };
        self.state().mistrust(active.first);
        let undone = active
            .file
            .truncate(active.len)
            .and_then(|()| active.file.len())
            .is_ok_and(|len| len == active.len)
            && active.file.sync().is_ok();
        if undone {
            self.forget_room();
            self.carried.clear();
        } else {
            self.give_up();
        }
    }

    /// Nothing is written to this segment any more. All of it that was not synced is void; the notes among
    /// that are written again.
    fn give_up(&mut self) {
        let Some(active) = self.leave() else {
            return;
        };
        self.state().mistrust(active.first);
        self.next -= self.carried.len() as u64;
        self.untrimmed.push((active.first, active.len));
        self.trim(&*active.file, active.first, active.len);
    }

    /// Cuts a given-up segment to its good length, and takes note of the length it has.
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
            state.touch(first);
        }
    }

    /// The segment is not written to any more.
    fn leave(&mut self) -> Option<Active> {
        self.state().room = 0;
        self.active.take()
    }

    /// Goes on in a new segment, with a group in it. Should it fail, the old one is not gone on with all the
    /// same: the new one may be there after a crash, and what is in the old one and numbered like it would
    /// then be void. Gives the segment, and where in it the group begins.
    fn rotate(&mut self, group: &mut [Entry]) -> io::Result<(Seq, u64)> {
        if self.sync_notes().is_err() {
            self.give_up();
        }
        self.leave();
        self.begin_segment(group)
    }

    /// Makes the notes durable that were only written.
    fn sync_notes(&mut self) -> io::Result<()> {
        if let (false, Some(active)) = (self.carried.is_empty(), &self.active) {
            active.file.sync()?;
            self.carried.clear();
        }
        Ok(())
    }

    /// Begins a segment with the window, the carried notes and a group, and makes it durable before anything
    /// in it counts: what it says of earlier segments (which frames are void) must not be lost then. The group
    /// is in the same write and the same sync, as it is the one that waits for the segment.
    fn begin_segment(&mut self, group: &mut [Entry]) -> io::Result<(Seq, u64)> {
        self.clear_debris()?;
        let first = self.next;
        let name = segment_name(first);
        let (file, spare) = self.obtain(&name)?;
        let file: Arc<dyn File> = file.into();
        let capacity = spare.as_ref().map_or(0, |spare| spare.bytes);
        let (window, previous) = {
            let state = self.state();
            let window = Begin::encode(spare.is_some(), state.next_batch, state.window.iter());
            let newest = state.segments.last_key_value().map(|(newest, _)| *newest);
            let absent = state.absent.last_key_value().map(|(newest, _)| *newest);
            (window, newest.max(absent).unwrap_or(0))
        };
        let begin = Head {
            kind: Kind::Begin,
            arrived: Head::beginning(previous, self.keeper.next_generation(), !self.apart),
            ..note_head(&window)
        };
        let mut frames = Vec::from([(begin, Bytes::from(window))]);
        frames.append(&mut self.carried.clone());
        let heads = frames.iter_mut().map(|(head, _)| head);
        let heads = heads.chain(group.iter_mut().map(|entry| &mut entry.head));
        number(heads, first, self.shared.spool);
        let before: u64 = frames.iter().map(|(head, _)| head.length()).sum();
        let len = before + group.iter().map(|entry| entry.head.length()).sum::<u64>();
        let own = frames.iter().map(|(head, data)| (head, &[][..], &data[..]));
        let all = own.chain(group.iter().map(Entry::frame));
        let begun = write_frames(&*file, 0..len, capacity, all)
            .and_then(|()| file.sync())
            .and_then(|()| match &spare {
                Some(spare) => self.shared.disk.rename(&spare.name, &name),
                None => Ok(()),
            })
            .and_then(|()| self.sync_dir())
            .and_then(|()| match self.shared.disk.id(&name)? == file.id() {
                true if group.iter().any(Entry::is_chunk) => self.shared.disk.check(),
                true => Ok(()),
                false => Err(io::Error::other(format!(
                    "{name} was replaced while it was made"
                ))),
            });
        // Before anything in it is answered, and when it is there for certain: otherwise it would be missed.
        let end = first + (frames.len() + group.len()) as u64;
        let begun = begun.and_then(|()| {
            let chunks = group.iter().filter(|entry| entry.is_chunk()).count();
            let mut segments = self.state().listed(None, true);
            let entry = Listed {
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
        self.next = end;
        self.apart = false;
        self.carried.clear();
        let bare = end == first + 1;
        self.shared.handles.write_to(first, &file);
        self.active = Some(Active {
            file,
            first,
            len,
            capacity,
            bare,
        });
        let mut state = self.state();
        state.bytes += capacity;
        state.room = capacity - len;
        state.segments.insert(
            first,
            Holding {
                bytes: capacity,
                unfinished: 0,
                begun: true,
                bare,
                reusable: true,
            },
        );
        Ok((first, before))
    }

    /// A file for a segment: a spare, which is still to be given its name, or a new one.
    fn obtain(&mut self, name: &str) -> io::Result<(Box<dyn File>, Option<Spare>)> {
        while let Some(spare) = self.spares.pop_front() {
            match self.shared.disk.open(&spare.name) {
                Ok(file) => return Ok((file, Some(spare))),
                Err(error) if says_remedy(&error) => {
                    self.spares.push_front(spare);
                    return Err(error);
                }
                // It can be removed, perhaps.
                Err(_) => {
                    self.settling.push(spare);
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
                // An earlier attempt failed, and made it all the same.
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

    /// Sees to it that whoever starts next finds what was accepted: that the directory is there, locked and where its path
    /// leads, and that the files that are open have their names. Takes note of others that are missing.
    fn look(&mut self) -> io::Result<()> {
        let looked = self.look_around();
        self.astray = looked.is_err();
        let mut state = self.state();
        state.looking = false;
        state.trouble = looked.as_ref().err().map(ToString::to_string);
        drop(state);
        looked
    }

    fn look_around(&mut self) -> io::Result<()> {
        self.hold()?;
        self.reserve = self.reserve && !self.is_gone(RESERVE);
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
            let kept = len.and_then(|len| self.keep_name(*segment, file, len));
            self.shared.handles.strand(*segment, kept.is_err());
            named = named.and(kept);
        }
        self.look_for_others(&handles);
        for segment in std::mem::take(&mut self.ghosts) {
            let name = segment_name(segment);
            if self.is_gone(&name) || self.shared.disk.remove(&name).is_err() {
                self.ghosts.push_back(segment);
            } else {
                self.removed = true;
            }
        }
        // Also where another one's could not be given back: what has its name again is not to lose it.
        if self.unsettled {
            self.sync_dir()?;
        }
        named?;
        // Where it cannot be written, it is before anything more is answered.
        let _ = self.update_manifest();
        self.shared.disk.check()
    }

    /// A person takes files out of `quarantine/`, and that makes room.
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

    /// Sees to it that the directory is there, and that nobody else writes into it.
    fn hold(&mut self) -> io::Result<()> {
        match self.shared.disk.hold() {
            Ok(Held::Still) => {}
            Ok(Held::Again) => {
                self.unverified = true;
                self.notice(
                    "spool_lock",
                    "the file lock was removed from the spool's folder, and was made again: nothing may be removed there while \
                     Fluent Bit runs"
                        .to_owned(),
                );
            }
            Ok(Held::Anew) => {
                self.removed = false;
                self.reserve = false;
                self.spares.clear();
                self.settling.clear();
                self.keeper.forget();
                self.state().spares = 0;
                self.notice(
                    "spool_deleted",
                    "the spool's folder was deleted, and was made anew: what was accepted and still open is written there again"
                        .to_owned(),
                );
            }
            Err(error) => {
                if error.kind() == ErrorKind::WouldBlock {
                    self.state().ousted = true;
                    self.unverified = true;
                }
                return Err(error);
            }
        }
        if self.unverified && !self.changed {
            // Another process has its own idea of what is finished, and of how long the last segment is.
            self.changed = !self.is_untouched()?;
            self.unverified = self.changed;
            self.state().ousted = self.changed;
        }
        match self.changed {
            true => Err(ousted()),
            false => Ok(()),
        }
    }

    /// Whether nobody else began a segment or wrote to the active one.
    fn is_untouched(&self) -> io::Result<bool> {
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

    /// Sees to it that the first `len` bytes of a file that is open stand under their segment's name.
    fn keep_name(&mut self, segment: Seq, file: &Arc<dyn File>, len: u64) -> io::Result<()> {
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
        let known = self
            .state()
            .segments
            .get(&segment)
            .map(|holding| holding.bytes);
        if known.is_none() || !is_active && known.is_some_and(|known| len < known) {
            // It is finished, or the file is not whole itself.
            self.shared.handles.forget(segment);
            return Ok(());
        }
        let lost = |error: io::Error| {
            let words = format!(
                "{name} was taken away while it was in use, and cannot be written again: {error}"
            );
            remedied(error.kind(), words)
        };
        self.hold()?;
        let copy = match self.copy(segment, &**file, len, found.is_some()) {
            Err(error) if is_full(&error) => {
                // Their room may be there with the next attempt.
                while self.drop_spare() {}
                return Err(lost(error));
            }
            copied => copied.map_err(lost)?,
        };
        self.shared.handles.replace(segment, &copy);
        {
            let mut state = self.shared.state();
            state.regain(segment);
            state.resize(segment, len);
            if is_active {
                state.room = 0;
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
                "{name} was taken away while it was in use: what was accepted in it was written again under its name; do not \
                 put back the file that was taken away"
            ),
        );
        Ok(())
    }

    /// Puts the file aside that has a segment's name.
    fn displace(&mut self, segment: Seq) -> io::Result<()> {
        let (disk, name) = (&self.shared.disk, segment_name(segment));
        let bytes = disk.open(&name).and_then(|file| file.len()).unwrap_or(0);
        let mut asides = (1..=MOST_DISPLACED).map(|n| displaced_name(segment, n));
        let Some(aside) = asides.find(|aside| self.is_gone(aside)) else {
            return Err(io::Error::other(format!(
                "another file takes its place again and again, and lies in {QUARANTINE} already"
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
                "another file was put into the place of {name}: it lies in {aside} now, and is not read"
            ),
        );
        Ok(())
    }

    /// Writes the first `len` bytes of a file into another one with a segment's name. As when a spare becomes a segment, the
    /// name comes when all of it is durable, and only then what has it (`taken`) is put aside: that may be all there is
    /// after a crash, if there is no room for a copy.
    fn copy(
        &mut self,
        segment: Seq,
        file: &dyn File,
        len: u64,
        taken: bool,
    ) -> io::Result<Arc<dyn File>> {
        let disk = &self.shared.disk;
        let (copy, name) = (copy_name(segment), segment_name(segment));
        // An earlier attempt's.
        self.remove(&copy)?;
        self.half_made.insert(segment);
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
        self.half_made.remove(&segment);
        self.unsettled = true;
        Ok(made)
    }

    /// Removes what an attempt to copy a segment left behind: a start would take it for the segment.
    fn drop_copy(&mut self, segment: Seq) {
        if self.half_made.contains(&segment) && self.remove(&copy_name(segment)).is_ok() {
            self.half_made.remove(&segment);
        }
    }

    /// Looks whether some of the segments that are not open are still there: with each call at others.
    fn look_for_others(&mut self, open: &[(Seq, Arc<dyn File>)]) {
        let segments: Vec<Seq> = {
            let state = self.state();
            let behind = state.segments.range(self.looked_for..);
            let before = state.segments.range(..self.looked_for);
            behind
                .chain(before)
                .filter(|(first, holding)| {
                    holding.unfinished > 0 && !open.iter().any(|(segment, _)| segment == *first)
                })
                .map(|(first, _)| *first)
                .take(LOOKED_FOR_AT_ONCE)
                .collect()
        };
        self.looked_for = segments.last().map_or(0, |last| last + 1);
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
                        self.state().regain(segment);
                    }
                }
                (Err(error), None) if error.kind() == ErrorKind::NotFound => {
                    self.state().miss(segment);
                }
                _ => {}
            }
        }
    }

    fn is_untidy(&self) -> bool {
        let state = self.state();
        !self.untrimmed.is_empty()
            || self.debris.is_some()
            || state.removable().is_some()
            || state.wants_room()
    }

    /// Removes some of what nobody needs any more. Whether there may be more of it that can be removed now; what
    /// fails is tried again when something else happens.
    ///
    /// One segment at a time: each costs an fsync, there may be thousands, and who comes meanwhile is not to wait for all.
    pub(super) fn tidy(&mut self) -> bool {
        self.state().tidying = false;
        if self.state().ousted {
            return false;
        }
        for (first, good) in self.untrimmed.clone() {
            match self.shared.disk.open(&segment_name(first)) {
                Ok(file) => self.trim(&*file, first, good),
                // One that was taken away may be put back.
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
        let roll = self.state().wants_room();
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
        // Should it come back after a power cut, all newer ones must be there still.
        self.sync_removals()?;
        self.secure()?;
        // Should that fail, the next start misses it.
        let _ = self.strike_off(first);
        let (name, spare) = (segment_name(first), spare_name(first));
        let kept = self.may_be_spare(first) && self.shared.disk.rename(&name, &spare).is_ok();
        if !kept {
            match self.shared.disk.remove(&name) {
                // Should somebody put it back, it would be delivered again by the next start.
                Err(error) if error.kind() == ErrorKind::NotFound => self.ghosts.push_back(first),
                removed => removed?,
            }
            self.ghosts.truncate(MOST_GHOSTS);
        }
        self.removed = true;
        self.untrimmed.retain(|(segment, _)| *segment != first);
        self.shared.handles.forget(first);
        let bytes = self.state().forget(first);
        if kept {
            self.state().spares += bytes;
            self.settling.push(Spare { name: spare, bytes });
        }
        Ok(())
    }

    /// Whether a finished segment's file is worth to be written again, and there is room to keep it.
    fn may_be_spare(&self, first: Seq) -> bool {
        let state = self.state();
        let limits = &self.shared.limits;
        let Some(holding) = state.segments.get(&first) else {
            return false;
        };
        self.keeps_spares
            && holding.reusable
            && holding.bytes >= limits.segment_bytes / 2
            && state.spares + holding.bytes <= limits.limit / SPARE_SHARE
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
        self.unsettled = false;
        self.spares.extend(self.settling.drain(..));
        Ok(())
    }

    /// Makes durable what the oldest segments are not needed for any more then: the notes, and a readable
    /// Begin frame in the newest.
    fn secure(&mut self) -> io::Result<()> {
        if self.sync_notes().is_err() {
            self.give_up();
        }
        let begun = self.state().is_begun();
        if self.carried.is_empty() && begun {
            return Ok(());
        }
        self.leave();
        self.begin_segment(&mut []).map(drop)
    }

    /// Makes all durable, and leaves one small file where everything is finished.
    fn shorten(&mut self) {
        // A last time: what has no name then is gone with the process.
        let _ = self.look();
        let untouched = self.state().segments.is_empty() || self.state().ousted;
        if untouched {
            return;
        }
        self.keeps_spares = false;
        while self.drop_spare() {}
        self.release_reserve();
        let _ = self.secure();
        let roll = self.state().can_be_shorter();
        if roll {
            let _ = self.rotate(&mut []);
        }
        // What is left then is removed by the next start, which may be waiting for the directory already.
        let since = Instant::now();
        while self.is_untidy() && self.tidy() && since.elapsed() < TIDIED_AT_CLOSE {}
        self.give_room_back();
        let _ = self.sync_removals();
        let segments = self.state().listed(None, self.carried.is_empty());
        let _ = self.write_manifest(segments, self.next, true);
    }

    /// Cuts from the active segment's file what no frame needs.
    fn give_room_back(&mut self) {
        if let Some(active) = &self.active
            && active.capacity > active.len
            && active.file.truncate(active.len).is_ok()
        {
            self.forget_room();
        }
    }

    /// The active segment's file ends with its last frame now.
    fn forget_room(&mut self) {
        if let Some(active) = &mut self.active {
            active.capacity = active.len;
            let mut state = self.shared.state();
            state.resize(active.first, active.len);
            state.room = 0;
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

/// Writes frames, straight from where their bytes are, into a file of `capacity` bytes. What it held before
/// behind them is not to be taken for more of them.
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

/// The same error once more, for another one who waits.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None if says_remedy(error) => remedied(error.kind(), error.to_string()),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
