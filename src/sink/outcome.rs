//! The outcomes of records.

use std::fmt;
use std::sync::Arc;

/// The outcome of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged by the destination.
    Delivered,
    /// Certainly not written: a retry cannot create a duplicate.
    Retry(Arc<Fault>),
    /// Possibly written: the request may have been received, but its response was lost.
    Ambiguous(Arc<Fault>),
    /// Permanently refused in its present form.
    Rejected(Arc<Fault>),
}

/// The code of a fault of this process, which has no descriptor left for a socket or a file: it says nothing about the
/// destination.
pub const OWN_TROUBLE: &str = "descriptors";
/// What is to be done about it.
pub(crate) const OWN_TROUBLE_REMEDY: &str =
    "this process has no file descriptors left: raise its limit (LimitNOFILE, ulimit -n)";

/// The class of a fault, which determines how it is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The destination throttles: slow down and retry.
    Throttle,
    /// A temporary failure: back off and retry.
    Transient,
    /// Credentials are missing, expired or refused, or the clock is wrong: hold the data and refresh them.
    Credentials,
    /// The destination or its configuration has to be fixed: hold the data and report what is wrong.
    Configuration,
    /// The contents of a record are refused. In a request of several, each is sent alone; alone, it becomes a dead letter.
    Record,
    /// The request exceeds the service's size limit: split it in halves.
    TooLarge,
}

/// The reason of a failure, for the log and dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The class of the fault.
    pub class: Class,
    /// The destination's error code, or one of ours where there is no response (`timeout`, `connect`).
    pub code: String,
    /// The destination's message, without secrets.
    pub message: String,
    /// The destination's request id, if it returned one.
    pub request_id: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(id) = &self.request_id {
            write!(f, " (request id {id})")?;
        }
        Ok(())
    }
}

/// Sanitizes untrusted text for the log: runs of white space and control characters become a space, and text longer
/// than `max` bytes is truncated.
fn one_line(text: &str, max: usize) -> String {
    let separator = |c: char| c.is_whitespace() || c.is_control();
    let parts: Vec<&str> = text
        .split(separator)
        .filter(|part| !part.is_empty())
        .collect();
    let mut line = parts.join(" ");
    line.truncate(line.floor_char_boundary(max));
    line
}

/// The longest message, in bytes, so that it fits a log line.
const MESSAGE_LIMIT: usize = 400;
/// The longest code or request id, in bytes. Real ones have at most about 64.
const CODE_LIMIT: usize = 100;

/// Sanitizes a service's message.
pub(crate) fn message_line(text: &str) -> String {
    one_line(text, MESSAGE_LIMIT)
}

/// Sanitizes a service's error code or request id.
pub(crate) fn code_line(text: &str) -> String {
    let line = one_line(text, CODE_LIMIT);
    if line.is_empty() {
        return "Unknown".to_owned();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_text_is_one_line_without_control_characters() {
        assert_eq!(
            message_line(" too\0\0 old:\r\n\t'Thu'\x1b[2J "),
            "too old: 'Thu' [2J"
        );
        assert_eq!(message_line(&"é".repeat(1_000)).len(), MESSAGE_LIMIT);
        assert_eq!(code_line(&"x".repeat(1_000)).len(), CODE_LIMIT);
        assert_eq!(code_line("\u{1}"), "Unknown");
    }
}
