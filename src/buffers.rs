//! Large buffers, used again and again.
//!
//! A chunk, its lines and the request they go in are some megabytes each, and come and go on several
//! threads. Given back to the system's allocator, each thread's part of it would keep what was freed last,
//! and ask the kernel for fresh pages again and again. Here a few are kept for whoever is next.

use std::sync::Mutex;

use bytes::Bytes;
use smallvec::SmallVec;

/// Smaller ones are left to the allocator.
const LEAST: usize = 128 * 1024;
/// Bytes of idle buffers, at most: about a request's, and the lines of a chunk.
const MOST_IDLE: usize = 9 * 1024 * 1024;

static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn idle() -> std::sync::MutexGuard<'static, Vec<Vec<u8>>> {
    IDLE.lock().expect("nothing panics with this lock")
}

/// An empty buffer with room for `bytes`.
pub fn take(bytes: usize) -> Vec<u8> {
    if bytes >= LEAST {
        let mut idle = idle();
        let fits = |buffer: &Vec<u8>| (bytes..=bytes * 2).contains(&buffer.capacity());
        let fitting = idle.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        if let Some((at, _)) = fitting.min_by_key(|(_, buffer)| buffer.capacity()) {
            return idle.swap_remove(at);
        }
    }
    Vec::with_capacity(bytes)
}

/// Gives a buffer back.
pub fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() < LEAST {
        return;
    }
    buffer.clear();
    let mut idle = idle();
    idle.push(buffer);
    let mut bytes: usize = idle.iter().map(Vec::capacity).sum();
    // The oldest go first: they are the ones nobody asked for.
    let mut gone = Vec::new();
    while bytes > MOST_IDLE {
        let oldest = idle.remove(0);
        bytes -= oldest.capacity();
        gone.push(oldest);
    }
    drop(idle);
}

/// A buffer's bytes, to be shared. It is given back when the last of its clones and slices is dropped.
pub fn share(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() < LEAST {
        return buffer.into();
    }
    share_with(buffer, ())
}

/// The same, for bytes that own something else with them: it is dropped when they are.
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

/// Bytes in parts, one behind the other: joined only where somebody needs them in one piece.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    parts: SmallVec<[Bytes; 1]>,
    len: usize,
}

impl Payload {
    /// Adds a part behind the others.
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

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it in one piece. Costs a copy where there are several parts.
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

/// By their bytes, however they are parted.
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
    fn what_is_shared_comes_back_empty_when_its_last_slice_is_dropped() {
        // Of a size that no other test asks for.
        let room = 3_333_333;
        let mut buffer = take(room);
        buffer.extend_from_slice(&[7; 200_000]);
        let address = buffer.as_ptr();
        let bytes = share(buffer);
        let slice = bytes.slice(100..200);
        drop(bytes);
        assert_eq!(slice, vec![7; 100]);
        let other = take(room);
        assert_ne!(other.as_ptr(), address, "it is still in use");
        drop(slice);
        let again = take(room);
        assert!(again.is_empty() && again.capacity() >= room);
    }

    #[test]
    fn idle_buffers_are_bounded() {
        for size in 1..40 {
            give(Vec::with_capacity(size * 1_000_000));
        }
        assert!(idle().iter().map(Vec::capacity).sum::<usize>() <= MOST_IDLE);
        give(vec![1; 100]);
        assert!(idle().iter().all(|buffer| buffer.capacity() >= LEAST));
    }
}
