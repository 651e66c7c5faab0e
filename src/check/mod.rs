//! The implementation of `ferry check`: reads a configuration as Fluent Bit does, and checks everything that its
//! `ferry` outputs need, from the keys to the destination. Nothing is written at a destination unless requested,
//! nothing is left on the disk, and no secret is shown.
//!
//! [`host`] reads the file and checks Fluent Bit's own settings; [`disk`] checks the folders; [`net`] checks the
//! connection to the service, step by step; [`firehose`] and [`blob`] check the service itself; [`tags`] finds example
//! tags for templates; [`cost`] computes what objects cost, and [`bill`] what a month of logs does; [`migrate`] converts outputs of other plugins. The plugin itself uses none of it.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::codec::msgpack::Event;
use crate::codec::template::Template;
use crate::config::{Config, Destination, Properties as _};

mod aws;
pub mod bill;
mod blob;
pub mod cost;
mod disk;
mod firehose;
pub mod host;
pub mod migrate;
mod net;
mod samples;
mod tags;

use host::{Configuration, Output};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It passed.
    Ok,
    /// It passed, but needs attention.
    Warn,
    /// It failed.
    Fail,
    /// It was not tried, for the reason in the message.
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

/// The finding of a check of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The output's alias, or the host's name for it, such as `ferry.0`.
    pub output: String,
    /// The name of the check: `configuration`, `tls`, `clock` and so on.
    pub check: &'static str,
    /// The result.
    pub mark: Mark,
    /// The details. Never a secret.
    pub message: String,
    /// The remedy.
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

/// The options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether to write a marked record or object.
    pub put: bool,
    /// The timeout of each check.
    pub timeout: Duration,
    /// Example tags for templates. Without any, those in `Match` and in the spool are used.
    pub tags: Vec<String>,
    /// An example record for templates.
    pub record: Option<Value>,
    /// All example records.
    pub records: Vec<Value>,
    /// The expected load, for the size and cost of objects.
    pub load: Option<cost::Load>,
    /// Events with their tags, whose body is msgpack. Without any example record, those in the spool are used.
    pub samples: Vec<(String, Vec<u8>)>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            put: false,
            timeout: Duration::from_secs(10),
            tags: Vec::new(),
            record: None,
            records: Vec::new(),
            load: None,
            samples: Vec::new(),
        }
    }
}

/// Joins the lines of a text.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" ")
}

/// The report about an output.
struct Report<'a> {
    output: &'a str,
    /// What was reported for one output and holds for all of them, with that output.
    said: &'a mut HashMap<String, String>,
    sink: &'a mut dyn FnMut(Finding),
}

impl Report<'_> {
    fn add(&mut self, check: &'static str, mark: Mark, message: String, remedy: Option<String>) {
        (self.sink)(Finding {
            output: self.output.to_owned(),
            check,
            mark,
            // Messages of services and libraries may have several lines.
            message: one_line(&message),
            remedy,
        });
    }

    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Mark::Ok, message.into(), None);
    }

    fn warn(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Mark::Warn, message.into(), Some(remedy.into()));
    }

    fn fail(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Mark::Fail, message.into(), Some(remedy.into()));
    }

    /// Reports a failure that has the same cause for several outputs: as a failure once, and then with a reference to it.
    fn fail_once(&mut self, check: &'static str, message: String, remedy: impl Into<String>) {
        match self.said.get(&message) {
            Some(first) if first != self.output => {
                let message = format!("as of {first}");
                self.add(check, Mark::Skip, message, None);
            }
            _ => {
                self.said.insert(message.clone(), self.output.to_owned());
                self.fail(check, message, remedy);
            }
        }
    }

    fn skip(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Mark::Skip, message.into(), None);
    }
}

/// Checks every `ferry` output and passes each finding to `sink` at once. Returns whether no check failed; an error
/// means that the runtime could not be started.
pub fn run(
    configuration: &Configuration,
    options: &Options,
    sink: &mut dyn FnMut(Finding),
) -> std::io::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut passed = true;
    let mut record = |finding: Finding| {
        passed &= finding.mark != Mark::Fail;
        sink(finding);
    };
    let mut folders = HashMap::new();
    let mut said = HashMap::new();
    if let Some(first) = configuration.outputs.first() {
        let mut report = Report {
            output: &first.label,
            said: &mut said,
            sink: &mut record,
        };
        host::library(configuration, &mut report);
        host::service(configuration, &mut report);
        runtime.block_on(disk::stranded(
            first.state_dir(),
            &own_spools(configuration),
            options,
            &mut report,
        ));
    }
    for output in &configuration.outputs {
        let mut report = Report {
            output: &output.label,
            said: &mut said,
            sink: &mut record,
        };
        runtime.block_on(check(
            configuration,
            output,
            options,
            &mut folders,
            &mut report,
        ));
    }
    // A name lookup that timed out cannot be cancelled.
    runtime.shutdown_background();
    Ok(passed)
}

/// Returns the spools of all outputs.
fn own_spools(configuration: &Configuration) -> Vec<PathBuf> {
    let configs = configuration.outputs.iter().map(|it| Config::read(it));
    let spools = configs.filter_map(|config| config.ok()?.spool);
    spools.map(|spool| spool.dir).collect()
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
                report.add("configuration", Mark::Fail, message, None);
            }
        }
    }
    host::keys(configuration, output, report);
    let Ok(config) = config else {
        report.skip("destination", "not tried until the configuration is fixed");
        return;
    };
    host::advise(configuration, output, &config, report);
    let found = tags::find(configuration, output, &config, options).await;
    let options = &found;
    samples::check(&config, &options.records, report);
    disk::check(&config, folders, options, report).await;
    if let Some(load) = options.load {
        cost::check(&config, load, report);
    }
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
            blob::check(&config, blob, prefix, &folder.timeless(), options, report).await;
        }
    }
}

/// Awaits a future with the timeout of a check.
async fn within<T>(options: &Options, future: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(options.timeout, future)
        .await
        .map_err(|_| format!("no response within {:?}", options.timeout))
}

/// Runs a blocking function with the timeout of a check.
async fn blocking<T: Send + 'static>(
    options: &Options,
    function: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    within(options, tokio::task::spawn_blocking(function))
        .await?
        .map_err(|_| "the check itself failed: please report it".to_owned())
}

/// The most names to check for a template.
const MAX_EXAMPLES: usize = 8;

/// An empty map.
const NO_RECORD: &[u8] = &[0x80];

/// Returns the distinct names that the examples yield, at most [`MAX_EXAMPLES`]; none where the template needs an
/// example that was neither given nor found.
fn examples(template: &Template, options: &Options) -> Vec<String> {
    if let Some(fixed) = template.fixed() {
        return vec![fixed];
    }
    let mut names: Vec<String> = Vec::new();
    for (tag, body) in example_events(template, options) {
        let name = render(template, &tag, &body);
        if !names.contains(&name) && names.len() < MAX_EXAMPLES {
            names.push(name);
        }
    }
    names
}

/// Returns the tags and bodies of events with which to try a template.
fn example_events(template: &Template, options: &Options) -> Vec<(String, Vec<u8>)> {
    let body = match &options.record {
        Some(record) => msgpack_of(record),
        // Such names do not depend on the record.
        None if template.constant_within_a_second() => NO_RECORD.to_vec(),
        None => return options.samples.clone(),
    };
    let tags = match template.uses_tag() {
        true => options.tags.clone(),
        false => vec![String::new()],
    };
    tags.into_iter().map(|tag| (tag, body.clone())).collect()
}

fn render(template: &Template, tag: &str, body: &[u8]) -> String {
    let event = Event {
        time: crate::codec::time::now(),
        metadata: &[],
        body,
        group: None,
        raw: body,
    };
    let mut name = String::new();
    template.render(tag, &event, &mut name);
    name
}

/// Reports a template that takes something from records, if no example record has any of it. `key` is that of the
/// template.
fn warn_of_unfilled(
    key: &'static str,
    template: &Template,
    options: &Options,
    report: &mut Report<'_>,
) {
    if template.constant_within_a_second() {
        return;
    }
    let template = template.timeless();
    let events = example_events(&template, options);
    let is_unfilled = |(tag, body): &(String, Vec<u8>)| {
        render(&template, tag, body) == render(&template, tag, NO_RECORD)
    };
    if !events.is_empty() && events.iter().all(is_unfilled) {
        let from = match options.record {
            Some(_) => "the record given",
            None => "the records in the spool",
        };
        report.warn(
            key,
            format!(
                "{from} {} nothing that it takes from records: all of them get its defaults",
                match options.record {
                    Some(_) => "has",
                    None => "have",
                }
            ),
            "check the spelling of its placeholders, and where filters put those keys",
        );
    }
}

/// Returns a JSON value as msgpack.
pub fn msgpack_of(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    msgpack(value, &mut out);
    out
}

/// Appends a JSON value as msgpack.
fn msgpack(value: &Value, out: &mut Vec<u8>) {
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
            written.expect("writing to memory does not fail");
        }
        Value::String(text) => {
            rmp::encode::write_str(out, text).expect("writing to memory does not fail")
        }
        Value::Array(items) => {
            rmp::encode::write_array_len(out, length(items.len()))
                .expect("writing to memory does not fail");
            items.iter().for_each(|item| msgpack(item, out));
        }
        Value::Object(pairs) => {
            rmp::encode::write_map_len(out, length(pairs.len()))
                .expect("writing to memory does not fail");
            for (key, value) in pairs {
                rmp::encode::write_str(out, key).expect("writing to memory does not fail");
                msgpack(value, out);
            }
        }
    }
}

/// Whether bodies are compressed.
fn compresses(config: &Config) -> bool {
    config.compression != crate::compress::Compression::None
}
