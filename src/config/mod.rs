//! What the user wrote ([`Properties`]) becomes what we run with ([`Config`]).
//!
//! Every key is looked at before anything is refused, so that a person mends a configuration once.
//! Keys of Fluent Bit's `kinesis_firehose` and `azure_blob` and of AWS's Go `firehose` keep their
//! meaning. A key that we know and cannot honour is refused by name; one that we do not know never gets here,
//! and `ferry-check` warns of it.

use std::fmt::{self, Write as _};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::codec::json::Options;
use crate::codec::template::Template;
use crate::codec::time::{Strftime, TimeFormat};
use crate::compress::Compression;

pub use connection_string::{ConnectionSecret, ConnectionString};

mod connection_string;

/// Where the user's words come from: the host, or a test.
pub trait Properties {
    /// The value of a key, whatever its case; `None` where it is not set.
    fn get(&self, key: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Properties for F {
    fn get(&self, key: &str) -> Option<String> {
        self(key)
    }
}

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key it concerns.
    pub key: &'static str,
    /// What is wrong with which value, and what is allowed. Never a secret.
    pub message: String,
}

impl Problem {
    /// `message` says what is wrong with which value, and what is allowed.
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

/// One output, ready to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// What this instance is called in logs, and below [`STATE_DIR`] by default.
    pub instance: String,
    /// Where records go.
    pub destination: Destination,
    /// What a record looks like.
    pub encode: Options,
    /// How bodies are compressed.
    pub compression: Compression,
    /// The longest a flush waits before it answers RETRY.
    pub flush_deadline: Duration,
    /// The longest stopping takes.
    pub exit_deadline: Duration,
    /// Bytes of chunks and their lines in flight.
    pub memory_limit: usize,
    /// Requests in flight; `None` adapts to the destination.
    pub concurrency: Option<usize>,
    /// Where dead letters are kept.
    pub dead_letter_dir: PathBuf,
    /// Bytes of dead letters.
    pub dead_letter_limit: u64,
    /// The buffer on disk between the host and the destination; `None` is direct mode.
    pub spool: Option<SpoolPlace>,
    /// How often the figures are said in the log: zero for never, `None` where it is left to us.
    pub metrics_log_interval: Option<Duration>,
    /// Where the figures are served.
    pub metrics_listen: Option<SocketAddr>,
}

/// Where a spool is, and how large it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolPlace {
    /// Its folder, which no other instance may use.
    pub dir: PathBuf,
    /// Bytes of all its files.
    pub limit: u64,
}

/// When a spooled object is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectBounds {
    /// Compressed bytes.
    pub bytes: usize,
    /// Time since its first line came.
    pub age: Duration,
}

/// Where records go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Amazon Data Firehose.
    Firehose(Firehose),
    /// A blob store.
    Blob {
        /// How to reach it.
        blob: Blob,
        /// In front of every object's name, from `url`.
        prefix: String,
        /// Each object's folder below that.
        folder: Template,
        /// The end of each object's name.
        extension: String,
        /// When an object is sealed that is built from the spool.
        object: ObjectBounds,
    },
}

/// What a Firehose sink needs to know.
#[derive(Clone, Debug)]
pub struct Firehose {
    /// The delivery stream for each event.
    pub delivery_stream: Template,
    /// How to reach it.
    pub aws: Aws,
    /// How many lines share a record.
    pub aggregation: Aggregation,
    /// PEM of certificates to trust beside the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// How long a request from the spool that is not full waits for more.
    pub linger: Duration,
}

/// How many lines share a Firehose record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// As many as fit.
    On,
    /// One.
    Off,
    /// As the stream's destination can read: asked of the service.
    Auto,
}

/// A value that must not reach a log: `Debug` and `Display` show that it is there, not what it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The value itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A secret written in the configuration, or kept in a file that may change while we run (`@/path`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// Written in the configuration.
    Value(Secret),
    /// The file it is read from, again whenever the file changes.
    File(PathBuf),
}

/// How to reach AWS, for Firehose and for `s3://` alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aws {
    /// Region; from the environment or the profile where it is not given.
    pub region: Option<String>,
    /// Full URL of the service, for private endpoints and emulators.
    pub endpoint: Option<String>,
    /// Full URL of STS.
    pub sts_endpoint: Option<String>,
    /// Profile of the shared configuration files.
    pub profile: Option<String>,
    /// Role to assume with the credentials of the chain.
    pub role_arn: Option<String>,
    /// External id the role asks for.
    pub external_id: Option<String>,
}

/// How to reach Azure Blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Azure {
    /// Storage account.
    pub account: String,
    /// Container.
    pub container: String,
    /// How we prove who we are.
    pub auth: AzureAuth,
    /// Full URL of the blob service, the account's own where it is not given.
    pub endpoint: Option<String>,
    /// Talk to Azurite: the account stands in the path, plain http is allowed.
    pub emulator: bool,
    /// Make the container when it does not exist.
    pub auto_create_container: bool,
}

/// How we prove who we are to Azure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureAuth {
    /// The account's shared key, base64.
    SharedKey(SecretSource),
    /// A shared access signature, with or without its `?`.
    Sas(SecretSource),
    /// A connection string, whose account and endpoint stand in [`Azure`], too.
    ConnectionString(SecretSource),
    /// The identity of the machine, App Service or Container App we run on.
    ManagedIdentity {
        /// Which one, where there are several.
        client_id: Option<String>,
    },
    /// The identity that Kubernetes' token of our ServiceAccount stands for. What is not given comes from
    /// `AZURE_TENANT_ID` and `AZURE_CLIENT_ID`, the token from the file `AZURE_FEDERATED_TOKEN_FILE`.
    WorkloadIdentity {
        /// Tenant of the identity.
        tenant_id: Option<String>,
        /// The identity.
        client_id: Option<String>,
    },
    /// A registered application with a secret.
    ClientSecret {
        /// Tenant of the application.
        tenant_id: String,
        /// The application.
        client_id: String,
        /// Its secret.
        secret: SecretSource,
    },
}

impl AzureAuth {
    /// The value of `auth_type`.
    pub fn name(&self) -> &'static str {
        let auth = match self {
            AzureAuth::SharedKey(_) => AuthType::Key,
            AzureAuth::Sas(_) => AuthType::Sas,
            AzureAuth::ConnectionString(_) => AuthType::ConnectionString,
            AzureAuth::ManagedIdentity { .. } => AuthType::ManagedIdentity,
            AzureAuth::WorkloadIdentity { .. } => AuthType::WorkloadIdentity,
            AzureAuth::ClientSecret { .. } => AuthType::ClientSecret,
        };
        auth.name()
    }

    /// Whether requests are signed with a secret of the storage account, rather than carrying a token.
    pub fn is_secret(&self) -> bool {
        match self {
            AzureAuth::SharedKey(_) | AzureAuth::Sas(_) | AzureAuth::ConnectionString(_) => true,
            AzureAuth::ManagedIdentity { .. }
            | AzureAuth::WorkloadIdentity { .. }
            | AzureAuth::ClientSecret { .. } => false,
        }
    }
}

/// Which store objects go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A folder on this machine.
    File(PathBuf),
    /// Amazon S3, or what speaks its protocol.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// How to reach it.
        aws: Aws,
    },
    /// Google Cloud Storage; credentials from `GOOGLE_APPLICATION_CREDENTIALS` or the metadata server.
    Gcs {
        /// The bucket's name.
        bucket: String,
        /// Full URL of the service, for emulators.
        endpoint: Option<String>,
    },
    /// Azure Blob.
    Azure(Azure),
}

impl fmt::Display for Store {
    /// The store as a URL, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Store::File(path) => write!(f, "file://{}", path.display()),
            Store::S3 { bucket, .. } => write!(f, "s3://{bucket}"),
            Store::Gcs { bucket, .. } => write!(f, "gs://{bucket}"),
            Store::Azure(azure) => write!(f, "az://{}", azure.container),
        }
    }
}

/// What a blob sink needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Which store.
    pub store: Store,
    /// Value of `Content-Type`.
    pub content_type: &'static str,
    /// Value of `Content-Encoding`, where the body is compressed.
    pub content_encoding: Option<&'static str>,
    /// PEM of certificates to trust beside the system's.
    pub ca_pem: Option<Vec<u8>>,
}

/// Keys that this version does not act on, and what to do instead.
const NOT_YET: &[(&str, &str)] = &[
    // azure_blob counts its buffer before compression, in a file for each tag.
    (
        "upload_file_size",
        "use blob_max_size, the size of an object as it is stored",
    ),
    (
        "database_file",
        "files are not tracked in a database; remove it",
    ),
    ("part_size", "objects are put in one piece; remove it"),
    (
        "configuration_endpoint_url",
        "write the settings into this section",
    ),
];

/// Keys that say something of Azure alone.
const AZURE_KEYS: &[&str] = &[
    "account_name",
    "container_name",
    "auth_type",
    "shared_key",
    "sas_token",
    "connection_string",
    "tenant_id",
    "client_id",
    "client_secret",
    "emulator_mode",
    "auto_create_container",
];

/// Keys that say something of AWS alone.
const AWS_KEYS: &[&str] = &[
    "region",
    "sts_endpoint",
    "profile",
    "role_arn",
    "external_id",
];

/// Reads keys and gathers what is wrong with them.
struct Reader<'p> {
    properties: &'p dyn Properties,
    problems: Vec<Problem>,
}

impl Config {
    /// Reads every key; the error holds everything that is wrong.
    pub fn read(properties: &dyn Properties) -> Result<Config, Vec<Problem>> {
        let mut reader = Reader {
            properties,
            problems: Vec::new(),
        };
        let config = reader.config();
        match config {
            Some(config) if reader.problems.is_empty() => Ok(config),
            _ => Err(reader.problems),
        }
    }

    /// One line for the log at start: version, destination, mode, limits. No secrets.
    pub fn summary(&self) -> String {
        let mut line = format!("ferry {} to ", env!("CARGO_PKG_VERSION"));
        let mut say = |words: fmt::Arguments<'_>| {
            let _ = line.write_fmt(words);
        };
        match &self.destination {
            Destination::Firehose(firehose) => {
                match firehose.delivery_stream.fixed() {
                    Some(stream) => say(format_args!("delivery stream {stream}")),
                    None => say(format_args!("delivery streams by template")),
                }
                say(format_args!(
                    "{}, aggregation {}",
                    firehose.aws.place(),
                    match firehose.aggregation {
                        Aggregation::On => "on",
                        Aggregation::Off => "off",
                        Aggregation::Auto => "auto",
                    }
                ));
            }
            Destination::Blob { blob, prefix, .. } => {
                say(format_args!("{}", blob.store));
                if !prefix.is_empty() {
                    say(format_args!("/{prefix}"));
                }
                match &blob.store {
                    Store::File(_) => {}
                    Store::S3 { aws, .. } => say(format_args!("{}", aws.place())),
                    Store::Gcs { endpoint, .. } => say(format_args!("{}", at(endpoint))),
                    Store::Azure(azure) => say(format_args!(
                        ", account {}{}, auth_type {}",
                        azure.account,
                        at(&azure.endpoint),
                        azure.auth.name()
                    )),
                }
            }
        }
        match (&self.spool, &self.destination) {
            (None, _) => say(format_args!(", direct")),
            (Some(spool), destination) => {
                let (dir, limit) = (spool.dir.display(), spool.limit);
                say(format_args!(", spooled in {dir} (at most {limit} bytes)"));
                match destination {
                    Destination::Firehose(firehose) => {
                        say(format_args!(", linger {} ms", firehose.linger.as_millis()));
                    }
                    Destination::Blob { object, .. } => say(format_args!(
                        ", objects of at most {} bytes or {} s",
                        object.bytes,
                        object.age.as_secs()
                    )),
                }
            }
        }
        let concurrency = self
            .concurrency
            .map_or("auto".to_owned(), |n| n.to_string());
        say(format_args!(
            ", compression {:?}, flush_deadline {} s, exit_deadline {} s, memory_limit {} bytes, concurrency \
             {concurrency}, dead letters in {} (at most {} bytes)",
            self.compression,
            self.flush_deadline.as_secs(),
            self.exit_deadline.as_secs(),
            self.memory_limit,
            self.dead_letter_dir.display(),
            self.dead_letter_limit,
        ));
        line
    }
}

impl Aws {
    /// Where that is, for the log.
    fn place(&self) -> String {
        let region = match &self.region {
            Some(region) => format!(", region {region}"),
            None => String::new(),
        };
        region + &at(&self.endpoint)
    }
}

/// An endpoint for the log.
fn at(endpoint: &Option<String>) -> String {
    match endpoint {
        Some(endpoint) => format!(" at {}", without_secrets(endpoint)),
        None => String::new(),
    }
}

impl Reader<'_> {
    fn config(&mut self) -> Option<Config> {
        for (key, remedy) in NOT_YET {
            if self.text(key).is_some() {
                self.problem(key, format!("does nothing in this version: {remedy}"));
            }
        }
        if self.flag("auto_retry_requests") == Some(false) {
            self.problem(
                "auto_retry_requests",
                "'off' is not possible: what failed is always sent again; remove it",
            );
        }
        self.choice("format", &[("json_lines", ())]);
        self.choice("blob_type", &[("block", ()), ("blockblob", ())]);

        let memory_limit = self.size("memory_limit", MEMORY_LIMIT, 4_000_000..=64_000_000_000);
        let encode = self.encode();
        let ca_pem = self.ca();
        let kind = self.kind();
        let compression = self.compression(kind);
        let destination = match kind {
            Some(Kind::Firehose) => self.firehose(ca_pem).map(Destination::Firehose),
            Some(Kind::Blob) => {
                let raw = encode.log_key.is_some();
                self.blob(ca_pem, compression, raw, memory_limit)
            }
            None => None,
        };
        let flush_deadline = self.seconds("flush_deadline", 30, 1..=3_600);
        let exit_deadline = self.seconds("exit_deadline", 10, 1..=600);
        let concurrency = self.concurrency();
        let instance = self.instance(destination.as_ref());
        let spool = self.spool(kind, &instance);
        if let (Some(_), Some(Destination::Blob { object, .. })) = (&spool, &destination)
            && object.bytes > open_objects(memory_limit)
        {
            self.problem(
                "blob_max_size",
                format!(
                    "{} bytes are more than three eighths of memory_limit ({memory_limit} bytes), which is \
                     what open objects may hold: raise memory_limit, or lower this",
                    object.bytes
                ),
            );
        }
        let dead_letter_limit = self.size(
            "dead_letter_limit",
            256_000_000,
            1_000_000..=1_000_000_000_000,
        ) as u64;
        let metrics_log_interval = self.metrics_log_interval();
        let metrics_listen = self.metrics_listen();
        let dead_letter_dir = self.text("dead_letter_dir").map_or_else(
            || match &spool {
                Some(spool) => spool.dir.join("dead-letters"),
                None => Path::new(STATE_DIR).join(&instance).join("dead-letters"),
            },
            PathBuf::from,
        );
        Some(Config {
            instance,
            destination: destination?,
            encode,
            compression,
            flush_deadline,
            exit_deadline,
            memory_limit,
            concurrency,
            dead_letter_dir,
            dead_letter_limit,
            spool,
            metrics_log_interval,
            metrics_listen,
        })
    }

    // Values.

    fn problem(&mut self, key: &'static str, message: impl Into<String>) {
        self.problems.push(Problem::new(key, message));
    }

    /// A value that says something: an empty one is what an unset `${VARIABLE}` leaves behind.
    fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.properties.get(key)?;
        let value = value.trim();
        if value.is_empty() {
            self.problem(key, "is empty: give it a value (an environment variable that is not set is empty), or remove it");
            return None;
        }
        Some(value.to_owned())
    }

    fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.text(key)?;
        let flag = match value.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" => Some(true),
            "off" | "false" | "no" => Some(false),
            _ => None,
        };
        if flag.is_none() {
            self.problem(key, format!("'{value}' is neither on nor off"));
        }
        flag
    }

    fn choice<T: Copy>(&mut self, key: &'static str, allowed: &[(&str, T)]) -> Option<T> {
        let value = self.text(key)?;
        let chosen = allowed
            .iter()
            .find(|(name, _)| value.eq_ignore_ascii_case(name));
        if chosen.is_none() {
            let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
            self.problem(
                key,
                format!(
                    "'{value}' is not possible in this version; it may be {}",
                    names.join(" or ")
                ),
            );
        }
        chosen.map(|(_, value)| *value)
    }

    /// The value of a key that has a second name; both may be set only to the same.
    fn either(&mut self, key: &'static str, alias: &'static str) -> Option<String> {
        let (first, second) = (self.text(key), self.text(alias));
        if let (Some(first), Some(second)) = (&first, &second)
            && !first.eq_ignore_ascii_case(second)
        {
            self.problem(
                key,
                format!("'{first}', but its other name {alias} says '{second}': keep one of them"),
            );
        }
        first.or(second)
    }

    fn size(&mut self, key: &'static str, default: usize, allowed: RangeInclusive<usize>) -> usize {
        let value = self.text(key);
        self.size_in(key, value, default, allowed)
    }

    fn size_in(
        &mut self,
        key: &'static str,
        value: Option<String>,
        default: usize,
        allowed: RangeInclusive<usize>,
    ) -> usize {
        let Some(value) = value else {
            return default;
        };
        match parse_size(&value) {
            Some(size) if allowed.contains(&size) => size,
            _ => {
                self.problem(
                    key,
                    format!(
                        "'{value}' is not a size from {} to {} bytes; write 500K, 64M or 1G (K is 1,000)",
                        allowed.start(),
                        allowed.end()
                    ),
                );
                default
            }
        }
    }

    fn seconds(
        &mut self,
        key: &'static str,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Duration {
        let value = self.text(key);
        self.time_in(key, value, default, allowed)
    }

    fn time_in(
        &mut self,
        key: &'static str,
        value: Option<String>,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Duration {
        let default = Duration::from_secs(default);
        let Some(value) = value else {
            return default;
        };
        let seconds = |seconds: &u64| Duration::from_secs(*seconds);
        let (least, most) = (seconds(allowed.start()), seconds(allowed.end()));
        match parse_time(&value) {
            Some(time) if (least..=most).contains(&time) => time,
            _ => {
                self.problem(
                    key,
                    format!(
                        "'{value}' is not a time from {} to {} seconds; write 500ms, 30s, 5m or 1h",
                        allowed.start(),
                        allowed.end()
                    ),
                );
                default
            }
        }
    }

    fn file(&mut self, key: &'static str, path: &str) -> Option<Vec<u8>> {
        match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.problem(key, format!("'{path}' cannot be read: {error}"));
                None
            }
        }
    }

    /// A secret, or `@/path` of the file that holds it.
    fn secret(&mut self, key: &'static str) -> Option<SecretSource> {
        let value = self.text(key)?;
        let Some(path) = value.strip_prefix('@') else {
            return Some(SecretSource::Value(Secret::new(value)));
        };
        let bytes = self.file(key, path)?;
        if bytes.trim_ascii().is_empty() {
            self.problem(key, format!("the file '{path}' is empty"));
        }
        Some(SecretSource::File(path.into()))
    }

    fn url(&mut self, key: &'static str) -> Option<String> {
        let value = self.text(key)?;
        if !is_full_url(&value) {
            self.problem(
                key,
                format!(
                    "'{}' is not a full URL; write https://host[:port]",
                    without_secrets(&value)
                ),
            );
            return None;
        }
        Some(value)
    }

    fn template(&mut self, key: &'static str, text: &str, with_time: bool) -> Option<Template> {
        Template::parse(text, with_time)
            .map_err(|message| self.problem(key, message))
            .ok()
    }

    // Parts.

    fn encode(&mut self) -> Options {
        let time_key = self.either("time_key", "date_key");
        let format = self.text("time_key_format");
        if format.is_some() && time_key.is_none() {
            self.problem(
                "time_key_format",
                "needs time_key, the key to write the time under",
            );
        }
        let format = match format.as_deref() {
            None => TimeFormat::Iso8601,
            Some("epoch") => TimeFormat::Epoch,
            Some("epoch_ms") => TimeFormat::EpochMs,
            Some(format) => match Strftime::parse(format) {
                Ok(format) => TimeFormat::Strftime(format),
                Err(message) => {
                    self.problem(
                        "time_key_format",
                        format!("{message}; it may be strftime, epoch or epoch_ms"),
                    );
                    TimeFormat::Iso8601
                }
            },
        };
        let options = Options {
            log_key: self.text("log_key"),
            data_keys: self
                .text("data_keys")
                .map(|keys| {
                    keys.split(',')
                        .map(|key| key.trim().to_owned())
                        .filter(|key| !key.is_empty())
                        .collect()
                })
                .unwrap_or_default(),
            time: time_key.map(|key| (key, format)),
            tag_key: self.text("tag_key"),
            metadata_key: self.text("metadata_key"),
            replace_dots: self.text("replace_dots"),
        };
        if options.log_key.is_some() {
            let others = [
                ("data_keys", !options.data_keys.is_empty()),
                ("time_key", options.time.is_some()),
                ("tag_key", options.tag_key.is_some()),
                ("metadata_key", options.metadata_key.is_some()),
            ];
            for (key, set) in others {
                if set {
                    self.problem(key, "does nothing beside log_key, which sends one value as it is: remove one of them");
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
                "time_key",
                "time_key, tag_key and metadata_key need different names",
            );
        }
        options
    }

    fn ca(&mut self) -> Option<Vec<u8>> {
        let path = self.text("tls_ca_file")?;
        let pem = self.file("tls_ca_file", &path)?;
        check_ca(&pem)
            .map_err(|what| self.problem("tls_ca_file", format!("'{path}' {what}")))
            .ok()?;
        Some(pem)
    }

    fn kind(&mut self) -> Option<Kind> {
        let chosen = self.choice(
            "destination",
            &[("firehose", Kind::Firehose), ("blob", Kind::Blob)],
        );
        let set = |key: &str| self.properties.get(key).is_some();
        let firehose = set("delivery_stream");
        let blob_key = ["url", "container_name", "account_name", "connection_string"]
            .into_iter()
            .find(|key| set(key));
        match (chosen, firehose, blob_key) {
            (_, true, Some(blob)) => {
                self.problem("destination", format!("delivery_stream and {blob} are both set: one output has one destination; write two outputs"));
                None
            }
            (Some(Kind::Firehose), false, Some(blob)) => {
                self.problem(
                    "destination",
                    format!("'firehose' does not go with {blob}; it needs delivery_stream"),
                );
                None
            }
            (Some(Kind::Blob), true, _) => {
                self.problem("destination", "'blob' does not go with delivery_stream; it needs url, or account_name and container_name");
                None
            }
            (_, true, None) => Some(Kind::Firehose),
            (_, false, Some(_)) => Some(Kind::Blob),
            (Some(kind), false, None) => Some(kind),
            (None, false, None) => {
                if self.properties.get("destination").is_none() {
                    self.problem(
                        "destination",
                        "no destination: set delivery_stream for Firehose, or url (az://container/prefix, s3://bucket/prefix, \
                         gs://bucket/prefix, file:///folder), or account_name and container_name for Azure",
                    );
                }
                None
            }
        }
    }

    fn compression(&mut self, kind: Option<Kind>) -> Compression {
        let name = self
            .either("compression", "compress")
            .map(|name| name.to_ascii_lowercase());
        let name = match (name, self.flag("compress_blob")) {
            (None, Some(true)) => Some("gzip".to_owned()),
            (name, _) => name,
        };
        let default = if kind == Some(Kind::Blob) {
            "gzip"
        } else {
            "none"
        };
        let name = name.as_deref().unwrap_or(default);
        let (compression, least, most) = match name {
            "none" | "off" => (Compression::None, 0, 0),
            "gzip" => (Compression::Gzip(GZIP_LEVEL), 1, 12),
            "zstd" => (Compression::Zstd(ZSTD_LEVEL), -7, 19),
            other => {
                self.problem(
                    "compression",
                    format!("'{other}' is not known; it may be none, gzip or zstd"),
                );
                return Compression::None;
            }
        };
        let Some(level) = self.text("compression_level") else {
            return compression;
        };
        match (level.parse::<i32>(), compression) {
            (_, Compression::None) => {
                self.problem("compression_level", "needs compression gzip or zstd")
            }
            (Ok(level), Compression::Gzip(_)) if (least..=most).contains(&level) => {
                return Compression::Gzip(level.unsigned_abs());
            }
            (Ok(level), Compression::Zstd(_)) if (least..=most).contains(&level) => {
                return Compression::Zstd(level);
            }
            _ => self.problem(
                "compression_level",
                format!("'{level}' is not a level of {name}: {least} to {most}"),
            ),
        }
        compression
    }

    fn aws(&mut self) -> Aws {
        let aws = Aws {
            region: self.text("region"),
            endpoint: self.url("endpoint"),
            sts_endpoint: self.url("sts_endpoint"),
            profile: self.text("profile"),
            role_arn: self.text("role_arn"),
            external_id: self.text("external_id"),
        };
        if let Some(role) = &aws.role_arn
            && !role.starts_with("arn:")
        {
            self.problem(
                "role_arn",
                format!("'{role}' is no ARN; write arn:aws:iam::ACCOUNT:role/NAME"),
            );
        }
        if aws.external_id.is_some() && aws.role_arn.is_none() {
            self.problem("external_id", "needs role_arn, the role that asks for it");
        }
        aws
    }

    /// The spool: on for a blob store, where one object a flush would be slow and dear; off for Firehose,
    /// which acknowledges at once.
    fn spool(&mut self, kind: Option<Kind>, instance: &str) -> Option<SpoolPlace> {
        let on = match (self.flag("spool"), self.flag("buffering_enabled")) {
            (Some(spool), Some(alias)) if spool != alias => {
                self.problem(
                    "spool",
                    "and its other name buffering_enabled say the opposite: keep one of them",
                );
                spool
            }
            (spool, alias) => spool.or(alias).unwrap_or(kind == Some(Kind::Blob)),
        };
        let dir = self.either("spool_dir", "buffer_dir");
        let limit = self.either("spool_limit", "store_dir_limit_size");
        if !on {
            for (key, set) in [
                ("spool_dir", dir.is_some()),
                ("spool_limit", limit.is_some()),
            ] {
                if set {
                    self.problem(key, "needs spool on");
                }
            }
            for key in ["blob_max_size", "blob_max_age", "upload_timeout", "linger"] {
                if self.properties.get(key).is_some() {
                    self.problem(
                        key,
                        "needs spool on: without it each chunk is sent by itself",
                    );
                }
            }
            return None;
        }
        let limit = self.size_in(
            "spool_limit",
            limit,
            1_000_000_000,
            16_000_000..=100_000_000_000_000,
        );
        Some(SpoolPlace {
            dir: dir.map_or_else(|| Path::new(STATE_DIR).join(instance), PathBuf::from),
            limit: limit as u64,
        })
    }

    fn firehose(&mut self, ca_pem: Option<Vec<u8>>) -> Option<Firehose> {
        let of_blobs = [
            "path",
            "blob_type",
            "blob_max_size",
            "blob_max_age",
            "upload_timeout",
        ];
        for &key in of_blobs.iter().chain(AZURE_KEYS) {
            if self.text(key).is_some() {
                self.problem(key, "belongs to a blob destination; remove it");
            }
        }
        let aws = self.aws();
        let aggregation = self.aggregation();
        let linger = self.seconds("linger", 1, 0..=60);
        let Some(name) = self.text("delivery_stream") else {
            if self.properties.get("delivery_stream").is_none() {
                self.problem(
                    "delivery_stream",
                    "is missing: name the stream, or a template such as app-{tag[1]}",
                );
            }
            return None;
        };
        let delivery_stream = self.template("delivery_stream", &name, false)?;
        if let Some(fixed) = delivery_stream.fixed()
            && stream_name(&fixed) != fixed
        {
            self.problem(
                "delivery_stream",
                format!("'{fixed}' is no name of a stream: at most {MAX_STREAM_NAME} of a-z, A-Z, 0-9, '_', '-' and '.'"),
            );
        }
        Some(Firehose {
            delivery_stream,
            aws,
            aggregation,
            ca_pem,
            linger,
        })
    }

    fn aggregation(&mut self) -> Aggregation {
        let Some(value) = self.either("aggregation", "simple_aggregation") else {
            return Aggregation::Auto;
        };
        match value.to_ascii_lowercase().as_str() {
            "auto" => Aggregation::Auto,
            "on" | "true" | "yes" => Aggregation::On,
            "off" | "false" | "no" => Aggregation::Off,
            _ => {
                self.problem(
                    "aggregation",
                    format!("'{value}' is not known; it may be on, off or auto"),
                );
                Aggregation::Auto
            }
        }
    }

    fn blob(
        &mut self,
        ca_pem: Option<Vec<u8>>,
        compression: Compression,
        raw: bool,
        memory_limit: usize,
    ) -> Option<Destination> {
        for key in ["aggregation", "simple_aggregation", "linger"] {
            if self.text(key).is_some() {
                self.problem(key, "belongs to a Firehose destination; remove it");
            }
        }
        let path = self
            .text("path")
            .unwrap_or_else(|| "{tag}/%Y/%m/%d/%H".to_owned());
        let folder = self.template("path", &path, true);
        let age = self.either("blob_max_age", "upload_timeout");
        // Who lowers `memory_limit` alone gets smaller objects, not a refusal.
        let default = open_objects(memory_limit).min(16_000_000);
        let object = ObjectBounds {
            bytes: self.size("blob_max_size", default, 10_000..=4_000_000_000),
            age: self.time_in("blob_max_age", age, 300, 1..=86_400),
        };
        let (store, prefix) = self.store()?;
        Some(Destination::Blob {
            blob: Blob {
                store,
                content_type: if raw {
                    "text/plain; charset=utf-8"
                } else {
                    "application/x-ndjson"
                },
                content_encoding: compression.content_encoding(),
                ca_pem,
            },
            prefix,
            folder: folder?,
            object,
            extension: format!(
                "{}{}",
                if raw { ".log" } else { ".ndjson" },
                compression.extension()
            ),
        })
    }

    fn store(&mut self) -> Option<(Store, String)> {
        let Some(url) = self.text("url") else {
            let container = self.text("container_name");
            if container.is_none() && self.properties.get("container_name").is_none() {
                self.problem(
                    "container_name",
                    "is missing: name the container, or use url",
                );
            }
            let store = Store::Azure(self.azure(container?)?);
            self.no_other_stores_keys(&store);
            return Some((store, String::new()));
        };
        let Some((scheme, rest)) = url.split_once("://") else {
            self.problem("url", bad_url(&url));
            return None;
        };
        if scheme == "file" {
            let path = Path::new(rest);
            if rest.is_empty() {
                self.problem("url", bad_url(&url));
                return None;
            }
            // `file:///var/log` is absolute; `file://logs` is a folder below where the host runs.
            let store = Store::File(path.to_owned());
            self.no_other_stores_keys(&store);
            return Some((store, String::new()));
        }
        let (root, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if root.is_empty() {
            self.problem("url", bad_url(&url));
            return None;
        }
        let store = match scheme {
            "az" => {
                if let Some(container) = self.text("container_name")
                    && container != root
                {
                    self.problem(
                        "container_name",
                        format!("'{container}', but url says '{root}': keep one of them"),
                    );
                }
                Store::Azure(self.azure(root.to_owned())?)
            }
            "s3" => Store::S3 {
                bucket: root.to_owned(),
                aws: self.aws(),
            },
            "gs" => Store::Gcs {
                bucket: root.to_owned(),
                endpoint: self.url("endpoint"),
            },
            _ => {
                self.problem("url", bad_url(&url));
                return None;
            }
        };
        self.no_other_stores_keys(&store);
        Some((store, prefix.to_owned()))
    }

    /// Refuses keys that belong to another store.
    fn no_other_stores_keys(&mut self, store: &Store) {
        let (azure, aws) = (
            matches!(store, Store::Azure(_)),
            matches!(store, Store::S3 { .. }),
        );
        let endpoint = matches!(store, Store::File(_)).then_some("endpoint");
        let others = (AZURE_KEYS.iter().filter(|_| !azure))
            .chain(AWS_KEYS.iter().filter(|_| !aws))
            .chain(&endpoint);
        for &key in others {
            if self.text(key).is_some() {
                self.problem(key, format!("does nothing for {store}: remove it"));
            }
        }
    }

    fn azure(&mut self, container: String) -> Option<Azure> {
        if !is_container_name(&container) {
            self.problem(
                "container_name",
                format!("'{container}' is no name of a container: 3 to 63 lowercase letters, digits and single hyphens"),
            );
        }
        let auth = self.azure_auth();
        let place = match auth {
            AuthType::ConnectionString => self.azure_by_connection_string(),
            _ => self.azure_by_keys(auth),
        };
        let auto_create_container = self.flag("auto_create_container").unwrap_or(true);
        let (account, auth, endpoint, emulator) = place?;
        Some(Azure {
            account,
            container,
            auth,
            endpoint,
            emulator,
            auto_create_container,
        })
    }

    /// How we prove who we are; refuses the keys that belong to other ways.
    fn azure_auth(&mut self) -> AuthType {
        use AuthType::{
            ClientSecret, ConnectionString, Key, ManagedIdentity, Sas, WorkloadIdentity,
        };
        let all = [
            Key,
            Sas,
            ConnectionString,
            ManagedIdentity,
            WorkloadIdentity,
            ClientSecret,
        ];
        let chosen = self.choice("auth_type", &all.map(|auth| (auth.name(), auth)));
        let set = |key: &str| self.properties.get(key).is_some();
        let inferred = match set("connection_string") {
            true => ConnectionString,
            false => Key,
        };
        let auth = chosen.unwrap_or(inferred);
        // Keys, and the ways that they belong to. azure_blob takes a key and a signature side by side.
        let owners: [(&'static str, &[AuthType]); 6] = [
            ("shared_key", &[Key, Sas]),
            ("sas_token", &[Key, Sas]),
            ("connection_string", &[ConnectionString]),
            ("tenant_id", &[WorkloadIdentity, ClientSecret]),
            (
                "client_id",
                &[ManagedIdentity, WorkloadIdentity, ClientSecret],
            ),
            ("client_secret", &[ClientSecret]),
        ];
        let idle: Vec<_> = owners
            .into_iter()
            .filter(|(key, ways)| set(key) && !ways.contains(&auth))
            .collect();
        for (key, ways) in idle {
            let ways: Vec<_> = ways.iter().map(|way| way.name()).collect();
            self.problem(
                key,
                format!(
                    "does nothing with auth_type {}: set auth_type {}, or remove it",
                    auth.name(),
                    ways.join(" or ")
                ),
            );
        }
        auth
    }

    fn azure_by_keys(&mut self, auth: AuthType) -> Option<AzurePlace> {
        let emulator = self.flag("emulator_mode").unwrap_or(false);
        let account = match self.text("account_name") {
            Some(account) => Some(account),
            None if emulator => Some(EMULATOR_ACCOUNT.to_owned()),
            None => {
                self.problem("account_name", "is missing: name the storage account");
                None
            }
        };
        let auth = match auth {
            AuthType::Sas => self
                .needed_secret("sas_token", "auth_type sas")
                .map(AzureAuth::Sas),
            AuthType::ManagedIdentity => Some(AzureAuth::ManagedIdentity {
                client_id: self.text("client_id"),
            }),
            AuthType::WorkloadIdentity => Some(AzureAuth::WorkloadIdentity {
                tenant_id: self.tenant(),
                client_id: self.text("client_id"),
            }),
            AuthType::ClientSecret => {
                let tenant_id = self.tenant();
                let client_id = self.text("client_id");
                for (key, what) in [
                    ("tenant_id", "the directory (tenant) ID of the application"),
                    ("client_id", "the application (client) ID"),
                ] {
                    if self.properties.get(key).is_none() {
                        self.problem(
                            key,
                            format!("is missing: auth_type client_secret needs it, {what}"),
                        );
                    }
                }
                let secret = self.needed_secret("client_secret", "auth_type client_secret");
                Some(AzureAuth::ClientSecret {
                    tenant_id: tenant_id?,
                    client_id: client_id?,
                    secret: secret?,
                })
            }
            _ if emulator && self.properties.get("shared_key").is_none() => Some(
                AzureAuth::SharedKey(SecretSource::Value(Secret::new(EMULATOR_KEY))),
            ),
            _ => self
                .needed_secret("shared_key", "auth_type key")
                .map(AzureAuth::SharedKey),
        };
        let endpoint = self.url("endpoint");
        Some((account?, auth?, endpoint, emulator))
    }

    fn azure_by_connection_string(&mut self) -> Option<AzurePlace> {
        const KEY: &str = "connection_string";
        let source = self.needed_secret(KEY, "auth_type connection_string")?;
        let (what, parsed) = match &source {
            SecretSource::Value(text) => (
                "the value".to_owned(),
                ConnectionString::parse(text.expose()),
            ),
            SecretSource::File(path) => {
                // That it can be read was seen just now; what it holds may be no text.
                let text = fs::read(path).unwrap_or_default();
                (
                    format!("the content of '{}'", path.display()),
                    ConnectionString::parse(&String::from_utf8_lossy(&text)),
                )
            }
        };
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(wrong) => {
                self.problem(KEY, format!("{what} {wrong}"));
                return None;
            }
        };
        for key in ["endpoint", "emulator_mode"] {
            if self.properties.get(key).is_some() {
                self.problem(
                    key,
                    "does nothing beside connection_string, which says where the service is: remove it",
                );
            }
        }
        if let Some(endpoint) = &parsed.endpoint
            && !is_full_url(endpoint)
        {
            self.problem(
                KEY,
                format!(
                    "{what} holds a BlobEndpoint that is no full URL; write https://host[:port]"
                ),
            );
        }
        let named = self.text("account_name");
        if let (Some(named), Some(account)) = (&named, &parsed.account)
            && named != account
        {
            self.problem(
                "account_name",
                format!("'{named}', but connection_string says '{account}': keep one of them"),
            );
        }
        let Some(account) = parsed.account.or(named) else {
            self.problem(
                "account_name",
                "is missing: connection_string does not say it",
            );
            return None;
        };
        let auth = AzureAuth::ConnectionString(source);
        Some((account, auth, parsed.endpoint, parsed.emulator))
    }

    /// A tenant's id or domain; it becomes part of an address.
    fn tenant(&mut self) -> Option<String> {
        let tenant = self.text("tenant_id")?;
        if !is_tenant(&tenant) {
            self.problem("tenant_id", format!("'{tenant}' {NO_TENANT}"));
            return None;
        }
        Some(tenant)
    }

    fn needed_secret(&mut self, key: &'static str, because: &str) -> Option<SecretSource> {
        if self.properties.get(key).is_none() {
            self.problem(key, format!("is missing: {because} needs it; write the value, or @/path/to/a/file that holds it"));
        }
        self.secret(key)
    }

    fn concurrency(&mut self) -> Option<usize> {
        let value = self.text("concurrency")?;
        if value.eq_ignore_ascii_case("auto") {
            return None;
        }
        match value.parse() {
            Ok(n @ 1..=64) => Some(n),
            _ => {
                self.problem(
                    "concurrency",
                    format!("'{value}' is neither auto nor a number from 1 to 64"),
                );
                None
            }
        }
    }

    fn metrics_log_interval(&mut self) -> Option<Duration> {
        const KEY: &str = "metrics_log_interval";
        let value = self.text(KEY)?;
        if value.eq_ignore_ascii_case("off") || value == "0" {
            return Some(Duration::ZERO);
        }
        Some(self.time_in(KEY, Some(value), 0, 1..=86_400))
    }

    /// `host:port`. Without a host it is this machine alone that may ask; a name would leave open who may.
    fn metrics_listen(&mut self) -> Option<SocketAddr> {
        let value = self.text("metrics_listen")?;
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        let (host, port) = value.rsplit_once(':').unwrap_or(("", &value));
        let host = match host {
            "" => Some(here),
            "localhost" => Some(here),
            host => match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
                Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::from),
                None => host.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            },
        };
        let address = host.zip(port.parse().ok()).map(SocketAddr::from);
        if address.is_none() {
            self.problem(
                "metrics_listen",
                format!(
                    "'{value}' is no address: write 127.0.0.1:9464, or another IP address of this machine and a \
                     port; a port alone is one of 127.0.0.1"
                ),
            );
        }
        address
    }

    fn instance(&mut self, destination: Option<&Destination>) -> String {
        let name = self.text("instance").unwrap_or_else(|| match destination {
            Some(Destination::Firehose(firehose)) => {
                let stream = self.properties.get("delivery_stream").unwrap_or_default();
                format!(
                    "firehose-{}",
                    firehose.delivery_stream.fixed().unwrap_or(stream)
                )
            }
            Some(Destination::Blob { blob, .. }) => blob.store.to_string(),
            None => String::new(),
        });
        stream_name(&name.replace(":///", "-").replace("://", "-"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Firehose,
    Blob,
}

/// The values of `auth_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AuthType {
    Key,
    Sas,
    ConnectionString,
    ManagedIdentity,
    WorkloadIdentity,
    ClientSecret,
}

impl AuthType {
    fn name(self) -> &'static str {
        match self {
            AuthType::Key => "key",
            AuthType::Sas => "sas",
            AuthType::ConnectionString => "connection_string",
            AuthType::ManagedIdentity => "managed_identity",
            AuthType::WorkloadIdentity => "workload_identity",
            AuthType::ClientSecret => "client_secret",
        }
    }
}

/// Account, identity, endpoint, and whether it is the emulator.
type AzurePlace = (String, AzureAuth, Option<String>, bool);

/// Where an instance keeps what must outlive it, in a folder of its own.
const STATE_DIR: &str = "/var/lib/ferry";

/// Against level 1 this costs 7% more CPU for all that an output does, and its bodies of structured logs are
/// 3% smaller (`make bench-host`).
const GZIP_LEVEL: u32 = 2;
const ZSTD_LEVEL: i32 = 1;

/// Azurite's account, which is no secret: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
pub const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
/// The key of [`EMULATOR_ACCOUNT`].
pub const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// 3 to 63 letters, digits and single hyphens, or one of the service's own that begin with `$`.
/// https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
fn is_container_name(name: &str) -> bool {
    let plain = name.strip_prefix('$').unwrap_or(name);
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (3..=63).contains(&name.len()) && plain.split('-').all(part)
}

/// Whether something can be a tenant's id or domain.
pub fn is_tenant(tenant: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
    !tenant.is_empty() && tenant.bytes().all(fits) && tenant.bytes().any(|b| b != b'.')
}

/// What is said of what is not [`is_tenant`].
pub const NO_TENANT: &str =
    "is no tenant: write the directory (tenant) ID, or a domain such as contoso.onmicrosoft.com";

fn is_full_url(value: &str) -> bool {
    let rest = value
        .strip_prefix("https://")
        .or_else(|| value.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty()) && value.parse::<hyper::Uri>().is_ok()
}

/// The default of `memory_limit`.
pub(crate) const MEMORY_LIMIT: usize = 64_000_000;

/// Of `memory_limit`, what open objects may hold together with those that are being sent: three eighths. The
/// rest is for what is read and encoded meanwhile, and for buffers. With a half, a host at full speed was seen to
/// grow by more than `memory_limit`.
pub(crate) const fn open_objects(memory_limit: usize) -> usize {
    memory_limit / 8 * 3
}

/// An address for a message. People write passwords before the `@` and signatures behind the `?`.
pub(crate) fn without_secrets(url: &str) -> String {
    let shown = url.split('?').next().unwrap_or_default();
    match shown.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => shown.to_owned(),
    }
}

fn bad_url(url: &str) -> String {
    let url = without_secrets(url);
    format!(
        "'{url}' is not known; it may be az://container/prefix, s3://bucket/prefix, gs://bucket/prefix or file:///folder"
    )
}

/// Characters in a stream's name:
/// https://docs.aws.amazon.com/firehose/latest/APIReference/API_CreateDeliveryStream.html
const MAX_STREAM_NAME: usize = 64;

/// `name` with what a stream's name may not hold replaced, and cut to its length.
pub fn stream_name(name: &str) -> String {
    name.chars()
        .take(MAX_STREAM_NAME)
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' => c,
            _ => '-',
        })
        .collect()
}

/// Checks PEM certificates of a private CA, and says what is wrong with them. The AWS client panics on
/// what does not pass.
pub fn check_ca(pem: &[u8]) -> Result<(), String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("is not PEM: {error:?}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("holds a certificate that cannot be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err("holds no certificate: give PEM, -----BEGIN CERTIFICATE-----".into());
    }
    Ok(())
}

/// `4M`, `500K`, `1GB`, `1.5M` or plain bytes, as the host reads them: K is 1,000.
pub(crate) fn parse_size(value: &str) -> Option<usize> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match value[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 1.0,
        "K" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        _ => return None,
    };
    let number: f64 = digits.parse().ok()?;
    let bytes = number * unit;
    (0.0..1e15).contains(&bytes).then_some(bytes as usize)
}

/// `30`, `500ms`, `30s`, `5m`, `1h` or `1d`.
fn parse_time(value: &str) -> Option<Duration> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis = match value[digits.len()..].to_ascii_lowercase().as_str() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let number = digits.parse::<u64>().ok()?;
    Some(Duration::from_millis(number.checked_mul(millis)?))
}

#[cfg(test)]
mod tests;
