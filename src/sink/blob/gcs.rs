//! Google Cloud Storage: opens the store, with a client of its own for the token service.

use std::sync::Arc;

use futures::future::BoxFuture;
use object_store::client::HttpClient;
use object_store::gcp::{GcpCredential, GcpCredentialProvider, GoogleCloudStorageBuilder};
use object_store::{CredentialProvider, HeaderMap, StaticCredentialProvider};

use super::answer::{Failure, SharedClient, http_client, listening_to};
use super::codes::{Fate, Vendor};
use super::signing::{Signer, Signing};
use super::token::{Expiry, FETCH_TIMEOUT, TokenChecker};
use super::{CONNECT_TIMEOUT, Kind, Store, check_bucket, endpoint_url, is_loopback, no_retries};
use crate::config::Problem;
use crate::config::keys;
use crate::sink::Class;
use crate::sink::http::Proxies;

const REMEDY: &str = "no token from Google: check GOOGLE_APPLICATION_CREDENTIALS, or the service account of this machine";

/// Creates the store. Reads the credentials file, but sends nothing.
pub(super) fn open(
    bucket: &str,
    endpoint: Option<&str>,
    ca_pem: Option<&[u8]>,
    put_headers: HeaderMap,
) -> Result<Store, Problem> {
    check_bucket(bucket)?;
    check_credentials()?;
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    let mut emulator = false;
    if let Some(endpoint) = endpoint {
        let url = endpoint_url(endpoint)?;
        emulator = url.scheme() == "http" && is_loopback(&url);
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    let builder = builder.with_retry(no_retries());
    let client = http_client(ca_pem, &Proxies::from_environment()?, CONNECT_TIMEOUT)?;
    let problem = |e: object_store::Error| {
        Problem::new(
            keys::URL.name,
            format!("the client for 'gs://{bucket}' cannot be created: {e}"),
        )
    };
    let credentials: GcpCredentialProvider = match emulator {
        // An emulator on this machine needs no token, and there may be none. (The builder's option to skip signatures
        // has no effect on puts.)
        true => Arc::new(StaticCredentialProvider::new(GcpCredential {
            bearer: "none".to_owned(),
        })),
        false => Arc::new(Tokens::of(builder.clone(), client.clone()).map_err(problem)?),
    };
    let objects = builder
        .with_credentials(credentials)
        .with_http_connector(SharedClient(Signing::wrap(
            listening_to(Vendor::Gcs, client),
            put_headers,
            Signer::None,
        )))
        .build()
        .map_err(problem)?;
    Ok(Store {
        objects: Arc::new(objects),
        kind: Kind::Plain,
    })
}

/// The types of credentials files that a token can be fetched with.
const TYPES: [&str; 2] = ["service_account", "authorized_user"];

/// Refuses a credentials file of another type under the name of its variable. Other problems of the file are the
/// client's to report.
fn check_credentials() -> Result<(), Problem> {
    // object_store prefers these, in this order.
    const VARIABLES: [&str; 4] = [
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "SERVICE_ACCOUNT",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ];
    let named = VARIABLES
        .iter()
        .find_map(|name| Some((*name, std::env::var_os(name)?)));
    let Some((variable, path)) = named else {
        return Ok(());
    };
    let text = std::fs::read(&path).unwrap_or_default();
    let file: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let Some(kind) = file["type"].as_str().filter(|kind| !TYPES.contains(kind)) else {
        return Ok(());
    };
    let remedy = match kind {
        "external_account" | "external_account_authorized_user" => {
            "workload identity federation is not supported: use a service account's key, or on GKE its workload identity, which \
             needs no file"
        }
        "impersonated_service_account" => {
            "impersonation is not supported: use a service account's own key, or on Google Cloud the machine's service account, \
             which needs no file"
        }
        _ => {
            "use the key of a service account, or on Google Cloud the machine's service account, which needs no file"
        }
    };
    let kind = crate::sink::outcome::code_line(kind);
    let path = path.to_string_lossy();
    let message = format!("'{path}' has credentials of the type {kind}: {remedy}");
    Err(Problem::new(variable, message))
}

/// The tokens of the identity that a builder resolves: a service account, a user, or this machine.
#[derive(Debug)]
struct Tokens(GcpCredentialProvider);

impl Tokens {
    /// Builds a separate store for the token service alone: with one client, its responses could not be distinguished
    /// from the store's.
    fn of(builder: GoogleCloudStorageBuilder, client: HttpClient) -> object_store::Result<Tokens> {
        let client = TokenChecker::wrap(client, &Expiry::default());
        let store = builder.with_http_connector(SharedClient(client)).build()?;
        Ok(Tokens(Arc::clone(store.credentials())))
    }

    async fn current(&self) -> Result<Arc<GcpCredential>, Failure> {
        let fetch = tokio::time::timeout(FETCH_TIMEOUT, self.0.get_credential());
        let failed = match fetch.await {
            Ok(Ok(token)) => return Ok(token),
            Ok(Err(error)) => Failure::from(error),
            Err(_) => Failure::new(
                Fate::Retry,
                Class::Credentials,
                "timeout",
                format!("no token within {FETCH_TIMEOUT:?}"),
            ),
        };
        let mut failure = Failure::new(
            Fate::Retry,
            Class::Credentials,
            &failed.fault.code,
            failed.fault.message,
        )
        .note(REMEDY);
        failure.fault.request_id = failed.fault.request_id;
        Err(failure)
    }
}

impl CredentialProvider for Tokens {
    type Credential = GcpCredential;

    fn get_credential<'s, 'f>(&'s self) -> BoxFuture<'f, object_store::Result<Arc<GcpCredential>>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async {
            let token = self.current().await;
            token.map_err(|failure| object_store::Error::Generic {
                store: "GCS",
                source: Box::new(failure),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    use object_store::client::{
        HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    };

    use super::super::loopback::{IN_BUFFERS, Loopback, Reply, answer, endless, with_environment};
    use super::super::{BlobSink, tests as blob};
    use super::*;
    use crate::config;
    use crate::sink::{Batch, Outcome, Sink as _};

    async fn put(sink: &BlobSink) -> String {
        let batch = Batch {
            target: "x".into(),
            tag: (*b"t").into(),
            records: vec![bytes::Bytes::from_static(b"{}\n").into()],
            token: None,
        };
        match sink.send(batch).await.remove(0) {
            Outcome::Retry(fault) => format!("retry {:?} {fault}", fault.class),
            other => panic!("{other:?}"),
        }
    }

    /// The statuses have another meaning when the store itself sends them.
    #[tokio::test]
    async fn a_metadata_service_that_refuses_is_a_matter_of_credentials() {
        const NAME: &str =
            "sink::blob::gcs::tests::a_metadata_service_that_refuses_is_a_matter_of_credentials";
        let refusals = [
            (
                400,
                r#"{"error":"invalid_grant","error_description":"Account deleted. Ask."}"#,
                "invalid_grant: Account deleted",
            ),
            (
                404,
                "<html>no such service account</html>",
                "HTTP 404: no reason given",
            ),
            (409, "", "HTTP 409: no reason given"),
            (412, "", "HTTP 412: no reason given"),
            (
                200,
                "<html>sign in</html>",
                "no token: the response of 127.0.0.1:",
            ),
            (
                200,
                r#"{"access_token":"a","expires_in":18446744073709551615}"#,
                "no token: ",
            ),
        ];
        // The client tries the service's name and its address.
        let replies = refusals
            .iter()
            .flat_map(|(status, body, _)| [answer(*status, &[], body), answer(*status, &[], body)]);
        let machine = Loopback::start(replies.collect::<Vec<Reply>>());
        let address = machine.url().replace("http://", "");
        let environment = [
            ("GCE_METADATA_HOST", address.as_str()),
            ("GCE_METADATA_IP", &address),
        ];
        if !with_environment(NAME, &environment) {
            assert_eq!(machine.requests().len(), 2 * refusals.len());
            return;
        }
        let store = config::Store::Gcs {
            bucket: "logs".into(),
            endpoint: Some("http://storage.invalid".into()),
        };
        let sink = blob::sink(store, &blob::Ear::default()).unwrap();
        for (status, _, words) in refusals {
            let told = put(&sink).await;
            assert!(
                told.starts_with(&format!("retry Credentials {words}")) && told.contains(REMEDY),
                "{status}: {told}"
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn an_endless_response_of_the_metadata_service_is_abandoned() {
        const NAME: &str =
            "sink::blob::gcs::tests::an_endless_response_of_the_metadata_service_is_abandoned";
        let begin = r#"{"access_token":"a","expires_in":3600,"more":""#;
        for status in [200, 500] {
            let machine = Loopback::start(vec![endless(status, &[], begin)]);
            let address = machine.url().replace("http://", "");
            let environment = [
                ("GCE_METADATA_HOST", address.as_str()),
                ("GCE_METADATA_IP", &address),
            ];
            if !with_environment(NAME, &environment) {
                let sent = machine.sent();
                assert!(
                    sent > 0 && sent < IN_BUFFERS,
                    "{status}: {sent} bytes were read"
                );
                continue;
            }
            let store = config::Store::Gcs {
                bucket: "logs".into(),
                endpoint: Some("http://storage.invalid".into()),
            };
            let sink = blob::sink(store, &blob::Ear::default()).unwrap();
            let told = put(&sink).await;
            assert!(
                told.starts_with("retry Credentials ") && told.contains(REMEDY),
                "{told}"
            );
            return;
        }
    }

    /// A client with one response for every request, which records their URLs.
    #[derive(Clone, Debug)]
    struct ClientAdapter(Arc<Mutex<Vec<String>>>);

    impl HttpService for ClientAdapter {
        fn call<'s, 'f>(
            &'s self,
            request: HttpRequest,
        ) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
        where
            's: 'f,
            Self: 'f,
        {
            self.0.lock().unwrap().push(request.uri().to_string());
            let body = r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#;
            let mut answer = HttpResponse::new(HttpResponseBody::from(body.to_owned()));
            *answer.status_mut() = hyper::StatusCode::BAD_REQUEST;
            Box::pin(std::future::ready(Ok(answer)))
        }
    }

    #[tokio::test]
    async fn credentials_that_no_token_can_be_fetched_with_are_refused_by_their_variable() {
        const NAME: &str = "sink::blob::gcs::tests::credentials_that_no_token_can_be_fetched_with_are_refused_by_their_variable";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.json");
        let federated =
            r#"{"type":"external_account","audience":"//iam.googleapis.com/projects/1"}"#;
        fs::write(&path, federated).unwrap();
        let path = path.display().to_string();
        if !with_environment(NAME, &[("GOOGLE_APPLICATION_CREDENTIALS", &path)]) {
            return;
        }
        let store = config::Store::Gcs {
            bucket: "logs".into(),
            endpoint: None,
        };
        let problem = blob::sink(store, &blob::Ear::default()).err().unwrap();
        assert_eq!(problem.key, "GOOGLE_APPLICATION_CREDENTIALS");
        for words in [
            "external_account",
            "federation is not supported",
            "service account's key",
        ] {
            assert!(problem.message.contains(words), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_user_whose_login_was_revoked_is_a_matter_of_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.json");
        let login =
            r#"{"type":"authorized_user","client_id":"c","client_secret":"s","refresh_token":"r"}"#;
        fs::write(&path, login).unwrap();
        let builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name("logs")
            .with_application_credentials(path.display().to_string())
            .with_retry(no_retries());
        let asked = Arc::default();
        let tokens =
            Tokens::of(builder, HttpClient::new(ClientAdapter(Arc::clone(&asked)))).unwrap();
        let failure = tokens.current().await.unwrap_err();
        assert_eq!(
            (failure.fate, failure.fault.class, failure.status),
            (Fate::Retry, Class::Credentials, None)
        );
        assert_eq!(
            failure.to_string(),
            format!("invalid_grant: Token has been expired or revoked; {REMEDY}")
        );
        assert_eq!(
            *asked.lock().unwrap(),
            ["https://accounts.google.com/o/oauth2/token"]
        );
    }
}
