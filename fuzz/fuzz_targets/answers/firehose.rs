//! Amazon Data Firehose, from the SDK's HTTP client up.

use std::cell::LazyCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use ferry::config::{self, Aggregation};
use ferry::log::{Level, Log, Output};
use ferry::sink::aws::{self, Loaded};
use ferry::sink::firehose::{
    FirehoseSink, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_DEAGGREGATED_LINES, MAX_RECORD_BYTES,
};
use ferry::sink::{Batch, Outcome, Sink};
use http_body::Frame;
use serde_json::Value;
use tokio::time::timeout;

use crate::script::{Answer, Http};
use crate::{check_words, run};

const STREAM: &str = "app-logs";
/// Longer than a request may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends `count` records and checks what is made of the answer.
pub fn put(answer: &Answer, count: usize) {
    let batch = Batch {
        token: None,
        target: STREAM.into(),
        tag: (*b"t").into(),
        records: vec![Bytes::from_static(b"{\"a\":1}\n").into(); count],
    };
    let outcomes = run(sink(answer, Aggregation::On).send(batch));
    assert_eq!(outcomes.len(), count);
    check_words(&outcomes);
    let is = |kind: fn(&Outcome) -> bool| outcomes.iter().all(kind);
    match answer {
        Answer::Refused => assert!(is(|o| matches!(o, Outcome::Retry(_))), "{outcomes:?}"),
        Answer::Reset | Answer::Silence => {
            assert!(is(|o| matches!(o, Outcome::Ambiguous(_))), "{outcomes:?}");
        }
        Answer::Http(http) => check(http, &outcomes),
    }
}

fn check(http: &Http, outcomes: &[Outcome]) {
    let taken = taken(&http.body).filter(|taken| taken.len() == outcomes.len());
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Delivered => {
                assert!(http.is_success() && !http.cut, "delivered by {http:?}");
                let said = taken.as_ref().is_some_and(|taken| taken[n]);
                assert!(said, "record {n} was not taken: {http:?}");
            }
            Outcome::Rejected(fault) => {
                assert!(outcomes.len() == 1, "not the record's own fault: {fault}");
                assert!(names_the_record(http), "rejected by {http:?}");
            }
            Outcome::Retry(_) | Outcome::Ambiguous(_) => {}
        }
        // What the service says that it took is not sent a second time.
        if http.status == 200 && !http.cut && taken.as_ref().is_some_and(|taken| taken[n]) {
            assert!(
                !matches!(outcome, Outcome::Retry(_)),
                "{outcome:?} for {http:?}"
            );
        }
    }
}

/// Whether an answer says that the record breaks a rule for records. All else, known or unknown, is about the stream
/// or the way there, and costs no record.
fn names_the_record(http: &Http) -> bool {
    let body = String::from_utf8_lossy(&http.body);
    let code = http.header("x-amzn-errortype").unwrap_or_default();
    let code = String::from_utf8_lossy(code);
    let refused = code.contains("ValidationException") || body.contains("ValidationException");
    http.status == 400 && refused && body.contains("member.data")
}

/// For each entry of the answer whether it acknowledges its record. (The SDK passes over entries that are
/// null.)
fn taken(body: &[u8]) -> Option<Vec<bool>> {
    let answer = json(body)?;
    let entries = answer.get("RequestResponses")?.as_array()?;
    let entries = entries.iter().filter(|entry| !entry.is_null());
    let taken = |entry: &Value| {
        let id = entry["RecordId"].as_str().unwrap_or_default();
        !id.trim().is_empty() && entry["ErrorCode"].is_null()
    };
    Some(entries.map(taken).collect())
}

/// An answer's body. The SDK lets pass what JSON forbids: control characters in strings, and bytes that are
/// not UTF-8 in what it has no use for.
fn json(body: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(body).replace(|c: char| c < ' ', " ");
    serde_json::from_str(&text).ok()
}

/// Asks what a stream takes.
pub fn describe(answer: &Answer) {
    let sink = sink(answer, Aggregation::Auto);
    // Compression is asked for: an answer that tells nothing for a passing reason is waited for, and here it comes
    // again and again.
    let Ok(shape) = run(async { timeout(PATIENCE, sink.shape(STREAM)).await }) else {
        return;
    };
    let limits = shape.limits;
    assert_eq!(limits.record_bytes, MAX_RECORD_BYTES);
    assert_eq!(
        (limits.batch_records, limits.batch_bytes),
        (MAX_BATCH_RECORDS, MAX_BATCH_BYTES)
    );
    assert!([1, MAX_DEAGGREGATED_LINES, u32::MAX].contains(&limits.record_lines));
    if limits.record_lines == 1 {
        return assert!(!shape.compression);
    }
    // More than one line a record only where the stream's own answer names who can read them.
    let Answer::Http(http) = answer else {
        panic!("{shape:?} without an answer");
    };
    let answer = json(&http.body).unwrap_or_default();
    let destinations = answer["DeliveryStreamDescription"]["Destinations"].as_array();
    let mut destinations = destinations.into_iter().flatten().filter(|d| !d.is_null());
    let destination = destinations.next().unwrap_or(&Value::Null);
    let named = |name: &str| destination[name].is_object();
    assert!(http.is_success() && !http.cut, "{shape:?} by {http:?}");
    let s3 = named("ExtendedS3DestinationDescription");
    assert!(
        s3 || named("RedshiftDestinationDescription"),
        "{shape:?} by {http:?}"
    );
    assert!(s3 || !shape.compression, "{shape:?} by {http:?}");
}

/// A sink whose every request is met with `answer`.
fn sink(answer: &Answer, aggregation: Aggregation) -> FirehoseSink {
    thread_local! {
        static LOADED: LazyCell<Loaded> = const { LazyCell::new(|| {
            let aws = config::Aws { region: Some("us-east-1".into()), ..config::Aws::default() };
            run(aws::load(&aws, None)).expect("a region")
        }) };
    }
    let loaded = LOADED.with(|loaded| (*loaded).clone());
    let wire = SharedHttpConnector::new(Wire(Arc::new(answer.clone())));
    let keys = Credentials::new("TESTKEY", "s", None, None, "fuzz");
    let sdk = loaded.sdk.into_builder();
    let sdk = sdk.credentials_provider(SharedCredentialsProvider::new(keys));
    let sdk = sdk.http_client(http_client_fn(move |_, _| wire.clone()));
    let loaded = Loaded {
        sdk: sdk.build(),
        ..loaded
    };
    let log = Arc::new(Log::new(Box::new(Lines), "ferry"));
    FirehoseSink::new(&loaded, Some("http://127.0.0.1:1"), aggregation, true, log)
}

/// Looks at the log's lines.
struct Lines;

impl Output for Lines {
    fn enabled(&self, _: Level) -> bool {
        true
    }

    fn write(&self, _: Level, line: &str) {
        assert!(line.len() <= 2_000, "{} bytes: {line}", line.len());
        assert!(
            !line.contains(char::is_control),
            "more than a line: {line:?}"
        );
    }
}

#[derive(Debug)]
struct Wire(Arc<Answer>);

impl HttpConnector for Wire {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let failed = |kind| ConnectorError::io(Box::new(io::Error::from(kind)));
        match &*self.0 {
            Answer::Refused => {
                HttpConnectorFuture::ready(Err(failed(io::ErrorKind::ConnectionRefused)))
            }
            Answer::Reset => {
                HttpConnectorFuture::ready(Err(failed(io::ErrorKind::ConnectionReset)))
            }
            Answer::Silence => HttpConnectorFuture::new(std::future::pending()),
            Answer::Http(http) => HttpConnectorFuture::ready(Ok(response(http))),
        }
    }
}

fn response(http: &Http) -> HttpResponse {
    let status = StatusCode::try_from(http.status).expect("three digits");
    let body = match http.cut {
        true => SdkBody::from_body_1_x(Cut(Some(http.body.clone()))),
        false => SdkBody::from(http.body.clone()),
    };
    let mut response = HttpResponse::new(status, body);
    for (name, value) in &http.headers {
        // What is no header does not come through an HTTP client.
        if let Ok(value) = http::HeaderValue::from_bytes(value)
            && let Ok(value) = value.to_str()
        {
            let _ = response
                .headers_mut()
                .try_append(name.clone(), value.to_owned());
        }
    }
    response
}

/// A body whose connection ends before it does.
struct Cut(Option<Bytes>);

impl http_body::Body for Cut {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(match self.0.take() {
            Some(bytes) => Ok(Frame::data(bytes)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }))
    }
}
