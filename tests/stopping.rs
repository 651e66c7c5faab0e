//! How an output ends, and what it leaves behind: for the next start, or for a person.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

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
    /// `@HERE@` is the folder. Without an input the host delivers what is left and ends.
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

    /// Runs the harness to its end: its report and its log.
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
fn a_stop_seals_and_ships_what_is_open() {
    // Nothing would be sealed for five minutes.
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
    assert!(log.contains(" 0 chunks stay in the spool"), "{log}");
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
fn what_cannot_be_shipped_in_time_stays_in_the_spool_for_the_next_start() {
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
        log.contains("were on their way when the last run ended"),
        "{log}"
    );
    assert!(log.contains(" 0 chunks stay in the spool"), "{log}");
}

#[test]
fn dead_letters_are_sent_again_after_their_cause_is_mended() {
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
        Command::new(support::harness())
            .arg("replay")
            .arg(place.path("letters"))
            .arg("-c")
            .arg(place.path("fluent-bit.conf"))
            .arg("-e")
            .arg(support::library())
            .output()
            .expect("the harness starts")
    };
    let replayed = replay();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&replayed.stdout),
        String::from_utf8_lossy(&replayed.stderr)
    );
    assert!(replayed.status.success(), "{said}");
    let after = azurite().report("letters", 20_000);
    assert!(after.is_exact(), "{after}\n{said}");
    assert!(!letters.exists(), "{said}");
    assert!(replay().status.success(), "there is nothing left to do");
}
