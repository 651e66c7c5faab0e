//! What an event is and what its line says, by the rules of the README, through trees of values.

use std::fmt;

use base64_simd::STANDARD;
use ferry::codec::json::Options;
use ferry::codec::msgpack::Event;
use ferry::codec::time::{TimeFormat, utc};
use ferry::ids::Time;
use rmpv::Value as Packed;
use rmpv::decode::{Error, read_value_with_max_depth};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// What is nested deeper is not compared: trees of values are built and dropped by recursion.
const DEEPEST: usize = 900;
const EVENT_TIME: i8 = 0;
/// Fluent Bit's marks of a group's start and end, as an event time.
const MARKS: [[u8; 8]; 2] = [
    [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
    [0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0],
];

/// An event's pieces.
struct Pieces<'a> {
    time: Packed,
    metadata: &'a [u8],
    body: &'a [u8],
}

enum Unread {
    TooDeep,
    NoEvent,
}

impl From<Error> for Unread {
    fn from(error: Error) -> Self {
        match error {
            Error::DepthLimitExceeded => Unread::TooDeep,
            _ => Unread::NoEvent,
        }
    }
}

/// Reads one value, and says which bytes it is.
fn value<'a>(bytes: &mut &'a [u8]) -> Result<(Packed, &'a [u8]), Error> {
    let before = *bytes;
    let value = read_value_with_max_depth(bytes, DEEPEST)?;
    Ok((value, &before[..before.len() - bytes.len()]))
}

fn map<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Unread> {
    match value(bytes)? {
        (Packed::Map(_), map) => Ok(map),
        _ => Err(Unread::NoEvent),
    }
}

fn pair(bytes: &mut &[u8]) -> Result<(), Unread> {
    match rmp::decode::read_array_len(bytes) {
        Ok(2) => Ok(()),
        _ => Err(Unread::NoEvent),
    }
}

/// Reads `[[time, metadata], body]` or `[time, body]`.
fn pieces<'a>(bytes: &mut &'a [u8]) -> Result<Pieces<'a>, Unread> {
    pair(bytes)?;
    let mut metadata: &[u8] = &[];
    let old = *bytes;
    let time = match pair(bytes) {
        Ok(()) => {
            let time = value(bytes)?.0;
            metadata = map(bytes)?;
            time
        }
        Err(_) => {
            *bytes = old;
            value(bytes)?.0
        }
    };
    let body = map(bytes)?;
    Ok(Pieces {
        time,
        metadata,
        body,
    })
}

fn is_time(time: &Packed) -> bool {
    match time {
        Packed::Ext(EVENT_TIME, bytes) => bytes.len() == 8,
        Packed::Integer(seconds) => seconds.is_i64(),
        Packed::F32(seconds) => seconds.abs() <= 1e15,
        Packed::F64(seconds) => seconds.abs() <= 1e15,
        _ => false,
    }
}

fn is_mark(time: &Packed) -> bool {
    matches!(time, Packed::Ext(EVENT_TIME, bytes) if MARKS.iter().any(|mark| mark == &bytes[..]))
}

fn holds_event_time(bytes: &[u8]) -> bool {
    fn holds(value: &Packed) -> bool {
        match value {
            Packed::Ext(EVENT_TIME, bytes) => bytes.len() == 8,
            Packed::Array(values) => values.iter().any(holds),
            Packed::Map(pairs) => pairs.iter().any(|(key, value)| holds(key) || holds(value)),
            _ => false,
        }
    }
    whole(bytes).is_some_and(|value| holds(&value))
}

/// The one value that `bytes` are; `None` where it is too deep or there is none.
fn whole(mut bytes: &[u8]) -> Option<Packed> {
    if bytes.is_empty() {
        return None;
    }
    match value(&mut bytes) {
        Ok((value, _)) => {
            assert!(bytes.is_empty(), "bytes behind a value");
            Some(value)
        }
        Err(Error::DepthLimitExceeded) => None,
        Err(error) => panic!("an event holds half a value: {error}"),
    }
}

/// How many events the chunk begins with, at the least.
pub fn events_at_the_front(chunk: &[u8]) -> usize {
    let mut rest = chunk;
    let mut events = 0;
    loop {
        let before = rest;
        let Ok(pieces) = pieces(&mut rest) else {
            return events;
        };
        // rmpv reads the reserved byte as nil.
        let read = &before[..before.len() - rest.len()];
        let swallows = || holds_event_time(pieces.metadata) || holds_event_time(pieces.body);
        if read.contains(&0xc1) || !is_time(&pieces.time) {
            return events;
        }
        match is_mark(&pieces.time) {
            true if swallows() => return events,
            true => {}
            false => events += 1,
        }
    }
}

/// Bytes that were passed over are marks of groups.
pub fn check_marks(mut gap: &[u8]) {
    while !gap.is_empty() {
        match pieces(&mut gap) {
            Ok(pieces) => assert!(is_mark(&pieces.time), "an event was passed over"),
            Err(Unread::TooDeep) => return,
            Err(Unread::NoEvent) => panic!("bytes were passed over: {gap:02x?}"),
        }
    }
}

/// An event is made of the bytes it says it is made of.
pub fn check_event(event: &Event) {
    let mut raw = event.raw;
    let pieces = match pieces(&mut raw) {
        Ok(pieces) => pieces,
        Err(Unread::TooDeep) => return,
        Err(Unread::NoEvent) => panic!("no event: {:02x?}", event.raw),
    };
    assert!(raw.is_empty());
    assert_eq!((event.metadata, event.body), (pieces.metadata, pieces.body));
    assert!(event.time.nanos < 1_000_000_000);
    let Time { seconds, nanos } = event.time;
    let float = |float: f64| {
        assert_eq!(seconds, float.floor() as i64);
        assert!((f64::from(nanos) / 1e9 - (float - float.floor())).abs() <= 1e-9);
    };
    match &pieces.time {
        Packed::Integer(n) => assert_eq!((Some(seconds), nanos), (n.as_i64(), 0)),
        Packed::F32(n) => float((*n).into()),
        Packed::F64(n) => float(*n),
        Packed::Ext(EVENT_TIME, bytes) => {
            let half = |half: &[u8]| u32::from_be_bytes(half.try_into().expect("eight bytes"));
            let total = u64::from(half(&bytes[..4])) * 1_000_000_000 + u64::from(half(&bytes[4..]));
            assert_eq!(seconds as u64 * 1_000_000_000 + u64::from(nanos), total);
        }
        other => panic!("{other} is no time"),
    }
}

/// The event's line as a tree; `None` where what it holds can't be compared.
pub fn line(options: &Options, tag: &[u8], event: &Event) -> Option<Value> {
    let mut line = object(options, chosen(options, event)?)?;
    if let Some((key, format)) = &options.time {
        line.insert(key.clone(), time(event.time, format));
    }
    if let Some(key) = &options.tag_key {
        line.insert(key.clone(), String::from_utf8_lossy(tag).into());
    }
    if let Some(key) = &options.metadata_key {
        let mut pairs = pairs(event.metadata)?;
        let mut group = Map::new();
        if let Some(given) = event.group {
            pairs.extend(self::pairs(given.body)?);
            group = object(options, with_ids(options, self::pairs(given.metadata)?)?)?;
        }
        let mut metadata = object(options, with_ids(options, pairs)?)?;
        if !group.is_empty() {
            metadata.insert("group".into(), group.into());
        }
        if !metadata.is_empty() {
            line.insert(key.clone(), metadata.into());
        }
    }
    Some(line.into())
}

/// How many containers lie in one another in what is written of an event; `None` where it can't be told.
pub fn depth(options: &Options, event: &Event) -> Option<usize> {
    fn of(value: &Packed) -> usize {
        match value {
            Packed::Array(values) => 1 + values.iter().map(of).max().unwrap_or(0),
            Packed::Map(pairs) => 1 + of_pairs(pairs),
            _ => 0,
        }
    }
    fn of_pairs(pairs: &[(Packed, Packed)]) -> usize {
        pairs.iter().map(|(_, value)| of(value)).max().unwrap_or(0)
    }
    if let Some(key) = &options.log_key {
        return log_value(options, key, event).map(|value| of(&value));
    }
    let mut depth = 1 + of_pairs(&chosen(options, event)?);
    if options.metadata_key.is_some() {
        depth = depth.max(2 + of_pairs(&pairs(event.metadata)?));
        if let Some(group) = event.group {
            depth = depth.max(2 + of_pairs(&pairs(group.body)?));
            depth = depth.max(3 + of_pairs(&pairs(group.metadata)?));
        }
    }
    Some(depth)
}

pub fn json_depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(json_depth).max().unwrap_or(0),
        Value::Object(pairs) => 1 + pairs.values().map(json_depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The value of the `log_key`: text as it is, anything else as JSON.
pub fn check_log_value(line: &[u8], options: &Options, key: &str, event: &Event) {
    let Some(value) = log_value(options, key, event) else {
        return;
    };
    if let Some(text) = text(&value) {
        return assert_eq!(line, one_line(text));
    }
    let text = std::str::from_utf8(line).expect("UTF-8");
    let read: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    if let Some(expected) = json(options, &value) {
        assert_eq!(read, expected, "{text}");
    }
}

/// The keys that are ours stand in the line once, whatever the record holds.
pub fn check_own_keys(options: &Options, line: &str) {
    let keys = keys(line);
    let count = |name: &str| keys.iter().filter(|key| *key == name).count();
    if let Some((key, _)) = &options.time {
        assert_eq!(count(key), 1, "the time's key in {line}");
    }
    if let Some(key) = &options.tag_key {
        assert_eq!(count(key), 1, "the tag's key in {line}");
    }
    if let Some(key) = &options.metadata_key {
        assert!(count(key) <= 1, "the metadata's key in {line}");
    }
}

/// Every key of a JSON object, also those that come twice.
fn keys(object: &str) -> Vec<String> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            let mut keys = Vec::new();
            while let Some((key, IgnoredAny)) = map.next_entry()? {
                keys.push(key);
            }
            Ok(keys)
        }
    }
    let mut json = serde_json::Deserializer::from_str(object);
    json.deserialize_map(Keys).expect("an object")
}

/// The bytes of what is text: strings, whatever they hold, and binary that is UTF-8.
fn text(value: &Packed) -> Option<&[u8]> {
    match value {
        Packed::String(text) => Some(text.as_bytes()),
        Packed::Binary(bytes) => std::str::from_utf8(bytes).ok().map(str::as_bytes),
        _ => None,
    }
}

type Pairs = Vec<(Packed, Packed)>;

fn pairs(map: &[u8]) -> Option<Pairs> {
    if map.is_empty() {
        return Some(Vec::new());
    }
    match whole(map)? {
        Packed::Map(pairs) => Some(pairs),
        other => panic!("{other} is no map"),
    }
}

/// The pairs of the record that are written.
fn chosen(options: &Options, event: &Event) -> Option<Pairs> {
    let ours = [
        options.time.as_ref().map(|(key, _)| key),
        options.tag_key.as_ref(),
        options.metadata_key.as_ref(),
    ];
    let mut pairs = pairs(event.body)?;
    pairs.retain(|(name, _)| {
        // What gives way to a key of ours is what is written like it.
        let written = key(options, name);
        let is_ours = ours
            .into_iter()
            .flatten()
            .any(|own| written.as_ref() == Some(own));
        let is_wanted = |wanted: &String| {
            text(name).is_some() && written == key(options, &wanted.as_str().into())
        };
        let all = options.data_keys.is_empty();
        !is_ours && (all || options.data_keys.iter().any(is_wanted))
    });
    Some(pairs)
}

fn log_value(options: &Options, key: &str, event: &Event) -> Option<Packed> {
    let is_key = |name: &Packed| {
        text(name).is_some() && self::key(options, name) == self::key(options, &key.into())
    };
    let pairs = pairs(event.body)?.into_iter();
    let (_, value) = pairs
        .filter(|(name, _)| is_key(name))
        .last()
        .expect("an event without it has no line");
    Some(value)
}

/// A text without line ends: none at its end, and those within it replaced.
fn one_line(text: &[u8]) -> Vec<u8> {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let end = text.iter().rposition(|byte| !is_end(byte));
    let text = &text[..end.expect("an event without text has no line") + 1];
    let is_json = serde_json::from_slice::<IgnoredAny>(text).is_ok();
    let mut line = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        match (byte, is_json) {
            (b'\n', _) if at > 0 && text[at - 1] == b'\r' => {}
            (b'\n' | b'\r', true) => line.push(b' '),
            (b'\r', false) if text.get(at + 1) != Some(&b'\n') => line.extend(b"\\r"),
            (b'\n' | b'\r', false) => line.extend(b"\\n"),
            (byte, _) => line.push(*byte),
        }
    }
    line
}

fn time(time: Time, format: &TimeFormat) -> Value {
    match format {
        TimeFormat::Iso8601 => utc(time)
            .format("%Y-%m-%dT%H:%M:%S%.3fZ")
            .to_string()
            .into(),
        TimeFormat::Epoch => time.seconds.into(),
        TimeFormat::EpochMs => {
            let ms = i128::from(time.seconds) * 1_000 + i128::from(time.nanos / 1_000_000);
            serde_json::from_str(&ms.to_string()).expect("a number")
        }
        TimeFormat::Strftime(format) => {
            let mut text = String::new();
            format.write(time, &mut text);
            text.into()
        }
    }
}

fn object(options: &Options, pairs: Pairs) -> Option<Map<String, Value>> {
    let pairs = pairs.iter();
    pairs
        .map(|(k, v)| Some((key(options, k)?, json(options, v)?)))
        .collect()
}

/// The same pairs, with what are OTLP's ids as the text that they are in a line.
fn with_ids(options: &Options, pairs: Pairs) -> Option<Pairs> {
    fn inner(options: &Options, value: Packed) -> Option<Packed> {
        Some(match value {
            Packed::Map(pairs) => Packed::Map(with_ids(options, pairs)?),
            Packed::Array(values) => {
                let values = values.into_iter().map(|value| inner(options, value));
                Packed::Array(values.collect::<Option<_>>()?)
            }
            other => other,
        })
    }
    let pairs = pairs.into_iter().map(|(name, value)| {
        let value = match (key(options, &name)?.as_str(), value) {
            ("trace_id", Packed::Binary(id)) if id.len() == 16 => {
                STANDARD.encode_to_string(id).into()
            }
            ("span_id", Packed::Binary(id)) if id.len() == 8 => {
                STANDARD.encode_to_string(id).into()
            }
            (_, value) => inner(options, value)?,
        };
        Some((name, value))
    });
    pairs.collect()
}

/// A 32-bit float by the shortest digits that read back as it. Where two texts of that length lie equally near
/// (1.0976562 and 1.0976563 for 1.09765625), serde_json's is taken, and not the standard library's.
fn shortest(n: f32) -> Value {
    if !n.is_finite() {
        return Value::Null;
    }
    let text = serde_json::to_string(&n).expect("a float is JSON");
    assert_eq!(text.parse(), Ok(n), "{text}");
    text.parse::<f64>().expect("digits").into()
}

fn json(options: &Options, value: &Packed) -> Option<Value> {
    Some(match value {
        Packed::Nil => Value::Null,
        Packed::Boolean(b) => (*b).into(),
        Packed::Integer(n) => match n.as_u64() {
            Some(n) => n.into(),
            None => n.as_i64()?.into(),
        },
        Packed::F32(n) => shortest(*n),
        Packed::F64(n) => (*n).into(),
        Packed::String(text) => String::from_utf8_lossy(text.as_bytes()).into(),
        Packed::Binary(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => STANDARD.encode_to_string(bytes).into(),
        },
        Packed::Ext(_, bytes) => STANDARD.encode_to_string(bytes).into(),
        Packed::Array(values) => {
            let values = values.iter().map(|value| json(options, value));
            values.collect::<Option<Vec<_>>>()?.into()
        }
        Packed::Map(pairs) => object(options, pairs.clone())?.into(),
    })
}

/// A key's text; `None` for what has more than one: a container is written as the bytes it came as.
fn key(options: &Options, key: &Packed) -> Option<String> {
    let text = match key {
        Packed::Array(_) | Packed::Map(_) | Packed::F32(_) => return None,
        other => match json(options, other)? {
            Value::String(text) => text,
            other => other.to_string(),
        },
    };
    Some(match &options.replace_dots {
        Some(replacement) => text.replace('.', replacement),
        None => text,
    })
}
