//! Events that are to become dead letters, while these cannot be kept: their folder is full, or its disk fails.
//!
//! They wait as references, and hold nothing up but their chunk's bytes in the spool. The folder is checked for room now
//! and then; nothing is read again before. Pure: time is an argument.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use crate::delivery::ack::{Refusal, count};
use crate::spool::Seq;

/// How often the folder is checked for room.
const CHECK_INTERVAL: Duration = if cfg!(test) {
    Duration::from_millis(50)
} else {
    Duration::from_secs(10)
};
/// What a chunk needs beside the ranges of its events, about.
const CHUNK_BYTES: usize = 128;

/// Some events of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnsendableEvents {
    /// Which: sorted, not touching.
    pub(super) events: Vec<Range<u32>>,
    /// Where the destination refused them, what it said. Otherwise they cannot be sent at all.
    pub(super) refusal: Option<Arc<Refusal>>,
    /// Bytes that their letters take on the disk, as far as that is known.
    pub(super) needs: u64,
}

impl UnsendableEvents {
    /// Log events.
    pub(super) fn records(&self) -> u64 {
        count(&self.events)
    }

    fn bytes(&self) -> usize {
        size_of::<UnsendableEvents>() + self.events.capacity() * size_of::<Range<u32>>()
    }
}

/// All that waits.
#[derive(Debug)]
pub(super) struct WaitingLetters {
    chunks: BTreeMap<Seq, Vec<UnsendableEvents>>,
    records: u64,
    bytes: usize,
    /// When to check for room next.
    next_check: Instant,
    /// Free bytes; `None`: not checked yet.
    room: Option<u64>,
    /// The chunk that was tried last.
    after: Option<Seq>,
}

impl WaitingLetters {
    pub(super) fn new(now: Instant) -> WaitingLetters {
        WaitingLetters {
            chunks: BTreeMap::new(),
            records: 0,
            bytes: 0,
            next_check: now,
            room: None,
            after: None,
        }
    }

    /// Sets events waiting.
    pub(super) fn add(&mut self, chunk: Seq, unsendable: UnsendableEvents, now: Instant) {
        if self.chunks.is_empty() {
            self.next_check = now + CHECK_INTERVAL;
        }
        self.records += unsendable.records();
        self.bytes += unsendable.bytes();
        let all = self.chunks.entry(chunk).or_insert_with(|| {
            self.bytes += CHUNK_BYTES;
            Vec::new()
        });
        all.push(unsendable);
    }

    /// Takes what waits of a chunk.
    pub(super) fn take(&mut self, chunk: Seq) -> Vec<UnsendableEvents> {
        let Some(all) = self.chunks.remove(&chunk) else {
            return Vec::new();
        };
        self.records -= all.iter().map(UnsendableEvents::records).sum::<u64>();
        self.bytes -= CHUNK_BYTES + all.iter().map(UnsendableEvents::bytes).sum::<usize>();
        all
    }

    /// Whether something of this chunk waits.
    pub(super) fn holds(&self, chunk: Seq) -> bool {
        self.chunks.contains_key(&chunk)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Log events that wait.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Chunks that they are of.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of memory that all of it needs, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When to check for room.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.is_empty() && self.room.is_none()).then_some(self.next_check)
    }

    /// Check for room as soon as possible.
    pub(super) fn check_now(&mut self, now: Instant) {
        self.next_check = now;
        self.room = None;
    }

    /// `bytes` are free: everything that fits is tried, oldest first.
    pub(super) fn set_room(&mut self, bytes: u64) {
        self.room = Some(bytes);
        self.after = None;
    }

    /// Nothing is free, or that cannot be checked.
    pub(super) fn no_room(&mut self, now: Instant) {
        self.room = None;
        self.next_check = now + CHECK_INTERVAL;
    }

    /// `bytes` of that are left.
    pub(super) fn update_room(&mut self, bytes: u64) {
        if let Some(room) = &mut self.room {
            *room = bytes;
        }
    }

    /// Whether there was room when it was looked, and what fits is being tried.
    pub(super) fn is_trying(&self) -> bool {
        !self.is_empty() && self.room.is_some()
    }

    /// The chunks of which something waits, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Seq> {
        self.chunks.keys().copied()
    }

    /// The next chunk whose letters fit. None, and until the next look, where there is no such chunk.
    pub(super) fn next_that_fits(&mut self, now: Instant) -> Option<Seq> {
        let room = self.room?;
        let from = self.after.map_or(0, |after| after + 1);
        let needs =
            |all: &[UnsendableEvents]| all.iter().map(|unsendable| unsendable.needs).sum::<u64>();
        let fits = self
            .chunks
            .range(from..)
            .find(|(_, all)| needs(all) <= room);
        let chunk = fits.map(|(chunk, _)| *chunk);
        match chunk {
            Some(_) => self.after = chunk,
            None => self.no_room(now),
        }
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsendable(events: Range<u32>, needs: u64) -> UnsendableEvents {
        UnsendableEvents {
            events: vec![events],
            refusal: None,
            needs,
        }
    }

    #[test]
    fn what_fits_is_tried_once_a_look_oldest_first() {
        let now = Instant::now();
        let mut waiting = WaitingLetters::new(now);
        assert_eq!((waiting.due(), waiting.bytes()), (None, 0));
        waiting.add(7, unsendable(0..3, 500), now);
        waiting.add(5, unsendable(1..2, 2_000), now);
        waiting.add(9, unsendable(1..2, 100), now);
        waiting.add(9, unsendable(4..6, 100), now);
        assert_eq!((waiting.records(), waiting.chunks()), (7, 3));
        assert_eq!(waiting.due(), Some(now + CHECK_INTERVAL));
        assert_eq!(waiting.next_that_fits(now), None, "nobody has looked");

        waiting.set_room(1_000);
        assert_eq!(
            (waiting.due(), waiting.next_that_fits(now)),
            (None, Some(7))
        );
        assert_eq!(waiting.take(7).len(), 1);
        waiting.update_room(500);
        assert_eq!(waiting.next_that_fits(now), Some(9));
        assert_eq!(waiting.next_that_fits(now), None, "once");
        assert_eq!(waiting.due(), Some(now + CHECK_INTERVAL));
        waiting.set_room(150);
        assert_eq!(waiting.next_that_fits(now), None);
        for chunk in [5, 9] {
            assert!(waiting.holds(chunk));
            waiting.take(chunk);
        }
        assert!(waiting.is_empty());
        assert_eq!(
            (waiting.records(), waiting.bytes(), waiting.due()),
            (0, 0, None)
        );
    }
}
