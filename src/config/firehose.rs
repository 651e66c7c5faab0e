//! What a Firehose destination is told.

use std::time::Duration;

use super::Aws;
use super::azure::AZURE_KEYS;
use super::reader::Reader;
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
        let of_blobs = [
            "path",
            "blob_type",
            "blob_max_size",
            "blob_max_age",
            "upload_timeout",
        ];
        for &key in of_blobs.iter().chain(AZURE_KEYS) {
            if self.text(key).is_some() {
                self.problem(key, "belongs to a blob destination; remove it");
            }
        }
        let aws = self.aws();
        let aggregation = self.aggregation();
        let linger = self.seconds("linger", 1, 0..=60);
        let Some(name) = self.text("delivery_stream") else {
            if self.properties.get("delivery_stream").is_none() {
                self.problem(
                    "delivery_stream",
                    "is missing: name the stream, or a template such as app-{tag[1]}",
                );
            }
            return None;
        };
        let delivery_stream = self.template("delivery_stream", &name, false)?;
        if let Some(fixed) = delivery_stream.fixed()
            && stream_name(&fixed) != fixed
        {
            self.problem(
                "delivery_stream",
                format!("'{fixed}' is no name of a stream: at most {MAX_STREAM_NAME} of a-z, A-Z, 0-9, '_', '-' and '.'"),
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

    fn aggregation(&mut self) -> Aggregation {
        let Some(value) = self.either("aggregation", "simple_aggregation") else {
            return Aggregation::Auto;
        };
        match value.to_ascii_lowercase().as_str() {
            "auto" => Aggregation::Auto,
            "on" | "true" | "yes" => Aggregation::On,
            "off" | "false" | "no" => Aggregation::Off,
            _ => {
                self.problem(
                    "aggregation",
                    format!("'{value}' is not known; it may be on, off or auto"),
                );
                Aggregation::Auto
            }
        }
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
