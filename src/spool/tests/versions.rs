//! Spools of earlier versions.

use std::path::Path;

use tempfile::TempDir;

use crate::codec::msgpack;
use crate::spool::disk::LocalDisk;

use super::*;

/// A spool written by version 0.1.0: ten chunks of `http_sample`, and two begun objects.
const FIRST_VERSION: &str = "tests/spools/0.1.0";

/// A copy of a sample.
fn copy(sample: &str) -> TempDir {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join(sample);
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(sample).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

fn open(dir: &TempDir) -> (Arc<Spool>, Recovered) {
    let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
    let options = Options {
        limit: 16_000_000,
        segment_bytes: None,
    };
    open_all(disk, options).unwrap()
}

#[test]
fn a_spool_of_the_first_version_is_opened_and_read_in_full() {
    let dir = copy(FIRST_VERSION);
    let (spool, recovered) = open(&dir);
    assert_eq!(recovered.findings, [] as [String; 0]);
    assert_eq!(recovered.unfinished, 10);
    let begun: Vec<_> = recovered
        .pending
        .iter()
        .map(|it| (it.batch, it.lines, it.contents.len()))
        .collect();
    assert_eq!(begun, [(0, 19, 5), (1, 20, 5)]);
    let name =
        "app/app.one/2026/11/30/02/20261130T024527Z-5eae9dcc9ed268f9925b75c4b3544e5b.ndjson.gz";
    assert_eq!(recovered.pending[0].name, name);
    assert!(name.contains(&recovered.pending[0].token));
    let (mut after, mut events) = (None, 0);
    while let Some((chunk, _)) = spool.peek(after) {
        after = Some(chunk);
        let stored = spool.read(chunk).unwrap();
        assert_eq!(stored.tag, b"app.one");
        let items = msgpack::Events::new(&stored.data);
        events += items
            .filter(|item| matches!(item, msgpack::Item::Event(_)))
            .count();
    }
    assert_eq!(events, 39);
    spool.close();
}

/// A spool of format version 2: four chunks of one event each and more, of which some events are settled, relocated once or
/// twice, and in a batch.
const WITH_RELOCATED: &str = "tests/spools/format-2";

/// The numbers in an event's body, `{"n": number}`, of each chunk, by the chunk's number.
fn values(spool: &Spool) -> Vec<(Seq, Vec<u8>)> {
    let mut found = Vec::new();
    let mut after = None;
    while let Some((chunk, len)) = spool.peek(after) {
        after = Some(chunk);
        let stored = spool.read(chunk).unwrap();
        assert_eq!((&stored.tag[..], stored.data.len()), (&b"app"[..], len));
        let values = stored.data.chunks(17).map(|event| event[16]);
        found.push((chunk, values.collect()));
    }
    found
}

#[test]
fn a_spool_with_relocated_chunks_is_read_as_it_was_written() {
    let dir = copy(WITH_RELOCATED);
    for _ in 0..2 {
        let (spool, recovered) = open(&dir);
        assert_eq!(recovered.findings, [] as [String; 0]);
        let relocated = Vec::from([0, 10, 11, 12, 13]);
        let expected = [
            (2, vec![0, 1, 2, 3]),
            (4, vec![20, 21, 22, 23]),
            (7, relocated),
            (8, vec![11]),
            (9, vec![30]),
        ];
        assert_eq!(values(&spool), expected);
        let settled = HashMap::from([(2, ranges(&[(0, 3)])), (7, ranges(&[(2, 3)]))]);
        assert_eq!(recovered.settled, settled);
        assert_eq!(recovered.pending.len(), 1);
        assert_eq!(recovered.pending[0].contents, [runs(4, &[(0, 2)])]);
    }
}

#[test]
fn chunks_of_the_first_version_can_be_relocated() {
    let dir = copy(FIRST_VERSION);
    let (spool, recovered) = open(&dir);
    let runtime = Builder::new_current_thread().build().unwrap();
    let (first, _) = spool.peek(None).unwrap();
    let stored = spool.read(first).unwrap();
    let relocation = Relocation {
        tag: stored.tag.clone(),
        data: stored.data.clone(),
        arrived: stored.arrived,
        origins: vec![all(first)],
    };
    let new = runtime.block_on(spool.relocate(relocation)).unwrap();
    drop(spool);
    let (spool, again) = open(&dir);
    assert_eq!(again.findings, [] as [String; 0]);
    assert_eq!(again.unfinished, recovered.unfinished);
    assert!(!spool.holds(first));
    assert_eq!(spool.read(new).unwrap(), stored);
}
