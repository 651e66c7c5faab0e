//! Ferry ships Fluent Bit's chunks to Amazon Data Firehose and to blob stores.
//!
//! The way of a chunk: [`ffi`] takes it from the host; [`plugin`] is one configured output; its
//! [`pipeline`] admits it, has it decoded and encoded into lines ([`chunk`], [`decode`], [`encode`]),
//! forms requests ([`batch`]), sends them ([`sink`]) and settles what became of them ([`settle`]). In
//! spooled mode the chunk is kept on disk first ([`spool`]), and the rest happens in its own time.
//! [`config`] turns what the user wrote into what all of these run with. Imports run in that direction
//! only; of [`ffi`] others import only [`ffi::zlib`], a C interface that Ferry calls. [`check`] is the tool `ferry-check`, and no part of the plugin.

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
