//! Chunks at which work fails again and again while it succeeds at others: bytes that the disk has lost, or events at which
//! the encoder panics. Each would keep the whole log for ever. Pure: time is an argument.

use std::collections::HashMap;
use std::fmt;

use tokio::time::{Duration, Instant};

use crate::spool::Seq;

/// The number of failures after which a chunk is given up …
const MIN_FAILURES: u32 = 5;
/// … if they go on for this long, so that a disk in passing trouble costs nothing …
const MIN_DURATION: Duration = Duration::from_secs(600);
/// … and work on this many other chunks succeeded meanwhile: else the disk or the program is in trouble, and not the chunk.
const MIN_OTHERS: u64 = 5;

/// Why work on a chunk failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The disk has lost its bytes: the error.
    Lost(String),
    /// Encoding it panicked.
    Panic,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Lost(error) => write!(f, "it cannot be read ({error})"),
            Failure::Panic => f.write_str("encoding it panicked, which is a bug: please report it"),
        }
    }
}

/// The chunks at which work fails.
#[derive(Debug, Default)]
pub(super) struct Poison {
    failing: HashMap<Seq, Failing>,
    /// The number of successes at any chunk.
    successes: u64,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    times: u32,
    successes_then: u64,
    condemned: Option<Failure>,
}

impl Poison {
    /// Records that work on a chunk succeeded.
    pub(super) fn succeeded(&mut self, chunk: Seq) {
        self.successes += 1;
        self.failing.remove(&chunk);
    }

    /// Records that work on a chunk failed.
    pub(super) fn failed(&mut self, chunk: Seq, failure: Failure, now: Instant) {
        let successes = self.successes;
        let failing = self.failing.entry(chunk).or_insert(Failing {
            since: now,
            times: 0,
            successes_then: successes,
            condemned: None,
        });
        failing.times += 1;
        let is_it = failing.times >= MIN_FAILURES
            && now.duration_since(failing.since) >= MIN_DURATION
            && successes - failing.successes_then >= MIN_OTHERS;
        if is_it {
            failing.condemned = Some(failure);
        }
    }

    /// Returns why a chunk is to be given up, with the number of failures.
    pub(super) fn condemns(&self, chunk: Seq) -> Option<String> {
        let failing = self.failing.get(&chunk)?;
        let failure = failing.condemned.as_ref()?;
        Some(format!("{failure}; this was tried {} times", failing.times))
    }

    /// Forgets a chunk that is finished.
    pub(super) fn forget(&mut self, chunk: Seq) {
        self.failing.remove(&chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Seq = 7;

    /// What happens at each step, a number of seconds apart.
    fn condemned(seconds: u64, steps: &str) -> bool {
        let (mut poison, mut now) = (Poison::default(), Instant::now());
        for step in steps.chars() {
            match step {
                'x' => poison.failed(BAD, Failure::Panic, now),
                'o' => poison.succeeded(BAD + 1),
                'B' => poison.succeeded(BAD),
                _ => unreachable!("no such step"),
            }
            now += Duration::from_secs(seconds);
        }
        poison.condemns(BAD).is_some()
    }

    #[test]
    fn a_chunk_is_given_up_if_it_fails_for_long_while_others_succeed() {
        #[rustfmt::skip] // a table
        let cases = [
            ("it fails among others", 60, "xoxoxoxoxox", true),
            ("too few times", 600, "xoooooxxx", false),
            ("for too short a time", 10, "xoxoxoxoxoxox", false),
            ("everything fails", 600, "xxxxxxxxxx", false),
            ("few others succeed", 600, "xoxoxxxxxx", false),
            ("others succeeded before", 600, "ooooooxxxxxx", false),
            ("it succeeded in between", 60, "xoxoxoxoxoBxx", false),
        ];
        for (what, seconds, steps, expected) in cases {
            assert_eq!(condemned(seconds, steps), expected, "{what}");
        }
    }

    #[test]
    fn the_reason_is_the_last_failure_and_a_finished_chunk_is_forgotten() {
        let (mut poison, start) = (Poison::default(), Instant::now());
        poison.failed(BAD, Failure::Panic, start);
        for other in 0..MIN_OTHERS {
            poison.succeeded(100 + other);
        }
        for _ in 1..MIN_FAILURES {
            let lost = Failure::Lost("Input/output error".to_owned());
            poison.failed(BAD, lost, start + MIN_DURATION);
        }
        assert_eq!(
            poison.condemns(BAD).as_deref(),
            Some("it cannot be read (Input/output error); this was tried 5 times")
        );
        poison.forget(BAD);
        assert_eq!(poison.condemns(BAD), None);
    }
}
