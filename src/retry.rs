//! When to try again, and how much at once. Pure: time and randomness are arguments.

use std::time::{Duration, Instant};

use rand::Rng;

use crate::sink::Class;

/// The first wait is at most this long …
const BASE: Duration = Duration::from_millis(200);
/// … and no wait is longer than this.
const CAP: Duration = Duration::from_secs(10);
/// What a person has to mend is tried less often from the start …
const HELD_BASE: Duration = Duration::from_secs(1);
/// … and at least so often, that data goes on soon after it is mended.
const HELD_CAP: Duration = Duration::from_secs(30);

/// How long to wait after the `attempts`-th failure in a row (from 1): random between half of and the
/// whole of a limit that doubles, so that many senders do not come back together.
pub fn backoff(class: Class, attempts: u32, rng: &mut impl Rng) -> Duration {
    let doublings = 1 << attempts.saturating_sub(1).min(16);
    let limit = match class {
        Class::Throttle | Class::Transient => (BASE * doublings).min(CAP),
        Class::Credentials | Class::Configuration => (HELD_BASE * doublings).min(HELD_CAP),
        // The remedy (another split) is at hand: nothing gets better by waiting.
        Class::Record | Class::TooLarge => Duration::ZERO,
    };
    rng.random_range(limit / 2..=limit)
}

/// Requests in flight, by additive increase and multiplicative decrease.
#[derive(Clone, Debug)]
pub struct Adaptive {
    limit: f64,
    most: usize,
    last_cut: Option<Instant>,
}

impl Adaptive {
    /// One cut an interval: the answers to requests that were in flight together are one message.
    const CUT_INTERVAL: Duration = Duration::from_secs(1);

    /// Starts at `start` requests, between 1 and `most`.
    pub fn new(start: usize, most: usize) -> Self {
        Adaptive {
            limit: start.clamp(1, most) as f64,
            most,
            last_cut: None,
        }
    }

    /// A request was taken: one more at a time after about as many successes as are in flight.
    pub fn success(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.most as f64);
    }

    /// The destination asked for less: half.
    pub fn throttled(&mut self, now: Instant) {
        let recent = self
            .last_cut
            .is_some_and(|cut| now.duration_since(cut) < Self::CUT_INTERVAL);
        if !recent {
            self.limit = (self.limit / 2.0).max(1.0);
            self.last_cut = Some(now);
        }
    }

    /// Requests that may be in flight now.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    #[test]
    fn waits_double_to_their_cap_and_are_spread() {
        let mut rng = StdRng::seed_from_u64(1);
        for (attempts, most) in [
            (1, 200),
            (2, 400),
            (6, 6_400),
            (7, 10_000),
            (1_000, 10_000),
            (u32::MAX, 10_000),
        ] {
            let waits: Vec<u128> = (0..200)
                .map(|_| backoff(Class::Transient, attempts, &mut rng).as_millis())
                .collect();
            let (least, longest) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(
                *least >= most / 2 && *longest <= most,
                "{attempts}: {least} to {longest}"
            );
            assert!(
                longest - least > most / 4,
                "{attempts}: {least} to {longest}"
            );
        }
    }

    #[test]
    fn what_a_person_must_mend_is_not_hammered_and_what_we_can_mend_does_not_wait() {
        let mut rng = StdRng::seed_from_u64(1);
        assert!(backoff(Class::Configuration, 1, &mut rng) >= HELD_BASE / 2);
        assert!(backoff(Class::Credentials, 1_000, &mut rng) <= HELD_CAP);
        assert_eq!(backoff(Class::TooLarge, 3, &mut rng), Duration::ZERO);
    }

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
