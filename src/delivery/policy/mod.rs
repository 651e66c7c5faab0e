//! The policies that senders follow: how many requests at once, how many bytes a second, when to try again, and when to
//! stop trying. Pure: time and randomness are arguments, so that the same code runs in the plugin, in tests, and in the
//! simulation of a fleet (`make fleet-sim`).
//!
//! They do not know of each other. A request is sent when all of them allow it, and its answer is told to each:
//!
//! | | holds back | hears of |
//! | --- | --- | --- |
//! | [`Adaptive`] | while as many requests are in flight as the destination takes | success, throttling |
//! | [`Pace`] | until the bytes sent before are paid for | bytes accepted, throttling, the end of an outage |
//! | [`Breaker`] | while the target is unavailable, except for a probe | failure, and any other answer |
//! | [`backoff`] | what failed, and only that | the number of attempts |
//!
//! A probe does not wait for the pace, since the breaker spaces probes itself; it is a small request. Throttling never
//! opens the breaker, and failures do not slow the pace: it starts again from a part of the last good rate when the
//! breaker closes.

pub mod adaptive;
pub mod pace;
pub mod retry;

pub use adaptive::{ADAPTIVE_MAX, ADAPTIVE_START, Adaptive};
pub use pace::Pace;
pub use retry::{Admission, Breaker, backoff};
