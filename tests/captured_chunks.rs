//! Chunks captured from a real host are encoded as valid JSON lines.

use std::fs;
use std::path::PathBuf;

use ferry::codec::json::Options;
use ferry::codec::template::Template;
use ferry::codec::{Encoded, encode};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/chunks")
}

fn encoded(name: &str, options: &Options) -> Encoded {
    let data = fs::read(folder().join(format!("{name}.msgpack"))).expect("a captured chunk");
    encode(
        options,
        &Template::parse("all", true).unwrap(),
        name.as_bytes(),
        &data,
        |_| true,
    )
}

fn text(name: &str, options: &Options) -> String {
    let encoded = encoded(name, options);
    assert!(encoded.letters.is_empty(), "{name}: {:?}", encoded.letters);
    String::from_utf8(
        encoded
            .parts
            .into_iter()
            .flat_map(|part| part.text)
            .collect(),
    )
    .expect("UTF-8")
}

fn parsed(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The host's own output for the same records, `None` for invalid JSON.
fn hosts(name: &str) -> Vec<Option<Value>> {
    fs::read_to_string(folder().join(format!("{name}.fluent-bit.ndjson")))
        .expect("the host's own lines")
        .lines()
        .map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[test]
fn every_chunk_is_valid_json_line_for_line() {
    let mut chunks = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "msgpack")
        {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let lines = parsed(&text(name, &Options::default()));
        assert!(lines.iter().all(Value::is_object), "{name}");
        if name != "host.cpu" {
            assert_eq!(lines.len(), hosts(name).len(), "{name}");
        }
        chunks += 1;
    }
    assert_eq!(chunks, 10);
}

#[test]
fn ordinary_records_match_the_hosts_own_output() {
    for name in ["app.types", "fwd.msg"] {
        for (ours, theirs) in parsed(&text(name, &Options::default()))
            .iter()
            .zip(hosts(name))
        {
            assert_eq!(Some(ours), theirs.as_ref(), "{name}");
        }
    }
}

#[test]
fn text_is_not_escaped_and_so_is_shorter() {
    let text = text("app.types", &Options::default());
    assert!(text.contains("회원가입에 성공했습니다."));
    assert!(text.contains("😀👨‍👩‍👧‍👦"));
    assert!(text.contains(r#""u64max":18446744073709551615"#));
    assert!(text.contains(r#""i64min":-9223372036854775808"#));
    let hosts = fs::read_to_string(folder().join("app.types.fluent-bit.ndjson")).unwrap();
    assert!(text.len() < hosts.len());
}

#[test]
fn invalid_utf8_is_replaced_and_the_rest_is_kept() {
    let lines = parsed(&text("app.raw", &Options::default()));
    let logs: Vec<&str> = lines
        .iter()
        .map(|line| line["log"].as_str().unwrap())
        .collect();
    assert_eq!(logs[0], "plain line");
    assert_eq!(logs[1], "latin1 caf\u{fffd} end");
    assert_eq!(logs[3], "nul \0 mid");
    assert_eq!(logs[6], "  {\"json\":\"inside \\\"log\\\"\"}  ");
    assert_eq!(logs[7].len(), 40_000);
}

#[test]
fn odd_keys_and_values_of_forwarded_records_are_valid() {
    let expected = [
        json!({"k": "int-time"}),
        json!({"k": "ext-time"}),
        json!({"k": "bin", "b": "AAH/", "ext": "YWJj"}),
        json!({"1": "bool key", "null": "nil key", "2.5": "float key", "k": "odd-keys"}),
        json!({"k": "dup", "f32": 1.5}),
    ];
    assert_eq!(parsed(&text("fwd.array", &Options::default())), expected);
    let packed = text("fwd.packed", &Options::default());
    let packed = packed.replace("\"b\":\"AwAB/w==\"", "\"b\":\"AAH/\"");
    assert_eq!(parsed(&packed), expected);
    assert_eq!(
        text("fwd.f32", &Options::default()),
        "{\"k\":\"f32\",\"v\":1.1}\n"
    );
}

/// The lines of each folder, in the order of their first events.
fn by_name(name: &str, template: &str, options: &Options) -> Vec<(String, Vec<Value>)> {
    let data = fs::read(folder().join(format!("{name}.msgpack"))).expect("a captured chunk");
    let names = Template::parse(template, true).unwrap();
    let encoded = encode(options, &names, name.as_bytes(), &data, |_| true);
    assert!(encoded.letters.is_empty() && encoded.skipped.is_empty());
    let parts = encoded.parts.into_iter();
    parts
        .map(|part| (part.name, parsed(&String::from_utf8(part.text).unwrap())))
        .collect()
}

/// Fluentd tags text as binary, keys too. All but the last three records of these chunks are text, or binary that is
/// UTF-8.
#[test]
fn text_that_fluentd_forwards_as_binary_matches_the_hosts_own_output() {
    for name in ["fluentd.array", "fluentd.packed"] {
        let ours = parsed(&text(name, &Options::default()));
        let theirs = hosts(name);
        let (text, others) = ours.split_at(ours.len() - 3);
        for (ours, theirs) in text.iter().zip(&theirs) {
            assert_eq!(Some(ours), theirs.as_ref(), "{name}");
        }
        // Bytes that are not UTF-8. The host writes other characters.
        let expected = json!({
            "log": "Y2Fm6SBlbmQ=",
            "cut": "7ZqM7Js=",
            "//4=": 1,
            "gz": "H4sIAAAAAAACA6sAAIMW3IwBAAAA",
            "surrogate": "7aCA",
        });
        assert_eq!(others[0], expected, "{name}");
        assert_eq!(Some(&others[1]), theirs[ours.len() - 2].as_ref(), "{name}");
        let expected = json!({"log": "ext", "ext": "YWJj", "1": "integer key", "null": "nil key"});
        assert_eq!(others[2], expected, "{name}");
    }
}

#[test]
fn keys_that_fluentd_forwards_as_binary_are_found_by_every_option() {
    let logs = Options {
        log_key: Some("log".into()),
        ..Options::default()
    };
    let encoded = encoded("fluentd.packed", &logs);
    assert!(encoded.letters.is_empty());
    assert_eq!(encoded.skipped.len(), 1, "an empty text");
    let [part] = &encoded.parts[..] else {
        panic!("{} parts", encoded.parts.len())
    };
    let line = |number: usize| {
        let start = if number == 0 {
            0
        } else {
            part.ends[number - 1]
        };
        std::str::from_utf8(&part.text[start..part.ends[number]]).unwrap()
    };
    assert_eq!(line(0), "hello\n");
    assert_eq!(line(1), "q\" b\\ \t 회원가입 😀\n");
    assert_eq!(line(3), "x".repeat(300) + "\n");
    assert_eq!(line(4), "hello\n");
    assert_eq!(line(5), "\"Y2Fm6SBlbmQ=\"\n");
    assert_eq!(line(7), "ext\n");

    let chosen = Options {
        data_keys: vec!["log".into(), "a.b".into(), "kubernetes".into()],
        replace_dots: Some("_".into()),
        ..Options::default()
    };
    let by_name = by_name(
        "fluentd.packed",
        "{record.kubernetes.labels.app}/{record.log|empty}",
        &chosen,
    );
    let part = |number: usize| {
        let (name, lines) = &by_name[number];
        (name.as_str(), lines.as_slice())
    };
    let hello = json!({"log": "hello"});
    assert_eq!(part(0), ("none/hello", &[hello.clone(), hello][..]));
    let labels = json!({"app": "web", "app_kubernetes_io/name": "회원"});
    let labelled = json!({
        "log": "q\" b\\ \t 회원가입 😀",
        "kubernetes": {"pod_name": "web-1", "labels": labels},
    });
    let (name, lines) = part(1);
    assert!(name.starts_with("web/q__b____회원가입__~"), "{name}");
    assert_eq!(lines, [labelled]);
    assert_eq!(
        part(2),
        (
            "none/empty",
            &[
                json!({"log": "", "a_b": {"c_d": 1}}),
                json!({"log": "Y2Fm6SBlbmQ="})
            ][..]
        )
    );
}

#[test]
fn otlp_records_keep_their_metadata_resource_and_scope() {
    let options = Options {
        metadata_key: Some("meta".into()),
        ..Options::default()
    };
    let lines = parsed(&text("otel", &options));
    assert_eq!(lines.len(), 2, "group marks are not records");
    assert_eq!(lines[0]["log"], "boom");
    let meta = &lines[0]["meta"];
    assert_eq!(meta["otlp"]["severity_text"], "ERROR");
    assert_eq!(meta["otlp"]["trace_id"], "W47/95gDgQPSabYzgT/GDA==");
    assert_eq!(meta["resource"]["attributes"]["service.name"], "user");
    assert_eq!(meta["scope"]["version"], "1");
    assert_eq!(meta["group"]["schema"], "otlp");
    assert_eq!(lines[1]["meta"]["scope"]["name"], "lib");
}

#[test]
fn a_captured_chunk_cut_or_corrupted_anywhere_loses_only_what_is_broken() {
    let data = fs::read(folder().join("fwd.array.msgpack")).unwrap();
    let names = Template::parse("all", true).unwrap();
    let read = |data: &[u8]| {
        let encoded = encode(&Options::default(), &names, b"t", data, |_| true);
        let text = encoded.parts.into_iter().flat_map(|part| part.text);
        let text = String::from_utf8(text.collect()).expect("UTF-8");
        parsed(&text);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines, encoded.letters.len())
    };
    // The end of each event, according to another msgpack reader.
    let mut rest = &data[..];
    let mut ends = Vec::new();
    while !rest.is_empty() {
        rmpv::decode::read_value(&mut rest).expect("a whole event");
        ends.push(data.len() - rest.len());
    }
    let (whole, letters) = read(&data);
    assert_eq!((whole.len(), ends.len(), letters), (5, 5, 0));
    for cut in 0..data.len() {
        let (lines, letters) = read(&data[..cut]);
        let before = ends.partition_point(|end| *end <= cut);
        assert_eq!(lines, whole[..before], "cut at {cut}");
        let clean = cut == 0 || ends.contains(&cut);
        assert_eq!(letters, usize::from(!clean), "cut at {cut}");
    }
    for at in 0..data.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut corrupt = data.clone();
            corrupt[at] ^= flip;
            // A flipped bit may turn an event into another valid one, or into one that swallows its neighbours. Earlier
            // events are unchanged, and every other event is a letter.
            let (lines, letters) = read(&corrupt);
            let before = ends.partition_point(|end| *end <= at);
            assert!(
                lines.starts_with(&whole[..before]),
                "byte {at} ^ {flip:02x}: {lines:?}"
            );
            assert!(lines.len() + letters > before, "byte {at} ^ {flip:02x}");
            // If the event still ends at the same offset, it swallows none, and all others are lines.
            let end = ends[before];
            let start = if before == 0 { 0 } else { ends[before - 1] };
            let mut rest = &corrupt[start..];
            let same_end =
                rmpv::decode::read_value(&mut rest).is_ok() && corrupt.len() - rest.len() == end;
            if same_end {
                assert!(
                    lines.ends_with(&whole[before + 1..]),
                    "byte {at} ^ {flip:02x}: {lines:?}"
                );
            }
        }
    }
}
