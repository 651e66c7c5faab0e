use super::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::buffers::Payload;
use crate::config::Config;
use crate::log::tests::Lines;
use crate::metrics::{Record, Sealed};
use crate::sink::{Batch, Class, Fault, Limits, Outcome, Shape};

mod circuits;
mod memory;

/// The trouble of a target.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    /// It accepts nothing.
    Down(Class),
    /// It does not answer until it works again, and then accepts what it was sent.
    Silent,
    /// It does not describe its shape.
    Undescribed,
}

/// A destination that follows a script call by call, and then accepts everything from targets without trouble.
struct Scripted {
    shape: Shape,
    script: Mutex<VecDeque<Step>>,
    seen: Mutex<Vec<Batch>>,
    go: Option<Arc<Notify>>,
    trouble: watch::Sender<BTreeMap<String, Trouble>>,
    asked: AtomicU64,
    /// The number of the shape request that panics; 0 for none.
    panic_when_asked: AtomicU64,
}

type Step = Box<dyn Fn(&Batch) -> Vec<Outcome> + Send>;

impl Sink for Scripted {
    fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(async move {
            self.wait_while(target, Trouble::Undescribed).await;
            // Asked once for a flush, and then by its sender.
            let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            assert_ne!(
                asked,
                self.panic_when_asked.load(Ordering::Relaxed),
                "on purpose"
            );
            self.shape
        })
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let step = self.script.lock().unwrap().pop_front();
            self.seen.lock().unwrap().push(batch.copied());
            if let Some(go) = &self.go {
                go.notified().await;
            }
            self.wait_while(&batch.target, Trouble::Silent).await;
            let trouble = self.trouble.borrow().get(&*batch.target).copied();
            match (step, trouble) {
                (Some(step), _) => step(&batch),
                (None, Some(Trouble::Down(class))) => all(Outcome::Retry, class)(&batch),
                (None, _) => vec![Outcome::Delivered; batch.records.len()],
            }
        })
    }
}

impl Scripted {
    /// Sets or clears the trouble of a target.
    fn set_trouble(&self, target: &str, trouble: Option<Trouble>) {
        self.trouble.send_modify(|all| {
            match trouble {
                Some(trouble) => all.insert(target.to_owned(), trouble),
                None => all.remove(target),
            };
        });
    }

    async fn wait_while(&self, target: &str, trouble: Trouble) {
        let mut now = self.trouble.subscribe();
        let well = now.wait_for(|all| all.get(target) != Some(&trouble));
        well.await.expect("the sender is ours");
    }

    /// Returns the lines of each call, record by record.
    fn calls(&self) -> Vec<Vec<String>> {
        let text =
            |body: &Payload| String::from_utf8(body.to_bytes().to_vec()).expect("plain text");
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|batch| batch.records.iter().map(text).collect())
            .collect()
    }

    fn targets(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|batch| batch.target.to_string())
            .collect()
    }
}

fn fault(class: Class) -> Arc<Fault> {
    Arc::new(Fault {
        class,
        code: "Code".into(),
        message: "message".into(),
        request_id: Some("r-1".into()),
    })
}

/// One line a record, three records a call.
const ONE_LINE: Shape = Shape {
    limits: Limits {
        record_bytes: 1_000,
        record_lines: 1,
        joins: true,
        batch_records: 3,
        batch_bytes: 10_000,
    },
    piece_bytes: 100,
    compression: false,
};

/// One object a call, however large.
pub(super) const OBJECT: Shape = Shape {
    limits: Limits {
        record_bytes: usize::MAX,
        record_lines: u32::MAX,
        joins: false,
        batch_records: 1,
        batch_bytes: usize::MAX,
    },
    piece_bytes: usize::MAX,
    compression: true,
};

/// A pipeline in front of a scripted sink.
struct Bench {
    pipeline: Arc<Pipeline>,
    sink: Arc<Scripted>,
    lines: Lines,
    dir: TempDir,
}

impl Bench {
    fn new(shape: Shape, keys: &[(&'static str, &str)], script: Vec<Step>) -> Bench {
        Bench::with_gate(shape, keys, script, None)
    }

    fn with_gate(
        shape: Shape,
        keys: &[(&'static str, &str)],
        script: Vec<Step>,
        go: Option<Arc<Notify>>,
    ) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let letters = dir.path().join("letters");
        let mut all = vec![("dead_letter_dir", letters.display().to_string())];
        all.extend(keys.iter().map(|(key, value)| (*key, (*value).to_owned())));
        if !keys.iter().any(|(key, _)| *key == "url") {
            all.push(("delivery_stream", "s".to_owned()));
        } else if !keys.iter().any(|(key, _)| *key == "spool") {
            all.push(("spool", "off".to_owned()));
        }
        let get = |key: &str| {
            let found = all.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| value.clone())
        };
        let config = Config::read(&get).expect("a good configuration");
        let sink = Arc::new(Scripted {
            shape,
            script: Mutex::new(script.into()),
            seen: Mutex::default(),
            go,
            trouble: watch::Sender::default(),
            asked: AtomicU64::new(0),
            panic_when_asked: AtomicU64::new(0),
        });
        let lines = Lines::default();
        let log = Arc::new(Log::new(Box::new(lines.clone()), "ferry"));
        let letters = DeadLetters::open(&letters, 1_000_000).unwrap();
        let pipeline = Arc::new(Pipeline::new(
            config,
            Arc::clone(&sink) as Arc<dyn Sink>,
            letters,
            Identity::of_this_run(),
            log,
        ));
        Bench {
            pipeline,
            sink,
            lines,
            dir,
        }
    }

    async fn flush(&self, events: &[&str]) -> Verdict {
        self.pipeline.flush(b"app", chunk(events)).await
    }

    fn letters(&self) -> Vec<serde_json::Value> {
        std::fs::read_to_string(
            self.dir
                .path()
                .join("letters")
                .join(crate::delivery::dead_letter::FILE),
        )
        .unwrap_or_default()
        .lines()
        .map(|line| serde_json::from_str(line).expect("valid JSON"))
        .collect()
    }

    fn logged(&self, what: &str) -> bool {
        self.lines
            .0
            .lock()
            .unwrap()
            .iter()
            .any(|(_, line)| line.contains(what))
    }
}

/// A chunk of events `{"k": …}`.
fn chunk(events: &[&str]) -> Bytes {
    let mut bytes = Vec::new();
    for event in events {
        bytes.extend_from_slice(b"\x92\x92\xd7\x00\x68\x15\x9a\x2f\0\0\0\0\x80\x81\xa1k");
        rmp::encode::write_str(&mut bytes, event).unwrap();
    }
    bytes.into()
}

fn line(event: &str) -> String {
    format!("{{\"k\":\"{event}\"}}\n")
}

fn lines(events: &[&str]) -> Vec<String> {
    events.iter().map(|event| line(event)).collect()
}

fn all(outcome: fn(Arc<Fault>) -> Outcome, class: Class) -> Step {
    Box::new(move |batch| vec![outcome(fault(class)); batch.records.len()])
}

/// Failures that outlast a `flush_deadline` of a second: the waits after them are at least half a second and one.
fn held_for_a_second() -> Vec<Step> {
    vec![
        all(Outcome::Retry, Class::Configuration),
        all(Outcome::Retry, Class::Configuration),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_chunk_is_ok_when_every_record_is_acknowledged() {
    let bench = Bench::new(ONE_LINE, &[], vec![]);
    assert_eq!(bench.flush(&["a", "b", "c", "d"]).await, Verdict::Ok);
    assert_eq!(bench.sink.calls(), [lines(&["a", "b", "c"]), lines(&["d"])]);
}

#[tokio::test(start_paused = true)]
async fn only_the_records_that_failed_are_sent_again() {
    let second_fails: Step = Box::new(|batch| {
        let mut outcomes = vec![Outcome::Delivered; batch.records.len()];
        outcomes[1] = Outcome::Retry(fault(Class::Throttle));
        outcomes
    });
    let bench = Bench::new(ONE_LINE, &[], vec![second_fails]);
    assert_eq!(bench.flush(&["a", "b", "c"]).await, Verdict::Ok);
    assert_eq!(bench.sink.calls(), [lines(&["a", "b", "c"]), lines(&["b"])]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_response_is_counted_because_its_records_are_sent_twice() {
    let bench = Bench::new(
        ONE_LINE,
        &[],
        vec![all(Outcome::Ambiguous, Class::Transient)],
    );
    assert_eq!(bench.flush(&["a", "b"]).await, Verdict::Ok);
    assert_eq!(bench.sink.calls().len(), 2);
    assert_eq!(bench.pipeline.summary(), "2 records delivered");
    let details = bench.pipeline.details();
    assert!(
        details.contains("2 requests; 2 records were sent again after a lost response"),
        "{details}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rejected_record_is_kept_as_a_dead_letter_with_its_reason() {
    let bench = Bench::new(ONE_LINE, &[], vec![all(Outcome::Rejected, Class::Record)]);
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok);
    let letters = bench.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["tag"], "app");
    assert_eq!(letters[0]["reason"], "refused");
    assert_eq!(letters[0]["error"], "Code: message");
    assert_eq!(letters[0]["request_id"], "r-1");
    assert_eq!(letters[0]["record"], line("a"));
}

#[tokio::test(start_paused = true)]
async fn one_bad_record_is_isolated_and_the_others_arrive() {
    let refuse_b = || -> Step {
        Box::new(|batch| {
            let bad = batch
                .records
                .iter()
                .any(|body| body.to_bytes() == line("b"));
            let outcome = match (bad, batch.records.len()) {
                (false, _) => Outcome::Delivered,
                (true, 1) => Outcome::Rejected(fault(Class::Record)),
                (true, _) => Outcome::Retry(fault(Class::Record)),
            };
            vec![outcome; batch.records.len()]
        })
    };
    let bench = Bench::new(ONE_LINE, &[], (0..4).map(|_| refuse_b()).collect());
    assert_eq!(bench.flush(&["a", "b", "c"]).await, Verdict::Ok);
    assert_eq!(bench.sink.calls()[0], lines(&["a", "b", "c"]));
    assert!(bench.sink.calls()[1..].iter().all(|call| call.len() == 1));
    assert_eq!(bench.letters().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_request_that_is_too_large_requests_are_halved() {
    let too_large: Step = all(Outcome::Retry, Class::TooLarge);
    let shape = Shape {
        limits: Limits {
            record_bytes: 20,
            batch_records: 8,
            batch_bytes: 80,
            ..ONE_LINE.limits
        },
        ..ONE_LINE
    };
    let bench = Bench::new(shape, &[], vec![too_large]);
    assert_eq!(
        bench.flush(&["a", "b", "c", "d", "e", "f"]).await,
        Verdict::Ok
    );
    let sizes: Vec<usize> = bench.sink.calls().iter().map(Vec::len).collect();
    assert_eq!(sizes, [6, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_does_not_answer_ends_in_retry_at_the_deadline() {
    let never = Arc::new(Notify::new());
    let bench = Bench::with_gate(ONE_LINE, &[("flush_deadline", "7s")], vec![], Some(never));
    let start = tokio::time::Instant::now();
    assert_eq!(bench.flush(&["a"]).await, Verdict::Retry);
    assert_eq!(start.elapsed(), Duration::from_secs(7));
    assert!(bench.logged("within flush_deadline (7 s)"));
}

#[tokio::test(start_paused = true)]
async fn records_of_a_flush_that_gave_up_are_not_sent() {
    let bench = Bench::new(ONE_LINE, &[("flush_deadline", "1s")], held_for_a_second());
    assert_eq!(bench.flush(&["given up"]).await, Verdict::Retry);
    let tries = bench.sink.calls().len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    // If the first wait took the whole second, the other step was not needed.
    bench.sink.script.lock().unwrap().clear();
    assert_eq!(bench.flush(&["next"]).await, Verdict::Ok);
    assert_eq!(bench.sink.calls()[tries..], [lines(&["next"])]);
}

#[tokio::test(start_paused = true)]
async fn flushes_that_wait_together_share_a_request() {
    let go = Arc::new(Notify::new());
    let bench = Bench::with_gate(
        ONE_LINE,
        &[("concurrency", "1")],
        vec![],
        Some(Arc::clone(&go)),
    );
    let flush = |event: &'static str| {
        let pipeline = Arc::clone(&bench.pipeline);
        tokio::spawn(async move { pipeline.flush(b"app", chunk(&[event])).await })
    };
    // Time stands still while anything can run: after a sleep, everything that can run has.
    let first = flush("a");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let flushes = [first, flush("b"), flush("c")];
    tokio::time::sleep(Duration::from_millis(1)).await;
    for _ in 0..2 {
        go.notify_one();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for flush in flushes {
        assert_eq!(flush.await.unwrap(), Verdict::Ok);
    }
    assert_eq!(bench.sink.calls(), [lines(&["a"]), lines(&["b", "c"])]);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_exceeds_a_record_is_a_dead_letter_and_not_a_broken_line() {
    let long = "x".repeat(2_000);
    let bench = Bench::new(ONE_LINE, &[], vec![]);
    assert_eq!(bench.flush(&["a", &long, "b"]).await, Verdict::Ok);
    assert_eq!(bench.sink.calls(), [lines(&["a", "b"])]);
    let letters = bench.letters();
    assert_eq!(letters[0]["reason"], "too_large");
    assert_eq!(letters[0]["record"], line(&long).trim_end());
}

#[tokio::test(start_paused = true)]
async fn compressed_records_stay_within_their_limit_and_hold_every_line() {
    let shape = Shape {
        limits: Limits {
            record_bytes: 600,
            record_lines: u32::MAX,
            ..ONE_LINE.limits
        },
        compression: true,
        ..ONE_LINE
    };
    let bench = Bench::new(shape, &[("compression", "zstd")], vec![]);
    // Hashes do not compress: halves are halved until they fit.
    let events: Vec<String> = (0..100u32)
        .map(|n| blake3::hash(&n.to_le_bytes()).to_hex().to_string())
        .collect();
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    assert_eq!(bench.flush(&events).await, Verdict::Ok);
    let mut text = String::new();
    for record in bench
        .sink
        .seen
        .lock()
        .unwrap()
        .iter()
        .flat_map(|batch| &batch.records)
    {
        assert!(record.len() <= 600, "{}", record.len());
        text.push_str(
            std::str::from_utf8(&zstd::decode_all(&record.to_bytes()[..]).unwrap()).unwrap(),
        );
    }
    assert_eq!(text, lines(&events).concat());
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_cannot_be_written_holds_its_chunk_back_but_not_its_neighbours() {
    let bench = Bench::new(ONE_LINE, &[], vec![]);
    let letters = bench.dir.path().join("letters");
    std::fs::remove_dir(&letters).unwrap();
    std::fs::write(&letters, "a file in its place").unwrap();
    let long = "x".repeat(2_000);
    assert_eq!(bench.flush(&["a", &long]).await, Verdict::Retry);
    assert_eq!(
        bench.sink.calls(),
        [lines(&["a"])],
        "its neighbours are delivered regardless"
    );
    std::fs::remove_file(&letters).unwrap();
    assert_eq!(bench.flush(&["a", &long]).await, Verdict::Ok);
    assert_eq!(bench.letters().len(), 1);
    assert_eq!(
        bench.sink.calls(),
        [lines(&["a"])],
        "their delivery is remembered"
    );
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_waits_only_for_letter_space_is_not_encoded_before_there_is_some() {
    let bench = Bench::new(ONE_LINE, &[], vec![]);
    let full = bench.dir.path().join("letters/dead-letters-before.ndjson");
    std::fs::write(&full, "x".repeat(999_990)).unwrap();
    let long = "x".repeat(2_000);
    let encoded = || bench.pipeline.metrics().bytes.get(Stage::Encoded);
    assert_eq!(bench.flush(&["a", &long]).await, Verdict::Retry);
    let before = encoded();
    for _ in 0..10 {
        assert_eq!(bench.flush(&["a", &long]).await, Verdict::Retry);
    }
    assert_eq!(encoded(), before);
    assert_eq!(bench.sink.calls(), [lines(&["a"])]);
    std::fs::remove_file(&full).unwrap();
    bench.pipeline.letters.folder().usage().unwrap();
    assert_eq!(bench.flush(&["a", &long]).await, Verdict::Ok);
    assert_eq!((bench.letters().len(), bench.sink.calls().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_record_that_cannot_be_kept_answers_retry_at_once() {
    let bench = Bench::new(ONE_LINE, &[], vec![all(Outcome::Rejected, Class::Record)]);
    let letters = bench.dir.path().join("letters");
    std::fs::remove_dir(&letters).unwrap();
    std::fs::write(&letters, "a file in its place").unwrap();
    let start = tokio::time::Instant::now();
    assert_eq!(bench.flush(&["a"]).await, Verdict::Retry);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(
        bench.sink.calls().len(),
        1,
        "the destination is not asked again and again"
    );
    assert!(bench.logged("dead letters cannot be written"));
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_accepts_less_and_less_is_not_asked_forever() {
    let too_large = || all(Outcome::Retry, Class::TooLarge);
    let bench = Bench::new(ONE_LINE, &[], vec![too_large(), too_large(), too_large()]);
    assert_eq!(bench.flush(&["a", "b", "c"]).await, Verdict::Ok);
    let sizes: Vec<usize> = bench.sink.calls().iter().map(Vec::len).collect();
    assert_eq!(sizes[..2], [3, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_object_still_queued_when_its_chunk_is_retried_has_each_line_once() {
    let go = Arc::new(Notify::new());
    let keys = [
        ("url", "file:///objects"),
        ("flush_deadline", "1s"),
        ("compression", "none"),
        ("concurrency", "1"),
    ];
    let bench = Bench::with_gate(OBJECT, &keys, vec![], Some(Arc::clone(&go)));
    let flush = |event: &'static str| {
        let pipeline = Arc::clone(&bench.pipeline);
        tokio::spawn(async move { pipeline.flush(b"app", chunk(&[event])).await })
    };
    // The first is in flight without an answer; the second waits for it, and its flush gives up.
    let (first, second) = (flush("a"), flush("b"));
    assert_eq!(first.await.unwrap(), Verdict::Retry);
    assert_eq!(second.await.unwrap(), Verdict::Retry);
    let again = flush("b");
    tokio::time::sleep(Duration::from_millis(100)).await;
    go.notify_one();
    tokio::time::sleep(Duration::from_millis(100)).await;
    go.notify_one();
    assert_eq!(again.await.unwrap(), Verdict::Ok);
    assert_eq!(bench.sink.calls(), [lines(&["a"]), lines(&["b"])]);
}

#[tokio::test(start_paused = true)]
async fn an_object_keeps_its_name_on_a_retry_and_an_identical_chunk_gets_another() {
    let bench = Bench::new(
        OBJECT,
        &[
            ("url", "file:///objects"),
            ("flush_deadline", "1s"),
            ("compression", "none"),
        ],
        vec![all(Outcome::Retry, Class::Configuration)],
    );
    assert_eq!(bench.flush(&["a"]).await, Verdict::Retry);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok);
    let tries = bench.sink.targets().len();
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok);
    let targets = bench.sink.targets();
    assert!(targets[..tries].iter().all(|target| *target == targets[0]));
    let stem = targets[0].strip_suffix(".ndjson").unwrap();
    assert!(
        stem.starts_with("app/2025/05/03/04/20250503T042311Z-"),
        "{stem}"
    );
    assert_eq!(targets[tries], format!("{stem}-2.ndjson"));
}

/// What was delivered for one has its name: it is of no use to the other.
#[tokio::test(start_paused = true)]
async fn identical_chunks_that_are_retried_each_get_all_of_their_objects() {
    let keys = [
        ("url", "file:///objects"),
        ("path", "{record.k}"),
        ("flush_deadline", "1s"),
        ("compression", "none"),
    ];
    let working = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let delivered = Arc::new(Mutex::new(std::collections::BTreeSet::new()));
    let step = || -> Step {
        let (working, delivered) = (Arc::clone(&working), Arc::clone(&delivered));
        Box::new(move |batch| {
            let first = batch.target.starts_with("a/") && !batch.target.contains("-2.");
            if first || working.load(Ordering::Relaxed) {
                delivered.lock().unwrap().insert(batch.target.to_string());
                return vec![Outcome::Delivered];
            }
            vec![Outcome::Retry(fault(Class::Throttle))]
        })
    };
    let bench = Bench::new(OBJECT, &keys, (0..1_000).map(|_| step()).collect());
    let flush = || {
        let pipeline = Arc::clone(&bench.pipeline);
        tokio::spawn(async move { pipeline.flush(b"app", chunk(&["a", "b"])).await })
    };
    let sleep = |millis| tokio::time::sleep(Duration::from_millis(millis));
    let one = flush();
    sleep(500).await;
    let other = flush();
    sleep(600).await;
    let one_again = flush();
    for flush in [one, other, one_again] {
        assert_eq!(flush.await.unwrap(), Verdict::Retry);
    }
    sleep(60_000).await;
    working.store(true, Ordering::Relaxed);
    for flush in [flush(), flush()] {
        assert_eq!(flush.await.unwrap(), Verdict::Ok);
    }
    let delivered = delivered.lock().unwrap();
    assert_eq!(delivered.len(), 4, "{delivered:?}");
}

/// The pieces of a step settle while the next step waits for memory, and what is settled is remembered.
#[tokio::test(start_paused = true)]
async fn a_chunk_of_several_steps_resumes_where_its_deadline_interrupted_it() {
    let keys = [
        ("url", "file:///objects"),
        ("tag_key", "tag"),
        ("memory_limit", "4M"),
        ("flush_deadline", "1s"),
        ("compression", "none"),
    ];
    let tag = vec![b't'; 60_000];
    let events: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    let data = chunk(&events);
    // The first object is accepted, the second not before its flush has given up.
    let taken: Step = Box::new(|batch| vec![Outcome::Delivered; batch.records.len()]);
    let script = std::iter::once(taken).chain(held_for_a_second());
    let bench = Bench::new(OBJECT, &keys, script.collect());
    assert_eq!(
        bench.pipeline.flush(&tag, data.clone()).await,
        Verdict::Retry
    );
    let before = bench.sink.targets();
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.sink.script.lock().unwrap().clear();
    assert_eq!(bench.pipeline.flush(&tag, data).await, Verdict::Ok);
    let targets = bench.sink.targets();
    let after = &targets[before.len()..];
    assert!(before[1..].iter().all(|target| *target == before[1]));
    assert_eq!(after[0], before[1], "the first is there");
    // Each name tells which events the object has.
    let (mut next, mut names) = (0, 0);
    for target in before[..1].iter().chain(after) {
        let (_, events) = target.rsplit_once("-e").unwrap();
        let (first, end) = events
            .strip_suffix(".ndjson")
            .unwrap()
            .split_once('-')
            .unwrap();
        assert_eq!(first, next.to_string());
        next = end.parse::<u32>().unwrap();
        names += 1;
    }
    assert!(next == 500 && names > 3, "{names}");
    let lines: usize = bench.sink.calls()[before.len()..]
        .iter()
        .chain(&bench.sink.calls()[..1])
        .map(|call| call[0].lines().count())
        .sum();
    assert_eq!(lines, 500);
}

#[tokio::test(start_paused = true)]
async fn memory_bounds_what_is_in_flight() {
    let go = Arc::new(Notify::new());
    let bench = Bench::with_gate(
        ONE_LINE,
        &[("memory_limit", "4M"), ("flush_deadline", "5s")],
        vec![],
        Some(Arc::clone(&go)),
    );
    let large = "x".repeat(900);
    let events = vec![large.as_str(); 2_100];
    let flush = |data: Bytes| {
        let pipeline = Arc::clone(&bench.pipeline);
        tokio::spawn(async move { pipeline.flush(b"app", data).await })
    };
    let first = flush(chunk(&events));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second_large = "y".repeat(900);
    let second = flush(chunk(&vec![second_large.as_str(); 200]));
    for _ in 0..100_000 {
        if first.is_finished() && second.is_finished() {
            break;
        }
        go.notify_one();
        tokio::time::sleep(Duration::from_micros(10)).await;
    }
    assert_eq!(
        (first.await.unwrap(), second.await.unwrap()),
        (Verdict::Ok, Verdict::Ok)
    );
    let letters: Vec<bool> = bench
        .sink
        .calls()
        .iter()
        .flatten()
        .map(|line| line.contains('y'))
        .collect();
    assert!(
        letters.is_sorted(),
        "the second is not encoded before the first is done"
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_sink_answers_retry_and_the_next_chunk_is_delivered() {
    let bench = Bench::new(ONE_LINE, &[], vec![Box::new(|_| panic!("on purpose"))]);
    assert_eq!(bench.flush(&["a"]).await, Verdict::Retry);
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_panicked_is_restarted() {
    let bench = Bench::new(ONE_LINE, &[], vec![]);
    bench.sink.panic_when_asked.store(2, Ordering::Relaxed);
    assert_eq!(bench.flush(&["a"]).await, Verdict::Retry);
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok);
    assert_eq!(bench.sink.calls(), [lines(&["a"])]);
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_needs_a_fix_holds_data_back_and_is_logged_until_it_is_fixed() {
    let bench = Bench::new(
        ONE_LINE,
        &[],
        vec![all(Outcome::Retry, Class::Configuration)],
    );
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok);
    assert!(bench.logged("retrying until this is fixed"));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.flush(&["b"]).await, Verdict::Ok);
    assert!(bench.logged("accepts records again"));
}

#[tokio::test(start_paused = true)]
async fn only_the_rest_of_a_retried_chunk_is_sent() {
    let only_first: Step = Box::new(|batch| {
        let mut outcomes = vec![Outcome::Retry(fault(Class::Configuration)); batch.records.len()];
        outcomes[0] = Outcome::Delivered;
        outcomes
    });
    let script = vec![only_first, all(Outcome::Retry, Class::Configuration)];
    let long = "x".repeat(2_000);
    let chunk = ["a", "b", &long];
    let bench = Bench::new(ONE_LINE, &[("flush_deadline", "1s")], script);
    assert_eq!(bench.flush(&chunk).await, Verdict::Retry);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let tries = bench.sink.calls().len();
    assert_eq!(bench.flush(&chunk).await, Verdict::Ok);
    assert_eq!(bench.sink.calls()[tries..], [lines(&["b"])]);
    assert_eq!(
        bench.letters().len(),
        1,
        "a dead letter is not written twice either"
    );

    // A third time it is another chunk with the same bytes, and all of it is sent.
    assert_eq!(bench.flush(&chunk).await, Verdict::Ok);
    assert_eq!(bench.sink.calls().last(), Some(&lines(&["a", "b"])));
}

#[tokio::test(start_paused = true)]
async fn records_in_flight_at_the_deadline_are_not_sent_twice() {
    let go = Arc::new(Notify::new());
    let bench = Bench::with_gate(
        ONE_LINE,
        &[("flush_deadline", "1s")],
        vec![],
        Some(Arc::clone(&go)),
    );
    assert_eq!(bench.flush(&["a", "b"]).await, Verdict::Retry);
    let again = {
        let pipeline = Arc::clone(&bench.pipeline);
        tokio::spawn(async move { pipeline.flush(b"app", chunk(&["a", "b"])).await })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        bench.sink.calls().len(),
        1,
        "the first request decides what is left"
    );
    go.notify_one();
    assert_eq!(again.await.unwrap(), Verdict::Ok);
    assert_eq!(bench.sink.calls(), [lines(&["a", "b"])]);
    let details = bench.pipeline.details();
    assert!(
        details.contains("2 records of retried chunks were not sent again"),
        "{details}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_object_that_exists_when_its_chunk_is_retried_counts_once() {
    let keys = [
        ("url", "file:///objects"),
        ("path", "{record.k}"),
        ("flush_deadline", "1s"),
        ("compression", "none"),
    ];
    let script = vec![
        Box::new(|batch: &Batch| vec![Outcome::Delivered; batch.records.len()]) as Step,
        all(Outcome::Retry, Class::Configuration),
    ];
    let bench = Bench::new(OBJECT, &keys, script);
    assert_eq!(bench.flush(&["a", "b"]).await, Verdict::Retry);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.flush(&["a", "b"]).await, Verdict::Ok);
    let metrics = bench.pipeline.metrics();
    assert_eq!(metrics.records.get(Record::Delivered), 2);
    assert_eq!(metrics.objects.get(Sealed::Flush), 2);
    let bytes = (line("a").len() + line("b").len()) as u64;
    assert_eq!(metrics.bytes.get(Stage::Sent), bytes);
    assert_eq!(metrics.bytes.get(Stage::Billed), 0);
    assert_eq!(
        metrics.bytes.get(Stage::Raw),
        chunk(&["a", "b"]).len() as u64,
        "taken once"
    );
    assert_eq!(metrics.requests.sum(), bench.sink.calls().len() as u64);
}

#[tokio::test(start_paused = true)]
async fn skipped_records_count_once_however_often_their_chunk_is_retried() {
    let keys = [("log_key", "k"), ("flush_deadline", "1s")];
    let bench = Bench::new(ONE_LINE, &keys, held_for_a_second());
    let other: &[u8] = b"\x92\x92\xd7\x00\x68\x15\x9a\x2f\0\0\0\0\x80\x81\xa1z\xa1x";
    let data: Bytes = [&chunk(&["a"])[..], other].concat().into();
    let metrics = bench.pipeline.metrics();
    assert_eq!(
        bench.pipeline.flush(b"app", data.clone()).await,
        Verdict::Retry
    );
    assert_eq!(metrics.records.get(Record::Skipped), 0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.pipeline.flush(b"app", data).await, Verdict::Ok);
    assert_eq!(metrics.records.get(Record::Skipped), 1);
    assert_eq!(metrics.records.get(Record::Delivered), 1);
}

/// During an outage of hours a chunk is retried hundreds of times.
#[tokio::test(start_paused = true)]
async fn a_malformed_event_is_one_letter_however_often_its_chunk_is_retried() {
    let broken: &[u8] = b"\x92\x92\xd7\x00\x68\x15\x9a\x2f\0\0\0\0\x80\x01";
    let data: Bytes = [&chunk(&["a"])[..], broken, &chunk(&["b"])[..]]
        .concat()
        .into();
    let objects: &[_] = &[
        ("url", "file:///objects"),
        ("path", "one"),
        ("compression", "none"),
    ];
    for (shape, keys) in [(ONE_LINE, &[][..]), (OBJECT, objects)] {
        let keys = [keys, &[("flush_deadline", "1s")]].concat();
        let bench = Bench::new(shape, &keys, held_for_a_second());
        let flush = || bench.pipeline.flush(b"app", data.clone());
        assert_eq!(flush().await, Verdict::Retry);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(flush().await, Verdict::Ok);
        assert_eq!(bench.letters().len(), 1, "{keys:?}");
        let letters = bench.pipeline.metrics().records.get(Record::DeadLetter);
        assert_eq!(letters, 1, "{keys:?}");
        // Another chunk with the same bytes has a letter of its own.
        assert_eq!(flush().await, Verdict::Ok);
        assert_eq!(bench.letters().len(), 2, "{keys:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_metrics_tell_how_long_the_oldest_record_waits_and_what_it_holds() {
    let go = Arc::new(Notify::new());
    let bench = Bench::with_gate(ONE_LINE, &[], vec![], Some(Arc::clone(&go)));
    let metrics = bench.pipeline.metrics();
    let figure = |of: fn(&Metrics) -> &crate::metrics::Gauge| {
        bench.pipeline.figures();
        of(metrics).get()
    };
    let oldest = || figure(|metrics| &metrics.oldest);
    let memory = || figure(|metrics| &metrics.memory);
    assert_eq!((oldest(), memory()), (Some(0.0), Some(0.0)));
    let flush = {
        let pipeline = Arc::clone(&bench.pipeline);
        tokio::spawn(async move { pipeline.flush(b"app", chunk(&["a"])).await })
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(oldest(), Some(5.0));
    assert_eq!(memory(), Some(super::memory::UNIT as f64));
    go.notify_one();
    assert_eq!(flush.await.unwrap(), Verdict::Ok);
    assert_eq!((oldest(), memory()), (Some(0.0), Some(0.0)));
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_destination_opens_the_circuit_and_its_recovery_is_logged() {
    let down = || all(Outcome::Retry, Class::Transient);
    let script = (0..8).map(|_| down()).collect();
    let bench = Bench::new(ONE_LINE, &[], script);
    let metrics = Arc::clone(bench.pipeline.metrics());
    assert_eq!(bench.flush(&["a"]).await, Verdict::Retry);
    assert!(metrics.circuit_is_open());
    assert!(bench.logged("probing with one request at a time"));
    assert!(bench.logged("delivery stream 's'"));
    for verdict in [Verdict::Retry, Verdict::Retry, Verdict::Retry, Verdict::Ok] {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(bench.flush(&["a"]).await, verdict);
    }
    assert!(!metrics.circuit_is_open());
    assert_eq!(metrics.requests.get(crate::metrics::Request::Transient), 8);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.flush(&["b"]).await, Verdict::Ok);
    let lines = bench.lines.0.lock().unwrap();
    let is_logged = |line: &(Level, String)| line.1.contains("has recovered");
    assert!(lines.iter().any(is_logged), "{lines:?}");
}
