//! Events in the host's encoding, and chunks of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rmp::Marker;
use serde_json::Value;

/// Fluent Bit closes a chunk once it holds more than this (`FLB_INPUT_CHUNK_FS_MAX_SIZE`).
pub(crate) const CHUNK_LIMIT: usize = 2_048_000;

/// A chunk: the events of a tag.
pub(crate) struct Chunk {
    pub(crate) tag: Arc<str>,
    pub(crate) data: Vec<u8>,
    /// Its copy outside of memory, if there is one.
    pub(crate) origin: Option<Box<dyn Origin>>,
}

/// The copy of a chunk until it is settled. It remains if it is dropped before, because the engine ended.
pub(crate) trait Origin: Send {
    /// Returns the chunk's name in the log.
    fn name(&self) -> String;

    /// Whether it remains if no output matches the chunk, which otherwise settles it.
    fn stays_without_a_match(&self) -> bool;

    /// Called when the last output has settled the chunk.
    fn settled(self: Box<Self>, outcome: Outcome);
}

/// The outcome of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every output answered OK.
    Delivered,
    /// The last output answered OK, after the engine had ended.
    DeliveredTooLate,
    /// An output did not accept it, or no output matched.
    Dropped,
}

/// The events of an input that the engine has not taken yet.
#[derive(Default)]
pub(crate) struct Appender {
    open: HashMap<Arc<str>, Vec<u8>>,
    closed: Vec<Chunk>,
    bytes: usize,
}

impl Appender {
    /// Adds an event: `[[EventTime, {}], body]`, where `body` is encoded msgpack.
    pub(crate) fn event(&mut self, tag: &Arc<str>, time: SystemTime, body: &[u8]) {
        self.append(tag, |out| {
            begin_event(out, time);
            out.extend_from_slice(body);
        });
    }

    /// Adds an event whose body is JSON.
    pub(crate) fn json(&mut self, tag: &Arc<str>, time: SystemTime, body: &Value) {
        self.append(tag, |out| {
            begin_event(out, time);
            rmp_serde::encode::write(out, body).expect("any JSON value can be encoded");
        });
    }

    fn append(&mut self, tag: &Arc<str>, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.open.contains_key(tag) {
            self.open.insert(tag.clone(), Vec::new());
        }
        let data = self.open.get_mut(tag).expect("it was just put there");
        let before = data.len();
        write(data);
        self.bytes += data.len() - before;
        if data.len() > CHUNK_LIMIT {
            let data = std::mem::take(data);
            self.open.remove(tag);
            self.closed.push(Chunk {
                tag: tag.clone(),
                data,
                origin: None,
            });
        }
    }

    /// Adds bytes as a separate chunk.
    pub(crate) fn whole(&mut self, tag: &Arc<str>, data: Vec<u8>, origin: Option<Box<dyn Origin>>) {
        self.bytes += data.len();
        self.closed.push(Chunk {
            tag: tag.clone(),
            data,
            origin,
        });
    }

    /// Returns the number of bytes that are not taken yet.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is a full chunk.
    pub(crate) fn has_full(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Takes the full chunks, and with `all` also the others, in the order of their tags.
    pub(crate) fn take(&mut self, all: bool) -> Vec<Chunk> {
        let mut chunks = std::mem::take(&mut self.closed);
        if all {
            let mut open: Vec<_> = self.open.drain().collect();
            open.sort();
            let chunk = |(tag, data)| Chunk {
                tag,
                data,
                origin: None,
            };
            chunks.extend(open.into_iter().map(chunk));
        }
        self.bytes -= chunks.iter().map(|chunk| chunk.data.len()).sum::<usize>();
        chunks
    }
}

/// Writes the part of an event before its body.
pub(crate) fn begin_event(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Two arrays of two, then the EventTime: extension type 0 of 8 bytes.
    out.extend_from_slice(&[0x92, 0x92, 0xd7, 0x00]);
    out.extend_from_slice(&(since.as_secs() as u32).to_be_bytes());
    out.extend_from_slice(&since.subsec_nanos().to_be_bytes());
    out.push(0x80); // no metadata
}

/// Counts the log records in a chunk: all events except the markers of groups. `None` if the bytes are not whole
/// events.
pub(crate) fn count_records(chunk: &[u8]) -> Option<u64> {
    let mut rest = chunk;
    let mut records = 0;
    while !rest.is_empty() {
        let event = rest;
        skip(&mut rest, 1)?;
        if !is_group_marker(event) {
            records += 1;
        }
        let mut head = event;
        if rmp::decode::read_array_len(&mut head).ok()? != 2 {
            return None;
        }
    }
    Some(records)
}

/// Whether it is `[[EventTime(-1 or -2, 0), …], …]`, whose seconds mark a group's start or end.
fn is_group_marker(mut event: &[u8]) -> bool {
    let nested = rmp::decode::read_array_len(&mut event).is_ok()
        && rmp::decode::read_array_len(&mut event).is_ok();
    let time = event
        .strip_prefix(&[0xd7, 0x00])
        .or_else(|| event.strip_prefix(&[0xc7, 0x08, 0x00]));
    let (start, end) = (
        [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        [0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0],
    );
    nested && time.is_some_and(|time| time.starts_with(&start) || time.starts_with(&end))
}

/// Skips `values` msgpack values.
fn skip(rest: &mut &[u8], mut values: u64) -> Option<()> {
    while values > 0 {
        values -= 1;
        let (&first, tail) = rest.split_first()?;
        *rest = tail;
        // The bytes of payload, and the number of nested values.
        let (bytes, nested) = match Marker::from_u8(first) {
            Marker::FixPos(_) | Marker::FixNeg(_) => (0, 0),
            Marker::Null | Marker::True | Marker::False => (0, 0),
            Marker::U8 | Marker::I8 => (1, 0),
            Marker::U16 | Marker::I16 => (2, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
            Marker::FixStr(len) => (u64::from(len), 0),
            Marker::Str8 | Marker::Bin8 => (length(rest, 1)?, 0),
            Marker::Str16 | Marker::Bin16 => (length(rest, 2)?, 0),
            Marker::Str32 | Marker::Bin32 => (length(rest, 4)?, 0),
            Marker::FixExt1 => (2, 0),
            Marker::FixExt2 => (3, 0),
            Marker::FixExt4 => (5, 0),
            Marker::FixExt8 => (9, 0),
            Marker::FixExt16 => (17, 0),
            Marker::Ext8 => (length(rest, 1)? + 1, 0),
            Marker::Ext16 => (length(rest, 2)? + 1, 0),
            Marker::Ext32 => (length(rest, 4)? + 1, 0),
            Marker::FixArray(len) => (0, u64::from(len)),
            Marker::Array16 => (0, length(rest, 2)?),
            Marker::Array32 => (0, length(rest, 4)?),
            Marker::FixMap(len) => (0, 2 * u64::from(len)),
            Marker::Map16 => (0, 2 * length(rest, 2)?),
            Marker::Map32 => (0, 2 * length(rest, 4)?),
            Marker::Reserved => return None,
        };
        *rest = rest.get(usize::try_from(bytes).ok()?..)?;
        values += nested;
    }
    Some(())
}

/// Reads a big-endian length of `width` bytes.
fn length(rest: &mut &[u8], width: usize) -> Option<u64> {
    let (bytes, tail) = rest.split_at_checked(width)?;
    *rest = tail;
    Some(
        bytes
            .iter()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_what_it_encodes_and_not_what_is_cut_short() {
        let mut appender = Appender::default();
        let tag: Arc<str> = "app".into();
        let bodies = [
            json!({"text": "x".repeat(70_000), "n": [1, -1, 1.5, null, true, {"a": {"b": "c"}}]}),
            json!({}),
            json!({"big": u64::MAX, "small": i64::MIN, "many": (0..70_000).collect::<Vec<_>>()}),
        ];
        for body in &bodies {
            appender.json(&tag, SystemTime::now(), body);
        }
        let data = appender.take(true).remove(0).data;
        assert_eq!(count_records(&data), Some(3));
        assert_eq!(count_records(&data[..data.len() - 1]), None);
        assert_eq!(count_records(&[0xc0]), None, "an event is an array");
        assert_eq!(count_records(&[]), Some(0));
    }

    #[test]
    fn group_markers_are_not_records() {
        let time = |seconds: [u8; 4]| {
            let mut event = vec![0x92, 0x92, 0xd7, 0x00];
            event.extend_from_slice(&seconds);
            event.extend_from_slice(&[0, 0, 0, 0, 0x80, 0x80]);
            event
        };
        let start = time([0xff, 0xff, 0xff, 0xff]);
        let record = time([0xff, 0xff, 0xff, 0xfd]);
        let end = time([0xff, 0xff, 0xff, 0xfe]);
        let legacy = vec![0x92, 0x01, 0x80];
        let chunk = [start, record, legacy, end].concat();
        assert_eq!(count_records(&chunk), Some(2));
    }

    #[test]
    fn a_chunk_closes_when_it_is_over_the_limit() {
        let mut appender = Appender::default();
        let tag: Arc<str> = "app".into();
        let body = [
            &[0xdb][..],
            &1_000_000_u32.to_be_bytes(),
            &vec![b'x'; 1_000_000],
        ]
        .concat();
        for _ in 0..2 {
            appender.event(&tag, SystemTime::now(), &body);
        }
        assert!(
            !appender.has_full(),
            "two million bytes are below the limit"
        );
        appender.event(&tag, SystemTime::now(), &body);
        assert!(appender.has_full());
        assert_eq!(appender.take(false).len(), 1);
        assert_eq!(appender.bytes(), 0);
    }
}
