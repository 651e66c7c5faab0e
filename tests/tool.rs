//! The command `ferry`: completions, manual pages and packages.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn tool(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(arguments)
        .output()
        .expect("ferry runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The manual pages.
const PAGES: &[&str] = &[
    "ferry-check.1",
    "ferry-columns.1",
    "ferry-completions.1",
    "ferry-cost.1",
    "ferry-ddl.1",
    "ferry-health.1",
    "ferry-install.1",
    "ferry-man.1",
    "ferry-migrate.1",
    "ferry-replay.1",
    "ferry-spool-deliver.1",
    "ferry-spool-export.1",
    "ferry-spool-inspect.1",
    "ferry-spool-verify.1",
    "ferry-spool.1",
    "ferry.1",
];

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = tool(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let output = text(&output.stdout);
        for word in ["replay", "inspect", "dry-run"] {
            assert!(output.contains(word), "{shell}: {word}");
        }
    }
    let output = tool(&["completions", "abacus"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
}

/// A line that cannot be read may be a secret.
#[test]
fn a_line_that_cannot_be_read_is_named_without_its_value() {
    let lines = [
        "[OUTPUT]\n    Name ferry\n    shared_key\tTOPSECRET\n",
        "[OUTPUT]\n    Name ferry\n    shared_key=TOPSECRET\n",
        "[OUTPUT]\n    Name ferry\n    shared_key:TOPSECRET\n",
        "[OUTPUT]\n    Name ferry\n    shared_keyTOPSECRET\n",
        "@SET KEY TOPSECRET\n",
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fluent-bit.conf");
    let file = file.to_str().unwrap();
    for lines in lines {
        fs::write(file, lines).unwrap();
        for command in ["check", "migrate", "replay"] {
            let output = tool(&[command, file]);
            let said = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command} {lines}: {said}");
            assert!(!said.contains("TOPSECRET"), "{command} {lines}: {said}");
        }
    }
}

/// A shell with `pipefail` sees that the output was not read to its end, and not a success.
#[test]
fn a_closed_pipe_is_no_success() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferry"));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command
        .args(["completions", "bash"])
        .stdout(writer)
        .status();
    assert_eq!(status.unwrap().code(), Some(141));
}

#[test]
fn a_stderr_that_cannot_be_written_to_changes_no_exit_status() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferry"));
    let status = command.args(["check", "/nowhere"]).stderr(full).status();
    assert_eq!(status.unwrap().code(), Some(2));
}

#[test]
fn every_command_has_a_page_that_explains_its_exit_status() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    let output = tool(&["man", folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, PAGES);
    for name in PAGES {
        let page = fs::read_to_string(folder.join(name)).unwrap();
        assert!(page.contains(".TH ferry"), "{name}: {page}");
        let leaf = *name != "ferry-spool.1";
        assert!(!leaf || page.contains("Exit status: 0"), "{name}: {page}");
    }
    let output = tool(&["man", "/dev/null/man1"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_package_has_the_tool_its_pages_and_its_completions() {
    let dir = tempfile::tempdir().unwrap();
    let (built, out) = (dir.path().join("built"), dir.path().join("out"));
    fs::create_dir(&built).unwrap();
    // Stripped and checked like a release build.
    fs::copy(crate::support::library(), built.join("libferry.so")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_ferry"), built.join("ferry")).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = Command::new(root.join("packaging/package.sh"))
        .args([&built, &out])
        // Accept any glibc, since these were built for this machine only.
        .env("FERRY_GLIBC", "9.99")
        .output()
        .expect("bash is installed");
    let output = format!("{}{}", text(&made.stdout), text(&made.stderr));
    assert!(made.status.success(), "{output}");
    let list = |command: &mut Command| text(&command.output().expect("it is installed").stdout);
    let files = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let (listed, man, wanted) = if name.ends_with(".tar.gz") {
            let listed = list(Command::new("tar").arg("tzf").arg(&file));
            (
                listed,
                "share/man/man1/",
                [
                    "/bin/ferry\n",
                    "/share/bash-completion/completions/ferry\n",
                    "/share/zsh/site-functions/_ferry\n",
                    "/share/fish/vendor_completions.d/ferry.fish\n",
                ],
            )
        } else if name.ends_with(".deb") {
            let listed = list(Command::new("dpkg-deb").arg("--contents").arg(&file));
            (
                listed,
                "usr/share/man/man1/",
                [
                    "/usr/bin/ferry\n",
                    "/usr/share/bash-completion/completions/ferry\n",
                    "/usr/share/zsh/vendor-completions/_ferry\n",
                    "/usr/share/fish/vendor_completions.d/ferry.fish\n",
                ],
            )
        } else {
            continue;
        };
        for wanted in wanted {
            assert!(listed.contains(wanted), "{name}: {wanted}: {listed}");
        }
        for page in PAGES {
            assert!(
                listed.contains(&format!("{man}{page}")),
                "{name}: {page}: {listed}"
            );
        }
        assert!(
            !listed.contains("ferry-spool\n") && !listed.contains("ferry-check\n"),
            "{name}: {listed}"
        );
        let unpacked = dir.path().join(&name).with_extension("unpacked");
        fs::create_dir(&unpacked).unwrap();
        let documents = if name.ends_with(".deb") {
            list(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .args([&file, &unpacked]),
            );
            unpacked.join("usr/share/doc/ferry")
        } else {
            list(
                Command::new("tar")
                    .arg("xzf")
                    .arg(&file)
                    .arg("-C")
                    .arg(&unpacked),
            );
            fs::read_dir(&unpacked)
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path()
        };
        let broken = crate::docs::broken_links(&documents);
        assert!(broken.is_empty(), "{name}: {broken:#?}");
    }
}

#[test]
fn a_months_costs_are_printed_for_each_output() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fluent-bit.conf");
    let outputs = "[OUTPUT]\n    Name ferry\n    Match *\n    url s3://logs/app\n    region us-east-1\n\
                   [OUTPUT]\n    Name ferry\n    Alias stream\n    Match *\n    delivery_stream app\n    region us-east-1\n";
    fs::write(&file, outputs).unwrap();
    let file = file.to_str().unwrap();
    let output = tool(&["cost", file, "--month", "50G"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let table = text(&output.stdout);
    for row in [
        "ferry.0: 50 GB a month",
        "stream: 50 GB a month",
        "CloudWatch Logs  ",
    ] {
        assert!(table.contains(row), "{row}: {table}");
    }
    let output = tool(&["cost", file, "--rate", "20K", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report[0]["ways"][0]["way"], "this output");
    assert!(report[1]["ways"][0]["total"].as_f64().unwrap() > 1.0);
    for (arguments, said) in [
        (vec!["cost", file], "--rate"),
        (
            vec!["cost", file, "--rate", "20K", "--region", "mars-1"],
            "us-east-1",
        ),
        (vec!["cost", "/nowhere", "--rate", "20K"], "/nowhere"),
    ] {
        let output = tool(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}
