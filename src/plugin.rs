//! One configured output: start, flush, stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

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

/// Threads of one instance. Sending waits on the network and encoding is short: more would only take
/// cores from the application beside us.
const MOST_THREADS: usize = 2;

/// A running output.
pub struct Instance {
    jobs: mpsc::UnboundedSender<Job>,
    runtime: Mutex<Option<Runtime>>,
    pipeline: Arc<Pipeline>,
    log: Arc<Log>,
    exit_deadline: Duration,
    said_engine_thread: AtomicBool,
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
        let letters = DeadLetters::open(&config.dead_letter_dir).map_err(|error| Problem {
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
        Ok(Instance {
            jobs,
            runtime: Mutex::new(Some(runtime)),
            pipeline,
            log: Arc::clone(log),
            exit_deadline,
            said_engine_thread: AtomicBool::new(false),
        })
    }

    /// Takes one chunk and waits for its verdict. Runs on the host's coroutine stack: it hands over and
    /// waits, nothing more. `on_engine_thread` says that the whole host waits with us.
    pub fn flush(&self, tag: &[u8], data: Bytes, on_engine_thread: bool) -> Verdict {
        let say = on_engine_thread && !self.said_engine_thread.swap(true, Ordering::Relaxed);
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
    /// RETRY.
    pub fn stop(&self) {
        let runtime = self
            .runtime
            .lock()
            .expect("nothing panics with this lock")
            .take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(self.exit_deadline);
            self.log.say(
                Level::Info,
                &format!("stopped: {}", self.pipeline.summary()),
            );
        }
        self.log.close();
    }
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
