//! The encoder compared with a slow and simple one: `rmpv` reads, `serde_json` writes.

use std::collections::BTreeMap;

use base64_simd::STANDARD;
use ferry::codec::encode;
use ferry::codec::json::{Encoder, Options};
use ferry::codec::msgpack::Event;
use ferry::codec::template::Template;
use ferry::codec::time::TimeFormat;
use ferry::ids::Time;
use proptest::prelude::*;
use rmpv::Value as Packed;
use serde_json::{Map, Value};

/// A 32-bit float in its shortest round-trip notation. If two texts of that length are equally near (1.0976562 and
/// 1.0976563 for 1.09765625), it is serde_json's, not the standard library's.
fn shortest(n: f32) -> Value {
    if !n.is_finite() {
        return Value::Null;
    }
    let text = serde_json::to_string(&n).unwrap();
    assert_eq!(text.parse(), Ok(n), "{text}");
    text.parse::<f64>().unwrap().into()
}

/// A record in JSON by the rules of docs/output-format.md. Of the options, those of keys apply.
fn reference(value: &Packed, options: &Options) -> Value {
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
        Packed::Binary(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => STANDARD.encode_to_string(bytes).into(),
        },
        Packed::Ext(_, bytes) => STANDARD.encode_to_string(bytes).into(),
        Packed::Array(values) => values
            .iter()
            .map(|value| reference(value, options))
            .collect(),
        Packed::Map(pairs) => {
            let pairs = pairs
                .iter()
                .map(|(key, value)| (reference_key(key, options), reference(value, options)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
    }
}

fn reference_key(key: &Packed, options: &Options) -> String {
    let mut text = match key {
        Packed::Array(_) | Packed::Map(_) => STANDARD.encode_to_string(packed(key)),
        Packed::F32(_) | Packed::F64(_) | Packed::Nil | Packed::Boolean(_) | Packed::Integer(_) => {
            reference(key, options).to_string()
        }
        other => match reference(other, options) {
            Value::String(text) => text,
            other => other.to_string(),
        },
    };
    if options.lowercase_keys {
        text = text.to_lowercase();
    }
    match &options.replace_dots {
        Some(replacement) => text.replace('.', replacement),
        None => text,
    }
}

/// Encodes a value as msgpack. (`rmpv` would write a string of invalid UTF-8 as binary.)
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

/// Strings of arbitrary bytes, often text.
fn strings() -> impl Strategy<Value = Packed> {
    prop_oneof![
        any::<String>().prop_map(Packed::from),
        "[ -~가-힣]{0,40}".prop_map(Packed::from),
        proptest::collection::vec(any::<u8>(), 0..24).prop_map(|bytes| {
            // rmpv creates a string of arbitrary bytes only by reading one.
            let mut wire = Vec::new();
            rmp::encode::write_str_len(&mut wire, u32::try_from(bytes.len()).unwrap()).unwrap();
            wire.extend_from_slice(&bytes);
            rmpv::decode::read_value(&mut &wire[..]).unwrap()
        }),
    ]
}

fn bytes_of(text: &Packed) -> &[u8] {
    match text {
        Packed::String(text) => text.as_bytes(),
        other => panic!("{other} is not a string"),
    }
}

fn values() -> BoxedStrategy<Packed> {
    let leaf = prop_oneof![
        Just(Packed::Nil),
        any::<bool>().prop_map(Packed::from),
        any::<i64>().prop_map(Packed::from),
        any::<u64>().prop_map(Packed::from),
        any::<f64>().prop_map(Packed::F64),
        strings(),
        strings().prop_map(|text| Packed::Binary(bytes_of(&text).to_vec())),
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

/// Maps whose keys differ as JSON keys, since readers differ in which of two equal ones they use.
fn maps(values: impl Strategy<Value = Packed> + Clone) -> impl Strategy<Value = Packed> {
    let keys = prop_oneof![8 => strings(), 3 => values.clone()];
    proptest::collection::vec((keys, values), 0..6).prop_map(|pairs| {
        let unique: BTreeMap<String, (Packed, Packed)> = pairs
            .into_iter()
            .map(|pair| (reference_key(&pair.0, &Options::default()), pair))
            .collect();
        Packed::Map(unique.into_values().collect())
    })
}

/// The same value with text turned into binary wherever `toss` returns true. Containers as keys are encoded as their
/// bytes, and so left alone.
fn as_binary(value: &Packed, toss: &mut impl FnMut() -> bool) -> Packed {
    match value {
        Packed::String(text) if text.is_str() && toss() => Packed::Binary(text.as_bytes().to_vec()),
        Packed::Array(values) => values.iter().map(|value| as_binary(value, toss)).collect(),
        Packed::Map(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| {
                let key = match key {
                    Packed::Array(_) | Packed::Map(_) => key.clone(),
                    scalar => as_binary(scalar, toss),
                };
                (key, as_binary(value, toss))
            });
            Packed::Map(pairs.collect())
        }
        other => other.clone(),
    }
}

/// Names shared by options and records.
const NAMES: [&str; 9] = [
    "log", "k", "a.b", "a_b", "A_b", "time", "tag", "meta", "회원",
];

fn name() -> impl Strategy<Value = String> {
    proptest::sample::select(&NAMES[..]).prop_map(str::to_owned)
}

/// Maps whose keys may be in the options, and may occur twice.
fn record() -> impl Strategy<Value = Packed> {
    let key = prop_oneof![4 => name().prop_map(Packed::from), 1 => strings(), 1 => values()];
    let inner = proptest::collection::vec((key.clone(), values()), 0..4).prop_map(Packed::Map);
    let value = prop_oneof![4 => strings(), 3 => values(), 3 => inner];
    proptest::collection::vec((key, value), 0..8).prop_map(Packed::Map)
}

/// A chunk: a group's start, and events of both forms, some of them too deep.
fn events() -> impl Strategy<Value = Vec<Packed>> {
    let time = |seconds: u32| {
        let bytes = [seconds.to_be_bytes(), [0; 4]].concat();
        Packed::Ext(0, bytes)
    };
    let event = move |(legacy, seconds, metadata, body): (bool, u32, Packed, Packed)| {
        if legacy {
            Packed::Array(vec![time(seconds), body])
        } else {
            Packed::Array(vec![Packed::Array(vec![time(seconds), metadata]), body])
        }
    };
    let mark = (record(), record())
        .prop_map(move |(metadata, body)| event((false, u32::MAX, metadata, body)));
    let deep = name().prop_map(move |key| {
        let body = (0..150).fold(Packed::from("deep"), |inner, _| {
            Packed::Map(vec![(key.as_str().into(), inner)])
        });
        event((false, 7, Packed::Map(vec![]), body))
    });
    let events = proptest::collection::vec(
        prop_oneof![9 => (any::<bool>(), 0u32..100_000, record(), record()).prop_map(event), 1 => deep],
        1..6,
    );
    (mark, events).prop_map(|(mark, mut events)| {
        events.insert(events.len() / 2, mark);
        events
    })
}

fn options() -> impl Strategy<Value = Options> {
    let maybe = || proptest::option::of(name());
    (
        proptest::option::weighted(0.3, name()),
        proptest::collection::vec(name(), 0..3),
        maybe(),
        maybe(),
        maybe(),
        proptest::option::of(proptest::sample::select(&["_", "", "\""][..])),
        any::<bool>(),
    )
        .prop_map(
            |(log_key, data_keys, time, tag_key, metadata_key, dots, lowercase_keys)| Options {
                log_key,
                data_keys,
                time: time.map(|key| (key, TimeFormat::Iso8601)),
                tag_key,
                metadata_key,
                replace_dots: dots.map(str::to_owned),
                lowercase_keys,
            },
        )
}

/// The number of keys in a JSON text: of colons outside of strings.
fn keys_in(text: &str) -> usize {
    let (mut keys, mut quoted) = (0, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' => drop(chars.next()),
            ':' if !quoted => keys += 1,
            _ => {}
        }
    }
    keys
}

fn count_keys(value: &Value) -> usize {
    match value {
        Value::Array(values) => values.iter().map(count_keys).sum(),
        Value::Object(pairs) => pairs.values().map(|value| 1 + count_keys(value)).sum(),
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Fluentd forwards text as binary, which must not show in any line.
    #[test]
    fn text_that_came_as_binary_changes_no_line(
        events in events(),
        options in options(),
        template in proptest::sample::select(&["x", "{record.log}", "{record.k.a_b|none}/%H", "{record.회원}-{tag}"][..]),
        tosses in proptest::collection::vec(any::<bool>(), 61),
    ) {
        let names = Template::parse(template, true).unwrap();
        let mut tosses = tosses.iter().cycle();
        let mut toss = || *tosses.next().expect("an endless iterator");
        let text: Vec<u8> = events.iter().flat_map(packed).collect();
        let binary: Vec<u8> = events
            .iter()
            .flat_map(|event| packed(&as_binary(event, &mut toss)))
            .collect();
        let result = |chunk: &[u8]| {
            let encoded = encode(&options, &names, b"app.http", chunk, |_| true);
            let lines: Vec<_> = encoded
                .parts
                .into_iter()
                .map(|part| (part.name, part.first, part.text.escape_ascii().to_string(), part.events))
                .collect();
            let letters: Vec<_> = encoded.letters.into_iter().map(|letter| letter.reason).collect();
            (lines, letters, encoded.lettered, encoded.skipped, encoded.events)
        };
        prop_assert_eq!(result(&binary), result(&text));
    }

    /// Of keys that are written alike, at any depth and in any msgpack, there is one with the last value. One encoder
    /// writes several records, so that its cache is in many states.
    #[test]
    fn the_last_of_equal_keys_is_written_as_by_the_reference(
        bodies in proptest::collection::vec(record(), 1..8),
        dots in proptest::option::of(proptest::sample::select(&["_", ""][..])),
        lowercase_keys in any::<bool>(),
        tosses in proptest::collection::vec(any::<bool>(), 61),
    ) {
        let options = Options { replace_dots: dots.map(str::to_owned), lowercase_keys, ..Options::default() };
        let mut encoder = Encoder::new(&options);
        let mut tosses = tosses.iter().cycle();
        let mut toss = || *tosses.next().expect("an endless iterator");
        for body in bodies {
            let body_bytes = packed(&as_binary(&body, &mut toss));
            let event = Event { time: Time::default(), metadata: &[], body: &body_bytes, group: None, raw: &body_bytes };
            let mut line = Vec::new();
            encoder.line(b"t", &event, &mut line).expect("not deep");
            let text = String::from_utf8(line).expect("UTF-8");
            // serde_json's own maps keep the last value: the number of keys in the text tells that there was one.
            let read: Value = serde_json::from_str(&text).expect("valid JSON");
            prop_assert_eq!(keys_in(&text), count_keys(&read), "{}", text);
            let expected: Value = serde_json::from_str(&reference(&body, &options).to_string()).expect("valid JSON");
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn any_record_is_encoded_like_the_reference(body in maps(values())) {
        let body_bytes = packed(&body);
        let event = Event { time: Time::default(), metadata: &[], body: &body_bytes, group: None, raw: &[] };
        let mut line = Vec::new();
        Encoder::new(&Options::default()).line(b"t", &event, &mut line).expect("not deep");
        let text = String::from_utf8(line).expect("UTF-8");
        prop_assert_eq!(text.matches('\n').count(), 1);
        let read: Value = serde_json::from_str(&text).expect("valid JSON");
        // Parsed from text as well, since serde_json may round a float's last digit.
        let expected: Value = serde_json::from_str(&reference(&body, &Options::default()).to_string()).expect("valid JSON");
        prop_assert_eq!(read, expected);
    }

    /// A captured chunk with some bytes overwritten, inserted or removed is encoded as valid lines, and letters for the
    /// rest. Both may be missing only where no byte looks like an event any more: what is left then is a group's marker.
    #[test]
    fn a_corrupted_chunk_becomes_lines_and_letters(
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
        let heads = chunk.windows(4).enumerate().filter(|(_, head)| *head == b"\x92\x92\xd7\0");
        let marks = |at: usize| chunk[at + 4..].starts_with(b"\xff\xff\xff\xff") || chunk[at + 4..].starts_with(b"\xff\xff\xff\xfe");
        let events = heads.filter(|(at, _)| !marks(*at)).count();
        prop_assert!(events == 0 || !encoded.parts.is_empty() || !encoded.letters.is_empty());
        for part in encoded.parts {
            let text = String::from_utf8(part.text).expect("UTF-8");
            prop_assert_eq!(text.lines().count(), part.ends.len());
            for line in text.lines() {
                serde_json::from_str::<Value>(line).expect("valid JSON");
            }
        }
    }
}
