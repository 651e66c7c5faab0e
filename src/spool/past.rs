//! Reads what earlier runs left, behind the start: their notes, and then segment after segment, oldest first, as the reader of
//! the spool comes near. The thread holds no lock while it reads, and no flush waits for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::mpsc::Sender;
use std::sync::{Arc, MutexGuard};

use super::manifest::Entry;
use super::note::Ledger;
use super::recovery::{Quarantine, missing_finding, remove_spare};
use super::scan::{Found, Place, Reader, Segment};
use super::writer::Job;
use super::{Events, History, Seq, Shared, State, lock_lost};
use crate::ids::ChunkId;

/// The number of chunks added to the index at a time, between which others may take the lock.
const ADDED_AT_ONCE: usize = 1_000;

/// What the start left to be read.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The segments older than the newest one, oldest first.
    pub(super) older: Vec<Seq>,
    /// The segment that was the newest, and its length in bytes; it may have been continued since. `None`: everything was read
    /// at the start.
    pub(super) newest: Option<(Seq, u64)>,
    /// The newest segment as it was read at the start, without its chunks.
    pub(super) newest_segment: Option<Segment>,
    /// The ledger of the log, if the manifest has it and the relocated chunks in it are whole.
    pub(super) checkpoint: Option<Ledger>,
    /// Otherwise the ledger as it was when this segment began, if the manifest has that.
    pub(super) base: Option<(Seq, Ledger)>,
    /// The newest of the segments that should exist and are missing.
    pub(super) absent: Option<Seq>,
    /// The segments that exist or should exist.
    pub(super) bounds: BTreeSet<Seq>,
    /// Those that the manifest lists.
    pub(super) listed: BTreeSet<Seq>,
    /// The first segment that the manifest covers.
    pub(super) since: Seq,
    /// The files in the quarantine.
    pub(super) quarantine: Vec<(String, u64)>,
    /// The spares of earlier runs.
    pub(super) spares: Vec<(String, u64)>,
}

/// What is indexed and was not read yet.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The first number of each segment that is indexed and not passed by the reader, with the number of its unfinished chunks
    /// when it was indexed.
    segments: VecDeque<(Seq, usize)>,
    /// The total of these numbers.
    chunks: usize,
}

impl Ahead {
    /// Everything in one.
    pub(super) fn of(chunks: &BTreeMap<Seq, Place>) -> Ahead {
        let mut ahead = Ahead::default();
        ahead.push(0, chunks.len());
        ahead
    }

    fn push(&mut self, first: Seq, chunks: usize) {
        self.segments.push_back((first, chunks));
        self.chunks += chunks;
    }

    /// Adds a chunk to the last segment.
    pub(super) fn grow(&mut self) {
        if let Some((_, chunks)) = self.segments.back_mut() {
            *chunks += 1;
            self.chunks += 1;
        }
    }

    /// Drops the segments before the one that the reader has come to.
    fn pass(&mut self, chunk: Seq) {
        while let Some((next, _)) = self.segments.get(1)
            && *next <= chunk
            && let Some((_, chunks)) = self.segments.pop_front()
        {
            self.chunks -= chunks;
        }
    }

    /// Whether another segment is to be indexed: at most `most` chunks wait, or the reader is in the last segment.
    fn wants_more(&self, most: usize) -> bool {
        self.chunks < most || self.segments.len() < 2
    }
}

impl State {
    /// The next chunk after `after` before the frontier.
    pub(super) fn next_indexed(&mut self, after: Option<Seq>, most: usize) -> Option<(Seq, Place)> {
        let next = self.next_before_frontier(after);
        match self.open_resident(most) {
            true if next.is_none() => self.next_before_frontier(after),
            _ => next,
        }
    }

    /// Moves the frontier past the segment being written if that is where it is and the reader is near. Every chunk of it is in
    /// the index, and its file is not to be read: a frame in it may still be refused.
    fn open_resident(&mut self, most: usize) -> bool {
        let is_near = self.starved || self.ahead.wants_more(most);
        let opens = Some(self.frontier) == self.resident && is_near;
        if opens {
            self.pass_into_resident(self.frontier);
        }
        opens
    }

    fn pass_into_resident(&mut self, first: Seq) {
        let chunks = self.chunks.range(first..).count();
        self.ahead.push(first, chunks);
        self.frontier = Seq::MAX;
        self.starved = false;
    }

    fn next_before_frontier(&mut self, after: Option<Seq>) -> Option<(Seq, Place)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let is_before = after.is_none_or(|after| after < self.frontier);
        let range = (from, Bound::Excluded(self.frontier));
        let next = is_before.then(|| self.chunks.range(range).next()).flatten();
        let next = next.map(|(chunk, place)| (*chunk, *place));
        self.ahead.pass(after.unwrap_or(0));
        self.starved |= next.is_none() && self.frontier != Seq::MAX;
        next
    }

    /// Whether the thread that reads what earlier runs left has something to do for the reader.
    pub(super) fn wants_more(&self, most: usize) -> bool {
        self.next_to_index(most).is_some()
    }

    /// Records that a segment is the one being written, of which every chunk stays in the index. If the reader is far behind,
    /// the chunks of the former one are forgotten, and read again when the reader comes near.
    pub(super) fn begin_resident(&mut self, first: Seq, most: usize) {
        let former = self.resident.replace(first);
        if self.frontier == Seq::MAX {
            match self.ahead.wants_more(most) {
                true => self.ahead.push(first, 0),
                false => self.frontier = first,
            }
            return;
        }
        let Some(former) = former.filter(|former| *former >= self.frontier) else {
            return;
        };
        // The chunks of the segment that was the newest at the start may be in the [`History`], and in hand.
        if self.opened != Some(former) {
            for (chunk, place) in self.chunks.split_off(&former) {
                // Whoever relocated a chunk recognises it only while it is known that this run wrote it.
                if place.is_relocated() {
                    self.chunks.insert(chunk, place);
                }
            }
        }
        if let Some(info) = self.segments.get_mut(&former) {
            info.indexed = false;
        }
    }

    /// The next segment to index: one that was missing and is back, or else the one at the frontier if the reader is near.
    fn next_to_index(&self, most: usize) -> Option<Seq> {
        let mut skipped = self.skipped.iter();
        let back = skipped.find(|first| !self.missing.contains_key(first));
        let is_closed = self.frontier != Seq::MAX && Some(self.frontier) != self.resident;
        let near = || is_closed && (self.starved || self.ahead.wants_more(most));
        back.copied().or_else(|| near().then_some(self.frontier))
    }

    /// Adds a chunk to the index, unless it is there, or was finished before its segment was indexed.
    fn add(&mut self, chunk: Seq, place: Place, settled: Option<&Events>) {
        if self.finished_early.contains(&chunk) || self.chunks.contains_key(&chunk) {
            return;
        }
        match settled {
            Some(Events::All) => return,
            Some(Events::Runs(runs)) if !runs.is_empty() => {
                self.settled.insert(chunk, runs.clone());
            }
            Some(Events::Runs(_)) | None => {}
        }
        self.index(chunk, place);
    }

    /// Records that every chunk of a segment is in the index.
    fn finish_segment(&mut self, first: Seq) {
        let next = self.segments.range(first + 1..).next();
        let numbers = first..next.map_or(Seq::MAX, |(next, _)| *next);
        let chunks = self.chunks.range(numbers.clone());
        let chunks: Vec<Seq> = chunks.map(|(chunk, _)| *chunk).collect();
        self.finished_early.retain(|chunk| !numbers.contains(chunk));
        if let Some(info) = self.segments.get_mut(&first) {
            (info.indexed, info.listed) = (true, true);
            self.unfinished = self.unfinished - info.unfinished + chunks.len() as u64;
            info.unfinished = chunks.len() as u64;
        }
        self.barred.remove(&first);
        if self.skipped.remove(&first) {
            self.late.extend(chunks);
        } else {
            self.ahead.push(first, chunks.len());
            self.pass_frontier(first);
        }
    }

    /// Records that this user may not open a segment that is not indexed. It is tried again like one that is missing.
    fn set_barred(&mut self, first: Seq, error: &io::Error) {
        self.set_missing(first);
        self.barred.insert(first, error.to_string());
    }

    /// Forgets a segment that is not to be delivered.
    fn forget_segment(&mut self, first: Seq, entry: Option<Entry>) {
        self.pass_frontier(first);
        if let Some(info) = self.segments.get(&first) {
            self.unfinished -= info.unfinished;
        }
        self.skipped.remove(&first);
        self.missing.remove(&first);
        let info = self.segments.remove(&first);
        self.bytes -= info.map_or(0, |info| info.bytes);
        self.absent.extend(entry.map(|entry| (first, entry)));
    }

    /// Moves the frontier past a segment, if it is there.
    fn pass_frontier(&mut self, first: Seq) {
        if self.frontier != first {
            return;
        }
        self.starved = false;
        let next = self.segments.range(first + 1..).next();
        let next = next.map_or(Seq::MAX, |(next, _)| *next);
        self.frontier = next;
        if Some(next) == self.resident {
            self.pass_into_resident(next);
        }
    }
}

/// The thread that reads what earlier runs left.
pub(super) struct Behind {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    past: Past,
    /// The names of the files in the quarantine.
    quarantined: Vec<String>,
    /// The segment indexed last.
    previous: Option<Box<Segment>>,
    buffer: Vec<u8>,
}

impl Behind {
    pub(super) fn new(shared: Arc<Shared>, jobs: Sender<Job>, past: Past) -> Behind {
        let names = past.quarantine.iter();
        Behind {
            shared,
            jobs,
            quarantined: names.map(|(name, _)| name.clone()).collect(),
            past,
            previous: None,
            buffer: Vec::new(),
        }
    }

    /// Runs until the spool ends.
    pub(super) fn run(mut self) {
        let mut is_told = self.past.newest.is_none();
        let most = self.shared.limits.indexed;
        loop {
            if self.state().ended {
                return;
            }
            let worked = match is_told {
                false => self.tell_history().inspect(|told| is_told = *told),
                true => {
                    let next = self.state().next_to_index(most);
                    let Some(first) = next else {
                        self.wait(|state| state.ended || state.next_to_index(most).is_some());
                        continue;
                    };
                    self.index(first)
                }
            };
            let mut state = self.state();
            state.behind = worked.as_ref().err().map(ToString::to_string);
            state.retry = false;
            drop(state);
            self.shared.indexed.notify_all();
            if worked.is_err() {
                self.wait(|state| state.ended || state.retry);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn wait(&self, until: impl Fn(&State) -> bool) {
        let waited = self.shared.work.wait_while(self.state(), |it| !until(it));
        drop(waited.expect("nothing panics with this lock"));
    }

    fn goes_on(&self) -> bool {
        !self.state().ended
    }

    /// Lets a reader of segments do something.
    fn reading<T>(&mut self, read: impl FnOnce(&mut Reader<'_>) -> io::Result<T>) -> io::Result<T> {
        if self.state().lock_lost {
            return Err(lock_lost());
        }
        // What this run began bounds what it began before.
        let newest = self.past.newest.map_or(0, |(newest, _)| newest);
        let begun: Vec<Seq> = {
            let state = self.state();
            let begun = state.segments.range(newest + 1..);
            begun.map(|(first, _)| *first).collect()
        };
        self.past.bounds.extend(&begun);
        self.past.listed.extend(begun);
        let mut reader = Reader {
            disk: &*self.shared.disk,
            spool: self.shared.spool,
            bounds: std::mem::take(&mut self.past.bounds),
            listed: std::mem::take(&mut self.past.listed),
            quarantine: std::mem::take(&mut self.past.quarantine),
            buffer: std::mem::take(&mut self.buffer),
        };
        let done = read(&mut reader);
        self.past.bounds = reader.bounds;
        self.past.listed = reader.listed;
        self.past.quarantine = reader.quarantine;
        self.buffer = reader.buffer;
        done
    }

    /// Finds out what had been begun, and tells it. Returns `false` if the spool ends.
    fn tell_history(&mut self) -> io::Result<bool> {
        let shared = Arc::clone(&self.shared);
        // Kept until this succeeds: after an error of the disk it is tried again.
        let (ledger, is_whole) = match self.past.checkpoint.clone() {
            Some(ledger) if self.are_whole(&ledger)? => (ledger, true),
            _ => match self.read_notes()? {
                Some(read) => read,
                None => return Ok(false),
            },
        };
        let named = ledger.pending_chunks().chain(shared.suspects.named());
        let named = named.collect();
        shared.live().set(ledger, is_whole);
        self.find(named)?;
        self.resume_suspects();
        {
            let live = shared.live();
            let ledger = live.ledger.as_ref().expect("it was set");
            let mut state = shared.state();
            // Of what the newest segment holds, the index has everything.
            let indexed = state.chunks.keys().copied();
            let settled = indexed.filter_map(|chunk| match ledger.settled(chunk) {
                Some(Events::Runs(runs)) if !runs.is_empty() => Some((chunk, runs.clone())),
                _ => None,
            });
            let settled: Vec<_> = settled.collect();
            state.settled.extend(settled);
            let pending = ledger.pending(|it| state.chunks.contains_key(&it));
            let suspects = shared.suspects.all();
            state.history = Some(History { pending, suspects });
        }
        shared.told.notify_waiters();
        (self.past.checkpoint, self.past.base) = (None, None);
        for spare in std::mem::take(&mut self.past.spares) {
            let found = remove_spare(&*shared.disk, &spare);
            shared.state().findings.extend(found);
        }
        Ok(true)
    }

    /// Continues the record of suspects, whose chunks are in the index if they are unfinished.
    fn resume_suspects(&self) {
        let named = self.shared.suspects.named().into_iter();
        let ids: BTreeMap<Seq, ChunkId> = {
            let state = self.state();
            let id = |chunk| Some((chunk, state.chunks.get(&chunk)?.id));
            named.filter_map(id).collect()
        };
        // Writes a file, so no lock is held.
        let suspects = &self.shared.suspects;
        let warned = suspects.resume(|it| ids.get(&it.chunk) == Some(&it.id));
        self.state().findings.extend(warned);
    }

    /// Whether the relocated chunks in a checkpoint are there: otherwise their events are where they were.
    fn are_whole(&mut self, ledger: &Ledger) -> io::Result<bool> {
        let oldest = self.past.older.first().copied().unwrap_or(0);
        let mut needed = ledger.clone();
        needed.forget_before(oldest);
        for moved in needed.moved() {
            if !self.reading(|reader| reader.is_whole(moved))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the notes of all segments since an older checkpoint, or of all. Returns the ledger, and whether every note that
    /// there ever was is in it; `None` if the spool ends.
    fn read_notes(&mut self) -> io::Result<Option<(Ledger, bool)>> {
        let (from, mut ledger) = match self.past.base.clone() {
            Some((from, base)) if self.are_whole(&base)? => (from, base),
            _ => (0, Ledger::default()),
        };
        let mut is_whole = self.past.absent.is_none_or(|absent| absent < from);
        let older = self.past.older.clone().into_iter();
        let older = older.filter(|first| *first >= from);
        let older = older.map(|first| (first, u64::MAX));
        for (first, len) in older.chain(self.past.newest) {
            if !self.goes_on() {
                return Ok(None);
            }
            let known = self.known_bytes(first).min(len);
            let found = self.reading(|reader| reader.read(first, len, &mut ledger))?;
            // What its notes settle has to be known.
            if let Found::Barred(error) = found {
                return Err(error);
            }
            is_whole &= matches!(found, Found::Segment(segment) if segment.bytes >= known);
        }
        Ok(Some((ledger, is_whole)))
    }

    /// The size of a segment's file when it was seen last, in bytes.
    fn known_bytes(&self, first: Seq) -> u64 {
        let state = self.state();
        let now = state.segments.get(&first).map_or(0, |info| info.bytes);
        now.max(state.missing.get(&first).copied().unwrap_or(0))
    }

    /// Adds chunks to the index before it is their segment's turn.
    fn find(&mut self, chunks: BTreeSet<Seq>) -> io::Result<()> {
        let mut segments: BTreeSet<Seq> = BTreeSet::new();
        for chunk in &chunks {
            let state = self.state();
            let of = state.segments.range(..=*chunk).next_back();
            let of = of.filter(|(first, info)| !info.indexed && state.resident != Some(**first));
            segments.extend(of.map(|(first, _)| *first));
        }
        for first in segments {
            let read =
                |reader: &mut Reader<'_>| reader.read(first, u64::MAX, &mut Ledger::default());
            let known = self.known_bytes(first);
            match self.reading(read)? {
                Found::Segment(segment) if segment.bytes >= known => {
                    if self.is_left(&segment) {
                        let named = segment.chunks.iter();
                        let named = named.filter(|(chunk, _)| chunks.contains(chunk));
                        self.add_all(named);
                    }
                }
                // It is waited for, and so are its chunks: see `Spool::may_come_back`.
                Found::Segment(_) | Found::Gone => self.state().set_missing(first),
                Found::Barred(error) => self.state().set_barred(first, &error),
                Found::Foreign(_) => {}
            }
        }
        Ok(())
    }

    /// Indexes a segment. Returns `false` if the spool ends.
    fn index(&mut self, first: Seq) -> io::Result<bool> {
        let shared = Arc::clone(&self.shared);
        let goes_on = || !shared.state().ended;
        let oldest = self.past.older.first().copied().unwrap_or(Seq::MAX);
        let was_there = |chunk: Seq| {
            let state = shared.state();
            let now = state.segments.keys().next().copied();
            chunk >= oldest && now.is_some_and(|now| chunk < now)
        };
        // What this run wrote and refused is not doubted.
        let is_past = self.past.newest.is_some_and(|(newest, _)| first <= newest);
        let known = self.known_bytes(first);
        let found = self.reading(|reader| {
            let mut found = reader.read(first, u64::MAX, &mut Ledger::default())?;
            // It may be in the middle of being copied back.
            if is_past && matches!(&found, Found::Segment(segment) if segment.bytes < known) {
                found = Found::Gone;
            }
            let go_on = match &mut found {
                Found::Segment(segment) if is_past => {
                    reader.find_doubted(segment, was_there, goes_on)?
                }
                _ => true,
            };
            Ok(go_on.then_some(found))
        })?;
        match found {
            None => return Ok(false),
            Some(Found::Segment(segment)) => self.add(segment, is_past),
            Some(Found::Gone) => {
                let mut state = self.state();
                state.skipped.insert(first);
                state.set_missing(first);
                state.pass_frontier(first);
            }
            Some(Found::Barred(error)) => {
                let mut state = self.state();
                state.skipped.insert(first);
                state.set_barred(first, &error);
                state.pass_frontier(first);
            }
            Some(Found::Foreign(why)) => {
                let mut state = self.state();
                let name = super::segment_name(first);
                state.findings.push(format!("{name} is left alone: {why}"));
                let listed = self.past.listed.contains(&first);
                let entry = state.segments.get(&first).map(|info| Entry {
                    unfinished: info.unfinished,
                    open: true,
                });
                state.forget_segment(first, entry.filter(|_| listed));
            }
        }
        if self.past.older.last() == Some(&first)
            && let Some(newest) = &self.past.newest_segment
        {
            let gap = self.gap_before(newest);
            self.state().findings.extend(gap);
        }
        self.shared.more.notify_waiters();
        // Fails if the spool is closed, and nothing is to be cleaned up.
        let _ = self.jobs.send(Job::CleanUp);
        Ok(true)
    }

    fn add_all<'c>(&self, chunks: impl Iterator<Item = &'c (Seq, Place)>) {
        let live = self.shared.live();
        let mut state = self.shared.state();
        for (chunk, place) in chunks {
            let settled = live.ledger.as_ref().and_then(|it| it.settled(*chunk));
            state.add(*chunk, *place, settled);
        }
    }

    /// Whether a segment was not removed yet, rather than put back after it was.
    fn is_left(&self, segment: &Segment) -> bool {
        let is_listed = {
            let state = self.state();
            let info = state.segments.get(&segment.first);
            info.is_some_and(|info| info.listed)
        };
        let mut chunks = segment.chunks.iter();
        // A chunk in several objects is settled in parts, and no note tells how many events it has.
        let live = self.shared.live();
        let is_settled = |chunk| {
            let ledger = live.ledger.as_ref();
            ledger.is_some_and(|ledger| ledger.settled(chunk).is_some())
        };
        is_listed || chunks.all(|(chunk, _)| is_settled(*chunk))
    }

    /// Reports segments that are missing between the segment indexed last and the next one, unless the manifest tells.
    fn gap_before(&self, next: &Segment) -> Option<String> {
        let gap = self.previous.as_ref()?.gap_before(next)?;
        let is_told = gap.first >= self.past.since || self.state().absent.contains_key(&gap.first);
        (!is_told).then(|| missing_finding(&gap))
    }

    /// Reports what is wrong with a segment, and adds its chunks to the index.
    fn add(&mut self, segment: Box<Segment>, is_past: bool) {
        let first = segment.first;
        let shared = Arc::clone(&self.shared);
        let names = std::mem::take(&mut self.quarantined);
        let mut quarantine = Quarantine::with_names(&*shared.disk, names);
        let mut findings = Vec::new();
        for damage in &segment.damage {
            findings.extend(quarantine.report_damage(first, damage));
        }
        if let Some(doubted) = &segment.doubted {
            findings.extend(quarantine.report_doubted(first, doubted));
        }
        if segment.torn > 0 && is_past {
            findings.extend(quarantine.report_torn_end(&segment));
        }
        let is_left = self.is_left(&segment);
        if !is_left {
            findings.push(quarantine.move_aside(&segment.name(), segment.bytes));
        }
        findings.extend(self.gap_before(&segment));
        for chunks in segment.chunks.chunks(ADDED_AT_ONCE) {
            self.add_all(chunks.iter().filter(|_| is_left));
        }
        let mut state = shared.state();
        state.add_quarantined(quarantine.bytes);
        state.findings.extend(findings);
        match is_left {
            true => {
                state.resize(first, segment.bytes);
                state.finish_segment(first);
            }
            false => state.forget_segment(first, None),
        }
        drop(state);
        self.quarantined = quarantine.into_names();
        self.previous = Some(segment);
    }
}
