//! A disk that fails, tears and forgets, for the tests.
//!
//! Each file has what programs see and what is on the medium; each page of a file that was not synced
//! survives a crash or not, each on its own, and so do lengths and directory entries. After an fsync that
//! failed, some of the dirty pages count as clean though the medium never got them: no later fsync saves
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::disk::{Disk, File, FileId, Held};
use super::frame::{RESERVE, segment_first};
use super::manifest;

/// Small, so that small tests have many.
const PAGE: usize = 64;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a call is, for faults and for the log.
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
    Hold,
}

/// What is wrong with the disk just now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Appends fail with ENOSPC when all files would be larger than this; what fits is written.
    pub(super) capacity: Option<u64>,
    /// Calls that always fail. An append that fails has written a part.
    pub(super) broken: Vec<Call>,
    /// Every so-manieth call fails, at random, whatever it is. 0: none.
    pub(super) one_in: u32,
    /// At this call (counted from the boot) or behind it the machine goes down.
    pub(super) down_at: Option<u64>,
}

#[derive(Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    medium: Vec<u8>,
    /// Pages that no fsync writes any more.
    lost: BTreeSet<usize>,
}

impl Inode {
    fn pages(&self) -> usize {
        self.seen.len().max(self.medium.len()).div_ceil(PAGE)
    }

    fn touch(&mut self, from: usize, to: usize) {
        self.lost
            .retain(|page| (page + 1) * PAGE <= from || page * PAGE >= to);
    }

    /// Puts pages that are `chosen` onto the medium, and gives it a length.
    fn write_back(&mut self, len: usize, mut chosen: impl FnMut(usize) -> bool) {
        let pages = self.pages();
        let mut medium = std::mem::take(&mut self.medium);
        medium.resize(medium.len().max(len), 0);
        for page in (0..pages).filter(|page| chosen(*page)) {
            let to = ((page + 1) * PAGE).min(self.seen.len());
            for at in (page * PAGE).min(to)..to {
                if at < medium.len() {
                    medium[at] = self.seen[at];
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
    /// Since the directory was synced.
    entries: Vec<Entry>,
    faults: Faults,
    faulted: bool,
    spared: bool,
    calls: u64,
    log: Vec<(Call, String)>,
    dice: StdRng,
    held: bool,
    waiting: usize,
    /// The directory's path leads elsewhere.
    away: bool,
    /// The directory was deleted: nothing can be made in it.
    deleted: bool,
    lock: Lock,
}

/// Whose the directory's lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    Ours,
    /// Nobody's: its file was removed.
    Removed,
    Another,
}

/// The disk. Clones are the same disk.
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
            spared: false,
            calls: 0,
            log: Vec::new(),
            dice: StdRng::seed_from_u64(seed),
            held: false,
            waiting: 0,
            away: false,
            deleted: false,
            lock: Lock::Ours,
        };
        Sim(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// The disk as one process sees it: of no use any more after a crash.
    pub(super) fn mount(&self) -> Arc<dyn Disk> {
        let boot = self.state().boot;
        Arc::new(Mount {
            sim: self.clone(),
            boot,
        })
    }

    /// From now on this is wrong.
    pub(super) fn fault(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// What is wrong.
    pub(super) fn faults(&self) -> Faults {
        self.state().faults.clone()
    }

    /// Whether a call failed since the boot, by a fault.
    pub(super) fn has_faulted(&self) -> bool {
        let state = self.state();
        state.faulted || state.down
    }

    /// Does something that no fault befalls, and that counts for none.
    pub(super) fn spared<T>(&self, something: impl FnOnce() -> T) -> T {
        self.state().spared = true;
        let done = something();
        self.state().spared = false;
        done
    }

    pub(super) fn is_down(&self) -> bool {
        self.state().down
    }

    /// The calls since this was asked last, with the files' names.
    pub(super) fn take_log(&self) -> Vec<(Call, String)> {
        std::mem::take(&mut self.state().log)
    }

    /// Lets no fsync end (`true`), or all.
    pub(super) fn hold_syncs(&self, held: bool) {
        self.state().held = held;
        self.0.1.notify_all();
    }

    /// Waits until an fsync is held.
    pub(super) fn wait_for_a_held_sync(&self) {
        let state = self.state();
        let nobody = |state: &mut State| state.waiting == 0;
        let waited = self.0.1.wait_timeout_while(state, PATIENCE, nobody);
        let (_state, waited) = waited.unwrap();
        assert!(!waited.timed_out(), "nobody syncs");
    }

    /// The power goes: of what was not synced, anything may be lost. The machine comes up again without
    /// faults.
    pub(super) fn crash(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let mut names = state.medium.clone();
        for entry in std::mem::take(&mut state.entries) {
            if state.dice.random() {
                entry.apply(&mut names);
            }
        }
        for inode in &mut state.inodes {
            let (a, b) = (inode.medium.len(), inode.seen.len());
            let len = match state.dice.random_range(0..3) {
                0 => a,
                1 => b,
                _ => state.dice.random_range(a.min(b)..=a.max(b)),
            };
            let odds = state.dice.random_range(0..=4);
            let lost = inode.lost.clone();
            let dice = &mut state.dice;
            inode.write_back(len, |page| {
                !lost.contains(&page) && dice.random_range(0..4) < odds
            });
            inode.seen = inode.medium.clone();
            inode.lost.clear();
        }
        state.medium = names.clone();
        state.names = names;
        state.reboot();
    }

    /// The process dies and the machine lives: all that was written is there. Pages that an fsync failed
    /// for are gone from memory.
    pub(super) fn kill(&self) {
        let mut state = self.state();
        for inode in &mut state.inodes {
            for page in std::mem::take(&mut inode.lost) {
                let to = ((page + 1) * PAGE).min(inode.seen.len());
                for at in (page * PAGE).min(to)..to {
                    inode.seen[at] = inode.medium.get(at).copied().unwrap_or(0);
                }
            }
        }
        state.reboot();
    }

    /// The spool's files and their lengths.
    pub(super) fn files(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let len = |inode: &usize| state.inodes[*inode].seen.len() as u64;
        let names = state.names.iter();
        names
            .filter(|(name, _)| *name != RESERVE && !manifest::NAMES.contains(&&name[..]))
            .map(|(name, inode)| (name.clone(), len(inode)))
            .collect()
    }

    /// The files that are not among those, and their lengths.
    pub(super) fn others(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let others = manifest::NAMES.into_iter().chain([RESERVE]);
        let found = others.filter_map(|name| Some((name, *state.names.get(name)?)));
        let len = |inode: usize| state.inodes[inode].seen.len() as u64;
        found
            .map(|(name, inode)| (name.to_owned(), len(inode)))
            .collect()
    }

    /// Bytes of all segments and quarantined files.
    pub(super) fn bytes(&self) -> u64 {
        let files = self.files().into_iter();
        files
            .filter(|(name, _)| segment_first(name).is_some() || name.starts_with("quarantine/"))
            .map(|(_, len)| len)
            .sum()
    }

    /// A file's bytes.
    pub(super) fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names[name]].seen.clone()
    }

    /// Puts a file there, durably.
    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let inode = state.inodes.len();
        state.inodes.push(Inode {
            seen: bytes.clone(),
            medium: bytes,
            lost: BTreeSet::new(),
        });
        state.names.insert(name.to_owned(), inode);
        state.medium.insert(name.to_owned(), inode);
    }

    /// Takes a file away, durably.
    pub(super) fn take(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name);
        state.medium.remove(name);
    }

    /// Takes a file's name away, durably; who has it open still has it. Gives the file, to be put back.
    pub(super) fn hide(&self, name: &str) -> Option<usize> {
        let mut state = self.state();
        state.medium.remove(name);
        state
            .entries
            .retain(|entry| !matches!(entry, Entry::Made(made, _) if made == name));
        state.names.remove(name)
    }

    /// Whether a file has this name, durably.
    pub(super) fn has(&self, name: &str) -> bool {
        let state = self.state();
        let named = state.names.get(name);
        named.is_some() && named == state.medium.get(name)
    }

    /// Turns a bit over in a file.
    pub(super) fn rot(&self, name: &str, at: usize) {
        let mut state = self.state();
        let inode = state.names[name];
        let inode = &mut state.inodes[inode];
        inode.seen[at] ^= 1;
        if let Some(byte) = inode.medium.get_mut(at) {
            *byte ^= 1;
        }
    }

    /// How many calls there were since the boot.
    pub(super) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Gives a file a name, durably, whichever file has it.
    pub(super) fn put_back(&self, name: &str, file: usize) {
        let mut state = self.state();
        state.forget_entries(name);
        state.names.insert(name.to_owned(), file);
        state.medium.insert(name.to_owned(), file);
    }

    /// The directory is not where its path leads (`true`), or is there again.
    pub(super) fn move_away(&self, away: bool) {
        self.state().away = away;
    }

    /// Deletes the directory and all in it, durably.
    pub(super) fn delete(&self) {
        let mut state = self.state();
        state.names.clear();
        state.medium.clear();
        state.entries.clear();
        state.deleted = true;
    }

    /// Gives the directory's lock to somebody.
    pub(super) fn lock(&self, lock: Lock) {
        self.state().lock = lock;
    }
}

impl State {
    /// What becomes of a name is durable now.
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
        self.away = false;
        self.deleted = false;
        self.lock = Lock::Ours;
    }

    /// Whether a call of this boot fails, and how.
    fn enter(&mut self, boot: u64, call: Call, name: &str) -> io::Result<()> {
        if boot != self.boot || self.down {
            return Err(io::Error::other("the machine is down"));
        }
        if self.spared {
            return Ok(());
        }
        self.log.push((call, name.to_owned()));
        if self.faults.down_at.is_some_and(|at| at <= self.calls) {
            self.down = true;
            return Err(io::Error::other("the machine goes down"));
        }
        self.calls += 1;
        let unlucky = self.faults.one_in > 0 && self.dice.random_ratio(1, self.faults.one_in);
        if unlucky || self.faults.broken.contains(&call) {
            self.faulted = true;
            return Err(match call {
                Call::Create | Call::Remove => ErrorKind::ReadOnlyFilesystem.into(),
                _ => io::Error::from_raw_os_error(5),
            });
        }
        Ok(())
    }

    /// Some of a file's dirty pages count as clean from now on.
    fn lose_dirty_pages(&mut self, inode: usize) {
        let inode = &mut self.inodes[inode];
        for page in 0..inode.pages() {
            let of = |bytes: &[u8]| {
                let to = ((page + 1) * PAGE).min(bytes.len());
                bytes[(page * PAGE).min(to)..to].to_vec()
            };
            if of(&inode.seen) != of(&inode.medium) && self.dice.random() {
                inode.lost.insert(page);
            }
        }
    }

    fn used(&self) -> u64 {
        let inodes = self.names.values();
        inodes
            .map(|inode| self.inodes[*inode].seen.len() as u64)
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
        let state = self.enter(Call::Open, name)?;
        let inode = state.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(self.file(name, *inode))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.enter(Call::Remove, name)?;
        state.names.remove(name).ok_or(ErrorKind::NotFound)?;
        state.entries.push(Entry::Removed(name.to_owned()));
        Ok(())
    }

    /// After a crash it has both names, either or none: worse than file systems with a journal.
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

    fn hold(&self) -> io::Result<Held> {
        let mut state = self.enter(Call::Hold, "")?;
        let lock = std::mem::replace(&mut state.lock, Lock::Ours);
        if std::mem::take(&mut state.deleted) {
            return Ok(Held::Anew);
        }
        match lock {
            Lock::Ours => Ok(Held::Still),
            Lock::Removed => Ok(Held::Again),
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

/// A call that was begun.
struct Begun<'s> {
    state: MutexGuard<'s, State>,
    /// Whether it changes anything at all: it does not when the machine is down, or the process gone.
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
        Ok(state.inodes[self.inode].seen.len() as u64)
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
            written = state.dice.random_range(0..=bytes.len());
        } else if let Some(capacity) = state.faults.capacity {
            let over = state.inodes[self.inode]
                .seen
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
        inode.seen.resize(inode.seen.len().max(to), 0);
        inode.seen[from..to].copy_from_slice(&bytes[..written]);
        inode.touch(from, to);
        outcome
    }

    fn read_at(&self, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        let state = self.enter(Call::Read)?;
        let seen = &state.inodes[self.inode].seen;
        let from = (offset as usize).min(seen.len());
        let read = len.min(seen.len() - from);
        into.extend_from_slice(&seen[from..from + read]);
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.enter(Call::Truncate)?;
        let inode = &mut state.inodes[self.inode];
        let (from, to) = (inode.seen.len().min(len as usize), inode.seen.len());
        inode.seen.resize(len as usize, 0);
        inode.touch(from, to);
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
        inode.write_back(inode.seen.len(), |page| !lost.contains(&page));
        Ok(())
    }
}
