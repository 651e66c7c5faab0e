//! Chunks at which an earlier process ended.

use super::*;
use crate::delivery::worker::{MIN_UPTIME, SUSPECTS_TURN};
use crate::spool::scan::{Check, survey};

/// Leaves behind the spool of a process that ended while it worked on the chunks of `ends`, which have these events,
/// after it worked on others.
async fn left_behind(dir: &Path, events: &[&str], ends: &[(&str, Work, bool)]) {
    // A store that accepts nothing, and a spool of its own: its threads may run on for a moment.
    let (store, before) = (Store::new(OBJECT, 0), tempfile::tempdir().unwrap());
    let bench = start(before.path(), &store, BLOB);
    for event in events {
        assert_eq!(bench.flush(&[event]).await, Verdict::Ok);
    }
    copy(before.path(), dir).unwrap();
    bench.feed.abort();
    let _ = std::fs::remove_file(dir.join("spool/suspects"));
    for (event, work, alone) in ends {
        let (spool, _) = open(dir);
        let mut after = None;
        while let Some((chunk, _)) = spool.next(after).unwrap() {
            after = Some(chunk);
            let data = spool.read(chunk).unwrap().data;
            if data.ends_with(event.as_bytes()) {
                spool.begin_work(chunk, *work, *alone);
            }
        }
    }
}

pub(super) fn open(dir: &Path) -> (Arc<Spool>, History) {
    let disk = LocalDisk::open(&dir.join("spool")).unwrap();
    let options = Options {
        limit: 1_000_000_000,
        segment_bytes: None,
    };
    let (spool, _) = Spool::open(Arc::new(disk), options).unwrap();
    // Waits until the history is known.
    spool.next(None).unwrap();
    let history = spool.history().now_or_never().unwrap();
    (spool, history)
}

/// Returns what the file records: whether a chunk is being worked on, and the number of suspects.
fn told(dir: &Path) -> (bool, usize) {
    let disk = LocalDisk::look(&dir.join("spool")).unwrap();
    let survey = survey(&disk, Check::All).unwrap();
    let (under_way, suspects) = survey.suspected();
    (under_way.is_some(), suspects.len())
}

/// An object for each event: each has its own folder.
const APART: &[(&str, &str)] = &[
    ("url", "file:///nowhere"),
    ("compression", "none"),
    ("object_name_prefix", "${k}"),
];

#[tokio::test(start_paused = true)]
async fn a_suspect_is_tried_after_all_others_and_acquitted() {
    let dir = tempfile::tempdir().unwrap();
    let ends = [("a", Work::Deliver, false)];
    left_behind(dir.path(), &["a", "b", "c"], &ends).await;
    assert!(told(dir.path()).0);
    let store = Store::new(STREAM, MANY);
    let bench = start(dir.path(), &store, FIREHOSE);
    assert!(bench.logged("an earlier run ended while chunk"));
    until("the others", || store.lines() == lines(&["b", "c"])).await;
    tokio::time::advance(2 * MIN_UPTIME).await;
    until("all of them", || store.lines().len() == 3).await;
    until("a rest", || told(dir.path()) == (false, 0)).await;
    bench.stop().await;
    let last = store.batches().pop().unwrap().records.pop().unwrap();
    assert_eq!(last.to_bytes().to_vec(), b"{\"k\":\"a\"}\n");
    assert_eq!(told(dir.path()), (false, 0));
}

/// If others were read first, and many of them ended the process, no run would ever reach a trial.
#[tokio::test]
async fn with_several_suspects_nothing_new_is_read_before_they_are_tried() {
    let dir = tempfile::tempdir().unwrap();
    let ends = ["a", "b", "c"].map(|event| (event, Work::Deliver, false));
    left_behind(dir.path(), &["a", "b", "c", "d"], &ends).await;
    assert_eq!(
        told(dir.path()),
        (true, 2),
        "the third is the one that was at work"
    );
    let store = Store::new(STREAM, MANY);
    let began = Instant::now();
    let bench = start(dir.path(), &store, FIREHOSE);
    store.reached(1).await;
    assert!(began.elapsed() >= MIN_UPTIME);
    bench.stop().await;
    assert_eq!(store.lines(), lines(&["a", "b", "c", "d"]));
    assert_eq!(told(dir.path()), (false, 0));
}

#[tokio::test]
async fn a_stop_leaves_no_suspect_behind() {
    let dir = tempfile::tempdir().unwrap();
    left_behind(dir.path(), &["a", "b"], &[("a", Work::Deliver, false)]).await;
    let store = Store::new(STREAM, MANY);
    let bench = start(dir.path(), &store, FIREHOSE);
    bench.stop().await;
    assert_eq!(store.lines(), lines(&["a", "b"]));
    assert_eq!(told(dir.path()), (false, 0));
}

#[tokio::test]
async fn a_chunk_at_which_two_processes_ended_is_set_aside_and_all_others_are_delivered() {
    for (shape, keys) in [(STREAM, FIREHOSE), (OBJECT, BLOB)] {
        let dir = tempfile::tempdir().unwrap();
        let ends = [("b", Work::Deliver, false), ("b", Work::Deliver, true)];
        left_behind(dir.path(), &["a", "b", "c"], &ends).await;
        let store = Store::new(shape, MANY);
        let bench = start(dir.path(), &store, keys);
        let pipeline = Arc::clone(&bench.pipeline);
        let lines_said = bench.lines.clone();
        bench.stop().await;
        assert_eq!(store.lines(), lines(&["a", "c"]));
        let logged = lines_said.0.lock().unwrap();
        let logged = logged.iter().find(|(_, line)| line.contains("set aside"));
        assert!(matches!(logged, Some((Level::Error, _))), "{logged:?}");
        let quarantine = std::fs::read_dir(dir.path().join("spool/quarantine")).unwrap();
        let kept: Vec<_> = quarantine.map(|file| file.unwrap().path()).collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert!(std::fs::read(&kept[0]).unwrap().ends_with(&chunk(&["b"])));
        let details = pipeline.details();
        assert!(details.contains("of 1 of them are in"), "{details}");
        drop(pipeline);
        assert_eq!(open(dir.path()).0.usage().unfinished, 0);
    }
}

#[tokio::test]
async fn a_started_object_is_rebuilt_without_the_chunk_that_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let bench = start(dir.path(), &store, BLOB);
    for event in ["a", "b"] {
        bench.flush(&[event]).await;
    }
    bench.pipeline.drain();
    store.reached(1).await;
    let image = bench.crash_image();
    bench.feed.abort();
    let _ = std::fs::remove_file(image.path().join("spool/suspects"));
    for alone in [false, true] {
        let (spool, history) = open(image.path());
        assert_eq!(history.pending.len(), 1);
        let (first, _) = spool.next(None).unwrap().unwrap();
        spool.begin_work(first, Work::Rebuild, alone);
    }
    let store = Store::new(OBJECT, MANY);
    start(image.path(), &store, BLOB).stop().await;
    assert_eq!(store.lines(), lines(&["b"]));
    let (spool, history) = open(image.path());
    assert_eq!(spool.usage().unfinished, 0);
    assert_eq!(history.pending.len(), 0);
}

#[tokio::test]
async fn a_suspect_of_a_started_object_is_acquitted_when_that_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let image = killed_while_an_object_is_put(dir.path(), &store, BLOB, &["a"]).await;
    let _ = std::fs::remove_file(image.path().join("spool/suspects"));
    let (spool, _) = open(image.path());
    let (chunk, _) = spool.next(None).unwrap().unwrap();
    spool.begin_work(chunk, Work::Rebuild, false);
    drop(spool);
    let store = Store::new(OBJECT, 0);
    let bench = start(image.path(), &store, BLOB);
    store.reached(1).await;
    // It is not stored yet, and so the chunk is in the spool.
    until("its acquittal", || told(image.path()) == (false, 0)).await;
    assert!(bench.spool.holds(chunk));
    bench.feed.abort();
}

#[tokio::test]
async fn no_chunk_is_blamed_while_waiting_for_the_destination() {
    for (shape, keys) in [(STREAM, FIREHOSE), (OBJECT, APART)] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(shape, 0);
        let bench = start(dir.path(), &store, keys);
        assert_eq!(bench.flush(&["a"]).await, Verdict::Ok);
        let file = dir.path().join("spool/suspects");
        until("work", || file.exists()).await;
        until("a rest", || told(dir.path()) == (false, 0)).await;
        bench.feed.abort();
    }
}

#[tokio::test]
async fn outputs_of_a_process_take_turns_at_their_suspects() {
    let dir = tempfile::tempdir().unwrap();
    left_behind(dir.path(), &["a", "b"], &[("b", Work::Deliver, false)]).await;
    let turn = SUSPECTS_TURN.acquire().await.unwrap();
    let store = Store::new(STREAM, MANY);
    let bench = start(dir.path(), &store, FIREHOSE);
    let began = Instant::now();
    until("its time", || began.elapsed() > 2 * MIN_UPTIME).await;
    until("the other", || store.lines() == lines(&["a"])).await;
    assert_eq!(told(dir.path()), (false, 1), "it is not begun");
    drop(turn);
    bench.stop().await;
    assert_eq!(store.lines(), lines(&["a", "b"]));
    assert_eq!(told(dir.path()), (false, 0));
}
