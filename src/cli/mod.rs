//! The command line of `ferry`, a file for each subcommand. Data goes to stdout; errors, summaries and progress
//! go to stderr.

use std::fmt::Display;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use serde::Serialize;

mod check;
mod letters;
mod migrate;
mod progress;
mod replay;
mod shell;
mod spool;

/// The tool of Ferry, an output of Fluent Bit that ships logs to Amazon Data Firehose and blob storage
#[derive(Parser)]
#[command(name = "ferry", version, propagate_version = true, after_help = STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const STATUS: &str = "\
Examples:
  ferry check /etc/fluent-bit/fluent-bit.conf
  ferry spool inspect /var/lib/ferry/main
  ferry replay /etc/fluent-bit/fluent-bit.conf

Exit status: 0, all is well; 1, something needs attention; 2, the arguments, the configuration or a file cannot be
read. Each command's --help says what that means for it.";

#[derive(Subcommand)]
enum Command {
    Check(check::Args),
    Migrate(migrate::Args),
    Spool(spool::Args),
    Replay(replay::Args),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// Whether all is well, or else something needs attention. An error: what was asked for could not be done at all.
type Done = Result<bool, Failure>;

/// Why what was asked for could not be done.
#[derive(Debug)]
enum Failure {
    /// In words.
    Words(String),
    /// The reader of stdout has gone: it has enough.
    Unread,
}

impl From<String> for Failure {
    fn from(words: String) -> Failure {
        Failure::Words(words)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::Unread,
            _ => Failure::Words(error.to_string()),
        }
    }
}

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Spool(args) => spool::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Completions(args) => shell::completions(&args, &mut Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
    };
    match done {
        Ok(true) | Err(Failure::Unread) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Words(words)) => {
            eprintln!("error: {words}");
            ExitCode::from(2)
        }
    }
}

/// Writes to stdout.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one JSON document to stdout.
fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    print(&format!("{text}\n"))
}

/// What stands at a path; `None`: nothing does. What cannot be looked at is not taken for what is not there.
fn stands(path: &Path) -> Result<Option<Metadata>, Failure> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unseen(path, &error)),
    }
}

/// A path cannot be looked at, and what to do.
fn unseen(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::Words(format!(
        "{path} cannot be looked at: {error}; remedy: {}",
        remedy(error)
    ))
}

/// What to do about a path that cannot be looked at.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "correct the path, or mount what it is on",
        ErrorKind::PermissionDenied => "run this as the user that Fluent Bit runs as",
        ErrorKind::NotADirectory => "correct the path: what stands above it is a file",
        _ => "look after the disk, and whether it is mounted",
    }
}

/// An error's words, about a file or folder.
fn about(what: impl Display, doing: &str, error: impl Display) -> Failure {
    Failure::Words(format!("{what} cannot be {doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_explains_its_status_and_gives_an_example() {
        Cli::command().debug_assert();
        let mut todo = vec![Cli::command()];
        while let Some(command) = todo.pop() {
            let name = command.get_name().to_owned();
            let help = command.clone().render_long_help().to_string();
            todo.extend(
                command
                    .get_subcommands()
                    .filter(|sub| sub.get_name() != "help")
                    .cloned(),
            );
            assert!(help.contains("Example"), "{name}: {help}");
            assert!(help.contains("Exit status: 0, "), "{name}: {help}");
        }
    }
}
