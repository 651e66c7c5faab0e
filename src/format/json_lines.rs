//! JSON lines, in blocks that are compressed one by one and joined.
//!
//! Frames of zstd in a row read as one file. So do members of gzip, but some readers stop after the first one without a
//! word. Therefore the blocks of gzip are parts of one member, unless `gzip_members many` or the level says otherwise: each
//! ends at a byte, and the checksum of all is combined from those of each.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use bytes::Bytes;
use libdeflater::Crc;

use super::{Block, Format, Sealing};
use crate::buffers::Payload;
use crate::compress::zlib::combine;
use crate::compress::{Compression, LAST_BLOCK, MEMBER_HEADER, has_parts, part, undo_part};

/// Its word in a recipe.
pub(super) const NAME: &str = "lines";

/// The checksum and the length at the end of a member, in bytes.
const TRAILER: usize = 8;

/// JSON lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    compression: Compression,
    /// The most bytes of text in a block.
    block: usize,
    /// For gzip: whether all blocks are parts of one member.
    one_member: bool,
}

impl Lines {
    /// Creates the format with blocks of `block` bytes of text.
    pub fn new(compression: Compression, block: usize) -> Lines {
        Lines {
            compression,
            block,
            one_member: false,
        }
    }

    /// The same with all blocks of gzip in one member. Only for levels that [`has_parts`].
    pub fn in_one_member(self) -> Lines {
        Lines {
            one_member: true,
            ..self
        }
    }

    /// Returns the level of a gzip member that has all blocks.
    fn member(&self) -> Option<u32> {
        match self.compression {
            Compression::Gzip(level) if self.one_member => Some(level),
            _ => None,
        }
    }

    /// Parses the settings of a recipe.
    pub(super) fn parse(text: &str) -> Option<Lines> {
        let words: Vec<&str> = text.split(' ').collect();
        let mut one_member = false;
        let (compression, block) = match words[..] {
            ["gzip", level, "one", "block", block] => {
                one_member = true;
                let level = level.parse().ok().filter(|level| has_parts(*level));
                (Compression::Gzip(level?), block)
            }
            ["none", "block", block] => (Compression::None, block),
            ["gzip", level, "block", block] => {
                let level = level.parse().ok().filter(|level| (1..=12).contains(level));
                (Compression::Gzip(level?), block)
            }
            ["zstd", level, "block", block] => {
                let level = level.parse().ok().filter(|level| (-7..=19).contains(level));
                (Compression::Zstd(level?), block)
            }
            _ => return None,
        };
        let block = block.parse().ok().filter(|block| *block > 0)?;
        Some(Lines {
            compression,
            block,
            one_member,
        })
    }
}

impl Format for Lines {
    fn recipe(&self) -> String {
        let compression = match self.compression {
            Compression::None => "none".to_owned(),
            Compression::Gzip(level) if self.one_member => format!("gzip {level} one"),
            Compression::Gzip(level) => format!("gzip {level}"),
            Compression::Zstd(level) => format!("zstd {level}"),
        };
        format!("{NAME} {compression} block {}", self.block)
    }

    fn block_bytes(&self) -> usize {
        self.block
    }

    fn row_len(&self, rows: &[u8]) -> usize {
        let newline = rows.iter().position(|byte| *byte == b'\n');
        newline.map_or(rows.len(), |at| at + 1)
    }

    fn rows_within(&self, rows: &[u8], most: usize) -> usize {
        let newline = rows[..most].iter().rposition(|byte| *byte == b'\n');
        newline.map_or(0, |at| at + 1)
    }

    fn pack(&self, rows: &[u8]) -> Block {
        if let Some(level) = self.member() {
            let mut crc = Crc::new();
            crc.update(rows);
            return Block {
                packed: part(level, rows).into(),
                len: u32::try_from(rows.len()).unwrap_or(u32::MAX),
                mark: crc.sum(),
            };
        }
        Block {
            packed: match self.compression {
                // A slice would hold the whole step's text.
                Compression::None => Bytes::copy_from_slice(rows),
                compression => compression.apply(rows).into(),
            },
            len: u32::try_from(rows.len()).unwrap_or(u32::MAX),
            mark: 0,
        }
    }

    fn unpack(&self, block: &Block) -> io::Result<Vec<u8>> {
        let damaged = || io::Error::from(ErrorKind::InvalidData);
        let len = block.len as usize;
        let rows = match self.member() {
            Some(_) => undo_part(&block.packed, len),
            None => self.compression.undo(&block.packed, len),
        };
        let rows = rows.filter(|rows| rows.len() == block.len as usize);
        rows.ok_or_else(damaged)
    }

    fn stored_bytes(&self, packed: usize) -> usize {
        match self.member() {
            Some(_) => packed + MEMBER_HEADER.len() + LAST_BLOCK.len() + TRAILER,
            None => packed,
        }
    }

    fn likely_bytes(&self, len: usize) -> usize {
        match self.compression {
            Compression::None => len,
            // Logs shrink to a tenth, as a rule.
            Compression::Gzip(_) | Compression::Zstd(_) => len / 10,
        }
    }

    fn seal(self: Arc<Self>, blocks: Vec<Block>) -> Sealing {
        let mut payload = Payload::default();
        if self.member().is_some() {
            let (mut sum, mut len) = (0, 0u32);
            payload.push(Bytes::from_static(&MEMBER_HEADER));
            for block in blocks {
                sum = combine(sum, block.mark, block.len);
                // The length that gzip has is that of the last 32 bits.
                len = len.wrapping_add(block.len);
                payload.push(block.packed);
            }
            let end = [&LAST_BLOCK[..], &sum.to_le_bytes(), &len.to_le_bytes()].concat();
            payload.push(end.into());
            return Sealing::Done(payload);
        }
        payload.extend(blocks.into_iter().map(|block| block.packed));
        Sealing::Done(payload)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::format::Body;

    /// Readers that stop after the first member read everything.
    #[test]
    fn an_object_of_gzip_is_one_member_however_large_it_is() {
        for level in [2, 3, 4] {
            let lines = Lines::new(Compression::Gzip(level), 10_000).in_one_member();
            let format: Arc<dyn Format> = Arc::new(lines);
            let mut body = Body::new(&format);
            let mut text = String::new();
            for n in 0..5_000 {
                let line = format!("{{\"n\":{n},\"noise\":\"{:x}\"}}\n", n * 2_654_435_761_u64);
                body.push(line.as_bytes());
                text.push_str(&line);
            }
            assert!(body.blocks().len() > 10);
            let object = body.seal().finish().to_bytes();
            let mut first = String::new();
            let mut reader = flate2::bufread::GzDecoder::new(&object[..]);
            reader
                .read_to_string(&mut first)
                .expect("one member with its checksum");
            assert_eq!(first, text);
            assert!(reader.into_inner().is_empty(), "nothing behind it");
        }
    }
}
