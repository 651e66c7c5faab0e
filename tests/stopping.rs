//! Stopping an output, and what it leaves for the next start or an operator.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ferry_harness::firehose::{FakeFirehose, Options};
use ferry_harness::ledger::verify_objects;
use ferry_harness::proxy::{self, Proxy};
use serde_json::Value;
use tempfile::TempDir;

use crate::support;
use crate::support::emulators::{Azurite, azurite};

/// A folder with a configuration.
struct Place {
    dir: TempDir,
}

impl Place {
    /// `@HERE@` stands for the folder. Without an input the host delivers the rest and ends.
    fn new(input: &str, output: &str) -> Place {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
        };
        place.configure(input, output);
        place
    }

    fn configure(&self, input: &str, output: &str) {
        let config = format!(
            "[SERVICE]\n    Flush 0.1\n    Grace 30\n    Hot_Reload on\n    scheduler.base 1\n    scheduler.cap 2\n    \
             storage.path @HERE@/storage\n\n\
             {input}\n\n[OUTPUT]\n    Name ferry\n    Match *\n    Retry_Limit no_limits\n    \
             spool_dir @HERE@/spool\n    dead_letter_dir @HERE@/letters\n{output}\n"
        );
        let here = self.dir.path().display().to_string();
        fs::write(
            self.path("fluent-bit.conf"),
            config.replace("@HERE@", &here),
        )
        .unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the harness to its end. Returns its report and its log.
    fn run(&self, extra: &[&str]) -> (Value, String) {
        let output = Command::new(support::harness())
            .args(["run", "--quiet", "-c"])
            .arg(self.path("fluent-bit.conf"))
            .arg("-e")
            .arg(support::library())
            .arg("--report")
            .arg(self.path("report.json"))
            .args(extra)
            .output()
            .expect("the harness starts");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = fs::read(self.path("report.json"))
            .unwrap_or_else(|error| panic!("no report ({error}): {log}"));
        (serde_json::from_slice(&report).unwrap(), log)
    }
}

const ENDLESS: &str =
    "[INPUT]\n    Name http_sample\n    Tag app.http\n    Rate 20000\n    storage.type filesystem";

#[test]
fn a_stop_seals_and_sends_open_objects() {
    // Otherwise nothing would be sealed for five minutes.
    let place = Place::new(ENDLESS, "    url file://@HERE@/objects");
    let (report, log) = place.run(&["--stop-after", "2s"]);
    assert_eq!(report["threads_left_behind"], 0, "{report:#}");
    let acknowledged = report["records_acknowledged"].as_u64().unwrap();
    assert!(acknowledged > 1_000, "{report:#}");
    let objects = verify_objects(&place.path("objects"), "seq")
        .unwrap()
        .report(None);
    assert_eq!(objects.totals.lines, acknowledged, "{objects}\n{log}");
    assert_eq!(objects.duplicates, 0, "{objects}\n{log}");
    assert!(log.contains("no chunk stays in the spool"), "{log}");
}

#[test]
fn hot_reloads_hand_the_spool_from_one_instance_to_the_next() {
    let input =
        "[INPUT]\n    Name http_sample\n    Tag app.http\n    Samples 60000\n    Rate 30000";
    let place = Place::new(
        input,
        "    url file://@HERE@/objects\n    blob_max_size 50K\n    blob_max_age 1s",
    );
    let (report, log) = place.run(&["--reload-after-chunks", "5", "--reload-after-chunks", "11"]);
    assert_eq!(report["reloads"], 2, "{report:#}\n{log}");
    assert_eq!(report["threads_left_behind"], 0, "{report:#}");
    let objects = verify_objects(&place.path("objects"), "seq")
        .unwrap()
        .report(None);
    let acknowledged = report["records_acknowledged"].as_u64().unwrap();
    assert_eq!(objects.totals.lines, acknowledged, "{objects}\n{log}");
    assert!(!log.contains("in use by another instance"), "{log}");
}

#[test]
fn records_not_delivered_in_time_stay_in_the_spool_for_the_next_start() {
    let fake = FakeFirehose::start(Options {
        faults: "hang 30s".to_owned(),
        ..Options::default()
    })
    .expect("a fake Firehose");
    let output = format!(
        "    delivery_stream app\n    region us-east-1\n    endpoint {}\n    aggregation on\n    spool on\n    \
         exit_deadline 1s",
        fake.url()
    );
    let place = Place::new(ENDLESS, &output);
    let (report, log) = place.run(&["--stop-after", "2s"]);
    assert_eq!(report["threads_left_behind"], 0, "{report:#}\n{log}");
    assert!(log.contains("the rest stays in the spool"), "{log}");
    let acknowledged = report["records_acknowledged"].as_u64().unwrap();
    assert!(acknowledged > 1_000, "{report:#}");
    assert_eq!(fake.report(None).totals.lines, 0);

    fake.clear_faults();
    place.configure("", &output.replace("exit_deadline 1s", "exit_deadline 60s"));
    let (report, log) = place.run(&[]);
    let acknowledged = acknowledged + report["records_acknowledged"].as_u64().unwrap();
    let ledger = fake.report(Some(acknowledged));
    assert_eq!(ledger.missing, 0, "{ledger}\n{log}");
    assert!(
        log.contains("were in flight when the last run ended"),
        "{log}"
    );
    assert!(log.contains("no chunk stays in the spool"), "{log}");
}

#[test]
fn dead_letters_are_sent_again_after_their_cause_is_fixed() {
    let url = azurite().blob_url();
    let upstream = url.strip_suffix(&format!("/{}", Azurite::ACCOUNT)).unwrap();
    let proxy = Proxy::start(upstream, proxy::Options::default()).unwrap();
    proxy
        .push_fault("status 413 RequestBodyTooLarge method PUT path letters/ times 3")
        .unwrap();
    let output = format!(
        "    account_name {}\n    shared_key {}\n    endpoint {}/{}\n    container_name letters\n    \
         blob_max_size 50K\n    blob_max_age 1s",
        Azurite::ACCOUNT,
        Azurite::KEY,
        proxy.url(),
        Azurite::ACCOUNT,
    );
    let input = "[INPUT]\n    Name http_sample\n    Tag app.http\n    Samples 20000";
    let place = Place::new(input, &output);
    let (_, log) = place.run(&[]);
    let letters = place.path("letters/dead-letters.ndjson");
    let text = fs::read_to_string(&letters).unwrap_or_else(|error| panic!("{error}: {log}"));
    assert_eq!(text.lines().count(), 3, "one for each object: {log}");
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["reason"], "refused", "{first}");
    assert!(
        first["error"]
            .as_str()
            .unwrap()
            .contains("RequestBodyTooLarge")
    );
    assert!(
        first["target"].as_str().unwrap().starts_with("app.http/"),
        "{}",
        first["target"]
    );
    let before = azurite().report("letters", 20_000);
    assert!(before.missing > 0 && before.duplicates == 0, "{before}");

    let replay = || {
        Command::new(env!("CARGO_BIN_EXE_ferry"))
            .arg("replay")
            .arg(place.path("fluent-bit.conf"))
            .arg(place.path("letters"))
            .output()
            .expect("ferry starts")
    };
    let replayed = replay();
    let output = format!(
        "{}{}",
        String::from_utf8_lossy(&replayed.stdout),
        String::from_utf8_lossy(&replayed.stderr)
    );
    assert!(replayed.status.success(), "{output}");
    let after = azurite().report("letters", 20_000);
    assert!(after.is_exact(), "{after}\n{output}");
    assert!(!letters.exists(), "{output}");
    assert!(replay().status.success(), "there is nothing left to do");
}

/// The host's `Grace` and the output's `exit_deadline`, in seconds.
const GRACE: u64 = 2;
const EXIT_DEADLINE: u64 = 6;

/// A configuration with ten inputs, whose tags and therefore chunks differ, and an output in direct mode.
fn direct(input: &str, output: &str) -> Place {
    let place = Place {
        dir: tempfile::tempdir().unwrap(),
    };
    let inputs: String = (0..10)
        .map(|n| format!("[INPUT]\n    Tag app.{n}\n{input}\n"))
        .collect();
    let config = format!(
        "[SERVICE]\n    Flush 0.2\n    Grace {GRACE}\n    scheduler.base 1\n    scheduler.cap 2\n\n{inputs}\n\
         [OUTPUT]\n    Name ferry\n    Match *\n    Retry_Limit no_limits\n    region us-east-1\n    \
         aggregation on\n    delivery_stream app\n    exit_deadline {EXIT_DEADLINE}s\n    \
         dead_letter_dir @HERE@/letters\n{output}\n"
    );
    let here = place.dir.path().display().to_string();
    fs::write(
        place.path("fluent-bit.conf"),
        config.replace("@HERE@", &here),
    )
    .unwrap();
    place
}

const SAMPLES: &str = "    Name http_sample\n    Rate 500\n";

/// Destinations that do not work.
struct Away {
    closed: String,
    silent: String,
    slow: FakeFirehose,
    throttled: FakeFirehose,
    /// Keeps `silent` listening: connections are established without an accept, and never answered.
    _listener: TcpListener,
}

impl Away {
    fn new() -> Away {
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Away {
            closed: url(&TcpListener::bind("127.0.0.1:0").unwrap()),
            silent: url(&listener),
            slow: fake("delay 3s"),
            throttled: fake("throttle"),
            _listener: listener,
        }
    }
}

fn fake(faults: &str) -> FakeFirehose {
    let faults = faults.to_owned();
    let options = Options {
        faults,
        ..Options::default()
    };
    FakeFirehose::start(options).expect("a fake Firehose")
}

/// The host waits for each flush given to its workers, without a limit of its own.
#[test]
fn in_an_outage_a_stop_takes_at_most_grace_and_exit_deadline_whatever_is_pending() {
    let away = Away::new();
    let (slow, throttled) = (away.slow.url(), away.throttled.url());
    for (far_end, url, workers, hidden, more) in [
        ("closed", &*away.closed, 2, false, ""),
        (
            "closed, and the stop cannot be seen",
            &away.closed,
            2,
            true,
            "",
        ),
        ("closed, on the engine's thread", &away.closed, 0, false, ""),
        ("silent", &away.silent, 2, false, ""),
        ("silent, on the engine's thread", &away.silent, 0, false, ""),
        ("slow", slow, 2, false, ""),
        (
            "slow, with little memory",
            slow,
            4,
            false,
            "    memory_limit 4M\n",
        ),
        ("slow, on the engine's thread", slow, 0, false, ""),
        ("throttled", throttled, 2, false, ""),
    ] {
        let output = format!("    endpoint {url}\n    Workers {workers}\n{more}");
        let place = direct(SAMPLES, &output);
        let mut arguments = vec!["--stop-after", "3s"];
        arguments.extend(hidden.then_some("--hide-stop"));
        let (report, log) = place.run(&arguments);
        let pending = report["chunks"].as_u64().unwrap()
            - report["outputs"]["ferry.0"]["chunks"].as_u64().unwrap();
        // The engine's thread creates no chunks while it waits.
        let least = if workers == 0 { 10 } else { 50 };
        assert!(pending >= least, "{far_end}: {report:#}\n{log}");
        let took = report["stopping_seconds"].as_f64().unwrap();
        let most = (GRACE + EXIT_DEADLINE) as f64;
        assert!(
            took <= most,
            "{far_end}: {took} s of {most}: {report:#}\n{log}"
        );
        assert_eq!(report["threads_left_behind"], 0, "{far_end}: {report:#}");
        println!("{far_end}: {took:.1} s, {pending} chunks pending");
    }
}

/// Two workers, a missing stream and a healthy one.
#[test]
fn a_missing_stream_does_not_delay_a_healthy_one_and_gets_its_records_once_it_exists() {
    const RECORDS: u64 = 15_000;
    let fake = fake("not-found stream app-bad");
    let place = direct("", "    Workers 2");
    let config = fs::read_to_string(place.path("fluent-bit.conf")).unwrap();
    let (service, rest) = config.split_once("[INPUT]").unwrap();
    let (_, output) = rest.split_once("[OUTPUT]").unwrap();
    let inputs: String = ["good", "bad"]
        .map(|tag| {
            format!(
                "[INPUT]\n    Name http_sample\n    Tag {tag}\n    Rate 5000\n    Samples {RECORDS}\n\n"
            )
        })
        .concat();
    let output = output.replace("delivery_stream app", "delivery_stream app-{tag}");
    let config = format!(
        "{service}{inputs}[OUTPUT]{output}    endpoint {}\n",
        fake.url()
    );
    fs::write(place.path("fluent-bit.conf"), config).unwrap();
    let run = thread::spawn(move || place.run(&["--stop-after", "2m"]));
    let lines = |stream: &str| {
        let report = fake.report(None);
        report.streams.get(stream).map_or(0, |counts| counts.lines)
    };
    let patience = Instant::now() + Duration::from_secs(60);
    while lines("app-good") < RECORDS && Instant::now() < patience && !run.is_finished() {
        thread::sleep(Duration::from_millis(50));
    }
    let (good, bad) = (lines("app-good"), lines("app-bad"));
    fake.clear_faults();
    let (report, log) = run.join().unwrap();
    assert_eq!((good, bad), (RECORDS, 0), "{log}");
    assert_eq!(report["records_acknowledged"], 2 * RECORDS, "{report:#}");
    let all = fake.report(None);
    for stream in ["app-good", "app-bad"] {
        assert_eq!(all.streams[stream].lines, RECORDS, "{all}\n{log}");
    }
}

#[test]
fn in_the_real_host_a_stop_takes_no_longer_than_in_the_harness() {
    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let away = Away::new();
    for (far_end, url) in [
        ("closed", &*away.closed),
        ("silent", &away.silent),
        ("slow", away.slow.url()),
        ("throttled", away.throttled.url()),
    ] {
        let output = format!("    endpoint {url}\n{}", support::workers(&fluent_bit, 2));
        let place = direct("    Name dummy\n    Rate 20\n", &output);
        let log = fs::File::create(place.path("log")).unwrap();
        let mut host = Command::new(&fluent_bit)
            .arg("-e")
            .arg(support::library())
            .arg("-c")
            .arg(place.path("fluent-bit.conf"))
            .env("AWS_ACCESS_KEY_ID", "AKID")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the host starts");
        let log = || fs::read_to_string(place.path("log")).unwrap();
        // Ten inputs create five chunks per second each.
        let is_busy = || match far_end {
            "slow" => away.slow.requests().len() >= 2,
            _ => log().matches("failed to flush chunk").count() >= 20,
        };
        while !is_busy() {
            assert_eq!(host.try_wait().unwrap(), None, "{far_end}: {}", log());
            thread::sleep(Duration::from_millis(50));
        }
        let stopped = Instant::now();
        let sent = Command::new("kill").arg(host.id().to_string()).status();
        assert!(sent.unwrap().success());
        let status = host.wait().unwrap();
        let took = stopped.elapsed();
        assert!(status.success(), "{far_end}: {status}\n{}", log());
        let most = Duration::from_secs(GRACE + EXIT_DEADLINE);
        assert!(took <= most, "{far_end}: {took:?} of {most:?}\n{}", log());
        println!("{far_end}: {took:?}");
    }
}
