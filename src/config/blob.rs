//! What a blob destination is told: which store, and what its objects are.

use std::fmt;
use std::path::{Path, PathBuf};

use super::reader::Reader;
use super::value::{shown, without_secrets};
use super::{Aws, Azure, Destination, ObjectBounds, Place, Properties, keys, open_objects};
use crate::codec::template::Template;
use crate::compress::Compression;

/// Which store objects go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A folder on this machine.
    File(PathBuf),
    /// Amazon S3, or what speaks its protocol.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// How to reach it.
        aws: Aws,
    },
    /// Google Cloud Storage; credentials from `GOOGLE_APPLICATION_CREDENTIALS` or the metadata server.
    Gcs {
        /// The bucket's name.
        bucket: String,
        /// Full URL of the service, for emulators.
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
    /// The store as a URL, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Store::File(path) => write!(f, "file://{}", path.display()),
            Store::S3 { bucket, .. } => write!(f, "s3://{bucket}"),
            Store::Gcs { bucket, .. } => write!(f, "gs://{bucket}"),
            Store::Azure(azure) => write!(f, "az://{}", azure.container),
        }
    }
}

/// What a blob sink needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Which store.
    pub store: Store,
    /// Value of `Content-Type`.
    pub content_type: &'static str,
    /// Value of `Content-Encoding`, where the body is compressed.
    pub content_encoding: Option<&'static str>,
    /// PEM of certificates to trust beside the system's.
    pub ca_pem: Option<Vec<u8>>,
}

/// The folder of objects where no `path` is set.
const PATH: &str = "{tag}/%Y/%m/%d/%H";

impl Blob {
    /// The folder of objects with its strftime as it is written, to be shown to a person: it follows from the time of
    /// each event. `None` where `path` cannot be read.
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
        memory_limit: usize,
    ) -> Option<Destination> {
        let raw = raw && !self.lines_are_records();
        let path = self.text(&keys::PATH).unwrap_or_else(|| PATH.to_owned());
        let folder = self.template(&keys::PATH, &path);
        // Who lowers `memory_limit` alone gets smaller objects, not a refusal.
        let default = open_objects(memory_limit).min(keys::BLOB_MAX_SIZE.value.default);
        let object = ObjectBounds {
            bytes: self.size_or(&keys::BLOB_MAX_SIZE, default),
            age: self.time(&keys::BLOB_MAX_AGE),
        };
        let store = self.store();
        match &store {
            Some((store, _)) => self.refuse_foreign(Some(store.place()), &store.to_string()),
            None => self.refuse_foreign(None, "a blob store"),
        }
        let (store, prefix) = store?;
        Some(Destination::Blob {
            blob: Blob {
                store,
                content_type: if raw {
                    "text/plain; charset=utf-8"
                } else {
                    "application/x-ndjson"
                },
                content_encoding: compression.content_encoding(),
                ca_pem,
            },
            prefix,
            folder: folder?,
            object,
            extension: format!(
                "{}{}",
                if raw { ".log" } else { ".ndjson" },
                compression.extension()
            ),
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
            // `file:///var/log` is absolute; `file://logs` is a folder below where the host runs.
            let store = Store::File(path.to_owned());
            return Some((store, String::new()));
        }
        let (root, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('?') {
            let message = format!(
                "'{}' holds a query: secrets have keys of their own, such as sas_token",
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
                            "{}, but url says '{root}': keep one of them",
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
        "'{url}' is not known; it may be az://container/prefix, s3://bucket/prefix, gs://bucket/prefix or file:///folder"
    )
}
