//! The folder that an output has by default: its name, which may be that of an earlier version, and the file in it that
//! says whose it is.
//!
//! Earlier versions named it after the bucket alone, so two outputs into one bucket had the same. What such a version
//! left is used where it is, by the first output that finds it; from then on it belongs to that output.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::sanitize_stream_name;
use crate::codec::json::hex;
use crate::spool::disk::LocalDisk;
use crate::spool::scan::is_spool;

/// The default parent of the instances' folders for persistent state.
pub(super) const STATE_DIR: &str = "/var/lib/ferry";
/// The folder of dead letters in an instance's folder.
pub(super) const DEAD_LETTERS: &str = "dead-letters";
/// The file with the name of the output that a folder belongs to.
const OWNER: &str = "owner";
/// The start of that file; the name follows.
const OWNER_PREFIX: &str = "ferry output 1 ";
/// The maximum number of bytes read of it.
const MAX_OWNER_BYTES: u64 = 256;
/// The digits that tell names apart that would otherwise be the same.
const HASH_DIGITS: usize = 8;

/// The names of an output without `instance`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// The name of this version.
    pub(super) own: String,
    /// The name if the folder of the first one belongs to another output.
    pub(super) other: String,
    /// The name of earlier versions, if it was another one.
    pub(super) former: Option<String>,
}

impl Names {
    /// The names of an output whose address is `place`, for the objects below `prefix` and in the folders of `path`, if
    /// that is set.
    pub(super) fn of(place: &str, prefix: &str, path: Option<&str>) -> Names {
        let plain =
            |text: &str| sanitize_stream_name(&text.replace(":///", "-").replace("://", "-"));
        let former = plain(place);
        let prefix = prefix.trim_matches('/');
        let hashed = |text: &str| {
            let mut hasher = blake3::Hasher::new();
            for word in [place, prefix, path.unwrap_or_default()] {
                hasher.update(&(word.len() as u64).to_le_bytes());
                hasher.update(word.as_bytes());
            }
            let hash = hex(hasher.finalize().as_bytes());
            let mut name = plain(text);
            name.truncate(super::firehose::MAX_STREAM_NAME - HASH_DIGITS - 1);
            format!("{name}-{}", &hash[..HASH_DIGITS])
        };
        // Slashes are not in names: without the hash, a-b/c and a/b-c would be the same.
        let other = match prefix {
            "" => hashed(place),
            prefix => hashed(&format!("{place}-{prefix}")),
        };
        match prefix.is_empty() && path.is_none() {
            true => Names {
                own: former,
                other,
                former: None,
            },
            false => Names {
                own: other.clone(),
                other,
                former: Some(former),
            },
        }
    }

    /// Chooses the name by what is in `state`, the parent of all folders.
    pub(super) fn choose(self, state: &Path) -> String {
        if exists(&state.join(&self.own)) {
            return match belongs_to(&state.join(&self.own), &self) {
                true => self.own,
                false => self.other,
            };
        }
        match &self.former {
            Some(former) if is_left(&state.join(former), &self) => former.clone(),
            _ => self.own,
        }
    }
}

fn exists(path: &Path) -> bool {
    // One that cannot be accessed is used, so that the start fails and names the cause.
    path.try_exists().unwrap_or(true)
}

/// Whether an earlier version left something in its folder that belongs to no other output.
fn is_left(dir: &Path, names: &Names) -> bool {
    let holds = || {
        let disk = LocalDisk::look(dir)?;
        io::Result::Ok(is_spool(&disk)? || dir.join(DEAD_LETTERS).try_exists()?)
    };
    exists(dir) && holds().unwrap_or(true) && belongs_to(dir, names)
}

/// Whether a folder belongs to no output, or to this one.
fn belongs_to(dir: &Path, names: &Names) -> bool {
    owner(dir).is_none_or(|owner| owner == names.own)
}

/// Returns the name of the output that a folder belongs to. A file that a power cut has torn names none.
fn owner(dir: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(dir.join(OWNER)).ok()?;
    file.take(MAX_OWNER_BYTES).read_to_string(&mut text).ok()?;
    let name = text.strip_prefix(OWNER_PREFIX)?.strip_suffix('\n')?;
    Some(name.to_owned())
}

/// Writes into a folder that it belongs to the output `name`, unless it says so already.
pub(super) fn claim(dir: &Path, name: &str) -> io::Result<()> {
    if owner(dir).as_deref() == Some(name) {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(dir.join(OWNER))?;
    file.write_all(format!("{OWNER_PREFIX}{name}\n").as_bytes())?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(place: &str, prefix: &str, path: Option<&str>) -> Names {
        Names::of(place, prefix, path)
    }

    /// Starts an output as far as its folder is concerned, and returns that.
    fn start(state: &Path, names: &Names) -> String {
        let name = names.clone().choose(state);
        fs::create_dir_all(state.join(&name)).unwrap();
        fs::write(state.join(&name).join("manifest.0"), "").unwrap();
        claim(&state.join(&name), &names.own).unwrap();
        name
    }

    #[test]
    fn outputs_into_one_bucket_have_names_of_their_own() {
        let outputs = [
            names("s3://logs", "", None),
            names("s3://logs", "app", None),
            names("s3://logs", "app/x", None),
            names("s3://logs", "app-x", None),
            names("s3://logs-app", "x", None),
            names("s3://logs", "", Some("app")),
            names("s3://logs", "", Some("web")),
            names("s3://logs", "app", Some("app")),
            names("gs://logs", "app", None),
            names("s3://logs", &"long/".repeat(30), None),
            names("s3://logs", &("long/".repeat(30) + "x"), None),
        ];
        for (at, one) in outputs.iter().enumerate() {
            assert!(
                outputs[..at].iter().all(|other| other.own != one.own),
                "{one:?}"
            );
            assert_eq!(sanitize_stream_name(&one.own), one.own);
        }
        // Nothing changes where a name says everything.
        assert_eq!(outputs[0].own, "s3-logs");
        assert_eq!(outputs[0].former, None);
        assert!(
            outputs[1].own.starts_with("s3-logs-app-"),
            "{:?}",
            outputs[1]
        );
        assert_eq!(outputs[1].former.as_deref(), Some("s3-logs"));
        // The same objects, however it is written.
        assert_eq!(names("s3://logs", "/app/", None), outputs[1]);
    }

    #[test]
    fn what_an_earlier_version_left_goes_to_the_first_output_that_finds_it_and_stays_there() {
        let state = tempfile::tempdir().unwrap();
        let old = state.path().join("s3-logs");
        fs::create_dir(&old).unwrap();
        fs::write(old.join("00000000000000000001.seg"), "chunks").unwrap();
        let (one, two) = (
            names("s3://logs", "one", None),
            names("s3://logs", "two", None),
        );
        assert_eq!(start(state.path(), &one), "s3-logs");
        assert_eq!(start(state.path(), &two), two.own);
        // In whatever order they start later.
        assert_eq!(start(state.path(), &two), two.own);
        assert_eq!(start(state.path(), &one), "s3-logs");
        // An output into the bucket itself gets a folder of its own, too.
        let plain = names("s3://logs", "", None);
        let own = start(state.path(), &plain);
        assert_ne!(own, "s3-logs");
        assert_eq!(start(state.path(), &plain), own);
    }

    #[test]
    fn another_outputs_folder_is_not_taken_for_what_an_earlier_version_left() {
        let state = tempfile::tempdir().unwrap();
        let plain = names("s3://logs", "", None);
        assert_eq!(start(state.path(), &plain), "s3-logs");
        let one = names("s3://logs", "one", None);
        assert_eq!(start(state.path(), &one), one.own);
    }

    #[test]
    fn a_folder_without_anything_of_an_output_is_not_used() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("s3-logs")).unwrap();
        fs::write(state.path().join("s3-logs/notes.txt"), "").unwrap();
        let one = names("s3://logs", "one", None);
        assert_eq!(one.clone().choose(state.path()), one.own);
        // Dead letters are something.
        fs::create_dir(state.path().join("s3-logs/dead-letters")).unwrap();
        assert_eq!(one.choose(state.path()), "s3-logs");
    }

    #[test]
    fn a_torn_owner_is_none() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path(), "s3-logs").unwrap();
        let whole = fs::read(dir.path().join(OWNER)).unwrap();
        assert_eq!(owner(dir.path()).as_deref(), Some("s3-logs"));
        for end in 0..whole.len() {
            fs::write(dir.path().join(OWNER), &whole[..end]).unwrap();
            assert_eq!(owner(dir.path()), None, "{end}");
        }
        fs::write(dir.path().join(OWNER), b"\xff\xfe").unwrap();
        assert_eq!(owner(dir.path()), None);
        claim(dir.path(), "s3-logs").unwrap();
        assert_eq!(owner(dir.path()).as_deref(), Some("s3-logs"));
    }
}
