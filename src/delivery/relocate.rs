//! Relocation: writes deferred events again at the log's head, so that the segments they arrived in can be removed.
//!
//! Otherwise a single line for an unavailable target would keep its segment and all younger ones, until the spool is
//! full. Relocation also replaces many references into many chunks by one into each of a few.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::ack::{count, ranges};
use super::rebuild::contains_event;
use crate::codec::Place;
use crate::codec::extract::{GROUP_END, extract};
use crate::ids::Time;
use crate::spool::{Content, Events, Relocation, Seq, Spool, Unreadable, Work, merge};

/// The approximate size of one frame: as much as a chunk of the host.
const FRAME_BYTES: usize = 2 * 1024 * 1024;
/// The maximum amount of chunk data read for it: other work waits meanwhile.
const READ_BYTES: usize = 64 * 1024 * 1024;
/// The maximum number of chunks read for it.
pub(super) const MAX_CHUNKS: usize = 256;

/// Events by target: sorted, without adjacent ranges.
pub(super) type ByTarget = Vec<(Arc<str>, Vec<Range<u32>>)>;

/// The events of one new frame.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) relocation: Relocation,
    /// The events by target, with their numbers in the new chunk.
    pub(super) targets: ByTarget,
    /// The events by target in their current chunks, to be put back if that fails.
    pub(super) from: Vec<(Seq, ByTarget)>,
}

/// The result of gathering.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) frames: Vec<Moving>,
    /// The events that stay in their chunks.
    pub(super) left: Vec<(Seq, ByTarget)>,
    /// Damaged chunks: the message to log, and whether their bytes are kept.
    pub(super) corrupt: Vec<(Seq, String, bool)>,
    /// The disk error, if there was one.
    pub(super) failed: Option<std::io::Error>,
}

/// A frame being built.
struct Frame {
    arrived: Time,
    data: Vec<u8>,
    events: u32,
    origins: Vec<Content>,
    targets: BTreeMap<Arc<str>, Vec<Range<u32>>>,
    from: Vec<(Seq, ByTarget)>,
}

impl Frame {
    fn new(arrived: Time) -> Frame {
        Frame {
            arrived,
            data: Vec::new(),
            events: 0,
            origins: Vec::new(),
            targets: BTreeMap::new(),
            from: Vec::new(),
        }
    }

    /// Adds events of a chunk. Returns those that cannot be copied.
    fn add(&mut self, chunk: Seq, arrived: Time, data: &[u8], targets: ByTarget) -> ByTarget {
        let mut all: Vec<Range<u32>> = Vec::new();
        for (_, events) in &targets {
            all.extend_from_slice(events);
        }
        merge(&mut all, &[]);
        let wanted = Events::Runs(all);
        let extracted = extract(data, Place::default(), usize::MAX, |event| {
            contains_event(&wanted, event)
        });
        if extracted.events == 0 {
            return targets;
        }
        let (mut moved, mut left) = (ByTarget::new(), ByTarget::new());
        for (target, events) in targets {
            let (mut here, mut there, mut not) = (Vec::new(), Vec::new(), Vec::new());
            for event in events.into_iter().flatten() {
                match rank(&extracted.taken, event) {
                    Some(rank) => {
                        here.push(event);
                        there.push(self.events + rank);
                    }
                    None => not.push(event),
                }
            }
            if !here.is_empty() {
                merge(
                    self.targets.entry(Arc::clone(&target)).or_default(),
                    &ranges(&there),
                );
                moved.push((Arc::clone(&target), ranges(&here)));
            }
            if !not.is_empty() {
                left.push((target, ranges(&not)));
            }
        }
        // The oldest, for the age of the oldest undelivered record.
        self.arrived = self.arrived.min(arrived);
        self.data.extend_from_slice(&extracted.data);
        if extracted.in_group {
            self.data.extend_from_slice(GROUP_END);
        }
        self.events += extracted.events;
        self.origins.push(Content {
            chunk,
            events: Events::Runs(extracted.taken),
        });
        self.from.push((chunk, moved));
        left
    }

    fn finish(self, tag: Vec<u8>) -> Moving {
        Moving {
            relocation: Relocation {
                tag,
                data: self.data.into(),
                arrived: self.arrived,
                origins: self.origins,
            },
            targets: self.targets.into_iter().collect(),
            from: self.from,
        }
    }
}

/// Returns how many events of sorted ranges precede this one, if it is among them.
fn rank(runs: &[Range<u32>], event: u32) -> Option<u32> {
    let at = runs.partition_point(|run| run.end <= event);
    let run = runs.get(at).filter(|run| run.contains(&event))?;
    let before = u32::try_from(count(&runs[..at])).ok()?;
    Some(before + (event - run.start))
}

/// Reads chunks and gathers their deferred events by tag, until there are enough for a frame.
pub(super) fn gather(spool: &Spool, chunks: Vec<(Seq, ByTarget)>, alone: bool) -> Gathered {
    let mut gathered = Gathered::default();
    let mut by_tag: BTreeMap<Vec<u8>, Frame> = BTreeMap::new();
    let (mut read, mut bytes) = (0, 0);
    for (chunk, targets) in chunks {
        if bytes >= FRAME_BYTES || read >= READ_BYTES {
            gathered.left.push((chunk, targets));
            continue;
        }
        spool.begin_work(chunk, Work::Deliver, alone);
        let stored = match spool.read(chunk) {
            Ok(stored) => stored,
            Err(Unreadable::Corrupt { words, kept }) => {
                gathered.corrupt.push((chunk, words, kept));
                continue;
            }
            Err(Unreadable::Finished) => continue,
            Err(Unreadable::Missing(_)) => {
                gathered.left.push((chunk, targets));
                continue;
            }
            Err(Unreadable::Disk(error)) => {
                gathered.failed = Some(error);
                gathered.left.push((chunk, targets));
                continue;
            }
        };
        read += stored.data.len();
        let frame = by_tag
            .entry(stored.tag)
            .or_insert_with(|| Frame::new(stored.arrived));
        let before = frame.data.len();
        let left = frame.add(chunk, stored.arrived, &stored.data, targets);
        bytes += frame.data.len() - before;
        if !left.is_empty() {
            gathered.left.push((chunk, left));
        }
    }
    let frames = by_tag.into_iter().filter(|(_, frame)| frame.events > 0);
    gathered.frames = frames.map(|(tag, frame)| frame.finish(tag)).collect();
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &[u8] = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80\x81\xa1r\x01";

    fn event(n: u8) -> Vec<u8> {
        [
            b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\x01\x80\x81\xa1k" as &[u8],
            &[n],
        ]
        .concat()
    }

    fn target(name: &str) -> Arc<str> {
        name.into()
    }

    fn run(events: Range<u32>) -> Vec<Range<u32>> {
        std::iter::once(events).collect()
    }

    fn time(seconds: i64) -> Time {
        Time { seconds, nanos: 0 }
    }

    #[test]
    fn events_of_several_chunks_are_renumbered_by_target() {
        let all: Vec<Vec<u8>> = (0..6).map(event).collect();
        let mut frame = Frame::new(time(7));
        let first = vec![(target("a"), vec![0..1, 3..5]), (target("b"), run(1..2))];
        assert!(
            frame
                .add(1, time(7), &all.concat(), first.clone())
                .is_empty()
        );
        let second = vec![(target("b"), run(2..6))];
        assert!(
            frame
                .add(2, time(5), &all.concat(), second.clone())
                .is_empty()
        );
        let moving = frame.finish(b"tag".to_vec());
        let data: Vec<Vec<u8>> = [0, 1, 3, 4, 2, 3, 4, 5].map(event).into();
        assert_eq!(moving.relocation.data, data.concat());
        assert_eq!(moving.relocation.arrived, time(5), "of the oldest");
        let content = |chunk, runs| Content {
            chunk,
            events: Events::Runs(runs),
        };
        let origins = [content(1, vec![0..2, 3..5]), content(2, run(2..6))];
        assert_eq!(moving.relocation.origins, origins);
        let targets = [
            (target("a"), vec![0..1, 2..4]),
            (target("b"), vec![1..2, 4..8]),
        ];
        assert_eq!(moving.targets, targets);
        assert_eq!(moving.from, [(1, first), (2, second)]);
    }

    #[test]
    fn a_group_ends_before_the_events_of_the_next_chunk() {
        let mut frame = Frame::new(time(0));
        let grouped = [GROUP, &event(1)].concat();
        frame.add(1, time(0), &grouped, vec![(target("a"), run(0..1))]);
        frame.add(2, time(0), &event(2), vec![(target("a"), run(0..1))]);
        let moving = frame.finish(Vec::new());
        let expected = [GROUP, &event(1), GROUP_END, &event(2)].concat();
        assert_eq!(moving.relocation.data, expected);
    }

    #[test]
    fn events_that_cannot_be_found_stay() {
        let mut frame = Frame::new(time(0));
        let wanted = vec![(target("a"), run(0..9))];
        assert_eq!(frame.add(1, time(0), b"", wanted.clone()), wanted);
        let left = frame.add(1, time(0), &event(1), wanted);
        assert_eq!(left, [(target("a"), run(1..9))]);
    }
}
