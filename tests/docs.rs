//! Consistency of the documentation: links, the length of the README, configurations and commands.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages, relative to the root.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut folders = vec![PathBuf::from(".")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder can be read") {
            let entry = entry.expect("an entry can be read");
            let path = folder.join(entry.file_name());
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            let kind = entry.file_type().expect("an entry has a type");
            if kind.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The anchor of a heading, as GitHub and mdBook generate it.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    heading.trim().chars().filter_map(kept).collect()
}

fn without_code(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

fn anchors(text: &str) -> HashSet<String> {
    let text = without_code(text);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

fn links(text: &str) -> Vec<String> {
    let text = without_code(text);
    let mut links = Vec::new();
    for rest in text.split("](").skip(1) {
        let (link, _) = rest.split_once(')').expect("a link ends");
        links.push(link.to_owned());
    }
    links
}

fn broken(page: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for link in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, fragment) = link.split_once('#').unwrap_or((&link, ""));
        let target = match file {
            "" => page.to_owned(),
            file => page.parent().expect("a page is in a folder").join(file),
        };
        let path = root().join(&target);
        let found = match fragment {
            "" => path.exists(),
            fragment => {
                fs::read_to_string(&path).is_ok_and(|text| anchors(&text).contains(fragment))
            }
        };
        if !found {
            broken.push(format!("{}: {link}", page.display()));
        }
    }
    broken
}

#[test]
fn no_link_is_broken() {
    let pages = pages();
    assert!(pages.len() > 15, "{pages:?}");
    let broken: Vec<String> = pages
        .iter()
        .flat_map(|page| broken(page, &fs::read_to_string(root().join(page)).expect("text")))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_broken_link_is_found() {
    let page = Path::new("README.md");
    for (text, expected) in [
        ("[a](README.md)", 0),
        ("[a](no-such-file.md)", 1),
        ("[a](README.md#no-such-heading)", 1),
        ("[a](#no-such-heading) and [b](nowhere/)", 2),
        ("```\n[a](no-such-file.md)\n```", 0),
        ("[a](https://example.org/x)", 0),
    ] {
        assert_eq!(broken(page, text).len(), expected, "{text}");
    }
}

#[test]
fn the_readme_is_short_and_the_summary_names_every_chapter() {
    let readme = fs::read_to_string(root().join("README.md")).expect("text");
    assert!(readme.lines().count() <= 160, "the rest belongs into docs/");
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).expect("text");
    let named: HashSet<String> = links(&summary).into_iter().collect();
    for page in pages().iter().filter(|page| page.starts_with("./docs")) {
        let name = page.file_name().expect("a file").to_string_lossy();
        assert!(
            name == "SUMMARY.md" || named.contains(&*name),
            "{name} is not in SUMMARY.md"
        );
    }
}

/// The fenced code blocks of a kind, on all pages.
fn fenced(kind: &str) -> Vec<(PathBuf, String)> {
    let fence = format!("```{kind}\n");
    let mut blocks = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(root().join(&page)).expect("text");
        for block in text.split(&fence).skip(1) {
            let (block, _) = block.split_once("```").expect("a fence ends");
            blocks.push((page.clone(), block.to_owned()));
        }
    }
    blocks
}

#[test]
fn every_configuration_shown_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let mut outputs = 0;
    for (kind, ending) in [("ini", "conf"), ("yaml", "yaml")] {
        for (page, block) in fenced(kind) {
            let file = dir.path().join(format!("shown.{ending}"));
            // The Plugins_File does not exist, which does not matter here.
            fs::write(&file, block).unwrap();
            let is_ferry = |name: &str| name.eq_ignore_ascii_case("ferry");
            let read = ferry::check::host::read(&file, is_ferry);
            let read = read.unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            for output in &read.outputs {
                outputs += 1;
                let config = ferry::config::Config::read(output);
                assert!(config.is_ok(), "{}: {config:?}", page.display());
            }
        }
    }
    assert!(outputs >= 3, "{outputs}");
}

#[test]
fn every_command_shown_exists() {
    const COMMANDS: [&str; 6] = ["check", "migrate", "spool", "replay", "completions", "man"];
    const OF_THE_SPOOL: [&str; 3] = ["inspect", "verify", "export"];
    let makefile = fs::read_to_string(root().join("Makefile")).expect("text");
    let targets: HashSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let mut shown = 0;
    // The changelog may name former commands.
    for page in pages()
        .iter()
        .filter(|page| !page.ends_with("CHANGELOG.md"))
    {
        let text = fs::read_to_string(root().join(page)).expect("text");
        // Inline code and fenced blocks.
        let code = text.split('`').skip(1).step_by(2).flat_map(str::lines);
        for line in code {
            let words: Vec<&str> = line.trim_start_matches("$ ").split(' ').collect();
            let known = match words[..] {
                ["make", target, ..] if !target.contains('=') => targets.contains(target),
                ["ferry", "spool", command, ..] => {
                    let mut each = command.split('|').map(|it| it.trim_end_matches(','));
                    each.all(|command| OF_THE_SPOOL.contains(&command))
                }
                ["ferry", command, ..] if !command.starts_with('-') => command
                    .split('|')
                    .all(|command| COMMANDS.contains(&command)),
                _ => continue,
            };
            shown += 1;
            assert!(known, "{}: {line}", page.display());
        }
    }
    assert!(shown > 40, "{shown}");
}
