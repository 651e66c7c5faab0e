//! What `ferry check` asks of a store, over the same client that puts objects.

use std::time::{Instant, SystemTime};

use object_store::ObjectStoreExt as _;

use super::{BlobSink, Kind, Store, object_path, s3_endpoint};
use crate::config;
use crate::sink::Fault;
use crate::sink::aws;

/// A refusal, and its HTTP status where an answer came.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The status.
    pub status: Option<u16>,
    /// The store's words.
    pub fault: Fault,
}

/// What is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The object, in a container or bucket that is.
    Object,
    /// The container or bucket.
    Container,
}

impl From<super::Failure> for Refusal {
    fn from(failure: super::Failure) -> Self {
        Refusal {
            status: failure.status,
            fault: failure.fault,
        }
    }
}

impl BlobSink {
    /// The URL that requests go to: scheme, host and port count.
    pub async fn address(&self) -> Result<String, Fault> {
        Ok(match &self.config.store {
            config::Store::File(root) => format!("file://{}", root.display()),
            config::Store::Gcs { endpoint, .. } => match endpoint {
                Some(endpoint) => endpoint.clone(),
                None => "https://storage.googleapis.com".to_owned(),
            },
            config::Store::Azure(_) => match &self.opened().await?.kind {
                Kind::Azure(container) => container.url().to_owned(),
                _ => unreachable!("the store is the configured one"),
            },
            config::Store::S3 { bucket, aws } => {
                let loaded = aws::load(aws, self.config.ca_pem.as_deref()).await;
                let loaded = loaded.map_err(|error| Fault {
                    class: crate::sink::Class::Configuration,
                    code: "aws".to_owned(),
                    message: error.to_string(),
                    request_id: None,
                })?;
                let region = &loaded.region;
                match s3_endpoint(aws, &loaded) {
                    Some(endpoint) => endpoint,
                    None if region.starts_with("cn-") => {
                        format!("https://s3.{region}.amazonaws.com.cn")
                    }
                    None if bucket.contains('.') => format!("https://s3.{region}.amazonaws.com"),
                    None => format!("https://{bucket}.s3.{region}.amazonaws.com"),
                }
            }
        })
    }

    /// Has a token for the store, where it takes tokens of Azure's: whose it is, and when it expires.
    pub async fn token(&self) -> Option<Result<(String, Option<SystemTime>), Fault>> {
        let opened = match self.opened().await {
            Ok(opened) => opened,
            Err(fault) => return Some(Err(fault)),
        };
        match &opened.kind {
            Kind::Azure(container) => {
                let token = container.token().await?;
                Some(token.map_err(|failure| failure.fault))
            }
            Kind::File(_) | Kind::S3(_) | Kind::Plain => None,
        }
    }

    /// Asks for an object that nobody wrote. Reading its body makes the answer say what is missing, which
    /// the answer to a HEAD would not.
    pub async fn look_for(&self, name: &str) -> Result<Absent, Refusal> {
        let store = self.opened().await.map_err(|fault| Refusal {
            status: None,
            fault,
        })?;
        let path = object_path(name);
        let began = Instant::now();
        let get = async { Ok(store.objects.get(&path).await.map(drop)?) };
        let Err(failure) = self.bounded(0, get).await else {
            return Ok(Absent::Object); // by a chance of one in 2^64
        };
        let failure = match &store.kind {
            Kind::Azure(container) => container.explain(failure, began).await,
            _ => failure,
        };
        match (failure.status, failure.fault.code.as_str()) {
            (_, "NoSuchBucket" | "ContainerNotFound") => Ok(Absent::Container),
            // A store says what is missing; without a code it is somebody on the way who has no such page.
            (Some(404), code) if !code.starts_with("HTTP ") => Ok(Absent::Object),
            _ => Err(failure.into()),
        }
    }

    /// Removes an object.
    pub async fn remove(&self, name: &str) -> Result<(), Refusal> {
        let store = self.opened().await.map_err(|fault| Refusal {
            status: None,
            fault,
        })?;
        let path = object_path(name);
        let removed = async { Ok(store.objects.delete(&path).await?) };
        Ok(self.bounded(0, removed).await?)
    }

    async fn opened(&self) -> Result<&Store, Fault> {
        self.store().await.map_err(|failure| failure.fault)
    }
}
