//! The delivery of chunks: admit, decode, encode, batch, send, settle.
//!
//! *Direct mode* answers a flush with OK once each of its pieces is acknowledged by the destination or kept as a dead
//! letter, and with RETRY otherwise. It answers RETRY at once while a target is unavailable ([`circuit`]), because the
//! healthy targets need the host's worker that would wait. Pieces of several flushes share requests.
//!
//! *Spooled mode* answers a flush with OK once its chunk is synced into the spool, and the [`spooled`] feed delivers it
//! from there. In both modes a [`sender`] for each target forms and sends the requests.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::ids::Verdict;
use crate::log::{Level, Log};
use crate::metrics::health::{Health, Progress};
use crate::metrics::{Figure, Metrics, Stage};
use crate::sink::{DestinationTraits, Sink};
use crate::spool::{Recovered, Spool, Usage};
use arrivals::Arrivals;
use context::Context;
use cut::Cutter;
use dead_letter::DeadLetters;
use direct::Direct;
use identity::Identity;
use intake::Intake;
use letters::Letters;
use memory::Memory;
use redelivery::{DuplicateChunks, PartialDeliveries};
use sender::Senders;
use spooled::Feed;

pub mod ack;
mod arrivals;
mod background;
pub mod batch;
mod circuit;
mod concurrency;
mod context;
mod cut;
pub mod dead_letter;
mod deferred;
mod describe;
mod direct;
pub mod gathering;
pub mod identity;
mod intake;
mod letters;
mod memory;
mod missing;
mod objects;
mod poison;
pub mod policy;
pub mod quota;
mod rebuild;
mod redelivery;
mod relocate;
mod report;
mod sender;
pub mod small_objects;
mod spill;
mod spooled;
mod stranded;
mod target_limit;
mod target_report;
mod waiting;
mod worker;

/// The delivery of one output. Cheap to share.
pub struct Pipeline {
    context: Arc<Context>,
    letters: Arc<Letters>,
    cutter: Arc<Cutter>,
    senders: Arc<Senders>,
    direct: Direct,
    progress: Progress,
}

impl Pipeline {
    /// Creates the pipeline of an instance. Nothing runs before the first flush. `identity` distinguishes the objects
    /// it creates without a spool from those of other senders.
    pub fn new(
        config: Config,
        sink: Arc<dyn Sink>,
        letters: DeadLetters,
        identity: Identity,
        log: Arc<Log>,
    ) -> Self {
        let context = Arc::new(Context {
            traits: DestinationTraits::of(&config.destination),
            memory: Memory::new(config.memory_limit),
            metrics: Arc::default(),
            draining: watch::Sender::new(false),
            config,
            sink,
            log,
        });
        let letters = Arc::new(Letters::new(Arc::clone(&context), letters));
        let cutter = Arc::new(Cutter::new(Arc::clone(&context)));
        let senders = Senders::new(Arc::clone(&context), Arc::clone(&letters));
        let direct = Direct {
            context: Arc::clone(&context),
            letters: Arc::clone(&letters),
            cutter: Arc::clone(&cutter),
            senders: Arc::clone(&senders),
            identity,
            duplicates: DuplicateChunks::default(),
            partial: PartialDeliveries::default(),
            arrivals: Arrivals::default(),
            ending: watch::Sender::new(None),
        };
        Pipeline {
            context,
            letters,
            cutter,
            senders,
            direct,
            progress: Progress::new(Instant::now()),
        }
    }

    /// Puts a spool between the host and the destination and starts delivering its contents. After [`Pipeline::drain`]
    /// the task ends once everything is delivered.
    pub fn feed_from(
        &self,
        spool: Arc<Spool>,
        recovered: Recovered,
    ) -> tokio::task::JoinHandle<()> {
        let log = &self.context.log;
        for finding in &recovered.findings {
            log.write(Level::Warn, finding);
        }
        if recovered.unfinished > 0 {
            log.write(
                Level::Info,
                &format!(
                    "{} chunks of an earlier run are in the spool; delivering them now",
                    recovered.unfinished
                ),
            );
        }
        let intake = Intake::new(Arc::clone(&self.context), spool);
        let intake = self.senders.attach_intake(intake, recovered.next_batch);
        intake.check_disk();
        let (context, letters) = (Arc::clone(&self.context), Arc::clone(&self.letters));
        let (cutter, senders) = (Arc::clone(&self.cutter), Arc::clone(&self.senders));
        let spool = Arc::clone(intake.spool());
        let feed = move |history| Feed::new(context, letters, cutter, senders, intake, history);
        match spool.history().now_or_never() {
            Some(history) => tokio::spawn(feed(history).run()),
            // Chunks are accepted meanwhile.
            None => tokio::spawn(async move { feed(spool.history().await).run().await }),
        }
    }

    /// Starts the shutdown: open objects are sealed, and partly filled requests are sent.
    pub fn drain(&self) {
        self.context.draining.send_replace(true);
    }

    /// Accepts a chunk from the host and returns the host's answer: in direct mode within `flush_deadline`, in spooled
    /// mode once the disk has answered. Every clone of `data` is gone when this returns.
    pub async fn flush(&self, tag: &[u8], data: Bytes) -> Verdict {
        if let Some(intake) = self.senders.intake() {
            return intake.keep(tag, data).await;
        }
        let bytes = data.len() as u64;
        let metrics = &self.context.metrics;
        let verdict = self.direct.flush(tag, data).await;
        if verdict == Verdict::Ok {
            metrics.bytes.add(Stage::Raw, bytes);
        }
        verdict
    }

    /// Returns whether a flush waits for the destination rather than only for the disk.
    pub fn is_direct(&self) -> bool {
        self.senders.intake().is_none()
    }

    /// Makes every flush answer RETRY from `then` on, in direct mode: those that are waiting and those that follow.
    pub fn end_flushes(&self, then: Instant) {
        self.direct.end_flushes(then);
    }

    /// Logs that a flush blocks the whole host while it waits.
    pub fn log_engine_thread(&self) {
        self.context.log.write(
            Level::Warn,
            "flush runs on the host's engine thread: while it waits for the destination, inputs, timers and \
             other outputs wait too. Set 'Workers 2' in this [OUTPUT] (Fluent Bit 2.1.8 or later)",
        );
    }

    /// Returns the metrics of this instance.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.context.metrics
    }

    /// Returns the current metric values. Does no I/O and does not wait.
    pub fn figures(&self) -> Vec<Figure> {
        report::figures(self)
    }

    /// Returns whether the output delivers, as it is now. Does no I/O and does not wait.
    pub fn health(&self) -> Health {
        report::health(self)
    }

    /// Returns the totals so far and what remains undelivered, in a line that fits a screen.
    pub fn summary(&self) -> String {
        report::summary(self)
    }

    /// Returns further totals, in one line.
    pub fn details(&self) -> String {
        report::details(self)
    }

    /// Refreshes the usage of the dead-letter folder, from which somebody may have removed files.
    pub fn check_letters(&self) {
        self.letters.refresh_usage();
    }

    /// Refreshes the free space of the spool's disk. Requires a runtime.
    pub fn check_disk(&self) {
        if let Some(intake) = self.senders.intake() {
            intake.check_disk();
        }
    }

    /// Makes sure that a restart would find every accepted chunk, and logs problems of the spool. Call it about once a
    /// second.
    pub fn check_spool(&self) {
        if let Some(intake) = self.senders.intake() {
            intake.check();
        }
    }

    /// Returns what the spool holds, if there is one.
    pub fn spool_usage(&self) -> Option<Usage> {
        self.spool().map(|spool| spool.usage())
    }

    /// Looks for spools that no output uses, and reports them, until it is dropped.
    pub async fn watch_stranded(&self) {
        stranded::watch(Arc::clone(&self.context)).await;
    }

    fn spool(&self) -> Option<&Arc<Spool>> {
        self.senders.intake().map(|intake| intake.spool())
    }
}

#[cfg(test)]
mod tests;
