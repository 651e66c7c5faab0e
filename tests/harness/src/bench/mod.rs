//! A benchmark of Ferry and of Fluent Bit's own plugins, one after the other in the real host: the same lines, the same
//! server, and the cost of each output's threads.
//!
//! - [`rows`]: the outputs and the goals
//! - [`host`]: a run of the host
//! - [`cpu`]: the CPU time of its threads, from `/proc`
//! - [`hash`]: the part of it that is the hash for signing
//! - [`table`]: the results, and the goals
//! - [`targets`]: what many folders or streams cost, in the bundled harness
//! - [`throughput`]: the throughput of Ferry with a distant service, and with many chunks
//! - [`grid`]: the printing of tables

mod cpu;
mod grid;
mod hash;
mod host;
mod rows;
mod table;
mod targets;
mod throughput;

use std::fs;
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use self::hash::Speeds;
use self::host::{Cost, Run};
use self::rows::{Row, Service};
use self::table::Table;
pub use self::targets::BenchTargetsArgs;
pub use self::targets::run as run_targets;
use crate::blobs::FakeBlobs;
use crate::firehose::{FakeFirehose, Options};
use crate::ledger::Report;
use crate::samples::{self, Shape};

/// The timeout of a run, and its increase per line, for busy machines.
const DEADLINE: Duration = Duration::from_secs(120);
const DEADLINE_PER_LINE: Duration = Duration::from_micros(500);

/// Measures Ferry and Fluent Bit's own plugins in a real Fluent Bit, one output at a time.
///
/// The same sample lines go through `tail` into each output, and over loopback to a server in this process that counts
/// every line. Exits with 1 if Ferry lost or duplicated a line.
#[derive(Debug, clap::Args)]
pub struct BenchHostArgs {
    /// The fluent-bit executable
    #[arg(long, value_name = "FILE")]
    fluent_bit: PathBuf,
    /// The library to measure
    #[arg(long, value_name = "LIB.so", default_value = "target/out_ferry.so")]
    library: PathBuf,
    /// The number of sample lines to send
    #[arg(long, value_name = "N", default_value_t = 600_000)]
    lines: u64,
    /// Run only the rows whose names contain one of these words; `list` prints all names
    #[arg(long, value_name = "WORD,…", value_delimiter = ',')]
    rows: Vec<String>,
    /// Run everything N times, and report each row's run with the median CPU time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// The latency of the services
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    latency: Duration,
    /// Measure the throughput of Ferry with a service that is 20 ms away, instead of its cost
    #[arg(long, conflicts_with_all = ["rows", "repeat", "latency"])]
    throughput: bool,
    /// The folder for the lines, the spools and the hosts' logs
    #[arg(long, value_name = "FOLDER", default_value = "target/bench-host")]
    dir: PathBuf,
}

/// The result of a run of a row.
#[derive(Clone, Debug, Default)]
struct Outcome {
    cost: Cost,
    /// The time from the first arrival to the last.
    delivering: Duration,
    arrived: Report,
    requests: u64,
    /// The bytes of all request bodies.
    wire_bytes: u64,
    blobs: u64,
    /// The bytes in records or blobs.
    stored_bytes: u64,
}

/// Runs `ferry-harness bench-host`.
pub fn run(args: BenchHostArgs) -> Result<ExitCode> {
    if args.throughput {
        return throughput::run(&Bench::prepare(&args)?);
    }
    let all = rows::all();
    if args.rows == ["list"] {
        all.iter()
            .for_each(|row| println!("{:<20} {}", row.id, row.title));
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<Row> = all.into_iter().filter(|row| args.chooses(row)).collect();
    let words = args.rows.join(",");
    ensure!(
        !chosen.is_empty(),
        "no row's name contains any of --rows {words}; --rows list names them"
    );
    let bench = Bench::prepare(&args)?;
    let mut runs = vec![Vec::new(); chosen.len()];
    for round in 1..=args.repeat {
        for (row, runs) in chosen.iter().zip(&mut runs) {
            let outcome = bench.measure(row).with_context(|| row.title.clone())?;
            let Cost { cpu, wall, .. } = outcome.cost;
            eprintln!(
                "{round}/{} {:<20} CPU of the output {:.2} s, of the host beside it {:.2} s, wall {:.1} s",
                args.repeat,
                row.id,
                cpu.output.as_secs_f64(),
                cpu.host.as_secs_f64(),
                wall.as_secs_f64()
            );
            runs.push(outcome);
        }
    }
    fs::remove_file(&bench.input)?;
    let measured = chosen.into_iter().zip(runs.into_iter().map(median));
    let table = Table::new(measured.collect(), bench.input_bytes, Speeds::measure());
    println!("{table}");
    Ok(ExitCode::from(u8::from(!table.ferry_is_exact())))
}

impl BenchHostArgs {
    fn chooses(&self, row: &Row) -> bool {
        let mut words = self.rows.iter();
        self.rows.is_empty() || words.any(|word| row.id.contains(word.as_str()))
    }
}

/// Returns the run with the median CPU time of the output; of an even number, the lower one.
fn median(mut runs: Vec<Outcome>) -> Outcome {
    runs.sort_by_key(|outcome| outcome.cost.cpu.output);
    runs.swap_remove((runs.len() - 1) / 2)
}

/// The parts shared by all rows.
#[derive(Clone)]
struct Bench {
    fluent_bit: PathBuf,
    library: PathBuf,
    dir: PathBuf,
    input: PathBuf,
    input_bytes: u64,
    lines: u64,
    latency: Duration,
}

impl Bench {
    fn prepare(args: &BenchHostArgs) -> Result<Self> {
        for (name, file) in [
            ("--fluent-bit", &args.fluent_bit),
            ("--library", &args.library),
        ] {
            ensure!(file.is_file(), "{name} {} is not a file", file.display());
        }
        fs::create_dir_all(&args.dir)
            .with_context(|| format!("cannot make the folder {}", args.dir.display()))?;
        let dir = absolute(&args.dir)?;
        let input = dir.join("lines.ndjson");
        samples::write(&input, Shape::Http, args.lines, 1, SystemTime::UNIX_EPOCH)?;
        Ok(Self {
            fluent_bit: absolute(&args.fluent_bit)?,
            library: absolute(&args.library)?,
            input_bytes: fs::metadata(&input)?.len(),
            dir,
            input,
            lines: args.lines,
            latency: args.latency,
        })
    }

    /// Returns an empty folder for a run.
    fn empty_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.dir.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    fn measure(&self, row: &Row) -> Result<Outcome> {
        let folder = self.empty_folder(&row.id)?;
        let outcome = match row.service {
            Service::Nothing => Outcome {
                cost: self.run(row, &folder, "", || 0)?.0,
                ..Outcome::default()
            },
            Service::Firehose => self.run_firehose(row, &folder)?,
            Service::Blobs => self.run_blobs(row, &folder)?,
        };
        let spool = folder.join("spool");
        if spool.exists() {
            fs::remove_dir_all(spool)?;
        }
        Ok(outcome)
    }

    fn run_firehose(&self, row: &Row, folder: &Path) -> Result<Outcome> {
        let late = match self.latency {
            Duration::ZERO => String::new(),
            latency => format!("delay {}ms", latency.as_millis()),
        };
        let fake = FakeFirehose::start(Options {
            tls: true,
            faults: late,
            ..Options::default()
        })?;
        fs::write(folder.join("ca.pem"), fake.ca_pem().unwrap_or_default())?;
        let lines = || fake.report(None).distinct;
        let (cost, delivering) = self.run(row, folder, fake.url(), lines)?;
        let arrived = fake.report(Some(self.lines));
        Ok(Outcome {
            cost,
            delivering,
            requests: arrived.calls.values().sum(),
            wire_bytes: arrived.wire_bytes,
            blobs: 0,
            stored_bytes: arrived.totals.record_bytes,
            arrived,
        })
    }

    fn run_blobs(&self, row: &Row, folder: &Path) -> Result<Outcome> {
        let fake = FakeBlobs::start("seq", self.latency)?;
        let lines = || fake.lines();
        let (cost, delivering) = self.run(row, folder, fake.url(), lines)?;
        let usage = fake.usage();
        Ok(Outcome {
            cost,
            delivering,
            arrived: fake.report(Some(self.lines)),
            requests: usage.requests.values().sum(),
            wire_bytes: usage.wire_bytes,
            blobs: usage.blobs,
            stored_bytes: usage.stored_bytes,
        })
    }

    /// Runs the host with the row's output; `lines` returns the number of lines that have arrived. Also returns the
    /// time from the first arrival to the last.
    fn run(
        &self,
        row: &Row,
        folder: &Path,
        url: &str,
        lines: impl Fn() -> u64,
    ) -> Result<(Cost, Duration)> {
        let port = url.rsplit(':').next().unwrap_or_default();
        let ca = folder.join("ca.pem");
        let keys = row.keys.replace("{url}", url).replace("{port}", port);
        let keys = keys.replace("{ca}", &ca.display().to_string());
        let run = Run {
            executable: &self.fluent_bit,
            library: row.library.then_some(&*self.library),
            folder: folder.to_owned(),
            input: &self.input,
            output: keys.replace("{folder}", &folder.display().to_string()),
            deadline: DEADLINE + DEADLINE_PER_LINE * u32::try_from(self.lines)?,
        };
        let (mut first, mut last, mut seen) = (None, None, 0);
        let cost = run.watch(|| {
            let lines = lines();
            if lines > seen {
                let now = Instant::now();
                first.get_or_insert(now);
                (last, seen) = (Some(now), lines);
            }
            lines >= self.lines
        })?;
        let delivering = first.zip(last).map(|(first, last)| last - first);
        Ok((cost, delivering.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_runs_the_one_in_the_middle_counts() {
        let runs = |millis: &[u64]| {
            let runs = millis.iter().map(|millis| {
                let mut outcome = table::tests::outcome();
                outcome.cost.cpu.output = Duration::from_millis(*millis);
                outcome
            });
            median(runs.collect()).cost.cpu.output.as_millis()
        };
        assert_eq!(runs(&[5]), 5);
        assert_eq!(runs(&[9, 1]), 1);
        assert_eq!(runs(&[9, 1, 4]), 4);
    }
}
