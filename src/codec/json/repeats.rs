//! Removes the pairs of maps that a later one replaces.

use std::collections::HashMap;
use std::ops::Range;

use super::{MAX_DEPTH, Rules, Skip, is_empty_map, map_head};
use crate::codec::msgpack::{Cursor, Malformed, Token};

/// A container of which items are left.
struct Frame {
    /// The number of its values, or pairs, that are still to be read.
    left: u32,
    /// `None` for an array.
    map: Option<Map>,
}

/// What is known of a map.
struct Map {
    /// The offset of its first byte.
    at: usize,
    /// The offsets of its pairs.
    pairs: Vec<usize>,
    /// The ordinal of the last pair with a key, by the key as it is written.
    last: HashMap<Vec<u8>, usize>,
    /// The number of pairs that later ones replace.
    replaced: u32,
}

/// Returns the pairs of `maps` as one msgpack map, with the pair `"group": group` at its end, in which no key that is
/// written occurs twice, at any depth that is written. `record`: whether it is the record, whose keys may be left out.
/// Takes time in proportion to the maps' sizes.
pub(super) fn removed(
    maps: &[&[u8]],
    group: Option<&[u8]>,
    rules: &Rules,
    record: bool,
) -> Result<Vec<u8>, Skip> {
    let mut bytes = joined(maps, group)?;
    let removed = replaced(&mut bytes, rules, record).map_err(|_| Skip::Malformed)?;
    let mut kept = Vec::with_capacity(bytes.len());
    let mut from = 0;
    for range in removed {
        // A pair within a replaced one may be replaced as well.
        if range.start >= from {
            kept.extend_from_slice(&bytes[from..range.start]);
        }
        from = from.max(range.end);
    }
    kept.extend_from_slice(&bytes[from..]);
    Ok(kept)
}

fn joined(maps: &[&[u8]], group: Option<&[u8]>) -> Result<Vec<u8>, Skip> {
    let mut bytes = vec![0xdf, 0, 0, 0, 0];
    let mut total: u32 = 0;
    for map in maps.iter().filter(|map| !is_empty_map(map)) {
        let (pairs, at) = map_head(map, 0)?;
        total = total.saturating_add(pairs);
        bytes.extend_from_slice(&map[at..]);
    }
    if let Some(group) = group {
        total = total.saturating_add(1);
        bytes.extend_from_slice(b"\xa5group");
        bytes.extend_from_slice(group);
    }
    bytes[1..5].copy_from_slice(&total.to_be_bytes());
    Ok(bytes)
}

/// Lowers the numbers of pairs in the heads of maps, and returns the pairs to remove, in order.
fn replaced(bytes: &mut [u8], rules: &Rules, record: bool) -> Result<Vec<Range<usize>>, Malformed> {
    let mut removed = Vec::new();
    let mut heads: Vec<(usize, u32)> = Vec::new();
    let mut frames: Vec<Frame> = Vec::new();
    let mut cursor = Cursor::new(bytes);
    let mut text = Vec::new();
    loop {
        // A value.
        let at = cursor.position();
        let (left, is_map) = match cursor.token()? {
            Token::Map(pairs) => (pairs, true),
            Token::Array(values) => (values, false),
            _ => (0, false),
        };
        if left > 0 && frames.len() > MAX_DEPTH {
            // The encoder refuses what is nested as deep, unless it writes none of it.
            cursor = Cursor::at(bytes, at);
            cursor.value()?;
        } else if left > 0 {
            let map = is_map.then(|| Map {
                at,
                pairs: Vec::new(),
                last: HashMap::new(),
                replaced: 0,
            });
            frames.push(Frame { left, map });
        }
        // What follows it: the end of containers, and the next key.
        loop {
            let depth = frames.len();
            let Some(frame) = frames.last_mut() else {
                removed.sort_unstable_by_key(|range: &Range<usize>| range.start);
                for (at, replaced) in heads {
                    lower(&mut bytes[at..], replaced);
                }
                return Ok(removed);
            };
            if frame.left == 0 {
                if let Some(map) = frames.pop().and_then(|frame| frame.map)
                    && map.replaced > 0
                {
                    heads.push((map.at, map.replaced));
                }
                continue;
            }
            frame.left -= 1;
            let Some(map) = &mut frame.map else {
                break;
            };
            let at = cursor.position();
            let raw = cursor.value()?;
            let token = Cursor::new(raw).token()?;
            map.pairs.push(at);
            text.clear();
            rules.write(token, raw, &mut text);
            if !record || depth > 1 || rules.keeps(token, &text) {
                let ordinal = map.pairs.len() - 1;
                match map.last.get_mut(text.as_slice()) {
                    Some(earlier) => {
                        removed.push(map.pairs[*earlier]..map.pairs[*earlier + 1]);
                        map.replaced += 1;
                        *earlier = ordinal;
                    }
                    None => drop(map.last.insert(text.clone(), ordinal)),
                }
            }
            break;
        }
    }
}

/// Lowers the number of pairs in a map's head, whose length stays the same.
fn lower(map: &mut [u8], by: u32) {
    match map {
        [0xdf, a, b, c, d, ..] => {
            let pairs = u32::from_be_bytes([*a, *b, *c, *d]) - by;
            [*a, *b, *c, *d] = pairs.to_be_bytes();
        }
        [0xde, a, b, ..] => {
            let pairs = u32::from(u16::from_be_bytes([*a, *b])) - by;
            [*a, *b] = (pairs as u16).to_be_bytes();
        }
        [small, ..] => *small -= by as u8,
        [] => {}
    }
}
