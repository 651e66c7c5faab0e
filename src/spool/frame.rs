//! The byte format of frames, and the file names.

use libdeflater::Crc;

use super::Seq;
use crate::ids::Time;
use crate::ids::{ChunkId, chunk_id};

/// The length of a frame's header, in bytes.
pub(super) const HEADER: u64 = 64;
/// The format version of a segment without relocated chunks, which every version of Ferry reads.
pub(super) const PLAIN_VERSION: u32 = 1;
/// The newest format version that this program reads: that of a segment that may hold relocated chunks.
pub(super) const VERSION: u32 = 2;
/// The alignment of frames, in bytes.
pub(super) const ALIGN: u64 = 8;
/// The exclusive upper bound of frame numbers, never reached in practice: a spool writes none at or above it.
const NUMBER_LIMIT: Seq = 1 << 63;
/// The exclusive upper bound of a segment's first number, which leaves enough numbers for its frames.
pub(super) const FIRST_LIMIT: Seq = 1 << 62;

/// The marker after the last frame of a segment whose file continues with former contents. No frame starts with it.
pub(super) const END: [u8; ALIGN as usize] = [0; ALIGN as usize];

/// The first bytes of a frame. Not text, so that they rarely occur in logs.
const MAGIC: [u8; 4] = [0xf5, b'S', b'p', 0x0a];
/// The bit in a Begin frame's nanoseconds for unused numbers before it.
const GAP: u32 = 1 << 31;
/// The length of a Begin frame's payload before its window, in bytes.
const BEGIN: usize = 16;
const ID: usize = size_of::<ChunkId>();

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first frame of a segment.
    Begin,
    /// A chunk's tag and data.
    Chunk,
    /// A note on the fate of chunks.
    Note,
    /// A chunk of events of older chunks, which are settled there by this frame.
    Relocated,
}

impl Kind {
    /// Whether the frame is a chunk that is to be delivered.
    pub(super) fn is_chunk(self) -> bool {
        matches!(self, Kind::Chunk | Kind::Relocated)
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) number: Seq,
    /// The id of the spool. Distinguishes frames from the contents of recycled disk blocks and from crafted log data.
    pub(super) spool: u64,
    pub(super) tag_len: u32,
    pub(super) data_len: u32,
    /// A chunk's time of arrival. In a Begin frame the seconds are the number of the previous segment; the nanoseconds are
    /// the low 31 bits of the generation of the first manifest that lists it, and the [`GAP`] bit.
    pub(super) arrived: Time,
    /// `chunk_id` of tag and data: identity and checksum in one.
    pub(super) id: ChunkId,
}

impl Head {
    pub(super) fn encode(&self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&MAGIC);
        put(&[0; 4]);
        let kind = match self.kind {
            Kind::Begin => 0u32,
            Kind::Chunk => 1,
            Kind::Note => 2,
            Kind::Relocated => 3,
        };
        put(&kind.to_le_bytes());
        put(&self.tag_len.to_le_bytes());
        put(&self.data_len.to_le_bytes());
        put(&self.arrived.nanos.to_le_bytes());
        put(&self.number.to_le_bytes());
        put(&self.arrived.seconds.to_le_bytes());
        put(&self.spool.to_le_bytes());
        put(&self.id);
        let crc = crc(&[&bytes[8..]]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, if there is a valid one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Head> {
        let bytes = bytes.get(..HEADER as usize)?;
        if bytes[..4] != MAGIC {
            return None;
        }
        let mut fields = Fields(&bytes[4..]);
        if fields.u32()? != crc(&[&bytes[8..]]) {
            return None;
        }
        let kind = match fields.u32()? {
            0 => Kind::Begin,
            1 => Kind::Chunk,
            2 => Kind::Note,
            3 => Kind::Relocated,
            _ => return None,
        };
        let (tag_len, data_len, nanos) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let number = fields.u64()?;
        let seconds = i64::from_le_bytes(fields.take()?);
        let head = Head {
            kind,
            number,
            spool: fields.u64()?,
            tag_len,
            data_len,
            arrived: Time { seconds, nanos },
            id: fields.take()?,
        };
        (number < NUMBER_LIMIT).then_some(head)
    }

    /// Of a Begin frame: the previous segment, if there was one.
    pub(super) fn previous(&self) -> Option<Seq> {
        let previous = u64::try_from(self.arrived.seconds);
        previous.ok().filter(|previous| *previous > 0)
    }

    /// Encodes a Begin frame's header fields: the previous segment (0: none), the generation of the first manifest that
    /// lists the new one, and whether its numbers are `contiguous` with those of the previous segment.
    pub(super) fn begin_fields(previous: Seq, generation: u64, contiguous: bool) -> Time {
        let gap = if contiguous { 0 } else { GAP };
        Time {
            seconds: previous.cast_signed(),
            nanos: (generation as u32 & !GAP) | gap,
        }
    }

    /// Of a Begin frame: whether some numbers before it are unused.
    pub(super) fn follows_gap(&self) -> bool {
        self.arrived.nanos & GAP != 0
    }

    /// Of a Begin frame: the generation of the first manifest that lists it (low 31 bits), if known.
    pub(super) fn generation(&self) -> Option<u64> {
        let generation = self.arrived.nanos & !GAP;
        (generation > 0).then_some(generation.into())
    }

    /// The length of tag and data, in bytes.
    pub(super) fn payload(&self) -> u64 {
        u64::from(self.tag_len) + u64::from(self.data_len)
    }

    /// The length of the whole frame with its padding, in bytes.
    pub(super) fn length(&self) -> u64 {
        (HEADER + self.payload()).next_multiple_of(ALIGN)
    }

    /// Whether `payload` (tag and data) has the length and id in this header.
    pub(super) fn matches(&self, payload: &[u8]) -> bool {
        let tag = (self.tag_len as usize).min(payload.len());
        let (tag, data) = payload.split_at(tag);
        data.len() == self.data_len as usize && chunk_id(tag, data) == self.id
    }
}

/// The zeros after a payload of this length.
pub(super) fn padding(payload: u64) -> &'static [u8] {
    const ZEROS: [u8; ALIGN as usize] = [0; ALIGN as usize];
    let end = HEADER + payload;
    &ZEROS[..(end.next_multiple_of(ALIGN) - end) as usize]
}

/// The CRC-32 of the concatenated parts.
pub(super) fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = Crc::new();
    for part in parts {
        crc.update(part);
    }
    crc.sum()
}

/// The payload of a Begin frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    /// The format version.
    pub(super) version: u32,
    /// The file was another segment's before: bytes after the last frame may be left from that.
    pub(super) reused: bool,
    /// Greater than every earlier batch number.
    pub(super) next_batch: u64,
    /// The ids of the chunks accepted last, oldest first.
    pub(super) window: Vec<ChunkId>,
}

/// Whether this program reads segments of a format version.
pub(super) fn is_read(version: u32) -> bool {
    (PLAIN_VERSION..=VERSION).contains(&version)
}

/// The error for an undamaged Begin frame of another format version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OtherVersion(pub(super) u32);

impl Begin {
    /// The length of the whole frame with `ids` ids in its window, in bytes.
    pub(super) fn length(ids: usize) -> u64 {
        HEADER + (BEGIN + ids * ID) as u64
    }

    pub(super) fn encode<'a>(
        version: u32,
        reused: bool,
        next_batch: u64,
        window: impl ExactSizeIterator<Item = &'a ChunkId>,
    ) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BEGIN + window.len() * ID);
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&u32::from(reused).to_le_bytes());
        bytes.extend_from_slice(&next_batch.to_le_bytes());
        for id in window {
            bytes.extend_from_slice(id);
        }
        bytes
    }

    /// The format version at the start of a payload.
    pub(super) fn version(payload: &[u8]) -> u32 {
        Fields(payload).u32().unwrap_or(0)
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Begin, OtherVersion> {
        let version = Begin::version(payload);
        let mut fields = Fields(payload.get(size_of::<u32>()..).unwrap_or_default());
        if !is_read(version) {
            return Err(OtherVersion(version));
        }
        Ok(Begin {
            version,
            reused: fields.u32().is_some_and(|reused| reused != 0),
            next_batch: fields.u64().unwrap_or(0),
            window: std::iter::from_fn(|| fields.take()).collect(),
        })
    }
}

/// A reader of consecutive fixed-size fields.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// The name of a segment's file.
pub(super) fn segment_name(first: Seq) -> String {
    format!("{first:020}.seg")
}

/// The number in a segment's file name, if it is one.
pub(super) fn segment_first(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|first| *first < FIRST_LIMIT)
}

/// The name of a spare.
pub(super) fn spare_name(first: Seq) -> String {
    format!("{first:020}.spare")
}

/// The name of a run's n-th removed file until its blocks are freed: that of a spare of an impossible segment, since every
/// version removes spares at open.
pub(super) fn removed_name(n: u64) -> String {
    spare_name((FIRST_LIMIT - 1).saturating_sub(n))
}

/// The name of a copy that is to replace a segment's missing file.
pub(super) fn copy_name(first: Seq) -> String {
    format!("{first:020}.copy")
}

/// The segment in a copy's file name, if it is one.
pub(super) fn copy_first(name: &str) -> Option<Seq> {
    let stem = name.strip_suffix(".copy")?;
    segment_first(&format!("{stem}.seg"))
}

/// Whether this is the name of a spare.
pub(super) fn is_spare(name: &str) -> bool {
    let stem = name.strip_suffix(".spare");
    stem.is_some_and(|stem| segment_first(&format!("{stem}.seg")).is_some())
}

/// The file that reserves disk space for notes.
pub(super) const RESERVE: &str = "reserve";

/// The file that records which chunk is being worked on (`suspects.rs`).
pub(super) const SUSPECTS: &str = "suspects";

/// The folder that damaged bytes are copied to.
pub(super) const QUARANTINE: &str = "quarantine/";

/// The name of the copy of damaged bytes at `offset` of a segment.
pub(super) fn quarantine_name(first: Seq, offset: u64) -> String {
    format!("{QUARANTINE}{first:020}-{offset}.bin")
}

/// The name of the copy of a frame that is set aside. Not a segment's name, although the frame alone is a valid segment: in
/// the spool's folder it would void frames of older segments.
pub(super) fn set_aside_name(chunk: Seq) -> String {
    format!("{QUARANTINE}chunk-{chunk:020}.bin")
}

/// The chunk in the name of such a copy, if it is one.
pub(super) fn set_aside_chunk(name: &str) -> Option<Seq> {
    let stem = name
        .strip_prefix(QUARANTINE)?
        .strip_prefix("chunk-")?
        .strip_suffix(".bin")?;
    segment_first(&format!("{stem}.seg"))
}

/// The name of the n-th file moved away from a segment's name.
pub(super) fn displaced_name(first: Seq, n: u32) -> String {
    format!("{QUARANTINE}{first:020}.{n}.seg")
}

/// The segment and the offset in the name of a copy of damaged bytes, if it is one.
pub(super) fn quarantine_place(name: &str) -> Option<(Seq, u64)> {
    let place = name.strip_prefix(QUARANTINE)?.strip_suffix(".bin")?;
    let (first, offset) = place.split_once('-')?;
    let first = segment_first(&format!("{first}.seg"))?;
    Some((first, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            kind: Kind::Chunk,
            number: 7,
            spool: 0x0102_0304_0506_0708,
            tag_len: 3,
            data_len: 5,
            arrived: Time {
                seconds: -1,
                nanos: 999_999_999,
            },
            id: chunk_id(b"tag", b"bytes"),
        }
    }

    #[test]
    fn a_header_survives_a_round_trip_and_a_flipped_bit_is_detected() {
        let head = head();
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Some(head));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&flipped), None, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(Head::decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_frame_is_padded_up_to_the_next_one() {
        for data_len in 0..20 {
            let head = Head { data_len, ..head() };
            let padded = HEADER + head.payload() + padding(head.payload()).len() as u64;
            assert_eq!(head.length(), padded);
            assert_eq!(padded % ALIGN, 0);
        }
    }

    #[test]
    fn a_header_matches_only_its_own_payload() {
        let head = head();
        assert!(head.matches(b"tagbytes"));
        for other in [&b"tagbytez"[..], b"tagbyte", b"tagbytess", b"ta", b""] {
            assert!(!head.matches(other), "{other:?}");
        }
    }

    #[test]
    fn a_begin_frame_keeps_its_window_and_rejects_another_version() {
        let window = [[1; 16], [2; 16], [1; 16]];
        for (version, reused) in [
            (PLAIN_VERSION, false),
            (PLAIN_VERSION, true),
            (VERSION, false),
        ] {
            let payload = Begin::encode(version, reused, 9, window.iter());
            assert_eq!(HEADER + payload.len() as u64, Begin::length(3));
            let begin = Begin::decode(&payload).unwrap();
            assert_eq!(
                (
                    begin.version,
                    begin.reused,
                    begin.next_batch,
                    &begin.window[..]
                ),
                (version, reused, 9, &window[..])
            );
        }
        for other in [0, VERSION + 1, u32::MAX] {
            let payload = Begin::encode(other, false, 9, window.iter());
            assert_eq!(Begin::decode(&payload), Err(OtherVersion(other)));
        }
    }

    #[test]
    fn only_a_segment_has_a_segments_name() {
        assert_eq!(segment_first(&segment_name(42)), Some(42));
        for name in [
            "lock",
            "42.seg",
            "00000000000000000042.seg.bak",
            "+0000000000000000042.seg",
            "18446744073709551615.seg",
            "99999999999999999999.seg",
            "quarantine/00000000000000000042.seg",
        ] {
            assert_eq!(segment_first(name), None, "{name}");
            assert!(!is_spare(name), "{name}");
        }
        assert!(is_spare(&spare_name(42)));
        assert!(is_spare(&removed_name(0)) && is_spare(&removed_name(7)));
        assert_ne!(removed_name(0), removed_name(1));
        assert!(!is_spare(&segment_name(42)));
        assert_eq!(segment_first(&spare_name(42)), None);
        assert_eq!(copy_first(&copy_name(42)), Some(42));
        assert_eq!(copy_first(&segment_name(42)), None);
        assert_eq!(segment_first(&copy_name(42)), None);
        assert_eq!(quarantine_place(&displaced_name(42, 1)), None);
        assert_eq!(quarantine_place(&set_aside_name(42)), None);
        assert_eq!(set_aside_chunk(&set_aside_name(42)), Some(42));
        assert_eq!(set_aside_chunk(&quarantine_name(42, 640)), None);
        assert_eq!(quarantine_place(&quarantine_name(42, 640)), Some((42, 640)));
        for name in [
            "quarantine/42-640.bin",
            "quarantine/00000000000000000042.bin",
            "quarantine/00000000000000000042--1.bin",
            "00000000000000000042-640.bin",
        ] {
            assert_eq!(quarantine_place(name), None, "{name}");
        }
    }
}
