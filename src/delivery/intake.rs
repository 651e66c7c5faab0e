//! What is told to the host about its spool: a chunk is kept, or why it is not.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::context::Context;
use super::retry::backoff;
use crate::codec::msgpack;
use crate::codec::time::now;
use crate::ids::{Verdict, chunk_id};
use crate::log::Level;
use crate::metrics::{Record, Stage};
use crate::sink::Class;
use crate::spool::disk::says_remedy;
use crate::spool::{self, Appended, Durability, Note, Refusal, Spool};

/// Files that a line in the log names, at most.
const MAX_NAMED: usize = 5;

/// One output's spool, and the words about it.
pub(super) struct Intake {
    context: Arc<Context>,
    spool: Arc<Spool>,
}

impl Intake {
    pub(super) fn new(context: Arc<Context>, spool: Arc<Spool>) -> Intake {
        Intake { context, spool }
    }

    /// The spool itself.
    pub(super) fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Keeps a chunk, and gives the host's answer when the disk has answered.
    pub(super) async fn keep(&self, tag: &[u8], data: Bytes) -> Verdict {
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
                        .recovered(trouble, "chunks are kept in the spool again");
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
                    "a chunk that an earlier run had accepted was handed over again, and was not taken twice",
                );
                Verdict::Ok
            }
            Err(Refusal::Full { bytes, limit }) => {
                let usage = self.spool.usage();
                let why = match usage.missing {
                    0 if usage.quarantined > limit / 4 => format!(
                        "{} of them are files in its quarantine folder, which wait for a person: move them away",
                        usage.quarantined
                    ),
                    0 => "the destination takes too little".to_owned(),
                    missing => format!(
                        "{missing} chunks in files that are missing hold on to all that came after them: put the \
                         files back, or restart Fluent Bit to go on without them"
                    ),
                };
                self.context.log.trouble(
                    Level::Warn,
                    "spool_full",
                    &format!(
                        "the spool is full ({bytes} of {limit} bytes), and {why}; the host is asked to hold chunks \
                         back until there is room; spool_limit says how much it may hold"
                    ),
                );
                Verdict::Retry
            }
            Err(Refusal::TooLate) => {
                self.context.log.trouble(
                    Level::Warn,
                    "spool",
                    "the disk of the spool did not answer within flush_deadline: the host is asked to hand \
                     the chunk over again",
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

    /// Says that the spool's disk fails. Whatever failed is tried again.
    pub(super) fn log_disk_error(&self, error: &io::Error) {
        match says_remedy(error) {
            true => self.log_unusable(&error.to_string()),
            false => {
                self.log_unusable(&format!("{error}: look at the disk's space and health"));
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

    /// Writes a note, however often that has to be tried.
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
            .recovered("spool", "the spool can be written again");
    }

    /// Sees to it that a restart would find what was accepted, and says what is the matter. To be called about once a second.
    pub(super) fn check(&self) {
        let health = self.spool.look();
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
                .recovered("spool", "the spool can be used again"),
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
                "{chunks} chunks that were accepted cannot be delivered: {}{more} in the spool's folder were taken away, or \
                 are not whole. They are waited for: put them back; after a restart they are not, and are to be put back while Fluent Bit is stopped",
                named.join(", ")
            ),
        );
    }

    /// Counts a chunk of the spool that was damaged or is set aside, and says so.
    pub(super) fn corrupt(&self, words: &str, kept: bool) {
        self.context.log.write(Level::Error, words);
        self.context.metrics.corrupt_chunks.add(1);
        self.context.metrics.quarantined_chunks.add(u64::from(kept));
    }
}
