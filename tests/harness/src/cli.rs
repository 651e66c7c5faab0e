//! What can be typed, and which part of the harness it goes to.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::engine::{self, RunArgs};
use crate::firehose::{self, FirehoseArgs};
use crate::ledger::{self, VerifyArgs};
use crate::samples::{self, GenerateArgs};

/// Runs a Fluent Bit output without Fluent Bit, and Amazon Data Firehose without Amazon.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load outputs and feed them, as Fluent Bit's engine does
    Run(RunArgs),
    /// Serve a fake Firehose on loopback
    Firehose(FirehoseArgs),
    /// Compare what arrived with what was sent
    Verify(VerifyArgs),
    /// Write sample records
    Generate(GenerateArgs),
}

/// Does what the command line says. What cannot be done, a wrong configuration above all, is status 2.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => engine::run(args),
        Command::Firehose(args) => firehose::run(args),
        Command::Verify(args) => ledger::run_verify(args),
        Command::Generate(args) => samples::run_generate(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
