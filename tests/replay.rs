//! `ferry replay`: sending dead letters again.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64_simd::STANDARD;
use ferry::config::{Config, Destination, Properties};
use ferry_harness::firehose::{FakeFirehose, Options};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::as_a_user;

/// A folder with a configuration, letters, and a file store.
struct Place {
    dir: TempDir,
}

struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A letter refused by a target.
fn letter(target: &str, record: &str) -> Value {
    json!({
        "time": "2025-11-21T13:00:00.250Z", "tag": "app", "reason": "refused", "error": "X: no",
        "target": target, "record": record,
    })
}

/// A letter without a target.
fn of(reason: &str, record: &str) -> Value {
    let mut letter = letter("", record);
    letter["reason"] = reason.into();
    letter.as_object_mut().unwrap().remove("target");
    letter
}

/// The same with bytes instead of text.
fn bytes(mut letter: Value, record: &[u8]) -> Value {
    let fields = letter.as_object_mut().unwrap();
    fields.remove("record");
    fields.insert(
        "record_base64".to_owned(),
        STANDARD.encode_to_string(record).into(),
    );
    letter
}

impl Place {
    fn new(output: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("letters")).unwrap();
        let place = Place { dir };
        place.configure(output);
        place
    }

    /// With a file store.
    fn folder(output: &str) -> Place {
        let place = Place::new("");
        let url = format!("    url file://{}\n", place.path("objects").display());
        place.configure(&format!("{url}    path {{tag}}/%Y\n{output}"));
        place
    }

    fn firehose(fake: &FakeFirehose, output: &str) -> Place {
        Place::new(&format!(
            "    region us-east-1\n    delivery_stream {{tag}}\n    endpoint {}\n{output}",
            fake.url()
        ))
    }

    /// Writes a configuration without any input.
    fn configure(&self, output: &str) {
        let letters = self.path("letters");
        let text = format!(
            "[OUTPUT]\n    Name ferry\n    Match *\n    compression none\n    log_key message\n    \
             dead_letter_dir {}\n{output}",
            letters.display()
        );
        fs::write(self.path("fluent-bit.conf"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path("letters").join(name)
    }

    fn write(&self, letters: &[Value]) {
        let lines: String = letters.iter().map(|letter| format!("{letter}\n")).collect();
        fs::write(self.at("dead-letters.ndjson"), lines).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferry"));
        command
            .arg("replay")
            .arg(self.path("fluent-bit.conf"))
            .args(arguments)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", "TESTKEY")
            .env("AWS_SECRET_ACCESS_KEY", "TESTSECRET")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let output = self.command(arguments).output().expect("ferry runs");
        Run {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The records of the remaining letters in a file.
    fn left(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.at(name)).unwrap();
        text.lines()
            .map(|line| {
                let letter: Value = serde_json::from_str(line).unwrap_or_default();
                let record = letter["record"]
                    .as_str()
                    .or(letter["record_base64"].as_str());
                record.unwrap_or(line).to_owned()
            })
            .collect()
    }

    /// The names in the folder of letters.
    fn files(&self) -> Vec<String> {
        names(&self.path("letters"))
    }

    /// The lines of all objects, sorted, each prefixed with its folder.
    fn delivered(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut folders = vec![self.path("objects")];
        while let Some(folder) = folders.pop() {
            for name in names(&folder) {
                let path = folder.join(name);
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let below = folder.strip_prefix(self.path("objects")).unwrap();
                let text = fs::read_to_string(&path).unwrap();
                lines.extend(
                    text.lines()
                        .map(|line| format!("{}: {line}", below.display())),
                );
            }
        }
        lines.sort();
        lines
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// An event with a body, as msgpack.
fn event(body: &[u8]) -> Vec<u8> {
    let mut event = b"\x92\x92\xd7\x00\x69\x20\x62\xd2\0\0\0\0\x80".to_vec();
    event.extend(body);
    event
}

impl Run {
    #[track_caller]
    fn ends(&self, status: i32) {
        let Run { stdout, stderr, .. } = self;
        assert_eq!(self.status, Some(status), "{stdout}{stderr}");
    }
}

#[test]
fn letters_go_to_firehose_line_by_line_to_their_original_streams() {
    let fake = FakeFirehose::start(Options::default()).unwrap();
    let place = Place::firehose(&fake, "");
    let records: Vec<String> = (0..300).map(|n| format!("{{\"seq\":{n}}}")).collect();
    let mut letters: Vec<Value> = records[..200]
        .iter()
        .map(|record| letter("orders", record))
        .collect();
    letters.push(letter("users", &records[200..250].join("\n")));
    let packed = format!("{}\n", records[250..].join("\n"));
    let packed = [
        gzip(&packed.as_bytes()[..100]),
        gzip(&packed.as_bytes()[100..]),
    ]
    .concat();
    letters.push(bytes(letter("orders", ""), &packed));
    place.write(&letters);
    let run = place.run(&[]);
    run.ends(0);
    assert_eq!(run.stdout, "", "no letter stays");
    // No progress bar in a pipe, only the summary.
    assert_eq!(run.stderr, "202 letters: 202 sent (300 lines), 0 stay\n");
    assert_eq!(place.files(), [""; 0], "nothing is left");
    let report = fake.report(Some(300));
    assert!(report.is_exact(), "{report}");
    assert_eq!(report.streams["users"].lines, 50, "{report}");
}

#[test]
fn letters_are_sent_if_the_destination_accepts_them_now() {
    let place = Place::folder("");
    let large = "x".repeat(1_100_000);
    let text = |text: &str| {
        let mut body = b"\x81\xa7message".to_vec();
        body.push(0xa0 | text.len() as u8);
        body.extend(text.bytes());
        body
    };
    place.write(&[
        letter("a/b/20251121T130000Z-0.ndjson", "refused"),
        of("too_large", &large),
        // It stays: it is not an event, and was not repaired.
        bytes(of("malformed", ""), b"\xc1\xc1"),
        of("malformed", "{\"mended\":1}"),
        // An event whose line was too large is encoded like the output does.
        bytes(of("too_large", ""), &event(&text("event"))),
        of("too_deep", "no record"),
        letter("orders", "a stream's"),
        of("something_new", "new"),
    ]);
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(place.at("dead-letters.ndjson"))
        .unwrap();
    file.write_all(b"{\"time\":\"20").unwrap();
    let run = place.run(&["--json"]);
    run.ends(1);
    let mut expected = vec![
        "a/b: refused".to_owned(),
        "app/2025: a stream's".to_owned(),
        "app/2025: event".to_owned(),
        "app/2025: new".to_owned(),
        format!("app/2025: {large}"),
        "app/2025: {\"mended\":1}".to_owned(),
    ];
    expected.sort();
    assert!(
        place.delivered() == expected,
        "{:?}",
        place
            .delivered()
            .iter()
            .map(|line| &line[..line.len().min(40)])
            .collect::<Vec<_>>()
    );
    let name = "dead-letters.ndjson.replaying";
    assert_eq!(place.left(name), ["wcE=", "no record", "{\"time\":\"20"]);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        [
            &report["letters"],
            &report["sent"],
            &report["lines"],
            &report["stay"]
        ],
        [&json!(9), &json!(6), &json!(6), &json!(3)]
    );
    let stays = report["stays"].as_array().unwrap();
    let at: Vec<_> = stays
        .iter()
        .map(|stay| (stay["line"].as_u64(), stay["reason"].as_str()))
        .collect();
    assert_eq!(
        at,
        [
            (Some(1), Some("malformed")),
            (Some(2), Some("too_deep")),
            (Some(3), Some("unreadable"))
        ]
    );
    assert_eq!(report["files"], json!([place.at(name)]));

    // The next replay continues with the remaining and the new letters, and does not change the remaining ones.
    place.write(&[letter("a/b/20251121T130000Z-1.ndjson", "later")]);
    let again = place.run(&[]);
    again.ends(1);
    assert_eq!(place.delivered().len(), 7);
    assert_eq!(place.left(name), ["wcE=", "no record", "{\"time\":\"20"]);
    assert!(
        again.stdout.contains(&format!(
            "{}:2: too_deep: X: no\n",
            place.at(name).display()
        )),
        "{}",
        again.stdout
    );
    assert_eq!(place.files(), [".ferry-replay", name]);
}

#[test]
fn a_letter_refused_again_stays_and_can_be_shortened() {
    let fake = FakeFirehose::start(Options::default()).unwrap();
    let place = Place::firehose(&fake, "    aggregation off\n");
    let large = format!("{{\"seq\":1,\"text\":\"{}\"}}", "x".repeat(1_100_000));
    let three = format!(
        "{{\"seq\":2}}\n{}\n{{\"seq\":3}}",
        large.replace("seq\":1", "seq\":4")
    );
    place.write(&[
        letter("orders", &large),
        letter("orders", &three),
        letter("orders", "{\"seq\":0}"),
    ]);
    let run = place.run(&[]);
    run.ends(1);
    let name = "dead-letters.ndjson.replaying";
    let left = place.left(name);
    // Of the second letter only the refused line stays.
    assert_eq!(left.len(), 2);
    assert!(left[0] == large && left[1] == large.replace("seq\":1", "seq\":4"));
    assert!(
        run.stdout.contains(":1: too_large: a record of 11000")
            && run.stdout.contains(":2: too_large: "),
        "{}",
        run.stdout
    );
    assert_eq!(fake.report(None).totals.records, 3);

    let text = fs::read_to_string(place.at(name)).unwrap();
    fs::write(place.at(name), text.replace(&"x".repeat(1_000), "x")).unwrap();
    place.run(&[]).ends(0);
    let report = fake.report(Some(5));
    assert!(report.is_exact(), "{report}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn letters_not_accepted_in_time_stay() {
    let fake = FakeFirehose::start(Options::default()).unwrap();
    fake.push_fault("not-found").unwrap();
    let place = Place::firehose(&fake, "    flush_deadline 1s\n");
    place.write(&[
        letter("orders", "{\"seq\":0}"),
        letter("orders", "{\"seq\":1}"),
    ]);
    let before = fs::read(place.at("dead-letters.ndjson")).unwrap();
    let run = place.run(&["--retries", "0"]);
    run.ends(1);
    let name = "dead-letters.ndjson.replaying";
    assert_eq!(fs::read(place.at(name)).unwrap(), before, "as it was");
    assert!(
        run.stdout
            .lines()
            .all(|line| line.contains(": unavailable: ")),
        "{}",
        run.stdout
    );
    assert_eq!(run.stdout.lines().count(), 2);
    fake.clear_faults();
    place.run(&[]).ends(0);
    assert!(fake.report(Some(2)).is_exact());
}

#[test]
fn a_killed_replay_is_resumed() {
    let fake = FakeFirehose::start(Options::default()).unwrap();
    let place = Place::firehose(&fake, "");
    let letters: Vec<Value> = (0..500)
        .map(|n| letter("orders", &format!("{{\"seq\":{n}}}")))
        .collect();
    place.write(&letters);
    fake.push_fault("calls 4- hang 60s").unwrap();
    let mut child = place
        .command(&[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let name = "dead-letters.ndjson.replaying";
    let marked = || {
        let text = fs::read_to_string(place.at(name)).unwrap_or_default();
        text.lines().filter(|line| line.starts_with('#')).count()
    };
    let written = || fake.report(None).totals.lines as usize;
    // Wait until all delivered letters are marked, and the rest hangs.
    while marked() == 0 || marked() < written() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is sent");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let sent = marked();
    assert!((1..500).contains(&sent), "{sent}");
    fake.clear_faults();
    let run = place.run(&["--json"]);
    run.ends(0);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["letters"], 500 - sent);
    let report = fake.report(Some(500));
    assert_eq!((report.missing, report.duplicates), (0, 0), "{report}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_store_has_each_letter_once_however_often_it_is_sent_and_identical_letters_twice() {
    let place = Place::folder("");
    let same = letter("a/20251121T130000Z-0.ndjson", "same");
    place.write(&[
        same.clone(),
        same.clone(),
        letter("a/20251121T130000Z-1.ndjson", "other"),
        bytes(of("malformed", ""), b"\xc1"),
    ]);
    place.run(&[]).ends(1);
    let expected = ["a: other", "a: same", "a: same"];
    assert_eq!(place.delivered(), expected);
    // A kill between delivery and marking.
    let name = "dead-letters.ndjson.replaying";
    let stays = fs::read_to_string(place.at(name)).unwrap();
    place.write(&[same.clone(), same]);
    let written = fs::read_to_string(place.at("dead-letters.ndjson")).unwrap();
    fs::write(place.at(name), written + &stays).unwrap();
    fs::remove_file(place.at("dead-letters.ndjson")).unwrap();
    place.run(&[]).ends(1);
    assert_eq!(place.delivered(), expected);
}

#[test]
fn a_dry_run_reports_and_changes_nothing() {
    let place = Place::folder("");
    place.write(&[
        letter("a/20251121T130000Z-0.ndjson", "1\n2"),
        of("malformed", "x"),
    ]);
    let before = fs::read(place.at("dead-letters.ndjson")).unwrap();
    let run = place.run(&["--dry-run"]);
    run.ends(1);
    assert!(
        run.stderr
            .contains("2 letters: 1 would be sent (2 lines), 1 would stay"),
        "{}",
        run.stderr
    );
    assert!(
        run.stdout.ends_with(":2: malformed: X: no\n"),
        "{}",
        run.stdout
    );
    assert_eq!(place.files(), ["dead-letters.ndjson"]);
    assert_eq!(fs::read(place.at("dead-letters.ndjson")).unwrap(), before);
    assert!(place.delivered().is_empty());
}

#[test]
fn mistakes_are_reported_before_any_letter_is_taken() {
    let place = Place::folder("    alias first\n");
    let one = fs::read_to_string(place.path("fluent-bit.conf")).unwrap();
    let two = one.clone() + &one.replace("alias first", "alias second");
    let letters = [letter("a/20251121T130000Z-0.ndjson", "x")];
    let cases = [
        (
            two.clone(),
            &[][..],
            "name one of first, second with --output",
        ),
        (
            two.clone(),
            &["--output", "third"],
            "there is no output third; use one of first, second",
        ),
        (
            one.replace("ferry", "stdout"),
            &[],
            "there is no output ferry",
        ),
        (
            one.replace("compression none", "compression maybe"),
            &[],
            "compression",
        ),
        (
            one.clone(),
            &["/nonexistent/letters.ndjson"],
            "/nonexistent/letters.ndjson cannot be read",
        ),
    ];
    for (configuration, arguments, words) in cases {
        place.write(&letters);
        fs::write(place.path("fluent-bit.conf"), configuration).unwrap();
        let run = place.run(arguments);
        run.ends(2);
        assert!(run.stderr.contains(words), "{words}: {}", run.stderr);
        assert_eq!(place.files(), ["dead-letters.ndjson"], "{words}");
    }
    fs::write(place.path("fluent-bit.conf"), two).unwrap();
    for name in ["second", "1", "ferry.1"] {
        place.write(&letters);
        place.run(&["--output", name]).ends(0);
        assert_eq!(place.files(), [""; 0]);
    }
    let none = place.run(&["--output", "0"]);
    none.ends(0);
    assert!(
        none.stderr.contains("there are no dead letters in"),
        "{}",
        none.stderr
    );
}

#[test]
fn a_file_without_any_letter_is_left_alone() {
    let place = Place::folder("");
    place.write(&[letter("a/20251121T130000Z-0.ndjson", "x")]);
    let configuration = fs::read(place.path("fluent-bit.conf")).unwrap();
    let slips = [
        ("second.conf", configuration.as_slice()),
        ("comments.replaying", b"# \n#{}\n\n{\"a\":1}\n"),
        ("bytes", b"\xff\xfe\0"),
    ];
    for (name, bytes) in slips {
        let file = place.path(name);
        fs::write(&file, bytes).unwrap();
        let file = file.display().to_string();
        let letters = place.at("dead-letters.ndjson").display().to_string();
        for arguments in [&["--dry-run", &file][..], &[&letters, &file]] {
            let run = place.run(arguments);
            run.ends(2);
            assert!(
                run.stderr
                    .contains(&format!("{file} contains no dead letter")),
                "{}",
                run.stderr
            );
            assert_eq!(fs::read(&file).unwrap(), bytes, "{name}");
            assert_eq!(place.files(), ["dead-letters.ndjson"], "{name}");
        }
    }
    // A single letter is enough, even if it is marked as done.
    let line = letter("a/20251121T130000Z-0.ndjson", "x").to_string();
    for (name, text, status) in [
        ("some", format!("no letter\n{line}\n"), 1),
        ("done", format!("#{}\n", &line[1..]), 0),
    ] {
        let file = place.path(name);
        fs::write(&file, text).unwrap();
        place.run(&[file.to_str().unwrap()]).ends(status);
    }
}

#[test]
fn a_file_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;

    let place = Place::folder("");
    place.write(&[
        letter("a/20251121T130000Z-0.ndjson", "x"),
        bytes(of("malformed", ""), b"\xc1"),
    ]);
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(place.at("dead-letters.ndjson"), mode).unwrap();
    place.run(&[]).ends(1);
    let left = fs::metadata(place.at("dead-letters.ndjson.replaying")).unwrap();
    assert_eq!(left.permissions().mode() & 0o7777, 0o640);
}

#[test]
fn objects_are_named_like_those_of_the_output() {
    let events = event(b"\x81\xa7message\xa1x");
    for (keys, end) in [
        ("compression none", ".ndjson"),
        ("compression gzip", ".ndjson.gz"),
        ("compression none\n    log_key message", ".log"),
        ("compression zstd\n    log_key message", ".log.zst"),
    ] {
        let place = Place::folder("");
        let file = place.path("fluent-bit.conf");
        let text = fs::read_to_string(&file).unwrap();
        let text = text.replace("compression none\n    log_key message", keys);
        fs::write(&file, text).unwrap();
        place.write(&[
            letter("a/20251121T130000Z-0.x", "{\"a\":1}"),
            bytes(of("too_large", ""), &events),
        ]);
        place.run(&[]).ends(0);
        let mut objects = names(&place.path("objects/a"));
        objects.extend(names(&place.path("objects/app/2025")));
        assert_eq!(objects.len(), 2, "{keys}");
        for name in objects {
            assert!(
                name.ends_with(end) && !name.contains(".."),
                "{keys}: {name}"
            );
        }
    }
}

#[test]
fn objects_have_the_outputs_content_type() {
    /// The keys of a replay of lines.
    struct Keys {
        as_records: bool,
    }
    impl Properties for Keys {
        fn get(&self, key: &str) -> Option<String> {
            match key {
                "url" => Some("file:///objects".to_owned()),
                "log_key" => Some("record".to_owned()),
                _ => None,
            }
        }

        fn lines_are_records(&self) -> bool {
            self.as_records
        }
    }
    for (as_records, expected) in [
        (false, "text/plain; charset=utf-8"),
        (true, "application/x-ndjson"),
    ] {
        let config = Config::read(&Keys { as_records });
        let Ok(Destination::Blob { blob, .. }) = config.map(|config| config.destination) else {
            panic!("a blob store");
        };
        assert_eq!(blob.content_type, expected);
    }
}

/// The commands between fences below a heading or line of a page.
fn commands_behind(page: &str, line: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let (_, behind) = text.split_once(line).expect("the page has that line");
    let (_, block) = behind.split_once("```sh\n").expect("commands behind it");
    let (block, _) = block.split_once("```").expect("a fence ends");
    block.to_owned()
}

#[test]
fn letters_are_repaired_as_documented() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: python3 is not installed");
        return;
    }
    let recipe = commands_behind("docs/operating.md", "To repair letters");
    for begins_as in ["dead-letters.ndjson", "dead-letters.ndjson.replaying"] {
        let place = Place::folder("");
        let long = "é".repeat(150_000);
        let number = "12345678901234567890";
        let of_size = |record: &str| letter("a/20251121T130000Z-0.ndjson", record);
        let mut large = of_size(&format!(
            "{{\"message\":\"{long}\",\"n\":{number},\"s\":\"\\u0000<é>\"}}"
        ));
        large["reason"] = "too_large".into();
        let mut without = of_size("{\"log\":\"no message\"}");
        without["reason"] = "too_large".into();
        let mut other = of_size("{\"message\":7}");
        other["reason"] = "too_large".into();
        let lines = [
            large.to_string(),
            format!("#{}", &of_size("{\"already\":\"done\"}").to_string()[1..]),
            without.to_string(),
            String::new(),
            other.to_string(),
            of_size("{\"as\":\"it is\"}").to_string(),
            "[1]".to_owned(),
            "{\"time\":\"20".to_owned(),
        ];
        // Bytes that are not text, as a full disk may leave them.
        let mut bytes = lines.join("\n").into_bytes();
        bytes.extend(b"\n\xff\xfe garbage\n");
        fs::write(place.at(begins_as), bytes).unwrap();
        let script = recipe
            .replace(
                "dead-letters.ndjson to-mend",
                &format!("{begins_as} to-mend"),
            )
            .replace(
                "/var/lib/ferry/main/dead-letters",
                place.path("letters").to_str().unwrap(),
            )
            .replace(
                "/etc/fluent-bit/fluent-bit.conf",
                place.path("fluent-bit.conf").to_str().unwrap(),
            );
        let tools = Path::new(env!("CARGO_BIN_EXE_ferry")).parent().unwrap();
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
        let output = Command::new("sh")
            .args(["-c", &script])
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let cut = format!(
            "{{\"message\":\"{}\",\"n\":{number},\"s\":\"\\u0000<é>\"}}",
            "é".repeat(100_000)
        );
        let mut expected = vec![
            format!("a: {cut}"),
            "a: {\"as\":\"it is\"}".to_owned(),
            "a: {\"log\":\"no message\"}".to_owned(),
            "a: {\"message\":7}".to_owned(),
        ];
        expected.sort();
        let delivered = place.delivered();
        assert!(delivered == expected, "{said}{}", delivered.len());
        // A line that is not a letter stays, and is reported.
        assert!(
            said.contains("7 letters: 4 sent (4 lines), 3 stay"),
            "{said}"
        );
        assert_eq!(output.status.code(), Some(1), "{said}");
        // The files still exist, and a replay of the folder ignores them.
        assert!(
            place.files().contains(&"to-mend".to_owned()),
            "{:?}",
            place.files()
        );
        let run = place.run(&["--dry-run"]);
        assert!(
            run.stderr.contains("3 letters: 0 would be sent"),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn a_dry_run_encodes_the_events_that_a_replay_would() {
    let place = Place::folder("");
    let configuration = fs::read_to_string(place.path("fluent-bit.conf")).unwrap();
    let plain = configuration.replace("    log_key message\n", "");
    fs::write(place.path("fluent-bit.conf"), plain).unwrap();
    let deep = |depth: usize| {
        let mut body = b"\x81\xa1n".to_vec();
        body.extend(vec![0x91; depth]);
        body.push(1);
        event(&body)
    };
    place.write(&[
        bytes(of("too_deep", ""), &deep(2_000)),
        bytes(of("too_deep", ""), &deep(3)),
    ]);
    let expected = (1, 1);
    for arguments in [&["--dry-run", "--json"][..], &["--json"]] {
        let run = place.run(arguments);
        run.ends(1);
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        let found = (report["sent"].as_u64(), report["stay"].as_u64());
        assert_eq!(found, (Some(expected.0), Some(expected.1)), "{report}");
        assert_eq!(report["lines"], 1, "{report}");
        assert_eq!(report["stays"][0]["reason"], "too_deep", "{report}");
    }
}

#[test]
fn an_unreadable_letter_is_reported_with_the_field() {
    let place = Place::folder("");
    let good = letter("a/20251121T130000Z-0.ndjson", "x");
    let with = |key: &str, value: Value| {
        let mut letter = good.clone();
        letter[key] = value;
        letter
    };
    let mut without = good.clone();
    without.as_object_mut().unwrap().remove("reason");
    place.write(&[
        with("record", json!({ "a": 1 })),
        with("tag", json!(7)),
        without,
        json!(["time"]),
        with("target", json!(null)),
    ]);
    let run = place.run(&["--dry-run"]);
    run.ends(1);
    let file = place.at("dead-letters.ndjson");
    for (number, words) in [
        (1, "record must be a string, not an object"),
        (2, "tag must be a string, not a number"),
        (3, "reason is missing"),
        (4, "the line is not a JSON object"),
    ] {
        let line = format!("{}:{number}: unreadable: {words}", file.display());
        assert!(run.stdout.contains(&line), "{line}: {}", run.stdout);
    }
    assert_eq!(run.stdout.lines().count(), 4, "{}", run.stdout);
}

#[test]
fn letters_that_cannot_be_looked_at_are_not_said_to_be_none() {
    let place = Place::folder("");
    let configuration = fs::read_to_string(place.path("fluent-bit.conf")).unwrap();
    let own = place.path("letters");
    let of = |folder: &Path| {
        let text = configuration.replace(own.to_str().unwrap(), folder.to_str().unwrap());
        fs::write(place.path("fluent-bit.conf"), text).unwrap();
    };
    fs::write(place.path("file"), "").unwrap();
    fs::create_dir_all(place.path("closed/spool/letters")).unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.dir.path(), open.clone()).unwrap();
    let closed = fs::Permissions::from_mode(0o000);
    fs::set_permissions(place.path("closed"), closed).unwrap();
    for (folder, remedy) in [
        ("file/letters", "a part of it is a file"),
        (
            "closed/spool/letters",
            "run this as the user that Fluent Bit runs as",
        ),
    ] {
        let folder = place.path(folder);
        of(&folder);
        let file = folder.join("dead-letters.ndjson");
        for named in [
            &[][..],
            &[folder.to_str().unwrap()],
            &[file.to_str().unwrap()],
        ] {
            for flags in [&[][..], &["--dry-run", "--json"]] {
                let mut command = place.command(&[flags, named].concat());
                let output = as_a_user(&mut command).output().expect("ferry runs");
                let said = String::from_utf8(output.stderr).unwrap();
                assert_eq!(output.status.code(), Some(2), "{said}");
                assert!(output.stdout.is_empty(), "{said}");
                assert!(
                    said.contains(" cannot be accessed: ") && said.contains(remedy),
                    "{said}"
                );
            }
        }
    }
    fs::set_permissions(place.path("closed"), open).unwrap();
    // As for a volume that is not mounted, or an output that never wrote a letter.
    let none = place.path("none/letters");
    of(&none);
    let run = place.run(&[]);
    run.ends(0);
    let words = format!("there is no folder {}", none.display());
    assert!(run.stderr.contains(&words), "{}", run.stderr);
    assert!(!run.stderr.contains("no dead letters"), "{}", run.stderr);
    of(&own);
    let run = place.run(&[]);
    run.ends(0);
    let words = format!("there are no dead letters in {}", own.display());
    assert!(run.stderr.contains(&words), "{}", run.stderr);
}
