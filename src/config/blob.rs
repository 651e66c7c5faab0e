//! The keys of a blob destination: the store, and its objects.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::Reader;
use super::value::{looks_like_a_secret, names_a_user, shown, shown_url};
use super::{Aws, Azure, Destination, ObjectBounds, ObjectSettings, Place, keys, open_objects};
use crate::codec::template::{OBJECT_NAME, Rules, Template};
use crate::compress::Compression;
use crate::format::TABLE_EXTENSION;
use crate::format::parquet::Table;

/// A blob store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A folder on this machine.
    File(PathBuf),
    /// Amazon S3, or a compatible store.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The settings of AWS.
        aws: Aws,
    },
    /// Google Cloud Storage; credentials come from `GOOGLE_APPLICATION_CREDENTIALS` or the metadata server.
    Gcs {
        /// The bucket's name.
        bucket: String,
        /// The full URL of the service, for emulators.
        endpoint: Option<String>,
    },
    /// Azure Blob.
    Azure(Azure),
}

impl Store {
    /// Returns the most bytes between two slashes of a name.
    fn longest_segment(&self) -> usize {
        match self {
            // Of a file's name on Linux.
            Store::File(_) => 255,
            // In characters: https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
            Store::Azure(_) => 254,
            Store::S3 { .. } | Store::Gcs { .. } => LONGEST_NAME,
        }
    }

    pub(super) fn place(&self) -> Place {
        match self {
            Store::File(_) => Place::File,
            Store::S3 { .. } => Place::S3,
            Store::Gcs { .. } => Place::Gcs,
            Store::Azure(_) => Place::Azure,
        }
    }
}

impl Store {
    /// Whether requests go to the vendor's own service, rather than to a compatible one or an emulator.
    fn is_vendors_own(&self) -> bool {
        match self {
            Store::File(_) => false,
            Store::S3 { aws, .. } => aws.endpoint.is_none(),
            Store::Gcs { endpoint, .. } => endpoint.is_none(),
            Store::Azure(_) => true,
        }
    }
}

impl fmt::Display for Store {
    /// Formats the store as a URL, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Store::File(path) => write!(f, "file://{}", path.display()),
            Store::S3 { bucket, .. } => write!(f, "s3://{bucket}"),
            Store::Gcs { bucket, .. } => write!(f, "gs://{bucket}"),
            Store::Azure(azure) => write!(f, "az://{}", azure.container),
        }
    }
}

/// The settings of a blob sink.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The store.
    pub store: Store,
    /// The value of `Content-Type`.
    pub content_type: Cow<'static, str>,
    /// The value of `Content-Encoding` for compressed bodies.
    pub content_encoding: Option<&'static str>,
    /// What else is sent with each object.
    pub objects: ObjectSettings,
    /// Certificates to trust in addition to the system's, in PEM.
    pub ca_pem: Option<Vec<u8>>,
}

/// The most bytes of an object's name in S3, Google Cloud Storage, and (as characters) Azure.
const LONGEST_NAME: usize = 1_024;

/// The default of `path`.
const PATH: &str = "{tag}/%Y/%m/%d/%H";
/// The default of `path` for tables: a folder a day, which readers take as a column.
pub const TABLE_PATH: &str = "dt=%F";
/// The defaults of `blob_max_size` and `blob_max_age` for tables: small files are what readers of tables suffer from, and
/// the spool makes waiting safe.
const TABLE_BYTES: usize = 64_000_000;
const TABLE_AGE: Duration = Duration::from_secs(900);

impl Reader<'_> {
    pub(super) fn blob(
        &mut self,
        ca_pem: Option<Vec<u8>>,
        compression: Compression,
        raw: bool,
        table: Option<&Table>,
        memory_limit: usize,
        names: Rules,
    ) -> Option<Destination> {
        let raw = raw && !self.lines_are_records();
        let default = if table.is_some() { TABLE_PATH } else { PATH };
        let path = self.text(&keys::PATH).unwrap_or_else(|| default.to_owned());
        let mut folder = self.template(&keys::PATH, &path, names);
        if let Some(table) = table {
            self.check_table_path(&path, &table.columns);
            folder = folder.map(Template::of_table);
        }
        // Lowering `memory_limit` alone makes objects smaller, rather than being refused.
        let (size, age) = match table {
            Some(_) => (TABLE_BYTES, TABLE_AGE),
            None => {
                let age = Duration::from_secs(keys::BLOB_MAX_AGE.value.default);
                (keys::BLOB_MAX_SIZE.value.default, age)
            }
        };
        let object = ObjectBounds {
            bytes: self.size_or(&keys::BLOB_MAX_SIZE, open_objects(memory_limit).min(size)),
            age: self.time_or(&keys::BLOB_MAX_AGE, age),
        };
        if let Some(table) = table {
            self.check_table_size(table, object.bytes);
        }
        let store = self.store();
        match &store {
            Some((store, _)) => self.refuse_foreign(Some(store.place()), &store.to_string()),
            None => self.refuse_foreign(None, "a blob store"),
        }
        let (store, prefix) = store?;
        let place = store.place();
        let objects = self.object_settings(place, store.is_vendors_own(), folder.as_ref());
        // A folder has files without a type.
        let is_file = place == Place::File;
        let own_type = (!is_file).then(|| self.content_type()).flatten();
        let encodes = is_file || self.flag(&keys::CONTENT_ENCODING) != Some(false);
        let by_format = match table {
            Some(_) => "application/vnd.apache.parquet",
            None if raw => "text/plain; charset=utf-8",
            None => "application/x-ndjson",
        };
        let longest = LONGEST_NAME.saturating_sub(prefix.len() + OBJECT_NAME);
        let folder = folder?.with_lengths(longest, store.longest_segment());
        Some(Destination::Blob {
            blob: Blob {
                store,
                content_type: own_type.map_or(Cow::Borrowed(by_format), Cow::Owned),
                content_encoding: compression.content_encoding().filter(|_| encodes),
                objects,
                ca_pem,
            },
            prefix,
            folder,
            object,
            extension: match table {
                Some(_) => TABLE_EXTENSION.to_owned(),
                None => format!(
                    "{}{}",
                    if raw { ".log" } else { ".ndjson" },
                    compression.extension()
                ),
            },
        })
    }

    fn content_type(&mut self) -> Option<String> {
        let value = self.text(&keys::CONTENT_TYPE)?;
        let is_type = value.split_once('/').is_some_and(|(kind, rest)| {
            !kind.is_empty() && !rest.is_empty() && !kind.contains(' ')
        });
        if !is_type || !value.chars().all(super::fits_header) {
            let message = format!(
                "{} is not a media type: write one such as application/json",
                shown(&value)
            );
            self.problem(&keys::CONTENT_TYPE, message);
            return None;
        }
        Some(value)
    }

    fn store(&mut self) -> Option<(Store, String)> {
        let bucket = self.text(&keys::BUCKET);
        if let Some(bucket) = bucket.clone().filter(|_| !self.is_set(&keys::URL)) {
            if bucket.contains('/') {
                let message = format!(
                    "{} is not a bucket's name: use url, s3://bucket/prefix",
                    shown(&bucket)
                );
                self.problem(&keys::BUCKET, message);
            }
            let aws = self.aws(Place::S3);
            return Some((Store::S3 { bucket, aws }, String::new()));
        }
        let Some(url) = self.text(&keys::URL) else {
            let container = self.text(&keys::CONTAINER_NAME);
            if container.is_none() && !self.is_set(&keys::CONTAINER_NAME) {
                self.problem(
                    &keys::CONTAINER_NAME,
                    "is missing: name the container, or use url",
                );
            }
            let store = Store::Azure(self.azure(container?)?);
            return Some((store, String::new()));
        };
        let Some((scheme, rest)) = url.split_once("://") else {
            self.problem(&keys::URL, bad_url(&url));
            return None;
        };
        if scheme == "file" {
            let path = Path::new(rest);
            if rest.contains('?') && looks_like_a_secret(rest) {
                let message = format!(
                    "{} contains a query: secrets have keys of their own",
                    shown(&url)
                );
                self.problem(&keys::URL, message);
                return None;
            }
            if rest.is_empty() {
                self.problem(&keys::URL, bad_url(&url));
                return None;
            }
            // `file:///var/log` is absolute; `file://logs` is relative to the host's working directory.
            let store = Store::File(path.to_owned());
            return Some((store, String::new()));
        }
        let (root, prefix) = match scheme {
            "s3" => split_arn(rest),
            _ => None,
        }
        .or(rest.split_once('/'))
        .unwrap_or((rest, ""));
        if rest.contains(['?', '#']) || names_a_user(rest) {
            let message = format!(
                "{} contains a query or a user: secrets have keys of their own, such as sas_token",
                shown_url(&url)
            );
            self.problem(&keys::URL, message);
            return None;
        }
        let is_arn = scheme == "s3" && root.starts_with("arn:");
        if root.is_empty() || root.contains('@') || root.contains(':') && !is_arn {
            self.problem(&keys::URL, bad_url(&url));
            return None;
        }
        let store = match scheme {
            "az" => {
                if let Some(container) = self.text(&keys::CONTAINER_NAME)
                    && container != root
                {
                    self.problem(
                        &keys::CONTAINER_NAME,
                        format!(
                            "{}, but url has '{root}': keep one of them",
                            shown(&container)
                        ),
                    );
                }
                Store::Azure(self.azure(root.to_owned())?)
            }
            "s3" => {
                if let Some(bucket) = bucket
                    && bucket != root
                {
                    self.problem(
                        &keys::BUCKET,
                        format!("{}, but url has '{root}': keep one of them", shown(&bucket)),
                    );
                }
                Store::S3 {
                    bucket: root.to_owned(),
                    aws: self.aws(Place::S3),
                }
            }
            "gs" => Store::Gcs {
                bucket: root.to_owned(),
                endpoint: self.url(&keys::ENDPOINT),
            },
            _ => {
                self.problem(&keys::URL, bad_url(&url));
                return None;
            }
        };
        Some((store, prefix.to_owned()))
    }
}

/// Splits `arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/PREFIX` behind the name.
fn split_arn(rest: &str) -> Option<(&str, &str)> {
    let point = rest
        .strip_prefix("arn:")
        .and_then(|arn| arn.find("accesspoint/"))?;
    let name = "arn:".len() + point + "accesspoint/".len();
    let (point, prefix) = rest[name..].split_once('/').unwrap_or((&rest[name..], ""));
    Some((&rest[..name + point.len()], prefix))
}

fn bad_url(url: &str) -> String {
    let url = shown_url(url);
    format!(
        "{url} is not supported; use az://container/prefix, s3://bucket/prefix, gs://bucket/prefix or file:///folder"
    )
}
