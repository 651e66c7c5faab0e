//! A pool of large buffers.
//!
//! Chunks, lines and request bodies are some megabytes each, and are allocated and freed on several threads. With malloc,
//! each thread's arena would keep the memory freed last, and request fresh pages from the kernel again and again. The pool
//! shares a few idle buffers among all threads.

use std::sync::Mutex;

use bytes::Bytes;
use smallvec::SmallVec;

/// The minimum capacity of a pooled buffer, in bytes; smaller ones are left to the allocator.
const MIN_CAPACITY: usize = 128 * 1024;
/// The maximum total capacity of idle buffers, in bytes: about a request and the lines of a chunk.
const MAX_IDLE: usize = 9 * 1024 * 1024;

static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn idle() -> std::sync::MutexGuard<'static, Vec<Vec<u8>>> {
    IDLE.lock().expect("nothing panics with this lock")
}

/// Takes an empty buffer with a capacity of at least `bytes`.
pub fn take(bytes: usize) -> Vec<u8> {
    if bytes >= MIN_CAPACITY {
        let mut idle = idle();
        let fits = |buffer: &Vec<u8>| (bytes..=bytes * 2).contains(&buffer.capacity());
        let fitting = idle.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        if let Some((at, _)) = fitting.min_by_key(|(_, buffer)| buffer.capacity()) {
            return idle.swap_remove(at);
        }
    }
    Vec::with_capacity(bytes)
}

/// Returns a buffer to the pool.
pub fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() < MIN_CAPACITY {
        return;
    }
    buffer.clear();
    let mut idle = idle();
    idle.push(buffer);
    let mut bytes: usize = idle.iter().map(Vec::capacity).sum();
    // The oldest go first, since no one has needed them. They are freed after the lock is released.
    let mut evicted = Vec::new();
    while bytes > MAX_IDLE {
        let oldest = idle.remove(0);
        bytes -= oldest.capacity();
        evicted.push(oldest);
    }
    drop(idle);
}

/// Returns a buffer with the same bytes and a capacity of little more, for bytes that are kept.
pub fn fit(buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() / 2 <= buffer.len() {
        return buffer;
    }
    let fitting = buffer.as_slice().to_vec();
    give(buffer);
    fitting
}

/// Converts a buffer to shared bytes. It returns to the pool when the last clone or slice is dropped.
pub fn share(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() < MIN_CAPACITY {
        return buffer.into();
    }
    share_with(buffer, ())
}

/// Like [`share`]; `with` is dropped together with the bytes.
pub fn share_with<T: Send + 'static>(buffer: Vec<u8>, with: T) -> Bytes {
    Bytes::from_owner(Shared {
        buffer,
        _with: with,
    })
}

struct Shared<T> {
    buffer: Vec<u8>,
    _with: T,
}

impl<T> AsRef<[u8]> for Shared<T> {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.buffer));
    }
}

/// A sequence of byte parts, joined only when needed in one piece.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    parts: SmallVec<[Bytes; 1]>,
    len: usize,
}

impl Payload {
    /// Appends a part.
    pub fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.len += part.len();
            self.parts.push(part);
        }
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// The total length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes in one piece. Copies them if there are several parts.
    pub fn to_bytes(&self) -> Bytes {
        match &self.parts[..] {
            [all] => all.clone(),
            parts => parts.concat().into(),
        }
    }
}

impl<B: Into<Bytes>> From<B> for Payload {
    fn from(bytes: B) -> Payload {
        let mut payload = Payload::default();
        payload.push(bytes.into());
        payload
    }
}

impl Eq for Payload {}

impl Extend<Bytes> for Payload {
    fn extend<I: IntoIterator<Item = Bytes>>(&mut self, parts: I) {
        parts.into_iter().for_each(|part| self.push(part));
    }
}

/// Compares the bytes, however they are divided.
impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        let bytes = |payload: &Payload| payload.parts.clone().into_iter().flatten();
        self.len == other.len && bytes(self).eq(bytes(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_buffer_returns_empty_when_its_last_slice_is_dropped() {
        // A size that no other test uses.
        let capacity = 3_333_333;
        let mut buffer = take(capacity);
        buffer.extend_from_slice(&[7; 200_000]);
        let address = buffer.as_ptr();
        let bytes = share(buffer);
        let slice = bytes.slice(100..200);
        drop(bytes);
        assert_eq!(slice, vec![7; 100]);
        let other = take(capacity);
        assert_ne!(other.as_ptr(), address, "it is still in use");
        drop(slice);
        let again = take(capacity);
        assert!(again.is_empty() && again.capacity() >= capacity);
    }

    #[test]
    fn idle_buffers_are_bounded() {
        for size in 1..40 {
            give(Vec::with_capacity(size * 1_000_000));
        }
        assert!(idle().iter().map(Vec::capacity).sum::<usize>() <= MAX_IDLE);
        give(vec![1; 100]);
        assert!(
            idle()
                .iter()
                .all(|buffer| buffer.capacity() >= MIN_CAPACITY)
        );
    }
}
