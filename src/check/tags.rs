//! Example tags for templates: from the command line, from `Match`, or from the spool.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::host::Output;
use super::{MAX_EXAMPLES, Options, blocking};
use crate::config::{Config, Properties as _};
use crate::spool::disk::LocalDisk;
use crate::spool::handles::Handles;
use crate::spool::scan::{Check, survey};

/// The most chunks of a spool to read.
const MAX_CHUNKS: usize = 10_000;

/// Returns the given tags, or else the one in `Match`, or else those of the chunks in the spool.
pub(super) async fn find(output: &Output, config: &Config, options: &Options) -> Vec<String> {
    if !options.tags.is_empty() {
        return options.tags.clone();
    }
    if let Some(tag) = output.get("match").filter(|tag| !tag.contains('*')) {
        return vec![tag];
    }
    let Some(spool) = &config.spool else {
        return Vec::new();
    };
    let dir = spool.dir.clone();
    // Problems of the folder are reported where it is checked.
    let tags = blocking(options, move || undelivered(&dir)).await;
    tags.and_then(|tags| tags.map_err(|error| error.to_string()))
        .unwrap_or_default()
}

/// Returns the tags of chunks that are not delivered.
fn undelivered(dir: &Path) -> io::Result<Vec<String>> {
    let disk = LocalDisk::look(dir)?;
    let survey = survey(&disk, Check::LastSegment)?;
    let handles = Handles::new(Arc::new(disk));
    let mut tags = BTreeSet::new();
    let left = survey
        .chunks()
        .filter(|(chunk, _)| !survey.is_finished(*chunk));
    for (_, place) in left.take(MAX_CHUNKS) {
        // A segment may have been removed meanwhile, when its chunks were delivered.
        let Ok(file) = handles.get(place.segment) else {
            continue;
        };
        tags.insert(String::from_utf8_lossy(&place.tag(&*file)?).into_owned());
        if tags.len() == MAX_EXAMPLES {
            break;
        }
    }
    Ok(tags.into_iter().collect())
}
