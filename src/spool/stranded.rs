//! What waits in spools that nothing delivers: those of earlier runs whose destination, or whose name, has changed since.
//!
//! They are looked for while other outputs start and run, so this holds no lock for longer than a moment, and reads a
//! bounded number of bytes.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::Seq;
use super::disk::{Disk, LocalDisk, is_in_use};
use super::frame::segment_first;
use super::manifest;
use super::scan::{Check, survey};
use crate::ids::Time;
use crate::log::size;

/// The maximum number of entries of a parent folder that are looked at.
const MAX_FOLDERS: usize = 1_000;
/// The maximum size of the segments of a spool that is read rather than estimated: more than one segment. A larger spool
/// is not empty: finished segments are removed.
const READ_BYTES: u64 = 40_000_000;
/// The maximum number of bytes read of all spools together.
const READ_BYTES_IN_ALL: u64 = 200_000_000;

/// The undelivered contents of a spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The number of chunks that are not delivered, or only in part.
    pub chunks: u64,
    /// The size of their events, in bytes; if it is an estimate, that of the files with such chunks.
    pub bytes: u64,
    /// The arrival of the oldest of them; `None` if it is not known.
    pub oldest: Option<Time>,
    /// Whether it was read from the files rather than estimated from the manifest.
    pub exact: bool,
}

impl Waiting {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.chunks == 0 && self.bytes == 0
    }

    /// Returns it in words, such as `12 chunks (3.40 MB)`.
    pub fn words(&self) -> String {
        let about = if self.exact { "" } else { "about " };
        let chunks = match self.chunks {
            1 => "1 chunk".to_owned(),
            chunks => format!("{chunks} chunks"),
        };
        format!("{about}{chunks} ({})", size(self.bytes))
    }
}

/// Returns what waits in a spool, whether or not it is running. It is an estimate if the segments have more than `budget`
/// bytes.
pub fn waiting(disk: &dyn Disk, budget: u64) -> io::Result<Waiting> {
    let segments = segments(disk)?;
    if segments.iter().map(|(_, bytes)| bytes).sum::<u64>() > budget {
        return estimate(disk, &segments);
    }
    let survey = survey(disk, Check::LastSegment)?;
    let mut waiting = Waiting {
        exact: true,
        ..Waiting::default()
    };
    for (chunk, place) in survey.chunks() {
        if survey.is_finished(chunk) {
            continue;
        }
        waiting.chunks += 1;
        waiting.bytes += u64::from(place.events_len());
        let oldest = waiting.oldest.get_or_insert(place.arrived);
        *oldest = (*oldest).min(place.arrived);
    }
    Ok(waiting)
}

/// Returns the segments with the sizes of their files.
fn segments(disk: &dyn Disk) -> io::Result<Vec<(Seq, u64)>> {
    let files = disk.list()?.into_iter();
    Ok(files
        .filter_map(|(name, bytes)| Some((segment_first(&name)?, bytes)))
        .collect())
}

/// Estimates what waits from the manifest, which counts the unfinished chunks of each segment.
fn estimate(disk: &dyn Disk, segments: &[(Seq, u64)]) -> io::Result<Waiting> {
    let manifests = manifest::read(disk)?;
    let manifest = manifest::newest(&manifests, None).map(|(_, manifest)| manifest);
    let mut waiting = Waiting::default();
    for (first, bytes) in segments {
        let entry = manifest.and_then(|manifest| manifest.segments.get(first));
        let may_hold_chunks = match entry {
            Some(entry) => entry.may_hold_chunks(),
            None => manifest.is_none_or(|manifest| !manifest.is_finished(*first)),
        };
        waiting.chunks += entry.map_or(0, |entry| entry.unfinished);
        waiting.bytes += if may_hold_chunks { *bytes } else { 0 };
    }
    Ok(waiting)
}

/// A spool with undelivered chunks that no process has locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// Its folder.
    pub dir: PathBuf,
    /// What waits in it.
    pub waiting: Waiting,
}

impl Stranded {
    /// Returns what to do about it.
    pub fn remedy(&self) -> String {
        format!(
            "deliver it with: ferry spool deliver {} -c FILE, where FILE is Fluent Bit's configuration",
            self.dir.display()
        )
    }
}

/// What was found in a parent folder.
#[derive(Debug, Default)]
pub struct Found {
    /// The spools that nothing delivers, by name.
    pub stranded: Vec<Stranded>,
    /// The folders that this user may not read.
    pub unreadable: Vec<PathBuf>,
}

/// Finds the spools in the folders of `parent` that have undelivered chunks and are not in use. `is_over` is asked between
/// two of them, and ends the search. A parent that does not exist has none.
pub fn find(parent: &Path, is_over: &dyn Fn() -> bool) -> io::Result<Found> {
    let mut found = Found::default();
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    let entries = entries.take(MAX_FOLDERS).flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    folders.sort();
    let mut budget = READ_BYTES_IN_ALL;
    for dir in folders {
        if is_over() {
            break;
        }
        match examine(&dir, &mut budget) {
            Ok(Some(waiting)) => found.stranded.push(Stranded { dir, waiting }),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => found.unreadable.push(dir),
            // Removed meanwhile, or no spool that could be delivered.
            Err(_) => {}
        }
    }
    Ok(found)
}

/// Returns what waits in a folder, if that is a spool that is not in use and not empty.
fn examine(dir: &Path, budget: &mut u64) -> io::Result<Option<Waiting>> {
    if !fs::metadata(dir)?.is_dir() || is_in_use(dir)? {
        return Ok(None);
    }
    let disk = LocalDisk::look(dir)?;
    let bytes: u64 = segments(&disk)?.iter().map(|(_, bytes)| bytes).sum();
    let read = READ_BYTES.min(*budget);
    if bytes <= read {
        *budget -= bytes;
    }
    let waiting = waiting(&disk, read)?;
    // An instance may have started meanwhile.
    Ok((!waiting.is_empty() && !is_in_use(dir)?).then_some(waiting))
}

/// Files of a spool that this process may not use, since they belong to another user: a container's image was run as
/// root before, or a copy was made by an administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignFiles {
    /// The folder of the spool.
    dir: PathBuf,
    /// The first of them: the folder itself, or a file in it.
    name: PathBuf,
    /// The user that owns it.
    owner: u32,
    /// The user of this process.
    user: u32,
    /// The size of all segments, in bytes; `None` if the folder cannot be read.
    bytes: Option<u64>,
}

impl ForeignFiles {
    /// Finds those of a spool in `dir`. `None`: there are none.
    pub fn find(dir: &Path) -> Option<ForeignFiles> {
        use rustix::fs::{Access, access};
        let user = rustix::process::geteuid().as_raw();
        let usable = |path: &Path, is_dir: bool| {
            let wanted = Access::READ_OK | Access::WRITE_OK;
            let wanted = if is_dir {
                wanted | Access::EXEC_OK
            } else {
                wanted
            };
            access(path, wanted).is_ok()
        };
        ForeignFiles::find_as(dir, user, &usable)
    }

    fn find_as(
        dir: &Path,
        user: u32,
        usable: &dyn Fn(&Path, bool) -> bool,
    ) -> Option<ForeignFiles> {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs::metadata(dir).ok()?;
        let foreign = |name: &Path, owner, bytes| ForeignFiles {
            dir: dir.to_owned(),
            name: name.to_owned(),
            owner,
            user,
            bytes,
        };
        let mut files: Vec<(PathBuf, fs::Metadata)> = Vec::new();
        let listed = fs::read_dir(dir).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                files.push((entry.path(), entry.metadata()?));
            }
            Ok(())
        });
        let bytes = files.iter().filter(|(path, _)| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| segment_first(name).is_some())
        });
        let bytes = bytes.map(|(_, found)| found.len()).sum();
        let bytes = listed.is_ok().then_some(bytes);
        if found.uid() != user && !usable(dir, true) {
            return Some(foreign(dir, found.uid(), bytes));
        }
        files.sort_by(|(one, _), (other, _)| one.cmp(other));
        let first = files
            .iter()
            .find(|(path, found)| found.uid() != user && !usable(path, found.is_dir()));
        first.map(|(path, found)| foreign(path, found.uid(), bytes))
    }

    /// Returns what is wrong.
    pub fn problem(&self) -> String {
        let holds = match self.bytes {
            Some(bytes) => format!("its segments hold {}", size(bytes)),
            None => "what it holds cannot be read".to_owned(),
        };
        format!(
            "'{}' belongs to user {}, and this process runs as user {}; {holds} that may not be delivered yet",
            self.name.display(),
            self.owner,
            self.user
        )
    }

    /// Returns the command that mends it. Another folder would leave behind what is in this one.
    pub fn remedy(&self) -> String {
        let Self { dir, user, .. } = self;
        format!(
            "as root, give the folder and everything in it to that user: chown -R {user} '{}'. Do not set another folder: \
             the chunks in this one would stay behind",
            dir.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::Instant;

    use super::super::{Chunk, Options, Spool};
    use super::*;
    use crate::ids::chunk_id;

    /// Fills a spool with chunks of 100 bytes, and leaves it as a stopped host does.
    async fn fill(dir: &Path, chunks: u32, segment_bytes: Option<u64>) {
        let spool = open(dir, segment_bytes);
        for number in 0..chunks {
            let data = Bytes::from(format!("{number:0100}"));
            let chunk = Chunk {
                id: chunk_id(b"app", &data),
                tag: b"app",
                data,
                arrived: Time {
                    seconds: 100 + i64::from(number),
                    nanos: 0,
                },
            };
            let deadline = Instant::now() + Duration::from_secs(60);
            spool.append(chunk, deadline).await.expect("kept");
        }
        spool.close();
    }

    fn open(dir: &Path, segment_bytes: Option<u64>) -> Arc<Spool> {
        let options = Options {
            limit: 100_000_000,
            segment_bytes,
        };
        Spool::open(Arc::new(LocalDisk::open(dir).unwrap()), options)
            .unwrap()
            .0
    }

    fn names(found: &Found) -> Vec<&str> {
        let names = found.stranded.iter().map(|it| it.dir.file_name().unwrap());
        names.map(|name| name.to_str().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_spool_with_undelivered_chunks_that_nobody_uses_is_found_with_what_waits_in_it() {
        let state = tempfile::tempdir().unwrap();
        let dir = |name: &str| state.path().join(name);
        fill(&dir("left"), 3, None).await;
        fill(&dir("used"), 3, None).await;
        fill(&dir("empty"), 0, None).await;
        fs::create_dir(dir("other")).unwrap();
        fs::write(dir("other").join("lock"), "").unwrap();
        fs::write(dir("file"), "").unwrap();
        let used = open(&dir("used"), None);

        let found = find(state.path(), &|| false).unwrap();
        assert_eq!(names(&found), ["left"]);
        let waiting = found.stranded[0].waiting;
        let expected = Waiting {
            chunks: 3,
            bytes: 300,
            oldest: Some(Time {
                seconds: 100,
                nanos: 0,
            }),
            exact: true,
        };
        assert_eq!(waiting, expected);
        assert_eq!(waiting.words(), "3 chunks (300 bytes)");
        assert!(
            found.stranded[0]
                .remedy()
                .contains(&format!("ferry spool deliver {}", dir("left").display()))
        );

        used.close();
        drop(used);
        assert_eq!(
            names(&find(state.path(), &|| false).unwrap()),
            ["left", "used"]
        );
        assert_eq!(names(&find(state.path(), &|| true).unwrap()), [""; 0]);
        assert!(
            find(&dir("nowhere"), &|| false)
                .unwrap()
                .stranded
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_large_spool_is_not_read_but_estimated_by_its_manifest() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), 100, Some(2_000)).await;
        let disk = LocalDisk::look(dir.path()).unwrap();
        let estimate = waiting(&disk, 0).unwrap();
        assert_eq!(
            (estimate.chunks, estimate.oldest, estimate.exact),
            (100, None, false)
        );
        let exact = waiting(&disk, u64::MAX).unwrap();
        assert_eq!(
            (exact.chunks, exact.bytes, exact.exact),
            (100, 10_000, true)
        );
        assert!(estimate.bytes >= exact.bytes);
        // Without a manifest every file counts.
        for name in manifest::NAMES {
            let _ = fs::remove_file(dir.path().join(name));
        }
        let unknown = waiting(&disk, 0).unwrap();
        assert!(unknown.bytes >= exact.bytes, "{unknown:?}");
    }

    #[test]
    fn files_of_another_user_are_named_with_the_command_that_gives_them_back() {
        let dir = tempfile::tempdir().unwrap();
        let segment = dir.path().join("00000000000000000001.seg");
        fs::write(&segment, [0; 1_234]).unwrap();
        fs::write(dir.path().join("lock"), "").unwrap();
        let me = rustix::process::geteuid().as_raw();
        let user = me + 1;
        let find = |user, usable: &dyn Fn(&Path, bool) -> bool| {
            ForeignFiles::find_as(dir.path(), user, usable)
        };
        // What may be used does not matter, whoever owns it.
        assert_eq!(find(user, &|_, _| true), None);
        // A user's own files have another fault.
        assert_eq!(find(me, &|_, _| false), None);
        let only_the_segment = |path: &Path, _| path != segment;
        let found = find(user, &only_the_segment).unwrap();
        let problem = found.problem();
        assert!(
            problem.contains(&format!(
                "1.seg' belongs to user {me}, and this process runs as user {user}"
            )),
            "{problem}"
        );
        assert!(problem.contains("1.23 KB"), "{problem}");
        assert!(
            found
                .remedy()
                .contains(&format!("chown -R {user} '{}'", dir.path().display()))
        );
        let folder = find(user, &|_, is_dir| !is_dir).unwrap();
        assert!(
            folder
                .problem()
                .starts_with(&format!("'{}' belongs", dir.path().display()))
        );
    }
}
