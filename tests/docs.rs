//! Tests of the documentation: links work in the repository, in the book and where it is installed, and the README
//! stays a page.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

mod shown;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the relative paths of all files below a folder whose names have this ending.
fn files(root: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(".")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("a folder can be read") {
            let entry = entry.expect("an entry can be read");
            let path = folder.join(entry.file_name());
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            let kind = entry.file_type().expect("an entry has a type");
            if kind.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if name.ends_with(ending) {
                files.push(path);
            }
        }
    }
    files
}

/// Returns the paths of all pages, relative to the root.
fn pages() -> Vec<PathBuf> {
    files(root(), ".md")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the anchor of a heading, as GitHub and mdBook generate it.
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

/// Whether a link leads to another site, which is not checked.
fn is_external(link: &str) -> bool {
    link.contains("://") || link.starts_with("mailto:") || link.starts_with("data:")
}

/// Returns the links of a page whose file below `root`, or the heading in it, does not exist. A folder is not a valid
/// target, since neither the book nor a disk shows a page for it.
fn broken(root: &Path, page: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for link in links(text) {
        if is_external(&link) {
            continue;
        }
        let (file, fragment) = link.split_once('#').unwrap_or((&link, ""));
        let target = match file {
            "" => page.to_owned(),
            file => page.parent().expect("a page is in a folder").join(file),
        };
        let there = root.join(&target);
        let found = match fragment {
            "" => there.is_file(),
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

/// Returns the broken links of all pages below a folder.
pub(crate) fn broken_links(root: &Path) -> Vec<String> {
    let pages = files(root, ".md");
    assert!(pages.len() > 15, "{pages:?}");
    pages
        .iter()
        .flat_map(|page| broken(root, page, &read(&root.join(page))))
        .collect()
}

#[test]
fn no_link_is_broken() {
    let broken = broken_links(root());
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn broken_links_are_found() {
    let page = Path::new("README.md");
    for (text, expected) in [
        ("[a](README.md)", 0),
        ("[a](no-such-file.md)", 1),
        ("[a](README.md#no-such-heading)", 1),
        ("[a](#no-such-heading) and [b](nowhere/)", 2),
        ("[a](docs/)", 1),
        ("```\n[a](no-such-file.md)\n```", 0),
        ("[a](https://example.org/x)", 0),
    ] {
        assert_eq!(broken(root(), page, text).len(), expected, "{text}");
    }
}

/// Runs a command of this project in its root. Returns its output.
fn run(command: &mut Command) -> String {
    let done = command
        .current_dir(root())
        // This may itself run below make.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .expect("it is installed");
    let output = [done.stdout, done.stderr].concat();
    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(done.status.success(), "{command:?}: {output}");
    output
}

#[test]
fn no_link_in_the_installed_documentation_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let to = format!("DESTDIR={}", dir.path().display());
    run(Command::new("make").args(["install-docs", "PREFIX=/usr", &to]));
    let broken = broken_links(&dir.path().join("usr/share/doc/ferry"));
    assert!(broken.is_empty(), "{broken:#?}");
    run(Command::new("make").args(["uninstall", "PREFIX=/usr", &to]));
    assert!(!dir.path().join("usr/share/doc/ferry").exists());
}

/// Generates the book's source in a folder. Returns its path.
fn source_of_the_book(folder: &Path) -> PathBuf {
    run(Command::new(root().join("docs/book.sh")).arg(folder));
    folder.join("src")
}

#[test]
fn every_page_of_the_book_is_a_chapter_without_broken_links() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_of_the_book(dir.path());
    let broken = broken_links(&source);
    assert!(broken.is_empty(), "{broken:#?}");
    // mdbook renders only the pages in the summary.
    let chapters = links(&read(&source.join("SUMMARY.md")));
    for page in files(&source, ".md") {
        let page = page.strip_prefix(".").unwrap().display().to_string();
        assert!(
            page == "SUMMARY.md" || chapters.contains(&page),
            "{page} is not in SUMMARY.md"
        );
    }
}

/// Returns the values of an attribute in HTML.
fn attributes(html: &str, name: &str) -> Vec<String> {
    let begin = format!(" {name}=\"");
    html.split(&begin)
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap_or_default())
        .map(|value| value.replace("&amp;", "&"))
        .collect()
}

/// Builds the book, if "make book" has installed mdbook.
#[test]
fn no_link_in_the_built_book_is_broken() {
    let mdbook = root().join("target/tools/bin/mdbook");
    if !mdbook.exists() {
        eprintln!(
            "skipped: {} does not exist; run make book",
            mdbook.display()
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = source_of_the_book(dir.path());
    let book = dir.path().join("book");
    let output = run(Command::new(mdbook)
        .args(["build", "--dest-dir"])
        .args([&book, dir.path()]));
    assert!(
        !output.contains("WARN") && !output.contains("ERROR"),
        "{output}"
    );

    let (mut followed, mut broken) = (0, Vec::new());
    for page in files(&book, ".html") {
        // Its links are relative to a server's root.
        if page.ends_with("404.html") {
            continue;
        }
        let html = read(&book.join(&page));
        let links = [attributes(&html, "href"), attributes(&html, "src")].concat();
        for link in links.iter().filter(|link| !is_external(link)) {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => book.join(&page),
                file => book.join(&page).parent().unwrap().join(file),
            };
            let is_found = target.is_file()
                && (fragment.is_empty() || read(&target).contains(&format!("id=\"{fragment}\"")));
            followed += 1;
            if !is_found {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(followed > 500, "{followed}");

    let contents = attributes(&read(&book.join("toc.html")), "href");
    for page in files(&source, ".md") {
        let page = page.strip_prefix(".").unwrap().with_extension("html");
        let page = page.display().to_string();
        assert!(
            page == "SUMMARY.html" || contents.contains(&page),
            "{page} is not in the book's contents: {contents:?}"
        );
    }
}

#[test]
fn the_readme_is_a_page() {
    let readme = read(&root().join("README.md"));
    assert!(readme.lines().count() <= 160, "move the rest to docs/");
}
