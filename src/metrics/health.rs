//! Whether an output delivers: the decision behind `/ready`, and the document `/status.json`.
//!
//! Fluent Bit's own health counts chunks that it gave up, and is well through any outage in which none are.

use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::log::size;

/// The part of `spool_limit` above which an output is not ready, in percent.
const SPOOL_PERCENT: u64 = 90;
/// The maximum number of targets that are named.
pub const MAX_TARGETS: usize = 20;

/// What a destination or a part of it last said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetTrouble {
    /// The target for log lines, such as `delivery stream 'a'`.
    pub target: String,
    /// Since when it takes nothing, in RFC 3339.
    pub since: String,
    /// The same as an age, in seconds.
    pub seconds: f64,
    /// The service's words, without secrets; `None` if it did not answer.
    pub error: Option<String>,
}

/// What is used of a limit, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Used {
    /// The bytes in use.
    pub bytes: u64,
    /// The limit.
    pub limit: u64,
}

/// An output as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// The age of the oldest record that is not delivered, in seconds; 0 if there is none.
    pub oldest: f64,
    /// How much of that age is no trouble, because objects stay open so long.
    pub open_for: Duration,
    /// The time since a record was last delivered, or since the start.
    pub idle: Duration,
    /// The targets that take nothing, the longest first, at most [`MAX_TARGETS`].
    pub targets: Vec<TargetTrouble>,
    /// The number of all of them.
    pub troubled: usize,
    /// The newest failure that no success followed, in the service's words.
    pub last_error: Option<String>,
    /// The spool, if there is one.
    pub spool: Option<Used>,
    /// The dead letters.
    pub letters: Used,
    /// The log events that wait because there is no room for more.
    pub letters_waiting: u64,
}

/// `/status.json`.
#[derive(Serialize)]
struct Status<'h> {
    version: &'static str,
    outputs: [Output<'h>; 1],
}

#[derive(Serialize)]
struct Output<'h> {
    name: &'h str,
    state: &'static str,
    /// Since when it is in that state, in RFC 3339.
    since: &'h str,
    reasons: &'h [String],
    last_error: Option<&'h str>,
    oldest_undelivered_seconds: f64,
    spool: Option<Used>,
    dead_letters: Used,
    dead_letters_waiting: u64,
    targets_in_trouble: usize,
    /// The first of them.
    targets: &'h [TargetTrouble],
}

impl Health {
    /// Returns why the output is not ready, in plain words; nothing if it is.
    pub fn reasons(&self, ready_after: Duration) -> Vec<String> {
        let mut reasons = Vec::new();
        let after = ready_after.as_secs_f64();
        if self.oldest > 0.0 {
            let long = self.targets.iter().filter(|target| target.seconds >= after);
            for target in long {
                let error = target.error.as_deref().unwrap_or("no answer");
                let (name, since) = (&target.target, &target.since);
                reasons.push(format!("{name} takes nothing since {since}: {error}"));
            }
            let overdue = self.oldest - self.open_for.as_secs_f64();
            let stalled = overdue >= after && self.idle >= ready_after;
            if reasons.is_empty() && stalled {
                let error = self.last_error.as_deref().unwrap_or("no answer");
                reasons.push(format!(
                    "nothing was delivered for {} s, and the oldest record waits for {} s: {error}",
                    self.idle.as_secs(),
                    self.oldest as u64
                ));
            }
        }
        if let Some(Used { bytes, limit }) = self.spool
            && u128::from(bytes) * 100 > u128::from(limit) * u128::from(SPOOL_PERCENT)
        {
            let (bytes, limit) = (size(bytes), size(limit));
            reasons.push(format!(
                "the spool is above {SPOOL_PERCENT}%: {bytes} of its spool_limit of {limit}"
            ));
        }
        let Used { bytes, limit } = self.letters;
        if self.letters_waiting > 0 || bytes >= limit {
            reasons.push(format!(
                "dead letters are full: {} of a dead_letter_limit of {}; move the dead-letters* files away",
                size(bytes),
                size(limit)
            ));
        }
        reasons
    }

    /// Returns `/status.json` for an output of this name that has been in its state since `since` (RFC 3339).
    pub fn status(&self, name: &str, reasons: &[String], since: &str) -> String {
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            outputs: [Output {
                name,
                state: match reasons.is_empty() {
                    true => "ready",
                    false => "not ready",
                },
                since,
                reasons,
                last_error: self.last_error.as_deref(),
                oldest_undelivered_seconds: self.oldest,
                spool: self.spool,
                dead_letters: self.letters,
                dead_letters_waiting: self.letters_waiting,
                targets_in_trouble: self.troubled,
                targets: &self.targets,
            }],
        };
        let text = serde_json::to_string_pretty(&status);
        text.expect("its keys are strings and its numbers finite") + "\n"
    }
}

/// The answer to `/ready`: whether the output is, and the text.
pub fn ready(reasons: &[String]) -> (bool, String) {
    match reasons {
        [] => (true, "ready\n".to_owned()),
        reasons => (false, format!("not ready: {}\n", reasons.join("; "))),
    }
}

/// When a count last rose.
#[derive(Debug)]
pub struct Progress(Mutex<(u64, Instant)>);

impl Progress {
    /// Starts at a count of 0.
    pub fn new(now: Instant) -> Progress {
        Progress(Mutex::new((0, now)))
    }

    /// Notes the count, and returns for how long it has been the same. To be called often: a rise counts from the call
    /// that sees it.
    pub fn idle(&self, count: u64, now: Instant) -> Duration {
        let mut last = self.0.lock().expect("nothing panics with this lock");
        if last.0 != count {
            *last = (count, now);
        }
        now.duration_since(last.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE_MINUTES: Duration = Duration::from_secs(300);

    fn well() -> Health {
        Health {
            spool: Some(Used {
                bytes: 10,
                limit: 1_000,
            }),
            letters: Used {
                bytes: 0,
                limit: 1_000,
            },
            ..Health::default()
        }
    }

    fn trouble(seconds: f64, error: Option<&str>) -> TargetTrouble {
        TargetTrouble {
            target: "delivery stream 'audit'".to_owned(),
            since: "2025-07-02T12:03:07Z".to_owned(),
            seconds,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn an_output_is_ready_unless_something_waits_too_long_or_has_no_room() {
        let seconds = Duration::from_secs;
        #[rustfmt::skip] // a table
        let cases: [(&str, Health, &[&str]); 14] = [
            ("nothing waits", Health { idle: seconds(9_000), ..well() }, &[]),
            ("nothing waits, and a target was in trouble when it was last asked",
             Health { targets: vec![trouble(9_000.0, None)], ..well() }, &[]),
            ("something waits, and others are delivered",
             Health { oldest: 900.0, idle: seconds(2), ..well() }, &[]),
            ("something waits, for less than ready_after",
             Health { oldest: 299.0, idle: seconds(299), ..well() }, &[]),
            ("the first record after an idle night", Health { oldest: 1.0, idle: seconds(30_000), ..well() }, &[]),
            ("nothing is delivered",
             Health { oldest: 300.0, idle: seconds(301), ..well() },
             &["nothing was delivered for 301 s, and the oldest record waits for 300 s: no answer"]),
            ("the service said why",
             Health { oldest: 300.0, idle: seconds(300), last_error: Some("AccessDenied: no".to_owned()), ..well() },
             &["nothing was delivered for 300 s, and the oldest record waits for 300 s: AccessDenied: no"]),
            ("an object that is open", Health { oldest: 599.0, idle: seconds(599), open_for: seconds(300), ..well() }, &[]),
            ("an object that is overdue",
             Health { oldest: 600.0, idle: seconds(600), open_for: seconds(300), ..well() },
             &["nothing was delivered for 600 s, and the oldest record waits for 600 s: no answer"]),
            ("one target of many, and the others deliver",
             Health { oldest: 400.0, targets: vec![trouble(300.0, Some("ResourceNotFoundException: none"))], ..well() },
             &["delivery stream 'audit' takes nothing since 2025-07-02T12:03:07Z: ResourceNotFoundException: none"]),
            ("a target, for less than ready_after",
             Health { oldest: 400.0, targets: vec![trouble(299.0, None)], ..well() }, &[]),
            ("a spool at its 90 %", Health { spool: Some(Used { bytes: 900, limit: 1_000 }), ..well() }, &[]),
            ("a spool above it",
             Health { spool: Some(Used { bytes: 901, limit: 1_000 }), ..well() },
             &["the spool is above 90%: 901 bytes of its spool_limit of 1 KB"]),
            ("no room for dead letters, by either sign",
             Health { letters_waiting: 1, letters: Used { bytes: 999, limit: 1_000 }, ..well() },
             &["dead letters are full: 999 bytes of a dead_letter_limit of 1 KB; move the dead-letters* files away"]),
        ];
        for (case, health, expected) in cases {
            assert_eq!(health.reasons(FIVE_MINUTES), expected, "{case}");
        }
        let full = Used {
            bytes: 1_000,
            limit: 1_000,
        };
        let full = Health {
            letters: full,
            ..well()
        };
        assert_eq!(full.reasons(FIVE_MINUTES).len(), 1);
    }

    #[test]
    fn all_reasons_are_given_at_once() {
        let health = Health {
            oldest: 900.0,
            targets: vec![trouble(900.0, None)],
            troubled: 30,
            letters_waiting: 3,
            spool: Some(Used {
                bytes: 1_000,
                limit: 1_000,
            }),
            ..well()
        };
        let reasons = health.reasons(FIVE_MINUTES);
        assert_eq!(reasons.len(), 3, "{reasons:?}");
        let (is_ready, text) = ready(&reasons);
        assert!(!is_ready && text.starts_with("not ready: delivery stream 'audit' takes nothing"));
        assert_eq!(ready(&[]), (true, "ready\n".to_owned()));
        let status = health.status("main \"1\"", &reasons, "2025-07-02T12:03:07Z");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let output = &status["outputs"][0];
        assert_eq!(output["name"], "main \"1\"");
        assert_eq!(output["state"], "not ready");
        assert_eq!(output["reasons"].as_array().unwrap().len(), 3);
        assert_eq!(output["targets_in_trouble"], 30);
        assert_eq!(output["targets"][0]["error"], serde_json::Value::Null);
        assert_eq!(output["spool"]["limit"], 1_000);
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn progress_counts_from_the_call_that_sees_it() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let progress = Progress::new(start);
        for (second, count, idle) in [(5, 0, 5), (10, 3, 0), (20, 3, 10), (21, 4, 0), (22, 4, 1)] {
            let idle = Duration::from_secs(idle);
            assert_eq!(progress.idle(count, at(second)), idle, "{second}");
        }
    }
}
