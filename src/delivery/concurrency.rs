//! The limit of requests in flight: fixed, or as many as the destination accepts without throttling.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::delivery::policy::{ADAPTIVE_MAX, ADAPTIVE_START, Adaptive};

/// The maximum for objects that come from the spool, whose bodies count as `memory_limit` allows: with thousands of folders
/// they are small, and the time to an answer is most of what they cost.
const OBJECTS_MAX: usize = 64;
/// The maximum for all targets together, if each throttles separately and has a limit of its own.
const TARGETS_MAX: usize = 2 * ADAPTIVE_MAX;

/// Limits the requests in flight.
pub(super) struct ConcurrencyLimit {
    slots: Arc<Semaphore>,
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
            start: slots,
            state: fixed.is_none().then(|| {
                Mutex::new(LimitState {
                    adaptive: Adaptive::new(ADAPTIVE_START, most),
                    slots,
                })
            }),
        }
    }

    /// Creates the limit of all targets together, if each throttles separately: `fixed` requests, or a number that
    /// bounds memory.
    pub(super) fn of_targets(fixed: Option<usize>) -> ConcurrencyLimit {
        ConcurrencyLimit::new(Some(fixed.unwrap_or(TARGETS_MAX)))
    }

    /// Returns the current limit.
    pub(super) fn limit(&self) -> usize {
        let Some(state) = &self.state else {
            return self.start;
        };
        let state = state.lock().expect("nothing panics with this lock");
        state.adaptive.limit()
    }

    pub(super) async fn enter(limit: &Arc<ConcurrencyLimit>) -> ConcurrencyPermit {
        let slot = Arc::clone(&limit.slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        ConcurrencyPermit {
            limit: Arc::clone(limit),
            slot: Some(slot),
        }
    }
}

impl ConcurrencyPermit {
    /// Releases its slot to another request, because its answer takes too long.
    pub(super) fn give_back_early(&mut self) {
        self.slot = None;
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
