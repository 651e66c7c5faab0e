//! A spool that was left full: how long a start takes, until when, and with how much memory: `make bench-backlog`.
//!
//! `BACKLOG_MB` megabytes of chunks of 2 MB, and `BACKLOG_SMALL` chunks of 2 KB, each in a spool of its own. A process of its
//! own opens each and delivers it to a destination that takes everything at once, since peak memory is that of a process.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry::config::Config;
use ferry::delivery::Pipeline;
use ferry::delivery::dead_letter::DeadLetters;
use ferry::delivery::identity::Identity;
use ferry::ids::{Verdict, chunk_id};
use ferry::log::{Level, Log, Output};
use ferry::sink::{Batch, Limits, Outcome, Shape, Sink};
use ferry::spool::disk::LocalDisk;
use ferry::spool::{Chunk, Options, Spool};
use futures::future::{BoxFuture, join_all};

/// The folder of the spool, in the process that delivers it.
const DIR: &str = "BACKLOG_DIR";
/// The payload of one event, in bytes.
const EVENT: usize = 1_000;
/// The size of a batch of appends that share an fsync.
const AT_ONCE: usize = 16 << 20;

const OPTIONS: Options = Options {
    limit: 2 << 40,
    segment_bytes: None,
};

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |value| value.parse().expect("a number"))
}

/// A chunk of events `[[time, {}], {"m": text}]`.
fn chunk(n: u64, events: usize) -> Bytes {
    let mut bytes = Vec::new();
    for event in 0..events {
        bytes.extend_from_slice(b"\x92\x92\xd7\x00\x68\x15\x9a\x2f\0\0\0\0\x80\x81\xa1m\xda");
        let text = format!("{n:020} {event:020} {}", "x".repeat(EVENT - 42));
        bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.into()
}

fn main() -> io::Result<()> {
    if let Some(dir) = std::env::var_os(DIR) {
        return deliver(Path::new(&dir));
    }
    // Cargo's own argument for every benchmark.
    let large = number("BACKLOG_MB", 2_000) / 2;
    let small = number("BACKLOG_SMALL", 500_000);
    for (name, count, events) in [("2 MB", large, 2_000), ("2 KB", small, 2)] {
        let dir = tempfile::tempdir_in(std::env::var_os("BACKLOG_IN").unwrap_or(".".into()))?;
        fill(&dir.path().join("spool"), count, events)?;
        println!("{count} chunks of {name}");
        let status = Command::new(std::env::current_exe()?)
            .env(DIR, dir.path())
            .status()?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}

/// Leaves a spool behind, as a process does that is killed.
fn fill(dir: &Path, count: u64, events: usize) -> io::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (spool, _) = Spool::open(Arc::new(LocalDisk::open(dir)?), OPTIONS)?;
    let at_once = (AT_ONCE / (events * EVENT)).clamp(1, 4_096) as u64;
    let mut next = 0;
    while next < count {
        let numbers = next..(next + at_once).min(count);
        next = numbers.end;
        let chunks: Vec<Bytes> = numbers.map(|n| chunk(n, events)).collect();
        let appends = chunks.iter().map(|data| {
            let chunk = Chunk {
                id: chunk_id(b"app", data),
                tag: b"app",
                data: data.clone(),
                arrived: ferry::codec::time::now(),
            };
            spool.append(
                chunk,
                tokio::time::Instant::now() + Duration::from_secs(600),
            )
        });
        runtime.block_on(async {
            for kept in join_all(appends).await {
                kept.expect("room on the disk");
            }
        });
    }
    Ok(())
}

/// Takes everything at once.
#[derive(Default)]
struct Nowhere {
    first: Mutex<Option<Instant>>,
}

impl Sink for Nowhere {
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(std::future::ready(Shape {
            limits: Limits {
                record_bytes: 1_024_000,
                record_lines: u32::MAX,
                joins: true,
                batch_records: 500,
                batch_bytes: 4 * 1024 * 1024,
            },
            piece_bytes: 512 * 1024,
            compression: false,
        }))
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        self.first
            .lock()
            .expect("no panic")
            .get_or_insert(Instant::now());
        let count = batch.records.len();
        Box::pin(std::future::ready(vec![Outcome::Delivered; count]))
    }
}

struct Stderr;

impl Output for Stderr {
    fn enabled(&self, level: Level) -> bool {
        level <= Level::Warn
    }

    fn write(&self, _level: Level, line: &str) {
        eprintln!("  {line}");
    }
}

/// A figure of this process's status, in kB.
fn status(figure: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(figure));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn deliver(dir: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let letters = dir.join("letters");
    let path = |path: &Path| path.display().to_string();
    let keys = [
        ("delivery_stream", "app".to_owned()),
        ("region", "us-east-1".to_owned()),
        ("spool", "on".to_owned()),
        ("spool_dir", path(&dir.join("spool"))),
        ("dead_letter_dir", path(&letters)),
    ];
    let get = |key: &str| {
        let found = keys.iter().find(|(name, _)| *name == key)?;
        Some(found.1.clone())
    };
    let config = Config::read(&get).expect("a good configuration");
    let sink = Arc::new(Nowhere::default());
    let pipeline = Arc::new(Pipeline::new(
        config,
        Arc::clone(&sink) as Arc<dyn Sink>,
        DeadLetters::open(&letters, 1_000_000)?,
        Identity::of_this_run(),
        Arc::new(Log::new(Box::new(Stderr), "bench")),
    ));
    let (before, files) = (status("VmRSS:"), descriptors());
    let disk = LocalDisk::open(&dir.join("spool"))?;
    let start = Instant::now();
    let (spool, recovered) = Spool::open(Arc::new(disk), OPTIONS)?;
    let opened = start.elapsed();
    let bytes = spool.usage().bytes;
    let _inside = runtime.enter();
    let feed = pipeline.feed_from(Arc::clone(&spool), recovered);
    let (ended, most) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
    let watch = std::thread::spawn({
        let (ended, most) = (Arc::clone(&ended), Arc::clone(&most));
        move || {
            while !ended.load(Ordering::Relaxed) {
                let mut most = most.lock().expect("no panic");
                *most = descriptors().max(*most);
                drop(most);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let verdict = runtime.block_on(pipeline.flush(b"app", chunk(u64::MAX, 2)));
    assert_eq!(verdict, Verdict::Ok);
    let flushed = start.elapsed();
    pipeline.drain();
    runtime.block_on(feed).expect("no panic");
    let drained = start.elapsed();
    ended.store(true, Ordering::Relaxed);
    watch.join().expect("no panic");
    let first = sink.first.lock().expect("no panic").expect("a delivery") - start;
    let (peak, most) = (status("VmHWM:"), *most.lock().expect("no panic"));
    let left = spool.usage().unfinished;
    spool.close();
    println!("  open                 {:>9.3} s", opened.as_secs_f64());
    println!("  first flush kept     {:>9.3} s", flushed.as_secs_f64());
    println!("  first delivery       {:>9.3} s", first.as_secs_f64());
    println!(
        "  all delivered        {:>9.3} s, {left} chunks left",
        drained.as_secs_f64()
    );
    let rate = bytes as f64 / 1e6 / (drained - first).as_secs_f64();
    println!("  after the first      {rate:>9.1} MB/s");
    println!(
        "  memory above before  {:>9.1} MB",
        (peak - before) as f64 / 1e3
    );
    println!(
        "  descriptors at most  {:>9} more",
        most.saturating_sub(files)
    );
    Ok(())
}
