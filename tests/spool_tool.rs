//! `ferry spool` on a running spool.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferry::ids::Time;
use ferry::ids::chunk_id;
use ferry::spool::disk::LocalDisk;
use ferry::spool::{Chunk, Options, Spool};
use tokio::time::Instant;

use crate::support::as_a_user;

/// An event `{"n": 7}`.
const EVENT: &[u8] = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\0\x80\x81\xa1n\x07";

fn tool(arguments: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry"))
        .arg("spool")
        .args(arguments)
        .arg(dir)
        .output()
        .expect("ferry runs")
}

/// The contents and modification times of a folder's files.
fn state(dir: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let changed = entry.metadata().unwrap().modified().unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, (std::fs::read(entry.path()).unwrap(), changed))
        })
        .collect()
}

#[test]
fn the_tool_reads_a_running_spool_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        limit: 1 << 20,
        segment_bytes: Some(4_096),
    };
    let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
    let (spool, _) = Spool::open(disk, options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for events in 1..60 {
        let data = EVENT.repeat(events);
        let chunk = Chunk {
            id: chunk_id(b"app", &data),
            tag: b"app",
            data: data.into(),
            arrived: Time::default(),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        runtime.block_on(spool.append(chunk, deadline)).unwrap();
    }
    let before = state(dir.path());

    let inspect = tool(&["inspect", "--json"], dir.path());
    assert_eq!(inspect.status.code(), Some(0), "{inspect:?}");
    let report: serde_json::Value = serde_json::from_slice(&inspect.stdout).unwrap();
    assert_eq!(report["unfinished"], 59);
    let verify = tool(&["verify"], dir.path());
    assert_eq!(verify.status.code(), Some(0), "{verify:?}");
    let export = tool(&["export"], dir.path());
    assert_eq!(export.status.code(), Some(0), "{export:?}");
    assert!(export.stderr.is_empty(), "{export:?}");
    assert_eq!(export.stdout, b"{\"n\":7}\n".repeat(59 * 60 / 2));
    assert!(state(dir.path()) == before, "nothing is changed");

    // A copy without the lock can be read too.
    let copy = tempfile::tempdir().unwrap();
    for (name, (bytes, _)) in before.iter().filter(|(name, _)| *name != "lock") {
        std::fs::write(copy.path().join(name), bytes).unwrap();
    }
    let (name, (bytes, _)) = before
        .iter()
        .find(|(name, _)| name.ends_with(".seg"))
        .unwrap();
    let mut rotten = bytes.clone();
    let at = rotten.len() / 2;
    rotten[at] ^= 1;
    std::fs::write(copy.path().join(name), rotten).unwrap();
    for arguments in [["verify"], ["export"]] {
        let damaged = tool(&arguments, copy.path());
        assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
        let output = [damaged.stdout, damaged.stderr].concat();
        assert!(
            String::from_utf8_lossy(&output).contains("damaged"),
            "{arguments:?}"
        );
    }
    let copied = before.keys().filter(|name| *name != "lock");
    assert!(state(copy.path()).keys().eq(copied), "nothing is created");

    let nowhere = tool(&["inspect"], &dir.path().join("none"));
    assert_eq!(nowhere.status.code(), Some(2), "{nowhere:?}");
    let words = String::from_utf8_lossy(&nowhere.stderr);
    assert!(words.contains("none cannot be read"), "{words}");
    assert!(
        words.contains("remedy: correct the path, or mount"),
        "{words}"
    );
}

#[test]
fn the_tool_reads_more_segments_than_it_may_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        limit: 64 << 20,
        segment_bytes: Some(200),
    };
    let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
    let (spool, _) = Spool::open(disk, options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for events in 1..=300 {
        let data = EVENT.repeat(events);
        let chunk = Chunk {
            id: chunk_id(b"app", &data),
            tag: b"app",
            data: data.into(),
            arrived: Time::default(),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        runtime.block_on(spool.append(chunk, deadline)).unwrap();
    }
    for (arguments, expected) in [
        (&["inspect", "--json"][..], "\"unfinished\": 300"),
        (&["verify"], "300 chunks"),
        (&["export"], "{\"n\":7}"),
    ] {
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 32; exec \"$@\"", "sh"])
            .arg(env!("CARGO_BIN_EXE_ferry"))
            .arg("spool")
            .args(arguments)
            .arg(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(text.contains(expected), "{arguments:?}");
    }
}

/// A spool with one chunk.
fn small_spool(dir: &Path) {
    let options = Options {
        limit: 1 << 20,
        segment_bytes: Some(4_096),
    };
    let disk = Arc::new(LocalDisk::open(dir).unwrap());
    let (spool, _) = Spool::open(disk, options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let chunk = Chunk {
        id: chunk_id(b"app", EVENT),
        tag: b"app",
        data: EVENT.to_vec().into(),
        arrived: Time::default(),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    runtime.block_on(spool.append(chunk, deadline)).unwrap();
}

#[test]
fn a_folder_without_a_spool_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    small_spool(&dir.path().join("s3"));
    small_spool(&dir.path().join("az"));
    std::fs::create_dir(dir.path().join("other")).unwrap();
    std::fs::write(dir.path().join("fluent-bit.conf"), "[SERVICE]\n").unwrap();
    // A folder of another program, with a lock of its own.
    std::fs::create_dir(dir.path().join("dpkg")).unwrap();
    for name in ["lock", "status"] {
        std::fs::write(dir.path().join("dpkg").join(name), "").unwrap();
    }
    let empty = dir.path().join("other");
    for command in ["inspect", "verify", "export"] {
        let output = tool(&[command], dir.path());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let words = String::from_utf8(output.stderr).unwrap();
        for expected in [
            format!("error: {} contains no spool", dir.path().display()),
            "remedy: give spool_dir; there are spools in: az/, s3/".to_owned(),
        ] {
            assert!(words.contains(&expected), "{expected}: {words}");
        }
        let output = tool(&[command], &empty);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(
            words.contains("contains no spool") && words.trim_end().ends_with("give spool_dir"),
            "{words}"
        );
        let output = tool(&[command], &dir.path().join("s3"));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    // A spool to which nothing was ever written is accepted.
    let fresh = dir.path().join("fresh");
    drop(LocalDisk::open(&fresh).unwrap());
    let output = tool(&["inspect"], &fresh);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn targets_are_shown_with_their_time_format_and_a_note_for_another_spool_dir() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    small_spool(&spool);
    let file = dir.path().join("fluent-bit.conf");
    const REGION: &str = "    region x\n";
    let inspect = |url: &str, path: &str, of: &Path| {
        let text = format!(
            "[OUTPUT]\n    Name ferry\n    Match *\n    url {url}\n    spool_dir {}\n{path}",
            of.display()
        );
        std::fs::write(&file, text).unwrap();
        let output = tool(
            &["inspect", "--json", "--config", file.to_str().unwrap()],
            &spool,
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let target = report["tags"][0]["target"].as_str().unwrap().to_owned();
        (target, String::from_utf8(output.stderr).unwrap())
    };
    for (url, path, target) in [
        ("s3://logs", REGION, "s3://logs/app/%Y/%m/%d/%H"),
        ("s3://logs/a/", REGION, "s3://logs/a/app/%Y/%m/%d/%H"),
        (
            "s3://logs/a",
            "    region x\n    path /{tag}/%F/\n",
            "s3://logs/a/app/%F",
        ),
        ("s3://logs", "    region x\n    path /\n", "s3://logs"),
        ("file:///logs", "    path x-%H\n", "file:///logs/x-%H"),
    ] {
        let (shown, note) = inspect(url, path, &spool);
        assert_eq!(shown, target, "{url} {path}");
        assert_eq!(note, "");
    }
    let (_, note) = inspect("s3://logs", REGION, Path::new("/elsewhere/spool"));
    assert!(
        note.contains("note: ") && note.contains("/elsewhere/spool"),
        "{note}"
    );
}

#[test]
fn a_segment_that_only_others_may_read_is_no_reason_to_take_it_away() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    small_spool(&spool);
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(dir.path(), 0o755);
    allow(&spool, 0o755);
    for entry in std::fs::read_dir(&spool).unwrap() {
        let path = entry.unwrap().path();
        let is_segment = path.extension().is_some_and(|end| end == "seg");
        allow(&path, if is_segment { 0o000 } else { 0o644 });
    }
    // Unreadable segments, and an unreadable folder.
    for mode in [0o755, 0o000] {
        allow(&spool, mode);
        for command in ["inspect", "verify", "export"] {
            let mut run = Command::new(env!("CARGO_BIN_EXE_ferry"));
            run.args(["spool", command]).arg(&spool);
            let said = as_a_user(&mut run).output().unwrap();
            assert_eq!(said.status.code(), Some(2), "{said:?}");
            let words = String::from_utf8(said.stderr).unwrap();
            assert!(
                words.contains("run this as the user that Fluent Bit runs as"),
                "{words}"
            );
            assert!(!words.contains("moving"), "{words}");
        }
    }
    allow(&spool, 0o755);
}
