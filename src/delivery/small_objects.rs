//! Watches the size of objects: many small ones cost more in requests than in storage. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::log::size;
use crate::metrics::Sealed;

/// The time over which objects are counted.
const WINDOW: Duration = Duration::from_secs(600);
/// The number of windows in a month of 30 days.
const WINDOWS_A_MONTH: u64 = 30 * 24 * 6;
/// The number of objects a month from which their size matters.
pub const MANY_A_MONTH: u64 = 1_000_000;
/// The same for a window.
const MANY: u64 = MANY_A_MONTH.div_ceil(WINDOWS_A_MONTH);
/// The mean size below which objects are small, in bytes.
pub const SMALL: u64 = 64 * 1024;
/// What Amazon S3 charges for a million PUT requests to S3 Standard in us-east-1, in dollars (AWS price list, November 2026).
pub const S3_DOLLARS_PER_MILLION: u64 = 5;

/// The objects stored in the current window.
pub(super) struct SmallObjects {
    since: Instant,
    objects: u64,
    bytes: u64,
    /// Those sealed because memory or the spool was full.
    for_room: u64,
}

impl SmallObjects {
    /// Starts counting.
    pub(super) fn new(now: Instant) -> SmallObjects {
        SmallObjects {
            since: now,
            objects: 0,
            bytes: 0,
            for_room: 0,
        }
    }

    /// Counts an object that was stored, with its size in bytes. At the end of a window with many small ones, returns a
    /// message with the figures and the remedy.
    pub(super) fn stored(&mut self, bytes: u64, why: Sealed, now: Instant) -> Option<String> {
        let ended = now.duration_since(self.since) >= WINDOW;
        let past = ended.then(|| std::mem::replace(self, SmallObjects::new(now)));
        self.objects += 1;
        self.bytes += bytes;
        self.for_room += u64::from(why == Sealed::Memory);
        let past = past.filter(|past| now.duration_since(past.since) < 2 * WINDOW)?;
        past.message()
    }

    fn message(&self) -> Option<String> {
        let mean = self.bytes / self.objects.max(1);
        if self.objects < MANY || mean >= SMALL {
            return None;
        }
        let month = self.objects * WINDOWS_A_MONTH;
        let remedy = match self.for_room > self.objects / 2 {
            true => "raise spool_limit, or use fewer folders in path",
            false => "raise blob_max_age, or use fewer folders in path",
        };
        Some(format!(
            "objects average {}: {} in ten minutes are {} million a month, for which Amazon S3 charges ${} in requests: {remedy}",
            size(mean),
            self.objects,
            tenths(month, 1_000_000),
            month * S3_DOLLARS_PER_MILLION / 1_000_000,
        ))
    }
}

/// A quotient with one decimal place.
fn tenths(number: u64, of: u64) -> String {
    let tenths = number * 10 / of;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores objects of a size in one window, and one object after it.
    fn logged(objects: u64, bytes: u64, why: Sealed) -> Option<String> {
        let start = Instant::now();
        let mut small = SmallObjects::new(start);
        for _ in 0..objects {
            assert_eq!(small.stored(bytes, why, start), None);
        }
        small.stored(1, why, start + WINDOW)
    }

    #[test]
    fn many_small_objects_are_logged_with_their_cost_and_the_remedy() {
        let message = logged(2_000, 41_000, Sealed::Age).expect("a message");
        assert_eq!(
            message,
            "objects average 41 KB: 2000 in ten minutes are 8.6 million a month, for which Amazon S3 charges $43 in requests: \
             raise blob_max_age, or use fewer folders in path"
        );
        let message = logged(2_000, 41_000, Sealed::Memory).expect("a message");
        assert!(message.ends_with("raise spool_limit, or use fewer folders in path"));
    }

    #[test]
    fn few_or_large_objects_are_not_logged() {
        for (objects, bytes) in [(MANY - 1, 1_000), (2_000, SMALL), (1, 1)] {
            assert_eq!(
                logged(objects, bytes, Sealed::Age),
                None,
                "{objects} of {bytes}"
            );
        }
    }

    #[test]
    fn a_window_that_lasted_longer_says_nothing_about_a_month() {
        let start = Instant::now();
        let mut small = SmallObjects::new(start);
        for _ in 0..1_000 {
            small.stored(1, Sealed::Age, start);
        }
        assert_eq!(small.stored(1, Sealed::Age, start + 2 * WINDOW), None);
    }
}
