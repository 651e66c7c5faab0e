//! What is told of a pipeline: its figures, and what was done in a line.

use std::fmt::Write as _;
use std::time::SystemTime;

use super::Pipeline;
use super::context::Context;
use crate::codec::time::now;
use crate::ids::Time;
use crate::metrics::{Figure, Record, Sealed};

/// The figures as they stand now. Asks no disk and waits for nobody.
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
    let oldest = match pipeline.spool() {
        Some(spool) => {
            let usage = spool.usage();
            metrics.spool.set(usage.bytes as f64);
            metrics
                .missing_chunks
                .set((usage.missing + usage.absent) as f64);
            metrics.spool_limit.set(usage.limit as f64);
            usage.oldest.map_or(0.0, |oldest| since(oldest, now()))
        }
        None => {
            let oldest = metrics.waiting.oldest();
            oldest.map_or(0.0, |oldest| oldest.elapsed().as_secs_f64())
        }
    };
    metrics.oldest.set(oldest);
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

/// What was done so far, in a line.
pub(super) fn summary(pipeline: &Pipeline) -> String {
    let Context {
        nature, metrics, ..
    } = &*pipeline.context;
    let records = |result| metrics.records.get(result);
    let twice = match nature.objects {
        None => "may be there twice",
        Some(_) => "are there once",
    };
    let mut line = format!(
        "{} records were delivered in {} requests, {} are dead letters; {} were sent again after a lost \
         answer and {twice}; {} came again with their chunk and were not sent twice",
        records(Record::Delivered),
        metrics.requests.sum(),
        records(Record::DeadLetter),
        records(Record::Ambiguous),
        records(Record::Suppressed),
    );
    if let Some(spool) = pipeline.spool() {
        let usage = spool.usage();
        let _ = write!(
            line,
            "; {} chunks stay in the spool ({} bytes), {} came again after a restart and were not taken twice",
            usage.unfinished,
            usage.bytes,
            metrics.replayed_chunks.get(),
        );
        if metrics.corrupt_chunks.get() > 0 {
            let _ = write!(
                line,
                ", {} were damaged or ended the process, and are not delivered: the bytes of {} of them lie in its \
                 quarantine",
                metrics.corrupt_chunks.get(),
                metrics.quarantined_chunks.get(),
            );
        }
        if usage.missing > 0 {
            let _ = write!(
                line,
                "; {} of the chunks that stay are in files that are missing: put them back before the next start",
                usage.missing
            );
        }
        if usage.absent > 0 {
            let _ = write!(
                line,
                "; {} more are in files that were not there at the start: put them back before the next one",
                usage.absent
            );
        }
    }
    if nature.objects.is_some() {
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

/// Seconds from one time to another; 0 where the clock was set back.
fn since(then: Time, now: Time) -> f64 {
    let seconds = now.seconds.saturating_sub(then.seconds) as f64;
    let nanos = f64::from(now.nanos) - f64::from(then.nanos);
    (seconds + nanos / 1e9).max(0.0)
}
