//! Files and folders that are removed, moved or replaced while a spool is running, and put back or not.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::spool::disk::LocalDisk;
use crate::spool::sim::{Call, Faults, Lock};

/// A spool in a local folder.
struct Local {
    /// Contains the spool's folder, `spool`, and files moved out of it, `aside`.
    place: TempDir,
    runtime: Runtime,
    spool: Option<Arc<Spool>>,
}

impl Local {
    /// Creates a spool with chunks of these bytes.
    fn with(bytes: Range<u8>) -> Local {
        let mut local = Local {
            place: tempfile::tempdir().unwrap(),
            runtime: Builder::new_current_thread().enable_time().build().unwrap(),
            spool: None,
        };
        local.open();
        bytes.for_each(|byte| local.keep(byte));
        local
    }

    fn dir(&self) -> PathBuf {
        self.place.path().join("spool")
    }

    fn aside(&self) -> PathBuf {
        self.place.path().join("aside")
    }

    fn open(&mut self) -> Recovered {
        let disk = Arc::new(LocalDisk::open(&self.dir()).unwrap());
        let (spool, recovered) = open_all(disk, SMALL).unwrap();
        self.spool = Some(spool);
        recovered
    }

    /// Ends the process without closing the spool, and reopens it.
    fn killed(&mut self) -> Recovered {
        self.spool = None;
        self.open()
    }

    fn spool(&self) -> &Arc<Spool> {
        self.spool.as_ref().unwrap()
    }

    fn append(&self, byte: u8) -> Result<Appended, Refusal> {
        let deadline = Instant::now() + Duration::from_secs(600);
        let data = vec![byte; 1_500];
        let append = self.spool().append(chunk(b"app.log", &data), deadline);
        self.runtime.block_on(append)
    }

    fn keep(&self, byte: u8) {
        let answer = self.append(byte);
        assert!(matches!(answer, Ok(Appended::Kept)), "{answer:?}");
    }

    fn is_refused(&self, byte: u8) -> String {
        match self.append(byte) {
            Err(Refusal::Disk(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// The first bytes of all readable chunks.
    fn bytes(&self) -> Vec<u8> {
        let mut after = None;
        let mut bytes = Vec::new();
        while let Some((chunk, stored)) = next(self.spool(), after) {
            after = Some(chunk);
            bytes.extend(stored.ok().map(|stored| stored.data[0]));
        }
        bytes
    }

    /// The result of a new look.
    fn look(&self) -> Health {
        look(self.spool())
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir()).unwrap().map(Result::unwrap);
        let mut segments: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "seg"))
            .collect();
        segments.sort();
        segments
    }

    fn quarantined(&self) -> usize {
        fs::read_dir(self.dir().join("quarantine")).map_or(0, Iterator::count)
    }
}

fn look(spool: &Spool) -> Health {
    let before = spool.look();
    spool.wait_until_idle();
    let health = spool.look();
    spool.wait_until_idle();
    Health {
        notices: [before.notices, health.notices].concat(),
        ..health
    }
}

#[test]
fn a_moved_folder_is_still_read_and_accepts_nothing() {
    for another_in_its_place in [false, true] {
        let mut local = Local::with(0..6);
        fs::rename(local.dir(), local.aside()).unwrap();
        if another_in_its_place {
            fs::create_dir(local.dir()).unwrap();
        }
        assert_eq!(local.bytes(), [0, 1, 2, 3, 4, 5]);
        let error = local.is_refused(6);
        assert!(error.contains(local.dir().to_str().unwrap()), "{error}");
        assert_eq!(local.look().trouble, Some(error.clone()));
        assert_eq!(local.is_refused(6), error);
        // Notes on existing chunks are still written to the moved folder.
        let note = local.spool().note(done(1), Durability::Synced);
        local.runtime.block_on(note).unwrap();
        assert_eq!(local.spool().usage().unfinished, 6);
        if another_in_its_place {
            assert_eq!(fs::read_dir(local.dir()).unwrap().count(), 0);
            fs::remove_dir(local.dir()).unwrap();
        }
        fs::rename(local.aside(), local.dir()).unwrap();
        local.keep(7);
        assert_eq!(local.look().trouble, None);
        assert_eq!(local.bytes(), [0, 1, 2, 3, 4, 5, 7]);
        assert_eq!(local.killed().unfinished, 7);
        assert_eq!(local.bytes(), [0, 1, 2, 3, 4, 5, 7]);
        assert_eq!(local.quarantined(), 0);
    }
}

#[test]
fn accepted_chunks_survive_the_removal_of_open_files() {
    for (seen_by_a_look, all_files) in [(false, false), (true, false), (false, true), (true, true)]
    {
        let mut local = Local::with(0..1);
        for entry in fs::read_dir(local.dir()).unwrap() {
            let path = entry.unwrap().path();
            if all_files || path.extension().is_some() {
                fs::remove_file(path).unwrap();
            }
        }
        let mut expected = vec![0];
        if seen_by_a_look {
            let health = local.look();
            assert_eq!(health.trouble, None);
            let again = |(_, notice): &(_, String)| notice.contains("written again");
            assert!(health.notices.iter().any(again), "{health:?}");
        } else {
            local.keep(1);
            expected.push(1);
        }
        assert_eq!(local.bytes(), expected);
        let recovered = local.killed();
        assert_eq!(recovered.unfinished, expected.len() as u64);
        assert_eq!(recovered.findings, [] as [String; 0]);
        assert_eq!(local.bytes(), expected);
    }
}

#[test]
fn a_restored_file_is_continued() {
    let mut local = Local::with(0..1);
    for byte in 1..8 {
        fs::remove_file(local.segments().pop().unwrap()).unwrap();
        local.keep(byte);
    }
    local.look();
    assert_eq!(local.spool().usage().bytes, {
        let segments = local.segments();
        let bytes = |path: &PathBuf| fs::metadata(path).unwrap().len();
        segments.iter().map(bytes).sum::<u64>()
    });
    local.killed();
    assert_eq!(local.bytes(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn closed_segments_with_open_files_are_restored_too() {
    let mut local = Local::with(0..8);
    let segments = local.segments();
    assert!(segments.len() > 3, "{segments:?}");
    for segment in &segments {
        fs::remove_file(segment).unwrap();
    }
    assert_eq!(local.bytes(), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(local.look().notices.len(), segments.len());
    assert_eq!(local.segments(), segments);
    let recovered = local.killed();
    assert_eq!(recovered.findings, [] as [String; 0]);
    assert_eq!(local.bytes(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_chunk_whose_file_was_removed_is_waited_for_and_reported() {
    let mut local = Local::with(0..6);
    // The new run has not opened the older ones.
    local.killed();
    let bytes = local.spool().usage().bytes;
    let oldest = local.segments().remove(0);
    let name = oldest.file_name().unwrap().to_str().unwrap();
    fs::rename(&oldest, local.aside()).unwrap();
    // Before it is read.
    let health = local.look();
    let [(missing, chunks)] = &health.missing[..] else {
        panic!("{health:?}");
    };
    assert_eq!((&missing[..], health.trouble), (name, None));
    let chunks = *chunks;
    assert_eq!(local.bytes().len() as u64, 6 - chunks);
    let usage = local.spool().usage();
    assert_eq!((usage.unfinished, usage.missing), (6, chunks));
    assert!(usage.bytes < bytes, "missing files are not counted");
    let (first, _) = local.spool().peek(None).unwrap();
    let read = local.spool().read(first);
    let Err(Unreadable::Missing(segment)) = read else {
        panic!("{read:?}");
    };
    assert!(local.spool().is_missing(segment));
    // Half of the file is not enough.
    let whole = fs::read(local.aside()).unwrap();
    fs::write(&oldest, &whole[..whole.len() / 2]).unwrap();
    let read = local.spool().read(first);
    assert!(matches!(read, Err(Unreadable::Missing(_))), "{read:?}");
    assert_eq!(local.look().missing.len(), 1);
    fs::rename(local.aside(), &oldest).unwrap();
    assert_eq!(local.look().missing, []);
    assert!(!local.spool().is_missing(segment));
    assert_eq!(local.bytes(), [0, 1, 2, 3, 4, 5]);
    let usage = local.spool().usage();
    assert_eq!((usage.bytes, usage.missing), (bytes, 0));
    assert_eq!(local.quarantined(), 0);
}

#[test]
fn a_file_truncated_while_in_use_is_waited_for() {
    let mut local = Local::with(0..6);
    local.killed();
    assert_eq!(local.bytes().len(), 6);
    let oldest = local.segments().remove(0);
    let whole = fs::read(&oldest).unwrap();
    let file = fs::File::options().write(true).open(&oldest).unwrap();
    file.set_len(100).unwrap();
    let missing = 6 - local.bytes().len() as u64;
    assert!(missing > 0);
    assert_eq!(local.look().missing.len(), 1);
    assert_eq!(local.spool().usage().missing, missing);
    fs::write(&oldest, whole).unwrap();
    local.look();
    assert_eq!(local.bytes(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_restart_reports_missing_segments_and_finds_them_when_put_back() {
    let mut local = Local::with(0..10);
    let segments = local.segments();
    assert!(segments.len() >= 5, "{segments:?}");
    local.spool = None;
    for missing in [1..2, 1..3, 2..4] {
        for (n, segment) in segments[missing.clone()].iter().enumerate() {
            fs::rename(segment, local.aside().with_extension(n.to_string())).unwrap();
        }
        let recovered = local.open();
        assert_eq!(recovered.findings.len(), missing.len(), "{recovered:?}");
        for (finding, segment) in recovered.findings.iter().zip(&segments[missing.clone()]) {
            let name = segment.file_name().unwrap().to_str().unwrap();
            let expected = format!("{name} is missing: 2 chunks");
            assert!(finding.starts_with(&expected), "{finding}");
            assert!(finding.contains("are not delivered"), "{finding}");
        }
        assert!(recovered.unfinished < 10);
        local.spool = None;
        for (n, segment) in segments[missing].iter().enumerate() {
            fs::rename(local.aside().with_extension(n.to_string()), segment).unwrap();
        }
        let recovered = local.open();
        assert_eq!(recovered.findings, [] as [String; 0]);
        assert_eq!(recovered.unfinished, 10);
        local.spool = None;
    }
    for segment in &segments {
        fs::remove_file(segment).unwrap();
    }
    let recovered = local.open();
    assert_eq!(
        recovered.findings.len(),
        segments.len().min(6),
        "{:?}",
        recovered.findings
    );
    // One was accepted into the newest after its manifest was written.
    assert_eq!(local.spool().usage().absent, 9);
    // A spool of an earlier version.
    local.spool = None;
    for name in manifest::NAMES {
        fs::remove_file(local.dir().join(name)).unwrap();
    }
    let recovered = local.open();
    assert_eq!(recovered.findings.len(), 1, "{:?}", recovered.findings);
    assert!(recovered.findings[0].starts_with("no segment is there"));
}

#[test]
fn a_restart_names_a_few_missing_segments_and_counts_the_others() {
    let mut local = Local::with(0..30);
    local.spool = None;
    let segments = local.segments();
    let gone = segments.iter().skip(1).step_by(2);
    gone.clone()
        .for_each(|segment| fs::remove_file(segment).unwrap());
    let missing = gone.count();
    let recovered = local.open();
    assert_eq!(recovered.findings.len(), 6, "{:?}", recovered.findings);
    let others = format!("{} more segments are missing", missing - 5);
    assert!(
        recovered.findings[5].starts_with(&others),
        "{:?}",
        recovered.findings
    );
}

#[test]
fn another_file_in_a_segments_place_is_moved_away_and_kept() {
    let mut local = Local::with(0..1);
    let segment = local.segments().pop().unwrap();
    let before = fs::read(&segment).unwrap();
    local.keep(1);
    // Like restoring a backup of a running spool.
    fs::write(local.aside(), &before).unwrap();
    fs::rename(local.aside(), &segment).unwrap();
    local.keep(2);
    let notices = local.look().notices;
    assert!(
        notices
            .iter()
            .any(|(_, notice)| notice.contains("quarantine/")),
        "{notices:?}"
    );
    let recovered = local.killed();
    assert_eq!(recovered.findings, [] as [String; 0]);
    assert_eq!(local.bytes(), [0, 1, 2]);
    let aside = fs::read_dir(local.dir().join("quarantine")).unwrap();
    let aside: Vec<_> = aside
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(aside, [before]);
}

#[test]
fn a_deleted_folder_is_recreated_with_the_open_files() {
    for made_by_somebody in [false, true] {
        let mut local = Local::with(0..4);
        fs::remove_dir_all(local.dir()).unwrap();
        if made_by_somebody {
            fs::create_dir(local.dir()).unwrap();
        }
        assert_eq!(local.bytes(), [0, 1, 2, 3]);
        local.keep(4);
        let health = local.look();
        assert_eq!(health.trouble, None);
        assert!(
            health
                .notices
                .iter()
                .any(|(_, notice)| notice.contains("was deleted and is recreated"))
        );
        assert_eq!(local.bytes(), [0, 1, 2, 3, 4]);
        assert_eq!(
            LocalDisk::open(&local.dir()).map(drop).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        let recovered = local.killed();
        assert_eq!(recovered.findings, [] as [String; 0]);
        assert_eq!(local.bytes(), [0, 1, 2, 3, 4]);
    }
}

#[test]
fn a_deleted_folder_is_not_mixed_with_another_spool() {
    let local = Local::with(0..4);
    let other = Local::with(10..12);
    fs::remove_dir_all(local.dir()).unwrap();
    other.spool().close();
    fs::rename(other.dir(), local.dir()).unwrap();
    let before = fs::read_dir(local.dir()).unwrap().count();
    let error = local.is_refused(4);
    assert!(
        error.contains("another spool") || error.contains("in use"),
        "{error}"
    );
    assert_eq!(local.bytes(), [0, 1, 2, 3]);
    assert_eq!(fs::read_dir(local.dir()).unwrap().count(), before);
}

#[test]
fn a_finished_segment_that_is_put_back_too_late_is_removed() {
    let mut local = Local::with(0..6);
    let oldest = local.segments().remove(0);
    fs::rename(&oldest, local.aside()).unwrap();
    let chunks = local.spool().shared.state().chunks.clone();
    for (chunk, _) in chunks {
        let note = local.spool().note(done(chunk), Durability::Written);
        local.runtime.block_on(note).unwrap();
        local.spool().finish(chunk);
    }
    local.spool().wait_until_idle();
    fs::rename(local.aside(), &oldest).unwrap();
    local.look();
    assert!(!oldest.exists());
    assert_eq!(local.killed().unfinished, 0);
}

/// Takes the lock like a version that does not lock directories.
fn lock_as_earlier_versions(local: &Local) -> Option<fs::File> {
    let lock = local.dir().join("lock");
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(lock);
    let file = file.unwrap();
    file.try_lock().is_ok().then_some(file)
}

#[test]
fn a_second_host_is_kept_out_although_the_lock_file_was_removed() {
    let local = Local::with(0..1);
    assert!(lock_as_earlier_versions(&local).is_none());
    fs::remove_file(local.dir().join("lock")).unwrap();
    let second = LocalDisk::open(&local.dir()).map(drop);
    let error = second.expect_err("two spools run in one folder");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    // The lock file is recreated, and keeps earlier versions out.
    let notices = local.look().notices;
    assert!(
        notices
            .iter()
            .any(|(_, notice)| notice.contains("lock was removed")),
        "{notices:?}"
    );
    assert!(lock_as_earlier_versions(&local).is_none());
    local.keep(1);
    assert_eq!(local.look(), Health::default());
}

#[test]
fn an_earlier_version_that_got_the_lock_is_left_alone() {
    for changes_something in [false, true] {
        let mut local = Local::with(0..2);
        fs::remove_file(local.dir().join("lock")).unwrap();
        let other = lock_as_earlier_versions(&local);
        assert!(other.is_some());
        for _ in 0..2 {
            let trouble = local.look().trouble.unwrap();
            assert!(trouble.contains("in use"), "{trouble}");
            local.is_refused(2);
            let (chunk, read) = next(local.spool(), None).unwrap();
            assert!(matches!(read, Err(Unreadable::Disk(_))), "{read:?}");
            let note = local.spool().note(done(chunk), Durability::Written);
            assert!(local.runtime.block_on(note).is_err());
        }
        let segment = local.segments().pop().unwrap();
        let mut bytes = fs::read(&segment).unwrap();
        if changes_something {
            bytes.extend([0; 8]);
            fs::write(&segment, &bytes).unwrap();
        }
        drop(other);
        let health = local.look();
        if changes_something {
            assert!(health.trouble.is_some());
            local.is_refused(2);
            local.spool().close();
            assert_eq!(fs::read(&segment).unwrap(), bytes);
            local.spool = None;
            local.open();
        } else {
            assert_eq!(health.trouble, None);
            local.keep(2);
        }
        assert_eq!(local.bytes()[..2], [0, 1]);
    }
}

#[test]
fn a_group_costs_two_stats() {
    let bench = Bench::new(SMALL);
    bench.keep(0, 10);
    bench.sim.take_log();
    bench.keep(1, 10);
    let calls: Vec<Call> = bench.sim.take_log().iter().map(|(call, _)| *call).collect();
    assert_eq!(calls, [Call::Write, Call::Sync, Call::Id, Call::Check]);
    bench.note(done(1), Durability::Written).unwrap();
    let calls: Vec<Call> = bench.sim.take_log().iter().map(|(call, _)| *call).collect();
    assert_eq!(calls, [Call::Write, Call::Id]);
}

/// A loss of the newest segment, or of all of them.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Removed,
    Replaced,
    AllRemoved,
    /// Including the lock.
    Emptied,
    FolderDeleted,
}

const LOSSES: [Loss; 5] = [
    Loss::Removed,
    Loss::Replaced,
    Loss::AllRemoved,
    Loss::Emptied,
    Loss::FolderDeleted,
];

impl Loss {
    /// Applies the loss. Returns the removed files, for [`Sim::put_back`].
    fn apply(self, bench: &Bench) -> Vec<(String, usize)> {
        let mut segments = bench.segments();
        if matches!(self, Loss::Removed | Loss::Replaced) {
            segments = segments.split_off(segments.len() - 1);
        }
        let before = bench.sim.contents(&segments[0]);
        let hidden = segments
            .iter()
            .map(|name| (name.clone(), bench.sim.hide(name).unwrap()));
        let hidden = hidden.collect();
        match self {
            Loss::Replaced => bench.sim.put(&segments[0], before),
            Loss::FolderDeleted => bench.sim.delete(),
            Loss::Emptied => bench.sim.lock(Lock::Removed),
            Loss::Removed | Loss::AllRemoved => {}
        }
        hidden
    }
}

#[test]
fn the_machine_may_stop_at_any_call_while_files_are_restored() {
    let mut stops = 0;
    for loss in LOSSES {
        for (power_goes, put_back) in [(false, false), (false, true), (true, false), (true, true)] {
            for at in 0.. {
                let mut bench = Bench::new(SMALL);
                for byte in 0..5 {
                    bench.keep(byte, 1_500);
                }
                let older = match loss {
                    // Segments of two chunks each.
                    Loss::Removed | Loss::Replaced => 4,
                    Loss::AllRemoved | Loss::Emptied | Loss::FolderDeleted => 0,
                };
                let hidden = loss.apply(&bench);
                bench.sim.fault(Faults {
                    down_at: Some(bench.sim.calls() + at),
                    ..Faults::default()
                });
                let kept = bench.append(b"app.log", &[5; 1_500]).is_ok();
                let health = bench.spool().look();
                bench.spool().wait_until_idle();
                drop(health);
                let done = !bench.sim.is_down();
                bench.end(power_goes);
                if put_back {
                    for (name, file) in hidden {
                        if !bench.sim.has(&name) {
                            bench.sim.put_back(&name, file);
                        }
                    }
                }
                let recovered = bench.open().unwrap();
                let found = bench.bytes();
                let what =
                    format!("{loss:?}, {power_goes}, {put_back}, {at}: {found:?} {recovered:?}");
                assert!(found.is_sorted(), "{what}");
                assert!((0..older).all(|byte| found.contains(&byte)), "{what}");
                if put_back && !matches!(loss, Loss::FolderDeleted) || done {
                    assert!((older..5).all(|byte| found.contains(&byte)), "{what}");
                }
                // The fifth is in the active segment.
                assert!(!kept || found.ends_with(&[4, 5]), "{what}");
                // A partial copy is used only if the file is not back.
                let damaged = |finding: &String| finding.contains("damaged");
                assert!(
                    !put_back || !recovered.findings.iter().any(damaged),
                    "{what}"
                );
                bench.keep(9, 1_500);
                bench.restart();
                assert!(bench.bytes().contains(&9), "{what}");
                stops += 1;
                if done {
                    break;
                }
            }
        }
    }
    assert!(stops > 200, "{stops}");
}

#[test]
fn files_that_cannot_be_restored_yet_are_read_and_nothing_is_acknowledged() {
    let cases = [
        broken(&[Call::Create]),
        broken(&[Call::Rename]),
        broken(&[Call::SyncDir]),
        broken(&[Call::Id]),
        Faults {
            capacity: Some(2_500),
            ..Faults::default()
        },
    ];
    for faults in cases {
        for loss in LOSSES {
            let mut bench = Bench::new(SMALL);
            for byte in 0..5 {
                bench.keep(byte, 1_500);
            }
            loss.apply(&bench);
            bench.sim.fault(faults.clone());
            for _ in 0..3 {
                let refused = bench.append(b"app.log", &[5; 1_500]);
                let what = format!("{faults:?} {loss:?}: {refused:?}");
                assert!(matches!(refused, Err(Refusal::Disk(_))), "{what}");
                assert!(look(bench.spool()).trouble.is_some(), "{what}");
                assert_eq!(bench.bytes(), [0, 1, 2, 3, 4], "{what}");
            }
            bench.sim.fault(Faults::default());
            bench.keep(6, 1_500);
            assert_eq!(look(bench.spool()).trouble, None);
            assert_eq!(bench.bytes(), [0, 1, 2, 3, 4, 6], "{faults:?} {loss:?}");
            let recovered = bench.crash();
            assert_eq!(recovered.findings, [] as [String; 0], "{faults:?} {loss:?}");
            assert_eq!(bench.bytes(), [0, 1, 2, 3, 4, 6], "{faults:?} {loss:?}");
        }
    }
}

#[test]
fn a_file_in_a_segments_place_stays_until_there_is_room_for_a_copy() {
    let mut bench = Bench::new(SMALL);
    bench.keep(0, 1_500);
    let [name] = &bench.segments()[..] else {
        panic!("one segment");
    };
    // Like moving the file away, and back over the one restored in its place.
    let file = bench.sim.hide(name).unwrap();
    look(bench.spool());
    bench.sim.put_back(name, file);
    bench.sim.fault(Faults {
        capacity: Some(2_500),
        ..Faults::default()
    });
    assert!(look(bench.spool()).trouble.is_some());
    let recovered = bench.crash();
    assert_eq!(recovered.findings, [] as [String; 0]);
    assert_eq!(bench.bytes(), [0]);
}

#[test]
fn a_restored_file_keeps_its_name_even_if_another_cannot_be_restored() {
    for seed in 0..8 {
        let mut bench = Bench::on(Sim::new(seed), SMALL).0;
        for byte in 0..3 {
            bench.keep(byte, 1_500);
        }
        let [full, newest] = &bench.segments()[..] else {
            panic!("two segments");
        };
        bench.sim.hide(newest).unwrap();
        bench.sim.hide(full).unwrap();
        let used: u64 = bench.sim.side_files().iter().map(|(_, bytes)| bytes).sum();
        bench.sim.fault(Faults {
            // Enough for the newest, but not for both.
            capacity: Some(used + 2_500),
            ..Faults::default()
        });
        assert!(look(bench.spool()).trouble.is_some());
        bench.crash();
        assert_eq!(bench.bytes(), [2]);
    }
}

fn broken(calls: &[Call]) -> Faults {
    Faults {
        broken: calls.to_vec(),
        ..Faults::default()
    }
}

#[test]
fn a_lock_that_is_lost_and_regained_changes_nothing() {
    let bench = Bench::new(SMALL);
    bench.keep(0, 10);
    for lock in [Lock::Removed, Lock::Another] {
        bench.sim.lock(lock);
        look(bench.spool());
        let refused = bench.append(b"t", b"x").is_err();
        assert_eq!(refused, lock == Lock::Another);
        bench.sim.lock(Lock::Ours);
        look(bench.spool());
    }
    bench.keep(1, 10);
    assert_eq!(bench.bytes()[0], 0);
}

#[test]
fn damaged_bytes_that_cannot_be_kept_are_not_reported_kept() {
    for call in [Call::Create, Call::Write] {
        let bench = Bench::new(SMALL);
        bench.keep(0, 100);
        bench.keep(1, 100);
        let (first, place) = {
            let state = bench.spool().shared.state();
            let (first, place) = state.chunks.first_key_value().unwrap();
            (*first, *place)
        };
        let name = segment_name(place.segment);
        bench.sim.flip_bit(&name, place.offset as usize + 9);
        bench.sim.fault(broken(&[call]));
        let read = bench.spool().read(first);
        let Err(Unreadable::Corrupt { words, kept: false }) = &read else {
            panic!("{read:?}");
        };
        assert!(words.contains("are not kept"), "{words}");
        bench.sim.fault(Faults::default());
        let files = bench.sim.files();
        assert!(!files.iter().any(|(name, _)| name.starts_with("quarantine")));
        assert_eq!(bench.bytes(), [1]);
    }
}
