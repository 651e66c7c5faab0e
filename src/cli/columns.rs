//! `ferry columns`: proposes columns for Parquet. The implementation is in [`ferry::format::parquet::propose`].

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use ferry::format::parquet::paths;
use ferry::format::parquet::propose::{Proposal, Sample};
use serde::Serialize;
use serde_json::Value;

use super::{Done, Failure, cannot_be, print, print_json, spool, tell};

/// Propose parquet_columns from a sample of records: names, types, and how often each field is there
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct Args {
    /// A file of JSON records, one per line; `-` for stdin; or the folder of a spool
    sample: PathBuf,
    /// The part of the records, in percent, that must have a field for it to become a column
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    least: f64,
    /// The most columns; less frequent fields go to the rest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=200))]
    most: u16,
    /// The most records to look at
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// One JSON document: {records, columns, rest}
    #[arg(long)]
    json: bool,
}

const STATUS: &str = "\
Prints a line for each column, as `parquet_columns @FILE` reads it, and comments with what goes to the rest. An ID with many values
gets a bloom filter. Look through it before you use it: a column's type is not changed later, only added under another name.

Examples:
  ferry columns app.log >columns
  tail -n 10000 app.log | ferry columns -
  ferry columns /var/lib/ferry/main --least 5

Exit status: 0, there is a proposal; 1, no record was found in the sample; 2, it cannot be read";

/// The report of `--json`.
#[derive(Serialize)]
struct Report {
    records: u64,
    /// Lines that are no JSON object.
    other_lines: u64,
    columns: Vec<Row>,
    rest: Vec<Rest>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    r#type: String,
    bloom: bool,
    path: String,
    /// The part of the records that have a value for it.
    present: f64,
    /// The part of its values that do not fit, and go to the rest.
    unfit: f64,
}

#[derive(Serialize)]
struct Rest {
    path: String,
    present: f64,
}

/// Reads the lines that are written to it, up to a number of records.
#[derive(Default)]
struct Reader {
    sample: Sample,
    others: u64,
    most: u64,
    /// A line whose end was not written yet.
    open: Vec<u8>,
}

impl Reader {
    /// Returns whether more lines are wanted.
    fn line(&mut self, line: &[u8]) -> bool {
        match serde_json::from_slice(line) {
            Ok(record @ Value::Object(_)) => self.sample.add(&record),
            _ if line.trim_ascii().is_empty() => {}
            _ => self.others += 1,
        }
        self.sample.records() < self.most
    }
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.open.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.open);
                if !self.line(&line) {
                    return Err(ErrorKind::BrokenPipe.into());
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn run(args: &Args) -> Done {
    let mut reader = Reader {
        most: args.records,
        ..Reader::default()
    };
    if args.sample.is_dir() {
        match spool::export_all(&args.sample, &mut reader) {
            // Enough.
            Ok(_) | Err(Failure::BrokenPipe) => {}
            Err(error) => return Err(error),
        }
    } else {
        read_lines(&args.sample, &mut reader)?;
    }
    let (columns, rest) = reader.sample.propose(args.least / 100.0, args.most.into());
    let records = reader.sample.records();
    if args.json {
        let row = |it: &Proposal| Row {
            name: it.column.name.clone(),
            r#type: it.column.kind.to_string(),
            bloom: it.column.bloom,
            path: it.column.path.to_string(),
            present: it.present,
            unfit: it.unfit,
        };
        print_json(&Report {
            records,
            other_lines: reader.others,
            columns: columns.iter().map(row).collect(),
            rest: rest
                .into_iter()
                .map(|(path, present)| Rest {
                    path: path.to_string(),
                    present,
                })
                .collect(),
        })?;
    } else if records > 0 {
        print(&text(records, &columns, &rest))?;
    }
    if reader.others > 0 {
        tell(format_args!(
            "note: {} lines are no JSON objects, and were passed over",
            reader.others
        ));
    }
    if records == 0 {
        tell(format_args!(
            "no record was found in {}",
            args.sample.display()
        ));
    }
    Ok(records > 0)
}

fn read_lines(file: &Path, reader: &mut Reader) -> Result<(), Failure> {
    let mut source: Box<dyn BufRead> = match file == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => {
            let opened =
                File::open(file).map_err(|error| cannot_be(file.display(), "opened", error))?;
            Box::new(BufReader::new(opened))
        }
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = source
            .read_until(b'\n', &mut line)
            .map_err(|error| cannot_be(file.display(), "read", error))?;
        if read == 0 || !reader.line(&line) {
            return Ok(());
        }
    }
}

/// The most fields of the rest that are listed.
const LISTED: usize = 20;

fn text(records: u64, columns: &[Proposal], rest: &[(paths::Path, f64)]) -> String {
    let mut text = format!("# {} columns from {records} records\n", columns.len());
    for column in columns {
        text += &format!("{column}\n");
    }
    if !rest.is_empty() {
        text += "# to the rest:\n";
    }
    for (path, present) in rest.iter().take(LISTED) {
        text += &format!("#   {path} ({:.1}%)\n", present * 100.0);
    }
    if rest.len() > LISTED {
        text += &format!("#   and {} more fields\n", rest.len() - LISTED);
    }
    text
}
