//! The bundled harness: a stand-in for Fluent Bit's engine ([`engine`]), and a fake Firehose
//! ([`firehose`]) whose [`ledger`] tells what arrived, what did not, and what arrived twice.

pub mod cli;
pub mod config;
pub mod engine;
pub mod firehose;
pub mod ledger;
pub mod samples;
