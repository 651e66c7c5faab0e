//! The table of keys, with a row for each key and all its properties.
//!
//! It drives the reader, its problems, `ferry check`, migration, replay and the reference in `docs/configuration.md`. A
//! new key needs one row here, and its use.
//!
//! Only this file can create a [`Key`], and the reader accepts nothing else, so that a key outside of the table cannot
//! be read.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use super::value::{AuthType, FLAGS};
use super::{
    Addressing, Aggregation, Algorithm, AzureCloud, DestinationKind, Encryption,
    MEMORY_LIMIT_BYTES, MissingWord, ObjectFormat, Place, Properties,
};

/// A key of the configuration. `T` is the type of its value.
#[derive(Debug)]
pub struct Key<T: ?Sized = dyn ValueType> {
    /// The name, in lower case.
    pub name: &'static str,
    /// Names of other plugins with the same meaning.
    pub aliases: &'static [&'static str],
    /// The section of the reference.
    pub section: Section,
    /// The destinations it applies to.
    pub scope: Scope,
    /// Whether it applies with `spool on` only.
    pub spooled: bool,
    /// Whether every replay of dead letters keeps it. A key of the records' contents without it is left out only if the
    /// letters are lines already.
    pub replayed: bool,
    /// The alternative, for a known key that is not supported.
    pub instead: Option<&'static str>,
    /// The meaning, in Markdown.
    pub doc: &'static str,
    /// An example value; empty where there is no need for one.
    pub example: &'static str,
    default: Option<&'static str>,
    /// The type of its value.
    pub value: T,
}

/// The type of a value.
pub trait ValueType: std::fmt::Debug + Sync {
    /// Returns the valid values, in Markdown.
    fn words(&self) -> String;

    /// Returns the default; `None` where the row describes it in words, or there is none.
    fn default(&self) -> Option<String> {
        None
    }

    /// Whether the value must never be shown.
    fn is_secret(&self) -> bool {
        false
    }
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug)]
pub struct Flag(pub(super) Option<bool>);

/// One of several words.
#[derive(Clone, Copy, Debug)]
pub struct Choice<V: 'static> {
    /// The words and their values.
    pub(super) words: &'static [(&'static str, V)],
    /// Words of other plugins.
    pub(super) also: &'static [(&'static str, V)],
}

/// A size in bytes, such as `64M`.
#[derive(Clone, Debug)]
pub struct Size {
    pub(super) default: usize,
    pub(super) range: RangeInclusive<usize>,
}

/// A part of another limit: a size such as `500M`, or a percentage of it such as `50%`.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// The key of the other limit.
    pub(super) of: &'static str,
    /// In percent.
    pub(super) default: u64,
    /// The smallest size in bytes; the largest is the other limit.
    pub(super) least: u64,
}

/// A time, such as `30s`.
#[derive(Clone, Debug)]
pub struct Time {
    /// In seconds.
    pub(super) default: u64,
    /// In seconds.
    pub(super) range: RangeInclusive<u64>,
}

/// An interval, or `off`.
#[derive(Clone, Debug)]
pub struct Interval {
    /// In seconds.
    pub(super) range: RangeInclusive<u64>,
}

/// A number, or `auto`.
#[derive(Clone, Debug)]
pub struct Count {
    pub(super) range: RangeInclusive<usize>,
}

/// Any text, with its description.
#[derive(Clone, Copy, Debug)]
pub struct Text(&'static str);

/// The full URL of a service.
#[derive(Clone, Copy, Debug)]
pub struct Url;

/// A template of a name.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub(super) with_time: bool,
}

/// A secret, or `@/path` of the file that contains it.
#[derive(Clone, Copy, Debug)]
pub struct SecretText;

impl ValueType for Flag {
    fn words(&self) -> String {
        "`on` or `off`".into()
    }

    fn default(&self) -> Option<String> {
        let on = self.0?;
        FLAGS
            .iter()
            .find(|(_, flag)| *flag == on)
            .map(|(word, _)| (*word).to_owned())
    }
}

impl<V: std::fmt::Debug + Sync> ValueType for Choice<V> {
    fn words(&self) -> String {
        let words: Vec<_> = self
            .words
            .iter()
            .map(|(word, _)| format!("`{word}`"))
            .collect();
        one_of(&words)
    }
}

impl ValueType for Size {
    fn words(&self) -> String {
        format!(
            "size, {} to {}",
            size(*self.range.start()),
            size(*self.range.end())
        )
    }

    fn default(&self) -> Option<String> {
        Some(size(self.default))
    }
}

impl ValueType for Share {
    fn words(&self) -> String {
        format!(
            "percentage of `{of}`, 1% to 100%, or size, {} to `{of}`",
            size(usize::try_from(self.least).unwrap_or(usize::MAX)),
            of = self.of
        )
    }

    fn default(&self) -> Option<String> {
        Some(format!("{}%", self.default))
    }
}

impl ValueType for Time {
    fn words(&self) -> String {
        format!(
            "time, {} to {}",
            time(*self.range.start()),
            time(*self.range.end())
        )
    }

    fn default(&self) -> Option<String> {
        Some(time(self.default))
    }
}

impl ValueType for Interval {
    fn words(&self) -> String {
        format!(
            "time, {} to {}, or `off`",
            time(*self.range.start()),
            time(*self.range.end())
        )
    }
}

impl ValueType for Count {
    fn words(&self) -> String {
        format!("{} to {}, or `auto`", self.range.start(), self.range.end())
    }

    fn default(&self) -> Option<String> {
        Some("auto".into())
    }
}

impl ValueType for Text {
    fn words(&self) -> String {
        self.0.into()
    }
}

impl ValueType for Url {
    fn words(&self) -> String {
        "full URL".into()
    }
}

impl ValueType for Name {
    fn words(&self) -> String {
        match self.with_time {
            true => "template with strftime".into(),
            false => "template".into(),
        }
    }
}

impl ValueType for SecretText {
    fn words(&self) -> String {
        "secret, or `@/path` of a file that contains it".into()
    }

    fn is_secret(&self) -> bool {
        true
    }
}

/// A section of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The destination.
    Destination,
    /// The contents of records.
    Content,
    /// The behaviour.
    Behaviour,
    /// AWS, for Firehose and for `s3://`.
    Aws,
    /// Firehose only.
    Firehose,
    /// Blob stores.
    Blob,
    /// S3 only.
    S3,
    /// Google Cloud Storage only.
    Gcs,
    /// Azure only.
    Azure,
    /// Known keys that are not supported.
    Refused,
}

impl Section {
    /// All sections, in the order of the reference, with their headings.
    const ALL: [(Section, &str); 10] = [
        (Section::Destination, "Destination"),
        (Section::Content, "Content"),
        (Section::Behaviour, "Behaviour"),
        (Section::Firehose, "Firehose"),
        (Section::Aws, "AWS (Firehose and `s3://`)"),
        (Section::Blob, "Blob stores"),
        (Section::S3, "S3"),
        (Section::Gcs, "Google Cloud Storage"),
        (Section::Azure, "Azure Blob"),
        (Section::Refused, "Keys of other plugins that are refused"),
    ];
}

/// The destinations that a key applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All destinations.
    All,
    /// All but `file://`.
    Remote,
    /// Firehose.
    Firehose,
    /// Firehose and `s3://`.
    Aws,
    /// All blob stores.
    Blob,
    /// All blob stores but `file://`.
    Stores,
    /// S3 and Azure Blob.
    S3OrAzure,
    /// S3 and Google Cloud Storage.
    S3OrGcs,
    /// S3.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob.
    Azure,
}

impl Scope {
    /// Whether a key of this scope applies to `place`.
    pub fn includes(self, place: Place) -> bool {
        match self {
            Scope::All => true,
            Scope::Remote => place != Place::File,
            Scope::Firehose => place == Place::Firehose,
            Scope::Aws => matches!(place, Place::Firehose | Place::S3),
            Scope::Blob => place != Place::Firehose,
            Scope::Stores => matches!(place, Place::S3 | Place::Gcs | Place::Azure),
            Scope::S3OrAzure => matches!(place, Place::S3 | Place::Azure),
            Scope::S3OrGcs => matches!(place, Place::S3 | Place::Gcs),
            Scope::S3 => place == Place::S3,
            Scope::Gcs => place == Place::Gcs,
            Scope::Azure => place == Place::Azure,
        }
    }

    /// Returns the wording of the reference.
    fn words(self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::Remote => "all but `file://`",
            Scope::Firehose => "Firehose",
            Scope::Aws => "Firehose, `s3://`",
            Scope::Blob => "blob stores",
            Scope::Stores => "blob stores but `file://`",
            Scope::S3OrAzure => "`s3://`, `az://`",
            Scope::S3OrGcs => "`s3://`, `gs://`",
            Scope::S3 => "`s3://`",
            Scope::Gcs => "`gs://`",
            Scope::Azure => "`az://`",
        }
    }
}

const fn key<T>(name: &'static str, section: Section, value: T) -> Key<T> {
    Key {
        name,
        aliases: &[],
        section,
        scope: match section {
            Section::Firehose => Scope::Firehose,
            Section::Aws => Scope::Aws,
            Section::Blob => Scope::Blob,
            Section::S3 => Scope::S3,
            Section::Gcs => Scope::Gcs,
            Section::Azure => Scope::Azure,
            Section::Destination | Section::Content | Section::Behaviour | Section::Refused => {
                Scope::All
            }
        },
        spooled: false,
        replayed: true,
        instead: None,
        doc: "",
        example: "",
        default: None,
        value,
    }
}

/// Setters of a row's other fields. The `..` syntax cannot be used, since it would not change the type of the value.
impl<T> Key<T> {
    const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    const fn spooled(mut self) -> Self {
        self.spooled = true;
        self.replayed = false;
        self
    }

    /// Marks a key that would change a dead letter's line, or that belongs to the output that wrote it.
    const fn not_replayed(mut self) -> Self {
        self.replayed = false;
        self
    }

    const fn instead(mut self, remedy: &'static str) -> Self {
        self.instead = Some(remedy);
        self
    }

    const fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    /// Describes the default in words.
    const fn default(mut self, words: &'static str) -> Self {
        self.default = Some(words);
        self
    }
}

impl<T: ?Sized> Key<T> {
    /// Returns all names, the key's own first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<T> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    /// Whether it changes the contents of lines, so that a replay of lines must drop it.
    pub fn affects_lines(&self) -> bool {
        self.section == Section::Content && !self.replayed
    }
}

impl Key {
    /// Returns the default, in Markdown; empty where there is none.
    pub fn default_words(&self) -> String {
        match (self.default, self.value.default()) {
            (Some(words), _) => words.to_owned(),
            (None, Some(value)) => format!("`{value}`"),
            (None, None) => String::new(),
        }
    }
}

/// Declares the rows, and [`ALL`] with all of them.
macro_rules! keys {
    ($($(#[$meta:meta])* $row:ident: $type:ty = $key:expr;)*) => {
        $($(#[$meta])* pub(crate) static $row: Key<$type> = $key;)*

        /// All keys, in the order of the reference.
        pub static ALL: &[&Key] = &[$(&$row),*];
    };
}

keys! {
    DESTINATION: Choice<DestinationKind> = key("destination", Section::Destination, Choice {
        words: &[("firehose", DestinationKind::Firehose), ("blob", DestinationKind::Blob)],
        also: &[],
    })
    .doc("the kind of destination")
    .default("inferred from `delivery_stream`, `url` or `container_name`")
    .example("blob");

    DELIVERY_STREAM: Name = key("delivery_stream", Section::Destination, Name { with_time: false })
        .scope(Scope::Firehose)
        .doc("the delivery stream: a name or a template")
        .example("app-{tag[1]}");

    URL: Text = key("url", Section::Destination, Text(
        "`az://container/prefix`, `s3://bucket/prefix`, `gs://bucket/prefix` or `file:///folder`",
    ))
    .scope(Scope::Blob)
    .doc("the blob store, and the prefix of every object's name")
    .example("s3://logs/app");

    BUCKET: Text = key("bucket", Section::Destination, Text("name"))
        .scope(Scope::S3)
        .doc("the bucket of S3, if there is no `url`: as in Fluent Bit's `s3`")
        .example("logs");

    PATH: Name = key("path", Section::Destination, Name { with_time: true })
        .scope(Scope::Blob)
        .doc("the folder of each object; times are the **event's** (in `time_zone`, UTC by default)")
        .default("`{tag}/%Y/%m/%d/%H`")
        .example("{record.service}/%F");

    TAG_DELIMITERS: Text = key("tag_delimiters", Section::Destination, Text("punctuation characters"))
        .aliases(&["s3_key_format_tag_delimiters"])
        .doc("the characters that separate the parts of a tag, for `{tag[1]}` in names")
        .default("`.`")
        .example(".-");

    TIME_ZONE: Text = key("time_zone", Section::Destination, Text("IANA name"))
        .doc("the time zone of `path` and of a strftime `time_key_format`, with summer time. The data is Ferry's own, so that \
              no files are needed")
        .default("`UTC`")
        .example("Asia/Seoul");

    INSTANCE: Text = key("instance", Section::Destination, Text("text"))
        .not_replayed()
        .doc("the name of this output in the log and in the default of `spool_dir`")
        .default("the destination: `firehose-STREAM`, or the store's address, such as `s3-my-logs`, with other characters as `-`; \
                  with a prefix in `url`, or with a spool and `path`, these and a hash of them, such as `s3-my-logs-app-1f0c63d2`, so that \
                  outputs into one bucket have folders of their own")
        .example("orders");

    FORMAT: Choice<ObjectFormat> = key("format", Section::Content, Choice {
        words: &[
            ("json_lines", ObjectFormat::JsonLines),
            #[cfg(feature = "parquet")]
            ("parquet", ObjectFormat::Parquet),
        ],
        also: &[],
    })
        .not_replayed()
        .doc("one JSON object per line, or tables: see [Parquet](parquet.md). `parquet` needs a blob store and `spool on`")
        .default("`json_lines`");

    PARQUET_COLUMNS: Text = key("parquet_columns", Section::Content, Text("columns, or `@/path` of the file that lists them"))
        .not_replayed()
        .doc("for `format parquet`: the fields that get a column, as `name type`, with `bloom` for columns that are searched for \
              single values, and `= path` for fields with other names; separated by commas, in a file also by lines. Types \
              are `string`, `int`, `float`, `bool`, `timestamp` (`_s`, `_ms`, `_us`, `_ns` for epochs) and `json`")
        .default("none: `time`, `tag` and `rest`")
        .example("level string, status int = response.statusCode");

    PARQUET_REST: Text = key("parquet_rest", Section::Content, Text("name"))
        .not_replayed()
        .doc("for `format parquet`: the column with everything that has no column of its own, and every value that does not \
              fit its column, as JSON text")
        .default("`rest`")
        .example("other");

    LOG_KEY: Text = key("log_key", Section::Content, Text("key of a record"))
        .not_replayed()
        .doc("send only the value of this key: text as it is, on one line, anything else as JSON. A record without it, or \
              whose value is null or empty, is counted and skipped")
        .example("log");

    DATA_KEYS: Text = key("data_keys", Section::Content, Text("keys, separated by commas"))
        .not_replayed()
        .doc("send only these top-level keys. A record with none of them is counted and skipped")
        .default("all")
        .example("level,message");

    TIME_KEY: Text = key("time_key", Section::Content, Text("key"))
        .aliases(&["date_key"])
        .not_replayed()
        .doc("add the event's time under this key")
        .example("time");

    TIME_KEY_FORMAT: Text = key("time_key_format", Section::Content, Text("strftime, `epoch` or `epoch_ms`"))
        .not_replayed()
        .doc("how that time is written: strftime (in `time_zone`) with `%3N`, `%6N`, `%9N`, `%L`; or a number of seconds or \
              milliseconds")
        .default("as `2025-07-02T20:44:31.123Z`")
        .example("%F %T.%3N");

    TAG_KEY: Text = key("tag_key", Section::Content, Text("key"))
        .not_replayed()
        .doc("add the tag under this key")
        .example("tag");

    METADATA_KEY: Text = key("metadata_key", Section::Content, Text("key"))
        .not_replayed()
        .doc("add the record's metadata and its OTLP resource and scope under this key")
        .example("meta");

    REPLACE_DOTS: Text = key("replace_dots", Section::Content, Text("text"))
        .not_replayed()
        .doc("replace dots in keys with this text, at every depth")
        .example("_");

    LOWERCASE_KEYS: Flag = key("lowercase_keys", Section::Content, Flag(Some(false)))
        .not_replayed()
        .doc("write keys in lower case, at every depth, for readers that do not tell `level` from `Level` (Glue, Athena, Spark): \
              of several keys that are then the same, the last one is written")
        .example("on");

    COMPRESSION: Choice<Algorithm> = key("compression", Section::Content, Choice {
        words: &[("none", Algorithm::None), ("gzip", Algorithm::Gzip), ("zstd", Algorithm::Zstd), ("snappy", Algorithm::Snappy)],
        also: &[("off", Algorithm::None)],
    })
    .aliases(&["compress"])
    .doc("the compression of what is sent; `gzip` is for lines only, `snappy` for `format parquet` only")
    .default("`none` (Firehose), `gzip` (blob stores), `zstd` (`format parquet`)")
    .example("zstd");

    COMPRESS_BLOB: Flag = key("compress_blob", Section::Content, Flag(None))
        .doc("`on` means `compression gzip`, unless `compression` is set")
        .default("`off`");

    COMPRESSION_LEVEL: Text = key("compression_level", Section::Content, Text("1 to 12 (gzip), -7 to 19 (zstd)"))
        .doc("the level: higher is smaller and slower")
        .default("`2` (gzip), `1` (zstd)")
        .example("6");

    GZIP_MEMBERS: Choice<bool> = key("gzip_members", Section::Content, Choice {
        words: &[("one", true), ("many", false)],
        also: &[],
    })
        .spooled()
        .scope(Scope::Blob)
        .doc("whether an object of gzip is one member, or has one for each 256 KiB of lines, at which readers stop that know one \
              member only")
        .default("`one` with `compression_level` 2, 3 and 4, `many` with others")
        .example("many");

    SPOOL: Flag = key("spool", Section::Behaviour, Flag(None))
        .aliases(&["buffering_enabled"])
        .not_replayed()
        .doc("keep chunks on disk, acknowledge them once they are synced, and deliver them at Ferry's own pace")
        .default("`on` (blob stores), `off` (Firehose)")
        .example("on");

    SPOOL_DIR: Text = key("spool_dir", Section::Behaviour, Text("folder"))
        .aliases(&["buffer_dir"])
        .spooled()
        .doc("the spool's folder, on a local disk, used by no other output")
        .default("`/var/lib/ferry/<instance>`")
        .example("/data/ferry");

    SPOOL_LIMIT: Size = key("spool_limit", Section::Behaviour, Size {
        default: 1_000_000_000,
        range: 16_000_000..=100_000_000_000_000,
    })
    .aliases(&["store_dir_limit_size"])
    .spooled()
    .doc("the size of the spool's log and its `quarantine` folder. Up to a quarter of it may be finished segments kept for \
          reuse (`*.spare`, not counted in `ferry_spool_bytes`). Another 1 MiB is kept as a `reserve`, so that a disk that \
          fills up can be emptied again, and a few KiB as `manifest.0` and `manifest.1`, which list the segments that \
          should exist. Events that wait for an unavailable stream or folder are written again at the log's head, and may \
          pass the limit by a sixteenth. When the spool is full, flushes return RETRY")
    .example("8G");

    TARGET_LIMIT: Share = key("target_limit", Section::Behaviour, Share {
        of: "spool_limit",
        default: 50,
        least: 1_000_000,
    })
    .spooled()
    .doc("with several streams or folders: the part of `spool_limit` that may wait for one of them, because it is \
          unavailable or slow. Beyond it, chunks for it get RETRY and stay with Fluent Bit, and those for others are \
          accepted. If records decide where they go, chunks are accepted until another quarter of it waits; then those with \
          tags that such records came with get RETRY. The size is estimated from the records' sizes")
    .example("200M");

    FLUSH_DEADLINE: Time = key("flush_deadline", Section::Behaviour, Time { default: 30, range: 1..=3_600 })
        .doc("the longest that a flush waits before it returns RETRY; with a spool, a write that has begun may take longer")
        .example("20s");

    EXIT_DEADLINE: Time = key("exit_deadline", Section::Behaviour, Time { default: 10, range: 1..=600 })
        .doc("the longest that a shutdown takes: what is open is sealed and sent, the rest stays in the spool; without a \
              spool, flushes end within three quarters of it")
        .example("5s");

    MEMORY_LIMIT: Size = key("memory_limit", Section::Behaviour, Size {
        default: MEMORY_LIMIT_BYTES,
        range: 4_000_000..=64_000_000_000,
    })
    .doc("the memory for lines, requests and open objects; anything beyond it waits. Open objects may take three eighths of \
          it. With `spool on` and several streams, each stream has a share. On top of it, the process needs at most about \
          32 MB for a chunk, for what is being encoded, and for buffers. An event that is larger than the limit is processed \
          alone")
    .example("32M");

    CONCURRENCY: Count = key("concurrency", Section::Behaviour, Count { range: 1..=64 })
        .doc("the number of requests in flight; `auto` adapts between 1 and 8 (to a blob store with a spool, 64), and halves when the \
              destination throttles. With \
              several streams, `auto` is 1 to 8 each, 64 together with at most \
              64 MiB of records; a number is for all together, and each has at most half of it")
        .example("4");

    DEAD_LETTER_DIR: Text = key("dead_letter_dir", Section::Behaviour, Text("folder"))
        .not_replayed()
        .doc("where dead letters are kept, as `dead-letters.ndjson`; without a spool, also the file with the sender's ID")
        .default("`dead-letters` in `spool_dir`, or in `/var/lib/ferry/<instance>` without a spool")
        .example("/data/dead");

    DEAD_LETTER_LIMIT: Size = key("dead_letter_limit", Section::Behaviour, Size {
        default: 256_000_000,
        range: 1_000_000..=1_000_000_000_000,
    })
    .not_replayed()
    .doc("the size of all dead letters. When it is reached, records that should become dead letters wait, and nothing \
          else does: in the spool, or in Fluent Bit, which gets RETRY for their chunk. The chunk's other records are \
          delivered once while Ferry runs, but again after a restart; so rather than raise the limit, which needs a \
          restart, move the `dead-letters*` files away. In the spool, the waiting letters go to its `quarantine` folder \
          before they can keep it from draining")
    .example("1G");

    METRICS_LISTEN: Text = key("metrics_listen", Section::Behaviour, Text("IP address and port"))
        .not_replayed()
        .doc("serve the metrics at `http://<this>/metrics`, and the health at `/ready`, `/live` and `/status.json`. `:9464` or `9464` is a port of 127.0.0.1, reachable only from \
              this machine; any other address must be written out, and causes a warning")
        .default("off")
        .example(":9464");

    READY_AFTER: Time = key("ready_after", Section::Behaviour, Time { default: 300, range: 1..=86_400 })
        .not_replayed()
        .doc("with `metrics_listen`: how long a destination may take nothing while something waits for it, before \
              `http://<metrics_listen>/ready` answers with 503. Where objects are built from a spool, `blob_max_age` is added")
        .example("2m");

    METRICS_LOG_INTERVAL: Interval = key("metrics_log_interval", Section::Behaviour, Interval { range: 1..=86_400 })
        .doc("how often the metrics are logged, in one line; `off` for never")
        .default("off; `5m` in a host without metrics")
        .example("1m");

    TLS_CA_FILE: Text = key("tls_ca_file", Section::Behaviour, Text("file"))
        .doc("PEM file with a private CA to trust as well")
        .default("the system's roots")
        .example("/etc/ca.pem");

    ENDPOINT: Url = key("endpoint", Section::Behaviour, Url)
        .scope(Scope::Remote)
        .doc("the address of the service, for private endpoints and emulators")
        .default("the region's or the store's")
        .example("https://vpce-0123.firehose.eu-west-1.vpce.amazonaws.com");

    AUTO_RETRY_REQUESTS: Flag = key("auto_retry_requests", Section::Behaviour, Flag(Some(true)))
        .doc("failed records are always retried: `off` is refused");

    AGGREGATION: Choice<Aggregation> = key("aggregation", Section::Firehose, Choice {
        words: &[("on", Aggregation::On), ("off", Aggregation::Off), ("auto", Aggregation::Auto)],
        also: &[
            ("true", Aggregation::On),
            ("yes", Aggregation::On),
            ("false", Aggregation::Off),
            ("no", Aggregation::Off),
        ],
    })
    .aliases(&["simple_aggregation"])
    .doc("how many lines a record holds: as many as fit (`on`), one (`off`), or as many as the stream's destination can \
          read (`auto`)")
    .default("`auto`")
    .example("on");

    LINGER: Time = key("linger", Section::Firehose, Time { default: 1, range: 0..=60 })
        .spooled()
        .doc("how long a request that is not full waits for more records")
        .example("200ms");

    MISSING_TARGET: Choice<MissingWord> = key("missing_target", Section::Firehose, Choice {
        words: &[
            ("hold", MissingWord::Hold),
            ("dead_letter", MissingWord::DeadLetter),
            ("fallback", MissingWord::Fallback),
        ],
        also: &[],
    })
    .spooled()
    .doc("with several streams: what happens to records whose stream does not exist (`ResourceNotFoundException`): they wait \
          in the spool until it does (`hold`), or, after `missing_target_after`, become dead letters, or are sent to \
          `missing_target_fallback`")
    .default("`hold`")
    .example("dead_letter");

    MISSING_TARGET_AFTER: Time = key("missing_target_after", Section::Firehose, Time { default: 3_600, range: 0..=2_592_000 })
        .spooled()
        .doc("how long a stream must not have existed before `missing_target` applies; until then, its records wait. A restart \
              begins anew")
        .example("10m");

    MISSING_TARGET_FALLBACK: Text = key("missing_target_fallback", Section::Firehose, Text("delivery stream"))
        .spooled()
        .doc("the stream that gets the records of streams that do not exist, with `missing_target fallback`")
        .example("app-unknown");

    REGION: Text = key("region", Section::Aws, Text("region"))
        .doc("the region of the stream or bucket")
        .default("from the environment, profile or instance")
        .example("eu-west-1");

    STS_ENDPOINT: Url = key("sts_endpoint", Section::Aws, Url)
        .doc("the address of STS, for assuming a role")
        .default("the region's")
        .example("https://sts.eu-west-1.amazonaws.com");

    PROFILE: Text = key("profile", Section::Aws, Text("name"))
        .doc("a profile in the shared configuration files")
        .example("logs");

    ROLE_ARN: Text = key("role_arn", Section::Aws, Text("ARN"))
        .doc("a role to assume")
        .example("arn:aws:iam::123456789012:role/logs");

    EXTERNAL_ID: Text = key("external_id", Section::Aws, Text("text"))
        .doc("the external ID that the role requires")
        .example("ferry");

    USE_FIPS_ENDPOINT: Flag = key("use_fips_endpoint", Section::Aws, Flag(None))
        .doc("use endpoints that are validated by FIPS 140-3")
        .default("as `AWS_USE_FIPS_ENDPOINT` or the profile says")
        .example("on");

    USE_DUALSTACK_ENDPOINT: Flag = key("use_dualstack_endpoint", Section::Aws, Flag(None))
        .doc("use endpoints that have IPv6 addresses, too")
        .default("as `AWS_USE_DUALSTACK_ENDPOINT` or the profile says")
        .example("on");

    BLOB_TYPE: Choice<()> = key("blob_type", Section::Blob, Choice {
        words: &[("block", ())],
        also: &[("blockblob", ())],
    })
    .doc("objects are whole block blobs")
    .default("`block`");

    BLOB_MAX_SIZE: Size = key("blob_max_size", Section::Blob, Size { default: 16_000_000, range: 10_000..=4_000_000_000 })
        .spooled()
        .doc("an object is sealed when it reaches this size, after compression; at most three eighths of `memory_limit`")
        .default("`16M` (`64M` for `format parquet`), or three eighths of `memory_limit` if that is less")
        .example("8M");

    BLOB_MAX_AGE: Time = key("blob_max_age", Section::Blob, Time { default: 300, range: 1..=86_400 })
        .aliases(&["upload_timeout"])
        .spooled()
        .doc("an object is sealed when its first line is this old; earlier if memory is full or the spool half full")
        .default("`5m`, `15m` for `format parquet`")
        .example("1m");

    CONTENT_TYPE: Text = key("content_type", Section::Blob, Text("media type"))
        .scope(Scope::Stores)
        .doc("the `Content-Type` of objects")
        .default("`application/x-ndjson`; `text/plain; charset=utf-8` with `log_key`")
        .example("application/json");

    CONTENT_ENCODING: Flag = key("content_encoding", Section::Blob, Flag(Some(true)))
        .scope(Scope::Stores)
        .doc("send the compression as `Content-Encoding`: `gzip` or `zstd`. Clients that decode it save plain text under a name \
              that ends in `.gz`; with `off`, what is read is what is stored")
        .example("off");

    SEND_CONTENT_MD5: Flag = key("send_content_md5", Section::Blob, Flag(Some(false)))
        .scope(Scope::Stores)
        .doc("send each object's `Content-MD5`, for stores or policies that require it. S3 always gets its SHA-256")
        .example("on");

    OBJECT_TAGS: Text = key("object_tags", Section::Blob, Text("`key=value` pairs, separated by commas; values may contain `{tag}` and `{tag[0]}`"))
        .scope(Scope::S3OrAzure)
        .doc("the tags of each object (S3), or its blob index tags (Azure); at most 10. If they contain `{tag}`, it must be a \
              folder of `path`, so that all records of an object have the same")
        .example("team=logs,source={tag}");

    OBJECT_METADATA: Text = key("object_metadata", Section::Blob, Text("`key=value` pairs, separated by commas; values may contain `{tag}` and `{tag[0]}`"))
        .scope(Scope::Stores)
        .doc("metadata of each object, besides Ferry's own `ferry_name`. `{tag}` is as in `object_tags`")
        .example("owner=platform,source={tag}");

    STORAGE_CLASS: Text = key("storage_class", Section::Blob, Text("class"))
        .scope(Scope::S3OrGcs)
        .doc("the storage class of objects")
        .default("the bucket's, or the store's")
        .example("STANDARD");

    SSE: Choice<Encryption> = key("sse", Section::S3, Choice {
        words: &[
            ("AES256", Encryption::Aes256),
            ("aws:kms", Encryption::Kms),
            ("aws:kms:dsse", Encryption::KmsDsse),
        ],
        also: &[],
    })
    .doc("server-side encryption of objects, sent with each of them")
    .default("the bucket's")
    .example("aws:kms");

    SSE_KMS_KEY_ID: Text = key("sse_kms_key_id", Section::S3, Text("key ID, ARN or alias"))
        .doc("the KMS key, with `sse aws:kms` or `aws:kms:dsse`")
        .default("the account's `aws/s3`")
        .example("arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab");

    SSE_BUCKET_KEY: Flag = key("sse_bucket_key", Section::S3, Flag(None))
        .doc("whether objects are encrypted with a bucket key, with `sse aws:kms`")
        .default("the bucket's")
        .example("on");

    CANNED_ACL: Choice<&'static str> = key("canned_acl", Section::S3, Choice {
        words: &[
            ("private", "private"),
            ("public-read", "public-read"),
            ("public-read-write", "public-read-write"),
            ("authenticated-read", "authenticated-read"),
            ("aws-exec-read", "aws-exec-read"),
            ("bucket-owner-read", "bucket-owner-read"),
            ("bucket-owner-full-control", "bucket-owner-full-control"),
            ("log-delivery-write", "log-delivery-write"),
        ],
        also: &[],
    })
    .doc("the canned ACL of objects. Buckets refuse all but `bucket-owner-full-control` unless their ACLs are enabled")
    .default("none")
    .example("bucket-owner-full-control");

    REQUEST_PAYER: Flag = key("request_payer", Section::S3, Flag(Some(false)))
        .doc("pay for the requests to a bucket whose requester pays")
        .example("on");

    CONDITIONAL_PUT: Flag = key("conditional_put", Section::S3, Flag(Some(true)))
        .doc("write an object only if its name is free (`If-None-Match`). `off` is for stores that respond 501 to that: a \
              repeated put then overwrites the object with the same bytes")
        .example("off");

    S3_ADDRESSING: Choice<Addressing> = key("s3_addressing", Section::S3, Choice {
        words: &[
            ("auto", Addressing::Auto),
            ("path", Addressing::Path),
            ("virtual", Addressing::Virtual),
        ],
        also: &[],
    })
    .doc("where a URL has the bucket: in the path, in the host's name (`virtual`), or (`auto`) in the host's name at AWS if the \
          certificate covers it, and in the path at another `endpoint`")
    .default("`auto`")
    .example("virtual");

    KMS_KEY: Text = key("kms_key", Section::Gcs, Text("resource name"))
        .doc("the Cloud KMS key that encrypts objects")
        .default("the bucket's")
        .example("projects/p/locations/eu/keyRings/r/cryptoKeys/k");

    AZURE_CLOUD: Choice<AzureCloud> = key("azure_cloud", Section::Azure, Choice {
        words: &[
            ("public", AzureCloud::Public),
            ("china", AzureCloud::China),
            ("us_government", AzureCloud::UsGovernment),
        ],
        also: &[],
    })
    .doc("the cloud of the account, which decides the addresses of the store and of Microsoft Entra ID")
    .default("as `AZURE_AUTHORITY_HOST`, `AZURE_ENVIRONMENT` or `AZURE_CLOUD` says, or `public`")
    .example("china");

    ACCESS_TIER: Choice<&'static str> = key("access_tier", Section::Azure, Choice {
        words: &[("Hot", "Hot"), ("Cool", "Cool"), ("Cold", "Cold"), ("Archive", "Archive")],
        also: &[],
    })
    .doc("the access tier of objects")
    .default("the account's")
    .example("Cool");

    ENCRYPTION_SCOPE: Text = key("encryption_scope", Section::Azure, Text("name"))
        .doc("the encryption scope of objects")
        .default("the container's")
        .example("logs-scope");

    ACCOUNT_NAME: Text = key("account_name", Section::Azure, Text("name"))
        .doc("the storage account")
        .example("mylogs");

    CONTAINER_NAME: Text = key("container_name", Section::Azure, Text("name"))
        .doc("the container, if there is no `url`")
        .example("logs");

    AUTH_TYPE: Choice<AuthType> = key("auth_type", Section::Azure, Choice { words: &AuthType::WORDS, also: &[] })
        .doc("how requests are authenticated")
        .default("`key`, or `connection_string` if that is set")
        .example("workload_identity");

    SHARED_KEY: SecretText = key("shared_key", Section::Azure, SecretText)
        .doc("the account key; a file is read again when it changes")
        .example("@/run/secrets/key");

    SAS_TOKEN: SecretText = key("sas_token", Section::Azure, SecretText)
        .doc("a shared access signature")
        .example("@/run/secrets/sas");

    CONNECTION_STRING: SecretText = key("connection_string", Section::Azure, SecretText)
        .doc("the account, its address, and its key or signature, as the portal shows it; `UseDevelopmentStorage=true` is \
              Azurite")
        .example("@/run/secrets/connection");

    CLIENT_SECRET: SecretText = key("client_secret", Section::Azure, SecretText)
        .doc("the secret of a registered application")
        .example("@/run/secrets/client");

    TENANT_ID: Text = key("tenant_id", Section::Azure, Text("ID or domain"))
        .doc("the directory (tenant) of the identity, if `auth_type` requires it")
        .example("contoso.onmicrosoft.com");

    CLIENT_ID: Text = key("client_id", Section::Azure, Text("ID"))
        .doc("the identity, if `auth_type` requires it")
        .example("11111111-2222-3333-4444-555555555555");

    AUTO_CREATE_CONTAINER: Flag = key("auto_create_container", Section::Azure, Flag(Some(true)))
        .doc("create the container if it does not exist")
        .example("off");

    EMULATOR_MODE: Flag = key("emulator_mode", Section::Azure, Flag(Some(false)))
        .doc("use Azurite, with its well-known account")
        .example("on");

    // azure_blob counts its buffer before compression, in a file for each tag.
    UPLOAD_FILE_SIZE: Text = key("upload_file_size", Section::Refused, Text("size"))
        .instead("use blob_max_size, the size of an object as it is stored")
        .doc("the size of `azure_blob`'s files on disk");

    DATABASE_FILE: Text = key("database_file", Section::Refused, Text("file"))
        .instead("files are not tracked in a database; remove it")
        .doc("where `azure_blob` tracks files");

    PART_SIZE: Text = key("part_size", Section::Refused, Text("size"))
        .instead("objects are uploaded in one piece; remove it")
        .doc("the size of a part of an upload");

    CONFIGURATION_ENDPOINT_URL: Text = key("configuration_endpoint_url", Section::Refused, Text("URL"))
        .instead("write the settings into this section")
        .doc("where `azure_blob` fetches settings");
}

/// A key that Fluent Bit takes from any output's section.
#[derive(Debug)]
pub struct HostKey {
    /// The name, as in Fluent Bit's documentation; with `group`, the prefix of the group's names.
    pub name: &'static str,
    /// Whether it represents all names with this prefix.
    pub group: bool,
    /// The alternative, for a key of the host's own connections, which proxy outputs do not use.
    pub instead: Option<&'static str>,
    /// The values with which Fluent Bit 5.1.1 does not start; empty if there are none.
    pub stops: &'static str,
}

impl HostKey {
    const fn stops(mut self, with: &'static str) -> Self {
        self.stops = with;
        self
    }
}

const fn acts(name: &'static str) -> HostKey {
    HostKey {
        name,
        group: false,
        instead: None,
        stops: "",
    }
}

const fn idle(name: &'static str, group: bool, instead: &'static str) -> HostKey {
    HostKey {
        name,
        group,
        instead: Some(instead),
        stops: "",
    }
}

const OWN_CONNECTIONS: &str =
    "remove it; Ferry checks certificates and reads HTTP_PROXY and HTTPS_PROXY by itself";

const OWN_TLS: &str = "remove it; Ferry speaks HTTPS by itself, as the endpoint says";

/// Keys of Fluent Bit itself. A name precedes the group that it would belong to.
pub static HOST: &[HostKey] = &[
    acts("Match"),
    acts("Match_Regex"),
    acts("Alias"),
    acts("Log_Level").stops("an invalid level"),
    acts("Log_Suppress_Interval"),
    acts("Retry_Limit"),
    acts("Workers"),
    acts("storage.total_limit_size").stops("an invalid size"),
    idle("Host", false, "use endpoint, a full URL"),
    idle("Port", false, "use endpoint, a full URL"),
    idle("ipv6", false, OWN_CONNECTIONS),
    idle("tls", false, OWN_TLS).stops("`on`"),
    idle("tls.ca_file", false, "use tls_ca_file"),
    idle("tls.", true, OWN_CONNECTIONS),
    idle("net.", true, OWN_CONNECTIONS).stops("an unknown name"),
    idle("oauth2", true, OWN_CONNECTIONS).stops("an unknown name"),
];

/// A key of another output without a counterpart.
#[derive(Debug)]
pub struct ForeignKey {
    /// The name.
    pub name: &'static str,
    /// The output that has it.
    pub plugin: &'static str,
    /// The reason why there is no counterpart, or the alternative.
    pub why: &'static str,
}

impl ForeignKey {
    /// Whether it is refused, because objects would not be where, or what, it says. The other keys cause a warning.
    pub fn is_refused(&self) -> bool {
        self.plugin == "s3"
    }
}

const fn foreign(plugin: &'static str, name: &'static str, why: &'static str) -> ForeignKey {
    ForeignKey { name, plugin, why }
}

/// Keys of `azure_blob`, AWS's Go `firehose` and `s3`.
pub static FOREIGN: &[ForeignKey] = &[
    foreign(
        "azure_blob",
        "file_delivery_attempt_limit",
        "nothing is given up",
    ),
    foreign(
        "azure_blob",
        "part_delivery_attempt_limit",
        "nothing is given up",
    ),
    foreign(
        "azure_blob",
        "upload_parts_timeout",
        "the timeout of a request depends on its size",
    ),
    foreign(
        "azure_blob",
        "upload_part_freshness_limit",
        "there are no parts",
    ),
    foreign(
        "azure_blob",
        "configuration_endpoint_username",
        "settings are not fetched",
    ),
    foreign(
        "azure_blob",
        "configuration_endpoint_password",
        "settings are not fetched",
    ),
    foreign(
        "azure_blob",
        "configuration_endpoint_bearer_token",
        "settings are not fetched",
    ),
    foreign(
        "azure_blob",
        "azure_blob_buffer_key",
        "the spool needs no keys",
    ),
    foreign(
        "azure_blob",
        "buffer_file_delete_early",
        "the spool keeps everything that is not acknowledged",
    ),
    foreign("azure_blob", "blob_uri_length", "names have a fixed length"),
    foreign(
        "azure_blob",
        "unify_tag",
        "objects are sorted by path; write a path without $TAG to mix tags",
    ),
    foreign("azure_blob", "scheduler_max_retries", "nothing is given up"),
    foreign(
        "azure_blob",
        "delete_on_max_upload_error",
        "nothing is deleted",
    ),
    foreign(
        "azure_blob",
        "io_timeout",
        "the timeout of a request depends on its size",
    ),
    foreign(
        "firehose",
        "experimental_concurrency",
        "the number of requests in flight adapts by itself; see concurrency",
    ),
    foreign(
        "firehose",
        "experimental_concurrency_retries",
        "nothing is given up",
    ),
    foreign(
        "firehose",
        "http_request_timeout",
        "the timeout of a request is 20 s",
    ),
    foreign(
        "s3",
        "total_file_size",
        "use blob_max_size, the size of an object as it is stored",
    ),
    foreign(
        "s3",
        "upload_chunk_size",
        "objects are uploaded in one piece",
    ),
    foreign("s3", "use_put_object", "objects are uploaded in one piece"),
    foreign(
        "s3",
        "s3_key_format",
        "use path; a name contains its time and a token",
    ),
    foreign("s3", "static_file_path", "a name contains a token"),
    foreign("s3", "json_date_key", "use time_key"),
    foreign("s3", "json_date_format", "use time_key_format"),
    foreign("s3", "store_dir", "use spool_dir"),
    foreign("s3", "quarantine_dir_limit_size", "use dead_letter_limit"),
    foreign(
        "s3",
        "preserve_data_ordering",
        "objects are named by the time of their first event",
    ),
    foreign("s3", "retry_exhausted_action", "nothing is given up"),
    foreign("s3", "blob_database_file", "no files are tracked"),
    foreign(
        "s3",
        "authorization_endpoint_url",
        "credentials come from the AWS SDK's chain",
    ),
    foreign(
        "s3",
        "authorization_endpoint_username",
        "credentials come from the AWS SDK's chain",
    ),
    foreign(
        "s3",
        "authorization_endpoint_password",
        "credentials come from the AWS SDK's chain",
    ),
    foreign(
        "s3",
        "authorization_endpoint_bearer_token",
        "credentials come from the AWS SDK's chain",
    ),
];

/// Returns the key with this name or alias, ignoring case.
pub fn find(name: &str) -> Option<&'static Key> {
    let has = |key: &&&Key| key.names().any(|known| known.eq_ignore_ascii_case(name));
    ALL.iter().find(has).copied()
}

/// Returns Fluent Bit's own key of this name, or the group that it belongs to.
pub fn find_host(name: &str) -> Option<&'static HostKey> {
    HOST.iter().find(|key| match key.group {
        true => {
            let prefix = name.get(..key.name.len());
            prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(key.name))
        }
        false => name.eq_ignore_ascii_case(key.name),
    })
}

/// Returns the key of another output with this name.
pub fn find_foreign(name: &str) -> Option<&'static ForeignKey> {
    FOREIGN
        .iter()
        .find(|key| key.name.eq_ignore_ascii_case(name))
}

/// Returns all names with an effect: keys, their aliases, and Fluent Bit's own.
fn effective_names() -> impl Iterator<Item = &'static str> {
    let hosts = HOST.iter().filter(|key| key.instead.is_none());
    let ours = ALL.iter().flat_map(|key| key.names());
    ours.chain(hosts.map(|key| key.name))
}

/// Returns the known name that is closest to a misspelt one, at most two edits away.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let distance = |known: &str| strsim::damerau_levenshtein(&name, &known.to_ascii_lowercase());
    let near = effective_names()
        .map(|known| (distance(known), known))
        .min();
    near.filter(|(distance, _)| *distance <= 2)
        .map(|(_, known)| known)
}

/// A key that is set and does nothing. Its value is not read, since it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleKey {
    /// The name, in lower case.
    pub name: String,
    /// The reason, and the remedy.
    pub message: String,
}

/// Finds keys that are set but never read: misspelt ones, and those of other outputs. The host cannot list the keys
/// that are set, so this tries about 60,000 names.
pub fn idle_keys(properties: &dyn Properties) -> Vec<IdleKey> {
    let mut found: Vec<IdleKey> = Vec::new();
    for key in FOREIGN.iter().filter(|key| !key.is_refused()) {
        if properties.is_set(key.name) {
            let message = format!(
                "{} is a key of Fluent Bit's {} and does nothing here: {}",
                key.name, key.plugin, key.why
            );
            found.push(IdleKey {
                name: key.name.to_owned(),
                message,
            });
        }
    }
    for known in effective_names() {
        misspellings(&known.to_ascii_lowercase(), &mut |name| {
            if properties.is_set(name)
                && is_idle(name)
                && found.iter().all(|idle| idle.name != name)
            {
                let near = nearest(name).unwrap_or(known);
                let message = format!("{name} is not known and does nothing; did you mean {near}?");
                found.push(IdleKey {
                    name: name.to_owned(),
                    message,
                });
            }
        });
    }
    found
}

/// Whether a name is unknown.
fn is_idle(name: &str) -> bool {
    find(name).is_none() && find_host(name).is_none()
}

/// The characters of names.
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789_-.";

/// Calls `visit` with each name that is one edit from `name`, and with `name` without underscores or with other
/// separators.
fn misspellings(name: &str, visit: &mut dyn FnMut(&str)) {
    let mut edited = String::with_capacity(name.len() + 1);
    let mut with = |parts: [&str; 3]| {
        edited.clear();
        edited.extend(parts);
        visit(&edited);
    };
    let mut letter = [0; 1];
    for at in 0..=name.len() {
        let (head, tail) = name.split_at(at);
        for byte in LETTERS {
            letter[0] = *byte;
            let letter = std::str::from_utf8(&letter).unwrap_or_default();
            with([head, letter, tail]);
            if let Some(rest) = tail.get(1..) {
                with([head, letter, rest]);
            }
        }
        if let Some(rest) = tail.get(1..) {
            with([head, "", rest]);
        }
        if let (Some(first), Some(second), Some(rest)) =
            (tail.get(..1), tail.get(1..2), tail.get(2..))
        {
            with([head, &[second, first].concat(), rest]);
        }
    }
    for other in ["", "-", "."] {
        with([&name.replace('_', other), "", ""]);
    }
}

/// Returns the reference of all keys, in Markdown.
pub fn reference() -> String {
    let mut text = String::from(
        "<!-- Generated by \"make docs\" from src/config/keys.rs. -->\n\n# Configuration reference\n\n\
         Sizes are written as in Fluent Bit (`500K`, `64M`, `1G`; K is 1,000), times as `500ms`, `30s`, `5m`, `1h` or `1d`. \
         All problems are reported together when Fluent Bit starts. Keys that do not apply to the destination are refused; \
         unknown keys cause a warning.\n\n\
         A template may contain `{tag}`, a part of the tag split at `tag_delimiters` (`{tag[0]}`), the value of a record's key \
         (`{record.kubernetes.namespace}`, with a default: `{record.app|none}`) and, if the table says so, strftime. A key \
         with dots is written as in Fluent Bit's record accessor: `{record.kubernetes.labels['app.kubernetes.io/name']}` or \
         `{$kubernetes['labels']['app.kubernetes.io/name']|none}`; in a plain path the longest key that exists is taken. `$TAG` \
         and `$TAG[1]` work too. [Names](output-format.md#names) says how values are escaped.\n",
    );
    for (section, heading) in Section::ALL {
        let rows = ALL.iter().filter(|key| key.section == section);
        if section == Section::Refused {
            let _ = write!(
                text,
                "\n## {heading}\n\n| key | meaning | what to do instead |\n| --- | --- | --- |\n"
            );
            for key in rows {
                let _ = writeln!(
                    text,
                    "| `{}` | {} | {} |",
                    key.name,
                    key.doc,
                    key.instead.unwrap_or_default()
                );
            }
            continue;
        }
        let _ = write!(
            text,
            "\n## {heading}\n\n| key | value | default | for | meaning | example |\n| --- | --- | --- | --- | --- | --- |\n"
        );
        for key in rows {
            let _ = writeln!(text, "{}", row(key));
        }
    }
    text += "\n## Keys of other plugins without a counterpart\n\nThose of `s3` are refused; the others cause a warning.\n\n\
             | key | plugin | why, or what to use instead |\n| --- | --- | --- |\n";
    for key in FOREIGN {
        let _ = writeln!(text, "| `{}` | `{}` | {} |", key.name, key.plugin, key.why);
    }
    text += "\n## Keys of Fluent Bit itself\n\n| key | |\n| --- | --- |\n";
    for key in HOST {
        let dots = if key.group { "…" } else { "" };
        let effect = key.instead.map_or_else(
            || "works as in every output".to_owned(),
            |instead| format!("does nothing here: {instead}"),
        );
        let stops = match key.stops {
            "" => String::new(),
            with => format!("; Fluent Bit does not start with {with}"),
        };
        let _ = writeln!(text, "| `{}{dots}` | {effect}{stops} |", key.name);
    }
    text
}

fn row(key: &Key) -> String {
    let mut meaning = String::new();
    if key.spooled {
        meaning += "with `spool on`: ";
    }
    meaning += key.doc;
    if !key.aliases.is_empty() {
        let names: Vec<_> = key.aliases.iter().map(|name| format!("`{name}`")).collect();
        let _ = write!(meaning, " (alias: {})", names.join(", "));
    }
    let example = match key.example {
        "" => String::new(),
        example => format!("`{example}`"),
    };
    let cells = [
        format!("`{}`", key.name),
        key.value.words(),
        key.default_words(),
        key.scope.words().to_owned(),
        meaning,
        example,
    ];
    // A bar would end the cell.
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |", cells.join(" | "))
}

/// Joins words as `a, b or c`.
pub(super) fn one_of(words: &[impl AsRef<str>]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// Formats a size with the largest exact unit.
fn size(bytes: usize) -> String {
    for (unit, letter) in [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "K")] {
        if bytes > 0 && bytes.is_multiple_of(unit) {
            return format!("{}{letter}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// Formats a time with the largest exact unit.
fn time(seconds: u64) -> String {
    for (unit, letter) in [(86_400, "d"), (3_600, "h"), (60, "m")] {
        if seconds > 0 && seconds.is_multiple_of(unit) {
            return format!("{}{letter}", seconds / unit);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests;
