//! Compression of whole bodies. The same input gives the same bytes, so that an object sent twice is
//! the same object.
//!
//! Of the gzip libraries that were tried each level has the one that takes the least time for its size:
//! zlib-rs, with more searching than its own fast level does, for 2 to 4, else libdeflate. zstd makes smaller
//! bodies in less time. All take their text in one go, so that what grows is compressed in blocks.

use std::cell::RefCell;
use std::fmt;

use libdeflater::CompressionLvl;
use zstd::zstd_safe::{CParameter, ParamSwitch};

use crate::buffers;
use zlib::Search;

#[allow(
    unsafe_code,
    reason = "zlib's own C interface; every line of it carries its proof"
)]
pub mod zlib;

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, level 1 to 12. Several members in a row read as one file.
    Gzip(u32),
    /// Zstandard, level -7 to 19. Several frames in a row read as one file.
    Zstd(i32),
}

/// As it is said in the log.
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
    /// The end of a file's name.
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
            Compression::Gzip(level) => GZIP.with_borrow_mut(|kept| {
                let Gzip { coder, room, .. } = match kept {
                    Some(kept) if kept.level == level => kept,
                    _ => kept.insert(Gzip::new(level)),
                };
                let bound = coder.bound(text.len());
                if room.len() < bound {
                    *room = vec![0; bound];
                }
                let len = coder.compress(text, room);
                room[..len.expect("the bound is enough for any text")].to_vec()
            }),
            Compression::Zstd(level) => ZSTD.with_borrow_mut(|kept| {
                let compressor = match kept {
                    Some((of, compressor)) if *of == level => compressor,
                    _ => &mut kept.insert((level, zstandard(level))).1,
                };
                let bound = zstd::zstd_safe::compress_bound(text.len());
                let mut out = buffers::take(bound);
                let len = compressor.compress_to_buffer(text, &mut out);
                let packed = out[..len.expect(IN_MEMORY)].to_vec();
                buffers::give(out);
                packed
            }),
        }
    }
}

const IN_MEMORY: &str = "the level was checked, and memory takes what is written";

thread_local! {
    // Their tables are as large as what they compress: making them anew would cost a tenth of the time.
    static GZIP: RefCell<Option<Gzip>> = const { RefCell::new(None) };
    static ZSTD: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) };
}

struct Gzip {
    level: u32,
    coder: Coder,
    /// Room for the largest body so far, were it not compressible. It is zeroed once, by the system: only
    /// what is written to takes memory.
    room: Vec<u8>,
}

impl Gzip {
    fn new(level: u32) -> Gzip {
        Gzip {
            level,
            coder: Coder::new(level),
            room: Vec::new(),
        }
    }
}

enum Coder {
    Zlib(zlib::Gzip),
    Libdeflate(libdeflater::Compressor),
}

impl Coder {
    fn new(level: u32) -> Coder {
        let zlib = |entered, enough, places| {
            let search = Search {
                entered,
                enough,
                places,
            };
            Coder::Zlib(zlib::Gzip::new(search).expect(IN_MEMORY))
        };
        match level {
            2 => zlib(8, 64, 4),
            3 => zlib(32, 258, 8),
            4 => zlib(64, 258, 16),
            _ => {
                let level = i32::try_from(level).ok().map(CompressionLvl::new);
                let level = level.and_then(Result::ok).unwrap_or_default();
                Coder::Libdeflate(libdeflater::Compressor::new(level))
            }
        }
    }

    fn bound(&mut self, text: usize) -> usize {
        match self {
            Coder::Zlib(gzip) => gzip.bound(text),
            Coder::Libdeflate(compressor) => compressor.gzip_compress_bound(text),
        }
    }

    fn compress(&mut self, text: &[u8], room: &mut [u8]) -> Option<usize> {
        match self {
            Coder::Zlib(gzip) => gzip.compress(text, room),
            Coder::Libdeflate(compressor) => compressor.gzip_compress(text, room).ok(),
        }
    }
}

fn zstandard(level: i32) -> zstd::bulk::Compressor<'static> {
    let mut compressor = zstd::bulk::Compressor::new(level).expect(IN_MEMORY);
    if level == 1 {
        // A quarter of the table that the level has, so that it stays in the nearest cache, and a longer step where
        // nothing matches. The step alone would also switch off the coding of what does not match, for a third more
        // bytes. On four kinds of logs all three took 17 to 29% less time, for 13% less to 2% more bytes.
        for parameter in [
            CParameter::HashLog(12),
            CParameter::TargetLength(2),
            CParameter::LiteralCompressionMode(ParamSwitch::Enable),
        ] {
            compressor.set_parameter(parameter).expect(IN_MEMORY);
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
    fn members_in_a_row_read_as_one_and_the_same_text_gives_the_same_bytes() {
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

    /// Log lines of some 400 kB.
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
    fn the_longer_step_of_zstds_level_1_leaves_nothing_uncoded_as_those_below_0_do() {
        let text = logs();
        let sizes = [1, -1].map(|level| Compression::Zstd(level).apply(text.as_bytes()).len());
        assert!(sizes[0] < sizes[1], "{sizes:?}");
    }

    proptest! {
        #[test]
        fn any_text_at_any_gzip_level_comes_back(
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
