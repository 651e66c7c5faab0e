//! The metrics of an output, compared with the destination's counts and the files on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use ferry::ids::Verdict;
use ferry::metrics::{FAMILIES, Kind};
use ferry_harness::firehose::{FakeFirehose, Options};
use ferry_harness::ledger::verify_objects;
use serde_json::json;

use crate::end_to_end::{Host, REAL_SERVICE, Scene, TAIL, write_log};
use crate::support;
use crate::support::plugin::{Plugin, chunk, push_event};

/// The time limit for an expected event.
const PATIENCE: Duration = Duration::from_secs(60);

/// A parsed metrics page: each value by family and label, without `name`.
#[derive(Debug, PartialEq)]
struct Page(BTreeMap<String, f64>);

impl Page {
    /// Parses the metrics of the output `name` from Prometheus's text format.
    fn read(text: &str, name: &str) -> Page {
        let named = format!("name=\"{name}\"");
        let mut figures = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("ferry_")) {
            let (figure, value) = line.split_once("} ").expect("a metric has labels");
            let value = value.split(' ').next().expect("a value");
            let (family, labels) = figure.split_once('{').expect("a metric has labels");
            // The name of the target in a slot, which only this page has.
            let labels = labels.split(',').filter(|it| !it.starts_with("target="));
            let (mine, labels): (Vec<&str>, Vec<&str>) = labels.partition(|label| **label == named);
            assert_eq!(mine.len(), 1, "not of {name}: {line}");
            let key = match &labels[..] {
                [] => family.to_owned(),
                [label] => {
                    let (_, value) = label.split_once('=').expect("a label has a value");
                    format!("{family}.{}", value.trim_matches('"'))
                }
                more => panic!("{more:?} in {line}"),
            };
            let before = figures.insert(key, value.parse().expect("a number"));
            assert_eq!(before, None, "twice: {line}");
        }
        Page(figures)
    }

    fn get(&self, figure: &str) -> u64 {
        let value = self.0.get(&format!("ferry_{figure}"));
        let value = *value.unwrap_or_else(|| panic!("no {figure} in {self:?}"));
        assert_eq!(value.fract(), 0.0, "{figure}");
        value as u64
    }

    /// The nonzero values of a family, by label.
    fn of(&self, family: &str) -> BTreeMap<&str, u64> {
        let prefix = format!("ferry_{family}.");
        let figures = self.0.iter();
        figures
            .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, *value as u64)))
            .filter(|(_, value)| *value > 0)
            .collect()
    }
}

fn http_get(address: &str, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    // The host ignores Connection: close.
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                let is_length = key.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.parse::<usize>().expect("a length"))
            });
            if body.len() >= length.expect("a Content-Length") {
                return Ok(text.into_owned());
            }
        }
        let read = connection.read(&mut part)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&part[..read]);
    }
}

/// The address of the metrics endpoint, from the log.
fn address(log: &str) -> Option<String> {
    let rest = log.split("metrics are at http://").nth(1)?;
    Some(rest.split_once("/metrics")?.0.to_owned())
}

fn page(plugin: &Plugin, name: &str) -> Page {
    let address = address(&plugin.log()).expect("the address is logged");
    let text = http_get(&address, "/metrics").expect("a response");
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    Page::read(&text, name)
}

/// Polls until `done`.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "timed out: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

const LISTEN: (&str, &str) = ("metrics_listen", "127.0.0.1:0");

fn firehose(faults: &str, keys: &[(&str, &str)]) -> (FakeFirehose, Plugin) {
    let fake = FakeFirehose::start(Options {
        faults: faults.to_owned(),
        ..Options::default()
    });
    let fake = fake.expect("a fake Firehose");
    let mut all = vec![
        LISTEN,
        ("delivery_stream", "app"),
        ("region", "us-east-1"),
        ("endpoint", fake.url()),
    ];
    all.extend_from_slice(keys);
    let plugin = Plugin::start(&all);
    (fake, plugin)
}

#[test]
fn every_metric_is_on_the_page_from_the_start() {
    let (_fake, plugin) = firehose("", &[]);
    let address = address(&plugin.log()).unwrap();
    let text = http_get(&address, "/metrics").unwrap();
    let page = Page::read(&text, "firehose-app");
    for family in FAMILIES {
        assert!(text.contains(&format!("# TYPE {} ", family.name)));
        let found = match (family.kind, family.label) {
            (Kind::Histogram, _) => vec![format!("{}_count", family.name)],
            (_, Some((_, values))) => values
                .iter()
                .map(|value| format!("{}.{value}", family.name))
                .collect(),
            // Credentials from the environment do not expire.
            _ if family.name == "ferry_credentials_expiry_seconds" => vec![],
            (_, None) => vec![family.name.to_owned()],
        };
        for key in found {
            assert!(page.0.contains_key(&key), "{key} in {text}");
        }
    }
    for key in page.0.keys() {
        let name = key.split('.').next().unwrap();
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        let known = FAMILIES.iter().any(|family| family.name == name);
        assert!(known, "{name} is not in FAMILIES");
    }
    assert_eq!(page.get("memory_limit_bytes"), 64_000_000);
    assert_eq!(page.get("dead_letter_limit_bytes"), 256_000_000);
    assert_eq!(page.get("requests_limit"), 4);
}

#[test]
fn requests_are_counted_by_outcome() {
    // Ten lines, ten records; they are accepted after the fault.
    for (fault, result, throttled, ambiguous) in [
        ("call 1 throttle-records", "throttled", 10, 0),
        ("call 1 throttle", "throttled", 10, 0),
        (
            "call 1 100% records ServiceUnavailableException times 3",
            "partial",
            3,
            0,
        ),
        ("call 1 100% records InternalFailure", "transient", 0, 0),
        ("call 1 status-after-write 500", "ambiguous", 0, 10),
        ("call 1 cut-after-write", "ambiguous", 0, 10),
        ("call 1 expired-token", "credentials", 0, 0),
        ("call 1 access-denied", "configuration", 0, 0),
        ("call 1 too-large", "rejected", 0, 0),
    ] {
        let (fake, plugin) = firehose(fault, &[("aggregation", "off")]);
        plugin.deliver("app", &chunk(0..10));
        let (page, report) = (page(&plugin, "firehose-app"), fake.report(Some(10)));
        assert_eq!(report.missing, 0, "{fault}");
        let requests = page.of("requests_total");
        assert_eq!(requests.get(result), Some(&1), "{fault}: {requests:?}");
        assert_eq!(requests.len(), 2, "{fault}: {requests:?}");
        assert_eq!(requests["ok"], report.calls["ok"], "{fault}: {report}");
        let calls: u64 = report.calls.values().sum();
        assert_eq!(requests.values().sum::<u64>(), calls, "{fault}");
        assert_eq!(page.get("request_duration_seconds_count"), calls, "{fault}");
        assert_eq!(page.get("throttled_records_total"), throttled, "{fault}");
        assert_eq!(page.get("records_total.delivered"), 10, "{fault}");
        assert_eq!(page.get("records_total.ambiguous"), ambiguous, "{fault}");
        assert_eq!(report.duplicates, ambiguous, "{fault}");
    }
}

#[test]
fn under_faults_an_outputs_metrics_match_the_destinations_counts() {
    let script = "5% records ServiceUnavailableException; 5% records InternalFailure; 20% throttle";
    for keys in [
        &[("aggregation", "off")][..],
        &[("aggregation", "on"), ("compression", "gzip")],
    ] {
        let (fake, plugin) = firehose(script, keys);
        let chunks: Vec<Vec<u8>> = (0..4).map(|n| chunk(n * 1_000..(n + 1) * 1_000)).collect();
        for chunk in &chunks {
            plugin.deliver("app", chunk);
        }
        let (page, report) = (page(&plugin, "firehose-app"), fake.report(Some(4_000)));
        assert!(report.is_exact(), "{report}");
        let far = &report.totals;
        assert_eq!(
            page.of("records_total"),
            BTreeMap::from([("delivered", 4_000)])
        );
        assert_eq!(page.get("bytes_total.sent"), far.record_bytes);
        assert_eq!(page.get("bytes_total.billed"), far.billed_bytes);
        assert_eq!(page.get("bytes_total.encoded"), far.raw_bytes);
        let raw: usize = chunks.iter().map(Vec::len).sum();
        assert_eq!(page.get("bytes_total.raw"), raw as u64);
        let calls = |outcome: &str| report.calls.get(outcome).copied().unwrap_or_default();
        let requests = page.of("requests_total");
        let count = |result| requests.get(result).copied().unwrap_or_default();
        assert_eq!(count("ok"), calls("ok"), "{report}");
        assert_eq!(count("partial"), calls("some records failed"), "{report}");
        let all: u64 = report.calls.values().sum();
        assert_eq!(requests.values().sum::<u64>(), all, "{report}");
        assert_eq!(page.of("flushes_total"), BTreeMap::from([("ok", 4)]));
        for idle in [
            "requests_in_flight",
            "bytes_in_flight",
            "spool_bytes",
            "circuit_open",
        ] {
            assert_eq!(page.get(idle), 0, "{idle}");
        }
        assert_eq!(page.0["ferry_oldest_unsent_seconds"], 0.0);
    }
}

#[test]
fn dead_letters_are_counted_by_reason_and_by_their_size_on_disk() {
    let (fake, plugin) = firehose("record-too-large times 1", &[]);
    // A refused request of one record cannot be split.
    assert_eq!(plugin.flush("app", &chunk(0..1)), Verdict::Ok);
    let mut data = chunk(1..4);
    let huge = json!({"seq": 9, "text": "x".repeat(1_100_000)});
    push_event(&mut data, SystemTime::UNIX_EPOCH, &huge);
    let head = [
        0x92, 0x92, 0xd7, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, 0x81, 0xa1, b'd',
    ];
    data.extend(head);
    data.extend([0x91; 10_000]);
    data.push(0xc0);
    data.extend([0xc1; 5]);
    assert_eq!(plugin.flush("app", &data), Verdict::Ok);
    let page = page(&plugin, "firehose-app");
    let letters = plugin.letters();
    let mut reasons = BTreeMap::new();
    for letter in &letters {
        *reasons
            .entry(letter["reason"].as_str().unwrap())
            .or_insert(0) += 1;
    }
    assert_eq!(page.of("dead_letters_total"), reasons);
    let each = ["malformed", "refused", "too_deep", "too_large"].map(|reason| (reason, 1));
    assert_eq!(reasons, BTreeMap::from(each));
    assert_eq!(page.get("records_total.dead_letter"), 4);
    assert_eq!(page.get("records_total.delivered"), 3);
    assert_eq!(fake.report(None).totals.lines, 3);
    let size = fs::metadata(plugin.letters_file()).unwrap().len();
    assert_eq!(page.get("dead_letter_bytes"), size);
}

#[test]
fn objects_are_counted_by_reason_for_sealing_and_the_spool_by_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let url = format!("file://{}", path("objects"));
    let keys = [
        LISTEN,
        ("url", &url),
        ("spool_dir", &path("spool")),
        ("instance", "objects"),
        ("blob_max_size", "20K"),
        ("blob_max_age", "1s"),
    ];
    let plugin = Plugin::start(&keys);
    for n in 0..4 {
        let data = chunk(n * 1_000..(n + 1) * 1_000);
        assert_eq!(plugin.flush("app", &data), Verdict::Ok);
    }
    until("everything is delivered", || {
        let page = page(&plugin, "objects");
        page.0["ferry_oldest_unsent_seconds"] == 0.0 && page.get("records_total.delivered") == 4_000
    });
    let page = page(&plugin, "objects");
    let found = verify_objects(&dir.path().join("objects"), "seq").unwrap();
    let report = found.report(Some(4_000));
    assert!(report.is_exact(), "{report}");
    let objects = page.of("objects_total");
    assert_eq!(objects.values().sum::<u64>(), report.totals.records);
    assert_eq!(objects.keys().collect::<Vec<_>>(), [&"age", &"size"]);
    assert_eq!(page.get("bytes_total.sent"), report.totals.record_bytes);
    assert_eq!(page.get("bytes_total.billed"), 0);
    assert_eq!(page.get("bytes_total.encoded"), report.totals.raw_bytes);
    assert_eq!(page.of("flushes_total"), BTreeMap::from([("ok", 4)]));
    let in_spool = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let segment = entry.file_name().to_string_lossy().ends_with(".seg");
        if segment {
            entry.metadata().unwrap().len()
        } else {
            0
        }
    };
    let on_disk: u64 = fs::read_dir(path("spool")).unwrap().map(in_spool).sum();
    assert_eq!(page.get("spool_bytes"), on_disk);
    assert_eq!(page.get("spool_limit_bytes"), 1_000_000_000);
}

#[test]
fn spooled_records_age_while_the_destination_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool").display().to_string();
    let keys = [("spool", "on"), ("spool_dir", &*spool), ("linger", "0")];
    let (fake, plugin) = firehose("status 503 times 8", &keys);
    assert_eq!(plugin.flush("app", &chunk(0..100)), Verdict::Ok);
    let mut oldest = 0.0;
    until("the circuit opens", || {
        let page = page(&plugin, "firehose-app");
        let now = page.0["ferry_oldest_unsent_seconds"];
        assert!(now >= oldest, "{now} after {oldest}");
        oldest = now;
        page.get("circuit_open") == 1
    });
    assert!(oldest > 0.0);
    until("all is delivered", || {
        let page = page(&plugin, "firehose-app");
        page.get("records_total.delivered") == 100 && page.0["ferry_oldest_unsent_seconds"] == 0.0
    });
    let page = page(&plugin, "firehose-app");
    assert_eq!(page.get("circuit_open"), 0);
    assert_eq!(fake.report(Some(100)).missing, 0);
}

#[test]
fn the_expiry_of_credentials_is_exported() {
    let fake = FakeFirehose::start(Options::default()).expect("a fake Firehose");
    let plugin = Plugin::start(&[
        LISTEN,
        ("delivery_stream", "app"),
        ("region", "us-east-1"),
        ("endpoint", fake.url()),
        ("sts_endpoint", fake.url()),
        ("role_arn", "arn:aws:iam::123456789012:role/logs"),
    ]);
    let expiry = "ferry_credentials_expiry_seconds";
    let before = page(&plugin, "firehose-app").0.get(expiry).copied();
    assert_eq!(before, None, "none are needed yet");
    plugin.deliver("app", &chunk(0..10));
    let left = page(&plugin, "firehose-app").0[expiry];
    // At most their lifetime.
    assert!((60.0..=3_600.0).contains(&left), "{left}");
}

#[test]
fn an_address_in_use_stops_the_start_and_is_named() {
    let (_fake, plugin) = firehose("", &[]);
    let taken = address(&plugin.log()).unwrap();
    let keys = [("delivery_stream", "app"), ("metrics_listen", &*taken)];
    let Err(log) = Plugin::try_start(&keys) else {
        panic!("two outputs listen on one address");
    };
    assert!(
        log.contains(&format!("metrics_listen: cannot listen on '{taken}'"))
            && log.contains("give each output an address of its own"),
        "{log}"
    );
}

#[test]
fn an_address_for_other_machines_is_warned_of() {
    let keys = [("delivery_stream", "app"), ("region", "eu-west-1")];
    let listening = |address| Plugin::start(&[&keys[..], &[("metrics_listen", address)]].concat());
    let warned = |plugin: &Plugin| plugin.log().contains("can be reached from other machines");
    assert!(warned(&listening("0.0.0.0:0")));
    assert!(!warned(&listening(":0")));
}

#[test]
fn the_log_has_the_same_metrics_at_the_configured_interval() {
    let (_fake, plugin) = firehose("", &[("metrics_log_interval", "1s")]);
    plugin.deliver("app", &chunk(0..10));
    until("the metrics are logged", || {
        plugin.log().contains(" records_total.delivered=10 ")
    });
    let log = plugin.log();
    let line = log
        .lines()
        .find(|line| line.contains(" records_total.delivered=10 "))
        .unwrap();
    let page = page(&plugin, "firehose-app");
    for (family, label) in [
        ("bytes_total", "raw"),
        ("bytes_total", "billed"),
        ("requests_total", "ok"),
        ("flushes_total", "ok"),
    ] {
        let expected = format!(
            " {family}.{label}={} ",
            page.get(&format!("{family}.{label}"))
        );
        assert!(line.contains(&expected), "{expected} in {line}");
    }
}

/// A process that is killed on drop.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn in_the_harness_the_metrics_match_the_ledger() {
    let fake = FakeFirehose::start(Options {
        faults: "2% records ServiceUnavailableException; 5% throttle".to_owned(),
        ..Options::default()
    })
    .expect("a fake Firehose");
    // The second input keeps the host running, and is not routed to this output.
    let scene = Scene::with_service(
        "Flush 0.2\n    scheduler.base 1\n    scheduler.cap 2",
        "    Name http_sample\n    Tag app.http\n    Samples 50000\n\n\
         [INPUT]\n    Name http_sample\n    Tag idle\n    Rate 1\n\n\
         [OUTPUT]\n    Name ferry\n    Match idle\n    dead_letter_dir @HERE@/idle-letters\n    \
         spool_dir @HERE@/idle\n    url file://@HERE@/idle-objects",
        &format!(
            "    Match app.*\n    Workers 2\n    delivery_stream app\n    region us-east-1\n    endpoint {}\n    \
             aggregation off\n    Retry_Limit no_limits\n    metrics_listen :0",
            fake.url()
        ),
    );
    let log = fs::File::create(scene.path("log")).unwrap();
    let host = Command::new(support::harness())
        .args(["run", "--quiet", "-c"])
        .arg(scene.path("fluent-bit.conf"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("the harness starts");
    let _host = Ended(host);
    until("the address is logged", || address(&scene.log()).is_some());
    let address = address(&scene.log()).unwrap();
    let read = || {
        let text = http_get(&address, "/metrics").expect("a response");
        Page::read(&text, "firehose-app")
    };
    until("all is answered", || {
        let page = read();
        page.get("records_total.delivered") == 50_000
            && page.0["ferry_oldest_unsent_seconds"] == 0.0
    });
    let (page, report) = (read(), fake.report(Some(50_000)));
    assert!(report.is_exact(), "{report}");
    assert_eq!(page.get("bytes_total.sent"), report.totals.record_bytes);
    assert_eq!(page.get("bytes_total.billed"), report.totals.billed_bytes);
    assert_eq!(page.get("requests_total.ok"), report.calls["ok"]);
    assert_eq!(
        page.get("requests_total.partial"),
        report.calls["some records failed"]
    );
}

/// A port that is currently free.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Appends lines to the log that tail reads.
fn append(scene: &Scene, from: usize, to: usize) {
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(scene.path("app.log"))
        .unwrap();
    for seq in from..to {
        writeln!(log, "{{\"seq\":{seq}}}").unwrap();
    }
}

#[test]
fn in_the_real_host_its_page_shows_the_metrics_also_after_a_hot_reload() {
    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let fake = FakeFirehose::start(Options {
        faults: "2% records ServiceUnavailableException; calls 1-2 throttle".to_owned(),
        ..Options::default()
    })
    .expect("a fake Firehose");
    let port = free_port();
    let service = format!(
        "{REAL_SERVICE}\n    HTTP_Server on\n    HTTP_Listen 127.0.0.1\n    HTTP_Port {port}"
    );
    let output = format!(
        "    Alias orders\n    delivery_stream app\n    region us-east-1\n    endpoint {}\n    aggregation off\n    \
         Retry_Limit no_limits\n    spool on\n    spool_dir @HERE@/spool\n    linger 100ms\n    metrics_listen :0",
        fake.url()
    );
    let scene = Scene::with_service(&service, TAIL, &output);
    write_log(&scene, 20_000);
    let mut host = Host::start(Path::new(&fluent_bit), &scene);
    let address = format!("127.0.0.1:{port}");
    let read = || {
        let text = http_get(&address, "/api/v2/metrics/prometheus").unwrap_or_default();
        Page::read(&text, "orders")
    };
    let is = |page: &Page, figure: &str, value: u64| {
        page.0.get(&format!("ferry_{figure}")) == Some(&(value as f64))
    };
    host.until(&scene, "the host shows all as delivered", || {
        is(&read(), "records_total.delivered", 20_000)
    });
    let (page, report) = (read(), fake.report(Some(20_000)));
    assert!(report.is_exact(), "{report}");
    let calls: u64 = report.calls.values().sum();
    for (figure, value) in [
        ("bytes_total.sent", report.totals.record_bytes),
        ("bytes_total.billed", report.totals.billed_bytes),
        ("requests_total.ok", report.calls["ok"]),
        (
            "requests_total.partial",
            report.calls["some records failed"],
        ),
        ("request_duration_seconds_count", calls),
        ("request_duration_seconds_bucket.+Inf", calls),
        ("dead_letters_total.refused", 0),
        ("spool_limit_bytes", 1_000_000_000),
    ] {
        assert_eq!(page.get(figure), value, "{figure}");
    }
    assert_eq!(page.0["ferry_credentials_expiry_seconds"], -1.0);
    for family in FAMILIES {
        let shown = |key: &&String| key.starts_with(family.name);
        assert!(page.0.keys().any(|key| shown(&key)), "{}", family.name);
    }

    host.signal("HUP");
    host.until(&scene, "the new output starts at 0", || {
        is(&read(), "records_total.delivered", 0)
    });
    append(&scene, 20_000, 20_500);
    host.until(&scene, "the host shows the records since then", || {
        is(&read(), "records_total.delivered", 500)
    });
    host.stop(&scene);
    assert!(fake.report(Some(20_500)).is_exact());
    assert!(!scene.log().contains("a bug in Ferry"), "{}", scene.log());
}

#[test]
fn an_output_says_whether_it_delivers() {
    let (_fake, plugin) = firehose("", &[]);
    plugin.deliver("app", &chunk(0..10));
    let address = address(&plugin.log()).expect("the address is logged");
    for (path, body) in [("/ready", "\r\n\r\nready\n"), ("/live", "\r\n\r\nlive\n")] {
        let answer = http_get(&address, path).expect("a response");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.ends_with(body), "{answer}");
    }
    let answer = http_get(&address, "/status.json").expect("a response");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let output = &status["outputs"][0];
    assert_eq!(output["state"], "ready", "{body}");
    assert_eq!(output["targets_in_trouble"], 0, "{body}");
    assert_eq!(output["dead_letters"]["limit"], 256_000_000, "{body}");
}
