use super::super::super::loopback::{
    IN_BUFFERS, Loopback, Reply, answer, endless, with_environment,
};
use super::super::super::{BlobSink, tests as blob};
use super::*;
use crate::sink::{Batch, Outcome, Sink as _};

/// The full name of a test of this module.
macro_rules! name {
    ($test:literal) => {
        concat!("sink::blob::azure::token::tests::", $test)
    };
}

/// Entra ID's response.
fn granted(token: &str, seconds: u64) -> Reply {
    let body = format!(
        "{{\"token_type\":\"Bearer\",\"expires_in\":{seconds},\"access_token\":\"{token}\"}}"
    );
    answer(200, &[("Content-Type", "application/json")], &body)
}

/// The metadata service's response.
fn granted_here(token: &str) -> Reply {
    let end = SystemTime::now() + Duration::from_secs(3_600);
    let end = end
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let body = format!(
        "{{\"access_token\":\"{token}\",\"expires_on\":\"{end}\",\"expires_in\":\"3600\"}}"
    );
    answer(200, &[("Content-Type", "application/json")], &body)
}

fn refused(code: &str, words: &str) -> Reply {
    let body = serde_json::json!({
        "error": "invalid_client",
        "error_description": format!("{code}: {words}. Ensure something.\r\nTrace ID: t-1"),
        "error_codes": [7_000_215],
        "trace_id": "t-1",
    });
    answer(401, &[], &body.to_string())
}

fn created() -> Reply {
    answer(201, &[("ETag", "\"1\"")], "")
}

/// The response of a store that refuses the token.
fn unauthorized() -> Reply {
    let body = "<Error><Code>InvalidAuthenticationInfo</Code><Message>Server failed to authenticate the \
                request. Please refer.</Message><AuthenticationErrorDetail>Lifetime validation failed. The \
                token is expired.</AuthenticationErrorDetail></Error>";
    answer(401, &[], body)
}

fn client_secret(secret: SecretSource) -> AzureAuth {
    AzureAuth::ClientSecret {
        tenant_id: "tenant-1".into(),
        client_id: "app-1".into(),
        secret,
    }
}

fn fixed() -> SecretSource {
    SecretSource::Value(config::Secret::new("hunter2 &"))
}

const WORKLOAD: AzureAuth = AzureAuth::WorkloadIdentity {
    tenant_id: None,
    client_id: None,
};

fn tokens(auth: &AzureAuth) -> Result<Tokens, Problem> {
    let warn: Warn = Arc::new(|_| {});
    Tokens::open(auth, None, None, &warn)
}

fn bearer(had: Result<Arc<AzureCredential>, Failure>) -> Result<String, String> {
    match had {
        Ok(credential) => match &*credential {
            AzureCredential::BearerToken(token) => Ok(token.clone()),
            other => panic!("{other:?}"),
        },
        Err(failure) => {
            assert_eq!(
                (failure.fate, failure.fault.class, failure.status),
                (Fate::Retry, Class::Credentials, None)
            );
            Err(failure.to_string())
        }
    }
}

fn sink(store: &Loopback, auth: AzureAuth) -> BlobSink {
    let azure = blob::azure(store.url(), false, auth);
    blob::sink(azure, &blob::Ear::default()).unwrap()
}

async fn put(sink: &BlobSink) -> String {
    let batch = Batch {
        target: "x".into(),
        tag: (*b"t").into(),
        records: vec![bytes::Bytes::from_static(b"{}\n").into()],
        token: None,
    };
    match sink.send(batch).await.remove(0) {
        Outcome::Delivered => "delivered".into(),
        Outcome::Retry(fault) => format!("retry {:?} {fault}", fault.class),
        other => panic!("{other:?}"),
    }
}

/// Returns the tokens of the requests to a store.
fn bearers(store: &Loopback) -> Vec<String> {
    let requests = store.requests();
    let bearer = |request: &String| {
        let (_, rest) = request.split_once("authorization: Bearer ").expect(request);
        rest.lines().next().unwrap().to_owned()
    };
    requests.iter().map(bearer).collect()
}

/// Variables that an Azure SDK might use by mistake.
const STRAY: [(&str, &str); 9] = [
    ("AZURE_CLIENT_ID", "stray"),
    ("AZURE_TENANT_ID", "stray"),
    ("AZURE_CLIENT_SECRET", "stray"),
    ("AZURE_FEDERATED_TOKEN_FILE", "/nonexistent"),
    ("AZURE_STORAGE_ACCOUNT_KEY", "stray"),
    ("AZURE_STORAGE_TOKEN", "stray"),
    ("AZURE_USE_AZURE_CLI", "true"),
    ("AZURE_SKIP_SIGNATURE", "true"),
    ("AZURE_ENDPOINT", "http://127.0.0.1:1"),
];

#[tokio::test]
async fn an_application_has_a_token_and_gets_another_once_that_is_refused() {
    let entra = Loopback::start(vec![granted("first", 3_600), granted("second", 3_600)]);
    let mut variables = STRAY.to_vec();
    let url = entra.url() + "/";
    variables.push(("AZURE_AUTHORITY_HOST", &url));
    const NAME: &str = name!("an_application_has_a_token_and_gets_another_once_that_is_refused");
    if !with_environment(NAME, &variables) {
        let requests = entra.requests();
        assert_eq!(requests.len(), 2, "one for all puts, one after the refusal");
        for request in requests {
            assert!(
                request.starts_with("POST /tenant-1/oauth2/v2.0/token HTTP"),
                "{request}"
            );
            assert!(
                request.ends_with(
                    "client_id=app-1&client_secret=hunter2+%26&\
                     scope=https%3A%2F%2Fstorage.azure.com%2F.default&grant_type=client_credentials"
                ),
                "{request}"
            );
        }
        return;
    }
    let store = Loopback::start(vec![created(), created(), unauthorized(), created()]);
    let sink = sink(&store, client_secret(fixed()));
    assert_eq!(sink.credentials_expire(), None, "no token was needed yet");
    assert_eq!(put(&sink).await, "delivered");
    let left = sink.credentials_expire().unwrap();
    let left = left.duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((3_500..=3_600).contains(&left), "{left}");
    assert_eq!(put(&sink).await, "delivered");
    let told = put(&sink).await;
    assert_eq!(
        told,
        "retry Credentials InvalidAuthenticationInfo: Server failed to authenticate the request; Lifetime \
         validation failed. The token is expired.; check tenant_id, client_id and client_secret: the secret's \
         value, not its ID"
    );
    assert_eq!(put(&sink).await, "delivered");
    assert_eq!(bearers(&store), ["first", "first", "first", "second"]);
}

#[tokio::test]
async fn a_wrong_secret_is_reported_with_entras_message_and_a_new_file_is_tried_at_once() {
    let entra = Loopback::start(vec![
        refused("AADSTS7000215", "Invalid client secret provided"),
        granted("good", 3_600),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "old-hunter2\n").unwrap();
    let file = path.display().to_string();
    let url = entra.url();
    const NAME: &str =
        name!("a_wrong_secret_is_reported_with_entras_message_and_a_new_file_is_tried_at_once");
    let variables = [
        ("AZURE_AUTHORITY_HOST", url.as_str()),
        ("SECRET_OF_THE_TEST", &file),
    ];
    if !with_environment(NAME, &variables) {
        let requests = entra.requests();
        assert_eq!(requests.len(), 2, "a failed fetch is not repeated at once");
        assert!(requests[0].contains("client_secret=old-hunter2&"));
        assert!(requests[1].contains("client_secret=new-hunter2&"));
        return;
    }
    let path = PathBuf::from(std::env::var("SECRET_OF_THE_TEST").unwrap());
    let store = Loopback::start(vec![created()]);
    let sink = sink(&store, client_secret(SecretSource::File(path.clone())));
    for _ in 0..2 {
        assert_eq!(
            put(&sink).await,
            "retry Credentials AADSTS7000215: Invalid client secret provided; no token for the application app-1 \
             of the tenant tenant-1: check tenant_id, client_id and client_secret: the secret's value, not its \
             ID (request id t-1)"
        );
    }
    std::fs::write(&path, "new-hunter2\n").unwrap();
    assert_eq!(put(&sink).await, "delivered");
    assert_eq!(bearers(&store), ["good"]);
}

#[tokio::test]
async fn a_token_about_to_expire_is_replaced_before_it_does_and_used_until_then() {
    let script = vec![
        granted("first", 200),
        granted("second", 200),
        answer(503, &[], "busy"),
    ];
    let entra = Loopback::start(script);
    const NAME: &str =
        name!("a_token_about_to_expire_is_replaced_before_it_does_and_used_until_then");
    if !with_environment(NAME, &[("AZURE_AUTHORITY_HOST", &entra.url())]) {
        assert_eq!(entra.requests().len(), 3);
        return;
    }
    let heard = blob::Ear::default();
    let tokens = Tokens::open(&client_secret(fixed()), None, None, &heard.warn()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut seen = Vec::new();
    while heard.heard().is_empty() {
        assert!(Instant::now() < deadline, "{seen:?}");
        seen.push(bearer(tokens.current().await).unwrap());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bearer(tokens.current().await).as_deref(), Ok("second"));
    seen.dedup();
    assert_eq!(seen, ["first", "second"]);
    let heard = heard.heard();
    assert!(
        heard[0].contains("the current one stays in use until it expires"),
        "{heard:?}"
    );
    assert_eq!(heard.len(), 1);
}

#[tokio::test]
async fn a_workload_identity_comes_from_the_environment_of_the_pod() {
    let entra = Loopback::start(vec![granted("ours", 3_600), granted("other", 3_600)]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "ey.service.account").unwrap();
    let (url, path) = (entra.url(), file.path().display().to_string());
    let variables = [
        ("AZURE_AUTHORITY_HOST", url.as_str()),
        ("AZURE_CLIENT_ID", "app-1"),
        ("AZURE_TENANT_ID", "tenant-1"),
        ("AZURE_FEDERATED_TOKEN_FILE", &path),
        ("AZURE_CLIENT_SECRET", "stray"),
    ];
    const NAME: &str = name!("a_workload_identity_comes_from_the_environment_of_the_pod");
    if !with_environment(NAME, &variables) {
        let requests = entra.requests();
        let asked = [("tenant-1", "app-1"), ("tenant-2", "app-2")];
        assert_eq!(requests.len(), asked.len());
        for (request, (tenant, app)) in requests.iter().zip(asked) {
            let line = format!("POST /{tenant}/oauth2/v2.0/token HTTP");
            assert!(request.starts_with(&line), "{request}");
            assert!(request.contains(&format!("client_id={app}&")), "{request}");
            assert!(
                request.contains("client_assertion=ey.service.account&"),
                "{request}"
            );
            assert!(!request.contains("stray"), "{request}");
        }
        return;
    }
    let store = Loopback::start(vec![created()]);
    let sink = sink(&store, WORKLOAD);
    assert_eq!(put(&sink).await, "delivered");
    assert_eq!(bearers(&store), ["ours"]);
    // The keys take precedence over the environment.
    let other = AzureAuth::WorkloadIdentity {
        tenant_id: Some("tenant-2".into()),
        client_id: Some("app-2".into()),
    };
    let other = tokens(&other).unwrap();
    assert_eq!(bearer(other.current().await).as_deref(), Ok("other"));
    assert_eq!(
        other.identity(),
        "the workload identity app-2 of the tenant tenant-2"
    );
    // The file of the federated token is removed.
    let path = PathBuf::from(std::env::var("AZURE_FEDERATED_TOKEN_FILE").unwrap());
    let lost = tokens(&WORKLOAD).unwrap();
    std::fs::remove_file(&path).unwrap();
    let told = bearer(lost.current().await).unwrap_err();
    let named = format!(
        "AZURE_FEDERATED_TOKEN_FILE '{}' cannot be read",
        path.display()
    );
    assert!(told.contains(&named), "{told}");
    let told = tokens(&WORKLOAD).unwrap_err();
    assert_eq!(told.key, "AZURE_FEDERATED_TOKEN_FILE");
}

#[test]
fn an_error_for_a_pod_without_the_webhooks_variables_names_what_sets_them() {
    const NAME: &str =
        name!("an_error_for_a_pod_without_the_webhooks_variables_names_what_sets_them");
    if !with_environment(NAME, &[("AZURE_CLIENT_ID", "app-1")]) {
        return;
    }
    let told = tokens(&WORKLOAD).unwrap_err();
    assert_eq!(told.key, "auth_type");
    for words in [
        "AZURE_TENANT_ID (or tenant_id), AZURE_FEDERATED_TOKEN_FILE in",
        "azure.workload.identity/use: \"true\"",
        "azure.workload.identity/client-id",
    ] {
        assert!(told.message.contains(words), "{told}");
    }
}

#[tokio::test]
async fn a_managed_identity_uses_the_metadata_service_without_a_proxy() {
    let machine = Loopback::start(vec![
        granted_here("ours"),
        granted_here("other"),
        answer(
            400,
            &[],
            "{\"error\":\"invalid_request\",\"error_description\":\"Identity not found\"}",
        ),
    ]);
    let url = machine.url() + "/msi/token";
    let mut variables = STRAY.to_vec();
    variables.extend([
        ("IDENTITY_ENDPOINT", url.as_str()),
        ("IDENTITY_HEADER", "h-1"),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("HTTPS_PROXY", "http://127.0.0.1:1"),
    ]);
    const NAME: &str = name!("a_managed_identity_uses_the_metadata_service_without_a_proxy");
    if !with_environment(NAME, &variables) {
        let requests = machine.requests();
        let asked =
            "GET /msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fstorage.azure.com";
        assert!(requests[0].starts_with(&format!("{asked} HTTP")));
        assert!(requests[0].contains("metadata: true\r\n"));
        assert!(requests[0].contains("x-identity-header: h-1\r\n"));
        assert!(requests[1].starts_with(&format!("{asked}&client_id=app-1 HTTP")));
        return;
    }
    let any = AzureAuth::ManagedIdentity { client_id: None };
    let one = AzureAuth::ManagedIdentity {
        client_id: Some("app-1".into()),
    };
    let ours = tokens(&any).unwrap();
    assert_eq!(bearer(ours.current().await).as_deref(), Ok("ours"));
    let left = ours.expire().unwrap();
    let left = left.duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((3_500..=3_600).contains(&left), "{left}");
    let other = tokens(&one).unwrap();
    assert_eq!(bearer(other.current().await).as_deref(), Ok("other"));
    let told = bearer(tokens(&one).unwrap().current().await).unwrap_err();
    assert_eq!(
        told,
        "invalid_request: Identity not found; no token for the managed identity app-1: check that this machine \
         has the identity, and client_id if it has several"
    );
}

#[tokio::test]
async fn all_callers_wait_once_for_a_silent_metadata_service() {
    let machine = Loopback::start(vec![Reply::Hang]);
    const NAME: &str = name!("all_callers_wait_once_for_a_silent_metadata_service");
    if !with_environment(NAME, &[("IDENTITY_ENDPOINT", &machine.url())]) {
        assert_eq!(machine.requests().len(), 1);
        return;
    }
    let mut tokens = tokens(&AzureAuth::ManagedIdentity { client_id: None }).unwrap();
    assert_eq!(tokens.fetch_timeout, FETCH_TIMEOUT);
    tokens.fetch_timeout = Duration::from_millis(200);
    for had in futures::future::join_all((0..8).map(|_| tokens.current())).await {
        let told = bearer(had).unwrap_err();
        assert!(
            told.starts_with("timeout: no token from http://127.0.0.1:"),
            "{told}"
        );
    }
}

#[test]
fn tokens_are_not_sent_unencrypted() {
    const NAME: &str = name!("tokens_are_not_sent_unencrypted");
    if !with_environment(NAME, &[("AZURE_AUTHORITY_HOST", "http://login.example")]) {
        return;
    }
    let told = tokens(&client_secret(fixed())).unwrap_err();
    assert_eq!(told.key, "AZURE_AUTHORITY_HOST");
    assert!(told.message.contains("write https://"), "{told}");
    let auth = AzureAuth::ManagedIdentity { client_id: None };
    let azure = blob::azure("http://store.example".into(), false, auth);
    let Err(told) = blob::sink(azure, &blob::Ear::default()) else {
        panic!("a store without TLS is refused");
    };
    assert_eq!(told.key, "endpoint");
    assert!(told.message.contains("unencrypted"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_endless_response_of_a_token_service_is_abandoned() {
    const NAME: &str = name!("an_endless_response_of_a_token_service_is_abandoned");
    let begin = r#"{"access_token":"a","expires_in":3600,"more":""#;
    for status in [200, 400] {
        let entra = Loopback::start(vec![endless(status, &[], begin)]);
        let (status, url) = (status.to_string(), entra.url());
        let variables = [
            ("AZURE_AUTHORITY_HOST", url.as_str()),
            ("STATUS_OF_THE_TEST", &status),
        ];
        if !with_environment(NAME, &variables) {
            let sent = entra.sent();
            assert!(
                sent > 0 && sent < IN_BUFFERS,
                "{status}: {sent} bytes were read"
            );
            continue;
        }
        let tokens = tokens(&client_secret(fixed())).unwrap();
        let told = bearer(tokens.current().await).unwrap_err();
        let expected = match &*std::env::var("STATUS_OF_THE_TEST").unwrap() {
            "200" => "too_long: the response of 127.0.0.1:",
            _ => "HTTP 400: no reason given; no token for",
        };
        assert!(told.starts_with(expected), "{told}");
        return;
    }
}
