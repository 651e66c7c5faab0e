//! Requests: batches of records, and the limits of a target.

use std::sync::Arc;

use crate::buffers::Payload;

/// The limits of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes in a record.
    pub record_bytes: usize,
    /// The most lines in a record; 1 makes every line a record of its own.
    pub record_lines: u32,
    /// Whether pieces may share a record. Not where a record is an object, whose name identifies its one piece.
    pub joins: bool,
    /// The most records in a request.
    pub batch_records: usize,
    /// The most bytes in a request.
    pub batch_bytes: usize,
}

/// The shape of the requests to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The limits of a request.
    pub limits: Limits,
    /// The approximate size of pieces of uncompressed lines, in bytes: small enough to fill records up to their limit,
    /// large enough to keep pieces few.
    pub piece_bytes: usize,
    /// Whether the target accepts compressed bodies.
    pub compression: bool,
}

/// The encoded records of one request.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The delivery stream, or the full name of the object below the store's root.
    pub target: Arc<str>,
    /// The tag of the first event. Whatever an object has from its tag is the same for all of its events.
    pub tag: Arc<[u8]>,
    /// The bodies, in order: exactly one for a blob sink.
    pub records: Vec<Payload>,
    /// The identity of an object with a unique name: an existing object with this name and token is the same, even if
    /// it was compressed differently. Without a token, an object is identified by its name and length.
    pub token: Option<Arc<str>>,
}

#[cfg(test)]
impl Batch {
    /// Returns a deep copy, for tests that keep it.
    pub(crate) fn copied(&self) -> Batch {
        let copy = |record: &Payload| record.to_bytes().to_vec().into();
        Batch {
            records: self.records.iter().map(copy).collect(),
            ..self.clone()
        }
    }
}
