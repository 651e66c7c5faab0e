//! Acknowledgements: what is still on its way of a flush, a chunk or an object, and what the answer will be.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::quota::Quota;
use crate::ids::{EventSet, Verdict};
use crate::metrics::Sealed;
use crate::sink::Fault;
use crate::spool::{Content, Events, Seq};

/// Tracks what is on its way of a flush that the host waits for, of a chunk of the spool, or of an object made of
/// many chunks. It is complete when the last [`AckGuard`] is gone, and failed where one was dropped without being kept.
#[derive(Debug, Default)]
pub struct AckTracker {
    tag: Arc<[u8]>,
    left: AtomicUsize,
    failed: AtomicBool,
    given_up: AtomicBool,
    /// Events that are acknowledged or kept as dead letters, in this flush or an earlier one.
    settled: Arc<Mutex<EventSet>>,
    /// How many events its chunk has, once that is known.
    events: AtomicU32,
    done: Notify,
    reports_to: Option<(Owner, mpsc::UnboundedSender<TrackerEvent>)>,
    token: Option<Arc<str>>,
    sealed: Option<Sealed>,
}

/// What is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A chunk of the spool, by its number there.
    Chunk(u64),
    /// Some events of a chunk that were deferred, by the number of the load.
    Deferred {
        /// Which load.
        load: u64,
        /// Of which chunk.
        chunk: u64,
    },
    /// An object, by the number of its batch.
    Object(u64),
}

impl Owner {
    /// The chunk of the spool that its events are of.
    pub fn chunk(&self) -> Option<u64> {
        match *self {
            Owner::Chunk(chunk) | Owner::Deferred { chunk, .. } => Some(chunk),
            Owner::Object(_) => None,
        }
    }
}

/// A tracker is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Which.
    pub owner: Owner,
    /// OK, or that some of it has to go again.
    pub verdict: Verdict,
}

/// The destination refused something for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where it was on its way to.
    pub target: Arc<str>,
    /// What the destination said.
    pub fault: Arc<Fault>,
}

/// Reports of a tracker that nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackerEvent {
    /// It has completed.
    Completed(Completed),
    /// The destination refused some of what it carries, and no dead letter of that can be kept now. It counts as
    /// settled for the tracker; whoever hears this sees to it.
    Refused {
        /// Whose it is.
        owner: Owner,
        /// Of a chunk: its events.
        events: Vec<u32>,
        /// Why.
        refusal: Arc<Refusal>,
    },
    /// Some of what it carries is not sent now, since its target takes nothing. It counts as settled for the tracker;
    /// whoever hears this reads it again later.
    Deferred {
        /// The chunk.
        chunk: u64,
        /// Its events.
        events: Vec<u32>,
        /// Where they go.
        target: Arc<str>,
        /// Nothing for that target is tried before then.
        not_before: Option<Instant>,
    },
    /// An object is not sent now, since its target takes nothing, and was certainly never put.
    Unsent {
        /// Its batch.
        batch: u64,
        /// Where it goes.
        target: Arc<str>,
    },
}

impl AckTracker {
    /// A flush of a chunk with `tag`, of which `settled` was settled before.
    pub fn new(tag: &[u8], settled: EventSet) -> AckTracker {
        AckTracker {
            tag: tag.into(),
            settled: Arc::new(Mutex::new(settled)),
            ..AckTracker::default()
        }
    }

    /// The same, of which every object is known by `token`.
    pub fn of_objects(tag: &[u8], settled: EventSet, token: &str) -> AckTracker {
        AckTracker {
            token: Some(token.into()),
            ..AckTracker::new(tag, settled)
        }
    }

    /// A part of a flush, which completes by itself. What is settled of it is settled of the whole.
    pub fn target(&self) -> AckTracker {
        AckTracker {
            tag: Arc::clone(&self.tag),
            settled: Arc::clone(&self.settled),
            token: self.token.clone(),
            ..AckTracker::default()
        }
    }

    /// The same for a chunk of the spool, or for events of it that were deferred: nobody waits, `completed` is told instead.
    /// Hold a guard ([`AckTracker::hold`]) until all others are made.
    pub fn of_chunk(
        tag: &[u8],
        settled: EventSet,
        owner: Owner,
        completed: mpsc::UnboundedSender<TrackerEvent>,
    ) -> AckTracker {
        AckTracker {
            reports_to: Some((owner, completed)),
            ..AckTracker::new(tag, settled)
        }
    }

    /// The same for an object with its `token`, made of chunks of which the first has `tag`.
    pub fn of_object(
        tag: &[u8],
        token: &str,
        sealed: Sealed,
        batch: u64,
        completed: mpsc::UnboundedSender<TrackerEvent>,
    ) -> AckTracker {
        AckTracker {
            reports_to: Some((Owner::Object(batch), completed)),
            token: Some(token.into()),
            sealed: Some(sealed),
            ..AckTracker::new(tag, EventSet::default())
        }
    }

    /// The chunk's tag.
    pub fn tag(&self) -> &Arc<[u8]> {
        &self.tag
    }

    /// How many events the chunk has.
    pub fn has_events(&self, events: u32) {
        self.events.store(events, Ordering::Release);
    }

    /// A guard for one more piece, which holds `events[range]`. All guards are made before the first
    /// is settled.
    pub fn guard(self: &Arc<Self>, events: &Arc<[u32]>, range: Range<usize>) -> AckGuard {
        self.left.fetch_add(1, Ordering::AcqRel);
        AckGuard {
            tracker: Arc::clone(self),
            events: Arc::clone(events),
            range,
            kept: false,
            charged: None,
            target: None,
        }
    }

    /// A guard for no event: while it lasts the tracker does not land.
    pub fn hold(self: &Arc<Self>) -> AckGuard {
        self.guard(&Arc::default(), 0..0)
    }

    /// These events need no piece any more.
    pub fn settle(&self, events: &[u32]) {
        let mut settled = self.settled.lock().expect("nothing panics with this lock");
        for event in events {
            settled.insert(*event);
        }
    }

    /// The same for a set of them.
    pub fn settle_all(&self, events: &EventSet) {
        let mut settled = self.settled.lock().expect("nothing panics with this lock");
        settled.unite(events);
    }

    /// Waits until every guard is gone, and says what they amount to.
    pub async fn completed(&self) -> Verdict {
        while self.left.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
        self.verdict()
    }

    /// What the guards that are gone amount to.
    pub fn verdict(&self) -> Verdict {
        if self.failed.load(Ordering::Acquire) {
            Verdict::Retry
        } else {
            Verdict::Ok
        }
    }

    /// Bytes of memory that it needs, about.
    pub fn footprint(&self) -> usize {
        let settled = self.settled.lock().expect("nothing panics with this lock");
        size_of::<AckTracker>() + self.tag.len() + settled.footprint()
    }

    /// Whether every guard is gone.
    pub fn is_complete(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// Nobody waits any more: what has not been sent yet need not be.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Events that are settled so far.
    pub fn settled(&self) -> EventSet {
        self.settled
            .lock()
            .expect("nothing panics with this lock")
            .clone()
    }
}

/// One piece's part in a tracker. Dropped without [`AckGuard::keep`], for whatever reason, it makes the
/// tracker fail (a flush answers RETRY): forgetting a piece cannot lose it.
#[derive(Debug)]
pub struct AckGuard {
    tracker: Arc<AckTracker>,
    events: Arc<[u32]>,
    range: Range<usize>,
    kept: bool,
    charged: Option<(Arc<Quota>, usize)>,
    target: Option<Arc<str>>,
}

impl AckGuard {
    /// The piece is safe: acknowledged, or kept as a dead letter.
    pub fn keep(mut self) {
        self.kept = true;
        self.tracker.settle(&self.events[self.range.clone()]);
    }

    /// The piece was refused, and its dead letter cannot be kept now. Where a flush waits for it, that fails.
    pub fn refuse(mut self, refusal: &Arc<Refusal>) {
        let Some((owner, completed)) = &self.tracker.reports_to else {
            return;
        };
        let events = &self.events[self.range.clone()];
        let heard = completed.send(TrackerEvent::Refused {
            owner: *owner,
            events: events.to_vec(),
            refusal: Arc::clone(refusal),
        });
        // Sent before completion, so that the receiver already knows what is missing.
        if heard.is_ok() {
            self.tracker.settle(events);
            self.kept = true;
        }
    }

    /// The piece is not sent now, since `target` takes nothing: it gives its memory back. A flush that waits for it fails, and
    /// so does an object, which is built again later. Nothing for the target is tried before `not_before`.
    pub fn defer(mut self, target: &Arc<str>, not_before: Option<Instant>) {
        let Some((owner, completed)) = &self.tracker.reports_to else {
            return;
        };
        let Some(chunk) = owner.chunk() else { return };
        let events = &self.events[self.range.clone()];
        let heard = completed.send(TrackerEvent::Deferred {
            chunk,
            events: events.to_vec(),
            target: Arc::clone(target),
            not_before,
        });
        // Sent before completion, so that the receiver already knows what is missing.
        if heard.is_ok() {
            self.tracker.settle(events);
            self.kept = true;
        }
    }

    /// The same for an object of which it is certain that it was never put.
    pub fn defer_unsent(self, target: &Arc<str>, not_before: Option<Instant>) {
        if let Some((Owner::Object(batch), completed)) = &self.tracker.reports_to {
            // Before completion, which then concerns nobody any more.
            let _ = completed.send(TrackerEvent::Unsent {
                batch: *batch,
                target: Arc::clone(target),
            });
        }
        self.defer(target, not_before);
    }

    /// Counts `bytes` as held by a target, until this is gone.
    pub fn charge(&mut self, quota: &Arc<Quota>, bytes: usize) {
        quota.add(bytes);
        self.charged = Some((Arc::clone(quota), bytes));
    }

    /// The piece goes to a target that shares its sender with others.
    pub fn goes_to(&mut self, target: &Arc<str>) {
        self.target = Some(Arc::clone(target));
    }

    /// Where that is, if somebody said so.
    pub fn target(&self) -> Option<&Arc<str>> {
        self.target.as_ref()
    }

    /// A guard for no event of the same tracker, in its place: its events count as settled.
    pub fn into_hold(self) -> AckGuard {
        let hold = self.tracker.hold();
        self.keep();
        hold
    }

    /// The tag of the chunk it came with.
    pub fn tag(&self) -> &Arc<[u8]> {
        self.tracker.tag()
    }

    /// What the object is known by that this is the guard of.
    pub fn token(&self) -> Option<Arc<str>> {
        self.tracker.token.clone()
    }

    /// Why the object was sealed that this is the guard of.
    pub fn sealed(&self) -> Option<Sealed> {
        self.tracker.sealed
    }

    /// Whether the flush has given up waiting.
    pub fn is_stale(&self) -> bool {
        self.tracker.given_up.load(Ordering::Acquire)
    }

    /// Of a chunk of the spool: its number there, the events this guard is for, and how many it has.
    pub fn of_chunk(&self) -> Option<(u64, &[u32], u32)> {
        match self.tracker.reports_to {
            Some((owner, _)) => Some((
                owner.chunk()?,
                &self.events[self.range.clone()],
                self.tracker.events.load(Ordering::Acquire),
            )),
            None => None,
        }
    }

    /// Bytes of memory it needs, about.
    pub fn footprint(&self) -> usize {
        size_of::<AckGuard>() + size_of::<u32>() * self.range.len()
    }
}

impl Drop for AckGuard {
    fn drop(&mut self) {
        if let Some((quota, bytes)) = self.charged.take() {
            quota.remove(bytes);
        }
        if !self.kept {
            self.tracker.failed.store(true, Ordering::Release);
        }
        if self.tracker.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            if let Some((owner, completed)) = &self.tracker.reports_to {
                // Nobody listens once we stop; then the spool keeps what is not settled.
                let _ = completed.send(TrackerEvent::Completed(Completed {
                    owner: *owner,
                    verdict: self.tracker.verdict(),
                }));
            }
            self.tracker.done.notify_one();
        }
    }
}

/// What of the spool's chunks some guards hold, by chunk.
pub(super) fn contents<'t>(guards: impl Iterator<Item = &'t AckGuard>) -> Vec<Content> {
    let mut chunks: BTreeMap<Seq, (Vec<u32>, u32)> = BTreeMap::new();
    for (chunk, events, all) in guards.filter_map(AckGuard::of_chunk) {
        let (held, _) = chunks.entry(chunk).or_insert((Vec::new(), all));
        held.extend_from_slice(events);
    }
    let content = |(chunk, (mut events, all)): (Seq, (Vec<u32>, u32))| {
        events.sort_unstable();
        let runs = ranges(&events);
        let whole = matches!(&runs[..], [run] if *run == (0..all));
        let events = if whole {
            Events::All
        } else {
            Events::Runs(runs)
        };
        Content { chunk, events }
    };
    chunks.into_iter().map(content).collect()
}

/// The number of events in ranges.
pub(super) fn count(runs: &[Range<u32>]) -> u64 {
    runs.iter().map(|run| u64::from(run.end - run.start)).sum()
}

/// Numbers in ascending order, as ranges.
pub(super) fn ranges(sorted: &[u32]) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for &event in sorted {
        match ranges.last_mut() {
            Some(last) if last.end == event => last.end += 1,
            Some(last) if last.contains(&event) => {}
            _ => ranges.push(event..event + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flush_is_ok_only_when_every_piece_was_kept() {
        for (keep, verdict) in [([true, true], Verdict::Ok), ([true, false], Verdict::Retry)] {
            let tracker = Arc::new(AckTracker::default());
            let events: Arc<[u32]> = [0, 1, 2, 70, 71].into();
            let guards = [tracker.guard(&events, 0..3), tracker.guard(&events, 3..5)];
            for (guard, keep) in guards.into_iter().zip(keep) {
                if keep {
                    guard.keep();
                }
            }
            assert_eq!(tracker.completed().await, verdict);
            let settled = tracker.settled();
            assert!(settled.contains(2) && !settled.contains(3));
            assert_eq!(settled.contains(70), keep[1]);
            assert_eq!(settled.len(), if keep[1] { 5 } else { 3 });
        }
    }

    #[tokio::test]
    async fn a_flush_without_pieces_is_ok_at_once() {
        assert_eq!(AckTracker::default().completed().await, Verdict::Ok);
    }
}
