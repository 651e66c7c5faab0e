//! The throughput of Ferry: concurrent requests compared with one at a time, and the duration of a flush compared with
//! the disk's own sync.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::grid::{Grid, stands};
use super::rows::{self, Row, Service};
use super::{Bench, Outcome};
use crate::blobs::FakeBlobs;

/// The latency of the service.
const AWAY: Duration = Duration::from_millis(20);
/// The size of a Fluent Bit chunk if its input always has more lines.
const CHUNK: usize = 2_048_000;
/// The number of syncs needed for a p99.
const SYNCS: usize = 200;
/// The lines for the flushes: about two hundred chunks.
const FLUSHED_LINES: u64 = 1_000_000;
/// The lines for five flushes per second for 40 seconds, with chunks just below 2 MB.
const PACED_LINES: u64 = 900_000;
const PACE: &str = "Rate 22500";
/// The goal for concurrent requests: at least this many times the rate of one at a time.
const TIMES: f64 = 5.0;
/// The goal for a flush's p99: at most this many milliseconds above the disk's own.
const BEYOND_DISK: f64 = 10.0;

/// Runs `ferry-harness bench-host --throughput`.
pub(super) fn run(bench: &Bench) -> Result<ExitCode> {
    for (grid, goals) in [requests(bench)?, flushes(bench)?] {
        println!("{grid}");
        for goal in goals {
            println!("{goal}");
        }
    }
    fs::remove_file(&bench.input)?;
    Ok(ExitCode::SUCCESS)
}

/// Measures one instance and one worker in the real host, with concurrent requests and with one at a time.
fn requests(bench: &Bench) -> Result<(Grid, Vec<String>)> {
    let mut goals = Vec::new();
    let mut grid = Grid::new(&[
        "the service is 20 ms away",
        "concurrency",
        "requests/s",
        "MB/s",
        "times",
    ]);
    for aggregation in ["off", "on"] {
        let mut one_by_one = None;
        for concurrency in ["1", "auto"] {
            let row = row(aggregation, concurrency);
            let bench = Bench {
                latency: AWAY,
                ..bench.clone()
            };
            let outcome = bench.measure(&row).with_context(|| row.title.clone())?;
            ensure!(
                outcome.arrived.is_exact(),
                "{}:\n{}",
                row.title,
                outcome.arrived
            );
            let [requests, bytes] = rates(&outcome);
            let times = one_by_one.map(|one: f64| requests / one);
            if let Some(times) = times
                && aggregation == "off"
            {
                goals.push(stands(
                    times >= TIMES,
                    &format!("{}: requests/s {times:.1} times, goal {TIMES}", row.title),
                ));
            }
            grid.add([
                Some(row.title),
                Some(concurrency.to_owned()),
                Some(format!("{requests:.0}")),
                Some(format!("{:.1}", bytes / 1e6)),
                times.map(|times| format!("{times:.1}")),
            ]);
            one_by_one = one_by_one.or(Some(requests));
        }
    }
    Ok((grid, goals))
}

/// Returns requests and bytes of lines per second, from the first arrival to the last.
fn rates(outcome: &Outcome) -> [f64; 2] {
    let bytes = outcome.arrived.totals.raw_bytes;
    let seconds = outcome.delivering.as_secs_f64();
    [outcome.requests, bytes].map(|sum| sum as f64 / seconds)
}

fn row(aggregation: &str, concurrency: &str) -> Row {
    let lines = if aggregation == "on" {
        "aggregated"
    } else {
        "a record a line"
    };
    Row {
        id: format!("throughput-{aggregation}-{concurrency}"),
        title: format!("ferry, {lines}, spooled"),
        service: Service::Firehose,
        keys: format!(
            "Name ferry\nendpoint {{url}}\ntls_ca_file {{ca}}\nregion us-east-1\ndelivery_stream bench\n\
             aggregation {aggregation}\nconcurrency {concurrency}\nspool on\nspool_dir {{folder}}/spool\n\
             dead_letter_dir {{folder}}/dead-letters"
        ),
        library: true,
        goals: None,
    }
}

/// Measures flushes of whole chunks into the spool, in the bundled harness.
fn flushes(bench: &Bench) -> Result<(Grid, Vec<String>)> {
    let mut grid = Grid::new(&["2 MB to the disk", "p50 ms", "p99 ms"]);
    let mut add = |title: &str, quantiles: [f64; 2]| {
        let [p50, p99] = quantiles.map(|millis| Some(format!("{millis:.1}")));
        grid.add([Some(title.to_owned()), p50, p99]);
        quantiles[1]
    };
    let before = add("the disk's own fdatasync, before", syncs(bench)?);
    let mut flushes = Vec::new();
    for (title, lines, pace) in [
        ("five a second", PACED_LINES, PACE),
        ("as fast as it goes", FLUSHED_LINES, "Mem_Buf_Limit 32M"),
    ] {
        let title = format!("a flush of Ferry's, spooled, {title}");
        let p99 = add(&title, flush_times(bench, lines, pace)?);
        flushes.push((title, p99));
    }
    let after = add("the disk's own fdatasync, after", syncs(bench)?);
    let goals = flushes
        .iter()
        .map(|(title, p99)| flush_goal(title, *p99, [before, after]));
    Ok((grid, goals.collect()))
}

/// Compares a flush's p99 with the slower measurement of the disk's.
fn flush_goal(title: &str, p99: f64, [before, after]: [f64; 2]) -> String {
    let beyond = p99 - before.max(after);
    stands(
        beyond <= BEYOND_DISK,
        &format!("{title}: p99 {beyond:.1} ms beyond the disk's, goal {BEYOND_DISK}"),
    )
}

/// Returns p50 and p99 of the flushes, in milliseconds. Objects are sent to a service that stores nothing, so that only
/// the spool uses the disk.
fn flush_times(bench: &Bench, lines: u64, pace: &str) -> Result<[f64; 2]> {
    let folder = bench.empty_folder("flushes")?;
    let fake = FakeBlobs::start("seq", Duration::ZERO)?;
    let config = folder.join("bench.conf");
    let text = format!(
        "[SERVICE]\n    Flush 0.2\n    Grace 60\n\
         [INPUT]\n    Name http_sample\n    Tag app\n    Samples {lines}\n    {pace}\n\
         [OUTPUT]\n    Name ferry\n    Match *\n    Workers 1\n    Retry_Limit no_limits\n    \
         endpoint {}/bench\n    {}\n    spool on\n    spool_dir {}\n    dead_letter_dir {}\n",
        fake.url(),
        rows::CONTAINER.replace('\n', "\n    "),
        folder.join("spool").display(),
        folder.join("dead-letters").display(),
    );
    fs::write(&config, text)?;
    let report = folder.join("report.json");
    let log = File::create(folder.join("host.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["run", "--quiet", "-c"])
        .arg(&config)
        .arg("-e")
        .arg(&bench.library);
    command.arg("--report").arg(&report);
    let status = command.stdout(log.try_clone()?).stderr(log).status()?;
    ensure!(
        status.success(),
        "the harness ended with {status}; see {}",
        folder.display()
    );
    let report: Value = serde_json::from_slice(&fs::read(&report)?)?;
    let arrived = fake.report(Some(lines));
    ensure!(arrived.is_exact(), "{arrived}");
    fs::remove_dir_all(&folder)?;
    // NaN meets no goal.
    let millis = |key: &str| report["flush_latency"][key].as_f64().unwrap_or(f64::NAN);
    Ok(["p50_ms", "p99_ms"].map(millis))
}

/// Returns p50 and p99 of appending a chunk to a file and syncing it, in milliseconds.
fn syncs(bench: &Bench) -> Result<[f64; 2]> {
    let path = bench.dir.join("sync");
    let mut file = File::create(&path)?;
    let chunk: Vec<u8> = (0..CHUNK).map(|n| (n % 251) as u8).collect();
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&chunk)?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    fs::remove_file(&path)?;
    Ok(quantiles(times).map(|time| time.as_secs_f64() * 1e3))
}

fn quantiles(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort();
    [50, 99].map(|percent| times[(times.len() * percent).div_ceil(100) - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times = |from: u64| (1..=from).rev().map(Duration::from_millis).collect();
        assert_eq!(quantiles(times(200)), [100, 198].map(Duration::from_millis));
        assert_eq!(quantiles(times(1)), [1, 1].map(Duration::from_millis));
        assert_eq!(quantiles(times(3)), [2, 3].map(Duration::from_millis));
    }

    #[test]
    fn a_flush_is_held_against_the_slower_of_both_measurements_of_the_disk() {
        let disk = [1.5, 2.5];
        assert_eq!(
            [
                flush_goal("paced", 12.5, disk),
                flush_goal("full speed", 12.6, disk),
                flush_goal("unknown", f64::NAN, disk),
            ],
            [
                "met     paced: p99 10.0 ms beyond the disk's, goal 10",
                "MISSED  full speed: p99 10.1 ms beyond the disk's, goal 10",
                "MISSED  unknown: p99 NaN ms beyond the disk's, goal 10",
            ]
        );
    }

    #[test]
    fn rates_are_of_the_time_in_which_something_arrived() {
        let mut outcome = super::super::table::tests::outcome();
        outcome.delivering = Duration::from_secs(5);
        assert_eq!(rates(&outcome), [5.0, 20_000_000.0]);
    }
}
