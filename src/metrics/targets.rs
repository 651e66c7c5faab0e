//! What waits for each of the worst targets.
//!
//! There may be thousands of targets, and their names may come from records. The host's page must have every value of
//! every label from the start. So the label is the number of a *slot*, and a target keeps its slot while it is among the
//! worst; Ferry's own page also has the name of the target, and the log says which slot a target has.

use std::sync::{Arc, Mutex};

use super::Values;
use crate::ids::Time;

/// The label with the slot.
pub const LABEL: &str = "slot";
/// The label with the name of the target, on Ferry's own page.
pub const NAME: &str = "target";
/// The number of targets with a slot of their own.
pub const SLOTS: usize = 20;
/// The values of [`LABEL`]; all targets without a slot share the last one.
pub const VALUES: &[&str] = &[
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17",
    "18", "19", "20", "other",
];

/// What waits for a target, or for several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The number of log events.
    pub records: u64,
    /// Their approximate size in the spool, in bytes.
    pub bytes: u64,
    /// The time at which the oldest of them arrived.
    pub oldest: Option<Time>,
}

/// The targets for which most waits.
#[derive(Debug, Default)]
pub struct Targets(Mutex<Slots>);

#[derive(Debug, Default)]
struct Slots {
    slots: [Option<(Arc<str>, Waiting)>; SLOTS],
    other: Waiting,
    now: Time,
}

impl Targets {
    /// Sets what waits for the worst targets, of which there are at most [`SLOTS`], and for all others together.
    pub fn set(&self, worst: Vec<(Arc<str>, Waiting)>, other: Waiting) {
        let mut all = self.0.lock().expect("nothing panics with this lock");
        let is_worst = |name: &Arc<str>| worst.iter().any(|(worst, _)| worst == name);
        for slot in &mut all.slots {
            slot.take_if(|(name, _)| !is_worst(name));
        }
        for (name, waiting) in worst {
            let own = |slot: &&mut Option<(Arc<str>, Waiting)>| {
                slot.as_ref().is_some_and(|(of, _)| *of == name)
            };
            let mut slots = all.slots.iter_mut();
            let slot = match slots.find(own) {
                Some(slot) => Some(slot),
                None => all.slots.iter_mut().find(|slot| slot.is_none()),
            };
            if let Some(slot) = slot {
                *slot = Some((name, waiting));
            }
        }
        all.other = other;
    }

    /// Sets the time that ages are relative to.
    pub fn set_now(&self, now: Time) {
        self.0.lock().expect("nothing panics with this lock").now = now;
    }

    /// Returns the value of [`LABEL`] for a target, if it has a slot.
    pub fn slot(&self, target: &str) -> Option<&'static str> {
        let all = self.0.lock().expect("nothing panics with this lock");
        let is = |slot: &Option<(Arc<str>, Waiting)>| {
            slot.as_ref().is_some_and(|(name, _)| **name == *target)
        };
        all.slots.iter().position(is).map(|at| VALUES[at])
    }

    /// Returns the name of the target in each slot.
    pub(super) fn names(&self) -> Vec<Option<Arc<str>>> {
        let all = self.0.lock().expect("nothing panics with this lock");
        let names = all.slots.iter();
        names
            .map(|slot| slot.as_ref().map(|(name, _)| Arc::clone(name)))
            .collect()
    }

    /// Reads one property of what waits, for each slot.
    pub(super) fn read(&self, of: fn(&Waiting, Time) -> f64) -> Values {
        let all = self.0.lock().expect("nothing panics with this lock");
        let slots = all.slots.iter();
        let slots = slots.map(|slot| slot.as_ref().map_or(0.0, |(_, it)| of(it, all.now)));
        let other = of(&all.other, all.now);
        Values::Each(slots.chain([other]).map(Some).collect())
    }
}

impl Waiting {
    /// Returns the age of the oldest of them in seconds; 0 if nothing waits.
    pub(super) fn age(&self, now: Time) -> f64 {
        self.oldest.map_or(0.0, |oldest| now.seconds_since(oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(records: u64) -> Waiting {
        Waiting {
            records,
            bytes: 10 * records,
            oldest: Some(Time {
                seconds: 100,
                nanos: 0,
            }),
        }
    }

    fn set(targets: &Targets, worst: &[(&str, u64)], other: u64) {
        let worst = worst.iter();
        let worst = worst.map(|(name, records)| ((*name).into(), waiting(*records)));
        targets.set(worst.collect(), waiting(other));
    }

    #[test]
    fn a_target_keeps_its_slot_and_a_free_one_is_given_to_another() {
        let targets = Targets::default();
        set(&targets, &[("a", 3), ("b", 2)], 7);
        let slots = || ["a", "b", "c"].map(|name| targets.slot(name));
        assert_eq!(slots(), [Some("1"), Some("2"), None]);
        set(&targets, &[("c", 9), ("b", 4)], 0);
        assert_eq!(slots(), [None, Some("2"), Some("1")]);
        set(&targets, &[("b", 4)], 0);
        assert_eq!(slots(), [None, Some("2"), None]);
        let names = targets.names();
        assert_eq!((names.len(), names[1].as_deref()), (SLOTS, Some("b")));
        assert!(names.iter().flatten().count() == 1);
    }

    #[test]
    fn each_slot_has_a_value_and_the_last_label_is_that_of_all_others() {
        assert_eq!((VALUES.len(), VALUES[SLOTS]), (SLOTS + 1, "other"));
        let targets = Targets::default();
        let names: Vec<String> = (0..SLOTS).map(|n| n.to_string()).collect();
        let worst: Vec<_> = names
            .iter()
            .zip(1..)
            .map(|(name, n)| (&name[..], n))
            .collect();
        set(&targets, &worst, 1_000);
        let expected: Vec<_> = (1..=SLOTS as u64)
            .chain([1_000])
            .map(|n| Some(n as f64))
            .collect();
        assert_eq!(
            targets.read(|it, _| it.records as f64),
            Values::Each(expected)
        );
        targets.set_now(Time {
            seconds: 107,
            nanos: 500_000_000,
        });
        let ages = targets.read(Waiting::age);
        assert_eq!(ages, Values::Each(vec![Some(7.5); SLOTS + 1]));
    }
}
