//! The keys of a blob destination: the store, and its objects.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::Reader;
use super::value::{shown, without_secrets};
use super::{Aws, Azure, Destination, ObjectBounds, Place, Properties, keys, open_objects};
use crate::codec::template::Template;
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
    pub(super) fn place(&self) -> Place {
        match self {
            Store::File(_) => Place::File,
            Store::S3 { .. } => Place::S3,
            Store::Gcs { .. } => Place::Gcs,
            Store::Azure(_) => Place::Azure,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The store.
    pub store: Store,
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The value of `Content-Encoding` for compressed bodies.
    pub content_encoding: Option<&'static str>,
    /// Certificates to trust in addition to the system's, in PEM.
    pub ca_pem: Option<Vec<u8>>,
}

/// The default of `path`.
const PATH: &str = "{tag}/%Y/%m/%d/%H";
/// The default of `path` for tables: a folder a day, which readers take as a column.
const TABLE_PATH: &str = "dt=%F";
/// The defaults of `blob_max_size` and `blob_max_age` for tables: small files are what readers of tables suffer from, and
/// the spool makes waiting safe.
const TABLE_BYTES: usize = 64_000_000;
const TABLE_AGE: Duration = Duration::from_secs(900);

impl Blob {
    /// Returns the template of an object's folder with its time specifiers as literals, for display. `None` where
    /// `path` is invalid.
    pub fn folder_as_written(properties: &dyn Properties) -> Option<Template> {
        let path = keys::PATH.names().find_map(|name| properties.get(name));
        Template::parse(path.as_deref().unwrap_or(PATH).trim(), false).ok()
    }
}

impl Reader<'_> {
    pub(super) fn blob(
        &mut self,
        ca_pem: Option<Vec<u8>>,
        compression: Compression,
        raw: bool,
        table: Option<&Table>,
        memory_limit: usize,
    ) -> Option<Destination> {
        let raw = raw && !self.lines_are_records();
        let default = if table.is_some() { TABLE_PATH } else { PATH };
        let path = self.text(&keys::PATH).unwrap_or_else(|| default.to_owned());
        let mut folder = self.template(&keys::PATH, &path);
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
        Some(Destination::Blob {
            blob: Blob {
                store,
                content_type: match table {
                    Some(_) => "application/vnd.apache.parquet",
                    None if raw => "text/plain; charset=utf-8",
                    None => "application/x-ndjson",
                },
                content_encoding: compression.content_encoding(),
                ca_pem,
            },
            prefix,
            folder: folder?,
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

    fn store(&mut self) -> Option<(Store, String)> {
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
            if rest.is_empty() {
                self.problem(&keys::URL, bad_url(&url));
                return None;
            }
            // `file:///var/log` is absolute; `file://logs` is relative to the host's working directory.
            let store = Store::File(path.to_owned());
            return Some((store, String::new()));
        }
        let (root, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('?') {
            let message = format!(
                "'{}' contains a query: secrets have keys of their own, such as sas_token",
                without_secrets(&url)
            );
            self.problem(&keys::URL, message);
            return None;
        }
        if root.is_empty() || root.contains(['@', ':']) {
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
            "s3" => Store::S3 {
                bucket: root.to_owned(),
                aws: self.aws(),
            },
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

fn bad_url(url: &str) -> String {
    let url = without_secrets(url);
    format!(
        "'{url}' is not supported; use az://container/prefix, s3://bucket/prefix, gs://bucket/prefix or file:///folder"
    )
}
