//! What no destination will take is kept here, with its reason, for a person to look at.
//!
//! One file of JSON lines in the dead-letter folder. A letter counts as kept when the file is synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::decode::Time;
use crate::encode;
use crate::sink::Fault;
use crate::time::write_iso8601;

/// The file in the dead-letter folder.
pub const FILE: &str = "dead-letters.ndjson";

/// One thing that was not delivered and never will be as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The tag its chunk came with.
    pub tag: Vec<u8>,
    /// Why, in a few words: one of a small set, to count by.
    pub reason: &'static str,
    /// What exactly is wrong.
    pub detail: String,
    /// The destination's request id, where it had one.
    pub request_id: Option<String>,
    /// The line without its newline, or the bytes as they came.
    pub record: Vec<u8>,
}

impl Letter {
    /// A letter for what the destination refused.
    pub fn refused(tag: &[u8], fault: &Fault, record: &[u8]) -> Letter {
        Letter {
            tag: tag.to_vec(),
            reason: "refused",
            detail: format!("{}: {}", fault.code, fault.message),
            request_id: fault.request_id.clone(),
            record: record.to_vec(),
        }
    }
}

/// The dead-letter folder of one instance.
#[derive(Debug)]
pub struct DeadLetters {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl DeadLetters {
    /// Makes the folder (0700) and makes sure that a file can be written in it.
    pub fn open(dir: &Path) -> io::Result<DeadLetters> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let probe = dir.join(format!(".probe-{}", std::process::id()));
        File::create(&probe)?;
        fs::remove_file(&probe)?;
        Ok(DeadLetters {
            path: dir.join(FILE),
            file: Mutex::new(None),
        })
    }

    /// Where letters are written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends letters and syncs them. On an error none of them counts as kept.
    pub fn write(&self, letters: &[Letter]) -> io::Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        let now = now();
        for letter in letters {
            line(now, letter, &mut lines);
        }
        let mut slot = self.file.lock().expect("nothing panics with this lock");
        let mut file = match slot.take() {
            Some(file) => file,
            None => self.append()?,
        };
        // A failed file is not used again: what it holds is not known.
        file.write_all(&lines)?;
        file.sync_data()?;
        *slot = Some(file);
        Ok(())
    }

    fn append(&self) -> io::Result<File> {
        let new = !self.path.exists();
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        if new {
            let dir = self.path.parent().expect("the file stands in a folder");
            File::open(dir)?.sync_all()?;
        } else {
            // A write that a crash or a full disk cut short must not swallow the next letter.
            file.write_all(b"\n")?;
        }
        Ok(file)
    }
}

fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

fn line(now: Time, letter: &Letter, out: &mut Vec<u8>) {
    let mut field = |name: &str, value: &[u8]| {
        out.extend_from_slice(if name == "time" { b"{" } else { b"," });
        encode::string(name.as_bytes(), out);
        out.push(b':');
        encode::string(value, out);
    };
    let mut time = Vec::new();
    write_iso8601(now, &mut time);
    field("time", &time);
    field("tag", &letter.tag);
    field("reason", letter.reason.as_bytes());
    field("error", letter.detail.as_bytes());
    if let Some(id) = &letter.request_id {
        field("request_id", id.as_bytes());
    }
    if std::str::from_utf8(&letter.record).is_ok() {
        field("record", &letter.record);
    } else {
        let mut text = Vec::new();
        encode::base64(&letter.record, &mut text);
        field("record_base64", &text);
    }
    out.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn letter(record: &[u8]) -> Letter {
        Letter {
            tag: b"app\n\xff".to_vec(),
            reason: "too_large",
            detail: "a record of 1,024,001 bytes".into(),
            request_id: Some("r-1".into()),
            record: record.to_vec(),
        }
    }

    fn read(letters: &DeadLetters) -> Vec<serde_json::Value> {
        fs::read_to_string(letters.path())
            .unwrap()
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).expect("valid JSON"))
            .collect()
    }

    #[test]
    fn letters_say_what_and_why_and_keep_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(&dir.path().join("a/b")).unwrap();
        letters
            .write(&[letter("{\"k\":\"회\"}".as_bytes()), letter(b"\xff\x00")])
            .unwrap();
        let read = read(&letters);
        assert_eq!(read[0]["tag"], "app\n\u{fffd}");
        assert_eq!(read[0]["reason"], "too_large");
        assert_eq!(read[0]["request_id"], "r-1");
        assert_eq!(read[0]["record"], "{\"k\":\"회\"}");
        assert_eq!(read[1]["record_base64"], "/wA=");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(letters.path()), 0o600);
        assert_eq!(mode(letters.path().parent().unwrap()), 0o700);
    }

    #[test]
    fn a_torn_letter_does_not_swallow_the_next() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{\"time\":\"20").unwrap();
        let letters = DeadLetters::open(dir.path()).unwrap();
        letters.write(&[letter(b"x")]).unwrap();
        let text = fs::read_to_string(letters.path()).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().nth(1).unwrap().contains("\"record\":\"x\""));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_at_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        assert!(DeadLetters::open(&dir.path().join("file/inside")).is_err());
    }
}
