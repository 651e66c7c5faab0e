//! What `ferry check` does: a configuration of Fluent Bit is read as the host would read it, and everything
//! that each `ferry` output in it needs is tried, from the keys to the far end. Nothing is written at a
//! destination unless it is asked for, nothing is left behind on the disk, and no secret is shown.
//!
//! [`host`] reads the file and advises about Fluent Bit's own settings; [`disk`] tries the folders;
//! [`net`] goes the way to the service, step by step; [`firehose`] and [`blob`] ask the service itself;
//! [`tags`] finds examples for names that are made from events; [`migrate`] turns outputs of other plugins into
//! Ferry's. The plugin itself uses none of it.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::codec::msgpack::Event;
use crate::codec::template::Template;
use crate::config::{Blob, Config, Destination};

mod aws;
mod blob;
mod disk;
mod firehose;
pub mod host;
pub mod migrate;
mod net;
mod tags;

use host::{Configuration, Output};

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Ok,
    /// It works, but a person should know this.
    Warn,
    /// It does not work.
    Fail,
    /// Not tried, for a reason that is said.
    Skip,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mark::Ok => "ok",
            Mark::Warn => "warn",
            Mark::Fail => "FAIL",
            Mark::Skip => "skip",
        })
    }
}

/// One check of one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The output, by its alias or by the name that the host gives it, such as `ferry.0`.
    pub output: String,
    /// What was checked: `configuration`, `tls`, `clock` and so on.
    pub check: &'static str,
    /// What came of it.
    pub mark: Mark,
    /// What was found. Never a secret.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<4} {} {}: {}",
            self.mark, self.output, self.check, self.message
        )?;
        match &self.remedy {
            Some(remedy) => write!(f, "; remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

/// How to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether to write one marked record or object.
    pub put: bool,
    /// The longest that one check waits for somebody else.
    pub timeout: Duration,
    /// Examples of tags, for names that are made from them. Where there are none, they are looked for in `Match`
    /// and in the spool.
    pub tags: Vec<String>,
    /// An example of a record, for names that are made from it.
    pub record: Option<Value>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            put: false,
            timeout: Duration::from_secs(10),
            tags: Vec::new(),
            record: None,
        }
    }
}

/// Words in one line.
fn one_line(words: &str) -> String {
    let lines: Vec<&str> = words.lines().map(str::trim).collect();
    lines.join(" ")
}

/// Takes the findings about one output.
struct Report<'a> {
    output: &'a str,
    say: &'a mut dyn FnMut(Finding),
}

impl Report<'_> {
    fn say(&mut self, check: &'static str, mark: Mark, message: String, remedy: Option<String>) {
        (self.say)(Finding {
            output: self.output.to_owned(),
            check,
            mark,
            // A finding is a line, whatever others' words are.
            message: one_line(&message),
            remedy,
        });
    }

    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.say(check, Mark::Ok, message.into(), None);
    }

    fn warn(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.say(check, Mark::Warn, message.into(), Some(remedy.into()));
    }

    fn fail(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.say(check, Mark::Fail, message.into(), Some(remedy.into()));
    }

    fn skip(&mut self, check: &'static str, message: impl Into<String>) {
        self.say(check, Mark::Skip, message.into(), None);
    }
}

/// Checks every `ferry` output and tells each finding as soon as it is there. Whether none failed.
pub fn run(
    configuration: &Configuration,
    options: &Options,
    say: &mut dyn FnMut(Finding),
) -> std::io::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut sound = true;
    let mut listen = |finding: Finding| {
        sound &= finding.mark != Mark::Fail;
        say(finding);
    };
    let mut folders = HashMap::new();
    if let Some(first) = configuration.outputs.first() {
        let mut report = Report {
            output: &first.label,
            say: &mut listen,
        };
        host::library(configuration, &mut report);
        host::service(configuration, &mut report);
    }
    for output in &configuration.outputs {
        let mut report = Report {
            output: &output.label,
            say: &mut listen,
        };
        runtime.block_on(check(
            configuration,
            output,
            options,
            &mut folders,
            &mut report,
        ));
    }
    // A look-up of a name cannot be called off; nobody waits for it any more.
    runtime.shutdown_background();
    Ok(sound)
}

async fn check(
    configuration: &Configuration,
    output: &Output,
    options: &Options,
    folders: &mut HashMap<PathBuf, String>,
    report: &mut Report<'_>,
) {
    let config = Config::read(output);
    match &config {
        Ok(config) => {
            let message = format!("{}, {}", config.summary(), config.details());
            report.ok("configuration", message);
        }
        Err(problems) => {
            for problem in problems {
                let at = output
                    .entry(problem.key)
                    .map(|key| format!("{}: ", key.place));
                let message = format!("{}{problem}", at.unwrap_or_default());
                report.say("configuration", Mark::Fail, message, None);
            }
        }
    }
    host::keys(configuration, output, report);
    let Ok(config) = config else {
        report.skip(
            "destination",
            "not tried before the configuration is mended",
        );
        return;
    };
    host::advise(configuration, output, &config, report);
    let found = Options {
        tags: tags::find(output, &config, options).await,
        ..options.clone()
    };
    let options = &found;
    disk::check(&config, folders, options, report).await;
    match &config.destination {
        Destination::Firehose(firehose) => {
            firehose::check(&config, firehose, options, report).await
        }
        Destination::Blob {
            blob,
            prefix,
            folder,
            ..
        } => {
            let written = Blob::folder_as_written(output);
            let folder = written.as_ref().unwrap_or(folder);
            blob::check(&config, blob, prefix, folder, options, report).await;
        }
    }
}

/// Waits for `what` as long as a check may take; the error says that it took longer.
async fn within<T>(options: &Options, what: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(options.timeout, what)
        .await
        .map_err(|_| format!("no answer within {:?}", options.timeout))
}

/// The same for what blocks its thread.
async fn blocking<T: Send + 'static>(
    options: &Options,
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    within(options, tokio::task::spawn_blocking(what))
        .await?
        .map_err(|_| "the check itself broke: please report it".to_owned())
}

/// Names that are tried, at most, of those that the examples make.
const MOST_TRIED: usize = 8;

/// Names made from the examples, each once, at most [`MOST_TRIED`]; none where they need an example that was neither
/// given nor found.
fn examples(template: &Template, options: &Options) -> Vec<String> {
    if let Some(fixed) = template.fixed() {
        return vec![fixed];
    }
    let mut body = Vec::new();
    match &options.record {
        Some(record) => msgpack(record, &mut body),
        // Steady names hold nothing of the record.
        None if template.constant_within_a_second() => body.push(0x80),
        None => return Vec::new(),
    }
    let event = Event {
        time: crate::codec::time::now(),
        metadata: &[],
        body: &body,
        group: None,
        raw: &body,
    };
    let mut names: Vec<String> = Vec::new();
    let any = [String::new()];
    let tags = match template.uses_tag() {
        true => options.tags.as_slice(),
        false => &any,
    };
    for tag in tags {
        let mut name = String::new();
        template.render(tag, &event, &mut name);
        if !names.contains(&name) && names.len() < MOST_TRIED {
            names.push(name);
        }
    }
    names
}

/// A JSON value as msgpack.
pub fn msgpack_of(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    msgpack(value, &mut out);
    out
}

/// Appends a JSON value as msgpack.
fn msgpack(value: &Value, out: &mut Vec<u8>) {
    // Writing into memory cannot fail.
    let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    match value {
        Value::Null => out.push(0xc0),
        Value::Bool(flag) => out.push(if *flag { 0xc3 } else { 0xc2 }),
        Value::Number(number) => {
            let written = match (number.as_u64(), number.as_i64()) {
                (Some(n), _) => rmp::encode::write_uint(out, n).map(drop),
                (None, Some(n)) => rmp::encode::write_sint(out, n).map(drop),
                _ => rmp::encode::write_f64(out, number.as_f64().unwrap_or(f64::NAN)),
            };
            written.expect("memory takes it");
        }
        Value::String(text) => rmp::encode::write_str(out, text).expect("memory takes it"),
        Value::Array(items) => {
            rmp::encode::write_array_len(out, length(items.len())).expect("memory takes it");
            items.iter().for_each(|item| msgpack(item, out));
        }
        Value::Object(pairs) => {
            rmp::encode::write_map_len(out, length(pairs.len())).expect("memory takes it");
            for (key, value) in pairs {
                rmp::encode::write_str(out, key).expect("memory takes it");
                msgpack(value, out);
            }
        }
    }
}

/// Whether the configuration compresses what it sends.
fn compresses(config: &Config) -> bool {
    config.compression != crate::compress::Compression::None
}
