//! The report of a pipeline: its metrics, and its totals in two lines.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Pipeline;
use super::context::Context;
use crate::codec::time::{now, utc};
use crate::log::size;
use crate::metrics::health::{Health, MAX_TARGETS, TargetTrouble, Used};
use crate::metrics::{Figure, Record, Sealed};
use crate::spool::Usage;

/// Returns the current metric values. Does no I/O and does not wait.
pub(super) fn figures(pipeline: &Pipeline) -> Vec<Figure> {
    let Context {
        config,
        sink,
        memory,
        metrics,
        ..
    } = &*pipeline.context;
    let spooled = metrics.spooled.get().unwrap_or_default();
    metrics.memory.set(memory.held() as f64 + spooled);
    metrics.memory_limit.set(config.memory_limit as f64);
    metrics
        .in_flight_limit
        .set(pipeline.senders.in_flight_limit() as f64);
    if let Some(spool) = pipeline.spool() {
        let usage = spool.usage();
        metrics.spool.set(usage.bytes as f64);
        metrics
            .missing_chunks
            .set((usage.missing + usage.absent) as f64);
        metrics.spool_limit.set(usage.limit as f64);
    }
    metrics.oldest.set(oldest(pipeline));
    metrics.targets.set_now(now());
    let letters = pipeline.letters.last_usage();
    metrics.letter_bytes.set(letters.bytes as f64);
    metrics.letter_limit.set(letters.limit as f64);
    match sink.credentials_expire() {
        Some(expiry) => {
            let left = expiry.duration_since(SystemTime::now());
            metrics
                .credentials
                .set(left.unwrap_or_default().as_secs_f64());
        }
        None => metrics.credentials.unset(),
    }
    metrics.read()
}

/// Returns whether the output delivers, as it is now. Does no I/O and does not wait.
pub(super) fn health(pipeline: &Pipeline) -> Health {
    let Context {
        traits, metrics, ..
    } = &*pipeline.context;
    let (mut troubles, fault) = pipeline.senders.troubles();
    troubles.sort_by(|(a, left), (b, right)| (left.since, a).cmp(&(right.since, b)));
    let troubled = troubles.len();
    let clock = now();
    let named = troubles.into_iter().take(MAX_TARGETS);
    let targets = named.map(|(target, trouble)| TargetTrouble {
        target: pipeline.senders.describe(&target),
        since: utc(trouble.since).format("%FT%TZ").to_string(),
        seconds: clock.seconds_since(trouble.since),
        error: trouble.fault.map(|fault| fault.to_string()),
    });
    let letters = pipeline.letters.last_usage();
    let spool = pipeline.spool().map(|spool| spool.usage());
    let layout = traits.object_layout.as_ref();
    Health {
        oldest: oldest(pipeline),
        open_for: match (&spool, layout) {
            (Some(_), Some(layout)) => layout.bounds.age,
            _ => Duration::ZERO,
        },
        idle: pipeline
            .progress
            .idle(metrics.records.get(Record::Delivered), Instant::now()),
        targets: targets.collect(),
        troubled,
        last_error: fault.map(|fault| fault.to_string()),
        spool: spool.map(|usage| Used {
            bytes: usage.bytes,
            limit: usage.limit,
        }),
        letters: Used {
            bytes: letters.bytes,
            limit: letters.limit,
        },
        letters_waiting: metrics.waiting_letters.get().unwrap_or_default() as u64,
    }
}

/// Returns the age of the oldest undelivered record in seconds; 0 if there is none.
fn oldest(pipeline: &Pipeline) -> f64 {
    if let Some(spool) = pipeline.spool() {
        let oldest = spool.usage().oldest;
        return oldest.map_or(0.0, |oldest| now().seconds_since(oldest));
    }
    // Those that a flush waits for, and those that the host keeps.
    let waiting = pipeline.context.metrics.waiting.oldest();
    let oldest = [waiting, pipeline.direct.arrivals.oldest()];
    let oldest = oldest.into_iter().flatten().min();
    oldest.map_or(0.0, |oldest| oldest.elapsed().as_secs_f64())
}

/// Returns the totals so far and what remains undelivered, in a line that fits a screen.
pub(super) fn summary(pipeline: &Pipeline) -> String {
    let Context {
        config, metrics, ..
    } = &*pipeline.context;
    let dir = config.spool.as_ref().map(|spool| &*spool.dir);
    let spool = pipeline.spool().map(|spool| {
        let dir = dir.unwrap_or(Path::new("the spool"));
        (spool.usage(), dir)
    });
    let records = |result| metrics.records.get(result);
    summary_line(
        records(Record::Delivered),
        records(Record::DeadLetter),
        spool,
    )
}

/// Formats that line.
fn summary_line(delivered: u64, letters: u64, spool: Option<(Usage, &Path)>) -> String {
    let mut line = format!("{delivered} records delivered");
    if letters > 0 {
        let _ = write!(line, ", {letters} became dead letters");
    }
    let Some((usage, dir)) = spool else {
        return line;
    };
    if usage.unfinished == 0 {
        line.push_str("; no chunk stays in the spool");
        return line;
    }
    let (chunks, bytes) = (usage.unfinished, size(usage.log_bytes()));
    let _ = write!(
        line,
        "; {chunks} chunks stay in {} ({bytes})",
        dir.display()
    );
    if usage.missing > 0 {
        let _ = write!(
            line,
            ": put back the missing files of {} before the next start",
            usage.missing
        );
    }
    line
}

/// Returns further totals, in one line.
pub(super) fn details(pipeline: &Pipeline) -> String {
    let Context {
        traits, metrics, ..
    } = &*pipeline.context;
    let records = |result| metrics.records.get(result);
    let twice = match traits.object_layout {
        None => "may be duplicated",
        Some(_) => "exist once",
    };
    let mut line = format!(
        "{} requests; {} records were sent again after a lost response and {twice}; {} records of retried chunks were \
         not sent again",
        metrics.requests.sum(),
        records(Record::Ambiguous),
        records(Record::Suppressed),
    );
    if let Some(spool) = pipeline.spool() {
        let usage = spool.usage();
        let _ = write!(
            line,
            "; {} chunks retried after a restart were not accepted twice",
            metrics.replayed_chunks.get(),
        );
        if metrics.corrupt_chunks.get() > 0 {
            let _ = write!(
                line,
                "; {} chunks were damaged or ended the process and are not delivered: the bytes of {} of them are in \
                 the spool's quarantine",
                metrics.corrupt_chunks.get(),
                metrics.quarantined_chunks.get(),
            );
        }
        if usage.absent > 0 {
            let _ = write!(
                line,
                "; {} chunks are in files missing since the start: put them back before the next start",
                usage.absent
            );
        }
    }
    if traits.object_layout.is_some() {
        let objects = |sealed| metrics.objects.get(sealed);
        let _ = write!(line, "; {} objects were written", metrics.objects.sum());
        if pipeline.spool().is_some() {
            let _ = write!(
                line,
                ", sealed by size: {}, by age: {}, by memory_limit or spool_limit: {}, at the end: {}",
                objects(Sealed::Size),
                objects(Sealed::Age),
                objects(Sealed::Memory),
                objects(Sealed::Stop),
            );
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_what_stays_and_where_and_fits_a_screen() {
        let usage = |unfinished, missing| Usage {
            bytes: 1_240_000_000,
            quarantined: 10_000_000,
            limit: 5_000_000_000,
            unfinished,
            missing,
            absent: 0,
            oldest: None,
            relocated: 0,
        };
        let dir = Path::new("/var/lib/ferry/firehose-app-logs");
        #[rustfmt::skip] // a table
        let cases = [
            (0, None, "60000 records delivered"),
            (3, None, "60000 records delivered, 3 became dead letters"),
            (0, Some(usage(0, 0)), "60000 records delivered; no chunk stays in the spool"),
            (
                3,
                Some(usage(1_200, 0)),
                "60000 records delivered, 3 became dead letters; 1200 chunks stay in /var/lib/ferry/firehose-app-logs (1.23 GB)",
            ),
            (
                0,
                Some(usage(12, 5)),
                "60000 records delivered; 12 chunks stay in /var/lib/ferry/firehose-app-logs (1.23 GB): put back the \
                 missing files of 5 before the next start",
            ),
        ];
        for (letters, usage, expected) in cases {
            let missing = usage.is_some_and(|usage| usage.missing > 0);
            let line = summary_line(60_000, letters, usage.map(|usage| (usage, dir)));
            assert_eq!(line, expected);
            assert!(line.len() <= 120 || missing, "{line}");
        }
    }
}
