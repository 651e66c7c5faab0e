//! What an instance may hold in memory, and who holds it.
//!
//! Memory is reserved before anything is written into it, by a bound of what that can be; what turns out not to be
//! needed is given back at once. What is left of the reservation lives as long as the bytes it is for: it is
//! owned by them ([`Share::of`]), so that it cannot be forgotten, wherever they go.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buffers;

/// Memory is counted in units of so many bytes.
pub(super) const UNIT: usize = 1024;

/// All of it. Whoever asks first is given first.
#[derive(Debug)]
pub(super) struct Memory {
    free: Arc<Semaphore>,
    units: usize,
}

impl Memory {
    /// `limit` bytes.
    pub(super) fn new(limit: usize) -> Memory {
        let units = limit / UNIT;
        Memory {
            free: Arc::new(Semaphore::new(units)),
            units,
        }
    }

    /// Reserves `bytes`, as soon as they are free. A request above the limit waits for all of it, and goes alone.
    pub(super) async fn reserve(&self, bytes: usize) -> Share {
        let units = bytes.div_ceil(UNIT).min(self.units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let reserved = Arc::clone(&self.free).acquire_many_owned(units).await;
        Share(reserved.expect("the semaphore is never closed"))
    }

    /// Bytes that are held.
    pub(super) fn held(&self) -> usize {
        (self.units - self.free.available_permits()) * UNIT
    }
}

/// Memory that somebody holds. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share(OwnedSemaphorePermit);

impl Share {
    /// Takes a part of so many bytes out of it; all of it where it has less.
    pub(super) fn part(&mut self, bytes: usize) -> Share {
        let units = bytes.div_ceil(UNIT).min(self.0.num_permits());
        Share(self.0.split(units).expect("it has as many"))
    }

    /// Bytes that hold a part of it for as long as a clone or a slice of them exists: what they take themselves, and
    /// `beside` more.
    pub(super) fn of(&mut self, bytes: Vec<u8>, beside: usize) -> Bytes {
        let share = self.part(bytes.capacity() + beside);
        buffers::share_with(bytes, share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn what_is_reserved_lives_as_long_as_the_bytes_it_is_for() {
        let memory = Memory::new(100 * UNIT);
        let mut share = memory.reserve(60 * UNIT + 1).now_or_never().expect("room");
        assert_eq!(memory.held(), 61 * UNIT);
        let bytes = share.of(vec![7; 10 * UNIT], UNIT);
        drop(share);
        assert_eq!(memory.held(), 11 * UNIT);
        let slice = bytes.slice(3..5);
        drop(bytes);
        assert_eq!(memory.held(), 11 * UNIT);
        drop(slice);
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn what_is_more_than_all_goes_alone() {
        let memory = Memory::new(100 * UNIT);
        let mut large = memory.reserve(1_000 * UNIT).now_or_never().expect("room");
        assert_eq!(memory.held(), 100 * UNIT);
        assert!(memory.reserve(1).now_or_never().is_none());
        let bytes = large.of(vec![7; 1_000 * UNIT], 0);
        drop(large);
        assert!(memory.reserve(1).now_or_never().is_none());
        drop(bytes);
        assert!(memory.reserve(1).now_or_never().is_some());
    }
}
