//! `ferry`: the command-line tool. It checks configurations, migrates those of other plugins, inspects spools, and
//! replays dead letters. See `src/cli/`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[path = "../cli/mod.rs"]
mod cli;

fn main() -> ExitCode {
    cli::main()
}
