//! Examples for templates: tags from the command line, from `Match`, from the inputs, or from the spool; records from the
//! command line or from the spool.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::host::{Configuration, Output};
use super::{MAX_EXAMPLES, Options, blocking};
use crate::codec::msgpack::{Events, Item};
use crate::config::{Config, Properties as _};
use crate::spool::disk::LocalDisk;
use crate::spool::handles::Handles;
use crate::spool::scan::{Check, survey};

/// The most chunks of a spool to read.
const MAX_CHUNKS: usize = 10_000;
/// The largest chunk of which to read an event, in bytes.
const MAX_CHUNK_BYTES: u32 = 8_000_000;

/// Returns the options with examples: the given tags, or else the one in `Match`, or else those of the chunks in the spool
/// and those of the inputs that `Match` fits.
pub(super) async fn find(
    configuration: &Configuration,
    output: &Output,
    config: &Config,
    options: &Options,
) -> Options {
    let mut found = options.clone();
    let spooled = match &config.spool {
        Some(spool) => {
            let dir = spool.dir.clone();
            // Problems of the folder are reported where it is checked.
            let read = blocking(options, move || undelivered(&dir)).await;
            read.and_then(|read| read.map_err(|error| error.to_string()))
                .unwrap_or_default()
        }
        None => Spooled::default(),
    };
    found.samples = spooled.samples;
    if !found.tags.is_empty() {
        return found;
    }
    let pattern = output.get("match");
    if let Some(tag) = pattern.as_ref().filter(|tag| !tag.contains('*')) {
        found.tags = vec![tag.clone()];
        return found;
    }
    found.tags = spooled.tags;
    let inputs = configuration.tags.iter();
    let inputs = inputs.filter(|tag| pattern.as_deref().is_some_and(|pattern| fits(pattern, tag)));
    for tag in inputs {
        if found.tags.len() < MAX_EXAMPLES && !found.tags.contains(tag) {
            found.tags.push(tag.clone());
        }
    }
    found
}

/// Whether a pattern of `Match`, in which `*` stands for any text, fits a tag.
fn fits(pattern: &str, tag: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == tag;
    };
    let Some(tag) = tag.strip_prefix(start) else {
        return false;
    };
    // The rest may begin anywhere in what is left.
    (0..=tag.len())
        .filter(|at| tag.is_char_boundary(*at))
        .any(|at| fits(rest, &tag[at..]))
}

/// What a spool has for examples.
#[derive(Default)]
struct Spooled {
    tags: Vec<String>,
    /// An event of each tag.
    samples: Vec<(String, Vec<u8>)>,
}

/// Returns the tags of chunks that are not delivered, and an event of each.
fn undelivered(dir: &Path) -> io::Result<Spooled> {
    let disk = LocalDisk::look(dir)?;
    let survey = survey(&disk, Check::LastSegment)?;
    let handles = Handles::new(Arc::new(disk));
    let mut tags = BTreeSet::new();
    let mut samples = Vec::new();
    let left = survey
        .chunks()
        .filter(|(chunk, _)| !survey.is_finished(*chunk));
    for (_, place) in left.take(MAX_CHUNKS) {
        // A segment may have been removed meanwhile, when its chunks were delivered.
        let Ok(file) = handles.get(place.segment) else {
            continue;
        };
        let tag = String::from_utf8_lossy(&place.tag(&*file)?).into_owned();
        if !tags.insert(tag.clone()) {
            continue;
        }
        if place.events_len() <= MAX_CHUNK_BYTES
            && let Ok(chunk) = place.read(&*file)?
            && let Some(Item::Event(event)) = Events::new(&chunk.data).next()
        {
            samples.push((tag, event.body.to_vec()));
        }
        if tags.len() == MAX_EXAMPLES {
            break;
        }
    }
    Ok(Spooled {
        tags: tags.into_iter().collect(),
        samples,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_a_tag_as_fluent_bit_matches_it() {
        for (pattern, tag, expected) in [
            ("*", "app", true),
            ("*", "", true),
            ("app", "app", true),
            ("app", "apps", false),
            ("app.*", "app.a.b", true),
            ("app.*", "app", false),
            ("*.log", "a.log", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*é", "é", true),
        ] {
            assert_eq!(fits(pattern, tag), expected, "{pattern} {tag}");
        }
    }
}
