//! Where a column's value is in a record: a path of keys.

use std::fmt;

/// A path of keys, from the record down: `response.statusCode`, or `labels['app.kubernetes.io/name']` for keys with
/// dots and other characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Vec<String>);

impl Path {
    /// The path of a key of the record itself.
    pub fn key(key: &str) -> Path {
        Path(vec![key.to_owned()])
    }

    /// Parses a path. A `$` before it is allowed, as the host's own accessor has one. `None`: it is none, or it has more
    /// than 16 keys.
    pub fn parse(text: &str) -> Option<Path> {
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut keys = Vec::new();
        while !rest.is_empty() {
            let first = keys.is_empty();
            let (key, after) = match rest.strip_prefix('[') {
                Some(quoted) => {
                    let quote = quoted
                        .chars()
                        .next()
                        .filter(|it| matches!(it, '\'' | '"'))?;
                    let (key, after) = quoted[1..].split_once(quote)?;
                    (key, after.strip_prefix(']')?)
                }
                None => {
                    let plain = match first {
                        true => rest,
                        false => rest.strip_prefix('.')?,
                    };
                    let end = plain.find(['.', '[']).unwrap_or(plain.len());
                    if plain[..end].contains(['\'', '"', ']']) {
                        return None;
                    }
                    plain.split_at(end)
                }
            };
            if key.is_empty() {
                return None;
            }
            keys.push(key.to_owned());
            rest = after;
        }
        (1..=16).contains(&keys.len()).then_some(Path(keys))
    }

    /// The path of these keys. `None`: there are none, or more than 16, or one is empty.
    pub fn of_keys(keys: &[String]) -> Option<Path> {
        let valid = (1..=16).contains(&keys.len()) && keys.iter().all(|key| !key.is_empty());
        valid.then(|| Path(keys.to_vec()))
    }

    /// Returns its keys.
    pub fn keys(&self) -> &[String] {
        &self.0
    }

    /// Returns whether one of the paths leads through the other's value, or they are the same.
    pub fn overlaps(&self, other: &Path) -> bool {
        self.0.starts_with(&other.0) || other.0.starts_with(&self.0)
    }
}

/// Writes what [`Path::parse`] reads.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, key) in self.0.iter().enumerate() {
            let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '@' | '/');
            match (key.chars().all(plain), at) {
                (true, 0) => f.write_str(key)?,
                (true, _) => write!(f, ".{key}")?,
                (false, _) if key.contains('\'') => write!(f, "[\"{key}\"]")?,
                (false, _) => write!(f, "['{key}']")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_and_written_alike() {
        for (text, keys) in [
            ("a", &["a"][..]),
            ("$a.b-c.d", &["a", "b-c", "d"]),
            ("a['b.c'].d", &["a", "b.c", "d"]),
            ("['a b'][\"it's\"]", &["a b", "it's"]),
            ("회원.이름", &["회원", "이름"]),
        ] {
            let path = Path::parse(text).unwrap();
            assert_eq!(path.keys(), keys, "{text}");
            assert_eq!(Path::parse(&path.to_string()), Some(path), "{text}");
        }
        for text in [
            "",
            "$",
            ".a",
            "a.",
            "a..b",
            "a[b]",
            "a['b'",
            "a['b]",
            "a['']",
            "a'b",
            &"a.".repeat(17),
        ] {
            assert_eq!(Path::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_path_through_another_overlaps_it() {
        let overlap = |a, b| Path::parse(a).unwrap().overlaps(&Path::parse(b).unwrap());
        assert!(overlap("a", "a.b") && overlap("a.b", "a") && overlap("a.b", "a.b"));
        assert!(!overlap("a.b", "a.c") && !overlap("a", "ab"));
    }
}
