//! The bytes a second that a stream is sent.
//!
//! A stream's quota belongs to all senders on it, and none knows how many there are. The number of requests in flight
//! is too coarse: a stream that takes 5 MiB/s from 1,000 senders takes little more than one request of 4 MiB a second.
//! So a sender that has been throttled spaces its requests by their size, and sends small ones while its rate is low:
//!
//! * Until the stream throttles for [`PERSISTS`] there is no limit. All this costs is an average of what is accepted.
//! * **Then** the rate is what was accepted of late. Each throttling multiplies it by [`CUT`], once a second at most,
//!   because the answers of one second are one signal.
//! * **Without throttling** it grows by the same number of bytes for each sender ([`STEP`]), which makes rates equal in
//!   time, and by a small share of itself ([`SHARE`]), since one sender alone could not use a large quota otherwise.
//!   After [`PATIENCE`] the growth doubles every [`DOUBLING`], to find what other senders have left. It counts only the
//!   time in which answers arrive.
//! * **After an outage** all senders have a backlog. They start with an eighth of the last good rate, which doubles
//!   every two seconds until it is reached.
//! * Once no request had to wait for [`RELEASE`], there is no limit again.
//!
//! The constants were chosen by `make fleet-sim`. Figures in comments are for 1,000 senders on a quota of 5 MiB/s: a
//! fair share is 5 KiB/s.

use std::f64::consts::LN_2;
use std::time::{Duration, Instant};

use rand::Rng;

/// The factor of a throttled rate. A sender alone goes up and down between this and the whole quota, and uses 92% of it;
/// with a half, as of the requests in flight, it would use 75%.
const CUT: f64 = 0.85;
/// The time for which a stream throttles before there is a limit. Throttling for a few seconds says nothing about the
/// quota (the service moves a stream to other shards, or one sender had a burst), and the number of requests in flight
/// is cut at once. A limit that began with the first throttled request would make such seconds minutes.
const PERSISTS: Duration = Duration::from_secs(10);
/// The time after which throttling begins anew.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// The shortest time between two cuts: requests that were in flight together are answered within it.
const CUT_INTERVAL: Duration = Duration::from_secs(1);
/// The growth of a rate, in bytes a second each second. A sender is back where it was throttled after a minute and some
/// 30 requests. With half of this and of [`SHARE`], a fifth less is throttled, and rates become equal more slowly.
const STEP: f64 = 8.0;
/// The share of a rate that is added each second: a sender alone makes up for a cut in some two minutes, whatever its
/// quota. More would favour those that have much already.
const SHARE: f64 = 0.001;
/// The time without throttling after which the growth doubles …
const PATIENCE: Duration = Duration::from_secs(60);
/// … and the time in which it doubles again and again. With 30 s, a fleet that finds its quota overshoots it by a
/// fifth.
const DOUBLING: Duration = Duration::from_secs(60);
/// The most that one accepted request, or those of one second, add to a rate, as a share of it. Throttling is noticed
/// only by the next request, which may be long after; with 1.5%, the fleet overshoots by a quarter.
const MOST_GROWTH: f64 = 0.008;
/// The growth of a rate while nothing is known about a good one, as the same share: it is soon found, at the price of
/// more throttling for some seconds.
const EXPLORING: f64 = 0.25;
/// The time after which there is no limit if no request had to wait for it.
const RELEASE: Duration = Duration::from_secs(120);
/// The lowest rate in bytes a second: that of 10,000 senders on 5 MiB/s.
const MIN_RATE: f64 = 512.0;
/// The first rate of a sender that knows nothing about a good one: 1,000 of them stay within the quota.
const START_RATE: f64 = 4.0 * 1024.0;
/// The bytes that a request may have at any rate. Many small requests make a smoother sum than few large ones: with 16
/// KiB, the highest second is at 1.24 of the quota instead of 1.15. Records are billed by 5 KiB, of which these are two.
pub const SMALL_REQUEST: usize = 10 * 1024;
/// The time between the requests of a sender whose rate is enough for several small ones: large requests cost less.
const REQUEST_TIME: Duration = Duration::from_millis(250);
/// The part of the last good rate that an outage leaves …
const AFTER_OUTAGE: f64 = 1.0 / 8.0;
/// … and the time in which it doubles. A fleet's probes succeed over ten seconds, because their backoff spreads them.
const RAMP_DOUBLING: Duration = Duration::from_secs(2);
/// The time after which the throttling of everything counts as an outage: some services call it so.
const OUTAGE: Duration = Duration::from_secs(60);
/// The time over which accepted bytes are averaged: longer than the bursts of a host that flushes once a second, short
/// enough to be about the present load.
const AVERAGED: Duration = Duration::from_secs(30);

/// The pace of one stream.
#[derive(Clone, Debug)]
pub struct Pace {
    accepted: Average,
    limit: Option<Limit>,
    /// Without a limit: since when the stream throttles, and when it did so last.
    throttles: Option<(Instant, Instant)>,
}

#[derive(Clone, Debug)]
struct Limit {
    /// Bytes a second.
    rate: f64,
    /// After an outage: the rate up to which it doubles.
    goal: Option<f64>,
    /// The bytes sent that the rate has not paid for, at `paid`.
    debt: f64,
    paid: Instant,
    /// The time up to which it has grown.
    grown: Instant,
    /// The time from which growth doubles.
    impatient_from: Instant,
    last_cut: Option<Instant>,
    /// Whether nothing is known about a good rate yet.
    explores: bool,
    /// The last time that a request had to wait or was throttled.
    needed: Instant,
}

impl Pace {
    /// Creates a pace without a limit.
    pub fn new(now: Instant) -> Pace {
        Pace {
            accepted: Average::new(now),
            limit: None,
            throttles: None,
        }
    }

    /// Returns when the request that is due may be sent: `now`, or later.
    pub fn ready_at(&mut self, now: Instant) -> Instant {
        let Some(limit) = &mut self.limit else {
            return now;
        };
        limit.pay(now);
        if limit.debt > 0.0 {
            limit.needed = now;
        }
        now + limit.time_for(limit.debt)
    }

    /// Returns the most bytes that the next request should have.
    pub fn most_bytes(&self) -> usize {
        self.limit
            .as_ref()
            .map_or(usize::MAX, |limit| limit.most_bytes() as usize)
    }

    /// Returns the limit in bytes a second, if there is one.
    pub fn rate(&self) -> Option<f64> {
        self.limit.as_ref().map(|limit| limit.rate)
    }

    /// Records a request that is sent.
    pub fn sent(&mut self, bytes: usize, now: Instant) {
        if let Some(limit) = &mut self.limit {
            limit.pay(now);
            limit.debt += bytes as f64;
        }
    }

    /// Records how many bytes of a request were accepted.
    pub fn accepted(&mut self, bytes: usize, now: Instant) {
        if bytes == 0 {
            return;
        }
        let (good, last) = (self.accepted.at_last(), self.accepted.last);
        self.accepted.add(bytes as f64, now);
        let Some(limit) = &mut self.limit else {
            return;
        };
        limit.pay(now);
        match good {
            Some(good) if since(last, now) >= OUTAGE && limit.rate < good => {
                limit.restart(good, now);
            }
            Some(_) => limit.grow(now),
            None => limit.rate = limit.rate.max(START_RATE),
        }
        if since(limit.needed, now) >= RELEASE {
            self.limit = None;
        }
    }

    /// Records a request that was throttled.
    pub fn throttled(&mut self, now: Instant, rng: &mut impl Rng) {
        if let Some(limit) = &mut self.limit {
            limit.pay(now);
            // As long as nothing was accepted, nothing is known about a good rate.
            return limit.cut(now, self.accepted.at_last().is_some());
        }
        let began = match self.throttles {
            Some((began, last)) if since(last, now) < FORGOTTEN => began,
            _ => now,
        };
        self.throttles = Some((began, now));
        if since(began, now) < PERSISTS {
            return;
        }
        self.throttles = None;
        let known = since(self.accepted.since, now) >= AVERAGED;
        let good = self.accepted.at(now).unwrap_or(0.0);
        let least = if known { MIN_RATE } else { START_RATE };
        let mut limit = Limit::new((CUT * good).max(least), now);
        limit.last_cut = Some(now);
        limit.explores = true;
        // A fleet is throttled in one second. Its next requests must not come in one, too.
        limit.debt = rng.random_range(0.0..1.0) * limit.most_bytes();
        self.limit = Some(limit);
    }

    /// Records that the target is available again, by the answer to a probe. To be called before what was accepted of it
    /// is recorded. If nothing was ever accepted there is no good rate, and no limit.
    pub fn recovered(&mut self, now: Instant) {
        let of_limit = self.limit.as_ref();
        let good = of_limit.map(|limit| limit.goal.unwrap_or(limit.rate));
        let experienced = self.accepted.at_last();
        self.limit = experienced.map(|average| {
            let good = good.unwrap_or(average);
            let mut limit = Limit::new(good, now);
            limit.restart(good, now);
            limit
        });
    }
}

impl Limit {
    fn new(rate: f64, now: Instant) -> Limit {
        Limit {
            rate,
            goal: None,
            debt: 0.0,
            paid: now,
            grown: now,
            impatient_from: now + PATIENCE,
            last_cut: None,
            explores: false,
            needed: now,
        }
    }

    /// Starts again after an outage, with a part of the last good rate.
    fn restart(&mut self, good: f64, now: Instant) {
        let goal = good.max(MIN_RATE);
        self.rate = (goal * AFTER_OUTAGE).max(MIN_RATE);
        self.goal = Some(goal);
        self.explores = false;
        self.grown = now;
        self.impatient_from = now + PATIENCE;
        self.needed = now;
    }

    fn most_bytes(&self) -> f64 {
        (self.rate * REQUEST_TIME.as_secs_f64()).max(SMALL_REQUEST as f64)
    }

    /// Returns the time in which so many bytes are paid for, if nothing is throttled meanwhile.
    fn time_for(&self, bytes: f64) -> Duration {
        let seconds = match self.goal {
            None => bytes / self.rate,
            Some(goal) => {
                let doubling = RAMP_DOUBLING.as_secs_f64();
                // The integral of a rate that doubles.
                let scale = self.rate * doubling / LN_2;
                let paid = (goal - self.rate) * doubling / LN_2;
                match bytes <= paid {
                    true => doubling * (1.0 + bytes / scale).log2(),
                    false => doubling * (goal / self.rate).log2() + (bytes - paid) / goal,
                }
            }
        };
        Duration::from_secs_f64(seconds)
    }

    /// Pays for the time that has passed. After an outage the rate doubles meanwhile.
    fn pay(&mut self, now: Instant) {
        let passed = since(self.paid, now).as_secs_f64();
        self.paid = self.paid.max(now);
        let mut bytes = passed * self.rate;
        if let Some(goal) = self.goal {
            let doubling = RAMP_DOUBLING.as_secs_f64();
            let before = self.rate;
            self.rate = (before * (passed / doubling).exp2()).min(goal);
            let ramp = doubling * (self.rate / before).log2();
            bytes = (self.rate - before) * doubling / LN_2 + (passed - ramp).max(0.0) * goal;
            self.goal = Some(goal).filter(|goal| self.rate < *goal);
        }
        self.debt = (self.debt - bytes).max(0.0);
    }

    /// Grows for the time since the last answer.
    fn grow(&mut self, now: Instant) {
        let passed = since(self.grown, now).as_secs_f64();
        self.grown = self.grown.max(now);
        if self.goal.is_some() {
            return;
        }
        // Of a second at most: several requests in one second add no more than it.
        let share = passed.min(1.0) * self.rate;
        if self.explores {
            self.rate += EXPLORING * share;
            return;
        }
        let doublings = since(self.impatient_from, now).as_secs_f64() / DOUBLING.as_secs_f64();
        let growth = (STEP + SHARE * self.rate) * passed * doublings.exp2();
        self.rate += growth.min(MOST_GROWTH * share);
    }

    fn cut(&mut self, now: Instant, known: bool) {
        self.needed = now;
        if self
            .last_cut
            .is_some_and(|cut| since(cut, now) < CUT_INTERVAL)
        {
            return;
        }
        self.rate = (self.rate * CUT).max(MIN_RATE);
        self.goal = None;
        self.explores &= !known;
        self.last_cut = Some(now);
        self.grown = now;
        self.impatient_from = now + PATIENCE;
    }
}

/// The average of accepted bytes a second, in which the past counts less and less.
#[derive(Clone, Debug)]
struct Average {
    /// The bytes so far, as far as they still counted at `last`.
    bytes: f64,
    since: Instant,
    last: Instant,
}

impl Average {
    fn new(now: Instant) -> Average {
        Average {
            bytes: 0.0,
            since: now,
            last: now,
        }
    }

    fn add(&mut self, bytes: f64, now: Instant) {
        self.bytes = self.bytes * self.left(now) + bytes;
        self.last = now;
    }

    /// Returns the share of the sum that still counts at `now`.
    fn left(&self, now: Instant) -> f64 {
        (-since(self.last, now).as_secs_f64() / AVERAGED.as_secs_f64()).exp()
    }

    /// Returns the average at the time when something was accepted last, if ever.
    fn at_last(&self) -> Option<f64> {
        let averaged = AVERAGED.as_secs_f64();
        // At the beginning it is the average of a shorter time, but of a second at least.
        let age = since(self.since, self.last).as_secs_f64().max(1.0);
        let average = self.bytes / (averaged * (1.0 - (-age / averaged).exp()));
        (self.bytes > 0.0).then_some(average)
    }

    /// Returns the average at `now`.
    fn at(&self, now: Instant) -> Option<f64> {
        Some(self.at_last()? * self.left(now))
    }
}

fn since(then: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(then)
}

/// Returns whether `throttled` records of a request with `sent` mean that the stream is at its quota. A record here and
/// there does not: the service spreads a stream over shards, and one of them may be busy for a moment.
pub fn is_throttling(throttled: usize, sent: usize) -> bool {
    throttled > 0 && throttled * 10 >= sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    const KIB: usize = 1024;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn rng() -> StdRng {
        StdRng::seed_from_u64(1)
    }

    /// Throttles for as long as it takes to have a limit at `now`.
    fn throttle(pace: &mut Pace, now: Instant, rng: &mut StdRng) {
        for second in (0..=10).rev() {
            assert!(pace.rate().is_none());
            pace.throttled(now - seconds(f64::from(second)), rng);
        }
    }

    /// A pace with a limit of `rate`, which has had this average for a minute and owes nothing.
    fn limited(rate: f64, now: Instant) -> Pace {
        let mut pace = Pace::new(now - seconds(60.0));
        for second in 0..=60 {
            pace.accepted(rate as usize, now - seconds(60.0 - f64::from(second)));
        }
        pace.limit = Some(Limit::new(rate, now));
        pace
    }

    #[track_caller]
    fn assert_near(value: f64, expected: f64) {
        assert!(
            (value / expected - 1.0).abs() < 0.05,
            "{value}, not {expected}"
        );
    }

    #[test]
    fn there_is_no_limit_before_throttling() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for second in 0..1_000 {
            let now = start + seconds(f64::from(second));
            assert_eq!((pace.ready_at(now), pace.most_bytes()), (now, usize::MAX));
            pace.sent(100 << 20, now);
            pace.accepted(100 << 20, now);
        }
        assert_eq!(pace.rate(), None);
    }

    #[test]
    fn throttling_for_some_seconds_does_not_limit_it() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for second in (0..1_000).flat_map(|minute| (0..10).map(move |second| minute * 60 + second))
        {
            pace.throttled(start + seconds(f64::from(second)), &mut rng());
            assert_eq!(pace.rate(), None);
        }
    }

    #[test]
    fn lasting_throttling_limits_it_to_a_part_of_what_was_accepted() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for tenth in 0..1_200 {
            pace.accepted(10 * KIB, start + seconds(f64::from(tenth) / 10.0));
        }
        let now = start + seconds(120.0);
        throttle(&mut pace, now, &mut rng());
        assert_near(pace.rate().unwrap(), 0.85 * 100.0 * 1024.0);
        // What was sent just before does not come at once again, nor in step with others.
        assert!(pace.ready_at(now) > now);
    }

    #[test]
    fn senders_that_are_throttled_at_once_spread_their_next_requests() {
        let now = Instant::now();
        let mut rng = rng();
        let mut waits: Vec<f64> = (0..1_000)
            .map(|_| {
                let mut pace = Pace::new(now - seconds(10.0));
                throttle(&mut pace, now, &mut rng);
                (pace.ready_at(now) - now).as_secs_f64()
            })
            .collect();
        waits.sort_by(f64::total_cmp);
        let whole = SMALL_REQUEST as f64 / START_RATE;
        for (share, wait) in [(0.25, waits[250]), (0.5, waits[500]), (0.75, waits[750])] {
            assert!(
                (wait / whole - share).abs() < 0.1,
                "{share}: {wait} of {whole}"
            );
        }
    }

    #[test]
    fn throttling_cuts_the_rate_once_a_second_down_to_a_minimum() {
        let start = Instant::now();
        let mut pace = limited(10_000.0, start);
        for (at, expected) in [
            (0.0, 8_500.0),
            (0.9, 8_500.0),
            (1.0, 7_225.0),
            (2.5, 6_141.0),
        ] {
            pace.throttled(start + seconds(at), &mut rng());
            assert_near(pace.rate().unwrap(), expected);
        }
        for second in 3..100 {
            pace.throttled(start + seconds(f64::from(second)), &mut rng());
        }
        assert_eq!(pace.rate(), Some(MIN_RATE));
    }

    #[test]
    fn requests_are_spaced_by_their_size_and_small_at_low_rates() {
        let now = Instant::now();
        for (rate, most) in [(1_000.0, SMALL_REQUEST), (1_048_576.0, 262_144)] {
            let mut pace = limited(rate, now);
            assert_eq!((pace.ready_at(now), pace.most_bytes()), (now, most));
            pace.sent(most, now);
            pace.sent(most, now);
            let wait = pace.ready_at(now) - now;
            assert_near(wait.as_secs_f64(), 2.0 * most as f64 / rate);
            let half = now + wait / 2;
            assert_near(
                (pace.ready_at(half) - half).as_secs_f64(),
                most as f64 / rate,
            );
            // What is not used is not saved up.
            let later = now + seconds(1_000.0);
            assert_eq!(pace.ready_at(later), later);
            pace.sent(most, later);
            assert_near(
                (pace.ready_at(later) - later).as_secs_f64(),
                most as f64 / rate,
            );
        }
    }

    /// The rate after some seconds with an accepted request each, which had to wait.
    fn after(mut pace: Pace, start: Instant, time: u32) -> f64 {
        for second in 1..=time {
            let now = start + seconds(f64::from(second));
            pace.sent(10, now);
            pace.ready_at(now);
            pace.accepted(10, now);
        }
        pace.rate().unwrap()
    }

    #[test]
    fn growth_is_equal_for_all_and_doubles_after_a_while() {
        let start = Instant::now();
        let grown = |rate, time| after(limited(rate, start), start, time) - rate;
        assert_near(grown(4_000.0, 30), 30.0 * (8.0 + 4.0));
        assert!(grown(8_000.0, 30) < 1.5 * grown(4_000.0, 30));
        // A sender alone is soon back where it was throttled.
        assert!(after(limited(0.85e6, start), start, 150) > 1e6);
        let first = grown(4_000.0, 60);
        let second = grown(4_000.0, 120) - first;
        assert!(second > 1.3 * first, "{first}, then {second}");
    }

    #[test]
    fn nothing_grows_without_answers() {
        let start = Instant::now();
        let mut pace = limited(5_000.0, start);
        for second in 0..1_000 {
            let now = start + seconds(f64::from(second));
            pace.ready_at(now);
            pace.sent(10, now);
            pace.accepted(0, now);
        }
        assert_eq!(pace.rate(), Some(5_000.0));
    }

    #[test]
    fn after_an_outage_an_eighth_of_the_last_good_rate_doubles_every_two_seconds() {
        let start = Instant::now();
        let mut free = limited(16_384.0, start);
        free.limit = None;
        let hour = start + seconds(3_600.0);
        for mut pace in [limited(16_384.0, start), free] {
            pace.recovered(hour);
            // 16 KiB take as long as the rates of this time add up to.
            let wait = pace
                .limit
                .as_ref()
                .unwrap()
                .time_for(16_384.0)
                .as_secs_f64();
            assert_near(
                (2_048.0 * (wait / 2.0).exp2() - 2_048.0) * 2.0 / LN_2,
                16_384.0,
            );
            for (at, expected) in [
                (0.0, 2_048.0),
                (2.0, 4_096.0),
                (6.0, 16_384.0),
                (9.0, 16_384.0),
            ] {
                pace.ready_at(hour + seconds(at));
                assert_near(pace.rate().unwrap(), expected);
            }
        }
    }

    #[test]
    fn a_second_outage_does_not_make_an_eighth_of_an_eighth() {
        let start = Instant::now();
        let mut pace = limited(16_384.0, start);
        for second in 1..10 {
            pace.recovered(start + seconds(f64::from(second)));
        }
        assert_near(pace.rate().unwrap(), 2_048.0);
    }

    #[test]
    fn a_stream_that_never_accepted_anything_has_no_limit_when_it_appears() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.recovered(start + seconds(100.0));
        assert_eq!(pace.rate(), None);
        throttle(&mut pace, start + seconds(200.0), &mut rng());
        pace.recovered(start + seconds(300.0));
        assert_eq!(pace.rate(), None, "throttling alone is no experience");
    }

    #[test]
    fn a_sender_that_was_throttled_at_once_soon_finds_a_good_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(start - seconds(10.0));
        throttle(&mut pace, start, &mut rng());
        assert_eq!(pace.rate(), Some(START_RATE));
        assert!(after(pace, start, 60) > 1e6);
    }

    #[test]
    fn an_hour_in_which_everything_is_throttled_is_an_outage() {
        let start = Instant::now();
        let mut pace = limited(5_000.0, start);
        for second in 0..3_600 {
            pace.throttled(start + seconds(f64::from(second)), &mut rng());
        }
        let hour = start + seconds(3_600.0);
        pace.accepted(SMALL_REQUEST, hour);
        pace.ready_at(hour + seconds(6.0));
        assert_near(pace.rate().unwrap(), 5_000.0);
    }

    #[test]
    fn a_limit_that_nothing_waits_for_ends() {
        let start = Instant::now();
        let (mut idle, mut busy) = (limited(5_000.0, start), limited(5_000.0, start));
        for second in 1..=120 {
            let now = start + seconds(f64::from(second));
            for (pace, bytes) in [(&mut idle, 100), (&mut busy, 6_000)] {
                pace.ready_at(now);
                pace.sent(bytes, now);
                pace.accepted(bytes, now);
            }
        }
        assert_eq!(idle.rate(), None);
        assert!(busy.rate().is_some());
    }

    #[test]
    fn a_stream_that_throttled_everything_since_the_start_is_searched_when_it_works() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for second in 0..3_600 {
            pace.throttled(start + seconds(f64::from(second)), &mut rng());
        }
        assert_eq!(pace.rate(), Some(MIN_RATE));
        let hour = start + seconds(3_600.0);
        pace.accepted(SMALL_REQUEST, hour);
        assert_eq!(pace.rate(), Some(START_RATE));
        assert!(after(pace, hour, 60) > 1e6);
    }

    proptest! {
        /// Whatever happens, the rate is a number between its bounds, and waits end.
        #[test]
        fn a_rate_is_never_absurd(
            steps in proptest::collection::vec((0u64..200_000, 0u8..5, 0usize..5 << 20), 0..200),
            seed in any::<u64>(),
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut now = Instant::now();
            let mut pace = Pace::new(now);
            for (millis, what, bytes) in steps {
                now += Duration::from_millis(millis);
                match what {
                    0 => pace.sent(bytes.min(pace.most_bytes()), now),
                    1 => pace.accepted(bytes, now),
                    2 => pace.throttled(now, &mut rng),
                    3 => pace.recovered(now),
                    _ => {}
                }
                let ready = pace.ready_at(now);
                prop_assert!(ready >= now);
                prop_assert!(pace.most_bytes() >= SMALL_REQUEST);
                if let Some(rate) = pace.rate() {
                    prop_assert!(rate.is_finite() && rate >= MIN_RATE, "{rate}");
                }
                let later = ready + Duration::from_millis(1);
                prop_assert_eq!(pace.clone().ready_at(later), later);
            }
        }
    }
}
