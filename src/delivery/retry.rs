//! When to try again, and how much at once. Pure: time and randomness are arguments.

use std::time::{Duration, Instant};

use rand::Rng;

use crate::sink::Class;

/// The first wait is at most this long …
const BASE: Duration = Duration::from_millis(200);
/// … and no wait is longer than this.
const CAP: Duration = Duration::from_secs(10);
/// What a person has to mend is tried less often from the start …
const HELD_BASE: Duration = Duration::from_secs(1);
/// … and at least so often, that data goes on soon after it is mended.
const HELD_CAP: Duration = Duration::from_secs(30);

/// How long to wait after the `attempts`-th failure in a row (from 1): random between half of and the
/// whole of a limit that doubles, so that many senders do not come back together.
pub(super) fn backoff(class: Class, attempts: u32, rng: &mut impl Rng) -> Duration {
    let doublings = 1 << attempts.saturating_sub(1).min(16);
    let limit = match class {
        Class::Throttle | Class::Transient => (BASE * doublings).min(CAP),
        Class::Credentials | Class::Configuration => (HELD_BASE * doublings).min(HELD_CAP),
        // The remedy (another split) is at hand: nothing gets better by waiting.
        Class::Record | Class::TooLarge => Duration::ZERO,
    };
    rng.random_range(limit / 2..=limit)
}

/// What a [`Breaker`] says to one who wants to send a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Send it.
    Go,
    /// Send it: it is the one that finds out whether the destination is back.
    Probe,
    /// Do not, and ask again at this time, or when an answer came. `None`: a probe is on its way, and
    /// its answer decides.
    Wait(Option<Instant>),
}

/// Keeps requests from a destination that takes none, and finds out with one at a time when it does
/// again.
///
/// Each request that was let go, before it opened or since, reports how it ended, with the admit it had:
/// [`succeeded`](Self::succeeded), [`failed`](Self::failed) or [`abandoned`](Self::abandoned). Any
/// answer may let those who wait go, or let them wait until another time: they ask again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Breaker {
    /// In a row, while it is closed.
    failures: u32,
    open: Option<Open>,
    /// A probe has not reported yet. It is the only one even if the breaker closed and opened meanwhile.
    probing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Open {
    /// Waits so far, this one included.
    waits: u32,
    wait: Duration,
    next_probe: Instant,
}

impl Breaker {
    /// So many requests fail as a whole, one after the other, before it opens.
    const FAILURES: u32 = 5;

    /// Whether a request may be sent now.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
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
        // For the case that this one never answers.
        open.next_probe = now + open.wait;
        Admission::Probe
    }

    /// A request was taken, if only in part: the destination lives. Says whether this closed it.
    pub(super) fn succeeded(&mut self, admit: Admission) -> bool {
        self.reported(admit);
        self.failures = 0;
        self.open.take().is_some()
    }

    /// A request failed as a whole, for this reason. Says whether this opened it.
    ///
    /// Only what says that the destination can take nothing counts. One that asks for less, or that
    /// minds what is in the request, lives: that closes the breaker as a success does.
    pub(super) fn failed(
        &mut self,
        admit: Admission,
        class: Class,
        now: Instant,
        rng: &mut impl Rng,
    ) -> bool {
        match class {
            Class::Transient | Class::Credentials | Class::Configuration => {}
            Class::Throttle | Class::Record | Class::TooLarge => {
                self.succeeded(admit);
                return false;
            }
        }
        self.reported(admit);
        let waits = match &self.open {
            // What was sent before it opened says nothing new.
            Some(_) if admit != Admission::Probe => return false,
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

    /// Nothing was taken for too long, although no or few requests failed: opens it, for this reason. Says
    /// whether it did.
    pub(super) fn trip(&mut self, class: Class, now: Instant, rng: &mut impl Rng) -> bool {
        self.open.is_none() && self.hold(1, class, now, rng)
    }

    /// Whether [`admit`](Self::admit) would say no more than to wait. Asks for nothing.
    pub(super) fn is_blocking(&self, now: Instant) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| self.probing || now < open.next_probe)
    }

    /// When the next probe may be sent. `None`: it is closed, or a probe is on its way.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let open = self.open.as_ref().filter(|_| !self.probing)?;
        Some(open.next_probe)
    }

    /// There is reason to believe that the destination is back: the next probe may be sent at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.next_probe = open.next_probe.min(now);
        }
    }

    /// A request ended without an answer, by a panic, or was not sent after all. After a probe, the next
    /// one follows when as much time has passed as before it.
    pub(super) fn abandoned(&mut self, admit: Admission) {
        self.reported(admit);
    }

    /// Whether requests are being kept back.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Opens it, or keeps it open, for the wait of this number. Says whether it was closed.
    fn hold(&mut self, waits: u32, class: Class, now: Instant, rng: &mut impl Rng) -> bool {
        let wait = backoff(class, waits, rng);
        let before = self.open.replace(Open {
            waits,
            wait,
            next_probe: now + wait,
        });
        before.is_none()
    }

    fn reported(&mut self, admit: Admission) {
        self.probing &= admit != Admission::Probe;
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
    fn what_a_person_must_mend_is_not_hammered_and_what_we_can_mend_does_not_wait() {
        let mut rng = StdRng::seed_from_u64(1);
        assert!(backoff(Class::Configuration, 1, &mut rng) >= HELD_BASE / 2);
        assert!(backoff(Class::Credentials, 1_000, &mut rng) <= HELD_CAP);
        assert_eq!(backoff(Class::TooLarge, 3, &mut rng), Duration::ZERO);
    }

    /// What a request reports.
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

    /// Reports, and gives whether that opened or closed the breaker as it says.
    fn report(
        breaker: &mut Breaker,
        admit: Admission,
        report: Report,
        now: Instant,
        rng: &mut StdRng,
    ) -> bool {
        match report {
            Success => breaker.succeeded(admit),
            Failure(class) => breaker.failed(admit, class, now, rng),
            Nothing => {
                breaker.abandoned(admit);
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

    /// The time a breaker that is open and has no probe out waits for.
    #[track_caller]
    fn next_probe(breaker: &mut Breaker, now: Instant) -> Instant {
        match breaker.admit(now) {
            Admission::Wait(Some(until)) => until,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn five_failures_in_a_row_of_a_destination_that_takes_nothing_open_it() {
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
                "one that asks for less lives",
                [
                    vec![DOWN; 4],
                    vec![Failure(Class::Throttle); 9],
                    vec![DOWN; 4],
                ]
                .concat(),
                None,
            ),
            (
                "one that minds a record lives",
                [vec![DOWN; 4], vec![Failure(Class::Record)], vec![DOWN; 4]].concat(),
                None,
            ),
            (
                "one that minds the size lives",
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
    fn probes_go_one_at_a_time_and_ever_less_often_down_to_a_floor() {
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
                    "it may take long"
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
            (HELD_BASE..=2 * HELD_BASE).contains(&wait),
            "the second wait of its kind: {wait:?}"
        );
    }

    #[test]
    fn any_sign_of_life_closes_it_and_the_next_outage_begins_anew() {
        let alive = [
            (Admission::Probe, Success),
            (Admission::Go, Success),
            (Admission::Probe, Failure(Class::Throttle)),
            (Admission::Go, Failure(Class::Throttle)),
            (Admission::Probe, Failure(Class::Record)),
            (Admission::Probe, Failure(Class::TooLarge)),
        ];
        for (admit, what) in alive {
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
            let says_closed = report(&mut breaker, admit, what, now, &mut rng);
            assert_eq!(
                says_closed,
                matches!(what, Success),
                "{admit:?} {what:?}: a failure never says that it opened it"
            );
            assert!(!breaker.is_open(), "{admit:?} {what:?}");
            assert!(!breaker.succeeded(Admission::Go), "closed once");
            if admit != Admission::Probe {
                breaker.succeeded(Admission::Probe);
            }
            assert_eq!(
                breaker,
                Breaker::default(),
                "{admit:?} {what:?}: nothing is remembered"
            );
        }
    }

    #[test]
    fn requests_from_before_it_opened_do_not_pass_for_the_probe() {
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now();
        let mut breaker = opened(Class::Transient, now, &mut rng);
        let waiting = breaker.clone();
        assert!(!breaker.failed(Admission::Go, Class::Configuration, now, &mut rng));
        assert_eq!(breaker, waiting, "nor do they make the wait longer");

        let now = next_probe(&mut breaker, now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        assert!(!breaker.failed(Admission::Go, Class::Transient, now, &mut rng));
        breaker.abandoned(Admission::Go);
        assert_eq!(breaker.admit(now), Admission::Wait(None));
    }

    #[test]
    fn a_probe_is_the_only_one_even_when_it_outlasts_a_good_time() {
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
        let later = now + HELD_CAP;
        assert_eq!(breaker.admit(later), Admission::Wait(None));
        breaker.failed(Admission::Probe, Class::Transient, later, &mut rng);
        let until = next_probe(&mut breaker, later);
        assert_eq!(breaker.admit(until), Admission::Probe);
    }

    #[test]
    fn after_a_probe_without_an_answer_the_next_one_follows_and_not_at_once() {
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
    fn one_that_takes_nothing_for_too_long_is_opened_and_then_probed_as_after_failures() {
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
            breaker.is_blocking(until + HELD_CAP),
            "while a probe is out"
        );
        assert!(!breaker.failed(Admission::Go, Class::Transient, until, &mut rng));
        assert!(!breaker.failed(Admission::Probe, Class::Transient, until, &mut rng));
        let wait = next_probe(&mut breaker, until) - until;
        assert!((200..=400).contains(&wait.as_millis()), "{wait:?}");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// So many milliseconds pass.
        Pass(u64),
        Ask,
        /// Nothing was taken for too long.
        Trip,
        /// One of the requests that are out reports.
        Report(usize, Report),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Mostly failures: a breaker that is closed has little to show.
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
        /// Never two probes at once; open never lets anything else go; what it says to wait for comes
        /// true; a success closes it; and only an answer to a probe changes when the next one goes.
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
                        let admit = breaker.admit(now);
                        prop_assert_eq!(is_blocking, matches!(admit, Admission::Wait(_)));
                        match admit {
                            Admission::Go => prop_assert!(!open),
                            Admission::Probe => prop_assert!(open && !probing),
                            Admission::Wait(None) => prop_assert!(open && probing),
                            Admission::Wait(Some(until)) => {
                                prop_assert!(open && !probing);
                                prop_assert!(until > now && until - now <= HELD_CAP);
                                prop_assert_eq!(breaker.clone().admit(until), Admission::Probe);
                            }
                        }
                        if matches!(admit, Admission::Go | Admission::Probe) {
                            out.push(admit);
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
                        let admit = out.swap_remove(which % out.len());
                        let before = breaker.clone();
                        let said = report(&mut breaker, admit, what, now, &mut rng);
                        let (was, is) = (before.is_open(), breaker.is_open());
                        match what {
                            Success => prop_assert!(!is && said == was),
                            Failure(Class::Throttle | Class::Record | Class::TooLarge) => prop_assert!(!is && !said),
                            Failure(_) => {
                                prop_assert!(is || !was);
                                prop_assert_eq!(said, is && !was);
                                prop_assert!(!was || admit == Admission::Probe || breaker == before);
                            }
                            Nothing => prop_assert_eq!(is, was),
                        }
                    }
                }
            }
            // Once everything that is out has failed, a probe goes, and its success ends it.
            for admit in out {
                breaker.failed(admit, Class::Transient, now, &mut rng);
            }
            if let Admission::Wait(until) = breaker.admit(now) {
                now = until.expect("no probe is out");
                prop_assert_eq!(breaker.admit(now), Admission::Probe);
            }
            breaker.succeeded(Admission::Probe);
            prop_assert_eq!(breaker.admit(now), Admission::Go);
        }
    }
}
