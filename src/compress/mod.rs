//! Compression of whole bodies. It is deterministic, so that an object sent twice is the same object.
//!
//! Each gzip level uses the library that was fastest for its size: zlib-rs, with a deeper search than its own fast
//! level, for 2 to 4, libdeflate for the others. zstd makes smaller bodies in less time. All of them compress in one
//! shot; a body that grows is compressed in blocks.

use std::cell::RefCell;
use std::fmt;

use libdeflater::CompressionLvl;
use zstd::zstd_safe::{CParameter, ParamSwitch};

use crate::buffers;
use zlib::Search;

#[allow(
    unsafe_code,
    reason = "zlib's C interface; every unsafe line has a SAFETY comment"
)]
pub mod zlib;

/// The compression of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    None,
    /// gzip, level 1 to 12. Concatenated members read as one file.
    Gzip(u32),
    /// Zstandard, level -7 to 19. Concatenated frames read as one file.
    Zstd(i32),
}

/// The wording of the log.
impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("not compressed"),
            Compression::Gzip(level) => write!(f, "gzip level {level}"),
            Compression::Zstd(level) => write!(f, "zstd level {level}"),
        }
    }
}

impl Compression {
    /// The file name extension, with its dot.
    pub fn extension(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip(_) => ".gz",
            Compression::Zstd(_) => ".zst",
        }
    }

    /// The value of `Content-Encoding`.
    pub fn content_encoding(self) -> Option<&'static str> {
        match self {
            Compression::None => None,
            Compression::Gzip(_) => Some("gzip"),
            Compression::Zstd(_) => Some("zstd"),
        }
    }

    /// Compresses `text` into one member or frame.
    pub fn apply(self, text: &[u8]) -> Vec<u8> {
        match self {
            Compression::None => text.to_vec(),
            Compression::Gzip(level) => GZIP.with_borrow_mut(|cached| {
                let Gzip {
                    encoder, scratch, ..
                } = match cached {
                    Some(cached) if cached.level == level => cached,
                    _ => cached.insert(Gzip::new(level)),
                };
                let bound = encoder.bound(text.len());
                if scratch.len() < bound {
                    *scratch = vec![0; bound];
                }
                let len = encoder.compress(text, scratch);
                scratch[..len.expect("the bound is enough for any text")].to_vec()
            }),
            Compression::Zstd(level) => ZSTD.with_borrow_mut(|cached| {
                let compressor = match cached {
                    Some((of, compressor)) if *of == level => compressor,
                    _ => &mut cached.insert((level, zstd_compressor(level))).1,
                };
                let bound = zstd::zstd_safe::compress_bound(text.len());
                let mut out = buffers::take(bound);
                let len = compressor.compress_to_buffer(text, &mut out);
                let compressed = out[..len.expect(INFALLIBLE)].to_vec();
                buffers::give(out);
                compressed
            }),
        }
    }
}

impl Compression {
    /// Decompresses one member or frame of `len` bytes of text. `None`: it is not one.
    pub fn undo(self, packed: &[u8], len: usize) -> Option<Vec<u8>> {
        match self {
            Compression::None => Some(packed.to_vec()),
            Compression::Gzip(_) => {
                let mut text = vec![0; len];
                let mut decompressor = libdeflater::Decompressor::new();
                let read = decompressor.gzip_decompress(packed, &mut text).ok()?;
                (read == len).then_some(text)
            }
            Compression::Zstd(_) => zstd::bulk::decompress(packed, len).ok(),
        }
    }
}

/// Whether a level of gzip can be compressed in parts of one member.
pub fn has_parts(level: u32) -> bool {
    search(level).is_some()
}

/// Compresses `text` into a part of a gzip member: deflate blocks behind which others may follow.
pub fn part(level: u32, text: &[u8]) -> Vec<u8> {
    PART.with_borrow_mut(|cached| {
        let (_, gzip) = match cached {
            Some(cached) if cached.0 == level => cached,
            _ => {
                let search = search(level).expect("a level with parts");
                cached.insert((level, zlib::Gzip::of_parts(search).expect(INFALLIBLE)))
            }
        };
        let bound = gzip.bound(text.len());
        let mut out = buffers::take(bound);
        out.resize(bound, 0);
        let len = gzip
            .compress(text, &mut out)
            .expect("the bound is enough for any text");
        let part = out[..len].to_vec();
        buffers::give(out);
        part
    })
}

/// Decompresses a part of a gzip member of `len` bytes of text. `None`: it is none.
pub fn undo_part(part: &[u8], len: usize) -> Option<Vec<u8>> {
    let whole = [part, &LAST_BLOCK].concat();
    let mut text = vec![0; len];
    let read = libdeflater::Decompressor::new().deflate_decompress(&whole, &mut text);
    (read.ok()? == len).then_some(text)
}

/// What a gzip member begins with: no name, no time, an unknown system.
pub const MEMBER_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// A last block without any bytes.
pub const LAST_BLOCK: [u8; 2] = [3, 0];

/// Returns the depth of zlib's search at a level of gzip. `None`: another library compresses it.
fn search(level: u32) -> Option<Search> {
    let (max_lazy, nice_length, max_chain) = match level {
        2 => (8, 64, 4),
        3 => (32, 258, 8),
        4 => (64, 258, 16),
        _ => return None,
    };
    Some(Search {
        max_lazy,
        nice_length,
        max_chain,
    })
}

const INFALLIBLE: &str = "the level is valid, and writing to memory does not fail";

thread_local! {
    // Their tables are as large as their input: allocating them for each body would cost a tenth of the time.
    static PART: RefCell<Option<(u32, zlib::Gzip)>> = const { RefCell::new(None) };
    static GZIP: RefCell<Option<Gzip>> = const { RefCell::new(None) };
    static ZSTD: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) };
}

struct Gzip {
    level: u32,
    encoder: GzipEncoder,
    /// The output buffer, as large as the bound of the largest body so far. The system zeroes it lazily: only pages
    /// that are written to take memory.
    scratch: Vec<u8>,
}

impl Gzip {
    fn new(level: u32) -> Gzip {
        Gzip {
            level,
            encoder: GzipEncoder::new(level),
            scratch: Vec::new(),
        }
    }
}

enum GzipEncoder {
    Zlib(zlib::Gzip),
    Libdeflate(libdeflater::Compressor),
}

impl GzipEncoder {
    fn new(level: u32) -> GzipEncoder {
        if let Some(search) = search(level) {
            return GzipEncoder::Zlib(zlib::Gzip::new(search).expect(INFALLIBLE));
        }
        let level = i32::try_from(level).ok().map(CompressionLvl::new);
        let level = level.and_then(Result::ok).unwrap_or_default();
        GzipEncoder::Libdeflate(libdeflater::Compressor::new(level))
    }

    fn bound(&mut self, text: usize) -> usize {
        match self {
            GzipEncoder::Zlib(gzip) => gzip.bound(text),
            GzipEncoder::Libdeflate(compressor) => compressor.gzip_compress_bound(text),
        }
    }

    fn compress(&mut self, text: &[u8], out: &mut [u8]) -> Option<usize> {
        match self {
            GzipEncoder::Zlib(gzip) => gzip.compress(text, out),
            GzipEncoder::Libdeflate(compressor) => compressor.gzip_compress(text, out).ok(),
        }
    }
}

fn zstd_compressor(level: i32) -> zstd::bulk::Compressor<'static> {
    let mut compressor = zstd::bulk::Compressor::new(level).expect(INFALLIBLE);
    if level == 1 {
        // A hash table a quarter of the level's size, which fits the L1 cache, and a longer step where nothing
        // matches. The step alone would also disable the compression of literals, for a third more bytes. On four
        // kinds of logs the three together took 17 to 29% less time, for 13% less to 2% more bytes.
        for parameter in [
            CParameter::HashLog(12),
            CParameter::TargetLength(2),
            CParameter::LiteralCompressionMode(ParamSwitch::Enable),
        ] {
            compressor.set_parameter(parameter).expect(INFALLIBLE);
        }
    }
    compressor
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use std::io::Read as _;

    #[test]
    fn concatenated_members_read_as_one_and_the_same_text_gives_the_same_bytes() {
        let text = "{\"message\":\"회원\"}\n".repeat(1_000);
        for compression in [
            Compression::Gzip(1),
            Compression::Gzip(2),
            Compression::Gzip(12),
            Compression::Zstd(-7),
            Compression::Zstd(1),
            Compression::Zstd(19),
        ] {
            let member = compression.apply(text.as_bytes());
            assert!(member.len() < text.len() / 10, "{compression:?}");
            assert_eq!(
                member,
                compression.apply(text.as_bytes()),
                "{compression:?}"
            );
            let two = [member.clone(), member].concat();
            let mut back = String::new();
            match compression {
                Compression::Zstd(_) => zstd::stream::read::Decoder::new(&two[..])
                    .unwrap()
                    .read_to_string(&mut back),
                _ => flate2::read::MultiGzDecoder::new(&two[..]).read_to_string(&mut back),
            }
            .unwrap();
            assert_eq!(back, text.repeat(2), "{compression:?}");
        }
    }

    /// About 400 kB of log lines.
    fn logs() -> String {
        let mut random = StdRng::seed_from_u64(1);
        let mut text = String::new();
        for line in 0..4_000 {
            let path = ["/api/v1/orders", "/api/v1/sessions/current", "/health"]
                [random.random_range(0..3)];
            let (user, bytes) = (random.random_range(0..400), random.random_range(0..100_000));
            let [a, b, c] = [(); 3].map(|()| random.random::<u8>());
            text += &format!(
                "{{\"seq\":{line},\"path\":\"{path}/{user}\",\"status\":{},\"bytes\":{bytes},\"remote\":\"10.{a}.{b}.{c}\"}}\n",
                [200, 200, 304, 404, 503][random.random_range(0..5)],
            );
        }
        text
    }

    #[test]
    fn each_gzip_level_up_to_6_makes_smaller_bodies_of_logs_than_the_one_below() {
        let text = logs();
        let sizes: Vec<usize> = (1..=6)
            .map(|level| Compression::Gzip(level).apply(text.as_bytes()).len())
            .collect();
        assert!(
            sizes.is_sorted_by(|larger, smaller| larger > smaller),
            "{sizes:?}"
        );
    }

    #[test]
    fn zstd_level_1_compresses_literals_which_the_levels_below_0_do_not() {
        let text = logs();
        let sizes = [1, -1].map(|level| Compression::Zstd(level).apply(text.as_bytes()).len());
        assert!(sizes[0] < sizes[1], "{sizes:?}");
    }

    proptest! {
        #[test]
        fn any_text_at_any_gzip_level_round_trips(
            pieces in vec((vec(any::<u8>(), 0..40), 1..400_usize), 0..12),
            level in 1..=12_u32,
        ) {
            let text: Vec<u8> = pieces.iter().flat_map(|(piece, times)| piece.repeat(*times)).collect();
            let member = Compression::Gzip(level).apply(&text);
            let mut back = vec![0; text.len()];
            let len = libdeflater::Decompressor::new().gzip_decompress(&member, &mut back);
            prop_assert_eq!(len, Ok(text.len()));
            prop_assert_eq!(back, text);
        }
    }
}
