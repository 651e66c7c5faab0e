//! How much of `memory_limit` each of several targets may hold.
//!
//! A target gets half of what the others leave, so that none takes all and one alone gets most of it. One that throttles,
//! or fails, is *slow*: what it holds would stay for long, so all slow targets together get a quarter. What is beyond a
//! target's quota waits as references to the spool ([`super::deferred`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::codec::STEP_BYTES;

/// The part of `memory_limit` that a target which holds nothing gets in any case, as long as there is memory.
const MIN_SHARE: usize = 128;
/// The part of what all targets may hold that is for slow ones.
const SLOW_SHARE: usize = 4;

/// The bytes of one target's pieces that are not settled, and its share.
#[derive(Debug, Default)]
pub struct Quota {
    own: AtomicUsize,
    slow: AtomicBool,
    all: Arc<Totals>,
}

/// The same for all targets together.
#[derive(Debug, Default)]
struct Totals {
    bytes: AtomicUsize,
    slow: AtomicUsize,
}

impl Quota {
    /// The quota of one more target, which holds nothing yet.
    pub fn beside(&self) -> Quota {
        Quota {
            own: AtomicUsize::new(0),
            slow: AtomicBool::new(false),
            all: Arc::clone(&self.all),
        }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.own.fetch_add(bytes, Ordering::AcqRel);
        self.all.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.own.fetch_sub(bytes, Ordering::AcqRel);
        self.all.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Sets whether the target throttles or fails.
    pub(super) fn set_slow(&self, slow: bool) {
        match (self.slow.swap(slow, Ordering::AcqRel), slow) {
            (false, true) => drop(self.all.slow.fetch_add(1, Ordering::AcqRel)),
            (true, false) => drop(self.all.slow.fetch_sub(1, Ordering::AcqRel)),
            _ => {}
        }
    }

    /// The bytes that the target may hold, of a `memory_limit` of `limit` bytes. The other targets are about to get
    /// `planned` bytes.
    fn most(&self, limit: usize, planned: usize) -> usize {
        let all = shared(limit);
        if self.slow.load(Ordering::Acquire) {
            return all / SLOW_SHARE / self.all.slow.load(Ordering::Acquire).max(1);
        }
        let total = self.all.bytes.load(Ordering::Acquire);
        let others = total.saturating_sub(self.own.load(Ordering::Acquire));
        all.saturating_sub(others + planned) / 2
    }

    /// The bytes that the target may get now. Not 0: at least one line, whatever its size.
    pub(super) fn room(&self, limit: usize, planned: usize) -> usize {
        let own = self.own.load(Ordering::Acquire);
        let room = self.most(limit, planned).saturating_sub(own);
        let least = limit / MIN_SHARE;
        let total = self.all.bytes.load(Ordering::Acquire) + planned;
        match own == 0 && total + least <= shared(limit) {
            true => room.max(least),
            false => room,
        }
    }

    /// Whether events that were deferred may be read again: the target is down to half of what it may hold, so that a
    /// chunk is read for more than a few lines.
    pub(super) fn may_load(&self, limit: usize) -> bool {
        match self.own.load(Ordering::Acquire) {
            0 => self.room(limit, 0) > 0,
            own => own <= self.most(limit, 0) / 2,
        }
    }

    /// Whether the target is slow and holds more than its share.
    pub(super) fn is_over(&self, limit: usize) -> bool {
        self.slow.load(Ordering::Acquire) && self.own.load(Ordering::Acquire) > self.most(limit, 0)
    }
}

/// What lines weigh in memory as pieces of a target's requests.
pub(super) mod weight {
    use crate::delivery::cut::{LINE_NUMBER_BYTES, PIECE_BYTES};
    use crate::sink::Shape;

    /// The bytes of lines that end at `ends`, about.
    pub(in crate::delivery) fn of(ends: &[usize], shape: &Shape) -> usize {
        let bytes = ends.last().copied().unwrap_or(0);
        let by_lines = ends.len() / shape.limits.record_lines.max(1) as usize;
        let pieces = 1 + by_lines.max(bytes / shape.piece_bytes.max(1));
        bytes + ends.len() * LINE_NUMBER_BYTES + pieces * PIECE_BYTES
    }

    /// How many of the lines weigh at most `room`; at least one, unless that is 0.
    pub(in crate::delivery) fn fitting(ends: &[usize], shape: &Shape, room: usize) -> usize {
        if room == 0 {
            return 0;
        }
        let (mut low, mut high) = (1, ends.len().max(1));
        while low < high {
            let middle = (low + high).div_ceil(2);
            match of(&ends[..middle], shape) <= room {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        low.min(ends.len())
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        self.set_slow(false);
    }
}

/// The bytes that all targets together may hold: a step of reading needs the rest.
fn shared(limit: usize) -> usize {
    limit.saturating_sub(STEP_BYTES / 4 * 5).max(limit / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64 << 20;

    #[test]
    fn each_target_gets_half_of_what_the_others_leave() {
        let all = shared(LIMIT);
        let first = Quota::default();
        let second = first.beside();
        assert_eq!(first.room(LIMIT, 0), all / 2);
        first.add(all / 2);
        assert_eq!((first.room(LIMIT, 0), second.room(LIMIT, 0)), (0, all / 4));
        assert_eq!(second.room(LIMIT, all / 4), all / 8);
        assert!(!first.may_load(LIMIT));
        first.remove(all / 4);
        assert!(first.may_load(LIMIT));
    }

    #[test]
    fn slow_targets_together_get_a_quarter_however_many_they_are() {
        let (healthy, all) = (Quota::default(), shared(LIMIT));
        let slow: Vec<_> = (0..300).map(|_| healthy.beside()).collect();
        for quota in &slow {
            quota.add(quota.room(LIMIT, 0));
            quota.set_slow(true);
        }
        assert!(slow[0].is_over(LIMIT), "it was there first");
        // As it gives back what is too much.
        for quota in &slow {
            while quota.is_over(LIMIT) {
                quota.remove(1024.min(quota.own.load(Ordering::Acquire)));
            }
        }
        assert!(healthy.all.bytes.load(Ordering::Acquire) <= all / SLOW_SHARE);
        assert!(healthy.room(LIMIT, 0) >= all / 4);
        drop(slow);
        assert_eq!(healthy.all.slow.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_target_that_holds_nothing_gets_something_while_there_is_memory() {
        let hog = Quota::default();
        hog.add(shared(LIMIT) - LIMIT / MIN_SHARE);
        let other = hog.beside();
        assert_eq!(other.room(LIMIT, 0), LIMIT / MIN_SHARE);
        hog.add(1);
        assert!(other.room(LIMIT, 0) < LIMIT / MIN_SHARE);
        hog.add(LIMIT);
        assert_eq!((other.room(LIMIT, 0), other.may_load(LIMIT)), (0, false));
    }
}
