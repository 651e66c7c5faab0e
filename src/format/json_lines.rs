//! JSON lines, in blocks that are compressed one by one and joined: gzip members and zstd frames in a row read as one.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use bytes::Bytes;

use super::{Block, Format, Sealing};
use crate::buffers::Payload;
use crate::compress::Compression;

/// Its word in a recipe.
pub(super) const NAME: &str = "lines";

/// JSON lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    compression: Compression,
    /// The most bytes of text in a block.
    block: usize,
}

impl Lines {
    /// Creates the format with blocks of `block` bytes of text.
    pub fn new(compression: Compression, block: usize) -> Lines {
        Lines { compression, block }
    }

    /// Parses the settings of a recipe.
    pub(super) fn parse(text: &str) -> Option<Lines> {
        let words: Vec<&str> = text.split(' ').collect();
        let (compression, block) = match words[..] {
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
        Some(Lines { compression, block })
    }
}

impl Format for Lines {
    fn recipe(&self) -> String {
        let compression = match self.compression {
            Compression::None => "none".to_owned(),
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
        let rows = self
            .compression
            .undo(&block.packed, block.len as usize)
            .filter(|rows| rows.len() == block.len as usize);
        rows.ok_or_else(damaged)
    }

    fn stored_bytes(&self, packed: usize) -> usize {
        packed
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
        payload.extend(blocks.into_iter().map(|block| block.packed));
        Sealing::Done(payload)
    }
}
