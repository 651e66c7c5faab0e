//! Many targets: the lines of one sample spread evenly over folders of a distant store, or over delivery streams.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::grid::Grid;
use super::rows;
use crate::blobs::FakeBlobs;
use crate::firehose::{FakeFirehose, Options};
use crate::ledger::Report;

/// Measures Ferry with many targets, in the bundled harness: how fast, how many requests, how large they are, and how much
/// memory it takes.
///
/// Each line goes to the next folder or stream in turn, so that every chunk has all of them. Exits with 1 if a line was lost
/// or delivered twice.
#[derive(Debug, clap::Args)]
pub struct BenchTargetsArgs {
    /// The library to measure
    #[arg(long, value_name = "LIB.so", default_value = "target/out_ferry.so")]
    library: PathBuf,
    /// The number of sample lines to send
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    lines: u64,
    /// The lines per second; 0: as fast as they are taken
    #[arg(long, value_name = "N", default_value_t = 0)]
    rate: u64,
    /// The numbers of folders
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "1,100,1000,10000"
    )]
    folders: Vec<u64>,
    /// The numbers of delivery streams
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "1,1000"
    )]
    streams: Vec<u64>,
    /// The time to an answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "50ms")]
    latency: Duration,
    /// More keys of the output, as `key value`
    #[arg(long = "set", value_name = "KEY VALUE")]
    keys: Vec<String>,
    /// The folder for the spool and the host's log
    #[arg(long, value_name = "FOLDER", default_value = "target/bench-targets")]
    dir: PathBuf,
}

/// A measured run.
struct Measured {
    arrived: Report,
    /// Objects or requests that were accepted.
    requests: u64,
    elapsed: Duration,
    /// The harness's own report.
    host: Value,
}

/// Runs `ferry-harness bench-targets`.
pub fn run(args: BenchTargetsArgs) -> Result<ExitCode> {
    let mut exact = true;
    let mut grid = Grid::new(&[
        "targets", "MB/s", "requests", "mean KB", "peak MB", "seconds", "lost", "twice",
    ]);
    let folders = args.folders.iter().map(|count| (*count, false));
    let streams = args.streams.iter().map(|count| (*count, true));
    for (count, is_stream) in folders.chain(streams) {
        if count == 0 {
            continue;
        }
        let kind = if is_stream { "streams" } else { "folders" };
        let title = format!("{count} {kind}");
        let measured = match is_stream {
            true => measure_streams(&args, count),
            false => measure_folders(&args, count),
        };
        let measured = measured.with_context(|| title.clone())?;
        let bytes = measured.arrived.totals.raw_bytes as f64;
        let peak = measured.host["peak_memory_bytes"]
            .as_f64()
            .unwrap_or(f64::NAN);
        exact &= measured.arrived.is_exact();
        grid.add([
            Some(title),
            Some(format!(
                "{:.1}",
                bytes / 1e6 / measured.elapsed.as_secs_f64()
            )),
            Some(measured.requests.to_string()),
            Some(format!(
                "{:.1}",
                bytes / 1e3 / measured.requests.max(1) as f64
            )),
            Some(format!("{:.0}", peak / 1e6)),
            Some(format!("{:.1}", measured.elapsed.as_secs_f64())),
            Some(measured.arrived.missing.to_string()),
            Some(measured.arrived.duplicates.to_string()),
        ]);
    }
    println!("{grid}");
    Ok(if exact {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn measure_folders(args: &BenchTargetsArgs, count: u64) -> Result<Measured> {
    let fake = FakeBlobs::start("seq", args.latency)?;
    let keys = format!(
        "endpoint {}/bench\n{}\npath {{record.folder}}\ncompression zstd",
        fake.url(),
        rows::CONTAINER
    );
    let (elapsed, host) = feed(args, count, &keys)?;
    Ok(Measured {
        arrived: fake.report(Some(args.lines)),
        requests: fake.usage().blobs,
        elapsed,
        host,
    })
}

fn measure_streams(args: &BenchTargetsArgs, count: u64) -> Result<Measured> {
    let fake = FakeFirehose::start(Options {
        faults: format!("delay {}ms", args.latency.as_millis()),
        ..Options::default()
    })?;
    let keys = format!(
        "endpoint {}\nregion us-east-1\ndelivery_stream {{record.folder}}\nspool on",
        fake.url()
    );
    let (elapsed, host) = feed(args, count, &keys)?;
    let arrived = fake.report(Some(args.lines));
    Ok(Measured {
        requests: arrived.calls.values().sum(),
        arrived,
        elapsed,
        host,
    })
}

/// Feeds the lines through the harness's engine until all are delivered. Returns the time that took.
fn feed(args: &BenchTargetsArgs, count: u64, keys: &str) -> Result<(Duration, Value)> {
    let folder = std::path::absolute(&args.dir)?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let config = folder.join("bench.conf");
    fs::write(&config, configuration(args, count, keys, &folder))?;
    let report = folder.join("report.json");
    let log = File::create(folder.join("host.log"))?;
    let started = Instant::now();
    let status = Command::new(std::env::current_exe()?)
        .args(["run", "--quiet", "-c"])
        .arg(&config)
        .arg("-e")
        .arg(&args.library)
        .arg("--report")
        .arg(&report)
        .env("AWS_ACCESS_KEY_ID", "bench")
        .env("AWS_SECRET_ACCESS_KEY", "bench")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()?;
    let elapsed = started.elapsed();
    ensure!(
        status.success(),
        "the harness ended with {status}; see {}",
        folder.display()
    );
    let report = serde_json::from_slice(&fs::read(&report)?)?;
    fs::remove_dir_all(folder.join("spool"))?;
    Ok((elapsed, report))
}

fn configuration(args: &BenchTargetsArgs, count: u64, keys: &str, folder: &Path) -> String {
    let more: Vec<&str> = keys
        .lines()
        .chain(args.keys.iter().map(String::as_str))
        .collect();
    let rate = match args.rate {
        0 => String::new(),
        rate => format!("Rate {rate}"),
    };
    format!(
        "[SERVICE]\n    Flush 0.2\n    Grace 600\n    scheduler.base 1\n    scheduler.cap 2\n\
         [INPUT]\n    Name http_sample\n    Tag app\n    Samples {}\n    Folders {count}\n    {rate}\n\
         [OUTPUT]\n    Name ferry\n    Match *\n    Workers 2\n    Retry_Limit no_limits\n    {}\n    \
         exit_deadline 600s\n    spool_dir {}\n    dead_letter_dir {}\n",
        args.lines,
        more.join("\n    "),
        folder.join("spool").display(),
        folder.join("dead-letters").display(),
    )
}
