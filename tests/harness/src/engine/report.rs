//! The results and the cost of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::input::BACKLOG;

/// The lost records, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The plugin answered ERROR.
    pub error: u64,
    /// The plugin answered RETRY once more than `Retry_Limit` allows.
    pub retry_limit: u64,
    /// Still pending when `Grace` was over at stop.
    pub stop: u64,
    /// Still pending when `Grace` was over at a hot reload.
    pub reload: u64,
    /// No output matched the tag.
    pub unmatched: u64,
}

impl Dropped {
    fn total(self) -> u64 {
        self.error + self.retry_limit + self.stop + self.reload + self.unmatched
    }

    fn add(&mut self, other: Self) {
        self.error += other.error;
        self.retry_limit += other.retry_limit;
        self.stop += other.stop;
        self.reload += other.reload;
        self.unmatched += other.unmatched;
    }
}

/// An input's results over the whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct InputReport {
    /// The log records in its chunks.
    pub records: u64,
    /// The bytes of its chunks.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// The number of pauses by `Mem_Buf_Limit`.
    pub pauses: u64,
    /// The records that no output matched.
    pub unmatched: u64,
}

/// An output's results over the whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OutputReport {
    /// The number of worker threads; with 0, flushes run on the engine's own.
    pub workers: usize,
    /// The records of chunks that were answered with OK.
    pub acknowledged: u64,
    /// The records of chunks that were answered with RETRY and scheduled again, counted each time.
    pub retried: u64,
    /// The lost records.
    pub dropped: Dropped,
    /// The chunks that were answered with OK.
    pub chunks: u64,
    /// The bytes of chunks that were answered with OK.
    pub bytes: u64,
    /// The number of flushes.
    pub flush_calls: u64,
    /// The number of flushes that were answered with RETRY.
    pub retries: u64,
    /// The duration of the flushes.
    pub flush_latency: Latency,
    /// The most stack used by a flush.
    pub stack_high_water_bytes: usize,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The maximum.
    pub max_ms: f64,
}

/// CPU time in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cpu {
    /// That of all threads, including the harness's own.
    pub process: f64,
    /// That of the threads that the library created.
    pub library_threads: f64,
}

/// The report, as written by `--report`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The exit status: 1 if a record was dropped, and otherwise 0.
    pub exit_status: u8,
    /// The time from the first instance's start to the last one's end.
    pub seconds: f64,
    /// The time from the signal to stop to the last output's end; 0 if the inputs ended by themselves.
    pub stopping_seconds: f64,
    /// The log records of the inputs.
    pub records_in: u64,
    /// The acknowledged records of all outputs.
    pub records_acknowledged: u64,
    /// The retried records of all outputs, counted each time.
    pub records_retried: u64,
    /// The lost records of all outputs, and those that no output matched.
    pub records_dropped: u64,
    /// The lost records, by reason.
    pub dropped: Dropped,
    /// The chunks of the inputs and of the backlog.
    pub chunks: u64,
    /// The chunks found on disk. One that a hot reload left there is counted again.
    pub backlog_chunks: u64,
    /// The chunks on disk at the end.
    pub chunks_left_on_disk: u64,
    /// The acknowledged chunks per second.
    pub chunks_per_second: f64,
    /// The bytes of acknowledged chunks per second.
    pub bytes_per_second: f64,
    /// The number of flushes of all outputs.
    pub flush_calls: u64,
    /// The number of flushes that were answered with RETRY, of all outputs.
    pub retries: u64,
    /// The duration of the flushes of all outputs.
    pub flush_latency: Latency,
    /// The CPU time.
    pub cpu_seconds: Cpu,
    /// The largest resident size of the process (`VmHWM`).
    pub peak_memory_bytes: u64,
    /// The most stack used by a flush, of all outputs.
    pub stack_high_water_bytes: usize,
    /// The stack size of a flush.
    pub coro_stack_bytes: usize,
    /// The number of hot reloads.
    pub reloads: u32,
    /// The threads other than the harness's own at the daemon's fork, which the child does not have.
    pub threads_lost_at_fork: usize,
    /// The library's threads that were still running after it was unloaded.
    pub threads_left_behind: usize,
    /// By name or alias.
    pub inputs: BTreeMap<String, InputReport>,
    /// By name or alias.
    pub outputs: BTreeMap<String, OutputReport>,
}

/// The counts of a run, over all reloads.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) inputs: BTreeMap<String, InputReport>,
    pub(crate) outputs: BTreeMap<String, OutputTally>,
}

pub(crate) struct OutputTally {
    pub(crate) report: OutputReport,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Default for OutputTally {
    fn default() -> Self {
        Self {
            report: OutputReport::default(),
            latency: new_histogram(),
        }
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are a valid precision")
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    let millis = |micros: u64| micros as f64 / 1e3;
    Latency {
        p50_ms: millis(histogram.value_at_quantile(0.5)),
        p99_ms: millis(histogram.value_at_quantile(0.99)),
        max_ms: millis(histogram.max()),
    }
}

impl Tally {
    /// Returns the report, except for what only the supervisor knows.
    pub(crate) fn report(self, seconds: f64) -> Report {
        let mut report = Report {
            seconds,
            peak_memory_bytes: peak_memory(),
            ..Report::default()
        };
        for input in self.inputs.values() {
            report.records_in += input.records;
            report.chunks += input.chunks;
            report.dropped.unmatched += input.unmatched;
        }
        report.backlog_chunks = self.inputs.get(BACKLOG).map_or(0, |input| input.chunks);
        let mut all = new_histogram();
        let (mut chunks, mut bytes) = (0, 0);
        for (name, output) in self.outputs {
            let mut one = output.report;
            one.flush_latency = latency(&output.latency);
            all.add(&output.latency).expect("both resize");
            report.records_acknowledged += one.acknowledged;
            report.records_retried += one.retried;
            report.dropped.add(one.dropped);
            report.flush_calls += one.flush_calls;
            report.retries += one.retries;
            report.stack_high_water_bytes = report
                .stack_high_water_bytes
                .max(one.stack_high_water_bytes);
            chunks += one.chunks;
            bytes += one.bytes;
            report.outputs.insert(name, one);
        }
        report.inputs = self.inputs;
        report.flush_latency = latency(&all);
        report.chunks_per_second = chunks as f64 / seconds;
        report.bytes_per_second = bytes as f64 / seconds;
        report.records_dropped = report.dropped.total();
        report.exit_status = u8::from(report.records_dropped > 0);
        report
    }
}

impl Report {
    /// Writes the JSON atomically, so that a process that waits for the file finds it complete.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let part = path.with_extension("part");
        fs::write(&part, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&part, path)
    }

    /// Formats the report as a table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(out, "{name:<22}{value}").expect("a string takes it");
        };
        let seconds = self.seconds;
        line(
            "records in",
            format!("{} in {} chunks", self.records_in, self.chunks),
        );
        for (name, input) in &self.inputs {
            let text = format!("{} records, {} pauses", input.records, input.pauses);
            line(&format!("  {name}"), text);
        }
        if self.backlog_chunks + self.chunks_left_on_disk > 0 {
            line(
                "on disk",
                format!(
                    "{} chunks found, {} left",
                    self.backlog_chunks, self.chunks_left_on_disk
                ),
            );
        }
        line("acknowledged", self.records_acknowledged.to_string());
        line(
            "retried",
            format!("{} records, {} calls", self.records_retried, self.retries),
        );
        let why = self.dropped;
        line(
            "dropped",
            format!(
                "{} (error {}, retry limit {}, stop {}, reload {}, unmatched {})",
                self.records_dropped,
                why.error,
                why.retry_limit,
                why.stop,
                why.reload,
                why.unmatched
            ),
        );
        for (name, output) in &self.outputs {
            let text = format!(
                "{} acknowledged, {} retried, {} dropped, {} workers",
                output.acknowledged,
                output.retried,
                output.dropped.total(),
                output.workers
            );
            line(&format!("  {name}"), text);
        }
        line(
            "throughput",
            format!(
                "{:.1} MB/s, {:.1} chunks/s over {seconds:.2} s",
                self.bytes_per_second / 1e6,
                self.chunks_per_second
            ),
        );
        let latency = self.flush_latency;
        line(
            "flush",
            format!(
                "{} calls; p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                self.flush_calls, latency.p50_ms, latency.p99_ms, latency.max_ms
            ),
        );
        let cpu = self.cpu_seconds;
        line(
            "CPU",
            format!(
                "{:.2} s, the library's threads {:.2} s",
                cpu.process, cpu.library_threads
            ),
        );
        line(
            "peak memory",
            format!("{:.1} MB", self.peak_memory_bytes as f64 / 1e6),
        );
        line(
            "stack high-water",
            format!(
                "{} of {} bytes",
                self.stack_high_water_bytes, self.coro_stack_bytes
            ),
        );
        line("reloads", self.reloads.to_string());
        if self.threads_lost_at_fork > 0 {
            line(
                "threads lost at fork",
                self.threads_lost_at_fork.to_string(),
            );
        }
        line("threads left behind", self.threads_left_behind.to_string());
        line("exit status", self.exit_status.to_string());
        out
    }
}

/// The counts of the progress line, written by the engine's thread.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) records_in: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// The chunks in flight.
    pub(crate) pending: AtomicU64,
}

impl Progress {
    /// Returns the line for a second, given the bytes of the second before.
    pub(crate) fn line(&self, second: u64, bytes_before: u64) -> String {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let rate = (read(&self.bytes) - bytes_before) as f64 / 1e6;
        format!(
            "{second:>5} s  in {}  acknowledged {}  retried {}  dropped {}  pending {} chunks  {rate:.1} MB/s",
            read(&self.records_in),
            read(&self.acknowledged),
            read(&self.retried),
            read(&self.dropped),
            read(&self.pending),
        )
    }
}

static OWN_THREADS: Mutex<BTreeSet<libc::pid_t>> = Mutex::new(BTreeSet::new());

fn own_threads() -> MutexGuard<'static, BTreeSet<libc::pid_t>> {
    OWN_THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers the calling thread as the harness's own, permanently, since an ended thread may still be listed for a
/// moment.
pub(crate) fn own_this_thread() {
    // SAFETY: gettid has no preconditions.
    own_threads().insert(unsafe { libc::gettid() });
}

/// Starts a thread that is registered as the harness's own.
pub(crate) fn spawn_own<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name).spawn(move || {
        own_this_thread();
        run()
    })
}

/// Returns the threads that the harness did not create.
pub(crate) fn foreign_threads() -> Vec<libc::pid_t> {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let ids = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    let own = own_threads();
    ids.filter(|id| !own.contains(id)).collect()
}

/// The CPU time of the library's threads. A thread's clock ends with it, so the clocks are read repeatedly: usage
/// between the last reading and the thread's end is lost.
#[derive(Default)]
pub(crate) struct LibraryCpu {
    now: BTreeMap<libc::pid_t, Duration>,
    ended: Duration,
}

impl LibraryCpu {
    /// Reads all clocks.
    pub(crate) fn sample(&mut self) {
        let alive = foreign_threads();
        self.now.retain(|id, used| {
            // A thread that registered as the harness's own after its first reading is not counted.
            let own = own_threads().contains(id);
            if !own && !alive.contains(id) {
                self.ended += *used;
            }
            !own && alive.contains(id)
        });
        for id in alive {
            if let Some(used) = thread_cpu(id) {
                self.now.insert(id, used);
            }
        }
    }

    /// Returns the total usage.
    pub(crate) fn total(&self) -> Duration {
        self.ended + self.now.values().sum::<Duration>()
    }
}

fn thread_cpu(id: libc::pid_t) -> Option<Duration> {
    // Linux's clock of a thread: its inverted id, with bit 2 for a thread, and 2 for CPU time.
    let clock = (!id << 3) | 6;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the write; an unknown clock is refused.
    let read = unsafe { libc::clock_gettime(clock, &mut time) };
    (read == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Returns the CPU time of the whole process.
pub(crate) fn process_cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the write.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
