//! The bundled harness: a stand-in for Fluent Bit's engine ([`engine`]), a fake Firehose ([`firehose`]) with a
//! [`ledger`] of what arrived, is missing or was duplicated, and a [`proxy`] that injects faults between a client and
//! any other HTTP server. [`bench`] measures outputs in the real host, with that Firehose and with fake [`blobs`].

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
