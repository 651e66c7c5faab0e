//! The work that both benches measure, and the reference beside it.

use ferry::codec::json::Encoder;
use ferry::codec::msgpack::{Events, Item};

/// Events of a chunk: about 1.9 MB of msgpack, what a host gathers before it hands a chunk over.
pub(crate) const EVENTS: usize = 5_000;

/// Appends a chunk's lines, as Ferry writes them.
pub(crate) fn encode(encoder: &mut Encoder<'_>, chunk: &[u8], out: &mut Vec<u8>) {
    let mut events = Events::new(chunk);
    let written = encoder.lines(b"app", &mut events, out, |_| true, |_| ());
    written.expect("sample events are whole");
    assert_eq!(events.next(), None, "sample events have today's shape");
}

/// The body of each event: what the reference begins with, so that finding them is no part of its work.
pub(crate) fn bodies(chunk: &[u8]) -> Vec<&[u8]> {
    Events::new(chunk)
        .map(|item| match item {
            Item::Event(event) => event.body,
            other => panic!("sample events are whole: {other:?}"),
        })
        .collect()
}

/// Appends the same lines, as rmp-serde and serde_json write them.
pub(crate) fn transcode(bodies: &[&[u8]], out: &mut Vec<u8>) {
    for body in bodies {
        let mut from = rmp_serde::Deserializer::from_read_ref(body);
        let mut to = serde_json::Serializer::new(&mut *out);
        serde_transcode::transcode(&mut from, &mut to).expect("sample events are JSON");
        out.push(b'\n');
    }
}
