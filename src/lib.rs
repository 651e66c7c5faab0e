//! Ferry ships Fluent Bit's chunks to Amazon Data Firehose and to blob stores.
//!
//! The layers, from the top down; each imports only layers below it (tests aside):
//!
//! - `ffi`: the host's C interface. No other module imports it.
//! - [`output`]: one configured output: start, flush, stop.
//! - [`delivery`]: from a flush to a sink, directly or through the spool, with acknowledgements, retries and dead letters.
//! - [`sink`]: the destinations. [`spool`]: the write-ahead log on disk.
//! - [`config`]: reading and validating the configuration.
//! - [`format`]: what objects are made of, and how they grow.
//! - [`codec`]: encoding msgpack events as JSON lines. [`compress`]: gzip and zstd.
//! - [`metrics`], [`log`], [`ids`], [`buffers`]: shared by all layers.
//!
//! [`check`] implements `ferry check`; the tool's command line is part of its binary. The plugin uses neither.

#![deny(unsafe_code)]

pub mod buffers;
#[cfg(feature = "check")]
pub mod check;
pub mod codec;
pub mod compress;
pub mod config;
pub mod delivery;
#[allow(
    unsafe_code,
    reason = "the C interface; every line of it carries its proof"
)]
pub mod ffi;
pub mod format;
pub mod ids;
pub mod log;
pub mod metrics;
pub mod output;
pub mod sink;
pub mod spool;
