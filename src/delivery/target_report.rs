//! What is logged and exported about targets for which records wait in the spool.
//!
//! There may be thousands of them. Those for which most waits get a line a minute while they are unavailable, and slots
//! among the metrics; the others are summed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::circuit::Trouble;
use super::context::Context;
use super::deferred::{Backlog, Deferred};
use super::intake::Intake;
use super::sender::Senders;
use super::target_limit::{Standing, TargetLimit};
use crate::codec::time::{now as wall_time, utc};
use crate::ids::Time;
use crate::log::{Level, Log, size};
use crate::metrics::targets::{SLOTS, Waiting};

/// The interval between updates of the metrics.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);
/// The interval between lines about unavailable targets.
const LINES_INTERVAL: Duration = Duration::from_secs(60);
/// The number of targets that have a line of their own.
const MAX_LINES: usize = 3;
/// The maximum number of targets whose recovery is logged.
const MAX_TOLD: usize = 100;
/// The maximum number of chunks looked at for the age of a target's oldest record.
const MAX_CHUNKS: usize = 1_000;

/// The maximum number of tags that a line names.
const MAX_TAGS: usize = 3;

/// The kind of trouble that a target beyond its limit is logged as.
const LIMIT: &str = "target_limit";

/// Since when a target is unavailable, and why.
struct Since<'t>(&'t Trouble);

impl fmt::Display for Since<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = utc(self.0.since).format("%FT%TZ");
        match &self.0.fault {
            Some(fault) => write!(f, "{since}: {fault}"),
            None => write!(f, "{since}: no answer"),
        }
    }
}

/// Why a target takes nothing or little, for the middle of a line.
struct Why<'t>(Option<&'t Trouble>);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(trouble) => write!(f, "it is unavailable since {}", Since(trouble)),
            None => f.write_str("it accepts less than comes in"),
        }
    }
}

/// An unavailable target, for its line.
struct Line<'r> {
    /// The target for log lines.
    name: &'r str,
    /// Its slot among the metrics.
    slot: Option<&'static str>,
    trouble: &'r Trouble,
    waiting: Backlog,
    /// The age of the oldest record in seconds.
    age: Option<f64>,
    /// The bytes that may wait, including the reserve.
    most: u64,
    /// The bytes that came each second since the last line.
    rate: Option<f64>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { name, waiting, .. } = self;
        let Backlog { records, bytes } = *waiting;
        let (since, bytes_text) = (Since(self.trouble), size(bytes));
        write!(
            f,
            "{name} is unavailable since {since}; {records} records ({bytes_text}) wait"
        )?;
        if let Some(age) = self.age {
            write!(f, ", the oldest for {}", lapse(age))?;
        }
        let most = size(self.most);
        let left = self.most.saturating_sub(bytes);
        match self.rate {
            _ if left == 0 => write!(f, "; its target_limit ({most}) is reached")?,
            Some(rate) if rate > 0.0 => {
                let full = lapse(left as f64 / rate);
                write!(
                    f,
                    "; at this rate its target_limit ({most}) is reached in {full}"
                )?;
            }
            _ => write!(f, "; {} are left of its target_limit ({most})", size(left))?,
        }
        match self.slot {
            Some(slot) => write!(f, " (slot {slot} of the metrics)"),
            None => Ok(()),
        }
    }
}

/// Formats a span of time with its two largest units.
fn lapse(seconds: f64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let seconds = seconds as u64;
    let at = UNITS.iter().position(|(unit, _)| seconds >= *unit);
    let at = at.unwrap_or(UNITS.len() - 1);
    let (unit, name) = UNITS[at];
    let mut text = format!("{} {name}", seconds / unit);
    if let Some((next, name)) = UNITS
        .get(at + 1)
        .filter(|_| seconds % unit >= UNITS[at + 1].0)
    {
        let _ = write!(text, " {} {name}", seconds % unit / next);
    }
    text
}

/// What was logged and exported last.
pub(super) struct TargetReport {
    /// When the metrics are updated next, if anything changed …
    metrics_at: Instant,
    /// … since this version of what waits.
    version: u64,
    /// When lines are written next, while a target is unavailable.
    lines_at: Option<Instant>,
    /// When the last lines were written, and what waited then.
    before: (Instant, BTreeMap<Arc<str>, u64>),
    /// The targets that had a line, until nothing waits for them.
    told: BTreeSet<Arc<str>>,
}

impl TargetReport {
    pub(super) fn new(now: Instant) -> TargetReport {
        TargetReport {
            metrics_at: now,
            version: 0,
            lines_at: None,
            before: (now, BTreeMap::new()),
            told: BTreeSet::new(),
        }
    }

    /// Returns when [`TargetReport::update`] is to be called next.
    pub(super) fn due(&self, deferred: &Deferred) -> Option<Instant> {
        // A circuit may close after the last of what waited was taken.
        let changes = deferred.version() != self.version || !self.told.is_empty();
        let metrics = changes.then_some(self.metrics_at);
        metrics.into_iter().chain(self.lines_at).min()
    }

    /// Updates the metrics and writes the lines that are due.
    pub(super) fn update(
        &mut self,
        now: Instant,
        deferred: &Deferred,
        senders: &Senders,
        context: &Context,
        intake: &Intake,
    ) {
        if self.due(deferred).is_none_or(|due| due > now) {
            return;
        }
        let mut waiting: Vec<(&Arc<str>, Backlog)> = deferred.backlogs().collect();
        let order =
            |(target, backlog): &(&Arc<str>, Backlog)| (Reverse(backlog.bytes), Arc::clone(target));
        if waiting.len() > SLOTS {
            waiting.select_nth_unstable_by_key(SLOTS, order);
        }
        let split = waiting.len().min(SLOTS);
        let (worst, others) = waiting.split_at_mut(split);
        worst.sort_by_cached_key(order);
        let oldest = |target: &str, most: usize| {
            let chunks = deferred.chunks_of(target).take(most);
            intake.spool().oldest_of(chunks)
        };
        if self.metrics_at <= now {
            self.version = deferred.version();
            self.metrics_at = now + METRICS_INTERVAL;
            let of = |(target, backlog): &(&Arc<str>, Backlog), most| Waiting {
                records: backlog.records,
                bytes: backlog.bytes,
                oldest: oldest(target, most),
            };
            let mut other = Waiting::default();
            for target in others.iter() {
                // There may be thousands.
                let more = of(target, 1);
                other.records += more.records;
                other.bytes += more.bytes;
                other.oldest = [other.oldest, more.oldest].into_iter().flatten().min();
            }
            let all = worst
                .iter()
                .map(|target| (Arc::clone(target.0), of(target, MAX_CHUNKS)));
            context.metrics.targets.set(all.collect(), other);
            self.log_recovered(deferred, senders, &context.log);
        }
        let unavailable = |(target, backlog): &(&Arc<str>, Backlog)| {
            Some((Arc::clone(target), *backlog, senders.trouble(target)?))
        };
        let all = worst.iter().chain(others.iter());
        let mut all = all.filter_map(unavailable).peekable();
        if all.peek().is_none() {
            self.lines_at = None;
            return;
        }
        let lines_at = *self.lines_at.get_or_insert(now + LINES_INTERVAL);
        if lines_at > now {
            return;
        }
        self.lines_at = Some(now + LINES_INTERVAL);
        let (then, before) = std::mem::replace(&mut self.before, (now, BTreeMap::new()));
        let elapsed = now.duration_since(then).as_secs_f64();
        let mut more = Backlog::default();
        let mut targets = 0;
        for (target, waiting, trouble) in all.by_ref().take(MAX_LINES) {
            let before = before.get(&target);
            let grown = before.map(|before| waiting.bytes as f64 - *before as f64);
            let clock = wall_time();
            let line = Line {
                name: &senders.describe(&target),
                slot: context.metrics.targets.slot(&target),
                trouble: &trouble,
                waiting,
                age: oldest(&target, MAX_CHUNKS).map(|oldest: Time| clock.seconds_since(oldest)),
                most: intake.limit().most() + intake.limit().reserve(),
                rate: grown.filter(|_| elapsed > 0.0).map(|grown| grown / elapsed),
            };
            context.log.write(Level::Warn, &line.to_string());
            self.before.1.insert(Arc::clone(&target), waiting.bytes);
            if self.told.len() < MAX_TOLD {
                self.told.insert(target);
            }
        }
        for (_, waiting, _) in all {
            targets += 1;
            more.records += waiting.records;
            more.bytes += waiting.bytes;
        }
        if targets > 0 {
            let word = context.traits.target_word;
            let (records, bytes) = (more.records, size(more.bytes));
            context.log.write(
                Level::Warn,
                &format!("{targets} more {word}s are unavailable; {records} records ({bytes}) wait for them"),
            );
        }
    }

    /// Logs for which targets nothing waits any more.
    fn log_recovered(&mut self, deferred: &Deferred, senders: &Senders, log: &Log) {
        let is_over = |target: &Arc<str>| {
            deferred.backlog(target).records == 0 && senders.trouble(target).is_none()
        };
        for target in self.told.extract_if(.., is_over) {
            let name = senders.describe(&target);
            log.write(Level::Info, &format!("no records wait for {name} any more"));
        }
    }
}

/// Logs that a target passed its limit, or is below it again. `name` is the target for log lines.
pub(super) fn log_standing(
    log: &Log,
    limit: &TargetLimit,
    target: &Arc<str>,
    name: &str,
    waiting: Backlog,
    (before, now): (Standing, Standing),
    trouble: Option<&Trouble>,
) {
    let bytes = size(waiting.bytes);
    let most = size(limit.most());
    let holds = format!(
        "{bytes} wait in the spool for {name}, more than its target_limit ({most}; {})",
        Why(trouble)
    );
    let until = "until the destination or the configuration is fixed and less waits";
    match (limit.reserve(), now) {
        (_, Standing::Within) => log.write(
            Level::Info,
            &format!("{name} accepts chunks again: {bytes} wait in the spool for it"),
        ),
        (0, _) => log.trouble_with(
            Level::Error,
            LIMIT,
            target,
            &format!(
                "{holds}: chunks for it get RETRY and stay with Fluent Bit {until}; chunks for others are accepted"
            ),
        ),
        (reserve, Standing::Reserve) if before == Standing::Within => log.trouble_with(
            Level::Error,
            LIMIT,
            target,
            &format!(
                "{holds}: chunks with its records are accepted until another {} wait, because they may also have records \
                 for others; after that they get RETRY {until}",
                size(reserve)
            ),
        ),
        (_, Standing::Reserve) => log.write(
            Level::Info,
            &format!("chunks with records for {name} are accepted again: {bytes} wait in the spool for it"),
        ),
        (_, Standing::Full) => {
            let (tags, all) = limit.tags(target, MAX_TAGS);
            let named: Vec<String> = tags
                .iter()
                .map(|tag| format!("'{}'", String::from_utf8_lossy(&tag[..tag.len().min(200)])))
                .collect();
            let more = match all - named.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            log.trouble_with(
                Level::Error,
                "target_limit_full",
                target,
                &format!(
                    "{holds}, and the reserve for it is full: chunks with the tags that its records came with ({}{more}) get \
                     RETRY and stay with Fluent Bit, with all records in them, {until}",
                    named.join(", ")
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{Class, Fault};

    #[test]
    fn a_line_names_the_fault_and_what_waits_and_when_the_limit_is_reached() {
        let fault = Fault {
            class: Class::Configuration,
            code: "ResourceNotFoundException".into(),
            message: "no stream".into(),
            request_id: None,
        };
        let since = Time {
            seconds: 1_751_457_787,
            nanos: 0,
        };
        let trouble = |fault: Option<Fault>| Trouble {
            since,
            fault: fault.map(Arc::new),
        };
        let line = |trouble: &Trouble, bytes, age, rate, slot| {
            let line = Line {
                name: "delivery stream 'audit'",
                slot,
                trouble,
                waiting: Backlog { records: 7, bytes },
                age,
                most: 5_000_000_000,
                rate,
            };
            line.to_string()
        };
        let missing = trouble(Some(fault));
        assert_eq!(
            line(
                &missing,
                2_000_000_000,
                Some(7_530.0),
                Some(500_000.0),
                Some("1")
            ),
            "delivery stream 'audit' is unavailable since 2025-07-02T12:03:07Z: ResourceNotFoundException: no stream; 7 \
             records (2 GB) wait, the oldest for 2 h 5 min; at this rate its target_limit (5 GB) is reached in 1 h 40 min \
             (slot 1 of the metrics)"
        );
        let silent = trouble(None);
        let rest = "delivery stream 'audit' is unavailable since 2025-07-02T12:03:07Z: no answer; 7 records (2 GB) wait; 3 \
                    GB are left of its target_limit (5 GB)";
        for rate in [None, Some(0.0), Some(-1.0)] {
            assert_eq!(line(&silent, 2_000_000_000, None, rate, None), rest);
        }
        let full = line(&silent, 5_000_000_000, None, Some(1.0), None);
        assert!(
            full.ends_with("(5 GB) wait; its target_limit (5 GB) is reached"),
            "{full}"
        );
    }

    #[test]
    fn a_span_of_time_has_its_two_largest_units() {
        for (seconds, text) in [
            (0.4, "0 s"),
            (59.9, "59 s"),
            (60.0, "1 min"),
            (61.0, "1 min 1 s"),
            (3_659.0, "1 h"),
            (3_660.0, "1 h 1 min"),
            (90_000.0, "1 d 1 h"),
        ] {
            assert_eq!(lapse(seconds), text);
        }
    }
}
