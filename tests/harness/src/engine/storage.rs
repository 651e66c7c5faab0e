//! Chunks on disk, like the host's for inputs with `storage.type filesystem`.
//!
//! A chunk is in a file of its own below `storage.path` from before its first flush until its last route is settled:
//! answered with OK or ERROR, or out of retries. A host that was killed in between finds the file at its next start and
//! flushes the same bytes again, even if an output had just answered OK. Chunks that are pending at an ordinary stop
//! stay on disk as well.
//!
//! A file is written under another name and then renamed, so a file with a chunk's name is complete. As in the host
//! (`storage.sync normal`), nothing is synced: files outlive the process, not the machine.
//!
//! A file has [`MAGIC`], the lengths of tag and data (u32 and u64, big-endian), the tag, and the data. Its name starts
//! with 20 digits that increase with time: chunks are read in the order of their names.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::abi::{self, LOG_ERROR, LOG_INFO, LOG_WARN};
use super::chunk::{Appender, Origin, Outcome, count_records};
use super::input::{Input, Next};

const MAGIC: &[u8; 8] = b"FLBCHNK1";
const EXTENSION: &str = "flb";
/// The suffix of a file until it is complete.
const PARTIAL: &str = "part";

/// A chunk read from its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The name of the file.
    pub name: String,
    /// Its tag.
    pub tag: String,
    /// Its events, in msgpack.
    pub data: Vec<u8>,
}

/// Adds a chunk to the backlog below `dir` (created if missing), for a harness that starts later. Chunks are read in
/// ascending `order`, before those that a harness wrote. Returns the file's name. Fails if the data are not whole
/// msgpack events, or the order is in use.
pub fn put(dir: &Path, order: u64, tag: &str, data: &[u8]) -> Result<PathBuf> {
    let path = dir.join(format!("{order:020}.{EXTENSION}"));
    ensure!(
        count_records(data).is_some(),
        "{}: the data are not whole msgpack events",
        path.display()
    );
    ensure!(
        !path.exists(),
        "{} is there already: take another order",
        path.display()
    );
    let written = fs::create_dir_all(dir).and_then(|()| write(&path, tag, data));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Reads the chunks below `dir`, in order. An error names the file that cannot be read or is incomplete.
pub fn list(dir: &Path) -> Result<Vec<Stored>> {
    let files = files(dir, EXTENSION)?;
    files.iter().map(|path| read(path)).collect()
}

/// Returns the number of chunks below `dir`.
pub(crate) fn count(dir: &Path) -> Result<u64> {
    Ok(files(dir, EXTENSION)?.len() as u64)
}

fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let cannot = || format!("storage.path: cannot list {}", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn write(path: &Path, tag: &str, data: &[u8]) -> io::Result<()> {
    let partial = path.with_extension(PARTIAL);
    let mut file = fs::File::create(&partial)?;
    let mut head = MAGIC.to_vec();
    head.extend((tag.len() as u32).to_be_bytes());
    head.extend((data.len() as u64).to_be_bytes());
    head.extend(tag.as_bytes());
    file.write_all(&head)?;
    file.write_all(data)?;
    fs::rename(partial, path)
}

fn read(path: &Path) -> Result<Stored> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let chunk = take_apart(&bytes).filter(|(_, data)| count_records(data).is_some());
    let (tag, data) = chunk.with_context(|| format!("{} is not a whole chunk", path.display()))?;
    Ok(Stored {
        name: path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        tag: tag.to_owned(),
        data: data.to_vec(),
    })
}

fn take_apart(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (tag_length, rest) = rest.split_first_chunk()?;
    let (data_length, rest) = rest.split_first_chunk()?;
    let tag_length = usize::try_from(u32::from_be_bytes(*tag_length)).ok()?;
    let (tag, data) = rest.split_at_checked(tag_length)?;
    let whole = data.len() as u64 == u64::from_be_bytes(*data_length);
    std::str::from_utf8(tag)
        .ok()
        .filter(|_| whole)
        .map(|tag| (tag, data))
}

/// The writer of a generation's chunks.
pub(crate) struct Store {
    dir: PathBuf,
    /// The number in the last name, so that names increase even if the clock does not.
    last: u128,
}

impl Store {
    /// Creates the folder if it is missing.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("storage.path: cannot make {}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            last: 0,
        })
    }

    /// Writes a chunk's file.
    pub(crate) fn keep(&mut self, tag: &str, data: &[u8]) -> io::Result<Box<dyn Origin>> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        self.last = since.unwrap_or_default().as_nanos().max(self.last + 1);
        let name = format!("{:020}-{}.{EXTENSION}", self.last, process::id());
        let path = self.dir.join(name);
        write(&path, tag, data)?;
        Ok(Box::new(Kept {
            path,
            from_backlog: false,
        }))
    }
}

/// The file of a chunk.
struct Kept {
    path: PathBuf,
    from_backlog: bool,
}

impl Origin for Kept {
    fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The host keeps a chunk of the backlog for a later configuration with an output for it; a new chunk without an
    /// output is never written.
    fn stays_without_a_match(&self) -> bool {
        self.from_backlog
    }

    fn settled(self: Box<Self>, outcome: Outcome) {
        if outcome == Outcome::DeliveredTooLate {
            return; // the host does not look any more: the chunk comes again
        }
        if let Err(error) = fs::remove_file(&self.path) {
            let text = format!("[storage] cannot remove {}: {error}", self.path.display());
            abi::log(LOG_ERROR, &text);
        }
    }
}

/// The chunks that a predecessor left, oldest first. They are listed when the engine starts, before any input creates
/// new ones.
pub(crate) struct Backlog {
    dir: PathBuf,
    files: Option<VecDeque<PathBuf>>,
}

impl Backlog {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            files: None,
        }
    }

    fn find(&self) -> Result<VecDeque<PathBuf>> {
        // Incomplete files of a predecessor that was killed while it wrote them.
        for path in files(&self.dir, PARTIAL)? {
            let text = format!("[storage] {} was never whole: removed", path.display());
            abi::log(LOG_WARN, &text);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let found = files(&self.dir, EXTENSION)?;
        if !found.is_empty() {
            let dir = self.dir.display();
            let text = format!("[storage] {} chunks of the backlog in {dir}", found.len());
            abi::log(LOG_INFO, &text);
        }
        Ok(found.into())
    }
}

impl Input for Backlog {
    fn poll(&mut self, _: Instant, out: &mut Appender) -> Result<Next> {
        if self.files.is_none() {
            self.files = Some(self.find()?);
        }
        let next = self.files.as_mut().and_then(VecDeque::pop_front);
        let Some(path) = next else {
            return Ok(Next::Ended);
        };
        match read(&path) {
            Ok(stored) => {
                let origin = Kept {
                    path,
                    from_backlog: true,
                };
                out.whole(&stored.tag.into(), stored.data, Some(Box::new(origin)));
            }
            Err(error) => {
                let text = format!("[storage] {error:#}: it is left where it is");
                abi::log(LOG_ERROR, &text);
            }
        }
        Ok(Next::Now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[[EventTime, {}], {}]`.
    const EVENT: &[u8] = &[0x92, 0x92, 0xd7, 0x00, 1, 2, 3, 4, 0, 0, 0, 0, 0x80, 0x80];

    #[test]
    fn chunks_come_back_as_they_were_put_and_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/here");
        let two = [EVENT, EVENT].concat();
        put(&path, 10, "app.회원", &two).unwrap();
        put(&path, 9, "app", EVENT).unwrap();
        let mut store = Store::open(&path).unwrap();
        for _ in 0..3 {
            store.keep("new", EVENT).unwrap();
        }
        let found = list(&path).unwrap();
        let tags: Vec<_> = found.iter().map(|chunk| chunk.tag.as_str()).collect();
        assert_eq!(tags, ["app", "app.회원", "new", "new", "new"]);
        assert_eq!(found[1].data, two);
        assert_eq!(count(&path).unwrap(), 5);
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            5,
            "nothing else is left"
        );
    }

    #[test]
    fn what_cannot_be_put_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), 1, "app", EVENT).unwrap();
        let taken = put(dir.path(), 1, "app", EVENT).unwrap_err().to_string();
        assert!(taken.contains("0001.flb is there already"), "{taken}");
        let torn = put(dir.path(), 2, "app", &EVENT[1..]).unwrap_err();
        assert!(torn.to_string().contains("not whole msgpack events"));
        assert_eq!(count(dir.path()).unwrap(), 1);
    }

    #[test]
    fn a_file_that_was_cut_short_is_not_taken_for_a_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let path = put(dir.path(), 1, "app", EVENT).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = list(dir.path()).unwrap_err().to_string();
            assert!(error.ends_with("is not a whole chunk"), "{length}: {error}");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(list(dir.path()).unwrap()[0].data, EVENT);
    }
}
