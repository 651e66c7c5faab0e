//! Parquet: a table of columns, and one of everything else as JSON text.

pub mod columns;
#[cfg(feature = "cli")]
pub mod ddl;
#[cfg(feature = "parquet")]
mod object;
pub mod paths;
#[cfg(feature = "cli")]
pub mod propose;
#[cfg_attr(not(feature = "parquet"), allow(dead_code))]
mod rows;
#[cfg(feature = "parquet")]
mod writer;

#[cfg(all(test, feature = "parquet"))]
pub(crate) mod tests;

#[cfg(feature = "parquet")]
pub(super) use object::NAME;
#[cfg(feature = "parquet")]
pub use object::Parquet;

/// The compression of the pages of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// None.
    None,
    /// Snappy: larger, and read in less time.
    Snappy,
    /// Zstandard, level 1 to 19.
    Zstd(i32),
}

impl std::fmt::Display for Packing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Packing::None => f.write_str("none"),
            Packing::Snappy => f.write_str("snappy"),
            Packing::Zstd(level) => write!(f, "zstd {level}"),
        }
    }
}

/// A table with the compression of its files, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The columns.
    pub columns: columns::Columns,
    /// The compression.
    pub packing: Packing,
}

impl Table {
    /// Returns the least `blob_max_size` with which a file has more values than descriptions of its columns, in bytes.
    pub fn least_bytes(&self) -> usize {
        8 * COLUMN_BYTES * self.columns.all().len()
    }
}

/// The bytes that a file has for each column and row group besides its values: an estimate.
const COLUMN_BYTES: usize = 256;
