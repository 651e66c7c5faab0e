//! Templates for names: `{tag}`, `{tag[1]}`, `{record.app.name}`, and strftime specifiers for the event's time.
//! `$TAG` and `$TAG[1]` work too, since Fluent Bit's own outputs use them.

use std::fmt::Write as _;
use std::ops::Range;

use crate::codec::msgpack::{Cursor, Event, Token, lookup};
use crate::codec::time::{Strftime, TimeFormatError};
use crate::ids::Time;

/// The longest value from a tag or a record in a name, in bytes. Blob stores limit a whole name to 1,024.
const LONGEST_VALUE: usize = 128;

/// A name with placeholders.
#[derive(Clone, Debug)]
pub struct Template {
    parts: Vec<Part>,
    /// Whether names are folders of a table, which readers take apart at `=`.
    of_table: bool,
}

#[derive(Clone, Debug)]
enum Part {
    Literal(String),
    Time { format: Strftime, text: String },
    Tag,
    TagSegment(usize),
    Record { keys: Vec<String>, default: String },
}

/// An invalid template. The message names the alternatives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A placeholder without an end.
    #[error("'{{' without '}}' in '{0}'")]
    Unclosed(String),
    /// An unknown placeholder.
    #[error(
        "unknown placeholder '{{{0}}}': use {{tag}}, {{tag[0]}}, {{record.key}}, {{record.key.inner}} or {{record.key|default}}"
    )]
    Unknown(String),
    /// An index of a tag part that is not a number.
    #[error("'{{{0}}}': the index of a tag part must be a number from 0")]
    TagPart(String),
    /// A placeholder of Fluent Bit's with a dollar sign.
    #[error(
        "'{0}': the only placeholders with '$' are $TAG and $TAG[0]; use {{record.key}} for a record's key. $UUID is not \
         needed: every object has a unique name"
    )]
    Dollar(String),
    /// An invalid time specifier.
    #[error(transparent)]
    Time(#[from] TimeFormatError),
}

impl Template {
    /// Parses a template. `with_time`: whether `%` begins a time specifier rather than being an ordinary character.
    pub fn parse(text: &str, with_time: bool) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '$']) {
            literal(&rest[..open], with_time, &mut parts)?;
            let (part, used) = match &rest[open..] {
                dollar if dollar.starts_with('$') => dollar_placeholder(dollar)?,
                brace => {
                    let close = brace
                        .find('}')
                        .ok_or_else(|| TemplateError::Unclosed(brace.to_owned()))?;
                    (placeholder(&brace[1..close])?, close + 1)
                }
            };
            parts.push(part);
            rest = &rest[open + used..];
        }
        literal(rest, with_time, &mut parts)?;
        Ok(Template {
            parts,
            of_table: false,
        })
    }

    /// Returns the name if it is the same for every event.
    pub fn fixed(&self) -> Option<String> {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Literal(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The same without what changes as time goes by: its time specifiers are left as they are written.
    pub fn timeless(&self) -> Template {
        let timeless = |part: &Part| match part {
            Part::Time { text, .. } => Part::Literal(text.clone()),
            part => part.clone(),
        };
        Template {
            parts: self.parts.iter().map(timeless).collect(),
            of_table: self.of_table,
        }
    }

    /// The same for the folders of a table: values are escaped where Hive's readers would take them for something else.
    pub fn of_table(self) -> Template {
        Template {
            of_table: true,
            ..self
        }
    }

    /// Whether the name depends on the tag.
    pub fn uses_tag(&self) -> bool {
        let is_tag = |part: &Part| matches!(part, Part::Tag | Part::TagSegment(_));
        self.parts.iter().any(is_tag)
    }

    /// Returns the name of all events with `tag`, if it depends on nothing else.
    pub fn of_tag(&self, tag: &str) -> Option<String> {
        let depends = |part: &Part| matches!(part, Part::Time { .. } | Part::Record { .. });
        if self.parts.iter().any(depends) {
            return None;
        }
        let event = Event {
            time: Time::default(),
            metadata: &[],
            body: &[],
            group: None,
            raw: &[],
        };
        let mut name = String::new();
        self.render(tag, &event, &mut name);
        Some(name)
    }

    /// Whether events of one tag and second share their name.
    pub fn constant_within_a_second(&self) -> bool {
        self.parts.iter().all(|part| match part {
            Part::Literal(_) | Part::Tag | Part::TagSegment(_) => true,
            Part::Time { format, .. } => format.whole_seconds(),
            Part::Record { .. } => false,
        })
    }

    /// Appends the name for `event` with `tag`. Values from the tag and the record are sanitized: they contain only
    /// letters, digits and `._-=+,`, and never only dots.
    pub fn render(&self, tag: &str, event: &Event<'_>, out: &mut String) {
        for part in &self.parts {
            let start = out.len();
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Time { format, .. } => format.write(event.time, out),
                Part::Tag => sanitize(tag, out),
                Part::TagSegment(n) => sanitize(tag.split('.').nth(*n).unwrap_or("none"), out),
                Part::Record { keys, default } => match lookup(event.body, keys).and_then(text) {
                    Some(value) => sanitize(&value, out),
                    None => out.push_str(default),
                },
            }
            if self.of_table && !matches!(part, Part::Literal(_) | Part::Time { .. }) {
                escape_for_tables(start, out);
            }
        }
    }
}

fn literal(text: &str, with_time: bool, parts: &mut Vec<Part>) -> Result<(), TemplateError> {
    if text.is_empty() {
        return Ok(());
    }
    parts.push(if with_time && text.contains('%') {
        Part::Time {
            format: Strftime::parse(text)?,
            text: text.to_owned(),
        }
    } else {
        Part::Literal(text.to_owned())
    });
    Ok(())
}

/// Parses `$TAG` or `$TAG[1]` at the start of `text`, and returns its length too.
fn dollar_placeholder(text: &str) -> Result<(Part, usize), TemplateError> {
    const TAG: &str = "$TAG";
    if let Some(rest) = text.strip_prefix(TAG) {
        let Some(index) = rest.strip_prefix('[') else {
            return Ok((Part::Tag, TAG.len()));
        };
        if let Some((number, _)) = index.split_once(']')
            && let Ok(n) = number.parse()
        {
            return Ok((Part::TagSegment(n), TAG.len() + number.len() + 2));
        }
    }
    Err(TemplateError::Dollar(text.to_owned()))
}

fn placeholder(text: &str) -> Result<Part, TemplateError> {
    if text == "tag" {
        return Ok(Part::Tag);
    }
    if let Some(n) = text.strip_prefix("tag[").and_then(|t| t.strip_suffix(']')) {
        return n
            .parse()
            .map(Part::TagSegment)
            .map_err(|_| TemplateError::TagPart(text.to_owned()));
    }
    if let Some(path) = text.strip_prefix("record.") {
        let (path, default) = path.split_once('|').unwrap_or((path, "none"));
        let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
        if keys.iter().all(|key| !key.is_empty()) {
            let mut name = String::new();
            sanitize(default, &mut name);
            return Ok(Part::Record {
                keys,
                default: name,
            });
        }
    }
    Err(TemplateError::Unknown(text.to_owned()))
}

/// Returns the text of a string, integer or boolean. Other types and empty strings have none.
fn text(value: &[u8]) -> Option<String> {
    let token = Cursor::new(value).token().ok()?;
    if let Some(text) = token.text() {
        return (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned());
    }
    match token {
        Token::Uint(n) => Some(n.to_string()),
        Token::Int(n) => Some(n.to_string()),
        Token::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

fn sanitize(value: &str, out: &mut String) {
    let start = out.len();
    for c in value.chars() {
        if out.len() - start + c.len_utf8() > LONGEST_VALUE {
            break;
        }
        let plain = c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '=' | '+' | ',');
        out.push(if plain { c } else { '_' });
    }
    if out[start..].bytes().all(|b| b == b'.') {
        let dots: Range<usize> = start..out.len();
        let len = dots.len().max(1);
        out.replace_range(dots, &"_".repeat(len));
    }
}

/// What Hive's readers take for null.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";

/// Escapes the value from `start` on as Hive does, whose readers undo it. Other values have no `%`.
fn escape_for_tables(start: usize, out: &mut String) {
    let value = &out[start..];
    if value == NULL_FOLDER {
        out.replace_range(start..start + 1, "%5F");
    } else if value.contains('=') {
        let escaped = value.replace('=', "%3D");
        out.replace_range(start.., &escaped);
    }
}

/// Appends a time as object names have it: sortable, without characters that need quoting.
pub fn compact_time(time: Time, out: &mut String) {
    let at = crate::codec::time::utc(time);
    let _ = write!(out, "{}", at.format("%Y%m%dT%H%M%SZ"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, tag: &str) -> String {
        // {"app": {"name": "주문/결제", "n": 7}, "dots": "..", "empty": ""}
        let mut body = b"\x83\xa3app\x82\xa4name\xad".to_vec();
        body.extend_from_slice("주문/결제".as_bytes());
        body.extend_from_slice(b"\xa1n\x07\xa4dots\xa2..\xa5empty\xa0");
        render_body(template, tag, &body)
    }

    fn render_body(template: &str, tag: &str, body: &[u8]) -> String {
        let event = Event {
            time: Time {
                seconds: 1_751_489_071,
                nanos: 123_456_789,
            },
            metadata: &[],
            body,
            group: None,
            raw: &[],
        };
        let mut out = String::new();
        Template::parse(template, true)
            .unwrap()
            .render(tag, &event, &mut out);
        out
    }

    #[test]
    fn names_come_from_tag_time_and_record() {
        let cases = [
            ("logs", "logs"),
            ("{tag}/%Y/%m/%d/%H", "app.http/2025/07/02/20"),
            ("{tag[1]}-{tag[0]}-{tag[9]}", "http-app-none"),
            ("a/$TAG/$TAG[1]x", "a/app.http/httpx"),
            ("%H%M%S.%3N", "204431.123"),
            ("{record.app.name}", "주문_결제"),
            ("{record.app.n}", "7"),
            ("{record.app}", "none"),
            ("{record.missing|other}", "other"),
            ("{record.dots}", "__"),
            ("{record.empty|e}", "e"),
        ];
        for (template, expected) in cases {
            assert_eq!(render(template, "app.http"), expected, "{template}");
        }
    }

    #[test]
    fn binary_that_is_utf8_is_used_like_text() {
        // {b"app": {b"name": b"주문/결제"}, b"none": b"\xff", b"empty": b""}
        let mut body = b"\x83\xc4\x03app\x81\xc4\x04name\xc4\x0d".to_vec();
        body.extend_from_slice("주문/결제".as_bytes());
        body.extend_from_slice(b"\xc4\x04none\xc4\x01\xff\xc4\x05empty\xc4\x00");
        for (template, expected) in [
            ("{record.app.name}", "주문_결제"),
            ("{record.none|other}", "other"),
            ("{record.empty|e}", "e"),
        ] {
            assert_eq!(render_body(template, "t", &body), expected, "{template}");
        }
    }

    #[test]
    fn a_tag_cannot_leave_its_folder() {
        assert_eq!(render("{tag}", "../../etc/passwd\n"), ".._.._etc_passwd_");
        assert_eq!(render("{tag}", ".."), "__");
        assert_eq!(render("{tag}", ""), "_");
        assert_eq!(render("{tag}", &"x".repeat(5_000)).len(), LONGEST_VALUE);
    }

    #[test]
    fn a_tag_alone_decides_a_name_without_records_and_times() {
        let of = |text, tag| Template::parse(text, true).unwrap().of_tag(tag);
        assert_eq!(of("a/{tag[1]}-{tag}", "x.y").as_deref(), Some("a/y-x.y"));
        assert_eq!(of("{tag}", "../x").as_deref(), Some(".._x"));
        assert_eq!(of("fixed", "x").as_deref(), Some("fixed"));
        assert_eq!(of("{tag}/%Y", "x"), None);
        assert_eq!(of("{tag}/{record.k}", "x"), None);
    }

    #[test]
    fn invalid_templates_are_refused_with_a_reason() {
        for template in [
            "{tag",
            "{TAG}",
            "{tag[x]}",
            "{record.}",
            "{record.a..b}",
            "{}",
            "%Q",
            "a%",
        ] {
            let error = Template::parse(template, true).unwrap_err().to_string();
            assert!(error.contains('\''), "{template}: {error}");
        }
    }

    #[test]
    fn a_name_without_its_times_is_the_same_all_day() {
        let template = Template::parse("logs/%Y/%m/{tag}/x%H", true).unwrap();
        let event = Event {
            time: Time::default(),
            metadata: &[],
            body: b"\x80",
            group: None,
            raw: &[],
        };
        let mut name = String::new();
        template.timeless().render("app", &event, &mut name);
        assert_eq!(name, "logs/%Y/%m/app/x%H");
        let fixed = |text| Template::parse(text, true).unwrap().timeless().fixed();
        assert_eq!(fixed("%Y/%m").as_deref(), Some("%Y/%m"));
        assert_eq!(fixed("%Y/{record.k}"), None);
    }

    #[test]
    fn values_in_the_folders_of_a_table_are_escaped_where_readers_would_take_them_apart() {
        let template = Template::parse("a=b/k={tag}", true).unwrap().of_table();
        for (tag, expected) in [
            ("x", "a=b/k=x"),
            ("x=y=z", "a=b/k=x%3Dy%3Dz"),
            ("x%3D", "a=b/k=x_3D"),
            (
                "__HIVE_DEFAULT_PARTITION__",
                "a=b/k=%5F_HIVE_DEFAULT_PARTITION__",
            ),
        ] {
            assert_eq!(template.of_tag(tag).as_deref(), Some(expected), "{tag}");
        }
    }

    #[test]
    fn a_fixed_name_is_known_at_start() {
        assert_eq!(
            Template::parse("app-logs", false)
                .unwrap()
                .fixed()
                .as_deref(),
            Some("app-logs")
        );
        assert_eq!(Template::parse("{tag}", false).unwrap().fixed(), None);
    }
}
