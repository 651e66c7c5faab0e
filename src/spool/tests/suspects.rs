//! Chunks at which the process ends.

use super::*;
use crate::spool::frame::{SUSPECTS, set_aside_name};

/// A spool of five chunks, and their numbers.
fn five_chunks(sim: Sim) -> (Bench, Vec<Seq>) {
    let bench = Bench::on(sim, SMALL).0;
    (1..=5).for_each(|byte| bench.keep(byte, 200));
    let chunks = bench.visible().into_iter().map(|(chunk, _)| chunk);
    let chunks = chunks.collect();
    (bench, chunks)
}

/// Ends the process while a chunk is worked on, and reopens the spool.
fn die_at(bench: &mut Bench, chunk: Seq, alone: bool) -> Recovered {
    bench.spool().begin_work(chunk, Work::Deliver, alone);
    bench.end(false);
    bench.open().unwrap()
}

/// Like [`five_chunks`], after the process ended twice at the third one.
fn condemned(sim: Sim) -> (Bench, Vec<Seq>) {
    let (mut bench, chunks) = five_chunks(sim);
    die_at(&mut bench, chunks[2], false);
    die_at(&mut bench, chunks[2], true);
    (bench, chunks)
}

fn suspects(recovered: &Recovered) -> Vec<(Seq, u32)> {
    let suspects = recovered.suspects.iter();
    suspects
        .map(|suspect| (suspect.chunk, suspect.ends))
        .collect()
}

/// A spool made from a frame that was set aside, as the log line describes.
fn spool_of_one_frame(frame: Vec<u8>, chunk: Seq) -> Bench {
    let sim = Sim::new(2);
    sim.put(&segment_name(chunk), frame);
    Bench::on(sim, SMALL).0
}

#[test]
fn a_chunk_at_which_the_process_ends_twice_is_set_aside_byte_for_byte() {
    let (mut bench, _) = five_chunks(Sim::new(1));
    let (bad, stored) = bench.visible().remove(2);
    let recovered = die_at(&mut bench, bad, false);
    assert_eq!(suspects(&recovered), [(bad, 1)]);
    // It can still be read: the end may have been a coincidence.
    assert_eq!(bench.spool().read(bad).unwrap(), stored);
    let recovered = die_at(&mut bench, bad, true);
    assert_eq!(suspects(&recovered), [(bad, 2)]);
    assert_eq!(recovered.unfinished, 5);
    let read = bench.spool().read(bad);
    let Err(Unreadable::Corrupt { words, kept: true }) = read else {
        panic!("{read:?}");
    };
    let name = set_aside_name(bad);
    for expected in [
        &name[..],
        "tag 'app.log', 200 bytes",
        "ended twice",
        &segment_name(bad),
        "ferry spool export",
    ] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    assert!(matches!(bench.spool().read(bad), Err(Unreadable::Finished)));
    assert_eq!(bench.bytes(), [1, 2, 4, 5]);
    bench.spool().wait_until_idle();
    assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());

    let own = spool_of_one_frame(bench.sim.contents(&name), bad);
    assert_eq!(own.visible(), [(bad, stored.clone())]);

    // A host that was killed as well hands it over once more.
    let answer = bench.append(&stored.tag, &stored.data);
    assert_eq!(answer.unwrap(), Appended::Replayed);
    let recovered = bench.restart();
    assert_eq!(recovered.unfinished, 4);
    assert_eq!(suspects(&recovered), []);
}

#[test]
fn a_chunk_that_cannot_be_quarantined_stays_and_a_partial_copy_is_replaced() {
    let (bench, chunks) = condemned(Sim::new(1));
    let name = set_aside_name(chunks[2]);
    // A partial copy, left by a killed process.
    bench.sim.put(&name, vec![0xf5; 40]);
    for broken in [sim::Call::Create, sim::Call::Sync, sim::Call::SyncDir] {
        bench.sim.fault(sim::Faults {
            broken: Vec::from([broken]),
            ..Default::default()
        });
        let read = bench.spool().read(chunks[2]);
        assert!(
            matches!(read, Err(Unreadable::Disk(_))),
            "{broken:?}: {read:?}"
        );
        assert!(bench.spool().holds(chunks[2]), "{broken:?}");
    }
    bench.sim.fault(sim::Faults::default());
    let read = bench.spool().read(chunks[2]);
    assert!(matches!(read, Err(Unreadable::Corrupt { .. })), "{read:?}");
    let own = spool_of_one_frame(bench.sim.contents(&name), chunks[2]);
    assert_eq!(own.bytes(), [3]);
    bench.spool().wait_until_idle();
    assert_eq!(bench.bytes(), [1, 2, 4, 5]);
}

#[test]
fn a_machine_that_stops_while_a_chunk_is_set_aside_never_loses_it() {
    let mut stopped = 0;
    for call in 0..40 {
        let (mut bench, chunks) = condemned(Sim::new(call));
        let down_at = Some(bench.sim.calls() + call);
        bench.sim.fault(sim::Faults {
            down_at,
            ..Default::default()
        });
        let _ = bench.spool().read(chunks[2]);
        bench.spool().wait_until_idle();
        stopped += u32::from(bench.sim.is_down());
        bench.crash();
        let name = set_aside_name(chunks[2]);
        let is_kept = bench.sim.has(&name) && {
            let own = spool_of_one_frame(bench.sim.contents(&name), chunks[2]);
            own.bytes() == [3]
        };
        assert!(is_kept || bench.spool().holds(chunks[2]), "call {call}");
        let read = bench.peeked().into_iter();
        let others = read.filter(|(chunk, _)| *chunk != chunks[2]);
        let others: Vec<u8> = others.map(|(_, stored)| stored.unwrap().data[0]).collect();
        assert_eq!(others, [1, 2, 4, 5], "call {call}");
    }
    assert!((5..40).contains(&stopped), "{stopped} of 40");
}

#[test]
fn a_closed_spool_and_an_idle_one_have_no_suspects() {
    let (mut bench, chunks) = five_chunks(Sim::new(1));
    bench.spool().begin_work(chunks[0], Work::Deliver, false);
    let recovered = bench.restart();
    assert_eq!(suspects(&recovered), []);
    bench.spool().begin_work(chunks[0], Work::Deliver, false);
    bench.spool().end_work();
    // Work that begins after the close is ignored.
    bench.spool().close();
    bench.spool().begin_work(chunks[1], Work::Deliver, false);
    bench.end(false);
    assert_eq!(suspects(&bench.open().unwrap()), []);
    // Nor are chunks suspects that were acquitted or finished.
    let recovered = die_at(&mut bench, chunks[0], false);
    assert_eq!(suspects(&recovered), [(chunks[0], 1)]);
    bench.spool().begin_work(chunks[0], Work::Deliver, true);
    bench.spool().acquit(chunks[0], Work::Deliver);
    bench.spool().begin_work(chunks[1], Work::Deliver, false);
    bench.note(done(chunks[1]), Durability::Synced).unwrap();
    bench.spool().finish(chunks[1]);
    bench.end(false);
    assert_eq!(suspects(&bench.open().unwrap()), []);
}

#[test]
fn an_invalid_suspects_file_is_only_a_warning() {
    let (mut bench, chunks) = five_chunks(Sim::new(1));
    let before = die_at(&mut bench, chunks[2], false);
    assert_eq!(before.findings, [] as [String; 0]);
    let good = bench.sim.contents(SUSPECTS);
    let mut torn = good.clone();
    torn[100] ^= 1;
    let mut newer = good.clone();
    newer[8] = 2;
    for (what, bytes, warnings) in [
        ("torn", torn, 1),
        ("cut off", good[..100].to_vec(), 1),
        ("another version's", newer, 1),
        ("not ours", b"deny\n".to_vec(), 1),
        ("empty", Vec::new(), 0),
        ("as it was", good.clone(), 0),
    ] {
        bench.end(false);
        bench.sim.put(SUSPECTS, bytes);
        let recovered = bench.open().unwrap();
        assert_eq!(recovered.findings.len(), warnings, "{what}");
        assert_eq!(recovered.unfinished, 5, "{what}");
        assert_eq!(bench.bytes(), [1, 2, 3, 4, 5], "{what}");
        // It works again.
        let recovered = die_at(&mut bench, chunks[1], false);
        assert!(suspects(&recovered).contains(&(chunks[1], 1)), "{what}");
    }
}

#[test]
fn a_suspects_file_that_cannot_be_written_is_reported_once() {
    let (bench, chunks) = five_chunks(Sim::new(1));
    for broken in [sim::Call::Create, sim::Call::Write] {
        bench.sim.fault(sim::Faults {
            broken: Vec::from([broken]),
            ..Default::default()
        });
        for chunk in &chunks {
            bench.spool().begin_work(*chunk, Work::Deliver, false);
            assert!(bench.spool().read(*chunk).is_ok());
            bench.spool().end_work();
        }
    }
    let notices = |bench: &Bench| -> Vec<&str> {
        let notices = bench.spool().look().notices.into_iter();
        notices.map(|(kind, _)| kind).collect()
    };
    assert_eq!(notices(&bench), ["spool_suspects"]);
    bench.sim.fault(sim::Faults::default());
    // It is written as soon as that is possible.
    let mut bench = bench;
    let recovered = die_at(&mut bench, chunks[3], false);
    assert_eq!(suspects(&recovered), [(chunks[3], 1)]);
    assert_eq!(notices(&bench), [] as [&str; 0]);
}

#[test]
fn a_removed_suspects_file_is_recreated() {
    let (mut bench, chunks) = five_chunks(Sim::new(1));
    bench.spool().begin_work(chunks[0], Work::Deliver, false);
    bench.sim.take(SUSPECTS);
    bench.spool().look();
    bench.spool().wait_until_idle();
    let recovered = die_at(&mut bench, chunks[1], false);
    assert_eq!(suspects(&recovered), [(chunks[1], 1)]);
}

#[test]
fn a_chunk_set_aside_is_never_overwritten() {
    let (mut bench, chunks) = condemned(Sim::new(1));
    assert!(bench.spool().read(chunks[2]).is_err());
    bench.spool().close();
    bench.end(false);
    // Empty the folder except for the quarantine.
    for (name, _) in bench.sim.files() {
        if !name.starts_with("quarantine/") {
            bench.sim.take(&name);
        }
    }
    bench.open().unwrap();
    bench.keep(9, 200);
    let (chunk, _) = bench.spool().peek(None).unwrap();
    assert!(chunk > chunks[2], "{chunk}");
}
