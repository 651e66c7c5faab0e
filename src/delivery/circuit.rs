//! The circuit breaker of a target. Its sender operates it, with a [`Breaker`]; in direct mode flushes consult it, and
//! do not wait for an unavailable target.

use std::sync::{Arc, Mutex};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::{Duration, Instant, sleep_until};

use crate::codec::time::now;
use crate::delivery::ack::AckTracker;
use crate::delivery::policy::{Admission, Breaker};
use crate::ids::{Time, Verdict};
use crate::metrics::{self, Metrics};
use crate::sink::{Class, Fault};

/// The time a probing flush waits for the answer, in direct mode. A later answer still counts.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A target's breaker, shared by its sender and its flushes.
pub(super) struct Circuit {
    state: Mutex<State>,
    open: watch::Sender<bool>,
    /// Notified when a permit is dropped, and with it a probe slot.
    changed: Arc<Notify>,
}

struct State {
    breaker: Breaker,
    figure: metrics::Circuit,
    /// The time since which it is open.
    since: Option<Time>,
    /// The last failure, until a success.
    fault: Option<Arc<Fault>>,
}

/// Why a target is unavailable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The time since which it is unavailable.
    pub(super) since: Time,
    /// The last failure. `None` if nothing was answered.
    pub(super) fault: Option<Arc<Fault>>,
}

/// The admission of one request, whose outcome is to be reported. A permit dropped without a report (after a panic, or
/// because there was nothing to send) says nothing about the target.
pub(super) struct CircuitPermit {
    circuit: Arc<Circuit>,
    admission: Admission,
    reported: bool,
    /// Its slot among the probes of all targets.
    probe_slot: Option<OwnedSemaphorePermit>,
}

impl Circuit {
    /// Creates a closed circuit. `changed` is notified when a permit is dropped.
    pub(super) fn new(metrics: &Arc<Metrics>, changed: &Arc<Notify>) -> Arc<Circuit> {
        Arc::new(Circuit {
            state: Mutex::new(State {
                breaker: Breaker::default(),
                figure: metrics::Circuit::new(metrics),
                since: None,
                fault: None,
            }),
            open: watch::Sender::new(false),
            changed: Arc::clone(changed),
        })
    }

    /// Returns whether the target is unavailable.
    pub(super) fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Returns why the target is unavailable, if it is.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let state = self.state.lock().expect("nothing panics with this lock");
        let fault = state.fault.clone();
        state.since.map(|since| Trouble { since, fault })
    }

    /// Returns the last failure that no success followed.
    pub(super) fn fault(&self) -> Option<Arc<Fault>> {
        let state = self.state.lock().expect("nothing panics with this lock");
        state.fault.clone()
    }

    /// Records a failure.
    pub(super) fn note_fault(&self, fault: &Arc<Fault>) {
        let mut state = self.state.lock().expect("nothing panics with this lock");
        state.fault = Some(Arc::clone(fault));
    }

    /// Returns whether [`Circuit::admit`] would refuse.
    pub(super) fn is_blocking(&self) -> bool {
        self.change(|breaker| breaker.is_blocking(Instant::now().into_std()))
    }

    /// Admits a request. While the circuit is open only one request at a time is admitted, at intervals; otherwise the
    /// error says when to ask again, if that is known.
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

    /// Returns when the next probe may be sent. `None` if the circuit is closed or a probe is in flight.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let next = self.change(|breaker| breaker.next_probe());
        next.map(Instant::from_std)
    }

    /// Lets the next probe go at once: there is reason to believe that the target has recovered.
    pub(super) fn hurry(&self) {
        self.change(|breaker| breaker.hurry(Instant::now().into_std()));
    }

    /// Opens the circuit because the target has accepted nothing for too long. Returns whether it was closed.
    pub(super) fn trip(&self, class: Class) -> bool {
        let now = Instant::now().into_std();
        self.change(|breaker| breaker.trip(class, now, &mut StdRng::from_os_rng()))
    }

    /// Returns a receiver of its state: whether it is open.
    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Waits until the circuit is open.
    pub(super) async fn opened(&self) {
        self.wait_until_open_is(true).await;
    }

    async fn wait_until_open_is(&self, open: bool) {
        // This cannot fail: `self` owns the sending half.
        let _ = self.open.subscribe().wait_for(|is| *is == open).await;
    }

    fn change<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut state = self.state.lock().expect("nothing panics with this lock");
        let result = act(&mut state.breaker);
        let open = state.breaker.is_open();
        state.figure.set(open);
        match open {
            true => state.since = state.since.or_else(|| Some(now())),
            false => state.since = None,
        }
        // Sent within the lock, so that the last value sent is the current one.
        self.open
            .send_if_modified(|was| std::mem::replace(was, open) != open);
        result
    }
}

impl CircuitPermit {
    /// Holds a probe slot until the outcome is reported.
    pub(super) fn hold_probe_slot(&mut self, probe_slot: OwnedSemaphorePermit) {
        self.probe_slot = Some(probe_slot);
    }

    /// Returns the probe slot to the caller.
    pub(super) fn take_probe_slot(&mut self) -> Option<OwnedSemaphorePermit> {
        self.probe_slot.take()
    }

    /// Returns whether it is for a probe, the request that finds out whether the target has recovered.
    pub(super) fn is_probe(&self) -> bool {
        self.admission == Admission::Probe
    }

    /// Reports that the target answers. Returns whether this closed the circuit.
    pub(super) fn succeeded(self) -> bool {
        {
            let mut state = self.circuit.state.lock();
            let state = state.as_mut().expect("nothing panics with this lock");
            state.fault = None;
        }
        self.report(|breaker, admission| breaker.succeeded(admission))
    }

    /// Reports that the target accepted nothing, for this reason. Returns whether this opened the circuit.
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

/// The part of a flush that goes to one target.
pub(super) struct TargetProgress {
    circuit: Arc<Circuit>,
    pub(super) tracker: Arc<AckTracker>,
    /// If this flush probes: the time until which it waits for the probe.
    probes_until: Option<Instant>,
}

impl TargetProgress {
    /// Creates the part of `tracker` for one target; `probe` says whether it probes an open circuit.
    pub(super) fn new(circuit: Arc<Circuit>, tracker: &AckTracker, probe: bool) -> TargetProgress {
        TargetProgress {
            circuit,
            tracker: Arc::new(tracker.target()),
            probes_until: probe.then(|| Instant::now() + PROBE_TIMEOUT),
        }
    }

    /// Returns whether it probes whether the target has recovered.
    pub(super) fn probes(&self) -> bool {
        self.probes_until.is_some()
    }

    /// Waits until all of it is settled, unless the target becomes unavailable.
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
