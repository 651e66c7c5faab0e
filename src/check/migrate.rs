//! Converts outputs of `kinesis_firehose`, AWS's Go `firehose`, `azure_blob` and `s3` into equivalent outputs of `ferry`.
//! Every key is carried over, or named in a comment with the reason why not. Values are printed as they were written,
//! with their `${VARIABLE}`s, except for secrets. Outputs of other plugins are named, so that nobody takes them for moved.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use fluent_bit_config::Format;

use super::host::{self, Configuration, Key, Output};
use crate::codec::template::Template;
use crate::config::keys::{self, Key as Known};
use crate::config::{Config, MEMORY_LIMIT_BYTES, Place, Properties, open_objects, parse_size};

/// The result of a migration.
#[derive(Debug)]
pub struct Migration {
    /// The new outputs for Fluent Bit's configuration, in the format of the old one.
    pub text: String,
    /// The problems to fix by hand, which are also in comments.
    pub problems: Vec<String>,
    /// The plugins of the outputs that are not moved, which is also in a comment.
    pub others: Vec<String>,
}

/// The plugins whose outputs are converted.
const PLUGINS: [&str; 4] = ["kinesis_firehose", "firehose", "azure_blob", "s3"];
/// Plugins that send nothing away, and are no candidates.
const LOCAL: [&str; 8] = [
    "ferry",
    "null",
    "stdout",
    "file",
    "counter",
    "flowcounter",
    "exit",
    "lib",
];
/// Plugins whose names are easily taken for one of those that are converted, with what their service is.
const SIMILAR: [(&str, &str); 6] = [
    (
        "kinesis_streams",
        "Kinesis Data Streams is not Data Firehose",
    ),
    ("kinesis", "Kinesis Data Streams is not Data Firehose"),
    ("azure_logs_ingestion", "Azure Monitor is not Azure Blob"),
    ("azure", "Azure Monitor is not Azure Blob"),
    ("stackdriver", "Cloud Logging is not Cloud Storage"),
    (
        "gcs",
        "write a ferry output with url gs://bucket/prefix by hand",
    ),
];

/// Reads a file and converts its outputs. Fails if it cannot be read, or has no output to convert.
pub fn migrate(path: &Path) -> Result<Migration, String> {
    let configuration = host::read(path, |name| PLUGINS.contains(&name))?;
    if configuration.outputs.is_empty() {
        let others = match configuration.others.as_slice() {
            [] => "there is no output at all".to_owned(),
            others => format!("there are only: {}", others.join(", ")),
        };
        return Err(format!(
            "{}: there is no output kinesis_firehose, firehose, azure_blob or s3; {others}",
            path.display()
        ));
    }
    let others = configuration.others.iter().map(|name| name.to_lowercase());
    let others: BTreeSet<String> = others.filter(|name| !LOCAL.contains(&&**name)).collect();
    let mut migration = Migration {
        text: head(&configuration, &others, path),
        problems: Vec::new(),
        others: others.into_iter().collect(),
    };
    for (at, output) in configuration.outputs.iter().enumerate() {
        let mut draft = Draft::new(output, at);
        match output.name.to_lowercase().as_str() {
            "azure_blob" => azure_blob(&mut draft),
            "s3" => s3(&mut draft),
            name => firehose(&mut draft, name == "firehose"),
        }
        draft.drop_the_rest();
        draft.validate(&mut migration.problems);
        migration.text.push('\n');
        draft.print(configuration.format, &mut migration.text);
    }
    Ok(migration)
}

fn head(configuration: &Configuration, others: &BTreeSet<String>, path: &Path) -> String {
    let plugins = match configuration.format {
        Format::Classic => {
            "Plugins_File in [SERVICE], and in that file [PLUGINS] with Path /…/out_ferry.so"
        }
        Format::Yaml => "plugins: with - /…/out_ferry.so",
    };
    let mut head = format!(
        "# From {}. In addition, Fluent Bit must load the library ({plugins}),\n\
         # and needs a Grace of 15 in its service. Text is sent as UTF-8, not as \\uXXXX.\n",
        path.display()
    );
    for other in others {
        let _ = write!(
            head,
            "# NOT MOVED: the output {other} is not converted and stays as it is"
        );
        if let Some((_, why)) = SIMILAR.iter().find(|(name, _)| name == other) {
            let _ = write!(head, "; {why}");
        }
        head.push('\n');
    }
    if configuration.format == Format::Yaml {
        head += "pipeline:\n  outputs:\n";
    }
    head
}

/// A key of the new output.
struct Line {
    /// The name, as in its documentation; in YAML it is printed in lower case.
    key: &'static str,
    /// The value to print.
    raw: String,
    /// The resolved value, to validate.
    value: String,
    comment: Option<String>,
}

/// A new output in progress.
struct Draft<'o> {
    from: &'o Output,
    number: usize,
    lines: Vec<Line>,
    notes: Vec<String>,
    /// What has to be fixed by hand, besides what the new output's own keys show.
    problems: Vec<String>,
    used: BTreeSet<String>,
}

impl Properties for Draft<'_> {
    fn get(&self, key: &str) -> Option<String> {
        let line = self.lines.iter().find(|line| line.key == key)?;
        Some(line.value.clone())
    }
}

impl<'o> Draft<'o> {
    fn new(from: &'o Output, number: usize) -> Self {
        Draft {
            from,
            number,
            lines: Vec::new(),
            notes: Vec::new(),
            problems: Vec::new(),
            used: BTreeSet::new(),
        }
    }

    /// Returns a key of the old output, and marks it as used.
    fn take(&mut self, key: &str) -> Option<&'o Key> {
        self.used.insert(key.to_owned());
        self.from.entry(key)
    }

    /// Returns a flag of the old output.
    fn flag(&mut self, key: &str) -> Option<bool> {
        match self.take(key)?.value.as_deref()?.to_lowercase().as_str() {
            "on" | "true" | "yes" => Some(true),
            _ => Some(false),
        }
    }

    fn add(&mut self, key: &'static str, raw: &str, value: &str) {
        self.push(key, raw, value, None);
    }

    fn add_with(&mut self, key: &'static str, value: &str, comment: impl Into<String>) {
        self.push(key, value, value, Some(comment.into()));
    }

    /// Adds a line; all lines are added here. A secret is printed only if it is a variable, by that variable's name.
    fn push(&mut self, key: &'static str, raw: &str, value: &str, comment: Option<String>) {
        let (raw, comment) = match keys::find(key).filter(|known| known.value.is_secret()) {
            Some(known) if !is_variable(raw) => {
                let mut name = format!("FERRY_{}", known.name.to_uppercase());
                if self.number > 0 {
                    let _ = write!(name, "_{}", self.number + 1);
                }
                let old = known.names().find_map(|name| self.from.entry(name));
                let place = old.map_or(&self.from.place, |old| &old.place);
                let comment = format!(
                    "the secret is not repeated here: put the value of {place} into the variable {name}, or into a file and write @/path of it"
                );
                (format!("${{{name}}}"), Some(comment))
            }
            Some(_) => (raw.trim().to_owned(), comment),
            None => (raw.to_owned(), comment),
        };
        self.lines.push(Line {
            key,
            raw,
            value: value.to_owned(),
            comment,
        });
    }

    /// Carries a key over, with a new name and a changed value.
    fn carry(&mut self, old: &str, new: &'static str, change: impl Fn(&str) -> String) {
        let Some(key) = self.take(old) else {
            return;
        };
        let value = key.value.as_deref().unwrap_or("unset");
        self.add(new, &change(&key.raw), &change(value));
        let is_secret = keys::find(new).is_some_and(|known| known.value.is_secret());
        if key.value.is_none() && !is_secret {
            let place = &key.place;
            self.note(format!("{place}: {old} contains a variable that is not set here: its value could not be checked"));
        }
    }

    fn keep(&mut self, keys: &[&'static Known]) {
        for key in keys {
            self.carry(key.name, key.name, str::to_owned);
        }
    }

    /// Carries over a key under the name of which the old one is an alias.
    fn rename(&mut self, old: &str, change: impl Fn(&str) -> String) {
        if let Some(key) = keys::find(old) {
            self.carry(old, key.name, change);
        }
    }

    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Notes what has to be fixed by hand.
    fn must_fix(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Carries over all keys that are not used yet and that Ferry has too, for objects in S3.
    fn keep_known(&mut self) {
        let from = self.from;
        for key in &from.keys {
            let known = keys::find(&key.name)
                .filter(|known| known.instead.is_none() && known.scope.includes(Place::S3));
            if let Some(known) = known
                && !self.used.contains(&key.name.to_lowercase())
                && self.get(known.name).is_none()
            {
                self.carry(&key.name.to_lowercase(), known.name, str::to_owned);
            }
        }
    }

    /// Notes that a key has no counterpart, if it is set.
    fn drop_key(&mut self, key: &str, why: &str) {
        if self.take(key).is_some() {
            self.note(format!("{key} has no counterpart: {why}"));
        }
    }

    /// Notes the keys of `plugin` that have no counterpart, and those that are refused.
    fn drop_foreign(&mut self, plugin: &str) {
        let foreign = keys::FOREIGN.iter().filter(|key| key.plugin == plugin);
        let foreign = foreign.map(|key| (key.name, key.why));
        let refused = keys::ALL
            .iter()
            .filter_map(|key| Some((key.name, key.instead?)));
        for (key, why) in foreign.chain(refused) {
            if !self.used.contains(key) {
                self.drop_key(key, why);
            }
        }
    }

    /// Carries over the host's own keys.
    fn host_keys(&mut self, direct: bool) {
        // Handled below, since they depend on the mode.
        const SPECIAL: [&str; 2] = ["Retry_Limit", "Workers"];
        let acting = keys::HOST.iter().filter(|key| key.instead.is_none());
        for key in acting.filter(|key| !SPECIAL.contains(&key.name)) {
            self.carry(&key.name.to_lowercase(), key.name, str::to_owned);
        }
        let limit = self.take("retry_limit").and_then(|key| key.value.clone());
        let unlimited =
            |limit: &str| ["no_limits", "false", "off"].contains(&limit.to_lowercase().as_str());
        match limit {
            Some(limit) if unlimited(&limit) => self.add("Retry_Limit", "no_limits", "no_limits"),
            limit => self.add_with(
                "Retry_Limit",
                "no_limits",
                format!(
                    "was {}, after which Fluent Bit drops the chunk",
                    limit.as_deref().unwrap_or("not set, which means 1")
                ),
            ),
        }
        let workers = self
            .take("workers")
            .map(|key| key.raw.clone())
            .filter(|workers| workers != "0");
        match (workers, direct) {
            (Some(workers), true) => self.add("Workers", &workers, &workers),
            (None, true) => self.add_with(
                "Workers",
                "2",
                "Fluent Bit has no default for a proxy output; without Workers each flush blocks it",
            ),
            (Some(_), false) => {
                self.note("workers is left out: with a spool a flush takes only an fsync")
            }
            (None, false) => {}
        }
        match (self.take("tls").is_some(), self.flag("tls")) {
            (_, Some(true)) => self.note("tls on is left out: Ferry speaks HTTPS by itself, and Fluent Bit does not start with it here"),
            (true, _) => self.note("tls is left out: the endpoint determines whether HTTPS is used"),
            (false, _) => {}
        }
        self.carry("tls.ca_file", "tls_ca_file", str::to_owned);
        if self.flag("tls.verify") == Some(false) {
            self.note("tls.verify off has no counterpart: certificates are always checked; set tls_ca_file to your own CA");
        }
        let keys: Vec<String> = self
            .from
            .keys
            .iter()
            .map(|key| key.name.to_lowercase())
            .collect();
        for key in keys {
            let idle = keys::find_host(&key).is_some_and(|key| key.instead.is_some());
            if idle && !self.used.contains(&key) {
                self.drop_key(
                    &key,
                    "it concerns Fluent Bit's own connections, and Ferry makes its own",
                );
            }
        }
    }

    fn drop_the_rest(&mut self) {
        for key in &self.from.keys {
            if self.used.insert(key.name.to_lowercase()) {
                self.notes.push(format!(
                    "{} is not a key of {} and is left out",
                    key.name, self.from.name
                ));
            }
        }
    }

    /// Validates the new output as the plugin will.
    fn validate(&mut self, problems: &mut Vec<String>) {
        for problem in std::mem::take(&mut self.problems) {
            self.note(format!("TO FIX: {problem}"));
            problems.push(format!("{}: {problem}", self.from.place));
        }
        if let Err(found) = Config::read(self) {
            for problem in found {
                self.note(format!("TO FIX: {problem}"));
                problems.push(format!("{}: {problem}", self.from.place));
            }
        }
    }

    fn print(&self, format: Format, out: &mut String) {
        let margin = match format {
            Format::Classic => "",
            Format::Yaml => "    ",
        };
        let mut line = |text: String| {
            out.push_str(margin);
            out.push_str(&text);
            out.push('\n');
        };
        line(format!("# {}, {}", self.from.name, self.from.place));
        for note in &self.notes {
            line(format!("# - {note}"));
        }
        if format == Format::Classic {
            line("[OUTPUT]".to_owned());
            line("    Name ferry".to_owned());
        } else {
            line("- name: ferry".to_owned());
        }
        for Line {
            key, raw, comment, ..
        } in &self.lines
        {
            let inner = if format == Format::Classic {
                "    "
            } else {
                "  "
            };
            if let Some(comment) = comment {
                line(format!("{inner}# {}: {comment}", key.to_lowercase()));
            }
            line(match format {
                Format::Classic => format!("{inner}{} {raw}", key),
                Format::Yaml => format!("{inner}{}: {}", key.to_lowercase(), yaml_scalar(raw)),
            });
        }
    }
}

/// Whether a value is a variable and nothing else, not even a default.
fn is_variable(raw: &str) -> bool {
    let raw = raw.trim();
    raw.starts_with("${") && raw.find('}') == Some(raw.len() - 1) && !raw.contains(":-")
}

fn yaml_scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./".contains(c);
    match text.chars().all(|c| plain(c) || c == '-') && text.starts_with(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "''")),
    }
}

/// Returns a full URL; the old plugins accept a bare host as well.
fn full_url(text: &str) -> String {
    match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    }
}

/// The old plugins' default, which the OpenX SerDe does not read.
const NO_ZONE: &str = "%Y-%m-%dT%H:%M:%S";

/// `kinesis_firehose`, in C, and AWS's `firehose`, in Go.
fn firehose(draft: &mut Draft<'_>, go: bool) {
    let has_endpoint = draft.from.entry("endpoint").is_some();
    let port = match has_endpoint && !go {
        true => draft.take("port").map(|key| key.raw.clone()),
        false => None,
    };
    draft.host_keys(true);
    draft.keep(&[
        &keys::DELIVERY_STREAM,
        &keys::REGION,
        &keys::PROFILE,
        &keys::ROLE_ARN,
        &keys::EXTERNAL_ID,
    ]);

    draft.carry("endpoint", "endpoint", |text| {
        let url = full_url(text);
        match &port {
            Some(port) if port != "443" && url.matches(':').count() == 1 => format!("{url}:{port}"),
            _ => url,
        }
    });
    draft.carry("sts_endpoint", "sts_endpoint", full_url);

    draft.keep(&[
        &keys::LOG_KEY,
        &keys::DATA_KEYS,
        &keys::REPLACE_DOTS,
        &keys::TIME_KEY,
    ]);
    let has_time = draft.get("time_key").is_some();
    match draft.take("time_key_format") {
        Some(_) if !has_time => draft.note("time_key_format is left out: without time_key it did nothing"),
        // Microseconds in the Go plugin.
        Some(_) if go => draft.carry("time_key_format", "time_key_format", |text| text.replace("%f", "%6N")),
        // Nanoseconds in the C plugin, milliseconds here.
        Some(_) => draft.carry("time_key_format", "time_key_format", |text| text.replace("%L", "%9N")),
        None if has_time => draft.add_with(
            "time_key_format",
            NO_ZONE,
            "the old default, without Z: format conversion (Glue, the OpenX SerDe) reads it as null. Remove the line for 2025-07-02T20:44:31.123Z, which it reads",
        ),
        None => {}
    }

    draft.carry("simple_aggregation", "simple_aggregation", str::to_owned);
    if draft.get("simple_aggregation").is_none() {
        draft.note(
            "aggregation differs: lines were sent one by one; Ferry joins them where the stream can read that, which costs less. Write aggregation off for the old behaviour",
        );
    }
    let compression = draft.take("compression");
    match compression.and_then(|key| key.value.as_deref()) {
        Some("gzip" | "zstd" | "none") => draft.carry("compression", "compression", str::to_owned),
        Some(other) => draft.note(format!(
            "compression {other} has no counterpart: lines are sent uncompressed; use gzip or zstd"
        )),
        None => {}
    }
    if draft.flag("auto_retry_requests").is_some() {
        draft.note(
            "auto_retry_requests is left out: failed records are always sent again, and only those",
        );
    }
    draft.note("retries differ: after a partial failure only the failed records are sent again");
    draft.drop_foreign("firehose");
}

/// The largest object with the default of `memory_limit`.
const LARGEST_OBJECT: usize = open_objects(MEMORY_LIMIT_BYTES);

/// `azure_blob`, in C.
fn azure_blob(draft: &mut Draft<'_>) {
    let tls = draft.flag("tls").unwrap_or(false);
    draft.host_keys(false);
    draft.keep(&[
        &keys::ACCOUNT_NAME,
        &keys::CONTAINER_NAME,
        &keys::AUTO_CREATE_CONTAINER,
        &keys::EMULATOR_MODE,
        &keys::AUTH_TYPE,
        &keys::SHARED_KEY,
        &keys::SAS_TOKEN,
    ]);

    let endpoint = draft
        .from
        .entry("endpoint")
        .and_then(|key| key.value.clone());
    match endpoint.as_deref() {
        None if !tls && draft.get("emulator_mode").is_none() => {
            draft.note("tls was off, so everything was sent over plain HTTP; Ferry uses HTTPS");
        }
        Some(url) if url.starts_with("https://") && !tls => {
            draft.note("endpoint: without tls on azure_blob used plain HTTP; Ferry uses HTTPS, as the URL says");
        }
        _ => {}
    }
    draft.carry("endpoint", "endpoint", |text| {
        match text.strip_prefix("http://") {
            Some(rest) if tls => format!("https://{rest}"),
            Some(_) => text.to_owned(),
            None => full_url(text),
        }
    });

    if draft.from.entry("path").is_some() {
        draft.carry("path", "path", folder);
    } else {
        draft.add("path", "$TAG", "$TAG");
    }
    draft.note("object names differ: <path>/<time of the first event>-<token>.ndjson; strftime in path uses the events' time, not that of the upload");
    if draft
        .from
        .entry("path")
        .is_some_and(|key| has_other_dollars(&key.raw))
    {
        draft.note("path: $UUID and all other $ placeholders but $TAG and $TAG[n] are left out: every name has a unique token");
    }
    let old_type = draft.take("blob_type").and_then(|key| key.value.clone());
    if old_type.as_deref() != Some("blockblob") {
        draft.note(
            "blob_type was appendblob: a blob that grew without limit; Ferry writes whole block blobs",
        );
    }
    draft.add("blob_type", "block", "block");

    let compress_blob = draft.flag("compress_blob") == Some(true);
    let codec = draft.take("compress").and_then(|key| key.value.clone());
    match (codec.as_deref(), compress_blob) {
        (Some(codec @ ("gzip" | "zstd")), _) => draft.add("compression", codec, codec),
        (_, true) => draft.add("compression", "gzip", "gzip"),
        _ => draft.add_with(
            "compression",
            "none",
            "as before; without the line Ferry uses gzip, which costs less",
        ),
    }

    match draft.take("date_key") {
        Some(key) if key.value.is_some() => draft.carry("date_key", "date_key", str::to_owned),
        _ => draft.add("date_key", "@timestamp", "@timestamp"),
    }
    draft.add_with(
        "time_key_format",
        "%Y-%m-%dT%H:%M:%S.%6NZ",
        "as azure_blob writes it; without the line it has milliseconds",
    );

    let buffered = draft.flag("buffering_enabled") == Some(true);
    if !buffered {
        draft.note("buffering differs: each flush was uploaded separately; Ferry builds objects on disk from many. Write spool off for one object per flush");
    }
    draft.add("spool", "on", "on");
    if buffered {
        draft.rename("buffer_dir", |text| {
            format!("{}/ferry", text.trim_end_matches('/'))
        });
        if draft.get("spool_dir").is_some() {
            draft.note("spool_dir is a folder below the old buffer_dir: what azure_blob left there is not read; let it deliver that before you switch");
        }
        draft.rename("upload_timeout", str::to_owned);
        draft.rename("store_dir_limit_size", str::to_owned);
        let size = draft
            .take("upload_file_size")
            .and_then(|key| key.value.clone());
        if let Some(size) = size {
            draft.note("upload_file_size became blob_max_size, the size of an object as it is stored, compressed");
            match parse_size(&size) {
                Some(bytes) if bytes <= LARGEST_OBJECT => draft.add("blob_max_size", &size, &size),
                _ => draft.add_with(
                    "blob_max_size",
                    "24M",
                    format!("was {size}; more needs a larger memory_limit, of which open objects get three eighths"),
                ),
            }
        }
    } else {
        for key in [
            "buffer_dir",
            "upload_timeout",
            "store_dir_limit_size",
            "upload_file_size",
        ] {
            draft.drop_key(key, "without buffering_enabled it did nothing; see spool_dir, blob_max_age, spool_limit and blob_max_size");
        }
    }
    draft.drop_foreign("azure_blob");
    draft.note(
        "retries differ: nothing is given up, and an object is sent again under the same name",
    );
}

/// The keys of an object that somebody relies on: without a counterpart they are not passed over.
const RELIED_ON: [&str; 7] = [
    "sse",
    "sse_kms_key_id",
    "storage_class",
    "canned_acl",
    "content_type",
    "object_tags",
    "object_metadata",
];

/// `s3`, in C.
fn s3(draft: &mut Draft<'_>) {
    let port = match draft.from.entry("endpoint").is_some() {
        true => draft.take("port").map(|key| key.raw.clone()),
        false => None,
    };
    draft.host_keys(false);
    match draft.take("bucket") {
        Some(_) => draft.carry("bucket", "url", |bucket| format!("s3://{bucket}")),
        None => draft.must_fix("bucket is missing: write url s3://bucket"),
    }
    match draft.take("region") {
        Some(_) => draft.keep(&[&keys::REGION]),
        None => draft.add_with("region", "us-east-1", "the default of s3"),
    }
    draft.keep(&[&keys::PROFILE, &keys::ROLE_ARN, &keys::EXTERNAL_ID]);
    draft.carry("endpoint", "endpoint", |text| {
        let url = full_url(text);
        match &port {
            Some(port) if port != "443" && url.matches(':').count() == 1 => format!("{url}:{port}"),
            _ => url,
        }
    });
    draft.carry("sts_endpoint", "sts_endpoint", full_url);
    s3_path(draft);
    s3_times(draft);

    let is_parquet = |draft: &mut Draft<'_>| draft.get("format").is_some_and(|it| it == "parquet");
    draft.carry("format", "format", |format| format.to_lowercase());
    let compression = draft
        .take("compression")
        .and_then(|key| key.value.as_deref());
    match compression.map(str::to_lowercase).as_deref() {
        Some("gzip" | "zstd") => {
            draft.carry("compression", "compression", |text| text.to_lowercase())
        }
        Some("none") | None if is_parquet(draft) => {}
        Some("none") | None => draft.add_with(
            "compression",
            "none",
            "as before; without the line Ferry uses gzip, which costs less",
        ),
        Some("parquet") => draft.add("format", "parquet", "parquet"),
        Some(other) => draft.must_fix(format!(
            "compression {other} has no counterpart: use gzip or zstd"
        )),
    }

    draft.add("spool", "on", "on");
    if let Some(dir) = draft.take("store_dir").map(|key| key.raw.clone()) {
        draft.note(format!(
            "store_dir is not carried over: what s3 left in {dir} is not read; let it deliver that before you switch. Ferry's own \
             folder is spool_dir, on a disk that outlives a restart"
        ));
    }
    if let Some(limit) = draft.take("store_dir_limit_size") {
        match limit.value.as_deref().and_then(parse_size) {
            Some(0) => draft.note("store_dir_limit_size 0 is left out: a spool always has a limit, spool_limit, 1G by default"),
            _ => draft.rename("store_dir_limit_size", str::to_owned),
        }
        draft.note("a full spool deletes nothing, as s3 does at store_dir_limit_size: Fluent Bit's inputs pause");
    }
    match draft.take("upload_timeout") {
        Some(_) => draft.rename("upload_timeout", str::to_owned),
        None => draft.add_with(
            "blob_max_age",
            "10m",
            "the default of s3; without the line it is 5m",
        ),
    }
    let size = draft
        .take("total_file_size")
        .and_then(|key| key.value.clone());
    match size {
        Some(size) if parse_size(&size).is_some_and(|bytes| bytes <= LARGEST_OBJECT) => {
            draft.note("total_file_size became blob_max_size, the size of an object as it is stored, compressed");
            draft.add("blob_max_size", &size, &size);
        }
        size => draft.add_with(
            "blob_max_size",
            "24M",
            format!(
                "was {}; more needs a larger memory_limit, of which open objects get three eighths",
                size.as_deref().unwrap_or("not set, which means 100M")
            ),
        ),
    }
    if draft.flag("auto_retry_requests").is_some() {
        draft.note("auto_retry_requests is left out: failed requests are always sent again");
    }
    draft.keep_known();
    for key in RELIED_ON {
        if draft.take(key).is_some() && draft.get(key).is_none() {
            draft.must_fix(format!(
                "{key} has no counterpart in this version, and is not sent"
            ));
        }
    }
    for key in [
        "part_size",
        "file_delivery_attempt_limit",
        "part_delivery_attempt_limit",
        "upload_parts_timeout",
        "upload_part_freshness_limit",
    ] {
        draft.drop_key(
            key,
            "it concerns files of in_blob, which Ferry does not upload",
        );
    }
    draft.drop_foreign("s3");
    draft.note("object names differ: <path>/<time of the first event>-<token>.ndjson; strftime in path uses the events' time");
    draft.note("retries differ: nothing is given up, and an object is sent again under the same name, which exists once");
}

/// Carries over the names of objects, as far as they are folders.
fn s3_path(draft: &mut Draft<'_>) {
    const DEFAULT: &str = "/fluent-bit-logs/$TAG/%Y/%m/%d/%H/%M/%S";
    let format = draft.take("s3_key_format");
    let raw = format.map_or(DEFAULT, |key| &key.raw);
    let folder = key_format(raw);
    match format {
        Some(_) => draft.carry("s3_key_format", "path", |text| key_format(text).path),
        None => draft.add_with(
            "path",
            &folder.path,
            format!("the default of s3 was {DEFAULT}"),
        ),
    }
    if folder.has_finer_times {
        draft.note(
            "s3_key_format: minutes and seconds are left out, since events are sorted by their own time: each minute would be an \
             object",
        );
    }
    if let Some(name) = &folder.name {
        draft.note(format!(
            "s3_key_format: '{name}' is left out: every name has a unique token"
        ));
    }
    if let Err(error) = Template::parse(&folder.path, true) {
        draft.must_fix(format!("path, from s3_key_format: {error}"));
    }
    let delimiters = draft.from.entry("s3_key_format_tag_delimiters");
    let delimiters = delimiters.and_then(|key| key.value.as_deref());
    if keys::find("s3_key_format_tag_delimiters").is_none()
        && delimiters.is_some_and(|text| text != ".")
        && folder.path.contains("$TAG[")
    {
        draft.must_fix(
            "s3_key_format_tag_delimiters has no counterpart: parts of a tag are split at dots, so that $TAG[n] in path may be another part",
        );
    }
}

/// Carries over the time that is written into records.
fn s3_times(draft: &mut Draft<'_>) {
    draft.keep(&[&keys::LOG_KEY]);
    let key = draft
        .take("json_date_key")
        .map(|key| (key.raw.clone(), key.value.clone()));
    let format = draft
        .take("json_date_format")
        .and_then(|key| key.value.clone());
    if draft.get("log_key").is_some() {
        if key.is_some() || format.is_some() {
            draft.note(
                "json_date_key and json_date_format are left out: with log_key they did nothing",
            );
        }
        return;
    }
    match key {
        Some((_, Some(word))) if ["false", "off", "no"].contains(&&*word.to_lowercase()) => return,
        Some((raw, value)) => draft.add("time_key", &raw, value.as_deref().unwrap_or("date")),
        None => draft.add_with("time_key", "date", "the default of s3"),
    }
    let words = format.as_deref().unwrap_or("iso8601").to_lowercase();
    match &*words {
        "iso8601" => draft.add_with(
            "time_key_format",
            "%Y-%m-%dT%H:%M:%S.%6NZ",
            "as s3 writes it; without the line it has milliseconds",
        ),
        "java_sql_timestamp" => draft.add(
            "time_key_format",
            "%Y-%m-%d %H:%M:%S.%6N",
            "%Y-%m-%d %H:%M:%S.%6N",
        ),
        "epoch" | "epoch_ms" => draft.add("time_key_format", &words, &words),
        other => draft.add_with(
            "time_key_format",
            "epoch_ms",
            format!("was {other}, seconds with a fraction: this is a whole number of milliseconds"),
        ),
    }
}

/// The folder in an object's name of `s3`.
struct KeyFormat {
    path: String,
    /// The last part, if it only named the object.
    name: Option<String>,
    /// Whether minutes or finer times were left out.
    has_finer_times: bool,
}

/// Converts `s3_key_format`, which names objects, into a folder of them.
fn key_format(format: &str) -> KeyFormat {
    const UNIQUE: [&str; 2] = ["$UUID", "$INDEX"];
    // Specifiers that differ within an hour.
    const FINER: [&str; 16] = [
        "%M", "%S", "%s", "%T", "%R", "%r", "%X", "%c", "%+", "%f", "%L", "%N", "%3N", "%6N",
        "%9N", "%D%T",
    ];
    let mut parts: Vec<String> = format
        .split('/')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect();
    let mut name = None;
    let ends_with_slash = format.ends_with('/');
    if let Some(last) = parts.pop_if(|_| !ends_with_slash) {
        // The extension is the new output's.
        let stem = match last.rsplit_once('.') {
            Some((stem, end))
                if !end.is_empty() && end.chars().all(|c| c.is_ascii_alphanumeric()) =>
            {
                stem
            }
            _ => &last,
        };
        let stem = UNIQUE
            .iter()
            .fold(stem.to_owned(), |stem, word| stem.replace(word, ""));
        let stem = stem.trim_matches(['-', '_', '.']);
        match stem.contains("$TAG") || stem.contains('%') {
            true => parts.push(stem.to_owned()),
            false => name = Some(last),
        }
    }
    let mut has_finer_times = false;
    parts.retain_mut(|part| {
        for word in UNIQUE {
            *part = part.replace(word, "");
        }
        let is_finer = FINER.iter().any(|word| part.contains(word));
        if is_finer {
            has_finer_times = true;
            for word in FINER {
                *part = part.replace(word, "");
            }
            let trimmed = part.trim_matches(['-', '_', '.', ':', 'T']).len();
            // What is left beside them may still be a time or the tag.
            if trimmed == 0 || !(part.contains('%') || part.contains("$TAG")) {
                return false;
            }
            *part = part.trim_end_matches(['-', '_', '.', ':', 'T']).to_owned();
        }
        !part.is_empty()
    });
    let path = match parts.is_empty() {
        true => "/".to_owned(),
        false => parts.join("/"),
    };
    KeyFormat {
        path,
        name,
        has_finer_times,
    }
}

/// Returns the offset and length of the first `$` placeholder that is neither a variable nor the tag.
fn other_dollar(text: &str) -> Option<(usize, usize)> {
    text.match_indices('$').find_map(|(at, _)| {
        let rest = &text[at + 1..];
        if rest.starts_with("TAG") || rest.starts_with('{') {
            return None;
        }
        let name = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_[]'\"".contains(c));
        Some((at, 1 + name.unwrap_or(rest.len())))
    })
}

fn has_other_dollars(path: &str) -> bool {
    other_dollar(path).is_some()
}

/// Converts a path of `azure_blob`, which appends the tag by itself.
fn folder(path: &str) -> String {
    let mut path = path.replace("%L", "%9N");
    while let Some((at, len)) = other_dollar(&path) {
        path.replace_range(at..at + len, "");
    }
    let parts = path.split('/').filter(|part| !part.is_empty());
    let parts: Vec<&str> = parts.chain(["$TAG"]).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_keeps_the_placeholders_that_are_supported() {
        let table = [
            ("logs", "logs/$TAG"),
            ("/logs/%Y/%m/", "logs/%Y/%m/$TAG"),
            ("a/$TAG[1]/$UUID", "a/$TAG[1]/$TAG"),
            ("${ENVIRONMENT}/x-$UUID-%L", "${ENVIRONMENT}/x--%9N/$TAG"),
            ("$kubernetes['ns']/x", "x/$TAG"),
            ("", "$TAG"),
        ];
        for (old, new) in table {
            assert_eq!(folder(old), new, "{old}");
        }
    }

    #[test]
    fn an_object_name_of_s3_becomes_the_folder_that_it_is_in() {
        #[rustfmt::skip] // a table
        let table = [
            ("/fluent-bit-logs/$TAG/%Y/%m/%d/%H/%M/%S", "fluent-bit-logs/$TAG/%Y/%m/%d/%H", None, true),
            ("/$TAG[2]/$TAG[0]/%Y/%m/%d/%H/%M/%S/$UUID.gz", "$TAG[2]/$TAG[0]/%Y/%m/%d/%H", Some("$UUID.gz"), true),
            ("/logs/%Y/%m/%d/$TAG-$UUID.gz", "logs/%Y/%m/%d/$TAG", None, false),
            ("/logs/%Y-%m-%d/app-$UUID.json", "logs/%Y-%m-%d", Some("app-$UUID.json"), false),
            ("logs/dt=%Y-%m-%d/hour=%H/", "logs/dt=%Y-%m-%d/hour=%H", None, false),
            ("/logs/%Y-%m-%dT%H:%M:%S-$INDEX", "logs/%Y-%m-%dT%H", None, true),
            ("/${ENVIRONMENT}/$TAG/index-$INDEX", "${ENVIRONMENT}/$TAG", Some("index-$INDEX"), false),
            ("/$UUID/x/y", "x", Some("y"), false),
            ("$UUID", "/", Some("$UUID"), false),
        ];
        for (format, path, name, finer) in table {
            let found = key_format(format);
            let found = (&*found.path, found.name.as_deref(), found.has_finer_times);
            assert_eq!(found, (path, name, finer), "{format}");
        }
    }

    #[test]
    fn no_secret_is_printed_however_it_is_carried_over() {
        let place = fluent_bit_config::Place {
            file: "fluent-bit.conf".into(),
            line: 1,
        };
        let secrets = keys::ALL.iter().filter(|key| key.value.is_secret());
        for name in secrets.flat_map(|key| key.names()) {
            let output = Output {
                name: "azure_blob".to_owned(),
                label: "azure_blob.0".to_owned(),
                keys: vec![Key {
                    name: name.to_owned(),
                    raw: "hunter2".to_owned(),
                    value: Some("hunter2".to_owned()),
                    place: place.clone(),
                }],
                place: place.clone(),
                unset: Vec::new(),
            };
            let key = keys::find(name).expect("a row");
            let ways: [fn(&mut Draft<'_>, &'static Known); 4] = [
                |draft, key| draft.keep(&[key]),
                |draft, key| draft.carry(key.name, key.name, str::to_owned),
                |draft, key| draft.rename(key.name, str::to_owned),
                |draft, key| draft.add(key.name, "hunter2", "hunter2"),
            ];
            for carry in ways {
                let mut draft = Draft::new(&output, 0);
                carry(&mut draft, key);
                draft.drop_the_rest();
                let mut text = String::new();
                draft.print(Format::Classic, &mut text);
                assert!(!text.contains("hunter2"), "{name}: {text}");
            }
        }
    }

    #[test]
    fn scalars_that_yaml_would_misread_are_quoted() {
        for (text, scalar) in [
            ("app-1", "app-1"),
            ("*", "'*'"),
            ("-x", "'-x'"),
            ("it's", "'it''s'"),
            ("%Y", "'%Y'"),
            ("", "''"),
        ] {
            assert_eq!(yaml_scalar(text), scalar);
        }
    }
}
