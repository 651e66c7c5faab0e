//! The values that did not fit their columns.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts values that are in the column of the rest because they do not fit their own. The log names the columns.
#[derive(Debug, Default)]
pub struct Columns(AtomicU64);

impl Columns {
    /// Adds numbers of values by column.
    pub fn add(&self, conflicts: Vec<(String, u64)>) {
        let all = conflicts.iter().map(|(_, count)| count).sum();
        self.0.fetch_add(all, Ordering::Relaxed);
    }

    /// Returns how many there were.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
