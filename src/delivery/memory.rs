//! The memory of an instance: how much it may hold, and what holds it.
//!
//! Memory is reserved before anything is written into it, by an upper bound of its size; what turns out not to be
//! needed is released at once. The rest of the reservation lives as long as the bytes it is for: they own it
//! ([`Share::attach`]), so that it is released exactly when they are dropped.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buffers;

/// The unit in which memory is counted, in bytes.
pub(super) const UNIT: usize = 1024;

/// The memory of one instance. Reservations are granted in order of request.
#[derive(Debug)]
pub(super) struct Memory {
    free: Arc<Semaphore>,
    units: usize,
}

impl Memory {
    /// Creates a limit of `limit` bytes.
    pub(super) fn new(limit: usize) -> Memory {
        let units = limit / UNIT;
        Memory {
            free: Arc::new(Semaphore::new(units)),
            units,
        }
    }

    /// Reserves `bytes` as soon as they are free. A request above the limit waits for all memory, and is then the only
    /// one.
    pub(super) async fn reserve(&self, bytes: usize) -> Share {
        let units = bytes.div_ceil(UNIT).min(self.units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let reserved = Arc::clone(&self.free).acquire_many_owned(units).await;
        Share(reserved.expect("the semaphore is never closed"))
    }

    /// Returns the number of bytes reserved.
    pub(super) fn held(&self) -> usize {
        (self.units - self.free.available_permits()) * UNIT
    }
}

/// A reservation of memory, released on drop.
#[derive(Debug)]
pub(super) struct Share(OwnedSemaphorePermit);

impl Share {
    /// Splits off `bytes` of the reservation, or all of it if it has less.
    pub(super) fn split(&mut self, bytes: usize) -> Share {
        let units = bytes.div_ceil(UNIT).min(self.0.num_permits());
        Share(
            self.0
                .split(units)
                .expect("at most its own permits are split off"),
        )
    }

    /// Returns the bytes with a part of the reservation, which is held for as long as a clone or a slice of them
    /// exists. It covers their own size and `overhead` more.
    pub(super) fn attach(&mut self, bytes: Vec<u8>, overhead: usize) -> Bytes {
        let share = self.split(bytes.capacity() + overhead);
        buffers::share_with(bytes, share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn a_reservation_lives_as_long_as_its_bytes() {
        let memory = Memory::new(100 * UNIT);
        let mut share = memory.reserve(60 * UNIT + 1).now_or_never().expect("room");
        assert_eq!(memory.held(), 61 * UNIT);
        let bytes = share.attach(vec![7; 10 * UNIT], UNIT);
        drop(share);
        assert_eq!(memory.held(), 11 * UNIT);
        let slice = bytes.slice(3..5);
        drop(bytes);
        assert_eq!(memory.held(), 11 * UNIT);
        drop(slice);
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn a_reservation_above_the_limit_waits_for_all_memory() {
        let memory = Memory::new(100 * UNIT);
        let mut large = memory.reserve(1_000 * UNIT).now_or_never().expect("room");
        assert_eq!(memory.held(), 100 * UNIT);
        assert!(memory.reserve(1).now_or_never().is_none());
        let bytes = large.attach(vec![7; 1_000 * UNIT], 0);
        drop(large);
        assert!(memory.reserve(1).now_or_never().is_none());
        drop(bytes);
        assert!(memory.reserve(1).now_or_never().is_some());
    }
}
