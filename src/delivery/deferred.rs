//! Deferred events: those whose target is unavailable or holds enough wait as references to their chunk in the spool.
//!
//! Each target has a queue in the order of the log. A reference costs a few bytes, whatever the event's size; the text
//! is encoded again when the target accepts it. Pure: time is an argument.
//!
//! What waits for a target is also counted in bytes of the log, with the mean size of the target's events where they were
//! last read ([`Deferred::measure`]): a size for each event would cost more memory than the references.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Bound, Range};
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::ack::count;
use crate::spool::{Seq, merge};

/// The approximate overhead of a chunk in a queue, besides the ranges of its events.
const CHUNK_BYTES: usize = 128;
/// The approximate overhead of a queue, besides its chunks and its name.
const QUEUE_BYTES: usize = 256;
/// The maximum number of targets whose mean event size is remembered. Beyond it all are measured again.
const MAX_MEASURED: usize = 4_096;
/// The assumed size of events of a target that was not measured, in bytes.
const ASSUMED_BYTES: u64 = 512;
/// The wait after every chunk of a queue was tried and some could not be read.
const UNREADABLE_WAIT: Duration = Duration::from_secs(1);

/// All deferred events of one output.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    targets: BTreeMap<Arc<str>, Queue>,
    /// The targets with events in each chunk.
    chunks: BTreeMap<Seq, BTreeSet<Arc<str>>>,
    records: u64,
    bytes: usize,
    /// The target served last.
    served: Option<Arc<str>>,
    /// The mean size of events, by target, where they were last read.
    sizes: HashMap<Arc<str>, u64>,
    /// The bytes beyond which changes of a target are recorded …
    watched_from: u64,
    /// … and the targets that changed since they were taken.
    changed: BTreeSet<Arc<str>>,
    /// Counts changes.
    version: u64,
    /// What was taken and is in flight, by target: it waits until it is settled.
    in_flight: BTreeMap<Arc<str>, InFlight>,
}

/// What is in flight for one target.
#[derive(Debug, Default)]
struct InFlight {
    backlog: Backlog,
    /// The chunk of each load.
    chunks: Vec<Seq>,
}

/// What waits for one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backlog {
    /// The number of events.
    pub(super) records: u64,
    /// Their approximate size in the log, in bytes.
    pub(super) bytes: u64,
}

/// The deferred events of one target.
#[derive(Debug, Default)]
struct Queue {
    chunks: BTreeMap<Seq, Vec<Range<u32>>>,
    backlog: Backlog,
    /// The time before which none of them is tried.
    not_before: Option<Instant>,
    /// The last chunk that could not be read, while those after it are tried.
    unreadable: Option<Seq>,
}

/// Events of a chunk by target: sorted, without adjacent ranges.
pub(super) type ByTarget = Vec<(Arc<str>, Vec<Range<u32>>)>;

/// The events of a chunk to read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) chunk: Seq,
    /// The first target is the one whose turn it is.
    pub(super) targets: ByTarget,
}

impl Load {
    /// Returns the events of all targets.
    pub(super) fn events(&self) -> Vec<Range<u32>> {
        let mut all = Vec::new();
        for (_, events) in &self.targets {
            all.extend_from_slice(events);
        }
        merge(&mut all, &[]);
        all
    }

    /// Returns the events of one target.
    pub(super) fn events_of(&self, target: &str) -> Option<&[Range<u32>]> {
        let found = self.targets.iter().find(|(name, _)| **name == *target);
        found.map(|(_, events)| &events[..])
    }
}

impl Deferred {
    /// Creates an empty set, which records the targets for which more than `watched_from` bytes wait.
    pub(super) fn new(watched_from: u64) -> Deferred {
        Deferred {
            watched_from,
            ..Deferred::default()
        }
    }

    /// Records the size of events of a target, of which some may be added next.
    pub(super) fn measure(&mut self, target: &Arc<str>, events: u64, bytes: u64) {
        if events == 0 {
            return;
        }
        if self.sizes.len() >= MAX_MEASURED && !self.sizes.contains_key(target) {
            self.sizes.clear();
        }
        self.sizes
            .insert(Arc::clone(target), bytes.div_ceil(events));
    }

    /// Records that events which were taken are in flight.
    pub(super) fn begin(&mut self, load: &Load) {
        for (target, events) in &load.targets {
            let size = self.sizes.get(target).copied();
            let in_flight = self.in_flight.entry(Arc::clone(target)).or_default();
            in_flight.backlog.add(count(events), size);
            in_flight.chunks.push(load.chunk);
        }
        self.version += 1;
    }

    /// Records that they are settled, or were added again.
    pub(super) fn end(&mut self, load: &Load) {
        for (target, events) in &load.targets {
            if self.backlog(target).bytes > self.watched_from {
                self.changed.insert(Arc::clone(target));
            }
            if let Some(in_flight) = self.in_flight.get_mut(target) {
                in_flight.backlog.remove(count(events));
                let ended = in_flight.chunks.iter().position(|it| *it == load.chunk);
                ended.map(|at| in_flight.chunks.swap_remove(at));
                if in_flight.chunks.is_empty() {
                    self.in_flight.remove(target);
                }
            }
        }
        self.version += 1;
    }

    /// Returns what waits for a target, including what is in flight again.
    pub(super) fn backlog(&self, target: &str) -> Backlog {
        let queue = self.targets.get(target).map(|queue| queue.backlog);
        let in_flight = self.in_flight.get(target).map(|it| it.backlog);
        let (queue, in_flight) = (queue.unwrap_or_default(), in_flight.unwrap_or_default());
        Backlog {
            records: queue.records + in_flight.records,
            bytes: queue.bytes + in_flight.bytes,
        }
    }

    /// Returns what waits for each target, including what is in flight again.
    pub(super) fn backlogs(&self) -> impl Iterator<Item = (&Arc<str>, Backlog)> {
        let only = |target: &&Arc<str>| !self.targets.contains_key(*target);
        let in_flight = self.in_flight.keys().filter(only);
        let targets = self.targets.keys().chain(in_flight);
        targets.map(|target| (target, self.backlog(target)))
    }

    /// Returns the chunks with events for a target: those in flight, and the others in the order of the log.
    pub(super) fn chunks_of(&self, target: &str) -> impl Iterator<Item = Seq> {
        let in_flight = self.in_flight.get(target).into_iter();
        let in_flight = in_flight.flat_map(|it| it.chunks.iter().copied());
        let queue = self.targets.get(target).into_iter();
        in_flight.chain(queue.flat_map(|queue| queue.chunks.keys().copied()))
    }

    /// Returns a number that changes whenever something is added or removed.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Returns the targets that have changed while many bytes waited for them, since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.changed)
    }

    /// Adds events of a chunk, which may be adjacent to those already present.
    pub(super) fn add(&mut self, target: &Arc<str>, chunk: Seq, events: &[Range<u32>]) {
        let size = self.sizes.get(target).copied();
        self.add_sized(target, chunk, events, size);
    }

    /// Adds events of this mean size, if it is known.
    fn add_sized(
        &mut self,
        target: &Arc<str>,
        chunk: Seq,
        events: &[Range<u32>],
        size: Option<u64>,
    ) {
        if count(events) == 0 {
            return;
        }
        if !self.targets.contains_key(target) {
            self.bytes += QUEUE_BYTES + target.len();
        }
        let queue = self.targets.entry(Arc::clone(target)).or_default();
        let all = queue.chunks.entry(chunk).or_default();
        let before = count(all);
        if all.is_empty() {
            let targets = self.chunks.entry(chunk).or_default();
            targets.insert(Arc::clone(target));
        } else {
            self.records -= before;
            self.bytes -= bytes(all);
        }
        merge(all, events);
        self.records += count(all);
        self.bytes += bytes(all);
        let more = count(all) - before;
        self.version += 1;
        queue.backlog.add(more, size);
        if self.backlog(target).bytes > self.watched_from {
            self.changed.insert(Arc::clone(target));
        }
    }

    /// Adds events of a chunk for several targets.
    pub(super) fn add_all(&mut self, chunk: Seq, targets: &ByTarget) {
        for (target, events) in targets {
            self.add(target, chunk, events);
        }
    }

    /// Takes the oldest chunk of a target, with at most its first `most` events.
    pub(super) fn take(&mut self, target: &str, most: u64, now: Instant) -> Option<Load> {
        let (target, queue) = self.targets.get_key_value(target)?;
        let from = match queue.unreadable {
            Some(last) => Bound::Excluded(last),
            None => Bound::Unbounded,
        };
        let next = queue.chunks.range((from, Bound::Unbounded)).next();
        let Some((&chunk, _)) = next else {
            let target = Arc::clone(target);
            let queue = self.targets.get_mut(&target)?;
            queue.unreadable = None;
            queue.not_before = Some(now + UNREADABLE_WAIT);
            return None;
        };
        let target = Arc::clone(target);
        let size = queue.backlog.mean();
        let events = self.remove(&target, chunk)?;
        let (first, rest) = split(events, most);
        self.add_sized(&target, chunk, &rest, size);
        self.served = Some(Arc::clone(&target));
        Some(Load {
            chunk,
            targets: vec![(target, first)],
        })
    }

    /// Also takes the events of the chunk for other targets that are `served`, so that it is read once for all of them.
    pub(super) fn take_beside(
        &mut self,
        load: &mut Load,
        now: Instant,
        served: impl Fn(&Arc<str>) -> bool,
    ) {
        let mut targets = self.chunks.get(&load.chunk).cloned().unwrap_or_default();
        targets.retain(|target| {
            let queue = self.targets.get(target);
            let is_due = queue.is_some_and(|queue| queue.not_before.is_none_or(|at| at <= now));
            // The rest of a target whose first events were taken alone waits for these.
            is_due && load.events_of(target).is_none() && served(target)
        });
        for target in targets {
            if let Some(events) = self.remove(&target, load.chunk) {
                load.targets.push((target, events));
            }
        }
    }

    /// Puts back a chunk that cannot be read now: those after it go first.
    pub(super) fn put_back_unreadable(&mut self, load: Load) {
        self.add_all(load.chunk, &load.targets);
        for (target, _) in load.targets {
            if let Some(queue) = self.targets.get_mut(&target) {
                queue.unreadable = Some(load.chunk);
            }
        }
    }

    /// Delays a target: nothing of it is tried before then.
    pub(super) fn wait(&mut self, target: &str, until: Instant) {
        if let Some(queue) = self.targets.get_mut(target) {
            queue.not_before = Some(until);
        }
    }

    fn remove(&mut self, target: &str, chunk: Seq) -> Option<Vec<Range<u32>>> {
        let is_watched = self.backlog(target).bytes > self.watched_from;
        let queue = self.targets.get_mut(target)?;
        let events = queue.chunks.remove(&chunk)?;
        self.records -= count(&events);
        self.bytes -= bytes(&events);
        if is_watched {
            self.changed.insert(target.into());
        }
        queue.backlog.remove(count(&events));
        self.version += 1;
        if queue.chunks.is_empty() {
            self.targets.remove(target);
            self.bytes -= QUEUE_BYTES + target.len();
        }
        if let Some(targets) = self.chunks.get_mut(&chunk) {
            targets.remove(target);
            if targets.is_empty() {
                self.chunks.remove(&chunk);
            }
        }
        Some(events)
    }

    /// Forgets a chunk that cannot be read any more.
    pub(super) fn forget(&mut self, chunk: Seq) {
        self.take_chunk(chunk);
    }

    /// Takes all events of a chunk, by target.
    pub(super) fn take_chunk(&mut self, chunk: Seq) -> ByTarget {
        let targets = self.chunks.get(&chunk).cloned().unwrap_or_default();
        let events = |target: Arc<str>| {
            let events = self.remove(&target, chunk)?;
            Some((target, events))
        };
        targets.into_iter().filter_map(events).collect()
    }

    /// Returns the chunks with deferred events, oldest first.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Seq> {
        self.chunks.keys().copied()
    }

    /// Returns whether the chunk has deferred events.
    pub(super) fn holds(&self, chunk: Seq) -> bool {
        self.chunks.contains_key(&chunk)
    }

    /// Returns whether the target has deferred events.
    pub(super) fn waits_for(&self, target: &str) -> bool {
        self.targets.contains_key(target)
    }

    /// Returns the number of targets with deferred events.
    pub(super) fn targets(&self) -> usize {
        self.targets.len()
    }

    /// Returns the number of deferred events.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Returns the approximate memory use.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the next target that `admits` allows now, in turn, so that no target waits for another. Otherwise
    /// returns when the first of them may be served, as far as that is known.
    pub(super) fn next_target(
        &self,
        now: Instant,
        admits: impl Fn(&Arc<str>) -> Option<Instant>,
    ) -> Result<Arc<str>, Option<Instant>> {
        let after = match &self.served {
            Some(served) => Bound::Excluded(Arc::clone(served)),
            None => Bound::Unbounded,
        };
        let behind = self.targets.range((after, Bound::Unbounded));
        let mut soonest: Option<Instant> = None;
        for (target, queue) in behind.chain(&self.targets) {
            let at = match (admits(target), queue.not_before) {
                (Some(at), Some(not_before)) => at.max(not_before),
                (Some(at), None) => at,
                (None, _) => continue,
            };
            if at <= now {
                return Ok(Arc::clone(target));
            }
            soonest = Some(soonest.map_or(at, |soonest| soonest.min(at)));
        }
        Err(soonest)
    }
}

impl Backlog {
    /// Adds events of this mean size, if it is known.
    fn add(&mut self, records: u64, size: Option<u64>) {
        let size = size.or(self.mean()).unwrap_or(ASSUMED_BYTES);
        self.records += records;
        self.bytes += records.saturating_mul(size);
    }

    /// Returns the mean size of its events.
    fn mean(&self) -> Option<u64> {
        self.bytes.checked_div(self.records)
    }

    /// Removes events, which have the mean size of all.
    fn remove(&mut self, records: u64) {
        let part = u128::from(self.bytes) * u128::from(records) / u128::from(self.records.max(1));
        self.bytes -= u64::try_from(part).unwrap_or(u64::MAX).min(self.bytes);
        self.records -= records;
    }
}

fn bytes(events: &[Range<u32>]) -> usize {
    CHUNK_BYTES + size_of_val(events)
}

/// Splits events into the first `most` and the others.
fn split(events: Vec<Range<u32>>, most: u64) -> (Vec<Range<u32>>, Vec<Range<u32>>) {
    let (mut first, mut rest, mut left) = (Vec::new(), Vec::new(), most);
    for run in events {
        let take = left.min(u64::from(run.end - run.start));
        // At most the run's length, which fits.
        let middle = run.start + u32::try_from(take).unwrap_or(u32::MAX);
        left -= take;
        if run.start < middle {
            first.push(run.start..middle);
        }
        if middle < run.end {
            rest.push(middle..run.end);
        }
    }
    (first, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const ALL: u64 = u64::MAX;

    fn target(name: &str) -> Arc<str> {
        name.into()
    }

    fn run(events: Range<u32>) -> Vec<Range<u32>> {
        std::iter::once(events).collect()
    }

    #[test]
    fn targets_are_served_in_turn_each_in_log_order() {
        let now = Instant::now();
        let mut deferred = Deferred::default();
        for chunk in [7, 3, 5] {
            deferred.add(&target("a"), chunk, &run(0..2));
            deferred.add(&target("b"), chunk, &run(2..3));
        }
        assert_eq!((deferred.records(), deferred.targets()), (9, 2));
        let mut served = Vec::new();
        while let Ok(next) = deferred.next_target(now, |_| Some(now)) {
            let load = deferred.take(&next, ALL, now).unwrap();
            served.push((load.targets[0].0.to_string(), load.chunk));
        }
        let expected = [("a", 3), ("b", 3), ("a", 5), ("b", 5), ("a", 7), ("b", 7)];
        assert_eq!(
            served,
            expected.map(|(target, chunk)| (target.to_owned(), chunk))
        );
        assert!(!deferred.holds(3) && !deferred.waits_for("a"));
        assert_eq!((deferred.records(), deferred.bytes()), (0, 0));
    }

    #[test]
    fn a_target_that_is_not_admitted_is_skipped() {
        let now = Instant::now();
        let mut deferred = Deferred::default();
        deferred.add(&target("sick"), 1, &run(0..1));
        deferred.add(&target("well"), 1, &run(1..2));
        let admits = |of: &Arc<str>| (&**of == "well").then_some(now);
        assert_eq!(deferred.next_target(now, admits), Ok(target("well")));
        deferred.take("well", ALL, now);
        assert_eq!(deferred.next_target(now, admits), Err(None));
        let later = now + Duration::from_secs(5);
        assert_eq!(deferred.next_target(now, |_| Some(later)), Err(Some(later)));
        assert!(deferred.holds(1));
    }

    #[test]
    fn a_probe_takes_the_first_events_alone() {
        let now = Instant::now();
        let mut deferred = Deferred::default();
        deferred.add(&target("a"), 1, &[0..2, 5..9]);
        let load = deferred.take("a", 3, now).unwrap();
        assert_eq!(load.events(), [0..2, 5..6]);
        let rest = deferred.take("a", ALL, now).unwrap();
        assert_eq!(rest.events(), run(6..9));
    }

    #[test]
    fn a_chunk_is_read_once_for_all_targets_that_may_be_served() {
        let now = Instant::now();
        let mut deferred = Deferred::default();
        for (n, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let n = n as u32;
            deferred.add(&target(name), 1, &run(n * 10..n * 10 + 2));
            deferred.add(&target(name), 2, &run(n * 10..n * 10 + 2));
        }
        deferred.wait("c", now + Duration::from_secs(1));
        let mut load = deferred.take("a", 1, now).unwrap();
        deferred.take_beside(&mut load, now, |target| &**target != "d");
        let targets = [("a", 0..1), ("b", 10..12)];
        let targets = targets.map(|(name, events)| (target(name), run(events)));
        assert_eq!((load.chunk, &load.targets[..]), (1, &targets[..]));
        assert_eq!(load.events(), [0..1, 10..12]);
        assert_eq!(deferred.records(), 16 - 3);
        deferred.put_back_unreadable(load);
        assert_eq!(deferred.records(), 16);
        assert_eq!(deferred.take("b", ALL, now).unwrap().chunk, 2);
        deferred.forget(1);
        assert!(!deferred.holds(1));
        assert_eq!(deferred.records(), 6);
    }

    #[test]
    fn an_unreadable_chunk_lets_those_after_it_go_first() {
        let now = Instant::now();
        let mut deferred = Deferred::default();
        deferred.add(&target("a"), 1, &run(0..2));
        deferred.add(&target("a"), 2, &run(0..2));
        let first = deferred.take("a", ALL, now).unwrap();
        deferred.put_back_unreadable(first);
        assert_eq!(deferred.take("a", ALL, now).unwrap().chunk, 2);
        assert_eq!(deferred.take("a", ALL, now), None, "once a pass");
        let due = deferred.next_target(now, |_| Some(now));
        assert_eq!(due, Err(Some(now + UNREADABLE_WAIT)));
        assert_eq!(deferred.take("a", ALL, now).unwrap().chunk, 1);
    }

    #[test]
    fn what_waits_for_a_target_is_counted_by_the_size_it_was_last_read_with() {
        let now = Instant::now();
        let mut deferred = Deferred::new(1_000);
        let backlog = |records, bytes| Backlog { records, bytes };
        deferred.add(&target("a"), 1, &run(0..2));
        assert_eq!(deferred.backlog("a"), backlog(2, 2 * ASSUMED_BYTES));
        assert_eq!(deferred.take_changed(), [target("a")].into());
        deferred.take_chunk(1);
        assert_eq!(deferred.backlog("a"), backlog(0, 0));
        deferred.take_changed();

        deferred.measure(&target("a"), 10, 995);
        deferred.add(&target("a"), 1, &run(0..4));
        deferred.add(&target("a"), 1, &run(2..5));
        assert_eq!(deferred.backlog("a"), backlog(5, 500), "rounded up");
        deferred.measure(&target("a"), 1, 200);
        deferred.add(&target("a"), 2, &run(0..2));
        assert_eq!(deferred.backlog("a"), backlog(7, 900));
        deferred.add(&target("b"), 2, &run(2..3));
        assert!(deferred.take_changed().is_empty());
        deferred.add(&target("a"), 3, &run(0..1));
        assert_eq!(deferred.take_changed(), [target("a")].into());
        let all: Vec<_> = deferred
            .backlogs()
            .map(|(name, it)| (&**name, it.records))
            .collect();
        assert_eq!(all, [("a", 8), ("b", 1)]);
        assert_eq!(deferred.chunks_of("a").collect::<Vec<_>>(), [1, 2, 3]);
        // The mean of all is 137.5.
        deferred.take("a", ALL, now);
        assert_eq!(deferred.backlog("a"), backlog(3, 1_100 - 687));
        assert_eq!(deferred.take_changed(), [target("a")].into(), "it falls");
        let (second, third) = (deferred.take("a", ALL, now), deferred.take("a", ALL, now));
        assert_eq!(deferred.backlog("a"), backlog(0, 0));
        deferred.take_changed();

        // What is in flight is still counted, until it is settled or waits again.
        deferred.measure(&target("a"), 1, 600);
        let (second, third) = (second.unwrap(), third.unwrap());
        deferred.begin(&second);
        deferred.begin(&third);
        assert_eq!(deferred.backlog("a"), backlog(3, 1_800));
        let all: Vec<_> = deferred
            .backlogs()
            .map(|(name, it)| (&**name, it.records))
            .collect();
        assert_eq!(all, [("b", 1), ("a", 3)]);
        assert_eq!(deferred.chunks_of("a").collect::<Vec<_>>(), [2, 3]);
        deferred.end(&third);
        assert_eq!(deferred.backlog("a"), backlog(2, 1_200));
        deferred.put_back_unreadable(second.clone());
        assert_eq!(deferred.take_changed(), [target("a")].into());
        deferred.end(&second);
        assert_eq!(deferred.take_changed(), [target("a")].into());
        assert_eq!(deferred.backlog("a"), backlog(2, 1_200));
        deferred.take("a", ALL, now);
        deferred.take_changed();
        assert!(deferred.take_changed().is_empty());
    }

    #[test]
    fn the_remembered_sizes_are_bounded() {
        let mut deferred = Deferred::default();
        for n in 0..=MAX_MEASURED {
            deferred.measure(&target(&n.to_string()), 1, 7);
        }
        assert_eq!(deferred.sizes.len(), 1);
        deferred.measure(&target("none"), 0, 7);
        assert_eq!(deferred.sizes.len(), 1);
    }

    proptest! {
        #[test]
        fn every_event_comes_out_once_and_the_counts_are_right(
            adds in proptest::collection::vec((0usize..3, 0u64..4, 0u32..40, 0u32..9), 1..40),
            most in 1u64..20,
        ) {
            let now = Instant::now();
            let mut deferred = Deferred::default();
            let mut expected = BTreeSet::new();
            for (name, chunk, start, len) in adds {
                let name = ["a", "b", "c"][name];
                deferred.add(&target(name), chunk, &run(start..start + len));
                expected.extend((start..start + len).map(|event| (name, chunk, event)));
            }
            prop_assert_eq!(deferred.records(), expected.len() as u64);
            let waiting = deferred.backlogs().map(|(_, it)| it.records).sum::<u64>();
            prop_assert_eq!(waiting, deferred.records());
            let mut found = BTreeSet::new();
            for name in ["a", "b", "c"] {
                while let Some(load) = deferred.take(name, most, now) {
                    prop_assert!(count(&load.events()) <= most);
                    for event in load.events().into_iter().flatten() {
                        prop_assert!(found.insert((name, load.chunk, event)), "twice");
                    }
                }
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!((deferred.records(), deferred.bytes(), deferred.targets()), (0, 0, 0));
        }
    }
}
