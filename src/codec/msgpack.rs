//! Decodes a chunk's msgpack, event by event.
//!
//! Events are `[[time, metadata], body]` or, from older hosts and forward inputs, `[time, body]`; a chunk may contain
//! both. The decoder does not recurse, allocate per event, or trust a length: an event is returned only when every
//! value in it lies within the chunk. Bytes that are not an event are returned as [`Item::Malformed`], and decoding
//! resumes at the next whole event.

use rmp::Marker;

use crate::ids::Time;

/// The extension type of Fluent Bit's event time: eight bytes, big-endian seconds and nanoseconds.
const EVENT_TIME: i8 = 0;
/// The seconds of the marker that starts a group (OTLP resource and scope).
const GROUP_START: u32 = 0xffff_ffff;
/// The seconds of the marker that ends a group.
const GROUP_END: u32 = 0xffff_fffe;
/// The most bytes that resynchronization reads, as a multiple of the chunk's length, so that a hostile chunk costs
/// linear time. When they are used up the rest of the chunk is malformed as a whole.
const RESYNC_BUDGET: usize = 16;

/// The context of a group of events: OTLP's resource and scope. The slices are whole msgpack maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// The group's own metadata (schema, ids); empty where its marker has none.
    pub metadata: &'a [u8],
    /// Resource and scope.
    pub body: &'a [u8],
}

/// One log event. The slices are whole, well-formed msgpack maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The time of the event.
    pub time: Time,
    /// The record's metadata; empty where there is none.
    pub metadata: &'a [u8],
    /// The record.
    pub body: &'a [u8],
    /// The group that the event belongs to.
    pub group: Option<Group<'a>>,
    /// The raw event, time and metadata included.
    pub raw: &'a [u8],
}

/// The part of an event before its body, which is not decoded yet.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The time of the event.
    pub time: Time,
    /// The record's metadata, a whole map; empty where there is none.
    pub metadata: &'a [u8],
    /// The group that the event belongs to.
    pub group: Option<Group<'a>>,
    /// The bytes that contain the body.
    pub bytes: &'a [u8],
    /// The body's offset in `bytes`. It may be malformed or truncated.
    pub body: usize,
}

/// An item of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A log event.
    Event(Event<'a>),
    /// Bytes that are not an event, up to the next whole one.
    Malformed {
        /// The bytes.
        bytes: &'a [u8],
        /// Their offset in the chunk.
        offset: usize,
        /// The fault at that offset.
        reason: Malformed,
    },
}

/// The reason why bytes are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A value reaches past the end of the chunk.
    #[error("msgpack ends in the middle of a value")]
    Truncated,
    /// The byte that msgpack reserves and never uses (0xc1).
    #[error("msgpack uses the reserved byte 0xc1")]
    Reserved,
    /// Well-formed msgpack, but not an event.
    #[error("{0}")]
    Shape(&'static str),
    /// A group's marker with events inside: a wrong length in it spans what follows.
    #[error("the marker of a group spans the events after it")]
    SpansEvents,
}

/// A msgpack scalar, or the head of a container whose values follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// Nil.
    Nil,
    /// A boolean.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A string's bytes, which may not be UTF-8.
    Str(&'a [u8]),
    /// Binary, which may be text as well: [`Token::text`].
    Bin(&'a [u8]),
    /// An extension's type and bytes.
    Ext(i8, &'a [u8]),
    /// The number of values that follow.
    Array(u32),
    /// The number of pairs that follow.
    Map(u32),
}

impl<'a> Token<'a> {
    /// Returns the bytes of a string, or of binary that is UTF-8, since Fluentd forwards text as binary.
    pub fn text(self) -> Option<&'a [u8]> {
        match self {
            Token::Str(text) => Some(text),
            Token::Bin(bytes) if std::str::from_utf8(bytes).is_ok() => Some(bytes),
            _ => None,
        }
    }
}

/// A read position in msgpack bytes.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Creates a cursor at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// Creates a cursor at an offset.
    pub fn at(bytes: &'a [u8], at: usize) -> Self {
        Cursor { bytes, at }
    }

    /// The offset of the next value.
    pub fn position(&self) -> usize {
        self.at
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(n).ok_or(Malformed::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed::Truncated)?;
        self.at = end;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("take(N) gives N bytes"))
    }

    fn len8(&mut self) -> Result<usize, Malformed> {
        Ok(usize::from(u8::from_be_bytes(self.fixed()?)))
    }

    fn len16(&mut self) -> Result<usize, Malformed> {
        Ok(usize::from(u16::from_be_bytes(self.fixed()?)))
    }

    fn len32(&mut self) -> Result<usize, Malformed> {
        Ok(u32::from_be_bytes(self.fixed()?) as usize)
    }

    fn ext(&mut self, len: usize) -> Result<Token<'a>, Malformed> {
        let kind = i8::from_be_bytes(self.fixed()?);
        Ok(Token::Ext(kind, self.take(len)?))
    }

    /// Reads a scalar, or the head of a container.
    #[inline]
    pub fn token(&mut self) -> Result<Token<'a>, Malformed> {
        let [first] = self.fixed()?;
        Ok(match Marker::from_u8(first) {
            Marker::FixPos(n) => Token::Uint(n.into()),
            Marker::FixNeg(n) => Token::Int(n.into()),
            Marker::FixStr(n) => Token::Str(self.take(n.into())?),
            Marker::FixMap(n) => Token::Map(n.into()),
            Marker::FixArray(n) => Token::Array(n.into()),
            Marker::Null => Token::Nil,
            Marker::False => Token::Bool(false),
            Marker::True => Token::Bool(true),
            Marker::U8 => Token::Uint(u8::from_be_bytes(self.fixed()?).into()),
            Marker::U16 => Token::Uint(u16::from_be_bytes(self.fixed()?).into()),
            Marker::U32 => Token::Uint(u32::from_be_bytes(self.fixed()?).into()),
            Marker::U64 => Token::Uint(u64::from_be_bytes(self.fixed()?)),
            Marker::I8 => Token::Int(i8::from_be_bytes(self.fixed()?).into()),
            Marker::I16 => Token::Int(i16::from_be_bytes(self.fixed()?).into()),
            Marker::I32 => Token::Int(i32::from_be_bytes(self.fixed()?).into()),
            Marker::I64 => Token::Int(i64::from_be_bytes(self.fixed()?)),
            Marker::F32 => Token::F32(f32::from_be_bytes(self.fixed()?)),
            Marker::F64 => Token::F64(f64::from_be_bytes(self.fixed()?)),
            Marker::Str8 => {
                let len = self.len8()?;
                Token::Str(self.take(len)?)
            }
            Marker::Str16 => {
                let len = self.len16()?;
                Token::Str(self.take(len)?)
            }
            Marker::Str32 => {
                let len = self.len32()?;
                Token::Str(self.take(len)?)
            }
            Marker::Bin8 => {
                let len = self.len8()?;
                Token::Bin(self.take(len)?)
            }
            Marker::Bin16 => {
                let len = self.len16()?;
                Token::Bin(self.take(len)?)
            }
            Marker::Bin32 => {
                let len = self.len32()?;
                Token::Bin(self.take(len)?)
            }
            Marker::FixExt1 => self.ext(1)?,
            Marker::FixExt2 => self.ext(2)?,
            Marker::FixExt4 => self.ext(4)?,
            Marker::FixExt8 => self.ext(8)?,
            Marker::FixExt16 => self.ext(16)?,
            Marker::Ext8 => {
                let len = self.len8()?;
                self.ext(len)?
            }
            Marker::Ext16 => {
                let len = self.len16()?;
                self.ext(len)?
            }
            Marker::Ext32 => {
                let len = self.len32()?;
                self.ext(len)?
            }
            Marker::Array16 => Token::Array(u16::from_be_bytes(self.fixed()?).into()),
            Marker::Array32 => Token::Array(u32::from_be_bytes(self.fixed()?)),
            Marker::Map16 => Token::Map(u16::from_be_bytes(self.fixed()?).into()),
            Marker::Map32 => Token::Map(u32::from_be_bytes(self.fixed()?)),
            Marker::Reserved => return Err(Malformed::Reserved),
        })
    }

    /// Skips a whole value of any depth, and returns its bytes.
    pub fn value(&mut self) -> Result<&'a [u8], Malformed> {
        let start = self.at;
        // A count of the values still to read replaces a stack.
        let mut pending: u64 = 1;
        while pending > 0 {
            pending -= 1;
            match self.token()? {
                Token::Array(n) => pending += u64::from(n),
                Token::Map(n) => pending += 2 * u64::from(n),
                _ => {}
            }
        }
        Ok(&self.bytes[start..self.at])
    }

    fn map(&mut self, expected: &'static str) -> Result<&'a [u8], Malformed> {
        let value = self.value()?;
        match Cursor::new(value).token()? {
            Token::Map(_) => Ok(value),
            _ => Err(Malformed::Shape(expected)),
        }
    }
}

/// An event or a group's marker.
enum Read<'a> {
    Event(Event<'a>),
    GroupStart(Group<'a>),
    GroupEnd,
}

/// A position between two events of a chunk. The default is the chunk's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    at: usize,
    /// The offset of the marker of the current group.
    group: Option<usize>,
    /// The part of the resynchronization budget that was spent, in bytes.
    spent: usize,
}

impl Place {
    /// The offset in the chunk.
    pub fn offset(&self) -> usize {
        self.at
    }
}

/// An iterator over the events of a chunk.
pub struct Events<'a> {
    chunk: &'a [u8],
    /// The part of the chunk that [`Events::head`] may read.
    ahead: &'a [u8],
    place: Place,
    /// The group at `place`.
    group: Option<Group<'a>>,
}

impl<'a> Events<'a> {
    /// Starts at the beginning of `chunk`.
    pub fn new(chunk: &'a [u8]) -> Self {
        Events::from(chunk, Place::default())
    }

    /// Resumes `chunk` at a position that [`Events::place`] returned.
    pub fn from(chunk: &'a [u8], place: Place) -> Self {
        let mut events = Events {
            chunk,
            ahead: chunk,
            place,
            group: None,
        };
        if let Some(marker) = place.group
            && let (_, Ok(Read::GroupStart(group))) = events.read(marker)
        {
            events.group = Some(group);
        }
        events
    }

    /// The position of the next event.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The number of bytes left in the chunk.
    pub fn left(&self) -> usize {
        self.chunk.len() - self.place.at
    }

    /// The group of the previous event, and the offset of its marker.
    pub fn group(&self) -> Option<(usize, Group<'a>)> {
        Some((self.place.group?, self.group?))
    }

    /// Returns the raw bytes of the group's marker at an offset.
    pub fn group_marker(&self, at: usize) -> &'a [u8] {
        let (end, _) = self.read(at);
        &self.chunk[at..end]
    }

    /// Limits [`Events::head`] to the next `bytes` of the chunk.
    pub fn look_ahead(&mut self, bytes: usize) {
        let end = self.place.at.saturating_add(bytes).min(self.chunk.len());
        self.ahead = &self.chunk[..end];
    }

    /// Returns the head of the next event if it has the common form: `[[event time, map], …`. Everything else is left to
    /// [`Events::next`].
    #[inline]
    pub fn head(&self) -> Option<Head<'a>> {
        let (chunk, at) = (self.ahead, self.place.at);
        let fixed: &[u8; 13] = chunk.get(at..)?.first_chunk()?;
        let [0x92, 0x92, 0xd7, 0x00, a, b, c, d, e, f, g, h, metadata] = *fixed else {
            return None;
        };
        let seconds = u32::from_be_bytes([a, b, c, d]);
        let nanos = u32::from_be_bytes([e, f, g, h]);
        if seconds >= GROUP_END || nanos >= 1_000_000_000 {
            return None;
        }
        // Hosts write an empty map as fixmap or as map 32.
        let (metadata, body) = match (metadata, chunk.get(at + 13..at + 17)) {
            (0x80, _) => (&chunk[at + 12..at + 13], at + 13),
            (0xdf, Some([0, 0, 0, 0])) => (&chunk[at + 12..at + 17], at + 17),
            _ => {
                let mut cursor = Cursor::at(chunk, at + 12);
                (cursor.map("").ok()?, cursor.position())
            }
        };
        Some(Head {
            time: Time {
                seconds: seconds.into(),
                nanos,
            },
            metadata,
            group: self.group,
            bytes: chunk,
            body,
        })
    }

    /// Advances past the event whose body ends at `end`.
    pub fn advance_to(&mut self, end: usize) {
        self.place.at = end;
    }

    /// Decodes the item at `at`. Also returns the end of what was read, even on an error.
    fn read(&self, at: usize) -> (usize, Result<Read<'a>, Malformed>) {
        let mut cursor = Cursor {
            bytes: self.chunk,
            at,
        };
        let read = self.read_with(&mut cursor);
        (cursor.at, read)
    }

    fn read_with(&self, cursor: &mut Cursor<'a>) -> Result<Read<'a>, Malformed> {
        const PAIR: Malformed = Malformed::Shape("an event must be an array of header and body");
        const HEADER: Malformed =
            Malformed::Shape("an event's header must be an array of time and metadata");
        let start = cursor.at;
        if cursor.token()? != Token::Array(2) {
            return Err(PAIR);
        }
        let mut first = cursor.token()?;
        let mut metadata: &[u8] = &[];
        if let Token::Array(parts) = first {
            if parts != 2 {
                return Err(HEADER);
            }
            first = cursor.token()?;
            metadata = cursor.map("an event's metadata must be a map")?;
        }
        let marker = match first {
            Token::Ext(EVENT_TIME, [a, b, c, d, 0, 0, 0, 0]) => {
                Some(u32::from_be_bytes([*a, *b, *c, *d]))
            }
            _ => None,
        };
        let time = time(first)?;
        let body = cursor.map("an event's body must be a map")?;
        if matches!(marker, Some(GROUP_START | GROUP_END))
            && (holds_event_time(metadata) || holds_event_time(body))
        {
            return Err(Malformed::SpansEvents);
        }
        Ok(match marker {
            Some(GROUP_START) => Read::GroupStart(Group { metadata, body }),
            Some(GROUP_END) => Read::GroupEnd,
            _ => Read::Event(Event {
                time,
                metadata,
                body,
                group: self.group,
                raw: &self.chunk[start..cursor.at],
            }),
        })
    }

    /// Returns the offset of the next whole event after `start`, or the chunk's end.
    fn resync(&mut self, start: usize, reason: Malformed) -> usize {
        let mut whole = Cursor {
            bytes: self.chunk,
            at: start,
        };
        // A well-formed value is skipped as a whole, since bytes inside it may look like an event.
        let well_formed = whole.value().is_ok();
        self.spend(whole.at - start);
        let skippable = well_formed && reason != Malformed::SpansEvents;
        if skippable && (whole.at == self.chunk.len() || self.is_event(whole.at)) {
            return whole.at;
        }
        for at in start + 1..self.chunk.len() {
            if self.place.spent >= self.chunk.len().saturating_mul(RESYNC_BUDGET) {
                break;
            }
            if looks_like_an_event(self.chunk, at) && self.is_event(at) {
                return at;
            }
        }
        self.chunk.len()
    }

    fn is_event(&mut self, at: usize) -> bool {
        let (end, read) = self.read(at);
        self.spend(end - at);
        read.is_ok()
    }

    fn spend(&mut self, bytes: usize) {
        self.place.spent = self.place.spent.saturating_add(bytes);
    }
}

/// Whether the bytes at `at` are the head of an event with an event time, in either form.
fn looks_like_an_event(chunk: &[u8], at: usize) -> bool {
    const PAIR: u8 = 0x92;
    let time =
        |bytes: &[u8]| bytes.starts_with(&[0xd7, 0x00]) || bytes.starts_with(&[0xc7, 0x08, 0x00]);
    match &chunk[at..] {
        [PAIR, PAIR, rest @ ..] => time(rest),
        // Within another pair this is the header of an event in the newer form.
        [PAIR, rest @ ..] => {
            time(rest) && at.checked_sub(1).is_none_or(|before| chunk[before] != PAIR)
        }
        _ => false,
    }
}

/// Whether a whole value contains an event time, also within its binary values: a wrong length may make a binary value of
/// the events that follow. Resources and scopes contain none.
fn holds_event_time(value: &[u8]) -> bool {
    let mut cursor = Cursor::new(value);
    while let Ok(token) = cursor.token() {
        if matches!(token, Token::Ext(EVENT_TIME, [_, _, _, _, _, _, _, _])) {
            return true;
        }
    }
    (0..value.len()).any(|at| looks_like_an_event(value, at))
}

fn time(token: Token<'_>) -> Result<Time, Malformed> {
    const BAD: Malformed =
        Malformed::Shape("an event's time must be an event time, an integer or a float");
    match token {
        Token::Ext(EVENT_TIME, bytes) => {
            let bytes: [u8; 8] = bytes.try_into().map_err(|_| BAD)?;
            let [a, b, c, d, e, f, g, h] = bytes;
            let nanos = u32::from_be_bytes([e, f, g, h]);
            Ok(Time {
                seconds: i64::from(u32::from_be_bytes([a, b, c, d]))
                    + i64::from(nanos / 1_000_000_000),
                nanos: nanos % 1_000_000_000,
            })
        }
        Token::Uint(seconds) => Ok(Time {
            seconds: i64::try_from(seconds).map_err(|_| BAD)?,
            nanos: 0,
        }),
        Token::Int(seconds) => Ok(Time { seconds, nanos: 0 }),
        Token::F32(float) => float_time(float.into()),
        Token::F64(float) => float_time(float),
        _ => Err(BAD),
    }
}

fn float_time(float: f64) -> Result<Time, Malformed> {
    // Beyond any calendar, and within the range where floats are exact to the second.
    const MAX: f64 = 1e15;
    if !(-MAX..=MAX).contains(&float) {
        return Err(Malformed::Shape(
            "an event's time is not a number of seconds",
        ));
    }
    let floor = float.floor();
    Ok(Time {
        seconds: floor as i64,
        nanos: (((float - floor) * 1e9) as u32).min(999_999_999),
    })
}

impl<'a> Iterator for Events<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        while self.place.at < self.chunk.len() {
            let start = self.place.at;
            let (end, read) = self.read(start);
            self.place.at = end;
            match read {
                Ok(Read::Event(event)) => return Some(Item::Event(event)),
                Ok(Read::GroupStart(group)) => {
                    (self.group, self.place.group) = (Some(group), Some(start));
                }
                Ok(Read::GroupEnd) => (self.group, self.place.group) = (None, None),
                Err(reason) => {
                    self.place.at = self.resync(start, reason);
                    return Some(Item::Malformed {
                        bytes: &self.chunk[start..self.place.at],
                        offset: start,
                        reason,
                    });
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![
            0x92, 0x92, 0xd7, 0x00, 0x68, 0x15, 0x9a, 0x2f, 0, 0, 0, 7, 0x80,
        ];
        bytes.extend_from_slice(body);
        bytes
    }

    const K1: &[u8] = b"\x81\xa1k\x01";
    const K2: &[u8] = b"\x81\xa1k\x02";

    fn bodies(chunk: &[u8]) -> Vec<&[u8]> {
        Events::new(chunk)
            .filter_map(|item| match item {
                Item::Event(event) => Some(event.body),
                Item::Malformed { .. } => None,
            })
            .collect()
    }

    fn malformed(chunk: &[u8]) -> Vec<(usize, usize, Malformed)> {
        Events::new(chunk)
            .filter_map(|item| match item {
                Item::Malformed {
                    bytes,
                    offset,
                    reason,
                } => Some((offset, bytes.len(), reason)),
                Item::Event(_) => None,
            })
            .collect()
    }

    #[test]
    fn every_time_format_is_read() {
        let cases: [(&[u8], Time); 6] = [
            (
                b"\xd7\x00\x00\x00\x00\x01\x00\x00\x00\x02",
                Time {
                    seconds: 1,
                    nanos: 2,
                },
            ),
            (
                b"\xc7\x08\x00\x00\x00\x00\x01\x00\x00\x00\x02",
                Time {
                    seconds: 1,
                    nanos: 2,
                },
            ),
            (
                b"\xce\x68\x15\x9a\x2f",
                Time {
                    seconds: 0x6815_9a2f,
                    nanos: 0,
                },
            ),
            (
                b"\x05",
                Time {
                    seconds: 5,
                    nanos: 0,
                },
            ),
            (
                b"\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00",
                Time {
                    seconds: 1,
                    nanos: 500_000_000,
                },
            ),
            // Nanoseconds beyond a second are carried, not lost.
            (
                b"\xd7\x00\x00\x00\x00\x01\x77\x35\x94\x00",
                Time {
                    seconds: 3,
                    nanos: 0,
                },
            ),
        ];
        for (bytes, expected) in cases {
            for legacy in [false, true] {
                let mut chunk = vec![0x92];
                if !legacy {
                    chunk.push(0x92);
                }
                chunk.extend_from_slice(bytes);
                if !legacy {
                    chunk.push(0x80);
                }
                chunk.extend_from_slice(K1);
                match Events::new(&chunk).next() {
                    Some(Item::Event(event)) => assert_eq!(event.time, expected, "{bytes:02x?}"),
                    other => panic!("{bytes:02x?}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn groups_are_context_and_not_events() {
        let mut chunk =
            b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x81\xa1s\x01\x81\xa1r\x02".to_vec();
        chunk.extend(event(K1));
        chunk.extend_from_slice(b"\x92\x92\xd7\x00\xff\xff\xff\xfe\0\0\0\0\x80\x80");
        chunk.extend(event(K2));
        // Neither of these is a marker.
        chunk.extend_from_slice(b"\x92\x92\xd7\x00\xff\xff\xff\xfd\0\0\0\0\x80\x80");
        chunk.extend_from_slice(b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\x01\x80\x80");
        let groups: Vec<_> = Events::new(&chunk)
            .map(|item| match item {
                Item::Event(event) => event.group.map(|group| (group.metadata, group.body)),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            groups,
            [
                Some((&b"\x81\xa1s\x01"[..], &b"\x81\xa1r\x02"[..])),
                None,
                None,
                None
            ]
        );
    }

    #[test]
    fn a_group_marker_with_a_wrong_length_does_not_swallow_the_events_after_it() {
        let marker = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80\x81\xa1r".to_vec();
        // The resource claims to be an array of two: the events behind it.
        let chunk = [marker.clone(), vec![0x92], event(K1), event(K2)].concat();
        assert_eq!(bodies(&chunk), [K1, K2]);
        assert_eq!(
            malformed(&chunk),
            [(0, marker.len() + 1, Malformed::SpansEvents)]
        );
    }

    #[test]
    fn a_binary_value_of_a_group_marker_with_a_wrong_length_swallows_no_event() {
        let mut marker = b"\x92\x92\xd7\x00\xff\xff\xff\xff\0\0\0\0\x80\x81\xa1r\xc4".to_vec();
        marker.push(event(K1).len() as u8 + 1);
        let chunk = [marker.clone(), vec![7], event(K1), event(K2)].concat();
        assert_eq!(bodies(&chunk), [K1, K2]);
        assert_eq!(
            malformed(&chunk),
            [(0, marker.len() + 1, Malformed::SpansEvents)]
        );
    }

    #[test]
    fn a_malformed_event_costs_its_own_bytes_and_nothing_else() {
        let good = event(K1);
        let broken: [(&str, Vec<u8>, Malformed); 7] = [
            (
                "a body that is no map",
                event(b"\xa4oops"),
                Malformed::Shape("an event's body must be a map"),
            ),
            (
                "a bare string",
                b"\xa4oops".to_vec(),
                Malformed::Shape("an event must be an array of header and body"),
            ),
            (
                "the reserved byte",
                event(b"\x81\xa1k\xc1"),
                Malformed::Reserved,
            ),
            (
                "a string that claims 4 GiB",
                event(b"\x81\xa1k\xdb\xff\xff\xff\xff"),
                Malformed::Truncated,
            ),
            (
                "an array that claims 4 billion",
                event(b"\x81\xa1k\xdd\xff\xff\xff\xff"),
                Malformed::Truncated,
            ),
            (
                "a time that is a string",
                b"\x92\x92\xa1t\x80\x80".to_vec(),
                Malformed::Shape("an event's time must be an event time, an integer or a float"),
            ),
            (
                "a time that is not a number",
                b"\x92\xcb\x7f\xf8\0\0\0\0\0\0\x80".to_vec(),
                Malformed::Shape("an event's time is not a number of seconds"),
            ),
        ];
        for (what, bad, reason) in broken {
            let chunk = [good.clone(), bad.clone(), event(K2)].concat();
            assert_eq!(bodies(&chunk), [K1, K2], "{what}");
            assert_eq!(
                malformed(&chunk),
                [(good.len(), bad.len(), reason)],
                "{what}"
            );
        }
    }

    #[test]
    fn a_chunk_cut_anywhere_gives_every_whole_event_before_the_cut() {
        let one = event(K1);
        let chunk = [one.clone(), event(K2)].concat();
        for cut in 0..chunk.len() {
            let whole = usize::from(cut >= one.len());
            assert_eq!(bodies(&chunk[..cut]).len(), whole, "cut at {cut}");
            let lost: usize = malformed(&chunk[..cut]).iter().map(|(_, len, _)| len).sum();
            assert_eq!(lost, cut - whole * one.len(), "cut at {cut}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let mut body = b"\x81\xa1k".to_vec();
        body.extend(std::iter::repeat_n(0x91, 1_000_000));
        body.push(0xc0);
        let chunk = [event(&body), event(K2)].concat();
        assert_eq!(bodies(&chunk), [&body[..], K2]);
    }

    #[test]
    fn a_hostile_chunk_ends() {
        // Each head looks like an event whose body extends to the chunk's end: reading that far from every one of
        // them would take 10^11 steps.
        let head = b"\x92\x92\xd7\x00\0\0\0\x01\0\0\0\0\x80\xdd\x7f\xff\xff\xff";
        let chunk = head.repeat(120_000);
        let read: usize = malformed(&chunk).iter().map(|(_, len, _)| len).sum();
        assert_eq!(read, chunk.len());
    }
}
