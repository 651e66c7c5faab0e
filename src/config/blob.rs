//! What a blob destination is told: which store, and what its objects are.

use std::fmt;
use std::path::{Path, PathBuf};

use super::aws::AWS_KEYS;
use super::azure::AZURE_KEYS;
use super::reader::Reader;
use super::value::without_secrets;
use super::{Aws, Azure, Destination, ObjectBounds, open_objects};
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

impl Reader<'_> {
    pub(super) fn blob(
        &mut self,
        ca_pem: Option<Vec<u8>>,
        compression: Compression,
        raw: bool,
        memory_limit: usize,
    ) -> Option<Destination> {
        for key in ["aggregation", "simple_aggregation", "linger"] {
            if self.text(key).is_some() {
                self.problem(key, "belongs to a Firehose destination; remove it");
            }
        }
        let path = self
            .text("path")
            .unwrap_or_else(|| "{tag}/%Y/%m/%d/%H".to_owned());
        let folder = self.template("path", &path, true);
        let age = self.either("blob_max_age", "upload_timeout");
        // Who lowers `memory_limit` alone gets smaller objects, not a refusal.
        let default = open_objects(memory_limit).min(16_000_000);
        let object = ObjectBounds {
            bytes: self.size("blob_max_size", default, 10_000..=4_000_000_000),
            age: self.time_in("blob_max_age", age, 300, 1..=86_400),
        };
        let (store, prefix) = self.store()?;
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
        let Some(url) = self.text("url") else {
            let container = self.text("container_name");
            if container.is_none() && self.properties.get("container_name").is_none() {
                self.problem(
                    "container_name",
                    "is missing: name the container, or use url",
                );
            }
            let store = Store::Azure(self.azure(container?)?);
            self.no_other_stores_keys(&store);
            return Some((store, String::new()));
        };
        let Some((scheme, rest)) = url.split_once("://") else {
            self.problem("url", bad_url(&url));
            return None;
        };
        if scheme == "file" {
            let path = Path::new(rest);
            if rest.is_empty() {
                self.problem("url", bad_url(&url));
                return None;
            }
            // `file:///var/log` is absolute; `file://logs` is a folder below where the host runs.
            let store = Store::File(path.to_owned());
            self.no_other_stores_keys(&store);
            return Some((store, String::new()));
        }
        let (root, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if root.is_empty() {
            self.problem("url", bad_url(&url));
            return None;
        }
        let store = match scheme {
            "az" => {
                if let Some(container) = self.text("container_name")
                    && container != root
                {
                    self.problem(
                        "container_name",
                        format!("'{container}', but url says '{root}': keep one of them"),
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
                endpoint: self.url("endpoint"),
            },
            _ => {
                self.problem("url", bad_url(&url));
                return None;
            }
        };
        self.no_other_stores_keys(&store);
        Some((store, prefix.to_owned()))
    }

    /// Refuses keys that belong to another store.
    fn no_other_stores_keys(&mut self, store: &Store) {
        let (azure, aws) = (
            matches!(store, Store::Azure(_)),
            matches!(store, Store::S3 { .. }),
        );
        let endpoint = matches!(store, Store::File(_)).then_some("endpoint");
        let others = (AZURE_KEYS.iter().filter(|_| !azure))
            .chain(AWS_KEYS.iter().filter(|_| !aws))
            .chain(&endpoint);
        for &key in others {
            if self.text(key).is_some() {
                self.problem(key, format!("does nothing for {store}: remove it"));
            }
        }
    }
}

fn bad_url(url: &str) -> String {
    let url = without_secrets(url);
    format!(
        "'{url}' is not known; it may be az://container/prefix, s3://bucket/prefix, gs://bucket/prefix or file:///folder"
    )
}
