//! Dead letters with their log lines and metrics.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::context::Context;
use super::dead_letter::{DeadLetters, NotKept, Rate, Usage};
use crate::codec::rejected::Letter;
use crate::log::Level;
use crate::metrics::{Reason, Record};

/// Keeps dead letters, and reports them.
pub(super) struct Letters {
    context: Arc<Context>,
    folder: DeadLetters,
    rate: Mutex<Rate>,
}

impl Letters {
    /// Creates the letters of an output, kept in `folder`.
    pub(super) fn new(context: Arc<Context>, folder: DeadLetters) -> Letters {
        Letters {
            context,
            folder,
            rate: Mutex::new(Rate::new(Instant::now())),
        }
    }

    /// Returns the folder.
    pub(super) fn folder(&self) -> &DeadLetters {
        &self.folder
    }

    /// Returns the usage of the folder when last checked. Does no I/O.
    pub(super) fn last_usage(&self) -> Usage {
        self.folder.last_usage()
    }

    /// Refreshes the usage of the folder, because a person may have removed something.
    pub(super) fn refresh_usage(self: &Arc<Self>) {
        let letters = Arc::clone(self);
        // An unreadable folder is logged when a letter has to be written.
        tokio::task::spawn_blocking(move || drop(letters.folder.usage()));
    }

    /// Writes letters that contain `events` log events in total.
    pub(super) async fn keep(
        self: &Arc<Self>,
        letters: Vec<Letter>,
        events: u64,
    ) -> Result<(), NotKept> {
        let Some(first) = letters.first() else {
            return Ok(());
        };
        let count = letters.len();
        let (tag, reason) = (Arc::clone(&first.tag), first.reason.as_str());
        let first = format!("{reason}: {}", first.detail);
        let reasons: Vec<Reason> = letters.iter().map(|letter| letter.reason).collect();
        let all = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || all.folder.write(&letters)).await;
        // An error only if the runtime is shutting down.
        let written = written.unwrap_or_else(|end| Err(io::Error::other(end).into()));
        let path = self.folder.path().display();
        let usage = match written {
            Ok(usage) => usage,
            Err(not_kept) => {
                self.context.log.trouble(
                    Level::Error,
                    "dead_letter_disk",
                    &format!(
                        "dead letters cannot be written to {path}: {not_kept}; the affected records wait, all others are \
                         delivered"
                    ),
                );
                return Err(not_kept);
            }
        };
        self.context.metrics.records.add(Record::DeadLetter, events);
        for reason in reasons {
            self.context.metrics.letters.add(reason, 1);
        }
        self.context.log.trouble(
            Level::Warn,
            "dead_letter",
            &format!("{count} dead letters were written to {path}; the first: {first}"),
        );
        let delivered = self.context.metrics.records.get(Record::Delivered);
        let alarm = {
            let mut rate = self.rate.lock();
            let rate = rate.as_mut().expect("nothing panics with this lock");
            rate.note(Instant::now(), events, usage, delivered)
        };
        if let Some(alarm) = alarm {
            let tag = String::from_utf8_lossy(&tag[..tag.len().min(200)]);
            self.context.log.write(
                Level::Error,
                &format!("{alarm}. The last one came with tag '{tag}', {first}; all of them are in {path}"),
            );
        }
        if let Some(warning) = usage.warning() {
            self.context
                .log
                .trouble(Level::Warn, "dead_letter_room", &warning);
        }
        self.context
            .log
            .recovered("dead_letter_disk", "dead letters can be written again");
        Ok(())
    }
}
