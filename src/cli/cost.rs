//! `ferry cost`: what a month of logs costs. The implementation is in [`ferry::check::bill`].

use std::path::PathBuf;

use ferry::check::bill::{self, Month, Way};
use ferry::check::cost::{Load, parse_rate};
use ferry::check::host;
use serde::Serialize;

use super::{Done, chosen, print, print_json};

/// Compute what a month of logs costs: in each ferry output of a configuration, and beside it in CloudWatch Logs, through
/// Firehose with and without conversion, and as Parquet that Ferry writes
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct Args {
    /// Fluent Bit's configuration: classic, or YAML where it is named .yaml or .yml
    file: PathBuf,
    /// The bytes of lines per second, such as 20K; or see --month
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, required_unless_present = "month")]
    rate: Option<u64>,
    /// The bytes of lines per month of 30 days, such as 50G
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, conflicts_with = "rate")]
    month: Option<u64>,
    /// The mean length of a line: Firehose bills each record in units of 5 KB
    #[arg(long, value_name = "BYTES", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    line: u64,
    /// The number of folders that receive lines at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    folders: u64,
    /// The region whose prices apply
    #[arg(long, default_value = "us-east-1", value_parser = clap::builder::PossibleValuesParser::new(bill::regions()))]
    region: String,
    /// One JSON document: an array of {output, ways}
    #[arg(long)]
    json: bool,
}

const STATUS: &str = "\
Prints US dollars for a month: ingestion, conversion, write requests, and the storage of what the month leaves. A price that
is not known is shown as ?, and so is its sum. Compression is taken as 5 to 1.

Examples:
  ferry cost /etc/fluent-bit/fluent-bit.conf --month 50G
  ferry cost fluent-bit.conf --rate 2M --folders 40 --line 350 --json

Exit status: 0, computed; 2, the configuration or the arguments cannot be read";

/// An output in the report of `--json`.
#[derive(Serialize)]
struct Row {
    /// The output's alias, or the host's name for it, such as `ferry.0`.
    output: String,
    /// The configured output, and then other ways.
    ways: Vec<Way>,
}

/// The seconds of a month of 30 days.
const SECONDS: u64 = 30 * 24 * 3_600;

pub(super) fn run(args: &Args) -> Done {
    let configuration = host::read(&args.file, |name| name == "ferry")?;
    let file = args.file.display();
    if configuration.outputs.is_empty() {
        return Err(format!("{file}: there is no output ferry").into());
    }
    let rate = args
        .rate
        .or(args.month.map(|bytes| bytes.div_ceil(SECONDS)));
    let month = Month {
        load: Load {
            rate: rate.unwrap_or(1),
            folders: args.folders,
        },
        line: args.line,
    };
    let mut rows = Vec::new();
    for output in &configuration.outputs {
        let config = chosen::configuration(output, &file)?;
        rows.push(Row {
            output: output.label.clone(),
            ways: bill::ways(&config, &month, &args.region).unwrap_or_default(),
        });
    }
    if args.json {
        print_json(&rows)?;
        return Ok(true);
    }
    for row in &rows {
        print(&table(row, &month, &args.region))?;
    }
    print(&format!("{}.\n", bill::SOURCES))?;
    Ok(true)
}

fn table(row: &Row, month: &Month, region: &str) -> String {
    let mut text = format!(
        "{}: {} a month, in lines of {} bytes, {} folder{}, {region}, US dollars\n{:<58}{:>9}{:>11}{:>10}{:>9}{:>10}\n",
        row.output,
        ferry::log::size(month.load.rate * SECONDS),
        month.line,
        month.load.folders,
        if month.load.folders == 1 { "" } else { "s" },
        "",
        "ingestion",
        "conversion",
        "requests",
        "storage",
        "total",
    );
    for way in &row.ways {
        let [ingestion, conversion, requests, storage, total] = [
            way.ingestion,
            way.conversion,
            way.requests,
            way.storage,
            way.total,
        ]
        .map(dollars);
        text += &format!(
            "{:<58}{ingestion:>9}{conversion:>11}{requests:>10}{storage:>9}{total:>10}\n",
            way.way
        );
    }
    text + "\n"
}

fn dollars(amount: Option<f64>) -> String {
    amount.map_or_else(|| "?".to_owned(), |amount| format!("{amount:.2}"))
}
