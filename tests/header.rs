//! The committed C header matches the exports.

use std::fmt::Write as _;
use std::path::Path;

/// The header's sources: the exports, and the host's structs in their signatures.
const SOURCES: [&str; 2] = ["src/ffi/mod.rs", "src/ffi/abi.rs"];

#[test]
fn the_header_is_generated_from_the_exports() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("include/ferry.h");
    let generated = generate(root);
    if std::env::var_os("FERRY_WRITE_HEADER").is_some() {
        std::fs::create_dir_all(root.join("include")).expect("include/ can be created");
        std::fs::write(&path, generated).expect("include/ferry.h can be written");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "include/ferry.h does not match src/ffi. Remedy: make header\n{}",
        difference(&committed, &generated)
    );
}

fn generate(root: &Path) -> String {
    let config =
        cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = SOURCES.iter().fold(builder, |builder, source| {
        builder.with_src(root.join(source))
    });
    let mut header = Vec::new();
    builder
        .generate()
        .expect("cbindgen understands src/ffi")
        .write(&mut header);
    String::from_utf8(header).expect("a header is text")
}

/// The lines in which two texts differ, without their common beginning and end.
fn difference(committed: &str, generated: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (committed.lines().collect(), generated.lines().collect());
    let same = |pair: &(&&str, &&str)| pair.0 == pair.1;
    let head = old.iter().zip(&new).take_while(same).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(same)
        .count();
    let mut text = format!("@@ line {} @@\n", head + 1);
    for (sign, lines) in [
        ('-', &old[..old.len() - tail]),
        ('+', &new[..new.len() - tail]),
    ] {
        for line in lines {
            writeln!(text, "{sign}{line}").expect("writing to a String does not fail");
        }
    }
    text
}
