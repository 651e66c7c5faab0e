//! The engine's interpretation of a configuration file's sections.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use fluent_bit_config::{Document, Format, Place, Section, Variables, beside};

/// A `Key value` line. The value is `None` if it is empty once its variables are resolved: the host treats it as not
/// set.
#[derive(Clone, Debug)]
pub struct Property {
    /// The key, as written; keys are compared ignoring case.
    pub key: String,
    /// The value, with variables resolved.
    pub value: Option<String>,
    /// Its place in the file.
    pub place: Place,
}

/// An `[INPUT]`, `[OUTPUT]` or `[PARSER]` section: a name, and properties in order.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The value of `Name`.
    pub name: String,
    /// All properties except `Name`.
    pub properties: Vec<Property>,
    /// The place of the section's header.
    pub place: Place,
}

/// Whether name and properties are equal, ignoring their places.
impl PartialEq for Instance {
    fn eq(&self, other: &Self) -> bool {
        let plain = |of: &Self| -> Vec<_> {
            let pairs = of.properties.iter();
            pairs
                .map(|p| (p.key.to_lowercase(), p.value.clone()))
                .collect()
        };
        self.name.eq_ignore_ascii_case(&other.name) && plain(self) == plain(other)
    }
}

impl Instance {
    /// Returns the first property of this name, like the host.
    pub fn property(&self, key: &str) -> Option<&Property> {
        let mut properties = self.properties.iter();
        properties.find(|property| property.key.eq_ignore_ascii_case(key))
    }

    /// Returns the value of a property that is set and not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.property(key).and_then(|found| found.value.as_deref())
    }

    /// Returns the value of a required property.
    pub fn require(&self, key: &str) -> Result<&str> {
        self.get(key)
            .with_context(|| format!("{}: '{}' needs the key '{key}'", self.place, self.name))
    }

    /// Returns a parsed value, or `default` if the key is not set.
    pub fn parse<T>(
        &self,
        key: &str,
        default: T,
        read: impl Fn(&str) -> Option<T>,
        want: &str,
    ) -> Result<T> {
        match self.property(key) {
            Some(Property {
                value: Some(value),
                place,
                ..
            }) => {
                read(value).ok_or_else(|| anyhow!("{place}: {key} is '{value}'; it must be {want}"))
            }
            _ => Ok(default),
        }
    }

    /// Returns a number.
    pub fn number<T: FromStr>(&self, key: &str, default: T) -> Result<T> {
        self.parse(key, default, |text| text.parse().ok(), "a number")
    }

    /// Returns a flag: `on`, `true`, `yes` or their opposites.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.parse(key, default, flag, "on or off")
    }

    /// Returns a size such as `64M`; Fluent Bit's units are powers of ten.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        self.parse(key, default, size, "a size such as 5M")
    }
}

/// The settings in `[SERVICE]`.
#[derive(Clone, Debug)]
pub struct Service {
    /// The interval between flushes of the inputs' data.
    pub flush: Duration,
    /// The time that running work may take at a stop; `None` waits for all of it (`Grace -1`).
    pub grace: Option<Duration>,
    /// 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub log_level: i32,
    /// Whether to daemonize between registering the libraries and starting them.
    pub daemon: bool,
    /// Whether SIGHUP triggers a hot reload.
    pub hot_reload: bool,
    /// Whether a reload waits for all pending chunks without a limit, which is the host's default.
    pub reload_waits: bool,
    /// The stack size of a flush, in bytes.
    pub coro_stack_size: usize,
    /// The shortest wait before a retry, in seconds. For tests it may be a fraction, which the host does not accept:
    /// waits are then fractions of a second.
    pub scheduler_base: f64,
    /// The longest wait before a retry, in seconds.
    pub scheduler_cap: f64,
    /// `storage.path` as an absolute path, and its place in the file.
    pub storage_path: Option<(PathBuf, Place)>,
    /// `storage.backlog.mem_limit`: the most bytes of the backlog in flight.
    pub backlog_mem_limit: usize,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            flush: Duration::from_secs(1),
            grace: Some(Duration::from_secs(5)),
            log_level: 3,
            daemon: false,
            hot_reload: false,
            reload_waits: true,
            // The stack size of hosts before 5.1 on Linux, the smallest one that a plugin encounters.
            coro_stack_size: 24 * 1024,
            scheduler_base: 5.0,
            scheduler_cap: 2000.0,
            storage_path: None,
            backlog_mem_limit: 5_000_000,
        }
    }
}

/// A complete configuration: the main file, its plugins files and its parsers files.
#[derive(Debug, Default)]
pub struct Config {
    /// `[SERVICE]`.
    pub service: Service,
    /// The libraries to load, in order, with their places in the file.
    pub plugins: Vec<(PathBuf, Place)>,
    /// `[PARSER]` sections.
    pub parsers: Vec<Instance>,
    /// `[INPUT]` sections.
    pub inputs: Vec<Instance>,
    /// `[OUTPUT]` sections.
    pub outputs: Vec<Instance>,
    /// Warnings about settings that are ignored, without repetitions.
    pub warnings: Vec<String>,
}

const SERVICE_IGNORED: &[&str] = &[
    "log_file",
    "http_server",
    "http_listen",
    "http_port",
    "http_monitor",
    "health_check",
    "hc_errors_count",
    "hc_retry_failure_count",
    "hc_period",
    "streams_file",
    "multiline_buffer_limit",
    "hot_reload.timeout",
    "enable_chunk_trace",
];
const SERVICE_IGNORED_GROUPS: &[&str] = &[
    "storage.",
    "dns.",
    "json.",
    "flush.",
    "sp.",
    "security.",
    "windows.",
];
const SECTIONS_IGNORED: &[&str] = &["filter", "custom", "stream_task", "upstream", "node"];

impl Config {
    /// Reads `path` and the files that it names. Errors name file and line.
    pub fn load(path: &Path) -> Result<Self> {
        let document = Document::read(path)?;
        let root = document.root.clone();
        let mut config = Self::default();
        let mut variables = document.variables();
        let yaml = document.format == Format::Yaml;
        for section in &document.sections {
            match section.name.to_lowercase().as_str() {
                "service" => config.read_service(section, &root, &mut variables)?,
                "input" => config.inputs.push(instance(section, &mut variables)?),
                "output" => config.outputs.push(instance(section, &mut variables)?),
                "env" => {}
                // Only YAML has these in the main file.
                "plugins" if yaml => config.take_plugins(section),
                "parser" if yaml => config.parsers.push(instance(section, &mut variables)?),
                "parser" | "multiline_parser" => bail!(
                    "{}: a [{}] section belongs in a file named by Parsers_File, not in the main file",
                    section.place,
                    section.name
                ),
                "plugins" => bail!(
                    "{}: a [PLUGINS] section belongs in a file named by Plugins_File",
                    section.place
                ),
                _ => config.ignore_section(section),
            }
        }
        if let Ok(level) = std::env::var("FLB_LOG_LEVEL") {
            config.service.log_level = log_level(&level)
                .with_context(|| format!("FLB_LOG_LEVEL is '{level}'; it must be {LOG_LEVELS}"))?;
        }
        ensure!(
            !config.inputs.is_empty() || config.service.storage_path.is_some(),
            "{}: there is no [INPUT] section, and no storage.path that may hold a backlog",
            path.display()
        );
        ensure!(
            !config.outputs.is_empty(),
            "{}: there is no [OUTPUT] section",
            path.display()
        );
        config.warnings.extend(variables.warnings);
        let mut said = HashSet::new();
        config.warnings.retain(|text| said.insert(text.clone()));
        Ok(config)
    }

    fn ignore_section(&mut self, section: &Section) {
        let known = SECTIONS_IGNORED.contains(&section.name.to_lowercase().as_str());
        let kind = if known { "not run" } else { "not known" };
        self.warnings.push(format!(
            "[config] {}: [{}] sections are {kind} here and ignored",
            section.place, section.name
        ));
    }

    fn read_service(
        &mut self,
        section: &Section,
        root: &Path,
        variables: &mut Variables,
    ) -> Result<()> {
        // The last of two equal keys takes effect, since the host sets them in order.
        for entry in &section.entries {
            let value = variables.resolve(&entry.value);
            let one = Instance {
                name: "SERVICE".to_owned(),
                properties: vec![Property {
                    key: entry.key.clone(),
                    value: Some(value.clone()),
                    place: entry.place.clone(),
                }],
                place: entry.place.clone(),
            };
            let service = &mut self.service;
            let key = entry.key.as_str();
            match key.to_lowercase().as_str() {
                "flush" => {
                    service.flush =
                        one.parse(key, service.flush, positive_seconds, "seconds above 0")?;
                }
                "grace" => {
                    service.grace = one.parse(key, service.grace, grace, "seconds, or -1")?;
                }
                "log_level" => service.log_level = one.parse(key, 3, log_level, LOG_LEVELS)?,
                "daemon" => service.daemon = one.flag(key, false)?,
                "hot_reload" => service.hot_reload = one.flag(key, false)?,
                "hot_reload.ensure_thread_safety" => {
                    service.reload_waits = one.flag(key, true)?;
                }
                "coro_stack_size" => {
                    let enough = |text: &str| text.parse().ok().filter(|&bytes| bytes >= 4096);
                    service.coro_stack_size = one.parse(key, 0, enough, "4096 bytes or more")?;
                }
                "scheduler.base" => service.scheduler_base = one.parse(key, 5.0, wait, WAIT)?,
                "scheduler.cap" => service.scheduler_cap = one.parse(key, 2000.0, wait, WAIT)?,
                "storage.path" => {
                    let place = &entry.place;
                    let dir = std::path::absolute(&value)
                        .with_context(|| format!("{place}: {key} is '{value}'"))?;
                    service.storage_path = Some((dir, place.clone()));
                }
                "storage.backlog.mem_limit" => {
                    service.backlog_mem_limit = one.size(key, service.backlog_mem_limit)?;
                }
                "plugins_file" => self.read_plugins(&value, root, &entry.place)?,
                "parsers_file" => self.read_parsers(&value, root, &entry.place, variables)?,
                lower => {
                    let mut groups = SERVICE_IGNORED_GROUPS.iter();
                    let known = SERVICE_IGNORED.contains(&lower)
                        || groups.any(|group| lower.starts_with(group));
                    let kind = if known { "not acted upon" } else { "not known" };
                    self.warnings.push(format!(
                        "[config] {}: the service key '{key}' is {kind} here and ignored",
                        entry.place
                    ));
                }
            }
        }
        Ok(())
    }

    fn read_plugins(&mut self, file: &str, root: &Path, place: &Place) -> Result<()> {
        let document = Document::read(&beside(file, root))
            .with_context(|| format!("{place}: Plugins_File is '{file}'"))?;
        for section in &document.sections {
            if !section.name.eq_ignore_ascii_case("plugins") {
                self.ignore_section(section);
                continue;
            }
            self.take_plugins(section);
        }
        Ok(())
    }

    fn take_plugins(&mut self, section: &Section) {
        for entry in &section.entries {
            if entry.key.eq_ignore_ascii_case("path") {
                // The host does not resolve variables here.
                let library = PathBuf::from(&entry.value);
                self.plugins.push((library, entry.place.clone()));
            }
        }
    }

    fn read_parsers(
        &mut self,
        file: &str,
        root: &Path,
        place: &Place,
        variables: &mut Variables,
    ) -> Result<()> {
        let document = Document::read(&beside(file, root))
            .with_context(|| format!("{place}: Parsers_File is '{file}'"))?;
        for section in &document.sections {
            if section.name.eq_ignore_ascii_case("parser") {
                self.parsers.push(instance(section, variables)?);
            } else {
                self.ignore_section(section);
            }
        }
        Ok(())
    }
}

fn instance(section: &Section, variables: &mut Variables) -> Result<Instance> {
    let mut name = None;
    let mut properties = Vec::new();
    for entry in &section.entries {
        let value = Some(variables.resolve(&entry.value)).filter(|value| !value.is_empty());
        if entry.key.eq_ignore_ascii_case("name") {
            name = name.or(value);
        } else {
            properties.push(Property {
                key: entry.key.clone(),
                value,
                place: entry.place.clone(),
            });
        }
    }
    let name = name.with_context(|| format!("{}: the section has no Name", section.place))?;
    Ok(Instance {
        name,
        properties,
        place: section.place.clone(),
    })
}

const WAIT: &str = "seconds, 0 or more";
const LOG_LEVELS: &str = "off, error, warn, info, debug or trace";

/// Parses `on`, `true`, `yes` or their opposites, ignoring case.
fn flag(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "on" | "true" | "yes" => Some(true),
        "off" | "false" | "no" => Some(false),
        _ => None,
    }
}

/// Returns the host's number of a level.
pub(crate) fn log_level(text: &str) -> Option<i32> {
    const NAMES: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let lower = text.to_lowercase();
    let lower = if lower == "warning" { "warn" } else { &lower };
    NAMES
        .iter()
        .position(|&name| name == lower)
        .map(|n| n as i32)
}

/// Parses a size like the host: `5M`, `5MB`, `500k`; K is 1,000.
fn size(text: &str) -> Option<usize> {
    let digits = text
        .trim_end_matches(['b', 'B'])
        .trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G']);
    let scale = match text[digits.len()..].to_lowercase().as_str() {
        "" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        _ => return None,
    };
    let number = digits.parse::<f64>().ok().filter(|n| *n >= 0.0)?;
    Some((number * scale) as usize)
}

fn wait(text: &str) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| (0.0..1e9).contains(n))
}

fn positive_seconds(text: &str) -> Option<Duration> {
    wait(text).filter(|n| *n > 0.0).map(Duration::from_secs_f64)
}

fn grace(text: &str) -> Option<Option<Duration>> {
    match text {
        "-1" => Some(None),
        _ => wait(text).map(|n| Some(Duration::from_secs_f64(n))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Loads `main` as `fluent-bit.conf`, in a folder with the other files.
    fn load(main: &str, files: &[(&str, &str)]) -> Result<Config> {
        let directory = tempfile::tempdir()?;
        for (name, text) in files.iter().chain(&[("fluent-bit.conf", main)]) {
            fs::write(directory.path().join(name), text)?;
        }
        Config::load(&directory.path().join("fluent-bit.conf"))
    }

    #[test]
    fn yaml_has_its_plugins_and_parsers_in_the_main_file() {
        let directory = tempfile::tempdir().unwrap();
        let main = directory.path().join("fluent-bit.yaml");
        let text = "\
service:
  flush: 1
plugins:
  - /a/out_ferry.so
parsers:
  - name: json
    format: json
pipeline:
  inputs:
    - name: dummy
  outputs:
    - name: ferry
      match: '*'
";
        fs::write(&main, text).unwrap();
        let config = Config::load(&main).unwrap();
        assert_eq!(config.plugins[0].0, Path::new("/a/out_ferry.so"));
        assert_eq!(config.parsers[0].name, "json");
        assert_eq!(config.outputs[0].name, "ferry");
    }

    const PIPELINE: &str = "[INPUT]\n  Name dummy\n[OUTPUT]\n  Name x\n";

    #[test]
    fn the_classic_format_is_read_as_the_host_reads_it() {
        let main = "\
# a comment
@SET fruit=a pear

[Service]
    flush          0.25
    GRACE          -1
    # an indented comment
    Log_Level      warning
    Coro_Stack_Size 65536
    Hot_Reload     Yes
    Plugins_File   plugins.conf
    Parsers_File   parsers.conf
    Flush          0.5
@INCLUDE more-*.conf
[INPUT]
\tName dummy
[OUTPUT]
    Name  x
"
        .replace("\tName", "    Name");
        let config = load(
            &main,
            &[
                ("plugins.conf", "[PLUGINS]\n  Path /a/out_${x}.so\n  Path b.so\n"),
                ("parsers.conf", "[PARSER]\n  Name p\n  Format json\n"),
                (
                    "more-1.conf",
                    "[INPUT]\n\tName  tail # not a comment\n\tPath ${fruit}\n\tTag  \n\t[PROCESSORS]\n\t\tx y\n\tKey k\r\n",
                ),
            ],
        )
        .unwrap();
        let service = &config.service;
        assert_eq!(
            service.flush,
            Duration::from_millis(500),
            "the later of two counts"
        );
        assert_eq!(
            (service.grace, service.log_level, service.hot_reload),
            (None, 2, true)
        );
        assert_eq!(service.coro_stack_size, 65_536);
        let libraries: Vec<_> = config
            .plugins
            .iter()
            .map(|(path, _)| path.to_str())
            .collect();
        assert_eq!(
            libraries,
            [Some("/a/out_${x}.so"), Some("b.so")],
            "taken as written"
        );
        assert_eq!(config.parsers[0].get("format"), Some("json"));
        let names: Vec<_> = config
            .inputs
            .iter()
            .map(|input| input.name.as_str())
            .collect();
        assert_eq!(names, ["tail # not a comment", "dummy"]);
        let tail = &config.inputs[0];
        assert_eq!(tail.get("PATH"), Some("a pear"));
        assert_eq!(tail.get("key"), Some("k"));
        assert!(tail.property("tag").is_some() && tail.get("tag").is_none());
        assert_eq!(
            tail.get("x"),
            None,
            "what is in a group is not the section's"
        );
        assert_eq!(config.outputs.len(), 1);
    }

    #[test]
    fn mistakes_name_file_and_line() {
        let cases = [
            ("[SERVICE\n", ":1: the section header has no ']'"),
            ("[INPUT]\nName dummy\n", ":2: indentation level is too low"),
            (
                "[INPUT]\n  Name dummy\n\tTag x\n",
                ":3: invalid indentation level",
            ),
            (
                "[INPUT]\n  Name dummy\n   Tag x\n",
                ":3: extra indentation level",
            ),
            ("[INPUT]\n  Name\tdummy\n", ":2: 'Name' has no value"),
            ("  Name dummy\n", ":1: the key is outside of any section"),
            ("[INPUT]\n  Tag x\n", ":1: the section has no Name"),
            (
                "[PARSER]\n  Name x\n",
                ":1: a [PARSER] section belongs in a file",
            ),
            ("@SET x\n", ":1: '@SET x' must be '@SET name=value'"),
            ("@DO x\n", ":1: '@DO' is not a command"),
            ("@INCLUDE none.conf\n", ":1: @INCLUDE none.conf"),
            ("@INCLUDE none-*.conf\n", "no file matches"),
            ("@INCLUDE fluent-bit.conf\n", "is read twice"),
            (
                "[SERVICE]\n  Flush 0\n",
                ":2: Flush is '0'; it must be seconds above 0",
            ),
            (
                "[SERVICE]\n  Daemon maybe\n",
                ":2: Daemon is 'maybe'; it must be on or off",
            ),
            ("[SERVICE]\n  Log_Level loud\n", ":2: Log_Level is 'loud'"),
            (
                "[SERVICE]\n  Coro_Stack_Size 100\n",
                ":2: Coro_Stack_Size is '100'",
            ),
            (
                "[SERVICE]\n  Plugins_File none\n",
                ":2: Plugins_File is 'none'",
            ),
            ("[OUTPUT]\n  Name x\n", "there is no [INPUT] section"),
            (
                "[SERVICE]\n  storage.path ${UNSET_PATH}\n",
                ":2: storage.path is ''",
            ),
            (
                "[SERVICE]\n  storage.backlog.mem_limit much\n",
                ":2: storage.backlog.mem_limit is 'much'",
            ),
            ("[INPUT]\n  Name x\n", "there is no [OUTPUT] section"),
        ];
        for (main, message) in cases {
            let error = format!("{:#}", load(main, &[]).expect_err(main));
            assert!(error.contains(message), "{main:?}: {error}");
        }
    }

    #[test]
    fn what_is_not_acted_upon_is_said_once() {
        let filter = "[FILTER]\n  Name grep\n";
        let service = "[SERVICE]\n  storage.sync full\n  HTTP_Server on\n  Surprise 1\n";
        let twice = "[OUTPUT]\n  Name x\n  Path ${UNSET_A}${UNSET_A}\n";
        let config = load(&format!("{service}{filter}{PIPELINE}{twice}"), &[]).unwrap();
        let endings = [
            ":2: the service key 'storage.sync' is not acted upon here and ignored",
            ":3: the service key 'HTTP_Server' is not acted upon here and ignored",
            ":4: the service key 'Surprise' is not known here and ignored",
            ":5: [FILTER] sections are not run here and ignored",
            "variable ${UNSET_A} is used but not set",
        ];
        assert_eq!(
            config.warnings.len(),
            endings.len(),
            "{:?}",
            config.warnings
        );
        for (warning, ending) in config.warnings.iter().zip(endings) {
            assert!(warning.ends_with(ending), "{warning}");
        }
    }

    #[test]
    fn sizes_are_decimal() {
        let cases = [
            ("1500", Some(1500)),
            ("5M", Some(5_000_000)),
            ("1.5k", Some(1500)),
            ("2GB", Some(2_000_000_000)),
            ("-1", None),
            ("5 apples", None),
            ("", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
