//! The columns of a table: how they are declared, and which values fit them.
//!
//! A table is flat and its types are few and wide, so that files of different times are read together by every reader.
//! **A value is in one place**: in its column if it fits, otherwise in the column of the rest, as JSON text under its own
//! path. What converts to a column's type does so exactly; nothing is rounded, cut or guessed.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Datelike as _, NaiveDateTime};

use super::paths::Path;
use crate::codec::msgpack::{Cursor, Token};
use crate::ids::Time;

/// The most columns that may be declared. Each costs memory while an object is made, and some hundred bytes of each object.
pub const MAX_COLUMNS: usize = 200;
/// The longest name of a column, in bytes: Glue's limit is 255, and some databases stop at 128.
pub const MAX_NAME: usize = 128;
/// The column of the rest, unless it is named otherwise.
pub const REST: &str = "rest";
/// The column of the event's time, unless it is named otherwise.
pub const TIME: &str = "time";
/// The column of the tag, unless it is named otherwise.
pub const TAG: &str = "tag";

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Text: strings, and numbers and booleans as their JSON text.
    String,
    /// Integers of 64 bits with a sign.
    Int,
    /// Floating-point numbers of 64 bits.
    Float,
    /// Booleans.
    Bool,
    /// Instants, in microseconds since the Unix epoch, UTC. With a unit, numbers are epochs in that unit; without one they
    /// do not fit.
    Timestamp(Option<Unit>),
    /// Anything, as JSON text.
    Json,
}

/// The unit of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Nanoseconds.
    Nanos,
}

/// The words of the types.
const TYPES: [(&str, Type); 10] = [
    ("string", Type::String),
    ("int", Type::Int),
    ("float", Type::Float),
    ("bool", Type::Bool),
    ("timestamp", Type::Timestamp(None)),
    ("timestamp_s", Type::Timestamp(Some(Unit::Seconds))),
    ("timestamp_ms", Type::Timestamp(Some(Unit::Millis))),
    ("timestamp_us", Type::Timestamp(Some(Unit::Micros))),
    ("timestamp_ns", Type::Timestamp(Some(Unit::Nanos))),
    ("json", Type::Json),
];

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = TYPES.iter().find(|(_, it)| it == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

/// What a column is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// UTF-8 text: `STRING`, `VARCHAR`.
    Text,
    /// `BIGINT`.
    Int,
    /// `DOUBLE`.
    Float,
    /// `BOOLEAN`.
    Bool,
    /// `TIMESTAMP`, microseconds, adjusted to UTC.
    Timestamp,
}

impl Type {
    /// Parses a type.
    pub fn parse(word: &str) -> Option<Type> {
        TYPES.iter().find(|(it, _)| *it == word).map(|(_, it)| *it)
    }

    /// Returns what it is stored as.
    pub fn stored(self) -> Stored {
        match self {
            Type::String | Type::Json => Stored::Text,
            Type::Int => Stored::Int,
            Type::Float => Stored::Float,
            Type::Bool => Stored::Bool,
            Type::Timestamp(_) => Stored::Timestamp,
        }
    }

    /// Converts a whole msgpack value. Nil fits every type, as null.
    pub fn convert(self, value: &[u8]) -> Converted<'_> {
        let Ok(token) = Cursor::new(value).token() else {
            return Converted::Unfit;
        };
        if token == Token::Nil {
            return Converted::Null;
        }
        let converted = match self {
            Type::String => text_of(token).map(Value::Text),
            Type::Int => int_of(token).map(Value::Int),
            Type::Float => float_of(token).map(Value::Float),
            Type::Bool => match token {
                Token::Bool(it) => Some(Value::Bool(it)),
                _ => None,
            },
            Type::Timestamp(unit) => micros_of(token, unit).map(Value::Timestamp),
            Type::Json => Some(Value::Json),
        };
        converted.map_or(Converted::Unfit, Converted::Value)
    }
}

/// What a value becomes in a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Converted<'v> {
    /// Null, which is the same as an absent value.
    Null,
    /// A value.
    Value(Value<'v>),
    /// It does not fit, and belongs to the rest.
    Unfit,
}

/// The value of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'v> {
    /// UTF-8 text.
    Text(Cow<'v, [u8]>),
    /// An integer.
    Int(i64),
    /// A floating-point number, NaN and infinities included.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// Microseconds since the Unix epoch.
    Timestamp(i64),
    /// The value's JSON text, which its encoder writes.
    Json,
}

/// The largest integer below which every integer is a floating-point number.
const EXACT: f64 = 9_007_199_254_740_992.0;

fn text_of(token: Token<'_>) -> Option<Cow<'_, [u8]>> {
    if let Some(text) = token.text() {
        // As lines have it: U+FFFD for what is not UTF-8.
        return Some(match String::from_utf8_lossy(text) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        });
    }
    let text = match token {
        Token::Bool(it) => it.to_string(),
        Token::Int(it) => it.to_string(),
        Token::Uint(it) => it.to_string(),
        Token::F32(it) if it.is_finite() => zmij::Buffer::new().format_finite(it).to_owned(),
        Token::F64(it) => number_text(it)?,
        _ => return None,
    };
    Some(Cow::Owned(text.into_bytes()))
}

/// Returns a finite number as JSON has it.
fn number_text(number: f64) -> Option<String> {
    number
        .is_finite()
        .then(|| zmij::Buffer::new().format_finite(number).to_owned())
}

fn int_of(token: Token<'_>) -> Option<i64> {
    match token {
        Token::Int(it) => Some(it),
        Token::Uint(it) => i64::try_from(it).ok(),
        Token::F32(it) => whole(it.into()),
        Token::F64(it) => whole(it),
        _ => canonical_int(token.text()?),
    }
}

fn whole(number: f64) -> Option<i64> {
    let is_whole = number.trunc() == number && number.abs() <= EXACT;
    // Zero's sign would be lost.
    let keeps_sign = number != 0.0 || number.is_sign_positive();
    (is_whole && keeps_sign).then_some(number as i64)
}

/// Parses an integer as it would be printed: no sign but a minus, no leading zeros.
fn canonical_int(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        b"0" => text.len() == 1,
        [b'1'..=b'9', ..] => true,
        _ => false,
    };
    let text = std::str::from_utf8(text).ok().filter(|_| canonical)?;
    text.parse().ok()
}

fn float_of(token: Token<'_>) -> Option<f64> {
    match token {
        Token::F64(it) => Some(it),
        Token::F32(it) => Some(it.into()),
        Token::Int(it) => exactly(it.into()),
        Token::Uint(it) => exactly(it.into()),
        _ => {
            let text = token.text()?;
            if let Some(int) = canonical_int(text) {
                return exactly(int.into());
            }
            let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
            (number_text(number)?.as_bytes() == text).then_some(number)
        }
    }
}

/// Returns an integer as a floating-point number, if it is one.
fn exactly(int: i128) -> Option<f64> {
    let number = int as f64;
    (number as i128 == int).then_some(number)
}

fn micros_of(token: Token<'_>, unit: Option<Unit>) -> Option<i64> {
    if let Some(text) = token.text() {
        return parse_time(std::str::from_utf8(text).ok()?);
    }
    let unit = unit?;
    let int = match token {
        Token::Int(it) => i128::from(it),
        Token::Uint(it) => i128::from(it),
        Token::F32(it) => return epoch_of_float(it.into(), unit),
        Token::F64(it) => return epoch_of_float(it, unit),
        _ => return None,
    };
    let micros = match unit {
        Unit::Seconds => int * 1_000_000,
        Unit::Millis => int * 1_000,
        Unit::Micros => int,
        Unit::Nanos if int % 1_000 == 0 => int / 1_000,
        Unit::Nanos => return None,
    };
    in_calendar(i64::try_from(micros).ok()?)
}

/// Returns an epoch with a fraction, if its microseconds are exactly what it says.
fn epoch_of_float(number: f64, unit: Unit) -> Option<i64> {
    if let Some(int) = whole(number) {
        return micros_of(Token::Int(int), Some(unit));
    }
    let per_unit = match unit {
        Unit::Seconds => 1_000_000.0,
        Unit::Millis => 1_000.0,
        Unit::Micros | Unit::Nanos => return None,
    };
    let micros = (number * per_unit).round();
    let exact = micros.abs() < EXACT && micros / per_unit == number;
    in_calendar(exact.then_some(micros as i64)?)
}

/// Parses ISO 8601 with or without an offset, or `yyyy-MM-dd HH:mm:ss[.f]`; without an offset it is UTC. `None` also if it
/// has digits below a microsecond, or a leap second.
fn parse_time(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let separated = bytes.len() >= 19 && matches!(bytes[10], b'T' | b't' | b' ');
    if !separated || bytes[4] != b'-' || !bytes[..4].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (date, clock) = (&text.get(..10)?, text.get(11..)?);
    let end = clock.find(['Z', 'z', '+', '-', ' ']).unwrap_or(clock.len());
    let (clock, offset) = clock.split_at(end);
    if clock.get(6..8) == Some("60") {
        return None;
    }
    let local = NaiveDateTime::parse_from_str(&format!("{date}T{clock}"), "%Y-%m-%dT%H:%M:%S%.f");
    let local = local.ok()?;
    if local.and_utc().timestamp_subsec_nanos() % 1_000 != 0 {
        return None;
    }
    let micros = local.and_utc().timestamp_micros();
    in_calendar(micros.checked_sub(offset_of(offset)?)?)
}

/// Parses an offset: nothing, `Z`, `+01:00`, `+0100` or `+01`. Returns it in microseconds.
fn offset_of(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes() {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match *digits {
        [a, b] => ([a, b], *b"00"),
        [a, b, c, d] | [a, b, b':', c, d] => ([a, b], [c, d]),
        _ => return None,
    };
    let number = |two: [u8; 2]| {
        let both = two.iter().all(u8::is_ascii_digit);
        both.then(|| i64::from(two[0] - b'0') * 10 + i64::from(two[1] - b'0'))
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let valid = hours < 24 && minutes < 60;
    valid.then_some(sign * (hours * 3_600 + minutes * 60) * 1_000_000)
}

/// Returns microseconds of the years 1 to 9999: not every reader has others.
fn in_calendar(micros: i64) -> Option<i64> {
    let at = DateTime::from_timestamp_micros(micros)?;
    (1..=9999).contains(&at.year()).then_some(micros)
}

/// Returns an event's time in microseconds, without what is below them. `None`: it is outside the years 1 to 9999.
pub fn micros(time: Time) -> Option<i64> {
    let seconds = time.seconds.checked_mul(1_000_000)?;
    in_calendar(seconds.checked_add((time.nanos / 1_000).into())?)
}

/// A declared column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Type,
    /// Whether it has a bloom filter, for columns that are searched for single values.
    pub bloom: bool,
    /// Where its value is in a record.
    pub path: Path,
}

/// What [`Columns::parse_list`] reads of one column.
impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Column {
            name,
            kind,
            bloom,
            path,
        } = self;
        write!(f, "{name} {kind}")?;
        if *bloom {
            f.write_str(" bloom")?;
        }
        if *path != Path::key(name) {
            write!(f, " = {path}")?;
        }
        Ok(())
    }
}

/// A table: the columns that every table has, and those that are declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The column of the event's time.
    pub time: String,
    /// The column of the tag.
    pub tag: String,
    /// The column of the record's metadata and its group, as JSON text, if there is one.
    pub metadata: Option<String>,
    /// The declared columns.
    pub declared: Vec<Column>,
    /// The column of everything that is in no other, as JSON text.
    pub rest: String,
}

impl Default for Columns {
    fn default() -> Columns {
        Columns {
            time: TIME.to_owned(),
            tag: TAG.to_owned(),
            metadata: None,
            declared: Vec::new(),
            rest: REST.to_owned(),
        }
    }
}

/// What is wrong with columns, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// The text is no column.
    #[error(
        "'{0}' is not a column: write 'name type', as in 'status int' or 'status int = response.statusCode'"
    )]
    Shape(String),
    /// The type is unknown.
    #[error(
        "column {name} has the unknown type '{kind}': use string, int, float, bool, timestamp, timestamp_s, timestamp_ms, \
         timestamp_us, timestamp_ns or json"
    )]
    Type {
        /// The column.
        name: String,
        /// The word.
        kind: String,
    },
    /// The name is not one that every reader takes.
    #[error(
        "'{0}' is not a column's name: use at most 128 letters, digits and '_', beginning with a letter or '_', and write the \
         key behind '=', as in: trace_id string = ['trace-id']"
    )]
    Name(String),
    /// The path is none.
    #[error(
        "column {name} has '{path}' behind '=', which is not a path: write keys and dots, as in response.statusCode, or [\\'a.b\\']"
    )]
    Path {
        /// The column.
        name: String,
        /// The text.
        path: String,
    },
    /// Two columns have one name.
    #[error("two columns are named '{0}': name one of them otherwise")]
    Twice(String),
    /// Two names differ in case only.
    #[error(
        "the columns '{0}' and '{1}' differ in case only, which Athena and Spark take for one: name one of them otherwise"
    )]
    Case(String, String),
    /// Two columns take the same field.
    #[error(
        "the columns '{0}' and '{1}' take the same field or a part of it: a value is in one column only; remove one of them"
    )]
    Overlap(String, String),
    /// Too many columns.
    #[error(
        "{0} columns are declared, of at most 200: leave those that are rarely asked for to the column of the rest"
    )]
    TooMany(usize),
}

impl Columns {
    /// Parses declared columns, separated by commas or line ends; what follows a `#` at the start of a line or behind a
    /// space is a comment.
    ///
    /// # Errors
    ///
    /// The first text that is no column.
    pub fn parse_list(text: &str) -> Result<Vec<Column>, ColumnError> {
        let mut columns = Vec::new();
        for line in text.lines() {
            let comment = line
                .find(" #")
                .or_else(|| line.starts_with('#').then_some(0));
            for column in split_list(&line[..comment.unwrap_or(line.len())]) {
                let column = column.trim();
                if !column.is_empty() {
                    columns.push(parse_column(column)?);
                }
            }
        }
        Ok(columns)
    }

    /// Checks names, paths and their number.
    ///
    /// # Errors
    ///
    /// The first problem.
    pub fn check(&self) -> Result<(), ColumnError> {
        if self.declared.len() > MAX_COLUMNS {
            return Err(ColumnError::TooMany(self.declared.len()));
        }
        let all = self.all();
        for (at, column) in all.iter().enumerate() {
            if !is_name(column.name) {
                return Err(ColumnError::Name(column.name.to_owned()));
            }
            for before in &all[..at] {
                if before.name == column.name {
                    return Err(ColumnError::Twice(column.name.to_owned()));
                }
                if before.name.eq_ignore_ascii_case(column.name) {
                    let (one, other) = (before.name.to_owned(), column.name.to_owned());
                    return Err(ColumnError::Case(one, other));
                }
            }
        }
        for (at, column) in self.declared.iter().enumerate() {
            let before = self.declared[..at].iter();
            let overlapping = before.clone().find(|it| it.path.overlaps(&column.path));
            if let Some(other) = overlapping {
                let (one, other) = (other.name.clone(), column.name.clone());
                return Err(ColumnError::Overlap(one, other));
            }
        }
        Ok(())
    }

    /// Returns all columns in the order of the table.
    pub fn all(&self) -> Vec<TableColumn<'_>> {
        let text = |name, role| TableColumn {
            name,
            stored: Stored::Text,
            bloom: false,
            role,
        };
        let time = TableColumn {
            stored: Stored::Timestamp,
            ..text(&self.time, Role::Time)
        };
        let declared = self.declared.iter().map(|column| TableColumn {
            name: &column.name,
            stored: column.kind.stored(),
            bloom: column.bloom,
            role: Role::Declared(column.kind),
        });
        let metadata = self.metadata.iter();
        [time, text(&self.tag, Role::Tag)]
            .into_iter()
            .chain(declared)
            .chain(metadata.map(|name| text(name, Role::Metadata)))
            .chain([text(&self.rest, Role::Rest)])
            .collect()
    }

    /// Returns the declared columns as [`Columns::parse_list`] reads them, separated by commas.
    pub fn list(&self) -> String {
        let columns: Vec<String> = self.declared.iter().map(Column::to_string).collect();
        columns.join(", ")
    }
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableColumn<'c> {
    /// Its name.
    pub name: &'c str,
    /// What it is stored as.
    pub stored: Stored,
    /// Whether it has a bloom filter.
    pub bloom: bool,
    /// What it holds.
    pub role: Role,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The event's time.
    Time,
    /// The tag.
    Tag,
    /// A field of the record.
    Declared(Type),
    /// The record's metadata and its group, as JSON text.
    Metadata,
    /// Everything else, as JSON text.
    Rest,
}

impl Role {
    /// Returns whether it is JSON text, which nobody searches for whole values.
    pub fn is_json(self) -> bool {
        matches!(
            self,
            Role::Metadata | Role::Rest | Role::Declared(Type::Json)
        )
    }
}

/// Splits a list at its commas, except for those in quotes.
fn split_list(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quote) = (Vec::new(), 0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, ',') => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_column(text: &str) -> Result<Column, ColumnError> {
    let (head, path) = match text.split_once('=') {
        Some((head, path)) => (head, Some(path.trim())),
        None => (text, None),
    };
    let words: Vec<&str> = head.split_whitespace().collect();
    let (name, kind, bloom) = match words[..] {
        [name, kind] => (name, kind, false),
        [name, kind, "bloom"] => (name, kind, true),
        _ => return Err(ColumnError::Shape(text.to_owned())),
    };
    if !is_name(name) {
        return Err(ColumnError::Name(name.to_owned()));
    }
    let kind = Type::parse(kind).ok_or_else(|| ColumnError::Type {
        name: name.to_owned(),
        kind: kind.to_owned(),
    })?;
    let path = match path {
        None => Path::key(name),
        Some(path) => Path::parse(path).ok_or_else(|| ColumnError::Path {
            name: name.to_owned(),
            path: path.to_owned(),
        })?,
    };
    Ok(Column {
        name: name.to_owned(),
        kind,
        bloom,
        path,
    })
}

fn is_name(name: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let begins = name.bytes().next().is_some_and(|it| !it.is_ascii_digit());
    begins && name.len() <= MAX_NAME && name.as_bytes().iter().all(plain)
}

#[cfg(test)]
mod tests {
    use rmpv::Value as Rmp;

    use super::*;

    fn convert(kind: &str, value: impl Into<Rmp>) -> String {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &value.into()).unwrap();
        match Type::parse(kind).unwrap().convert(&bytes) {
            Converted::Null => "null".to_owned(),
            Converted::Unfit => "rest".to_owned(),
            Converted::Value(Value::Text(text)) => String::from_utf8_lossy(&text).into_owned(),
            Converted::Value(Value::Int(it)) => it.to_string(),
            Converted::Value(Value::Float(it)) => format!("{it:?}"),
            Converted::Value(Value::Bool(it)) => it.to_string(),
            Converted::Value(Value::Timestamp(it)) => it.to_string(),
            Converted::Value(Value::Json) => "json".to_owned(),
        }
    }

    #[test]
    fn a_column_takes_what_converts_exactly_and_nothing_else() {
        let map = || Rmp::Map(Vec::new());
        let cases: &[(&str, Rmp, &str)] = &[
            ("string", "a".into(), "a"),
            ("string", Rmp::Binary(b"a".to_vec()), "a"),
            ("string", Rmp::Binary(b"\xff".to_vec()), "rest"),
            ("string", 5.into(), "5"),
            ("string", u64::MAX.into(), "18446744073709551615"),
            ("string", 1.5.into(), "1.5"),
            ("string", Rmp::F32(1.1), "1.1"),
            ("string", f64::NAN.into(), "rest"),
            ("string", true.into(), "true"),
            ("string", map(), "rest"),
            ("string", Rmp::Nil, "null"),
            ("int", 5.into(), "5"),
            ("int", i64::MIN.into(), "-9223372036854775808"),
            ("int", (1u64 << 63).into(), "rest"),
            ("int", 5.0.into(), "5"),
            ("int", (-0.0).into(), "rest"),
            ("int", 5.5.into(), "rest"),
            ("int", 9_007_199_254_740_992.0.into(), "9007199254740992"),
            ("int", 9_007_199_254_740_994.0.into(), "rest"),
            ("int", f64::INFINITY.into(), "rest"),
            ("int", "-12".into(), "-12"),
            ("int", "0".into(), "0"),
            ("int", "-0".into(), "rest"),
            ("int", "012".into(), "rest"),
            ("int", "+1".into(), "rest"),
            ("int", "1 ".into(), "rest"),
            ("int", "".into(), "rest"),
            ("int", "9223372036854775808".into(), "rest"),
            ("int", true.into(), "rest"),
            ("int", map(), "rest"),
            ("float", 1.5.into(), "1.5"),
            ("float", Rmp::F32(0.5), "0.5"),
            ("float", f64::NAN.into(), "NaN"),
            ("float", (-0.0).into(), "-0.0"),
            ("float", 3.into(), "3.0"),
            ("float", (1u64 << 63).into(), "9.223372036854776e18"),
            ("float", ((1u64 << 63) + 1).into(), "rest"),
            ("float", i64::MAX.into(), "rest"),
            ("float", "1.5".into(), "1.5"),
            ("float", "1.50".into(), "rest"),
            ("float", "7".into(), "7.0"),
            ("float", "NaN".into(), "rest"),
            ("bool", false.into(), "false"),
            ("bool", 1.into(), "rest"),
            ("bool", "true".into(), "rest"),
            (
                "timestamp",
                "2025-07-02T20:44:31Z".into(),
                "1751489071000000",
            ),
            (
                "timestamp",
                "2025-07-02 20:44:31".into(),
                "1751489071000000",
            ),
            (
                "timestamp",
                "2025-07-02T22:44:31.123456+02:00".into(),
                "1751489071123456",
            ),
            (
                "timestamp",
                "2025-07-02T15:14:31-0530".into(),
                "1751489071000000",
            ),
            (
                "timestamp",
                "2025-07-02T20:44:31.123456000Z".into(),
                "1751489071123456",
            ),
            ("timestamp", "2025-07-02T20:44:31.1234567Z".into(), "rest"),
            ("timestamp", "2025-06-30T23:59:60Z".into(), "rest"),
            ("timestamp", "2025-02-29T00:00:00Z".into(), "rest"),
            (
                "timestamp",
                "0001-01-01T00:00:00Z".into(),
                "-62135596800000000",
            ),
            ("timestamp", "0000-12-31T23:59:59Z".into(), "rest"),
            (
                "timestamp",
                "9999-12-31T23:59:59.999999Z".into(),
                "253402300799999999",
            ),
            ("timestamp", "9999-12-31T23:59:59-01:00".into(), "rest"),
            ("timestamp", "10000-01-01T00:00:00Z".into(), "rest"),
            ("timestamp", "2025-07-02".into(), "rest"),
            ("timestamp", "yesterday, at some o'clock".into(), "rest"),
            ("timestamp", "2025-07-02T20:44:31+".into(), "rest"),
            ("timestamp", "회원2025-07-02T20:44".into(), "rest"),
            ("timestamp", 5.into(), "rest"),
            ("timestamp_s", 5.into(), "5000000"),
            ("timestamp_s", 1_751_489_071.123.into(), "1751489071123000"),
            ("timestamp_s", 0.1.into(), "100000"),
            ("timestamp_s", 0.000_000_1.into(), "rest"),
            ("timestamp_s", i64::MAX.into(), "rest"),
            ("timestamp_ms", 5.into(), "5000"),
            ("timestamp_us", (-5).into(), "-5"),
            ("timestamp_ns", 5_000.into(), "5"),
            ("timestamp_ns", 5_001.into(), "rest"),
            (
                "timestamp_ms",
                "2025-07-02T20:44:31Z".into(),
                "1751489071000000",
            ),
            ("json", map(), "json"),
            ("json", Rmp::Nil, "null"),
        ];
        for (kind, value, expected) in cases {
            assert_eq!(convert(kind, value.clone()), *expected, "{kind}: {value}");
        }
    }

    #[test]
    fn columns_are_read_as_they_are_written() {
        let text = "level string, status int = response.statusCode\n# a comment\ntrace string bloom = ['trace,id'] # another\n\nbody json";
        let columns = Columns::parse_list(text).unwrap();
        assert_eq!(columns.len(), 4);
        let all = Columns {
            declared: columns,
            ..Columns::default()
        };
        assert_eq!(all.check(), Ok(()));
        let list = "level string, status int = response.statusCode, trace string bloom = ['trace,id'], body json";
        assert_eq!(all.list(), list);
        assert_eq!(Columns::parse_list(list), Ok(all.declared.clone()));
        let names: Vec<&str> = all.all().iter().map(|column| column.name).collect();
        assert_eq!(
            names,
            ["time", "tag", "level", "status", "trace", "body", "rest"]
        );
    }

    #[test]
    fn what_cannot_be_a_table_is_refused_with_its_remedy() {
        let problem = |text: &str| {
            let declared = Columns::parse_list(text);
            let checked = declared.and_then(|declared| {
                let columns = Columns {
                    declared,
                    ..Columns::default()
                };
                columns.check()
            });
            checked.unwrap_err().to_string()
        };
        let many: String = (0..201).map(|n| format!("c{n} int\n")).collect();
        for (text, expected) in [
            ("level", "is not a column"),
            ("level string bloom more", "is not a column"),
            ("level varchar", "unknown type 'varchar'"),
            ("trace-id string", "is not a column's name"),
            ("1st string", "is not a column's name"),
            ("a int = b..c", "is not a path"),
            ("a int = ", "is not a path"),
            ("a int, a string = b", "named 'a'"),
            ("level int, Level string", "differ in case only"),
            ("rest json", "named 'rest'"),
            ("Time int", "differ in case only"),
            ("a json, b int = a.b", "take the same field"),
            ("a int = x, b int = x", "take the same field"),
            (&many, "201 columns"),
        ] {
            let actual = problem(text);
            assert!(actual.contains(expected), "{text}: {actual}");
        }
    }
}
