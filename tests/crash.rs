//! The built library in a host that is killed repeatedly, at random moments.
//!
//! The host is the bundled harness with the rules of `storage.type filesystem`: a chunk's file is deleted only after
//! its OK, so a host killed before that hands the same bytes over again. Each round adds chunks to the host's backlog,
//! starts it, and kills it with SIGKILL at a random moment of a seeded sequence; the last round lets it finish. Then
//! all lines are counted.
//!
//! With `FLUENT_BIT` set, the tests also run in the real host.
//!
//! Each test prints how many of its kills left chunks in the spool, and fails if none did.
//!
//! `FERRY_KILLS` sets the number of kills (default 12 or 20), `FERRY_SEED` the moments; `FERRY_KEEP` keeps the folders.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use ferry_harness::engine::storage;
use ferry_harness::firehose::{FakeFirehose, Options};
use ferry_harness::ledger::{Report, verify_objects};
use ferry_harness::proxy::{self, Proxy};
use ferry_harness::samples::{Shape, generate};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tempfile::TempDir;

use crate::support;
use crate::support::emulators::{Azurite, azurite};

/// The number of lines per chunk of the backlog.
const LINES: usize = 100;
/// The number of chunks added before each start.
const CHUNKS: usize = 12;
/// The maximum time before a host is killed. A start takes some tens of milliseconds.
const LONGEST_LIFE: Duration = Duration::from_millis(400);
/// The time limit for a host to deliver the rest and end.
const PATIENCE: Duration = Duration::from_secs(120);

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is '{text}'; it must be a number")),
        Err(_) => default,
    }
}

/// The state that outlives a host.
struct Machine {
    dir: TempDir,
    random: StdRng,
    /// The lines of the application.
    application: Box<dyn Iterator<Item = (SystemTime, Value)>>,
    lines: usize,
    chunks: u64,
    /// The tags of the chunks, in turn.
    tags: &'static [&'static str],
    starts: usize,
}

impl Machine {
    /// `output` is the body of the output's section.
    fn new(output: &str) -> Machine {
        let mut dir = tempfile::tempdir().unwrap();
        dir.disable_cleanup(std::env::var_os("FERRY_KEEP").is_some());
        let here = dir.path().display().to_string();
        let seed = setting("FERRY_SEED", 20_261_121);
        let config = format!(
            "[SERVICE]\n    Flush 0.05\n    Grace 30\n    Log_Level info\n    storage.path {here}/storage\n    \
             scheduler.base 1\n    scheduler.cap 2\n\n\
             [OUTPUT]\n    Name ferry\n    Match app.*\n    Workers 4\n    Retry_Limit no_limits\n    \
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
            application: Box::new(generate(Shape::Http, 1, SystemTime::UNIX_EPOCH)),
            lines: 0,
            chunks: 0,
            tags: &["app.http"],
            starts: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds chunks to the host's backlog.
    fn add_chunks(&mut self) {
        for n in 0..CHUNKS {
            let tag = self.tags[n % self.tags.len()];
            let mut chunk = Vec::new();
            for (time, line) in self.application.by_ref().take(LINES) {
                support::plugin::push_event(&mut chunk, time, &line);
            }
            storage::put(&self.path("storage"), self.chunks, tag, &chunk).unwrap();
            self.lines += LINES;
            self.chunks += 1;
        }
    }

    fn start(&mut self) -> Child {
        self.start_as(Command::new(support::harness()))
    }

    /// Starts a host with a limited address space, beyond which it aborts.
    fn start_with_little_memory(&mut self, kib: u64) -> Child {
        let mut host = Command::new("sh");
        host.args(["-c", &format!("ulimit -v {kib}; exec \"$@\""), "sh"]);
        // Each arena of glibc reserves 64 MiB of address space.
        host.arg(support::harness()).env("MALLOC_ARENA_MAX", "1");
        self.start_as(host)
    }

    fn start_as(&mut self, mut host: Command) -> Child {
        self.starts += 1;
        let log = File::create(self.path(&format!("log-{:04}", self.starts))).unwrap();
        host.args(["run", "--quiet", "-c"])
            .arg(self.path("fluent-bit.conf"))
            .arg("-e")
            .arg(support::library())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the harness starts")
    }

    /// Starts and kills the host `kills` times, and then lets it finish. A host that finished before its kill does not
    /// count, and the next ones are killed sooner, so that kills hit the work on fast and slow machines.
    fn kill_repeatedly(&mut self, kills: u64) {
        self.kill_repeatedly_and(kills, |_| {});
    }

    /// The same, with what happens before the host that finishes.
    fn kill_repeatedly_and(&mut self, kills: u64, before_the_end: impl FnOnce(&Machine)) {
        let (mut killed, mut longest) = (0, LONGEST_LIFE);
        while killed < kills {
            assert!(
                (self.starts as u64) < 10 * kills,
                "of {} hosts only {killed} were still working when they were to be killed",
                self.starts
            );
            self.add_chunks();
            let mut host = self.start();
            let life = self.random.random_range(Duration::ZERO..longest);
            std::thread::sleep(life);
            if let Some(status) = host.try_wait().unwrap() {
                assert!(status.success(), "{status}: {}", self.logs());
                longest = longest * 2 / 3;
                continue;
            }
            host.kill().expect("SIGKILL");
            host.wait().unwrap();
            killed += 1;
            longest = (longest * 9 / 8).min(LONGEST_LIFE);
        }
        before_the_end(self);
        self.finish();
        let found = runs_that_found_chunks(&self.logs());
        let at_work = self
            .logs()
            .matches("of the spool was being encoded")
            .count();
        println!(
            "{killed} kills, {found} of them with chunks in the spool, {at_work} suspects at the next starts"
        );
        assert!(found > 0, "no kill hit a chunk: {}", self.logs());
        // A random kill must not condemn a chunk.
        assert!(self.set_aside().is_empty(), "{}", self.logs());
    }

    fn finish(&mut self) {
        let host = self.start();
        self.wait_for_the_end(host);
    }

    fn wait_for_the_end(&mut self, mut host: Child) {
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
        // An empty spool is one short file.
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

    /// The chunks that the spool has set aside.
    fn set_aside(&self) -> Vec<PathBuf> {
        let quarantine = self.path("spool/quarantine");
        match quarantine.is_dir() {
            true => files(&quarantine),
            false => Vec::new(),
        }
    }

    fn logs(&self) -> String {
        let logs = (1..=self.starts).map(|n| fs::read_to_string(self.path(&format!("log-{n:04}"))));
        logs.map(Result::unwrap_or_default).collect()
    }

    fn assert_each_once(&self, report: &Report) {
        assert!(report.is_exact(), "{report}\n{}", self.logs());
        assert_eq!(report.totals.lines, self.lines as u64);
    }
}

/// The sum of all numbers directly before `words` in a text.
fn number_before(words: &str, text: &str) -> u64 {
    let before = text.split(words).map(|text| text.rsplit(' ').next());
    let numbers = before.take(text.matches(words).count());
    numbers.filter_map(|word| word?.parse::<u64>().ok()).sum()
}

/// The number of runs that found chunks of a killed one in the spool.
fn runs_that_found_chunks(logs: &str) -> usize {
    logs.matches("chunks of an earlier run are in the spool")
        .count()
}

/// The files of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn segments(spool: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(spool).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "seg"));
    let segments = files.map(|file| {
        let length = file.metadata().unwrap().len();
        (file.file_name().to_string_lossy().into_owned(), length)
    });
    segments.collect()
}

#[test]
fn killed_at_any_moment_a_file_store_has_each_line_once() {
    let mut machine =
        Machine::new("    url file://@HERE@/objects\n    blob_max_size 10K\n    blob_max_age 1s");
    machine.kill_repeatedly(setting("FERRY_KILLS", 20));
    let report = verify_objects(&machine.path("objects"), "seq")
        .unwrap()
        .report(Some(machine.lines as u64));
    machine.assert_each_once(&report);
}

#[test]
fn killed_at_any_moment_a_file_store_has_each_row_of_its_tables_once() {
    let mut machine = Machine::new(
        "    url file://@HERE@/objects\n    format parquet\n    parquet_columns seq int, method string, status int\n    \
         blob_max_size 60K\n    blob_max_age 1s",
    );
    machine.kill_repeatedly(setting("FERRY_KILLS", 20));
    let report = verify_objects(&machine.path("objects"), "seq")
        .unwrap()
        .report(Some(machine.lines as u64));
    machine.assert_each_once(&report);
}

/// A folder whose name is taken by a file refuses every object, until the last start. Meanwhile more waits for it than its
/// `target_limit`, and its chunks stay with the host.
#[test]
fn killed_at_any_moment_beside_a_refused_folder_a_file_store_has_each_line_once() {
    let mut machine = Machine::new(
        "    url file://@HERE@/objects\n    path {tag}\n    blob_max_size 10K\n    blob_max_age 1s\n    \
         spool_limit 16M\n    target_limit 1M",
    );
    machine.tags = &["app.http", "app.sick"];
    let sick = machine.path("objects/app.sick");
    fs::create_dir(machine.path("objects")).unwrap();
    fs::write(&sick, "").unwrap();
    machine.kill_repeatedly_and(setting("FERRY_KILLS", 20), |machine| {
        let logs = machine.logs();
        assert!(logs.contains("folder 'app.sick' is unavailable"), "{logs}");
        // The other folder got its lines meanwhile.
        let healthy = files(&machine.path("objects/app.http"));
        assert!(!healthy.is_empty(), "{logs}");
        fs::remove_file(&sick).unwrap();
    });
    let report = verify_objects(&machine.path("objects"), "seq")
        .unwrap()
        .report(Some(machine.lines as u64));
    machine.assert_each_once(&report);
}

const SIGABRT: i32 = 6;
/// An address space in which a host works, but cannot encode the hostile chunk.
const LITTLE_MEMORY_KIB: u64 = 400 << 10;

#[test]
fn a_chunk_at_which_each_host_ends_is_set_aside_and_the_others_are_delivered() {
    let mut machine =
        Machine::new("    url file://@HERE@/objects\n    blob_max_size 10K\n    blob_max_age 1s");
    machine.add_chunks();
    // Each byte is encoded as six.
    let text = "\u{1}".repeat(32 << 20);
    let mut hostile = Vec::new();
    let body = serde_json::json!({ "text": text });
    support::plugin::push_event(&mut hostile, SystemTime::UNIX_EPOCH, &body);
    let tag = "app.hostile";
    storage::put(&machine.path("storage"), machine.chunks, tag, &hostile).unwrap();
    machine.chunks += 1;
    machine.add_chunks();
    // Add an input without an end, so that the host does not exit.
    let config = machine.path("fluent-bit.conf");
    let ends = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        format!("{ends}\n[INPUT]\n    Name dummy\n    Tag idle\n"),
    )
    .unwrap();
    for start in 1..=2 {
        if start == 2 {
            // Younger chunks reach the store before it is tried again.
            machine.add_chunks();
        }
        let mut host = machine.start_with_little_memory(LITTLE_MEMORY_KIB);
        let status = host.wait().unwrap();
        assert_eq!(status.signal(), Some(SIGABRT), "{}", machine.logs());
        assert!(machine.set_aside().is_empty(), "{}", machine.logs());
    }
    let delivered = || {
        let objects = verify_objects(&machine.path("objects"), "seq").unwrap();
        objects.report(Some(machine.lines as u64))
    };
    machine.assert_each_once(&delivered());
    fs::write(&config, ends).unwrap();
    let host = machine.start_with_little_memory(LITTLE_MEMORY_KIB);
    machine.wait_for_the_end(host);
    let report = verify_objects(&machine.path("objects"), "seq")
        .unwrap()
        .report(Some(machine.lines as u64));
    machine.assert_each_once(&report);

    let logs = machine.logs();
    let line = logs.lines().find(|line| line.contains("set aside and not"));
    let line = line.unwrap_or_else(|| panic!("{logs}"));
    assert!(line.contains("[error]"), "{line}");
    assert!(line.contains("tag 'app.hostile'"), "{line}");
    let [kept] = &machine.set_aside()[..] else {
        panic!("{:?}: {logs}", machine.set_aside());
    };
    let bytes = fs::read(kept).unwrap();
    assert!(bytes.ends_with(&[tag.as_bytes(), &hostile].concat()));

    // Follow the remedy in the log, with more memory.
    let name = line.split("copy that file as ").nth(1).unwrap();
    let own = machine.path("own");
    fs::create_dir(&own).unwrap();
    fs::copy(kept, own.join(name.split(' ').next().unwrap())).unwrap();
    let exported = Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(["spool", "export"])
        .arg(&own)
        .output()
        .unwrap();
    assert!(exported.status.success(), "{:?}", exported.status);
    let record: Value = serde_json::from_slice(&exported.stdout).unwrap();
    assert!(record["text"] == text.as_str());
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
    machine.kill_repeatedly(setting("FERRY_KILLS", 12));
    let report = azurite.report("killed", machine.lines as u64);
    machine.assert_each_once(&report);
}

#[test]
fn killed_at_any_moment_firehose_has_no_more_duplicates_than_were_in_flight() {
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
    machine.kill_repeatedly(setting("FERRY_KILLS", 12));
    let report = fake.report(Some(machine.lines as u64));
    assert_eq!(report.missing, 0, "{report}\n{}", machine.logs());
    assert_eq!(report.limit_violations, 0, "{report}");
    let in_flight = number_before(" records in ", &machine.logs());
    assert!(
        report.duplicates <= in_flight,
        "{} duplicates, but only {in_flight} records were logged as in flight: {report}\n{}",
        report.duplicates,
        machine.logs()
    );
}

/// The state that outlives a real host, with a backlog of its own chunk files.
struct RealMachine {
    dir: TempDir,
    fluent_bit: PathBuf,
    runs: usize,
    /// The host's chunk files, of which some are restored before each start.
    backlog: Vec<PathBuf>,
}

const REAL_LINES: u64 = 60_000;

impl RealMachine {
    /// Has the host read a log while its output cannot connect, so that the chunks stay in its storage.
    fn with_a_backlog(fluent_bit: PathBuf, output: &str) -> RealMachine {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display().to_string();
        let write = |name: &str, text: String| {
            fs::write(dir.path().join(name), text.replace("@HERE@", &here)).unwrap();
        };
        let generated = Command::new(support::harness())
            .args([
                "generate",
                "--shape",
                "http",
                "-n",
                &REAL_LINES.to_string(),
                "-o",
            ])
            .arg(dir.path().join("app.log"))
            .status();
        assert!(generated.unwrap().success());
        write(
            "plugins.conf",
            format!("[PLUGINS]\n    Path {}\n", support::library().display()),
        );
        write(
            "parsers.conf",
            "[PARSER]\n    Name json\n    Format json\n".to_owned(),
        );
        let service = "[SERVICE]\n    Flush 0.2\n    scheduler.base 1\n    scheduler.cap 2\n    \
                       storage.path @HERE@/storage\n    Plugins_File @HERE@/plugins.conf\n    \
                       Parsers_File @HERE@/parsers.conf\n";
        write(
            "fill.conf",
            format!(
                "{service}    Grace 2\n\n[INPUT]\n    Name tail\n    Tag app.http\n    Path @HERE@/app.log\n    \
                 Parser json\n    Read_from_Head on\n    Exit_On_Eof on\n    Buffer_Max_Size 1M\n    \
                 Buffer_Chunk_Size 1M\n    storage.type filesystem\n\n\
                 [OUTPUT]\n    Name ferry\n    Match *\n{}    Retry_Limit no_limits\n    \
                 flush_deadline 1s\n    delivery_stream nobody\n    region us-east-1\n    \
                 endpoint http://127.0.0.1:1\n    dead_letter_dir @HERE@/letters\n",
                support::workers(&fluent_bit, 2)
            ),
        );
        write(
            "run.conf",
            format!(
                "{service}    Grace 30\n\n[INPUT]\n    Name dummy\n    Tag idle\n\n\
                 [OUTPUT]\n    Name ferry\n    Match app.*\n{}    Retry_Limit no_limits\n    \
                 spool_dir @HERE@/spool\n{output}\n",
                support::workers(&fluent_bit, 4)
            ),
        );
        let mut machine = RealMachine {
            dir,
            fluent_bit,
            runs: 0,
            backlog: Vec::new(),
        };
        let status = machine.start("fill.conf").wait().unwrap();
        assert!(status.success(), "{status}: {}", machine.logs());
        machine.backlog = files(&machine.dir.path().join("storage/tail.0"));
        let aside = machine.dir.path().join("aside");
        fs::create_dir(&aside).unwrap();
        for file in &machine.backlog {
            fs::rename(file, aside.join(file.file_name().unwrap())).unwrap();
        }
        machine
    }

    /// Restores some of the host's chunk files, an even share for each of the remaining `rounds`.
    fn add_chunks(&mut self, rounds: usize) {
        let share = self.backlog.len().div_ceil(rounds);
        for file in self.backlog.drain(..share) {
            let aside = self.dir.path().join("aside");
            fs::rename(aside.join(file.file_name().unwrap()), file).unwrap();
        }
    }

    fn start(&mut self, config: &str) -> Child {
        self.runs += 1;
        let log = File::create(self.dir.path().join(format!("log-{:04}", self.runs))).unwrap();
        Command::new(&self.fluent_bit)
            .arg("-c")
            .arg(self.dir.path().join(config))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the host starts")
    }

    /// Starts and kills the host repeatedly, and then stops it once `all_delivered`.
    fn kill_repeatedly(&mut self, all_delivered: impl Fn() -> bool) {
        let mut random = StdRng::seed_from_u64(setting("FERRY_SEED", 20_261_121));
        let kills = setting("FERRY_KILLS", 12);
        for left in (1..=kills).rev() {
            self.add_chunks(usize::try_from(left).unwrap());
            let mut host = self.start("run.conf");
            std::thread::sleep(
                random.random_range(Duration::from_millis(200)..Duration::from_secs(1)),
            );
            host.kill().expect("SIGKILL");
            host.wait().unwrap();
        }
        let mut host = self.start("run.conf");
        let began = Instant::now();
        // All may already be delivered, but a host that is still starting does not stop cleanly on SIGTERM.
        let started = |machine: &Self| machine.log(machine.runs).contains("spooled in");
        while !started(self) || !all_delivered() {
            assert!(
                began.elapsed() < PATIENCE,
                "not all lines arrive: {}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let stopped = Command::new("kill").arg(host.id().to_string()).status();
        assert!(stopped.unwrap().success());
        let status = host.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.logs());
        let found = runs_that_found_chunks(&self.logs());
        println!("{kills} kills, {found} of them with chunks in the spool");
        assert!(found > 0, "no kill hit a chunk: {}", self.logs());
    }

    fn logs(&self) -> String {
        (1..=self.runs).map(|n| self.log(n)).collect()
    }

    fn log(&self, run: usize) -> String {
        fs::read_to_string(self.dir.path().join(format!("log-{run:04}"))).unwrap_or_default()
    }
}

#[test]
fn in_the_real_host_killed_at_any_moment_objects_have_each_line_once() {
    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let mut machine = RealMachine::with_a_backlog(
        fluent_bit,
        "    url file://@HERE@/objects\n    blob_max_size 100K\n    blob_max_age 1s",
    );
    let objects = machine.dir.path().join("objects");
    // While the host runs, a listed staging file may be renamed before it is read.
    let report = || {
        Some(
            verify_objects(&objects, "seq")
                .ok()?
                .report(Some(REAL_LINES)),
        )
    };
    machine.kill_repeatedly(|| report().is_some_and(|report| report.missing == 0));
    let report = report().expect("objects");
    assert!(report.is_exact(), "{report}\n{}", machine.logs());
}

#[test]
fn in_the_real_host_killed_with_faults_before_the_store_objects_have_each_line_once() {
    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let url = azurite().blob_url();
    let upstream = url.strip_suffix(&format!("/{}", Azurite::ACCOUNT)).unwrap();
    let proxy = Proxy::start(upstream, proxy::Options::default()).unwrap();
    proxy
        .push_fault(
            "15% cut-after-forward method PUT; 10% cut; 10% status-after-forward 500 method PUT; 15% status 503; \
             20% cut method HEAD",
        )
        .unwrap();
    let output = format!(
        "    account_name {}\n    shared_key {}\n    endpoint {}/{}\n    container_name real\n    \
         blob_max_size 100K\n    blob_max_age 1s",
        Azurite::ACCOUNT,
        Azurite::KEY,
        proxy.url(),
        Azurite::ACCOUNT,
    );
    let mut machine = RealMachine::with_a_backlog(fluent_bit, &output);
    let report = || azurite().report("real", REAL_LINES);
    // The first put creates the container.
    let exists = || {
        proxy
            .requests()
            .iter()
            .any(|request| request.status == Some(201))
    };
    machine.kill_repeatedly(|| exists() && report().missing == 0);
    let (report, counts) = (report(), proxy.counts());
    assert!(
        report.is_exact(),
        "{report}\n{counts:?}\n{}",
        machine.logs()
    );
    assert!(counts.faults.len() >= 4, "{counts:?}");
}

#[test]
fn in_the_real_host_killed_at_any_moment_firehose_has_no_more_duplicates_than_were_in_flight() {
    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let fake = FakeFirehose::start(Options {
        faults: "2% records ServiceUnavailableException".to_owned(),
        ..Options::default()
    })
    .expect("a fake Firehose");
    let mut machine = RealMachine::with_a_backlog(
        fluent_bit,
        &format!(
            "    delivery_stream app\n    region us-east-1\n    endpoint {}\n    spool on\n    linger 100ms",
            fake.url()
        ),
    );
    machine.kill_repeatedly(|| fake.report(Some(REAL_LINES)).missing == 0);
    let report = fake.report(Some(REAL_LINES));
    let in_flight = number_before(" records in ", &machine.logs());
    assert!(
        report.missing == 0 && report.duplicates <= in_flight,
        "{in_flight} records were logged as in flight: {report}\n{}",
        machine.logs()
    );
}
