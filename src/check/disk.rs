//! The folders that an output writes to. What is tried there has no name, or loses it at once, so that
//! nothing is left behind and nothing disturbs an instance that is at work.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Options, Report, blocking};
use crate::config::Config;
use crate::spool::disk::{Disk as _, LocalDisk};

/// What is written and synced to measure the disk: about the largest chunk that the host hands over.
const PROBE_BYTES: usize = 2_000_000;
/// How often; the median counts.
const PROBES: usize = 5;
/// Above this an fsync is worth a word: every flush of a spooled output waits for one.
const SLOW: Duration = Duration::from_millis(500);

/// What a folder is to an output.
#[derive(Clone, Copy)]
struct Use {
    dir_check: &'static str,
    space_check: &'static str,
    key: &'static str,
    limit_key: &'static str,
    limit: u64,
    /// What becomes of what is in it where another folder is named.
    left_behind: &'static str,
}

/// What was found in a folder.
struct Found {
    /// The folder itself, or the nearest one above it that is there.
    stands: PathBuf,
    missing: bool,
    mode: u32,
    owner: u32,
    medium: Option<&'static str>,
    /// Bytes that this user may still write.
    free: u64,
    /// Bytes of the files in it.
    used: u64,
    locked: bool,
    /// The median time of a write with its fsync.
    synced: Duration,
}

/// Checks the spool's folder and that of the dead letters. `folders` are those of the outputs before.
pub(super) async fn check(
    config: &Config,
    folders: &mut HashMap<PathBuf, String>,
    options: &Options,
    report: &mut Report<'_>,
) {
    if let Some(spool) = &config.spool {
        if let Some(other) = folders.insert(spool.dir.clone(), report.output.to_owned()) {
            report.fail(
                "spool_dir",
                format!("'{}' is the spool of {other} as well", spool.dir.display()),
                "give each output a spool_dir of its own",
            );
        }
        warn_of_relative(&spool.dir, "spool_dir", "spool_dir", report);
        let what = Use {
            dir_check: "spool_dir",
            space_check: "spool_space",
            key: "spool_dir",
            limit_key: "spool_limit",
            limit: spool.limit,
            left_behind: ", where what an earlier run left in this one is not delivered from",
        };
        if let Some(found) = folder(&spool.dir, what, options, report).await {
            let took = format!(
                "{} MB are written and synced in {:?}",
                PROBE_BYTES / 1_000_000,
                found.synced
            );
            if found.synced > SLOW {
                report.warn(
                    "spool_fsync",
                    took,
                    "every flush waits for an fsync: use a faster local disk",
                );
            } else {
                report.ok("spool_fsync", took);
            }
        }
    }
    let spool = config.spool.as_ref();
    if !spool.is_some_and(|spool| config.dead_letter_dir.starts_with(&spool.dir)) {
        let key = "dead_letter_dir";
        warn_of_relative(&config.dead_letter_dir, key, key, report);
    }
    let what = Use {
        dir_check: "dead_letter_dir",
        space_check: "dead_letter_space",
        key: "dead_letter_dir",
        limit_key: "dead_letter_limit",
        limit: config.dead_letter_limit,
        left_behind: "",
    };
    folder(&config.dead_letter_dir, what, options, report).await;
}

/// Checks a folder of this machine that objects are written to.
pub(super) async fn destination(dir: &Path, options: &Options, report: &mut Report<'_>) {
    warn_of_relative(dir, "folder", "url", report);
    let what = Use {
        dir_check: "folder",
        space_check: "folder_space",
        key: "url",
        limit_key: "",
        limit: 0,
        left_behind: "",
    };
    folder(dir, what, options, report).await;
}

/// A folder that is named from where the host is started is another one where that changes.
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
    what: Use,
    options: &Options,
    report: &mut Report<'_>,
) -> Option<Found> {
    let shown = dir.display();
    let there = dir.to_owned();
    let found = match blocking(options, move || look(&there)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            report.fail(
                what.dir_check,
                format!("'{shown}' cannot be written to: {error}"),
                format!(
                    "make it for the user that Fluent Bit runs as: install -d -m 700 -o USER '{shown}'; or name another folder in {}{}",
                    what.key, what.left_behind
                ),
            );
            return None;
        }
        Err(late) => {
            report.fail(
                what.dir_check,
                format!("'{shown}': {late}"),
                "look after the disk",
            );
            return None;
        }
    };
    say_folder(dir, what, &found, report);
    say_space(what, &found, report);
    Some(found)
}

fn say_folder(dir: &Path, what: Use, found: &Found, report: &mut Report<'_>) {
    let shown = dir.display();
    let me = rustix::process::geteuid().as_raw();
    if let Some(medium) = found.medium {
        report.warn(
            what.dir_check,
            format!("'{shown}' lies on {medium}"),
            "use a local disk, which an fsync makes safe from a power cut",
        );
    } else if found.missing {
        report.ok(
            what.dir_check,
            format!(
                "'{shown}' is not there yet and can be made in '{}'",
                found.stands.display()
            ),
        );
    } else if found.locked {
        report.warn(
            what.dir_check,
            format!("'{shown}' is in use by another process"),
            "nothing, if that is Fluent Bit with this output; else name another folder",
        );
    } else if what.limit > 0 && found.mode & 0o077 != 0 {
        report.warn(
            what.dir_check,
            format!(
                "'{shown}' has mode {:03o}: other users may read the logs in it",
                found.mode & 0o777
            ),
            format!("chmod 700 '{shown}'"),
        );
    } else if found.owner != me {
        report.warn(
            what.dir_check,
            format!(
                "'{shown}' belongs to user {}, and this check runs as {me}",
                found.owner
            ),
            "run it as the user that Fluent Bit runs as",
        );
    } else {
        report.ok(what.dir_check, format!("'{shown}' can be written to"));
    }
}

fn say_space(what: Use, found: &Found, report: &mut Report<'_>) {
    let wanted = what.limit.saturating_sub(found.used);
    let free = megabytes(found.free);
    if found.free == 0 {
        report.fail(what.space_check, "the disk is full", "make room");
    } else if found.free < wanted {
        report.warn(
            what.space_check,
            format!(
                "{free} are free, less than the {} that {} allows besides what is there",
                megabytes(wanted),
                what.limit_key
            ),
            format!(
                "lower {}, or make room: the disk is full before the limit is reached",
                what.limit_key
            ),
        );
    } else {
        report.ok(what.space_check, format!("{free} are free"));
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}

fn look(dir: &Path) -> io::Result<Found> {
    let mut stands = std::path::absolute(dir)?;
    let mut missing = false;
    let metadata = loop {
        match stands.metadata() {
            Ok(metadata) => break metadata,
            Err(error) if error.kind() == ErrorKind::NotFound && stands.pop() => missing = true,
            Err(error) => return Err(error),
        }
    };
    if !metadata.is_dir() {
        return Err(io::Error::new(
            ErrorKind::NotADirectory,
            format!("'{}' is a file", stands.display()),
        ));
    }
    let mut times = Vec::with_capacity(PROBES);
    let mut file = nameless(&stands)?;
    let bytes = vec![b'.'; PROBE_BYTES];
    for _ in 0..PROBES {
        let since = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        times.push(since.elapsed());
    }
    drop(file);
    times.sort();
    let room = rustix::fs::statvfs(&stands)?;
    let kind = rustix::fs::statfs(&stands)?;
    let used = match missing {
        true => 0,
        false => LocalDisk::look(&stands)?
            .list()?
            .iter()
            .map(|(_, bytes)| bytes)
            .sum(),
    };
    Ok(Found {
        locked: !missing && is_locked(&stands)?,
        missing,
        mode: metadata.mode(),
        owner: metadata.uid(),
        medium: medium(kind.f_type),
        free: room.f_bavail.saturating_mul(room.f_frsize),
        used,
        synced: times[PROBES / 2],
        stands,
    })
}

/// A file in `dir` that no name leads to.
fn nameless(dir: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(
        dir,
        OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC,
        mode,
    ) {
        Ok(file) => Ok(File::from(file)),
        // File systems that do not know such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let path = dir.join(format!(".ferry-check-{}", std::process::id()));
            let file = File::create_new(&path)?;
            std::fs::remove_file(path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether an instance has the folder, or its file `lock`: earlier versions lock that alone.
fn is_locked(dir: &Path) -> io::Result<bool> {
    for path in [dir.to_owned(), dir.join("lock")] {
        let found = match File::open(path) {
            Ok(file) => file.try_lock(),
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if matches!(found, Err(std::fs::TryLockError::WouldBlock)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is no local disk, by the magic numbers of statfs(2).
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
