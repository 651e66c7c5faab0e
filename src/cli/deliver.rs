//! `ferry spool deliver`: delivers a spool that no output uses any more, through the library and an output of the
//! configuration: its stream or bucket was renamed, its `instance` changed, or `spool on` was taken out.
//!
//! The spool is opened as an output opens it: locked, recovered, and with every note about what is sent. So a running
//! host is never disturbed, and the command may be interrupted or killed and started again, like an output.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry::check::host;
use ferry::log::size;
use ferry::output::Instance;
use ferry::spool::Usage;
use ferry::spool::stranded::waiting;
use indicatif::ProgressBar;

use super::chosen::{Keys, StderrLog, choose};
use super::spool::look;
use super::{Done, print, progress, tell};

/// The arguments of `ferry spool deliver`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The spool's directory
    dir: PathBuf,
    /// Fluent Bit's configuration with the output: classic, or YAML where it is named .yaml or .yml. Only its ferry
    /// outputs are read
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The output to deliver through, by its alias or its number among the ferry outputs, from 0; required if there
    /// are several
    #[arg(long, value_name = "N|ALIAS")]
    output: Option<String>,
    /// End when nothing was delivered for this long
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,
}

pub(super) const STATUS: &str = "\
Records go to where the output sends them now. The output's own spool, and a Fluent Bit that is running, are not
disturbed; a directory that is in use is refused. It may be interrupted or killed at any time: start it again, and it
resumes. Objects that had been begun keep their names, and are not written twice into the same store. Records that the destination refuses
become dead letters of the output. Run it as the user that Fluent Bit runs as, with its environment.

Example:
  ferry spool deliver /var/lib/ferry/s3-typo -c /etc/fluent-bit/fluent-bit.conf --output main

Exit status: 0, all is delivered and the spool is empty; 1, something is left in it; 2, the arguments, the
configuration or the spool cannot be read, or it is in use";

/// The room that a spool has beyond what is in it, in bytes: events that wait are written again.
const ROOM: u64 = 1_000_000_000;
/// The most bytes that are read to say how much there is.
const SURVEY_BYTES: u64 = 1_000_000_000;

pub(super) fn run(args: &Args) -> Done {
    let configuration = host::read(&args.config, |name| name == "ferry")?;
    let (output, config) = choose(&configuration.outputs, &args.config, args.output.as_deref())?;
    let disk = look(&args.dir)?;
    // What cannot be read is named, with its remedy, by the start.
    let before = waiting(&disk, SURVEY_BYTES).unwrap_or_default();
    drop(disk);
    let dir = std::path::absolute(&args.dir)?;
    let limit = config.spool.as_ref().map_or(0, |spool| spool.limit);
    let omitted = ["metrics_listen", "metrics_log_interval"];
    let keys = Keys {
        output,
        lines_are_records: false,
        omitted: omitted.to_vec(),
        overrides: vec![
            ("spool", "on".to_owned()),
            ("spool_dir", dir.display().to_string()),
            (
                "spool_limit",
                limit.max(before.bytes.saturating_mul(2) + ROOM).to_string(),
            ),
            (
                "dead_letter_dir",
                config.dead_letter_dir.display().to_string(),
            ),
            ("instance", config.instance.clone()),
        ],
    };
    let bar = progress::of_bytes(before.bytes, false);
    let log = StderrLog {
        last: Arc::default(),
        bar: bar.clone(),
        silent: None,
    };
    let Some(instance) = Instance::start(&keys, Box::new(log), None, Arc::new(|| None)) else {
        bar.finish_and_clear();
        // Each problem was printed.
        return Err("the spool cannot be delivered".to_owned().into());
    };
    let mut progress = Progress::new(bar, Duration::from_secs(args.patience));
    instance.deliver(&mut |usage| progress.goes_on(usage, Instant::now()));
    let gave_up = progress.gave_up;
    progress.bar.finish_and_clear();
    let (left, totals) = instance.stop_and_sum_up();
    let left = left.ok_or_else(|| io::Error::other("the output has no spool"))?;
    let shown = dir.display();
    print(&format!(
        "{} records delivered, {} became dead letters{}\n",
        totals.delivered,
        totals.dead_letters,
        match totals.dead_letters {
            0 => String::new(),
            _ => format!(" in {}", config.dead_letter_dir.display()),
        }
    ))?;
    if totals.ambiguous > 0 {
        tell(format_args!(
            "{} records were sent again after a lost response",
            totals.ambiguous
        ));
    }
    if left.quarantined > 0 {
        tell(format_args!(
            "{} of damaged files or dead letters are in {shown}/quarantine: inspect or replay them",
            size(left.quarantined)
        ));
    }
    if is_empty(&left) {
        tell(format_args!("{shown} is empty"));
        return Ok(true);
    }
    if gave_up {
        tell(format_args!(
            "nothing was delivered for {} s: the last message says why",
            args.patience
        ));
    }
    tell(format_args!(
        "{} chunks are left in {shown} ({}): run this again",
        left.unfinished + left.absent,
        size(left.log_bytes())
    ));
    Ok(false)
}

/// Whether everything is delivered.
fn is_empty(usage: &Usage) -> bool {
    usage.unfinished == 0 && usage.absent == 0
}

/// The progress of a delivery.
struct Progress {
    bar: ProgressBar,
    patience: Duration,
    /// The chunks that were left when some were finished last, and when that was.
    left: Option<(u64, Instant)>,
    /// The chunks at the start.
    all: u64,
    gave_up: bool,
}

impl Progress {
    fn new(bar: ProgressBar, patience: Duration) -> Progress {
        Progress {
            bar,
            patience,
            left: None,
            all: 0,
            gave_up: false,
        }
    }

    /// Shows what is left, and returns whether to go on.
    fn goes_on(&mut self, usage: &Usage, now: Instant) -> bool {
        let left = usage.unfinished;
        self.all = self.all.max(left);
        // Chunks differ in size, but not by so much that the bar misleads.
        let total = self.bar.length().unwrap_or(0);
        let done = u128::from(self.all - left) * u128::from(total) / u128::from(self.all.max(1));
        self.bar.set_position(u64::try_from(done).unwrap_or(total));
        match &self.left {
            Some((before, since)) if left >= *before => {
                self.gave_up = now.duration_since(*since) >= self.patience;
            }
            _ => self.left = Some((left, now)),
        }
        !self.gave_up
    }
}
