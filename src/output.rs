//! One configured output: start, flush, stop.

use std::convert::Infallible;
use std::future::pending;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout, timeout_at};

use crate::codec::time::{now, utc};
#[cfg(feature = "firehose")]
use crate::compress::Compression;
use crate::config::keys::{self, IdleKey};
use crate::config::{Config, Destination, Problem, Properties};
use crate::delivery::Pipeline;
use crate::delivery::dead_letter::DeadLetters;
use crate::delivery::identity::{Identity, Machine, Origin};
use crate::ids::{Time, Verdict};
use crate::log::{Level, Log, Output, size};
use crate::metrics::health::{self, Health};
use crate::metrics::{self, MetricsPage, endpoint};
use crate::sink::Sink;
#[cfg(feature = "firehose")]
use crate::sink::aws;
use crate::sink::blob::BlobSink;
#[cfg(feature = "firehose")]
use crate::sink::firehose::FirehoseSink;
use crate::spool::disk::{LocalDisk, says_remedy};
use crate::spool::stranded::ForeignFiles;
use crate::spool::{self, Recovered, Spool, Usage};

/// The maximum number of worker threads. Sending waits on the network and encoding is short: more threads would only
/// take cores from the application.
const MAX_THREADS: usize = 2;

/// The part of `exit_deadline` (at least 1 s) that is reserved for ending the threads.
const SHUTDOWN_TIME: Duration = Duration::from_millis(500);

/// The interval at which a waiting flush checks whether the host was asked to end.
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The interval between updates of the host's metrics page.
const PAGE_INTERVAL: Duration = Duration::from_secs(1);
/// The interval between checks of the dead-letter folder.
const LETTERS_INTERVAL: Duration = Duration::from_secs(30);
/// The same if health is served: what a person made room for is seen within ten seconds.
const LETTERS_HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// The interval at which health is noted.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// The interval between checks of the spool's files.
const SPOOL_INTERVAL: Duration = Duration::from_secs(1);
/// The default interval between metrics in the log, if the host has no metrics page.
const METRICS_LOG_INTERVAL: Duration = Duration::from_secs(300);

/// The interval at which [`Instance::deliver`] reports.
const DELIVER_INTERVAL: Duration = Duration::from_millis(250);

/// What became of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The number that the destination acknowledged.
    pub delivered: u64,
    /// The number that became dead letters.
    pub dead_letters: u64,
    /// The number that were sent again after a lost response.
    pub ambiguous: u64,
}

/// Returns when the host was first seen to be asked to end, if it was and that is visible.
pub type AskedToEnd = Arc<dyn Fn() -> Option<std::time::Instant> + Send + Sync>;

/// A running output.
pub struct Instance {
    jobs: mpsc::UnboundedSender<Job>,
    running: Mutex<Option<Running>>,
    pipeline: Arc<Pipeline>,
    log: Arc<Log>,
    exit_deadline: Duration,
    warned_engine_thread: AtomicBool,
}

/// The parts of an instance that end when it stops.
struct Running {
    runtime: Runtime,
    /// The spool, and the task that delivers from it, until it has ended.
    spool: Option<(Arc<Spool>, Option<JoinHandle<()>>)>,
    /// The host's metrics page, if it has one.
    page: Option<Arc<dyn MetricsPage>>,
    /// The lock on the origin's id. Released on drop, so that the next instance can take it.
    _origin: Option<Origin>,
}

/// A flush, sent from the host's thread to the runtime.
struct Job {
    tag: Box<[u8]>,
    data: Bytes,
    reply: std::sync::mpsc::SyncSender<Verdict>,
    on_engine_thread: bool,
}

impl Instance {
    /// Reads the configuration and starts an instance. Returns `None` after logging all configuration problems at once.
    /// `page` is the host's metrics page, if it has one.
    ///
    /// The host waits for pending flushes before it calls the output's exit, so that call comes too late to end them.
    /// Once `asked` reports that the host was asked to end, they have `exit_deadline` left.
    pub fn start(
        properties: &dyn Properties,
        output: Box<dyn Output>,
        page: Option<Arc<dyn MetricsPage>>,
        asked: AskedToEnd,
    ) -> Option<Instance> {
        let idle = keys::idle_keys(properties);
        let config = match Config::read(properties) {
            Ok(config) => config,
            Err(problems) => {
                let log = Log::new(output, "ferry");
                warn_of_idle_keys(&log, &idle);
                refuse(&log, &problems);
                return None;
            }
        };
        let log = Arc::new(Log::new(output, &format!("ferry:{}", config.instance)));
        warn_of_idle_keys(&log, &idle);
        match Self::start_with(config, &log, page, asked) {
            Ok(instance) => Some(instance),
            Err(problem) => {
                refuse(&log, &[problem]);
                None
            }
        }
    }

    fn start_with(
        config: Config,
        log: &Arc<Log>,
        page: Option<Arc<dyn MetricsPage>>,
        asked: AskedToEnd,
    ) -> Result<Instance, Problem> {
        let spool = open_spool(&config)?;
        if let Err(error) = config.claim_folder() {
            log.write(
                Level::Warn,
                &format!(
                    "the folder of the spool cannot be marked as this output's: {error}; another output into the same \
                     bucket may take it, if it starts first"
                ),
            );
        }
        let letters = DeadLetters::open(&config.dead_letter_dir, config.dead_letter_limit)
            .map_err(|error| {
                let message = match ForeignFiles::find(&config.dead_letter_dir) {
                    Some(foreign) => format!("{}; {}", foreign.problem(), foreign.remedy()),
                    None => format!(
                        "'{}' cannot be written: {error}; name a folder that this user may write to",
                        config.dead_letter_dir.display()
                    ),
                };
                Problem::new(keys::DEAD_LETTER_DIR.name, message)
            })?;
        let listener = listen(&config)?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("ferry")
            .enable_all()
            .build()
            .map_err(|error| Problem {
                key: keys::INSTANCE.name,
                message: format!("no threads could be started: {error}; raise the limit of processes (TasksMax=, ulimit -u)"),
            })?;
        let sink = runtime.block_on(sink(&config, log))?;
        log.write(Level::Info, &config.summary());
        log.write(Level::Debug, &config.details());
        if let Some(line) = config.first_object() {
            log.write(Level::Info, &line);
        }
        let used = spool.as_ref().map_or(0, |(spool, _)| spool.usage().bytes);
        warn_of_small_disk(&config, used, letters.last_usage().bytes, log);
        let exit_deadline = config.exit_deadline;
        let ready_after = config.ready_after;
        let log_interval = config.metrics_log_interval;
        let name = page.as_ref().and_then(|page| page.name());
        let origin = origin(&config, name.as_deref(), log);
        let identity = match &origin {
            Some(origin) => origin.identity(),
            None => Identity::of_this_run(),
        };
        let name = name.unwrap_or_else(|| config.instance.clone());
        let pipeline = Pipeline::new(config, sink, letters, identity, Arc::clone(log));
        let pipeline = Arc::new(pipeline);
        let (jobs, accepted) = mpsc::unbounded_channel();
        let end = End {
            asked,
            // The rest is for the host, which proceeds in steps of a second.
            after: exit_deadline * 3 / 4,
            pipeline: Arc::clone(&pipeline),
        };
        runtime.spawn(accept(accepted, Arc::new(end)));
        let spool = spool.map(|(spool, recovered)| {
            let _inside = runtime.enter();
            let feed = pipeline.feed_from(Arc::clone(&spool), recovered);
            (spool, Some(feed))
        });
        let page = page.filter(|page| page.register(&name, &pipeline.figures()));
        if page.is_none() {
            log.write(
                Level::Debug,
                "this host has no metrics page for outputs: find the metrics in the log, or set metrics_listen",
            );
        }
        let log_interval = log_interval.unwrap_or(match page {
            Some(_) => Duration::ZERO,
            None => METRICS_LOG_INTERVAL,
        });
        if !log_interval.is_zero() {
            let (pipeline, log) = (Arc::clone(&pipeline), Arc::clone(log));
            runtime.spawn(every(log_interval, move || {
                log.write(Level::Info, &metrics::line(&pipeline.figures()));
            }));
        }
        if let Some(page) = &page {
            let (pipeline, page) = (Arc::clone(&pipeline), Arc::clone(page));
            runtime.spawn(every(PAGE_INTERVAL, move || page.show(&pipeline.figures())));
        }
        if spool.is_some() {
            let look = Arc::clone(&pipeline);
            runtime.spawn(every(SPOOL_INTERVAL, move || look.check_spool()));
        }
        let look = Arc::clone(&pipeline);
        runtime.spawn(async move { look.watch_stranded().await });
        let look = Arc::clone(&pipeline);
        runtime.spawn(every(LETTERS_INTERVAL, move || {
            look.check_letters();
            look.check_disk();
        }));
        if let Some(listener) = listener {
            log_listener(&listener, log);
            let pages = Arc::new(Pages {
                name,
                ready_after,
                pipeline: Arc::clone(&pipeline),
                state: Mutex::new((true, now())),
            });
            // Also while nobody asks: the times in the answers count from what is seen here.
            let look = Arc::clone(&pages);
            runtime.spawn(every(HEALTH_INTERVAL, move || {
                look.look();
            }));
            let look = Arc::clone(&pipeline);
            runtime.spawn(every(LETTERS_HEALTH_INTERVAL, move || look.check_letters()));
            runtime.spawn(endpoint::serve(listener, pages));
        }
        Ok(Instance {
            jobs,
            running: Mutex::new(Some(Running {
                runtime,
                spool,
                page,
                _origin: origin,
            })),
            pipeline,
            log: Arc::clone(log),
            exit_deadline,
            warned_engine_thread: AtomicBool::new(false),
        })
    }

    /// Flushes one chunk and waits for its verdict. Runs on the host's small coroutine stack, so it only sends the job
    /// to the runtime and waits. `on_engine_thread`: the whole host waits meanwhile.
    pub fn flush(&self, tag: &[u8], data: Bytes, on_engine_thread: bool) -> Verdict {
        let warn = on_engine_thread
            && self.pipeline.is_direct()
            && !self.warned_engine_thread.swap(true, Ordering::Relaxed);
        let (reply, verdict) = std::sync::mpsc::sync_channel(1);
        let job = Job {
            tag: tag.into(),
            data,
            reply,
            on_engine_thread: warn,
        };
        if self.jobs.send(job).is_err() {
            return Verdict::Retry;
        }
        // If the job is dropped, for whatever reason, its sender is too, and the answer is RETRY.
        let verdict = verdict.recv().unwrap_or(Verdict::Retry);
        let answer = match verdict {
            Verdict::Ok => metrics::Flush::Ok,
            Verdict::Retry => metrics::Flush::Retry,
        };
        self.pipeline.metrics().flushes.add(answer, 1);
        verdict
    }

    /// Delivers everything in the spool and ends then. `watch` is called about four times a second with what the spool
    /// holds; if it returns false, the delivery ends early. The caller stops the instance, which says what is left.
    pub fn deliver(&self, watch: &mut dyn FnMut(&Usage) -> bool) {
        let mut running = self.running.lock().expect("nothing panics with this lock");
        let Some(Running {
            runtime,
            spool: Some((spool, feed)),
            ..
        }) = running.as_mut()
        else {
            return;
        };
        self.pipeline.drain();
        while let Some(task) = feed {
            let step = runtime.block_on(async { timeout(DELIVER_INTERVAL, task).await });
            if step.is_ok() {
                *feed = None;
            }
            if !watch(&spool.usage()) {
                break;
            }
        }
    }

    /// Stops, like [`Instance::stop`], and returns what is left in the spool, if there is one, and its totals.
    pub fn stop_and_sum_up(&self) -> (Option<Usage>, Totals) {
        self.stop();
        let records = |result| self.pipeline.metrics().records.get(result);
        let totals = Totals {
            delivered: records(metrics::Record::Delivered),
            dead_letters: records(metrics::Record::DeadLetter),
            ambiguous: records(metrics::Record::Ambiguous),
        };
        (self.pipeline.spool_usage(), totals)
    }

    /// Logs a panic, which is a bug. The affected flushes answer RETRY.
    pub fn log_panic(&self, panic: &str) {
        self.log.write(
            Level::Error,
            &format!("a bug in Ferry, please report it: {panic}"),
        );
    }

    /// Stops within `exit_deadline` and joins all threads. Pending flushes answer RETRY; open objects of the spool are
    /// sealed and sent as far as time allows, and the rest stays in the spool.
    pub fn stop(&self) {
        let running = self
            .running
            .lock()
            .expect("nothing panics with this lock")
            .take();
        if let Some(Running {
            runtime,
            spool,
            page,
            _origin,
        }) = running
        {
            let deadline = Instant::now() + self.exit_deadline;
            if let Some((spool, feed)) = spool {
                self.pipeline.drain();
                let drained = match feed {
                    Some(mut feed) => runtime
                        .block_on(async { timeout_at(deadline - SHUTDOWN_TIME, &mut feed).await })
                        .is_ok(),
                    None => true,
                };
                if !drained {
                    self.log.write(
                        Level::Warn,
                        &format!(
                            "not everything was delivered within exit_deadline ({} s): the rest stays in the \
                             spool and is delivered by the next start",
                            self.exit_deadline.as_secs()
                        ),
                    );
                }
                // Requests in flight are aborted; the spool has recorded their beginning.
                runtime.shutdown_timeout(SHUTDOWN_TIME);
                spool.close();
                self.pipeline.check_spool();
            } else {
                self.pipeline.end_flushes(Instant::now());
                runtime.shutdown_timeout(self.exit_deadline);
            }
            if let Some(page) = page {
                page.show(&self.pipeline.figures());
                page.close();
            }
            self.log.write(
                Level::Info,
                &format!("stopped: {}", self.pipeline.summary()),
            );
            self.log.write(Level::Debug, &self.pipeline.details());
        }
        self.log.close();
    }
}

/// Calls `act` at an interval, until the runtime ends.
async fn every(period: Duration, act: impl Fn()) {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        act();
    }
}

/// Binds the address at which metrics are served, if one is configured.
fn listen(config: &Config) -> Result<Option<TcpListener>, Problem> {
    let Some(address) = config.metrics_listen else {
        return Ok(None);
    };
    endpoint::bind(address).map(Some).map_err(|error| {
        Problem::new(
            keys::METRICS_LISTEN.name,
            format!(
                "cannot listen on '{address}': {error}; give each output an address of its own that no other program \
                 uses, or remove the key"
            ),
        )
    })
}

fn log_listener(listener: &TcpListener, log: &Log) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    log.write(
        Level::Info,
        &format!("metrics are at http://{address}/metrics, health at /ready and /status.json"),
    );
    if !address.ip().is_loopback() {
        log.write(
            Level::Warn,
            &format!(
                "metrics_listen {address} can be reached from other machines, which can then read the metrics; \
                 127.0.0.1:{} restricts it to this machine",
                address.port()
            ),
        );
    }
}

/// Opens and recovers the spool, if one is configured. Only an unusable folder is a problem, never its contents.
fn open_spool(config: &Config) -> Result<Option<(Arc<Spool>, Recovered)>, Problem> {
    let Some(place) = &config.spool else {
        return Ok(None);
    };
    let dir = place.dir.display();
    let problem = |error: std::io::Error| {
        let foreign = match error.kind() {
            std::io::ErrorKind::WouldBlock => None,
            _ => ForeignFiles::find(&place.dir),
        };
        let message = if let Some(foreign) = foreign {
            format!("{}: {error}; {}", foreign.problem(), foreign.remedy())
        } else if error.kind() == std::io::ErrorKind::WouldBlock {
            format!(
                "'{dir}' is in use by another instance or process: give each output its own spool_dir, or its own \
                 instance name"
            )
        } else if says_remedy(&error) {
            format!("'{dir}' cannot be used: {error}")
        } else {
            format!(
                "'{dir}' cannot be used: {error}; it must be a folder on a local disk that this user may write to. If it \
                 already holds a spool, chunks accepted there are not delivered from another folder"
            )
        };
        Problem::new(keys::SPOOL_DIR.name, message)
    };
    let disk = LocalDisk::open(&place.dir).map_err(problem)?;
    let options = spool::Options {
        limit: place.limit,
        segment_bytes: None,
    };
    Spool::open(Arc::new(disk), options)
        .map(Some)
        .map_err(problem)
}

/// The origin of objects sent to a blob store without a spool; in other modes object names do not depend on it.
/// `output` is the host's name for this output.
fn origin(config: &Config, output: Option<&str>, log: &Log) -> Option<Origin> {
    let (Destination::Blob { .. }, None) = (&config.destination, &config.spool) else {
        return None;
    };
    let origin = Origin::open(
        &config.dead_letter_dir,
        &Machine::here(),
        &config.instance,
        output.unwrap_or_default(),
    );
    if let Some(warning) = origin.warning() {
        log.write(Level::Warn, warning);
    }
    Some(origin)
}

/// Warns of limits that the disk does not reach: it would be full first, for everybody. `spool` and `letters` are the bytes
/// that count towards the limits already.
fn warn_of_small_disk(config: &Config, spool: u64, letters: u64, log: &Log) {
    let spool = config
        .spool
        .as_ref()
        .map(|place| (keys::SPOOL_LIMIT.name, &place.dir, place.limit, spool));
    let letters = (
        keys::DEAD_LETTER_LIMIT.name,
        &config.dead_letter_dir,
        config.dead_letter_limit,
        letters,
    );
    for (key, dir, limit, used) in spool.into_iter().chain([letters]) {
        let Ok(space) = rustix::fs::statvfs(dir) else {
            continue;
        };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if let Some(line) = small_disk(key, dir, limit, used, free) {
            log.write(Level::Warn, &line);
        }
    }
}

/// Returns the warning of a limit that is larger than what is `used` of it and what is `free`.
fn small_disk(key: &str, dir: &Path, limit: u64, used: u64, free: u64) -> Option<String> {
    if limit.saturating_sub(used) <= free {
        return None;
    }
    let quarter = (used + free) / 4 / 1_000_000;
    let remedy = match quarter {
        // The smallest limit of a spool.
        16.. => format!("write {key} {quarter}M, a quarter of it, or free some space"),
        _ => "free some space".to_owned(),
    };
    Some(format!(
        "the disk of '{}' has {} free, less than {key} ({}) still allows: it is full before the limit is reached; {remedy}",
        dir.display(),
        size(free),
        size(limit),
    ))
}

fn warn_of_idle_keys(log: &Log, idle: &[IdleKey]) {
    for key in idle {
        log.write(Level::Warn, &format!("configuration: {}", key.message));
    }
}

fn refuse(log: &Log, problems: &[Problem]) {
    for problem in problems {
        log.write(Level::Error, &format!("configuration: {problem}"));
    }
}

async fn sink(config: &Config, log: &Arc<Log>) -> Result<Arc<dyn Sink>, Problem> {
    match &config.destination {
        #[cfg(not(feature = "firehose"))]
        Destination::Firehose(_) => Err(Problem::new(
            keys::DELIVERY_STREAM.name,
            "this build of Ferry does not support Firehose: use one with the feature firehose",
        )),
        #[cfg(feature = "firehose")]
        Destination::Firehose(firehose) => {
            let aws = aws::load(&firehose.aws, firehose.ca_pem.as_deref()).await?;
            Ok(Arc::new(FirehoseSink::new(
                &aws,
                firehose.aws.endpoint.as_deref(),
                firehose.aggregation,
                config.compression != Compression::None,
                Arc::clone(log),
            )))
        }
        Destination::Blob { blob, .. } => {
            let warnings = Arc::clone(log);
            let sink = BlobSink::new(
                blob,
                Arc::new(move |line: &str| warnings.write(Level::Warn, line)),
            )?;
            Ok(Arc::new(sink))
        }
    }
}

/// What is served at `metrics_listen`.
struct Pages {
    /// The output's name.
    name: String,
    ready_after: Duration,
    pipeline: Arc<Pipeline>,
    /// Whether the output was ready when last seen, and since when.
    state: Mutex<(bool, Time)>,
}

impl Pages {
    /// Returns the health, the reasons why the output is not ready, and since when it is ready or not.
    fn look(&self) -> (Health, Vec<String>, Time) {
        let health = self.pipeline.health();
        let reasons = health.reasons(self.ready_after);
        let mut state = self.state.lock().expect("nothing panics with this lock");
        if state.0 != reasons.is_empty() {
            *state = (reasons.is_empty(), now());
        }
        (health, reasons, state.1)
    }
}

impl endpoint::Pages for Pages {
    fn metrics(&self) -> String {
        metrics::text(&self.name, &self.pipeline.figures())
    }

    fn ready(&self) -> (bool, String) {
        health::ready(&self.look().1)
    }

    fn status(&self) -> String {
        let (health, reasons, since) = self.look();
        let since = utc(since).format("%FT%TZ").to_string();
        health.status(&self.name, &reasons, &since)
    }
}

async fn accept(mut jobs: mpsc::UnboundedReceiver<Job>, end: Arc<End>) {
    while let Some(job) = jobs.recv().await {
        let end = Arc::clone(&end);
        tokio::spawn(async move {
            let pipeline = &end.pipeline;
            if job.on_engine_thread {
                pipeline.log_engine_thread();
            }
            let verdict = tokio::select! {
                biased;
                never = end.watch() => match never {},
                verdict = pipeline.flush(&job.tag, job.data) => verdict,
            };
            // Fails if the caller has gone, and the verdict is not needed.
            let _ = job.reply.send(verdict);
        });
    }
}

/// Bounds the time that flushes take once the host was asked to end.
struct End {
    asked: AskedToEnd,
    /// The time left for flushes then.
    after: Duration,
    pipeline: Arc<Pipeline>,
}

impl End {
    /// Polls at the start of a flush and while it waits.
    async fn watch(&self) -> Infallible {
        if !self.pipeline.is_direct() {
            return pending().await;
        }
        loop {
            if let Some(asked) = (self.asked)() {
                self.pipeline
                    .end_flushes(Instant::from_std(asked) + self.after);
                return pending().await;
            }
            sleep(EXIT_POLL_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;
    use crate::log::tests::Lines;

    /// Keys, and a parent of all folders.
    struct Keys {
        state: PathBuf,
        keys: Vec<(&'static str, String)>,
    }

    impl Properties for Keys {
        fn get(&self, key: &str) -> Option<String> {
            let found = self.keys.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| value.clone())
        }

        fn state_dir(&self) -> &Path {
            &self.state
        }
    }

    /// A folder for objects, and one for everything else.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Place {
            Place(tempfile::tempdir().unwrap())
        }

        fn state(&self) -> PathBuf {
            self.0.path().join("state")
        }

        /// The names of the outputs' folders.
        fn folders(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.state()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        }

        fn start(&self, keys: &[(&'static str, &str)]) -> Result<Instance, String> {
            let url = (
                "url",
                format!("file://{}", self.0.path().join("objects").display()),
            );
            let keys = keys.iter().map(|(key, value)| (*key, (*value).to_owned()));
            let keys = Keys {
                state: self.state(),
                keys: keys
                    .chain([url, ("compression", "none".to_owned())])
                    .collect(),
            };
            let lines = Lines::default();
            let instance = Instance::start(&keys, Box::new(lines.clone()), None, Arc::new(|| None));
            instance.ok_or_else(|| format!("{:?}", lines.0.lock().unwrap()))
        }

        /// The lines in the folder of objects `name`.
        fn lines(&self, name: &str) -> usize {
            let Ok(entries) = std::fs::read_dir(self.0.path().join("objects").join(name)) else {
                return 0;
            };
            let texts =
                entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
            texts.map(|text| text.lines().count()).sum()
        }
    }

    fn chunk(value: u64) -> Bytes {
        let mut chunk = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\0\x80".to_vec();
        chunk.extend(rmp_serde::to_vec(&json!({ "n": value })).unwrap());
        chunk.into()
    }

    #[test]
    fn two_outputs_into_one_store_both_run_and_find_their_own_chunks_again() {
        let place = Place::new();
        let keys = |path| [("path", path)];
        for round in 1..=2 {
            let one = place.start(&keys("one")).unwrap();
            let two = place.start(&keys("two")).unwrap();
            assert_eq!(one.flush(b"a", chunk(round), false), Verdict::Ok);
            assert_eq!(two.flush(b"b", chunk(10 + round), false), Verdict::Ok);
            assert_eq!(two.flush(b"b", chunk(20 + round), false), Verdict::Ok);
            assert_eq!(place.folders().len(), 2);
            one.stop();
            two.stop();
        }
        assert_eq!((place.lines("one"), place.lines("two")), (2, 4));
        // Without a spool they share nothing either.
        let direct = |path| [("path", path), ("spool", "off")];
        let (one, two) = (
            place.start(&direct("one")).unwrap(),
            place.start(&direct("two")).unwrap(),
        );
        assert_eq!(one.flush(b"a", chunk(1), false), Verdict::Ok);
        assert_eq!(two.flush(b"a", chunk(1), false), Verdict::Ok);
        assert_eq!((place.lines("one"), place.lines("two")), (3, 5));
        one.stop();
        two.stop();
    }

    #[test]
    fn two_outputs_with_one_name_are_refused_with_the_remedy() {
        let place = Place::new();
        let one = place.start(&[]).unwrap();
        let refused = place.start(&[]).err().unwrap();
        assert!(
            refused.contains("is in use by another instance"),
            "{refused}"
        );
        assert!(refused.contains("its own instance name"), "{refused}");
        one.stop();
    }

    #[test]
    fn a_limit_beyond_the_disk_is_warned_of() {
        let dir = Path::new("/data");
        let warning = |limit, used, free| small_disk("spool_limit", dir, limit, used, free);
        assert_eq!(warning(1_000_000_000, 0, 1_000_000_000), None);
        assert_eq!(warning(1_000_000_000, 900_000_000, 100_000_000), None);
        let line = warning(1_000_000_000, 100_000_000, 300_000_000).unwrap();
        assert_eq!(
            line,
            "the disk of '/data' has 300 MB free, less than spool_limit (1 GB) still allows: it is full before the limit is \
             reached; write spool_limit 100M, a quarter of it, or free some space"
        );
        assert!(
            warning(16_000_000, 0, 0)
                .unwrap()
                .ends_with("reached; free some space")
        );
    }
}
