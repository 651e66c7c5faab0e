//! A sender groups the pieces of one target into requests as they arrive, and sends them.
//!
//! Four things hold a request back: the *linger*, while it is not full; the [`Pace`] of a spooled stream that throttles,
//! by which its requests are small and spaced; the [`ConcurrencyLimit`], which bounds the requests in flight of the whole
//! instance and, if there are several targets, those of each; and the target's [`Circuit`], which admits one at a time
//! while the target is unavailable. A request that waits for its pace holds no slot. What failed is sent again after a
//! backoff, or at once when the target recovers; either way at the target's pace.
//!
//! If there are several targets, nothing waits here while a circuit is open: one failing target would hold the memory
//! of all. Queued pieces are deferred, and only those of a probe are accepted. With a spool, the feed reads them again
//! when the target recovers. In direct mode their flush fails, because the host needs its worker for others. The circuit
//! of one of several targets also opens if a request is refused, or gets no response for [`STALL_TIMEOUT`]; in direct
//! mode that of any target opens if nothing is accepted for that long, for whatever reason.
//!
//! Each delivery stream has a sender. The folders of a store share one, because the troubles of a store mostly affect
//! all of them; a folder that is refused, or fails while others do not, gets its own until it works. If there are several senders, an idle one ends,
//! and is started again with the next piece.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::circuit::{Circuit, CircuitPermit, PROBE_TIMEOUT, Trouble};
use super::context::Context;
use super::cut::{LINE_NUMBER_BYTES, PIECE_BYTES};
use super::intake::Intake;
use super::letters::Letters;
use super::memory::UNIT;
use super::missing::MissingTargets;
use super::quota::Quota;
use crate::delivery::ack::{AckGuard, Refusal, contents};
use crate::delivery::batch::{Packer, Piece, Record};
use crate::delivery::concurrency::{ConcurrencyLimit, ConcurrencyPermit};
use crate::delivery::dead_letter::{self, NotKept};
use crate::delivery::policy::pace::{SMALL_REQUEST, is_throttling};
use crate::delivery::policy::{Adaptive, Pace, backoff};
use crate::delivery::redelivery::Acknowledged;
use crate::log::Level;
use crate::metrics::{self, Record as RecordResult, Sealed, Stage};
use crate::sink::outcome::OWN_TROUBLE;
use crate::sink::{Batch, Class, Fault, Outcome};
use crate::spool::{Content, Durability, Note};

/// The time without a response after which a request releases its slot to other targets.
const HANG_TIMEOUT: Duration = Duration::from_secs(5);
/// The time without success after which nothing waits for a target. Half of a request's timeout: most requests that are
/// answered at all are answered within the first seconds.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of requests in a row that have to be throttled as a whole before that counts: a last record may be
/// unlucky a few times.
const MAX_THROTTLED: u32 = 5;
/// The maximum number of probes in flight, for all targets …
const MAX_PROBES: usize = 4;
/// … and the interval between them: thousands of unavailable targets must not cause a flood of requests.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// The maximum number of a store's targets with a sender of their own since they were refused or failed by themselves.
/// Failures beyond that count as trouble of the whole store.
const MAX_ISOLATED: usize = 1_000;
/// After this many failures in a row of a target that shares a sender it gets its own, if others progress meanwhile.
const TARGET_FAILURES: u32 = 5;
/// The reason that is logged then.
const FAILS_ALONE: &str = "its requests fail while others do not";
/// How long a target counts as healthy after it succeeded.
const RECENT_SUCCESS: Duration = Duration::from_secs(300);
/// The time after which an idle sender ends …
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// … and one whose target is unavailable.
const IDLE_OPEN_TIMEOUT: Duration = Duration::from_secs(600);

/// The classes of faults that pass by themselves or are fixed, after which recovery is logged.
const RECOVERABLE: [Class; 4] = [
    Class::Throttle,
    Class::Transient,
    Class::Credentials,
    Class::Configuration,
];

/// The name that a request uses, and a piece for it.
pub(super) type Queued = (Arc<str>, Piece<AckGuard>);

/// The handle of a running sender.
pub(super) struct SenderHandle {
    queue: mpsc::UnboundedSender<Message>,
    circuit: Arc<Circuit>,
    quota: Arc<Quota>,
}

/// What a sender is told.
enum Message {
    Deliver(Delivery),
    /// Others wait for what it holds and is not in flight.
    GiveBack,
}

/// Pieces handed to a sender.
pub(super) struct Delivery {
    pub(super) pieces: Vec<Queued>,
    /// The admission of one request while the circuit is open.
    pub(super) probe: Option<CircuitPermit>,
}

/// The failures in a row of a target that shares a sender.
struct TargetFailures {
    since: Instant,
    times: u32,
    /// The last of them.
    fault: Arc<Fault>,
}

/// The slots that a request occupies.
struct Slots {
    /// Its slot among the requests in flight.
    in_flight: ConcurrencyPermit,
    /// Its slot among the probes of all targets.
    probe: Option<OwnedSemaphorePermit>,
}

/// A request that is done, by its number. Without an answer, sending panicked and dropped its guards, whose trackers
/// fail.
struct RequestDone {
    request: u64,
    permit: CircuitPermit,
    answer: Option<Answer>,
}

/// What a request tells about the destination's health.
#[derive(Clone, Copy, Default)]
enum Health {
    /// It responds.
    #[default]
    Answers,
    /// It accepted nothing, for this reason.
    Down(Class),
    /// Nothing was sent.
    Unknown,
}

/// The outcome of a request.
#[derive(Default)]
struct Answer {
    /// The records to send again, after `wait`.
    retry: Vec<Record<AckGuard>>,
    wait: Duration,
    /// The health of the destination.
    health: Health,
    /// Whether anything was settled, or is sent again in another form.
    progressed: bool,
    /// Whether most of it was throttled (`Some(true)`), or all of it was accepted (`Some(false)`).
    throttled: Option<bool>,
    /// The bytes that were accepted.
    accepted: usize,
    /// Whether so many records were throttled that the target is to be sent less.
    at_quota: bool,
    /// The size of the request, if the service refused it as too large.
    too_many_bytes: Option<usize>,
    /// The target, if several share the sender.
    target: Option<Arc<str>>,
    /// Why all of it failed.
    failed: Option<Arc<Fault>>,
    /// The target that was refused, if several share the sender, and the reason.
    refused: Option<(Arc<str>, Arc<Fault>)>,
}

/// The senders of all targets, and their shared state.
pub(super) struct Senders {
    context: Arc<Context>,
    letters: Arc<Letters>,
    limit: Arc<ConcurrencyLimit>,
    senders: Mutex<HashMap<String, SenderHandle>>,
    /// The only target, if there is just one.
    only: Option<String>,
    /// The intake of the spool. Without one, each flush waits for its delivery.
    intake: OnceLock<Arc<Intake>>,
    next_batch: AtomicU64,
    /// The number of flushes that have given up waiting.
    given_up: AtomicU64,
    /// The objects acknowledged in this run.
    acknowledged: Acknowledged,
    /// The slots for probes.
    probes: Arc<Semaphore>,
    /// The time from which the next probe may be sent.
    next_probe: Mutex<Instant>,
    /// Notified when a target changes: its quota, or whether it is available.
    changed: Arc<Notify>,
    /// The quota that all targets' quotas are created from.
    quota: Quota,
    /// The targets whose circuit opened since the last [`Senders::take_opened`].
    opened: Mutex<Vec<Arc<str>>>,
    /// The targets that do not exist.
    missing: MissingTargets,
}

impl Senders {
    /// Creates the set of senders, which is empty.
    pub(super) fn new(context: Arc<Context>, letters: Arc<Letters>) -> Arc<Senders> {
        let traits = &context.traits;
        let only = traits.only_target();
        Arc::new(Senders {
            limit: Arc::new(match traits.throttles_targets && only.is_none() {
                true => ConcurrencyLimit::of_targets(context.config.concurrency),
                false if traits.object_layout.is_some() && context.config.spool.is_some() => {
                    ConcurrencyLimit::of_objects(context.config.concurrency)
                }
                false => ConcurrencyLimit::new(context.config.concurrency),
            }),
            senders: Mutex::default(),
            only,
            intake: OnceLock::new(),
            next_batch: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            acknowledged: Acknowledged::default(),
            probes: Arc::new(Semaphore::new(MAX_PROBES)),
            next_probe: Mutex::new(Instant::now()),
            changed: Arc::default(),
            quota: Quota::default(),
            opened: Mutex::default(),
            missing: MissingTargets::new(
                traits.missing_target.clone(),
                traits.missing_target_codes,
            ),
            context,
            letters,
        })
    }

    /// Switches to spooled mode: flushes leave their chunks in the spool. Requests are numbered from `next_batch`.
    pub(super) fn attach_intake(&self, intake: Intake, next_batch: u64) -> Arc<Intake> {
        self.next_batch.store(next_batch, Ordering::Relaxed);
        Arc::clone(self.intake.get_or_init(|| Arc::new(intake)))
    }

    /// Returns the intake of the spool, if there is one.
    pub(super) fn intake(&self) -> Option<&Arc<Intake>> {
        self.intake.get()
    }

    /// Returns the number of the next request or object.
    pub(super) fn next_batch(&self) -> u64 {
        self.next_batch.fetch_add(1, Ordering::Relaxed)
    }

    /// Records that a flush has given up: what is queued for it alone need not be sent.
    pub(super) fn record_give_up(&self) {
        self.given_up.fetch_add(1, Ordering::Release);
    }

    /// Returns the current limit of requests in flight.
    pub(super) fn in_flight_limit(&self) -> usize {
        self.limit.limit()
    }

    /// Returns the circuit of the only target, if there is just one.
    pub(super) fn only_circuit(&self) -> Option<Arc<Circuit>> {
        self.circuit(self.only.as_ref()?)
    }

    /// Returns whether there is just one target.
    pub(super) fn has_one_target(&self) -> bool {
        self.only.is_some()
    }

    /// Waits until a target changes: its quota, or whether it is available.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns the bytes that a target may get now, while others are about to get `planned` bytes. If this is not 0, at
    /// least one line may be sent.
    pub(super) fn room(&self, target: &str, planned: usize) -> usize {
        self.with_quota(target, |quota, limit| quota.room(limit, planned))
    }

    /// Returns whether deferred events of a target may be read again.
    pub(super) fn may_load(&self, target: &str) -> bool {
        self.with_quota(target, Quota::may_load)
    }

    /// Whether a slow target holds more than its share.
    pub(super) fn is_over(&self, target: &str) -> bool {
        self.with_quota(target, Quota::is_over)
    }

    /// Asks the quota of a target, or one of a target that holds nothing if it has no sender.
    fn with_quota<T>(&self, target: &str, ask: impl FnOnce(&Quota, usize) -> T) -> T {
        let senders = self.senders.lock().expect("nothing panics with this lock");
        let quota = senders.get(target).map_or(&self.quota, |it| &it.quota);
        ask(quota, self.context.config.memory_limit)
    }

    /// Asks slow targets to give back what they hold.
    pub(super) fn reclaim(&self) {
        let senders = self.senders.lock().expect("nothing panics with this lock");
        for sender in senders.values().filter(|it| it.quota.is_slow_holder()) {
            // Fails if the sender has ended, and holds nothing.
            let _ = sender.queue.send(Message::GiveBack);
        }
    }

    /// Returns the targets whose circuit opened since the last call. Some may be closed again.
    pub(super) fn take_opened(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.opened.lock().expect("nothing panics with this lock"))
    }

    /// Returns the name of a target's sender.
    pub(super) fn sender_of(&self, target: &str) -> String {
        let shared = self.context.traits.object_layout.is_some();
        let senders = self.senders.lock().expect("nothing panics with this lock");
        match shared && !senders.contains_key(target) {
            true => String::new(),
            false => target.to_owned(),
        }
    }

    /// Gives a target that is refused or fails by itself, and shares its sender with others, a sender of its own with an
    /// open circuit. Returns false if there are too many of them.
    fn isolate(self: &Arc<Self>, target: &Arc<str>, why: &str, fault: &Arc<Fault>) -> bool {
        {
            let mut senders = self.senders.lock().expect("nothing panics with this lock");
            if senders.contains_key(&**target) {
                return true;
            }
            if senders.len() > MAX_ISOLATED {
                return false;
            }
            let circuit = Circuit::new(&self.context.metrics, &self.changed);
            circuit.note_fault(fault);
            circuit.trip(fault.class);
            senders.insert(target.to_string(), self.start(target.to_string(), circuit));
        }
        self.log_open(target, &format!("{why}: {fault}"));
        true
    }

    /// Returns what a target accepts. The circuit of a shared sender is left to the sender.
    pub(super) fn admits(&self, target: &str) -> Admits {
        let Some(circuit) = self.circuit(target) else {
            return Admits::All;
        };
        if !circuit.is_open() {
            return Admits::All;
        }
        let next = *self
            .next_probe
            .lock()
            .expect("nothing panics with this lock");
        match circuit.next_probe() {
            Some(own) if self.probes.available_permits() > 0 => Admits::Probe(own.max(next)),
            _ => Admits::Nothing,
        }
    }

    /// Tries to admit sending to a target, with a permit for one request if its circuit is open. `None`: not now.
    pub(super) fn try_admit(&self, target: &str) -> Option<Option<CircuitPermit>> {
        let now = Instant::now();
        match self.admits(target) {
            Admits::All => return Some(None),
            Admits::Probe(at) if at <= now => {}
            Admits::Probe(_) | Admits::Nothing => return None,
        }
        let place = Arc::clone(&self.probes).try_acquire_owned().ok()?;
        let mut permit = self.circuit(target)?.admit().ok()?;
        permit.hold_probe_slot(place);
        *self
            .next_probe
            .lock()
            .expect("nothing panics with this lock") = now + PROBE_INTERVAL;
        Some(Some(permit))
    }

    /// Lets all probes go at once: one target has recovered, so others may have, too.
    pub(super) fn hurry_probes(&self) {
        let senders = self.senders.lock().expect("nothing panics with this lock");
        senders.values().for_each(|sender| sender.circuit.hurry());
    }

    /// Ends an idle sender, unless something is about to arrive. Returns whether it ended.
    fn retire(&self, name: &str, arriving: &mpsc::UnboundedReceiver<Message>) -> bool {
        let mut senders = self.senders.lock().expect("nothing panics with this lock");
        let retires = arriving.is_empty();
        if retires {
            senders.remove(name);
        }
        retires
    }

    /// Ends all senders as soon as they are idle.
    pub(super) fn close(&self) {
        let mut senders = self.senders.lock().expect("nothing panics with this lock");
        senders.clear();
    }

    /// Returns the time a request that is not full waits for more records.
    fn linger(&self) -> Duration {
        match self.is_direct() {
            true => Duration::ZERO,
            false => self.context.traits.linger,
        }
    }

    /// Returns whether flushes wait for their delivery.
    fn is_direct(&self) -> bool {
        self.intake.get().is_none()
    }

    /// Returns the intake that journals requests, if the destination cannot tell what it already has.
    fn journal(&self) -> Option<&Arc<Intake>> {
        self.intake()
            .filter(|_| self.context.traits.object_layout.is_none())
    }

    /// Queues pieces with the target's sender, which is started if needed; `probe` admits one request if its circuit is
    /// open.
    pub(super) fn enqueue(
        self: &Arc<Self>,
        target: &str,
        pieces: Vec<Queued>,
        probe: Option<CircuitPermit>,
    ) {
        let sender = self.sender_of(target);
        self.hand_over(sender, Delivery { pieces, probe });
    }

    /// Hands a delivery to a sender, which is started if needed.
    pub(super) fn hand_over(self: &Arc<Self>, sender: String, mut delivery: Delivery) {
        let mut senders = self.senders.lock().expect("nothing panics with this lock");
        let name = sender.clone();
        let sender = senders.entry(sender).or_insert_with(|| {
            let circuit = Circuit::new(&self.context.metrics, &self.changed);
            self.start(name.clone(), circuit)
        });
        // The reservation of a part is rounded up.
        let mut rounding = UNIT;
        for (_, piece) in &mut delivery.pieces {
            let beside = PIECE_BYTES + LINE_NUMBER_BYTES * piece.lines as usize;
            let bytes = piece.bytes.len() + beside + std::mem::take(&mut rounding);
            piece.guard.charge(&sender.quota, bytes);
        }
        // A sender ends only by a panic, or with the runtime; the trackers of its pieces have then failed.
        if let Err(unsent) = sender.queue.send(Message::Deliver(delivery)) {
            *sender = self.start(name, Arc::clone(&sender.circuit));
            let _ = sender.queue.send(unsent.0);
        }
    }

    /// Returns the circuit of a sender, which is started if needed.
    pub(super) fn ensure_sender(self: &Arc<Self>, sender: &str) -> Arc<Circuit> {
        let mut senders = self.senders.lock().expect("nothing panics with this lock");
        if let Some(sender) = senders.get(sender) {
            return Arc::clone(&sender.circuit);
        }
        let circuit = Circuit::new(&self.context.metrics, &self.changed);
        let started = self.start(sender.to_owned(), Arc::clone(&circuit));
        senders.insert(sender.to_owned(), started);
        circuit
    }

    /// Returns the circuit of a sender, if it exists.
    pub(super) fn circuit(&self, sender: &str) -> Option<Arc<Circuit>> {
        let senders = self.senders.lock().expect("nothing panics with this lock");
        senders
            .get(sender)
            .map(|sender| Arc::clone(&sender.circuit))
    }

    fn start(self: &Arc<Self>, name: String, circuit: Arc<Circuit>) -> SenderHandle {
        let (queue, arriving) = mpsc::unbounded_channel();
        let quota = Arc::new(self.quota.sibling());
        let sender = Sender::new(
            Arc::clone(self),
            name,
            Arc::clone(&circuit),
            Arc::clone(&quota),
        );
        tokio::spawn(sender.run(arriving));
        SenderHandle {
            queue,
            circuit,
            quota,
        }
    }

    /// Logs that a circuit opened, and why.
    pub(super) fn log_open(&self, sender: &str, why: &str) {
        if !self.is_direct() {
            let mut opened = self.opened.lock().expect("nothing panics with this lock");
            opened.push(sender.into());
        }
        self.changed.notify_one();
        let meanwhile = match self.is_direct() {
            true => "chunks for it are returned to the host at once",
            false => "its records wait in the spool",
        };
        self.context.log.trouble_with(
            Level::Warn,
            "breaker",
            sender,
            &format!(
                "{} is unavailable ({why}): {meanwhile}; probing with one request at a time",
                self.describe(sender)
            ),
        );
    }

    /// Returns the targets that do not exist.
    pub(super) fn missing(&self) -> &MissingTargets {
        &self.missing
    }

    /// Returns why a target is unavailable, if it is.
    pub(super) fn trouble(&self, target: &str) -> Option<Trouble> {
        self.circuit(target)?.trouble()
    }

    /// Returns all targets that are unavailable, and why, and a failure that no success followed.
    pub(super) fn troubles(&self) -> (Vec<(String, Trouble)>, Option<Arc<Fault>>) {
        let senders = self.senders.lock().expect("nothing panics with this lock");
        let mut troubles = Vec::new();
        let mut fault = None;
        for (name, sender) in senders.iter() {
            fault = fault.or_else(|| sender.circuit.fault());
            if let Some(trouble) = sender.circuit.trouble() {
                troubles.push((name.clone(), trouble));
            }
        }
        (troubles, fault)
    }

    /// Returns a target's name for log lines.
    pub(super) fn describe(&self, target: &str) -> String {
        match target.is_empty() && self.context.traits.object_layout.is_some() {
            true => "the destination".to_owned(),
            false => format!("{} '{target}'", self.context.traits.target_word),
        }
    }
}

/// A running sender.
struct Sender {
    senders: Arc<Senders>,
    name: Arc<str>,
    circuit: Arc<Circuit>,
    quota: Arc<Quota>,
    direct: bool,
    /// The concurrency limit of this target, if there are several that throttle separately.
    adaptive: Option<Adaptive>,
    /// The pace of this target, if targets throttle separately. Not in direct mode, where a flush that waits for it would
    /// occupy a worker of the host that others need; the host retries less and less often instead.
    pace: Option<Pace>,
    /// The time since which it has been idle.
    idle: Option<Instant>,
    packer: Packer<AckGuard>,
    in_flight: JoinSet<RequestDone>,
    /// When the requests in flight were sent, by their numbers: not at once if they wait for the disk or for memory.
    started: BTreeMap<u64, Arc<OnceLock<Instant>>>,
    next_request: u64,
    /// The time of the last success.
    last_progress: Option<Instant>,
    /// Of targets that share the sender: since when each fails, and how often in a row.
    target_failures: HashMap<Arc<str>, TargetFailures>,
    /// When each of them succeeded last.
    target_successes: HashMap<Arc<str>, Instant>,
    /// The number of requests in a row that delivered nothing, and when the first of them was answered.
    failing: Option<(Instant, u32)>,
    /// The failed records, and when they are sent again.
    waiting: Vec<(Instant, Vec<Record<AckGuard>>)>,
    /// Whether queued pieces are deferred while the circuit is open.
    defers: bool,
    /// Whether several targets share it.
    shared: bool,
    /// Whether it serves one of several targets.
    own_target: bool,
    /// Set while the circuit holds requests of a sender that does not defer: until then, or until the next answer.
    held: Option<Option<Instant>>,
    /// The permit to send one request although the circuit is open …
    probe: Option<CircuitPermit>,
    /// … and whether it is in flight.
    probing: bool,
    /// Whether the circuit was open when last checked.
    was_open: bool,
    /// The maximum size of a request: a service may accept less than documented.
    max_bytes: usize,
    full: bool,
    /// The number of flushes that had given up when the queue was last swept; `None` if records queued since then have
    /// to be checked. Checking the queue for each request would cost more than everything else.
    swept: Option<u64>,
}

impl Sender {
    fn new(
        senders: Arc<Senders>,
        name: String,
        circuit: Arc<Circuit>,
        quota: Arc<Quota>,
    ) -> Sender {
        let direct = senders.is_direct();
        let several = !senders.has_one_target();
        let shared = several && name.is_empty();
        let own_target = several && !shared;
        Sender {
            direct,
            shared,
            own_target,
            defers: direct || own_target,
            adaptive: (own_target
                && senders.context.traits.throttles_targets
                && senders.context.config.concurrency.is_none())
            .then(Adaptive::default),
            pace: (senders.context.traits.throttles_targets && !direct)
                .then(|| Pace::new(Instant::now().into_std())),
            idle: None,
            senders,
            name: name.into(),
            circuit,
            quota,
            packer: Packer::default(),
            in_flight: JoinSet::new(),
            started: BTreeMap::new(),
            next_request: 0,
            last_progress: None,
            target_failures: HashMap::new(),
            target_successes: HashMap::new(),
            failing: None,
            waiting: Vec::new(),
            held: None,
            probe: None,
            probing: false,
            was_open: false,
            max_bytes: usize::MAX,
            full: false,
            swept: None,
        }
    }

    async fn run(mut self, mut arriving: mpsc::UnboundedReceiver<Message>) {
        let mut draining = self.senders.context.draining.subscribe();
        let mut circuit = self.circuit.subscribe();
        // Kept while other things happen: otherwise a busy sender would lose its place to others again and again.
        let mut entering: Option<BoxFuture<'static, ConcurrencyPermit>> = None;
        loop {
            let now = Instant::now();
            circuit.mark_unchanged();
            let answer_by = self.check_stall(now);
            self.requeue_due(now);
            let drain = *draining.borrow_and_update();
            let lingers = match self.packer.since() {
                Some(since) if !self.full && !drain => since + self.senders.linger(),
                _ => now,
            };
            let at = match self.held {
                _ if self.packer.is_empty() => None,
                _ if self.in_flight.len() >= self.max_in_flight() => None,
                _ if self.defers && self.was_open => self.probe.as_ref().map(|_| now),
                None => Some(lingers),
                Some(until) => until.map(|until| until.max(lingers)),
            };
            // Probes are spaced by the circuit.
            let at = match (at, &mut self.pace) {
                (Some(due), Some(pace)) if due <= now && !self.circuit.is_open() => {
                    Some(Instant::from_std(pace.ready_at(now.into_std())))
                }
                _ => at,
            };
            let ready = at.is_some_and(|at| at <= now);
            match ready {
                true if entering.is_none() => {
                    let limit = Arc::clone(&self.senders.limit);
                    entering = Some(Box::pin(ConcurrencyLimit::enter(limit)));
                }
                true => {}
                false => entering = None,
            }
            let retires = self.retire_at(now);
            if retires.is_some_and(|at| at <= now) && self.senders.retire(&self.name, &arriving) {
                return;
            }
            let again = self.waiting.iter().map(|(at, _)| *at);
            let wake = again.chain(answer_by).chain(at.filter(|_| !ready));
            let wake = wake.chain(retires).min();
            tokio::select! {
                biased;
                Some(done) = self.in_flight.join_next(), if !self.in_flight.is_empty() => {
                    self.held = None;
                    // An error only if the runtime is shutting down.
                    if let Ok(done) = done {
                        self.handle_done(done);
                    }
                }
                message = arriving.recv() => match message {
                    Some(Message::Deliver(delivery)) => self.receive(delivery, now).await,
                    // While the circuit is open only a probe is queued.
                    Some(Message::GiveBack) if self.circuit.is_open() => {}
                    Some(Message::GiveBack) if self.shared => self.isolate_failing(now),
                    Some(Message::GiveBack) => self.give_back(now, Duration::ZERO),
                    None => return,
                },
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
                Ok(()) = draining.changed() => {}
                Ok(()) = circuit.changed() => {}
                pass = entered(&mut entering), if ready => {
                    entering = None;
                    self.send_next(pass).await;
                }
            }
        }
    }

    /// Returns the maximum number of this target's requests in flight: if there are other targets, not all of the
    /// instance's.
    fn max_in_flight(&self) -> usize {
        match &self.adaptive {
            _ if !self.own_target => usize::MAX,
            Some(adaptive) => adaptive.limit(),
            None => (self.senders.limit.limit() / 2).max(1),
        }
    }

    /// Returns when the sender ends if nothing arrives. `None` if it is busy, or is the only one.
    fn retire_at(&mut self, now: Instant) -> Option<Instant> {
        let busy = !self.packer.is_empty()
            || !self.in_flight.is_empty()
            || !self.waiting.is_empty()
            || !self.own_target;
        if busy {
            self.idle = None;
            return None;
        }
        let after = match self.was_open {
            true => IDLE_OPEN_TIMEOUT,
            false => IDLE_TIMEOUT,
        };
        Some(*self.idle.get_or_insert(now) + after)
    }

    /// Defers everything queued. None of it is sent before `not_before`.
    fn defer_all(&mut self, not_before: Option<Instant>) {
        let queued = std::mem::take(&mut self.packer).into_records();
        let waiting = self.waiting.drain(..).flat_map(|(_, records)| records);
        for record in queued.chain(waiting) {
            defer(record, &self.name, not_before);
        }
        (self.probe, self.held, self.full) = (None, None, false);
        self.senders.changed.notify_one();
    }

    /// Opens the circuit after [`STALL_TIMEOUT`] without an answer, and defers queued pieces while it is open. Returns
    /// when to look again.
    fn check_stall(&mut self, now: Instant) -> Option<Instant> {
        let sent = self.started.values().filter_map(|began| began.get());
        let answer_by = sent.min().map(|began| {
            let since = self.last_progress.map_or(*began, |taken| taken.max(*began));
            since + STALL_TIMEOUT
        });
        let answer_by = answer_by.filter(|_| self.defers);
        // One that is not sent yet cannot be late before that.
        let mut unsent = self.started.values().filter(|began| began.get().is_none());
        let unsent_by = unsent.next().map(|_| now + STALL_TIMEOUT);
        let unsent_by = unsent_by.filter(|_| self.defers);
        if answer_by.is_some_and(|by| by <= now) && self.circuit.trip(Class::Transient) {
            let why = format!(
                "accepted nothing and gave no answer for {} s",
                STALL_TIMEOUT.as_secs()
            );
            self.senders.log_open(&self.name, &why);
        }
        let open = self.circuit.is_open();
        let was_open = std::mem::replace(&mut self.was_open, open);
        let probes = was_open && (self.probe.is_some() || self.probing);
        if self.defers && open && !probes && !(self.packer.is_empty() && self.waiting.is_empty()) {
            self.defer_all(None);
        }
        let look_again = answer_by.into_iter().chain(unsent_by).min();
        look_again.filter(|_| !open)
    }

    /// Queues failed records whose wait is over.
    fn requeue_due(&mut self, now: Instant) {
        while let Some(at) = self.waiting.iter().position(|(at, _)| *at <= now) {
            let (_, records) = self.waiting.remove(at);
            self.swept = None;
            // Several targets share the sender: records that one refuses must not block the others.
            match self.shared {
                true => self.packer.put_behind(records),
                false => self.packer.put_back(records),
            }
            self.held = None;
        }
    }

    /// Handles a request that is done.
    fn handle_done(&mut self, done: RequestDone) {
        self.apply_answer(done);
        // Waiters look at the resulting state.
        self.senders.changed.notify_one();
    }

    fn apply_answer(&mut self, done: RequestDone) {
        let RequestDone {
            request,
            permit,
            answer,
        } = done;
        self.started.remove(&request);
        self.probing &= !permit.is_probe();
        let Some(mut answer) = answer else { return };
        let now = Instant::now();
        if self.shared
            && let Some((target, why, fault)) = self.note_answer(&mut answer, now)
            && self.senders.isolate(&target, why, &fault)
        {
            // The store itself works.
            (answer.health, answer.progressed) = (Health::Answers, true);
            for record in answer.retry.drain(..) {
                defer(record, &target, None);
            }
            self.move_out(&target);
        }
        if let (Some(adaptive), Some(throttled)) = (&mut self.adaptive, answer.throttled) {
            match throttled {
                true => adaptive.throttled(now.into_std()),
                false => adaptive.success(),
            }
        }
        if let Some(fault) = &answer.failed {
            self.circuit.note_fault(fault);
            if self.own_target {
                self.senders.missing.failed(&self.name, fault, now);
            }
        } else if answer.progressed
            && self.own_target
            && self.senders.missing.found(&self.name, now)
        {
            let exists = format!(
                "{} exists: its records are sent to it",
                self.senders.describe(&self.name)
            );
            let log = &self.senders.context.log;
            log.trouble_with(Level::Info, "found_target", &self.name, &exists);
        }
        match answer.health {
            Health::Unknown => drop(permit),
            Health::Down(class) => {
                let mut why = "five requests in a row failed";
                let mut opened = permit.failed(class);
                // If names come from tags or records, five requests for each missing target would be too many.
                if self.own_target && class == Class::Configuration && self.circuit.trip(class) {
                    (opened, why) = (true, "it refused a request");
                }
                if opened {
                    self.senders.log_open(&self.name, why);
                }
            }
            Health::Answers => {
                if permit.succeeded() {
                    for (at, _) in &mut self.waiting {
                        *at = now;
                    }
                    if let Some(pace) = &mut self.pace {
                        pace.recovered(now.into_std());
                    }
                    self.senders.hurry_probes();
                }
            }
        }
        if let Some(pace) = &mut self.pace {
            pace.accepted(answer.accepted, now.into_std());
            if answer.at_quota {
                pace.throttled(now.into_std(), &mut StdRng::from_os_rng());
            }
        }
        match answer.health {
            Health::Unknown => {}
            _ if answer.progressed => {
                self.last_progress = Some(now);
                self.failing = None;
                if !self.circuit.is_open() {
                    let back = format!(
                        "{} has recovered: sending normally again",
                        self.senders.describe(&self.name)
                    );
                    let log = &self.senders.context.log;
                    log.recovered_with("breaker", &self.name, &back);
                }
            }
            _ => {
                let (since, times) = self.failing.unwrap_or((now, 0));
                let times = times.saturating_add(1);
                self.failing = Some((since, times));
                let throttled = matches!(answer.health, Health::Answers);
                let often = times >= if throttled { MAX_THROTTLED } else { 1 };
                let too_long = often && now + answer.wait >= since + STALL_TIMEOUT;
                if self.direct && too_long && self.circuit.trip(Class::Transient) {
                    let why = format!("accepted nothing for {} s or more", STALL_TIMEOUT.as_secs());
                    self.senders.log_open(&self.name, &why);
                }
            }
        }
        if let Some(too_many) = answer.too_many_bytes {
            self.max_bytes = self.max_bytes.min(too_many / 2);
        }
        let again = answer.retry;
        if self.defers && self.circuit.is_open() {
            for record in again {
                defer(record, &self.name, None);
            }
            return;
        }
        let slow = answer.throttled == Some(true) || matches!(answer.health, Health::Down(_));
        if slow || answer.progressed {
            self.quota.set_slow(slow);
        }
        if !again.is_empty() {
            self.waiting.push((now + answer.wait, again));
        }
        let limit = self.senders.context.config.memory_limit;
        if self.own_target && !self.direct && self.quota.is_over(limit) {
            self.give_back(now, answer.wait);
        }
    }

    /// Defers what is queued for a slow target: others need the memory, and the text is encoded again when there is reason
    /// to try, after `wait` or more.
    fn give_back(&mut self, now: Instant, wait: Duration) {
        let times = self.failing.map_or(1, |(_, times)| times);
        let backoff = backoff(Class::Throttle, times, &mut StdRng::from_os_rng());
        self.defer_all(Some(now + backoff.max(wait)));
    }

    /// Counts an answer for its target. Returns the target, the reason and the fault if it is to be isolated: it was refused, or
    /// fails again and again while others do not.
    fn note_answer(
        &mut self,
        answer: &mut Answer,
        now: Instant,
    ) -> Option<(Arc<str>, &'static str, Arc<Fault>)> {
        if let Some(refused) = answer.refused.take() {
            let (target, fault) = refused;
            return Some((target, "it refused a request", fault));
        }
        let target = answer.target.as_ref()?;
        let Some(fault) = answer.failed.take() else {
            self.target_failures.remove(target);
            if self.target_successes.len() >= MAX_ISOLATED {
                self.target_successes.clear();
            }
            self.target_successes.insert(Arc::clone(target), now);
            return None;
        };
        if self.target_failures.len() >= MAX_ISOLATED {
            self.target_failures.clear();
        }
        let failures = self.target_failures.entry(Arc::clone(target));
        let failures = failures.or_insert_with(|| TargetFailures {
            since: now,
            times: 0,
            fault: Arc::clone(&fault),
        });
        failures.times += 1;
        failures.fault = Arc::clone(&fault);
        let since = failures.since;
        let others_progress = self.last_progress.is_some_and(|progress| progress > since);
        let isolates = failures.times >= TARGET_FAILURES && others_progress;
        isolates.then(|| (Arc::clone(target), FAILS_ALONE, fault))
    }

    /// Isolates the targets that fail while others wait for the memory that their records hold, unless most targets fail:
    /// then it is the destination that does.
    fn isolate_failing(&mut self, now: Instant) {
        let recent = |(target, at): &(&Arc<str>, &Instant)| {
            **at + RECENT_SUCCESS > now && !self.target_failures.contains_key(*target)
        };
        let healthy = self.target_successes.iter().filter(recent).count();
        let failing = |(_, failures): &(&Arc<str>, &TargetFailures)| failures.times >= 2;
        let failing = self.target_failures.iter().filter(failing);
        let failing: Vec<_> = failing
            .map(|(target, failures)| (Arc::clone(target), Arc::clone(&failures.fault)))
            .collect();
        if healthy < failing.len() {
            return;
        }
        for (target, fault) in failing {
            if self.senders.isolate(&target, FAILS_ALONE, &fault) {
                self.move_out(&target);
            }
        }
        self.senders.changed.notify_one();
    }

    /// Defers what is queued for a target that no longer shares this sender.
    fn move_out(&mut self, target: &Arc<str>) {
        self.target_failures.remove(target);
        let is_of = |guard: &AckGuard| guard.target() == Some(target);
        let mut records = self.packer.extract(is_of);
        for (_, waiting) in &mut self.waiting {
            let of = |record: &mut Record<AckGuard>| {
                record.pieces.iter().all(|piece| is_of(&piece.guard))
            };
            records.extend(waiting.extract_if(.., of));
        }
        for record in records {
            defer(record, target, None);
        }
    }

    async fn receive(&mut self, delivery: Delivery, now: Instant) {
        let Delivery { pieces, probe } = delivery;
        // The circuit opened while the pieces were queued for this sender.
        if self.defers && probe.is_none() && self.circuit.is_open() {
            for (_, piece) in pieces {
                piece.guard.defer_unsent(&self.name, None);
            }
            self.senders.changed.notify_one();
            return;
        }
        let Some((target, _)) = pieces.first() else {
            return;
        };
        if probe.is_some() {
            self.probe = probe;
        }
        let limits = self.senders.context.sink.shape(target).await.limits;
        for (target, piece) in pieces {
            if piece.guard.is_stale() {
                self.swept = None;
            }
            self.packer.push(&target, piece, &limits, now);
        }
        self.full = self.packer.is_full(&limits);
    }

    async fn send_next(&mut self, pass: ConcurrencyPermit) {
        let given_up = Some(self.senders.given_up.load(Ordering::Acquire));
        if self.swept != given_up {
            self.packer.retain_fresh(AckGuard::is_stale);
            self.swept = given_up;
        }
        let Some(target) = self.packer.next_target() else {
            if self.probe.take().is_some() {
                self.senders.changed.notify_one();
            }
            return;
        };
        let mut limits = self.senders.context.sink.shape(&target).await.limits;
        limits.batch_bytes = limits.batch_bytes.min(self.max_bytes);
        let mut permit = match self.probe.take().map_or_else(|| self.circuit.admit(), Ok) {
            Ok(permit) => permit,
            Err(until) => {
                self.held = Some(until);
                return;
            }
        };
        self.held = None;
        self.probing |= permit.is_probe();
        if let Some(pace) = &self.pace {
            let most = match permit.is_probe() {
                // Those of a fleet must not be more than a stream takes, either.
                true => SMALL_REQUEST,
                false => pace.most_bytes(),
            };
            limits.batch_bytes = limits.batch_bytes.min(most);
        }
        let records = self.packer.take(&limits);
        if let Some(pace) = &mut self.pace {
            let bytes = records.iter().map(Record::bytes).sum();
            pace.sent(bytes, Instant::now().into_std());
        }
        self.full = self.packer.is_full(&limits);
        // A hanging request releases its slots to others, if there are any. A destination with one target would only get
        // more than its limit.
        let shares = self.defers && !self.senders.has_one_target();
        let patience = shares.then_some(match permit.is_probe() {
            true => PROBE_TIMEOUT,
            false => HANG_TIMEOUT,
        });
        let slots = Slots {
            in_flight: pass,
            probe: permit.take_probe_slot(),
        };
        let target = Arc::clone(&self.name);
        let began = Arc::<OnceLock<Instant>>::default();
        let send =
            Arc::clone(&self.senders).send(target, records, slots, patience, Arc::clone(&began));
        let request = self.next_request;
        self.next_request += 1;
        self.started.insert(request, began);
        self.in_flight.spawn(async move {
            let answer = AssertUnwindSafe(send).catch_unwind().await.ok();
            RequestDone {
                request,
                permit,
                answer,
            }
        });
    }
}

impl Senders {
    /// Sends one request, settles what is settled, and returns what has to be sent again. If there is no response after
    /// `patience`, its slots are released. `sent_at` is set when it is sent.
    async fn send(
        self: Arc<Self>,
        whose: Arc<str>,
        records: Vec<Record<AckGuard>>,
        mut slots: Slots,
        patience: Option<Duration>,
        sent_at: Arc<OnceLock<Instant>>,
    ) -> Answer {
        let target = |record: &Record<AckGuard>| record.pieces.first()?.guard.target().cloned();
        let mut answer = Answer {
            target: records.first().and_then(target),
            ..Answer::default()
        };
        let bytes = records.iter().map(Record::bytes).sum::<usize>();
        slots.in_flight.charge(bytes).await;
        let Ok(journal) = self.journal_request(&records).await else {
            // Many requests wait for one disk: retry each about once a second.
            answer.wait = backoff(Class::Transient, 4, &mut StdRng::from_os_rng());
            answer.retry = records;
            answer.health = Health::Unknown;
            return answer;
        };
        let batch = Batch {
            target: Arc::clone(&records[0].target),
            tag: Arc::clone(records[0].pieces[0].guard.tag()),
            token: records[0]
                .pieces
                .first()
                .and_then(|piece| piece.guard.token()),
            records: records.iter().map(Record::body).collect(),
        };
        let target = Arc::clone(&batch.target);
        let under_way = self.context.metrics.in_flight.enter();
        let began = Instant::now();
        // Set only here.
        let _ = sent_at.set(began);
        let mut sending = self.context.sink.send(batch);
        let in_time = match patience {
            Some(patience) => timeout(patience, &mut sending).await.ok(),
            None => None,
        };
        let outcomes = match in_time {
            Some(outcomes) => outcomes,
            None => {
                if patience.is_some() {
                    slots.in_flight.give_back_early();
                    drop(slots.probe.take());
                    self.changed.notify_one();
                }
                sending.await
            }
        };
        self.context.metrics.request_times.observe(began.elapsed());
        drop(under_way);
        self.context
            .metrics
            .requests
            .add(request_result(&outcomes), 1);
        let throttled = outcomes.iter().filter(|outcome| is_throttled(outcome));
        let throttled = throttled.count();
        self.context.metrics.throttled.add(throttled as u64);

        let sent = records.len();
        answer.at_quota = is_throttling(throttled, sent);
        let mut settled: Vec<Record<AckGuard>> = Vec::with_capacity(sent);
        let mut worst: Option<(Arc<Fault>, u32)> = None;
        for (mut record, outcome) in records.into_iter().zip(outcomes) {
            let fault = match outcome {
                Outcome::Delivered => {
                    answer.accepted += record.bytes();
                    self.count_delivered(&record);
                    settled.push(record);
                    continue;
                }
                Outcome::Rejected(fault) => {
                    // A table is no letter: its owner makes letters of its events.
                    let kept = match record.target.ends_with(crate::format::TABLE_EXTENSION) {
                        true => None,
                        false => self.keep_refused(&record, &fault).await.ok(),
                    };
                    match kept {
                        Some(()) => settled.push(record),
                        // Its owner keeps this record, and nothing else.
                        None => {
                            let target = Arc::clone(&record.target);
                            let refusal = Arc::new(Refusal { target, fault });
                            for piece in record.pieces {
                                piece.guard.refuse(&refusal);
                            }
                        }
                    }
                    continue;
                }
                Outcome::Retry(fault) => fault,
                Outcome::Ambiguous(fault) => {
                    let lines = record.lines().into();
                    self.context
                        .metrics
                        .records
                        .add(RecordResult::Ambiguous, lines);
                    record.ambiguous = true;
                    fault
                }
            };
            record.attempts += 1;
            match fault.class {
                Class::Record => record.alone = true,
                Class::TooLarge => answer.too_many_bytes = Some(bytes),
                _ => {}
            }
            let attempts = record.attempts;
            if worst.as_ref().is_none_or(|(_, most)| attempts > *most) {
                worst = Some((fault, attempts));
            }
            answer.retry.push(record);
        }
        answer.progressed = answer.retry.len() < sent;
        match worst {
            None => {
                slots.in_flight.done(Some(true));
                answer.throttled = Some(false);
                // Under the name that the fault was logged with.
                let whose = answer.target.as_ref().unwrap_or(&whose);
                for class in RECOVERABLE {
                    let back = format!("{} accepts records again", self.describe(whose));
                    self.context
                        .log
                        .recovered_with(trouble_kind(class), whose, &back);
                }
            }
            Some((fault, attempts)) => {
                // Real throttling fails most or all of a request; a record here and there means nothing.
                let throttled = fault.class == Class::Throttle && answer.retry.len() * 2 > sent;
                slots.in_flight.done(throttled.then_some(false));
                answer.throttled = throttled.then_some(true);
                let whose = match answer.retry.first() {
                    Some(record) => record.pieces[0].guard.target().unwrap_or(&whose),
                    None => &whose,
                };
                self.report(whose, &target, &fault, lines(&answer.retry));
                answer.wait = backoff(fault.class, attempts, &mut StdRng::from_os_rng());
                answer.progressed |= matches!(fault.class, Class::Record | Class::TooLarge);
                let is_own = fault.code == OWN_TROUBLE;
                if answer.retry.len() == sent && !is_own {
                    answer.failed = Some(Arc::clone(&fault));
                }
                let down = matches!(
                    fault.class,
                    Class::Transient | Class::Credentials | Class::Configuration
                );
                if answer.retry.len() == sent && is_own {
                    answer.health = Health::Unknown;
                } else if down && answer.retry.len() == sent {
                    answer.health = Health::Down(fault.class);
                    let codes = self.context.traits.destination_wide_codes;
                    let whole = codes.contains(&&*fault.code);
                    if fault.class == Class::Configuration && !whole && !self.has_one_target() {
                        let target = answer.target.clone();
                        answer.refused = target.map(|target| (target, fault));
                    }
                }
            }
        }
        if let Some(batch) = journal {
            self.journal_answer(batch, &settled, settled.len() == sent)
                .await;
        }
        for piece in settled.into_iter().flat_map(|record| record.pieces) {
            piece.guard.keep();
        }
        answer
    }

    /// Journals that these records are about to be sent, so that a later start can tell what may be duplicated. It need
    /// not be synced: after a power cut the spool knows less, and sends the records again anyway.
    async fn journal_request(&self, records: &[Record<AckGuard>]) -> Result<Option<u64>, ()> {
        let Some(intake) = self.journal() else {
            return Ok(None);
        };
        let batch = self.next_batch();
        let begun = Note::Begun {
            batch,
            name: records[0].target.to_string(),
            token: String::new(),
            lines: records.iter().map(|record| u64::from(record.lines())).sum(),
            contents: contents_of(records),
            recipe: None,
        };
        match intake.spool().note(begun, Durability::Written).await {
            Ok(()) => {
                self.context
                    .log
                    .recovered("spool", "the spool is writable again");
                Ok(Some(batch))
            }
            Err(error) => {
                intake.log_disk_error(&error);
                Err(())
            }
        }
    }

    /// Journals what a request's answer settled.
    async fn journal_answer(&self, batch: u64, settled: &[Record<AckGuard>], all: bool) {
        let Some(intake) = self.journal() else {
            return;
        };
        let ended = Note::Ended {
            batch,
            delivered: (!all).then(|| contents_of(settled)),
        };
        if let Err(error) = intake.spool().note(ended, Durability::Synced).await {
            // They are delivered, and not sent again by this run; only a crash before the next successful note would
            // send them again.
            intake.log_disk_error(&error);
        }
    }

    /// Keeps a permanently refused record as a dead letter.
    async fn keep_refused(
        self: &Arc<Self>,
        record: &Record<AckGuard>,
        fault: &Fault,
    ) -> Result<(), NotKept> {
        let letters = record
            .pieces
            .iter()
            .map(|piece| {
                let tag = piece.guard.tag();
                dead_letter::refused(tag, &record.target, fault, piece.bytes.clone())
            })
            .collect();
        self.letters.keep(letters, record.lines().into()).await
    }

    /// Counts an acknowledged record.
    fn count_delivered(&self, record: &Record<AckGuard>) {
        let bytes = record.bytes() as u64;
        let Context {
            traits, metrics, ..
        } = &*self.context;
        if let Some(unit) = traits.billing_unit {
            let billed = bytes.next_multiple_of(unit);
            metrics.bytes.add(Stage::Billed, billed);
        }
        if traits.object_layout.is_some() {
            let sealed = record.pieces[0].guard.sealed();
            if sealed.is_none() && !self.acknowledged.first(&record.target) {
                return;
            }
            metrics.objects.add(sealed.unwrap_or(Sealed::Flush), 1);
        }
        self.context.metrics.bytes.add(Stage::Sent, bytes);
        let lines = record.lines().into();
        self.context
            .metrics
            .records
            .add(RecordResult::Delivered, lines);
    }

    fn report(&self, whose: &str, target: &str, fault: &Fault, records: u64) {
        let (level, remedy) = match fault.class {
            Class::Throttle => (Level::Warn, "sending less at once and retrying"),
            Class::Transient => (Level::Warn, "retrying"),
            Class::Record | Class::TooLarge => (Level::Info, "retrying in smaller requests"),
            Class::Credentials => (
                Level::Error,
                "retrying; check the credentials, their expiry and this machine's clock",
            ),
            Class::Configuration => (
                Level::Error,
                "retrying until this is fixed at the destination or in the configuration",
            ),
        };
        let to = match self.context.traits.object_layout {
            Some(_) => format!("of object '{target}'"),
            None => format!("for {}", self.describe(whose)),
        };
        self.context.log.trouble_with(
            level,
            trouble_kind(fault.class),
            whose,
            &format!("{records} records {to} held back: {fault}; {remedy}"),
        );
    }
}

/// What a target accepts now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admits {
    /// Everything.
    All,
    /// One request, from this time on.
    Probe(Instant),
    /// Nothing until something changes.
    Nothing,
}

/// Waits for a slot, if one is being waited for.
async fn entered(
    entering: &mut Option<BoxFuture<'static, ConcurrencyPermit>>,
) -> ConcurrencyPermit {
    match entering {
        Some(entering) => entering.await,
        None => std::future::pending().await,
    }
}

fn defer(record: Record<AckGuard>, target: &Arc<str>, not_before: Option<Instant>) {
    for piece in record.pieces {
        match record.ambiguous {
            true => piece.guard.defer(target, not_before),
            false => piece.guard.defer_unsent(target, not_before),
        }
    }
}

fn lines(records: &[Record<AckGuard>]) -> u64 {
    records.iter().map(|record| u64::from(record.lines())).sum()
}

/// Returns the outcome of a request by those of its records.
fn request_result(outcomes: &[Outcome]) -> metrics::Request {
    use metrics::Request;
    let delivered = |outcome: &Outcome| matches!(outcome, Outcome::Delivered);
    let Some(first) = outcomes.iter().find(|outcome| !delivered(outcome)) else {
        return Request::Ok;
    };
    if outcomes.iter().any(delivered) {
        return Request::Partial;
    }
    // If no record is accepted, they share one reason, except at a destination that answers for each record.
    match first {
        Outcome::Delivered => Request::Ok,
        Outcome::Ambiguous(_) => Request::Ambiguous,
        Outcome::Rejected(_) => Request::Rejected,
        Outcome::Retry(fault) => match fault.class {
            Class::Throttle => Request::Throttled,
            Class::Transient => Request::Transient,
            Class::Credentials => Request::Credentials,
            Class::Configuration => Request::Configuration,
            Class::Record | Class::TooLarge => Request::Rejected,
        },
    }
}

fn is_throttled(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Retry(fault) | Outcome::Ambiguous(fault) => fault.class == Class::Throttle,
        Outcome::Delivered | Outcome::Rejected(_) => false,
    }
}

fn contents_of(records: &[Record<AckGuard>]) -> Vec<Content> {
    let pieces = records.iter().flat_map(|record| &record.pieces);
    contents(pieces.map(|piece| &piece.guard))
}

fn trouble_kind(class: Class) -> &'static str {
    match class {
        Class::Throttle => "throttle",
        Class::Transient => "transient",
        Class::Credentials => "credentials",
        Class::Configuration => "configuration",
        Class::Record => "record",
        Class::TooLarge => "too_large",
    }
}
