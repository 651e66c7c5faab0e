//! Tokens of Microsoft Entra ID, for a managed identity, a workload identity or an application.
//!
//! `object_store` fetches them, and refreshes them five minutes before they expire. This module handles the rest: a
//! token service that does not respond, a token that is refused before it expires, a token service that fails while the
//! token is still valid, and explanations of failures.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use object_store::CredentialProvider;
use object_store::azure::{AzureCredential, AzureCredentialProvider, MicrosoftAzureBuilder};
use object_store::client::HttpClient;
use url::Url;

use super::super::answer::{Failure, SharedClient, http_client};
use super::super::codes::Fate;
use super::super::token::{Expiry, FETCH_TIMEOUT, TokenChecker};
use super::super::{CONNECT_TIMEOUT, Warn, endpoint_url, is_loopback, no_retries};
use super::{SecretError, SecretFile, SecretFileError};
use crate::config::keys;
use crate::config::{self, AzureAuth, AzureCloud, Problem, SecretSource};
use crate::sink::Class;
use crate::sink::http::Proxies;

/// The minimum time between a failed attempt and the next.
const PAUSE: Duration = Duration::from_secs(5);
/// Short, since outside Azure the metadata service's address is unreachable.
const METADATA_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

const METADATA_SERVICE: &str = "http://169.254.169.254/metadata/identity/oauth2/token";

/// The tokens of an identity.
pub(super) struct Tokens {
    identity: String,
    remedy: &'static str,
    /// The builder of providers; a new provider has no token yet.
    builder: MicrosoftAzureBuilder,
    secret: Secret,
    /// The file of the federated token that Kubernetes writes.
    federated: Option<PathBuf>,
    place: String,
    fetch_timeout: Duration,
    expiry: Expiry,
    warn: Warn,
    held: tokio::sync::Mutex<Held>,
}

/// The application's secret, if any.
enum Secret {
    None,
    Fixed(config::Secret),
    File(SecretFile<config::Secret>),
}

impl Secret {
    fn current(&self) -> Option<config::Secret> {
        match self {
            Secret::None => None,
            Secret::Fixed(secret) => Some(secret.clone()),
            Secret::File(file) => Some((*file.current()).clone()),
        }
    }
}

struct Held {
    provider: AzureCredentialProvider,
    /// The secret of `provider`.
    secret: Option<config::Secret>,
    token: Option<Token>,
    failed: Option<(Instant, Failure)>,
}

struct Token {
    credential: Arc<AzureCredential>,
    fetched: Instant,
    expiry: Option<SystemTime>,
}

impl Tokens {
    /// Resolves an identity from the configuration, the environment and files; sends nothing.
    pub(super) fn open(
        auth: &AzureAuth,
        cloud: Option<AzureCloud>,
        ca_pem: Option<&[u8]>,
        warn: &Warn,
    ) -> Result<Tokens, Problem> {
        let expiry = Expiry::default();
        // The builder requires an account and a container, which tokens do not depend on.
        let builder = MicrosoftAzureBuilder::new()
            .with_account("account")
            .with_container_name("container")
            .with_credential_type(auth.name())
            .with_retry(no_retries());
        let (mut secret, mut federated) = (Secret::None, None);
        let (builder, place, identity, remedy) = match auth {
            AzureAuth::ManagedIdentity { client_id } => {
                // App Service and Container Apps set this variable; virtual machines do not.
                let place = variable("IDENTITY_ENDPOINT").unwrap_or(METADATA_SERVICE.to_owned());
                let url = Url::parse(&place).ok().filter(Url::has_host);
                let Some(url) = url else {
                    let message = format!("'{place}' is not a URL");
                    return Err(Problem::new("IDENTITY_ENDPOINT", message));
                };
                let client = metadata_client(&expiry)?;
                let mut builder = builder
                    .with_http_connector(SharedClient(client))
                    .with_msi_endpoint(url);
                if let Some(id) = client_id {
                    builder = builder.with_client_id(id);
                }
                let identity = match client_id {
                    Some(id) => format!("the managed identity {id}"),
                    None => "the managed identity of this machine".to_owned(),
                };
                let remedy =
                    "check that this machine has the identity, and client_id if it has several";
                (builder, place, identity, remedy)
            }
            AzureAuth::WorkloadIdentity {
                tenant_id,
                client_id,
            } => {
                let found = |given: &Option<String>, name| given.clone().or_else(|| variable(name));
                let tenant = found(tenant_id, "AZURE_TENANT_ID");
                let id = found(client_id, "AZURE_CLIENT_ID");
                let file = variable("AZURE_FEDERATED_TOKEN_FILE");
                let (Some(tenant), Some(id), Some(file)) = (&tenant, &id, &file) else {
                    let missing = [
                        (tenant.is_none(), "AZURE_TENANT_ID (or tenant_id)"),
                        (id.is_none(), "AZURE_CLIENT_ID (or client_id)"),
                        (file.is_none(), "AZURE_FEDERATED_TOKEN_FILE"),
                    ];
                    let missing = missing.iter().filter(|(missing, _)| *missing);
                    let names: Vec<_> = missing.map(|(_, name)| *name).collect();
                    return Err(Problem::new(
                        keys::AUTH_TYPE.name,
                        format!(
                            "workload_identity needs {} in the environment: Azure sets it in a pod with the label \
                             azure.workload.identity/use: \"true\" whose ServiceAccount has the annotation \
                             azure.workload.identity/client-id",
                            names.join(", ")
                        ),
                    ));
                };
                if !config::is_tenant(tenant) {
                    let message = format!("'{tenant}' {}", config::NOT_A_TENANT);
                    return Err(Problem::new("AZURE_TENANT_ID", message));
                }
                if let Some(problem) = unreadable(file) {
                    return Err(Problem::new("AZURE_FEDERATED_TOKEN_FILE", problem));
                }
                let (client, authority) = authority(cloud, ca_pem, &expiry)?;
                let builder = builder
                    .with_http_connector(SharedClient(client))
                    .with_authority_host(&authority)
                    .with_tenant_id(tenant)
                    .with_client_id(id)
                    .with_federated_token_file(file);
                federated = Some(file.into());
                let identity = format!("the workload identity {id} of the tenant {tenant}");
                let remedy = "check tenant_id, client_id and the identity's federated credential";
                (builder, authority, identity, remedy)
            }
            AzureAuth::ClientSecret {
                tenant_id,
                client_id,
                secret: source,
            } => {
                let (client, authority) = authority(cloud, ca_pem, &expiry)?;
                let builder = builder
                    .with_http_connector(SharedClient(client))
                    .with_authority_host(&authority)
                    .with_tenant_id(tenant_id)
                    .with_client_id(client_id);
                secret = match source {
                    SecretSource::Value(secret) => Secret::Fixed(secret.clone()),
                    SecretSource::File(path) => {
                        let parse = |text: &str| match text {
                            "" => Err(SecretError::Empty),
                            text => Ok(config::Secret::new(text)),
                        };
                        let file =
                            SecretFile::open(path.clone(), Box::new(parse), Arc::clone(warn));
                        let problem = |e: SecretFileError| {
                            Problem::new(keys::CLIENT_SECRET.name, e.to_string())
                        };
                        Secret::File(file.map_err(problem)?)
                    }
                };
                let identity = format!("the application {client_id} of the tenant {tenant_id}");
                let remedy =
                    "check tenant_id, client_id and client_secret: the secret's value, not its ID";
                (builder, authority, identity, remedy)
            }
            AzureAuth::SharedKey(_) | AzureAuth::Sas(_) | AzureAuth::ConnectionString(_) => {
                unreachable!("they need no token")
            }
        };
        let now = secret.current();
        let provider = provider(&builder, now.as_ref());
        let held = tokio::sync::Mutex::new(Held {
            provider: provider.map_err(|e| Problem::new(keys::AUTH_TYPE.name, e.to_string()))?,
            secret: now,
            token: None,
            failed: None,
        });
        Ok(Tokens {
            identity,
            remedy,
            builder,
            secret,
            federated,
            place,
            fetch_timeout: FETCH_TIMEOUT,
            expiry,
            warn: Arc::clone(warn),
            held,
        })
    }

    /// A description of the identity.
    #[cfg(any(feature = "check", test))]
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// The remedy for a token that is refused or not granted.
    pub(super) fn remedy(&self) -> &'static str {
        self.remedy
    }

    /// The reason why the file of the application's secret cannot be read.
    pub(super) fn problem(&self) -> Option<String> {
        match &self.secret {
            Secret::File(file) => file.problem(),
            Secret::None | Secret::Fixed(_) => None,
        }
    }

    /// The expiry of the token fetched last.
    pub(super) fn expire(&self) -> Option<SystemTime> {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports that the store refused the token of a request that started at `start`, so that the next request fetches
    /// another. A token fetched since then is kept.
    pub(super) async fn refused(&self, start: Instant) {
        let mut held = self.held.lock().await;
        if held
            .token
            .as_ref()
            .is_some_and(|token| token.fetched <= start)
            && let Ok(provider) = provider(&self.builder, held.secret.as_ref())
        {
            held.provider = provider;
            held.token = None;
        }
    }

    /// Returns a valid token. Concurrent callers share one fetch; a failure is returned for [`PAUSE`] without another
    /// attempt.
    pub(super) async fn current(&self) -> Result<Arc<AzureCredential>, Failure> {
        let mut held = self.held.lock().await;
        let held = &mut *held;
        let secret = self.secret.current();
        if secret != held.secret
            && let Ok(provider) = provider(&self.builder, secret.as_ref())
        {
            held.provider = provider;
            held.secret = secret;
            held.failed = None;
        }
        if let Some((at, failure)) = &held.failed
            && at.elapsed() < PAUSE
        {
            return held.token_or(failure.clone());
        }
        let fetch = tokio::time::timeout(self.fetch_timeout, held.provider.get_credential());
        match fetch
            .await
            .map_err(|_| self.timed_out())
            .and_then(|fetched| fetched.map_err(|error| self.failure(&error.into())))
        {
            Ok(credential) => {
                let same = |token: &Token| Arc::ptr_eq(&token.credential, &credential);
                if !held.token.as_ref().is_some_and(same) {
                    held.token = Some(Token {
                        credential: Arc::clone(&credential),
                        fetched: Instant::now(),
                        expiry: self.expire(),
                    });
                }
                held.failed = None;
                Ok(credential)
            }
            Err(failure) => {
                let current = held.token_or(failure.clone());
                if current.is_ok() && held.failed.is_none() {
                    (self.warn)(&format!(
                        "no new token; the current one stays in use until it expires: {failure}"
                    ));
                }
                held.failed = Some((Instant::now(), failure));
                current
            }
        }
    }

    fn timed_out(&self) -> Failure {
        let limit = self.fetch_timeout;
        let message = format!("no token from {} within {limit:?}", self.place);
        self.failure(&Failure::new(
            Fate::Retry,
            Class::Credentials,
            "timeout",
            message,
        ))
    }

    /// Returns the failure of a request without a token. Nothing was sent to the store, so it has no status.
    fn failure(&self, cause: &Failure) -> Failure {
        let unreadable = self.federated.as_ref().and_then(unreadable);
        let message = match unreadable {
            Some(problem) => format!("AZURE_FEDERATED_TOKEN_FILE {problem}"),
            None => cause.fault.message.clone(),
        };
        let mut failure =
            Failure::new(Fate::Retry, Class::Credentials, &cause.fault.code, message).note(
                format_args!("no token for {}: {}", self.identity, self.remedy),
            );
        failure.fault.request_id.clone_from(&cause.fault.request_id);
        failure
    }
}

impl Held {
    /// Returns the token if it has not expired, and otherwise the failure.
    fn token_or(&self, failure: Failure) -> Result<Arc<AzureCredential>, Failure> {
        let valid = |token: &&Token| token.expiry.is_some_and(|end| SystemTime::now() < end);
        match self.token.as_ref().filter(valid) {
            Some(token) => Ok(Arc::clone(&token.credential)),
            None => Err(failure),
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tokens").field(&self.identity).finish()
    }
}

impl CredentialProvider for Tokens {
    type Credential = AzureCredential;

    fn get_credential<'s, 'f>(&'s self) -> BoxFuture<'f, object_store::Result<Arc<AzureCredential>>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async {
            let token = self.current().await;
            token.map_err(|failure| object_store::Error::Generic {
                store: "Azure",
                source: Box::new(failure),
            })
        })
    }
}

fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?.trim().to_owned();
    Some(value).filter(|value| !value.is_empty())
}

fn unreadable(file: impl AsRef<std::path::Path>) -> Option<String> {
    let file = file.as_ref();
    let error = std::fs::read_to_string(file).err()?;
    Some(format!("'{}' cannot be read: {error}", file.display()))
}

fn provider(
    builder: &MicrosoftAzureBuilder,
    secret: Option<&config::Secret>,
) -> object_store::Result<AzureCredentialProvider> {
    let mut builder = builder.clone();
    if let Some(secret) = secret {
        builder = builder.with_client_secret(secret.expose());
    }
    let store = builder.build()?;
    Ok(Arc::clone(store.credentials()))
}

/// Returns the client for Entra ID, which uses the environment's proxy, and the URL of the authority.
fn authority(
    cloud: Option<AzureCloud>,
    ca_pem: Option<&[u8]>,
    expiry: &Expiry,
) -> Result<(HttpClient, String), Problem> {
    const VARIABLE: &str = "AZURE_AUTHORITY_HOST";
    let cloud = cloud.or_else(|| AzureCloud::of_environment(variable));
    let of_cloud = || cloud.unwrap_or(AzureCloud::Public).authority().to_owned();
    let given = variable(VARIABLE).unwrap_or_else(of_cloud);
    let url = endpoint_url(&given).map_err(|e| Problem::new(VARIABLE, e.message))?;
    let plain = url.scheme() == "http";
    if plain && !is_loopback(&url) {
        let message = format!("'{url}' would send secrets unencrypted: write https://");
        return Err(Problem::new(VARIABLE, message));
    }
    let client = http_client(ca_pem, &Proxies::from_environment()?, CONNECT_TIMEOUT)?;
    let address = given.trim_end_matches('/').to_owned();
    Ok((TokenChecker::wrap(client, expiry), address))
}

/// Returns the client for the metadata service, which is local to this machine and not reachable through a proxy.
fn metadata_client(expiry: &Expiry) -> Result<HttpClient, Problem> {
    let client = http_client(None, &Proxies::None, METADATA_CONNECT_TIMEOUT)?;
    Ok(TokenChecker::wrap(client, expiry))
}

#[cfg(test)]
mod tests;
