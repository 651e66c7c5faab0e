//! The pace of streams that throttle.

use std::collections::VecDeque;

use super::targets::{in_steps, in_time};
use super::*;
use crate::delivery::policy::pace::SMALL_REQUEST;
use crate::sink::outcome::Class;
use tokio::time::Instant;

/// Requests of any size, in records of a kilobyte.
const LARGE: Shape = Shape {
    limits: Limits {
        record_bytes: 1_000,
        record_lines: u32::MAX,
        joins: true,
        batch_records: 500,
        batch_bytes: 1_000_000,
    },
    piece_bytes: 100,
    compression: false,
};

/// How a stream answers a request.
#[derive(Clone, Copy)]
enum Reply {
    /// It accepts one record, and throttles the others.
    Throttle,
    /// It fails.
    Fail,
}

/// Streams of which `s` follows a script, and then accepts everything, as the others do.
#[derive(Default)]
struct Streams {
    script: Mutex<VecDeque<Reply>>,
    seen: Mutex<Vec<Request>>,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    at: Instant,
    scripted: bool,
    bytes: usize,
    accepted: usize,
}

impl Sink for Streams {
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(async { LARGE })
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        let scripted = *batch.target == *"s";
        let reply = match scripted {
            true => self.script.lock().unwrap().pop_front(),
            false => None,
        };
        let retry = |class| {
            Outcome::Retry(Arc::new(Fault {
                class,
                code: "Code".to_owned(),
                message: "message".to_owned(),
                request_id: None,
            }))
        };
        let mut outcomes = match reply {
            Some(Reply::Throttle) => vec![retry(Class::Throttle); batch.records.len()],
            Some(Reply::Fail) => vec![retry(Class::Transient); batch.records.len()],
            None => vec![Outcome::Delivered; batch.records.len()],
        };
        if matches!(reply, Some(Reply::Throttle)) {
            outcomes[0] = Outcome::Delivered;
        }
        let size = |(body, outcome): (&Payload, &Outcome)| match outcome {
            Outcome::Delivered => body.len(),
            _ => 0,
        };
        self.seen.lock().unwrap().push(Request {
            at: Instant::now(),
            scripted,
            bytes: batch.records.iter().map(Payload::len).sum(),
            accepted: batch.records.iter().zip(&outcomes).map(size).sum(),
        });
        Box::pin(async { outcomes })
    }
}

impl Streams {
    fn follow(replies: &[(Reply, usize)]) -> Arc<Streams> {
        let streams = Streams::default();
        let replies = replies.iter();
        *streams.script.lock().unwrap() = replies
            .flat_map(|(reply, count)| std::iter::repeat_n(*reply, *count))
            .collect();
        Arc::new(streams)
    }

    fn seen(&self, scripted: bool) -> Vec<Request> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter(|it| it.scripted == scripted)
            .copied()
            .collect()
    }

    fn accepted(&self, scripted: bool) -> usize {
        self.seen(scripted).iter().map(|it| it.accepted).sum()
    }
}

/// Throttling for as long as it takes until a stream has a pace: with the least waits between them, eight requests are
/// eleven seconds.
const THROTTLING: (Reply, usize) = (Reply::Throttle, 8);

/// A chunk that becomes so many lines of a hundred bytes.
fn large(lines: usize) -> Bytes {
    let text = "x".repeat(91);
    chunk(&vec![text.as_str(); lines])
}

async fn keep(bench: &Bench, tag: &[u8], lines: usize) {
    assert_eq!(bench.pipeline.flush(tag, large(lines)).await, Verdict::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_throttles_is_sent_small_requests_that_are_spaced_by_their_size() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::follow(&[THROTTLING]);
    let bench = start(dir.path(), &streams, FIREHOSE);
    keep(&bench, b"app", 500).await;
    in_steps(&bench, "all of it", || streams.accepted(true) == 50_000).await;
    let seen = streams.seen(true);
    assert_eq!(seen[0].bytes, 50_000, "there is no limit before");
    let seen = &seen[8..];
    assert!(seen.iter().all(|it| it.bytes <= SMALL_REQUEST), "{seen:?}");
    assert!(seen.len() >= 5, "{seen:?}");
    // It begins with 4 KiB/s; nothing is throttled any more, so that each request adds a quarter at most.
    let mut rate = 4_096.0;
    for pair in seen.windows(2) {
        rate *= 1.25;
        let took = (pair[1].at - pair[0].at).as_secs_f64();
        assert!(took >= pair[0].bytes as f64 / rate, "{took} s: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_throttle_has_no_pace() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::follow(&[]);
    let bench = start(dir.path(), &streams, FIREHOSE);
    for chunk in 1..=20 {
        keep(&bench, b"app", 500).await;
        // The clock stands still.
        until("a chunk", || streams.accepted(true) == chunk * 50_000).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_pace_holds_no_slot() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::follow(&[THROTTLING]);
    let keys = [
        FIREHOSE,
        &[("delivery_stream", "{tag}"), ("concurrency", "1")],
    ]
    .concat();
    let bench = start(dir.path(), &streams, &keys);
    keep(&bench, b"s", 500).await;
    in_time("a pace", || streams.seen(true).len() == 8).await;
    for chunk in 1..=20 {
        keep(&bench, b"well", 500).await;
        until("a chunk", || streams.accepted(false) == chunk * 50_000).await;
    }
    assert!(streams.accepted(true) < 50_000);
    in_time("the others", || streams.accepted(true) == 50_000).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_a_stream_starts_small() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::follow(&[]);
    let bench = start(dir.path(), &streams, FIREHOSE);
    keep(&bench, b"app", 100).await;
    in_time("a first chunk", || streams.accepted(true) == 10_000).await;
    let before = streams.seen(true).len();
    *streams.script.lock().unwrap() = vec![Reply::Fail; 8].into();
    keep(&bench, b"app", 500).await;
    in_steps(&bench, "all of it", || streams.accepted(true) == 60_000).await;
    let seen = &streams.seen(true)[before..];
    assert_eq!(seen[4].bytes, 50_000, "the circuit is closed");
    let after = &seen[5..];
    assert!(
        after.iter().all(|it| it.bytes <= SMALL_REQUEST),
        "{after:?}"
    );
    let (first, last) = (&after[3], &after[after.len() - 1]);
    assert!(last.at - first.at > Duration::from_secs(3), "{after:?}");
}
