//! Blob stores: Azure, S3, Google Cloud Storage, or a folder.
//!
//! An object is put as a whole, under a name that the caller chose, and only if it does not exist. So a put whose
//! response was lost can be retried: the existing object is then identified as ours or another's.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::{Path, PathPart};
use object_store::{
    Attribute, Attributes, GetOptions, GetResult, HeaderMap, ObjectStore, PutMode, PutOptions,
    RetryConfig, TagSet,
};
use tokio::sync::OnceCell;
use url::Url;

use super::{Batch, Class, Fault, Outcome, Shape, Sink};
use crate::buffers::Payload;
use crate::config::{self, Problem};
use crate::sink::Limits;
#[cfg(feature = "s3")]
use crate::sink::aws::CredentialCache;
use crate::sink::http::BodyLimit;
use answer::{Failure, PutTarget};
use codes::Fate;
use signing::ContentMd5;

#[doc(hidden)]
pub use answer::listening_to;
#[doc(hidden)]
pub use codes::Vendor;

mod answer;
mod azure;
mod codes;
#[cfg(feature = "gs")]
mod gcs;
#[cfg(test)]
pub(crate) mod loopback;
#[cfg(feature = "check")]
pub mod probe;
#[cfg(feature = "s3")]
mod s3;
mod signing;
mod token;

/// The metadata key of an object's token. Without a hyphen, since Azure requires identifiers.
const TOKEN: &str = "ferry_name";
/// The number of alternative names to try when another object has the name.
const RENAMES: usize = 3;
/// The slowest throughput that the timeout of a request allows for, beyond [`Timeout::base`].
const MIN_BYTES_PER_SECOND: u64 = 256 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest object of a single put, in bytes: 5 GiB in S3 and Google Cloud Storage, 5,000 MiB in Azure.
/// <https://learn.microsoft.com/rest/api/storageservices/put-blob#remarks>
const MAX_OBJECT_BYTES: usize = 5_000 * 1024 * 1024;

/// A callback that logs a warning.
pub type Warn = Arc<dyn Fn(&str) + Send + Sync>;

/// A sink that puts objects into a store.
pub struct BlobSink {
    config: config::Blob,
    /// Set at once, except for S3, whose region may have to be looked up.
    store: OnceCell<Store>,
    warn: Warn,
    timeout: Timeout,
    /// The headers of each put.
    #[cfg_attr(not(feature = "s3"), allow(dead_code))]
    put_headers: HeaderMap,
}

struct Store {
    objects: Arc<dyn ObjectStore>,
    kind: Kind,
}

enum Kind {
    File(PathBuf),
    #[cfg(feature = "s3")]
    S3(CredentialCache),
    /// A store that needs no further state.
    Plain,
    Azure(azure::Container),
}

/// The timeout of a request: `base`, plus a time proportional to its size.
struct Timeout {
    base: Duration,
}

impl Timeout {
    fn for_bytes(&self, bytes: usize) -> Duration {
        self.base + Duration::from_secs(bytes as u64 / MIN_BYTES_PER_SECOND)
    }
}

/// The identity of an object.
struct Token {
    text: String,
    /// Whether it is unique to this object, so that another length only means another compression.
    unique: bool,
}

/// The object that has a name already.
enum Found {
    Ours,
    Others,
    Nothing,
}

impl BlobSink {
    /// Checks the configuration and creates the store's client. Reads local files (secrets, Google's credentials,
    /// certificates) and creates the folder of a `file://` store, but sends nothing. `warn` receives what an operator
    /// should know and outcomes do not contain.
    pub fn new(config: &config::Blob, warn: Warn) -> Result<BlobSink, Problem> {
        let ca_pem = config.ca_pem.as_deref();
        if let Some(pem) = ca_pem {
            config::check_ca(pem)
                .map_err(|e| Problem::new(config::keys::TLS_CA_FILE.name, e.to_string()))?;
        }
        let put_headers = signing::put_headers(&config.objects)?;
        let store = match &config.store {
            config::Store::File(root) => Some(file(root)?),
            #[cfg(feature = "gs")]
            config::Store::Gcs { bucket, endpoint } => Some(gcs::open(
                bucket,
                endpoint.as_deref(),
                ca_pem,
                put_headers.clone(),
            )?),
            #[cfg(not(feature = "gs"))]
            config::Store::Gcs { .. } => return Err(not_built("gs://", "gs")),
            config::Store::Azure(azure) => {
                let (objects, container) = azure::open(azure, ca_pem, &warn, put_headers.clone())?;
                Some(Store {
                    objects,
                    kind: Kind::Azure(container),
                })
            }
            #[cfg(not(feature = "s3"))]
            config::Store::S3 { .. } => return Err(not_built("s3://", "s3")),
            #[cfg(feature = "s3")]
            config::Store::S3 { bucket, aws } => {
                s3::check(bucket, aws)?;
                None
            }
        };
        Ok(BlobSink {
            config: config.clone(),
            store: OnceCell::new_with(store),
            warn,
            timeout: Timeout {
                base: Duration::from_secs(30),
            },
            put_headers,
        })
    }

    /// Creates a sink for a store with a client of [`listening_to`]; of `config` only the properties of objects count.
    #[doc(hidden)]
    pub fn over(objects: Arc<dyn ObjectStore>, config: config::Blob, warn: Warn) -> BlobSink {
        let kind = Kind::Plain;
        BlobSink {
            config,
            store: OnceCell::new_with(Some(Store { objects, kind })),
            warn,
            timeout: Timeout {
                base: Duration::from_secs(30),
            },
            put_headers: HeaderMap::new(),
        }
    }

    /// Does the preparations that need the network: creates the container if configured, looks up the region. May be
    /// called again; the first put makes up for what failed.
    pub async fn prepare(&self) -> Result<(), super::Fault> {
        let prepare = async {
            let store = self.store().await?;
            match &store.kind {
                Kind::Azure(container) if container.auto_create => {
                    let start = Instant::now();
                    match self.with_timeout(0, container.create()).await {
                        Ok(()) => Ok(()),
                        Err(failure) => Err(container.explain(failure, start).await),
                    }
                }
                _ => Ok(()),
            }
        };
        prepare.await.map_err(|failure: Failure| failure.fault)
    }

    async fn store(&self) -> Result<&Store, Failure> {
        let open = async || match &self.config.store {
            #[cfg(feature = "s3")]
            config::Store::S3 { bucket, aws } => {
                self.with_timeout(0, self.open_s3(bucket, aws)).await
            }
            _ => unreachable!("new() creates every other store"),
        };
        self.store.get_or_try_init(open).await
    }

    async fn put(
        &self,
        target: &str,
        body: &Payload,
        token: &Token,
        tag: &str,
    ) -> Result<(), Failure> {
        let store = self.store().await?;
        let start = Instant::now();
        let put = self.put_or_rename(store, target, body, token, tag).await;
        match (put, &store.kind) {
            (Err(failure), Kind::Azure(container)) => Err(container.explain(failure, start).await),
            #[cfg(feature = "s3")]
            (Err(failure), Kind::S3(cache)) if failure.fault.class == Class::Credentials => {
                cache.refused();
                Err(failure)
            }
            (put, _) => put,
        }
    }

    /// Puts an object under its name, or an alternative one if another object has it.
    async fn put_or_rename(
        &self,
        store: &Store,
        target: &str,
        body: &Payload,
        token: &Token,
        tag: &str,
    ) -> Result<(), Failure> {
        for rename in 0..=RENAMES {
            let name = renamed(target, rename);
            let path = object_path(&name);
            let put = self.put_once(store, &path, &token.text, body, tag).await;
            let Err(failure) = put else {
                remove_staged(store, &path, token).await;
                return Ok(());
            };
            if !failure.is_conflict() || self.config.objects.overwrite {
                return Err(failure);
            }
            match self.identify(store, &path, token, body).await {
                Ok(Found::Ours) => {
                    remove_staged(store, &path, token).await;
                    return Ok(());
                }
                Ok(Found::Nothing) => return Err(failure),
                Ok(Found::Others) => (self.warn)(&format!(
                    "collision: '{name}' exists and is another object: it is not overwritten, and this object gets \
                     another name"
                )),
                Err(failure) => {
                    let failure = Failure {
                        fate: Fate::Ambiguous,
                        ..failure
                    };
                    return Err(match failure.status {
                        Some(401 | 403) => failure.note(format_args!(
                            "'{name}' exists, and must be read to tell whose it is: allow reading too"
                        )),
                        _ => failure,
                    });
                }
            }
        }
        let message =
            format!("'{target}' and its {RENAMES} alternative names belong to other objects");
        Err(Failure::new(
            Fate::Retry,
            Class::Configuration,
            "collision",
            message,
        ))
    }

    /// Sends one conditional put, and another if the container had to be created first.
    async fn put_once(
        &self,
        store: &Store,
        path: &Path,
        token: &str,
        body: &Payload,
        tag: &str,
    ) -> Result<(), Failure> {
        let settings = &self.config.objects;
        let md5 = settings.content_md5.then(|| ContentMd5::of(body));
        let put = || async {
            let mut options = PutOptions::from(match settings.overwrite {
                false => PutMode::Create,
                true => PutMode::Overwrite,
            });
            if !matches!(store.kind, Kind::File(_)) {
                options.attributes = self.attributes(token, tag);
                options.tags = self.tags(tag);
                options.extensions.insert(PutTarget(path.clone()));
                if let Some(md5) = &md5 {
                    options.extensions.insert(md5.clone());
                }
            }
            store
                .objects
                .put_opts(path, body.parts().iter().cloned().collect(), options)
                .await?;
            Ok(())
        };
        match (self.with_timeout(body.len(), put()).await, &store.kind) {
            (Err(absent), Kind::Azure(container)) if absent.fault.code == "ContainerNotFound" => {
                if !container.auto_create {
                    return Err(absent.note("create it, or set auto_create_container on"));
                }
                self.with_timeout(0, container.create()).await?;
                self.with_timeout(body.len(), put()).await
            }
            (put, _) => put,
        }
    }

    /// Identifies the object with a name: by its token, or by its bytes where it has none, as on a file system or
    /// behind a gateway that drops metadata. On a file system a unique name suffices.
    async fn identify(
        &self,
        store: &Store,
        path: &Path,
        token: &Token,
        body: &Payload,
    ) -> Result<Found, Failure> {
        let Some(found) = self.head(store, path).await? else {
            return Ok(Found::Nothing);
        };
        let found_token = found.attributes.get(&Attribute::Metadata(TOKEN.into()));
        let same_length = found.meta.size == body.len() as u64;
        let same = match found_token {
            Some(found) => found.as_ref() == token.text && (same_length || token.unique),
            None if token.unique && matches!(store.kind, Kind::File(_)) => true,
            None if !same_length => false,
            None => {
                let mut options = GetOptions::default();
                options.extensions.insert(BodyLimit(body.len()));
                let read = async {
                    let object = store.objects.get_opts(path, options).await?;
                    equals(object.into_stream(), body).await
                };
                self.with_timeout(body.len(), read).await?
            }
        };
        if let (true, Kind::File(root)) = (same, &store.kind) {
            self.with_timeout(0, sync_folders(root, path)).await?;
        }
        Ok(if same { Found::Ours } else { Found::Others })
    }

    /// Whether the object of a unique name and token exists, under its name or an alternative one.
    async fn is_there(&self, target: &str, token: &str) -> Result<bool, Failure> {
        let store = self.store().await?;
        for rename in 0..=RENAMES {
            let path = object_path(&renamed(target, rename));
            let Some(found) = self.head(store, &path).await? else {
                return Ok(false);
            };
            match found.attributes.get(&Attribute::Metadata(TOKEN.into())) {
                Some(found) if found.as_ref() == token => return Ok(true),
                Some(_) => {}
                None if let Kind::File(root) = &store.kind => {
                    // A file with a unique name is ours. What is settled by it must not be lost with its folder.
                    self.with_timeout(0, sync_folders(root, &path)).await?;
                    return Ok(true);
                }
                // Not even that it is an object is certain: a gateway may answer anything with a page of its own.
                None => {
                    let message = format!("'{path}' has no metadata '{TOKEN}'");
                    let failure =
                        Failure::new(Fate::Retry, Class::Configuration, "no_token", message);
                    return Err(failure);
                }
            }
        }
        Ok(false)
    }

    /// Asks for an object's properties. `None`: it does not exist.
    async fn head(&self, store: &Store, path: &Path) -> Result<Option<GetResult>, Failure> {
        let head = async {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            Ok(store.objects.get_opts(path, options).await?)
        };
        match self.with_timeout(0, head).await {
            Err(absent) if absent.status == Some(404) => Ok(None),
            found => found.map(Some),
        }
    }

    fn attributes(&self, token: &str, tag: &str) -> Attributes {
        let mut attributes = Attributes::new();
        let content_type = self.config.content_type.clone().into_owned();
        attributes.insert(Attribute::ContentType, content_type.into());
        if let Some(encoding) = self.config.content_encoding {
            attributes.insert(Attribute::ContentEncoding, encoding.into());
        }
        for entry in &self.config.objects.metadata {
            let value = value_of(entry, tag, config::fits_header);
            let name = entry.key.to_ascii_lowercase();
            attributes.insert(Attribute::Metadata(name.into()), value.into());
        }
        attributes.insert(Attribute::Metadata(TOKEN.into()), token.to_owned().into());
        attributes
    }

    fn tags(&self, tag: &str) -> TagSet {
        let mut tags = TagSet::default();
        for entry in &self.config.objects.tags {
            let value = value_of(entry, tag, config::fits_tag);
            let most: String = value.chars().take(config::MAX_TAG_VALUE).collect();
            tags.push(&entry.key, &most);
        }
        tags
    }

    /// Awaits a request with the timeout for its size; `object_store` has only one timeout for all.
    async fn with_timeout<T>(
        &self,
        bytes: usize,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let limit = self.timeout.for_bytes(bytes);
        tokio::time::timeout(limit, request)
            .await
            .unwrap_or_else(|_| {
                let message = format!("no response within {limit:?}");
                Err(Failure::new(
                    Fate::Ambiguous,
                    Class::Transient,
                    "timeout",
                    message,
                ))
            })
    }
}

impl Sink for BlobSink {
    /// One object per request, up to the largest size.
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(std::future::ready(Shape {
            limits: Limits {
                record_bytes: MAX_OBJECT_BYTES,
                record_lines: u32::MAX,
                joins: false,
                batch_records: 1,
                batch_bytes: MAX_OBJECT_BYTES,
            },
            piece_bytes: MAX_OBJECT_BYTES,
            compression: true,
        }))
    }

    /// Puts each record as an object; a batch is expected to have one.
    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let token = Token {
                unique: batch.token.is_some(),
                text: match &batch.token {
                    Some(token) => token.to_string(),
                    None => token(&batch.target),
                },
            };
            let tag = String::from_utf8_lossy(&batch.tag);
            let mut outcomes = Vec::with_capacity(batch.records.len());
            for body in &batch.records {
                let put = self.put(&batch.target, body, &token, &tag).await;
                outcomes.push(put.map_or_else(Outcome::from, |()| Outcome::Delivered));
            }
            outcomes
        })
    }

    fn exists<'a>(
        &'a self,
        name: &'a str,
        token: &'a str,
    ) -> BoxFuture<'a, Result<bool, Arc<Fault>>> {
        Box::pin(async move {
            let there = self.is_there(name, token).await;
            there.map_err(|failure| Arc::new(failure.fault))
        })
    }

    fn credentials_expire(&self) -> Option<SystemTime> {
        match &self.store.get()?.kind {
            #[cfg(feature = "s3")]
            Kind::S3(cache) => cache.expire(),
            Kind::Azure(container) => container.expire(),
            Kind::File(_) | Kind::Plain => None,
        }
    }
}

/// Returns the value of a tag or of metadata: the tag as it is in `path`, with `_` for what does not fit.
fn value_of(entry: &config::Labelled, tag: &str, fits: fn(char) -> bool) -> String {
    let value = entry.value.of_tag(tag).unwrap_or_default();
    value
        .chars()
        .map(|c| if fits(c) { c } else { '_' })
        .collect()
}

fn file(root: &std::path::Path) -> Result<Store, Problem> {
    let problem = |e: &dyn std::fmt::Display| {
        let folder = root.display();
        Problem::new(
            config::keys::URL.name,
            format!("the folder '{folder}' cannot be created or opened: {e}"),
        )
    };
    std::fs::create_dir_all(root).map_err(|e| problem(&e))?;
    let root = root.canonicalize().map_err(|e| problem(&e))?;
    let objects = LocalFileSystem::new_with_prefix(&root)
        .map_err(|e| problem(&e))?
        .with_fsync(true);
    Ok(Store {
        objects: Arc::new(objects),
        kind: Kind::File(root),
    })
}

/// Syncs the folders of an existing file, since the put that wrote it may have been killed between the link and the
/// sync: the file is then as durable as a new one.
async fn sync_folders(root: &std::path::Path, path: &Path) -> Result<(), Failure> {
    let mut folder = root.to_owned();
    let mut folders = vec![folder.clone()];
    for part in path.parts() {
        folder.push(part.as_ref());
        folders.push(folder.clone());
    }
    folders.pop();
    for folder in folders {
        let synced = async { tokio::fs::File::open(&folder).await?.sync_all().await };
        synced.await.map_err(|e| {
            let message = format!("'{}' cannot be synced: {e}", folder.display());
            Failure::new(Fate::Ambiguous, Class::Transient, "file", message)
        })?;
    }
    Ok(())
}

/// Whether an object has exactly these bytes. Reads up to the first difference.
async fn equals(
    mut object: BoxStream<'_, object_store::Result<Bytes>>,
    body: &Payload,
) -> Result<bool, Failure> {
    let mut parts = body.parts().iter();
    let mut expected: &[u8] = &[];
    while let Some(bytes) = object.try_next().await? {
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            if expected.is_empty() {
                match parts.next() {
                    Some(part) => expected = part,
                    None => return Ok(false),
                }
            }
            let common = bytes.len().min(expected.len());
            if bytes[..common] != expected[..common] {
                return Ok(false);
            }
            (bytes, expected) = (&bytes[common..], &expected[common..]);
        }
    }
    Ok(expected.is_empty() && parts.all(|part| part.is_empty()))
}

#[cfg(not(all(feature = "s3", feature = "gs")))]
fn not_built(scheme: &str, feature: &str) -> Problem {
    Problem::new(
        config::keys::URL.name,
        format!(
            "{scheme} is not in this build of Ferry, which was made without its feature {feature}"
        ),
    )
}

/// Removes staging files of this object that a killed host left. `object_store` writes a file under its name with the
/// suffix `#1` (`#2` if that exists, and so on) before it links it. Other objects are safe, since the name is unique.
async fn remove_staged(store: &Store, path: &Path, token: &Token) {
    let Kind::File(root) = &store.kind else {
        return;
    };
    if !token.unique {
        return;
    }
    let file = root.join(path.as_ref());
    for number in 1.. {
        let mut staged = file.clone().into_os_string();
        staged.push(format!("#{number}"));
        // Usually there is none. One that cannot be removed is not an object, and harmless.
        if tokio::fs::remove_file(staged).await.is_err() {
            return;
        }
    }
}

#[cfg(any(feature = "s3", feature = "gs"))]
fn check_bucket(bucket: &str) -> Result<(), Problem> {
    let valid = !bucket.is_empty()
        && bucket
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let message = || format!("'{bucket}' is not a bucket name: use letters, digits, '-', '.', '_'");
    valid
        .then_some(())
        .ok_or_else(|| Problem::new(config::keys::URL.name, message()))
}

fn endpoint_url(endpoint: &str) -> Result<Url, Problem> {
    let url = Url::parse(endpoint).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    match url {
        // The URL is not shown, since both may contain a secret.
        Some(_) if config::holds_secrets(endpoint) => {
            let message = "contains a query or a user: give scheme, host and port; secrets have keys of their own";
            Err(Problem::new(config::keys::ENDPOINT.name, message))
        }
        Some(url) => Ok(url),
        None => {
            let shown = config::without_secrets(endpoint);
            let message =
                format!("'{shown}' is not a URL: write https://host, or https://host:port");
            Err(Problem::new(config::keys::ENDPOINT.name, message))
        }
    }
}

/// Whether a URL's host is this machine, so that traffic cannot be intercepted.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Disables retries, which are up to the caller.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// Returns the path of an object with any name. Distinct names have distinct paths: characters with a meaning for
/// stores, URLs or file systems are percent-encoded, and so is `%`.
fn object_path(target: &str) -> Path {
    let segments = target.trim_start_matches('/').split('/').map(|segment| {
        let mut escaped = String::with_capacity(segment.len());
        for (at, c) in segment.char_indices() {
            // Azure drops dots at the end of a segment and treats a backslash as a slash; `.` and `..` are special.
            // `#` and digits at the end mark object_store's staging files.
            let dot = c == '.' && at + 1 == segment.len();
            if dot || c.is_control() || matches!(c, '%' | '\\' | '#') {
                let mut bytes = [0; 4];
                escaped.extend(
                    c.encode_utf8(&mut bytes)
                        .bytes()
                        .map(|b| format!("%{b:02X}")),
                );
            } else {
                escaped.push(c);
            }
        }
        // An empty segment would be dropped: `a//b` would become `a/b`.
        if escaped.is_empty() {
            "%".to_owned()
        } else {
            escaped
        }
    });
    let path = segments.collect::<Vec<_>>().join("/");
    Path::parse(&path).unwrap_or_else(|_| Path::from(path))
}

/// Returns the default of [`TOKEN`]: the file name, encoded for an HTTP header.
fn token(target: &str) -> String {
    let name = target.rsplit('/').next().unwrap_or(target);
    PathPart::from(name).as_ref().trim().to_owned()
}

/// Returns the name itself for 0, and an alternative otherwise: `logs/app-c1.json.gz` for `logs/app.json.gz`.
fn renamed(target: &str, rename: usize) -> String {
    if rename == 0 {
        return target.to_owned();
    }
    let file = target.rfind('/').map_or(0, |slash| slash + 1);
    let stem = target[file..].find('.').filter(|dot| *dot > 0);
    let (stem, extension) = target.split_at(stem.map_or(target.len(), |dot| file + dot));
    format!("{stem}-c{rename}{extension}")
}

#[cfg(test)]
mod tests;
