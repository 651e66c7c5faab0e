//! Who is owed an answer, and what it will be.

use std::collections::{BTreeSet, HashMap, VecDeque};
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

/// One flush that waits for its pieces.
#[derive(Debug, Default)]
pub struct Flight {
    tag: Box<[u8]>,
    left: AtomicUsize,
    failed: AtomicBool,
    given_up: AtomicBool,
    delivered_lines: AtomicUsize,
    done: Notify,
}

impl Flight {
    /// A flush of a chunk with `tag`.
    pub fn new(tag: &[u8]) -> Flight {
        Flight {
            tag: tag.into(),
            ..Flight::default()
        }
    }

    /// The chunk's tag.
    pub fn tag(&self) -> &[u8] {
        &self.tag
    }

    /// A ticket for one more piece. All tickets are made before the first is settled.
    pub fn ticket(self: &Arc<Self>) -> Ticket {
        self.left.fetch_add(1, Ordering::AcqRel);
        Ticket {
            flight: Arc::clone(self),
            kept: false,
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

    /// Lines that were acknowledged so far.
    pub fn delivered_lines(&self) -> usize {
        self.delivered_lines.load(Ordering::Acquire)
    }
}

/// One piece's part in a flush. Dropped without [`Ticket::keep`], for whatever reason, it makes the
/// flush answer RETRY: forgetting a piece cannot lose it.
#[derive(Debug)]
pub struct Ticket {
    flight: Arc<Flight>,
    kept: bool,
}

impl Ticket {
    /// The piece, of so many lines, is safe: acknowledged, or kept as a dead letter.
    pub fn keep(mut self, lines: u32) {
        self.kept = true;
        self.flight
            .delivered_lines
            .fetch_add(lines as usize, Ordering::AcqRel);
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
            let tickets = [flight.ticket(), flight.ticket()];
            for (ticket, keep) in tickets.into_iter().zip(keep) {
                if keep {
                    ticket.keep(5);
                }
            }
            assert_eq!(flight.landed().await, verdict);
            assert_eq!(
                flight.delivered_lines(),
                5 * keep.iter().filter(|k| **k).count()
            );
        }
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
