//! A simulated disk that fails, tears and loses data, for tests.
//!
//! Each file has cached contents, which programs see, and contents on the medium. In a crash every unsynced page, length and
//! directory entry survives or is lost independently. After a failed fsync some dirty pages count as clean although they
//! never reached the medium: no later fsync writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::disk::{Disk, File, FileId, LockState};
use super::frame::{RESERVE, segment_first};
use super::manifest;

/// The page size in bytes. Small, so that small files have several pages.
const PAGE: usize = 64;

/// How long a test waits for an event that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The kind of a call, for faults and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    List,
    Create,
    Open,
    Remove,
    Rename,
    SyncDir,
    Len,
    Write,
    Read,
    Truncate,
    Sync,
    Id,
    Check,
    EnsureLocked,
}

/// The current faults of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Writes fail with ENOSPC if all files together would exceed this size; the part that fits is written.
    pub(super) capacity: Option<u64>,
    /// Calls that always fail. A failed write has written a part.
    pub(super) broken: Vec<Call>,
    /// On average one call in this many fails, of any kind. 0: none.
    pub(super) one_in: u32,
    /// The machine goes down at the first call that has at least this number, counted from the boot.
    pub(super) down_at: Option<u64>,
}

#[derive(Debug, Default)]
struct Inode {
    cached: Vec<u8>,
    medium: Vec<u8>,
    /// Dirty pages that count as clean: no fsync writes them.
    lost: BTreeSet<usize>,
}

impl Inode {
    fn pages(&self) -> usize {
        self.cached.len().max(self.medium.len()).div_ceil(PAGE)
    }

    fn mark_dirty(&mut self, from: usize, to: usize) {
        self.lost
            .retain(|page| (page + 1) * PAGE <= from || page * PAGE >= to);
    }

    /// Writes the `chosen` pages to the medium, and sets its length.
    fn write_back(&mut self, len: usize, mut chosen: impl FnMut(usize) -> bool) {
        let pages = self.pages();
        let mut medium = std::mem::take(&mut self.medium);
        medium.resize(medium.len().max(len), 0);
        for page in (0..pages).filter(|page| chosen(*page)) {
            let to = ((page + 1) * PAGE).min(self.cached.len());
            for at in (page * PAGE).min(to)..to {
                if at < medium.len() {
                    medium[at] = self.cached[at];
                }
            }
        }
        medium.truncate(len);
        self.medium = medium;
    }
}

#[derive(Clone, Debug)]
enum Entry {
    Made(String, usize),
    Removed(String),
}

impl Entry {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Entry::Made(name, inode) => drop(names.insert(name.clone(), *inode)),
            Entry::Removed(name) => drop(names.remove(name)),
        }
    }
}

#[derive(Debug)]
struct State {
    boot: u64,
    down: bool,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    medium: BTreeMap<String, usize>,
    /// The directory changes since its last sync.
    entries: Vec<Entry>,
    faults: Faults,
    faulted: bool,
    faults_suspended: bool,
    calls: u64,
    log: Vec<(Call, String)>,
    rng: StdRng,
    held: bool,
    waiting: usize,
    /// Files that cannot be opened until they are released.
    held_files: Vec<String>,
    /// Files that this user may not open.
    barred_files: Vec<String>,
    /// The directory's path refers elsewhere.
    away: bool,
    /// The directory was deleted: nothing can be created in it.
    deleted: bool,
    lock: Lock,
}

/// The state of the directory's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    Ours,
    /// The lock file was removed.
    Removed,
    /// Another process holds it.
    Another,
}

/// The disk. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Sim(Arc<(Mutex<State>, Condvar)>);

impl Sim {
    pub(super) fn new(seed: u64) -> Sim {
        let state = State {
            boot: 0,
            down: false,
            inodes: Vec::new(),
            names: BTreeMap::new(),
            medium: BTreeMap::new(),
            entries: Vec::new(),
            faults: Faults::default(),
            faulted: false,
            faults_suspended: false,
            calls: 0,
            log: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            held: false,
            waiting: 0,
            held_files: Vec::new(),
            barred_files: Vec::new(),
            away: false,
            deleted: false,
            lock: Lock::Ours,
        };
        Sim(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// The disk as seen by one process. Unusable after a crash.
    pub(super) fn mount(&self) -> Arc<dyn Disk> {
        let boot = self.state().boot;
        Arc::new(Mount {
            sim: self.clone(),
            boot,
        })
    }

    /// Sets the current faults.
    pub(super) fn fault(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The current faults.
    pub(super) fn faults(&self) -> Faults {
        self.state().faults.clone()
    }

    /// Whether a fault made a call fail since the boot.
    pub(super) fn has_faulted(&self) -> bool {
        let state = self.state();
        state.faulted || state.down
    }

    /// Runs `action` without faults; its calls are not counted.
    pub(super) fn without_faults<T>(&self, action: impl FnOnce() -> T) -> T {
        self.state().faults_suspended = true;
        let result = action();
        self.state().faults_suspended = false;
        result
    }

    pub(super) fn is_down(&self) -> bool {
        self.state().down
    }

    /// The calls since the last time, with file names.
    pub(super) fn take_log(&self) -> Vec<(Call, String)> {
        std::mem::take(&mut self.state().log)
    }

    /// Blocks all fsyncs (`true`) or releases them.
    pub(super) fn hold_syncs(&self, held: bool) {
        self.state().held = held;
        self.0.1.notify_all();
    }

    /// Waits until an fsync is blocked.
    pub(super) fn wait_for_a_held_sync(&self) {
        let state = self.state();
        let none = |state: &mut State| state.waiting == 0;
        let waited = self.0.1.wait_timeout_while(state, PATIENCE, none);
        let (_state, waited) = waited.unwrap();
        assert!(!waited.timed_out(), "no sync began");
    }

    /// Lets whoever opens one of these files wait until another call releases it.
    pub(super) fn hold_files(&self, names: &[String]) {
        self.state().held_files = names.to_vec();
        self.0.1.notify_all();
    }

    /// Lets opening one of these files fail for lack of permission.
    pub(super) fn bar_files(&self, names: &[String]) {
        self.state().barred_files = names.to_vec();
    }

    /// Cuts the power: any unsynced data may be lost. The machine restarts without faults.
    pub(super) fn crash(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let mut names = state.medium.clone();
        for entry in std::mem::take(&mut state.entries) {
            if state.rng.random() {
                entry.apply(&mut names);
            }
        }
        for inode in &mut state.inodes {
            let (a, b) = (inode.medium.len(), inode.cached.len());
            let len = match state.rng.random_range(0..3) {
                0 => a,
                1 => b,
                _ => state.rng.random_range(a.min(b)..=a.max(b)),
            };
            let odds = state.rng.random_range(0..=4);
            let lost = inode.lost.clone();
            let rng = &mut state.rng;
            inode.write_back(len, |page| {
                !lost.contains(&page) && rng.random_range(0..4) < odds
            });
            inode.cached = inode.medium.clone();
            inode.lost.clear();
        }
        state.medium = names.clone();
        state.names = names;
        state.reboot();
    }

    /// Kills the process, not the machine: everything written survives, except pages for which an fsync failed.
    pub(super) fn kill(&self) {
        let mut state = self.state();
        for inode in &mut state.inodes {
            for page in std::mem::take(&mut inode.lost) {
                let to = ((page + 1) * PAGE).min(inode.cached.len());
                for at in (page * PAGE).min(to)..to {
                    inode.cached[at] = inode.medium.get(at).copied().unwrap_or(0);
                }
            }
        }
        state.reboot();
    }

    /// All files except the reserve and the manifests, with their lengths.
    pub(super) fn files(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let len = |inode: &usize| state.inodes[*inode].cached.len() as u64;
        let names = state.names.iter();
        names
            .filter(|(name, _)| *name != RESERVE && !manifest::NAMES.contains(&&name[..]))
            .map(|(name, inode)| (name.clone(), len(inode)))
            .collect()
    }

    /// The reserve and the manifests, with their lengths.
    pub(super) fn side_files(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let others = manifest::NAMES.into_iter().chain([RESERVE]);
        let found = others.filter_map(|name| Some((name, *state.names.get(name)?)));
        let len = |inode: usize| state.inodes[inode].cached.len() as u64;
        found
            .map(|(name, inode)| (name.to_owned(), len(inode)))
            .collect()
    }

    /// The total size of all segments and quarantined files.
    pub(super) fn bytes(&self) -> u64 {
        let files = self.files().into_iter();
        files
            .filter(|(name, _)| segment_first(name).is_some() || name.starts_with("quarantine/"))
            .map(|(_, len)| len)
            .sum()
    }

    /// The contents of a file.
    pub(super) fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names[name]].cached.clone()
    }

    /// Creates or replaces a file, durably.
    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let inode = state.inodes.len();
        state.inodes.push(Inode {
            cached: bytes.clone(),
            medium: bytes,
            lost: BTreeSet::new(),
        });
        state.names.insert(name.to_owned(), inode);
        state.medium.insert(name.to_owned(), inode);
    }

    /// Removes a file, durably.
    pub(super) fn take(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name);
        state.medium.remove(name);
    }

    /// Removes a file's name, durably; open handles stay valid. Returns the file, for [`Sim::put_back`].
    pub(super) fn hide(&self, name: &str) -> Option<usize> {
        let mut state = self.state();
        state.medium.remove(name);
        state
            .entries
            .retain(|entry| !matches!(entry, Entry::Made(made, _) if made == name));
        state.names.remove(name)
    }

    /// Whether a file durably has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        let state = self.state();
        let named = state.names.get(name);
        named.is_some() && named == state.medium.get(name)
    }

    /// Flips a bit in a file.
    pub(super) fn flip_bit(&self, name: &str, at: usize) {
        let mut state = self.state();
        let inode = state.names[name];
        let inode = &mut state.inodes[inode];
        inode.cached[at] ^= 1;
        if let Some(byte) = inode.medium.get_mut(at) {
            *byte ^= 1;
        }
    }

    /// The number of calls since the boot.
    pub(super) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Gives a file a name, durably, replacing any other file.
    pub(super) fn put_back(&self, name: &str, file: usize) {
        let mut state = self.state();
        state.forget_entries(name);
        state.names.insert(name.to_owned(), file);
        state.medium.insert(name.to_owned(), file);
    }

    /// Moves the directory away from its path (`true`), or back.
    pub(super) fn move_away(&self, away: bool) {
        self.state().away = away;
    }

    /// Deletes the directory with its contents, durably.
    pub(super) fn delete(&self) {
        let mut state = self.state();
        state.names.clear();
        state.medium.clear();
        state.entries.clear();
        state.deleted = true;
    }

    /// Sets the state of the directory's lock.
    pub(super) fn lock(&self, lock: Lock) {
        self.state().lock = lock;
    }
}

impl State {
    /// Drops the pending directory changes of a name.
    fn forget_entries(&mut self, name: &str) {
        let of = |entry: &Entry| match entry {
            Entry::Made(of, _) | Entry::Removed(of) => of == name,
        };
        self.entries.retain(|entry| !of(entry));
    }

    fn reboot(&mut self) {
        self.boot += 1;
        self.down = false;
        self.calls = 0;
        self.faulted = false;
        self.faults = Faults::default();
        self.held = false;
        self.held_files.clear();
        self.away = false;
        self.deleted = false;
        self.lock = Lock::Ours;
    }

    /// Counts and logs a call, and fails it if a fault applies.
    fn enter(&mut self, boot: u64, call: Call, name: &str) -> io::Result<()> {
        if boot != self.boot || self.down {
            return Err(io::Error::other("the machine is down"));
        }
        if self.faults_suspended {
            return Ok(());
        }
        self.log.push((call, name.to_owned()));
        if self.faults.down_at.is_some_and(|at| at <= self.calls) {
            self.down = true;
            return Err(io::Error::other("the machine goes down"));
        }
        self.calls += 1;
        let unlucky = self.faults.one_in > 0 && self.rng.random_ratio(1, self.faults.one_in);
        if unlucky || self.faults.broken.contains(&call) {
            self.faulted = true;
            return Err(match call {
                Call::Create | Call::Remove => ErrorKind::ReadOnlyFilesystem.into(),
                _ => io::Error::from_raw_os_error(5),
            });
        }
        Ok(())
    }

    /// Marks some of a file's dirty pages as clean.
    fn lose_dirty_pages(&mut self, inode: usize) {
        let inode = &mut self.inodes[inode];
        for page in 0..inode.pages() {
            let of = |bytes: &[u8]| {
                let to = ((page + 1) * PAGE).min(bytes.len());
                bytes[(page * PAGE).min(to)..to].to_vec()
            };
            if of(&inode.cached) != of(&inode.medium) && self.rng.random() {
                inode.lost.insert(page);
            }
        }
    }

    fn used(&self) -> u64 {
        let inodes = self.names.values();
        inodes
            .map(|inode| self.inodes[*inode].cached.len() as u64)
            .sum()
    }
}

struct Mount {
    sim: Sim,
    boot: u64,
}

impl Mount {
    fn enter(&self, call: Call, name: &str) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.sim.state();
        state.enter(self.boot, call, name)?;
        Ok(state)
    }

    fn file(&self, name: &str, inode: usize) -> Box<dyn File> {
        Box::new(Handle {
            sim: self.sim.clone(),
            boot: self.boot,
            name: name.to_owned(),
            inode,
        })
    }
}

impl Disk for Mount {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        drop(self.enter(Call::List, "")?);
        Ok(self.sim.files())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut state = self.enter(Call::Create, name)?;
        if state.deleted {
            return Err(ErrorKind::NotFound.into());
        }
        if state.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(name.to_owned(), inode);
        state.entries.push(Entry::Made(name.to_owned(), inode));
        Ok(self.file(name, inode))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        {
            let is_held = |state: &mut State| state.held_files.iter().any(|held| held == name);
            let state = self.sim.state();
            let (_state, waited) = self
                .sim
                .0
                .1
                .wait_timeout_while(state, PATIENCE, is_held)
                .unwrap();
            assert!(!waited.timed_out(), "{name} is not released");
        }
        let state = self.enter(Call::Open, name)?;
        if state.barred_files.iter().any(|barred| barred == name) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        let inode = state.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(self.file(name, *inode))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.enter(Call::Remove, name)?;
        state.names.remove(name).ok_or(ErrorKind::NotFound)?;
        state.entries.push(Entry::Removed(name.to_owned()));
        Ok(())
    }

    /// After a crash the file has both names, either or none, which is worse than on a journaling file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.enter(Call::Rename, from)?;
        let inode = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        assert!(
            state.names.insert(to.to_owned(), inode).is_none(),
            "{to} is there"
        );
        state.entries.push(Entry::Made(to.to_owned(), inode));
        state.entries.push(Entry::Removed(from.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.enter(Call::SyncDir, "")?;
        state.medium = state.names.clone();
        state.entries.clear();
        Ok(())
    }

    fn id(&self, name: &str) -> io::Result<FileId> {
        let state = self.enter(Call::Id, name)?;
        let inode = state.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(id(*inode))
    }

    fn check(&self) -> io::Result<()> {
        let state = self.enter(Call::Check, "")?;
        match state.away || state.deleted {
            true => Err(io::Error::other("the directory is away")),
            false => Ok(()),
        }
    }

    fn ensure_locked(&self) -> io::Result<LockState> {
        let mut state = self.enter(Call::EnsureLocked, "")?;
        let lock = std::mem::replace(&mut state.lock, Lock::Ours);
        if std::mem::take(&mut state.deleted) {
            return Ok(LockState::DirRecreated);
        }
        match lock {
            Lock::Ours => Ok(LockState::Held),
            Lock::Removed => Ok(LockState::FileRecreated),
            Lock::Another => {
                state.lock = Lock::Another;
                Err(ErrorKind::WouldBlock.into())
            }
        }
    }
}

fn id(inode: usize) -> FileId {
    FileId {
        device: 0,
        inode: inode as u64,
    }
}

struct Handle {
    sim: Sim,
    boot: u64,
    name: String,
    inode: usize,
}

/// A call in progress.
struct Begun<'s> {
    state: MutexGuard<'s, State>,
    /// Whether the call may have any effect: not if the machine is down or the process has ended.
    alive: bool,
    outcome: io::Result<()>,
}

impl Handle {
    fn begin(&self, call: Call) -> Begun<'_> {
        let mut state = self.sim.state();
        let alive = self.boot == state.boot && !state.down;
        let outcome = state.enter(self.boot, call, &self.name);
        Begun {
            state,
            alive,
            outcome,
        }
    }

    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let Begun { state, outcome, .. } = self.begin(call);
        outcome.map(|()| state)
    }
}

impl File for Handle {
    fn id(&self) -> FileId {
        id(self.inode)
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.enter(Call::Len)?;
        Ok(state.inodes[self.inode].cached.len() as u64)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let Begun {
            mut state,
            alive,
            mut outcome,
        } = self.begin(Call::Write);
        if !alive {
            return outcome;
        }
        let mut written = bytes.len();
        if outcome.is_err() {
            written = state.rng.random_range(0..=bytes.len());
        } else if let Some(capacity) = state.faults.capacity {
            let over = state.inodes[self.inode]
                .cached
                .len()
                .saturating_sub(offset as usize);
            let left = over + capacity.saturating_sub(state.used()) as usize;
            if left < bytes.len() {
                written = left;
                outcome = Err(ErrorKind::StorageFull.into());
                state.faulted = true;
            }
        }
        let inode = &mut state.inodes[self.inode];
        let (from, to) = (offset as usize, offset as usize + written);
        inode.cached.resize(inode.cached.len().max(to), 0);
        inode.cached[from..to].copy_from_slice(&bytes[..written]);
        inode.mark_dirty(from, to);
        outcome
    }

    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        let state = self.enter(Call::Read)?;
        let cached = &state.inodes[self.inode].cached;
        let from = (offset as usize).min(cached.len());
        let read = len.min(cached.len() - from);
        into.extend_from_slice(&cached[from..from + read]);
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.enter(Call::Truncate)?;
        let inode = &mut state.inodes[self.inode];
        let (from, to) = (inode.cached.len().min(len as usize), inode.cached.len());
        inode.cached.resize(len as usize, 0);
        inode.mark_dirty(from, to);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let Begun {
            mut state,
            alive,
            outcome,
        } = self.begin(Call::Sync);
        if let Err(error) = outcome {
            if alive {
                state.lose_dirty_pages(self.inode);
            }
            return Err(error);
        }
        if state.held {
            state.waiting += 1;
            self.sim.0.1.notify_all();
            state = self.sim.0.1.wait_while(state, |state| state.held).unwrap();
            state.waiting -= 1;
        }
        let inode = &mut state.inodes[self.inode];
        let lost = inode.lost.clone();
        inode.write_back(inode.cached.len(), |page| !lost.contains(&page));
        Ok(())
    }
}
