//! `ferry spool`: inspects a spool's directory without changing it (`deliver` has a file of its own). It takes no lock, so that it works next to a
//! running instance, and on a copy. Segments are read sequentially, and only the place of each chunk is kept in memory.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use ferry::check::host;
use ferry::codec::Encoding;
use ferry::codec::json::Options;
use ferry::codec::msgpack::Event;
use ferry::codec::template::Template;
use ferry::codec::time::{TimeFormat, now, write_iso8601};
use ferry::config::{Config, Destination, stream_name};
use ferry::ids::EventSet;
use ferry::ids::Time;
use ferry::log::span;
use ferry::spool::disk::{Disk, LocalDisk, says_remedy};
use ferry::spool::handles::Handles;
use ferry::spool::scan::{
    Check, Lost, Missing, Place, Segment, Survey, is_spool, segment_bytes, survey_while,
};
use ferry::spool::{Content, Events, Pending, Seq, Suspect, Work};
use serde::Serialize;

use super::{Done, Failure, inaccessible, metadata, progress, remedy};

/// Inspect the directory where Ferry keeps chunks (spool_dir), or deliver what is in it
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

const STATUS: &str = "\
Examples:
  ferry spool inspect /var/lib/ferry/main
  ferry spool verify /var/lib/ferry/main
  ferry spool export /var/lib/ferry/main >undelivered.ndjson
  ferry spool deliver /var/lib/ferry/s3-typo -c /etc/fluent-bit/fluent-bit.conf

Exit status: 0, it was read, and for verify and export nothing is wrong, and for deliver it is empty; 1, something is
damaged, missing, no record or not delivered; 2, it could not be read at all";

#[derive(Subcommand)]
enum Command {
    /// Show the contents: segments, unfinished chunks by tag, batches in flight
    #[command(after_help = INSPECT)]
    Inspect {
        /// The spool's directory, or a copy of it
        dir: PathBuf,
        /// Fluent Bit's configuration, to show spool_limit and each tag's target
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Check every checksum, and print a line for each damaged place
    #[command(after_help = VERIFY)]
    Verify {
        /// The spool's directory, or a copy of it
        dir: PathBuf,
    },
    /// Deliver everything in a spool that no output uses, through an output of the configuration
    #[command(after_help = super::deliver::STATUS)]
    Deliver(super::deliver::Args),
    /// Write the records of unfinished chunks as JSON lines, except for those that are delivered
    #[command(after_help = EXPORT)]
    Export {
        /// The spool's directory, or a copy of it
        dir: PathBuf,
        #[command(flatten)]
        choice: Choice,
    },
}

const INSPECT: &str = "\
full_in is the time until the spool is full if nothing is delivered, and chunks arrive at the rate of those that are
unfinished now: their bytes over the age of the oldest one. It needs --config for spool_limit.

Example:
  ferry spool inspect /var/lib/ferry/main --config /etc/fluent-bit/fluent-bit.conf

Exit status: 0, it was read, whatever it contains; 2, it could not be read at all";

const VERIFY: &str = "\
Example:
  ferry spool verify /var/lib/ferry/main

Exit status: 0, it is intact; 1, something is damaged or missing; 2, it could not be read at all";

const EXPORT: &str = "\
Example:
  ferry spool export /var/lib/ferry/main --time-key time --tag-key tag >undelivered.ndjson

Exit status: 0, all was written; 1, something is damaged or not a record; 2, it could not be read at all";

#[derive(clap::Args, Default)]
struct Choice {
    /// Include finished chunks and delivered records, as far as they still exist
    #[arg(long)]
    all: bool,
    /// Add each event's time under this key
    #[arg(long, value_name = "KEY")]
    time_key: Option<String>,
    /// Add each chunk's tag under this key
    #[arg(long, value_name = "KEY")]
    tag_key: Option<String>,
}

pub(super) fn run(args: &Args) -> Done {
    if let Command::Deliver(args) = &args.command {
        // Its other threads write to stderr, which must not be locked here.
        return super::deliver::run(args);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let intact = execute(&args.command, &mut out, &mut io::stderr().lock())?;
    out.flush()?;
    Ok(intact)
}

/// Writes all events of a spool as lines of JSON.
pub(super) fn export_all(dir: &Path, out: &mut dyn Write) -> Done {
    let command = Command::Export {
        dir: dir.to_owned(),
        choice: Choice {
            all: true,
            ..Choice::default()
        },
    };
    execute(&command, out, &mut io::stderr().lock())
}

/// Runs a command. Returns whether nothing is damaged.
fn execute(command: &Command, out: &mut dyn Write, errors: &mut dyn Write) -> Done {
    match command {
        Command::Inspect { dir, config, json } => {
            let config = match config {
                Some(file) => Some(configured(file, dir, errors)?),
                None => None,
            };
            let disk = look(dir)?;
            let survey = read(&disk, Check::LastSegment)?;
            let tags = tags(&survey, &Handles::new(Arc::new(disk)))?;
            let report = Report::new(&survey, &tags, config.as_ref(), now());
            match json {
                true => {
                    serde_json::to_writer_pretty(&mut *out, &report).map_err(io::Error::from)?;
                    writeln!(out)?;
                }
                false => inspect(&report, &survey, out)?,
            }
            Ok(true)
        }
        Command::Deliver(_) => unreachable!("it has no report"),
        Command::Verify { dir } => Ok(verify(&read(&look(dir)?, Check::All)?, out)?),
        Command::Export { dir, choice } => Ok(export(Arc::new(look(dir)?), choice, out, errors)?),
    }
}

/// Opens a spool's directory. Fails if there is no spool in it, rather than reporting that it is empty.
pub(super) fn look(dir: &Path) -> Result<LocalDisk, Failure> {
    let disk = LocalDisk::look(dir).map_err(|error| match says_remedy(&error) {
        true => Failure::from(error),
        false => format!("{error}; remedy: {}", remedy(&error)).into(),
    })?;
    if is_spool(&disk)? {
        return Ok(disk);
    }
    let mut subfolders: Vec<String> = Vec::new();
    for entry in dir.read_dir()?.flatten() {
        let spool = LocalDisk::look(&entry.path()).and_then(|disk| is_spool(&disk));
        if spool.unwrap_or(false) {
            subfolders.push(format!("{}/", entry.file_name().display()));
        }
    }
    subfolders.sort();
    let hint = match subfolders.is_empty() {
        true => String::new(),
        false => format!("; there are spools in: {}", subfolders.join(", ")),
    };
    let message = "contains no spool (no .seg file, lock or manifest); remedy: give spool_dir";
    Err(format!("{} {message}{hint}", dir.display()).into())
}

/// Surveys a spool, with a progress bar.
fn read(disk: &dyn Disk, check: Check) -> io::Result<Survey> {
    let bar = progress::of_bytes(segment_bytes(disk)?, false);
    let survey = survey_while(disk, check, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    survey
}

/// The output that a spool belongs to.
struct Configured {
    config: Config,
}

/// Returns the output whose spool is in `dir`. For a copy, it is the only output with a spool, with a note on stderr.
fn configured(file: &Path, dir: &Path, errors: &mut dyn Write) -> Result<Configured, Failure> {
    let configuration = host::read(file, |name| name == "ferry")?;
    let mut spooled: Vec<(Configured, PathBuf)> = Vec::new();
    for output in &configuration.outputs {
        let config = Config::read(output).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let label = &output.label;
            format!("{}: {label}: {}", file.display(), problems.join("; "))
        })?;
        if let Some(place) = &config.spool {
            let place = place.dir.clone();
            spooled.push((Configured { config }, place));
        }
    }
    let canonical = |path: &Path| -> Result<Option<PathBuf>, Failure> {
        if metadata(path)?.is_none() {
            return Ok(None);
        }
        let whole = path
            .canonicalize()
            .map_err(|error| inaccessible(path, &error))?;
        Ok(Some(whole))
    };
    let wanted = canonical(dir)?;
    let mut at = None;
    for (number, (_, place)) in spooled.iter().enumerate() {
        if wanted.is_some() && at.is_none() && canonical(place)? == wanted {
            at = Some(number);
        }
    }
    match (at, spooled.len()) {
        (Some(at), _) => Ok(spooled.swap_remove(at).0),
        (None, 1) => {
            let (configured, place) = spooled.swap_remove(0);
            writeln!(
                errors,
                "note: spool_dir in {} is {}, not {}: limit and targets are those of the former",
                file.display(),
                place.display(),
                dir.display()
            )?;
            Ok(configured)
        }
        (None, 0) => Err(format!("{}: no ferry output in it has a spool", file.display()).into()),
        (None, _) => Err(format!(
            "{}: several outputs have a spool, but none of them in {}: give the directory as in spool_dir",
            file.display(),
            dir.display()
        )
        .into()),
    }
}

/// The unfinished chunks of a tag.
struct Waiting {
    chunks: u64,
    /// The size of their data.
    bytes: u64,
    oldest: Time,
}

fn tags(survey: &Survey, handles: &Handles) -> io::Result<BTreeMap<Vec<u8>, Waiting>> {
    let mut tags = BTreeMap::new();
    for (_, place) in unfinished(survey) {
        let file = match handles.get(place.segment) {
            Ok(file) => file,
            // It was finished meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let tag = place.tag(&*file)?;
        let waiting = tags.entry(tag).or_insert(Waiting {
            chunks: 0,
            bytes: 0,
            oldest: place.arrived,
        });
        waiting.chunks += 1;
        waiting.bytes += u64::from(place.events_len());
        waiting.oldest = waiting.oldest.min(place.arrived);
    }
    Ok(tags)
}

fn unfinished(survey: &Survey) -> impl Iterator<Item = (Seq, Place)> + '_ {
    let chunks = survey.chunks();
    chunks.filter(|(chunk, _)| !survey.is_finished(*chunk))
}

/// Returns the unfinished chunks with settled events.
fn partly_settled(survey: &Survey) -> impl Iterator<Item = Seq> + '_ {
    let chunks = unfinished(survey).map(|(chunk, _)| chunk);
    chunks.filter(|chunk| !survey.settled(*chunk).is_empty())
}

/// Returns the name of the work on a chunk.
fn work(work: Work) -> &'static str {
    match work {
        Work::Deliver => "deliver",
        Work::Rebuild => "rebuild",
        Work::Letters => "letters",
    }
}

fn iso(time: Time) -> String {
    let mut text = Vec::new();
    write_iso8601(time, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn hex(spool: u64) -> String {
    format!("{spool:016x}")
}

/// Escapes untrusted text for a terminal.
fn plain(text: &[u8]) -> String {
    String::from_utf8_lossy(text).escape_debug().to_string()
}

/// The result of `inspect`, in the format of `--json`. Bytes are those of files or of chunks' data; times are ISO 8601,
/// UTC.
#[derive(Serialize)]
struct Report {
    /// The spool's id; null if no segment contains it.
    spool: Option<String>,
    /// The size of all segments.
    bytes: u64,
    /// `spool_limit`; null without `--config`.
    limit_bytes: Option<u64>,
    /// The seconds until the spool is full if nothing is delivered, and chunks arrive at the rate of the unfinished
    /// ones; null without `--config`, and without unfinished chunks.
    full_in_seconds: Option<u64>,
    /// The number of chunks, finished ones included.
    chunks: usize,
    /// The number of chunks that contain events of older chunks, in which these events count as settled.
    relocated: u64,
    /// The number of chunks that are not delivered, or only in part.
    unfinished: usize,
    /// The size of their data.
    unfinished_bytes: u64,
    /// The arrival of the oldest of them.
    oldest: Option<String>,
    segments: Vec<SegmentRow>,
    tags: Vec<TagRow>,
    pending: Vec<PendingRow>,
    settled: Vec<SettledRow>,
    missing: Vec<MissingRow>,
    /// The segments that an earlier run removed, and that were put back.
    returned: Vec<FileRow>,
    quarantine: Vec<FileRow>,
    /// The chunk that is being processed, or was when the process ended; null if there is none.
    at_work: Option<SuspectRow>,
    /// The chunks that were being processed when a process ended.
    suspects: Vec<SuspectRow>,
    spares: Vec<FileRow>,
    foreign: Vec<ForeignRow>,
}

/// The file of a segment.
#[derive(Serialize)]
struct SegmentRow {
    name: String,
    bytes: u64,
    chunks: usize,
    relocated: u64,
    unfinished: usize,
    notes: u64,
    damage: Vec<DamageRow>,
    /// Whole chunks among frames that are ignored; null if there are none.
    doubted: Option<DoubtedRow>,
    /// The bytes at its end that are not a whole frame.
    torn_bytes: u64,
    /// The preallocated bytes at its end.
    room_bytes: u64,
}

/// Whole chunks whose numbers a newer segment has too.
#[derive(Serialize)]
struct DoubtedRow {
    offset: u64,
    bytes: u64,
    chunks: u64,
}

/// Bytes that cannot be read.
#[derive(Serialize)]
struct DamageRow {
    offset: u64,
    bytes: u64,
    /// The first and the last missing frame.
    frames: [Seq; 2],
}

/// The unfinished chunks of a tag.
#[derive(Serialize)]
struct TagRow {
    tag: String,
    /// The target: the delivery stream, or the folder with its time specifiers as they are written; null without
    /// `--config`, and if it depends on each record.
    target: Option<String>,
    chunks: u64,
    bytes: u64,
    oldest: String,
}

/// A batch in flight.
#[derive(Serialize)]
struct PendingRow {
    batch: u64,
    /// The object or delivery stream.
    name: String,
    token: String,
    lines: u64,
    contents: Vec<ContentRow>,
}

/// Events of a chunk; null for all of them.
#[derive(Serialize)]
struct ContentRow {
    chunk: Seq,
    events: Option<Vec<[u32; 2]>>,
}

/// The settled events of an unfinished chunk, as half-open ranges.
#[derive(Serialize)]
struct SettledRow {
    chunk: Seq,
    events: Vec<[u32; 2]>,
}

/// A missing segment.
#[derive(Serialize)]
struct MissingRow {
    first: Seq,
    /// The missing frames, if the segment is not in the manifest.
    frames: Option<[Seq; 2]>,
    /// The number of its unfinished chunks, if the segment is in the manifest.
    unfinished: Option<u64>,
    /// Whether it was still being written to, so that there may be more chunks.
    perhaps_more: bool,
}

/// A file other than a segment.
#[derive(Serialize)]
struct FileRow {
    name: String,
    bytes: u64,
}

/// A chunk, the work on it (deliver, rebuild, letters), and how often a process ended during that.
#[derive(Serialize)]
struct SuspectRow {
    chunk: Seq,
    work: &'static str,
    ends: u32,
}

/// A segment of another spool or another version.
#[derive(Serialize)]
struct ForeignRow {
    name: String,
    what: String,
}

impl Report {
    fn new(
        survey: &Survey,
        tags: &BTreeMap<Vec<u8>, Waiting>,
        configured: Option<&Configured>,
        now: Time,
    ) -> Report {
        let bytes = survey.segments.iter().map(|segment| segment.bytes).sum();
        let oldest = unfinished(survey).map(|(_, place)| place.arrived).min();
        let unfinished_bytes = unfinished(survey)
            .map(|(_, place)| u64::from(place.events_len()))
            .sum();
        let limit = configured.and_then(|of| Some(of.config.spool.as_ref()?.limit));
        let age = oldest.map(|oldest| now.seconds.saturating_sub(oldest.seconds));
        let full_in = limit
            .zip(age)
            .and_then(|(limit, age)| full_in(limit.saturating_sub(bytes), unfinished_bytes, age));
        let (current, suspects) = survey.suspected();
        let file = |(name, bytes): &(String, u64)| FileRow {
            name: name.clone(),
            bytes: *bytes,
        };
        Report {
            spool: survey.spool.map(hex),
            bytes,
            limit_bytes: limit,
            full_in_seconds: full_in,
            chunks: survey.chunks().count(),
            relocated: survey
                .segments
                .iter()
                .map(|segment| segment.relocated)
                .sum(),
            unfinished: unfinished(survey).count(),
            unfinished_bytes,
            oldest: oldest.map(iso),
            segments: survey
                .segments
                .iter()
                .map(|segment| segment_row(segment, survey))
                .collect(),
            tags: tags
                .iter()
                .map(|(tag, waiting)| TagRow {
                    tag: String::from_utf8_lossy(tag).into_owned(),
                    target: configured.and_then(|of| target(of, tag, waiting.oldest)),
                    chunks: waiting.chunks,
                    bytes: waiting.bytes,
                    oldest: iso(waiting.oldest),
                })
                .collect(),
            pending: survey.pending().into_iter().map(pending_row).collect(),
            settled: partly_settled(survey)
                .map(|chunk| SettledRow {
                    chunk,
                    events: pairs(survey.settled(chunk)),
                })
                .collect(),
            missing: survey.missing().into_iter().map(missing_row).collect(),
            returned: survey.returned.iter().map(file).collect(),
            quarantine: survey.quarantine.iter().map(file).collect(),
            at_work: current.as_ref().map(suspect_row),
            suspects: suspects.iter().map(suspect_row).collect(),
            spares: survey.spares.iter().map(file).collect(),
            foreign: survey
                .foreign
                .iter()
                .map(|(name, what)| ForeignRow {
                    name: name.clone(),
                    what: what.clone(),
                })
                .collect(),
        }
    }
}

fn segment_row(segment: &Segment, survey: &Survey) -> SegmentRow {
    let chunks = segment.chunks.iter();
    let damage = segment.damage.iter().map(|damage| DamageRow {
        offset: damage.offset,
        bytes: damage.bytes,
        frames: [damage.missing.start, damage.missing.end - 1],
    });
    SegmentRow {
        name: segment.name(),
        bytes: segment.bytes,
        chunks: segment.chunks.len(),
        relocated: segment.relocated,
        unfinished: chunks
            .filter(|(chunk, _)| !survey.is_finished(*chunk))
            .count(),
        notes: segment.notes,
        damage: damage.collect(),
        doubted: segment.doubted.as_ref().map(|doubted| DoubtedRow {
            offset: doubted.offset,
            bytes: doubted.bytes,
            chunks: doubted.chunks,
        }),
        torn_bytes: segment.torn,
        room_bytes: segment.room,
    }
}

fn suspect_row(suspect: &Suspect) -> SuspectRow {
    SuspectRow {
        chunk: suspect.chunk,
        work: work(suspect.work),
        ends: suspect.ends,
    }
}

fn missing_row(missing: Missing) -> MissingRow {
    let (frames, unfinished, perhaps_more) = match missing.lost {
        Lost::Frames(frames) => (Some([frames.start, frames.end - 1]), None, false),
        Lost::Chunks {
            unfinished,
            perhaps_more,
        } => (None, Some(unfinished), perhaps_more),
    };
    MissingRow {
        first: missing.first,
        frames,
        unfinished,
        perhaps_more,
    }
}

fn pending_row(batch: Pending) -> PendingRow {
    let content = |content: Content| ContentRow {
        chunk: content.chunk,
        events: match content.events {
            Events::All => None,
            Events::Runs(runs) => Some(pairs(&runs)),
        },
    };
    PendingRow {
        batch: batch.batch,
        name: batch.name,
        token: batch.token,
        lines: batch.lines,
        contents: batch.contents.into_iter().map(content).collect(),
    }
}

/// Returns the seconds until `free` bytes are full at the rate of `waiting` bytes in `age` seconds, or `None` without a
/// rate.
fn full_in(free: u64, waiting: u64, age: i64) -> Option<u64> {
    let age = u64::try_from(age).ok().filter(|age| *age > 0)?;
    let seconds =
        u128::from(free) * u128::from(age) / u128::from((waiting > 0).then_some(waiting)?);
    u64::try_from(seconds).ok()
}

/// Returns the target of a tag's records: the delivery stream, or the folder with its time specifiers as they are
/// written. `None` if it depends on each record.
fn target(of: &Configured, tag: &[u8], time: Time) -> Option<String> {
    let template = match &of.config.destination {
        Destination::Firehose(firehose) => &firehose.delivery_stream,
        Destination::Blob { folder, .. } => &folder.timeless(),
    };
    if !template.constant_within_a_second() {
        return None;
    }
    // An empty map, since the name does not depend on the record.
    let body = [0x80];
    let event = Event {
        time,
        metadata: &[],
        body: &body,
        group: None,
        raw: &body,
    };
    let mut name = String::new();
    template.render(tag, &event, &mut name);
    Some(match &of.config.destination {
        Destination::Firehose(_) => stream_name(&name),
        Destination::Blob { blob, prefix, .. } => {
            let store = blob.store.to_string();
            let parts = [&store, prefix, &name].map(|part| part.trim_end_matches('/'));
            let below = parts[1..].iter().map(|part| part.trim_start_matches('/'));
            let parts = [parts[0]].into_iter().chain(below);
            let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
            parts.join("/")
        }
    })
}

fn inspect(report: &Report, survey: &Survey, out: &mut dyn Write) -> io::Result<()> {
    let spool = report.spool.as_deref().unwrap_or("none");
    row(out, "spool", &[&spool])?;
    let segments = &report.segments;
    row(out, "segments", &[&segments.len(), &"bytes", &report.bytes])?;
    if let Some(limit) = report.limit_bytes {
        let share = u128::from(report.bytes) * 100 / u128::from(limit.max(1));
        row(out, "limit", &[&limit, &format!("bytes, {share}% in use")])?;
    }
    row(out, "chunks", &[&report.chunks])?;
    if report.relocated > 0 {
        let words = "of them, with what older chunks held before";
        row(out, "relocated", &[&report.relocated, &words])?;
    }
    row(
        out,
        "unfinished",
        &[&report.unfinished, &"bytes", &report.unfinished_bytes],
    )?;
    if let Some(oldest) = &report.oldest {
        row(out, "oldest", &[oldest])?;
    }
    if let Some(seconds) = report.full_in_seconds {
        let note = "if nothing is delivered and chunks arrive at the rate of the unfinished ones";
        row(out, "full_in", &[&span(seconds), &note])?;
    }
    if !report.quarantine.is_empty() {
        let bytes: u64 = report.quarantine.iter().map(|file| file.bytes).sum();
        let files = report.quarantine.len();
        row(out, "quarantined", &[&files, &"bytes", &bytes])?;
    }
    let (current, suspects) = survey.suspected();
    if let Some(it) = current {
        let note = "is being processed, or the process ended during it:";
        row(
            out,
            "at work",
            &[&"chunk", &it.chunk, &note, &work(it.work)],
        )?;
    }
    for it in suspects {
        let ends = match it.is_condemned() {
            true => "ended during it twice, and it is set aside at the next start",
            false => "ended during it, and it is processed after the others and alone",
        };
        let ends = format!("({}): a process {ends}", work(it.work));
        row(out, "suspect", &[&"chunk", &it.chunk, &ends])?;
    }

    writeln!(
        out,
        "\n{:<24} {:>12} {:>8} {:>10} {:>8}",
        "segment", "bytes", "chunks", "unfinished", "notes"
    )?;
    for (at, (segment, found)) in segments.iter().zip(&survey.segments).enumerate() {
        writeln!(
            out,
            "{:<24} {:>12} {:>8} {:>10} {:>8}",
            segment.name, segment.bytes, segment.chunks, segment.unfinished, segment.notes
        )?;
        for damage in &found.damage {
            writeln!(out, "  {damage}")?;
        }
        if let Some(doubted) = &found.doubted {
            writeln!(out, "  {doubted}")?;
        }
        if segment.torn_bytes > 0 {
            writeln!(out, "  {}", torn(survey, at))?;
        }
        if segment.room_bytes > 0 {
            let bytes = segment.room_bytes;
            writeln!(out, "  {bytes} bytes at its end are preallocated")?;
        }
    }
    for missing in survey.missing() {
        writeln!(out, "{missing}")?;
    }
    for (name, _) in &survey.returned {
        writeln!(out, "{name:<24} {RETURNED}")?;
    }
    for FileRow { name, bytes } in &report.spares {
        writeln!(
            out,
            "{name:<24} {bytes} bytes that wait to be reused or freed"
        )?;
    }
    for ForeignRow { name, what } in &report.foreign {
        writeln!(out, "{name:<24} {what}")?;
    }

    if !report.tags.is_empty() {
        writeln!(
            out,
            "\n{:>10} {:>12}  {:<24}  tag",
            "unfinished", "bytes", "oldest"
        )?;
        for row in &report.tags {
            let target = row
                .target
                .as_deref()
                .map(|to| format!(" to {}", plain(to.as_bytes())));
            writeln!(
                out,
                "{:>10} {:>12}  {:<24}  {}{}",
                row.chunks,
                row.bytes,
                row.oldest,
                plain(row.tag.as_bytes()),
                target.unwrap_or_default()
            )?;
        }
    }
    if !report.pending.is_empty() {
        writeln!(
            out,
            "\n{:>8} {:>8} {:>8}  in flight to",
            "batch", "lines", "chunks"
        )?;
        for batch in &report.pending {
            writeln!(
                out,
                "{:>8} {:>8} {:>8}  {}",
                batch.batch,
                batch.lines,
                batch.contents.len(),
                plain(batch.name.as_bytes())
            )?;
        }
    }
    if !report.settled.is_empty() {
        writeln!(out, "\n{:>8}  events that are settled", "chunk")?;
        for SettledRow { chunk, events } in &report.settled {
            let runs: Vec<String> = events
                .iter()
                .map(|[start, end]| match end - start {
                    1 => start.to_string(),
                    _ => format!("{start}-{}", end - 1),
                })
                .collect();
            writeln!(out, "{chunk:>8}  {}", runs.join(" "))?;
        }
    }
    Ok(())
}

fn row(out: &mut dyn Write, name: &str, values: &[&dyn Display]) -> io::Result<()> {
    write!(out, "{name:<12}")?;
    for value in values {
        write!(out, " {value}")?;
    }
    writeln!(out)
}

/// The description of a segment that an earlier run removed.
const RETURNED: &str = "was finished and removed, and put back since, or the machine stopped when it was created: the next start puts it into \
     quarantine";

/// Whether a segment may end in an incomplete frame, or has none. Only a crash or a write in progress leaves one, and
/// only in the segment written last.
fn may_be_torn(survey: &Survey, at: usize) -> bool {
    let segment = &survey.segments[at];
    segment.torn == 0 || (at >= survey.closed() && segment.unreadable().is_none())
}

/// Describes the incomplete frame at a segment's end.
fn torn(survey: &Survey, at: usize) -> String {
    let segment = &survey.segments[at];
    let bytes = segment.torn;
    match segment.unreadable() {
        Some(damage) => format!("{damage}, unless it was created just now"),
        None if may_be_torn(survey, at) => format!(
            "{bytes} bytes at its end are not a whole frame: a write in progress, or one that a crash interrupted"
        ),
        None => format!(
            "{bytes} bytes at its end are not a whole frame, and nothing more is written to it: they are damaged, unless a \
             crash interrupted that write"
        ),
    }
}

/// Converts ranges to pairs.
fn pairs(runs: &[Range<u32>]) -> Vec<[u32; 2]> {
    runs.iter().map(|run| [run.start, run.end]).collect()
}

/// Prints a line for everything that is damaged or missing. Returns whether nothing is.
fn damages(survey: &Survey, out: &mut dyn Write) -> io::Result<bool> {
    let mut intact = true;
    for missing in survey.missing() {
        writeln!(out, "{missing}")?;
        intact = false;
    }
    for segment in &survey.segments {
        for damage in &segment.damage {
            writeln!(out, "{}: {damage}", segment.name())?;
            intact = false;
        }
        if let Some(doubted) = &segment.doubted {
            writeln!(out, "{}: {doubted}", segment.name())?;
            intact = false;
        }
    }
    for (at, segment) in survey.segments.iter().enumerate() {
        if !may_be_torn(survey, at) {
            writeln!(out, "{}: {}", segment.name(), torn(survey, at))?;
            intact = false;
        }
    }
    for (name, _) in &survey.returned {
        writeln!(out, "{name}: {RETURNED}")?;
    }
    Ok(intact)
}

fn verify(survey: &Survey, out: &mut dyn Write) -> io::Result<bool> {
    let intact = damages(survey, out)?;
    for (at, segment) in survey.segments.iter().enumerate() {
        if segment.torn > 0 && may_be_torn(survey, at) {
            writeln!(out, "{}: {}", segment.name(), torn(survey, at))?;
        }
    }
    for segment in survey.segments.iter().filter(|segment| segment.void > 0) {
        writeln!(
            out,
            "{}: {} bytes in it are ignored: no frame is missing there",
            segment.name(),
            segment.void
        )?;
    }
    for name in &survey.empty {
        writeln!(out, "{name}: is empty: the next start removes it")?;
    }
    for (name, what) in &survey.foreign {
        writeln!(out, "{name}: not checked: {what}")?;
    }
    let notes: u64 = survey.segments.iter().map(|segment| segment.notes).sum();
    writeln!(
        out,
        "{} segments, {} chunks and {notes} notes are intact{}",
        survey.segments.len(),
        survey.chunks().count(),
        if intact { "" } else { ", the rest is not" }
    )?;
    Ok(intact)
}

/// Writes records, and reports those that cannot be written. Returns whether nothing is damaged.
fn export(
    disk: Arc<dyn Disk>,
    choice: &Choice,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> io::Result<bool> {
    let survey = read(&*disk, Check::LastSegment)?;
    let handles = Handles::new(disk);
    let mut intact = damages(&survey, errors)?;
    let format = TimeFormat::Iso8601;
    let options = Options {
        time: choice.time_key.clone().map(|key| (key, format)),
        tag_key: choice.tag_key.clone(),
        ..Options::default()
    };
    let names = Template::parse("all", false).map_err(io::Error::other)?;
    for (chunk, place) in survey.chunks() {
        if !choice.all && survey.is_finished(chunk) {
            continue;
        }
        let relocated = match survey.relocated(chunk) {
            Some(Events::All) => continue,
            Some(Events::Runs(runs)) => runs,
            None => &[][..],
        };
        let file = match handles.get(place.segment) {
            Ok(file) => file,
            // It was finished meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let stored = match place.read(&*file)? {
            Ok(stored) => stored,
            // It was removed meanwhile, and emptied or overwritten.
            Err(_) if !handles.is_named(place.segment, &*file)? => continue,
            Err(_) => {
                let Place {
                    segment, offset, ..
                } = place;
                writeln!(
                    errors,
                    "chunk {chunk} is damaged: at offset {offset} of segment {segment}"
                )?;
                intact = false;
                continue;
            }
        };
        let mut settled = EventSet::default();
        let left_out = match choice.all {
            // They are written with the chunk that they are in now.
            true => relocated,
            false => survey.settled(chunk),
        };
        for event in left_out.iter().cloned().flatten() {
            settled.insert(event);
        }
        let (encoding, tag) = (Encoding::new(&options, &names), stored.tag.into());
        let wanted = |event| !settled.contains(event);
        for encoded in encoding.steps(&tag, &stored.data, wanted) {
            for part in encoded.parts {
                out.write_all(&part.text)?;
            }
            for letter in encoded.letters {
                writeln!(
                    errors,
                    "chunk {chunk} has an event that is not a record: {}: {}",
                    letter.reason.as_str(),
                    letter.detail
                )?;
                intact = false;
            }
        }
    }
    Ok(intact)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use ferry::ids::chunk_id;
    use ferry::spool::{self, Chunk, Durability, Note, Relocation, Spool};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    /// An event with one key, as msgpack.
    fn event(second: u8, value: u8) -> Vec<u8> {
        let mut bytes = b"\x92\x92\xd7\x00\0\0\0".to_vec();
        bytes.extend([second, 0, 0, 0, 0, 0x80, 0x81, 0xa1, b'n', value]);
        bytes
    }

    fn chunk_of(first: u8) -> Vec<u8> {
        (first..first + 3).flat_map(|n| event(n, n)).collect()
    }

    /// Creates a spool of five chunks, of which the first is finished, the second partly settled, and the third in
    /// flight. Returns the chunks' numbers.
    fn spool() -> (TempDir, Vec<Seq>) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
        let options = spool::Options {
            limit: 1 << 20,
            segment_bytes: Some(400),
        };
        let (spool, _) = Spool::open(disk, options).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let mut chunks = Vec::new();
        for (n, tag) in [&b"app"[..], b"app", b"sys", b"app", b"\x1b[2Jevil\n"]
            .iter()
            .enumerate()
        {
            let data = chunk_of(10 * n as u8);
            let chunk = Chunk {
                id: chunk_id(tag, &data),
                tag,
                data: data.into(),
                arrived: Time {
                    seconds: 1_700_000_000 - n as i64,
                    nanos: 0,
                },
            };
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            runtime.block_on(spool.append(chunk, deadline)).unwrap();
            chunks.push(spool.peek(chunks.last().copied()).unwrap().0);
        }
        let content = |chunk: usize, events| Content {
            chunk: chunks[chunk],
            events,
        };
        let notes = [
            Note::Done {
                contents: vec![
                    content(0, Events::All),
                    content(1, Events::Runs(vec![0..1, 2..3])),
                ],
            },
            Note::Begun {
                batch: 7,
                name: "app/a.gz".into(),
                token: "00ff".into(),
                lines: 3,
                contents: vec![content(2, Events::All)],
                recipe: None,
            },
        ];
        for note in notes {
            runtime
                .block_on(spool.note(note, Durability::Synced))
                .unwrap();
        }
        (dir, chunks)
    }

    /// Returns what a command prints to stdout and stderr, and whether nothing is damaged.
    fn run_command(command: &Command) -> (String, String, bool) {
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let Ok(intact) = execute(command, &mut out, &mut errors) else {
            panic!("the command failed");
        };
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(out), text(errors), intact)
    }

    fn inspected(dir: &TempDir, json: bool) -> String {
        let dir = dir.path().to_owned();
        let config = None;
        run_command(&Command::Inspect { dir, config, json }).0
    }

    fn verified(dir: &TempDir) -> (String, bool) {
        let dir = dir.path().to_owned();
        let (out, _, intact) = run_command(&Command::Verify { dir });
        (out, intact)
    }

    fn exported(dir: &TempDir, choice: Choice) -> (String, String, bool) {
        let dir = dir.path().to_owned();
        run_command(&Command::Export { dir, choice })
    }

    /// Flips a bit in a chunk's data. Returns the segment's name.
    fn rot(dir: &TempDir, chunk: &[u8]) -> String {
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            if let Some(at) = bytes
                .windows(chunk.len())
                .position(|window| window == chunk)
            {
                bytes[at + 3] ^= 1;
                fs::write(&path, bytes).unwrap();
                return path.file_name().unwrap().to_str().unwrap().to_owned();
            }
        }
        panic!("no segment contains that chunk");
    }

    #[test]
    fn inspect_shows_the_contents() {
        let (dir, chunks) = spool();
        let text = inspected(&dir, false);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        for expected in [
            "chunks 5",
            "unfinished 4 bytes 204",
            "oldest 2023-11-14T22:13:16.000Z",
            "2 102 2023-11-14T22:13:17.000Z app",
            // Control characters in a tag are escaped.
            "1 51 2023-11-14T22:13:16.000Z \\u{1b}[2Jevil\\n",
            "7 3 1 app/a.gz",
            &format!("{} 0 2", chunks[1]),
        ] {
            assert!(
                lines.iter().any(|line| line == expected),
                "{expected}: {text}"
            );
        }
        assert!(!text.contains('\x1b'));
        let segments = fs::read_dir(dir.path()).unwrap();
        for segment in segments.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
            assert!(
                !segment.ends_with(".seg") || text.contains(&segment),
                "{segment}: {text}"
            );
        }
    }

    #[test]
    fn inspect_shows_the_same_as_json() {
        let (dir, chunks) = spool();
        let shown: Value = serde_json::from_str(&inspected(&dir, true)).unwrap();
        assert_eq!(
            (&shown["chunks"], &shown["unfinished"]),
            (&json!(5), &json!(4))
        );
        assert_eq!(shown["oldest"], "2023-11-14T22:13:16.000Z");
        assert_eq!(
            shown["tags"],
            json!([
                {"tag": "\x1b[2Jevil\n", "target": null, "chunks": 1, "bytes": 51, "oldest": "2023-11-14T22:13:16.000Z"},
                {"tag": "app", "target": null, "chunks": 2, "bytes": 102, "oldest": "2023-11-14T22:13:17.000Z"},
                {"tag": "sys", "target": null, "chunks": 1, "bytes": 51, "oldest": "2023-11-14T22:13:18.000Z"},
            ])
        );
        assert_eq!(
            shown["pending"],
            json!([{
                "batch": 7,
                "name": "app/a.gz",
                "token": "00ff",
                "lines": 3,
                "contents": [{"chunk": chunks[2], "events": null}],
            }])
        );
        assert_eq!(
            shown["settled"],
            json!([{"chunk": chunks[1], "events": [[0, 1], [2, 3]]}])
        );
        let segments = shown["segments"].as_array().unwrap();
        assert!(segments.len() > 1);
        let sum: u64 = segments
            .iter()
            .map(|segment| segment["bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(shown["bytes"], sum);
        assert_eq!(shown["spool"].as_str().unwrap().len(), 16);
    }

    #[test]
    fn inspect_names_the_chunk_at_work_and_those_at_which_a_process_ended() {
        let (dir, chunks) = spool();
        let open = || {
            let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
            let options = spool::Options {
                limit: 1 << 20,
                segment_bytes: Some(400),
            };
            indexed(Spool::open(disk, options).unwrap().0)
        };
        open().begin_work(chunks[1], Work::Rebuild, false);
        let spool = open();
        spool.begin_work(chunks[3], Work::Deliver, false);
        let shown: Value = serde_json::from_str(&inspected(&dir, true)).unwrap();
        assert_eq!(
            shown["at_work"],
            json!({"chunk": chunks[3], "work": "deliver", "ends": 0})
        );
        assert_eq!(
            shown["suspects"],
            json!([{"chunk": chunks[1], "work": "rebuild", "ends": 1}])
        );
        assert_eq!(shown["foreign"], json!([]));
        let text = inspected(&dir, false);
        for row in [
            format!("at work      chunk {} is being processed", chunks[3]),
            format!(
                "suspect      chunk {} (rebuild): a process ended during it,",
                chunks[1]
            ),
        ] {
            assert!(text.contains(&row), "{row}: {text}");
        }
        let (text, intact) = verified(&dir);
        assert!(intact && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn verify_finds_every_damaged_place() {
        let (dir, chunks) = spool();
        let (text, intact) = verified(&dir);
        assert!(intact && text.contains("5 chunks and 2 notes"), "{text}");
        let (first, last) = (rot(&dir, &chunk_of(0)), rot(&dir, &chunk_of(30)));
        let (text, intact) = verified(&dir);
        assert!(!intact);
        let damaged: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("damaged"))
            .collect();
        assert_eq!(damaged.len(), 2, "{text}");
        assert!(
            damaged[0].starts_with(&first) && damaged[1].starts_with(&last),
            "{text}"
        );
        assert!(
            damaged[1].ends_with(&format!("(frame {})", chunks[3])),
            "{text}"
        );
        assert!(text.contains("3 chunks and 2 notes"), "{text}");
    }

    /// Damages a file's bytes.
    type Harm = fn(&mut Vec<u8>);

    #[test]
    fn verify_reports_what_a_start_would_report() {
        let harms: [(&str, Harm); 7] = [
            ("nothing", |_| {}),
            ("empty", Vec::clear),
            ("zeros", |bytes| bytes.fill(0)),
            ("a random tail", |bytes| {
                bytes.extend((0..400_u32).map(|n| (n * 37 % 251) as u8 | 1));
            }),
            ("a tail of zeros", |bytes| bytes.extend([0; 4_096])),
            ("half of it", |bytes| bytes.truncate(bytes.len() / 2)),
            ("all but some bytes", |bytes| {
                bytes.truncate(bytes.len() - 9)
            }),
        ];
        for has_manifest in [true, false] {
            for (what, harm) in harms {
                for at in 0..3 {
                    let (dir, _) = spool();
                    let names = fs::read_dir(dir.path()).unwrap();
                    let names =
                        names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                    let mut segments: Vec<String> =
                        names.filter(|name| name.ends_with(".seg")).collect();
                    segments.sort();
                    assert_eq!(segments.len(), 3);
                    if !has_manifest {
                        for name in ["manifest.0", "manifest.1"] {
                            let _ = fs::remove_file(dir.path().join(name));
                        }
                    }
                    let path = dir.path().join(&segments[at]);
                    let mut bytes = fs::read(&path).unwrap();
                    harm(&mut bytes);
                    fs::write(&path, bytes).unwrap();
                    let (text, intact) = verified(&dir);
                    let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
                    let options = spool::Options {
                        limit: 1 << 20,
                        segment_bytes: Some(400),
                    };
                    let (spool, recovered) = Spool::open(disk, options).unwrap();
                    let mut findings = recovered.findings;
                    let mut after = None;
                    while let Some((chunk, _)) = spool.next(after).unwrap() {
                        after = Some(chunk);
                    }
                    findings.extend(spool.look().findings);
                    drop(spool);
                    let case = format!("{what} {at} {has_manifest}: {text}{findings:?}");
                    eprintln!("{case}");
                    // A write that a crash interrupted is not a loss.
                    let harmless =
                        |finding: &&String| finding.contains("its last write was never finished");
                    assert_eq!(
                        intact,
                        findings.iter().all(|finding| harmless(&finding)),
                        "{case}"
                    );
                    for finding in &findings {
                        let name = finding.split([' ', ':']).next().unwrap();
                        assert!(text.contains(name), "{name}: {case}");
                    }
                    assert!(intact || text.contains("the rest is not"), "{case}");
                    // Without a manifest, an empty oldest segment may have been finished.
                    let is_known = has_manifest || at > 0 || what != "empty";
                    if ["empty", "zeros", "half of it"].contains(&what) && at < 2 && is_known {
                        assert!(!intact, "{case}");
                    }
                    assert!(what == "nothing" || text.contains(&segments[at]), "{case}");
                }
            }
        }
    }

    #[test]
    fn missing_segments_and_those_put_back_too_late_are_reported() {
        let (dir, _) = spool();
        let names = fs::read_dir(dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut segments: Vec<String> = names.filter(|name| name.ends_with(".seg")).collect();
        segments.sort();
        let path = |name: &str| dir.path().join(name);
        // The last two, of which the newest was still being written to.
        let away = segments.split_off(segments.len() - 2);
        let whole: Vec<_> = away
            .iter()
            .map(|name| fs::read(path(name)).unwrap())
            .collect();
        away.iter()
            .for_each(|name| fs::remove_file(path(name)).unwrap());
        let (text, intact) = verified(&dir);
        assert!(!intact);
        for (name, count) in away
            .iter()
            .zip(["2 chunks in it", "1 chunks in it, perhaps more"])
        {
            let expected = format!("{name} is missing: {count} were not delivered");
            assert!(text.contains(&expected), "{text}");
            assert!(inspected(&dir, false).contains(&expected));
        }
        let json: Value = serde_json::from_str(&inspected(&dir, true)).unwrap();
        assert_eq!(json["missing"][0]["unfinished"], 2, "{json}");
        for (name, bytes) in away.iter().zip(whole) {
            fs::write(path(name), bytes).unwrap();
        }
        assert!(verified(&dir).1);
        // The first one's chunk is finished.
        let first = fs::read(path(&segments[0])).unwrap();
        let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
        let options = spool::Options {
            limit: 1 << 20,
            segment_bytes: Some(400),
        };
        let (spool, _) = Spool::open(disk, options).unwrap();
        while let Some((chunk, _)) = spool.next(None).unwrap() {
            spool.finish(chunk);
        }
        spool.close();
        drop(spool);
        assert!(!path(&segments[0]).exists());
        fs::write(path(&segments[0]), first).unwrap();
        let expected = format!("{}: was finished and removed", segments[0]);
        let (text, _) = verified(&dir);
        assert!(text.contains(&expected), "{text}");
        assert!(inspected(&dir, false).contains("the next start puts it into quarantine"));
    }

    #[test]
    fn spare_and_preallocated_bytes_are_not_damage() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
        let options = spool::Options {
            limit: 64 << 10,
            segment_bytes: Some(4_096),
        };
        let (spool, _) = Spool::open(disk, options).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let keep = |byte: u8| {
            let data = vec![byte; 1_500];
            let chunk = Chunk {
                id: chunk_id(b"app", &data),
                tag: b"app",
                data: data.into(),
                arrived: Time::default(),
            };
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            runtime.block_on(spool.append(chunk, deadline)).unwrap();
        };
        (0..8).for_each(keep);
        while let Some((chunk, _)) = spool.next(None).unwrap() {
            let events = Events::All;
            let contents = vec![Content { chunk, events }];
            let done = Note::Done { contents };
            runtime
                .block_on(spool.note(done, Durability::Synced))
                .unwrap();
            spool.finish(chunk);
        }
        // The first is written after everything that was finished; the others need a segment and a half.
        (100..103).for_each(keep);
        let text = inspected(&dir, false);
        assert!(text.contains("at its end are preallocated"), "{text}");
        assert!(text.contains("that wait to be reused"), "{text}");
        let json: Value = serde_json::from_str(&inspected(&dir, true)).unwrap();
        let room = json["segments"].as_array().unwrap().last().unwrap()["room_bytes"].as_u64();
        assert!(room.is_some_and(|room| room > 1_000), "{json}");
        assert!(
            json["spares"][0]["bytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 2_000),
            "{json}"
        );
        let (text, intact) = verified(&dir);
        assert!(intact && text.contains("3 chunks"), "{text}");
    }

    #[test]
    fn a_write_in_progress_is_not_damage() {
        let (dir, _) = spool();
        let segments = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let newest = segments
            .filter(|path| path.extension().is_some_and(|it| it == "seg"))
            .max()
            .unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        bytes.extend([0xf5; 30]);
        fs::write(&newest, bytes).unwrap();
        let (text, intact) = verified(&dir);
        assert!(intact && text.contains("30 bytes at its end"), "{text}");
    }

    #[test]
    fn export_writes_what_is_left_to_deliver() {
        let (dir, _) = spool();
        let (text, errors, intact) = exported(&dir, Choice::default());
        let lines = |numbers: &[u8]| -> String {
            numbers.iter().map(|n| format!("{{\"n\":{n}}}\n")).collect()
        };
        // The first and the third record of the second chunk are delivered.
        assert_eq!(text, lines(&[11, 20, 21, 22, 30, 31, 32, 40, 41, 42]));
        assert!(intact && errors.is_empty(), "{errors}");
    }

    #[test]
    fn export_writes_delivered_records_and_their_origin_if_requested() {
        let (dir, _) = spool();
        let choice = Choice {
            all: true,
            time_key: Some("at".into()),
            tag_key: Some("tag".into()),
        };
        let (text, _, intact) = exported(&dir, choice);
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(intact);
        assert_eq!(lines.len(), 15);
        assert_eq!(
            lines[0],
            json!({"n": 0, "at": "1970-01-01T00:00:00.000Z", "tag": "app"})
        );
        assert_eq!(lines[14]["tag"], "\x1b[2Jevil\n");
    }

    #[test]
    fn export_reports_damage_and_writes_the_rest() {
        let (dir, chunks) = spool();
        rot(&dir, &chunk_of(20));
        let (text, errors, intact) = exported(&dir, Choice::default());
        assert!(!intact);
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(
            errors.contains(&format!("chunk {} is damaged", chunks[2])),
            "{errors}"
        );
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }

    /// Waits until all chunks are known.
    fn indexed(spool: Arc<Spool>) -> Arc<Spool> {
        let mut after = None;
        while let Some((chunk, _)) = spool.next(after).unwrap() {
            after = Some(chunk);
        }
        spool
    }

    /// A spool as [`spool`] makes it, of which an event of the second chunk and the whole fourth are relocated. Returns the
    /// new chunk's bytes.
    fn relocated() -> (TempDir, Vec<u8>) {
        let (dir, chunks) = spool();
        let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
        let options = spool::Options {
            limit: 1 << 20,
            segment_bytes: Some(400),
        };
        let spool = indexed(Spool::open(disk, options).unwrap().0);
        let data = [event(11, 11), chunk_of(30)].concat();
        let relocation = Relocation {
            tag: b"app".to_vec(),
            data: data.clone().into(),
            arrived: Time::default(),
            origins: vec![
                Content {
                    chunk: chunks[1],
                    events: Events::Runs(std::iter::once(1..2).collect()),
                },
                Content {
                    chunk: chunks[3],
                    events: Events::All,
                },
            ],
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(spool.relocate(relocation)).unwrap();
        // Damage at the very end would be taken for a write that a crash ended.
        let ended = Note::Ended {
            batch: 7,
            delivered: Some(Vec::new()),
        };
        let noted = spool.note(ended, Durability::Synced);
        runtime.block_on(noted).unwrap();
        (dir, data)
    }

    #[test]
    fn a_relocated_chunk_is_counted_and_exported_once_from_where_it_is_now() {
        let (dir, data) = relocated();
        let text = inspected(&dir, false);
        assert!(
            text.contains("chunks       6\nrelocated    1 of them"),
            "{text}"
        );
        let told: Value = serde_json::from_str(&inspected(&dir, true)).unwrap();
        assert_eq!(told["relocated"], 1);
        // The fourth chunk is finished by it.
        assert_eq!(told["unfinished"], 4);
        let bytes: u64 = told["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| tag["bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(bytes, 3 * 51 + data.len() as u64);
        let by_segment = told["segments"].as_array().unwrap().iter();
        let by_segment: u64 = by_segment.filter_map(|row| row["relocated"].as_u64()).sum();
        assert_eq!(by_segment, 1);
        let (text, sound) = verified(&dir);
        assert!(sound && text.contains("6 chunks and 3 notes"), "{text}");

        let lines = |numbers: &[u8]| -> String {
            numbers.iter().map(|n| format!("{{\"n\":{n}}}\n")).collect()
        };
        let (text, errors, sound) = exported(&dir, Choice::default());
        assert_eq!(text, lines(&[20, 21, 22, 40, 41, 42, 11, 30, 31, 32]));
        assert!(sound && errors.is_empty(), "{errors}");
        let choice = Choice {
            all: true,
            ..Choice::default()
        };
        let (text, _, sound) = exported(&dir, choice);
        let delivered = [0, 1, 2, 10, 12];
        let left = [20, 21, 22, 40, 41, 42, 11, 30, 31, 32];
        assert_eq!(text, lines(&[&delivered[..], &left].concat()));
        assert!(sound);
    }

    #[test]
    fn a_damaged_relocated_chunk_is_named_and_exported_from_its_origins() {
        let (dir, data) = relocated();
        let name = rot(&dir, &data);
        let (text, sound) = verified(&dir);
        assert!(!sound && text.contains(&name), "{text}");
        let (text, errors, sound) = exported(&dir, Choice::default());
        assert!(!sound && errors.contains(&name), "{errors}");
        assert_eq!(text.lines().count(), 10, "{text}");
        assert_eq!(text.matches("{\"n\":11}").count(), 1, "{text}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = PathBuf::from("/nonexistent/spool");
        let done = execute(&Command::Verify { dir }, &mut Vec::new(), &mut Vec::new());
        let Err(Failure::Message(message)) = done else {
            panic!("{:?}", done.is_ok());
        };
        assert!(
            message.starts_with("/nonexistent/spool cannot be read"),
            "{message}"
        );
    }

    #[test]
    fn a_configuration_adds_the_limit_the_targets_and_the_time_until_full() {
        let (dir, _) = spool();
        let file = dir.path().join("fluent-bit.conf");
        let output = |dir: &Path, stream: &str| {
            format!(
                "[OUTPUT]\n    Name ferry\n    Match *\n    region us-east-1\n    delivery_stream {stream}\n    \
                 spool on\n    spool_dir {}\n    spool_limit 16M\n",
                dir.display()
            )
        };
        let both = output(Path::new("/elsewhere"), "x") + &output(dir.path(), "to-{tag}");
        fs::write(&file, both).unwrap();
        let command = |json| Command::Inspect {
            dir: dir.path().to_owned(),
            config: Some(file.clone()),
            json,
        };
        let text = run_command(&command(false)).0;
        for expected in [
            "limit        16000000 bytes, 0% in use",
            "app to to-app",
            "full_in ",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let shown: Value = serde_json::from_str(&run_command(&command(true)).0).unwrap();
        assert_eq!(shown["limit_bytes"], 16_000_000);
        assert!(shown["full_in_seconds"].is_u64(), "{shown}");
        assert_eq!(shown["tags"][2]["target"], "to-sys");
    }

    #[test]
    fn the_time_until_full_is_the_free_space_over_the_rate_of_unfinished_chunks() {
        assert_eq!(full_in(1_000, 100, 60), Some(600));
        assert_eq!(full_in(0, 100, 60), Some(0));
        assert_eq!(full_in(1_000, 0, 60), None);
        assert_eq!(full_in(1_000, 100, 0), None);
        assert_eq!(full_in(1_000, 100, -5), None);
        assert_eq!(full_in(u64::MAX, 1, i64::MAX), None);
    }
}
