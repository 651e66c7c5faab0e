//! Direct mode while a target is unavailable: the cost to the flushes of other targets, and to the host.

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::sink::outcome::OWN_TROUBLE;

/// Streams by tag, so that a test has an unavailable one next to a healthy one.
const BY_TAG: &[(&str, &str)] = &[("delivery_stream", "{tag}")];
/// Streams by record.
const BY_RECORD: &[(&str, &str)] = &[("delivery_stream", "{record.k}")];
const SECOND: Duration = Duration::from_secs(1);

impl Bench {
    /// Starts a flush like one of the host's workers.
    fn begin(&self, tag: &'static str, event: &str) -> JoinHandle<(Verdict, Duration)> {
        let (pipeline, data) = (Arc::clone(&self.pipeline), chunk(&[event]));
        tokio::spawn(async move {
            let start = Instant::now();
            let verdict = pipeline.flush(tag.as_bytes(), data).await;
            (verdict, start.elapsed())
        })
    }

    /// Flushes until the circuit of `tag`'s stream is open.
    async fn open(&self, tag: &'static str) {
        assert_eq!(self.begin(tag, "opens").await.unwrap().0, Verdict::Retry);
        assert!(self.pipeline.metrics().circuit_is_open());
    }

    /// Returns how often each line arrived at a target that accepts everything.
    fn arrived(&self, target: &str) -> BTreeMap<String, usize> {
        let mut lines = BTreeMap::new();
        for batch in self.sink.seen.lock().unwrap().iter() {
            for record in batch.records.iter().filter(|_| *batch.target == *target) {
                let line = String::from_utf8(record.to_bytes().to_vec()).unwrap();
                *lines.entry(line).or_default() += 1;
            }
        }
        lines
    }

    fn calls_to(&self, target: &str) -> usize {
        let seen = self.sink.seen.lock().unwrap();
        seen.iter().filter(|batch| *batch.target == *target).count()
    }
}

/// The troubles of a target whose flushes must not affect the others.
const TROUBLES: [Trouble; 5] = [
    Trouble::Down(Class::Configuration),
    Trouble::Down(Class::Transient),
    Trouble::Down(Class::Throttle),
    Trouble::Silent,
    Trouble::Undescribed,
];

/// The host has two workers, hands them chunks in turn, and each waits for its flush. After RETRY a chunk is retried
/// some seconds later.
#[tokio::test(start_paused = true)]
async fn an_unavailable_stream_does_not_hold_the_workers_that_a_healthy_one_needs() {
    const CHUNKS: usize = 100;
    for trouble in TROUBLES {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.set_trouble("down", Some(trouble));
        let events: Vec<String> = (0..CHUNKS).map(|n| n.to_string()).collect();
        let start = Instant::now();
        let mut took = Duration::ZERO;
        let work = |worker: usize| {
            let (bench, events) = (&bench, &events);
            async move {
                for event in events.iter().skip(worker).step_by(2) {
                    let trouble = bench.begin("down", event).await.unwrap();
                    assert_eq!(trouble.0, Verdict::Retry);
                    let well = bench.begin("well", event).await.unwrap();
                    assert_eq!(well, (Verdict::Ok, Duration::ZERO), "{event}");
                }
                start.elapsed()
            }
        };
        for worker in futures::future::join_all([work(0), work(1)]).await {
            took = took.max(worker);
        }
        assert!(
            took < 40 * SECOND,
            "{trouble:?}: {took:?} for {CHUNKS} chunks"
        );
        let arrived = bench.arrived("well");
        assert!(
            arrived.len() == CHUNKS && arrived.values().all(|times| *times == 1),
            "{trouble:?}: {arrived:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn flushes_are_released_when_the_circuit_opens_and_answered_at_once_after_that() {
    for trouble in TROUBLES {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.set_trouble("s", Some(trouble));
        let flushes: Vec<_> = ["a", "b", "c", "d"]
            .map(|event| bench.begin("s", event))
            .into();
        for flush in flushes {
            let (verdict, took) = flush.await.unwrap();
            assert_eq!(verdict, Verdict::Retry);
            assert!(took <= 11 * SECOND, "{trouble:?}: {took:?}");
        }
        assert!(bench.pipeline.metrics().circuit_is_open(), "{trouble:?}");
        assert!(
            !bench.logged("within flush_deadline"),
            "{trouble:?}: the deadline is not the cause"
        );
        let calls = bench.sink.calls().len();
        let (verdict, took) = bench.begin("s", "e").await.unwrap();
        assert_eq!(
            (verdict, took),
            (Verdict::Retry, Duration::ZERO),
            "{trouble:?}"
        );
        assert_eq!(
            bench.sink.calls().len(),
            calls,
            "{trouble:?}: nothing is sent for it"
        );
    }
}

/// A worker that waits for five attempts for each missing name is not available to the others.
#[tokio::test(start_paused = true)]
async fn a_missing_stream_costs_one_request_and_no_wait() {
    let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
    for trouble in ["s1", "s2", "s3"] {
        bench
            .sink
            .set_trouble(trouble, Some(Trouble::Down(Class::Configuration)));
        let flushed = bench.begin(trouble, "e").await.unwrap();
        assert_eq!(flushed, (Verdict::Retry, Duration::ZERO));
        assert_eq!(bench.calls_to(trouble), 1);
        let well = bench.begin("well", trouble).await.unwrap();
        assert_eq!(well, (Verdict::Ok, Duration::ZERO));
    }
    bench.sink.set_trouble("s1", None);
    sleep(2 * SECOND).await;
    assert_eq!(bench.begin("s1", "e").await.unwrap().0, Verdict::Ok);
}

#[tokio::test(start_paused = true)]
async fn when_a_probe_is_due_one_of_many_flushes_sends_it() {
    // A silent target does not answer the probe, and meanwhile there is no other.
    for (trouble, rounds, patience) in [
        (Trouble::Down(Class::Transient), 3, Duration::ZERO),
        (Trouble::Down(Class::Throttle), 3, Duration::ZERO),
        (Trouble::Silent, 1, 2 * SECOND),
    ] {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.set_trouble("s", Some(trouble));
        bench.open("s").await;
        for round in 0..rounds {
            // Longer than any wait of the breaker.
            sleep(60 * SECOND).await;
            let calls = bench.calls_to("s");
            let flushes: Vec<_> = (0..10)
                .map(|n| bench.begin("s", &format!("{round} {n}")))
                .collect();
            let mut waited = Vec::new();
            for flush in flushes {
                let (verdict, took) = flush.await.unwrap();
                assert_eq!(verdict, Verdict::Retry);
                waited.extend((!took.is_zero()).then_some(took));
            }
            assert_eq!(bench.calls_to("s") - calls, 1, "{trouble:?} {round}");
            let expected = (!patience.is_zero()).then_some(patience);
            assert_eq!(waited, Vec::from_iter(expected), "{trouble:?} {round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_flush_after_the_fix_closes_the_circuit_without_duplicates() {
    for trouble in TROUBLES {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.set_trouble("s", Some(trouble));
        let events = ["a", "b", "c", "d"];
        let flushes: Vec<_> = events.map(|event| bench.begin("s", event)).into();
        for flush in flushes {
            assert_eq!(flush.await.unwrap().0, Verdict::Retry);
        }
        sleep(60 * SECOND).await;
        let before = match trouble {
            // It accepted them once it worked again, and only the answer was late.
            Trouble::Silent => 0,
            _ => bench.calls_to("s"),
        };
        bench.sink.set_trouble("s", None);
        sleep(60 * SECOND).await;
        for event in events {
            let (verdict, took) = bench.begin("s", event).await.unwrap();
            assert_eq!(
                (verdict, took),
                (Verdict::Ok, Duration::ZERO),
                "{trouble:?}"
            );
            assert!(!bench.pipeline.metrics().circuit_is_open(), "{trouble:?}");
        }
        let calls = bench.sink.calls().split_off(before).concat();
        let mut delivered = calls.clone();
        delivered.sort();
        assert_eq!(delivered, lines(&events), "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_healthy_part_of_a_chunk_with_an_unavailable_stream_is_sent_once() {
    for trouble in TROUBLES {
        let bench = Bench::new(ONE_LINE, BY_RECORD, vec![]);
        bench.sink.set_trouble("down", Some(trouble));
        assert_eq!(bench.flush(&["down"]).await, Verdict::Retry);
        let start = Instant::now();
        for _ in 0..20 {
            assert_eq!(bench.flush(&["down", "well"]).await, Verdict::Retry);
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "{trouble:?}");
        assert_eq!(bench.calls_to("well"), 1, "{trouble:?}");
        bench.sink.set_trouble("down", None);
        sleep(60 * SECOND).await;
        assert_eq!(bench.flush(&["down", "well"]).await, Verdict::Ok);
        assert_eq!(bench.calls_to("well"), 1, "{trouble:?}");
    }
}

/// A chunk whose records are in flight to a target that does not answer has nothing to send on a retry: the request in
/// flight decides.
#[tokio::test(start_paused = true)]
async fn a_chunk_whose_request_has_no_answer_is_retried_at_once_and_not_sent_again() {
    let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
    bench.sink.set_trouble("s", Some(Trouble::Silent));
    bench.open("s").await;
    sleep(SECOND).await;
    // A probe is in flight for this one.
    let (verdict, took) = bench.begin("s", "probe").await.unwrap();
    assert!(
        verdict == Verdict::Retry && took > Duration::ZERO,
        "{took:?}"
    );
    for event in ["opens", "probe", "opens"] {
        let (verdict, took) = bench.begin("s", event).await.unwrap();
        assert_eq!((verdict, took), (Verdict::Retry, Duration::ZERO), "{event}");
    }
    assert_eq!(bench.calls_to("s"), 2);
    bench.sink.set_trouble("s", None);
    sleep(SECOND).await;
    for event in ["opens", "probe"] {
        let (verdict, _) = bench.begin("s", event).await.unwrap();
        assert_eq!(verdict, Verdict::Ok, "{event}");
    }
    assert_eq!(bench.calls_to("s"), 2, "both were answered in the end");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_is_followed_by_another_after_a_wait() {
    let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
    bench
        .sink
        .set_trouble("s", Some(Trouble::Down(Class::Transient)));
    bench.open("s").await;
    sleep(60 * SECOND).await;
    let panics: Step = Box::new(|_| panic!("on purpose"));
    bench.sink.script.lock().unwrap().push_back(panics);
    let calls = bench.calls_to("s");
    for expected in [1, 1] {
        let (verdict, took) = bench.begin("s", "a").await.unwrap();
        assert_eq!((verdict, took), (Verdict::Retry, Duration::ZERO));
        assert_eq!(bench.calls_to("s") - calls, expected);
    }
    bench.sink.set_trouble("s", None);
    sleep(60 * SECOND).await;
    assert_eq!(bench.begin("s", "a").await.unwrap().0, Verdict::Ok);
}

/// A probing flush may have nothing to send in the end.
#[tokio::test(start_paused = true)]
async fn a_flush_that_ends_before_it_probed_leaves_the_probe_to_another() {
    let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
    bench
        .sink
        .set_trouble("s", Some(Trouble::Down(Class::Transient)));
    bench.open("s").await;
    bench.sink.set_trouble("s", None);
    sleep(60 * SECOND).await;
    let letters = bench.dir.path().join("letters");
    std::fs::remove_dir(&letters).unwrap();
    std::fs::write(&letters, "a file in its place").unwrap();
    let long = "x".repeat(2_000);
    let (verdict, _) = bench.begin("s", &long).await.unwrap();
    assert_eq!(verdict, Verdict::Retry, "its letter cannot be kept");
    sleep(60 * SECOND).await;
    assert_eq!(bench.begin("s", "a").await.unwrap().0, Verdict::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_store_has_one_circuit_for_all_of_its_folders() {
    let keys = [("url", "file:///objects"), ("compression", "none")];
    let down = || all(Outcome::Retry, Class::Transient);
    let bench = Bench::new(OBJECT, &keys, (0..5).map(|_| down()).collect());
    assert_eq!(bench.begin("one", "a").await.unwrap().0, Verdict::Retry);
    assert!(bench.pipeline.metrics().circuit_is_open());
    let (verdict, took) = bench.begin("other", "b").await.unwrap();
    assert_eq!((verdict, took), (Verdict::Retry, Duration::ZERO));
    sleep(60 * SECOND).await;
    for (tag, event) in [("other", "b"), ("one", "a")] {
        assert_eq!(bench.begin(tag, event).await.unwrap().0, Verdict::Ok);
    }
    let mut targets = bench.sink.targets().split_off(5);
    targets.dedup();
    assert_eq!(targets.len(), 2, "{targets:?}");
    assert!(!targets.iter().any(|target| target.ends_with("-2.ndjson")));
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_does_not_keep_the_slot_that_others_need() {
    let keys = [("delivery_stream", "{tag}"), ("concurrency", "1")];
    let bench = Bench::new(ONE_LINE, &keys, vec![]);
    bench.sink.set_trouble("down", Some(Trouble::Silent));
    bench.open("down").await;
    for event in ["a", "b", "c"] {
        sleep(SECOND).await;
        let probe = bench.begin("down", event);
        sleep(Duration::from_millis(1)).await;
        let (verdict, took) = bench.begin("well", event).await.unwrap();
        assert_eq!(verdict, Verdict::Ok);
        assert!(took <= 2 * SECOND, "{took:?}");
        assert_eq!(probe.await.unwrap().0, Verdict::Retry);
    }
}

/// If all chunks have one target, those answered at once take no memory from the ones in progress.
#[tokio::test(start_paused = true)]
async fn a_chunk_answered_at_once_does_not_wait_for_memory() {
    let bench = Bench::new(ONE_LINE, &[("memory_limit", "4M")], vec![]);
    bench
        .sink
        .set_trouble("s", Some(Trouble::Down(Class::Transient)));
    bench.open("app").await;
    let all = bench.pipeline.context.memory.reserve(usize::MAX).await;
    let (verdict, took) = bench.begin("app", "a").await.unwrap();
    assert_eq!((verdict, took), (Verdict::Retry, Duration::ZERO));
    drop(all);
}

/// Chunks of which nothing was sent must not evict the progress of others.
#[tokio::test(start_paused = true)]
async fn chunks_of_which_nothing_was_sent_are_not_remembered() {
    let bench = Bench::new(ONE_LINE, BY_RECORD, vec![]);
    bench
        .sink
        .set_trouble("down", Some(Trouble::Down(Class::Configuration)));
    assert_eq!(bench.flush(&["down"]).await, Verdict::Retry);
    assert_eq!(bench.flush(&["down", "well"]).await, Verdict::Retry);
    for n in 0..2_000 {
        let tag = format!("{n}");
        let verdict = bench.pipeline.flush(tag.as_bytes(), chunk(&["down"])).await;
        assert_eq!(verdict, Verdict::Retry);
    }
    bench.sink.set_trouble("down", None);
    sleep(60 * SECOND).await;
    assert_eq!(bench.flush(&["down", "well"]).await, Verdict::Ok);
    assert_eq!(bench.calls_to("well"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_few_unlucky_retries_of_one_record_do_not_open_the_circuit() {
    let last: Step = Box::new(|batch| {
        let mut outcomes = vec![Outcome::Delivered; batch.records.len()];
        *outcomes.last_mut().unwrap() = Outcome::Retry(fault(Class::Throttle));
        outcomes
    });
    let mut script = vec![last];
    script.extend((0..4).map(|_| all(Outcome::Retry, Class::Throttle)));
    let bench = Bench::new(ONE_LINE, &[], script);
    assert_eq!(bench.flush(&["a", "b", "c"]).await, Verdict::Ok);
    assert_eq!(bench.sink.calls().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_takes_longer_than_its_flush_waits_is_not_sent_again() {
    let go = Arc::new(Notify::new());
    let keys = [("url", "file:///objects"), ("compression", "none")];
    let bench = Bench::with_gate(OBJECT, &keys, vec![], Some(Arc::clone(&go)));
    assert_eq!(bench.begin("app", "a").await.unwrap().0, Verdict::Retry);
    // It is retried when a probe is due, and the put is still in flight.
    sleep(60 * SECOND).await;
    assert_eq!(bench.begin("app", "a").await.unwrap().0, Verdict::Retry);
    assert_eq!(bench.sink.calls().len(), 1);
    go.notify_one();
    sleep(SECOND).await;
    assert_eq!(bench.begin("app", "a").await.unwrap().0, Verdict::Ok);
    assert_eq!(bench.sink.calls().len(), 1);
}

/// Once the host was asked to stop, neither a slow destination nor exhausted memory delays it.
#[tokio::test(start_paused = true)]
async fn flushes_end_on_time_whatever_they_wait_for() {
    let keys = [
        ("delivery_stream", "{tag}"),
        ("memory_limit", "4M"),
        ("concurrency", "1"),
    ];
    let bench = Bench::new(ONE_LINE, &keys, vec![]);
    bench.sink.set_trouble("silent", Some(Trouble::Silent));
    bench.sink.set_trouble("new", Some(Trouble::Undescribed));
    let large = "x".repeat(900);
    let large = chunk(&vec![large.as_str(); 2_300]);
    let pipeline = Arc::clone(&bench.pipeline);
    let first = tokio::spawn(async move { pipeline.flush(b"silent", large).await });
    sleep(SECOND).await;
    let flushes = ["silent", "new", "well"].map(|tag| bench.begin(tag, "a"));
    sleep(SECOND).await;
    let start = Instant::now();
    bench.pipeline.end_flushes(start + 60 * SECOND);
    bench.pipeline.end_flushes(start + 2 * SECOND);
    bench.pipeline.end_flushes(start + 9 * SECOND);
    assert_eq!(first.await.unwrap(), Verdict::Retry);
    assert_eq!(start.elapsed(), 2 * SECOND);
    for flush in flushes {
        assert_eq!(flush.await.unwrap(), (Verdict::Retry, 3 * SECOND));
    }
    assert!(bench.logged("the host is stopping") && !bench.logged("memory_limit is reached"));
    let calls = bench.sink.calls().len();
    let (verdict, took) = bench.begin("well", "b").await.unwrap();
    assert_eq!((verdict, took), (Verdict::Retry, Duration::ZERO));
    assert_eq!(bench.sink.calls().len(), calls, "nothing is sent any more");
}

/// A chunk may be too large to be encoded at once: its probe is the first of several parts.
#[tokio::test(start_paused = true)]
async fn a_chunk_of_several_steps_closes_the_circuit_and_sends_the_rest() {
    const EVENTS: usize = 40_000;
    let shape = Shape {
        limits: Limits {
            batch_records: 500,
            ..ONE_LINE.limits
        },
        ..ONE_LINE
    };
    let bench = Bench::new(shape, BY_TAG, vec![]);
    bench
        .sink
        .set_trouble("s", Some(Trouble::Down(Class::Transient)));
    bench.open("s").await;
    let events: Vec<String> = (0..EVENTS).map(|n| n.to_string()).collect();
    let data = chunk(&events.iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..3 {
        sleep(60 * SECOND).await;
        let calls = bench.calls_to("s");
        assert_eq!(
            bench.pipeline.flush(b"s", data.clone()).await,
            Verdict::Retry
        );
        assert_eq!(bench.calls_to("s") - calls, 1);
    }
    bench.sink.set_trouble("s", None);
    sleep(60 * SECOND).await;
    let calls = bench.calls_to("s");
    assert_eq!(bench.pipeline.flush(b"s", data).await, Verdict::Ok);
    let sent = bench.sink.calls().split_off(calls).concat();
    assert_eq!(sent.len(), EVENTS);
}

/// The host retries everything pending again and again: some thousand chunks, each with a part that was sent.
#[tokio::test(start_paused = true)]
async fn in_an_outage_no_healthy_part_is_sent_twice_however_many_chunks_are_pending() {
    // The second batch exceeds what may be remembered.
    for (chunks, all) in [(3_000, true), (20_000, false)] {
        let bench = Bench::new(ONE_LINE, BY_RECORD, vec![]);
        bench
            .sink
            .set_trouble("down", Some(Trouble::Down(Class::Configuration)));
        assert_eq!(bench.flush(&["down"]).await, Verdict::Retry);
        let flush = async |n: u32| {
            let mixed = chunk(&["down", "well"]);
            bench.pipeline.flush(&n.to_le_bytes(), mixed).await
        };
        let mut sent = Vec::new();
        for _ in 0..3 {
            for n in 0..chunks {
                assert_eq!(flush(n).await, Verdict::Retry);
            }
            sent.push(bench.calls_to("well"));
        }
        assert_eq!(sent[0], sent[2], "of {chunks}: {sent:?}");
        assert_eq!(sent[0] == chunks as usize, all, "of {chunks}: {sent:?}");
        bench.sink.set_trouble("down", None);
        sleep(60 * SECOND).await;
        for n in 0..chunks {
            assert_eq!(flush(n).await, Verdict::Ok);
        }
        assert_eq!(bench.calls_to("well"), chunks as usize);
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_the_host_keeps_does_not_become_young_with_each_retry() {
    for trouble in TROUBLES {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.set_trouble("down", Some(trouble));
        let oldest = || {
            let page = crate::metrics::text("f", &bench.pipeline.figures());
            let line = page
                .lines()
                .find(|line| line.starts_with("ferry_oldest_unsent_seconds"));
            let value = line.and_then(|line| line.rsplit_once(' ')).unwrap().1;
            value.parse::<f64>().unwrap()
        };
        let start = Instant::now();
        for _ in 0..4 {
            assert_eq!(bench.begin("down", "a").await.unwrap().0, Verdict::Retry);
            sleep(30 * SECOND).await;
            assert_eq!(oldest(), start.elapsed().as_secs_f64(), "{trouble:?}");
        }
        // A chunk that is delivered meanwhile changes nothing.
        assert_eq!(bench.begin("well", "b").await.unwrap().0, Verdict::Ok);
        assert_eq!(oldest(), start.elapsed().as_secs_f64(), "{trouble:?}");
        bench.sink.set_trouble("down", None);
        while bench.begin("down", "a").await.unwrap().0 == Verdict::Retry {
            assert!(start.elapsed() < 600 * SECOND, "{trouble:?}");
            sleep(5 * SECOND).await;
        }
        assert_eq!(oldest(), 0.0, "{trouble:?}");
    }
}

/// Nobody else needs the slots of a destination with one target.
#[tokio::test(start_paused = true)]
async fn a_hanging_request_of_the_only_target_keeps_its_slot() {
    let bench = Bench::new(ONE_LINE, &[("concurrency", "1")], vec![]);
    bench.sink.set_trouble("s", Some(Trouble::Silent));
    let first = bench.begin("app", "a");
    sleep(SECOND).await;
    let second = bench.begin("app", "b");
    sleep(8 * SECOND).await;
    assert_eq!(bench.sink.calls().len(), 1);
    for flush in [first, second] {
        assert_eq!(flush.await.unwrap().0, Verdict::Retry);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_a_slot_keeps_its_place_when_more_arrives_for_it() {
    let go = Arc::new(Notify::new());
    let keys = [("delivery_stream", "{tag}"), ("concurrency", "1")];
    let bench = Bench::with_gate(ONE_LINE, &keys, vec![], Some(Arc::clone(&go)));
    let mut flushes = Vec::new();
    for (tag, event) in [("x", "1"), ("a", "1"), ("b", "1"), ("a", "2")] {
        flushes.push(bench.begin(tag, event));
        sleep(Duration::from_millis(1)).await;
    }
    for flush in flushes {
        go.notify_one();
        sleep(Duration::from_millis(1)).await;
        drop(flush);
    }
    assert_eq!(bench.sink.targets(), ["x", "a", "b"]);
}

/// A process without descriptors cannot tell anything about a destination.
#[tokio::test(start_paused = true)]
async fn a_process_out_of_descriptors_makes_no_target_unavailable() {
    for keys in [&[][..], BY_TAG] {
        let refuse = || -> Step {
            Box::new(|batch: &Batch| {
                let fault = Fault {
                    class: Class::Transient,
                    code: OWN_TROUBLE.into(),
                    message: "Too many open files".into(),
                    request_id: None,
                };
                vec![Outcome::Retry(Arc::new(fault)); batch.records.len()]
            })
        };
        let script = (0..20).map(|_| refuse()).collect();
        let bench = Bench::new(ONE_LINE, keys, script);
        let flush = bench.begin("s", "a");
        sleep(8 * SECOND).await;
        assert!(!bench.pipeline.metrics().circuit_is_open());
        drop(flush);
        assert!(!bench.logged("is unavailable"));
        assert!(bench.logged("Too many open files"));
    }
}
