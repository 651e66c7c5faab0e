//! Any bytes as the files of a spool: it opens, gives back only what its checksums vouch for, and is a good
//! spool from there on.
//!
//! An input says how many segments there are and how a well-formed spool is damaged; or its rest is taken
//! for the files themselves.

#![no_main]

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ferry::ids::Time;
use ferry::ids::chunk_id;
use ferry::spool::disk::{Disk, File, FileId, LockState};
use ferry::spool::{
    Appended, Chunk, Content, Durability, Events, Note, Options, Relocation, Seq, Spool, Stored,
    Unreadable,
};
use ferry_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use tokio::time::Instant;

const LIMIT: u64 = 64 << 20;

/// A directory in memory, on which nothing fails.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<String, MemoryFile>>>);

/// A file's bytes. Clones are the same file, whatever its name is.
#[derive(Clone, Default)]
struct MemoryFile(Arc<Mutex<Vec<u8>>>);

impl Disk for Memory {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let files = self.0.lock().unwrap();
        Ok(files
            .iter()
            .map(|(name, file)| (name.clone(), file.0.lock().unwrap().len() as u64))
            .collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut files = self.0.lock().unwrap();
        if files.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        files.insert(name.to_owned(), MemoryFile::default());
        drop(files);
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        match self.0.lock().unwrap().get(name) {
            Some(file) => Ok(Box::new(file.clone())),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = self.0.lock().unwrap().remove(name);
        removed
            .map(|_| ())
            .ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        let file = files.remove(from).ok_or(ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn id(&self, name: &str) -> io::Result<FileId> {
        let files = self.0.lock().unwrap();
        files
            .get(name)
            .map(File::id)
            .ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    fn ensure_locked(&self) -> io::Result<LockState> {
        Ok(LockState::Held)
    }
}

impl MemoryFile {
    fn with<T>(&self, use_it: impl FnOnce(&mut Vec<u8>) -> T) -> io::Result<T> {
        Ok(use_it(&mut self.0.lock().unwrap()))
    }
}

impl File for MemoryFile {
    fn id(&self) -> FileId {
        FileId {
            device: 0,
            inode: Arc::as_ptr(&self.0).addr() as u64,
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|bytes| bytes.len() as u64)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).expect("it is in memory");
        let parts: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.with(|bytes| {
            bytes.resize(bytes.len().max(at + parts.len()), 0);
            bytes[at..at + parts.len()].copy_from_slice(&parts);
        })
    }

    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        self.with(|bytes| {
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let count = len.min(bytes.len() - from);
            into.extend_from_slice(&bytes[from..from + count]);
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|bytes| bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX)))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn options() -> Options {
    Options {
        limit: LIMIT,
        segment_bytes: Some(4_096),
    }
}

fn append(runtime: &tokio::runtime::Runtime, spool: &Spool, tag: &[u8], data: &[u8]) -> Appended {
    let chunk = Chunk {
        id: chunk_id(tag, data),
        tag,
        data: Bytes::copy_from_slice(data),
        arrived: Time {
            seconds: 1,
            nanos: 2,
        },
    };
    let deadline = Instant::now() + Duration::from_secs(600);
    runtime
        .block_on(spool.append(chunk, deadline))
        .expect("a good disk with room keeps a chunk")
}

/// The next chunk behind another, read.
fn next(spool: &Spool, after: Option<Seq>) -> Option<(Seq, Result<Stored, Unreadable>)> {
    let (chunk, _) = spool.next(after).expect("a good disk")?;
    Some((chunk, spool.read(chunk)))
}

/// All that a spool gives back.
fn read_all(spool: &Spool) -> HashMap<Seq, (Vec<u8>, Bytes)> {
    let mut found = HashMap::new();
    let mut after = None;
    while let Some((chunk, stored)) = next(spool, after) {
        assert!(
            after.is_none_or(|after| chunk > after),
            "chunks come in their order"
        );
        after = Some(chunk);
        match stored {
            Ok(stored) => drop(found.insert(chunk, (stored.tag, stored.data))),
            Err(Unreadable::Corrupt { words, kept }) => assert!(kept && !words.is_empty()),
            Err(other) => panic!("nothing fails on this disk: {other:?}"),
        }
    }
    found
}

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut input = Input::new(data);
    let disk = Memory::default();
    let mut written: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();

    // A spool as it really is, of chunks, notes and relocations that the input chooses.
    let chunks = input.byte() % 8;
    if chunks > 0 {
        let (spool, _) =
            Spool::open(Arc::new(disk.clone()), options()).expect("an empty directory");
        let mut numbers: Vec<Seq> = Vec::new();
        for n in 0..chunks {
            let tag = input.piece().to_vec();
            let data = input.piece().repeat(usize::from(input.byte()) + 1);
            append(&runtime, &spool, &tag, &data);
            written.push((tag.clone(), data));
            while let Some((number, _)) = spool.peek(numbers.last().copied()) {
                numbers.push(number);
            }
            let flags = input.byte();
            let contents = vec![Content {
                // A note is about a chunk before it.
                chunk: numbers[usize::from(input.byte()) % numbers.len()],
                events: if flags & 1 == 0 {
                    Events::All
                } else {
                    Events::Runs(vec![0..1, 3..9])
                },
            }];
            if flags & 8 != 0 {
                let data = input.piece().repeat(2);
                let relocation = Relocation {
                    tag: tag.clone(),
                    data: Bytes::copy_from_slice(&data),
                    arrived: Time {
                        seconds: 3,
                        nanos: 4,
                    },
                    origins: contents.clone(),
                };
                let number = runtime
                    .block_on(spool.relocate(relocation))
                    .expect("a good disk with room takes a relocation");
                assert!(numbers.iter().all(|known| *known < number));
                numbers.push(number);
                written.push((tag, data));
            }
            let batch = u64::from(n);
            let note = match flags >> 1 & 3 {
                0 => continue,
                1 => Note::Begun {
                    batch,
                    name: "n".into(),
                    token: "t".into(),
                    lines: 3,
                    contents,
                    recipe: (flags & 1 == 1).then(|| "lines none block 9".into()),
                },
                2 => Note::Ended {
                    batch,
                    delivered: Some(contents),
                },
                _ => Note::Done { contents },
            };
            runtime
                .block_on(spool.note(note, Durability::Written))
                .expect("a good disk");
        }
        // Dropped, not closed: as a crash leaves it.
    }

    // Damage: bytes overwritten, files cut, and files of anything.
    {
        let mut files = disk.0.lock().unwrap();
        let names: Vec<String> = files.keys().cloned().collect();
        for _ in 0..input.byte() % 8 {
            let Some(name) = names.get(usize::from(input.byte()) % names.len().max(1)) else {
                break;
            };
            let Some(file) = files.get(name) else {
                continue;
            };
            let mut bytes = file.0.lock().unwrap();
            let at = usize::from(input.byte()) << 8 | usize::from(input.byte());
            match input.byte() % 3 {
                0 => bytes.truncate(at),
                1 => {
                    let patch = input.piece();
                    let end = (at + patch.len()).min(bytes.len());
                    if at < end {
                        bytes[at..end].copy_from_slice(&patch[..end - at]);
                    }
                }
                _ => bytes.extend_from_slice(input.piece()),
            }
        }
        let number = u64::from(input.byte());
        let rest = input.rest();
        if !rest.is_empty() {
            let file = MemoryFile(Arc::new(Mutex::new(rest.to_vec())));
            files.insert(format!("{number:020}.seg"), file);
        }
    }
    let (spool, recovered) = Spool::open(Arc::new(disk.clone()), options())
        .expect("no content keeps a spool from opening");
    assert!(recovered.findings.iter().all(|finding| !finding.is_empty()));
    let history = runtime.block_on(spool.history());
    for pending in &history.pending {
        let mut chunks = pending.contents.iter().map(|content| content.chunk);
        assert!(
            chunks.any(|chunk| spool.holds(chunk)),
            "something of a batch is left"
        );
    }
    let found = read_all(&spool);
    let told = spool.look().findings;
    assert!(told.iter().all(|finding| !finding.is_empty()));
    for (tag, data) in found.values() {
        // Nothing is given back that does not have its own checksum; an input cannot forge one by chance.
        let known = written.iter().any(|(t, d)| t == tag && d[..] == data[..]);
        assert!(known, "a chunk that nobody wrote: {tag:?}");
    }
    // It goes on as a good spool.
    let news: [(&[u8], &[u8]); 2] = [(b"new", b"first new chunk"), (b"new", b"second new chunk")];
    for (tag, data) in news {
        append(&runtime, &spool, tag, data);
    }
    let kept = read_all(&spool);
    drop(spool);

    let (spool, _) = Spool::open(Arc::new(disk), options()).expect("it opens again");
    let again = read_all(&spool);
    for (chunk, stored) in &kept {
        assert_eq!(
            again.get(chunk),
            Some(stored),
            "what was there is there after another start"
        );
    }
    for (tag, data) in news {
        assert!(
            again.values().any(|(t, d)| &t[..] == tag && &d[..] == data),
            "what was kept after the damage is lost"
        );
    }
});
