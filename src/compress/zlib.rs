//! zlib's C interface: the only one that exposes `deflateTune`. This module depends on no other of this crate.

use std::ffi::{c_int, c_uint};

use libz_rs_sys::{
    Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH, Z_OK, Z_STREAM_END, Z_SYNC_FLUSH, crc32_combine64,
};
use libz_rs_sys::{
    deflate, deflateBound, deflateEnd, deflateInit2_, deflateReset, deflateTune, z_stream,
    zlibVersion,
};

/// zlib's greedy search, which takes the first match. (In zlib-rs level 1 tries one candidate only, and level 3
/// uses a slower search for better matches.)
const FAST: c_int = 2;
/// `windowBits`: the largest window (15), with gzip's header and trailer instead of zlib's (16).
const GZIP: c_int = 15 + 16;
/// The largest window, without any header and trailer.
const RAW: c_int = -15;
/// `memLevel`: the largest symbol buffer, and so the fewest blocks with a Huffman code each.
const LARGEST: c_int = 9;

/// `good_length`: once a match of this length is found, only a quarter of the chain is searched. The greedy search
/// starts at length 2, so that 3 searches the whole chain.
const WHOLE_CHAIN: c_int = 3;

/// The depth of the search for matches. See `deflateTune`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// The longest match, in bytes, of which every byte is added to the hash table.
    pub max_lazy: u16,
    /// The length, in bytes, of a match that ends the search.
    pub nice_length: u16,
    /// The number of candidates to try.
    pub max_chain: u16,
}

/// Returns the CRC-32 of a text from those of its two halves; the second has `len` bytes.
pub fn combine(first: u32, second: u32, len: u32) -> u32 {
    let combined = crc32_combine64(first.into(), second.into(), len.into());
    u32::try_from(combined).expect("a CRC-32 has 32 bits")
}

/// Compresses into gzip members, or into parts of one.
pub struct Gzip {
    /// Boxed, since zlib rejects a stream that was moved. It is reset after each member: `deflateBound` after a
    /// member's end would not count gzip's header.
    stream: Box<z_stream>,
    search: Search,
    /// How the last bytes are asked for, and what says that they were written.
    flush: (c_int, c_int),
}

impl Gzip {
    /// Allocates a stream, about 300 KiB. Returns `None` without memory.
    pub fn new(search: Search) -> Option<Gzip> {
        Gzip::with(search, GZIP, (Z_FINISH, Z_STREAM_END))
    }

    /// Allocates a stream for parts of a member: deflate blocks that end at a byte, of which none is the last one. Each is
    /// compressed by itself. `None` without memory.
    pub fn of_parts(search: Search) -> Option<Gzip> {
        Gzip::with(search, RAW, (Z_SYNC_FLUSH, Z_OK))
    }

    fn with(search: Search, window: c_int, flush: (c_int, c_int)) -> Option<Gzip> {
        let mut stream = Box::<z_stream>::default();
        let size = size_of::<z_stream>() as c_int;
        // SAFETY: the stream is exclusively ours, and its null allocator selects the library's own; the version and
        // the size are those of the linked library.
        let result = unsafe {
            deflateInit2_(
                &mut *stream,
                FAST,
                Z_DEFLATED,
                window,
                LARGEST,
                Z_DEFAULT_STRATEGY,
                zlibVersion(),
                size,
            )
        };
        if result != Z_OK {
            return None;
        }
        let mut gzip = Gzip {
            stream,
            search,
            flush,
        };
        gzip.reset();
        Some(gzip)
    }

    fn reset(&mut self) {
        // SAFETY: the stream was initialized in `new`.
        unsafe { deflateReset(&mut *self.stream) };
        let Search {
            max_lazy,
            nice_length,
            max_chain,
        } = self.search;
        // `deflateReset` undoes an earlier tuning.
        // SAFETY: the stream was initialized in `new`.
        unsafe {
            deflateTune(
                &mut *self.stream,
                WHOLE_CHAIN,
                max_lazy.into(),
                nice_length.into(),
                max_chain.into(),
            )
        };
    }

    /// The largest size of a member that holds `text` bytes.
    pub fn bound(&mut self, text: usize) -> usize {
        // SAFETY: the stream was initialized in `new`.
        let bound = unsafe { deflateBound(&mut *self.stream, text as _) };
        // A flush ends with an empty block.
        bound as usize + 16
    }

    /// Compresses `text` into one member at the start of `out`, and returns its length. Returns `None` where it does
    /// not fit, or `text` is longer than 4 GiB.
    pub fn compress(&mut self, text: &[u8], out: &mut [u8]) -> Option<usize> {
        let length = c_uint::try_from(text.len()).ok()?;
        self.stream.next_in = text.as_ptr();
        self.stream.avail_in = length;
        self.stream.next_out = out.as_mut_ptr();
        let available = c_uint::try_from(out.len()).unwrap_or(c_uint::MAX);
        self.stream.avail_out = available;
        // SAFETY: the stream was initialized in `new`; its pointers and lengths are those of `text` and of
        // `out`, which are borrowed for this call.
        let result = unsafe { deflate(&mut *self.stream, self.flush.0) };
        // With room left, everything was written.
        let whole =
            self.stream.avail_in == 0 && (self.stream.avail_out > 0 || result == Z_STREAM_END);
        let written = available - self.stream.avail_out;
        // No pointer outlives the borrows.
        self.stream.next_in = std::ptr::null();
        self.stream.avail_in = 0;
        self.stream.next_out = std::ptr::null_mut();
        self.stream.avail_out = 0;
        self.reset();
        (result == self.flush.1 && whole).then_some(written as usize)
    }
}

impl Drop for Gzip {
    fn drop(&mut self) {
        // SAFETY: the stream was initialized in `new`, and is not used again.
        unsafe { deflateEnd(&mut *self.stream) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEARCH: Search = Search {
        max_lazy: 8,
        nice_length: 64,
        max_chain: 4,
    };

    fn unpack(member: &[u8], text: usize) -> Vec<u8> {
        let mut back = vec![0; text];
        let len = libdeflater::Decompressor::new().gzip_decompress(member, &mut back);
        assert_eq!(len, Ok(text));
        back
    }

    #[test]
    fn a_member_does_not_depend_on_what_was_compressed_before() {
        let mut gzip = Gzip::new(SEARCH).unwrap();
        let texts: [&[u8]; 4] = [b"", b"a", &[7; 40_000], b"{\"a\":1}\n{\"a\":2}\n"];
        let mut alone = Vec::new();
        for text in texts.iter().chain(&texts) {
            let mut room = vec![0; gzip.bound(text.len())];
            let len = gzip.compress(text, &mut room).unwrap();
            assert_eq!(unpack(&room[..len], text.len()), *text);
            alone.push(room[..len].to_vec());
        }
        assert_eq!(alone[..4], alone[4..]);
    }

    #[test]
    fn a_text_that_does_not_fit_is_refused_and_leaves_the_next_one_unaffected() {
        let mut gzip = Gzip::new(SEARCH).unwrap();
        // No two of these four-byte words are alike.
        let text: Vec<u8> = (0..5_000_u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        for room in [0, 1, 17, 1_000, text.len() / 2] {
            assert_eq!(gzip.compress(&text, &mut vec![0; room]), None, "{room}");
        }
        let mut room = vec![0; gzip.bound(text.len())];
        let len = gzip.compress(&text, &mut room).unwrap();
        assert_eq!(unpack(&room[..len], text.len()), text);
    }
}
