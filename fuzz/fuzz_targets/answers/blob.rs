//! Blob stores, from `object_store`'s HTTP client up.

use std::cell::LazyCell;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use ferry::config::{self, EMULATOR_ACCOUNT, EMULATOR_KEY};
use ferry::sink::blob::{BlobSink, Vendor, listening_to};
use ferry::sink::{Batch, Outcome, Sink};
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, Response};
use http_body::Frame;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::{ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider};

use crate::script::{Answer, Http};
use crate::{check_words, run};

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Azure,
    S3,
    Gcs,
}

const TARGET: &str = "logs/app/2025/07/02/20250702T204431Z-8f3a.ndjson.gz";
const TOKEN: &str = "20250702T204431Z-8f3a.ndjson.gz";
const RECORD: &[u8] = b"{\"a\":1}\n";

/// What is asked and answered in one run.
struct Script {
    answers: Vec<Answer>,
    asked: Vec<Method>,
}

static SCRIPT: Mutex<Script> = Mutex::new(Script {
    answers: Vec::new(),
    asked: Vec::new(),
});

fn script() -> MutexGuard<'static, Script> {
    SCRIPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Script {
    /// The answer to the `n`th request; the last one is given again and again.
    fn answer(&self, n: usize) -> &Answer {
        &self.answers[n.min(self.answers.len() - 1)]
    }
}

/// Puts an object and checks what is made of the answers.
pub fn put(kind: Kind, answers: &[Answer]) {
    *script() = Script {
        answers: answers.to_vec(),
        asked: Vec::new(),
    };
    let config = config::Blob {
        store: config::Store::File("unused".into()),
        content_type: "application/x-ndjson".into(),
        content_encoding: Some("gzip"),
        objects: config::ObjectSettings::default(),
        ca_pem: None,
    };
    let warn = Arc::new(|line: &str| {
        assert!(
            line.len() <= 2_000 && !line.contains(char::is_control),
            "{line:?}"
        );
    });
    let sink = BlobSink::over(store(kind), config, warn);
    let outcomes = run(sink.send(Batch {
        token: None,
        target: TARGET.into(),
        tag: (*b"t").into(),
        records: vec![Bytes::from_static(RECORD).into()],
    }));
    check_words(&outcomes);
    let [outcome] = &outcomes[..] else {
        panic!("{outcomes:?} for one object");
    };
    check(kind, &script(), outcome);
}

fn check(kind: Kind, script: &Script, outcome: &Outcome) {
    let requests = || {
        script
            .asked
            .iter()
            .enumerate()
            .map(|(n, asked)| (asked, script.answer(n)))
    };
    let (asked, answer) = requests().last().expect("a request");
    let put = asked == Method::PUT;
    match (outcome, answer) {
        (Outcome::Delivered, Answer::Http(http)) => {
            assert!(http.is_success(), "delivered by {http:?}");
            assert!(
                put || is_ours(kind, asked, http),
                "another's object: {http:?}"
            );
            let taken = |answer: &Answer| matches!(answer, Answer::Http(http) if [409, 412].contains(&http.status));
            let was_taken = requests().any(|(asked, answer)| asked == Method::PUT && taken(answer));
            assert!(put || was_taken, "delivered without a put");
        }
        (Outcome::Rejected(_), Answer::Http(http)) => {
            assert!(put && names_the_object(kind, http), "rejected by {http:?}");
        }
        (Outcome::Retry(_), Answer::Http(http)) => {
            assert!(
                !put || !http.is_success(),
                "written, and sent again: {http:?}"
            );
        }
        // Nothing was sent.
        (Outcome::Retry(_), Answer::Refused) | (Outcome::Ambiguous(_), _) => {}
        (outcome, answer) => panic!("{outcome:?} by {answer:?}"),
    }
}

/// Whether an answer says what a store is known to say of the object alone. All else, known or unknown, is about the
/// destination or the way there, and costs no object.
fn names_the_object(kind: Kind, http: &Http) -> bool {
    // The names here are short enough for every store, so that Azure's codes for a long one name the container's.
    let codes: &[&[u8]] = match kind {
        Kind::Azure => &[b"RequestBodyTooLarge"],
        Kind::S3 => &[b"KeyTooLongError", b"KeyTooLong", b"EntityTooLarge"],
        Kind::Gcs => &[b"KeyTooLong", b"EntityTooLarge"],
    };
    let header = http.header("x-ms-error-code").unwrap_or_default();
    [400, 413].contains(&http.status)
        && codes.iter().any(|code| {
            let element = [b"<Code>", *code, b"</Code>"].concat();
            header == *code || http.body.windows(element.len()).any(|part| part == element)
        })
}

/// Whether a look at an object tells that it is the one we put.
fn is_ours(kind: Kind, asked: &Method, http: &Http) -> bool {
    if asked == Method::GET {
        return http.body == RECORD && !http.cut;
    }
    let token = match kind {
        Kind::Azure => "x-ms-meta-ferry_name",
        Kind::S3 => "x-amz-meta-ferry_name",
        Kind::Gcs => "x-goog-meta-ferry_name",
    };
    let length = http.header("content-length").unwrap_or_default();
    length == RECORD.len().to_string().as_bytes() && http.header(token) == Some(TOKEN.as_bytes())
}

fn store(kind: Kind) -> Arc<dyn ObjectStore> {
    type Stores = [Arc<dyn ObjectStore>; 3];
    thread_local! {
        static STORES: LazyCell<Stores> = const { LazyCell::new(stores) };
    }
    fn stores() -> Stores {
        let once = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let azure = MicrosoftAzureBuilder::new()
            .with_account(EMULATOR_ACCOUNT)
            .with_access_key(EMULATOR_KEY)
            .with_container_name("logs")
            .with_http_connector(Wire(Vendor::Azure))
            .with_retry(once.clone());
        let s3 = AmazonS3Builder::new()
            .with_bucket_name("logs")
            .with_region("us-east-1")
            .with_access_key_id("TESTKEY")
            .with_secret_access_key("s")
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_http_connector(Wire(Vendor::S3))
            .with_retry(once.clone());
        let bearer = "none".to_owned();
        let gcs = GoogleCloudStorageBuilder::new()
            .with_bucket_name("logs")
            .with_credentials(Arc::new(StaticCredentialProvider::new(GcpCredential {
                bearer,
            })))
            .with_http_connector(Wire(Vendor::Gcs))
            .with_retry(once);
        [
            Arc::new(azure.build().expect("an account")),
            Arc::new(s3.build().expect("a bucket")),
            Arc::new(gcs.build().expect("a bucket")),
        ]
    }
    STORES.with(|stores| Arc::clone(&stores[kind as usize]))
}

/// Answers as the script says, in this store's place.
#[derive(Clone, Copy, Debug)]
struct Wire(Vendor);

impl HttpConnector for Wire {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(listening_to(self.0, HttpClient::new(*self)))
    }
}

impl HttpService for Wire {
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        's: 'f,
        Self: 'f,
    {
        let answer = {
            let mut script = script();
            let n = script.asked.len();
            script.asked.push(request.method().clone());
            script.answer(n).clone()
        };
        Box::pin(async move {
            let failed = |kind, error: io::ErrorKind| HttpError::new(kind, io::Error::from(error));
            match answer {
                Answer::Refused => Err(failed(
                    HttpErrorKind::Connect,
                    io::ErrorKind::ConnectionRefused,
                )),
                Answer::Reset => Err(failed(
                    HttpErrorKind::Interrupted,
                    io::ErrorKind::ConnectionReset,
                )),
                Answer::Silence => std::future::pending().await,
                Answer::Http(http) => Ok(response(http)),
            }
        })
    }
}

fn response(http: Http) -> HttpResponse {
    let body = Body {
        bytes: Some(http.body).filter(|body| !body.is_empty()),
        cut: http.cut,
    };
    let mut response = Response::new(HttpResponseBody::new(body));
    *response.status_mut() = http.status.try_into().expect("three digits");
    for (name, value) in http.headers {
        // What is no header does not come through an HTTP client.
        if let Ok(name) = HeaderName::try_from(name)
            && let Ok(value) = HeaderValue::try_from(value)
        {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// A body, and where it is cut the connection's end.
struct Body {
    bytes: Option<Bytes>,
    cut: bool,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Some(bytes) = self.bytes.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let cut = std::mem::take(&mut self.cut);
        let end = io::Error::from(io::ErrorKind::UnexpectedEof);
        Poll::Ready(cut.then(|| Err(HttpError::new(HttpErrorKind::Interrupted, end))))
    }
}
