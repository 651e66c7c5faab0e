//! The rows of a table, as they wait for their object: encoded from msgpack, in the order of the columns.
//!
//! A row is the number of its bytes (32 bits, little-endian), and for each column a byte, [`NULL`], [`VALUE`] or
//! [`CONFLICT`], and behind [`VALUE`] the value: eight bytes, little-endian, for numbers and times; one byte for booleans;
//! for text its length (32 bits, little-endian) and its bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, ErrorKind};

use super::columns::{Columns, Converted, Stored, Value, micros};
use crate::codec::json::{Encoder, Options, Skip};
use crate::codec::msgpack::{Cursor, Head, Token, lookup};
use crate::codec::rows::{RowEncoder, RowFormat};
use crate::codec::time::write_iso8601;

/// No value.
pub(super) const NULL: u8 = 0;
/// A value follows.
pub(super) const VALUE: u8 = 1;
/// No value, since it does not fit its column: it is in the rest.
pub(super) const CONFLICT: u8 = 2;
/// The bytes before a row.
pub(super) const PREFIX: usize = 4;
/// The most bytes of a value that has a fixed length, its marker included, or those before a text.
const FIXED: usize = 9;
/// The number of keys of a map that are predicted.
const PREDICTED: usize = 64;

impl RowFormat for Columns {
    fn encoder<'o>(&'o self, options: &'o Options) -> Box<dyn RowEncoder + 'o> {
        Box::new(Rows::new(self, options))
    }

    fn row_bytes(&self, tag: &[u8]) -> usize {
        // The brackets of the rest and of the metadata, and U+FFFD for a byte that is not UTF-8.
        PREFIX + FIXED * (self.declared.len() + 4) + 4 + 3 * tag.len()
    }
}

/// A map on the way to columns.
#[derive(Debug, Default)]
struct Node {
    /// By key: what is there.
    children: HashMap<Vec<u8>, Child>,
    /// The keys of the last such map, in order, and what is there.
    predicted: Vec<(Vec<u8>, Option<Child>)>,
    /// The number of keys of the last such map that had none twice, if all of them are predicted.
    distinct: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Child {
    /// The value of a declared column.
    Column(usize),
    /// A map with such values.
    Node(usize),
}

/// What a column gets.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Null,
    Conflict,
    Bits(u64),
    Bool(bool),
    /// Bytes of the event.
    Text(usize, usize),
    /// Bytes that were made of it.
    Made(usize, usize),
}

/// A pair of a map: the place of its value, and what belongs there.
struct Pair<'b> {
    /// The whole key.
    raw: &'b [u8],
    value: (usize, usize),
    child: Option<Child>,
    /// Whether a later pair has the same key.
    is_replaced: bool,
}

/// The encoder of rows.
struct Rows<'o> {
    columns: &'o Columns,
    options: &'o Options,
    /// Only encodes values: nothing is added to them.
    json: Encoder<'o>,
    nodes: Vec<Node>,
    slots: Vec<Slot>,
    made: Vec<u8>,
    rest: Vec<u8>,
}

impl<'o> Rows<'o> {
    fn new(columns: &'o Columns, options: &'o Options) -> Rows<'o> {
        let mut nodes = vec![Node::default()];
        for (index, column) in columns.declared.iter().enumerate() {
            let keys = column.path.keys();
            let Some((last, maps)) = keys.split_last() else {
                continue;
            };
            let mut at = 0;
            for key in maps {
                let next = nodes.len();
                let child = nodes[at].children.entry(key.as_bytes().to_vec());
                match *child.or_insert(Child::Node(next)) {
                    Child::Node(node) => at = node,
                    // Overlapping paths are refused.
                    Child::Column(_) => break,
                }
                if at == next {
                    nodes.push(Node::default());
                }
            }
            let children = &mut nodes[at].children;
            children.insert(last.as_bytes().to_vec(), Child::Column(index));
        }
        Rows {
            columns,
            options,
            json: Encoder::new(options),
            slots: vec![Slot::Null; columns.declared.len()],
            nodes,
            made: Vec::new(),
            rest: Vec::new(),
        }
    }

    /// Distributes the pairs of the map at `at` among columns and the rest. Returns the map's end.
    fn map(&mut self, bytes: &[u8], at: usize, node: usize, depth: usize) -> Result<usize, Skip> {
        let mut cursor = Cursor::at(bytes, at);
        let Token::Map(count) = cursor.token()? else {
            return Err(Skip::Malformed);
        };
        let count = count as usize;
        let mut pairs: Vec<Pair<'_>> = Vec::with_capacity(count.min(PREDICTED));
        let mut all_predicted = count <= PREDICTED;
        for index in 0..count {
            let raw = cursor.value()?;
            let start = cursor.position();
            cursor.value()?;
            let value = (start, cursor.position());
            let of = &mut self.nodes[node];
            let predicted = of.predicted.get(index).filter(|(key, _)| *key == raw);
            let child = match predicted {
                Some((_, child)) => *child,
                None => {
                    all_predicted = false;
                    let text = match Cursor::new(raw).token()? {
                        Token::Str(text) | Token::Bin(text) => of.children.get(text).copied(),
                        _ => None,
                    };
                    if index < PREDICTED {
                        let kept = (raw.to_vec(), text);
                        match index < of.predicted.len() {
                            true => of.predicted[index] = kept,
                            false => of.predicted.push(kept),
                        }
                    }
                    text
                }
            };
            pairs.push(Pair {
                raw,
                value,
                child,
                is_replaced: false,
            });
        }
        if !all_predicted || self.nodes[node].distinct != Some(count) {
            let distinct = self.find_replaced(&mut pairs)?;
            let fits = count <= PREDICTED;
            self.nodes[node].distinct = (distinct && fits).then_some(count);
        }
        for pair in &pairs {
            let record_key = node == 0;
            if pair.is_replaced || (record_key && !self.is_wanted(pair.raw)) {
                continue;
            }
            self.pair(bytes, pair, depth)?;
        }
        Ok(cursor.position())
    }

    /// Marks the pairs whose key comes again: the last one is the record's. Returns whether there are none.
    fn find_replaced(&self, pairs: &mut [Pair<'_>]) -> Result<bool, Skip> {
        let mut last: HashMap<Vec<u8>, usize> = HashMap::with_capacity(pairs.len());
        let mut distinct = true;
        for index in 0..pairs.len() {
            let mut name = Vec::new();
            self.json.key_text(pairs[index].raw, &mut name)?;
            if let Some(before) = last.insert(name, index) {
                pairs[before].is_replaced = true;
                distinct = false;
            }
        }
        Ok(distinct)
    }

    fn is_wanted(&self, raw: &[u8]) -> bool {
        let keys = &self.options.data_keys;
        let is = |text: &[u8]| keys.iter().any(|key| key.as_bytes() == text);
        keys.is_empty()
            || matches!(Cursor::new(raw).token(), Ok(Token::Str(text) | Token::Bin(text)) if is(text))
    }

    fn pair(&mut self, bytes: &[u8], pair: &Pair<'_>, depth: usize) -> Result<(), Skip> {
        let (start, end) = pair.value;
        let value = &bytes[start..end];
        match pair.child {
            Some(Child::Column(column)) => {
                let kind = self.columns.declared[column].kind;
                let converted = kind.convert(value);
                self.slots[column] = self.slot(value, start, converted)?;
                if !matches!(self.slots[column], Slot::Conflict) {
                    return Ok(());
                }
            }
            Some(Child::Node(node)) => {
                if let Token::Map(1..) = Cursor::new(value).token()? {
                    let before = self.rest.len();
                    self.key(pair.raw)?;
                    self.rest.push(b'{');
                    let open = self.rest.len();
                    self.map(bytes, start, node, depth + 1)?;
                    match self.rest.len() == open {
                        true => self.rest.truncate(before),
                        false => self.rest.push(b'}'),
                    }
                    return Ok(());
                }
            }
            None => {}
        }
        self.key(pair.raw)?;
        self.json.value(value, depth, &mut self.rest)
    }

    /// Writes a key into the rest, behind a comma unless it is a map's first.
    fn key(&mut self, raw: &[u8]) -> Result<(), Skip> {
        if !matches!(self.rest.last(), None | Some(b'{')) {
            self.rest.push(b',');
        }
        self.json.key_text(raw, &mut self.rest)?;
        self.rest.push(b':');
        Ok(())
    }

    /// Writes a time that is no timestamp into the rest: under the name of its column, or one that the record does not
    /// have.
    fn odd_time(&mut self, head: &Head<'_>, end: usize) -> Result<(), Skip> {
        let record = head.bytes.get(head.body..end).unwrap_or_default();
        let mut name = self.columns.time.clone();
        while lookup(record, &[&name]).is_some() {
            name.push('_');
        }
        let mut raw = Vec::new();
        rmp::encode::write_str(&mut raw, &name).map_err(|_| Skip::Malformed)?;
        self.key(&raw)?;
        self.rest.push(b'"');
        write_iso8601(head.time, &mut self.rest);
        self.rest.push(b'"');
        Ok(())
    }

    fn slot(&mut self, value: &[u8], at: usize, converted: Converted<'_>) -> Result<Slot, Skip> {
        Ok(match converted {
            Converted::Null => Slot::Null,
            Converted::Unfit => Slot::Conflict,
            Converted::Value(Value::Int(it) | Value::Timestamp(it)) => Slot::Bits(it as u64),
            Converted::Value(Value::Float(it)) => Slot::Bits(it.to_bits()),
            Converted::Value(Value::Bool(it)) => Slot::Bool(it),
            Converted::Value(Value::Text(Cow::Borrowed(text))) => {
                // It is the end of the value's bytes.
                let end = at + value.len();
                Slot::Text(end - text.len(), end)
            }
            Converted::Value(Value::Text(Cow::Owned(text))) => {
                let start = self.made.len();
                self.made.extend_from_slice(&text);
                Slot::Made(start, self.made.len())
            }
            Converted::Value(Value::Json) => {
                let start = self.made.len();
                self.json.value(value, 1, &mut self.made)?;
                Slot::Made(start, self.made.len())
            }
        })
    }
}

impl RowEncoder for Rows<'_> {
    fn row(&mut self, tag: &[u8], head: &Head<'_>, out: &mut Vec<u8>) -> Result<usize, Skip> {
        self.slots.fill(Slot::Null);
        self.made.clear();
        self.rest.clear();
        let end = self.map(head.bytes, head.body, 0, 1)?;
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX]);
        match micros(head.time) {
            Some(micros) => put(Slot::Bits(micros as u64), &[], &[], out),
            None => out.push(CONFLICT),
        }
        let text = String::from_utf8_lossy(tag);
        put_text(text.as_bytes(), out);
        for slot in &self.slots {
            put(*slot, head.bytes, &self.made, out);
        }
        if self.columns.metadata.is_some() {
            let at = out.len();
            out.extend_from_slice(&[VALUE, 0, 0, 0, 0]);
            self.json.metadata_value(head, out)?;
            match u32::try_from(out.len() - at - 5).unwrap_or(u32::MAX) {
                0 => {
                    out.truncate(at);
                    out.push(NULL);
                }
                len => out[at + 1..at + 5].copy_from_slice(&len.to_le_bytes()),
            }
        }
        if micros(head.time).is_none() {
            self.odd_time(head, end)?;
        }
        match self.rest.is_empty() {
            true => out.push(NULL),
            false => {
                let len = u32::try_from(self.rest.len() + 2).unwrap_or(u32::MAX);
                out.push(VALUE);
                out.extend_from_slice(&len.to_le_bytes());
                out.push(b'{');
                out.extend_from_slice(&self.rest);
                out.push(b'}');
            }
        }
        let len = u32::try_from(out.len() - start - PREFIX).unwrap_or(u32::MAX);
        out[start..start + PREFIX].copy_from_slice(&len.to_le_bytes());
        Ok(end)
    }
}

fn put(slot: Slot, bytes: &[u8], made: &[u8], out: &mut Vec<u8>) {
    match slot {
        Slot::Null => out.push(NULL),
        Slot::Conflict => out.push(CONFLICT),
        Slot::Bits(bits) => {
            out.push(VALUE);
            out.extend_from_slice(&bits.to_le_bytes());
        }
        Slot::Bool(it) => out.extend_from_slice(&[VALUE, it.into()]),
        Slot::Text(start, end) => put_text(&bytes[start..end], out),
        Slot::Made(start, end) => put_text(&made[start..end], out),
    }
}

fn put_text(text: &[u8], out: &mut Vec<u8>) {
    out.push(VALUE);
    // A chunk is smaller.
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text);
}

/// Returns the length of the first of some rows.
pub(super) fn row_len(rows: &[u8]) -> usize {
    match rows.first_chunk() {
        Some(len) => (PREFIX + u32::from_le_bytes(*len) as usize).min(rows.len()),
        None => rows.len(),
    }
}

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell<'r> {
    Null,
    Conflict,
    Bits(u64),
    Bool(bool),
    Text(&'r [u8]),
}

/// Reads the values of a row, in order.
pub(super) struct Cells<'r> {
    left: &'r [u8],
}

impl<'r> Cells<'r> {
    /// Begins with the first value of a row.
    pub(super) fn of(row: &'r [u8]) -> Cells<'r> {
        Cells {
            left: row.get(PREFIX..).unwrap_or_default(),
        }
    }

    /// Reads the next value.
    ///
    /// # Errors
    ///
    /// The bytes are no row of the table.
    pub(super) fn next(&mut self, stored: Stored) -> io::Result<Cell<'r>> {
        let cell = match self.take(1)?[0] {
            NULL => Cell::Null,
            CONFLICT => Cell::Conflict,
            _ => match stored {
                Stored::Bool => Cell::Bool(self.take(1)?[0] != 0),
                Stored::Int | Stored::Float | Stored::Timestamp => {
                    Cell::Bits(u64::from_le_bytes(self.array()?))
                }
                Stored::Text => {
                    let len = u32::from_le_bytes(self.array()?);
                    Cell::Text(self.take(len as usize)?)
                }
            },
        };
        Ok(cell)
    }

    fn take(&mut self, len: usize) -> io::Result<&'r [u8]> {
        let (taken, left) = self
            .left
            .split_at_checked(len)
            .ok_or(ErrorKind::InvalidData)?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take(N) gives N bytes"))
    }
}
