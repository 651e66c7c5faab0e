//! Objects of Parquet: rows wait in blocks, and become a file when their object is sealed.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::columns::Columns;
use super::rows::row_len;
use super::writer::{GROUP_BYTES, Writer, failed};
use super::{COLUMN_BYTES, Packing};
use crate::buffers::{self, Payload};
use crate::codec::rows::RowFormat;
use crate::compress::Compression;
use crate::format::{BLOCK_BYTES, Block, Format, Sealing, Steps};

/// Its word in a recipe.
pub(in crate::format) const NAME: &str = "parquet";
/// The version of what is made of rows: another one for every change of the bytes.
const VERSION: u32 = 1;
/// How rows are packed while they wait.
const WAITING: Compression = Compression::Zstd(1);
/// The size of the smallest object that says how much larger a file is than its packed rows, in bytes.
const TELLING_BYTES: usize = 64 * 1024;

/// Parquet with its settings.
#[derive(Debug)]
pub struct Parquet {
    columns: Arc<Columns>,
    packing: Packing,
    /// The bytes of a file for 256 bytes of packed rows, as the last ones had it.
    ratio: AtomicU32,
    /// How many values did not fit since they were asked for last, by declared column.
    conflicts: Vec<AtomicU64>,
}

impl Parquet {
    /// Creates the format.
    pub fn new(columns: Columns, packing: Packing) -> Parquet {
        let ratio = match packing {
            Packing::Zstd(_) => 360,
            Packing::Snappy => 640,
            Packing::None => 1_280,
        };
        Parquet {
            conflicts: columns.declared.iter().map(|_| AtomicU64::new(0)).collect(),
            columns: Arc::new(columns),
            packing,
            ratio: AtomicU32::new(ratio),
        }
    }

    /// Parses the settings of a recipe.
    pub(crate) fn parse(text: &str) -> Option<Parquet> {
        let (version, rest) = text.split_once(' ')?;
        if version.parse() != Ok(VERSION) {
            return None;
        }
        let (packing, rest) = rest.split_once(" time=")?;
        let packing = match packing.split_once(' ') {
            None if packing == "none" => Packing::None,
            None if packing == "snappy" => Packing::Snappy,
            Some(("zstd", level)) => Packing::Zstd(level.parse().ok()?),
            _ => return None,
        };
        let (time, rest) = rest.split_once(" tag=")?;
        let (tag, rest) = rest.split_once(" metadata=")?;
        let (metadata, rest) = rest.split_once(" rest=")?;
        let (rest, declared) = rest.split_once(" columns=")?;
        let columns = Columns {
            time: time.to_owned(),
            tag: tag.to_owned(),
            metadata: Some(metadata.to_owned()).filter(|name| !name.is_empty()),
            declared: Columns::parse_list(declared).ok()?,
            rest: rest.to_owned(),
        };
        columns.check().ok()?;
        Some(Parquet::new(columns, packing))
    }
}

impl Format for Parquet {
    fn recipe(&self) -> String {
        let Columns {
            time,
            tag,
            metadata,
            rest,
            ..
        } = &*self.columns;
        let packing = self.packing;
        let metadata = metadata.as_deref().unwrap_or_default();
        let list = self.columns.list();
        format!(
            "{NAME} {VERSION} {packing} time={time} tag={tag} metadata={metadata} rest={rest} columns={list}"
        )
    }

    fn rows(&self) -> Option<&dyn RowFormat> {
        Some(&*self.columns)
    }

    fn take_conflicts(&self) -> Vec<(String, u64)> {
        let columns = self.columns.declared.iter().zip(&self.conflicts);
        let taken =
            columns.map(|(column, count)| (column.name.clone(), count.swap(0, Ordering::Relaxed)));
        taken.filter(|(_, count)| *count > 0).collect()
    }

    fn block_bytes(&self) -> usize {
        BLOCK_BYTES
    }

    fn row_len(&self, rows: &[u8]) -> usize {
        row_len(rows)
    }

    fn rows_within(&self, rows: &[u8], most: usize) -> usize {
        let mut end = 0;
        while end < rows.len() {
            let next = end + row_len(&rows[end..]);
            if next > most {
                break;
            }
            end = next;
        }
        end
    }

    fn pack(&self, rows: &[u8]) -> Block {
        let (mut count, mut at) = (0, 0);
        while at < rows.len() {
            at += row_len(&rows[at..]);
            count += 1;
        }
        Block {
            packed: WAITING.apply(rows).into(),
            len: u32::try_from(rows.len()).unwrap_or(u32::MAX),
            mark: count,
        }
    }

    fn unpack(&self, block: &Block) -> io::Result<Vec<u8>> {
        let rows = WAITING.undo(&block.packed, block.len as usize);
        rows.filter(|rows| rows.len() == block.len as usize)
            .ok_or_else(|| io::Error::from(ErrorKind::InvalidData))
    }

    fn stored_bytes(&self, packed: usize) -> usize {
        let ratio = self.ratio.load(Ordering::Relaxed) as usize;
        packed / 256 * ratio + packed % 256 + COLUMN_BYTES * self.columns.all().len()
    }

    fn likely_bytes(&self, len: usize) -> usize {
        len / 8
    }

    fn seal(self: Arc<Self>, blocks: Vec<Block>) -> Sealing {
        let rows = blocks.iter().map(|block| u64::from(block.mark)).sum();
        let packed = blocks.iter().map(|block| block.packed.len()).sum();
        Sealing::Steps(Box::new(Making {
            writer: None,
            count: rows,
            left: blocks.into(),
            rows: Vec::new(),
            at: 0,
            packed,
            waiting: packed,
            format: self,
        }))
    }
}

/// An object that is being made.
struct Making {
    format: Arc<Parquet>,
    /// Created with the first step: there may be thousands of objects to make.
    writer: Option<Writer>,
    /// The number of all rows.
    count: u64,
    left: VecDeque<Block>,
    /// The rows of the current block, of which those before `at` are done.
    rows: Vec<u8>,
    at: usize,
    /// The bytes of all blocks, and of those that are left.
    packed: usize,
    waiting: usize,
}

impl Making {
    /// Fills and writes a row group, or ends the file.
    fn step(&mut self) -> io::Result<Option<Payload>> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let of = &self.format;
                let writer = Writer::new(&of.columns, of.packing, self.count);
                none.insert(writer.map_err(failed)?)
            }
        };
        loop {
            if self.at == self.rows.len() {
                buffers::give(std::mem::take(&mut self.rows));
                self.at = 0;
                let Some(block) = self.left.pop_front() else {
                    break;
                };
                self.waiting -= block.packed.len();
                self.rows = self.format.unpack(&block)?;
            }
            match writer.add(&self.rows[self.at..])? {
                Some(end) => {
                    self.at += end;
                    writer.end_group().map_err(failed)?;
                    return Ok(None);
                }
                None => self.at = self.rows.len(),
            }
        }
        let writer = self.writer.take();
        let (file, conflicts) = match writer.map(Writer::finish) {
            Some(finished) => finished.map_err(failed)?,
            None => Default::default(),
        };
        for (all, count) in self.format.conflicts.iter().zip(conflicts) {
            all.fetch_add(count, Ordering::Relaxed);
        }
        if self.packed >= TELLING_BYTES {
            let now = (file.len() * 256 / self.packed).clamp(128, 8_192) as u32;
            let before = self.format.ratio.load(Ordering::Relaxed);
            let ratio = (3 * before + now).div_ceil(4).max(now);
            self.format.ratio.store(ratio, Ordering::Relaxed);
        }
        Ok(Some(file))
    }
}

impl Steps for Making {
    fn step(&mut self) -> Option<Payload> {
        let made = Making::step(self);
        made.expect("rows in memory are as they were encoded, and writing to memory does not fail")
    }

    fn bytes(&self) -> usize {
        // What is written, the rows of a group, and what its columns become.
        let writer = |writer: &Writer| writer.written() + (2 * GROUP_BYTES).min(8 * self.packed);
        let writing = self.writer.as_ref().map_or(0, writer);
        writing + self.waiting + self.rows.capacity()
    }
}
