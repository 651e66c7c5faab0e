//! The identity of outputs that send to one prefix without a spool.

use std::fs;
use std::path::{Path, PathBuf};

use ferry::ids::Verdict;
use tempfile::TempDir;

use crate::support::plugin::{Plugin, chunk};

/// A store, and home folders of its senders.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// An output with its dead letters and its identity in the folder `home`.
    fn sender(&self, home: &str, keys: &[(&str, &str)]) -> Plugin {
        let (url, home) = (format!("file://{}", self.path("objects")), self.path(home));
        let mut all = vec![
            ("url", url.as_str()),
            ("spool", "off"),
            ("dead_letter_dir", home.as_str()),
        ];
        all.extend(keys);
        Plugin::start(&all)
    }

    /// The objects' names.
    fn objects(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.dir.path().join("objects"), &mut found);
        found
    }
}

#[test]
fn the_same_chunk_of_two_senders_makes_two_objects() {
    let place = Place::new();
    let chunk = chunk(0..100);
    for home in ["one", "two"] {
        let sender = place.sender(home, &[]);
        assert_eq!(sender.flush("app", &chunk), Verdict::Ok);
    }
    let objects = place.objects();
    assert_eq!(objects.len(), 2, "{objects:?}");
}

#[test]
fn outputs_of_one_process_are_separate_senders() {
    // Even in one folder, under one name, at the same time.
    for names in [["a", "b"], ["a", "a"]] {
        let place = Place::new();
        let chunk = chunk(0..100);
        let senders = names.map(|name| place.sender("home", &[("instance", name)]));
        for sender in &senders {
            assert_eq!(sender.flush("app", &chunk), Verdict::Ok);
        }
        let objects = place.objects();
        assert_eq!(objects.len(), 2, "{names:?}: {objects:?}");
    }
}

#[test]
fn a_sender_that_starts_again_finds_its_own_object() {
    let place = Place::new();
    let chunk = chunk(0..100);
    for start in 1..=3 {
        let sender = place.sender("home", &[]);
        assert_eq!(sender.flush("app", &chunk), Verdict::Ok);
        drop(sender);
        let objects = place.objects();
        assert_eq!(objects.len(), 1, "start {start}: {objects:?}");
    }
}

#[test]
fn a_killed_hosts_staged_file_is_removed_when_its_chunk_comes_again() {
    let place = Place::new();
    let chunk = chunk(0..100);
    let sender = place.sender("home", &[]);
    assert_eq!(sender.flush("app", &chunk), Verdict::Ok);
    drop(sender);
    let whole = place.objects();
    // Like a host killed after linking the object's name and before unlinking the staging name.
    let mut staged = whole[0].clone().into_os_string();
    staged.push("#1");
    fs::hard_link(&whole[0], staged).unwrap();
    let sender = place.sender("home", &[]);
    assert_eq!(sender.flush("app", &chunk), Verdict::Ok);
    assert_eq!(place.objects(), whole);
}

#[test]
fn a_chunk_that_comes_again_finds_its_object_despite_another_compression() {
    let place = Place::new();
    let chunk = chunk(0..100);
    for level in ["1", "9"] {
        let sender = place.sender("home", &[("compression_level", level)]);
        assert_eq!(sender.flush("app", &chunk), Verdict::Ok);
        assert!(!sender.log().contains("collision"), "{}", sender.log());
    }
    let objects = place.objects();
    assert_eq!(objects.len(), 1, "{objects:?}");
}
