//! Text 32 bytes at a time: the innermost of the encoder, where each byte of a string is looked at.
//!
//! A [`Block`] is 32 bytes in whatever registers the machine has: AVX2 where it is found at run time, SSE2
//! on every other x86-64, four `u64` elsewhere. All three are tested against each other and against plain
//! loops. This module is the one place outside the C interface with unsafe code, and for one reason: blocks
//! are read beyond a string's end (within the chunk) and written beyond the text's (within its capacity),
//! which spares a loop over single bytes at every string.

/// Bytes in a block.
pub(crate) const BLOCK: usize = 32;

/// 32 bytes.
pub(crate) trait Block: Copy {
    /// Reads 32 bytes.
    ///
    /// # Safety
    /// 32 bytes from `from` on can be read, and the machine knows the block's instructions.
    unsafe fn load(from: *const u8) -> Self;

    /// Writes 32 bytes.
    ///
    /// # Safety
    /// 32 bytes from `to` on can be written, and the machine knows the block's instructions.
    unsafe fn store(self, to: *mut u8);

    /// A bit for each byte that JSON wants escaped: below 0x20, `"`, `\`.
    fn escapes(self) -> u32;

    /// A bit for each byte that is not ASCII.
    fn high(self) -> u32;

    /// A bit for each byte that is either.
    fn not_plain(self) -> u32;

    /// Whether `bytes` are UTF-8.
    #[inline(always)]
    fn is_utf8(bytes: &[u8]) -> bool {
        std::str::from_utf8(bytes).is_ok()
    }

    /// A bit for each byte that is the same in both.
    fn same(self, other: Self) -> u32;
}

/// Something to be done with blocks, whatever they are made of.
pub(crate) trait Work {
    /// What comes of it.
    type Output;

    /// Does it. To be marked `#[inline(always)]`, with all that it calls for each block: only what is
    /// inlined is compiled for the machine's instructions.
    fn run<B: Block>(self) -> Self::Output;
}

/// The instructions that blocks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One register of 32 bytes. Only a machine that was asked has it: [`Level::best`].
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// Two registers of 16 bytes, which every x86-64 has.
    #[cfg(target_arch = "x86_64")]
    Sse2,
    /// Plain integers.
    Portable,
}

/// That this machine has AVX2 and BMI2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Level {
    /// The fastest one this machine has.
    pub fn best() -> Level {
        Level::all()[0]
    }

    /// All that this machine has, the fastest first.
    pub fn all() -> Vec<Level> {
        #[cfg(target_arch = "x86_64")]
        {
            let mut all = vec![Level::Sse2, Level::Portable];
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
                all.insert(0, Level::Avx2(Avx2(())));
            }
            all
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Level::Portable]
    }

    /// Does `work` with this level's blocks.
    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx2` is only made on a machine that has AVX2 and BMI2.
            Level::Avx2(_) => unsafe { x86::with_avx2(work) },
            #[cfg(target_arch = "x86_64")]
            Level::Sse2 => work.run::<x86::Sse2Block>(),
            Level::Portable => work.run::<PortableBlock>(),
        }
    }
}

/// Bytes to read blocks from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    bytes: &'a [u8],
    /// A block that begins before this ends within the bytes.
    limit: usize,
}

impl<'a> Source<'a> {
    #[inline(always)]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Source {
            bytes,
            limit: (bytes.len() + 1).saturating_sub(BLOCK),
        }
    }

    /// The 32 bytes at `at`. `None` where there are fewer.
    #[inline(always)]
    fn block<B: Block>(self, at: usize) -> Option<B> {
        if at >= self.limit {
            return None;
        }
        // SAFETY: `at` is below the bytes' length.
        let from = unsafe { self.bytes.as_ptr().add(at) };
        // SAFETY: `at` is at most 32 below the bytes' end; `B` is only named by `Level::run`.
        Some(unsafe { B::load(from) })
    }

    /// The bytes at `at`, with zeros behind the last of them.
    #[inline(always)]
    fn last_block<B: Block>(self, at: usize) -> B {
        let block = padded(self.bytes, at);
        // SAFETY: the array is 32 bytes long; `B` is only named by `Level::run`.
        unsafe { B::load(block.as_ptr()) }
    }

    /// Whether `len` bytes of `pattern` stand at `at`. Not asked within the last 32 bytes: `false`.
    #[inline(always)]
    pub(crate) fn has<B: Block>(self, at: usize, pattern: &[u8; BLOCK], len: usize) -> bool {
        // SAFETY: the array is 32 bytes long; `B` is only named by `Level::run`.
        let pattern = unsafe { B::load(pattern.as_ptr()) };
        match self.block::<B>(at) {
            Some(block) => !block.same(pattern) & first(len) == 0,
            None => false,
        }
    }
}

#[cold]
fn padded(bytes: &[u8], at: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let rest = bytes.get(at..).unwrap_or_default();
    let rest = &rest[..rest.len().min(BLOCK)];
    block[..rest.len()].copy_from_slice(rest);
    block
}

/// Bytes of the longest key that [`Tail::key`] writes.
pub(crate) const LONGEST_KEY: usize = 2 * BLOCK;
/// What a short value may write: a quote, a block, and a quote.
const VALUE_ROOM: usize = BLOCK + 2;

/// The end of a text, with room ahead for a key and a short value.
pub(crate) struct Tail<'v>(&'v mut Vec<u8>);

/// The end of a text behind a key or a comma, with room ahead for a short value.
pub(crate) struct AtValue<'v> {
    out: &'v mut Vec<u8>,
    /// The text's length, with all that was written. The capacity reaches [`VALUE_ROOM`] beyond it.
    len: usize,
}

impl<'v> Tail<'v> {
    #[inline(always)]
    pub(crate) fn of(out: &'v mut Vec<u8>) -> Self {
        out.reserve(LONGEST_KEY + VALUE_ROOM);
        Tail(out)
    }

    /// Writes the first `len` bytes of `key`. At most 64.
    #[inline(always)]
    pub(crate) fn key<B: Block>(self, key: &[u8; LONGEST_KEY], len: usize) -> AtValue<'v> {
        assert!(len <= LONGEST_KEY);
        let from = key.as_ptr();
        // SAFETY: the key is 64 bytes long; `B` is only named by `Level::run`.
        let block = unsafe { B::load(from) };
        let end = self.0.len();
        // SAFETY: the capacity reaches 64 bytes and more beyond the length.
        let to = unsafe { self.0.as_mut_ptr().add(end) };
        // SAFETY: as above.
        unsafe { block.store(to) };
        if len > BLOCK {
            // SAFETY: the key is 64 bytes long.
            let block = unsafe { B::load(from.wrapping_add(BLOCK)) };
            // SAFETY: the capacity reaches 64 bytes and more beyond the length.
            unsafe { block.store(to.wrapping_add(BLOCK)) };
        }
        AtValue {
            len: end + len,
            out: self.0,
        }
    }

    /// Writes nothing: the key is written.
    #[inline(always)]
    pub(crate) fn behind(self) -> AtValue<'v> {
        AtValue {
            len: self.0.len(),
            out: self.0,
        }
    }

    /// Writes a comma.
    #[inline(always)]
    pub(crate) fn comma(self) -> AtValue<'v> {
        self.0.push(b',');
        self.behind()
    }
}

impl<'v> AtValue<'v> {
    /// What was written is part of the text, and so are `more` bytes.
    ///
    /// # Safety
    /// They were written, and they are at most [`VALUE_ROOM`].
    #[inline(always)]
    unsafe fn end_with(self, more: usize) -> &'v mut Vec<u8> {
        // SAFETY: up to `len` all was written, and the caller says it of the rest; the capacity reaches
        // that far.
        unsafe { self.out.set_len(self.len + more) };
        self.out
    }

    /// No short value follows.
    #[inline(always)]
    pub(crate) fn end(self) -> &'v mut Vec<u8> {
        // SAFETY: nothing more.
        unsafe { self.end_with(0) }
    }

    #[inline(always)]
    fn here(&mut self) -> *mut u8 {
        // SAFETY: the capacity reaches beyond `len`.
        unsafe { self.out.as_mut_ptr().add(self.len) }
    }

    /// Writes up to eight bytes.
    #[inline(always)]
    pub(crate) fn literal<const N: usize>(mut self, text: [u8; N]) {
        const { assert!(N <= 8) };
        // SAFETY: the capacity reaches 34 bytes beyond `len`; an array of bytes lies at any address.
        unsafe { self.here().cast::<[u8; N]>().write(text) };
        // SAFETY: `N` bytes were written.
        unsafe { self.end_with(N) };
    }

    /// Writes `n` in decimal digits.
    #[inline(always)]
    pub(crate) fn number(mut self, n: u32) {
        if n >= 100_000_000 {
            let out = self.end();
            out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
            return;
        }
        // Eight digits at once: halves, quarters, single ones, each in its part of the word.
        let n = u64::from(n);
        let halves = (n / 10_000) | ((n % 10_000) << 32);
        let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
        let quarters = hundreds | ((halves - hundreds * 100) << 16);
        let tens = ((quarters * 103) >> 10) & 0x000f_000f_000f_000f;
        let digits = tens | ((quarters - tens * 10) << 8);
        let zeros = (digits.trailing_zeros() / 8).min(7) as usize;
        let text = (digits | 0x3030_3030_3030_3030) >> (8 * zeros);
        // SAFETY: the capacity reaches 34 bytes beyond `len`; an array of bytes lies at any address.
        unsafe { self.here().cast::<[u8; 8]>().write(text.to_le_bytes()) };
        // SAFETY: eight bytes were written.
        unsafe { self.end_with(8 - zeros) };
    }

    /// Writes the string of `len` bytes at `at`, in quotes, where it is at most 32 bytes of ASCII that
    /// needs no escape, and says so. Otherwise writes nothing.
    #[inline(always)]
    pub(crate) fn plain_string<B: Block>(
        mut self,
        source: Source<'_>,
        at: usize,
        len: usize,
    ) -> bool {
        let block = match source.block::<B>(at) {
            Some(block) if len <= BLOCK => block,
            _ => {
                self.end();
                return false;
            }
        };
        if block.not_plain() & first(len) != 0 {
            self.end();
            return false;
        }
        let to = self.here();
        // SAFETY: the capacity reaches 34 bytes beyond `len`.
        unsafe { to.write(b'"') };
        // SAFETY: as above: one byte, and 32.
        unsafe { block.store(to.wrapping_add(1)) };
        // SAFETY: as above: one byte, at most 32, and one.
        unsafe { to.wrapping_add(1 + len).write(b'"') };
        // SAFETY: so many were written.
        unsafe { self.end_with(len + 2) };
        true
    }
}

/// The bits of the first `len` bytes, at most 32.
#[inline(always)]
fn first(len: usize) -> u32 {
    debug_assert!(len <= BLOCK);
    ((1u64 << len) - 1) as u32
}

/// Appends `bytes[start..end]` as a JSON string, escaped where JSON demands it. Says whether all of it was
/// ASCII; if not, it is for the caller to see that it is UTF-8.
#[inline(always)]
pub(crate) fn append_string<B: Block>(
    source: Source<'_>,
    start: usize,
    end: usize,
    out: &mut Vec<u8>,
) -> bool {
    assert!(start <= end && end <= source.bytes.len());
    let mut at = start;
    let mut high = 0;
    out.push(b'"');
    // Room for what is left, for a block that reaches beyond it, and for the closing quote.
    out.reserve(end - at + BLOCK + 1);
    while at < end {
        let block = source
            .block::<B>(at)
            .unwrap_or_else(|| source.last_block(at));
        let len = (end - at).min(BLOCK);
        let escapes = block.escapes() & first(len);
        high |= block.high() & first(len);
        if escapes == 0 {
            let written = out.len();
            // SAFETY: the capacity reaches what is left and a block beyond the length.
            let to = unsafe { out.as_mut_ptr().add(written) };
            // SAFETY: as above; `B` is only named by `Level::run`.
            unsafe { block.store(to) };
            // SAFETY: `len`, at most 32, of the 32 bytes that were just written.
            unsafe { out.set_len(written + len) };
        } else {
            escape(source.bytes, at, len, escapes, out);
            out.reserve(end - at + BLOCK + 1);
        }
        at += len;
    }
    out.push(b'"');
    high == 0
}

/// Appends `len` bytes from `at` on, of which those with a bit in `escapes` are escaped.
#[inline(never)]
fn escape(bytes: &[u8], at: usize, len: usize, mut escapes: u32, out: &mut Vec<u8>) {
    let mut plain = at;
    while escapes != 0 {
        let here = at + escapes.trailing_zeros() as usize;
        escapes &= escapes - 1;
        out.extend_from_slice(&bytes[plain..here]);
        append_escape(bytes[here], out);
        plain = here + 1;
    }
    out.extend_from_slice(&bytes[plain..at + len]);
}

/// Appends the escape of a byte that needs one.
fn append_escape(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0x08 => out.extend_from_slice(b"\\b"),
        0x0c => out.extend_from_slice(b"\\f"),
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        }
    }
}

/// Four integers.
#[derive(Clone, Copy)]
pub(crate) struct PortableBlock([u64; 4]);

impl PortableBlock {
    /// A bit for each byte whose highest bit is set in `words`.
    #[inline(always)]
    fn bits(words: [u64; 4]) -> u32 {
        let mut bits = 0;
        for (number, word) in words.into_iter().enumerate() {
            // The product brings the eight highest bits together in the highest byte.
            let highest = (word & HIGH) >> 7;
            bits |= ((highest.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32) << (8 * number);
        }
        bits
    }
}

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The highest bit of each byte that is zero. Exact: no carry leaves a byte.
#[inline(always)]
fn zeros(word: u64) -> u64 {
    !(((word & !HIGH) + !HIGH) | word) & HIGH
}

impl Block for PortableBlock {
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        let from = from.cast::<[[u8; 8]; 4]>();
        // SAFETY: the caller says that 32 bytes can be read; an array of bytes lies at any address.
        PortableBlock(unsafe { from.read() }.map(u64::from_le_bytes))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        let to = to.cast::<[[u8; 8]; 4]>();
        // SAFETY: the caller says that 32 bytes can be written; an array of bytes lies at any address.
        unsafe { to.write(self.0.map(u64::to_le_bytes)) };
    }

    #[inline(always)]
    fn escapes(self) -> u32 {
        Self::bits(self.0.map(|word| {
            let control = zeros(word & (LOW * 0xe0));
            control | zeros(word ^ (LOW * 0x22)) | zeros(word ^ (LOW * 0x5c))
        }))
    }

    #[inline(always)]
    fn high(self) -> u32 {
        Self::bits(self.0)
    }

    #[inline(always)]
    fn not_plain(self) -> u32 {
        self.escapes() | self.high()
    }

    #[inline(always)]
    fn same(self, other: Self) -> u32 {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = other.0;
        Self::bits([a ^ e, b ^ f, c ^ g, d ^ h].map(zeros))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Block, Work};

    /// Does `work`, compiled for AVX2.
    ///
    /// # Safety
    /// The machine has AVX2 and BMI2.
    #[target_feature(enable = "avx2,bmi2")]
    pub(super) unsafe fn with_avx2<W: Work>(work: W) -> W::Output {
        work.run::<Avx2Block>()
    }

    /// One register.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2Block(__m256i);

    impl Block for Avx2Block {
        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self {
            // SAFETY: the caller says that 32 bytes can be read, and that there is AVX2.
            Avx2Block(unsafe { _mm256_loadu_si256(from.cast()) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: the caller says that 32 bytes can be written, and that there is AVX2.
            unsafe { _mm256_storeu_si256(to.cast(), self.0) };
        }

        #[inline(always)]
        fn escapes(self) -> u32 {
            // SAFETY: a block of this kind was loaded, so there is AVX2.
            unsafe { avx2_escape_bits(self.0) }
        }

        #[inline(always)]
        fn not_plain(self) -> u32 {
            // SAFETY: as in `escapes`.
            unsafe { avx2_not_plain(self.0) }
        }

        #[inline(always)]
        fn is_utf8(bytes: &[u8]) -> bool {
            // SAFETY: `Level::run` names this kind of block only where there is AVX2.
            unsafe { avx2_is_utf8(bytes) }
        }

        #[inline(always)]
        fn high(self) -> u32 {
            // SAFETY: as in `escapes`.
            unsafe { _mm256_movemask_epi8(self.0) as u32 }
        }

        #[inline(always)]
        fn same(self, other: Self) -> u32 {
            // SAFETY: as in `escapes`.
            let same = unsafe { _mm256_cmpeq_epi8(self.0, other.0) };
            // SAFETY: as in `escapes`.
            unsafe { _mm256_movemask_epi8(same) as u32 }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_escapes(block: __m256i) -> __m256i {
        let control = _mm256_cmpeq_epi8(_mm256_min_epu8(block, _mm256_set1_epi8(0x1f)), block);
        let quote = _mm256_cmpeq_epi8(block, _mm256_set1_epi8(0x22));
        let backslash = _mm256_cmpeq_epi8(block, _mm256_set1_epi8(0x5c));
        _mm256_or_si256(control, _mm256_or_si256(quote, backslash))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_escape_bits(block: __m256i) -> u32 {
        _mm256_movemask_epi8(avx2_escapes(block)) as u32
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_not_plain(block: __m256i) -> u32 {
        // The highest bit of a byte that is not ASCII counts as it is.
        _mm256_movemask_epi8(_mm256_or_si256(avx2_escapes(block), block)) as u32
    }

    /// What can be wrong with two bytes in a row: a bit each. The bits of what is wrong by the first
    /// byte's halves and by the second byte's upper half, anded, are what is wrong.
    /// Method: Keiser and Lemire, "Validating UTF-8 In Less Than One Instruction Per Byte", 2021.
    mod wrong {
        /// A lead byte, and no continuation.
        pub(super) const TOO_SHORT: u8 = 1 << 0;
        /// ASCII, and a continuation.
        pub(super) const TOO_LONG: u8 = 1 << 1;
        /// Three bytes for what fits in two.
        pub(super) const OVERLONG_3: u8 = 1 << 2;
        /// Beyond U+10FFFF, by the second byte.
        pub(super) const TOO_LARGE: u8 = 1 << 3;
        /// Half of a surrogate pair.
        pub(super) const SURROGATE: u8 = 1 << 4;
        /// Two bytes for what fits in one.
        pub(super) const OVERLONG_2: u8 = 1 << 5;
        /// Four bytes for what fits in three, and beyond U+10FFFF by the first byte: they share a bit, as
        /// no two bytes can be both.
        pub(super) const OVERLONG_4: u8 = 1 << 6;
        pub(super) const LARGER: u8 = 1 << 6;
        /// Two continuations: right where the bytes before ask for it.
        pub(super) const TWO: u8 = 1 << 7;
        /// Not told by the first byte's lower half.
        pub(super) const ANY: u8 = TOO_SHORT | TOO_LONG | TWO;
    }

    #[rustfmt::skip]
    const FIRST_UPPER: [u8; 16] = {
        use wrong::*;
        [
            TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG,
            TWO, TWO, TWO, TWO,
            TOO_SHORT | OVERLONG_2,
            TOO_SHORT,
            TOO_SHORT | OVERLONG_3 | SURROGATE,
            TOO_SHORT | TOO_LARGE | LARGER | OVERLONG_4,
        ]
    };
    const FIRST_LOWER: [u8; 16] = {
        use wrong::*;
        let mut table = [ANY | TOO_LARGE | LARGER; 16];
        table[0] = ANY | OVERLONG_2 | OVERLONG_3 | OVERLONG_4;
        table[1] = ANY | OVERLONG_2;
        table[2] = ANY;
        table[3] = ANY;
        table[4] = ANY | TOO_LARGE;
        table[13] = ANY | TOO_LARGE | LARGER | SURROGATE;
        table
    };
    const SECOND_UPPER: [u8; 16] = {
        use wrong::*;
        let mut table = [TOO_SHORT; 16];
        table[8] = TOO_LONG | OVERLONG_2 | TWO | OVERLONG_3 | LARGER | OVERLONG_4;
        table[9] = TOO_LONG | OVERLONG_2 | TWO | OVERLONG_3 | TOO_LARGE;
        table[10] = TOO_LONG | OVERLONG_2 | TWO | SURROGATE | TOO_LARGE;
        table[11] = table[10];
        table
    };

    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_is_utf8(bytes: &[u8]) -> bool {
        let mut before = _mm256_setzero_si256();
        let mut wrong = before;
        let mut blocks = bytes.chunks_exact(BLOCK);
        for block in &mut blocks {
            // SAFETY: the chunk is 32 bytes long.
            let block = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
            wrong = _mm256_or_si256(wrong, avx2_wrong(before, block));
            before = block;
        }
        // The last block, with a zero behind it at least: a letter that is cut off is too short.
        let mut last = [0; BLOCK];
        let rest = blocks.remainder();
        last[..rest.len()].copy_from_slice(rest);
        // SAFETY: the array is 32 bytes long.
        let last = unsafe { _mm256_loadu_si256(last.as_ptr().cast()) };
        wrong = _mm256_or_si256(wrong, avx2_wrong(before, last));
        _mm256_testz_si256(wrong, wrong) == 1
    }

    /// What is not UTF-8 in `block`, which comes behind `before`: a byte that is not zero.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_wrong(before: __m256i, block: __m256i) -> __m256i {
        let middle = _mm256_permute2x128_si256::<0x21>(before, block);
        let one_back = _mm256_alignr_epi8::<15>(block, middle);
        let two_back = _mm256_alignr_epi8::<14>(block, middle);
        let three_back = _mm256_alignr_epi8::<13>(block, middle);
        let lower = |bytes| _mm256_and_si256(bytes, _mm256_set1_epi8(0x0f));
        let by_pairs = _mm256_and_si256(
            _mm256_and_si256(
                avx2_look_up(&FIRST_UPPER, lower(_mm256_srli_epi16::<4>(one_back))),
                avx2_look_up(&FIRST_LOWER, lower(one_back)),
            ),
            avx2_look_up(&SECOND_UPPER, lower(_mm256_srli_epi16::<4>(block))),
        );
        // The third byte of three, and the third and fourth of four, are continuations behind one.
        let third = _mm256_subs_epu8(two_back, _mm256_set1_epi8((0xe0u8 - 0x80) as i8));
        let fourth = _mm256_subs_epu8(three_back, _mm256_set1_epi8((0xf0u8 - 0x80) as i8));
        let owed = _mm256_and_si256(_mm256_or_si256(third, fourth), _mm256_set1_epi8(i8::MIN));
        _mm256_xor_si256(owed, by_pairs)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_look_up(table: &[u8; 16], which: __m256i) -> __m256i {
        // SAFETY: the table is 16 bytes long.
        let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), which)
    }

    /// Two registers.
    #[derive(Clone, Copy)]
    pub(super) struct Sse2Block(__m128i, __m128i);

    impl Block for Sse2Block {
        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self {
            let second = from.wrapping_add(16);
            // SAFETY: the caller says that 32 bytes can be read; every x86-64 has SSE2.
            let low = unsafe { _mm_loadu_si128(from.cast()) };
            // SAFETY: as above.
            Sse2Block(low, unsafe { _mm_loadu_si128(second.cast()) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            let second = to.wrapping_add(16);
            // SAFETY: the caller says that 32 bytes can be written; every x86-64 has SSE2.
            unsafe { _mm_storeu_si128(to.cast(), self.0) };
            // SAFETY: as above.
            unsafe { _mm_storeu_si128(second.cast(), self.1) };
        }

        #[inline(always)]
        fn escapes(self) -> u32 {
            // SAFETY: every x86-64 has SSE2.
            unsafe { sse2_escapes(self) }
        }

        #[inline(always)]
        fn high(self) -> u32 {
            // SAFETY: every x86-64 has SSE2.
            unsafe { both(self.0, self.1) }
        }

        #[inline(always)]
        fn not_plain(self) -> u32 {
            self.escapes() | self.high()
        }

        #[inline(always)]
        fn same(self, other: Self) -> u32 {
            // SAFETY: every x86-64 has SSE2.
            unsafe { sse2_same(self, other) }
        }
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn both(low: __m128i, high: __m128i) -> u32 {
        _mm_movemask_epi8(low) as u32 | ((_mm_movemask_epi8(high) as u32) << 16)
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn sse2_same(one: Sse2Block, other: Sse2Block) -> u32 {
        both(
            _mm_cmpeq_epi8(one.0, other.0),
            _mm_cmpeq_epi8(one.1, other.1),
        )
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn sse2_escapes(block: Sse2Block) -> u32 {
        both(half_escapes(block.0), half_escapes(block.1))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn half_escapes(half: __m128i) -> __m128i {
        let control = _mm_cmpeq_epi8(_mm_min_epu8(half, _mm_set1_epi8(0x1f)), half);
        let quote = _mm_cmpeq_epi8(half, _mm_set1_epi8(0x22));
        let backslash = _mm_cmpeq_epi8(half, _mm_set1_epi8(0x5c));
        _mm_or_si128(control, _mm_or_si128(quote, backslash))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asks a block for everything it tells.
    struct Told<'a>(&'a [u8; BLOCK], &'a [u8; BLOCK]);

    impl Work for Told<'_> {
        type Output = [u32; 4];

        #[inline(always)]
        fn run<B: Block>(self) -> [u32; 4] {
            let one: B = Source::new(self.0).block(0).unwrap();
            let other: B = Source::new(self.1).block(0).unwrap();
            let escapes = one.escapes();
            assert_eq!(one.not_plain(), escapes | one.high());
            let mut copy = [0; BLOCK];
            // SAFETY: the array is 32 bytes long; `B` is only named by `Level::run`.
            unsafe { one.store(copy.as_mut_ptr()) };
            assert_eq!(&copy, self.0);
            [escapes, one.high(), one.same(other), first(BLOCK)]
        }
    }

    struct Quoted<'a>(&'a [u8], usize, usize);

    impl Work for Quoted<'_> {
        type Output = (Vec<u8>, bool, bool);

        #[inline(always)]
        fn run<B: Block>(self) -> Self::Output {
            let mut out = b"before".to_vec();
            let ascii = append_string::<B>(Source::new(self.0), self.1, self.2, &mut out);
            (out, ascii, B::is_utf8(&self.0[self.1..self.2]))
        }
    }

    struct Pair<'a>(&'a [u8; LONGEST_KEY], usize, &'a [u8], usize);

    impl Work for Pair<'_> {
        type Output = Option<Vec<u8>>;

        #[inline(always)]
        fn run<B: Block>(self) -> Self::Output {
            let mut out = Vec::new();
            let value = Tail::of(&mut out).key::<B>(self.0, self.1);
            let plain = value.plain_string::<B>(Source::new(self.2), 0, self.3);
            plain.then_some(out)
        }
    }

    fn bits(of: impl Fn(usize) -> bool) -> u32 {
        (0..BLOCK).fold(0, |bits, at| bits | u32::from(of(at)) << at)
    }

    fn escapes(byte: u8) -> bool {
        byte < 0x20 || byte == b'"' || byte == b'\\'
    }

    /// Bytes as they come in logs, and those near the borders.
    fn byte() -> impl Strategy<Value = u8> {
        const BORDERS: [u8; 11] = [
            0, 0x1f, 0x20, 0x22, 0x5c, 0x7f, 0x80, 0x9f, 0xa2, 0xdc, 0xff,
        ];
        prop_oneof![b' '..=b'z', proptest::sample::select(&BORDERS), any::<u8>()]
    }

    proptest! {
        #[test]
        fn every_level_tells_the_same_of_a_block(
            one in proptest::array::uniform32(byte()),
            other in proptest::array::uniform32(byte()),
        ) {
            let expected = [
                bits(|at| escapes(one[at])),
                bits(|at| one[at] >= 0x80),
                bits(|at| one[at] == other[at]),
                u32::MAX,
            ];
            for level in Level::all() {
                prop_assert_eq!(level.run(Told(&one, &other)), expected, "{:?}", level);
            }
        }

        #[test]
        fn every_level_quotes_alike_wherever_a_string_lies(
            around in proptest::collection::vec(byte(), 0..140),
            from in 0usize..140,
            to in 0usize..140,
        ) {
            let start = from.min(around.len());
            let end = to.clamp(start, around.len());
            let mut expected = b"before\"".to_vec();
            for byte in &around[start..end] {
                if escapes(*byte) {
                    append_escape(*byte, &mut expected);
                } else {
                    expected.push(*byte);
                }
            }
            expected.push(b'"');
            let text = &around[start..end];
            for level in Level::all() {
                let (out, ascii, utf8) = level.run(Quoted(&around, start, end));
                prop_assert_eq!(&out, &expected, "{:?}", level);
                prop_assert_eq!(ascii, text.is_ascii());
                prop_assert_eq!(utf8, std::str::from_utf8(text).is_ok());
            }
        }

        /// Letters of every length, in every place of a block, cut or broken anywhere.
        #[test]
        fn every_level_knows_utf_8(
            text in "[a회é漢😀\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}]{0,40}",
            cut in 0usize..160,
            broken in proptest::option::of((0usize..160, any::<u8>())),
        ) {
            let mut bytes = text.into_bytes();
            bytes.truncate(cut);
            if let Some((at, byte)) = broken
                && let Some(place) = bytes.get_mut(at)
            {
                *place = byte;
            }
            for level in Level::all() {
                let (.., utf8) = level.run(Quoted(&bytes, 0, bytes.len()));
                prop_assert_eq!(utf8, std::str::from_utf8(&bytes).is_ok(), "{:?} {:x?}", level, bytes);
            }
        }

        #[test]
        fn a_key_and_a_short_value_are_written_as_they_are(
            key in proptest::collection::vec(byte(), 0..=LONGEST_KEY),
            value in "[ -~]{0,80}",
            len in 0usize..80,
        ) {
            let mut text = [0; LONGEST_KEY];
            text[..key.len()].copy_from_slice(&key);
            let len = len.min(value.len());
            let plain = len <= BLOCK
                && value.len() >= BLOCK
                && !value.as_bytes()[..len].iter().copied().any(escapes);
            let expected = [&key[..], b"\"", &value.as_bytes()[..len], b"\""].concat();
            for level in Level::all() {
                let out = level.run(Pair(&text, key.len(), value.as_bytes(), len));
                prop_assert_eq!(out, plain.then(|| expected.clone()), "{:?}", level);
            }
        }

        #[test]
        fn numbers_have_their_digits(n in any::<u32>(), shift in 0u32..32) {
            let mut out = Vec::new();
            for n in [n >> shift, n.leading_zeros(), 10u32.pow(shift % 10), 10u32.pow(shift % 10) - 1] {
                out.clear();
                Tail::of(&mut out).behind().number(n);
                prop_assert_eq!(String::from_utf8_lossy(&out), n.to_string());
            }
        }
    }

    /// Each pair of bytes that a first byte can stand in, before ASCII and before continuations.
    #[test]
    fn every_level_knows_every_pair_of_bytes() {
        // Miri takes some thousand times as long, and looks at what is read, not at the answer.
        let step = if cfg!(miri) { 251 } else { 1 };
        for level in Level::all() {
            for pair in (0..=u16::MAX).step_by(step) {
                let [first, second] = pair.to_be_bytes();
                for rest in [
                    &b"a"[..],
                    b"\x80",
                    b"\x80\x80",
                    b"\xbf\xbf\xbf",
                    b"\x8f\xbfa",
                ] {
                    let bytes = [&[first, second], rest].concat();
                    let (.., utf8) = level.run(Quoted(&bytes, 0, bytes.len()));
                    let expected = std::str::from_utf8(&bytes).is_ok();
                    assert_eq!(utf8, expected, "{level:?} {bytes:x?}");
                }
            }
        }
    }

    #[test]
    fn what_lies_beyond_the_end_is_never_a_key() {
        struct Has<'a>(&'a [u8], usize, usize);
        impl Work for Has<'_> {
            type Output = bool;
            #[inline(always)]
            fn run<B: Block>(self) -> bool {
                Source::new(self.0).has::<B>(self.1, &[0; BLOCK], self.2)
            }
        }
        for level in Level::all() {
            assert!(level.run(Has(&[0; 40], 8, 32)));
            for (len, at) in [(40, 9), (31, 0), (0, 0), (40, 100), (40, usize::MAX)] {
                assert!(
                    !level.run(Has(&vec![0; len], at, 3)),
                    "{level:?} {len} {at}"
                );
            }
        }
    }
}
