//! zlib's own C interface, which alone can say how far a match is looked for. Imports nothing of ours, and is
//! the one part of `ffi` that others import.

use std::ffi::{c_int, c_uint};

use libz_rs_sys::{Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH, Z_OK, Z_STREAM_END};
use libz_rs_sys::{
    deflate, deflateBound, deflateEnd, deflateInit2_, deflateReset, deflateTune, z_stream,
    zlibVersion,
};

/// zlib's fast search: the first match that is found is taken. (In this zlib level 1 looks at one place only,
/// and level 3 looks for better matches in a slower way.)
const FAST: c_int = 2;
/// The largest window, and gzip's header and trailer instead of zlib's.
const GZIP: c_int = 15 + 16;
/// The most memory for symbols: the fewest blocks, each with a code of its own.
const LARGEST: c_int = 9;

/// Where a match of so many bytes is known already, only a quarter of the places is looked at. The fast search
/// begins with what counts as 2.
const ALL_PLACES: c_int = 3;

/// How far a match is looked for, in bytes and in places. See `deflateTune`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// Longer matches are not entered at each of their bytes.
    pub entered: u16,
    /// A match as long as this is good enough.
    pub enough: u16,
    /// Places that are looked at.
    pub places: u16,
}

/// Makes gzip members.
pub struct Gzip {
    /// Boxed: zlib refuses a stream that was moved. Between two calls it is ready for a new member, since a
    /// bound that is asked for behind a member's end leaves gzip's header out.
    stream: Box<z_stream>,
    search: Search,
}

impl Gzip {
    /// Its tables, some 300 KiB. `None`: there is no memory.
    pub fn new(search: Search) -> Option<Gzip> {
        let mut stream = Box::<z_stream>::default();
        let size = size_of::<z_stream>() as c_int;
        // SAFETY: the stream is ours alone, and its allocator is null, which stands for the library's own;
        // the version and the size are those of the library that is linked.
        let result = unsafe {
            deflateInit2_(
                &mut *stream,
                FAST,
                Z_DEFLATED,
                GZIP,
                LARGEST,
                Z_DEFAULT_STRATEGY,
                zlibVersion(),
                size,
            )
        };
        if result != Z_OK {
            return None;
        }
        let mut gzip = Gzip { stream, search };
        gzip.make_ready();
        Some(gzip)
    }

    fn make_ready(&mut self) {
        // SAFETY: the stream was initialized in `new`.
        unsafe { deflateReset(&mut *self.stream) };
        let Search {
            entered,
            enough,
            places,
        } = self.search;
        // Resetting has undone an earlier tuning.
        // SAFETY: the stream was initialized in `new`.
        unsafe {
            deflateTune(
                &mut *self.stream,
                ALL_PLACES,
                entered.into(),
                enough.into(),
                places.into(),
            )
        };
    }

    /// What a member of so many bytes takes at most.
    pub fn bound(&mut self, text: usize) -> usize {
        // SAFETY: the stream was initialized in `new`.
        let bound = unsafe { deflateBound(&mut *self.stream, text as _) };
        bound as usize
    }

    /// Compresses `text` into one member at the beginning of `room`, and gives its length. `None`: it does
    /// not fit, or the text has more than 4 GiB.
    pub fn compress(&mut self, text: &[u8], room: &mut [u8]) -> Option<usize> {
        let length = c_uint::try_from(text.len()).ok()?;
        self.stream.next_in = text.as_ptr();
        self.stream.avail_in = length;
        self.stream.next_out = room.as_mut_ptr();
        // A larger room is not used to its end.
        let offered = c_uint::try_from(room.len()).unwrap_or(c_uint::MAX);
        self.stream.avail_out = offered;
        // SAFETY: the stream was initialized in `new`; its pointers and lengths are those of `text` and of
        // `room`, which are borrowed for this call.
        let result = unsafe { deflate(&mut *self.stream, Z_FINISH) };
        let written = offered - self.stream.avail_out;
        // Nothing refers to the text and the room any more.
        self.stream.next_in = std::ptr::null();
        self.stream.avail_in = 0;
        self.stream.next_out = std::ptr::null_mut();
        self.stream.avail_out = 0;
        self.make_ready();
        (result == Z_STREAM_END).then_some(written as usize)
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
        entered: 8,
        enough: 64,
        places: 4,
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
    fn what_does_not_fit_is_refused_and_the_next_text_is_not_the_worse_for_it() {
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
