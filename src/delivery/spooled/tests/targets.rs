//! One target's trouble is its own.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use tokio::sync::watch;

use super::*;
use crate::metrics::Stage;
use crate::sink::outcome::Class;

/// What is the matter with a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sick {
    /// Each request is refused, certainly.
    Refuses(Class),
    /// It takes each request, and its answer is lost.
    Loses,
    /// It answers nothing until it is well, or the request times out.
    Hangs,
}

/// A destination of several targets: streams, or the first folders of objects' names.
struct Ward {
    shape: Shape,
    sick: watch::Sender<BTreeMap<String, Sick>>,
    /// Each object by its name, and each record of a stream by a name of ours: the lines.
    there: Mutex<BTreeMap<String, String>>,
    /// The target of each request.
    asked: Mutex<Vec<String>>,
    /// Lines that were taken for each target.
    taken: Mutex<BTreeMap<String, usize>>,
}

impl Ward {
    fn new(shape: Shape) -> Arc<Ward> {
        Arc::new(Ward {
            shape,
            sick: watch::Sender::default(),
            there: Mutex::default(),
            asked: Mutex::default(),
            taken: Mutex::default(),
        })
    }

    fn is(&self, target: &str, sick: Option<Sick>) {
        self.sick.send_modify(|all| {
            match sick {
                Some(sick) => all.insert(target.to_owned(), sick),
                None => all.remove(target),
            };
        });
    }

    fn asked_for(&self, target: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| *asked == target).count()
    }

    /// The values of `k` that are there, with how often.
    fn events(&self) -> BTreeMap<String, usize> {
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

    /// Events whose `k` begins with this that are there.
    fn arrived(&self, name: &str) -> usize {
        let events = self.events();
        events.keys().filter(|it| it.starts_with(name)).count()
    }

    fn taken_for(&self, target: &str) -> usize {
        self.taken.lock().unwrap().get(target).copied().unwrap_or(0)
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
                // Their order may differ: what was deferred came later.
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

impl Sink for Ward {
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(std::future::ready(self.shape))
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
            let fault = |class| {
                Arc::new(Fault {
                    class,
                    code: "Code".to_owned(),
                    message: "message".to_owned(),
                    request_id: None,
                })
            };
            let sick = self.sick.borrow().get(&target).copied();
            match sick {
                None => {
                    self.take(&batch);
                    all(Outcome::Delivered)
                }
                Some(Sick::Refuses(class)) => all(Outcome::Retry(fault(class))),
                Some(Sick::Loses) => {
                    self.take(&batch);
                    all(Outcome::Ambiguous(fault(Class::Transient)))
                }
                Some(Sick::Hangs) => {
                    let mut sick = self.sick.subscribe();
                    let well = sick.wait_for(|all| all.get(&target) != Some(&Sick::Hangs));
                    match tokio::time::timeout(Duration::from_secs(20), well).await {
                        Ok(_) => all(Outcome::Retry(fault(Class::Transient))),
                        Err(_) => all(Outcome::Ambiguous(fault(Class::Transient))),
                    }
                }
            }
        })
    }
}

const SICK: [Sick; 4] = [
    Sick::Refuses(Class::Configuration),
    Sick::Refuses(Class::Throttle),
    Sick::Refuses(Class::Transient),
    Sick::Hangs,
];

/// The name of the stream is a record's.
const BY_RECORD: [(&str, &str); 2] = [("delivery_stream", "{record.to}"), ("memory_limit", "16M")];

const WIDE: Shape = Shape {
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
fn events(of: &[(&str, &str)], padding: usize) -> Bytes {
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

/// As many events for one target, of about 730 bytes each, whose `k` begins with `name`.
fn many(to: &str, name: &str, count: usize) -> Bytes {
    let names: Vec<_> = (0..count).map(|n| format!("{name}-{n}")).collect();
    let all: Vec<_> = names.iter().map(|name| (to, name.as_str())).collect();
    events(&all, 700)
}

/// Chunks of many events for `bad`, and with each one event for `good`.
async fn keep_both(bench: &Bench, chunks: usize, bad: usize) {
    for n in 0..chunks {
        keep(bench, many("bad", &format!("bad-{n}"), bad)).await;
        keep(bench, events(&[("good", &format!("good-{n}"))], 0)).await;
    }
}

async fn keep(bench: &Bench, events: Bytes) {
    let verdict = bench.pipeline.flush(b"app", events).await;
    assert_eq!(verdict, Verdict::Ok);
}

/// Ends as the library does, and lets the time pass that it takes.
async fn stop_in_time(bench: Bench) {
    let stop = tokio::spawn(bench.stop());
    in_time("the stop", || stop.is_finished()).await;
    stop.await.expect("no panic");
}

/// Lets time pass until something is so.
async fn in_time(what: &str, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        // For the threads beside the clock.
        std::thread::sleep(Duration::from_millis(1));
        tokio::time::advance(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sick_stream_holds_no_memory_that_others_need() {
    for sick in SICK {
        let dir = tempfile::tempdir().unwrap();
        let ward = Ward::new(WIDE);
        ward.is("bad", Some(sick));
        let bench = start(dir.path(), &ward, &[FIREHOSE, &BY_RECORD].concat());
        // Twice what memory holds.
        keep_both(&bench, 40, 1_000).await;
        // The clock stands still: nothing has to time out for that.
        let good = || ward.arrived("good");
        until(&format!("the good stream's records ({sick:?})"), || {
            good() == 40
        })
        .await;
        assert_eq!(ward.events().len(), 40, "{sick:?}");
        bench.feed.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_more_than_a_slow_streams_share_is_not_read_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(WIDE);
    ward.is("bad", Some(Sick::Hangs));
    let bench = start(dir.path(), &ward, &[FIREHOSE, &BY_RECORD].concat());
    // The second is more than is left of its share, and the first leaves more than half of that.
    for lines in [600, 3_500] {
        keep(&bench, many("bad", &format!("bad-{lines}"), lines)).await;
    }
    keep(&bench, events(&[("good", "a")], 0)).await;
    until("the good record", || ward.events().len() == 1).await;
    let encoded = || bench.pipeline.metrics().bytes.get(Stage::Encoded);
    let before = encoded();
    for _ in 0..200 {
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(encoded(), before);
    ward.is("bad", None);
    in_time("all of it", || ward.events().len() == 4_101).await;
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn one_stray_line_in_each_chunk_holds_up_no_other() {
    let cases = SICK.into_iter().flat_map(|sick| {
        [(150, WIDE), (0, WIDE), (0, LINE_BY_LINE)].map(|(at, shape)| (sick, at, shape))
    });
    for (sick, at, shape) in cases {
        let dir = tempfile::tempdir().unwrap();
        let ward = Ward::new(shape);
        ward.is("bad", Some(sick));
        let bench = start(dir.path(), &ward, &[FIREHOSE, &BY_RECORD].concat());
        for n in 0..40 {
            let good: Vec<_> = (0..1_000).map(|m| format!("good-{n}-{m}")).collect();
            let mut all: Vec<_> = good.iter().map(|event| ("good", event.as_str())).collect();
            let bad = format!("bad-{n}");
            all.insert(at, ("bad", &bad));
            keep(&bench, events(&all, 700)).await;
        }
        until(
            &format!("the good lines ({sick:?}, {at}, {shape:?})"),
            || ward.events().len() == 40 * 1_000,
        )
        .await;
        // What is healthy again gets its own, and nobody anything twice.
        ward.is("bad", None);
        in_time("the stray lines", || ward.events().len() == 40 * 1_001).await;
        assert!(ward.events().values().all(|times| *times == 1), "{sick:?}");
        in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
        stop_in_time(bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_slow_streams_together_hold_no_memory_that_others_need() {
    for sick in [Sick::Refuses(Class::Throttle), Sick::Hangs] {
        let dir = tempfile::tempdir().unwrap();
        let ward = Ward::new(WIDE);
        let bad: Vec<_> = (0..30).map(|n| format!("bad-{n}")).collect();
        bad.iter().for_each(|name| ward.is(name, Some(sick)));
        let bench = start(dir.path(), &ward, &[FIREHOSE, &BY_RECORD].concat());
        for round in 0..2 {
            for name in &bad {
                keep(&bench, many(name, &format!("{name}-{round}"), 1_000)).await;
                let good = format!("good-{name}-{round}");
                keep(&bench, events(&[("good", &good)], 0)).await;
            }
        }
        let what = format!("the good records ({sick:?})");
        in_time(&what, || ward.arrived("good") == 60).await;
        assert_eq!(ward.events().len(), 60, "{sick:?}");
        bad.iter().for_each(|name| ward.is(name, None));
        in_time("all of it", || ward.events().len() == 60_060).await;
        stop_in_time(bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_hang_are_probed_and_keep_no_other_from_that() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(WIDE);
    let bad: Vec<_> = (0..8).map(|n| format!("bad-{n}")).collect();
    bad.iter().for_each(|name| ward.is(name, Some(Sick::Hangs)));
    let bench = start(dir.path(), &ward, &[FIREHOSE, &BY_RECORD].concat());
    for round in 0..3 {
        for name in &bad {
            keep(&bench, many(name, &format!("{name}-{round}"), 50)).await;
        }
    }
    for name in &bad {
        let said = format!("'{name}' is unavailable (accepted nothing and gave no answer");
        in_time(&said, || bench.said(&said)).await;
    }
    // Each is asked now and then, though none of those before it has answered.
    let asked: Vec<_> = bad.iter().map(|name| ward.asked_for(name)).collect();
    in_time("a probe of each", || {
        let now = bad.iter().map(|name| ward.asked_for(name));
        now.zip(&asked).all(|(now, before)| now > *before)
    })
    .await;
    bad.iter().for_each(|name| ward.is(name, None));
    in_time("all of it", || ward.events().len() == 8 * 3 * 50).await;
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
async fn a_folder_that_is_refused_holds_up_no_other_and_is_there_once_when_it_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(OBJECT);
    ward.is("bad", Some(Sick::Refuses(Class::Configuration)));
    let bench = start(dir.path(), &ward, &[BLOB, &FOLDERS].concat());
    keep_both(&bench, 30, 700).await;
    let good = || ward.arrived("good");
    in_time("the good folder's objects", || good() == 30).await;
    assert!(ward.events().len() == 30);
    assert!(bench.said("folder 'bad' is unavailable"));
    // In a minute and a half it is asked now and then, and not by every object.
    let asked = ward.asked_for("bad");
    assert!((1..40).contains(&asked), "{asked}");
    ward.is("bad", None);
    in_time("the bad folder's objects", || {
        ward.events().len() == 30 * 701
    })
    .await;
    assert!(ward.events().values().all(|times| *times == 1));
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_whose_answer_was_lost_goes_under_its_name_again_when_its_folder_is_well() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(OBJECT);
    ward.is("bad", Some(Sick::Loses));
    let bench = start(dir.path(), &ward, &[BLOB, &FOLDERS].concat());
    keep(&bench, events(&[("bad", "a"), ("good", "b")], 0)).await;
    in_time("both", || ward.events().len() == 2).await;
    ward.is("bad", Some(Sick::Refuses(Class::Configuration)));
    in_time("a refusal", || bench.said("folder 'bad' is unavailable")).await;
    ward.is("bad", None);
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    assert_eq!(ward.events().values().sum::<usize>(), 2);
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_was_never_to_be_is_renamed_with_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(OBJECT);
    ward.is("bad", Some(Sick::Refuses(Class::Configuration)));
    let bench = start(dir.path(), &ward, &[BLOB, &FOLDERS].concat());
    keep(&bench, events(&[("bad", "a"), ("good", "b")], 0)).await;
    in_time("a refusal", || bench.said("folder 'bad' is unavailable")).await;
    in_time("the good one", || ward.events().len() == 1).await;
    // Killed while no probe is on its way, which might be there.
    let image = || {
        let image = bench.crash_image();
        let (spool, recovered) = suspects::open(image.path());
        spool.close();
        recovered.pending.is_empty().then_some(image)
    };
    let left = std::cell::OnceCell::new();
    in_time("the name to be given up", || {
        image().is_some_and(|image| left.set(image).is_ok())
    })
    .await;
    let left = left.into_inner().expect("it is set");
    bench.feed.abort();

    // What was certainly never put goes where the configuration says today.
    let renamed = [BLOB, &FOLDERS, &[("path", "new/{record.to}")]].concat();
    let bench = start(left.path(), &ward, &renamed);
    in_time("the other", || bench.spool.usage().unfinished == 0).await;
    assert_eq!(ward.events().len(), 2);
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_under_a_refused_former_name_holds_up_no_folder_of_today() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(OBJECT);
    ward.is("a", Some(Sick::Loses));
    let bench = start(dir.path(), &ward, &[BLOB, &FOLDERS].concat());
    keep(&bench, events(&[("a", "1")], 0)).await;
    in_time("an object", || ward.events().len() == 1).await;
    let left = bench.crash_image();
    bench.feed.abort();

    ward.is("a", Some(Sick::Refuses(Class::Configuration)));
    let renamed = [BLOB, &FOLDERS, &[("path", "new/{record.to}")]].concat();
    let bench = start(left.path(), &ward, &renamed);
    in_time("a refusal", || bench.said("folder 'a' is unavailable")).await;
    for n in 2..5 {
        let name = n.to_string();
        keep(&bench, events(&[("a", &name)], 0)).await;
        in_time("the new folder's", || ward.events().len() == n).await;
    }
    ward.is("a", None);
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    assert!(ward.events().values().all(|times| *times == 1));
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_sends_the_open_objects_of_healthy_folders_while_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(OBJECT);
    ward.is("bad", Some(Sick::Refuses(Class::Configuration)));
    let keys = [BLOB, &FOLDERS, &[("blob_max_age", "10s")]].concat();
    let bench = start(dir.path(), &ward, &keys);
    keep(&bench, events(&[("bad", "a")], 0)).await;
    in_time("a refusal", || bench.said("folder 'bad' is unavailable")).await;
    // Read, and not old enough.
    let encoded = || bench.pipeline.metrics().bytes.get(Stage::Encoded);
    let before = encoded();
    keep(&bench, events(&[("good", "b")], 0)).await;
    until("the good record", || encoded() > before).await;
    assert_eq!(ward.events().len(), 0);
    bench.pipeline.drain();
    until("the good object", || ward.events().len() == 1).await;
    bench.feed.abort();
}

#[tokio::test(start_paused = true)]
async fn a_stop_asks_each_target_once_more_and_the_next_run_finds_what_stays() {
    let cases: [(&[_], &[_], _); 2] = [(FIREHOSE, &BY_RECORD, WIDE), (BLOB, &FOLDERS, OBJECT)];
    for (kind, keys, shape) in cases {
        for is_back in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let ward = Ward::new(shape);
            ward.is("bad", Some(Sick::Refuses(Class::Configuration)));
            let bench = start(dir.path(), &ward, &[kind, keys].concat());
            keep(&bench, events(&[("bad", "a"), ("good", "b")], 0)).await;
            in_time("the refusal", || bench.said("is unavailable")).await;
            keep(&bench, events(&[("bad", "c"), ("good", "d")], 0)).await;
            if is_back {
                ward.is("bad", None);
                stop_in_time(bench).await;
            } else {
                let asked = ward.asked_for("bad");
                bench.pipeline.drain();
                in_time("the last word", || {
                    ward.asked_for("bad") > asked && ward.events().len() == 2
                })
                .await;
                // As when exit_deadline is over.
                let left = bench.crash_image();
                bench.feed.abort();
                ward.is("bad", None);
                let bench = start(left.path(), &ward, &[kind, keys].concat());
                in_time("the rest", || bench.spool.usage().unfinished == 0).await;
                stop_in_time(bench).await;
            }
            // What the first run had on its way may be there twice: it is not killed here.
            assert_eq!(ward.events().len(), 4, "{is_back}");
        }
    }
}

/// Chunks of 500 events for `good` and one for `bad`, of which the former arrive before the next is flushed.
async fn keep_strays(bench: &Bench, ward: &Ward, chunks: Range<usize>) {
    for n in chunks {
        let good: Vec<_> = (0..500).map(|m| format!("good-{n}-{m}")).collect();
        let mut all: Vec<_> = good.iter().map(|event| ("good", event.as_str())).collect();
        let bad = format!("bad-{n}");
        all.push(("bad", &bad));
        keep(bench, events(&all, 700)).await;
        in_time("the good lines", || ward.taken_for("good") >= 500 * (n + 1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stray_line_in_each_chunk_fills_no_spool_and_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(WIDE);
    ward.is("bad", Some(Sick::Refuses(Class::Configuration)));
    let keys = [FIREHOSE, &BY_RECORD, &[("spool_limit", "16M")]].concat();
    let bench = start(dir.path(), &ward, &keys);
    // Three times what the spool holds.
    keep_strays(&bench, &ward, 0..120).await;
    assert!(bench.spool.usage().log_bytes() < 14_000_000);
    let left = bench.crash_image();
    bench.feed.abort();
    let bench = start(left.path(), &ward, &keys);
    keep_strays(&bench, &ward, 120..170).await;
    ward.is("bad", None);
    in_time("the stray lines", || ward.arrived("bad") == 170).await;
    in_time("an empty spool", || bench.spool.usage().unfinished == 0).await;
    let strays = ward.events();
    let mut strays = strays.iter().filter(|(name, _)| name.starts_with("bad"));
    assert!(strays.all(|(_, times)| *times == 1));
    stop_in_time(bench).await;
}

#[tokio::test(start_paused = true)]
async fn references_to_many_scattered_events_become_few_and_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let ward = Ward::new(WIDE);
    ward.is("bad", Some(Sick::Refuses(Class::Configuration)));
    let bench = start(dir.path(), &ward, &[FIREHOSE, &BY_RECORD].concat());
    for n in 0..400 {
        let names: Vec<_> = (0..1_000).map(|m| format!("{n}-{m}")).collect();
        let targets = ["good", "bad"].into_iter().cycle();
        let all: Vec<_> = targets.zip(names.iter().map(String::as_str)).collect();
        keep(&bench, events(&all, 0)).await;
    }
    // As references they would take 1.6 MB, of which a sixteenth of memory_limit is for them.
    in_time("the good half", || ward.taken_for("good") == 200_000).await;
    ward.is("bad", None);
    in_time("the other half", || ward.taken_for("bad") == 200_000).await;
    assert_eq!(ward.events().len(), 400_000);
    assert!(ward.events().values().all(|times| *times == 1));
    stop_in_time(bench).await;
}

/// Targets fall ill and get well, processes are killed and stop: all is there in the end, and what a store can tell apart
/// once.
#[tokio::test(start_paused = true)]
async fn whatever_becomes_of_targets_everything_arrives() {
    for seed in 0..12 {
        let mut dice = StdRng::seed_from_u64(seed);
        let stream = seed % 2 == 0;
        let dir = tempfile::tempdir().unwrap();
        let mut image = dir;
        let ward = Ward::new(if stream { WIDE } else { OBJECT });
        let keys: Vec<_> = match stream {
            true => [FIREHOSE, &BY_RECORD].concat(),
            false => [BLOB, &FOLDERS].concat(),
        };
        let targets = ["a", "b", "c", "d"];
        let mut sent = 0;
        let mut killed = false;
        for _ in 0..3 {
            let bench = start(image.path(), &ward, &keys);
            for _ in 0..dice.random_range(5..25) {
                let target = targets.choose(&mut dice).unwrap();
                let sick = [
                    None,
                    None,
                    Some(Sick::Loses),
                    Some(Sick::Hangs),
                    Some(Sick::Refuses(Class::Configuration)),
                    Some(Sick::Refuses(Class::Throttle)),
                ];
                ward.is(target, *sick.choose(&mut dice).unwrap());
                let names: Vec<_> = (0..dice.random_range(1..60))
                    .map(|_| {
                        sent += 1;
                        (*targets.choose(&mut dice).unwrap(), sent.to_string())
                    })
                    .collect();
                let of: Vec<_> = names.iter().map(|(to, k)| (*to, k.as_str())).collect();
                keep(&bench, events(&of, 500)).await;
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
                // Or the hanging would hold it up.
                targets.iter().for_each(|target| ward.is(target, None));
                stop_in_time(bench).await;
            }
        }
        targets.iter().for_each(|target| ward.is(target, None));
        let bench = start(image.path(), &ward, &keys);
        let what = format!("all of it, seed {seed}");
        in_time(&what, || bench.spool.usage().unfinished == 0).await;
        let there = ward.events();
        assert_eq!(there.len(), sent, "seed {seed}, killed: {killed}");
        if !stream {
            let twice: Vec<_> = there.iter().filter(|(_, times)| **times > 1).collect();
            assert!(twice.is_empty(), "seed {seed}, killed: {killed}: {twice:?}");
        }
        stop_in_time(bench).await;
    }
}
