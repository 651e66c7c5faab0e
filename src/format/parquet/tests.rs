//! Tables are read back by the library's own reader, and compared with the lines that the same events become.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Encoding;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::Field;
use proptest::prelude::*;
use rmpv::Value as Rmp;
use serde_json::{Map, Value};

use super::columns::{Columns, Type, micros};
use super::{Packing, Parquet};
use crate::codec::json::{Encoder, Options};
use crate::codec::msgpack::{Event, Events, Item};
use crate::codec::template::Template;
use crate::codec::{Encoded, Encoding as Chunks};
use crate::format::{self, Body, Format};
use crate::ids::Time;

/// A row of a file: its values by column.
pub(crate) type Row = BTreeMap<String, Field>;

/// Reads a file's rows.
pub(crate) fn read(file: Bytes) -> Vec<Row> {
    let reader = SerializedFileReader::new(file).expect("a file");
    let rows = reader.get_row_iter(None).expect("rows");
    let row = |row: parquet::errors::Result<parquet::record::Row>| {
        let row = row.expect("a row");
        let columns = row.get_column_iter();
        columns
            .map(|(name, field)| (name.clone(), field.clone()))
            .collect()
    };
    rows.map(row).collect()
}

fn columns(list: &str) -> Columns {
    let columns = Columns {
        declared: Columns::parse_list(list).unwrap(),
        metadata: Some("meta".into()),
        ..Columns::default()
    };
    columns.check().unwrap();
    columns
}

fn table(list: &str) -> Arc<dyn Format> {
    Arc::new(Parquet::new(columns(list), Packing::Zstd(1)))
}

/// Encodes a chunk as rows.
fn encode(format: &Arc<dyn Format>, tag: &[u8], data: &[u8]) -> Vec<Encoded> {
    let (options, names) = (Options::default(), Template::parse("x", true).unwrap());
    let encoding = Chunks {
        rows: format.rows(),
        ..Chunks::new(&options, &names)
    };
    let tag = tag.into();
    encoding.steps(&tag, data, |_| true).collect()
}

/// Returns the file of a chunk, and the number of events that became letters.
fn file(format: &Arc<dyn Format>, tag: &[u8], data: &[u8]) -> (Bytes, usize) {
    let mut body = Body::new(format);
    let mut letters = 0;
    for step in encode(format, tag, data) {
        letters += step.letters.len();
        for part in step.parts {
            assert_eq!(part.ends.last(), Some(&part.text.len()));
            body.push(&part.text);
        }
    }
    (body.seal().finish().to_bytes(), letters)
}

fn event(seconds: u32, body: &Rmp) -> Vec<u8> {
    let mut bytes = b"\x92\x92\xd7\x00".to_vec();
    bytes.extend_from_slice(&seconds.to_be_bytes());
    bytes.extend_from_slice(b"\0\0\0\0\x80");
    rmpv::encode::write_value(&mut bytes, body).unwrap();
    bytes
}

/// Writes a record of JSON as an event.
fn of_json(text: &str) -> Vec<u8> {
    let value: Value = serde_json::from_str(text).unwrap();
    event(1, &rmpv::ext::to_value(value).unwrap())
}

/// Returns a record as a line has it.
fn line(event: &Event<'_>) -> Value {
    let options = Options::default();
    let mut text = Vec::new();
    Encoder::new(&options)
        .line(b"t", event, &mut text)
        .expect("a line");
    serde_json::from_slice(&text).expect("JSON")
}

/// Removes the value at a path, and the maps that become empty.
fn take(value: &mut Map<String, Value>, path: &[String]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    if rest.is_empty() {
        return value.remove(first);
    }
    let Some(Value::Object(inner)) = value.get_mut(first) else {
        return None;
    };
    let taken = take(inner, rest);
    if taken.is_some() && inner.is_empty() {
        value.remove(first);
    }
    taken
}

/// Asserts that a row and its event say the same.
fn assert_same(columns: &Columns, row: &Row, event: &Event<'_>) {
    let Value::Object(mut expected) = line(event) else {
        panic!("a record");
    };
    let mut rest = match &row["rest"] {
        Field::Null => Map::new(),
        Field::Str(text) => match serde_json::from_str(text) {
            Ok(Value::Object(rest)) => rest,
            other => panic!("{other:?} of {text}"),
        },
        other => panic!("{other:?}"),
    };
    match micros(event.time) {
        Some(micros) => assert_eq!(row["time"], Field::TimestampMicros(micros)),
        None => {
            assert_eq!(row["time"], Field::Null);
            let name = rest
                .keys()
                .find(|key| !expected.contains_key(*key))
                .cloned();
            assert!(rest.remove(&name.unwrap()).is_some_and(|it| it.is_string()));
        }
    }
    for column in &columns.declared {
        let path = column.path.keys();
        let value = match &row[&column.name] {
            Field::Null => {
                // It was absent, null, or is in the rest.
                let is_null = take(&mut expected.clone(), path) == Some(Value::Null);
                if is_null && take(&mut rest.clone(), path).is_none() {
                    take(&mut expected, path);
                }
                continue;
            }
            value => value,
        };
        let original = take(&mut expected, path).expect("a column has a value of the record");
        assert!(take(&mut rest.clone(), path).is_none(), "{column}: in both");
        let number = original.as_f64();
        match (column.kind, value) {
            (Type::String, Field::Str(text)) => match &original {
                Value::String(original) => assert_eq!(text, original),
                original if original.is_f64() => assert_eq!(text.parse().ok(), original.as_f64()),
                original => assert_eq!(*text, original.to_string()),
            },
            (Type::Json, Field::Str(text)) => {
                assert_eq!(serde_json::from_str::<Value>(text).unwrap(), original);
            }
            (Type::Int, Field::Long(int)) => match &original {
                Value::String(text) => assert_eq!(*text, int.to_string()),
                original if original.is_i64() => assert_eq!(original.as_i64(), Some(*int)),
                _ => assert_eq!(number, Some(*int as f64)),
            },
            (Type::Float, Field::Double(float)) => match &original {
                Value::Null => assert!(!float.is_finite()),
                Value::String(text) => assert_eq!(text.parse(), Ok(*float)),
                // 32 bits are written with fewer digits.
                _ if number == Some(*float) => {}
                _ => assert_eq!(number.map(|it| it as f32), Some(*float as f32)),
            },
            (Type::Bool, Field::Bool(it)) => assert_eq!(original, Value::Bool(*it)),
            (Type::Timestamp(_), Field::TimestampMicros(_)) => {
                assert!(original.is_string() || original.is_number());
            }
            (kind, value) => panic!("{kind}: {value:?}"),
        }
    }
    assert_eq!(rest, expected);
}

/// Checks a chunk: every event is a row or a letter, in order. Returns the rows.
fn check(list: &str, data: &[u8]) -> Vec<Row> {
    let (columns, format) = (columns(list), table(list));
    let (file, letters) = file(&format, b"t", data);
    let rows = read(file);
    let items: Vec<Item<'_>> = Events::new(data).collect();
    assert_eq!(rows.len() + letters, items.len());
    if letters == 0 {
        for (row, item) in rows.iter().zip(items) {
            let Item::Event(event) = item else {
                panic!("a letter");
            };
            assert_eq!(row["tag"], Field::Str("t".into()));
            assert_same(&columns, row, &event);
        }
    }
    rows
}

#[test]
fn every_captured_chunk_is_in_its_columns_and_the_rest() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chunks");
    let mut chunks = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "msgpack") {
            let data = std::fs::read(&path).unwrap();
            for list in [
                "",
                "log string, message string, seq int, float float, cpu_p float, nested json",
                "log json, message int, n int, deep string = nested.a, flag bool, when timestamp = time",
            ] {
                assert!(!check(list, &data).is_empty(), "{path:?}");
            }
            chunks += 1;
        }
    }
    assert_eq!(chunks, 10);
}

/// Each of these fails a whole file, or loses a record or a field, elsewhere.
#[test]
fn types_that_change_lose_nothing_and_change_no_column() {
    let list =
        "a int, b string, c float, d bool, e timestamp_ms, f json, g string = m.g, h int = m.n.h";
    let records = [
        r#"{"a":1,"b":"x","c":1.5,"d":true,"e":5,"f":[1],"m":{"g":"y","n":{"h":1}}}"#,
        r#"{"a":"one","b":{},"c":"no","d":0,"e":"no","f":{},"m":{"g":[],"n":{"h":{}}}}"#,
        r#"{"a":{},"b":[1],"c":[],"d":"true","e":{},"f":"x","m":"scalar"}"#,
        r#"{"a":[1],"b":5,"c":7,"d":null,"e":null,"f":null,"m":{}}"#,
        r#"{"a":1.5,"b":true,"c":18446744073709551615,"m":{"n":[]}}"#,
        r#"{"a":18446744073709551615,"b":null,"m":{"other":1,"g":"z","n":{"more":2,"h":3}}}"#,
        r#"{"a":9223372036854775808,"A":1,"rest":{"rest":1},"time":"own","tag":7}"#,
        r#"{"a":null}"#,
        r#"{}"#,
    ];
    let data: Vec<u8> = records.iter().flat_map(|record| of_json(record)).collect();
    let rows = check(list, &data);
    let text = |row: &Row, column: &str| match &row[column] {
        Field::Null => String::new(),
        field => field.to_string(),
    };
    assert_eq!(text(&rows[0], "rest"), "");
    assert_eq!(
        text(&rows[1], "rest"),
        r#""{"a":"one","b":{},"c":"no","d":0,"e":"no","m":{"g":[],"n":{"h":{}}}}""#
    );
    assert_eq!(
        text(&rows[5], "rest"),
        r#""{"a":18446744073709551615,"m":{"n":{"more":2},"other":1}}""#
    );
    assert_eq!(
        text(&rows[6], "rest"),
        r#""{"A":1,"a":9223372036854775808,"rest":{"rest":1},"tag":7,"time":"own"}""#
    );
    // Of what does not fit, each column knows.
    let format = table(list);
    let _ = file(&format, b"t", &data);
    let conflicts = format.take_conflicts();
    assert_eq!(conflicts[0], ("a".to_owned(), 6));
    assert!(format.take_conflicts().is_empty());
}

#[test]
fn of_a_key_that_comes_twice_the_last_one_counts_at_every_depth() {
    let pair = |key: &str, value: Rmp| (Rmp::from(key), value);
    let inner = |n: i64| Rmp::Map(vec![pair("x", n.into()), pair("y", n.into())]);
    let body = Rmp::Map(vec![
        pair("a", 1.into()),
        pair("m", inner(1)),
        pair("z", 1.into()),
        pair("a", "last".into()),
        pair(
            "m",
            Rmp::Map(vec![pair("x", 2.into()), pair("x", 3.into())]),
        ),
        (Rmp::Binary(b"z".to_vec()), 2.into()),
    ]);
    // Twice, so that the keys are predicted.
    let data = [event(1, &body), event(1, &body)].concat();
    for row in read(file(&table("a string, x int = m.x"), b"t", &data).0) {
        assert_eq!(row["a"], Field::Str("last".into()));
        assert_eq!(row["x"], Field::Long(3));
        assert_eq!(row["rest"], Field::Str(r#"{"z":2}"#.into()));
    }
}

#[test]
fn times_that_no_reader_takes_are_in_the_rest() {
    let mut data = b"\x92\xd3\x7f\xff\xff\xff\xff\xff\xff\xff\x81\xa4time\x01".to_vec();
    data.extend(b"\x92\xcf\0\0\0\x3a\xff\xf4\x41\x80\x80");
    let rows = read(file(&table(""), b"t", &data).0);
    for row in &rows {
        assert_eq!(row["time"], Field::Null);
    }
    let Field::Str(rest) = &rows[0]["rest"] else {
        panic!("{rows:?}");
    };
    assert!(rest.starts_with(r#"{"time":1,"time_":""#), "{rest}");
}

#[test]
fn a_file_has_the_encodings_and_statistics_that_readers_want() {
    let list = "level string, trace string bloom, status int, took float, body json";
    let mut data = Vec::new();
    for n in 0..5_000 {
        data.extend(of_json(&format!(
            r#"{{"level":"info","trace":"{:032x}","status":{n},"took":1.5,"body":{{"n":{n}}},"other":{n}}}"#,
            n * 7_919
        )));
    }
    let (bytes, _) = file(&table(list), b"t", &data);
    let reader = SerializedFileReader::new(bytes).unwrap();
    let metadata = reader.metadata();
    assert_eq!(
        metadata.file_metadata().created_by(),
        Some("ferry version 1.0.0 (build 1)")
    );
    assert!(metadata.num_row_groups() > 1, "few in tests");
    for group in metadata.row_groups() {
        let column = |name: &str| {
            let mut columns = group.columns().iter();
            columns
                .find(|column| column.column_path().string() == name)
                .unwrap()
        };
        for name in ["time", "status"] {
            assert!(
                column(name)
                    .encodings()
                    .any(|it| it == Encoding::DELTA_BINARY_PACKED)
            );
            assert!(
                column(name).statistics().is_some() && column(name).offset_index_offset().is_some()
            );
        }
        assert!(column("level").dictionary_page_offset().is_some());
        for name in ["trace", "body", "rest"] {
            assert!(column(name).dictionary_page_offset().is_none(), "{name}");
        }
        assert!(column("took").statistics().is_none());
        let bloom = column("trace").bloom_filter_length().unwrap_or_default();
        assert!((1..20_000).contains(&bloom), "{bloom}");
        assert!(column("level").bloom_filter_offset().is_none());
    }
}

#[test]
fn a_recipe_of_a_table_makes_the_same_file() {
    let data: Vec<u8> = (0..50)
        .flat_map(|n| of_json(&format!(r#"{{"a":{n},"b":"x"}}"#)))
        .collect();
    for packing in [Packing::None, Packing::Snappy, Packing::Zstd(3)] {
        let first: Arc<dyn Format> = Arc::new(Parquet::new(
            columns("a int, c string bloom = b['x,y']"),
            packing,
        ));
        let again = format::parse(&first.recipe()).expect("our own recipe");
        assert_eq!(again.recipe(), first.recipe());
        assert_eq!(file(&again, b"t", &data), file(&first, b"t", &data));
    }
    for unknown in [
        "parquet",
        "parquet 2 none time=time tag=tag metadata= rest=rest columns=",
        "parquet 1 none",
    ] {
        assert!(format::parse(unknown).is_none(), "{unknown}");
    }
}

/// However rows are handed over, the file is the same.
#[test]
fn the_bytes_of_a_table_depend_on_its_rows_alone() {
    let format = table("a int, b string");
    let chunks: Vec<Vec<u8>> = [1u32, 900, 30, 4_000, 2]
        .iter()
        .enumerate()
        .map(|(chunk, events)| {
            let record = |n| {
                format!(
                    r#"{{"a":{n},"b":"{:064x}","c":{chunk}}}"#,
                    n * 31 + chunk as u32
                )
            };
            (0..*events).flat_map(|n| of_json(&record(n))).collect()
        })
        .collect();
    let parts = || {
        let steps = chunks.iter().flat_map(|chunk| encode(&format, b"t", chunk));
        steps.flat_map(|step| step.parts)
    };
    let mut whole = Body::new(&format);
    let (mut merged, mut grown) = (Body::new(&format), Body::new(&format));
    for part in parts() {
        whole.push(&part.text);
        let mut run = Body::new(&format);
        run.push(&part.text);
        merged
            .push_blocks(run.blocks().to_vec(), run.open())
            .unwrap();
        let (mut row, mut start) = (0, 0);
        while row < part.ends.len() {
            let (fitting, full) = grown.fitting(&part.ends[row..], start);
            row += fitting;
            let end = row.checked_sub(1).map_or(0, |last| part.ends[last]);
            if full {
                let block = grown.end_block(&part.text[start..end]);
                grown.add_block(block);
            } else {
                grown.append(&part.text[start..end]);
            }
            start = end;
        }
    }
    let whole = whole.seal().finish();
    assert_eq!(read(whole.to_bytes()).len(), 4_933);
    assert_eq!(merged.seal().finish(), whole);
    assert_eq!(grown.seal().finish(), whole);
}

/// Any value, with keys that are often those of columns.
fn value() -> impl Strategy<Value = Rmp> {
    let leaf = prop_oneof![
        Just(Rmp::Nil),
        any::<bool>().prop_map(Rmp::from),
        any::<i64>().prop_map(Rmp::from),
        any::<u64>().prop_map(Rmp::from),
        (-3i64..300).prop_map(Rmp::from),
        any::<f64>().prop_map(Rmp::from),
        any::<f32>().prop_map(Rmp::from),
        (-5i32..5).prop_map(|n| Rmp::from(f64::from(n))),
        any::<i32>().prop_map(|n| Rmp::from(n.to_string())),
        ".{0,12}".prop_map(Rmp::from),
        Just(Rmp::from("2025-07-02T20:44:31.5Z")),
        proptest::collection::vec(any::<u8>(), 0..6).prop_map(Rmp::Binary),
        proptest::collection::vec(any::<u8>(), 1..5).prop_map(|bytes| Rmp::Ext(7, bytes)),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Rmp::Array),
            proptest::collection::vec((key(), inner), 0..6).prop_map(Rmp::Map),
        ]
    })
}

fn key() -> impl Strategy<Value = Rmp> {
    prop_oneof![
        6 => "[a-h]".prop_map(Rmp::from),
        1 => "[a-h]".prop_map(|key| Rmp::Binary(key.into_bytes())),
        1 => Just(Rmp::from("rest")),
        1 => any::<i8>().prop_map(Rmp::from),
        1 => ".{0,3}".prop_map(Rmp::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Columns and rest together are the event, for any record.
    #[test]
    fn columns_and_the_rest_together_are_the_event(
        records in proptest::collection::vec((proptest::collection::vec((key(), value()), 0..8), any::<u32>()), 1..6),
        list in prop_oneof![
            Just(""),
            Just("a int, b string, c float, d bool, e timestamp_ms, f json"),
            Just("a string = a.b, x int = a.c.d, b json, g timestamp, h timestamp_s = h.a"),
        ],
    ) {
        let data: Vec<u8> = records
            .into_iter()
            .flat_map(|(pairs, seconds)| event(seconds.min(0xffff_fff0), &Rmp::Map(pairs)))
            .collect();
        check(list, &data);
    }
}

#[test]
fn metadata_and_its_group_are_json_beside_the_record() {
    // {"m": 1} as metadata.
    let data = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\0\x81\xa1m\x01\x81\xa1a\x02";
    let rows = read(file(&table("a int"), b"t", data).0);
    assert_eq!(rows[0]["meta"], Field::Str(r#"{"m":1}"#.into()));
    assert_eq!(rows[0]["a"], Field::Long(2));
    let time = Time {
        seconds: 1,
        nanos: 0,
    };
    assert_eq!(
        rows[0]["time"],
        Field::TimestampMicros(micros(time).unwrap())
    );
}
