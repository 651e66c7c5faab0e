//! Unsafe code is only in the allowed modules, and `SECURITY.md` has the right counts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that may have unsafe code, see `src/lib.rs`.
const ALLOWED: [&str; 3] = ["src/ffi/", "src/codec/json/simd.rs", "src/compress/zlib.rs"];

/// The shipped sources: the library with its tools, and the configuration parser.
const SHIPPED: [&str; 2] = ["src", "crates/fluent-bit-config/src"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

/// Counts the keyword in the code of a file: not in comments or strings, and not in other words such as `unsafe_code`.
fn count(source: &str) -> usize {
    source
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .map(|code| {
            // Drop escaped and character-literal quotes, then everything within quotes.
            let code = code.replace("'\"'", "").replace("\\\"", "");
            let strings_gone: String = code.split('"').step_by(2).collect();
            strings_gone
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .filter(|&word| word == "unsafe")
                .count()
        })
        .sum()
}

/// The files with unsafe code, and their counts.
fn found() -> BTreeMap<String, usize> {
    let mut files = Vec::new();
    for folder in SHIPPED {
        rust_files(&root().join(folder), &mut files);
    }
    files
        .into_iter()
        .filter_map(|path| {
            let source = fs::read_to_string(&path).expect("a source can be read");
            let name = path.strip_prefix(root()).expect("it is below the root");
            let count = count(&source);
            (count > 0).then(|| (name.display().to_string(), count))
        })
        .collect()
}

#[test]
fn unsafe_code_is_only_in_the_c_interfaces_and_in_simd() {
    let elsewhere: Vec<String> = found()
        .into_keys()
        .filter(|file| !ALLOWED.iter().any(|allowed| file.starts_with(allowed)))
        .collect();
    assert!(elsewhere.is_empty(), "unsafe code in {elsewhere:?}");
}

#[test]
fn what_needs_no_unsafe_code_cannot_have_any() {
    for file in ["src/bin/ferry.rs", "crates/fluent-bit-config/src/lib.rs"] {
        let source = fs::read_to_string(root().join(file)).expect("a source can be read");
        let forbids = source.lines().any(|line| line == "#![forbid(unsafe_code)]");
        assert!(forbids, "{file}");
    }
}

#[test]
fn security_md_counts_the_unsafe_code_of_each_file() {
    let text = fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md can be read");
    let listed: BTreeMap<String, usize> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let file = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((file.to_owned(), cells.next()?.parse().ok()?))
        })
        .collect();
    assert_eq!(
        listed,
        found(),
        "the table in SECURITY.md (left) differs from the sources (right)"
    );
}

#[test]
fn the_keyword_is_counted_in_code_alone() {
    for (source, expected) in [
        ("unsafe { f() }", 1),
        ("unsafe extern \"C\" fn f() { unsafe { g() } }", 2),
        ("#[unsafe(no_mangle)]", 1),
        ("#![deny(unsafe_code)] // no unsafe here", 0),
        ("say(\"unsafe\")", 0),
        ("b'\"' => unsafe { f() },", 1),
    ] {
        assert_eq!(count(source), expected, "{source}");
    }
}
