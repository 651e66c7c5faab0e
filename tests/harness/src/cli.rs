//! What can be typed, and which part of the harness it goes to.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::bench::{self, BenchHostArgs};
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

/// What a command without words here does stands at its arguments.
#[derive(Subcommand)]
enum Command {
    /// Loads outputs and feeds them, as Fluent Bit's engine does
    Run(RunArgs),
    Firehose(FirehoseArgs),
    Proxy(ProxyArgs),
    Verify(VerifyArgs),
    Generate(GenerateArgs),
    BenchHost(BenchHostArgs),
}

/// Does what the command line says. What cannot be done, a wrong configuration above all, is status 2.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => engine::run(args),
        Command::Firehose(args) => firehose::run(args),
        Command::Proxy(args) => proxy::run(args),
        Command::Verify(args) => ledger::run_verify(args),
        Command::Generate(args) => samples::run_generate(args),
        Command::BenchHost(args) => bench::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
