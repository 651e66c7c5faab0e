//! The meaning of a store's response, or of its absence.
//!
//! `object_store` does not expose its request errors: status, error code and request id would have to be parsed from
//! its messages, and it maps every 409 to "already exists". So responses are interpreted in the one part that can be
//! replaced, the HTTP client, and passed through its errors as a [`Failure`].

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper::Method;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use object_store::path::Path;
use object_store::{ClientOptions, Error, HeaderMap, HeaderValue};

use super::codes::{Fate, Vendor, classify, classify_file, remedy};
use crate::config::Problem;
use crate::config::keys;
use crate::sink::http::{self, BodyTooLong, Proxies, TooManyInterim, causes};
use crate::sink::outcome::{
    Class, Fault, OWN_TROUBLE, OWN_TROUBLE_REMEDY, Outcome, code_line, message_line,
};
use crate::sink::tls;

const USER_AGENT: &str = concat!("ferry/", env!("CARGO_PKG_VERSION"));

/// A request that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The HTTP status of the response, or its equivalent for a file system's error.
    pub(super) status: Option<u16>,
    pub(super) fate: Fate,
    pub(super) fault: Fault,
}

impl Failure {
    pub(super) fn new(fate: Fate, class: Class, code: &str, message: impl Into<String>) -> Self {
        let message = message_line(&redact(&message.into()));
        Failure {
            status: None,
            fate,
            fault: Fault {
                class,
                code: code_line(code),
                message,
                request_id: None,
            },
        }
    }

    /// Whether the store reports that the name exists. Azure's 409 may also mean that the container is being deleted,
    /// S3's a race with another writer: only the object itself can tell.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self.status, Some(409 | 412))
    }

    /// Appends a note to the message.
    pub(super) fn note(mut self, note: impl fmt::Display) -> Self {
        let note = message_line(&redact(&note.to_string()));
        self.fault.message = format!("{}; {note}", self.fault.message);
        self
    }

    fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

impl StdError for Failure {}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        let fault = Arc::new(failure.fault);
        match failure.fate {
            Fate::Retry => Outcome::Retry(fault),
            Fate::Ambiguous => Outcome::Ambiguous(fault),
            Fate::Rejected => Outcome::Rejected(fault),
        }
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Failure::from(Error::Generic {
            store: "HTTP",
            source: Box::new(error),
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Some(failure) = causes(&error).find_map(|e| e.downcast_ref::<Failure>()) {
            return failure.clone();
        }
        let cause = causes(&error).last().unwrap_or(&error).to_string();
        match &error {
            Error::Unauthenticated { source, .. } => {
                let message = source.to_string();
                Failure::new(Fate::Retry, Class::Credentials, "credentials", message)
            }
            Error::AlreadyExists { .. } => {
                Failure::new(Fate::Retry, Class::Transient, "exists", cause).with_status(409)
            }
            Error::NotFound { .. } => {
                Failure::new(Fate::Retry, Class::Transient, "absent", cause).with_status(404)
            }
            Error::InvalidPath { .. } => {
                Failure::new(Fate::Rejected, Class::Record, "name", error.to_string())
            }
            _ => match causes(&error).find_map(|e| e.downcast_ref::<io::Error>()) {
                Some(io) => file_error(io),
                None => Failure::new(Fate::Ambiguous, Class::Transient, "unexpected", cause),
            },
        }
    }
}

/// The properties of a request that the meaning of a response depends on.
#[derive(Clone, Copy, Debug)]
struct RequestContext<'a> {
    vendor: Vendor,
    /// The name of the object that the request puts.
    put: Option<&'a str>,
    /// Whether responses have a body, without which S3's errors have no code.
    has_body: bool,
}

/// The object that a request puts: a request extension.
#[derive(Clone, Debug)]
pub(super) struct PutTarget(pub(super) Path);

/// Interprets a response that is not a success.
fn response_failure(
    request: RequestContext<'_>,
    status: u16,
    reason: &str,
    headers: &HeaderMap,
    body: &str,
) -> Failure {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let own_code = element(body, "Code")
        .or(header("x-ms-error-code"))
        .filter(|code| {
            code.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        });
    let code = own_code.map_or_else(|| format!("HTTP {status}"), str::to_owned);
    let (fate, class) = classify(request.vendor, request.put, status, &code);
    let message = error_message(body).unwrap_or(Cow::Borrowed(reason));
    let mut failure =
        Failure::new(fate, class, &code, first_sentence(&message)).with_status(status);

    // Only these details are useful and free of signatures: dates out of range, and a token's invalid claims.
    let detail = element(body, "AuthenticationErrorDetail").map(unescape);
    let safe = ["time frame", "date header", "validation failed"];
    if let Some(detail) = detail.filter(|detail| safe.iter().any(|part| detail.contains(part))) {
        failure = failure.note(detail);
    }
    if code == "RequestTimeTooSkewed" || failure.fault.message.contains("date header") {
        let time = header("date").unwrap_or("different");
        failure = failure.note(format_args!(
            "the service's time is {time}: set this machine's clock"
        ));
    }
    if class == Class::Configuration
        && let Some(remedy) = remedy(status, &code, own_code.is_some() || !request.has_body)
    {
        failure = failure.note(remedy);
    }
    if (300..400).contains(&status) {
        failure = match (header("x-amz-bucket-region"), header("location")) {
            (Some(region), _) => failure.note(format_args!(
                "the store is at another address (region {region}): check region and endpoint"
            )),
            (None, Some(location)) => failure.note(format_args!(
                "it redirects to '{location}', and redirects are not followed: check endpoint, and look for a proxy or \
                 gateway that requires a login"
            )),
            (None, None) => failure.note("it redirects: check endpoint and region"),
        };
    }
    failure.fault.request_id = [
        "x-ms-request-id",
        "x-amz-request-id",
        "x-guploader-uploadid",
    ]
    .into_iter()
    .find_map(header)
    .or(element(body, "RequestId"))
    .map(code_line);
    failure
}

/// Interprets the absence of a complete response from `host`.
pub(super) fn connection_failure(host: &str, error: &HttpError) -> Failure {
    let cause = causes(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default();
    if http::is_out_of_descriptors(error) {
        return Failure::new(Fate::Retry, Class::Transient, OWN_TROUBLE, cause)
            .note(OWN_TROUBLE_REMEDY);
    }
    let is = |kind: fn(&(dyn StdError + 'static)) -> bool| causes(error).any(kind);
    if is(|e| matches!(e.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))) {
        let failure = Failure::new(Fate::Retry, Class::Configuration, "tls", cause);
        return failure.note(format_args!(
            "{host} is not trusted: a private CA goes into tls_ca_file"
        ));
    }
    let (fate, code, message) = if http::was_not_sent(error) {
        let message = format!("no connection to {host}: {cause}");
        (Fate::Retry, "connect", message)
    } else if is(|e| e.is::<BodyTooLong>() || e.is::<TooManyInterim>()) {
        let message = format!("the response of {host} is too long: {cause}");
        (Fate::Ambiguous, "too_long", message)
    } else {
        let message = format!("the connection to {host} was lost before the response: {cause}");
        (Fate::Ambiguous, "interrupted", message)
    };
    Failure::new(fate, Class::Transient, code, message)
}

fn file_error(error: &io::Error) -> Failure {
    let (fate, class) = classify_file(error.kind());
    if http::is_out_of_descriptors(error) {
        return Failure::new(fate, class, OWN_TROUBLE, error.to_string()).note(OWN_TROUBLE_REMEDY);
    }
    Failure::new(fate, class, "file", error.to_string())
}

/// Returns the message of an error's body: the store's message, the title of a page, or plain text.
fn error_message(body: &str) -> Option<Cow<'_, str>> {
    let element = |name| element(body, name).map(unescape);
    let text = body.trim_start_matches('\u{feff}').trim();
    let plain = !text.is_empty() && !text.starts_with(['<', '{', '[']);
    element("Message")
        .or_else(|| element("title"))
        .or(plain.then_some(Cow::Borrowed(text)))
}

/// Returns the text of the first XML element of this name without attributes.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

fn unescape(text: &str) -> Cow<'_, str> {
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    match text.contains('&') {
        true => entities
            .iter()
            .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
            .into(),
        false => text.into(),
    }
}

pub(super) fn first_sentence(text: &str) -> &str {
    let line = text.trim().lines().next().unwrap_or_default();
    line.split_once(". ")
        .map_or(line, |(sentence, _)| sentence)
        .trim_end_matches('.')
}

/// Replaces secrets in signed URLs and connection strings with stars.
fn redact(text: &str) -> Cow<'_, str> {
    const MARKS: [&str; 5] = [
        "sig=",
        "sig%3d",
        "signature=",
        "accountkey=",
        "security-token=",
    ];
    let lower = text.to_ascii_lowercase();
    let next_secret = |from: usize| {
        let starts = MARKS
            .iter()
            .filter_map(|mark| Some(from + lower[from..].find(mark)? + mark.len()));
        starts.min()
    };
    let mut clean = String::new();
    let mut done = 0;
    while let Some(start) = next_secret(done) {
        clean.push_str(&text[done..start]);
        clean.push_str("***");
        let length = text[start..].find(|c: char| "&;'\"<>".contains(c) || c.is_whitespace());
        done = length.map_or(text.len(), |length| start + length);
    }
    match done {
        0 => text.into(),
        _ => (clean + &text[done..]).into(),
    }
}

/// An HTTP client that turns everything but a success into a [`Failure`].
#[derive(Debug)]
pub(super) struct FailureReader {
    vendor: Vendor,
    client: HttpClient,
}

impl HttpService for FailureReader {
    fn call<'s, 'f>(
        &'s self,
        mut request: HttpRequest,
    ) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let host = request
                .uri()
                .authority()
                .map(ToString::to_string)
                .unwrap_or_default();
            let head = request.method() == Method::HEAD;
            let reads = head || request.method() == Method::GET;
            if reads {
                // Otherwise Google Cloud Storage decompresses objects with a content encoding, and omits their length.
                request
                    .headers_mut()
                    .insert("accept-encoding", HeaderValue::from_static("gzip"));
            }
            let put = request.extensions().get::<PutTarget>().cloned();
            // object_store never retries errors of this kind.
            let fail = |failure| HttpError::new(HttpErrorKind::Unknown, failure);
            let response = self.client.execute(request).await;
            let response = response.map_err(|error| fail(connection_failure(&host, &error)))?;
            if response.status().is_success() && reads {
                let broken = move |error| fail(connection_failure(&host, &error));
                return Ok(response.map(|body| HttpResponseBody::new(body.map_err(broken))));
            }
            let (mut parts, body) = response.into_parts();
            let body = body.bytes().await;
            if parts.status.is_success() {
                // Some stores return none, and object_store takes that for a failure. Nothing here uses it.
                parts
                    .headers
                    .entry("etag")
                    .or_insert(HeaderValue::from_static("\"\""));
                // A put has succeeded only when its response is complete.
                let body = body.map_err(|error| fail(connection_failure(&host, &error)))?;
                return Ok(HttpResponse::from_parts(parts, body.into()));
            }
            // For an error the status suffices.
            let body = body.unwrap_or_default();
            let reason = parts.status.canonical_reason().unwrap_or("no reason given");
            let body = String::from_utf8_lossy(&body);
            let context = RequestContext {
                vendor: self.vendor,
                put: put.as_ref().map(|PutTarget(path)| path.as_ref()),
                has_body: !head,
            };
            Err(fail(response_failure(
                context,
                parts.status.as_u16(),
                reason,
                &parts.headers,
                &body,
            )))
        })
    }
}

/// Wraps a client so that this module interprets its responses. Public for tests with simulated stores.
#[doc(hidden)]
pub fn listening_to(vendor: Vendor, client: HttpClient) -> HttpClient {
    HttpClient::new(FailureReader { vendor, client })
}

/// A connector that returns the same client for all of `object_store`.
#[derive(Debug)]
pub(super) struct SharedClient(pub(super) HttpClient);

impl HttpConnector for SharedClient {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// Creates a client for stores and token services. Fails if the CA cannot be used.
pub(super) fn http_client(
    ca_pem: Option<&[u8]>,
    proxies: &Proxies,
    connect_timeout: Duration,
) -> Result<HttpClient, Problem> {
    let tls = tls::client_config(ca_pem)
        .map_err(|error| Problem::new(keys::TLS_CA_FILE.name, error.to_string()))?;
    let client = http::Client::new(&tls, proxies, connect_timeout);
    Ok(HttpClient::new(ClientAdapter(client)))
}

/// `object_store`'s adapter to [`http::Client`].
#[derive(Debug)]
struct ClientAdapter(http::Client<HttpRequestBody>);

impl HttpService for ClientAdapter {
    fn call<'s, 'f>(
        &'s self,
        mut request: HttpRequest,
    ) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            request
                .headers_mut()
                .entry("user-agent")
                .or_insert(HeaderValue::from_static(USER_AGENT));
            // object_store never retries errors of this kind.
            let failed = |error| HttpError::new_boxed(HttpErrorKind::Unknown, error);
            let response = self.0.send(request).await.map_err(failed)?;
            Ok(response.map(|body| HttpResponseBody::new(body.map_err(failed))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUT: RequestContext<'_> = RequestContext {
        vendor: Vendor::Azure,
        put: Some("a/b"),
        has_body: true,
    };

    #[test]
    fn a_failure_is_reported_in_one_sentence() {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-request-id", HeaderValue::from_static("2f1a"));
        let body = "\u{feff}<?xml version=\"1.0\"?><Error><Code>AuthorizationFailure</Code><Message>This \
                    request is &quot;not&quot; authorized. Ask someone.\nRequestId:2f1a</Message></Error>";
        let failure = response_failure(PUT, 403, "Forbidden", &headers, body);
        let expected = "AuthorizationFailure: This request is \"not\" authorized (request id 2f1a)";
        assert_eq!(failure.to_string(), expected);
        assert_eq!(failure.status, Some(403));

        let html = "<html><h1>Bad gateway</h1></html>";
        let failure = response_failure(PUT, 502, "Bad Gateway", &HeaderMap::new(), html);
        assert_eq!(failure.to_string(), "HTTP 502: Bad Gateway");
    }

    #[test]
    fn a_response_that_is_not_the_stores_is_reported_with_a_remedy() {
        let own = "<Error><Code>AccountRequiresHttps</Code><Message>The account being accessed does not support \
                   http.</Message></Error>";
        let foreign = "the response is not the store's: ";
        let look = "look for a proxy or gateway in between";
        let table = [
            (400, own, "AccountRequiresHttps: The account being accessed does not support http; write the endpoint \
                        with https://".to_owned()),
            (400, "", format!("HTTP 400: R; {foreign}{look}")),
            (413, "<html><head><title>413 Request Entity Too Large</title></head></html>",
             format!("HTTP 413: 413 Request Entity Too Large; {foreign}raise the limit of the proxy or gateway in \
                      between, or lower blob_max_size")),
            (403, "blocked by policy 7\nmore", format!("HTTP 403: blocked by policy 7; {foreign}{look}")),
            (429, "", "HTTP 429: R".to_owned()),
            (502, "no upstream", "HTTP 502: no upstream".to_owned()),
        ];
        for (status, body, expected) in table {
            let failure = response_failure(PUT, status, "R", &HeaderMap::new(), body);
            assert_eq!(failure.to_string(), expected);
        }
        // A response to HEAD has no body, and so no code.
        let head = RequestContext {
            has_body: false,
            ..PUT
        };
        let failure = response_failure(head, 403, "Forbidden", &HeaderMap::new(), "");
        assert_eq!(failure.to_string(), "HTTP 403: Forbidden");
    }

    #[test]
    fn a_wrong_clock_is_named() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "date",
            HeaderValue::from_static("Fri, 21 Nov 2025 13:00:00 GMT"),
        );
        let azure = "<Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate the \
                     request. Make sure.</Message><AuthenticationErrorDetail>Request date header too old: \
                     'Thu'</AuthenticationErrorDetail></Error>";
        let s3 = "<Error><Code>RequestTimeTooSkewed</Code><Message>Too large.</Message></Error>";
        for body in [azure, s3] {
            let message = response_failure(PUT, 403, "Forbidden", &headers, body)
                .fault
                .message;
            assert!(message.contains("time is Fri, 21 Nov 2025"), "{message}");
        }
        let signature = "<Error><Code>AuthenticationFailed</Code><Message>No.</Message><AuthenticationErrorDetail>\
                         The MAC signature 'c2VjcmV0' is not</AuthenticationErrorDetail></Error>";
        assert_eq!(
            response_failure(PUT, 403, "Forbidden", &headers, signature)
                .fault
                .message,
            "No"
        );
    }

    #[test]
    fn signatures_and_keys_never_reach_a_message() {
        let table = [
            (
                "GET http://a/c?sv=1&sig=abc%2Bd%3D&se=2 failed",
                "GET http://a/c?sv=1&sig=***&se=2 failed",
            ),
            ("?SIG=abc", "?SIG=***"),
            ("x?url=a%3Fsig%3Dabc", "x?url=a%3Fsig%3D***"),
            (
                "'AccountName=a;AccountKey=Zm9v==;X=1'",
                "'AccountName=a;AccountKey=***;X=1'",
            ),
            (
                "X-Amz-Security-Token=t&X-Amz-Signature=s",
                "X-Amz-Security-Token=***&X-Amz-Signature=***",
            ),
            ("sig=a sig=b", "sig=*** sig=***"),
            ("nothing here", "nothing here"),
        ];
        for (text, clean) in table {
            assert_eq!(redact(text), clean);
        }
        let failure =
            Failure::new(Fate::Retry, Class::Transient, "x", "at ?sig=abc").note("?sig=def");
        assert_eq!(failure.fault.message, "at ?sig=***; ?sig=***");
    }

    #[test]
    fn a_process_out_of_descriptors_is_told_from_a_destination_that_cannot_be_reached() {
        for code in [libc::EMFILE, libc::ENFILE] {
            let error = || io::Error::from_raw_os_error(code);
            let connecting = HttpError::new(HttpErrorKind::Connect, error());
            let file = Error::Generic {
                store: "LocalFileSystem",
                source: Box::new(error()),
            };
            let failures = [connection_failure("host", &connecting), Failure::from(file)];
            assert_eq!(failures[0].fate, Fate::Retry);
            for failure in failures {
                assert_eq!(failure.fault.code, OWN_TROUBLE);
                assert!(failure.fault.message.contains("descriptors"), "{failure}");
            }
        }
    }

    #[test]
    fn a_file_systems_error_has_its_fate_and_class() {
        use io::ErrorKind as Kind;
        let table = [
            (Kind::StorageFull, Fate::Retry, Class::Configuration),
            (Kind::PermissionDenied, Fate::Retry, Class::Configuration),
            (Kind::InvalidFilename, Fate::Rejected, Class::Record),
            (Kind::Other, Fate::Ambiguous, Class::Transient),
        ];
        for (kind, fate, class) in table {
            let error = Error::Generic {
                store: "LocalFileSystem",
                source: Box::new(io::Error::from(kind)),
            };
            let failure = Failure::from(error);
            assert_eq!(
                (failure.fate, failure.fault.class),
                (fate, class),
                "{kind:?}"
            );
        }
    }
}
