//! Relocated events are in one place, whatever fails.

use std::task::Poll;

use super::*;
use crate::spool::frame::{Begin, VERSION, set_aside_name};
use crate::spool::sim::{Call, Faults};

fn broken(calls: &[Call]) -> Faults {
    Faults {
        broken: calls.to_vec(),
        ..Faults::default()
    }
}

/// The numbers of the visible chunks.
fn numbers(bench: &Bench) -> Vec<Seq> {
    let visible = bench.visible();
    visible.into_iter().map(|(chunk, _)| chunk).collect()
}

/// A spool of one chunk for each size, filled with 1, 2 and so on, and their numbers.
fn chunks(sizes: &[usize]) -> (Bench, Vec<Seq>) {
    let bench = Bench::new(SMALL);
    for (byte, size) in (1..).zip(sizes) {
        bench.keep(byte, *size);
    }
    let chunks = numbers(&bench);
    (bench, chunks)
}

/// The format version of each segment.
fn versions(bench: &Bench) -> Vec<u32> {
    let names = bench.segments().into_iter();
    names
        .map(|name| Begin::version(&bench.sim.contents(&name)[64..]))
        .collect()
}

fn place(bench: &Bench, chunk: Seq) -> Place {
    bench.spool().shared.state().chunks[&chunk]
}

/// Flips a bit in the last byte of a chunk.
fn damage(bench: &Bench, place: Place) {
    let last = place.frame() + place.frame_bytes() - 1;
    let segment = segment_name(place.segment);
    bench.sim.flip_bit(&segment, last as usize);
}

/// Finishes chunks with a durable note.
fn finish(bench: &Bench, chunks: &[Seq]) {
    for chunk in chunks {
        bench.note(done(*chunk), Durability::Synced).unwrap();
        bench.spool().finish(*chunk);
    }
    bench.spool().wait_until_idle();
}

#[test]
fn a_relocated_chunk_is_read_as_its_events_and_settles_its_origins_at_once() {
    let (mut bench, old) = chunks(&[100, 100, 100]);
    bench
        .note(
            Note::Done {
                contents: vec![runs(old[0], &[(0, 2)])],
            },
            Durability::Written,
        )
        .unwrap();
    let more = bench.spool().more();
    let origins = [runs(old[0], &[(2, 5), (7, 8)]), all(old[1])];
    let new = bench.relocate(9, 40, &origins).unwrap();
    assert_eq!(futures::FutureExt::now_or_never(more), Some(()));
    assert!(new > old[2]);
    assert!(bench.spool().is_relocated(new) && !bench.spool().is_relocated(old[2]));
    // The caller finishes what nothing is left of.
    assert_eq!(bench.spool().usage().unfinished, 4);
    bench.spool().finish(old[1]);
    let stored = Stored {
        tag: b"app.log".to_vec(),
        data: vec![9; 40].into(),
        arrived: Time {
            seconds: 9,
            nanos: 7,
        },
    };
    for power_goes in [false, true] {
        assert_eq!(bench.spool().peek(Some(old[2])), Some((new, 40)));
        assert_eq!(bench.spool().read(new).unwrap(), stored);
        bench.end(power_goes);
        let recovered = bench.open().unwrap();
        assert_eq!(recovered.findings, [] as [String; 0]);
        assert_eq!(recovered.unfinished, 3);
        let settled = HashMap::from([(old[0], ranges(&[(0, 5), (7, 8)]))]);
        assert_eq!(recovered.settled, settled);
        assert_eq!(numbers(&bench), [old[0], old[2], new]);
        assert!(bench.spool().holds(new));
        // It is an ordinary chunk to a run that did not relocate it.
        assert!(!bench.spool().is_relocated(new));
    }
    finish(&bench, &[old[0], old[2], new]);
    assert_eq!(bench.restart().unfinished, 0);
    assert_eq!(bench.segments().len(), 1);
}

#[test]
fn the_oldest_chunk_is_the_one_that_arrived_first_though_it_was_relocated() {
    let (mut bench, old) = chunks(&[100, 100, 100]);
    let oldest = |bench: &Bench| bench.spool().usage().oldest.map(|time| time.seconds);
    let first = oldest(&bench);
    let new = bench.relocate(1, 40, &[all(old[0])]).unwrap();
    finish(&bench, &old[..2]);
    assert_eq!(oldest(&bench), first);
    bench.restart();
    assert_eq!(oldest(&bench), first);
    finish(&bench, &[new]);
    assert!(oldest(&bench) > first);
}

#[test]
fn a_relocated_chunk_is_not_recognised_when_the_host_hands_over_the_same_bytes() {
    let (mut bench, old) = chunks(&[100]);
    let new = bench.relocate(9, 40, &[all(old[0])]).unwrap();
    let data = [&note::encode_origins(&[all(old[0])])[..], &[9; 40]].concat();
    assert_eq!(place(&bench, new).id, chunk_id(b"app.log", &data));
    for restart in 0..2 {
        bench.restart();
        // Its origin is recognised: its events are in the spool.
        let answer = bench.append(b"app.log", &[1; 100]).unwrap();
        assert_eq!(answer, Appended::Replayed);
        if restart == 0 {
            for data in [&[9; 40][..], &data] {
                let answer = bench.append(b"app.log", data).unwrap();
                assert_eq!(answer, Appended::Kept);
            }
        }
        assert_eq!(bench.visible().len(), 3);
        // The window is written with the next segment.
        bench.keep(100 + restart, 3_900);
        finish(&bench, &numbers(&bench)[3..]);
    }
}

#[test]
fn what_is_not_delivered_bounds_the_log_instead_of_its_age() {
    let (mut bench, old) = chunks(&[1_000; 2]);
    // One event stays undeliverable while the rest is delivered.
    let mut stuck = old[0];
    finish(&bench, &old[1..]);
    let mut sizes = Vec::new();
    for round in 0..20_usize {
        for byte in 0..4 {
            bench.keep(10 + byte, 1_000 + round);
        }
        let stays = |chunk: &Seq| *chunk != stuck;
        finish(
            &bench,
            &numbers(&bench)
                .into_iter()
                .filter(stays)
                .collect::<Vec<_>>(),
        );
        // Relocated chunks are relocated as well.
        let moved = bench.relocate(1, 50, &[all(stuck)]).unwrap();
        bench.spool().finish(stuck);
        bench.spool().wait_until_idle();
        stuck = moved;
        sizes.push(bench.spool().usage().bytes);
        if round % 5 == 4 {
            assert_eq!(bench.restart().findings, [] as [String; 0]);
        }
        assert_eq!(numbers(&bench), [stuck]);
    }
    let most = sizes.iter().max().unwrap();
    assert!(*most < 3 * 4_096, "{sizes:?}");
    assert_eq!(bench.bytes(), [1]);
}

#[test]
fn origins_stay_settled_in_whichever_order_segments_become_removable() {
    // For each: whether the origin's chunk, its segment's other chunk, and the relocated one are finished.
    for [origin_left, other_left, moved_left] in [
        [false, false, true],
        [false, true, false],
        [false, true, true],
        [true, false, false],
        [true, false, true],
        [true, true, false],
        [false, false, false],
    ] {
        for power_goes in [false, true] {
            let (mut bench, old) = chunks(&[1_500, 1_500, 3_500]);
            let origins = match origin_left {
                true => runs(old[0], &[(0, 3)]),
                false => all(old[0]),
            };
            let moved = bench.relocate(9, 3_500, &[origins]).unwrap();
            let last = bench.append(b"app.log", &[8; 3_500]);
            assert!(matches!(last, Ok(Appended::Kept)));
            if !origin_left {
                bench.spool().finish(old[0]);
            }
            finish(&bench, &[old[2]]);
            if !other_left {
                finish(&bench, &[old[1]]);
            }
            if !moved_left {
                finish(&bench, &[moved]);
            }
            let there: Vec<Seq> = numbers(&bench);
            // As long as the origin's segment exists, so does the relocated chunk's.
            let has = |segment| bench.sim.has(&segment_name(segment));
            assert!(!has(1) || bench.segments().len() >= 3);
            bench.end(power_goes);
            let recovered = bench.open().unwrap();
            assert_eq!(recovered.findings, [] as [String; 0]);
            assert_eq!(numbers(&bench), there);
            let left = origin_left.then(|| (old[0], ranges(&[(0, 3)])));
            assert_eq!(recovered.settled, left.into_iter().collect());
        }
    }
}

#[test]
fn a_failed_relocation_moves_nothing() {
    for call in [
        Call::Write,
        Call::Sync,
        Call::SyncDir,
        Call::Check,
        Call::Id,
    ] {
        for power_goes in [false, true] {
            let (mut bench, old) = chunks(&[100, 100]);
            bench.sim.fault(broken(&[call, Call::Truncate]));
            let error = bench.relocate(9, 40, &[all(old[0])]).unwrap_err();
            assert_ne!(error.kind(), ErrorKind::QuotaExceeded, "{call:?}");
            assert_eq!(numbers(&bench), old, "{call:?}");
            assert_eq!(bench.spool().shared.state().reserved, 0);
            bench.sim.fault(Faults::default());
            // Anything that is written now makes the failure final.
            let begun = begun(1, &[all(old[0])]);
            bench.note(begun, Durability::Written).unwrap();
            bench.end(power_goes);
            let recovered = bench.open().unwrap();
            assert_eq!(recovered.settled, HashMap::new(), "{call:?}");
            assert_eq!(numbers(&bench), old, "{call:?}");
            // Where it is written again, it counts once.
            let new = bench.relocate(9, 40, &[all(old[1])]).unwrap();
            bench.restart();
            assert_eq!(numbers(&bench), [old[0], new]);
        }
    }
}

/// Writes a relocation that fails after its sync, and leaves its frame in the file.
fn voided(bench: &Bench, origins: &[Content]) {
    // In a segment that holds relocated chunks already.
    bench.sim.fault(broken(&[Call::Check, Call::Truncate]));
    bench.relocate(9, 40, origins).unwrap_err();
    bench.sim.fault(broken(&[Call::Truncate]));
}

#[test]
fn a_void_relocated_frame_settles_nothing_and_is_no_chunk() {
    let (mut bench, old) = chunks(&[100, 100, 100]);
    let first = bench.relocate(8, 40, &[all(old[2])]).unwrap();
    bench.spool().finish(old[2]);
    let segment = segment_name(place(&bench, first).segment);
    let before = bench.sim.contents(&segment).len();
    voided(&bench, &[all(old[0]), runs(old[1], &[(0, 1)])]);
    let bytes = bench.sim.contents(&segment);
    let head = Head::decode(&bytes[before..]).unwrap();
    assert_eq!(head.kind, Kind::Relocated);
    bench.keep(4, 10);
    bench.end(false);
    let recovered = bench.open().unwrap();
    // Nor is it suspected to be what was accepted: its events are where they were.
    assert_eq!(recovered.findings, [] as [String; 0]);
    assert_eq!(recovered.settled, HashMap::new());
    assert_eq!(bench.bytes(), [1, 2, 8, 4]);
    assert!(bench.sim.contents(&segment).starts_with(&bytes));

    // Once an origin is gone the frame may be all that is left of it.
    bench.end(false);
    bench.sim.take(&segment_name(1));
    let recovered = bench.open().unwrap();
    let doubted = recovered.findings.iter();
    let mut doubted = doubted.filter(|finding| finding.contains("1 whole chunks in"));
    let finding = doubted.next().expect("it is kept");
    assert!(finding.contains(&segment), "{finding}");
    assert_eq!(bench.bytes(), [8, 4]);
}

#[test]
fn the_power_may_fail_at_any_call_of_a_relocation() {
    let mut moved = [0, 0];
    // In a segment that has to be begun for it, and in one that holds relocated chunks already.
    for has_one in [false, true] {
        for at in 0.. {
            let mut went_down = false;
            for seed in 0..40 {
                let (mut bench, _) = Bench::on(Sim::new(seed), SMALL);
                for byte in 1..=3 {
                    bench.keep(byte, 300);
                }
                let old = numbers(&bench);
                if has_one {
                    bench.relocate(8, 10, &[runs(old[2], &[(0, 1)])]).unwrap();
                }
                let calls = bench.sim.calls();
                bench.sim.fault(Faults {
                    down_at: Some(calls + at),
                    ..Faults::default()
                });
                let origins = [all(old[0]), runs(old[1], &[(1, 4)])];
                let answer = bench.relocate(9, 400, &origins);
                bench.spool().wait_until_idle();
                went_down |= bench.sim.is_down();
                let recovered = bench.crash();
                let settled = recovered.settled.get(&old[1]);
                let there: Vec<Seq> = numbers(&bench);
                let bytes = bench.bytes();
                let is_moved = bytes.contains(&9);
                assert!(is_moved || answer.is_err(), "call {at}, seed {seed}");
                assert_eq!(is_moved, !there.contains(&old[0]));
                assert_eq!(is_moved, settled == Some(&ranges(&[(1, 4)])));
                if is_moved {
                    let (_, stored) = bench.visible().pop().unwrap();
                    assert_eq!(stored.data, vec![9; 400]);
                }
                // Reading it a second time changes nothing.
                bench.crash();
                assert_eq!(numbers(&bench), there);
                moved[usize::from(is_moved)] += 1;
            }
            if !went_down {
                break;
            }
        }
    }
    assert!(moved[0] > 100 && moved[1] > 100, "{moved:?}");
}

#[test]
fn a_damaged_relocated_frame_settles_nothing_so_its_events_are_where_they_were() {
    let (mut bench, old) = chunks(&[100, 100]);
    let origins = [all(old[0]), runs(old[1], &[(0, 3)])];
    let new = bench.relocate(9, 40, &origins).unwrap();
    bench.keep(4, 3_000);
    bench.keep(5, 3_000);
    let whole = place(&bench, new);
    let segment = segment_name(whole.segment);
    bench.end(false);
    let bytes = bench.sim.contents(&segment);
    // In its header, its tag, its origins and its events.
    for at in [20, 66, 76, 110] {
        let mut rotten = bytes.clone();
        rotten[whole.frame() as usize + at] ^= 0x10;
        bench.sim.put(&segment, rotten);
        let recovered = bench.open().unwrap();
        let [finding] = &recovered.findings[..] else {
            panic!("{:?}", recovered.findings);
        };
        let expected = format!("(frame {new}); they are kept in quarantine/");
        assert!(finding.contains(&expected), "{finding}");
        assert_eq!(recovered.settled, HashMap::new());
        assert_eq!(bench.bytes(), [1, 2, 4, 5]);
        bench.end(false);
        // Reported once.
        assert_eq!(bench.open().unwrap().findings, [] as [String; 0]);
        bench.end(false);
        for (name, _) in bench.sim.files() {
            if name.starts_with("quarantine/") {
                bench.sim.take(&name);
            }
        }
    }
}

#[test]
fn a_relocated_chunk_found_damaged_when_read_is_delivered_from_its_origin_by_the_next_run() {
    let (mut bench, old) = chunks(&[100, 100]);
    let new = bench.relocate(9, 40, &[all(old[0])]).unwrap();
    bench.spool().finish(old[0]);
    bench.keep(4, 3_000);
    damage(&bench, place(&bench, new));
    let read = bench.spool().read(new);
    let Err(Unreadable::Corrupt { words, kept: true }) = read else {
        panic!("{read:?}");
    };
    assert!(words.contains(&format!("chunk {new} is lost")), "{words}");
    assert_eq!(bench.bytes(), [2, 4]);
    let recovered = bench.restart();
    assert_eq!(recovered.findings, [] as [String; 0]);
    assert_eq!(bench.bytes(), [1, 2, 4]);
}

#[test]
fn a_relocated_chunk_damaged_after_its_origin_was_removed_is_lost_as_any_chunk() {
    let (mut bench, old) = chunks(&[3_500]);
    let new = bench.relocate(9, 40, &[all(old[0])]).unwrap();
    bench.spool().finish(old[0]);
    bench.keep(4, 3_000);
    bench.keep(5, 3_000);
    bench.spool().wait_until_idle();
    assert!(!bench.sim.has(&segment_name(1)));
    damage(&bench, place(&bench, new));
    let recovered = bench.restart();
    assert_eq!(recovered.findings.len(), 1, "{:?}", recovered.findings);
    assert_eq!(bench.bytes(), [4, 5]);
}

#[test]
fn a_missing_segment_of_origins_comes_back_settled() {
    let (mut bench, old) = chunks(&[1_500, 1_500]);
    let new = bench
        .relocate(9, 40, &[all(old[0]), runs(old[1], &[(0, 3)])])
        .unwrap();
    bench.end(false);
    let file = bench.sim.hide(&segment_name(1)).unwrap();
    let recovered = bench.open().unwrap();
    assert_eq!(numbers(&bench), [new]);
    assert_eq!(bench.spool().usage().absent, 2);
    assert_eq!(recovered.settled, HashMap::new());
    bench.keep(4, 10);
    bench.end(true);
    bench.sim.put_back(&segment_name(1), file);
    let recovered = bench.open().unwrap();
    assert_eq!(bench.bytes(), [2, 9, 4]);
    let settled = HashMap::from([(old[1], ranges(&[(0, 3)]))]);
    assert_eq!(recovered.settled, settled);
    assert_eq!(recovered.findings, [] as [String; 0]);
}

#[test]
fn while_a_relocated_chunks_segment_is_missing_its_events_are_delivered_from_their_origin() {
    let (mut bench, old) = chunks(&[1_500, 1_500]);
    let new = bench.relocate(9, 40, &[all(old[0])]).unwrap();
    let segment = place(&bench, new).segment;
    assert_ne!(segment, 1);
    bench.end(false);
    let file = bench.sim.hide(&segment_name(segment)).unwrap();
    let recovered = bench.open().unwrap();
    assert_eq!(recovered.findings.len(), 1, "{:?}", recovered.findings);
    assert_eq!(bench.bytes(), [1, 2]);
    bench.end(false);
    bench.sim.put_back(&segment_name(segment), file);
    assert_eq!(bench.open().unwrap().findings, [] as [String; 0]);
    assert_eq!(bench.bytes(), [2, 9]);
}

#[test]
fn an_origin_whose_file_is_missing_meanwhile_is_settled_all_the_same() {
    let (mut bench, old) = chunks(&[3_500, 3_500, 3_500]);
    let file = bench.sim.hide(&segment_name(1));
    assert!(file.is_some());
    let new = bench.relocate(9, 40, &[all(old[0])]).unwrap();
    bench.spool().finish(old[0]);
    bench.spool().wait_until_idle();
    bench.crash();
    assert_eq!(numbers(&bench), [old[1], old[2], new]);
}

#[test]
fn a_relocated_chunk_may_be_relocated_in_parts_and_delivered_in_parts() {
    let (mut bench, old) = chunks(&[100, 100]);
    let first = bench.relocate(7, 40, &[all(old[0]), all(old[1])]).unwrap();
    bench.spool().finish(old[0]);
    bench.spool().finish(old[1]);
    let second = bench.relocate(8, 20, &[runs(first, &[(0, 4)])]).unwrap();
    let contents = [runs(first, &[(4, 6)]), runs(second, &[(1, 2)])];
    bench.note(begun(3, &contents), Durability::Synced).unwrap();
    for _ in 0..2 {
        let recovered = bench.crash();
        assert_eq!(numbers(&bench), [first, second]);
        let [pending] = &recovered.pending[..] else {
            panic!("{:?}", recovered.pending);
        };
        assert_eq!(pending.contents, contents);
        let settled = HashMap::from([(first, ranges(&[(0, 4)]))]);
        assert_eq!(recovered.settled, settled);
    }
    bench.note(ended(3), Durability::Synced).unwrap();
    let third = bench
        .relocate(
            9,
            10,
            &[runs(first, &[(6, 9)]), runs(second, &[(0, 1), (2, 4)])],
        )
        .unwrap();
    let recovered = bench.crash();
    let settled = HashMap::from([(first, ranges(&[(0, 9)])), (second, ranges(&[(0, 4)]))]);
    assert_eq!(recovered.settled, settled);
    assert_eq!(recovered.pending, []);
    finish(&bench, &[first, second, third]);
    assert_eq!(bench.restart().unfinished, 0);
}

#[test]
fn other_events_of_an_origin_may_be_in_a_pending_batch() {
    let (mut bench, old) = chunks(&[100]);
    let contents = [runs(old[0], &[(0, 2)])];
    bench.note(begun(1, &contents), Durability::Synced).unwrap();
    let new = bench.relocate(9, 40, &[runs(old[0], &[(2, 9)])]).unwrap();
    let recovered = bench.crash();
    assert_eq!(recovered.pending.len(), 1);
    assert_eq!(recovered.pending[0].contents, contents);
    assert_eq!(numbers(&bench), [old[0], new]);
    bench.note(ended(1), Durability::Synced).unwrap();
    let recovered = bench.crash();
    let settled = HashMap::from([(old[0], ranges(&[(0, 9)]))]);
    assert_eq!(recovered.settled, settled);
}

#[test]
fn a_group_keeps_the_order_of_chunks_notes_and_relocations() {
    let (mut bench, old) = chunks(&[100, 100, 100]);
    bench.relocate(7, 10, &[runs(old[0], &[(0, 1)])]).unwrap();
    bench.sim.take_log();
    bench.sim.hold_syncs(true);
    let deadline = Instant::now() + Duration::from_secs(600);
    let spool = Arc::clone(bench.spool());
    let new = bench.runtime.block_on(async {
        let mut first = Box::pin(spool.append(chunk(b"t", &[4; 10]), deadline));
        assert!(matches!(futures::poll!(&mut first), Poll::Pending));
        bench.sim.wait_for_a_held_sync();
        let mut noted = Box::pin(spool.note(begun(1, &[all(old[1])]), Durability::Written));
        let mut moved = Box::pin(spool.relocate(relocation(9, 40, &[all(old[0])])));
        let mut ended = Box::pin(spool.note(ended(1), Durability::Written));
        let mut last = Box::pin(spool.append(chunk(b"t", &[5; 10]), deadline));
        assert!(futures::poll!(&mut noted).is_pending());
        assert!(futures::poll!(&mut moved).is_pending());
        assert!(futures::poll!(&mut ended).is_pending());
        assert!(futures::poll!(&mut last).is_pending());
        assert_eq!(
            spool.usage().unfinished,
            4,
            "nothing is visible before its sync"
        );
        bench.sim.hold_syncs(false);
        first.await.unwrap();
        noted.await.unwrap();
        ended.await.unwrap();
        last.await.unwrap();
        moved.await.unwrap()
    });
    let log = bench.sim.take_log();
    let syncs = log.iter().filter(|(call, _)| *call == Call::Sync).count();
    assert_eq!(syncs, 2, "{log:?}");
    let there = numbers(&bench);
    assert_eq!(there[4..], [new - 2, new, new + 2]);
    let recovered = bench.crash();
    assert_eq!(recovered.pending, []);
    assert_eq!(bench.bytes(), [3, 7, 4, 9, 5]);
}

#[test]
fn a_group_ends_where_a_relocation_needs_another_segment() {
    let (bench, old) = chunks(&[100]);
    bench.sim.hold_syncs(true);
    let deadline = Instant::now() + Duration::from_secs(600);
    let spool = Arc::clone(bench.spool());
    let new = bench.runtime.block_on(async {
        let mut first = Box::pin(spool.append(chunk(b"t", &[2; 10]), deadline));
        assert!(futures::poll!(&mut first).is_pending());
        bench.sim.wait_for_a_held_sync();
        let mut before = Box::pin(spool.append(chunk(b"t", &[3; 10]), deadline));
        let mut moved = Box::pin(spool.relocate(relocation(9, 40, &[all(old[0])])));
        let mut after = Box::pin(spool.append(chunk(b"t", &[4; 10]), deadline));
        assert!(futures::poll!(&mut before).is_pending());
        assert!(futures::poll!(&mut moved).is_pending());
        assert!(futures::poll!(&mut after).is_pending());
        bench.sim.hold_syncs(false);
        first.await.unwrap();
        before.await.unwrap();
        after.await.unwrap();
        moved.await.unwrap()
    });
    let there = numbers(&bench);
    let segments: Vec<Seq> = there
        .iter()
        .map(|chunk| place(&bench, *chunk).segment)
        .collect();
    let begun = new - 1;
    assert_eq!(segments, [1, 1, 1, begun, begun]);
    assert_eq!(versions(&bench), [1, VERSION]);
}

#[test]
fn notes_take_no_room_from_relocation() {
    let options = Options {
        limit: 16 * 1024,
        segment_bytes: Some(4_096),
    };
    let (bench, _) = Bench::on(Sim::new(1), options);
    for byte in 1.. {
        if bench.append(b"app.log", &vec![byte; 500]).is_err() {
            break;
        }
    }
    let old = numbers(&bench);
    // As of requests while the spool is full.
    for run in 0..40 {
        let settled = Note::Done {
            contents: vec![runs(old[1], &[(run, run + 1)])],
        };
        bench.note(settled, Durability::Synced).unwrap();
    }
    assert!(bench.spool().usage().bytes > options.limit + options.limit / 16);
    bench.relocate(200, 100, &[all(old[0])]).unwrap();
}

#[test]
fn a_relocation_may_pass_the_limit_by_a_16th_and_no_more() {
    let options = Options {
        limit: 16 * 1024,
        segment_bytes: Some(4_096),
    };
    let (mut bench, _) = Bench::on(Sim::new(1), options);
    for byte in 1.. {
        match bench.append(b"app.log", &vec![byte; 500]) {
            Ok(_) => {}
            Err(Refusal::Full { .. }) => break,
            Err(other) => panic!("{other:?}"),
        }
    }
    let old = numbers(&bench);
    let most = options.limit + options.limit / 16;
    // A new segment begins with a frame that is no relocated chunk.
    let window = options.segment_bytes.unwrap_or_default() / 16 + 128;
    let mut new = Vec::new();
    let error = loop {
        match bench.relocate(
            200,
            100,
            &[runs(old[0], &[(new.len() as u32, 1 + new.len() as u32)])],
        ) {
            Ok(seq) => new.push(seq),
            Err(error) => break error,
        }
        assert!(bench.spool().usage().bytes <= most + window);
    };
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    assert!(error.raw_os_error().is_none(), "{error}");
    assert!(bench.spool().usage().bytes > options.limit);
    assert!(!new.is_empty());
    assert_eq!(bench.spool().shared.state().reserved, 0);
    assert_eq!(numbers(&bench), [&old[..], &new].concat());
    // Chunks are refused meanwhile.
    let refused = bench.append(b"app.log", &[3; 10]);
    assert!(matches!(refused, Err(Refusal::Full { .. })));
    let settled = HashMap::from([(old[0], ranges(&[(0, new.len() as u32)]))]);
    assert_eq!(bench.crash().settled, settled);
    // The first segment is what it takes.
    let origins: Vec<Seq> = numbers(&bench).into_iter().take(8).collect();
    finish(&bench, &origins);
    assert!(bench.spool().usage().bytes < options.limit);
    bench.relocate(201, 100, &[all(new[0])]).unwrap();
    assert!(matches!(
        bench.append(b"app.log", &[3; 10]),
        Ok(Appended::Kept)
    ));
}

/// What was relocated counts until as much as that was removed, and not until anything was.
#[test]
fn a_small_segment_that_is_removed_gives_relocation_no_more_room_than_it_had() {
    let options = Options {
        limit: 16 * 1024,
        segment_bytes: Some(4_096),
    };
    let (bench, _) = Bench::on(Sim::new(1), options);
    bench.keep(1, 50);
    let first = numbers(&bench)[0];
    // Which begins another segment.
    bench.relocate(2, 10, &[runs(first, &[(0, 1)])]).unwrap();
    for byte in 3.. {
        match bench.append(b"app.log", &vec![byte; 500]) {
            Ok(_) => {}
            Err(Refusal::Full { .. }) => break,
            Err(other) => panic!("{other:?}"),
        }
    }
    let most = options.limit + options.limit / 16;
    let window = options.segment_bytes.unwrap_or_default() / 16 + 128;
    let origin = numbers(&bench)[2];
    let mut event = 0;
    for is_first in [true, false] {
        loop {
            event += 1;
            let moved = [runs(origin, &[(event, event + 1)])];
            match bench.relocate(200, 100, &moved) {
                Ok(_) => assert!(bench.spool().usage().bytes <= most + window),
                Err(error) => break assert_eq!(error.kind(), ErrorKind::QuotaExceeded),
            }
        }
        if is_first {
            finish(&bench, &[first]);
            bench.spool().wait_until_idle();
            assert!(!bench.sim.has(&segment_name(1)));
        }
    }
}

#[test]
fn origins_must_be_unfinished_chunks() {
    let (mut bench, old) = chunks(&[100, 100]);
    bench.spool().finish(old[1]);
    for origins in [vec![], vec![all(old[1])], vec![all(old[0]), all(999)]] {
        let error = bench.relocate(9, 40, &origins).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{origins:?}");
    }
    assert_eq!(numbers(&bench), [old[0]]);
    bench.spool().close();
    let error = bench.relocate(9, 40, &[all(old[0])]).unwrap_err();
    assert_eq!(error.to_string(), CLOSED);
    bench.end(false);
    assert_eq!(bench.open().unwrap().settled, HashMap::new());
}

#[test]
fn a_relocation_is_made_even_if_its_caller_has_gone() {
    let (mut bench, old) = chunks(&[100]);
    bench.runtime.block_on(async {
        let mut moved = Box::pin(bench.spool().relocate(relocation(9, 40, &[all(old[0])])));
        let _ = futures::poll!(&mut moved);
    });
    bench.spool().wait_until_idle();
    assert_eq!(bench.spool().shared.state().reserved, 0);
    bench.crash();
    assert_eq!(bench.bytes(), [9]);
}

#[test]
fn only_segments_that_hold_relocated_chunks_have_the_newer_format_version() {
    let (mut bench, old) = chunks(&[100]);
    assert_eq!(versions(&bench), [1]);
    // The active segment is of the older version: another is begun.
    bench.relocate(8, 10, &[runs(old[0], &[(0, 1)])]).unwrap();
    assert_eq!(versions(&bench), [1, VERSION]);
    bench.keep(2, 10);
    bench.relocate(9, 10, &[runs(old[0], &[(1, 2)])]).unwrap();
    assert_eq!(versions(&bench), [1, VERSION]);
    // The next run continues it.
    bench.restart();
    bench.relocate(9, 10, &[runs(old[0], &[(2, 3)])]).unwrap();
    assert_eq!(versions(&bench), [1, VERSION]);
    bench.keep(3, 3_900);
    assert_eq!(versions(&bench), [1, VERSION, 1]);
    bench.restart();
    bench.relocate(9, 10, &[runs(old[0], &[(3, 4)])]).unwrap();
    assert_eq!(versions(&bench), [1, VERSION, 1, VERSION]);
    // A spool that is empty can be opened by every version.
    bench.finish_all();
    bench.spool().close();
    assert_eq!(versions(&bench), [1]);
}

#[test]
fn a_relocated_chunk_at_which_the_process_ends_twice_is_set_aside() {
    let (mut bench, old) = chunks(&[100]);
    let new = bench.relocate(9, 40, &[all(old[0])]).unwrap();
    bench.spool().finish(old[0]);
    let (_, stored) = bench.visible().pop().unwrap();
    for alone in [false, true] {
        bench.spool().begin_work(new, Work::Deliver, alone);
        bench.end(false);
        bench.open().unwrap();
    }
    let read = bench.spool().read(new);
    let Err(Unreadable::Corrupt { words, kept: true }) = read else {
        panic!("{read:?}");
    };
    assert!(words.contains("tag 'app.log', 40 bytes"), "{words}");
    bench.spool().wait_until_idle();
    // Neither it nor its origin comes back.
    assert_eq!(bench.restart().unfinished, 0);
    // Its frame alone is a spool.
    let sim = Sim::new(2);
    sim.put(&segment_name(new), bench.sim.contents(&set_aside_name(new)));
    let (own, recovered) = Bench::on(sim, SMALL);
    assert_eq!(own.visible(), [(new, stored)]);
    assert_eq!(recovered.findings, [] as [String; 0]);
}

#[test]
fn a_relocated_chunk_may_be_larger_than_a_segment() {
    let (mut bench, old) = chunks(&[100]);
    let new = bench.relocate(9, 9_000, &[all(old[0])]).unwrap();
    bench.crash();
    assert_eq!(numbers(&bench), [new]);
    assert_eq!(bench.spool().peek(None), Some((new, 9_000)));
    assert_eq!(bench.visible()[0].1.data.len(), 9_000);
}
