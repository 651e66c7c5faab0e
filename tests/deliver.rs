//! `ferry spool deliver`: spools that a changed configuration left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferry::ids::{Time, chunk_id};
use ferry::spool::disk::LocalDisk;
use ferry::spool::{Chunk, Options, Spool};
use ferry_harness::firehose::{self, FakeFirehose};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::plugin::push_event;

/// A spool that nobody uses, and a configuration.
struct Place {
    dir: TempDir,
}

impl Place {
    /// `events` events in chunks of 10, with ten tags.
    fn new(events: usize) -> Place {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
        };
        let spool = place.open();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        for first in (0..events).step_by(10) {
            let mut data = Vec::new();
            for seq in first..events.min(first + 10) {
                // Of no use to a compressor, so that there are several objects.
                let text = blake3::hash(&seq.to_le_bytes()).to_hex();
                let event = json!({ "seq": seq, "text": text.as_str() });
                push_event(&mut data, SystemTime::UNIX_EPOCH, &event);
            }
            let tag = format!("app.{}", first / 10 % 10);
            let chunk = Chunk {
                id: chunk_id(tag.as_bytes(), &data),
                tag: tag.as_bytes(),
                data: data.into(),
                arrived: Time::default(),
            };
            let deadline = Instant::now() + Duration::from_secs(60);
            runtime.block_on(spool.append(chunk, deadline)).unwrap();
        }
        spool.close();
        place
    }

    fn open(&self) -> Arc<Spool> {
        let options = Options {
            limit: 100_000_000,
            segment_bytes: Some(100_000),
        };
        let disk = LocalDisk::open(&self.path("left")).unwrap();
        Spool::open(Arc::new(disk), options).unwrap().0
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a configuration with these outputs, each of which has a folder of its own.
    fn configure(&self, outputs: &[&str]) {
        let mut text = String::new();
        for (number, output) in outputs.iter().enumerate() {
            let letters = self.path("letters").display().to_string();
            text += &format!(
                "[OUTPUT]\n    Name ferry\n    Alias out-{number}\n    Match *\n    dead_letter_dir {letters}\n{output}"
            );
        }
        fs::write(self.path("fluent-bit.conf"), text).unwrap();
    }

    /// With objects of 10 kB in a folder.
    fn with_folder(&self) {
        self.configure(&[&format!(
            "    url file://{}\n    path {{tag}}\n    compression none\n    blob_max_size 10K\n    spool_dir {}\n",
            self.path("objects").display(),
            self.path("own").display()
        )]);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferry"));
        command
            .args(["spool", "deliver"])
            .arg(self.path("left"))
            .arg("-c")
            .arg(self.path("fluent-bit.conf"))
            .args(arguments)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", "TESTKEY")
            .env("AWS_SECRET_ACCESS_KEY", "TESTSECRET")
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn ends(&self, arguments: &[&str], status: i32) -> String {
        let output: Output = self.command(arguments).output().expect("ferry runs");
        let words = [output.stdout, output.stderr].concat();
        let words = String::from_utf8_lossy(&words).into_owned();
        assert_eq!(output.status.code(), Some(status), "{words}");
        words
    }

    /// The numbers of the events in all objects, in order.
    fn delivered(&self) -> Vec<usize> {
        let mut numbers: Vec<usize> = self
            .objects()
            .iter()
            .flat_map(|path| {
                let text = fs::read_to_string(path).unwrap();
                let lines: Vec<serde_json::Value> = text
                    .lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect();
                lines
            })
            .map(|line| usize::try_from(line["seq"].as_u64().unwrap()).unwrap())
            .collect();
        numbers.sort_unstable();
        numbers
    }

    fn objects(&self) -> Vec<PathBuf> {
        files(&self.path("objects"))
    }
}

/// All whole objects below a folder: the store writes under another name first.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let below = paths.flat_map(|path| match path.is_dir() {
        true => files(&path),
        false => vec![path],
    });
    below
        .filter(|path| path.extension().is_some_and(|end| end == "ndjson"))
        .collect()
}

#[test]
fn a_spool_that_was_left_behind_goes_where_the_output_sends_now() {
    let place = Place::new(100);
    place.with_folder();
    let words = place.ends(&[], 0);
    assert!(
        words.contains("100 records delivered, 0 became dead letters"),
        "{words}"
    );
    assert!(words.contains("left is empty"), "{words}");
    assert_eq!(place.delivered(), (0..100).collect::<Vec<_>>());
    assert!(
        !place.path("own").exists(),
        "the output's own spool is not touched"
    );
    let words = place.ends(&[], 0);
    assert!(words.contains("0 records delivered"), "{words}");
}

#[test]
fn a_spool_is_delivered_to_a_stream_although_the_output_has_no_spool_any_more() {
    let fake = FakeFirehose::start(firehose::Options::default()).unwrap();
    let place = Place::new(100);
    let direct = format!(
        "    delivery_stream app\n    region us-east-1\n    endpoint {}\n    metrics_listen 127.0.0.1:1\n",
        fake.url()
    );
    place.configure(&[&direct, &direct]);
    let words = place.ends(&[], 2);
    assert!(
        words.contains("name one of out-0, out-1 with --output"),
        "{words}"
    );
    let words = place.ends(&["--output", "out-1"], 0);
    assert!(words.contains("100 records delivered"), "{words}");
    let report = fake.report(Some(100));
    assert!(report.is_exact(), "{report}");
}

#[test]
fn a_spool_that_is_in_use_and_a_folder_that_is_none_are_refused() {
    let place = Place::new(10);
    place.with_folder();
    let spool = place.open();
    let words = place.ends(&[], 2);
    assert!(words.contains("is in use"), "{words}");
    spool.close();
    drop(spool);
    fs::rename(place.path("left"), place.path("away")).unwrap();
    let words = place.ends(&[], 2);
    assert!(words.contains("left cannot be read"), "{words}");
    assert!(!place.path("left").exists());
    fs::create_dir(place.path("left")).unwrap();
    let words = place.ends(&[], 2);
    assert!(words.contains("contains no spool"), "{words}");
    fs::remove_dir(place.path("left")).unwrap();
    fs::rename(place.path("away"), place.path("left")).unwrap();
    place.ends(&[], 0);
    assert_eq!(place.delivered(), (0..10).collect::<Vec<_>>());
}

#[test]
fn what_a_destination_does_not_take_stays_for_the_next_time() {
    let fake = FakeFirehose::start(firehose::Options::default()).unwrap();
    let place = Place::new(50);
    place.configure(&[&format!(
        "    delivery_stream app\n    region us-east-1\n    endpoint {}\n    exit_deadline 1s\n",
        fake.url()
    )]);
    fake.push_fault("not-found").unwrap();
    let words = place.ends(&["--patience", "1"], 1);
    assert!(words.contains("nothing was delivered for 1 s"), "{words}");
    assert!(words.contains("5 chunks are left in"), "{words}");
    fake.clear_faults();
    place.ends(&[], 0);
    let report = fake.report(Some(50));
    assert_eq!((report.missing, report.duplicates), (0, 0), "{report}");
}

#[test]
fn a_delivery_that_is_killed_is_resumed_and_a_store_has_everything_once() {
    const EVENTS: usize = 20_000;
    let place = Place::new(EVENTS);
    place.with_folder();
    // Each time it has written some more objects.
    for more in [1, 20, 3] {
        let wanted = place.objects().len() + more;
        let mut child = place
            .command(&[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while place.objects().len() < wanted && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.ends(&[], 0);
    assert!(
        place.delivered() == (0..EVENTS).collect::<Vec<_>>(),
        "something is lost or twice"
    );
}
