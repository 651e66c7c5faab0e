//! Rebuilds from the events in the spool: objects that were started, and dead letters.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::cut::Cutter;
use super::intake::Intake;
use super::waiting::UnsendableEvents;
use crate::buffers::{self, Payload};
use crate::codec::rejected::Letter;
use crate::codec::{Encoded, Part};
use crate::delivery::ack::{Refusal, ranges};
use crate::delivery::dead_letter;
use crate::format::{Body, Format};
use crate::spool::{Content, Events, Seq, Spool, Unreadable, Work};

/// Returns whether an event is among some events.
pub(super) fn contains_event(events: &Events, event: u32) -> bool {
    match events {
        Events::All => true,
        Events::Runs(runs) => {
            let at = runs.partition_point(|run| run.end <= event);
            runs.get(at).is_some_and(|run| run.contains(&event))
        }
    }
}

/// Returns the letters of a step of which nothing can be sent, and their events.
pub(super) fn unsendable_letters(
    encoded: Encoded,
    tag: &Arc<[u8]>,
    refusal: Option<&Refusal>,
) -> (Vec<Letter>, Vec<u32>) {
    let (mut letters, mut lettered) = (encoded.letters, encoded.lettered);
    for part in encoded.parts {
        lettered.extend_from_slice(&part.events);
        match refusal {
            Some(refusal) => {
                let (target, fault) = (&refusal.target, &refusal.fault);
                letters.push(dead_letter::refused(tag, target, fault, part.text.into()));
            }
            // Events that exceed a record, even compressed.
            None => {
                let mut start = 0;
                for end in part.ends {
                    let line = &part.text[start..end];
                    let detail = format!(
                        "a record of {} bytes, which the destination does not accept",
                        line.len()
                    );
                    letters.push(Letter::too_large(tag, line, detail));
                    start = end;
                }
            }
        }
    }
    (letters, lettered)
}

/// Writes the letters of a chunk's events into the spool's quarantine.
pub(super) fn quarantine(
    cutter: &Cutter,
    spool: &Spool,
    chunk: Seq,
    tag: &Arc<[u8]>,
    data: &Bytes,
    all: &[UnsendableEvents],
) -> std::io::Result<String> {
    let encoding = cutter.line_encoding();
    spool.quarantine(&format!("dead-letters-{chunk:020}.ndjson"), &mut |out| {
        for unsendable in all {
            let events = Events::Runs(unsendable.events.clone());
            for step in encoding.steps(tag, data, |event| contains_event(&events, event)) {
                let (letters, _) = unsendable_letters(step, tag, unsendable.refusal.as_deref());
                dead_letter::lines(&letters, out)?;
            }
        }
        Ok(())
    })
}

/// Adds the rows of all parts in the order of their events.
fn push_by_event(body: &mut Body, mut parts: Vec<Part>) {
    if let [part] = &mut parts[..] {
        body.push(&part.text);
        return buffers::give(std::mem::take(&mut part.text));
    }
    let mut rows: Vec<(u32, &[u8])> = Vec::new();
    for part in &parts {
        let mut start = 0;
        for (event, end) in part.events.iter().zip(&part.ends) {
            rows.push((*event, &part.text[start..*end]));
            start = *end;
        }
    }
    rows.sort_unstable_by_key(|(event, _)| *event);
    for (_, row) in rows {
        body.push(row);
    }
}

/// An object rebuilt from its chunks.
pub(super) struct Rebuilt {
    pub(super) body: Payload,
    /// The events in it, by chunk.
    pub(super) events: Vec<(Seq, Vec<Range<u32>>)>,
    /// The number of lines.
    pub(super) lines: usize,
    /// The letters of events that are not lines any more.
    pub(super) letters: Vec<Letter>,
    /// The number of events that have nothing to send any more.
    pub(super) skipped: usize,
    /// The chunks that cannot be read any more, and are not in it.
    pub(super) corrupt: Vec<Seq>,
    /// The current target and folder of its events.
    pub(super) destination: Option<(String, String)>,
    /// The tag of its first event, on which what it has at the store may depend.
    pub(super) tag: Arc<[u8]>,
}

impl Rebuilt {
    /// Whether it lacks rows that it had when it was begun.
    pub(super) fn is_less(&self) -> bool {
        !self.corrupt.is_empty() || self.skipped > 0 || !self.letters.is_empty()
    }
}

/// Rebuilds an object from the chunks that its note names, in its own format, to the same bytes: its rows are added in the
/// order of the note, by event within a chunk, whatever names today's configuration gives them. Chunks that cannot be read any more are left out and logged;
/// events that were lines when the note was written, and are not any more, become letters.
///
/// # Errors
///
/// The first chunk that cannot be read now.
pub(super) fn rebuild_object(
    cutter: &Cutter,
    intake: &Intake,
    format: &Arc<dyn Format>,
    contents: &[Content],
    alone: bool,
) -> Result<Rebuilt, (Seq, Unreadable)> {
    let (mut lines, mut events) = (0, Vec::new());
    let spool = intake.spool();
    let mut body = Body::new(format);
    let (mut letters, mut skipped, mut corrupt) = (Vec::new(), 0, Vec::new());
    let mut destination = None;
    let mut first_tag = None;
    for content in contents {
        // Damage that the start found is logged by then.
        if !spool.holds(content.chunk) {
            corrupt.push(content.chunk);
            continue;
        }
        spool.begin_work(content.chunk, Work::Rebuild, alone);
        let stored = match spool.read(content.chunk) {
            Ok(stored) => stored,
            Err(Unreadable::Corrupt { words, kept }) => {
                intake.record_corrupt(&words, kept);
                corrupt.push(content.chunk);
                continue;
            }
            Err(Unreadable::Finished) => {
                corrupt.push(content.chunk);
                continue;
            }
            // The object has the lines that its note names, or it waits.
            Err(later) => return Err((content.chunk, later)),
        };
        let wanted = |event| contains_event(&content.events, event);
        let (encoding, tag) = (cutter.encoding_for(&**format), Arc::from(stored.tag));
        let mut sent = Vec::new();
        for mut encoded in encoding.steps(&tag, &stored.data, wanted) {
            for part in &encoded.parts {
                first_tag.get_or_insert_with(|| Arc::clone(&tag));
                destination.get_or_insert_with(|| (cutter.target(part), part.name.clone()));
                lines += part.ends.len();
                sent.extend_from_slice(&part.events);
            }
            push_by_event(&mut body, encoded.parts);
            letters.append(&mut encoded.letters);
            skipped += encoded.skipped.len();
        }
        sent.sort_unstable();
        events.push((content.chunk, ranges(&sent)));
    }
    Ok(Rebuilt {
        body: body.seal().finish(),
        events,
        lines,
        letters,
        skipped,
        corrupt,
        destination,
        tag: first_tag.unwrap_or_else(|| Arc::from(*b"")),
    })
}
