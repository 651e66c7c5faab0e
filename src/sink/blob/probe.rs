//! The probes of `ferry check`, with the client that puts objects.

use std::time::{Instant, SystemTime};

use object_store::ObjectStoreExt as _;

use super::{BlobSink, Kind, Store, object_path, s3};
use crate::config;
use crate::sink::Fault;
use crate::sink::aws;

/// A failed probe.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
    /// The reason.
    pub fault: Fault,
}

/// The part of an object's address that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The object, in an existing container or bucket.
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
    /// Returns the URL that requests go to, of which scheme, host and port are meaningful.
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
                let address = s3::resolve(bucket, aws, &loaded);
                address
                    .map(|address| address.url)
                    .map_err(|problem| Fault {
                        class: crate::sink::Class::Configuration,
                        code: problem.key.to_owned(),
                        message: problem.message,
                        request_id: None,
                    })?
            }
        })
    }

    /// Fetches a token and returns its identity and expiry; `None` for stores without Azure tokens.
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

    /// Requests an object that does not exist. It is a GET since the response to a HEAD does not tell whether the
    /// object or the container is missing.
    pub async fn probe(&self, name: &str) -> Result<Absent, Refusal> {
        let store = self.opened().await.map_err(|fault| Refusal {
            status: None,
            fault,
        })?;
        let path = object_path(name);
        let start = Instant::now();
        let get = async { Ok(store.objects.get(&path).await.map(drop)?) };
        let Err(failure) = self.with_timeout(0, get).await else {
            return Ok(Absent::Object); // with a probability of 1 in 2^64
        };
        let failure = match &store.kind {
            Kind::Azure(container) => container.explain(failure, start).await,
            _ => failure,
        };
        match (failure.status, failure.fault.code.as_str()) {
            (_, "NoSuchBucket" | "ContainerNotFound") => Ok(Absent::Container),
            // A 404 without a code is not the store's but an intermediary's.
            (Some(404), code) if !code.starts_with("HTTP ") => Ok(Absent::Object),
            _ => Err(failure.into()),
        }
    }

    /// Deletes an object.
    pub async fn remove(&self, name: &str) -> Result<(), Refusal> {
        let store = self.opened().await.map_err(|fault| Refusal {
            status: None,
            fault,
        })?;
        let path = object_path(name);
        let removed = async {
            match &store.kind {
                Kind::Azure(container) => container.remove(&path).await,
                _ => Ok(store.objects.delete(&path).await?),
            }
        };
        Ok(self.with_timeout(0, removed).await?)
    }

    async fn opened(&self) -> Result<&Store, Fault> {
        self.store().await.map_err(|failure| failure.fault)
    }
}
