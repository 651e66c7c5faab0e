//! The key table compared with the reference and with every configuration in this repository.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use ferry::config::Properties;
use ferry::config::keys::{self, idle_keys};

use crate::support::plugin::Plugin;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_reference_matches_the_key_table() {
    let path = root().join("docs/configuration.md");
    let generated = keys::reference();
    if std::env::var_os("FERRY_WRITE_DOCS").is_some() {
        fs::create_dir_all(root().join("docs")).expect("docs/ can be created");
        fs::write(&path, generated).expect("docs/configuration.md can be written");
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "docs/configuration.md differs from src/config/keys.rs. Remedy: make docs"
    );
}

/// A set of keys without values.
struct Names(HashSet<String>);

impl Properties for Names {
    fn get(&self, key: &str) -> Option<String> {
        self.is_set(key).then(String::new)
    }

    fn is_set(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

/// Collects the text files below a folder.
fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("an entry can be read").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            if !["target", "node_modules"].contains(&name.as_str()) && !name.starts_with('.') {
                files(&path, into);
            }
        } else if [".conf", ".example", ".yaml", ".yml", ".md", ".rs", ".sh"]
            .iter()
            .any(|ending| name.ends_with(ending))
        {
            into.push(path);
        }
    }
}

/// Converts a key to the form in which Fluent Bit looks it up: YAML may have `retryLimit`.
fn snake_case(key: &str) -> String {
    let mut snake = String::new();
    let mut after_small = false;
    for letter in key.chars() {
        if after_small && letter.is_ascii_uppercase() {
            snake.push('_');
        }
        after_small = letter.is_ascii_lowercase();
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// The keys of each ferry output section in a text, which may be a file or a test's source with strings.
fn outputs(text: &str) -> Vec<HashSet<String>> {
    let text = text.replace("\\n", "\n");
    let mut lines = text.lines().peekable();
    let mut outputs = Vec::new();
    while let Some(line) = lines.next() {
        let line = line
            .trim()
            .trim_start_matches("- ")
            .replace(':', " ")
            .to_lowercase();
        if line.split_whitespace().collect::<Vec<_>>() != ["name", "ferry"] {
            continue;
        }
        let mut keys = HashSet::new();
        while let Some(line) = lines.peek() {
            let line = line.trim();
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let key = snake_case(key.trim_end_matches(':'));
            let is_key = key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
            let comment = key.starts_with('#');
            if !comment
                && (!is_key || key.is_empty() || value.is_empty() || key == "-" || key == "name")
            {
                break;
            }
            if !comment {
                keys.insert(key);
            }
            lines.next();
        }
        outputs.push(keys);
    }
    outputs
}

#[test]
fn no_configuration_in_this_repository_has_an_idle_key() {
    // Misspelt on purpose, in a test.
    const ON_PURPOSE: [&str; 1] = ["agregation"];
    let mut paths = Vec::new();
    files(root(), &mut paths);
    let (mut sections, mut keys) = (0, BTreeSet::new());
    for path in paths {
        let text = fs::read_to_string(&path).unwrap_or_default();
        for mut output in outputs(&text) {
            sections += 1;
            output.retain(|key| !ON_PURPOSE.contains(&key.as_str()));
            keys.extend(output.iter().cloned());
            let found = idle_keys(&Names(output));
            assert!(found.is_empty(), "{}: {found:?}", path.display());
        }
    }
    assert!(
        sections >= 20 && keys.len() >= 25,
        "{sections} sections with {keys:?}"
    );
}

#[test]
fn a_misspelt_key_is_named_at_the_start_and_its_value_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let plugin = Plugin::start(&[
        ("url", &url),
        ("spool", "off"),
        ("shared_kye", "TOPSECRET"),
        ("upload_part_freshness_limit", "TOPSECRET"),
    ]);
    let log = plugin.log();
    for words in [
        "configuration: shared_kye is not known and does nothing; did you mean shared_key?",
        "configuration: upload_part_freshness_limit is a key of Fluent Bit's azure_blob and does nothing here: there are no parts",
    ] {
        assert_eq!(log.matches(words).count(), 1, "{words} in {log}");
    }
    assert!(!log.contains("TOPSECRET"), "{log}");
}
