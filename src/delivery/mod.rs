//! The way of a chunk: admit, decode and encode, batch, send, settle.
//!
//! *Direct*: a flush is answered OK when each of its pieces is acknowledged by the destination or kept as a
//! dead letter, and RETRY otherwise: at once where a target takes nothing ([`circuit`]), since the host's
//! worker that waits is one that the healthy targets need. Pieces of several flushes share requests.
//! *Spooled*: a flush is answered OK when its chunk is synced into the spool; the [`spooled`] feed does the
//! rest in its own time. Requests are formed and sent by a [`sender`] for each target.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::ids::Verdict;
use crate::log::{Level, Log};
use crate::metrics::{Figure, Metrics, Stage};
use crate::sink::{DestinationTraits, Sink};
use crate::spool::{Recovered, Spool};
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
pub mod identity;
mod intake;
mod letters;
mod memory;
mod objects;
pub mod quota;
mod rebuild;
mod redelivery;
mod relocate;
mod report;
mod retry;
mod sender;
mod spooled;
mod waiting;
mod worker;

/// One output's delivery. Cheap to share.
pub struct Pipeline {
    context: Arc<Context>,
    letters: Arc<Letters>,
    cutter: Arc<Cutter>,
    senders: Arc<Senders>,
    direct: Direct,
}

impl Pipeline {
    /// Puts an instance together. Nothing runs before the first flush. `identity` tells the objects that it makes without
    /// a spool from those of others.
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
            ending: watch::Sender::new(None),
        };
        Pipeline {
            context,
            letters,
            cutter,
            senders,
            direct,
        }
    }

    /// Puts a spool between the host and the destination, and begins to deliver what is in it. The task
    /// ends after [`Pipeline::drain`], when everything is delivered.
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
                    "{} chunks of an earlier run are in the spool and are delivered now",
                    recovered.unfinished
                ),
            );
        }
        let intake = Intake::new(Arc::clone(&self.context), spool);
        let intake = self.senders.attach_intake(intake, recovered.next_batch);
        let feed = Feed::new(
            Arc::clone(&self.context),
            Arc::clone(&self.letters),
            Arc::clone(&self.cutter),
            Arc::clone(&self.senders),
            intake,
            recovered,
        );
        tokio::spawn(feed.run())
    }

    /// Seals what is open and sends what waits to be filled.
    pub fn drain(&self) {
        self.context.draining.send_replace(true);
    }

    /// Takes a chunk as the host hands it over, and gives the host's answer: in direct mode within
    /// `flush_deadline`; in spooled mode when the disk has answered. Every clone of `data` is gone when it
    /// returns.
    pub async fn flush(&self, tag: &[u8], data: Bytes) -> Verdict {
        if let Some(intake) = self.senders.intake() {
            return intake.keep(tag, data).await;
        }
        let bytes = data.len() as u64;
        let metrics = &self.context.metrics;
        let _waiting = metrics.waiting.enter();
        let verdict = self.direct.flush(tag, data).await;
        if verdict == Verdict::Ok {
            metrics.bytes.add(Stage::Raw, bytes);
        }
        verdict
    }

    /// Whether a flush waits for the destination, and not only for the disk.
    pub fn is_direct(&self) -> bool {
        self.senders.intake().is_none()
    }

    /// In direct mode: from `then` on each flush answers RETRY, those that wait and those that come.
    pub fn end_flushes(&self, then: Instant) {
        self.direct.end_flushes(then);
    }

    /// Says that the whole host waits while a flush waits.
    pub fn log_engine_thread(&self) {
        self.context.log.write(
            Level::Warn,
            "flush runs on the host's engine thread: while it waits for the destination, inputs, timers and \
             other outputs wait too. Set 'Workers 2' in this [OUTPUT], in Fluent Bit 2.1.8 or later",
        );
    }

    /// Where this instance's figures are counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.context.metrics
    }

    /// The figures as they stand now. Asks no disk and waits for nobody.
    pub fn figures(&self) -> Vec<Figure> {
        report::figures(self)
    }

    /// What was done so far and what stays, in a line that fits a screen.
    pub fn summary(&self) -> String {
        report::summary(self)
    }

    /// What else was done so far, in a line.
    pub fn details(&self) -> String {
        report::details(self)
    }

    /// Looks into the dead-letter folder, from which a person may have taken something.
    pub fn check_letters(&self) {
        self.letters.refresh_usage();
    }

    /// Sees to it that a restart would find what was accepted, and says what is the matter. To be called about once a second.
    pub fn check_spool(&self) {
        if let Some(intake) = self.senders.intake() {
            intake.check();
        }
    }

    fn spool(&self) -> Option<&Arc<Spool>> {
        self.senders.intake().map(|intake| intake.spool())
    }
}

#[cfg(test)]
mod tests;
