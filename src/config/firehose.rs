//! What a Firehose destination is told.

use std::time::Duration;

use super::reader::Reader;
use super::value::shown;
use super::{Aws, Place, keys};
use crate::codec::template::Template;

/// What a Firehose sink needs to know.
#[derive(Clone, Debug)]
pub struct Firehose {
    /// The delivery stream for each event.
    pub delivery_stream: Template,
    /// How to reach it.
    pub aws: Aws,
    /// How many lines share a record.
    pub aggregation: Aggregation,
    /// PEM of certificates to trust beside the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// How long a request from the spool that is not full waits for more.
    pub linger: Duration,
}

/// How many lines share a Firehose record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// As many as fit.
    On,
    /// One.
    Off,
    /// As the stream's destination can read: asked of the service.
    Auto,
}

impl Reader<'_> {
    pub(super) fn firehose(&mut self, ca_pem: Option<Vec<u8>>) -> Option<Firehose> {
        self.refuse_foreign(Some(Place::Firehose), "Firehose");
        let aws = self.aws();
        let aggregation = self.choice(&keys::AGGREGATION).unwrap_or(Aggregation::Auto);
        let linger = self.time(&keys::LINGER);
        let Some(name) = self.text(&keys::DELIVERY_STREAM) else {
            if !self.is_set(&keys::DELIVERY_STREAM) {
                self.problem(
                    &keys::DELIVERY_STREAM,
                    "is missing: name the stream, or a template such as app-{tag[1]}",
                );
            }
            return None;
        };
        let delivery_stream = self.template(&keys::DELIVERY_STREAM, &name)?;
        if let Some(fixed) = delivery_stream.fixed()
            && stream_name(&fixed) != fixed
        {
            self.problem(
                &keys::DELIVERY_STREAM,
                format!(
                    "{} is no name of a stream: at most {MAX_STREAM_NAME} of a-z, A-Z, 0-9, '_', '-' and '.'",
                    shown(&fixed)
                ),
            );
        }
        Some(Firehose {
            delivery_stream,
            aws,
            aggregation,
            ca_pem,
            linger,
        })
    }
}

/// Characters in a stream's name:
/// https://docs.aws.amazon.com/firehose/latest/APIReference/API_CreateDeliveryStream.html
pub(super) const MAX_STREAM_NAME: usize = 64;

/// `name` with what a stream's name may not hold replaced, and cut to its length.
pub fn stream_name(name: &str) -> String {
    name.chars()
        .take(MAX_STREAM_NAME)
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' => c,
            _ => '-',
        })
        .collect()
}
