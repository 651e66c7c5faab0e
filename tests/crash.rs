//! The built library in a host that is killed, again and again, at any moment.
//!
//! The host is the bundled harness with `storage.type filesystem`'s rules: a chunk's file is deleted only
//! after its OK, so a host that was killed in between hands the same bytes over again. Each round adds
//! chunks to the host's backlog, starts it, and kills it with SIGKILL at a random moment of a seeded
//! sequence; the last round lets it finish. Then everything is counted.
//!
//! `FERRY_KILLS` says how often (a dozen otherwise), `FERRY_SEED` which moments.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferry_harness::engine::storage;
use ferry_harness::firehose::{FakeFirehose, Options};
use ferry_harness::ledger::{Report, verify_objects};
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;

use crate::support;
use crate::support::emulators::{Azurite, azurite};

/// Lines in a chunk of the backlog, and chunks that are added before each start.
const LINES: usize = 100;
const CHUNKS: usize = 12;
/// The longest a host lives before it is killed. Starting takes some tens of milliseconds.
const LONGEST_LIFE: Duration = Duration::from_millis(600);
/// How long a host may take to deliver what is left and to end.
const PATIENCE: Duration = Duration::from_secs(120);

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is '{text}'; it must be a number")),
        Err(_) => default,
    }
}

/// A host's machine: what outlives the host.
struct Machine {
    dir: TempDir,
    random: StdRng,
    lines: usize,
    chunks: u64,
    starts: usize,
}

impl Machine {
    /// `output` is the body of the output's section.
    fn new(output: &str) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display().to_string();
        let seed = setting("FERRY_SEED", 20_261_121);
        let config = format!(
            "[SERVICE]\n    Flush 0.05\n    Grace 30\n    Log_Level info\n    storage.path {here}/storage\n    \
             scheduler.base 1\n    scheduler.cap 2\n\n\
             [OUTPUT]\n    Name ferry\n    Match *\n    Workers 4\n    Retry_Limit no_limits\n    \
             spool_dir {here}/spool\n    dead_letter_dir {here}/letters\n{output}\n"
        );
        fs::write(
            dir.path().join("fluent-bit.conf"),
            config.replace("@HERE@", &here),
        )
        .unwrap();
        fs::create_dir_all(dir.path().join("storage")).unwrap();
        Machine {
            dir,
            random: StdRng::seed_from_u64(seed),
            lines: 0,
            chunks: 0,
            starts: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// More chunks for the host to find.
    fn add_chunks(&mut self) {
        for _ in 0..CHUNKS {
            let chunk = support::plugin::chunk(self.lines..self.lines + LINES);
            storage::put(&self.path("storage"), self.chunks, "app.http", &chunk).unwrap();
            self.lines += LINES;
            self.chunks += 1;
        }
    }

    fn start(&mut self) -> Child {
        self.starts += 1;
        let log = File::create(self.path(&format!("log-{:04}", self.starts))).unwrap();
        Command::new(support::harness())
            .args(["run", "--quiet", "-c"])
            .arg(self.path("fluent-bit.conf"))
            .arg("-e")
            .arg(support::library())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the harness starts")
    }

    /// Starts the host and kills it, so often, and then lets it finish.
    fn kill_again_and_again(&mut self, kills: u64) {
        for _ in 0..kills {
            self.add_chunks();
            let mut host = self.start();
            let life = self.random.random_range(Duration::ZERO..LONGEST_LIFE);
            std::thread::sleep(life);
            host.kill().expect("SIGKILL");
            host.wait().unwrap();
        }
        self.finish();
    }

    fn finish(&mut self) {
        let mut host = self.start();
        let began = Instant::now();
        let status = loop {
            if let Some(status) = host.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > PATIENCE {
                host.kill().unwrap();
                host.wait().unwrap();
                panic!("the host does not end: {}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}: {}", self.logs());
        assert!(storage::list(&self.path("storage")).unwrap().is_empty());
        assert!(
            !self.path("letters/dead-letters.ndjson").exists(),
            "{}",
            self.logs()
        );
        // A spool from which everything is gone is one short file.
        let left: u64 = segments(&self.path("spool"))
            .iter()
            .map(|(_, len)| len)
            .sum();
        assert!(
            left < 1_000_000,
            "{left} bytes are left in the spool: {}",
            self.logs()
        );
    }

    fn logs(&self) -> String {
        let logs = (1..=self.starts).map(|n| fs::read_to_string(self.path(&format!("log-{n:04}"))));
        logs.map(Result::unwrap_or_default).collect()
    }

    /// Sums the number before `words` over all starts.
    fn said(&self, words: &str) -> u64 {
        let logs = self.logs();
        let before = logs.split(words).map(|text| text.rsplit(' ').next());
        let numbers = before.take(logs.matches(words).count());
        numbers.filter_map(|word| word?.parse::<u64>().ok()).sum()
    }

    fn assert_each_once(&self, report: &Report) {
        assert!(report.is_exact(), "{report}\n{}", self.logs());
        assert_eq!(report.totals.lines, self.lines as u64);
    }
}

fn segments(spool: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(spool).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "seg"));
    let told = files.map(|file| {
        let length = file.metadata().unwrap().len();
        (file.file_name().to_string_lossy().into_owned(), length)
    });
    told.collect()
}

/// Everything in a container, as files, so that one tool counts them all.
fn downloaded(azurite: &Azurite, container: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = azurite.store(container);
        let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
        for object in objects {
            let bytes = store.get(&object.location).await.unwrap();
            let file = dir.path().join(object.location.as_ref());
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes.bytes().await.unwrap()).unwrap();
        }
    });
    dir
}

#[test]
fn killed_at_any_moment_a_file_store_has_each_line_once() {
    let mut machine =
        Machine::new("    url file://@HERE@/objects\n    blob_max_size 10K\n    blob_max_age 1s");
    machine.kill_again_and_again(setting("FERRY_KILLS", 12));
    let report = verify_objects(&machine.path("objects"), "seq")
        .unwrap()
        .report(Some(machine.lines as u64));
    machine.assert_each_once(&report);
}

#[test]
fn killed_at_any_moment_an_azure_container_has_each_line_once() {
    let azurite = azurite();
    let mut machine = Machine::new(&format!(
        "    account_name {}\n    shared_key {}\n    endpoint {}\n    container_name killed\n    \
         blob_max_size 10K\n    blob_max_age 1s",
        Azurite::ACCOUNT,
        Azurite::KEY,
        azurite.blob_url(),
    ));
    machine.kill_again_and_again(setting("FERRY_KILLS", 12));
    let objects = downloaded(azurite, "killed");
    let report = verify_objects(objects.path(), "seq")
        .unwrap()
        .report(Some(machine.lines as u64));
    machine.assert_each_once(&report);
}

#[test]
fn killed_at_any_moment_firehose_has_twice_no_more_than_was_on_its_way() {
    let fake = FakeFirehose::start(Options {
        faults: "2% records ServiceUnavailableException".to_owned(),
        ..Options::default()
    })
    .expect("a fake Firehose");
    let mut machine = Machine::new(&format!(
        "    delivery_stream app\n    region us-east-1\n    endpoint {}\n    aggregation off\n    spool on\n    \
         linger 50ms",
        fake.url()
    ));
    machine.kill_again_and_again(setting("FERRY_KILLS", 12));
    let report = fake.report(Some(machine.lines as u64));
    assert_eq!(report.missing, 0, "{report}\n{}", machine.logs());
    assert_eq!(report.limit_violations, 0, "{report}");
    let said = machine.said(" records in ");
    assert!(
        report.duplicates <= said,
        "{} duplicates, but only {said} records were said to be on their way: {report}\n{}",
        report.duplicates,
        machine.logs()
    );
}
