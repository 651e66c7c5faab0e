//! A small fleet in simulated time, with the policies of the plugin: the goals that "make fleet-sim" prints the figures of.

use std::time::Duration;

#[allow(dead_code, reason = "the program needs more of it")]
#[path = "../benches/fleet/sim.rs"]
mod sim;

use sim::{Record, Story};

const MINUTE: Duration = Duration::from_secs(60);
const SENDERS: usize = 50;

/// Half an hour, an outage of an hour, and half an hour.
fn tell(paced: bool, load: f64) -> Record {
    sim::tell(Story {
        senders: SENDERS,
        seed: 1,
        paced,
        load,
        outage: Some((30 * MINUTE, 90 * MINUTE)),
        end: 120 * MINUTE,
    })
}

#[test]
fn a_fleet_uses_its_quota_fairly_and_nobody_hammers_after_an_outage() {
    let record = tell(true, f64::INFINITY);
    let (steady, outage, after) = (
        record.figures(5 * MINUTE, 30 * MINUTE),
        record.figures(31 * MINUTE, 90 * MINUTE),
        record.figures(90 * MINUTE, 120 * MINUTE),
    );
    assert!(steady.used >= 0.9 && steady.fairness >= 0.9, "{steady:?}");
    assert!(steady.attempted <= 1.2, "{steady:?}");
    assert!(
        outage.attempted <= 0.2,
        "probes are few and small: {outage:?}"
    );
    assert!(after.used >= 0.9 && after.fairness >= 0.9, "{after:?}");
    assert!(after.attempted <= 1.2, "{after:?}");
}

#[test]
fn a_fleet_that_was_never_throttled_does_not_hammer_after_an_outage_either() {
    let record = tell(true, 0.6);
    let (calm, after) = (
        record.figures(MINUTE, 30 * MINUTE),
        record.figures(90 * MINUTE, 120 * MINUTE),
    );
    assert!((0.59..0.61).contains(&calm.used), "nothing waits: {calm:?}");
    assert!(after.used >= 0.9 && after.fairness >= 0.9, "{after:?}");
    assert!(after.attempted <= 1.2, "{after:?}");
}

#[test]
fn without_a_pace_the_same_fleet_hammers() {
    let record = tell(false, f64::INFINITY);
    let after = record.figures(90 * MINUTE, 120 * MINUTE);
    assert!(after.attempted > 10.0, "{after:?}");
}

#[test]
fn a_fleet_that_starts_at_once_soon_describes_within_the_quota() {
    let calls = sim::describe(1_000, 1);
    let rest = &calls[1..];
    let mean = f64::from(rest.iter().sum::<u32>()) / rest.len() as f64;
    assert!(mean <= 5.0, "{mean}: {calls:?}");
    let busiest = rest
        .windows(60)
        .map(|minute| minute.iter().sum::<u32>())
        .max();
    assert!(busiest <= Some(5 * 60), "in any minute: {busiest:?}");
    assert!(
        calls.len() < 3_600,
        "all are described within an hour: {}",
        calls.len()
    );
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let (one, other) = (tell(true, 0.6), tell(true, 0.6));
    assert_eq!(one.attempted, other.attempted);
    assert_eq!(one.shares, other.shares);
}
