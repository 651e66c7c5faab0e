//! The metrics of an instance.
//!
//! Counters are updated once for each request, letter or flush, never for each event. The exporters (the host's page,
//! [`endpoint`], a log line) call [`Metrics::read`], which returns every family of [`FAMILIES`] with every label value from
//! the start.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

pub mod columns;
pub mod endpoint;
pub mod health;
pub mod targets;

/// A label with a fixed set of values.
pub trait Label: Copy {
    /// The exported names of the values.
    const VALUES: &'static [&'static str];
    /// The index of this value in [`Label::VALUES`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$what])* $value,)* }

        impl Label for $name {
            const VALUES: &'static [&'static str] = &[$($text),*];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// The outcome of log events.
    Record {
        /// Acknowledged by the destination.
        Delivered = "delivered",
        /// Kept as dead letters.
        DeadLetter = "dead_letter",
        /// Skipped, because they have nothing to send: see `log_key` and `data_keys`.
        Skipped = "skipped",
        /// Sent again because the response to their request was lost. Firehose may have them twice.
        Ambiguous = "ambiguous",
        /// Not sent again when their chunk was handed over again, because they were settled.
        Suppressed = "suppressed",
    }
}

label! {
    /// The stage at which bytes are counted.
    Stage {
        /// Msgpack accepted from the host, once its flush is answered OK.
        Raw = "raw",
        /// JSON lines encoded from it; lines that are encoded again count again.
        Encoded = "encoded",
        /// Payload acknowledged by the destination, after compression.
        Sent = "sent",
        /// The bytes that Firehose bills for that.
        Billed = "billed",
    }
}

label! {
    /// The outcome of a request.
    Request {
        /// All records were accepted.
        Ok = "ok",
        /// Some records were accepted.
        Partial = "partial",
        /// The destination throttles.
        Throttled = "throttled",
        /// A transient fault.
        Transient = "transient",
        /// The response was lost: the request may have been accepted.
        Ambiguous = "ambiguous",
        /// The credentials were refused.
        Credentials = "credentials",
        /// A fault that an operator has to fix.
        Configuration = "configuration",
        /// The contents were refused, for good or until the request is split.
        Rejected = "rejected",
    }
}

label! {
    /// The reason for a dead letter.
    Reason {
        /// Not a whole event.
        Malformed = "malformed",
        /// Nested too deeply to be encoded.
        TooDeep = "too_deep",
        /// Larger than the destination accepts.
        TooLarge = "too_large",
        /// Refused by the destination because of its contents.
        Refused = "refused",
    }
}

impl Reason {
    /// The reason's name in a dead letter.
    pub fn as_str(self) -> &'static str {
        Self::VALUES[self.index()]
    }
}

label! {
    /// The reason why an object was sealed.
    Sealed {
        /// `blob_max_size` was reached.
        Size = "size",
        /// `blob_max_age` was reached.
        Age = "age",
        /// The limit of memory, open objects, or the spool was reached.
        Memory = "memory",
        /// The output stopped, or an earlier run ended before the object was written.
        Stop = "stop",
        /// Direct mode: each flush seals its own objects.
        Flush = "flush",
    }
}

label! {
    /// The answer to a flush.
    Flush {
        /// The chunk is safe.
        Ok = "ok",
        /// The host keeps the chunk.
        Retry = "retry",
    }
}

/// A counter for each value of a label.
#[derive(Debug)]
pub struct Counters<L> {
    each: Box<[AtomicU64]>,
    label: PhantomData<L>,
}

impl<L: Label> Default for Counters<L> {
    fn default() -> Self {
        Counters {
            each: L::VALUES.iter().map(|_| AtomicU64::new(0)).collect(),
            label: PhantomData,
        }
    }
}

impl<L: Label> Counters<L> {
    /// Adds `more` to the counter of `label`.
    pub fn add(&self, label: L, more: u64) {
        self.each[label.index()].fetch_add(more, Relaxed);
    }

    /// The count of `label`.
    pub fn get(&self, label: L) -> u64 {
        self.each[label.index()].load(Relaxed)
    }

    /// The sum over all values of the label.
    pub fn sum(&self) -> u64 {
        self.each.iter().map(|count| count.load(Relaxed)).sum()
    }

    fn read(&self) -> Values {
        let each = self.each.iter();
        Values::Each(each.map(|count| Some(count.load(Relaxed) as f64)).collect())
    }
}

/// A counter without a label.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn read(&self) -> Values {
        Values::Each(vec![Some(self.get() as f64)])
    }
}

/// A current value, which may be unset.
#[derive(Debug)]
pub struct Gauge(AtomicU64);

impl Default for Gauge {
    fn default() -> Self {
        Gauge(AtomicU64::new(0f64.to_bits()))
    }
}

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Unsets the value.
    pub fn unset(&self) {
        self.set(f64::NAN);
    }

    /// The value, if it is set.
    pub fn get(&self) -> Option<f64> {
        let value = f64::from_bits(self.0.load(Relaxed));
        (!value.is_nan()).then_some(value)
    }

    fn read(&self) -> Values {
        Values::Each(vec![self.get()])
    }
}

/// A gauge of operations in progress.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU64);

/// Counts as one operation in progress until it is dropped.
#[derive(Debug)]
pub struct InFlightGuard<'c>(&'c InFlight);

impl InFlight {
    /// Adds an operation.
    pub fn enter(&self) -> InFlightGuard<'_> {
        self.0.fetch_add(1, Relaxed);
        InFlightGuard(self)
    }

    fn read(&self) -> Values {
        Values::Each(vec![Some(self.0.load(Relaxed) as f64)])
    }
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// The start times of waiting operations.
#[derive(Debug, Default)]
pub struct Queue(Mutex<(u64, BTreeMap<u64, Instant>)>);

/// A waiting operation, until it is dropped.
#[derive(Debug)]
pub struct Waiter<'q> {
    queue: &'q Queue,
    number: u64,
}

impl Queue {
    /// Adds an operation that waits since some time.
    pub fn enter(&self, since: Instant) -> Waiter<'_> {
        let mut queue = self.0.lock().expect("nothing panics with this lock");
        let number = queue.0;
        queue.0 += 1;
        queue.1.insert(number, since);
        Waiter {
            queue: self,
            number,
        }
    }

    /// The start time of the operation that has waited longest.
    pub fn oldest(&self) -> Option<Instant> {
        let queue = self.0.lock().expect("nothing panics with this lock");
        queue.1.values().min().copied()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut queue = self.queue.0.lock().expect("nothing panics with this lock");
        queue.1.remove(&self.number);
    }
}

/// The upper bounds of the [`Histogram`] buckets, in seconds.
pub const BUCKETS: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The count in each bucket; the last bucket has no upper bound.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// Records a duration.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BUCKETS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    fn read(&self) -> Values {
        let mut sum = 0;
        let up_to = self.buckets.iter().map(|bucket| {
            sum += bucket.load(Relaxed);
            sum
        });
        Values::Times {
            up_to: up_to.collect(),
            seconds: Duration::from_nanos(self.nanos.load(Relaxed)).as_secs_f64(),
        }
    }
}

/// All metrics of one instance.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Log events.
    pub records: Counters<Record>,
    /// Bytes processed.
    pub bytes: Counters<Stage>,
    /// Completed requests.
    pub requests: Counters<Request>,
    /// The duration of requests.
    pub request_times: Histogram,
    /// Records or objects that the destination throttled.
    pub throttled: Counter,
    /// Dead letters written.
    pub letters: Counters<Reason>,
    /// Objects written.
    pub objects: Counters<Sealed>,
    /// Flushes answered.
    pub flushes: Counters<Flush>,
    /// Requests in flight.
    pub in_flight: InFlight,
    /// The current limit on requests in flight.
    pub in_flight_limit: Gauge,
    /// Bytes held in memory.
    pub memory: Gauge,
    /// The limit on `memory`.
    pub memory_limit: Gauge,
    /// The size of the spool in bytes.
    pub spool: Gauge,
    /// The limit on `spool`.
    pub spool_limit: Gauge,
    /// Chunks in the spool whose file is missing.
    pub missing_chunks: Gauge,
    /// The age of the oldest undelivered record, in seconds.
    pub oldest: Gauge,
    /// Log events in the spool that wait for an unavailable or slow target.
    pub deferred: Gauge,
    /// What waits in the spool for the worst targets.
    pub targets: targets::Targets,
    /// The values that did not fit their columns.
    pub columns: columns::Columns,
    /// Failures of the spool's disk.
    pub spool_errors: Counter,
    /// Free bytes of the spool's disk.
    pub spool_disk_free: Gauge,
    /// Bytes in spools of earlier runs that nothing delivers.
    pub stranded: Gauge,
    /// Log events in the spool that wait to become dead letters.
    pub waiting_letters: Gauge,
    /// The size of the dead letters in bytes.
    pub letter_bytes: Gauge,
    /// The limit on `letter_bytes`.
    pub letter_limit: Gauge,
    /// Open circuit breakers.
    pub open_circuits: InFlight,
    /// Seconds until the credentials expire, unset if they do not.
    pub credentials: Gauge,

    // Only in the summary at the end of a run, at level debug.
    /// Chunks handed over again by a killed host that were already in the spool.
    pub replayed_chunks: Counter,
    /// Chunks that were damaged in the spool, or set aside because the process ended at them.
    pub corrupt_chunks: Counter,
    /// The number of those whose bytes are in the quarantine.
    pub quarantined_chunks: Counter,

    // Inputs of other metrics.
    /// Flushes that wait for the destination.
    pub waiting: Queue,
    /// Bytes of chunks read from the spool and of open objects.
    pub spooled: Gauge,
}

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Starts at 0 with the instance, and never decreases.
    Counter,
    /// A current value.
    Gauge,
    /// [`Values::Times`].
    Histogram,
}

/// A metric family.
pub struct Family {
    /// The name of the family.
    pub name: &'static str,
    /// The type.
    pub kind: Kind,
    /// The label and its values, if it has one.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// The help text.
    pub help: &'static str,
    read: fn(&Metrics) -> Values,
}

/// The values of a family.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// One for each value of the label, or a single one. `None`: unset.
    Each(Vec<Option<f64>>),
    /// The values of a histogram.
    Times {
        /// The cumulative count for each of [`BUCKETS`], and the total.
        up_to: Vec<u64>,
        /// The sum of all durations.
        seconds: f64,
    },
}

/// A family with its current values.
pub struct Figure {
    /// The family.
    pub family: &'static Family,
    /// The current values.
    pub values: Values,
    /// For [`targets::LABEL`]: the names of the targets in the slots.
    pub names: Vec<Option<Arc<str>>>,
}

impl Figure {
    /// Returns the name of the target that a value is about.
    fn name(&self, at: usize) -> Option<&str> {
        self.names.get(at)?.as_deref()
    }
}

/// All families.
pub static FAMILIES: &[Family] = &[
    Family {
        name: "ferry_records_total",
        kind: Kind::Counter,
        label: Some(("result", Record::VALUES)),
        help: "Log events, by outcome",
        read: |metrics| metrics.records.read(),
    },
    Family {
        name: "ferry_bytes_total",
        kind: Kind::Counter,
        label: Some(("stage", Stage::VALUES)),
        help: "Bytes: msgpack accepted, lines encoded, payload acknowledged, and billed by Firehose",
        read: |metrics| metrics.bytes.read(),
    },
    Family {
        name: "ferry_requests_total",
        kind: Kind::Counter,
        label: Some(("result", Request::VALUES)),
        help: "Requests with records, by outcome",
        read: |metrics| metrics.requests.read(),
    },
    Family {
        name: "ferry_request_duration_seconds",
        kind: Kind::Histogram,
        label: None,
        help: "Time from the start of a request to its response",
        read: |metrics| metrics.request_times.read(),
    },
    Family {
        name: "ferry_throttled_records_total",
        kind: Kind::Counter,
        label: None,
        help: "Records or objects that the destination throttled",
        read: |metrics| metrics.throttled.read(),
    },
    Family {
        name: "ferry_dead_letters_total",
        kind: Kind::Counter,
        label: Some(("reason", Reason::VALUES)),
        help: "Dead letters written, by reason",
        read: |metrics| metrics.letters.read(),
    },
    Family {
        name: "ferry_objects_total",
        kind: Kind::Counter,
        label: Some(("sealed", Sealed::VALUES)),
        help: "Objects written, by reason for sealing",
        read: |metrics| metrics.objects.read(),
    },
    Family {
        name: "ferry_flushes_total",
        kind: Kind::Counter,
        label: Some(("result", Flush::VALUES)),
        help: "Chunks handed over by Fluent Bit, by answer",
        read: |metrics| metrics.flushes.read(),
    },
    Family {
        name: "ferry_requests_in_flight",
        kind: Kind::Gauge,
        label: None,
        help: "Requests in flight",
        read: |metrics| metrics.in_flight.read(),
    },
    Family {
        name: "ferry_requests_limit",
        kind: Kind::Gauge,
        label: None,
        help: "Limit on requests in flight: the key concurrency, or its current adaptive value",
        read: |metrics| metrics.in_flight_limit.read(),
    },
    Family {
        name: "ferry_bytes_in_flight",
        kind: Kind::Gauge,
        label: None,
        help: "Bytes held in memory, as counted against memory_limit",
        read: |metrics| metrics.memory.read(),
    },
    Family {
        name: "ferry_memory_limit_bytes",
        kind: Kind::Gauge,
        label: None,
        help: "The key memory_limit",
        read: |metrics| metrics.memory_limit.read(),
    },
    Family {
        name: "ferry_spool_bytes",
        kind: Kind::Gauge,
        label: None,
        help: "Bytes of the spool on disk; 0 without one",
        read: |metrics| metrics.spool.read(),
    },
    Family {
        name: "ferry_spool_limit_bytes",
        kind: Kind::Gauge,
        label: None,
        help: "The key spool_limit; 0 without a spool",
        read: |metrics| metrics.spool_limit.read(),
    },
    Family {
        name: "ferry_spool_missing_chunks",
        kind: Kind::Gauge,
        label: None,
        help: "Accepted chunks whose file was removed from the spool's folder",
        read: |metrics| metrics.missing_chunks.read(),
    },
    Family {
        name: "ferry_oldest_unsent_seconds",
        kind: Kind::Gauge,
        label: None,
        help: "Age of the oldest record accepted and not delivered; 0 if there is none",
        read: |metrics| metrics.oldest.read(),
    },
    Family {
        name: "ferry_records_deferred",
        kind: Kind::Gauge,
        label: None,
        help: "Log events in the spool that wait for a delivery stream or folder that is unavailable or slow",
        read: |metrics| metrics.deferred.read(),
    },
    Family {
        name: "ferry_targets_unavailable",
        kind: Kind::Gauge,
        label: None,
        help: "Delivery streams or folders that are unavailable; a store that is unavailable as a whole counts as one",
        read: |metrics| {
            let open = metrics.open_circuits.0.load(Relaxed);
            Values::Each(vec![Some(open as f64)])
        },
    },
    Family {
        name: "ferry_column_conflicts_total",
        kind: Kind::Counter,
        label: None,
        help: "Values in the column of the rest because they do not fit their own (format parquet); the log names the columns",
        read: |metrics| Values::Each(vec![Some(metrics.columns.total() as f64)]),
    },
    Family {
        name: "ferry_target_waiting_records",
        kind: Kind::Gauge,
        label: Some((targets::LABEL, targets::VALUES)),
        help: "Log events in the spool that wait for one of the worst delivery streams or folders",
        read: |metrics| metrics.targets.read(|it, _| it.records as f64),
    },
    Family {
        name: "ferry_target_waiting_bytes",
        kind: Kind::Gauge,
        label: Some((targets::LABEL, targets::VALUES)),
        help: "Approximate bytes in the spool that wait for one of the worst delivery streams or folders",
        read: |metrics| metrics.targets.read(|it, _| it.bytes as f64),
    },
    Family {
        name: "ferry_target_oldest_seconds",
        kind: Kind::Gauge,
        label: Some((targets::LABEL, targets::VALUES)),
        help: "Age of the oldest log event in the spool that waits for one of the worst delivery streams or folders",
        read: |metrics| metrics.targets.read(targets::Waiting::age),
    },
    Family {
        name: "ferry_spool_errors_total",
        kind: Kind::Counter,
        label: None,
        help: "Failed reads and writes of the spool's disk, each of which is retried",
        read: |metrics| metrics.spool_errors.read(),
    },
    Family {
        name: "ferry_spool_disk_free_bytes",
        kind: Kind::Gauge,
        label: None,
        help: "Bytes that are free on the disk of the spool; 0 without one",
        read: |metrics| metrics.spool_disk_free.read(),
    },
    Family {
        name: "ferry_stranded_spool_bytes",
        kind: Kind::Gauge,
        label: None,
        help: "Undelivered bytes in spools of earlier runs that no output uses; one output reports them for all",
        read: |metrics| metrics.stranded.read(),
    },
    Family {
        name: "ferry_dead_letters_waiting",
        kind: Kind::Gauge,
        label: None,
        help: "Log events in the spool that cannot become dead letters while the folder is full or not writable",
        read: |metrics| metrics.waiting_letters.read(),
    },
    Family {
        name: "ferry_dead_letter_bytes",
        kind: Kind::Gauge,
        label: None,
        help: "Bytes of dead letters on disk",
        read: |metrics| metrics.letter_bytes.read(),
    },
    Family {
        name: "ferry_dead_letter_limit_bytes",
        kind: Kind::Gauge,
        label: None,
        help: "The key dead_letter_limit",
        read: |metrics| metrics.letter_limit.read(),
    },
    Family {
        name: "ferry_circuit_open",
        kind: Kind::Gauge,
        label: None,
        help: "1 while a destination accepts nothing and is only probed",
        read: |metrics| {
            let open = u8::from(metrics.circuit_is_open());
            Values::Each(vec![Some(open.into())])
        },
    },
    Family {
        name: "ferry_credentials_expiry_seconds",
        kind: Kind::Gauge,
        label: None,
        help: "Seconds until the credentials expire; 0 once expired; negative or absent if they do not expire",
        read: |metrics| metrics.credentials.read(),
    },
];

/// The label with the output's name, which every metric has in addition to its own.
pub const NAME_LABEL: &str = "name";

impl Metrics {
    /// Whether a circuit breaker is open.
    pub fn circuit_is_open(&self) -> bool {
        self.open_circuits.0.load(Relaxed) > 0
    }

    /// Reads all families.
    pub fn read(&self) -> Vec<Figure> {
        let names = |family: &Family| match family.label {
            Some((targets::LABEL, _)) => self.targets.names(),
            _ => Vec::new(),
        };
        let read = |family: &'static Family| Figure {
            family,
            values: (family.read)(self),
            names: names(family),
        };
        FAMILIES.iter().map(read).collect()
    }
}

/// A breaker's contribution to [`Metrics::open_circuits`], removed when it is dropped.
#[derive(Debug)]
pub struct Circuit {
    metrics: Arc<Metrics>,
    open: bool,
}

impl Circuit {
    /// Creates a closed one.
    pub fn new(metrics: &Arc<Metrics>) -> Circuit {
        Circuit {
            metrics: Arc::clone(metrics),
            open: false,
        }
    }

    /// Records whether the breaker is open.
    pub fn set(&mut self, open: bool) {
        let circuits = &self.metrics.open_circuits.0;
        match (self.open, open) {
            (false, true) => circuits.fetch_add(1, Relaxed),
            (true, false) => circuits.fetch_sub(1, Relaxed),
            _ => return,
        };
        self.open = open;
    }
}

impl Drop for Circuit {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// The host's metrics page.
pub trait MetricsPage: Send + Sync {
    /// The host's name for this output.
    fn name(&self) -> Option<String>;

    /// Registers all metrics with all their label values. Called once, during the output's init. Returns `false` if the host
    /// has no such page.
    fn register(&self, name: &str, figures: &[Figure]) -> bool;

    /// Updates the values on the page.
    fn show(&self, figures: &[Figure]);

    /// Stops using the page, which the host is about to free.
    fn close(&self);
}

/// Formats a label in Prometheus's text format.
fn label(key: &str, value: &str) -> String {
    let mut label = format!("{key}=\"");
    for c in value.chars() {
        match c {
            '\\' => label.push_str("\\\\"),
            '"' => label.push_str("\\\""),
            '\n' => label.push_str("\\n"),
            c => label.push(c),
        }
    }
    label.push('"');
    label
}

/// Formats metrics in Prometheus's text format, all with the label `name`.
pub fn text(name: &str, figures: &[Figure]) -> String {
    let mut text = String::with_capacity(16 * 1024);
    let named = label(NAME_LABEL, name);
    for figure in figures {
        let Figure { family, values, .. } = figure;
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let Family {
            name,
            help,
            label: own,
            ..
        } = family;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        match values {
            Values::Each(each) => {
                for (at, value) in each.iter().enumerate() {
                    let Some(value) = value else { continue };
                    let target = figure.name(at).map(|of| label(targets::NAME, of));
                    let target = target.map_or(String::new(), |of| format!(",{of}"));
                    let _ = match own {
                        Some((key, labels)) => {
                            writeln!(
                                text,
                                "{name}{{{named},{key}=\"{}\"{target}}} {value}",
                                labels[at]
                            )
                        }
                        None => writeln!(text, "{name}{{{named}}} {value}"),
                    };
                }
            }
            Values::Times { up_to, seconds } => {
                for (at, count) in up_to.iter().enumerate() {
                    let bound = BUCKETS.get(at).map_or("+Inf".to_owned(), f64::to_string);
                    let _ = writeln!(text, "{name}_bucket{{{named},le=\"{bound}\"}} {count}");
                }
                let count = up_to.last().copied().unwrap_or_default();
                let _ = writeln!(text, "{name}_sum{{{named}}} {seconds}");
                let _ = writeln!(text, "{name}_count{{{named}}} {count}");
            }
        }
    }
    text
}

/// Formats metrics as one log line: `metrics: records_total.delivered=12 … requests_in_flight=1`.
pub fn line(figures: &[Figure]) -> String {
    let mut line = String::from("metrics:");
    for figure in figures {
        let Figure { family, values, .. } = figure;
        let name = family.name.trim_start_matches("ferry_");
        match values {
            Values::Each(each) => {
                for (at, value) in each.iter().enumerate() {
                    let Some(value) = value else { continue };
                    let _ = match family.label {
                        // Most slots are empty most of the time.
                        Some((targets::LABEL, labels)) => match figure.name(at) {
                            Some(target) => write!(line, " {name}.{target}={value}"),
                            None if *value > 0.0 => write!(line, " {name}.{}={value}", labels[at]),
                            None => Ok(()),
                        },
                        Some((_, labels)) => write!(line, " {name}.{}={value}", labels[at]),
                        None => write!(line, " {name}={value}"),
                    };
                }
            }
            Values::Times { up_to, seconds } => {
                let count = up_to.last().copied().unwrap_or_default();
                let _ = write!(line, " {name}.count={count} {name}.sum={seconds}");
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str, line: &str) -> bool {
        text.lines().any(|found| found == line)
    }

    #[test]
    fn every_family_has_a_unique_and_conventional_name() {
        let mut names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            let total = family.name.ends_with("_total");
            assert_eq!(total, family.kind == Kind::Counter, "{}", family.name);
            assert!(family.name.starts_with("ferry_"), "{}", family.name);
            assert!(!family.help.is_empty(), "{}", family.name);
        }
    }

    #[test]
    fn every_label_value_is_exported_from_the_start() {
        for figure in Metrics::default().read() {
            let labels = figure.family.label.map_or(1, |(_, values)| values.len());
            match figure.values {
                Values::Each(each) => assert_eq!(each, vec![Some(0.0); labels]),
                Values::Times { up_to, seconds } => {
                    assert_eq!((up_to, seconds), (vec![0; BUCKETS.len() + 1], 0.0));
                }
            }
        }
    }

    #[test]
    fn counted_values_are_exported() {
        let metrics = Metrics::default();
        metrics.records.add(Record::Delivered, 40);
        metrics.records.add(Record::Delivered, 2);
        metrics.letters.add(Reason::TooDeep, 1);
        metrics.spool.set(1e12);
        metrics.oldest.set(1.5);
        let request = metrics.in_flight.enter();
        let page = text("app \"one\"\\\n", &metrics.read());
        for expected in [
            "# TYPE ferry_records_total counter",
            r#"ferry_records_total{name="app \"one\"\\\n",result="delivered"} 42"#,
            r#"ferry_records_total{name="app \"one\"\\\n",result="skipped"} 0"#,
            r#"ferry_dead_letters_total{name="app \"one\"\\\n",reason="too_deep"} 1"#,
            r#"ferry_spool_bytes{name="app \"one\"\\\n"} 1000000000000"#,
            r#"ferry_oldest_unsent_seconds{name="app \"one\"\\\n"} 1.5"#,
            r#"ferry_requests_in_flight{name="app \"one\"\\\n"} 1"#,
        ] {
            assert!(sample(&page, expected), "{expected} in {page}");
        }
        drop(request);
        let line = line(&metrics.read());
        for expected in [
            "metrics: records_total.delivered=42 ",
            " dead_letters_total.too_deep=1 ",
            " requests_in_flight=0 ",
            " request_duration_seconds.count=0 request_duration_seconds.sum=0 ",
        ] {
            assert!(line.contains(expected), "{expected} in {line}");
        }
        assert!(!line.contains('\n'));
    }

    #[test]
    fn the_worst_targets_are_exported_by_slot_and_named_where_that_is_possible() {
        let metrics = Metrics::default();
        let waiting = |records| targets::Waiting {
            records,
            bytes: 100,
            oldest: None,
        };
        let worst = vec![("say \"hi\"".into(), waiting(7)), ("b".into(), waiting(3))];
        metrics.targets.set(worst, waiting(9));
        let page = text("f", &metrics.read());
        for expected in [
            r#"ferry_target_waiting_records{name="f",slot="1",target="say \"hi\""} 7"#,
            r#"ferry_target_waiting_records{name="f",slot="2",target="b"} 3"#,
            r#"ferry_target_waiting_records{name="f",slot="3"} 0"#,
            r#"ferry_target_waiting_records{name="f",slot="other"} 9"#,
            r#"ferry_target_waiting_bytes{name="f",slot="2",target="b"} 100"#,
            r#"ferry_target_oldest_seconds{name="f",slot="2",target="b"} 0"#,
        ] {
            assert!(sample(&page, expected), "{expected} in {page}");
        }
        let line = line(&metrics.read());
        assert!(
            line.contains(" target_waiting_records.b=3 target_waiting_records.other=9 "),
            "{line}"
        );
        assert!(!line.contains("target_waiting_records.3"), "{line}");
    }

    #[test]
    fn an_unset_gauge_is_left_out() {
        let metrics = Metrics::default();
        metrics.credentials.unset();
        let page = text("f", &metrics.read());
        assert!(
            !page.contains("ferry_credentials_expiry_seconds{"),
            "{page}"
        );
        assert!(!line(&metrics.read()).contains("credentials_expiry"));
        metrics.credentials.set(0.0);
        let page = text("f", &metrics.read());
        assert!(sample(
            &page,
            r#"ferry_credentials_expiry_seconds{name="f"} 0"#
        ));
    }

    #[test]
    fn a_time_counts_in_every_bucket_that_holds_it() {
        let metrics = Metrics::default();
        for millis in [5, 6, 250, 59_999, 60_001] {
            metrics.request_times.observe(Duration::from_millis(millis));
        }
        let page = text("f", &metrics.read());
        for (bound, count) in [
            ("0.005", 1),
            ("0.01", 2),
            ("0.1", 2),
            ("0.25", 3),
            ("30", 3),
            ("60", 4),
            ("+Inf", 5),
        ] {
            let expected = format!(
                r#"ferry_request_duration_seconds_bucket{{name="f",le="{bound}"}} {count}"#
            );
            assert!(sample(&page, &expected), "{expected} in {page}");
        }
        assert!(sample(
            &page,
            r#"ferry_request_duration_seconds_sum{name="f"} 120.261"#
        ));
        assert!(sample(
            &page,
            r#"ferry_request_duration_seconds_count{name="f"} 5"#
        ));
    }

    #[test]
    fn the_oldest_waiter_is_known_in_any_order_of_leaving() {
        let queue = Queue::default();
        assert_eq!(queue.oldest(), None);
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let first = queue.enter(at(1));
        let second = queue.enter(at(2));
        assert_eq!(queue.oldest(), Some(at(1)));
        drop(first);
        assert_eq!(queue.oldest(), Some(at(2)));
        let third = queue.enter(at(0));
        assert_eq!(queue.oldest(), Some(at(0)), "it waited before");
        drop((second, third));
        assert_eq!(queue.oldest(), None);
    }

    #[test]
    fn the_circuit_is_open_while_one_breaker_is() {
        let metrics = Arc::new(Metrics::default());
        let open = || {
            let page = text("f", &metrics.read());
            sample(&page, r#"ferry_circuit_open{name="f"} 1"#)
        };
        let (mut one, mut other) = (Circuit::new(&metrics), Circuit::new(&metrics));
        assert!(!open());
        one.set(true);
        one.set(true);
        other.set(true);
        one.set(false);
        assert!(open());
        drop(other);
        assert!(!open(), "a dropped breaker does not count");
    }
}
