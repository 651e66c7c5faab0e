//! What an instance did and how it stands, in figures: the one place where that is counted.
//!
//! Whoever does something counts it here, once for a request, a letter or a flush, never for an event. Who
//! shows the figures (the host's own page, [`endpoint`], a line in the log) reads [`Metrics::read`], which
//! gives every family with every label value from the start: [`FAMILIES`] is the one list of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

pub mod endpoint;

/// The values of a label: a counter for each.
pub trait Label: Copy {
    /// As they are shown.
    const VALUES: &'static [&'static str];
    /// Which of them this is.
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
    /// What became of log events.
    Record {
        /// Acknowledged by the destination.
        Delivered = "delivered",
        /// Kept as dead letters.
        DeadLetter = "dead_letter",
        /// Passed over, because they have no `log_key`.
        Skipped = "skipped",
        /// The answer to their request was lost, so they are sent again. Firehose may have them twice.
        Ambiguous = "ambiguous",
        /// Came again with their chunk after they were settled, and were not sent again.
        Suppressed = "suppressed",
    }
}

label! {
    /// Where bytes are counted.
    Stage {
        /// Msgpack that was taken from the host, once it is answered OK.
        Raw = "raw",
        /// Lines made from it; lines that are made again count again.
        Encoded = "encoded",
        /// Payload that the destination acknowledged, compressed where it is.
        Sent = "sent",
        /// What Firehose bills for that.
        Billed = "billed",
    }
}

label! {
    /// What became of a request.
    Request {
        /// All of it was taken.
        Ok = "ok",
        /// Some of its records were taken.
        Partial = "partial",
        /// The destination asks for less.
        Throttled = "throttled",
        /// A fault that passes by itself.
        Transient = "transient",
        /// Its answer was lost: perhaps it was taken.
        Ambiguous = "ambiguous",
        /// The credentials were not taken.
        Credentials = "credentials",
        /// A person has to mend something.
        Configuration = "configuration",
        /// What is in it is not taken as it is.
        Rejected = "rejected",
    }
}

label! {
    /// Why something became a dead letter.
    Reason {
        /// Not a whole event.
        Malformed = "malformed",
        /// Nested too deep to be written.
        TooDeep = "too_deep",
        /// Larger than the destination takes.
        TooLarge = "too_large",
        /// The destination refused it for what is in it.
        Refused = "refused",
    }
}

impl Reason {
    /// As it stands in a letter.
    pub fn as_str(self) -> &'static str {
        Self::VALUES[self.index()]
    }
}

label! {
    /// Why an object was sealed.
    Sealed {
        /// `blob_max_size` was reached.
        Size = "size",
        /// `blob_max_age` was reached.
        Age = "age",
        /// Memory, the number of open objects, or the spool was at its bound.
        Memory = "memory",
        /// We stopped, or an earlier run did before the object was written.
        Stop = "stop",
        /// In direct mode each flush makes its own.
        Flush = "flush",
    }
}

label! {
    /// What the host was answered.
    Flush {
        /// The chunk is safe.
        Ok = "ok",
        /// The host keeps it.
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
    /// Counts `more`.
    pub fn add(&self, label: L, more: u64) {
        self.each[label.index()].fetch_add(more, Relaxed);
    }

    /// What was counted.
    pub fn get(&self, label: L) -> u64 {
        self.each[label.index()].load(Relaxed)
    }

    /// All of it together.
    pub fn sum(&self) -> u64 {
        self.each.iter().map(|count| count.load(Relaxed)).sum()
    }

    fn read(&self) -> Values {
        let each = self.each.iter();
        Values::Each(each.map(|count| Some(count.load(Relaxed) as f64)).collect())
    }
}

/// A count without a label.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// What was counted.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn read(&self) -> Values {
        Values::Each(vec![Some(self.get() as f64)])
    }
}

/// How something stands; there may be nothing to tell.
#[derive(Debug)]
pub struct Gauge(AtomicU64);

impl Default for Gauge {
    fn default() -> Self {
        Gauge(AtomicU64::new(0f64.to_bits()))
    }
}

impl Gauge {
    /// It stands so now.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// There is nothing to tell now.
    pub fn unset(&self) {
        self.set(f64::NAN);
    }

    /// How it stands.
    pub fn get(&self) -> Option<f64> {
        let value = f64::from_bits(self.0.load(Relaxed));
        (!value.is_nan()).then_some(value)
    }

    fn read(&self) -> Values {
        Values::Each(vec![self.get()])
    }
}

/// How many of something there are at a time.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU64);

/// One of a [`InFlight`], until it is dropped.
#[derive(Debug)]
pub struct InFlightGuard<'c>(&'c InFlight);

impl InFlight {
    /// There is one more.
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

/// Those who wait, and since when the one does that waits longest.
#[derive(Debug, Default)]
pub struct Queue(Mutex<(u64, BTreeMap<u64, Instant>)>);

/// One who waits, until it is dropped.
#[derive(Debug)]
pub struct Waiter<'q> {
    queue: &'q Queue,
    number: u64,
}

impl Queue {
    /// Somebody waits from now on.
    pub fn enter(&self) -> Waiter<'_> {
        let mut queue = self.0.lock().expect("nothing panics with this lock");
        let number = queue.0;
        queue.0 += 1;
        queue.1.insert(number, Instant::now());
        Waiter {
            queue: self,
            number,
        }
    }

    /// Since when the first waits.
    pub fn oldest(&self) -> Option<Instant> {
        let queue = self.0.lock().expect("nothing panics with this lock");
        queue.1.values().next().copied()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut queue = self.queue.0.lock().expect("nothing panics with this lock");
        queue.1.remove(&self.number);
    }
}

/// The upper bounds of the buckets of [`Histogram`], in seconds.
pub const BUCKETS: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// How long things took.
#[derive(Debug, Default)]
pub struct Histogram {
    /// How many ended in each bucket; the last is for what took longer than all bounds.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// Something took so long.
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

/// All figures of one instance.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Log events.
    pub records: Counters<Record>,
    /// Bytes on their way.
    pub bytes: Counters<Stage>,
    /// Requests that ended.
    pub requests: Counters<Request>,
    /// How long each took.
    pub request_times: Histogram,
    /// Records, or objects, that the destination turned away to slow us down.
    pub throttled: Counter,
    /// Letters that were written.
    pub letters: Counters<Reason>,
    /// Objects that were written.
    pub objects: Counters<Sealed>,
    /// Flushes that were answered.
    pub flushes: Counters<Flush>,
    /// Requests under way.
    pub in_flight: InFlight,
    /// Requests there may be under way.
    pub in_flight_limit: Gauge,
    /// Bytes held in memory.
    pub memory: Gauge,
    /// Bytes there may be.
    pub memory_limit: Gauge,
    /// Bytes of the spool.
    pub spool: Gauge,
    /// Bytes there may be.
    pub spool_limit: Gauge,
    /// Chunks of the spool whose file is not there.
    pub missing_chunks: Gauge,
    /// Seconds since the oldest record came that is not delivered.
    pub oldest: Gauge,
    /// Log events of the spool that wait to become dead letters.
    pub waiting_letters: Gauge,
    /// Bytes of dead letters.
    pub letter_bytes: Gauge,
    /// Bytes there may be.
    pub letter_limit: Gauge,
    /// Breakers that are open.
    pub open_circuits: InFlight,
    /// Seconds until the credentials expire, where they do.
    pub credentials: Gauge,

    // What only a person who reads the last lines of a run, at level debug, wants to know.
    /// Chunks that a killed host handed over again, and that were in the spool already.
    pub replayed_chunks: Counter,
    /// Chunks that were damaged in the spool, or are set aside since the process ended at them.
    pub corrupt_chunks: Counter,
    /// Those of them whose bytes lie in its quarantine.
    pub quarantined_chunks: Counter,

    // What other figures are made from.
    /// Flushes that wait for the destination.
    pub waiting: Queue,
    /// Bytes of what was read from the spool and of open objects.
    pub spooled: Gauge,
}

/// How a family's figures behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while an instance runs, and begins at 0 with it.
    Counter,
    /// Stands at something.
    Gauge,
    /// [`Values::Times`].
    Histogram,
}

/// Figures that go by one name.
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// The label that tells its figures apart, and the label's values.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// What it says.
    pub help: &'static str,
    read: fn(&Metrics) -> Values,
}

/// A family's figures.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// One for each value of its label, or a single one. `None`: there is nothing to tell.
    Each(Vec<Option<f64>>),
    /// A histogram's.
    Times {
        /// How many took at most each of [`BUCKETS`], and how many there are.
        up_to: Vec<u64>,
        /// What all took together.
        seconds: f64,
    },
}

/// A family as it stands.
pub struct Figure {
    /// Which.
    pub family: &'static Family,
    /// How it stands.
    pub values: Values,
}

/// Every family there is.
pub static FAMILIES: &[Family] = &[
    Family {
        name: "ferry_records_total",
        kind: Kind::Counter,
        label: Some(("result", Record::VALUES)),
        help: "Log events, by what became of them",
        read: |metrics| metrics.records.read(),
    },
    Family {
        name: "ferry_bytes_total",
        kind: Kind::Counter,
        label: Some(("stage", Stage::VALUES)),
        help: "Bytes: msgpack taken, lines encoded, payload acknowledged, and billed by Firehose",
        read: |metrics| metrics.bytes.read(),
    },
    Family {
        name: "ferry_requests_total",
        kind: Kind::Counter,
        label: Some(("result", Request::VALUES)),
        help: "Requests that carry records, by what became of them",
        read: |metrics| metrics.requests.read(),
    },
    Family {
        name: "ferry_request_duration_seconds",
        kind: Kind::Histogram,
        label: None,
        help: "Time from the beginning of a request to its answer",
        read: |metrics| metrics.request_times.read(),
    },
    Family {
        name: "ferry_throttled_records_total",
        kind: Kind::Counter,
        label: None,
        help: "Records or objects that the destination turned away to slow the sender down",
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
        help: "Objects written, by why each was sealed",
        read: |metrics| metrics.objects.read(),
    },
    Family {
        name: "ferry_flushes_total",
        kind: Kind::Counter,
        label: Some(("result", Flush::VALUES)),
        help: "Chunks handed over by Fluent Bit, by the answer given",
        read: |metrics| metrics.flushes.read(),
    },
    Family {
        name: "ferry_requests_in_flight",
        kind: Kind::Gauge,
        label: None,
        help: "Requests under way",
        read: |metrics| metrics.in_flight.read(),
    },
    Family {
        name: "ferry_requests_limit",
        kind: Kind::Gauge,
        label: None,
        help: "Requests that may be under way: concurrency, or what it has adapted to",
        read: |metrics| metrics.in_flight_limit.read(),
    },
    Family {
        name: "ferry_bytes_in_flight",
        kind: Kind::Gauge,
        label: None,
        help: "Bytes held in memory, as they are counted against memory_limit",
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
        help: "Chunks that were accepted and whose file somebody took out of the spool's folder",
        read: |metrics| metrics.missing_chunks.read(),
    },
    Family {
        name: "ferry_oldest_unsent_seconds",
        kind: Kind::Gauge,
        label: None,
        help: "How long the oldest record that is taken and not delivered has waited; 0 when none waits",
        read: |metrics| metrics.oldest.read(),
    },
    Family {
        name: "ferry_dead_letters_waiting",
        kind: Kind::Gauge,
        label: None,
        help: "Log events in the spool that cannot become dead letters, since the folder is full or cannot be written",
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
        help: "1 while a destination takes nothing and is only probed",
        read: |metrics| {
            let open = u8::from(metrics.circuit_is_open());
            Values::Each(vec![Some(open.into())])
        },
    },
    Family {
        name: "ferry_credentials_expiry_seconds",
        kind: Kind::Gauge,
        label: None,
        help: "Seconds until the credentials expire; 0 when they have; below 0 or absent where they do not",
        read: |metrics| metrics.credentials.read(),
    },
];

/// The label that every figure has beside its own: the output's name.
pub const NAME_LABEL: &str = "name";

impl Metrics {
    /// Whether a destination takes nothing.
    pub fn circuit_is_open(&self) -> bool {
        self.open_circuits.0.load(Relaxed) > 0
    }

    /// Every family as it stands.
    pub fn read(&self) -> Vec<Figure> {
        let read = |family: &'static Family| Figure {
            family,
            values: (family.read)(self),
        };
        FAMILIES.iter().map(read).collect()
    }
}

/// A breaker's part in [`Metrics::open_circuits`]: it ends with its sender, however that ends.
#[derive(Debug)]
pub struct Circuit {
    metrics: Arc<Metrics>,
    open: bool,
}

impl Circuit {
    /// One that is closed.
    pub fn new(metrics: &Arc<Metrics>) -> Circuit {
        Circuit {
            metrics: Arc::clone(metrics),
            open: false,
        }
    }

    /// It stands so now.
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

/// The page that the host shows figures on.
pub trait MetricsPage: Send + Sync {
    /// What the host calls this output there.
    fn name(&self) -> Option<String>;

    /// Puts every figure up, with every label it will ever have. Called once, in the host's own time for
    /// that. False: there is no such page.
    fn register(&self, name: &str, figures: &[Figure]) -> bool;

    /// Shows how the figures stand now.
    fn show(&self, figures: &[Figure]);

    /// Nothing is shown from here on: the page is gone.
    fn close(&self);
}

/// Figures in Prometheus's text format, all with the label `name`.
pub fn text(name: &str, figures: &[Figure]) -> String {
    let mut text = String::with_capacity(8 * 1024);
    let mut named = String::from(NAME_LABEL);
    named.push_str("=\"");
    for c in name.chars() {
        match c {
            '\\' => named.push_str("\\\\"),
            '"' => named.push_str("\\\""),
            '\n' => named.push_str("\\n"),
            c => named.push(c),
        }
    }
    named.push('"');
    for Figure { family, values } in figures {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let Family {
            name, help, label, ..
        } = family;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        match values {
            Values::Each(each) => {
                for (at, value) in each.iter().enumerate() {
                    let Some(value) = value else { continue };
                    let _ = match label {
                        Some((key, words)) => {
                            writeln!(text, "{name}{{{named},{key}=\"{}\"}} {value}", words[at])
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

/// Figures in one line of a log: `records_total.delivered=12 … requests_in_flight=1`.
pub fn line(figures: &[Figure]) -> String {
    let mut line = String::from("metrics:");
    for Figure { family, values } in figures {
        let name = family.name.trim_start_matches("ferry_");
        match values {
            Values::Each(each) => {
                for (at, value) in each.iter().enumerate() {
                    let Some(value) = value else { continue };
                    let _ = match family.label {
                        Some((_, words)) => write!(line, " {name}.{}={value}", words[at]),
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
    fn every_family_has_a_name_of_its_own_that_tells_what_it_counts() {
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
    fn every_label_value_is_shown_before_anything_happened() {
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
    fn what_is_counted_is_what_is_shown() {
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
        let said = line(&metrics.read());
        for expected in [
            "metrics: records_total.delivered=42 ",
            " dead_letters_total.too_deep=1 ",
            " requests_in_flight=0 ",
            " request_duration_seconds.count=0 request_duration_seconds.sum=0 ",
        ] {
            assert!(said.contains(expected), "{expected} in {said}");
        }
        assert!(!said.contains('\n'));
    }

    #[test]
    fn what_there_is_nothing_to_tell_of_is_left_out() {
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
    fn the_one_that_waits_longest_is_known_whatever_order_they_leave_in() {
        let queue = Queue::default();
        assert_eq!(queue.oldest(), None);
        let first = queue.enter();
        let since = queue.oldest();
        let second = queue.enter();
        assert_eq!(queue.oldest(), since);
        drop(first);
        assert!(queue.oldest() > since);
        drop(second);
        assert_eq!(queue.oldest(), None);
    }

    #[test]
    fn the_circuit_is_open_while_one_sender_finds_it_so() {
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
        assert!(!open(), "a sender that ended says nothing any more");
    }
}
