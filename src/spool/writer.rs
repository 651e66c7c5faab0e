//! The thread that writes: it alone appends to segments, begins them and removes them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::disk::{File, remedied, says_remedy};
use super::frame::{Begin, END, HEADER, Head, Kind, padding, segment_name, spare_name};
use super::scan::Place;
use super::{Appended, Durability, Holding, Refusal, SPARE_SHARE, Seq, Shared, State};
use crate::decode::Time;
use crate::settle::chunk_id;

/// Bytes that are written and synced at once. More would make the first in the group wait for the last.
const GROUP_BYTES: u64 = 8 << 20;
/// The reserve's name.
pub(super) const RESERVE: &str = "reserve";
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

/// The segment that is written to.
pub(super) struct Active {
    pub(super) file: Box<dyn File>,
    pub(super) first: Seq,
    /// Bytes of what was answered for. What stands behind them is being written, or is void.
    pub(super) len: u64,
    /// Bytes that its file has, or more than that will be when a group is written.
    pub(super) capacity: u64,
    /// It holds its Begin frame and nothing else.
    pub(super) bare: bool,
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
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        jobs: Receiver<Job>,
        active: Option<Active>,
        next: Seq,
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
        }
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        while let Some(job) = self.next_job() {
            match job {
                Job::Tidy => drop(self.tidy()),
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
                // It is seen to behind the group.
                Job::Tidy => continue,
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
            state.hungry = true;
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
        if let Err(error) = self.keep_reserve(&group) {
            let chunks = group.extract_if(.., |entry| entry.is_chunk()).collect();
            self.refuse(chunks, &error);
            if group.is_empty() {
                return;
            }
        }
        match self.write(&mut group) {
            Ok(start) => self.publish(group, start),
            Err(error) => {
                // The disk may be full below the limit.
                while self.drop_spare() {}
                match is_full(&error) {
                    // What is finished in the newest segment may be what fills it.
                    true if group.iter().any(Entry::is_chunk) => self.state().hungry = true,
                    true => self.release_reserve(),
                    false => {}
                }
                self.refuse(group, &error);
            }
        }
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
        let active = self.active.as_mut().expect("it was looked at");
        let start = (active.first, active.len);
        let place = active.len..active.len + bytes;
        let frames = group.iter().map(Entry::frame);
        if let Err(error) = write_frames(&*active.file, place, active.capacity, frames) {
            self.unwrite();
            return Err(error);
        }
        let notes = |entry: &&Entry| matches!(entry.then, Then::Note { .. });
        let fresh = group.iter().filter(notes).map(|e| (e.head, e.data.clone()));
        let unsynced: u64 = self.carried.iter().map(|(head, _)| head.length()).sum();
        if group.iter().any(Entry::wants_sync) || unsynced + bytes > CARRIED_BYTES {
            if let Err(error) = active.file.sync() {
                self.give_up();
                return Err(error);
            }
            self.carried.clear();
        } else {
            self.carried.extend(fresh);
        }
        active.len += bytes;
        active.capacity = active.capacity.max(active.len);
        active.bare = false;
        self.next += group.len() as u64;
        Ok(start)
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
        let capacity = spare.as_ref().map_or(0, |spare| spare.bytes);
        let window = {
            let state = self.state();
            Begin::encode(spare.is_some(), state.next_batch, state.window.iter())
        };
        let begin = Head {
            kind: Kind::Begin,
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
            .and_then(|()| self.sync_dir());
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
        let count = frames.len() + group.len();
        self.next = first + count as u64;
        self.carried.clear();
        let bare = count == 1;
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
        for (first, good) in self.untrimmed.clone() {
            match self.shared.disk.open(&segment_name(first)) {
                Ok(file) => self.trim(&*file, first, good),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.untrimmed.retain(|(segment, _)| *segment != first);
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
                self.state().hungry = false;
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
        // Should it come back after a power cut, all newer ones must be there still.
        self.sync_removals()?;
        self.secure()?;
        let (name, spare) = (segment_name(first), spare_name(first));
        let kept = self.may_be_spare(first) && self.shared.disk.rename(&name, &spare).is_ok();
        if !kept {
            self.remove(&name)?;
        }
        self.removed = true;
        self.untrimmed.retain(|(segment, _)| *segment != first);
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
        let untouched = self.state().segments.is_empty();
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
