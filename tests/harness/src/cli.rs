//! The command line, which dispatches to the parts of the harness.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::bench::{self, BenchHostArgs, BenchTargetsArgs};
use crate::engine::{self, RunArgs};
use crate::firehose::{self, FirehoseArgs};
use crate::ledger::{self, VerifyArgs};
use crate::proxy::{self, ProxyArgs};
use crate::samples::{self, GenerateArgs};

/// Runs a Fluent Bit output without Fluent Bit, and Amazon Data Firehose without Amazon.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Commands without a description here have it on their arguments.
#[derive(Subcommand)]
enum Command {
    /// Loads outputs and feeds them, like Fluent Bit's engine
    Run(RunArgs),
    Firehose(FirehoseArgs),
    Proxy(ProxyArgs),
    Verify(VerifyArgs),
    Generate(GenerateArgs),
    BenchHost(BenchHostArgs),
    BenchTargets(BenchTargetsArgs),
}

/// Runs the command line. The status is 2 for errors, such as an invalid configuration.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => engine::run(args),
        Command::Firehose(args) => firehose::run(args),
        Command::Proxy(args) => proxy::run(args),
        Command::Verify(args) => ledger::run_verify(args),
        Command::Generate(args) => samples::run_generate(args),
        Command::BenchHost(args) => bench::run(args),
        Command::BenchTargets(args) => bench::run_targets(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
