//! `ferry replay`: dead letters sent again, through the same library that wrote them, without a spool.
//!
//! Each letter becomes a chunk of its own with events `{"record": line}`, for the output that is configured but with
//! `log_key record`: the lines go out exactly as they are. Its tag is made from the letter's bytes. So the same letter
//! makes an object of the same name whenever it is sent, which a store holds once, and what is refused again is known
//! by its tag. It comes into a dead-letter folder of the replay's own, and what it says is reported; the letter itself
//! stays where it was. An instance runs for each delivery stream or folder that letters go to.
//!
//! A letter whose record is an event in msgpack (one that was nested too deep, or larger as a line than as an event)
//! is sent as the event that it is, with everything that the output does to events.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use ferry::check::host::{self, Output};
use ferry::codec::Encoding;
use ferry::codec::msgpack::{Event, Events, Item};
use ferry::codec::template::Template;
use ferry::config::{Config, Destination, Properties, keys, stream_name};
use ferry::delivery::dead_letter::FILE;
use ferry::ids::{Time, Verdict};
use ferry::log::{self, Level};
use ferry::output::Instance;
use indicatif::ProgressBar;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::letters::{self, Found, Letter, LetterFile, Place, Sources, folder_of, lines, look};
use super::{Done, Failure, about, print, print_json, progress, stands};

/// Send dead letters again, once what they were refused for is mended
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct Args {
    /// Fluent Bit's configuration with the output: classic, or YAML where it is named .yaml or .yml. Only its ferry
    /// outputs are read
    config: PathBuf,
    /// Files of dead letters, or folders of them; the output's dead_letter_dir where none is named
    letters: Vec<PathBuf>,
    /// The output to send through, by its alias or its number among the ferry outputs, from 0; needed where there
    /// are several
    #[arg(long, value_name = "N|ALIAS")]
    output: Option<String>,
    /// Say what would become of the letters, and send and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How often a letter is sent again that the destination does not answer for; pauses between grow from 1 to 30
    /// seconds
    #[arg(long, value_name = "N", default_value = "5")]
    retries: u32,
    /// One JSON document: {letters, sent, lines, stay, files, stays: [{file, line, reason, error}]}
    #[arg(long)]
    json: bool,
}

const STATUS: &str = "\
Letters are judged by what the destination takes now, not by the reason they were written for. Their lines are sent
exactly as they are, to the delivery stream or folder that they were on their way to, or else where the output sends
such a record. A record may be shortened or mended in the file before. Run it as the user that Fluent Bit runs as, with
its environment.

A file is first renamed to NAME.replaying; a Fluent Bit that runs meanwhile begins a new one. What is delivered is
struck out there, and the file is deleted when all of it is. What stays is printed with its reason, and is all that is
left in NAME.replaying: the next replay goes on with it. So does one after a kill; the letters that were on their way
then are sent once more, and a blob store holds them once all the same.

Examples:
  ferry replay /etc/fluent-bit/fluent-bit.conf --dry-run
  ferry replay fluent-bit.conf --output main /var/lib/ferry/main/dead-letters/dead-letters.ndjson

Exit status: 0, all were sent; 1, some stay; 2, the arguments, the configuration or a file cannot be read";

/// The key that lines are sent under, and that `log_key` takes them from.
const KEY: &str = "record";
/// Letters on their way at the same time. They share requests where the destination lets them.
const WORKERS: usize = 64;
/// Bytes of letters on their way at the same time; a larger one goes alone.
const IN_FLIGHT_BYTES: u64 = 64_000_000;
/// The folder beside the letters with what is refused again, and with who we are to a blob store.
const FOLDER: &str = ".ferry-replay";
/// The longest pause before a letter is sent again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Names of the keys that a replay leaves out: those of the output's own state; and, where letters are lines already, those
/// that would make them others.
fn left_out(lines: bool) -> Vec<&'static str> {
    let out = keys::ALL.iter().filter(|key| !key.replayed);
    out.filter(|key| lines || !key.affects_lines())
        .flat_map(|key| key.names())
        .collect()
}

/// What became of the letters, as `--json` gives it.
#[derive(Default, Serialize)]
struct Report {
    /// Letters, and lines that are none.
    letters: u64,
    /// Letters that were delivered; with `--dry-run`, those that would be tried.
    sent: u64,
    /// Lines of these.
    lines: u64,
    /// Letters that stay.
    stay: u64,
    /// The files that hold them.
    files: Vec<String>,
    /// Each of them, in order.
    stays: Vec<Stays>,
}

/// A letter that stays.
#[derive(Serialize)]
struct Stays {
    file: String,
    /// The number of its line in that file, from 1.
    line: u64,
    /// The reason in a word, such as `refused`; `unavailable`: the destination did not take it in time.
    reason: String,
    /// What exactly is wrong.
    error: String,
}

/// Why a letter stays.
#[derive(Clone)]
struct Why {
    reason: String,
    error: String,
}

impl Why {
    fn new(reason: &str, error: impl Into<String>) -> Why {
        Why {
            reason: reason.to_owned(),
            error: error.into(),
        }
    }
}

pub(super) fn run(args: &Args) -> Done {
    let configuration = host::read(&args.config, |name| name == "ferry")?;
    let section = Section::choose(&configuration.outputs, args)?;
    let named = match args.letters.as_slice() {
        [] => vec![section.config.dead_letter_dir.clone()],
        named => named.to_vec(),
    };
    let named = named
        .iter()
        .map(std::path::absolute)
        .collect::<io::Result<Vec<_>>>()?;
    let is_absent = args.letters.is_empty() && stands(&named[0])?.is_none();
    let sources = match is_absent {
        true => Sources::default(),
        false => Sources::find(&named)?,
    };
    let report = match args.dry_run {
        true => would(&section, &sources)?,
        false => send(&section, sources, args)?,
    };
    if args.json {
        print_json(&report)?;
    } else {
        for Stays {
            file,
            line,
            reason,
            error,
        } in &report.stays
        {
            print(&format!("{file}:{line}: {reason}: {error}\n"))?;
        }
    }
    match (report.letters, args.dry_run) {
        (0, _) if is_absent => eprintln!(
            "there is no folder {}: no letter was ever written there, or what it is on is not mounted",
            named[0].display()
        ),
        (0, _) => eprintln!("there are no dead letters in {}", named[0].display()),
        (letters, true) => eprintln!(
            "{letters} letters: {} would be sent ({} lines), {} would stay",
            report.sent, report.lines, report.stay
        ),
        (letters, false) => eprintln!(
            "{letters} letters: {} sent ({} lines), {} stay{}",
            report.sent,
            report.lines,
            report.stay,
            match report.files.as_slice() {
                [] => String::new(),
                files => format!(" in {}", files.join(", ")),
            }
        ),
    }
    Ok(report.stay == 0)
}

/// Where a letter goes, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Its lines, to a delivery stream or into a folder below the store's prefix.
    Lines(String),
    /// Its events, as the output sends such events. Letters with the same bytes differ in the number.
    Events(u32),
}

/// The output that letters go out through.
struct Section<'a> {
    output: &'a Output,
    config: Config,
}

impl<'a> Section<'a> {
    /// The output that is asked for, or the only one.
    fn choose(outputs: &'a [Output], args: &Args) -> Result<Section<'a>, Failure> {
        let file = args.config.display();
        let all: Vec<&str> = outputs.iter().map(|output| &*output.label).collect();
        let all = all.join(", ");
        let fits = |(number, output): &(usize, &Output)| {
            args.output.as_deref().is_none_or(|wanted| {
                output.label == wanted
                    || number.to_string() == wanted
                    || format!("ferry.{number}") == wanted
            })
        };
        let mut found = outputs.iter().enumerate().filter(fits);
        let output = match (found.next(), found.next(), &args.output) {
            (Some((_, output)), None, _) => output,
            (Some(_), Some(_), _) => {
                return Err(format!("{file}: name one of {all} with --output").into());
            }
            (None, _, Some(wanted)) if !outputs.is_empty() => {
                return Err(format!("{file}: there is no output {wanted}; there are {all}").into());
            }
            (None, ..) => return Err(format!("{file}: there is no output ferry").into()),
        };
        for variable in &output.unset {
            eprintln!("warning: {}", variable.trim_start_matches("[env] "));
        }
        let config = Config::read(output).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            format!("{file}: {}: {}", output.label, problems.join("; "))
        })?;
        Ok(Section { output, config })
    }

    fn is_blob(&self) -> bool {
        matches!(self.config.destination, Destination::Blob { .. })
    }

    /// Which way a letter goes, and how many lines it has, or why it stays.
    fn way(&self, found: &Found) -> Result<(Way, u64), Why> {
        let letter = match &found.letter {
            Ok(letter) => letter,
            Err(error) => return Err(Why::new("unreadable", error)),
        };
        let why = |error: String| Why::new(&letter.reason, error);
        let body = letters::body(letter).map_err(why)?;
        let count = lines(&body).count() as u64;
        if letter.reason != "refused" {
            if is_events(&body) {
                return Ok((Way::Events(found.twin), Events::new(&body).count() as u64));
            }
            // What was no event may have been mended by hand.
            let was_event = ["malformed", "too_deep"].contains(&&*letter.reason);
            if was_event && !lines(&body).all(is_object) {
                return Err(why(letter.error.to_string()));
            }
        }
        let target = letter.target.as_deref();
        let way = target.and_then(|target| self.known(target));
        let way = match way {
            Some(way) => way,
            None => self.of_record(letter, &body),
        };
        if way.contains(['{', '$']) {
            return Err(why(format!("its target '{way}' reads as a template")));
        }
        Ok((Way::Lines(way), count))
    }

    /// Where the letter was on its way to, where this destination has such a place.
    fn known(&self, target: &str) -> Option<String> {
        match &self.config.destination {
            Destination::Firehose(_) => (stream_name(target) == target).then(|| target.to_owned()),
            Destination::Blob { prefix, .. } => {
                is_object_name(target).then(|| folder(target, prefix).to_owned())
            }
        }
    }

    /// The name of the delivery stream or folder.
    fn template(&self) -> &Template {
        match &self.config.destination {
            Destination::Firehose(firehose) => &firehose.delivery_stream,
            Destination::Blob { folder, .. } => folder,
        }
    }

    /// Why a letter would stay, or something of it, that goes out as events: what is no record to the output.
    fn unfit(&self, letter: &Letter) -> Option<Why> {
        let body = letters::body(letter).ok()?;
        let encoding = Encoding::new(&self.config.encode, self.template());
        let tag = letter.tag.as_bytes().into();
        let first = encoding
            .steps(&tag, &body, |_| true)
            .find_map(|step| step.letters.into_iter().next());
        first.map(|letter| Why::new(letter.reason.as_str(), letter.detail))
    }

    /// Where the output sends such a record.
    fn of_record(&self, letter: &Letter, body: &[u8]) -> String {
        let first = lines(body).next().unwrap_or_default();
        let record = match serde_json::from_slice(first) {
            Ok(record @ Value::Object(_)) => ferry::check::msgpack_of(&record),
            _ => vec![0x80],
        };
        let event = Event {
            time: letters::time(letter),
            metadata: &[],
            body: &record,
            group: None,
            raw: &record,
        };
        let mut name = String::new();
        self.template().render(&letter.tag, &event, &mut name);
        match self.is_blob() {
            true => name.trim_matches('/').to_owned(),
            false => stream_name(&name),
        }
    }

    /// The output with what a way needs. What is refused comes into `folder`.
    fn keys(&self, way: &Way, folder: &Path) -> Keys<'_> {
        let mut instance = format!("{}-replay", self.config.instance);
        let out = left_out(matches!(way, Way::Lines(_)));
        let mut set = vec![
            ("spool", "off".to_owned()),
            ("dead_letter_dir", folder.display().to_string()),
            ("dead_letter_limit", "1000G".to_owned()),
        ];
        match way {
            Way::Lines(to) => {
                set.push(("log_key", KEY.to_owned()));
                set.push(match self.is_blob() {
                    true if to.is_empty() => ("path", "/".to_owned()),
                    true => ("path", to.replace('%', "%%")),
                    false => ("delivery_stream", to.clone()),
                });
            }
            Way::Events(0) => {}
            Way::Events(twin) => instance.push_str(&format!("-{twin}")),
        }
        set.push(("instance", instance));
        let is_lines = matches!(way, Way::Lines(_));
        Keys {
            output: self.output,
            as_records: is_lines && self.config.encode.log_key.is_none(),
            out,
            set,
        }
    }
}

/// An output's keys, of which some are left out or set otherwise.
struct Keys<'a> {
    output: &'a Output,
    as_records: bool,
    out: Vec<&'static str>,
    set: Vec<(&'static str, String)>,
}

impl Properties for Keys<'_> {
    fn get(&self, key: &str) -> Option<String> {
        if let Some((_, value)) = self.set.iter().find(|(name, _)| *name == key) {
            return Some(value.clone());
        }
        match self.out.contains(&key) {
            true => None,
            false => self.output.get(key),
        }
    }

    fn lines_are_records(&self) -> bool {
        self.as_records
    }
}

fn is_events(body: &[u8]) -> bool {
    let mut events = Events::new(body).peekable();
    events.peek().is_some() && events.all(|item| matches!(item, Item::Event(_)))
}

fn is_object(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(line).is_ok()
}

/// Whether a target is an object of ours, and no delivery stream: it is in a folder, or begins with a time.
fn is_object_name(target: &str) -> bool {
    let begins_with_time = target.len() > 16
        && target.as_bytes()[8] == b'T'
        && target.as_bytes()[..8].iter().all(u8::is_ascii_digit);
    target.contains('/') || begins_with_time
}

/// The folder of an object below the store's prefix; empty where it is in none.
fn folder<'t>(object: &'t str, prefix: &str) -> &'t str {
    let prefix = prefix.trim_matches('/');
    let below = object
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|_| !prefix.is_empty());
    let object = below.unwrap_or(object);
    object.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// `--dry-run`.
fn would(section: &Section<'_>, sources: &Sources) -> Result<Report, Failure> {
    let mut report = Report::default();
    for path in sources.all() {
        let before = report.stay;
        look(path, |found| {
            report.letters += 1;
            let way = section.way(&found);
            let events = matches!(way, Ok((Way::Events(_), _)));
            let letter = found.letter.as_ref().ok().filter(|_| events);
            let unfit = letter.and_then(|letter| section.unfit(letter));
            match unfit.map_or(way, Err) {
                Ok((_, count)) => {
                    report.sent += 1;
                    report.lines += count;
                }
                Err(why) => {
                    report.stay += 1;
                    report.stays.push(Stays {
                        file: path.display().to_string(),
                        line: found.place.number,
                        reason: why.reason,
                        error: why.error,
                    });
                }
            }
        })?;
        if report.stay > before {
            report.files.push(path.display().to_string());
        }
    }
    Ok(report)
}

/// Takes the files and sends what is in them.
fn send(section: &Section<'_>, sources: Sources, args: &Args) -> Result<Report, Failure> {
    let folders = sources.folders();
    let mut locks = Vec::new();
    for folder in &folders {
        let lock = File::open(folder).map_err(|error| about(folder.display(), "opened", error))?;
        if lock.try_lock().is_err() {
            let folder = folder.display();
            return Err(format!(
                "another replay is at work in {folder}: wait for its end, or end it"
            )
            .into());
        }
        locks.push(lock);
    }
    let files = sources.take()?;
    let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.len());
    let bar = progress::of_bytes(files.iter().map(bytes).sum(), false);
    let mut replay = Replay {
        section,
        retries: args.retries,
        bar,
        report: Report::default(),
        given_up: None,
    };
    let done = files.iter().try_for_each(|path| replay.file(path));
    replay.bar.finish_and_clear();
    let left = "what is not sent is left in *.replaying, for the next replay";
    match done {
        Ok(()) => {}
        Err(Failure::Words(words)) => return Err(format!("{words}; {left}").into()),
        Err(Failure::Unread) => return Err(Failure::Unread),
    }
    for folder in &folders {
        // Who we are to a blob store is needed as long as letters may have been sent that are not struck out.
        let ours = folder.join(FOLDER);
        let removed = match replay.report.stay {
            0 => fs::remove_dir_all(&ours),
            _ => fs::remove_file(ours.join(FILE)),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(about(ours.display(), "removed", error));
            }
            _ => {}
        }
    }
    Ok(replay.report)
}

struct Replay<'a> {
    section: &'a Section<'a>,
    retries: u32,
    bar: ProgressBar,
    report: Report,
    /// Why nothing more is tried.
    given_up: Option<Why>,
}

/// A letter to be sent.
struct Job {
    place: Place,
    id: String,
    lines: u64,
}

impl Replay<'_> {
    /// Sends the letters of one file, as far as it gets.
    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        let file = LetterFile::open(path)?;
        let mut ways: BTreeMap<Way, Vec<Job>> = BTreeMap::new();
        let mut stays: BTreeMap<u64, Why> = BTreeMap::new();
        let (mut letters, mut waiting) = (0, 0);
        let length = file.scan(|found| {
            letters += 1;
            match self.section.way(&found) {
                Ok((way, lines)) => {
                    let Found { place, id, .. } = found;
                    waiting += place.bytes();
                    ways.entry(way).or_default().push(Job { place, id, lines });
                }
                Err(why) => {
                    stays.insert(found.place.number, why);
                }
            }
        })?;
        self.bar.inc(length.saturating_sub(waiting));
        self.report.letters += letters;
        let mut failed = Ok(());
        for (way, jobs) in ways {
            let sent = match (&failed, &self.given_up) {
                (Ok(()), None) => self.send(&file, &way, &jobs, &mut stays),
                (Ok(()), Some(why)) => {
                    for job in &jobs {
                        stays.insert(job.place.number, why.clone());
                    }
                    Ok(())
                }
                (Err(_), _) => break,
            };
            failed = sent;
        }
        let name = file.path().display().to_string();
        let numbers = file.finish()?;
        failed?;
        self.report.stay += stays.len() as u64;
        if !stays.is_empty() {
            self.report.files.push(name.clone());
        }
        let rows = stays.into_iter().map(|(number, why)| Stays {
            file: name.clone(),
            line: numbers.get(&number).copied().unwrap_or(number),
            reason: why.reason,
            error: why.error,
        });
        self.report.stays.extend(rows);
        Ok(())
    }

    /// Sends the letters that go one way.
    fn send(
        &mut self,
        file: &LetterFile,
        way: &Way,
        jobs: &[Job],
        stays: &mut BTreeMap<u64, Why>,
    ) -> Result<(), Failure> {
        let folder = folder_of(file.path()).join(FOLDER);
        let refused = Refused::new(folder.join(FILE))
            .map_err(|error| about(folder.display(), "written", error))?;
        let said = Said {
            last: Arc::default(),
            bar: self.bar.clone(),
            ours: folder.display().to_string(),
        };
        let last = Arc::clone(&said.last);
        let keys = self.section.keys(way, &folder);
        let Some(instance) = Instance::start(&keys, Box::new(said), None, Arc::new(|| None)) else {
            let last = last.lock().expect("nothing panics with this lock");
            return Err(format!("the output cannot be started: {last}").into());
        };
        let workers = match way {
            Way::Lines(_) => WORKERS.min(jobs.len()),
            // What is refused of one is told from what is refused of others by the time it comes.
            Way::Events(_) => 1,
        };
        let sending = Sending {
            file,
            way,
            instance: &instance,
            refused: &refused,
            last: &last,
            bar: &self.bar,
            retries: self.retries,
            next: AtomicUsize::new(0),
            in_flight: InFlight::default(),
            unavailable: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            lines: AtomicU64::new(0),
            stays: Mutex::default(),
        };
        let failed = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    if let Err(error) = sending.work(jobs) {
                        sending.unavailable.store(true, Ordering::Relaxed);
                        *failed.lock().expect("nothing panics with this lock") = Some(error);
                    }
                });
            }
        });
        instance.stop();
        self.report.sent += sending.sent.load(Ordering::Relaxed);
        self.report.lines += sending.lines.load(Ordering::Relaxed);
        let unavailable = sending.unavailable.load(Ordering::Relaxed);
        let mut found = sending
            .stays
            .into_inner()
            .expect("nothing panics with this lock");
        if unavailable {
            let why = self.unavailable(&last);
            for job in &jobs[sending.next.load(Ordering::Relaxed).min(jobs.len())..] {
                found.insert(job.place.number, why.clone());
            }
            // Another delivery stream may be there; another folder of the same store is not.
            if self.section.is_blob() {
                self.given_up = Some(why);
            }
        }
        stays.extend(found);
        let failed = failed.into_inner().expect("nothing panics with this lock");
        failed.map_or(Ok(()), |error| {
            Err(about(file.path().display(), "written", error))
        })
    }

    fn unavailable(&self, last: &Mutex<String>) -> Why {
        unavailable(&last.lock().expect("nothing panics with this lock"))
    }
}

fn unavailable(last: &str) -> Why {
    let words = match last {
        "" => "the destination did not take it in time",
        last => last,
    };
    Why::new("unavailable", words)
}

/// Letters of one way on their way.
struct Sending<'a> {
    file: &'a LetterFile,
    way: &'a Way,
    instance: &'a Instance,
    refused: &'a Refused,
    last: &'a Mutex<String>,
    bar: &'a ProgressBar,
    retries: u32,
    /// The job that is taken next.
    next: AtomicUsize,
    in_flight: InFlight,
    /// A letter was sent as often as it may be, and was not taken: the others are left.
    unavailable: AtomicBool,
    sent: AtomicU64,
    lines: AtomicU64,
    stays: Mutex<BTreeMap<u64, Why>>,
}

impl Sending<'_> {
    /// Sends one letter after the other. An error: a file of ours fails.
    fn work(&self, jobs: &[Job]) -> io::Result<()> {
        while !self.unavailable.load(Ordering::Relaxed) {
            let Some(job) = jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let bytes = job.place.bytes();
            self.in_flight.take(bytes);
            let done = self.letter(job);
            self.in_flight.give(bytes);
            self.bar.inc(bytes);
            match done? {
                None => {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                    self.lines.fetch_add(job.lines, Ordering::Relaxed);
                }
                Some(why) => {
                    let mut stays = self.stays.lock().expect("nothing panics with this lock");
                    stays.insert(job.place.number, why);
                }
            }
        }
        Ok(())
    }

    /// Sends a letter. Why it stays, if it does, or something of it.
    fn letter(&self, job: &Job) -> io::Result<Option<Why>> {
        let read = self
            .file
            .read(job.place)
            .and_then(|letter| Ok((letters::body(&letter)?, letter)));
        let (body, letter) = match read {
            Ok(read) => read,
            Err(error) => return Ok(Some(Why::new("unreadable", error))),
        };
        let (tag, data) = match self.way {
            Way::Lines(_) => (&*job.id, chunk(&body, letters::time(&letter))),
            Way::Events(_) => (&*letter.tag, body),
        };
        if !self.flush(tag, &data.into()) {
            let last = self.last.lock().expect("nothing panics with this lock");
            return Ok(Some(unavailable(&last)));
        }
        let refused = match self.way {
            Way::Lines(_) => self.refused.take(tag)?,
            Way::Events(_) => self.refused.take_all()?,
        };
        let Some(first) = refused.first() else {
            self.file.strike(job.place)?;
            return Ok(None);
        };
        let why = Why::new(&first.reason, &*first.error);
        if !self.is_all(job, &letter, &refused) {
            self.file.replace(job.place, refused)?;
        }
        Ok(Some(why))
    }

    /// Whether nothing of a letter was taken.
    fn is_all(&self, job: &Job, letter: &Letter, refused: &[Letter]) -> bool {
        let bodies: Result<Vec<_>, _> = refused.iter().map(letters::body).collect();
        // One that cannot be read: the letter itself is kept rather than that.
        let Ok(bodies) = bodies else {
            return true;
        };
        match self.way {
            Way::Lines(_) => {
                let count: usize = bodies.iter().map(|body| lines(body).count()).sum();
                count as u64 >= job.lines
            }
            Way::Events(_) => letters::body(letter).is_ok_and(|body| body == bodies.concat()),
        }
    }

    /// Hands a chunk over, however often it has to be. Whether it was answered OK.
    fn flush(&self, tag: &str, data: &Bytes) -> bool {
        let mut pause = Duration::from_secs(1);
        for attempt in 0..=self.retries {
            if self.instance.flush(tag.as_bytes(), data.clone(), false) == Verdict::Ok {
                return true;
            }
            if self.unavailable.load(Ordering::Relaxed) {
                return false;
            }
            if attempt < self.retries {
                thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        self.unavailable.store(true, Ordering::Relaxed);
        false
    }
}

/// Lines as a chunk of events, whatever their bytes are.
fn chunk(body: &[u8], time: Time) -> Vec<u8> {
    let seconds = u32::try_from(time.seconds).unwrap_or_default();
    let mut chunk = Vec::with_capacity(body.len() + body.len() / 4 + 64);
    for line in lines(body) {
        chunk.extend([0x92, 0x92, 0xd7, 0x00]);
        chunk.extend(seconds.to_be_bytes());
        chunk.extend(time.nanos.to_be_bytes());
        chunk.extend([0x80, 0x81]);
        for text in [KEY.as_bytes(), line] {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            rmp::encode::write_str_len(&mut chunk, length).expect("memory takes it");
            chunk.extend(text);
        }
    }
    chunk
}

/// What is refused again: the letters that the library writes into the replay's own folder.
struct Refused {
    path: PathBuf,
    read: Mutex<(u64, ByTag)>,
}

/// Letters by the tag of their chunk.
type ByTag = HashMap<String, Vec<Letter>>;

impl Refused {
    /// Forgets what an earlier replay left there: its letters are not struck out.
    fn new(path: PathBuf) -> io::Result<Refused> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Refused {
            path,
            read: Mutex::default(),
        })
    }

    /// Those of a chunk that was answered, by its tag: they were written before the answer.
    fn take(&self, tag: &str) -> io::Result<Vec<Letter>> {
        self.with(|known| known.remove(tag).unwrap_or_default())
    }

    /// All that came since the last time.
    fn take_all(&self) -> io::Result<Vec<Letter>> {
        self.with(|known| known.drain().flat_map(|(_, letters)| letters).collect())
    }

    /// Reads what is new, and acts on all that nobody has taken.
    fn with<T>(&self, act: impl FnOnce(&mut ByTag) -> T) -> io::Result<T> {
        let mut read = self.read.lock().expect("nothing panics with this lock");
        let (at, known) = &mut *read;
        match File::open(&self.path) {
            Ok(mut file) => {
                let mut new = Vec::new();
                file.seek(SeekFrom::Start(*at))?;
                file.read_to_end(&mut new)?;
                // Of a line without its end the chunk is not answered yet.
                let whole = new.iter().rposition(|byte| *byte == b'\n');
                let whole = &new[..whole.map_or(0, |end| end + 1)];
                *at += whole.len() as u64;
                for line in whole.split(|byte| *byte == b'\n') {
                    if let Ok(letter) = serde_json::from_slice::<Letter>(line) {
                        let tag = letter.tag.clone().into_owned();
                        known.entry(tag).or_default().push(letter);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(act(known))
    }
}

/// Bounds the bytes on their way.
#[derive(Default)]
struct InFlight {
    held: Mutex<u64>,
    freed: Condvar,
}

impl InFlight {
    fn take(&self, bytes: u64) {
        let held = self.held.lock().expect("nothing panics with this lock");
        let mut held = self
            .freed
            .wait_while(held, |held| *held > 0 && *held + bytes > IN_FLIGHT_BYTES)
            .expect("nothing panics with this lock");
        *held += bytes;
    }

    fn give(&self, bytes: u64) {
        *self.held.lock().expect("nothing panics with this lock") -= bytes;
        self.freed.notify_all();
    }
}

/// What the library says goes to stderr, but for what it says of the replay's own folder.
struct Said {
    last: Arc<Mutex<String>>,
    bar: ProgressBar,
    ours: String,
}

impl log::Output for Said {
    fn enabled(&self, level: Level) -> bool {
        level <= Level::Warn
    }

    fn write(&self, _level: Level, line: &str) {
        if line.contains(&self.ours) {
            return;
        }
        let words = line.split_once("] ").map_or(line, |(_, words)| words);
        words.clone_into(&mut self.last.lock().expect("nothing panics with this lock"));
        self.bar.suspend(|| eprintln!("{words}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_folder_below_the_urls_prefix() {
        #[rustfmt::skip] // a table
        let cases = [
            ("prod/eu", "prod/eu/app/2025/11/x.ndjson.gz", "app/2025/11"),
            ("prod", "prod/x.ndjson", ""),
            ("prod", "production/x.ndjson", "production"),
            ("", "app/x.ndjson", "app"),
            ("", "x.ndjson", ""),
            ("", "a/b/x.ndjson", "a/b"),
        ];
        for (prefix, object, expected) in cases {
            assert_eq!(folder(object, prefix), expected, "{prefix} {object}");
        }
    }

    #[test]
    fn an_object_is_told_from_a_delivery_stream() {
        for (target, is_object) in [
            ("orders", false),
            ("app.logs-2025", false),
            ("app/20251121T130000Z-00ff.ndjson.gz", true),
            ("20251121T130000Z-00ff.ndjson.gz", true),
            ("20251121-orders-of-the-day", false),
        ] {
            assert_eq!(is_object_name(target), is_object, "{target}");
        }
    }
}
