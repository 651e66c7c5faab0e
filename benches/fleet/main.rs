//! A fleet of senders on one delivery stream, in simulated time: `make fleet-sim`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

mod chart;
mod sim;

use sim::{Figures, Story};

/// Simulates a fleet of senders on one delivery stream with a quota of 5 MiB, 2,000 requests and 500,000 records a
/// second, with the policies of the plugin, and prints how much of the quota they use and how fairly.
#[derive(Parser)]
#[command(name = "fleet-sim")]
struct Options {
    /// The number of senders.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    senders: u32,
    /// The seed of everything that is random: the same seed gives the same figures.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The hours before an outage of an hour, and as many after it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=48))]
    hours: u32,
    /// Only the plugin's policies, without the same fleet without a pace beside it.
    #[arg(long)]
    only_paced: bool,
    /// The file that the chart is written to.
    #[arg(long, default_value = "target/fleet.svg", overrides_with = "out")]
    out: PathBuf,
    /// Passed by "cargo bench"; has no effect.
    #[arg(long, hide = true)]
    bench: bool,
}

fn minutes(minutes: u32) -> Duration {
    Duration::from_secs(u64::from(minutes) * 60)
}

fn row(name: &str, of: impl Fn(Figures) -> f64, figures: &[Figures]) -> String {
    let mut row = format!("  {name:<52}");
    for figures in figures {
        let _ = write!(row, "{:>14.3}", of(*figures));
    }
    row
}

fn main() -> ExitCode {
    let options = Options::parse();
    let before = options.hours * 60;
    let (down, up, end) = (before, before + 60, 2 * before + 60);
    let policies: &[bool] = if options.only_paced {
        &[true]
    } else {
        &[true, false]
    };
    let mut charts = Vec::new();
    for (title, load) in [
        ("All senders always have more to send", f64::INFINITY),
        (
            "Logs take 60% of the quota, until an outage leaves a backlog",
            0.6,
        ),
    ] {
        let records: Vec<_> = policies
            .iter()
            .map(|&paced| {
                sim::tell(Story {
                    senders: options.senders as usize,
                    seed: options.seed,
                    paced,
                    load,
                    outage: Some((minutes(down), minutes(up))),
                    end: minutes(end),
                })
            })
            .collect();
        let of = |from, to| -> Vec<Figures> {
            records
                .iter()
                .map(|it| it.figures(minutes(from), minutes(to)))
                .collect()
        };
        println!(
            "\n{title} ({} senders, seed {})",
            options.senders, options.seed
        );
        let head = ["with a pace", "without"];
        println!(
            "  {:<52}{:>14}{:>14}",
            "",
            head[0],
            if policies.len() > 1 { head[1] } else { "" }
        );
        let start = of(0, 1);
        println!(
            "{}",
            row(
                "first minute: highest second, attempted / quota",
                |it| it.attempted,
                &start
            )
        );
        let steady = of(5, down);
        println!(
            "{}",
            row("then: share of the quota used", |it| it.used, &steady)
        );
        println!(
            "{}",
            row("      fairness (Jain)", |it| it.fairness, &steady)
        );
        println!(
            "{}",
            row(
                "      highest second, attempted / quota",
                |it| it.attempted,
                &steady
            )
        );
        println!(
            "{}",
            row(
                "      highest second, accepted / quota",
                |it| it.accepted,
                &steady
            )
        );
        let outage = of(down + 1, up);
        println!(
            "{}",
            row(
                "outage: highest second, attempted / quota",
                |it| it.attempted,
                &outage
            )
        );
        let after = of(up, end);
        println!(
            "{}",
            row("after it: share of the quota used", |it| it.used, &after)
        );
        println!("{}", row("      fairness (Jain)", |it| it.fairness, &after));
        println!(
            "{}",
            row(
                "      highest second, attempted / quota",
                |it| it.attempted,
                &after
            )
        );
        println!(
            "{}",
            row(
                "      highest second, accepted / quota",
                |it| it.accepted,
                &after
            )
        );
        charts.push((title, records.into_iter().next().expect("one with a pace")));
    }
    let calls = sim::describe(options.senders as usize, options.seed);
    println!(
        "\nAll senders start at once: calls of DescribeDeliveryStream, with a quota of 5 a second"
    );
    println!("  in the first second{:>47}", calls[0]);
    let most = |from: usize| calls.iter().skip(from).max().copied().unwrap_or(0);
    println!("  most in any second after the first 10 s{:>27}", most(10));
    println!(
        "  seconds until all streams are described{:>27}",
        calls.len()
    );
    let svg = chart::svg(&charts);
    if let Err(error) = std::fs::write(&options.out, svg) {
        eprintln!("error: {}: {error}", options.out.display());
        return ExitCode::FAILURE;
    }
    println!("\nThe rates over time are in {}", options.out.display());
    ExitCode::SUCCESS
}
