//! Records for streams that do not exist.

use super::limits::{figure, flush};
use super::targets::{Destination, Trouble, WIDE, events, in_time, many, stop_in_time};
use super::*;
use crate::sink::outcome::Class;

const GONE: &str = "ResourceNotFoundException";
const REFUSES: Option<Trouble> = Some(Trouble::Refuses(Class::Configuration));

fn keys(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let to_any = [
        ("delivery_stream", "{tag}"),
        ("missing_target_after", "10s"),
    ];
    [FIREHOSE, &to_any, more].concat()
}

/// The values of `k` in the letters, each with the reason of its letter, and how often they are there.
fn lettered(dir: &Path) -> BTreeMap<(String, String), usize> {
    let file = dir.join("letters").join(dead_letter::FILE);
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut all = BTreeMap::new();
    for letter in text.lines().filter(|line| !line.is_empty()) {
        let letter: serde_json::Value = serde_json::from_str(letter).expect("a letter");
        assert_eq!(
            (&letter["reason"], &letter["target"]),
            (&"refused".into(), &"bad".into())
        );
        for line in letter["record"].as_str().expect("text").lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line");
            let event = line["k"].as_str().expect("a value").to_owned();
            let error = letter["error"].as_str().expect("a reason").to_owned();
            *all.entry((event, error)).or_default() += 1;
        }
    }
    all
}

#[tokio::test(start_paused = true)]
async fn records_for_a_missing_stream_become_letters_once_after_their_time() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::with_code(WIDE, GONE);
    destination.set_trouble("bad", REFUSES);
    let keys = keys(&[("missing_target", "dead_letter")]);
    let bench = start(dir.path(), &destination, &keys);
    for n in 0..3 {
        let events = many("bad", &format!("bad-{n}"), 300);
        assert_eq!(flush(&bench, "bad", events).await, Verdict::Ok);
    }
    let began = Instant::now();
    in_time("the refusal", || bench.logged("'bad' is unavailable")).await;
    while began.elapsed() < Duration::from_secs(8) {
        in_time("a moment", || true).await;
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!(lettered(dir.path()).is_empty(), "before its time");
    let settled = || bench.pipeline.metrics().records.get(Record::DeadLetter);
    in_time("the letters", || settled() == 900).await;
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    assert!(bench.logged("delivery stream 'bad' does not exist: its records become dead letters"));

    // Later ones follow at once, and a probe shows that it exists.
    assert_eq!(
        flush(&bench, "bad", many("bad", "late", 300)).await,
        Verdict::Ok
    );
    in_time("the letters", || settled() == 1_200).await;
    destination.set_trouble("bad", None);
    let mut sent = 0;
    while destination.arrived("now") == 0 {
        assert!(sent < 100, "it is asked whether it exists");
        let event = format!("now-{sent}");
        assert_eq!(
            flush(&bench, "bad", events(&[("bad", &event)], 0)).await,
            Verdict::Ok
        );
        sent += 1;
        let all = || destination.arrived("now") + settled() as usize == 1_200 + sent;
        in_time("the event", all).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    stop_in_time(bench).await;

    // Nothing of it comes again after a restart.
    let bench = start(dir.path(), &destination, &keys);
    stop_in_time(bench).await;
    let letters = lettered(dir.path());
    let arrived = destination.events();
    assert_eq!(letters.len() + arrived.len(), 1_200 + sent);
    for ((event, error), times) in letters {
        assert_eq!(times, 1, "{event}");
        assert!(error.starts_with(GONE), "{error}");
        assert!(!arrived.contains_key(&event), "{event}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_folder_lets_the_records_of_a_missing_stream_wait_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::with_code(WIDE, GONE);
    destination.set_trouble("bad", REFUSES);
    let bench = start(
        dir.path(),
        &destination,
        &keys(&[("missing_target", "dead_letter")]),
    );
    let file = dir.path().join("letters").join(dead_letter::FILE);
    std::fs::create_dir(&file).unwrap();
    for n in 0..30 {
        let events = many("bad", &format!("bad-{n}"), 30);
        assert_eq!(flush(&bench, "bad", events).await, Verdict::Ok);
    }
    in_time("a letter to wait", || {
        figure(&bench, "ferry_dead_letters_waiting") > 0.0
    })
    .await;
    for n in 0..30 {
        let good = format!("good-{n}");
        let event = events(&[("good", &good)], 0);
        assert_eq!(flush(&bench, "good", event).await, Verdict::Ok);
        in_time("the good event", || destination.arrived(&good) == 1).await;
        let waiting = figure(&bench, "ferry_dead_letters_waiting");
        assert!(waiting <= 30.0, "one chunk at a time: {waiting}");
    }
    in_time("the good chunks' end", || {
        bench.spool.usage().unfinished == 30
    })
    .await;
    std::fs::remove_dir(&file).unwrap();
    let settled = || bench.pipeline.metrics().records.get(Record::DeadLetter);
    in_time("all letters", || settled() == 900).await;
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    stop_in_time(bench).await;
    let letters = lettered(dir.path());
    assert!(letters.len() == 900 && letters.values().all(|times| *times == 1));
}

#[tokio::test(start_paused = true)]
async fn records_for_a_stream_that_is_refused_for_another_reason_are_held() {
    for more in [
        &[("missing_target", "dead_letter")][..],
        &[
            ("missing_target", "fallback"),
            ("missing_target_fallback", "rest"),
        ],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::with_code(WIDE, "AccessDeniedException");
        destination.set_trouble("bad", REFUSES);
        let bench = start(dir.path(), &destination, &keys(more));
        assert_eq!(
            flush(&bench, "bad", many("bad", "bad", 300)).await,
            Verdict::Ok
        );
        in_time("the lines", || {
            bench.logged("records are left") || bench.logged("300 records (")
        })
        .await;
        assert!(lettered(dir.path()).is_empty() && destination.events().is_empty());
        destination.set_trouble("bad", None);
        in_time("the records", || destination.taken_for("bad") == 300).await;
        stop_in_time(bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn records_for_a_missing_stream_go_to_the_fallback_until_it_exists() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::with_code(WIDE, GONE);
    destination.set_trouble("bad", REFUSES);
    destination.set_trouble("rest", Some(Trouble::Refuses(Class::Transient)));
    let keys = keys(&[
        ("missing_target", "fallback"),
        ("missing_target_fallback", "rest"),
    ]);
    let bench = start(dir.path(), &destination, &keys);
    for n in 0..4 {
        let events = many("bad", &format!("bad-{n}"), 500);
        assert_eq!(flush(&bench, "bad", events).await, Verdict::Ok);
    }
    // The trouble of the fallback is its own, and that of nobody else.
    in_time("the fallback's turn", || destination.asked_for("rest") >= 6).await;
    assert_eq!(
        flush(&bench, "good", events(&[("good", "good")], 0)).await,
        Verdict::Ok
    );
    in_time("the good event", || destination.arrived("good") == 1).await;
    destination.set_trouble("rest", None);
    in_time("all of it", || destination.taken_for("rest") == 2_000).await;
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    assert!(bench.logged("'bad' does not exist: its records are sent to delivery stream 'rest'"));
    // Later ones, too, until it exists.
    assert_eq!(
        flush(&bench, "bad", many("bad", "late", 500)).await,
        Verdict::Ok
    );
    in_time("the late ones", || destination.taken_for("rest") == 2_500).await;
    destination.set_trouble("bad", None);
    let mut sent = 0;
    while destination.taken_for("bad") == 0 {
        assert!(sent < 100, "it is asked whether it exists");
        let event = format!("now-{sent}");
        assert_eq!(
            flush(&bench, "bad", events(&[("bad", &event)], 0)).await,
            Verdict::Ok
        );
        sent += 1;
        in_time("the event", || destination.arrived("now") == sent).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    // Its answer is known only now.
    let exists = || bench.logged("delivery stream 'bad' exists: its records are sent to it");
    in_time("a word of it", exists).await;
    let to_rest = destination.taken_for("rest");
    assert_eq!(
        flush(&bench, "bad", many("bad", "last", 500)).await,
        Verdict::Ok
    );
    in_time("the last ones", || destination.arrived("last") == 500).await;
    assert_eq!(destination.taken_for("rest"), to_rest);
    assert!(destination.events().values().all(|times| *times == 1));
    assert!(lettered(dir.path()).is_empty());
    stop_in_time(bench).await;
}
