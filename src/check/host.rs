//! Fluent Bit's side: its configuration file as far as it concerns `ferry`, and its own settings that lose
//! data or time when they are wrong.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use fluent_bit_config::{Document, Format, Place, Section, beside};

use super::{Mark, Report};
use crate::config::{Config, Properties, keys};

/// What a file says.
#[derive(Debug)]
pub struct Configuration {
    /// How it is written.
    pub format: Format,
    /// The outputs that were asked for, in order.
    pub outputs: Vec<Output>,
    /// The names of the other outputs.
    pub others: Vec<String>,
    service: Vec<Key>,
    /// The libraries that the file itself names.
    libraries: Vec<Key>,
    /// Where files are looked for that are not found from the current folder.
    root: PathBuf,
}

/// One output.
#[derive(Debug)]
pub struct Output {
    /// Its plugin.
    pub name: String,
    /// Its alias, or the host's name for it, such as `ferry.0`.
    pub label: String,
    /// All its keys but `name`, in order.
    pub keys: Vec<Key>,
    /// Where it begins.
    pub place: Place,
    /// Variables in it that are not set.
    pub unset: Vec<String>,
}

/// A key of a section.
#[derive(Debug)]
pub struct Key {
    /// As written.
    pub name: String,
    /// Its value as written, variables and all.
    pub raw: String,
    /// Its value; `None` where variables that are not set left nothing of it. To the host it is not set then.
    pub value: Option<String>,
    /// Where it stands.
    pub place: Place,
}

impl Output {
    /// The key of that name that counts: of Ferry's own the first one. Of its own keys Fluent Bit takes the last one,
    /// for which most of them need a value.
    pub fn entry(&self, name: &str) -> Option<&Key> {
        let of_it = |key: &&Key| key.name.eq_ignore_ascii_case(name);
        let mut keys = self.keys.iter().filter(of_it);
        if keys::find_host(name).is_none() {
            return keys.next();
        }
        let can_be_unset = ["match", "retry_limit"]
            .iter()
            .any(|key| key.eq_ignore_ascii_case(name));
        keys.reduce(|counts, key| match can_be_unset || key.value.is_some() {
            true => key,
            false => counts,
        })
    }
}

impl Properties for Output {
    fn get(&self, key: &str) -> Option<String> {
        self.entry(key)?.value.clone()
    }
}

/// Reads a file and what it includes, and keeps the outputs whose plugin is `wanted`. Errors name file and
/// line.
pub fn read(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Configuration, String> {
    let document = Document::read(path).map_err(|error| format!("{error:#}"))?;
    let mut configuration = Configuration {
        format: document.format,
        outputs: Vec::new(),
        others: Vec::new(),
        service: Vec::new(),
        libraries: libraries_of(&document),
        root: document.root.clone(),
    };
    for section in &document.sections {
        if section.is("service") {
            configuration.service.extend(keys_of(&document, section).0);
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

/// The keys of a section, and the variables in it that are not set.
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

/// The libraries that a file names for Fluent Bit to load.
fn libraries_of(document: &Document) -> Vec<Key> {
    let sections = document.sections.iter().filter(|one| one.is("plugins"));
    let keys = sections.flat_map(|section| keys_of(document, section).0);
    keys.filter(|key| key.name.eq_ignore_ascii_case("path"))
        .collect()
}

/// Says which keys do nothing. The host takes any key for a proxy output, mistyped ones too.
pub(super) fn keys(configuration: &Configuration, output: &Output, report: &mut Report<'_>) {
    let mut seen = BTreeSet::new();
    let mut sound = true;
    for key in &output.keys {
        let name = key.name.to_lowercase();
        let place = &key.place;
        let again = !seen.insert(name.clone());
        if let Some(Unfit { mark, what, remedy }) = unfit(&name, key.value.as_deref()) {
            report.say(
                "keys",
                mark,
                format!("{place}: {what}"),
                Some(remedy.to_owned()),
            );
            sound = false;
            if !again {
                continue;
            }
        }
        let (message, remedy) = if again && !is_list(configuration, output, &name) {
            let counts = match keys::find_host(&name) {
                Some(_) => "Fluent Bit takes the last one",
                None => "the first one counts",
            };
            (
                format!("{place}: {name} is set twice; {counts}"),
                "remove one".to_owned(),
            )
        } else if again || keys::find(&name).is_some() {
            // What a known key cannot do for this destination the configuration itself refuses.
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
        sound = false;
    }
    for variable in &output.unset {
        report.warn(
            "keys",
            variable.trim_start_matches("[env] ").to_owned(),
            "set it, here and where Fluent Bit runs",
        );
        sound = false;
    }
    if sound {
        report.ok(
            "keys",
            format!("{} keys, all of them known", output.keys.len()),
        );
    }
}

/// What is wrong with a key of Fluent Bit's own.
struct Unfit {
    mark: Mark,
    what: String,
    remedy: &'static str,
}

/// The words that Fluent Bit takes for a level of its log.
const LEVELS: [&str; 7] = ["off", "error", "warn", "warning", "info", "debug", "trace"];

/// What it takes of `net.` and `oauth2.`. Newer ones may take more.
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

/// Whether Fluent Bit 5.1.1 would not start with a key of its own, whose name is in lower case. It reads each of them, also
/// those that do not count in the end.
fn unfit(name: &str, value: Option<&str>) -> Option<Unfit> {
    // One without a value it passes over.
    let value = value?;
    let word = value.to_lowercase();
    let fail = |words: &str, remedy| {
        Some(Unfit {
            mark: Mark::Fail,
            what: format!("{name} {value}: {words}Fluent Bit 5.1.1 does not start with it"),
            remedy,
        })
    };
    let among = |known: &[&str], begin: &str| {
        let rest = name.strip_prefix(begin)?;
        let known = rest
            .strip_prefix('.')
            .is_some_and(|rest| known.contains(&rest));
        (!known).then(|| Unfit {
            mark: Mark::Warn,
            what: format!("{name}: Fluent Bit 5.1.1 does not know it, and does not start with it"),
            remedy: "remove it; it would not reach Ferry",
        })
    };
    match name {
        "tls" if ["on", "true", "yes"].contains(&&*word) => fail(
            "",
            "remove it; Ferry speaks HTTPS by itself, as the endpoint says",
        ),
        "log_level" if !LEVELS.contains(&&*word) => fail("no level: ", LEVEL),
        "storage.total_limit_size" if !is_size(&word) => {
            fail("no size: ", "write a size such as 500M or 5G, or off")
        }
        _ if name.starts_with("net.") => among(&NET, "net"),
        _ => among(&OAUTH2, "oauth2"),
    }
}

const LEVEL: &str = "write off, error, warn, info, debug or trace";

/// Whether Fluent Bit takes this for the most bytes of an output's chunks, in lower case. What does not begin with a number
/// is 0 to it, which is no limit.
fn is_size(value: &str) -> bool {
    if ["off", "false", "no"].contains(&value) {
        return true;
    }
    let digit = value.rfind(|c: char| c.is_ascii_digit());
    let unit = digit.map_or(value.get(1..), |at| value.get(at + 1..));
    match unit.unwrap_or_default() {
        // That is its own word for an error.
        "" => value.parse() != Ok(-1.0),
        unit => ["k", "m", "g", "kb", "mb", "gb"].contains(&unit),
    }
}

/// Says what of Fluent Bit's own section it does not start with.
pub(super) fn service(configuration: &Configuration, report: &mut Report<'_>) {
    let levels = configuration.service.iter();
    for key in levels.filter(|key| key.name.eq_ignore_ascii_case("log_level")) {
        if let Some(Unfit { mark, what, remedy }) = unfit("log_level", key.value.as_deref()) {
            let message = format!("{}: {what}", key.place);
            report.say("service", mark, message, Some(remedy.to_owned()));
        }
    }
}

/// Whether a key that comes again was written as a YAML list.
fn is_list(configuration: &Configuration, output: &Output, name: &str) -> bool {
    let of_it = output
        .keys
        .iter()
        .filter(|key| key.name.eq_ignore_ascii_case(name));
    let places: BTreeSet<usize> = of_it.map(|key| key.place.line).collect();
    configuration.format == Format::Yaml && places.len() == 1
}

/// Says whether Fluent Bit finds the library: it does not start without it.
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
                    "name it by its full path: Fluent Bit does not start without it",
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
            // For a plain name the loader looks in folders of its own.
            let mark = match path.contains('/') {
                true => Mark::Fail,
                false => Mark::Warn,
            };
            let message = format!("{place}: '{path}' cannot be opened: {error}");
            let remedy = "name it by its full path, for the user to read that Fluent Bit runs as: it does not start without it";
            return report.say(CHECK, mark, message, Some(remedy.to_owned()));
        }
        let name = Path::new(path).file_name().unwrap_or_default();
        if name.to_string_lossy().contains("ferry") {
            found = Some(path);
        }
    }
    match found {
        Some(path) => report.ok(CHECK, format!("'{path}' is there")),
        None => report.warn(
            CHECK,
            "no library that Fluent Bit is told to load has ferry in its name",
            "write Path /full/path/of/out_ferry.so below [PLUGINS] in the Plugins_File",
        ),
    }
}

/// Advice about the host's own settings.
pub(super) fn advise(
    configuration: &Configuration,
    output: &Output,
    config: &Config,
    report: &mut Report<'_>,
) {
    let direct = config.spool.is_none();
    let word = |key: &str| output.get(key).map(|value| value.to_lowercase());
    let mut sound = true;
    let mut warn = |message: String, remedy: &str| {
        report.warn("host", message, remedy);
        sound = false;
    };

    if word("match").is_none() && word("match_regex").is_none() {
        warn(
            "there is no Match: no record ever comes here".to_owned(),
            "write Match *",
        );
    }
    match word("retry_limit").as_deref() {
        Some("no_limits" | "false" | "off") => {}
        other => warn(
            format!(
                "Retry_Limit is {}: Fluent Bit drops a chunk after so many retries, however long the outage",
                other.unwrap_or("not set, and 1 then")
            ),
            "write Retry_Limit no_limits",
        ),
    }
    let workers = word("workers")
        .and_then(|n| n.parse::<u32>().ok())
        .unwrap_or(0);
    if direct && workers == 0 {
        warn(
            "there are no Workers: in direct mode every flush stops all of Fluent Bit while it waits for the destination"
                .to_owned(),
            "write Workers 2, or spool on",
        );
    }
    if workers > 0 && configuration.service_flag("hot_reload") {
        warn(
            "Workers and Hot_Reload together: Fluent Bit 5.1.1 crashes at a reload (it starts each worker of a proxy output twice)"
                .to_owned(),
            "use spool on without Workers, or restart instead of reloading",
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
                "Grace is {seconds} s, not more than exit_deadline ({} s): what is delivered after Grace at a stop, Fluent Bit \
                 does not hear of, and hands over again",
                config.exit_deadline.as_secs()
            ),
            "raise Grace above exit_deadline",
        );
    }
    if sound {
        report.ok("host", "Retry_Limit, Workers and Grace suit the mode");
    }
}

impl Configuration {
    /// A key of the service; the last one counts.
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
