//! `ferry check` against working and broken services.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use ferry::check::host;
use ferry::config::Config;
use ferry::spool::disk::LocalDisk;
use ferry_harness::firehose::{FakeFirehose, Options, StreamKind};
use object_store::ObjectStore as _;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::emulators::{Azurite, azurite, azurite_tls, moto};

/// A secret that must never be shown; a well-formed Azure key.
const SECRET: &str = "c2VjcmV0LXRoYXQtbXVzdC1uZXZlci1iZS1zZWVu";

/// The result of a run of the tool.
struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    /// The worst result of a check.
    fn result(&self, check: &str) -> String {
        let rank = |result: &str| {
            ["skip", "ok", "warn", "FAIL"]
                .iter()
                .position(|r| *r == result)
        };
        let results = self
            .of(check)
            .into_iter()
            .map(|finding| finding["result"].clone());
        let worst = results.max_by_key(|result| rank(result.as_str().unwrap()));
        worst.map_or_else(
            || "nothing".to_owned(),
            |result| result.as_str().unwrap().to_owned(),
        )
    }

    /// All messages and remedies of a check.
    fn words(&self, check: &str) -> String {
        let findings = self.of(check).into_iter();
        findings
            .map(|finding| format!("{} {}\n", finding["message"], finding["remedy"]))
            .collect()
    }

    fn of(&self, check: &str) -> Vec<Value> {
        let Value::Array(findings) = serde_json::from_str(&self.stdout).expect(&self.stderr) else {
            panic!("no array: {}", self.stdout);
        };
        findings
            .into_iter()
            .filter(|finding| finding["check"] == check)
            .collect()
    }
}

/// Runs the tool with an environment of its own.
fn tool(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let command = match arguments.first() {
        Some(&"migrate") => None,
        _ => Some("check"),
    };
    let output = Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(command)
        .args(arguments)
        .env_clear()
        .envs([
            ("HOME", "/nonexistent"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_ACCESS_KEY_ID", "TESTKEY"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ])
        .envs(variables.iter().copied())
        .output()
        .expect("ferry runs");
    let run = Run {
        status: output.status.code().expect("it ends by itself"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(
        !run.stdout.contains(SECRET) && !run.stderr.contains(SECRET),
        "a secret: {}{}",
        run.stdout,
        run.stderr
    );
    run
}

/// A folder for the files that a check reads and writes.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            // Not in /tmp, which may be memory.
            dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// Writes a classic configuration with one output.
    fn classic(&self, keys: &[(&str, &str)]) -> String {
        let mut text = "[SERVICE]\n    Grace 40\n[OUTPUT]\n    Name ferry\n    Match *\n    Retry_Limit no_limits\n".to_owned();
        let letters = self.path("letters").display().to_string();
        let own = [("dead_letter_dir", letters.as_str())];
        for (key, value) in own.iter().chain(keys) {
            text += &format!("    {key} {value}\n");
        }
        self.write("fluent-bit.conf", &text)
    }

    fn check(&self, keys: &[(&str, &str)], arguments: &[&str]) -> Run {
        let file = self.classic(keys);
        let all: Vec<&str> = [&file, "--json"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        tool(&all, &[])
    }
}

fn fake(options: Options) -> FakeFirehose {
    FakeFirehose::start(options).expect("a fake Firehose")
}

/// The keys of a valid Firehose output.
fn firehose<'a>(fake: &'a FakeFirehose, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut keys = vec![
        ("delivery_stream", "app"),
        ("region", "us-east-1"),
        ("endpoint", fake.url()),
        ("Workers", "2"),
    ];
    keys.extend_from_slice(more);
    keys
}

/// A service with a skewed clock that gives every request the same response.
struct Skewed {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Skewed {
    fn start(seconds: i64, answer: &'static str) -> Skewed {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let serve = move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                    head.push(byte[0]);
                }
                // Read the request's body as well: closing with unread data would reset the connection.
                let text = String::from_utf8_lossy(&head).to_lowercase();
                let length = text
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let _ = stream.read_exact(&mut vec![0; length.unwrap_or(0)]);
                let now = SystemTime::now();
                let by = Duration::from_secs(seconds.unsigned_abs());
                let date = if seconds < 0 { now - by } else { now + by };
                let date = httpdate::fmt_http_date(date);
                let _ = write!(
                    stream,
                    "HTTP/1.1 403 Forbidden\r\nDate: {date}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
                    answer.len()
                );
            }
        };
        Skewed {
            address,
            over,
            thread: Some(std::thread::spawn(serve)),
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Skewed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(std::net::TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_healthy_stream_passes_and_is_not_written_to() {
    let bench = Bench::new();
    let fake = fake(Options::default());
    let sts = moto().url();
    let keys = firehose(&fake, &[("sts_endpoint", sts), ("time_key", "time")]);
    let run = bench.check(&keys, &[]);
    assert_eq!(run.status, 0, "{}", run.stdout);
    for check in [
        "configuration",
        "keys",
        "host",
        "dead_letter_dir",
        "region",
        "name",
        "connect",
        "clock",
        "credentials",
        "stream",
        "aggregation",
    ] {
        assert_eq!(run.result(check), "ok", "{check}: {}", run.stdout);
    }
    assert!(
        run.words("credentials").contains("arn:aws:"),
        "{}",
        run.stdout
    );
    assert_eq!(run.result("put"), "skip");
    let puts = || {
        fake.requests()
            .iter()
            .filter(|r| r.operation == "PutRecordBatch")
            .count()
    };
    assert_eq!(puts(), 0, "nothing is written without --put");
    assert!(!bench.path("letters").exists(), "nothing is left behind");

    let run = bench.check(&keys, &["--put"]);
    assert_eq!(
        (run.status, run.result("put").as_str()),
        (0, "ok"),
        "{}",
        run.stdout
    );
    assert_eq!(puts(), 1);
}

#[test]
fn a_streams_destination_determines_the_suitable_keys() {
    const C_DEFAULT: (&str, &str) = ("time_key_format", "%Y-%m-%dT%H:%M:%S");
    const TIME: (&str, &str) = ("time_key", "time");
    const PACKED: (&str, &str) = ("compression", "gzip");
    const ON: (&str, &str) = ("aggregation", "on");
    type Case<'c> = (StreamKind, &'c [(&'c str, &'c str)], &'c str, &'c str, i32);
    let table: &[Case] = &[
        (StreamKind::S3, &[], "aggregation", "ok", 0),
        (StreamKind::S3, &[PACKED], "compression", "ok", 0),
        (
            StreamKind::S3,
            &[("aggregation", "off")],
            "aggregation",
            "warn",
            0,
        ),
        (StreamKind::S3, &[TIME, C_DEFAULT], "time", "nothing", 0),
        (StreamKind::S3Parquet, &[TIME], "time", "ok", 0),
        (StreamKind::S3Parquet, &[TIME, C_DEFAULT], "time", "warn", 0),
        (StreamKind::S3Parquet, &[PACKED], "compression", "warn", 0),
        (
            StreamKind::S3Parquet,
            &[PACKED, ON],
            "compression",
            "FAIL",
            1,
        ),
        (StreamKind::S3Partitioned, &[], "aggregation", "ok", 0),
        (StreamKind::S3Partitioned, &[ON], "aggregation", "warn", 0),
        (
            StreamKind::S3Partitioned,
            &[PACKED],
            "compression",
            "warn",
            0,
        ),
        (
            StreamKind::OpenSearch,
            &[("aggregation", "off")],
            "aggregation",
            "ok",
            0,
        ),
        (StreamKind::OpenSearch, &[ON], "aggregation", "FAIL", 1),
    ];
    let bench = Bench::new();
    for (kind, keys, check, result, status) in table {
        let fake = fake(Options {
            streams: vec![("app".to_owned(), *kind)],
            ..Options::default()
        });
        let run = bench.check(&firehose(&fake, keys), &[]);
        let found = (run.result(check), run.status);
        assert_eq!(
            found,
            ((*result).to_owned(), *status),
            "{kind:?} {keys:?}: {}",
            run.stdout
        );
    }
}

#[test]
fn a_missing_stream_and_a_hidden_one_are_distinguished() {
    let bench = Bench::new();
    let other = fake(Options {
        streams: vec![("other".to_owned(), StreamKind::S3)],
        ..Options::default()
    });
    let run = bench.check(&firehose(&other, &[]), &[]);
    assert_eq!(
        (run.status, run.result("stream").as_str()),
        (1, "FAIL"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("stream")
            .contains("'app' does not exist in us-east-1"),
        "{}",
        run.stdout
    );
    // The one that gets the records of missing ones is checked as well.
    let keys = [
        ("delivery_stream", "{tag}"),
        ("missing_target", "fallback"),
        ("missing_target_fallback", "rest"),
        ("spool", "on"),
        ("region", "us-east-1"),
        ("endpoint", other.url()),
        ("Workers", "2"),
    ];
    let run = bench.check(&keys, &["--tag", "other"]);
    assert!(
        run.stdout.contains("'rest' does not exist in us-east-1")
            && !run.stdout.contains("'other' does not exist"),
        "{}",
        run.stdout
    );

    let hidden = fake(Options {
        deny_describe: true,
        ..Options::default()
    });
    let run = bench.check(&firehose(&hidden, &[]), &[]);
    assert_eq!(
        (run.status, run.result("stream").as_str()),
        (0, "warn"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("stream").contains("billed as 5 KB"),
        "{}",
        run.stdout
    );

    let refusing = fake(Options {
        faults: "access-denied".to_owned(),
        ..Options::default()
    });
    let run = bench.check(&firehose(&refusing, &[]), &["--put"]);
    assert_eq!(
        (run.status, run.result("put").as_str()),
        (1, "FAIL"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("put").contains("allow firehose:PutRecordBatch"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_name_made_from_records_needs_an_example() {
    let bench = Bench::new();
    let fake = fake(Options {
        streams: vec![("app-web".to_owned(), StreamKind::S3)],
        ..Options::default()
    });
    let keys = [
        ("delivery_stream", "{tag[0]}-{record.team.name}"),
        ("region", "us-east-1"),
        ("endpoint", fake.url()),
        ("Workers", "2"),
    ];
    for arguments in [&[][..], &["--tag", "app.x"]] {
        let run = bench.check(&keys, arguments);
        assert_eq!(
            (run.status, run.result("stream").as_str()),
            (0, "skip"),
            "{}",
            run.stdout
        );
    }
    let record = r#"{"n": -1, "f": 1.5, "a": [null, true], "team": {"name": "web"}}"#;
    let run = bench.check(&keys, &["--tag", "app.x", "--record", record]);
    assert_eq!(run.result("stream"), "ok", "{}", run.stdout);
    let run = bench.check(&keys, &["--tag", "db.x", "--record", record]);
    assert_eq!(run.result("stream"), "FAIL", "{}", run.stdout);
}

#[test]
fn sample_records_show_keys_that_differ_in_case_and_placeholders_that_none_fills() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let samples = folder.path().join("samples.ndjson");
    let lines = "{\"a\":{\"Level\":1,\"level\":2},\"app\":\"x\"}\n\n{\"k8s\":{\"b.c\":\"x\"}}\n";
    std::fs::write(&samples, lines).unwrap();
    let samples = samples.to_str().unwrap();
    for (path, lowercase, warnings) in [
        (
            "{record.app}/{record.k8s['b.c']}",
            "off",
            &["Level and level"][..],
        ),
        ("{record.app}/{record.k8s.b.c}", "on", &[]),
        (
            "{record.App}/{$k8s['b']['c']|none}",
            "off",
            &["Level and level", "{record.App}", "{$k8s['b']['c']|none}"],
        ),
        ("{record.App}/{record.none}", "on", &["{record.none}"]),
    ] {
        let keys = [
            ("url", url.as_str()),
            ("path", path),
            ("lowercase_keys", lowercase),
        ];
        let run = bench.check(&keys, &["--tag", "x", "--record", samples]);
        let found = run.of("record");
        assert_eq!(found.len(), warnings.len(), "{}", run.stdout);
        for (finding, words) in found.iter().zip(warnings) {
            assert_eq!(finding["result"], "warn");
            let message = finding["message"].as_str().unwrap();
            assert!(message.contains(words), "{message}");
        }
    }
}

#[test]
fn a_name_made_from_tags_is_tried_with_the_known_ones() {
    let bench = Bench::new();
    let fake = fake(Options {
        streams: vec![
            ("to-app".to_owned(), StreamKind::S3),
            ("to-db".to_owned(), StreamKind::S3),
        ],
        ..Options::default()
    });
    let spool = bench.path("spool").display().to_string();
    let keys = [
        ("delivery_stream", "to-{tag[0]}"),
        ("region", "us-east-1"),
        ("endpoint", fake.url()),
        ("spool", "on"),
        ("spool_dir", &spool),
    ];
    let streams = |run: &Run| -> Vec<String> {
        let findings = run.of("stream").into_iter();
        findings
            .map(|finding| format!("{}: {}", finding["result"], finding["message"]))
            .collect()
    };
    // Without any known tag there is a note on stderr too.
    let run = bench.check(&keys, &[]);
    assert_eq!((run.status, run.result("stream").as_str()), (0, "skip"));
    assert!(
        run.stderr.contains("note: not tried: ") && run.stderr.contains("ferry.0 stream"),
        "{}",
        run.stderr
    );

    // Tags in the spool.
    let disk = std::sync::Arc::new(
        ferry::spool::disk::LocalDisk::open(bench.path("spool").as_path()).unwrap(),
    );
    let options = ferry::spool::Options {
        limit: 1 << 20,
        segment_bytes: None,
    };
    let (kept, _) = ferry::spool::Spool::open(disk, options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for tag in [&b"app.x"[..], b"none.y"] {
        let chunk = ferry::spool::Chunk {
            id: ferry::ids::chunk_id(tag, b"x"),
            tag,
            data: b"x"[..].into(),
            arrived: ferry::ids::Time::default(),
        };
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        runtime.block_on(kept.append(chunk, deadline)).unwrap();
    }
    drop(kept);
    let run = bench.check(&keys, &[]);
    let said = streams(&run);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].contains("ok") && said[0].contains("to-app"),
        "{said:?}"
    );
    assert!(
        said[1].contains("FAIL") && said[1].contains("to-none"),
        "{said:?}"
    );

    // Tags on the command line, all of them.
    let run = bench.check(
        &keys,
        &["--tag", "app.a", "--tag", "db.b", "--tag", "app.c"],
    );
    assert_eq!(run.status, 0, "{}", run.stdout);
    assert_eq!(streams(&run).len(), 2, "{}", run.stdout);

    // The tag in Match.
    let file = bench.classic(&keys);
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("Match *", "Match db.z");
    let run = tool(&[&bench.write("fluent-bit.conf", &text), "--json"], &[]);
    let said = streams(&run);
    assert!(said.len() == 1 && said[0].contains("to-db"), "{said:?}");
}

#[test]
fn missing_credentials_are_reported_in_one_line() {
    let bench = Bench::new();
    let fake = fake(Options::default());
    let file = bench.classic(&firehose(&fake, &[]));
    let nobody = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    let run = tool(&[&file], &nobody);
    assert_eq!(run.status, 1, "{}", run.stdout);
    for line in run.stdout.lines() {
        let mark = line.split(' ').next().unwrap();
        assert!(["ok", "warn", "FAIL", "skip"].contains(&mark), "{line}");
    }
    assert!(
        run.stdout
            .contains("credentials: none found: not configured: "),
        "{}",
        run.stdout
    );
}

#[test]
fn the_tls_check_names_the_trust_anchor() {
    let bench = Bench::new();
    let fake = fake(Options {
        tls: true,
        ..Options::default()
    });
    let right = bench.write("right.pem", fake.ca_pem().unwrap());
    let wrong = bench.write("wrong.pem", azurite_tls().ca_pem.as_deref().unwrap());

    let run = bench.check(&firehose(&fake, &[("tls_ca_file", &right)]), &[]);
    assert_eq!(
        (run.status, run.result("tls").as_str()),
        (0, "ok"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("tls").contains("trusted by tls_ca_file"),
        "{}",
        run.stdout
    );
    assert_eq!(
        (run.result("clock").as_str(), run.result("stream").as_str()),
        ("ok", "ok")
    );

    for keys in [&[("tls_ca_file", wrong.as_str())][..], &[]] {
        let run = bench.check(&firehose(&fake, keys), &[]);
        assert_eq!(
            (run.status, run.result("tls").as_str()),
            (1, "FAIL"),
            "{}",
            run.stdout
        );
        assert!(
            run.words("tls")
                .contains("is trusted neither by the system's roots nor by tls_ca_file"),
            "{}",
            run.stdout
        );
        assert_eq!(run.result("stream"), "skip", "{}", run.stdout);
    }
    // A server without TLS.
    let plain = FakeFirehose::start(Options::default()).unwrap();
    let url = plain.url().replace("http://", "https://");
    let run = bench.check(
        &[
            ("delivery_stream", "app"),
            ("region", "us-east-1"),
            ("endpoint", &url),
        ],
        &[],
    );
    assert_eq!(run.result("tls"), "FAIL", "{}", run.stdout);
    assert!(
        run.words("tls").contains("does not speak TLS"),
        "{}",
        run.stdout
    );
}

#[test]
fn an_unreachable_server_is_distinguished_from_a_wrong_name() {
    let bench = Bench::new();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let table = [
        (
            format!("http://{closed}"),
            "connect",
            "accepts no connection",
        ),
        (
            "http://no-such-host.invalid".to_owned(),
            "name",
            "no-such-host.invalid",
        ),
    ];
    for (endpoint, check, words) in table {
        let keys = [
            ("delivery_stream", "app"),
            ("region", "us-east-1"),
            ("endpoint", endpoint.as_str()),
        ];
        let run = bench.check(&keys, &["--timeout", "5"]);
        assert_eq!(
            (run.status, run.result(check).as_str()),
            (1, "FAIL"),
            "{}",
            run.stdout
        );
        assert!(run.words(check).contains(words), "{}", run.stdout);
        assert_eq!(run.result("stream"), "skip", "{}", run.stdout);
    }

    // A listener that never answers, ended by the time limit.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let keys = [
        ("delivery_stream", "app"),
        ("region", "us-east-1"),
        ("endpoint", url.as_str()),
    ];
    let run = bench.check(&keys, &["--timeout", "0.5"]);
    assert_eq!(
        (run.result("connect").as_str(), run.result("clock").as_str()),
        ("ok", "warn"),
        "{}",
        run.stdout
    );
    assert_eq!(run.status, 1, "{}", run.stdout);
    assert!(
        run.words("stream").contains("no response within 500ms"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_wrong_clock_is_found_before_signatures_are_refused() {
    let bench = Bench::new();
    let table = [
        ("firehose", 0, "ok"),
        ("firehose", 100, "warn"),
        ("firehose", -100, "warn"),
        ("firehose", 400, "FAIL"),
        ("firehose", -400, "FAIL"),
        ("azure", 400, "warn"),
        ("azure", 1_000, "FAIL"),
        ("s3", 400, "warn"),
        ("s3", -1_000, "FAIL"),
    ];
    for (service, seconds, result) in table {
        let server = Skewed::start(seconds, "");
        let url = server.url();
        let spool = bench.path("spool").display().to_string();
        let common = [("endpoint", url.as_str())];
        let own: &[(&str, &str)] = match service {
            "firehose" => &[("delivery_stream", "app"), ("region", "us-east-1")],
            "s3" => &[
                ("url", "s3://logs"),
                ("region", "us-east-1"),
                ("spool_dir", &spool),
            ],
            _ => &[
                ("account_name", "logs"),
                ("container_name", "app"),
                ("shared_key", SECRET),
                ("spool_dir", &spool),
            ],
        };
        let keys: Vec<(&str, &str)> = own.iter().chain(&common).copied().collect();
        let run = bench.check(&keys, &[]);
        assert_eq!(
            run.result("clock"),
            result,
            "{service} {seconds}: {}",
            run.stdout
        );
        if result != "ok" {
            let side = if seconds > 0 { "behind" } else { "ahead of" };
            assert!(run.words("clock").contains(side), "{}", run.stdout);
        }
    }
}

#[test]
fn missing_and_refused_credentials_are_distinguished() {
    let bench = Bench::new();
    let fake = fake(Options::default());
    let refused = "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code>\
                   <Message>The security token included in the request is invalid.</Message></Error></ErrorResponse>";
    let sts = Skewed::start(0, refused);
    let sts = sts.url();
    let run = bench.check(&firehose(&fake, &[("sts_endpoint", &sts)]), &[]);
    assert_eq!(
        (run.status, run.result("credentials").as_str()),
        (1, "FAIL"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("credentials").contains("InvalidClientTokenId"),
        "{}",
        run.stdout
    );
    assert_eq!(run.result("stream"), "skip", "{}", run.stdout);

    let file = bench.classic(&firehose(&fake, &[]));
    let nobody = tool(
        &[&file, "--json"],
        &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")],
    );
    assert_eq!(
        (nobody.status, nobody.result("credentials").as_str()),
        (1, "FAIL"),
        "{}",
        nobody.stdout
    );

    let keys = [("delivery_stream", "app"), ("endpoint", fake.url())];
    let run = bench.check(&keys, &[]);
    assert_eq!(
        (run.status, run.result("region").as_str()),
        (1, "FAIL"),
        "{}",
        run.stdout
    );
}

/// The keys of a valid Azure output.
fn azure<'a>(container: &'a str, endpoint: &'a str, spool: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("emulator_mode", "on"),
        ("container_name", container),
        ("endpoint", endpoint),
        ("spool_dir", spool),
    ]
}

#[test]
fn a_container_is_checked_and_written_to_only_on_request() {
    let bench = Bench::new();
    let spool = bench.path("spool").display().to_string();
    let server = azurite();
    let url = server.blob_url();
    let keys = azure("check-put", &url, &spool);

    let with = |more: (&'static str, &'static str)| [keys.as_slice(), &[more]].concat();
    let absent = bench.check(&with(("auto_create_container", "off")), &[]);
    assert_eq!(
        (absent.status, absent.result("container").as_str()),
        (1, "FAIL"),
        "{}",
        absent.stdout
    );
    let made = bench.check(&keys, &[]);
    assert_eq!(
        (made.status, made.result("container").as_str()),
        (0, "warn"),
        "{}",
        made.stdout
    );

    let put = bench.check(&keys, &["--put", "--tag", "app"]);
    assert_eq!(
        (put.status, put.result("put").as_str()),
        (0, "ok"),
        "{}",
        put.stdout
    );
    assert!(
        put.words("path").contains("objects are written to app/"),
        "{}",
        put.stdout
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let left = runtime
        .block_on(server.store("check-put").list_with_delimiter(None))
        .unwrap();
    assert!(
        left.objects.is_empty() && left.common_prefixes.is_empty(),
        "it is removed again"
    );
    assert!(!bench.path("spool").exists(), "nothing is left behind");

    let there = bench.check(&with(("auto_create_container", "off")), &[]);
    assert_eq!(
        (there.status, there.result("container").as_str()),
        (0, "ok"),
        "{}",
        there.stdout
    );
    assert_eq!(there.result("put"), "skip");
}

#[test]
fn azures_secrets_are_judged_and_never_shown() {
    let bench = Bench::new();
    let spool = bench.path("spool").display().to_string();
    let url = azurite().blob_url();
    let expired = format!("sv=2019-12-12&sp=rcw&se=2020-01-01T00:00:00Z&sig={SECRET}");
    let unsigned = format!("sv=2019-12-12&sr=c&sp=rcw&se=2099-01-01T00:00:00Z&sig={SECRET}");
    let file = bench.write("sas", &unsigned);
    let from_file = format!("@{file}");
    let table: [(&[(&str, &str)], &str); 4] = [
        (&[("shared_key", SECRET)], "the store refuses them"),
        (
            &[("auth_type", "sas"), ("sas_token", &expired)],
            "it has expired",
        ),
        (
            &[("auth_type", "sas"), ("sas_token", &unsigned)],
            "the store refuses them",
        ),
        (
            &[("auth_type", "sas"), ("sas_token", &from_file)],
            "the store refuses them",
        ),
    ];
    for (secret, words) in table {
        let mut keys = azure("check-secrets", &url, &spool);
        keys.push(("account_name", Azurite::ACCOUNT));
        keys.extend_from_slice(secret);
        let run = bench.check(&keys, &[]);
        assert_eq!(
            (run.status, run.result("credentials").as_str()),
            (1, "FAIL"),
            "{}",
            run.stdout
        );
        assert!(run.words("credentials").contains(words), "{}", run.stdout);
    }
}

#[test]
fn an_identity_without_a_token_is_reported_before_the_store_is_tried() {
    let bench = Bench::new();
    let spool = bench.path("spool").display().to_string();
    let url = azurite().blob_url();
    let mut keys = azure("check-identity", &url, &spool);
    keys.extend([
        ("auth_type", "client_secret"),
        ("tenant_id", "tenant-1"),
        ("client_id", "app-1"),
        ("client_secret", SECRET),
    ]);
    let file = bench.classic(&keys);
    let nobody = [("AZURE_AUTHORITY_HOST", "http://127.0.0.1:1")];
    let run = tool(&[&file, "--json"], &nobody);
    assert_eq!(
        (run.status, run.result("credentials").as_str()),
        (1, "FAIL"),
        "{}",
        run.stdout
    );
    let words = run.words("credentials");
    for part in [
        "no connection to 127.0.0.1:1",
        "the application app-1 of the tenant tenant-1",
    ] {
        assert!(words.contains(part), "{words}");
    }
}

#[test]
fn a_store_behind_a_private_ca() {
    let bench = Bench::new();
    let spool = bench.path("spool").display().to_string();
    let server = azurite_tls();
    let url = server.blob_url();
    let ca = bench.write("ca.pem", server.ca_pem.as_deref().unwrap());
    let mut keys = azure("check-tls", &url, &spool);
    let run = bench.check(&keys, &[]);
    assert_eq!(
        (run.status, run.result("tls").as_str()),
        (1, "FAIL"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("tls").contains("CA of the tests"),
        "it names the issuer: {}",
        run.stdout
    );
    keys.push(("tls_ca_file", &ca));
    let run = bench.check(&keys, &["--put"]);
    assert_eq!(
        (
            run.status,
            run.result("tls").as_str(),
            run.result("put").as_str()
        ),
        (0, "ok", "ok"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_bucket_and_a_folder() {
    let bench = Bench::new();
    let spool = bench.path("spool").display().to_string();
    moto().create_stream("check-stream", "check-bucket");
    for (bucket, result, status) in [
        ("s3://check-bucket/a", "ok", 0),
        ("s3://check-nowhere", "FAIL", 1),
    ] {
        let keys = [
            ("url", bucket),
            ("region", "us-east-1"),
            ("endpoint", moto().url()),
            ("sts_endpoint", moto().url()),
            ("spool_dir", &spool),
        ];
        let run = bench.check(&keys, &["--put"]);
        assert_eq!(
            (run.status, run.result("bucket").as_str()),
            (status, result),
            "{}",
            run.stdout
        );
        assert_eq!(run.result("credentials"), "ok", "{}", run.stdout);
        assert_eq!(
            run.result("put"),
            if status == 0 { "ok" } else { "nothing" },
            "{}",
            run.stdout
        );
    }
    let url = format!("file://{}", bench.path("objects").display());
    let keys = [("url", url.as_str()), ("spool_dir", &spool)];
    let run = bench.check(&keys, &[]);
    assert_eq!(
        (
            run.status,
            run.result("folder").as_str(),
            run.result("put").as_str()
        ),
        (0, "ok", "skip"),
        "{}",
        run.stdout
    );
    assert!(!bench.path("objects").exists(), "nothing is made");
    let run = bench.check(&keys, &["--put"]);
    assert_eq!(
        (run.status, run.result("put").as_str()),
        (0, "ok"),
        "{}",
        run.stdout
    );
}

#[test]
fn folders_are_tested_and_left_unchanged() {
    let bench = Bench::new();
    bench.write("file", "");
    let file = bench.path("file").join("spool").display().to_string();
    let used = bench.path("used").display().to_string();
    let open = bench.path("open").display().to_string();
    let fresh = bench.path("new/spool").display().to_string();
    let disk = LocalDisk::open(Path::new(&used)).unwrap();
    std::fs::create_dir(&open).unwrap();
    let url = format!("file://{}", bench.path("objects").display());
    let table: [(&str, &str, &str, i32); 4] = [
        (&file, "FAIL", "cannot be written to", 1),
        (&used, "warn", "in use by another process", 0),
        (&open, "warn", "other users may read", 0),
        (&fresh, "ok", "can be created", 0),
    ];
    for (spool, result, words, status) in table {
        let run = bench.check(&[("url", &url), ("spool_dir", spool)], &[]);
        assert_eq!(
            (run.status, run.result("spool_dir").as_str()),
            (status, result),
            "{spool}: {}",
            run.stdout
        );
        assert!(run.words("spool_dir").contains(words), "{}", run.stdout);
        // The duration of an fsync depends on the disk.
        let measured = ["ok", "warn"].contains(&run.result("spool_fsync").as_str());
        assert_eq!(measured, status == 0, "{}", run.stdout);
    }
    let left: Vec<_> = std::fs::read_dir(&open).unwrap().collect();
    assert!(left.is_empty() && !Path::new(&fresh).exists());
    drop(disk);

    let limit = [
        ("url", url.as_str()),
        ("spool_dir", &fresh),
        ("spool_limit", "99999G"),
    ];
    let run = bench.check(&limit, &[]);
    assert_eq!(
        (run.status, run.result("spool_space").as_str()),
        (0, "warn"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_folder_that_depends_on_where_the_host_is_started_is_warned_of() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("spool").display().to_string();
    // Where the tool runs in this test, that is the root of the repository: nothing is made there.
    let cases = [
        ("url", "file://target/none/objects", "folder"),
        ("spool_dir", "target/none/spool", "spool_dir"),
        ("dead_letter_dir", "target/none/letters", "dead_letter_dir"),
    ];
    for (key, value, check) in cases {
        let keys = [("url", url.as_str()), ("spool_dir", &spool)];
        let mut keys = Vec::from(keys);
        keys.retain(|(other, _)| *other != key);
        let mut text = "[SERVICE]\n    Grace 40\n[OUTPUT]\n    Name ferry\n    Match *\n    Retry_Limit no_limits\n".to_owned();
        text += &format!("    {key} {value}\n");
        for (key, value) in keys {
            text += &format!("    {key} {value}\n");
        }
        if key != "dead_letter_dir" {
            text += &format!("    dead_letter_dir {}\n", bench.path("letters").display());
        }
        let file = bench.write("fluent-bit.conf", &text);
        let run = tool(&[&file, "--json"], &[]);
        assert_eq!(
            (run.status, run.result(check).as_str()),
            (0, "warn"),
            "{}",
            run.stdout
        );
        let words = run.words(check);
        for expected in [
            "depends on the folder that Fluent Bit is started in",
            "write the whole path",
        ] {
            assert!(words.contains(expected), "{words}");
        }
        let whole = std::env::current_dir()
            .unwrap()
            .join(value.trim_start_matches("file://"));
        assert!(words.contains(whole.to_str().unwrap()), "{words}");
    }
}

#[test]
fn every_mistake_in_the_file_is_reported_with_its_line() {
    let bench = Bench::new();
    let text = "\
[SERVICE]
    Hot_Reload on
[OUTPUT]
    Name ferry
    Alias logs
    delivery_stream app logs
    memory_limit lots
    role_arn nobody
[OUTPUT]
    Name ferry
    Match *
    Retry_Limit 3
    Workers 2
    url file:///tmp/ferry-check-objects
    spool off
    agregation on
    tls on
    tag_key ${FERRY_NOT_SET}
    tag_key tag
";
    let file = bench.write("fluent-bit.conf", text);
    let run = tool(&[&file], &[]);
    assert_eq!(run.status, 1, "{}", run.stdout);
    let lines = [
        "FAIL logs configuration: PLACE:6: delivery_stream: 'app logs' is not a stream name",
        "FAIL logs configuration: PLACE:7: memory_limit: 'lots' is not a size",
        "FAIL logs configuration: PLACE:8: role_arn: 'nobody' is not an ARN",
        "warn ferry.1 keys: PLACE:16: agregation is not known and does nothing; remedy: did you mean aggregation?",
        "FAIL ferry.1 keys: PLACE:17: tls on: Fluent Bit 5.1.1 does not start with it",
        "warn ferry.1 keys: PLACE:19: tag_key is set twice",
        "warn ferry.1 keys: variable ${FERRY_NOT_SET} is used but not set",
        "warn ferry.1 host: Retry_Limit is 3",
        "warn ferry.1 host: Workers and Hot_Reload together: Fluent Bit 2.2.0 to 5.1.1 crashes",
        "warn ferry.1 host: Grace is 5 s, not more than exit_deadline (10 s)",
    ];
    for line in lines {
        let line = line.replace("PLACE", &file);
        assert!(
            run.stdout.lines().any(|said| said.starts_with(&line)),
            "{line}\n{}",
            run.stdout
        );
    }
}

#[test]
fn a_direct_output_with_several_streams_is_told_of_the_spool() {
    let bench = Bench::new();
    let spool = bench.path("spool").display().to_string();
    let cases = [
        ("app-{tag[1]}", "off", true),
        ("app-{tag[1]}", "on", false),
        ("app", "off", false),
    ];
    for (stream, mode, told) in cases {
        let keys = [
            ("delivery_stream", stream),
            ("region", "us-east-1"),
            ("endpoint", "http://127.0.0.1:1"),
            ("spool", mode),
            ("spool_dir", &spool),
            ("Workers", "2"),
        ];
        let keys = if mode == "on" {
            &keys[..]
        } else {
            &[&keys[..4], &keys[5..]].concat()
        };
        let words = bench.check(keys, &[]).words("host");
        assert_eq!(
            words.contains("write spool on"),
            told,
            "{stream} {mode}: {words}"
        );
    }
}

#[test]
fn of_a_key_that_is_set_twice_the_effective_one_is_checked() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let (spool, other) = (bench.path("spool"), bench.path("other"));
    let (spool, other) = (spool.display().to_string(), other.display().to_string());
    let check = |more: &[(&str, &str)]| {
        let keys = [("url", url.as_str()), ("spool_dir", &spool)];
        let spooled = !more.contains(&("spool", "off"));
        let keys = if spooled { &keys[..] } else { &keys[..1] };
        bench.check(&[keys, more].concat(), &[])
    };
    const NOT_SET: &str = "${FERRY_NOT_SET}";
    /// Additional keys, the expected message, and an unexpected one.
    type Case<'c> = (&'c [(&'c str, &'c str)], &'c str, &'c str);
    // Fluent Bit uses the last of its own keys; Match * and Retry_Limit no_limits precede these.
    #[rustfmt::skip] // a table
    let cases: [Case; 7] = [
        (&[("Retry_Limit", "1")], "Retry_Limit is 1", ""),
        (&[("Retry_Limit", "1"), ("Retry_Limit", "off")], "", "Retry_Limit is"),
        (&[("Retry_Limit", NOT_SET)], "Retry_Limit is not set", ""),
        (&[("Match", NOT_SET)], "there is no Match", ""),
        (&[("spool", "off"), ("Workers", "0"), ("Workers", "2")], "", "there are no Workers"),
        (&[("spool", "off"), ("Workers", "2"), ("Workers", "0")], "there are no Workers", ""),
        (&[("spool", "off"), ("Workers", "2"), ("Workers", NOT_SET)], "", "there are no Workers"),
    ];
    for (more, said, unsaid) in cases {
        let (run, twice) = (check(more), more.last().unwrap().0.to_lowercase());
        let words = run.words("host");
        assert!(!words.is_empty(), "{more:?}: {}", run.stdout);
        assert!(words.contains(said), "{more:?}: {words}");
        assert!(
            unsaid.is_empty() || !words.contains(unsaid),
            "{more:?}: {words}"
        );
        let twice = format!("{twice} is set twice; Fluent Bit takes the last one");
        assert!(run.words("keys").contains(&twice), "{}", run.stdout);
    }
    for (more, label) in [
        ([("Alias", "a"), ("Alias", "b")], "b"),
        ([("Alias", "a"), ("Alias", NOT_SET)], "a"),
    ] {
        let run = check(&more);
        assert_eq!(run.of("host")[0]["output"], label, "{}", run.stdout);
    }
    let run = check(&[("spool_dir", &other)]);
    assert!(
        run.words("keys")
            .contains("spool_dir is set twice; the first one counts"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("configuration").contains(&spool),
        "{}",
        run.stdout
    );
}

#[test]
fn a_destination_that_is_missing_is_said_first_and_by_itself() {
    let bench = Bench::new();
    let spool = bench.path("spool").display().to_string();
    let run = bench.check(&[("spool_dir", &spool), ("blob_max_age", "1m")], &[]);
    assert_eq!(run.status, 1, "{}", run.stdout);
    let said = run.of("configuration");
    assert_eq!(said.len(), 1, "{}", run.stdout);
    let words = said[0]["message"].as_str().unwrap();
    assert!(
        words.contains("no destination: set delivery_stream"),
        "{words}"
    );
}

#[test]
fn keys_that_prevent_fluent_bit_from_starting_are_found() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("spool").display().to_string();
    let keys = [("url", url.as_str()), ("spool_dir", &spool)];
    #[rustfmt::skip] // a table
    let cases = [
        ("tls", "on", "FAIL", "does not start"),
        ("tls", "Yes", "FAIL", "does not start"),
        ("tls", "off", "warn", "does not reach Ferry"),
        ("Log_Level", "loud", "FAIL", "does not start"),
        ("Log_Level", "WARNING", "ok", ""),
        ("storage.total_limit_size", "lots", "FAIL", "does not start"),
        ("storage.total_limit_size", "5T", "FAIL", "does not start"),
        ("storage.total_limit_size", "-1", "FAIL", "does not start"),
        ("storage.total_limit_size", "1.5gb", "ok", ""),
        ("storage.total_limit_size", "500", "ok", ""),
        ("storage.total_limit_size", "off", "ok", ""),
        ("net.nonsense", "1", "warn", "does not start"),
        ("oauth2.nonsense", "1", "warn", "does not start"),
        ("net.keepalive", "on", "warn", "does not reach Ferry"),
    ];
    for (key, value, mark, words) in cases {
        let run = bench.check(&[&keys[..], &[(key, value)]].concat(), &[]);
        assert_eq!(
            (run.result("keys").as_str(), run.status),
            (mark, i32::from(mark == "FAIL")),
            "{key} {value}: {}",
            run.stdout
        );
        assert!(run.words("keys").contains(words), "{}", run.stdout);
    }
    // An overridden value is still parsed by Fluent Bit.
    let twice = bench.check(&[&keys[..], &[("tls", "on"), ("tls", "off")]].concat(), &[]);
    assert_eq!(twice.status, 1, "{}", twice.stdout);

    let text = std::fs::read_to_string(bench.classic(&keys)).unwrap();
    let text = text.replace("[SERVICE]", "[SERVICE]\n    Log_Level loud");
    let run = tool(&[&bench.write("service.conf", &text), "--json"], &[]);
    assert_eq!(
        (run.result("service").as_str(), run.status),
        ("FAIL", 1),
        "{}",
        run.stdout
    );
}

#[test]
fn a_folder_is_shown_with_its_time_format() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("spool").display().to_string();
    let keys = [("url", url.as_str()), ("spool_dir", &spool)];
    for (path, shown) in [
        (None, "objects are written to app/%Y/%m/%d/%H/"),
        (
            Some("/x/{tag}-$TAG/%F/"),
            "objects are written to x/app-app/%F/",
        ),
        (Some("%Y"), "objects are written to %Y/"),
    ] {
        let more: Vec<_> = path.map(|path| ("path", path)).into_iter().collect();
        let run = bench.check(&[&keys[..], &more].concat(), &["--tag", "app"]);
        assert!(run.words("path").contains(shown), "{shown}: {}", run.stdout);
    }
}

#[test]
fn the_size_and_the_cost_of_objects_are_computed_from_a_load() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("spool").display().to_string();
    let keys = [("url", url.as_str()), ("spool_dir", &spool)];
    for (load, result) in [
        (&["--rate", "100K"][..], "ok"),
        (&["--rate", "1M", "--folders", "10000"], "warn"),
        (&[], "nothing"),
    ] {
        let run = bench.check(&keys, load);
        assert_eq!(run.result("objects"), result, "{}", run.stdout);
    }
    let run = bench.check(&keys, &["--rate", "fast"]);
    assert_eq!(run.status, 2);
    assert!(
        run.stderr.contains("write 500K, 2M or 1G"),
        "{}",
        run.stderr
    );
}

#[test]
fn the_library_is_searched_where_fluent_bit_searches() {
    let bench = Bench::new();
    let library = bench.write("out_ferry.so", "");
    let root = bench.dir.path().display();
    let check = |plugins_file: &str, plugins: &str| {
        bench.write("libraries.conf", plugins);
        let text = format!(
            "[SERVICE]\n    {plugins_file}\n[OUTPUT]\n    Name ferry\n    Match *\n    url file://{root}/objects\n    \
             spool_dir {root}/spool\n    dead_letter_dir {root}/letters\n"
        );
        let run = tool(&[&bench.write("fluent-bit.conf", &text), "--json"], &[]);
        let failed = run.result("library") == "FAIL";
        assert_eq!(run.status, i32::from(failed), "{}", run.stdout);
        (run.result("library"), run.words("library"))
    };
    // Relative to the main file, like Fluent Bit.
    let named = "Plugins_File libraries.conf";
    let ours = format!("[PLUGINS]\n    Path {library}\n");
    let cases = [
        ("", "", "skip", "-e /full/path/of/out_ferry.so"),
        (named, &*ours, "ok", "out_ferry.so' exists"),
        (
            "Plugins_File none.conf",
            "",
            "FAIL",
            "fluent-bit.conf:2: Plugins_File",
        ),
        (
            named,
            "[PLUGINS]\n    Path /nonexistent/out_ferry.so\n",
            "FAIL",
            "libraries.conf:2: '/nonexistent",
        ),
        // The loader searches a plain name in its own folders.
        (
            named,
            "[PLUGINS]\n    Path out_ferry_nowhere.so\n",
            "warn",
            "libraries.conf:2: 'out_ferry_nowhere.so'",
        ),
        (
            named,
            "[PLUGINS]\n    Path /dev/null\n",
            "warn",
            "has ferry in its name",
        ),
    ];
    for (plugins_file, plugins, mark, words) in cases {
        let (result, said) = check(plugins_file, plugins);
        assert_eq!(result, mark, "{said}");
        assert!(said.contains(words), "{said}");
    }
    let text = format!(
        "service:\n  grace: 5\nplugins:\n  - {library}\npipeline:\n  outputs:\n    - name: ferry\n      match: '*'\n      \
         url: file://{root}/objects\n      spool_dir: {root}/spool\n      dead_letter_dir: {root}/letters\n"
    );
    let run = tool(&[&bench.write("fluent-bit.yaml", &text), "--json"], &[]);
    assert_eq!(run.result("library"), "ok", "{}", run.stdout);
}

#[test]
fn two_outputs_do_not_share_a_spool() {
    let bench = Bench::new();
    let root = bench.dir.path().display();
    let one = format!(
        "[OUTPUT]\n    Name ferry\n    Match *\n    Retry_Limit no_limits\n    url file://{root}/objects\n    spool_dir {root}/spool\n"
    );
    let file = bench.write("fluent-bit.conf", &one.repeat(2));
    let run = tool(&[&file, "--json"], &[]);
    assert_eq!(run.status, 1, "{}", run.stdout);
    assert!(
        run.words("spool_dir")
            .contains("is the spool of ferry.0 as well"),
        "{}",
        run.stdout
    );
}

#[test]
fn yaml_with_includes_and_variables_is_supported() {
    let bench = Bench::new();
    let fake = fake(Options::default());
    let letters = bench.path("letters").display().to_string();
    bench.write(
        "out.yaml",
        "pipeline:\n  outputs:\n    - name: ferry\n      match: '*'\n      workers: 2\n      retryLimit: no_limits\n      \
         retry_limit: no_limits\n      deliveryStream: ${STREAM}\n      region: us-east-1\n      endpoint: ${ENDPOINT}\n      \
         dead_letter_dir: ${LETTERS}\n      data_keys: [level, msg]\n",
    );
    let main = format!(
        "env:\n  STREAM: app\n  LETTERS: {letters}\nincludes:\n  - out.yaml\nservice:\n  grace: 35\n"
    );
    let file = bench.write("fluent-bit.yaml", &main);
    let run = tool(&[&file, "--json"], &[("ENDPOINT", fake.url())]);
    assert_eq!(run.status, 0, "{}{}", run.stdout, run.stderr);
    assert!(
        run.words("stream").contains("'app' is ACTIVE"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("keys").contains("retry_limit is set twice"),
        "{}",
        run.stdout
    );
    assert!(
        !run.words("keys").contains("data_keys"),
        "a list is one value: {}",
        run.stdout
    );
}

#[test]
fn an_unreadable_input_exits_with_status_2() {
    let bench = Bench::new();
    let broken = bench.write("broken.conf", "[OUTPUT]\nName ferry\n");
    let yaml = bench.write("broken.yaml", "pipeline: [\n");
    let others = bench.write("others.conf", "[OUTPUT]\n    Name kinesis_firehose\n");
    let nothing = bench.path("nothing.conf").display().to_string();
    let table: [(&[&str], &str); 7] = [
        (&[&broken], "broken.conf:2: indentation level is too low"),
        (&[&yaml], "broken.yaml:2: invalid YAML"),
        (&[&nothing], "nothing.conf"),
        (&[&others], "only: kinesis_firehose; see ferry migrate"),
        (&["migrate", &nothing], "nothing.conf"),
        (&[], "<FILE>"),
        (
            &[&others, "--tag", "x", "--record", "[]"],
            "a record is an object",
        ),
    ];
    for (arguments, words) in table {
        let run = tool(arguments, &[]);
        assert_eq!(run.status, 2, "{arguments:?}: {}{}", run.stdout, run.stderr);
        assert!(run.stderr.contains(words), "{arguments:?}: {}", run.stderr);
    }
}

/// An old output, and the lines that the new one has and does not have.
struct Move {
    old: &'static str,
    has: &'static [&'static str],
    has_not: &'static [&'static str],
}

const MOVES: &[Move] = &[
    Move {
        old: "Name kinesis_firehose\nMatch app.*\nregion us-east-1\ndelivery_stream ${STREAM}\ntime_key time\nRetry_Limit 5\nnet.keepalive off\ntls on",
        has: &[
            "Name ferry",
            "Match app.*",
            "delivery_stream ${STREAM}",
            "Workers 2",
            "Retry_Limit no_limits",
            "# retry_limit: was 5,",
            "time_key_format %Y-%m-%dT%H:%M:%S\n",
            "without Z",
            "# - aggregation differs",
            "# - net.keepalive has no counterpart",
            "# - tls on is left out: Ferry speaks HTTPS by itself",
        ],
        has_not: &["Retry_Limit 5"],
    },
    Move {
        old: "Name kinesis_firehose\nMatch *\nregion eu-west-1\ndelivery_stream app\nendpoint vpce-1.firehose.eu-west-1.vpce.amazonaws.com\nport 8443\n\
              sts_endpoint https://sts.eu-west-1.amazonaws.com\nrole_arn arn:aws:iam::123456789012:role/x\nexternal_id y\nprofile p\n\
              time_key t\ntime_key_format %FT%T.%LZ\nsimple_aggregation on\ncompression zstd\nauto_retry_requests true\nWorkers 4\nsurprise 1",
        has: &[
            "endpoint https://vpce-1.firehose.eu-west-1.vpce.amazonaws.com:8443",
            "sts_endpoint https://sts.eu-west-1.amazonaws.com",
            "external_id y",
            "profile p",
            "time_key_format %FT%T.%9NZ",
            "simple_aggregation on",
            "compression zstd",
            "Workers 4",
            "# - auto_retry_requests is left out",
            "# - surprise is not a key of kinesis_firehose and is left out",
        ],
        has_not: &["# - aggregation differs", "# - port"],
    },
    Move {
        old: "Name kinesis_firehose\nMatch *\nregion eu-west-1\ndelivery_stream app\nlog_key log\ncompression snappy\ntls.verify off\ntime_key_format %s",
        has: &[
            "log_key log",
            "# - compression snappy has no counterpart",
            "# - tls.verify off has no counterpart",
            "# - time_key_format is left out",
        ],
        has_not: &["compression none", "    time_key"],
    },
    Move {
        old: "Name firehose\nMatch *\nregion eu-west-1\ndelivery_stream app\ndata_keys a,b\nreplace_dots _\ntime_key t\ntime_key_format %FT%T.%fZ\nexperimental_concurrency 4",
        has: &[
            "data_keys a,b",
            "replace_dots _",
            "time_key_format %FT%T.%6NZ",
            "# - experimental_concurrency has no counterpart",
        ],
        has_not: &["%fZ"],
    },
    Move {
        old: "Name azure_blob\nMatch *\naccount_name logs\ncontainer_name app\nshared_key c2VjcmV0LXRoYXQtbXVzdC1uZXZlci1iZS1zZWVu\npath /x/$TAG[0]/$UUID/%Y/\ntls on",
        has: &[
            "account_name logs",
            "shared_key ${FERRY_SHARED_KEY}",
            "path x/$TAG[0]/%Y/$TAG",
            "$UUID",
            "blob_type block",
            "# - blob_type was appendblob",
            "compression none",
            "date_key @timestamp",
            "time_key_format %Y-%m-%dT%H:%M:%S.%6NZ",
            "spool on",
            "# - object names differ",
            "# - buffering differs",
            "# - tls on is left out: Ferry speaks HTTPS by itself, and Fluent Bit does not start with it here",
        ],
        has_not: &["c2VjcmV0", "plain HTTP"],
    },
    Move {
        old: "Name azure_blob\nMatch *\naccount_name logs\ncontainer_name app\nauth_type sas\nsas_token ${SAS}\nblob_type blockblob\ncompress_blob on\ncompress zstd\n\
              date_key at\nbuffering_enabled on\nbuffer_dir /var/buffer/\nupload_timeout 10m\nupload_file_size 200M\nstore_dir_limit_size 8G\n\
              blob_uri_length 32\nio_timeout 30s\nworkers 3\ndatabase_file /x.db\nscheduler_max_retries 9\nconfiguration_endpoint_password c2VjcmV0LXRoYXQtbXVzdC1uZXZlci1iZS1zZWVu",
        has: &[
            "sas_token ${SAS}",
            "compression zstd",
            "date_key at",
            "spool_dir /var/buffer/ferry",
            "blob_max_age 10m",
            "spool_limit 8G",
            "blob_max_size 24M",
            "# blob_max_size: was 200M",
            "# - blob_uri_length has no counterpart",
            "# - io_timeout has no counterpart",
            "# - workers is left out",
            "# - database_file has no counterpart",
            "# - scheduler_max_retries has no counterpart",
            "# - configuration_endpoint_password has no counterpart",
            "plain HTTP",
        ],
        has_not: &["appendblob", "buffering differs", "c2VjcmV0"],
    },
    Move {
        old: "Name azure_blob\nMatch *\naccount_name devstoreaccount1\ncontainer_name app\nemulator_mode on\nshared_key ${SAS}\nendpoint http://127.0.0.1:10000\nupload_timeout 3m",
        has: &[
            "endpoint http://127.0.0.1:10000",
            "emulator_mode on",
            "# - upload_timeout has no counterpart",
            "path $TAG",
        ],
        has_not: &["blob_max_age 3m", "https://127"],
    },
    Move {
        old: S3,
        has: &[
            "url s3://${STREAM}",
            "region eu-west-1",
            "profile p",
            "external_id y",
            "endpoint https://minio.local:9000",
            "sts_endpoint https://sts.eu-west-1.amazonaws.com",
            "path logs/$TAG[1]/%Y/%m/%d/%H",
            "# - s3_key_format: minutes and seconds are left out",
            "'$UUID.gz' is left out: every name has a unique token",
            "time_key time",
            "time_key_format %Y-%m-%d %H:%M:%S.%6N",
            "compression gzip",
            "blob_max_size 20M",
            "blob_max_age 5m",
            "spool_limit 2G",
            "Retry_Limit no_limits",
            "# - store_dir is not carried over: what s3 left in /var/s3 is not read",
            "# - upload_chunk_size has no counterpart",
            "# - use_put_object has no counterpart",
            "# - static_file_path has no counterpart",
            "# - preserve_data_ordering has no counterpart",
            "# - blob_database_file has no counterpart",
            "# - part_size has no counterpart",
            "# - authorization_endpoint_password has no counterpart",
            "# - auto_retry_requests is left out",
            "# - workers is left out",
            "# - tls on is left out",
        ],
        has_not: &[
            "is not a key of s3",
            "TO FIX",
            "# - bucket",
            "# - total_file_size has",
            "# - json_date",
        ],
    },
    Move {
        old: "Name s3\nMatch *\nbucket logs\nlog_key log\njson_date_key false\ntotal_file_size 1G\nstore_dir_limit_size 0",
        has: &[
            "region us-east-1",
            "# region: the default of s3",
            "path fluent-bit-logs/$TAG/%Y/%m/%d/%H",
            "# path: the default of s3 was /fluent-bit-logs/$TAG",
            "log_key log",
            "with log_key they did nothing",
            "compression none",
            "blob_max_age 10m",
            "blob_max_size 24M",
            "# blob_max_size: was 1G;",
            "# - store_dir_limit_size 0 is left out",
        ],
        has_not: &["time_key", "spool_limit 0"],
    },
    Move {
        old: "Name s3\nMatch *\nbucket logs\njson_date_format double",
        has: &["time_key date", "time_key_format epoch_ms", "was double"],
        has_not: &[],
    },
];

/// An `s3` output that sets every key of Fluent Bit's.
const S3: &str = "Name s3\nMatch app.*\nbucket ${STREAM}\nregion eu-west-1\nprofile p\nrole_arn arn:aws:iam::123456789012:role/x\nexternal_id y\n\
     endpoint https://minio.local\nport 9000\nsts_endpoint sts.eu-west-1.amazonaws.com\ns3_key_format /logs/$TAG[1]/%Y/%m/%d/%H/%M/$UUID.gz\n\
     s3_key_format_tag_delimiters .\njson_date_key time\njson_date_format java_sql_timestamp\ncompression gzip\nformat json_lines\n\
     total_file_size 20M\nupload_timeout 5m\nupload_chunk_size 6M\nuse_put_object on\nstore_dir /var/s3\nstore_dir_limit_size 2G\n\
     quarantine_dir_limit_size 1G\npreserve_data_ordering on\nstatic_file_path on\nretry_exhausted_action delete\nauto_retry_requests on\n\
     blob_database_file /var/blob.db\npart_size 25M\nfile_delivery_attempt_limit 1\npart_delivery_attempt_limit 1\n\
     upload_parts_timeout 10m\nupload_part_freshness_limit 6d\nauthorization_endpoint_url https://x\nauthorization_endpoint_username u\n\
     authorization_endpoint_password p\nauthorization_endpoint_bearer_token t\nRetry_Limit 3\nWorkers 1\ntls on";

/// The variables of the old configurations, and those that the new ones use.
const VARIABLES: [(&str, &str); 3] = [
    ("STREAM", "app-logs"),
    ("SAS", "sig=x"),
    ("FERRY_SHARED_KEY", SECRET),
];

#[test]
fn outputs_of_other_plugins_move_over() {
    let bench = Bench::new();
    for Move { old, has, has_not } in MOVES {
        let entries: Vec<&str> = old.lines().map(str::trim).collect();
        let classic = format!("[OUTPUT]\n    {}\n", entries.join("\n    "));
        let pairs: Vec<String> = entries
            .iter()
            .map(|entry| entry.split_once(' ').unwrap())
            .map(|(key, value)| format!("{}: '{value}'", key.to_lowercase()))
            .collect();
        let yaml = format!("pipeline:\n  outputs:\n    - {}\n", pairs.join("\n      "));
        for (name, text) in [("old.conf", classic), ("old.yaml", yaml)] {
            let run = tool(&["migrate", &bench.write(name, &text)], &VARIABLES);
            assert_eq!(run.status, 0, "{text}\n{}{}", run.stdout, run.stderr);
            let is_yaml = name.ends_with("yaml");
            for words in *has {
                // Pairs differ in YAML; comments do not.
                let found = match words.trim_end().split_once(' ') {
                    Some((key, value))
                        if is_yaml
                            && !key.starts_with('#')
                            && key.chars().all(|c| c.is_ascii_alphabetic() || c == '_') =>
                    {
                        let key = key.to_lowercase();
                        run.stdout.contains(&format!("{key}: {value}\n"))
                            || run.stdout.contains(&format!("{key}: '{value}'\n"))
                            || run.stdout.contains(words)
                    }
                    _ => run.stdout.contains(words),
                };
                assert!(found, "{words}\n{text}\n{}", run.stdout);
            }
            for words in *has_not {
                assert!(
                    !run.stdout.contains(words),
                    "{words}\n{text}\n{}",
                    run.stdout
                );
            }

            // The plugin accepts the printed configuration.
            let sets = VARIABLES.map(|(name, value)| match is_yaml {
                true => format!("  {name}: '{value}'\n"),
                false => format!("@SET {name}={value}\n"),
            });
            let sets = if is_yaml {
                format!("env:\n{}", sets.concat())
            } else {
                sets.concat()
            };
            let new = bench.write(&format!("new-{name}"), &(sets + &run.stdout));
            let configuration = host::read(Path::new(&new), |name| name == "ferry").unwrap();
            assert_eq!(configuration.outputs.len(), 1, "{}", run.stdout);
            if let Err(problems) = Config::read(&configuration.outputs[0]) {
                panic!("{problems:?}\n{}", run.stdout);
            }
        }
    }
}

#[test]
fn keys_that_cannot_be_migrated_are_reported_with_status_1() {
    let bench = Bench::new();
    let old = "[OUTPUT]\n    Name kinesis_firehose\n    Match *\n    region us-east-1\n    compression gzip\n\
               [OUTPUT]\n    Name stdout\n[OUTPUT]\n    Name azure_blob\n    container_name x\n";
    let run = tool(&["migrate", &bench.write("old.conf", old)], &[]);
    assert_eq!(run.status, 1, "{}", run.stdout);
    for words in [
        "# - TO FIX: destination: no destination",
        "# - TO FIX: account_name: is missing",
        "# - TO FIX: shared_key: is missing",
        "# - TO FIX: container_name: 'x' is not a container name",
    ] {
        assert!(run.stdout.contains(words), "{words}\n{}", run.stdout);
    }
    assert!(
        run.stderr.contains("old.conf:8: account_name: is missing"),
        "{}",
        run.stderr
    );
    assert!(!run.stdout.contains("stdout"), "{}", run.stdout);
}

#[test]
fn outputs_that_are_not_moved_are_named() {
    let bench = Bench::new();
    let output = |name: &str| format!("[OUTPUT]\n    Name {name}\n    Match *\n");
    let names = [
        "kinesis_streams",
        "gcs",
        "azure_logs_ingestion",
        "stackdriver",
        "es",
        "stdout",
    ];
    let text: String = names.iter().map(|name| output(name)).collect();
    let text = text + &output("s3") + "    bucket logs\n";
    let run = tool(&["migrate", &bench.write("old.conf", &text)], &[]);
    assert_eq!(run.status, 0, "{}", run.stderr);
    for name in &names[..5] {
        assert!(
            run.stdout
                .contains(&format!("# NOT MOVED: the output {name} is not converted")),
            "{}",
            run.stdout
        );
        assert!(
            run.stderr
                .contains(&format!("note: not moved: the output {name}\n")),
            "{}",
            run.stderr
        );
    }
    assert!(
        run.stdout
            .contains("Kinesis Data Streams is not Data Firehose"),
        "{}",
        run.stdout
    );
    assert!(!run.stdout.contains("stdout"), "{}", run.stdout);
}

#[test]
fn what_readers_of_a_bucket_rely_on_is_carried_over_or_to_be_fixed() {
    let bench = Bench::new();
    let keys = [
        ("sse", "aws:kms"),
        ("sse_kms_key_id", "arn:aws:kms:eu-west-1:123456789012:key/1"),
        ("storage_class", "STANDARD_IA"),
        ("canned_acl", "bucket-owner-full-control"),
        ("content_type", "application/json"),
        ("object_tags", "team=logs"),
        ("object_metadata", "owner=logs"),
    ];
    let lines: String = keys
        .iter()
        .map(|(key, value)| format!("    {key} {value}\n"))
        .collect();
    let text = format!("[OUTPUT]\n    Name s3\n    Match *\n    bucket logs\n{lines}");
    let run = tool(&["migrate", &bench.write("old.conf", &text)], &[]);
    let mut is_complete = true;
    for (key, value) in keys {
        let is_known = ferry::config::keys::find(key).is_some();
        is_complete &= is_known;
        let carried = run.stdout.contains(&format!("\n    {key} {value}\n"));
        let named = run
            .stdout
            .contains(&format!("# - TO FIX: {key} has no counterpart"))
            && run.stderr.contains(&format!("{key} has no counterpart"));
        assert_eq!(
            (carried, named),
            (is_known, !is_known),
            "{key}: {}",
            run.stdout
        );
    }
    assert_eq!(run.status, i32::from(!is_complete), "{}", run.stdout);
}

/// Leaves chunks of one event in a spool, as a host that was stopped does.
fn leave_in(spool: &Path, events: &[(&str, Value)]) {
    let disk = Arc::new(LocalDisk::open(spool).unwrap());
    let options = ferry::spool::Options {
        limit: 100 << 20,
        segment_bytes: None,
    };
    let (kept, _) = ferry::spool::Spool::open(disk, options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for (tag, event) in events {
        let mut data = Vec::new();
        crate::support::plugin::push_event(&mut data, SystemTime::UNIX_EPOCH, event);
        let chunk = ferry::spool::Chunk {
            id: ferry::ids::chunk_id(tag.as_bytes(), &data),
            tag: tag.as_bytes(),
            data: data.into(),
            arrived: ferry::ids::Time::default(),
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        runtime.block_on(kept.append(chunk, deadline)).unwrap();
    }
    kept.close();
}

#[test]
fn a_limit_with_which_fluent_bit_deletes_what_waits_is_warned_of() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("spool").display().to_string();
    for (mode, remedy) in [
        ("on", "spool_limit bounds what waits here"),
        ("off", "write spool on"),
    ] {
        let mut keys = vec![("url", url.as_str()), ("spool", mode), ("Workers", "2")];
        if mode == "on" {
            keys.push(("spool_dir", &spool));
        }
        for (limit, is_warned_of) in [
            ("500M", true),
            ("1.5gb", true),
            ("off", false),
            ("0", false),
            ("0M", false),
        ] {
            let run = bench.check(
                &[&keys[..], &[("storage.total_limit_size", limit)]].concat(),
                &[],
            );
            let words = run.words("host");
            let said = words.contains("deletes its oldest chunks") && words.contains(remedy);
            assert_eq!(said, is_warned_of, "{limit}: {}", run.stdout);
            assert_eq!(run.status, 0, "{}", run.stdout);
        }
    }
}

#[test]
fn a_name_made_from_tags_is_tried_with_those_of_the_inputs() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("spool").display().to_string();
    let file = bench.classic(&[("url", &url), ("spool_dir", &spool), ("path", "{tag}")]);
    let text = std::fs::read_to_string(&file).unwrap();
    let input = |tag: &str| format!("[INPUT]\n    Name dummy\n    Tag {tag}\n");
    let text =
        text.replace("Match *", "Match app.*") + &input("app.a") + &input("db.b") + &input("app.*");
    let run = tool(&[&bench.write("fluent-bit.conf", &text), "--json"], &[]);
    let words = run.words("path");
    assert!(words.contains("objects are written to app.a/"), "{words}");
    assert_eq!(run.of("path").len(), 1, "{words}");
}

#[test]
fn a_name_made_from_records_is_tried_with_those_in_the_spool() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("spool");
    let event = serde_json::json!({ "team": "blue" });
    leave_in(&spool, &[("app", event)]);
    let spool = spool.display().to_string();
    let check = |path: &str, arguments: &[&str]| {
        bench.check(
            &[("url", &url), ("spool_dir", &spool), ("path", path)],
            arguments,
        )
    };
    let run = check("x/{record.team}", &[]);
    assert!(
        run.words("path").contains("objects are written to x/blue/"),
        "{}",
        run.stdout
    );
    assert_eq!(run.result("path"), "ok", "{}", run.stdout);
    // None of them has it, which is a misspelling more often than not.
    let run = check("x/{record.taem}", &[]);
    assert_eq!(
        (run.status, run.result("path").as_str()),
        (0, "warn"),
        "{}",
        run.stdout
    );
    assert!(
        run.words("path")
            .contains("the records in the spool have nothing"),
        "{}",
        run.stdout
    );
    let run = check(
        "x/{record.team}",
        &["--tag", "app", "--record", "{\"taem\":1}"],
    );
    assert!(
        run.words("path").contains("the record given has nothing"),
        "{}",
        run.stdout
    );
}

#[test]
fn what_waits_in_the_spool_is_shown_with_its_age_and_the_time_that_is_left() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("spool");
    let event = |size: usize| serde_json::json!({ "text": "x".repeat(size) });
    let limit = "16M";
    let shown = spool.display().to_string();
    let keys = [
        ("url", url.as_str()),
        ("spool_dir", &shown),
        ("spool_limit", limit),
    ];
    let run = bench.check(&keys, &["--rate", "1K"]);
    assert_eq!(run.result("spool_content"), "nothing", "{}", run.stdout);
    assert!(
        run.words("spool_lasts").contains("an outage of about 4 h"),
        "{}",
        run.stdout
    );
    leave_in(&spool, &[("app", event(100)), ("app", event(400_000))]);
    let run = bench.check(&keys, &["--rate", "1K"]);
    let words = run.words("spool_content");
    assert_eq!(run.result("spool_content"), "ok", "{words}");
    for part in [
        "2 chunks (400 KB) wait",
        "2% of spool_limit (16 MB)",
        "the oldest for 2",
        " days",
        "the rest lasts for 4 h",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let large: Vec<(&str, Value)> = (1..25).map(|more| ("app", event(400_000 + more))).collect();
    leave_in(&spool, &large);
    let run = bench.check(&keys, &[]);
    assert_eq!(run.result("spool_content"), "warn", "{}", run.stdout);
}

#[test]
fn credentials_that_several_outputs_lack_are_reported_once() {
    let bench = Bench::new();
    let fake = fake(Options::default());
    let one = std::fs::read_to_string(bench.classic(&firehose(&fake, &[]))).unwrap();
    let output = one.split_once("[OUTPUT]").unwrap().1;
    let text = format!("{one}[OUTPUT]{output}[OUTPUT]{output}");
    let nobody = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    let run = tool(&[&bench.write("three.conf", &text), "--json"], &nobody);
    assert_eq!(run.status, 1, "{}", run.stdout);
    let findings = run.of("credentials");
    let results: Vec<&str> = findings
        .iter()
        .map(|it| it["result"].as_str().unwrap())
        .collect();
    assert_eq!(results, ["FAIL", "skip", "skip"], "{}", run.stdout);
    assert_eq!(findings[1]["message"], "as of ferry.0");
}

#[test]
fn a_spool_that_others_may_write_to_or_move_away_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("objects").display());
    let spool = bench.path("open/spool");
    std::fs::create_dir_all(&spool).unwrap();
    let shown = spool.display().to_string();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
    };
    #[rustfmt::skip] // a table
    let cases = [
        (0o755, 0o777, "other users may write to it"),
        (0o755, 0o720, "other users may write to it"),
        (0o777, 0o700, "and so move"),
        (0o1777, 0o700, "can be written to"),
        (0o755, 0o700, "can be written to"),
    ];
    for (parent, own, words) in cases {
        mode(&bench.path("open"), parent);
        mode(&spool, own);
        let run = bench.check(&[("url", &url), ("spool_dir", &shown)], &[]);
        assert!(
            run.words("spool_dir").contains(words),
            "{parent:o} {own:o}: {}",
            run.stdout
        );
    }
}

#[test]
fn a_spool_of_another_user_is_named_with_its_owner_and_the_command_by_the_check_and_by_the_start() {
    use std::os::unix::fs::PermissionsExt as _;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can leave files to another user");
        return;
    }
    // Where everybody may go.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let spool = dir.path().join("spool");
    leave_in(&spool, &[("app", serde_json::json!({ "n": 1 }))]);
    std::fs::set_permissions(&spool, std::fs::Permissions::from_mode(0o777)).unwrap();
    for entry in std::fs::read_dir(&spool).unwrap() {
        let file = entry.unwrap().path();
        let is_segment = file.extension().is_some_and(|end| end == "seg");
        let mode = if is_segment { 0o600 } else { 0o666 };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let text = format!(
        "[OUTPUT]\n    Name ferry\n    Match *\n    url file://{}\n    spool_dir {}\n    dead_letter_dir {}\n",
        path("objects"),
        path("spool"),
        path("letters")
    );
    let file = path("fluent-bit.conf");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    // The executable, too, has to be where everybody may go.
    let ferry = path("ferry");
    std::fs::copy(env!("CARGO_BIN_EXE_ferry"), &ferry).unwrap();
    for arguments in [
        &["check", &file][..],
        &["spool", "deliver", &path("spool"), "-c", &file],
    ] {
        let output =
            crate::support::as_a_user(Command::new(&ferry).args(arguments).current_dir("/"))
                .output()
                .unwrap();
        let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        for part in [
            ".seg' belongs to user 0, and this process runs as user 65534",
            "chown -R 65534",
            "Do not set another folder",
        ] {
            assert!(words.contains(part), "{arguments:?} {part}: {words}");
        }
    }
}
