//! Dead letters sent again, through the library that wrote them.
//!
//! Each letter that was refused becomes events whose body is `{"record": line}`, for an output like the
//! one configured but with `log_key record`: the lines go out exactly as they are. One instance after the
//! other is started, for each target that letters were on their way to.
//!
//! For a blob store a letter is a chunk of its own (or several, where it is large), with the letter's own
//! time: the same letter makes the same chunks whenever it is sent, and so objects of the same name, which
//! a store holds once, however often a replay is interrupted.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::abi::{self, LOG_ERROR, LOG_WARN, Proxy};
use super::chunk::{Appender, CHUNK_LIMIT, Origin, Outcome, begin_event};
use super::input::{Input, Next, Slot, raw};
use super::pipeline::{Generation, Plan};
use super::report::own_this_thread;
use super::schedule::RetryLimit;
use super::{RunArgs, Signals, Supervisor, plan, unload};
use crate::config::{Config, Instance, Property, Service};
use crate::letters::{self, Letter, LetterFile, Place};

/// The key that lines are sent under, and that `log_key` takes them from.
const KEY: &str = "record";
/// Lines of letters to one delivery stream that are flushed together: as many as a call takes records.
const LINES_TOGETHER: usize = 500;
/// Bytes of letters that are read ahead of their delivery.
const READ_AHEAD: usize = 16_000_000;
/// Flushes at the same time, where the section does not say.
const WORKERS: usize = 4;
/// Times that a chunk is sent again when the section says `Retry_Limit no_limits`: a person is waiting.
const RETRIES: u32 = 5;
/// What a replayed section does without: keys that make a line other than it is, and the spool's. Ferry's table of keys
/// says which they are; a test holds this against it.
pub const LEFT_OUT: &[&str] = &[
    "log_key",
    "data_keys",
    "time_key",
    "date_key",
    "time_key_format",
    "tag_key",
    "metadata_key",
    "replace_dots",
    "instance",
    "dead_letter_dir",
    "dead_letter_limit",
    "spool",
    "buffering_enabled",
    "spool_dir",
    "buffer_dir",
    "spool_limit",
    "store_dir_limit_size",
    "blob_max_size",
    "blob_max_age",
    "upload_timeout",
    "linger",
    "metrics_listen",
];

/// Sends dead letters again, once what they were refused for is mended.
///
/// Every file of letters in DIR is first renamed to NAME.replaying; a host that runs meanwhile begins a
/// new one. The lines of the letters are sent exactly as they are, to the delivery stream or folder that
/// they were on their way to, and else as the section says. What is refused again is written to a new
/// file in DIR. What cannot be sent as it is (too_large, malformed, too_deep) is moved to NAME.kept.
///
/// A file is deleted when all of it was answered OK. What could not be delivered stays in NAME.replaying,
/// also where the replay is interrupted: run it again. After a kill the letters that were on their way are
/// sent once more; a blob store holds them once all the same. A chunk that is not taken is tried again as
/// Retry_Limit says, but with no_limits 5 times.
///
/// All letters in DIR go out through one output: outputs with different destinations need dead-letter
/// folders of their own.
///
/// Exits with 0 when everything that can be sent was delivered, with 1 when something was not or was
/// refused again, with 2 when the configuration is wrong.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The dead-letter folder
    dir: PathBuf,
    /// The configuration with the output; its inputs are not run
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    config: Option<PathBuf>,
    /// A library to load before the configuration; may be given several times
    #[arg(short = 'e', long = "plugin", value_name = "LIB.so")]
    plugins: Vec<PathBuf>,
    /// The output to send through, by its alias, its name, or its name and number (ferry.0); needed where
    /// the libraries have several
    #[arg(long, value_name = "NAME|ALIAS")]
    output: Option<String>,
    /// Only count the letters by reason and target, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// No progress line every second
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `ferry-harness replay`.
pub fn run(args: ReplayArgs) -> Result<ExitCode> {
    if args.dry_run {
        return count(&args);
    }
    own_this_thread();
    let dir = std::path::absolute(&args.dir)?;
    let folder = File::open(&dir).with_context(|| format!("cannot open {}", dir.display()))?;
    ensure!(
        folder.try_lock().is_ok(),
        "another replay is at work in {}: wait for its end",
        dir.display()
    );
    let run_args = RunArgs {
        config: args.config.clone().context("-c FILE is missing")?,
        plugins: args.plugins.clone(),
        reload_after_chunks: Vec::new(),
        report: None,
        quiet: args.quiet,
        stop_after: None,
        hide_stop: false,
        settle_late: Duration::ZERO,
        seed: 1,
    };
    let signals = Signals::catch()?;
    let mut proxies = Vec::new();
    let opened = open(&args, &run_args, &mut proxies);
    let replayed = opened.and_then(|(service, section, number)| {
        let mut replay = Replay {
            service,
            section: Section::new(section, number, &dir),
            supervisor: Supervisor::new(run_args, signals),
            proxies: &mut proxies,
            totals: Totals::default(),
        };
        let taken = letters::take(&dir)?;
        let outcome = taken.iter().try_for_each(|path| replay.file(path));
        outcome.with_context(|| {
            let dir = dir.display();
            format!("what is not delivered stays in {dir}/*.replaying for the next replay")
        })?;
        Ok((taken.len(), replay.totals))
    });
    unload(proxies);
    let (files, totals) = replayed?;
    if files == 0 {
        println!("there are no dead letters in {}", dir.display());
    }
    totals.sum_up(&dir)
}

/// Loads the libraries and the configuration, and finds the output: its section and number.
fn open(
    args: &ReplayArgs,
    run_args: &RunArgs,
    proxies: &mut Vec<Proxy>,
) -> Result<(Service, Instance, usize)> {
    for library in &args.plugins {
        proxies.extend(Proxy::load(library, false)?);
    }
    let config = Config::load(&run_args.config)?;
    for warning in &config.warnings {
        abi::log(LOG_WARN, warning);
    }
    for (library, place) in &config.plugins {
        let proxy = Proxy::load(library, false);
        proxies.extend(proxy.with_context(|| place.to_string())?);
    }
    let has = |name: &str| {
        proxies
            .iter()
            .any(|proxy| proxy.name.eq_ignore_ascii_case(name))
    };
    let outputs = config.outputs.into_iter().enumerate();
    let ours: Vec<_> = outputs.filter(|(_, output)| has(&output.name)).collect();
    let (number, section) = choose(ours, args.output.as_deref())
        .with_context(|| run_args.config.display().to_string())?;
    let mut service = config.service;
    service.hot_reload = false;
    Ok((service, section, number))
}

/// The output that is asked for, or the only one.
fn choose(outputs: Vec<(usize, Instance)>, wanted: Option<&str>) -> Result<(usize, Instance)> {
    let all: Vec<_> = outputs
        .iter()
        .map(|(number, output)| full_name(*number, output))
        .collect();
    let all = all.join(", ");
    let matches = |(number, output): &(usize, Instance)| {
        wanted.is_none_or(|wanted| {
            let alias = output.get("alias") == Some(wanted);
            let numbered = format!("{}.{number}", output.name).eq_ignore_ascii_case(wanted);
            alias || numbered || output.name.eq_ignore_ascii_case(wanted)
        })
    };
    let mut found: Vec<_> = outputs.into_iter().filter(matches).collect();
    match (found.pop(), found.is_empty(), wanted) {
        (Some(one), true, _) => Ok(one),
        (Some(_), false, _) => bail!("several outputs fit: name one of {all} with --output"),
        (None, _, Some(wanted)) if !all.is_empty() => {
            bail!("there is no output '{wanted}' of the libraries loaded; there are {all}")
        }
        (None, ..) => {
            bail!("no output belongs to the libraries loaded: name them with -e or Plugins_File")
        }
    }
}

fn full_name(number: usize, output: &Instance) -> String {
    match output.get("alias") {
        Some(alias) => format!("{}.{number} ({alias})", output.name),
        None => format!("{}.{number}", output.name),
    }
}

/// The section that letters go out through.
struct Section {
    definition: Instance,
    number: usize,
    is_blob: bool,
    /// The prefix of the section's url, which targets begin with.
    prefix: String,
}

impl Section {
    fn new(mut definition: Instance, number: usize, dir: &Path) -> Self {
        let name = definition.get("instance").or(definition.get("alias"));
        let name = format!("{}-replay", name.unwrap_or(&definition.name));
        let url = definition.get("url").unwrap_or_default().to_owned();
        let is_blob = match definition.get("destination") {
            Some(destination) => !destination.eq_ignore_ascii_case("firehose"),
            None => definition.get("delivery_stream").is_none(),
        };
        let left_out = |key: &str| LEFT_OUT.iter().any(|out| out.eq_ignore_ascii_case(key));
        definition
            .properties
            .retain(|property| !left_out(&property.key));
        for (key, value) in [
            ("log_key", KEY),
            ("spool", "off"),
            ("instance", &name),
            ("dead_letter_dir", &dir.to_string_lossy()),
            // Letters that are on their way again lie in the folder as well: the limit must not keep
            // those from it that are refused again.
            ("dead_letter_limit", "1000G"),
        ] {
            set(&mut definition, key, value);
        }
        Self {
            definition,
            number,
            is_blob,
            prefix: prefix_of(&url).to_owned(),
        }
    }

    /// The value of `path` or `delivery_stream` that leads a letter where it was on its way to. Nothing
    /// where it does not say: the section's own value counts.
    fn way(&self, letter: &Letter) -> Result<Option<String>, String> {
        let Some(target) = &letter.target else {
            return Ok(None);
        };
        let way = if self.is_blob {
            folder_of(target, &self.prefix).replace('%', "%%")
        } else {
            target.clone()
        };
        if way.contains(['{', '$']) {
            return Err(format!("its target '{target}' reads as a template"));
        }
        Ok(Some(way))
    }

    fn definition(&self, way: Option<&str>) -> Instance {
        let mut definition = self.definition.clone();
        if let Some(way) = way {
            let key = if self.is_blob {
                "path"
            } else {
                "delivery_stream"
            };
            definition
                .properties
                .retain(|property| !property.key.eq_ignore_ascii_case(key));
            set(&mut definition, key, way);
        }
        definition
    }

    fn plan(&self, way: Option<&str>, service: &Service, proxies: &[Proxy]) -> Result<Plan> {
        let definition = self.definition(way);
        let mut plan = plan(&definition, self.number, true, service.log_level, proxies)?;
        plan.tag_pattern = Some("*".to_owned());
        if plan.workers == 0 {
            plan.workers = WORKERS;
        }
        if plan.retry_limit == RetryLimit::Unlimited {
            plan.retry_limit = RetryLimit::Limit(RETRIES);
        }
        Ok(plan)
    }
}

fn set(definition: &mut Instance, key: &str, value: &str) {
    let property = Property {
        key: key.to_owned(),
        value: Some(value.to_owned()),
        place: definition.place.clone(),
    };
    definition.properties.push(property);
}

/// What stands behind the container or bucket of a url. A `file://` url has none: names begin below it.
fn prefix_of(url: &str) -> &str {
    match url.split_once("://") {
        Some(("file", _)) | None => "",
        Some((_, rest)) => rest
            .split_once('/')
            .map_or("", |(_, prefix)| prefix.trim_matches('/')),
    }
}

/// The folder of an object below the prefix; `/` is the folder that has no name.
fn folder_of<'t>(object: &'t str, prefix: &str) -> &'t str {
    let below = object
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('/'));
    let object = below.filter(|_| !prefix.is_empty()).unwrap_or(object);
    object.rsplit_once('/').map_or("/", |(folder, _)| folder)
}

#[derive(Default)]
struct Totals {
    letters: u64,
    sent: u64,
    lines: u64,
    left: u64,
    /// By what is to be said of them.
    kept: BTreeMap<String, u64>,
}

impl Totals {
    fn sum_up(&self, dir: &Path) -> Result<ExitCode> {
        for (why, count) in &self.kept {
            println!("kept {count}: {why}");
        }
        let kept: u64 = self.kept.values().sum();
        let (written, _) = letters::find(dir)?;
        let mut refused = 0;
        for path in &written {
            LetterFile::open(path, false)?.scan(|_, _| refused += 1)?;
        }
        println!(
            "{} letters: {} delivered ({} lines), {kept} kept, {} not delivered; {refused} new letters",
            self.letters, self.sent, self.lines, self.left
        );
        if refused > 0 {
            let files: Vec<_> = written
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            println!(
                "new letters were refused again, or come from a host that is running: see `error` in {}",
                files.join(", ")
            );
        }
        if self.left > 0 {
            println!(
                "what was not delivered is in {}/*.replaying: mend what the log above says, and replay again",
                dir.display()
            );
        }
        Ok(ExitCode::from(u8::from(self.left + refused > 0)))
    }
}

struct Replay<'p> {
    service: Service,
    section: Section,
    supervisor: Supervisor,
    proxies: &'p mut Vec<Proxy>,
    totals: Totals,
}

impl Replay<'_> {
    /// Sends the letters of one file, as far as it gets.
    fn file(&mut self, path: &Path) -> Result<()> {
        let file = LetterFile::open(path, true)?;
        let mut ways = BTreeMap::<_, VecDeque<Place>>::new();
        let (mut kept, mut letters) = (Vec::new(), 0);
        let totals = &mut self.totals;
        file.scan(|place, letter| {
            letters += 1;
            match self.section.sort(letter) {
                Ok(way) => ways.entry(way).or_default().push_back(place),
                Err(why) => {
                    *totals.kept.entry(why).or_default() += 1;
                    kept.push(place);
                }
            }
        })?;
        self.totals.letters += letters;
        println!(
            "{}: {} letters to send, {} that cannot be sent as they are",
            file.name(),
            letters - kept.len() as u64,
            kept.len()
        );
        if !kept.is_empty() {
            let to = file.kept_path();
            file.keep(&kept)
                .with_context(|| format!("cannot write {}", to.display()))?;
            println!("  those are in {}", to.display());
        }
        let sending = Arc::new(Sending {
            file,
            sent: AtomicU64::new(0),
            lines: AtomicU64::new(0),
        });
        let mut outcome = Ok(());
        for (way, places) in ways {
            if self.supervisor.signals.stop.load(Ordering::Relaxed) {
                break;
            }
            let to = way.as_deref().unwrap_or("where the section says");
            println!("  {} letters to {to}", places.len());
            outcome = self.send(way.as_deref(), places, &sending);
            if outcome.is_err() {
                break;
            }
        }
        self.totals.sent += sending.sent.load(Ordering::Relaxed);
        self.totals.lines += sending.lines.load(Ordering::Relaxed);
        let sending = Arc::into_inner(sending).expect("no chunk outlives its engine");
        self.totals.left += sending.file.finish()? as u64;
        outcome
    }

    /// Runs the engine once, for the letters that go one way.
    fn send(
        &mut self,
        way: Option<&str>,
        places: VecDeque<Place>,
        sending: &Arc<Sending>,
    ) -> Result<()> {
        let plan = self.section.plan(way, &self.service, self.proxies)?;
        let input = Letters {
            sending: sending.clone(),
            places,
            together: if self.section.is_blob {
                1
            } else {
                LINES_TOGETHER
            },
        };
        let slot = Slot {
            definition: self.section.definition.clone(),
            name: "letters".to_owned(),
            mem_buf_limit: Some(READ_AHEAD),
            on_disk: false,
            input: Box::new(input),
            ended: false,
        };
        let generation = Generation {
            service: self.service.clone(),
            proxies: std::mem::take(self.proxies),
            plans: vec![plan],
            slots: vec![slot],
            store: None,
            settle_late: Duration::ZERO,
            lasting: self.supervisor.begin(),
        };
        let (generation, outcome, _) = self.supervisor.supervise(generation)?;
        *self.proxies = generation.proxies;
        outcome.map_err(anyhow::Error::msg)
    }
}

impl Section {
    /// Which way a letter goes, or why it is not sent.
    fn sort(&self, letter: Result<Letter, String>) -> Result<Option<String>, String> {
        let letter = letter?;
        if let Some(why) = letter.why_not_sent() {
            return Err(format!("{}: {why}", letter.reason));
        }
        letter.lines()?;
        self.way(&letter)
    }
}

/// A file whose letters are on their way.
struct Sending {
    file: LetterFile,
    sent: AtomicU64,
    lines: AtomicU64,
}

/// A letter on its way, in one chunk or several.
struct OnItsWay {
    place: Place,
    lines: u64,
    chunks_left: AtomicUsize,
}

/// The letters of a chunk.
struct Parts {
    sending: Arc<Sending>,
    letters: Vec<Arc<OnItsWay>>,
}

impl Origin for Parts {
    fn name(&self) -> String {
        let numbers = self.letters.first().map_or(0, |letter| letter.place.number);
        format!("{}:{numbers}", self.sending.file.name())
    }

    fn stays_without_a_match(&self) -> bool {
        true
    }

    fn settled(self: Box<Self>, outcome: Outcome) {
        if outcome == Outcome::Dropped {
            return;
        }
        for letter in &self.letters {
            if letter.chunks_left.fetch_sub(1, Ordering::Relaxed) > 1 {
                continue;
            }
            let sending = &self.sending;
            sending.sent.fetch_add(1, Ordering::Relaxed);
            sending.lines.fetch_add(letter.lines, Ordering::Relaxed);
            if let Err(error) = sending.file.strike(letter.place) {
                let text = format!(
                    "[replay] {} was delivered, but: {error}; it will be sent again",
                    self.name()
                );
                abi::log(LOG_ERROR, &text);
            }
        }
    }
}

/// Letters that go one way, as an input.
struct Letters {
    sending: Arc<Sending>,
    places: VecDeque<Place>,
    /// Lines up to which further letters with the same tag join a chunk.
    together: usize,
}

impl Letters {
    fn letter(&self, place: Place) -> Result<(Letter, Vec<Vec<u8>>)> {
        let letter = self.sending.file.read(place).map_err(anyhow::Error::msg)?;
        let lines = letter.lines().map_err(anyhow::Error::msg)?;
        Ok((letter, lines))
    }
}

impl Input for Letters {
    /// One chunk, or all those of a letter that is too large for one.
    fn poll(&mut self, _: Instant, out: &mut Appender) -> Result<Next> {
        let Some(place) = self.places.pop_front() else {
            return Ok(Next::Ended);
        };
        let (first, lines) = self.letter(place)?;
        let tag = first.tag.clone();
        let mut chunks: Vec<(Vec<u8>, Vec<Arc<OnItsWay>>)> = vec![Default::default()];
        let mut lines_together = 0;
        let mut next = Some((place, first, lines));
        while let Some((place, letter, lines)) = next.take() {
            let on_its_way = Arc::new(OnItsWay {
                place,
                lines: lines.len() as u64,
                chunks_left: AtomicUsize::new(0),
            });
            lines_together += lines.len();
            for line in lines {
                if chunks
                    .last()
                    .is_some_and(|(data, _)| data.len() >= CHUNK_LIMIT)
                {
                    chunks.push(Default::default());
                }
                let (data, letters) = chunks.last_mut().expect("there is one from the beginning");
                begin_event(data, letter.time());
                data.extend(raw(KEY, &line));
                if letters
                    .last()
                    .is_none_or(|last| !Arc::ptr_eq(last, &on_its_way))
                {
                    on_its_way.chunks_left.fetch_add(1, Ordering::Relaxed);
                    letters.push(on_its_way.clone());
                }
            }
            let room = chunks.len() == 1 && lines_together < self.together;
            if let Some(&place) = self.places.front().filter(|_| room) {
                let (letter, lines) = self.letter(place)?;
                if letter.tag == tag && lines_together + lines.len() <= self.together {
                    self.places.pop_front();
                    next = Some((place, letter, lines));
                }
            }
        }
        for (data, letters) in chunks {
            let origin = Parts {
                sending: self.sending.clone(),
                letters,
            };
            out.whole(&tag.as_str().into(), data, Some(Box::new(origin)));
        }
        Ok(Next::Now)
    }
}

/// `--dry-run`.
fn count(args: &ReplayArgs) -> Result<ExitCode> {
    let (written, taken) = letters::find(&args.dir)?;
    let mut counts = BTreeMap::<(String, String), u64>::new();
    for path in taken.iter().chain(&written) {
        LetterFile::open(path, false)?.scan(|_, letter| {
            let (reason, target) = match letter {
                Ok(letter) => (
                    letter.reason,
                    letter.target.unwrap_or_else(|| "-".to_owned()),
                ),
                Err(_) => ("no letter".to_owned(), "-".to_owned()),
            };
            *counts.entry((reason, target)).or_default() += 1;
        })?;
    }
    for ((reason, target), count) in &counts {
        println!("{count:>8}  {reason:<12}  {target}");
    }
    let total: u64 = counts.values().sum();
    println!(
        "{total:>8}  letters in {} files",
        taken.len() + written.len()
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_folder_below_the_urls_prefix() {
        #[rustfmt::skip] // a table
        let cases = [
            ("az://logs/prod/eu/", "prod/eu/app/2025/11/x.ndjson.gz", "app/2025/11"),
            ("az://logs/prod", "prod/x.ndjson", "/"),
            ("az://logs/prod", "production/x.ndjson", "production"),
            ("s3://bucket", "app/x.ndjson", "app"),
            ("gs://bucket/", "x.ndjson", "/"),
            ("file:///var/log/app", "app/x.ndjson", "app"),
            ("", "a/b/x.ndjson", "a/b"),
        ];
        for (url, object, folder) in cases {
            assert_eq!(folder_of(object, prefix_of(url)), folder, "{url} {object}");
        }
    }
}
