//! Faults on demand: a script of rules, and the seeded dice that decide which rule strikes.
//!
//! # The script
#![doc = include_str!("faults.md")]

use std::iter::Peekable;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::anyhow;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::api::ApiError;

/// The script's language, as `--help` prints it.
pub(super) const GRAMMAR: &str = include_str!("faults.md");

/// Stands for the stream's name in an error's message until a rule strikes.
const STREAM: &str = "{stream}";

#[derive(Clone, Debug, PartialEq)]
enum Fault {
    Records(&'static str),
    AllRecords(&'static str),
    Delay(Duration),
    Skew(i64),
    End(End),
}

/// How a call ends that a fault struck.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct End {
    /// What the ledger calls it.
    pub(super) outcome: String,
    /// The records are written all the same.
    pub(super) written: bool,
    /// How long nothing happens before.
    pub(super) wait: Duration,
    pub(super) how: How,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum How {
    Error(ApiError),
    /// The HTML page with which a proxy or load balancer reports this status.
    Page(u16),
    Cut,
    CutMidAnswer,
}

#[derive(Debug)]
struct Rule {
    calls: RangeInclusive<u64>,
    probability: f64,
    fault: Fault,
    stream: Option<String>,
    strikes_left: u64,
    calls_seen: u64,
}

impl Rule {
    fn strikes(&mut self, dice: &mut SmallRng) -> bool {
        let strikes = self.strikes_left > 0 && dice.random_bool(self.probability);
        self.strikes_left -= u64::from(strikes);
        strikes
    }
}

/// What the rules make of one call.
#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) delay: Duration,
    /// Seconds by which our clock is ahead.
    pub(super) skew: i64,
    /// The error code of each record that fails.
    pub(super) failed: Vec<Option<&'static str>>,
    pub(super) end: Option<End>,
}

#[derive(Debug)]
pub(super) struct Faults {
    rules: Vec<Rule>,
    dice: SmallRng,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        let dice = SmallRng::seed_from_u64(seed);
        Self {
            rules: vec![],
            dice,
        }
    }

    /// Adds the rules of a script after those that are there; an error names the line and what is
    /// allowed there.
    pub(super) fn push(&mut self, script: &str) -> anyhow::Result<()> {
        let mut rules = Vec::new();
        for (number, line) in (1..).zip(script.lines()) {
            let code = line.split('#').next().unwrap_or_default();
            for text in code.split(';').filter(|text| !text.trim().is_empty()) {
                let rule = parse_rule(text);
                rules.push(rule.map_err(|why| anyhow!("faults, line {number}, {text:?}: {why}"))?);
            }
        }
        self.rules.extend(rules);
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(super) fn decide(&mut self, stream: &str, records: usize) -> Decision {
        let mut decision = Decision::default();
        decision.failed.resize(records, None);
        let mut decided = false;
        for rule in &mut self.rules {
            if rule.stream.as_deref().is_some_and(|only| only != stream) {
                continue;
            }
            rule.calls_seen += 1;
            if decided || !rule.calls.contains(&rule.calls_seen) {
                continue;
            }
            match rule.fault.clone() {
                Fault::Records(code) => {
                    for record in decision.failed.iter_mut().filter(|record| record.is_none()) {
                        *record = rule.strikes(&mut self.dice).then_some(code);
                    }
                }
                _ if !rule.strikes(&mut self.dice) => {}
                Fault::AllRecords(code) => {
                    decision.failed.fill(Some(code));
                    decided = true;
                }
                Fault::Delay(delay) => decision.delay += delay,
                Fault::Skew(seconds) => decision.skew += seconds,
                Fault::End(mut end) => {
                    if let How::Error(error) = &mut end.how {
                        error.message = error.message.replace(STREAM, stream);
                    }
                    decision.end = Some(end);
                    decided = true;
                }
            }
        }
        decision
    }
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    let mut words = text.split_whitespace().peekable();
    let mut calls = 1..=u64::MAX;
    if words
        .next_if(|word| ["call", "calls"].contains(word))
        .is_some()
    {
        calls = parse_calls(words.next().unwrap_or_default())?;
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
    let fault = parse_fault(&mut words)?;
    let (mut stream, mut strikes_left) = (None, u64::MAX);
    while let Some(word) = words.next() {
        match (word, words.next()) {
            ("stream", Some(name)) => stream = Some(name.to_owned()),
            ("times", Some(count)) => {
                let wrong = |_| format!("times needs a number, not {count:?}");
                strikes_left = count.parse().map_err(wrong)?;
            }
            _ => {
                return Err(format!(
                    "{word:?}, where `stream NAME` or `times N` may stand"
                ));
            }
        }
    }
    Ok(Rule {
        calls,
        probability,
        fault,
        stream,
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

fn parse_fault<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Result<Fault, String> {
    const NAMES: &str = "records, throttle-records, throttle, status, status-after-write, cut, \
         cut-after-write, cut-mid-answer, hang, hang-after-write, delay, skew, expired-token, \
         access-denied, invalid-signature, not-found, too-large";

    let name = words.next().unwrap_or_default();
    let end = |wait, how| {
        let outcome = match &how {
            How::Error(error) => error.code.to_owned(),
            How::Page(status) => format!("status {status}"),
            How::Cut | How::CutMidAnswer => name.to_owned(),
        };
        let written = name == "cut-mid-answer" || name.ends_with("-after-write");
        Ok(Fault::End(End {
            outcome,
            written,
            wait,
            how,
        }))
    };
    let at_once = |how| end(Duration::ZERO, how);
    let error = |error| at_once(How::Error(error));
    let mut argument = || words.next().unwrap_or_default();
    match name {
        "records" => match argument() {
            "ServiceUnavailableException" => Ok(Fault::Records("ServiceUnavailableException")),
            "InternalFailure" => Ok(Fault::Records("InternalFailure")),
            other => Err(format!(
                "records needs ServiceUnavailableException or InternalFailure, not {other:?}"
            )),
        },
        "throttle-records" => Ok(Fault::AllRecords("ServiceUnavailableException")),
        "throttle" => match words.next_if(|word| word.ends_with("Exception")) {
            None | Some("ThrottlingException") => error(ApiError::throttled("ThrottlingException")),
            Some("LimitExceededException") => error(ApiError::throttled("LimitExceededException")),
            Some("ServiceUnavailableException") => error(ApiError::slow_down()),
            Some(other) => Err(format!(
                "throttle needs ThrottlingException, LimitExceededException or \
                 ServiceUnavailableException, not {other:?}"
            )),
        },
        "status" | "status-after-write" => match argument() {
            "500" => error(ApiError::internal_failure()),
            code => match code.parse() {
                Ok(status @ (413 | 429 | 502..=504)) => at_once(How::Page(status)),
                _ => Err(format!(
                    "{name} needs 413, 429, 500, 502, 503 or 504, not {code:?}"
                )),
            },
        },
        "cut" | "cut-after-write" => at_once(How::Cut),
        "cut-mid-answer" => at_once(How::CutMidAnswer),
        "hang" | "hang-after-write" => end(parse_duration(argument())?, How::Cut),
        "delay" => Ok(Fault::Delay(parse_duration(argument())?)),
        "skew" => {
            let text = argument();
            let (sign, length) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
            Ok(Fault::Skew(
                sign * parse_duration(length)?.as_secs().cast_signed(),
            ))
        }
        "expired-token" => error(ApiError::expired_token()),
        "access-denied" => error(ApiError::access_denied("PutRecordBatch", STREAM)),
        "invalid-signature" => error(ApiError::wrong_signature()),
        "not-found" => error(ApiError::not_found(STREAM)),
        "too-large" => error(ApiError::too_large()),
        _ => Err(format!("{name:?} is no fault; allowed: {NAMES}")),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = |_| format!("{text:?} is not a duration such as 200ms or 5s");
    humantime::parse_duration(text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(script: &str) -> Faults {
        let mut faults = Faults::new(1);
        faults.push(script).unwrap();
        faults
    }

    #[test]
    fn the_examples_of_the_documentation_parse() {
        let (_, examples) = GRAMMAR.rsplit_once("Examples:").unwrap();
        let examples = examples.trim().trim_end_matches('.').replace('`', "");
        assert_eq!(faults(&examples.replace(", ", "\n")).rules.len(), 7);
        assert_eq!(
            faults("# nothing\n\n 5% cut # half\n cut; hang 1s ;")
                .rules
                .len(),
            3
        );
        let rule = parse_rule("calls 3- 10% cut-after-write stream app times 4").unwrap();
        assert_eq!((rule.calls, rule.probability), (3..=u64::MAX, 0.1));
        assert_eq!(
            (rule.stream.as_deref(), rule.strikes_left),
            (Some("app"), 4)
        );
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_the_remedy() {
        #[rustfmt::skip] // a table
        let cases = [
            ("cut\n5% trottle", "line 2, \"5% trottle\": \"trottle\" is no fault; allowed: records,"),
            ("101% cut", "\"101%\" is not a probability from 0% to 100%"),
            ("NaN% cut", "is not a probability"),
            ("call 0 cut", "\"0\" is not N, A-B or A-, counted from 1"),
            ("calls 5-2 cut", "\"5-2\" is not N"),
            ("status 404", "needs 413, 429, 500, 502, 503 or 504, not \"404\""),
            ("hang", "\"\" is not a duration such as 200ms or 5s"),
            ("records Oops", "not \"Oops\""),
            ("throttle OopsException", "not \"OopsException\""),
            ("cut tomorrow", "\"tomorrow\", where `stream NAME` or `times N` may stand"),
            ("cut times x", "times needs a number, not \"x\""),
            ("cut stream", "\"stream\", where"),
            ("5%", "\"\" is no fault"),
        ];
        for (script, expected) in cases {
            let error = Faults::new(1).push(script).unwrap_err().to_string();
            assert!(error.contains(expected), "{script}: {error}");
        }
    }

    #[test]
    fn rules_strike_by_number_stream_count_and_chance() {
        let struck = |script: &str, streams: &[&str]| {
            let mut faults = faults(script);
            let ends = streams.iter().map(|stream| faults.decide(stream, 1).end);
            ends.map(|end| u8::from(end.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(struck("calls 2-3 cut", &["a"; 5]), [0, 1, 1, 0, 0]);
        let streams = ["b", "a", "a", "b", "b"];
        assert_eq!(struck("call 2 cut stream b", &streams), [0, 0, 0, 1, 0]);
        assert_eq!(struck("cut times 2", &["a"; 4]), [1, 1, 0, 0]);
        assert_eq!(struck("delay 1s\ncall 1 cut", &["a"; 2]), [1, 0]);

        let fifth = || struck("20% cut", &["a"; 10_000]);
        assert_eq!(fifth(), fifth(), "the same seed, the same faults");
        let count = fifth().iter().filter(|struck| **struck == 1).count();
        assert!((1_800..2_200).contains(&count), "{count} of 10,000 at 20%");
    }

    #[test]
    fn single_records_fail_by_chance_and_count() {
        let failed = |script: &str| {
            let failed = faults(script).decide("a", 500).failed;
            failed.into_iter().flatten().collect::<Vec<_>>()
        };
        assert_eq!(
            failed("records InternalFailure times 3"),
            ["InternalFailure"; 3]
        );
        assert_eq!(failed("throttle-records").len(), 500);
        let some = failed("10% records ServiceUnavailableException").len();
        assert!((25..75).contains(&some), "{some} of 500 at 10%");
    }
}
