//! Credentials, region and HTTP client for AWS, shared by the Firehose sink and `s3://`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::identity::IdentityCache;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use futures::future::{BoxFuture, FutureExt as _, Shared};
#[cfg(feature = "s3")]
use object_store::{CredentialProvider, aws::AwsCredential};

use crate::config::{self, CaError, Problem, keys};
use crate::log::causes;
use crate::sink::http::{self, BodyLimit, Proxies};
use crate::sink::tls;

/// The longest response of an AWS service, in bytes. The longest documented one is PutRecordBatch's for 500 records,
/// each with an id of about 220 bytes, or an error code and message: this leaves 2 KiB for each.
const RESPONSE_BYTES: usize = 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of the whole credential chain. Off the cloud the metadata service takes one second of it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The time before expiry at which credentials are refreshed, enough for many failed attempts.
const MARGIN: Duration = Duration::from_secs(5 * 60);
/// The refresh interval of credentials without an expiry, which may still be rotated, for instance in a profile's file.
const NEVER: Duration = Duration::from_secs(15 * 60);
/// The minimum time between two fetches, whatever their result.
const PAUSE: Duration = Duration::from_secs(5);

/// The configuration of clients of AWS services.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Region, credentials, HTTP client and timeouts, without retries. It does not contain the endpoint of
    /// [`config::Aws`], which must not be used for STS.
    pub sdk: SdkConfig,
    /// The credentials that `sdk` uses, to report a refusal to.
    pub credentials: CredentialCache,
    /// The region in `sdk`.
    pub region: String,
    /// Whether FIPS endpoints are required.
    pub fips: bool,
    /// Whether dual-stack endpoints are wanted.
    pub dualstack: bool,
}

/// Why a service cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The private CA cannot be trusted.
    #[error("tls_ca_file {0}")]
    Ca(#[from] CaError),
    /// No region is configured.
    #[error("no region found: set region, AWS_REGION, or one in the profile")]
    NoRegion,
    /// FIPS endpoints are required, and the configured one is none.
    #[error("{0}")]
    Fips(String),
    /// A proxy that the environment names cannot be used.
    #[error("{0}")]
    Proxy(Problem),
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Problem {
        match error {
            LoadError::Ca(error) => Problem::new(keys::TLS_CA_FILE.name, error.to_string()),
            LoadError::NoRegion => Problem::new(keys::REGION.name, error.to_string()),
            LoadError::Proxy(problem) => problem,
            LoadError::Fips(message) => Problem::new(keys::USE_FIPS_ENDPOINT.name, message),
        }
    }
}

/// Resolves region and credentials: the configured ones, then the default chain (environment, profile with SSO and
/// `credential_process`, web identity, ECS, EC2), then the role to assume. Only the lookup of a region that nothing
/// names may use the network; credentials are fetched on first use. Fails without a region, or if [`config::check_ca`]
/// would refuse the CA.
pub async fn load(aws: &config::Aws, ca_pem: Option<&[u8]>) -> Result<Loaded, LoadError> {
    let http = SdkHttp {
        tls: tls::client_config(ca_pem)?,
        proxies: Proxies::from_environment().map_err(LoadError::Proxy)?,
        clients: Mutex::default(),
    };
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(SharedHttpClient::new(http))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .build(),
        );
    if let Some(profile) = &aws.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = &aws.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(fips) = aws.use_fips {
        loader = loader.use_fips(fips);
    }
    if let Some(dualstack) = aws.use_dualstack {
        loader = loader.use_dual_stack(dualstack);
    }
    let sdk = loader.load().await;
    let fips = sdk.use_fips() == Some(true);
    let dualstack = sdk.use_dual_stack() == Some(true);
    if let Some(endpoint) = aws.endpoint.as_deref().or(sdk.endpoint_url()) {
        check_fips(fips, endpoint).map_err(|problem| LoadError::Fips(problem.message))?;
    }
    let region = sdk.region().map(ToString::to_string);
    let region = region.ok_or(LoadError::NoRegion)?;

    let chain = sdk
        .credentials_provider()
        .expect("the loader always sets one");
    let sts = sts_config(&sdk, aws.sts_endpoint.as_deref());
    let chain = match WebIdentity::from_env(&sts) {
        // The default chain's web identity provider does not support another endpoint.
        Some(identity) if aws.sts_endpoint.is_some() && aws.profile.is_none() => {
            let environment = EnvironmentVariableCredentialsProvider::new();
            let chain = CredentialsProviderChain::first_try("Environment", environment)
                .or_else("WebIdentity", identity)
                .or_else("Default", chain);
            SharedCredentialsProvider::new(chain)
        }
        _ => chain,
    };
    let source = match &aws.role_arn {
        Some(role) => {
            let mut role = AssumeRoleProvider::builder(role)
                .session_name("ferry")
                .configure(&sts);
            if let Some(id) = &aws.external_id {
                role = role.external_id(id);
            }
            SharedCredentialsProvider::new(role.build_from_provider(chain).await)
        }
        None => chain,
    };
    let credentials = CredentialCache::new(source);
    let mut sdk = sdk.into_builder();
    if aws.endpoint.is_some() {
        // The SDK refuses an address together with either, even if it is one of that kind. STS has its own.
        sdk = sdk.use_fips(false).use_dual_stack(false);
    }
    let sdk = sdk
        .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::disabled())
        .build();
    Ok(Loaded {
        sdk,
        credentials,
        region,
        fips,
        dualstack,
    })
}

/// Refuses the address of a service that is no FIPS endpoint if those are required. To pass over what the environment
/// demands would be a breach.
pub(crate) fn check_fips(fips: bool, endpoint: &str) -> Result<(), Problem> {
    if !fips || config::is_fips_endpoint(endpoint) {
        return Ok(());
    }
    let message = format!(
        "FIPS endpoints are required (use_fips_endpoint, AWS_USE_FIPS_ENDPOINT or the profile), and '{}' is none: name a FIPS \
         endpoint, or set use_fips_endpoint off",
        config::without_secrets(endpoint)
    );
    Err(Problem::new(keys::USE_FIPS_ENDPOINT.name, message))
}

/// The SDK's adapter to [`http::Client`]: one client for each of the SDK's two connect timeouts.
#[derive(Debug)]
struct SdkHttp {
    tls: Arc<rustls::ClientConfig>,
    proxies: Proxies,
    clients: Mutex<HashMap<Duration, http::Client<SdkBody>>>,
}

impl HttpClient for SdkHttp {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connect_timeout = settings.connect_timeout().unwrap_or(CONNECT_TIMEOUT);
        let mut clients = self.clients.lock().expect("nothing panics with this lock");
        let client = clients
            .entry(connect_timeout)
            .or_insert_with(|| http::Client::new(&self.tls, &self.proxies, connect_timeout))
            .clone();
        SharedHttpConnector::new(SdkRequests {
            client,
            read_timeout: settings.read_timeout(),
        })
    }
}

#[derive(Debug)]
struct SdkRequests {
    client: http::Client<SdkBody>,
    /// The timeout for the head of a response.
    read_timeout: Option<Duration>,
}

impl HttpConnector for SdkRequests {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        request.extensions_mut().insert(BodyLimit(RESPONSE_BYTES));
        let (client, read_timeout) = (self.client.clone(), self.read_timeout);
        HttpConnectorFuture::new(async move {
            let sending = client.send(request);
            let response = match read_timeout {
                Some(limit) => tokio::time::timeout(limit, sending)
                    .await
                    .map_err(|elapsed| ConnectorError::timeout(elapsed.into()))?,
                None => sending.await,
            };
            let response = response.map_err(ConnectorError::io)?;
            HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Returns the configuration for STS. With an endpoint of its own it is built from scratch, since an endpoint in the
/// environment would override one in a copy of `sdk`.
fn sts_config(sdk: &SdkConfig, endpoint: Option<&str>) -> SdkConfig {
    let Some(endpoint) = endpoint else {
        return sdk.clone();
    };
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(sdk.region().cloned())
        .endpoint_url(endpoint);
    config.set_http_client(sdk.http_client());
    config.set_timeout_config(sdk.timeout_config().cloned());
    config.set_retry_config(sdk.retry_config().cloned());
    config.set_sleep_impl(sdk.sleep_impl());
    config.set_time_source(sdk.time_source());
    config.build()
}

/// A provider that assumes a role with a token in a file, as on Kubernetes.
#[derive(Debug)]
struct WebIdentity {
    sts: aws_sdk_sts::Client,
    token_file: PathBuf,
    role: String,
    session: String,
}

impl WebIdentity {
    /// Creates the provider if the environment names a token file and a role.
    fn from_env(sts: &SdkConfig) -> Option<Self> {
        Some(WebIdentity {
            token_file: std::env::var_os("AWS_WEB_IDENTITY_TOKEN_FILE")?.into(),
            role: std::env::var("AWS_ROLE_ARN").ok()?,
            session: std::env::var("AWS_ROLE_SESSION_NAME").unwrap_or_else(|_| "ferry".into()),
            sts: aws_sdk_sts::Client::new(sts),
        })
    }

    async fn assume(&self) -> Result<Credentials, CredentialsError> {
        let token = tokio::fs::read_to_string(&self.token_file).await;
        let token = token.map_err(CredentialsError::provider_error)?;
        let response = self
            .sts
            .assume_role_with_web_identity()
            .role_arn(&self.role)
            .role_session_name(&self.session)
            .web_identity_token(token.trim())
            .send()
            .await
            .map_err(CredentialsError::provider_error)?;
        let assumed = response
            .credentials
            .ok_or_else(|| CredentialsError::unhandled("STS returned no credentials"))?;
        let expiry =
            SystemTime::try_from(assumed.expiration).map_err(CredentialsError::unhandled)?;
        Ok(Credentials::new(
            assumed.access_key_id,
            assumed.secret_access_key,
            Some(assumed.session_token),
            Some(expiry),
            "WebIdentity",
        ))
    }
}

impl ProvideCredentials for WebIdentity {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.assume())
    }
}

/// A cache of credentials, which are refreshed shortly before they expire. Concurrent callers share one fetch.
#[derive(Clone, Debug)]
pub struct CredentialCache {
    source: SharedCredentialsProvider,
    held: Arc<Mutex<Held>>,
}

/// A fetch in progress. Its error is text, so that all waiting callers can share it.
type Fetch = Shared<BoxFuture<'static, Result<Credentials, String>>>;

#[derive(Debug, Default)]
struct Held {
    credentials: Option<Credentials>,
    refresh: Option<SystemTime>,
    fetched: Option<Instant>,
    error: Option<String>,
    fetching: Option<Fetch>,
}

impl Held {
    /// Returns the result that needs no fetch: valid credentials, or a recent error.
    fn known(&self) -> Option<Result<Credentials, String>> {
        if let Some(credentials) = &self.credentials
            && self
                .refresh
                .is_some_and(|refresh| SystemTime::now() < refresh)
        {
            return Some(Ok(credentials.clone()));
        }
        let recently = self
            .fetched
            .is_some_and(|fetched| fetched.elapsed() < PAUSE);
        self.error.clone().filter(|_| recently).map(Err)
    }

    /// Stores the result of a fetch. If it failed, the previous credentials are used until they expire.
    fn store(&mut self, fetched: Result<Credentials, String>) -> Result<Credentials, String> {
        let now = SystemTime::now();
        self.fetching = None;
        self.fetched = Some(Instant::now());
        match fetched {
            Ok(credentials) => {
                let expiry = credentials.expiry().unwrap_or(now + NEVER + MARGIN);
                self.refresh = Some((expiry - MARGIN).max(now + PAUSE).min(expiry));
                self.error = None;
                self.credentials = Some(credentials.clone());
                Ok(credentials)
            }
            Err(error) => match &self.credentials {
                Some(old) if old.expiry().is_none_or(|expiry| now < expiry) => {
                    self.refresh = Some(now + PAUSE);
                    Ok(old.clone())
                }
                _ => {
                    self.error = Some(error.clone());
                    Err(error)
                }
            },
        }
    }
}

impl CredentialCache {
    fn new(source: SharedCredentialsProvider) -> Self {
        CredentialCache {
            source,
            held: Arc::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("nothing panics with this lock")
    }

    /// Reports that a service refused the credentials, so that the next request fetches new ones. Credentials that were
    /// fetched just now are kept, since they did not sign the refused request.
    pub fn refused(&self) {
        let mut held = self.held();
        if held
            .fetched
            .is_some_and(|fetched| fetched.elapsed() > PAUSE)
        {
            held.credentials = None;
            held.error = None;
        }
    }

    /// The expiry of the cached credentials; `None` where they do not expire, or there are none yet.
    pub fn expire(&self) -> Option<SystemTime> {
        self.held().credentials.as_ref()?.expiry()
    }

    async fn current(&self) -> Result<Credentials, CredentialsError> {
        let fetch = {
            let mut held = self.held();
            if let Some(known) = held.known() {
                return known.map_err(CredentialsError::provider_error);
            }
            let begin = || self.clone().fetch().boxed().shared();
            held.fetching.get_or_insert_with(begin).clone()
        };
        fetch.await.map_err(CredentialsError::provider_error)
    }

    async fn fetch(self) -> Result<Credentials, String> {
        let fetch = tokio::time::timeout(FETCH_TIMEOUT, self.source.provide_credentials());
        let fetched = fetch
            .await
            .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(FETCH_TIMEOUT)))
            .map_err(|error| causes(&error));
        self.held().store(fetched)
    }
}

impl ProvideCredentials for CredentialCache {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.current())
    }
}

#[cfg(feature = "s3")]
impl CredentialProvider for CredentialCache {
    type Credential = AwsCredential;

    fn get_credential<'s, 'f>(&'s self) -> BoxFuture<'f, object_store::Result<Arc<AwsCredential>>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async {
            let credentials = self.current().await.map_err(|error| {
                let message = causes(&error);
                object_store::Error::Unauthenticated {
                    path: String::new(),
                    source: message.into(),
                }
            })?;
            Ok(Arc::new(AwsCredential {
                key_id: credentials.access_key_id().to_owned(),
                secret_key: credentials.secret_access_key().to_owned(),
                token: credentials.session_token().map(str::to_owned),
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex as StdMutex;

    use super::*;
    use crate::sink::blob::loopback::{
        IN_BUFFERS, Loopback, Reply, answer, endless, with_environment,
    };

    const STATIC: [(&str, &str); 2] = [
        ("AWS_ACCESS_KEY_ID", "AKIDCHAIN"),
        ("AWS_SECRET_ACCESS_KEY", "c2VjcmV0"),
    ];

    fn aws(sts_endpoint: Option<String>, role_arn: Option<&str>) -> config::Aws {
        config::Aws {
            region: Some("eu-west-1".into()),
            role_arn: role_arn.map(str::to_owned),
            external_id: role_arn.map(|_| "ours".into()),
            sts_endpoint,
            ..config::Aws::default()
        }
    }

    /// A response of STS to either way of assuming a role.
    fn assumed(operation: &str) -> Reply {
        let body = format!(
            "<{operation}Response><{operation}Result><Credentials><AccessKeyId>AKIDROLE</AccessKeyId>\
             <SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
             <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></{operation}Result>\
             </{operation}Response>"
        );
        answer(200, &[("Content-Type", "text/xml")], &body)
    }

    async fn key_id(loaded: &Loaded) -> String {
        let credentials = CredentialProvider::get_credential(&loaded.credentials).await;
        credentials.expect("credentials").key_id.clone()
    }

    #[tokio::test]
    async fn the_role_is_assumed_at_the_sts_endpoint_and_kept() {
        let environment = [
            &STATIC[..],
            &[("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")],
        ]
        .concat();
        if !with_environment(
            "sink::aws::tests::the_role_is_assumed_at_the_sts_endpoint_and_kept",
            &environment,
        ) {
            return;
        }
        let sts = Loopback::start(vec![assumed("AssumeRole")]);
        let aws = aws(Some(sts.url()), Some("arn:aws:iam::1:role/r"));
        let loaded = load(&aws, None).await.unwrap();
        for _ in 0..3 {
            assert_eq!(key_id(&loaded).await, "AKIDROLE");
        }
        let requests = sts.requests();
        assert_eq!(requests.len(), 1);
        for part in [
            "RoleSessionName=ferry",
            "ExternalId=ours",
            "role%2Fr",
            "Credential=AKIDCHAIN",
        ] {
            assert!(requests[0].contains(part), "{part} in {}", requests[0]);
        }
    }

    #[tokio::test]
    async fn a_certificate_that_cannot_be_used_is_a_matter_of_its_own_key() {
        for pem in [
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n",
        ] {
            let problem = load(&aws(None, None), Some(pem.as_bytes())).await;
            let error = problem.expect_err("a bad certificate");
            let problem = Problem::from(error);
            assert_eq!(problem.key, "tls_ca_file", "{problem}");
            assert!(!problem.message.contains("region"), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_web_identity_goes_to_the_sts_endpoint_too() {
        let token = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let environment = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/pod"),
        ];
        if !with_environment(
            "sink::aws::tests::a_web_identity_goes_to_the_sts_endpoint_too",
            &environment,
        ) {
            return;
        }
        let sts = Loopback::start(vec![assumed("AssumeRoleWithWebIdentity")]);
        let loaded = load(&aws(Some(sts.url()), None), None).await.unwrap();
        assert_eq!(key_id(&loaded).await, "AKIDROLE");
        let requests = sts.requests();
        assert!(requests[0].contains("WebIdentityToken="), "{}", requests[0]);
        assert!(requests[0].contains("role%2Fpod"), "{}", requests[0]);
    }

    #[tokio::test]
    async fn proxies_of_the_environment_are_used_except_where_no_proxy_matches() {
        let proxy = Loopback::start(vec![assumed("AssumeRole"), Reply::Cut]);
        let url = proxy.url();
        let environment = [
            // For https, too: Fluent Bit reads no other variable.
            ("HTTP_PROXY", url.as_str()),
            ("NO_PROXY", "127.0.0.1"),
        ];
        let environment = [&STATIC[..], &environment].concat();
        if !with_environment(
            "sink::aws::tests::proxies_of_the_environment_are_used_except_where_no_proxy_matches",
            &environment,
        ) {
            let requests = proxy.requests();
            assert!(
                requests[0].starts_with("POST http://sts.invalid/ HTTP/1.1"),
                "{requests:?}"
            );
            assert!(
                requests[1].starts_with("CONNECT sts.invalid:443 HTTP/1.1"),
                "{requests:?}"
            );
            return;
        }
        let role = Some("arn:aws:iam::1:role/r");
        let direct = Loopback::start(vec![assumed("AssumeRole")]);
        for endpoint in ["http://sts.invalid".to_owned(), direct.url()] {
            let loaded = load(&aws(Some(endpoint), role), None).await.unwrap();
            assert_eq!(key_id(&loaded).await, "AKIDROLE");
        }
        let loaded = load(&aws(Some("https://sts.invalid".into()), role), None)
            .await
            .unwrap();
        assert!(
            loaded.credentials.current().await.is_err(),
            "the proxy hung up"
        );
    }

    #[tokio::test]
    async fn a_role_that_may_not_be_assumed_is_reported_with_the_message_of_sts() {
        const NAME: &str =
            "sink::aws::tests::a_role_that_may_not_be_assumed_is_reported_with_the_message_of_sts";
        if !with_environment(NAME, &STATIC) {
            return;
        }
        let body = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>User: u is not authorized to \
                    perform: sts:AssumeRole</Message></Error><RequestId>r</RequestId></ErrorResponse>";
        let sts = Loopback::start(vec![answer(403, &[], body)]);
        let loaded = load(&aws(Some(sts.url()), Some("arn:aws:iam::1:role/r")), None).await;
        let error = CredentialProvider::get_credential(&loaded.unwrap().credentials).await;
        let message = error.unwrap_err().to_string();
        assert!(
            message.contains("is not authorized to perform: sts:AssumeRole"),
            "{message}"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn an_endless_response_of_sts_is_abandoned() {
        const NAME: &str = "sink::aws::tests::an_endless_response_of_sts_is_abandoned";
        if !with_environment(NAME, &STATIC) {
            return;
        }
        for status in [200, 500] {
            let sts = Loopback::start(vec![endless(status, &[], "<AssumeRoleResponse>")]);
            let aws = aws(Some(sts.url()), Some("arn:aws:iam::1:role/r"));
            let loaded = load(&aws, None).await.unwrap();
            let error = CredentialProvider::get_credential(&loaded.credentials).await;
            assert!(error.is_err(), "{status}");
            let sent = sts.sent();
            assert!(
                sent > 0 && sent < IN_BUFFERS,
                "{status}: {sent} bytes were read"
            );
        }
    }

    #[tokio::test]
    async fn fips_and_dual_stack_are_taken_from_key_or_environment_and_never_passed_over() {
        const NAME: &str = "sink::aws::tests::fips_and_dual_stack_are_taken_from_key_or_environment_and_never_passed_over";
        let environment = [
            ("AWS_USE_FIPS_ENDPOINT", "true"),
            ("AWS_USE_DUALSTACK_ENDPOINT", "true"),
        ];
        if !with_environment(NAME, &environment) {
            return;
        }
        let with = |endpoint: Option<&str>, use_fips| config::Aws {
            endpoint: endpoint.map(str::to_owned),
            use_fips,
            ..aws(None, None)
        };
        let loaded = load(&with(None, None), None).await.unwrap();
        assert!(loaded.fips && loaded.dualstack);
        assert_eq!(loaded.sdk.use_fips(), Some(true));
        assert!(!load(&with(None, Some(false)), None).await.unwrap().fips);

        let plain = Some("https://s3.example");
        let refused = load(&with(plain, None), None)
            .await
            .expect_err("no FIPS endpoint");
        let problem = Problem::from(refused);
        assert_eq!(problem.key, "use_fips_endpoint");
        assert!(
            problem.message.contains("'https://s3.example' is none"),
            "{problem}"
        );
        assert!(load(&with(plain, Some(false)), None).await.is_ok());
        let fips = Some("https://vpce-1.firehose-fips.us-east-1.vpce.amazonaws.com");
        let loaded = load(&with(fips, None), None).await.unwrap();
        assert_eq!(
            loaded.sdk.use_fips(),
            Some(false),
            "the address is used as it is"
        );
    }

    #[tokio::test]
    async fn without_a_region_or_with_a_broken_ca_the_key_is_named() {
        if with_environment(
            "sink::aws::tests::without_a_region_or_with_a_broken_ca_the_key_is_named",
            &[],
        ) {
            let error = load(&config::Aws::default(), None).await.unwrap_err();
            let problem = Problem::from(error);
            assert_eq!(problem.key, "region");
            assert!(
                problem.message.contains("set region, AWS_REGION"),
                "{problem}"
            );
            let error = load(&config::Aws::default(), Some(b"")).await.unwrap_err();
            let problem = Problem::from(error);
            assert_eq!(problem.key, "tls_ca_file");
            assert!(problem.message.contains("no certificate"), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_metadata_service_that_stays_silent_is_given_up_within_seconds() {
        let silent = Loopback::start(vec![Reply::Hang, Reply::Hang]);
        let url = silent.url();
        let environment = [
            ("AWS_EC2_METADATA_DISABLED", "false"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str()),
        ];
        if !with_environment(
            "sink::aws::tests::a_metadata_service_that_stays_silent_is_given_up_within_seconds",
            &environment,
        ) {
            return;
        }
        let loaded = load(&aws(None, None), None).await.unwrap();
        let start = Instant::now();
        let error = CredentialProvider::get_credential(&loaded.credentials)
            .await
            .unwrap_err();
        assert!(
            matches!(error, object_store::Error::Unauthenticated { .. }),
            "{error}"
        );
        assert!(start.elapsed() < FETCH_TIMEOUT / 2, "{:?}", start.elapsed());
    }

    /// A provider with scripted results; `None` is a failure.
    #[derive(Debug)]
    struct Source(StdMutex<VecDeque<Option<Credentials>>>);

    impl ProvideCredentials for Source {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let next = self
                .0
                .lock()
                .unwrap()
                .pop_front()
                .expect("an unexpected fetch");
            let next = next.ok_or_else(|| CredentialsError::not_loaded("out of order"));
            future::ProvideCredentials::ready(next)
        }
    }

    fn cache(script: Vec<Option<Credentials>>) -> CredentialCache {
        CredentialCache::new(SharedCredentialsProvider::new(Source(StdMutex::new(
            script.into(),
        ))))
    }

    fn key(id: &str, seconds: u64) -> Option<Credentials> {
        let expiry = SystemTime::now() + Duration::from_secs(seconds);
        Some(Credentials::new(id, "s", None, Some(expiry), "test"))
    }

    /// Makes the credentials due for a refresh, and the pause between fetches over.
    async fn later(cache: &CredentialCache) {
        let mut held = cache.held();
        held.refresh = Some(SystemTime::now());
        held.fetched = Instant::now().checked_sub(PAUSE + Duration::from_secs(1));
    }

    async fn current(cache: &CredentialCache) -> String {
        match cache.current().await {
            Ok(credentials) => credentials.access_key_id().to_owned(),
            Err(error) => causes(&error),
        }
    }

    #[tokio::test]
    async fn credentials_are_cached_and_refreshed_before_they_expire() {
        let cache = cache(vec![
            key("first", 3600),
            key("second", 60),
            key("third", 3600),
        ]);
        assert_eq!(
            (current(&cache).await, current(&cache).await),
            ("first".into(), "first".into())
        );
        let expire = cache.expire().expect("an expiry");
        assert!(expire > SystemTime::now() + Duration::from_secs(3_500));
        let refresh = cache.held().refresh.unwrap();
        let left = refresh.duration_since(SystemTime::now()).unwrap();
        assert!(
            left > Duration::from_secs(3200) && left <= Duration::from_secs(3300),
            "{left:?}"
        );
        later(&cache).await;
        assert_eq!(current(&cache).await, "second");
        // Credentials that are due for a refresh at once are still not fetched at every request.
        assert_eq!(current(&cache).await, "second");
        later(&cache).await;
        assert_eq!(current(&cache).await, "third");
    }

    #[tokio::test]
    async fn refused_credentials_are_refreshed_once() {
        let cache = cache(vec![key("expired early", 3600), key("fresh", 3600)]);
        assert_eq!(current(&cache).await, "expired early");
        later(&cache).await;
        for _ in 0..3 {
            cache.refused();
            assert_eq!(
                current(&cache).await,
                "fresh",
                "later refusals are of the earlier ones"
            );
        }
    }

    #[tokio::test]
    async fn a_failed_fetch_keeps_valid_credentials_and_is_not_repeated_at_once() {
        let cache = cache(vec![
            key("old", 3600),
            None,
            key("expired", 0),
            None,
            key("new", 3600),
        ]);
        assert_eq!(current(&cache).await, "old");
        later(&cache).await;
        assert_eq!(
            (current(&cache).await, current(&cache).await),
            ("old".into(), "old".into())
        );
        later(&cache).await;
        assert_eq!(current(&cache).await, "expired");
        later(&cache).await;
        for _ in 0..3 {
            assert!(current(&cache).await.contains("out of order"));
        }
        later(&cache).await;
        assert_eq!(current(&cache).await, "new");
    }
}
