//! One configured output: start, flush, stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::aws;
use crate::compress::Compression;
use crate::config::{Config, Destination, Problem, Properties};
use crate::dead_letter::DeadLetters;
use crate::log::{Level, Log, Output};
use crate::pipeline::Pipeline;
use crate::settle::Verdict;
use crate::sink::Sink;
use crate::sink::blob::BlobSink;
use crate::sink::firehose::FirehoseSink;
use crate::spool::disk::LocalDisk;
use crate::spool::{self, Recovered, Spool};

/// Threads of one instance. Sending waits on the network and encoding is short: more would only take
/// cores from the application beside us.
const MOST_THREADS: usize = 2;

/// How much of `exit_deadline` is kept for ending the threads. It is at least a second.
const CUT_OFF: Duration = Duration::from_millis(500);

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
    /// then there is no instance.
    pub fn start(properties: &dyn Properties, output: Box<dyn Output>) -> Option<Instance> {
        let config = match Config::read(properties) {
            Ok(config) => config,
            Err(problems) => {
                refuse(&Log::new(output, "ferry"), &problems);
                return None;
            }
        };
        let log = Arc::new(Log::new(output, &format!("ferry:{}", config.instance)));
        match Self::start_with(config, &log) {
            Ok(instance) => Some(instance),
            Err(problem) => {
                refuse(&log, &[problem]);
                None
            }
        }
    }

    fn start_with(config: Config, log: &Arc<Log>) -> Result<Instance, Problem> {
        let spool = open_spool(&config)?;
        let letters = DeadLetters::open(&config.dead_letter_dir, config.dead_letter_limit)
            .map_err(|error| Problem {
                key: "dead_letter_dir",
                message: format!(
                    "'{}' cannot be written: {error}; name a folder that this user may write",
                    config.dead_letter_dir.display()
                ),
            })?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("ferry")
            .enable_all()
            .build()
            .map_err(|error| Problem {
                key: "instance",
                message: format!("no threads could be started: {error}"),
            })?;
        let sink = runtime.block_on(sink(&config, log))?;
        log.say(Level::Info, &config.summary());
        let exit_deadline = config.exit_deadline;
        let pipeline = Arc::new(Pipeline::new(config, sink, letters, Arc::clone(log)));
        let (jobs, accepted) = mpsc::unbounded_channel();
        runtime.spawn(accept(accepted, Arc::clone(&pipeline)));
        let spool = spool.map(|(spool, recovered)| {
            let _inside = runtime.enter();
            let feed = pipeline.feed_from(Arc::clone(&spool), recovered);
            (spool, feed)
        });
        Ok(Instance {
            jobs,
            running: Mutex::new(Some(Running { runtime, spool })),
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
        verdict.recv().unwrap_or(Verdict::Retry)
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
        if let Some(Running { runtime, spool }) = running {
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
            } else {
                runtime.shutdown_timeout(self.exit_deadline);
            }
            self.log.say(
                Level::Info,
                &format!("stopped: {}", self.pipeline.summary()),
            );
        }
        self.log.close();
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
        } else {
            format!(
                "'{dir}' cannot be used: {error}; name a folder on a local disk that this user may write"
            )
        };
        Problem::new("spool_dir", message)
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

fn refuse(log: &Log, problems: &[Problem]) {
    for problem in problems {
        log.say(Level::Error, &format!("configuration: {problem}"));
    }
}

async fn sink(config: &Config, log: &Arc<Log>) -> Result<Arc<dyn Sink>, Problem> {
    match &config.destination {
        Destination::Firehose(firehose) => {
            let aws = aws::load(&firehose.aws, firehose.ca_pem.as_deref())
                .await
                .map_err(|message| Problem {
                    key: "region",
                    message,
                })?;
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

async fn accept(mut jobs: mpsc::UnboundedReceiver<Job>, pipeline: Arc<Pipeline>) {
    while let Some(job) = jobs.recv().await {
        let pipeline = Arc::clone(&pipeline);
        tokio::spawn(async move {
            if job.on_engine_thread {
                pipeline.say_engine_thread();
            }
            let verdict = pipeline.flush(&job.tag, job.data).await;
            // The host may have gone; then nobody waits for the verdict.
            let _ = job.reply.send(verdict);
        });
    }
}
