//! Tests of the fake Firehose over a socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferry_harness::firehose::{self, FakeFirehose, Options, StreamKind};
use serde_json::{Value, json};

/// The fake's clock in these tests, and the date in their signatures.
const DATE: &str = "20250101T000000Z";
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=AKIAFAKE/20250101/us-east-1/firehose/aws4_request, \
    SignedHeaders=host;x-amz-date;x-amz-security-token;x-amz-target, \
    Signature=0000000000000000000000000000000000000000000000000000000000000000";
const HEADERS: [(&str, &str); 5] = [
    ("content-type", "application/x-amz-json-1.1"),
    ("x-amz-target", "Firehose_20150804.PutRecordBatch"),
    ("x-amz-date", DATE),
    ("authorization", AUTHORIZATION),
    ("user-agent", "test/1"),
];

fn fixed_clock() -> SystemTime {
    humantime::parse_rfc3339("2025-01-01T00:00:00Z").unwrap()
}

fn start(change: impl FnOnce(&mut Options)) -> FakeFirehose {
    let clock = fixed_clock;
    let mut options = Options {
        clock,
        ..Options::default()
    };
    change(&mut options);
    FakeFirehose::start(options).unwrap()
}

fn start_with(faults: &str) -> FakeFirehose {
    start(|options| options.faults = faults.to_owned())
}

/// The response before the connection was closed.
#[derive(Debug)]
struct Reply(String);

impl Reply {
    /// The status; 0 without a response.
    fn status(&self) -> u16 {
        let status = self.0.split(' ').nth(1);
        status.map_or(0, |status| status.parse().unwrap())
    }

    fn header(&self, name: &str) -> &str {
        let fields = self.0.lines().filter_map(|line| line.split_once(": "));
        let mut named = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next().map_or("", |(_, value)| value)
    }

    fn body(&self) -> &str {
        self.0.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    fn json(&self) -> Value {
        serde_json::from_str(self.body()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the status and code of an error, or the response.
    fn kind(&self) -> String {
        let status = self.status();
        match self.body() {
            _ if status == 0 => "no answer".to_owned(),
            body if self.header("content-length") != body.len().to_string() => "half".to_owned(),
            body if body.starts_with("<html>") => format!("{status} page"),
            _ => format!("{status} {}", self.header("x-amzn-errortype")),
        }
    }
}

/// Sends a request; `changes` replace headers, or remove them if empty.
fn converse(mut stream: impl Read + Write, changes: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut headers = HEADERS.to_vec();
    headers.retain(|(name, _)| changes.iter().all(|(changed, _)| name != changed));
    headers.extend(changes.iter().filter(|(_, value)| !value.is_empty()));
    let mut head = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".to_owned();
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut received = Vec::new();
    // A reset connection and a missing close_notify end the response like an orderly end.
    let _ = stream.read_to_end(&mut received);
    Reply(String::from_utf8(received).unwrap())
}

fn connect(fake: &FakeFirehose) -> TcpStream {
    TcpStream::connect(fake.url().split_once("://").unwrap().1).unwrap()
}

fn call(fake: &FakeFirehose, operation: &str, body: &Value) -> Reply {
    let target = format!("Firehose_20150804.{operation}");
    let changes = [("x-amz-target", target.as_str())];
    converse(connect(fake), &changes, body.to_string().as_bytes())
}

fn batch(records: &[impl AsRef<[u8]>]) -> Value {
    let encode = |record| json!({ "Data": BASE64_STANDARD.encode(record) });
    let records: Vec<Value> = records.iter().map(encode).collect();
    json!({ "DeliveryStreamName": "logs", "Records": records })
}

fn lines(seqs: impl IntoIterator<Item = u64>) -> Vec<String> {
    let lines = seqs.into_iter().map(|seq| format!("{{\"seq\":{seq}}}\n"));
    lines.collect()
}

fn put(fake: &FakeFirehose, records: &[impl AsRef<[u8]>]) -> Reply {
    call(fake, "PutRecordBatch", &batch(records))
}

fn of_sizes(sizes: &[usize]) -> Value {
    let records = sizes.iter().map(|size| vec![b' '; *size]);
    batch(&records.collect::<Vec<_>>())
}

#[test]
fn each_limit_fails_the_whole_call_and_is_counted() {
    let full = firehose::MAX_RECORD_BYTES;
    let rest = firehose::MAX_CALL_BYTES - 4 * full;
    let named = |name: &str| json!({ "DeliveryStreamName": name, "Records": [{ "Data": "e30K" }] });
    #[rustfmt::skip] // a table
    let refused = [
        (of_sizes(&[]), "ValidationException", "at 'records' failed to satisfy constraint: Member must have length greater than"),
        (of_sizes(&[1; 501]), "ValidationException", "at 'records' failed to satisfy constraint: Member must have length less than or equal to 500"),
        (of_sizes(&[5, 0]), "ValidationException", "at 'records.2.member.data'"),
        (of_sizes(&[full + 1, 0]), "ValidationException", "2 validation errors detected: Value 'java.nio.HeapByteBuffer[pos=0 lim=1024001 cap=1024001]' at 'records.1.member.data'"),
        (of_sizes(&[full, full, full, full, rest, 1]), "InvalidArgumentException", "Records size exceeds 4 MB limit"),
        (named("a b"), "ValidationException", "[a-zA-Z0-9_.-]+"),
        (named(&"a".repeat(65)), "ValidationException", "less than or equal to 64"),
        (json!({ "Records": [{ "Data": "e30K" }] }), "ValidationException", "'deliveryStreamName'"),
        (json!({ "DeliveryStreamName": "logs", "Records": [{ "Data": "?" }] }), "SerializationException", "Invalid"),
        (json!("logs"), "SerializationException", "invalid type"),
    ];
    let fake = start(|_| {});
    for (count, (body, code, message)) in (1..).zip(&refused) {
        let reply = call(&fake, "PutRecordBatch", body);
        assert_eq!(reply.kind(), format!("400 {code}"), "{message}");
        let answer = reply.json();
        assert_eq!(answer["__type"], *code);
        assert!(
            answer["message"].as_str().unwrap().contains(message),
            "{answer}"
        );
        let report = fake.report(None);
        let counted = (report.limit_violations, report.totals.records);
        assert_eq!(counted, (count, 0), "{message}");
        assert!(report.limit_reasons.last().unwrap().contains(message));
    }
    let largest = of_sizes(&[full, full, full, full, rest]);
    let longest = named(&"a".repeat(64));
    for body in [of_sizes(&[1; 500]), of_sizes(&[full]), largest, longest] {
        assert_eq!(
            call(&fake, "PutRecordBatch", &body).json()["FailedPutCount"],
            0
        );
    }
    assert_eq!(fake.report(None).limit_violations, refused.len() as u64);
}

#[test]
fn signatures_must_be_there_and_well_formed() {
    let wrong = |from: &str, to: &str| AUTHORIZATION.replace(from, to);
    #[rustfmt::skip] // a table
    let cases = [
        ("authorization", "", "MissingAuthenticationTokenException", "Missing"),
        ("authorization", "Bearer x", "IncompleteSignatureException", "AWS4-HMAC-SHA256"),
        ("authorization", &wrong("Signature=", "S="), "IncompleteSignatureException", "'Signature'"),
        ("authorization", &wrong("=0000", "=zzzz"), "IncompleteSignatureException", "'Signature'"),
        ("authorization", &wrong("/us-east-1", ""), "IncompleteSignatureException", "'Credential'"),
        ("authorization", &wrong("/firehose/", "/kinesis/"), "InvalidSignatureException", "'firehose'"),
        ("authorization", &wrong("host;", ""), "InvalidSignatureException", "'host' must be"),
        ("x-amz-date", "", "IncompleteSignatureException", "X-Amz-Date"),
        ("x-amz-date", "20250102T000000Z", "InvalidSignatureException", "scope does not match"),
        ("x-amz-content-sha256", "00", "InvalidSignatureException", "does not match"),
        ("content-type", "application/json", "UnknownOperationException", ""),
        ("x-amz-target", "Firehose_20150804.Nonsense", "UnknownOperationException", ""),
    ];
    let fake = start(|_| {});
    let body = batch(&lines([0])).to_string();
    for (header, value, code, message) in cases {
        let reply = converse(connect(&fake), &[(header, value)], body.as_bytes());
        assert_eq!(reply.kind(), format!("400 {code}"), "{header}: {value}");
        assert!(reply.body().contains(message), "{reply:?}");
    }
    assert_eq!(fake.report(None).totals.records, 0);

    let hash = ring::digest::digest(&ring::digest::SHA256, body.as_bytes());
    let hash: String = hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let right = [
        ("x-amz-content-sha256", hash.as_str()),
        ("x-amz-security-token", "t"),
    ];
    assert_eq!(
        converse(connect(&fake), &right, body.as_bytes()).status(),
        200
    );
    let expected = firehose::Request {
        operation: "PutRecordBatch".to_owned(),
        stream: "logs".to_owned(),
        records: 1,
        raw_bytes: 10,
        access_key_id: "AKIAFAKE".to_owned(),
        session_token: Some("t".to_owned()),
        user_agent: "test/1".to_owned(),
        outcome: "ok".to_owned(),
    };
    assert_eq!(fake.requests().pop(), Some(expected));
}

#[test]
fn a_signature_lives_for_five_minutes_by_the_clock_of_the_service() {
    #[rustfmt::skip] // a table: how the service's clock is off, what it says, and the date it gives
    let cases = [
        ("skew 5m", None, "Wed, 01 Jan 2025 00:05:00 GMT"),
        ("skew 301s", Some("Signature expired: 20250101T000000Z is now earlier than 20250101T000001Z (20250101T000501Z - 5 min.)"), "Wed, 01 Jan 2025 00:05:01 GMT"),
        ("skew -301s", Some("Signature not yet current: 20250101T000000Z is still later than 20241231T235959Z (20241231T235459Z + 5 min.)"), "Tue, 31 Dec 2024 23:54:59 GMT"),
    ];
    for (script, message, date) in cases {
        let reply = put(&start_with(script), &lines([0]));
        assert_eq!(reply.json()["message"].as_str(), message, "{script}");
        assert_eq!(reply.header("date"), date);
    }
}

#[test]
fn each_fault_shows_as_itself_and_writes_what_it_says() {
    #[rustfmt::skip] // a table: script, what the sender sees, the outcome, lines written (of 2)
    let cases = [
        ("throttle", "400 ThrottlingException", "ThrottlingException", 0),
        ("throttle LimitExceededException", "400 LimitExceededException", "LimitExceededException", 0),
        ("throttle ServiceUnavailableException", "503 ServiceUnavailableException", "ServiceUnavailableException", 0),
        ("throttle-records", "200 ", "all records failed", 0),
        ("throttle-records; cut-after-write", "200 ", "all records failed", 0),
        ("records InternalFailure\ncut-after-write", "no answer", "cut-after-write", 0),
        ("status 413", "413 page", "status 413", 0),
        ("status 429", "429 page", "status 429", 0),
        ("status 500", "500 InternalFailure", "InternalFailure", 0),
        ("status 502", "502 page", "status 502", 0),
        ("status 503", "503 page", "status 503", 0),
        ("status 504", "504 page", "status 504", 0),
        ("status-after-write 500", "500 InternalFailure", "InternalFailure", 2),
        ("status-after-write 504", "504 page", "status 504", 2),
        ("cut", "no answer", "cut", 0),
        ("cut-after-write", "no answer", "cut-after-write", 2),
        ("cut-mid-answer", "half", "cut-mid-answer", 2),
        ("hang 30ms", "no answer", "hang", 0),
        ("hang-after-write 30ms", "no answer", "hang-after-write", 2),
        ("expired-token", "400 ExpiredTokenException", "ExpiredTokenException", 0),
        ("access-denied", "403 AccessDeniedException", "AccessDeniedException", 0),
        ("invalid-signature", "400 InvalidSignatureException", "InvalidSignatureException", 0),
        ("not-found", "400 ResourceNotFoundException", "ResourceNotFoundException", 0),
        ("too-large", "400 InvalidArgumentException", "InvalidArgumentException", 0),
    ];
    for (script, seen, outcome, written) in cases {
        let fake = start_with(script);
        assert_eq!(put(&fake, &lines([0, 1])).kind(), seen, "{script}");
        let report = fake.report(None);
        let ambiguous = (report.ambiguous_calls, report.ambiguous_lines);
        assert_eq!(report.totals.lines, written, "{script}");
        assert_eq!(ambiguous, (written / 2, written), "{script}");
        assert_eq!(report.calls, [(outcome.to_owned(), 1)].into(), "{script}");
        assert_eq!(fake.requests()[0].outcome, outcome);

        fake.clear_faults();
        assert_eq!(put(&fake, &lines([0, 1])).status(), 200, "{script}");
        let report = fake.report(Some(2));
        assert_eq!(
            (report.missing, report.duplicates),
            (0, written),
            "{script}"
        );
        assert_eq!(report.unexplained_duplicates, 0, "{script}");
    }
    let reply = put(&start_with("not-found"), &lines([0]));
    assert!(
        reply.body().contains("Firehose logs under account"),
        "{reply:?}"
    );
}

#[test]
fn records_that_failed_arrive_when_they_are_sent_again() {
    let fake = start_with("20% records ServiceUnavailableException\n10% records InternalFailure");
    let mut pending = lines(0..400);
    let mut calls = 0;
    while !pending.is_empty() {
        let answer = put(&fake, &pending).json();
        let entries = answer["RequestResponses"].as_array().unwrap();
        assert_eq!(entries.len(), pending.len());
        let mut failed = entries.iter().map(|entry| {
            let (code, id) = (entry["ErrorCode"].as_str(), entry["RecordId"].as_str());
            assert_eq!(code.is_some(), id.is_none(), "{entry}");
            code.is_some()
        });
        pending.retain(|_| failed.next().unwrap());
        assert_eq!(answer["FailedPutCount"], pending.len());
        calls += 1;
    }
    let report = fake.report(Some(400));
    assert!(
        report.is_exact() && report.totals.records == 400,
        "{report}"
    );
    assert_eq!(
        report.calls["ok"] + report.calls["some records failed"],
        calls
    );
}

#[test]
fn put_record_fails_with_the_error_of_its_record() {
    let fake = start_with(
        "call 1 records InternalFailure; call 2 throttle-records; call 3 cut-after-write",
    );
    let body = json!({ "DeliveryStreamName": "logs", "Record": { "Data": "e30K" } });
    let put_one = || call(&fake, "PutRecord", &body);
    assert_eq!(put_one().kind(), "500 InternalFailure");
    let throttled = put_one();
    assert_eq!(throttled.kind(), "503 ServiceUnavailableException");
    assert_eq!(throttled.json()["message"], "Slow down.");
    assert_eq!(put_one().kind(), "no answer");
    assert!(put_one().json()["RecordId"].is_string());
    let report = fake.report(None);
    assert_eq!(
        (report.totals.lines, report.totals.lines_without_seq),
        (2, 2)
    );
    assert_eq!(
        (report.totals.billed_bytes, report.ambiguous_calls),
        (2 * 5_120, 1)
    );
    let nothing = call(&fake, "PutRecord", &json!({ "DeliveryStreamName": "logs" }));
    assert_eq!(nothing.kind(), "400 ValidationException");
}

#[test]
fn a_sender_that_hangs_up_before_a_slow_answer_leaves_an_ambiguous_call() {
    let fake = start_with("delay 1h");
    let stream = connect(&fake);
    stream
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    let body = batch(&lines([0])).to_string();
    assert_eq!(converse(stream, &[], body.as_bytes()).kind(), "no answer");
    let deadline = Instant::now() + Duration::from_secs(20);
    while fake.report(None).ambiguous_calls == 0 {
        assert!(Instant::now() < deadline, "{}", fake.report(None));
        std::thread::yield_now();
    }
    assert_eq!(fake.report(Some(1)).missing, 0);
}

#[test]
fn a_short_delay_is_no_failure() {
    let fake = start_with("delay 30ms");
    let before = Instant::now();
    assert_eq!(put(&fake, &lines([0])).status(), 200);
    assert!(before.elapsed() >= Duration::from_millis(30));
    assert_eq!(fake.report(None).ambiguous_calls, 0);
}

#[test]
fn records_over_the_quota_are_told_to_slow_down() {
    static MILLIS: AtomicU64 = AtomicU64::new(0);
    let fake = start(|options| {
        options.quota_bytes_per_second = Some(1_000);
        options.clock = || fixed_clock() + Duration::from_millis(MILLIS.load(Ordering::Relaxed));
    });
    let failed = |records: usize| {
        let answer = put(&fake, &vec![[b' '; 100]; records]).json();
        answer["FailedPutCount"].as_u64().unwrap()
    };
    assert_eq!(failed(12), 2, "a second's worth is free");
    assert_eq!(failed(1), 1);
    MILLIS.store(500, Ordering::Relaxed);
    assert_eq!(failed(6), 1, "half of it has come back");
    MILLIS.store(60_000, Ordering::Relaxed);
    assert_eq!(failed(11), 1, "but never more than a second's worth");
}

#[test]
fn streams_are_described_as_they_were_set_up() {
    use StreamKind::{OpenSearch, S3, S3Parquet, S3Partitioned};
    let kinds = [
        ("a", S3),
        ("b", S3Parquet),
        ("c", S3Partitioned),
        ("d", OpenSearch),
    ];
    let fake =
        start(|options| options.streams = kinds.map(|(name, kind)| (name.to_owned(), kind)).into());
    let describe = |fake: &FakeFirehose, name: &str| {
        let body = json!({ "DeliveryStreamName": name });
        call(fake, "DescribeDeliveryStream", &body)
    };
    for (name, kind) in kinds {
        let answer = describe(&fake, name).json();
        let description = &answer["DeliveryStreamDescription"];
        assert_eq!(description["DeliveryStreamName"], name);
        let destination = &description["Destinations"][0];
        let search = &destination["AmazonopensearchserviceDestinationDescription"];
        assert_eq!(search.is_object(), kind == OpenSearch);
        let s3 = &destination["ExtendedS3DestinationDescription"];
        let enabled = |part: &str| s3[part]["Enabled"] == true;
        assert_eq!(
            enabled("DataFormatConversionConfiguration"),
            kind == S3Parquet
        );
        assert_eq!(
            enabled("DynamicPartitioningConfiguration"),
            kind == S3Partitioned
        );
        assert_eq!(enabled("ProcessingConfiguration"), kind == S3Partitioned);
    }
    let unknown = describe(&fake, "logs").json();
    let message = "Firehose logs under account 123456789012 not found.";
    assert_eq!(
        unknown,
        json!({ "__type": "ResourceNotFoundException", "message": message })
    );
    assert_eq!(put(&fake, &lines([0])).json(), unknown);
    assert_eq!(fake.report(None).limit_violations, 0);

    let denied = describe(&start(|options| options.deny_describe = true), "logs");
    assert_eq!(denied.kind(), "403 AccessDeniedException");
}

#[test]
fn a_role_is_assumed_and_known_again_by_its_credentials() {
    let fake = start(|_| {});
    let authorization = AUTHORIZATION.replace("/firehose/", "/sts/");
    let form = [
        (
            "content-type",
            "application/x-www-form-urlencoded; charset=utf-8",
        ),
        ("authorization", authorization.as_str()),
        ("x-amz-target", ""),
    ];
    let body = b"Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Flogs\
        &RoleSessionName=ferry&ExternalId=x%261&DurationSeconds=900";
    let reply = converse(connect(&fake), &form, body);
    assert_eq!(
        (reply.status(), reply.header("content-type")),
        (200, "text/xml")
    );
    let role = fake.assumed_roles().pop().unwrap();
    assert_eq!(
        (role.role_arn.as_str(), role.session_name.as_str()),
        ("arn:aws:iam::1:role/logs", "ferry")
    );
    assert_eq!(role.external_id.as_deref(), Some("x&1"));
    let told = |tag: &str, value: &str| {
        let element = format!("<{tag}>{value}</{tag}>");
        assert!(reply.body().contains(&element), "{element} in {reply:?}");
    };
    told("AccessKeyId", &role.access_key_id);
    told("SessionToken", &role.session_token);
    told("Expiration", "2025-01-01T00:15:00Z");

    let authorization = AUTHORIZATION.replace("AKIAFAKE", &role.access_key_id);
    let signed = [
        ("authorization", authorization.as_str()),
        ("x-amz-security-token", &role.session_token),
    ];
    let body = batch(&lines([0])).to_string();
    assert_eq!(
        converse(connect(&fake), &signed, body.as_bytes()).status(),
        200
    );
    let seen = fake.requests().pop().unwrap();
    assert_eq!(
        (seen.access_key_id, seen.session_token),
        (role.access_key_id, Some(role.session_token))
    );

    let refused = converse(connect(&fake), &form, b"Action=AssumeRole&RoleArn=a");
    assert!(
        refused.body().contains("<Code>ValidationError</Code>"),
        "{refused:?}"
    );
}

#[test]
fn tls_is_served_with_a_certificate_of_its_own_authority() {
    let fake = start(|options| options.tls = true);
    let mut roots = rustls::RootCertStore::empty();
    let pem = fake.ca_pem().unwrap().as_bytes();
    roots
        .add(rustls::pki_types::pem::PemObject::from_pem_slice(pem).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = Arc::new(config.with_no_client_auth());
    let client = rustls::ClientConnection::new(config, "127.0.0.1".try_into().unwrap()).unwrap();
    let body = batch(&lines([0])).to_string();
    let reply = converse(
        rustls::StreamOwned::new(client, connect(&fake)),
        &[],
        body.as_bytes(),
    );
    assert_eq!(reply.kind(), "200 ");
}

#[test]
fn a_fake_that_is_dropped_frees_its_port_for_the_next() {
    let address = start(|_| {}).url().replace("http://", "");
    assert!(TcpStream::connect(&address).is_err());
    let next = start(|options| options.listen = address.parse().unwrap());
    assert_eq!(put(&next, &lines([0])).status(), 200);
}

#[test]
fn the_wide_world_is_not_served() {
    let listen = "0.0.0.0:0".parse().unwrap();
    let options = Options {
        listen,
        ..Options::default()
    };
    let error = FakeFirehose::start(options).err().unwrap();
    assert!(error.to_string().contains("loopback"), "{error}");
}

#[test]
fn calls_at_the_same_time_are_all_counted() {
    let fake = start_with("30% cut-after-write");
    let pending = Mutex::new(lines(0..60));
    let next = || pending.lock().unwrap().pop();
    let send_all = || {
        while let Some(line) = next() {
            while put(&fake, &[&line]).status() == 0 {}
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(send_all);
        }
    });
    let report = fake.report(Some(60));
    assert_eq!(
        (report.missing, report.unexplained_duplicates),
        (0, 0),
        "{report}"
    );
    assert!(report.duplicates > 0, "{report}");
    assert_eq!(report.duplicates, report.ambiguous_lines, "{report}");
}

/// Runs `ferry-harness firehose`, sends a batch of three lines to it and stops it with SIGTERM. Returns whether it
/// succeeded, its output and its ledger.
fn run_command(expect: &str, faults: &str) -> (bool, String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferry-harness"));
    command.args([
        "firehose", "--expect", expect, "--faults", faults, "--ledger",
    ]);
    let mut child = command.arg(&ledger).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut printed = String::new();
    output.read_line(&mut printed).unwrap();
    let address = printed.trim().strip_prefix("listening on http://").unwrap();

    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let now = now.replace(['-', ':'], "");
    let authorization = AUTHORIZATION.replace("20250101", &now[..8]);
    let signed = [
        ("x-amz-date", now.as_str()),
        ("authorization", &authorization),
    ];
    let body = batch(&lines(0..3)).to_string();
    converse(
        TcpStream::connect(address).unwrap(),
        &signed,
        body.as_bytes(),
    );

    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: kill takes no pointers, and the process is our own child, not yet waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    output.read_to_string(&mut printed).unwrap();
    let content = child.wait().unwrap().success();
    let ledger = serde_json::from_slice(&std::fs::read(ledger).unwrap());
    (content, printed, ledger.unwrap())
}

#[test]
fn the_command_sums_up_and_fails_when_a_line_is_missing() {
    let (content, printed, ledger) = run_command("3", "");
    assert!(content && printed.contains("missing: 0 of 3"), "{printed}");
    assert_eq!(
        (&ledger["lines"], &ledger["calls"]["ok"]),
        (&json!(3), &json!(1))
    );

    let (content, printed, ledger) = run_command("3", "records InternalFailure times 1");
    assert!(
        !content && printed.contains("missing: 1 of 3 [0]"),
        "{printed}"
    );
    assert_eq!(ledger["first_missing"], json!([0]));
}
