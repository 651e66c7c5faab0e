//! The faults between a client and a server.
//!
//! # The script
#![doc = include_str!("faults.md")]

use std::ops::ControlFlow;
use std::time::Duration;

use crate::faults::{Language, Script, Words, parse_duration};

/// The description of the language, printed by `--help`.
pub(super) const GRAMMAR: &str = include_str!("faults.md");

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    Delay(Duration),
    DelayAfterForward(Duration),
    End(End),
}

/// The end of a request with a fault.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct End {
    /// The fault, as in the script.
    pub(super) words: String,
    /// Whether the request is forwarded.
    pub(super) forward: bool,
    pub(super) how: How,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum How {
    /// A status of the proxy's own; without an error name, as a gateway's page.
    Status(u16, Option<String>),
    Cut,
    CutMidAnswer,
    /// For this time, or until the client disconnects.
    Hang(Option<Duration>),
}

/// The effect of the rules on a request.
#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) delay: Duration,
    pub(super) delay_after_forward: Duration,
    pub(super) end: Option<End>,
}

impl Decision {
    pub(super) fn forwards(&self) -> bool {
        self.end.as_ref().is_none_or(|end| end.forward)
    }

    /// The faults that applied, as in the script.
    pub(super) fn words(&self) -> Option<String> {
        let delays = [
            ("delay", self.delay),
            ("delay-after-forward", self.delay_after_forward),
        ];
        let delays = delays.into_iter().filter(|(_, time)| !time.is_zero());
        let delays =
            delays.map(|(name, time)| format!("{name} {}", humantime::format_duration(time)));
        let words: Vec<_> = delays
            .chain(self.end.iter().map(|end| end.words.clone()))
            .collect();
        Some(words.join(", ")).filter(|words| !words.is_empty())
    }
}

/// The faults of a request.
pub(super) struct Faulty;

impl Language for Faulty {
    type Fault = Fault;
    const SCOPES: &'static [(&'static str, &'static str)] =
        &[("method", "NAME"), ("path", "TEXT"), ("while", "SWITCH")];

    fn fault(words: &mut Words<'_>) -> Result<Fault, String> {
        parse_fault(words)
    }
}

pub(super) type Faults = Script<Faulty>;

impl Faults {
    /// Applies the rules to a request. `path` is path and query; `is_on` returns the state of a switch.
    pub(super) fn decide(
        &mut self,
        method: &str,
        path: &str,
        is_on: impl Fn(&str) -> bool,
    ) -> Decision {
        let mut decision = Decision::default();
        let concerns = |scope: &str, argument: &str| match scope {
            "method" => argument.eq_ignore_ascii_case(method),
            "path" => path.contains(argument),
            _ => is_on(argument),
        };
        self.consult(concerns, |fault, strikes| {
            if strikes() {
                match fault {
                    Fault::Delay(delay) => decision.delay += *delay,
                    Fault::DelayAfterForward(delay) => decision.delay_after_forward += *delay,
                    Fault::End(end) => {
                        decision.end = Some(end.clone());
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        });
        decision
    }
}

fn parse_fault(words: &mut Words<'_>) -> Result<Fault, String> {
    const NAMES: &str = "status, status-after-forward, cut, cut-after-forward, cut-mid-answer, hang, \
         hang-after-forward, delay, delay-after-forward";

    let name = words.next().unwrap_or_default();
    let mut text = name.to_owned();
    let how = match name {
        "status" | "status-after-forward" => {
            let code = words.next().unwrap_or_default();
            let status = code.parse().ok().filter(|code| (400..600).contains(code));
            let wrong = || format!("{name} needs a status from 400 to 599, not {code:?}");
            let status = status.ok_or_else(wrong)?;
            let error = words.next_if(|word| word.starts_with(|c: char| c.is_ascii_uppercase()));
            let error = error.or(usual_error(status));
            text = [Some(name), Some(code), error]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" ");
            How::Status(status, error.map(str::to_owned))
        }
        "cut" | "cut-after-forward" => How::Cut,
        "cut-mid-answer" => How::CutMidAnswer,
        "hang" | "hang-after-forward" => {
            let time = words.next_if(|word| word.starts_with(|c: char| c.is_ascii_digit()));
            How::Hang(time.map(parse_duration).transpose()?)
        }
        "delay" | "delay-after-forward" => {
            let time = parse_duration(words.next().unwrap_or_default())?;
            return Ok(match name {
                "delay" => Fault::Delay(time),
                _ => Fault::DelayAfterForward(time),
            });
        }
        _ => return Err(format!("{name:?} is no fault; allowed: {NAMES}")),
    };
    Ok(Fault::End(End {
        words: text,
        forward: name == "cut-mid-answer" || name.ends_with("-after-forward"),
        how,
    }))
}

/// The error codes of Azure's blob service
/// (<https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes>); a blob store may return any of
/// them for its status.
fn usual_error(status: u16) -> Option<&'static str> {
    Some(match status {
        403 => "AuthenticationFailed",
        404 => "ContainerNotFound",
        409 => "ContainerBeingDeleted",
        412 => "ConditionNotMet",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServerBusy",
        _ => return None,
    })
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
        assert_eq!(faults(&examples.replace(", ", "\n")).len(), 7);
    }

    #[test]
    fn every_fault_has_its_words_and_says_whether_it_forwards() {
        #[rustfmt::skip] // a table
        let cases = [
            ("status 503", "status 503 ServerBusy", false),
            ("status 404 BlobNotFound", "status 404 BlobNotFound", false),
            ("status 502", "status 502", false),
            ("status-after-forward 500", "status-after-forward 500 InternalError", true),
            ("cut", "cut", false),
            ("cut-after-forward", "cut-after-forward", true),
            ("cut-mid-answer", "cut-mid-answer", true),
            ("hang", "hang", false),
            ("hang 5s times 3", "hang", false),
            ("hang-after-forward method GET", "hang-after-forward", true),
            ("delay 1s", "delay 1s", true),
            ("delay 1s; delay 2s; delay-after-forward 5ms; cut; delay 9s", "delay 3s, delay-after-forward 5ms, cut", false),
        ];
        for (script, words, forwards) in cases {
            let decision = faults(script).decide("GET", "/", |_| false);
            assert_eq!(decision.words().as_deref(), Some(words), "{script}");
            assert_eq!(decision.forwards(), forwards, "{script}");
        }
        assert_eq!(faults("").decide("GET", "/", |_| true).words(), None);
    }

    #[test]
    fn a_rule_keeps_to_its_method_path_and_switch() {
        #[rustfmt::skip] // a table
        let cases = [
            ("cut method PUT", [true, false, true]),
            ("cut method get", [false, true, false]),
            ("cut path comp=block", [true, false, false]),
            ("cut path /c/ method PUT", [true, false, true]),
            ("call 2 cut method PUT", [false, false, true]),
            ("cut while on", [true, true, true]),
            ("cut while off", [false, false, false]),
        ];
        for (script, struck) in cases {
            let mut faults = faults(script);
            let requests = [("PUT", "/c/b?comp=block"), ("GET", "/c/b"), ("PUT", "/c/b")];
            let found = requests.map(|(method, path)| {
                let decision = faults.decide(method, path, |switch| switch == "on");
                decision.end.is_some()
            });
            assert_eq!(found, struck, "{script}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_the_remedy() {
        #[rustfmt::skip] // a table
        let cases = [
            ("trottle", "\"trottle\" is no fault; allowed: status, "),
            ("status 200", "status needs a status from 400 to 599, not \"200\""),
            ("status", "status needs a status from 400 to 599, not \"\""),
            ("status 503 busy", "\"busy\", where `method NAME`, `path TEXT`, `while SWITCH` or `times N` may stand"),
            ("delay", "\"\" is not a duration such as 200ms or 5s"),
            ("hang 5 parsecs", "\"5\" is not a duration"),
        ];
        for (script, expected) in cases {
            let error = Faults::new(1).push(script).unwrap_err().to_string();
            assert!(error.contains(expected), "{script}: {error}");
        }
    }
}
