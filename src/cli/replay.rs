//! `ferry replay`: sends dead letters again, through the library that wrote them, without a spool.
//!
//! Each letter becomes a chunk of events `{"record": line}` for the configured output with `log_key record`, so that
//! its lines are sent unchanged. The chunk's tag is derived from the letter's bytes: a letter always yields an object
//! of the same name, which a store accepts once, and what is refused again is identified by its tag. Refused records
//! become letters in a folder of the replay's own, from where they are reported; the original letter stays. An instance
//! runs for each delivery stream or folder that letters go to.
//!
//! A letter whose record is an event in msgpack (nested too deep, or too large as a line) is sent as that event, and
//! encoded by the output.

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
use ferry::config::{Config, Destination, keys, sanitize_stream_name, stream_name};
use ferry::delivery::dead_letter::FILE;
use ferry::ids::{Time, Verdict};
use ferry::output::Instance;
use indicatif::ProgressBar;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::chosen::{self, Keys, StderrLog};
use super::letters::{self, Found, Letter, LetterFile, Place, Sources, folder_of, lines, look};
use super::{Done, Failure, cannot_be, metadata, print, print_json, progress, tell};

/// Send dead letters again, after the cause of their refusal is fixed
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct Args {
    /// Fluent Bit's configuration with the output: classic, or YAML where it is named .yaml or .yml. Only its ferry
    /// outputs are read
    config: PathBuf,
    /// Files of dead letters, or folders of them; by default the output's dead_letter_dir
    letters: Vec<PathBuf>,
    /// The output to send through, by its alias or its number among the ferry outputs, from 0; required if there
    /// are several
    #[arg(long, value_name = "N|ALIAS")]
    output: Option<String>,
    /// Print what would be done with the letters, without sending or changing anything
    #[arg(long)]
    dry_run: bool,
    /// The number of retries of a letter that the destination does not acknowledge, after pauses that grow from 1 to
    /// 30 seconds
    #[arg(long, value_name = "N", default_value = "5")]
    retries: u32,
    /// Print one JSON document: {letters, sent, lines, stay, files, stays: [{file, line, reason, error}]}
    #[arg(long)]
    json: bool,
}

const STATUS: &str = "\
What counts is what the destination accepts now, not why a letter was written. The lines of letters are sent unchanged,
to the delivery stream or folder that they were meant for, or else to where the output sends such a record. Records may
be shortened or fixed in the file before. Run it as the user that Fluent Bit runs as, with its environment.

A file is first renamed to NAME.replaying; a running Fluent Bit creates a new one. Delivered letters are marked in it,
and the file is deleted when all are. Letters that stay are printed with their reasons, and are all that is left in
NAME.replaying, where the next replay resumes. A replay that was killed is resumed in the same way: the letters in
flight are sent again, and a blob store stores them only once.

Examples:
  ferry replay /etc/fluent-bit/fluent-bit.conf --dry-run
  ferry replay fluent-bit.conf --output main /var/lib/ferry/main/dead-letters/dead-letters.ndjson

Exit status: 0, all were sent; 1, some stay; 2, the arguments, the configuration or a file cannot be read";

/// The key of lines in events, and the value of `log_key`.
const KEY: &str = "record";
/// The most letters in flight. They share requests if the destination supports it.
const WORKERS: usize = 64;
/// The most bytes of letters in flight; a larger letter is sent alone.
const IN_FLIGHT_BYTES: u64 = 64_000_000;
/// The folder next to the letters for those that are refused again, and for the sender's id.
const FOLDER: &str = ".ferry-replay";
/// The longest pause before a retry.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Returns the names of keys that a replay omits: those of the output's own state and, for letters that are lines,
/// those that would change them.
fn omitted_keys(lines: bool) -> Vec<&'static str> {
    let omitted = keys::ALL.iter().filter(|key| !key.replayed);
    omitted
        .filter(|key| lines || !key.affects_lines())
        .flat_map(|key| key.names())
        .collect()
}

/// The result of a replay, in the format of `--json`.
#[derive(Default, Serialize)]
struct Report {
    /// The number of letters, and of lines that are not letters.
    letters: u64,
    /// The number of letters that were delivered; with `--dry-run`, of those that would be sent.
    sent: u64,
    /// The number of their lines.
    lines: u64,
    /// The number of letters that stay.
    stay: u64,
    /// The files of letters that stay.
    files: Vec<String>,
    /// The letters that stay, in order.
    stays: Vec<Remaining>,
}

/// A letter that stays.
#[derive(Serialize)]
struct Remaining {
    file: String,
    /// Its line number in that file, from 1.
    line: u64,
    /// The class of the failure, such as `refused`, or `unavailable` if the destination did not accept it in time.
    reason: String,
    /// The description of the failure.
    error: String,
}

/// The reason why a letter stays.
#[derive(Clone)]
struct Cause {
    reason: String,
    error: String,
}

impl Cause {
    fn new(reason: &str, error: impl Into<String>) -> Cause {
        Cause {
            reason: reason.to_owned(),
            error: error.into(),
        }
    }
}

pub(super) fn run(args: &Args) -> Done {
    let configuration = host::read(&args.config, |name| name == "ferry")?;
    let section = Section::choose(&configuration.outputs, args)?;
    let paths = match args.letters.as_slice() {
        [] => vec![section.config.dead_letter_dir.clone()],
        paths => paths.to_vec(),
    };
    let paths = paths
        .iter()
        .map(std::path::absolute)
        .collect::<io::Result<Vec<_>>>()?;
    let is_absent = args.letters.is_empty() && metadata(&paths[0])?.is_none();
    let sources = match is_absent {
        true => Sources::default(),
        false => Sources::find(&paths)?,
    };
    let report = match args.dry_run {
        true => dry_run(&section, &sources)?,
        false => send(&section, sources, args)?,
    };
    if args.json {
        print_json(&report)?;
    } else {
        for Remaining {
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
        (0, _) if is_absent => tell(format_args!(
            "there is no folder {}: no letter was ever written to it, or its file system is not mounted",
            paths[0].display()
        )),
        (0, _) => tell(format_args!(
            "there are no dead letters in {}",
            paths[0].display()
        )),
        (letters, true) => tell(format_args!(
            "{letters} letters: {} would be sent ({} lines), {} would stay",
            report.sent, report.lines, report.stay
        )),
        (letters, false) => tell(format_args!(
            "{letters} letters: {} sent ({} lines), {} stay{}",
            report.sent,
            report.lines,
            report.stay,
            match report.files.as_slice() {
                [] => String::new(),
                files => format!(" in {}", files.join(", ")),
            }
        )),
    }
    Ok(report.stay == 0)
}

/// The form in which a letter is sent, and its target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Route {
    /// As lines, to this delivery stream or folder below the store's prefix.
    Lines(String),
    /// As events, which the output encodes and routes. The number is [`Found::twin`].
    Events(u32),
}

/// The output that letters are sent through.
struct Section<'a> {
    output: &'a Output,
    config: Config,
}

impl<'a> Section<'a> {
    /// Returns the requested output, or the only one.
    fn choose(outputs: &'a [Output], args: &Args) -> Result<Section<'a>, Failure> {
        let (output, config) = chosen::choose(outputs, &args.config, args.output.as_deref())?;
        Ok(Section { output, config })
    }

    fn is_blob(&self) -> bool {
        matches!(self.config.destination, Destination::Blob { .. })
    }

    /// Returns the route of a letter and the number of its lines, or the reason why it stays.
    fn route(&self, found: &Found) -> Result<(Route, u64), Cause> {
        let letter = match &found.letter {
            Ok(letter) => letter,
            Err(error) => return Err(Cause::new("unreadable", error)),
        };
        let cause = |error: String| Cause::new(&letter.reason, error);
        let body = letters::body(letter).map_err(cause)?;
        let count = lines(&body).count() as u64;
        if letter.reason != "refused" {
            if is_events(&body) {
                return Ok((Route::Events(found.twin), Events::new(&body).count() as u64));
            }
            // A malformed event may have been fixed by hand.
            let was_event = ["malformed", "too_deep"].contains(&&*letter.reason);
            if was_event && !lines(&body).all(is_object) {
                return Err(cause(letter.error.to_string()));
            }
        }
        let target = letter.target.as_deref();
        let route = target.and_then(|target| self.target_of(target));
        let route = match route {
            Some(route) => route,
            None => self.default_target(letter, &body),
        };
        if route.contains(['{', '$']) {
            return Err(cause(format!("its target '{route}' looks like a template")));
        }
        Ok((Route::Lines(route), count))
    }

    /// Returns the letter's own target, if it is valid for this destination.
    fn target_of(&self, target: &str) -> Option<String> {
        match &self.config.destination {
            Destination::Firehose(_) => {
                (sanitize_stream_name(target) == target).then(|| target.to_owned())
            }
            Destination::Blob { prefix, .. } => {
                is_object_name(target).then(|| folder(target, prefix).to_owned())
            }
        }
    }

    /// Returns the template of the delivery stream or folder.
    fn template(&self) -> &Template {
        match &self.config.destination {
            Destination::Firehose(firehose) => &firehose.delivery_stream,
            Destination::Blob { folder, .. } => folder,
        }
    }

    /// Returns the reason why a letter that is sent as events would stay, in whole or in part: an event that the output
    /// cannot encode.
    fn rejection(&self, letter: &Letter) -> Option<Cause> {
        let body = letters::body(letter).ok()?;
        let encoding = Encoding::new(&self.config.encode, self.template());
        let tag = letter.tag.as_bytes().into();
        let first = encoding
            .steps(&tag, &body, |_| true)
            .find_map(|step| step.letters.into_iter().next());
        first.map(|letter| Cause::new(letter.reason.as_str(), letter.detail))
    }

    /// Returns the target to which the output sends such a record.
    fn default_target(&self, letter: &Letter, body: &[u8]) -> String {
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
        self.template()
            .render(letter.tag.as_bytes(), &event, &mut name);
        match self.is_blob() {
            true => name.trim_matches('/').to_owned(),
            false => stream_name(&name),
        }
    }

    /// Returns the settings of an instance for a route. Its dead letters are written to `folder`.
    fn keys(&self, route: &Route, folder: &Path) -> Keys<'_> {
        let mut instance = format!("{}-replay", self.config.instance);
        let omitted = omitted_keys(matches!(route, Route::Lines(_)));
        let mut overrides = vec![
            ("spool", "off".to_owned()),
            ("dead_letter_dir", folder.display().to_string()),
            ("dead_letter_limit", "1000G".to_owned()),
        ];
        match route {
            Route::Lines(to) => {
                overrides.push(("log_key", KEY.to_owned()));
                overrides.push(match self.is_blob() {
                    true if to.is_empty() => ("path", "/".to_owned()),
                    true => ("path", to.replace('%', "%%")),
                    false => ("delivery_stream", to.clone()),
                });
            }
            Route::Events(0) => {}
            Route::Events(twin) => instance.push_str(&format!("-{twin}")),
        }
        overrides.push(("instance", instance));
        let is_lines = matches!(route, Route::Lines(_));
        Keys {
            output: self.output,
            lines_are_records: is_lines && self.config.encode.log_key.is_none(),
            omitted,
            overrides,
        }
    }
}

fn is_events(body: &[u8]) -> bool {
    let mut events = Events::new(body).peekable();
    events.peek().is_some() && events.all(|item| matches!(item, Item::Event(_)))
}

fn is_object(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(line).is_ok()
}

/// Whether a target is the name of an object rather than a delivery stream: it is in a folder, or begins with a time.
fn is_object_name(target: &str) -> bool {
    let begins_with_time = target.len() > 16
        && target.as_bytes()[8] == b'T'
        && target.as_bytes()[..8].iter().all(u8::is_ascii_digit);
    target.contains('/') || begins_with_time
}

/// Returns the folder of an object below the store's prefix; empty if there is none.
fn folder<'t>(object: &'t str, prefix: &str) -> &'t str {
    let prefix = prefix.trim_matches('/');
    let below = object
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|_| !prefix.is_empty());
    let object = below.unwrap_or(object);
    object.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Reports what a replay would do.
fn dry_run(section: &Section<'_>, sources: &Sources) -> Result<Report, Failure> {
    let mut report = Report::default();
    for path in sources.all() {
        let before = report.stay;
        look(path, |found| {
            report.letters += 1;
            let route = section.route(&found);
            let events = matches!(route, Ok((Route::Events(_), _)));
            let letter = found.letter.as_ref().ok().filter(|_| events);
            let rejection = letter.and_then(|letter| section.rejection(letter));
            match rejection.map_or(route, Err) {
                Ok((_, count)) => {
                    report.sent += 1;
                    report.lines += count;
                }
                Err(cause) => {
                    report.stay += 1;
                    report.stays.push(Remaining {
                        file: path.display().to_string(),
                        line: found.place.number,
                        reason: cause.reason,
                        error: cause.error,
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

/// Claims the files and sends their letters.
fn send(section: &Section<'_>, sources: Sources, args: &Args) -> Result<Report, Failure> {
    let folders = sources.folders();
    let mut locks = Vec::new();
    for folder in &folders {
        let lock =
            File::open(folder).map_err(|error| cannot_be(folder.display(), "opened", error))?;
        if lock.try_lock().is_err() {
            let folder = folder.display();
            return Err(
                format!("another replay is running in {folder}: wait for it, or stop it").into(),
            );
        }
        locks.push(lock);
    }
    let files = sources.claim()?;
    let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.len());
    let bar = progress::of_bytes(files.iter().map(bytes).sum(), false);
    let mut replay = Replay {
        section,
        retries: args.retries,
        bar,
        report: Report::default(),
        aborted: None,
    };
    let done = files.iter().try_for_each(|path| replay.file(path));
    replay.bar.finish_and_clear();
    let note = "letters that are not sent are left in *.replaying, for the next replay";
    match done {
        Ok(()) => {}
        Err(Failure::Message(message)) => return Err(format!("{message}; {note}").into()),
        Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
    }
    for folder in &folders {
        // The sender's id is needed as long as there may be letters that were sent but are not marked.
        let own = folder.join(FOLDER);
        let removed = match replay.report.stay {
            0 => fs::remove_dir_all(&own),
            _ => fs::remove_file(own.join(FILE)),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(cannot_be(own.display(), "removed", error));
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
    /// The reason why no more letters are sent.
    aborted: Option<Cause>,
}

/// A letter to send.
struct Job {
    place: Place,
    id: String,
    lines: u64,
}

impl Replay<'_> {
    /// Sends the letters of a file, as far as possible.
    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        let file = LetterFile::open(path)?;
        let mut routes: BTreeMap<Route, Vec<Job>> = BTreeMap::new();
        let mut stays: BTreeMap<u64, Cause> = BTreeMap::new();
        let (mut letters, mut waiting) = (0, 0);
        let length = file.scan(|found| {
            letters += 1;
            match self.section.route(&found) {
                Ok((route, lines)) => {
                    let Found { place, id, .. } = found;
                    waiting += place.bytes();
                    routes
                        .entry(route)
                        .or_default()
                        .push(Job { place, id, lines });
                }
                Err(cause) => {
                    stays.insert(found.place.number, cause);
                }
            }
        })?;
        self.bar.inc(length.saturating_sub(waiting));
        self.report.letters += letters;
        let mut failed = Ok(());
        for (route, jobs) in routes {
            let sent = match (&failed, &self.aborted) {
                (Ok(()), None) => self.send(&file, &route, &jobs, &mut stays),
                (Ok(()), Some(cause)) => {
                    for job in &jobs {
                        stays.insert(job.place.number, cause.clone());
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
        let rows = stays.into_iter().map(|(number, cause)| Remaining {
            file: name.clone(),
            line: numbers.get(&number).copied().unwrap_or(number),
            reason: cause.reason,
            error: cause.error,
        });
        self.report.stays.extend(rows);
        Ok(())
    }

    /// Sends the letters of a route.
    fn send(
        &mut self,
        file: &LetterFile,
        route: &Route,
        jobs: &[Job],
        stays: &mut BTreeMap<u64, Cause>,
    ) -> Result<(), Failure> {
        let folder = folder_of(file.path()).join(FOLDER);
        let refused = Refused::new(folder.join(FILE))
            .map_err(|error| cannot_be(folder.display(), "written", error))?;
        let log = StderrLog {
            last: Arc::default(),
            bar: self.bar.clone(),
            silent: Some(folder.display().to_string()),
        };
        let last = Arc::clone(&log.last);
        let keys = self.section.keys(route, &folder);
        let Some(instance) = Instance::start(&keys, Box::new(log), None, Arc::new(|| None)) else {
            let last = last.lock().expect("nothing panics with this lock");
            return Err(format!("the output cannot be started: {last}").into());
        };
        let workers = match route {
            Route::Lines(_) => WORKERS.min(jobs.len()),
            // Their refused events have no tag of their own, and are attributed by their order.
            Route::Events(_) => 1,
        };
        let sending = Sending {
            file,
            route,
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
            let cause = self.unavailable(&last);
            for job in &jobs[sending.next.load(Ordering::Relaxed).min(jobs.len())..] {
                found.insert(job.place.number, cause.clone());
            }
            // Another delivery stream may be available, but not another folder of the same store.
            if self.section.is_blob() {
                self.aborted = Some(cause);
            }
        }
        stays.extend(found);
        let failed = failed.into_inner().expect("nothing panics with this lock");
        failed.map_or(Ok(()), |error| {
            Err(cannot_be(file.path().display(), "written", error))
        })
    }

    fn unavailable(&self, last: &Mutex<String>) -> Cause {
        unavailable(&last.lock().expect("nothing panics with this lock"))
    }
}

fn unavailable(last: &str) -> Cause {
    let error = match last {
        "" => "the destination did not accept it in time",
        last => last,
    };
    Cause::new("unavailable", error)
}

/// The sending of a route's letters.
struct Sending<'a> {
    file: &'a LetterFile,
    route: &'a Route,
    instance: &'a Instance,
    refused: &'a Refused,
    last: &'a Mutex<String>,
    bar: &'a ProgressBar,
    retries: u32,
    /// The index of the next job.
    next: AtomicUsize,
    in_flight: InFlight,
    /// Set when the retries of a letter are used up: no more letters are sent.
    unavailable: AtomicBool,
    sent: AtomicU64,
    lines: AtomicU64,
    stays: Mutex<BTreeMap<u64, Cause>>,
}

impl Sending<'_> {
    /// Sends letters until there are no more. Fails if a file cannot be read or written.
    fn work(&self, jobs: &[Job]) -> io::Result<()> {
        while !self.unavailable.load(Ordering::Relaxed) {
            let Some(job) = jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let bytes = job.place.bytes();
            self.in_flight.acquire(bytes);
            let done = self.letter(job);
            self.in_flight.release(bytes);
            self.bar.inc(bytes);
            match done? {
                None => {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                    self.lines.fetch_add(job.lines, Ordering::Relaxed);
                }
                Some(cause) => {
                    let mut stays = self.stays.lock().expect("nothing panics with this lock");
                    stays.insert(job.place.number, cause);
                }
            }
        }
        Ok(())
    }

    /// Sends a letter. Returns the cause if it stays, as a whole or in part.
    fn letter(&self, job: &Job) -> io::Result<Option<Cause>> {
        let read = self
            .file
            .read(job.place)
            .and_then(|letter| Ok((letters::body(&letter)?, letter)));
        let (body, letter) = match read {
            Ok(read) => read,
            Err(error) => return Ok(Some(Cause::new("unreadable", error))),
        };
        let (tag, data) = match self.route {
            Route::Lines(_) => (&*job.id, chunk(&body, letters::time(&letter))),
            Route::Events(_) => (&*letter.tag, body),
        };
        if !self.flush(tag, &data.into()) {
            let last = self.last.lock().expect("nothing panics with this lock");
            return Ok(Some(unavailable(&last)));
        }
        let refused = match self.route {
            Route::Lines(_) => self.refused.take(tag)?,
            Route::Events(_) => self.refused.take_all()?,
        };
        let Some(first) = refused.first() else {
            self.file.mark_done(job.place)?;
            return Ok(None);
        };
        let cause = Cause::new(&first.reason, &*first.error);
        if !self.is_all(job, &letter, &refused) {
            self.file.replace(job.place, refused)?;
        }
        Ok(Some(cause))
    }

    /// Whether all of a letter was refused.
    fn is_all(&self, job: &Job, letter: &Letter, refused: &[Letter]) -> bool {
        let bodies: Result<Vec<_>, _> = refused.iter().map(letters::body).collect();
        // If the refused letters cannot be read, the original is kept.
        let Ok(bodies) = bodies else {
            return true;
        };
        match self.route {
            Route::Lines(_) => {
                let count: usize = bodies.iter().map(|body| lines(body).count()).sum();
                count as u64 >= job.lines
            }
            Route::Events(_) => letters::body(letter).is_ok_and(|body| body == bodies.concat()),
        }
    }

    /// Flushes a chunk, with retries. Returns whether the answer was OK.
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

/// Returns the lines of a body as a chunk of events. The lines may be any bytes.
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
            rmp::encode::write_str_len(&mut chunk, length)
                .expect("writing to memory does not fail");
            chunk.extend(text);
        }
    }
    chunk
}

/// The letters that are refused again, which the library writes into the replay's own folder.
struct Refused {
    path: PathBuf,
    read: Mutex<(u64, ByTag)>,
}

/// Letters by the tag of their chunk.
type ByTag = HashMap<String, Vec<Letter>>;

impl Refused {
    /// Removes the file of an earlier replay, whose letters are not marked as done and are sent again.
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

    /// Takes the letters of a chunk by its tag. They are written before the chunk's flush returns.
    fn take(&self, tag: &str) -> io::Result<Vec<Letter>> {
        self.with(|known| known.remove(tag).unwrap_or_default())
    }

    /// Takes all letters written since the last call.
    fn take_all(&self) -> io::Result<Vec<Letter>> {
        self.with(|known| known.drain().flat_map(|(_, letters)| letters).collect())
    }

    /// Reads new letters, and calls `act` with all that were not taken yet.
    fn with<T>(&self, act: impl FnOnce(&mut ByTag) -> T) -> io::Result<T> {
        let mut read = self.read.lock().expect("nothing panics with this lock");
        let (at, known) = &mut *read;
        match File::open(&self.path) {
            Ok(mut file) => {
                let mut new = Vec::new();
                file.seek(SeekFrom::Start(*at))?;
                file.read_to_end(&mut new)?;
                // The flush of a chunk with an incomplete line has not returned yet.
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

/// The bytes in flight, with a bound.
#[derive(Default)]
struct InFlight {
    bytes: Mutex<u64>,
    released: Condvar,
}

impl InFlight {
    fn acquire(&self, bytes: u64) {
        let current = self.bytes.lock().expect("nothing panics with this lock");
        let mut current = self
            .released
            .wait_while(current, |current| {
                *current > 0 && *current + bytes > IN_FLIGHT_BYTES
            })
            .expect("nothing panics with this lock");
        *current += bytes;
    }

    fn release(&self, bytes: u64) {
        *self.bytes.lock().expect("nothing panics with this lock") -= bytes;
        self.released.notify_all();
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
    fn an_object_is_distinguished_from_a_delivery_stream() {
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
