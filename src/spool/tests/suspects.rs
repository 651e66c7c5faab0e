//! Chunks at which the process ends.

use super::*;
use crate::spool::frame::{SUSPECTS, aside_name};

/// Five chunks. Gives their numbers.
fn five(sim: Sim) -> (Bench, Vec<Seq>) {
    let bench = Bench::on(sim, SMALL).0;
    (1..=5).for_each(|byte| bench.keep(byte, 200));
    let chunks = bench.visible().into_iter().map(|(chunk, _)| chunk);
    let chunks = chunks.collect();
    (bench, chunks)
}

/// The process ends while a chunk is worked on, and another begins.
fn die_at(bench: &mut Bench, chunk: Seq, alone: bool) -> Recovered {
    bench.spool().begin_work(chunk, Work::Deliver, alone);
    bench.end(false);
    bench.open().unwrap()
}

/// As [`five`], and the process ended twice at the third of them.
fn condemned(sim: Sim) -> (Bench, Vec<Seq>) {
    let (mut bench, chunks) = five(sim);
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

/// A folder with nothing but a chunk that was set aside, under the name that is said.
fn put_into_a_folder_of_its_own(frame: Vec<u8>, chunk: Seq) -> Bench {
    let sim = Sim::new(2);
    sim.put(&segment_name(chunk), frame);
    Bench::on(sim, SMALL).0
}

#[test]
fn a_chunk_at_which_the_process_ends_twice_is_set_aside_byte_for_byte() {
    let (mut bench, _) = five(Sim::new(1));
    let (bad, stored) = bench.visible().remove(2);
    let recovered = die_at(&mut bench, bad, false);
    assert_eq!(suspects(&recovered), [(bad, 1)]);
    // It can still be read: perhaps it was chance.
    assert_eq!(bench.spool().read(bad).unwrap(), stored);
    let recovered = die_at(&mut bench, bad, true);
    assert_eq!(suspects(&recovered), [(bad, 2)]);
    assert_eq!(recovered.unfinished, 5);
    let read = bench.spool().read(bad);
    let Err(Unreadable::Corrupt { words, kept: true }) = read else {
        panic!("{read:?}");
    };
    let name = aside_name(bad);
    for said in [
        &name[..],
        "tag 'app.log', 200 bytes",
        "ended twice",
        &segment_name(bad),
        "ferry spool export",
    ] {
        assert!(words.contains(said), "{said}: {words}");
    }
    assert!(matches!(bench.spool().read(bad), Err(Unreadable::Finished)));
    assert_eq!(bench.bytes(), [1, 2, 4, 5]);
    bench.spool().rest();
    assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());

    let own = put_into_a_folder_of_its_own(bench.sim.contents(&name), bad);
    assert_eq!(own.visible(), [(bad, stored.clone())]);

    // A host that was killed as well hands it over once more, and knows no better.
    let answer = bench.append(&stored.tag, &stored.data);
    assert_eq!(answer.unwrap(), Appended::Replayed);
    let recovered = bench.restart();
    assert_eq!(recovered.unfinished, 4);
    assert_eq!(suspects(&recovered), []);
}

#[test]
fn what_cannot_be_kept_apart_stays_and_what_is_there_of_it_is_written_anew() {
    let (bench, chunks) = condemned(Sim::new(1));
    let name = aside_name(chunks[2]);
    // Half of it, of a process that was killed.
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
    let own = put_into_a_folder_of_its_own(bench.sim.contents(&name), chunks[2]);
    assert_eq!(own.bytes(), [3]);
    bench.spool().rest();
    assert_eq!(bench.bytes(), [1, 2, 4, 5]);
}

#[test]
fn a_machine_that_stops_while_a_chunk_is_set_aside_has_it_in_one_place_at_least() {
    let mut stopped = 0;
    for call in 0..40 {
        let (mut bench, chunks) = condemned(Sim::new(call));
        let down_at = Some(bench.sim.calls() + call);
        bench.sim.fault(sim::Faults {
            down_at,
            ..Default::default()
        });
        let _ = bench.spool().read(chunks[2]);
        bench.spool().rest();
        stopped += u32::from(bench.sim.is_down());
        bench.crash();
        let name = aside_name(chunks[2]);
        let is_kept = bench.sim.has(&name) && {
            let own = put_into_a_folder_of_its_own(bench.sim.contents(&name), chunks[2]);
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
fn a_spool_that_is_closed_and_one_that_rests_suspect_nobody() {
    let (mut bench, chunks) = five(Sim::new(1));
    bench.spool().begin_work(chunks[0], Work::Deliver, false);
    let recovered = bench.restart();
    assert_eq!(suspects(&recovered), []);
    bench.spool().begin_work(chunks[0], Work::Deliver, false);
    bench.spool().end_work();
    // What comes behind the end of a run has nothing to say.
    bench.spool().close();
    bench.spool().begin_work(chunks[1], Work::Deliver, false);
    bench.end(false);
    assert_eq!(suspects(&bench.open().unwrap()), []);
    // What is acquitted, or finished meanwhile, neither.
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
fn a_file_of_suspects_that_is_no_good_is_a_warning_and_nothing_else() {
    let (mut bench, chunks) = five(Sim::new(1));
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
        // It is of use again.
        let recovered = die_at(&mut bench, chunks[1], false);
        assert!(suspects(&recovered).contains(&(chunks[1], 1)), "{what}");
    }
}

#[test]
fn where_it_cannot_be_written_that_is_said_once_and_chunks_go_on() {
    let (bench, chunks) = five(Sim::new(1));
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
    let said = |bench: &Bench| -> Vec<&str> {
        let notices = bench.spool().look().notices.into_iter();
        notices.map(|(kind, _)| kind).collect()
    };
    assert_eq!(said(&bench), ["spool_suspects"]);
    bench.sim.fault(sim::Faults::default());
    // As soon as it can be written it is.
    let mut bench = bench;
    let recovered = die_at(&mut bench, chunks[3], false);
    assert_eq!(suspects(&recovered), [(chunks[3], 1)]);
    assert_eq!(said(&bench), [] as [&str; 0]);
}

#[test]
fn a_file_of_suspects_that_is_taken_away_is_made_again() {
    let (mut bench, chunks) = five(Sim::new(1));
    bench.spool().begin_work(chunks[0], Work::Deliver, false);
    bench.sim.take(SUSPECTS);
    bench.spool().look();
    bench.spool().rest();
    let recovered = die_at(&mut bench, chunks[1], false);
    assert_eq!(suspects(&recovered), [(chunks[1], 1)]);
}

#[test]
fn nothing_is_written_over_that_was_set_aside_before() {
    let (mut bench, chunks) = condemned(Sim::new(1));
    assert!(bench.spool().read(chunks[2]).is_err());
    bench.spool().close();
    bench.end(false);
    // Somebody empties the folder, but for what is kept.
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
