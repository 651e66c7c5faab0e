//! Checks of the folders that an output writes to. Test files are unnamed, or unlinked at once, so that nothing is left
//! behind, and a running instance is not disturbed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Options, Report, blocking};
use crate::codec::time::now;
use crate::config::{Config, SpoolPlace};
use crate::log::{size, span};
use crate::spool::disk::{Disk as _, LocalDisk, is_in_use};
use crate::spool::stranded::{self, ForeignFiles, waiting};

/// The bytes that are written and synced to measure the disk: about the host's largest chunk.
const PROBE_BYTES: usize = 2_000_000;
/// The number of measurements, of which the median is reported.
const PROBES: usize = 5;
/// The fsync time above which to warn, since every flush of a spooled output waits for one.
const SLOW: Duration = Duration::from_millis(500);

/// The part of `spool_limit`, in percent, from which to warn.
const NEARLY_FULL: u128 = 50;

/// The use of a folder.
#[derive(Clone, Copy)]
struct Use {
    dir_check: &'static str,
    space_check: &'static str,
    key: &'static str,
    limit_key: &'static str,
    limit: u64,
    /// A note on the contents of the folder when another one is configured.
    left_behind: &'static str,
}

/// The state of a folder.
struct Found {
    /// The folder itself, or the nearest existing ancestor.
    existing: PathBuf,
    missing: bool,
    mode: u32,
    owner: u32,
    /// The nearest parent in which others may rename and remove what is not theirs.
    exposed: Option<PathBuf>,
    medium: Option<&'static str>,
    /// The free bytes for this user.
    free: u64,
    /// The bytes of the files in it.
    used: u64,
    locked: bool,
    /// The median time of a write with its fsync.
    synced: Duration,
}

/// Checks the folders of the spool and of the dead letters. `folders`: the spool folders of previous outputs.
pub(super) async fn check(
    config: &Config,
    folders: &mut HashMap<PathBuf, String>,
    options: &Options,
    report: &mut Report<'_>,
) {
    if let Some(spool) = &config.spool
        && !foreign_files(&spool.dir, "spool_dir", options, report).await
    {
        if let Some(other) = folders.insert(spool.dir.clone(), report.output.to_owned()) {
            report.fail(
                "spool_dir",
                format!("'{}' is the spool of {other} as well", spool.dir.display()),
                "give each output a spool_dir of its own",
            );
        }
        warn_of_relative(&spool.dir, "spool_dir", "spool_dir", report);
        let usage = Use {
            dir_check: "spool_dir",
            space_check: "spool_space",
            key: "spool_dir",
            limit_key: "spool_limit",
            limit: spool.limit,
            left_behind: ", from where chunks that an earlier run left in this one are not delivered",
        };
        if let Some(found) = folder(&spool.dir, usage, options, report).await {
            let measured = format!(
                "{} MB are written and synced in {:?}",
                PROBE_BYTES / 1_000_000,
                found.synced
            );
            if found.synced > SLOW {
                report.warn(
                    "spool_fsync",
                    measured,
                    "every flush waits for an fsync: use a faster local disk",
                );
            } else {
                report.ok("spool_fsync", measured);
            }
            if !found.missing {
                contents(spool, options, report).await;
            }
        }
        if let Some(load) = options.load {
            let seconds = spool.limit / load.rate.max(1);
            report.ok(
                "spool_lasts",
                format!(
                    "an outage of about {} fills spool_limit ({}) at --rate, if lines are as large as their events",
                    span(seconds),
                    size(spool.limit)
                ),
            );
        }
    }
    let spool = config.spool.as_ref();
    if !spool.is_some_and(|spool| config.dead_letter_dir.starts_with(&spool.dir)) {
        let key = "dead_letter_dir";
        warn_of_relative(&config.dead_letter_dir, key, key, report);
    }
    let usage = Use {
        dir_check: "dead_letter_dir",
        space_check: "dead_letter_space",
        key: "dead_letter_dir",
        limit_key: "dead_letter_limit",
        limit: config.dead_letter_limit,
        left_behind: "",
    };
    if !foreign_files(&config.dead_letter_dir, "dead_letter_dir", options, report).await {
        folder(&config.dead_letter_dir, usage, options, report).await;
    }
}

/// Reports files that this user may not use and that belong to another one. Returns whether there are any.
async fn foreign_files(
    dir: &Path,
    check: &'static str,
    options: &Options,
    report: &mut Report<'_>,
) -> bool {
    let path = dir.to_owned();
    let found = blocking(options, move || ForeignFiles::find(&path)).await;
    let Ok(Some(foreign)) = found else {
        return false;
    };
    report.fail(check, foreign.problem(), foreign.remedy());
    true
}

/// Reports what waits in a spool.
async fn contents(place: &SpoolPlace, options: &Options, report: &mut Report<'_>) {
    const CHECK: &str = "spool_content";
    let dir = place.dir.clone();
    let read = blocking(options, move || waiting(&LocalDisk::look(&dir)?, u64::MAX)).await;
    let found = match read {
        Ok(found) => found,
        // It is too large to be read in time.
        Err(_) => {
            let dir = place.dir.clone();
            match blocking(options, move || waiting(&LocalDisk::look(&dir)?, 0)).await {
                Ok(found) => found,
                Err(timeout) => return report.skip(CHECK, timeout),
            }
        }
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => return report.skip(CHECK, format!("cannot be read: {error}")),
    };
    if found.is_empty() {
        return report.ok(CHECK, "nothing waits to be delivered");
    }
    let age = found.oldest.map(|oldest| {
        now()
            .seconds
            .saturating_sub(oldest.seconds)
            .max(0)
            .unsigned_abs()
    });
    let percent = u128::from(found.bytes) * 100 / u128::from(place.limit.max(1));
    let mut message = format!(
        "{} wait to be delivered, {percent}% of spool_limit ({})",
        found.words(),
        size(place.limit)
    );
    if let Some(age) = age {
        message += &format!(", the oldest for {}", span(age));
    }
    if let Some(load) = options.load {
        let left = place.limit.saturating_sub(found.bytes) / load.rate.max(1);
        message += &format!("; at --rate, the rest lasts for {}", span(left));
    }
    if percent >= NEARLY_FULL {
        report.warn(
            CHECK,
            message,
            "bring the destination back: when the spool is full, Fluent Bit's inputs pause; ferry spool inspect --config shows \
             what waits for what",
        );
    } else {
        report.ok(CHECK, message);
    }
}

/// Reports spools below `state` that none of the outputs uses, whose spools are `own`.
pub(super) async fn stranded(
    state: &Path,
    own: &[PathBuf],
    options: &Options,
    report: &mut Report<'_>,
) {
    const CHECK: &str = "other_spools";
    let parent = state.to_owned();
    let found = blocking(options, move || stranded::find(&parent, &|| false)).await;
    let Ok(Ok(found)) = found else {
        return;
    };
    for it in found.stranded.iter().filter(|it| !own.contains(&it.dir)) {
        report.warn(
            CHECK,
            format!(
                "{} of an earlier run are in '{}', which no output of this configuration uses",
                it.waiting.words(),
                it.dir.display()
            ),
            it.remedy(),
        );
    }
    for dir in found.unreadable.iter().filter(|dir| !own.contains(dir)) {
        report.warn(
            CHECK,
            format!("'{}' cannot be read: it may hold a spool", dir.display()),
            "run this as the user that Fluent Bit runs as; if the folder is another user's, see chown",
        );
    }
}

/// Checks a local folder that objects are written to.
pub(super) async fn destination(dir: &Path, options: &Options, report: &mut Report<'_>) {
    warn_of_relative(dir, "folder", "url", report);
    let usage = Use {
        dir_check: "folder",
        space_check: "folder_space",
        key: "url",
        limit_key: "",
        limit: 0,
        left_behind: "",
    };
    folder(dir, usage, options, report).await;
}

/// Warns of a relative path, which depends on the working directory of the host.
fn warn_of_relative(dir: &Path, check: &'static str, key: &str, report: &mut Report<'_>) {
    if dir.is_absolute() {
        return;
    }
    let here = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    report.warn(
        check,
        format!(
            "'{}' depends on the folder that Fluent Bit is started in; from here it is '{}'",
            dir.display(),
            here.display()
        ),
        match key {
            "url" => "write the whole path, with three slashes: file:///folder".to_owned(),
            key => format!("write the whole path in {key}"),
        },
    );
}

async fn folder(
    dir: &Path,
    usage: Use,
    options: &Options,
    report: &mut Report<'_>,
) -> Option<Found> {
    let shown = dir.display();
    let path = dir.to_owned();
    let found = match blocking(options, move || inspect(&path)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            report.fail(
                usage.dir_check,
                format!("'{shown}' cannot be written to: {error}"),
                format!(
                    "create it for the user that Fluent Bit runs as: install -d -m 700 -o USER '{shown}'; or set {} to \
                     another folder{}",
                    usage.key, usage.left_behind
                ),
            );
            return None;
        }
        Err(timeout) => {
            report.fail(
                usage.dir_check,
                format!("'{shown}': {timeout}"),
                "check the disk",
            );
            return None;
        }
    };
    report_folder(dir, usage, &found, report);
    report_space(usage, &found, report);
    Some(found)
}

fn report_folder(dir: &Path, usage: Use, found: &Found, report: &mut Report<'_>) {
    let shown = dir.display();
    let me = rustix::process::geteuid().as_raw();
    if let Some(medium) = found.medium {
        report.warn(
            usage.dir_check,
            format!("'{shown}' is on {medium}"),
            "use a local disk, where fsync protects from a power failure",
        );
    } else if found.missing {
        report.ok(
            usage.dir_check,
            format!(
                "'{shown}' does not exist yet and can be created in '{}'",
                found.existing.display()
            ),
        );
    } else if found.locked {
        report.warn(
            usage.dir_check,
            format!("'{shown}' is in use by another process"),
            "none if that is Fluent Bit with this output; otherwise use another folder",
        );
    } else if usage.limit > 0 && found.mode & 0o022 != 0 {
        report.warn(
            usage.dir_check,
            format!(
                "'{shown}' has mode {:03o}: other users may write to it, and remove or replace what was accepted",
                found.mode & 0o777
            ),
            format!("chmod 700 '{shown}'"),
        );
    } else if let Some(parent) = found.exposed.as_deref().filter(|_| usage.limit > 0) {
        report.warn(
            usage.dir_check,
            format!(
                "other users may write to '{}', and so move '{shown}' away or put another folder in its place",
                parent.display()
            ),
            format!("chmod o-w '{}', or use a folder below one that only its owner may write to", parent.display()),
        );
    } else if usage.limit > 0 && found.mode & 0o077 != 0 {
        report.warn(
            usage.dir_check,
            format!(
                "'{shown}' has mode {:03o}: other users may read the logs in it",
                found.mode & 0o777
            ),
            format!("chmod 700 '{shown}'"),
        );
    } else if found.owner != me {
        report.warn(
            usage.dir_check,
            format!(
                "'{shown}' belongs to user {}, and this check runs as {me}",
                found.owner
            ),
            "run it as the user that Fluent Bit runs as",
        );
    } else {
        report.ok(usage.dir_check, format!("'{shown}' can be written to"));
    }
}

fn report_space(usage: Use, found: &Found, report: &mut Report<'_>) {
    let needed = usage.limit.saturating_sub(found.used);
    let free = megabytes(found.free);
    if found.free == 0 {
        report.fail(usage.space_check, "the disk is full", "free some space");
    } else if found.free < needed {
        report.warn(
            usage.space_check,
            format!(
                "{free} are free, less than the {} that {} still allows",
                megabytes(needed),
                usage.limit_key
            ),
            format!(
                "lower {}, or free some space: the disk is full before the limit is reached",
                usage.limit_key
            ),
        );
    } else {
        report.ok(usage.space_check, format!("{free} are free"));
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}

fn inspect(dir: &Path) -> io::Result<Found> {
    let mut existing = std::path::absolute(dir)?;
    let mut missing = false;
    let metadata = loop {
        match existing.metadata() {
            Ok(metadata) => break metadata,
            Err(error) if error.kind() == ErrorKind::NotFound && existing.pop() => missing = true,
            Err(error) => return Err(error),
        }
    };
    if !metadata.is_dir() {
        return Err(io::Error::new(
            ErrorKind::NotADirectory,
            format!("'{}' is a file", existing.display()),
        ));
    }
    let mut times = Vec::with_capacity(PROBES);
    let mut file = unnamed_file(&existing)?;
    let bytes = vec![b'.'; PROBE_BYTES];
    for _ in 0..PROBES {
        let start = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    drop(file);
    times.sort();
    let space = rustix::fs::statvfs(&existing)?;
    let kind = rustix::fs::statfs(&existing)?;
    let used = match missing {
        true => 0,
        false => LocalDisk::look(&existing)?
            .list()?
            .iter()
            .map(|(_, bytes)| bytes)
            .sum(),
    };
    Ok(Found {
        locked: !missing && is_in_use(&existing)?,
        missing,
        exposed: exposed(&existing),
        mode: metadata.mode(),
        owner: metadata.uid(),
        medium: medium(kind.f_type),
        free: space.f_bavail.saturating_mul(space.f_frsize),
        used,
        synced: times[PROBES / 2],
        existing,
    })
}

/// Returns the nearest parent of a folder in which everybody may rename and remove what is not theirs.
fn exposed(dir: &Path) -> Option<PathBuf> {
    const WRITABLE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let mut parents = dir.ancestors().skip(1);
    let is_exposed = |parent: &&Path| {
        let mode = parent.metadata().map_or(0, |found| found.mode());
        mode & WRITABLE != 0 && mode & STICKY == 0
    };
    parents.find(is_exposed).map(Path::to_owned)
}

/// Creates a file without a name in `dir`.
fn unnamed_file(dir: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(
        dir,
        OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC,
        mode,
    ) {
        Ok(file) => Ok(File::from(file)),
        // Not supported by this file system.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let path = dir.join(format!(".ferry-check-{}", std::process::id()));
            let file = File::create_new(&path)?;
            std::fs::remove_file(path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns a description of a file system that is not a local disk, by the magic numbers of statfs(2).
fn medium(kind: rustix::fs::FsWord) -> Option<&'static str> {
    match kind {
        0x6969 => Some("NFS, where locks and fsync depend on the server"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => {
            Some("SMB, where locks and fsync depend on the server")
        }
        0x0102_1994 => Some("tmpfs, which is memory: a restart of the machine empties it"),
        0x8584_58f6 => Some("ramfs, which is memory: a restart of the machine empties it"),
        _ => None,
    }
}
