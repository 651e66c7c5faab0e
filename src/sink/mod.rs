//! The destinations. A sink sends one request and returns an outcome for each record. It holds no state about
//! chunks, never retries, and does not depend on the spool.

use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;

pub use outcome::{Class, Fault, Outcome};
pub use request::{Batch, Limits, Shape};
pub use traits::{DestinationTraits, ObjectLayout};

#[cfg(feature = "aws")]
pub mod aws;
pub mod blob;
#[cfg(feature = "firehose")]
pub mod firehose;
mod http;
pub mod outcome;
pub(crate) mod proxy;
pub mod request;
pub(crate) mod tls;
pub mod traits;

/// A destination.
pub trait Sink: Send + Sync + 'static {
    /// Returns the shape of requests to `target`. The first call may wait for the destination; an implementation
    /// finishes the lookup even if the future is dropped. Must be called within a runtime.
    fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape>;

    /// The longest line that any target accepts, in bytes, its newline included.
    fn longest_line(&self) -> usize {
        usize::MAX
    }

    /// Sends one request and returns an outcome for each record, in their order, within the sink's own request timeout.
    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>>;

    /// Whether the object of this name and token exists, for stores. An error if that cannot be told now.
    fn exists<'a>(
        &'a self,
        name: &'a str,
        _token: &'a str,
    ) -> BoxFuture<'a, Result<bool, Arc<Fault>>> {
        let fault = Fault {
            class: Class::Configuration,
            code: "unsupported".to_owned(),
            message: format!("this destination does not tell whether it has '{name}'"),
            request_id: None,
        };
        Box::pin(std::future::ready(Err(Arc::new(fault))))
    }

    /// The expiry of the credentials that sign requests; `None` where they do not expire, or are not known yet.
    fn credentials_expire(&self) -> Option<SystemTime> {
        None
    }
}
