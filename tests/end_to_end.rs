//! The built library in a host: always in the bundled harness, and in a real Fluent Bit if one is given.
//!
//! Only the harness supports shortened retry schedules, and reloads at the end of a chunk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferry_harness::firehose::{FakeFirehose, Options};
use ferry_harness::ledger::{Ledger, Report, verify_objects};
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::Value;
use tempfile::TempDir;

use crate::support;
use crate::support::emulators::{azurite, moto};

/// A folder with a configuration, and the results of a run.
pub(crate) struct Scene {
    dir: TempDir,
}

impl Scene {
    /// `input` and `output` are the bodies of their sections; `@HERE@` stands for the scene's folder.
    fn new(input: &str, output: &str) -> Scene {
        Scene::with_service(
            "Flush 0.2\n    scheduler.base 1\n    scheduler.cap 2",
            input,
            output,
        )
    }

    pub(crate) fn with_service(service: &str, input: &str, output: &str) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display().to_string();
        let plugins = format!("[PLUGINS]\n    Path {}\n", support::library().display());
        fs::write(dir.path().join("plugins.conf"), plugins).unwrap();
        // A blob store is spooled by default.
        let spooled = !output.contains("delivery_stream") && !output.contains("spool off");
        let spool = if spooled {
            "    spool_dir @HERE@/spool\n"
        } else {
            ""
        };
        let config = format!(
            "[SERVICE]\n    {service}\n    Grace 30\n    Log_Level info\n    Plugins_File {here}/plugins.conf\n\n\
             [INPUT]\n{input}\n\n\
             [OUTPUT]\n    Name ferry\n    Match *\n    dead_letter_dir {here}/letters\n{spool}{output}\n"
        );
        fs::write(
            dir.path().join("fluent-bit.conf"),
            config.replace("@HERE@", &here),
        )
        .unwrap();
        Scene { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the harness to its end. Returns its report.
    fn run(&self, extra: &[&str]) -> Value {
        let report = self.path("report.json");
        let output = Command::new(support::harness())
            .args(["run", "--quiet", "-c"])
            .arg(self.path("fluent-bit.conf"))
            .arg("--report")
            .arg(&report)
            .args(extra)
            .output()
            .expect("the harness starts");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        fs::write(self.path("log"), &text).unwrap();
        let report =
            fs::read(&report).unwrap_or_else(|error| panic!("no report ({error}): {text}"));
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(
            report["exit_status"],
            output.status.code().unwrap(),
            "{text}"
        );
        report
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

/// Asserts that no record was dropped, every thread joined, and no more stack used than the oldest host has.
fn assert_clean(report: &Value, records: u64) {
    assert_eq!(report["records_in"], records, "{report:#}");
    assert_eq!(report["records_acknowledged"], records, "{report:#}");
    assert_eq!(report["records_dropped"], 0, "{report:#}");
    assert_eq!(report["threads_left_behind"], 0, "{report:#}");
    assert_eq!(report["coro_stack_bytes"], 24 * 1024);
    let deepest = report["stack_high_water_bytes"].as_u64().unwrap();
    assert!(
        (1..16 * 1024).contains(&deepest),
        "flush used {deepest} bytes of a coroutine's stack"
    );
}

/// Asserts that every sequence number arrived once, in valid lines and within every limit.
fn assert_each_once(ledger: &Report) {
    assert!(ledger.is_exact(), "{ledger}");
    assert_eq!(ledger.limit_violations, 0, "{ledger}");
}

fn firehose_output(fake: &FakeFirehose, more: &str) -> String {
    format!(
        "    delivery_stream app\n    region us-east-1\n    endpoint {}\n    Retry_Limit no_limits\n{more}",
        fake.url()
    )
}

fn fake(faults: &str) -> FakeFirehose {
    FakeFirehose::start(Options {
        faults: faults.to_owned(),
        ..Options::default()
    })
    .expect("a fake Firehose")
}

const FAULTS: &str = "1% records ServiceUnavailableException; 5% throttle";

#[test]
fn of_200_000_records_under_faults_none_is_lost_and_none_is_duplicated() {
    for aggregation in ["off", "auto"] {
        let fake = fake(FAULTS);
        let scene = Scene::new(
            "    Name http_sample\n    Tag app.http\n    Samples 200000",
            &firehose_output(
                &fake,
                &format!("    Workers 4\n    aggregation {aggregation}"),
            ),
        );
        let report = scene.run(&[]);
        assert_clean(&report, 200_000);
        let ledger = fake.report(Some(200_000));
        assert_each_once(&ledger);
    }
}

#[test]
fn hot_reloads_under_faults_lose_nothing_and_leave_no_thread() {
    let fake = fake(FAULTS);
    let scene = Scene::new(
        "    Name http_sample\n    Tag app.http\n    Samples 60000",
        &firehose_output(&fake, "    Workers 4"),
    );
    let report = scene.run(&["--reload-after-chunks", "3", "--reload-after-chunks", "6"]);
    assert_eq!(report["reloads"], 2, "{report:#}");
    assert_eq!(report["records_dropped"], 0, "{report:#}\n{}", scene.log());
    assert_eq!(report["threads_left_behind"], 0);
    let ledger = fake.report(None);
    // A reload restarts the sample input, with the first sequence number.
    assert_eq!(
        ledger.totals.lines,
        report["records_acknowledged"].as_u64().unwrap(),
        "{ledger}"
    );
}

#[test]
fn without_workers_everything_arrives_and_the_cost_is_logged() {
    let fake = fake("");
    let scene = Scene::new(
        "    Name nestjs_sample\n    Tag app\n    Samples 5000",
        &firehose_output(&fake, ""),
    );
    assert_clean(&scene.run(&[]), 5_000);
    assert_eq!(fake.report(Some(5_000)).missing, 0);
    assert_eq!(
        scene
            .log()
            .matches("flush runs on the host's engine thread")
            .count(),
        1,
        "{}",
        scene.log()
    );
}

#[test]
fn captured_chunks_become_objects_that_a_replay_does_not_duplicate() {
    let chunks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chunks");
    let scene = Scene::new(
        &format!("    Name chunks\n    Path {}", chunks.display()),
        "    url file://@HERE@/objects\n    spool off\n    Workers 2\n    Retry_Limit no_limits",
    );
    let first = scene.run(&[]);
    assert_eq!(first["records_dropped"], 0, "{first:#}");
    let objects = verify_objects(&scene.path("objects"), "seq")
        .unwrap()
        .report(None);
    assert_eq!(objects.totals.invalid_lines, 0, "{objects}");
    assert_eq!(
        objects.totals.lines,
        first["records_acknowledged"].as_u64().unwrap()
    );
    scene.run(&[]);
    let again = verify_objects(&scene.path("objects"), "seq")
        .unwrap()
        .report(None);
    assert_eq!(
        again.totals.lines, objects.totals.lines,
        "a replay makes no second object"
    );
}

#[test]
fn two_outputs_in_one_configuration_each_get_everything() {
    let fake = fake("");
    let scene = Scene::new(
        "    Name http_sample\n    Tag app\n    Samples 20000",
        &format!(
            "{}\n    Workers 2\n\n[OUTPUT]\n    Name ferry\n    Match *\n    Workers 1\n    Retry_Limit no_limits\n    \
             dead_letter_dir @HERE@/letters2\n    spool_dir @HERE@/spool\n    url file://@HERE@/objects",
            firehose_output(&fake, "")
        ),
    );
    let report = scene.run(&[]);
    assert_eq!(report["records_dropped"], 0, "{report:#}");
    assert_eq!(fake.report(Some(20_000)).missing, 0);
    let objects = verify_objects(&scene.path("objects"), "seq")
        .unwrap()
        .report(Some(20_000));
    assert_each_once(&objects);
}

#[test]
fn a_daemon_delivers_after_the_fork() {
    let fake = fake("");
    let scene = Scene::with_service(
        "Flush 0.2\n    Daemon on",
        "    Name http_sample\n    Tag app\n    Samples 5000",
        &firehose_output(&fake, "    Workers 2"),
    );
    // The parent exits once the daemon has started; the daemon writes the report at its end.
    let report = scene.path("report.json");
    let parent = Command::new(support::harness())
        .args(["run", "--quiet", "-c"])
        .arg(scene.path("fluent-bit.conf"))
        .arg("--report")
        .arg(&report)
        .status()
        .unwrap();
    assert!(parent.success());
    let limit = Instant::now() + Duration::from_secs(60);
    let report: Value = loop {
        let read = fs::read(&report).unwrap_or_default();
        if let Ok(report) = serde_json::from_slice(&read) {
            break report;
        }
        assert!(Instant::now() < limit, "the daemon writes no report");
        std::thread::park_timeout(Duration::from_millis(20));
    };
    assert_clean(&report, 5_000);
    assert_eq!(
        report["threads_lost_at_fork"], 0,
        "no thread is started before Init"
    );
    assert_eq!(fake.report(Some(5_000)).missing, 0);
}

#[test]
fn a_configuration_that_cannot_work_stops_the_host_with_every_reason() {
    let scene = Scene::new(
        "    Name http_sample\n    Tag app\n    Samples 1",
        "    url ftp://nowhere\n    memory_limit lots\n    format avro",
    );
    let output = Command::new(support::harness())
        .args(["run", "--quiet", "-c"])
        .arg(scene.path("fluent-bit.conf"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let log = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    for reason in [
        "url: 'ftp://nowhere'",
        "memory_limit: 'lots'",
        "format: 'avro'",
    ] {
        assert!(log.contains(reason), "{reason} is missing in: {log}");
    }
}

#[test]
fn logs_arrive_in_azurite_once() {
    let samples = Scene::new(
        "    Name http_sample\n    Tag app.http\n    Samples 20000",
        &azurite_output("samples"),
    );
    assert_clean(&samples.run(&[]), 20_000);
    let ledger = ledger_of(&azurite().store("samples")).report(Some(20_000));
    assert_each_once(&ledger);

    let chunks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chunks");
    let replay = Scene::new(
        &format!("    Name chunks\n    Path {}", chunks.display()),
        &azurite_output("replay"),
    );
    let lines = || {
        ledger_of(&azurite().store("replay"))
            .report(None)
            .totals
            .lines
    };
    let first = replay.run(&[]);
    assert_eq!(lines(), first["records_acknowledged"].as_u64().unwrap());
    // The same chunks again, as after a crash between the OK and the host's deletion of its files.
    let again = replay.run(&[]);
    assert_eq!(again["records_acknowledged"], first["records_acknowledged"]);
    assert_eq!(lines(), first["records_acknowledged"].as_u64().unwrap());
}

/// The ledger of a store's objects, which are downloaded to a folder.
fn ledger_of(store: &dyn ObjectStore) -> Ledger {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
        for (number, object) in listed.into_iter().enumerate() {
            let bytes = store
                .get(&object.location)
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap();
            fs::write(dir.path().join(number.to_string()), bytes).unwrap();
        }
    });
    verify_objects(dir.path(), "seq").unwrap()
}

fn azurite_output(container: &str) -> String {
    format!(
        "    account_name devstoreaccount1\n    container_name {container}\n    emulator_mode on\n    endpoint {}\n    \
         Workers 2\n    Retry_Limit no_limits",
        azurite().blob_url()
    )
}

#[test]
fn logs_arrive_through_motos_firehose() {
    let moto = moto();
    let scene = Scene::new(
        "    Name http_sample\n    Tag app.http\n    Samples 5000",
        &format!(
            "    delivery_stream moto-stream\n    region us-east-1\n    endpoint {}\n    aggregation on\n    Workers 2\n    \
             Retry_Limit no_limits",
            moto.url()
        ),
    );
    moto.create_stream("moto-stream", "moto-bucket");
    assert_clean(&scene.run(&[]), 5_000);
    let ledger = ledger_of(&moto.store("moto-bucket")).report(Some(5_000));
    assert_each_once(&ledger);
}

// In the real host.

/// A host process, killed on drop.
pub(crate) struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    pub(crate) fn start(fluent_bit: &Path, scene: &Scene) -> Host {
        let log = fs::File::create(scene.path("log")).unwrap();
        let child = Command::new(fluent_bit)
            .arg("-c")
            .arg(scene.path("fluent-bit.conf"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("Fluent Bit starts");
        Host(child)
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args(["-s", signal, &self.0.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Polls until `done`, for 120 s at most.
    pub(crate) fn until(&mut self, scene: &Scene, what: &str, mut done: impl FnMut() -> bool) {
        let limit = Instant::now() + Duration::from_secs(120);
        while !done() {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(
                    done(),
                    "{what}: the host ended with {status}: {}",
                    scene.log()
                );
                return;
            }
            assert!(
                Instant::now() < limit,
                "{what}: not within 120 s: {}",
                scene.log()
            );
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    /// Stops the host like a service manager.
    pub(crate) fn stop(mut self, scene: &Scene) {
        self.signal("TERM");
        let limit = Instant::now() + Duration::from_secs(60);
        while self.0.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < limit,
                "the host does not stop: {}",
                scene.log()
            );
            std::thread::park_timeout(Duration::from_millis(50));
        }
        assert!(self.0.wait().unwrap().success(), "{}", scene.log());
    }
}

/// Writes a log of `records` lines for tail.
pub(crate) fn write_log(scene: &Scene, records: usize) {
    let status = Command::new(support::harness())
        .args([
            "generate",
            "--shape",
            "http",
            "-n",
            &records.to_string(),
            "-o",
        ])
        .arg(scene.path("app.log"))
        .status()
        .unwrap();
    assert!(status.success());
    fs::write(
        scene.path("parsers.conf"),
        "[PARSER]\n    Name json\n    Format json\n",
    )
    .unwrap();
}

pub(crate) const TAIL: &str = "    Name tail\n    Tag app.http\n    Path @HERE@/app.log\n    Parser json\n    Read_from_Head on\n    \
                    Buffer_Max_Size 1M\n    Buffer_Chunk_Size 1M\n    DB @HERE@/tail.db";
pub(crate) const REAL_SERVICE: &str = "Flush 1\n    Hot_Reload on\n    scheduler.base 1\n    scheduler.cap 2\n    Parsers_File @HERE@/parsers.conf";

#[test]
fn in_the_real_host_nothing_is_lost_under_faults_and_hot_reloads() {
    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    // Fluent Bit 5.1.1 itself crashes in a reload if a proxy output has workers, so that case has none, as
    // docs/quick-start.md recommends.
    for (reloads, how) in [
        (0, "    Workers 4"),
        (
            3,
            "    spool on\n    spool_dir @HERE@/spool\n    linger 200ms",
        ),
    ] {
        let fake = fake(FAULTS);
        let scene = Scene::with_service(REAL_SERVICE, TAIL, &firehose_output(&fake, how));
        write_log(&scene, 200_000);
        let mut host = Host::start(&fluent_bit, &scene);
        for n in 1..=reloads {
            let lines = n * 30_000;
            host.until(&scene, "a part arrives", || {
                fake.report(None).totals.lines >= lines
            });
            host.signal("HUP");
        }
        host.until(&scene, "all arrives", || {
            fake.report(Some(200_000)).missing == 0
        });
        host.stop(&scene);
        let ledger = fake.report(Some(200_000));
        assert_eq!(
            (ledger.missing, ledger.duplicates),
            (0, 0),
            "{reloads} reloads: {ledger}\n{}",
            scene.log()
        );
        assert_eq!(ledger.limit_violations, 0);
    }
}

#[test]
fn in_the_real_host_objects_appear_once() {
    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let output = "    url file://@HERE@/objects\n    spool off\n    Retry_Limit no_limits";
    let scene = Scene::with_service(REAL_SERVICE, TAIL, output);
    write_log(&scene, 50_000);
    let mut host = Host::start(&fluent_bit, &scene);
    let objects = || verify_objects(&scene.path("objects"), "seq");
    // While the host runs, a listed staging file may be renamed before it is read.
    host.until(&scene, "all arrives", || {
        objects().is_ok_and(|ledger| ledger.report(Some(50_000)).missing == 0)
    });
    host.stop(&scene);
    let ledger = objects().unwrap().report(Some(50_000));
    assert_each_once(&ledger);
    assert!(
        scene
            .log()
            .contains("flush runs on the host's engine thread"),
        "{}",
        scene.log()
    );
}
