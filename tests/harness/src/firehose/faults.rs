//! Injected faults: a script of rules, with seeded randomness.
//!
//! # The script
#![doc = include_str!("faults.md")]

use std::ops::ControlFlow;
use std::time::Duration;

use super::api::ApiError;
use crate::faults::{Language, Script, Words, parse_duration};

/// The description of the language, printed by `--help`.
pub(super) const GRAMMAR: &str = include_str!("faults.md");

/// The placeholder for the stream's name in error messages.
const STREAM: &str = "{stream}";

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    Records(&'static str),
    AllRecords(&'static str),
    Delay(Duration),
    Skew(i64),
    End(End),
}

/// The end of a call with a fault.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct End {
    /// Its name in the ledger.
    pub(super) outcome: String,
    /// Whether the records are written.
    pub(super) written: bool,
    /// The delay before it.
    pub(super) wait: Duration,
    pub(super) how: How,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum How {
    Error(ApiError),
    /// Creates the HTML page of a proxy or load balancer for this status.
    Page(u16),
    /// Creates a success whose entries have empty ids.
    EmptyIds,
    Cut,
    CutMidAnswer,
}

/// The effect of the rules on a call.
#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) delay: Duration,
    /// The seconds by which the service's clock is ahead.
    pub(super) skew: i64,
    /// The error codes of the failing records.
    pub(super) failed: Vec<Option<&'static str>>,
    pub(super) end: Option<End>,
}

/// The faults of a Firehose.
pub(super) struct Faulty;

impl Language for Faulty {
    type Fault = Fault;
    const SCOPES: &'static [(&'static str, &'static str)] = &[("stream", "NAME")];

    fn fault(words: &mut Words<'_>) -> Result<Fault, String> {
        parse_fault(words)
    }
}

pub(super) type Faults = Script<Faulty>;

impl Faults {
    pub(super) fn decide(&mut self, stream: &str, records: usize) -> Decision {
        let mut decision = Decision::default();
        decision.failed.resize(records, None);
        let consider = |fault: &Fault, strikes: &mut dyn FnMut() -> bool| {
            match fault {
                Fault::Records(code) => {
                    for record in decision.failed.iter_mut().filter(|record| record.is_none()) {
                        *record = strikes().then_some(*code);
                    }
                }
                _ if !strikes() => {}
                Fault::AllRecords(code) => {
                    decision.failed.fill(Some(code));
                    return ControlFlow::Break(());
                }
                Fault::Delay(delay) => decision.delay += *delay,
                Fault::Skew(seconds) => decision.skew += seconds,
                Fault::End(end) => {
                    let mut end = end.clone();
                    if let How::Error(error) = &mut end.how {
                        error.message = error.message.replace(STREAM, stream);
                    }
                    decision.end = Some(end);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        };
        self.consult(|_, only| only == stream, consider);
        decision
    }
}

fn parse_fault(words: &mut Words<'_>) -> Result<Fault, String> {
    const NAMES: &str = "records, throttle-records, throttle, status, status-after-write, cut, \
         cut-after-write, cut-mid-answer, hang, hang-after-write, delay, skew, expired-token, \
         access-denied, invalid-signature, not-found, too-large, record-too-large, fed-by-kinesis, empty-ids";

    let name = words.next().unwrap_or_default();
    let end = |wait, how| {
        let outcome = match &how {
            How::Error(error) => error.code.to_owned(),
            How::Page(status) => format!("status {status}"),
            How::EmptyIds | How::Cut | How::CutMidAnswer => name.to_owned(),
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
        "record-too-large" => error(ApiError::record_too_large()),
        "fed-by-kinesis" => error(ApiError::fed_by_kinesis()),
        "empty-ids" => at_once(How::EmptyIds),
        _ => Err(format!("{name:?} is no fault; allowed: {NAMES}")),
    }
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
        assert_eq!(faults(&examples.replace(", ", "\n")).len(), 8);
        let commented = "# nothing\n\n 5% cut # half\n cut; hang 1s ;";
        assert_eq!(faults(commented).len(), 3);
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_the_remedy() {
        #[rustfmt::skip] // a table
        let cases = [
            ("cut\n5% trottle", "line 2, \"5% trottle\": \"trottle\" is no fault; allowed: records,"),
            ("status 404", "needs 413, 429, 500, 502, 503 or 504, not \"404\""),
            ("hang", "\"\" is not a duration such as 200ms or 5s"),
            ("records Oops", "not \"Oops\""),
            ("throttle OopsException", "not \"OopsException\""),
            ("cut tomorrow", "\"tomorrow\", where `stream NAME` or `times N` may stand"),
            ("5%", "\"\" is no fault"),
        ];
        for (script, expected) in cases {
            let error = Faults::new(1).push(script).unwrap_err().to_string();
            assert!(error.contains(expected), "{script}: {error}");
        }
    }

    #[test]
    fn the_first_rule_that_strikes_decides_and_only_in_its_stream() {
        let mut faults = faults("cut times 1 stream b\ndelay 1s\ncall 2 hang 1s");
        let outcomes = ["a", "b", "b"].map(|stream| {
            let decision = faults.decide(stream, 1);
            (decision.end.map(|end| end.how), decision.delay.as_secs())
        });
        assert_eq!(outcomes, [(None, 1), (Some(How::Cut), 0), (None, 1)]);
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
