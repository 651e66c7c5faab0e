//! What all wings speak of: chunks, their events, times, and what the host is told.

use std::ops::Range;

/// What a chunk is known by: a hash of its tag and bytes.
pub type ChunkId = [u8; 16];

/// Hashes a chunk.
pub fn chunk_id(tag: &[u8], data: &[u8]) -> ChunkId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(tag.len() as u64).to_le_bytes());
    hasher.update(tag);
    hasher.update(data);
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

/// One of several chunks that are the same to the byte, by its number among them.
pub fn numbered(mut id: ChunkId, number: u32) -> ChunkId {
    for (byte, more) in id.iter_mut().zip(number.to_le_bytes()) {
        *byte ^= more;
    }
    id
}

/// Some of a chunk's events, by their number in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSet {
    bits: Vec<u64>,
}

impl EventSet {
    /// Puts an event in.
    pub fn insert(&mut self, event: u32) {
        let (word, bit) = (event as usize / 64, event % 64);
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << bit;
    }

    /// Whether an event is in.
    pub fn contains(&self, event: u32) -> bool {
        self.bits
            .get(event as usize / 64)
            .is_some_and(|word| word >> (event % 64) & 1 == 1)
    }

    /// How many are in.
    pub fn len(&self) -> usize {
        self.bits
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts all of another's events in.
    pub fn unite(&mut self, other: &EventSet) {
        if self.bits.len() < other.bits.len() {
            self.bits.resize(other.bits.len(), 0);
        }
        for (word, more) in self.bits.iter_mut().zip(&other.bits) {
            *word |= more;
        }
    }

    /// Puts events in, given as ranges.
    pub fn extend(&mut self, ranges: &[Range<u32>]) {
        for event in ranges.iter().cloned().flatten() {
            self.insert(event);
        }
    }

    /// Bytes of memory it needs beside itself.
    pub fn footprint(&self) -> usize {
        size_of_val(&self.bits[..])
    }
}

/// When an event happened, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// What the host is told about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every record is acknowledged or kept as a dead letter: the host may forget the chunk.
    Ok,
    /// Not all of it: the host keeps the chunk and hands it over again.
    Retry,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_between_tag_and_bytes_counts() {
        assert_ne!(chunk_id(b"ab", b"c"), chunk_id(b"a", b"bc"));
    }
}
