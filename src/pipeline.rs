//! The way of a chunk: admit, decode and encode, batch, send, settle.
//!
//! A flush is answered OK when each of its pieces is acknowledged by the destination or kept as a dead
//! letter, and RETRY otherwise. Pieces of several flushes share requests. Requests to one delivery
//! stream (or to the blob store) are formed by one *lane*: while it waits for leave to send, what
//! arrives meanwhile fills the next request.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::batch::{Packer, Piece, Record, runs};
use crate::chunk::{self, Encoded, Part};
use crate::compress::Compression;
use crate::config::{Config, Destination, stream_name};
use crate::dead_letter::{DeadLetters, Letter};
use crate::log::{Level, Log};
use crate::retry::{Adaptive, backoff};
use crate::settle::{ChunkId, EventSet, Flight, Partials, Ticket, Twins, Verdict, chunk_id};
use crate::sink::{Batch, Class, Fault, Outcome, Shape, Sink};
use crate::template::compact_time;

/// Text that is compressed in one go, at least: more than a chunk of the host's holds.
const COMPRESSED_RUN_BYTES: usize = 8 * 1024 * 1024;
/// A chunk and its lines together are taken to need so many times the chunk's bytes.
const MEMORY_FACTOR: usize = 2;
/// Memory is counted in units of so many bytes.
const MEMORY_UNIT: usize = 1024;
/// Requests in flight where the user leaves it to us: where to start, and where to end. Each holds up to
/// 4 MiB in its plain form, its base64 form and its TLS buffers.
const ADAPTIVE_START: usize = 4;
const ADAPTIVE_MOST: usize = 8;

/// One instance's machinery. Cheap to share.
pub struct Pipeline {
    config: Config,
    sink: Arc<dyn Sink>,
    letters: DeadLetters,
    log: Arc<Log>,
    memory: Arc<Semaphore>,
    gate: Arc<Gate>,
    lanes: Mutex<HashMap<String, mpsc::UnboundedSender<Vec<Queued>>>>,
    twins: Twins,
    partials: Partials,
    counts: Counts,
}

/// What an instance did since it started.
#[derive(Debug, Default)]
struct Counts {
    delivered: AtomicU64,
    requests: AtomicU64,
    /// Sent again because an answer was lost.
    unsure: AtomicU64,
    /// Of chunks that were handed over again: settled before, and not sent again.
    spared: AtomicU64,
    dead: AtomicU64,
}

/// A piece and where it goes.
type Queued = (Arc<str>, Piece<Ticket>);

impl Pipeline {
    /// Puts an instance together. Nothing runs before the first flush.
    pub fn new(config: Config, sink: Arc<dyn Sink>, letters: DeadLetters, log: Arc<Log>) -> Self {
        Pipeline {
            memory: Arc::new(Semaphore::new(config.memory_limit / MEMORY_UNIT)),
            gate: Arc::new(Gate::new(config.concurrency)),
            lanes: Mutex::default(),
            twins: Twins::default(),
            partials: Partials::default(),
            counts: Counts::default(),
            config,
            sink,
            letters,
            log,
        }
    }

    /// Takes a chunk as the host hands it over, and gives the host's answer within `flush_deadline`.
    /// Every clone of `data` is gone when it returns.
    pub async fn flush(self: &Arc<Self>, tag: &[u8], data: Bytes) -> Verdict {
        let id = chunk_id(tag, &data);
        let number = self.twins.number(id);
        let mut name = String::new();
        for byte in id {
            let _ = write!(name, "{byte:02x}");
        }
        if number > 0 {
            let _ = write!(name, "-{}", number + 1);
        }
        let verdict = self.deliver(tag, data, id, &name).await;
        self.twins.answered(id, number, verdict);
        verdict
    }

    /// Says that the whole host waits while a flush waits.
    pub fn say_engine_thread(&self) {
        self.log.say(
            Level::Warn,
            "flush runs on the host's engine thread: while it waits for the destination, inputs, timers and \
             other outputs wait too. Set 'Workers 2' in this [OUTPUT]",
        );
    }

    /// What was done so far, in a line.
    pub fn summary(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let twice = match &self.config.destination {
            Destination::Firehose(_) => "may be there twice",
            Destination::Blob { .. } => "are there once",
        };
        format!(
            "{} records were delivered in {} requests, {} are dead letters; {} were sent again after a lost \
             answer and {twice}; {} came again with their chunk and were not sent twice",
            count(&self.counts.delivered),
            count(&self.counts.requests),
            count(&self.counts.dead),
            count(&self.counts.unsure),
            count(&self.counts.spared),
        )
    }

    async fn deliver(
        self: &Arc<Self>,
        tag: &[u8],
        data: Bytes,
        id: ChunkId,
        name: &str,
    ) -> Verdict {
        let deadline = Instant::now() + self.config.flush_deadline;
        let Ok(_memory) = timeout_at(deadline, self.admit(data.len())).await else {
            self.log.trouble(
                Level::Warn,
                "memory",
                "memory_limit is reached and nothing was delivered within flush_deadline: the host is \
                 asked to hand the chunk over again",
            );
            return Verdict::Retry;
        };
        self.log.recovered("memory", "chunks are admitted again");

        let settled = match self.partials.take(id) {
            None => EventSet::default(),
            Some(before) => {
                // What an earlier flush of this chunk still has on its way decides what is left to send.
                if timeout_at(deadline, before.landed()).await.is_err() {
                    self.partials.leave(id, before);
                    return Verdict::Retry;
                }
                before.settled()
            }
        };
        self.counts
            .spared
            .fetch_add(settled.len() as u64, Ordering::Relaxed);
        let flight = Arc::new(Flight::new(tag, settled));
        let verdict = self.fly(&flight, data, name, deadline).await;
        if verdict == Verdict::Retry {
            flight.give_up();
            if self.remembers_partials() {
                self.partials.leave(id, flight);
            }
        }
        verdict
    }

    /// Whether what was settled of a chunk must not be sent again with the rest. An object must: its
    /// name stands for the whole chunk, and its store tells whether it is there.
    fn remembers_partials(&self) -> bool {
        matches!(self.config.destination, Destination::Firehose(_))
    }

    async fn fly(
        self: &Arc<Self>,
        flight: &Arc<Flight>,
        data: Bytes,
        name: &str,
        deadline: Instant,
    ) -> Verdict {
        let mut encoded = chunk::encode(
            &self.config.encode,
            self.names(),
            flight.tag(),
            &data,
            &flight.settled(),
        );
        drop(data);
        if encoded.skipped > 0 {
            self.log.trouble(
                Level::Warn,
                "log_key",
                &format!(
                    "{} records without the log_key were skipped",
                    encoded.skipped
                ),
            );
        }

        let mut lanes: Vec<(String, Vec<Queued>)> = Vec::new();
        for part in std::mem::take(&mut encoded.parts) {
            let (lane, target) = self.target(&part, name);
            let Ok(shape) = timeout_at(deadline, self.sink.shape(&target)).await else {
                return Verdict::Retry;
            };
            let pieces = self.pieces(part, shape, flight, &mut encoded);
            lanes.push((
                lane,
                pieces
                    .into_iter()
                    .map(|piece| (Arc::clone(&target), piece))
                    .collect(),
            ));
        }

        // Dead letters first: were their disk full only after the rest was delivered, the rest would be
        // delivered again with every retry.
        if self.keep_letters(encoded.letters).await.is_break() {
            return Verdict::Retry;
        }
        flight.settle(&encoded.lettered);
        let lines: u64 = lanes
            .iter()
            .flat_map(|(_, pieces)| pieces)
            .map(|(_, piece)| u64::from(piece.lines))
            .sum();
        for (lane, pieces) in lanes {
            self.enqueue(lane, pieces);
        }
        timeout_at(deadline, flight.landed()).await.unwrap_or_else(|_| {
            self.log.trouble(
                Level::Warn,
                "deadline",
                &format!(
                    "of a chunk not all of {lines} records were delivered within flush_deadline ({} s); the \
                     host keeps it and hands it over again",
                    self.config.flush_deadline.as_secs(),
                ),
            );
            Verdict::Retry
        })
    }

    async fn admit(&self, chunk_bytes: usize) -> OwnedSemaphorePermit {
        let all = self.config.memory_limit / MEMORY_UNIT;
        // A chunk larger than all we may use goes alone.
        let units = (chunk_bytes * MEMORY_FACTOR).div_ceil(MEMORY_UNIT).min(all);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.memory)
            .acquire_many_owned(units)
            .await
            .expect("the semaphore is never closed")
    }

    fn names(&self) -> &crate::template::Template {
        match &self.config.destination {
            Destination::Firehose(firehose) => &firehose.delivery_stream,
            Destination::Blob { folder, .. } => folder,
        }
    }

    /// The lane a part travels in, and its target: the stream, or an object named after its chunk.
    fn target(&self, part: &Part, chunk: &str) -> (String, Arc<str>) {
        match &self.config.destination {
            Destination::Firehose(_) => {
                let stream = stream_name(&part.name);
                (stream.clone(), stream.into())
            }
            Destination::Blob {
                prefix, extension, ..
            } => {
                let mut name = String::with_capacity(128);
                for folder in [prefix, &part.name] {
                    let folder = folder.trim_matches('/');
                    if !folder.is_empty() {
                        name.push_str(folder);
                        name.push('/');
                    }
                }
                compact_time(part.first, &mut name);
                let _ = write!(name, "-{chunk}{extension}");
                (String::new(), name.into())
            }
        }
    }

    /// Cuts a part into pieces its target takes. Lines that are too long become letters.
    fn pieces(
        &self,
        mut part: Part,
        shape: Shape,
        flight: &Arc<Flight>,
        encoded: &mut Encoded,
    ) -> Vec<Piece<Ticket>> {
        let limits = shape.limits;
        let compression = if shape.compression {
            self.config.compression
        } else {
            Compression::None
        };
        if compression == Compression::None {
            drop_long_lines(&mut part, flight.tag(), limits.record_bytes, encoded);
            let runs = runs(&part.ends, shape.piece_bytes, limits.record_lines);
            let (text, events) = (Bytes::from(part.text), part.events.into());
            let piece = |run: Range<usize>| Piece {
                bytes: text.slice(span(&part.ends, &run)),
                lines: count(run.len()),
                ticket: flight.ticket(&events, run),
            };
            return runs.into_iter().map(piece).collect();
        }
        let text_bytes = limits.record_bytes.max(COMPRESSED_RUN_BYTES);
        let mut todo = runs(&part.ends, text_bytes, limits.record_lines);
        todo.reverse();
        let events = part.events.into();
        let mut pieces = Vec::new();
        while let Some(run) = todo.pop() {
            let text = &part.text[span(&part.ends, &run)];
            let body = compression.apply(text);
            if body.len() <= limits.record_bytes {
                pieces.push(Piece {
                    bytes: body.into(),
                    lines: count(run.len()),
                    ticket: flight.ticket(&events, run),
                });
            } else if run.len() == 1 {
                let letter = too_large(flight.tag(), text, body.len(), limits.record_bytes);
                encoded.letter(events[run.start], letter);
            } else {
                let middle = run.start + run.len() / 2;
                todo.push(middle..run.end);
                todo.push(run.start..middle);
            }
        }
        pieces
    }

    async fn keep_letters(self: &Arc<Self>, letters: Vec<Letter>) -> ControlFlow<()> {
        if letters.is_empty() {
            return ControlFlow::Continue(());
        }
        let pipeline = Arc::clone(self);
        let count = letters.len();
        let first = letters[0].detail.clone();
        let written = tokio::task::spawn_blocking(move || pipeline.letters.write(&letters)).await;
        let path = self.letters.path().display();
        match written {
            Ok(Ok(())) => {
                self.counts.dead.fetch_add(count as u64, Ordering::Relaxed);
                self.log.trouble(
                    Level::Warn,
                    "dead_letter",
                    &format!("{count} dead letters were written to {path}; the first: {first}"),
                );
                self.log
                    .recovered("dead_letter_disk", "dead letters can be written again");
                ControlFlow::Continue(())
            }
            Ok(Err(error)) => {
                self.log.trouble(
                    Level::Error,
                    "dead_letter_disk",
                    &format!(
                        "dead letters cannot be written to {path}: {error}; their chunks are held back \
                         until they can"
                    ),
                );
                ControlFlow::Break(())
            }
            // The runtime is going down.
            Err(_) => ControlFlow::Break(()),
        }
    }

    fn enqueue(self: &Arc<Self>, lane: String, pieces: Vec<Queued>) {
        let begin = || {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(Arc::clone(self).lane(receiver));
            sender
        };
        let mut lanes = self.lanes.lock().expect("nothing panics with this lock");
        let sender = lanes.entry(lane).or_insert_with(begin);
        // A lane ends only by a panic, or with the runtime. What it held has answered RETRY.
        if let Err(unsent) = sender.send(pieces) {
            *sender = begin();
            let _ = sender.send(unsent.0);
        }
    }

    /// Forms requests from pieces as they come, and sends them as the gate lets it.
    async fn lane(self: Arc<Self>, mut arriving: mpsc::UnboundedReceiver<Vec<Queued>>) {
        let mut packer = Packer::default();
        let mut sends: JoinSet<Returned> = JoinSet::new();
        // The service may take less than it says it does.
        let mut most_bytes = usize::MAX;
        loop {
            tokio::select! {
                biased;
                Some(returned) = sends.join_next(), if !sends.is_empty() => {
                    // A send that panicked has dropped its tickets, which answers RETRY.
                    let Ok(returned) = returned else { continue };
                    if let Some(too_many) = returned.too_many_bytes {
                        most_bytes = most_bytes.min(too_many / 2);
                    }
                    packer.put_back(returned.records);
                }
                pieces = arriving.recv() => {
                    let Some(pieces) = pieces else { return };
                    let Some((target, _)) = pieces.first() else { continue };
                    let limits = self.sink.shape(target).await.limits;
                    for (target, piece) in pieces {
                        packer.push(&target, piece, &limits);
                    }
                }
                leave = Gate::enter(&self.gate), if !packer.is_empty() => {
                    packer.retain_fresh(Ticket::is_stale);
                    let Some(target) = packer.next_target() else { continue };
                    let mut limits = self.sink.shape(&target).await.limits;
                    limits.batch_bytes = limits.batch_bytes.min(most_bytes);
                    let records = packer.take(&limits);
                    sends.spawn(Arc::clone(&self).send(records, leave));
                }
            }
        }
    }

    /// Sends one request, settles what is settled, and gives back what must go again, after the wait it
    /// needs.
    async fn send(self: Arc<Self>, records: Vec<Record<Ticket>>, leave: Leave) -> Returned {
        let batch = Batch {
            target: Arc::clone(&records[0].target),
            records: records.iter().map(Record::body).collect(),
        };
        let bytes = records.iter().map(Record::bytes).sum::<usize>();
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let outcomes = self.sink.send(batch).await;
        let mut returned = Returned::default();
        let sent = records.len();
        let mut worst: Option<(Arc<Fault>, u32)> = None;
        for (mut record, outcome) in records.into_iter().zip(outcomes) {
            let fault = match outcome {
                Outcome::Delivered => {
                    self.counts
                        .delivered
                        .fetch_add(record.lines().into(), Ordering::Relaxed);
                    keep(record);
                    continue;
                }
                Outcome::Rejected(fault) => {
                    // Where it cannot be kept either, its flush answers RETRY and the host keeps it.
                    if self.refuse(&record, &fault).await.is_continue() {
                        keep(record);
                    }
                    continue;
                }
                Outcome::Retry(fault) => fault,
                Outcome::Ambiguous(fault) => {
                    self.counts
                        .unsure
                        .fetch_add(record.lines().into(), Ordering::Relaxed);
                    fault
                }
            };
            record.attempts += 1;
            match fault.class {
                Class::Record => record.alone = true,
                Class::TooLarge => returned.too_many_bytes = Some(bytes),
                _ => {}
            }
            let attempts = record.attempts;
            if worst.as_ref().is_none_or(|(_, most)| attempts > *most) {
                worst = Some((fault, attempts));
            }
            returned.records.push(record);
        }
        let Some((fault, attempts)) = worst else {
            leave.done(Some(true));
            for class in [
                Class::Throttle,
                Class::Transient,
                Class::Credentials,
                Class::Configuration,
            ] {
                self.log
                    .recovered(name(class), "the destination takes records again");
            }
            return returned;
        };
        // Real throttling fails most of a request or all of it; a record here and there says nothing.
        let throttled = fault.class == Class::Throttle && returned.records.len() * 2 > sent;
        leave.done(throttled.then_some(false));
        self.report(&fault, returned.records.len());
        let wait = backoff(fault.class, attempts, &mut StdRng::from_os_rng());
        tokio::time::sleep(wait).await;
        returned
    }

    /// Keeps a record that will never be taken as a dead letter.
    async fn refuse(self: &Arc<Self>, record: &Record<Ticket>, fault: &Fault) -> ControlFlow<()> {
        let letters = record
            .pieces
            .iter()
            .map(|piece| Letter::refused(piece.ticket.tag(), fault, &piece.bytes))
            .collect();
        self.keep_letters(letters).await
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

fn count(lines: usize) -> u32 {
    u32::try_from(lines).unwrap_or(u32::MAX)
}

fn keep(record: Record<Ticket>) {
    for piece in record.pieces {
        piece.ticket.keep();
    }
}

fn too_large(tag: &[u8], line: &[u8], bytes: usize, limit: usize) -> Letter {
    Letter {
        tag: tag.to_vec(),
        reason: "too_large",
        detail: format!("a record of {bytes} bytes; the destination takes at most {limit}"),
        request_id: None,
        record: line.strip_suffix(b"\n").unwrap_or(line).to_vec(),
    }
}

/// Where the text of some lines begins and ends.
fn span(ends: &[usize], lines: &Range<usize>) -> Range<usize> {
    let start = lines.start.checked_sub(1).map_or(0, |before| ends[before]);
    start..ends[lines.end - 1]
}

/// Takes lines out of a part that no record can hold.
fn drop_long_lines(part: &mut Part, tag: &[u8], limit: usize, encoded: &mut Encoded) {
    let spans: Vec<Range<usize>> = (0..part.ends.len())
        .map(|line| span(&part.ends, &(line..line + 1)))
        .collect();
    if spans.iter().all(|span| span.len() <= limit) {
        return;
    }
    let mut kept = Part {
        text: Vec::with_capacity(part.text.len()),
        ends: Vec::with_capacity(part.ends.len()),
        events: Vec::with_capacity(part.events.len()),
        name: std::mem::take(&mut part.name),
        ..*part
    };
    for (span, event) in spans.into_iter().zip(&part.events) {
        let line = &part.text[span];
        if line.len() > limit {
            encoded.letter(*event, too_large(tag, line, line.len(), limit));
        } else {
            kept.text.extend_from_slice(line);
            kept.ends.push(kept.text.len());
            kept.events.push(*event);
        }
    }
    *part = kept;
}

/// What came back from a request.
#[derive(Default)]
struct Returned {
    /// To be sent again.
    records: Vec<Record<Ticket>>,
    /// The service said that a request of so many bytes is too large.
    too_many_bytes: Option<usize>,
}

/// Bounds the requests in flight.
struct Gate {
    slots: Arc<Semaphore>,
    state: Option<Mutex<GateState>>,
}

struct GateState {
    adaptive: Adaptive,
    /// Slots that exist, free and taken.
    slots: usize,
}

/// Leave to send one request.
struct Leave {
    gate: Arc<Gate>,
    slot: Option<OwnedSemaphorePermit>,
}

impl Gate {
    fn new(fixed: Option<usize>) -> Gate {
        let slots = fixed.unwrap_or(ADAPTIVE_START);
        Gate {
            slots: Arc::new(Semaphore::new(slots)),
            state: fixed.is_none().then(|| {
                Mutex::new(GateState {
                    adaptive: Adaptive::new(ADAPTIVE_START, ADAPTIVE_MOST),
                    slots,
                })
            }),
        }
    }

    async fn enter(gate: &Arc<Gate>) -> Leave {
        let slot = Arc::clone(&gate.slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        Leave {
            gate: Arc::clone(gate),
            slot: Some(slot),
        }
    }
}

impl Leave {
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

#[cfg(test)]
mod tests;
