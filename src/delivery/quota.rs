//! The share of `memory_limit` that each of several targets may hold.
//!
//! A target may hold half of what the others leave, so that no target holds everything and a single one gets most of
//! it. A target that throttles or fails is *slow*: its pieces would stay long, so all slow targets together may hold a
//! quarter. Pieces beyond a target's quota wait as references to the spool ([`super::deferred`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::codec::STEP_BYTES;

/// The fraction of `memory_limit` that a target which holds nothing always gets, as long as there is memory.
const MIN_SHARE: usize = 128;
/// The fraction of the shared memory that slow targets may hold together.
const SLOW_SHARE: usize = 4;

/// The bytes of one target's unsettled pieces, and its quota.
#[derive(Debug, Default)]
pub struct Quota {
    own: AtomicUsize,
    slow: AtomicBool,
    all: Arc<Totals>,
}

/// The totals of all targets.
#[derive(Debug, Default)]
struct Totals {
    bytes: AtomicUsize,
    slow: AtomicUsize,
}

impl Quota {
    /// Returns the quota of a further target, which holds nothing yet.
    pub fn sibling(&self) -> Quota {
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

    /// Returns the number of bytes the target may hold, with a `memory_limit` of `limit` bytes, while the other targets
    /// are about to get `planned` bytes.
    fn most(&self, limit: usize, planned: usize) -> usize {
        let all = shared(limit);
        if self.slow.load(Ordering::Acquire) {
            return all / SLOW_SHARE / self.all.slow.load(Ordering::Acquire).max(1);
        }
        let total = self.all.bytes.load(Ordering::Acquire);
        let others = total.saturating_sub(self.own.load(Ordering::Acquire));
        all.saturating_sub(others + planned) / 2
    }

    /// Returns the number of bytes the target may get now. If this is not 0, at least one line may be sent, whatever
    /// its size.
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

    /// Returns whether deferred events may be read again: only once the target is down to half of its quota, so that a
    /// chunk is not read for just a few lines.
    pub(super) fn may_load(&self, limit: usize) -> bool {
        match self.own.load(Ordering::Acquire) {
            0 => self.room(limit, 0) > 0,
            own => own <= self.most(limit, 0) / 2,
        }
    }

    /// Returns whether the target is slow and holds more than its quota.
    pub(super) fn is_over(&self, limit: usize) -> bool {
        self.slow.load(Ordering::Acquire) && self.own.load(Ordering::Acquire) > self.most(limit, 0)
    }

    /// Returns whether the target is slow and holds anything.
    pub(super) fn is_slow_holder(&self) -> bool {
        self.slow.load(Ordering::Acquire) && self.own.load(Ordering::Acquire) > 0
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        self.set_slow(false);
    }
}

/// Returns the bytes that all targets together may hold: the rest is reserved for reading a step.
fn shared(limit: usize) -> usize {
    limit.saturating_sub(STEP_BYTES / 4 * 5).max(limit / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64 << 20;

    #[test]
    fn each_target_may_hold_half_of_what_the_others_leave() {
        let all = shared(LIMIT);
        let first = Quota::default();
        let second = first.sibling();
        assert_eq!(first.room(LIMIT, 0), all / 2);
        first.add(all / 2);
        assert_eq!((first.room(LIMIT, 0), second.room(LIMIT, 0)), (0, all / 4));
        assert_eq!(second.room(LIMIT, all / 4), all / 8);
        assert!(!first.may_load(LIMIT));
        first.remove(all / 4);
        assert!(first.may_load(LIMIT));
    }

    #[test]
    fn slow_targets_together_hold_at_most_a_quarter() {
        let (healthy, all) = (Quota::default(), shared(LIMIT));
        let slow: Vec<_> = (0..300).map(|_| healthy.sibling()).collect();
        for quota in &slow {
            quota.add(quota.room(LIMIT, 0));
            quota.set_slow(true);
        }
        assert!(
            slow[0].is_over(LIMIT),
            "it came first and holds more than its share"
        );
        // Give back what exceeds the quota.
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
    fn an_idle_target_gets_a_minimum_while_there_is_memory() {
        let hog = Quota::default();
        hog.add(shared(LIMIT) - LIMIT / MIN_SHARE);
        let other = hog.sibling();
        assert_eq!(other.room(LIMIT, 0), LIMIT / MIN_SHARE);
        hog.add(1);
        assert!(other.room(LIMIT, 0) < LIMIT / MIN_SHARE);
        hog.add(LIMIT);
        assert_eq!((other.room(LIMIT, 0), other.may_load(LIMIT)), (0, false));
    }
}
