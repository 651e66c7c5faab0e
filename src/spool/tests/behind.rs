//! What earlier runs left is read behind the start, as the reader comes near.

use futures::FutureExt as _;

use super::*;
use crate::spool::sim::{Call, Faults};

/// Room for all chunks of a test.
const OPTIONS: Options = Options {
    limit: 256 * 1024,
    ..SMALL
};

/// A spool of twelve segments of two chunks each, which begin with the bytes from 0 on.
fn long() -> Bench {
    let bench = Bench::new(OPTIONS);
    (0..24).for_each(|byte| bench.keep(byte, 1_500));
    assert_eq!(bench.segments().len(), 12);
    bench
}

/// Ends the run, and starts another that cannot open any but the newest segment yet.
fn start_held(bench: &mut Bench) -> super::super::Recovered {
    bench.end(false);
    let mut older = bench.segments();
    older.pop();
    bench.sim.hold_files(&older);
    bench.start().unwrap()
}

/// The number of chunks in the index.
fn indexed(bench: &Bench) -> usize {
    bench.spool().shared.state().chunks.len()
}

#[test]
fn a_start_reads_the_newest_segment_only_and_accepts_chunks_at_once() {
    let mut bench = long();
    let start = start_held(&mut bench);
    assert_eq!(start.findings, [] as [String; 0]);
    assert_eq!(
        (start.unfinished, bench.spool().usage().unfinished),
        (24, 24)
    );
    assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
    (24..30).for_each(|byte| bench.keep(byte, 1_500));
    assert_eq!(
        bench.append(b"app.log", &[23; 1_500]).unwrap(),
        Appended::Replayed
    );
    assert_eq!(bench.spool().peek(None), None);
    assert!(!bench.spool().is_read(None));
    bench.sim.hold_files(&[]);
    assert_eq!(bench.bytes(), (0..30).collect::<Vec<u8>>());
    assert!(bench.spool().is_read(Some(Seq::MAX)));
    bench.finish_all();
    bench.restart();
    assert_eq!(bench.segments().len(), 1);
}

#[test]
fn the_index_is_bounded_and_follows_the_reader() {
    for written in [0, 20] {
        let mut bench = long();
        bench.end(false);
        bench.indexed = 4;
        bench.start().unwrap();
        // Nobody reads meanwhile.
        (0..written).for_each(|byte| bench.keep(24 + byte, 1_500));
        let (mut after, mut bytes) = (None, Vec::new());
        while let Some((chunk, stored)) = next(bench.spool(), after) {
            after = Some(chunk);
            bytes.push(stored.unwrap().data[0]);
            bench.note(done(chunk), Durability::Written).unwrap();
            bench.spool().finish(chunk);
            // Some segments ahead, and the one being written.
            assert!(indexed(&bench) <= 10, "{}", indexed(&bench));
        }
        assert_eq!(bytes, (0..24 + written).collect::<Vec<u8>>());
        bench.spool().wait_until_idle();
        assert_eq!(bench.segments().len(), 1);
        assert_eq!(bench.spool().usage().unfinished, 0);
    }
}

#[test]
fn a_reader_far_behind_keeps_the_index_small_in_a_run_that_began_with_nothing() {
    let mut bench = Bench::new(OPTIONS);
    bench.end(false);
    bench.indexed = 4;
    bench.start().unwrap();
    (0..24).for_each(|byte| bench.keep(byte, 1_500));
    assert!(indexed(&bench) <= 10, "{}", indexed(&bench));
    assert_eq!(bench.spool().usage().unfinished, 24);
    let (first, _) = bench.spool().peek(None).unwrap();
    // Whoever relocated a chunk recognises it whenever it is read.
    let moved = bench.relocate(90, 20, &[all(first)]).unwrap();
    bench.spool().finish(first);
    (24..30).for_each(|byte| bench.keep(byte, 1_500));
    let expected = (1..24).chain([90]).chain(24..30);
    assert_eq!(bench.bytes(), expected.collect::<Vec<u8>>());
    assert!(bench.spool().is_relocated(moved));
    assert_eq!(bench.spool().usage().unfinished, 30);
}

#[test]
fn damage_in_an_old_segment_is_told_while_chunks_are_accepted() {
    let mut bench = long();
    let segments = bench.segments();
    let place = {
        let state = bench.spool().shared.state();
        *state.chunks.values().nth(5).unwrap()
    };
    bench
        .sim
        .flip_bit(&segments[2], place.frame() as usize + 20);
    let start = start_held(&mut bench);
    assert_eq!(start.findings, [] as [String; 0]);
    bench.keep(24, 1_500);
    bench.sim.hold_files(&[]);
    let expected = (0..25).filter(|byte| *byte != 5);
    assert_eq!(bench.bytes(), expected.collect::<Vec<u8>>());
    let told = bench.spool().look().findings;
    let [finding] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(
        finding.starts_with(&segments[2]) && finding.contains("quarantine/"),
        "{finding}"
    );
    assert_eq!(bench.spool().look().findings, [] as [String; 0]);
    assert_eq!(bench.spool().usage().unfinished, 24);
}

#[test]
fn a_segment_that_goes_missing_before_it_is_read_delays_no_other_and_may_come_back() {
    let mut bench = long();
    let segments = bench.segments();
    start_held(&mut bench);
    let file = bench.sim.hide(&segments[3]).unwrap();
    bench.sim.hold_files(&[]);
    let expected: Vec<u8> = (0..24).filter(|byte| !(6..8).contains(byte)).collect();
    assert_eq!(bench.bytes(), expected);
    let missing = bench.spool().look().missing;
    assert_eq!(missing, [(segments[3].clone(), 2)]);
    let last = bench.visible().last().unwrap().0;
    assert_eq!(bench.spool().take_late(Some(last)), [] as [Seq; 0]);
    bench.sim.put_back(&segments[3], file);
    bench.spool().look();
    bench.spool().wait_until_idle();
    bench.spool().wait_until_indexed();
    let late = bench.spool().take_late(Some(last));
    let read = |chunk: &Seq| bench.spool().read(*chunk).unwrap().data[0];
    assert_eq!(late.iter().map(read).collect::<Vec<_>>(), [6, 7]);
    assert_eq!(bench.spool().take_late(Some(last)), [] as [Seq; 0]);
    assert_eq!(bench.bytes(), (0..24).collect::<Vec<u8>>());
    bench.finish_all();
    assert_eq!(bench.segments().len(), 1);
}

#[test]
fn a_segment_that_is_being_copied_back_when_its_turn_comes_is_waited_for() {
    let mut bench = long();
    let segments = bench.segments();
    start_held(&mut bench);
    let whole = bench.sim.contents(&segments[3]);
    let part = whole[..whole.len() * 3 / 4].to_vec();
    bench.sim.put(&segments[3], part);
    bench.sim.hold_files(&[]);
    let expected: Vec<u8> = (0..24).filter(|byte| !(6..8).contains(byte)).collect();
    assert_eq!(bench.bytes(), expected);
    assert_eq!(bench.spool().look().missing, [(segments[3].clone(), 2)]);
    bench.sim.put(&segments[3], whole);
    bench.spool().look();
    bench.spool().wait_until_idle();
    bench.spool().wait_until_indexed();
    assert_eq!(bench.bytes(), (0..24).collect::<Vec<u8>>());
    bench.finish_all();
    assert_eq!(bench.segments().len(), 1);
}

#[test]
fn chunks_in_hand_of_the_segment_that_was_the_newest_stay_readable() {
    let mut bench = long();
    let (last, _) = bench.visible().pop().unwrap();
    bench
        .note(begun(7, &[all(last)]), Durability::Synced)
        .unwrap();
    bench.indexed = 4;
    start_held(&mut bench);
    assert_eq!(history(&bench).pending.len(), 1);
    // The segment is full, and others follow, while the older ones are not read yet.
    (24..30).for_each(|byte| bench.keep(byte, 1_500));
    assert!(bench.spool().holds(last));
    assert_eq!(bench.spool().read(last).unwrap().data[0], 23);
    bench.sim.hold_files(&[]);
    assert_eq!(bench.bytes(), (0..30).collect::<Vec<u8>>());
    bench.finish_all();
    assert_eq!(bench.segments().len(), 1);
    assert_eq!(bench.spool().usage().unfinished, 0);
}

#[test]
fn the_segment_being_written_is_never_read_for_the_index() {
    // Two chunks a segment: it is the one at the frontier. (With more, its Begin frame is read, which bounds the one before.)
    for chunks in [5, 6] {
        let mut bench = Bench::new(OPTIONS);
        bench.end(false);
        bench.indexed = 4;
        bench.start().unwrap();
        (0..chunks).for_each(|byte| bench.keep(byte, 1_500));
        bench.sim.take_log();
        let mut after = None;
        while let Some((chunk, _)) = bench.spool().next(after).unwrap() {
            after = Some(chunk);
        }
        bench.spool().wait_until_indexed();
        let newest = bench.segments().pop().unwrap();
        let log = bench.sim.take_log();
        let read = log.iter().filter(|(call, name)| {
            matches!(call, sim::Call::Open | sim::Call::Read) && *name == newest
        });
        assert_eq!(read.count(), 0, "{chunks}: {log:?}");
        assert_eq!(bench.bytes(), (0..chunks).collect::<Vec<u8>>());
        bench.finish_all();
        assert_eq!(bench.spool().usage().unfinished, 0);
        assert_eq!(bench.segments().len(), 1);
    }
}

#[test]
fn a_disk_that_cannot_be_read_is_told_and_tried_again() {
    let mut bench = long();
    let segments = bench.segments();
    start_held(&mut bench);
    bench.sim.fault(sim::Faults {
        broken: Vec::from([sim::Call::Read]),
        ..Default::default()
    });
    bench.sim.hold_files(&[]);
    let error = bench.spool().next(None).unwrap_err().to_string();
    assert!(error.contains(&segments[0]), "{error}");
    assert_eq!(bench.spool().look().trouble.as_ref(), Some(&error));
    bench.keep(24, 1_500);
    bench.sim.fault(sim::Faults::default());
    bench.spool().look();
    bench.spool().wait_until_indexed();
    assert_eq!(bench.bytes(), (0..25).collect::<Vec<u8>>());
    assert_eq!(bench.spool().look().trouble, None);
}

/// Waits for the history, without reading anything.
fn history(bench: &Bench) -> History {
    bench.runtime.block_on(bench.spool().history())
}

/// A long spool of which some chunks are finished, some partly settled, and some in a pending batch; and a segment that began
/// after that.
fn with_notes() -> (Bench, Vec<Seq>) {
    let bench = long();
    let chunks: Vec<Seq> = bench.visible().iter().map(|(chunk, _)| *chunk).collect();
    let settled = [
        runs(chunks[4], &[(0, 2), (5, 6)]),
        all(chunks[5]),
        all(chunks[20]),
    ];
    let contents = Vec::from(settled);
    bench
        .note(Note::Done { contents }, Durability::Written)
        .unwrap();
    let batch = [runs(chunks[4], &[(2, 3)]), all(chunks[9])];
    bench.note(begun(7, &batch), Durability::Synced).unwrap();
    bench
        .note(begun(8, &[all(chunks[10])]), Durability::Synced)
        .unwrap();
    bench.note(ended(8), Durability::Written).unwrap();
    (24..28).for_each(|byte| bench.keep(byte, 1_500));
    (bench, chunks)
}

fn check_notes(bench: &Bench, chunks: &[Seq], history: &History) {
    let [pending] = &history.pending[..] else {
        panic!("{history:?}");
    };
    assert_eq!(pending.batch, 7);
    assert_eq!(
        pending.contents,
        [runs(chunks[4], &[(2, 3)]), all(chunks[9])]
    );
    // Its chunks can be read at once.
    assert_eq!(bench.spool().read(chunks[9]).unwrap().data[0], 9);
    let finished = [5, 10, 20];
    let expected = (0..28).filter(|byte| !finished.contains(byte));
    assert_eq!(bench.bytes(), expected.collect::<Vec<u8>>());
    assert_eq!(bench.spool().settled(chunks[4]), ranges(&[(0, 2), (5, 6)]));
    assert_eq!(bench.spool().usage().unfinished, 25);
}

#[test]
fn what_was_begun_is_known_without_reading_old_notes() {
    for ending in [false, true] {
        let (mut bench, chunks) = with_notes();
        if ending {
            bench.spool().close();
        }
        bench.end(false);
        let segments = bench.segments();
        let needed = [chunks[4], chunks[9]].map(|chunk| {
            let firsts = segments
                .iter()
                .filter_map(|name| frame::segment_first(name));
            segment_name(firsts.filter(|first| *first < chunk).max().unwrap())
        });
        let newest = segments.last().unwrap();
        let others = segments
            .iter()
            .filter(|name| *name != newest && !needed.contains(name));
        let others: Vec<String> = others.cloned().collect();
        assert_eq!(others.len(), segments.len() - 3);
        bench.sim.hold_files(&others);
        bench.start().unwrap();
        // The bound of a needed segment is that of the next one.
        let bounds = |name: &&String| needed.iter().any(|needed| *name > needed);
        let bounding = others.iter().filter(bounds).count();
        assert!(bounding > 0);
        let next = needed
            .each_ref()
            .map(|needed| segments.iter().find(|name| *name > needed).unwrap().clone());
        let held: Vec<String> = others
            .into_iter()
            .filter(|name| !next.contains(name))
            .collect();
        bench.sim.hold_files(&held);
        let history = history(&bench);
        bench.sim.hold_files(&[]);
        check_notes(&bench, &chunks, &history);
    }
}

#[test]
fn without_a_checkpoint_all_notes_are_read_before_anything_is_delivered() {
    let (mut bench, chunks) = with_notes();
    bench.end(false);
    for name in manifest::NAMES {
        let mut bytes = bench.sim.contents(name);
        let magic = [0xf5, b'S', b'c', 1];
        if let Some(at) = bytes.windows(4).position(|four| four == magic) {
            bytes[at + 30] ^= 1;
            bench.sim.put(name, bytes);
        }
    }
    let mut older = bench.segments();
    older.pop();
    bench.sim.hold_files(&older[..1]);
    bench.start().unwrap();
    bench.keep(28, 1_500);
    assert!(bench.spool().history().now_or_never().is_none());
    assert_eq!(bench.spool().peek(None), None);
    bench.sim.hold_files(&[]);
    let history = history(&bench);
    let (last, _) = bench.visible().pop().unwrap();
    bench.spool().finish(last);
    check_notes(&bench, &chunks, &history);
}

#[test]
fn a_checkpoint_does_not_count_if_a_relocated_chunk_in_it_is_damaged() {
    for damaged in [false, true] {
        let bench = long();
        let chunks: Vec<Seq> = bench.visible().iter().map(|(chunk, _)| *chunk).collect();
        let moved = bench.relocate(90, 300, &[all(chunks[3])]).unwrap();
        let place = bench.spool().shared.state().chunks[&moved];
        (24..28).for_each(|byte| bench.keep(byte, 1_500));
        let mut bench = bench;
        bench.end(false);
        let name = segment_name(place.segment);
        assert_ne!(bench.segments().last(), Some(&name));
        if damaged {
            bench.sim.flip_bit(&name, place.offset as usize + 100);
        }
        bench.open().unwrap();
        // Its events are where they were, or in the relocated chunk.
        let old = (0..24u8).filter(|byte| *byte != 3 || damaged);
        let new = [90].into_iter().filter(|_| !damaged).chain(24..28);
        assert_eq!(bench.bytes(), old.chain(new).collect::<Vec<u8>>());
    }
}

/// A long spool with a relocated chunk, of which chunk 5 is finished by a note in the segment that is returned, and with
/// segments that began after that.
fn with_a_note_and_a_relocated_chunk() -> (Bench, String) {
    let bench = long();
    let chunks: Vec<Seq> = bench.visible().iter().map(|(chunk, _)| *chunk).collect();
    bench.note(done(chunks[5]), Durability::Synced).unwrap();
    let noted = bench.segments().pop().unwrap();
    bench.relocate(90, 300, &[all(chunks[3])]).unwrap();
    (24..28).for_each(|byte| bench.keep(byte, 1_500));
    (bench, noted)
}

/// Starts with a disk that cannot be read behind the start, until something failed for that reason.
fn start_broken(bench: &mut Bench) {
    start_held(bench);
    bench.sim.fault(Faults {
        broken: vec![Call::Read],
        ..Default::default()
    });
    bench.sim.hold_files(&[]);
    let has_failed = |spool: &Spool| spool.shared.state().behind.is_some();
    let spool = bench.spool();
    let state = spool.shared.state();
    let waits = |state: &mut State| state.behind.is_none();
    let waited = spool.shared.indexed.wait_while(state, waits);
    drop(waited.unwrap());
    assert!(has_failed(spool));
}

/// The first bytes of what is to be delivered without the chunks of the missing segment with the note.
fn without_the_noted_segment() -> Vec<u8> {
    let old = (0..22u8).filter(|byte| ![3, 5].contains(byte));
    old.chain([90]).chain(24..28).collect()
}

#[test]
fn a_checkpoint_is_used_although_the_disk_failed_when_it_was_looked_at() {
    let (mut bench, noted) = with_a_note_and_a_relocated_chunk();
    bench.end(false);
    bench.sim.hide(&noted).unwrap();
    start_broken(&mut bench);
    bench.sim.fault(Faults::default());
    assert_eq!(bench.bytes(), without_the_noted_segment());
}

#[test]
fn a_checkpoint_is_kept_by_a_run_that_could_not_read_what_it_had_begun() {
    let (mut bench, noted) = with_a_note_and_a_relocated_chunk();
    start_broken(&mut bench);
    // Some segments begin meanwhile.
    (28..34).for_each(|byte| bench.keep(byte, 1_500));
    bench.sim.fault(Faults::default());
    bench.end(false);
    bench.sim.hide(&noted).unwrap();
    bench.open().unwrap();
    let expected = [without_the_noted_segment(), (28..34).collect()].concat();
    assert_eq!(bench.bytes(), expected);
    // And by the next one, which has it and what came after it.
    (34..38).for_each(|byte| bench.keep(byte, 1_500));
    bench.end(false);
    bench.open().unwrap();
    let expected = [expected, (34..38).collect()].concat();
    assert_eq!(bench.bytes(), expected);
}

#[test]
fn a_segment_that_may_not_be_opened_holds_up_no_other() {
    let mut bench = long();
    bench.end(false);
    let barred = bench.segments()[3].clone();
    bench.sim.bar_files(std::slice::from_ref(&barred));
    bench.start().unwrap();
    let others = (0..24).filter(|byte| ![6, 7].contains(byte));
    assert_eq!(bench.bytes(), others.collect::<Vec<u8>>());
    let health = bench.spool().look();
    let trouble = health.trouble.unwrap_or_default();
    assert!(
        trouble.contains(&format!("{barred} cannot be opened")),
        "{trouble}"
    );
    assert_eq!(health.missing, []);
    assert_eq!(bench.spool().usage().unfinished, 24);
    // It is tried again, and delivered.
    bench.sim.bar_files(&[]);
    bench.spool().look();
    bench.spool().wait_until_idle();
    bench.spool().wait_until_indexed();
    assert_eq!(bench.spool().take_late(Some(Seq::MAX)).len(), 2);
    assert_eq!(bench.bytes(), (0..24).collect::<Vec<u8>>());
    assert_eq!(bench.spool().look().trouble, None);
}

#[test]
fn chunks_of_a_segment_that_may_not_be_opened_any_more_wait_for_its_file() {
    let bench = long();
    let (chunk, _) = bench.visible()[0];
    let barred = bench.segments()[0].clone();
    // So many others are read that it is not open any more.
    bench.sim.bar_files(std::slice::from_ref(&barred));
    bench.spool().shared.handles.forget(1);
    let read = bench.spool().read(chunk);
    assert!(matches!(read, Err(Unreadable::Missing(1))), "{read:?}");
    let trouble = bench.spool().look().trouble.unwrap_or_default();
    assert!(trouble.contains(&barred), "{trouble}");
    bench.sim.bar_files(&[]);
    bench.spool().look();
    bench.spool().wait_until_idle();
    assert!(!bench.spool().is_missing(1));
    assert!(bench.spool().read(chunk).is_ok());
    assert_eq!(bench.spool().look().trouble, None);
}
