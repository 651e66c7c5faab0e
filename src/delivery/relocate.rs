//! Relocation: writes deferred events again at the log's head, so that the segments they arrived in can be removed.
//!
//! Otherwise a single line for an unavailable target would keep its segment and all younger ones, until the spool is
//! full. Relocation also replaces many references into many chunks by one into each of a few.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::ack::{count, ranges};
use super::deferred::ByTarget;
use super::rebuild::contains_event;
use crate::codec::extract::{Extracted, GROUP_END, extract};
use crate::ids::Time;
use crate::spool::{self, Content, Relocation, Seq, Spool, Unreadable, Work, merge};

/// The maximum size of one frame, unless a single chunk's events are larger: about a chunk of the host.
pub(super) const FRAME_BYTES: usize = 2 * 1024 * 1024;
/// The maximum amount of chunk data read for it: other work waits meanwhile.
const READ_BYTES: usize = 64 * 1024 * 1024;
/// The maximum number of chunks read for it.
pub(super) const MAX_CHUNKS: usize = 256;

/// The events of one new frame.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) relocation: Relocation,
    /// The events by target, with their numbers in the new chunk.
    pub(super) targets: ByTarget,
    /// The bytes of each target's events, in the same order.
    pub(super) bytes: Vec<u64>,
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

/// A frame being built. Its events are sorted by target, so that each target has one range of them.
struct Frame {
    arrived: Time,
    targets: BTreeMap<Arc<str>, Events>,
    origins: Vec<Content>,
    from: Vec<(Seq, ByTarget)>,
}

/// The events of one target.
#[derive(Default)]
struct Events {
    data: Vec<u8>,
    events: u32,
}

impl Frame {
    fn new(arrived: Time) -> Frame {
        Frame {
            arrived,
            targets: BTreeMap::new(),
            origins: Vec::new(),
            from: Vec::new(),
        }
    }

    /// Adds the events of a chunk that were copied from it, in the order of `targets`. Returns those that were not.
    fn add(
        &mut self,
        chunk: Seq,
        arrived: Time,
        targets: ByTarget,
        copies: Vec<Extracted>,
    ) -> ByTarget {
        let (mut all, mut moved, mut left) = (Vec::new(), ByTarget::new(), ByTarget::new());
        for ((target, waiting), copy) in targets.into_iter().zip(copies) {
            let rest = without(&waiting, &copy.taken);
            if !rest.is_empty() {
                left.push((Arc::clone(&target), rest));
            }
            if copy.events == 0 {
                continue;
            }
            let events = self.targets.entry(Arc::clone(&target)).or_default();
            events.data.extend_from_slice(&copy.data);
            if copy.in_group {
                events.data.extend_from_slice(GROUP_END);
            }
            events.events += copy.events;
            all.extend_from_slice(&copy.taken);
            moved.push((target, copy.taken));
        }
        if !moved.is_empty() {
            merge(&mut all, &[]);
            // The oldest, for the age of the oldest undelivered record.
            self.arrived = self.arrived.min(arrived);
            self.origins.push(Content {
                chunk,
                events: spool::Events::Runs(all),
            });
            self.from.push((chunk, moved));
        }
        left
    }

    fn finish(self, tag: Vec<u8>) -> Moving {
        let (mut data, mut targets, mut events) = (Vec::new(), ByTarget::new(), 0);
        let mut bytes = Vec::new();
        for (target, of) in self.targets {
            data.extend_from_slice(&of.data);
            bytes.push(of.data.len() as u64);
            let run = events..events + of.events;
            events = run.end;
            targets.push((target, std::iter::once(run).collect()));
        }
        Moving {
            relocation: Relocation {
                tag,
                data: data.into(),
                arrived: self.arrived,
                origins: self.origins,
            },
            targets,
            bytes,
            from: self.from,
        }
    }
}

/// Copies the events of each target out of a chunk.
fn copies(data: &[u8], targets: &ByTarget) -> Vec<Extracted> {
    let mut runs: Vec<(&Range<u32>, usize)> = Vec::new();
    for (at, (_, events)) in targets.iter().enumerate() {
        runs.extend(events.iter().map(|run| (run, at)));
    }
    runs.sort_unstable_by_key(|(run, _)| run.start);
    extract(data, targets.len(), |event| {
        let at = runs.partition_point(|(run, _)| run.end <= event);
        let (run, target) = runs.get(at)?;
        run.contains(&event).then_some(*target)
    })
}

/// Returns the events that are not among `taken`, which is a part of them.
fn without(events: &[Range<u32>], taken: &[Range<u32>]) -> Vec<Range<u32>> {
    if count(events) == count(taken) {
        return Vec::new();
    }
    let taken = spool::Events::Runs(taken.to_vec());
    let all = events.iter().cloned().flatten();
    let left: Vec<u32> = all
        .filter(|event| !contains_event(&taken, *event))
        .collect();
    ranges(&left)
}

/// Reads chunks and gathers their deferred events by tag, until there are enough for a frame.
pub(super) fn gather(
    spool: &Spool,
    chunks: Vec<(Seq, ByTarget)>,
    frame_bytes: usize,
    alone: bool,
) -> Gathered {
    let mut gathered = Gathered::default();
    let mut by_tag: BTreeMap<Vec<u8>, Frame> = BTreeMap::new();
    let (mut read, mut bytes, mut full) = (0, 0, false);
    for (chunk, targets) in chunks {
        if full || read >= READ_BYTES {
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
        let copies = copies(&stored.data, &targets);
        let more: usize = copies.iter().map(|copy| copy.data.len()).sum();
        // Frames that are relocated again must not grow each time.
        if bytes > 0 && bytes + more > frame_bytes {
            full = true;
            gathered.left.push((chunk, targets));
            continue;
        }
        bytes += more;
        let frame = by_tag
            .entry(stored.tag)
            .or_insert_with(|| Frame::new(stored.arrived));
        let left = frame.add(chunk, stored.arrived, targets, copies);
        if !left.is_empty() {
            gathered.left.push((chunk, left));
        }
    }
    let frames = by_tag
        .into_iter()
        .filter(|(_, frame)| !frame.from.is_empty());
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

    fn add(
        frame: &mut Frame,
        chunk: Seq,
        seconds: i64,
        data: &[u8],
        targets: ByTarget,
    ) -> ByTarget {
        let copies = copies(data, &targets);
        frame.add(chunk, time(seconds), targets, copies)
    }

    #[test]
    fn events_are_sorted_by_target_and_each_target_has_one_range_of_them() {
        let all: Vec<Vec<u8>> = (0..6).map(event).collect();
        let mut frame = Frame::new(time(7));
        let first = vec![(target("b"), run(1..2)), (target("a"), vec![0..1, 3..5])];
        assert!(add(&mut frame, 1, 7, &all.concat(), first.clone()).is_empty());
        let second = vec![(target("b"), run(2..6))];
        assert!(add(&mut frame, 2, 5, &all.concat(), second.clone()).is_empty());
        let moving = frame.finish(b"tag".to_vec());
        let data: Vec<Vec<u8>> = [0, 3, 4, 1, 2, 3, 4, 5].map(event).into();
        assert_eq!(moving.relocation.data, data.concat());
        assert_eq!(moving.relocation.arrived, time(5), "the oldest");
        let content = |chunk, runs| Content {
            chunk,
            events: spool::Events::Runs(runs),
        };
        let origins = [content(1, vec![0..2, 3..5]), content(2, run(2..6))];
        assert_eq!(moving.relocation.origins, origins);
        assert_eq!(
            moving.targets,
            [(target("a"), run(0..3)), (target("b"), run(3..8))]
        );
        assert_eq!(
            moving.bytes,
            [3, 5].map(|events| events * event(0).len() as u64)
        );
        assert_eq!(moving.from, [(1, first), (2, second)]);
    }

    #[test]
    fn a_group_ends_before_the_events_of_the_next_chunk() {
        let mut frame = Frame::new(time(0));
        let grouped = [GROUP, &event(1)].concat();
        add(&mut frame, 1, 0, &grouped, vec![(target("a"), run(0..1))]);
        add(&mut frame, 2, 0, &event(2), vec![(target("a"), run(0..1))]);
        let moving = frame.finish(Vec::new());
        let expected = [GROUP, &event(1), GROUP_END, &event(2)].concat();
        assert_eq!(moving.relocation.data, expected);
    }

    #[test]
    fn events_that_are_not_in_the_chunk_stay() {
        let mut frame = Frame::new(time(0));
        let wanted = vec![(target("a"), run(0..9))];
        assert_eq!(add(&mut frame, 1, 0, b"", wanted.clone()), wanted);
        let left = add(&mut frame, 1, 0, &event(1), wanted);
        assert_eq!(left, [(target("a"), run(1..9))]);
        assert_eq!(frame.from.len(), 1);
    }
}
