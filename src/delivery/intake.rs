//! The answer to the host from the spool: a chunk is kept, or why it is not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::context::Context;
use super::policy::backoff;
use super::target_limit::TargetLimit;
use crate::codec::msgpack;
use crate::codec::time::now;
use crate::ids::{Verdict, chunk_id};
use crate::log::{Level, size};
use crate::metrics::{Record, Stage};
use crate::sink::Class;
use crate::spool::disk::says_remedy;
use crate::spool::{self, Appended, Durability, Note, Refusal, Spool};

/// The maximum number of files named in a log line.
const MAX_NAMED: usize = 5;

/// One output's spool, with its log lines.
pub(super) struct Intake {
    context: Arc<Context>,
    spool: Arc<Spool>,
    limit: TargetLimit,
    /// Whether the disk's free space is being asked for.
    asking_disk: AtomicBool,
}

impl Intake {
    pub(super) fn new(context: Arc<Context>, spool: Arc<Spool>) -> Intake {
        let place = context.config.spool.as_ref();
        let by_tag = context.traits.target_of_tag(b"").is_some();
        Intake {
            limit: TargetLimit::new(place.map_or(u64::MAX, |it| it.target_limit), by_tag),
            asking_disk: AtomicBool::new(false),
            context,
            spool,
        }
    }

    /// Returns the limit on what waits for each target.
    pub(super) fn limit(&self) -> &TargetLimit {
        &self.limit
    }

    /// Returns the spool.
    pub(super) fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Keeps a chunk, and returns the host's answer once the disk has answered.
    pub(super) async fn keep(&self, tag: &[u8], data: Bytes) -> Verdict {
        // The feed logs it.
        let target = || self.context.traits.target_of_tag(tag);
        if self.limit.refuses(tag, target) {
            return Verdict::Retry;
        }
        let id = chunk_id(tag, &data);
        let deadline = Instant::now() + self.context.config.flush_deadline;
        let bytes = data.len() as u64;
        let again = data.clone();
        let chunk = spool::Chunk {
            id,
            tag,
            data,
            arrived: now(),
        };
        match self.spool.append(chunk, deadline).await {
            Ok(Appended::Kept) => {
                self.context.metrics.bytes.add(Stage::Raw, bytes);
                for trouble in ["spool", "spool_full"] {
                    self.context
                        .log
                        .recovered(trouble, "the spool accepts chunks again");
                }
                Verdict::Ok
            }
            Ok(Appended::Replayed) => {
                self.context.metrics.replayed_chunks.add(1);
                let events = msgpack::Events::new(&again).count();
                self.context
                    .metrics
                    .records
                    .add(Record::Suppressed, events as u64);
                self.context.log.trouble(
                    Level::Info,
                    "replay",
                    "the host retried a chunk that an earlier run had accepted: the duplicate is ignored",
                );
                Verdict::Ok
            }
            Err(Refusal::Full { bytes, limit }) => {
                let usage = self.spool.usage();
                let why = match usage.missing {
                    0 if usage.quarantined > limit / 4 => format!(
                        "{} of it are files in its quarantine folder: inspect them and move them away",
                        size(usage.quarantined)
                    ),
                    0 => "the destination accepts less than comes in".to_owned(),
                    missing => format!(
                        "{missing} chunks in missing files block everything after them: put the files back, or restart \
                         Fluent Bit to continue without them"
                    ),
                };
                self.context.log.trouble(
                    Level::Warn,
                    "spool_full",
                    &format!(
                        "the spool is full ({} of {}): {why}; the host holds chunks back until there is room. To keep \
                         more, raise spool_limit",
                        size(bytes),
                        size(limit)
                    ),
                );
                Verdict::Retry
            }
            Err(Refusal::TooLate) => {
                self.context.metrics.spool_errors.add(1);
                self.context.log.trouble(
                    Level::Warn,
                    "spool",
                    "the disk of the spool did not answer within flush_deadline: the host is asked to retry the chunk. \
                     Check the disk's load and health",
                );
                Verdict::Retry
            }
            Err(Refusal::Disk(error)) => {
                self.log_disk_error(&error);
                Verdict::Retry
            }
            Err(Refusal::Closed) => Verdict::Retry,
        }
    }

    /// Logs a failure of the spool's disk. Whatever failed is retried.
    pub(super) fn log_disk_error(&self, error: &io::Error) {
        self.context.metrics.spool_errors.add(1);
        match says_remedy(error) {
            true => self.log_unusable(&error.to_string()),
            false => {
                self.log_unusable(&format!("{error}: check the disk's free space and health"));
            }
        }
    }

    fn log_unusable(&self, trouble: &str) {
        let place = match &self.context.config.spool {
            Some(spool) => spool.dir.display().to_string(),
            None => String::new(),
        };
        self.context.log.trouble(
            Level::Error,
            "spool",
            &format!(
                "the spool in {place} cannot be used, and data is held back until it can: {trouble}"
            ),
        );
    }

    /// Writes a note, retrying until it succeeds.
    pub(super) async fn write_note(&self, note: Note, durability: Durability) {
        let mut attempts = 0;
        while let Err(error) = self.spool.note(note.clone(), durability).await {
            self.log_disk_error(&error);
            attempts += 1;
            sleep(backoff(
                Class::Transient,
                attempts,
                &mut StdRng::from_os_rng(),
            ))
            .await;
        }
        self.context
            .log
            .recovered("spool", "the spool is writable again");
    }

    /// Makes sure that a restart would find every accepted chunk, and logs problems of the spool. Call it about once a
    /// second.
    pub(super) fn check(&self) {
        let health = self.spool.look();
        for finding in &health.findings {
            self.context.log.write(Level::Warn, finding);
        }
        for (kind, notice) in &health.notices {
            self.context
                .log
                .trouble(Level::Warn, kind, &format!("the spool: {notice}"));
        }
        match &health.trouble {
            Some(trouble) => self.log_unusable(trouble),
            None => self
                .context
                .log
                .recovered("spool", "the spool is usable again"),
        }
        if health.missing.is_empty() {
            self.context
                .log
                .recovered("spool_missing", "no file of the spool is missing any more");
            return;
        }
        let chunks: u64 = health.missing.iter().map(|(_, chunks)| chunks).sum();
        let names: Vec<&str> = health.missing.iter().map(|(name, _)| &name[..]).collect();
        let (named, more) = names.split_at(names.len().min(MAX_NAMED));
        let more = match more.len() {
            0 => String::new(),
            more => format!(" and {more} more files"),
        };
        self.context.log.trouble(
            Level::Error,
            "spool_missing",
            &format!(
                "{chunks} chunks that were accepted cannot be delivered: {}{more} were removed from the spool's folder, or \
                 are incomplete. Put them back; after a restart, do so only while Fluent Bit is stopped",
                named.join(", ")
            ),
        );
    }

    /// Updates the metric of the disk's free space, in the background.
    pub(super) fn check_disk(self: &Arc<Self>) {
        let Some(place) = &self.context.config.spool else {
            return;
        };
        // A disk that hangs is asked once.
        if self.asking_disk.swap(true, Ordering::AcqRel) {
            return;
        }
        let (intake, dir) = (Arc::clone(self), place.dir.clone());
        tokio::task::spawn_blocking(move || {
            if let Ok(space) = rustix::fs::statvfs(&dir) {
                let free = space.f_bavail.saturating_mul(space.f_frsize);
                intake.context.metrics.spool_disk_free.set(free as f64);
            }
            intake.asking_disk.store(false, Ordering::Release);
        });
    }

    /// Counts and logs a chunk of the spool that is damaged or set aside.
    pub(super) fn record_corrupt(&self, words: &str, kept: bool) {
        self.context.log.write(Level::Error, words);
        self.context.metrics.corrupt_chunks.add(1);
        self.context.metrics.quarantined_chunks.add(u64::from(kept));
    }
}
