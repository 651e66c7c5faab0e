//! The service's side of an HTTP request: its checks, its errors and its responses.

use std::borrow::Cow;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::http::{HeaderValue, Method, Response, request};
use serde::Deserialize;
use serde_json::{Value, json};

use super::faults::How;
use super::{AssumedRole, Request, Shared, StreamKind};
use crate::ledger::Delivery;

// The limits of one PutRecordBatch call, from
// https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html
/// The records in a call.
pub const MAX_RECORDS: usize = 500;
/// The bytes of a record, before base64.
pub const MAX_RECORD_BYTES: usize = 1_024_000;
/// The bytes of all records in a call, before base64.
pub const MAX_CALL_BYTES: usize = 4 << 20;

/// The most that a signature's date may differ from the service's clock.
const MAX_SKEW: Duration = Duration::from_secs(5 * 60);
const ACCOUNT: &str = "123456789012";
const JSON: &str = "application/x-amz-json-1.1";

/// An error of the service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl ApiError {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            code,
            message,
        }
    }

    pub(super) fn internal_failure() -> Self {
        Self::new(500, "InternalFailure", "Internal service failure.")
    }

    pub(super) fn slow_down() -> Self {
        Self::new(503, "ServiceUnavailableException", "Slow down.")
    }

    pub(super) fn throttled(code: &'static str) -> Self {
        Self::new(400, code, "Rate exceeded")
    }

    pub(super) fn expired_token() -> Self {
        let message = "The security token included in the request is expired";
        Self::new(400, "ExpiredTokenException", message)
    }

    pub(super) fn access_denied(operation: &str, stream: &str) -> Self {
        let message = format!(
            "User: arn:aws:iam::{ACCOUNT}:user/sender is not authorized to perform: \
             firehose:{operation} on resource: {}",
            arn(stream)
        );
        Self::new(403, "AccessDeniedException", message)
    }

    pub(super) fn not_found(stream: &str) -> Self {
        let message = format!("Firehose {stream} under account {ACCOUNT} not found.");
        Self::new(400, "ResourceNotFoundException", message)
    }

    pub(super) fn too_large() -> Self {
        let message = "Records size exceeds 4 MB limit";
        Self::new(400, "InvalidArgumentException", message)
    }

    pub(super) fn fed_by_kinesis() -> Self {
        let message =
            "This operation is not permitted on KinesisStreamAsSource delivery stream type.";
        Self::new(400, "InvalidArgumentException", message)
    }

    pub(super) fn record_too_large() -> Self {
        let place = length_error(
            "records.1.member.data",
            MAX_RECORD_BYTES + 1,
            MAX_RECORD_BYTES,
        );
        let message = place.unwrap_or_default();
        let message = format!("1 validation error detected: {message}");
        Self::new(400, "ValidationException", message)
    }

    pub(super) fn wrong_signature() -> Self {
        Self::signature(
            "The request signature we calculated does not match the signature you provided.",
        )
    }

    fn signature(message: impl Into<String>) -> Self {
        Self::new(400, "InvalidSignatureException", message)
    }

    fn serialization(error: impl std::fmt::Display) -> Self {
        Self::new(400, "SerializationException", error.to_string())
    }

    fn reply(&self) -> Response<String> {
        let body = json!({ "__type": self.code, "message": self.message });
        let mut reply = reply(self.status, JSON, body.to_string());
        let error_type = HeaderValue::from_static(self.code);
        reply.headers_mut().insert("x-amzn-errortype", error_type);
        reply
    }
}

fn reply(status: u16, content_type: &str, body: String) -> Response<String> {
    let reply = Response::builder().status(status);
    let reply = reply.header("content-type", content_type).body(body);
    reply.expect("the status and type of the content are well formed")
}

fn arn(stream: &str) -> String {
    format!("arn:aws:firehose:us-east-1:{ACCOUNT}:deliverystream/{stream}")
}

/// The error that closes the connection: hyper closes it when a service or a body fails.
#[derive(Debug)]
pub(super) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection was cut")
    }
}

impl std::error::Error for Cut {}

/// The body of a response, complete or shorter than announced.
pub(super) struct Answer {
    announced: u64,
    data: Option<Bytes>,
    cut: bool,
    flushed: bool,
}

impl Answer {
    fn new(text: String, cut: bool) -> Self {
        let mut data = Bytes::from(text);
        let announced = data.len() as u64;
        if cut {
            data.truncate(data.len() / 2);
        }
        let (data, flushed) = (Some(data), false);
        Self {
            announced,
            data,
            cut,
            flushed,
        }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.data.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None if !self.cut => Poll::Ready(None),
            None if self.flushed => Poll::Ready(Some(Err(Cut))),
            None => {
                // While a body is pending, hyper flushes what it has.
                self.flushed = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}

/// The outcome of a request.
struct Plan {
    outcome: String,
    /// The response; `None` closes the connection.
    reply: Option<Response<String>>,
    cut_mid_answer: bool,
    wait: Duration,
    unanswered: Unanswered,
}

impl Plan {
    fn new(outcome: impl Into<String>, reply: impl Into<Option<Response<String>>>) -> Self {
        Self {
            outcome: outcome.into(),
            reply: reply.into(),
            cut_mid_answer: false,
            wait: Duration::ZERO,
            unanswered: Unanswered(None),
        }
    }
}

/// A written delivery whose sender waits for the response; ambiguous if it disconnects before.
struct Unanswered(Option<(Arc<Shared>, Delivery)>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some((shared, delivery)) = &self.0 {
            shared.state().ledger.mark_ambiguous(delivery);
        }
    }
}

/// Answers an HTTP request, or closes the connection for a fault.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Answer>, Cut> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let mut call = Call {
        shared: &shared,
        head: &head,
        body: &body,
        seen: Request::default(),
        skew: 0,
    };
    let mut plan = call.plan();
    let Call { mut seen, skew, .. } = call;
    seen.outcome.clone_from(&plan.outcome);
    let id = shared.state().remember(seen, body.len());
    tokio::time::sleep(plan.wait).await;
    plan.unanswered.0.take();
    let reply = plan.reply.ok_or(Cut)?;

    let mut reply = reply.map(|text| Answer::new(text, plan.cut_mid_answer));
    let text = |text: String| HeaderValue::try_from(text).expect("plain ASCII");
    let date = httpdate::fmt_http_date(shifted(shared.now(), skew));
    let id = format!("00000000-0000-4000-8000-{id:012x}");
    reply.headers_mut().insert("date", text(date));
    reply.headers_mut().insert("x-amzn-requestid", text(id));
    Ok(reply)
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time - by } else { time + by }
}

/// The input of every operation; an absent field fails the same checks as an empty one.
#[derive(Deserialize)]
struct Input<'a> {
    #[serde(rename = "DeliveryStreamName", borrow, default)]
    stream: Cow<'a, str>,
    #[serde(rename = "Records", borrow, default)]
    records: Vec<Record<'a>>,
    #[serde(rename = "Record", borrow)]
    record: Option<Record<'a>>,
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(rename = "Data", borrow, default)]
    data: Cow<'a, str>,
}

/// A request in progress.
struct Call<'a> {
    shared: &'a Arc<Shared>,
    head: &'a request::Parts,
    body: &'a [u8],
    seen: Request,
    /// The seconds by which the service's clock is ahead for this call.
    skew: i64,
}

impl Call<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    fn plan(&mut self) -> Plan {
        self.seen.user_agent = self.header("user-agent").unwrap_or_default().to_owned();
        self.seen.session_token = self.header("x-amz-security-token").map(str::to_owned);
        let target = self.header("x-amz-target").unwrap_or_default();
        let operation = target
            .strip_prefix("Firehose_20150804.")
            .unwrap_or_default();
        let ours = self.head.method == Method::POST && self.head.uri.path() == "/";
        let content_type = self.header("content-type").unwrap_or_default();
        match content_type.split(';').next() {
            Some(JSON) if ours => self.seen.operation = operation.to_owned(),
            Some("application/x-www-form-urlencoded") if ours && target.is_empty() => {
                return self.assume_role().unwrap_or_else(|error| sts_error(&error));
            }
            _ => {}
        }
        let plan = match self.seen.operation.as_str() {
            "PutRecordBatch" | "PutRecord" => self.put(),
            "DescribeDeliveryStream" => self.describe(),
            _ => Err(ApiError::new(400, "UnknownOperationException", "")),
        };
        plan.unwrap_or_else(|error| Plan::new(error.code, error.reply()))
    }

    fn put(&mut self) -> Result<Plan, ApiError> {
        let signed_at = self.authorize("firehose")?;
        let records = self.records().inspect_err(|error| {
            let mut state = self.shared.state();
            state.ledger.add_limit_violation(&error.message);
        })?;
        let stream = &self.seen.stream;
        self.shared.kind(stream)?;

        let mut state = self.shared.state();
        let mut decision = state.faults.decide(stream, records.len());
        self.skew = decision.skew;
        check_date(signed_at, shifted(self.shared.now(), self.skew))?;
        let written = decision.end.as_ref().is_none_or(|end| end.written);
        for (failed, record) in decision.failed.iter_mut().zip(&records) {
            let taken = written && failed.is_none();
            if taken && !state.within_quota(self.shared, stream, record.len()) {
                *failed = Some("ServiceUnavailableException");
            }
        }
        drop(state);

        let mut delivery = Delivery::default();
        for (record, failed) in records.iter().zip(&decision.failed) {
            if written && failed.is_none() {
                delivery.add("record", record, &self.shared.seq_key);
            }
        }
        let mut plan = self.put_answer(&decision.failed);
        plan.wait = decision.delay;
        let mut state = self.shared.state();
        state.ledger.add(stream, &delivery);
        let Some(end) = decision.end else {
            plan.unanswered.0 = Some((self.shared.clone(), delivery));
            return Ok(plan);
        };
        // Recorded before the sender can learn of the failure.
        state.ledger.mark_ambiguous(&delivery);
        plan.outcome = end.outcome;
        plan.wait += end.wait;
        plan.cut_mid_answer = end.how == How::CutMidAnswer;
        plan.reply = match end.how {
            How::Error(error) => Some(error.reply()),
            How::EmptyIds => {
                let entries = vec![json!({ "RecordId": "" }); records.len()];
                let answer = json!({ "FailedPutCount": 0, "RequestResponses": entries });
                Some(reply(200, JSON, answer.to_string()))
            }
            How::Page(status) => {
                let page = format!("<html><body><h1>{status}</h1></body></html>");
                Some(reply(status, "text/html", page))
            }
            How::Cut => None,
            How::CutMidAnswer => plan.reply,
        };
        Ok(plan)
    }

    /// Returns the response to PutRecord or PutRecordBatch, given the error codes of the records that fail.
    fn put_answer(&self, failed: &[Option<&'static str>]) -> Plan {
        let error = |code: &str| match code {
            "InternalFailure" => ApiError::internal_failure(),
            _ => ApiError::slow_down(),
        };
        let call = self.shared.state().next_id();
        // As long as the service's own ids.
        let prefix = format!("{call:0>216}");
        let id = |index: usize| format!("{prefix}{index:04}");
        let failures = failed.iter().flatten().count();
        let outcome = match failures {
            0 => "ok",
            _ if failures < failed.len() => "some records failed",
            _ => "all records failed",
        };
        let entry = |(index, failed): (usize, &Option<&str>)| match failed {
            Some(code) => json!({ "ErrorCode": code, "ErrorMessage": error(code).message }),
            None => json!({ "RecordId": id(index) }),
        };
        let entries = failed.iter().enumerate().map(entry);
        let answer = match (self.seen.operation.as_str(), failed) {
            ("PutRecord", [Some(code)]) => return Plan::new(outcome, error(code).reply()),
            ("PutRecord", _) => json!({ "RecordId": id(0), "Encrypted": false }),
            _ => json!({
                "FailedPutCount": failures,
                "Encrypted": false,
                "RequestResponses": entries.collect::<Vec<_>>(),
            }),
        };
        Plan::new(outcome, reply(200, JSON, answer.to_string()))
    }

    fn input(&self) -> Result<Input<'_>, ApiError> {
        serde_json::from_slice(self.body).map_err(ApiError::serialization)
    }

    /// Decodes the records and checks them against the limits.
    fn records(&mut self) -> Result<Vec<Vec<u8>>, ApiError> {
        let input = self.input()?;
        let encoded = match self.seen.operation.as_str() {
            "PutRecord" => Vec::from_iter(input.record),
            _ => input.records,
        };
        let decode = |record: Record<'_>| BASE64_STANDARD.decode(record.data.as_bytes());
        let records: Result<Vec<Vec<u8>>, _> = encoded.into_iter().map(decode).collect();
        let records = records.map_err(ApiError::serialization)?;
        let stream = input.stream.into_owned();
        let raw_bytes = records.iter().map(Vec::len).sum();

        let mut broken = stream_name_errors(&stream);
        broken.extend(length_error("records", records.len(), MAX_RECORDS));
        for (number, record) in (1..).zip(&records) {
            let place = format!("records.{number}.member.data");
            broken.extend(length_error(&place, record.len(), MAX_RECORD_BYTES));
        }
        self.seen.stream = stream;
        self.seen.records = records.len();
        self.seen.raw_bytes = raw_bytes;
        validation(&broken)?;
        match raw_bytes {
            0..=MAX_CALL_BYTES => Ok(records),
            _ => Err(ApiError::too_large()),
        }
    }

    fn describe(&mut self) -> Result<Plan, ApiError> {
        let signed_at = self.authorize("firehose")?;
        check_date(signed_at, self.shared.now())?;
        self.seen.stream = self.input()?.stream.into_owned();
        let stream = &self.seen.stream;
        validation(&stream_name_errors(stream))?;
        if self.shared.options.deny_describe {
            return Err(ApiError::access_denied("DescribeDeliveryStream", stream));
        }
        let answer = json!({ "DeliveryStreamDescription": {
            "DeliveryStreamName": stream,
            "DeliveryStreamARN": arn(stream),
            "DeliveryStreamStatus": "ACTIVE",
            "DeliveryStreamType": "DirectPut",
            "VersionId": "1",
            "Destinations": [destination(self.shared.kind(stream)?)],
            "HasMoreDestinations": false,
        }});
        Ok(Plan::new("ok", reply(200, JSON, answer.to_string())))
    }

    /// Answers AssumeRole, the only operation of STS that is needed to assume a role.
    fn assume_role(&mut self) -> Result<Plan, ApiError> {
        let form: HashMap<_, _> = form_urlencoded::parse(self.body).into_owned().collect();
        let field = |name: &str| form.get(name).filter(|value| !value.is_empty()).cloned();
        if field("Action").as_deref() != Some("AssumeRole") {
            let message = "Could not find operation";
            return Err(ApiError::new(400, "InvalidAction", message));
        }
        self.seen.operation = "AssumeRole".to_owned();
        let signed_at = self.authorize("sts")?;
        check_date(signed_at, self.shared.now())?;
        let (Some(role_arn), Some(session_name)) = (field("RoleArn"), field("RoleSessionName"))
        else {
            let message = "RoleArn and RoleSessionName must not be null";
            return Err(ApiError::new(400, "ValidationError", message));
        };
        let seconds = field("DurationSeconds").and_then(|seconds| seconds.parse().ok());
        let expires = self.shared.now() + Duration::from_secs(seconds.unwrap_or(3_600));
        let mut state = self.shared.state();
        let number = state.roles.len() + 1;
        let access_key_id = format!("ASIAFAKE{number:012}");
        let session_token = format!("session-{number}");
        let body = format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleResult><AssumedRoleUser><AssumedRoleId>AROAFAKE:{number}</AssumedRoleId>\
             <Arn>arn:aws:sts::{ACCOUNT}:assumed-role/fake/{number}</Arn></AssumedRoleUser>\
             <Credentials><AccessKeyId>{access_key_id}</AccessKeyId>\
             <SecretAccessKey>secret-{number}</SecretAccessKey>\
             <SessionToken>{session_token}</SessionToken><Expiration>{}</Expiration></Credentials>\
             </AssumeRoleResult></AssumeRoleResponse>",
            humantime::format_rfc3339_seconds(expires),
        );
        state.roles.push(AssumedRole {
            external_id: field("ExternalId"),
            role_arn,
            session_name,
            access_key_id,
            session_token,
        });
        Ok(Plan::new("ok", reply(200, "text/xml", body)))
    }

    /// Checks that there is a well-formed SigV4 signature, and that a given hash is that of the body. The signature
    /// itself is not verified, since that requires the secret. Returns the time of the signature.
    fn authorize(&mut self, service: &str) -> Result<SystemTime, ApiError> {
        let missing = "Missing Authentication Token";
        let missing = || ApiError::new(400, "MissingAuthenticationTokenException", missing);
        let header = self.header("authorization").ok_or_else(missing)?;
        let date = self.header("x-amz-date").unwrap_or_default();
        let incomplete = || {
            let message = "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature' \
                 parameters after AWS4-HMAC-SHA256, and an 'X-Amz-Date' header.";
            ApiError::new(400, "IncompleteSignatureException", message)
        };
        let signature = Signature::parse(header).ok_or_else(incomplete)?;
        let signed_at = parse_basic(date).ok_or_else(incomplete)?;
        if signature.service != service {
            let message = format!("Credential should be scoped to correct service: '{service}'.");
            return Err(ApiError::signature(message));
        }
        if date.split('T').next() != Some(signature.day) {
            let message = format!("Date in Credential scope does not match {date}.");
            return Err(ApiError::signature(message));
        }
        for name in ["host", "x-amz-date", "x-amz-security-token", "x-amz-target"] {
            let signed = signature.headers.split(';').any(|signed| signed == name);
            if self.head.headers.contains_key(name) && !signed {
                let message = format!("'{name}' must be a 'SignedHeader'.");
                return Err(ApiError::signature(message));
            }
        }
        if let Some(claimed) = self.header("x-amz-content-sha256") {
            let hash = ring::digest::digest(&ring::digest::SHA256, self.body);
            let hex = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
            if claimed != hex.collect::<String>() {
                return Err(ApiError::wrong_signature());
            }
        }
        self.seen.access_key_id = signature.access_key_id.to_owned();
        Ok(signed_at)
    }
}

/// The parts of an `Authorization` header that can be checked without the secret.
struct Signature<'a> {
    access_key_id: &'a str,
    day: &'a str,
    service: &'a str,
    headers: &'a str,
}

impl<'a> Signature<'a> {
    fn parse(header: &'a str) -> Option<Self> {
        let fields = header.strip_prefix("AWS4-HMAC-SHA256 ")?.split(',');
        let fields: HashMap<_, _> = fields
            .filter_map(|field| field.trim().split_once('='))
            .collect();
        let credential: Vec<&str> = fields.get("Credential")?.split('/').collect();
        let [access_key_id, day, _region, service, "aws4_request"] = credential[..] else {
            return None;
        };
        let headers = fields.get("SignedHeaders")?;
        let signature = fields.get("Signature")?;
        let hex = signature.len() == 64 && signature.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then_some(Self {
            access_key_id,
            day,
            service,
            headers,
        })
    }
}

fn check_date(signed_at: SystemTime, now: SystemTime) -> Result<(), ApiError> {
    let (signed, ours) = (basic(signed_at), basic(now));
    let (oldest, newest) = (now - MAX_SKEW, now + MAX_SKEW);
    let message = if signed_at < oldest {
        let oldest = basic(oldest);
        format!("Signature expired: {signed} is now earlier than {oldest} ({ours} - 5 min.)")
    } else if signed_at > newest {
        let newest = basic(newest);
        format!(
            "Signature not yet current: {signed} is still later than {newest} ({ours} + 5 min.)"
        )
    } else {
        return Ok(());
    };
    Err(ApiError::signature(message))
}

/// The format of dates in SigV4: `20250131T235959Z`.
fn basic(time: SystemTime) -> String {
    let date = humantime::format_rfc3339_seconds(time).to_string();
    date.replace(['-', ':'], "")
}

fn parse_basic(date: &str) -> Option<SystemTime> {
    let part = |range| date.get(range);
    let day = [part(0..4)?, part(4..6)?, part(6..11)?].join("-");
    let date = [&day, part(11..13)?, part(13..16)?].join(":");
    humantime::parse_rfc3339(&date).ok()
}

fn sts_error(error: &ApiError) -> Plan {
    let (code, message) = (error.code, &error.message);
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
         <Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
    );
    Plan::new(code, reply(error.status, "text/xml", body))
}

fn validation(broken: &[String]) -> Result<(), ApiError> {
    let errors = match broken.len() {
        0 => return Ok(()),
        1 => "1 validation error".to_owned(),
        count => format!("{count} validation errors"),
    };
    let message = format!("{errors} detected: {}", broken.join("; "));
    Err(ApiError::new(400, "ValidationException", message))
}

fn length_error(place: &str, length: usize, max: usize) -> Option<String> {
    let bound = match length {
        0 => "greater than or equal to 1".to_owned(),
        _ if length > max => format!("less than or equal to {max}"),
        _ => return None,
    };
    let value = match place.ends_with(".data") {
        true => format!("java.nio.HeapByteBuffer[pos=0 lim={length} cap={length}]"),
        false => format!("{length} long"),
    };
    Some(format!(
        "Value '{value}' at '{place}' failed to satisfy constraint: Member must have length {bound}"
    ))
}

fn stream_name_errors(name: &str) -> Vec<String> {
    let mut broken = Vec::from_iter(length_error("deliveryStreamName", name.len(), 64));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !name.bytes().all(allowed) {
        broken.push(format!(
            "Value '{name}' at 'deliveryStreamName' failed to satisfy constraint: Member must satisfy \
             regular expression pattern: [a-zA-Z0-9_.-]+"
        ));
    }
    broken
}

/// Returns a stream's destination in the format of DescribeDeliveryStream.
fn destination(kind: StreamKind) -> Value {
    let mut s3 = json!({
        "RoleARN": format!("arn:aws:iam::{ACCOUNT}:role/delivery"),
        "BucketARN": "arn:aws:s3:::logs",
        "BufferingHints": { "SizeInMBs": 128, "IntervalInSeconds": 300 },
        "CompressionFormat": "UNCOMPRESSED",
        "EncryptionConfiguration": { "NoEncryptionConfig": "NoEncryption" },
        "ProcessingConfiguration": { "Enabled": false, "Processors": [] },
    });
    if kind == StreamKind::OpenSearch {
        return json!({
            "DestinationId": "destinationId-000000000001",
            "AmazonopensearchserviceDestinationDescription": {
                "DomainARN": format!("arn:aws:es:us-east-1:{ACCOUNT}:domain/logs"),
                "IndexName": "logs",
                "S3DestinationDescription": s3,
            },
        });
    }
    let converts = kind == StreamKind::S3Parquet;
    let partitions = kind == StreamKind::S3Partitioned;
    s3["DataFormatConversionConfiguration"] = json!({ "Enabled": converts });
    if converts {
        s3["DataFormatConversionConfiguration"] = json!({
            "Enabled": true,
            "InputFormatConfiguration": { "Deserializer": { "OpenXJsonSerDe": {} } },
            "OutputFormatConfiguration": { "Serializer": { "ParquetSerDe": {} } },
            "SchemaConfiguration": { "DatabaseName": "logs", "TableName": "app" },
        });
    }
    s3["DynamicPartitioningConfiguration"] = json!({ "Enabled": partitions });
    if partitions {
        let parameter = |name, value| json!({ "ParameterName": name, "ParameterValue": value });
        let query = parameter("MetadataExtractionQuery", "{level:.level}");
        let engine = parameter("JsonParsingEngine", "JQ-1.6");
        let split = parameter("SubRecordType", "JSON");
        s3["ProcessingConfiguration"] = json!({ "Enabled": true, "Processors": [
            { "Type": "RecordDeAggregation", "Parameters": [split] },
            { "Type": "MetadataExtraction", "Parameters": [query, engine] },
        ]});
    }
    json!({
        "DestinationId": "destinationId-000000000001",
        "ExtendedS3DestinationDescription": s3,
    })
}
