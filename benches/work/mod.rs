//! The encoding step that both benchmarks measure, and its reference.

use ferry::codec::json::Encoder;
use ferry::codec::msgpack::{Events, Item};

/// The number of events in a chunk: about 1.9 MB of msgpack, the size at which a host flushes a chunk.
pub(crate) const EVENTS: usize = 5_000;

/// Appends a chunk's lines as Ferry encodes them.
pub(crate) fn encode(encoder: &mut Encoder<'_>, chunk: &[u8], out: &mut Vec<u8>) {
    let mut events = Events::new(chunk);
    let written = encoder.lines(b"app", &mut events, out, |_| true, |_| ());
    written.expect("sample events are whole");
    assert_eq!(events.next(), None, "sample events have the current format");
}

/// Returns the body of each event. The reference starts with them, so that finding them is not measured.
pub(crate) fn bodies(chunk: &[u8]) -> Vec<&[u8]> {
    Events::new(chunk)
        .map(|item| match item {
            Item::Event(event) => event.body,
            other => panic!("sample events are whole: {other:?}"),
        })
        .collect()
}

/// Appends the same lines as rmp-serde and serde_json encode them.
pub(crate) fn transcode(bodies: &[&[u8]], out: &mut Vec<u8>) {
    for body in bodies {
        let mut from = rmp_serde::Deserializer::from_read_ref(body);
        let mut to = serde_json::Serializer::new(&mut *out);
        serde_transcode::transcode(&mut from, &mut to).expect("sample events are JSON");
        out.push(b'\n');
    }
}
