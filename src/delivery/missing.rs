//! `missing_target`: what happens to records for a target that does not exist.
//!
//! Only an answer that is certain about the target, and about nothing else, counts: a stream that the service does not
//! know. The time runs from the first such answer until one that shows that the target exists; nothing is decided while the
//! last answer was another one, such as a lost connection. Pure, except for the lock: time is an argument.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::config::{MissingAction, MissingTarget};
use crate::sink::{Class, Fault};

/// The maximum number of missing targets that are known. Records for further ones wait.
const MAX_MISSING: usize = 20_000;

/// The targets that do not exist.
#[derive(Debug, Default)]
pub(super) struct MissingTargets {
    setting: MissingTarget,
    /// The codes of answers that a target does not exist.
    codes: &'static [&'static str],
    fallback: Option<Arc<str>>,
    /// Whether any is known.
    any: AtomicBool,
    targets: Mutex<HashMap<Arc<str>, Missing>>,
}

#[derive(Debug)]
struct Missing {
    /// The time of the first answer.
    since: Instant,
    fault: Arc<Fault>,
    /// Whether the last answer was such a one.
    certain: bool,
}

impl MissingTargets {
    /// Creates an empty set. `codes` are the destination's words for a target that does not exist.
    pub(super) fn new(setting: MissingTarget, codes: &'static [&'static str]) -> MissingTargets {
        MissingTargets {
            fallback: match &setting.action {
                MissingAction::Fallback(target) => Some(target.as_str().into()),
                MissingAction::Hold | MissingAction::DeadLetter => None,
            },
            setting,
            codes,
            ..MissingTargets::default()
        }
    }

    /// Records that all of a request failed.
    pub(super) fn failed(&self, target: &Arc<str>, fault: &Arc<Fault>, now: Instant) {
        if self.setting.action == MissingAction::Hold || self.fallback.as_ref() == Some(target) {
            return;
        }
        let missing = self.codes.contains(&&*fault.code);
        if !missing && fault.class == Class::Throttle {
            self.found(target, now);
            return;
        }
        let mut targets = self.targets.lock().expect("nothing panics with this lock");
        let room = targets.len() < MAX_MISSING;
        match targets.get_mut(target) {
            Some(known) => known.certain = missing,
            None if missing && room => {
                let fault = Arc::clone(fault);
                let missing = Missing {
                    since: now,
                    fault,
                    certain: true,
                };
                targets.insert(Arc::clone(target), missing);
                self.any.store(true, Ordering::Release);
            }
            None => {}
        }
    }

    /// Records that a target exists. Returns whether its time was over, so that its records went elsewhere.
    pub(super) fn found(&self, target: &str, now: Instant) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut targets = self.targets.lock().expect("nothing panics with this lock");
        let known = targets.remove(target);
        self.any.store(!targets.is_empty(), Ordering::Release);
        known.is_some_and(|missing| missing.since + self.setting.after <= now)
    }

    /// Returns the target that gets the records of a missing one instead.
    pub(super) fn fallback(&self, target: &str, now: Instant) -> Option<&Arc<str>> {
        let fallback = self.fallback.as_ref()?;
        self.is_due(target, now).then_some(fallback)
    }

    /// Returns a missing target whose records become dead letters and that is `wanted`, and the answer about it.
    pub(super) fn given_up(
        &self,
        now: Instant,
        wanted: impl Fn(&Arc<str>) -> bool,
    ) -> Option<(Arc<str>, Arc<Fault>)> {
        if self.setting.action != MissingAction::DeadLetter || !self.any.load(Ordering::Acquire) {
            return None;
        }
        let targets = self.targets.lock().expect("nothing panics with this lock");
        let is = |(target, missing): &(&Arc<str>, &Missing)| {
            self.is_over(missing, now) && wanted(target)
        };
        let (target, missing) = targets.iter().find(is)?;
        Some((Arc::clone(target), Arc::clone(&missing.fault)))
    }

    /// Returns when the time of the next target is over, as far as that is known.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let targets = self.targets.lock().expect("nothing panics with this lock");
        let due = targets.values().map(|it| it.since + self.setting.after);
        due.filter(|due| *due > now).min()
    }

    fn is_due(&self, target: &str, now: Instant) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let targets = self.targets.lock().expect("nothing panics with this lock");
        targets.get(target).is_some_and(|it| self.is_over(it, now))
    }

    fn is_over(&self, missing: &Missing, now: Instant) -> bool {
        missing.certain && missing.since + self.setting.after <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Duration;

    const GONE: &str = "ResourceNotFoundException";

    fn fault(class: Class, code: &str) -> Arc<Fault> {
        Arc::new(Fault {
            class,
            code: code.into(),
            message: String::new(),
            request_id: None,
        })
    }

    fn targets(action: MissingAction) -> MissingTargets {
        let setting = MissingTarget {
            action,
            after: Duration::from_secs(60),
        };
        MissingTargets::new(setting, &[GONE])
    }

    fn name(target: &str) -> Arc<str> {
        target.into()
    }

    #[test]
    fn a_target_is_given_up_after_its_time_unless_another_answer_came_last() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let all = targets(MissingAction::DeadLetter);
        let given_up = |seconds| {
            all.given_up(at(seconds), |_| true)
                .map(|(target, _)| target)
        };
        let gone = fault(Class::Configuration, GONE);
        assert_eq!((given_up(0), all.next_due(at(0))), (None, None));
        all.failed(&name("a"), &gone, at(0));
        all.failed(&name("a"), &gone, at(50));
        assert_eq!(all.next_due(at(0)), Some(at(60)));
        assert_eq!((given_up(59), given_up(60)), (None, Some(name("a"))));
        assert_eq!(all.next_due(at(60)), None);
        assert!(all.given_up(at(60), |target| &**target != "a").is_none());
        assert!(all.fallback("a", at(60)).is_none());
        for other in [
            fault(Class::Transient, "timeout"),
            fault(Class::Credentials, "ExpiredToken"),
            fault(Class::Configuration, "AccessDeniedException"),
        ] {
            all.failed(&name("a"), &other, at(70));
            assert_eq!(given_up(80), None, "{other}");
            all.failed(&name("a"), &gone, at(80));
            assert_eq!(given_up(80), Some(name("a")), "the time goes on: {other}");
        }
        assert!(all.found("a", at(90)) && !all.found("a", at(90)));
        assert_eq!(given_up(90), None);
        all.failed(&name("a"), &gone, at(90));
        all.failed(&name("a"), &fault(Class::Throttle, "slow"), at(100));
        all.failed(&name("a"), &gone, at(110));
        assert_eq!(
            (given_up(169), given_up(170)),
            (None, Some(name("a"))),
            "it existed"
        );
        assert!(!all.found("a", at(169)), "before its time");
    }

    #[test]
    fn records_go_to_the_fallback_unless_that_is_missing_itself() {
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let all = targets(MissingAction::Fallback("rest".into()));
        let gone = fault(Class::Configuration, GONE);
        for target in ["a", "rest"] {
            all.failed(&name(target), &gone, start);
        }
        assert_eq!(all.fallback("a", start), None);
        assert_eq!(all.fallback("a", later), Some(&name("rest")));
        assert_eq!(all.fallback("b", later), None);
        assert_eq!(all.fallback("rest", later), None);
        assert!(all.given_up(later, |_| true).is_none());
    }

    #[test]
    fn nothing_is_given_up_that_is_held_or_beyond_what_is_known() {
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let gone = fault(Class::Configuration, GONE);
        let all = targets(MissingAction::Hold);
        all.failed(&name("a"), &gone, start);
        assert!(all.given_up(later, |_| true).is_none() && all.next_due(start).is_none());

        let all = targets(MissingAction::DeadLetter);
        for n in 0..=MAX_MISSING {
            all.failed(&name(&n.to_string()), &gone, start);
        }
        let known = |n: usize| all.is_due(&n.to_string(), later);
        assert!(known(MAX_MISSING - 1) && !known(MAX_MISSING));
        all.failed(
            &name("x"),
            &fault(Class::Configuration, "AccessDeniedException"),
            start,
        );
        assert!(!all.is_due("x", later));
    }
}
