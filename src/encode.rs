//! Events become JSON lines.
//!
//! What is written is valid JSON whatever the msgpack holds: raw UTF-8 with U+FFFD for bytes that are
//! none, binary and extension values as base64, every key a string, no NaN, 64-bit integers digit for
//! digit. Only what JSON demands is escaped. Containers are walked with a stack on the heap, to
//! [`MAX_DEPTH`].

use std::collections::HashSet;

use crate::decode::{Cursor, Event, Token, lookup};
use crate::time::{TimeFormat, write_iso8601};

/// Containers within containers, the record itself included. Deeper than this common JSON readers give
/// up (128 in serde_json, 64 to 1,000 elsewhere), so that the line would be lost further down.
pub const MAX_DEPTH: usize = 100;

/// What a record looks like.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Send only this key's value.
    pub log_key: Option<String>,
    /// Send only these top-level keys; all where it is empty.
    pub data_keys: Vec<String>,
    /// Add the event's time under a key.
    pub time: Option<(String, TimeFormat)>,
    /// Add the tag under a key.
    pub tag_key: Option<String>,
    /// Add the record's metadata and its group under a key.
    pub metadata_key: Option<String>,
    /// Put this in the place of every dot in a key.
    pub replace_dots: Option<String>,
}

/// Why an event became no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It has no `log_key`, and so nothing to send.
    NoLogKey,
    /// It is nested deeper than [`MAX_DEPTH`].
    TooDeep,
}

/// A container that is being written.
struct Open {
    /// Values (pairs in a map) still to come.
    left: u32,
    map: bool,
}

/// Writes events as JSON lines. Holds only scratch space between events.
pub struct Encoder<'o> {
    options: &'o Options,
    /// Keys that we write ourselves, as they stand in a line: the record's own give way that come out the
    /// same, since a JSON object with one key twice is refused by some readers.
    ours: HashSet<Vec<u8>>,
    data_keys: HashSet<&'o [u8]>,
    open: Vec<Open>,
    text: String,
}

impl<'o> Encoder<'o> {
    /// An encoder for records that look as `options` say.
    pub fn new(options: &'o Options) -> Self {
        let ours = [
            options.time.as_ref().map(|(key, _)| key),
            options.tag_key.as_ref(),
            options.metadata_key.as_ref(),
        ];
        let written = |key: &String| {
            let mut text = Vec::new();
            string(key.as_bytes(), &mut text);
            text
        };
        Encoder {
            options,
            ours: ours.into_iter().flatten().map(written).collect(),
            data_keys: options.data_keys.iter().map(String::as_bytes).collect(),
            open: Vec::new(),
            text: String::new(),
        }
    }

    /// Appends `event` and a newline to `out`, or nothing at all and why.
    pub fn line(&mut self, tag: &[u8], event: &Event<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        let start = out.len();
        let written = match &self.options.log_key {
            Some(key) => self.log_value(key, event, out),
            None => self.record(tag, event, out),
        };
        match written {
            Ok(()) => out.push(b'\n'),
            Err(_) => out.truncate(start),
        }
        written
    }

    fn log_value(&mut self, key: &str, event: &Event<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        let value = lookup(event.body, &[key]).ok_or(Skip::NoLogKey)?;
        match Cursor::new(value).token() {
            Ok(Token::Str(text)) => {
                out.extend_from_slice(text);
                Ok(())
            }
            _ => self.value(&mut Cursor::new(value), 0, out),
        }
    }

    fn record(&mut self, tag: &[u8], event: &Event<'_>, out: &mut Vec<u8>) -> Result<(), Skip> {
        out.push(b'{');
        let first = out.len();
        self.pairs(event.body, true, first, out)?;
        let options = self.options;
        if let Some((key, format)) = &options.time {
            self.our_key(key, first, out);
            self.time(event, format, out);
        }
        if let Some(key) = &options.tag_key {
            self.our_key(key, first, out);
            string(tag, out);
        }
        if let Some(key) = &options.metadata_key {
            self.metadata(key, event, first, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    /// Writes a map's pairs without its braces. `first` is where the object's first pair begins.
    fn pairs(
        &mut self,
        map: &[u8],
        filter: bool,
        first: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Skip> {
        let mut cursor = Cursor::new(map);
        let Ok(Token::Map(pairs)) = cursor.token() else {
            return Ok(());
        };
        for _ in 0..pairs {
            let mut key = cursor;
            if filter && !self.wanted(&mut key) {
                let _ = cursor.value();
                let _ = cursor.value();
                continue;
            }
            let before = out.len();
            separate(first, out);
            let key = out.len();
            self.key(&mut cursor, out);
            if filter && self.ours.contains(&out[key..]) {
                out.truncate(before);
                let _ = cursor.value();
                continue;
            }
            out.push(b':');
            self.value(&mut cursor, 1, out)?;
        }
        Ok(())
    }

    fn wanted(&self, key: &mut Cursor<'_>) -> bool {
        if self.data_keys.is_empty() {
            return true;
        }
        matches!(key.token(), Ok(Token::Str(name)) if self.data_keys.contains(name))
    }

    fn our_key(&mut self, key: &str, first: usize, out: &mut Vec<u8>) {
        separate(first, out);
        string(key.as_bytes(), out);
        out.push(b':');
    }

    fn time(&mut self, event: &Event<'_>, format: &TimeFormat, out: &mut Vec<u8>) {
        let time = event.time;
        match format {
            TimeFormat::Iso8601 => {
                out.push(b'"');
                write_iso8601(time, out);
                out.push(b'"');
            }
            TimeFormat::Epoch => number(time.seconds, out),
            TimeFormat::EpochMs => number(
                i128::from(time.seconds) * 1_000 + i128::from(time.nanos / 1_000_000),
                out,
            ),
            TimeFormat::Strftime(format) => {
                self.text.clear();
                format.write(time, &mut self.text);
                string(self.text.as_bytes(), out);
            }
        }
    }

    /// `"key":{…metadata, …resource and scope, "group":{…}}`; nothing where there is none of them.
    fn metadata(
        &mut self,
        key: &str,
        event: &Event<'_>,
        first: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Skip> {
        let before = out.len();
        self.our_key(key, first, out);
        out.push(b'{');
        let inner = out.len();
        self.pairs(event.metadata, false, inner, out)?;
        if let Some(group) = event.group {
            self.pairs(group.body, false, inner, out)?;
            if let Ok(Token::Map(1..)) = Cursor::new(group.metadata).token() {
                self.our_key("group", inner, out);
                self.value(&mut Cursor::new(group.metadata), 2, out)?;
            }
        }
        if out.len() == inner {
            out.truncate(before);
        } else {
            out.push(b'}');
        }
        Ok(())
    }

    /// Writes one value; `depth` containers are open around it. Malformed msgpack ends the value: an
    /// [`Event`] holds none.
    fn value(
        &mut self,
        cursor: &mut Cursor<'_>,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Skip> {
        // Keys are values of their own (`key`), so that what is open below stays as it is.
        let base = self.open.len();
        let result = self.walk(cursor, base, depth, out);
        self.open.truncate(base);
        result
    }

    fn walk(
        &mut self,
        cursor: &mut Cursor<'_>,
        base: usize,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Skip> {
        loop {
            if self.open.len() > base && self.open.last().is_some_and(|open| open.map) {
                self.key(cursor, out);
                out.push(b':');
            }
            let Ok(token) = cursor.token() else {
                out.extend_from_slice(b"null");
                return Ok(());
            };
            match token {
                Token::Array(0) => out.extend_from_slice(b"[]"),
                Token::Map(0) => out.extend_from_slice(b"{}"),
                Token::Array(left) | Token::Map(left) => {
                    if depth + self.open.len() - base >= MAX_DEPTH {
                        return Err(Skip::TooDeep);
                    }
                    let map = matches!(token, Token::Map(_));
                    out.push(if map { b'{' } else { b'[' });
                    self.open.push(Open { left, map });
                    continue;
                }
                scalar => write_scalar(scalar, out),
            }
            // A value is complete: close what it completes, or go on to the next.
            loop {
                if self.open.len() == base {
                    return Ok(());
                }
                let Some(open) = self.open.last_mut() else {
                    return Ok(());
                };
                open.left -= 1;
                if open.left > 0 {
                    out.push(b',');
                    break;
                }
                out.push(if open.map { b'}' } else { b']' });
                self.open.pop();
            }
        }
    }

    /// Writes a key as a JSON string, whatever it is in msgpack.
    fn key(&mut self, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) {
        let start = cursor.position();
        let mut scratch = Vec::new();
        let mut peek = *cursor;
        let name: &[u8] = match peek.token() {
            Ok(Token::Str(name)) => {
                *cursor = peek;
                name
            }
            Ok(Token::Bin(bytes) | Token::Ext(_, bytes)) => {
                *cursor = peek;
                base64(bytes, &mut scratch);
                &scratch
            }
            Ok(Token::Array(_) | Token::Map(_)) => {
                // A container as a key is written as its own msgpack: its JSON could nest keys in keys
                // without end.
                base64(cursor.value().unwrap_or_default(), &mut scratch);
                &scratch
            }
            Ok(scalar) => {
                *cursor = peek;
                write_scalar(scalar, &mut scratch);
                &scratch
            }
            Err(_) => &[],
        };
        debug_assert!(cursor.position() > start, "an event holds whole values");
        match &self.options.replace_dots {
            Some(replacement) if name.contains(&b'.') => {
                let parts: Vec<&[u8]> = name.split(|byte| *byte == b'.').collect();
                string(&parts.join(replacement.as_bytes()), out);
            }
            _ => string(name, out),
        }
    }
}

fn separate(first: usize, out: &mut Vec<u8>) {
    if out.len() > first {
        out.push(b',');
    }
}

fn write_scalar(token: Token<'_>, out: &mut Vec<u8>) {
    match token {
        Token::Nil | Token::Array(_) | Token::Map(_) => out.extend_from_slice(b"null"),
        Token::Bool(true) => out.extend_from_slice(b"true"),
        Token::Bool(false) => out.extend_from_slice(b"false"),
        Token::Int(n) => number(n, out),
        Token::Uint(n) => number(n, out),
        // The shortest digits that read back as the same 32-bit float: 1.1, not 1.100000023841858.
        Token::F32(n) if n.is_finite() => {
            out.extend_from_slice(zmij::Buffer::new().format_finite(n).as_bytes());
        }
        Token::F64(n) if n.is_finite() => {
            out.extend_from_slice(zmij::Buffer::new().format_finite(n).as_bytes());
        }
        Token::F32(_) | Token::F64(_) => out.extend_from_slice(b"null"),
        Token::Str(text) => string(text, out),
        Token::Bin(bytes) | Token::Ext(_, bytes) => {
            out.push(b'"');
            base64(bytes, out);
            out.push(b'"');
        }
    }
}

fn number(n: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// Appends standard base64 with padding.
pub fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    base64_simd::STANDARD.encode_append(bytes, out);
}

/// Appends a JSON string: quotes, escapes only where JSON demands them, U+FFFD for what is not UTF-8.
pub fn string(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        escaped(chunk.valid().as_bytes(), out);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

fn escaped(text: &[u8], out: &mut Vec<u8>) {
    let mut plain = 0;
    for (at, &byte) in text.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(&text[plain..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Group, Time};
    use crate::time::Strftime;
    use rmpv::Value;

    fn pack(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }

    fn map(pairs: Vec<(Value, Value)>) -> Value {
        Value::Map(pairs)
    }

    fn event(body: &[u8]) -> Event<'_> {
        Event {
            time: Time {
                seconds: 1_751_489_071,
                nanos: 123_456_789,
            },
            metadata: &[],
            body,
            group: None,
            raw: &[],
        }
    }

    fn line(options: &Options, body: &Value) -> Result<String, Skip> {
        let mut out = b"before\n".to_vec();
        let body = pack(body);
        let written = Encoder::new(options).line(b"app.http", &event(&body), &mut out);
        assert!(out.starts_with(b"before\n"));
        let text = String::from_utf8(out[7..].to_vec()).expect("UTF-8");
        written.map(|()| text)
    }

    #[test]
    fn every_value_is_valid_json() {
        let cases: Vec<(Value, &str)> = vec![
            (Value::from(u64::MAX), "18446744073709551615"),
            (Value::from(i64::MIN), "-9223372036854775808"),
            (Value::F64(f64::NAN), "null"),
            (Value::F64(f64::INFINITY), "null"),
            (Value::F32(f32::NEG_INFINITY), "null"),
            (Value::F32(1.1), "1.1"),
            (Value::F64(0.1), "0.1"),
            (Value::F64(-0.0), "-0.0"),
            (Value::F64(1e300), "1e+300"),
            (Value::Binary(vec![0, 1, 255]), "\"AAH/\""),
            (Value::Ext(5, b"abc".to_vec()), "\"YWJj\""),
            (
                Value::from("회원 😀 \u{2028}\u{7f}"),
                "\"회원 😀 \u{2028}\u{7f}\"",
            ),
            (
                Value::from("q\" b\\ / \n\r\t\u{8}\u{c}\0\u{1b}"),
                r#""q\" b\\ / \n\r\t\b\f\u0000\u001b""#,
            ),
            (Value::Array(vec![]), "[]"),
            (map(vec![]), "{}"),
            (
                Value::Array(vec![
                    Value::Nil,
                    Value::from(true),
                    map(vec![("a".into(), Value::Array(vec![1.into()]))]),
                ]),
                r#"[null,true,{"a":[1]}]"#,
            ),
        ];
        for (value, expected) in cases {
            let text = line(&Options::default(), &map(vec![("v".into(), value)])).unwrap();
            assert_eq!(text, format!("{{\"v\":{expected}}}\n"));
            serde_json::from_str::<serde_json::Value>(&text).expect("valid JSON");
        }
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        for (bytes, expected) in [
            (&b"caf\xe9 end"[..], "caf\u{fffd} end"),
            (b"cut \xed\x9a", "cut \u{fffd}"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        ] {
            let mut out = Vec::new();
            string(bytes, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("\"{expected}\""));
        }
    }

    #[test]
    fn every_key_is_a_string() {
        let keys = vec![
            (Value::from(1), "1"),
            (Value::from(true), "true"),
            (Value::Nil, "null"),
            (Value::F64(2.5), "2.5"),
            (Value::Binary(vec![1]), "AQ=="),
            (Value::Array(vec![1.into()]), "kQE="),
            (map(vec![(1.into(), 2.into())]), "gQEC"),
            (Value::from("\""), "\\\""),
        ];
        for (key, expected) in keys {
            let inner = map(vec![(key.clone(), 0.into())]);
            let text = line(&Options::default(), &map(vec![(key, inner)])).unwrap();
            assert_eq!(text, format!("{{\"{expected}\":{{\"{expected}\":0}}}}\n"));
        }
    }

    #[test]
    fn depth_is_bounded_and_nothing_half_written() {
        let nested = |depth: usize| {
            let mut value = Value::Nil;
            for _ in 0..depth {
                value = Value::Array(vec![value]);
            }
            map(vec![("d".into(), value)])
        };
        let deepest = line(&Options::default(), &nested(MAX_DEPTH - 1)).unwrap();
        serde_json::from_str::<serde_json::Value>(&deepest).expect("readable by others");
        assert_eq!(
            line(&Options::default(), &nested(MAX_DEPTH)),
            Err(Skip::TooDeep)
        );
    }

    #[test]
    fn log_key_sends_one_value_as_it_is() {
        let options = Options {
            log_key: Some("log".into()),
            ..Options::default()
        };
        let cases = [
            (
                map(vec![
                    ("logger".into(), 1.into()),
                    ("log".into(), "a \"b\" 회".into()),
                ]),
                Ok("a \"b\" 회\n"),
            ),
            (
                map(vec![("log".into(), map(vec![("n".into(), 1.into())]))]),
                Ok("{\"n\":1}\n"),
            ),
            (
                map(vec![("logger".into(), "prefix only".into())]),
                Err(Skip::NoLogKey),
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(
                line(&options, &body).as_deref(),
                expected.as_ref().map(|s| &**s)
            );
        }
    }

    #[test]
    fn data_keys_choose_top_level_keys_exactly() {
        let options = Options {
            data_keys: vec!["a".into(), "b".into()],
            ..Options::default()
        };
        let body = map(vec![
            ("ab".into(), 0.into()),
            ("b".into(), map(vec![("c".into(), 1.into())])),
            (1.into(), 2.into()),
            ("a".into(), 3.into()),
        ]);
        assert_eq!(
            line(&options, &body).unwrap(),
            "{\"b\":{\"c\":1},\"a\":3}\n"
        );
    }

    #[test]
    fn time_and_tag_are_added_once() {
        let formats = [
            (TimeFormat::Iso8601, "\"2025-07-02T20:44:31.123Z\""),
            (TimeFormat::Epoch, "1751489071"),
            (TimeFormat::EpochMs, "1751489071123"),
            (
                TimeFormat::Strftime(Strftime::parse("%H:%M:%S.%6N").unwrap()),
                "\"20:44:31.123456\"",
            ),
        ];
        for (format, expected) in formats {
            let options = Options {
                time: Some(("time".into(), format)),
                tag_key: Some("tag".into()),
                ..Options::default()
            };
            for body in [
                map(vec![]),
                map(vec![("time".into(), "the app's own".into())]),
            ] {
                assert_eq!(
                    line(&options, &body).unwrap(),
                    format!("{{\"time\":{expected},\"tag\":\"app.http\"}}\n")
                );
            }
        }
    }

    #[test]
    fn metadata_and_group_stand_under_their_key() {
        let options = Options {
            metadata_key: Some("meta".into()),
            ..Options::default()
        };
        let empty = pack(&map(vec![]));
        let metadata = pack(&map(vec![(
            "otlp".into(),
            map(vec![("severity_number".into(), 17.into())]),
        )]));
        let resource = pack(&map(vec![("resource".into(), map(vec![]))]));
        let schema = pack(&map(vec![("schema".into(), "otlp".into())]));
        let group = Group {
            metadata: &schema,
            body: &resource,
        };
        let cases = [
            (&empty, None, "{}\n"),
            (
                &metadata,
                None,
                "{\"meta\":{\"otlp\":{\"severity_number\":17}}}\n",
            ),
            (
                &empty,
                Some(group),
                "{\"meta\":{\"resource\":{},\"group\":{\"schema\":\"otlp\"}}}\n",
            ),
            (
                &metadata,
                Some(group),
                "{\"meta\":{\"otlp\":{\"severity_number\":17},\"resource\":{},\"group\":{\"schema\":\"otlp\"}}}\n",
            ),
        ];
        for (metadata, group, expected) in cases {
            let mut out = Vec::new();
            let event = Event {
                metadata,
                group,
                ..event(&empty)
            };
            Encoder::new(&options).line(b"t", &event, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn dots_are_replaced_in_keys_at_every_depth() {
        let options = Options {
            replace_dots: Some("_".into()),
            ..Options::default()
        };
        let body = map(vec![(
            "a.b".into(),
            Value::Array(vec![map(vec![
                ("c.d.".into(), "left.alone".into()),
                (Value::F64(2.5), 1.into()),
            ])]),
        )]);
        assert_eq!(
            line(&options, &body).unwrap(),
            "{\"a_b\":[{\"c_d_\":\"left.alone\",\"2_5\":1}]}\n"
        );
    }

    #[test]
    fn a_key_that_comes_out_like_one_of_ours_gives_way_however_it_was_written() {
        let options = Options {
            tag_key: Some("a_b".into()),
            time: Some(("5".into(), TimeFormat::Epoch)),
            replace_dots: Some("_".into()),
            ..Options::default()
        };
        // {"a.b": 1, 5: 2, "c": 3}: a dot that is replaced, a number that becomes a string.
        let body = b"\x83\xa3a.b\x01\x05\x02\xa1c\x03";
        let data = [b"\x92\x92\xd7\0\0\0\0\x07\0\0\0\0\x80".as_slice(), body].concat();
        let Some(crate::decode::Item::Event(event)) = crate::decode::Events::new(&data).next()
        else {
            panic!("an event");
        };
        let mut line = Vec::new();
        Encoder::new(&options)
            .line(b"t", &event, &mut line)
            .unwrap();
        assert_eq!(line, b"{\"c\":3,\"5\":7,\"a_b\":\"t\"}\n");
    }

    proptest::proptest! {
        /// Whatever a record holds, its line is one JSON object, and reads back as what went in.
        #[test]
        fn any_record_is_one_valid_line(body in proptest::collection::vec((strings(), values()), 0..8)) {
            let body = map(body);
            if let Ok(text) = line(&Options::default(), &body) {
                proptest::prop_assert_eq!(text.bytes().filter(|b| *b == b'\n').count(), 1);
                serde_json::from_str::<serde_json::Value>(&text).expect("valid JSON");
            }
        }
    }

    fn strings() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        proptest::collection::vec(any::<u8>(), 0..24).prop_map(|bytes| {
            Value::String(rmpv::Utf8String::from(
                String::from_utf8(bytes).unwrap_or_default(),
            ))
        })
    }

    fn values() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::F64),
            any::<f32>().prop_map(Value::F32),
            any::<bool>().prop_map(Value::from),
            strings(),
            proptest::collection::vec(any::<u8>(), 0..24).prop_map(Value::Binary),
            (any::<i8>(), proptest::collection::vec(any::<u8>(), 0..24))
                .prop_map(|(k, b)| Value::Ext(k, b)),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                proptest::collection::vec((inner.clone(), inner), 0..6).prop_map(Value::Map),
            ]
        })
    }
}
