//! Any answer of a service: no panic, an outcome for each record, nothing delivered that the service did not
//! say it took, nothing given up but by the few codes that are known to name the record or the object (no unknown
//! answer rejects), and errors that fit into a line of a log.
//!
//! An input is text, so that it can be read and written by hand: a line that says what is asked of whom
//! (`firehose 3`, `describe`, `azure`, `s3`, `gcs`), then the answers, with `%%` between them
//! ([`script::Answer::read`]).

#![no_main]

mod blob;
mod firehose;
mod script;

use std::cell::LazyCell;

use ferry::sink::{Fault, Outcome};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

use script::Answer;

fuzz_target!(|data: &[u8]| {
    let (asked, answers) = script::line(data);
    let answers = Answer::read_all(answers);
    let (whom, count) =
        asked.split_at(asked.iter().position(|b| *b == b' ').unwrap_or(asked.len()));
    let count = count
        .iter()
        .filter(|b| b.is_ascii_digit())
        .map(|b| usize::from(b - b'0'))
        .sum::<usize>();
    match whom {
        b"firehose" => firehose::put(&answers[0], count.clamp(1, 9)),
        b"describe" => firehose::describe(&answers[0]),
        b"s3" => blob::put(blob::Kind::S3, &answers),
        b"gcs" => blob::put(blob::Kind::Gcs, &answers),
        _ => blob::put(blob::Kind::Azure, &answers),
    }
});

/// Runs to the end what waits for nothing but a clock, and lets the clock jump: a service that stays
/// silent costs no time.
fn run<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: LazyCell<Runtime> = const { LazyCell::new(|| {
            let mut builder = Builder::new_current_thread();
            builder.enable_time().start_paused(true).build().expect("a runtime")
        }) };
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

fn fault(outcome: &Outcome) -> Option<&Fault> {
    match outcome {
        Outcome::Delivered => None,
        Outcome::Retry(fault) | Outcome::Ambiguous(fault) | Outcome::Rejected(fault) => Some(fault),
    }
}

/// What is told of an error fits into a line of a log and stays one.
fn check_words(outcomes: &[Outcome]) {
    for fault in outcomes.iter().filter_map(fault) {
        let id = fault.request_id.as_deref().unwrap_or_default();
        assert!(!fault.code.is_empty());
        for (words, longest) in [
            (fault.code.as_str(), 128),
            (&fault.message, 1_000),
            (id, 128),
        ] {
            assert!(words.len() <= longest, "{} bytes of {words}", words.len());
            assert!(
                !words.contains(char::is_control),
                "more than a line: {words:?}"
            );
        }
    }
}
