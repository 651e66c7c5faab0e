//! The one directory a spool lives in, behind a trait so that tests can make it fail and crash.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, DirBuilder, TryLockError};
use std::io::{self, ErrorKind, IoSlice, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::frame::{is_spare, removed_name, segment_first};

/// One directory.
pub trait Disk: Send + Sync + 'static {
    /// The names of all files (those one folder down as `quarantine/x`) and their lengths in bytes.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Makes a file that is not there yet (0600), and `quarantine/` (0700) where the name asks for it.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Opens a file that is there.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Unlinks a file. Its blocks may be freed somewhat later.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives a file another name, which no file has yet.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes all earlier creations, removals and new names durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// One file.
#[expect(
    clippy::len_without_is_empty,
    reason = "a length on disk, which can fail to be read"
)]
pub trait File: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Writes all of `parts` at `offset`, or fails with an unknown part of it written. Not for two at a time.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Appends `len` bytes from `offset` on to `into`, or as many as the file has. Not for two at a time.
    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()>;
    /// Cuts it to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes data and length durable.
    fn sync(&self) -> io::Result<()>;
}

/// An error whose words say what is to be done about it.
#[derive(Debug)]
struct Remedied(String);

impl fmt::Display for Remedied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Remedied {}

/// An error that says what is to be done about it.
pub(super) fn remedied(kind: ErrorKind, words: String) -> io::Error {
    io::Error::new(kind, Remedied(words))
}

/// Whether an error's words say what is to be done about it.
pub fn says_remedy(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Remedied>())
}

/// An error of a system call. That there are too many open files says nothing of a file or its disk, and is over
/// when some of them are closed.
fn explained(error: Errno) -> io::Error {
    let words = match error {
        Errno::MFILE => {
            let limit = getrlimit(Resource::Nofile).current;
            let limit = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
            format!(
                "Fluent Bit has as many files open as one process may ({limit}, RLIMIT_NOFILE): raise LimitNOFILE= of its \
                 service, or ulimit -n where it is started, and restart it"
            )
        }
        Errno::NFILE => {
            "this machine has as many files open as it may: raise the sysctl fs.file-max, or stop what \
             keeps so many open"
                .to_owned()
        }
        other => return other.into(),
    };
    remedied(ErrorKind::Other, words)
}

/// How long a predecessor that is just exiting may hold the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often the lock is asked for in that time.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
const LOCK: &str = "lock";
const QUARANTINE: &str = "quarantine";

/// A directory of this machine. Everything in it is reached through the directory as it was opened, wherever
/// its path leads meanwhile. Holds few files open, however many there are.
#[derive(Debug)]
pub struct LocalDisk {
    dir: Arc<OwnedFd>,
    /// Held for as long as the directory may be written to; `None`: only looked at.
    lock: Option<fs::File>,
    freeing: Option<Freeing>,
    /// How many removed files had names of their own.
    removed: AtomicU64,
}

/// A thread that frees the blocks of removed files, a few at a time. Whoever frees a whole segment at once keeps
/// the file system's journal busy for tens of milliseconds, and nobody's fsync is done before that. Until
/// then such a file has another name, and is not open: there may be thousands of them.
#[derive(Debug)]
struct Freeing {
    /// `None`: told to end.
    names: Option<Sender<String>>,
    thread: Option<JoinHandle<()>>,
}

/// Bytes that are freed at a time (few in tests, so that small files have more).
const FREED_AT_ONCE: u64 = if cfg!(test) { 2 << 10 } else { 2 << 20 };

impl Freeing {
    fn start(dir: Arc<OwnedFd>) -> io::Result<Freeing> {
        let (names, removed) = channel();
        let thread = thread::Builder::new()
            .name("ferry-spool-free".to_owned())
            .spawn(move || free(&dir, &removed))?;
        Ok(Freeing {
            names: Some(names),
            thread: Some(thread),
        })
    }

    fn take(&self, name: String) {
        if let Some(names) = &self.names {
            // Where the thread is gone, the next start removes the file.
            let _ = names.send(name);
        }
    }
}

impl Drop for Freeing {
    fn drop(&mut self) {
        self.names = None;
        // The library may be unloaded next: none of its code may run any more.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Frees what comes until nothing more can come; what is left then is freed at once. After each step the disk
/// is left to others for as long as the step has taken.
fn free(dir: &OwnedFd, removed: &Receiver<String>) {
    let mut waiting = VecDeque::new();
    let mut pause = Duration::MAX;
    loop {
        match removed.recv_timeout(pause) {
            Ok(name) => waiting.push_back(name),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let since = Instant::now();
        if let Some(name) = waiting.pop_front_if(|name| !free_some(dir, name)) {
            unlink(dir, &name);
        }
        pause = match waiting.is_empty() {
            true => Duration::MAX,
            false => since.elapsed(),
        };
    }
    for name in waiting {
        unlink(dir, &name);
    }
}

/// What cannot be unlinked is removed by the next start.
fn unlink(dir: &OwnedFd, name: &str) {
    let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
}

/// Frees the end of a file. `false`: unlinking it frees the rest.
fn free_some(dir: &OwnedFd, name: &str) -> bool {
    let Ok(file) = open_at(dir, name, OFlags::WRONLY) else {
        return false;
    };
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    // A file with another name is somebody's copy.
    let left = metadata.len().saturating_sub(FREED_AT_ONCE);
    metadata.nlink() == 1 && left > 0 && file.set_len(left).is_ok()
}

fn open_at(dir: impl AsFd, name: &str, flags: OFlags) -> io::Result<fs::File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR);
    file.map(fs::File::from).map_err(explained)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(explained)
}

impl LocalDisk {
    /// Makes the directory (0700, its parents too) and takes an exclusive lock on the file `lock` in it,
    /// for as long as the value lives. [`ErrorKind::WouldBlock`]: another one holds it still after 2 s.
    pub fn open(path: &Path) -> io::Result<LocalDisk> {
        make_dir(path).map_err(|error| named(path, "cannot be made", &error))?;
        let dir = open_dir(path).map_err(|error| named(path, "cannot be read", &error))?;
        let lock = open_at(&dir, LOCK, OFlags::WRONLY | OFlags::CREATE)
            .map_err(|error| named(path, "cannot be written to", &error))?;
        let since = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => {
                    return Err(named(path, "cannot be locked", &error));
                }
                Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => {
                    thread::sleep(LOCK_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        ErrorKind::WouldBlock,
                        format!(
                            "{} is in use: another instance holds its lock; each needs a directory of its own",
                            path.display()
                        ),
                    ));
                }
            }
        }
        let dir = Arc::new(dir);
        Ok(LocalDisk {
            lock: Some(lock),
            freeing: Some(Freeing::start(Arc::clone(&dir))?),
            removed: AtomicU64::new(0),
            dir,
        })
    }

    /// A directory that is only looked at, with or without a spool at work in it: takes no lock, makes
    /// nothing, refuses to create and to remove, and opens files for reading only.
    pub fn look(path: &Path) -> io::Result<LocalDisk> {
        let dir = open_dir(path).map_err(|error| named(path, "cannot be read", &error))?;
        Ok(LocalDisk {
            dir: Arc::new(dir),
            lock: None,
            freeing: None,
            removed: AtomicU64::new(0),
        })
    }

    fn writable(&self) -> io::Result<()> {
        match self.lock {
            Some(_) => Ok(()),
            None => Err(io::Error::new(
                ErrorKind::PermissionDenied,
                "this directory is only looked at",
            )),
        }
    }

    /// Makes `quarantine/` where a name asks for it.
    fn make_folder(&self, name: &str) -> io::Result<()> {
        if !name.contains('/') {
            return Ok(());
        }
        match rustix::fs::mkdirat(&self.dir, QUARANTINE, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a large file of a segment to the thread that frees. Whether it did.
    fn free_later(&self, name: &str) -> io::Result<bool> {
        let Some(freeing) = &self.freeing else {
            return Ok(false);
        };
        let found = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let large = u64::try_from(found.st_size).is_ok_and(|bytes| bytes > FREED_AT_ONCE);
        if !large || segment_first(name).is_none() && !is_spare(name) {
            return Ok(false);
        }
        let waiting = removed_name(self.removed.fetch_add(1, Ordering::Relaxed));
        // Where a file has that name, or the file system cannot look for one, it is freed at once.
        let flags = RenameFlags::NOREPLACE;
        let renamed = rustix::fs::renameat_with(&self.dir, name, &self.dir, &waiting, flags);
        if renamed.is_ok() {
            freeing.take(waiting);
        }
        Ok(renamed.is_ok())
    }
}

fn named(path: &Path, what: &str, error: &io::Error) -> io::Error {
    let words = format!("{} {what}: {error}", path.display());
    match says_remedy(error) {
        true => remedied(error.kind(), words),
        false => io::Error::new(error.kind(), words),
    }
}

/// Makes a directory and its parents, and makes them durable: without their entries all that is synced
/// within would be lost in a power cut.
fn make_dir(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for made in missing {
        let parent = match made.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        rustix::fs::fsync(open_dir(parent)?)?;
    }
    Ok(())
}

fn list_into(dir: impl AsFd, prefix: &str, files: &mut Vec<(String, u64)>) -> io::Result<()> {
    for entry in Dir::read_from(&dir).map_err(explained)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let found = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            // Removed since, by an instance that is at work here.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile {
            let bytes = u64::try_from(found.st_size).unwrap_or(0);
            files.push((format!("{prefix}{name}"), bytes));
        }
    }
    Ok(())
}

impl LocalDisk {
    /// `None`: nothing was put there yet.
    fn quarantine(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.dir, QUARANTINE, flags, Mode::empty()) {
            Ok(quarantine) => Ok(Some(quarantine)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(explained(error)),
        }
    }
}

impl Disk for LocalDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        list_into(&self.dir, "", &mut files)?;
        if let Some(quarantine) = self.quarantine()? {
            list_into(quarantine, "quarantine/", &mut files)?;
        }
        Ok(files)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.writable()?;
        self.make_folder(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(Box::new(LocalFile(open_at(&self.dir, name, flags)?)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let flags = match self.lock {
            Some(_) => OFlags::RDWR,
            None => OFlags::RDONLY,
        };
        Ok(Box::new(LocalFile(open_at(&self.dir, name, flags)?)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.writable()?;
        if !self.free_later(name)? {
            rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.writable()?;
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        if let Some(quarantine) = self.quarantine()? {
            rustix::fs::fsync(quarantine)?;
        }
        Ok(rustix::fs::fsync(&self.dir)?)
    }
}

struct LocalFile(fs::File);

impl File for LocalFile {
    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|metadata| metadata.len())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        (&self.0).seek(SeekFrom::Start(offset))?;
        let mut parts = parts.to_vec();
        let mut left = &mut parts[..];
        // Passes over empty parts, which would read as a write of nothing.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match (&self.0).write_vectored(left) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        (&self.0).seek(SeekFrom::Start(offset))?;
        into.reserve(len);
        // Unlike reading into a slice, this does not ask for zeros where the bytes will be: they would cost more
        // than the rest.
        (&self.0).take(len as u64).read_to_end(into).map(drop)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
