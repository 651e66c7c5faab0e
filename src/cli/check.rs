//! `ferry check`: checks a configuration before Fluent Bit is started with it. The implementation is in
//! [`ferry::check`].

use std::path::PathBuf;
use std::time::Duration;

use ferry::check::cost::{Load, parse_rate};
use ferry::check::{self, Finding, Mark, Options, host};
use serde::Serialize;
use serde_json::Value;

use super::{Done, print, print_json, tell};

/// Check the ferry outputs of a Fluent Bit configuration: keys, folders, network, credentials, and the
/// delivery stream, container or bucket itself
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct Args {
    /// Fluent Bit's configuration: classic, or YAML where it is named .yaml or .yml
    file: PathBuf,
    /// Send one marked record to a delivery stream; write and remove one small object in a store
    #[arg(long)]
    put: bool,
    /// A tag to check delivery_stream or path with, if they depend on it; may be given several times.
    /// By default the tag in Match if it has no wildcard, or those of the chunks in the spool and of the inputs
    #[arg(long)]
    tag: Vec<String>,
    /// An example of a record, if delivery_stream or path depend on it: JSON, or a file with a record on each line. Warns of
    /// keys that differ only in case, and of placeholders that no record fills. May be given several times. By default
    /// those in the spool
    #[arg(long, value_name = "JSON|FILE", value_parser = records)]
    record: Vec<Records>,
    /// The expected bytes of lines per second, such as 2M: prints how large objects get and what their requests cost
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    rate: Option<u64>,
    /// The number of folders that receive lines at the same time, for --rate
    #[arg(long, value_name = "N", default_value_t = 1, requires = "rate", value_parser = clap::value_parser!(u64).range(1..))]
    folders: u64,
    /// The timeout of each check
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// One JSON document: an array of {output, check, result, message, remedy}
    #[arg(long)]
    json: bool,
}

const STATUS: &str = "\
Prints one line per check: ok, warn, FAIL, or skip if it was not tried. Run it as the user that Fluent Bit runs as,
with its environment. Nothing is written at a destination without --put, and no secret is ever shown. Checks that
were not tried are listed on stderr at the end.

Examples:
  ferry check /etc/fluent-bit/fluent-bit.conf
  ferry check fluent-bit.conf --rate 2M --folders 500
  ferry check fluent-bit.yaml --tag app.orders --tag app.users --record '{\"team\":\"x\"}' --put

Exit status: 0, nothing failed; 1, a check failed; 2, the configuration or the arguments cannot be read";

/// A finding in the output of `--json`.
#[derive(Serialize)]
struct Row {
    /// The output's alias, or the host's name for it, such as `ferry.0`.
    output: String,
    /// The name of the check, such as `credentials`.
    check: &'static str,
    /// `ok`, `warn`, `FAIL` or `skip`.
    result: String,
    /// The details.
    message: String,
    /// The remedy; null if there is none.
    remedy: Option<String>,
}

impl From<Finding> for Row {
    fn from(finding: Finding) -> Row {
        Row {
            output: finding.output,
            check: finding.check,
            result: finding.mark.to_string(),
            message: finding.message,
            remedy: finding.remedy,
        }
    }
}

/// The sample records of an argument.
type Records = std::sync::Arc<Vec<Value>>;

/// The most records to read of a file.
const MAX_RECORDS: usize = 10_000;

fn records(text: &str) -> Result<Records, String> {
    let file = match text.trim_start().starts_with(['{', '[']) {
        true => return Ok(vec![object(text)?].into()),
        false => std::fs::read_to_string(text)
            .map_err(|error| format!("neither JSON nor a file: {error}"))?,
    };
    let lines = file.lines().filter(|line| !line.trim().is_empty());
    let records: Vec<Value> = lines
        .take(MAX_RECORDS)
        .map(object)
        .collect::<Result<_, _>>()?;
    match records.is_empty() {
        true => Err("the file has no records".to_owned()),
        false => Ok(records.into()),
    }
}

fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("a record is an object: {\"key\": \"value\"}".to_owned()),
        Err(error) => Err(format!("invalid JSON: {error}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| (0.1..=3_600.0).contains(seconds));
    let seconds = seconds.ok_or("expected seconds from 0.1 to 3600")?;
    Ok(Duration::from_secs_f64(seconds))
}

pub(super) fn run(args: &Args) -> Done {
    let configuration = host::read(&args.file, |name| name == "ferry")?;
    if configuration.outputs.is_empty() {
        let others = match configuration.others.as_slice() {
            [] => "there is no output at all".to_owned(),
            others => format!("there are only: {}; see ferry migrate", others.join(", ")),
        };
        let file = args.file.display();
        return Err(format!("{file}: there is no output ferry; {others}").into());
    }
    let records = args.record.iter();
    let records: Vec<Value> = records
        .flat_map(|records| records.iter().cloned())
        .collect();
    let options = Options {
        put: args.put,
        timeout: args.timeout,
        tags: args.tag.clone(),
        record: records.first().cloned(),
        records,
        load: args.rate.map(|rate| Load {
            rate,
            folders: args.folders,
        }),
        samples: Vec::new(),
    };
    let (mut rows, mut printed, mut untried) = (Vec::new(), Ok(()), Vec::new());
    let passed = check::run(&configuration, &options, &mut |finding| {
        // Skipping the put without --put is expected.
        if finding.mark == Mark::Skip && finding.check != "put" {
            untried.push(format!("{} {}", finding.output, finding.check));
        }
        if args.json {
            rows.push(Row::from(finding));
        } else if printed.is_ok() {
            printed = print(&format!("{finding}\n"));
        }
    });
    if args.json {
        printed = print_json(&rows);
    }
    printed?;
    if !untried.is_empty() {
        tell(format_args!("note: not tried: {}", untried.join(", ")));
    }
    passed.map_err(|error| format!("no threads could be started: {error}").into())
}
