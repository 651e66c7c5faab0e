//! One frame of the log, as bytes.

use libdeflater::Crc;

use super::Seq;
use crate::ids::Time;
use crate::ids::{ChunkId, chunk_id};

/// Bytes before a frame's payload.
pub(super) const HEADER: u64 = 64;
/// The version of the format that a segment's Begin frame names.
pub(super) const VERSION: u32 = 1;
/// Frames begin at multiples of this.
pub(super) const ALIGN: u64 = 8;
/// No number comes near this one; what has a greater one was not written by a spool.
const NUMBERS: Seq = 1 << 63;
/// Nor does a segment begin near this one: behind it there are numbers enough.
pub(super) const FIRSTS: Seq = 1 << 62;

/// What stands behind a segment's last frame where its file goes on, with what it held before. No frame begins
/// like that.
pub(super) const END: [u8; ALIGN as usize] = [0; ALIGN as usize];

/// What a frame begins with. Not text, so that logs about logs seldom look like it.
const MAGIC: [u8; 4] = [0xf5, b'S', b'p', 0x0a];
/// In a Begin frame's nanoseconds: the numbers before it are not all used.
const APART: u32 = 1 << 31;
/// Bytes of a Begin frame's payload before its window.
const BEGIN: usize = 16;
const ID: usize = size_of::<ChunkId>();

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A segment's first.
    Begin,
    /// A chunk: its tag and its bytes.
    Chunk,
    /// What became of chunks.
    Note,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) number: Seq,
    /// The spool it was written for: what other files left in a recycled block, or what somebody logs to
    /// look like a frame, has another one.
    pub(super) spool: u64,
    pub(super) tag_len: u32,
    pub(super) data_len: u32,
    /// When a chunk came. In a Begin frame its seconds are the number of the segment before, its nanoseconds the end of the
    /// generation of the manifest that lists it first, and whether numbers before it are unused.
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

    /// The header at the start of `bytes`, if there is one and its checksum is right.
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
        (number < NUMBERS).then_some(head)
    }

    /// Of a Begin frame: the segment that was the newest one before.
    pub(super) fn previous(&self) -> Option<Seq> {
        let previous = u64::try_from(self.arrived.seconds);
        previous.ok().filter(|previous| *previous > 0)
    }

    /// What a Begin frame says beside its data: the newest segment before (0: there is none), the generation of the
    /// manifest that lists it first, and whether it is right `behind` that segment, whose numbers are all used.
    pub(super) fn beginning(previous: Seq, generation: u64, behind: bool) -> Time {
        let apart = if behind { 0 } else { APART };
        Time {
            seconds: previous.cast_signed(),
            nanos: (generation as u32 & !APART) | apart,
        }
    }

    /// Of a Begin frame: whether the numbers before it are not all used.
    pub(super) fn is_apart(&self) -> bool {
        self.arrived.nanos & APART != 0
    }

    /// Of a Begin frame: the generation of the manifest that lists it first, if there is one (31 bits).
    pub(super) fn generation(&self) -> Option<u64> {
        let generation = self.arrived.nanos & !APART;
        (generation > 0).then_some(generation.into())
    }

    /// Bytes of tag and data.
    pub(super) fn payload(&self) -> u64 {
        u64::from(self.tag_len) + u64::from(self.data_len)
    }

    /// Bytes of the whole frame, with what aligns the next one.
    pub(super) fn length(&self) -> u64 {
        (HEADER + self.payload()).next_multiple_of(ALIGN)
    }

    /// Whether `payload` (tag, data) is what the frame was written with.
    pub(super) fn vouches_for(&self, payload: &[u8]) -> bool {
        let tag = (self.tag_len as usize).min(payload.len());
        let (tag, data) = payload.split_at(tag);
        data.len() == self.data_len as usize && chunk_id(tag, data) == self.id
    }
}

/// Zeros that stand behind a payload.
pub(super) fn padding(payload: u64) -> &'static [u8] {
    const ZEROS: [u8; ALIGN as usize] = [0; ALIGN as usize];
    let end = HEADER + payload;
    &ZEROS[..(end.next_multiple_of(ALIGN) - end) as usize]
}

/// The CRC-32 of some bytes that stand one behind the other.
pub(super) fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = Crc::new();
    for part in parts {
        crc.update(part);
    }
    crc.sum()
}

/// What a segment begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    /// Its file was another segment's before: what stands behind the last frame may be left of that.
    pub(super) reused: bool,
    /// Greater than every batch number before it.
    pub(super) next_batch: u64,
    /// The last chunks accepted before it, oldest first.
    pub(super) window: Vec<ChunkId>,
}

/// Why a Begin frame's payload is not usable, though it is undamaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OtherVersion(pub(super) u32);

impl Begin {
    /// Bytes of the whole frame with `ids` in its window.
    pub(super) fn length(ids: usize) -> u64 {
        HEADER + (BEGIN + ids * ID) as u64
    }

    pub(super) fn encode<'a>(
        reused: bool,
        next_batch: u64,
        window: impl ExactSizeIterator<Item = &'a ChunkId>,
    ) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BEGIN + window.len() * ID);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::from(reused).to_le_bytes());
        bytes.extend_from_slice(&next_batch.to_le_bytes());
        for id in window {
            bytes.extend_from_slice(id);
        }
        bytes
    }

    /// The format's version, from the beginning of a payload.
    pub(super) fn version(payload: &[u8]) -> u32 {
        Fields(payload).u32().unwrap_or(0)
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Begin, OtherVersion> {
        let version = Begin::version(payload);
        let mut fields = Fields(payload.get(size_of::<u32>()..).unwrap_or_default());
        if version != VERSION {
            return Err(OtherVersion(version));
        }
        Ok(Begin {
            reused: fields.u32().is_some_and(|reused| reused != 0),
            next_batch: fields.u64().unwrap_or(0),
            window: std::iter::from_fn(|| fields.take()).collect(),
        })
    }
}

/// Reads fixed-size fields, one after the other.
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

/// A segment's file name.
pub(super) fn segment_name(first: Seq) -> String {
    format!("{first:020}.seg")
}

/// The number in a segment's file name, if it is one.
pub(super) fn segment_first(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|first| *first < FIRSTS)
}

/// The name of a segment's file that waits to be written again.
pub(super) fn spare_name(first: Seq) -> String {
    format!("{first:020}.spare")
}

/// The name of a removed file until its blocks are freed, the n-th of a run: a spare's that no segment ever was. Every
/// version removes spares when it starts.
pub(super) fn removed_name(n: u64) -> String {
    spare_name((FIRSTS - 1).saturating_sub(n))
}

/// The name of what is to become a segment's file in place of one that was taken away.
pub(super) fn copy_name(first: Seq) -> String {
    format!("{first:020}.copy")
}

/// The segment that a file was to become, if it was to.
pub(super) fn copy_first(name: &str) -> Option<Seq> {
    let stem = name.strip_suffix(".copy")?;
    segment_first(&format!("{stem}.seg"))
}

/// Whether a file waits to be written again.
pub(super) fn is_spare(name: &str) -> bool {
    let stem = name.strip_suffix(".spare");
    stem.is_some_and(|stem| segment_first(&format!("{stem}.seg")).is_some())
}

/// The file that keeps room on the disk for notes.
pub(super) const RESERVE: &str = "reserve";

/// The file that says which chunk is being worked on (`suspects.rs`).
pub(super) const SUSPECTS: &str = "suspects";

/// The folder that damaged bytes are copied to.
pub(super) const QUARANTINE: &str = "quarantine/";

/// Where the damaged bytes at `offset` of a segment are copied to.
pub(super) fn quarantine_name(first: Seq, offset: u64) -> String {
    format!("{QUARANTINE}{first:020}-{offset}.bin")
}

/// Where a chunk's frame is copied to that is set aside. Not a segment's name, though under one it is a segment: among the
/// spool's own it would void what an older one has behind it.
pub(super) fn aside_name(chunk: Seq) -> String {
    format!("{QUARANTINE}chunk-{chunk:020}.bin")
}

/// The chunk in the name of a file that one was set aside in, if it is one.
pub(super) fn aside_chunk(name: &str) -> Option<Seq> {
    let stem = name
        .strip_prefix(QUARANTINE)?
        .strip_prefix("chunk-")?
        .strip_suffix(".bin")?;
    segment_first(&format!("{stem}.seg"))
}

/// Where a file goes that somebody put into a segment's place, the n-th of them.
pub(super) fn displaced_name(first: Seq, n: u32) -> String {
    format!("{QUARANTINE}{first:020}.{n}.seg")
}

/// The segment and the offset in the name of a file of damaged bytes, if it is one.
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
    fn a_header_says_what_was_written_and_no_flipped_bit_passes() {
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
    fn a_frame_fills_up_to_the_next_one() {
        for data_len in 0..20 {
            let head = Head { data_len, ..head() };
            let padded = HEADER + head.payload() + padding(head.payload()).len() as u64;
            assert_eq!(head.length(), padded);
            assert_eq!(padded % ALIGN, 0);
        }
    }

    #[test]
    fn a_payload_is_vouched_for_only_as_it_was() {
        let head = head();
        assert!(head.vouches_for(b"tagbytes"));
        for other in [&b"tagbytez"[..], b"tagbyte", b"tagbytess", b"ta", b""] {
            assert!(!head.vouches_for(other), "{other:?}");
        }
    }

    #[test]
    fn a_begin_frame_keeps_its_window_and_tells_another_version() {
        let window = [[1; 16], [2; 16], [1; 16]];
        for reused in [false, true] {
            let payload = Begin::encode(reused, 9, window.iter());
            assert_eq!(HEADER + payload.len() as u64, Begin::length(3));
            let begin = Begin::decode(&payload).unwrap();
            assert_eq!(
                (begin.reused, begin.next_batch, &begin.window[..]),
                (reused, 9, &window[..])
            );
        }
        let mut newer = Begin::encode(false, 9, window.iter());
        newer[0] = 2;
        assert_eq!(Begin::decode(&newer), Err(OtherVersion(2)));
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
        assert_eq!(quarantine_place(&aside_name(42)), None);
        assert_eq!(aside_chunk(&aside_name(42)), Some(42));
        assert_eq!(aside_chunk(&quarantine_name(42, 640)), None);
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
