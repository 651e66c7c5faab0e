//! When `DescribeDeliveryStream` is called. Pure: time and randomness are arguments.
//!
//! The call has a quota of five a second for an account and region, which the senders of a fleet share with each other and
//! with every console, template and script of the account: <https://docs.aws.amazon.com/firehose/latest/dev/limits.html>
//!
//! * [`Starts`] spaces the calls of a process, whatever it describes: four a second at most, fewer when they are
//!   throttled. The first is at a random time, so that processes that start at once do not call at once.
//! * [`next_call`] says when a stream is described again. A sender cannot know how many others there are; but a first
//!   call that is throttled tells that there are hundreds, so it is repeated at a random time within minutes.

use std::time::{Duration, Instant};

use rand::Rng;

/// The time between two calls of a process: it leaves a fifth of the quota to others even if it describes hundreds.
const INTERVAL: Duration = Duration::from_millis(250);
/// The longest time between two calls, after throttling.
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// The first call of a process is within this time. Longer would delay the first records of everybody, and could not
/// spread a large fleet either: 1,000 calls take 200 s.
const FIRST_JITTER: Duration = match cfg!(test) {
    true => Duration::ZERO,
    false => Duration::from_secs(1),
};
/// The mean age at which an answer is asked for again. A stream's destination rarely changes, and 1,000 senders make a
/// call in 3.6 s.
const AGE: Duration = Duration::from_secs(3_600);
/// The mean time until a call that was denied is made again: somebody may have allowed it.
const DENIED: Duration = Duration::from_secs(240);
/// The limit of the first wait after a failure …
const FAILED: Duration = match cfg!(test) {
    true => Duration::from_millis(20),
    false => Duration::from_secs(5),
};
/// … and of every wait.
const FAILED_CAP: Duration = Duration::from_secs(300);
/// The time over which the first calls are spread that were throttled: 1,000 senders make less than four a second. Doubled by
/// each further throttling …
const THROTTLED: Duration = Duration::from_secs(300);
/// … up to this.
const THROTTLED_CAP: Duration = Duration::from_secs(2_400);

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// The stream was described.
    Described,
    /// The sender may not describe it.
    Denied,
    /// There are too many calls.
    Throttled,
    /// It failed otherwise.
    Failed,
}

/// Returns the time until a stream is described again. `failures`: the number of calls in a row that described nothing,
/// with this one.
pub fn next_call(called: Called, failures: u32, rng: &mut impl Rng) -> Duration {
    let doublings = 1 << failures.saturating_sub(1).min(16);
    match called {
        Called::Described => AGE.mul_f64(rng.random_range(0.8..=1.2)),
        Called::Denied => DENIED.mul_f64(rng.random_range(0.75..=1.25)),
        Called::Throttled => (THROTTLED * doublings)
            .min(THROTTLED_CAP)
            .mul_f64(rng.random_range(0.0..=1.0)),
        Called::Failed => (FAILED * doublings)
            .min(FAILED_CAP)
            .mul_f64(rng.random_range(0.5..=1.0)),
    }
}

/// Spaces the calls of a process.
#[derive(Clone, Debug)]
pub struct Starts {
    /// The time of the next call; `None` before the first.
    next: Option<Instant>,
    interval: Duration,
    last_slowed: Option<Instant>,
}

impl Default for Starts {
    fn default() -> Self {
        Starts::new()
    }
}

impl Starts {
    /// Creates the spacing of a process that has not called yet.
    pub const fn new() -> Starts {
        Starts {
            next: None,
            interval: INTERVAL,
            last_slowed: None,
        }
    }

    /// Returns when the next call may start, if one is waiting.
    pub fn next(&mut self, now: Instant, rng: &mut impl Rng) -> Instant {
        let first = || now + FIRST_JITTER.mul_f64(rng.random_range(0.0..=1.0));
        (*self.next.get_or_insert_with(first)).max(now)
    }

    /// Records that a call starts.
    pub fn started(&mut self, now: Instant) {
        self.next = Some(now + self.interval);
    }

    /// Records whether a call was throttled: then the rate is halved, once an interval at most. Otherwise it recovers.
    pub fn answered(&mut self, throttled: bool, now: Instant) {
        let slowed = |at: Instant| now.saturating_duration_since(at) < self.interval;
        if !throttled {
            self.interval = self.interval.mul_f64(0.8).max(INTERVAL);
        } else if !self.last_slowed.is_some_and(slowed) {
            self.interval = (self.interval * 2).min(MAX_INTERVAL);
            self.last_slowed = Some(now);
            self.next = self.next.map(|next| next.max(now + self.interval));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    /// The least and the most of many waits, in seconds.
    fn waits(called: Called, failures: u32) -> (f64, f64) {
        let mut rng = StdRng::seed_from_u64(1);
        let waits = (0..1_000).map(|_| next_call(called, failures, &mut rng).as_secs_f64());
        waits.fold((f64::MAX, 0.0), |(least, most), wait| {
            (least.min(wait), most.max(wait))
        })
    }

    #[test]
    fn an_answer_is_used_for_an_hour_and_a_denial_for_minutes() {
        for (called, from, to) in [
            (Called::Described, 2_880.0, 4_320.0),
            (Called::Denied, 180.0, 300.0),
        ] {
            for failures in [0, 1, 1_000] {
                let (least, most) = waits(called, failures);
                assert!(from <= least && most <= to, "{called:?}: {least} to {most}");
                assert!(
                    most - least > (to - from) * 0.9,
                    "{called:?}: {least} to {most}"
                );
            }
        }
    }

    #[test]
    fn failures_are_repeated_less_and_less_often() {
        for (failures, limit) in [
            (1, FAILED),
            (2, 2 * FAILED),
            (4, 8 * FAILED),
            (u32::MAX, FAILED_CAP),
        ] {
            let (least, most) = waits(Called::Failed, failures);
            let limit = limit.as_secs_f64();
            assert!(
                limit / 2.0 <= least && most <= limit,
                "{failures}: {least} to {most} of {limit}"
            );
        }
    }

    #[test]
    fn throttled_calls_are_spread_over_minutes() {
        for (failures, limit) in [(1, 300.0), (2, 600.0), (9, 2_400.0)] {
            let (least, most) = waits(Called::Throttled, failures);
            assert!(
                least < limit / 20.0 && most > limit * 0.95,
                "{failures}: {least} to {most}"
            );
        }
    }

    #[test]
    fn a_process_makes_four_calls_a_second_and_half_as_many_when_throttled() {
        let mut rng = StdRng::seed_from_u64(1);
        let start = Instant::now();
        let mut starts = Starts::new();
        let mut now = start;
        let mut calls = |starts: &mut Starts, count: u32, now: &mut Instant| {
            let from = *now;
            for _ in 0..count {
                *now = starts.next(*now, &mut rng);
                starts.started(*now);
            }
            *now - from
        };
        assert_eq!(
            calls(&mut starts, 1, &mut now),
            Duration::ZERO,
            "at once in tests"
        );
        assert_eq!(calls(&mut starts, 100, &mut now), INTERVAL * 100);
        // The answers of one interval are one signal.
        starts.answered(true, now);
        starts.answered(true, now);
        assert_eq!(calls(&mut starts, 10, &mut now), 2 * INTERVAL * 10);
        for _ in 0..20 {
            now += MAX_INTERVAL;
            starts.answered(true, now);
        }
        assert_eq!(calls(&mut starts, 2, &mut now), MAX_INTERVAL * 2);
        for _ in 0..40 {
            starts.answered(false, now);
        }
        calls(&mut starts, 1, &mut now);
        assert_eq!(calls(&mut starts, 4, &mut now), INTERVAL * 4);
    }
}
