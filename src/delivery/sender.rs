//! A sender forms requests for one target from pieces as they come, and sends them.
//!
//! Three things hold a request back: the *linger*, while it is not full; the [`ConcurrencyLimit`], which bounds the
//! requests in flight of the whole instance and, where there are several targets, those of each; and the target's
//! [`Circuit`], which lets one go at a time while the target is down. What failed goes again, after a wait of its own,
//! or at once when the target is back.
//!
//! Of several targets nothing waits here while the circuit is open, or one sick target would hold the memory of all: what
//! is queued is deferred, and only the pieces of a probe come in. With a spool the feed reads it again when the target is
//! back. In direct mode that fails the flush, whose worker the host needs for others; there the circuit also opens when
//! nothing is taken for [`STALL_TIMEOUT`], since requests have no answer, are throttled, or would only be tried again after that.
//!
//! Each stream has a sender. The folders of a store share one, since a store's trouble is most often that of all of them;
//! a folder that is refused gets its own until it is well. A sender of several that has nothing to do ends, and begins again
//! with the next piece.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::FutureExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::circuit::{Circuit, CircuitPermit, PROBE_TIMEOUT};
use super::context::Context;
use super::cut::{LINE_NUMBER_BYTES, PIECE_BYTES};
use super::intake::Intake;
use super::letters::Letters;
use super::memory::UNIT;
use super::quota::Quota;
use crate::delivery::ack::{AckGuard, Refusal, contents};
use crate::delivery::batch::{Packer, Piece, Record};
use crate::delivery::concurrency::{Adaptive, ConcurrencyLimit, ConcurrencyPermit};
use crate::delivery::dead_letter::{self, NotKept};
use crate::delivery::redelivery::Acknowledged;
use crate::delivery::retry::backoff;
use crate::log::Level;
use crate::metrics::{self, Record as Fate, Sealed, Stage};
use crate::sink::{Batch, Class, Fault, Outcome};
use crate::spool::{Content, Durability, Note};

/// After this long without an answer a request leaves its place in flight to another target's.
const HANG_TIMEOUT: Duration = Duration::from_secs(5);
/// After this long without success nothing waits for a target. Half of a request's timeout: most requests
/// that are answer at all are answer in the first seconds.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests in a row that are throttled as a whole before that counts: a last record may be unlucky a few times.
const THROTTLED: u32 = 5;
/// Probes of all targets in flight at once …
const MAX_PROBES: usize = 4;
/// … and the time from one to the next: thousands of targets that are down are not to make a flood of requests.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// Targets of a store that have a sender of their own since they were refused, at most. What is refused beyond that counts
/// as trouble of the whole store.
const MAX_ISOLATED: usize = 1_000;
/// A sender that had nothing to do for so long ends …
const IDLE: Duration = Duration::from_secs(60);
/// … and one that knows that its target is down.
const IDLE_OPEN: Duration = Duration::from_secs(600);

/// Classes of faults that pass, and are then said to have passed.
const PASSING: [Class; 4] = [
    Class::Throttle,
    Class::Transient,
    Class::Credentials,
    Class::Configuration,
];

/// A piece and where it goes.
pub(super) type Queued = (Arc<str>, Piece<AckGuard>);

/// A sender, as those see it who hand something over.
pub(super) struct SenderHandle {
    queue: mpsc::UnboundedSender<Delivery>,
    circuit: Arc<Circuit>,
    quota: Arc<Quota>,
}

/// What a sender is given at once.
pub(super) struct Delivery {
    pub(super) pieces: Vec<Queued>,
    /// While the circuit is open: leave to send one request of them.
    pub(super) probe: Option<CircuitPermit>,
}

/// The slots that a request takes among others.
struct Slots {
    /// Among all that are in flight.
    in_flight: ConcurrencyPermit,
    /// Among the probes of all targets.
    probe: Option<OwnedSemaphorePermit>,
}

/// A request, by its number, is over. There is no answer where sending panicked, and has dropped its guards: their
/// trackers fail.
struct RequestDone {
    request: u64,
    permit: CircuitPermit,
    answer: Option<Answer>,
}

/// What a request tells of the destination.
#[derive(Clone, Copy, Default)]
enum Health {
    /// It answers.
    #[default]
    Answers,
    /// It took nothing, for this reason.
    Down(Class),
    /// It was not asked.
    Unknown,
}

/// What became of a request.
#[derive(Default)]
struct Answer {
    /// To be sent again, after this wait.
    retry: Vec<Record<AckGuard>>,
    wait: Duration,
    /// Whether the destination lives.
    health: Health,
    /// Whether anything was settled, or is sent again in another form.
    progressed: bool,
    /// Whether most of it was throttled (`Some(true)`), or all of it was taken.
    throttled: Option<bool>,
    /// The service said that a request of so many bytes is too large.
    too_many_bytes: Option<usize>,
    /// It refused this one of several targets that share a sender, for this reason.
    refused: Option<(Arc<str>, Arc<Fault>)>,
}

/// The senders of all targets, and what they share.
pub(super) struct Senders {
    context: Arc<Context>,
    letters: Arc<Letters>,
    limit: Arc<ConcurrencyLimit>,
    senders: Mutex<HashMap<String, SenderHandle>>,
    /// The only target, where there is but one.
    only: Option<String>,
    /// With a spool: where a flush leaves its chunk. Without one each flush waits for what is sent.
    intake: OnceLock<Arc<Intake>>,
    next_batch: AtomicU64,
    /// Flushes that gave up waiting, so far.
    given_up: AtomicU64,
    /// Objects that were acknowledged in this run.
    acknowledged: Acknowledged,
    /// Slots for probes.
    probes: Arc<Semaphore>,
    /// When the next probe may be sent.
    next_probe: Mutex<Instant>,
    /// Something of a target changed: what it holds, or whether it takes anything.
    changed: Arc<Notify>,
    /// A quota beside which each target's is.
    quota: Quota,
    /// Targets whose circuit opened since somebody asked.
    opened: Mutex<Vec<Arc<str>>>,
}

impl Senders {
    /// None yet.
    pub(super) fn new(context: Arc<Context>, letters: Arc<Letters>) -> Arc<Senders> {
        let traits = &context.traits;
        let only = traits.only_target();
        Arc::new(Senders {
            limit: Arc::new(match traits.throttles_targets && only.is_none() {
                true => ConcurrencyLimit::of_targets(context.config.concurrency),
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
            context,
            letters,
        })
    }

    /// From now on no flush waits for what is sent: this leaves it in the spool. Requests are numbered from `next_batch`.
    pub(super) fn attach_intake(&self, intake: Intake, next_batch: u64) -> Arc<Intake> {
        self.next_batch.store(next_batch, Ordering::Relaxed);
        Arc::clone(self.intake.get_or_init(|| Arc::new(intake)))
    }

    /// What leaves chunks in the spool, where there is one.
    pub(super) fn intake(&self) -> Option<&Arc<Intake>> {
        self.intake.get()
    }

    /// The number of the next request or object.
    pub(super) fn next_batch(&self) -> u64 {
        self.next_batch.fetch_add(1, Ordering::Relaxed)
    }

    /// A flush gives up waiting: what is queued for it alone need not be sent.
    pub(super) fn record_give_up(&self) {
        self.given_up.fetch_add(1, Ordering::Release);
    }

    /// Requests there may be in flight now.
    pub(super) fn in_flight_limit(&self) -> usize {
        self.limit.limit()
    }

    /// The circuit of the only target, where there is but one.
    pub(super) fn only_circuit(&self) -> Option<Arc<Circuit>> {
        self.circuit(self.only.as_ref()?)
    }

    /// Whether all goes to one target.
    pub(super) fn has_one_target(&self) -> bool {
        self.only.is_some()
    }

    /// Waits until something of a target changes: what it holds, or whether it takes anything.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Bytes that a target may get now, while others are about to get `planned` bytes. Not 0: at least one line.
    pub(super) fn room(&self, target: &str, planned: usize) -> usize {
        let limit = self.context.config.memory_limit;
        let senders = self.senders.lock().expect("nothing panics with this lock");
        let quota = senders.get(target).map_or(&self.quota, |it| &it.quota);
        quota.room(limit, planned)
    }

    /// Whether events of a target that were deferred may be read again.
    pub(super) fn may_load(&self, target: &str) -> bool {
        let limit = self.context.config.memory_limit;
        let senders = self.senders.lock().expect("nothing panics with this lock");
        let quota = senders.get(target).map_or(&self.quota, |it| &it.quota);
        quota.may_load(limit)
    }

    /// Targets whose circuit opened since this was asked last. Some may be closed again.
    pub(super) fn take_opened(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.opened.lock().expect("nothing panics with this lock"))
    }

    /// The sender of a target.
    pub(super) fn sender_of(&self, target: &str) -> String {
        let shared = self.context.traits.object_layout.is_some();
        let senders = self.senders.lock().expect("nothing panics with this lock");
        match shared && !senders.contains_key(target) {
            true => String::new(),
            false => target.to_owned(),
        }
    }

    /// A target was refused that shares its sender with others: it has its own from now on, whose circuit is open. False
    /// where there are too many of them.
    fn isolate(self: &Arc<Self>, target: &Arc<str>, fault: &Fault) -> bool {
        {
            let mut senders = self.senders.lock().expect("nothing panics with this lock");
            if senders.contains_key(&**target) {
                return true;
            }
            if senders.len() > MAX_ISOLATED {
                return false;
            }
            let circuit = Circuit::new(&self.context.metrics, &self.changed);
            circuit.trip(fault.class);
            senders.insert(target.to_string(), self.begin(target.to_string(), circuit));
        }
        self.log_open(target, &format!("refused: {fault}"));
        true
    }

    /// Whether a target takes something. Where it shares its sender, that sees to it.
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

    /// Leave to send to a target: with a permit for one request, where its circuit is open. `None`: not now.
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

    /// A target is back: others may be, too.
    pub(super) fn hurry_probes(&self) {
        let senders = self.senders.lock().expect("nothing panics with this lock");
        senders.values().for_each(|sender| sender.circuit.hurry());
    }

    /// Ends a sender that has nothing to do, unless something is on its way to it.
    fn retire(&self, name: &str, arriving: &mpsc::UnboundedReceiver<Delivery>) -> bool {
        let mut senders = self.senders.lock().expect("nothing panics with this lock");
        let retires = arriving.is_empty();
        if retires {
            senders.remove(name);
        }
        retires
    }

    /// Ends all senders when they have nothing to do any more.
    pub(super) fn close(&self) {
        let mut senders = self.senders.lock().expect("nothing panics with this lock");
        senders.clear();
    }

    /// How long a request that is not full waits for more.
    fn linger(&self) -> Duration {
        match self.is_direct() {
            true => Duration::ZERO,
            false => self.context.traits.linger,
        }
    }

    /// Whether a flush waits for what is sent.
    fn is_direct(&self) -> bool {
        self.intake.get().is_none()
    }

    /// Where requests are written down before they are sent, since the destination cannot say what it has.
    fn journal(&self) -> Option<&Arc<Intake>> {
        self.intake()
            .filter(|_| self.context.traits.object_layout.is_none())
    }

    /// Hands pieces to their sender, which begins where there is none; with leave to probe where its circuit is open.
    pub(super) fn enqueue(
        self: &Arc<Self>,
        target: &str,
        pieces: Vec<Queued>,
        probe: Option<CircuitPermit>,
    ) {
        let sender = self.sender_of(target);
        self.hand_over(sender, Delivery { pieces, probe });
    }

    /// The same.
    pub(super) fn hand_over(self: &Arc<Self>, sender: String, mut delivery: Delivery) {
        let mut senders = self.senders.lock().expect("nothing panics with this lock");
        let name = sender.clone();
        let sender = senders.entry(sender).or_insert_with(|| {
            let circuit = Circuit::new(&self.context.metrics, &self.changed);
            self.begin(name.clone(), circuit)
        });
        // What is reserved for a part is rounded up.
        let mut rounding = UNIT;
        for (_, piece) in &mut delivery.pieces {
            let beside = PIECE_BYTES + LINE_NUMBER_BYTES * piece.lines as usize;
            let bytes = piece.bytes.len() + beside + std::mem::take(&mut rounding);
            piece.guard.charge(&sender.quota, bytes);
        }
        // A sender ends only by a panic, or with the runtime. What it held has failed its trackers.
        if let Err(unsent) = sender.queue.send(delivery) {
            *sender = self.begin(name, Arc::clone(&sender.circuit));
            let _ = sender.queue.send(unsent.0);
        }
    }

    /// The circuit of a sender, which begins where there is none.
    pub(super) fn begin_sender(self: &Arc<Self>, sender: &str) -> Arc<Circuit> {
        let mut senders = self.senders.lock().expect("nothing panics with this lock");
        if let Some(sender) = senders.get(sender) {
            return Arc::clone(&sender.circuit);
        }
        let circuit = Circuit::new(&self.context.metrics, &self.changed);
        let begun = self.begin(sender.to_owned(), Arc::clone(&circuit));
        senders.insert(sender.to_owned(), begun);
        circuit
    }

    /// The circuit of a sender, where there is that sender.
    pub(super) fn circuit(&self, sender: &str) -> Option<Arc<Circuit>> {
        let senders = self.senders.lock().expect("nothing panics with this lock");
        senders
            .get(sender)
            .map(|sender| Arc::clone(&sender.circuit))
    }

    fn begin(self: &Arc<Self>, name: String, circuit: Arc<Circuit>) -> SenderHandle {
        let (queue, arriving) = mpsc::unbounded_channel();
        let quota = Arc::new(self.quota.beside());
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

    /// Says that a circuit opened, and why.
    pub(super) fn log_open(&self, sender: &str, why: &str) {
        if !self.is_direct() {
            let mut opened = self.opened.lock().expect("nothing panics with this lock");
            opened.push(sender.into());
        }
        self.changed.notify_one();
        let meanwhile = match self.is_direct() {
            true => "chunks for it go back to the host at once",
            false => "its records wait in the spool",
        };
        self.context.log.trouble_with(
            Level::Warn,
            "breaker",
            sender,
            &format!(
                "{} is unavailable ({why}): {meanwhile}, and one request at a time is tried",
                self.describe(sender)
            ),
        );
    }

    /// A target, for a person.
    fn describe(&self, target: &str) -> String {
        match target.is_empty() && self.context.traits.object_layout.is_some() {
            true => "the destination".to_owned(),
            false => format!("{} '{target}'", self.context.traits.target_word),
        }
    }
}

/// A sender at work.
struct Sender {
    senders: Arc<Senders>,
    name: Arc<str>,
    circuit: Arc<Circuit>,
    quota: Arc<Quota>,
    direct: bool,
    /// Of several targets that throttle by themselves: how much this one takes.
    adaptive: Option<Adaptive>,
    /// Since when it has nothing to do.
    idle: Option<Instant>,
    packer: Packer<AckGuard>,
    in_flight: JoinSet<RequestDone>,
    /// When the requests on the way began. Their numbers ascend.
    started: BTreeMap<u64, Instant>,
    next_request: u64,
    /// When something was taken last.
    last_progress: Option<Instant>,
    /// Requests in a row of which nothing was taken, and when the first of them was answer.
    failing: Option<(Instant, u32)>,
    /// What failed, and when it goes again.
    waiting: Vec<(Instant, Vec<Record<AckGuard>>)>,
    /// Whether what is queued is deferred while the circuit is open.
    defers: bool,
    /// Whether several targets share it.
    shared: bool,
    /// Whether it is that of one of several targets.
    own_target: bool,
    /// Where it is not, while the circuit lets nothing go: until then, or until something is answer.
    held: Option<Option<Instant>>,
    /// Leave to send a request although the circuit is open …
    probe: Option<CircuitPermit>,
    /// … and whether it is on its way.
    probing: bool,
    /// Whether the circuit was open when it was looked at last.
    was_open: bool,
    /// The service may take less than it says it does.
    max_bytes: usize,
    full: bool,
    /// After how many flushes that gave up the queue was swept; `None` where something came into it since that
    /// must be looked at. To look through all of it for each request would cost more than the rest.
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

    async fn run(mut self, mut arriving: mpsc::UnboundedReceiver<Delivery>) {
        let mut draining = self.senders.context.draining.subscribe();
        let mut circuit = self.circuit.subscribe();
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
            let ready = at.is_some_and(|at| at <= now);
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
                    // Otherwise the runtime is going down.
                    if let Ok(done) = done {
                        self.handle_done(done);
                    }
                }
                delivery = arriving.recv() => {
                    let Some(delivery) = delivery else { return };
                    self.receive(delivery, now).await;
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
                Ok(()) = draining.changed() => {}
                Ok(()) = circuit.changed() => {}
                pass = ConcurrencyLimit::enter(&self.senders.limit), if ready => self.send_next(pass).await,
            }
        }
    }

    /// Requests of this target that may be in flight: not all of those of the whole instance, where there are others.
    fn max_in_flight(&self) -> usize {
        match &self.adaptive {
            _ if !self.own_target => usize::MAX,
            Some(adaptive) => adaptive.limit(),
            None => (self.senders.limit.limit() / 2).max(1),
        }
    }

    /// When this ends if nothing comes. `None`: it has something to do, or there is no other.
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
            true => IDLE_OPEN,
            false => IDLE,
        };
        Some(*self.idle.get_or_insert(now) + after)
    }

    /// Defers all that is queued. None of it is tried before `not_before`.
    fn defer_all(&mut self, not_before: Option<Instant>) {
        let queued = std::mem::take(&mut self.packer).into_records();
        let waiting = self.waiting.drain(..).flat_map(|(_, records)| records);
        for record in queued.chain(waiting) {
            defer(record, &self.name, not_before);
        }
        (self.probe, self.held, self.full) = (None, None, false);
        self.senders.changed.notify_one();
    }

    /// Opens the circuit after [`STALL_TIMEOUT`] without an answer, and defers what is queued while it is open. Returns when the next
    /// answer is due.
    fn check_stall(&mut self, now: Instant) -> Option<Instant> {
        let answer_by = self.started.values().next().map(|began| {
            let since = self.last_progress.map_or(*began, |taken| taken.max(*began));
            since + STALL_TIMEOUT
        });
        let answer_by = answer_by.filter(|_| self.defers);
        if answer_by.is_some_and(|by| by <= now) && self.circuit.trip(Class::Transient) {
            let why = format!(
                "took nothing and gave no answer for {} s",
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
        answer_by.filter(|_| !open)
    }

    /// Queues what has waited long enough.
    fn requeue_due(&mut self, now: Instant) {
        while let Some(at) = self.waiting.iter().position(|(at, _)| *at <= now) {
            let (_, records) = self.waiting.remove(at);
            self.swept = None;
            // Several targets share it: what one does not take lets the others go first.
            match self.shared {
                true => self.packer.put_behind(records),
                false => self.packer.put_back(records),
            }
            self.held = None;
        }
    }

    /// Hears what came of a request.
    fn handle_done(&mut self, done: RequestDone) {
        self.apply_answer(done);
        // Whoever waits for a change looks at what it has led to.
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
            && let Some((target, fault)) = answer.refused.take()
            && self.senders.isolate(&target, &fault)
        {
            // The store lives.
            (answer.health, answer.progressed) = (Health::Answers, true);
            let same = |guard: &AckGuard| guard.target() == Some(&target);
            let queued = self.packer.extract(same);
            for record in answer.retry.drain(..).chain(queued) {
                defer(record, &target, None);
            }
        }
        if let (Some(adaptive), Some(throttled)) = (&mut self.adaptive, answer.throttled) {
            match throttled {
                true => adaptive.throttled(now.into_std()),
                false => adaptive.success(),
            }
        }
        match answer.health {
            Health::Unknown => drop(permit),
            Health::Down(class) => {
                let mut why = "took none of five requests in a row";
                let mut opened = permit.failed(class);
                // Where names come from tags or records, five tries of each that is not there would be too many.
                if self.own_target && class == Class::Configuration && self.circuit.trip(class) {
                    (opened, why) = (true, "refused a request");
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
                    self.senders.hurry_probes();
                }
            }
        }
        match answer.health {
            Health::Unknown => {}
            _ if answer.progressed => {
                self.last_progress = Some(now);
                self.failing = None;
                if !self.circuit.is_open() {
                    let back = format!(
                        "{} answers again: requests go as before",
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
                let often = times >= if throttled { THROTTLED } else { 1 };
                let too_long = often && now + answer.wait >= since + STALL_TIMEOUT;
                if self.direct && too_long && self.circuit.trip(Class::Transient) {
                    let why = format!("takes nothing for {} s or more", STALL_TIMEOUT.as_secs());
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
        if slow || answer.throttled == Some(false) {
            self.quota.set_slow(slow);
        }
        if !again.is_empty() {
            self.waiting.push((now + answer.wait, again));
        }
        let limit = self.senders.context.config.memory_limit;
        if self.own_target && !self.direct && self.quota.is_over(limit) {
            // Its text is made again when there is reason to try; others need the memory.
            let times = self.failing.map_or(1, |(_, times)| times);
            let wait = backoff(Class::Throttle, times, &mut StdRng::from_os_rng());
            self.defer_all(Some(now + wait.max(answer.wait)));
        }
    }

    async fn receive(&mut self, delivery: Delivery, now: Instant) {
        let Delivery { pieces, probe } = delivery;
        // It opened while they were on their way to us.
        if self.defers && probe.is_none() && self.circuit.is_open() {
            for (_, piece) in pieces {
                piece.guard.defer(&self.name, None);
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
        let records = self.packer.take(&limits);
        self.full = self.packer.is_full(&limits);
        // One that hangs leaves its slots to the others, where there are any.
        let patience = self.defers.then_some(match permit.is_probe() {
            true => PROBE_TIMEOUT,
            false => HANG_TIMEOUT,
        });
        let slots = Slots {
            in_flight: pass,
            probe: permit.take_probe_slot(),
        };
        let target = Arc::clone(&self.name);
        let send = Arc::clone(&self.senders).send(target, records, slots, patience);
        let request = self.next_request;
        self.next_request += 1;
        self.started.insert(request, Instant::now());
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
    /// Sends one request, settles what is settled, and gives back what must go again.
    /// One that has no answer after `patience` gives its slots to another.
    async fn send(
        self: Arc<Self>,
        whose: Arc<str>,
        records: Vec<Record<AckGuard>>,
        mut slots: Slots,
        patience: Option<Duration>,
    ) -> Answer {
        let mut answer = Answer::default();
        let Ok(journal) = self.journal_begin(&records).await else {
            // Many wait for one disk: a second each.
            answer.wait = backoff(Class::Transient, 4, &mut StdRng::from_os_rng());
            answer.retry = records;
            answer.health = Health::Unknown;
            return answer;
        };
        let batch = Batch {
            target: Arc::clone(&records[0].target),
            token: records[0]
                .pieces
                .first()
                .and_then(|piece| piece.guard.token()),
            records: records.iter().map(Record::body).collect(),
        };
        let target = Arc::clone(&batch.target);
        let bytes = records.iter().map(Record::bytes).sum::<usize>();
        let under_way = self.context.metrics.in_flight.enter();
        let began = Instant::now();
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
        self.context.metrics.throttled.add(throttled.count() as u64);

        let sent = records.len();
        let mut settled: Vec<Record<AckGuard>> = Vec::with_capacity(sent);
        let mut worst: Option<(Arc<Fault>, u32)> = None;
        for (mut record, outcome) in records.into_iter().zip(outcomes) {
            let fault = match outcome {
                Outcome::Delivered => {
                    self.count_delivered(&record);
                    settled.push(record);
                    continue;
                }
                Outcome::Rejected(fault) => {
                    match self.keep_refused(&record, &fault).await {
                        Ok(()) => settled.push(record),
                        // Its owner keeps holding this record, and nothing else.
                        Err(_) => {
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
                    self.context.metrics.records.add(Fate::Ambiguous, lines);
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
                for class in PASSING {
                    let back = format!("{} takes records again", self.describe(&whose));
                    self.context
                        .log
                        .recovered_with(trouble_kind(class), &whose, &back);
                }
            }
            Some((fault, attempts)) => {
                // Real throttling fails most of a request or all of it; a record here and there says
                // nothing.
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
                let down = matches!(
                    fault.class,
                    Class::Transient | Class::Credentials | Class::Configuration
                );
                if down && answer.retry.len() == sent {
                    answer.health = Health::Down(fault.class);
                    if fault.class == Class::Configuration && !self.has_one_target() {
                        let of = answer.retry.first().and_then(|record| {
                            record.pieces.first().and_then(|piece| piece.guard.target())
                        });
                        answer.refused = of.map(|target| (Arc::clone(target), fault));
                    }
                }
            }
        }
        if let Some(batch) = journal {
            self.journal_end(batch, &settled, settled.len() == sent)
                .await;
        }
        for piece in settled.into_iter().flat_map(|record| record.pieces) {
            piece.guard.keep();
        }
        answer
    }

    /// Writes down that these records are about to be sent, so that a later start can tell what may be at
    /// the destination twice. It need not be synced: after a power cut the spool knows less, and sends
    /// again all the same.
    async fn journal_begin(&self, records: &[Record<AckGuard>]) -> Result<Option<u64>, ()> {
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
        };
        match intake.spool().note(begun, Durability::Written).await {
            Ok(()) => {
                self.context
                    .log
                    .recovered("spool", "the spool can be written again");
                Ok(Some(batch))
            }
            Err(error) => {
                intake.log_disk_error(&error);
                Err(())
            }
        }
    }

    /// Writes down what a request's answer settled.
    async fn journal_end(&self, batch: u64, settled: &[Record<AckGuard>], all: bool) {
        let Some(intake) = self.journal() else {
            return;
        };
        let ended = Note::Ended {
            batch,
            delivered: (!all).then(|| contents_of(settled)),
        };
        if let Err(error) = intake.spool().note(ended, Durability::Synced).await {
            // They are delivered, and are not sent again while we run; a crash before the next note that
            // succeeds would send them again.
            intake.log_disk_error(&error);
        }
    }

    /// Keeps a record that will never be taken as a dead letter.
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

    /// A record is acknowledged.
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
        self.context.metrics.records.add(Fate::Delivered, lines);
    }

    fn report(&self, whose: &str, target: &str, fault: &Fault, records: u64) {
        let (level, remedy) = match fault.class {
            Class::Throttle => (Level::Warn, "sending less at once, and trying again"),
            Class::Transient => (Level::Warn, "trying again"),
            Class::Record | Class::TooLarge => (Level::Info, "sending in smaller parts"),
            Class::Credentials => (
                Level::Error,
                "data is held back; check the credentials, their expiry and this machine's clock",
            ),
            Class::Configuration => (
                Level::Error,
                "data is held back until this is mended at the destination or in the configuration",
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
            &format!("{records} records {to} were not taken: {fault}; {remedy}"),
        );
    }
}

/// What a target takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admits {
    /// Anything.
    All,
    /// One request, from then on.
    Probe(Instant),
    /// Nothing before something changes.
    Nothing,
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

/// What became of a request, by what became of its records.
fn request_result(outcomes: &[Outcome]) -> metrics::Request {
    use metrics::Request;
    let delivered = |outcome: &Outcome| matches!(outcome, Outcome::Delivered);
    let Some(first) = outcomes.iter().find(|outcome| !delivered(outcome)) else {
        return Request::Ok;
    };
    if outcomes.iter().any(delivered) {
        return Request::Partial;
    }
    // Where none is taken, the reason is one for all of them, but for a destination that answers each.
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
