//! A lane forms requests for one destination from pieces as they come, and sends them as it may.
//!
//! Three things hold a request back: the *linger*, while it is not full; the [`Gate`], which bounds the
//! requests in flight of the whole instance; and the lane's [`Breaker`], which sends one at a time while
//! the destination is down. What failed goes again, after a wait of its own, or at once when the
//! destination is back.

use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::spooled::contents;
use super::{Pipeline, Queued};
use crate::batch::{Packer, Record};
use crate::config::Destination;
use crate::dead_letter::Letter;
use crate::log::Level;
use crate::metrics::{self, Circuit, Record as Fate, Sealed, Stage};
use crate::retry::{Adaptive, Breaker, Leave, backoff};
use crate::settle::Ticket;
use crate::sink::{Batch, Class, Fault, Outcome};
use crate::spool::{Content, Durability, Note};

/// Requests in flight where the user leaves it to us: where to start, and where to end. Each holds up to
/// 4 MiB, and the buffers of HTTP and TLS.
const ADAPTIVE_START: usize = 4;
const ADAPTIVE_MOST: usize = 8;

/// Each record is billed in multiples of so many bytes: <https://aws.amazon.com/firehose/pricing/>
const BILLING_UNIT: u64 = 5 * 1024;

/// Classes of faults that pass, and are then said to have passed.
const PASSING: [Class; 4] = [
    Class::Throttle,
    Class::Transient,
    Class::Credentials,
    Class::Configuration,
];

/// What comes back to a lane.
enum Back {
    /// A request was answered.
    Answered(Leave, Answered),
    /// Sending panicked, and has dropped its tickets: their flights fail.
    Panicked(Leave),
    /// What failed has waited long enough.
    Ripe(Vec<Record<Ticket>>),
}

/// What a request tells of the destination.
#[derive(Clone, Copy, Default)]
enum Life {
    /// It answers.
    #[default]
    Answers,
    /// It took nothing, for this reason.
    TakesNothing(Class),
    /// It was not asked.
    NotAsked,
}

/// What became of a request.
#[derive(Default)]
struct Answered {
    /// To be sent again, after this wait.
    again: Vec<Record<Ticket>>,
    wait: Duration,
    /// Whether the destination lives.
    life: Life,
    /// The service said that a request of so many bytes is too large.
    too_many_bytes: Option<usize>,
}

impl Pipeline {
    /// Hands pieces to their lane, which begins where there is none.
    pub(super) fn enqueue(self: &Arc<Self>, lane: String, pieces: Vec<Queued>) {
        let begin = || {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(Arc::clone(self).lane(receiver));
            sender
        };
        let mut lanes = self.lanes.lock().expect("nothing panics with this lock");
        let sender = lanes.entry(lane).or_insert_with(begin);
        // A lane ends only by a panic, or with the runtime. What it held has failed its flights.
        if let Err(unsent) = sender.send(pieces) {
            *sender = begin();
            let _ = sender.send(unsent.0);
        }
    }

    async fn lane(self: Arc<Self>, mut arriving: mpsc::UnboundedReceiver<Vec<Queued>>) {
        let mut packer = Packer::default();
        let mut on_the_way: JoinSet<Back> = JoinSet::new();
        let mut breaker = Breaker::default();
        let mut circuit = Circuit::new(&self.metrics);
        // While the breaker lets nothing go: until then, or until something is answered.
        let mut held: Option<Option<Instant>> = None;
        let recovered = Arc::new(Notify::new());
        // The service may take less than it says it does.
        let mut most_bytes = usize::MAX;
        let mut full = false;
        // After how many flushes that gave up the queue was swept; `None` where something came into it since that
        // must be looked at. To look through all of it for each request would cost more than the rest.
        let mut swept = None;
        let mut draining = self.draining.subscribe();
        loop {
            let now = Instant::now();
            let drain = *draining.borrow_and_update();
            let lingers = match packer.since() {
                Some(since) if !full && !drain => since + self.linger,
                _ => now,
            };
            let at = match held {
                _ if packer.is_empty() => None,
                None => Some(lingers),
                Some(until) => until.map(|until| until.max(lingers)),
            };
            let ready = at.is_some_and(|at| at <= now);
            tokio::select! {
                biased;
                Some(back) = on_the_way.join_next(), if !on_the_way.is_empty() => {
                    held = None;
                    let (leave, answered) = match back {
                        Ok(Back::Answered(leave, answered)) => (leave, answered),
                        Ok(Back::Panicked(leave)) => {
                            breaker.abandoned(leave);
                            continue;
                        }
                        Ok(Back::Ripe(records)) => {
                            swept = None;
                            packer.put_back(records);
                            continue;
                        }
                        // The runtime is going down.
                        Err(_) => continue,
                    };
                    let answers = matches!(answered.life, Life::Answers);
                    match answered.life {
                        Life::TakesNothing(class) => {
                            let now = Instant::now().into_std();
                            if breaker.failed(leave, class, now, &mut StdRng::from_os_rng()) {
                                self.log.trouble(
                                    Level::Warn,
                                    "breaker",
                                    "the destination takes nothing: one request at a time is tried until it does",
                                );
                            }
                        }
                        Life::NotAsked => breaker.abandoned(leave),
                        Life::Answers => {
                            if breaker.succeeded(leave) {
                                recovered.notify_waiters();
                            }
                        }
                    }
                    circuit.set(breaker.is_open());
                    if answers && !self.metrics.circuit_is_open() {
                        self.log.recovered("breaker", "the destination answers again: requests go as before");
                    }
                    if let Some(too_many) = answered.too_many_bytes {
                        most_bytes = most_bytes.min(too_many / 2);
                    }
                    if answered.again.is_empty() {
                        continue;
                    }
                    if answered.wait.is_zero() {
                        swept = None;
                        packer.put_back(answered.again);
                    } else {
                        // Registered now, so that no recovery is missed from here on.
                        let recovered = Arc::clone(&recovered).notified_owned();
                        on_the_way.spawn(async move {
                            tokio::select! {
                                () = sleep(answered.wait) => {}
                                () = recovered => {}
                            }
                            Back::Ripe(answered.again)
                        });
                    }
                }
                pieces = arriving.recv() => {
                    let Some(pieces) = pieces else { return };
                    let Some((target, _)) = pieces.first() else { continue };
                    let limits = self.sink.shape(target).await.limits;
                    for (target, piece) in pieces {
                        if piece.ticket.is_stale() {
                            swept = None;
                        }
                        packer.push(&target, piece, &limits, now);
                    }
                    full = packer.is_full(&limits);
                }
                () = sleep_until(at.unwrap_or(now)), if at.is_some() && !ready => {}
                Ok(()) = draining.changed() => {}
                pass = Gate::enter(&self.gate), if ready => {
                    let given_up = Some(self.given_up.load(Ordering::Acquire));
                    if swept != given_up {
                        packer.retain_fresh(Ticket::is_stale);
                        swept = given_up;
                    }
                    let Some(target) = packer.next_target() else { continue };
                    let mut limits = self.sink.shape(&target).await.limits;
                    limits.batch_bytes = limits.batch_bytes.min(most_bytes);
                    let leave = breaker.leave(Instant::now().into_std());
                    if let Leave::Wait(until) = leave {
                        held = Some(until.map(Instant::from_std));
                        continue;
                    }
                    held = None;
                    let records = packer.take(&limits);
                    full = packer.is_full(&limits);
                    let send = AssertUnwindSafe(Arc::clone(&self).send(records, pass));
                    on_the_way.spawn(async move {
                        match send.catch_unwind().await {
                            Ok(answered) => Back::Answered(leave, answered),
                            Err(_) => Back::Panicked(leave),
                        }
                    });
                }
            }
        }
    }

    /// Sends one request, settles what is settled, and gives back what must go again.
    async fn send(self: Arc<Self>, records: Vec<Record<Ticket>>, pass: Pass) -> Answered {
        let mut answered = Answered::default();
        let Ok(journal) = self.begun(&records).await else {
            // Many wait for one disk: a second each.
            answered.wait = backoff(Class::Transient, 4, &mut StdRng::from_os_rng());
            answered.again = records;
            answered.life = Life::NotAsked;
            return answered;
        };
        let batch = Batch {
            target: Arc::clone(&records[0].target),
            token: records[0]
                .pieces
                .first()
                .and_then(|piece| piece.ticket.token()),
            records: records.iter().map(Record::body).collect(),
        };
        let bytes = records.iter().map(Record::bytes).sum::<usize>();
        let under_way = self.metrics.in_flight.enter();
        let began = Instant::now();
        let outcomes = self.sink.send(batch).await;
        self.metrics.request_times.observe(began.elapsed());
        drop(under_way);
        self.metrics.requests.add(result(&outcomes), 1);
        let throttled = outcomes.iter().filter(|outcome| is_throttled(outcome));
        self.metrics.throttled.add(throttled.count() as u64);

        let sent = records.len();
        let mut settled: Vec<Record<Ticket>> = Vec::with_capacity(sent);
        let mut worst: Option<(Arc<Fault>, u32)> = None;
        for (mut record, outcome) in records.into_iter().zip(outcomes) {
            let fault = match outcome {
                Outcome::Delivered => {
                    self.count_delivered(&record);
                    settled.push(record);
                    continue;
                }
                Outcome::Rejected(fault) => {
                    // Where it cannot be kept either, its flight fails: who holds it, holds it on.
                    if self.refuse(&record, &fault).await.is_continue() {
                        settled.push(record);
                    }
                    continue;
                }
                Outcome::Retry(fault) => fault,
                Outcome::Ambiguous(fault) => {
                    let lines = record.lines().into();
                    self.metrics.records.add(Fate::Ambiguous, lines);
                    fault
                }
            };
            record.attempts += 1;
            match fault.class {
                Class::Record => record.alone = true,
                Class::TooLarge => answered.too_many_bytes = Some(bytes),
                _ => {}
            }
            let attempts = record.attempts;
            if worst.as_ref().is_none_or(|(_, most)| attempts > *most) {
                worst = Some((fault, attempts));
            }
            answered.again.push(record);
        }
        match worst {
            None => {
                pass.done(Some(true));
                for class in PASSING {
                    self.log
                        .recovered(name(class), "the destination takes records again");
                }
            }
            Some((fault, attempts)) => {
                // Real throttling fails most of a request or all of it; a record here and there says
                // nothing.
                let throttled = fault.class == Class::Throttle && answered.again.len() * 2 > sent;
                pass.done(throttled.then_some(false));
                self.report(&fault, answered.again.len());
                answered.wait = backoff(fault.class, attempts, &mut StdRng::from_os_rng());
                let down = matches!(
                    fault.class,
                    Class::Transient | Class::Credentials | Class::Configuration
                );
                if down && answered.again.len() == sent {
                    answered.life = Life::TakesNothing(fault.class);
                }
            }
        }
        if let Some(batch) = journal {
            self.ended(batch, &settled, settled.len() == sent).await;
        }
        for piece in settled.into_iter().flat_map(|record| record.pieces) {
            piece.ticket.keep();
        }
        answered
    }

    /// Writes down that these records are about to be sent, so that a later start can tell what may be at
    /// the destination twice. It need not be synced: after a power cut the spool knows less, and sends
    /// again all the same.
    async fn begun(&self, records: &[Record<Ticket>]) -> Result<Option<u64>, ()> {
        let Some(spool) = self.journal() else {
            return Ok(None);
        };
        let batch = self.next_batch.fetch_add(1, Ordering::Relaxed);
        let begun = Note::Begun {
            batch,
            name: records[0].target.to_string(),
            token: String::new(),
            lines: records.iter().map(|record| u64::from(record.lines())).sum(),
            contents: held_by(records),
        };
        match spool.note(begun, Durability::Written).await {
            Ok(()) => {
                self.log
                    .recovered("spool", "the spool can be written again");
                Ok(Some(batch))
            }
            Err(error) => {
                self.spool_trouble(&error);
                Err(())
            }
        }
    }

    /// Writes down what a request's answer settled.
    async fn ended(&self, batch: u64, settled: &[Record<Ticket>], all: bool) {
        let Some(spool) = self.journal() else {
            return;
        };
        let ended = Note::Ended {
            batch,
            delivered: (!all).then(|| held_by(settled)),
        };
        if let Err(error) = spool.note(ended, Durability::Synced).await {
            // They are delivered, and are not sent again while we run; a crash before the next note that
            // succeeds would send them again.
            self.spool_trouble(&error);
        }
    }

    /// Keeps a record that will never be taken as a dead letter.
    async fn refuse(self: &Arc<Self>, record: &Record<Ticket>, fault: &Fault) -> ControlFlow<()> {
        let letters = record
            .pieces
            .iter()
            .map(|piece| {
                let bytes = piece.bytes.to_bytes();
                Letter::refused(piece.ticket.tag(), &record.target, fault, &bytes)
            })
            .collect();
        self.keep_letters(letters, record.lines().into()).await
    }

    /// A record is acknowledged.
    fn count_delivered(&self, record: &Record<Ticket>) {
        let bytes = record.bytes() as u64;
        match &self.config.destination {
            Destination::Firehose(_) => {
                let billed = bytes.next_multiple_of(BILLING_UNIT);
                self.metrics.bytes.add(Stage::Billed, billed);
            }
            Destination::Blob { .. } => {
                let sealed = record.pieces[0].ticket.sealed();
                if sealed.is_none() && !self.acknowledged.first(&record.target) {
                    return;
                }
                self.metrics.objects.add(sealed.unwrap_or(Sealed::Flush), 1);
            }
        }
        self.metrics.bytes.add(Stage::Sent, bytes);
        let lines = record.lines().into();
        self.metrics.records.add(Fate::Delivered, lines);
    }

    fn report(&self, fault: &Fault, records: usize) {
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
        self.log.trouble(
            level,
            name(fault.class),
            &format!("{records} records were not taken: {fault}; {remedy}"),
        );
    }
}

/// What became of a request, by what became of its records.
fn result(outcomes: &[Outcome]) -> metrics::Request {
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

fn held_by(records: &[Record<Ticket>]) -> Vec<Content> {
    let pieces = records.iter().flat_map(|record| &record.pieces);
    contents(pieces.map(|piece| &piece.ticket))
}

fn name(class: Class) -> &'static str {
    match class {
        Class::Throttle => "throttle",
        Class::Transient => "transient",
        Class::Credentials => "credentials",
        Class::Configuration => "configuration",
        Class::Record => "record",
        Class::TooLarge => "too_large",
    }
}

/// Bounds the requests in flight.
pub(super) struct Gate {
    slots: Arc<Semaphore>,
    /// Slots at the start.
    start: usize,
    state: Option<Mutex<GateState>>,
}

struct GateState {
    adaptive: Adaptive,
    /// Slots that exist, free and taken.
    slots: usize,
}

/// Leave to have one request in flight.
struct Pass {
    gate: Arc<Gate>,
    slot: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// `fixed` requests, or as many as the destination lets.
    pub(super) fn new(fixed: Option<usize>) -> Gate {
        let slots = fixed.unwrap_or(ADAPTIVE_START);
        Gate {
            slots: Arc::new(Semaphore::new(slots)),
            start: slots,
            state: fixed.is_none().then(|| {
                Mutex::new(GateState {
                    adaptive: Adaptive::new(ADAPTIVE_START, ADAPTIVE_MOST),
                    slots,
                })
            }),
        }
    }

    /// Requests there may be in flight now.
    pub(super) fn limit(&self) -> usize {
        let Some(state) = &self.state else {
            return self.start;
        };
        let state = state.lock().expect("nothing panics with this lock");
        state.adaptive.limit()
    }

    async fn enter(gate: &Arc<Gate>) -> Pass {
        let slot = Arc::clone(&gate.slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        Pass {
            gate: Arc::clone(gate),
            slot: Some(slot),
        }
    }
}

impl Pass {
    /// The request is over: taken, throttled (`Some(false)`), or neither.
    fn done(mut self, taken: Option<bool>) {
        let Some(state) = &self.gate.state else {
            return;
        };
        let mut state = state.lock().expect("nothing panics with this lock");
        match taken {
            Some(true) => state.adaptive.success(),
            Some(false) => state.adaptive.throttled(Instant::now().into_std()),
            None => {}
        }
        let limit = state.adaptive.limit();
        if state.slots > limit {
            state.slots -= 1;
            if let Some(slot) = self.slot.take() {
                slot.forget();
            }
        } else if state.slots < limit {
            self.gate.slots.add_permits(limit - state.slots);
            state.slots = limit;
        }
    }
}
