//! Reads the values of keys, and collects problems.

#[cfg(test)]
use std::cell::RefCell;
#[cfg(test)]
use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::keys::{
    self, Choice, Flag, Interval, Key, Name, Scope, SecretText, Share, Size, Time, Url, one_of,
};
use super::value::{
    FLAGS, holds_secrets, is_full_url, parse_size, parse_time, shown, without_secrets,
};
use super::{DestinationKind, Place, Problem, Properties, Secret, SecretSource};
use crate::codec::template::Template;

/// A reader of the keys in the table, under any of their names, which collects problems.
pub(super) struct Reader<'p> {
    properties: &'p dyn Properties,
    problems: Vec<Problem>,
    /// The keys whose values were used.
    #[cfg(test)]
    used: RefCell<BTreeSet<&'static str>>,
}

impl<'p> Reader<'p> {
    pub(super) fn new(properties: &'p dyn Properties) -> Self {
        Reader {
            properties,
            problems: Vec::new(),
            #[cfg(test)]
            used: RefCell::default(),
        }
    }

    /// Returns the keys whose values were used. A row of the table that no configuration uses has no effect.
    #[cfg(test)]
    pub(super) fn into_used(self) -> BTreeSet<&'static str> {
        self.used.into_inner()
    }

    #[cfg(test)]
    fn mark_used(&self, key: &'static Key) {
        self.used.borrow_mut().insert(key.name);
    }

    #[cfg(not(test))]
    fn mark_used(&self, _: &'static Key) {}

    /// Returns all problems so far.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Adds a problem of a key, under the name that is set.
    pub(super) fn problem(&mut self, key: &'static Key, message: impl Into<String>) {
        let written = key.names().find(|name| self.properties.is_set(name));
        self.problem_at(written.unwrap_or(key.name), message);
    }

    fn problem_at(&mut self, name: &'static str, message: impl Into<String>) {
        self.problems.push(Problem::new(name, message));
    }

    /// Whether a key is set, even to an empty value.
    pub(super) fn is_set(&self, key: &'static Key) -> bool {
        key.names().any(|name| self.properties.is_set(name))
    }

    /// See [`Properties::lines_are_records`].
    pub(super) fn lines_are_records(&self) -> bool {
        self.properties.lines_are_records()
    }

    /// Returns a value without any checks.
    pub(super) fn raw(&self, key: &'static Key) -> Option<String> {
        self.mark_used(key);
        key.names().find_map(|name| self.properties.get(name))
    }

    /// Returns the value under one name. An empty one, which an unset `${VARIABLE}` expands to, is a problem.
    fn named(&mut self, name: &'static str) -> Option<String> {
        let value = self.properties.get(name)?;
        let value = value.trim();
        if value.is_empty() {
            self.problem_at(name, "is empty: set a value (an environment variable that is not set is empty), or remove it");
            return None;
        }
        Some(value.to_owned())
    }

    /// Returns a value that is not empty. Several names of a key may only be set to the same value.
    pub(super) fn text(&mut self, key: &'static Key) -> Option<String> {
        self.mark_used(key);
        self.written(key)
    }

    /// Like [`Reader::text`], for a key that is checked but not used.
    fn written(&mut self, key: &'static Key) -> Option<String> {
        let mut found: Option<(&'static str, String)> = None;
        for name in key.names() {
            let Some(value) = self.named(name) else {
                continue;
            };
            match &found {
                None => found = Some((name, value)),
                Some((_, first)) if first.eq_ignore_ascii_case(&value) => {}
                Some((first_name, first)) => {
                    let message = format!(
                        "{}, but its alias {name} has {}: keep one of them",
                        self.shown(key, first),
                        self.shown(key, &value)
                    );
                    self.problem_at(first_name, message);
                }
            }
        }
        found.map(|(_, value)| value)
    }

    /// Returns a value for a message.
    fn shown(&self, key: &'static Key, value: &str) -> String {
        match key.value.is_secret() {
            true => "a secret".to_owned(),
            false => shown(value),
        }
    }

    /// Returns the value, or else the default of the table.
    pub(super) fn flag(&mut self, key: &'static Key<Flag>) -> Option<bool> {
        self.mark_used(key);
        let mut found: Option<bool> = None;
        for name in key.names() {
            let Some(value) = self.named(name) else {
                continue;
            };
            match (word(FLAGS, &value), found) {
                (None, _) => {
                    self.problem_at(name, format!("{} is neither on nor off", shown(&value)))
                }
                (Some(flag), Some(first)) if flag != first => self.problem(
                    key,
                    format!("contradicts its alias {name}: keep one of them"),
                ),
                (flag, first) => found = first.or(flag),
            }
        }
        found.or(key.value.0)
    }

    pub(super) fn choice<V: Copy + std::fmt::Debug + Sync>(
        &mut self,
        key: &'static Key<Choice<V>>,
    ) -> Option<V> {
        let value = self.text(key)?;
        let Choice { words, also } = key.value;
        let chosen = word(words, &value).or_else(|| word(also, &value));
        if chosen.is_none() {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let message = format!("{} is not supported; use {}", shown(&value), one_of(&words));
            self.problem(key, message);
        }
        chosen
    }

    pub(super) fn size(&mut self, key: &'static Key<Size>) -> usize {
        self.size_or(key, key.value.default)
    }

    /// Returns a size whose default depends on other keys.
    pub(super) fn size_or(&mut self, key: &'static Key<Size>, default: usize) -> usize {
        let Some(value) = self.text(key) else {
            return default;
        };
        let range = &key.value.range;
        match parse_size(&value) {
            Some(size) if range.contains(&size) => size,
            _ => {
                let message = format!(
                    "{} is not a size from {} to {} bytes; write 500K, 64M or 1G (K is 1,000)",
                    shown(&value),
                    range.start(),
                    range.end()
                );
                self.problem(key, message);
                default
            }
        }
    }

    /// Returns a part of `whole` bytes, the value of the other limit.
    pub(super) fn share(&mut self, key: &'static Key<Share>, whole: u64) -> u64 {
        let percent = |percent: f64| (whole as f64 * percent / 100.0) as u64;
        let Share { of, default, least } = key.value;
        let default = percent(default as f64);
        let Some(value) = self.text(key) else {
            return default;
        };
        let bytes = match value.strip_suffix('%') {
            Some(number) => {
                let number = number.trim_end().parse::<f64>().ok();
                number
                    .filter(|number| (1.0..=100.0).contains(number))
                    .map(percent)
            }
            None => parse_size(&value)
                .map(|size| size as u64)
                .filter(|size| (least..=whole).contains(size)),
        };
        bytes.unwrap_or_else(|| {
            let message = format!(
                "{} is neither a size from {least} bytes to {of} ({whole} bytes) nor a percentage of it from 1% to 100%; \
                 write 50% or 500M",
                shown(&value),
            );
            self.problem(key, message);
            default
        })
    }

    pub(super) fn time(&mut self, key: &'static Key<Time>) -> Duration {
        let default = Duration::from_secs(key.value.default);
        let value = self.text(key);
        let read = value.map(|value| self.time_in(key, &value, &key.value.range));
        read.flatten().unwrap_or(default)
    }

    /// Like [`Reader::time`], with another default.
    pub(super) fn time_or(&mut self, key: &'static Key<Time>, default: Duration) -> Duration {
        match self.is_set(key) {
            true => self.time(key),
            false => {
                self.mark_used(key);
                default
            }
        }
    }

    /// Returns an interval; zero for never, `None` where it is not set.
    pub(super) fn interval(&mut self, key: &'static Key<Interval>) -> Option<Duration> {
        let value = self.text(key)?;
        if value.eq_ignore_ascii_case("off") || value == "0" {
            return Some(Duration::ZERO);
        }
        self.time_in(key, &value, &key.value.range)
    }

    fn time_in(
        &mut self,
        key: &'static Key,
        value: &str,
        range: &RangeInclusive<u64>,
    ) -> Option<Duration> {
        let seconds = |seconds: &u64| Duration::from_secs(*seconds);
        let allowed = seconds(range.start())..=seconds(range.end());
        let time = parse_time(value).filter(|time| allowed.contains(time));
        if time.is_none() {
            let mut examples = vec!["500ms", "30s", "5m", "1h"];
            examples.retain(|text| parse_time(text).is_some_and(|time| allowed.contains(&time)));
            let message = format!(
                "{} is not a time from {} to {} seconds; write {}",
                shown(value),
                range.start(),
                range.end(),
                one_of(&examples)
            );
            self.problem(key, message);
        }
        time
    }

    /// Returns a number; `None` for `auto`.
    pub(super) fn count(&mut self, key: &'static Key<keys::Count>) -> Option<usize> {
        let value = self.text(key)?;
        if value.eq_ignore_ascii_case("auto") {
            return None;
        }
        let range = &key.value.range;
        let number = value.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let message = format!(
                "{} is neither auto nor a number from {} to {}",
                shown(&value),
                range.start(),
                range.end()
            );
            self.problem(key, message);
        }
        number
    }

    pub(super) fn file(&mut self, key: &'static Key, path: &str) -> Option<Vec<u8>> {
        match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.problem(
                    key,
                    format!(
                        "'{path}' cannot be read ({error}): check the path and its permissions"
                    ),
                );
                None
            }
        }
    }

    /// Returns a secret, or the path of its file for `@/path`.
    fn secret(&mut self, key: &'static Key<SecretText>) -> Option<SecretSource> {
        let value = self.text(key)?;
        let Some(path) = value.strip_prefix('@') else {
            return Some(SecretSource::Value(Secret::new(value)));
        };
        let bytes = self.file(key, path)?;
        if bytes.trim_ascii().is_empty() {
            self.problem(
                key,
                format!("the file '{path}' is empty: write the secret into it"),
            );
        }
        Some(SecretSource::File(path.into()))
    }

    pub(super) fn required_secret(
        &mut self,
        key: &'static Key<SecretText>,
        because: &str,
    ) -> Option<SecretSource> {
        if !self.is_set(key) {
            self.problem(key, format!("is missing: {because} needs it; write the value, or @/path/to/a/file that contains it"));
        }
        self.secret(key)
    }

    pub(super) fn url(&mut self, key: &'static Key<Url>) -> Option<String> {
        let value = self.text(key)?;
        if !is_full_url(&value) {
            let message = format!(
                "'{}' is not a full URL; write https://host[:port]",
                without_secrets(&value)
            );
            self.problem(key, message);
            return None;
        }
        if holds_secrets(&value) {
            let message = format!(
                "'{}' contains a query or a user: give scheme, host and port; secrets have keys of their own",
                without_secrets(&value)
            );
            self.problem(key, message);
            return None;
        }
        Some(value)
    }

    pub(super) fn template(&mut self, key: &'static Key<Name>, text: &str) -> Option<Template> {
        Template::parse(text, key.value.with_time)
            .map_err(|error| self.problem(key, error.to_string()))
            .ok()
    }

    // Rules of the table.

    /// Refuses known keys that are not supported.
    pub(super) fn refuse_unsupported(&mut self) {
        for &key in keys::ALL {
            if let Some(instead) = key.instead
                && self.written(key).is_some()
            {
                self.problem(key, format!("does nothing in this version: {instead}"));
            }
        }
    }

    /// Refuses keys that do not apply to `place`, which messages call `name`. Without a place it is a blob store whose
    /// kind is not known.
    pub(super) fn refuse_foreign(&mut self, place: Option<Place>, name: &str) {
        for &key in keys::ALL {
            let applies = match place {
                Some(place) => key.scope.includes(place),
                None => key.scope != Scope::Firehose,
            };
            if applies || self.written(key).is_none() {
                continue;
            }
            let message = match place {
                Some(Place::Firehose) => "belongs to a blob destination; remove it".to_owned(),
                _ if key.scope == Scope::Firehose => {
                    "belongs to a Firehose destination; remove it".to_owned()
                }
                _ => format!("does nothing for {name}: remove it"),
            };
            self.problem(key, message);
        }
    }

    /// Refuses keys that need a spool where there is none. Those of other destinations are refused elsewhere.
    pub(super) fn refuse_spooled(&mut self, kind: Option<DestinationKind>) {
        let place = match kind {
            Some(DestinationKind::Blob) => Some(Place::File),
            Some(DestinationKind::Firehose) => Some(Place::Firehose),
            None => None,
        };
        for &key in keys::ALL {
            let applies = place.is_none_or(|place| key.scope.includes(place));
            if key.spooled && applies && self.is_set(key) {
                self.problem(
                    key,
                    "needs spool on, since without it each chunk is sent by itself: set spool on, or remove it",
                );
            }
        }
    }
}

/// Returns the meaning of a word, ignoring case.
fn word<V: Copy>(words: &[(&str, V)], value: &str) -> Option<V> {
    let found = words
        .iter()
        .find(|(word, _)| value.eq_ignore_ascii_case(word));
    found.map(|(_, meaning)| *meaning)
}
