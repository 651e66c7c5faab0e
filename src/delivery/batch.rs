//! Groups encoded lines into records, and records into requests, within the destination's limits. Pure: no time, no
//! I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};
use tokio::time::Instant;

use crate::buffers::Payload;
use crate::sink::Limits;

/// Whole lines (or whole compressed members of them) that are delivered together or not at all. At most
/// [`Limits::record_bytes`] and [`Limits::record_lines`].
#[derive(Debug)]
pub struct Piece<T> {
    /// The bytes to send.
    pub bytes: Payload,
    /// The number of lines.
    pub lines: u32,
    /// Whether the bytes are compressed: no record has both kinds. Without meaning where pieces are not joined.
    pub compressed: bool,
    /// Reports the outcome.
    pub guard: T,
}

/// One record of a request: one or more pieces in a row.
#[derive(Debug)]
pub struct Record<T> {
    /// The delivery stream or object it goes to.
    pub target: Arc<str>,
    /// At least one piece, and no more if each line is a record of its own.
    pub pieces: SmallVec<[Piece<T>; 1]>,
    /// The number of failed attempts.
    pub attempts: u32,
    /// The time at which its first piece was queued.
    pub since: Instant,
    /// Whether it is sent in a request of its own, because a request with others was refused for one of its records.
    pub alone: bool,
    /// Whether an answer was lost, so that it may have been delivered.
    pub ambiguous: bool,
    bytes: usize,
    lines: u32,
}

impl<T> Record<T> {
    fn new(target: Arc<str>, piece: Piece<T>, now: Instant) -> Self {
        Record {
            target,
            bytes: piece.bytes.len(),
            lines: piece.lines,
            pieces: smallvec![piece],
            attempts: 0,
            since: now,
            alone: false,
            ambiguous: false,
        }
    }

    /// Returns the record's body.
    pub fn body(&self) -> Payload {
        let mut body = Payload::default();
        for piece in &self.pieces {
            body.extend(piece.bytes.parts().iter().cloned());
        }
        body
    }

    /// If it has more than `most` bytes and several pieces, removes and returns the first pieces as a record that has no
    /// more, or one piece.
    fn split_off_head(&mut self, most: usize) -> Option<Record<T>> {
        if self.bytes <= most || self.pieces.len() < 2 {
            return None;
        }
        let (mut count, mut bytes, mut lines) = (0, 0, 0);
        for piece in &self.pieces[..self.pieces.len() - 1] {
            if count > 0 && bytes + piece.bytes.len() > most {
                break;
            }
            (count, bytes, lines) = (count + 1, bytes + piece.bytes.len(), lines + piece.lines);
        }
        self.bytes -= bytes;
        self.lines -= lines;
        Some(Record {
            target: Arc::clone(&self.target),
            pieces: self.pieces.drain(..count).collect(),
            bytes,
            lines,
            ..*self
        })
    }

    /// Returns the number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of lines.
    pub fn lines(&self) -> u32 {
        self.lines
    }
}

/// The records waiting for a request, in order.
#[derive(Debug)]
pub struct Packer<T> {
    queue: VecDeque<Record<T>>,
    bytes: usize,
}

impl<T> Default for Packer<T> {
    fn default() -> Self {
        Packer {
            queue: VecDeque::new(),
            bytes: 0,
        }
    }
}

impl<T> Packer<T> {
    /// Returns whether no record is waiting.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Adds a piece: to the last record if records may be joined and it has room, otherwise as a new record.
    pub fn push(&mut self, target: &Arc<str>, piece: Piece<T>, limits: &Limits, now: Instant) {
        debug_assert!(piece.bytes.len() <= limits.record_bytes);
        self.bytes += piece.bytes.len();
        if limits.joins
            && let Some(last) = self.queue.back_mut()
            && last.attempts == 0
            && last.target == *target
            && last.pieces[0].compressed == piece.compressed
            && last.bytes + piece.bytes.len() <= limits.record_bytes
            && last.lines.saturating_add(piece.lines) <= limits.record_lines
        {
            last.bytes += piece.bytes.len();
            last.lines += piece.lines;
            last.pieces.push(piece);
            return;
        }
        self.queue
            .push_back(Record::new(Arc::clone(target), piece, now));
    }

    /// Puts failed records back at the front: they are the oldest.
    pub fn put_back(&mut self, records: Vec<Record<T>>) {
        for record in records.into_iter().rev() {
            self.bytes += record.bytes;
            self.queue.push_front(record);
        }
    }

    /// Puts records back at the end, if they failed for a reason of their own, so that the others go first.
    pub fn put_behind(&mut self, records: Vec<Record<T>>) {
        self.bytes += records.iter().map(|record| record.bytes).sum::<usize>();
        self.queue.extend(records);
    }

    /// Drops records of which every guard is `stale`.
    pub fn retain_fresh(&mut self, stale: impl Fn(&T) -> bool) {
        drop(self.extract(stale));
    }

    /// Removes and returns the records of which every guard matches.
    pub fn extract(&mut self, matches: impl Fn(&T) -> bool) -> Vec<Record<T>> {
        let all_match =
            |record: &Record<T>| record.pieces.iter().all(|piece| matches(&piece.guard));
        let (taken, left): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(all_match);
        self.bytes -= taken.iter().map(|record| record.bytes).sum::<usize>();
        self.queue = left;
        taken.into()
    }

    /// Returns all waiting records, in order.
    pub fn into_records(self) -> impl Iterator<Item = Record<T>> {
        self.queue.into_iter()
    }

    /// Returns whether more than one request's worth is waiting, so that waiting longer would not fill the next request
    /// better.
    pub fn is_full(&self, limits: &Limits) -> bool {
        self.queue.len() > limits.batch_records || self.bytes >= limits.batch_bytes
    }

    /// Returns when the first record was queued. `None` if it failed before: it does not linger again.
    pub fn since(&self) -> Option<Instant> {
        let first = self.queue.front()?;
        (first.attempts == 0).then_some(first.since)
    }

    /// Returns the target of the next request.
    pub fn next_target(&self) -> Option<Arc<str>> {
        self.queue.front().map(|record| Arc::clone(&record.target))
    }

    /// Takes the records of the next request: as many as fit, all for one target, in order. A first record that exceeds
    /// the request is split between its pieces; a single piece is sent whatever its size.
    pub fn take(&mut self, limits: &Limits) -> Vec<Record<T>> {
        let mut batch: Vec<Record<T>> = Vec::new();
        let mut bytes = 0;
        if let Some(first) = self.queue.front_mut()
            && let Some(head) = first.split_off_head(limits.batch_bytes)
        {
            self.queue.push_front(head);
        }
        while let Some(next) = self.queue.front() {
            if let Some(first) = batch.first() {
                let fits = batch.len() < limits.batch_records
                    && bytes + next.bytes <= limits.batch_bytes
                    && next.target == first.target
                    && !next.alone
                    && !first.alone;
                if !fits {
                    break;
                }
            }
            bytes += next.bytes;
            self.bytes -= next.bytes;
            batch.extend(self.queue.pop_front());
        }
        batch
    }
}

/// Splits whole lines that end at `ends` into runs of at most `bytes` bytes and `lines` lines. Returns index ranges of
/// `ends`. A line longer than `bytes` is a run of its own.
pub fn runs(ends: &[usize], bytes: usize, lines: u32) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let mut first = 0;
    let mut start = 0;
    for (line, &end) in ends.iter().enumerate() {
        let full = end - start > bytes || line - first >= lines as usize;
        if full && line > first {
            runs.push(first..line);
            first = line;
            start = ends[line - 1];
        }
    }
    if first < ends.len() {
        runs.push(first..ends.len());
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(len: usize, lines: u32, guard: usize) -> Piece<usize> {
        Piece {
            bytes: vec![b'x'; len].into(),
            lines,
            compressed: false,
            guard,
        }
    }

    fn now() -> Instant {
        Instant::now()
    }

    const SMALL: Limits = Limits {
        record_bytes: 10,
        record_lines: 3,
        joins: true,
        batch_records: 4,
        batch_bytes: 25,
    };

    #[test]
    fn pieces_join_until_a_limit_is_reached() {
        let target: Arc<str> = "s".into();
        let mut packer = Packer::default();
        for (guard, (len, lines)) in [(4, 1), (6, 1), (1, 3), (1, 1), (9, 1)]
            .into_iter()
            .enumerate()
        {
            packer.push(&target, piece(len, lines, guard), &SMALL, Instant::now());
        }
        let joined: Vec<Vec<usize>> = packer
            .take(&SMALL)
            .iter()
            .map(|record| record.pieces.iter().map(|piece| piece.guard).collect())
            .collect();
        assert_eq!(joined, [vec![0, 1], vec![2], vec![3, 4]]);
    }

    /// A stream's description may change while records for it are queued.
    #[test]
    fn compressed_and_uncompressed_pieces_share_no_record() {
        let target: Arc<str> = "s".into();
        let mut packer = Packer::default();
        for (guard, compressed) in [true, true, false, false, true].into_iter().enumerate() {
            let piece = Piece {
                compressed,
                ..piece(1, 1, guard)
            };
            packer.push(&target, piece, &SMALL, now());
        }
        let records = packer.take(&SMALL);
        let counts: Vec<usize> = records.iter().map(|record| record.pieces.len()).collect();
        assert_eq!(counts, [2, 2, 1]);
    }

    #[test]
    fn a_record_larger_than_the_request_is_split_between_its_pieces() {
        let target: Arc<str> = "s".into();
        let mut packer = Packer::default();
        for guard in 0..3 {
            packer.push(&target, piece(3, 1, guard), &SMALL, now());
        }
        let mut failed = packer.take(&SMALL);
        assert_eq!((failed.len(), failed[0].bytes()), (1, 9));
        (failed[0].attempts, failed[0].ambiguous) = (2, true);
        packer.put_back(failed);
        for (batch_bytes, expected) in [(6, &[0, 1][..]), (1, &[2])] {
            let limits = Limits {
                batch_bytes,
                ..SMALL
            };
            let batch = packer.take(&limits);
            let [record] = &batch[..] else {
                panic!("{batch:?}");
            };
            let guards: Vec<usize> = record.pieces.iter().map(|piece| piece.guard).collect();
            assert_eq!(guards, expected);
            let count = expected.len();
            assert_eq!((record.bytes(), record.lines()), (3 * count, count as u32));
            assert_eq!((record.attempts, record.ambiguous), (2, true));
        }
        assert!(packer.is_empty() && packer.bytes == 0);
    }

    #[test]
    fn a_record_refused_with_others_is_sent_alone() {
        let target: Arc<str> = "s".into();
        let mut packer = Packer::default();
        for guard in 0..3 {
            packer.push(&target, piece(8, 1, guard), &SMALL, now());
        }
        let mut refused = packer.take(&SMALL);
        assert_eq!(refused.len(), 3);
        refused[1].alone = true;
        packer.put_back(refused);
        let sizes: Vec<usize> =
            std::iter::from_fn(|| Some(packer.take(&SMALL).len()).filter(|n| *n > 0)).collect();
        assert_eq!(sizes, [1, 1, 1]);
    }

    #[test]
    fn a_request_is_full_when_more_is_queued_than_it_holds_and_reports_the_age_of_its_oldest_record()
     {
        let target: Arc<str> = "s".into();
        let mut packer = Packer::default();
        let start = now();
        for (guard, full) in [false, false, false, true].into_iter().enumerate() {
            let later = start + std::time::Duration::from_millis(guard as u64);
            packer.push(&target, piece(8, 1, guard), &SMALL, later);
            assert_eq!(packer.is_full(&SMALL), full, "{guard}");
        }
        assert_eq!(packer.since(), Some(start));
        let mut sent = packer.take(&SMALL);
        assert!(!packer.is_full(&SMALL));
        assert!(packer.since() > Some(start));
        sent.iter_mut().for_each(|record| record.attempts += 1);
        packer.put_back(sent);
        assert!(packer.is_full(&SMALL) && packer.since().is_none());
    }

    proptest! {
        /// Limits are never exceeded, order is kept, and every piece is sent exactly once, even with retries.
        #[test]
        fn every_piece_once_in_order_within_limits(
            pieces in proptest::collection::vec((1usize..=10, 1u32..=3, 0u8..2), 0..60),
            fail in proptest::collection::vec(any::<bool>(), 0..20),
            sizes in proptest::collection::vec(10usize..=25, 1..20),
        ) {
            let targets: [Arc<str>; 2] = ["a".into(), "b".into()];
            let mut packer = Packer::default();
            for (guard, (len, lines, target)) in pieces.iter().enumerate() {
                packer.push(&targets[usize::from(*target)], piece(*len, *lines, guard), &SMALL, now());
            }
            let mut fail = fail.into_iter();
            let mut sizes = sizes.into_iter().cycle();
            let mut sent = Vec::new();
            while !packer.is_empty() {
                let small = Limits { batch_bytes: sizes.next().unwrap(), ..SMALL };
                let batch = packer.take(&small);
                prop_assert!(!batch.is_empty() && batch.len() <= SMALL.batch_records);
                prop_assert!(batch.iter().map(|r| r.body().len()).sum::<usize>() <= small.batch_bytes);
                prop_assert!(batch.iter().all(|r| r.target == batch[0].target));
                for record in &batch {
                    prop_assert!(record.body().len() <= SMALL.record_bytes);
                    prop_assert!(record.pieces.iter().map(|p| p.lines).sum::<u32>() <= SMALL.record_lines);
                }
                if fail.next() == Some(true) {
                    packer.put_back(batch);
                } else {
                    sent.extend(batch.into_iter().flat_map(|r| r.pieces).map(|p| p.guard));
                }
            }
            prop_assert_eq!(sent, (0..pieces.len()).collect::<Vec<_>>());
        }

        /// Runs cover every line once, in order, within both limits.
        #[test]
        fn runs_cover_every_line_once(lens in proptest::collection::vec(1usize..=15, 0..60), lines in 1u32..5) {
            let ends: Vec<usize> = lens.iter().scan(0, |end, len| { *end += len; Some(*end) }).collect();
            let runs = runs(&ends, 10, lines);
            prop_assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), (0..lens.len()).collect::<Vec<_>>());
            for run in runs {
                prop_assert!(run.len() <= lines as usize);
                prop_assert!(run.len() == 1 || lens[run].iter().sum::<usize>() <= 10);
            }
        }
    }
}
