//! What we say, and how often. Lines go wherever the host's log goes.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The same trouble is said at most so often.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// A trouble is over when it did not come for so long: one that comes and goes has not ended.
const OVER_AFTER: Duration = Duration::from_secs(10);

/// Subjects of one kind of trouble that are told apart: more would fill a screen, and memory.
const MOST_SUBJECTS: usize = 16;
/// Stands for all subjects beyond these.
const OTHERS: &str = "\0others";

/// A subject that has not been in trouble for so long leaves its place to another.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// How loud a line is. The numbers are the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Data is held back or lost, or we could not start.
    Error = 1,
    /// Something a person should look at.
    Warn = 2,
    /// What happens once: start, stop, recovery.
    Info = 3,
    /// What happens for every chunk.
    Debug = 4,
}

/// Where lines go: the host, or a test.
pub trait Output: Send + Sync {
    /// Whether the user wants lines of this level.
    fn enabled(&self, level: Level) -> bool;
    /// Takes one line, without its newline.
    fn write(&self, level: Level, line: &str);
}

/// The log of one instance.
pub struct Log {
    output: Box<dyn Output>,
    name: String,
    closed: AtomicBool,
    said: Mutex<HashMap<&'static str, BTreeMap<Box<str>, Said>>>,
}

/// A trouble that lasts.
struct Said {
    said: Instant,
    seen: Instant,
    since: u64,
}

impl Log {
    /// Lines begin with `name`, so that several instances can be told apart.
    pub fn new(output: Box<dyn Output>, name: &str) -> Log {
        Log {
            output,
            name: name.to_owned(),
            closed: AtomicBool::new(false),
            said: Mutex::default(),
        }
    }

    /// Says `line`, if the user wants this level.
    pub fn say(&self, level: Level, line: &str) {
        if !self.closed.load(Ordering::Acquire) && self.output.enabled(level) {
            self.output.write(level, &format!("[{}] {line}", self.name));
        }
    }

    /// Says a trouble now and then at most once a minute, with how often it came in between. `kind` is
    /// what counts as the same trouble.
    pub fn trouble(&self, level: Level, kind: &'static str, line: &str) {
        self.trouble_at(Instant::now(), level, kind, "", line);
    }

    /// The same where `subject` is in trouble: a delivery stream, say. Each subject is told of by itself; of more than
    /// sixteen the others count as one.
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
        let again = {
            let mut said = self.said.lock().expect("nothing panics with this lock");
            let subjects = said.entry(kind).or_default();
            if subjects.len() >= MOST_SUBJECTS {
                subjects.retain(|_, said| now.duration_since(said.seen) < FORGET_AFTER);
            }
            let own = subjects.contains_key(subject) || subjects.len() < MOST_SUBJECTS;
            let subject = if own { subject } else { OTHERS };
            let fresh = Said {
                said: now,
                seen: now,
                since: 0,
            };
            match subjects.get_mut(subject) {
                Some(before) if now.duration_since(before.said) < REPEAT_AFTER => {
                    before.seen = now;
                    before.since += 1;
                    return;
                }
                Some(before) => std::mem::replace(before, fresh).since,
                None => {
                    subjects.insert(subject.into(), fresh);
                    0
                }
            }
        };
        if again > 0 {
            self.say(
                level,
                &format!("{line} (and {again} times more since this was last said)"),
            );
        } else {
            self.say(level, line);
        }
    }

    /// What a trouble stood in the way of works: says so, where the trouble had been said and does not
    /// come any more, and how often it came that nothing was said of.
    pub fn recovered(&self, kind: &'static str, line: &str) {
        self.recovered_at(Instant::now(), kind, "", line);
    }

    /// The same of one subject.
    pub fn recovered_with(&self, kind: &'static str, subject: &str, line: &str) {
        self.recovered_at(Instant::now(), kind, subject, line);
    }

    fn recovered_at(&self, now: Instant, kind: &'static str, subject: &str, line: &str) {
        let unsaid = {
            let mut said = self.said.lock().expect("nothing panics with this lock");
            let Some(subjects) = said.get_mut(kind) else {
                return;
            };
            let over = subjects
                .get(subject)
                .is_some_and(|said| now.duration_since(said.seen) >= OVER_AFTER);
            if !over {
                return;
            }
            let unsaid = subjects.remove(subject).map_or(0, |said| said.since);
            if subjects.is_empty() {
                said.remove(kind);
            }
            unsaid
        };
        if unsaid > 0 {
            self.say(
                Level::Info,
                &format!("{line} (before, it failed {unsaid} times more than was said)"),
            );
        } else {
            self.say(Level::Info, line);
        }
    }

    /// Nothing is written from here on: what the host lent us for writing is gone.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// Bytes for a person: three digits, and K is 1,000 as in the configuration.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    let mut rest = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        // Below this it would be written as 1,000.
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

/// An error and its causes in one line; what each says once.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(here) = cause {
        let more = here.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = here.source();
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// Keeps lines for a test to read.
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
    fn a_lasting_trouble_is_said_once_a_minute_with_a_count_and_its_end() {
        let lines = Lines::default();
        let log = Log::new(Box::new(lines.clone()), "ferry.app");
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        for second in [0, 1, 59, 60, 61, 121] {
            log.trouble_at(at(second), Level::Warn, "throttle", "", "slow");
            log.recovered_at(at(second), "throttle", "", "not over yet");
        }
        log.recovered_at(at(131), "throttle", "", "fast again");
        log.recovered_at(at(132), "throttle", "", "said only once");
        for millis in 0..40 {
            let now = at(200) + Duration::from_millis(millis);
            log.trouble_at(now, Level::Warn, "throttle", "", "slow");
        }
        log.recovered_at(at(209), "throttle", "", "not over yet");
        log.recovered_at(at(211), "throttle", "", "fast again");
        let said: Vec<String> = lines
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|(_, line)| line.clone())
            .collect();
        assert_eq!(
            said,
            [
                "[ferry.app] slow",
                "[ferry.app] slow (and 2 times more since this was last said)",
                "[ferry.app] slow (and 1 times more since this was last said)",
                "[ferry.app] fast again",
                "[ferry.app] slow",
                "[ferry.app] fast again (before, it failed 39 times more than was said)",
            ]
        );
    }

    #[test]
    fn each_subject_is_told_of_by_itself_up_to_a_number() {
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
        log.recovered_at(later, "denied", "well all the time", "it was never said");
        log.recovered_at(later, "denied", "s3", "s3 is back");
        log.recovered_at(later, "denied", "s99", "one of the others");
        let lines = lines.0.lock().unwrap();
        let said: Vec<&str> = lines.iter().map(|(_, line)| &line[..]).collect();
        assert_eq!(said.len(), MOST_SUBJECTS + 2, "{said:?}");
        assert_eq!(said[..2], ["[f] s0", "[f] s1"]);
        assert_eq!(said[MOST_SUBJECTS], "[f] s16", "for all others");
        assert!(said[MOST_SUBJECTS + 1].starts_with("[f] s3 is back"));
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
    fn a_level_the_user_does_not_want_and_a_closed_log_are_silent() {
        let lines = Lines::default();
        let log = Log::new(Box::new(lines.clone()), "f");
        log.say(Level::Debug, "too much");
        log.close();
        log.say(Level::Error, "too late");
        assert!(lines.0.lock().unwrap().is_empty());
    }
}
