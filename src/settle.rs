//! Who is owed an answer, and what it will be.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

/// What the host is told about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every record is acknowledged or kept as a dead letter: the host may forget the chunk.
    Ok,
    /// Not all of it: the host keeps the chunk and hands it over again.
    Retry,
}

/// Some of a chunk's events, by their number in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSet {
    bits: Vec<u64>,
}

impl EventSet {
    /// Puts an event in.
    pub fn insert(&mut self, event: u32) {
        let (word, bit) = (event as usize / 64, event % 64);
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << bit;
    }

    /// Whether an event is in.
    pub fn contains(&self, event: u32) -> bool {
        self.bits
            .get(event as usize / 64)
            .is_some_and(|word| word >> (event % 64) & 1 == 1)
    }

    /// How many are in.
    pub fn len(&self) -> usize {
        self.bits
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One flush that waits for its pieces.
#[derive(Debug, Default)]
pub struct Flight {
    tag: Box<[u8]>,
    left: AtomicUsize,
    failed: AtomicBool,
    given_up: AtomicBool,
    /// Events that are acknowledged or kept as dead letters, in this flush or an earlier one.
    settled: Mutex<EventSet>,
    done: Notify,
}

impl Flight {
    /// A flush of a chunk with `tag`, of which `settled` was settled before.
    pub fn new(tag: &[u8], settled: EventSet) -> Flight {
        Flight {
            tag: tag.into(),
            settled: Mutex::new(settled),
            ..Flight::default()
        }
    }

    /// The chunk's tag.
    pub fn tag(&self) -> &[u8] {
        &self.tag
    }

    /// A ticket for one more piece, which holds `events[range]`. All tickets are made before the first
    /// is settled.
    pub fn ticket(self: &Arc<Self>, events: &Arc<[u32]>, range: Range<usize>) -> Ticket {
        self.left.fetch_add(1, Ordering::AcqRel);
        Ticket {
            flight: Arc::clone(self),
            events: Arc::clone(events),
            range,
            kept: false,
        }
    }

    /// These events need no piece any more.
    pub fn settle(&self, events: &[u32]) {
        let mut settled = self.settled.lock().expect("nothing panics with this lock");
        for event in events {
            settled.insert(*event);
        }
    }

    /// Waits until every ticket is gone, and says what they amount to.
    pub async fn landed(&self) -> Verdict {
        while self.left.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
        if self.failed.load(Ordering::Acquire) {
            Verdict::Retry
        } else {
            Verdict::Ok
        }
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

/// One piece's part in a flush. Dropped without [`Ticket::keep`], for whatever reason, it makes the
/// flush answer RETRY: forgetting a piece cannot lose it.
#[derive(Debug)]
pub struct Ticket {
    flight: Arc<Flight>,
    events: Arc<[u32]>,
    range: Range<usize>,
    kept: bool,
}

impl Ticket {
    /// The piece is safe: acknowledged, or kept as a dead letter.
    pub fn keep(mut self) {
        self.kept = true;
        self.flight.settle(&self.events[self.range.clone()]);
    }

    /// The tag of the chunk it came with.
    pub fn tag(&self) -> &[u8] {
        self.flight.tag()
    }

    /// Whether the flush has given up waiting.
    pub fn is_stale(&self) -> bool {
        self.flight.given_up.load(Ordering::Acquire)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.kept {
            self.flight.failed.store(true, Ordering::Release);
        }
        if self.flight.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.flight.done.notify_one();
        }
    }
}

/// What a chunk is known by: a hash of its tag and bytes.
pub type ChunkId = [u8; 16];

/// Hashes a chunk.
pub fn chunk_id(tag: &[u8], data: &[u8]) -> ChunkId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(tag.len() as u64).to_le_bytes());
    hasher.update(tag);
    hasher.update(data);
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

/// Flights that are remembered after their chunk went back to the host. Each costs a bit for an event.
const PARTIALS: usize = 1_024;

/// Chunks that went back to the host partly settled.
///
/// When the same bytes come again, what was settled is not sent again. An entry is taken once: two chunks
/// with the same bytes leave two entries, and each takes one.
#[derive(Debug, Default)]
pub struct Partials {
    left: Mutex<VecDeque<(ChunkId, Arc<Flight>)>>,
}

impl Partials {
    /// A chunk goes back. Pieces of it may still be on their way.
    pub fn leave(&self, id: ChunkId, flight: Arc<Flight>) {
        let mut left = self.left.lock().expect("nothing panics with this lock");
        left.push_back((id, flight));
        if left.len() > PARTIALS {
            left.pop_front();
        }
    }

    /// A chunk comes: what an earlier flush of it left behind.
    pub fn take(&self, id: ChunkId) -> Option<Arc<Flight>> {
        let mut left = self.left.lock().expect("nothing panics with this lock");
        let at = left.iter().position(|(known, _)| *known == id)?;
        left.remove(at).map(|(_, flight)| flight)
    }
}

/// Chunks that are remembered after they were delivered.
const REMEMBERED: usize = 16_384;

/// Tells apart chunks that are the same to the byte.
///
/// An object's name comes from its chunk's hash, so that a chunk handed over again makes no second
/// object. Two *different* chunks with the same bytes (a file read twice, a clock in whole seconds) must
/// make two objects all the same. Within a process they can be told apart: a chunk is handed over again
/// only when it was answered RETRY. So each gets the lowest number that no other one in flight has and
/// that no delivered one had.
#[derive(Debug, Default)]
pub struct Twins {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    chunks: HashMap<ChunkId, Numbers>,
    delivered: VecDeque<ChunkId>,
}

#[derive(Debug, Default)]
struct Numbers {
    flying: BTreeSet<u32>,
    delivered: BTreeSet<u32>,
}

impl Twins {
    /// The number of a chunk that is handed over now: 0, unless it has a twin.
    pub fn number(&self, id: ChunkId) -> u32 {
        let mut seen = self.seen.lock().expect("nothing panics with this lock");
        let numbers = seen.chunks.entry(id).or_default();
        let free = (0..).find(|n| !numbers.flying.contains(n) && !numbers.delivered.contains(n));
        let number = free.expect("fewer than 2^32 chunks are in flight");
        numbers.flying.insert(number);
        number
    }

    /// The chunk was answered.
    pub fn answered(&self, id: ChunkId, number: u32, verdict: Verdict) {
        let mut seen = self.seen.lock().expect("nothing panics with this lock");
        let Some(numbers) = seen.chunks.get_mut(&id) else {
            return;
        };
        numbers.flying.remove(&number);
        if verdict == Verdict::Ok {
            numbers.delivered.insert(number);
            seen.delivered.push_back(id);
        } else if numbers.flying.is_empty() && numbers.delivered.is_empty() {
            seen.chunks.remove(&id);
        }
        while seen.delivered.len() > REMEMBERED {
            let Some(oldest) = seen.delivered.pop_front() else {
                return;
            };
            let forgotten = seen.chunks.get_mut(&oldest).is_some_and(|numbers| {
                numbers.delivered.pop_first();
                numbers.delivered.is_empty() && numbers.flying.is_empty()
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

    #[tokio::test]
    async fn a_flush_is_ok_only_when_every_piece_was_kept() {
        for (keep, verdict) in [([true, true], Verdict::Ok), ([true, false], Verdict::Retry)] {
            let flight = Arc::new(Flight::default());
            let events: Arc<[u32]> = [0, 1, 2, 70, 71].into();
            let tickets = [flight.ticket(&events, 0..3), flight.ticket(&events, 3..5)];
            for (ticket, keep) in tickets.into_iter().zip(keep) {
                if keep {
                    ticket.keep();
                }
            }
            assert_eq!(flight.landed().await, verdict);
            let settled = flight.settled();
            assert!(settled.contains(2) && !settled.contains(3));
            assert_eq!(settled.contains(70), keep[1]);
            assert_eq!(settled.len(), if keep[1] { 5 } else { 3 });
        }
    }

    #[test]
    fn what_a_chunk_left_behind_is_taken_once() {
        let partials = Partials::default();
        let id = chunk_id(b"t", b"bytes");
        for event in [1, 2] {
            let flight = Flight::default();
            flight.settle(&[event]);
            partials.leave(id, Arc::new(flight));
        }
        assert!(partials.take(chunk_id(b"t", b"other")).is_none());
        assert!(partials.take(id).unwrap().settled().contains(1));
        assert!(partials.take(id).unwrap().settled().contains(2));
        assert!(partials.take(id).is_none());
        for n in 0..2 * PARTIALS as u64 {
            partials.leave(chunk_id(b"t", &n.to_le_bytes()), Arc::default());
        }
        assert_eq!(partials.left.lock().unwrap().len(), PARTIALS);
    }

    #[tokio::test]
    async fn a_flush_without_pieces_is_ok_at_once() {
        assert_eq!(Flight::default().landed().await, Verdict::Ok);
    }

    #[test]
    fn a_chunk_handed_over_again_keeps_its_number_and_a_twin_gets_its_own() {
        let twins = Twins::default();
        let id = chunk_id(b"t", b"bytes");
        assert_eq!(twins.number(id), 0);
        twins.answered(id, 0, Verdict::Retry);
        assert_eq!(twins.number(id), 0, "the same chunk again");
        assert_eq!(twins.number(id), 1, "a twin beside it");
        twins.answered(id, 1, Verdict::Ok);
        twins.answered(id, 0, Verdict::Retry);
        assert_eq!(twins.number(id), 0, "the first again");
        twins.answered(id, 0, Verdict::Ok);
        assert_eq!(twins.number(id), 2, "a third");
    }

    #[test]
    fn memory_of_delivered_chunks_is_bounded() {
        let twins = Twins::default();
        for n in 0..(REMEMBERED as u64 + 100) {
            let id = chunk_id(b"t", &n.to_le_bytes());
            let number = twins.number(id);
            twins.answered(id, number, Verdict::Ok);
        }
        let seen = twins.seen.lock().unwrap();
        assert_eq!(
            (seen.chunks.len(), seen.delivered.len()),
            (REMEMBERED, REMEMBERED)
        );
    }

    #[test]
    fn the_boundary_between_tag_and_bytes_counts() {
        assert_ne!(chunk_id(b"ab", b"c"), chunk_id(b"a", b"bc"));
    }
}
