//! The background thread that reads, encodes and compresses for the feed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// The nice(2) value of encoding and compressing, which yield to waiting flushes, the host's threads and the
/// application beside it; the spool keeps what arrives meanwhile. A quarter of a processor is left if another thread
/// wants all of it.
const NICENESS: i32 = 5;

/// A thread for the feed's long work: reading, encoding, compressing. A single one, doing one job after another: an
/// allocator may keep memory freed by a thread for that thread, and the megabytes of a chunk would be kept once for
/// each thread that took turns. It yields to all other threads that want a processor. Ends when this is dropped.
pub(super) struct Background(std::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Background {
    /// Starts the thread. Requires a runtime, which waits for the thread when it shuts down.
    pub(super) fn start() -> Background {
        let (jobs, todo) = std::sync::mpsc::channel::<Box<dyn FnOnce() + Send>>();
        spawn_blocking(move || {
            // Affects only the calling thread. If it is not permitted, work continues as before.
            let _ = rustix::process::nice(NICENESS);
            for job in todo {
                // A waiter is notified by the dropped sender.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        });
        Background(jobs)
    }

    /// Queues work, and returns its result later. The result is an error if the work panicked.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, result) = oneshot::channel();
        let job = move || {
            // Fails if nobody waits any more.
            let _ = done.send(work());
        };
        // Fails if the runtime has shut down, and the thread with it; the receiver then fails, too.
        let _ = self.0.send(Box::new(job));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_work_yields_on_one_thread_that_outlives_a_panic() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let own = niceness();
        let background = Background::start();
        let looked = move || (niceness(), std::thread::current().id());
        let first = background.run(looked).await.unwrap();
        assert_eq!(first.0, (own + NICENESS).min(19));
        background
            .run(|| panic!("as a bug would"))
            .await
            .expect_err("the waiter is notified");
        assert_eq!(background.run(looked).await.unwrap(), first);
        assert_eq!(niceness(), own);
    }
}
