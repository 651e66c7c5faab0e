//! Events whose dead letters cannot be kept yet.

use super::*;
use crate::metrics::Stage;

/// Blocks a folder: the name of its file is taken by a folder.
fn block(dir: &Path) -> PathBuf {
    let file = dir.join("letters").join(dead_letter::FILE);
    std::fs::create_dir(&file).unwrap();
    file
}

/// A chunk of a good event, a malformed one of eleven bytes, and a good one.
fn mixed(n: usize) -> Bytes {
    let mut chunk = chunk(&[&format!("{n:04} before")]).to_vec();
    // An invalid time.
    chunk.extend_from_slice(b"\x92\xcb\x7f\xf8\0\0\0\0\0\0\x80");
    chunk.extend_from_slice(&super::chunk(&[&format!("{n:04} after")]));
    chunk.into()
}

fn good(n: usize) -> Vec<String> {
    let events = (0..n).flat_map(|n| [format!("{n:04} after"), format!("{n:04} before")]);
    let events: Vec<String> = events.collect();
    lines(&events.iter().map(String::as_str).collect::<Vec<_>>())
}

fn waiting(bench: &Bench) -> f64 {
    let metrics = bench.pipeline.metrics();
    metrics.waiting_letters.get().unwrap_or_default()
}

fn delivered(bench: &Bench) -> u64 {
    bench.pipeline.metrics().records.get(Record::Delivered)
}

/// Objects are sealed at once, or soon.
const OBJECTS: &[(&str, &str)] = &[
    ("url", "file:///nowhere"),
    ("compression", "none"),
    ("blob_max_age", "1s"),
];
const KINDS: [(Shape, &[(&str, &str)]); 2] = [(STREAM, FIREHOSE), (OBJECT, OBJECTS)];

#[tokio::test]
async fn events_whose_letters_cannot_be_kept_hold_back_neither_neighbours_nor_what_comes_after() {
    for (shape, keys) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(shape, MANY);
        let bench = start(dir.path(), &store, keys);
        let file = block(dir.path());
        // More chunks than may wait for a retry.
        let chunks = MAX_RETRYING + 10;
        for n in 0..chunks {
            let verdict = bench.pipeline.flush(b"app", mixed(n)).await;
            assert_eq!(verdict, Verdict::Ok);
        }
        let all = 2 * chunks as u64;
        until("their neighbours", || delivered(&bench) >= all).await;
        assert_eq!(store.lines(), good(chunks));
        assert_eq!(waiting(&bench), chunks as f64);
        assert_eq!(bench.spool.usage().unfinished as usize, chunks);
        assert!(bench.logged("the affected records wait, all others are delivered"));

        // Nothing is read or encoded for them while there is no room.
        let encoded = || bench.pipeline.metrics().bytes.get(Stage::Encoded);
        let before = encoded();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(encoded(), before);

        std::fs::remove_dir(&file).unwrap();
        until("all letters", || letters(dir.path()) >= chunks).await;
        let spool = Arc::clone(&bench.spool);
        until("the end of all", || spool.usage().unfinished == 0).await;
        assert_eq!(waiting(&bench), 0.0);
        bench.stop().await;
        assert_eq!(letters(dir.path()), chunks, "each once");
        assert_eq!(store.lines(), good(chunks), "each once");
    }
}

#[tokio::test]
async fn neighbours_of_events_that_wait_for_letters_are_not_sent_again_after_a_restart() {
    for (shape, keys) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(shape, MANY);
        let bench = start(dir.path(), &store, keys);
        block(dir.path());
        let verdict = bench.pipeline.flush(b"app", mixed(0)).await;
        assert_eq!(verdict, Verdict::Ok);
        until("the neighbours", || delivered(&bench) == 2).await;
        let (spool, logged) = (Arc::clone(&bench.spool), bench.lines.clone());
        bench.stop().await;
        let stays = |line: &(Level, String)| line.1.contains("1 records of 1 chunks stay");
        assert!(logged.0.lock().unwrap().iter().any(stays));
        assert_eq!(spool.usage().unfinished, 1);
        drop(spool);

        let after = Store::new(shape, MANY);
        let bench = start(dir.path(), &after, keys);
        until("the letter that waits", || waiting(&bench) == 1.0).await;
        std::fs::remove_dir(dir.path().join("letters").join(dead_letter::FILE)).unwrap();
        bench.stop().await;
        assert_eq!(letters(dir.path()), 1);
        assert!(after.batches().is_empty(), "{:?}", after.lines());
    }
}

/// Refuses records that contain `bad`, one by one, and accepts all others.
struct RefusesBad {
    store: Arc<Store>,
    refused: AtomicUsize,
}

impl Sink for RefusesBad {
    fn shape<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Shape> {
        self.store.shape(target)
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let text = |body: &crate::buffers::Payload| body.to_bytes();
            let bad = |body| String::from_utf8_lossy(&text(body)).contains("bad");
            let refused: Vec<bool> = batch.records.iter().map(bad).collect();
            let count = refused.iter().filter(|bad| **bad).count();
            self.refused.fetch_add(count, Ordering::Relaxed);
            let (mut good, mut which) = (batch.copied(), refused.iter());
            good.records.retain(|_| !which.next().unwrap());
            if !good.records.is_empty() {
                self.store.send(good).await;
            }
            let fault = Arc::new(Fault {
                class: Class::Record,
                code: "NoGood".into(),
                message: "no".into(),
                request_id: Some("r-7".into()),
            });
            let outcome = |bad: &bool| match bad {
                true => Outcome::Rejected(Arc::clone(&fault)),
                false => Outcome::Delivered,
            };
            refused.iter().map(outcome).collect()
        })
    }
}

#[tokio::test]
async fn refused_events_without_room_for_letters_wait_alone_and_are_not_sent_again() {
    for (shape, keys) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(shape, MANY);
        let refuses = Arc::new(RefusesBad {
            store: Arc::clone(&store),
            refused: AtomicUsize::new(0),
        });
        let mut keys = keys.to_vec();
        if shape == OBJECT {
            keys.push(("path", "{record.k}"));
        }
        let bench = start(dir.path(), &refuses, &keys);
        let file = block(dir.path());
        assert_eq!(bench.flush(&["a", "bad", "b"]).await, Verdict::Ok);
        until("the good ones", || store.lines().len() == 2).await;
        until("the refused one", || waiting(&bench) == 1.0).await;
        assert_eq!(bench.flush(&["c"]).await, Verdict::Ok);
        until("the next chunk", || delivered(&bench) == 3).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(refuses.refused.load(Ordering::Relaxed), 1, "asked once");
        let held = bench.pipeline.metrics().spooled.get().unwrap();
        assert!(held < 1_000.0, "{held} bytes are held");

        std::fs::remove_dir(&file).unwrap();
        until("its letter", || letters(dir.path()) == 1).await;
        let spool = Arc::clone(&bench.spool);
        until("the end of all", || spool.usage().unfinished == 0).await;
        bench.stop().await;
        let text = std::fs::read_to_string(&file).unwrap();
        let letter: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(letter["reason"], "refused");
        assert_eq!(letter["error"], "NoGood: no");
        assert_eq!(letter["request_id"], "r-7");
        assert_eq!(letter["tag"], "app");
        assert_eq!(letter["record"], "{\"k\":\"bad\"}\n");
        assert_eq!(refuses.refused.load(Ordering::Relaxed), 1);
        assert_eq!(store.lines(), lines(&["a", "b", "c"]));
    }
}

/// An object in flight when a host is killed is rebuilt, and may be refused then.
#[tokio::test]
async fn a_started_object_that_is_refused_keeps_its_events_until_they_are_letters() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, 0);
    let events = ["bad one", "bad two"];
    let image = killed_while_an_object_is_put(dir.path(), &store, BLOB, &events).await;
    let refuses = Arc::new(RefusesBad {
        store: Store::new(OBJECT, MANY),
        refused: AtomicUsize::new(0),
    });
    let file = block(image.path());
    let bench = start(image.path(), &refuses, OBJECTS);
    until("its events", || waiting(&bench) == 2.0).await;
    let spool = Arc::clone(&bench.spool);
    bench.stop().await;
    assert_eq!(spool.usage().unfinished, 1);
    drop(spool);

    std::fs::remove_dir(&file).unwrap();
    let bench = start(image.path(), &refuses, OBJECTS);
    let spool = Arc::clone(&bench.spool);
    until("the end of all", || spool.usage().unfinished == 0).await;
    bench.stop().await;
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(events.iter().all(|event| text.contains(event)), "{text}");
}

#[tokio::test]
async fn a_full_folder_is_logged_and_takes_what_fits_once_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, MANY);
    // The limit of the folder is a million bytes.
    let aside = dir.path().join("letters/dead-letters-before.ndjson");
    std::fs::create_dir_all(aside.parent().unwrap()).unwrap();
    std::fs::write(&aside, "x".repeat(999_990)).unwrap();
    let bench = start(dir.path(), &store, FIREHOSE);
    for n in 0..3 {
        let verdict = bench.pipeline.flush(b"app", mixed(n)).await;
        assert_eq!(verdict, Verdict::Ok);
    }
    until("their neighbours", || store.lines().len() == 6).await;
    until("what waits", || waiting(&bench) == 3.0).await;
    assert!(bench.logged("raise dead_letter_limit"));
    // Room for two of them, of about 180 bytes each.
    std::fs::write(&aside, "x".repeat(999_550)).unwrap();
    until("two letters", || letters(dir.path()) == 2).await;
    until("the one that waits", || waiting(&bench) == 1.0).await;
    std::fs::remove_file(&aside).unwrap();
    until("the third", || letters(dir.path()) == 3).await;
    bench.stop().await;
}

#[tokio::test]
async fn letters_that_would_fill_the_spool_go_into_its_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let mut keys = OBJECTS.to_vec();
    keys.extend([("spool_limit", "16M"), ("blob_max_size", "1M")]);
    let bench = start(dir.path(), &store, &keys);
    block(dir.path());
    let verdict = bench.pipeline.flush(b"app", mixed(0)).await;
    assert_eq!(verdict, Verdict::Ok);
    // Several times the spool's limit, all of which a single waiting chunk would hold.
    let event = "x".repeat(1_000_000);
    for _ in 0..40 {
        bench.flush_until_taken(&event).await;
    }
    until("its letter in the quarantine", || waiting(&bench) == 0.0).await;
    let quarantine = dir.path().join("spool/quarantine");
    let mut files = std::fs::read_dir(&quarantine).unwrap();
    let file = files.next().unwrap().unwrap();
    let name = file.file_name().into_string().unwrap();
    assert!(
        name.starts_with("dead-letters-") && bench.logged(&name),
        "{name}"
    );
    let spool = Arc::clone(&bench.spool);
    bench.stop().await;
    assert_eq!(spool.usage().unfinished, 0);
    assert_eq!(store.lines().len(), 42);
    let text = std::fs::read_to_string(file.path()).unwrap();
    let letter: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(letter["reason"], "malformed");
    assert_eq!(letter["tag"], "app");
}
