//! The body of a PutRecordBatch, generated from the records frame by frame: once to hash it, since the signature
//! precedes it, and once to send it. The whole body is never in memory: it would take a third more than its lines, for
//! each request in flight.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use ring::digest;

use crate::buffers;
use crate::buffers::Payload;
use crate::codec::json;
use crate::sink::Batch;

/// The approximate size of a frame: large enough that the cost per frame does not matter.
const FRAME_BYTES: usize = 128 * 1024;
/// An upper bound of the JSON around a record's data, in bytes.
const RECORD_OVERHEAD: usize = 64;

/// The next element of the text.
#[derive(Clone, Copy, Debug)]
enum Next {
    Head,
    /// The JSON before this record's data, or the end after the last record.
    Record(usize),
    /// The data of a record, from an offset in one of its parts on.
    Data {
        record: usize,
        part: usize,
        at: usize,
    },
    End,
}

/// The text of a body.
#[derive(Clone, Debug)]
pub(super) struct BodyText {
    target: Arc<str>,
    records: Arc<[Payload]>,
    next: Next,
    /// Up to two bytes at the end of a part that are encoded with the start of the next, since base64 encodes three
    /// bytes at a time.
    carry: Vec<u8>,
    /// The number of bytes of text still to generate.
    remaining: u64,
}

impl BodyText {
    /// Creates the text of a batch, and returns its SHA-256 in hexadecimal too.
    pub(super) fn new(batch: Batch) -> (BodyText, String) {
        let mut text = BodyText {
            target: batch.target,
            records: batch.records.into(),
            next: Next::Head,
            carry: Vec::with_capacity(3),
            remaining: 0,
        };
        let mut pass = text.clone();
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut frame = buffers::take(FRAME_BYTES + RECORD_OVERHEAD);
        while pass.write(&mut frame) {
            hash.update(&frame);
            text.remaining += frame.len() as u64;
            frame.clear();
        }
        buffers::give(frame);
        (text, json::hex(hash.finish().as_ref()))
    }

    /// The number of bytes of text still to generate.
    pub(super) fn len(&self) -> u64 {
        self.remaining
    }

    /// Appends a frame. Returns whether there was any text left.
    fn write(&mut self, out: &mut Vec<u8>) -> bool {
        let full = out.len() + FRAME_BYTES;
        let more = !matches!(self.next, Next::End);
        while out.len() < full {
            self.next = match self.next {
                Next::Head => {
                    out.extend_from_slice(b"{\"DeliveryStreamName\":");
                    json::string(self.target.as_bytes(), out);
                    out.extend_from_slice(b",\"Records\":[");
                    Next::Record(0)
                }
                Next::Record(record) if record < self.records.len() => {
                    let before: &[u8] = if record == 0 { b"" } else { b"," };
                    out.extend_from_slice(before);
                    out.extend_from_slice(b"{\"Data\":\"");
                    let (part, at) = (0, 0);
                    Next::Data { record, part, at }
                }
                Next::Record(_) => {
                    out.extend_from_slice(b"]}");
                    Next::End
                }
                Next::Data { record, part, at } => {
                    let room = full - out.len();
                    self.data(record, part, at, room, out)
                }
                Next::End => break,
            };
        }
        more
    }

    /// Appends base64 of one part, as much as fits `room`, but at least three bytes' worth.
    fn data(
        &mut self,
        record: usize,
        part: usize,
        at: usize,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Next {
        let Some(bytes) = self.records[record].parts().get(part) else {
            json::base64(&self.carry, out);
            self.carry.clear();
            out.extend_from_slice(b"\"}");
            return Next::Record(record + 1);
        };
        let rest = &bytes[at..];
        let rest = &rest[..rest.len().min((room / 4 * 3).max(3))];
        let next = match at + rest.len() {
            end if end == bytes.len() => (part + 1, 0),
            end => (part, end),
        };
        let missing = (3 - self.carry.len()) % 3;
        let (first, rest) = rest.split_at(missing.min(rest.len()));
        self.carry.extend_from_slice(first);
        if self.carry.len() == 3 {
            json::base64(&self.carry, out);
            self.carry.clear();
        }
        let (whole, last) = rest.split_at(rest.len() / 3 * 3);
        json::base64(whole, out);
        self.carry.extend_from_slice(last);
        let (part, at) = next;
        Next::Data { record, part, at }
    }
}

impl Body for BodyText {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let text = self.get_mut();
        let room = usize::try_from(text.remaining).unwrap_or(usize::MAX);
        let mut frame = buffers::take(room.min(FRAME_BYTES + RECORD_OVERHEAD));
        if !text.write(&mut frame) {
            return Poll::Ready(None);
        }
        text.remaining -= frame.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(buffers::share(frame)))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.next, Next::End)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Reads a text frame by frame, as a connection does.
    async fn read(mut text: BodyText) -> Vec<u8> {
        let mut read = Vec::new();
        let len = text.len();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut text).poll_frame(context)).await {
            let frame = frame.unwrap().into_data().unwrap();
            assert!(frame.len() <= FRAME_BYTES + 2 * RECORD_OVERHEAD && !frame.is_empty());
            read.extend_from_slice(&frame);
            assert_eq!(text.size_hint().exact(), Some(len - read.len() as u64));
        }
        assert!(text.is_end_stream());
        read
    }

    /// For any division into parts, a record's data is one base64 text, and the body is what the SDK would write.
    #[tokio::test]
    async fn the_body_holds_each_record_whole_for_any_division_into_parts() {
        let text: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
        for parts in [1_000, 16_385, 98_303, 98_304, 98_305, 150_001, 300_000] {
            let mut record = Payload::default();
            record.extend(text.chunks(parts).map(Bytes::copy_from_slice));
            let mut small = Payload::default();
            small.extend(text[..11].chunks(parts % 5 + 1).map(Bytes::copy_from_slice));
            let batch = Batch {
                target: "a \"b\"".into(),
                tag: (*b"t").into(),
                records: vec![
                    record,
                    Bytes::from_static(b"x").into(),
                    small,
                    Payload::default(),
                ],
                token: None,
            };
            let (body, hash) = BodyText::new(batch);
            let body = read(body).await;
            let digest = ring::digest::digest(&ring::digest::SHA256, &body);
            assert_eq!(hash, json::hex(digest.as_ref()));
            let written: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let base64 = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
            assert_eq!(
                written,
                serde_json::json!({
                    "DeliveryStreamName": "a \"b\"",
                    "Records": [
                        { "Data": base64(&text) },
                        { "Data": "eA==" },
                        { "Data": base64(&text[..11]) },
                        { "Data": "" },
                    ],
                }),
                "{parts}"
            );
        }
    }
}
