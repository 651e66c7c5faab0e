//! The limit of requests in flight: fixed, or as many as the destination accepts without throttling.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::delivery::policy::{ADAPTIVE_MAX, ADAPTIVE_START, Adaptive};

/// The maximum for objects that come from the spool, whose bodies count as `memory_limit` allows: with thousands of folders
/// they are small, and the time to an answer is most of what they cost.
const OBJECTS_MAX: usize = 64;
/// The maximum for all targets together, if each throttles separately and has a limit of its own …
const TARGETS_MAX: usize = 64;
/// … and that of the bytes in their requests, which are what large ones cost: 16 of the largest.
const TARGETS_BYTES: usize = 64 * 1024 * 1024;
/// The unit in which these are counted.
const UNIT: usize = 1024;

/// Limits the requests in flight.
pub(super) struct ConcurrencyLimit {
    slots: Arc<Semaphore>,
    /// The bytes of requests, in units, if they are limited.
    bytes: Option<Arc<Semaphore>>,
    /// The initial number of slots.
    start: usize,
    state: Option<Mutex<LimitState>>,
}

struct LimitState {
    adaptive: Adaptive,
    /// The number of slots, free and taken.
    slots: usize,
}

/// A permit for one request in flight.
pub(super) struct ConcurrencyPermit {
    limit: Arc<ConcurrencyLimit>,
    /// Released early if the answer takes too long.
    slot: Option<OwnedSemaphorePermit>,
    bytes: Option<OwnedSemaphorePermit>,
}

impl ConcurrencyLimit {
    /// Creates a limit of `fixed` requests, or one that adapts to the destination.
    pub(super) fn new(fixed: Option<usize>) -> ConcurrencyLimit {
        ConcurrencyLimit::up_to(ADAPTIVE_MAX, fixed)
    }

    /// The same for objects that come from the spool.
    pub(super) fn of_objects(fixed: Option<usize>) -> ConcurrencyLimit {
        ConcurrencyLimit::up_to(OBJECTS_MAX, fixed)
    }

    fn up_to(most: usize, fixed: Option<usize>) -> ConcurrencyLimit {
        let slots = fixed.unwrap_or(ADAPTIVE_START);
        ConcurrencyLimit {
            slots: Arc::new(Semaphore::new(slots)),
            bytes: None,
            start: slots,
            state: fixed.is_none().then(|| {
                Mutex::new(LimitState {
                    adaptive: Adaptive::new(ADAPTIVE_START, most),
                    slots,
                })
            }),
        }
    }

    /// Creates the limit of all targets together, if each throttles separately: `fixed` requests, or as many as have so
    /// many bytes.
    pub(super) fn of_targets(fixed: Option<usize>) -> ConcurrencyLimit {
        let bytes = || Arc::new(Semaphore::new(TARGETS_BYTES / UNIT));
        ConcurrencyLimit {
            bytes: fixed.is_none().then(bytes),
            ..ConcurrencyLimit::new(Some(fixed.unwrap_or(TARGETS_MAX)))
        }
    }

    /// Returns the current limit.
    pub(super) fn limit(&self) -> usize {
        let Some(state) = &self.state else {
            return self.start;
        };
        let state = state.lock().expect("nothing panics with this lock");
        state.adaptive.limit()
    }

    /// Waits for a slot, in order of the first poll.
    pub(super) async fn enter(limit: Arc<ConcurrencyLimit>) -> ConcurrencyPermit {
        let slot = Arc::clone(&limit.slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        ConcurrencyPermit {
            limit,
            slot: Some(slot),
            bytes: None,
        }
    }
}

impl ConcurrencyPermit {
    /// Waits until the limit allows for the bytes of the request.
    pub(super) async fn charge(&mut self, bytes: usize) {
        let Some(limit) = &self.limit.bytes else {
            return;
        };
        let units = bytes.div_ceil(UNIT).min(TARGETS_BYTES / UNIT) as u32;
        let charged = Arc::clone(limit).acquire_many_owned(units).await;
        self.bytes = Some(charged.expect("the semaphore is never closed"));
    }

    /// Releases its slot to another request, because its answer takes too long.
    pub(super) fn give_back_early(&mut self) {
        (self.slot, self.bytes) = (None, None);
    }

    /// Ends the request: accepted (`Some(true)`), throttled (`Some(false)`), or neither.
    pub(super) fn done(mut self, taken: Option<bool>) {
        let Some(state) = &self.limit.state else {
            return;
        };
        let mut state = state.lock().expect("nothing panics with this lock");
        match taken {
            Some(true) => state.adaptive.success(),
            Some(false) => state
                .adaptive
                .throttled(tokio::time::Instant::now().into_std()),
            None => {}
        }
        let limit = state.adaptive.limit();
        if state.slots > limit {
            if let Some(slot) = self.slot.take() {
                state.slots -= 1;
                slot.forget();
            }
        } else if state.slots < limit {
            self.limit.slots.add_permits(limit - state.slots);
            state.slots = limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn requests_of_many_targets_are_limited_by_their_number_and_bytes() {
        const LARGE: usize = 4 * 1024 * 1024;
        let limit = Arc::new(ConcurrencyLimit::of_targets(None));
        let enter = || ConcurrencyLimit::enter(Arc::clone(&limit)).now_or_never();
        let mut all: Vec<_> = std::iter::from_fn(enter).collect();
        assert_eq!(all.len(), TARGETS_MAX);
        let fit = |permit: &mut ConcurrencyPermit| permit.charge(LARGE).now_or_never().is_some();
        let fitting = all.iter_mut().map(fit).filter(|fits| *fits).count();
        assert_eq!(fitting, TARGETS_BYTES / LARGE);
        all[0].give_back_early();
        assert!(enter().is_some());
        assert!(fit(&mut all[TARGETS_MAX - 1]));
        assert!(!fit(&mut all[TARGETS_MAX - 2]));
        drop(all);
        // One that is larger than all is the only one.
        let mut huge = enter().unwrap();
        assert!(huge.charge(2 * TARGETS_BYTES).now_or_never().is_some());
        assert!(!fit(&mut enter().unwrap()));
    }

    #[test]
    fn a_configured_number_of_requests_is_the_limit() {
        let limit = Arc::new(ConcurrencyLimit::of_targets(Some(3)));
        let enter = || ConcurrencyLimit::enter(Arc::clone(&limit)).now_or_never();
        let mut all: Vec<_> = std::iter::from_fn(enter).collect();
        assert_eq!((all.len(), limit.limit()), (3, 3));
        let huge = |permit: &mut ConcurrencyPermit| permit.charge(usize::MAX).now_or_never();
        assert!(all.iter_mut().all(|permit| huge(permit).is_some()));
    }
}
