//! The number of requests in flight: as many as the destination accepts without throttling.

use std::time::{Duration, Instant};

/// The initial number of requests in flight …
pub const ADAPTIVE_START: usize = 4;
/// … and the maximum, if none is configured. Each holds up to 4 MiB, and the buffers of HTTP and TLS.
pub const ADAPTIVE_MAX: usize = 8;

/// The number of requests in flight, by additive increase and multiplicative decrease.
#[derive(Clone, Debug)]
pub struct Adaptive {
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
    /// The limit is cut once an interval: the answers to requests that were in flight together are one signal.
    const CUT_INTERVAL: Duration = Duration::from_secs(1);

    /// Starts at `start` requests; the limit stays between 1 and `most`.
    pub fn new(start: usize, most: usize) -> Self {
        Adaptive {
            limit: start.clamp(1, most) as f64,
            most,
            last_cut: None,
        }
    }

    /// Records an accepted request: the limit grows by one after about as many successes as are in flight.
    pub fn success(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.most as f64);
    }

    /// Records throttling: the limit is halved.
    pub fn throttled(&mut self, now: Instant) {
        let recent = self
            .last_cut
            .is_some_and(|cut| now.duration_since(cut) < Self::CUT_INTERVAL);
        if !recent {
            self.limit = (self.limit / 2.0).max(1.0);
            self.last_cut = Some(now);
        }
    }

    /// Returns the current limit.
    pub fn limit(&self) -> usize {
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
