//! Acknowledgements: what is still in flight of a flush, a chunk or an object, and the resulting answer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::quota::Quota;
use crate::ids::{EventSet, Verdict};
use crate::metrics::Sealed;
use crate::sink::Fault;
use crate::spool::{Content, Events, Seq};

/// Tracks what is in flight of a flush that the host waits for, of a chunk of the spool, or of an object made from many
/// chunks. It completes when the last [`AckGuard`] is dropped, and fails if one was dropped without being kept.
#[derive(Debug, Default)]
pub struct AckTracker {
    /// Not known of a chunk that has not been read yet.
    tag: OnceLock<Arc<[u8]>>,
    left: AtomicUsize,
    failed: AtomicBool,
    given_up: AtomicBool,
    /// The events that this no longer waits for: acknowledged or kept as dead letters, in this flush or an earlier one, or
    /// left to the feed (deferred, or refused without room for a letter).
    settled: Arc<Mutex<EventSet>>,
    /// The number of events of its chunk, once known.
    events: AtomicU32,
    done: Notify,
    reports_to: Option<(Owner, mpsc::UnboundedSender<TrackerEvent>)>,
    token: Option<Arc<str>>,
    sealed: Option<Sealed>,
}

/// The thing that a tracker tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A chunk of the spool, by its sequence number.
    Chunk(u64),
    /// Deferred events of a chunk that were read again.
    Deferred {
        /// The number of the load.
        load: u64,
        /// The chunk.
        chunk: u64,
    },
    /// An object, by its batch number.
    Object(u64),
}

impl Owner {
    /// Returns the chunk of the spool that its events belong to.
    pub fn chunk(&self) -> Option<u64> {
        match *self {
            Owner::Chunk(chunk) | Owner::Deferred { chunk, .. } => Some(chunk),
            Owner::Object(_) => None,
        }
    }
}

/// The completion of a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The thing that was tracked.
    pub owner: Owner,
    /// OK, or RETRY if some of it has to be sent again.
    pub verdict: Verdict,
}

/// A permanent refusal by the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The target of the refused request.
    pub target: Arc<str>,
    /// The destination's reason.
    pub fault: Arc<Fault>,
}

/// An event reported by a tracker that no flush waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackerEvent {
    /// The tracker has completed.
    Completed(Completed),
    /// The destination refused some of its events, and their dead letters cannot be kept now. They count as settled for
    /// the tracker; the receiver takes care of them.
    Refused {
        /// The thing that was tracked.
        owner: Owner,
        /// The events, if it is a chunk.
        events: Vec<u32>,
        /// The refusal.
        refusal: Arc<Refusal>,
    },
    /// Some of its events are not sent now, because their target is unavailable. They count as settled for the tracker;
    /// the receiver reads them again later.
    Deferred {
        /// The chunk.
        chunk: u64,
        /// The events.
        events: Vec<u32>,
        /// Their target.
        target: Arc<str>,
        /// The time before which nothing is sent to that target.
        not_before: Option<Instant>,
    },
    /// An object is not sent now, because its target is unavailable, and was certainly never stored.
    Unsent {
        /// Its batch number.
        batch: u64,
        /// Its target.
        target: Arc<str>,
    },
}

impl AckTracker {
    /// Creates the tracker of a flush of a chunk with `tag`, of which `settled` was settled before.
    pub fn new(tag: &[u8], settled: EventSet) -> AckTracker {
        AckTracker {
            tag: OnceLock::from(Arc::from(tag)),
            settled: Arc::new(Mutex::new(settled)),
            ..AckTracker::default()
        }
    }

    /// The same, with `token` identifying each of its objects.
    pub fn of_objects(tag: &[u8], settled: EventSet, token: &str) -> AckTracker {
        AckTracker {
            token: Some(token.into()),
            ..AckTracker::new(tag, settled)
        }
    }

    /// Creates a tracker for one target of a flush, which completes by itself and shares the settled events.
    pub fn target(&self) -> AckTracker {
        AckTracker {
            tag: self.tag.clone(),
            settled: Arc::clone(&self.settled),
            token: self.token.clone(),
            ..AckTracker::default()
        }
    }

    /// Creates the tracker of a chunk of the spool, or of deferred events of it. Nobody waits for it: its events are
    /// sent to `completed`. Hold a guard ([`AckTracker::hold`]) until all others are created.
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

    /// Creates the tracker of a chunk of the spool that has not been read yet: see [`AckTracker::set_tag`].
    pub fn of_unread_chunk(
        owner: Owner,
        completed: mpsc::UnboundedSender<TrackerEvent>,
    ) -> AckTracker {
        AckTracker {
            reports_to: Some((owner, completed)),
            ..AckTracker::default()
        }
    }

    /// Creates the tracker of events of a chunk in an object, without copying the `tag`, which may be long.
    pub fn of_spilled(
        tag: &Arc<[u8]>,
        owner: Owner,
        completed: mpsc::UnboundedSender<TrackerEvent>,
    ) -> AckTracker {
        AckTracker {
            tag: OnceLock::from(Arc::clone(tag)),
            reports_to: Some((owner, completed)),
            ..AckTracker::default()
        }
    }

    /// Creates the tracker of an object with its `token`, made from chunks of which the first has `tag`.
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

    /// Returns the chunk's tag; empty if it is not known.
    pub fn tag(&self) -> &Arc<[u8]> {
        static UNKNOWN: LazyLock<Arc<[u8]>> = LazyLock::new(Arc::default);
        self.tag.get().unwrap_or(&UNKNOWN)
    }

    /// Sets the tag of a chunk that has been read, unless it was known.
    pub fn set_tag(&self, tag: &[u8]) {
        self.tag.get_or_init(|| tag.into());
    }

    /// Sets the number of events of the chunk.
    pub fn has_events(&self, events: u32) {
        self.events.store(events, Ordering::Release);
    }

    /// Creates the guard of a piece that holds `events[range]`. All guards are created before the first is settled.
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

    /// Creates a guard without events: the tracker does not complete while it exists.
    pub fn hold(self: &Arc<Self>) -> AckGuard {
        self.guard(&Arc::default(), 0..0)
    }

    /// Settles events that need no piece, or none any more.
    pub fn settle(&self, events: &[u32]) {
        let mut settled = self.settled.lock().expect("nothing panics with this lock");
        for event in events {
            settled.insert(*event);
        }
    }

    /// The same for a set of events.
    pub fn settle_all(&self, events: &EventSet) {
        let mut settled = self.settled.lock().expect("nothing panics with this lock");
        settled.unite(events);
    }

    /// Waits until every guard is gone, and returns the verdict.
    pub async fn completed(&self) -> Verdict {
        while self.left.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
        self.verdict()
    }

    /// Returns the verdict of the guards that are gone so far.
    pub fn verdict(&self) -> Verdict {
        if self.failed.load(Ordering::Acquire) {
            Verdict::Retry
        } else {
            Verdict::Ok
        }
    }

    /// Returns its approximate memory use.
    pub fn footprint(&self) -> usize {
        let settled = self.settled.lock().expect("nothing panics with this lock");
        size_of::<AckTracker>() + self.tag().len() + settled.footprint()
    }

    /// Returns whether every guard is gone.
    pub fn is_complete(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// Marks the tracker as given up: nobody waits for it, so that its unsent pieces need not be sent.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Returns the events settled so far.
    pub fn settled(&self) -> EventSet {
        self.settled
            .lock()
            .expect("nothing panics with this lock")
            .clone()
    }
}

/// One piece's share in a tracker. If it is dropped without [`AckGuard::keep`], for whatever reason, the tracker fails
/// (and its flush answers RETRY), so that a forgotten piece is never lost.
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
    /// Settles the piece: it is acknowledged, or kept as a dead letter.
    pub fn keep(mut self) {
        self.kept = true;
        self.tracker.settle(&self.events[self.range.clone()]);
    }

    /// Reports that the piece was refused and its dead letter cannot be kept now. A flush that waits for it fails.
    pub fn refuse(mut self, refusal: &Arc<Refusal>) {
        let Some((owner, completed)) = &self.tracker.reports_to else {
            return;
        };
        let events = &self.events[self.range.clone()];
        let sent = completed.send(TrackerEvent::Refused {
            owner: *owner,
            events: events.to_vec(),
            refusal: Arc::clone(refusal),
        });
        // Sent before completion, so that the receiver already knows what is missing.
        if sent.is_ok() {
            self.tracker.settle(events);
            self.kept = true;
        }
    }

    /// Reports that the piece is not sent now because `target` is unavailable, and releases its memory. A flush that
    /// waits for it fails, and so does an object, which is rebuilt later. Nothing is sent to the target before
    /// `not_before`.
    pub fn defer(mut self, target: &Arc<str>, not_before: Option<Instant>) {
        let Some((owner, completed)) = &self.tracker.reports_to else {
            return;
        };
        let Some(chunk) = owner.chunk() else { return };
        let events = &self.events[self.range.clone()];
        let sent = completed.send(TrackerEvent::Deferred {
            chunk,
            events: events.to_vec(),
            target: Arc::clone(target),
            not_before,
        });
        // Sent before completion, so that the receiver already knows what is missing.
        if sent.is_ok() {
            self.tracker.settle(events);
            self.kept = true;
        }
    }

    /// The same for an object that was certainly never stored.
    pub fn defer_unsent(self, target: &Arc<str>, not_before: Option<Instant>) {
        if let Some((Owner::Object(batch), completed)) = &self.tracker.reports_to {
            // Sent before completion, which is then ignored.
            let _ = completed.send(TrackerEvent::Unsent {
                batch: *batch,
                target: Arc::clone(target),
            });
        }
        self.defer(target, not_before);
    }

    /// Charges `bytes` to a target's quota until the guard is gone.
    pub fn charge(&mut self, quota: &Arc<Quota>, bytes: usize) {
        quota.add(bytes);
        self.charged = Some((Arc::clone(quota), bytes));
    }

    /// Sets the target, if it shares its sender with others.
    pub fn set_target(&mut self, target: &Arc<str>) {
        self.target = Some(Arc::clone(target));
    }

    /// Returns the target, if it was set.
    pub fn target(&self) -> Option<&Arc<str>> {
        self.target.as_ref()
    }

    /// Replaces the guard by one without events: its events count as settled.
    pub fn into_hold(self) -> AckGuard {
        let hold = self.tracker.hold();
        self.keep();
        hold
    }

    /// Returns the tag of its chunk.
    pub fn tag(&self) -> &Arc<[u8]> {
        self.tracker.tag()
    }

    /// Returns the token of its object.
    pub fn token(&self) -> Option<Arc<str>> {
        self.tracker.token.clone()
    }

    /// Returns why its object was sealed.
    pub fn sealed(&self) -> Option<Sealed> {
        self.tracker.sealed
    }

    /// Returns whether its flush has given up.
    pub fn is_stale(&self) -> bool {
        self.tracker.given_up.load(Ordering::Acquire)
    }

    /// Returns, for a chunk of the spool, its sequence number, the guard's events, and the chunk's number of events.
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

    /// Returns its approximate memory use.
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
                // Nobody receives this once the output has stopped; the spool then keeps what is not settled.
                let _ = completed.send(TrackerEvent::Completed(Completed {
                    owner: *owner,
                    verdict: self.tracker.verdict(),
                }));
            }
            self.tracker.done.notify_one();
        }
    }
}

/// Returns the events of the spool's chunks that some guards hold, by chunk.
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

/// Returns the events of the spool's chunks that some guards hold, in the guards' order: a chunk is named again where its
/// events do not ascend.
pub(super) fn contents_in_order<'t>(guards: impl Iterator<Item = &'t AckGuard>) -> Vec<Content> {
    let mut all = Vec::new();
    let mut sizes = Vec::new();
    for (chunk, events, of_chunk) in guards.filter_map(AckGuard::of_chunk) {
        for ascending in events.chunk_by(|event, next| event < next) {
            add_in_order(&mut all, chunk, ranges(ascending));
            sizes.resize(all.len(), of_chunk);
        }
    }
    let content = |((chunk, runs), size): ((Seq, Vec<Range<u32>>), u32)| {
        let whole = matches!(&runs[..], [run] if *run == (0..size));
        let events = if whole {
            Events::All
        } else {
            Events::Runs(runs)
        };
        Content { chunk, events }
    };
    all.into_iter().zip(sizes).map(content).collect()
}

/// Adds ascending events of a chunk to others, in the order of their rows.
pub(super) fn add_in_order(
    all: &mut Vec<(Seq, Vec<Range<u32>>)>,
    chunk: Seq,
    runs: Vec<Range<u32>>,
) {
    let Some(first) = runs.first() else {
        return;
    };
    let follows = |before: &[Range<u32>]| before.last().is_some_and(|it| it.end <= first.start);
    match all.last_mut() {
        Some((last, before)) if *last == chunk && follows(before) => {
            for run in runs {
                match before.last_mut() {
                    Some(last) if last.end == run.start => last.end = run.end,
                    _ => before.push(run),
                }
            }
        }
        _ => all.push((chunk, runs)),
    }
}

/// Returns the number of events in ranges.
pub(super) fn count(runs: &[Range<u32>]) -> u64 {
    runs.iter().map(|run| u64::from(run.end - run.start)).sum()
}

/// Groups ascending numbers into ranges.
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
