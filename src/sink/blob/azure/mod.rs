//! Azure Blob Storage, as far as `object_store` does not cover it: the service's URL, secrets in files that may change,
//! tokens, explanations of failures, and the creation of the container.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::Method;
use object_store::azure::{
    AzureAccessKey, AzureAuthorizer, AzureCredential, AzureCredentialProvider,
    MicrosoftAzureBuilder, split_sas,
};
use object_store::client::{HttpClient, HttpRequest};
use object_store::{
    CredentialProvider, HeaderMap, HeaderValue, ObjectStore, StaticCredentialProvider,
};
use url::Url;

use self::token::Tokens;
use super::answer::{Failure, SharedClient, http_client, listening_to};
use super::codes::Vendor;
use super::signing::{Signer, Signing};
use super::{CONNECT_TIMEOUT, Warn, endpoint_url, no_retries};
use crate::config::keys;
use crate::config::{
    self, AzureAuth, AzureCloud, ConnectionSecret, ConnectionString, ConnectionStringError,
    Problem, SecretSource,
};
use crate::sink::Class;
use crate::sink::http::Proxies;

mod token;

const EMULATOR_URL: &str = "http://127.0.0.1:10000";

/// A container of an account.
pub(super) struct Container {
    account: String,
    url: Url,
    client: HttpClient,
    credentials: AzureCredentialProvider,
    source: Source,
    pub(super) auto_create: bool,
}

/// The source of the credentials.
enum Source {
    /// The configuration.
    Fixed,
    File(Arc<SecretFile<AzureCredential>>),
    Tokens(Arc<Tokens>),
}

/// Creates the store and its container's handle. Reads a secret's file, but sends nothing.
pub(super) fn open(
    azure: &config::Azure,
    ca_pem: Option<&[u8]>,
    warn: &Warn,
    put_headers: HeaderMap,
) -> Result<(Arc<dyn ObjectStore>, Container), Problem> {
    let account = azure.account.as_str();
    let service = service_url(azure, account)?;
    if service.scheme() == "http" && !azure.auth.is_secret() && !super::is_loopback(&service) {
        let message = format!(
            "'{service}' would send the token of auth_type {} unencrypted: write https://",
            azure.auth.name()
        );
        return Err(Problem::new(keys::ENDPOINT.name, message));
    }
    let (credentials, source) = credentials(azure, ca_pem, warn)?;

    let client = listening_to(
        Vendor::Azure,
        http_client(ca_pem, &Proxies::from_environment()?, CONNECT_TIMEOUT)?,
    );
    let signer = Signer::Azure {
        credentials: Arc::clone(&credentials),
        account: account.to_owned(),
    };
    let signing = Signing::wrap(client.clone(), put_headers, signer);
    let problem = |e: object_store::Error| Problem::new(keys::ENDPOINT.name, e.to_string());
    let store = MicrosoftAzureBuilder::new()
        .with_account(account)
        .with_container_name(&azure.container)
        .with_endpoint(service.to_string())
        .with_credentials(Arc::clone(&credentials))
        .with_skip_signature(true)
        .with_http_connector(SharedClient(signing))
        .with_retry(no_retries())
        .build()
        .map_err(problem)?;
    let mut url = service;
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.push(&azure.container);
    }
    url.set_query(Some("restype=container"));
    let container = Container {
        account: account.to_owned(),
        url,
        client,
        credentials,
        source,
        auto_create: azure.auto_create_container,
    };
    Ok((Arc::new(store), container))
}

impl Container {
    /// The URL of the container.
    #[cfg(feature = "check")]
    pub(super) fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Creates the container if it does not exist.
    pub(super) async fn create(&self) -> Result<(), Failure> {
        match self.send(Method::PUT, &self.url).await {
            Err(exists) if exists.fault.code == "ContainerAlreadyExists" => Ok(()),
            created => created.map_err(|error| error.note("the container could not be created")),
        }
    }

    /// Deletes an object. (`object_store` would sign it as a part of a batch.)
    #[cfg(feature = "check")]
    pub(super) async fn remove(&self, path: &object_store::path::Path) -> Result<(), Failure> {
        let mut url = self.url.clone();
        url.set_query(None);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path.parts());
        }
        self.send(Method::DELETE, &url).await
    }

    /// Sends a request without a body.
    async fn send(&self, method: Method, url: &Url) -> Result<(), Failure> {
        let credential = self.credentials.get_credential().await?;
        let mut request = HttpRequest::new(Bytes::new().into());
        *request.method_mut() = method;
        *request.uri_mut() = url.as_str().parse().expect("a URL is a URI");
        request
            .headers_mut()
            .insert("content-length", HeaderValue::from_static("0"));
        AzureAuthorizer::new(&credential, &self.account).try_authorize(&mut request)?;
        self.client.execute(request).await?;
        Ok(())
    }

    /// Adds notes about the credentials to a failure: that they may be outdated since their file cannot be read, or the
    /// role that is missing. If the credentials of a request that started at `start` were refused, a token that it may
    /// have used is discarded.
    pub(super) async fn explain(&self, failure: Failure, start: Instant) -> Failure {
        let refused = failure.fault.class == Class::Credentials;
        let has_response = failure.status.is_some();
        if let (Source::Tokens(tokens), true, true) = (&self.source, refused, has_response) {
            tokens.refused(start).await;
        }
        let problem = match &self.source {
            Source::Fixed => None,
            Source::File(file) => file.problem(),
            Source::Tokens(tokens) => tokens.problem(),
        };
        let failure = match problem.filter(|_| refused) {
            Some(problem) => failure.note(problem),
            None => failure,
        };
        match (&self.source, failure.status) {
            (Source::Tokens(tokens), Some(401)) => failure.note(tokens.remedy()),
            (Source::Tokens(_), Some(403)) => failure.note(format_args!(
                "give the identity the role {ROLE} for the container"
            )),
            _ => failure,
        }
    }

    /// The expiry of the token in use.
    pub(super) fn expire(&self) -> Option<SystemTime> {
        match &self.source {
            Source::Tokens(tokens) => tokens.expire(),
            Source::Fixed | Source::File(_) => None,
        }
    }

    /// Fetches a token and returns its identity and expiry; `None` where requests use none.
    #[cfg(feature = "check")]
    pub(super) async fn token(&self) -> Option<Result<(String, Option<SystemTime>), Failure>> {
        let Source::Tokens(tokens) = &self.source else {
            return None;
        };
        let token = tokens.current().await;
        Some(token.map(|_| (tokens.identity().to_owned(), tokens.expire())))
    }
}

/// The least privileged role that suffices.
/// <https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/storage>
const ROLE: &str = "Storage Blob Data Contributor";

/// Returns the URL of the service, to which the container's name is appended.
fn service_url(azure: &config::Azure, account: &str) -> Result<Url, Problem> {
    let host = account
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if account.is_empty() || !host {
        let message = format!("'{account}' is not a storage account name: use letters and digits");
        return Err(Problem::new(keys::ACCOUNT_NAME.name, message));
    }
    let given = match &azure.endpoint {
        Some(endpoint) => endpoint.clone(),
        None if azure.emulator => EMULATOR_URL.into(),
        None => {
            let variable = |name: &str| std::env::var(name).ok();
            let cloud = azure.cloud.or_else(|| AzureCloud::of_environment(variable));
            let suffix = cloud.unwrap_or(AzureCloud::Public).blob_suffix();
            format!("https://{account}.{suffix}")
        }
    };
    let mut url = endpoint_url(&given)?;
    let path = url.path().trim_matches('/').to_owned();
    if path.is_empty() && azure.emulator {
        url.set_path(account);
    } else {
        url.set_path(&path);
    }
    Ok(url)
}

type Parse<T> = Box<dyn Fn(&str) -> Result<T, SecretError> + Send + Sync>;

/// What is wrong with a secret; it goes on from the name of what that is in, and does not show it.
#[derive(Debug, thiserror::Error)]
enum SecretError {
    #[error("is empty")]
    Empty,
    #[error("is not a storage account's key: give it in base64, as the portal shows it")]
    Key,
    #[error("is not a shared access signature: give it as it was issued, 'sv=...&sig=...'")]
    Sas,
    #[error(transparent)]
    ConnectionString(#[from] ConnectionStringError),
    /// Of a connection string that is sound, its key or signature.
    #[error("holds {0} that {1}")]
    Part(&'static str, #[source] Box<SecretError>),
    /// A connection string is another one's successor, and for another place.
    #[error("names another account or endpoint than at the start: restart to use it")]
    Elsewhere,
}

/// Why a secret cannot be had from a file.
#[derive(Debug, thiserror::Error)]
enum SecretFileError {
    #[error("'{}' cannot be read: {error}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    #[error("the content of '{}' {error}", path.display())]
    Content {
        path: PathBuf,
        #[source]
        error: SecretError,
    },
}

fn credentials(
    azure: &config::Azure,
    ca_pem: Option<&[u8]>,
    warn: &Warn,
) -> Result<(AzureCredentialProvider, Source), Problem> {
    let (key, source, parse): (_, _, Parse<AzureCredential>) = match &azure.auth {
        AzureAuth::SharedKey(source) => ("shared_key", source, Box::new(shared_key)),
        AzureAuth::Sas(source) => ("sas_token", source, Box::new(sas)),
        AzureAuth::ConnectionString(source) => {
            let azure = azure.clone();
            let parse = move |text: &str| connection_string(text, &azure);
            ("connection_string", source, Box::new(parse))
        }
        AzureAuth::ManagedIdentity { .. }
        | AzureAuth::WorkloadIdentity { .. }
        | AzureAuth::ClientSecret { .. } => {
            let tokens = Arc::new(Tokens::open(&azure.auth, azure.cloud, ca_pem, warn)?);
            return Ok((Arc::clone(&tokens) as _, Source::Tokens(tokens)));
        }
    };
    match source {
        SecretSource::Value(secret) => {
            let credential = parse(secret.expose().trim());
            let credential = credential.map_err(|e| Problem::new(key, format!("the value {e}")))?;
            let fixed = Arc::new(StaticCredentialProvider::new(credential));
            Ok((fixed, Source::Fixed))
        }
        SecretSource::File(path) => {
            let file = SecretFile::open(path.clone(), parse, Arc::clone(warn));
            let file = Arc::new(file.map_err(|e| Problem::new(key, e.to_string()))?);
            Ok((Arc::clone(&file) as _, Source::File(file)))
        }
    }
}

/// The secret in a connection string for `azure`, which was configured with that string or an older one.
fn connection_string(text: &str, azure: &config::Azure) -> Result<AzureCredential, SecretError> {
    let now = ConnectionString::parse(text)?;
    let other_account = now.account.is_some_and(|account| account != azure.account);
    if other_account || now.endpoint != azure.endpoint {
        return Err(SecretError::Elsewhere);
    }
    let (name, credential) = match now.secret {
        ConnectionSecret::Key(key) => ("an AccountKey", shared_key(key.expose())),
        ConnectionSecret::Sas(text) => ("a SharedAccessSignature", sas(text.expose())),
    };
    credential.map_err(|error| SecretError::Part(name, Box::new(error)))
}

fn shared_key(text: &str) -> Result<AzureCredential, SecretError> {
    match AzureAccessKey::try_new(text) {
        Ok(key) if !text.is_empty() => Ok(AzureCredential::AccessKey(key)),
        _ => Err(SecretError::Key),
    }
}

fn sas(text: &str) -> Result<AzureCredential, SecretError> {
    match split_sas(text) {
        Ok(pairs) if pairs.iter().any(|(name, _)| name == "sig") => {
            Ok(AzureCredential::SASToken(pairs))
        }
        _ => Err(SecretError::Sas),
    }
}

/// A secret in a file, which is read again whenever the file changes. While the file cannot be read the previous secret
/// stays in use, so that an incomplete rotation does not stop delivery.
struct SecretFile<T> {
    path: PathBuf,
    parse: Parse<T>,
    warn: Warn,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    secret: Arc<T>,
    /// The version of the file that `secret` was read from.
    stamp: Stamp,
    /// The reason why the current version cannot be read.
    problem: Option<String>,
}

/// The version of a file, which changes when it is written or replaced: device, inode, length, modification time.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(file: &Metadata) -> Stamp {
    (
        file.dev(),
        file.ino(),
        file.len(),
        file.mtime(),
        file.mtime_nsec(),
    )
}

impl<T> SecretFile<T> {
    fn open(path: PathBuf, parse: Parse<T>, warn: Warn) -> Result<Self, SecretFileError> {
        let (secret, stamp) = read(&path, &parse)?;
        let held = Mutex::new(Held {
            secret,
            stamp,
            problem: None,
        });
        Ok(SecretFile {
            path,
            parse,
            warn,
            held,
        })
    }

    /// Returns the secret in the file. Blocks, since the file is small and local: reading it costs less than passing it
    /// to another thread.
    fn current(&self) -> Arc<T> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = std::fs::metadata(&self.path).is_ok_and(|file| stamp(&file) == held.stamp);
        if unchanged {
            held.problem = None;
        } else {
            match read(&self.path, &self.parse) {
                Ok((secret, stamp)) => {
                    *held = Held {
                        secret,
                        stamp,
                        problem: None,
                    }
                }
                Err(error) => {
                    let problem = format!("the previous secret stays in use: {error}");
                    if held.problem.as_ref() != Some(&problem) {
                        (self.warn)(&problem);
                        held.problem = Some(problem);
                    }
                }
            }
        }
        Arc::clone(&held.secret)
    }

    fn problem(&self) -> Option<String> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .problem
            .clone()
    }
}

fn read<T>(path: &Path, parse: &Parse<T>) -> Result<(Arc<T>, Stamp), SecretFileError> {
    // The stamp is taken first, so that a write in between is noticed next time.
    let stamped = std::fs::metadata(path).map(|file| stamp(&file));
    let text = stamped.and_then(|stamp| Ok((std::fs::read_to_string(path)?, stamp)));
    let path = || path.to_owned();
    let (text, stamp) = text.map_err(|error| SecretFileError::Unreadable {
        path: path(),
        error,
    })?;
    let secret = parse(text.trim());
    let secret = secret.map_err(|error| SecretFileError::Content {
        path: path(),
        error,
    })?;
    Ok((Arc::new(secret), stamp))
}

impl<T> fmt::Debug for SecretFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretFile").field(&self.path).finish()
    }
}

impl CredentialProvider for SecretFile<AzureCredential> {
    type Credential = AzureCredential;

    fn get_credential<'s, 'f>(&'s self) -> BoxFuture<'f, object_store::Result<Arc<AzureCredential>>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async { Ok(self.current()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn azure(endpoint: Option<&str>, emulator: bool) -> config::Azure {
        config::Azure {
            account: "logs".into(),
            container: "c".into(),
            auth: AzureAuth::SharedKey(SecretSource::Value(config::Secret::new(
                config::EMULATOR_KEY,
            ))),
            endpoint: endpoint.map(str::to_owned),
            emulator,
            auto_create_container: false,
            cloud: None,
        }
    }

    #[test]
    fn the_service_is_found_from_account_endpoint_and_emulator_mode() {
        let table = [
            (None, false, "https://logs.blob.core.windows.net/"),
            (None, true, "http://127.0.0.1:10000/logs"),
            (
                Some("http://127.0.0.1:7777"),
                true,
                "http://127.0.0.1:7777/logs",
            ),
            (
                Some("http://127.0.0.1:7777/logs/"),
                true,
                "http://127.0.0.1:7777/logs",
            ),
            (
                Some("http://127.0.0.1:7777/logs"),
                false,
                "http://127.0.0.1:7777/logs",
            ),
            (
                Some("https://logs.blob.example/"),
                false,
                "https://logs.blob.example/",
            ),
        ];
        for (endpoint, emulator, url) in table {
            let found = service_url(&azure(endpoint, emulator), "logs").unwrap();
            assert_eq!(found.as_str(), url, "{endpoint:?} {emulator}");
        }
        for (cloud, suffix) in [
            (AzureCloud::China, "core.chinacloudapi.cn"),
            (AzureCloud::UsGovernment, "core.usgovcloudapi.net"),
        ] {
            let azure = config::Azure {
                cloud: Some(cloud),
                ..azure(None, false)
            };
            let found = service_url(&azure, "logs").unwrap();
            assert_eq!(found.as_str(), format!("https://logs.blob.{suffix}/"));
        }
        let wrong = service_url(&azure(Some("logs.blob.example"), false), "logs").unwrap_err();
        assert!(wrong.message.contains("'logs.blob.example'"), "{wrong:?}");
    }

    #[test]
    fn a_wrong_secret_is_refused_without_being_shown() {
        for (auth, key) in [
            (
                AzureAuth::SharedKey as fn(SecretSource) -> AzureAuth,
                "shared_key",
            ),
            (AzureAuth::Sas, "sas_token"),
        ] {
            let secret = SecretSource::Value(config::Secret::new("hunter2 %"));
            let azure = config::Azure {
                auth: auth(secret),
                ..azure(None, false)
            };
            let warn: Warn = Arc::new(|_| {});
            let Err(problem) = credentials(&azure, None, &warn) else {
                panic!("{key} is refused");
            };
            assert_eq!(problem.key, key);
            assert!(!problem.message.contains("hunter2"), "{problem:?}");
        }
    }

    #[test]
    fn a_secret_file_is_read_again_when_it_changes_and_a_broken_one_leaves_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sas");
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let ear = Arc::clone(&heard);
        let warn: Warn = Arc::new(move |text| ear.lock().unwrap().push(text.to_owned()));
        let current = |file: &SecretFile<AzureCredential>| match &*file.current() {
            AzureCredential::SASToken(pairs) => pairs[0].1.clone(),
            other => panic!("{other:?}"),
        };

        std::fs::write(&path, "?sig=first\n").unwrap();
        let file = SecretFile::open(path.clone(), Box::new(sas), warn).unwrap();
        assert_eq!(current(&file), "first");

        // A rotation by renaming, to the same length.
        std::fs::write(folder.path().join("new"), "?sig=secnd\n").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(current(&file), "secnd");

        std::fs::write(&path, "half a secr").unwrap();
        assert_eq!(
            (current(&file), current(&file)),
            ("secnd".into(), "secnd".into())
        );
        let problem = file.problem().unwrap();
        assert!(problem.contains("sas' is not a shared access"), "{problem}");
        assert_eq!(
            *heard.lock().unwrap(),
            [problem],
            "logged once, not at each request"
        );

        std::fs::remove_file(&path).unwrap();
        assert_eq!(current(&file), "secnd");
        std::fs::write(&path, "sig=third").unwrap();
        assert_eq!((current(&file), file.problem()), ("third".into(), None));
        assert_eq!(heard.lock().unwrap().len(), 2);
    }
}
