//! Text 32 bytes at a time: the innermost of the encoder, where each byte of a string is looked at.
//!
//! A [`Block`] is 32 bytes in whatever registers the machine has: AVX2 where it is found at run time, SSE2
//! on every other x86-64, four `u64` elsewhere. All three are tested against each other and against plain
//! loops. What is read comes as a [`Pair`] or a [`Value`], and what is written goes through a [`JsonWriter`]: each
//! asks once whether there are bytes or room enough for all that follows.
//!
//! This module is the one place outside the C interface with unsafe code, and for one reason: blocks are
//! read beyond a string's end (within the chunk) and written beyond the text's (within its capacity), which
//! spares a loop over single bytes at every string.

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

    /// Whether `start..end` of the source is UTF-8.
    fn is_utf8(source: Source<'_>, start: usize, end: usize) -> bool {
        std::str::from_utf8(&source.0[start..end]).is_ok()
    }

    /// A bit for each byte that is the same in both.
    fn same(self, other: Self) -> u32;
}

/// Something to be done with blocks, whatever they are made of.
pub(crate) trait Kernel {
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
    pub(crate) fn run<W: Kernel>(self, work: W) -> W::Output {
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
pub(crate) struct Source<'a>(&'a [u8]);

/// What is read of a value at once: a byte, and a block.
const VALUE: usize = 1 + BLOCK;
/// What is read of a pair at once: its key, and the value.
const PAIR: usize = BLOCK + VALUE;

/// A pair of key and value, with all that is read of it at once.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a>(&'a [u8; PAIR]);

/// A value, with all that is read of it at once.
#[derive(Clone, Copy)]
pub(crate) struct Value<'a>(&'a [u8; VALUE]);

impl<'a> Source<'a> {
    #[inline(always)]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Source(bytes)
    }

    /// The `N` bytes at `at`. `None` where there are fewer.
    #[inline(always)]
    fn array<const N: usize>(self, at: usize) -> Option<&'a [u8; N]> {
        // Where the bytes are fewer, or none: one comparison for both.
        if at >= (self.0.len() + 1).saturating_sub(N) {
            return None;
        }
        // SAFETY: `at` is below the bytes' length.
        let from = unsafe { self.0.as_ptr().add(at) };
        // SAFETY: `at` is at most `N` below the bytes' end; an array of bytes lies at any address.
        Some(unsafe { &*from.cast() })
    }

    /// The pair at `at`. `None` within the last bytes.
    #[inline(always)]
    pub(crate) fn pair(self, at: usize) -> Option<Pair<'a>> {
        self.array(at).map(Pair)
    }

    /// The value at `at`. `None` within the last bytes.
    #[inline(always)]
    pub(crate) fn value(self, at: usize) -> Option<Value<'a>> {
        self.array(at).map(Value)
    }

    /// The 32 bytes at `at`, with zeros behind the last there is.
    #[inline(always)]
    fn block<B: Block>(self, at: usize) -> B {
        match self.array::<BLOCK>(at) {
            Some(bytes) => block(bytes),
            None => block(&padded(self.0, at)),
        }
    }
}

#[inline(always)]
fn block<B: Block>(bytes: &[u8; BLOCK]) -> B {
    // SAFETY: the array is 32 bytes long; `B` is only named by `Level::run`.
    unsafe { B::load(bytes.as_ptr()) }
}

#[cold]
fn padded(bytes: &[u8], at: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let rest = bytes.get(at..).unwrap_or_default();
    let rest = &rest[..rest.len().min(BLOCK)];
    block[..rest.len()].copy_from_slice(rest);
    block
}

impl<'a> Pair<'a> {
    /// The value behind the key, where it is this one.
    #[inline(always)]
    pub(crate) fn behind<B: Block>(self, key: &Key) -> Option<Value<'a>> {
        // SAFETY: a pair is longer than 32 bytes; `B` is only named by `Level::run`.
        let here = unsafe { B::load(self.0.as_ptr()) };
        if !here.same(block(&key.raw)) & key.counts != 0 {
            return None;
        }
        // SAFETY: a key is at most 32 bytes long.
        let value = unsafe { self.0.as_ptr().add(usize::from(key.raw_len)) };
        // SAFETY: the pair reaches `VALUE` bytes beyond that; an array of bytes lies at any address.
        Some(Value(unsafe { &*value.cast() }))
    }
}

impl<'a> Value<'a> {
    /// Its first byte.
    #[inline(always)]
    pub(crate) fn first(self) -> u8 {
        self.0[0]
    }

    /// The `N` bytes behind the first. At most 32.
    #[inline(always)]
    pub(crate) fn rest<const N: usize>(self) -> &'a [u8; N] {
        const { assert!(N <= BLOCK) };
        self.0[1..].first_chunk().expect("longer than that")
    }
}

/// Bytes of the longest text that a [`Key`] has.
pub(crate) const LONGEST_KEY: usize = 2 * BLOCK;

/// A key as it comes and as it is written.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    text: [u8; LONGEST_KEY],
    raw: [u8; BLOCK],
    /// A bit for each byte of `raw` that is part of it.
    counts: u32,
    /// At most 32.
    raw_len: u8,
    /// At most 64.
    text_len: u8,
}

impl Key {
    /// A key that comes as `raw` and is written as `text`. `None` where either is too long.
    pub(crate) fn new(raw: &[u8], text: &[u8]) -> Option<Key> {
        if raw.len() > BLOCK || text.len() > LONGEST_KEY {
            return None;
        }
        let mut key = Key {
            text: [0; LONGEST_KEY],
            raw: [0; BLOCK],
            counts: first(raw.len()),
            raw_len: raw.len() as u8,
            text_len: text.len() as u8,
        };
        key.raw[..raw.len()].copy_from_slice(raw);
        key.text[..text.len()].copy_from_slice(text);
        Some(key)
    }

    /// Bytes of what it comes as.
    #[inline(always)]
    pub(crate) fn raw_len(&self) -> usize {
        self.raw_len.into()
    }

    /// What it comes as.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw[..usize::from(self.raw_len)]
    }

    /// What is written of it.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text[..usize::from(self.text_len)]
    }
}

/// What a key and a short value may write: two blocks, a quote, a block, and a quote.
const ROOM: usize = LONGEST_KEY + BLOCK + 2;

/// Writes at the end of a text. The text is only told of it by [`JsonWriter::finish`].
pub(crate) struct JsonWriter<'v> {
    out: &'v mut Vec<u8>,
    /// Where the next byte goes: within the text's capacity or at its end, and all before it is written.
    to: *mut u8,
    /// Up to here there are [`ROOM`] bytes of capacity.
    limit: *mut u8,
}

/// A place at the end of a text with [`ROOM`] ahead.
pub(crate) struct KeySlot<'p, 'v>(&'p mut JsonWriter<'v>);

/// A place behind a key or a comma, with room ahead for a short value.
pub(crate) struct ValueSlot<'p, 'v>(&'p mut JsonWriter<'v>);

/// Makes room for `room` bytes and for [`ROOM`]. Gives where the text ends, and up to where there are `ROOM` ahead.
///
/// # Safety
/// `len` bytes of its capacity are written.
#[cold]
#[inline(never)]
unsafe fn grow(out: &mut Vec<u8>, len: usize, room: usize) -> (*mut u8, *mut u8) {
    // SAFETY: the caller says so.
    unsafe { out.set_len(len) };
    out.reserve(room.max(ROOM));
    ends(out)
}

/// As [`grow`], where the room is there.
#[inline(always)]
fn ends(out: &mut Vec<u8>) -> (*mut u8, *mut u8) {
    let (len, capacity) = (out.len(), out.capacity());
    let begin = out.as_mut_ptr();
    (begin.wrapping_add(len), begin.wrapping_add(capacity - ROOM))
}

impl<'v> JsonWriter<'v> {
    #[inline(always)]
    pub(crate) fn of(out: &'v mut Vec<u8>) -> Self {
        out.reserve(ROOM);
        let (to, limit) = ends(out);
        JsonWriter { out, to, limit }
    }

    /// The text, with all that was written.
    #[inline(always)]
    pub(crate) fn finish(self) -> &'v mut Vec<u8> {
        let len = self.len();
        // SAFETY: all before `to` was written, and lies within the capacity.
        unsafe { self.out.set_len(len) };
        self.out
    }

    /// Bytes of the text, with all that was written.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.to.addr() - self.out.as_ptr().addr()
    }

    /// Sees to it that so many bytes can be written, and [`ROOM`] of them.
    #[inline(always)]
    fn reserve(&mut self, bytes: usize) {
        if self.limit.addr() + ROOM - self.to.addr() < bytes {
            let len = self.len();
            // SAFETY: all before `to` was written.
            (self.to, self.limit) = unsafe { grow(self.out, len, bytes) };
        }
    }

    /// Room ahead for a key and a short value.
    #[inline(always)]
    pub(crate) fn room(&mut self) -> KeySlot<'_, 'v> {
        if self.to > self.limit {
            let len = self.len();
            // SAFETY: all before `to` was written.
            (self.to, self.limit) = unsafe { grow(self.out, len, ROOM) };
        }
        KeySlot(self)
    }

    /// Makes a container of items that were written from `start` on, each with a comma before it.
    #[inline(always)]
    pub(crate) fn close(&mut self, start: usize, map: bool) {
        let (opening, closing) = if map { (b'{', b'}') } else { (b'[', b']') };
        let len = self.len();
        let KeySlot(pen) = self.room();
        if start < len {
            let comma = pen.out.as_mut_ptr().wrapping_add(start);
            // SAFETY: all before `to` was written.
            unsafe { comma.write(opening) };
        } else {
            // SAFETY: there are `ROOM` bytes ahead.
            unsafe { pen.write([opening], 1) };
        }
        // SAFETY: as above.
        unsafe { pen.write([closing], 1) };
    }

    /// Writes the part of a string that `bytes` are, with which `block` begins, and of which `left` are still
    /// to be written. Says whether any of them is not ASCII.
    ///
    /// # Safety
    /// `bytes` are at most 32 and at most `left`. The capacity reaches `left` bytes and a block beyond `to`,
    /// and one byte more, as it does behind them.
    #[inline(always)]
    unsafe fn part<B: Block>(&mut self, block: B, bytes: &[u8], left: usize) -> bool {
        let part = first(bytes.len());
        let mut high = 0;
        if block.not_plain() & part != 0 {
            high = block.high() & part;
            let escapes = block.escapes() & part;
            if escapes != 0 {
                self.reserve(LONGEST_ESCAPE * BLOCK + left + BLOCK + 1);
                // SAFETY: there is room for every byte's escape, and for the rest.
                self.to = unsafe { escape(bytes, escapes, self.to) };
                return high != 0;
            }
        }
        debug_assert!(self.reaches(left + BLOCK + 1));
        // SAFETY: the caller says so; `B` is only named by `Level::run`.
        unsafe { block.store(self.to) };
        self.to = self.to.wrapping_add(bytes.len());
        high != 0
    }

    /// Writes the end of a line.
    #[inline(always)]
    pub(crate) fn newline(&mut self) {
        let KeySlot(pen) = self.room();
        // SAFETY: there are `ROOM` bytes ahead.
        unsafe { pen.write(*b"\n", 1) };
    }

    /// Whether the capacity reaches so many bytes beyond `to`, as it should.
    fn reaches(&self, bytes: usize) -> bool {
        self.out.capacity() - self.len() >= bytes
    }

    /// Writes an array of which the first `len` bytes are part of the text.
    ///
    /// # Safety
    /// The capacity reaches `N` bytes beyond `to`, and `len` is at most `N`.
    #[inline(always)]
    unsafe fn write<const N: usize>(&mut self, bytes: [u8; N], len: usize) {
        debug_assert!(len <= N && self.reaches(N));
        // SAFETY: the caller says so; an array of bytes lies at any address.
        unsafe { self.to.cast::<[u8; N]>().write(bytes) };
        self.to = self.to.wrapping_add(len);
    }
}

impl<'p, 'v> KeySlot<'p, 'v> {
    /// Writes a key.
    #[inline(always)]
    pub(crate) fn key<B: Block>(self, key: &Key) -> ValueSlot<'p, 'v> {
        let [first, second] = [0, BLOCK].map(|at| key.text.as_ptr().wrapping_add(at));
        let to = self.0.to;
        debug_assert!(self.0.reaches(ROOM));
        // SAFETY: a key's text is 64 bytes long; `B` is only named by `Level::run`.
        let block = unsafe { B::load(first) };
        // SAFETY: the capacity reaches 64 bytes and more beyond `to`.
        unsafe { block.store(to) };
        let len = usize::from(key.text_len);
        if len > BLOCK {
            // SAFETY: as for the first one.
            let block = unsafe { B::load(second) };
            // SAFETY: as for the first one.
            unsafe { block.store(to.wrapping_add(BLOCK)) };
        }
        self.0.to = to.wrapping_add(len);
        ValueSlot(self.0)
    }

    /// Writes nothing: the key is written.
    #[inline(always)]
    pub(crate) fn behind_key(self) -> ValueSlot<'p, 'v> {
        ValueSlot(self.0)
    }

    /// Writes a comma.
    #[inline(always)]
    pub(crate) fn comma(self) -> ValueSlot<'p, 'v> {
        // SAFETY: the capacity reaches 64 bytes and more beyond `to`.
        unsafe { self.0.write(*b",", 1) };
        ValueSlot(self.0)
    }
}

impl<'p, 'v> ValueSlot<'p, 'v> {
    /// Writes a text of at most 32 bytes.
    #[inline(always)]
    pub(crate) fn short(self, text: &str) {
        let text = text.as_bytes();
        // Two arrays, of which the second ends where the text does.
        if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            self.ends::<16>(first, last, text.len());
        } else if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            self.ends::<8>(first, last, text.len());
        } else if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            self.ends::<4>(first, last, text.len());
        } else {
            for byte in text {
                // SAFETY: the capacity reaches 34 bytes beyond `to`.
                unsafe { self.0.write([*byte], 1) };
            }
        }
    }

    /// Writes a text that begins with `first` and ends with `last`.
    #[inline(always)]
    fn ends<const N: usize>(self, first: &[u8; N], last: &[u8; N], len: usize) {
        assert!(N <= len && len <= 2 * N && N <= BLOCK / 2);
        let to = self.0.to;
        debug_assert!(self.0.reaches(BLOCK + 2));
        // SAFETY: the capacity reaches 34 bytes beyond `to`; an array of bytes lies at any address.
        unsafe { to.cast::<[u8; N]>().write(*first) };
        // SAFETY: as above: `len` is at most 32.
        unsafe { to.wrapping_add(len - N).cast::<[u8; N]>().write(*last) };
        self.0.to = to.wrapping_add(len);
    }

    /// Writes `n` in decimal digits.
    #[inline(always)]
    pub(crate) fn number(self, n: u32) {
        let mut rest = n;
        // The last digit is written always, and all behind others.
        let mut always = 1 << 56;
        if n >= 100_000_000 {
            // One digit or two, and eight behind them.
            let high = n / 100_000_000;
            rest = n % 100_000_000;
            always = 1;
            let digits = (high / 10) | ((high % 10) << 8) | 0x3030;
            let zeros = usize::from(high < 10);
            let text = (digits >> (8 * zeros)) as u16;
            // SAFETY: the capacity reaches 34 bytes beyond `to`.
            unsafe { self.0.write(text.to_le_bytes(), 2 - zeros) };
        }
        let digits = eight_digits(rest);
        let zeros = (digits | always).trailing_zeros() / 8;
        let text = (digits | ZEROS) >> (8 * zeros);
        // SAFETY: the capacity reaches 34 bytes beyond where this began, of which two may be taken.
        unsafe { self.0.write(text.to_le_bytes(), 8 - zeros as usize) };
    }

    /// Writes the shortest decimal number that reads back as `n`, which is finite.
    #[inline(always)]
    pub(crate) fn float(self, n: f64) {
        // Most are a number of millionths. Of at most 15 digits no two decimal numbers read back as the same
        // float, so that this is the one, but for zeros at its end.
        const MILLION: f64 = 1e6;
        if (0.001..1e8).contains(&n) {
            // SAFETY: it is a number between 1,000 and 1e14, and half of one more.
            let millionths: i64 = unsafe { (n * MILLION + 0.5).to_int_unchecked() };
            if millionths as f64 / MILLION == n {
                let millionths = millionths as u64;
                let rest = (millionths % 1_000_000) as u32;
                ValueSlot(&mut *self.0).number((millionths / 1_000_000) as u32);
                let digits = eight_digits(100 * rest);
                // One digit is written always.
                let len = 8 - (digits | 1).leading_zeros() as usize / 8;
                // SAFETY: the capacity reaches 34 bytes beyond where this began, of which eight are taken.
                unsafe { self.0.write(*b".", 1) };
                // SAFETY: as above, and one more.
                unsafe { self.0.write((digits | ZEROS).to_le_bytes(), len) };
                return;
            }
        }
        self.short(zmij::Buffer::new().format_finite(n));
    }

    /// Writes the string that is the first `len` of `bytes`, in quotes, where it is ASCII that needs no
    /// escape. Otherwise nothing is written.
    #[inline(always)]
    pub(crate) fn plain_string<B: Block>(
        self,
        bytes: &[u8; BLOCK],
        len: usize,
    ) -> Result<(), Self> {
        assert!(len <= BLOCK);
        let block: B = block(bytes);
        if block.not_plain() & first(len) != 0 {
            return Err(self);
        }
        let to = self.0.to;
        debug_assert!(self.0.reaches(BLOCK + 2));
        // SAFETY: the capacity reaches 34 bytes beyond `to`.
        unsafe { to.write(b'"') };
        // SAFETY: as above: one byte, and 32.
        unsafe { block.store(to.wrapping_add(1)) };
        // SAFETY: as above: one byte, at most 32, and one.
        unsafe { to.wrapping_add(1 + len).write(b'"') };
        self.0.to = to.wrapping_add(len + 2);
        Ok(())
    }

    /// Writes the string that lies at `start..end` of the source, as [`append_string`] does.
    #[inline(always)]
    pub(crate) fn string<B: Block>(self, source: Source<'_>, start: usize, end: usize) {
        self.string_or::<B>(source, start, end, append_string);
    }

    /// Writes the string that lies at `start..end` of the source, where it is UTF-8. Otherwise it writes what
    /// `otherwise` appends.
    #[inline(always)]
    pub(crate) fn string_or<B: Block>(
        self,
        source: Source<'_>,
        start: usize,
        end: usize,
        otherwise: impl FnOnce(&[u8], &mut Vec<u8>),
    ) {
        let text = &source.0[start..end];
        let pen = self.0;
        let before = pen.len();
        // Room for all of it, for a block that reaches beyond it, and for the quotes.
        pen.reserve(text.len() + BLOCK + 2);
        // SAFETY: the capacity reaches that far.
        unsafe { pen.write(*b"\"", 1) };
        let mut high = false;
        let mut left = text.len();
        let (blocks, rest) = text.as_chunks::<BLOCK>();
        for bytes in blocks {
            // SAFETY: there is room for what is left, and more.
            high |= unsafe { pen.part::<B>(block(bytes), bytes, left) };
            left -= BLOCK;
        }
        if !rest.is_empty() {
            let block = source.block(end - rest.len());
            // SAFETY: as above.
            high |= unsafe { pen.part::<B>(block, rest, left) };
        }
        // SAFETY: the capacity reaches a block and more beyond `to`.
        unsafe { pen.write(*b"\"", 1) };
        if high && !B::is_utf8(source, start, end) {
            // SAFETY: all before this string was written.
            (pen.to, pen.limit) = unsafe { instead(text, pen.out, before, otherwise) };
        }
    }
}

/// Lets `append` write what stands for a string at `len` of which not all is UTF-8. Gives the same as [`grow`].
///
/// # Safety
/// `len` bytes of the capacity are written.
#[cold]
#[inline(never)]
unsafe fn instead(
    bytes: &[u8],
    out: &mut Vec<u8>,
    len: usize,
    append: impl FnOnce(&[u8], &mut Vec<u8>),
) -> (*mut u8, *mut u8) {
    // SAFETY: the caller says so.
    unsafe { out.set_len(len) };
    append(bytes, out);
    out.reserve(ROOM);
    ends(out)
}

/// Appends a JSON string: quotes, escapes only where JSON demands them, U+FFFD for what is not UTF-8.
pub(crate) fn append_string(bytes: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(bytes);
    let mut pen = JsonWriter::of(out);
    let here = pen.room().behind_key();
    here.string::<PortableBlock>(Source::new(text.as_bytes()), 0, text.len());
    pen.finish();
}

/// Eight zeros of text.
const ZEROS: u64 = 0x3030_3030_3030_3030;

/// The decimal digits of a number below 100,000,000, the first one in the lowest byte.
#[inline(always)]
fn eight_digits(n: u32) -> u64 {
    // All at once: halves, quarters, single ones, each in its part of the word.
    let n = u64::from(n);
    let halves = (n / 10_000) | ((n % 10_000) << 32);
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let quarters = hundreds | ((halves - hundreds * 100) << 16);
    let tens = ((quarters * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | ((quarters - tens * 10) << 8)
}

/// The bits of the first `len` bytes, at most 32.
#[inline(always)]
fn first(len: usize) -> u32 {
    debug_assert!(len <= BLOCK);
    ((1u64 << len) - 1) as u32
}

/// Bytes of the longest escape.
const LONGEST_ESCAPE: usize = 6;

/// Writes the bytes of a block, of which those with a bit in `escapes` are escaped. Gives where they end.
///
/// # Safety
/// From `to` on [`LONGEST_ESCAPE`] bytes can be written for each of `bytes`, and two more.
#[inline(never)]
unsafe fn escape(bytes: &[u8], mut escapes: u32, mut to: *mut u8) -> *mut u8 {
    for byte in bytes {
        let (text, len) = if escapes & 1 == 0 {
            ([*byte, 0, 0, 0, 0, 0, 0, 0], 1)
        } else {
            escaped(*byte)
        };
        // SAFETY: the caller says that there is room, for each byte before as well; an array of bytes lies at
        // any address.
        unsafe { to.cast::<[u8; 8]>().write(text) };
        to = to.wrapping_add(len);
        escapes >>= 1;
    }
    to
}

/// The escape of a byte that needs one, and its length.
fn escaped(byte: u8) -> ([u8; 8], usize) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            let [high, low] = [byte >> 4, byte & 15].map(|half| HEX[usize::from(half)]);
            return ([b'\\', b'u', b'0', b'0', high, low, 0, 0], LONGEST_ESCAPE);
        }
    };
    ([b'\\', short, 0, 0, 0, 0, 0, 0], 2)
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

    use super::{BLOCK, Block, Kernel, Source, block};

    /// Does `work`, compiled for AVX2.
    ///
    /// # Safety
    /// The machine has AVX2 and BMI2.
    #[target_feature(enable = "avx2,bmi2")]
    pub(super) unsafe fn with_avx2<W: Kernel>(work: W) -> W::Output {
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
        fn is_utf8(source: Source<'_>, start: usize, end: usize) -> bool {
            // SAFETY: `Level::run` names this kind of block only where there is AVX2.
            unsafe { avx2_is_utf8(source, start, end) }
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

    #[inline(never)]
    #[target_feature(enable = "avx2")]
    fn avx2_is_utf8(source: Source<'_>, start: usize, end: usize) -> bool {
        let mut before = _mm256_setzero_si256();
        let mut wrong = before;
        let (blocks, rest) = source.0[start..end].as_chunks::<BLOCK>();
        for bytes in blocks {
            let Avx2Block(block) = block(bytes);
            wrong = _mm256_or_si256(wrong, avx2_wrong(before, block));
            before = block;
        }
        // The last block, with a zero behind it at least: a letter that is cut off is too short.
        let Avx2Block(last) = source.block(end - rest.len());
        let last = _mm256_and_si256(last, avx2_first(rest.len()));
        wrong = _mm256_or_si256(wrong, avx2_wrong(before, last));
        _mm256_testz_si256(wrong, wrong) == 1
    }

    /// The first `len` bytes, at most 32.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_first(len: usize) -> __m256i {
        debug_assert!(len <= BLOCK);
        let numbers: [u8; BLOCK] = std::array::from_fn(|number| number as u8);
        let Avx2Block(numbers) = block(&numbers);
        _mm256_cmpgt_epi8(_mm256_set1_epi8(len as i8), numbers)
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

    impl Kernel for Told<'_> {
        type Output = [u32; 4];

        #[inline(always)]
        fn run<B: Block>(self) -> [u32; 4] {
            let [one, other]: [B; 2] = [self.0, self.1].map(block);
            let escapes = one.escapes();
            assert_eq!(one.not_plain(), escapes | one.high());
            let mut copy = [0; BLOCK];
            // SAFETY: the array is 32 bytes long; `B` is only named by `Level::run`.
            unsafe { one.store(copy.as_mut_ptr()) };
            assert_eq!(&copy, self.0);
            [escapes, one.high(), one.same(other), first(BLOCK)]
        }
    }

    /// What comes behind `before` where something is written at a place for a value.
    fn written(before: &[u8], write: impl FnOnce(ValueSlot<'_, '_>)) -> Vec<u8> {
        let mut out = before.to_vec();
        let mut pen = JsonWriter::of(&mut out);
        write(pen.room().behind_key());
        pen.finish();
        assert!(out.starts_with(before));
        out.split_off(before.len())
    }

    struct Quoted<'a>(&'a [u8], usize, usize);

    impl Kernel for Quoted<'_> {
        type Output = (Vec<u8>, bool);

        #[inline(always)]
        fn run<B: Block>(self) -> Self::Output {
            let Quoted(bytes, start, end) = self;
            let source = Source::new(bytes);
            let out = written(b"before", |here| here.string::<B>(source, start, end));
            let utf8 = B::is_utf8(source, start, end);
            // As long as what is taken back, and longer.
            let other = "-".repeat(bytes.len() + ROOM);
            let or = written(b"before", |here| {
                here.string_or::<B>(source, start, end, |text, out| {
                    assert_eq!(text, &bytes[start..end]);
                    out.extend_from_slice(other.as_bytes());
                });
            });
            assert_eq!(or, if utf8 { &out } else { other.as_bytes() });
            (out, utf8)
        }
    }

    /// A key, bytes that may begin with it, and the length of the short string behind it.
    struct Read<'a>(&'a Key, &'a [u8], usize);

    impl Kernel for Read<'_> {
        type Output = Option<Vec<u8>>;

        #[inline(always)]
        fn run<B: Block>(self) -> Self::Output {
            let Read(key, bytes, len) = self;
            let value = Source::new(bytes).pair(0)?.behind::<B>(key)?;
            let mut plain = false;
            let out = written(b"{", |here| {
                let ValueSlot(pen) = here;
                let here = pen.room().key::<B>(key);
                plain = here.plain_string::<B>(value.rest(), len).is_ok();
            });
            assert!(plain || out == key.text());
            Some(out)
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
            let text = &around[start..end];
            let mut expected = b"\"".to_vec();
            for byte in String::from_utf8_lossy(text).bytes() {
                if escapes(byte) {
                    let (text, len) = escaped(byte);
                    expected.extend_from_slice(&text[..len]);
                } else {
                    expected.push(byte);
                }
            }
            expected.push(b'"');
            for level in Level::all() {
                let (out, utf8) = level.run(Quoted(&around, start, end));
                prop_assert_eq!(&out, &expected, "{:?}", level);
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
                let (_, utf8) = level.run(Quoted(&bytes, 0, bytes.len()));
                prop_assert_eq!(utf8, std::str::from_utf8(&bytes).is_ok(), "{:?} {:x?}", level, bytes);
            }
        }

        #[test]
        fn a_key_and_a_short_value_are_written_as_they_are(
            raw in proptest::collection::vec(byte(), 0..=BLOCK),
            text in proptest::collection::vec(byte(), 0..=LONGEST_KEY),
            value in "[ -~]{32}",
            len in 0..=BLOCK,
            broken in proptest::option::of(any::<proptest::sample::Index>()),
        ) {
            let key = Key::new(&raw, &text).unwrap();
            let mut bytes = [&raw[..], &[0xa0], value.as_bytes(), &[0; BLOCK]].concat();
            let mut expected = text.clone();
            if !value.as_bytes()[..len].iter().copied().any(escapes) {
                expected.extend([b"\"", &value.as_bytes()[..len], b"\""].concat());
            }
            let mut expected = Some(expected);
            if let (Some(at), false) = (broken, raw.is_empty()) {
                bytes[at.index(raw.len())] ^= 1;
                expected = None;
            }
            for level in Level::all() {
                let out = level.run(Read(&key, &bytes, len));
                prop_assert_eq!(&out, &expected, "{:?}", level);
            }
        }

        #[test]
        fn numbers_have_their_digits(n in any::<u32>(), shift in 0u32..32) {
            for n in [n >> shift, n.leading_zeros(), 10u32.pow(shift % 10), 10u32.pow(shift % 10) - 1] {
                let text = written(b"", |here| here.number(n));
                prop_assert_eq!(String::from_utf8(text).unwrap(), n.to_string());
            }
        }

        /// Those that are written in a way of our own come out as those that are not.
        #[test]
        fn floats_have_the_fewest_digits_that_tell_them(
            bits in any::<u64>(),
            decimal in 0u64..10_000_000_000_000_000,
            places in 0u32..12,
        ) {
            let decimal = decimal as f64 / 10f64.powi(places as i32);
            let next = f64::from_bits(decimal.to_bits() + 1);
            let whole = decimal.trunc();
            for n in [f64::from_bits(bits), decimal, -decimal, next, whole, whole / 1e3, decimal / 1e9] {
                if n.is_finite() {
                    let text = written(b"", |here| here.float(n));
                    let expected = zmij::Buffer::new().format_finite(n).to_owned();
                    prop_assert_eq!(String::from_utf8(text).unwrap(), expected);
                }
            }
        }

        #[test]
        fn short_texts_are_written_whole(text in "[a-z]{0,32}") {
            let out = written(b"", |here| here.short(&text));
            prop_assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn floats_at_the_borders_of_our_own_way_come_out_as_the_others() {
        for n in [
            0.0,
            0.000_999,
            0.001,
            0.001_000_1,
            0.999_999,
            0.999_999_9,
            1.0,
            1.5,
            0.1 + 0.2,
            99_999_999.0,
            99_999_999.999_999,
            100_000_000.0,
            1e15,
            1e16,
            5e-324,
            f64::MAX,
        ] {
            let text = written(b"", |here| here.float(n));
            assert_eq!(
                String::from_utf8(text).unwrap(),
                zmij::Buffer::new().format_finite(n)
            );
        }
    }

    /// However full the text is: what is written lies within its capacity, which [`JsonWriter`] checks in tests.
    #[test]
    fn a_text_grows_before_it_is_full() {
        let value = "escapes \" \\ \n and 회원 ".repeat(9);
        let mut expected = Vec::new();
        append_string(value.as_bytes(), &mut expected);
        // Miri takes some thousand times as long.
        let step = if cfg!(miri) { 29 } else { 1 };
        for capacity in (0..2 * ROOM).step_by(step) {
            for len in [0, capacity / 2, capacity] {
                let mut out = Vec::with_capacity(capacity);
                out.resize(len.min(out.capacity()), b' ');
                let before = out.len();
                append_string(value.as_bytes(), &mut out);
                assert_eq!(&out[before..], expected);
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
                    let (_, utf8) = level.run(Quoted(&bytes, 0, bytes.len()));
                    let expected = std::str::from_utf8(&bytes).is_ok();
                    assert_eq!(utf8, expected, "{level:?} {bytes:x?}");
                }
            }
        }
    }

    #[test]
    fn nothing_beyond_the_end_is_read() {
        for len in 0..2 * PAIR {
            let bytes = vec![0; len];
            let source = Source::new(&bytes);
            for at in (0..2 * PAIR).chain([usize::MAX]) {
                let left = len.saturating_sub(at);
                assert_eq!(source.pair(at).is_some(), left >= PAIR);
                assert_eq!(source.value(at).is_some(), left >= VALUE);
            }
        }
    }
}
