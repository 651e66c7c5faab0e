//! `ferry migrate`: converts outputs of other plugins. The implementation is in [`ferry::check::migrate`].

use std::path::PathBuf;

use ferry::check::migrate;

use super::{Done, print, tell};

/// Print ferry outputs that are equivalent to kinesis_firehose, firehose, azure_blob or s3 outputs
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct Args {
    /// Fluent Bit's configuration: classic, or YAML where it is named .yaml or .yml
    file: PathBuf,
}

const STATUS: &str = "\
Example:
  ferry migrate /etc/fluent-bit/fluent-bit.conf >ferry-outputs.conf

Outputs of other plugins are not converted; they are named in the comments and on stderr.

Exit status: 0, it is complete; 1, something in it is marked TO FIX; 2, the file cannot be read";

pub(super) fn run(args: &Args) -> Done {
    let migration = migrate::migrate(&args.file)?;
    print(&migration.text)?;
    for other in &migration.others {
        tell(format_args!("note: not moved: the output {other}"));
    }
    for problem in &migration.problems {
        tell(format_args!("to fix: {problem}"));
    }
    Ok(migration.problems.is_empty())
}
