//! Checks the sample records of `--record`: keys that readers take for one, and templates that no sample fills.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Report, msgpack_of};
use crate::config::{Config, Destination};

/// The most keys to name.
const MAX_NAMED: usize = 5;

pub(super) fn check(config: &Config, samples: &[Value], report: &mut Report<'_>) {
    if samples.is_empty() {
        return;
    }
    if !config.encode.lowercase_keys && config.encode.log_key.is_none() {
        let mut alike = BTreeSet::new();
        samples
            .iter()
            .for_each(|sample| collect_alike(sample, &mut alike));
        if !alike.is_empty() {
            let named: Vec<&str> = alike.iter().take(MAX_NAMED).map(String::as_str).collect();
            report.warn(
                "record",
                format!(
                    "keys that differ only in case, which Glue, Athena and Spark take for one: {}",
                    named.join(", ")
                ),
                "set lowercase_keys on: the last of such keys is then written",
            );
        }
    }
    let (key, template) = match &config.destination {
        Destination::Firehose(firehose) => ("delivery_stream", &firehose.delivery_stream),
        Destination::Blob { folder, .. } => ("path", folder),
    };
    let samples: Vec<Vec<u8>> = samples.iter().map(msgpack_of).collect();
    let mut unfilled = samples.iter().map(|sample| template.unfilled(sample));
    let first = unfilled.next().unwrap_or_default();
    let rest: Vec<Vec<&str>> = unfilled.collect();
    for placeholder in first {
        if rest.iter().all(|others| others.contains(&placeholder)) {
            report.warn(
                "record",
                format!("{key} has {placeholder}, which no sample record fills"),
                "correct the path; a key with dots is written in brackets, as in {record.labels['app.io/name']}",
            );
        }
    }
}

/// Adds the keys of each map that are the same in lower case, as `Level and level`.
fn collect_alike(value: &Value, alike: &mut BTreeSet<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect_alike(value, alike)),
        Value::Object(pairs) => {
            let mut by_form: BTreeMap<String, Vec<&str>> = BTreeMap::new();
            for (key, value) in pairs {
                by_form.entry(key.to_lowercase()).or_default().push(key);
                collect_alike(value, alike);
            }
            let several = by_form.into_values().filter(|keys| keys.len() > 1);
            alike.extend(several.map(|keys| keys.join(" and ")));
        }
        _ => {}
    }
}
