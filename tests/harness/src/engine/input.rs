//! The inputs of Fluent Bit that tests need, and the harness's own.
//!
//! Like most of Fluent Bit's inputs, they run on the engine's thread: while a flush blocks it, nothing is read.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, NaiveDateTime};
use serde_json::Value;

use super::abi::{self, LOG_WARN};
use super::chunk::{Appender, count_records};
use super::storage::Backlog;
use crate::config::{Instance, Service};
use crate::samples::{self, Shape};

/// The bytes that an unlimited input adds before other inputs and events get their turn.
const SLICE: usize = 256 * 1024;
const POLL: Duration = Duration::from_millis(5);

/// The time of an input's next call.
pub(crate) enum Next {
    /// At once, since there is more.
    Now,
    /// At this time.
    At(Instant),
    /// Never, since it has ended.
    Ended,
    /// Never, and Fluent Bit stops its engine.
    EndedWithTheEngine,
}

/// A source of events.
pub(crate) trait Input: Send {
    /// Adds the available events.
    fn poll(&mut self, now: Instant, out: &mut Appender) -> Result<Next>;

    /// Whether it continues at its position after a hot reload. Fluent Bit's own inputs start again; those that a test
    /// counts must not.
    fn survives_reload(&self) -> bool {
        false
    }
}

/// An input, with the engine's settings and counts.
pub(crate) struct Slot {
    pub(crate) definition: Instance,
    /// Its name, such as `dummy.0`, or its alias.
    pub(crate) name: String,
    /// The bytes of chunks, waiting or in flight, at which the input pauses.
    pub(crate) mem_buf_limit: Option<usize>,
    /// Whether it has `storage.type filesystem`.
    pub(crate) on_disk: bool,
    pub(crate) input: Box<dyn Input>,
    pub(crate) ended: bool,
}

/// Creates the input of the chunks that a predecessor left on disk, with the host's name for it.
pub(crate) const BACKLOG: &str = "storage_backlog.0";

/// Creates all inputs of a configuration; with a `storage.path` the backlog comes first.
pub(crate) fn build(
    inputs: &[Instance],
    parsers: &[Instance],
    service: &Service,
) -> Result<Vec<Slot>> {
    let mut slots: Vec<Slot> = Vec::new();
    if let Some((dir, place)) = &service.storage_path {
        slots.push(Slot {
            definition: Instance {
                name: "storage_backlog".to_owned(),
                properties: Vec::new(),
                place: place.clone(),
            },
            name: BACKLOG.to_owned(),
            // Even with a limit of 0, one chunk at a time passes.
            mem_buf_limit: Some(service.backlog_mem_limit.max(1)),
            on_disk: false,
            input: Box::new(Backlog::new(dir)),
            ended: false,
        });
    }
    for definition in inputs {
        let kind = definition.name.to_lowercase();
        let same = slots.iter();
        let same = same.filter(|slot| slot.definition.name.eq_ignore_ascii_case(&kind));
        let number = same.count();
        let own_name = format!("{kind}.{number}");
        let tag = definition.get("tag").unwrap_or(&own_name);
        let parser = || match definition.get("parser") {
            Some(name) => Parser::find(name, parsers, definition).map(Some),
            None => Ok(None),
        };
        let mut limit = definition.size("mem_buf_limit", 0)?;
        let on_disk = definition.parse("storage.type", false, on_disk, STORAGE_TYPES)?;
        ensure!(
            !on_disk || service.storage_path.is_some(),
            "{}: storage.type filesystem needs a folder: set storage.path in [SERVICE]",
            definition.place
        );
        let (input, own_keys): (Box<dyn Input>, &[&str]) = match kind.as_str() {
            "dummy" => (
                Box::new(Dummy::new(definition, tag)?),
                &["dummy", "rate", "samples", "copies"],
            ),
            "tail" => (
                Box::new(Tail::new(definition, tag, parser()?)?),
                &[
                    "path",
                    "key",
                    "read_from_head",
                    "exit_on_eof",
                    "parser",
                    "db",
                    "refresh_interval",
                ],
            ),
            "stdin" => (Box::new(Stdin::new(tag, parser()?)), &["parser"]),
            "http_sample" | "nestjs_sample" => {
                let shape = if kind == "http_sample" {
                    Shape::Http
                } else {
                    Shape::Nestjs
                };
                if limit == 0 {
                    limit = 64_000_000;
                }
                (
                    Box::new(Sample::new(definition, tag, shape)?),
                    &["samples", "rate", "seed", "tags", "folders"],
                )
            }
            "chunks" => {
                if limit == 0 {
                    limit = 64_000_000;
                }
                (Box::new(Chunks::new(definition)?), &["path", "repeat"])
            }
            _ => bail!(
                "{}: there is no input '{kind}' here; there are dummy, tail, stdin, http_sample, \
                 nestjs_sample and chunks",
                definition.place
            ),
        };
        for property in &definition.properties {
            let key = property.key.to_lowercase();
            if !["tag", "alias", "mem_buf_limit", "storage.type"].contains(&key.as_str())
                && !own_keys.contains(&key.as_str())
            {
                let text = format!(
                    "[config] {}: the input key '{key}' is ignored",
                    property.place
                );
                abi::log(LOG_WARN, &text);
            }
        }
        slots.push(Slot {
            name: definition.get("alias").unwrap_or(&own_name).to_owned(),
            mem_buf_limit: Some(limit).filter(|&limit| limit > 0),
            on_disk,
            input,
            ended: false,
            definition: definition.clone(),
        });
    }
    Ok(slots)
}

const STORAGE_TYPES: &str = "memory, memrb or filesystem";

fn on_disk(kind: &str) -> Option<bool> {
    match kind.to_lowercase().as_str() {
        "memory" | "memrb" => Some(false),
        "filesystem" => Some(true),
        _ => None,
    }
}

/// An input that emits the same record at a steady rate.
struct Dummy {
    tag: Arc<str>,
    body: Vec<u8>,
    interval: Duration,
    copies: u64,
    /// The remaining number of events; `None` is unlimited.
    left: Option<u64>,
    due: Option<Instant>,
}

impl Dummy {
    fn new(definition: &Instance, tag: &str) -> Result<Self> {
        let rate = definition.number("rate", 1_u32)?;
        let text = definition.get("dummy").unwrap_or(r#"{"message":"dummy"}"#);
        let body = json_map(text.as_bytes())
            .map(|map| encode(&map))
            .with_context(|| {
                format!(
                    "{}: Dummy is '{text}'; it must be a JSON map",
                    definition.place
                )
            })?;
        Ok(Self {
            tag: tag.into(),
            body,
            interval: Duration::from_secs(1) / rate.max(1),
            copies: definition.number("copies", 1)?,
            left: Some(definition.number("samples", 0)?).filter(|&samples| samples > 0),
            due: None,
        })
    }
}

impl Input for Dummy {
    fn poll(&mut self, now: Instant, out: &mut Appender) -> Result<Next> {
        if self.left == Some(0) {
            return Ok(Next::Ended);
        }
        let due = *self.due.get_or_insert(now + self.interval);
        if now < due {
            return Ok(Next::At(due));
        }
        for _ in 0..self.copies {
            out.event(&self.tag, SystemTime::now(), &self.body);
        }
        self.left = self.left.map(|left| left - 1);
        // A timer that was not read in time fires once, not once per missed tick.
        let next = (due + self.interval).max(now);
        self.due = Some(next);
        Ok(Next::At(next))
    }
}

/// An input of sample records in a known order.
struct Sample {
    records: Box<dyn Iterator<Item = (SystemTime, Value)> + Send>,
    tags: Vec<Arc<str>>,
    /// The number of values that the key `folder` takes in turn; 0: there is no such key.
    folders: u64,
    made: u64,
    /// The number of records; `None` is unlimited.
    total: Option<u64>,
    /// The records per second; `None` is unlimited.
    rate: Option<f64>,
    began: Option<Instant>,
}

impl Sample {
    fn new(definition: &Instance, tag: &str, shape: Shape) -> Result<Self> {
        let count = definition.number("tags", 1_u32)?;
        let name = |n: u32| match tag.contains("{n}") {
            true => tag.replace("{n}", &n.to_string()),
            false if count > 1 => format!("{tag}.{n}"),
            false => tag.to_owned(),
        };
        let seed = definition.number("seed", 1)?;
        Ok(Self {
            records: samples::generate(shape, seed, SystemTime::now()),
            tags: (0..count.max(1)).map(|n| name(n).into()).collect(),
            folders: definition.number("folders", 0)?,
            made: 0,
            total: Some(definition.number("samples", 0)?).filter(|&samples| samples > 0),
            rate: Some(definition.number("rate", 0.0)?).filter(|&rate| rate > 0.0),
            began: None,
        })
    }
}

impl Input for Sample {
    fn poll(&mut self, now: Instant, out: &mut Appender) -> Result<Next> {
        let began = *self.began.get_or_insert(now);
        let due = self
            .rate
            .map_or(u64::MAX, |rate| ((now - began).as_secs_f64() * rate) as u64);
        let stop = out.bytes() + SLICE;
        while self.made < due && self.total.is_none_or(|total| self.made < total) {
            let Some((time, mut body)) = self.records.next() else {
                return Ok(Next::Ended);
            };
            if self.folders > 0 {
                body["folder"] = format!("f{:05}", self.made % self.folders).into();
            }
            let tag = &self.tags[(self.made % self.tags.len() as u64) as usize];
            out.json(tag, time, &body);
            self.made += 1;
            if out.bytes() >= stop || out.has_full() {
                return Ok(Next::Now);
            }
        }
        if self.total == Some(self.made) {
            return Ok(Next::Ended);
        }
        Ok(Next::At(now + POLL))
    }

    fn survives_reload(&self) -> bool {
        true
    }
}

/// An input of captured chunks, unchanged.
struct Chunks {
    chunks: Vec<(Arc<str>, Vec<u8>)>,
    next: usize,
    rounds: u64,
}

impl Chunks {
    fn new(definition: &Instance) -> Result<Self> {
        let path = Path::new(definition.require("path")?);
        let place = &definition.place;
        let mut files = vec![path.to_owned()];
        if path.is_dir() {
            let pattern = path.join("*.msgpack");
            files = glob::glob(&pattern.to_string_lossy())?.collect::<Result<_, _>>()?;
        }
        ensure!(
            !files.is_empty(),
            "{place}: no *.msgpack in {}",
            path.display()
        );
        let mut chunks = Vec::new();
        for file in &files {
            let data = fs::read(file).with_context(|| format!("{place}: {}", file.display()))?;
            ensure!(
                count_records(&data).is_some(),
                "{place}: {} does not hold whole msgpack events",
                file.display()
            );
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            chunks.push((definition.get("tag").unwrap_or(&stem).into(), data));
        }
        Ok(Self {
            chunks,
            next: 0,
            rounds: definition.number("repeat", 1)?,
        })
    }
}

impl Input for Chunks {
    fn poll(&mut self, _: Instant, out: &mut Appender) -> Result<Next> {
        let stop = out.bytes() + SLICE;
        while self.rounds > 0 {
            let (tag, data) = &self.chunks[self.next];
            out.whole(tag, data.clone(), None);
            self.next += 1;
            if self.next == self.chunks.len() {
                (self.next, self.rounds) = (0, self.rounds - 1);
            }
            if out.bytes() >= stop {
                return Ok(Next::Now);
            }
        }
        Ok(Next::Ended)
    }

    fn survives_reload(&self) -> bool {
        true
    }
}

/// An input of the lines of files, including appended ones.
struct Tail {
    patterns: Vec<String>,
    tag: String,
    key: String,
    parser: Option<Parser>,
    from_head: bool,
    exit_on_eof: bool,
    keeps_offsets: bool,
    refresh: Duration,
    scan: Option<Instant>,
    files: Vec<TailFile>,
    /// Whether the first scan is done, to which `Read_from_Head` applies.
    scanned: bool,
}

struct TailFile {
    path: PathBuf,
    tag: Arc<str>,
    offset: u64,
    partial: Vec<u8>,
}

impl Tail {
    fn new(definition: &Instance, tag: &str, parser: Option<Parser>) -> Result<Self> {
        let patterns = definition.require("path")?.split(',');
        Ok(Self {
            patterns: patterns.map(|pattern| pattern.trim().to_owned()).collect(),
            tag: tag.to_owned(),
            key: definition.get("key").unwrap_or("log").to_owned(),
            parser,
            from_head: definition.flag("read_from_head", false)?,
            exit_on_eof: definition.flag("exit_on_eof", false)?,
            keeps_offsets: definition.get("db").is_some(),
            refresh: Duration::from_secs_f64(definition.number("refresh_interval", 60.0)?),
            scan: None,
            files: Vec::new(),
            scanned: false,
        })
    }

    fn find_files(&mut self) -> Result<()> {
        for pattern in &self.patterns {
            for path in glob::glob(pattern)?.filter_map(Result::ok) {
                if !path.is_file() || self.files.iter().any(|file| file.path == path) {
                    continue;
                }
                // Files that appear later are always read from the beginning.
                let skip = !self.scanned && !self.from_head;
                let offset = if skip { fs::metadata(&path)?.len() } else { 0 };
                self.files.push(TailFile {
                    tag: tag_for(&self.tag, &path).into(),
                    path,
                    offset,
                    partial: Vec::new(),
                });
            }
        }
        self.scanned = true;
        Ok(())
    }
}

/// Returns a tag with `*` replaced by the file's path, with dots for slashes.
fn tag_for(tag: &str, path: &Path) -> String {
    let Some((before, after)) = tag.split_once('*') else {
        return tag.to_owned();
    };
    let whole = format!("{before}{}{after}", path.display());
    let mut out = String::new();
    for c in whole.chars() {
        let c = if matches!(c, '/' | '\\' | ':') {
            '.'
        } else {
            c
        };
        if c != '.' || !(out.is_empty() || out.ends_with('.')) {
            out.push(c);
        }
    }
    out
}

impl Input for Tail {
    fn poll(&mut self, now: Instant, out: &mut Appender) -> Result<Next> {
        if self.scan.is_none_or(|due| now >= due) {
            self.find_files()?;
            self.scan = Some(now + self.refresh);
        }
        let mut more = false;
        let mut buffer = vec![0; SLICE];
        for file in &mut self.files {
            let Ok(mut source) = File::open(&file.path) else {
                continue;
            };
            if source.metadata()?.len() < file.offset {
                (file.offset, file.partial) = (0, Vec::new()); // cut short: begin again
            }
            source.seek(SeekFrom::Start(file.offset))?;
            let read = source.read(&mut buffer)?;
            file.offset += read as u64;
            file.partial.extend_from_slice(&buffer[..read]);
            more |= read > 0;
            for line in lines(&mut file.partial) {
                let parsed = self.parser.as_ref().and_then(|parser| parser.parse(&line));
                let (time, body) =
                    parsed.unwrap_or_else(|| (SystemTime::now(), raw(&self.key, &line)));
                out.event(&file.tag, time, &body);
            }
        }
        Ok(match (more, self.exit_on_eof && !self.files.is_empty()) {
            (true, _) => Next::Now,
            (false, true) => Next::EndedWithTheEngine,
            (false, false) => Next::At(now + 20 * POLL),
        })
    }

    fn survives_reload(&self) -> bool {
        self.keeps_offsets
    }
}

/// Encodes a line of any bytes as `{key: line}`.
pub(crate) fn raw(key: &str, line: &[u8]) -> Vec<u8> {
    let mut body = vec![0x81];
    for text in [key.as_bytes(), line] {
        rmp::encode::write_str_len(&mut body, text.len() as u32).expect("memory takes it");
        body.extend_from_slice(text);
    }
    body
}

/// Takes the complete lines from `buffer`.
fn lines(buffer: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let Some(end) = buffer.iter().rposition(|&byte| byte == b'\n') else {
        return Vec::new();
    };
    let rest = buffer.split_off(end + 1);
    let whole = std::mem::replace(buffer, rest);
    let lines = whole[..end].split(|&byte| byte == b'\n');
    lines
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec())
        .filter(|line| !line.is_empty())
        .collect()
}

/// An input of JSON maps, one per line.
struct Stdin {
    tag: Arc<str>,
    parser: Parser,
    partial: Vec<u8>,
}

impl Stdin {
    fn new(tag: &str, parser: Option<Parser>) -> Self {
        Self {
            tag: tag.into(),
            parser: parser.unwrap_or_default(),
            partial: Vec::new(),
        }
    }
}

impl Input for Stdin {
    fn poll(&mut self, now: Instant, out: &mut Appender) -> Result<Next> {
        let mut ready = libc::pollfd {
            fd: libc::STDIN_FILENO,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd is passed, and it lives through the call.
        if unsafe { libc::poll(&mut ready, 1, 0) } <= 0 {
            return Ok(Next::At(now + POLL));
        }
        let mut buffer = vec![0; SLICE];
        let read = std::io::stdin().lock().read(&mut buffer)?;
        self.partial.extend_from_slice(&buffer[..read]);
        if read == 0 && !self.partial.is_empty() {
            self.partial.push(b'\n');
        }
        for line in lines(&mut self.partial) {
            match self.parser.parse(&line) {
                Some((time, body)) => out.event(&self.tag, time, &body),
                None => abi::log(LOG_WARN, "[input:stdin] a line is not a JSON map: skipped"),
            }
        }
        Ok(if read == 0 {
            Next::EndedWithTheEngine
        } else {
            Next::Now
        })
    }
}

/// A `[PARSER]` with the format json.
#[derive(Default)]
struct Parser {
    time_key: String,
    time_format: Option<String>,
    time_keep: bool,
}

impl Parser {
    fn find(name: &str, parsers: &[Instance], user: &Instance) -> Result<Self> {
        let found = parsers.iter().find(|parser| parser.name == name);
        let found = found.with_context(|| {
            format!(
                "{}: there is no parser '{name}' in the parsers file",
                user.place
            )
        })?;
        let format = found.require("format")?;
        ensure!(
            format.eq_ignore_ascii_case("json"),
            "{}: the format is '{format}'; here it can only be json",
            found.place
        );
        // Fluent Bit's %L is a fraction of a second, and its %z accepts any form of zone.
        let time_format = found.get("time_format").map(|format| {
            let format = format.replace(".%L", "%.f").replace("%L", "%f");
            format.replace("%z", "%#z")
        });
        Ok(Self {
            time_key: found.get("time_key").unwrap_or("time").to_owned(),
            time_format,
            time_keep: found.flag("time_keep", false)?,
        })
    }

    /// Returns time and encoded body; `None` if the line is not a JSON map.
    fn parse(&self, line: &[u8]) -> Option<(SystemTime, Vec<u8>)> {
        let mut map = json_map(line)?;
        let mut time = SystemTime::now();
        let at = map
            .iter()
            .position(|(key, _)| key.as_str() == Some(&self.time_key));
        if let (Some(format), Some(at)) = (&self.time_format, at)
            && let Some(text) = map[at].1.as_str()
        {
            match read_time(text, format) {
                Some(read) => {
                    time = read;
                    if !self.time_keep {
                        map.remove(at);
                    }
                }
                None => abi::log(
                    LOG_WARN,
                    &format!("[parser] invalid time format for '{text}'"),
                ),
            }
        }
        Some((time, encode(&map)))
    }
}

type Map = Vec<(rmpv::Value, rmpv::Value)>;

/// A JSON map that keeps the order of keys, and repeated keys.
fn json_map(text: &[u8]) -> Option<Map> {
    match serde_json::from_slice(text).ok()? {
        rmpv::Value::Map(map) => Some(map),
        _ => None,
    }
}

fn encode(map: &Map) -> Vec<u8> {
    let mut body = Vec::new();
    let map = rmpv::ValueRef::Map(map.iter().map(|(k, v)| (k.as_ref(), v.as_ref())).collect());
    rmpv::encode::write_value_ref(&mut body, &map).expect("memory takes it");
    body
}

/// Parses a time with its zone, or in UTC if the format has none.
fn read_time(text: &str, format: &str) -> Option<SystemTime> {
    let zoned = DateTime::parse_from_str(text, format).map(|time| time.to_utc());
    let time = zoned.or_else(|_| NaiveDateTime::parse_from_str(text, format).map(|t| t.and_utc()));
    time.ok().map(SystemTime::from)
}

/// Inputs of the last configuration continue at their positions if they are unchanged in the new one.
pub(crate) fn carry_over(old: Vec<Slot>, new: &mut [Slot]) {
    let mut old: VecDeque<_> = old
        .into_iter()
        .filter(|slot| slot.input.survives_reload())
        .collect();
    for slot in new {
        let same = old
            .iter()
            .position(|before| before.definition == slot.definition);
        if let Some(before) = same.and_then(|at| old.remove(at)) {
            (slot.input, slot.ended) = (before.input, before.ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_takes_the_place_of_its_file() {
        let path = Path::new("/var/log/app/out.log");
        assert_eq!(tag_for("kube.*", path), "kube.var.log.app.out.log");
        assert_eq!(tag_for("*", path), "var.log.app.out.log");
        assert_eq!(tag_for("plain", path), "plain");
    }

    #[test]
    fn times_are_read_in_the_forms_that_parsers_use() {
        let parser = |format: &str| format.replace(".%L", "%.f").replace("%z", "%#z");
        let cases = [
            (
                "2026-11-21T13:00:00.123+0900",
                "%Y-%m-%dT%H:%M:%S.%L%z",
                1_795_233_600_123,
            ),
            (
                "2026-11-21T13:00:00.5+09:00",
                "%Y-%m-%dT%H:%M:%S.%L%z",
                1_795_233_600_500,
            ),
            (
                "2026-11-21T04:00:00Z",
                "%Y-%m-%dT%H:%M:%S.%L%z",
                1_795_233_600_000,
            ),
            (
                "2026-11-21 04:00:00",
                "%Y-%m-%d %H:%M:%S",
                1_795_233_600_000,
            ),
            (
                "21/Nov/2026:13:00:00 +0900",
                "%d/%b/%Y:%H:%M:%S %z",
                1_795_233_600_000,
            ),
        ];
        for (text, format, want) in cases {
            let time = read_time(text, &parser(format)).expect(text);
            let since = time.duration_since(SystemTime::UNIX_EPOCH).expect(text);
            assert_eq!(since.as_millis(), want, "{text}");
        }
        assert_eq!(read_time("yesterday", "%Y"), None);
    }

    #[test]
    fn whole_lines_leave_the_buffer_and_the_rest_stays() {
        let mut buffer = b"one\r\n\ntwo\nthr".to_vec();
        assert_eq!(lines(&mut buffer), [b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(buffer, b"thr");
        assert!(lines(&mut buffer).is_empty());
    }
}
