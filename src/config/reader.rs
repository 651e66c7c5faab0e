//! Reads values, and gathers what is wrong with them.

use std::fs;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::value::{is_full_url, parse_size, parse_time, without_secrets};
use super::{Problem, Properties, Secret, SecretSource};
use crate::codec::template::Template;

/// Reads keys and gathers what is wrong with them.
pub(super) struct Reader<'p> {
    pub(super) properties: &'p dyn Properties,
    pub(super) problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn problem(&mut self, key: &'static str, message: impl Into<String>) {
        self.problems.push(Problem::new(key, message));
    }

    /// A value that says something: an empty one is what an unset `${VARIABLE}` leaves behind.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.properties.get(key)?;
        let value = value.trim();
        if value.is_empty() {
            self.problem(key, "is empty: give it a value (an environment variable that is not set is empty), or remove it");
            return None;
        }
        Some(value.to_owned())
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.text(key)?;
        let flag = match value.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" => Some(true),
            "off" | "false" | "no" => Some(false),
            _ => None,
        };
        if flag.is_none() {
            self.problem(key, format!("'{value}' is neither on nor off"));
        }
        flag
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        allowed: &[(&str, T)],
    ) -> Option<T> {
        let value = self.text(key)?;
        let chosen = allowed
            .iter()
            .find(|(name, _)| value.eq_ignore_ascii_case(name));
        if chosen.is_none() {
            let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
            self.problem(
                key,
                format!(
                    "'{value}' is not possible in this version; it may be {}",
                    names.join(" or ")
                ),
            );
        }
        chosen.map(|(_, value)| *value)
    }

    /// The value of a key that has a second name; both may be set only to the same.
    pub(super) fn either(&mut self, key: &'static str, alias: &'static str) -> Option<String> {
        let (first, second) = (self.text(key), self.text(alias));
        if let (Some(first), Some(second)) = (&first, &second)
            && !first.eq_ignore_ascii_case(second)
        {
            self.problem(
                key,
                format!("'{first}', but its other name {alias} says '{second}': keep one of them"),
            );
        }
        first.or(second)
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: usize,
        allowed: RangeInclusive<usize>,
    ) -> usize {
        let value = self.text(key);
        self.size_in(key, value, default, allowed)
    }

    pub(super) fn size_in(
        &mut self,
        key: &'static str,
        value: Option<String>,
        default: usize,
        allowed: RangeInclusive<usize>,
    ) -> usize {
        let Some(value) = value else {
            return default;
        };
        match parse_size(&value) {
            Some(size) if allowed.contains(&size) => size,
            _ => {
                self.problem(
                    key,
                    format!(
                        "'{value}' is not a size from {} to {} bytes; write 500K, 64M or 1G (K is 1,000)",
                        allowed.start(),
                        allowed.end()
                    ),
                );
                default
            }
        }
    }

    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Duration {
        let value = self.text(key);
        self.time_in(key, value, default, allowed)
    }

    pub(super) fn time_in(
        &mut self,
        key: &'static str,
        value: Option<String>,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Duration {
        let default = Duration::from_secs(default);
        let Some(value) = value else {
            return default;
        };
        let seconds = |seconds: &u64| Duration::from_secs(*seconds);
        let (least, most) = (seconds(allowed.start()), seconds(allowed.end()));
        match parse_time(&value) {
            Some(time) if (least..=most).contains(&time) => time,
            _ => {
                self.problem(
                    key,
                    format!(
                        "'{value}' is not a time from {} to {} seconds; write 500ms, 30s, 5m or 1h",
                        allowed.start(),
                        allowed.end()
                    ),
                );
                default
            }
        }
    }

    pub(super) fn file(&mut self, key: &'static str, path: &str) -> Option<Vec<u8>> {
        match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.problem(key, format!("'{path}' cannot be read: {error}"));
                None
            }
        }
    }

    /// A secret, or `@/path` of the file that holds it.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<SecretSource> {
        let value = self.text(key)?;
        let Some(path) = value.strip_prefix('@') else {
            return Some(SecretSource::Value(Secret::new(value)));
        };
        let bytes = self.file(key, path)?;
        if bytes.trim_ascii().is_empty() {
            self.problem(key, format!("the file '{path}' is empty"));
        }
        Some(SecretSource::File(path.into()))
    }

    pub(super) fn needed_secret(
        &mut self,
        key: &'static str,
        because: &str,
    ) -> Option<SecretSource> {
        if self.properties.get(key).is_none() {
            self.problem(key, format!("is missing: {because} needs it; write the value, or @/path/to/a/file that holds it"));
        }
        self.secret(key)
    }

    pub(super) fn url(&mut self, key: &'static str) -> Option<String> {
        let value = self.text(key)?;
        if !is_full_url(&value) {
            self.problem(
                key,
                format!(
                    "'{}' is not a full URL; write https://host[:port]",
                    without_secrets(&value)
                ),
            );
            return None;
        }
        Some(value)
    }

    pub(super) fn template(
        &mut self,
        key: &'static str,
        text: &str,
        with_time: bool,
    ) -> Option<Template> {
        Template::parse(text, with_time)
            .map_err(|message| self.problem(key, message))
            .ok()
    }
}
