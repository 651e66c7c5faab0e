//! Fault scripts: rules that select the calls to which a fault applies, and seeded randomness. The faults and further
//! restrictions are defined by each server's [`Language`].

use std::iter::Peekable;
use std::marker::PhantomData;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::Path;
use std::str::SplitWhitespace;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The remaining text of a rule.
pub(crate) type Words<'a> = Peekable<SplitWhitespace<'a>>;

/// The rule language of a server.
pub(crate) trait Language {
    type Fault;

    /// The words that may follow a fault to restrict it, with the names of their arguments.
    const SCOPES: &'static [(&'static str, &'static str)];

    /// Parses a fault with its arguments. The error names what is expected.
    fn fault(words: &mut Words<'_>) -> Result<Self::Fault, String>;
}

struct Rule<F> {
    calls: RangeInclusive<u64>,
    every: u64,
    probability: f64,
    fault: F,
    scopes: Vec<(&'static str, String)>,
    strikes_left: u64,
    calls_seen: u64,
}

impl<F> Rule<F> {
    /// Counts a call in the rule's scope. Returns whether the rule applies to it.
    fn counts(&mut self) -> bool {
        self.calls_seen += 1;
        self.calls.contains(&self.calls_seen) && self.calls_seen.is_multiple_of(self.every)
    }
}

/// The active rules.
pub(crate) struct Script<L: Language> {
    rules: Vec<Rule<L::Fault>>,
    dice: SmallRng,
    language: PhantomData<L>,
}

impl<L: Language> Script<L> {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rules: Vec::new(),
            dice: SmallRng::seed_from_u64(seed),
            language: PhantomData,
        }
    }

    /// Appends the rules of a script. An error names the line and what is expected there.
    pub(crate) fn push(&mut self, script: &str) -> anyhow::Result<()> {
        let mut rules = Vec::new();
        for (number, line) in (1..).zip(script.lines()) {
            let code = line.split('#').next().unwrap_or_default();
            for text in code.split(';').filter(|text| !text.trim().is_empty()) {
                let rule = parse_rule::<L>(text);
                rules.push(rule.map_err(|why| anyhow!("faults, line {number}, {text:?}: {why}"))?);
            }
        }
        self.rules.extend(rules);
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.rules.len()
    }

    /// Applies the rules to a call. `concerns` returns, for each scope and its argument, whether the call is in it.
    /// `consider` gets the faults of the rules that select this call, and the randomness, which it uses once for each
    /// thing that a fault may apply to. Once it breaks, later rules only count the call.
    pub(crate) fn consult(
        &mut self,
        concerns: impl Fn(&str, &str) -> bool,
        mut consider: impl FnMut(&L::Fault, &mut dyn FnMut() -> bool) -> ControlFlow<()>,
    ) {
        let mut decided = false;
        for rule in &mut self.rules {
            let mut scopes = rule.scopes.iter();
            if !scopes.all(|(scope, argument)| concerns(scope, argument)) {
                continue;
            }
            if !rule.counts() || decided {
                continue;
            }
            let mut strikes = || {
                let strikes = rule.strikes_left > 0 && self.dice.random_bool(rule.probability);
                rule.strikes_left -= u64::from(strikes);
                strikes
            };
            decided = consider(&rule.fault, &mut strikes).is_break();
        }
    }
}

fn parse_rule<L: Language>(text: &str) -> Result<Rule<L::Fault>, String> {
    let mut words = text.split_whitespace().peekable();
    let (mut calls, mut every) = (1..=u64::MAX, 1);
    if words
        .next_if(|word| ["call", "calls"].contains(word))
        .is_some()
    {
        calls = parse_calls(words.next().unwrap_or_default())?;
    } else if words.next_if_eq(&"every").is_some() {
        let count = words.next().unwrap_or_default();
        let number = count.parse().ok().filter(|number| *number > 0);
        every = number.ok_or_else(|| format!("every needs a number from 1, not {count:?}"))?;
    }
    let mut probability = 1.0;
    if let Some(text) = words.next_if(|word| word.ends_with('%')) {
        let percent = text.trim_end_matches('%').parse::<f64>();
        let percent = percent
            .ok()
            .filter(|percent| (0.0..=100.0).contains(percent));
        let wrong = || format!("{text:?} is not a probability from 0% to 100%");
        probability = percent.ok_or_else(wrong)? / 100.0;
    }
    let fault = L::fault(&mut words)?;
    let (mut scopes, mut strikes_left) = (Vec::new(), u64::MAX);
    while let Some(word) = words.next() {
        let scope = L::SCOPES.iter().find(|(scope, _)| *scope == word);
        match (scope, words.next()) {
            (Some((scope, _)), Some(argument)) => scopes.push((*scope, argument.to_owned())),
            (None, Some(count)) if word == "times" => {
                let wrong = |_| format!("times needs a number, not {count:?}");
                strikes_left = count.parse().map_err(wrong)?;
            }
            _ => {
                let scopes = L::SCOPES.iter();
                let may: Vec<_> = scopes
                    .map(|(scope, name)| format!("`{scope} {name}`"))
                    .collect();
                let may = may.join(", ");
                return Err(format!("{word:?}, where {may} or `times N` may stand"));
            }
        }
    }
    Ok(Rule {
        calls,
        every,
        probability,
        fault,
        scopes,
        strikes_left,
        calls_seen: 0,
    })
}

fn parse_calls(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let last = if last.is_empty() {
        Ok(u64::MAX)
    } else {
        last.parse()
    };
    match (first.parse(), last) {
        (Ok(first), Ok(last)) if 1 <= first && first <= last => Ok(first..=last),
        _ => Err(format!("{text:?} is not N, A-B or A-, counted from 1")),
    }
}

/// Parses the duration of a fault.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = |_| format!("{text:?} is not a duration such as 200ms or 5s");
    humantime::parse_duration(text).map_err(wrong)
}

/// Returns the script of `--faults`: the contents of the file, or the argument itself.
pub(crate) fn from_argument<L: Language>(argument: String) -> anyhow::Result<String> {
    if Path::new(&argument).is_file() {
        let script = std::fs::read_to_string(&argument);
        return script.with_context(|| format!("cannot read {argument}"));
    }
    let neither = || format!("--faults {argument:?} is no file and no script");
    Script::<L>::new(0).push(&argument).with_context(neither)?;
    Ok(argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A language with one fault, `fail`.
    struct Simple;

    impl Language for Simple {
        type Fault = ();
        const SCOPES: &'static [(&'static str, &'static str)] = &[("by", "NAME"), ("at", "PLACE")];

        fn fault(words: &mut Words<'_>) -> Result<(), String> {
            match words.next() {
                Some("fail") => Ok(()),
                other => Err(format!("{other:?} is not fail")),
            }
        }
    }

    /// Returns the calls, given by caller, to which a fault applied.
    fn struck(script: &str, callers: &[&str]) -> Vec<usize> {
        let mut rules = Script::<Simple>::new(1);
        rules.push(script).unwrap();
        let mut struck = Vec::new();
        for (number, caller) in (1..).zip(callers) {
            let concerns = |scope: &str, argument: &str| scope == "by" && argument == *caller;
            rules.consult(concerns, |(), strikes| match strikes() {
                true => {
                    struck.push(number);
                    ControlFlow::Break(())
                }
                false => ControlFlow::Continue(()),
            });
        }
        struck
    }

    #[test]
    fn rules_strike_by_number_scope_count_and_chance() {
        #[rustfmt::skip] // a table
        let cases: &[(&str, &[usize])] = &[
            ("call 2 fail", &[2]),
            ("calls 2-3 fail", &[2, 3]),
            ("calls 5- fail", &[5, 6]),
            ("every 2 fail", &[2, 4, 6]),
            ("every 1 fail", &[1, 2, 3, 4, 5, 6]),
            ("fail times 2", &[1, 2]),
            ("every 2 fail times 2", &[2, 4]),
            ("call 2 fail by b", &[4]),
            ("every 2 fail by b", &[4]),
            ("fail by a by b", &[]),
            ("fail at home", &[]),
            ("0% fail", &[]),
            ("100% fail times 1; fail times 1", &[1, 2]),
            ("fail times 1\ncall 2 fail", &[1, 2]),
        ];
        for (script, wanted) in cases {
            let found = struck(script, &["a", "b", "a", "b", "a", "b"]);
            assert_eq!(found, *wanted, "{script}");
        }
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed() {
        let some = struck("20% fail", &["a"; 10_000]);
        assert_eq!(some, struck("20% fail", &["a"; 10_000]));
        assert!((1_800..2_200).contains(&some.len()), "{}", some.len());
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_the_remedy() {
        #[rustfmt::skip] // a table
        let cases = [
            ("fail\n5% fial", "line 2, \"5% fial\": Some(\"fial\") is not fail"),
            ("101% fail", "\"101%\" is not a probability from 0% to 100%"),
            ("NaN% fail", "is not a probability"),
            ("call 0 fail", "\"0\" is not N, A-B or A-, counted from 1"),
            ("calls 5-2 fail", "\"5-2\" is not N"),
            ("every 0 fail", "every needs a number from 1, not \"0\""),
            ("every fail", "every needs a number from 1, not \"fail\""),
            ("fail now", "\"now\", where `by NAME`, `at PLACE` or `times N` may stand"),
            ("fail times x", "times needs a number, not \"x\""),
            ("fail by", "\"by\", where"),
        ];
        for (script, expected) in cases {
            let error = Script::<Simple>::new(1)
                .push(script)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{script}: {error}");
        }
    }

    #[test]
    fn an_argument_is_a_file_or_a_script() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("faults");
        std::fs::write(&file, "fail # twice\n").unwrap();
        let name = file.display().to_string();
        assert_eq!(from_argument::<Simple>(name).unwrap(), "fail # twice\n");
        assert_eq!(from_argument::<Simple>("fail".to_owned()).unwrap(), "fail");
        let error = from_argument::<Simple>("file".to_owned()).unwrap_err();
        assert!(format!("{error:#}").contains("--faults \"file\" is no file and no script"));
    }
}
