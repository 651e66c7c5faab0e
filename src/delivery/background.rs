//! The thread that reads, encodes and compresses for the feed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// Steps of nice(2) by which encoding and compressing step back: who waits for a flush, the host's threads and
/// the application beside it come first, and the spool keeps what comes meanwhile. A quarter of a processor is
/// left where one other thread wants all of it.
const NICENESS: i32 = 5;

/// A thread for what takes the feed long: reading, encoding, compressing. One for all of it, one thing after the
/// other, as the feed wants them: a system's allocator may keep what a thread has freed for that thread, and the
/// megabytes of a chunk would be kept as many times as there are threads that took turns. It steps back behind all
/// others that want a processor. Ends when this is dropped.
pub(super) struct Background(std::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Background {
    /// Within a runtime, which waits for the thread when it goes down.
    pub(super) fn start() -> Background {
        let (jobs, todo) = std::sync::mpsc::channel::<Box<dyn FnOnce() + Send>>();
        spawn_blocking(move || {
            // Concerns the calling thread alone. Where it is not allowed, all goes on as it was.
            let _ = rustix::process::nice(NICENESS);
            for job in todo {
                // Whoever waits for it is told, by a sender that is dropped.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        });
        Background(jobs)
    }

    /// Queues work, and gives what comes of it later. An error where it panicked.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, result) = oneshot::channel();
        let job = move || {
            // Fails where nobody waits any more.
            let _ = done.send(work());
        };
        // Fails where the runtime goes down, and the thread with it: so does the sender.
        let _ = self.0.send(Box::new(job));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_long_steps_back_on_one_thread_that_outlives_a_panic() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let own = niceness();
        let background = Background::start();
        let looked = move || (niceness(), std::thread::current().id());
        let first = background.run(looked).await.unwrap();
        assert_eq!(first.0, (own + NICENESS).min(19));
        background
            .run(|| panic!("as a bug would"))
            .await
            .expect_err("whoever waits is told");
        assert_eq!(background.run(looked).await.unwrap(), first);
        assert_eq!(niceness(), own);
    }
}
