//! The encoder against a slow and simple one: `rmpv` reads, `serde_json` writes.

use std::collections::BTreeMap;

use base64_simd::STANDARD;
use ferry::chunk::encode;
use ferry::decode::{Event, Time};
use ferry::encode::{Encoder, Options};
use ferry::template::Template;
use proptest::prelude::*;
use rmpv::Value as Packed;
use serde_json::{Map, Value};

/// A 32-bit float by the shortest digits that read back as it. Where two texts of that length lie equally near
/// (1.0976562 and 1.0976563 for 1.09765625), serde_json's is taken, and not the standard library's.
fn shortest(n: f32) -> Value {
    if !n.is_finite() {
        return Value::Null;
    }
    let text = serde_json::to_string(&n).unwrap();
    assert_eq!(text.parse(), Ok(n), "{text}");
    text.parse::<f64>().unwrap().into()
}

/// What a record is in JSON, by the rules of the README, through trees of values.
fn reference(value: &Packed) -> Value {
    match value {
        Packed::Nil => Value::Null,
        Packed::Boolean(b) => (*b).into(),
        Packed::Integer(n) => n
            .as_u64()
            .map(Value::from)
            .or_else(|| n.as_i64().map(Value::from))
            .unwrap(),
        Packed::F32(n) => shortest(*n),
        Packed::F64(n) => Value::from(*n),
        Packed::String(s) => String::from_utf8_lossy(s.as_bytes()).into(),
        Packed::Binary(bytes) | Packed::Ext(_, bytes) => STANDARD.encode_to_string(bytes).into(),
        Packed::Array(values) => values.iter().map(reference).collect(),
        Packed::Map(pairs) => {
            let pairs = pairs
                .iter()
                .map(|(key, value)| (reference_key(key), reference(value)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
    }
}

fn reference_key(key: &Packed) -> String {
    match key {
        Packed::Array(_) | Packed::Map(_) => STANDARD.encode_to_string(packed(key)),
        Packed::F32(_) | Packed::F64(_) | Packed::Nil | Packed::Boolean(_) | Packed::Integer(_) => {
            reference(key).to_string()
        }
        other => match reference(other) {
            Value::String(text) => text,
            other => other.to_string(),
        },
    }
}

/// The value's msgpack. (`rmpv` would write a string that is no UTF-8 as binary.)
fn packed(value: &Packed) -> Vec<u8> {
    const IN_MEMORY: &str = "writing into memory does not fail";
    let len = |n: usize| u32::try_from(n).expect("small");
    let mut bytes = Vec::new();
    match value {
        Packed::String(text) => {
            rmp::encode::write_str_len(&mut bytes, len(text.as_bytes().len())).expect(IN_MEMORY);
            bytes.extend_from_slice(text.as_bytes());
        }
        Packed::Array(values) => {
            rmp::encode::write_array_len(&mut bytes, len(values.len())).expect(IN_MEMORY);
            bytes.extend(values.iter().flat_map(packed));
        }
        Packed::Map(pairs) => {
            rmp::encode::write_map_len(&mut bytes, len(pairs.len())).expect(IN_MEMORY);
            bytes.extend(
                pairs
                    .iter()
                    .flat_map(|(key, value)| [packed(key), packed(value)].concat()),
            );
        }
        scalar => rmpv::encode::write_value(&mut bytes, scalar).expect(IN_MEMORY),
    }
    bytes
}

/// A string with any bytes, and often with text.
fn strings() -> impl Strategy<Value = Packed> {
    prop_oneof![
        any::<String>().prop_map(Packed::from),
        "[ -~가-힣]{0,40}".prop_map(Packed::from),
        proptest::collection::vec(any::<u8>(), 0..24).prop_map(|bytes| {
            // rmpv builds a string of any bytes only by reading one.
            let mut wire = Vec::new();
            rmp::encode::write_str_len(&mut wire, u32::try_from(bytes.len()).unwrap()).unwrap();
            wire.extend_from_slice(&bytes);
            rmpv::decode::read_value(&mut &wire[..]).unwrap()
        }),
    ]
}

fn values() -> BoxedStrategy<Packed> {
    let leaf = prop_oneof![
        Just(Packed::Nil),
        any::<bool>().prop_map(Packed::from),
        any::<i64>().prop_map(Packed::from),
        any::<u64>().prop_map(Packed::from),
        any::<f64>().prop_map(Packed::F64),
        strings(),
        proptest::collection::vec(any::<u8>(), 0..24).prop_map(Packed::Binary),
        (any::<i8>(), proptest::collection::vec(any::<u8>(), 0..24))
            .prop_map(|(kind, bytes)| Packed::Ext(kind, bytes)),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Packed::Array),
            maps(inner),
        ]
    })
    .boxed()
}

/// A map whose keys differ as JSON keys: which of two equal ones counts is the reader's choice.
fn maps(values: impl Strategy<Value = Packed> + Clone) -> impl Strategy<Value = Packed> {
    let keys = prop_oneof![8 => strings(), 2 => values.clone()];
    proptest::collection::vec((keys, values), 0..6).prop_map(|pairs| {
        let unique: BTreeMap<String, (Packed, Packed)> = pairs
            .into_iter()
            .map(|pair| (reference_key(&pair.0), pair))
            .collect();
        Packed::Map(unique.into_values().collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_record_reads_back_as_the_reference_says(body in maps(values())) {
        let body_bytes = packed(&body);
        let event = Event { time: Time::default(), metadata: &[], body: &body_bytes, group: None, raw: &[] };
        let mut line = Vec::new();
        Encoder::new(&Options::default()).line(b"t", &event, &mut line).expect("not deep");
        let text = String::from_utf8(line).expect("UTF-8");
        prop_assert_eq!(text.matches('\n').count(), 1);
        let read: Value = serde_json::from_str(&text).expect("valid JSON");
        // Through text as well: serde_json reads floats to within their last digit.
        let expected: Value = serde_json::from_str(&reference(&body).to_string()).expect("valid JSON");
        prop_assert_eq!(read, expected);
    }

    /// A real chunk with some bytes overwritten, put in or taken out: what comes of it is lines that are
    /// valid and letters for the rest, never a crash and never nothing.
    #[test]
    fn a_chunk_that_was_tampered_with_is_lines_and_letters(
        name in prop_oneof![Just("fwd.array"), Just("fwd.packed"), Just("otel"), Just("app.types")],
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..12),
    ) {
        let path = format!("{}/tests/chunks/{name}.msgpack", env!("CARGO_MANIFEST_DIR"));
        let mut chunk = std::fs::read(path).expect("a captured chunk");
        for (at, byte, edit) in edits {
            let at = at.index(chunk.len());
            match edit {
                0 => chunk[at] = byte,
                1 => chunk.insert(at, byte),
                _ => drop(chunk.remove(at)),
            }
        }
        let names = Template::parse("{tag}/{record.k}/%H", true).unwrap();
        let encoded = encode(&Options::default(), &names, b"t", &chunk, |_| true);
        prop_assert!(!encoded.parts.is_empty() || !encoded.letters.is_empty());
        for part in encoded.parts {
            let text = String::from_utf8(part.text).expect("UTF-8");
            prop_assert_eq!(text.lines().count(), part.ends.len());
            for line in text.lines() {
                serde_json::from_str::<Value>(line).expect("valid JSON");
            }
        }
    }
}
