//! Events whose dead letters cannot be kept yet: the dead-letter folder is full, or its disk fails.
//!
//! They wait as references, and block nothing except their chunk's bytes in the spool. The folder is checked for room
//! at intervals; nothing is read again before. Pure: time is an argument.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use crate::delivery::ack::{Refusal, count};
use crate::spool::Seq;

/// The interval between checks of the folder for room.
const CHECK_INTERVAL: Duration = if cfg!(test) {
    Duration::from_millis(50)
} else {
    Duration::from_secs(10)
};
/// The approximate overhead of a chunk, besides the ranges of its events.
const CHUNK_BYTES: usize = 128;

/// Events of one chunk that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnsendableEvents {
    /// The events: sorted, without adjacent ranges.
    pub(super) events: Vec<Range<u32>>,
    /// The refusal, if the destination refused them. Otherwise they cannot be sent at all.
    pub(super) refusal: Option<Arc<Refusal>>,
    /// The disk space their letters take, as far as that is known.
    pub(super) needs: u64,
}

impl UnsendableEvents {
    /// Returns the number of events.
    pub(super) fn records(&self) -> u64 {
        count(&self.events)
    }

    fn bytes(&self) -> usize {
        size_of::<UnsendableEvents>() + self.events.capacity() * size_of::<Range<u32>>()
    }
}

/// All waiting events.
#[derive(Debug)]
pub(super) struct WaitingLetters {
    chunks: BTreeMap<Seq, Vec<UnsendableEvents>>,
    records: u64,
    bytes: usize,
    /// The time of the next check for room.
    next_check: Instant,
    /// The free bytes; `None` if not checked yet.
    room: Option<u64>,
    /// The chunk tried last.
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

    /// Adds waiting events.
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

    /// Takes the events of a chunk.
    pub(super) fn take(&mut self, chunk: Seq) -> Vec<UnsendableEvents> {
        let Some(all) = self.chunks.remove(&chunk) else {
            return Vec::new();
        };
        self.records -= all.iter().map(UnsendableEvents::records).sum::<u64>();
        self.bytes -= CHUNK_BYTES + all.iter().map(UnsendableEvents::bytes).sum::<usize>();
        all
    }

    /// Returns whether the chunk has waiting events.
    pub(super) fn holds(&self, chunk: Seq) -> bool {
        self.chunks.contains_key(&chunk)
    }

    /// Returns whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Returns the number of waiting events.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Returns the number of their chunks.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Returns the approximate memory use.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns when to check for room.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.is_empty() && self.room.is_none()).then_some(self.next_check)
    }

    /// Schedules the check for room at once.
    pub(super) fn check_now(&mut self, now: Instant) {
        self.next_check = now;
        self.room = None;
    }

    /// Sets the free bytes: everything that fits is tried, oldest first.
    pub(super) fn set_room(&mut self, bytes: u64) {
        self.room = Some(bytes);
        self.after = None;
    }

    /// Records that nothing is free, or that it cannot be checked.
    pub(super) fn no_room(&mut self, now: Instant) {
        self.room = None;
        self.next_check = now + CHECK_INTERVAL;
    }

    /// Updates the free bytes that are left.
    pub(super) fn update_room(&mut self, bytes: u64) {
        if let Some(room) = &mut self.room {
            *room = bytes;
        }
    }

    /// Returns whether the last check found room, and what fits is being tried.
    pub(super) fn is_trying(&self) -> bool {
        !self.is_empty() && self.room.is_some()
    }

    /// Returns the chunks with waiting events, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Seq> {
        self.chunks.keys().copied()
    }

    /// Returns the next chunk whose letters fit. If there is none, nothing is tried until the next check.
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
    fn events_that_fit_are_tried_once_a_check_oldest_first() {
        let now = Instant::now();
        let mut waiting = WaitingLetters::new(now);
        assert_eq!((waiting.due(), waiting.bytes()), (None, 0));
        waiting.add(7, unsendable(0..3, 500), now);
        waiting.add(5, unsendable(1..2, 2_000), now);
        waiting.add(9, unsendable(1..2, 100), now);
        waiting.add(9, unsendable(4..6, 100), now);
        assert_eq!((waiting.records(), waiting.chunks()), (7, 3));
        assert_eq!(waiting.due(), Some(now + CHECK_INTERVAL));
        assert_eq!(waiting.next_that_fits(now), None, "not checked yet");

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
