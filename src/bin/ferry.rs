//! `ferry`: the tool beside the library. It tries a configuration, moves others over, looks into a spool, and
//! sends dead letters again. See `src/cli/`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[path = "../cli/mod.rs"]
mod cli;

fn main() -> ExitCode {
    cli::main()
}
