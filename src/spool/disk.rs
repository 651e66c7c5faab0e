//! The one directory a spool lives in, behind a trait so that tests can make it fail and crash.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, IoSlice, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

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

/// How long a predecessor that is just exiting may hold the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often the lock is asked for in that time.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
const LOCK: &str = "lock";
const QUARANTINE: &str = "quarantine";

/// A directory of this machine.
#[derive(Debug)]
pub struct LocalDisk {
    dir: PathBuf,
    /// Held for as long as the directory may be written to; `None`: only looked at.
    lock: Option<fs::File>,
    freeing: Option<Freeing>,
}

/// A thread that frees the blocks of files which have no name any more, a few at a time. Whoever frees a whole
/// segment at once keeps the file system's journal busy for tens of milliseconds, and nobody's fsync is done
/// before that.
#[derive(Debug)]
struct Freeing {
    /// `None`: told to end.
    files: Option<Sender<fs::File>>,
    thread: Option<JoinHandle<()>>,
}

/// Bytes that are freed at a time.
const FREED_AT_ONCE: u64 = 2 << 20;

impl Freeing {
    fn start() -> io::Result<Freeing> {
        let (files, unlinked) = channel();
        let thread = thread::Builder::new()
            .name("ferry-spool-free".to_owned())
            .spawn(move || free(&unlinked))?;
        Ok(Freeing {
            files: Some(files),
            thread: Some(thread),
        })
    }

    fn take(&self, file: fs::File) {
        if let Some(files) = &self.files {
            // Where the thread is gone, the file is closed here, and freed by that.
            let _ = files.send(file);
        }
    }
}

impl Drop for Freeing {
    fn drop(&mut self) {
        self.files = None;
        // The library may be unloaded next: none of its code may run any more.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Frees what comes until nothing more can come; what is left then is freed at once. After each step the disk
/// is left to others for as long as the step has taken.
fn free(unlinked: &Receiver<fs::File>) {
    let mut waiting = VecDeque::new();
    let mut pause = Duration::MAX;
    loop {
        match unlinked.recv_timeout(pause) {
            Ok(file) => waiting.push_back(file),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let since = Instant::now();
        if !waiting.front().is_some_and(free_some) {
            waiting.pop_front();
        }
        pause = match waiting.is_empty() {
            true => Duration::MAX,
            false => since.elapsed(),
        };
    }
}

/// Frees the end of a file. `false`: closing it frees the rest.
fn free_some(file: &fs::File) -> bool {
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    // A file with another name is somebody's copy.
    let left = metadata.len().saturating_sub(FREED_AT_ONCE);
    metadata.nlink() == 0 && left > 0 && file.set_len(left).is_ok()
}

impl LocalDisk {
    /// Makes the directory (0700, its parents too) and takes an exclusive lock on the file `lock` in it,
    /// for as long as the value lives. [`ErrorKind::WouldBlock`]: another one holds it still after 2 s.
    pub fn open(path: &Path) -> io::Result<LocalDisk> {
        make_dir(path).map_err(|error| named(path, "cannot be made", &error))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK))
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
        Ok(LocalDisk {
            dir: path.to_owned(),
            lock: Some(lock),
            freeing: Some(Freeing::start()?),
        })
    }

    /// A directory that is only looked at, with or without a spool at work in it: takes no lock, makes
    /// nothing, refuses to create and to remove, and opens files for reading only.
    pub fn look(path: &Path) -> io::Result<LocalDisk> {
        fs::read_dir(path).map_err(|error| named(path, "cannot be read", &error))?;
        Ok(LocalDisk {
            dir: path.to_owned(),
            lock: None,
            freeing: None,
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
}

fn named(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} {what}: {error}", path.display()))
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
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn list_into(dir: &Path, prefix: &str, files: &mut Vec<(String, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed since, by an instance that is at work here.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            files.push((format!("{prefix}{name}"), metadata.len()));
        }
    }
    Ok(())
}

impl Disk for LocalDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        list_into(&self.dir, "", &mut files)?;
        match list_into(&self.dir.join(QUARANTINE), "quarantine/", &mut files) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(files)
            }
            done => done.map(|()| files),
        }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.writable()?;
        let path = self.dir.join(name);
        if let Some(folder) = path.parent().filter(|folder| *folder != self.dir) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Box::new(LocalFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = OpenOptions::new()
            .read(true)
            .write(self.lock.is_some())
            .open(self.dir.join(name))?;
        Ok(Box::new(LocalFile(file)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.writable()?;
        let path = self.dir.join(name);
        // A file that cannot be opened can be unlinked all the same.
        let file = OpenOptions::new().write(true).open(&path);
        fs::remove_file(&path)?;
        if let (Ok(file), Some(freeing)) = (file, &self.freeing) {
            freeing.take(file);
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.writable()?;
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        match fs::File::open(self.dir.join(QUARANTINE)) {
            Ok(quarantine) => quarantine.sync_all()?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::File::open(&self.dir)?.sync_all()
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
