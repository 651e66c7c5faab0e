//! Ferry ships Fluent Bit's chunks to Amazon Data Firehose and to blob stores.
//!
//! The layers, from the top down; each imports only layers below it (tests aside):
//!
//! - `ffi`: the host's C interface. Nothing imports it.
//! - [`output`]: one configured output: start, flush, stop.
//! - [`delivery`]: from a flush to a sink, with acknowledgements, retries and dead letters; directly, or by way of the
//!   spool.
//! - [`sink`]: the destinations. [`spool`]: the log on disk.
//! - [`config`]: what the user wrote becomes what all of these run with.
//! - [`codec`]: msgpack events become JSON lines. [`compress`]: gzip and zstd.
//! - [`metrics`], [`log`], [`ids`], [`buffers`]: what all of them share.
//!
//! [`check`] is what `ferry check` does before the start; the tool's command line is a part of its binary. The plugin uses
//! neither.

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
pub mod ids;
pub mod log;
pub mod metrics;
pub mod output;
pub mod sink;
pub mod spool;
