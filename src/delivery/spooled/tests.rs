use super::*;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use bytes::Bytes;

use crate::config::Config;
use crate::delivery::Pipeline;
use crate::delivery::ack::contents;
use crate::delivery::dead_letter::{self, DeadLetters};
use crate::delivery::identity::Identity;
use crate::delivery::tests::OBJECT;
use crate::log::Log;
use crate::log::tests::Lines;
use crate::sink::Limits;
use crate::sink::{Batch, Fault, Outcome, Shape, Sink};
use crate::spool::Options;
use crate::spool::disk::{Disk, LocalDisk};

mod formats;
mod gathering;
mod letters;
mod limits;
mod missing;
mod pace;
mod poison;
mod rebuilt;
mod suspects;
mod targets;

/// A destination that accepts as many requests as it has permits for, and keeps what it accepted.
struct Store {
    shape: Shape,
    permits: Semaphore,
    /// The requests that reached it, whether their answers arrived or not.
    reached: Mutex<Vec<Batch>>,
    reached_now: tokio::sync::Notify,
}

impl Store {
    fn new(shape: Shape, permits: usize) -> Arc<Store> {
        Arc::new(Store {
            shape,
            permits: Semaphore::new(permits),
            reached: Mutex::default(),
            reached_now: tokio::sync::Notify::new(),
        })
    }

    fn batches(&self) -> Vec<Batch> {
        self.reached.lock().unwrap().clone()
    }

    /// Returns all lines of all requests that reached it, sorted.
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for body in self.batches().into_iter().flat_map(|batch| batch.records) {
            let text = String::from_utf8(body.to_bytes().to_vec()).expect("plain text");
            lines.extend(text.lines().map(str::to_owned));
        }
        lines.sort();
        lines
    }

    async fn reached(&self, requests: usize) {
        while self.reached.lock().unwrap().len() < requests {
            self.reached_now.notified().await;
        }
    }
}

impl Sink for Store {
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(std::future::ready(self.shape))
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let records = batch.records.len();
            self.reached.lock().unwrap().push(batch.copied());
            self.reached_now.notify_one();
            self.permits.acquire().await.unwrap().forget();
            vec![Outcome::Delivered; records]
        })
    }

    fn exists<'a>(
        &'a self,
        name: &'a str,
        _token: &'a str,
    ) -> BoxFuture<'a, Result<bool, Arc<Fault>>> {
        let reached = self.reached.lock().unwrap();
        let exists = reached.iter().any(|batch| *batch.target == *name);
        Box::pin(std::future::ready(Ok(exists)))
    }
}

/// The time anything may take before a test gives up, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(180);
const MANY: usize = Semaphore::MAX_PERMITS / 2;

/// Two lines a request.
const STREAM: Shape = Shape {
    limits: Limits {
        record_bytes: 1_000,
        record_lines: 1,
        joins: true,
        batch_records: 2,
        batch_bytes: 10_000,
    },
    piece_bytes: 100,
    compression: false,
};

/// A spooled pipeline in front of a store.
struct Bench {
    pipeline: Arc<Pipeline>,
    spool: Arc<Spool>,
    feed: JoinHandle<()>,
    lines: Lines,
    dir: PathBuf,
}

const BLOB: &[(&str, &str)] = &[("url", "file:///nowhere"), ("compression", "none")];
const FIREHOSE: &[(&str, &str)] = &[("delivery_stream", "s"), ("spool", "on"), ("linger", "0")];

fn start(dir: &Path, store: &Arc<impl Sink>, keys: &[(&'static str, &str)]) -> Bench {
    start_gathering_at(dir, store, keys, &dir.join("spool"))
}

/// Starts with another folder for gathered lines than the spool's.
fn start_gathering_at(
    dir: &Path,
    store: &Arc<impl Sink>,
    keys: &[(&'static str, &str)],
    gathers_at: &Path,
) -> Bench {
    let disk = |dir: &Path| LocalDisk::open(dir).unwrap();
    start_on(dir, store, keys, gathers_at, disk)
}

/// Starts with another disk below the spool, too.
fn start_on<D: Disk>(
    dir: &Path,
    store: &Arc<impl Sink>,
    keys: &[(&'static str, &str)],
    gathers_at: &Path,
    disk: impl FnOnce(&Path) -> D,
) -> Bench {
    let letters = dir.join("letters");
    let mut all = vec![
        ("dead_letter_dir", letters.display().to_string()),
        ("spool_dir", dir.join("spool").display().to_string()),
    ];
    all.extend(keys.iter().map(|(key, value)| (*key, (*value).to_owned())));
    let get = |key: &str| {
        // The keys of a test come last and take precedence.
        let found = all.iter().rev().find(|(name, _)| *name == key);
        found.map(|(_, value)| value.clone())
    };
    let mut config = Config::read(&get).expect("a good configuration");
    let place = config.spool.clone().expect("a spool");
    if let Some(spool) = &mut config.spool {
        spool.dir = gathers_at.to_owned();
    }
    let lines = Lines::default();
    let log = Arc::new(Log::new(Box::new(lines.clone()), "ferry"));
    let letters = DeadLetters::open(&letters, 1_000_000).unwrap();
    let disk = disk(&place.dir);
    let options = Options {
        limit: place.limit,
        segment_bytes: None,
    };
    let (spool, recovered) = Spool::open(Arc::new(disk), options).unwrap();
    // What an earlier run left is read by a thread that the paused clock does not wait for.
    spool.next(None).unwrap();
    let sink = Arc::clone(store) as Arc<dyn Sink>;
    let pipeline = Arc::new(Pipeline::new(
        config,
        sink,
        letters,
        Identity::of_this_run(),
        log,
    ));
    let feed = pipeline.feed_from(Arc::clone(&spool), recovered);
    Bench {
        pipeline,
        spool,
        feed,
        lines,
        dir: dir.to_owned(),
    }
}

impl Bench {
    async fn flush(&self, events: &[&str]) -> Verdict {
        self.pipeline.flush(b"app", chunk(events)).await
    }

    /// Retries like the host while the answer is RETRY.
    async fn flush_until_taken(&self, event: &str) {
        let began = Instant::now();
        while self.flush(&[event]).await == Verdict::Retry {
            assert!(began.elapsed() < PATIENCE, "no room for a chunk");
            tokio::task::yield_now().await;
        }
    }

    /// Stops like the library.
    async fn stop(self) {
        self.pipeline.drain();
        self.feed.await.expect("the feed does not panic");
        self.spool.close();
    }

    /// Returns what a machine that stops now leaves on its disk.
    fn crash_image(&self) -> TempDir {
        let spool = self.dir.join("spool");
        loop {
            let image = tempfile::tempdir().unwrap();
            let before = files(&spool);
            // A machine stops at one moment: nothing may change meanwhile.
            if copy(&self.dir, image.path()).is_ok() && files(&spool) == before {
                // It is never synced. With it, a chunk that is being encoded would be postponed by the next run.
                let _ = std::fs::remove_file(image.path().join("spool/suspects"));
                return image;
            }
        }
    }

    fn logged(&self, what: &str) -> bool {
        let lines = self.lines.0.lock().unwrap();
        lines.iter().any(|(_, line)| line.contains(what))
    }
}

/// A service that never answers requests for the stream `hangs`, and never describes `undescribed`.
struct HangsForOne(Arc<Store>);

impl Sink for HangsForOne {
    fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape> {
        match target {
            "undescribed" => Box::pin(std::future::pending()),
            _ => self.0.shape(target),
        }
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        match &*batch.target {
            "hangs" => Box::pin(std::future::pending()),
            _ => self.0.send(batch),
        }
    }
}

#[tokio::test]
async fn a_stream_that_hangs_releases_its_slot_to_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, MANY);
    let keys: Vec<_> = [
        FIREHOSE,
        &[("delivery_stream", "{tag}"), ("concurrency", "1")],
    ]
    .concat();
    let bench = start(
        dir.path(),
        &Arc::new(HangsForOne(Arc::clone(&store))),
        &keys,
    );
    for tag in ["hangs", "well"] {
        let verdict = bench.pipeline.flush(tag.as_bytes(), chunk(&["a"])).await;
        assert_eq!(verdict, Verdict::Ok);
    }
    tokio::time::timeout(PATIENCE, store.reached(1))
        .await
        .expect("the healthy stream gets its record");
    assert_eq!(&*store.batches()[0].target, "well");
    bench.feed.abort();
}

#[tokio::test]
async fn a_stream_that_is_not_described_delays_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, MANY);
    let keys: Vec<_> = [FIREHOSE, &[("delivery_stream", "{tag}")]].concat();
    let bench = start(
        dir.path(),
        &Arc::new(HangsForOne(Arc::clone(&store))),
        &keys,
    );
    for number in 0..15 {
        for tag in ["undescribed", "well"] {
            let events = chunk(&[&number.to_string()]);
            let verdict = bench.pipeline.flush(tag.as_bytes(), events).await;
            assert_eq!(verdict, Verdict::Ok);
        }
    }
    tokio::time::timeout(PATIENCE, async {
        while store.lines().len() < 15 || bench.spool.usage().unfinished > 15 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the healthy stream gets all of its records, and the other's are kept");
    assert!(store.batches().iter().all(|batch| &*batch.target == "well"));
    assert_eq!(bench.spool.usage().unfinished, 15);
    bench.feed.abort();
}

/// A service that describes no stream except `well`, and remembers which it was asked about.
struct SaysNothing {
    store: Arc<Store>,
    asked: Mutex<Vec<String>>,
}

impl Sink for SaysNothing {
    fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape> {
        if target == "well" {
            return self.store.shape(target);
        }
        self.asked.lock().unwrap().push(target.to_owned());
        Box::pin(std::future::pending())
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        self.store.send(batch)
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_not_described_are_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, MANY);
    let keys: Vec<_> = [FIREHOSE, &[("delivery_stream", "{tag}")]].concat();
    let sink = Arc::new(SaysNothing {
        store: Arc::clone(&store),
        asked: Mutex::default(),
    });
    let bench = start(dir.path(), &sink, &keys);
    for tag in ["one", "two", "three", "four", "well"] {
        let verdict = bench.pipeline.flush(tag.as_bytes(), chunk(&["a"])).await;
        assert_eq!(verdict, Verdict::Ok);
    }
    // The clock stands still.
    until("the record of the healthy stream", || {
        !store.batches().is_empty()
    })
    .await;
    assert_eq!(&*store.batches()[0].target, "well");
    bench.feed.abort();
}

/// The requests of many streams are small, and wait for their answers most of the time.
#[tokio::test(start_paused = true)]
async fn small_requests_for_many_streams_are_in_flight_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, 0);
    let keys: Vec<_> = [FIREHOSE, &[("delivery_stream", "{tag}")]].concat();
    let bench = start(dir.path(), &store, &keys);
    for n in 0..50 {
        let tag = format!("t{n}");
        let verdict = bench.pipeline.flush(tag.as_bytes(), chunk(&["a"])).await;
        assert_eq!(verdict, Verdict::Ok);
    }
    // The clock stands still.
    until("a request for each", || store.batches().len() == 50).await;
    bench.feed.abort();
}

/// Returns the disk of a host killed while an object with these events is being put, and before the answer.
async fn killed_while_an_object_is_put(
    dir: &Path,
    store: &Arc<Store>,
    keys: &[(&'static str, &str)],
    events: &[&str],
) -> TempDir {
    let bench = start(dir, store, keys);
    bench.flush(events).await;
    bench.pipeline.drain();
    store.reached(1).await;
    let image = bench.crash_image();
    bench.feed.abort();
    image
}

/// Waits for another thread.
async fn until(what: &str, is_there: impl Fn() -> bool) {
    // A test's clock may stand still.
    let began = std::time::Instant::now();
    while !is_there() {
        assert!(began.elapsed() < PATIENCE, "timed out waiting for {what}");
        tokio::task::yield_now().await;
    }
}

fn letters(dir: &Path) -> usize {
    let file = dir.join("letters").join(dead_letter::FILE);
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty()).count()
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The files of a spool with their lengths and modification times, except the one that is written all the time.
fn files(dir: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let file = |entry: std::fs::DirEntry| {
        let of = entry.metadata().ok()?;
        Some((entry.path(), of.len(), of.modified().ok()?))
    };
    let entries = entries.filter(|entry| entry.file_name() != "suspects");
    let mut files: Vec<_> = entries.filter_map(file).collect();
    files.sort();
    files
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

fn lines(events: &[&str]) -> Vec<String> {
    let line = |event: &&str| format!("{{\"k\":\"{event}\"}}");
    events.iter().map(line).collect()
}

#[tokio::test]
async fn a_chunk_on_disk_is_ok_whatever_the_destination_does_and_many_form_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let bench = start(dir.path(), &store, BLOB);
    assert_eq!(bench.flush(&["a", "b"]).await, Verdict::Ok);
    assert_eq!(bench.flush(&["c"]).await, Verdict::Ok);
    assert_eq!(bench.flush(&[]).await, Verdict::Ok);
    assert!(store.batches().is_empty(), "nothing is full, old or ending");
    store.permits.add_permits(1);
    let spool = Arc::clone(&bench.spool);
    bench.stop().await;
    let batches = store.batches();
    assert_eq!(batches.len(), 1);
    assert_eq!(store.lines(), lines(&["a", "b", "c"]));
    let name = &batches[0].target;
    let token = batches[0].token.as_ref().expect("an object has a token");
    assert!(name.starts_with("app/2025/05/03/04/20250503T"), "{name}");
    assert!(name.ends_with(&format!("-{token}.ndjson")), "{name}");
    assert_eq!(spool.usage().unfinished, 0);
}

#[tokio::test]
async fn objects_are_sealed_by_size_and_kept_apart_by_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let mut keys = BLOB.to_vec();
    keys.extend([("path", "{record.k}"), ("blob_max_size", "10K")]);
    let bench = start(dir.path(), &store, &keys);
    let long = "x".repeat(100);
    for _ in 0..20 {
        let mut events = vec![long.as_str(); 10];
        events.push("b");
        assert_eq!(bench.flush(&events).await, Verdict::Ok);
    }
    bench.stop().await;
    let batches = store.batches();
    let (b, x): (Vec<&Batch>, Vec<&Batch>) = batches
        .iter()
        .partition(|batch| batch.target.starts_with("b/"));
    assert_eq!(b.len(), 1, "small enough for one");
    assert!(x.len() >= 3, "{}", x.len());
    assert!(batches.iter().all(|batch| batch.records[0].len() <= 10_000));
    assert_eq!(store.lines().len(), 220);
}

#[tokio::test]
async fn a_started_object_is_sent_again_under_its_name_with_its_lines() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let image = killed_while_an_object_is_put(dir.path(), &store, BLOB, &["a", "b"]).await;

    let after = Store::new(OBJECT, MANY);
    let bench = start(image.path(), &after, BLOB);
    bench.flush(&["c"]).await;
    bench.stop().await;
    let (before, after) = (store.batches(), after.batches());
    let again: Vec<&Batch> = after
        .iter()
        .filter(|batch| batch.target == before[0].target)
        .collect();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].token, before[0].token);
    assert_eq!(again[0].records, before[0].records);
    assert_eq!(again[0].tag, before[0].tag, "on which what it has depends");
    assert!(!again[0].tag.is_empty());
    assert_eq!(
        after.len(),
        2,
        "and what came since in an object of its own"
    );
}

/// Of a chunk whose first event was in an object, the others go into another: both are of the chunk's tag.
#[tokio::test]
async fn what_is_left_of_a_chunk_has_its_tag_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let mut keys = BLOB.to_vec();
    keys.push(("blob_max_size", "10K"));
    let bench = start(dir.path(), &store, &keys);
    let long = "x".repeat(12_000);
    bench.flush(&[&long, "b"]).await;
    store.reached(1).await;
    let image = bench.crash_image();
    bench.feed.abort();

    let after = Store::new(OBJECT, MANY);
    start(image.path(), &after, &keys).stop().await;
    let tags: Vec<_> = after.batches().into_iter().map(|batch| batch.tag).collect();
    assert_eq!(tags.len(), 2);
    assert!(tags.iter().all(|tag| **tag == *b"app"), "{tags:?}");
}

#[tokio::test]
async fn a_stored_object_is_not_sent_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let mut keys = BLOB.to_vec();
    keys.push(("blob_max_size", "10K"));
    let bench = start(dir.path(), &store, &keys);
    let long = "x".repeat(12_000);
    bench.flush(&[&long]).await;
    store.reached(1).await;
    bench.flush(&["b"]).await;
    // The answer has arrived when its chunk is finished.
    until("the answer", || bench.spool.usage().unfinished == 1).await;
    let image = bench.crash_image();
    bench.feed.abort();

    let after = Store::new(OBJECT, MANY);
    start(image.path(), &after, &keys).stop().await;
    assert_eq!(after.lines(), lines(&["b"]));
}

#[tokio::test]
async fn a_chunk_retried_by_a_killed_host_is_accepted_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let bench = start(dir.path(), &store, BLOB);
    bench.flush(&["a"]).await;
    let image = bench.crash_image();
    bench.feed.abort();

    let after = Store::new(OBJECT, MANY);
    let bench = start(image.path(), &after, BLOB);
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok, "the same one again");
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok, "another one");
    let details = bench.pipeline.details();
    assert!(
        details.contains("1 chunks retried after a restart"),
        "{details}"
    );
    let metrics = Arc::clone(bench.pipeline.metrics());
    assert_eq!(metrics.records.get(Record::Suppressed), 1);
    bench.stop().await;
    assert_eq!(after.lines(), lines(&["a", "a"]));
}

#[tokio::test]
async fn requests_fill_across_chunks_and_only_those_in_flight_are_sent_again_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, 1);
    let mut keys = FIREHOSE.to_vec();
    keys.extend([("concurrency", "1"), ("linger", "1m")]);
    let bench = start(dir.path(), &store, &keys);
    for event in ["a", "b", "c", "d", "e"] {
        bench.flush(&[event]).await;
    }
    // The first is answered, the second is in flight.
    store.reached(2).await;
    let image = bench.crash_image();
    bench.feed.abort();

    let after = Store::new(STREAM, MANY);
    let bench = start(image.path(), &after, FIREHOSE);
    assert!(bench.logged("2 records in 1 requests were in flight"));
    let ambiguous = bench.pipeline.metrics().records.get(Record::Ambiguous);
    assert_eq!(ambiguous, 2);
    bench.stop().await;
    assert_eq!(after.lines(), lines(&["c", "d", "e"]));
}

#[tokio::test]
async fn a_partly_filled_request_is_sent_after_its_linger_or_at_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, MANY);
    let mut keys = FIREHOSE.to_vec();
    keys[2] = ("linger", "10ms");
    let bench = start(dir.path(), &store, &keys);
    bench.flush(&["a"]).await;
    store.reached(1).await;
    bench.stop().await;

    keys[2] = ("linger", "1m");
    let bench = start(dir.path(), &store, &keys);
    bench.flush(&["b"]).await;
    bench.stop().await;
    assert_eq!(store.lines(), lines(&["a", "b"]));
}

#[tokio::test]
async fn a_full_spool_answers_retry_and_accepts_chunks_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let mut keys = BLOB.to_vec();
    keys.extend([("spool_limit", "16M"), ("blob_max_size", "1M")]);
    let bench = start(dir.path(), &store, &keys);
    let event = "x".repeat(1_000_000);
    let mut kept = 0;
    while bench.flush(&[&event]).await == Verdict::Ok {
        kept += 1;
        assert!(kept <= 16, "the limit is 16 MB");
    }
    assert!(kept >= 14, "{kept}");
    assert!(bench.logged("the spool is full"));
    store.permits.add_permits(MANY);
    bench.flush_until_taken("y").await;
    bench.stop().await;
    assert_eq!(store.lines().len(), kept + 1);
}

#[tokio::test]
async fn a_spool_smaller_than_an_object_does_not_wait_for_the_object_to_fill() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let mut keys = BLOB.to_vec();
    // No object reaches its size before the spool is full, nor its age while this test runs.
    keys.extend([
        ("spool_limit", "16M"),
        ("blob_max_size", "20M"),
        ("blob_max_age", "1d"),
    ]);
    let bench = start(dir.path(), &store, &keys);
    let event = "x".repeat(1_000_000);
    for _ in 0..40 {
        bench.flush_until_taken(&event).await;
    }
    bench.stop().await;
    assert_eq!(store.lines().len(), 40);
}

#[tokio::test]
async fn an_unsendable_event_is_a_letter_once_and_delays_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let bench = start(dir.path(), &store, BLOB);
    let mut broken = chunk(&["a"]).to_vec();
    broken.extend_from_slice(b"\xc1\xc1\xc1");
    broken.extend_from_slice(&chunk(&["b"]));
    assert_eq!(
        bench.pipeline.flush(b"app", broken.into()).await,
        Verdict::Ok
    );
    bench.pipeline.drain();
    store.reached(1).await;
    assert_eq!(letters(dir.path()), 1);
    let image = bench.crash_image();
    bench.feed.abort();

    let after = Store::new(OBJECT, MANY);
    let bench = start(image.path(), &after, BLOB);
    bench.stop().await;
    assert_eq!(after.lines(), lines(&["a", "b"]));
    assert_eq!(letters(image.path()), 1);
}

#[tokio::test]
async fn a_letter_that_cannot_be_kept_holds_its_chunk_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let bench = start(dir.path(), &store, BLOB);
    let file = dir.path().join("letters").join(dead_letter::FILE);
    std::fs::create_dir(&file).unwrap();
    bench.pipeline.flush(b"app", b"\xc1"[..].into()).await;
    until("a word of the letter", || {
        bench.logged("dead letters cannot be written")
    })
    .await;
    assert_eq!(bench.spool.usage().unfinished, 1);
    std::fs::remove_dir(&file).unwrap();
    bench.stop().await;
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains("malformed"), "{text}");
}

/// Refuses like Firehose: a request that contains a permanently refused record is refused as a whole, so that each
/// record is sent alone.
struct RefusesAll(AtomicUsize);

impl Sink for RefusesAll {
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(std::future::ready(STREAM))
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let fault = Arc::new(Fault {
            class: Class::Record,
            code: "ValidationException".into(),
            message: "no".into(),
            request_id: None,
        });
        let outcome = match batch.records.len() {
            1 => Outcome::Rejected(fault),
            _ => Outcome::Retry(fault),
        };
        Box::pin(std::future::ready(vec![outcome; batch.records.len()]))
    }
}

#[tokio::test]
async fn a_record_that_is_refused_and_whose_letter_cannot_be_kept_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let refusing = Arc::new(RefusesAll(AtomicUsize::new(0)));
    let bench = start(dir.path(), &refusing, FIREHOSE);
    let file = Path::new("letters").join(dead_letter::FILE);
    std::fs::create_dir(dir.path().join(&file)).unwrap();
    assert_eq!(bench.flush(&["a", "b"]).await, Verdict::Ok);
    let metrics = bench.pipeline.metrics();
    until("both of them", || {
        metrics.waiting_letters.get() == Some(2.0)
    })
    .await;
    let image = bench.crash_image();
    bench.feed.abort();

    std::fs::remove_dir(image.path().join(&file)).unwrap();
    let after = Store::new(STREAM, MANY);
    start(image.path(), &after, FIREHOSE).stop().await;
    let mut there = after.lines();
    there.dedup();
    assert_eq!(there, lines(&["a", "b"]));
}

#[tokio::test]
async fn more_chunks_than_may_wait_for_a_retry_are_all_delivered_in_the_end() {
    /// A sink that panics, which fails whatever it is given.
    struct Breaks {
        store: Arc<Store>,
        broken: AtomicBool,
        asked: AtomicUsize,
    }
    impl Sink for Breaks {
        fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape> {
            self.store.shape(target)
        }

        fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
            self.asked.fetch_add(batch.records.len(), Ordering::Relaxed);
            assert!(!self.broken.load(Ordering::Relaxed), "on purpose");
            self.store.send(batch)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, MANY);
    let breaks = Arc::new(Breaks {
        store: Arc::clone(&store),
        broken: AtomicBool::new(true),
        asked: AtomicUsize::new(0),
    });
    let bench = start(dir.path(), &breaks, FIREHOSE);
    let events: Vec<String> = (0..MAX_RETRYING + 10).map(|n| format!("{n:04}")).collect();
    for event in &events {
        assert_eq!(bench.flush(&[event]).await, Verdict::Ok);
    }
    let asked = || breaks.asked.load(Ordering::Relaxed);
    until("as many failures", || asked() >= MAX_RETRYING).await;
    breaks.broken.store(false, Ordering::Relaxed);
    until("all of them", || store.lines().len() >= events.len()).await;
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    assert_eq!(store.lines(), lines(&events));
    bench.stop().await;
}

#[tokio::test]
async fn with_an_object_for_each_event_the_overhead_of_objects_counts_as_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let mut keys = BLOB.to_vec();
    keys.extend([("path", "{record.k}"), ("memory_limit", "8M")]);
    let bench = start(dir.path(), &store, &keys);
    for chunk in 0..6 {
        let names: Vec<String> = (0..1_000).map(|n| format!("user-{chunk}-{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(bench.flush(&names).await, Verdict::Ok);
    }
    // They wait on disk until they are sealed. 6,000 bodies have 0.1 MB. No more objects are made once three eighths of the
    // limit are full; the last step may exceed them.
    bench.pipeline.drain();
    let held = || bench.pipeline.metrics().spooled.get().unwrap_or_default();
    until("full memory", || held() >= 3_000_000.0).await;
    assert!(held() < 4_500_000.0, "{}", held());
    store.permits.add_permits(MANY);
    bench.stop().await;
    assert_eq!(store.lines().len(), 6_000);
}

#[tokio::test]
async fn an_object_that_cannot_be_rebuilt_yet_delays_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let mut keys = BLOB.to_vec();
    keys.extend([("spool_limit", "32M"), ("blob_max_size", "10K")]);
    let large = "y".repeat(1_200_000);
    let image = killed_while_an_object_is_put(dir.path(), &store, &keys, &["a", &large]).await;

    let after = Store::new(OBJECT, MANY);
    // Larger than a segment may be from now on, so that it is not continued and not open.
    keys.push(("spool_limit", "16M"));
    let bench = start(image.path(), &after, &keys);
    // The feed has not run yet. From now on the segment cannot be read, as with a bad sector.
    let segments = segments(image.path());
    let aside = image.path().join("aside");
    std::fs::rename(&segments[0], &aside).unwrap();
    std::fs::create_dir(&segments[0]).unwrap();
    // A segment has 1 MiB here: the last one of these is in another.
    let long = "x".repeat(600_000);
    for n in 0..3 {
        let event = format!("{n}{long}");
        assert_eq!(bench.flush(&[&event]).await, Verdict::Ok);
    }
    until("a newer chunk", || !after.lines().is_empty()).await;
    std::fs::remove_dir(&segments[0]).unwrap();
    std::fs::rename(&aside, &segments[0]).unwrap();
    bench.stop().await;
    assert_eq!(after.lines().len(), 5);
    let first = &store.batches()[0];
    assert!(
        after
            .batches()
            .iter()
            .any(|batch| batch.target == first.target)
    );
}

/// The segments of a spool, oldest first.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("spool")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "seg"));
    paths.sort();
    paths
}

#[tokio::test]
async fn chunks_of_a_removed_file_are_waited_for_and_delay_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut keys = BLOB.to_vec();
    // Segments of a megabyte.
    keys.extend([("spool_limit", "16M"), ("blob_max_size", "10K")]);
    let bench = start(dir.path(), &Store::new(OBJECT, 0), &keys);
    let waiting: Vec<String> = (0..2 * MAX_RETRYING).map(|n| format!("{n:03}")).collect();
    for event in &waiting {
        assert_eq!(bench.flush(&[event]).await, Verdict::Ok);
    }
    let long = "x".repeat(1_200_000);
    assert_eq!(bench.flush(&[&long]).await, Verdict::Ok);
    let image = bench.crash_image();
    bench.feed.abort();

    let store = Store::new(OBJECT, MANY);
    let bench = start(image.path(), &store, &keys);
    // Nothing is read before the first await.
    let oldest = segments(image.path()).remove(0);
    let aside = image.path().join("aside");
    std::fs::rename(&oldest, &aside).unwrap();
    store.reached(1).await;
    assert_eq!(store.lines(), lines(&[&long]));
    let name = oldest.file_name().unwrap().to_str().unwrap();
    let logged = format!(
        "{} chunks that were accepted cannot be delivered: {name}",
        waiting.len()
    );
    until("a word of it", || {
        bench.pipeline.check_spool();
        bench.logged(&logged)
    })
    .await;
    assert_eq!(bench.spool.usage().missing, waiting.len() as u64);
    let summary = bench.pipeline.summary();
    let told = format!(
        "put back the missing files of {} before the next start",
        waiting.len()
    );
    assert!(summary.ends_with(&told), "{summary}");
    let details = bench.pipeline.details();
    assert!(!details.contains("damaged"), "{details}");

    std::fs::rename(&aside, &oldest).unwrap();
    until("its return", || {
        bench.pipeline.check_spool();
        bench.spool.usage().missing == 0
    })
    .await;
    bench.stop().await;
    let all: Vec<&str> = waiting
        .iter()
        .map(String::as_str)
        .chain([&long[..]])
        .collect();
    assert_eq!(store.lines(), lines(&all));
}

#[tokio::test]
async fn a_damaged_chunk_counts_as_kept_only_if_it_is() {
    for kept in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let bench = start(dir.path(), &Store::new(OBJECT, 0), BLOB);
        for event in ["aaaaaaaaaa", "b"] {
            assert_eq!(bench.flush(&[event]).await, Verdict::Ok);
        }
        let image = bench.crash_image();
        bench.feed.abort();
        let store = Store::new(OBJECT, MANY);
        let bench = start(image.path(), &store, BLOB);
        let segment = segments(image.path()).remove(0);
        let mut bytes = std::fs::read(&segment).unwrap();
        let at = bytes
            .windows(10)
            .position(|window| window == b"aaaaaaaaaa")
            .unwrap();
        bytes[at] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        if !kept {
            // Nothing can be written there.
            std::fs::write(image.path().join("spool/quarantine"), b"").unwrap();
        }
        let pipeline = Arc::clone(&bench.pipeline);
        bench.stop().await;
        assert_eq!(store.lines(), lines(&["b"]));
        let details = pipeline.details();
        let expected = format!(
            "1 chunks were damaged or ended the process and are not delivered: the bytes of {} of them",
            u8::from(kept)
        );
        assert!(details.contains(&expected), "{details}");
    }
}

#[tokio::test]
async fn a_permanently_refused_object_becomes_a_letter_and_ends() {
    struct Refusing;
    impl Sink for Refusing {
        fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
            Box::pin(std::future::ready(OBJECT))
        }
        fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
            let fault = Fault {
                class: Class::Record,
                code: "InvalidInput".into(),
                message: "no".into(),
                request_id: None,
            };
            let outcome = Outcome::Rejected(Arc::new(fault));
            Box::pin(std::future::ready(vec![outcome; batch.records.len()]))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let bench = start(dir.path(), &Arc::new(Refusing), BLOB);
    assert_eq!(bench.flush(&["a"]).await, Verdict::Ok);
    let spool = Arc::clone(&bench.spool);
    bench.stop().await;
    assert_eq!((letters(dir.path()), spool.usage().unfinished), (1, 0));
}

#[test]
#[allow(clippy::single_range_in_vec_init)] // ranges of events, not events
fn contents_are_listed_by_chunk_whole_or_in_runs() {
    let (completed, _completions) = mpsc::unbounded_channel();
    let tracker = |chunk| {
        let tracker = AckTracker::of_chunk(
            b"t",
            EventSet::default(),
            Owner::Chunk(chunk),
            completed.clone(),
        );
        let tracker = Arc::new(tracker);
        tracker.has_events(4);
        tracker
    };
    let events: Arc<[u32]> = [0, 1, 2, 3].into();
    let some: Arc<[u32]> = [3, 1].into();
    let (one, two) = (tracker(1), tracker(2));
    let guards = [
        two.guard(&some, 0..2),
        one.guard(&events, 2..4),
        one.guard(&events, 0..2),
    ];
    assert_eq!(
        contents(guards.iter()),
        [
            Content {
                chunk: 1,
                events: Events::All
            },
            Content {
                chunk: 2,
                events: Events::Runs(vec![1..2, 3..4])
            },
        ]
    );
    // An object is rebuilt in this order.
    assert_eq!(
        contents_in_order(guards.iter().chain([&one.guard(&events, 0..4)])),
        [
            Content {
                chunk: 2,
                events: Events::Runs(vec![3..4])
            },
            Content {
                chunk: 2,
                events: Events::Runs(vec![1..2])
            },
            Content {
                chunk: 1,
                events: Events::Runs(vec![2..4])
            },
            Content {
                chunk: 1,
                events: Events::Runs(vec![0..2])
            },
            Content {
                chunk: 1,
                events: Events::All
            },
        ]
    );
    for (event, wanted) in [(0, false), (1, true), (2, false), (3, true), (4, false)] {
        assert_eq!(
            contains_event(&Events::Runs(vec![1..2, 3..4]), event),
            wanted,
            "{event}"
        );
    }
}

#[test]
fn a_stop_in_the_middle_of_work_releases_the_spool() {
    use crate::output::Instance;
    // Now and then a runtime that shut down left a task behind: more rounds make that more likely.
    let rounds = std::env::var("FERRY_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let keys = |key: &str| match key {
            "url" => Some(format!("file://{}", path("objects"))),
            "compression" => Some("none".to_owned()),
            "path" => Some("{record.k}".to_owned()),
            "exit_deadline" => Some("1s".to_owned()),
            "spool_dir" => Some(path("spool")),
            _ => None,
        };
        let instance = Instance::start(&keys, Box::new(Lines::default()), None, Arc::new(|| None))
            .expect("a start");
        for chunk_number in 0..10 {
            let names: Vec<String> = (0..400).map(|n| format!("{chunk_number}-{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let verdict = instance.flush(b"app", chunk(&names), false);
            assert_eq!(verdict, Verdict::Ok);
        }
        instance.stop();
        drop(instance);
        let lines = Lines::default();
        let again = Instance::start(&keys, Box::new(lines.clone()), None, Arc::new(|| None));
        let again = again.unwrap_or_else(|| panic!("round {round}: {:?}", lines.0.lock().unwrap()));
        again.stop();
    }
}

#[tokio::test]
async fn events_of_a_started_object_without_a_log_key_any_more_are_counted_and_nothing_is_put() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let image = killed_while_an_object_is_put(dir.path(), &store, BLOB, &["a", "b"]).await;

    let after = Store::new(OBJECT, MANY);
    let mut keys = BLOB.to_vec();
    keys.push(("log_key", "other"));
    let bench = start(image.path(), &after, &keys);
    let metrics = Arc::clone(bench.pipeline.metrics());
    bench.stop().await;
    assert_eq!(metrics.records.get(Record::Skipped), 2);
    assert!(after.batches().is_empty());
}
