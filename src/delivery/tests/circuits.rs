//! Direct mode while a target takes nothing: what its flushes cost those of the others, and the host.

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;

/// Streams by tag, so that a test has a sick one beside a healthy one.
const BY_TAG: &[(&str, &str)] = &[("delivery_stream", "{tag}")];
/// Streams by record.
const BY_RECORD: &[(&str, &str)] = &[("delivery_stream", "{record.k}")];
const SECOND: Duration = Duration::from_secs(1);

impl Bench {
    /// A flush as one of the host's workers has it.
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

    /// How often each line arrived at a target that takes everything.
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

/// What is wrong with a target whose flushes are to cost the others nothing.
const SICK: [Sick; 5] = [
    Sick::Down(Class::Configuration),
    Sick::Down(Class::Transient),
    Sick::Down(Class::Throttle),
    Sick::Silent,
    Sick::Undescribed,
];

/// The host has two workers, hands them chunks in turn, and each waits for its flush. After RETRY a chunk comes
/// again some seconds later.
#[tokio::test(start_paused = true)]
async fn a_sick_stream_does_not_hold_the_workers_that_a_healthy_one_needs() {
    const CHUNKS: usize = 100;
    for sick in SICK {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.is("sick", Some(sick));
        let events: Vec<String> = (0..CHUNKS).map(|n| n.to_string()).collect();
        let start = Instant::now();
        let mut took = Duration::ZERO;
        let work = |worker: usize| {
            let (bench, events) = (&bench, &events);
            async move {
                for event in events.iter().skip(worker).step_by(2) {
                    let sick = bench.begin("sick", event).await.unwrap();
                    assert_eq!(sick.0, Verdict::Retry);
                    let well = bench.begin("well", event).await.unwrap();
                    assert_eq!(well, (Verdict::Ok, Duration::ZERO), "{event}");
                }
                start.elapsed()
            }
        };
        for worker in futures::future::join_all([work(0), work(1)]).await {
            took = took.max(worker);
        }
        assert!(took < 40 * SECOND, "{sick:?}: {took:?} for {CHUNKS} chunks");
        let arrived = bench.arrived("well");
        assert!(
            arrived.len() == CHUNKS && arrived.values().all(|times| *times == 1),
            "{sick:?}: {arrived:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_circuit_that_opens_is_let_go_and_comes_back_at_once_after_that() {
    for sick in SICK {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.is("s", Some(sick));
        let flushes: Vec<_> = ["a", "b", "c", "d"]
            .map(|event| bench.begin("s", event))
            .into();
        for flush in flushes {
            let (verdict, took) = flush.await.unwrap();
            assert_eq!(verdict, Verdict::Retry);
            assert!(took <= 11 * SECOND, "{sick:?}: {took:?}");
        }
        assert!(bench.pipeline.metrics().circuit_is_open(), "{sick:?}");
        assert!(
            !bench.said("within flush_deadline"),
            "{sick:?}: it is not that"
        );
        let calls = bench.sink.calls().len();
        let (verdict, took) = bench.begin("s", "e").await.unwrap();
        assert_eq!(
            (verdict, took),
            (Verdict::Retry, Duration::ZERO),
            "{sick:?}"
        );
        assert_eq!(
            bench.sink.calls().len(),
            calls,
            "{sick:?}: nothing is sent for it"
        );
    }
}

/// A worker that waits for five tries of each name that does not exist is a worker that the others do not have.
#[tokio::test(start_paused = true)]
async fn a_missing_stream_costs_one_request_and_no_wait() {
    let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
    for sick in ["s1", "s2", "s3"] {
        bench.sink.is(sick, Some(Sick::Down(Class::Configuration)));
        let flushed = bench.begin(sick, "e").await.unwrap();
        assert_eq!(flushed, (Verdict::Retry, Duration::ZERO));
        assert_eq!(bench.calls_to(sick), 1);
        let well = bench.begin("well", sick).await.unwrap();
        assert_eq!(well, (Verdict::Ok, Duration::ZERO));
    }
    bench.sink.is("s1", None);
    sleep(2 * SECOND).await;
    assert_eq!(bench.begin("s1", "e").await.unwrap().0, Verdict::Ok);
}

#[tokio::test(start_paused = true)]
async fn when_a_probe_is_due_one_of_many_flushes_sends_it() {
    // One that is silent answers no probe, and there is no other meanwhile.
    for (sick, rounds, patience) in [
        (Sick::Down(Class::Transient), 3, Duration::ZERO),
        (Sick::Down(Class::Throttle), 3, Duration::ZERO),
        (Sick::Silent, 1, 2 * SECOND),
    ] {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.is("s", Some(sick));
        bench.open("s").await;
        for round in 0..rounds {
            // Longer than any wait of the breaker's.
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
            assert_eq!(bench.calls_to("s") - calls, 1, "{sick:?} {round}");
            let expected = (!patience.is_zero()).then_some(patience);
            assert_eq!(waited, Vec::from_iter(expected), "{sick:?} {round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_flush_after_it_is_mended_closes_the_circuit_and_nothing_is_there_twice() {
    for sick in SICK {
        let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
        bench.sink.is("s", Some(sick));
        let events = ["a", "b", "c", "d"];
        let flushes: Vec<_> = events.map(|event| bench.begin("s", event)).into();
        for flush in flushes {
            assert_eq!(flush.await.unwrap().0, Verdict::Retry);
        }
        sleep(60 * SECOND).await;
        let before = match sick {
            // It took them when it was well again, and only the answer was late.
            Sick::Silent => 0,
            _ => bench.calls_to("s"),
        };
        bench.sink.is("s", None);
        sleep(60 * SECOND).await;
        for event in events {
            let (verdict, took) = bench.begin("s", event).await.unwrap();
            assert_eq!((verdict, took), (Verdict::Ok, Duration::ZERO), "{sick:?}");
            assert!(!bench.pipeline.metrics().circuit_is_open(), "{sick:?}");
        }
        let calls = bench.sink.calls().split_off(before).concat();
        let mut delivered = calls.clone();
        delivered.sort();
        assert_eq!(delivered, lines(&events), "{sick:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_chunk_for_a_sick_and_a_healthy_stream_the_healthy_part_is_sent_once() {
    for sick in SICK {
        let bench = Bench::new(ONE_LINE, BY_RECORD, vec![]);
        bench.sink.is("sick", Some(sick));
        assert_eq!(bench.flush(&["sick"]).await, Verdict::Retry);
        let start = Instant::now();
        for _ in 0..20 {
            assert_eq!(bench.flush(&["sick", "well"]).await, Verdict::Retry);
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "{sick:?}");
        assert_eq!(bench.calls_to("well"), 1, "{sick:?}");
        bench.sink.is("sick", None);
        sleep(60 * SECOND).await;
        assert_eq!(bench.flush(&["sick", "well"]).await, Verdict::Ok);
        assert_eq!(bench.calls_to("well"), 1, "{sick:?}");
    }
}

/// A chunk whose records are on their way to a target that does not answer has nothing to send when it comes
/// again: the request that is out decides.
#[tokio::test(start_paused = true)]
async fn a_chunk_whose_request_has_no_answer_comes_back_at_once_and_is_not_sent_again() {
    let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
    bench.sink.is("s", Some(Sick::Silent));
    bench.open("s").await;
    sleep(SECOND).await;
    // A probe is on its way for this one.
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
    bench.sink.is("s", None);
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
    bench.sink.is("s", Some(Sick::Down(Class::Transient)));
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
    bench.sink.is("s", None);
    sleep(60 * SECOND).await;
    assert_eq!(bench.begin("s", "a").await.unwrap().0, Verdict::Ok);
}

/// Whoever probes may have nothing to send in the end.
#[tokio::test(start_paused = true)]
async fn a_flush_that_ends_before_it_probed_leaves_the_probe_to_another() {
    let bench = Bench::new(ONE_LINE, BY_TAG, vec![]);
    bench.sink.is("s", Some(Sick::Down(Class::Transient)));
    bench.open("s").await;
    bench.sink.is("s", None);
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
async fn a_silent_stream_does_not_keep_the_place_that_others_send_from() {
    let keys = [("delivery_stream", "{tag}"), ("concurrency", "1")];
    let bench = Bench::new(ONE_LINE, &keys, vec![]);
    bench.sink.is("sick", Some(Sick::Silent));
    bench.open("sick").await;
    for event in ["a", "b", "c"] {
        sleep(SECOND).await;
        let probe = bench.begin("sick", event);
        sleep(Duration::from_millis(1)).await;
        let (verdict, took) = bench.begin("well", event).await.unwrap();
        assert_eq!(verdict, Verdict::Ok);
        assert!(took <= 2 * SECOND, "{took:?}");
        assert_eq!(probe.await.unwrap().0, Verdict::Retry);
    }
}

/// Where all chunks have one target, those that come back at once take no memory from the ones in progress.
#[tokio::test(start_paused = true)]
async fn a_chunk_that_goes_back_at_once_waits_for_no_memory() {
    let bench = Bench::new(ONE_LINE, &[("memory_limit", "4M")], vec![]);
    bench.sink.is("s", Some(Sick::Down(Class::Transient)));
    bench.open("app").await;
    let all = bench.pipeline.context.memory.reserve(usize::MAX).await;
    let (verdict, took) = bench.begin("app", "a").await.unwrap();
    assert_eq!((verdict, took), (Verdict::Retry, Duration::ZERO));
    drop(all);
}

/// Of many chunks that come back with nothing sent, none takes the place of one that has something to tell.
#[tokio::test(start_paused = true)]
async fn chunks_of_which_nothing_was_sent_are_not_remembered() {
    let bench = Bench::new(ONE_LINE, BY_RECORD, vec![]);
    bench
        .sink
        .is("sick", Some(Sick::Down(Class::Configuration)));
    assert_eq!(bench.flush(&["sick"]).await, Verdict::Retry);
    assert_eq!(bench.flush(&["sick", "well"]).await, Verdict::Retry);
    for n in 0..2_000 {
        let tag = format!("{n}");
        let verdict = bench.pipeline.flush(tag.as_bytes(), chunk(&["sick"])).await;
        assert_eq!(verdict, Verdict::Retry);
    }
    bench.sink.is("sick", None);
    sleep(60 * SECOND).await;
    assert_eq!(bench.flush(&["sick", "well"]).await, Verdict::Ok);
    assert_eq!(bench.calls_to("well"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_last_record_that_is_unlucky_a_few_times_opens_nothing() {
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
    // It comes again when a probe is due, and the put is still on its way.
    sleep(60 * SECOND).await;
    assert_eq!(bench.begin("app", "a").await.unwrap().0, Verdict::Retry);
    assert_eq!(bench.sink.calls().len(), 1);
    go.notify_one();
    sleep(SECOND).await;
    assert_eq!(bench.begin("app", "a").await.unwrap().0, Verdict::Ok);
    assert_eq!(bench.sink.calls().len(), 1);
}

/// Once the host was asked to end, neither a far end that is slow nor memory that is full holds it up.
#[tokio::test(start_paused = true)]
async fn flushes_end_when_they_are_to_whatever_they_wait_for() {
    let keys = [
        ("delivery_stream", "{tag}"),
        ("memory_limit", "4M"),
        ("concurrency", "1"),
    ];
    let bench = Bench::new(ONE_LINE, &keys, vec![]);
    bench.sink.is("silent", Some(Sick::Silent));
    bench.sink.is("new", Some(Sick::Undescribed));
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
    assert!(bench.said("the host is stopping") && !bench.said("memory_limit is reached"));
    let calls = bench.sink.calls().len();
    let (verdict, took) = bench.begin("well", "b").await.unwrap();
    assert_eq!((verdict, took), (Verdict::Retry, Duration::ZERO));
    assert_eq!(bench.sink.calls().len(), calls, "nothing is sent any more");
}

/// A chunk may be too much to be encoded at once: what probes for it is the first of several parts.
#[tokio::test(start_paused = true)]
async fn a_chunk_of_several_steps_closes_the_circuit_too_and_goes_on_with_the_others() {
    const EVENTS: usize = 40_000;
    let shape = Shape {
        limits: Limits {
            batch_records: 500,
            ..ONE_LINE.limits
        },
        ..ONE_LINE
    };
    let bench = Bench::new(shape, BY_TAG, vec![]);
    bench.sink.is("s", Some(Sick::Down(Class::Transient)));
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
    bench.sink.is("s", None);
    sleep(60 * SECOND).await;
    let calls = bench.calls_to("s");
    assert_eq!(bench.pipeline.flush(b"s", data).await, Verdict::Ok);
    let sent = bench.sink.calls().split_off(calls).concat();
    assert_eq!(sent.len(), EVENTS);
}

/// The host tries all that is pending again and again: some thousand chunks, each with a part that was sent.
#[tokio::test(start_paused = true)]
async fn through_an_outage_no_healthy_part_is_sent_twice_however_many_chunks_are_pending() {
    // The second are more than may be remembered.
    for (chunks, all) in [(3_000, true), (20_000, false)] {
        let bench = Bench::new(ONE_LINE, BY_RECORD, vec![]);
        bench
            .sink
            .is("sick", Some(Sick::Down(Class::Configuration)));
        assert_eq!(bench.flush(&["sick"]).await, Verdict::Retry);
        let flush = async |n: u32| {
            let mixed = chunk(&["sick", "well"]);
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
        bench.sink.is("sick", None);
        sleep(60 * SECOND).await;
        for n in 0..chunks {
            assert_eq!(flush(n).await, Verdict::Ok);
        }
        assert_eq!(bench.calls_to("well"), chunks as usize);
    }
}
