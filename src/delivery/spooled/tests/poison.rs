//! A chunk of which the disk has lost bytes: it is given up in the end, and what can be read of it is kept.

use std::io::{self, IoSlice};

use super::*;
use crate::spool::disk::{Disk, File, FileId, LockState};

/// The file and the place of lost bytes.
type Lost = Arc<Mutex<Option<(String, Range<u64>)>>>;

/// A disk that has lost some bytes of a file: reading them fails with EIO.
struct BadSectors {
    disk: LocalDisk,
    lost: Lost,
}

struct BadFile {
    file: Box<dyn File>,
    name: String,
    lost: Lost,
}

impl BadSectors {
    fn file(&self, name: &str, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(BadFile {
            file,
            name: name.to_owned(),
            lost: Arc::clone(&self.lost),
        })
    }
}

impl Disk for BadSectors {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.disk.list()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(self.file(name, self.disk.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(self.file(name, self.disk.open(name)?))
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
        self.disk.id(name)
    }

    fn check(&self) -> io::Result<()> {
        self.disk.check()
    }

    fn ensure_locked(&self) -> io::Result<LockState> {
        self.disk.ensure_locked()
    }
}

impl File for BadFile {
    fn id(&self) -> FileId {
        self.file.id()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(parts, offset)
    }

    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        if let Some((name, lost)) = &*self.lost.lock().unwrap()
            && *name == self.name
            && offset < lost.end
            && lost.start < offset + len as u64
        {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.file.read_at(into, len, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

#[tokio::test(start_paused = true)]
async fn a_chunk_whose_bytes_are_lost_is_given_up_while_others_are_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(STREAM, MANY);
    let lost = Lost::default();
    let disk = |dir: &Path| BadSectors {
        disk: LocalDisk::open(dir).unwrap(),
        lost: Arc::clone(&lost),
    };
    let bench = start_on(
        dir.path(),
        &store,
        FIREHOSE,
        &dir.path().join("spool"),
        disk,
    );
    // The first chunk's text starts behind the headers, within the second page.
    let long = "y".repeat(9_000);
    let segment = segments(dir.path());
    assert!(segment.is_empty(), "the first chunk begins the segment");
    let name = format!("{:020}.seg", 1);
    *lost.lock().unwrap() = Some((name, 4_096..4_097));
    assert_eq!(bench.flush(&[&long]).await, Verdict::Ok);
    for minute in 0..9 {
        assert_eq!(bench.flush(&[&minute.to_string()]).await, Verdict::Ok);
        until("a neighbour", || store.lines().len() > minute).await;
        assert!(!bench.logged("is set aside"), "after {minute} minutes");
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    let began = std::time::Instant::now();
    while bench.spool.usage().unfinished > 0 {
        assert!(began.elapsed() < PATIENCE, "the chunk stays");
        tokio::time::advance(Duration::from_secs(5)).await;
        tokio::task::yield_now().await;
    }
    until("the log", || bench.logged("is set aside and not delivered")).await;
    assert!(bench.logged("it cannot be read (Input/output error"));
    assert!(bench.logged("4096 of these bytes are lost"));
    let corrupt = || bench.pipeline.metrics().corrupt_chunks.get();
    until("the metric", || corrupt() == 1).await;
    let kept = dir.path().join("spool/quarantine").read_dir().unwrap();
    let kept: Vec<_> = kept
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(kept.len(), 1);
    let there = kept[0].iter().filter(|byte| **byte == b'y').count();
    assert!((4_000..9_000 - 4_000).contains(&there), "{there}");
    bench.stop().await;
    // A restart reads none of it.
    let bench = start_on(
        dir.path(),
        &store,
        FIREHOSE,
        &dir.path().join("spool"),
        disk,
    );
    assert_eq!(bench.spool.usage().unfinished, 0);
    bench.stop().await;
    assert_eq!(store.lines().len(), 9);
}
