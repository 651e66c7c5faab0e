//! Logging through the host's log, with rate limits for repeated trouble.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The minimum interval between lines about the same trouble.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// The time without an occurrence after which trouble counts as over, so that intermittent trouble does not end each
/// time.
const OVER_AFTER: Duration = Duration::from_secs(10);

/// The maximum number of subjects tracked for one kind of trouble: more would fill the log, and memory.
const MAX_SUBJECTS: usize = 16;
/// The key for all further subjects.
const OTHERS: &str = "\0others";

/// The time without an occurrence after which a subject gives its place to another.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// The level of a line. The numbers are those of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Data is held back or lost, or the output could not start.
    Error = 1,
    /// Needs attention.
    Warn = 2,
    /// Rare events: start, stop, recovery.
    Info = 3,
    /// Events of every chunk.
    Debug = 4,
}

/// The destination of log lines: the host, or a test.
pub trait Output: Send + Sync {
    /// Whether lines of this level are wanted.
    fn enabled(&self, level: Level) -> bool;
    /// Writes one line, given without its newline.
    fn write(&self, level: Level, line: &str);
}

/// The log of one instance.
pub struct Log {
    output: Box<dyn Output>,
    name: String,
    closed: AtomicBool,
    /// By kind and subject.
    troubles: Mutex<HashMap<&'static str, BTreeMap<Box<str>, Trouble>>>,
}

/// A trouble that lasts.
struct Trouble {
    last_logged: Instant,
    last_seen: Instant,
    /// The number of occurrences since the last line.
    suppressed: u64,
}

impl Log {
    /// Creates a log whose lines begin with `[name]`.
    pub fn new(output: Box<dyn Output>, name: &str) -> Log {
        Log {
            output,
            name: name.to_owned(),
            closed: AtomicBool::new(false),
            troubles: Mutex::default(),
        }
    }

    /// Logs `line`, if this level is wanted.
    pub fn write(&self, level: Level, line: &str) {
        if !self.closed.load(Ordering::Acquire) && self.output.enabled(level) {
            self.output.write(level, &format!("[{}] {line}", self.name));
        }
    }

    /// Logs trouble at once, then at most once a minute, with the number of occurrences in between. Occurrences with
    /// the same `kind` are the same trouble.
    pub fn trouble(&self, level: Level, kind: &'static str, line: &str) {
        self.trouble_at(Instant::now(), level, kind, "", line);
    }

    /// Like [`Log::trouble`], separately for each `subject`, such as a delivery stream. Beyond 16 subjects the others
    /// count as one.
    pub fn trouble_with(&self, level: Level, kind: &'static str, subject: &str, line: &str) {
        self.trouble_at(Instant::now(), level, kind, subject, line);
    }

    fn trouble_at(
        &self,
        now: Instant,
        level: Level,
        kind: &'static str,
        subject: &str,
        line: &str,
    ) {
        let suppressed = {
            let mut troubles = self.troubles.lock().expect("nothing panics with this lock");
            let subjects = troubles.entry(kind).or_default();
            if subjects.len() >= MAX_SUBJECTS {
                subjects.retain(|_, trouble| now.duration_since(trouble.last_seen) < FORGET_AFTER);
            }
            let own = subjects.contains_key(subject) || subjects.len() < MAX_SUBJECTS;
            let subject = if own { subject } else { OTHERS };
            let fresh = Trouble {
                last_logged: now,
                last_seen: now,
                suppressed: 0,
            };
            match subjects.get_mut(subject) {
                Some(before) if now.duration_since(before.last_logged) < REPEAT_AFTER => {
                    before.last_seen = now;
                    before.suppressed += 1;
                    return;
                }
                Some(before) => std::mem::replace(before, fresh).suppressed,
                None => {
                    subjects.insert(subject.into(), fresh);
                    0
                }
            }
        };
        if suppressed > 0 {
            self.write(
                level,
                &format!("{line} (repeated {suppressed} times since last logged)"),
            );
        } else {
            self.write(level, line);
        }
    }

    /// Logs that trouble is over, with the number of occurrences not logged. Does nothing if it was not logged, or
    /// occurred within the last 10 s.
    pub fn recovered(&self, kind: &'static str, line: &str) {
        self.recovered_at(Instant::now(), kind, "", line);
    }

    /// Like [`Log::recovered`], for one subject.
    pub fn recovered_with(&self, kind: &'static str, subject: &str, line: &str) {
        self.recovered_at(Instant::now(), kind, subject, line);
    }

    fn recovered_at(&self, now: Instant, kind: &'static str, subject: &str, line: &str) {
        let suppressed = {
            let mut troubles = self.troubles.lock().expect("nothing panics with this lock");
            let Some(subjects) = troubles.get_mut(kind) else {
                return;
            };
            let over = subjects
                .get(subject)
                .is_some_and(|trouble| now.duration_since(trouble.last_seen) >= OVER_AFTER);
            if !over {
                return;
            }
            let suppressed = subjects
                .remove(subject)
                .map_or(0, |trouble| trouble.suppressed);
            if subjects.is_empty() {
                troubles.remove(kind);
            }
            suppressed
        };
        if suppressed > 0 {
            self.write(
                Level::Info,
                &format!("{line} (failed {suppressed} more times than logged)"),
            );
        } else {
            self.write(Level::Info, line);
        }
    }

    /// Stops writing: the host is about to free what its output uses.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// Formats a size with three significant digits and a decimal unit, as in the configuration.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    let mut rest = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        // A larger value would be rounded to 1,000.
        if rest < 999.5 {
            break;
        }
        (rest, unit) = (rest / 1_000.0, next);
    }
    let decimals = match rest {
        _ if unit == "bytes" => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    let text = format!("{rest:.decimals$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text} {unit}")
}

/// Formats an error and its causes in one line, without repetitions.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        source = cause.source();
    }
    text
}

/// Formats a time span with the largest unit of which there are at least two.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// An output that keeps its lines for a test.
    #[derive(Clone, Default)]
    pub(crate) struct Lines(pub(crate) Arc<Mutex<Vec<(Level, String)>>>);

    impl Output for Lines {
        fn enabled(&self, level: Level) -> bool {
            level <= Level::Info
        }

        fn write(&self, level: Level, line: &str) {
            self.0.lock().unwrap().push((level, line.to_owned()));
        }
    }

    #[test]
    fn lasting_trouble_is_logged_once_a_minute_with_a_count_and_its_end() {
        let lines = Lines::default();
        let log = Log::new(Box::new(lines.clone()), "ferry.app");
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        for second in [0, 1, 59, 60, 61, 121] {
            log.trouble_at(at(second), Level::Warn, "throttle", "", "slow");
            log.recovered_at(at(second), "throttle", "", "not over yet");
        }
        log.recovered_at(at(131), "throttle", "", "fast again");
        log.recovered_at(at(132), "throttle", "", "logged only once");
        for millis in 0..40 {
            let now = at(200) + Duration::from_millis(millis);
            log.trouble_at(now, Level::Warn, "throttle", "", "slow");
        }
        log.recovered_at(at(209), "throttle", "", "not over yet");
        log.recovered_at(at(211), "throttle", "", "fast again");
        let logged: Vec<String> = lines
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|(_, line)| line.clone())
            .collect();
        assert_eq!(
            logged,
            [
                "[ferry.app] slow",
                "[ferry.app] slow (repeated 2 times since last logged)",
                "[ferry.app] slow (repeated 1 times since last logged)",
                "[ferry.app] fast again",
                "[ferry.app] slow",
                "[ferry.app] fast again (failed 39 more times than logged)",
            ]
        );
    }

    #[test]
    fn each_subject_is_logged_separately_up_to_a_maximum() {
        let lines = Lines::default();
        let log = Log::new(Box::new(lines.clone()), "f");
        let start = Instant::now();
        for stream in 0..100 {
            let subject = format!("s{stream}");
            for line in [subject.as_str(), "again"] {
                log.trouble_at(start, Level::Warn, "denied", &subject, line);
            }
        }
        let later = start + Duration::from_secs(20);
        log.recovered_at(later, "denied", "never in trouble", "it was never logged");
        log.recovered_at(later, "denied", "s3", "s3 is back");
        log.recovered_at(later, "denied", "s99", "one of the others");
        let lines = lines.0.lock().unwrap();
        let lines: Vec<&str> = lines.iter().map(|(_, line)| &line[..]).collect();
        assert_eq!(lines.len(), MAX_SUBJECTS + 2, "{lines:?}");
        assert_eq!(lines[..2], ["[f] s0", "[f] s1"]);
        assert_eq!(lines[MAX_SUBJECTS], "[f] s16", "for all others");
        assert!(lines[MAX_SUBJECTS + 1].starts_with("[f] s3 is back"));
    }

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1_000, "1 KB"),
            (1_234, "1.23 KB"),
            (64_000_000, "64 MB"),
            (999_700_000, "1 GB"),
            (15_990_000_000, "16 GB"),
            (100_000_000_000_000, "100 TB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_disabled_level_and_a_closed_log_are_silent() {
        let lines = Lines::default();
        let log = Log::new(Box::new(lines.clone()), "f");
        log.write(Level::Debug, "too much");
        log.close();
        log.write(Level::Error, "too late");
        assert!(lines.0.lock().unwrap().is_empty());
    }
}
