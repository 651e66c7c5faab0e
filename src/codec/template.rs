//! Templates for names: `{tag}`, `{tag[1]}`, `{record.app.name}`, `{record.labels['app.io/name']}`, and strftime specifiers
//! for the event's time. `$TAG` and `$TAG[1]` work too, since Fluent Bit's own outputs use them.
//!
//! Different values never make the same name. A value that consists of harmless characters is used as it is. Any other is
//! readable, but changed, and carries a hash of what it was; no unchanged value looks like that.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::codec::keys::{KeyForm, KeyPath};
use crate::codec::msgpack::{Cursor, Event, Token};
use crate::codec::time::{Strftime, TimeFormatError, Zone};
use crate::ids::Time;

/// A name with placeholders.
#[derive(Clone, Debug)]
pub struct Template {
    parts: Vec<Part>,
    rules: Arc<Rules>,
    /// Whether names are folders of a table, which readers take apart at `=`.
    of_table: bool,
}

/// How the names of a destination are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What a name is.
    pub kind: NameKind,
    /// The characters that separate the parts of a tag.
    pub tag_delimiters: String,
    /// The zone of times.
    pub zone: Zone,
    /// How records' keys are written.
    pub keys: KeyForm,
    /// The most bytes of a name.
    pub longest: usize,
    /// The most bytes between two slashes.
    pub longest_segment: usize,
}

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A folder of objects. Hadoop, Spark and Athena do not read those that begin with `_` or `.`.
    Folder,
    /// A delivery stream.
    Stream,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            kind: NameKind::Folder,
            tag_delimiters: ".".to_owned(),
            zone: Zone::default(),
            keys: KeyForm::default(),
            longest: 1_024 - OBJECT_NAME,
            longest_segment: 255,
        }
    }
}

/// The bytes of a store's names that are left for the object's own name, below its folder.
pub const OBJECT_NAME: usize = 160;
/// The characters of a hash in a name: 100 bits.
const HASH: usize = 20;
/// The longest values to try, in bytes, until a name is not too long.
const LONGEST_VALUES: [usize; 8] = [1_024, 512, 255, 192, 128, 96, 64, 40];
/// The value of a tag part or a record's key that does not exist.
const NONE: &str = "none";

#[derive(Clone, Debug)]
enum Part {
    Literal(String),
    Time {
        format: Strftime,
        text: String,
    },
    Tag,
    TagSegment(usize),
    Record {
        /// As it is written.
        text: String,
        path: KeyPath,
        default: String,
    },
}

/// An invalid template. The message names the alternatives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A placeholder without an end.
    #[error("'{{' without '}}' in '{0}'")]
    Unclosed(String),
    /// An unknown placeholder.
    #[error(
        "unknown placeholder '{{{0}}}': use {{tag}}, {{tag[0]}}, {{record.key}}, {{record.key.inner}}, \
         {{record.key['in.ner']}}, {{$key['in.ner']}} or {{record.key|default}}"
    )]
    Unknown(String),
    /// An index of a tag part that is not a number.
    #[error("'{{{0}}}': the index of a tag part must be a number from 0")]
    TagPart(String),
    /// A placeholder of Fluent Bit's with a dollar sign.
    #[error(
        "'{0}': the only placeholders with '$' are $TAG and $TAG[0]; write {{$key['inner']}} or {{record.key}} for a record's \
         key. $UUID is not needed: every object has a unique name"
    )]
    Dollar(String),
    /// An invalid time specifier.
    #[error(transparent)]
    Time(#[from] TimeFormatError),
}

impl Template {
    /// Parses a template of folders by the default rules. `with_time`: whether `%` begins a time specifier rather than
    /// being an ordinary character.
    pub fn parse(text: &str, with_time: bool) -> Result<Template, TemplateError> {
        Template::parse_with(text, with_time, Rules::default())
    }

    /// Parses a template.
    pub fn parse_with(
        text: &str,
        with_time: bool,
        rules: Rules,
    ) -> Result<Template, TemplateError> {
        let zone = with_time.then_some(&rules.zone);
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '$']) {
            literal(&rest[..open], zone, &mut parts)?;
            let (part, used) = match &rest[open..] {
                dollar if dollar.starts_with('$') => dollar_placeholder(dollar)?,
                brace => {
                    let close =
                        end_of(brace).ok_or_else(|| TemplateError::Unclosed(brace.to_owned()))?;
                    (placeholder(&brace[1..close])?, close + 1)
                }
            };
            parts.push(part);
            rest = &rest[open + used..];
        }
        literal(rest, zone, &mut parts)?;
        Ok(Template {
            parts,
            rules: Arc::new(rules),
            of_table: false,
        })
    }

    /// Returns the rules that its names are made by.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Returns the same template by other rules for the lengths of names.
    pub fn with_lengths(mut self, longest: usize, longest_segment: usize) -> Template {
        self.rules = Arc::new(Rules {
            longest,
            longest_segment,
            ..Rules::clone(&self.rules)
        });
        self
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
            rules: Arc::clone(&self.rules),
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
    pub fn of_tag(&self, tag: impl AsRef<[u8]>) -> Option<String> {
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

    /// Whether all events of a name have the same value of `other`, because each part of the tag in it is a whole folder of
    /// the name.
    pub fn separates(&self, other: &Template) -> bool {
        // The folders of the name, as the parts in each that vary.
        let mut folders: Vec<Vec<Option<&Part>>> = vec![Vec::new()];
        for part in &self.parts {
            let text = match part {
                Part::Literal(text) => Some(text),
                Part::Time { text, .. } => Some(text),
                Part::Tag | Part::TagSegment(_) | Part::Record { .. } => None,
            };
            let Some(text) = text else {
                folders.last_mut().expect("one at least").push(Some(part));
                continue;
            };
            for (number, piece) in text.split('/').enumerate() {
                if number > 0 {
                    folders.push(Vec::new());
                }
                if matches!(part, Part::Time { .. }) && piece.contains('%') {
                    folders.last_mut().expect("one at least").push(None);
                }
            }
        }
        let alone = |wanted: &dyn Fn(&Part) -> bool| {
            let is =
                |folder: &Vec<Option<&Part>>| matches!(folder[..], [Some(part)] if wanted(part));
            folders.iter().any(is)
        };
        let has_tag = || alone(&|part| matches!(part, Part::Tag));
        other.parts.iter().all(|part| match part {
            Part::Literal(_) => true,
            Part::Tag => has_tag(),
            Part::TagSegment(n) => {
                has_tag() || alone(&|part| matches!(part, Part::TagSegment(known) if known == n))
            }
            Part::Time { .. } | Part::Record { .. } => false,
        })
    }

    /// Returns the placeholders, as they are written, for which a record has no value.
    pub fn unfilled(&self, record: &[u8]) -> Vec<&str> {
        let unfilled = self.parts.iter().filter_map(|part| match part {
            Part::Record { text, path, .. } => {
                let value = path.find(record, &self.rules.keys).and_then(text_of);
                value.is_none().then_some(text.as_str())
            }
            _ => None,
        });
        unfilled.collect()
    }

    /// Whether events of one tag and second share their name.
    pub fn constant_within_a_second(&self) -> bool {
        self.parts.iter().all(|part| match part {
            Part::Literal(_) | Part::Tag | Part::TagSegment(_) => true,
            Part::Time { format, .. } => format.whole_seconds(),
            Part::Record { .. } => false,
        })
    }

    /// Appends the name for `event` with `tag`. Values from the tag and the record contain only letters, digits and
    /// `._-=+,~`, in the names of streams only ASCII letters, digits and `._-`. No value that begins a folder begins with
    /// `_` or `.`. Values are shortened only where the name would be too long.
    pub fn render(&self, tag: impl AsRef<[u8]>, event: &Event<'_>, out: &mut String) {
        let start = out.len();
        for longest in LONGEST_VALUES {
            out.truncate(start);
            self.render_values(tag.as_ref(), event, longest, out);
            let name = &out[start..];
            let fits = |segment: &str| segment.len() <= self.rules.longest_segment;
            if name.len() <= self.rules.longest && name.split('/').all(fits) {
                return;
            }
        }
    }

    fn render_values(&self, tag: &[u8], event: &Event<'_>, longest: usize, out: &mut String) {
        let start = out.len();
        for part in &self.parts {
            let before = out.len();
            let begins = out[start..].is_empty() || out.ends_with('/');
            let value = |value: &[u8], out: &mut String| {
                self.rules.value(value, begins, longest, out);
            };
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Time { format, .. } => format.write(event.time, out),
                Part::Tag => value(tag, out),
                Part::TagSegment(n) => {
                    let is_delimiter =
                        |byte: &u8| self.rules.tag_delimiters.as_bytes().contains(byte);
                    match tag.split(is_delimiter).nth(*n) {
                        Some(segment) => value(segment, out),
                        None => out.push_str(NONE),
                    }
                }
                Part::Record { path, default, .. } => {
                    match path.find(event.body, &self.rules.keys).and_then(text_of) {
                        Some(text) => value(&text, out),
                        None => out.push_str(default),
                    }
                }
            }
            if self.of_table && !matches!(part, Part::Literal(_) | Part::Time { .. }) {
                escape_for_tables(before, out);
            }
        }
    }
}

impl Rules {
    /// Appends a value to a name. `begins`: whether it begins a folder; `longest`: the most bytes of it.
    fn value(&self, value: &[u8], begins: bool, longest: usize, out: &mut String) {
        if let Ok(text) = std::str::from_utf8(value)
            && text.len() <= longest
            && self.is_harmless(text, begins)
        {
            out.push_str(text);
            return;
        }
        let room = longest - 1 - HASH;
        let text = String::from_utf8_lossy(value);
        let mut readable = String::new();
        for c in text.chars() {
            let c = if self.is_plain(c) { c } else { '_' };
            if readable.is_empty() && matches!(c, '_' | '.') {
                continue;
            }
            if readable.len() + c.len_utf8() > room {
                break;
            }
            readable.push(c);
        }
        out.push_str(if readable.is_empty() { "x" } else { &readable });
        out.push(self.before_hash());
        out.push_str(&hash(value));
    }

    /// Whether a value is used as it is.
    fn is_harmless(&self, text: &str, begins: bool) -> bool {
        let is_hidden = begins && self.kind == NameKind::Folder && text.starts_with(['_', '.']);
        let only_dots = text.bytes().all(|byte| byte == b'.');
        text.chars().all(|c| self.is_plain(c))
            && !is_hidden
            && !only_dots
            && !is_hashed(text, self.before_hash())
    }

    fn is_plain(&self, c: char) -> bool {
        match self.kind {
            NameKind::Folder => {
                c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '=' | '+' | ',')
            }
            NameKind::Stream => c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'),
        }
    }

    /// The character that separates a changed value from its hash. In folders no harmless value contains it.
    fn before_hash(&self) -> char {
        match self.kind {
            NameKind::Folder => '~',
            NameKind::Stream => '-',
        }
    }
}

/// Returns the hash that a changed value or name carries: 100 bits in lower-case base32.
pub(crate) fn hash(value: &[u8]) -> String {
    let hash = blake3::hash(value);
    let mut bits = u128::from_be_bytes(*hash.as_bytes().first_chunk().expect("32 bytes"));
    let digits = (0..HASH).map(|_| {
        let digit = b"abcdefghijklmnopqrstuvwxyz234567"[(bits & 31) as usize];
        bits >>= 5;
        char::from(digit)
    });
    digits.collect()
}

/// Whether a value ends as a changed one does.
pub(crate) fn is_hashed(text: &str, before_hash: char) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'a'..=b'z' | b'2'..=b'7');
    text.rsplit_once(before_hash)
        .is_some_and(|(_, hash)| hash.len() == HASH && hash.as_bytes().iter().all(is_digit))
}

fn literal(text: &str, zone: Option<&Zone>, parts: &mut Vec<Part>) -> Result<(), TemplateError> {
    if text.is_empty() {
        return Ok(());
    }
    parts.push(match zone {
        Some(zone) if text.contains('%') => Part::Time {
            format: Strftime::parse(text)?.in_zone(zone.clone()),
            text: text.to_owned(),
        },
        _ => Part::Literal(text.to_owned()),
    });
    Ok(())
}

/// Returns the offset of the `}` that ends a placeholder. A quoted key may contain others.
fn end_of(brace: &str) -> Option<usize> {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in brace.char_indices() {
        match quote {
            // Two quotes within a key end it and begin it again.
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '}' => return Some(at),
            None if matches!(c, '\'' | '"') && (before == '[' || before == c) => quote = Some(c),
            None => {}
        }
        before = c;
    }
    None
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
    let path = text.strip_prefix("record.").or_else(|| {
        text.strip_prefix("record")
            .filter(|path| path.starts_with('['))
            .or_else(|| text.strip_prefix('$'))
    });
    if let Some((path, rest)) = path.and_then(KeyPath::parse) {
        let default = rest.strip_prefix('|').unwrap_or(NONE);
        let default = default.chars().map(|c| match Rules::default().is_plain(c) {
            true => c,
            false => '_',
        });
        let default: String = default.collect();
        return Ok(Part::Record {
            text: format!("{{{text}}}"),
            path,
            default: match default.bytes().all(|byte| byte == b'.') {
                true => "_".repeat(default.len().max(1)),
                false => default,
            },
        });
    }
    Err(TemplateError::Unknown(text.to_owned()))
}

/// Returns the text of a string, integer or boolean. Other types and empty strings have none.
fn text_of(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let token = Cursor::new(value).token().ok()?;
    let text = match (token.text(), token) {
        (Some(text), _) => return (!text.is_empty()).then_some(Cow::Borrowed(text)),
        (None, Token::Uint(n)) => n.to_string(),
        (None, Token::Int(n)) => n.to_string(),
        (None, Token::Bool(b)) => b.to_string(),
        _ => return None,
    };
    Some(Cow::Owned(text.into_bytes()))
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

    /// Returns a name with its hashes replaced.
    fn shown(name: &str) -> String {
        let mut parts = name.split('~');
        let mut shown = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            assert!(is_hashed(&format!("~{}", &part[..HASH]), '~'), "{name}");
            shown = format!("{shown}~HASH{}", &part[HASH..]);
        }
        shown
    }

    /// Returns the name of an event without a record.
    fn name_by(rules: Rules, template: &str, tag: impl AsRef<[u8]>) -> String {
        let event = Event {
            time: Time {
                seconds: 1_735_761_600,
                nanos: 0,
            },
            metadata: &[],
            body: b"\x80",
            group: None,
            raw: &[],
        };
        let mut out = String::new();
        let template = Template::parse_with(template, true, rules).unwrap();
        template.render(tag, &event, &mut out);
        out
    }

    #[test]
    fn values_that_need_no_escaping_stay_and_all_others_are_told_apart() {
        let stream = Rules {
            kind: NameKind::Stream,
            ..Rules::default()
        };
        let long = "x".repeat(300);
        let hashed = format!("a_b-{}", hash(b"a/b"));
        let tags: [&[u8]; 26] = [
            b"app.http",
            b"a_b",
            b"a b",
            b"a/b",
            b"a\\b",
            b"a\nb",
            b"a-b",
            b"_a_b",
            b"__a_b",
            b"/a/b",
            b".a",
            b"a",
            b"..a",
            b"",
            b".",
            b"..",
            b"...",
            b"_",
            b"/",
            b"\xff",
            b"\xfe",
            "\u{fffd}".as_bytes(),
            "주문".as_bytes(),
            "결제".as_bytes(),
            long.as_bytes(),
            hashed.as_bytes(),
        ];
        for rules in [Rules::default(), stream] {
            let mut names = std::collections::BTreeMap::new();
            for tag in tags {
                let name = name_by(rules.clone(), "{tag}", tag);
                let is_folder = rules.kind == NameKind::Folder;
                assert!(!is_folder || !name.starts_with(['_', '.']), "{name}");
                assert!(name.len() <= 255, "{name}");
                // A second pass changes what a value was changed into, so that it is told apart from it.
                let again = name_by(rules.clone(), "{tag}", &name);
                assert_eq!(name.as_bytes() == tag, again == name, "{name}");
                names.insert(name, tag);
            }
            assert_eq!(names.len(), tags.len());
        }
        for plain in ["app.http", "a_b", "a-b", "a=b,c+d", "주문"] {
            assert_eq!(name_by(Rules::default(), "{tag}", plain), plain);
            assert_eq!(
                name_by(Rules::default(), "x/{tag}/y", plain),
                format!("x/{plain}/y")
            );
        }
        assert_eq!(name_by(Rules::default(), "a{tag}", "_b"), "a_b");
    }

    #[test]
    fn long_tags_are_whole_as_long_as_the_stores_names_allow() {
        let lengths = |longest, longest_segment| Rules {
            longest,
            longest_segment,
            ..Rules::default()
        };
        let tag = |length: usize| "t".repeat(length);
        for (rules, template, length, whole) in [
            (lengths(864, 1_024), "logs/{tag}/%F", 170, true),
            (lengths(864, 1_024), "logs/{tag}/%F", 848, true),
            (lengths(864, 1_024), "logs/{tag}/%F", 849, false),
            (lengths(864, 255), "{tag}", 255, true),
            (lengths(864, 255), "{tag}", 256, false),
            (lengths(864, 255), "x-{tag}", 254, false),
            (lengths(864, 255), "{tag}/{tag}/{tag}", 250, true),
            (lengths(600, 255), "{tag}/{tag}/{tag}", 250, false),
            (lengths(0, 255), "{tag}", 41, false),
        ] {
            let (one, other) = (tag(length), tag(length) + "u");
            let name = name_by(rules.clone(), template, &one);
            assert_eq!(name.contains(&one), whole, "{template} {length}: {name}");
            assert!(name.len() <= rules.longest.max(40));
            assert!(
                name.split('/')
                    .all(|part| part.len() <= rules.longest_segment)
            );
            assert_ne!(name, name_by(rules, template, &other));
        }
    }

    #[test]
    fn tags_are_split_at_any_of_the_delimiters() {
        for (delimiters, expected) in [(".", "web-firelens-1a2b"), ("-", "1a2b.x"), (".-", "1a2b")]
        {
            let rules = Rules {
                tag_delimiters: delimiters.into(),
                ..Rules::default()
            };
            let index = if delimiters.contains('-') { 2 } else { 0 };
            let name = name_by(rules, &format!("{{tag[{index}]}}"), "web-firelens-1a2b.x");
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn times_are_in_the_zone() {
        let rules = Rules {
            zone: Zone::named("Asia/Seoul").unwrap(),
            ..Rules::default()
        };
        assert_eq!(name_by(rules, "%F/%H", "t"), "2025-01-02/05");
        assert_eq!(name_by(Rules::default(), "%F/%H", "t"), "2025-01-01/20");
    }

    #[test]
    fn placeholders_without_a_value_are_told() {
        let template =
            Template::parse("{tag}/{record.a|x}/{$b['c']}/{record['d.e']}", true).unwrap();
        // {"a": "", "b": {"c": 1}, "d.e": []}
        let record = b"\x83\xa1a\xa0\xa1b\x81\xa1c\x01\xa3d.e\x90";
        assert_eq!(
            template.unfilled(record),
            ["{record.a|x}", "{record['d.e']}"]
        );
    }

    #[test]
    fn names_come_from_tag_time_and_record() {
        let cases = [
            ("logs", "logs"),
            ("{tag}/%Y/%m/%d/%H", "app.http/2025/07/02/20"),
            ("{tag[1]}-{tag[0]}-{tag[9]}", "http-app-none"),
            ("a/$TAG/$TAG[1]x", "a/app.http/httpx"),
            ("%H%M%S.%3N", "204431.123"),
            ("{record.app.name}", "주문_결제~HASH"),
            ("{$app['name']}", "주문_결제~HASH"),
            ("{record['app'].n}", "7"),
            ("{record.app['n']}/{$app.n}", "7/7"),
            ("{$app['}']|none}-{record['a|b']|{}", "none-_"),
            ("{record.app.n}", "7"),
            ("{record.app}", "none"),
            ("{record.missing|other}", "other"),
            ("{record.dots}", "x~HASH"),
            ("{record.empty|e}", "e"),
        ];
        for (template, expected) in cases {
            assert_eq!(shown(&render(template, "app.http")), expected, "{template}");
        }
    }

    #[test]
    fn binary_that_is_utf8_is_used_like_text() {
        // {b"app": {b"name": b"주문/결제"}, b"none": b"\xff", b"empty": b""}
        let mut body = b"\x83\xc4\x03app\x81\xc4\x04name\xc4\x0d".to_vec();
        body.extend_from_slice("주문/결제".as_bytes());
        body.extend_from_slice(b"\xc4\x04none\xc4\x01\xff\xc4\x05empty\xc4\x00");
        for (template, expected) in [
            ("{record.app.name}", "주문_결제~HASH"),
            ("{record.none|other}", "other"),
            ("{record.empty|e}", "e"),
        ] {
            let name = render_body(template, "t", &body);
            assert_eq!(shown(&name), expected, "{template}");
        }
    }

    #[test]
    fn a_tag_cannot_leave_its_folder() {
        for (tag, expected) in [
            ("../../etc/passwd\n", "etc_passwd_~HASH"),
            ("..", "x~HASH"),
            (".", "x~HASH"),
            ("", "x~HASH"),
        ] {
            assert_eq!(shown(&render("{tag}", tag)), expected, "{tag}");
        }
        assert_eq!(shown(&render("a-{tag}", "..")), "a-x~HASH");
    }

    #[test]
    fn a_tag_alone_decides_a_name_without_records_and_times() {
        let of = |text, tag| Template::parse(text, true).unwrap().of_tag(tag);
        assert_eq!(of("a/{tag[1]}-{tag}", "x.y").as_deref(), Some("a/y-x.y"));
        assert_eq!(
            of("{tag}", ".x").map(|name| shown(&name)).as_deref(),
            Some("x~HASH")
        );
        assert_eq!(of("fixed", "x").as_deref(), Some("fixed"));
        assert_eq!(of("{tag}/%Y", "x"), None);
        assert_eq!(of("{tag}/{record.k}", "x"), None);
    }

    #[test]
    fn a_folder_separates_tags_if_each_part_of_them_is_a_whole_folder() {
        let table = [
            ("{tag}/%Y/%m", "x-{tag}", true),
            ("{tag}/%Y/%m", "{tag[3]}", true),
            ("logs/{tag[1]}/%Y", "{tag[1]}", true),
            ("logs/app-{tag}.d/%Y", "{tag}", true),
            ("{tag}", "fixed", true),
            ("%Y", "fixed", true),
            ("logs/{tag[1]}/%Y", "{tag[0]}", false),
            ("logs/{tag[1]}/%Y", "{tag}", false),
            ("%Y", "{tag}", false),
            // "a-b" and "c" make the name of "a" and "b-c".
            ("{tag[0]}-{tag[1]}", "{tag[0]}", false),
            ("{tag}-{record.level}", "{tag}", false),
            ("{tag}-%H", "{tag}", false),
            ("{tag}", "{record.level}", false),
        ];
        for (path, other, separates) in table {
            let template = |text| Template::parse(text, true).unwrap();
            let found = template(path).separates(&template(other));
            assert_eq!(found, separates, "{other} in {path}");
        }
    }

    #[test]
    fn invalid_templates_are_refused_with_a_reason() {
        for template in [
            "{tag",
            "{TAG}",
            "{tag[x]}",
            "{record.}",
            "{record.a..b}",
            "{record['a}",
            "{record[a]}",
            "{$}",
            "{$a['b'}",
            "$a['b']",
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
