//! Who is owed an answer, and what it will be.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc};

use crate::ids::{ChunkId, EventSet, Verdict};
use crate::metrics::Sealed;
use crate::sink::Fault;

/// Something that lands when its last piece does: a flush that the host waits for, a chunk of the spool,
/// or an object made of many chunks.
#[derive(Debug, Default)]
pub struct Flight {
    tag: Arc<[u8]>,
    left: AtomicUsize,
    failed: AtomicBool,
    given_up: AtomicBool,
    /// Events that are acknowledged or kept as dead letters, in this flush or an earlier one.
    settled: Arc<Mutex<EventSet>>,
    /// How many events its chunk has, once that is known.
    events: AtomicU32,
    done: Notify,
    lands: Option<(Owner, mpsc::UnboundedSender<News>)>,
    token: Option<Arc<str>>,
    sealed: Option<Sealed>,
}

/// What of ours a flight carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A chunk of the spool, by its number there.
    Chunk(u64),
    /// An object, by the number of its batch.
    Object(u64),
}

/// A flight has landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landed {
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

/// What is heard of a flight that nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It has landed.
    Landed(Landed),
    /// The destination refused some of what it carries, and no dead letter of that can be kept now. It counts as
    /// settled for the flight; whoever hears this sees to it.
    Refused {
        /// Whose it is.
        owner: Owner,
        /// Of a chunk: its events.
        events: Vec<u32>,
        /// Why.
        refusal: Arc<Refusal>,
    },
}

impl Flight {
    /// A flush of a chunk with `tag`, of which `settled` was settled before.
    pub fn new(tag: &[u8], settled: EventSet) -> Flight {
        Flight {
            tag: tag.into(),
            settled: Arc::new(Mutex::new(settled)),
            ..Flight::default()
        }
    }

    /// The same, of which every object is known by `token`.
    pub fn of_objects(tag: &[u8], settled: EventSet, token: &str) -> Flight {
        Flight {
            token: Some(token.into()),
            ..Flight::new(tag, settled)
        }
    }

    /// A part of a flush, which lands by itself. What is settled of it is settled of the whole.
    pub fn leg(&self) -> Flight {
        Flight {
            tag: Arc::clone(&self.tag),
            settled: Arc::clone(&self.settled),
            token: self.token.clone(),
            ..Flight::default()
        }
    }

    /// The same for a chunk of the spool: nobody waits, `landed` is told instead. Hold a ticket
    /// ([`Flight::hold`]) until all others are made.
    pub fn of_chunk(
        tag: &[u8],
        settled: EventSet,
        chunk: u64,
        landed: mpsc::UnboundedSender<News>,
    ) -> Flight {
        Flight {
            lands: Some((Owner::Chunk(chunk), landed)),
            ..Flight::new(tag, settled)
        }
    }

    /// The same for an object with its `token`, made of chunks of which the first has `tag`.
    pub fn of_object(
        tag: &[u8],
        token: &str,
        sealed: Sealed,
        batch: u64,
        landed: mpsc::UnboundedSender<News>,
    ) -> Flight {
        Flight {
            lands: Some((Owner::Object(batch), landed)),
            token: Some(token.into()),
            sealed: Some(sealed),
            ..Flight::new(tag, EventSet::default())
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

    /// A ticket for no event: while it lasts the flight does not land.
    pub fn hold(self: &Arc<Self>) -> Ticket {
        self.ticket(&Arc::default(), 0..0)
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

    /// Waits until every ticket is gone, and says what they amount to.
    pub async fn landed(&self) -> Verdict {
        while self.left.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
        self.verdict()
    }

    /// What the tickets that are gone amount to.
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
        size_of::<Flight>() + self.tag.len() + settled.footprint()
    }

    /// Whether every ticket is gone.
    pub fn has_landed(&self) -> bool {
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

/// One piece's part in a flight. Dropped without [`Ticket::keep`], for whatever reason, it makes the
/// flight fail (a flush answers RETRY): forgetting a piece cannot lose it.
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

    /// The piece was refused, and its dead letter cannot be kept now. Where a flush waits for it, that fails.
    pub fn refuse(mut self, refusal: &Arc<Refusal>) {
        let Some((owner, landed)) = &self.flight.lands else {
            return;
        };
        let events = &self.events[self.range.clone()];
        let heard = landed.send(News::Refused {
            owner: *owner,
            events: events.to_vec(),
            refusal: Arc::clone(refusal),
        });
        // Before it lands by this: who hears that it has landed knows what is missing.
        if heard.is_ok() {
            self.flight.settle(events);
            self.kept = true;
        }
    }

    /// The tag of the chunk it came with.
    pub fn tag(&self) -> &Arc<[u8]> {
        self.flight.tag()
    }

    /// What the object is known by that this is the ticket of.
    pub fn token(&self) -> Option<Arc<str>> {
        self.flight.token.clone()
    }

    /// Why the object was sealed that this is the ticket of.
    pub fn sealed(&self) -> Option<Sealed> {
        self.flight.sealed
    }

    /// Whether the flush has given up waiting.
    pub fn is_stale(&self) -> bool {
        self.flight.given_up.load(Ordering::Acquire)
    }

    /// Of a chunk of the spool: its number there, the events this ticket is for, and how many it has.
    pub fn of_chunk(&self) -> Option<(u64, &[u32], u32)> {
        match self.flight.lands {
            Some((Owner::Chunk(chunk), _)) => Some((
                chunk,
                &self.events[self.range.clone()],
                self.flight.events.load(Ordering::Acquire),
            )),
            _ => None,
        }
    }

    /// Bytes of memory it needs, about.
    pub fn footprint(&self) -> usize {
        size_of::<Ticket>() + size_of::<u32>() * self.range.len()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.kept {
            self.flight.failed.store(true, Ordering::Release);
        }
        if self.flight.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            if let Some((owner, landed)) = &self.flight.lands {
                // Nobody listens once we stop; then the spool keeps what is not settled.
                let _ = landed.send(News::Landed(Landed {
                    owner: *owner,
                    verdict: self.flight.verdict(),
                }));
            }
            self.flight.done.notify_one();
        }
    }
}

/// Chunks that are remembered after they went back to the host: as many as it has on their way at once
/// (`FLB_CONFIG_DEFAULT_TASK_MAP_SIZE_LIMIT`) …
const PARTIALS: usize = 16_384;
/// … and no more than need so many bytes.
const PARTIALS_BYTES: usize = 8 * 1024 * 1024;

/// Chunks that went back to the host partly settled.
///
/// When the same bytes come again, what was settled is not sent again. An entry is taken once: two chunks
/// with the same bytes leave two entries, and each takes one.
#[derive(Debug)]
pub struct Partials<F>(Mutex<Left<F>>);

#[derive(Debug)]
struct Left<F> {
    /// In the order in which they were left.
    flushes: BTreeMap<u64, (ChunkId, F, usize)>,
    numbers: HashMap<ChunkId, VecDeque<u64>>,
    next: u64,
    /// Of all of them.
    bytes: usize,
}

impl<F> Default for Partials<F> {
    fn default() -> Self {
        Partials(Mutex::new(Left {
            flushes: BTreeMap::new(),
            numbers: HashMap::new(),
            next: 0,
            bytes: 0,
        }))
    }
}

impl<F> Partials<F> {
    /// A chunk goes back, and leaves its flush, which needs about so many bytes. Pieces of it may still be on their
    /// way. Where there is no room, the oldest one is forgotten, and would be sent again as a whole.
    pub fn leave(&self, id: ChunkId, flush: F, bytes: usize) {
        let mut left = self.0.lock().expect("nothing panics with this lock");
        let number = left.next;
        left.next += 1;
        left.bytes += bytes;
        left.flushes.insert(number, (id, flush, bytes));
        left.numbers.entry(id).or_default().push_back(number);
        while left.flushes.len() > PARTIALS || left.bytes > PARTIALS_BYTES {
            let Some((&oldest, (id, ..))) = left.flushes.first_key_value() else {
                return;
            };
            let id = *id;
            left.remove(oldest, id);
        }
    }

    /// Whether no chunk left anything behind.
    pub fn is_empty(&self) -> bool {
        let left = self.0.lock().expect("nothing panics with this lock");
        left.flushes.is_empty()
    }

    /// Whether one more would have another forgotten.
    pub fn is_full(&self) -> bool {
        let left = self.0.lock().expect("nothing panics with this lock");
        left.flushes.len() >= PARTIALS || left.bytes > PARTIALS_BYTES / 8 * 7
    }

    /// A chunk comes: what an earlier flush of it left behind.
    pub fn take(&self, id: ChunkId) -> Option<F> {
        let mut left = self.0.lock().expect("nothing panics with this lock");
        let number = *left.numbers.get(&id)?.front()?;
        left.remove(number, id)
    }
}

impl<F> Left<F> {
    /// Removes the oldest one of a chunk's.
    fn remove(&mut self, number: u64, id: ChunkId) -> Option<F> {
        let (_, flush, bytes) = self.flushes.remove(&number)?;
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

/// Chunks, or objects, that are remembered after they were delivered.
const REMEMBERED: usize = 16_384;

/// Objects that were acknowledged in this run.
///
/// In direct mode a chunk may be handed over again after its object was written: because its flush gave up
/// waiting, or for another object's sake. The store then says that the object is there, and that is the
/// same object and not one more.
#[derive(Debug, Default)]
pub struct Acknowledged(Mutex<(HashSet<u64>, VecDeque<u64>)>);

impl Acknowledged {
    /// An object is acknowledged: whether that is so for the first time.
    pub fn first(&self, name: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let hash = hasher.finish();
        let mut known = self.0.lock().expect("nothing panics with this lock");
        let (names, order) = &mut *known;
        if !names.insert(hash) {
            return false;
        }
        order.push_back(hash);
        if order.len() > REMEMBERED
            && let Some(oldest) = order.pop_front()
        {
            names.remove(&oldest);
        }
        true
    }
}

/// Tells apart chunks that are the same to the byte.
///
/// An object's name comes from its chunk's hash (and its sender), so that a chunk handed over again makes no second
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
    use crate::ids::chunk_id;

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
            partials.leave(id, flight, 100);
        }
        assert!(partials.take(chunk_id(b"t", b"other")).is_none());
        assert!(partials.take(id).unwrap().settled().contains(1));
        assert!(partials.take(id).unwrap().settled().contains(2));
        assert!(partials.take(id).is_none());
        for n in 0..2 * PARTIALS as u64 {
            assert_eq!(partials.is_full(), n >= PARTIALS as u64);
            partials.leave(chunk_id(b"t", &n.to_le_bytes()), Flight::default(), 100);
        }
        let known = |n: usize| {
            partials
                .take(chunk_id(b"t", &(n as u64).to_le_bytes()))
                .is_some()
        };
        assert!(!known(PARTIALS - 1) && known(PARTIALS) && known(2 * PARTIALS - 1));
        for n in 0..3 {
            partials.leave(chunk_id(b"t", &[n]), Flight::default(), PARTIALS_BYTES / 2);
        }
        let left = partials.0.lock().unwrap();
        assert_eq!(
            (left.flushes.len(), left.numbers.len()),
            (2, 2),
            "by their bytes, too"
        );
        assert_eq!(left.bytes, PARTIALS_BYTES);
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
    fn an_object_is_new_once_and_memory_of_it_is_bounded() {
        let acknowledged = Acknowledged::default();
        assert!(acknowledged.first("a"));
        assert!(acknowledged.first("b"));
        assert!(!acknowledged.first("a"));
        for number in 0..2 * REMEMBERED {
            assert!(acknowledged.first(&number.to_string()));
        }
        let known = acknowledged.0.lock().unwrap();
        assert_eq!((known.0.len(), known.1.len()), (REMEMBERED, REMEMBERED));
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
}
