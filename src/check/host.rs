//! Fluent Bit's configuration file, as far as it concerns `ferry`, and checks of Fluent Bit's own settings.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use fluent_bit_config::{Document, Format, Place, Section, beside};

use super::{Mark, Report};
use crate::config::{Config, Properties, keys};
use crate::sink::DestinationTraits;

/// A configuration.
#[derive(Debug)]
pub struct Configuration {
    /// The format of the file.
    pub format: Format,
    /// The outputs of the wanted plugins, in order.
    pub outputs: Vec<Output>,
    /// The names of the other outputs.
    pub others: Vec<String>,
    /// The tags of the inputs, as far as they are known without running them: those without a wildcard.
    pub tags: Vec<String>,
    service: Vec<Key>,
    /// The libraries that the file itself names.
    libraries: Vec<Key>,
    /// The folder relative to which files are looked up that the working directory does not have.
    root: PathBuf,
}

/// An output.
#[derive(Debug)]
pub struct Output {
    /// The name of its plugin.
    pub name: String,
    /// Its alias, or the host's name for it, such as `ferry.0`.
    pub label: String,
    /// All its keys but `name`, in order.
    pub keys: Vec<Key>,
    /// Its first line.
    pub place: Place,
    /// Warnings about unset variables in it.
    pub unset: Vec<String>,
}

/// A key of a section.
#[derive(Debug)]
pub struct Key {
    /// The name, as written.
    pub name: String,
    /// The value, as written, with its variables.
    pub raw: String,
    /// The resolved value; `None` if it is empty because of unset variables, which the host treats as not set.
    pub value: Option<String>,
    /// Its line.
    pub place: Place,
}

impl Output {
    /// Returns the key of this name that takes effect: the first one of Ferry's keys. Of its own keys Fluent Bit uses
    /// the last one, which for most of them must have a value.
    pub fn entry(&self, name: &str) -> Option<&Key> {
        let same_name = |key: &&Key| key.name.eq_ignore_ascii_case(name);
        let mut keys = self.keys.iter().filter(same_name);
        if keys::find_host(name).is_none() {
            return keys.next();
        }
        let can_be_unset = ["match", "retry_limit"]
            .iter()
            .any(|key| key.eq_ignore_ascii_case(name));
        keys.reduce(|current, key| match can_be_unset || key.value.is_some() {
            true => key,
            false => current,
        })
    }
}

impl Properties for Output {
    fn get(&self, key: &str) -> Option<String> {
        self.entry(key)?.value.clone()
    }
}

/// Reads a file and its includes, and keeps the outputs whose plugin is `wanted`. Errors name file and line.
pub fn read(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Configuration, String> {
    let document = Document::read(path).map_err(|error| format!("{error:#}"))?;
    let mut configuration = Configuration {
        format: document.format,
        outputs: Vec::new(),
        others: Vec::new(),
        tags: Vec::new(),
        service: Vec::new(),
        libraries: libraries_of(&document),
        root: document.root.clone(),
    };
    for section in &document.sections {
        if section.is("service") {
            configuration.service.extend(keys_of(&document, section).0);
        }
        if section.is("input") {
            let keys = keys_of(&document, section).0;
            let tags = keys
                .into_iter()
                .filter(|key| key.name.eq_ignore_ascii_case("tag"));
            let tags = tags.filter_map(|key| key.value);
            configuration
                .tags
                .extend(tags.filter(|tag| !tag.contains(['*', '$', '<'])));
        }
        if !section.is("output") {
            continue;
        }
        let (mut keys, unset) = keys_of(&document, section);
        let at = keys
            .iter()
            .position(|key| key.name.eq_ignore_ascii_case("name"));
        let name = at.and_then(|at| keys.remove(at).value);
        let name = name.ok_or_else(|| format!("{}: the output has no name", section.place))?;
        if !wanted(&name.to_lowercase()) {
            configuration.others.push(name);
            continue;
        }
        let before = configuration.outputs.iter();
        let number = before
            .filter(|o| o.name.eq_ignore_ascii_case(&name))
            .count();
        let mut output = Output {
            label: format!("{}.{number}", name.to_lowercase()),
            name,
            keys,
            place: section.place.clone(),
            unset,
        };
        if let Some(alias) = output.get("alias") {
            output.label = alias;
        }
        configuration.outputs.push(output);
    }
    Ok(configuration)
}

/// Returns the keys of a section, and warnings about unset variables.
fn keys_of(document: &Document, section: &Section) -> (Vec<Key>, Vec<String>) {
    let mut variables = document.variables();
    let keys = section.entries.iter().map(|entry| Key {
        name: entry.key.clone(),
        value: Some(variables.resolve(&entry.value)).filter(|value| !value.is_empty()),
        raw: entry.value.clone(),
        place: entry.place.clone(),
    });
    (keys.collect(), variables.warnings)
}

/// Returns the libraries that a file tells Fluent Bit to load.
fn libraries_of(document: &Document) -> Vec<Key> {
    let sections = document.sections.iter().filter(|one| one.is("plugins"));
    let keys = sections.flat_map(|section| keys_of(document, section).0);
    keys.filter(|key| key.name.eq_ignore_ascii_case("path"))
        .collect()
}

/// Reports keys that do nothing. The host accepts any key of a proxy output, even mistyped ones.
pub(super) fn keys(configuration: &Configuration, output: &Output, report: &mut Report<'_>) {
    let mut seen = BTreeSet::new();
    let mut passed = true;
    for key in &output.keys {
        let name = key.name.to_lowercase();
        let place = &key.place;
        let again = !seen.insert(name.clone());
        if let Some(HostProblem {
            mark,
            message,
            remedy,
        }) = host_problem(&name, key.value.as_deref())
        {
            report.add(
                "keys",
                mark,
                format!("{place}: {message}"),
                Some(remedy.to_owned()),
            );
            passed = false;
            if !again {
                continue;
            }
        }
        let (message, remedy) = if again && !is_list(configuration, output, &name) {
            let effective = match keys::find_host(&name) {
                Some(_) => "Fluent Bit takes the last one",
                None => "the first one counts",
            };
            (
                format!("{place}: {name} is set twice; {effective}"),
                "remove one".to_owned(),
            )
        } else if again
            || keys::find(&name).is_some()
            || keys::find_foreign(&name).is_some_and(keys::ForeignKey::is_refused)
        {
            // Known keys that do not apply to the destination are refused by the configuration.
            continue;
        } else if let Some(host) = keys::find_host(&name) {
            let Some(instead) = host.instead else {
                continue;
            };
            (
                format!("{place}: {name} is Fluent Bit's own and does not reach Ferry"),
                instead.to_owned(),
            )
        } else if let Some(foreign) = keys::find_foreign(&name) {
            (
                format!(
                    "{place}: {name} is a key of {} and does nothing here",
                    foreign.plugin
                ),
                format!("remove it; {}", foreign.why),
            )
        } else {
            let remedy = match keys::nearest(&name) {
                Some(other) => format!("did you mean {other}?"),
                None => "remove it; docs/configuration.md lists every key".to_owned(),
            };
            (
                format!("{place}: {name} is not known and does nothing"),
                remedy,
            )
        };
        report.warn("keys", message, remedy);
        passed = false;
    }
    for variable in &output.unset {
        report.warn(
            "keys",
            variable.trim_start_matches("[env] ").to_owned(),
            "set it, here and where Fluent Bit runs",
        );
        passed = false;
    }
    if passed {
        report.ok("keys", format!("{} keys, all known", output.keys.len()));
    }
}

/// A problem of a key of Fluent Bit's own.
struct HostProblem {
    mark: Mark,
    message: String,
    remedy: &'static str,
}

/// The log levels of Fluent Bit.
const LEVELS: [&str; 7] = ["off", "error", "warn", "warning", "info", "debug", "trace"];

/// The keys in `net.` and `oauth2.` of Fluent Bit 5.1.1. Newer versions may have more.
const NET: [&str; 17] = [
    "dns.mode",
    "dns.resolver",
    "dns.prefer_ipv4",
    "dns.prefer_ipv6",
    "keepalive",
    "keepalive_idle_timeout",
    "tcp_keepalive",
    "tcp_keepalive_time",
    "tcp_keepalive_interval",
    "tcp_keepalive_probes",
    "io_timeout",
    "connect_timeout",
    "connect_timeout_log_error",
    "source_address",
    "keepalive_max_recycle",
    "max_worker_connections",
    "proxy_env_ignore",
];
const OAUTH2: [&str; 17] = [
    "enable",
    "token_url",
    "client_id",
    "client_secret",
    "user_agent",
    "scope",
    "audience",
    "resource",
    "auth_method",
    "jwt_key_file",
    "jwt_cert_file",
    "jwt_aud",
    "jwt_header",
    "jwt_ttl_seconds",
    "refresh_skew_seconds",
    "timeout",
    "connect_timeout",
];

/// Returns the problem of a key of Fluent Bit's own, in lower case, with which Fluent Bit 5.1.1 does not start. It
/// reads every one of them, even those that a later one overrides.
fn host_problem(name: &str, value: Option<&str>) -> Option<HostProblem> {
    // Fluent Bit ignores a key without a value.
    let value = value?;
    let word = value.to_lowercase();
    let fail = |reason: &str, remedy| {
        Some(HostProblem {
            mark: Mark::Fail,
            message: format!("{name} {value}: {reason}Fluent Bit 5.1.1 does not start with it"),
            remedy,
        })
    };
    let known_in = |known: &[&str], group: &str| {
        let rest = name.strip_prefix(group)?;
        let known = rest
            .strip_prefix('.')
            .is_some_and(|rest| known.contains(&rest));
        (!known).then(|| HostProblem {
            mark: Mark::Warn,
            message: format!(
                "{name}: Fluent Bit 5.1.1 does not know it, and does not start with it"
            ),
            remedy: "remove it; it would not reach Ferry",
        })
    };
    match name {
        "tls" if ["on", "true", "yes"].contains(&&*word) => fail(
            "",
            "remove it; Ferry uses HTTPS by itself, as the endpoint specifies",
        ),
        "log_level" if !LEVELS.contains(&&*word) => fail("not a level: ", LEVEL_REMEDY),
        "storage.total_limit_size" if !is_size(&word) => {
            fail("not a size: ", "write a size such as 500M or 5G, or off")
        }
        _ if name.starts_with("net.") => known_in(&NET, "net"),
        _ => known_in(&OAUTH2, "oauth2"),
    }
}

/// Whether a lower-case value of `storage.total_limit_size` is a limit. Without a number it is none.
fn bounds_storage(value: &str) -> bool {
    let number = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    is_size(value) && number.parse::<f64>().is_ok_and(|number| number > 0.0)
}

const LEVEL_REMEDY: &str = "write off, error, warn, info, debug or trace";

/// Whether Fluent Bit accepts a lower-case value of `storage.total_limit_size`. A value that does not begin with a
/// number is 0, which means no limit.
fn is_size(value: &str) -> bool {
    if ["off", "false", "no"].contains(&value) {
        return true;
    }
    let digit = value.rfind(|c: char| c.is_ascii_digit());
    let unit = digit.map_or(value.get(1..), |at| value.get(at + 1..));
    match unit.unwrap_or_default() {
        // Fluent Bit uses -1 for an error.
        "" => value.parse() != Ok(-1.0),
        unit => ["k", "m", "g", "kb", "mb", "gb"].contains(&unit),
    }
}

/// Reports keys in `[SERVICE]` with which Fluent Bit does not start.
pub(super) fn service(configuration: &Configuration, report: &mut Report<'_>) {
    let levels = configuration.service.iter();
    for key in levels.filter(|key| key.name.eq_ignore_ascii_case("log_level")) {
        if let Some(HostProblem {
            mark,
            message,
            remedy,
        }) = host_problem("log_level", key.value.as_deref())
        {
            let message = format!("{}: {message}", key.place);
            report.add("service", mark, message, Some(remedy.to_owned()));
        }
    }
}

/// Whether a repeated key was written as a YAML list.
fn is_list(configuration: &Configuration, output: &Output, name: &str) -> bool {
    let repeated = output
        .keys
        .iter()
        .filter(|key| key.name.eq_ignore_ascii_case(name));
    let lines: BTreeSet<usize> = repeated.map(|key| key.place.line).collect();
    configuration.format == Format::Yaml && lines.len() == 1
}

/// Checks that Fluent Bit finds the library, without which it does not start.
pub(super) fn library(configuration: &Configuration, report: &mut Report<'_>) {
    const CHECK: &str = "library";
    let mut libraries: Vec<&Key> = configuration.libraries.iter().collect();
    let file;
    if let Some(key) = configuration.service_entry("plugins_file") {
        let place = &key.place;
        let name = key.value.as_deref().unwrap_or_default();
        match Document::read(&beside(name, &configuration.root)) {
            Ok(document) => file = libraries_of(&document),
            Err(error) => {
                return report.fail(
                    CHECK,
                    format!("{place}: Plugins_File: {error:#}"),
                    "write its full path: Fluent Bit does not start without it",
                );
            }
        }
        libraries.extend(&file);
    } else if libraries.is_empty() {
        return report.skip(
            CHECK,
            "there is no Plugins_File in [SERVICE]: start Fluent Bit with -e /full/path/of/out_ferry.so",
        );
    }
    let mut found = None;
    for library in libraries {
        let (place, path) = (&library.place, library.value.as_deref().unwrap_or_default());
        if let Err(error) = File::open(path) {
            // The loader looks up plain names in its own folders.
            let mark = match path.contains('/') {
                true => Mark::Fail,
                false => Mark::Warn,
            };
            let message = format!("{place}: '{path}' cannot be opened: {error}");
            let remedy = "write its full path, readable by the user that Fluent Bit runs as: it does not start without it";
            return report.add(CHECK, mark, message, Some(remedy.to_owned()));
        }
        let name = Path::new(path).file_name().unwrap_or_default();
        if name.to_string_lossy().contains("ferry") {
            found = Some(path);
        }
    }
    match found {
        Some(path) => report.ok(CHECK, format!("'{path}' exists")),
        None => report.warn(
            CHECK,
            "no library in the configuration has ferry in its name",
            "write Path /full/path/of/out_ferry.so below [PLUGINS] in the Plugins_File",
        ),
    }
}

/// Checks the host's own settings.
pub(super) fn advise(
    configuration: &Configuration,
    output: &Output,
    config: &Config,
    report: &mut Report<'_>,
) {
    let direct = config.spool.is_none();
    let word = |key: &str| output.get(key).map(|value| value.to_lowercase());
    let mut passed = true;
    let mut warn = |message: String, remedy: &str| {
        report.warn("host", message, remedy);
        passed = false;
    };

    if word("match").is_none() && word("match_regex").is_none() {
        warn(
            "there is no Match: this output gets no records".to_owned(),
            "write Match *",
        );
    }
    match word("retry_limit").as_deref() {
        Some("no_limits" | "false" | "off") => {}
        other => warn(
            format!(
                "Retry_Limit is {}: Fluent Bit drops a chunk after that many retries, however long the outage",
                other.unwrap_or("not set, which means 1")
            ),
            "write Retry_Limit no_limits",
        ),
    }
    let workers = word("workers")
        .and_then(|n| n.parse::<u32>().ok())
        .unwrap_or(0);
    if direct && workers == 0 {
        warn(
            "there are no Workers: in direct mode every flush blocks all of Fluent Bit while it waits for the destination"
                .to_owned(),
            "write Workers 2, or spool on",
        );
    }
    let traits = DestinationTraits::of(&config.destination);
    if direct && traits.throttles_targets && traits.only_target().is_none() {
        warn(
            format!(
                "each {} has its own faults: in direct mode, a chunk with a line for an unavailable one goes back to Fluent Bit \
                 as a whole, and its limits then pause the inputs of all",
                traits.target_word
            ),
            "write spool on",
        );
    }
    if workers > 0 && configuration.service_flag("hot_reload") {
        warn(
            "Workers and Hot_Reload together: Fluent Bit 2.2.0 to 5.1.1 crashes at a reload (it starts each worker of a proxy output \
             twice)"
                .to_owned(),
            "use spool on without Workers, or restart instead of reloading",
        );
    }
    let limit = word("storage.total_limit_size");
    if let Some(limit) = limit.filter(|limit| bounds_storage(limit)) {
        warn(
            format!(
                "storage.total_limit_size is {limit}: when more than that waits for this output, Fluent Bit deletes its oldest chunks, \
                 with every record in them, and neither retries them nor tells Ferry"
            ),
            match direct {
                true => {
                    "remove it; write spool on, and spool_limit bounds what waits instead, without deleting anything"
                }
                false => {
                    "remove it: spool_limit bounds what waits here, and then Fluent Bit's inputs pause"
                }
            },
        );
    }
    let grace = configuration.service("grace").unwrap_or("5");
    if direct
        && let Ok(seconds) = grace.parse::<i64>()
        && seconds >= 0
        && seconds.unsigned_abs() <= config.exit_deadline.as_secs()
    {
        warn(
            format!(
                "Grace is {seconds} s, not more than exit_deadline ({} s): at a stop, Fluent Bit misses what is delivered \
                 after Grace, and sends it again",
                config.exit_deadline.as_secs()
            ),
            "raise Grace above exit_deadline",
        );
    }
    if passed {
        report.ok("host", "Retry_Limit, Workers and Grace suit the mode");
    }
}

impl Configuration {
    /// Returns a key of the service; the last one takes effect.
    fn service_entry(&self, name: &str) -> Option<&Key> {
        let mut keys = self.service.iter().rev();
        keys.find(|key| key.name.eq_ignore_ascii_case(name))
    }

    fn service(&self, name: &str) -> Option<&str> {
        self.service_entry(name)?.value.as_deref()
    }

    fn service_flag(&self, name: &str) -> bool {
        let value = self.service(name).unwrap_or_default().to_lowercase();
        ["on", "true", "yes"].contains(&value.as_str())
    }
}
