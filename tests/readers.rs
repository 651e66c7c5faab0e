//! Parquet files are read by readers of other makers: the same rows, types and values, two generations of columns together.
//!
//! `FERRY_READERS` names an environment with more readers than those of `make emulators`: see `make readers`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ferry::codec::Encoding;
use ferry::codec::json::Options;
use ferry::codec::template::Template;
use ferry::format::parquet::columns::Columns;
use ferry::format::parquet::{Packing, Parquet};
use ferry::format::{Body, Format};
use serde_json::{Value, json};

use crate::support::emulators::installed;

/// 2025-07-02T20:44:31.123456Z
const TIME: (u32, u32) = (1_751_489_071, 123_456_000);
const MICROS: i64 = 1_751_489_071_123_456;

/// Writes records as a file of a table.
fn write(path: &Path, list: &str, packing: Packing, records: &[Value]) {
    let columns = Columns {
        declared: Columns::parse_list(list).unwrap(),
        ..Columns::default()
    };
    columns.check().unwrap();
    let format: Arc<dyn Format> = Arc::new(Parquet::new(columns, packing));
    let mut chunk = Vec::new();
    for record in records {
        chunk.extend_from_slice(b"\x92\x92\xd7\x00");
        chunk.extend_from_slice(&TIME.0.to_be_bytes());
        chunk.extend_from_slice(&TIME.1.to_be_bytes());
        chunk.push(0x80);
        rmpv::encode::write_value(&mut chunk, &rmpv::ext::to_value(record).unwrap()).unwrap();
    }
    let (options, names) = (Options::default(), Template::parse("x", true).unwrap());
    let encoding = Encoding {
        rows: format.rows(),
        ..Encoding::new(&options, &names)
    };
    let mut body = Body::new(&format);
    for step in encoding.steps(&b"app"[..].into(), &chunk, |_| true) {
        assert!(step.letters.is_empty());
        step.parts.iter().for_each(|part| body.push(&part.text));
    }
    std::fs::write(path, body.seal().finish().to_bytes()).unwrap();
}

/// What a reader makes of a folder.
fn read(python: &Path, reader: &str, folder: &Path) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers/read.py");
    let output = Command::new(python)
        .args([&script, Path::new(reader), folder])
        .output()
        .expect("python");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{reader}: {errors}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|it| panic!("{it}: {line}"));
    lines.lines().map(parse).collect()
}

/// The readers of `make test`, or all of `make readers`.
fn readers() -> (PathBuf, &'static [&'static str]) {
    match std::env::var_os("FERRY_READERS") {
        Some(environment) => {
            let python = Path::new(&environment).join("bin/python");
            (python, &["duckdb", "pyarrow", "polars", "spark"])
        }
        None => (installed("readers/bin/python"), &["duckdb", "pyarrow"]),
    }
}

#[test]
fn readers_of_other_makers_see_the_same_rows_in_two_generations_of_columns() {
    let folder = tempfile::tempdir().unwrap();
    let first = [
        json!({"seq": 0, "level": "info", "status": 200, "took": 1.5, "ok": true, "at": "2025-07-02T20:44:31Z", "body": {"a": [1]}}),
        json!({"seq": 1, "level": 5, "status": "404", "took": 3, "ok": false, "at": 1_751_489_071, "more": {"b": "회원"}}),
        json!({"seq": 2, "level": {}, "status": 1.5, "took": "no", "ok": 1, "at": "yesterday", "body": null}),
        json!({"seq": 3}),
        json!({"seq": 4, "level": "", "status": u64::MAX, "took": 1e300, "body": "text"}),
    ];
    let list = "seq int, level string, status int, took float, ok bool, at timestamp_s, body json";
    let second = [
        json!({"seq": 5, "level": "warn", "status": -1, "trace": "abc", "more": {"b": "x", "c": 1}}),
        json!({"seq": 6, "trace": 7, "more": {"b": {"deep": 1}}}),
    ];
    let more = format!("{list}, trace string bloom, b string = more.b");
    write(
        &folder.path().join("1.parquet"),
        list,
        Packing::Snappy,
        &first,
    );
    write(
        &folder.path().join("2.parquet"),
        &more,
        Packing::Zstd(1),
        &second,
    );

    let row = |seq: u32, values: Value, rest: Value| {
        let mut row = json!({
            "seq": seq, "time": MICROS, "tag": "app", "level": null, "status": null, "took": null, "ok": null, "at": null,
            "body": null, "trace": null, "b": null, "rest": null,
        });
        for (name, value) in values.as_object().unwrap() {
            row[name] = value.clone();
        }
        if !rest.is_null() {
            row["rest"] = rest.to_string().into();
        }
        row
    };
    let at = 1_751_489_071_000_000_i64;
    let expected = [
        row(
            0,
            json!({"level": "info", "status": 200, "took": 1.5, "ok": true, "at": at, "body": "{\"a\":[1]}"}),
            Value::Null,
        ),
        row(
            1,
            json!({"level": "5", "status": 404, "took": 3.0, "ok": false, "at": at}),
            json!({"more": {"b": "회원"}}),
        ),
        row(
            2,
            json!({}),
            json!({"level": {}, "status": 1.5, "took": "no", "ok": 1, "at": "yesterday"}),
        ),
        row(3, json!({}), Value::Null),
        row(
            4,
            json!({"level": "", "took": 1e300, "body": "\"text\""}),
            json!({"status": u64::MAX}),
        ),
        row(
            5,
            json!({"level": "warn", "status": -1, "trace": "abc", "b": "x"}),
            json!({"more": {"c": 1}}),
        ),
        row(
            6,
            json!({"trace": "7"}),
            json!({"more": {"b": {"deep": 1}}}),
        ),
    ];
    let (python, readers) = readers();
    for reader in readers {
        let mut rows = read(&python, reader, folder.path());
        assert_eq!(rows.len(), expected.len(), "{reader}");
        for (row, expected) in rows.iter_mut().zip(&expected) {
            // The order of keys in the rest is the record's.
            let mut expected = expected.clone();
            for side in [&mut *row, &mut expected] {
                if let Some(rest) = side["rest"].as_str() {
                    side["rest"] = serde_json::from_str(rest).unwrap();
                }
            }
            assert_eq!(*row, expected, "{reader}");
        }
    }
}
