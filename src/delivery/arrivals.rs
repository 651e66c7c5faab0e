//! When chunks that the host keeps arrived first: the age of a record does not start anew with each RETRY.
//!
//! Only in direct mode: the spool knows the arrival of its chunks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;

use tokio::time::Instant;

use super::redelivery::{DROPPED_AFTER, MAX_PARTIALS};
use crate::ids::ChunkId;

/// The chunks answered with RETRY. Those that the host drops are forgotten after [`DROPPED_AFTER`], and the oldest if
/// there are more than the host can have.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// In order of the last answer.
    chunks: BTreeMap<u64, Chunk>,
    /// The numbers of a chunk's entries: one for each of several chunks with the same bytes.
    numbers: HashMap<ChunkId, VecDeque<u64>>,
    next: u64,
}

#[derive(Debug)]
struct Chunk {
    id: ChunkId,
    arrived: Instant,
    answered: Instant,
}

impl Arrivals {
    /// Records that a chunk which arrived first at `arrived` was answered with RETRY.
    pub(super) fn keep(&self, id: ChunkId, arrived: Instant) {
        let mut kept = self.0.lock().expect("nothing panics with this lock");
        let number = kept.next;
        kept.next += 1;
        let answered = Instant::now();
        let chunk = Chunk {
            id,
            arrived,
            answered,
        };
        kept.chunks.insert(number, chunk);
        kept.numbers.entry(id).or_default().push_back(number);
        if kept.chunks.len() > MAX_PARTIALS {
            kept.remove_first();
        }
    }

    /// Returns whether no chunk is kept.
    pub(super) fn is_empty(&self) -> bool {
        let kept = self.0.lock().expect("nothing panics with this lock");
        kept.chunks.is_empty()
    }

    /// Takes the first arrival of a chunk that is handed over again.
    pub(super) fn take(&self, id: ChunkId) -> Option<Instant> {
        let mut kept = self.0.lock().expect("nothing panics with this lock");
        let number = *kept.numbers.get(&id)?.front()?;
        kept.remove(number, id)
    }

    /// Returns the first arrival of the oldest chunk that the host keeps.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let mut kept = self.0.lock().expect("nothing panics with this lock");
        let is_dropped = |chunk: &Chunk| chunk.answered.elapsed() > DROPPED_AFTER;
        while kept.chunks.values().next().is_some_and(is_dropped) {
            kept.remove_first();
        }
        kept.chunks.values().map(|chunk| chunk.arrived).min()
    }
}

impl Kept {
    fn remove_first(&mut self) {
        if let Some((&number, Chunk { id, .. })) = self.chunks.first_key_value() {
            let id = *id;
            self.remove(number, id);
        }
    }

    /// Removes the first entry of a chunk, and returns its arrival.
    fn remove(&mut self, number: u64, id: ChunkId) -> Option<Instant> {
        let chunk = self.chunks.remove(&number)?;
        if let Some(numbers) = self.numbers.get_mut(&id) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.numbers.remove(&id);
            }
        }
        Some(chunk.arrived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::chunk_id;
    use tokio::time::{Duration, advance};

    #[tokio::test(start_paused = true)]
    async fn the_first_arrival_of_each_chunk_is_kept_until_it_is_handed_over_again() {
        let arrivals = Arrivals::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let id = chunk_id(b"t", b"bytes");
        assert!(arrivals.is_empty() && arrivals.oldest().is_none());
        arrivals.keep(id, at(5));
        arrivals.keep(id, at(3));
        arrivals.keep(chunk_id(b"t", b"other"), at(4));
        assert_eq!(arrivals.oldest(), Some(at(3)));
        assert_eq!(arrivals.take(id), Some(at(5)));
        assert_eq!(arrivals.take(id), Some(at(3)), "one of the same bytes");
        assert_eq!(arrivals.take(id), None);
        assert_eq!(arrivals.oldest(), Some(at(4)));
        assert!(!arrivals.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn chunks_that_the_host_dropped_are_forgotten_and_their_number_is_bounded() {
        let arrivals = Arrivals::default();
        let start = Instant::now();
        arrivals.keep(chunk_id(b"t", b"dropped"), start);
        advance(DROPPED_AFTER).await;
        let later = Instant::now();
        arrivals.keep(chunk_id(b"t", b"kept"), later);
        assert_eq!(arrivals.oldest(), Some(start), "it may still be retried");
        advance(Duration::from_secs(1)).await;
        assert_eq!(arrivals.oldest(), Some(later));
        for n in 0..MAX_PARTIALS as u64 {
            arrivals.keep(chunk_id(b"t", &n.to_le_bytes()), Instant::now());
        }
        let kept = arrivals.0.lock().unwrap();
        assert_eq!(
            (kept.chunks.len(), kept.numbers.len()),
            (MAX_PARTIALS, MAX_PARTIALS)
        );
    }
}
