//! What is sent: one request's worth of records, and what a target takes in one.

use std::sync::Arc;

use crate::buffers::Payload;

/// What one request may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in one record.
    pub record_bytes: usize,
    /// Lines in one record; 1 means that every line is a record of its own.
    pub record_lines: u32,
    /// Whether pieces may share a record. Not where a record is an object: its name stands for its one piece.
    pub joins: bool,
    /// Records in one request.
    pub batch_records: usize,
    /// Bytes in one request.
    pub batch_bytes: usize,
}

/// What a target takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes, lines and records in a request.
    pub limits: Limits,
    /// Plain lines are cut in pieces of about so many bytes: small enough that records fill up to their
    /// limit, large enough that pieces are few.
    pub piece_bytes: usize,
    /// Whether it takes compressed bodies, if the user wants them.
    pub compression: bool,
}

/// One request's worth of encoded records.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The delivery stream, or the whole name of the object below the store's root.
    pub target: Arc<str>,
    /// The bodies, in order. A blob sink is given exactly one.
    pub records: Vec<Payload>,
    /// What an object is known by, where its name was made for it alone: whatever stands under that name
    /// with this token is this object, even if it was compressed otherwise. Without one an object is
    /// known by its name and its length.
    pub token: Option<Arc<str>>,
}

#[cfg(test)]
impl Batch {
    /// The same in memory of its own, for a test that keeps it.
    pub(crate) fn copied(&self) -> Batch {
        let copy = |record: &Payload| record.to_bytes().to_vec().into();
        Batch {
            records: self.records.iter().map(copy).collect(),
            ..self.clone()
        }
    }
}
