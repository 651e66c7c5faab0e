//! Amazon Data Firehose: PutRecordBatch, the meaning of its responses, and the shape of requests to a stream.
//!
//! The SDK signs and sends, with its own retries disabled. The [`body`] is generated here, since it is most of a
//! request's cost: directly from the lines, and hashed by `ring`, which is up to twice as fast as the SDK's SHA-256 on
//! machines without instructions for it. Retries are the responsibility of delivery, which tracks what is settled.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_runtime::auth::SigV4OperationSigningConfig;
use aws_sdk_firehose::Client;
use aws_sdk_firehose::config::http::HttpResponse;
use aws_sdk_firehose::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_firehose::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_firehose::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_firehose::operation::RequestId;
use aws_sdk_firehose::operation::put_record_batch::PutRecordBatchOutput;
use aws_sdk_firehose::types::{DestinationDescription, ProcessorType};
use aws_sigv4::http_request::SignableBody;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_types::body::SdkBody;
use futures::future::BoxFuture;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use self::body::BodyText;
use self::describe::{Called, Starts, next_call};
use super::outcome::{Class, Fault, OWN_TROUBLE, Outcome, code_line, message_line};
use super::{Batch, Shape, Sink};
use crate::config::Aggregation;
use crate::log::{Level, Log, causes};
use crate::sink::Limits;
use crate::sink::aws::{CredentialCache, Loaded};
use crate::sink::http;

mod body;
pub mod describe;

// https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html
/// The most records in a call.
pub const MAX_BATCH_RECORDS: usize = 500;
/// The most bytes in a call, before base64.
pub const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The most bytes in a record, before base64.
pub const MAX_RECORD_BYTES: usize = 1_000 * 1024;
// https://docs.aws.amazon.com/firehose/latest/dev/dynamic-partitioning-multirecord-deaggergation.html
/// The most lines in a record of a stream that deaggregates records.
pub const MAX_DEAGGREGATED_LINES: u32 = 500;
/// The size of pieces of uncompressed lines, in bytes: a request that waits for a stream's pace has one, and records are
/// filled to at least 98% of their limit.
const PIECE_BYTES: usize = 10 * 1024;
/// The timeout of a request, enough for 4 MiB at 0.3 MiB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The calls of this process that describe streams. Outputs of several accounts or regions share it, which is more
/// cautious than needed.
static STARTS: Mutex<Starts> = Mutex::new(Starts::new());
/// The turn to wait for the next start: only one call waits for the time, and the others in a queue.
static TURN: Semaphore = Semaphore::const_new(1);

/// Sends records to delivery streams.
pub struct FirehoseSink {
    client: Client,
    credentials: CredentialCache,
    aggregation: Aggregation,
    streams: Arc<StreamShapes>,
}

/// The shapes of streams, as the service describes them.
struct StreamShapes {
    client: Client,
    credentials: CredentialCache,
    compressing: bool,
    log: Arc<Log>,
    known: Mutex<HashMap<String, Stream>>,
}

/// The state of a stream.
struct Stream {
    shape: Option<Shape>,
    /// Whether the service has described it: until then the shape is a cautious one.
    described: bool,
    /// The time from which it is described again.
    describe_at: Instant,
    describing: bool,
    /// The number of calls in a row that described nothing.
    failures: u32,
    /// Notifies waiting callers of a change.
    changed: watch::Sender<()>,
}

impl FirehoseSink {
    /// Creates a sink. `endpoint`: the service's full URL, if it is not the region's own. `compressing`: whether
    /// compression is configured.
    pub fn new(
        aws: &Loaded,
        endpoint: Option<&str>,
        aggregation: Aggregation,
        compressing: bool,
        log: Arc<Log>,
    ) -> FirehoseSink {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(REQUEST_TIMEOUT)
            .build();
        let mut config = aws_sdk_firehose::config::Builder::from(&aws.sdk)
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        let client = Client::from_conf(config.build());
        FirehoseSink {
            streams: Arc::new(StreamShapes {
                client: client.clone(),
                credentials: aws.credentials.clone(),
                compressing,
                log,
                known: Mutex::default(),
            }),
            client,
            credentials: aws.credentials.clone(),
            aggregation,
        }
    }
}

impl StreamShapes {
    /// Returns the shape of requests to a stream, as the service describes it. Waits for the first attempt only: after
    /// a failure it returns the most cautious shape while it tries again. With compression it waits instead, since
    /// readers could not handle a mix of compressed and uncompressed records. A stream that is described is described
    /// again from time to time, and nothing waits for that.
    async fn shape(self: &Arc<Self>, stream: &str) -> Shape {
        loop {
            let (mut changed, describe_at) = {
                let mut known = self.known.lock().expect("nothing panics with this lock");
                let known = known.entry(stream.to_owned()).or_insert_with(|| Stream {
                    shape: None,
                    described: false,
                    describe_at: Instant::now(),
                    describing: false,
                    failures: 0,
                    changed: watch::Sender::new(()),
                });
                if known.describe_at <= Instant::now() && !known.describing {
                    known.describing = true;
                    // Unless a panic leaves this.
                    known.describe_at = Instant::now() + next_call(Called::Failed, 1, &mut rng());
                    // A task of its own, which outlives a caller that stops waiting.
                    tokio::spawn(Arc::clone(self).refresh(stream.to_owned()));
                }
                if let Some(shape) = known.shape {
                    return shape;
                }
                let describe_at = (!known.describing).then_some(known.describe_at);
                (known.changed.subscribe(), describe_at)
            };
            let due = sleep_until(describe_at.unwrap_or_else(Instant::now));
            tokio::select! {
                _ = changed.changed() => {}
                () = due, if describe_at.is_some() => {}
            }
        }
    }

    /// Describes a stream once, and notifies waiting callers.
    async fn refresh(self: Arc<Self>, stream: String) {
        /// Allows another attempt when dropped, even by a panic.
        struct Describing<'a>(&'a StreamShapes, &'a str);
        impl Drop for Describing<'_> {
            fn drop(&mut self) {
                self.0.change(self.1, |known| known.describing = false);
            }
        }
        let describing = Describing(&self, &stream);
        wait_for_start().await;
        let answer = self
            .client
            .describe_delivery_stream()
            .delivery_stream_name(&stream)
            .send()
            .await;
        let (called, shape) = match answer {
            Ok(answer) => {
                let destination = answer
                    .delivery_stream_description()
                    .and_then(|stream| stream.destinations().first());
                let (shape, what) = destination
                    .map_or((stream_shape(1, false), "an unknown destination"), shape_of);
                if self.described(&stream) != Some(shape) {
                    self.log_shape(&stream, shape, what);
                }
                (Called::Described, Some(shape))
            }
            Err(error) => self.not_described(&stream, fault(answer_of(error).0)),
        };
        let throttled = called == Called::Throttled;
        let mut starts = STARTS.lock().expect("nothing panics with this lock");
        starts.answered(throttled, Instant::now().into_std());
        drop(starts);
        self.change(&stream, |known| {
            let described = called == Called::Described;
            known.failures = match described {
                true => 0,
                false => known.failures.saturating_add(1),
            };
            if described || !known.described {
                known.shape = shape.or(known.shape);
            }
            known.described |= described;
            let wait = next_call(called, known.failures, &mut rng());
            known.describe_at = Instant::now() + wait;
        });
        drop(describing);
    }

    /// Returns the shape of a stream that the service has described.
    fn described(&self, stream: &str) -> Option<Shape> {
        let known = self.known.lock().expect("nothing panics with this lock");
        let known = known.get(stream).filter(|known| known.described)?;
        known.shape
    }

    fn change(&self, stream: &str, act: impl FnOnce(&mut Stream)) {
        let mut known = self.known.lock().expect("nothing panics with this lock");
        if let Some(known) = known.get_mut(stream) {
            act(known);
            known.changed.send_replace(());
        }
    }

    /// Logs why a stream could not be described. Returns the shape to use meanwhile; `None` to wait for the next attempt.
    fn not_described(&self, stream: &str, fault: Fault) -> (Called, Option<Shape>) {
        if fault.class == Class::Credentials {
            self.credentials.refused();
        }
        let temporary = matches!(
            fault.class,
            Class::Throttle | Class::Transient | Class::Credentials
        );
        let waits = self.compressing && temporary;
        let denied = fault.class == Class::Configuration && fault.code.contains("AccessDenied");
        let line = if self.described(stream).is_some() {
            format!(
                "delivery stream '{stream}' could not be described again: {fault}; using its last description meanwhile"
            )
        } else if denied {
            format!(
                "not allowed to describe delivery stream '{stream}' ({fault}): each log line is sent as a record of its \
                 own, and billed as at least 5 KB. Allow firehose:DescribeDeliveryStream, or set aggregation on if \
                 the stream delivers to S3"
            )
        } else {
            let meanwhile = match waits {
                true => {
                    "data is held back meanwhile, since whether to compress it depends on the stream's destination"
                }
                false => "not aggregating meanwhile",
            };
            format!("delivery stream '{stream}' could not be described: {fault}; {meanwhile}")
        };
        self.log
            .trouble_with(Level::Warn, "describe", stream, &line);
        let called = match fault.class {
            _ if denied => Called::Denied,
            Class::Throttle => Called::Throttled,
            _ => Called::Failed,
        };
        (called, (!waits).then(|| stream_shape(1, false)))
    }

    fn log_shape(&self, stream: &str, shape: Shape, what: &str) {
        let lines = match shape.limits.record_lines {
            1 => "one line per record".to_owned(),
            u32::MAX => "as many lines per record as fit".to_owned(),
            lines => format!("at most {lines} lines per record"),
        };
        self.log.write(
            Level::Info,
            &format!("delivery stream '{stream}' delivers to {what}: {lines}"),
        );
        if self.compressing && !shape.compression {
            self.log.write(
                Level::Error,
                &format!(
                    "compression is set, but delivery stream '{stream}' delivers to {what}, which cannot read \
                     compressed records: they are sent uncompressed. Remove compression, or set aggregation on to \
                     send them compressed anyway"
                ),
            );
        }
    }
}

fn rng() -> StdRng {
    StdRng::from_os_rng()
}

/// Waits until this process may make the next call that describes a stream, and records that it does.
async fn wait_for_start() {
    let _turn = TURN.acquire().await.expect("it is never closed");
    loop {
        let now = Instant::now();
        let at = {
            let mut starts = STARTS.lock().expect("nothing panics with this lock");
            let at = Instant::from_std(starts.next(now.into_std(), &mut rng()));
            if at <= now {
                starts.started(now.into_std());
                return;
            }
            at
        };
        sleep_until(at).await;
    }
}

impl Sink for FirehoseSink {
    fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(async move {
            match self.aggregation {
                Aggregation::On => stream_shape(u32::MAX, true),
                Aggregation::Off => stream_shape(1, true),
                Aggregation::Auto => self.streams.shape(target).await,
            }
        })
    }

    fn longest_line(&self) -> usize {
        MAX_RECORD_BYTES
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let count = batch.records.len();
            let stream = batch.target.to_string();
            let (text, hash) = BodyText::new(batch);
            let answer = self
                .client
                .put_record_batch()
                .delivery_stream_name(stream)
                .set_records(Some(Vec::new()))
                .customize()
                .interceptor(PreparedBody { text, hash })
                .send()
                .await;
            let (answer, request_id) = match answer {
                Ok(output) => {
                    let id = output.request_id().map(code_line);
                    (entries(&output), id)
                }
                Err(error) => answer_of(error),
            };
            let outcomes = outcomes(answer, request_id, count);
            if let Some(Outcome::Retry(fault)) = outcomes.first()
                && fault.class == Class::Credentials
            {
                self.credentials.refused();
            }
            outcomes
        })
    }

    fn credentials_expire(&self) -> Option<SystemTime> {
        self.credentials.expire()
    }
}

/// An interceptor that replaces the SDK's body.
#[derive(Debug)]
struct PreparedBody {
    text: BodyText,
    /// Its SHA-256 in hexadecimal.
    hash: String,
}

impl Intercept for PreparedBody {
    fn name(&self) -> &'static str {
        "ferry_body"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        request
            .headers_mut()
            .insert("content-length", self.text.len().to_string());
        *request.body_mut() = SdkBody::from_body_1_x(self.text.clone());
        let mut signing = config
            .load::<SigV4OperationSigningConfig>()
            .cloned()
            .ok_or("the SDK has no signing configuration for this request")?;
        let hash = SignableBody::Precomputed(self.hash.clone());
        signing.signing_options.payload_override = Some(hash);
        config.interceptor_state().store_put(signing);
        Ok(())
    }
}

fn stream_shape(record_lines: u32, compression: bool) -> Shape {
    Shape {
        limits: Limits {
            record_bytes: MAX_RECORD_BYTES,
            record_lines,
            joins: true,
            batch_records: MAX_BATCH_RECORDS,
            batch_bytes: MAX_BATCH_BYTES,
        },
        piece_bytes: PIECE_BYTES,
        compression,
    }
}

/// Returns the shape of requests to a stream by its destination, and the destination's name.
pub(crate) fn shape_of(destination: &DestinationDescription) -> (Shape, &'static str) {
    if let Some(s3) = destination.extended_s3_destination_description() {
        let processors: &[_] = s3
            .processing_configuration()
            .filter(|processing| processing.enabled() == Some(true))
            .map_or(&[], |processing| processing.processors());
        let has = |kind: ProcessorType| {
            processors
                .iter()
                .any(|processor| *processor.r#type() == kind)
        };
        let on = |enabled: Option<bool>| enabled == Some(true);
        if has(ProcessorType::Lambda) {
            return (stream_shape(1, false), "a Lambda function");
        }
        if has(ProcessorType::RecordDeAggregation)
            || s3
                .dynamic_partitioning_configuration()
                .is_some_and(|d| on(d.enabled()))
        {
            return (
                stream_shape(MAX_DEAGGREGATED_LINES, false),
                "S3 with dynamic partitioning",
            );
        }
        if s3
            .data_format_conversion_configuration()
            .is_some_and(|d| on(d.enabled()))
        {
            return (stream_shape(u32::MAX, false), "S3 with format conversion");
        }
        return (stream_shape(u32::MAX, true), "S3");
    }
    if destination.redshift_destination_description().is_some() {
        return (stream_shape(u32::MAX, false), "Redshift");
    }
    (
        stream_shape(1, false),
        "a destination that requires one document per record",
    )
}

/// The result of a call, without the SDK's types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Status 200, with the result of each record.
    Entries(Vec<Entry>),
    /// An error response for the whole call.
    Refused {
        status: u16,
        code: String,
        message: String,
    },
    /// The request certainly did not reach the service.
    NotSent {
        class: Class,
        code: &'static str,
        message: String,
    },
    /// The request may have reached the service, but there is no valid response.
    Lost { code: &'static str, message: String },
}

/// The result of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A record id, which is the only acknowledgement.
    Acknowledged,
    /// An error: the record was not written.
    Failed { code: String, message: String },
    /// Neither an id nor an error, or both.
    Unclear,
}

fn entries(output: &PutRecordBatchOutput) -> Answer {
    let entries = output.request_responses().iter().map(|entry| {
        let present = |text: Option<&str>| text.is_some_and(|text| !text.trim().is_empty());
        match (present(entry.record_id()), entry.error_code()) {
            (true, None) => Entry::Acknowledged,
            (false, Some(code)) if present(Some(code)) => Entry::Failed {
                code: code.to_owned(),
                message: entry.error_message().unwrap_or_default().to_owned(),
            },
            _ => Entry::Unclear,
        }
    });
    Answer::Entries(entries.collect())
}

pub(crate) fn answer_of<E>(error: SdkError<E, HttpResponse>) -> (Answer, Option<String>)
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    let request_id = error.request_id().map(code_line);
    let answer = match &error {
        SdkError::ServiceError(refused) => Answer::Refused {
            status: refused.raw().status().as_u16(),
            code: refused.err().code().unwrap_or("Unknown").to_owned(),
            message: refused.err().message().unwrap_or("no message").to_owned(),
        },
        SdkError::ResponseError(response) if response.raw().status().as_u16() >= 300 => {
            Answer::Refused {
                status: response.raw().status().as_u16(),
                code: "Unknown".to_owned(),
                message: "the response is not the service's; is there a proxy in between?"
                    .to_owned(),
            }
        }
        SdkError::ResponseError(_) => Answer::Lost {
            code: "incomplete",
            message: causes(&error),
        },
        _ => unanswered(&error),
    };
    (answer, request_id)
}

/// Classifies an error without a response by whether the request may have been received.
fn unanswered(error: &(dyn StdError + 'static)) -> Answer {
    let message = causes(error);
    let (class, code) = if http::causes(error).any(|cause| cause.is::<CredentialsError>()) {
        (Class::Credentials, "credentials")
    } else if http::is_out_of_descriptors(error) {
        (Class::Transient, OWN_TROUBLE)
    } else if http::was_not_sent(error) {
        (Class::Transient, "connect")
    } else {
        let code = "no_answer";
        return Answer::Lost { code, message };
    };
    Answer::NotSent {
        class,
        code,
        message,
    }
}

/// The errors that name a record: a code, and the text before and after the record's number in the path of the fault.
/// Only these reject a record; all other responses, known or unknown, concern the stream or the connection, and hold
/// the record.
///
/// <https://docs.aws.amazon.com/firehose/latest/APIReference/CommonErrors.html>, and the form of the constraints' names
/// in <https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html>
const NAMES_A_RECORD: &[(&str, &str, &str)] =
    &[("ValidationException", "records.", ".member.data")];

/// Whether an error concerns records of the call, and nothing else.
fn names_a_record(status: u16, code: &str, message: &str) -> bool {
    let mut known = NAMES_A_RECORD.iter().filter(|(known, _, _)| *known == code);
    // A message lists all faults with their paths: "Value '...' at 'records.1.member.data' failed ...".
    let mut places = message.split("' at '").skip(1).peekable();
    status == 400
        && places.peek().is_some()
        && known.any(|(_, before, after)| {
            places.clone().all(|place| {
                let number = place
                    .split('\'')
                    .next()
                    .and_then(|place| place.strip_prefix(before)?.strip_suffix(after));
                number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            })
        })
}

/// Returns the class of an error, and whether the service may have written records nevertheless.
fn classify(status: u16, code: &str, message: &str) -> (Class, bool) {
    let has = |words: &[&str]| words.iter().any(|word| code.contains(word));
    if names_a_record(status, code, message) {
        return (Class::Record, false);
    }
    if message.contains("exceeds 4 MB limit") || status == 413 {
        return (Class::TooLarge, false);
    }
    if has(&[
        "ServiceUnavailable",
        "Throttling",
        "LimitExceeded",
        "TooManyRequests",
        "SlowDown",
    ]) || status == 429
    {
        return (Class::Throttle, false);
    }
    if has(&[
        "ExpiredToken",
        "UnrecognizedClient",
        "InvalidSignature",
        "SignatureDoesNotMatch",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "InvalidClientTokenId",
        "IncompleteSignature",
        "MissingAuthentication",
    ]) {
        return (Class::Credentials, false);
    }
    if status >= 500
        || status == 408
        || has(&["InternalFailure", "InternalServer", "RequestAborted"])
    {
        return (Class::Transient, true);
    }
    match status {
        300..500 => (Class::Configuration, false),
        _ => (Class::Transient, true),
    }
}

const ONE_IS_TOO_LARGE: &str =
    "a request with one record is within the service's limits: raise the proxy's limit to 6 MB";

/// Returns the outcome of each record of a call.
fn outcomes(answer: Answer, request_id: Option<String>, count: usize) -> Vec<Outcome> {
    let Answer::Entries(entries) = answer else {
        let written = match &answer {
            Answer::Refused {
                status,
                code,
                message,
            } => classify(*status, code, message).1,
            Answer::NotSent { .. } => false,
            _ => true,
        };
        let fault = Arc::new(Fault {
            request_id,
            ..fault(answer)
        });
        let outcome = match fault.class {
            // A single record cannot be isolated any further.
            Class::Record if count == 1 => Outcome::Rejected(fault),
            // A request cannot be smaller than one record, whose size the service allows.
            Class::TooLarge if count == 1 => Outcome::Retry(Arc::new(Fault {
                class: Class::Configuration,
                message: format!("{}; {ONE_IS_TOO_LARGE}", fault.message),
                ..Fault::clone(&fault)
            })),
            _ if written => Outcome::Ambiguous(fault),
            _ => Outcome::Retry(fault),
        };
        return vec![outcome; count];
    };
    if entries.len() != count {
        let fault = Arc::new(Fault {
            class: Class::Transient,
            code: "incomplete".to_owned(),
            message: format!("{} results for {count} records", entries.len()),
            request_id,
        });
        return vec![Outcome::Ambiguous(fault); count];
    }
    entries
        .into_iter()
        .map(|entry| {
            let fault = |class, code: &str, message: &str| {
                Arc::new(Fault {
                    class,
                    code: code_line(code),
                    message: message_line(message),
                    request_id: request_id.clone(),
                })
            };
            match entry {
                Entry::Acknowledged => Outcome::Delivered,
                Entry::Failed { code, message } => {
                    // An error entry means that the record was not written.
                    let class = match classify(200, &code, &message).0 {
                        Class::Throttle => Class::Throttle,
                        _ => Class::Transient,
                    };
                    Outcome::Retry(fault(class, &code, &message))
                }
                Entry::Unclear => {
                    let message = "the response has neither an id nor an error for the record";
                    Outcome::Ambiguous(fault(Class::Transient, "NoRecordId", message))
                }
            }
        })
        .collect()
}

pub(crate) fn fault(answer: Answer) -> Fault {
    let (class, code, message) = match answer {
        Answer::Refused {
            status,
            code,
            message,
        } => {
            let class = classify(status, &code, &message).0;
            (class, format!("{code} (HTTP {status})"), message)
        }
        Answer::NotSent {
            class,
            code,
            message,
        } => (class, code.to_owned(), message),
        Answer::Lost { code, message } => (Class::Transient, code.to_owned(), message),
        Answer::Entries(_) => (Class::Transient, "incomplete".to_owned(), String::new()),
    };
    Fault {
        class,
        code: code_line(&code),
        message: message_line(&message),
        request_id: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_credential_types::Credentials;
    use aws_sdk_firehose::types::{
        AmazonopensearchserviceDestinationDescription, BufferingHints, CompressionFormat,
        DataFormatConversionConfiguration, DynamicPartitioningConfiguration,
        EncryptionConfiguration, ExtendedS3DestinationDescription, ProcessingConfiguration,
        Processor,
    };
    use aws_sigv4::http_request::{SignableRequest, SigningSettings, sign};
    use aws_sigv4::sign::v4;
    use bytes::Bytes;
    use proptest::prelude::*;

    use crate::sink::blob::loopback::{
        IN_BUFFERS, Loopback, Reply, answer, endless, with_environment,
    };
    use futures::FutureExt as _;

    fn refused(status: u16, code: &str, message: &str) -> Answer {
        Answer::Refused {
            status,
            code: code.into(),
            message: message.into(),
        }
    }

    struct Silent;

    impl crate::log::Output for Silent {
        fn enabled(&self, _level: Level) -> bool {
            false
        }

        fn write(&self, _level: Level, _line: &str) {}
    }

    /// No emulator verifies signatures, as the service does.
    #[tokio::test]
    async fn the_signature_is_of_the_body_that_is_sent() {
        const NAME: &str = "sink::firehose::tests::the_signature_is_of_the_body_that_is_sent";
        let environment = [
            ("AWS_ACCESS_KEY_ID", "AKID"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        if !with_environment(NAME, &environment) {
            return;
        }
        let server = Loopback::start(vec![answer(200, &[], "{}")]);
        let region = Some("eu-west-1".to_owned());
        let aws = crate::config::Aws {
            region,
            ..Default::default()
        };
        let loaded = crate::sink::aws::load(&aws, None).await.unwrap();
        let (log, url) = (Arc::new(Log::new(Box::new(Silent), "ferry")), server.url());
        let sink = FirehoseSink::new(&loaded, Some(&url), Aggregation::On, false, log);
        sink.send(Batch {
            target: "app".into(),
            tag: (*b"t").into(),
            records: vec![Bytes::from_static(b"{\"a\":1}\n").into()],
            token: None,
        })
        .await;

        let request = server.requests().remove(0);
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            body,
            "{\"DeliveryStreamName\":\"app\",\"Records\":[{\"Data\":\"eyJhIjoxfQo=\"}]}"
        );
        let headers: HashMap<&str, &str> =
            head.lines().filter_map(|l| l.split_once(": ")).collect();
        let authorization = headers["authorization"];
        let part = |name: &str| {
            let at = authorization.find(name).unwrap() + name.len() + 1;
            authorization[at..].split(", ").next().unwrap()
        };
        let signed = part("SignedHeaders")
            .split(';')
            .filter(|name| !["x-amz-date", "host"].contains(name))
            .map(|name| (name, headers[name]));
        let at = chrono::NaiveDateTime::parse_from_str(headers["x-amz-date"], "%Y%m%dT%H%M%SZ");
        let credentials = Credentials::new("AKID", "secret", None, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&credentials)
            .region("eu-west-1")
            .name("firehose")
            .time(at.unwrap().and_utc().into())
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let request = SignableRequest::new(
            "POST",
            format!("{url}/"),
            signed,
            SignableBody::Bytes(body.as_bytes()),
        );
        let expected = sign(request.unwrap(), &params).unwrap();
        assert_eq!(part("Signature"), expected.signature());
    }

    const S3: &str = r#"{"DeliveryStreamDescription": {"DeliveryStreamName": "app", "DeliveryStreamARN": "a",
        "DeliveryStreamStatus": "ACTIVE", "DeliveryStreamType": "DirectPut", "VersionId": "1",
        "HasMoreDestinations": false, "Destinations": [{"DestinationId": "d", "ExtendedS3DestinationDescription":
        {"RoleARN": "r", "BucketARN": "b", "BufferingHints": {}, "CompressionFormat": "UNCOMPRESSED",
        "EncryptionConfiguration": {}}}]}}"#;

    /// Runs a test again in a process with credentials.
    fn with_credentials(name: &str) -> bool {
        let environment = [
            ("AWS_ACCESS_KEY_ID", "AKID"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        with_environment(&format!("sink::firehose::tests::{name}"), &environment)
    }

    async fn asking(server: &Loopback, compressing: bool) -> Arc<FirehoseSink> {
        let aws = crate::config::Aws {
            region: Some("eu-west-1".to_owned()),
            ..Default::default()
        };
        let loaded = crate::sink::aws::load(&aws, None).await.unwrap();
        let (log, url) = (Arc::new(Log::new(Box::new(Silent), "ferry")), server.url());
        let (auto, url) = (Aggregation::Auto, Some(url.as_str()));
        Arc::new(FirehoseSink::new(&loaded, url, auto, compressing, log))
    }

    async fn is_asked(server: &Loopback) {
        while server.requests().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_stream_is_described_once_even_if_a_caller_stops_waiting() {
        if !with_credentials("a_stream_is_described_once_even_if_a_caller_stops_waiting") {
            return;
        }
        let (go, told) = std::sync::mpsc::channel();
        let server = Loopback::start(vec![Reply::Late(told, Box::new(answer(200, &[], S3)))]);
        let sink = asking(&server, true).await;
        assert!(sink.shape("app").now_or_never().is_none());
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let sink = Arc::clone(&sink);
                tokio::spawn(async move { sink.shape("app").await })
            })
            .collect();
        is_asked(&server).await;
        go.send(()).unwrap();
        for shape in waiting {
            assert_eq!(shape.await.unwrap(), stream_shape(u32::MAX, true));
        }
        assert!(sink.shape("app").now_or_never().is_some());
        assert_eq!(server.requests().len(), 0, "there was no other");
    }

    /// Requests use the cautious shape meanwhile, and do not wait for the response.
    #[tokio::test]
    async fn a_cautious_shape_is_used_until_the_stream_is_described() {
        if !with_credentials("a_cautious_shape_is_used_until_the_stream_is_described") {
            return;
        }
        let (go, told) = std::sync::mpsc::channel();
        let script = vec![
            answer(503, &[], "{}"),
            Reply::Late(told, Box::new(answer(200, &[], S3))),
        ];
        let server = Loopback::start(script);
        let sink = asking(&server, false).await;
        assert_eq!(sink.shape("app").await, stream_shape(1, false));
        let now = || sink.shape("app").now_or_never();
        is_asked(&server).await;
        while server.requests().is_empty() {
            assert_eq!(now(), Some(stream_shape(1, false)));
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        while now() != Some(stream_shape(u32::MAX, true)) {
            assert!(now().is_some());
            tokio::task::yield_now().await;
        }
    }

    /// A stream may get another destination while its senders run.
    #[tokio::test]
    async fn a_description_is_asked_for_again_and_used_until_there_is_another() {
        if !with_credentials("a_description_is_asked_for_again_and_used_until_there_is_another") {
            return;
        }
        let other = S3.replace("ExtendedS3DestinationDescription", "Unknown");
        let script = vec![
            answer(200, &[], S3),
            answer(503, &[], "{}"),
            answer(200, &[], &other),
        ];
        let server = Loopback::start(script);
        let sink = asking(&server, true).await;
        let (old, new) = (stream_shape(u32::MAX, true), stream_shape(1, false));
        assert_eq!(sink.shape("app").await, old);
        let hour = Duration::from_secs(3_600);
        let due = sink.streams.known.lock().unwrap()["app"].describe_at - Instant::now();
        assert!(
            hour.mul_f64(0.79) < due && due < hour.mul_f64(1.21),
            "{due:?}"
        );

        sink.streams
            .change("app", |known| known.describe_at = Instant::now());
        loop {
            let shape = sink.shape("app").now_or_never();
            if shape == Some(new) {
                break;
            }
            assert_eq!(shape, Some(old), "nothing waits, also after a failure");
            tokio::task::yield_now().await;
        }
        assert_eq!(server.requests().len(), 3);
    }

    #[tokio::test]
    async fn a_stream_that_may_not_be_described_is_asked_about_again_within_minutes() {
        if !with_credentials(
            "a_stream_that_may_not_be_described_is_asked_about_again_within_minutes",
        ) {
            return;
        }
        let denied = r#"{"__type": "AccessDeniedException", "message": "no"}"#;
        let server = Loopback::start(vec![answer(400, &[], denied), answer(200, &[], S3)]);
        let sink = asking(&server, true).await;
        assert_eq!(sink.shape("app").await, stream_shape(1, false));
        let due = sink.streams.known.lock().unwrap()["app"].describe_at - Instant::now();
        assert!(due < Duration::from_secs(301), "{due:?}");
        sink.streams
            .change("app", |known| known.describe_at = Instant::now());
        while sink.shape("app").await != stream_shape(u32::MAX, true) {
            tokio::task::yield_now().await;
        }
    }

    /// Sends two records to a service at `url`, with the environment's credentials.
    async fn send_to(url: &str) -> Vec<Outcome> {
        let aws = crate::config::Aws {
            region: Some("eu-west-1".to_owned()),
            ..Default::default()
        };
        let loaded = crate::sink::aws::load(&aws, None).await.unwrap();
        let log = Arc::new(Log::new(Box::new(Silent), "ferry"));
        let sink = FirehoseSink::new(&loaded, Some(url), Aggregation::On, false, log);
        let records = vec![Bytes::from_static(b"{\"a\":1}\n").into(); 2];
        sink.send(Batch {
            target: "app".into(),
            tag: (*b"t").into(),
            records,
            token: None,
        })
        .await
    }

    #[tokio::test]
    async fn the_service_may_have_an_ipv6_address() {
        let body = r#"{"FailedPutCount":0,"RequestResponses":[{"RecordId":"1"},{"RecordId":"2"}]}"#;
        let Some(server) = Loopback::start_v6(vec![answer(200, &[], body)]) else {
            return;
        };
        if !with_credentials("the_service_may_have_an_ipv6_address") {
            return;
        }
        let outcomes = send_to(&server.url()).await;
        assert_eq!(outcomes, [Outcome::Delivered, Outcome::Delivered]);
    }

    /// Fluent Bit reads no other variable, and its documentation promises this.
    #[tokio::test]
    async fn https_goes_through_http_proxy_if_no_other_is_named() {
        const NAME: &str =
            "sink::firehose::tests::https_goes_through_http_proxy_if_no_other_is_named";
        let proxy = Loopback::start(vec![Reply::Cut]);
        let url = proxy.url();
        let environment = [
            ("AWS_ACCESS_KEY_ID", "AKID"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("HTTP_PROXY", url.as_str()),
        ];
        if !with_environment(NAME, &environment) {
            let request = proxy.requests().remove(0);
            let expected = "CONNECT firehose.invalid:443 HTTP/1.1";
            assert!(request.starts_with(expected), "{request}");
            return;
        }
        let outcomes = send_to("https://firehose.invalid").await;
        // The tunnel was not opened, so nothing was sent.
        assert!(matches!(outcomes[0], Outcome::Retry(_)), "{outcomes:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn an_endless_response_is_abandoned_and_acknowledges_nothing() {
        if !with_credentials("an_endless_response_is_abandoned_and_acknowledges_nothing") {
            return;
        }
        let begin = r#"{"FailedPutCount":0,"RequestResponses":[{"RecordId":"1"},{"RecordId":"2"}],"More":""#;
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000);
        let stories = [
            (endless(200, &[], begin), "incomplete: "),
            (endless(500, &[], ""), "Unknown (HTTP 500): "),
            (Reply::Endless(String::new(), interim), "no_answer: "),
        ];
        for (reply, words) in stories {
            let server = Loopback::start(vec![reply]);
            let outcomes = send_to(&server.url()).await;
            let [Outcome::Ambiguous(one), Outcome::Ambiguous(_)] = &outcomes[..] else {
                panic!("{words}: {outcomes:?}");
            };
            assert!(one.to_string().starts_with(words), "{one}");
            let sent = server.sent();
            assert!(
                sent > 0 && sent < IN_BUFFERS,
                "{words}: {sent} bytes were read"
            );
        }
    }

    /// The response for 500 records, each with an error and a long message.
    #[tokio::test]
    async fn the_longest_possible_response_is_read() {
        if !with_credentials("the_longest_possible_response_is_read") {
            return;
        }
        let words = "w".repeat(500_000);
        let entry = serde_json::json!({"ErrorCode": "InternalFailure", "ErrorMessage": words});
        let body = serde_json::json!({"FailedPutCount": 2, "RequestResponses": [entry, entry]});
        let server = Loopback::start(vec![answer(200, &[], &body.to_string())]);
        let outcomes = send_to(&server.url()).await;
        assert!(
            matches!(&outcomes[..], [Outcome::Retry(fault), _] if fault.code == "InternalFailure"),
            "{outcomes:?}"
        );
    }

    #[test]
    fn every_response_has_one_meaning() {
        let lost = Answer::Lost {
            code: "no_answer",
            message: "reset".into(),
        };
        let not_sent = Answer::NotSent {
            class: Class::Transient,
            code: "connect",
            message: "refused".into(),
        };
        let cases = [
            (
                refused(400, "ThrottlingException", ""),
                "retry",
                Class::Throttle,
            ),
            (
                refused(400, "LimitExceededException", ""),
                "retry",
                Class::Throttle,
            ),
            (
                refused(503, "ServiceUnavailableException", ""),
                "retry",
                Class::Throttle,
            ),
            (refused(429, "Unknown", ""), "retry", Class::Throttle),
            (
                refused(500, "InternalFailure", ""),
                "ambiguous",
                Class::Transient,
            ),
            (refused(502, "Unknown", ""), "ambiguous", Class::Transient),
            (refused(504, "Unknown", ""), "ambiguous", Class::Transient),
            (
                refused(400, "ExpiredTokenException", ""),
                "retry",
                Class::Credentials,
            ),
            (
                refused(400, "UnrecognizedClientException", ""),
                "retry",
                Class::Credentials,
            ),
            (
                refused(403, "InvalidSignatureException", ""),
                "retry",
                Class::Credentials,
            ),
            (
                refused(400, "RequestExpired", ""),
                "retry",
                Class::Credentials,
            ),
            (
                refused(400, "ResourceNotFoundException", ""),
                "retry",
                Class::Configuration,
            ),
            (
                refused(400, "AccessDeniedException", ""),
                "retry",
                Class::Configuration,
            ),
            (
                refused(400, "InvalidKMSResourceException", ""),
                "retry",
                Class::Configuration,
            ),
            (refused(403, "Unknown", ""), "retry", Class::Configuration),
            (
                refused(400, "ValidationException", ""),
                "retry",
                Class::Configuration,
            ),
            (
                refused(400, "SerializationException", ""),
                "retry",
                Class::Configuration,
            ),
            (
                refused(400, "RequestAbortedException", ""),
                "ambiguous",
                Class::Transient,
            ),
            (
                refused(
                    400,
                    "InvalidArgumentException",
                    "Records size exceeds 4 MB limit",
                ),
                "retry",
                Class::TooLarge,
            ),
            (refused(413, "Unknown", ""), "retry", Class::TooLarge),
            (lost, "ambiguous", Class::Transient),
            (not_sent, "retry", Class::Transient),
        ];
        for (answer, expected, class) in cases {
            let outcomes = outcomes(answer.clone(), Some("id".into()), 2);
            assert_eq!(outcomes.len(), 2);
            let (kind, fault) = match &outcomes[0] {
                Outcome::Retry(fault) => ("retry", fault),
                Outcome::Ambiguous(fault) => ("ambiguous", fault),
                other => panic!("{answer:?}: {other:?}"),
            };
            assert_eq!((kind, fault.class), (expected, class), "{answer:?}");
            assert_eq!(fault.request_id.as_deref(), Some("id"));
        }
    }

    /// The service's message for a record that is too large.
    const TOO_LARGE: &str = "1 validation error detected: Value 'java.nio.HeapByteBuffer[pos=0 lim=1024001 \
                             cap=1024001]' at 'records.1.member.data' failed to satisfy constraint: Member must \
                             have length less than or equal to 1024000";

    #[test]
    fn only_a_response_that_names_the_record_rejects_it() {
        let named = refused(400, "ValidationException", TOO_LARGE);
        assert!(matches!(
            outcomes(named.clone(), None, 1)[..],
            [Outcome::Rejected(_)]
        ));
        // Among others it has to be isolated first.
        let among = outcomes(named, None, 2);
        assert!(
            matches!(&among[0], Outcome::Retry(fault) if fault.class == Class::Record),
            "{among:?}"
        );

        let stream = "Value 'a b' at 'deliveryStreamName' failed to satisfy constraint: Member must satisfy regular \
                      expression pattern: [a-zA-Z0-9_.-]+";
        let both = format!("2 validation errors detected: {stream}; {TOO_LARGE}");
        let held = [
            (
                400,
                "InvalidArgumentException",
                "This operation is not permitted on KinesisStreamAsSource delivery stream type.",
            ),
            (
                400,
                "InvalidArgumentException",
                "Records size exceeds 4 MB limit",
            ),
            (400, "ValidationException", ""),
            (400, "ValidationException", stream),
            (400, "ValidationException", &both),
            (400, "ValidationError", TOO_LARGE),
            (400, "SerializationException", "at 'records.1.member.data'"),
            (400, "CodeOfTheFuture", TOO_LARGE),
            (413, "RequestEntityTooLargeException", ""),
            (400, "Unknown", ""),
            (411, "Unknown", ""),
            (413, "Unknown", ""),
            (414, "Unknown", ""),
            (422, "Unknown", ""),
            (302, "Unknown", ""),
        ];
        for (status, code, message) in held {
            let outcomes = outcomes(refused(status, code, message), None, 1);
            assert!(
                matches!(&outcomes[..], [Outcome::Retry(fault)] if fault.class == Class::Configuration),
                "{status} {code} {message}: {outcomes:?}"
            );
        }
    }

    proptest! {
        /// Of all responses of the service or a proxy, only a message about a record's data rejects the record.
        #[test]
        fn nothing_rejects_a_record_but_what_names_it(
            status in 100_u16..=999,
            code in prop_oneof!["[A-Za-z]{0,30}", Just("ValidationException".to_owned())],
            places in proptest::collection::vec(
                proptest::sample::select(vec![
                    "records.1.member.data", "records.500.member.data", "records", "records..member.data",
                    "records.x.member.data", "deliveryStreamName", "records.1.member", "",
                ]),
                0..4,
            ),
        ) {
            let named = places.iter().map(|place| format!("Value 'v' at '{place}' failed to satisfy constraint"));
            let message = format!("{} validation errors detected: {}", places.len(), named.collect::<Vec<_>>().join("; "));
            let outcomes = outcomes(refused(status, &code, &message), None, 1);
            let rejected = matches!(outcomes[..], [Outcome::Rejected(_)]);
            let own = places.iter().all(|place| place.starts_with("records.") && place.ends_with("0.member.data") || *place == "records.1.member.data");
            prop_assert_eq!(
                rejected,
                status == 400 && code == "ValidationException" && own && !places.is_empty(),
                "{} {} {}", status, code, message
            );
        }
    }

    #[test]
    fn a_partial_failure_concerns_only_the_records_that_failed() {
        let failed = |code: &str| Entry::Failed {
            code: code.to_owned(),
            message: "Slow down.".to_owned(),
        };
        let entries = vec![
            Entry::Acknowledged,
            failed("ServiceUnavailableException"),
            failed("InternalFailure"),
            Entry::Acknowledged,
        ];
        let outcomes = outcomes(Answer::Entries(entries), None, 4);
        let classes: Vec<Option<Class>> = outcomes
            .iter()
            .map(|outcome| match outcome {
                Outcome::Delivered => None,
                Outcome::Retry(fault) => Some(fault.class),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            classes,
            [None, Some(Class::Throttle), Some(Class::Transient), None]
        );
    }

    #[test]
    fn a_response_of_the_wrong_length_acknowledges_nothing() {
        let outcomes = outcomes(Answer::Entries(vec![Entry::Acknowledged]), None, 2);
        assert!(
            outcomes
                .iter()
                .all(|outcome| matches!(outcome, Outcome::Ambiguous(_)))
        );
    }

    #[test]
    fn nothing_but_an_id_acknowledges_a_record() {
        use aws_sdk_firehose::types::PutRecordBatchResponseEntry;
        let table = [
            (
                Some("49546986683135544286507457936321625675700192471156785154"),
                None,
                "delivered",
            ),
            (Some(""), None, "ambiguous NoRecordId"),
            (Some(" "), None, "ambiguous NoRecordId"),
            (None, None, "ambiguous NoRecordId"),
            (None, Some(""), "ambiguous NoRecordId"),
            (Some("1"), Some(""), "ambiguous NoRecordId"),
            (Some("1"), Some("InternalFailure"), "ambiguous NoRecordId"),
            (None, Some("InternalFailure"), "retry InternalFailure"),
            (Some(""), Some("InternalFailure"), "retry InternalFailure"),
        ];
        for (id, code, expected) in table {
            let entry = PutRecordBatchResponseEntry::builder()
                .set_record_id(id.map(str::to_owned))
                .set_error_code(code.map(str::to_owned))
                .build();
            let output = PutRecordBatchOutput::builder()
                .failed_put_count(0)
                .request_responses(entry)
                .build()
                .unwrap();
            let outcome = match &outcomes(entries(&output), None, 1)[..] {
                [Outcome::Delivered] => "delivered".to_owned(),
                [Outcome::Ambiguous(fault)] => format!("ambiguous {}", fault.code),
                [Outcome::Retry(fault)] => format!("retry {}", fault.code),
                other => panic!("{other:?}"),
            };
            assert_eq!(outcome, expected, "{id:?} {code:?}");
        }
    }

    fn s3() -> aws_sdk_firehose::types::builders::ExtendedS3DestinationDescriptionBuilder {
        ExtendedS3DestinationDescription::builder()
            .role_arn("r")
            .bucket_arn("b")
            .buffering_hints(BufferingHints::builder().build())
            .compression_format(CompressionFormat::Uncompressed)
            .encryption_configuration(EncryptionConfiguration::builder().build())
    }

    fn processed_by(kind: ProcessorType) -> ProcessingConfiguration {
        let processor = Processor::builder().r#type(kind).build().unwrap();
        ProcessingConfiguration::builder()
            .enabled(true)
            .processors(processor)
            .build()
    }

    #[test]
    fn a_stream_is_aggregated_as_its_destination_can_read() {
        let conversion = DataFormatConversionConfiguration::builder()
            .enabled(true)
            .build();
        let partitioning = DynamicPartitioningConfiguration::builder()
            .enabled(true)
            .build();
        let cases = [
            (s3(), (u32::MAX, true)),
            (
                s3().data_format_conversion_configuration(conversion.clone()),
                (u32::MAX, false),
            ),
            (
                s3().dynamic_partitioning_configuration(partitioning.clone()),
                (500, false),
            ),
            (
                s3().dynamic_partitioning_configuration(partitioning)
                    .data_format_conversion_configuration(conversion),
                (500, false),
            ),
            (
                s3().processing_configuration(processed_by(ProcessorType::RecordDeAggregation)),
                (500, false),
            ),
            (
                s3().processing_configuration(processed_by(ProcessorType::Lambda)),
                (1, false),
            ),
            (
                s3().processing_configuration(processed_by(ProcessorType::AppendDelimiterToRecord)),
                (u32::MAX, true),
            ),
        ];
        for (s3, expected) in cases {
            let destination = DestinationDescription::builder()
                .destination_id("d")
                .extended_s3_destination_description(s3.build().unwrap())
                .build()
                .unwrap();
            let shape = shape_of(&destination).0;
            assert_eq!(
                (shape.limits.record_lines, shape.compression),
                expected,
                "{destination:?}"
            );
        }
        let search = DestinationDescription::builder()
            .destination_id("d")
            .amazonopensearchservice_destination_description(
                AmazonopensearchserviceDestinationDescription::builder().build(),
            )
            .build()
            .unwrap();
        assert_eq!(shape_of(&search).0.limits.record_lines, 1);
    }
}
