//! `ferry-check`: tries what a configuration needs before Fluent Bit is started with it, and rewrites outputs
//! of other plugins. What it does lives in [`ferry::check`].

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ferry::check::{self, Finding, Options, host, migrate};
use serde_json::{Value, json};

/// Checks the ferry outputs of a Fluent Bit configuration: keys, folders, network, credentials, and the
/// delivery stream, container or bucket itself
#[derive(Parser)]
#[command(version, after_help = STATUS, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    check: CheckArgs,
}

const STATUS: &str = "\
One line a check: ok, warn, FAIL, or skip where it was not tried. Run it as the user that Fluent Bit runs as,
with its environment. Nothing is written at a destination without --put, and no secret is ever shown.

Status: 0, nothing failed; 1, a check failed; 2, the configuration or the arguments cannot be read";

#[derive(Subcommand)]
enum Command {
    /// Print the ferry outputs that do what kinesis_firehose, firehose or azure_blob outputs do
    #[command(
        after_help = "Status: 0, it is complete; 1, something in it is TO MEND; 2, the file cannot be read"
    )]
    Migrate {
        /// Fluent Bit's configuration: classic, or YAML where it is named .yaml or .yml
        file: PathBuf,
    },
}

#[derive(Args)]
struct CheckArgs {
    /// Fluent Bit's configuration: classic, or YAML where it is named .yaml or .yml
    #[arg(required = true)]
    file: Option<PathBuf>,
    /// Send one marked record to a delivery stream; write and remove one small object in a store
    #[arg(long)]
    put: bool,
    /// An example of a tag, where delivery_stream or path are made from it
    #[arg(long)]
    tag: Option<String>,
    /// An example of a record, where delivery_stream or path are made from it
    #[arg(long, value_name = "JSON", value_parser = object, requires = "tag")]
    record: Option<Value>,
    /// The longest that one check waits
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// One JSON document: an array of {output, check, result, message, remedy}
    #[arg(long)]
    json: bool,
}

fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("a record is an object: {\"key\": \"value\"}".to_owned()),
        Err(error) => Err(format!("no JSON: {error}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| (0.1..=3_600.0).contains(seconds));
    let seconds = seconds.ok_or("seconds from 0.1 to 3600 are expected")?;
    Ok(Duration::from_secs_f64(seconds))
}

fn main() -> ExitCode {
    let Cli { command, check } = Cli::parse();
    let done = match (command, &check.file) {
        (Some(Command::Migrate { file }), _) => rewrite(&file),
        (None, Some(file)) => try_out(file, &check),
        (None, None) => unreachable!("clap asks for the file"),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn rewrite(file: &Path) -> Result<bool, String> {
    let migration = migrate::migrate(file)?;
    print(&migration.text)?;
    for problem in &migration.problems {
        eprintln!("to mend: {problem}");
    }
    Ok(migration.problems.is_empty())
}

fn try_out(file: &Path, arguments: &CheckArgs) -> Result<bool, String> {
    let configuration = host::read(file, |name| name == "ferry")?;
    if configuration.outputs.is_empty() {
        let others = match configuration.others.as_slice() {
            [] => "there is no output at all".to_owned(),
            others => format!(
                "there are only: {}; see ferry-check migrate",
                others.join(", ")
            ),
        };
        return Err(format!(
            "{}: there is no output ferry; {others}",
            file.display()
        ));
    }
    let options = Options {
        put: arguments.put,
        timeout: arguments.timeout,
        tag: arguments.tag.clone(),
        record: arguments.record.clone(),
    };
    let mut findings = Vec::new();
    let mut printed = Ok(());
    let sound = check::run(&configuration, &options, &mut |finding| {
        if arguments.json {
            findings.push(as_json(&finding));
        } else if printed.is_ok() {
            printed = print(&format!("{finding}\n"));
        }
    });
    if arguments.json {
        printed = print(&format!("{:#}\n", Value::Array(findings)));
    }
    printed?;
    sound.map_err(|error| format!("no threads could be started: {error}"))
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "output": finding.output,
        "check": finding.check,
        "result": finding.mark.to_string(),
        "message": finding.message,
        "remedy": finding.remedy,
    })
}

fn print(text: &str) -> Result<(), String> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Who reads has enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}
