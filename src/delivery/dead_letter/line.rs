//! The format of a letter in its file: a line of JSON, which the library writes and `ferry replay` reads.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

use crate::codec::rejected::Letter;
use crate::codec::time::iso8601;
use crate::ids::Time;

/// The number of bytes of a record encoded at once: whole groups of base64.
pub(super) const PORTION_BYTES: usize = 48 * 1024;
/// The maximum number of bytes of a tag in a letter. A tag may be larger than everything else in it, and is repeated in
/// each of its chunk's letters.
const MAX_TAG_BYTES: usize = 1_024;

/// One letter. `R` is the type of its record: text when read, and [`Portions`] when written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line<'a, R = String> {
    /// The time it was written.
    pub time: Cow<'a, str>,
    /// The tag of its chunk.
    pub tag: Cow<'a, str>,
    /// The reason, in a word.
    pub reason: Cow<'a, str>,
    /// The exact error.
    #[serde(default)]
    pub error: Cow<'a, str>,
    /// The destination's request ID, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Cow<'a, str>>,
    /// The delivery stream or object it was meant for, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Cow<'a, str>>,
    /// The record, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<R>,
    /// The record, if it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_base64: Option<R>,
}

/// The reason why a letter has no record.
#[derive(Debug, thiserror::Error)]
pub enum NoRecord {
    /// It has neither or both of the fields.
    #[error("it must have either record or record_base64")]
    NotOne,
    /// The record is not valid base64.
    #[error("its record_base64 cannot be read: {0}")]
    Base64(#[from] base64_simd::Error),
}

impl Line<'_> {
    /// Returns the record.
    pub fn bytes(&self) -> Result<Vec<u8>, NoRecord> {
        match (&self.record, &self.record_base64) {
            (Some(text), None) => Ok(text.as_bytes().to_vec()),
            (None, Some(text)) => Ok(base64_simd::STANDARD.decode_to_vec(text)?),
            _ => Err(NoRecord::NotOne),
        }
    }
}

impl<'a> Line<'a, Portions<'a>> {
    /// Creates the line of a letter written at the time `now`.
    pub(super) fn of(letter: &'a Letter, now: Time) -> Self {
        let mut tag = String::from_utf8_lossy(&letter.tag);
        if letter.tag.len() > MAX_TAG_BYTES {
            let begin = String::from_utf8_lossy(&letter.tag[..MAX_TAG_BYTES]);
            tag = format!("{begin}… ({} bytes)", letter.tag.len()).into();
        }
        let parts = letter.record.parts();
        let text: Result<Vec<&str>, _> = parts.iter().map(|part| str::from_utf8(part)).collect();
        let (record, record_base64) = match text {
            Ok(text) => (Some(Portions::Text(text)), None),
            Err(_) => (None, Some(Portions::Base64(parts))),
        };
        Line {
            time: iso8601(now).to_string().into(),
            tag,
            reason: letter.reason.as_str().into(),
            error: letter.detail.as_str().into(),
            request_id: letter.request_id.as_deref().map(Cow::from),
            target: letter.target.as_deref().map(Cow::from),
            record,
            record_base64,
        }
    }
}

/// A record written portion by portion: it may be large, and several times as large as JSON.
pub(super) enum Portions<'a> {
    /// Text, in parts.
    Text(Vec<&'a str>),
    /// Bytes to encode as base64, in parts.
    Base64(&'a [Bytes]),
}

impl Display for Portions<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let parts = match self {
            Portions::Text(parts) => return parts.iter().try_for_each(|part| out.write_str(part)),
            Portions::Base64(parts) => *parts,
        };
        let mut portion = Vec::new();
        let mut encode = |portion: &mut Vec<u8>| {
            let written = out.write_str(&base64_simd::STANDARD.encode_to_string(&*portion));
            portion.clear();
            written
        };
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let (begin, behind) = rest.split_at(rest.len().min(PORTION_BYTES - portion.len()));
                portion.extend_from_slice(begin);
                if portion.len() == PORTION_BYTES {
                    encode(&mut portion)?;
                }
                rest = behind;
            }
        }
        encode(&mut portion)
    }
}

impl Serialize for Portions<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
