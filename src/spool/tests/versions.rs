//! Spools of earlier versions.

use std::path::Path;

use crate::codec::msgpack;
use crate::spool::disk::LocalDisk;

use super::*;

/// A spool written by version 0.1.0: ten chunks of `http_sample`, and two begun objects.
const FIRST_VERSION: &str = "tests/spools/0.1.0";

#[test]
fn a_spool_of_the_first_version_is_opened_and_read_in_full() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join(FIRST_VERSION);
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(sample).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
    let options = Options {
        limit: 16_000_000,
        segment_bytes: None,
    };
    let (spool, recovered) = Spool::open(disk, options).unwrap();
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
