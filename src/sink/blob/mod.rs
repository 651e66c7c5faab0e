//! Objects into a store: Azure, S3, Google Cloud Storage, or a folder.
//!
//! An object is put whole, under a name that the caller fixed before, and only where nothing stands under
//! that name. So a put whose answer was lost can be sent again: it then finds the object
//! there, and a look at it tells our own from another's.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
#[cfg(feature = "s3")]
use object_store::aws::{AmazonS3Builder, Checksum, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::path::{Path, PathPart};
use object_store::{
    Attribute, Attributes, GetOptions, ObjectStore, PutMode, PutOptions, RetryConfig,
};
use tokio::sync::OnceCell;
use url::Url;

use super::{Batch, Class, Outcome, Shape, Sink};
use crate::buffers::Payload;
use crate::config::{self, Problem};
use crate::sink::Limits;
#[cfg(feature = "s3")]
use crate::sink::aws::{self, CredentialCache};
use crate::sink::http::AtMost;
#[cfg(feature = "s3")]
use crate::sink::http::Proxies;
use answer::{Failure, Putting};
#[cfg(feature = "s3")]
use answer::{Same, wire};
use codes::Fate;

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
mod token;

/// Metadata that says which object of ours this is. No hyphen: Azure wants identifiers.
const TOKEN: &str = "ferry_name";
/// How many other names an object may try when its own is taken by another's.
const RENAMES: usize = 3;
/// The slowest line that a request is still waited for, beside [`Patience::least`].
const SLOWEST: u64 = 256 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest object that one put may make: 5 GiB in S3 and Google Cloud Storage, 5,000 MiB in Azure.
/// <https://learn.microsoft.com/rest/api/storageservices/put-blob#remarks>
const MAX_OBJECT_BYTES: usize = 5_000 * 1024 * 1024;

/// Takes a warning for the log.
pub type Warn = Arc<dyn Fn(&str) + Send + Sync>;

/// Puts objects into one store.
pub struct BlobSink {
    config: config::Blob,
    /// Filled at once but for S3, whose region may have to be asked for.
    store: OnceCell<Store>,
    warn: Warn,
    patience: Patience,
}

struct Store {
    objects: Arc<dyn ObjectStore>,
    kind: Kind,
}

enum Kind {
    File(PathBuf),
    #[cfg(feature = "s3")]
    S3(CredentialCache),
    /// Needs nothing beside the store itself.
    Plain,
    Azure(azure::Container),
}

/// How long a request may take: `least`, and more the larger it is.
struct Patience {
    least: Duration,
}

impl Patience {
    fn with(&self, bytes: usize) -> Duration {
        self.least + Duration::from_secs(bytes as u64 / SLOWEST)
    }
}

/// What an object is known by.
struct Token {
    text: String,
    /// Made for this object alone: another length then only means that it was compressed otherwise.
    unique: bool,
}

/// What stands under a name that we were not allowed to create.
enum Found {
    Ours,
    Others,
    Nothing,
}

impl BlobSink {
    /// Checks the configuration and makes the store's client. Reads local files (a secret's, Google's
    /// credentials, certificates) and makes the folder of a `file://` store; sends nothing.
    /// `warn` is told what an operator should see and no outcome says.
    pub fn new(config: &config::Blob, warn: Warn) -> Result<BlobSink, Problem> {
        let ca_pem = config.ca_pem.as_deref();
        if let Some(pem) = ca_pem {
            config::check_ca(pem)
                .map_err(|e| Problem::new(config::keys::TLS_CA_FILE.name, e.to_string()))?;
        }
        let store = match &config.store {
            config::Store::File(root) => Some(file(root)?),
            #[cfg(feature = "gs")]
            config::Store::Gcs { bucket, endpoint } => {
                Some(gcs::open(bucket, endpoint.as_deref(), ca_pem)?)
            }
            #[cfg(not(feature = "gs"))]
            config::Store::Gcs { .. } => return Err(left_out("gs://", "gs")),
            config::Store::Azure(azure) => {
                let (objects, container) = azure::open(azure, ca_pem, &warn)?;
                Some(Store {
                    objects,
                    kind: Kind::Azure(container),
                })
            }
            #[cfg(not(feature = "s3"))]
            config::Store::S3 { .. } => return Err(left_out("s3://", "s3")),
            #[cfg(feature = "s3")]
            config::Store::S3 { bucket, aws } => {
                check_bucket(bucket)?;
                aws.endpoint.as_deref().map(endpoint_url).transpose()?;
                None
            }
        };
        Ok(BlobSink {
            config: config.clone(),
            store: OnceCell::new_with(store),
            warn,
            patience: Patience {
                least: Duration::from_secs(30),
            },
        })
    }

    /// A sink into a store that was made elsewhere, over [`listening_to`]; `config` then says only what
    /// objects look like.
    #[doc(hidden)]
    pub fn over(objects: Arc<dyn ObjectStore>, config: config::Blob, warn: Warn) -> BlobSink {
        let kind = Kind::Plain;
        BlobSink {
            config,
            store: OnceCell::new_with(Some(Store { objects, kind })),
            warn,
            patience: Patience {
                least: Duration::from_secs(30),
            },
        }
    }

    /// Does what needs the network and must be done once: makes the container where that is asked for,
    /// finds the region. May be called again; the first put does what is still missing.
    pub async fn prepare(&self) -> Result<(), super::Fault> {
        let prepare = async {
            let store = self.store().await?;
            match &store.kind {
                Kind::Azure(container) if container.auto_create => {
                    let began = Instant::now();
                    match self.bounded(0, container.create()).await {
                        Ok(()) => Ok(()),
                        Err(failure) => Err(container.explain(failure, began).await),
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
                self.bounded(0, s3(bucket, aws, self.config.ca_pem.as_deref()))
                    .await
            }
            _ => unreachable!("every other store is made in new()"),
        };
        self.store.get_or_try_init(open).await
    }

    async fn put(&self, target: &str, body: &Payload, known_by: &Token) -> Result<(), Failure> {
        let store = self.store().await?;
        let began = Instant::now();
        let put = self.put_somewhere(store, target, body, known_by).await;
        match (put, &store.kind) {
            (Err(failure), Kind::Azure(container)) => Err(container.explain(failure, began).await),
            #[cfg(feature = "s3")]
            (Err(failure), Kind::S3(cache)) if failure.fault.class == Class::Credentials => {
                cache.refused();
                Err(failure)
            }
            (put, _) => put,
        }
    }

    /// Puts an object under its name, or beside it where another's object has the name.
    async fn put_somewhere(
        &self,
        store: &Store,
        target: &str,
        body: &Payload,
        token: &Token,
    ) -> Result<(), Failure> {
        for rename in 0..=RENAMES {
            let name = renamed(target, rename);
            let path = object_path(&name);
            let Err(failure) = self.put_once(store, &path, &token.text, body).await else {
                sweep(store, &path, token).await;
                return Ok(());
            };
            if !failure.says_taken() {
                return Err(failure);
            }
            match self.look(store, &path, token, body).await {
                Ok(Found::Ours) => {
                    sweep(store, &path, token).await;
                    return Ok(());
                }
                Ok(Found::Nothing) => return Err(failure),
                Ok(Found::Others) => (self.warn)(&format!(
                    "collision: '{name}' is taken by an object that is not this one; nothing is \
                     overwritten, this one goes under another name"
                )),
                Err(look) => {
                    let unsure = Failure {
                        fate: Fate::Ambiguous,
                        ..look
                    };
                    return Err(match unsure.status {
                        Some(401 | 403) => unsure.note(format_args!(
                            "something stands under '{name}' already and whose it is cannot be told: \
                             allow reading, too"
                        )),
                        _ => unsure,
                    });
                }
            }
        }
        let words = format!("'{target}' and {RENAMES} names beside it are taken by other objects");
        Err(Failure::new(
            Fate::Retry,
            Class::Configuration,
            "collision",
            words,
        ))
    }

    /// One conditional put, and a second where the container had to be made first.
    async fn put_once(
        &self,
        store: &Store,
        path: &Path,
        token: &str,
        body: &Payload,
    ) -> Result<(), Failure> {
        let put = || async {
            let mut options = PutOptions::from(PutMode::Create);
            if !matches!(store.kind, Kind::File(_)) {
                options.attributes = self.attributes(token);
                options.extensions.insert(Putting(path.clone()));
            }
            store
                .objects
                .put_opts(path, body.parts().iter().cloned().collect(), options)
                .await?;
            Ok(())
        };
        match (self.bounded(body.len(), put()).await, &store.kind) {
            (Err(absent), Kind::Azure(container)) if absent.fault.code == "ContainerNotFound" => {
                if !container.auto_create {
                    return Err(absent.note("make it, or set auto_create_container on"));
                }
                self.bounded(0, container.create()).await?;
                self.bounded(body.len(), put()).await
            }
            (put, _) => put,
        }
    }

    /// Tells whose object stands under a name: by its token; by its bytes where it has none, as on a
    /// file system or behind a gateway that drops metadata. On a file system a name that was made for one
    /// object alone is enough.
    async fn look(
        &self,
        store: &Store,
        path: &Path,
        token: &Token,
        body: &Payload,
    ) -> Result<Found, Failure> {
        let head = async {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            Ok(store.objects.get_opts(path, options).await?)
        };
        let found = match self.bounded(0, head).await {
            Err(absent) if absent.status == Some(404) => return Ok(Found::Nothing),
            found => found?,
        };
        let theirs = found.attributes.get(&Attribute::Metadata(TOKEN.into()));
        let same_length = found.meta.size == body.len() as u64;
        let same = match theirs {
            Some(theirs) => theirs.as_ref() == token.text && (same_length || token.unique),
            None if token.unique && matches!(store.kind, Kind::File(_)) => true,
            None if !same_length => false,
            None => {
                let mut options = GetOptions::default();
                options.extensions.insert(AtMost(body.len()));
                let read = async {
                    let object = store.objects.get_opts(path, options).await?;
                    holds(object.into_stream(), body).await
                };
                self.bounded(body.len(), read).await?
            }
        };
        if let (true, Kind::File(root)) = (same, &store.kind) {
            self.bounded(0, sync_folders(root, path)).await?;
        }
        Ok(if same { Found::Ours } else { Found::Others })
    }

    fn attributes(&self, token: &str) -> Attributes {
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::ContentType, self.config.content_type.into());
        if let Some(encoding) = self.config.content_encoding {
            attributes.insert(Attribute::ContentEncoding, encoding.into());
        }
        attributes.insert(Attribute::Metadata(TOKEN.into()), token.to_owned().into());
        attributes
    }

    /// Waits for a request as long as its size allows. `object_store` only knows one limit for all.
    async fn bounded<T>(
        &self,
        bytes: usize,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let limit = self.patience.with(bytes);
        tokio::time::timeout(limit, request)
            .await
            .unwrap_or_else(|_| {
                let words = format!("no answer within {limit:?}");
                Err(Failure::new(
                    Fate::Ambiguous,
                    Class::Transient,
                    "timeout",
                    words,
                ))
            })
    }
}

impl Sink for BlobSink {
    /// One object a request, as large as it comes.
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

    /// Puts each record as an object of its own; a batch is expected to hold one.
    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let known_by = Token {
                unique: batch.token.is_some(),
                text: match &batch.token {
                    Some(token) => token.to_string(),
                    None => token(&batch.target),
                },
            };
            let mut outcomes = Vec::with_capacity(batch.records.len());
            for body in &batch.records {
                let put = self.put(&batch.target, body, &known_by).await;
                outcomes.push(put.map_or_else(Outcome::from, |()| Outcome::Delivered));
            }
            outcomes
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

fn file(root: &std::path::Path) -> Result<Store, Problem> {
    let problem = |e: &dyn std::fmt::Display| {
        let folder = root.display();
        Problem::new(
            config::keys::URL.name,
            format!("the folder '{folder}' cannot be made or entered: {e}"),
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

/// Makes a file that is already there as safe from a power cut as one just written: the put that wrote
/// it may have died between naming it and syncing the folders.
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
            let words = format!("'{}' cannot be synced: {e}", folder.display());
            Failure::new(Fate::Ambiguous, Class::Transient, "file", words)
        })?;
    }
    Ok(())
}

/// Whether an object holds these bytes and no others. Reads no further than the first that differs.
async fn holds(
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
            let both = bytes.len().min(expected.len());
            if bytes[..both] != expected[..both] {
                return Ok(false);
            }
            (bytes, expected) = (&bytes[both..], &expected[both..]);
        }
    }
    Ok(expected.is_empty() && parts.all(|part| part.is_empty()))
}

#[cfg(not(all(feature = "s3", feature = "gs")))]
fn left_out(scheme: &str, feature: &str) -> Problem {
    Problem::new(
        config::keys::URL.name,
        format!(
            "{scheme} is not in this build of Ferry, which was made without its feature {feature}"
        ),
    )
}

/// The URL of S3 where it is not the region's own.
#[cfg(feature = "s3")]
fn s3_endpoint(aws: &config::Aws, loaded: &aws::Loaded) -> Option<String> {
    let endpoint = aws.endpoint.clone();
    let endpoint = endpoint.or_else(|| std::env::var("AWS_ENDPOINT_URL_S3").ok());
    endpoint.or_else(|| loaded.sdk.endpoint_url().map(str::to_owned))
}

#[cfg(feature = "s3")]
async fn s3(bucket: &str, aws: &config::Aws, ca_pem: Option<&[u8]>) -> Result<Store, Failure> {
    let failure = |words: String| Failure::new(Fate::Retry, Class::Configuration, "aws", words);
    let problem = |problem: Problem| failure(format!("{}: {}", problem.key, problem.message));
    let loaded = aws::load(aws, ca_pem).await;
    let loaded = loaded.map_err(|error| failure(error.to_string()))?;
    let endpoint = s3_endpoint(aws, &loaded);

    let region = loaded.region;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&region);
    if let Some(endpoint) = &endpoint {
        endpoint_url(endpoint).map_err(problem)?;
        builder = builder.with_endpoint(endpoint);
    } else if region.starts_with("cn-") {
        builder = builder.with_endpoint(format!("https://s3.{region}.amazonaws.com.cn"));
    } else {
        // A dot in the name would not fit the certificate of a host named after the bucket.
        builder = builder.with_virtual_hosted_style_request(!bucket.contains('.'));
    }
    let wire = wire(ca_pem, Proxies::FromEnvironment, CONNECT_TIMEOUT).map_err(problem)?;
    let objects = builder
        .with_credentials(Arc::new(loaded.credentials.clone()))
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // The signature has the same hash, so that this costs no more than its text. Buckets with Object Lock
        // demand one: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock-managing.html
        .with_checksum_algorithm(Checksum::SHA256)
        .with_http_connector(Same(listening_to(Vendor::S3, wire)))
        .with_retry(no_retries())
        .build()?;
    Ok(Store {
        objects: Arc::new(objects),
        kind: Kind::S3(loaded.credentials),
    })
}

/// Removes what an earlier put of this object left beside its name when the host was killed in it.
/// `object_store` writes a file under its name with `#1` behind it (`#2` if that is taken, and so on) before
/// it links it there. Another's object is safe: nobody else writes a name that was made for one object.
async fn sweep(store: &Store, path: &Path, token: &Token) {
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
        // Mostly there is none. One that cannot be removed is no object, and does no harm.
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
    let message =
        || format!("'{bucket}' is not a bucket's name: use letters, digits, '-', '.', '_'");
    valid
        .then_some(())
        .ok_or_else(|| Problem::new(config::keys::URL.name, message()))
}

fn endpoint_url(endpoint: &str) -> Result<Url, Problem> {
    let url = Url::parse(endpoint).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    match url {
        // Neither is shown: both may hold a secret.
        Some(_) if config::holds_secrets(endpoint) => {
            let message = "holds a query or a user: give scheme, host and port; secrets have keys of their own";
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

/// Whether an address is this machine's own, where nobody listens in.
fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// When to send again is the caller's to say.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// The path of an object. Takes any name, and never makes one path of two names: what stores, URLs or
/// file systems read as something else is percent-encoded, the `%` itself first.
fn object_path(target: &str) -> Path {
    let segments = target.trim_start_matches('/').split('/').map(|segment| {
        let mut escaped = String::with_capacity(segment.len());
        for (at, c) in segment.char_indices() {
            // Azure drops dots that end a segment, and `.` and `..` lead elsewhere; a backslash is a
            // slash to it. `#` and digits at the end are object_store's mark of a file half written.
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
        // An empty segment would vanish, and `a//b` become `a/b`.
        if escaped.is_empty() {
            "%".to_owned()
        } else {
            escaped
        }
    });
    let path = segments.collect::<Vec<_>>().join("/");
    Path::parse(&path).unwrap_or_else(|_| Path::from(path))
}

/// What [`TOKEN`] says where the caller does not: the file's own name, in what HTTP allows in a header.
fn token(target: &str) -> String {
    let name = target.rsplit('/').next().unwrap_or(target);
    PathPart::from(name).as_ref().trim().to_owned()
}

/// `logs/app.json.gz` becomes `logs/app-c1.json.gz`; the zeroth is the name itself.
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
