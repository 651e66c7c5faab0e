//! Dead letters: records that cannot be delivered, each with its reason.

use std::sync::Arc;

use crate::buffers::Payload;
use crate::metrics::Reason;

/// A record that cannot be delivered in its present form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The tag of its chunk.
    pub tag: Arc<[u8]>,
    /// The class of the failure.
    pub reason: Reason,
    /// The description of the failure.
    pub detail: String,
    /// The destination's request id, if it returned one.
    pub request_id: Option<String>,
    /// The delivery stream or object that it was meant for, if known.
    pub target: Option<String>,
    /// The line without its newline, or the raw bytes from the chunk.
    pub record: Payload,
}

impl Letter {
    /// Creates the letter of a line that exceeds the destination's record size, as `detail` explains.
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
