//! The isolation of targets: the trouble of one does not affect the others.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use tokio::sync::watch;

use super::*;
use crate::metrics::Stage;
use crate::sink::outcome::Class;

/// The trouble of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Each request is refused, with certainty.
    Refuses(Class),
    /// It accepts each request, and its answer is lost.
    Loses,
    /// It does not answer until it works again, or the request times out.
    Hangs,
}

/// A destination with several targets: streams, or the first folders of object names.
pub(super) struct Destination {
    shape: Shape,
    /// The code of a refusal.
    code: &'static str,
    trouble: watch::Sender<BTreeMap<String, Trouble>>,
    /// The lines of each object by its name, and of each stream's record by a generated name.
    there: Mutex<BTreeMap<String, String>>,
    /// The target of each request.
    asked: Mutex<Vec<String>>,
    /// The lines accepted for each target.
    taken: Mutex<BTreeMap<String, usize>>,
}

impl Destination {
    pub(super) fn new(shape: Shape) -> Arc<Destination> {
        Destination::with_code(shape, "Code")
    }

    pub(super) fn with_code(shape: Shape, code: &'static str) -> Arc<Destination> {
        Arc::new(Destination {
            shape,
            code,
            trouble: watch::Sender::default(),
            there: Mutex::default(),
            asked: Mutex::default(),
            taken: Mutex::default(),
        })
    }

    /// Returns another one with the same objects, which nothing that is still running knows.
    pub(super) fn copied(&self) -> Arc<Destination> {
        let copy = Destination::with_code(self.shape, self.code);
        let there = self.there.lock().unwrap().clone();
        *copy.there.lock().unwrap() = there;
        copy
    }

    pub(super) fn set_trouble(&self, target: &str, trouble: Option<Trouble>) {
        self.trouble.send_modify(|all| {
            match trouble {
                Some(trouble) => all.insert(target.to_owned(), trouble),
                None => all.remove(target),
            };
        });
    }

    pub(super) fn asked_for(&self, target: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| *asked == target).count()
    }

    /// Returns the values of `k` that arrived, with their counts.
    pub(super) fn events(&self) -> BTreeMap<String, usize> {
        let mut events = BTreeMap::new();
        for line in self
            .there
            .lock()
            .unwrap()
            .values()
            .flat_map(|it| it.lines())
        {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line");
            let event = line["k"].as_str().expect("a value").to_owned();
            *events.entry(event).or_default() += 1;
        }
        events
    }

    /// Returns the number of events that arrived whose `k` begins with `name`.
    pub(super) fn arrived(&self, name: &str) -> usize {
        let events = self.events();
        events.keys().filter(|it| it.starts_with(name)).count()
    }

    pub(super) fn taken_for(&self, target: &str) -> usize {
        self.taken.lock().unwrap().get(target).copied().unwrap_or(0)
    }

    /// Whether it has so many different events. Parses them only if there may be so many.
    pub(super) fn holds(&self, events: usize) -> bool {
        let taken: usize = self.taken.lock().unwrap().values().sum();
        taken >= events && self.events().len() == events
    }

    fn fault(&self, class: Class) -> Arc<Fault> {
        let code = match class {
            Class::Configuration => self.code,
            _ => "Code",
        };
        Arc::new(Fault {
            class,
            code: code.to_owned(),
            message: "message".to_owned(),
            request_id: None,
        })
    }

    fn take(&self, batch: &Batch) {
        let mut there = self.there.lock().unwrap();
        for record in &batch.records {
            let name = match batch.token {
                Some(_) => batch.target.to_string(),
                None => format!("{}#{}", batch.target, there.len()),
            };
            let lines = String::from_utf8(record.to_bytes().to_vec()).expect("text");
            if let Some(before) = there.get(&name) {
                // Their order may differ: deferred events came later.
                let sorted = |text: &str| {
                    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
                    lines.sort_unstable();
                    lines
                };
                assert!(
                    sorted(before) == sorted(&lines),
                    "{name} was put again with other lines"
                );
            }
            let target = batch.target.split('/').next().unwrap_or_default();
            let mut taken = self.taken.lock().unwrap();
            *taken.entry(target.to_owned()).or_default() += lines.lines().count();
            there.insert(name, lines);
        }
    }
}

impl Sink for Destination {
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(std::future::ready(self.shape))
    }

    fn exists<'a>(
        &'a self,
        name: &'a str,
        _token: &'a str,
    ) -> BoxFuture<'a, Result<bool, Arc<Fault>>> {
        let target = name.split('/').next().unwrap_or_default();
        let trouble = self.trouble.borrow().get(target).copied();
        let exists = match trouble {
            None | Some(Trouble::Refuses(Class::Configuration)) => {
                Ok(self.there.lock().unwrap().contains_key(name))
            }
            Some(_) => Err(self.fault(Class::Transient)),
        };
        Box::pin(std::future::ready(exists))
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let target = batch
                .target
                .split('/')
                .next()
                .unwrap_or_default()
                .to_owned();
            self.asked.lock().unwrap().push(target.clone());
            let all = |outcome: Outcome| vec![outcome; batch.records.len()];
            let fault = |class| self.fault(class);
            let trouble = self.trouble.borrow().get(&target).copied();
            match trouble {
                None => {
                    self.take(&batch);
                    all(Outcome::Delivered)
                }
                Some(Trouble::Refuses(class)) => all(Outcome::Retry(fault(class))),
                Some(Trouble::Loses) => {
                    self.take(&batch);
                    all(Outcome::Ambiguous(fault(Class::Transient)))
                }
                Some(Trouble::Hangs) => {
                    let mut trouble = self.trouble.subscribe();
                    let well = trouble.wait_for(|all| all.get(&target) != Some(&Trouble::Hangs));
                    match tokio::time::timeout(Duration::from_secs(20), well).await {
                        Ok(_) => all(Outcome::Retry(fault(Class::Transient))),
                        Err(_) => all(Outcome::Ambiguous(fault(Class::Transient))),
                    }
                }
            }
        })
    }
}

const TROUBLES: [Trouble; 4] = [
    Trouble::Refuses(Class::Configuration),
    Trouble::Refuses(Class::Throttle),
    Trouble::Refuses(Class::Transient),
    Trouble::Hangs,
];

/// The stream is named by a field of the record.
pub(super) const BY_RECORD: [(&str, &str); 2] =
    [("delivery_stream", "{record.to}"), ("memory_limit", "16M")];

pub(super) const WIDE: Shape = Shape {
    limits: Limits {
        record_bytes: 100_000,
        record_lines: u32::MAX,
        joins: true,
        batch_records: 10,
        batch_bytes: 400_000,
    },
    piece_bytes: 20_000,
    compression: false,
};

/// Each line is a record of its own.
const LINE_BY_LINE: Shape = Shape {
    limits: Limits {
        record_bytes: 100_000,
        record_lines: 1,
        joins: false,
        batch_records: 500,
        batch_bytes: 400_000,
    },
    piece_bytes: 20_000,
    compression: false,
};

/// Events `{"to": …, "k": …}`, padded.
pub(super) fn events(of: &[(&str, &str)], padding: usize) -> Bytes {
    let mut bytes = Vec::new();
    for (to, event) in of {
        bytes.extend_from_slice(b"\x92\x92\xd7\x00\x68\x15\x9a\x2f\0\0\0\0\x80\x83");
        for (key, value) in [("to", *to), ("k", *event), ("p", &"x".repeat(padding))] {
            rmp::encode::write_str(&mut bytes, key).unwrap();
            rmp::encode::write_str(&mut bytes, value).unwrap();
        }
    }
    bytes.into()
}

/// `count` events for one target, of about 730 bytes each, whose `k` begins with `name`.
pub(super) fn many(to: &str, name: &str, count: usize) -> Bytes {
    let names: Vec<_> = (0..count).map(|n| format!("{name}-{n}")).collect();
    let all: Vec<_> = names.iter().map(|name| (to, name.as_str())).collect();
    events(&all, 700)
}

/// Keeps chunks of many events for `bad`, each with one event for `good`.
async fn keep_both(bench: &Bench, chunks: usize, bad: usize) {
    for n in 0..chunks {
        keep(bench, many("bad", &format!("bad-{n}"), bad)).await;
        keep(bench, events(&[("good", &format!("good-{n}"))], 0)).await;
    }
}

pub(super) async fn keep(bench: &Bench, events: Bytes) {
    let verdict = bench.pipeline.flush(b"app", events).await;
    assert_eq!(verdict, Verdict::Ok);
}

/// Stops like the library, advancing the paused clock by the time that takes.
pub(super) async fn stop_in_time(bench: Bench) {
    let stop = tokio::spawn(bench.stop());
    in_time("the stop", || stop.is_finished()).await;
    stop.await.expect("no panic");
}

/// Advances the paused clock until a condition holds.
pub(super) async fn in_time(what: &str, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "timed out waiting for {what}");
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        // Real time, for other threads.
        std::thread::sleep(Duration::from_millis(1));
        tokio::time::advance(Duration::from_millis(100)).await;
    }
}

/// The same for tests that measure the clock: it does not pass while the spool's thread works.
pub(super) async fn in_steps(bench: &Bench, what: &str, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "timed out waiting for {what}");
        // A request is noted, sent, and noted again.
        for _ in 0..4 {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            bench.spool.wait_until_idle();
        }
        tokio::time::advance(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_stream_holds_no_memory_that_others_need() {
    for trouble in TROUBLES {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(WIDE);
        destination.set_trouble("bad", Some(trouble));
        let bench = start(dir.path(), &destination, &[FIREHOSE, &BY_RECORD].concat());
        // Twice what memory holds.
        keep_both(&bench, 40, 1_000).await;
        // The clock stands still: nothing needs to time out for that.
        let good = || destination.arrived("good");
        until(&format!("the good stream's records ({trouble:?})"), || {
            good() == 40
        })
        .await;
        assert_eq!(destination.events().len(), 40, "{trouble:?}");
        bench.feed.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn events_beyond_a_slow_streams_share_are_not_read_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(WIDE);
    destination.set_trouble("bad", Some(Trouble::Hangs));
    let bench = start(dir.path(), &destination, &[FIREHOSE, &BY_RECORD].concat());
    // The second exceeds the rest of its share, and the first leaves more than half of that.
    for lines in [600, 3_500] {
        keep(&bench, many("bad", &format!("bad-{lines}"), lines)).await;
    }
    keep(&bench, events(&[("good", "a")], 0)).await;
    until("the good record", || destination.holds(1)).await;
    let encoded = || bench.pipeline.metrics().bytes.get(Stage::Encoded);
    let before = encoded();
    for _ in 0..200 {
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(encoded(), before);
    destination.set_trouble("bad", None);
    in_time("all of it", || destination.holds(4_101)).await;
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn one_stray_line_in_each_chunk_delays_no_other() {
    let cases = TROUBLES.into_iter().flat_map(|trouble| {
        [(150, WIDE), (0, WIDE), (0, LINE_BY_LINE)].map(|(at, shape)| (trouble, at, shape))
    });
    for (trouble, at, shape) in cases {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(shape);
        destination.set_trouble("bad", Some(trouble));
        let bench = start(dir.path(), &destination, &[FIREHOSE, &BY_RECORD].concat());
        for n in 0..40 {
            let good: Vec<_> = (0..1_000).map(|m| format!("good-{n}-{m}")).collect();
            let mut all: Vec<_> = good.iter().map(|event| ("good", event.as_str())).collect();
            let bad = format!("bad-{n}");
            all.insert(at, ("bad", &bad));
            keep(&bench, events(&all, 700)).await;
        }
        until(
            &format!("the good lines ({trouble:?}, {at}, {shape:?})"),
            || destination.holds(40 * 1_000),
        )
        .await;
        // A recovered target gets its own events, and no target gets anything twice.
        destination.set_trouble("bad", None);
        in_time("the stray lines", || destination.holds(40 * 1_001)).await;
        assert!(
            destination.events().values().all(|times| *times == 1),
            "{trouble:?}"
        );
        in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
        stop_in_time(bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_slow_streams_together_hold_no_memory_that_others_need() {
    for trouble in [Trouble::Refuses(Class::Throttle), Trouble::Hangs] {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(WIDE);
        let bad: Vec<_> = (0..30).map(|n| format!("bad-{n}")).collect();
        bad.iter()
            .for_each(|name| destination.set_trouble(name, Some(trouble)));
        let bench = start(dir.path(), &destination, &[FIREHOSE, &BY_RECORD].concat());
        for round in 0..2 {
            for name in &bad {
                keep(&bench, many(name, &format!("{name}-{round}"), 1_000)).await;
                let good = format!("good-{name}-{round}");
                keep(&bench, events(&[("good", &good)], 0)).await;
            }
        }
        let what = format!("the good records ({trouble:?})");
        in_time(&what, || destination.arrived("good") == 60).await;
        assert_eq!(destination.events().len(), 60, "{trouble:?}");
        bad.iter()
            .for_each(|name| destination.set_trouble(name, None));
        in_time("all of it", || destination.holds(60_060)).await;
        stop_in_time(bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_hang_are_probed_and_do_not_block_other_probes() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(WIDE);
    let bad: Vec<_> = (0..8).map(|n| format!("bad-{n}")).collect();
    bad.iter()
        .for_each(|name| destination.set_trouble(name, Some(Trouble::Hangs)));
    let bench = start(dir.path(), &destination, &[FIREHOSE, &BY_RECORD].concat());
    for round in 0..3 {
        for name in &bad {
            keep(&bench, many(name, &format!("{name}-{round}"), 50)).await;
        }
    }
    for name in &bad {
        let logged = format!("'{name}' is unavailable (accepted nothing and gave no answer");
        in_time(&logged, || bench.logged(&logged)).await;
    }
    // Each is probed at intervals, although none of those before it has answered.
    let asked: Vec<_> = bad.iter().map(|name| destination.asked_for(name)).collect();
    in_time("a probe of each", || {
        let now = bad.iter().map(|name| destination.asked_for(name));
        now.zip(&asked).all(|(now, before)| now > *before)
    })
    .await;
    bad.iter()
        .for_each(|name| destination.set_trouble(name, None));
    in_time("all of it", || destination.holds(8 * 3 * 50)).await;
    stop_in_time(bench).await;
}

/// Objects in a folder for each `to`.
const FOLDERS: [(&str, &str); 4] = [
    ("path", "{record.to}"),
    ("blob_max_age", "10s"),
    ("memory_limit", "16M"),
    ("concurrency", "1"),
];

#[tokio::test(start_paused = true)]
async fn a_refused_folder_delays_no_other_and_is_delivered_once_when_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
    let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS].concat());
    keep_both(&bench, 30, 700).await;
    let good = || destination.arrived("good");
    in_time("the good folder's objects", || good() == 30).await;
    assert!(destination.events().len() == 30);
    assert!(bench.logged("folder 'bad' is unavailable"));
    // In a minute and a half it is probed at intervals, not by every object.
    let asked = destination.asked_for("bad");
    assert!((1..40).contains(&asked), "{asked}");
    destination.set_trouble("bad", None);
    in_time("the bad folder's objects", || destination.holds(30 * 701)).await;
    assert!(destination.events().values().all(|times| *times == 1));
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_folder_among_thousands_delays_no_other_and_is_delivered_once_when_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
    let more = [("memory_limit", "8M"), ("concurrency", "16")];
    let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS, &more].concat());
    let folders: Vec<String> = (0..5_000).map(|n| format!("good-{n}")).collect();
    for chunk in 0..4 {
        let all: Vec<String> = folders
            .iter()
            .map(|folder| format!("{folder}-{chunk}"))
            .collect();
        let good = folders.iter().zip(&all);
        let mut of: Vec<(&str, &str)> = good.map(|(to, k)| (to.as_str(), k.as_str())).collect();
        let bad = format!("bad-{chunk}");
        of.push(("bad", &bad));
        keep(&bench, events(&of, 0)).await;
    }
    in_time("the good folders' objects", || {
        destination.arrived("good") == 20_000
    })
    .await;
    assert_eq!(destination.arrived("bad"), 0);
    assert!(destination.there.lock().unwrap().len() < 12_000);
    destination.set_trouble("bad", None);
    in_time("the bad folder's objects", || {
        destination.arrived("bad") == 4
    })
    .await;
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    assert!(destination.events().values().all(|times| *times == 1));
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_missing_is_not_the_trouble_of_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::with_code(OBJECT, "NoSuchBucket");
    let folders = ["a", "b", "c"];
    let missing = Some(Trouble::Refuses(Class::Configuration));
    folders
        .iter()
        .for_each(|folder| destination.set_trouble(folder, missing));
    let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS].concat());
    for folder in folders {
        keep(&bench, events(&[(folder, folder)], 0)).await;
    }
    in_time("the circuit", || {
        bench.logged("the destination is unavailable")
    })
    .await;
    assert!(!bench.logged("folder '"));
    folders
        .iter()
        .for_each(|folder| destination.set_trouble(folder, None));
    in_time("all of it", || destination.holds(3)).await;
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_whose_answer_was_lost_is_sent_under_its_name_when_its_folder_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    destination.set_trouble("bad", Some(Trouble::Loses));
    let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS].concat());
    keep(&bench, events(&[("bad", "a"), ("good", "b")], 0)).await;
    in_time("both", || destination.holds(2)).await;
    destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
    in_time("a refusal", || bench.logged("folder 'bad' is unavailable")).await;
    destination.set_trouble("bad", None);
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    assert_eq!(destination.events().values().sum::<usize>(), 2);
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_mistyped_folder_is_corrected_with_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
    let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS].concat());
    keep(&bench, events(&[("bad", "a"), ("good", "b")], 0)).await;
    in_time("a refusal", || bench.logged("folder 'bad' is unavailable")).await;
    in_time("the good one", || destination.holds(1)).await;
    // Killed while no probe is in flight, which might be stored.
    let image = || {
        let image = bench.crash_image();
        let (spool, history) = suspects::open(image.path());
        spool.close();
        history.pending.is_empty().then_some(image)
    };
    let left = std::cell::OnceCell::new();
    in_time("the name to be given up", || {
        image().is_some_and(|image| left.set(image).is_ok())
    })
    .await;
    let left = left.into_inner().expect("it is set");
    bench.feed.abort();

    // Events that were certainly never stored go where the configuration says today.
    let renamed = [BLOB, &FOLDERS, &[("path", "new/{record.to}")]].concat();
    let bench = start(left.path(), &destination, &renamed);
    in_time("the other", || bench.spool.usage().unfinished == 0).await;
    assert_eq!(destination.events().len(), 2);
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_under_a_former_refused_name_delays_no_current_folder() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    destination.set_trouble("a", Some(Trouble::Loses));
    let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS].concat());
    keep(&bench, events(&[("a", "1")], 0)).await;
    in_time("an object", || destination.holds(1)).await;
    let left = bench.crash_image();
    bench.feed.abort();

    destination.set_trouble("a", Some(Trouble::Refuses(Class::Configuration)));
    let renamed = [BLOB, &FOLDERS, &[("path", "new/{record.to}")]].concat();
    let bench = start(left.path(), &destination, &renamed);
    in_time("a refusal", || bench.logged("folder 'a' is unavailable")).await;
    for n in 2..5 {
        let name = n.to_string();
        keep(&bench, events(&[("a", &name)], 0)).await;
        in_time("the new folder's", || destination.events().len() == n).await;
    }
    destination.set_trouble("a", None);
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    assert!(destination.events().values().all(|times| *times == 1));
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_sends_the_open_objects_of_healthy_folders_while_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
    let keys = [BLOB, &FOLDERS, &[("blob_max_age", "10s")]].concat();
    let bench = start(dir.path(), &destination, &keys);
    keep(&bench, events(&[("bad", "a")], 0)).await;
    in_time("a refusal", || bench.logged("folder 'bad' is unavailable")).await;
    // Read, but not old enough.
    let encoded = || bench.pipeline.metrics().bytes.get(Stage::Encoded);
    let before = encoded();
    keep(&bench, events(&[("good", "b")], 0)).await;
    until("the good record", || encoded() > before).await;
    assert_eq!(destination.events().len(), 0);
    bench.pipeline.drain();
    until("the good object", || destination.holds(1)).await;
    bench.feed.abort();
}

#[tokio::test(start_paused = true)]
async fn a_stop_probes_each_target_once_more_and_the_next_run_finds_the_rest() {
    let cases: [(&[_], &[_], _); 2] = [(FIREHOSE, &BY_RECORD, WIDE), (BLOB, &FOLDERS, OBJECT)];
    for (kind, keys, shape) in cases {
        for is_back in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let destination = Destination::new(shape);
            destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
            let bench = start(dir.path(), &destination, &[kind, keys].concat());
            keep(&bench, events(&[("bad", "a"), ("good", "b")], 0)).await;
            in_time("the refusal", || bench.logged("is unavailable")).await;
            keep(&bench, events(&[("bad", "c"), ("good", "d")], 0)).await;
            if is_back {
                destination.set_trouble("bad", None);
                stop_in_time(bench).await;
            } else {
                let asked = destination.asked_for("bad");
                bench.pipeline.drain();
                in_time("the last word", || {
                    destination.asked_for("bad") > asked && destination.events().len() == 2
                })
                .await;
                // As when exit_deadline has passed.
                let left = bench.crash_image();
                bench.feed.abort();
                destination.set_trouble("bad", None);
                let bench = start(left.path(), &destination, &[kind, keys].concat());
                in_time("the rest", || bench.spool.usage().unfinished == 0).await;
                stop_in_time(bench).await;
            }
            // What the first run had in flight may be duplicated: it is not killed here.
            assert_eq!(destination.events().len(), 4, "{is_back}");
        }
    }
}

/// Keeps chunks of 500 events for `good` and one for `bad`, waiting each time until the former arrive.
async fn keep_strays(bench: &Bench, destination: &Destination, chunks: Range<usize>) {
    for n in chunks {
        let good: Vec<_> = (0..500).map(|m| format!("good-{n}-{m}")).collect();
        let mut all: Vec<_> = good.iter().map(|event| ("good", event.as_str())).collect();
        let bad = format!("bad-{n}");
        all.push(("bad", &bad));
        keep(bench, events(&all, 700)).await;
        in_time("the good lines", || {
            destination.taken_for("good") >= 500 * (n + 1)
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stray_line_in_each_chunk_does_not_fill_the_spool_and_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(WIDE);
    destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
    let keys = [FIREHOSE, &BY_RECORD, &[("spool_limit", "16M")]].concat();
    let bench = start(dir.path(), &destination, &keys);
    // Three times what the spool holds.
    keep_strays(&bench, &destination, 0..120).await;
    assert!(bench.spool.usage().log_bytes() < 14_000_000);
    let left = bench.crash_image();
    bench.feed.abort();
    let bench = start(left.path(), &destination, &keys);
    keep_strays(&bench, &destination, 120..170).await;
    destination.set_trouble("bad", None);
    in_time("the stray lines", || destination.arrived("bad") == 170).await;
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    let strays = destination.events();
    let mut strays = strays.iter().filter(|(name, _)| name.starts_with("bad"));
    assert!(strays.all(|(_, times)| *times == 1));
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn references_to_many_scattered_events_are_compacted_and_delay_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(WIDE);
    let bad = ["bad-1", "bad-2"];
    let refused = Some(Trouble::Refuses(Class::Configuration));
    bad.iter()
        .for_each(|name| destination.set_trouble(name, refused));
    let bench = start(dir.path(), &destination, &[FIREHOSE, &BY_RECORD].concat());
    for n in 0..400 {
        let names: Vec<_> = (0..1_000).map(|m| format!("{n}-{m}")).collect();
        let targets = ["good", "bad-1", "good", "bad-2"].into_iter().cycle();
        let all: Vec<_> = targets.zip(names.iter().map(String::as_str)).collect();
        keep(&bench, events(&all, 0)).await;
    }
    // As references they would take 1.6 MB, and a sixteenth of memory_limit is available for them.
    in_time("the good half", || destination.taken_for("good") == 200_000).await;
    bad.iter()
        .for_each(|name| destination.set_trouble(name, None));
    in_time("the other half", || {
        bad.iter()
            .all(|name| destination.taken_for(name) == 100_000)
    })
    .await;
    assert_eq!(destination.events().len(), 400_000);
    assert!(destination.events().values().all(|times| *times == 1));
    stop_in_time(bench).await;
}

/// A chunk of `good` and then `bad` events, given their number and their padding.
fn mixed(n: usize, good: (usize, usize), bad: (usize, usize)) -> Bytes {
    let chunk = |to: &str, (count, padding): (usize, usize)| {
        let names: Vec<_> = (0..count).map(|m| format!("{to}-{n}-{m}")).collect();
        let all: Vec<_> = names.iter().map(|name| (to, name.as_str())).collect();
        events(&all, padding)
    };
    [chunk("good", good), chunk("bad", bad)].concat().into()
}

/// Flushes mixed chunks, of which the good lines arrive before the next is flushed, and which are accepted within seconds.
async fn keep_mixed(
    bench: &Bench,
    destination: &Destination,
    chunks: usize,
    good: (usize, usize),
    bad: (usize, usize),
) {
    for n in 0..chunks {
        let began = std::time::Instant::now();
        let flush = || bench.pipeline.flush(b"app", mixed(n, good, bad));
        while flush().await == Verdict::Retry {
            assert!(
                began.elapsed() < PATIENCE,
                "chunk {n}: {:?}",
                bench.spool.usage()
            );
            tokio::time::advance(Duration::from_secs(1)).await;
            std::thread::sleep(Duration::from_millis(1));
        }
        in_time("the good lines", || {
            destination.taken_for("good") >= good.0 * (n + 1)
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn lines_for_a_refused_or_throttled_stream_fill_no_spool_whatever_their_size() {
    let cases = [
        // Much smaller than the average line, of which most of the spool consists.
        (Class::Configuration, 300, (20, 7_000), (20, 0)),
        // So many that relocated chunks are relocated again.
        (Class::Configuration, 84, (100, 0), (20, 5_000)),
        // Too few to exceed the stream's share of memory.
        (Class::Throttle, 120, (500, 700), (1, 0)),
    ];
    for (class, chunks, good, bad) in cases {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(WIDE);
        destination.set_trouble("bad", Some(Trouble::Refuses(class)));
        let keys = [FIREHOSE, &BY_RECORD, &[("spool_limit", "16M")]].concat();
        let bench = start(dir.path(), &destination, &keys);
        keep_mixed(&bench, &destination, chunks, good, bad).await;
        let mut after = None;
        while let Some((chunk, bytes)) = bench.spool.peek(after) {
            after = Some(chunk);
            assert!(bytes <= 2 << 20, "relocated chunks do not grow: {bytes}");
        }
        destination.set_trouble("bad", None);
        in_time("the bad lines", || {
            destination.taken_for("bad") == chunks * bad.0
        })
        .await;
        assert_eq!(destination.events().len(), chunks * (good.0 + bad.0));
        stop_in_time(bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_needs_all_memory_is_not_kept_waiting_by_a_throttled_stream() {
    for padding in [3_000_000, 9_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(WIDE);
        destination.set_trouble("bad", Some(Trouble::Refuses(Class::Throttle)));
        let bench = start(dir.path(), &destination, &[FIREHOSE, &BY_RECORD].concat());
        keep(&bench, many("bad", "bad", 50)).await;
        in_time("a request", || destination.asked_for("bad") > 0).await;
        keep(&bench, events(&[("good", "large")], padding)).await;
        keep(&bench, events(&[("good", "small")], 0)).await;
        in_time("the small event", || destination.taken_for("good") >= 1).await;
        bench.feed.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_throttles_fails_or_hangs_delays_no_other() {
    for trouble in TROUBLES {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(OBJECT);
        destination.set_trouble("bad", Some(trouble));
        let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS].concat());
        keep_both(&bench, 30, 700).await;
        let what = format!("the good folder's objects ({trouble:?})");
        in_time(&what, || destination.arrived("good") == 30).await;
        destination.set_trouble("bad", None);
        in_time("the others", || destination.holds(30 * 701)).await;
        in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
        assert!(destination.events().values().all(|times| *times == 1));
        stop_in_time(bench).await;
    }
}

/// An object that may be stored cannot be relocated: whether it is has to be asked.
#[tokio::test(start_paused = true)]
async fn an_object_that_may_be_stored_in_a_refused_folder_does_not_fill_the_spool() {
    for trouble in [Trouble::Loses, Trouble::Hangs] {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(OBJECT);
        destination.set_trouble("bad", Some(trouble));
        let more = [
            ("spool_limit", "16M"),
            ("concurrency", "4"),
            ("blob_max_age", "2s"),
        ];
        let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS, &more].concat());
        keep(&bench, many("bad", "bad", 100)).await;
        in_time("an answer that is lost", || {
            destination.asked_for("bad") >= 2
        })
        .await;
        destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
        in_time("a refusal", || bench.logged("folder 'bad' is unavailable")).await;
        // Twice what the spool holds, and longer than any request lasts.
        for n in 0..40 {
            let began = std::time::Instant::now();
            let chunk = many("good", &format!("good-{n}"), 1_000);
            // The store is asked only a minute after the last uncertain answer.
            while bench.pipeline.flush(b"app", chunk.clone()).await == Verdict::Retry {
                assert!(began.elapsed() < PATIENCE, "{:?}", bench.spool.usage());
                in_time("a moment", || true).await;
                tokio::time::advance(Duration::from_secs(1)).await;
                std::thread::sleep(Duration::from_millis(1));
            }
            in_time("the good object", || {
                destination.taken_for("good") == 1_000 * (n + 1)
            })
            .await;
        }
        destination.set_trouble("bad", None);
        in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
        assert_eq!(destination.arrived("bad"), 100);
        assert!(destination.events().values().all(|times| *times == 1));
        stop_in_time(bench).await;
    }
}

/// The number of objects that a crash now would leave pending.
fn pending(bench: &Bench) -> usize {
    let image = bench.crash_image();
    let (spool, history) = suspects::open(image.path());
    spool.close();
    history.pending.len()
}

#[tokio::test(start_paused = true)]
async fn objects_that_were_never_sent_give_up_their_names() {
    for _ in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::new(OBJECT);
        destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
        let more = [("blob_max_size", "64K"), ("concurrency", "4")];
        let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS, &more].concat());
        for n in 0..8 {
            keep(&bench, many("bad", &n.to_string(), 150)).await;
        }
        in_time("a refusal", || bench.logged("folder 'bad' is unavailable")).await;
        in_time("all names to be given up", || pending(&bench) == 0).await;
        bench.feed.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn probes_whose_answer_is_lost_leave_one_pending_object() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::new(OBJECT);
    destination.set_trouble("bad", Some(Trouble::Refuses(Class::Configuration)));
    let bench = start(dir.path(), &destination, &[BLOB, &FOLDERS].concat());
    keep(&bench, events(&[("bad", "first")], 0)).await;
    in_time("a refusal", || bench.logged("folder 'bad' is unavailable")).await;
    keep(&bench, many("bad", "bad", 2_000)).await;
    destination.set_trouble("bad", Some(Trouble::Hangs));
    let asked = destination.asked_for("bad");
    in_time("many probes", || destination.asked_for("bad") > asked + 20).await;
    assert!(pending(&bench) <= 2);
    bench.feed.abort();
}

/// Targets fail and recover, processes are killed and stopped: everything arrives in the end, and once if the store can
/// detect repeats.
#[tokio::test(start_paused = true)]
async fn whatever_happens_to_targets_everything_arrives() {
    for seed in 0..18 {
        let mut dice = StdRng::seed_from_u64(seed);
        // Streams, a few folders, or many with so much in them that it is gathered on disk.
        let (stream, many) = (seed % 3 == 0, seed % 3 == 2);
        let dir = tempfile::tempdir().unwrap();
        let mut image = dir;
        let destination = Destination::new(if stream { WIDE } else { OBJECT });
        let keys: Vec<_> = match stream {
            true => [FIREHOSE, &BY_RECORD, &[("memory_limit", "15M")]].concat(),
            false if many => {
                let more = [("memory_limit", "8M"), ("blob_max_age", "60s")];
                [BLOB, &FOLDERS, &more].concat()
            }
            false => [BLOB, &FOLDERS, &[("memory_limit", "15M")]].concat(),
        };
        let targets: Vec<String> = (0..if many { 300 } else { 4 })
            .map(|n| format!("t{n}"))
            .collect();
        let padding = if many { 15_000 } else { 500 };
        let mut sent = 0;
        let mut killed = false;
        for _ in 0..3 {
            let bench = start(image.path(), &destination, &keys);
            for _ in 0..dice.random_range(5..25) {
                let target = targets.choose(&mut dice).unwrap();
                let trouble = [
                    None,
                    None,
                    Some(Trouble::Loses),
                    Some(Trouble::Hangs),
                    Some(Trouble::Refuses(Class::Configuration)),
                    Some(Trouble::Refuses(Class::Throttle)),
                ];
                destination.set_trouble(target, *trouble.choose(&mut dice).unwrap());
                let names: Vec<_> = (0..dice.random_range(1..60))
                    .map(|_| {
                        sent += 1;
                        (targets.choose(&mut dice).unwrap(), sent.to_string())
                    })
                    .collect();
                let of: Vec<_> = names
                    .iter()
                    .map(|(to, k)| (to.as_str(), k.as_str()))
                    .collect();
                keep(&bench, events(&of, padding)).await;
                for _ in 0..dice.random_range(0..40) {
                    tokio::task::yield_now().await;
                }
                let passes = Duration::from_millis(dice.random_range(0..5_000));
                tokio::time::advance(passes).await;
            }
            if dice.random() {
                killed = true;
                let left = bench.crash_image();
                bench.feed.abort();
                // It was no chunk's fault, however often.
                let _ = std::fs::remove_file(left.path().join("spool/suspects"));
                image = left;
            } else {
                // Otherwise the hanging target would delay it.
                targets
                    .iter()
                    .for_each(|target| destination.set_trouble(target, None));
                stop_in_time(bench).await;
            }
        }
        targets
            .iter()
            .for_each(|target| destination.set_trouble(target, None));
        let bench = start(image.path(), &destination, &keys);
        let what = format!("all of it, seed {seed}");
        in_time(&what, || bench.spool.usage().unfinished == 0).await;
        let there = destination.events();
        assert_eq!(there.len(), sent, "seed {seed}, killed: {killed}");
        if !stream {
            let twice: Vec<_> = there.iter().filter(|(_, times)| **times > 1).collect();
            assert!(twice.is_empty(), "seed {seed}, killed: {killed}: {twice:?}");
        }
        stop_in_time(bench).await;
    }
}
