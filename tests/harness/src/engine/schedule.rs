//! The schedule of retries.

use std::time::Duration;

use rand::Rng;

/// The `Retry_Limit` of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryLimit {
    /// This number of retries, after which the chunk is dropped. The host's default is 1.
    Limit(u32),
    /// `no_limits`, `false` or `off`.
    Unlimited,
    /// `no_retries`.
    Never,
}

impl RetryLimit {
    /// Parses a limit like the host, for which anything but a number above 0 is the default. The flag tells whether the
    /// host would warn of it.
    pub(crate) fn read(text: &str) -> (Self, bool) {
        match text.to_lowercase().as_str() {
            "no_limits" | "false" | "off" => (Self::Unlimited, true),
            "no_retries" => (Self::Never, true),
            number => match number.parse() {
                Ok(limit @ 1..) => (Self::Limit(limit), true),
                _ => (Self::Limit(1), false),
            },
        }
    }

    /// Whether a chunk that was retried `retries` times may be retried once more.
    pub(crate) fn allows(self, retries: u32) -> bool {
        match self {
            Self::Limit(limit) => retries < limit,
            Self::Unlimited => true,
            Self::Never => false,
        }
    }
}

/// The host's back-off: full jitter above a base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// `scheduler.base`, in seconds.
    pub(crate) base: f64,
    /// `scheduler.cap`, in seconds.
    pub(crate) cap: f64,
}

impl Schedule {
    /// Returns the wait before retry `attempt`, from 1: a whole number of seconds, evenly distributed over base ..=
    /// min(cap, base * 2^attempt), plus the second that the host's scheduler adds. With a fractional base, which the
    /// host does not support: any number in that range, without the additional second.
    pub(crate) fn wait(&self, attempt: u32, random: &mut impl Rng) -> Duration {
        let top = (self.base * 2_f64.powi(attempt.min(1000) as i32)).min(self.cap);
        let top = top.max(self.base);
        if self.is_fractional() {
            return Duration::from_secs_f64(random.random_range(self.base..=top));
        }
        Duration::from_secs(random.random_range(self.base as u64..=top as u64) + 1)
    }

    /// Returns the wait before every retry while the engine is stopping.
    pub(crate) fn wait_at_stop(&self) -> Duration {
        let whole = Duration::from_secs(1);
        if self.is_fractional() {
            whole.mul_f64(self.base.min(1.0))
        } else {
            whole
        }
    }

    fn is_fractional(&self) -> bool {
        self.base.fract() != 0.0
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn waits_lie_between_the_base_and_the_doubled_base_or_the_cap() {
        let cases = [
            // (base, cap, attempt, shortest, longest), in seconds
            (5.0, 2000.0, 1, 6, 11),
            (5.0, 2000.0, 2, 6, 21),
            (5.0, 2000.0, 8, 6, 1281),
            (5.0, 2000.0, 9, 6, 2001),
            (5.0, 2000.0, 4_000_000_000, 6, 2001),
            (5.0, 2.0, 3, 6, 6),
            (0.0, 2000.0, 3, 1, 1),
        ];
        let mut random = SmallRng::seed_from_u64(1);
        for (base, cap, attempt, shortest, longest) in cases {
            let schedule = Schedule { base, cap };
            let mut waits = Vec::new();
            for _ in 0..20_000 {
                waits.push(schedule.wait(attempt, &mut random));
            }
            let case = format!("base {base}, cap {cap}, attempt {attempt}");
            assert!(waits.iter().all(|wait| wait.subsec_nanos() == 0), "{case}");
            assert_eq!(
                waits.iter().min(),
                Some(&Duration::from_secs(shortest)),
                "{case}"
            );
            assert!(
                waits.iter().max() <= Some(&Duration::from_secs(longest)),
                "{case}"
            );
            assert!(
                waits.iter().max() >= Some(&Duration::from_secs(longest * 98 / 100)),
                "{case}"
            );
        }
    }

    #[test]
    fn a_fractional_base_scales_everything_down() {
        let schedule = Schedule {
            base: 0.01,
            cap: 0.03,
        };
        let mut random = SmallRng::seed_from_u64(1);
        for attempt in 1..100 {
            let wait = schedule.wait(attempt, &mut random).as_secs_f64();
            assert!((0.01..=0.03).contains(&wait), "attempt {attempt}: {wait}");
        }
        assert_eq!(schedule.wait_at_stop(), Duration::from_millis(10));
        assert_eq!(
            Schedule {
                base: 5.0,
                cap: 9.0
            }
            .wait_at_stop(),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn retry_limits_read_as_the_host_reads_them() {
        let cases = [
            // (text, read, understood, may be retried after 0, 1, 5 retries)
            ("1", RetryLimit::Limit(1), true, [true, false, false]),
            ("5", RetryLimit::Limit(5), true, [true, true, false]),
            ("no_limits", RetryLimit::Unlimited, true, [true, true, true]),
            ("False", RetryLimit::Unlimited, true, [true, true, true]),
            ("off", RetryLimit::Unlimited, true, [true, true, true]),
            ("No_Retries", RetryLimit::Never, true, [false, false, false]),
            ("0", RetryLimit::Limit(1), false, [true, false, false]),
            ("many", RetryLimit::Limit(1), false, [true, false, false]),
        ];
        for (text, limit, understood, allowed) in cases {
            assert_eq!(RetryLimit::read(text), (limit, understood), "{text}");
            assert_eq!(
                [0, 1, 5].map(|retries| limit.allows(retries)),
                allowed,
                "{text}"
            );
        }
    }
}
