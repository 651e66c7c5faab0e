//! The whole plugin against a fake Firehose that enforces every limit and injects scripted faults.

use ferry::ids::Verdict;
use ferry_harness::firehose::{FakeFirehose, Options, StreamKind};
use serde_json::json;
use std::time::{Duration, SystemTime};

use crate::support::plugin::{Plugin, chunk, push_event};

fn fake(options: Options) -> FakeFirehose {
    FakeFirehose::start(options).expect("a fake Firehose")
}

fn faults(script: &str) -> FakeFirehose {
    fake(Options {
        faults: script.to_owned(),
        ..Options::default()
    })
}

fn plugin(fake: &FakeFirehose, keys: &[(&str, &str)]) -> Plugin {
    let mut all = vec![
        ("delivery_stream", "app"),
        ("region", "us-east-1"),
        ("endpoint", fake.url()),
    ];
    all.extend_from_slice(keys);
    Plugin::start(&all)
}

/// Polls for a minute at most.
fn until(what: &str, done: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "timed out waiting for {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The number of PutRecordBatch calls that the fake received.
fn calls(fake: &FakeFirehose) -> usize {
    fake.requests()
        .iter()
        .filter(|request| request.operation == "PutRecordBatch")
        .count()
}

#[test]
fn every_line_arrives_once_in_records_that_waste_nothing() {
    let fake = faults("");
    let plugin = plugin(&fake, &[]);
    for n in 0..4 {
        assert_eq!(
            plugin.flush("app", &chunk(n * 5_000..(n + 1) * 5_000)),
            Verdict::Ok
        );
    }
    let report = fake.report(Some(20_000));
    assert_eq!(
        (report.missing, report.duplicates, report.limit_violations),
        (0, 0, 0),
        "{report:?}"
    );
    assert_eq!(report.totals.invalid_lines, 0);
    let wasted = report.totals.billed_bytes as f64 / report.totals.raw_bytes as f64;
    assert!(wasted < 1.02, "billed {wasted} times what was sent");
}

#[test]
fn no_fault_loses_a_record_and_only_lost_answers_duplicate() {
    let scripts = [
        "0.2% records ServiceUnavailableException",
        "5% records InternalFailure",
        "90% records ServiceUnavailableException times 200",
        "20% throttle",
        "20% throttle ServiceUnavailableException",
        "calls 1-2 throttle-records",
        "calls 1-2 status 500; call 3 status 502; call 4 status 503",
        "20% status-after-write 500",
        "20% cut",
        "20% cut-after-write",
        "20% cut-mid-answer",
        "call 1 delay 50ms",
        "calls 1-2 too-large",
        "calls 1-2 fed-by-kinesis",
        "calls 1-2 empty-ids",
        "calls 1-2 status 413",
        "calls 1-2 expired-token",
        "call 1 invalid-signature",
    ];
    for script in scripts {
        let fake = faults(script);
        let plugin = plugin(&fake, &[("aggregation", "off")]);
        plugin.deliver("app", &chunk(0..2_000));
        plugin.deliver("app", &chunk(2_000..4_000));
        let report = fake.report(Some(4_000));
        let found = (
            report.missing,
            report.unexplained_duplicates,
            report.limit_violations,
        );
        assert_eq!(found, (0, 0, 0), "{script}: {report:?}\n{}", plugin.log());
        assert!(
            report.duplicates <= report.ambiguous_lines,
            "{script}: {report:?}"
        );
        assert_eq!(plugin.letters(), [] as [serde_json::Value; 0], "{script}");
    }
}

#[test]
fn a_stream_gets_lines_in_the_shape_its_destination_can_read() {
    let fake = fake(Options {
        streams: vec![
            ("plain".into(), StreamKind::S3),
            ("parquet".into(), StreamKind::S3Parquet),
            ("parts".into(), StreamKind::S3Partitioned),
            ("search".into(), StreamKind::OpenSearch),
        ],
        ..Options::default()
    });
    for (stream, at_most) in [
        ("plain", u64::MAX),
        ("parquet", u64::MAX),
        ("parts", 500),
        ("search", 1),
    ] {
        let plugin = plugin_for(&fake, stream);
        plugin.deliver("app", &chunk(0..1_200));
        let counts = &fake.report(None).streams[stream];
        assert_eq!(counts.lines, 1_200, "{stream}");
        assert!(
            counts.records * at_most.min(1_200) >= 1_200,
            "{stream}: {counts:?}"
        );
        match stream {
            "search" => assert_eq!(counts.records, 1_200),
            "parts" => assert!(counts.records >= 3),
            _ => assert_eq!(counts.records, 1),
        }
    }
    assert_eq!(fake.report(None).limit_violations, 0);
}

fn plugin_for(fake: &FakeFirehose, stream: &str) -> Plugin {
    Plugin::start(&[
        ("delivery_stream", stream),
        ("region", "us-east-1"),
        ("endpoint", fake.url()),
    ])
}

#[test]
fn a_sender_without_describe_permission_sends_line_by_line_and_logs_the_cost() {
    let fake = fake(Options {
        deny_describe: true,
        ..Options::default()
    });
    let plugin = plugin(&fake, &[]);
    plugin.deliver("app", &chunk(0..700));
    plugin.deliver("app", &chunk(700..1_400));
    assert_eq!(fake.report(Some(1_400)).totals.records, 1_400);
    assert_eq!(
        plugin.log().matches("billed as at least 5 KB").count(),
        1,
        "{}",
        plugin.log()
    );
}

#[test]
fn records_to_be_compressed_wait_until_the_stream_can_be_described() {
    // A closed port.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool").display().to_string();
    let plugin = Plugin::start(&[
        ("delivery_stream", "app"),
        ("region", "us-east-1"),
        ("endpoint", &format!("http://{address}")),
        ("compression", "gzip"),
        ("spool", "on"),
        ("spool_dir", &spool),
    ]);
    assert_eq!(plugin.flush("app", &chunk(0..4_000)), Verdict::Ok);
    until("a log line about the stream", || {
        plugin.log().contains("could not be described")
    });
    let fake = fake(Options {
        listen: address,
        ..Options::default()
    });
    until("all records", || fake.report(Some(4_000)).missing == 0);
    let report = fake.report(Some(4_000));
    assert_eq!(report.duplicates, 0, "{report:?}");
    // Before that, no record was sent uncompressed with a single line.
    assert!(report.totals.records < 10, "{report:?}");
    assert!(
        report.totals.record_bytes < report.totals.raw_bytes / 3,
        "{report:?}"
    );
}

#[test]
fn compressed_records_are_aggregated_first_and_read_as_one_file() {
    for compression in ["gzip", "zstd"] {
        let fake = faults("10% records ServiceUnavailableException");
        let plugin = plugin(&fake, &[("compression", compression)]);
        plugin.deliver("app", &chunk(0..4_000));
        let report = fake.report(Some(4_000));
        assert_eq!(
            (report.missing, report.duplicates),
            (0, 0),
            "{compression}: {report:?}"
        );
        assert!(
            report.totals.record_bytes < report.totals.raw_bytes / 3,
            "{report:?}"
        );
    }
}

#[test]
fn a_record_above_the_services_limit_is_a_dead_letter_and_fails_no_batch() {
    let fake = faults("");
    let plugin = plugin(&fake, &[]);
    let mut data = chunk(0..10);
    let huge = json!({"seq": 10, "text": "x".repeat(1_100_000)});
    push_event(&mut data, SystemTime::UNIX_EPOCH, &huge);
    data.extend(chunk(10..20));
    assert_eq!(plugin.flush("app", &data), Verdict::Ok);
    let report = fake.report(Some(20));
    assert_eq!(
        (report.missing, report.duplicates, report.limit_violations),
        (0, 0, 0),
        "{report:?}"
    );
    let letters = plugin.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["reason"], "too_large");
    let kept: serde_json::Value =
        serde_json::from_str(letters[0]["record"].as_str().unwrap()).unwrap();
    assert_eq!(kept, huge);
}

#[test]
fn a_stream_can_be_chosen_by_tag_and_by_record() {
    let fake = faults("");
    let plugin = Plugin::start(&[
        ("delivery_stream", "app-{tag[1]}-{record.kind|none}"),
        ("region", "us-east-1"),
        ("endpoint", fake.url()),
    ]);
    let mut data = Vec::new();
    for kind in ["a", "b/c", "a"] {
        push_event(&mut data, SystemTime::UNIX_EPOCH, &json!({"kind": kind}));
    }
    push_event(&mut data, SystemTime::UNIX_EPOCH, &json!({}));
    plugin.deliver("app.orders", &data);
    let report = fake.report(None);
    let streams: Vec<(&str, u64)> = report
        .streams
        .iter()
        .map(|(name, counts)| (name.as_str(), counts.lines))
        .collect();
    // A value with other characters than a stream's name may have carries a hash, so that it is not that of "b_c".
    let [("app-orders-a", 2), (hashed, 1), ("app-orders-none", 1)] = streams[..] else {
        panic!("{streams:?}");
    };
    let hash = hashed.strip_prefix("app-orders-b_c-");
    assert_eq!(hash.map(str::len), Some(20), "{hashed}");
}

#[test]
fn a_missing_stream_holds_data_and_logs_the_remedy() {
    let fake = faults("calls 1- not-found");
    let plugin = plugin(&fake, &[("flush_deadline", "1s")]);
    assert_eq!(plugin.flush("app", &chunk(0..10)), Verdict::Retry);
    let log = plugin.log();
    assert!(
        log.contains("ResourceNotFoundException") && log.contains("retrying until this is fixed"),
        "{log}"
    );
    fake.clear_faults();
    plugin.deliver("app", &chunk(0..10));
    let report = fake.report(Some(10));
    assert_eq!((report.missing, report.duplicates), (0, 0), "{report:?}");
}

/// Each request has a single record, so splitting cannot help: the fault is not in the record.
#[test]
fn a_fault_of_the_stream_or_a_proxy_holds_a_single_record_until_it_is_fixed() {
    for (fault, words) in [
        ("fed-by-kinesis", "KinesisStreamAsSource"),
        ("too-large", "raise the proxy's limit"),
        ("status 413", "raise the proxy's limit"),
    ] {
        let fake = faults(&format!("calls 1- {fault}"));
        let plugin = plugin(&fake, &[("flush_deadline", "1s")]);
        assert_eq!(plugin.flush("app", &chunk(0..1)), Verdict::Retry, "{fault}");
        let log = plugin.log();
        assert!(
            log.contains(words) && log.contains("retrying until this is fixed"),
            "{fault}: {log}"
        );
        fake.clear_faults();
        plugin.deliver("app", &chunk(0..1));
        let report = fake.report(Some(1));
        assert_eq!((report.missing, report.duplicates), (0, 0), "{report:?}");
        assert_eq!(plugin.letters(), [] as [serde_json::Value; 0], "{fault}");
    }
}

#[test]
fn an_unresponsive_service_delays_a_flush_until_its_deadline_and_no_longer() {
    let fake = faults("calls 1- hang 60s");
    let plugin = plugin(&fake, &[("flush_deadline", "1s"), ("exit_deadline", "1s")]);
    let start = std::time::Instant::now();
    assert_eq!(plugin.flush("app", &chunk(0..10)), Verdict::Retry);
    // Not a performance test: ten times the deadline would be different behaviour.
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(plugin);
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "stopping waits for exit_deadline at most"
    );
}

/// Not a performance test: without the bound a flush would wait for more than a minute.
#[test]
fn no_flush_delays_a_host_that_ends() {
    let keys = [("flush_deadline", "120s"), ("exit_deadline", "1s")];
    let patience = Duration::from_secs(30);
    for asked in [true, false] {
        let fake = faults("calls 1- delay 60s");
        let plugin = plugin(&fake, &keys);
        let start = std::time::Instant::now();
        std::thread::scope(|scope| {
            let flush = scope.spawn(|| plugin.flush("app", &chunk(0..10)));
            while calls(&fake) == 0 {
                std::thread::yield_now();
            }
            match asked {
                // A host waits for its workers before it calls exit.
                true => plugin.ask_to_end(),
                false => plugin.stop(),
            }
            assert_eq!(flush.join().unwrap(), Verdict::Retry);
        });
        assert!(
            start.elapsed() < patience,
            "asked: {asked}: {:?}",
            start.elapsed()
        );
        assert_eq!(plugin.flush("app", &chunk(0..10)), Verdict::Retry);
        drop(plugin);
        assert!(
            start.elapsed() < patience,
            "asked: {asked}: {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_role_is_assumed_and_its_credentials_sign() {
    let fake = faults("");
    let plugin = plugin(
        &fake,
        &[
            ("sts_endpoint", fake.url()),
            ("role_arn", "arn:aws:iam::123456789012:role/logs"),
            ("external_id", "team-7"),
        ],
    );
    plugin.deliver("app", &chunk(0..10));
    let roles = fake.assumed_roles();
    assert_eq!(roles.len(), 1, "assumed once, not for every call");
    assert_eq!(roles[0].role_arn, "arn:aws:iam::123456789012:role/logs");
    assert_eq!(roles[0].external_id.as_deref(), Some("team-7"));
    let put = fake
        .requests()
        .into_iter()
        .find(|request| request.operation == "PutRecordBatch")
        .unwrap();
    assert_eq!(put.access_key_id, roles[0].access_key_id);
    assert_eq!(put.session_token.as_ref(), Some(&roles[0].session_token));
}

#[test]
fn tls_is_verified_against_the_ca_that_was_given() {
    let fake = fake(Options {
        tls: true,
        ..Options::default()
    });
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), fake.ca_pem().unwrap()).unwrap();

    let trusting = plugin(&fake, &[("tls_ca_file", &ca.path().display().to_string())]);
    trusting.deliver("app", &chunk(0..10));
    assert_eq!(fake.report(Some(10)).missing, 0);

    let before = calls(&fake);
    let strict = plugin(&fake, &[("flush_deadline", "1s")]);
    assert_eq!(strict.flush("app", &chunk(0..10)), Verdict::Retry);
    assert_eq!(
        calls(&fake),
        before,
        "nothing is sent to an untrusted server"
    );
    assert!(strict.log().contains("certificate"), "{}", strict.log());
}

#[test]
fn a_missing_region_is_refused_at_start_with_the_remedy() {
    let log = Plugin::try_start(&[("delivery_stream", "app"), ("profile", "no-such-profile")])
        .err()
        .expect("refused");
    assert!(log.contains("region: no region found"), "{log}");
}
