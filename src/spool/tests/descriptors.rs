//! Spools with more files than a process may open.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::spool::disk::LocalDisk;

/// Set in a test's child process that may open few files, to the spool's folder.
const FEW_FILES: &str = "FERRY_TEST_FEW_FILES";

#[test]
fn a_spool_of_more_segments_than_descriptors_is_opened_read_and_emptied() {
    const SEGMENTS: usize = 300;
    let options = Options {
        limit: 64 << 20,
        segment_bytes: Some(4_096),
    };
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let open = |dir: &Path| open_all(Arc::new(LocalDisk::open(dir).unwrap()), options).unwrap();
    if let Some(dir) = std::env::var_os(FEW_FILES) {
        let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let few = || assert!(descriptors() <= before + 32, "{}", descriptors() - before);
        let (spool, recovered) = open(Path::new(&dir));
        assert_eq!(recovered.findings, [] as [String; 0]);
        let mut after = None;
        let mut chunks = Vec::new();
        while let Some((chunk, stored)) = next(&spool, after) {
            after = Some(chunk);
            stored.unwrap();
            chunks.push(chunk);
            few();
        }
        assert_eq!(chunks.len(), SEGMENTS);
        for chunk in chunks {
            let note = spool.note(done(chunk), Durability::Written);
            runtime.block_on(note).unwrap();
            spool.finish(chunk);
            few();
        }
        spool.wait_until_idle();
        few();
        spool.close();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    for byte in 0..SEGMENTS {
        let data = [&byte.to_le_bytes()[..], &[0; 3_000]].concat();
        let deadline = Instant::now() + Duration::from_secs(600);
        let append = spool.append(chunk(b"t", &data), deadline);
        assert!(matches!(runtime.block_on(append), Ok(Appended::Kept)));
    }
    drop(spool);
    let name = concat!(
        "spool::tests::descriptors::",
        "a_spool_of_more_segments_than_descriptors_is_opened_read_and_emptied"
    );
    with_few_files(64, name, dir.path());
    let (spool, recovered) = open(dir.path());
    assert_eq!(recovered.unfinished, 0);
    assert_eq!(recovered.findings, [] as [String; 0]);
    drop(spool);
    let left = fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    // The lock, a segment, and both manifests.
    assert_eq!(left.len(), 4, "{left:?}");
}

/// Runs a test of this file in a child process that may open at most `files` files.
fn with_few_files(files: u32, test: &str, dir: &Path) {
    let child = Command::new("sh")
        .args(["-c", &format!("ulimit -n {files}; exec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FEW_FILES, dir)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
    let passed = child.status.success() && output.contains("1 passed");
    assert!(passed, "{output}");
}

#[test]
fn running_out_of_descriptors_is_no_damage_and_is_waited_for() {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let open = |dir: &Path| open_all(Arc::new(LocalDisk::open(dir).unwrap()), SMALL);
    let append = |spool: &Spool, byte: u8| {
        let data = vec![byte; 1_500];
        let deadline = Instant::now() + Duration::from_secs(600);
        runtime.block_on(spool.append(chunk(b"t", &data), deadline))
    };
    let Some(dir) = std::env::var_os(FEW_FILES) else {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = open(dir.path()).unwrap();
        for byte in 0..12 {
            assert_eq!(append(&spool, byte).unwrap(), Appended::Kept);
        }
        drop(spool);
        let name =
            "spool::tests::descriptors::running_out_of_descriptors_is_no_damage_and_is_waited_for";
        return with_few_files(64, name, dir.path());
    };
    let dir = Path::new(&dir);
    let all_taken =
        || -> Vec<fs::File> { std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect() };
    let (spool, _) = open(dir).unwrap();
    let mut chunks: Vec<Seq> = spool.shared.state().chunks.keys().copied().collect();
    // The second chunk is in the same file as the first, which is then open, and is damaged.
    spool.read(chunks[0]).unwrap();
    let rotten = chunks.remove(1);
    let place = spool.shared.state().chunks[&rotten];
    let segment = dir.join(segment_name(place.segment));
    let mut bytes = fs::read(&segment).unwrap();
    bytes[place.offset as usize + 9] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let taken = all_taken();
    let read = spool.read(rotten);
    assert!(matches!(read, Err(Unreadable::Disk(_))), "{read:?}");
    let mut waited_for = 0;
    for chunk in &chunks {
        match spool.read(*chunk) {
            Ok(_) => {}
            Err(Unreadable::Disk(error)) => {
                let error = error.to_string();
                assert!(
                    error.contains("LimitNOFILE") && error.contains("64"),
                    "{error}"
                );
                waited_for += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(waited_for > 0);
    // A chunk that does not fit into the open segment needs a new file.
    let refused: Vec<_> = (100..103)
        .filter_map(|byte| append(&spool, byte).err())
        .collect();
    assert!(!refused.is_empty());
    for refusal in refused {
        let Refusal::Disk(error) = refusal else {
            panic!("{refusal:?}");
        };
        assert!(error.to_string().contains("LimitNOFILE"), "{error}");
    }
    drop(taken);
    for chunk in &chunks {
        spool.read(*chunk).unwrap();
    }
    let read = spool.read(rotten);
    assert!(
        matches!(read, Err(Unreadable::Corrupt { kept: true, .. })),
        "{read:?}"
    );
    assert_eq!(append(&spool, 103).unwrap(), Appended::Kept);
    spool.close();
    drop(spool);
    // A start names the cause, and does not advise moving any file.
    let mut taken = all_taken();
    for left in 1..8 {
        taken.pop();
        let Err(error) = LocalDisk::open(dir).and_then(|disk| open_all(Arc::new(disk), SMALL))
        else {
            assert!(left > 2);
            continue;
        };
        let error = error.to_string();
        assert!(
            error.contains("LimitNOFILE") && !error.contains("mov"),
            "{error}"
        );
    }
}
