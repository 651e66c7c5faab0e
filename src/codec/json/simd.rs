//! The encoder's inner loop, which processes text 32 bytes at a time.
//!
//! A [`Block`] is 32 bytes in the machine's registers: AVX2 where it is detected at run time, SSE2 on every other
//! x86-64, four `u64` elsewhere. All three are tested against each other and against plain loops. Input is read
//! through [`Pair`] and [`Value`], and output is written through [`JsonWriter`]: each checks its bounds once for all
//! the reads and writes that follow.
//!
//! The code is unsafe for one reason: blocks are read beyond the end of a string (within the chunk) and written beyond
//! the end of the text (within its capacity), which saves a byte loop at every string.

/// The size of a block, in bytes.
pub(crate) const BLOCK: usize = 32;

/// 32 bytes.
pub(crate) trait Block: Copy {
    /// Reads 32 bytes.
    ///
    /// # Safety
    /// 32 bytes from `from` on can be read, and the machine has the block's instructions.
    unsafe fn load(from: *const u8) -> Self;

    /// Writes 32 bytes.
    ///
    /// # Safety
    /// 32 bytes from `to` on can be written, and the machine has the block's instructions.
    unsafe fn store(self, to: *mut u8);

    /// The mask of bytes that JSON requires to be escaped: below 0x20, `"`, `\`.
    fn escapes(self) -> u32;

    /// The mask of bytes that are not ASCII.
    fn high(self) -> u32;

    /// The union of [`Block::escapes`] and [`Block::high`].
    fn not_plain(self) -> u32;

    /// Whether `start..end` of the source is UTF-8.
    fn is_utf8(source: Source<'_>, start: usize, end: usize) -> bool {
        std::str::from_utf8(&source.0[start..end]).is_ok()
    }

    /// The mask of bytes that are equal in both.
    fn same(self, other: Self) -> u32;
}

/// Work on blocks, generic over their instructions.
pub(crate) trait Kernel {
    /// The result.
    type Output;

    /// Runs the kernel. Implementations must be `#[inline(always)]`, and so must everything they call for each block:
    /// only inlined code is compiled for the level's instructions.
    fn run<B: Block>(self) -> Self::Output;
}

/// The instruction set that blocks use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One register of 32 bytes. Constructed by [`Level::all`] alone, after detection.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// Two registers of 16 bytes, which every x86-64 has.
    #[cfg(target_arch = "x86_64")]
    Sse2,
    /// Plain integers.
    Portable,
}

/// Proof that this machine has AVX2 and BMI2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Level {
    /// Returns the fastest level of this machine.
    pub fn best() -> Level {
        Level::all()[0]
    }

    /// Returns all levels of this machine, the fastest first.
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

    /// Runs `work` with this level's blocks.
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

/// The input, to read blocks from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a>(&'a [u8]);

/// The number of bytes that may be read from a value's start on: its first byte and a block.
const VALUE: usize = 1 + BLOCK;
/// The number of bytes that may be read from a pair's start on: the longest key and the value.
const PAIR: usize = BLOCK + VALUE;

/// The start of a key and its value, with [`PAIR`] readable bytes.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a>(&'a [u8; PAIR]);

/// The start of a value, with [`VALUE`] readable bytes.
#[derive(Clone, Copy)]
pub(crate) struct Value<'a>(&'a [u8; VALUE]);

impl<'a> Source<'a> {
    #[inline(always)]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Source(bytes)
    }

    /// Returns the `N` bytes at `at`, or `None` where there are fewer.
    #[inline(always)]
    fn array<const N: usize>(self, at: usize) -> Option<&'a [u8; N]> {
        // One comparison for both: fewer than `N` bytes, and none.
        if at >= (self.0.len() + 1).saturating_sub(N) {
            return None;
        }
        // SAFETY: `at` is below the bytes' length.
        let from = unsafe { self.0.as_ptr().add(at) };
        // SAFETY: at least `N` bytes follow `at`; byte arrays need no alignment.
        Some(unsafe { &*from.cast() })
    }

    /// Returns the pair at `at`, or `None` within the last [`PAIR`] bytes.
    #[inline(always)]
    pub(crate) fn pair(self, at: usize) -> Option<Pair<'a>> {
        self.array(at).map(Pair)
    }

    /// Returns the value at `at`, or `None` within the last [`VALUE`] bytes.
    #[inline(always)]
    pub(crate) fn value(self, at: usize) -> Option<Value<'a>> {
        self.array(at).map(Value)
    }

    /// Returns the 32 bytes at `at`, padded with zeros at the end.
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
    // SAFETY: the array is 32 bytes long; only `Level::run` chooses `B`.
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
    /// Returns the value if the pair's key is `key`.
    #[inline(always)]
    pub(crate) fn value_after<B: Block>(self, key: &Key) -> Option<Value<'a>> {
        // SAFETY: a pair is longer than 32 bytes; only `Level::run` chooses `B`.
        let head = unsafe { B::load(self.0.as_ptr()) };
        if !head.same(block(&key.raw)) & key.mask != 0 {
            return None;
        }
        // SAFETY: a key is at most 32 bytes long.
        let value = unsafe { self.0.as_ptr().add(usize::from(key.raw_len)) };
        // SAFETY: the pair reaches `VALUE` bytes beyond that; byte arrays need no alignment.
        Some(Value(unsafe { &*value.cast() }))
    }
}

impl<'a> Value<'a> {
    /// The first byte.
    #[inline(always)]
    pub(crate) fn first(self) -> u8 {
        self.0[0]
    }

    /// The `N` bytes after the first, of which there are 32.
    #[inline(always)]
    pub(crate) fn rest<const N: usize>(self) -> &'a [u8; N] {
        const { assert!(N <= BLOCK) };
        self.0[1..].first_chunk().expect("N is at most BLOCK")
    }
}

/// The length of the longest text of a [`Key`], in bytes.
pub(crate) const MAX_KEY_TEXT: usize = 2 * BLOCK;

/// A key in msgpack and its written form.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    text: [u8; MAX_KEY_TEXT],
    raw: [u8; BLOCK],
    /// The mask of the bytes of `raw` that are part of the key.
    mask: u32,
    /// At most 32.
    raw_len: u8,
    /// At most 64.
    text_len: u8,
}

impl Key {
    /// Creates a key that is `raw` in msgpack and written as `text`. Returns `None` where `raw` is longer than [`BLOCK`]
    /// or `text` longer than [`MAX_KEY_TEXT`].
    pub(crate) fn new(raw: &[u8], text: &[u8]) -> Option<Key> {
        if raw.len() > BLOCK || text.len() > MAX_KEY_TEXT {
            return None;
        }
        let mut key = Key {
            text: [0; MAX_KEY_TEXT],
            raw: [0; BLOCK],
            mask: low_bits(raw.len()),
            raw_len: raw.len() as u8,
            text_len: text.len() as u8,
        };
        key.raw[..raw.len()].copy_from_slice(raw);
        key.text[..text.len()].copy_from_slice(text);
        Some(key)
    }

    /// The length of the key in msgpack.
    #[inline(always)]
    pub(crate) fn raw_len(&self) -> usize {
        self.raw_len.into()
    }

    /// The key in msgpack.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw[..usize::from(self.raw_len)]
    }

    /// The written form.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text[..usize::from(self.text_len)]
    }
}

/// The most bytes that a key and a short value write: two blocks, a quote, a block, and a quote.
const ROOM: usize = MAX_KEY_TEXT + BLOCK + 2;

/// Appends to a text, whose length is only set by [`JsonWriter::finish`].
pub(crate) struct JsonWriter<'v> {
    out: &'v mut Vec<u8>,
    /// The write position: within the text's capacity or at its end. All bytes before it are initialized.
    to: *mut u8,
    /// The last position with [`ROOM`] bytes of capacity ahead.
    limit: *mut u8,
}

/// A write position with [`ROOM`] bytes of capacity ahead.
pub(crate) struct KeySlot<'p, 'v>(&'p mut JsonWriter<'v>);

/// A write position after a key or a comma, with capacity ahead for a short value.
pub(crate) struct ValueSlot<'p, 'v>(&'p mut JsonWriter<'v>);

/// Reserves the larger of `room` and [`ROOM`] bytes. Returns the new write position and limit.
///
/// # Safety
/// The first `len` bytes of the capacity are initialized.
#[cold]
#[inline(never)]
unsafe fn grow(out: &mut Vec<u8>, len: usize, room: usize) -> (*mut u8, *mut u8) {
    // SAFETY: guaranteed by the caller.
    unsafe { out.set_len(len) };
    out.reserve(room.max(ROOM));
    bounds(out)
}

/// Returns the write position and the limit of a text with [`ROOM`] bytes of spare capacity.
#[inline(always)]
fn bounds(out: &mut Vec<u8>) -> (*mut u8, *mut u8) {
    let (len, capacity) = (out.len(), out.capacity());
    let begin = out.as_mut_ptr();
    (begin.wrapping_add(len), begin.wrapping_add(capacity - ROOM))
}

impl<'v> JsonWriter<'v> {
    #[inline(always)]
    pub(crate) fn of(out: &'v mut Vec<u8>) -> Self {
        out.reserve(ROOM);
        let (to, limit) = bounds(out);
        JsonWriter { out, to, limit }
    }

    /// Returns the text, its length set to what was written.
    #[inline(always)]
    pub(crate) fn finish(self) -> &'v mut Vec<u8> {
        let len = self.len();
        // SAFETY: all bytes before `to` are initialized, and within the capacity.
        unsafe { self.out.set_len(len) };
        self.out
    }

    /// The length of the text, with what was written.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.to.addr() - self.out.as_ptr().addr()
    }

    /// Reserves capacity for `bytes` bytes, and for [`ROOM`] where it has to grow.
    #[inline(always)]
    fn reserve(&mut self, bytes: usize) {
        if self.limit.addr() + ROOM - self.to.addr() < bytes {
            let len = self.len();
            // SAFETY: all bytes before `to` are initialized.
            (self.to, self.limit) = unsafe { grow(self.out, len, bytes) };
        }
    }

    /// Reserves [`ROOM`] bytes for a key and a short value.
    #[inline(always)]
    pub(crate) fn slot(&mut self) -> KeySlot<'_, 'v> {
        if self.to > self.limit {
            let len = self.len();
            // SAFETY: all bytes before `to` are initialized.
            (self.to, self.limit) = unsafe { grow(self.out, len, ROOM) };
        }
        KeySlot(self)
    }

    /// Closes a container whose items were written from `start` on, each after a comma: the opening bracket replaces the
    /// first comma.
    #[inline(always)]
    pub(crate) fn close(&mut self, start: usize, map: bool) {
        let (opening, closing) = if map { (b'{', b'}') } else { (b'[', b']') };
        let len = self.len();
        let KeySlot(writer) = self.slot();
        if start < len {
            let comma = writer.out.as_mut_ptr().wrapping_add(start);
            // SAFETY: `start` is before `to`, and so within the text.
            unsafe { comma.write(opening) };
        } else {
            // SAFETY: there are `ROOM` bytes ahead.
            unsafe { writer.write([opening], 1) };
        }
        // SAFETY: as above.
        unsafe { writer.write([closing], 1) };
    }

    /// Writes `bytes`, a part of a string with `left` bytes still to write; `block` begins with them. Returns whether
    /// any of them is not ASCII.
    ///
    /// # Safety
    /// `bytes` has at most 32 and at most `left` bytes. The capacity reaches `left` + [`BLOCK`] + 1 bytes beyond `to`;
    /// afterwards this holds for the rest of the string.
    #[inline(always)]
    unsafe fn part<B: Block>(&mut self, block: B, bytes: &[u8], left: usize) -> bool {
        let part = low_bits(bytes.len());
        let mut high = 0;
        if block.not_plain() & part != 0 {
            high = block.high() & part;
            let escapes = block.escapes() & part;
            if escapes != 0 {
                self.reserve(MAX_ESCAPE * BLOCK + left + BLOCK + 1);
                // SAFETY: the capacity suffices for an escape of every byte, and for the rest.
                self.to = unsafe { escape(bytes, escapes, self.to) };
                return high != 0;
            }
        }
        debug_assert!(self.reaches(left + BLOCK + 1));
        // SAFETY: guaranteed by the caller; only `Level::run` chooses `B`.
        unsafe { block.store(self.to) };
        self.to = self.to.wrapping_add(bytes.len());
        high != 0
    }

    /// Writes a newline.
    #[inline(always)]
    pub(crate) fn newline(&mut self) {
        let KeySlot(writer) = self.slot();
        // SAFETY: there are `ROOM` bytes ahead.
        unsafe { writer.write(*b"\n", 1) };
    }

    /// Whether the capacity reaches `bytes` bytes beyond `to`.
    fn reaches(&self, bytes: usize) -> bool {
        self.out.capacity() - self.len() >= bytes
    }

    /// Writes an array and advances by its first `len` bytes.
    ///
    /// # Safety
    /// The capacity reaches `N` bytes beyond `to`, and `len` is at most `N`.
    #[inline(always)]
    unsafe fn write<const N: usize>(&mut self, bytes: [u8; N], len: usize) {
        debug_assert!(len <= N && self.reaches(N));
        // SAFETY: guaranteed by the caller; byte arrays need no alignment.
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
        // SAFETY: the array of a key's text is 64 bytes long; only `Level::run` chooses `B`.
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

    /// Returns the position for the value of a key that is written already.
    #[inline(always)]
    pub(crate) fn after_key(self) -> ValueSlot<'p, 'v> {
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
        // Two arrays that overlap, of which the second ends where the text does.
        if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            self.overlapping::<16>(first, last, text.len());
        } else if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            self.overlapping::<8>(first, last, text.len());
        } else if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            self.overlapping::<4>(first, last, text.len());
        } else {
            for byte in text {
                // SAFETY: the capacity reaches 34 bytes beyond `to`.
                unsafe { self.0.write([*byte], 1) };
            }
        }
    }

    /// Writes a text of `len` bytes that begins with `first` and ends with `last`.
    #[inline(always)]
    fn overlapping<const N: usize>(self, first: &[u8; N], last: &[u8; N], len: usize) {
        assert!(N <= len && len <= 2 * N && N <= BLOCK / 2);
        let to = self.0.to;
        debug_assert!(self.0.reaches(BLOCK + 2));
        // SAFETY: the capacity reaches 34 bytes beyond `to`; byte arrays need no alignment.
        unsafe { to.cast::<[u8; N]>().write(*first) };
        // SAFETY: as above: `len` is at most 32.
        unsafe { to.wrapping_add(len - N).cast::<[u8; N]>().write(*last) };
        self.0.to = to.wrapping_add(len);
    }

    /// Writes `n` in decimal digits.
    #[inline(always)]
    pub(crate) fn number(self, n: u32) {
        let mut rest = n;
        // Marks the digits that are not leading zeros: the last digit, or all eight after the first two.
        let mut always = 1 << 56;
        if n >= 100_000_000 {
            // One or two digits, followed by eight.
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
        // SAFETY: the capacity reaches 34 bytes beyond the start, of which at most two are used.
        unsafe { self.0.write(text.to_le_bytes(), 8 - zeros as usize) };
    }

    /// Writes the shortest decimal number that reads back as `n`, which is finite.
    #[inline(always)]
    pub(crate) fn float(self, n: f64) {
        // Most are whole millionths. Decimals of at most 15 digits read back as distinct floats, so that this one is
        // the shortest, but for its trailing zeros.
        const MILLION: f64 = 1e6;
        if (0.001..1e8).contains(&n) {
            // SAFETY: the value is finite and between 1,000 and 1e14 + 0.5.
            let millionths: i64 = unsafe { (n * MILLION + 0.5).to_int_unchecked() };
            if millionths as f64 / MILLION == n {
                let millionths = millionths as u64;
                let rest = (millionths % 1_000_000) as u32;
                ValueSlot(&mut *self.0).number((millionths / 1_000_000) as u32);
                let digits = eight_digits(100 * rest);
                // At least one digit.
                let len = 8 - (digits | 1).leading_zeros() as usize / 8;
                // SAFETY: the capacity reaches 34 bytes beyond the start, of which at most eight are used.
                unsafe { self.0.write(*b".", 1) };
                // SAFETY: as above, of which at most nine are used.
                unsafe { self.0.write((digits | ZEROS).to_le_bytes(), len) };
                return;
            }
        }
        self.short(zmij::Buffer::new().format_finite(n));
    }

    /// Writes the first `len` of `bytes` as a quoted string if they are ASCII without escapes. Otherwise writes nothing
    /// and returns the position.
    #[inline(always)]
    pub(crate) fn plain_string<B: Block>(
        self,
        bytes: &[u8; BLOCK],
        len: usize,
    ) -> Result<(), Self> {
        assert!(len <= BLOCK);
        let block: B = block(bytes);
        if block.not_plain() & low_bits(len) != 0 {
            return Err(self);
        }
        let to = self.0.to;
        debug_assert!(self.0.reaches(BLOCK + 2));
        // SAFETY: the capacity reaches 34 bytes beyond `to`.
        unsafe { to.write(b'"') };
        // SAFETY: as above: 1 + 32 bytes.
        unsafe { block.store(to.wrapping_add(1)) };
        // SAFETY: as above: at most 1 + 32 + 1 bytes.
        unsafe { to.wrapping_add(1 + len).write(b'"') };
        self.0.to = to.wrapping_add(len + 2);
        Ok(())
    }

    /// Writes the string at `start..end` of the source, as [`append_string`] does.
    #[inline(always)]
    pub(crate) fn string<B: Block>(self, source: Source<'_>, start: usize, end: usize) {
        self.string_or_else::<B>(source, start, end, append_string);
    }

    /// Writes the string at `start..end` of the source if it is UTF-8, and otherwise what `otherwise` appends.
    #[inline(always)]
    pub(crate) fn string_or_else<B: Block>(
        self,
        source: Source<'_>,
        start: usize,
        end: usize,
        otherwise: impl FnOnce(&[u8], &mut Vec<u8>),
    ) {
        let text = &source.0[start..end];
        let writer = self.0;
        let before = writer.len();
        // The text, a block that reaches beyond it, and the quotes.
        writer.reserve(text.len() + BLOCK + 2);
        // SAFETY: the capacity reaches that far.
        unsafe { writer.write(*b"\"", 1) };
        let mut high = false;
        let mut left = text.len();
        let (blocks, rest) = text.as_chunks::<BLOCK>();
        for bytes in blocks {
            // SAFETY: the capacity for the whole string was reserved, and `part` preserves it for the rest.
            high |= unsafe { writer.part::<B>(block(bytes), bytes, left) };
            left -= BLOCK;
        }
        if !rest.is_empty() {
            let block = source.block(end - rest.len());
            // SAFETY: as above.
            high |= unsafe { writer.part::<B>(block, rest, left) };
        }
        // SAFETY: the capacity reaches more than a block beyond `to`.
        unsafe { writer.write(*b"\"", 1) };
        if high && !B::is_utf8(source, start, end) {
            // SAFETY: all bytes before this string are initialized.
            (writer.to, writer.limit) =
                unsafe { replace_string(text, writer.out, before, otherwise) };
        }
    }
}

/// Truncates the text to `len` and calls `append` in place of a string that is not UTF-8. Returns the new write position
/// and limit.
///
/// # Safety
/// The first `len` bytes of the capacity are initialized.
#[cold]
#[inline(never)]
unsafe fn replace_string(
    bytes: &[u8],
    out: &mut Vec<u8>,
    len: usize,
    append: impl FnOnce(&[u8], &mut Vec<u8>),
) -> (*mut u8, *mut u8) {
    // SAFETY: guaranteed by the caller.
    unsafe { out.set_len(len) };
    append(bytes, out);
    out.reserve(ROOM);
    bounds(out)
}

/// Appends a quoted JSON string, with only the required escapes, and U+FFFD for invalid UTF-8.
pub(crate) fn append_string(bytes: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(bytes);
    let mut writer = JsonWriter::of(out);
    let slot = writer.slot().after_key();
    slot.string::<PortableBlock>(Source::new(text.as_bytes()), 0, text.len());
    writer.finish();
}

/// Eight ASCII zeros.
const ZEROS: u64 = 0x3030_3030_3030_3030;

/// Returns the eight decimal digits of a number below 100,000,000, the first one in the lowest byte.
#[inline(always)]
fn eight_digits(n: u32) -> u64 {
    // SWAR: splits into halves, quarters and digits, all lanes at once.
    let n = u64::from(n);
    let halves = (n / 10_000) | ((n % 10_000) << 32);
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let quarters = hundreds | ((halves - hundreds * 100) << 16);
    let tens = ((quarters * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | ((quarters - tens * 10) << 8)
}

/// Returns the mask of the first `len` bytes, at most 32.
#[inline(always)]
fn low_bits(len: usize) -> u32 {
    debug_assert!(len <= BLOCK);
    ((1u64 << len) - 1) as u32
}

/// The length of the longest escape, in bytes.
const MAX_ESCAPE: usize = 6;

/// Writes the bytes of a block and escapes those in the mask `escapes`. Returns the end of what was written.
///
/// # Safety
/// [`MAX_ESCAPE`] bytes can be written for each of `bytes` from `to` on, and two more.
#[inline(never)]
unsafe fn escape(bytes: &[u8], mut escapes: u32, mut to: *mut u8) -> *mut u8 {
    for byte in bytes {
        let (text, len) = if escapes & 1 == 0 {
            ([*byte, 0, 0, 0, 0, 0, 0, 0], 1)
        } else {
            escaped(*byte)
        };
        // SAFETY: the caller guarantees the capacity for this byte and those before; byte arrays need no alignment.
        unsafe { to.cast::<[u8; 8]>().write(text) };
        to = to.wrapping_add(len);
        escapes >>= 1;
    }
    to
}

/// Returns the escape of a byte that needs one, and its length.
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
            return ([b'\\', b'u', b'0', b'0', high, low, 0, 0], MAX_ESCAPE);
        }
    };
    ([b'\\', short, 0, 0, 0, 0, 0, 0], 2)
}

/// Four integers.
#[derive(Clone, Copy)]
pub(crate) struct PortableBlock([u64; 4]);

impl PortableBlock {
    /// Returns the mask of bytes in `words` whose highest bit is set.
    #[inline(always)]
    fn bits(words: [u64; 4]) -> u32 {
        let mut bits = 0;
        for (number, word) in words.into_iter().enumerate() {
            // The product gathers the eight highest bits in the highest byte.
            let highest = (word & HIGH) >> 7;
            bits |= ((highest.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32) << (8 * number);
        }
        bits
    }
}

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Sets the highest bit of each byte that is zero. Exact, since no carry crosses bytes.
#[inline(always)]
fn zeros(word: u64) -> u64 {
    !(((word & !HIGH) + !HIGH) | word) & HIGH
}

impl Block for PortableBlock {
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        let from = from.cast::<[[u8; 8]; 4]>();
        // SAFETY: the caller guarantees 32 readable bytes; byte arrays need no alignment.
        PortableBlock(unsafe { from.read() }.map(u64::from_le_bytes))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        let to = to.cast::<[[u8; 8]; 4]>();
        // SAFETY: the caller guarantees 32 writable bytes; byte arrays need no alignment.
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

    /// Runs `work`, compiled for AVX2.
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
            // SAFETY: the caller guarantees 32 readable bytes and AVX2.
            Avx2Block(unsafe { _mm256_loadu_si256(from.cast()) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: the caller guarantees 32 writable bytes and AVX2.
            unsafe { _mm256_storeu_si256(to.cast(), self.0) };
        }

        #[inline(always)]
        fn escapes(self) -> u32 {
            // SAFETY: `load` requires AVX2, so a block proves it.
            unsafe { avx2_escape_bits(self.0) }
        }

        #[inline(always)]
        fn not_plain(self) -> u32 {
            // SAFETY: as in `escapes`.
            unsafe { avx2_not_plain(self.0) }
        }

        #[inline(always)]
        fn is_utf8(source: Source<'_>, start: usize, end: usize) -> bool {
            // SAFETY: `Level::run` chooses this block only with AVX2.
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
        // The highest bit of a byte that is not ASCII is its mask bit already.
        _mm256_movemask_epi8(_mm256_or_si256(avx2_escapes(block), block)) as u32
    }

    /// The faults of two consecutive bytes, a bit each. A fault is present where it is possible by the first byte's
    /// upper half, by its lower half and by the second byte's upper half: the bitwise and of three lookups.
    /// Method: Keiser and Lemire, "Validating UTF-8 In Less Than One Instruction Per Byte", 2021.
    mod fault {
        /// A lead byte without a continuation.
        pub(super) const TOO_SHORT: u8 = 1 << 0;
        /// A continuation after ASCII.
        pub(super) const TOO_LONG: u8 = 1 << 1;
        /// Three bytes where two suffice.
        pub(super) const OVERLONG_3: u8 = 1 << 2;
        /// Above U+10FFFF by the second byte.
        pub(super) const TOO_LARGE: u8 = 1 << 3;
        /// Half of a surrogate pair.
        pub(super) const SURROGATE: u8 = 1 << 4;
        /// Two bytes where one suffices.
        pub(super) const OVERLONG_2: u8 = 1 << 5;
        /// Four bytes where three suffice. Shares a bit with [`LARGER`]: no two bytes have both faults.
        pub(super) const OVERLONG_4: u8 = 1 << 6;
        /// Above U+10FFFF by the first byte.
        pub(super) const LARGER: u8 = 1 << 6;
        /// Two continuations: valid where the bytes before require them.
        pub(super) const TWO: u8 = 1 << 7;
        /// The faults that do not depend on the first byte's lower half.
        pub(super) const ANY: u8 = TOO_SHORT | TOO_LONG | TWO;
    }

    #[rustfmt::skip]
    const FIRST_UPPER: [u8; 16] = {
        use fault::*;
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
        use fault::*;
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
        use fault::*;
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
        let mut faults = before;
        let (blocks, rest) = source.0[start..end].as_chunks::<BLOCK>();
        for bytes in blocks {
            let Avx2Block(block) = block(bytes);
            faults = _mm256_or_si256(faults, avx2_faults(before, block));
            before = block;
        }
        // The last block is padded with at least one zero, so that a truncated character is `TOO_SHORT`.
        let Avx2Block(last) = source.block(end - rest.len());
        let last = _mm256_and_si256(last, avx2_low_mask(rest.len()));
        faults = _mm256_or_si256(faults, avx2_faults(before, last));
        _mm256_testz_si256(faults, faults) == 1
    }

    /// Returns a mask of the first `len` bytes, at most 32.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_low_mask(len: usize) -> __m256i {
        debug_assert!(len <= BLOCK);
        let numbers: [u8; BLOCK] = std::array::from_fn(|number| number as u8);
        let Avx2Block(numbers) = block(&numbers);
        _mm256_cmpgt_epi8(_mm256_set1_epi8(len as i8), numbers)
    }

    /// Returns a non-zero byte for each byte of `block`, which follows `before`, that is not UTF-8.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_faults(before: __m256i, block: __m256i) -> __m256i {
        let middle = _mm256_permute2x128_si256::<0x21>(before, block);
        let one_back = _mm256_alignr_epi8::<15>(block, middle);
        let two_back = _mm256_alignr_epi8::<14>(block, middle);
        let three_back = _mm256_alignr_epi8::<13>(block, middle);
        let lower = |bytes| _mm256_and_si256(bytes, _mm256_set1_epi8(0x0f));
        let pair_faults = _mm256_and_si256(
            _mm256_and_si256(
                avx2_lookup(&FIRST_UPPER, lower(_mm256_srli_epi16::<4>(one_back))),
                avx2_lookup(&FIRST_LOWER, lower(one_back)),
            ),
            avx2_lookup(&SECOND_UPPER, lower(_mm256_srli_epi16::<4>(block))),
        );
        // Continuations that must follow another: the third byte of three, the third and fourth of four.
        let third = _mm256_subs_epu8(two_back, _mm256_set1_epi8((0xe0u8 - 0x80) as i8));
        let fourth = _mm256_subs_epu8(three_back, _mm256_set1_epi8((0xf0u8 - 0x80) as i8));
        let required = _mm256_and_si256(_mm256_or_si256(third, fourth), _mm256_set1_epi8(i8::MIN));
        _mm256_xor_si256(required, pair_faults)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2_lookup(table: &[u8; 16], which: __m256i) -> __m256i {
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
            // SAFETY: the caller guarantees 32 readable bytes; every x86-64 has SSE2.
            let low = unsafe { _mm_loadu_si128(from.cast()) };
            // SAFETY: as above.
            Sse2Block(low, unsafe { _mm_loadu_si128(second.cast()) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            let second = to.wrapping_add(16);
            // SAFETY: the caller guarantees 32 writable bytes; every x86-64 has SSE2.
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

    /// All masks of a block.
    struct Masks<'a>(&'a [u8; BLOCK], &'a [u8; BLOCK]);

    impl Kernel for Masks<'_> {
        type Output = [u32; 4];

        #[inline(always)]
        fn run<B: Block>(self) -> [u32; 4] {
            let [one, other]: [B; 2] = [self.0, self.1].map(block);
            let escapes = one.escapes();
            assert_eq!(one.not_plain(), escapes | one.high());
            let mut copy = [0; BLOCK];
            // SAFETY: the array is 32 bytes long; only `Level::run` chooses `B`.
            unsafe { one.store(copy.as_mut_ptr()) };
            assert_eq!(&copy, self.0);
            [escapes, one.high(), one.same(other), low_bits(BLOCK)]
        }
    }

    /// Returns what `write` appends to `before` at a value's position.
    fn written(before: &[u8], write: impl FnOnce(ValueSlot<'_, '_>)) -> Vec<u8> {
        let mut out = before.to_vec();
        let mut writer = JsonWriter::of(&mut out);
        write(writer.slot().after_key());
        writer.finish();
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
            let out = written(b"before", |slot| slot.string::<B>(source, start, end));
            let utf8 = B::is_utf8(source, start, end);
            // Longer than the string that it replaces.
            let other = "-".repeat(bytes.len() + ROOM);
            let replaced = written(b"before", |slot| {
                slot.string_or_else::<B>(source, start, end, |text, out| {
                    assert_eq!(text, &bytes[start..end]);
                    out.extend_from_slice(other.as_bytes());
                });
            });
            assert_eq!(replaced, if utf8 { &out } else { other.as_bytes() });
            (out, utf8)
        }
    }

    /// A key, bytes that may begin with it, and the length of the short string that follows.
    struct Read<'a>(&'a Key, &'a [u8], usize);

    impl Kernel for Read<'_> {
        type Output = Option<Vec<u8>>;

        #[inline(always)]
        fn run<B: Block>(self) -> Self::Output {
            let Read(key, bytes, len) = self;
            let value = Source::new(bytes).pair(0)?.value_after::<B>(key)?;
            let mut plain = false;
            let out = written(b"{", |slot| {
                let ValueSlot(writer) = slot;
                let slot = writer.slot().key::<B>(key);
                plain = slot.plain_string::<B>(value.rest(), len).is_ok();
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

    /// Bytes that are common in logs, and boundary values.
    fn byte() -> impl Strategy<Value = u8> {
        const BORDERS: [u8; 11] = [
            0, 0x1f, 0x20, 0x22, 0x5c, 0x7f, 0x80, 0x9f, 0xa2, 0xdc, 0xff,
        ];
        prop_oneof![b' '..=b'z', proptest::sample::select(&BORDERS), any::<u8>()]
    }

    proptest! {
        #[test]
        fn every_level_computes_the_same_masks(
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
                prop_assert_eq!(level.run(Masks(&one, &other)), expected, "{:?}", level);
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

        /// Characters of every length, at every offset in a block, truncated or corrupted anywhere.
        #[test]
        fn every_level_validates_utf_8(
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
            text in proptest::collection::vec(byte(), 0..=MAX_KEY_TEXT),
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
                let text = written(b"", |slot| slot.number(n));
                prop_assert_eq!(String::from_utf8(text).unwrap(), n.to_string());
            }
        }

        /// The fast path agrees with the general one.
        #[test]
        fn floats_have_the_fewest_digits_that_read_back(
            bits in any::<u64>(),
            decimal in 0u64..10_000_000_000_000_000,
            places in 0u32..12,
        ) {
            let decimal = decimal as f64 / 10f64.powi(places as i32);
            let next = f64::from_bits(decimal.to_bits() + 1);
            let whole = decimal.trunc();
            for n in [f64::from_bits(bits), decimal, -decimal, next, whole, whole / 1e3, decimal / 1e9] {
                if n.is_finite() {
                    let text = written(b"", |slot| slot.float(n));
                    let expected = zmij::Buffer::new().format_finite(n).to_owned();
                    prop_assert_eq!(String::from_utf8(text).unwrap(), expected);
                }
            }
        }

        #[test]
        fn short_texts_are_written_whole(text in "[a-z]{0,32}") {
            let out = written(b"", |slot| slot.short(&text));
            prop_assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn floats_at_the_boundaries_of_the_fast_path_agree_with_the_general_one() {
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
            let text = written(b"", |slot| slot.float(n));
            assert_eq!(
                String::from_utf8(text).unwrap(),
                zmij::Buffer::new().format_finite(n)
            );
        }
    }

    /// [`JsonWriter`] asserts in debug builds that every write is within the capacity.
    #[test]
    fn a_text_grows_before_it_is_full() {
        let value = "escapes \" \\ \n and 회원 ".repeat(9);
        let mut expected = Vec::new();
        append_string(value.as_bytes(), &mut expected);
        // Miri is about a thousand times slower.
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

    /// Every pair of bytes, followed by ASCII and by continuations.
    #[test]
    fn every_level_validates_every_pair_of_bytes() {
        // Miri is about a thousand times slower, and checks the reads, not the result.
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
