//! Dead letters: records that no destination will accept, kept with the reason for a person to look at.
//!
//! They are JSON lines in one file of the dead-letter folder. A letter counts as kept once the file is synced and still
//! has its name: a person, or a replay, may take the file away at any time by renaming it, and finds every kept letter
//! in it or in the next one.
//!
//! Several outputs and processes may share a folder: each locks the file while it writes, so that no letter lands in the
//! middle of another, and all of them together keep to the limit.
//!
//! The folder is bounded: letters beyond its limit are refused, and their records are held back.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use line::Line;
use tokio::time::Instant;

use crate::buffers::Payload;
use crate::codec::rejected::Letter;
use crate::codec::time::now;
use crate::ids::Time;
use crate::log::size;
use crate::metrics::Reason;
use crate::sink::Fault;

pub mod line;

/// The name of the file in the dead-letter folder.
pub const FILE: &str = "dead-letters.ndjson";
/// The prefix of the files that count towards the limit: [`FILE`], and what was renamed next to it.
const COUNTED_PREFIX: &[u8] = b"dead-letters";
/// The maximum number of attempts to write letters whose file is taken away meanwhile.
const ATTEMPTS: usize = 2;
/// The number of attempts to lock the file, and the pause between them: 10 s in all. Whoever holds it is writing.
const LOCK_ATTEMPTS: u32 = 2_000;
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// The approximate number of bytes written at once.
const BLOCK_BYTES: usize = 256 * 1024;

/// Creates the letter of a record that the destination refused for `target`.
pub fn refused(tag: &Arc<[u8]>, target: &str, fault: &Fault, record: Payload) -> Letter {
    Letter {
        tag: Arc::clone(tag),
        reason: Reason::Refused,
        detail: format!("{}: {}", fault.code, fault.message),
        request_id: fault.request_id.clone(),
        target: Some(target.to_owned()),
        record,
    }
}

/// The usage of the dead-letter folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The bytes of dead letters in it.
    pub bytes: u64,
    /// The limit, in bytes.
    pub limit: u64,
}

impl Usage {
    /// Returns the free bytes: unlimited if the folder is empty, because a letter above the limit is kept alone.
    pub fn room(&self) -> u64 {
        match self.bytes {
            0 => u64::MAX,
            bytes => self.limit.saturating_sub(bytes),
        }
    }

    /// Returns a warning above 80 % of the limit, while there is still time to make room.
    pub fn warning(&self) -> Option<String> {
        let Usage { bytes, limit } = self;
        (u128::from(*bytes) * 5 > u128::from(*limit) * 4).then(|| {
            format!(
                "dead letters take {} of {}; records whose letters do not fit are held back: replay or move the \
                 dead-letters* files, or raise dead_letter_limit",
                size(*bytes),
                size(*limit)
            )
        })
    }
}

/// The reason why letters were not kept. The caller still has the data, and holds it back.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    /// The letters do not fit.
    #[error(
        "{} more do not fit into {}, where dead letters take {} of {}; replay or move its dead-letters* files, or raise \
         dead_letter_limit",
        size(*more), path.display(), size(*bytes), size(*limit)
    )]
    Full {
        /// The bytes of dead letters in the folder.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
        /// The bytes to add.
        more: u64,
        /// The folder.
        path: PathBuf,
    },
    /// The letters could not be written and synced.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// Other letters wait for room before them.
    #[error("other letters wait for room before them")]
    Behind {
        /// The bytes to add.
        more: u64,
    },
}

/// Returns the reason why letters are not written now: others wait before them.
pub fn must_wait(letters: &[Letter]) -> NotKept {
    NotKept::Behind {
        more: length(now(), letters).unwrap_or(0),
    }
}

impl NotKept {
    /// Returns the bytes the letters need, if space is what is missing.
    pub fn needs(&self) -> u64 {
        match self {
            NotKept::Full { more, .. } | NotKept::Behind { more } => *more,
            NotKept::Disk(_) => 0,
        }
    }
}

/// The rate at which records become dead letters, to detect when that is no accident.
///
/// An application may log an oversized line now and then. A hundred records within a minute, and one in a hundred of
/// all, are something else: the broken parser of an input, or an attempt to fill the folder.
#[derive(Debug)]
pub struct Rate {
    since: Instant,
    /// The records that became letters since then.
    records: u64,
    /// The records delivered until then.
    delivered: u64,
    /// The bytes of letters at that time.
    bytes: u64,
    alarmed: bool,
}

/// The counting window.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// The alarm threshold: the records in that time …
const ALARM_RECORDS: u64 = 100;
/// … and their share of all records: one in this many.
const ALARM_SHARE: u64 = 100;

impl Rate {
    /// Creates a rate without records.
    pub fn new(now: Instant) -> Rate {
        Rate {
            since: now,
            records: 0,
            delivered: 0,
            bytes: 0,
            alarmed: false,
        }
    }

    /// Counts `records` that became dead letters, given how full the folder is and how many records were `delivered` in
    /// all. Returns the alarm, at most once a minute.
    pub fn note(
        &mut self,
        now: Instant,
        records: u64,
        usage: Usage,
        delivered: u64,
    ) -> Option<String> {
        let elapsed = now.duration_since(self.since);
        if elapsed >= RATE_WINDOW {
            *self = Rate {
                since: now,
                delivered,
                bytes: usage.bytes,
                ..Rate::new(now)
            };
        }
        self.records += records;
        let of = self.records + delivered.saturating_sub(self.delivered);
        if self.alarmed
            || self.records < ALARM_RECORDS
            || self.records.saturating_mul(ALARM_SHARE) < of
        {
            return None;
        }
        self.alarmed = true;
        let elapsed = now.duration_since(self.since).max(Duration::from_secs(1));
        let mut words = format!(
            "of the last {of} records {} became dead letters: an input's parser is broken, or malformed events are being sent",
            self.records
        );
        let more = usage.bytes.saturating_sub(self.bytes);
        let room = usage.limit.saturating_sub(usage.bytes);
        if let Some(left) = room.checked_div(more) {
            let minutes = u128::from(left) * elapsed.as_secs_f64().ceil() as u128 / 60;
            if minutes < 24 * 60 {
                words.push_str(&format!(
                    "; at this rate their folder is full in {minutes} minutes"
                ));
            }
        }
        Some(words)
    }
}

/// The dead-letter folder of one instance.
#[derive(Debug)]
pub struct DeadLetters {
    dir: PathBuf,
    path: PathBuf,
    limit: u64,
    /// The bytes in the folder when last checked.
    seen: AtomicU64,
    /// Kept open also so that its inode number is not reused for another file.
    file: Mutex<Option<File>>,
}

impl DeadLetters {
    /// Opens the folder, creating it with mode 0700, and makes sure that a file can be written in it and that its
    /// contents can be counted. `limit` is the maximum size of the dead letters in it.
    pub fn open(dir: &Path, limit: u64) -> io::Result<DeadLetters> {
        create(dir)?;
        // Without a name, or with a random one: other outputs may be trying the same at this moment.
        drop(tempfile::tempfile_in(dir)?);
        let letters = DeadLetters {
            dir: dir.to_owned(),
            path: dir.join(FILE),
            limit,
            seen: AtomicU64::new(0),
            file: Mutex::new(None),
        };
        letters.usage()?;
        Ok(letters)
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the usage, read from the disk: files that a person moved, deleted or put there count.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut bytes = 0;
        let entries = match fs::read_dir(&self.dir) {
            // Somebody removed the folder. It is created again with the next letter.
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(self.set_usage(0)),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(COUNTED_PREFIX)
            {
                continue;
            }
            // Follows links, as opening the file does.
            match fs::metadata(entry.path()) {
                Ok(found) if found.is_file() => bytes += found.len(),
                Ok(_) => {}
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.set_usage(bytes))
    }

    /// Returns the usage when last checked or written to. Does no I/O.
    pub fn last_usage(&self) -> Usage {
        Usage {
            bytes: self.seen.load(Ordering::Relaxed),
            limit: self.limit,
        }
    }

    fn set_usage(&self, bytes: u64) -> Usage {
        self.seen.store(bytes, Ordering::Relaxed);
        self.last_usage()
    }

    /// Appends letters, syncs them, and returns the usage. On an error none of them counts as kept. Letters that would
    /// not fit even into an empty folder are kept if it is empty: nothing but a higher limit would ever help them.
    ///
    /// A file may contain a letter twice: if a write or a sync fails, some letters may already be in it when the caller
    /// retries. They are not cut off, because another output may share the folder, and have appended letters after
    /// them. Fails if another output has the file locked for 10 s.
    pub fn write(&self, letters: &[Letter]) -> Result<Usage, NotKept> {
        if letters.is_empty() {
            return Ok(self.usage()?);
        }
        let now = now();
        let all = length(now, letters)?;
        let mut slot = self.file.lock().expect("nothing panics with this lock");
        for _ in 0..ATTEMPTS {
            // A file is reused only if nothing failed: otherwise its contents are unknown.
            let file = match slot.take() {
                Some(file) if self.is_named(&file)? => file,
                _ => self.append()?,
            };
            let locked = Locked::new(&file)?;
            // It may have been taken away by the one that had it locked before.
            if !self.is_named(&file)? {
                continue;
            }
            let torn = torn(&file)?;
            let more = all + u64::from(torn);
            let Usage { bytes, limit } = self.usage()?;
            if bytes > 0 && bytes.saturating_add(more) > limit {
                drop(locked);
                *slot = Some(file);
                return Err(NotKept::Full {
                    bytes,
                    limit,
                    more,
                    path: self.dir.clone(),
                });
            }
            if torn {
                (&file).write_all(b"\n")?;
            }
            write(now, letters, &mut &file)?;
            file.sync_data()?;
            // Somebody who took the file away may have read it before these letters were in it, and may delete it now.
            // Then they are written again: twice is better than not at all.
            if self.is_named(&file)? {
                drop(locked);
                *slot = Some(file);
                return Ok(self.set_usage(bytes + more));
            }
        }
        Err(io::Error::other(format!(
            "the file was moved or deleted {ATTEMPTS} times while it was written"
        ))
        .into())
    }

    fn append(&self) -> io::Result<File> {
        create(&self.dir)?;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        // Its name must survive a power cut, too, whoever created it.
        File::open(&self.dir)?.sync_all()?;
        Ok(file)
    }

    /// Returns whether `file` still has the name it was opened by.
    fn is_named(&self, file: &File) -> io::Result<bool> {
        let ours = file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The lock on a file. It is released explicitly: a process that is just being forked has the file open, too.
struct Locked<'f>(&'f File);

impl Locked<'_> {
    /// Waits for the lock. A file system without locks is used without one.
    fn new(file: &File) -> io::Result<Locked<'_>> {
        for _ in 0..LOCK_ATTEMPTS {
            match file.try_lock() {
                Ok(()) => return Ok(Locked(file)),
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
                Err(TryLockError::Error(error)) => match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOLCK) => {
                        return Ok(Locked(file));
                    }
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "another output or process has kept it locked for 10 s",
        ))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Creates the folder for its owner alone, if it does not exist. Its name survives a power cut.
fn create(dir: &Path) -> io::Result<()> {
    let missing = dir.ancestors().take_while(|dir| !dir.exists());
    let missing: Vec<&Path> = missing.filter(|dir| *dir != Path::new("")).collect();
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700).create(dir)?;
    for parent in missing.iter().filter_map(|made| made.parent()) {
        let parent = match parent == Path::new("") {
            true => Path::new("."),
            false => parent,
        };
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Returns whether the last line is incomplete, because a crash or a full disk cut a write short: it must not swallow
/// the next letter.
fn torn(file: &File) -> io::Result<bool> {
    let mut last = [b'\n'];
    if let Some(end) = file.metadata()?.len().checked_sub(1) {
        file.read_exact_at(&mut last, end)?;
    }
    Ok(last != *b"\n")
}

/// Writes letters as lines with the current time.
pub fn lines(letters: &[Letter], out: &mut dyn io::Write) -> io::Result<()> {
    write(now(), letters, out)
}

/// Writes letters as lines with the time `now`, block by block: together they may be many times larger than in memory.
fn write(now: Time, letters: &[Letter], out: &mut dyn io::Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BLOCK_BYTES, out);
    for letter in letters {
        serde_json::to_writer(&mut out, &Line::of(letter, now))?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Returns the size of these lines.
fn length(now: Time, letters: &[Letter]) -> io::Result<u64> {
    let mut count = Count(0);
    write(now, letters, &mut count)?;
    Ok(count.0)
}

/// Counts the bytes written.
struct Count(u64);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;
    use std::sync::atomic::AtomicBool;

    use bytes::Bytes;
    use line::PORTION_BYTES;
    use proptest::prelude::*;

    const NO_LIMIT: u64 = u64::MAX;
    /// Set in a process of this test that may only write small files: the folder to write to.
    const SMALL_DISK: &str = "FERRY_TEST_SMALL_DISK";

    fn letter(record: &[u8]) -> Letter {
        Letter {
            tag: b"app\n\xff"[..].into(),
            reason: Reason::TooLarge,
            detail: "a record of 1,024,001 bytes".into(),
            request_id: Some("r-1".into()),
            target: None,
            record: record.to_vec().into(),
        }
    }

    fn read(file: &Path) -> Vec<serde_json::Value> {
        fs::read_to_string(file)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).expect("valid JSON"))
            .collect()
    }

    fn records(file: &Path) -> Vec<String> {
        read(file)
            .iter()
            .map(|letter| letter["record"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The bytes a letter takes in the file.
    fn size(record: &[u8]) -> u64 {
        length(now(), &[letter(record)]).unwrap()
    }

    #[track_caller]
    fn assert_full(written: Result<Usage, NotKept>, expected: u64) {
        match written {
            Err(NotKept::Full { bytes, .. }) => assert_eq!(bytes, expected),
            other => panic!("not refused as full: {other:?}"),
        }
    }

    #[test]
    fn letters_contain_the_reason_and_the_exact_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(&dir.path().join("a/b"), NO_LIMIT).unwrap();
        let fault = Fault {
            class: crate::sink::Class::Record,
            code: "InvalidArgument".into(),
            message: "no".into(),
            request_id: None,
        };
        letters
            .write(&[
                letter("{\"k\":\"회\"}".as_bytes()),
                letter(b"\xff\x00"),
                refused(&b"app"[..].into(), "orders", &fault, b"x"[..].into()),
            ])
            .unwrap();
        let read = read(letters.path());
        assert_eq!(read[0]["tag"], "app\n\u{fffd}");
        assert_eq!(read[0]["reason"], "too_large");
        assert_eq!(read[0]["request_id"], "r-1");
        assert_eq!(read[0].get("target"), None);
        assert_eq!(read[0]["record"], "{\"k\":\"회\"}");
        assert_eq!(read[1]["record_base64"], "/wA=");
        assert_eq!(read[2]["reason"], "refused");
        assert_eq!(read[2]["error"], "InvalidArgument: no");
        assert_eq!(read[2]["target"], "orders");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(letters.path()), 0o600);
        assert_eq!(mode(letters.path().parent().unwrap()), 0o700);
    }

    #[test]
    fn a_torn_letter_does_not_swallow_the_next() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{\"time\":\"20").unwrap();
        let letters = DeadLetters::open(dir.path(), NO_LIMIT).unwrap();
        letters.write(&[letter(b"x")]).unwrap();
        letters.write(&[letter(b"y")]).unwrap();
        let text = fs::read_to_string(letters.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("\"record\":\"x\""));
        assert!(lines[2].contains("\"record\":\"y\""));
    }

    #[test]
    fn a_half_written_letter_is_not_kept_and_swallows_nothing() {
        let half = || letter("h".repeat(8_192).as_bytes());
        if let Some(dir) = std::env::var_os(SMALL_DISK) {
            let letters = DeadLetters::open(Path::new(&dir), NO_LIMIT).unwrap();
            let not_kept = letters.write(&[half()]).unwrap_err();
            assert!(matches!(not_kept, NotKept::Disk(_)), "{not_kept}");
            assert!(letters.usage().unwrap().bytes > 0, "half of it was written");
            fs::rename(letters.path(), Path::new(&dir).join("dead-letters-half")).unwrap();
            letters.write(&[letter(b"small")]).unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let name = concat!(
            "delivery::dead_letter::tests::",
            "a_half_written_letter_is_not_kept_and_swallows_nothing"
        );
        // The signal is ignored, so that a write beyond the limit fails as on a full disk.
        let child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(SMALL_DISK, dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && text.contains("1 passed"),
            "{text}"
        );
        assert_eq!(records(&dir.path().join(FILE)), ["small"]);

        fs::rename(dir.path().join("dead-letters-half"), dir.path().join(FILE)).unwrap();
        let letters = DeadLetters::open(dir.path(), NO_LIMIT).unwrap();
        letters.write(&[half()]).unwrap();
        let text = fs::read_to_string(letters.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(serde_json::from_str::<serde_json::Value>(lines[0]).is_err());
        assert!(serde_json::from_str::<serde_json::Value>(lines[1]).is_ok());
    }

    #[test]
    fn a_record_in_parts_of_any_length_reads_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(dir.path(), NO_LIMIT).unwrap();
        let text = "회원 \"q\"\n".repeat(2 * PORTION_BYTES / 12);
        let bytes: Vec<u8> = (0..2 * BLOCK_BYTES).map(|n| (n * 7) as u8).collect();
        // The ends of the parts; text is never cut within a character.
        for cuts in [vec![], vec![1, 2, 4, 7, 100], vec![PORTION_BYTES + 1]] {
            let parts = |all: &[u8]| {
                let mut record = Payload::default();
                let mut start = 0;
                for &end in cuts.iter().chain([&all.len()]) {
                    record.push(all[start..end].to_vec().into());
                    start = end;
                }
                record
            };
            let binary = Letter {
                record: parts(&bytes),
                ..letter(b"")
            };
            letters.write(&[binary]).unwrap();
            let lines = read(letters.path());
            let base64 = lines.last().unwrap()["record_base64"].as_str().unwrap();
            let decoded = base64_simd::STANDARD.decode_to_vec(base64).unwrap();
            assert!(decoded == bytes, "{cuts:?}");
        }
        let mut record = Payload::default();
        record.push(text.clone().into());
        record.push("".into());
        record.push(text.clone().into());
        let plain = Letter {
            record,
            ..letter(b"")
        };
        letters.write(&[plain]).unwrap();
        let lines = read(letters.path());
        assert!(lines.last().unwrap()["record"] == text.repeat(2));
    }

    #[test]
    fn a_high_rate_of_letters_raises_an_alarm_once_a_minute() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let usage = |bytes| Usage {
            bytes,
            limit: 1_000_000,
        };
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.note(after(1), 99, usage(9_900), 0), None, "few");
        assert_eq!(
            rate.note(after(2), 1, usage(10_000), 9_901),
            None,
            "less than one in a hundred"
        );
        let words = rate.note(after(10), 100, usage(20_000), 9_901).unwrap();
        assert!(
            words.starts_with("of the last 10101 records 200 became dead letters"),
            "{words}"
        );
        assert!(words.ends_with("full in 8 minutes"), "{words}");
        assert_eq!(
            rate.note(after(11), 1_000, usage(30_000), 9_901),
            None,
            "alarmed already"
        );
        assert_eq!(
            rate.note(after(61), 99, usage(40_000), 9_901),
            None,
            "another minute"
        );
        assert!(rate.note(after(62), 1, usage(40_000), 9_901).is_some());
    }

    #[test]
    fn a_long_tag_is_truncated_in_each_letter() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(dir.path(), NO_LIMIT).unwrap();
        let tag: Arc<[u8]> = "é".repeat(30_000).into_bytes().into();
        let of_tag = Letter {
            tag,
            ..letter(b"x")
        };
        letters.write(&vec![of_tag; 100]).unwrap();
        let lines = read(letters.path());
        let cut = lines[99]["tag"].as_str().unwrap();
        assert!(
            cut.starts_with("éé") && cut.ends_with("… (60000 bytes)"),
            "{cut}"
        );
        assert!(letters.last_usage().bytes < 100 * 1_400);
    }

    #[test]
    fn outputs_that_share_a_folder_start_at_once_and_never_write_into_each_others_letters() {
        const OUTPUTS: usize = 4;
        const LETTERS: usize = 12;
        let dir = tempfile::tempdir().unwrap();
        // Longer than what is written at once.
        let record = |output: usize, letter: usize| {
            format!("{output}-{letter}-{}", "x".repeat(BLOCK_BYTES + 100))
        };
        std::thread::scope(|scope| {
            for output in 0..OUTPUTS {
                let dir = dir.path();
                scope.spawn(move || {
                    for number in 0..LETTERS {
                        let letters = DeadLetters::open(dir, NO_LIMIT).unwrap();
                        letters
                            .write(&[letter(record(output, number).as_bytes())])
                            .unwrap();
                    }
                });
            }
        });
        let mut found = records(&dir.path().join(FILE));
        let mut all: Vec<String> = (0..OUTPUTS)
            .flat_map(|output| (0..LETTERS).map(move |number| record(output, number)))
            .collect();
        found.sort();
        all.sort();
        assert_eq!(found.len(), all.len());
        assert!(found == all, "a letter was changed");
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [FILE], "nothing else is left behind");
    }

    #[test]
    fn outputs_that_share_a_folder_keep_to_its_limit_together() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 3 * size(b"x");
        let (one, two) = (
            DeadLetters::open(dir.path(), limit).unwrap(),
            DeadLetters::open(dir.path(), limit).unwrap(),
        );
        std::thread::scope(|scope| {
            for letters in [&one, &two] {
                scope.spawn(|| (0..3).for_each(|_| drop(letters.write(&[letter(b"x")]))));
            }
        });
        assert_eq!(records(&dir.path().join(FILE)), ["x"; 3]);
        assert_full(one.write(&[letter(b"x")]), limit);
    }

    #[test]
    fn a_full_folder_refuses_letters_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let waiting = dir.path().join("dead-letters-before.ndjson");
        fs::write(&waiting, "x".repeat(1_000)).unwrap();
        fs::write(dir.path().join("notes.txt"), "x".repeat(9_000)).unwrap();
        let one = size(b"1");
        let letters = DeadLetters::open(dir.path(), 1_000 + 2 * one).unwrap();
        assert_eq!(letters.last_usage().bytes, 1_000);

        assert_eq!(
            letters.write(&[letter(b"1")]).unwrap().bytes,
            1_000 + one,
            "files next to it count"
        );
        assert_full(letters.write(&[letter(b"2"), letter(b"3")]), 1_000 + one);
        assert_eq!(records(letters.path()), ["1"], "all or none are written");
        letters.write(&[letter(b"4")]).unwrap();
        assert_eq!(letters.last_usage().bytes, 1_000 + 2 * one);
        assert_full(letters.write(&[letter(b"5")]), 1_000 + 2 * one);

        fs::remove_file(&waiting).unwrap();
        assert_eq!(letters.write(&[letter(b"6")]).unwrap().bytes, 3 * one);
        assert_eq!(records(letters.path()), ["1", "4", "6"]);
    }

    #[test]
    fn a_refusal_names_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "x".repeat(100)).unwrap();
        let letters = DeadLetters::open(dir.path(), 100).unwrap();
        let text = letters.write(&[letter(b"1")]).unwrap_err().to_string();
        let more = size(b"1") + 1;
        assert_eq!(
            text,
            format!(
                "{more} bytes more do not fit into {}, where dead letters take 100 bytes of 100 bytes; replay or \
                 move its dead-letters* files, or raise dead_letter_limit",
                dir.path().display()
            )
        );
    }

    #[test]
    fn letters_larger_than_the_limit_are_kept_in_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(dir.path(), 10).unwrap();
        let (one, two) = (size(b"1"), size(b"2"));
        let usage = letters.write(&[letter(b"1"), letter(b"2")]).unwrap();
        assert_eq!(usage.bytes, one + two);
        assert_full(letters.write(&[letter(b"3")]), one + two);
        File::create(letters.path()).unwrap();
        letters.write(&[letter(b"3")]).unwrap();
        assert_eq!(records(letters.path()), ["3"]);
    }

    #[test]
    fn a_warning_is_given_above_four_fifths() {
        for (bytes, limit, warned) in [
            (0, 100, false),
            (80, 100, false),
            (81, 100, true),
            (200, 100, true),
            (0, 1, false),
            (1, 1, true),
            (u64::MAX, u64::MAX, true),
        ] {
            let warning = Usage { bytes, limit }.warning();
            assert_eq!(warning.is_some(), warned, "{bytes} of {limit}");
        }
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(dir.path(), 9 * size(b"0") / 8).unwrap();
        let warning = letters.write(&[letter(b"0")]).unwrap().warning().unwrap();
        assert!(
            warning.contains("raise dead_letter_limit"),
            "the letter that fills the folder is the one to warn with: {warning}"
        );
    }

    #[test]
    fn letters_go_to_the_file_with_the_name_whatever_happened_to_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(dir.path(), NO_LIMIT).unwrap();
        let taken = dir.path().join("taken");
        letters.write(&[letter(b"1")]).unwrap();
        fs::rename(letters.path(), &taken).unwrap();
        letters.write(&[letter(b"2")]).unwrap();
        assert_eq!(records(&taken), ["1"]);
        assert_eq!(records(letters.path()), ["2"]);

        fs::remove_file(letters.path()).unwrap();
        letters.write(&[letter(b"3")]).unwrap();
        assert_eq!(records(letters.path()), ["3"]);

        fs::rename(&taken, letters.path()).unwrap();
        letters.write(&[letter(b"4")]).unwrap();
        assert_eq!(records(letters.path()), ["1", "4"]);
    }

    /// Takes the contents of the file and deletes it; `None` if there is no file.
    fn take(file: &Path) -> Option<Vec<u8>> {
        let taken = file.with_file_name("taken");
        fs::rename(file, &taken).ok()?;
        let text = fs::read(&taken).unwrap();
        fs::remove_file(&taken).unwrap();
        Some(text)
    }

    #[test]
    fn a_person_who_takes_the_file_while_it_is_written_finds_every_letter_that_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(dir.path(), NO_LIMIT).unwrap();
        for number in 0..50 {
            let record = format!("letter {number}.");
            if number % 2 == 0 {
                // Taken as soon as it exists, most likely before anything is in it.
                take(letters.path());
            }
            let written = AtomicBool::new(false);
            let (result, taken) = std::thread::scope(|scope| {
                let person = scope.spawn(|| {
                    while !written.load(Ordering::Acquire) {
                        if let Some(text) = take(letters.path()) {
                            return text;
                        }
                    }
                    Vec::new()
                });
                let result = letters.write(&[letter(record.as_bytes())]);
                written.store(true, Ordering::Release);
                (result, person.join().unwrap())
            });
            result.expect("taking it once keeps no letter from being written");
            let left = fs::read(letters.path()).unwrap_or_default();
            let found = [taken, left].concat();
            assert!(
                String::from_utf8_lossy(&found).contains(&record),
                "{record} was kept and is gone"
            );
        }
    }

    #[test]
    fn a_removed_folder_is_created_again_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("of/letters");
        let letters = DeadLetters::open(&dir, NO_LIMIT).unwrap();
        letters.write(&[letter(b"1")]).unwrap();
        fs::remove_dir_all(parent.path().join("of")).unwrap();
        assert_eq!(letters.usage().unwrap().bytes, 0);
        letters.write(&[letter(b"2")]).unwrap();
        assert_eq!(records(letters.path()), ["2"]);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_cannot_be_created_is_an_error_at_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        assert!(DeadLetters::open(&dir.path().join("file/inside"), NO_LIMIT).is_err());
    }

    /// The time as written in a letter: 2025-11-21T13:00:00.250Z.
    const AT: Time = Time {
        seconds: 1_763_730_000,
        nanos: 250_999_999,
    };

    #[test]
    fn the_format_of_a_letter_is_unchanged() {
        let whole = Letter {
            tag: b"app.\xff\"\\\n\x1b\x7f\x00"[..].into(),
            reason: Reason::Refused,
            detail: "InvalidArgument: \t회 \u{2028}".into(),
            request_id: Some("r-1".into()),
            target: Some("orders".into()),
            record: b"{\"a\":\"\\n\"}\n{\"b\":\"\x0c\x08/\"}"[..].into(),
        };
        let mut in_parts = Payload::default();
        for part in [&b"\xff\xfe"[..], b"\x00", b"PA", b"R1"] {
            in_parts.push(part.into());
        }
        let binary = Letter {
            reason: Reason::Malformed,
            request_id: None,
            target: None,
            record: in_parts,
            ..whole.clone()
        };
        let of_long_tag = Letter {
            tag: [b"a", "é".repeat(600).as_bytes()].concat().into(),
            detail: String::new(),
            record: Payload::default(),
            ..binary.clone()
        };
        let mut found = Vec::new();
        write(AT, &[whole, binary, of_long_tag], &mut found).unwrap();
        let head = concat!(
            r#"{"time":"2025-11-21T13:00:00.250Z","#,
            "\"tag\":\"app.\u{fffd}\\\"\\\\\\n\\u001b\u{7f}\\u0000\","
        );
        let error = "\"error\":\"InvalidArgument: \\t회 \u{2028}\",";
        let long_tag = format!("a{}\u{fffd}… (1201 bytes)", "é".repeat(511));
        let expected = [
            head,
            r#""reason":"refused","#,
            error,
            r#""request_id":"r-1","target":"orders","#,
            r#""record":"{\"a\":\"\\n\"}\n{\"b\":\"\f\b/\"}"}"#,
            "\n",
            head,
            r#""reason":"malformed","#,
            error,
            r#""record_base64":"//4AUEFSMQ=="}"#,
            "\n",
            r#"{"time":"2025-11-21T13:00:00.250Z","tag":""#,
            &long_tag,
            r#"","reason":"malformed","error":"","record":""}"#,
            "\n",
        ];
        assert_eq!(String::from_utf8(found).unwrap(), expected.concat());
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(
            tag in proptest::collection::vec(any::<u8>(), 0..40),
            detail in any::<String>(),
            request_id in any::<Option<String>>(),
            target in any::<Option<String>>(),
            text in proptest::collection::vec(any::<String>(), 0..4),
            bytes in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..40)),
        ) {
            let mut record = Payload::default();
            record.extend(text.into_iter().map(Bytes::from));
            record.extend(bytes.map(Bytes::from));
            let letter = Letter {
                tag: tag.into(),
                reason: Reason::TooDeep,
                detail,
                request_id,
                target,
                record,
            };
            let mut line = Vec::new();
            write(AT, std::slice::from_ref(&letter), &mut line).unwrap();
            prop_assert_eq!(line.pop(), Some(b'\n'));
            prop_assert!(!line.contains(&b'\n'));
            let read: Line<'_> = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(&read.time, "2025-11-21T13:00:00.250Z");
            prop_assert_eq!(&read.tag, &String::from_utf8_lossy(&letter.tag));
            prop_assert_eq!(&read.reason, "too_deep");
            prop_assert_eq!(&read.error, &letter.detail);
            prop_assert_eq!(read.request_id.as_deref(), letter.request_id.as_deref());
            prop_assert_eq!(read.target.as_deref(), letter.target.as_deref());
            prop_assert_eq!(read.bytes().unwrap(), letter.record.to_bytes());
        }
    }

    #[test]
    fn a_large_letter_is_written_block_by_block() {
        /// The largest single write.
        struct Most(usize);
        impl io::Write for Most {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.max(bytes.len());
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for byte in [b'\xff', b'\x01'] {
            let mut most = Most(0);
            write(AT, &[letter(&vec![byte; 4 * BLOCK_BYTES])], &mut most).unwrap();
            assert!(most.0 <= BLOCK_BYTES, "{byte}: {} bytes at once", most.0);
        }
    }
}
