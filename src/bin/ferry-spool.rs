//! `ferry-spool`: looks into a spool's directory, and changes nothing in it. It takes no lock, so that it
//! works beside an instance that runs, and on a copy.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use ferry::codec::Encoding;
use ferry::codec::json::Options;
use ferry::codec::template::Template;
use ferry::codec::time::{TimeFormat, write_iso8601};
use ferry::ids::EventSet;
use ferry::ids::Time;
use ferry::spool::disk::{Disk, LocalDisk};
use ferry::spool::handles::Handles;
use ferry::spool::scan::{Check, Missing, Place, Survey, survey};
use ferry::spool::{Content, Events, Seq, Suspect, Work};
use serde_json::{Value, json};

/// Looks into the directory where Ferry keeps chunks (spool_dir), without changing anything there
#[derive(Parser)]
#[command(version, after_help = STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const STATUS: &str =
    "Status: 0, all is well; 1, verify or export found damage; 2, it could not be read at all";

#[derive(Subcommand)]
enum Command {
    /// Say what is there: segments, unfinished chunks by tag, what is on its way
    Inspect {
        /// The spool's directory, or a copy of it
        dir: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every checksum; a line for each place that is damaged
    Verify {
        /// The spool's directory, or a copy of it
        dir: PathBuf,
    },
    /// Write the records of unfinished chunks as JSON lines, without those that are delivered already
    Export {
        /// The spool's directory, or a copy of it
        dir: PathBuf,
        #[command(flatten)]
        choice: Choice,
    },
}

#[derive(Args, Default)]
struct Choice {
    /// Write what is finished or delivered as well, as far as it is still there
    #[arg(long)]
    all: bool,
    /// Add each event's time under this key
    #[arg(long, value_name = "KEY")]
    time_key: Option<String>,
    /// Add each chunk's tag under this key
    #[arg(long, value_name = "KEY")]
    tag_key: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(&cli.command, &mut out, &mut io::stderr().lock());
    match done.and_then(|sound| out.flush().map(|()| sound)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // Who reads has enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Does what is asked for. Whether nothing is damaged.
fn run(command: &Command, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<bool> {
    match command {
        Command::Inspect { dir, json } => {
            let disk = LocalDisk::look(dir)?;
            let survey = survey(&disk, Check::LastSegment)?;
            let tags = tags(&survey, &Handles::new(Arc::new(disk)))?;
            match json {
                true => writeln!(out, "{:#}", inspect_json(&survey, &tags))?,
                false => inspect(&survey, &tags, out)?,
            }
            Ok(true)
        }
        Command::Verify { dir } => verify(&survey(&LocalDisk::look(dir)?, Check::All)?, out),
        Command::Export { dir, choice } => {
            export(Arc::new(LocalDisk::look(dir)?), choice, out, errors)
        }
    }
}

/// What is unfinished of one tag.
struct Waiting {
    chunks: u64,
    /// Of their data.
    bytes: u64,
    oldest: Time,
}

fn tags(survey: &Survey, handles: &Handles) -> io::Result<BTreeMap<Vec<u8>, Waiting>> {
    let mut tags = BTreeMap::new();
    for (_, place) in unfinished(survey) {
        let file = match handles.get(place.segment) {
            Ok(file) => file,
            // It is finished since.
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
        waiting.bytes += u64::from(place.data_len);
        waiting.oldest = waiting.oldest.min(place.arrived);
    }
    Ok(tags)
}

fn unfinished(survey: &Survey) -> impl Iterator<Item = (Seq, Place)> + '_ {
    let chunks = survey.chunks();
    chunks.filter(|(chunk, _)| !survey.is_finished(*chunk))
}

/// Unfinished chunks of which something is settled.
fn partly_settled(survey: &Survey) -> impl Iterator<Item = Seq> + '_ {
    let chunks = unfinished(survey).map(|(chunk, _)| chunk);
    chunks.filter(|chunk| !survey.settled(*chunk).is_empty())
}

/// What is done with a chunk, in a word.
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

/// Text from outside, in one line and without what a terminal would obey.
fn plain(text: &[u8]) -> String {
    String::from_utf8_lossy(text).escape_debug().to_string()
}

fn inspect(
    survey: &Survey,
    tags: &BTreeMap<Vec<u8>, Waiting>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let bytes: u64 = survey.segments.iter().map(|segment| segment.bytes).sum();
    let spool = survey.spool.map_or("none".into(), hex);
    row(out, "spool", &[&spool])?;
    row(out, "segments", &[&survey.segments.len(), &"bytes", &bytes])?;
    let (mut left, mut waiting) = (0, 0u64);
    for (_, place) in unfinished(survey) {
        left += 1;
        waiting += u64::from(place.data_len);
    }
    row(out, "chunks", &[&survey.chunks().count()])?;
    row(out, "unfinished", &[&left, &"bytes", &waiting])?;
    if let Some(oldest) = unfinished(survey).map(|(_, place)| place.arrived).min() {
        row(out, "oldest", &[&iso(oldest)])?;
    }
    if !survey.quarantine.is_empty() {
        let bytes: u64 = survey.quarantine.iter().map(|(_, bytes)| bytes).sum();
        row(
            out,
            "quarantined",
            &[&survey.quarantine.len(), &"bytes", &bytes],
        )?;
    }
    let (under_way, suspects) = survey.suspected();
    if let Some(it) = under_way {
        let words = "is being worked on, or the process ended at it:";
        row(
            out,
            "at work",
            &[&"chunk", &it.chunk, &words, &work(it.work)],
        )?;
    }
    for it in suspects {
        let ends = match it.is_condemned() {
            true => "ended at it twice, and it is set aside at the next start",
            false => "ended at it, and it goes behind the others and alone",
        };
        let ends = format!("({}): a process {ends}", work(it.work));
        row(out, "suspect", &[&"chunk", &it.chunk, &ends])?;
    }

    writeln!(
        out,
        "\n{:<24} {:>12} {:>8} {:>10} {:>8}",
        "segment", "bytes", "chunks", "unfinished", "notes"
    )?;
    for segment in &survey.segments {
        let chunks = segment.chunks.iter();
        let left = chunks
            .filter(|(chunk, _)| !survey.is_finished(*chunk))
            .count();
        writeln!(
            out,
            "{:<24} {:>12} {:>8} {left:>10} {:>8}",
            segment.name(),
            segment.bytes,
            segment.chunks.len(),
            segment.notes
        )?;
        for damage in &segment.damage {
            writeln!(out, "  {damage}")?;
        }
        if segment.torn > 0 {
            writeln!(out, "  {}", torn(segment.torn))?;
        }
        if segment.room > 0 {
            let bytes = segment.room;
            writeln!(
                out,
                "  {bytes} bytes at its end are there to be written over"
            )?;
        }
    }
    for missing in survey.missing() {
        writeln!(out, "{missing}")?;
    }
    for (name, bytes) in &survey.spares {
        writeln!(
            out,
            "{name:<24} {bytes} bytes that wait to be written again or freed"
        )?;
    }
    for (name, what) in &survey.foreign {
        writeln!(out, "{name:<24} {what}")?;
    }

    if !tags.is_empty() {
        writeln!(
            out,
            "\n{:>10} {:>12}  {:<24}  tag",
            "unfinished", "bytes", "oldest"
        )?;
        for (
            tag,
            Waiting {
                chunks,
                bytes,
                oldest,
            },
        ) in tags
        {
            writeln!(
                out,
                "{chunks:>10} {bytes:>12}  {:<24}  {}",
                iso(*oldest),
                plain(tag)
            )?;
        }
    }
    let pending = survey.pending();
    if !pending.is_empty() {
        writeln!(
            out,
            "\n{:>8} {:>8} {:>8}  on its way to",
            "batch", "lines", "chunks"
        )?;
        for batch in pending {
            let (number, lines, chunks) = (batch.batch, batch.lines, batch.contents.len());
            writeln!(
                out,
                "{number:>8} {lines:>8} {chunks:>8}  {}",
                plain(batch.name.as_bytes())
            )?;
        }
    }
    if partly_settled(survey).next().is_some() {
        writeln!(out, "\n{:>8}  events that are settled", "chunk")?;
        for chunk in partly_settled(survey) {
            let runs = survey.settled(chunk).iter();
            let runs: Vec<String> = runs
                .map(|run| match run.end - run.start {
                    1 => run.start.to_string(),
                    _ => format!("{}-{}", run.start, run.end - 1),
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

fn torn(bytes: u64) -> String {
    format!(
        "{bytes} bytes at its end are no whole frame: a write that goes on, or that a crash ended"
    )
}

fn inspect_json(survey: &Survey, tags: &BTreeMap<Vec<u8>, Waiting>) -> Value {
    let segment = |segment: &ferry::spool::scan::Segment| {
        let chunks = segment.chunks.iter();
        let damage = segment.damage.iter().map(|damage| {
            json!({
                "offset": damage.offset,
                "bytes": damage.bytes,
                "frames": [damage.missing.start, damage.missing.end - 1],
            })
        });
        json!({
            "name": segment.name(),
            "bytes": segment.bytes,
            "chunks": segment.chunks.len(),
            "unfinished": chunks.filter(|(chunk, _)| !survey.is_finished(*chunk)).count(),
            "notes": segment.notes,
            "damage": damage.collect::<Vec<_>>(),
            "torn_bytes": segment.torn,
            "room_bytes": segment.room,
        })
    };
    let tag = |(tag, waiting): (&Vec<u8>, &Waiting)| {
        json!({
            "tag": String::from_utf8_lossy(tag),
            "chunks": waiting.chunks,
            "bytes": waiting.bytes,
            "oldest": iso(waiting.oldest),
        })
    };
    let content = |content: &Content| match &content.events {
        Events::All => json!({ "chunk": content.chunk, "events": null }),
        Events::Runs(runs) => json!({ "chunk": content.chunk, "events": pairs(runs) }),
    };
    let pending = survey.pending().into_iter().map(|batch| {
        json!({
            "batch": batch.batch,
            "name": batch.name,
            "token": batch.token,
            "lines": batch.lines,
            "contents": batch.contents.iter().map(content).collect::<Vec<_>>(),
        })
    });
    let settled = partly_settled(survey)
        .map(|chunk| json!({ "chunk": chunk, "events": pairs(survey.settled(chunk)) }));
    let file = |(name, bytes): &(String, u64)| json!({ "name": name, "bytes": bytes });
    let missing = |missing: &Missing| {
        let Missing { first, frames } = missing;
        json!({ "first": first, "frames": [frames.start, frames.end - 1] })
    };
    let suspect =
        |it: &Suspect| json!({ "chunk": it.chunk, "work": work(it.work), "ends": it.ends });
    let (under_way, suspects) = survey.suspected();
    let foreign = |(name, what): &(String, String)| json!({ "name": name, "what": what });
    json!({
        "spool": survey.spool.map(hex),
        "bytes": survey.segments.iter().map(|segment| segment.bytes).sum::<u64>(),
        "chunks": survey.chunks().count(),
        "unfinished": unfinished(survey).count(),
        "oldest": unfinished(survey).map(|(_, place)| place.arrived).min().map(iso),
        "segments": survey.segments.iter().map(segment).collect::<Vec<_>>(),
        "tags": tags.iter().map(tag).collect::<Vec<_>>(),
        "pending": pending.collect::<Vec<_>>(),
        "settled": settled.collect::<Vec<_>>(),
        "missing": survey.missing().iter().map(missing).collect::<Vec<_>>(),
        "quarantine": survey.quarantine.iter().map(file).collect::<Vec<_>>(),
        "at_work": under_way.as_ref().map(suspect),
        "suspects": suspects.iter().map(suspect).collect::<Vec<_>>(),
        "spares": survey.spares.iter().map(file).collect::<Vec<_>>(),
        "foreign": survey.foreign.iter().map(foreign).collect::<Vec<_>>(),
    })
}

/// Runs as pairs of the first event and the one behind the last.
fn pairs(runs: &[Range<u32>]) -> Vec<[u32; 2]> {
    runs.iter().map(|run| [run.start, run.end]).collect()
}

/// Says what is damaged or missing, a line each. Whether nothing is.
fn damages(survey: &Survey, out: &mut dyn Write) -> io::Result<bool> {
    let mut sound = true;
    for missing in survey.missing() {
        writeln!(out, "{missing}")?;
        sound = false;
    }
    for segment in &survey.segments {
        for damage in &segment.damage {
            writeln!(out, "{}: {damage}", segment.name())?;
            sound = false;
        }
    }
    Ok(sound)
}

fn verify(survey: &Survey, out: &mut dyn Write) -> io::Result<bool> {
    let sound = damages(survey, out)?;
    for segment in survey.segments.iter().filter(|segment| segment.torn > 0) {
        writeln!(out, "{}: {}", segment.name(), torn(segment.torn))?;
    }
    for (name, what) in &survey.foreign {
        writeln!(out, "{name}: not checked: {what}")?;
    }
    let notes: u64 = survey.segments.iter().map(|segment| segment.notes).sum();
    writeln!(
        out,
        "{} segments, {} chunks and {notes} notes are as they were written{}",
        survey.segments.len(),
        survey.chunks().count(),
        if sound { "" } else { ", the rest is not" }
    )?;
    Ok(sound)
}

/// Writes records, and says what cannot be written. Whether nothing is damaged.
fn export(
    disk: Arc<dyn Disk>,
    choice: &Choice,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> io::Result<bool> {
    let survey = survey(&*disk, Check::LastSegment)?;
    let handles = Handles::new(disk);
    let mut sound = damages(&survey, errors)?;
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
        let file = match handles.get(place.segment) {
            Ok(file) => file,
            // It is finished since.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let stored = match place.read(&*file)? {
            Ok(stored) => stored,
            // It was removed while it was read, and emptied or written over.
            Err(_) if !handles.is_named(place.segment, &*file)? => continue,
            Err(_) => {
                let Place {
                    segment, offset, ..
                } = place;
                writeln!(
                    errors,
                    "chunk {chunk} is damaged: at offset {offset} of segment {segment}"
                )?;
                sound = false;
                continue;
            }
        };
        let mut settled = EventSet::default();
        if !choice.all {
            for event in survey.settled(chunk).iter().cloned().flatten() {
                settled.insert(event);
            }
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
                    "chunk {chunk} has what is no record: {}: {}",
                    letter.reason.as_str(),
                    letter.detail
                )?;
                sound = false;
            }
        }
    }
    Ok(sound)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use ferry::ids::chunk_id;
    use ferry::spool::{self, Chunk, Durability, Note, Spool};
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

    /// A spool of five chunks, of which the first is finished, the second settled in part, and the third on
    /// its way. Gives the chunks' numbers.
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
            },
        ];
        for note in notes {
            runtime
                .block_on(spool.note(note, Durability::Synced))
                .unwrap();
        }
        (dir, chunks)
    }

    /// What a command says, what it complains of, and whether all was well.
    fn said(command: &Command) -> (String, String, bool) {
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let sound = run(command, &mut out, &mut errors).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(out), text(errors), sound)
    }

    fn inspected(dir: &TempDir, json: bool) -> String {
        let dir = dir.path().to_owned();
        said(&Command::Inspect { dir, json }).0
    }

    fn verified(dir: &TempDir) -> (String, bool) {
        let dir = dir.path().to_owned();
        let (out, _, sound) = said(&Command::Verify { dir });
        (out, sound)
    }

    fn exported(dir: &TempDir, choice: Choice) -> (String, String, bool) {
        let dir = dir.path().to_owned();
        said(&Command::Export { dir, choice })
    }

    /// Turns a bit over in a chunk's data. Gives the segment's name.
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
        panic!("no segment holds that chunk");
    }

    #[test]
    fn inspect_says_what_is_there() {
        let (dir, chunks) = spool();
        let text = inspected(&dir, false);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        for expected in [
            "chunks 5",
            "unfinished 4 bytes 204",
            "oldest 2023-11-14T22:13:16.000Z",
            "2 102 2023-11-14T22:13:17.000Z app",
            // What a tag says is not obeyed.
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
    fn inspect_says_the_same_as_json() {
        let (dir, chunks) = spool();
        let told: Value = serde_json::from_str(&inspected(&dir, true)).unwrap();
        assert_eq!(
            (&told["chunks"], &told["unfinished"]),
            (&json!(5), &json!(4))
        );
        assert_eq!(told["oldest"], "2023-11-14T22:13:16.000Z");
        assert_eq!(
            told["tags"],
            json!([
                {"tag": "\x1b[2Jevil\n", "chunks": 1, "bytes": 51, "oldest": "2023-11-14T22:13:16.000Z"},
                {"tag": "app", "chunks": 2, "bytes": 102, "oldest": "2023-11-14T22:13:17.000Z"},
                {"tag": "sys", "chunks": 1, "bytes": 51, "oldest": "2023-11-14T22:13:18.000Z"},
            ])
        );
        assert_eq!(
            told["pending"],
            json!([{
                "batch": 7,
                "name": "app/a.gz",
                "token": "00ff",
                "lines": 3,
                "contents": [{"chunk": chunks[2], "events": null}],
            }])
        );
        assert_eq!(
            told["settled"],
            json!([{"chunk": chunks[1], "events": [[0, 1], [2, 3]]}])
        );
        let segments = told["segments"].as_array().unwrap();
        assert!(segments.len() > 1);
        let sum: u64 = segments
            .iter()
            .map(|segment| segment["bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(told["bytes"], sum);
        assert_eq!(told["spool"].as_str().unwrap().len(), 16);
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
            Spool::open(disk, options).unwrap().0
        };
        open().begin_work(chunks[1], Work::Rebuild, false);
        let spool = open();
        spool.begin_work(chunks[3], Work::Deliver, false);
        let told: Value = serde_json::from_str(&inspected(&dir, true)).unwrap();
        assert_eq!(
            told["at_work"],
            json!({"chunk": chunks[3], "work": "deliver", "ends": 0})
        );
        assert_eq!(
            told["suspects"],
            json!([{"chunk": chunks[1], "work": "rebuild", "ends": 1}])
        );
        assert_eq!(told["foreign"], json!([]));
        let text = inspected(&dir, false);
        for row in [
            format!("at work      chunk {} is being worked on", chunks[3]),
            format!(
                "suspect      chunk {} (rebuild): a process ended at it,",
                chunks[1]
            ),
        ] {
            assert!(text.contains(&row), "{row}: {text}");
        }
        let (text, sound) = verified(&dir);
        assert!(sound && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn verify_finds_every_place_that_is_damaged() {
        let (dir, chunks) = spool();
        let (text, sound) = verified(&dir);
        assert!(sound && text.contains("5 chunks and 2 notes"), "{text}");
        let (first, last) = (rot(&dir, &chunk_of(0)), rot(&dir, &chunk_of(30)));
        let (text, sound) = verified(&dir);
        assert!(!sound);
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

    #[test]
    fn what_waits_to_be_written_again_and_what_is_are_no_damage() {
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
        while let Some((chunk, _)) = spool.peek(None) {
            let events = Events::All;
            let contents = vec![Content { chunk, events }];
            let done = Note::Done { contents };
            runtime
                .block_on(spool.note(done, Durability::Synced))
                .unwrap();
            spool.finish(chunk);
        }
        // The first is written behind all that was finished; the others need a segment, and half of another.
        (100..103).for_each(keep);
        let text = inspected(&dir, false);
        assert!(text.contains("are there to be written over"), "{text}");
        assert!(text.contains("that wait to be written again"), "{text}");
        let json: Value = serde_json::from_str(&inspected(&dir, true)).unwrap();
        let room = json["segments"].as_array().unwrap().last().unwrap()["room_bytes"].as_u64();
        assert!(room.is_some_and(|room| room > 1_000), "{json}");
        assert!(
            json["spares"][0]["bytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 2_000),
            "{json}"
        );
        let (text, sound) = verified(&dir);
        assert!(sound && text.contains("3 chunks"), "{text}");
    }

    #[test]
    fn a_write_that_goes_on_is_no_damage() {
        let (dir, _) = spool();
        let segments = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let newest = segments
            .filter(|path| path.extension().is_some())
            .max()
            .unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        bytes.extend([0xf5; 30]);
        fs::write(&newest, bytes).unwrap();
        let (text, sound) = verified(&dir);
        assert!(sound && text.contains("30 bytes at its end"), "{text}");
    }

    #[test]
    fn export_writes_what_is_left_to_deliver() {
        let (dir, _) = spool();
        let (text, errors, sound) = exported(&dir, Choice::default());
        let lines = |numbers: &[u8]| -> String {
            numbers.iter().map(|n| format!("{{\"n\":{n}}}\n")).collect()
        };
        // Of the second chunk the first and the third record are delivered.
        assert_eq!(text, lines(&[11, 20, 21, 22, 30, 31, 32, 40, 41, 42]));
        assert!(sound && errors.is_empty(), "{errors}");
    }

    #[test]
    fn export_writes_what_is_delivered_too_and_where_it_came_from_when_it_is_asked_to() {
        let (dir, _) = spool();
        let choice = Choice {
            all: true,
            time_key: Some("at".into()),
            tag_key: Some("tag".into()),
        };
        let (text, _, sound) = exported(&dir, choice);
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(sound);
        assert_eq!(lines.len(), 15);
        assert_eq!(
            lines[0],
            json!({"n": 0, "at": "1970-01-01T00:00:00.000Z", "tag": "app"})
        );
        assert_eq!(lines[14]["tag"], "\x1b[2Jevil\n");
    }

    #[test]
    fn export_names_what_is_damaged_and_writes_the_rest() {
        let (dir, chunks) = spool();
        rot(&dir, &chunk_of(20));
        let (text, errors, sound) = exported(&dir, Choice::default());
        assert!(!sound);
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(
            errors.contains(&format!("chunk {} is damaged", chunks[2])),
            "{errors}"
        );
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let dir = PathBuf::from("/nonexistent/spool");
        let error = run(&Command::Verify { dir }, &mut Vec::new(), &mut Vec::new()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/nonexistent/spool cannot be read"),
            "{error}"
        );
    }
}
