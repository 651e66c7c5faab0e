//! When to try again, and the circuit breaker.

use std::time::{Duration, Instant};

use rand::Rng;

use crate::sink::Class;

/// The upper limit of the first wait …
const BASE: Duration = Duration::from_millis(200);
/// … and of every wait.
const CAP: Duration = Duration::from_secs(10);
/// The same for faults that somebody has to fix: retried less often from the start …
const MANUAL_BASE: Duration = Duration::from_secs(1);
/// … but often enough that delivery resumes soon after the fix.
const MANUAL_CAP: Duration = Duration::from_secs(30);

/// Returns the wait after the `attempts`-th failure in a row (from 1): random between half of and the whole of a limit
/// that doubles, so that many senders do not retry in step.
pub fn backoff(class: Class, attempts: u32, rng: &mut impl Rng) -> Duration {
    let doublings = 1 << attempts.saturating_sub(1).min(16);
    let limit = match class {
        Class::Throttle | Class::Transient => (BASE * doublings).min(CAP),
        Class::Credentials | Class::Configuration => (MANUAL_BASE * doublings).min(MANUAL_CAP),
        // The request is split differently: waiting would not help.
        Class::Record | Class::TooLarge => Duration::ZERO,
    };
    rng.random_range(limit / 2..=limit)
}

/// The answer of a [`Breaker`] to a request that is about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The request may be sent.
    Go,
    /// The request may be sent as the probe that finds out whether the destination has recovered.
    Probe,
    /// The request has to wait: ask again at this time, or when an answer arrives. `None` if a probe is in flight,
    /// whose answer decides.
    Wait(Option<Instant>),
}

/// A circuit breaker: holds requests back from a destination that accepts none, and probes with one at a time until it
/// recovers.
///
/// Each admitted request, whether sent before the breaker opened or since, reports its outcome with its admission:
/// [`succeeded`](Self::succeeded), [`failed`](Self::failed) or [`abandoned`](Self::abandoned). Any report may change
/// the answer for waiting requests, which then ask again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row while closed.
    failures: u32,
    open: Option<OpenState>,
    /// Whether a probe has not reported yet. It remains the only probe even if the breaker has closed and opened
    /// meanwhile.
    probing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OpenState {
    /// The number of waits so far, including this one.
    waits: u32,
    wait: Duration,
    next_probe: Instant,
}

impl Breaker {
    /// The number of requests that have to fail as a whole, in a row, before it opens.
    const FAILURES: u32 = 5;

    /// Returns whether a request may be sent now.
    pub fn admit(&mut self, now: Instant) -> Admission {
        let Some(open) = &mut self.open else {
            return Admission::Go;
        };
        if self.probing {
            return Admission::Wait(None);
        }
        if now < open.next_probe {
            return Admission::Wait(Some(open.next_probe));
        }
        self.probing = true;
        // In case this probe never answers.
        open.next_probe = now + open.wait;
        Admission::Probe
    }

    /// Reports a request that was accepted, even if only in part: the destination works. Returns whether this closed
    /// the breaker.
    pub fn succeeded(&mut self, admission: Admission) -> bool {
        self.reported(admission);
        self.failures = 0;
        self.open.take().is_some()
    }

    /// Reports a request that failed as a whole, for this reason. Returns whether this opened the breaker.
    ///
    /// Only faults by which the destination can accept nothing count. A destination that throttles or objects to the
    /// contents of a request works: that closes the breaker, as a success does.
    pub fn failed(
        &mut self,
        admission: Admission,
        class: Class,
        now: Instant,
        rng: &mut impl Rng,
    ) -> bool {
        match class {
            Class::Transient | Class::Credentials | Class::Configuration => {}
            Class::Throttle | Class::Record | Class::TooLarge => {
                self.succeeded(admission);
                return false;
            }
        }
        self.reported(admission);
        let waits = match &self.open {
            // Requests sent before it opened tell nothing new.
            Some(_) if admission != Admission::Probe => return false,
            Some(open) => open.waits.saturating_add(1),
            None => {
                self.failures += 1;
                if self.failures < Self::FAILURES {
                    return false;
                }
                1
            }
        };
        self.hold(waits, class, now, rng)
    }

    /// Opens the breaker for this reason, because nothing was accepted for too long although few or no requests failed.
    /// Returns whether it was closed.
    pub fn trip(&mut self, class: Class, now: Instant, rng: &mut impl Rng) -> bool {
        self.open.is_none() && self.hold(1, class, now, rng)
    }

    /// Returns whether [`admit`](Self::admit) would make a request wait, without admitting one.
    pub fn is_blocking(&self, now: Instant) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| self.probing || now < open.next_probe)
    }

    /// Returns when the next probe may be sent. `None` if the breaker is closed or a probe is in flight.
    pub fn next_probe(&self) -> Option<Instant> {
        let open = self.open.as_ref().filter(|_| !self.probing)?;
        Some(open.next_probe)
    }

    /// Lets the next probe go at once: there is reason to believe that the destination has recovered.
    pub fn hurry(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.next_probe = open.next_probe.min(now);
        }
    }

    /// Reports a request that ended without an answer, by a panic, or was not sent after all. If it was a probe, the
    /// next one follows after the same wait as before it.
    pub fn abandoned(&mut self, admission: Admission) {
        self.reported(admission);
    }

    /// Returns whether requests are held back.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Opens the breaker or keeps it open, for the wait with this number. Returns whether it was closed.
    fn hold(&mut self, waits: u32, class: Class, now: Instant, rng: &mut impl Rng) -> bool {
        let wait = backoff(class, waits, rng);
        let before = self.open.replace(OpenState {
            waits,
            wait,
            next_probe: now + wait,
        });
        before.is_none()
    }

    fn reported(&mut self, admission: Admission) {
        self.probing &= admission != Admission::Probe;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    #[test]
    fn waits_double_to_their_cap_and_are_spread() {
        let mut rng = StdRng::seed_from_u64(1);
        for (attempts, most) in [
            (1, 200),
            (2, 400),
            (6, 6_400),
            (7, 10_000),
            (1_000, 10_000),
            (u32::MAX, 10_000),
        ] {
            let waits: Vec<u128> = (0..200)
                .map(|_| backoff(Class::Transient, attempts, &mut rng).as_millis())
                .collect();
            let (least, longest) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(
                *least >= most / 2 && *longest <= most,
                "{attempts}: {least} to {longest}"
            );
            assert!(
                longest - least > most / 4,
                "{attempts}: {least} to {longest}"
            );
        }
    }

    #[test]
    fn faults_that_need_a_person_are_retried_slowly_and_those_with_a_remedy_at_once() {
        let mut rng = StdRng::seed_from_u64(1);
        assert!(backoff(Class::Configuration, 1, &mut rng) >= MANUAL_BASE / 2);
        assert!(backoff(Class::Credentials, 1_000, &mut rng) <= MANUAL_CAP);
        assert_eq!(backoff(Class::TooLarge, 3, &mut rng), Duration::ZERO);
    }

    /// The report of a request.
    #[derive(Clone, Copy, Debug)]
    enum Report {
        Success,
        Failure(Class),
        Nothing,
    }

    use Report::{Failure, Nothing, Success};

    const CLASSES: [Class; 6] = [
        Class::Throttle,
        Class::Transient,
        Class::Credentials,
        Class::Configuration,
        Class::Record,
        Class::TooLarge,
    ];

    /// Reports, and returns what the breaker returns: whether it closed or opened.
    fn report(
        breaker: &mut Breaker,
        admission: Admission,
        report: Report,
        now: Instant,
        rng: &mut StdRng,
    ) -> bool {
        match report {
            Success => breaker.succeeded(admission),
            Failure(class) => breaker.failed(admission, class, now, rng),
            Nothing => {
                breaker.abandoned(admission);
                false
            }
        }
    }

    fn opened(class: Class, now: Instant, rng: &mut StdRng) -> Breaker {
        let mut breaker = Breaker::default();
        for number in 1..=5 {
            assert_eq!(breaker.admit(now), Admission::Go);
            assert_eq!(breaker.failed(Admission::Go, class, now, rng), number == 5);
        }
        assert!(breaker.is_open());
        breaker
    }

    /// The time until which an open breaker without a probe in flight waits.
    #[track_caller]
    fn next_probe(breaker: &mut Breaker, now: Instant) -> Instant {
        match breaker.admit(now) {
            Admission::Wait(Some(until)) => until,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn five_requests_in_a_row_that_deliver_nothing_open_it() {
        const DOWN: Report = Failure(Class::Transient);
        let cases: [(&str, Vec<Report>, Option<usize>); 8] = [
            ("five", vec![DOWN; 9], Some(5)),
            (
                "of different kinds",
                vec![
                    DOWN,
                    Failure(Class::Credentials),
                    Failure(Class::Configuration),
                    DOWN,
                    Failure(Class::Credentials),
                ],
                Some(5),
            ),
            (
                "a success between",
                [vec![DOWN; 4], vec![Success], vec![DOWN; 4]].concat(),
                None,
            ),
            (
                "after a success",
                [vec![DOWN, Success], vec![DOWN; 5]].concat(),
                Some(7),
            ),
            (
                "a request without an answer between",
                [vec![DOWN; 4], vec![Nothing], vec![DOWN]].concat(),
                Some(6),
            ),
            (
                "throttling is a sign of life",
                [
                    vec![DOWN; 4],
                    vec![Failure(Class::Throttle); 9],
                    vec![DOWN; 4],
                ]
                .concat(),
                None,
            ),
            (
                "refusing a record is a sign of life",
                [vec![DOWN; 4], vec![Failure(Class::Record)], vec![DOWN; 4]].concat(),
                None,
            ),
            (
                "refusing the size is a sign of life",
                [vec![DOWN; 4], vec![Failure(Class::TooLarge)], vec![DOWN; 4]].concat(),
                None,
            ),
        ];
        let now = Instant::now();
        for (name, reports, expected) in cases {
            let mut rng = StdRng::seed_from_u64(1);
            let mut breaker = Breaker::default();
            let opened_by = reports
                .iter()
                .position(|what| {
                    let was_open = breaker.is_open();
                    report(&mut breaker, Admission::Go, *what, now, &mut rng);
                    breaker.is_open() && !was_open
                })
                .map(|index| index + 1);
            assert_eq!(opened_by, expected, "{name}");
            assert_eq!(breaker.is_open(), expected.is_some(), "{name}");
        }
    }

    #[test]
    fn probes_go_one_at_a_time_with_growing_waits_up_to_a_cap() {
        let transient = [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000];
        let held = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000];
        for (class, limits) in [
            (Class::Transient, &transient[..]),
            (Class::Credentials, &held),
            (Class::Configuration, &held),
        ] {
            let mut rng = StdRng::seed_from_u64(1);
            let mut now = Instant::now();
            let mut breaker = opened(class, now, &mut rng);
            for most in limits {
                let until = next_probe(&mut breaker, now);
                let wait = (until - now).as_millis();
                assert!(
                    (most / 2..=*most).contains(&wait),
                    "{class:?}: {wait} of {most}"
                );
                assert_eq!(
                    breaker.admit(until - Duration::from_nanos(1)),
                    Admission::Wait(Some(until))
                );
                now = until;
                assert_eq!(breaker.admit(now), Admission::Probe);
                now += Duration::from_secs(3_600);
                assert_eq!(
                    breaker.admit(now),
                    Admission::Wait(None),
                    "the probe may take long"
                );
                assert!(!breaker.failed(Admission::Probe, class, now, &mut rng));
            }
        }
    }

    #[test]
    fn a_wait_is_as_long_as_the_last_answer_asks_for() {
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now();
        let mut breaker = opened(Class::Transient, now, &mut rng);
        let now = next_probe(&mut breaker, now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.failed(Admission::Probe, Class::Credentials, now, &mut rng);
        let wait = next_probe(&mut breaker, now) - now;
        assert!(
            (MANUAL_BASE..=2 * MANUAL_BASE).contains(&wait),
            "the second wait of its kind: {wait:?}"
        );
    }

    #[test]
    fn any_response_closes_it_and_the_next_outage_starts_over() {
        let alive = [
            (Admission::Probe, Success),
            (Admission::Go, Success),
            (Admission::Probe, Failure(Class::Throttle)),
            (Admission::Go, Failure(Class::Throttle)),
            (Admission::Probe, Failure(Class::Record)),
            (Admission::Probe, Failure(Class::TooLarge)),
        ];
        for (admission, what) in alive {
            let mut rng = StdRng::seed_from_u64(1);
            let mut now = Instant::now();
            let mut breaker = opened(Class::Transient, now, &mut rng);
            for _ in 0..9 {
                now = next_probe(&mut breaker, now);
                assert_eq!(breaker.admit(now), Admission::Probe);
                breaker.failed(Admission::Probe, Class::Transient, now, &mut rng);
            }
            now = next_probe(&mut breaker, now);
            assert_eq!(breaker.admit(now), Admission::Probe);
            let says_closed = report(&mut breaker, admission, what, now, &mut rng);
            assert_eq!(
                says_closed,
                matches!(what, Success),
                "{admission:?} {what:?}: a failure must not report that it opened the breaker"
            );
            assert!(!breaker.is_open(), "{admission:?} {what:?}");
            assert!(!breaker.succeeded(Admission::Go), "closed once");
            if admission != Admission::Probe {
                breaker.succeeded(Admission::Probe);
            }
            assert_eq!(
                breaker,
                Breaker::default(),
                "{admission:?} {what:?}: nothing is remembered"
            );
        }
    }

    #[test]
    fn requests_sent_before_it_opened_do_not_count_as_the_probe() {
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now();
        let mut breaker = opened(Class::Transient, now, &mut rng);
        let waiting = breaker.clone();
        assert!(!breaker.failed(Admission::Go, Class::Configuration, now, &mut rng));
        assert_eq!(breaker, waiting, "they do not extend the wait either");

        let now = next_probe(&mut breaker, now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        assert!(!breaker.failed(Admission::Go, Class::Transient, now, &mut rng));
        breaker.abandoned(Admission::Go);
        assert_eq!(breaker.admit(now), Admission::Wait(None));
    }

    #[test]
    fn only_one_probe_is_in_flight_even_if_the_breaker_closed_meanwhile() {
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now();
        let mut breaker = opened(Class::Transient, now, &mut rng);
        let now = next_probe(&mut breaker, now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        assert!(breaker.succeeded(Admission::Go));
        for _ in 0..5 {
            assert_eq!(breaker.admit(now), Admission::Go);
            breaker.failed(Admission::Go, Class::Transient, now, &mut rng);
        }
        let later = now + MANUAL_CAP;
        assert_eq!(breaker.admit(later), Admission::Wait(None));
        breaker.failed(Admission::Probe, Class::Transient, later, &mut rng);
        let until = next_probe(&mut breaker, later);
        assert_eq!(breaker.admit(until), Admission::Probe);
    }

    #[test]
    fn after_an_abandoned_probe_the_next_follows_but_not_at_once() {
        let mut rng = StdRng::seed_from_u64(1);
        let opened_at = Instant::now();
        let mut breaker = opened(Class::Transient, opened_at, &mut rng);
        let first = next_probe(&mut breaker, opened_at);
        assert_eq!(breaker.admit(first), Admission::Probe);
        breaker.abandoned(Admission::Probe);
        let second = next_probe(&mut breaker, first);
        assert_eq!(second - first, first - opened_at);
        assert_eq!(breaker.admit(second), Admission::Probe);
    }

    #[test]
    fn a_tripped_breaker_is_probed_like_one_opened_by_failures() {
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now();
        let mut breaker = Breaker::default();
        assert!(!breaker.is_blocking(now));
        assert!(breaker.trip(Class::Transient, now, &mut rng));
        let tripped = breaker.clone();
        assert!(
            !breaker.trip(Class::Transient, now, &mut rng) && breaker == tripped,
            "it is open already, and the wait is no longer for it"
        );
        let until = next_probe(&mut breaker, now);
        assert!((100..=200).contains(&(until - now).as_millis()));
        assert!(breaker.is_blocking(now) && !breaker.is_blocking(until));
        assert_eq!(breaker.admit(until), Admission::Probe);
        assert!(
            breaker.is_blocking(until + MANUAL_CAP),
            "while a probe is in flight"
        );
        assert!(!breaker.failed(Admission::Go, Class::Transient, until, &mut rng));
        assert!(!breaker.failed(Admission::Probe, Class::Transient, until, &mut rng));
        let wait = next_probe(&mut breaker, until) - until;
        assert!((200..=400).contains(&wait.as_millis()), "{wait:?}");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// This many milliseconds pass.
        Pass(u64),
        Ask,
        /// Nothing was accepted for too long.
        Trip,
        /// One of the requests in flight reports.
        Report(usize, Report),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Mostly failures: a closed breaker has little to test.
        let reports = prop_oneof![
            1 => Just(Success),
            1 => Just(Nothing),
            1 => proptest::sample::select(&CLASSES[..]).prop_map(Failure),
            12 => proptest::sample::select(&CLASSES[1..4]).prop_map(Failure),
        ];
        proptest::collection::vec(
            prop_oneof![
                (0u64..15_000).prop_map(Step::Pass),
                Just(Step::Ask),
                Just(Step::Trip),
                (any::<usize>(), reports).prop_map(|(which, what)| Step::Report(which, what)),
            ],
            0..300,
        )
    }

    proptest! {
        /// There are never two probes at once; an open breaker admits nothing else; the wait it gives is right; a
        /// success closes it; and only the answer to a probe changes when the next one goes.
        #[test]
        fn a_breaker_probes_alone_and_always_again(steps in steps(), seed in any::<u64>()) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut now = Instant::now();
            let mut breaker = Breaker::default();
            let mut out: Vec<Admission> = Vec::new();
            for step in steps {
                match step {
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                    Step::Ask => {
                        let open = breaker.is_open();
                        let probing = out.contains(&Admission::Probe);
                        let is_blocking = breaker.is_blocking(now);
                        let admission = breaker.admit(now);
                        prop_assert_eq!(is_blocking, matches!(admission, Admission::Wait(_)));
                        match admission {
                            Admission::Go => prop_assert!(!open),
                            Admission::Probe => prop_assert!(open && !probing),
                            Admission::Wait(None) => prop_assert!(open && probing),
                            Admission::Wait(Some(until)) => {
                                prop_assert!(open && !probing);
                                prop_assert!(until > now && until - now <= MANUAL_CAP);
                                prop_assert_eq!(breaker.clone().admit(until), Admission::Probe);
                            }
                        }
                        if matches!(admission, Admission::Go | Admission::Probe) {
                            out.push(admission);
                        }
                    }
                    Step::Trip => {
                        let before = breaker.clone();
                        let opened = breaker.trip(Class::Transient, now, &mut rng);
                        prop_assert!(breaker.is_open());
                        prop_assert_eq!(opened, !before.is_open());
                        prop_assert!(opened || breaker == before);
                    }
                    Step::Report(which, what) => {
                        if out.is_empty() {
                            continue;
                        }
                        let admission = out.swap_remove(which % out.len());
                        let before = breaker.clone();
                        let changed = report(&mut breaker, admission, what, now, &mut rng);
                        let (was, is) = (before.is_open(), breaker.is_open());
                        match what {
                            Success => prop_assert!(!is && changed == was),
                            Failure(Class::Throttle | Class::Record | Class::TooLarge) => prop_assert!(!is && !changed),
                            Failure(_) => {
                                prop_assert!(is || !was);
                                prop_assert_eq!(changed, is && !was);
                                prop_assert!(!was || admission == Admission::Probe || breaker == before);
                            }
                            Nothing => prop_assert_eq!(is, was),
                        }
                    }
                }
            }
            // Once all requests in flight have failed, a probe goes, and its success closes the breaker.
            for admission in out {
                breaker.failed(admission, Class::Transient, now, &mut rng);
            }
            if let Admission::Wait(until) = breaker.admit(now) {
                now = until.expect("no probe is in flight");
                prop_assert_eq!(breaker.admit(now), Admission::Probe);
            }
            breaker.succeeded(Admission::Probe);
            prop_assert_eq!(breaker.admit(now), Admission::Go);
        }
    }
}
