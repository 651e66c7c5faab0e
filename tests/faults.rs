//! Injected faults on the way to a destination, and the records they lose or duplicate.
//!
//! Each row is one fault: for blob storage injected by a proxy in front of Azurite, for Firehose by the fake's script.
//! The library runs in the bundled harness, for Firehose both spooled and directly; all arrivals are counted. With
//! `FERRY_TABLE=<file>` the rows are appended to a file as Markdown, for the table in docs/testing.md.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferry_harness::firehose::{FakeFirehose, Options};
use ferry_harness::ledger::Report;
use ferry_harness::proxy::{self, Proxy};
use tempfile::TempDir;

use crate::support;
use crate::support::emulators::{Azurite, azurite};

const RECORDS: u64 = 10_000;
/// The time limit of a row.
const PATIENCE: Duration = Duration::from_secs(180);

/// A host with numbered records to deliver.
struct Run {
    dir: TempDir,
    host: Child,
}

impl Run {
    fn start(output: &str) -> Run {
        let dir = tempfile::tempdir().unwrap();
        // The records are spread over half a second, so that faults hit some of them.
        let config = format!(
            "[SERVICE]\n    Flush 0.1\n    Grace 60\n    Log_Level info\n    scheduler.base 1\n    \
             scheduler.cap 2\n\n\
             [INPUT]\n    Name http_sample\n    Tag app.http\n    Samples {RECORDS}\n    Rate 20000\n\n\
             [OUTPUT]\n    Name ferry\n    Match *\n    Retry_Limit no_limits\n    exit_deadline 120s\n    \
             dead_letter_dir @HERE@/letters\n{output}\n"
        );
        fs::write(
            dir.path().join("fluent-bit.conf"),
            config.replace("@HERE@", &dir.path().display().to_string()),
        )
        .unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let host = Command::new(support::harness())
            .args(["run", "--quiet", "-c"])
            .arg(dir.path().join("fluent-bit.conf"))
            .arg("-e")
            .arg(support::library())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the harness starts");
        Run { dir, host }
    }

    /// Waits until the host has drained its spool and ends by itself.
    fn finish(mut self) -> String {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.host.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > PATIENCE {
                self.host.kill().unwrap();
                self.host.wait().unwrap();
                panic!("the host does not end: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let log = self.log();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("a bug in Ferry"), "{log}");
        log
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn until_logged(&self, words: &str) {
        let began = Instant::now();
        while !self.log().contains(words) {
            assert!(
                began.elapsed() < PATIENCE,
                "never logged '{words}': {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Adds a row to the table, if one is requested.
fn row(destination: &str, fault: &str, hits: &str, report: &Report) {
    let Some(path) = std::env::var_os("FERRY_TABLE").map(PathBuf::from) else {
        return;
    };
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    writeln!(
        file,
        "| {destination} | {fault} | {hits} | {} | {} |",
        report.missing, report.duplicates
    )
    .unwrap();
}

fn azure_output(url: &str, container: &str) -> String {
    format!(
        "    account_name {}\n    shared_key {}\n    endpoint {url}/{}\n    container_name {container}\n    \
         spool_dir @HERE@/spool\n    blob_max_size 20K\n    blob_max_age 1s",
        Azurite::ACCOUNT,
        Azurite::KEY,
        Azurite::ACCOUNT,
    )
}

fn proxy() -> Proxy {
    let url = azurite().blob_url();
    let upstream = url.strip_suffix(&format!("/{}", Azurite::ACCOUNT)).unwrap();
    Proxy::start(upstream, proxy::Options::default()).expect("a proxy")
}

/// The name of each row, its container, and the proxy's script.
const BLOB: &[(&str, &str, &str)] = &[
    ("none", "f-none", ""),
    (
        "503 ServerBusy for every third call",
        "f-503",
        "every 3 status 503",
    ),
    (
        "30% of calls cut off before they reach the store",
        "f-cut",
        "30% cut",
    ),
    (
        "30% of puts done, their responses cut off",
        "f-cut-after",
        "30% cut-after-forward method PUT",
    ),
    (
        "every fourth response cut off in the middle",
        "f-mid",
        "every 4 cut-mid-answer",
    ),
    (
        "30% of puts done, but answered with 500",
        "f-500",
        "30% status-after-forward 500 method PUT",
    ),
    (
        "puts done and cut off, and the following HEAD requests cut off or 503 as well",
        "f-head",
        "40% cut-after-forward method PUT; 40% cut method HEAD; 20% status 503 method HEAD",
    ),
    ("429 for half of the calls", "f-429", "50% status 429"),
    (
        "every sixth call hanging for a second, then cut off",
        "f-hang",
        "every 6 hang 1s",
    ),
    (
        "every sixth put done, hanging for a second, then cut off",
        "f-hang-after",
        "every 6 hang-after-forward 1s method PUT",
    ),
    (
        "every fifth put done 300 ms after its client was disconnected",
        "f-late",
        "every 5 delay 300ms method PUT; every 5 cut-after-forward method PUT",
    ),
];

/// The formats of objects, and the ends of their containers' names.
const FORMATS: [(&str, &str); 2] = [
    ("", ""),
    (
        "\n    format parquet\n    parquet_columns seq int, status int",
        "-parquet",
    ),
];

#[test]
fn faults_on_the_way_to_a_blob_store_lose_nothing_and_duplicate_nothing() {
    let all = FORMATS
        .iter()
        .flat_map(|format| BLOB.iter().map(move |row| (format, row)));
    for ((format, end), (fault, container, script)) in all {
        let container = &format!("{container}{end}");
        let proxy = proxy();
        proxy.push_fault(script).unwrap();
        let log = Run::start(&(azure_output(proxy.url(), container) + format)).finish();
        let hits: u64 = proxy.counts().faults.values().sum();
        assert_eq!(
            script.is_empty(),
            hits == 0,
            "{fault}: {:?}",
            proxy.counts()
        );
        let report = azurite().report(container, RECORDS);
        assert!(report.is_exact(), "{fault}: {report}\n{log}");
        row("Azure Blob", fault, &format!("{hits} calls"), &report);
    }
}

#[test]
fn an_outage_of_the_store_holds_data_and_ends_by_itself() {
    let proxy = proxy();
    proxy.set_down(true).unwrap();
    let run = Run::start(&azure_output(proxy.url(), "f-outage"));
    run.until_logged("probing with one request at a time");
    proxy.set_down(false).unwrap();
    let log = run.finish();
    let report = azurite().report("f-outage", RECORDS);
    assert!(report.is_exact(), "{report}\n{log}");
    row(
        "Azure Blob",
        "down at the start, then available",
        "1 outage",
        &report,
    );
}

#[test]
fn refused_credentials_hold_data_and_are_logged_until_they_are_accepted() {
    let proxy = proxy();
    proxy.push_fault("status 403 while locked").unwrap();
    proxy.set_switch("locked", true);
    let run = Run::start(&azure_output(proxy.url(), "f-locked"));
    run.until_logged("check the credentials");
    proxy.set_switch("locked", false);
    let log = run.finish();
    let report = azurite().report("f-locked", RECORDS);
    assert!(report.is_exact(), "{report}\n{log}");
    let hits: u64 = proxy.counts().faults.values().sum();
    row(
        "Azure Blob",
        "403 until a person fixes it",
        &format!("{hits} calls"),
        &report,
    );
}

#[test]
fn a_deleted_container_is_logged_and_its_data_waits_for_it() {
    let proxy = proxy();
    proxy
        .push_fault("status 404 ContainerNotFound method PUT while gone")
        .unwrap();
    proxy.set_switch("gone", true);
    let run = Run::start(&azure_output(proxy.url(), "f-gone"));
    run.until_logged("ContainerNotFound");
    proxy.set_switch("gone", false);
    let log = run.finish();
    let report = azurite().report("f-gone", RECORDS);
    assert!(report.is_exact(), "{report}\n{log}");
    let hits: u64 = proxy.counts().faults.values().sum();
    row(
        "Azure Blob",
        "the container deleted, and created again later",
        &format!("{hits} calls"),
        &report,
    );
}

#[test]
fn a_refusal_that_is_not_the_objects_fault_holds_data_until_it_is_fixed() {
    for (fault, words, container) in [
        (
            "status 400 AccountRequiresHttps",
            "write the endpoint with https://",
            "f-https",
        ),
        (
            "status 400",
            "look for a proxy or gateway in between",
            "f-400",
        ),
        (
            "status 413",
            "raise the limit of the proxy or gateway in between",
            "f-413",
        ),
    ] {
        let proxy = proxy();
        proxy
            .push_fault(&format!("{fault} method PUT while refused"))
            .unwrap();
        proxy.set_switch("refused", true);
        let run = Run::start(&azure_output(proxy.url(), container));
        run.until_logged(words);
        proxy.set_switch("refused", false);
        let letters = run.dir.path().join("letters/dead-letters.ndjson");
        let log = run.finish();
        let report = azurite().report(container, RECORDS);
        assert!(report.is_exact(), "{fault}: {report}\n{log}");
        assert!(!letters.exists(), "{fault}: {log}");
        let hits: u64 = proxy.counts().faults.values().sum();
        row(
            "Azure Blob",
            &format!("{fault} until a person fixes it"),
            &format!("{hits} calls"),
            &report,
        );
    }
}

/// The name of each row, and the fake's script.
const FIREHOSE: &[(&str, &str)] = &[
    (
        "0.2% of single records failing",
        "0.2% records ServiceUnavailableException",
    ),
    ("5% of single records failing", "5% records InternalFailure"),
    (
        "90% of single records failing, 40,000 times",
        "90% records ServiceUnavailableException times 40000",
    ),
    ("half of the calls throttled", "50% throttle"),
    (
        "a storm: all of 40 calls throttled, record by record",
        "throttle-records times 40",
    ),
    ("every third call answered with 503", "every 3 status 503"),
    (
        "every fifth call hanging for a second, then cut off",
        "every 5 hang 1s",
    ),
    ("30% of calls cut off before the write", "30% cut"),
    ("3 calls with an expired token", "expired-token times 3"),
    (
        "3 calls with a clock that is ten minutes off",
        "skew 10m times 3",
    ),
    ("3 calls without permission", "access-denied times 3"),
    ("3 calls without a stream", "not-found times 3"),
    (
        "3 calls to a stream that is fed by Kinesis",
        "fed-by-kinesis times 3",
    ),
    ("3 responses with empty record IDs", "empty-ids times 3"),
];

/// The same, for responses lost after the write: the records are sent again, and so duplicated.
const FIREHOSE_UNSURE: &[(&str, &str)] = &[
    (
        "10% of responses cut off after the write",
        "10% cut-after-write",
    ),
    (
        "every seventh call written and answered with 500",
        "every 7 status-after-write 500",
    ),
    (
        "every tenth response cut off in the middle",
        "every 10 cut-mid-answer",
    ),
    (
        "every tenth call written, hanging for a second, then cut off",
        "every 10 hang-after-write 1s",
    ),
];

fn firehose(fault: &str, script: &str, spool: &str, more: &str) -> (Report, String) {
    let fake = FakeFirehose::start(Options {
        faults: script.to_owned(),
        ..Options::default()
    })
    .expect("a fake Firehose");
    let output = format!(
        "    delivery_stream app\n    region us-east-1\n    endpoint {}\n    aggregation off\n    spool {spool}\n{more}",
        fake.url()
    );
    let log = Run::start(&output).finish();
    let report = fake.report(Some(RECORDS));
    assert_eq!(report.missing, 0, "{fault}, spool {spool}: {report}\n{log}");
    assert_eq!(
        report.limit_violations, 0,
        "{fault}, spool {spool}: {report}"
    );
    let good = report.calls.get("ok").copied().unwrap_or_default();
    let calls: u64 = report.calls.values().sum();
    row(
        &format!("Firehose, spool {spool}"),
        fault,
        &format!("{} of {calls} calls", calls - good),
        &report,
    );
    (report, log)
}

const SPOOLED: &str = "    spool_dir @HERE@/spool\n    linger 100ms";
const DIRECT: &str = "    Workers 4";

#[test]
fn faults_of_firehose_lose_nothing_and_duplicate_nothing() {
    for (spool, more) in [("on", SPOOLED), ("off", DIRECT)] {
        for (fault, script) in FIREHOSE {
            let (report, log) = firehose(fault, script, spool, more);
            assert!(report.is_exact(), "{fault}, spool {spool}: {report}\n{log}");
        }
    }
}

#[test]
fn only_lost_answers_of_firehose_make_duplicates() {
    for (spool, more) in [("on", SPOOLED), ("off", DIRECT)] {
        for (fault, script) in FIREHOSE_UNSURE {
            let (report, log) = firehose(fault, script, spool, more);
            assert!(
                report.duplicates > 0,
                "{fault} hit no record: {report}\n{log}"
            );
            assert_eq!(report.unexplained_duplicates, 0, "{fault}: {report}\n{log}");
        }
    }
}

#[test]
fn only_the_rest_of_a_partly_delivered_chunk_is_sent_again() {
    // Most records fail for longer than a flush waits, so the chunk is handed over again.
    let script = "90% records ServiceUnavailableException times 150000";
    let more = "    Workers 4\n    flush_deadline 1s\n    log_level debug";
    let (report, log) = firehose(
        "90% of records failing, with a `flush_deadline` of one second",
        script,
        "off",
        more,
    );
    assert!(report.is_exact(), "{report}\n{log}");
    let suppressed = log
        .split(" records of retried chunks")
        .next()
        .and_then(|text| text.rsplit(' ').next()?.parse::<u64>().ok());
    assert!(
        suppressed > Some(0),
        "no chunk was handed over again: {log}"
    );
}
