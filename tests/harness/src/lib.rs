//! The bundled harness: a stand-in for Fluent Bit's engine ([`engine`]), a fake Firehose ([`firehose`])
//! whose [`ledger`] tells what arrived, what did not, and what arrived twice, and a [`proxy`] that makes
//! any other HTTP server fail. [`bench`] measures outputs in the real host, with that Firehose and
//! with fake [`blobs`].

pub mod bench;
pub mod blobs;
pub mod cli;
pub mod config;
pub mod engine;
mod faults;
pub mod firehose;
pub mod ledger;
pub mod proxy;
pub mod samples;
