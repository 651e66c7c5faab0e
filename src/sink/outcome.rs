//! What became of a record, and why.

use std::fmt;
use std::sync::Arc;

/// What became of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged by the destination.
    Delivered,
    /// Certainly not written: sending it again cannot make a duplicate.
    Retry(Arc<Fault>),
    /// Perhaps written: the answer was lost after the request may have been received.
    Ambiguous(Arc<Fault>),
    /// Never going to be accepted as it is.
    Rejected(Arc<Fault>),
}

/// What kind of trouble a fault is, and so what is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The destination asks for less: slow down, send again.
    Throttle,
    /// Passes by itself: back off, send again.
    Transient,
    /// Credentials are missing, expired or refused, or the clock is wrong: hold the data, refresh.
    Credentials,
    /// A person has to mend something at the destination: hold the data, say what.
    Configuration,
    /// This record, whenever it is sent: dead letter.
    Record,
    /// The request is larger than the service takes: send it in halves.
    TooLarge,
}

/// Why the destination did not take something, in words for the log and the dead-letter file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is to be done about it.
    pub class: Class,
    /// The destination's own code, or one of ours for what never reached it (`timeout`, `connect`).
    pub code: String,
    /// The destination's own words, without secrets.
    pub message: String,
    /// The destination's name for the request, where it gave one.
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

/// Words from elsewhere, for one line of a log: runs of white space and control characters become a space,
/// and what is longer than `most` bytes is cut.
fn one_line(words: &str, most: usize) -> String {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    let parts: Vec<&str> = words.split(odd).filter(|part| !part.is_empty()).collect();
    let mut line = parts.join(" ");
    line.truncate(line.floor_char_boundary(most));
    line
}

/// The longest message handed on, in bytes: a log line, not a page.
const MESSAGE_LIMIT: usize = 400;
/// The longest code or request id. Real ones have at most 64 characters or so.
const CODE_LIMIT: usize = 100;

/// A message of a service's.
pub(crate) fn message_line(words: &str) -> String {
    one_line(words, MESSAGE_LIMIT)
}

/// A code or a request id of a service's.
pub(crate) fn code_line(words: &str) -> String {
    let line = one_line(words, CODE_LIMIT);
    if line.is_empty() {
        return "Unknown".to_owned();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_from_elsewhere_are_one_line_without_control_characters() {
        assert_eq!(
            message_line(" too\0\0 old:\r\n\t'Thu'\x1b[2J "),
            "too old: 'Thu' [2J"
        );
        assert_eq!(message_line(&"é".repeat(1_000)).len(), MESSAGE_LIMIT);
        assert_eq!(code_line(&"x".repeat(1_000)).len(), CODE_LIMIT);
        assert_eq!(code_line("\u{1}"), "Unknown");
    }
}
