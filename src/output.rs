//! One configured output: start, flush, stop.

use std::convert::Infallible;
use std::future::pending;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout_at};

#[cfg(feature = "firehose")]
use crate::compress::Compression;
use crate::config::keys::{self, IdleKey};
use crate::config::{Config, Destination, Problem, Properties};
use crate::delivery::Pipeline;
use crate::delivery::dead_letter::DeadLetters;
use crate::delivery::identity::{Identity, Machine, Origin};
use crate::ids::Verdict;
use crate::log::{Level, Log, Output};
use crate::metrics::{self, MetricsPage, endpoint};
use crate::sink::Sink;
#[cfg(feature = "firehose")]
use crate::sink::aws;
use crate::sink::blob::BlobSink;
#[cfg(feature = "firehose")]
use crate::sink::firehose::FirehoseSink;
use crate::spool::disk::{LocalDisk, says_remedy};
use crate::spool::{self, Recovered, Spool};

/// Threads of one instance. Sending waits on the network and encoding is short: more would only take
/// cores from the application beside us.
const MOST_THREADS: usize = 2;

/// How much of `exit_deadline`, which is at least a second, is kept for ending the threads.
const CUT_OFF: Duration = Duration::from_millis(500);

/// How often a flush that waits looks whether the host was asked to end.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// How often the host's page of figures is brought up to date.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// How often the dead-letter folder is looked into, where nothing is written there.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often it is looked whether the spool's files are still where a restart would find them.
const LOOK_AT_SPOOL_EVERY: Duration = Duration::from_secs(1);
/// How often the figures are said in the log, where the host has no page for them and nothing else is set.
const SAY_EVERY: Duration = Duration::from_secs(300);

/// When the host was first seen to be asked to end, if it was and that can be seen.
pub type AskedToEnd = Arc<dyn Fn() -> Option<std::time::Instant> + Send + Sync>;

/// A running output.
pub struct Instance {
    jobs: mpsc::UnboundedSender<Job>,
    running: Mutex<Option<Running>>,
    pipeline: Arc<Pipeline>,
    log: Arc<Log>,
    exit_deadline: Duration,
    said_engine_thread: AtomicBool,
}

/// What stops with an instance.
struct Running {
    runtime: Runtime,
    /// With a spool: the task that empties it.
    spool: Option<(Arc<Spool>, JoinHandle<()>)>,
    /// The host's page of figures, where it has one.
    page: Option<Arc<dyn MetricsPage>>,
    /// Our lock on the origin's id. Released on drop, so that the next instance can take it.
    _origin: Option<Origin>,
}

/// One flush on its way from the host's thread to ours.
struct Job {
    tag: Box<[u8]>,
    data: Bytes,
    reply: std::sync::mpsc::SyncSender<Verdict>,
    on_engine_thread: bool,
}

impl Instance {
    /// Reads the configuration and starts. Everything that is wrong is said in the log, all at once;
    /// then there is no instance. `page` is the host's page of figures, if it has one.
    ///
    /// The host's exit is no help to flushes that wait, since the host waits for them first. So once `asked` says
    /// that it is to come, they have `exit_deadline` left.
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
        let letters = DeadLetters::open(&config.dead_letter_dir, config.dead_letter_limit)
            .map_err(|error| Problem {
                key: keys::DEAD_LETTER_DIR.name,
                message: format!(
                    "'{}' cannot be written: {error}; name a folder that this user may write",
                    config.dead_letter_dir.display()
                ),
            })?;
        let listener = listen(&config)?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("ferry")
            .enable_all()
            .build()
            .map_err(|error| Problem {
                key: keys::INSTANCE.name,
                message: format!("no threads could be started: {error}"),
            })?;
        let sink = runtime.block_on(sink(&config, log))?;
        log.say(Level::Info, &config.summary());
        log.say(Level::Debug, &config.details());
        let exit_deadline = config.exit_deadline;
        let say_every = config.metrics_log_interval;
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
            // The rest is for the host, which goes on from there by the second.
            after: exit_deadline * 3 / 4,
            pipeline: Arc::clone(&pipeline),
        };
        runtime.spawn(accept(accepted, Arc::new(end)));
        let spool = spool.map(|(spool, recovered)| {
            let _inside = runtime.enter();
            let feed = pipeline.feed_from(Arc::clone(&spool), recovered);
            (spool, feed)
        });
        let page = page.filter(|page| page.register(&name, &pipeline.figures()));
        if page.is_none() {
            log.say(
                Level::Debug,
                "this host shows no metrics of its outputs: the figures are in the log, and where metrics_listen says",
            );
        }
        let say_every = say_every.unwrap_or(match page {
            Some(_) => Duration::ZERO,
            None => SAY_EVERY,
        });
        if !say_every.is_zero() {
            let (pipeline, log) = (Arc::clone(&pipeline), Arc::clone(log));
            runtime.spawn(every(say_every, move || {
                log.say(Level::Info, &metrics::line(&pipeline.figures()));
            }));
        }
        if let Some(page) = &page {
            let (pipeline, page) = (Arc::clone(&pipeline), Arc::clone(page));
            runtime.spawn(every(SHOW_EVERY, move || page.show(&pipeline.figures())));
        }
        if spool.is_some() {
            let look = Arc::clone(&pipeline);
            runtime.spawn(every(LOOK_AT_SPOOL_EVERY, move || look.look_at_spool()));
        }
        let look = Arc::clone(&pipeline);
        runtime.spawn(every(LOOK_EVERY, move || look.look_at_letters()));
        if let Some(listener) = listener {
            say_listener(&listener, log);
            let pipeline = Arc::clone(&pipeline);
            let page = move || metrics::text(&name, &pipeline.figures());
            runtime.spawn(endpoint::serve(listener, Arc::new(page)));
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
            said_engine_thread: AtomicBool::new(false),
        })
    }

    /// Takes one chunk and waits for its verdict. Runs on the host's coroutine stack: it hands over and
    /// waits, nothing more. `on_engine_thread` says that the whole host waits with us.
    pub fn flush(&self, tag: &[u8], data: Bytes, on_engine_thread: bool) -> Verdict {
        let say = on_engine_thread
            && self.pipeline.is_direct()
            && !self.said_engine_thread.swap(true, Ordering::Relaxed);
        let (reply, verdict) = std::sync::mpsc::sync_channel(1);
        let job = Job {
            tag: tag.into(),
            data,
            reply,
            on_engine_thread: say,
        };
        if self.jobs.send(job).is_err() {
            return Verdict::Retry;
        }
        // A job that is dropped on its way, for whatever reason, answers by its absence.
        let verdict = verdict.recv().unwrap_or(Verdict::Retry);
        let answer = match verdict {
            Verdict::Ok => metrics::Flush::Ok,
            Verdict::Retry => metrics::Flush::Retry,
        };
        self.pipeline.metrics().flushes.add(answer, 1);
        verdict
    }

    /// Says that something panicked: a bug, after which the flushes concerned answer RETRY.
    pub fn say_panic(&self, what: &str) {
        self.log.say(
            Level::Error,
            &format!("a bug in Ferry, please report it: {what}"),
        );
    }

    /// Stops within `exit_deadline` and joins every thread. What a flush still waits for is answered
    /// RETRY; what is in the spool is sealed and sent as far as time allows, and the rest stays there.
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
            if let Some((spool, mut feed)) = spool {
                self.pipeline.drain();
                let drained =
                    runtime.block_on(async { timeout_at(deadline - CUT_OFF, &mut feed).await });
                if drained.is_err() {
                    self.log.say(
                        Level::Warn,
                        &format!(
                            "not everything was delivered within exit_deadline ({} s): the rest stays in the \
                             spool and is delivered by the next start",
                            self.exit_deadline.as_secs()
                        ),
                    );
                }
                // What is still on its way is cut off; the spool knows that it had begun.
                runtime.shutdown_timeout(CUT_OFF);
                spool.close();
                self.pipeline.look_at_spool();
            } else {
                self.pipeline.end_flushes(Instant::now());
                runtime.shutdown_timeout(self.exit_deadline);
            }
            if let Some(page) = page {
                page.show(&self.pipeline.figures());
                page.close();
            }
            self.log.say(
                Level::Info,
                &format!("stopped: {}", self.pipeline.summary()),
            );
            self.log.say(Level::Debug, &self.pipeline.details());
        }
        self.log.close();
    }
}

/// Calls `act` every so often, until the runtime ends.
async fn every(time: Duration, act: impl Fn()) {
    let mut ticks = interval_at(Instant::now() + time, time);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        act();
    }
}

/// Takes the address that the figures are served at.
fn listen(config: &Config) -> Result<Option<TcpListener>, Problem> {
    let Some(address) = config.metrics_listen else {
        return Ok(None);
    };
    endpoint::bind(address).map(Some).map_err(|error| {
        Problem::new(
            keys::METRICS_LISTEN.name,
            format!(
                "'{address}' cannot be listened at: {error}; give each output an address of its own that no other \
                 program has, or remove it"
            ),
        )
    })
}

fn say_listener(listener: &TcpListener, log: &Log) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    log.say(
        Level::Info,
        &format!("metrics are at http://{address}/metrics"),
    );
    if !address.ip().is_loopback() {
        log.say(
            Level::Warn,
            &format!(
                "metrics_listen {address} can be reached from other machines: whoever reaches it reads the \
                 figures; 127.0.0.1:{} is for this machine alone",
                address.port()
            ),
        );
    }
}

/// Opens the spool and looks at what it holds. Only a folder that cannot be used is a problem, never what
/// it holds.
fn open_spool(config: &Config) -> Result<Option<(Arc<Spool>, Recovered)>, Problem> {
    let Some(place) = &config.spool else {
        return Ok(None);
    };
    let dir = place.dir.display();
    let problem = |error: std::io::Error| {
        let message = if error.kind() == std::io::ErrorKind::WouldBlock {
            format!(
                "'{dir}' is in use by another instance or process: give each output its own spool_dir, or its own \
                 instance name"
            )
        } else if says_remedy(&error) {
            format!("'{dir}' cannot be used: {error}")
        } else {
            format!(
                "'{dir}' cannot be used: {error}; it is to be a folder on a local disk that this user may write. Where it \
                 holds a spool already, naming another folder leaves what was accepted there undelivered"
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

/// Who we are to a blob store that we send to without a spool; `output` is the host's name for us. Other objects
/// are not named after their origin.
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
        log.say(Level::Warn, warning);
    }
    Some(origin)
}

fn warn_of_idle_keys(log: &Log, idle: &[IdleKey]) {
    for key in idle {
        log.say(Level::Warn, &format!("configuration: {}", key.message));
    }
}

fn refuse(log: &Log, problems: &[Problem]) {
    for problem in problems {
        log.say(Level::Error, &format!("configuration: {problem}"));
    }
}

async fn sink(config: &Config, log: &Arc<Log>) -> Result<Arc<dyn Sink>, Problem> {
    match &config.destination {
        #[cfg(not(feature = "firehose"))]
        Destination::Firehose(_) => Err(Problem::new(
            keys::DELIVERY_STREAM.name,
            "Firehose is not in this build of Ferry, which was made without its feature firehose",
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
                Arc::new(move |line: &str| warnings.say(Level::Warn, line)),
            )?;
            Ok(Arc::new(sink))
        }
    }
}

async fn accept(mut jobs: mpsc::UnboundedReceiver<Job>, end: Arc<End>) {
    while let Some(job) = jobs.recv().await {
        let end = Arc::clone(&end);
        tokio::spawn(async move {
            let pipeline = &end.pipeline;
            if job.on_engine_thread {
                pipeline.say_engine_thread();
            }
            let verdict = tokio::select! {
                biased;
                never = end.watch() => match never {},
                verdict = pipeline.flush(&job.tag, job.data) => verdict,
            };
            // The host may have gone; then nobody waits for the verdict.
            let _ = job.reply.send(verdict);
        });
    }
}

/// Sees to it that no flush outlasts a stop that is to come.
struct End {
    asked: AskedToEnd,
    /// What flushes have then.
    after: Duration,
    pipeline: Arc<Pipeline>,
}

impl End {
    /// Watches for it as long as a flush waits, and at its start.
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
            sleep(ASK_EVERY).await;
        }
    }
}
