//! The formats of objects: what a chunk's events become, how an object grows, and what is stored in the end.
//!
//! An object is a sequence of *rows*, one for each event: the lines of [`json_lines`], or the columns of a table. They
//! are gathered in blocks that are packed one by one, so that an object's size is known while it grows, and no
//! compressor's state is kept for each open object. A [`Body`] is one such object; a [`Format`] says how its blocks are
//! packed and what is made of them when the object is sealed.
//!
//! **The bytes of a sealed object are a function of its rows, in order, and of its recipe**: a block ends where the next
//! row would exceed it, counted from the object's start, however the rows were handed over. So an object that is rebuilt
//! after a crash has the bytes that it had the first time, provided that it is rebuilt by its own *recipe* rather than
//! by today's configuration. The recipe is therefore kept with the note that an object has begun.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::buffers::{self, Payload};
use crate::codec::rows::RowFormat;
use crate::compress::Compression;

pub mod json_lines;
pub mod parquet;

/// The most bytes of rows in a block. Larger blocks hardly compress better, smaller ones do worse: gzip looks back
/// 32 KiB, and each member costs 18 bytes.
pub const BLOCK_BYTES: usize = 256 * 1024;

/// The end of the names of objects whose bytes are no lines.
pub const TABLE_EXTENSION: &str = ".parquet";

/// A format with its settings.
pub trait Format: fmt::Debug + Send + Sync {
    /// Returns its word and every setting that the bytes of an object depend on: what [`parse`] reads.
    fn recipe(&self) -> String;

    /// Returns what encodes events as its rows. `None`: they are lines.
    fn rows(&self) -> Option<&dyn RowFormat> {
        None
    }

    /// Returns how many values did not fit their columns since this was called last, by column.
    fn take_conflicts(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// Returns the most bytes of rows in a block, unless it is a single row.
    fn block_bytes(&self) -> usize;

    /// Returns the length of the first of some whole rows, in bytes.
    fn row_len(&self, rows: &[u8]) -> usize;

    /// Returns the length of as many of the first of some whole rows as have at most `most` bytes.
    fn rows_within(&self, rows: &[u8], most: usize) -> usize;

    /// Packs whole rows into a block, which is kept in memory or on disk until its object is sealed.
    fn pack(&self, rows: &[u8]) -> Block;

    /// Returns the rows of a block.
    ///
    /// # Errors
    ///
    /// The block is not one that [`Format::pack`] returned.
    fn unpack(&self, block: &Block) -> io::Result<Vec<u8>>;

    /// Returns the size of the object, in bytes, that is made from blocks of `packed` bytes: exact, or an estimate if
    /// the blocks are not stored as they are.
    fn stored_bytes(&self, packed: usize) -> usize;

    /// Returns what rows of `len` bytes are likely to take in a block, in bytes.
    fn likely_bytes(&self, len: usize) -> usize;

    /// Makes what is stored from the blocks of an object.
    fn seal(self: Arc<Self>, blocks: Vec<Block>) -> Sealing;
}

/// Some rows, packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The packed bytes.
    pub packed: Bytes,
    /// The number of bytes of the rows.
    pub len: u32,
    /// A number of the format's own.
    pub mark: u32,
}

/// Returns the format that a recipe describes: its word, and its settings. `None`: this version does not know it.
///
/// The recipe of an object is kept in the note that the object has begun.
pub fn parse(recipe: &str) -> Option<Arc<dyn Format>> {
    let (format, settings) = recipe.split_once(' ')?;
    match format {
        json_lines::NAME => Some(Arc::new(json_lines::Lines::parse(settings)?)),
        #[cfg(feature = "parquet")]
        parquet::NAME => Some(Arc::new(parquet::Parquet::parse(settings)?)),
        _ => None,
    }
}

/// Returns the format of an object that an earlier version began, which wrote no recipes: lines, compressed as the
/// object's name says. The level is not in the name; that of `today` is the likely one.
pub fn of_name(name: &str, today: Compression) -> Arc<dyn Format> {
    let compression = match (name.rsplit_once('.'), today) {
        (Some((_, "gz")), Compression::Gzip(_)) | (Some((_, "zst")), Compression::Zstd(_)) => today,
        (Some((_, "gz")), _) => Compression::Gzip(2),
        (Some((_, "zst")), _) => Compression::Zstd(1),
        _ => Compression::None,
    };
    Arc::new(json_lines::Lines::new(compression, BLOCK_BYTES))
}

/// What is stored of a sealed object, while it is being made.
pub enum Sealing {
    /// It is made.
    Done(Payload),
    /// It takes more work.
    Steps(Box<dyn Steps>),
}

/// The work of making an object, in steps of a bounded time.
pub trait Steps: Send {
    /// Does the next step. Returns the object when it is made; there is no step after that.
    fn step(&mut self) -> Option<Payload>;

    /// Returns the memory that it takes, at the most, until it is done, in bytes.
    fn bytes(&self) -> usize;
}

impl Sealing {
    /// Does the next step of the work, if any is left.
    pub fn step(self) -> Sealing {
        match self {
            Sealing::Done(payload) => Sealing::Done(payload),
            Sealing::Steps(mut steps) => match steps.step() {
                Some(payload) => Sealing::Done(payload),
                None => Sealing::Steps(steps),
            },
        }
    }

    /// Does all of the work that is left.
    pub fn finish(self) -> Payload {
        let mut steps = match self {
            Sealing::Done(payload) => return payload,
            Sealing::Steps(steps) => steps,
        };
        loop {
            if let Some(payload) = steps.step() {
                return payload;
            }
        }
    }

    /// Returns it, made.
    #[cfg(test)]
    pub(crate) fn made(&self) -> &Payload {
        match self {
            Sealing::Done(payload) => payload,
            Sealing::Steps(_) => panic!("it is not made yet"),
        }
    }

    /// Returns the memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Sealing::Done(payload) => payload.len(),
            Sealing::Steps(steps) => steps.bytes(),
        }
    }
}

impl fmt::Debug for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealing of {} bytes", self.bytes())
    }
}

/// An object that grows.
#[derive(Debug)]
pub struct Body {
    format: Arc<dyn Format>,
    blocks: Vec<Block>,
    packed: usize,
    /// The rows of the current block, which is not packed yet.
    open: Vec<u8>,
}

impl Body {
    /// Creates an empty one.
    pub fn new(format: &Arc<dyn Format>) -> Body {
        Body {
            format: Arc::clone(format),
            blocks: Vec::new(),
            packed: 0,
            open: Vec::new(),
        }
    }

    /// Returns how many of the rows that end at `ends`, of which the first begins at `start`, belong to the current
    /// block, and whether the block ends with them.
    pub fn fitting(&self, ends: &[usize], start: usize) -> (usize, bool) {
        let most = start + self.format.block_bytes().saturating_sub(self.open.len());
        match ends.partition_point(|end| *end <= most) {
            fitting if fitting == ends.len() => (fitting, false),
            // A row that exceeds a block is a block by itself.
            0 if self.open.is_empty() => (1, true),
            fitting => (fitting, true),
        }
    }

    /// Adds rows to the current block, for which [`Body::fitting`] found room.
    pub fn append(&mut self, rows: &[u8]) {
        self.open.extend_from_slice(rows);
    }

    /// Ends the current block with these rows, and returns it packed. [`Body::add_block`] adds it to this object or,
    /// together with its rows, to the next.
    pub fn end_block(&mut self, rows: &[u8]) -> Block {
        if self.open.is_empty() {
            // Not copied first.
            return self.format.pack(rows);
        }
        let mut open = std::mem::take(&mut self.open);
        open.extend_from_slice(rows);
        let block = self.format.pack(&open);
        // Not kept for reuse: most of many open objects wait for their next row.
        buffers::give(open);
        block
    }

    /// Adds a packed block.
    pub fn add_block(&mut self, block: Block) {
        self.packed += block.packed.len();
        self.blocks.push(block);
    }

    /// Adds whole rows.
    pub fn push(&mut self, rows: &[u8]) {
        let mut rest = rows;
        loop {
            let room = self.format.block_bytes().saturating_sub(self.open.len());
            if rest.len() <= room {
                return self.open.extend_from_slice(rest);
            }
            let len = match self.format.rows_within(rest, room) {
                // A row that exceeds a block is a block by itself.
                0 if self.open.is_empty() => self.format.row_len(rest),
                len => len,
            };
            let (rows, behind) = rest.split_at(len);
            let block = self.end_block(rows);
            self.add_block(block);
            rest = behind;
        }
    }

    /// Adds blocks, and the rows behind them, of another object of the same format. They are repacked unless this object
    /// is empty: where a block ends is counted from the object's start.
    ///
    /// # Errors
    ///
    /// A block is damaged.
    pub fn push_blocks(&mut self, blocks: Vec<Block>, open: &[u8]) -> io::Result<()> {
        if self.is_empty() {
            self.packed = blocks.iter().map(|block| block.packed.len()).sum();
            self.blocks = blocks;
            self.open.extend_from_slice(open);
            return Ok(());
        }
        for block in &blocks {
            let rows = self.format.unpack(block)?;
            self.push(&rows);
            buffers::give(rows);
        }
        self.push(open);
        Ok(())
    }

    /// Returns what it is made by.
    pub fn format(&self) -> &Arc<dyn Format> {
        &self.format
    }

    /// Returns the packed blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Returns the rows that are not packed yet.
    pub fn open(&self) -> &[u8] {
        &self.open
    }

    /// Returns whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.open.is_empty()
    }

    /// Returns whether nothing is packed yet.
    pub fn has_no_block(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Returns the size of the packed blocks, in bytes.
    pub fn packed_bytes(&self) -> usize {
        self.packed
    }

    /// Returns the size that it is likely to have if it is sealed now, in bytes.
    pub fn likely_bytes(&self) -> usize {
        self.packed + self.format.likely_bytes(self.open.len())
    }

    /// Returns the size that the packed blocks have once they are stored, in bytes.
    pub fn stored_bytes(&self) -> usize {
        self.format.stored_bytes(self.packed)
    }

    /// Returns the most that all of it may take when it is stored, in bytes.
    pub fn most(&self) -> usize {
        self.format.stored_bytes(self.packed) + self.open.len()
    }

    /// Returns the memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.packed + self.blocks.len() * size_of::<Block>() + self.open.capacity()
    }

    /// Seals the object.
    pub fn seal(mut self) -> Sealing {
        if !self.open.is_empty() {
            let block = self.end_block(&[]);
            self.add_block(block);
        }
        self.format.seal(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_recipe_is_read_as_it_was_written_and_others_are_not_guessed() {
        for compression in [
            Compression::None,
            Compression::Gzip(2),
            Compression::Zstd(-3),
        ] {
            let recipe = json_lines::Lines::new(compression, 10_000).recipe();
            assert_eq!(parse(&recipe).unwrap().recipe(), recipe);
        }
        for level in [2, 4] {
            let lines = json_lines::Lines::new(Compression::Gzip(level), 10_000);
            let recipe = lines.in_one_member().recipe();
            assert_eq!(parse(&recipe).unwrap().recipe(), recipe);
        }
        for unknown in [
            "",
            "lines",
            "lines gzip",
            "lines brotli 1 block 5",
            "lines gzip 2 block 5 more",
            "lines gzip 13 block 5",
            "lines gzip 6 one block 5",
            "lines gzip 2 block 0",
            "avro 1",
        ] {
            assert!(parse(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn an_object_of_a_version_without_recipes_is_lines_compressed_as_its_name_says() {
        let of = |name, today| of_name(name, today).recipe();
        for (name, today, expected) in [
            (
                "a/b.ndjson.gz",
                Compression::Gzip(6),
                "lines gzip 6 block 262144",
            ),
            (
                "a/b.ndjson.gz",
                Compression::Zstd(1),
                "lines gzip 2 block 262144",
            ),
            (
                "a/b.log.zst",
                Compression::Gzip(6),
                "lines zstd 1 block 262144",
            ),
            (
                "a.zst/b.ndjson",
                Compression::Gzip(6),
                "lines none block 262144",
            ),
        ] {
            assert_eq!(of(name, today), expected, "{name}");
        }
    }

    proptest! {
        /// However the rows are handed over, the object has the same bytes.
        #[test]
        fn the_bytes_of_an_object_depend_on_its_rows_alone(
            rows in proptest::collection::vec(1usize..400, 1..120),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
            block in 200usize..2_000,
            (compression, one_member) in prop_oneof![
                Just((Compression::None, false)),
                Just((Compression::Gzip(2), true)),
                Just((Compression::Gzip(2), false)),
                Just((Compression::Gzip(1), false)),
                Just((Compression::Zstd(1), false)),
            ],
        ) {
            let lines = json_lines::Lines::new(compression, block);
            let format: Arc<dyn Format> = match one_member {
                true => Arc::new(lines.in_one_member()),
                false => Arc::new(lines),
            };
            let mut text = Vec::new();
            let mut ends = Vec::new();
            for (n, len) in rows.iter().enumerate() {
                text.extend_from_slice(format!("{n:0len$}\n").as_bytes());
                ends.push(text.len());
            }
            let mut whole = Body::new(&format);
            whole.push(&text);
            let whole = whole.seal().finish();

            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(rows.len())).collect();
            cuts.push(rows.len());
            cuts.sort_unstable();
            // As an open object gets them: run by run.
            let (mut grown, mut merged, mut from) = (Body::new(&format), Body::new(&format), 0);
            for cut in cuts {
                let part = &ends[from..cut];
                let first = from.checked_sub(1).map_or(0, |before| ends[before]);
                let (mut line, mut start) = (0, first);
                while line < part.len() {
                    let (fitting, full) = grown.fitting(&part[line..], start);
                    let end = if fitting == 0 { start } else { part[line + fitting - 1] };
                    if full {
                        let block = grown.end_block(&text[start..end]);
                        grown.add_block(block);
                    } else {
                        grown.append(&text[start..end]);
                    }
                    (line, start) = (line + fitting, end);
                }
                // As the runs of a pass are merged: each began as an object of its own.
                let mut run = Body::new(&format);
                run.push(&text[first..start]);
                merged.push_blocks(run.blocks().to_vec(), run.open()).unwrap();
                from = cut;
            }
            prop_assert_eq!(grown.seal().finish(), whole.clone());
            prop_assert_eq!(merged.seal().finish(), whole);
        }
    }
}
