//! Parquet: a table of columns, and one of everything else as JSON text.

pub mod columns;
pub mod paths;
