//! The directory of a spool, behind a trait so that tests can simulate failures and crashes.

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

/// A directory.
pub trait Disk: Send + Sync + 'static {
    /// Lists all files (those in the quarantine as `quarantine/x`) with their lengths in bytes.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Creates a new file (0600), and `quarantine/` (0700) if the name is in it.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Unlinks a file. Its blocks may be freed later.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file to an unused name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes all earlier creations, removals and renames durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// The id of the file that currently has a name. Fails with [`ErrorKind::NotFound`] if there is none.
    fn id(&self, name: &str) -> io::Result<FileId>;
    /// Checks that the configured path still refers to the directory. Otherwise the next start would not find it; the error
    /// names the cause and the remedy.
    fn check(&self) -> io::Result<()>;
    /// Ensures that the directory exists and is locked by this process. Recreates a removed lock file, and a deleted
    /// directory. Fails with [`ErrorKind::WouldBlock`] if another process holds the lock.
    fn ensure_locked(&self) -> io::Result<LockState>;
}

/// The result of [`Disk::ensure_locked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// The lock was still held.
    Held,
    /// The lock file was recreated.
    FileRecreated,
    /// The directory was recreated, and is empty.
    DirRecreated,
}

/// The identity of a file, independent of its name. Unique while the file is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    /// The device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
}

/// An open file.
#[expect(
    clippy::len_without_is_empty,
    reason = "a length on disk, which can fail to be read"
)]
pub trait File: Send + Sync {
    /// The file's identity.
    fn id(&self) -> FileId;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Writes all of `parts` at `offset`, or fails with an unknown part written. Not to be called concurrently.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Appends `len` bytes from `offset` on to `into`, fewer at the end of the file.
    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()>;
    /// Truncates the file to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes data and length durable.
    fn sync(&self) -> io::Result<()>;
}

/// An error message that includes the remedy.
#[derive(Debug)]
struct WithRemedy(String);

impl fmt::Display for WithRemedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for WithRemedy {}

/// Creates an error whose message includes the remedy.
pub(super) fn with_remedy(kind: ErrorKind, words: String) -> io::Error {
    io::Error::new(kind, WithRemedy(words))
}

/// Whether an error's message already includes the remedy.
pub fn says_remedy(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<WithRemedy>())
}

/// Whether the disk says that it has lost the bytes. With any other error they are intact, and are read once the cause is
/// fixed.
pub fn has_lost_bytes(error: &io::Error) -> bool {
    const LOST: [Errno; 5] = [
        Errno::IO,
        Errno::BADMSG,
        Errno::UCLEAN,
        Errno::NODATA,
        Errno::REMOTEIO,
    ];
    Errno::from_io_error(error).is_some_and(|errno| LOST.contains(&errno))
}

/// The remedy for a file of a spool that cannot be read. Only a file that its disk has lost may be given up, in the words of
/// `given_up`: any other is intact, and is read once the cause is fixed.
pub(super) fn remedy_of_reading(error: &io::Error, given_up: &str) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            "Remedy: run this as the user that Fluent Bit runs as, or give the file back to that user"
                .to_owned()
        }
        _ if has_lost_bytes(error) => {
            format!("Where the disk cannot be mended, {given_up}")
        }
        _ => "Remedy: mend what the error says, and leave the file where it is".to_owned(),
    }
}

/// Converts a system call's error. Running out of descriptors is no fault of the file or its disk, and is temporary, so
/// those errors name their own remedy.
fn io_error(error: Errno) -> io::Error {
    let words = match error {
        Errno::MFILE => {
            let limit = getrlimit(Resource::Nofile).current;
            let limit = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
            format!(
                "this process has reached its limit of open files ({limit}, RLIMIT_NOFILE): raise LimitNOFILE= of its \
                 service, or ulimit -n where it is started"
            )
        }
        Errno::NFILE => {
            "this machine has reached its limit of open files: raise the sysctl fs.file-max, or stop the program that \
             keeps many open"
                .to_owned()
        }
        other => return other.into(),
    };
    with_remedy(ErrorKind::Other, words)
}

/// How long to wait for a predecessor that is exiting to release the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// The interval between attempts to take the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
const LOCK: &str = "lock";
const QUARANTINE: &str = "quarantine";

/// A local directory. Files are accessed through the open directory, even if its path changes. Few files are open at a
/// time, regardless of their number.
#[derive(Debug)]
pub struct LocalDisk {
    path: PathBuf,
    /// Replaced when a deleted directory is recreated.
    folder: RwLock<Arc<Folder>>,
    /// `None`: read-only.
    freeing: Option<Freeing>,
    /// The number of removed files that were renamed until their blocks are freed.
    removed: AtomicU64,
}

/// An open directory, locked unless it is read-only.
///
/// The lock is on the directory itself, where the removal of files does not affect it; systemd-tmpfiles skips locked
/// directories. The file `lock` is locked as well: it is the only lock that earlier versions know, and network file systems
/// cannot lock directories.
#[derive(Debug)]
struct Folder {
    dir: OwnedFd,
    id: FileId,
    /// Whether stat by name and by descriptor return the same id. A few file systems do not guarantee that.
    stable_ids: bool,
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
        "{} is in use: another instance holds its lock; give each instance its own directory",
        path.display()
    );
    with_remedy(ErrorKind::WouldBlock, words)
}

impl Folder {
    /// Opens an existing directory without locking it.
    fn open_unlocked(path: &Path) -> io::Result<Folder> {
        let dir = open_dir(path).map_err(|error| with_path(path, "cannot be read", &error))?;
        Ok(Folder {
            id: FileId::of(&rustix::fs::fstat(&dir)?),
            dir,
            stable_ids: true,
            lock: Mutex::new(None),
        })
    }

    /// Opens and locks a directory, creating it if necessary. Fails with [`ErrorKind::WouldBlock`] if another process holds
    /// the lock.
    fn create_and_lock(path: &Path) -> io::Result<Folder> {
        make_dir(path).map_err(|error| with_path(path, "cannot be created", &error))?;
        let mut folder = Folder::open_unlocked(path)?;
        // Where directories cannot be locked, the lock file has to do.
        let locked = rustix::fs::flock(&folder.dir, FlockOperation::NonBlockingLockExclusive);
        if locked == Err(Errno::WOULDBLOCK) {
            return Err(in_use(path));
        }
        let lock = take_lock(&folder.dir, path)?;
        folder.stable_ids = folder.find(LOCK).is_ok_and(|found| found == lock.1)
            && rustix::fs::stat(path).is_ok_and(|found| FileId::of(&found) == folder.id);
        folder.lock = Mutex::new(Some(lock));
        Ok(folder)
    }

    fn find(&self, name: &str) -> io::Result<FileId> {
        let found = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(match self.stable_ids {
            true => FileId::of(&found),
            false => FileId::default(),
        })
    }

    fn open(&self, name: &str, flags: OFlags) -> io::Result<Box<dyn File>> {
        let file = open_at(&self.dir, name, flags)?;
        let id = match self.stable_ids {
            true => FileId::of(&rustix::fs::fstat(&file)?),
            false => FileId::default(),
        };
        Ok(Box::new(LocalFile {
            file,
            id,
            reading: Mutex::new(()),
        }))
    }

    /// Ensures that the file `lock` exists and is locked. Fails with [`ErrorKind::NotFound`] if the directory was deleted, so
    /// that no file can be created in it.
    fn relock(&self, path: &Path) -> io::Result<LockState> {
        let mut lock = self.lock.lock().expect("nothing panics with this lock");
        let ours = lock.as_ref().map(|(_, id)| match self.stable_ids {
            true => *id,
            false => FileId::default(),
        });
        match self.find(LOCK) {
            Ok(found) if Some(found) == ours => return Ok(LockState::Held),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        *lock = Some(take_lock(&self.dir, path)?);
        Ok(LockState::FileRecreated)
    }

    /// Releases both locks.
    fn unlock(&self) {
        let _ = rustix::fs::flock(&self.dir, FlockOperation::Unlock);
        *self.lock.lock().expect("nothing panics with this lock") = None;
    }
}

/// Whether an instance has locked a directory, or the file `lock` in it, as earlier versions do. Locks both for a moment,
/// together with others that ask, so that an instance that starts just then has to try again, as it does.
pub fn is_in_use(dir: &Path) -> io::Result<bool> {
    for path in [dir.to_owned(), dir.join(LOCK)] {
        let found = match fs::File::open(path) {
            Ok(file) => file.try_lock_shared(),
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if matches!(found, Err(TryLockError::WouldBlock)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Creates and locks the file `lock` in a directory.
fn take_lock(dir: &OwnedFd, path: &Path) -> io::Result<(fs::File, FileId)> {
    let file = open_at(dir, LOCK, OFlags::WRONLY | OFlags::CREATE)
        .map_err(|error| with_path(path, "cannot be written to", &error))?;
    match file.try_lock() {
        Ok(()) => {
            let id = FileId::of(&rustix::fs::fstat(&file)?);
            Ok((file, id))
        }
        Err(TryLockError::WouldBlock) => Err(in_use(path)),
        Err(TryLockError::Error(error)) => Err(with_path(path, "cannot be locked", &error)),
    }
}

/// A thread that frees the blocks of removed files, a few at a time. Freeing a whole segment at once keeps the file system's
/// journal busy for tens of milliseconds, which delays every fsync. Until then a removed file has another name, and is
/// closed: there may be thousands of them.
#[derive(Debug)]
struct Freeing {
    /// `None`: the thread is to end.
    names: Option<Sender<Removed>>,
    thread: Option<JoinHandle<()>>,
}

/// A removed file whose blocks are to be freed.
struct Removed {
    folder: Arc<Folder>,
    name: String,
}

/// The number of bytes freed at a time (few in tests, so that small files exceed it).
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
            // If the thread is gone, the next start removes the file.
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

/// Frees files until the channel is closed; the remaining ones are then freed at once. After each step it pauses for as long
/// as the step took, to leave the disk to others.
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
        if let Some(file) = waiting.pop_front_if(|file| !file.free_tail()) {
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
    /// Unlinks the file. If that fails, the next start removes it.
    fn unlink(&self) {
        let _ = rustix::fs::unlinkat(&self.folder.dir, &self.name, AtFlags::empty());
    }

    /// Truncates part of the file. Returns `false` if the rest is freed by unlinking it.
    fn free_tail(&mut self) -> bool {
        let Ok(file) = open_at(&self.folder.dir, &self.name, OFlags::WRONLY) else {
            return false;
        };
        let Ok(metadata) = file.metadata() else {
            return false;
        };
        // A hard link is somebody's copy, and must keep its contents.
        let left = metadata.len().saturating_sub(FREED_AT_ONCE);
        metadata.nlink() == 1 && left > 0 && file.set_len(left).is_ok()
    }
}

fn open_at(dir: impl AsFd, name: &str, flags: OFlags) -> io::Result<fs::File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR);
    file.map(fs::File::from).map_err(io_error)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io_error)
}

impl LocalDisk {
    /// Opens a directory, creating it and its parents if necessary (0700), and locks it and the file `lock` in it
    /// exclusively until the value is dropped. Fails with [`ErrorKind::WouldBlock`] if the lock is still held elsewhere after
    /// 2 s.
    pub fn open(path: &Path) -> io::Result<LocalDisk> {
        let path = std::path::absolute(path)?;
        let since = Instant::now();
        let folder = loop {
            let taken = Folder::create_and_lock(&path);
            let again = match &taken {
                // The directory may have been replaced just now.
                Ok(folder) => !folder.stable_ids,
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

    /// Opens a directory read-only, whether or not a spool is running in it. Takes no lock; writing fails.
    pub fn look(path: &Path) -> io::Result<LocalDisk> {
        let folder = Folder::open_unlocked(path)?;
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

    fn writable_folder(&self) -> io::Result<Arc<Folder>> {
        match self.freeing {
            Some(_) => Ok(self.folder()),
            None => Err(io::Error::new(
                ErrorKind::PermissionDenied,
                "this directory is open read-only",
            )),
        }
    }

    /// Hands a segment's large file to the freeing thread. Returns whether it did.
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
        // If the name is taken, or the file system does not support NOREPLACE, the file is freed at once.
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
        // A successor must not wait until all blocks are freed.
        if self.freeing.is_some() {
            self.folder().unlock();
        }
    }
}

/// Creates `quarantine/` if a name is in it.
fn make_quarantine(folder: &Folder, name: &str) -> io::Result<()> {
    if !name.contains('/') {
        return Ok(());
    }
    match rustix::fs::mkdirat(&folder.dir, QUARANTINE, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn with_path(path: &Path, what: &str, error: &io::Error) -> io::Error {
    let words = format!("{} {what}: {error}", path.display());
    match says_remedy(error) {
        true => with_remedy(error.kind(), words),
        false => io::Error::new(error.kind(), words),
    }
}

/// Creates a directory and its parents, and syncs their entries: otherwise a power cut could lose the directory with all
/// that was synced in it.
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
    for entry in Dir::read_from(&dir).map_err(io_error)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let found = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            // Removed meanwhile, by a running instance.
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

/// Opens `quarantine/`. `None`: it does not exist.
fn open_quarantine(folder: &Folder) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(&folder.dir, QUARANTINE, flags, Mode::empty()) {
        Ok(quarantine) => Ok(Some(quarantine)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(io_error(error)),
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
        let folder = self.writable_folder()?;
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
        let folder = self.writable_folder()?;
        if !self.free_later(&folder, name)? {
            rustix::fs::unlinkat(&folder.dir, name, AtFlags::empty())?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let folder = self.writable_folder()?;
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
            Ok(found) if !folder.stable_ids || FileId::of(&found) == folder.id => return Ok(()),
            Ok(_) => format!(
                "{path} is another folder than the one that the spool is in: that was moved, or something is mounted over \
                 it. Accepted chunks are still delivered, and new ones refused; restore the spool's folder at its path"
            ),
            Err(Errno::NOENT | Errno::NOTDIR) => format!(
                "{path} no longer exists: the spool's folder was moved. Accepted chunks are still delivered, and new \
                 ones refused; restore the spool's folder at its path"
            ),
            Err(error) => return Err(with_path(&self.path, "cannot be found", &error.into())),
        };
        Err(with_remedy(ErrorKind::Other, words))
    }

    fn ensure_locked(&self) -> io::Result<LockState> {
        match self.writable_folder()?.relock(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            held => return held,
        }
        let path = self.path.display();
        let folder = Folder::create_and_lock(&self.path).map_err(|error| {
            let words = format!("the spool's folder was deleted and cannot be recreated: {error}");
            with_remedy(ErrorKind::Other, words)
        })?;
        let mut files = Vec::new();
        list_into(&folder.dir, "", &mut files)?;
        if files.iter().any(|(name, _)| segment_first(name).is_some()) {
            let words = format!(
                "the spool's folder was deleted, and {path} holds another spool: restart Fluent Bit to continue with that \
                 one. Chunks accepted here and not delivered by then are lost"
            );
            return Err(with_remedy(ErrorKind::Other, words));
        }
        *self.folder.write().expect("nothing panics with this lock") = Arc::new(folder);
        Ok(LockState::DirRecreated)
    }
}

struct LocalFile {
    file: fs::File,
    id: FileId,
    /// Serialises reads, which share the file's position. Writes do not use it.
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
        // Skips empty parts, which would look like a write of zero bytes.
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
        let _position = self.reading.lock().expect("nothing panics with this lock");
        (&self.file).seek(SeekFrom::Start(offset))?;
        into.reserve(len);
        // Unlike reading into a slice, this does not need the buffer zeroed first, which would cost more than the rest.
        (&self.file).take(len as u64).read_to_end(into).map(drop)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
