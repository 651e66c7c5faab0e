//! The memory that hostile chunks make a pipeline hold, counted at the allocator. Each row runs in a process of its
//! own, because the allocator counts for all threads.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::ffi::allocator::counted;
use crate::spool::Options;
use crate::spool::disk::LocalDisk;
use tokio::sync::Semaphore;

/// The memory allowed beside `memory_limit`: a step's text, a request, buffers.
const BESIDE: usize = 32_000_000;

/// Set in the process of one row: its number.
const ROW: &str = "FERRY_TEST_MEMORY_ROW";

/// A chunk that grows in memory, and its destination.
struct Row {
    name: &'static str,
    keys: &'static [(&'static str, &'static str)],
    tag: Vec<u8>,
    /// Creates the n-th chunk.
    chunk: fn(u32) -> Vec<u8>,
    chunks: u32,
    /// The number of records that become dead letters.
    letters: u64,
    records: u64,
}

const STREAM: (&str, &str) = ("delivery_stream", "s");
const FOLDER: (&str, &str) = ("url", "file:///nowhere");
const DIRECT: (&str, &str) = ("spool", "off");
const SPOOLED: (&str, &str) = ("spool", "on");
const SMALL: (&str, &str) = ("memory_limit", "8M");

fn event(seconds: u32, body: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(b"\x92\x92\xd7\x00");
    into.extend_from_slice(&seconds.to_be_bytes());
    into.extend_from_slice(b"\0\0\0\0\x80");
    into.extend_from_slice(body);
}

fn events(count: u32, body: impl Fn(u32) -> (u32, Vec<u8>)) -> Vec<u8> {
    let mut chunk = Vec::new();
    for n in 0..count {
        let (seconds, body) = body(n);
        event(seconds, &body, &mut chunk);
    }
    chunk
}

/// `{"n": …}`
fn small(n: u32) -> Vec<u8> {
    [b"\x81\xa1n\xce", &n.to_be_bytes()[..]].concat()
}

/// Events in a group whose resource has `resource` bytes.
fn grouped(resource: usize, count: u32) -> Vec<u8> {
    let mut chunk = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80\x81\xa1r".to_vec();
    rmp::encode::write_str(&mut chunk, &"y".repeat(resource)).unwrap();
    chunk.extend(events(count, |n| (1, small(n))));
    chunk
}

fn control_text(chunk: u32) -> Vec<u8> {
    events(190, |n| {
        let mut body = b"\x82\xa1n\xce".to_vec();
        body.extend_from_slice(&(chunk * 190 + n).to_be_bytes());
        body.extend_from_slice(b"\xa1m");
        rmp::encode::write_str(&mut body, &"\u{1}".repeat(10_000)).unwrap();
        (1, body)
    })
}

fn rows() -> Vec<Row> {
    let row = Row {
        name: "",
        keys: &[],
        tag: b"app".to_vec(),
        chunk: |_| Vec::new(),
        chunks: 1,
        letters: 0,
        records: 0,
    };
    // As long as a host lets a tag be, and longer than it lets an object's name be.
    let long_tag = Row {
        tag: vec![b't'; 60_000],
        chunk: |_| events(2_000, |n| (1, small(n))),
        records: 2_000,
        ..row.clone()
    };
    let resource = Row {
        chunk: |_| grouped(1_000_000, 100),
        records: 100,
        ..row.clone()
    };
    let too_large = Row {
        chunk: |_| grouped(1_100_000, 100),
        records: 100,
        letters: 100,
        ..row.clone()
    };
    let hours = Row {
        chunk: |_| events(80_000, |n| (3_600 * n, small(n))),
        records: 80_000,
        ..row.clone()
    };
    let users = Row {
        chunk: |_| events(80_000, |n| (1, small(n))),
        records: 80_000,
        ..row.clone()
    };
    let control = Row {
        chunk: control_text,
        chunks: 10,
        records: 1_900,
        ..row
    };
    let of = |name, row: &Row, keys| Row {
        name,
        keys,
        ..row.clone()
    };
    vec![
        of(
            "a long tag, a stream",
            &long_tag,
            &[STREAM, DIRECT, SMALL, ("tag_key", "t")],
        ),
        of(
            "a long tag, a spooled stream",
            &long_tag,
            &[STREAM, SPOOLED, SMALL, ("tag_key", "t")],
        ),
        of(
            "a long tag, objects",
            &long_tag,
            &[FOLDER, DIRECT, SMALL, ("tag_key", "t")],
        ),
        of(
            "a long tag, spooled objects",
            &long_tag,
            &[FOLDER, SPOOLED, SMALL, ("tag_key", "t")],
        ),
        of(
            "a large resource, a stream",
            &resource,
            &[STREAM, DIRECT, SMALL, ("metadata_key", "m")],
        ),
        of(
            "a large resource, spooled objects",
            &resource,
            &[FOLDER, SPOOLED, SMALL, ("metadata_key", "m")],
        ),
        of(
            "a resource no record can hold",
            &too_large,
            &[STREAM, DIRECT, SMALL, ("metadata_key", "m")],
        ),
        of(
            "a resource no record can hold, spooled",
            &too_large,
            &[STREAM, SPOOLED, SMALL, ("metadata_key", "m")],
        ),
        of(
            "an hour an event, objects",
            &hours,
            &[FOLDER, DIRECT, SMALL],
        ),
        of(
            "an hour an event, spooled objects",
            &hours,
            &[FOLDER, SPOOLED, SMALL],
        ),
        of(
            "a user an event, objects",
            &users,
            &[FOLDER, DIRECT, SMALL, ("path", "{record.n}")],
        ),
        of(
            "a user an event, spooled objects",
            &users,
            &[FOLDER, SPOOLED, SMALL, ("path", "{record.n}")],
        ),
        of(
            "control characters, a stream",
            &control,
            &[STREAM, DIRECT, SMALL],
        ),
        of(
            "control characters, a spooled stream",
            &control,
            &[STREAM, SPOOLED, SMALL],
        ),
        of(
            "control characters, objects",
            &control,
            &[FOLDER, DIRECT, SMALL],
        ),
        of(
            "control characters, spooled objects",
            &control,
            &[FOLDER, SPOOLED, SMALL],
        ),
    ]
}

impl Clone for Row {
    fn clone(&self) -> Row {
        Row {
            tag: self.tag.clone(),
            ..*self
        }
    }
}

/// A destination that accepts nothing until it may, then everything, and keeps none of it.
struct Patient {
    shape: Shape,
    permits: Semaphore,
    lines: AtomicUsize,
}

impl Sink for Patient {
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(std::future::ready(self.shape))
    }

    fn longest_line(&self) -> usize {
        self.shape.limits.record_bytes
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            self.permits.acquire().await.unwrap().forget();
            let lines: usize = batch
                .records
                .iter()
                .flat_map(Payload::parts)
                .map(|part| part.iter().filter(|byte| **byte == b'\n').count())
                .sum();
            self.lines.fetch_add(lines, Ordering::Relaxed);
            vec![Outcome::Delivered; batch.records.len()]
        })
    }
}

/// Limits like those of Firehose, with one line a record.
const RECORDS: Shape = Shape {
    limits: Limits {
        record_bytes: 1_024_000,
        record_lines: 1,
        joins: true,
        batch_records: 500,
        batch_bytes: 4 << 20,
    },
    piece_bytes: 16 << 10,
    compression: false,
};

/// Waits until no more work is started.
async fn settles() {
    let (mut before, mut still) = (counted::held(), 0);
    while still < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = counted::held();
        still = if now.abs_diff(before) < 4_096 {
            still + 1
        } else {
            0
        };
        before = now;
    }
}

async fn run(row: &Row, dir: &Path) {
    let mut all = vec![
        ("dead_letter_dir", dir.join("letters").display().to_string()),
        ("compression", "none".to_owned()),
        ("flush_deadline", "1h".to_owned()),
    ];
    if row.keys.contains(&SPOOLED) {
        all.push(("spool_dir", dir.join("spool").display().to_string()));
    }
    all.extend(
        row.keys
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned())),
    );
    let get = |key: &str| {
        let found = all.iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| value.clone())
    };
    let config = Config::read(&get).expect("a good configuration");
    let place = config.spool.clone();
    let limit = config.memory_limit;
    let sink = Arc::new(Patient {
        shape: if row.keys.contains(&STREAM) {
            RECORDS
        } else {
            OBJECT
        },
        permits: Semaphore::new(0),
        lines: AtomicUsize::new(0),
    });
    let log = Arc::new(Log::new(Box::new(Lines::default()), "ferry"));
    let letters = DeadLetters::open(&dir.join("letters"), 256_000_000).unwrap();
    let pipeline = Arc::new(Pipeline::new(
        config,
        Arc::clone(&sink) as Arc<dyn Sink>,
        letters,
        Identity::of_this_run(),
        log,
    ));
    let spooled = place.map(|place| {
        let disk = LocalDisk::open(&place.dir).unwrap();
        let options = Options {
            limit: place.limit,
            segment_bytes: None,
        };
        let (spool, recovered) = Spool::open(Arc::new(disk), options).unwrap();
        let feed = pipeline.feed_from(Arc::clone(&spool), recovered);
        (spool, feed)
    });
    // The host's own copy of its chunks does not count.
    let chunks: Vec<Bytes> = (0..row.chunks).map(|n| (row.chunk)(n).into()).collect();
    let before = counted::held();
    counted::most();
    let flushes: Vec<_> = chunks
        .iter()
        .map(|data| {
            let (pipeline, tag, data) = (Arc::clone(&pipeline), row.tag.clone(), data.clone());
            tokio::spawn(async move { pipeline.flush(&tag, data).await })
        })
        .collect();
    settles().await;
    sink.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    for flush in flushes {
        assert_eq!(flush.await.unwrap(), Verdict::Ok);
    }
    if let Some((spool, feed)) = spooled {
        pipeline.drain();
        feed.await.unwrap();
        assert_eq!(spool.usage().unfinished, 0);
        spool.close();
    }
    let peak = counted::most().saturating_sub(before);
    println!("peak {peak} of {}", limit + BESIDE);
    let (lines, letters) = (
        sink.lines.load(Ordering::Relaxed) as u64,
        pipeline.metrics().records.get(Record::DeadLetter),
    );
    assert_eq!((lines, letters), (row.records - row.letters, row.letters));
    assert!(peak <= limit + BESIDE, "{peak} bytes at once");
}

#[test]
fn a_hostile_chunk_holds_no_more_than_memory_limit_and_what_stands_beside_it() {
    let rows = rows();
    if let Ok(number) = std::env::var(ROW) {
        let row = &rows[number.parse::<usize>().unwrap()];
        let dir = tempfile::tempdir().unwrap();
        // Like the plugin's runtime.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.unwrap().block_on(run(row, dir.path()));
        return;
    }
    let name = concat!(
        "delivery::tests::memory::",
        "a_hostile_chunk_holds_no_more_than_memory_limit_and_what_stands_beside_it"
    );
    let mut failed = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(ROW, number.to_string())
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        let peak = output
            .lines()
            .find_map(|line| line.split_once("peak "))
            .map_or("?", |(_, peak)| peak);
        println!("{}: {peak}", row.name);
        if !child.status.success() || !output.contains("1 passed") {
            failed.push(format!(
                "{}: {peak}; {}",
                row.name,
                String::from_utf8_lossy(&child.stderr)
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
