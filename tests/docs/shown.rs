//! Tests of the documentation's contents. Every fenced block has a kind, and each kind has a test: configurations are
//! read as by `ferry check`, and commands are checked against the tools. The files, tests, metrics and log messages
//! named in the text must exist.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ferry::check::host;
use ferry::config::Config;
use serde_json::Value;

use super::{files, pages, read, root};

/// The kinds of fenced blocks. A new one needs a test below.
const KINDS: [&str; 6] = ["sh", "console", "ini", "yaml", "json", "text"];

/// A fenced block.
struct Block {
    page: PathBuf,
    /// The word after its fence.
    kind: String,
    text: String,
}

/// Splits a page into its fenced blocks and the rest.
fn split(page: &Path) -> (Vec<Block>, String) {
    let (mut blocks, mut prose) = (Vec::new(), String::new());
    let mut open: Option<Block> = None;
    for line in read(&root().join(page)).lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (fence, &mut open) {
            (Some(kind), None) => {
                open = Some(Block {
                    page: page.to_owned(),
                    kind: kind.to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => prose += &format!("{line}\n"),
        }
    }
    assert!(open.is_none(), "{}: a fence does not end", page.display());
    (blocks, prose)
}

/// Whether a page describes the current state, unlike the changelog.
fn is_current(page: &Path) -> bool {
    !page.ends_with("CHANGELOG.md")
}

/// Returns the blocks of a kind on all pages.
fn blocks(kind: &str) -> Vec<Block> {
    let mut found: Vec<Block> = pages().iter().flat_map(|page| split(page).0).collect();
    found.retain(|block| block.kind == kind);
    assert!(!found.is_empty(), "{kind}");
    found
}

/// Returns all inline code, with its page.
fn spans() -> Vec<(PathBuf, String)> {
    let mut spans = Vec::new();
    for page in pages().into_iter().filter(|page| is_current(page)) {
        let (_, prose) = split(&page);
        let found = prose.split('`').skip(1).step_by(2);
        spans.extend(found.map(|span| (page.clone(), span.replace('\n', " "))));
    }
    spans
}

#[test]
fn every_block_has_a_kind_with_a_test() {
    for page in pages() {
        for block in split(&page).0 {
            let known = KINDS.contains(&&*block.kind);
            assert!(
                known,
                "{}: a block of kind '{}', which has no test: {}",
                page.display(),
                block.kind,
                block.text
            );
        }
    }
}

#[test]
fn every_configuration_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let mut outputs = 0;
    let mut try_it = |page: &Path, ending: &str, text: &str| {
        let file = dir.path().join(format!("shown.{ending}"));
        // The file that names the library does not exist here; another check reports that.
        fs::write(&file, text).unwrap();
        let is_ferry = |name: &str| name.eq_ignore_ascii_case("ferry");
        let read = host::read(&file, is_ferry);
        let read = read.unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        let names_the_library = text.contains("out_ferry.so");
        assert!(
            names_the_library || !read.outputs.is_empty(),
            "{}: no output in {text}",
            page.display()
        );
        for output in &read.outputs {
            outputs += 1;
            let config = Config::read(output);
            assert!(config.is_ok(), "{}: {config:?}", page.display());
        }
    };
    for (kind, ending) in [("ini", "conf"), ("yaml", "yaml")] {
        for block in blocks(kind) {
            // Keys without a section belong to an output that already exists.
            let text = match kind == "ini" && !block.text.contains('[') {
                true => format!(
                    "[OUTPUT]\n    Name ferry\n    account_name mylogs\n    container_name logs\n{}",
                    block.text
                ),
                false => block.text,
            };
            // Files of secrets are read.
            let text = text.replace("@/", &format!("@{}/", dir.path().display()));
            for kept in text.split('@').skip(1) {
                let file = Path::new(kept.split_whitespace().next().expect("a path"));
                fs::create_dir_all(file.parent().expect("a folder")).unwrap();
                fs::write(file, "sv=2026-10-06&sr=c&sp=rcw&sig=c2ln").unwrap();
            }
            try_it(&block.page, ending, &text);
        }
    }
    // The alternatives in comments.
    let path = Path::new("fluent-bit.conf.example");
    let example = read(&root().join(path));
    let (_, others) = example
        .split_once("instead:\n")
        .expect("outputs in comments");
    let others = others.split("instead:\n").map(|other| {
        let lines = other.lines().filter_map(|line| line.strip_prefix("# "));
        lines.collect::<Vec<_>>().join("\n")
    });
    for other in others {
        let (output, _) = other.rsplit_once("\nTo ").unwrap_or((&other, ""));
        try_it(path, "conf", output);
    }
    assert!(outputs >= 8, "{outputs}");
}

#[test]
fn every_json_block_is_valid() {
    for block in blocks("json") {
        for line in block.text.lines() {
            let value: Result<Value, _> = serde_json::from_str(line);
            assert!(value.is_ok(), "{}: {value:?}", block.page.display());
        }
    }
}

/// Returns the commands of a script as words, without comments, `sudo` and variable assignments.
fn commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let script = script.replace("\\\n", " ");
    for line in script.lines() {
        let mut word = String::new();
        let mut quote = None;
        let mut end = |word: &mut String, next: bool| {
            if !word.is_empty() {
                let last = commands.last_mut().expect("there is one");
                last.push(std::mem::take(word));
            }
            if next {
                commands.push(Vec::new());
            }
        };
        for c in line.chars() {
            match (c, quote) {
                (c, Some(open)) if c == open => quote = None,
                ('\'' | '"', None) => quote = Some(c),
                ('#', None) if word.is_empty() => break,
                (' ', None) => end(&mut word, false),
                ('&' | '|' | ';', None) => end(&mut word, true),
                (c, _) => word.push(c),
            }
        }
        end(&mut word, quote.is_none());
    }
    for command in &mut commands {
        let is_set = |word: &String| {
            let name = word.split('=').next().unwrap_or_default();
            word.contains('=') && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        };
        if command.first().is_some_and(|word| word == "sudo") {
            command.remove(0);
            if command.first().is_some_and(|word| word == "-u") {
                command.drain(..2);
            }
        }
        while command.first().is_some_and(is_set) {
            command.remove(0);
        }
    }
    commands.retain(|command| !command.is_empty());
    commands
}

/// Returns all commands: in scripts, after a prompt, and in inline code.
fn shown() -> Vec<(PathBuf, Vec<String>)> {
    let mut shown = Vec::new();
    let mut add = |page: &Path, script: &str| {
        let found = commands(script).into_iter();
        shown.extend(found.map(|command| (page.to_owned(), command)));
    };
    for block in blocks("sh") {
        add(&block.page, &block.text);
    }
    for block in blocks("console") {
        for line in block.text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                add(&block.page, command);
            }
        }
    }
    for (page, span) in spans() {
        let first = span.split(' ').next().unwrap_or_default();
        let is_command = ["ferry", "make", "cargo"].contains(&first) && span.contains(' ');
        if is_command || first == "sudo" || first.starts_with("target/ferry") {
            add(&page, &span);
        }
    }
    shown
}

/// Whether `ferry` accepts these arguments. They are passed with `--help`, so that nothing is done.
fn is_understood(arguments: &[String]) -> bool {
    // An option named in the text may lack its value, and a placeholder is not a valid choice.
    let placed = |word: &String| match word.as_str() {
        "SHELL" => "bash".to_owned(),
        "DIALECT" => "athena".to_owned(),
        other => other.to_owned(),
    };
    let words: Vec<String> = arguments.iter().map(placed).collect();
    [&["--help"][..], &["1", "--help"]].iter().any(|ending| {
        Command::new(env!("CARGO_BIN_EXE_ferry"))
            .args(&words)
            .args(*ending)
            .output()
            .expect("ferry runs")
            .status
            .success()
    })
}

/// Returns the words that follow `option`.
fn values_of<'a>(words: &'a [String], option: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = words.windows(2);
    pairs.filter_map(move |pair| (pair[0] == option).then_some(pair[1].as_str()))
}

#[test]
fn every_command_is_accepted() {
    let makefile = read(&root().join("Makefile"));
    let targets: HashSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let variables: HashSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(" ?=").map(|(variable, _)| variable))
        .collect();
    let cargo = read(&root().join("Cargo.toml"));
    let mut tried = BTreeSet::new();
    for (page, command) in shown() {
        let (program, arguments) = command.split_first().expect("a word");
        let name = program.rsplit('/').next().unwrap_or_default();
        let known = match name {
            "ferry" => is_understood(arguments),
            "make" => arguments.iter().all(|word| match word.split_once('=') {
                Some((variable, _)) => {
                    // STRIP belongs to the packaging script.
                    variables.contains(variable) || variable == "STRIP"
                }
                None => targets.contains(word.as_str()),
            }),
            "cargo" => {
                let mut features = values_of(arguments, "--features");
                let mut binaries =
                    values_of(arguments, "--bench").chain(values_of(arguments, "--test"));
                let mut filters = arguments.iter().filter_map(|word| word.strip_suffix("::"));
                features.all(|feature| cargo.contains(&format!("\n{feature} = [")))
                    && binaries.all(|binary| cargo.contains(&format!("name = \"{binary}\"")))
                    && filters.all(|module| {
                        let source = root().join("src").join(module.replace("::", "/"));
                        source.is_dir() || source.with_extension("rs").exists()
                    })
            }
            // Its help lists its options.
            "python" if arguments.first().is_some_and(|it| it == "ferry_logs.py") => {
                let script = root().join(&page).with_file_name("ferry_logs.py");
                let help = Command::new("python3")
                    .arg(script)
                    .args([&arguments[1], "--help"])
                    .output()
                    .expect("Python starts");
                let help = String::from_utf8_lossy(&help.stdout).into_owned();
                let mut options = arguments.iter().filter(|word| word.starts_with("--"));
                !help.is_empty() && options.all(|option| help.contains(option.as_str()))
            }
            _ => continue,
        };
        tried.insert(command.join(" "));
        assert!(known, "{}: {command:?}", page.display());
    }
    assert!(tried.len() > 45, "{}: {tried:#?}", tried.len());
}

#[test]
fn every_file_that_a_command_reads_exists() {
    let mut found = 0;
    for (page, command) in shown() {
        let folder = root().join(&page).parent().expect("a folder").to_owned();
        let is_there = |file: &str| {
            let built = ["target/out_ferry.so", "target/ferry"];
            folder.join(file).exists()
                || root().join(file).exists()
                || built.iter().any(|built| file.ends_with(built))
        };
        let mut taken: Vec<&str> = command
            .iter()
            .filter_map(|word| word.strip_prefix("file://"))
            .filter(|file| !file.starts_with('/'))
            .collect();
        if ["cp", "install"].contains(&&*command[0]) {
            let mut words = command[1..].iter();
            let mut files = Vec::new();
            while let Some(word) = words.next() {
                match word.as_str() {
                    "-m" | "-g" | "-o" => drop(words.next()),
                    option if option.starts_with('-') => {}
                    file => files.push(file),
                }
            }
            files.pop();
            taken.extend(files);
        }
        for file in taken {
            found += 1;
            assert!(is_there(file), "{}: {file} of {command:?}", page.display());
        }
    }
    assert!(found > 15, "{found}");
}

#[test]
fn every_script_parses() {
    for block in blocks("sh") {
        let parsed = Command::new("bash")
            .args(["-n", "-c", &block.text])
            .output()
            .expect("bash is installed");
        let errors = String::from_utf8_lossy(&parsed.stderr);
        assert!(
            parsed.status.success() && errors.is_empty(),
            "{}: {errors}",
            block.page.display()
        );
    }
}

/// Returns the sources of the library and the tool, with the lines of multi-line strings joined.
fn sources() -> String {
    let mut all = String::new();
    for path in files(&root().join("src"), ".rs") {
        let text = read(&root().join("src").join(path));
        let mut pieces = text.split("\\\n");
        all += pieces.next().unwrap_or_default();
        for piece in pieces {
            all += piece.trim_start();
        }
    }
    all
}

#[test]
fn every_line_of_a_check_has_a_known_name_and_result() {
    let sources = sources();
    let mut checks = 0;
    for block in blocks("console") {
        for line in block.text.lines().filter(|line| !line.starts_with("$ ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [mark, _output, check, ..] = words[..] else {
                panic!("{}: {line}", block.page.display());
            };
            let check = check.strip_suffix(':').expect("a check's name");
            let known = ["ok", "warn", "FAIL", "skip"].contains(&mark)
                && sources.contains(&format!("\"{check}\""));
            assert!(known, "{}: {line}", block.page.display());
            checks += 1;
        }
    }
    assert!(checks > 5, "{checks}");
}

/// Returns the constant parts of a message.
fn fragments(quoted: &str) -> Vec<String> {
    let mut text = quoted.replace("<key>", "…");
    // The names of segments vary, and so may the remedy.
    text = text.replace("….seg", "…").replace("; ", "…");
    let pieces = text.split('…').map(|piece| piece.trim_matches(' '));
    let words = pieces.filter(|piece| piece.chars().filter(|c| c.is_alphabetic()).count() > 2);
    words.map(str::to_owned).collect()
}

#[test]
fn every_message_in_troubleshooting_is_in_the_sources() {
    let sources = sources().replace("{SUSPECTS}", "suspects");
    let page = read(&root().join("docs/troubleshooting.md"));
    let mut messages = 0;
    for row in page.lines().filter(|line| line.starts_with('|')) {
        let seen = row.split('|').nth(1).expect("a cell");
        // Messages of the host are not in these sources.
        if seen.contains("Fluent Bit") && !seen.contains("configuration:") {
            continue;
        }
        for message in seen.split('`').skip(1).step_by(2) {
            messages += 1;
            for fragment in fragments(message) {
                assert!(
                    sources.contains(&fragment),
                    "'{fragment}' of '{message}' is not in the sources"
                );
            }
        }
    }
    assert!(messages > 25, "{messages}");
}

/// Returns the paths of this repository that a page names between backticks, up to a `:` or `#`. Those with a wildcard
/// or an ellipsis are left out.
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
fn paths_are_found_in_code_only() {
    let text = "`src/a.rs`, src/b.rs, `cargo test tests/c.rs:7`; `src/*.rs`\n```\nls docs/d.md\n```\n`x/src/e`";
    assert_eq!(paths_of(text), ["src/a.rs", "tests/c.rs", "docs/d.md"]);
}

#[test]
fn every_path_file_test_and_metric_that_is_named_exists() {
    let mut names = HashSet::new();
    let mut tests = String::new();
    for ending in [
        ".rs", ".sh", ".py", ".md", ".toml", ".conf", ".h", ".c", ".json", ".yml", ".yaml", ".sql",
        ".txt", ".env",
    ] {
        for path in files(root(), ending) {
            names.insert(path.file_name().unwrap().to_str().unwrap().to_owned());
            if ending == ".rs" {
                tests += &read(&root().join(path));
            }
        }
    }
    let metrics = read(&root().join("src/metrics/mod.rs"));
    // Files that a build or a package creates.
    let built = read(&root().join("Makefile")) + &read(&root().join("packaging/package.sh"));
    let mut missing = BTreeSet::new();
    let mut paths_named = 0;
    for page in pages() {
        for path in paths_of(&read(&root().join(&page))) {
            paths_named += 1;
            if !root().join(&path).exists() {
                missing.insert(format!("{}: {path}", page.display()));
            }
        }
    }
    let (mut files_named, mut tests_named, mut metrics_named) = (0, 0, 0);
    for (page, span) in spans() {
        let place = format!("{}: {span}", page.display());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let ending = span.rsplit('.').next().unwrap_or_default();
        let is_path = span
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
            && !span.starts_with(['/', '.'])
            && names
                .iter()
                .any(|name| name.ends_with(&format!(".{ending}")))
            && span.contains('.');
        if is_path {
            files_named += 1;
            let folder = page.parent().expect("a folder");
            let here = [Path::new("."), Path::new("src"), Path::new("tests"), folder]
                .iter()
                .any(|folder| root().join(folder).join(&span).exists());
            let is_there = match span.contains('/') {
                true => here || span.starts_with("target/"),
                false => here || names.contains(&span) || built.contains(&span),
            };
            if !is_there {
                missing.insert(place.clone());
            }
        }
        if span.chars().all(plain) && span.matches('_').count() >= 5 {
            tests_named += 1;
            if !tests.contains(&span) {
                missing.insert(place.clone());
            }
        }
        if span.chars().all(plain) && span.starts_with("ferry_") {
            metrics_named += 1;
            if !metrics.contains(span.trim_start_matches("ferry_")) {
                missing.insert(place);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(
        paths_named > 60 && files_named > 60 && tests_named > 20 && metrics_named > 20,
        "{paths_named} {files_named} {tests_named} {metrics_named}"
    );
}

/// Runs the documented commands that decode dead letters.
#[test]
fn dead_letters_in_base64_are_decoded_as_documented() {
    let is_installed = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !is_installed("jq", "--version") {
        eprintln!("skipped: jq is not installed; apt install jq");
        return;
    }
    let (blocks, _) = split(Path::new("docs/operating.md"));
    let script = |containing: &str| {
        let block = blocks
            .iter()
            .find(|block| block.kind == "sh" && block.text.contains(containing));
        block.expect("the script").text.clone()
    };
    let dir = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let done = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(dir.path())
            .output()
            .expect("bash is installed");
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{script}: {errors}");
        String::from_utf8(done.stdout).expect("text")
    };

    let shown = blocks.iter().find(|block| block.kind == "json");
    let shown: Value = serde_json::from_str(&shown.expect("a letter").text).unwrap();
    // The first command is for gzip, the second for msgpack.
    let reading = script("record_base64");
    let (gzip, msgpack) = reading.split_once('\n').expect("two commands");
    let in_base64 = |bytes: &[u8]| {
        let mut letter = shown.clone();
        letter.as_object_mut().unwrap().remove("record");
        letter["record_base64"] = base64_simd::STANDARD.encode_to_string(bytes).into();
        fs::write(
            dir.path().join("dead-letters.ndjson"),
            format!("{letter}\n"),
        )
        .unwrap();
    };
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packer, b"{\"level\":\"info\"}\n").unwrap();
    in_base64(&packer.finish().unwrap());
    assert_eq!(run(gzip), "{\"level\":\"info\"}\n");
    let has_msgpack = Command::new("python3")
        .args(["-c", "import msgpack"])
        .output();
    if has_msgpack.is_ok_and(|output| output.status.success()) {
        // {"level": "info"}
        in_base64(b"\x81\xa5level\xa4info");
        assert_eq!(run(msgpack), "{'level': 'info'}\n");
    } else {
        eprintln!("skipped: Python has no msgpack; apt install python3-msgpack");
    }
}
