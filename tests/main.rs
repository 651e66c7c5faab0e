//! All integration tests, in one binary.

mod support;

mod analytics;
mod bad_input;
mod blob_stores;
mod captured_chunks;
mod check;
mod configuration;
mod crash;
mod dashboards;
mod docs;
mod end_to_end;
mod examples;
mod faults;
mod firehose;
mod fleet;
mod header;
mod metrics;
#[cfg(feature = "parquet")]
mod readers;
mod reference;
mod replay;
mod senders;
mod spool_away;
mod spool_tool;
mod stopping;
mod tool;
mod unsafe_code;
