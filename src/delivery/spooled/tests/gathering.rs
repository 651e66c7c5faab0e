//! Many folders: their lines wait on disk, and become few objects.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;

use super::*;

/// A folder for each event, and little memory: a few hundred open objects fill it.
const FOLDERS: &[(&str, &str)] = &[
    ("url", "file:///nowhere"),
    ("compression", "none"),
    ("path", "{record.k}"),
    ("memory_limit", "8M"),
];

/// The names of `count` folders.
fn folders(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("f{n:05}")).collect()
}

impl Bench {
    /// Flushes `chunks` chunks with a line for each folder.
    async fn flush_all(&self, folders: &[String], chunks: usize) {
        let events: Vec<&str> = folders.iter().map(String::as_str).collect();
        for _ in 0..chunks {
            assert_eq!(self.flush(&events).await, Verdict::Ok);
        }
    }

    /// Waits until every line is in memory or on disk.
    async fn all_gathered(&self, lines: u64) {
        let encoded = || {
            let metrics = self.pipeline.metrics();
            metrics.bytes.get(crate::metrics::Stage::Encoded)
        };
        until("all lines", || encoded() >= lines * 15).await;
    }
}

/// Returns how many objects there are for each folder, and the number of their lines.
fn objects_by_folder(store: &Store) -> BTreeMap<String, (usize, usize)> {
    let mut folders: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for batch in store.batches() {
        let (folder, _) = batch.target.split_once('/').expect("a folder");
        let (objects, lines) = folders.entry(folder.to_owned()).or_default();
        *objects += 1;
        for body in &batch.records {
            let text = body.to_bytes();
            let own = format!("{{\"k\":\"{folder}\"}}");
            for line in std::str::from_utf8(&text).unwrap().lines() {
                assert_eq!(line, own, "a line is in its folder's object");
                *lines += 1;
            }
        }
    }
    folders
}

#[tokio::test]
async fn thousands_of_folders_get_one_object_each_however_little_memory_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let bench = start(dir.path(), &store, FOLDERS);
    let folders = folders(5_000);
    bench.flush_all(&folders, 10).await;
    bench.all_gathered(50_000).await;
    assert!(store.batches().is_empty(), "nothing is due yet");
    let held = bench.pipeline.metrics().spooled.get().unwrap_or_default();
    assert!(held < 8_000_000.0, "{held}");
    let spool = Arc::clone(&bench.spool);
    bench.stop().await;
    let all = objects_by_folder(&store);
    assert_eq!(all.len(), 5_000);
    assert!(all.values().all(|counts| *counts == (1, 10)));
    assert_eq!(spool.usage().unfinished, 0);
}

#[tokio::test(start_paused = true)]
async fn gathered_lines_are_sent_when_they_are_due() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let bench = start(dir.path(), &store, FOLDERS);
    let folders = folders(5_000);
    for round in 1..=2 {
        bench.flush_all(&folders, 3).await;
        bench.all_gathered(round * 15_000).await;
        let before = store.batches().len();
        tokio::time::advance(Duration::from_secs(290)).await;
        tokio::task::yield_now().await;
        assert_eq!(store.batches().len(), before, "nothing is due yet");
        tokio::time::advance(Duration::from_secs(11)).await;
        let of_round = usize::try_from(round).unwrap() * 5_000;
        until("an object for each folder", || {
            store.batches().len() == of_round
        })
        .await;
        until("the end of the chunks", || {
            bench.spool.usage().unfinished == 0
        })
        .await;
    }
    let all = objects_by_folder(&store);
    assert!(all.values().all(|counts| *counts == (2, 6)));
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pass_goes_on_as_memory_allows_although_nothing_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let bench = start(dir.path(), &store, FOLDERS);
    bench.flush_all(&folders(5_000), 3).await;
    bench.all_gathered(15_000).await;
    tokio::time::advance(Duration::from_secs(301)).await;
    // A step makes 64 objects, of some 5 KB each.
    let held = || bench.pipeline.metrics().spooled.get().unwrap_or_default();
    until("memory full of objects", || held() > 2_500_000.0).await;
    bench.feed.abort();
}

/// What two runs stored: the second puts an object again under its name if it does not know that the first did.
fn stored_by(runs: [&Store; 2]) -> Vec<String> {
    let mut objects = BTreeMap::new();
    for batch in runs.into_iter().flat_map(Store::batches) {
        let body = batch
            .records
            .iter()
            .flat_map(|body| body.to_bytes().to_vec());
        let text = String::from_utf8(body.collect()).expect("plain text");
        if let Some(before) = objects.insert(batch.target.to_string(), text.clone()) {
            assert_eq!(before, text, "{} has one content", batch.target);
        }
    }
    let mut lines: Vec<String> = objects
        .values()
        .flat_map(|text| text.lines())
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_host_killed_while_gathered_lines_are_sent_loses_none_and_sends_none_twice() {
    for accepted in [0, 1, 700] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(OBJECT, accepted);
        let bench = start(dir.path(), &store, FOLDERS);
        let folders = folders(5_000);
        bench.flush_all(&folders, 4).await;
        bench.all_gathered(20_000).await;
        assert_eq!(unnamed_files(&dir.path().join("spool")).len(), 1);
        bench.pipeline.drain();
        store.reached(accepted + 1).await;
        let image = bench.crash_image();
        bench.feed.abort();
        let after = Store::new(OBJECT, MANY);
        let bench = start(image.path(), &after, FOLDERS);
        bench.stop().await;
        let mut expected: Vec<String> = Vec::new();
        for folder in &folders {
            expected.extend(vec![format!("{{\"k\":\"{folder}\"}}"); 4]);
        }
        assert_eq!(stored_by([&store, &after]), expected, "{accepted}");
    }
}

/// This process's files without a name in `dir`.
fn unnamed_files(dir: &Path) -> Vec<std::fs::File> {
    let fds = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(Result::unwrap);
    let file = |fd: std::fs::DirEntry| {
        let path = std::fs::read_link(fd.path()).ok()?;
        let is_unnamed = path.starts_with(dir) && path.to_string_lossy().ends_with("(deleted)");
        let open = || std::fs::File::options().write(true).open(fd.path());
        is_unnamed.then(|| open().unwrap())
    };
    fds.filter_map(file).collect()
}

#[tokio::test]
async fn gathered_lines_that_cannot_be_read_back_are_read_from_the_spool_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let bench = start(dir.path(), &store, FOLDERS);
    let folders = folders(5_000);
    bench.flush_all(&folders, 4).await;
    bench.all_gathered(20_000).await;
    let files = unnamed_files(&dir.path().join("spool"));
    assert_eq!(files.len(), 1);
    // In the middle, so that some objects are made.
    let middle = files[0].metadata().unwrap().len() / 2;
    files[0].write_all_at(&[0xff; 4_000], middle).unwrap();
    let (spool, lines) = (Arc::clone(&bench.spool), bench.lines.clone());
    bench.stop().await;
    let all = objects_by_folder(&store);
    assert_eq!(all.len(), 5_000);
    assert!(all.values().all(|(_, lines)| *lines == 4));
    assert_eq!(spool.usage().unfinished, 0);
    let said = lines.0.lock().unwrap();
    assert!(
        said.iter()
            .any(|(_, line)| line.contains("read from the spool again"))
    );
}

#[tokio::test]
async fn without_a_disk_to_gather_on_small_objects_are_sent() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let gathers_at = dir.path().join("nowhere");
    let bench = start_gathering_at(dir.path(), &store, FOLDERS, &gathers_at);
    let folders = folders(5_000);
    bench.flush_all(&folders, 4).await;
    until("objects that are sealed for memory", || {
        !store.batches().is_empty()
    })
    .await;
    assert!(bench.logged("are sent in small objects"));
    let spool = Arc::clone(&bench.spool);
    bench.stop().await;
    let all = objects_by_folder(&store);
    assert!(all.len() == 5_000 && all.values().all(|(_, lines)| *lines == 4));
    assert_eq!(spool.usage().unfinished, 0);
}
