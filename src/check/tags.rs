//! Examples of tags, for names that are made from them: where nobody gives one, the configuration or the spool may
//! hold some.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::host::Output;
use super::{MOST_TRIED, Options, blocking};
use crate::config::{Config, Properties as _};
use crate::spool::disk::LocalDisk;
use crate::spool::handles::Handles;
use crate::spool::scan::{Check, survey};

/// Chunks of a spool that are looked at, at most.
const MOST_CHUNKS: usize = 10_000;

/// The tags that are given, or else the one that `Match` names, or else those of the chunks in the spool.
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
    // What is the matter with the folder is said where it is checked.
    let held = blocking(options, move || held(&dir)).await;
    held.and_then(|held| held.map_err(|error| error.to_string()))
        .unwrap_or_default()
}

/// The tags of chunks that are not delivered.
fn held(dir: &Path) -> io::Result<Vec<String>> {
    let disk = LocalDisk::look(dir)?;
    let survey = survey(&disk, Check::LastSegment)?;
    let handles = Handles::new(Arc::new(disk));
    let mut tags = BTreeSet::new();
    let left = survey
        .chunks()
        .filter(|(chunk, _)| !survey.is_finished(*chunk));
    for (_, place) in left.take(MOST_CHUNKS) {
        // A segment may be gone since: then its chunks are delivered.
        let Ok(file) = handles.get(place.segment) else {
            continue;
        };
        tags.insert(String::from_utf8_lossy(&place.tag(&*file)?).into_owned());
        if tags.len() == MOST_TRIED {
            break;
        }
    }
    Ok(tags.into_iter().collect())
}
