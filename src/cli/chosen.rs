//! The output of a configuration that a command sends through, with some of its keys changed.

use std::fmt::Display;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ferry::check::host::Output;
use ferry::config::{Config, Properties};
use ferry::log::{self, Level};
use indicatif::ProgressBar;

use super::{Failure, tell};

/// Returns the output with the alias or number `wanted`, or the only one, and its configuration. `file` is named in
/// errors.
pub(super) fn choose<'a>(
    outputs: &'a [Output],
    file: &Path,
    wanted: Option<&str>,
) -> Result<(&'a Output, Config), Failure> {
    let file = file.display();
    let all: Vec<&str> = outputs.iter().map(|output| &*output.label).collect();
    let all = all.join(", ");
    let fits = |(number, output): &(usize, &Output)| {
        wanted.is_none_or(|wanted| {
            output.label == wanted
                || number.to_string() == wanted
                || format!("ferry.{number}") == wanted
        })
    };
    let mut found = outputs.iter().enumerate().filter(fits);
    let output = match (found.next(), found.next(), wanted) {
        (Some((_, output)), None, _) => output,
        (Some(_), Some(_), _) => {
            return Err(format!("{file}: name one of {all} with --output").into());
        }
        (None, _, Some(wanted)) if !outputs.is_empty() => {
            return Err(format!("{file}: there is no output {wanted}; use one of {all}").into());
        }
        (None, ..) => return Err(format!("{file}: there is no output ferry").into()),
    };
    for variable in &output.unset {
        tell(format_args!(
            "warning: {}",
            variable.trim_start_matches("[env] ")
        ));
    }
    let config = configuration(output, &file)?;
    Ok((output, config))
}

/// Returns an output's configuration. `file` is named in errors.
pub(super) fn configuration(output: &Output, file: impl Display) -> Result<Config, Failure> {
    Config::read(output).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("{file}: {}: {}", output.label, problems.join("; ")).into()
    })
}

/// An output's keys, of which some are omitted or overridden.
pub(super) struct Keys<'a> {
    pub(super) output: &'a Output,
    /// See [`Properties::lines_are_records`].
    pub(super) lines_are_records: bool,
    pub(super) omitted: Vec<&'static str>,
    pub(super) overrides: Vec<(&'static str, String)>,
}

impl Properties for Keys<'_> {
    fn get(&self, key: &str) -> Option<String> {
        if let Some((_, value)) = self.overrides.iter().find(|(name, _)| *name == key) {
            return Some(value.clone());
        }
        match self.omitted.contains(&key) {
            true => None,
            false => self.output.get(key),
        }
    }

    fn lines_are_records(&self) -> bool {
        self.lines_are_records
    }
}

/// A log that writes warnings and errors to stderr.
pub(super) struct StderrLog {
    /// The last message.
    pub(super) last: Arc<Mutex<String>>,
    /// The bar that is hidden meanwhile.
    pub(super) bar: ProgressBar,
    /// Messages with this text are left out.
    pub(super) silent: Option<String>,
}

impl log::Output for StderrLog {
    fn enabled(&self, level: Level) -> bool {
        level <= Level::Warn
    }

    fn write(&self, _level: Level, line: &str) {
        if self
            .silent
            .as_ref()
            .is_some_and(|silent| line.contains(silent))
        {
            return;
        }
        let message = line.split_once("] ").map_or(line, |(_, message)| message);
        message.clone_into(&mut self.last.lock().expect("nothing panics with this lock"));
        self.bar.suspend(|| tell(format_args!("{message}")));
    }
}
