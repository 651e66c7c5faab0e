//! Where batches go. A sink sends one request's worth and says what became of each record; it keeps
//! no state about chunks, never retries by itself, and never sees a spool.

use std::time::SystemTime;

use futures::future::BoxFuture;

pub use nature::{Nature, ObjectNature};
pub use outcome::{Class, Fault, Outcome};
pub use request::{Batch, Limits, Shape};

#[cfg(feature = "aws")]
pub mod aws;
pub mod blob;
#[cfg(feature = "firehose")]
pub mod firehose;
mod http;
pub mod nature;
pub mod outcome;
pub mod request;
pub(crate) mod tls;

/// A destination.
pub trait Sink: Send + Sync + 'static {
    /// What `target` takes. May wait for the destination, the first time; who does not want to wait any longer may
    /// drop it, and the asking goes on. Within a runtime.
    fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape>;

    /// Bytes of the longest line that any target takes as it is, its newline included.
    fn longest_line(&self) -> usize {
        usize::MAX
    }

    /// Sends one request and gives an outcome for each record, in their order. Bounded in time by the
    /// sink's own request timeout.
    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>>;

    /// When the credentials expire that requests are signed with; `None` where they do not, or are not
    /// known yet.
    fn credentials_expire(&self) -> Option<SystemTime> {
        None
    }
}
