//! Objects that a process had begun when it ended.

use super::targets::{Destination, Trouble, events, in_time, keep, stop_in_time};
use super::*;
use crate::sink::outcome::Class;

/// Segments of a megabyte, and one object for all that is flushed.
const WHOLE: &[(&str, &str)] = &[
    ("url", "file:///nowhere"),
    ("compression", "none"),
    ("path", "all"),
    ("spool_limit", "16M"),
    ("blob_max_size", "20M"),
    ("blob_max_age", "1d"),
];

/// Leaves behind the spool of a process that ended while it put an object with the events `a`, `large` and `b`, of which
/// `a` is in another segment than `b`. Returns it with the name of the first segment's file, and what was stored.
async fn left_in_two_segments(trouble: Trouble) -> (TempDir, PathBuf, Arc<Destination>) {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    destination.set_trouble("all", Some(trouble));
    let bench = start(dir.path(), &destination, WHOLE);
    for (event, padding) in [("a", 0), ("large", 1_200_000), ("b", 0)] {
        keep(&bench, events(&[("all", event)], padding)).await;
    }
    bench.pipeline.drain();
    in_time("a request", || destination.asked_for("all") > 0).await;
    let image = bench.crash_image();
    bench.feed.abort();
    let all = segments(image.path());
    assert!(all.len() > 1, "{all:?}");
    let name = all[0].file_name().unwrap().into();
    (image, name, destination.copied())
}

fn hide(dir: &Path, name: &Path) {
    std::fs::rename(dir.join("spool").join(name), dir.join("aside")).unwrap();
}

fn put_back(dir: &Path, name: &Path) {
    std::fs::rename(dir.join("aside"), dir.join("spool").join(name)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn events_of_a_started_object_in_a_file_that_comes_back_later_are_delivered_once() {
    for trouble in [Trouble::Hangs, Trouble::Loses] {
        let (image, away, destination) = left_in_two_segments(trouble).await;
        hide(image.path(), &away);
        let before = destination.events();
        // It is not known yet whether the object is stored.
        destination.set_trouble("all", Some(Trouble::Refuses(Class::Transient)));
        let bench = start(image.path(), &destination, WHOLE);
        in_time("a word of it", || bench.logged("is missing from the spool")).await;
        assert_eq!(destination.events(), before);
        destination.set_trouble("all", None);
        bench.pipeline.drain();
        in_time("the others", || destination.arrived("b") == 1).await;
        stop_in_time(bench).await;
        let without = [("b", 1), ("large", 1)].map(|(k, times)| (k.to_owned(), times));
        match trouble {
            Trouble::Loses => assert_eq!(destination.events(), before),
            _ => assert_eq!(destination.events(), without.into()),
        }

        put_back(image.path(), &away);
        let bench = start(image.path(), &destination, WHOLE);
        stop_in_time(bench).await;
        let all = [("a", 1), ("b", 1), ("large", 1)].map(|(k, times)| (k.to_owned(), times));
        assert_eq!(destination.events(), all.into(), "{trouble:?}");
    }
}

#[tokio::test]
async fn a_chunk_of_a_started_object_that_cannot_be_read_is_reported_and_not_settled() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let bench = start(dir.path(), &store, BLOB);
    for event in ["aaaaaaaaaa", "b"] {
        assert_eq!(bench.flush(&[event]).await, Verdict::Ok);
    }
    bench.pipeline.drain();
    store.reached(1).await;
    let image = bench.crash_image();
    bench.feed.abort();

    let flip = |dir: &Path| {
        let segment = segments(dir).remove(0);
        let mut bytes = std::fs::read(&segment).unwrap();
        let is_it = |window: &[u8]| window.eq_ignore_ascii_case(b"aaaaaaaaaa");
        let at = bytes.windows(10).position(is_it).unwrap();
        bytes[at] ^= b' ';
        std::fs::write(&segment, bytes).unwrap();
    };
    let store = Store::new(OBJECT, MANY);
    let bench = start(image.path(), &store, BLOB);
    flip(image.path());
    // Nothing can be written there.
    let quarantine = image.path().join("spool/quarantine");
    std::fs::write(&quarantine, b"").unwrap();
    store.reached(1).await;
    until("its end", || bench.spool.usage().unfinished == 0).await;
    assert_eq!(store.lines(), lines(&["b"]));
    let details = bench.pipeline.details();
    assert!(details.contains("1 chunks were damaged"), "{details}");
    let image = bench.crash_image();
    bench.feed.abort();

    // The disk returns it after all.
    std::fs::remove_file(image.path().join("spool/quarantine")).unwrap();
    flip(image.path());
    start(image.path(), &store, BLOB).stop().await;
    assert_eq!(store.lines(), lines(&["aaaaaaaaaa", "b"]));
}

/// The store has all of it, and what is left of it after damage must neither replace it nor settle less than that.
#[tokio::test(start_paused = true)]
async fn an_object_that_is_stored_is_whole_whatever_is_left_of_it_in_the_spool() {
    let (image, _, destination) = left_in_two_segments(Trouble::Loses).await;
    let before = destination.events();
    assert_eq!(before.len(), 3, "{before:?}");
    destination.set_trouble("all", None);
    // Within the padding of the large event.
    let all = segments(image.path()).into_iter();
    let file = all
        .max_by_key(|file| std::fs::metadata(file).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let is_padding = |run: &[u8]| run[0] != 0 && run.iter().all(|byte| *byte == run[0]);
    let at = bytes.windows(64).position(is_padding).unwrap();
    bytes[at + 1_000] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let bench = start(image.path(), &destination, WHOLE);
    in_time("its end", || bench.spool.usage().unfinished == 0).await;
    stop_in_time(bench).await;
    assert_eq!(destination.events(), before);
    assert!(!file.exists(), "all of it is settled");
}

/// Objects of some folders, one a chunk.
const APART: &[(&str, &str)] = &[
    ("url", "file:///nowhere"),
    ("compression", "none"),
    ("path", "{record.to}"),
    ("blob_max_size", "10K"),
    ("memory_limit", "16M"),
    ("concurrency", "16"),
];

/// Leaves behind the spool of a process that ended while it put an object of so many kilobytes for each of `folders`.
async fn left_with_objects(folders: &[(&str, usize)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    for (folder, _) in folders {
        destination.set_trouble(folder, Some(Trouble::Hangs));
    }
    let more = [("memory_limit", "64M"), ("concurrency", "64")];
    let bench = start(dir.path(), &destination, &[APART, &more].concat());
    for (n, (folder, kilobytes)) in folders.iter().enumerate() {
        let name = format!("{folder}-{n}");
        keep(&bench, events(&[(folder, &name)], kilobytes * 1_000)).await;
    }
    let asked = || -> usize {
        let mut names: Vec<&str> = folders.iter().map(|(folder, _)| *folder).collect();
        names.dedup();
        names.iter().map(|name| destination.asked_for(name)).sum()
    };
    until("all requests", || asked() == folders.len()).await;
    let image = bench.crash_image();
    bench.feed.abort();
    image
}

/// A store that never answers requests for the folder `hangs`.
struct FolderHangs(Arc<Store>);

impl Sink for FolderHangs {
    fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape> {
        self.0.shape(target)
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        match batch.target.starts_with("hangs/") {
            true => Box::pin(std::future::pending()),
            false => self.0.send(batch),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn started_objects_of_a_healthy_folder_do_not_wait_for_those_of_a_folder_that_hangs() {
    let mut folders = vec![("hangs", 1_000); 9];
    folders.push(("well", 10));
    let image = left_with_objects(&folders).await;
    let store = Store::new(OBJECT, MANY);
    let bench = start(
        image.path(),
        &Arc::new(FolderHangs(Arc::clone(&store))),
        APART,
    );
    in_time("the healthy folder's object", || {
        !store.batches().is_empty()
    })
    .await;
    assert!(store.batches()[0].target.starts_with("well/"));
    bench.feed.abort();
}

#[tokio::test(start_paused = true)]
async fn started_objects_are_rebuilt_a_few_at_a_time() {
    let image = left_with_objects(&[("well", 400); 20]).await;
    let store = Store::new(OBJECT, 0);
    let more = [("concurrency", "64")];
    let bench = start(image.path(), &store, &[APART, &more].concat());
    // A sixteenth of the memory is a megabyte. The clock stands still.
    for done in 0..=20 {
        let reached = || store.batches().len();
        until("more of them", || reached() >= (done + 3).min(20)).await;
        assert!(reached() <= done + 3, "{} of {done}", reached());
        store.permits.add_permits(1);
        until("its end", || {
            bench.spool.usage().unfinished == 19_u64.saturating_sub(done as u64)
        })
        .await;
    }
    stop_in_time(bench).await;
    assert_eq!(store.lines().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_started_object_that_cannot_be_read_is_tried_less_and_less_often_and_holds_up_no_probe() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    let more = [("path", "{record.to}"), ("spool_limit", "32M")];
    let keys = [WHOLE, &more, &[("blob_max_age", "1s")]].concat();
    destination.set_trouble("bad", Some(Trouble::Hangs));
    let bench = start(dir.path(), &destination, &keys);
    keep(&bench, events(&[("bad", "first")], 1_200_000)).await;
    in_time("a request", || destination.asked_for("bad") > 0).await;
    let image = bench.crash_image();
    bench.feed.abort();

    // Larger than a segment may be from now on, so that it is not continued and not open.
    let keys = [&keys[..], &[("spool_limit", "16M")]].concat();
    let bench = start(image.path(), &destination, &keys);
    let segment = segments(image.path()).remove(0);
    let aside = image.path().join("aside");
    std::fs::rename(&segment, &aside).unwrap();
    std::fs::create_dir(&segment).unwrap();
    let errors = || bench.pipeline.metrics().spool_errors.get();
    in_time("an error", || errors() > 0).await;
    let began = Instant::now();
    in_time("more of them", || errors() > 12).await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(45), "{took:?}");
    std::fs::remove_dir(&segment).unwrap();
    std::fs::rename(&aside, &segment).unwrap();
    destination.set_trouble("bad", None);
    in_time("the event", || destination.arrived("first") == 1).await;
    stop_in_time(bench).await;
}
