//! What one target may hold of the spool.

use super::targets::{Destination, Trouble, WIDE, events, in_steps, in_time, many, stop_in_time};
use super::*;
use crate::sink::outcome::Class;

const MISSING: Option<Trouble> = Some(Trouble::Refuses(Class::Configuration));

/// A stream or a folder for each tag; an eighth of the spool may wait for one.
const BY_TAG: [(&[(&str, &str)], Shape); 2] = [
    (
        &[
            ("delivery_stream", "{tag}"),
            ("spool", "on"),
            ("linger", "0"),
            ("spool_limit", "16M"),
            ("target_limit", "25%"),
        ],
        WIDE,
    ),
    (
        &[
            ("url", "file:///nowhere"),
            ("compression", "none"),
            ("path", "{tag}/%Y"),
            ("blob_max_age", "1s"),
            ("spool_limit", "16M"),
            ("target_limit", "25%"),
        ],
        OBJECT,
    ),
];

pub(super) async fn flush(bench: &Bench, tag: &str, events: Bytes) -> Verdict {
    bench.pipeline.flush(tag.as_bytes(), events).await
}

/// Flushes chunks of about 730 KB for `bad` until one is refused, and one event for `good` after each. Returns how many
/// were accepted.
async fn fill(bench: &Bench, destination: &Destination, run: &str) -> usize {
    for n in 0..60 {
        let chunk = many("bad", &format!("bad-{run}-{n}"), 1_000);
        let verdict = flush(bench, "bad", chunk).await;
        let good = format!("good-{run}-{n}");
        let other = flush(bench, "good", events(&[("good", &good)], 0)).await;
        assert_eq!(other, Verdict::Ok, "{n}");
        in_time("the good event", || destination.arrived(&good) == 1).await;
        if verdict == Verdict::Retry {
            return n;
        }
    }
    panic!("no chunk was refused: {:?}", bench.spool.usage());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_the_tag_decides_holds_its_share_of_the_spool_and_no_more() {
    for (keys, shape) in BY_TAG {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(shape);
        destination.set_trouble("bad", MISSING);
        let bench = start(dir.path(), &destination, keys);
        let accepted = fill(&bench, &destination, "a").await;
        // 4 MB, and what was flushed before the last one was read.
        assert!((5..12).contains(&accepted), "{accepted}");
        assert!(bench.logged("more than its target_limit (4 MB;"));
        assert!(bench.logged("Code: message"), "in the destination's words");
        let left = bench.crash_image();
        bench.feed.abort();

        // What waits is counted again.
        let bench = start(left.path(), &destination, keys);
        in_time("what waits to be counted", || {
            bench.logged("more than its target_limit (4 MB;")
        })
        .await;
        assert_eq!(fill(&bench, &destination, "b").await, 0);

        destination.set_trouble("bad", None);
        in_time("all of it", || {
            destination.arrived("bad") == accepted * 1_000
        })
        .await;
        in_time("the end", || bench.logged("accepts chunks again")).await;
        let verdict = flush(&bench, "bad", events(&[("bad", "bad-last")], 0)).await;
        assert_eq!(verdict, Verdict::Ok);
        in_time("the last", || destination.arrived("bad-last") == 1).await;
        // Good records that were in flight when the first run ended may be in a stream twice.
        let arrived = destination.events();
        let mut bad = arrived.iter().filter(|(name, _)| name.starts_with("bad"));
        assert!(bad.all(|(_, times)| *times == 1));
        stop_in_time(bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn where_records_decide_a_reserve_is_filled_and_then_the_tags_seen_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(WIDE);
    destination.set_trouble("bad", MISSING);
    let keys = [BY_TAG[0].0, &[("delivery_stream", "{record.to}")]].concat();
    let bench = start(dir.path(), &destination, &keys);
    let mut accepted = 0;
    loop {
        let name = format!("good-{accepted}");
        let bad = many("bad", &format!("bad-{accepted}"), 1_000);
        let mixed = [bad, events(&[("good", &name)], 0)].concat();
        if flush(&bench, "mixed", mixed.into()).await == Verdict::Retry {
            break;
        }
        accepted += 1;
        assert!(accepted < 20, "{:?}", bench.spool.usage());
        in_time("the good event", || destination.arrived(&name) == 1).await;
    }
    assert!(bench.logged("chunks with its records are accepted until another 1 MB wait"));
    assert!(bench.logged("the reserve for it is full"));
    assert!(bench.logged("the tags that its records came with ('mixed')"));
    // 5 MB, and what was flushed before the last one was read.
    assert!((6..12).contains(&accepted), "{accepted}");
    // A tag without records for it.
    for n in 0..30 {
        let name = format!("other-{n}");
        let verdict = flush(&bench, "other", many("good", &name, 1_000)).await;
        assert_eq!(verdict, Verdict::Ok);
        in_time("its events", || destination.arrived(&name) == 1_000).await;
    }
    destination.set_trouble("bad", None);
    in_time("all of it", || {
        destination.arrived("bad") == accepted * 1_000
    })
    .await;
    in_time("the end", || bench.logged("accepts chunks again")).await;
    let last = events(&[("bad", "bad-last")], 0);
    assert_eq!(flush(&bench, "mixed", last).await, Verdict::Ok);
    in_time("the last", || destination.arrived("bad-last") == 1).await;
    assert!(destination.events().values().all(|times| *times == 1));
    stop_in_time(bench).await;
}

/// Events that are larger than their neighbours count as they are, and those that are smaller do, too.
#[tokio::test(start_paused = true)]
async fn what_waits_is_counted_by_the_size_of_a_targets_own_events() {
    for (good, bad) in [(7_000, 0), (0, 7_000)] {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(WIDE);
        destination.set_trouble("bad", MISSING);
        let keys = [BY_TAG[0].0, &[("delivery_stream", "{record.to}")]].concat();
        let bench = start(dir.path(), &destination, &keys);
        let all = [
            events(&[("good", "a"); 100], good),
            events(&[("bad", "b"); 100], bad),
        ];
        let is = all[1].len() as f64;
        assert_eq!(
            flush(&bench, "mixed", all.concat().into()).await,
            Verdict::Ok
        );
        let counted = || waiting(&bench, "ferry_target_waiting_bytes", "bad");
        let records = || waiting(&bench, "ferry_target_waiting_records", "bad");
        in_time("the bad events to wait", || records() == Some(100.0)).await;
        let counted = counted().unwrap();
        assert!(
            (is * 0.9..is * 1.3).contains(&counted),
            "{counted} and not {is}"
        );
        bench.feed.abort();
    }
}

/// Returns what a metric says about a target.
fn waiting(bench: &Bench, family: &str, target: &str) -> Option<f64> {
    let page = crate::metrics::text("f", &bench.pipeline.figures());
    let of = format!("target=\"{target}\"");
    let is = |line: &&str| line.starts_with(family) && line.contains(&of);
    let line = page.lines().find(is)?;
    line.rsplit_once(' ')?.1.parse().ok()
}

pub(super) fn figure(bench: &Bench, named: &str) -> f64 {
    let page = crate::metrics::text("f", &bench.pipeline.figures());
    let is = |line: &&str| line.split('{').next() == Some(named);
    let line = page
        .lines()
        .find(is)
        .unwrap_or_else(|| panic!("{named} in {page}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_unavailable_target_is_said_every_minute_and_its_recovery_once() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(WIDE);
    let bad: Vec<String> = (0..30).map(|n| format!("bad-{n:02}")).collect();
    bad.iter()
        .for_each(|name| destination.set_trouble(name, MISSING));
    let keys = [BY_TAG[0].0, &[("spool_limit", "1G")]].concat();
    let bench = start(dir.path(), &destination, &keys);
    for (name, count) in bad.iter().zip(1..) {
        let verdict = flush(&bench, name, many(name, name, count)).await;
        assert_eq!(verdict, Verdict::Ok);
    }
    // Before the first minute is over, however busy the machine is.
    until("a refusal of each", || {
        bad.iter().all(|name| destination.asked_for(name) > 0)
    })
    .await;
    in_steps(&bench, "all to wait", || {
        waiting(&bench, "ferry_target_waiting_records", "bad-29") == Some(30.0)
    })
    .await;
    in_steps(&bench, "all to be unavailable", || {
        figure(&bench, "ferry_targets_unavailable") == 30.0
    })
    .await;
    assert_eq!(
        waiting(&bench, "ferry_target_waiting_records", "bad-10"),
        Some(11.0)
    );
    assert_eq!(
        waiting(&bench, "ferry_target_waiting_records", "bad-09"),
        None,
        "twenty have a slot"
    );
    let said = |what: &str| {
        let lines = bench.lines.0.lock().unwrap();
        lines.iter().filter(|(_, line)| line.contains(what)).count()
    };
    in_time("the lines", || {
        said("more delivery streams are unavailable") == 2
    })
    .await;
    // The worst three, and the sum of all others.
    for name in &bad[27..] {
        let line = format!("delivery stream '{name}' is unavailable since 2");
        assert_eq!(said(&line), 2, "{name}");
    }
    assert_eq!(said("is unavailable since 2"), 6);
    assert_eq!(said("Z: Code: message; 30 records ("), 2);
    assert_eq!(said("of its target_limit (250 MB) (slot "), 6);
    assert_eq!(
        said("] 27 more delivery streams are unavailable; 378 records ("),
        2
    );

    bad.iter()
        .for_each(|name| destination.set_trouble(name, None));
    in_time("the records", || destination.events().len() == 465).await;
    in_time("the recovery of those with lines", || {
        said("no records wait for") == 3
    })
    .await;
    for name in &bad[27..] {
        let line = format!("no records wait for delivery stream '{name}' any more");
        assert_eq!(said(&line), 1, "{name}");
    }
    in_time("empty slots", || {
        figure(&bench, "ferry_targets_unavailable") == 0.0
    })
    .await;
    assert_eq!(
        waiting(&bench, "ferry_target_waiting_records", "bad-29"),
        None
    );
    stop_in_time(bench).await;
}
