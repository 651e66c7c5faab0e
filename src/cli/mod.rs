//! The command line of `ferry`, with a file for each subcommand. Data goes to stdout; errors, summaries and progress go
//! to stderr.

use std::fmt::Display;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use serde::Serialize;

mod check;
mod chosen;
mod columns;
mod cost;
mod ddl;
mod deliver;
mod health;
mod install;
mod letters;
mod migrate;
mod progress;
mod replay;
mod shell;
mod spool;

/// The tool for Ferry, a Fluent Bit output that ships logs to Amazon Data Firehose and blob storage
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
read. Each command's --help has the details.";

#[derive(Subcommand)]
enum Command {
    Check(check::Args),
    Columns(columns::Args),
    Cost(cost::Args),
    Ddl(ddl::Args),
    Migrate(migrate::Args),
    Spool(spool::Args),
    Replay(replay::Args),
    Health(health::Args),
    Install(install::Args),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// The result of a command: whether all is well, or an error if it could not be run at all.
type Done = Result<bool, Failure>;

/// The failure of a command.
#[derive(Debug)]
enum Failure {
    /// An error message.
    Message(String),
    /// The reader of stdout has closed it, which is not an error.
    BrokenPipe,
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Message(message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Message(error.to_string()),
        }
    }
}

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Columns(args) => columns::run(&args),
        Command::Cost(args) => cost::run(&args),
        Command::Ddl(args) => ddl::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Spool(args) => spool::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Install(args) => install::run(&args),
        Command::Completions(args) => shell::completions(&args, &mut Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Message(message)) => {
            tell(format_args!("error: {message}"));
            ExitCode::from(2)
        }
        Err(Failure::BrokenPipe) => ExitCode::from(BROKEN_PIPE),
    }
}

/// The exit status if the reader of the output left: what a shell reports of a process that SIGPIPE ends, so that
/// `pipefail` does not take a failed check for a success.
const BROKEN_PIPE: u8 = 128 + 13;

/// Writes a line to stderr. If that fails, nobody can be told.
fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes to stdout.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a JSON document to stdout.
fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    print(&format!("{text}\n"))
}

/// Returns the metadata of a path; `None` if it does not exist. A path that cannot be accessed is an error, not absent.
fn metadata(path: &Path) -> Result<Option<Metadata>, Failure> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(inaccessible(path, &error)),
    }
}

/// Returns the error, with its remedy, for a path that cannot be accessed.
fn inaccessible(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::Message(format!(
        "{path} cannot be accessed: {error}; remedy: {}",
        remedy(error)
    ))
}

/// Returns the remedy for a path that cannot be accessed.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "correct the path, or mount its file system",
        ErrorKind::PermissionDenied => "run this as the user that Fluent Bit runs as",
        ErrorKind::NotADirectory => "correct the path: a part of it is a file, not a folder",
        _ => "check the disk, and whether it is mounted",
    }
}

/// Returns the error `<subject> cannot be <participle>: <error>`.
fn cannot_be(subject: impl Display, participle: &str, error: impl Display) -> Failure {
    Failure::Message(format!("{subject} cannot be {participle}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_documents_its_status_and_has_an_example() {
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
