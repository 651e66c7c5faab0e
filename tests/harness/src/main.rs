//! The command line of the harness; see `ferry-harness --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ferry_harness::cli::main()
}
