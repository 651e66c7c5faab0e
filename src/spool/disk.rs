//! The one directory a spool lives in, behind a trait so that tests can make it fail and crash.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, DirBuilder, TryLockError};
use std::io::{self, ErrorKind, IoSlice, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
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
    /// Which file has a name now. [`ErrorKind::NotFound`]: none has.
    fn id(&self, name: &str) -> io::Result<FileId>;
    /// Whether the directory's path leads to it. Where it does not, whoever starts next does not find what is in it; the
    /// error says what is the matter.
    fn check(&self) -> io::Result<()>;
    /// Sees to it that the directory is there and locked by this process: makes the lock's file anew where it was
    /// removed, and the directory itself where it was deleted. [`ErrorKind::WouldBlock`]: another process has locked it.
    fn hold(&self) -> io::Result<Held>;
}

/// What [`Disk::hold`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Still,
    /// It made the lock's file anew.
    Again,
    /// It made the directory anew: nothing is in it.
    Anew,
}

/// Which of all files one is, whatever it is called. No other file has its id while it is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    /// The number of its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// One file.
#[expect(
    clippy::len_without_is_empty,
    reason = "a length on disk, which can fail to be read"
)]
pub trait File: Send + Sync {
    /// Which file it is.
    fn id(&self) -> FileId;
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Writes all of `parts` at `offset`, or fails with an unknown part of it written. Not for two at a time.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Appends `len` bytes from `offset` on to `into`, or as many as the file has.
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

/// What is to be done where a file of a spool cannot be read. Only what a disk has lost may be given up, as `given_up` says:
/// all else is there, and is read once the cause is mended.
pub(super) fn remedy_of_reading(error: &io::Error, given_up: &str) -> String {
    const LOST: [Errno; 5] = [
        Errno::IO,
        Errno::BADMSG,
        Errno::UCLEAN,
        Errno::NODATA,
        Errno::REMOTEIO,
    ];
    let errno = Errno::from_io_error(error);
    match error.kind() {
        ErrorKind::PermissionDenied => {
            "Remedy: run this as the user that Fluent Bit runs as, or give the file back to that user"
                .to_owned()
        }
        _ if errno.is_some_and(|errno| LOST.contains(&errno)) => {
            format!("Where the disk cannot be mended, {given_up}")
        }
        _ => "Remedy: mend what the error says, and leave the file where it is".to_owned(),
    }
}

/// An error of a system call. That there are too many open files says nothing of a file or its disk, and is over
/// when some of them are closed.
fn explained(error: Errno) -> io::Error {
    let words = match error {
        Errno::MFILE => {
            let limit = getrlimit(Resource::Nofile).current;
            let limit = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
            format!(
                "this process has as many files open as it may ({limit}, RLIMIT_NOFILE): raise LimitNOFILE= of its service, or \
                 ulimit -n where it is started"
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
    path: PathBuf,
    /// Another one when it was deleted and made anew.
    folder: RwLock<Arc<Folder>>,
    /// `None`: it is only looked at.
    freeing: Option<Freeing>,
    /// How many removed files had names of their own.
    removed: AtomicU64,
}

/// A directory that is open, and locked unless it is only looked at.
///
/// The lock is on the directory itself: it stays whatever is removed from it, and systemd-tmpfiles leaves a
/// directory alone that is locked. Earlier versions know the file `lock` only, and file systems on networks lock no
/// directories: so that file is locked as well.
#[derive(Debug)]
struct Folder {
    dir: OwnedFd,
    id: FileId,
    /// Whether a file has the same id whichever way it is asked for. Few file systems forget it.
    has_ids: bool,
    /// The file `lock`.
    lock: Mutex<Option<(fs::File, FileId)>>,
}

impl FileId {
    fn of(found: &Stat) -> FileId {
        FileId {
            device: found.st_dev,
            inode: found.st_ino,
        }
    }
}

fn in_use(path: &Path) -> io::Error {
    let words = format!(
        "{} is in use: another instance holds its lock; each needs a directory of its own",
        path.display()
    );
    remedied(ErrorKind::WouldBlock, words)
}

impl Folder {
    /// Opens a directory to look at it.
    fn look(path: &Path) -> io::Result<Folder> {
        let dir = open_dir(path).map_err(|error| named(path, "cannot be read", &error))?;
        Ok(Folder {
            id: FileId::of(&rustix::fs::fstat(&dir)?),
            dir,
            has_ids: true,
            lock: Mutex::new(None),
        })
    }

    /// Makes a directory that is not there yet, and locks it. [`ErrorKind::WouldBlock`]: another one has.
    fn take(path: &Path) -> io::Result<Folder> {
        make_dir(path).map_err(|error| named(path, "cannot be made", &error))?;
        let mut folder = Folder::look(path)?;
        // Where directories cannot be locked, the file is what there is.
        let locked = rustix::fs::flock(&folder.dir, FlockOperation::NonBlockingLockExclusive);
        if locked == Err(Errno::WOULDBLOCK) {
            return Err(in_use(path));
        }
        let lock = take_lock(&folder.dir, path)?;
        folder.has_ids = folder.find(LOCK).is_ok_and(|found| found == lock.1)
            && rustix::fs::stat(path).is_ok_and(|found| FileId::of(&found) == folder.id);
        folder.lock = Mutex::new(Some(lock));
        Ok(folder)
    }

    fn find(&self, name: &str) -> io::Result<FileId> {
        let found = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(match self.has_ids {
            true => FileId::of(&found),
            false => FileId::default(),
        })
    }

    fn open(&self, name: &str, flags: OFlags) -> io::Result<Box<dyn File>> {
        let file = open_at(&self.dir, name, flags)?;
        let id = match self.has_ids {
            true => FileId::of(&rustix::fs::fstat(&file)?),
            false => FileId::default(),
        };
        Ok(Box::new(LocalFile {
            file,
            id,
            reading: Mutex::new(()),
        }))
    }

    /// Sees to it that the file `lock` is there and locked. [`ErrorKind::NotFound`]: the directory was deleted, and
    /// nothing can be made in it.
    fn relock(&self, path: &Path) -> io::Result<Held> {
        let mut lock = self.lock.lock().expect("nothing panics with this lock");
        let ours = lock.as_ref().map(|(_, id)| match self.has_ids {
            true => *id,
            false => FileId::default(),
        });
        match self.find(LOCK) {
            Ok(found) if Some(found) == ours => return Ok(Held::Still),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        *lock = Some(take_lock(&self.dir, path)?);
        Ok(Held::Again)
    }

    /// Lets others have it.
    fn give_up(&self) {
        let _ = rustix::fs::flock(&self.dir, FlockOperation::Unlock);
        *self.lock.lock().expect("nothing panics with this lock") = None;
    }
}

/// Makes the file `lock` in a directory, and locks it.
fn take_lock(dir: &OwnedFd, path: &Path) -> io::Result<(fs::File, FileId)> {
    let file = open_at(dir, LOCK, OFlags::WRONLY | OFlags::CREATE)
        .map_err(|error| named(path, "cannot be written to", &error))?;
    match file.try_lock() {
        Ok(()) => {
            let id = FileId::of(&rustix::fs::fstat(&file)?);
            Ok((file, id))
        }
        Err(TryLockError::WouldBlock) => Err(in_use(path)),
        Err(TryLockError::Error(error)) => Err(named(path, "cannot be locked", &error)),
    }
}

/// A thread that frees the blocks of removed files, a few at a time. Whoever frees a whole segment at once keeps
/// the file system's journal busy for tens of milliseconds, and nobody's fsync is done before that. Until
/// then such a file has another name, and is not open: there may be thousands of them.
#[derive(Debug)]
struct Freeing {
    /// `None`: told to end.
    names: Option<Sender<Removed>>,
    thread: Option<JoinHandle<()>>,
}

/// A removed file whose blocks are to be freed.
struct Removed {
    folder: Arc<Folder>,
    name: String,
}

/// Bytes that are freed at a time (few in tests, so that small files have more).
const FREED_AT_ONCE: u64 = if cfg!(test) { 2 << 10 } else { 2 << 20 };

impl Freeing {
    fn start() -> io::Result<Freeing> {
        let (names, removed) = channel();
        let thread = thread::Builder::new()
            .name("ferry-spool-free".to_owned())
            .spawn(move || free(&removed))?;
        Ok(Freeing {
            names: Some(names),
            thread: Some(thread),
        })
    }

    fn take(&self, removed: Removed) {
        if let Some(names) = &self.names {
            // Where the thread is gone, the next start removes the file.
            let _ = names.send(removed);
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
fn free(removed: &Receiver<Removed>) {
    let mut waiting = VecDeque::new();
    let mut pause = Duration::MAX;
    loop {
        match removed.recv_timeout(pause) {
            Ok(file) => waiting.push_back(file),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let since = Instant::now();
        if let Some(file) = waiting.pop_front_if(|file| !file.free_some()) {
            file.unlink();
        }
        pause = match waiting.is_empty() {
            true => Duration::MAX,
            false => since.elapsed(),
        };
    }
    waiting.iter().for_each(Removed::unlink);
}

impl Removed {
    /// What cannot be unlinked is removed by the next start.
    fn unlink(&self) {
        let _ = rustix::fs::unlinkat(&self.folder.dir, &self.name, AtFlags::empty());
    }

    /// Frees the end of a file. `false`: unlinking it frees the rest.
    fn free_some(&mut self) -> bool {
        let Ok(file) = open_at(&self.folder.dir, &self.name, OFlags::WRONLY) else {
            return false;
        };
        let Ok(metadata) = file.metadata() else {
            return false;
        };
        // A file with another name is somebody's copy.
        let left = metadata.len().saturating_sub(FREED_AT_ONCE);
        metadata.nlink() == 1 && left > 0 && file.set_len(left).is_ok()
    }
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
    /// Makes the directory (0700, its parents too) and takes an exclusive lock on it and on the file `lock` in it,
    /// for as long as the value lives. [`ErrorKind::WouldBlock`]: another one holds it still after 2 s.
    pub fn open(path: &Path) -> io::Result<LocalDisk> {
        let path = std::path::absolute(path)?;
        let since = Instant::now();
        let folder = loop {
            let taken = Folder::take(&path);
            let again = match &taken {
                // Perhaps somebody replaced it just now.
                Ok(folder) => !folder.has_ids,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
            if !again || since.elapsed() >= LOCK_PATIENCE {
                break taken?;
            }
            drop(taken);
            thread::sleep(LOCK_INTERVAL);
        };
        Ok(LocalDisk {
            path,
            folder: RwLock::new(Arc::new(folder)),
            freeing: Some(Freeing::start()?),
            removed: AtomicU64::new(0),
        })
    }

    /// A directory that is only looked at, with or without a spool at work in it: takes no lock, makes
    /// nothing, refuses to create and to remove, and opens files for reading only.
    pub fn look(path: &Path) -> io::Result<LocalDisk> {
        let folder = Folder::look(path)?;
        Ok(LocalDisk {
            path: path.to_owned(),
            folder: RwLock::new(Arc::new(folder)),
            freeing: None,
            removed: AtomicU64::new(0),
        })
    }

    fn folder(&self) -> Arc<Folder> {
        let folder = self.folder.read().expect("nothing panics with this lock");
        Arc::clone(&folder)
    }

    fn writable(&self) -> io::Result<Arc<Folder>> {
        match self.freeing {
            Some(_) => Ok(self.folder()),
            None => Err(io::Error::new(
                ErrorKind::PermissionDenied,
                "this directory is only looked at",
            )),
        }
    }

    /// Gives a large file of a segment to the thread that frees. Whether it did.
    fn free_later(&self, folder: &Arc<Folder>, name: &str) -> io::Result<bool> {
        let Some(freeing) = &self.freeing else {
            return Ok(false);
        };
        let found = rustix::fs::statat(&folder.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let large = u64::try_from(found.st_size).is_ok_and(|bytes| bytes > FREED_AT_ONCE);
        if !large || segment_first(name).is_none() && !is_spare(name) {
            return Ok(false);
        }
        let waiting = removed_name(self.removed.fetch_add(1, Ordering::Relaxed));
        // Where a file has that name, or the file system cannot look for one, it is freed at once.
        let (dir, flags) = (&folder.dir, RenameFlags::NOREPLACE);
        let renamed = rustix::fs::renameat_with(dir, name, dir, &waiting, flags).is_ok();
        if renamed {
            freeing.take(Removed {
                folder: Arc::clone(folder),
                name: waiting,
            });
        }
        Ok(renamed)
    }
}

impl Drop for LocalDisk {
    fn drop(&mut self) {
        // A successor is not to wait for what is still to be freed.
        if self.freeing.is_some() {
            self.folder().give_up();
        }
    }
}

/// Makes `quarantine/` where a name asks for it.
fn make_quarantine(folder: &Folder, name: &str) -> io::Result<()> {
    if !name.contains('/') {
        return Ok(());
    }
    match rustix::fs::mkdirat(&folder.dir, QUARANTINE, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
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

/// `None`: nothing was put there yet.
fn open_quarantine(folder: &Folder) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(&folder.dir, QUARANTINE, flags, Mode::empty()) {
        Ok(quarantine) => Ok(Some(quarantine)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(explained(error)),
    }
}

impl Disk for LocalDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let folder = self.folder();
        let mut files = Vec::new();
        list_into(&folder.dir, "", &mut files)?;
        if let Some(quarantine) = open_quarantine(&folder)? {
            list_into(quarantine, "quarantine/", &mut files)?;
        }
        Ok(files)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let folder = self.writable()?;
        make_quarantine(&folder, name)?;
        folder.open(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let flags = match self.freeing {
            Some(_) => OFlags::RDWR,
            None => OFlags::RDONLY,
        };
        self.folder().open(name, flags)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let folder = self.writable()?;
        if !self.free_later(&folder, name)? {
            rustix::fs::unlinkat(&folder.dir, name, AtFlags::empty())?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let folder = self.writable()?;
        make_quarantine(&folder, to)?;
        Ok(rustix::fs::renameat(&folder.dir, from, &folder.dir, to)?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        let folder = self.folder();
        if let Some(quarantine) = open_quarantine(&folder)? {
            rustix::fs::fsync(quarantine)?;
        }
        Ok(rustix::fs::fsync(&folder.dir)?)
    }

    fn id(&self, name: &str) -> io::Result<FileId> {
        self.folder().find(name)
    }

    fn check(&self) -> io::Result<()> {
        let (path, folder) = (self.path.display(), self.folder());
        let words = match rustix::fs::stat(&self.path) {
            Ok(found) if !folder.has_ids || FileId::of(&found) == folder.id => return Ok(()),
            Ok(_) => format!(
                "{path} is another folder than the one that the spool is in: that was moved, or something is mounted over \
                 it. What was accepted is delivered from where it is; put it back under its path, so that a restart \
                 finds it and more is accepted"
            ),
            Err(Errno::NOENT | Errno::NOTDIR) => format!(
                "{path} is not there any more: the spool's folder was moved. What was accepted is delivered from where it \
                 is; put it back under its path, so that a restart finds it and more is accepted"
            ),
            Err(error) => return Err(named(&self.path, "cannot be found", &error.into())),
        };
        Err(remedied(ErrorKind::Other, words))
    }

    fn hold(&self) -> io::Result<Held> {
        match self.writable()?.relock(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            held => return held,
        }
        let path = self.path.display();
        let folder = Folder::take(&self.path).map_err(|error| {
            let words =
                format!("the spool's folder was deleted, and it cannot be made anew: {error}");
            remedied(ErrorKind::Other, words)
        })?;
        let mut files = Vec::new();
        list_into(&folder.dir, "", &mut files)?;
        if files.iter().any(|(name, _)| segment_first(name).is_some()) {
            let words = format!(
                "the spool's folder was deleted, and {path} holds another spool: restart Fluent Bit to go on with that one. \
                 What was accepted here and is not delivered by then is lost"
            );
            return Err(remedied(ErrorKind::Other, words));
        }
        *self.folder.write().expect("nothing panics with this lock") = Arc::new(folder);
        Ok(Held::Anew)
    }
}

struct LocalFile {
    file: fs::File,
    id: FileId,
    /// Where the file is read at is its own, and not for two at a time. Writing does not move it.
    reading: Mutex<()>,
}

impl File for LocalFile {
    fn id(&self) -> FileId {
        self.id
    }

    fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let mut parts = parts.to_vec();
        let mut left = &mut parts[..];
        // Passes over empty parts, which would read as a write of nothing.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match rustix::io::pwritev(&self.file, left, offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        let _one = self.reading.lock().expect("nothing panics with this lock");
        (&self.file).seek(SeekFrom::Start(offset))?;
        into.reserve(len);
        // Unlike reading into a slice, this does not ask for zeros where the bytes will be: they would cost more
        // than the rest.
        (&self.file).take(len as u64).read_to_end(into).map(drop)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
