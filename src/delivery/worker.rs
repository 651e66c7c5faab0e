//! Works on the spool's chunks in the background, and records which ones, so that a chunk that repeatedly ends the
//! process is found and set aside.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{Duration, Instant, timeout};

use super::background::Background;
use super::poison::{Failure, Poison};
use crate::spool::disk::has_lost_bytes;
use crate::spool::{Seq, Spool, Stored, Suspect, Unreadable, Work};

/// Outputs of one process take turns at suspects: if several worked on theirs at once, a crash could not be attributed.
pub(super) static SUSPECTS_TURN: Semaphore = Semaphore::const_new(1);
/// The minimum uptime before suspects are worked on; up to as much again is added at random. The others are delivered
/// meanwhile, and a process that is killed again and again soon after its start (by a probe, a limit, another plugin)
/// does not count against the suspect.
pub(super) const MIN_UPTIME: Duration = match cfg!(test) {
    true => Duration::from_millis(100),
    false => Duration::from_secs(5),
};
/// The number of suspects from which nothing new is read before their trial: if many chunks end the process, each new
/// run would otherwise stop at another one, and none would be tried.
const MANY_SUSPECTS: usize = 3;
/// The maximum wait for a turn. After that the work is not done alone, and a crash is not attributed to it.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// The background thread of one output, and the chunks at which an earlier process ended.
pub(super) struct Worker {
    background: Background,
    spool: Arc<Spool>,
    suspects: Vec<Suspect>,
    /// The time from which suspects are worked on, and the end of the process counts against them.
    trial: Instant,
    /// Whether the last work was on a chunk.
    working: bool,
    /// The chunks at which work fails.
    poison: Poison,
}

impl Worker {
    /// Starts the thread. Requires a runtime, which waits for the thread when it shuts down.
    pub(super) fn start(spool: Arc<Spool>, suspects: Vec<Suspect>) -> Worker {
        let lived = MIN_UPTIME.mul_f64(StdRng::from_os_rng().random_range(1.0..2.0));
        Worker {
            background: Background::start(),
            spool,
            suspects,
            trial: Instant::now() + lived,
            working: false,
            poison: Poison::default(),
        }
    }

    /// Returns the chunks at which an earlier process ended, and that have not been worked on since.
    pub(super) fn suspects(&self) -> &[Suspect] {
        &self.suspects
    }

    /// Returns the time of their trial.
    pub(super) fn trial(&self) -> Instant {
        self.trial
    }

    /// Returns whether there are too many of them to read anything new before their trial.
    pub(super) fn has_many_suspects(&self) -> bool {
        self.suspects.len() >= MANY_SUSPECTS
    }

    /// If a suspect is among these chunks, waits until no other output of this process works on one of its own. `None`
    /// if none is a suspect, it is too early to blame one, or the others take too long.
    async fn turn(&self, chunks: &[Seq], work: Work) -> Option<SemaphorePermit<'static>> {
        let suspects = &self.suspects;
        let is_suspect = |chunk| {
            let is = |it: &Suspect| (it.chunk, it.work) == (chunk, work);
            suspects.iter().any(is)
        };
        if Instant::now() < self.trial || !chunks.iter().copied().any(is_suspect) {
            return None;
        }
        let turn = timeout(TURN_TIMEOUT, SUSPECTS_TURN.acquire()).await;
        turn.ok()?.ok()
    }

    /// Works on a chunk. Returns an error if the job panicked.
    pub(super) async fn work_on<T: Send + 'static>(
        &mut self,
        chunk: Seq,
        work: Work,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, oneshot::error::RecvError> {
        let spool = Arc::clone(&self.spool);
        let job = move |alone| {
            spool.begin_work(chunk, work, alone);
            job()
        };
        self.work_on_some(&[chunk], work, job).await
    }

    /// Works on chunks, for each of which the job calls [`Spool::begin_work`] with its argument: whether it is alone.
    /// Returns an error if the job panicked.
    pub(super) async fn work_on_some<T: Send + 'static>(
        &mut self,
        chunks: &[Seq],
        work: Work,
        job: impl FnOnce(bool) -> T + Send + 'static,
    ) -> Result<T, oneshot::error::RecvError> {
        let turn = self.turn(chunks, work).await;
        let alone = turn.is_some();
        self.working = true;
        let spool = Arc::clone(&self.spool);
        let done = self.background.run(move || {
            let done = job(alone);
            // While another output has its turn, nothing is this chunk's fault.
            if alone {
                spool.end_work();
            }
            done
        });
        done.await
    }

    /// Reads a chunk. One at which work failed for too long is given up.
    pub(super) async fn read(&mut self, chunk: Seq, work: Work) -> Result<Stored, Unreadable> {
        let (spool, condemned) = (Arc::clone(&self.spool), self.poison.condemns(chunk));
        let stored = self.work_on(chunk, work, move || match condemned {
            Some(why) => Err(spool.give_up(chunk, &why)),
            None => spool.read(chunk),
        });
        let stored = stored.await.unwrap_or_else(|_| {
            let error = std::io::Error::other("the reading thread ended");
            Err(Unreadable::Disk(error))
        });
        match &stored {
            Ok(_) => {}
            Err(Unreadable::Disk(error)) => self.failed_to_read(chunk, error),
            Err(Unreadable::Corrupt { .. } | Unreadable::Finished) => self.poison.forget(chunk),
            Err(Unreadable::Missing(_)) => {}
        }
        stored
    }

    /// Records that a chunk could not be read.
    pub(super) fn failed_to_read(&mut self, chunk: Seq, error: &std::io::Error) {
        if has_lost_bytes(error) {
            let lost = Failure::Lost(error.to_string());
            self.poison.failed(chunk, lost, Instant::now());
        }
    }

    /// Records that work on a chunk panicked.
    pub(super) fn panicked(&mut self, chunk: Seq) {
        self.poison.failed(chunk, Failure::Panic, Instant::now());
    }

    /// Returns whether the next [`Worker::read`] gives a chunk up.
    pub(super) fn condemns(&self, chunk: Seq) -> bool {
        self.poison.condemns(chunk).is_some()
    }

    /// Does work that is on no chunk. Returns an error if it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, oneshot::error::RecvError> {
        self.background.run(job).await
    }

    /// Records that no chunk is being worked on: what comes next may take long, and is no chunk's fault.
    pub(super) fn rest(&mut self) {
        if std::mem::take(&mut self.working) {
            let spool = Arc::clone(&self.spool);
            drop(self.background.run(move || spool.end_work()));
        }
    }

    /// Records that this work on a chunk is done.
    pub(super) fn acquit(&mut self, chunk: Seq, work: Work) {
        if work == Work::Deliver {
            self.poison.succeeded(chunk);
        }
        let acquitted = |it: &mut Suspect| it.chunk == chunk && it.work == work;
        if self.suspects.extract_if(.., acquitted).next().is_some() {
            let spool = Arc::clone(&self.spool);
            drop(self.background.run(move || spool.acquit(chunk, work)));
        }
    }

    /// Waits until everything recorded so far is written.
    pub(super) async fn finish(&self) {
        // An error only if the runtime shuts down.
        let _ = self.background.run(|| ()).await;
    }
}
