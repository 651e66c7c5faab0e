//! What a store's answer, or the lack of one, means.
//!
//! `object_store` keeps its request errors private: status, service code and request id could only be
//! had back from its prose, and it maps every 409 to "already exists". So answers are read at the one
//! place it lets us stand, the HTTP client, and travel through its errors as a [`Failure`].

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

use super::codes::{Fate, Vendor, judge, judge_file, remedy};
use crate::config::Problem;
use crate::config::keys;
use crate::sink::http::{self, Proxies, TooLong, TooManyInterim, causes};
use crate::sink::outcome::{Class, Fault, Outcome, code_line, message_line};
use crate::sink::tls;

const USER_AGENT: &str = concat!("ferry/", env!("CARGO_PKG_VERSION"));

/// A request that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// HTTP status of the answer; a file system's errors that have one take it too.
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

    /// Whether the store says that something stands under the name already. Azure's 409 may also mean
    /// a container being deleted, S3's a race with another writer: only a look at the object tells.
    pub(super) fn says_taken(&self) -> bool {
        matches!(self.status, Some(409 | 412))
    }

    /// Adds what a person should know beside the service's own words.
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
                let words = source.to_string();
                Failure::new(Fate::Retry, Class::Credentials, "credentials", words)
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

/// What was asked, as far as the meaning of an answer depends on it.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    vendor: Vendor,
    /// The name of the object, where one was to be put.
    put: Option<&'a str>,
    /// Whether answers have a body: without one an error has no code in S3's language.
    told: bool,
}

/// The object that a request puts, in the request's extensions.
#[derive(Clone, Debug)]
pub(super) struct Putting(pub(super) Path);

/// Reads an answer that is not a success.
fn answered(
    asked: Asked<'_>,
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
    let (fate, class) = judge(asked.vendor, asked.put, status, &code);
    let words = words(body).unwrap_or(Cow::Borrowed(reason));
    let mut failure = Failure::new(fate, class, &code, first_sentence(&words)).with_status(status);

    // The only details worth their length, and free of signatures.
    // They name the dates that do not fit, and of a token what is not as expected of it.
    let detail = element(body, "AuthenticationErrorDetail").map(unescape);
    let open = ["time frame", "date header", "validation failed"];
    if let Some(detail) = detail.filter(|detail| open.iter().any(|words| detail.contains(words))) {
        failure = failure.note(detail);
    }
    if code == "RequestTimeTooSkewed" || failure.fault.message.contains("date header") {
        let clock = header("date").unwrap_or("another time");
        failure = failure.note(format_args!(
            "the service's clock says {clock}: set this machine's clock"
        ));
    }
    if class == Class::Configuration
        && let Some(remedy) = remedy(status, &code, own_code.is_some() || !asked.told)
    {
        failure = failure.note(remedy);
    }
    if (300..400).contains(&status) {
        failure = match (header("x-amz-bucket-region"), header("location")) {
            (Some(region), _) => failure.note(format_args!(
                "the store is at another address (region {region}): check region and endpoint"
            )),
            (None, Some(location)) => failure.note(format_args!(
                "it redirects to '{location}', and no redirect is followed: check endpoint, and look for a proxy or \
                 a gateway that asks for a login"
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

/// Reads why no answer came from `host`, or not all of it.
pub(super) fn unanswered(host: &str, error: &HttpError) -> Failure {
    let cause = causes(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default();
    let is = |kind: fn(&(dyn StdError + 'static)) -> bool| causes(error).any(kind);
    if is(|e| matches!(e.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))) {
        let failure = Failure::new(Fate::Retry, Class::Configuration, "tls", cause);
        return failure.note(format_args!(
            "{host} is not trusted: a private CA goes into tls_ca_file"
        ));
    }
    let (fate, code, words) = if http::was_not_sent(error) {
        let words = format!("no connection to {host}: {cause}");
        (Fate::Retry, "connect", words)
    } else if is(|e| e.is::<TooLong>() || e.is::<TooManyInterim>()) {
        let words = format!("the answer of {host} goes on and on: {cause}");
        (Fate::Ambiguous, "too_long", words)
    } else {
        let words = format!("the connection to {host} was lost before the answer: {cause}");
        (Fate::Ambiguous, "interrupted", words)
    };
    Failure::new(fate, Class::Transient, code, words)
}

fn file_error(error: &io::Error) -> Failure {
    let (fate, class) = judge_file(error.kind());
    Failure::new(fate, class, "file", error.to_string())
}

/// What an error says: the store's message, a page's title, or the first line of a text.
fn words(body: &str) -> Option<Cow<'_, str>> {
    let element = |name| element(body, name).map(unescape);
    let text = body.trim_start_matches('\u{feff}').trim();
    let plain = !text.is_empty() && !text.starts_with(['<', '{', '[']);
    element("Message")
        .or_else(|| element("title"))
        .or(plain.then_some(Cow::Borrowed(text)))
}

/// The text of an XML element that has no attributes and occurs once.
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

/// Blots out what a signed URL or a connection string would give away.
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

/// An HTTP client that turns whatever is not a success into a [`Failure`].
#[derive(Debug)]
pub(super) struct Listener {
    vendor: Vendor,
    client: HttpClient,
}

impl HttpService for Listener {
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
                // Google Cloud Storage would otherwise decompress what is stored with a content
                // encoding, and then give no length.
                request
                    .headers_mut()
                    .insert("accept-encoding", HeaderValue::from_static("gzip"));
            }
            let put = request.extensions().get::<Putting>().cloned();
            // Unknown is the kind that object_store never retries: that is the caller's business.
            let fail = |failure| HttpError::new(HttpErrorKind::Unknown, failure);
            let answer = self.client.execute(request).await;
            let answer = answer.map_err(|error| fail(unanswered(&host, &error)))?;
            if answer.status().is_success() && reads {
                let broken = move |error| fail(unanswered(&host, &error));
                return Ok(answer.map(|body| HttpResponseBody::new(body.map_err(broken))));
            }
            let (parts, body) = answer.into_parts();
            let body = body.bytes().await;
            if parts.status.is_success() {
                // What was put is there when the whole answer says so.
                let body = body.map_err(|error| fail(unanswered(&host, &error)))?;
                return Ok(HttpResponse::from_parts(parts, body.into()));
            }
            // An error without its words is still known by its status.
            let body = body.unwrap_or_default();
            let reason = parts.status.canonical_reason().unwrap_or("no reason given");
            let body = String::from_utf8_lossy(&body);
            let asked = Asked {
                vendor: self.vendor,
                put: put.as_ref().map(|Putting(path)| path.as_ref()),
                told: !head,
            };
            Err(fail(answered(
                asked,
                parts.status.as_u16(),
                reason,
                &parts.headers,
                &body,
            )))
        })
    }
}

/// `wire` with its answers read as this module reads them. For stores whose wire is no network.
#[doc(hidden)]
pub fn listening_to(vendor: Vendor, client: HttpClient) -> HttpClient {
    HttpClient::new(Listener { vendor, client })
}

/// Gives out one client to whoever of `object_store` wants one.
#[derive(Debug)]
pub(super) struct Same(pub(super) HttpClient);

impl HttpConnector for Same {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// A client for stores and token services. Fails with a CA that cannot be used.
pub(super) fn wire(
    ca_pem: Option<&[u8]>,
    proxies: Proxies,
    connect_timeout: Duration,
) -> Result<HttpClient, Problem> {
    let tls = tls::client_config(ca_pem)
        .map_err(|error| Problem::new(keys::TLS_CA_FILE.name, error.to_string()))?;
    let client = http::Client::new(&tls, proxies, connect_timeout);
    Ok(HttpClient::new(Wire(client)))
}

/// `object_store`'s way to [`http::Client`].
#[derive(Debug)]
struct Wire(http::Client<HttpRequestBody>);

impl HttpService for Wire {
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
            // Unknown is the kind that object_store never retries: that is the caller's business.
            let failed = |error| HttpError::new_boxed(HttpErrorKind::Unknown, error);
            let answer = self.0.ask(request).await.map_err(failed)?;
            Ok(answer.map(|body| HttpResponseBody::new(body.map_err(failed))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUT: Asked<'_> = Asked {
        vendor: Vendor::Azure,
        put: Some("a/b"),
        told: true,
    };

    #[test]
    fn an_answer_is_told_in_one_sentence() {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-request-id", HeaderValue::from_static("2f1a"));
        let body = "\u{feff}<?xml version=\"1.0\"?><Error><Code>AuthorizationFailure</Code><Message>This \
                    request is &quot;not&quot; authorized. Ask someone.\nRequestId:2f1a</Message></Error>";
        let failure = answered(PUT, 403, "Forbidden", &headers, body);
        let told = "AuthorizationFailure: This request is \"not\" authorized (request id 2f1a)";
        assert_eq!(failure.to_string(), told);
        assert_eq!(failure.status, Some(403));

        let html = "<html><h1>Bad gateway</h1></html>";
        let failure = answered(PUT, 502, "Bad Gateway", &HeaderMap::new(), html);
        assert_eq!(failure.to_string(), "HTTP 502: Bad Gateway");
    }

    #[test]
    fn what_is_not_the_stores_own_is_told_with_where_to_look() {
        let own = "<Error><Code>AccountRequiresHttps</Code><Message>The account being accessed does not support \
                   http.</Message></Error>";
        let told = "that is not the store's own answer: ";
        let look = "look for a proxy or gateway on the way";
        let table = [
            (400, own, "AccountRequiresHttps: The account being accessed does not support http; write the endpoint \
                        with https://".to_owned()),
            (400, "", format!("HTTP 400: R; {told}{look}")),
            (413, "<html><head><title>413 Request Entity Too Large</title></head></html>",
             format!("HTTP 413: 413 Request Entity Too Large; {told}raise the limit of the proxy or gateway on the way, \
                      or lower blob_max_size")),
            (403, "blocked by policy 7\nmore", format!("HTTP 403: blocked by policy 7; {told}{look}")),
            (429, "", "HTTP 429: R".to_owned()),
            (502, "no upstream", "HTTP 502: no upstream".to_owned()),
        ];
        for (status, body, told) in table {
            let failure = answered(PUT, status, "R", &HeaderMap::new(), body);
            assert_eq!(failure.to_string(), told);
        }
        // An answer to HEAD has no body, and so no code.
        let head = Asked { told: false, ..PUT };
        let failure = answered(head, 403, "Forbidden", &HeaderMap::new(), "");
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
            let message = answered(PUT, 403, "Forbidden", &headers, body)
                .fault
                .message;
            assert!(message.contains("clock says Fri, 21 Nov 2025"), "{message}");
        }
        let signature = "<Error><Code>AuthenticationFailed</Code><Message>No.</Message><AuthenticationErrorDetail>\
                         The MAC signature 'c2VjcmV0' is not</AuthenticationErrorDetail></Error>";
        assert_eq!(
            answered(PUT, 403, "Forbidden", &headers, signature)
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
    fn a_file_system_says_what_it_cannot_do() {
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
