//! The state kept about chunks that the host may retry.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::{ChunkId, Verdict};

/// The maximum number of remembered chunks that were answered with RETRY: as many as the host has in flight at once
/// (`FLB_CONFIG_DEFAULT_TASK_MAP_SIZE_LIMIT`) …
pub(super) const MAX_PARTIALS: usize = 16_384;
/// … and their maximum size in bytes.
const MAX_PARTIAL_BYTES: usize = 8 * 1024 * 1024;
/// The time after which the host has dropped a chunk that was not retried: its longest wait is 2,000 seconds
/// (`scheduler.cap`), and half of that again at random.
pub(super) const DROPPED_AFTER: Duration = Duration::from_secs(4_000);

/// The chunks answered with RETRY that are partly settled.
///
/// When the same bytes are retried, what was settled is not sent again. An entry is taken once: two chunks with the
/// same bytes leave two entries, and each takes one.
#[derive(Debug)]
pub(super) struct PartialDeliveries<F>(Mutex<Entries<F>>);

#[derive(Debug)]
struct Entry<F> {
    id: ChunkId,
    flush: F,
    bytes: usize,
    since: Instant,
}

#[derive(Debug)]
struct Entries<F> {
    /// In order of insertion.
    flushes: BTreeMap<u64, Entry<F>>,
    numbers: HashMap<ChunkId, VecDeque<u64>>,
    next: u64,
    /// The total size.
    bytes: usize,
}

impl<F> Default for PartialDeliveries<F> {
    fn default() -> Self {
        PartialDeliveries(Mutex::new(Entries {
            flushes: BTreeMap::new(),
            numbers: HashMap::new(),
            next: 0,
            bytes: 0,
        }))
    }
}

impl<F> PartialDeliveries<F> {
    /// Remembers the progress of a chunk that is answered with RETRY; `bytes` is its approximate size. Pieces of it may
    /// still be in flight. If there is no room the oldest entry is forgotten, and its chunk would be sent again as a
    /// whole.
    pub(super) fn remember(&self, id: ChunkId, flush: F, bytes: usize) {
        let mut entries = self.0.lock().expect("nothing panics with this lock");
        let number = entries.next;
        entries.next += 1;
        entries.bytes += bytes;
        let entry = Entry {
            id,
            flush,
            bytes,
            since: Instant::now(),
        };
        entries.flushes.insert(number, entry);
        entries.numbers.entry(id).or_default().push_back(number);
        while entries.flushes.len() > MAX_PARTIALS || entries.bytes > MAX_PARTIAL_BYTES {
            entries.remove_oldest();
        }
    }

    /// Returns whether no chunk is remembered.
    pub(super) fn is_empty(&self) -> bool {
        let entries = self.0.lock().expect("nothing panics with this lock");
        entries.flushes.is_empty()
    }

    /// Returns whether one more entry would evict one that the host may still retry.
    pub(super) fn is_full(&self) -> bool {
        let mut entries = self.0.lock().expect("nothing panics with this lock");
        let is_dropped = |entry: &Entry<F>| entry.since.elapsed() > DROPPED_AFTER;
        while entries.flushes.values().next().is_some_and(is_dropped) {
            entries.remove_oldest();
        }
        entries.flushes.len() >= MAX_PARTIALS || entries.bytes > MAX_PARTIAL_BYTES / 8 * 7
    }

    /// Takes the progress that an earlier flush of the chunk left.
    pub(super) fn take(&self, id: ChunkId) -> Option<F> {
        let mut entries = self.0.lock().expect("nothing panics with this lock");
        let number = *entries.numbers.get(&id)?.front()?;
        entries.remove(number, id)
    }
}

impl<F> Entries<F> {
    fn remove_oldest(&mut self) {
        if let Some((&number, Entry { id, .. })) = self.flushes.first_key_value() {
            let id = *id;
            self.remove(number, id);
        }
    }

    /// Removes the oldest entry of a chunk.
    fn remove(&mut self, number: u64, id: ChunkId) -> Option<F> {
        let Entry { flush, bytes, .. } = self.flushes.remove(&number)?;
        self.bytes -= bytes;
        if let Some(numbers) = self.numbers.get_mut(&id) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.numbers.remove(&id);
            }
        }
        Some(flush)
    }
}

/// The maximum number of delivered chunks, or objects, that are remembered.
const MAX_REMEMBERED: usize = 16_384;

/// The objects acknowledged in this run.
///
/// In direct mode a chunk may be retried after its object was written, because its flush gave up waiting or because of
/// another object. The store then reports that the object exists, and it must not be counted again.
#[derive(Debug, Default)]
pub(super) struct Acknowledged(Mutex<(HashSet<u64>, VecDeque<u64>)>);

impl Acknowledged {
    /// Records an acknowledged object, and returns whether it is new.
    pub(super) fn first(&self, name: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let hash = hasher.finish();
        let mut known = self.0.lock().expect("nothing panics with this lock");
        let (names, order) = &mut *known;
        if !names.insert(hash) {
            return false;
        }
        order.push_back(hash);
        if order.len() > MAX_REMEMBERED
            && let Some(oldest) = order.pop_front()
        {
            names.remove(&oldest);
        }
        true
    }
}

/// Distinguishes chunks that are identical to the byte.
///
/// An object's name comes from its chunk's hash (and its sender), so that a retried chunk creates no second object. Two
/// *different* chunks with the same bytes (a file read twice, a clock in whole seconds) must still create two objects.
/// Within a process they can be distinguished: a chunk is retried only after it was answered with RETRY. So each gets
/// the lowest number that no other one in flight has and that no delivered one had.
#[derive(Debug, Default)]
pub(super) struct DuplicateChunks {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    chunks: HashMap<ChunkId, Numbers>,
    delivered: VecDeque<ChunkId>,
}

#[derive(Debug, Default)]
struct Numbers {
    in_flight: BTreeSet<u32>,
    delivered: BTreeSet<u32>,
}

impl DuplicateChunks {
    /// Returns the number of a chunk that is being flushed: 0, unless another one is identical.
    pub(super) fn number(&self, id: ChunkId) -> u32 {
        let mut seen = self.seen.lock().expect("nothing panics with this lock");
        let numbers = seen.chunks.entry(id).or_default();
        let free = (0..).find(|n| !numbers.in_flight.contains(n) && !numbers.delivered.contains(n));
        let number = free.expect("fewer than 2^32 chunks are in flight");
        numbers.in_flight.insert(number);
        number
    }

    /// Records the answer for a chunk.
    pub(super) fn completed(&self, id: ChunkId, number: u32, verdict: Verdict) {
        let mut seen = self.seen.lock().expect("nothing panics with this lock");
        let Some(numbers) = seen.chunks.get_mut(&id) else {
            return;
        };
        numbers.in_flight.remove(&number);
        if verdict == Verdict::Ok {
            numbers.delivered.insert(number);
            seen.delivered.push_back(id);
        } else if numbers.in_flight.is_empty() && numbers.delivered.is_empty() {
            seen.chunks.remove(&id);
        }
        while seen.delivered.len() > MAX_REMEMBERED {
            let Some(oldest) = seen.delivered.pop_front() else {
                return;
            };
            let forgotten = seen.chunks.get_mut(&oldest).is_some_and(|numbers| {
                numbers.delivered.pop_first();
                numbers.delivered.is_empty() && numbers.in_flight.is_empty()
            });
            if forgotten {
                seen.chunks.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::ack::AckTracker;
    use crate::ids::chunk_id;

    #[test]
    fn the_progress_of_a_chunk_is_taken_once() {
        let partial = PartialDeliveries::default();
        let id = chunk_id(b"t", b"bytes");
        for event in [1, 2] {
            let tracker = AckTracker::default();
            tracker.settle(&[event]);
            partial.remember(id, tracker, 100);
        }
        assert!(partial.take(chunk_id(b"t", b"other")).is_none());
        assert!(partial.take(id).unwrap().settled().contains(1));
        assert!(partial.take(id).unwrap().settled().contains(2));
        assert!(partial.take(id).is_none());
        for n in 0..2 * MAX_PARTIALS as u64 {
            assert_eq!(partial.is_full(), n >= MAX_PARTIALS as u64);
            partial.remember(chunk_id(b"t", &n.to_le_bytes()), AckTracker::default(), 100);
        }
        let known = |n: usize| {
            partial
                .take(chunk_id(b"t", &(n as u64).to_le_bytes()))
                .is_some()
        };
        assert!(!known(MAX_PARTIALS - 1) && known(MAX_PARTIALS) && known(2 * MAX_PARTIALS - 1));
        for n in 0..3 {
            partial.remember(
                chunk_id(b"t", &[n]),
                AckTracker::default(),
                MAX_PARTIAL_BYTES / 2,
            );
        }
        let entries = partial.0.lock().unwrap();
        assert_eq!(
            (entries.flushes.len(), entries.numbers.len()),
            (2, 2),
            "bounded by their bytes, too"
        );
        assert_eq!(entries.bytes, MAX_PARTIAL_BYTES);
    }

    /// A host that drops chunks (a limit of its storage or of retries, or a person) never retries them.
    #[tokio::test(start_paused = true)]
    async fn dropped_chunks_do_not_keep_others_from_being_remembered() {
        let partials = PartialDeliveries::default();
        for n in 0..MAX_PARTIALS as u64 {
            partials.remember(chunk_id(b"t", &n.to_le_bytes()), AckTracker::default(), 100);
        }
        assert!(partials.is_full());
        tokio::time::sleep(DROPPED_AFTER).await;
        assert!(partials.is_full(), "they may still be retried");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!partials.is_full() && partials.is_empty());
    }

    #[test]
    fn a_retried_chunk_keeps_its_number_and_an_identical_one_gets_its_own() {
        let duplicates = DuplicateChunks::default();
        let id = chunk_id(b"t", b"bytes");
        assert_eq!(duplicates.number(id), 0);
        duplicates.completed(id, 0, Verdict::Retry);
        assert_eq!(duplicates.number(id), 0, "the same chunk again");
        assert_eq!(
            duplicates.number(id),
            1,
            "an identical one at the same time"
        );
        duplicates.completed(id, 1, Verdict::Ok);
        duplicates.completed(id, 0, Verdict::Retry);
        assert_eq!(duplicates.number(id), 0, "the first again");
        duplicates.completed(id, 0, Verdict::Ok);
        assert_eq!(duplicates.number(id), 2, "a third");
    }

    #[test]
    fn an_object_is_new_once_and_the_record_of_objects_is_bounded() {
        let acknowledged = Acknowledged::default();
        assert!(acknowledged.first("a"));
        assert!(acknowledged.first("b"));
        assert!(!acknowledged.first("a"));
        for number in 0..2 * MAX_REMEMBERED {
            assert!(acknowledged.first(&number.to_string()));
        }
        let known = acknowledged.0.lock().unwrap();
        assert_eq!(
            (known.0.len(), known.1.len()),
            (MAX_REMEMBERED, MAX_REMEMBERED)
        );
    }

    #[test]
    fn the_record_of_delivered_chunks_is_bounded() {
        let duplicates = DuplicateChunks::default();
        for n in 0..(MAX_REMEMBERED as u64 + 100) {
            let id = chunk_id(b"t", &n.to_le_bytes());
            let number = duplicates.number(id);
            duplicates.completed(id, number, Verdict::Ok);
        }
        let seen = duplicates.seen.lock().unwrap();
        assert_eq!(
            (seen.chunks.len(), seen.delivered.len()),
            (MAX_REMEMBERED, MAX_REMEMBERED)
        );
    }
}
