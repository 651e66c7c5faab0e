//! How many requests are in flight: a fixed number, or as many as the destination takes without throttling.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests in flight where the user leaves it to us: where to start, and where to end. Each holds up to
/// 4 MiB, and the buffers of HTTP and TLS.
const ADAPTIVE_START: usize = 4;
const ADAPTIVE_MAX: usize = 8;
/// The same for all targets together, where each of them throttles by itself and has a limit of its own.
const TARGETS_MAX: usize = 2 * ADAPTIVE_MAX;

/// Bounds the requests in flight.
pub(super) struct ConcurrencyLimit {
    slots: Arc<Semaphore>,
    /// Slots at the start.
    start: usize,
    state: Option<Mutex<LimitState>>,
}

struct LimitState {
    adaptive: Adaptive,
    /// Slots that exist, free and taken.
    slots: usize,
}

/// Leave to have one request in flight.
pub(super) struct ConcurrencyPermit {
    limit: Arc<ConcurrencyLimit>,
    /// Given back early where it has no answer for long.
    slot: Option<OwnedSemaphorePermit>,
}

impl ConcurrencyLimit {
    /// `fixed` requests, or as many as the destination lets.
    pub(super) fn new(fixed: Option<usize>) -> ConcurrencyLimit {
        let slots = fixed.unwrap_or(ADAPTIVE_START);
        ConcurrencyLimit {
            slots: Arc::new(Semaphore::new(slots)),
            start: slots,
            state: fixed.is_none().then(|| {
                Mutex::new(LimitState {
                    adaptive: Adaptive::default(),
                    slots,
                })
            }),
        }
    }

    /// One for targets that throttle by themselves: `fixed` requests, or as many as memory is meant for.
    pub(super) fn of_targets(fixed: Option<usize>) -> ConcurrencyLimit {
        ConcurrencyLimit::new(Some(fixed.unwrap_or(TARGETS_MAX)))
    }

    /// Requests there may be in flight now.
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
    /// Lets another request go in its place: it has no answer for long.
    pub(super) fn give_back_early(&mut self) {
        self.slot = None;
    }

    /// The request is over: taken, throttled (`Some(false)`), or neither.
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

/// Requests in flight, by additive increase and multiplicative decrease.
#[derive(Clone, Debug)]
pub(super) struct Adaptive {
    limit: f64,
    most: usize,
    last_cut: Option<Instant>,
}

impl Default for Adaptive {
    fn default() -> Self {
        Adaptive::new(ADAPTIVE_START, ADAPTIVE_MAX)
    }
}

impl Adaptive {
    /// One cut an interval: the answers to requests that were in flight together are one message.
    const CUT_INTERVAL: Duration = Duration::from_secs(1);

    /// Starts at `start` requests, between 1 and `most`.
    pub(super) fn new(start: usize, most: usize) -> Self {
        Adaptive {
            limit: start.clamp(1, most) as f64,
            most,
            last_cut: None,
        }
    }

    /// A request was taken: one more at a time after about as many successes as are in flight.
    pub(super) fn success(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.most as f64);
    }

    /// The destination asked for less: half.
    pub(super) fn throttled(&mut self, now: Instant) {
        let recent = self
            .last_cut
            .is_some_and(|cut| now.duration_since(cut) < Self::CUT_INTERVAL);
        if !recent {
            self.limit = (self.limit / 2.0).max(1.0);
            self.last_cut = Some(now);
        }
    }

    /// Requests that may be in flight now.
    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttling_halves_once_a_second_and_success_restores() {
        let mut adaptive = Adaptive::new(8, 16);
        let start = Instant::now();
        for (millis, expected) in [(0, 4), (500, 4), (1_000, 2), (2_000, 1), (3_000, 1)] {
            adaptive.throttled(start + Duration::from_millis(millis));
            assert_eq!(adaptive.limit(), expected, "{millis}");
        }
        let mut successes = 0;
        while adaptive.limit() < 16 {
            adaptive.success();
            successes += 1;
        }
        assert!((100..200).contains(&successes), "{successes}");
        for _ in 0..1_000 {
            adaptive.success();
        }
        assert_eq!(adaptive.limit(), 16);
    }
}
