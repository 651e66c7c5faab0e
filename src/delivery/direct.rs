//! Direct delivery, without a spool: a flush is answered when its chunk is delivered.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until};

use super::ack::AckTracker;
use super::arrivals::Arrivals;
use super::circuit::{Circuit, CircuitPermit, TargetProgress};
use super::context::Context;
use super::cut::Cutter;
use super::identity::Identity;
use super::letters::Letters;
use super::memory::Share;
use super::redelivery::{DuplicateChunks, PartialDeliveries};
use super::sender::{Delivery, Queued, Senders};
use crate::buffers;
use crate::codec::{Encoded, NeedsMore, Part, Place};
use crate::ids::{ChunkId, EventSet, Verdict, chunk_id, numbered};
use crate::log::Level;
use crate::metrics::Record;
use crate::sink::{Class, Shape};

/// The time a flush waits for a target's [`Shape`] to be known.
const SHAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// Delivers chunks while their flushes wait.
pub(super) struct Direct {
    pub(super) context: Arc<Context>,
    pub(super) letters: Arc<Letters>,
    pub(super) cutter: Arc<Cutter>,
    pub(super) senders: Arc<Senders>,
    /// The sender's identity, part of object names.
    pub(super) identity: Identity,
    pub(super) duplicates: DuplicateChunks,
    pub(super) partial: PartialDeliveries<FlushProgress>,
    pub(super) arrivals: Arrivals,
    /// The time from which no flush waits for the destination any more.
    pub(super) ending: watch::Sender<Option<Instant>>,
}

impl Direct {
    /// Delivers a chunk and returns the host's answer within `flush_deadline`. Every clone of `data` is gone when this
    /// returns.
    pub(super) async fn flush(&self, tag: &[u8], data: Bytes) -> Verdict {
        let now = Instant::now();
        // Hashing every chunk would cost more than sending it over TLS.
        let hashes =
            !self.resends_unsettled() || !self.partial.is_empty() || !self.arrivals.is_empty();
        let id = hashes.then(|| chunk_id(tag, &data));
        let arrived = id.and_then(|id| self.arrivals.take(id)).unwrap_or(now);
        let _waiting = self.context.metrics.waiting.enter(arrived);
        let verdict = self.attempt(tag, data.clone(), id).await;
        if verdict == Verdict::Retry {
            let id = id.unwrap_or_else(|| chunk_id(tag, &data));
            self.arrivals.keep(id, arrived);
        }
        verdict
    }

    async fn attempt(&self, tag: &[u8], data: Bytes, id: Option<ChunkId>) -> Verdict {
        if self.must_retry_now() {
            return Verdict::Retry;
        }
        if self.resends_unsettled() {
            return self.deliver(tag, data, id, None).await;
        }
        let id = id.unwrap_or_else(|| chunk_id(tag, &data));
        let number = self.duplicates.number(id);
        let mut name = self.identity.name(&id);
        if number > 0 {
            let _ = write!(name, "-{}", number + 1);
        }
        // Each of several identical chunks has objects of its own: what one has delivered must not count for another.
        let numbered_id = numbered(id, number);
        let verdict = self
            .deliver(tag, data, Some(numbered_id), Some(&name))
            .await;
        self.duplicates.completed(id, number, verdict);
        verdict
    }

    /// Returns whether only the unsettled records of a retried chunk are sent. An object is always sent whole: its name
    /// stands for all of its contents, and the store knows whether it exists.
    fn resends_unsettled(&self) -> bool {
        self.context.traits.object_layout.is_none()
    }

    /// Makes every flush answer RETRY from `then` on: those that are waiting and those that follow.
    pub(super) fn end_flushes(&self, then: Instant) {
        self.ending.send_if_modified(|end| {
            let sooner = end.is_none_or(|end| then < end);
            if sooner {
                *end = Some(then);
            }
            sooner
        });
    }

    fn has_ended(&self) -> bool {
        self.ending
            .borrow()
            .is_some_and(|end| end <= Instant::now())
    }

    fn log_flushes_ended(&self) {
        self.context.log.trouble(
            Level::Warn,
            "ended",
            "the host is stopping and exit_deadline has passed: undelivered chunks are returned to it at once. Those of \
             inputs with storage.type filesystem are delivered after the next start",
        );
    }

    /// Returns whether a chunk can be answered with RETRY without decoding it.
    fn must_retry_now(&self) -> bool {
        self.has_ended()
            || self
                .senders
                .only_circuit()
                .is_some_and(|circuit| circuit.is_blocking())
    }

    /// Waits for `what`, until `deadline` at most or until flushes are to end.
    async fn within<T>(&self, deadline: Instant, what: impl Future<Output = T>) -> Option<T> {
        let mut ending = self.ending.subscribe();
        let ended = async {
            loop {
                let end = *ending.borrow_and_update();
                let sooner = ending.changed();
                match end {
                    Some(end) => tokio::select! {
                        () = sleep_until(end) => return,
                        _ = sooner => {}
                    },
                    // This cannot fail: `self` owns the sending half.
                    None => drop(sooner.await),
                }
            }
        };
        tokio::select! {
            biased;
            done = what => Some(done),
            () = sleep_until(deadline) => None,
            () = ended => None,
        }
    }

    /// Delivers a chunk. `id` is given only if an earlier flush may have left its progress behind; `name` identifies
    /// its objects.
    async fn deliver(
        &self,
        tag: &[u8],
        data: Bytes,
        id: Option<ChunkId>,
        name: Option<&str>,
    ) -> Verdict {
        let deadline = Instant::now() + self.context.config.flush_deadline;
        let left = id.and_then(|id| Some((id, self.partial.take(id)?)));
        let settled = match left {
            None => EventSet::default(),
            Some((id, before)) => {
                if before
                    .waits
                    .is_some_and(|needs| needs > self.letters.last_usage().room())
                {
                    self.remember(id, before);
                    return Verdict::Retry;
                }
                // Wait for what an earlier flush of this chunk still has in flight. This includes objects: otherwise a
                // slow store would be sent the same object again and again.
                let completed = self.within(deadline, before.completed()).await;
                if completed.is_none() || !before.is_complete() {
                    self.remember(id, before);
                    return Verdict::Retry;
                }
                let settled = before.tracker.settled();
                if self.resends_unsettled() {
                    let suppressed = settled.len() as u64;
                    self.context
                        .metrics
                        .records
                        .add(Record::Suppressed, suppressed);
                }
                settled
            }
        };
        let mut progress = FlushProgress {
            tracker: match name {
                Some(name) => AckTracker::of_objects(tag, settled, name),
                None => AckTracker::new(tag, settled),
            },
            targets: Vec::new(),
            all: true,
            not_kept: None,
            waits: None,
            lines: 0,
            skipped: 0,
        };
        let name = name.unwrap_or_default();
        let verdict = self.send_all(&mut progress, &data, name, deadline).await;
        if verdict == Verdict::Retry {
            for target in &progress.targets {
                target.tracker.give_up();
            }
            self.senders.record_give_up();
            progress.forget_completed();
            if !progress.tracker.settled().is_empty() || !progress.targets.is_empty() {
                let id = id.unwrap_or_else(|| chunk_id(tag, &data));
                self.remember(id, progress);
            }
        }
        verdict
    }

    fn remember(&self, id: ChunkId, progress: FlushProgress) {
        let bytes = progress.footprint();
        self.partial.remember(id, progress, bytes);
    }

    async fn send_all(
        &self,
        progress: &mut FlushProgress,
        data: &[u8],
        name: &str,
        deadline: Instant,
    ) -> Verdict {
        let before = progress.tracker.settled();
        let rest = self.resends_unsettled();
        let wanted = |event| !(rest && before.contains(event));
        let mut next = Some(Place::default());
        while let Some(from) = next {
            // The pieces of one step settle while the next step waits for memory.
            let encoded = self.encode(progress.tracker.tag(), data, from, wanted);
            let Some((encoded, share)) = self.within(deadline, encoded).await else {
                match progress.lines {
                    _ if self.has_ended() => self.log_flushes_ended(),
                    0 => self.context.log.trouble(
                        Level::Warn,
                        "memory",
                        "memory_limit is reached and nothing was delivered within flush_deadline: the host is asked to retry \
                         the chunk. If this persists, raise memory_limit",
                    ),
                    _ => self.log_deadline(progress),
                }
                return Verdict::Retry;
            };
            self.context
                .log
                .recovered("memory", "chunks are admitted again");
            next = encoded.next;
            let name = format!("{name}{}", encoded.mark(from));
            self.send_step(progress, encoded, share, &name, &before, deadline)
                .await;
            if next.is_some() && progress.targets.iter().any(TargetProgress::probes) {
                // The probe decides whether the rest is sent. It is awaited again at the end, for when it is late.
                self.within(deadline, progress.completed()).await;
            }
            if next.is_some() && self.must_retry_now() {
                return Verdict::Retry;
            }
            progress.forget_completed();
        }
        match self.within(deadline, progress.completed()).await {
            Some(Verdict::Ok) => {}
            Some(Verdict::Retry) => return Verdict::Retry,
            None if self.has_ended() => {
                self.log_flushes_ended();
                return Verdict::Retry;
            }
            None => {
                self.log_deadline(progress);
                return Verdict::Retry;
            }
        }
        if progress.not_kept.is_some() {
            progress.waits = progress.not_kept;
            return Verdict::Retry;
        }
        // Counted only now: a retry of the chunk would find them again.
        self.cutter.count_skipped(progress.skipped);
        self.context.log.recovered(
            "deadline",
            "chunks are delivered within flush_deadline again",
        );
        Verdict::Ok
    }

    /// Sends one step of a chunk, except for what was settled `before`.
    async fn send_step(
        &self,
        progress: &mut FlushProgress,
        mut encoded: Encoded,
        mut share: Share,
        name: &str,
        before: &EventSet,
        deadline: Instant,
    ) {
        let mut parts = std::mem::take(&mut encoded.parts);
        // True for objects that an earlier flush of the chunk delivered.
        let delivered = |part: &mut Part| part.events.iter().all(|event| before.contains(*event));
        for part in parts.extract_if(.., delivered) {
            let lines = part.events.len() as u64;
            self.context.metrics.records.add(Record::Suppressed, lines);
            buffers::give(part.text);
        }
        let (loads, all) = self.route(parts, name, deadline).await;
        progress.all &= all;
        if !all && self.partial.is_full() {
            self.context.log.trouble(
                Level::Warn,
                "partial",
                "too many partly delivered chunks are pending to track any more: chunks with an unavailable target are held back \
                 as a whole, since their other records would otherwise be sent twice",
            );
            for (_, part) in loads.into_iter().flat_map(|load| load.parts) {
                buffers::give(part.text);
            }
            return;
        }
        let mut senders = Vec::with_capacity(loads.len());
        for load in loads {
            let leg = TargetProgress::new(load.circuit, &progress.tracker, load.permit.is_probe());
            let mut pieces: Vec<Queued> = Vec::new();
            for (target, part) in load.parts {
                let cut =
                    self.cutter
                        .pieces(part, load.shape, &leg.tracker, &mut encoded, &mut share);
                pieces.extend(cut.into_iter().map(|piece| (Arc::clone(&target), piece)));
            }
            let lines = pieces.iter().map(|(_, piece)| u64::from(piece.lines));
            progress.lines += lines.sum::<u64>();
            progress.targets.push(leg);
            let probe = load.permit.is_probe().then_some(load.permit);
            senders.push((load.sender, Delivery { pieces, probe }));
        }

        // Dead letters are written first: whatever is sent before them would be sent again after a restart. If they
        // cannot be kept, everything else is still sent, and remembered for the retry of the chunk. Letters that an
        // earlier flush of the chunk wrote are dropped.
        encoded.drop_letters(before);
        let lettered = encoded.letters.len() as u64;
        match self.letters.keep(encoded.letters, lettered).await {
            Ok(()) => progress.tracker.settle(&encoded.lettered),
            Err(not_kept) => *progress.not_kept.get_or_insert(0) += not_kept.needs(),
        }
        progress.skipped += encoded.skipped.len();
        for (sender, delivery) in senders {
            self.senders.hand_over(sender, delivery);
        }
    }

    fn log_deadline(&self, progress: &FlushProgress) {
        self.context.log.trouble(
            Level::Warn,
            "deadline",
            &format!(
                "a chunk with {} records was not fully delivered within flush_deadline ({} s); the host keeps it and \
                 retries it",
                progress.lines,
                self.context.config.flush_deadline.as_secs(),
            ),
        );
    }

    /// Groups a chunk's parts by sender. Returns false if some parts were left out because their target is unavailable.
    async fn route(
        &self,
        parts: Vec<Part>,
        name: &str,
        deadline: Instant,
    ) -> (Vec<ShapedParts>, bool) {
        let mut all = true;
        let mut senders: BTreeMap<String, Option<AdmittedParts>> = BTreeMap::new();
        for part in parts {
            let target = self.cutter.request_target(&part, name);
            let sender = self.senders.sender_of(&self.cutter.target(&part));
            let waiting = senders.entry(sender).or_insert_with_key(|sender| {
                let circuit = self.senders.ensure_sender(sender);
                let permit = circuit.admit().ok()?;
                Some(AdmittedParts {
                    circuit,
                    permit,
                    parts: Vec::new(),
                })
            });
            match waiting {
                Some(waiting) => waiting.parts.push((target, part)),
                None => {
                    all = false;
                    buffers::give(part.text);
                }
            }
        }
        let patience = deadline.min(Instant::now() + SHAPE_TIMEOUT);
        let loads = senders
            .into_iter()
            .filter_map(|(sender, it)| Some((sender, it?)));
        let loads = join_all(loads.map(|(sender, it)| self.shape(sender, it, patience))).await;
        let known = loads.iter().all(Option::is_some);
        (loads.into_iter().flatten().collect(), all && known)
    }

    /// Waits until a target's shape is known. A target whose shape is not known in time counts as unavailable; the sink
    /// keeps asking.
    async fn shape(
        &self,
        sender: String,
        waiting: AdmittedParts,
        patience: Instant,
    ) -> Option<ShapedParts> {
        let AdmittedParts {
            circuit,
            permit,
            parts,
        } = waiting;
        let (target, _) = parts.first()?;
        let shape = match self.context.sink.shape(target).now_or_never() {
            Some(shape) => Some(shape),
            None if permit.is_probe() => None,
            None => {
                tokio::select! {
                    biased;
                    shape = self.within(patience, self.context.sink.shape(target)) => shape,
                    () = circuit.opened() => None,
                }
            }
        };
        let Some(shape) = shape else {
            for (_, part) in parts {
                buffers::give(part.text);
            }
            if permit.is_probe() {
                permit.failed(Class::Transient);
            } else if circuit.trip(Class::Transient) {
                self.senders
                    .log_open(&sender, "it could not be described in time");
            }
            return None;
        };
        Some(ShapedParts {
            sender,
            circuit,
            permit,
            shape,
            parts,
        })
    }

    /// Encodes one step of a chunk as soon as there is memory for it, and returns it with its memory reservation.
    async fn encode(
        &self,
        tag: &Arc<[u8]>,
        data: &[u8],
        from: Place,
        wanted: impl Fn(u32) -> bool,
    ) -> (Encoded, Share) {
        let mut needed = self.cutter.encoding().most(tag, data, from);
        loop {
            let share = self.context.memory.reserve(needed).await;
            match self.cutter.encode_step(tag, data, from, needed, &wanted) {
                Ok(encoded) => return (encoded, share),
                // A single event with its metadata exceeds a step: it is encoded alone.
                Err(NeedsMore(bytes)) => needed = bytes,
            }
        }
    }
}

/// The progress of one flush of a chunk.
pub(super) struct FlushProgress {
    /// Tracks what is settled.
    tracker: AckTracker,
    /// One entry for each target that was sent something.
    targets: Vec<TargetProgress>,
    /// Whether nothing was left out or has failed.
    all: bool,
    /// Set if some letters could not be kept: the bytes they need, as far as that is known.
    not_kept: Option<u64>,
    /// The same, once everything else is settled.
    waits: Option<u64>,
    /// The number of lines handed to senders.
    lines: u64,
    /// The number of events with nothing to send.
    skipped: usize,
}

impl FlushProgress {
    /// Waits for all targets except unavailable ones.
    async fn completed(&self) -> Verdict {
        let mut verdict = match self.all {
            true => Verdict::Ok,
            false => Verdict::Retry,
        };
        for target in &self.targets {
            if target.completed().await == Verdict::Retry {
                verdict = Verdict::Retry;
            }
        }
        verdict
    }

    /// Drops the targets whose pieces are all settled.
    fn forget_completed(&mut self) {
        for target in self
            .targets
            .extract_if(.., |target| target.tracker.is_complete())
        {
            self.all &= target.tracker.verdict() == Verdict::Ok;
        }
    }

    /// Returns its approximate memory use, including its entry among the remembered chunks.
    fn footprint(&self) -> usize {
        let target = size_of::<TargetProgress>() + size_of::<AckTracker>();
        4 * size_of::<ChunkId>()
            + size_of::<FlushProgress>()
            + self.tracker.footprint()
            + target * self.targets.len()
    }

    /// Returns whether nothing of it is in flight.
    fn is_complete(&self) -> bool {
        self.targets
            .iter()
            .all(|target| target.tracker.is_complete())
    }
}

/// The parts of a chunk for one sender that admits them.
struct AdmittedParts {
    circuit: Arc<Circuit>,
    permit: CircuitPermit,
    parts: Vec<(Arc<str>, Part)>,
}

/// The same, once the target's shape is known.
struct ShapedParts {
    sender: String,
    circuit: Arc<Circuit>,
    permit: CircuitPermit,
    shape: Shape,
    parts: Vec<(Arc<str>, Part)>,
}
