//! Parquet: a table of columns, and one of everything else as JSON text.

pub mod columns;
#[cfg(feature = "cli")]
pub mod ddl;
pub mod paths;
#[cfg(feature = "cli")]
pub mod propose;
