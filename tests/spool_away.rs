//! Removing a spool's files and folder while the plugin is running.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ferry::ids::Verdict;
use ferry_harness::ledger::verify_objects;

use crate::support::plugin::{Plugin, chunk};

/// The time limit for an expected event.
const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `done`.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "timed out: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn remove_segments(spool: &Path) {
    for entry in fs::read_dir(spool).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "seg") {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn whatever_is_removed_every_accepted_record_arrives_once() {
    let place = tempfile::tempdir().unwrap();
    let (spool, aside) = (place.path().join("spool"), place.path().join("aside"));
    let objects = place.path().join("objects");
    fs::create_dir(&objects).unwrap();
    let url = format!("file://{}", objects.display());
    let plugin = Plugin::start(&[("url", &url), ("spool_dir", spool.to_str().unwrap())]);
    let mut next = 0;
    let mut more = || {
        next += 100;
        chunk(next - 100..next)
    };
    plugin.deliver("app", &more());

    // Without any flush the plugin detects this by itself.
    fs::remove_file(spool.join("lock")).unwrap();
    until("the lock is recreated", || spool.join("lock").exists());
    remove_segments(&spool);
    until("the segment is restored", || {
        plugin.log().contains("was written again under its name")
    });

    remove_segments(&spool);
    assert_eq!(plugin.flush("app", &more()), Verdict::Ok);

    fs::rename(&spool, &aside).unwrap();
    let kept = more();
    assert_eq!(plugin.flush("app", &kept), Verdict::Retry);
    assert!(
        plugin.log().contains("no longer exists"),
        "{}",
        plugin.log()
    );
    fs::rename(&aside, &spool).unwrap();
    plugin.deliver("app", &kept);

    fs::remove_dir_all(&spool).unwrap();
    assert_eq!(plugin.flush("app", &more()), Verdict::Ok);
    drop(plugin);
    let found = verify_objects(&objects, "seq")
        .unwrap()
        .report(Some(next as u64));
    assert!(found.is_exact(), "{found}");
}
