//! How keys are written, and values found by their keys.

use std::borrow::Cow;

use crate::codec::msgpack::{Cursor, Token};

/// How the keys of lines are written. Keys that are written alike are one key: of several in a map, the last counts, in
/// lines as in names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyForm {
    /// Replaces every dot.
    pub replace_dots: Option<String>,
    /// Whether letters are written in lower case.
    pub lowercase: bool,
}

impl KeyForm {
    /// Returns a key as it is written, but for JSON's escapes.
    pub fn written<'k>(&self, key: &'k [u8]) -> Cow<'k, [u8]> {
        let text = match std::str::from_utf8(key) {
            Ok(text) if !self.changes(text) => return Cow::Borrowed(key),
            Ok(text) => Cow::Borrowed(text),
            Err(_) if self.is_plain() => return Cow::Borrowed(key),
            Err(_) => String::from_utf8_lossy(key),
        };
        let mut text = match self.lowercase {
            true => text.to_lowercase(),
            false => text.into_owned(),
        };
        if let Some(replacement) = &self.replace_dots {
            text = text.replace('.', replacement);
        }
        Cow::Owned(text.into_bytes())
    }

    fn changes(&self, text: &str) -> bool {
        let is_lowered = |c: char| match c.is_ascii() {
            true => c.is_ascii_uppercase(),
            false => c.to_lowercase().ne([c]),
        };
        (self.lowercase && text.chars().any(is_lowered))
            || (self.replace_dots.is_some() && text.contains('.'))
    }

    /// Whether keys are written as they are.
    pub fn is_plain(&self) -> bool {
        self.replace_dots.is_none() && !self.lowercase
    }

    /// Whether two keys are written alike.
    fn same(&self, one: &[u8], other: &[u8]) -> bool {
        one == other || (!self.is_plain() && self.written(one) == self.written(other))
    }
}

/// Returns the value of a text key in a whole msgpack map: the last one, where there are several.
pub fn lookup<'a>(map: &'a [u8], key: &str, form: &KeyForm) -> Option<&'a [u8]> {
    let mut cursor = Cursor::new(map);
    let Ok(Token::Map(pairs)) = cursor.token() else {
        return None;
    };
    let mut value = None;
    for _ in 0..pairs {
        let (found, inner) = (cursor.value().ok()?, cursor.value().ok()?);
        // Binary that equals a text key is UTF-8.
        if let Ok(Token::Str(name) | Token::Bin(name)) = Cursor::new(found).token()
            && form.same(name, key.as_bytes())
        {
            value = Some(inner);
        }
    }
    value
}

/// A path to a value within a record: `a.b`, or as Fluent Bit's record accessor writes it, `a['b']`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A key. Plain steps may be parts of one key with dots: these are all that begin here, the longest first. The last
    /// one is the step's own.
    Key(Vec<String>),
    /// An element of an array.
    Index(usize),
}

impl KeyPath {
    /// Parses a path up to the end of `text` or a `|`, and returns what follows it. `None` if it is not a path.
    pub fn parse(text: &str) -> Option<(KeyPath, &str)> {
        // The key or index of each step, and whether a plain one follows another.
        let mut parts: Vec<(Result<String, usize>, bool)> = Vec::new();
        let mut rest = text;
        let mut plain_before = false;
        loop {
            if let Some(inner) = rest.strip_prefix('[') {
                let part = match inner.chars().next()? {
                    quote @ ('\'' | '"') => {
                        let (key, after) = quoted(&inner[1..], quote)?;
                        rest = after;
                        Ok(key)
                    }
                    _ => {
                        let (number, _) = inner.split_once(']')?;
                        rest = &inner[number.len()..];
                        Err(number.parse().ok()?)
                    }
                };
                rest = rest.strip_prefix(']')?;
                parts.push((part, false));
                plain_before = false;
            } else {
                let len = rest.find(['.', '[', '|']).unwrap_or(rest.len());
                let (key, after) = rest.split_at(len);
                if key.is_empty() {
                    return None;
                }
                parts.push((Ok(key.to_owned()), plain_before));
                (rest, plain_before) = (after, true);
            }
            match rest.chars().next() {
                None | Some('|') => break,
                Some('.') => rest = &rest[1..],
                Some('[') => {}
                Some(_) => return None,
            }
        }
        let steps = parts.iter().enumerate().map(|(at, (part, _))| match part {
            Err(index) => Step::Index(*index),
            Ok(key) => {
                let mut keys = vec![key.clone()];
                for (part, joins) in &parts[at + 1..] {
                    let (Ok(next), true) = (part, joins) else {
                        break;
                    };
                    keys.push(format!("{}.{next}", keys[keys.len() - 1]));
                }
                keys.reverse();
                Step::Key(keys)
            }
        });
        let steps = steps.collect();
        Some((KeyPath { steps }, rest))
    }

    /// Returns the value at the path in a whole msgpack map.
    pub fn find<'a>(&self, map: &'a [u8], form: &KeyForm) -> Option<&'a [u8]> {
        find(&self.steps, map, form)
    }
}

fn find<'a>(steps: &[Step], value: &'a [u8], form: &KeyForm) -> Option<&'a [u8]> {
    let Some((step, rest)) = steps.split_first() else {
        return Some(value);
    };
    match step {
        Step::Index(index) => {
            let mut cursor = Cursor::new(value);
            let Token::Array(values) = cursor.token().ok()? else {
                return None;
            };
            if *index >= usize::try_from(values).ok()? {
                return None;
            }
            for _ in 0..*index {
                cursor.value().ok()?;
            }
            find(rest, cursor.value().ok()?, form)
        }
        Step::Key(keys) => keys.iter().enumerate().find_map(|(at, key)| {
            let inner = lookup(value, key, form)?;
            // A key of several steps leaves fewer for what is in it.
            find(&rest[keys.len() - 1 - at..], inner, form)
        }),
    }
}

/// Parses a quoted key after its first quote, in which two quotes stand for one. Returns what follows it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut key = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            key.push(c);
        } else if text[at + 1..].starts_with(quote) {
            key.push(quote);
            chars.next();
        } else {
            return Some((key, &text[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> KeyPath {
        let (path, rest) = KeyPath::parse(text).unwrap();
        assert_eq!(rest, "", "{text}");
        path
    }

    fn pack(json: serde_json::Value) -> Vec<u8> {
        rmp_serde::to_vec(&json).unwrap()
    }

    #[test]
    fn a_path_finds_keys_that_are_text() {
        // {1: 2, "a": {"b": "x"}, "c": 3}
        let map = b"\x83\x01\x02\xa1a\x81\xa1b\xa1x\xa1c\x03";
        let of = |text, map| path(text).find(map, &KeyForm::default());
        assert_eq!(of("a.b", map), Some(&b"\xa1x"[..]));
        assert_eq!(of("c", map), Some(&b"\x03"[..]));
        assert_eq!(of("c.d", map), None);
        assert_eq!(of("1", map), None);
        // {ext "a": 1, b"a": {b"b": b"x"}, b"\xff": 3}
        let map = b"\x83\xd4\x01a\x01\xc4\x01a\x81\xc4\x01b\xc4\x01x\xc4\x01\xff\x03";
        assert_eq!(of("a.b", map), Some(&b"\xc4\x01x"[..]));
        assert_eq!(of("\u{fffd}", map), None);
        assert_eq!(of("/w==", map), None);
        // {"a": {"b": 1}, "a": {"c": 2}, "a": {"c": 3}}
        let map = b"\x83\xa1a\x81\xa1b\x01\xa1a\x81\xa1c\x02\xa1a\x81\xa1c\x03";
        assert_eq!(of("a.b", map), None);
        assert_eq!(of("a.c", map), Some(&b"\x03"[..]));
    }

    #[test]
    fn brackets_name_one_key_and_plain_paths_try_the_longest() {
        let record = pack(serde_json::json!({
            "kubernetes": {"labels": {"app.kubernetes.io/name": 1, "it's": 2, "a|b": 3, "x]": 4}},
            "a.b": {"x": 5, "c.d": 6},
            "a": {"b": {"c": 7, "d": 8}, "b.d": 9},
            "list": [{"k.v": 10}, [11, 12]],
        }));
        for (text, expected) in [
            ("kubernetes['labels']['app.kubernetes.io/name']", Some(1)),
            ("kubernetes.labels['app.kubernetes.io/name']", Some(1)),
            ("kubernetes.labels[\"app.kubernetes.io/name\"]", Some(1)),
            ("kubernetes.labels.app.kubernetes.io/name", Some(1)),
            ("['kubernetes'].labels.app.kubernetes.io/name", Some(1)),
            ("kubernetes.labels['app'].kubernetes.io/name", None),
            ("kubernetes['labels']['it''s']", Some(2)),
            ("kubernetes['labels'][\"it's\"]", Some(2)),
            ("kubernetes['labels']['a|b']", Some(3)),
            ("kubernetes['labels']['x]']", Some(4)),
            ("a.b.x", Some(5)),
            ("a.b.c.d", Some(6)),
            ("a.b.c", Some(7)),
            ("a['b']['d']", Some(8)),
            ("a.b.d", Some(9)),
            ("['a.b'].x", Some(5)),
            ("['a.b'].c", None),
            ("list[0]['k.v']", Some(10)),
            ("list[0].k.v", Some(10)),
            ("list[1][1]", Some(12)),
            ("list[2]", None),
            ("a[0]", None),
        ] {
            let found = path(text).find(&record, &KeyForm::default());
            assert_eq!(found, expected.map(|n: u8| vec![n]).as_deref(), "{text}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in [
            "", ".", "a.", ".a", "a..b", "a[", "a[]", "a['b'", "a['b", "a[b]", "a[-1]", "a['b']c",
            "|x",
        ] {
            assert_eq!(KeyPath::parse(text), None, "{text}");
        }
        let (_, rest) = KeyPath::parse("a['b|c']|none").unwrap();
        assert_eq!(rest, "|none");
    }

    #[test]
    fn keys_that_are_written_alike_are_one() {
        let form = KeyForm {
            replace_dots: Some("_".into()),
            lowercase: true,
        };
        let record = pack(serde_json::json!([]));
        assert_eq!(lookup(&record, "a", &form), None);
        // {"a.b": 1, "A_B": 2, "c": 3}
        let record = b"\x83\xa3a.b\x01\xa3A_B\x02\xa1c\x03";
        for (key, expected) in [
            ("a_b", Some(2)),
            ("a.b", Some(2)),
            ("C", Some(3)),
            ("b", None),
        ] {
            let expected = expected.map(|n: u8| vec![n]);
            assert_eq!(lookup(record, key, &form), expected.as_deref(), "{key}");
        }
        assert_eq!(
            lookup(record, "a.b", &KeyForm::default()),
            Some(&b"\x01"[..])
        );
    }
}
