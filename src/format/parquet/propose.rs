//! Columns from a sample: which fields the records have, how often, and which type takes all of their values.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde_json::Value;

use super::columns::{Column, Columns, MAX_NAME, Type};
use super::paths::Path;

/// The most maps within each other that are looked into; a deeper one is one value.
const DEPTH: usize = 4;
/// A map with more keys than this over the sample is one value: its keys are data, such as IDs.
const MOST_KEYS: usize = 100;
/// The most fields that are told apart, so that hostile records do not fill the memory.
const MOST_FIELDS: usize = 20_000;
/// The values of a field of which it is remembered whether they differ.
const REMEMBERED: usize = 1_000;
/// The shortest text that is worth a bloom filter if nearly each value is another one: an ID.
const BLOOM_BYTES: usize = 16;

/// What a sample has shown so far.
#[derive(Debug, Default)]
pub struct Sample {
    records: u64,
    fields: BTreeMap<Vec<String>, Field>,
    /// Fields that were not told apart any more.
    ignored: u64,
}

#[derive(Debug, Default)]
struct Field {
    present: u64,
    nulls: u64,
    bools: u64,
    ints: u64,
    /// Integers that do not fit 64 signed bits.
    large: u64,
    floats: u64,
    texts: u64,
    /// Texts that are instants.
    times: u64,
    lists: u64,
    maps: u64,
    /// The bytes of the texts.
    bytes: u64,
    distinct: HashSet<u64>,
}

/// A proposed column.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The column.
    pub column: Column,
    /// The part of the records that have a value for it.
    pub present: f64,
    /// The part of its values that would go to the rest.
    pub unfit: f64,
}

impl fmt::Display for Proposal {
    /// A line for `parquet_columns @FILE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: f64| match part * 100.0 {
            100.0 => "100%".to_owned(),
            some @ 0.1.. => format!("{some:.1}%"),
            _ => "below 0.1%".to_owned(),
        };
        let column = self.column.to_string();
        write!(
            f,
            "{column:<48} # in {} of the records",
            percent(self.present)
        )?;
        if self.unfit > 0.0 {
            write!(f, ", {} of its values go to the rest", percent(self.unfit))?;
        }
        Ok(())
    }
}

impl Sample {
    /// Adds a record.
    pub fn add(&mut self, record: &Value) {
        self.records += 1;
        if let Value::Object(fields) = record {
            let mut path = Vec::new();
            for (key, value) in fields {
                path.push(key.clone());
                self.field(&mut path, value);
                path.pop();
            }
        }
    }

    /// Returns the number of records.
    pub fn records(&self) -> u64 {
        self.records
    }

    fn field(&mut self, path: &mut Vec<String>, value: &Value) {
        if !self.fields.contains_key(path) && self.fields.len() >= MOST_FIELDS {
            self.ignored += 1;
            return;
        }
        let field = self.fields.entry(path.clone()).or_default();
        field.present += 1;
        match value {
            Value::Null => field.nulls += 1,
            Value::Bool(_) => field.bools += 1,
            Value::Number(number) if number.is_i64() => field.ints += 1,
            Value::Number(number) if number.is_u64() => field.large += 1,
            Value::Number(_) => field.floats += 1,
            Value::String(text) => {
                field.texts += 1;
                field.bytes += text.len() as u64;
                field.times += u64::from(is_time(text));
                if field.distinct.len() < REMEMBERED {
                    field.distinct.insert(hash(text));
                }
            }
            Value::Array(_) => field.lists += 1,
            Value::Object(fields) => {
                field.maps += 1;
                if path.len() < DEPTH {
                    for (key, value) in fields {
                        path.push(key.clone());
                        self.field(path, value);
                        path.pop();
                    }
                }
            }
        }
    }

    /// Returns the columns for fields that at least `least` of the records have, the most frequent `most` of them, in the
    /// order of their paths; and the fields that would go to the rest, with the part of the records that have them.
    pub fn propose(&self, least: f64, most: usize) -> (Vec<Proposal>, Vec<(Path, f64)>) {
        let part = |count: u64| count as f64 / self.records.max(1) as f64;
        let mut columns: Vec<Proposal> = Vec::new();
        let mut rest = Vec::new();
        for (keys, field) in &self.fields {
            let open = self.is_open(keys, field);
            let inside_closed = (1..keys.len()).any(|end| {
                let outer = &keys[..end];
                !self
                    .fields
                    .get(outer)
                    .is_some_and(|field| self.is_open(outer, field))
            });
            // An open map is its fields; what is within a closed one is its value.
            if open || inside_closed {
                continue;
            }
            let Some(path) = Path::of_keys(keys) else {
                continue;
            };
            let with_value = field.present - field.nulls;
            let (kind, unfit) = field.kind();
            if with_value == 0 || part(with_value) < least {
                rest.push((path, part(field.present)));
                continue;
            }
            columns.push(Proposal {
                column: Column {
                    name: String::new(),
                    kind,
                    bloom: kind == Type::String && field.is_id(),
                    path,
                },
                present: part(with_value),
                unfit: unfit as f64 / with_value as f64,
            });
        }
        columns.sort_by(|a, b| b.present.total_cmp(&a.present));
        rest.extend(
            columns
                .drain(most.min(columns.len())..)
                .map(|it| (it.column.path, it.present)),
        );
        columns.sort_by(|a, b| a.column.path.cmp(&b.column.path));
        let defaults = Columns::default();
        let mut names: HashSet<String> =
            defaults.all().iter().map(|it| it.name.to_owned()).collect();
        for proposal in &mut columns {
            proposal.column.name = name_of(&proposal.column.path, &mut names);
        }
        rest.sort_by(|a, b| b.1.total_cmp(&a.1));
        (columns, rest)
    }

    /// Whether a field is a map whose fields are told apart.
    fn is_open(&self, keys: &[String], field: &Field) -> bool {
        let maps_only = field.maps > 0 && field.maps + field.nulls == field.present;
        maps_only && keys.len() < DEPTH && {
            let inside = self.fields.range(keys.to_vec()..);
            let children = inside
                .skip(1)
                .take_while(|(it, _)| it.starts_with(keys))
                .filter(|(it, _)| it.len() == keys.len() + 1);
            let count = children.take(MOST_KEYS + 1).count();
            (1..=MOST_KEYS).contains(&count)
        }
    }
}

impl Field {
    /// Returns the type that takes the field's values, and the number of those that do not fit it.
    fn kind(&self) -> (Type, u64) {
        let numbers = self.ints + self.large + self.floats;
        let scalars = self.bools + numbers + self.texts;
        if self.lists + self.maps > 0 {
            return (Type::Json, 0);
        }
        match () {
            () if self.bools == scalars => (Type::Bool, 0),
            // What is too large goes to the rest, where it keeps its digits.
            () if self.ints + self.large == scalars => (Type::Int, self.large),
            () if numbers == scalars => (Type::Float, 0),
            () if self.texts == scalars && self.times == scalars => (Type::Timestamp(None), 0),
            () => (Type::String, 0),
        }
    }

    fn is_id(&self) -> bool {
        let seen = self.texts.min(REMEMBERED as u64);
        let distinct = self.distinct.len() as u64;
        seen >= 20
            && distinct * 10 >= seen * 3
            && self.bytes >= self.texts * BLOOM_BYTES as u64
            && self.bytes <= self.texts * 64
    }
}

fn is_time(text: &str) -> bool {
    let value = rmp_serde::to_vec(text).unwrap_or_default();
    matches!(
        Type::Timestamp(None).convert(&value),
        super::columns::Converted::Value(_)
    )
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Returns a name that no other column has: the path's last key, or more of the path if another one has that already.
fn name_of(path: &Path, taken: &mut HashSet<String>) -> String {
    let keys = path.keys();
    for from in (0..keys.len()).rev() {
        let name = plain(&keys[from..].join("_"));
        if taken.insert(name.clone()) {
            return name;
        }
    }
    let whole = plain(&keys.join("_"));
    for number in 2.. {
        let name = format!("{}_{number}", &whole[..whole.len().min(MAX_NAME - 8)]);
        if taken.insert(name.clone()) {
            return name;
        }
    }
    whole
}

/// Returns a text as lower-case letters, digits and `_`, with an `_` where a word begins with a capital.
fn plain(text: &str) -> String {
    let mut name = String::new();
    let mut after_lower = false;
    for c in text.chars() {
        if c.is_ascii_uppercase() && after_lower {
            name.push('_');
        }
        after_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        match c.is_ascii_alphanumeric() {
            true => name.push(c.to_ascii_lowercase()),
            false if !name.ends_with('_') => name.push('_'),
            false => {}
        }
    }
    name.truncate(MAX_NAME);
    if name == "_" {
        return "column".to_owned();
    }
    match name.bytes().next() {
        Some(first) if !first.is_ascii_digit() => name,
        _ => format!("c_{}", &name[..name.len().min(MAX_NAME - 2)]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn proposed(records: &[Value]) -> (Vec<String>, Vec<String>) {
        let mut sample = Sample::default();
        records.iter().for_each(|record| sample.add(record));
        let (columns, rest) = sample.propose(0.1, 200);
        let columns: Vec<Proposal> = columns;
        let listed: Vec<String> = columns.iter().map(|it| it.column.to_string()).collect();
        let parsed = Columns::parse_list(&listed.join("\n")).unwrap();
        let all = Columns {
            declared: parsed,
            ..Columns::default()
        };
        all.check().expect("what is proposed is accepted");
        let rest = rest.into_iter().map(|(path, _)| path.to_string()).collect();
        (listed, rest)
    }

    #[test]
    fn each_field_gets_the_type_that_takes_its_values() {
        let records = [
            json!({"level": "info", "response": {"statusCode": 200, "cached": true}, "took": 1.5, "at": "2025-01-01T00:00:00Z",
                   "tags": ["a"], "id": 1, "mixed": "x", "odd-key": null}),
            json!({"level": "warn", "response": {"statusCode": 404, "cached": false}, "took": 2, "at": "2025-01-02T00:00:00.5Z",
                   "tags": {}, "id": 18446744073709551615u64, "mixed": 7, "odd-key": "v", "time": "08:00"}),
        ];
        let (columns, rest) = proposed(&records);
        assert_eq!(
            columns,
            [
                "at timestamp",
                "id int",
                "level string",
                "mixed string",
                "odd_key string = odd-key",
                "cached bool = response.cached",
                "status_code int = response.statusCode",
                "tags json",
                // Every table has a column of this name.
                "time_2 string = time",
                "took float",
            ]
        );
        assert!(rest.is_empty(), "{rest:?}");
    }

    #[test]
    fn names_are_told_apart_by_more_of_their_path() {
        let (columns, _) =
            proposed(&[json!({"a": {"id": 1}, "b": {"id": 2}, "9": 1, "é": 2, "a.b": 3})]);
        assert_eq!(
            columns,
            [
                "c_9 int = 9",
                "id int = a.id",
                "a_b int = ['a.b']",
                "b_id int = b.id",
                "column int = é",
            ]
        );
    }

    #[test]
    fn rare_fields_and_keys_that_are_data_go_to_the_rest() {
        let records: Vec<Value> = (0..300)
            .map(|n| {
                let (id, trace) = (format!("user{n}"), format!("{:032x}", n * 7_919));
                json!({"trace": trace, "counts": {id: n}, "rare": if n == 0 { json!(1) } else { Value::Null }})
            })
            .collect();
        let (columns, rest) = proposed(&records);
        assert_eq!(columns, ["counts json", "trace string bloom"]);
        assert_eq!(rest, ["rare"]);
    }

    #[test]
    fn what_does_not_fit_is_shown_with_its_share() {
        let mut sample = Sample::default();
        for n in 0..1_000u64 {
            let id = if n == 7 { u64::MAX } else { n };
            sample.add(&json!({"id": id}));
        }
        let (columns, _) = sample.propose(0.01, 200);
        let line = columns[0].to_string();
        assert!(line.starts_with("id int "), "{line}");
        assert!(
            line.ends_with("# in 100% of the records, 0.1% of its values go to the rest"),
            "{line}"
        );
    }
}
