//! Segments that go missing between runs and come back: missing ones are reported, accepted frames never become void, and
//! finished chunks are not delivered again.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::model::End;
use super::*;
use crate::spool::sim::{Call, Faults};

/// A spool with segments of two chunks each.
fn with_chunks(bytes: Range<u8>) -> Bench {
    let bench = Bench::new(SMALL);
    for byte in bytes {
        bench.keep(byte, 1_500);
    }
    // As it happens about once a second.
    bench.spool().look();
    bench.spool().wait_until_idle();
    bench
}

impl Bench {
    fn end_as(&mut self, end: End) {
        if end == End::Close {
            self.spool().close();
        }
        self.end(end == End::Crash);
    }

    /// Removes segments between two runs.
    fn hide(&self, names: &[String]) -> Vec<(String, usize)> {
        let hide = |name: &String| (name.clone(), self.sim.hide(name).unwrap());
        names.iter().map(hide).collect()
    }

    fn put_back(&self, hidden: Vec<(String, usize)>) {
        for (name, file) in hidden {
            assert!(!self.sim.has(&name), "{name} was recreated");
            self.sim.put_back(&name, file);
        }
    }
}

const ENDS: [End; 3] = [End::Close, End::Kill, End::Crash];

/// The segments that are reported missing.
fn named(recovered: &Recovered) -> Vec<&str> {
    let findings = recovered.findings.iter();
    let named = findings.filter(|finding| finding.contains(".seg is missing"));
    named
        .map(|finding| finding.split(' ').next().unwrap())
        .collect()
}

#[test]
fn a_segment_whose_chunks_were_settled_in_parts_is_no_returned_one_when_its_removal_failed() {
    let mut bench = with_chunks(0..5);
    bench.sim.fault(Faults {
        broken: Vec::from([Call::Rename, Call::Remove]),
        ..Faults::default()
    });
    // Two chunks fill a segment.
    for (chunk, _) in &bench.visible()[..2] {
        for run in [0..3, 3..9] {
            let contents = Vec::from([runs(*chunk, &[(run.start, run.end)])]);
            bench
                .note(Note::Done { contents }, Durability::Synced)
                .unwrap();
        }
        bench.spool().finish(*chunk);
    }
    bench.spool().wait_until_idle();
    bench.end_as(End::Kill);
    bench.sim.fault(Faults::default());
    let recovered = bench.open().unwrap();
    assert_eq!(recovered.findings, [] as [String; 0]);
    let files = bench.sim.files();
    assert!(!files.iter().any(|(file, _)| file.starts_with("quarantine")));
}

#[test]
fn a_segment_that_was_made_and_not_written_to_is_removed_without_a_word() {
    for end in ENDS {
        let mut bench = with_chunks(0..3);
        bench.end_as(end);
        let name = segment_name(900);
        bench.sim.put(&name, Vec::new());
        let recovered = bench.open().unwrap();
        assert_eq!(recovered.findings, [] as [String; 0], "{end:?}");
        let files = bench.sim.files();
        let is_left = |(file, _): &(String, u64)| *file == name || file.starts_with("quarantine");
        assert!(!files.iter().any(is_left), "{end:?}: {files:?}");
        bench.keep(3, 1_500);
        assert_eq!(bench.crash().findings, [] as [String; 0], "{end:?}");
        assert_eq!(bench.bytes(), [0, 1, 2, 3], "{end:?}");
    }
}

#[test]
fn segments_missing_during_a_run_are_delivered_once_they_are_back() {
    for (end, from) in ENDS
        .into_iter()
        .flat_map(|end| [0, 1, 3].map(|from| (end, from)))
    {
        let mut bench = with_chunks(0..8);
        let chunks = bench.visible();
        bench.end_as(end);
        let segments = bench.segments();
        assert_eq!(segments.len(), 4, "{segments:?}");
        let hidden = bench.hide(&segments[from..]);
        for round in 0..2 {
            let recovered = bench.open().unwrap();
            let what = format!("{end:?}, {from}: {recovered:?}");
            assert_eq!(named(&recovered), segments[from..], "{what}");
            assert_eq!(recovered.findings.len(), segments.len() - from, "{what}");
            let usage = bench.spool().usage();
            // A power cut may lose the last unsynced manifest.
            let absent = 8 - 2 * from as u64;
            let unsynced = u64::from(end == End::Crash);
            assert!(
                (absent - unsynced..=absent).contains(&usage.absent),
                "{what}"
            );
            assert_eq!(usage.missing, 0, "{what}");
            for byte in 0..6 {
                bench.keep(100 + 10 * round + byte, 1_500);
            }
            for (chunk, _) in bench.visible().drain(..2) {
                bench.note(done(chunk), Durability::Synced).unwrap();
                bench.spool().finish(chunk);
            }
            bench.spool().wait_until_idle();
            bench.end_as(end);
        }
        let finished = 2 * from.min(2);
        bench.put_back(hidden);
        let recovered = bench.open().unwrap();
        let what = format!("{end:?}, {from}: {recovered:?}");
        assert_eq!(recovered.findings, [] as [String; 0], "{what}");
        let found = bench.visible();
        // With their own numbers.
        assert_eq!(found[..8 - finished], chunks[finished..], "{what}");
        assert_eq!(found.len(), 16, "{what}");
        assert_eq!(bench.spool().usage().absent, 0);
        // Finally nothing is left.
        bench.finish_all();
        let recovered = bench.restart();
        assert_eq!(
            (recovered.unfinished, recovered.findings.len()),
            (0, 0),
            "{recovered:?}"
        );
    }
}

#[test]
fn the_torn_end_of_a_segment_that_was_missing_is_not_damage() {
    for torn in [false, true] {
        let mut bench = with_chunks(0..8);
        bench.finish_all();
        // In a reused file.
        bench.keep(8, 1_500);
        let place = *bench
            .spool()
            .shared
            .state()
            .chunks
            .last_key_value()
            .unwrap()
            .1;
        bench.end(false);
        let newest = bench.segments().pop().unwrap();
        if torn {
            let end = (place.frame() + place.frame_bytes()).next_multiple_of(8) as usize;
            let mut bytes = bench.sim.contents(&newest);
            bytes.truncate(end);
            bytes.extend([0xf5; 30]);
            bench.sim.put(&newest, bytes);
        }
        let hidden = bench.hide(&[newest]);
        bench.open().unwrap();
        bench.keep(9, 1_500);
        bench.end(false);
        bench.put_back(hidden);
        let recovered = bench.open().unwrap();
        assert_eq!(recovered.findings.len(), usize::from(torn), "{recovered:?}");
        assert_eq!(bench.bytes(), [8, 9]);
        assert_eq!(
            bench
                .sim
                .files()
                .iter()
                .filter(|(name, _)| name.contains('/'))
                .count(),
            usize::from(torn)
        );
    }
}

#[test]
fn a_finished_segment_that_comes_back_is_quarantined_and_not_delivered() {
    for end in ENDS {
        let mut bench = with_chunks(0..8);
        let segments = bench.segments();
        let taken = bench.hide(&segments[1..3]);
        // Open files are restored.
        bench.spool().look();
        bench.spool().wait_until_idle();
        assert_eq!(bench.segments(), segments);
        bench.finish_all();
        bench.keep(8, 1_500);
        bench.finish_all();
        bench.end_as(end);
        bench.put_back(taken);
        let recovered = bench.open().unwrap();
        let what = format!("{end:?}: {recovered:?}");
        // A power cut may lose the note that finished the last one.
        let again = recovered.unfinished;
        assert!(
            again == 0 || end == End::Crash && bench.bytes() == [8],
            "{what}"
        );
        assert_eq!(recovered.findings.len(), 2, "{what}");
        for (finding, name) in recovered.findings.iter().zip(&segments[1..3]) {
            assert!(
                finding.starts_with(name)
                    && finding.contains("nothing in it needs to be delivered"),
                "{what}"
            );
            let kept = format!("quarantine/{}.1.seg", name.trim_end_matches(".seg"));
            assert!(finding.contains(&kept), "{what}");
            assert!(bench.sim.contents(&kept).len() > 3_000);
        }
        bench.keep(9, 1_500);
        let recovered = bench.restart();
        assert_eq!(recovered.findings, [] as [String; 0]);
        assert_eq!(bench.bytes().last(), Some(&9));
        assert_eq!(bench.bytes().len() as u64, again + 1);
        assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
    }
}

#[test]
fn a_spool_that_was_emptied_reports_nothing_missing() {
    for end in ENDS {
        let mut bench = with_chunks(0..8);
        bench.finish_all();
        bench.end_as(end);
        let gone = bench.hide(&bench.segments());
        let recovered = bench.open().unwrap();
        // The contents of the active one are unknown.
        let unknown = gone.last().filter(|_| end != End::Close);
        let unknown: Vec<&str> = unknown.map(|(name, _)| &name[..]).into_iter().collect();
        assert_eq!(named(&recovered), unknown, "{end:?}: {recovered:?}");
        let usage = bench.spool().usage();
        assert!(end != End::Close || usage.absent == 0, "{usage:?}");
    }
}

#[test]
fn many_missing_segments_are_counted() {
    let mut bench = with_chunks(0..20);
    bench.end(false);
    let segments = bench.segments();
    bench.hide(&segments[2..]);
    for _ in 0..2 {
        let recovered = bench.open().unwrap();
        assert_eq!(named(&recovered), segments[2..7], "{recovered:?}");
        let last = recovered.findings.last().unwrap();
        assert!(
            last.starts_with(&format!("{} more segments", segments.len() - 7)),
            "{last}"
        );
        assert_eq!(bench.spool().usage().absent, 16);
        bench.spool().close();
        bench.end(false);
    }
}

/// Removes the manifest, which turns the spool into one of an earlier version.
fn without_manifest(bench: &Bench) {
    for name in manifest::NAMES {
        bench.sim.take(name);
    }
}

#[test]
fn chunks_whose_numbers_were_reused_are_kept_and_reported() {
    let mut bench = with_chunks(0..8);
    bench.end_as(End::Close);
    let segments = bench.segments();
    let hidden = bench.hide(&segments[1..]);
    without_manifest(&bench);
    bench.open().unwrap();
    // Two notes and then a small segment, with numbers from the middle of the second hidden one.
    bench.finish_all();
    bench.end_as(End::Close);
    bench.put_back(hidden);
    without_manifest(&bench);
    let recovered = bench.open().unwrap();
    let mut seen = bench.bytes();
    let kept: Vec<String> = bench
        .sim
        .files()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let kept: Vec<String> = kept.into_iter().filter(|name| name.contains('/')).collect();
    assert_eq!(kept.len(), 1, "{recovered:?}");
    for name in kept {
        assert!(
            recovered
                .findings
                .iter()
                .any(|finding| finding.contains(&name)),
            "{recovered:?}"
        );
        // They can be read like a segment.
        let sim = Sim::new(1);
        sim.put(&segment_name(1), bench.sim.contents(&name));
        seen.extend(Bench::on(sim, SMALL).0.bytes());
    }
    seen.sort_unstable();
    assert_eq!(seen, [2, 3, 4, 5, 6, 7], "{recovered:?}");
    // Reported once.
    assert_eq!(bench.restart().findings, [] as [String; 0]);
}

#[test]
fn a_spool_without_a_manifest_is_opened_and_gets_one() {
    let mut bench = with_chunks(0..5);
    bench.end_as(End::Close);
    let segments = bench.segments();
    without_manifest(&bench);
    let taken = bench.hide(&segments[1..2]);
    for byte in 8..10 {
        let recovered = bench.open().unwrap();
        assert_eq!(named(&recovered), segments[1..2], "{recovered:?}");
        bench.keep(byte, 100);
        assert_eq!(bench.segments().last(), segments.last(), "it is continued");
        bench.end_as(End::Kill);
    }
    // The manifest does not cover that one.
    bench.put_back(taken);
    let recovered = bench.open().unwrap();
    assert_eq!(recovered.findings, [] as [String; 0]);
    assert_eq!(bench.bytes(), [0, 1, 2, 3, 4, 8, 9]);
    bench.end_as(End::Close);
    bench.hide(&segments[2..]);
    let recovered = bench.open().unwrap();
    assert_eq!(named(&recovered), segments[2..], "{recovered:?}");
}

#[test]
fn an_invalid_or_foreign_manifest_is_no_error() {
    let (foreign, _) = Bench::on(Sim::new(2), SMALL);
    (0..8).for_each(|byte| foreign.keep(byte, 1_500));
    let mut bench = with_chunks(0..5);
    for case in 0..6 {
        bench.end_as(ENDS[case % 3]);
        for name in manifest::NAMES {
            let bytes = bench.sim.contents(name);
            match case {
                0 => bench.sim.put(name, Vec::new()),
                1 => bench.sim.put(name, bytes[..bytes.len().min(70)].to_vec()),
                2 => bench.sim.put(name, vec![0xff; 5_000]),
                3 => bench.sim.flip_bit(name, 50),
                4 => bench.sim.put(name, foreign.sim.contents(name)),
                _ => bench.sim.flip_bit(manifest::NAMES[0], 9),
            }
        }
        let recovered = bench.open().unwrap();
        assert_eq!(
            recovered.findings.len(),
            usize::from(case == 4),
            "{case}: {recovered:?}"
        );
        bench.keep(10 + case as u8, 100);
        assert_eq!(bench.bytes().len(), 6 + case);
    }
    bench.end_as(End::Kill);
    let segments = bench.segments();
    bench.hide(&segments[2..]);
    assert_eq!(named(&bench.open().unwrap()), segments[2..]);
}

#[test]
fn a_manifest_older_than_segments_of_an_earlier_version_is_ignored() {
    let mut bench = with_chunks(0..5);
    bench.end_as(End::Close);
    let before: Vec<_> = manifest::NAMES.map(|name| bench.sim.contents(name)).into();
    bench.open().unwrap();
    bench.finish_all();
    for byte in 5..14 {
        bench.keep(byte, 1_500);
    }
    bench.end_as(End::Close);
    for (name, bytes) in manifest::NAMES.into_iter().zip(before) {
        bench.sim.put(name, bytes);
    }
    let recovered = bench.open().unwrap();
    assert_eq!(recovered.findings, [] as [String; 0]);
    assert_eq!(bench.bytes(), [5, 6, 7, 8, 9, 10, 11, 12, 13]);
}

#[test]
fn a_removed_manifest_is_written_again() {
    let mut bench = with_chunks(0..5);
    without_manifest(&bench);
    bench.spool().look();
    bench.spool().wait_until_idle();
    bench.end_as(End::Kill);
    let segments = bench.segments();
    bench.hide(&segments[1..]);
    assert_eq!(named(&bench.open().unwrap()), segments[1..]);
}

#[test]
fn the_machine_may_stop_at_any_call_while_a_segment_begins() {
    let mut stops = 0;
    for (power_goes, reused) in [(false, false), (true, false), (false, true), (true, true)] {
        for (at, seed) in (0..).flat_map(|at| (0..4).map(move |seed| (at, seed))) {
            let (mut bench, _) = Bench::on(Sim::new(seed), SMALL);
            (0..6).for_each(|byte| bench.keep(byte, 1_500));
            let mut expected = vec![0, 1, 2, 3, 4, 5];
            if reused {
                bench.finish_all();
                expected.clear();
            }
            bench.sim.fault(Faults {
                down_at: Some(bench.sim.calls() + at),
                ..Faults::default()
            });
            let mut kept = Vec::new();
            for byte in 6..9 {
                if bench.append(b"app.log", &[byte; 1_500]).is_ok() {
                    kept.push(byte);
                }
            }
            let done = !bench.sim.is_down();
            bench.end(power_goes);
            let recovered = bench.open().unwrap();
            let what = format!("{power_goes}, {reused}, {at}: {kept:?} {recovered:?}");
            assert_eq!(named(&recovered), [] as [&str; 0], "{what}");
            let found = bench.bytes();
            expected.extend(&kept);
            assert!(
                expected.iter().all(|byte| found.contains(byte)),
                "{what}: {found:?}"
            );
            // The newest segment may go missing and come back.
            bench.end(false);
            let newest = bench.segments().pop().unwrap();
            let hidden = bench.hide(&[newest]);
            bench.open().unwrap();
            bench.keep(20, 1_500);
            bench.end(false);
            bench.put_back(hidden);
            bench.open().unwrap();
            let again = bench.bytes();
            assert_eq!(again, [&found[..], &[20]].concat(), "{what}");
            stops += 1;
            if done {
                break;
            }
        }
    }
    assert!(stops > 150, "{stops}");
}

#[test]
fn a_segment_does_not_begin_unless_its_manifest_can_be_written() {
    let mut refused = 0;
    for room in (0..16_000).step_by(200) {
        let mut bench = Bench::new(Options {
            limit: 1 << 20,
            segment_bytes: Some(1 << 14),
        });
        (0..2).for_each(|byte| bench.keep(byte, 6_000));
        without_manifest(&bench);
        let files = [bench.sim.files(), bench.sim.side_files()].concat();
        let used: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        bench.sim.fault(Faults {
            capacity: Some(used + room),
            ..Faults::default()
        });
        let kept = bench.append(b"app.log", &[2; 6_000]);
        match kept {
            Ok(_) => {}
            Err(Refusal::Disk(error)) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                refused += 1;
                assert_eq!(bench.segments().len(), 1, "{room}");
            }
            other => panic!("{other:?}"),
        }
        // Existing chunks can still be finished.
        let (chunk, _) = bench.visible()[0];
        let note = |bench: &Bench| bench.note(done(chunk), Durability::Synced);
        note(&bench).or_else(|_| note(&bench)).unwrap();
        bench.spool().finish(chunk);
        bench.sim.fault(Faults::default());
        bench.keep(3, 6_000);
        let recovered = bench.crash();
        assert_eq!(recovered.findings, [] as [String; 0], "{room}");
        assert!(bench.bytes().ends_with(&[3]));
    }
    // A segment without its manifest would need less.
    assert!((45..60).contains(&refused), "{refused}");
}

/// A step of the model of a spool whose files come and go.
#[derive(Clone, Debug)]
enum Op {
    Keep {
        len: usize,
    },
    Finish {
        pick: usize,
    },
    Look,
    /// A segment is removed while the spool is running.
    Take {
        pick: usize,
    },
    /// The machine goes down after this number of calls.
    PowerCut {
        calls: u64,
    },
    /// The run ends; some segments are removed (a bit for each), others come back, and another run begins.
    Restart {
        end: End,
        hide: u16,
        back: u16,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let end = prop_oneof![Just(End::Crash), Just(End::Kill), Just(End::Close)];
    let hide =
        prop_oneof![2 => Just(0), 1 => any::<u16>(), 2 => (0u32..6).prop_map(|n| u16::MAX << n)];
    let back = prop_oneof![1 => Just(0), 1 => any::<u16>(), 1 => Just(u16::MAX)];
    let op = prop_oneof![
        8 => (0usize..1_800).prop_map(|len| Op::Keep { len }),
        5 => prop_oneof![2 => Just(0), 1 => any::<usize>()].prop_map(|pick| Op::Finish { pick }),
        2 => Just(Op::Look),
        1 => any::<usize>().prop_map(|pick| Op::Take { pick }),
        1 => (0u64..60).prop_map(|calls| Op::PowerCut { calls }),
        3 => (end, hide, back).prop_map(|(end, hide, back)| Op::Restart { end, hide, back }),
    ];
    proptest::collection::vec(op, 1..80)
}

/// A chunk of the model.
struct Parcel {
    data: Vec<u8>,
    /// Its number and segment, once it was kept or found.
    place: Option<(Seq, Seq)>,
    kept: bool,
    /// It was finished, or an attempt was made.
    finished: bool,
}

struct Model {
    bench: Bench,
    parcels: Vec<Parcel>,
    hidden: Vec<(String, usize)>,
    /// The segments removed in this run.
    taken: BTreeSet<String>,
    /// A segment may have been restored in part.
    partly_restored: bool,
    numbers: BTreeMap<Seq, usize>,
}

impl Model {
    fn step(&mut self, op: &Op) {
        match op {
            Op::Keep { len } => {
                let mut data = self.parcels.len().to_le_bytes().to_vec();
                data.resize(8 + len, 7);
                let kept = self.bench.append(b"t", &data);
                let kept = match kept {
                    Ok(Appended::Kept) => true,
                    Err(Refusal::Disk(_)) if self.bench.sim.is_down() => false,
                    other => panic!("{other:?}"),
                };
                let place = kept.then(|| {
                    let state = self.bench.spool().shared.state();
                    let (chunk, place) = state.chunks.last_key_value().unwrap();
                    (*chunk, place.segment)
                });
                if let Some((chunk, _)) = place {
                    let before = self.numbers.insert(chunk, self.parcels.len());
                    assert_eq!(before, None, "{chunk} was already used");
                }
                self.parcels.push(Parcel {
                    data,
                    place,
                    kept,
                    finished: false,
                });
            }
            Op::Finish { pick } => {
                let chunks: Vec<Seq> = self
                    .bench
                    .spool()
                    .shared
                    .state()
                    .chunks
                    .keys()
                    .copied()
                    .collect();
                if chunks.is_empty() {
                    return;
                }
                let chunk = chunks[pick % chunks.len()];
                let noted = self.bench.note(done(chunk), Durability::Synced);
                let parcel = &mut self.parcels[self.numbers[&chunk]];
                parcel.finished = true;
                if noted.is_ok() {
                    self.bench.spool().finish(chunk);
                }
            }
            Op::Look => drop(self.bench.spool().look()),
            Op::Take { pick } => {
                let segments = self.bench.segments();
                if !segments.is_empty() {
                    let name = &segments[pick % segments.len()];
                    self.taken.insert(name.clone());
                    self.take(name);
                }
            }
            Op::PowerCut { calls } => self.bench.sim.fault(Faults {
                down_at: Some(self.bench.sim.calls() + calls),
                ..Faults::default()
            }),
            Op::Restart { end, hide, back } => {
                self.restart(*end, *hide, *back);
            }
        }
        self.bench.spool().wait_until_idle();
    }

    fn take(&mut self, name: &str) {
        let file = self.bench.sim.hide(name).unwrap();
        // A file removed earlier, and restored since, is obsolete.
        self.hidden.retain(|(hidden, _)| hidden != name);
        self.hidden.push((name.to_owned(), file));
    }

    fn restart(&mut self, end: End, hide: u16, back: u16) {
        if end == End::Close {
            self.bench.spool().close();
        }
        // Closing may have hit the power cut.
        let end = match self.bench.sim.is_down() {
            true => End::Crash,
            false => end,
        };
        self.bench.end(end == End::Crash);
        // If the power fails while a removed segment is restored, a partial copy may become the segment.
        for name in std::mem::take(&mut self.taken) {
            let is_in =
                |parcel: &&mut Parcel| parcel.place.is_some_and(|(_, at)| segment_name(at) == name);
            for parcel in self.parcels.iter_mut().filter(is_in) {
                if end == End::Crash {
                    self.partly_restored = true;
                    parcel.kept = false;
                    parcel.place.map(|(chunk, _)| self.numbers.remove(&chunk));
                }
            }
        }
        let is_chosen = |bits: u16, index: usize| bits >> (index % 16) & 1 == 1;
        let existing = self.bench.segments();
        for (index, (name, file)) in std::mem::take(&mut self.hidden).into_iter().enumerate() {
            match is_chosen(back, index) && !self.bench.sim.has(&name) {
                true => self.bench.sim.put_back(&name, file),
                false => self.hidden.push((name, file)),
            }
        }
        for (index, name) in existing.iter().enumerate() {
            if is_chosen(hide, index) {
                self.take(name);
            }
        }
        let recovered = self.bench.open().unwrap();
        self.check(&recovered);
    }

    fn check(&mut self, recovered: &Recovered) {
        let files: BTreeSet<String> = self.bench.segments().into_iter().collect();
        let mut seen = BTreeSet::new();
        for (chunk, stored) in self.bench.peeked() {
            let stored = match stored {
                // From a partial copy.
                Err(Unreadable::Corrupt { .. }) if self.partly_restored => continue,
                stored => stored.unwrap(),
            };
            let index = self
                .parcels
                .iter()
                .position(|parcel| parcel.data == stored.data);
            let index = index.expect("a chunk that was kept");
            assert!(seen.insert(index), "parcel {index} is there twice");
            let segment = self.bench.spool().shared.state().chunks[&chunk].segment;
            let parcel = &mut self.parcels[index];
            let place = parcel.place.get_or_insert((chunk, segment));
            assert_eq!(*place, (chunk, segment));
            self.numbers.insert(chunk, index);
            parcel.kept = true;
        }
        let mut lost = BTreeSet::new();
        for (index, parcel) in self.parcels.iter().enumerate() {
            if let Some((_, segment)) = parcel.place
                && parcel.kept
                && !parcel.finished
                && !seen.contains(&index)
            {
                let name = segment_name(segment);
                assert!(
                    !files.contains(&name),
                    "parcel {index} is lost, and {name} exists"
                );
                lost.insert(name);
            }
        }
        let named: BTreeSet<&str> = named(recovered).into_iter().collect();
        for name in &named {
            let is_away = self.hidden.iter().any(|(hidden, _)| hidden == name);
            assert!(
                is_away && !files.contains(*name),
                "{name} was reported missing"
            );
        }
        let counted = recovered
            .findings
            .iter()
            .any(|finding| finding.contains("more segments"));
        for name in &lost {
            assert!(
                counted || named.contains(&name[..]),
                "{name} is not reported missing: {recovered:?}"
            );
        }
        assert_eq!(self.bench.spool().usage().bytes, self.bench.sim.bytes());
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn accepted_chunks_exist_or_are_reported_missing_and_no_number_is_reused(
        ops in ops(),
        seed in any::<u64>(),
    ) {
        let options = Options {
            limit: 1 << 20,
            segment_bytes: Some(2_048 + seed % 4_096),
        };
        let mut model = Model {
            bench: Bench::on(Sim::new(seed), options).0,
            parcels: Vec::new(),
            hidden: Vec::new(),
            taken: BTreeSet::new(),
            partly_restored: false,
            numbers: BTreeMap::new(),
        };
        // The first segment's manifest identifies the spool.
        model.step(&Op::Keep { len: 100 });
        for op in &ops {
            model.step(op);
        }
        model.restart(End::Kill, 0, u16::MAX);
        model.restart(End::Kill, 0, u16::MAX);
        let all_found = model.parcels.iter().all(|parcel| {
            let unfinished = parcel.kept && !parcel.finished;
            !unfinished || model.bench.spool().holds(parcel.place.unwrap().0)
        });
        prop_assert!(all_found, "a chunk is lost although all files are back");
    }
}
