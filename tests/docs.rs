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
