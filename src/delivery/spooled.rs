//! Spooled delivery: reads the spool and delivers it, independently of flushes.
//!
//! The feed reads chunk after chunk, as memory allows, and encodes them. For Firehose, pieces go to their senders, as
//! in direct mode. For a blob store they are gathered in [`Objects`]; a sealed object gets a name and a token, both are
//! synced into the spool together with its contents, and only then is it sent. A chunk is finished when everything in
//! it has completed.
//!
//! If there are several targets, events whose target is unavailable or holds enough are [`Deferred`]: their text is
//! dropped, and they are read again when the target accepts them. So one target's trouble holds no memory of another,
//! and the feed keeps reading.
//!
//! What waits for a target is only in memory: on disk it is what no note settles, so a restart reads it again.
//!
//! If memory is full of small open objects, their lines are spilled to a file, and merged into objects later
//! ([`Gathering`]).
//!
//! After a crash the spool tells which objects had been started. Each is rebuilt from the same events and put under the
//! same name, where the store accepts it only if it does not exist yet.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Duration, Instant, sleep_until};

use super::circuit::CircuitPermit;
use super::context::Context;
use super::cut::{Cutter, OBJECT_BYTES, weight};
use super::deferred::{ByTarget, Deferred, Load};
use super::describe::Describing;
use super::gathering::{Gathering, Unreadable as UnreadableLines};
use super::intake::Intake;
use super::letters::Letters;
use super::memory::Share;
use super::objects::{Bounds, Objects, SealedObject};
use super::rebuild::{Rebuilt, contains_event, quarantine, rebuild_object, unsendable_letters};
use super::relocate::{self, Moving};
use super::sender::{Admits, Queued, Senders};
use super::small_objects::SmallObjects;
use super::spill::SpilledObject;
use super::target_report::{self, TargetReport};
use super::waiting::{UnsendableEvents, WaitingLetters};
use super::worker::Worker;
use crate::buffers;
use crate::buffers::Payload;
use crate::codec::json;
use crate::codec::{Encoded, NeedsMore, Part, Place, STEP_BYTES};
use crate::config::open_objects;
use crate::delivery::ack::{
    AckGuard, AckTracker, Completed, Owner, Refusal, TrackerEvent, contents_in_order, count, ranges,
};
use crate::delivery::batch::Piece;
use crate::delivery::dead_letter;
use crate::delivery::policy::backoff;
use crate::format::{self, Format, Sealing};
use crate::ids::{EventSet, Verdict};
use crate::log::Level;
use crate::metrics::{self, Record};
use crate::sink::{Class, Fault};
use crate::spool::{
    Content, Durability, Events, History, Note, Pending, Seq, Spool, Stored, Unreadable, Work,
    merge,
};

/// The number of chunks waiting for a retry above which no new ones are read (few in tests, so that one reaches it).
const MAX_RETRYING: usize = if cfg!(test) { 20 } else { 1_000 };
/// The approximate overhead of a chunk in flight, besides its events: its tracker, and its places in the feed.
const CHUNK_BYTES: usize = 512;

/// The fraction of `memory_limit` that references to events waiting for letters may take.
const PARKED_SHARE: usize = 16;

/// The fraction of `memory_limit` that references to deferred events may take.
const DEFERRED_SHARE: usize = 16;
/// The part of `memory_limit` that references take before events are relocated, which leaves fewer.
const RELOCATED_SHARE: usize = 2 * DEFERRED_SHARE;
/// The time without relocation after a failure.
const RELOCATE_BACKOFF: Duration = Duration::from_secs(10);
/// How often slow targets are asked to give back what they hold while others need it.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(1);
/// The fraction of `memory_limit` that rebuilt objects in flight may take, unless there is only one …
const REBUILT_SHARE: usize = 16;
/// … and the time after which one that is not answered counts no more: its folder may hang, and those of others wait.
const REBUILT_PATIENCE: Duration = Duration::from_secs(5);
/// The number of failures with which the waits of objects to be rebuilt begin: other work continues meanwhile.
const REBUILT_FAILURES: u32 = 3;
/// The time after which a request without an answer is certainly over, at the store as well.
const OVER_AFTER: Duration = Duration::from_secs(60);
/// The maximum number of objects that the store is asked about at once.
const MAX_LOOKING: usize = 4;
/// The maximum number of events in a probe: enough to see whether the target accepts them.
const PROBE_EVENTS: u64 = 100;

/// The interval between checks for missing files.
const ABSENT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The events of a chunk to read.
#[derive(Debug)]
enum Wanted {
    /// All except these, which are settled.
    Unsettled(EventSet),
    /// Only these, which were deferred.
    Only(Events),
}

impl Wanted {
    fn contains(&self, event: u32) -> bool {
        match self {
            Wanted::Unsettled(settled) => !settled.contains(event),
            Wanted::Only(events) => contains_event(events, event),
        }
    }
}

/// The events of a chunk that are not to be read again: settled, or in an object that is to be rebuilt.
enum Skip {
    Whole,
    Events(EventSet),
}

impl Default for Skip {
    fn default() -> Self {
        Skip::Events(EventSet::default())
    }
}

/// A chunk in flight.
struct InFlightChunk {
    tracker: Arc<AckTracker>,
    /// Its approximate memory use.
    bytes: usize,
    tries: u32,
    /// Keeps the chunk open before it is read, if objects started before a restart contain its events.
    hold: Option<AckGuard>,
}

/// Deferred events in flight.
struct InFlightLoad {
    load: Load,
    /// The events were deferred, and count as waiting for their target.
    was_deferred: bool,
    tracker: Arc<AckTracker>,
    /// Its approximate memory use.
    bytes: usize,
}

/// An object that was started and is to be rebuilt.
struct PendingObject {
    /// The time before which it is not rebuilt.
    due: Instant,
    pending: Pending,
    /// What it is made by.
    format: Arc<dyn Format>,
    guards: Vec<AckGuard>,
    /// Its target, once known.
    target: Option<Arc<str>>,
    /// The number of failures in a row to rebuild or to store it.
    failures: u32,
    /// It could not be read when it was tried last.
    unreadable: bool,
    /// Some of its events are in a file that is missing and may come back.
    is_partly_away: bool,
    /// The store is asked about it, because less can be made of it now than was begun.
    is_less: bool,
    /// The store was asked since it was last sent, and does not have it.
    is_absent: bool,
    /// What it settles, if what was sent of it last was not all of it.
    settles: Option<Vec<Content>>,
    /// When a request for it was last without a certain answer.
    uncertain: Instant,
    /// The events in it, if it was sent in this run: for their chunks they are settled.
    events: Vec<(Seq, Vec<Range<u32>>)>,
}

impl PendingObject {
    /// Returns the folder in its name, whose trouble is not that of others.
    fn folder(&self) -> &str {
        folder_of(&self.pending.name)
    }

    /// Postpones it after a failure, for longer each time.
    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let failures = REBUILT_FAILURES.saturating_add(self.failures);
        let wait = backoff(Class::Transient, failures, &mut StdRng::from_os_rng());
        self.due = Instant::now() + wait;
    }
}

/// The store's answer about an object of which not all events can be read.
struct LookedUp {
    begun: PendingObject,
    /// Whether the store has it. If not, its name was given up.
    exists: Result<bool, Arc<Fault>>,
}

/// A chunk in memory, which is encoded step by step.
struct Reading {
    chunk: Seq,
    tag: Arc<[u8]>,
    data: Bytes,
    wanted: Arc<Wanted>,
    /// The targets, if these are deferred events.
    targets: BTreeSet<Arc<str>>,
    /// The admission of some of a target's events although its circuit is open.
    probe: Option<(Arc<str>, CircuitPermit)>,
    tracker: Arc<AckTracker>,
    /// Held until all steps are encoded, and what cannot be sent is kept.
    hold: AckGuard,
    /// The start of the next step.
    from: Place,
    /// The maximum memory the step needs.
    needs: usize,
}

impl Reading {
    /// Returns whether these are deferred events of this target.
    fn serves(&self, target: &str) -> bool {
        self.targets.contains(target)
    }

    /// Takes the permit of the probe, if this is its target.
    fn take_probe(&mut self, target: &str) -> Option<CircuitPermit> {
        let probe = self.probe.take_if(|(of, _)| **of == *target);
        probe.map(|(_, probe)| probe)
    }
}

/// An object in flight.
struct InFlightObject {
    /// Its target, which names its sender.
    target: Arc<str>,
    name: Arc<str>,
    /// The chunks and events it is made from.
    contents: Vec<Content>,
    /// What it is made by.
    format: Arc<dyn Format>,
    token: String,
    body: Payload,
    /// The tag of its first event.
    tag: Arc<[u8]>,
    guards: Vec<AckGuard>,
    /// The events in it, if it was rebuilt: its guards then hold their chunks, and have no events.
    events: Vec<(Seq, Vec<Range<u32>>)>,
    /// When it was rebuilt.
    rebuilt: Option<Instant>,
    /// What its end settles, if that is not all of it: some chunks cannot be read any more.
    settles: Option<Vec<Content>>,
    lines: u32,
    why: metrics::Sealed,
    tries: u32,
    /// Whether it may have been stored before.
    may_exist: bool,
    /// When a request for it was last without a certain answer.
    uncertain: Instant,
    /// Whether the last request certainly did not store it.
    is_refused: bool,
}

impl InFlightObject {
    /// Returns its approximate memory use.
    fn bytes(&self) -> usize {
        let guards = self.guards.iter().map(AckGuard::footprint);
        let runs = self.events.iter().map(|(_, runs)| size_of_val(&runs[..]));
        let contents = self.contents.len() * size_of::<Content>();
        OBJECT_BYTES + self.body.len() + guards.sum::<usize>() + runs.sum::<usize>() + contents
    }
}

/// Reads the spool and delivers everything in it.
///
/// A chunk is finished when it is in none of `unknown` (objects that only another version can make), `chunks` (in flight), `skip` (to be read again), `waiting` (dead letters
/// without room), `deferred` (unavailable or slow targets), `loads` (deferred or spilled events in flight) and `gathering`
/// (spilled lines).
pub(super) struct Feed {
    context: Arc<Context>,
    letters: Arc<Letters>,
    cutter: Arc<Cutter>,
    senders: Arc<Senders>,
    intake: Arc<Intake>,
    spool: Arc<Spool>,
    worker: Worker,
    /// Chunks at which an earlier process ended: they are read at their trial, and not in the order of the log.
    on_trial: BTreeSet<Seq>,
    /// The last chunk read, in the order of the log.
    after: Option<Seq>,
    skip: HashMap<Seq, Skip>,
    /// The chunk being encoded.
    reading: Option<Reading>,
    /// For streams: the memory of the next step.
    share: Option<Share>,
    chunks: HashMap<Seq, InFlightChunk>,
    /// The memory of `chunks` and `loads`.
    chunk_bytes: usize,
    /// The events waiting for their target.
    deferred: Deferred,
    /// Whether the last work was a relocation.
    relocated_last: bool,
    /// Whether the last work was to give up records for a target that does not exist.
    gave_up_last: bool,
    /// The time before which nothing is relocated, after a failure.
    relocates_from: Instant,
    /// When slow targets may be asked next to give back what they hold.
    reclaims_from: Instant,
    /// Deferred events in flight, by chunk.
    loads: BTreeMap<(Seq, u64), InFlightLoad>,
    next_load: u64,
    /// Whether the last events read were deferred ones rather than from the log.
    loaded_last: bool,
    /// The chunks to read again, and when.
    again: BTreeSet<(Instant, Seq, u32)>,
    /// The chunks of segments whose file is missing. They block only themselves.
    absent: BTreeMap<Seq, Vec<(Seq, u32)>>,
    /// The time of the next check for such a file.
    absent_until: Instant,
    /// What is logged and exported about targets.
    report: TargetReport,
    /// For blob stores: the open objects.
    objects: Option<Objects>,
    /// The lines of many small open objects, on disk.
    gathering: Gathering,
    /// Whether the last work was a step of a pass.
    passed_last: bool,
    /// Whether the last work was to rebuild an object.
    rebuilt_last: bool,
    small_objects: SmallObjects,
    /// Chunks with events in objects of which this version does not know how they are made.
    unknown: BTreeSet<Seq>,
    /// Objects started before a restart, or before their target became unavailable.
    begun: VecDeque<PendingObject>,
    /// Those that the store is asked about.
    looking: JoinSet<LookedUp>,
    /// Sealed objects that are still being made, in the order in which they were sealed.
    sealing: VecDeque<(SealedObject, Option<CircuitPermit>)>,
    sending: HashMap<u64, InFlightObject>,
    /// Those to send again, and when.
    resend: BTreeSet<(Instant, u64)>,
    sending_bytes: usize,
    /// Pending notes about objects, which must be written.
    notes: JoinSet<()>,
    /// The targets whose shape is not known yet.
    describing: Describing,
    /// The events whose dead letters cannot be kept yet.
    waiting: WaitingLetters,
    /// Whether room for letters was checked since the shutdown began.
    checked_at_stop: bool,
    /// The time before which nothing goes into the quarantine, after a failure.
    quarantined_until: Instant,
    completed: mpsc::UnboundedSender<TrackerEvent>,
    completions: mpsc::UnboundedReceiver<TrackerEvent>,
}

impl Feed {
    pub(super) fn new(
        context: Arc<Context>,
        letters: Arc<Letters>,
        cutter: Arc<Cutter>,
        senders: Arc<Senders>,
        intake: Arc<Intake>,
        history: History,
    ) -> Feed {
        let config = &context.config;
        let objects = context.traits.object_layout.as_ref().map(|objects| {
            Objects::new(
                Arc::clone(cutter.format()),
                Bounds {
                    object_bytes: objects.bounds.bytes,
                    age: objects.bounds.age,
                    bytes: open_objects(config.memory_limit),
                },
            )
        });
        let (dir, limit) = match &config.spool {
            Some(spool) => (spool.dir.clone(), spool.limit),
            None => Default::default(),
        };
        let gathering = Gathering::new(dir, limit, config.memory_limit);
        let (completed, completions) = mpsc::unbounded_channel();
        let mut feed = Feed {
            spool: Arc::clone(intake.spool()),
            worker: Worker::start(Arc::clone(intake.spool()), history.suspects.clone()),
            on_trial: BTreeSet::new(),
            after: None,
            skip: HashMap::new(),
            reading: None,
            share: None,
            chunks: HashMap::new(),
            chunk_bytes: 0,
            deferred: Deferred::new(intake.limit().watched_from()),
            relocated_last: false,
            gave_up_last: false,
            relocates_from: Instant::now(),
            reclaims_from: Instant::now(),
            loads: BTreeMap::new(),
            next_load: 0,
            loaded_last: false,
            again: BTreeSet::new(),
            absent: BTreeMap::new(),
            absent_until: Instant::now(),
            report: TargetReport::new(Instant::now()),
            objects,
            gathering,
            passed_last: false,
            rebuilt_last: false,
            small_objects: SmallObjects::new(Instant::now()),
            unknown: BTreeSet::new(),
            begun: VecDeque::new(),
            looking: JoinSet::new(),
            sealing: VecDeque::new(),
            sending: HashMap::new(),
            resend: BTreeSet::new(),
            sending_bytes: 0,
            notes: JoinSet::new(),
            describing: Describing::default(),
            waiting: WaitingLetters::new(Instant::now()),
            checked_at_stop: false,
            quarantined_until: Instant::now(),
            completed,
            completions,
            context,
            letters,
            cutter,
            senders,
            intake,
        };
        feed.resume_run(history);
        feed
    }

    /// Resumes the work of an earlier run.
    fn resume_run(&mut self, history: History) {
        let (mut requests, mut lines) = (0u64, 0u64);
        for pending in history.pending {
            if self.objects.is_some() && !pending.token.is_empty() {
                self.resume_object(pending);
                continue;
            }
            requests += 1;
            lines += pending.lines;
            // The records that were in flight are sent again, in other requests.
            let released = Note::Ended {
                batch: pending.batch,
                delivered: Some(Vec::new()),
            };
            self.note(released, Durability::Written, Vec::new());
        }
        let records = &self.context.metrics.records;
        records.add(Record::Ambiguous, lines);
        if requests > 0 {
            self.context.log.write(
                Level::Warn,
                &format!(
                    "{lines} records in {requests} requests were in flight when the last run ended, and their \
                     outcome is unknown: they are sent again and may be duplicated"
                ),
            );
        }
        self.postpone_suspects();
    }

    /// Postpones the chunks at which an earlier process ended until after all others. Condemned ones are set aside at
    /// once.
    fn postpone_suspects(&mut self) {
        let mut postponed = BTreeSet::new();
        for suspect in self.worker.suspects() {
            let chunk = suspect.chunk;
            let due = match suspect.is_condemned() {
                true => Instant::now(),
                false => self.worker.trial(),
            };
            if !suspect.is_condemned() {
                postponed.insert(chunk);
                self.context.log.write(
                    Level::Info,
                    &format!(
                        "an earlier run ended while chunk {chunk} of the spool was being encoded: it is retried alone after \
                         all others, and set aside if the process ends again"
                    ),
                );
            }
            if !matches!(self.skip.get(&chunk), Some(Skip::Whole)) {
                self.on_trial.insert(chunk);
                self.again.insert((due, chunk, 0));
            }
        }
        for PendingObject { due, pending, .. } in &mut self.begun {
            let mut chunks = pending.contents.iter().map(|content| content.chunk);
            if chunks.any(|chunk| postponed.contains(&chunk)) {
                *due = self.worker.trial();
            }
        }
    }

    /// Retries the suspects at once, after everything else, because the output stops before their trial; nothing is
    /// held against them. Returns whether there were any.
    fn try_suspects_now(&mut self, now: Instant) -> bool {
        let trial = self.worker.trial();
        let waiting = |(at, ..): &(Instant, Seq, u32)| *at == trial;
        let waiting: Vec<_> = self.again.extract_if(.., waiting).collect();
        let mut hurried = !waiting.is_empty();
        let chunks = waiting.into_iter();
        self.again
            .extend(chunks.map(|(_, chunk, tries)| (now, chunk, tries)));
        for begun in self.begun.iter_mut().filter(|begun| begun.due == trial) {
            begun.due = now;
            hurried = true;
        }
        hurried && now < trial
    }

    /// Resumes an object that was started: its events belong to it alone, and its chunks are not finished before it is.
    fn resume_object(&mut self, pending: Pending) {
        let format = self.format_of(&pending);
        if format.is_none() {
            self.context.log.write(
                Level::Error,
                &format!(
                    "the object {} was begun by another version of Ferry, or by a build with other formats, which made it by \
                     '{}': its {} records stay in the spool until a version that knows this runs",
                    pending.name,
                    pending.recipe.as_deref().unwrap_or_default(),
                    pending.lines
                ),
            );
        }
        let mut guards = Vec::new();
        let mut is_partly_away = false;
        for content in &pending.contents {
            if !self.spool.holds(content.chunk) {
                is_partly_away |= self.spool.may_come_back(content.chunk);
                continue;
            }
            match (&content.events, self.skip.entry(content.chunk).or_default()) {
                (Events::Runs(runs), Skip::Events(skip)) => skip.extend(runs),
                (_, skip) => *skip = Skip::Whole,
            }
            if format.is_none() {
                self.unknown.insert(content.chunk);
                continue;
            }
            let completed = &self.completed;
            let in_flight = self.chunks.entry(content.chunk).or_insert_with(|| {
                let owner = Owner::Chunk(content.chunk);
                let tracker = AckTracker::of_unread_chunk(owner, completed.clone());
                let tracker = Arc::new(tracker);
                InFlightChunk {
                    hold: Some(tracker.hold()),
                    tracker,
                    bytes: 0,
                    tries: 0,
                }
            });
            // For readers of the chunk its events are settled: this object is sent until it is stored.
            guards.push(in_flight.tracker.hold());
        }
        if let Some(format) = format {
            // A put of the last run may still be under way when the store is asked.
            let wait = if is_partly_away {
                OVER_AFTER
            } else {
                Duration::ZERO
            };
            self.begun.push_back(PendingObject {
                due: Instant::now() + wait,
                pending,
                format,
                guards,
                target: None,
                failures: 0,
                unreadable: false,
                is_partly_away,
                is_less: false,
                is_absent: false,
                settles: None,
                uncertain: Instant::now(),
                events: Vec::new(),
            });
        }
    }

    /// Returns what an object that had begun is made by, whatever the configuration says today. `None`: this version
    /// does not know it.
    fn format_of(&self, pending: &Pending) -> Option<Arc<dyn Format>> {
        match &pending.recipe {
            Some(recipe) => format::parse(recipe),
            None => {
                let today = self.context.config.compression;
                Some(format::of_name(&pending.name, today))
            }
        }
    }

    /// Runs until the output stops and nothing is left to send.
    pub(super) async fn run(mut self) {
        let mut draining = self.context.draining.subscribe();
        loop {
            while let Ok(event) = self.completions.try_recv() {
                self.handle(event);
            }
            while self.notes.try_join_next().is_some() {}
            while let Some(looked) = self.looking.try_join_next() {
                // An error only if the runtime is shutting down.
                if let Ok(looked) = looked {
                    self.looked_up(looked);
                }
            }
            let now = Instant::now();
            while let Some(&(at, batch)) = self.resend.first()
                && at <= now
            {
                self.resend.pop_first();
                self.enqueue_object(batch, None);
            }
            self.defer_opened();
            self.limit_targets();
            self.report.update(
                now,
                &self.deferred,
                &self.senders,
                &self.context,
                &self.intake,
            );
            self.take_late(now);
            while self
                .describing
                .answered(&self.context)
                .now_or_never()
                .is_some()
            {}
            let stopping = *draining.borrow_and_update();
            if stopping && !std::mem::replace(&mut self.checked_at_stop, stopping) {
                self.waiting.check_now(now);
                // Targets that have recovered get their events before the end.
                self.senders.hurry_probes();
                let trial = self.worker.trial();
                for begun in self.begun.iter_mut().filter(|it| it.due != trial) {
                    begun.due = begun.due.min(now);
                }
            }
            if self.waiting.due().is_some_and(|due| due <= now) {
                self.check_letter_room(now).await;
            }
            self.quarantine_if_blocking(now).await;
            self.unpin(now);
            if self.absent_until <= now || stopping {
                self.absent_until = now + ABSENT_CHECK_INTERVAL;
                self.retry_absent(now);
            }
            self.seal_due(now).await;
            self.context.metrics.spooled.set(self.held() as f64);
            let deferred = self.deferred.records();
            self.context.metrics.deferred.set(deferred as f64);
            let spool = Arc::clone(&self.spool);
            let more = spool.more();
            if self.step_sealing().await {
                continue;
            }
            let room = self.has_room();
            let reclaim = self.reclaim(now, room);
            let deferred = match self.reading {
                Some(_) => Err(None),
                None => self.next_deferred(now),
            };
            if room && self.advance(now, deferred.as_ref().ok()).await {
                continue;
            }
            self.worker.rest();
            let others_read = self.reading.is_none() && self.spool.is_read(self.after);
            if stopping && others_read && self.try_suspects_now(now) {
                continue;
            }
            let all_read = self.reading.is_none()
                && !self.waiting.is_trying()
                && self.spool.is_read(self.after);
            if stopping && all_read {
                if self.seal_all(now).await {
                    continue;
                }
                if self.is_done() {
                    self.log_undeliverable();
                    // Nothing else has to be recorded.
                    self.worker.finish().await;
                    // The senders keep their shared state for as long as they may receive something.
                    self.senders.close();
                    return;
                }
            }
            let due = self.objects.as_ref().and_then(Objects::due);
            let pass = self.pass_due().filter(|at| *at > now);
            let again = self.again.first().map(|(at, ..)| *at).filter(|_| room);
            let begun = self.begun_due(now).filter(|_| room);
            let deferred = deferred.err().flatten().filter(|_| room);
            let resend = self.resend.first().map(|(at, _)| *at);
            let absent = (!self.absent.is_empty()).then_some(self.absent_until);
            let trial = (self.worker.has_many_suspects() && now < self.worker.trial())
                .then_some(self.worker.trial());
            let wakes = [
                reclaim,
                due,
                pass,
                again,
                begun,
                resend,
                absent,
                self.waiting.due(),
                trial,
                deferred,
                self.report.due(&self.deferred),
                self.senders.missing().next_due(now),
            ];
            let wake = wakes.into_iter().flatten().min();
            let context = Arc::clone(&self.context);
            let memory = context.memory.reserve(self.needs());
            let senders = Arc::clone(&self.senders);
            tokio::select! {
                biased;
                Some(event) = self.completions.recv() => self.handle(event),
                () = senders.changed() => {}
                () = self.describing.answered(&context) => {}
                Some(_) = self.notes.join_next(), if stopping => {}
                Some(looked) = self.looking.join_next(), if !self.looking.is_empty() => {
                    // An error only if the runtime is shutting down.
                    if let Ok(looked) = looked {
                        self.looked_up(looked);
                    }
                }
                Ok(()) = draining.changed() => {}
                () = more, if room && self.may_read_on() => {}
                share = memory, if !room && self.objects.is_none() => {
                    self.share = self.reading.is_some().then_some(share);
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    /// Returns the memory the feed holds, except for pieces of streams, which have reservations of their own.
    fn held(&self) -> usize {
        let objects = self.objects.as_ref().map_or(0, Objects::bytes);
        let reading = self.reading.as_ref().map_or(0, |it| it.data.len());
        let waiting = self.deferred.bytes() + self.gathering.bytes();
        self.sending_bytes + objects + reading + self.chunk_bytes + waiting
    }

    /// For streams: returns the memory needed to continue.
    fn needs(&self) -> usize {
        match &self.reading {
            Some(reading) => reading.needs,
            None => self.spool.peek(self.after).map_or(0, |(_, bytes)| bytes),
        }
    }

    fn has_room(&mut self) -> bool {
        let limit = self.context.config.memory_limit;
        match &mut self.objects {
            Some(objects) => {
                let held = self.sending_bytes + objects.bytes() + self.chunk_bytes;
                let needs = self.reading.as_ref().map_or(0, |reading| reading.needs);
                if needs > STEP_BYTES && held + needs > limit {
                    // A single event that may exceed the free memory goes when nothing else is held.
                    if self.sending.is_empty() && self.sealing.is_empty() {
                        let sealed = objects.seal_for_room();
                        self.dispatch(sealed);
                    }
                    return self.sending.is_empty() && self.sealing.is_empty();
                }
                // Small ones that cannot be spilled yet wait for the pass, as the store takes its objects.
                if objects.wants_spill() && self.gathering.is_full() {
                    let sent = self.sending_bytes + self.chunk_bytes;
                    return self.gathering.is_passing()
                        && (sent <= open_objects(limit) || self.sending.is_empty());
                }
                // A sealed object releases its bytes only once it is stored.
                held <= open_objects(limit) || self.sending.is_empty()
            }
            None if self.share.is_some() => true,
            None => {
                let share = self.context.memory.reserve(self.needs()).now_or_never();
                let room = share.is_some();
                self.share = share.filter(|_| self.reading.is_some());
                room
            }
        }
    }

    /// Whether deferred events of a chunk are in flight.
    fn is_loaded(&self, chunk: Seq) -> bool {
        let mut loads = self.loads.range((chunk, 0)..=(chunk, u64::MAX));
        loads.next().is_some()
    }

    /// Whether the spool is half full, and its oldest chunk is in flight.
    fn oldest_is_in_flight(&self) -> bool {
        let is_in_flight = |chunk| self.chunks.contains_key(&chunk) || self.is_loaded(chunk);
        self.spool.usage().is_half_full()
            && self
                .spool
                .peek(None)
                .is_some_and(|(oldest, _)| is_in_flight(oldest))
    }

    /// Asks slow targets to give back what they hold if others wait for it: for memory, or for the oldest chunk, which keeps
    /// a half-full spool from removing segments. Returns when to ask again.
    fn reclaim(&mut self, now: Instant, room: bool) -> Option<Instant> {
        if self.senders.has_one_target() || (room && !self.oldest_is_in_flight()) {
            return None;
        }
        if self.reclaims_from <= now {
            self.reclaims_from = now + RECLAIM_INTERVAL;
            self.senders.reclaim();
        }
        Some(self.reclaims_from)
    }

    /// Returns whether new chunks may be read. Those waiting for a retry continue in any case.
    fn may_read_on(&self) -> bool {
        let many = self.worker.has_many_suspects();
        let hurried = *self.context.draining.borrow();
        self.again.len() < MAX_RETRYING
            && (hurried
                || self.deferred.bytes() <= self.context.config.memory_limit / DEFERRED_SHARE)
            && (!many || hurried || Instant::now() >= self.worker.trial())
    }

    fn is_done(&self) -> bool {
        self.chunks.is_empty()
            && self.gathering.is_empty()
            && self.begun.is_empty()
            && self.looking.is_empty()
            && self.deferred.targets() == 0
            && self.loads.is_empty()
            && self.again.is_empty()
            && self.sealing.is_empty()
            && self.sending.is_empty()
            && self.notes.is_empty()
    }

    /// Does the next piece of work: the chunk being encoded, an object to rebuild, a chunk due for a retry, deferred
    /// events of the target `deferred`, or a new chunk. Returns false if there is none.
    async fn advance(&mut self, now: Instant, deferred: Option<&Arc<str>>) -> bool {
        if let Some(reading) = self.reading.take() {
            self.step(reading).await;
            return true;
        }
        let due = self.next_begun(now);
        // In turn with everything else: it reads all chunks that the object is made from.
        if !std::mem::replace(&mut self.rebuilt_last, false)
            && let Some(begun) = due.and_then(|due| self.begun.remove(due))
        {
            self.rebuilt_last = true;
            return self.rebuild(begun).await;
        }
        // What is read has no place while nothing can be spilled.
        let is_full = self.gathering.is_full();
        let has_place = !(is_full && self.gathering.is_passing());
        if let Some(&(at, chunk, tries)) = self.again.first()
            && at <= now
            && has_place
        {
            self.again.pop_first();
            self.start_chunk(chunk, tries).await;
            return true;
        }
        if let Some(chunk) = self.waiting.next_that_fits(now) {
            self.write_letters(chunk).await;
            return true;
        }
        if !std::mem::replace(&mut self.relocated_last, false)
            && let Some(chunks) = self.to_relocate(now)
        {
            self.relocated_last = true;
            self.relocate(chunks, now).await;
            return true;
        }
        // In turn with reading, unless what would be read has no place.
        if (!std::mem::replace(&mut self.passed_last, false) || is_full) && self.step_pass().await {
            self.passed_last = true;
            return true;
        }
        let next = self.spool.peek(self.after);
        let next = next.filter(|_| has_place && self.may_read_on());
        let gives_way = std::mem::replace(&mut self.gave_up_last, false)
            && (next.is_some() || deferred.is_some());
        if !gives_way && let Some((target, fault)) = self.to_give_up(now) {
            self.gave_up_last = true;
            self.give_up(target, fault, now).await;
            return true;
        }
        if (!self.loaded_last || next.is_none())
            && let Some(target) = deferred
        {
            self.loaded_last = true;
            self.load(target, now).await;
            return true;
        }
        self.loaded_last = false;
        let Some((chunk, _)) = next else {
            // The pass goes on although it was its turn before: nothing else would wake it.
            return self.step_pass().await;
        };
        self.after = Some(chunk);
        // The targets of relocated events are known: they are deferred already.
        if self.on_trial.remove(&chunk) || self.spool.is_relocated(chunk) {
            return true;
        }
        if !self.pass_whole(chunk) {
            self.start_chunk(chunk, 0).await;
        }
        true
    }

    /// Returns whether a chunk needs no reading: all of its events are in objects that were started.
    fn pass_whole(&mut self, chunk: Seq) -> bool {
        let Some(Skip::Whole) = self.skip.get(&chunk) else {
            return false;
        };
        self.skip.remove(&chunk);
        if let Some(hold) = self.chunks.get_mut(&chunk).and_then(|c| c.hold.take()) {
            hold.keep();
        }
        true
    }

    /// Whether a chunk was started before, in the order of the log.
    fn is_in_hand(&self, chunk: Seq) -> bool {
        let is_read = |it: &InFlightChunk| it.hold.is_none();
        let mut absent = self.absent.values().flatten();
        self.chunks.get(&chunk).is_some_and(is_read)
            || self.again.iter().any(|(_, again, _)| *again == chunk)
            || absent.any(|(absent, _)| *absent == chunk)
            || self.deferred.holds(chunk)
            || self.waiting.holds(chunk)
            || self.is_loaded(chunk)
            || self.gathering.holds(chunk)
    }

    /// Reads chunks that are behind those read last, since their file was missing.
    fn take_late(&mut self, now: Instant) {
        for chunk in self.spool.take_late(self.after) {
            // The targets of relocated events are known: they are deferred already.
            let is_known = self.on_trial.remove(&chunk)
                || self.spool.is_relocated(chunk)
                || self.is_in_hand(chunk);
            if !is_known && !self.pass_whole(chunk) {
                self.again.insert((now, chunk, 0));
            }
        }
    }

    /// Reads a chunk and starts encoding it.
    async fn start_chunk(&mut self, chunk: Seq, tries: u32) {
        let stored = match self.worker.read(chunk, Work::Deliver).await {
            Ok(stored) => stored,
            Err(Unreadable::Corrupt { words, kept }) => {
                self.intake.record_corrupt(&words, kept);
                return self.skip_chunk(chunk);
            }
            Err(Unreadable::Finished) => return self.skip_chunk(chunk),
            Err(Unreadable::Missing(segment)) => {
                self.absent.entry(segment).or_default().push((chunk, tries));
                return;
            }
            Err(Unreadable::Disk(error)) => {
                self.intake.log_disk_error(&error);
                self.retry_later(chunk, tries);
                return;
            }
        };
        let mut settled = match self.skip.remove(&chunk).unwrap_or_default() {
            Skip::Events(settled) => settled,
            Skip::Whole => EventSet::default(),
        };
        settled.extend(&self.spool.settled(chunk));
        let completed = &self.completed;
        let in_flight = self.chunks.entry(chunk).or_insert_with(|| InFlightChunk {
            tracker: Arc::new(AckTracker::of_chunk(
                &stored.tag,
                settled.clone(),
                Owner::Chunk(chunk),
                completed.clone(),
            )),
            bytes: 0,
            tries,
            hold: None,
        });
        in_flight.tries = tries;
        in_flight.tracker.set_tag(&stored.tag);
        let tracker = Arc::clone(&in_flight.tracker);
        let hold = in_flight.hold.take().unwrap_or_else(|| tracker.hold());
        tracker.settle_all(&settled);
        let bytes = CHUNK_BYTES + stored.tag.len();
        self.chunk_bytes += bytes;
        in_flight.bytes += bytes;
        self.begin_reading(chunk, stored, Wanted::Unsettled(settled), tracker, hold);
    }

    fn begin_reading(
        &mut self,
        chunk: Seq,
        stored: Stored,
        wanted: Wanted,
        tracker: Arc<AckTracker>,
        hold: AckGuard,
    ) -> &mut Reading {
        let (encoding, from) = (self.cutter.encoding(), Place::default());
        let needs = encoding.most(&stored.tag, &stored.data, from);
        self.reading.insert(Reading {
            chunk,
            tag: stored.tag.into(),
            data: stored.data,
            wanted: Arc::new(wanted),
            targets: BTreeSet::new(),
            probe: None,
            tracker,
            hold,
            from,
            needs,
        })
    }

    /// Returns a target that does not exist, whose records become dead letters, and the answer about it. While other
    /// letters wait, its records do, too; and if it is time to ask whether it exists now, that comes first.
    fn to_give_up(&self, now: Instant) -> Option<(Arc<str>, Arc<Fault>)> {
        if !self.waiting.is_empty() {
            return None;
        }
        let waits =
            |target: &Arc<str>| self.deferred.waits_for(target) && !self.may_ask(target, now);
        self.senders.missing().given_up(now, waits)
    }

    /// Writes dead letters for the oldest chunk with events for a target that does not exist.
    async fn give_up(&mut self, target: Arc<str>, fault: Arc<Fault>, now: Instant) {
        let Some(load) = self.deferred.take(&target, u64::MAX, now) else {
            return;
        };
        self.context.log.trouble_with(
            Level::Warn,
            "missing_target",
            &target,
            &format!(
                "{} does not exist: its records become dead letters (missing_target); {fault}",
                self.senders.describe(&target)
            ),
        );
        let refusal = Some(Arc::new(Refusal { target, fault }));
        for (_, events) in load.targets {
            let unsendable = UnsendableEvents {
                events,
                refusal: refusal.clone(),
                needs: 0,
            };
            self.waiting.add(load.chunk, unsendable, now);
        }
        self.write_letters(load.chunk).await;
    }

    /// Whether a target may be asked now, with a request, whether it exists.
    fn may_ask(&self, target: &str, now: Instant) -> bool {
        match self.senders.admits(target) {
            Admits::All => true,
            Admits::Probe(at) => at <= now,
            Admits::Nothing => false,
        }
    }

    /// Returns the target that gets the records of a target: another one if it does not exist, unless it is time to ask
    /// whether it does now.
    fn reroute(&self, target: &Arc<str>) -> Arc<str> {
        let now = Instant::now();
        let fallback = self.senders.missing().fallback(target, now);
        let Some(fallback) = fallback.filter(|_| !self.may_ask(target, now)) else {
            return Arc::clone(target);
        };
        self.context.log.trouble_with(
            Level::Warn,
            "missing_target",
            target,
            &format!(
                "{} does not exist: its records are sent to {} (missing_target)",
                self.senders.describe(target),
                self.senders.describe(fallback)
            ),
        );
        Arc::clone(fallback)
    }

    /// Returns when deferred events of a target may be sent to the one that gets them instead, if there is one.
    fn fallback_admits(&self, target: &str, now: Instant) -> Option<Instant> {
        let fallback = self.senders.missing().fallback(target, now)?;
        let admits = self.senders.admits(fallback) == Admits::All
            && !self.describing.is_unknown(fallback)
            && self.may_load(fallback);
        admits.then_some(now)
    }

    /// Reads deferred events of a target again and starts encoding them.
    async fn load(&mut self, target: &Arc<str>, now: Instant) {
        let probe = match self.senders.try_admit(target) {
            Some(probe) => probe,
            None if self.fallback_admits(target, now).is_some() => None,
            None => return,
        };
        let most = match probe {
            Some(_) => PROBE_EVENTS,
            None => u64::MAX,
        };
        let Some(mut load) = self.deferred.take(target, most, now) else {
            return;
        };
        let mut deferred = std::mem::take(&mut self.deferred);
        deferred.take_beside(&mut load, now, |other| {
            self.senders.admits(other) == Admits::All
                && self.may_load(other)
                && !self.describing.is_unknown(other)
        });
        self.deferred = deferred;
        let chunk = load.chunk;
        let stored = match self.worker.read(chunk, Work::Deliver).await {
            Ok(stored) => stored,
            Err(Unreadable::Corrupt { words, kept }) => {
                self.intake.record_corrupt(&words, kept);
                self.deferred.forget(chunk);
                return self.skip_chunk(chunk);
            }
            Err(Unreadable::Finished) => return self.deferred.forget(chunk),
            Err(Unreadable::Missing(_)) => return self.deferred.put_back_unreadable(load),
            Err(Unreadable::Disk(error)) => {
                self.intake.log_disk_error(&error);
                return self.deferred.put_back_unreadable(load);
            }
        };
        let number = self.next_load;
        self.next_load += 1;
        let owner = Owner::Deferred {
            load: number,
            chunk,
        };
        let completed = self.completed.clone();
        let tracker = AckTracker::of_chunk(&stored.tag, EventSet::default(), owner, completed);
        let tracker = Arc::new(tracker);
        let hold = tracker.hold();
        let bytes = CHUNK_BYTES + stored.tag.len();
        self.chunk_bytes += bytes;
        let targets = load.targets.iter();
        let targets = targets.map(|(target, _)| Arc::clone(target)).collect();
        let wanted = Wanted::Only(Events::Runs(load.events()));
        let reading = self.begin_reading(chunk, stored, wanted, Arc::clone(&tracker), hold);
        (reading.targets, reading.probe) =
            (targets, probe.map(|probe| (Arc::clone(target), probe)));
        self.deferred.begin(&load);
        let in_flight = InFlightLoad {
            load,
            was_deferred: true,
            tracker,
            bytes,
        };
        self.loads.insert((chunk, number), in_flight);
    }

    /// Returns the chunks whose deferred events are to be relocated: the oldest, while they keep the spool from
    /// removing segments or while there are too many references.
    fn to_relocate(&self, now: Instant) -> Option<Vec<Seq>> {
        if now < self.relocates_from
            || self.deferred.targets() == 0
            || *self.context.draining.borrow()
        {
            return None;
        }
        let limit = self.context.config.memory_limit;
        // Tests with little memory relocate all the time.
        let few = match cfg!(test) && limit < 16_000_000 {
            true => 0,
            false => limit / RELOCATED_SHARE,
        };
        if self.deferred.bytes() > few {
            // Relocated chunks already have few references for much data.
            let fresh = |chunk: &Seq| !self.spool.is_relocated(*chunk);
            let chunks = self.deferred.chunks().filter(fresh);
            let chunks: Vec<Seq> = chunks.take(relocate::MAX_CHUNKS).collect();
            if !chunks.is_empty() {
                return Some(chunks);
            }
        }
        let usage = self.spool.usage();
        // If most of the log was relocated before, writing it again would free little.
        if !usage.is_half_full() || usage.relocated > usage.log_bytes() / 4 * 3 {
            return None;
        }
        let (oldest, _) = self.spool.peek(None)?;
        if !self.is_only_deferred(oldest) {
            return None;
        }
        let chunks = self.deferred.chunks();
        let chunks = chunks.filter(|chunk| self.is_only_deferred(*chunk));
        Some(chunks.take(relocate::MAX_CHUNKS).collect())
    }

    /// Whether a chunk would be finished if its deferred events were relocated.
    fn is_only_deferred(&self, chunk: Seq) -> bool {
        self.deferred.holds(chunk) && self.is_settled_but_for_deferred(chunk)
    }

    /// Writes deferred events of chunks again at the log's head.
    async fn relocate(&mut self, chunks: Vec<Seq>, now: Instant) {
        let taken = chunks.iter();
        let taken: Vec<_> = taken
            .map(|chunk| (*chunk, self.deferred.take_chunk(*chunk)))
            .collect();
        let (spool, of) = (Arc::clone(&self.spool), taken.clone());
        // A full spool has room for a sixteenth of its limit.
        let room = usize::try_from(self.spool.usage().limit / 32).unwrap_or(usize::MAX);
        let bytes = relocate::FRAME_BYTES.min(room);
        let gather = move |alone| relocate::gather(&spool, of, bytes, alone);
        let gathered = self.worker.work_on_some(&chunks, Work::Deliver, gather);
        let gathered = gathered.await;
        self.worker.rest();
        let Ok(gathered) = gathered else {
            self.put_back(taken);
            self.relocates_from = now + RELOCATE_BACKOFF;
            return;
        };
        self.put_back(gathered.left);
        if let Some(error) = gathered.failed {
            self.intake.log_disk_error(&error);
            self.relocates_from = now + RELOCATE_BACKOFF;
        }
        for (chunk, words, kept) in gathered.corrupt {
            self.intake.record_corrupt(&words, kept);
            self.skip_chunk(chunk);
        }
        let frames = gathered.frames.into_iter().map(|moving| {
            let spool = Arc::clone(&self.spool);
            async move {
                let Moving {
                    relocation,
                    targets,
                    bytes,
                    from,
                } = moving;
                (spool.relocate(relocation).await, targets, bytes, from)
            }
        });
        // Together, so that one fsync serves all.
        for (relocated, targets, bytes, from) in join_all(frames).await {
            match relocated {
                Ok(chunk) => {
                    for ((target, events), bytes) in targets.iter().zip(bytes) {
                        self.deferred.measure(target, count(events), bytes);
                    }
                    self.deferred.add_all(chunk, &targets);
                    for (origin, _) in from {
                        self.finish_if_settled(origin);
                    }
                }
                Err(error) => {
                    self.put_back(from);
                    self.relocates_from = now + RELOCATE_BACKOFF;
                    // A full spool is logged by the intake.
                    if error.kind() != std::io::ErrorKind::QuotaExceeded {
                        self.intake.log_disk_error(&error);
                    }
                }
            }
        }
    }

    fn put_back(&mut self, chunks: Vec<(Seq, ByTarget)>) {
        for (chunk, targets) in chunks {
            self.deferred.add_all(chunk, &targets);
        }
    }

    /// Returns the next target whose deferred events may be read, or otherwise when that will be.
    fn next_deferred(&self, now: Instant) -> Result<Arc<str>, Option<Instant>> {
        if self.deferred.targets() == 0 {
            return Err(None);
        }
        self.deferred.next_target(now, |target| {
            if let Some(at) = self.fallback_admits(target, now) {
                return Some(at);
            }
            if self.describing.is_unknown(target) {
                return None;
            }
            match self.senders.admits(target) {
                Admits::All => self.may_load(target).then_some(now),
                // A pending object goes first: a probe whose answer is lost then leaves no further one behind.
                Admits::Probe(at) => {
                    let of = |begun: &PendingObject| {
                        !begun.unreadable && begun.target.as_ref() == Some(target)
                    };
                    (!self.begun.iter().any(of)).then_some(at)
                }
                Admits::Nothing => None,
            }
        })
    }

    /// Returns whether there is memory to read more for a target.
    fn may_load(&self, target: &str) -> bool {
        // Objects are sent one by one, as fast as the store accepts them.
        self.context.traits.object_layout.is_some() || self.senders.may_load(target)
    }

    /// Returns the bytes of lines that may be sent to a target now, while the others of a step get `planned`; if this
    /// is not 0, at least one line may be sent. The other lines wait. Deferred events go first.
    /// `own` is the target that the lines are for, if another one gets them.
    fn room(&self, target: &Arc<str>, own: &Arc<str>, planned: usize, reading: &Reading) -> usize {
        if self.senders.has_one_target() {
            return usize::MAX;
        }
        let its_turn =
            reading.serves(target) || reading.serves(own) || !self.deferred.waits_for(own);
        if !its_turn || self.senders.admits(target) != Admits::All {
            return 0;
        }
        match self.context.traits.object_layout {
            Some(_) if self.senders.is_over(target) => 0,
            Some(_) => usize::MAX,
            None => self.senders.room(target, planned),
        }
    }

    /// Defers the events of a part until their target accepts them.
    fn defer(&mut self, target: &Arc<str>, part: Part, reading: &Reading) {
        self.defer_events(target, part.events, reading);
        buffers::give(part.text);
    }

    fn defer_events(&mut self, target: &Arc<str>, mut events: Vec<u32>, reading: &Reading) {
        events.sort_unstable();
        self.intake.limit().note_tag(target, &reading.tag);
        self.deferred.add(target, reading.chunk, &ranges(&events));
        reading.tracker.settle(&events);
    }

    /// Returns the number of a step's bytes and of the bytes of text that they became. `None` if nothing is to be measured:
    /// deferred events were measured when they were read first.
    fn measured(
        &self,
        reading: &Reading,
        next: Option<Place>,
        parts: &[Part],
    ) -> Option<(u64, u64)> {
        if self.senders.has_one_target() || !reading.targets.is_empty() {
            return None;
        }
        let text: usize = parts.iter().map(|part| part.text.len()).sum();
        let end = next.map_or(reading.data.len(), |next| next.offset());
        let bytes = match &*reading.wanted {
            Wanted::Unsettled(settled) if settled.is_empty() => end - reading.from.offset(),
            // How many of the bytes are those of unsettled events is not known.
            _ => text,
        };
        Some((bytes as u64, text as u64))
    }

    /// Counts the lines of a part for [`Feed::limit_targets`]; `of_text` is the number of the chunk's bytes and of the bytes
    /// of text that they became.
    fn measure(&mut self, target: &Arc<str>, part: &Part, (bytes, of_text): (u64, u64)) {
        let share = u128::from(bytes) * part.text.len() as u128 / u128::from(of_text.max(1));
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        self.deferred
            .measure(target, part.events.len() as u64, share);
    }

    /// Bounds what waits for each target: beyond that, flushes are refused.
    fn limit_targets(&mut self) {
        for target in self.deferred.take_changed() {
            let waiting = self.deferred.backlog(&target);
            let limit = self.intake.limit();
            let (before, now) = limit.update(&target, waiting.bytes);
            if before != now {
                let trouble = self.senders.trouble(&target);
                let name = self.senders.describe(&target);
                target_report::log_standing(
                    &self.context.log,
                    limit,
                    &target,
                    &name,
                    waiting,
                    (before, now),
                    trouble.as_ref(),
                );
            }
        }
    }

    /// Defers the open objects of targets that became unavailable.
    fn defer_opened(&mut self) {
        for target in self.senders.take_opened() {
            if let Some(objects) = &mut self.objects
                && !self.senders.has_one_target()
            {
                objects.defer(&target);
            }
        }
    }

    /// Returns when rebuilt objects in flight leave room for another: they are bounded, apart from those that may hang.
    fn rebuilt_room(&self, now: Instant) -> Instant {
        let share = self.context.config.memory_limit / REBUILT_SHARE;
        let rebuilt = self.sending.values().filter_map(|sending| {
            let until = sending.rebuilt? + REBUILT_PATIENCE;
            (until > now).then(|| (until, sending.bytes()))
        });
        let mut rebuilt: Vec<(Instant, usize)> = rebuilt.collect();
        rebuilt.sort_unstable();
        let mut bytes: usize = rebuilt.iter().map(|(_, bytes)| bytes).sum();
        let mut from = now;
        for (until, of) in rebuilt {
            if bytes < share {
                break;
            }
            bytes -= of;
            from = until;
        }
        from
    }

    /// Returns when the next object may be rebuilt, if that is known.
    fn begun_due(&self, now: Instant) -> Option<Instant> {
        let due = self.begun.iter().filter_map(|begun| self.is_due(begun));
        due.min().map(|due| due.max(self.rebuilt_room(now)))
    }

    /// Returns the next object to rebuild: if possible of a folder of which none is in flight, so that no folder waits for
    /// another.
    fn next_begun(&self, now: Instant) -> Option<usize> {
        let is_due = |begun: &PendingObject| self.is_due(begun).is_some_and(|due| due <= now);
        let first = self.begun.iter().position(is_due)?;
        if self.rebuilt_room(now) > now {
            return None;
        }
        let in_flight = self.sending.values().filter(|it| it.rebuilt.is_some());
        let busy: HashSet<&str> = in_flight.map(|it| folder_of(&it.name)).collect();
        let is_next = |begun: &PendingObject| !busy.contains(begun.folder()) && is_due(begun);
        self.begun.iter().position(is_next).or(Some(first))
    }

    /// Returns when an object may be rebuilt. `None`: not before something changes.
    fn is_due(&self, begun: &PendingObject) -> Option<Instant> {
        if begun.is_partly_away && self.looking.len() >= MAX_LOOKING {
            return None;
        }
        let Some(target) = &begun.target else {
            return Some(begun.due);
        };
        match self.senders.admits(target) {
            Admits::All => Some(begun.due),
            Admits::Probe(at) => Some(begun.due.max(at)),
            Admits::Nothing => None,
        }
    }

    /// Encodes one step of a chunk, and sends its lines.
    async fn step(&mut self, mut reading: Reading) {
        let memory = reading.needs;
        let chunk = reading.chunk;
        let cutter = Arc::clone(&self.cutter);
        let (tag, data) = (Arc::clone(&reading.tag), reading.data.clone());
        let (from, wanted) = (reading.from, Arc::clone(&reading.wanted));
        let encoded = self.worker.work_on(chunk, Work::Deliver, move || {
            cutter.encode_step(&tag, &data, from, memory, |event| wanted.contains(event))
        });
        // A panic drops the hold: the chunk's tracker fails, and the chunk is read again later.
        let Ok(encoded) = encoded.await else {
            self.share = None;
            self.worker.panicked(chunk);
            return;
        };
        let mut encoded = match encoded {
            Ok(encoded) => encoded,
            Err(NeedsMore(bytes)) => {
                reading.needs = bytes;
                self.share = None;
                self.reading = Some(reading);
                return;
            }
        };
        let tracker = Arc::clone(&reading.tracker);
        let (next, events) = (encoded.next, encoded.events);
        tracker.settle(&encoded.skipped);
        self.cutter.count_skipped(encoded.skipped.len());
        let parts = std::mem::take(&mut encoded.parts);
        let measured = self.measured(&reading, next, &parts);
        match self.objects.take() {
            None => {
                let mut shaped = Vec::with_capacity(parts.len());
                let mut planned = 0;
                for mut part in parts {
                    let own: Arc<str> = self.cutter.target(&part).into();
                    if let Some(measured) = measured {
                        self.measure(&own, &part, measured);
                    }
                    let probe = reading.take_probe(&own);
                    let target = match probe {
                        Some(_) => Arc::clone(&own),
                        None => self.reroute(&own),
                    };
                    let Some(shape) = self.describing.shape(&self.context, &target) else {
                        self.defer(&own, part, &reading);
                        continue;
                    };
                    let probe = probe.or_else(|| reading.take_probe(&target));
                    let room = match probe {
                        Some(_) => usize::MAX,
                        None => self.room(&target, &own, planned, &reading),
                    };
                    let fitting = weight::fitting(&part.ends, &shape, room);
                    if fitting < part.events.len() {
                        self.defer_events(&own, part.events.split_off(fitting), &reading);
                        part.ends.truncate(fitting);
                        part.text.truncate(part.ends.last().copied().unwrap_or(0));
                    }
                    if part.events.is_empty() {
                        buffers::give(part.text);
                        continue;
                    }
                    planned += weight::of(&part.ends, &shape);
                    shaped.push((target, shape, part, probe));
                }
                let share = self.share.take();
                let (cutter, of) = (Arc::clone(&self.cutter), Arc::clone(&tracker));
                let cut = self.worker.work_on(chunk, Work::Deliver, move || {
                    let mut share = share.expect("a stream's step has its memory");
                    let mut senders = Vec::with_capacity(shaped.len());
                    for (target, shape, part, probe) in shaped {
                        let pieces = cutter.pieces(part, shape, &of, &mut encoded, &mut share);
                        let queued = pieces.into_iter().map(|piece| (Arc::clone(&target), piece));
                        let queued: Vec<Queued> = queued.collect();
                        senders.push((target, queued, probe));
                    }
                    (senders, encoded)
                });
                // A panic, as above.
                let Ok((senders, encoded)) = cut.await else {
                    self.worker.panicked(chunk);
                    return;
                };
                self.keep_letters(reading.chunk, &tracker, encoded).await;
                for (target, pieces, probe) in senders {
                    self.senders.enqueue(&target, pieces, probe);
                }
            }
            Some(mut objects) => {
                self.keep_letters(reading.chunk, &tracker, encoded).await;
                let (format, bounds) = objects.settings();
                objects.reserve_for_chunks(self.chunk_bytes);
                let mut taken = Vec::with_capacity(parts.len());
                let (mut probing, mut probe) = (None, None);
                for part in parts {
                    let target: Arc<str> = self.cutter.target(&part).into();
                    if let Some(measured) = measured {
                        self.measure(&target, &part, measured);
                    }
                    let admission = reading.take_probe(&target);
                    if admission.is_some() {
                        probe = admission;
                        probing = Some((target, part));
                    } else if self.room(&target, &target, 0, &reading) > 0 {
                        taken.push((target, part));
                    } else {
                        self.defer(&target, part, &reading);
                    }
                }
                let of_probe = Arc::clone(&format);
                let built = self.worker.work_on(chunk, Work::Deliver, move || {
                    let now = Instant::now();
                    let add = |(target, part)| objects.add(part, &target, &tracker, now);
                    let sealed: Vec<SealedObject> = taken.into_iter().flat_map(add).collect();
                    // A probe does not wait for more lines: it is an object of its own.
                    let probe = probing.map(|(target, part)| {
                        let mut alone = Objects::new(of_probe, bounds);
                        let mut sealed = alone.add(part, &target, &tracker, now);
                        sealed.extend(alone.seal_for_room());
                        sealed
                    });
                    (objects, sealed, probe.unwrap_or_default())
                });
                match built.await {
                    Ok((objects, sealed, probing)) => {
                        self.objects = Some(objects);
                        self.dispatch(sealed);
                        self.spill_if_needed().await;
                        for object in probing {
                            self.send_object(object, probe.take());
                        }
                    }
                    // The open objects are lost, and nothing of them was sent: the trackers of their chunks fail, and
                    // so does this one.
                    Err(_) => {
                        self.worker.panicked(chunk);
                        self.objects = Some(Objects::new(format, bounds));
                        return;
                    }
                }
            }
        }
        if let Some(next) = next {
            let encoding = self.cutter.encoding();
            reading.needs = encoding.most(&reading.tag, &reading.data, next);
            reading.from = next;
            self.reading = Some(reading);
            return;
        }
        self.worker.acquit(chunk, Work::Deliver);
        reading.tracker.has_events(events);
        if reading.targets.is_empty()
            && let Some(in_flight) = self.chunks.get_mut(&reading.chunk)
        {
            let bytes = events as usize / 8;
            in_flight.bytes += bytes;
            self.chunk_bytes += bytes;
        }
        reading.hold.keep();
    }

    /// Seals the objects that are due, and begins a pass over the spilled lines when it is.
    async fn seal_due(&mut self, now: Instant) {
        let Some(objects) = &mut self.objects else {
            return;
        };
        let mut sealed = objects.seal_aged(now);
        // Open objects keep their chunks in the spool. Without this, a spool filled by them would reject chunks while the
        // destination works.
        let all_read = self.spool.is_read(self.after);
        let keeps_chunks = all_read
            && self.spool.usage().is_half_full()
            && self.sending.is_empty()
            && sealed.is_empty()
            && !self.gathering.is_passing();
        if keeps_chunks && self.gathering.is_empty() {
            sealed = objects.seal_for_room();
        }
        self.dispatch(sealed);
        if self.gathering.is_full() || (keeps_chunks && !self.gathering.is_empty()) {
            self.begin_pass(now, metrics::Sealed::Memory).await;
        } else if self.pass_due().is_some_and(|at| at <= now) {
            self.begin_pass(now, metrics::Sealed::Age).await;
        }
    }

    /// Returns when the next pass is due by its age.
    fn pass_due(&self) -> Option<Instant> {
        let (_, bounds) = self.objects.as_ref()?.settings();
        self.gathering.due(bounds.age)
    }

    /// Seals everything at the end. Returns false if nothing was left to seal, or a pass is in progress.
    async fn seal_all(&mut self, now: Instant) -> bool {
        if self.gathering.is_passing() {
            return false;
        }
        if !self.gathering.is_empty() {
            self.begin_pass(now, metrics::Sealed::Stop).await;
            return true;
        }
        let Some(objects) = self.objects.as_mut().filter(|it| !it.is_empty()) else {
            return false;
        };
        let sealed = objects.seal_all();
        self.dispatch(sealed);
        true
    }

    /// Begins a pass, with the open objects in it: a folder with spilled lines gets one object with all of its lines.
    async fn begin_pass(&mut self, now: Instant, why: metrics::Sealed) {
        if self.gathering.is_passing() {
            return;
        }
        if !self.gathering.has_failed(now) {
            self.spill(now).await;
        }
        self.gathering.begin_pass(why);
    }

    /// Spills the open objects if they take too much memory, though all are small.
    async fn spill_if_needed(&mut self) {
        let now = Instant::now();
        let Some(objects) = self.objects.as_mut().filter(|it| it.wants_spill()) else {
            return;
        };
        if self.gathering.has_failed(now) {
            let sealed = objects.seal_largest();
            return self.dispatch(sealed);
        }
        if !self.gathering.is_full() {
            self.spill(now).await;
        }
    }

    /// Writes the lines of all open objects to disk.
    async fn spill(&mut self, now: Instant) {
        let Some(mut objects) = self.objects.take() else {
            return;
        };
        if objects.is_empty() {
            self.objects = Some(objects);
            return;
        }
        self.worker.rest();
        match self.worker.run(self.gathering.spill(&mut objects)).await {
            Ok(spilled) => {
                if let Err(error) = self.gathering.spilled(spilled, &mut objects, now) {
                    self.context.log.trouble(
                        Level::Warn,
                        "spill",
                        &format!(
                            "the lines of many folders cannot be gathered on disk, and are sent in small objects: {error}"
                        ),
                    );
                }
            }
            Err(_) => {
                let unreadable = self.gathering.spill_panicked(now);
                self.read_again(unreadable);
            }
        }
        self.objects = Some(objects);
        self.spool.set_gathered(self.gathering.file_bytes());
    }

    /// Makes the next objects of the pass. Returns false if there is none.
    async fn step_pass(&mut self) -> bool {
        let Some(objects) = &self.objects else {
            return false;
        };
        let Some(step) = self.gathering.step(objects) else {
            return false;
        };
        self.worker.rest();
        let step = self.worker.run(step).await.ok();
        let (objects, why, result) = self.gathering.stepped(step, Instant::now());
        self.spool.set_gathered(self.gathering.file_bytes());
        for object in objects {
            self.send_spilled(object, why);
        }
        if let Err(unreadable) = result {
            self.read_again(unreadable);
        }
        true
    }

    /// Sends an object made from spilled lines.
    fn send_spilled(&mut self, object: SpilledObject, why: metrics::Sealed) {
        let mut guards = Vec::with_capacity(object.events.len());
        for (chunk, events) in object.events {
            let load = self.next_load;
            self.next_load += 1;
            let owner = Owner::Deferred { load, chunk };
            let completed = self.completed.clone();
            let tracker = Arc::new(AckTracker::of_spilled(&object.tag, owner, completed));
            let all: Arc<[u32]> = events.iter().cloned().flatten().collect();
            guards.push(tracker.guard(&all, 0..all.len()));
            let bytes = CHUNK_BYTES + size_of_val(&all[..]);
            self.chunk_bytes += bytes;
            let in_flight = InFlightLoad {
                load: Load {
                    chunk,
                    targets: vec![(Arc::clone(&object.target), events)],
                },
                was_deferred: false,
                tracker,
                bytes,
            };
            self.loads.insert((chunk, load), in_flight);
        }
        let object = SealedObject {
            target: object.target,
            folder: object.folder,
            first: object.first,
            body: object.body,
            guards,
            lines: object.lines,
            why,
            format: object.format,
        };
        self.send_object(object, None);
    }

    /// Has the events of spilled lines that cannot be read back read from the spool again.
    fn read_again(&mut self, unreadable: UnreadableLines) {
        let UnreadableLines { error, events } = unreadable;
        if let Some(error) = error {
            self.context.log.trouble(
                Level::Warn,
                "spill",
                &format!("gathered lines are read from the spool again: {error}"),
            );
        }
        // Their targets are known again once they are encoded.
        let unknown: Arc<str> = "".into();
        for (chunk, events) in events {
            self.deferred.add(&unknown, chunk, &events);
        }
    }

    /// Skips a chunk that cannot be read: the rest of it is in flight already.
    fn skip_chunk(&mut self, chunk: Seq) {
        self.skip.remove(&chunk);
        match self.chunks.get_mut(&chunk).and_then(|c| c.hold.take()) {
            Some(hold) => hold.keep(),
            None => self.spool.finish(chunk),
        }
    }

    /// Retries the chunks of files that were missing and have been put back.
    fn retry_absent(&mut self, now: Instant) {
        let spool = &self.spool;
        let back = self
            .absent
            .extract_if(.., |segment, _| !spool.is_missing(*segment));
        let chunks = back.flat_map(|(_, chunks)| chunks);
        self.again
            .extend(chunks.map(|(chunk, tries)| (now, chunk, tries)));
    }

    /// Keeps what cannot be sent as dead letters, or parks it until that is possible. For the chunk's tracker it is
    /// settled.
    async fn keep_letters(&mut self, chunk: Seq, tracker: &AckTracker, encoded: Encoded) {
        let (letters, mut lettered) = (encoded.letters, encoded.lettered);
        if letters.is_empty() {
            return;
        }
        self.worker.rest();
        lettered.sort_unstable();
        let events = ranges(&lettered);
        // While others wait, the disk is not asked for each.
        let kept = match self.waiting.is_empty() {
            true => self.letters.keep(letters, lettered.len() as u64).await,
            false => Err(dead_letter::must_wait(&letters)),
        };
        match kept {
            Ok(()) => self.note_done(chunk, events),
            Err(not_kept) => {
                let needs = not_kept.needs();
                let refusal = None;
                self.park(
                    chunk,
                    UnsendableEvents {
                        events,
                        refusal,
                        needs,
                    },
                );
            }
        }
        tracker.settle(&lettered);
    }

    /// Notes that these events are settled. Without the note, their letters would be written again after a restart.
    fn note_done(&mut self, chunk: Seq, events: Vec<Range<u32>>) {
        let events = Events::Runs(events);
        let contents = vec![Content { chunk, events }];
        self.note(Note::Done { contents }, Durability::Synced, Vec::new());
    }

    fn park(&mut self, chunk: Seq, unsendable: UnsendableEvents) {
        self.waiting.add(chunk, unsendable, Instant::now());
        self.update_waiting_metric();
    }

    /// Updates the metric of waiting records. What is being tried waits until its letters are kept.
    fn update_waiting_metric(&self) {
        let waiting = &self.context.metrics.waiting_letters;
        waiting.set(self.waiting.records() as f64);
    }

    /// Checks whether letters can be kept again.
    async fn check_letter_room(&mut self, now: Instant) {
        self.worker.rest();
        let letters = Arc::clone(&self.letters);
        let usage = spawn_blocking(move || letters.folder().usage()).await;
        match usage {
            Ok(Ok(usage)) => self.waiting.set_room(usage.room()),
            Ok(Err(_)) | Err(_) => self.waiting.no_room(now),
        }
    }

    /// Reads a chunk of which events wait for letters again, and writes their letters.
    async fn write_letters(&mut self, chunk: Seq) {
        let Some((tag, data)) = self.read_parked(chunk).await else {
            return;
        };
        let mut all = self.waiting.take(chunk);
        while let Some(unsendable) = all.pop() {
            if let Err(left) = self.write_some(chunk, &tag, &data, unsendable).await {
                all.extend(left);
                break;
            }
        }
        self.waiting.update_room(self.letters.last_usage().room());
        if all.is_empty() {
            self.update_waiting_metric();
            self.worker.acquit(chunk, Work::Letters);
            return self.finish_if_settled(chunk);
        }
        for unsendable in all {
            self.park(chunk, unsendable);
        }
    }

    /// Writes the letters of some events, step by step. Returns those that could not be kept.
    async fn write_some(
        &mut self,
        chunk: Seq,
        tag: &Arc<[u8]>,
        data: &Bytes,
        unsendable: UnsendableEvents,
    ) -> Result<(), Option<UnsendableEvents>> {
        let events = Arc::new(Events::Runs(unsendable.events.clone()));
        let mut next = Some(Place::default());
        while let Some(from) = next {
            let (cutter, wanted) = (Arc::clone(&self.cutter), Arc::clone(&events));
            let (of, bytes, refusal) = (Arc::clone(tag), data.clone(), unsendable.refusal.clone());
            let made = self.worker.work_on(chunk, Work::Letters, move || {
                let wanted = |event| contains_event(&wanted, event);
                // One step at a time; a single event may exceed a step.
                let encoded = cutter.line_encoding();
                let encoded = encoded.step(&of, &bytes, from, usize::MAX, wanted);
                let encoded = encoded.expect("an unlimited step needs no more memory");
                (
                    encoded.next,
                    unsendable_letters(encoded, &of, refusal.as_deref()),
                )
            });
            let Ok((further, (letters, mut lettered))) = made.await else {
                return Err(Some(unsendable));
            };
            self.worker.rest();
            next = further;
            lettered.sort_unstable();
            let kept = self.letters.keep(letters, lettered.len() as u64);
            if let Err(not_kept) = kept.await {
                self.waiting.no_room(Instant::now());
                let first = lettered.first().copied().unwrap_or(0);
                let from_here = |run: &Range<u32>| run.start.max(first)..run.end;
                let left = unsendable
                    .events
                    .iter()
                    .map(from_here)
                    .filter(|run| !run.is_empty());
                return Err(Some(UnsendableEvents {
                    events: left.collect(),
                    needs: not_kept.needs(),
                    ..unsendable
                }));
            }
            if !lettered.is_empty() {
                self.note_done(chunk, ranges(&lettered));
            }
        }
        Ok(())
    }

    /// Reads a chunk of which events wait for letters.
    async fn read_parked(&mut self, chunk: Seq) -> Option<(Arc<[u8]>, Bytes)> {
        match self.worker.read(chunk, Work::Letters).await {
            Ok(stored) => return Some((stored.tag.into(), stored.data)),
            Err(Unreadable::Corrupt { words, kept }) => {
                self.intake.record_corrupt(&words, kept);
                self.forget_parked(chunk);
                self.skip_chunk(chunk);
            }
            Err(Unreadable::Finished) => self.forget_parked(chunk),
            // Retried with the next check.
            Err(Unreadable::Missing(_)) => {}
            Err(Unreadable::Disk(error)) => self.intake.log_disk_error(&error),
        }
        None
    }

    fn forget_parked(&mut self, chunk: Seq) {
        self.waiting.take(chunk);
        self.update_waiting_metric();
    }

    /// Returns whether nothing of a chunk is in flight, or to be read again.
    fn is_settled(&self, chunk: Seq) -> bool {
        !self.deferred.holds(chunk) && self.is_settled_but_for_deferred(chunk)
    }

    fn is_settled_but_for_deferred(&self, chunk: Seq) -> bool {
        !self.chunks.contains_key(&chunk)
            && !self.skip.contains_key(&chunk)
            && !self.waiting.holds(chunk)
            && !self.is_loaded(chunk)
            && !self.gathering.holds(chunk)
            && !self.unknown.contains(&chunk)
    }

    fn finish_if_settled(&self, chunk: Seq) {
        if self.is_settled(chunk) {
            self.spool.finish(chunk);
        }
    }

    /// Writes letters into the spool's quarantine if they would block others: references are bounded, and a chunk that
    /// waits for letters keeps all younger ones in the spool, which would in the end reject new chunks.
    async fn quarantine_if_blocking(&mut self, now: Instant) {
        if self.waiting.is_empty() || self.quarantined_until > now {
            return;
        }
        let usage = self.spool.usage();
        let oldest = self.spool.peek(None).map(|(oldest, _)| oldest);
        let in_the_way = |chunk| Some(chunk) == oldest && usage.is_half_full();
        let too_many = self.waiting.bytes() > self.context.config.memory_limit / PARKED_SHARE;
        let waits_alone =
            |chunk: &Seq| !self.chunks.contains_key(chunk) && !self.skip.contains_key(chunk);
        let chunk = self.waiting.iter().find(waits_alone);
        let Some(chunk) = chunk.filter(|chunk| too_many || in_the_way(*chunk)) else {
            return;
        };
        let Some((tag, data)) = self.read_parked(chunk).await else {
            self.quarantined_until = now + ABSENT_CHECK_INTERVAL;
            return;
        };
        let all = self.waiting.take(chunk);
        let (cutter, spool, of) = (
            Arc::clone(&self.cutter),
            Arc::clone(&self.spool),
            all.clone(),
        );
        let kept = self.worker.work_on(chunk, Work::Letters, move || {
            quarantine(&cutter, &spool, chunk, &tag, &data, &of)
        });
        let events: u64 = all.iter().map(UnsendableEvents::records).sum();
        let error = match kept.await {
            Ok(Ok(file)) => {
                self.update_waiting_metric();
                self.worker.acquit(chunk, Work::Letters);
                for unsendable in all {
                    self.note_done(chunk, unsendable.events);
                }
                self.context.metrics.records.add(Record::DeadLetter, events);
                self.context.log.trouble(
                    Level::Error,
                    "dead_letter_quarantine",
                    &format!(
                        "the dead letters of {events} records were written to the spool's {file}, because they cannot be kept \
                         in {} and were blocking newer chunks: move that file to the dead-letter folder",
                        self.letters.folder().path().display()
                    ),
                );
                return self.finish_if_settled(chunk);
            }
            Ok(Err(error)) => error,
            Err(_) => std::io::Error::other("the writing thread ended"),
        };
        self.intake.log_disk_error(&error);
        self.quarantined_until = now + ABSENT_CHECK_INTERVAL;
        for unsendable in all {
            self.park(chunk, unsendable);
        }
    }

    /// Logs what remains in the spool once everything deliverable is delivered.
    fn log_undeliverable(&self) {
        if !self.waiting.is_empty() {
            self.context.log.write(
                Level::Warn,
                &format!(
                    "{} records of {} chunks stay in the spool, because their dead letters cannot be written to {}",
                    self.waiting.records(),
                    self.waiting.chunks(),
                    self.letters.folder().path().display()
                ),
            );
        }
    }

    fn retry_later(&mut self, chunk: Seq, tries: u32) {
        let wait = backoff(Class::Transient, tries + 1, &mut StdRng::from_os_rng());
        self.again.insert((Instant::now() + wait, chunk, tries + 1));
    }

    fn handle(&mut self, event: TrackerEvent) {
        match event {
            TrackerEvent::Completed(completed) => self.complete(completed),
            TrackerEvent::Refused {
                owner: Owner::Chunk(chunk) | Owner::Deferred { chunk, .. },
                mut events,
                refusal,
            } => {
                events.sort_unstable();
                self.park(chunk, refused(&events, refusal));
            }
            TrackerEvent::Refused {
                owner: Owner::Object(batch),
                refusal,
                ..
            } => self.reject_object(batch, &refusal),
            TrackerEvent::Unsent { batch, target } => self.release(batch, target),
            TrackerEvent::Deferred {
                chunk,
                mut events,
                target,
                not_before,
            } => {
                events.sort_unstable();
                self.deferred.add(&target, chunk, &ranges(&events));
                if let Some(not_before) = not_before {
                    self.deferred.wait(&target, not_before);
                }
                // Logged with every failed probe, and so at most once a minute.
                self.context.log.trouble(
                    Level::Warn,
                    "deferred",
                    &format!(
                        "{} records are waiting in the spool for unavailable or slow targets ({})",
                        self.deferred.records(),
                        self.deferred.targets(),
                    ),
                );
            }
        }
    }

    /// Releases an object that was certainly never stored, because its target is unavailable: its name is given up, and
    /// its events wait for other objects. Only an object that may be stored has to be sent under its name again.
    fn release(&mut self, batch: u64, target: Arc<str>) {
        if let Some(sending) = self.sending.get_mut(&batch) {
            sending.is_refused = true;
        }
        let is_known = |sending: &InFlightObject| !sending.may_exist;
        if !self.sending.get(&batch).is_some_and(is_known) || self.senders.has_one_target() {
            return;
        }
        let Some(sending) = self.sending.remove(&batch) else {
            return;
        };
        self.sending_bytes -= sending.bytes();
        let released = Note::Ended {
            batch,
            delivered: Some(Vec::new()),
        };
        let intake = Arc::clone(&self.intake);
        self.notes.spawn(async move {
            // Before another object is started with the same events.
            intake.write_note(released, Durability::Synced).await;
            for guard in sending.guards {
                guard.defer(&target, None);
            }
        });
    }

    /// Rejects an object that was refused and whose letter cannot be kept: its events wait for theirs, and the object
    /// ends.
    fn reject_object(&mut self, batch: u64, refusal: &Arc<Refusal>) {
        let Some(mut sending) = self.sending.remove(&batch) else {
            return;
        };
        self.sending_bytes -= sending.bytes();
        for (chunk, events, _) in sending.guards.iter().filter_map(AckGuard::of_chunk) {
            let mut events = events.to_vec();
            events.sort_unstable();
            if !events.is_empty() {
                self.park(chunk, refused(&events, Arc::clone(refusal)));
            }
        }
        for (chunk, events) in std::mem::take(&mut sending.events) {
            let unsendable = UnsendableEvents {
                events,
                refusal: Some(Arc::clone(refusal)),
                needs: 0,
            };
            self.park(chunk, unsendable);
        }
        let released = Note::Ended {
            batch,
            delivered: Some(Vec::new()),
        };
        self.note(released, Durability::Synced, sending.guards);
    }

    fn complete(&mut self, completed: Completed) {
        match (completed.owner, completed.verdict) {
            (Owner::Chunk(chunk), verdict) => {
                let Some(in_flight) = self.chunks.remove(&chunk) else {
                    return;
                };
                self.chunk_bytes -= in_flight.bytes;
                if verdict == Verdict::Ok {
                    self.finish_if_settled(chunk);
                } else {
                    let settled = in_flight.tracker.settled();
                    self.skip.insert(chunk, Skip::Events(settled));
                    self.retry_later(chunk, in_flight.tries);
                }
            }
            (Owner::Deferred { load, chunk }, verdict) => {
                let Some(in_flight) = self.loads.remove(&(chunk, load)) else {
                    return;
                };
                if in_flight.was_deferred {
                    self.deferred.end(&in_flight.load);
                }
                self.chunk_bytes -= in_flight.bytes;
                if verdict == Verdict::Retry {
                    let settled = in_flight.tracker.settled();
                    // Probably a panic, which comes again.
                    let wait = backoff(Class::Transient, 5, &mut StdRng::from_os_rng());
                    for (target, events) in in_flight.load.targets {
                        let events = events.into_iter().flatten();
                        let left: Vec<u32> = events.filter(|it| !settled.contains(*it)).collect();
                        self.deferred.add(&target, chunk, &ranges(&left));
                        self.deferred.wait(&target, Instant::now() + wait);
                    }
                }
                if self.deferred.targets() == 0 && self.loads.is_empty() {
                    let log = &self.context.log;
                    log.recovered(
                        "deferred",
                        "no records are waiting in the spool for a target any more",
                    );
                }
                self.finish_if_settled(chunk);
            }
            (Owner::Object(batch), Verdict::Ok) => {
                let Some(sending) = self.sending.remove(&batch) else {
                    return;
                };
                self.sending_bytes -= sending.bytes();
                let size = sending.body.len() as u64;
                let stored = self.small_objects.stored(size, sending.why, Instant::now());
                if let Some(message) = stored {
                    let log = &self.context.log;
                    log.trouble(Level::Warn, "small_objects", &message);
                }
                self.note_object_ended(batch, sending.settles, sending.guards);
            }
            (Owner::Object(batch), Verdict::Retry) => {
                let Some(sending) = self.sending.get_mut(&batch) else {
                    return;
                };
                sending.tries += 1;
                sending.may_exist = true;
                if !std::mem::take(&mut sending.is_refused) {
                    sending.uncertain = Instant::now();
                }
                let wait = backoff(Class::Transient, sending.tries, &mut StdRng::from_os_rng());
                let unavailable = self.senders.admits(&sending.target) != Admits::All;
                let several = !self.senders.has_one_target();
                // One that was rebuilt makes room for those of other folders.
                let gives_way = sending.rebuilt.is_some() && !self.begun.is_empty();
                if several && (unavailable || gives_way) {
                    return self.postpone_object(batch);
                }
                // Sent again by the feed itself, later. A runtime that shuts down drops new tasks at once, and with
                // them the new guard: a task created here would complete, and be created again, without end.
                self.resend.insert((Instant::now() + wait, batch));
            }
        }
    }

    /// Notes that an object is done: nothing of it is left to send. `settles`: what it settles, if that is not all of it.
    fn note_object_ended(
        &mut self,
        batch: u64,
        settles: Option<Vec<Content>>,
        guards: Vec<AckGuard>,
    ) {
        let ended = Note::Ended {
            batch,
            delivered: settles,
        };
        self.note(ended, Durability::Synced, guards);
    }

    /// Writes a note, retrying until it succeeds, and then keeps `guards`.
    fn note(&mut self, note: Note, durability: Durability, guards: Vec<AckGuard>) {
        let intake = Arc::clone(&self.intake);
        self.notes.spawn(async move {
            intake.write_note(note, durability).await;
            guards.into_iter().for_each(AckGuard::keep);
        });
    }

    /// Postpones an object whose target is unavailable: its memory is released, and it is rebuilt later from the same
    /// events and under its name, because it may be stored.
    fn postpone_object(&mut self, batch: u64) {
        let Some(mut sending) = self.sending.remove(&batch) else {
            return;
        };
        self.sending_bytes -= sending.bytes();
        let mut events: BTreeMap<Seq, Vec<Range<u32>>> = BTreeMap::new();
        // A chunk may be named several times.
        for (chunk, runs) in std::mem::take(&mut sending.events) {
            merge(events.entry(chunk).or_default(), &runs);
        }
        for (chunk, held, _) in sending.guards.iter().filter_map(AckGuard::of_chunk) {
            let mut held = held.to_vec();
            held.sort_unstable();
            merge(events.entry(chunk).or_default(), &ranges(&held));
        }
        let pending = Pending {
            batch,
            name: sending.name.to_string(),
            token: sending.token,
            lines: sending.lines.into(),
            contents: sending.contents,
            recipe: None,
        };
        let mut postponed = PendingObject {
            due: Instant::now(),
            pending,
            format: sending.format,
            guards: sending
                .guards
                .into_iter()
                .map(AckGuard::into_hold)
                .collect(),
            target: Some(sending.target),
            failures: sending.tries.saturating_sub(1),
            unreadable: false,
            is_partly_away: false,
            is_less: false,
            is_absent: false,
            settles: sending.settles,
            uncertain: sending.uncertain,
            events: events.into_iter().collect(),
        };
        // Its target's probes have waits of their own.
        if sending.rebuilt.is_some() {
            postponed.failed();
        }
        self.begun.push_back(postponed);
    }

    /// Asks the store about an object that it may have, and whose folder is unavailable, if that keeps a half-full spool from
    /// removing segments: events of a started object cannot be relocated. Either it is done, or its name is given up.
    fn unpin(&mut self, now: Instant) {
        if self.begun.is_empty()
            || self.looking.len() >= MAX_LOOKING
            || !self.spool.usage().is_half_full()
        {
            return;
        }
        let Some((oldest, _)) = self.spool.peek(None) else {
            return;
        };
        let pins = |begun: &PendingObject| {
            let admits = |target| self.senders.admits(target) == Admits::All;
            begun.due <= now
                && begun.uncertain + OVER_AFTER <= now
                && begun.events.iter().any(|(chunk, _)| *chunk == oldest)
                && !begun.target.as_deref().is_none_or(admits)
        };
        let pinning = self.begun.iter().position(pins);
        if let Some(begun) = pinning.and_then(|at| self.begun.remove(at)) {
            self.look_up(begun);
        }
    }

    /// Asks the store whether it has an object. If it does not, the object's name is given up, unless what is left of it
    /// is to be put under its name.
    ///
    /// If events of it are in a missing file, it must not be put under its name with fewer events: what the file has would be
    /// settled as well.
    fn look_up(&mut self, begun: PendingObject) {
        let (context, intake) = (Arc::clone(&self.context), Arc::clone(&self.intake));
        self.looking.spawn(async move {
            let Pending {
                batch, name, token, ..
            } = &begun.pending;
            let exists = context.sink.exists(name, token).await;
            if exists == Ok(false) && !begun.is_less {
                let released = Note::Ended {
                    batch: *batch,
                    delivered: Some(Vec::new()),
                };
                // Before another object is started with the same events.
                intake.write_note(released, Durability::Synced).await;
            }
            LookedUp { begun, exists }
        });
    }

    /// Handles the store's answer about an object.
    fn looked_up(&mut self, looked: LookedUp) {
        let LookedUp { mut begun, exists } = looked;
        match exists {
            // With all of its events, wherever they are now.
            Ok(true) => {
                self.note_object_ended(begun.pending.batch, begun.settles, begun.guards);
            }
            Ok(false) if begun.is_less => {
                (begun.is_less, begun.is_absent) = (false, true);
                begun.due = Instant::now();
                self.begun.push_front(begun);
            }
            Ok(false) => {
                // If it was not sent in this run, the target is known again once the events are encoded.
                let target = begun.target.unwrap_or_else(|| "".into());
                let sent = !begun.events.is_empty();
                for (chunk, events) in &begun.events {
                    self.deferred.add(&target, *chunk, events);
                }
                // A chunk may be named several times.
                let mut whole = BTreeSet::new();
                for Content { chunk, events } in &begun.pending.contents {
                    match events {
                        Events::All => drop(whole.insert(*chunk)),
                        Events::Runs(runs) if !sent && self.spool.holds(*chunk) => {
                            self.deferred.add(&target, *chunk, runs);
                        }
                        Events::Runs(_) => {}
                    }
                }
                for guard in begun.guards {
                    let chunk = guard.of_chunk().map(|(chunk, ..)| chunk);
                    // A chunk that is in it as a whole is read again because its guard is dropped.
                    match sent || chunk.is_some_and(|chunk| !whole.contains(&chunk)) {
                        true => guard.keep(),
                        false => drop(guard),
                    }
                }
            }
            Err(fault) => {
                let name = &begun.pending.name;
                let what = match begun.is_partly_away {
                    _ if begun.is_less => {
                        "was in flight when the last run ended, and less can be made of it now: it waits until the store answers"
                    }
                    true => {
                        "was in flight when the last run ended, some of its records are in a file that is missing from the \
                         spool, and its other records wait until the store answers or the file is back at a start"
                    }
                    false => {
                        "may be stored, its folder is unavailable, and its records keep the spool from removing what is \
                         delivered"
                    }
                };
                self.context.log.trouble_with(
                    Level::Warn,
                    "looked_up",
                    name,
                    &format!(
                        "object '{name}' {what}: whether the store has it cannot be asked ({fault}; this needs the right to \
                         read)"
                    ),
                );
                begun.failed();
                self.begun.push_back(begun);
            }
        }
    }

    /// Names sealed objects, and sends them once the names are in the spool.
    fn dispatch(&mut self, sealed: Vec<SealedObject>) {
        for object in sealed {
            self.send_object(object, None);
        }
    }

    /// Sends an object as soon as it is made.
    fn send_object(&mut self, object: SealedObject, probe: Option<CircuitPermit>) {
        match object.body {
            Sealing::Done(_) if self.sealing.is_empty() => self.begin_object(object, probe),
            _ => {
                self.sending_bytes += object.body.bytes();
                self.sealing.push_back((object, probe));
            }
        }
    }

    /// Does the next step of making the first sealed object, or sends it. Returns false if there is none.
    async fn step_sealing(&mut self) -> bool {
        let Some((mut object, probe)) = self.sealing.pop_front() else {
            return false;
        };
        self.sending_bytes -= object.body.bytes();
        if let Sealing::Done(_) = object.body {
            self.begin_object(object, probe);
            return true;
        }
        let stepped = self.worker.run(move || {
            object.body = object.body.step();
            object
        });
        // A panic drops the object and its guards: its chunks are read again later.
        if let Ok(object) = stepped.await {
            self.sending_bytes += object.body.bytes();
            self.sealing.push_front((object, probe));
            self.count_conflicts();
        }
        true
    }

    /// Counts the values that did not fit their columns.
    fn count_conflicts(&self) {
        let conflicts = self.cutter.format().take_conflicts();
        if conflicts.is_empty() {
            return;
        }
        let of = |(column, count): &(String, u64)| format!("{column} ({count})");
        let named: Vec<String> = conflicts.iter().map(of).collect();
        self.context.log.trouble(
            Level::Warn,
            "column_conflicts",
            &format!(
                "values that do not fit their columns are in the column of the rest: {}",
                named.join(", ")
            ),
        );
        self.context.metrics.columns.add(conflicts);
    }

    fn begin_object(&mut self, object: SealedObject, probe: Option<CircuitPermit>) {
        let body = object.body.finish();
        let several = !self.senders.has_one_target();
        if several && probe.is_none() && self.senders.admits(&object.target) != Admits::All {
            for guard in object.guards {
                guard.defer(&object.target, None);
            }
            return;
        }
        let batch = self.senders.next_batch();
        let token = token();
        let Some(objects) = &self.context.traits.object_layout else {
            return;
        };
        let name = objects.name(&object.folder, object.first, &token);
        let contents = contents_in_order(object.guards.iter());
        let format = Arc::clone(&object.format);
        let tag = object.guards.first().map(|guard| Arc::clone(guard.tag()));
        let begun = Note::Begun {
            batch,
            name: name.clone(),
            token: token.clone(),
            lines: object.lines,
            contents: contents.clone(),
            recipe: Some(format.recipe()),
        };
        let sending = InFlightObject {
            target: object.target,
            name: name.into(),
            contents: if several { contents } else { Vec::new() },
            format,
            token,
            body,
            tag: tag.unwrap_or_else(|| Arc::from(*b"")),
            guards: object.guards,
            events: Vec::new(),
            rebuilt: None,
            settles: None,
            lines: u32::try_from(object.lines).unwrap_or(u32::MAX),
            why: object.why,
            tries: 0,
            may_exist: false,
            uncertain: Instant::now(),
            is_refused: false,
        };
        self.sending_bytes += sending.bytes();
        let target = Arc::clone(&sending.target);
        self.sending.insert(batch, sending);
        let queued = self.queued(batch);
        let (intake, senders) = (Arc::clone(&self.intake), Arc::clone(&self.senders));
        self.notes.spawn(async move {
            intake.write_note(begun, Durability::Synced).await;
            senders.enqueue(&target, queued.into_iter().collect(), probe);
        });
    }

    /// Queues an object with its sender.
    fn enqueue_object(&self, batch: u64, probe: Option<CircuitPermit>) {
        if let Some(sending) = self.sending.get(&batch) {
            let queued = self.queued(batch).into_iter().collect();
            self.senders.enqueue(&sending.target, queued, probe);
        }
    }

    /// Returns an object as a piece for its sender.
    fn queued(&self, batch: u64) -> Option<Queued> {
        let sending = self.sending.get(&batch)?;
        let tracker = AckTracker::of_object(
            &sending.tag,
            &sending.token,
            sending.why,
            batch,
            self.completed.clone(),
        );
        let mut guard = Arc::new(tracker).hold();
        if !sending.target.is_empty() {
            guard.set_target(&sending.target);
        }
        let piece = Piece {
            bytes: sending.body.clone(),
            compressed: true,
            lines: sending.lines,
            guard,
        };
        Some((Arc::clone(&sending.name), piece))
    }

    /// Returns the target of a rebuilt object: if the configuration has other names today, the folder in its name,
    /// whose trouble is not theirs.
    fn target_of(&self, name: &str, destination: Option<(String, String)>) -> Arc<str> {
        let (target, folder) = destination.unwrap_or_default();
        if self.senders.has_one_target() {
            return target.into();
        }
        let objects = self.context.traits.object_layout.as_ref();
        let directory = folder_of(name);
        match objects.is_some_and(|it| it.directory(&folder) == directory) {
            true => target.into(),
            false => directory.into(),
        }
    }

    /// Rebuilds an object from the same events, and sends it under its name. Returns false if its target is unavailable
    /// after all.
    async fn rebuild(&mut self, mut begun: PendingObject) -> bool {
        if begun.is_partly_away {
            self.look_up(begun);
            return true;
        }
        let admission = match &begun.target {
            Some(target) => self.senders.try_admit(target),
            None => Some(None),
        };
        let Some(probe) = admission else {
            self.begun.push_back(begun);
            return false;
        };
        let contents = begun.pending.contents.clone();
        let chunks: BTreeSet<Seq> = contents.iter().map(|content| content.chunk).collect();
        let chunks: Vec<Seq> = chunks.into_iter().collect();
        let (cutter, intake) = (Arc::clone(&self.cutter), Arc::clone(&self.intake));
        let format = Arc::clone(&begun.format);
        let build = move |alone| rebuild_object(&cutter, &intake, &format, &contents, alone);
        let built = self.worker.work_on_some(&chunks, Work::Rebuild, build);
        let built = built.await;
        self.worker.rest();
        let built = match built {
            Ok(Ok(mut built)) => {
                for chunk in &chunks {
                    self.worker.acquit(*chunk, Work::Rebuild);
                }
                for chunk in &built.corrupt {
                    // It is not read any more: only this object's guards are left of it.
                    let hold = self.chunks.get_mut(chunk);
                    if let Some(hold) = hold.and_then(|chunk| chunk.hold.take()) {
                        hold.keep();
                    }
                }
                if !begun.is_absent && built.is_less() {
                    // The store may have all of it, which nothing less must replace.
                    begun.is_less = true;
                    self.look_up(begun);
                    return true;
                }
                let letters = std::mem::take(&mut built.letters);
                let events = letters.len() as u64;
                let kept = self.letters.keep(letters, events).await;
                kept.is_ok().then_some(built)
            }
            Ok(Err((chunk, Unreadable::Disk(error)))) => {
                self.intake.log_disk_error(&error);
                self.worker.failed_to_read(chunk, &error);
                if self.worker.condemns(chunk)
                    && let Err(Unreadable::Corrupt { words, kept }) =
                        self.worker.read(chunk, Work::Rebuild).await
                {
                    self.intake.record_corrupt(&words, kept);
                }
                None
            }
            // A missing file is logged by the intake's check.
            Ok(Err(_)) => None,
            Err(_) => {
                // Of several it is not known which.
                if let [chunk] = chunks[..] {
                    self.worker.panicked(chunk);
                }
                None
            }
        };
        let Some(built) = built else {
            begun.unreadable = true;
            begun.failed();
            self.begun.push_back(begun);
            return true;
        };
        let Rebuilt {
            body,
            events,
            lines,
            skipped,
            corrupt,
            destination,
            tag,
            letters: _,
        } = built;
        let PendingObject {
            pending,
            format,
            guards,
            failures,
            uncertain,
            ..
        } = begun;
        self.cutter.count_skipped(skipped);
        let batch = pending.batch;
        // What could not be read is not settled: the next run reads it if the disk returns it after all.
        let settles = (!corrupt.is_empty()).then(|| {
            let mut contents = pending.contents.clone();
            contents.retain(|content| !corrupt.contains(&content.chunk));
            contents
        });
        if lines == 0 {
            // Built with a configuration that differs from the one it was started with.
            self.note_object_ended(batch, settles, guards);
            return true;
        }
        let sending = InFlightObject {
            target: self.target_of(&pending.name, destination),
            name: pending.name.into(),
            contents: pending.contents,
            format,
            token: pending.token,
            body,
            tag,
            guards,
            events,
            rebuilt: Some(Instant::now()),
            settles,
            lines: u32::try_from(lines).unwrap_or(u32::MAX),
            // An earlier run sealed it, and was stopped before it was stored.
            why: metrics::Sealed::Stop,
            tries: failures,
            may_exist: true,
            uncertain,
            is_refused: false,
        };
        self.sending_bytes += sending.bytes();
        self.sending.insert(batch, sending);
        self.enqueue_object(batch, probe);
        true
    }
}

fn refused(events: &[u32], refusal: Arc<Refusal>) -> UnsendableEvents {
    UnsendableEvents {
        events: ranges(events),
        refusal: Some(refusal),
        needs: 0,
    }
}

/// Returns the folder in an object's name.
fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Returns a random token that no other object has.
fn token() -> String {
    let mut bytes = [0; 16];
    StdRng::from_os_rng().fill_bytes(&mut bytes);
    json::hex(&bytes)
}

#[cfg(test)]
mod tests;
