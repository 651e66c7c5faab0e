//! Types that every layer shares: chunk ids, sets of events, times and verdicts.

use std::ops::Range;

/// The identity of a chunk: a hash of its tag and bytes.
pub type ChunkId = [u8; 16];

/// Returns the first 16 bytes of the BLAKE3 hash of a chunk's tag and bytes.
pub fn chunk_id(tag: &[u8], data: &[u8]) -> ChunkId {
    chunk_id_of_parts(tag, &[data])
}

/// Like [`chunk_id`], of bytes in several parts.
pub(crate) fn chunk_id_of_parts(tag: &[u8], data: &[&[u8]]) -> ChunkId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(tag.len() as u64).to_le_bytes());
    hasher.update(tag);
    for part in data {
        hasher.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

/// Returns the id of one of several byte-identical chunks, told apart by their ordinal.
pub fn numbered(mut id: ChunkId, number: u32) -> ChunkId {
    for (byte, more) in id.iter_mut().zip(number.to_le_bytes()) {
        *byte ^= more;
    }
    id
}

/// A set of events of one chunk, by their ordinal in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSet {
    bits: Vec<u64>,
}

impl EventSet {
    /// Adds an event.
    pub fn insert(&mut self, event: u32) {
        let (word, bit) = (event as usize / 64, event % 64);
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << bit;
    }

    /// Whether the set contains an event.
    pub fn contains(&self, event: u32) -> bool {
        self.bits
            .get(event as usize / 64)
            .is_some_and(|word| word >> (event % 64) & 1 == 1)
    }

    /// The number of events in the set.
    pub fn len(&self) -> usize {
        self.bits
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds all events of another set.
    pub fn unite(&mut self, other: &EventSet) {
        if self.bits.len() < other.bits.len() {
            self.bits.resize(other.bits.len(), 0);
        }
        for (word, more) in self.bits.iter_mut().zip(&other.bits) {
            *word |= more;
        }
    }

    /// Adds ranges of events.
    pub fn extend(&mut self, ranges: &[Range<u32>]) {
        for event in ranges.iter().cloned().flatten() {
            self.insert(event);
        }
    }

    /// Removes ranges of events.
    pub fn remove(&mut self, ranges: &[Range<u32>]) {
        for event in ranges.iter().cloned().flatten() {
            if let Some(word) = self.bits.get_mut(event as usize / 64) {
                *word &= !(1 << (event % 64));
            }
        }
    }

    /// All events as sorted, non-adjacent ranges.
    pub fn ranges(&self) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for (word, bits) in (0u32..).step_by(64).zip(&self.bits) {
            let mut bits = *bits;
            while bits != 0 {
                let event = word + bits.trailing_zeros();
                bits &= bits - 1;
                match ranges.last_mut() {
                    Some(last) if last.end == event => last.end += 1,
                    _ => ranges.push(event..event + 1),
                }
            }
        }
        ranges
    }

    /// The heap memory in use, in bytes.
    pub fn footprint(&self) -> usize {
        size_of_val(&self.bits[..])
    }
}

/// The time of an event, in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since the Unix epoch.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// Returns the seconds since an earlier time; 0 if the clock was set back.
    pub fn seconds_since(self, then: Time) -> f64 {
        let seconds = self.seconds.saturating_sub(then.seconds) as f64;
        let nanos = f64::from(self.nanos) - f64::from(then.nanos);
        (seconds + nanos / 1e9).max(0.0)
    }
}

/// The answer to a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every record is acknowledged, spooled or kept as a dead letter: the host may drop the chunk.
    Ok,
    /// Some records are not: the host keeps the chunk and flushes it again.
    Retry,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_of_events_is_like_any_other_set(
            changes in proptest::collection::vec((any::<bool>(), 0u32..200, 0u32..70), 0..20),
        ) {
            let (mut set, mut expected) = (EventSet::default(), std::collections::BTreeSet::new());
            for (adds, from, len) in changes {
                let range = std::slice::from_ref(&(from..from + len)).to_vec();
                match adds {
                    true => {
                        set.extend(&range);
                        expected.extend(from..from + len);
                    }
                    false => {
                        set.remove(&range);
                        expected.retain(|event| !(from..from + len).contains(event));
                    }
                }
            }
            let ranges = set.ranges();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let events: Vec<u32> = ranges.into_iter().flatten().collect();
            prop_assert_eq!(&events, &expected.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), expected.len());
        }
    }

    #[test]
    fn the_boundary_between_tag_and_bytes_counts() {
        assert_ne!(chunk_id(b"ab", b"c"), chunk_id(b"a", b"bc"));
    }
}
