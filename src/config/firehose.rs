//! The keys of a Firehose destination.

use std::time::Duration;

use super::reader::Reader;
use super::value::shown;
use super::{Aws, Place, keys};
use crate::codec::template::{NameKind, Rules, Template, hash, is_hashed};

/// The settings of a Firehose sink.
#[derive(Clone, Debug)]
pub struct Firehose {
    /// The template of an event's delivery stream.
    pub delivery_stream: Template,
    /// The settings of AWS.
    pub aws: Aws,
    /// The number of lines in a record.
    pub aggregation: Aggregation,
    /// Certificates to trust in addition to the system's, in PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// The time that a request from the spool waits for more lines while it is not full.
    pub linger: Duration,
    /// What happens to records whose stream does not exist.
    pub missing_target: MissingTarget,
}

/// What happens to records whose target does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingTarget {
    /// What happens to them …
    pub action: MissingAction,
    /// … once their target has not existed for this long.
    pub after: Duration,
}

/// What happens to records whose target does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MissingAction {
    /// They wait until it exists.
    #[default]
    Hold,
    /// They become dead letters.
    DeadLetter,
    /// They are sent to this target.
    Fallback(String),
}

/// The values of `missing_target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MissingWord {
    Hold,
    DeadLetter,
    Fallback,
}

/// The number of lines in a Firehose record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// As many as fit.
    On,
    /// One.
    Off,
    /// As many as the stream's destination can read, as the service describes it.
    Auto,
}

impl Reader<'_> {
    pub(super) fn firehose(&mut self, ca_pem: Option<Vec<u8>>, names: Rules) -> Option<Firehose> {
        self.refuse_foreign(Some(Place::Firehose), "Firehose");
        let aws = self.aws(Place::Firehose);
        let aggregation = self.choice(&keys::AGGREGATION).unwrap_or(Aggregation::Auto);
        let linger = self.time(&keys::LINGER);
        let missing_target = self.missing_target();
        let Some(name) = self.text(&keys::DELIVERY_STREAM) else {
            if !self.is_set(&keys::DELIVERY_STREAM) {
                self.problem(
                    &keys::DELIVERY_STREAM,
                    "is missing: name the stream, or a template such as app-{tag[1]}",
                );
            }
            return None;
        };
        let delivery_stream = self.template(
            &keys::DELIVERY_STREAM,
            &name,
            Rules {
                kind: NameKind::Stream,
                // `stream_name` cuts what is too long.
                longest: usize::MAX,
                longest_segment: usize::MAX,
                ..names
            },
        )?;
        if let Some(fixed) = delivery_stream.fixed()
            && sanitize_stream_name(&fixed) != fixed
        {
            self.problem(
                &keys::DELIVERY_STREAM,
                format!(
                    "{} is not a stream name: use at most {MAX_STREAM_NAME} of a-z, A-Z, 0-9, '_', '-' and '.'",
                    shown(&fixed)
                ),
            );
        }
        if delivery_stream.fixed().is_some() && missing_target.action != MissingAction::Hold {
            self.problem(
                &keys::MISSING_TARGET,
                "needs placeholders in delivery_stream, since the records of the only stream would all go elsewhere: add them, \
                 or remove this",
            );
        }
        Some(Firehose {
            delivery_stream,
            aws,
            aggregation,
            ca_pem,
            linger,
            missing_target,
        })
    }

    fn missing_target(&mut self) -> MissingTarget {
        let word = self.choice(&keys::MISSING_TARGET);
        let after = self.time(&keys::MISSING_TARGET_AFTER);
        let fallback = self.text(&keys::MISSING_TARGET_FALLBACK);
        let is_set = self.is_set(&keys::MISSING_TARGET);
        // An invalid value is one problem.
        let is_valid = !is_set || word.is_some();
        let word = word.unwrap_or(MissingWord::Hold);
        if word == MissingWord::Hold && self.is_set(&keys::MISSING_TARGET_AFTER) && is_valid {
            self.problem(
                &keys::MISSING_TARGET_AFTER,
                "needs missing_target dead_letter or fallback: set one of them, or remove this",
            );
        }
        if word != MissingWord::Fallback && fallback.is_some() && is_valid {
            self.problem(
                &keys::MISSING_TARGET_FALLBACK,
                "needs missing_target fallback: set it, or remove this",
            );
        }
        let action = match (word, fallback) {
            (MissingWord::Hold, _) => MissingAction::Hold,
            (MissingWord::DeadLetter, _) => MissingAction::DeadLetter,
            (MissingWord::Fallback, Some(stream)) => {
                if sanitize_stream_name(&stream) != stream {
                    self.problem(
                        &keys::MISSING_TARGET_FALLBACK,
                        format!(
                            "{} is not a stream name: use at most {MAX_STREAM_NAME} of a-z, A-Z, 0-9, '_', '-' and '.'",
                            shown(&stream)
                        ),
                    );
                }
                MissingAction::Fallback(stream)
            }
            (MissingWord::Fallback, None) => {
                if !self.is_set(&keys::MISSING_TARGET_FALLBACK) {
                    self.problem(
                        &keys::MISSING_TARGET_FALLBACK,
                        "is missing: name the stream that gets the records of streams that do not exist",
                    );
                }
                MissingAction::Hold
            }
        };
        MissingTarget { action, after }
    }
}

/// The most characters in a stream's name:
/// <https://docs.aws.amazon.com/firehose/latest/APIReference/API_CreateDeliveryStream.html>
pub(super) const MAX_STREAM_NAME: usize = 64;

/// Returns the stream that a name made from a template stands for. One that is too long is cut, and carries a hash of
/// what it was; one of the same form from elsewhere is hashed as well, so that different names are different streams.
pub fn stream_name(name: &str) -> String {
    let valid = sanitize_stream_name(name);
    if valid == name && !(name.len() == MAX_STREAM_NAME && is_hashed(name, '-')) {
        return valid;
    }
    let hash = hash(name.as_bytes());
    let room = MAX_STREAM_NAME - 1 - hash.len();
    let mut readable = valid;
    readable.truncate(room);
    // All names that are cut have the full length.
    while readable.len() < room {
        readable.push('-');
    }
    format!("{readable}-{hash}")
}

/// Returns a valid instance name for any text, in the characters of stream names: others become `-`, and it is truncated
/// to 64 characters.
pub fn sanitize_stream_name(name: &str) -> String {
    name.chars()
        .take(MAX_STREAM_NAME)
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' => c,
            _ => '-',
        })
        .collect()
}
