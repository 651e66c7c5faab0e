//! Parses the user's settings ([`Properties`]) into a [`Config`].
//!
//! All problems are reported together, so that a configuration is fixed in one go. Keys of Fluent Bit's
//! `kinesis_firehose` and `azure_blob` and of AWS's Go `firehose` keep their meaning. Known keys that are not supported
//! are refused by name; unknown ones are never read, and reported by [`keys::idle_keys`].

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::codec::json::Options;
use crate::codec::template::{Rules, Template};
use crate::codec::time::{Strftime, TimeFormat, Zone};
use crate::compress::{Compression, has_parts};
use crate::format::json_lines::Lines;
#[cfg(feature = "parquet")]
use crate::format::parquet::Parquet;
use crate::format::parquet::Table;
use crate::format::{BLOCK_BYTES, Format};
use crate::log::size;
use folder::Names;
use keys::Key;
use reader::Reader;
use value::{at, is_shown, shown};

#[cfg(feature = "aws")]
pub(crate) use aws::is_fips_endpoint;
pub use aws::{Addressing, Aws};
pub use azure::{
    Azure, AzureAuth, AzureCloud, EMULATOR_ACCOUNT, EMULATOR_KEY, NOT_A_TENANT, is_tenant,
};
pub use blob::{Blob, Store, TABLE_PATH};
pub use connection_string::{ConnectionSecret, ConnectionString, ConnectionStringError};
pub(crate) use firehose::MissingWord;
pub use firehose::{
    Aggregation, Firehose, MissingAction, MissingTarget, sanitize_stream_name, stream_name,
};
pub(crate) use objects::{Encryption, MAX_TAG_VALUE, fits_header, fits_tag};
pub use objects::{Labelled, ObjectSettings};
#[cfg(feature = "check")]
pub(crate) use value::parse_size;
pub use value::{CaError, Secret, SecretSource, check_ca};
pub(crate) use value::{holds_secrets, trust_ca, without_secrets};

mod aws;
mod azure;
mod blob;
mod connection_string;
mod firehose;
mod folder;
pub mod keys;
mod objects;
mod parquet;
mod reader;
mod value;

/// A source of settings: the host, a configuration file, or a test.
pub trait Properties {
    /// Returns the value of a key, ignoring case; `None` where it is not set.
    fn get(&self, key: &str) -> Option<String>;

    /// Whether a key is set.
    fn is_set(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether the values under `log_key` are lines that an output without `log_key` encoded, so that objects get that
    /// output's extension and content type. Only a replay returns true; no key sets it.
    fn lines_are_records(&self) -> bool {
        false
    }

    /// The parent of the folders that outputs have by default. Only tests have another one.
    fn state_dir(&self) -> &Path {
        Path::new(folder::STATE_DIR)
    }
}

impl<F: Fn(&str) -> Option<String>> Properties for F {
    fn get(&self, key: &str) -> Option<String> {
        self(key)
    }
}

/// A problem of a configuration, with its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The name of the key, as it is set.
    pub key: &'static str,
    /// What is wrong, and the remedy; never contains a secret.
    pub message: String,
}

impl Problem {
    /// Creates a problem of `key`.
    pub fn new(key: &'static str, message: impl Into<String>) -> Problem {
        Problem {
            key,
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// The configuration of an output.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this instance in logs, and of its folder below `state_dir` by default.
    pub instance: String,
    /// The parent of the folders that outputs have by default.
    pub state_dir: PathBuf,
    /// The name to write into the spool's folder, if that is the default one without the key `instance`.
    owner: Option<String>,
    /// The destination.
    pub destination: Destination,
    /// The contents of a record.
    pub encode: Options,
    /// The contents of dead letters, which are lines in any format.
    pub letters: Options,
    /// The compression of lines.
    pub compression: Compression,
    /// Whether an object of gzip is one member, at the levels that can be.
    pub one_member: bool,
    /// The table that objects hold, if they are no lines.
    pub table: Option<Table>,
    /// The longest time a flush waits before it answers RETRY.
    pub flush_deadline: Duration,
    /// The longest time that stopping takes.
    pub exit_deadline: Duration,
    /// The most memory, in bytes, for lines, requests and open objects.
    pub memory_limit: usize,
    /// The most requests in flight; `None` adapts to the destination.
    pub concurrency: Option<usize>,
    /// The folder of dead letters.
    pub dead_letter_dir: PathBuf,
    /// The most bytes of dead letters.
    pub dead_letter_limit: u64,
    /// The spool between the host and the destination; `None` is direct mode.
    pub spool: Option<SpoolPlace>,
    /// The interval at which metrics are logged: zero for never, `None` for the default.
    pub metrics_log_interval: Option<Duration>,
    /// The address at which metrics are served.
    pub metrics_listen: Option<SocketAddr>,
    /// How long a destination may take nothing while something waits, before the output is not ready.
    pub ready_after: Duration,
}

impl Config {
    /// Returns the format of new objects of at most `object_bytes` bytes.
    pub fn format(&self, object_bytes: usize) -> Arc<dyn Format> {
        #[cfg(feature = "parquet")]
        if let Some(table) = &self.table {
            return Arc::new(Parquet::new(table.columns.clone(), table.packing));
        }
        let block = BLOCK_BYTES.min(object_bytes);
        let lines = Lines::new(self.compression, block);
        match self.compression {
            Compression::Gzip(level) if self.one_member && has_parts(level) => {
                Arc::new(lines.in_one_member())
            }
            _ => Arc::new(lines),
        }
    }
}

/// The location and limit of a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolPlace {
    /// Its folder, which no other instance may use.
    pub dir: PathBuf,
    /// The most bytes of its log.
    pub limit: u64,
    /// The most bytes of it that may wait for one of several targets.
    pub target_limit: u64,
}

/// The bounds at which a spooled object is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectBounds {
    /// The compressed size, in bytes.
    pub bytes: usize,
    /// The time since its first line was added.
    pub age: Duration,
}

/// A destination.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Amazon Data Firehose.
    Firehose(Firehose),
    /// A blob store.
    Blob {
        /// The store and the properties of its objects.
        blob: Blob,
        /// The prefix of every object's name, from `url`.
        prefix: String,
        /// The template of an object's folder, below the prefix.
        folder: Template,
        /// The extension of every object's name.
        extension: String,
        /// The bounds of objects that are built from the spool.
        object: ObjectBounds,
    },
}

impl Config {
    /// Reads every key. The error contains all problems.
    pub fn read(properties: &dyn Properties) -> Result<Config, Vec<Problem>> {
        let mut reader = Reader::new(properties);
        let config = reader.config();
        let problems = reader.into_problems();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }

    /// Returns the folder below `state_dir` that this output has by default.
    pub fn default_dir(&self) -> PathBuf {
        self.state_dir.join(&self.instance)
    }

    /// Writes into the spool's folder that it belongs to this output, if it is the default one, so that no other output
    /// takes it for what an earlier version left.
    pub fn claim_folder(&self) -> std::io::Result<()> {
        match (&self.owner, &self.spool) {
            (Some(owner), Some(spool)) => folder::claim(&spool.dir, owner),
            _ => Ok(()),
        }
    }

    /// Returns the log line at startup: version, destination and mode, without secrets.
    pub fn summary(&self) -> String {
        let mut line = format!("ferry {} to ", env!("CARGO_PKG_VERSION"));
        let mut append = |text: fmt::Arguments<'_>| {
            let _ = line.write_fmt(text);
        };
        match &self.destination {
            Destination::Firehose(firehose) => {
                match firehose.delivery_stream.fixed() {
                    Some(stream) => append(format_args!("delivery stream {stream}")),
                    None => append(format_args!("delivery streams by template")),
                }
                append(format_args!("{}", firehose.aws.place()));
            }
            Destination::Blob { blob, prefix, .. } => {
                append(format_args!("{}", blob.store));
                if !prefix.is_empty() {
                    append(format_args!("/{prefix}"));
                }
                match &blob.store {
                    Store::File(_) => {}
                    Store::S3 { aws, .. } => append(format_args!("{}", aws.place())),
                    Store::Gcs { endpoint, .. } => append(format_args!("{}", at(endpoint))),
                    Store::Azure(azure) => append(format_args!(
                        ", account {}{}, auth_type {}",
                        azure.account,
                        at(&azure.endpoint),
                        azure.auth.name()
                    )),
                }
            }
        }
        match &self.spool {
            None => append(format_args!(", direct")),
            Some(spool) => {
                let (dir, limit) = (spool.dir.display(), size(spool.limit));
                append(format_args!(", spooled in {dir} (at most {limit})"));
            }
        }
        line
    }

    /// Returns the log line at startup that says when the first object is due; `None` if records are sent at once.
    pub fn first_object(&self) -> Option<String> {
        match (&self.destination, &self.spool) {
            (Destination::Blob { object, .. }, Some(_)) => Some(format!(
                "the first object is due {} s after its first line (blob_max_age), or when it has {} (blob_max_size)",
                object.age.as_secs(),
                size(object.bytes as u64)
            )),
            _ => None,
        }
    }

    /// Returns the log line at level debug that lists formats, deadlines and limits.
    pub fn details(&self) -> String {
        let concurrency = self
            .concurrency
            .map_or("auto".to_owned(), |n| n.to_string());
        let mut line = String::new();
        let mut append = |text: fmt::Arguments<'_>| {
            let _ = line.write_fmt(text);
        };
        match &self.destination {
            Destination::Firehose(firehose) => {
                let aggregation = match firehose.aggregation {
                    Aggregation::On => "on",
                    Aggregation::Off => "off",
                    Aggregation::Auto => "auto",
                };
                append(format_args!("aggregation {aggregation}, "));
                if self.spool.is_some() {
                    let linger = firehose.linger.as_millis();
                    append(format_args!("linger {linger} ms, "));
                    let after = firehose.missing_target.after.as_secs();
                    match &firehose.missing_target.action {
                        MissingAction::Hold => {}
                        MissingAction::DeadLetter => {
                            append(format_args!("missing_target dead_letter after {after} s, "));
                        }
                        MissingAction::Fallback(stream) => {
                            append(format_args!(
                                "missing_target fallback {stream} after {after} s, "
                            ));
                        }
                    }
                }
            }
            Destination::Blob { object, blob, .. } => {
                if blob.objects.overwrite {
                    append(format_args!("conditional_put off, "));
                }
                if self.spool.is_some() {
                    let (bytes, age) = (size(object.bytes as u64), object.age.as_secs());
                    append(format_args!("objects of {bytes} or {age} s, "));
                }
            }
        }
        append(format_args!(
            "{}, flush_deadline {} s, exit_deadline {} s, memory_limit {}, concurrency {concurrency}, dead letters in {} \
             (at most {})",
            match &self.table {
                Some(table) => format!(
                    "Parquet of {} columns ({})",
                    table.columns.all().len(),
                    table.packing
                ),
                None => self.compression.to_string(),
            },
            self.flush_deadline.as_secs(),
            self.exit_deadline.as_secs(),
            size(self.memory_limit as u64),
            self.dead_letter_dir.display(),
            size(self.dead_letter_limit),
        ));
        line
    }
}

impl Reader<'_> {
    fn config(&mut self) -> Option<Config> {
        self.refuse_unsupported();
        if self.flag(&keys::AUTO_RETRY_REQUESTS) == Some(false) {
            self.problem(
                &keys::AUTO_RETRY_REQUESTS,
                "'off' is not supported: failed records are always retried; remove it",
            );
        }
        let format = self.choice(&keys::FORMAT);
        self.choice(&keys::BLOB_TYPE);

        let memory_limit = self.size(&keys::MEMORY_LIMIT);
        let zone = self.time_zone();
        let encode = self.encode(&zone);
        let names = Rules {
            tag_delimiters: self.tag_delimiters(),
            zone,
            keys: encode.key_form(),
            ..Rules::default()
        };
        let mut letters = encode.clone();
        let ca_pem = self.ca();
        let kind = self.kind();
        let table = match format {
            Some(ObjectFormat::Parquet) => Some(self.table(kind, &mut letters)),
            Some(ObjectFormat::JsonLines) | None => {
                self.refuse_table_keys();
                None
            }
        };
        let compression = match &table {
            Some(_) => Compression::None,
            None => self.compression(kind),
        };
        let one_member = self.one_member(compression);
        let destination = match kind {
            Some(DestinationKind::Firehose) => {
                self.firehose(ca_pem, names).map(Destination::Firehose)
            }
            Some(DestinationKind::Blob) => {
                let raw = encode.log_key.is_some();
                self.blob(
                    ca_pem,
                    compression,
                    raw,
                    table.as_ref(),
                    memory_limit,
                    names,
                )
            }
            None => None,
        };
        let flush_deadline = self.time(&keys::FLUSH_DEADLINE);
        let exit_deadline = self.time(&keys::EXIT_DEADLINE);
        let concurrency = self.count(&keys::CONCURRENCY);
        let spool_is = self.flag(&keys::SPOOL);
        // By default it is on for a blob store, where an object per flush would be slow and expensive, and off for Firehose,
        // which acknowledges at once.
        let spooled = spool_is.unwrap_or(kind == Some(DestinationKind::Blob));
        let state_dir = self.state_dir().to_owned();
        let names = match self.text(&keys::INSTANCE) {
            Some(name) => Err(sanitize_stream_name(
                &name.replace(":///", "-").replace("://", "-"),
            )),
            None => Ok(self.names(destination.as_ref(), spooled)),
        };
        let own = names.as_ref().ok().map(|names| names.own.clone());
        let instance = names.map_or_else(|name| name, |names| names.choose(&state_dir));
        if !spooled && (kind.is_some() || spool_is.is_some()) {
            // Without a destination the default is unknown.
            self.refuse_spooled(kind);
        }
        let spool = spooled.then(|| self.spool(&state_dir.join(&instance)));
        let is_default = spool
            .as_ref()
            .is_some_and(|spool| spool.dir == state_dir.join(&instance));
        let owner = own.filter(|_| is_default);
        if let (Some(_), Some(Destination::Blob { object, .. })) = (&spool, &destination)
            && object.bytes > open_objects(memory_limit)
        {
            self.problem(
                &keys::BLOB_MAX_SIZE,
                format!(
                    "{} bytes exceed three eighths of memory_limit ({memory_limit} bytes), the limit of open \
                     objects: raise memory_limit, or lower this",
                    object.bytes
                ),
            );
        }
        let dead_letter_limit = self.size(&keys::DEAD_LETTER_LIMIT) as u64;
        let metrics_log_interval = self.interval(&keys::METRICS_LOG_INTERVAL);
        let metrics_listen = self.metrics_listen();
        let ready_after = self.time(&keys::READY_AFTER);
        let dead_letter_dir = self.text(&keys::DEAD_LETTER_DIR).map_or_else(
            || match &spool {
                Some(spool) => spool.dir.join(folder::DEAD_LETTERS),
                None => state_dir.join(&instance).join(folder::DEAD_LETTERS),
            },
            PathBuf::from,
        );
        Some(Config {
            instance,
            state_dir,
            owner,
            destination: destination?,
            encode,
            letters,
            compression,
            one_member,
            table,
            flush_deadline,
            exit_deadline,
            memory_limit,
            concurrency,
            dead_letter_dir,
            dead_letter_limit,
            spool,
            metrics_log_interval,
            metrics_listen,
            ready_after,
        })
    }

    fn time_zone(&mut self) -> Zone {
        let Some(name) = self.text(&keys::TIME_ZONE) else {
            return Zone::default();
        };
        Zone::named(&name).unwrap_or_else(|| {
            let message = format!(
                "{} is not a time zone: use an IANA name such as Asia/Seoul, Europe/Berlin or UTC",
                shown(&name)
            );
            self.problem(&keys::TIME_ZONE, message);
            Zone::default()
        })
    }

    fn tag_delimiters(&mut self) -> String {
        let delimiters = self.text(&keys::TAG_DELIMITERS);
        let delimiters = delimiters.unwrap_or_else(|| ".".to_owned());
        if !delimiters.bytes().all(|byte| byte.is_ascii_punctuation()) {
            let message = format!(
                "{} has characters that are not ASCII punctuation: write those that separate the parts of a tag, such as .-",
                shown(&delimiters)
            );
            self.problem(&keys::TAG_DELIMITERS, message);
        }
        delimiters
    }

    fn encode(&mut self, zone: &Zone) -> Options {
        let time_key = self.text(&keys::TIME_KEY);
        let format = self.text(&keys::TIME_KEY_FORMAT);
        if format.is_some() && time_key.is_none() {
            self.problem(
                &keys::TIME_KEY_FORMAT,
                "needs time_key, the key to write the time under: set it, or remove this",
            );
        }
        let format = match format.as_deref() {
            None => TimeFormat::Iso8601,
            Some("epoch") => TimeFormat::Epoch,
            Some("epoch_ms") => TimeFormat::EpochMs,
            Some(format) => match Strftime::parse(format) {
                Ok(format) => TimeFormat::Strftime(format.in_zone(zone.clone())),
                Err(message) => {
                    let message = match is_shown(format) {
                        true => message.to_string(),
                        false => format!("{} is not a time format", shown(format)),
                    };
                    self.problem(
                        &keys::TIME_KEY_FORMAT,
                        format!("{message}; use strftime, epoch or epoch_ms"),
                    );
                    TimeFormat::Iso8601
                }
            },
        };
        let options = Options {
            log_key: self.text(&keys::LOG_KEY),
            data_keys: self
                .text(&keys::DATA_KEYS)
                .map(|keys| {
                    keys.split(',')
                        .map(|key| key.trim().to_owned())
                        .filter(|key| !key.is_empty())
                        .collect()
                })
                .unwrap_or_default(),
            time: time_key.map(|key| (key, format)),
            tag_key: self.text(&keys::TAG_KEY),
            metadata_key: self.text(&keys::METADATA_KEY),
            replace_dots: self.text(&keys::REPLACE_DOTS),
            lowercase_keys: self.flag(&keys::LOWERCASE_KEYS) == Some(true),
        };
        if options.log_key.is_some() {
            let others: [(&'static Key, bool); 4] = [
                (&keys::DATA_KEYS, !options.data_keys.is_empty()),
                (&keys::TIME_KEY, options.time.is_some()),
                (&keys::TAG_KEY, options.tag_key.is_some()),
                (&keys::METADATA_KEY, options.metadata_key.is_some()),
            ];
            for (key, set) in others {
                if set {
                    self.problem(key, "does nothing with log_key, which sends one value as it is: remove one of them");
                }
            }
        }
        let mut names: Vec<&String> = options.time.iter().map(|(key, _)| key).collect();
        names.extend(&options.tag_key);
        names.extend(&options.metadata_key);
        let count = names.len();
        names.sort();
        names.dedup();
        if names.len() < count {
            self.problem(
                &keys::TIME_KEY,
                "time_key, tag_key and metadata_key need different names",
            );
        }
        options
    }

    fn ca(&mut self) -> Option<Vec<u8>> {
        let path = self.text(&keys::TLS_CA_FILE)?;
        let pem = self.file(&keys::TLS_CA_FILE, &path)?;
        check_ca(&pem)
            .map_err(|error| self.problem(&keys::TLS_CA_FILE, format!("{} {error}", shown(&path))))
            .ok()?;
        Some(pem)
    }

    fn kind(&mut self) -> Option<DestinationKind> {
        let chosen = self.choice(&keys::DESTINATION);
        let firehose = self.is_set(&keys::DELIVERY_STREAM);
        let blob_keys: [&'static Key; 5] = [
            &keys::URL,
            &keys::BUCKET,
            &keys::CONTAINER_NAME,
            &keys::ACCOUNT_NAME,
            &keys::CONNECTION_STRING,
        ];
        let blob_key = blob_keys.into_iter().find(|key| self.is_set(key));
        let blob_key = blob_key.map(|key| key.name);
        match (chosen, firehose, blob_key) {
            (_, true, Some(blob)) => {
                self.problem(&keys::DESTINATION, format!("delivery_stream and {blob} are both set: one output has one destination; write two outputs"));
                None
            }
            (Some(DestinationKind::Firehose), false, Some(blob)) => {
                self.problem(
                    &keys::DESTINATION,
                    format!("'firehose' does not go with {blob}; it needs delivery_stream"),
                );
                None
            }
            (Some(DestinationKind::Blob), true, _) => {
                self.problem(&keys::DESTINATION, "'blob' does not go with delivery_stream; it needs url, or account_name and container_name");
                None
            }
            (_, true, None) => Some(DestinationKind::Firehose),
            (_, false, Some(_)) => Some(DestinationKind::Blob),
            (Some(kind), false, None) => Some(kind),
            (None, false, None) => {
                if !self.is_set(&keys::DESTINATION) {
                    self.problem(
                        &keys::DESTINATION,
                        "no destination: set delivery_stream for Firehose, or url (az://container/prefix, s3://bucket/prefix, \
                         gs://bucket/prefix, file:///folder), or account_name and container_name for Azure",
                    );
                }
                None
            }
        }
    }

    /// Returns whether an object of gzip is one member.
    fn one_member(&mut self, compression: Compression) -> bool {
        let one = self.choice(&keys::GZIP_MEMBERS);
        match compression {
            Compression::Gzip(level) if one == Some(true) && !has_parts(level) => self.problem(
                &keys::GZIP_MEMBERS,
                "'one' is possible with compression_level 2, 3 and 4 only: use one of these, or remove it",
            ),
            Compression::None | Compression::Zstd(_) if one.is_some() => self.problem(
                &keys::GZIP_MEMBERS,
                "needs compression gzip: set it, or remove this",
            ),
            _ => {}
        }
        one.unwrap_or(true)
    }

    fn compression(&mut self, kind: Option<DestinationKind>) -> Compression {
        let compress_blob = self.flag(&keys::COMPRESS_BLOB) == Some(true);
        let is_set = self.is_set(&keys::COMPRESSION);
        let chosen = self.choice(&keys::COMPRESSION);
        if is_set && chosen.is_none() {
            return Compression::None;
        }
        let default = match kind {
            Some(DestinationKind::Blob) => Algorithm::Gzip,
            _ if compress_blob => Algorithm::Gzip,
            _ => Algorithm::None,
        };
        let (compression, name, least, most) = match chosen.unwrap_or(default) {
            Algorithm::None => (Compression::None, "none", 0, 0),
            Algorithm::Gzip => (Compression::Gzip(GZIP_LEVEL), "gzip", 1, 12),
            Algorithm::Zstd => (Compression::Zstd(ZSTD_LEVEL), "zstd", -7, 19),
            Algorithm::Snappy => {
                self.problem(
                    &keys::COMPRESSION,
                    "snappy is for format parquet only: use gzip, zstd or none",
                );
                return Compression::None;
            }
        };
        let Some(level) = self.text(&keys::COMPRESSION_LEVEL) else {
            return compression;
        };
        match (level.parse::<i32>(), compression) {
            (_, Compression::None) => self.problem(
                &keys::COMPRESSION_LEVEL,
                "needs compression gzip or zstd: set one of them, or remove it",
            ),
            (Ok(level), Compression::Gzip(_)) if (least..=most).contains(&level) => {
                return Compression::Gzip(level.unsigned_abs());
            }
            (Ok(level), Compression::Zstd(_)) if (least..=most).contains(&level) => {
                return Compression::Zstd(level);
            }
            _ => self.problem(
                &keys::COMPRESSION_LEVEL,
                format!(
                    "{} is not a level of {name}: use {least} to {most}",
                    shown(&level)
                ),
            ),
        }
        compression
    }

    /// Reads the spool's keys.
    fn spool(&mut self, default: &Path) -> SpoolPlace {
        let dir = self.text(&keys::SPOOL_DIR);
        let limit = self.size(&keys::SPOOL_LIMIT) as u64;
        SpoolPlace {
            dir: dir.map_or_else(|| default.to_owned(), PathBuf::from),
            limit,
            target_limit: self.share(&keys::TARGET_LIMIT, limit),
        }
    }

    /// Parses `host:port`. Without a host it is the loopback address; names are refused, since the interfaces they
    /// resolve to are not obvious.
    fn metrics_listen(&mut self) -> Option<SocketAddr> {
        let value = self.text(&keys::METRICS_LISTEN)?;
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let (host, port) = value.rsplit_once(':').unwrap_or(("", &value));
        let host = match host {
            "" | "localhost" => Some(loopback),
            host => match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
                Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::from),
                None => host.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            },
        };
        let address = host.zip(port.parse().ok()).map(SocketAddr::from);
        if address.is_none() {
            self.problem(
                &keys::METRICS_LISTEN,
                format!(
                    "{} is not an address: write 127.0.0.1:9464, or another IP address of this machine and a \
                     port; a port alone means 127.0.0.1",
                    shown(&value)
                ),
            );
        }
        address
    }

    /// Returns the names that an output without `instance` may have. Only spools cannot be shared: without one, the folder
    /// of dead letters stays the same if `path` changes.
    fn names(&mut self, destination: Option<&Destination>, spooled: bool) -> Names {
        match destination {
            Some(Destination::Firehose(firehose)) => {
                let stream = self.raw(&keys::DELIVERY_STREAM).unwrap_or_default();
                let stream = firehose.delivery_stream.fixed().unwrap_or(stream);
                Names::of(&format!("firehose-{stream}"), "", None)
            }
            Some(Destination::Blob { blob, prefix, .. }) => {
                let path = self.raw(&keys::PATH).filter(|_| spooled);
                let path = path.as_deref().map(str::trim);
                Names::of(&blob.store.to_string(), prefix, path)
            }
            None => Names::of("", "", None),
        }
    }
}

/// The values of `destination`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DestinationKind {
    Firehose,
    Blob,
}

/// A kind of destination, which determines the keys that apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Amazon Data Firehose.
    Firehose,
    /// A folder.
    File,
    /// S3.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob.
    Azure,
}

/// The values of `compression`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    None,
    Gzip,
    Zstd,
    Snappy,
}

/// The values of `format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectFormat {
    JsonLines,
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    Parquet,
}

/// Compared to level 1 this takes 7% more of an output's total CPU time, and makes bodies of structured logs 3% smaller
/// (`make bench-host`).
const GZIP_LEVEL: u32 = 2;
const ZSTD_LEVEL: i32 = 1;

/// The default of `memory_limit`.
pub(crate) const MEMORY_LIMIT_BYTES: usize = 64_000_000;

/// Returns the most memory for open objects and those in flight: three eighths of `memory_limit`. The rest is for
/// chunks that are read and encoded meanwhile, and for buffers. With a half, a host at full speed grew by more than
/// `memory_limit`.
pub(crate) const fn open_objects(memory_limit: usize) -> usize {
    memory_limit / 8 * 3
}

#[cfg(test)]
mod tests;
