//! Writes the rows of an object into a Parquet file.
//!
//! Rows are transposed into columns until a row group is full, which then is written column by column. Where a group ends,
//! and in which batches its columns are written, depends on the rows alone, counted from the object's start: that is what
//! makes a rebuilt object the same file.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{
    Compression as Codec, Encoding, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel,
};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, Type as Schema};

use super::Packing;
use super::columns::{Columns, Role, Stored};
use super::rows::{Cell, Cells, row_len};
use crate::buffers::Payload;

/// The most bytes of rows in a row group, which closes with the row that reaches them: about 32 MiB of JSON. (Few in tests,
/// so that a file has several.)
pub(super) const GROUP_BYTES: usize = match cfg!(test) {
    true => 300_000,
    false => 16 * 1024 * 1024,
};
/// The rows that are handed to a column's writer at once.
const BATCH: usize = 1_024;
/// The most values that a bloom filter is made for; it shrinks to those that there are.
const BLOOM_VALUES: u64 = 200_000;
/// What readers are told of the writer. It is the same in all versions, since it is a part of the bytes.
const CREATED_BY: &str = "ferry version 1.0.0 (build 1)";
/// The size of the parts of a file.
const PART_BYTES: usize = 1024 * 1024;

/// The values of a column in the current row group.
struct Buffer {
    stored: Stored,
    /// For each row, whether it has a value.
    has: Vec<bool>,
    values: Values,
}

enum Values {
    /// Integers, times, and floating-point numbers by their bits.
    Bits(Vec<u64>),
    Bools(Vec<bool>),
    /// All texts in a row, and the length of each.
    Texts(Vec<u8>, Vec<u32>),
}

/// Writes a file.
pub(super) struct Writer {
    columns: Vec<Stored>,
    /// Of each column, its place among the declared ones.
    declared: Vec<Option<usize>>,
    buffers: Vec<Buffer>,
    rows: usize,
    group_bytes: usize,
    file: SerializedFileWriter<Parts>,
    /// How many values did not fit, by declared column.
    conflicts: Vec<u64>,
}

impl Writer {
    /// Begins a file of at most this many rows.
    pub(super) fn new(
        columns: &Columns,
        packing: Packing,
        rows: u64,
    ) -> Result<Writer, ParquetError> {
        let all = columns.all();
        let mut next = 0;
        let declared = all.iter().map(|column| match column.role {
            Role::Declared(_) => {
                next += 1;
                Some(next - 1)
            }
            _ => None,
        });
        let declared = declared.collect();
        let (schema, properties) = (schema(columns)?, properties(columns, packing, rows));
        Ok(Writer {
            columns: all.iter().map(|column| column.stored).collect(),
            declared,
            buffers: all
                .iter()
                .map(|column| Buffer::new(column.stored))
                .collect(),
            rows: 0,
            group_bytes: 0,
            file: SerializedFileWriter::new(
                Parts::default(),
                Arc::new(schema),
                Arc::new(properties),
            )?,
            conflicts: vec![0; columns.declared.len()],
        })
    }

    /// Adds rows. Returns their number of bytes up to the end of a row group that they completed, if they did.
    ///
    /// # Errors
    ///
    /// The bytes are no rows of this table.
    pub(super) fn add(&mut self, rows: &[u8]) -> io::Result<Option<usize>> {
        let mut at = 0;
        while at < rows.len() {
            let len = row_len(&rows[at..]);
            self.add_row(&rows[at..at + len])?;
            at += len;
            self.group_bytes += len;
            if self.group_bytes >= GROUP_BYTES {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    fn add_row(&mut self, row: &[u8]) -> io::Result<()> {
        let mut cells = Cells::of(row);
        for (index, stored) in self.columns.iter().enumerate() {
            let cell = cells.next(*stored)?;
            if let (Cell::Conflict, Some(declared)) = (cell, self.declared[index]) {
                self.conflicts[declared] += 1;
            }
            self.buffers[index].push(cell);
        }
        self.rows += 1;
        Ok(())
    }

    /// Writes the current row group.
    pub(super) fn end_group(&mut self) -> Result<(), ParquetError> {
        let rows = std::mem::take(&mut self.rows);
        self.group_bytes = 0;
        if rows == 0 {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        for buffer in &mut self.buffers {
            let mut column = group.next_column()?.ok_or_else(|| {
                ParquetError::General("the table has fewer columns than its rows".to_owned())
            })?;
            let values = std::mem::replace(buffer, Buffer::new(buffer.stored));
            values.write(column.untyped())?;
            column.close()?;
        }
        group.close()?;
        Ok(())
    }

    /// Ends the file. Returns it, and how many values did not fit, by declared column.
    pub(super) fn finish(mut self) -> Result<(Payload, Vec<u64>), ParquetError> {
        self.end_group()?;
        let parts = self.file.into_inner()?;
        Ok((parts.into_payload(), self.conflicts))
    }

    /// Returns the bytes that are written.
    pub(super) fn written(&self) -> usize {
        self.file.bytes_written()
    }
}

impl Buffer {
    fn new(stored: Stored) -> Buffer {
        Buffer {
            stored,
            has: Vec::new(),
            values: match stored {
                Stored::Text => Values::Texts(Vec::new(), Vec::new()),
                Stored::Bool => Values::Bools(Vec::new()),
                Stored::Int | Stored::Float | Stored::Timestamp => Values::Bits(Vec::new()),
            },
        }
    }

    fn push(&mut self, cell: Cell<'_>) {
        match (cell, &mut self.values) {
            (Cell::Bits(bits), Values::Bits(values)) => values.push(bits),
            (Cell::Bool(it), Values::Bools(values)) => values.push(it),
            (Cell::Text(text), Values::Texts(texts, lens)) => {
                texts.extend_from_slice(text);
                lens.push(u32::try_from(text.len()).unwrap_or(u32::MAX));
            }
            _ => return self.has.push(false),
        }
        self.has.push(true);
    }

    /// Writes all values in batches of [`BATCH`] rows.
    fn write(self, column: &mut ColumnWriter<'_>) -> Result<(), ParquetError> {
        let mut levels = Vec::with_capacity(BATCH);
        let mut at = 0;
        match (self.values, column) {
            (Values::Bits(bits), ColumnWriter::Int64ColumnWriter(column)) => {
                let values: Vec<i64> = bits.into_iter().map(|bits| bits as i64).collect();
                for has in self.has.chunks(BATCH) {
                    let count = set_levels(has, &mut levels);
                    column.write_batch(&values[at..at + count], Some(&levels), None)?;
                    at += count;
                }
            }
            (Values::Bits(bits), ColumnWriter::DoubleColumnWriter(column)) => {
                let values: Vec<f64> = bits.into_iter().map(f64::from_bits).collect();
                for has in self.has.chunks(BATCH) {
                    let count = set_levels(has, &mut levels);
                    column.write_batch(&values[at..at + count], Some(&levels), None)?;
                    at += count;
                }
            }
            (Values::Bools(values), ColumnWriter::BoolColumnWriter(column)) => {
                for has in self.has.chunks(BATCH) {
                    let count = set_levels(has, &mut levels);
                    column.write_batch(&values[at..at + count], Some(&levels), None)?;
                    at += count;
                }
            }
            (Values::Texts(texts, lens), ColumnWriter::ByteArrayColumnWriter(column)) => {
                let texts = Bytes::from(texts);
                let mut start = 0;
                let mut values: Vec<ByteArray> = Vec::with_capacity(BATCH);
                for has in self.has.chunks(BATCH) {
                    let count = set_levels(has, &mut levels);
                    values.clear();
                    for len in &lens[at..at + count] {
                        let end = start + *len as usize;
                        values.push(texts.slice(start..end).into());
                        start = end;
                    }
                    column.write_batch(&values, Some(&levels), None)?;
                    at += count;
                }
            }
            _ => return Err(ParquetError::General("a column of another type".to_owned())),
        }
        Ok(())
    }
}

/// Sets definition levels. Returns the number of values.
fn set_levels(has: &[bool], levels: &mut Vec<i16>) -> usize {
    levels.clear();
    levels.extend(has.iter().map(|has| i16::from(*has)));
    has.iter().filter(|has| **has).count()
}

fn schema(columns: &Columns) -> Result<Schema, ParquetError> {
    let field = |name: &str, stored| {
        let (physical, logical) = match stored {
            Stored::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Stored::Int => (Physical::INT64, None),
            Stored::Float => (Physical::DOUBLE, None),
            Stored::Bool => (Physical::BOOLEAN, None),
            Stored::Timestamp => {
                let time = LogicalType::timestamp(true, TimeUnit::MICROS);
                (Physical::INT64, Some(time))
            }
        };
        let field = Schema::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical);
        Ok(Arc::new(field.build()?))
    };
    let fields = columns.all();
    let fields = fields
        .iter()
        .map(|column| field(column.name, column.stored));
    let fields: Result<Vec<_>, ParquetError> = fields.collect();
    Schema::group_type_builder("ferry")
        .with_fields(fields?)
        .build()
}

fn properties(columns: &Columns, packing: Packing, rows: u64) -> WriterProperties {
    let codec = match packing {
        Packing::None => Codec::UNCOMPRESSED,
        Packing::Snappy => Codec::SNAPPY,
        Packing::Zstd(level) => Codec::ZSTD(ZstdLevel::try_new(level).unwrap_or_default()),
    };
    let mut properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_max_row_group_row_count(None)
        .set_compression(codec);
    for column in columns.all() {
        let path = ColumnPath::from(column.name);
        match column.stored {
            Stored::Int | Stored::Timestamp => {
                properties = properties
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
            }
            // Readers that take a file's range from statistics pass NaN over.
            Stored::Float => {
                properties =
                    properties.set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
            }
            Stored::Text if column.role.is_json() => {
                properties = properties
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
            }
            Stored::Text | Stored::Bool => {}
        }
        if column.bloom {
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_bloom_filter_enabled(path.clone(), true)
                .set_column_bloom_filter_max_ndv(path, rows.clamp(1, BLOOM_VALUES));
        }
    }
    properties.build()
}

/// A file in memory, in parts.
#[derive(Default)]
struct Parts {
    done: Payload,
    current: Vec<u8>,
}

impl Parts {
    fn into_payload(mut self) -> Payload {
        self.done.push(self.current.into());
        self.done
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.current.is_empty() && self.current.len() + bytes.len() > PART_BYTES {
            self.done.push(std::mem::take(&mut self.current).into());
        }
        self.current.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns an error of the writer as one of I/O.
pub(super) fn failed(error: ParquetError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
