//! Looks for spools of earlier runs that no output uses, and reports them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::context::Context;
use crate::log::{Level, Log};
use crate::metrics::Metrics;
use crate::spool::stranded::{self, Found};

/// The outputs of a process look one after the other, until the one that does stops: one line and one value for each spool.
static TURN: Semaphore = Semaphore::const_new(1);
/// The time after the start: by then, all outputs of the host have locked their own.
const FIRST: Duration = Duration::from_secs(10);
/// The interval at which they are looked for.
const INTERVAL: Duration = Duration::from_secs(300);

/// Looks at an interval, until it is dropped.
pub(super) async fn watch(context: Arc<Context>) {
    sleep(FIRST).await;
    // Never closed.
    let Ok(_turn) = TURN.acquire().await else {
        return;
    };
    let mut watch = Watch::default();
    loop {
        watch.look(&context).await;
        sleep(INTERVAL).await;
    }
}

#[derive(Default)]
struct Watch {
    /// Set when this is dropped, so that the search ends.
    over: Arc<AtomicBool>,
    /// The folders that were named in the log.
    named: BTreeSet<PathBuf>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    async fn look(&mut self, context: &Context) {
        let (dir, over) = (context.config.state_dir.clone(), Arc::clone(&self.over));
        let found = spawn_blocking(move || stranded::find(&dir, &|| over.load(Ordering::Relaxed)));
        // A parent that cannot be read has nothing of this user in it.
        if let Ok(Ok(found)) = found.await {
            self.report(&context.log, &context.metrics, &found);
        }
    }

    fn report(&mut self, log: &Log, metrics: &Metrics, found: &Found) {
        let bytes: u64 = found.stranded.iter().map(|it| it.waiting.bytes).sum();
        metrics.stranded.set(bytes as f64);
        for it in &found.stranded {
            if self.named.insert(it.dir.clone()) {
                let line = format!(
                    "{} of an earlier run are in the spool '{}', which no output uses: {}",
                    it.waiting.words(),
                    it.dir.display(),
                    it.remedy()
                );
                log.write(Level::Warn, &line);
            }
        }
        // One that was in use meanwhile is news again.
        self.named
            .retain(|dir| found.stranded.iter().any(|it| it.dir == *dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::Lines;
    use crate::spool::stranded::{Stranded, Waiting};

    #[test]
    fn each_spool_is_named_once_and_its_bytes_are_counted_until_it_is_delivered() {
        let (lines, metrics) = (Lines::default(), Metrics::default());
        let log = Log::new(Box::new(lines.clone()), "f");
        let spool = |name: &str, bytes| Stranded {
            dir: name.into(),
            waiting: Waiting {
                chunks: 2,
                bytes,
                oldest: None,
                exact: true,
            },
        };
        let found = |stranded| Found {
            stranded,
            unreadable: Vec::new(),
        };
        let mut watch = Watch::default();
        let mut look = |stranded| watch.report(&log, &metrics, &found(stranded));
        look(vec![spool("/state/a", 10), spool("/state/b", 5)]);
        look(vec![spool("/state/a", 10), spool("/state/b", 5)]);
        assert_eq!(metrics.stranded.get(), Some(15.0));
        look(vec![spool("/state/b", 5)]);
        assert_eq!(metrics.stranded.get(), Some(5.0));
        let lines = lines.0.lock().unwrap();
        let lines: Vec<&str> = lines.iter().map(|(_, line)| &**line).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].contains("2 chunks (10 bytes) of an earlier run are in the spool '/state/a'")
                && lines[0].contains("ferry spool deliver /state/a -c FILE"),
            "{lines:?}"
        );
    }
}
