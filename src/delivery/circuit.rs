//! Whether a target takes anything. Its sender finds out, with a [`Breaker`]; in direct mode its flushes ask, and
//! do not wait for a target that takes nothing.

use std::sync::{Arc, Mutex};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::{Duration, Instant, sleep_until};

use crate::delivery::ack::AckTracker;
use crate::delivery::retry::{Admission, Breaker};
use crate::ids::Verdict;
use crate::metrics::{self, Metrics};
use crate::sink::Class;

/// In direct mode: how long the flush that probes waits for the answer. What comes later is not lost.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A target's breaker, shared by its sender and its flushes.
pub(super) struct Circuit {
    state: Mutex<State>,
    open: watch::Sender<bool>,
    /// Told when a permit is gone, and with it a probe's probe_slot.
    changed: Arc<Notify>,
}

struct State {
    breaker: Breaker,
    figure: metrics::Circuit,
}

/// Admission to send one request, whose end is to be reported. One that is dropped before, by a panic or since there
/// was nothing to send after all, tells nothing of the target.
pub(super) struct CircuitPermit {
    circuit: Arc<Circuit>,
    admission: Admission,
    reported: bool,
    /// Its probe_slot among the probes of all targets.
    probe_slot: Option<OwnedSemaphorePermit>,
}

impl Circuit {
    /// One that is closed. `changed` is told when a permit is gone.
    pub(super) fn new(metrics: &Arc<Metrics>, changed: &Arc<Notify>) -> Arc<Circuit> {
        Arc::new(Circuit {
            state: Mutex::new(State {
                breaker: Breaker::default(),
                figure: metrics::Circuit::new(metrics),
            }),
            open: watch::Sender::new(false),
            changed: Arc::clone(changed),
        })
    }

    /// Whether the target takes nothing.
    pub(super) fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Whether [`Circuit::admit`] would refuse.
    pub(super) fn is_blocking(&self) -> bool {
        self.change(|breaker| breaker.is_blocking(Instant::now().into_std()))
    }

    /// Admission to send a request. While the circuit is open only one at a time gets it, now and then; for the
    /// others the error says when to ask again, where that is known.
    pub(super) fn admit(self: &Arc<Self>) -> Result<CircuitPermit, Option<Instant>> {
        let admission = self.change(|breaker| breaker.admit(Instant::now().into_std()));
        match admission {
            Admission::Go | Admission::Probe => Ok(CircuitPermit {
                circuit: Arc::clone(self),
                admission,
                reported: false,
                probe_slot: None,
            }),
            Admission::Wait(until) => Err(until.map(Instant::from_std)),
        }
    }

    /// When the next probe may be sent. `None`: it is closed, or a probe is on its way.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let next = self.change(|breaker| breaker.next_probe());
        next.map(Instant::from_std)
    }

    /// There is reason to believe that the target is back.
    pub(super) fn hurry(&self) {
        self.change(|breaker| breaker.hurry(Instant::now().into_std()));
    }

    /// Opens it, since nothing was taken for too long. Says whether it was closed.
    pub(super) fn trip(&self, class: Class) -> bool {
        let now = Instant::now().into_std();
        self.change(|breaker| breaker.trip(class, now, &mut StdRng::from_os_rng()))
    }

    /// To be told when it opens and closes.
    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Waits until it is open.
    pub(super) async fn opened(&self) {
        self.wait_until_open_is(true).await;
    }

    async fn wait_until_open_is(&self, open: bool) {
        // Fails where the sender is gone, which is ours.
        let _ = self.open.subscribe().wait_for(|is| *is == open).await;
    }

    fn change<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut state = self.state.lock().expect("nothing panics with this lock");
        let result = act(&mut state.breaker);
        let open = state.breaker.is_open();
        state.figure.set(open);
        // Within the lock: what is told last is so.
        self.open
            .send_if_modified(|was| std::mem::replace(was, open) != open);
        result
    }
}

impl CircuitPermit {
    /// Takes this probe_slot among the probes of all targets, until it is reported.
    pub(super) fn hold_probe_slot(&mut self, probe_slot: OwnedSemaphorePermit) {
        self.probe_slot = Some(probe_slot);
    }

    /// Gives up that probe_slot, to whoever calls.
    pub(super) fn take_probe_slot(&mut self) -> Option<OwnedSemaphorePermit> {
        self.probe_slot.take()
    }

    /// Whether it is for the one request that finds out whether the target is back.
    pub(super) fn is_probe(&self) -> bool {
        self.admission == Admission::Probe
    }

    /// The target lives. Says whether this closed the circuit.
    pub(super) fn succeeded(self) -> bool {
        self.report(|breaker, admission| breaker.succeeded(admission))
    }

    /// The target took nothing, for this reason. Says whether this opened the circuit.
    pub(super) fn failed(self, class: Class) -> bool {
        let now = Instant::now().into_std();
        self.report(|breaker, admission| {
            breaker.failed(admission, class, now, &mut StdRng::from_os_rng())
        })
    }

    fn report(mut self, act: impl FnOnce(&mut Breaker, Admission) -> bool) -> bool {
        self.reported = true;
        self.circuit.change(|breaker| act(breaker, self.admission))
    }
}

impl Drop for CircuitPermit {
    fn drop(&mut self) {
        if !self.reported {
            self.circuit
                .change(|breaker| breaker.abandoned(self.admission));
        }
        if self.is_probe() {
            drop(self.probe_slot.take());
            self.circuit.changed.notify_one();
        }
    }
}

/// What of a flush goes to one target.
pub(super) struct TargetProgress {
    circuit: Arc<Circuit>,
    pub(super) tracker: Arc<AckTracker>,
    /// Of the flush that probes: until when it waits for that.
    probes_until: Option<Instant>,
}

impl TargetProgress {
    /// A part of `tracker`, with leave to send it, or without where the circuit is closed.
    pub(super) fn new(circuit: Arc<Circuit>, tracker: &AckTracker, probe: bool) -> TargetProgress {
        TargetProgress {
            circuit,
            tracker: Arc::new(tracker.target()),
            probes_until: probe.then(|| Instant::now() + PROBE_TIMEOUT),
        }
    }

    /// Whether it is to find out if the target is back.
    pub(super) fn probes(&self) -> bool {
        self.probes_until.is_some()
    }

    /// Waits until all of it is settled, but not for a target that takes nothing.
    pub(super) async fn completed(&self) -> Verdict {
        tokio::select! {
            biased;
            verdict = self.tracker.completed() => verdict,
            () = self.unavailable() => Verdict::Retry,
        }
    }

    async fn unavailable(&self) {
        if let Some(until) = self.probes_until {
            tokio::select! {
                biased;
                () = self.circuit.wait_until_open_is(false) => {}
                () = sleep_until(until) => return,
            }
        }
        self.circuit.opened().await;
    }
}
