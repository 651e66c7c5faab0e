//! The identity of a sender: distinguishes the objects of this output from everybody else's.
//!
//! Without a spool an object is named after its chunk, so that a retried chunk finds its object. But two senders may
//! have chunks with the same bytes (a file that exists on every machine, a clock in whole seconds), and each of them
//! must create an object. So the sender is part of the name as well.
//!
//! A sender is identified by a random id, kept in a file of the dead-letter folder, and by the machine's id, the host
//! name, the instance, and Fluent Bit's name for the output: whatever copies a disk copies the id with it. Losing an id
//! costs a duplicate at most, when a chunk is retried whose object an earlier run wrote. Sharing an id between two
//! senders can cost a chunk. So an id is reused only if its file is free and whole:
//!
//! - *The file is locked* by another process or output: two outputs have the same folder and the same name. The file is
//!   removed, so that later neither is mistaken for the other, and this run gets an id of its own.
//! - *It is torn, or something else*: it is written anew.
//! - *It cannot be locked or written*: this run gets an id of its own.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

use crate::codec::json::hex;
use crate::ids::ChunkId;

/// The start of the file; the id follows, as hexadecimal digits.
const PREFIX: &str = "ferry sender 1 ";
const ID_BYTES: usize = 16;
/// The maximum number of bytes read: more than any valid file has.
const MAX_FILE_BYTES: u64 = 256;

/// The machine the process runs on, as far as it can be distinguished from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// `/etc/machine-id`; empty if there is none, as in most containers.
    pub id: String,
    /// The host name. A container mostly has one of its own.
    pub name: String,
}

impl Machine {
    /// Returns this machine.
    pub fn here() -> Machine {
        let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Machine {
            id: id.trim().to_owned(),
            name: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
        }
    }
}

/// A sender's identity, from which its objects are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity([u8; 32]);

impl Identity {
    /// Returns a random identity that no other run has.
    pub fn of_this_run() -> Identity {
        let mut bytes = [0; 32];
        StdRng::from_os_rng().fill_bytes(&mut bytes);
        Identity(bytes)
    }

    /// Returns the name of a chunk's object: the same only for the same sender and chunk.
    pub fn name(&self, chunk: &ChunkId) -> String {
        hex(&blake3::keyed_hash(&self.0, chunk).as_bytes()[..16])
    }
}

/// An identity that is held for as long as this exists.
#[derive(Debug)]
pub struct Origin {
    identity: Identity,
    warning: Option<String>,
    /// The locked file, if the identity survives this run.
    file: Option<File>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        // Closing the file would not suffice: a process that is just being forked has it open, too, until it runs its
        // program.
        if let Some(file) = &self.file {
            let _ = file.unlock();
        }
    }
}

impl Origin {
    /// Opens the identity of `instance` on `machine`, whose output Fluent Bit calls `output`, with its id in the folder
    /// `dir`. There always is one: see [`Origin::warning`].
    pub fn open(dir: &Path, machine: &Machine, instance: &str, output: &str) -> Origin {
        // The host name is left out: each new container would leave a file behind.
        let file = hash(&[
            machine.id.as_bytes(),
            instance.as_bytes(),
            output.as_bytes(),
        ]);
        let path = dir.join(format!("sender-{}", hex(&file[..8])));
        match claim(&path) {
            Ok(claimed) => Origin {
                identity: Identity(hash(&[
                    &claimed.id,
                    machine.id.as_bytes(),
                    machine.name.as_bytes(),
                    instance.as_bytes(),
                    output.as_bytes(),
                ])),
                warning: claimed.warning,
                file: Some(claimed.file),
            },
            Err(why) => Origin {
                identity: Identity::of_this_run(),
                warning: Some(format!(
                    "{why}: objects are named for this run alone, so a chunk that an earlier run delivered and the host \
                     retries becomes a second object"
                )),
                file: None,
            },
        }
    }

    /// Returns the identity that its objects are named from.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns why chunks of an earlier run are not recognized, or those of this run will not be by the next.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

/// An id that belongs to this process while the file is locked.
struct Claimed {
    id: [u8; ID_BYTES],
    file: File,
    warning: Option<String>,
}

fn claim(path: &Path) -> Result<Claimed, String> {
    let shown = path.display();
    let failed = |what: &str, error: &io::Error| format!("'{shown}' cannot be {what}: {error}");
    let mut file = open(path).map_err(|error| failed("opened", &error))?;
    let held = match file.try_lock() {
        // Another process that found it locked may have removed it since.
        Ok(()) => !is_named(&file, path),
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => return Err(failed("locked", &error)),
    };
    if held {
        // If that fails, the holder has the id alone until it ends, and only then can another get it.
        let _ = fs::remove_file(path);
        return Err(format!(
            "'{shown}' is locked by another output or process; give each its own dead_letter_dir or instance"
        ));
    }
    let mut text = Vec::new();
    (&mut file)
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| failed("read", &error))?;
    if let Some(id) = read(&text) {
        return Ok(Claimed {
            id,
            file,
            warning: None,
        });
    }
    let mut id = [0; ID_BYTES];
    StdRng::from_os_rng().fill_bytes(&mut id);
    write(&file, path, &id).map_err(|error| failed("written", &error))?;
    let warning = (!text.is_empty()).then(|| {
        format!(
            "'{shown}' contained no identity and was rewritten: a chunk that an earlier run delivered and the host \
             retries becomes a second object"
        )
    });
    Ok(Claimed { id, file, warning })
}

/// Opens the file, creating it if needed. Anything else with its name is removed.
fn open(path: &Path) -> io::Result<File> {
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("it is not a regular file")),
        }
    };
    open().or_else(|error| match fs::remove_file(path) {
        Ok(()) => open(),
        Err(_) => Err(error),
    })
}

/// Returns whether `file` still has the name it was opened by.
fn is_named(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(found)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    (found.dev(), found.ino()) == (ours.dev(), ours.ino())
}

/// Writes the id durably, because an object named from it may be sent the next moment. A machine that stops in between
/// leaves a file that [`read`] rejects.
fn write(file: &File, path: &Path, id: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(format!("{PREFIX}{}\n", hex(id)).as_bytes(), 0)?;
    file.sync_all()?;
    let dir = path
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_owned);
    File::open(dir)?.sync_all()
}

/// Returns the id in a complete file.
fn read(text: &[u8]) -> Option<[u8; ID_BYTES]> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_prefix(PREFIX)?.strip_suffix('\n')?;
    let id = u128::from_str_radix(digits, 16).ok()?.to_be_bytes();
    // Only the exact form in which it is written is accepted.
    (hex(&id) == digits).then_some(id)
}

/// Returns a hash of several words that depends on where each ends.
fn hash(words: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for word in words {
        hasher.update(&(word.len() as u64).to_le_bytes());
        hasher.update(word);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn machine(id: &str, name: &str) -> Machine {
        Machine {
            id: id.to_owned(),
            name: name.to_owned(),
        }
    }

    fn open(dir: &Path) -> Origin {
        Origin::open(dir, &machine("m", "h"), "i", "o")
    }

    /// Returns the only file in a folder.
    fn file(dir: &Path) -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.into_iter().next().unwrap()
    }

    #[test]
    fn a_sender_is_the_same_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).identity();
        for _ in 0..2 {
            let sender = open(dir.path());
            assert_eq!(sender.identity(), first);
            assert_eq!(sender.warning(), None);
        }
        let mode = fs::metadata(file(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn everything_that_distinguishes_two_senders_is_in_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let senders = [
            (machine("m", "h"), "i", "o"),
            (machine("another", "h"), "i", "o"),
            (machine("m", "another"), "i", "o"),
            (machine("m", "h"), "another", "o"),
            (machine("m", "h"), "i", "another"),
            // The boundary between words counts.
            (machine("m", "hi"), "", "o"),
        ];
        let identities = || {
            senders.clone().map(|(machine, instance, output)| {
                let sender = Origin::open(dir.path(), &machine, instance, output);
                assert_eq!(sender.warning(), None, "{machine:?} {instance} {output}");
                sender.identity()
            })
        };
        let first = identities();
        for (at, one) in first.iter().enumerate() {
            assert!(!first[..at].contains(one), "{:?}", senders[at]);
        }
        assert_eq!(identities(), first);
    }

    #[test]
    fn a_copied_disk_is_another_sender_on_another_machine() {
        let (disk, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sender = |dir: &Path, name| Origin::open(dir, &machine("m", name), "i", "o").identity();
        let original = sender(disk.path(), "web-1");
        let from = file(disk.path());
        fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
        assert_ne!(sender(copy.path(), "web-2"), original);
        assert_eq!(sender(copy.path(), "web-1"), original, "moved, not copied");
    }

    #[test]
    fn senders_that_share_all_they_have_are_never_taken_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let before = open(dir.path()).identity();
        let (first, second) = (open(dir.path()), open(dir.path()));
        assert_eq!(first.identity(), before);
        assert_ne!(second.identity(), before);
        assert!(second.warning().unwrap().contains("locked by another"));
        let seen = [first.identity(), second.identity()];
        drop((first, second));
        // Whichever opens first now, the other may have been it.
        let next = open(dir.path());
        assert!(!seen.contains(&next.identity()));
        assert_eq!(next.warning(), None);
    }

    #[test]
    fn a_torn_or_foreign_file_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).identity();
        let path = file(dir.path());
        let whole = fs::read(&path).unwrap();
        let mut broken: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
        broken.push(vec![0; whole.len()]);
        broken.push([&whole[..], b"\n"].concat());
        broken.push(whole.to_ascii_uppercase());
        broken.push("é".repeat(1_000).into_bytes());
        broken.push(format!("{PREFIX}+{}\n", "1".repeat(31)).into_bytes());
        for bytes in broken {
            fs::write(&path, &bytes).unwrap();
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            let sender = open(dir.path());
            assert_ne!(sender.identity(), first, "{shown}");
            assert_eq!(sender.warning().is_some(), !bytes.is_empty(), "{shown}");
            let new = sender.identity();
            drop(sender);
            let again = open(dir.path());
            assert_eq!((again.identity(), again.warning()), (new, None), "{shown}");
        }
    }

    #[test]
    fn anything_but_a_regular_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).identity();
        let path = file(dir.path());
        let elsewhere = tempfile::tempdir().unwrap();
        let other = elsewhere.path().join("other");
        fs::write(&other, "precious").unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        let sender = open(dir.path());
        assert_ne!(sender.identity(), first);
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn without_a_writable_file_each_run_has_an_identity_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        let path = file(dir.path());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let away = dir.path().join("away");
        for folder in [dir.path(), &away] {
            let (first, second) = (open(folder), open(folder));
            assert_ne!(first.identity(), second.identity());
            let warning = first.warning().unwrap();
            assert!(warning.contains("cannot be opened"), "{warning}");
            assert!(warning.contains("second object"), "{warning}");
        }
    }

    #[test]
    fn a_name_belongs_to_one_sender_and_one_chunk() {
        let (one, two) = (Identity([1; 32]), Identity([2; 32]));
        let (a, b) = ([1; 16], [2; 16]);
        assert_eq!(one.name(&a), one.name(&a));
        assert_ne!(one.name(&a), two.name(&a));
        assert_ne!(one.name(&a), one.name(&b));
        assert_eq!(one.name(&a).len(), 32);
    }

    #[test]
    fn this_machine_has_a_name() {
        assert_ne!(Machine::here().name, "");
    }
}
