//! The documentation holds together: no link leads nowhere, and the README stays a page.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page, from the root.
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

/// What a heading is linked by, as GitHub and mdBook make it.
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
        let there = root().join(&target);
        let found = match fragment {
            "" => there.exists(),
            fragment => {
                fs::read_to_string(&there).is_ok_and(|text| anchors(&text).contains(fragment))
            }
        };
        if !found {
            broken.push(format!("{}: {link}", page.display()));
        }
    }
    broken
}

#[test]
fn no_link_leads_nowhere() {
    let pages = pages();
    assert!(pages.len() > 15, "{pages:?}");
    let broken: Vec<String> = pages
        .iter()
        .flat_map(|page| broken(page, &fs::read_to_string(root().join(page)).expect("text")))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
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
fn the_readme_is_a_page_and_the_summary_names_every_chapter() {
    let readme = fs::read_to_string(root().join("README.md")).expect("text");
    assert!(readme.lines().count() <= 160, "the rest belongs into docs/");
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).expect("text");
    let named: HashSet<String> = links(&summary).into_iter().collect();
    for page in pages().iter().filter(|page| page.starts_with("./docs")) {
        let name = page.file_name().expect("a file").to_string_lossy();
        assert!(
            name == "SUMMARY.md" || named.contains(&*name),
            "{name} is in no summary"
        );
    }
}

/// What stands between fences of a kind, on every page.
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
fn every_configuration_that_is_shown_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut outputs = 0;
    for (kind, ending) in [("ini", "conf"), ("yaml", "yaml")] {
        for (page, block) in fenced(kind) {
            let file = dir.path().join(format!("shown.{ending}"));
            // The file that names the library is not there, and is another check's matter.
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
fn every_command_that_is_shown_is_there() {
    const COMMANDS: [&str; 6] = ["check", "migrate", "spool", "replay", "completions", "man"];
    const OF_THE_SPOOL: [&str; 3] = ["inspect", "verify", "export"];
    let makefile = fs::read_to_string(root().join("Makefile")).expect("text");
    let targets: HashSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let mut shown = 0;
    // The changelog names what there was.
    for page in pages()
        .iter()
        .filter(|page| !page.ends_with("CHANGELOG.md"))
    {
        let text = fs::read_to_string(root().join(page)).expect("text");
        // Code is what stands between two backticks, and between three and three.
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

/// Paths of this repository that a page names between backticks, without what is behind a `:` or `#`. One with a wildcard or
/// an ellipsis stands for several.
fn paths_of(text: &str) -> Vec<String> {
    let code = text.split('`').skip(1).step_by(2);
    let words = code.flat_map(str::split_whitespace);
    let ours = words.filter(|word| {
        let folders = ["src/", "tests/", "docs/"];
        folders.iter().any(|folder| word.starts_with(folder))
            && !word.contains(['*', '<', '{', '$', '…'])
    });
    let path = |word: &str| {
        let end = word.find([':', '#', ',', ';', ')']).unwrap_or(word.len());
        word[..end].to_owned()
    };
    ours.map(path).collect()
}

#[test]
fn every_path_that_is_named_is_there() {
    let mut named = 0;
    let mut nowhere = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(root().join(&page)).expect("text");
        for path in paths_of(&text) {
            named += 1;
            if !root().join(&path).exists() {
                nowhere.push(format!("{}: {path}", page.display()));
            }
        }
    }
    assert!(nowhere.is_empty(), "{nowhere:#?}");
    assert!(named > 60, "{named}");
}

#[test]
fn a_path_that_is_not_there_is_found() {
    let text = "`src/a.rs`, src/b.rs, `cargo test tests/c.rs:7`; `src/*.rs`\n```\nls docs/d.md\n```\n`x/src/e`";
    assert_eq!(paths_of(text), ["src/a.rs", "tests/c.rs", "docs/d.md"]);
}
