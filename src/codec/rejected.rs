//! What becomes a dead letter, and why.

use std::sync::Arc;

use crate::buffers::Payload;
use crate::metrics::Reason;

/// One thing that was not delivered and never will be as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The tag its chunk came with.
    pub tag: Arc<[u8]>,
    /// Why.
    pub reason: Reason,
    /// What exactly is wrong.
    pub detail: String,
    /// The destination's request id, where it had one.
    pub request_id: Option<String>,
    /// The delivery stream or the object it was on its way to, where that was known.
    pub target: Option<String>,
    /// The line without its newline, or the bytes as they came.
    pub record: Payload,
}

impl Letter {
    /// A letter for a line that no record can hold; `detail` says why.
    pub fn too_large(tag: &Arc<[u8]>, line: &[u8], detail: String) -> Letter {
        Letter {
            tag: Arc::clone(tag),
            reason: Reason::TooLarge,
            detail,
            target: None,
            request_id: None,
            record: line.strip_suffix(b"\n").unwrap_or(line).to_vec().into(),
        }
    }
}
