//! Dead letters, sent again through the probe.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::*;

/// A dead-letter folder and the configuration beside it.
struct Replay {
    directory: TempDir,
}

struct Replayed {
    status: Option<i32>,
    stdout: String,
    stderr: String,
    /// What the probe wrote down.
    log: Vec<String>,
}

/// A letter that was refused on its way to a target.
fn letter(target: &str, tag: &str, record: &str) -> Value {
    json!({
        "time": "2025-11-21T13:00:00.250Z", "tag": tag, "reason": "refused", "error": "X: no",
        "target": target, "record": record,
    })
}

/// The section that letters went out through, with a blob store or a stream.
fn blob(properties: &str) -> String {
    section(&format!(
        "    url az://logs/prod\n    path {{tag}}/%Y\n{properties}"
    ))
}

fn firehose(properties: &str) -> String {
    section(&format!("    delivery_stream {{tag}}\n{properties}"))
}

fn section(properties: &str) -> String {
    format!(
        "{QUICK}[INPUT]\n    Name cpu\n[OUTPUT]\n    Name stdout\n    Match *\n\
         [OUTPUT]\n    Name probe\n    Match app.*\n    Workers 1\n{properties}"
    )
}

impl Replay {
    fn new(letters: &[Value]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for folder in ["letters", "dump"] {
            fs::create_dir(directory.path().join(folder)).unwrap();
        }
        let replay = Self { directory };
        replay.write("dead-letters.ndjson", letters);
        replay
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join("letters").join(name)
    }

    fn write(&self, name: &str, letters: &[Value]) {
        let lines: String = letters.iter().map(|letter| format!("{letter}\n")).collect();
        fs::write(self.at(name), lines).unwrap();
    }

    /// The records in a file of letters.
    fn records(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.at(name)).unwrap();
        let letters = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        letters
            .map(|letter| letter["record"].as_str().unwrap().to_owned())
            .collect()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at("")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// The lines in a chunk that the probe wrote down, and the time of its first event.
    fn dumped(&self, name: &str) -> (Vec<String>, String) {
        let data = fs::read(self.directory.path().join("dump").join(name)).unwrap();
        let (mut rest, mut lines, mut time) = (&data[..], Vec::new(), None);
        while !rest.is_empty() {
            let event = rmpv::decode::read_value(&mut rest).unwrap();
            let rmpv::Value::Ext(0, at) = &event[0][0] else {
                panic!("{event} has no time");
            };
            let part = |from: usize| u32::from_be_bytes(at[from..from + 4].try_into().unwrap());
            time.get_or_insert(format!("{}.{:09}", part(0), part(4)));
            let body = event[1].as_map().unwrap();
            assert_eq!(body.len(), 1);
            assert_eq!(body[0].0.as_str(), Some("record"));
            lines.push(body[0].1.as_str().unwrap().to_owned());
        }
        (lines, time.unwrap())
    }

    fn run(&self, configuration: &str, arguments: &[&str]) -> Replayed {
        let at = |name: &str| self.directory.path().join(name);
        let _ = fs::remove_file(at("log"));
        fs::write(at("fluent-bit.conf"), configuration).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_ferry-harness"))
            .current_dir(self.directory.path())
            .args([
                "replay",
                "letters",
                "--quiet",
                "-c",
                "fluent-bit.conf",
                "-e",
            ])
            .arg(the_probe())
            .args(arguments)
            .env("PROBE_LOG", at("log"))
            .env_remove("FLB_LOG_LEVEL")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let log = fs::read_to_string(at("log")).unwrap_or_default();
        Replayed {
            status: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            log: log.lines().map(str::to_owned).collect(),
        }
    }
}

impl Replayed {
    fn lines(&self, begin: &str) -> Vec<&str> {
        let lines = self.log.iter().map(String::as_str);
        lines.filter(|line| line.starts_with(begin)).collect()
    }

    #[track_caller]
    fn says(&self, text: &str) {
        let all = format!("{}{}", self.stdout, self.stderr);
        assert!(all.contains(text), "{text:?} is not in:\n{all}");
    }
}

#[test]
fn letters_go_out_line_by_line_where_they_were_on_their_way_to() {
    let mut packed = letter("orders", "app.b", "");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all("{\"n\":\"넷\"}\n{\"n\":5}\n".as_bytes())
        .unwrap();
    let object = packed.as_object_mut().unwrap();
    object.remove("record");
    object.insert(
        "record_base64".to_owned(),
        BASE64_STANDARD.encode(encoder.finish().unwrap()).into(),
    );
    let replay = Replay::new(&[
        letter("orders", "app.a", "{\"n\":1}\n{\"n\":2}\n"),
        letter("users", "app.c", "{\"n\":6}"),
        letter("orders", "app.a", "{\"n\":3}"),
        packed,
    ]);
    let keys = "    log_key message\n    time_key at\n    time_key_format epoch\n    tag_key tag\n    \
        metadata_key meta\n    replace_dots _\n    Data_Keys a,b\n    spool on\n    spool_dir /x\n    \
        linger 5\n    instance main\n    dead_letter_dir /elsewhere\n    compression gzip\n    dump dump\n    \
        show log_key,time_key,time_key_format,tag_key,metadata_key,replace_dots,data_keys,spool,spool_dir,\
        linger,instance,delivery_stream,compression,dead_letter_dir\n";
    let ran = replay.run(&firehose(keys), &[]);
    assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
    let folder = std::path::absolute(replay.at("")).unwrap();
    let folder = folder.to_str().unwrap().trim_end_matches('/');
    let shown = |stream: &str| {
        let out =
            "time_key time_key_format tag_key metadata_key replace_dots data_keys spool_dir linger";
        let mut wanted: Vec<_> = out.split(' ').map(|key| format!("{key}=(null)")).collect();
        wanted.extend(
            [
                "log_key=record",
                "spool=off",
                "instance=main-replay",
                "compression=gzip",
            ]
            .map(str::to_owned),
        );
        wanted.push(format!("delivery_stream={stream}"));
        wanted.push(format!("dead_letter_dir={folder}"));
        wanted.sort();
        wanted
    };
    let found: Vec<_> = ran
        .log
        .iter()
        .filter(|line| line.contains('='))
        .cloned()
        .collect();
    let (mut first, mut second) = (found[..14].to_vec(), found[14..].to_vec());
    first.sort();
    second.sort();
    assert_eq!((first, second), (shown("orders"), shown("users")));

    let time = "1763730000.250000000".to_owned();
    let wanted = ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(
        replay.dumped("app.a.1"),
        (wanted, time),
        "one chunk for two letters"
    );
    assert_eq!(replay.dumped("app.b.2").0, ["{\"n\":\"넷\"}", "{\"n\":5}"]);
    assert_eq!(replay.dumped("app.c.1").0, ["{\"n\":6}"]);
    let calls: Vec<_> = ran.log.iter().filter(|line| !line.contains('=')).collect();
    let calls: Vec<_> = calls
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let instance = |flushes: usize| {
        [
            &["init", "pre_run"][..],
            &vec!["flush"; flushes],
            &["pre_exit", "exit"],
        ]
        .concat()
    };
    let wanted = [
        &["pre_register", "register"][..],
        &instance(2),
        &instance(1),
        &["unregister"],
    ]
    .concat();
    assert_eq!(calls, wanted, "one instance at a time");
    assert_eq!(replay.files(), [""; 0], "all of it was delivered");
    ran.says("4 letters: 4 delivered (6 lines), 0 kept, 0 not delivered; 0 new letters");
}

#[test]
fn objects_go_into_their_folder_below_the_urls_prefix() {
    let mut without = letter("", "app.c", "c");
    without.as_object_mut().unwrap().remove("target");
    let replay = Replay::new(&[
        letter("prod/app/20%25/x.ndjson", "app.a", "a"),
        letter("prod/y.ndjson", "app.b", "b"),
        without,
        letter("prod/app/20%25/z.ndjson", "app.d", "d"),
    ]);
    let ran = replay.run(&blob("    show path,url\n"), &[]);
    assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(
        ran.lines("path="),
        ["path={tag}/%Y", "path=/", "path=app/20%%25"]
    );
    let flushed: Vec<_> = ran
        .lines("flush")
        .iter()
        .map(|line| line.split(' ').nth(2).unwrap().to_owned())
        .collect();
    assert_eq!(flushed, ["app.c", "app.b", "app.a", "app.d"]);
}

#[test]
fn a_letter_for_a_blob_store_is_a_chunk_of_its_own_or_several() {
    let line = |n: usize| format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(100_000));
    let large: Vec<_> = (0..50).map(line).collect();
    let replay = Replay::new(&[
        letter("prod/app/x", "app.a", "1"),
        letter("prod/app/y", "app.a", &large.join("\n")),
        letter("prod/app/z", "app.a", "3"),
    ]);
    let ran = replay.run(&blob("    dump dump\n"), &[]);
    assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(replay.dumped("app.a.1").0, ["1"]);
    let parts: Vec<_> = (2..5)
        .flat_map(|call| replay.dumped(&format!("app.a.{call}")).0)
        .collect();
    assert_eq!(parts, large);
    assert_eq!(replay.dumped("app.a.5").0, ["3"]);
    ran.says("3 letters: 3 delivered (52 lines)");
}

#[test]
fn what_cannot_be_sent_as_it_is_is_kept_and_said() {
    let of = |reason: &str, record: &str| {
        let mut letter = letter("prod/a/x", "app", record);
        letter["reason"] = reason.into();
        letter
    };
    let replay = Replay::new(&[
        of("too_large", "large"),
        of("refused", "good"),
        of("too_deep", "deep"),
        of("malformed", "odd"),
        of("too_large", "large too"),
        of("refused", ""),
    ]);
    let path = replay.at("dead-letters.ndjson");
    let torn = format!("{}{{\"time\":\"20", fs::read_to_string(&path).unwrap());
    fs::write(&path, torn).unwrap();
    let ran = replay.run(&blob(""), &[]);
    assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.lines("flush").len(), 1);
    assert_eq!(replay.files(), ["dead-letters.ndjson.kept"]);
    let kept = fs::read_to_string(replay.at("dead-letters.ndjson.kept")).unwrap();
    assert!(
        kept.ends_with("\n{\"time\":\"20\n") && kept.lines().count() == 6,
        "{kept}"
    );
    for text in [
        "1 letters to send, 6 that cannot be sent as they are",
        "dead-letters.ndjson.kept",
        "kept 2: too_large: a line that no destination of this kind takes: shorten it",
        "kept 1: too_deep: ",
        "kept 1: malformed: ",
        "kept 1: its record is empty",
        "kept 1: the line is no letter: ",
        "7 letters: 1 delivered (1 lines), 6 kept, 0 not delivered",
    ] {
        ran.says(text);
    }
    let again = replay.run(&blob(""), &[]);
    assert_eq!(again.status, Some(0));
    again.says("there are no dead letters in");
}

#[test]
fn what_is_not_delivered_stays_for_the_next_replay() {
    let letters = ["1", "2", "3"].map(|record| letter("prod/a/x", "app", record));
    // (answers, Retry_Limit, flushes, records left)
    let cases: [(&str, &str, usize, &[&str]); 4] = [
        ("oeo", "1", 3, &["2"]),
        ("oer", "1", 4, &["2", "3"]),
        ("r", "no_limits", 18, &["1", "2", "3"]),
        ("o", "1", 3, &[]),
    ];
    for (answers, limit, flushes, left) in cases {
        let case = format!("{answers} with {limit}");
        let replay = Replay::new(&letters);
        let properties = format!("    answers {answers}\n    Retry_Limit {limit}\n");
        let ran = replay.run(&blob(&properties), &[]);
        assert_eq!(ran.lines("flush").len(), flushes, "{case}: {}", ran.stderr);
        assert_eq!(ran.status, Some(i32::from(!left.is_empty())), "{case}");
        if left.is_empty() {
            assert_eq!(replay.files(), [""; 0], "{case}");
            continue;
        }
        ran.says("mend what the log above says, and replay again");
        assert_eq!(replay.files(), ["dead-letters.ndjson.replaying"], "{case}");
        assert_eq!(
            replay.records("dead-letters.ndjson.replaying"),
            left,
            "{case}"
        );

        replay.write("dead-letters.ndjson", &[letter("prod/a/x", "app", "4")]);
        let again = replay.run(&blob(""), &[]);
        assert_eq!(again.status, Some(0), "{case}: {}", again.stderr);
        assert_eq!(again.lines("flush").len(), left.len() + 1, "{case}");
        assert_eq!(replay.files(), [""; 0], "{case}");
    }
}

#[test]
fn a_killed_replay_is_taken_up_again() {
    let records = ["1", "2", "3", "4"];
    let replay =
        Replay::new(&records.map(|record| letter("prod/a/x", &format!("app.{record}"), record)));
    let killed = replay.run(&blob("    Signal 9 3\n"), &[]);
    assert_eq!(killed.status, None);
    assert_eq!(killed.lines("flush").len(), 3);
    assert_eq!(replay.files(), ["dead-letters.ndjson.replaying"]);
    let again = replay.run(&blob(""), &[]);
    assert_eq!(again.status, Some(0), "{}{}", again.stdout, again.stderr);
    let flushed = again.lines("flush");
    for record in ["3", "4"] {
        let tag = format!(" app.{record} ");
        assert!(
            flushed.iter().any(|line| line.contains(&tag)),
            "{record}: {flushed:?}"
        );
    }
    assert_eq!(replay.files(), [""; 0]);
}

#[test]
fn a_replay_that_is_told_to_stop_leaves_the_rest() {
    let replay = Replay::new(&[
        letter("prod/a/x", "app", "1"),
        letter("prod/b/x", "app", "2"),
    ]);
    let ran = replay.run(
        &blob("    answers r\n    Retry_Limit no_limits\n    Signal 15 1\n"),
        &[],
    );
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert_eq!(ran.lines("init").len(), 1, "no further instance is started");
    assert_eq!(replay.records("dead-letters.ndjson.replaying"), ["1", "2"]);
}

#[test]
fn what_is_refused_again_is_in_a_new_file() {
    let replay = Replay::new(&[
        letter("prod/a/x", "app", "1"),
        letter("prod/a/y", "app", "2"),
    ]);
    let ran = replay.run(&blob("    refuse 2\n"), &[]);
    assert_eq!(ran.status, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(replay.files(), ["dead-letters.ndjson"]);
    assert_eq!(replay.records("dead-letters.ndjson"), ["again"]);
    ran.says("2 letters: 2 delivered (2 lines), 0 kept, 0 not delivered; 1 new letters");
    ran.says("refused again");
}

#[test]
fn a_dry_run_counts_and_changes_nothing() {
    let replay = Replay::new(&[
        letter("b", "app", "1"),
        letter("a", "app", "2"),
        letter("b", "app", "3"),
    ]);
    replay.write(
        "dead-letters.ndjson.replaying",
        &[letter("a", "app", "4"), json!({ "time": 5 })],
    );
    let before = replay.files();
    let output = Command::new(env!("CARGO_BIN_EXE_ferry-harness"))
        .args(["replay", "--dry-run"])
        .arg(replay.at(""))
        .output()
        .unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    let words: Vec<Vec<_>> = printed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[..3],
        [
            vec!["1", "no", "letter", "-"],
            vec!["2", "refused", "a"],
            vec!["2", "refused", "b"]
        ]
    );
    assert_eq!(words[3], ["5", "letters", "in", "2", "files"]);
    assert_eq!(replay.files(), before);
    assert_eq!(replay.records("dead-letters.ndjson"), ["1", "2", "3"]);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_sent() {
    let two = format!(
        "{}[OUTPUT]\n    Name probe\n    Alias second\n    Match *\n",
        blob("    Alias first\n")
    );
    // (configuration, arguments, message, whether the letters have their own name still)
    let cases = [
        (
            two.clone(),
            &[][..],
            "several outputs fit: name one of probe.1 (first), probe.2 (second) with --output",
            true,
        ),
        (
            two.clone(),
            &["--output", "third"],
            "there is no output 'third' of the libraries loaded; there are probe.1",
            true,
        ),
        (
            blob("").replace("Name probe", "Name other"),
            &[],
            "name them with -e or Plugins_File",
            true,
        ),
        (
            "[OUTPUT]\n".to_owned(),
            &[],
            "the section has no Name",
            true,
        ),
        (
            blob("    fail_init on\n"),
            &[],
            "could not initialize 'probe.1'",
            false,
        ),
    ];
    for (configuration, arguments, message, untouched) in cases {
        let replay = Replay::new(&[letter("prod/a/x", "app", "1")]);
        let ran = replay.run(&configuration, arguments);
        assert_eq!(ran.status, Some(2), "{message}: {}", ran.stderr);
        ran.says(message);
        let name = ["dead-letters.ndjson.replaying", "dead-letters.ndjson"][usize::from(untouched)];
        assert_eq!(replay.records(name), ["1"], "{message}");
        assert!(ran.lines("flush").is_empty(), "{message}");
    }
    for name in ["second", "probe.2"] {
        let replay = Replay::new(&[letter("stream", "app", "1")]);
        let ran = replay.run(&two, &["--output", name]);
        assert_eq!(ran.status, Some(0), "{name}: {}", ran.stderr);
    }
}
