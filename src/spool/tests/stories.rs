//! One behaviour per test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use futures::FutureExt as _;

use super::*;
use crate::spool::disk::{Disk, File, FileId, LocalDisk, LockState};
use crate::spool::frame::RESERVE;
use crate::spool::scan::{Check, survey};
use crate::spool::sim::{Call, Faults};

fn broken(calls: &[Call]) -> Faults {
    Faults {
        broken: calls.to_vec(),
        ..Faults::default()
    }
}

#[test]
fn chunks_are_read_back_unchanged_in_order_and_after_a_restart() {
    let mut bench = Bench::new(SMALL);
    let id = {
        bench.keep(1, 100);
        bench.keep(2, 5_000);
        bench.append(b"", b"").unwrap();
        bench.spool().id()
    };
    for run in 0..3 {
        let visible = bench.visible();
        assert_eq!(visible.len(), 3, "run {run}");
        assert_eq!(visible[0].1.tag, b"app.log");
        assert_eq!(visible[1].1.data, vec![2; 5_000]);
        assert_eq!(
            visible[1].1.arrived,
            Time {
                seconds: 2,
                nanos: 7
            }
        );
        assert_eq!(
            (&visible[2].1.tag[..], &visible[2].1.data[..]),
            (&b""[..], &b""[..])
        );
        let (second, _) = visible[1];
        assert_eq!(bench.spool().read(second).unwrap(), visible[1].1);
        assert_eq!(
            bench.spool().peek(Some(visible[0].0)),
            Some((second, 5_000))
        );
        assert_eq!(bench.spool().peek(Some(visible[2].0)), None);
        let usage = bench.spool().usage();
        assert_eq!((usage.unfinished, usage.limit), (3, SMALL.limit));
        assert_eq!(usage.oldest.map(|time| time.seconds), Some(1));
        assert_eq!(bench.spool().id(), id, "run {run}");
        let recovered = if run == 0 {
            bench.crash()
        } else {
            bench.restart()
        };
        assert_eq!(recovered.unfinished, 3);
        assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
    }
}

#[test]
fn reading_a_finished_chunk_says_that_it_is_finished() {
    let bench = Bench::new(SMALL);
    bench.keep(1, 10);
    bench.keep(2, 10);
    let [(first, _), (second, _)] = bench.visible()[..] else {
        panic!("two chunks");
    };
    for _ in 0..2 {
        bench.spool().finish(first);
        assert_eq!(bench.spool().peek(None).map(|(seq, _)| seq), Some(second));
        assert_eq!(bench.spool().usage().unfinished, 1);
    }
    let read = bench.spool().read(first);
    assert!(matches!(read, Err(Unreadable::Finished)), "{read:?}");
    assert!(
        !bench
            .sim
            .files()
            .iter()
            .any(|(name, _)| name.starts_with("quarantine"))
    );
}

#[test]
fn more_is_woken_by_a_chunk_between_the_call_and_the_wait() {
    let bench = Bench::new(SMALL);
    let more = bench.spool().more();
    bench.keep(1, 10);
    assert_eq!(more.now_or_never(), Some(()));
    // A note wakes no reader.
    let mut more = Box::pin(bench.spool().more());
    bench.spool().wait_until_idle();
    assert_eq!(more.as_mut().now_or_never(), None);
    bench.keep(2, 10);
    assert_eq!(more.now_or_never(), Some(()));
}

#[test]
fn many_appends_share_one_sync() {
    const MANY: usize = 200;
    let bench = Bench::new(Options {
        limit: 1 << 20,
        segment_bytes: None,
    });
    bench.keep(0, 10);
    bench.sim.take_log();
    bench.sim.hold_syncs(true);
    let contents: Vec<[u8; 2]> = (0..MANY).map(|n| (n as u16 + 1).to_be_bytes()).collect();
    let deadline = Instant::now() + Duration::from_secs(600);
    let mut appends: Vec<_> = contents
        .iter()
        .map(|data| Box::pin(bench.spool().append(chunk(b"t", data), deadline)))
        .collect();
    bench.runtime.block_on(async {
        // Each is polled once, so it is queued, or in the group whose sync is blocked.
        for append in &mut appends {
            assert!(matches!(futures::poll!(append), Poll::Pending));
        }
        bench.sim.wait_for_a_held_sync();
        assert_eq!(
            bench.spool().usage().unfinished,
            1,
            "nothing is visible before its sync"
        );
        bench.sim.hold_syncs(false);
        for append in appends {
            assert!(matches!(append.await, Ok(Appended::Kept)));
        }
    });
    let log = bench.sim.take_log();
    let count = |call| log.iter().filter(|(made, _)| *made == call).count();
    assert!(
        (1..=2).contains(&count(Call::Sync)),
        "{} syncs",
        count(Call::Sync)
    );
    assert!(
        (1..=2).contains(&count(Call::Write)),
        "{} writes",
        count(Call::Write)
    );
    assert_eq!(bench.spool().usage().unfinished, MANY as u64 + 1);
}

#[test]
fn chunks_appended_and_finished_concurrently_are_each_seen_once() {
    const HOSTS: u8 = 4;
    const EACH: u8 = 100;
    let (bench, _) = Bench::on(Sim::new(1), SMALL);
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(600);
    let hosts = (0..HOSTS).map(|host| {
        let spool = Arc::clone(bench.spool());
        runtime.spawn(async move {
            for n in 0..EACH {
                let data = [host, n].repeat(200);
                while let Err(refusal) = spool.append(chunk(b"t", &data), deadline).await {
                    assert!(matches!(refusal, Refusal::Full { .. }), "{refusal:?}");
                    tokio::task::yield_now().await;
                }
            }
        })
    });
    let hosts: Vec<_> = hosts.collect();
    let spool = Arc::clone(bench.spool());
    let reader = runtime.spawn(async move {
        let mut seen = Vec::new();
        let mut after = None;
        while seen.len() < usize::from(HOSTS) * usize::from(EACH) {
            let more = spool.more();
            let Some((chunk, stored)) = next(&spool, after) else {
                more.await;
                continue;
            };
            after = Some(chunk);
            seen.push((stored.unwrap().data[0], chunk));
            spool.note(done(chunk), Durability::Written).await.unwrap();
            spool.finish(chunk);
        }
        seen
    });
    runtime.block_on(async {
        for host in hosts {
            host.await.unwrap();
        }
        let seen = reader.await.unwrap();
        for host in 0..HOSTS {
            let of = seen.iter().filter(|(by, _)| *by == host).count();
            assert_eq!(of, usize::from(EACH));
        }
    });
    bench.spool().wait_until_idle();
    assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
    assert_eq!(bench.spool().shared.state().reserved, 0);
    bench.spool().close();
    assert_eq!(bench.segments().len(), 1);
}

#[test]
fn a_chunk_whose_deadline_passes_in_the_queue_is_dropped() {
    let bench = Bench::new(SMALL);
    bench.keep(0, 10);
    bench.sim.hold_syncs(true);
    let loan = Bytes::from(vec![2; 10]);
    bench.runtime.block_on(async {
        let patient = Instant::now() + Duration::from_secs(600);
        let mut first = Box::pin(bench.spool().append(chunk(b"t", &[1; 10]), patient));
        assert!(futures::poll!(&mut first).is_pending());
        bench.sim.wait_for_a_held_sync();
        // The thread is busy: further appends are queued.
        let soon = Instant::now() + Duration::from_millis(20);
        let late = Chunk {
            data: loan.clone(),
            ..chunk(b"t", &loan)
        };
        assert!(matches!(
            bench.spool().append(late.clone(), soon).await,
            Err(Refusal::TooLate)
        ));
        drop(late);
        assert!(loan.is_unique());
        // A caller that drops its future leaves nothing behind either.
        let gone = Chunk {
            data: loan.clone(),
            ..chunk(b"t", &loan)
        };
        let mut gone = Box::pin(bench.spool().append(gone, patient));
        assert!(futures::poll!(&mut gone).is_pending());
        drop(gone);
        assert!(loan.is_unique());
        // A deadline that has already passed is too late.
        let over = bench.spool().append(chunk(b"t", &[3; 10]), Instant::now());
        assert!(matches!(over.await, Err(Refusal::TooLate)));
        bench.sim.hold_syncs(false);
        assert!(matches!(first.await, Ok(Appended::Kept)));
    });
    bench.spool().wait_until_idle();
    assert_eq!(bench.bytes(), [0, 1]);
    assert_eq!(bench.spool().shared.state().reserved, 0);
}

#[test]
fn a_chunk_that_is_being_written_is_awaited_beyond_its_deadline() {
    let bench = Bench::new(SMALL);
    bench.sim.hold_syncs(true);
    bench.runtime.block_on(async {
        // Long enough for the poll below to come first, even on a busy machine.
        let soon = Instant::now() + Duration::from_millis(300);
        let mut append = Box::pin(bench.spool().append(chunk(b"t", &[1; 10]), soon));
        assert!(futures::poll!(&mut append).is_pending());
        bench.sim.wait_for_a_held_sync();
        tokio::time::sleep_until(soon + Duration::from_millis(1)).await;
        assert!(futures::poll!(&mut append).is_pending());
        bench.sim.hold_syncs(false);
        assert!(matches!(append.await, Ok(Appended::Kept)));
    });
    assert_eq!(bench.bytes(), [1]);
}

#[test]
fn a_full_spool_refuses_at_once_and_accepts_again_after_a_finish() {
    // It is filled by one segment, by many, and by a single chunk.
    for (segment_bytes, len) in [(1 << 20, 1_000), (4_096, 1_000), (4_096, 30_000)] {
        let limit = 32 * 1024;
        let bench = Bench::new(Options {
            limit,
            segment_bytes: Some(segment_bytes),
        });
        for round in 0..5 {
            let mut kept = 0;
            let refusal = loop {
                match bench.append(b"t", &vec![round; len]) {
                    Ok(Appended::Kept) => kept += 1,
                    other => break other,
                }
            };
            match refusal {
                Err(Refusal::Full { bytes, limit: of }) => {
                    assert_eq!((bytes, of), (bench.spool().usage().bytes, limit));
                    assert_eq!(bytes, bench.sim.bytes());
                    assert!(bytes <= limit);
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(kept, bench.visible().len());
            assert!(
                kept * (len + 200) > limit as usize / 2,
                "{kept} of {len} bytes"
            );
            // A refusal does not wait for the thread.
            bench.sim.hold_syncs(true);
            assert!(matches!(
                bench.append(b"t", &vec![9; len]),
                Err(Refusal::Full { .. })
            ));
            bench.sim.hold_syncs(false);
            bench.finish_all();
            assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
        }
    }
}

#[test]
fn finished_chunks_make_room_even_if_only_a_new_begin_frame_did_not_fit() {
    let bench = Bench::new(SMALL);
    bench.keep(1, 2_000);
    bench.finish_all();
    let free = SMALL.limit - bench.spool().usage().bytes;
    let large = vec![2; free as usize - 80];
    let refused = bench.append(b"t", &large);
    assert!(matches!(refused, Err(Refusal::Full { .. })), "{refused:?}");
    bench.spool().wait_until_idle();
    assert_eq!(bench.append(b"t", &large).unwrap(), Appended::Kept);
}

#[test]
fn a_chunk_that_never_fits_changes_nothing() {
    let bench = Bench::new(SMALL);
    bench.keep(1, 10);
    bench.finish_all();
    bench.sim.take_log();
    for _ in 0..3 {
        let refused = bench.append(b"t", &vec![1; 100_000]);
        assert!(matches!(refused, Err(Refusal::Full { .. })), "{refused:?}");
    }
    bench.spool().wait_until_idle();
    let log = bench.sim.take_log();
    assert!(log.iter().all(|(call, _)| *call == Call::Write), "{log:?}");
}

/// Whether the call removes a segment or turns it into a spare.
fn is_gone(call: Call, name: &str) -> bool {
    matches!(call, Call::Remove | Call::Rename) && name.ends_with(".seg")
}

#[test]
fn segments_are_removed_oldest_first_each_durably_before_the_next() {
    let bench = Bench::new(SMALL);
    for byte in 0..12 {
        bench.keep(byte, 1_500);
    }
    let segments = bench.segments();
    assert!(segments.len() >= 5, "{segments:?}");
    let chunks: Vec<Seq> = bench.visible().iter().map(|(seq, _)| *seq).collect();
    bench.sim.take_log();
    // All but the oldest: nothing can be removed.
    for chunk in &chunks[1..] {
        bench.note(done(*chunk), Durability::Written).unwrap();
        bench.spool().finish(*chunk);
    }
    bench.spool().wait_until_idle();
    assert_eq!(bench.segments()[..segments.len()], segments);
    let before = bench.segments();
    bench.note(done(chunks[0]), Durability::Written).unwrap();
    bench.spool().finish(chunks[0]);
    bench.spool().wait_until_idle();
    let log = bench.sim.take_log();
    let removed: Vec<&String> = log
        .iter()
        .filter(|(call, name)| is_gone(*call, name))
        .map(|(_, name)| name)
        .collect();
    assert_eq!(bench.segments().len(), 1);
    assert_eq!(
        removed,
        before.iter().take(removed.len()).collect::<Vec<_>>()
    );
    assert!(removed.len() >= segments.len());
    assert!(removed.is_sorted());
    let at = |wanted: &String| {
        log.iter()
            .position(|(call, name)| is_gone(*call, name) && name == wanted)
    };
    let calls: Vec<Call> = log.iter().map(|(call, _)| *call).collect();
    let first = at(removed[0]).unwrap();
    // The notes are durable before the first removal.
    let last_note = calls[..first]
        .iter()
        .rposition(|call| *call == Call::Write)
        .unwrap();
    assert!(calls[last_note..first].contains(&Call::Sync), "{calls:?}");
    for pair in removed.windows(2) {
        let (one, next) = (at(pair[0]).unwrap(), at(pair[1]).unwrap());
        assert!(calls[one..next].contains(&Call::SyncDir), "{calls:?}");
    }
    // And after the last one.
    bench.spool().close();
    let calls: Vec<Call> = bench.sim.take_log().iter().map(|(call, _)| *call).collect();
    assert_eq!(
        calls
            .iter()
            .rfind(|call| matches!(call, Call::Remove | Call::Rename | Call::SyncDir)),
        Some(&Call::SyncDir)
    );
}

#[test]
fn an_append_does_not_wait_until_all_finished_segments_are_removed() {
    let bench = Bench::new(SMALL);
    for byte in 0..30 {
        bench.keep(byte, 1_500);
    }
    let chunks: Vec<Seq> = bench.visible().iter().map(|(chunk, _)| *chunk).collect();
    for chunk in &chunks {
        bench.note(done(*chunk), Durability::Written).unwrap();
    }
    bench.sim.hold_syncs(true);
    bench.runtime.block_on(async {
        let deadline = Instant::now() + Duration::from_secs(600);
        let mut first = Box::pin(bench.spool().append(chunk(b"t", &[1; 10]), deadline));
        assert!(futures::poll!(&mut first).is_pending());
        bench.sim.wait_for_a_held_sync();
        bench.sim.take_log();
        for chunk in &chunks {
            bench.spool().finish(*chunk);
        }
        let mut second = Box::pin(bench.spool().append(chunk(b"t", &[2; 10]), deadline));
        assert!(futures::poll!(&mut second).is_pending());
        bench.sim.hold_syncs(false);
        assert!(matches!(first.await, Ok(Appended::Kept)));
        assert!(matches!(second.await, Ok(Appended::Kept)));
    });
    bench.spool().wait_until_idle();
    let log = bench.sim.take_log();
    let write = log
        .iter()
        .position(|(call, _)| *call == Call::Write)
        .unwrap();
    let gone = |log: &[(Call, String)]| {
        log.iter()
            .filter(|(call, name)| is_gone(*call, name))
            .count()
    };
    assert!(gone(&log) >= 10, "{}", gone(&log));
    assert!(gone(&log[..write]) <= 2, "{}", gone(&log[..write]));
    assert_eq!(bench.segments().len(), 1);
}

#[test]
fn close_leaves_one_small_file_when_all_is_finished_and_forgets_nothing() {
    let mut bench = Bench::new(SMALL);
    for byte in 0..12 {
        bench.keep(byte, 1_500);
    }
    let (last, _) = *bench.visible().last().unwrap();
    bench
        .note(begun(41, &[all(last)]), Durability::Written)
        .unwrap();
    bench.finish_all();
    let id = bench.spool().id();
    bench.spool().close();
    bench.spool().close();
    let files = bench.sim.files();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(files[0].1 < 512, "{files:?}");
    assert!(matches!(bench.append(b"t", b"x"), Err(Refusal::Closed)));
    assert!(bench.note(ended(41), Durability::Written).is_err());
    bench.spool = None;
    bench.sim.crash();
    let recovered = bench.open().unwrap();
    assert_eq!(recovered.next_batch, 42);
    assert_eq!(bench.spool().id(), id);
    assert!(matches!(
        bench.append(b"app.log", &[11; 1_500]),
        Ok(Appended::Replayed)
    ));
    // A second run without changes leaves the same files.
    bench.spool().close();
    assert_eq!(bench.sim.files(), files);
    bench.spool = None;
    bench.open().unwrap();
    bench.keep(12, 10);
    let (seq, _) = bench.visible()[0];
    assert!(seq > last, "numbers are not used again");
}

#[test]
fn close_with_chunks_left_keeps_them() {
    let mut bench = Bench::new(SMALL);
    bench.keep(1, 10);
    bench.keep(2, 10);
    let (first, _) = bench.visible()[0];
    bench.note(done(first), Durability::Written).unwrap();
    bench.spool().finish(first);
    bench.spool().close();
    assert_eq!(bench.bytes(), [2], "reading goes on");
    bench.spool = None;
    bench.sim.crash();
    assert_eq!(bench.open().unwrap().unfinished, 1);
    assert_eq!(bench.bytes(), [2]);
}

#[test]
fn a_failing_disk_fails_the_calls_meanwhile_and_none_afterwards() {
    let cases: [(&str, Faults); 6] = [
        ("write", broken(&[Call::Write])),
        ("write and cut back", broken(&[Call::Write, Call::Truncate])),
        ("sync", broken(&[Call::Sync])),
        ("sync and cut back", broken(&[Call::Sync, Call::Truncate])),
        (
            "read-only",
            broken(&[
                Call::Write,
                Call::Sync,
                Call::SyncDir,
                Call::Create,
                Call::Remove,
                Call::Truncate,
            ]),
        ),
        (
            "full",
            Faults {
                capacity: Some(900),
                ..Faults::default()
            },
        ),
    ];
    for (what, faults) in cases {
        let mut bench = Bench::new(SMALL);
        bench.keep(1, 300);
        bench
            .note(begun(7, &[all(2)]), Durability::Written)
            .unwrap();
        bench.sim.fault(faults);
        for _ in 0..3 {
            let refused = bench.append(b"t", &[2; 400]);
            assert!(
                matches!(refused, Err(Refusal::Disk(_))),
                "{what}: {refused:?}"
            );
            assert!(bench.note(done(99), Durability::Synced).is_err() || what == "full");
            assert_eq!(bench.bytes(), [1], "{what}");
        }
        bench.sim.fault(Faults::default());
        bench.keep(3, 400);
        bench.keep(2, 400);
        assert_eq!(bench.bytes(), [1, 3, 2], "{what}");
        bench.spool().wait_until_idle();
        assert_eq!(bench.spool().usage().bytes, bench.sim.bytes(), "{what}");
        for _ in 0..2 {
            let recovered = bench.crash();
            assert_eq!(bench.bytes(), [1, 3, 2], "{what}");
            // At most a torn note at the end.
            let is_tail = |finding: &String| finding.contains("truncated");
            assert!(
                recovered.findings.iter().all(is_tail),
                "{what}: {:?}",
                recovered.findings
            );
            // The note that was only written before the disk failed was written again.
            assert_eq!(recovered.pending.len(), 1, "{what}");
        }
        bench.finish_all();
        bench.spool().close();
        assert_eq!(bench.segments().len(), 1, "{what}");
    }
}

#[test]
fn a_disk_that_stays_full_does_not_fill_with_begin_frames() {
    let bench = Bench::new(SMALL);
    bench.keep(1, 300);
    bench.sim.fault(Faults {
        capacity: Some(bench.sim.bytes() + 500),
        ..Faults::default()
    });
    let before = bench.segments();
    for round in 0..50 {
        let refused = bench.append(b"t", &[round; 1_000]);
        assert!(matches!(refused, Err(Refusal::Disk(_))), "{refused:?}");
        bench.note(done(99), Durability::Synced).ok();
    }
    assert_eq!(bench.segments(), before);
}

#[test]
fn a_chunk_of_an_earlier_run_is_recognised_once_for_each_time_it_was_kept() {
    let mut bench = Bench::new(SMALL);
    // Identical chunks within a run are two chunks.
    bench.keep(1, 10);
    bench.keep(1, 10);
    bench.keep(2, 10);
    bench.keep(1, 10);
    assert_eq!(bench.bytes(), [1, 1, 2, 1]);
    for run in 0..3 {
        bench.crash();
        let mut answers = Vec::new();
        for byte in [2, 1, 1, 1] {
            answers.push(bench.append(b"app.log", &[byte; 10]).unwrap());
        }
        assert_eq!(answers, [Appended::Replayed; 4], "run {run}");
        assert_eq!(bench.bytes(), [1, 1, 2, 1], "run {run}");
    }
    // Further identical chunks are new, and so is one with another tag.
    bench.keep(2, 10);
    assert_eq!(bench.append(b"other", &[1; 10]).unwrap(), Appended::Kept);
    assert_eq!(bench.bytes(), [1, 1, 2, 1, 2, 1]);
    // A full spool recognises a replay too.
    bench.crash();
    while bench.append(b"fill", &[0; 3_000]).is_ok() {}
    assert_eq!(
        bench.append(b"app.log", &[2; 10]).unwrap(),
        Appended::Replayed
    );
}

#[test]
fn the_window_outlives_its_segments_and_is_bounded() {
    let mut bench = Bench::new(SMALL);
    let window = Limits::new(SMALL).window;
    assert_eq!(window, 16);
    for byte in 0..20 {
        bench.keep(byte, 1_500);
    }
    let oldest = bench.segments()[0].clone();
    bench.finish_all();
    assert!(!bench.segments().contains(&oldest));
    bench.crash();
    assert_eq!(bench.visible().len(), 0);
    for byte in 0..20 {
        let answer = bench.append(b"app.log", &vec![byte; 1_500]).unwrap();
        let expected = if byte < 4 {
            Appended::Kept
        } else {
            Appended::Replayed
        };
        assert_eq!(answer, expected, "chunk {byte}");
    }
}

#[test]
fn notes_are_folded_into_pending_batches_and_settled_events() {
    let mut bench = Bench::new(SMALL);
    for byte in 0..4 {
        bench.keep(byte, 100);
    }
    let chunks: Vec<Seq> = bench.visible().iter().map(|(seq, _)| *seq).collect();
    let [a, b, c, d] = chunks[..] else {
        panic!("four chunks");
    };
    let contents = [runs(a, &[(0, 5)]), all(b)];
    for note in [
        begun(1, &contents),
        begun(2, &[runs(a, &[(5, 9)]), all(c)]),
        begun(3, &[all(d)]),
        ended(1),
        Note::Ended {
            batch: 3,
            delivered: Some(Vec::from([runs(d, &[(2, 3)])])),
        },
        Note::Done {
            contents: Vec::from([runs(d, &[(0, 1), (7, 9)])]),
        },
    ] {
        bench.note(note, Durability::Written).unwrap();
    }
    for run in 0..2 {
        let recovered = bench.restart();
        assert_eq!(recovered.unfinished, 3, "run {run}");
        let pending = Pending {
            batch: 2,
            name: "app/2.gz".into(),
            token: "0123".into(),
            lines: 3,
            contents: Vec::from([runs(a, &[(5, 9)]), all(c)]),
            recipe: None,
        };
        assert_eq!(recovered.pending, [pending]);
        let settled = HashMap::from([
            (a, ranges(&[(0, 5)])),
            (d, ranges(&[(0, 1), (2, 3), (7, 9)])),
        ]);
        assert_eq!(recovered.settled, settled);
        assert_eq!(recovered.next_batch, 4);
    }
}

#[test]
fn a_note_is_written_even_if_its_caller_has_gone() {
    let mut bench = Bench::new(SMALL);
    bench.keep(1, 10);
    let (chunk, _) = bench.visible()[0];
    bench.sim.hold_syncs(true);
    bench.runtime.block_on(async {
        let mut note = Box::pin(bench.spool().note(done(chunk), Durability::Synced));
        assert!(futures::poll!(&mut note).is_pending());
    });
    bench.sim.hold_syncs(false);
    bench.spool().wait_until_idle();
    assert_eq!(bench.crash().unfinished, 0);
}

#[test]
fn a_local_directory_is_private_and_exclusive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let disk = Arc::new(LocalDisk::open(&path).unwrap());
    let error = LocalDisk::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );

    let (spool, _) = Spool::open(disk, SMALL).unwrap();
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let deadline = Instant::now() + Duration::from_secs(600);
    for data in [&b"some bytes"[..], &[7; 10_000]] {
        let kept = runtime.block_on(spool.append(chunk(b"tag", data), deadline));
        assert!(matches!(kept, Ok(Appended::Kept)), "{kept:?}");
    }
    for (made, expected) in [
        (&path, 0o700),
        (&path.join("lock"), 0o600),
        (&dir.path().join("a"), 0o700),
    ] {
        assert_eq!(mode(made), expected, "{}", made.display());
    }
    let segment = path.join(segment_name(1));
    assert_eq!(mode(&segment), 0o600);
    // Damage a byte of the first chunk.
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes
        .windows(10)
        .position(|window| window == b"some bytes")
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (first, corrupt) = next(&spool, None).unwrap();
    let Err(Unreadable::Corrupt { words, kept: true }) = corrupt else {
        panic!("{corrupt:?}");
    };
    let kept = format!("{:020}-{}.bin", 1, at - 3 - 64);
    assert!(words.contains(&kept), "{words}");
    assert_eq!(mode(&path.join("quarantine")), 0o700);
    assert_eq!(mode(&path.join("quarantine").join(kept)), 0o600);
    let (_, second) = next(&spool, Some(first)).unwrap();
    assert_eq!(second.unwrap().data, vec![7; 10_000]);
    spool.wait_until_idle();
    let there: u64 = LocalDisk::look(&path)
        .unwrap()
        .list()
        .unwrap()
        .iter()
        .filter(|(name, _)| name != RESERVE && !manifest::NAMES.contains(&&name[..]))
        .map(|(_, len)| len)
        .sum();
    assert_eq!(spool.usage().bytes, there);

    // Dropping the spool releases the lock.
    spool.close();
    drop(spool);
    let disk = Arc::new(LocalDisk::open(&path).unwrap());
    let (spool, recovered) = open_all(disk, SMALL).unwrap();
    assert_eq!(recovered.unfinished, 1);
    drop(spool);
}

#[test]
fn a_removed_file_is_freed_unless_it_has_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let disk = LocalDisk::open(&dir.path().join("spool")).unwrap();
    let names = [segment_name(1), segment_name(2)];
    for name in &names {
        let file = disk.create(name).unwrap();
        file.write_at(&[io::IoSlice::new(&[7; 5 << 20])], 0)
            .unwrap();
    }
    let copy = dir.path().join("copy");
    std::fs::hard_link(dir.path().join("spool").join(&names[0]), &copy).unwrap();
    let reading = disk.open(&names[1]).unwrap();
    for name in &names {
        disk.remove(name).unwrap();
    }
    for name in &names {
        let gone = disk.open(name).map(drop).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
    }
    // Waits for the freeing thread. The open handle keeps the rest of its file.
    drop(disk);
    assert_eq!(
        LocalDisk::look(&dir.path().join("spool"))
            .unwrap()
            .list()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(std::fs::metadata(copy).unwrap().len(), 5 << 20);
    assert!(reading.len().unwrap() < 5 << 20);
}

/// Fills segments and finishes all their chunks, which leaves spares.
fn with_spares(bench: &Bench) {
    for byte in 0..8 {
        bench.keep(byte, 1_500);
    }
    bench.finish_all();
}

fn spares(bench: &Bench) -> u64 {
    let files = bench.sim.files().into_iter();
    let spares = files.filter(|(name, _)| name.ends_with(".spare"));
    spares.map(|(_, bytes)| bytes).sum()
}

#[test]
fn a_finished_segments_file_is_reused_and_its_old_frames_never_return() {
    for power_goes in [false, true] {
        let mut bench = Bench::new(SMALL);
        with_spares(&bench);
        assert!(spares(&bench) >= 8_000, "{:?}", bench.sim.files());
        bench.sim.take_log();
        for byte in 100..103 {
            bench.keep(byte, 1_500);
        }
        let log = bench.sim.take_log();
        assert!(
            !log.iter().any(|(call, _)| *call == Call::Create),
            "{log:?}"
        );
        let begun =
            |(call, name): &&(Call, String)| *call == Call::Rename && name.ends_with(".spare");
        assert_eq!(log.iter().filter(begun).count(), 2, "{log:?}");
        // A survey finds slack and no damage.
        let found = survey(&*bench.sim.mount(), Check::All).unwrap();
        assert!(
            found
                .segments
                .iter()
                .all(|segment| segment.damage.is_empty() && segment.torn == 0)
        );
        assert!(found.segments.last().unwrap().room > 0);
        assert!(!found.spares.is_empty());
        bench.end(power_goes);
        let recovered = bench.open().unwrap();
        assert_eq!(recovered.findings, [] as [String; 0]);
        assert_eq!(bench.bytes(), [100, 101, 102]);
        assert_eq!(spares(&bench), 0);
        assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
        // The last segment is continued.
        bench.keep(103, 10);
        bench.end(power_goes);
        bench.open().unwrap();
        assert_eq!(bench.bytes(), [100, 101, 102, 103]);
    }
}

#[test]
fn a_segments_first_group_shares_the_write_and_sync_of_its_begin_frame() {
    let bench = Bench::new(SMALL);
    bench.keep(0, 1_500);
    let first = bench.segments();
    bench.sim.take_log();
    let mut byte = 1;
    while bench.segments() == first {
        bench.sim.take_log();
        bench.keep(byte, 1_500);
        byte += 1;
    }
    let calls: Vec<Call> = bench
        .sim
        .take_log()
        .into_iter()
        .map(|(call, _)| call)
        .filter(|call| matches!(call, Call::Write | Call::Sync | Call::SyncDir))
        .collect();
    // The last two are the manifest's, whose files exist since the first segment.
    assert_eq!(
        calls,
        [
            Call::Write,
            Call::Sync,
            Call::SyncDir,
            Call::Write,
            Call::Sync
        ]
    );
}

#[test]
fn a_spare_is_reused_only_once_its_name_is_durable() {
    let bench = Bench::new(SMALL);
    bench.sim.take_log();
    for byte in 0..40 {
        bench.keep(byte, 1_500);
        bench.finish_all();
    }
    let log = bench.sim.take_log();
    let mut reused = 0;
    let mut durable: Vec<&str> = Vec::new();
    let mut unsynced: Vec<&str> = Vec::new();
    for (call, name) in &log {
        match call {
            Call::Rename if name.ends_with(".seg") => unsynced.push(name.trim_end_matches(".seg")),
            Call::SyncDir => durable.append(&mut unsynced),
            Call::Write if name.ends_with(".spare") => {
                assert!(
                    durable.contains(&name.trim_end_matches(".spare")),
                    "{log:?}"
                );
                reused += 1;
            }
            _ => {}
        }
    }
    assert!(reused >= 10, "{reused}");
}

#[test]
fn spares_are_bounded_and_give_way_to_chunks() {
    let bench = Bench::new(SMALL);
    for byte in 0..30 {
        bench.keep(byte, 1_500);
    }
    bench.finish_all();
    let left = spares(&bench);
    assert!(left > 8_000 && left <= SMALL.limit / 4, "{left}");
    assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
    let mut kept = 0;
    while let Ok(Appended::Kept) = bench.append(b"t", &[7; 1_500]) {
        kept += 1;
        assert!(bench.sim.bytes() + spares(&bench) <= SMALL.limit);
    }
    assert!(kept * 1_564 > SMALL.limit * 8 / 10, "{kept}");
    assert_eq!(spares(&bench), 0);
}

#[test]
fn a_file_with_a_failed_write_is_not_reused() {
    for calls in [&[Call::Sync][..], &[Call::Sync, Call::Truncate]] {
        let bench = Bench::new(SMALL);
        bench.keep(1, 3_000);
        bench.sim.fault(broken(calls));
        assert!(bench.append(b"t", &[2; 600]).is_err());
        bench.sim.fault(Faults::default());
        let failed = bench.segments().remove(0);
        bench.keep(3, 3_000);
        bench.keep(4, 3_000);
        bench.sim.take_log();
        bench.finish_all();
        let log = bench.sim.take_log();
        assert!(log.contains(&(Call::Remove, failed.clone())), "{log:?}");
        assert!(!log.contains(&(Call::Rename, failed)), "{log:?}");
    }
}

#[test]
fn a_torn_write_in_a_reused_file_is_truncated_and_reported() {
    let mut bench = Bench::new(SMALL);
    with_spares(&bench);
    bench.keep(100, 1_500);
    bench.keep(101, 1_500);
    let segment = bench.segments().pop().unwrap();
    let (_, place) = bench.spool().shared.state().chunks.pop_last().unwrap();
    bench.end(false);
    let mut bytes = bench.sim.contents(&segment);
    assert!(bytes.len() as u64 > place.frame() + place.frame_bytes());
    bytes[place.offset as usize + 700] ^= 1;
    bench.sim.put(&segment, bytes);
    let recovered = bench.open().unwrap();
    assert_eq!(recovered.findings.len(), 1, "{:?}", recovered.findings);
    assert!(
        recovered.findings[0].contains("never finished"),
        "{:?}",
        recovered.findings
    );
    assert_eq!(bench.bytes(), [100]);
}

#[test]
fn a_deleted_finished_segment_blocks_nothing() {
    let bench = Bench::new(SMALL);
    for byte in 0..8 {
        bench.keep(byte, 1_500);
    }
    let oldest = bench.segments().remove(0);
    bench.sim.take(&oldest);
    let chunks = bench.spool().shared.state().chunks.clone();
    for (chunk, _) in chunks {
        bench.note(done(chunk), Durability::Written).unwrap();
        bench.spool().finish(chunk);
    }
    bench.spool().wait_until_idle();
    assert_eq!(bench.segments().len(), 1);
    assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
}

#[test]
fn spares_give_way_when_the_disk_itself_is_full() {
    let bench = Bench::new(SMALL);
    with_spares(&bench);
    for byte in 50..52 {
        bench.keep(byte, 1_500);
    }
    assert!(spares(&bench) > 4_000);
    // Larger than any existing file.
    let large = [7; 6_000];
    let room = full(&bench).capacity.map(|bytes| bytes + 500);
    bench.sim.fault(Faults {
        capacity: room,
        ..Faults::default()
    });
    let refused = bench.append(b"t", &large);
    assert!(matches!(refused, Err(Refusal::Disk(_))), "{refused:?}");
    assert_eq!(bench.append(b"t", &large).unwrap(), Appended::Kept);
}

#[test]
fn a_damaged_frame_in_a_reused_file_costs_no_other() {
    let mut bench = Bench::new(SMALL);
    with_spares(&bench);
    for byte in 100..104 {
        bench.keep(byte, 700);
    }
    let segment = bench.segments().pop().unwrap();
    let places = bench.spool().shared.state().chunks.clone();
    let of_segment = places
        .values()
        .filter(|place| segment_name(place.segment) == segment);
    let rotten = *of_segment.clone().next().unwrap();
    assert!(of_segment.count() > 1);
    bench.end(false);
    let mut bytes = bench.sim.contents(&segment);
    let lost = bytes[rotten.offset as usize + 7];
    bytes[rotten.frame() as usize + 30] ^= 1;
    bench.sim.put(&segment, bytes);
    let recovered = bench.open().unwrap();
    assert_eq!(recovered.findings.len(), 1, "{:?}", recovered.findings);
    assert!(
        recovered.findings[0].contains("quarantine/"),
        "{:?}",
        recovered.findings
    );
    let left: Vec<u8> = (100..104).filter(|byte| *byte != lost).collect();
    assert_eq!(bench.bytes(), left);
}

#[test]
fn slack_that_cannot_be_truncated_is_not_overwritten_by_the_next_run() {
    let mut bench = Bench::new(SMALL);
    with_spares(&bench);
    bench.keep(100, 700);
    let segment = bench.segments().pop().unwrap();
    bench.end(false);
    bench.sim.fault(broken(&[Call::Truncate]));
    bench.open().unwrap();
    bench.sim.fault(Faults::default());
    let before = bench.sim.contents(&segment);
    bench.keep(101, 700);
    assert_eq!(bench.sim.contents(&segment), before);
    bench.crash();
    assert_eq!(bench.bytes(), [100, 101]);
}

/// A disk on which a segment is removed and truncated right after it was opened.
struct Vanishing {
    disk: Arc<dyn Disk>,
    name: String,
    /// The remaining length, in bytes.
    left: u64,
    opened: AtomicBool,
}

impl Disk for Vanishing {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.disk.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.disk.create(name)
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.disk.open(name)?;
        if name != self.name {
            return Ok(file);
        }
        match self.opened.swap(true, Relaxed) {
            true => Err(ErrorKind::NotFound.into()),
            false => Ok(Box::new(Truncated(file, self.left))),
        }
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
    fn id(&self, name: &str) -> io::Result<FileId> {
        match name == self.name && self.opened.load(Relaxed) {
            true => Err(ErrorKind::NotFound.into()),
            false => self.disk.id(name),
        }
    }
    fn check(&self) -> io::Result<()> {
        self.disk.check()
    }
    fn ensure_locked(&self) -> io::Result<LockState> {
        self.disk.ensure_locked()
    }
}

struct Truncated(Box<dyn File>, u64);

impl File for Truncated {
    fn id(&self) -> FileId {
        self.0.id()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.write_at(parts, offset)
    }
    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        let left = self.1.saturating_sub(offset).min(len as u64);
        self.0.read_at(into, left as usize, offset)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

#[test]
fn a_segment_removed_during_a_survey_is_not_reported_damaged() {
    let bench = Bench::new(SMALL);
    for byte in 0..6 {
        bench.keep(byte, 1_500);
    }
    let segments = bench.segments();
    assert!(segments.len() >= 3, "{segments:?}");
    let (_, oldest) = bench.spool().shared.state().chunks.pop_first().unwrap();
    for left in [0, 10, 100, 2_000, 3_000] {
        let vanishing = || Vanishing {
            disk: bench.sim.mount(),
            name: segments[0].clone(),
            left,
            opened: AtomicBool::new(false),
        };
        let found = survey(&vanishing(), Check::All).unwrap();
        assert!(
            found
                .segments
                .iter()
                .all(|segment| segment.damage.is_empty())
        );
        assert!(found.segments.len() >= segments.len() - 1);
        let handles = Handles::new(Arc::new(vanishing()));
        let file = handles.get(oldest.segment).unwrap();
        match oldest.read(&*file).unwrap() {
            Ok(_) => assert!(left >= oldest.offset + 1_507),
            Err(flaw) => assert_eq!(flaw, Flaw::Short),
        }
        assert!(!handles.is_named(oldest.segment, &*file).unwrap());
    }
}

#[test]
fn a_directory_opened_read_only_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), b"bytes").unwrap();
    let disk = LocalDisk::look(dir.path()).unwrap();
    assert_eq!(disk.list().unwrap(), [("x".to_owned(), 5)]);
    assert!(disk.create("y").is_err());
    assert!(disk.remove("x").is_err());
    let file = disk.open("x").unwrap();
    assert!(disk.rename("x", "y").is_err());
    assert!(file.write_at(&[io::IoSlice::new(b"more")], 0).is_err());
    assert!(file.truncate(0).is_err());
    assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"bytes");
    // Errors name the directory.
    for error in [
        LocalDisk::look(&dir.path().join("none")).unwrap_err(),
        LocalDisk::open(&dir.path().join("x/y")).unwrap_err(),
    ] {
        let named = dir.path().to_str().unwrap();
        assert!(error.to_string().starts_with(named), "{error}");
    }
}

#[test]
fn a_full_spool_accepts_chunks_again_after_a_cleanup_requested_during_a_group() {
    let bench = Bench::new(SMALL);
    while bench.append(b"app.log", &[1; 3_000]).is_ok() {}
    bench.spool().wait_until_idle();
    let chunks: Vec<Seq> = bench.visible().iter().map(|(chunk, _)| *chunk).collect();
    // While a group is synced, a note is queued, and after it the cleanup requested by a chunk that did not fit.
    bench.sim.hold_syncs(true);
    let note = |note: Note| {
        let spool = Arc::clone(bench.spool());
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(spool.note(note, Durability::Synced))
        })
    };
    let first = note(begun(7, &[all(chunks[0])]));
    bench.sim.wait_for_a_held_sync();
    let second = {
        let contents = chunks.iter().map(|chunk| all(*chunk)).collect();
        let spool = Arc::clone(bench.spool());
        let (sent, queued) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_time().build().unwrap();
            let mut note = Box::pin(spool.note(Note::Done { contents }, Durability::Synced));
            runtime.block_on(async {
                assert!(futures::poll!(&mut note).is_pending());
                sent.send(()).unwrap();
                note.await
            })
        });
        queued.recv().unwrap();
        thread
    };
    let refused = bench.append(b"app.log", &[2; 3_000]);
    assert!(matches!(refused, Err(Refusal::Full { .. })), "{refused:?}");
    bench.sim.hold_syncs(false);
    first.join().unwrap().unwrap();
    second.join().unwrap().unwrap();
    bench.spool().wait_until_idle();
    for chunk in chunks {
        bench.spool().finish(chunk);
    }
    bench.spool().wait_until_idle();
    // The newest segment is replaced when something does not fit next to it.
    let _ = bench.append(b"app.log", &[3; 3_000]);
    bench.spool().wait_until_idle();
    assert!(matches!(
        bench.append(b"app.log", &[3; 3_000]),
        Ok(Appended::Kept)
    ));
}

/// A disk without any free space.
fn full(bench: &Bench) -> Faults {
    let others: u64 = bench.sim.side_files().iter().map(|(_, bytes)| bytes).sum();
    Faults {
        capacity: Some(bench.sim.bytes() + spares(bench) + others),
        ..Faults::default()
    }
}

#[test]
fn a_disk_full_of_chunks_has_room_for_the_notes_about_them() {
    let bench = Bench::new(SMALL);
    for byte in 0..10 {
        bench.keep(byte, 1_500);
    }
    let chunks: Vec<Seq> = bench.visible().iter().map(|(chunk, _)| *chunk).collect();
    bench.sim.fault(full(&bench));
    let refused = |len| matches!(bench.append(b"t", &vec![9; len]), Err(Refusal::Disk(_)));
    assert!(refused(1_500));
    let note = || bench.note(begun(7, &[all(chunks[0])]), Durability::Synced);
    assert!(note().is_err(), "the disk is full");
    note().expect("the reserve's space is for notes");
    assert!(refused(100), "it is not for chunks");
    bench.finish_all();
    bench.spool().wait_until_idle();
    bench.keep(11, 1_500);
    assert_eq!(bench.bytes(), [11]);
}

#[test]
fn a_disk_full_of_one_finished_segment_gets_its_space_back() {
    let bench = Bench::new(Options {
        limit: 1 << 20,
        segment_bytes: Some(1 << 16),
    });
    for byte in 0..20 {
        bench.keep(byte, 1_500);
    }
    bench.finish_all();
    bench.spool().wait_until_idle();
    bench.sim.fault(full(&bench));
    let taken = (0..4).any(|_| {
        bench.spool().wait_until_idle();
        bench.append(b"t", &[9; 20_000]).is_ok()
    });
    assert!(taken, "{:?}", bench.sim.files());
}
