//! The way of a chunk: admit, decode and encode, batch, send, settle.
//!
//! *Direct*: a flush is answered OK when each of its pieces is acknowledged by the destination or kept as a
//! dead letter, and RETRY otherwise: at once where a target takes nothing ([`circuit`]), since the host's
//! worker that waits is one that the healthy targets need. Pieces of several flushes share requests.
//! *Spooled*: a flush is answered OK when its chunk is synced into the spool; the [`spooled`] feed does the
//! rest in its own time. Requests are formed and sent by a [`sender`] for each destination.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::buffers;
use crate::codec::msgpack;
use crate::codec::rejected::Letter;
use crate::codec::template::compact_time;
use crate::codec::time::now;
use crate::codec::{Encoded, Encoding, NeedsMore, Part, Place};
use crate::compress::Compression;
use crate::config::{Config, Destination, stream_name};
use crate::delivery::ack::{Flight, Ticket};
use crate::delivery::batch::{Piece, runs};
use crate::delivery::dead_letter::{DeadLetters, Rate, Unkept};
use crate::delivery::identity::Identity;
use crate::delivery::redelivery::{Acknowledged, Partials, Twins};
use crate::delivery::retry::backoff;
use crate::ids::Time;
use crate::ids::{ChunkId, EventSet, Verdict, chunk_id, numbered};
use crate::log::{Level, Log};
use crate::metrics::{Figure, Metrics, Reason, Record, Sealed, Stage};
use crate::sink::{Class, Shape, Sink};
use crate::spool::disk::says_remedy;
use crate::spool::{self, Appended, Durability, Note, Recovered, Refusal, Spool};
use circuit::{Circuit, Leg, Permit};
use concurrency::Gate;
use memory::{Memory, Share};
use sender::{Delivery, Lane};
use spooled::Feed;

pub mod ack;
pub mod batch;
mod circuit;
mod concurrency;
pub mod dead_letter;
pub mod identity;
mod memory;
mod objects;
mod redelivery;
mod retry;
mod sender;
mod spooled;
mod waiting;

/// Text that is compressed in one go, at least: more than a chunk of the host's holds.
const COMPRESSED_RUN_BYTES: usize = 8 * 1024 * 1024;
/// Files that a line in the log names, at most.
const MOST_NAMED: usize = 5;
/// What a piece on its way needs beside its bytes: its ticket, its record, its place in the queue.
const PIECE_BYTES: usize = 512;
/// What an object needs beside its bytes and tickets, about: its names, its flight, its note, its place in the lane.
/// Where each event is an object, that is most of it.
const OBJECT_BYTES: usize = 2_816;
/// What a line of an object needs beside its text: where it ends, and its event's number.
const LINE_BYTES: usize = 32;
/// In direct mode: how long a flush waits until a target's [`Shape`] is known.
const SHAPE_PATIENCE: Duration = Duration::from_secs(5);

/// One instance's machinery. Cheap to share.
pub struct Pipeline {
    config: Config,
    sink: Arc<dyn Sink>,
    letters: DeadLetters,
    letter_rate: Mutex<Rate>,
    /// In the names of objects that are made directly.
    sender: Identity,
    log: Arc<Log>,
    memory: Memory,
    gate: Arc<Gate>,
    lanes: Mutex<HashMap<String, Lane>>,
    /// The lane of every chunk, where there is but one.
    only_lane: Option<String>,
    /// How long a request that is not full waits for more.
    linger: Duration,
    twins: Twins,
    partials: Partials<Outing>,
    acknowledged: Acknowledged,
    spool: OnceLock<Arc<Spool>>,
    next_batch: AtomicU64,
    /// Flushes that gave up waiting, so far.
    given_up: AtomicU64,
    /// True once we stop: what waits to be filled goes as it is.
    draining: watch::Sender<bool>,
    /// From when on no flush waits for the destination any more.
    ending: watch::Sender<Option<Instant>>,
    metrics: Arc<Metrics>,
}

impl Pipeline {
    /// Puts an instance together. Nothing runs before the first flush. `sender` tells the objects that it makes without
    /// a spool from those of others.
    pub fn new(
        config: Config,
        sink: Arc<dyn Sink>,
        letters: DeadLetters,
        sender: Identity,
        log: Arc<Log>,
    ) -> Self {
        Pipeline {
            memory: Memory::new(config.memory_limit),
            gate: Arc::new(Gate::new(config.concurrency)),
            lanes: Mutex::default(),
            only_lane: match &config.destination {
                Destination::Firehose(firehose) => {
                    let name = firehose.delivery_stream.fixed();
                    name.map(|name| stream_name(&name))
                }
                Destination::Blob { .. } => Some(String::new()),
            },
            linger: match (&config.spool, &config.destination) {
                (Some(_), Destination::Firehose(firehose)) => firehose.linger,
                _ => Duration::ZERO,
            },
            twins: Twins::default(),
            partials: Partials::default(),
            acknowledged: Acknowledged::default(),
            spool: OnceLock::new(),
            next_batch: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            draining: watch::Sender::new(false),
            ending: watch::Sender::new(None),
            metrics: Arc::default(),
            config,
            sink,
            letters,
            letter_rate: Mutex::new(Rate::new(Instant::now())),
            sender,
            log,
        }
    }

    /// Puts a spool between the host and the destination, and begins to deliver what is in it. The task
    /// ends after [`Pipeline::drain`], when everything is delivered.
    pub fn feed_from(
        self: &Arc<Self>,
        spool: Arc<Spool>,
        recovered: Recovered,
    ) -> tokio::task::JoinHandle<()> {
        for finding in &recovered.findings {
            self.log.say(Level::Warn, finding);
        }
        if recovered.unfinished > 0 {
            self.log.say(
                Level::Info,
                &format!(
                    "{} chunks of an earlier run are in the spool and are delivered now",
                    recovered.unfinished
                ),
            );
        }
        self.next_batch
            .store(recovered.next_batch, Ordering::Relaxed);
        self.spool.get_or_init(|| Arc::clone(&spool));
        tokio::spawn(Feed::new(Arc::clone(self), spool, recovered).run())
    }

    /// Seals what is open and sends what waits to be filled.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Takes a chunk as the host hands it over, and gives the host's answer: in direct mode within
    /// `flush_deadline`; in spooled mode when the disk has answered. Every clone of `data` is gone when it
    /// returns.
    pub async fn flush(self: &Arc<Self>, tag: &[u8], data: Bytes) -> Verdict {
        if let Some(spool) = self.spool.get() {
            let id = chunk_id(tag, &data);
            return self.keep(spool, tag, data, id).await;
        }
        if self.goes_back_at_once() {
            return Verdict::Retry;
        }
        let bytes = data.len() as u64;
        let _waiting = self.metrics.waiting.enter();
        let verdict = match &self.config.destination {
            Destination::Firehose(_) => {
                // To hash each chunk would cost more than to send it encrypted.
                let id = (!self.partials.is_empty()).then(|| chunk_id(tag, &data));
                self.deliver(tag, data, id, None).await
            }
            Destination::Blob { .. } => {
                let id = chunk_id(tag, &data);
                let number = self.twins.number(id);
                let mut name = self.sender.name(&id);
                if number > 0 {
                    let _ = write!(name, "-{}", number + 1);
                }
                // What one twin has delivered stands under its name, and not under another's.
                let twin = numbered(id, number);
                let verdict = self.deliver(tag, data, Some(twin), Some(&name)).await;
                self.twins.answered(id, number, verdict);
                verdict
            }
        };
        if verdict == Verdict::Ok {
            self.metrics.bytes.add(Stage::Raw, bytes);
        }
        verdict
    }

    /// Whether a flush waits for the destination, and not only for the disk.
    pub fn is_direct(&self) -> bool {
        self.spool.get().is_none()
    }

    /// In direct mode: from `then` on each flush answers RETRY, those that wait and those that come.
    pub fn end_flushes(&self, then: Instant) {
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

    fn say_ended(&self) {
        self.log.trouble(
            Level::Warn,
            "ended",
            "the host ends, and exit_deadline is over: chunks that are not delivered go back to it at once. Those of \
             inputs with storage.type filesystem are delivered after the next start",
        );
    }

    /// Whether it is known of a chunk before it is looked at that nothing of it is sent.
    fn goes_back_at_once(&self) -> bool {
        let ended = self
            .ending
            .borrow()
            .is_some_and(|end| end <= Instant::now());
        let only = self.only_lane.as_ref();
        ended || only.is_some_and(|lane| self.circuit(lane).is_some_and(|it| it.keeps_back()))
    }

    /// Waits for something, until `deadline` at most, or until flushes are to end.
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
                    // Fails where the sender is gone, which is ours.
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

    async fn keep(&self, spool: &Spool, tag: &[u8], data: Bytes, id: ChunkId) -> Verdict {
        let deadline = Instant::now() + self.config.flush_deadline;
        let bytes = data.len() as u64;
        let again = data.clone();
        let chunk = spool::Chunk {
            id,
            tag,
            data,
            arrived: now(),
        };
        match spool.append(chunk, deadline).await {
            Ok(Appended::Kept) => {
                self.metrics.bytes.add(Stage::Raw, bytes);
                for trouble in ["spool", "spool_full"] {
                    self.log
                        .recovered(trouble, "chunks are kept in the spool again");
                }
                Verdict::Ok
            }
            Ok(Appended::Replayed) => {
                self.metrics.replayed_chunks.add(1);
                let events = msgpack::Events::new(&again).count();
                self.metrics.records.add(Record::Suppressed, events as u64);
                self.log.trouble(
                    Level::Info,
                    "replay",
                    "a chunk that an earlier run had accepted was handed over again, and was not taken twice",
                );
                Verdict::Ok
            }
            Err(Refusal::Full { bytes, limit }) => {
                let why = match spool.usage().missing {
                    0 => "the destination takes too little".to_owned(),
                    missing => format!(
                        "{missing} chunks in files that are missing hold on to all that came after them: put the \
                         files back, or restart Fluent Bit to go on without them"
                    ),
                };
                self.log.trouble(
                    Level::Warn,
                    "spool_full",
                    &format!(
                        "the spool is full ({bytes} of {limit} bytes), and {why}; the host is asked to hold chunks \
                         back until there is room; spool_limit says how much it may hold"
                    ),
                );
                Verdict::Retry
            }
            Err(Refusal::TooLate) => {
                self.log.trouble(
                    Level::Warn,
                    "spool",
                    "the disk of the spool did not answer within flush_deadline: the host is asked to hand \
                     the chunk over again",
                );
                Verdict::Retry
            }
            Err(Refusal::Disk(error)) => {
                self.spool_trouble(&error);
                Verdict::Retry
            }
            Err(Refusal::Closed) => Verdict::Retry,
        }
    }

    /// Says that the spool's disk fails. Whatever failed is tried again.
    fn spool_trouble(&self, error: &io::Error) {
        match says_remedy(error) {
            true => self.say_spool_trouble(&error.to_string()),
            false => {
                self.say_spool_trouble(&format!("{error}: look at the disk's space and health"));
            }
        }
    }

    fn say_spool_trouble(&self, trouble: &str) {
        let place = match &self.config.spool {
            Some(spool) => spool.dir.display().to_string(),
            None => String::new(),
        };
        self.log.trouble(
            Level::Error,
            "spool",
            &format!(
                "the spool in {place} cannot be used, and data is held back until it can: {trouble}"
            ),
        );
    }

    /// Where requests are written down: in a spool, where the destination cannot say what it has.
    fn journal(&self) -> Option<&Arc<Spool>> {
        match &self.config.destination {
            Destination::Firehose(_) => self.spool.get(),
            Destination::Blob { .. } => None,
        }
    }

    /// Writes a note, however often that has to be tried.
    async fn insist(&self, spool: &Spool, note: Note, durability: Durability) {
        let mut attempts = 0;
        while let Err(error) = spool.note(note.clone(), durability).await {
            self.spool_trouble(&error);
            attempts += 1;
            sleep(backoff(
                Class::Transient,
                attempts,
                &mut StdRng::from_os_rng(),
            ))
            .await;
        }
        self.log
            .recovered("spool", "the spool can be written again");
    }

    /// Says that the whole host waits while a flush waits.
    pub fn say_engine_thread(&self) {
        self.log.say(
            Level::Warn,
            "flush runs on the host's engine thread: while it waits for the destination, inputs, timers and \
             other outputs wait too. Set 'Workers 2' in this [OUTPUT], in Fluent Bit 2.1.8 or later",
        );
    }

    /// Where this instance's figures are counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The figures as they stand now. Asks no disk and waits for nobody.
    pub fn figures(&self) -> Vec<Figure> {
        let metrics = &self.metrics;
        let spooled = metrics.spooled.get().unwrap_or_default();
        metrics.memory.set(self.memory.held() as f64 + spooled);
        metrics.memory_limit.set(self.config.memory_limit as f64);
        metrics.in_flight_limit.set(self.gate.limit() as f64);
        let oldest = match self.spool.get() {
            Some(spool) => {
                let usage = spool.usage();
                metrics.spool.set(usage.bytes as f64);
                metrics.missing_chunks.set(usage.missing as f64);
                metrics.spool_limit.set(usage.limit as f64);
                usage.oldest.map_or(0.0, |oldest| since(oldest, now()))
            }
            None => {
                let oldest = metrics.waiting.oldest();
                oldest.map_or(0.0, |oldest| oldest.elapsed().as_secs_f64())
            }
        };
        metrics.oldest.set(oldest);
        let letters = self.letters.last_usage();
        metrics.letter_bytes.set(letters.bytes as f64);
        metrics.letter_limit.set(letters.limit as f64);
        match self.sink.credentials_expire() {
            Some(expiry) => {
                let left = expiry.duration_since(SystemTime::now());
                metrics
                    .credentials
                    .set(left.unwrap_or_default().as_secs_f64());
            }
            None => metrics.credentials.unset(),
        }
        metrics.read()
    }

    /// Looks into the dead-letter folder, from which a person may have taken something.
    pub fn look_at_letters(self: &Arc<Self>) {
        let pipeline = Arc::clone(self);
        // A folder that cannot be read is told of when a letter is to be written.
        tokio::task::spawn_blocking(move || drop(pipeline.letters.usage()));
    }

    /// Sees to it that a restart would find what was accepted, and says what is the matter. To be called about once a second.
    pub fn look_at_spool(&self) {
        let Some(spool) = self.spool.get() else {
            return;
        };
        let health = spool.look();
        for (kind, notice) in &health.notices {
            self.log
                .trouble(Level::Warn, kind, &format!("the spool: {notice}"));
        }
        match &health.trouble {
            Some(trouble) => self.say_spool_trouble(trouble),
            None => self.log.recovered("spool", "the spool can be used again"),
        }
        if health.missing.is_empty() {
            self.log
                .recovered("spool_missing", "no file of the spool is missing any more");
            return;
        }
        let chunks: u64 = health.missing.iter().map(|(_, chunks)| chunks).sum();
        let names: Vec<&str> = health.missing.iter().map(|(name, _)| &name[..]).collect();
        let (named, more) = names.split_at(names.len().min(MOST_NAMED));
        let more = match more.len() {
            0 => String::new(),
            more => format!(" and {more} more files"),
        };
        self.log.trouble(
            Level::Error,
            "spool_missing",
            &format!(
                "{chunks} chunks that were accepted cannot be delivered: {}{more} in the spool's folder were taken away, or \
                 are not whole. They are waited for: put them back; after a restart without them these chunks are lost",
                named.join(", ")
            ),
        );
    }

    /// Counts a chunk that was damaged in the spool, and says so.
    fn corrupt(&self, words: &str, kept: bool) {
        self.log.say(Level::Error, words);
        self.metrics.corrupt_chunks.add(1);
        self.metrics.quarantined_chunks.add(u64::from(kept));
    }

    /// What was done so far, in a line.
    pub fn summary(&self) -> String {
        let metrics = &self.metrics;
        let records = |result| metrics.records.get(result);
        let twice = match &self.config.destination {
            Destination::Firehose(_) => "may be there twice",
            Destination::Blob { .. } => "are there once",
        };
        let mut line = format!(
            "{} records were delivered in {} requests, {} are dead letters; {} were sent again after a lost \
             answer and {twice}; {} came again with their chunk and were not sent twice",
            records(Record::Delivered),
            metrics.requests.sum(),
            records(Record::DeadLetter),
            records(Record::Ambiguous),
            records(Record::Suppressed),
        );
        if let Some(spool) = self.spool.get() {
            let usage = spool.usage();
            let _ = write!(
                line,
                "; {} chunks stay in the spool ({} bytes), {} came again after a restart and were not taken twice",
                usage.unfinished,
                usage.bytes,
                metrics.replayed_chunks.get(),
            );
            if metrics.corrupt_chunks.get() > 0 {
                let _ = write!(
                    line,
                    ", {} were damaged and are lost: the bytes of {} of them lie in its quarantine",
                    metrics.corrupt_chunks.get(),
                    metrics.quarantined_chunks.get(),
                );
            }
            if usage.missing > 0 {
                let _ = write!(
                    line,
                    "; {} of the chunks that stay are in files that are missing: put them back before the next start",
                    usage.missing
                );
            }
        }
        if let Destination::Blob { .. } = &self.config.destination {
            let objects = |sealed| metrics.objects.get(sealed);
            let _ = write!(line, "; {} objects were written", metrics.objects.sum());
            if self.spool.get().is_some() {
                let _ = write!(
                    line,
                    ", sealed by size: {}, by age: {}, by memory_limit or spool_limit: {}, at the end: {}",
                    objects(Sealed::Size),
                    objects(Sealed::Age),
                    objects(Sealed::Memory),
                    objects(Sealed::Stop),
                );
            }
        }
        line
    }

    /// Delivers a chunk, whose `id` is asked for only where an earlier flush left something behind. Its objects
    /// are known by `name`.
    async fn deliver(
        self: &Arc<Self>,
        tag: &[u8],
        data: Bytes,
        id: Option<ChunkId>,
        name: Option<&str>,
    ) -> Verdict {
        let deadline = Instant::now() + self.config.flush_deadline;
        let left = id.and_then(|id| Some((id, self.partials.take(id)?)));
        let settled = match left {
            None => EventSet::default(),
            Some((id, before)) => {
                if before
                    .waits
                    .is_some_and(|needs| needs > self.letters.last_usage().room())
                {
                    self.leave(id, before);
                    return Verdict::Retry;
                }
                // What an earlier flush of this chunk still has on its way decides what is left to send. Of an object,
                // too: were it sent once more, a store that is slower than a flush waits would never be done with it.
                let landed = self.within(deadline, before.landed()).await;
                if landed.is_none() || !before.has_landed() {
                    self.leave(id, before);
                    return Verdict::Retry;
                }
                let settled = before.flight.settled();
                if self.sends_the_rest() {
                    let suppressed = settled.len() as u64;
                    self.metrics.records.add(Record::Suppressed, suppressed);
                }
                settled
            }
        };
        let mut outing = Outing {
            flight: match name {
                Some(name) => Flight::of_objects(tag, settled, name),
                None => Flight::new(tag, settled),
            },
            legs: Vec::new(),
            all: true,
            unkept: None,
            waits: None,
            lines: 0,
            skipped: 0,
        };
        let name = name.unwrap_or_default();
        let verdict = self.fly(&mut outing, &data, name, deadline).await;
        if verdict == Verdict::Retry {
            for leg in &outing.legs {
                leg.flight.give_up();
            }
            self.given_up.fetch_add(1, Ordering::Release);
            outing.forget_landed();
            if !outing.flight.settled().is_empty() || !outing.legs.is_empty() {
                let id = id.unwrap_or_else(|| chunk_id(tag, &data));
                self.leave(id, outing);
            }
        }
        verdict
    }

    fn leave(&self, id: ChunkId, outing: Outing) {
        let bytes = outing.footprint();
        self.partials.leave(id, outing, bytes);
    }

    /// Whether of a chunk that comes again only what is not settled is sent. An object is sent whole: its
    /// name stands for all that is in it, and its store tells whether it is there.
    fn sends_the_rest(&self) -> bool {
        matches!(self.config.destination, Destination::Firehose(_))
    }

    async fn fly(
        self: &Arc<Self>,
        outing: &mut Outing,
        data: &[u8],
        name: &str,
        deadline: Instant,
    ) -> Verdict {
        let before = outing.flight.settled();
        let rest = self.sends_the_rest();
        let wanted = |event| !(rest && before.contains(event));
        let mut next = Some(Place::default());
        while let Some(from) = next {
            // The pieces of one step settle while the next one waits for memory.
            let encoded = self.encode(outing.flight.tag(), data, from, wanted);
            let Some((encoded, share)) = self.within(deadline, encoded).await else {
                match outing.lines {
                    _ if self.has_ended() => self.say_ended(),
                    0 => self.log.trouble(
                        Level::Warn,
                        "memory",
                        "memory_limit is reached and nothing was delivered within flush_deadline: the host is \
                         asked to hand the chunk over again",
                    ),
                    _ => self.say_deadline(outing),
                }
                return Verdict::Retry;
            };
            self.log.recovered("memory", "chunks are admitted again");
            next = encoded.next;
            let name = format!("{name}{}", encoded.mark(from));
            self.send_step(outing, encoded, share, &name, &before, deadline)
                .await;
            if next.is_some() && outing.legs.iter().any(Leg::probes) {
                // The probe decides what becomes of the rest. It is waited for again in the end, where it is late.
                self.within(deadline, outing.landed()).await;
            }
            if next.is_some() && self.goes_back_at_once() {
                return Verdict::Retry;
            }
            outing.forget_landed();
        }
        match self.within(deadline, outing.landed()).await {
            Some(Verdict::Ok) => {}
            Some(Verdict::Retry) => return Verdict::Retry,
            None if self.has_ended() => {
                self.say_ended();
                return Verdict::Retry;
            }
            None => {
                self.say_deadline(outing);
                return Verdict::Retry;
            }
        }
        if outing.unkept.is_some() {
            outing.waits = outing.unkept;
            return Verdict::Retry;
        }
        // Only now: of a chunk that comes again they are found again.
        self.say_skipped(outing.skipped);
        self.log.recovered(
            "deadline",
            "chunks are delivered within flush_deadline again",
        );
        Verdict::Ok
    }

    /// Sends a step of a chunk on its way, but for what was settled `before`.
    async fn send_step(
        self: &Arc<Self>,
        outing: &mut Outing,
        mut encoded: Encoded,
        mut share: Share,
        name: &str,
        before: &EventSet,
        deadline: Instant,
    ) {
        let mut parts = std::mem::take(&mut encoded.parts);
        // Objects that an earlier flush of the chunk delivered.
        let delivered = |part: &mut Part| part.events.iter().all(|event| before.contains(*event));
        for part in parts.extract_if(.., delivered) {
            let lines = part.events.len() as u64;
            self.metrics.records.add(Record::Suppressed, lines);
            buffers::give(part.text);
        }
        let (loads, all) = self.load(parts, name, deadline).await;
        outing.all &= all;
        if !all && self.partials.is_full() {
            self.log.trouble(
                Level::Warn,
                "partials",
                "of chunks for several targets, of which some take nothing, so many are pending that no more can be \
                 remembered: what others of their records go to waits, too, since it would be sent twice",
            );
            for (_, part) in loads.into_iter().flat_map(|load| load.parts) {
                buffers::give(part.text);
            }
            return;
        }
        let mut lanes = Vec::with_capacity(loads.len());
        for load in loads {
            let leg = Leg::new(load.circuit, &outing.flight, load.permit.is_probe());
            let mut pieces: Vec<Queued> = Vec::new();
            for (target, part) in load.parts {
                let cut = self.pieces(part, load.shape, &leg.flight, &mut encoded, &mut share);
                pieces.extend(cut.into_iter().map(|piece| (Arc::clone(&target), piece)));
            }
            let lines = pieces.iter().map(|(_, piece)| u64::from(piece.lines));
            outing.lines += lines.sum::<u64>();
            outing.legs.push(leg);
            let probe = load.permit.is_probe().then_some(load.permit);
            lanes.push((load.lane, Delivery { pieces, probe }));
        }

        // Dead letters first: what is sent without them is sent again after a restart. Where they cannot be kept, all
        // else is sent nevertheless, and is remembered for when the chunk comes again. Those that an earlier flush of
        // the chunk wrote are there.
        encoded.drop_letters(before);
        let lettered = encoded.letters.len() as u64;
        match self.keep_letters(encoded.letters, lettered).await {
            Ok(()) => outing.flight.settle(&encoded.lettered),
            Err(unkept) => *outing.unkept.get_or_insert(0) += unkept.needs(),
        }
        outing.skipped += encoded.skipped.len();
        for (lane, delivery) in lanes {
            self.hand_over(lane, delivery);
        }
    }

    fn say_deadline(&self, outing: &Outing) {
        self.log.trouble(
            Level::Warn,
            "deadline",
            &format!(
                "of a chunk not all of {} records were delivered within flush_deadline ({} s); the host keeps it \
                 and hands it over again",
                outing.lines,
                self.config.flush_deadline.as_secs(),
            ),
        );
    }

    /// Sorts a chunk's parts by lane. False: those of some are left out, since their target takes nothing.
    async fn load(
        self: &Arc<Self>,
        parts: Vec<Part>,
        name: &str,
        deadline: Instant,
    ) -> (Vec<Load>, bool) {
        let mut all = true;
        let mut lanes: BTreeMap<String, Option<Waiting>> = BTreeMap::new();
        for part in parts {
            let (lane, target) = self.target(&part, name);
            let waiting = lanes.entry(lane).or_insert_with_key(|lane| {
                let circuit = self.begin_lane(lane);
                let permit = circuit.leave().ok()?;
                Some(Waiting {
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
        let patience = deadline.min(Instant::now() + SHAPE_PATIENCE);
        let loads = lanes.into_iter().filter_map(|(lane, it)| Some((lane, it?)));
        let loads = join_all(loads.map(|(lane, it)| self.shape(lane, it, patience))).await;
        let known = loads.iter().all(Option::is_some);
        (loads.into_iter().flatten().collect(), all && known)
    }

    /// Finds out what a target takes. One that does not say so soon takes nothing; the sink goes on asking.
    async fn shape(&self, lane: String, waiting: Waiting, patience: Instant) -> Option<Load> {
        let Waiting {
            circuit,
            permit,
            parts,
        } = waiting;
        let (target, _) = parts.first()?;
        let shape = match self.sink.shape(target).now_or_never() {
            Some(shape) => Some(shape),
            None if permit.is_probe() => None,
            None => {
                tokio::select! {
                    biased;
                    shape = self.within(patience, self.sink.shape(target)) => shape,
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
                self.say_open(&lane, "has not said what it takes");
            }
            return None;
        };
        Some(Load {
            lane,
            circuit,
            permit,
            shape,
            parts,
        })
    }

    /// Encodes a step of a chunk, as soon as there is memory for it. Gives what is held for it, too.
    async fn encode(
        &self,
        tag: &Arc<[u8]>,
        data: &[u8],
        from: Place,
        wanted: impl Fn(u32) -> bool,
    ) -> (Encoded, Share) {
        let mut needed = self.encoding().most(tag, data, from);
        loop {
            let share = self.memory.reserve(needed).await;
            match self.encode_step(tag, data, from, needed, &wanted) {
                Ok(encoded) => return (encoded, share),
                // One event, with all that is added to it, is more than a step: it goes alone.
                Err(NeedsMore(bytes)) => needed = bytes,
            }
        }
    }

    fn encode_step(
        &self,
        tag: &Arc<[u8]>,
        data: &[u8],
        from: Place,
        memory: usize,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Encoded, NeedsMore> {
        let encoded = self.encoding().step(tag, data, from, memory, wanted)?;
        let bytes: usize = encoded.parts.iter().map(|part| part.text.len()).sum();
        self.metrics.bytes.add(Stage::Encoded, bytes as u64);
        Ok(encoded)
    }

    /// How chunks are encoded.
    fn encoding(&self) -> Encoding<'_> {
        let (names, line_bytes) = match &self.config.destination {
            // Each line may be a record.
            Destination::Firehose(firehose) => (&firehose.delivery_stream, PIECE_BYTES),
            Destination::Blob { folder, .. } => (folder, LINE_BYTES),
        };
        Encoding {
            longest_line: match self.config.compression {
                Compression::None => self.sink.longest_line(),
                // How long a line is that fits when it is compressed, is not known before.
                Compression::Gzip(_) | Compression::Zstd(_) => usize::MAX,
            },
            line_bytes,
            name_bytes: OBJECT_BYTES,
            ..Encoding::new(&self.config.encode, names)
        }
    }

    fn say_skipped(&self, skipped: usize) {
        if skipped > 0 {
            self.metrics.records.add(Record::Skipped, skipped as u64);
            self.log.trouble(
                Level::Warn,
                "log_key",
                &format!("{skipped} records without the log_key were skipped"),
            );
        }
    }

    /// The lane a part travels in, and its target: the stream, or an object named after its chunk.
    fn target(&self, part: &Part, chunk: &str) -> (String, Arc<str>) {
        match &self.config.destination {
            Destination::Firehose(_) => self.stream(part),
            Destination::Blob { .. } => {
                let name = self.object_name(&part.name, part.first, chunk);
                (String::new(), name.into())
            }
        }
    }

    /// The lane of a delivery stream, and the stream.
    fn stream(&self, part: &Part) -> (String, Arc<str>) {
        let stream = stream_name(&part.name);
        (stream.clone(), stream.into())
    }

    /// The whole name of an object below the store's root: its folder, when its first event happened, and
    /// what tells it from others.
    fn object_name(&self, folder: &str, first: Time, unique: &str) -> String {
        let (prefix, extension) = match &self.config.destination {
            Destination::Blob {
                prefix, extension, ..
            } => (prefix.as_str(), extension.as_str()),
            Destination::Firehose(_) => ("", ""),
        };
        let mut name = String::with_capacity(128);
        for folder in [prefix, folder] {
            let folder = folder.trim_matches('/');
            if !folder.is_empty() {
                name.push_str(folder);
                name.push('/');
            }
        }
        compact_time(first, &mut name);
        let _ = write!(name, "-{unique}{extension}");
        name
    }

    /// Cuts a part into pieces its target takes, which hold a part of `share`. Lines that are too long become letters.
    fn pieces(
        &self,
        mut part: Part,
        shape: Shape,
        flight: &Arc<Flight>,
        encoded: &mut Encoded,
        share: &mut Share,
    ) -> Vec<Piece<Ticket>> {
        let limits = shape.limits;
        let compression = if shape.compression {
            self.config.compression
        } else {
            Compression::None
        };
        let of_lines = |lines: usize| lines * size_of::<u32>();
        if compression == Compression::None {
            drop_long_lines(&mut part, flight.tag(), limits.record_bytes, encoded);
            let runs = runs(&part.ends, shape.piece_bytes, limits.record_lines);
            let beside = of_lines(part.events.len()) + runs.len() * self.piece_bytes();
            let (text, events) = (share.of(part.text, beside), part.events.into());
            let piece = |run: Range<usize>| Piece {
                bytes: text.slice(span(&part.ends, &run)).into(),
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
                let beside = of_lines(run.len()) + self.piece_bytes();
                pieces.push(Piece {
                    bytes: share.of(body, beside).into(),
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
        buffers::give(part.text);
        pieces
    }

    /// What a piece needs beside its bytes.
    fn piece_bytes(&self) -> usize {
        match &self.config.destination {
            Destination::Firehose(_) => PIECE_BYTES,
            Destination::Blob { .. } => OBJECT_BYTES,
        }
    }

    /// Writes letters, in which there are so many log events.
    async fn keep_letters(
        self: &Arc<Self>,
        letters: Vec<Letter>,
        events: u64,
    ) -> Result<(), Unkept> {
        let Some(first) = letters.first() else {
            return Ok(());
        };
        let count = letters.len();
        let (tag, reason) = (Arc::clone(&first.tag), first.reason.as_str());
        let first = format!("{reason}: {}", first.detail);
        let reasons: Vec<Reason> = letters.iter().map(|letter| letter.reason).collect();
        let pipeline = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || pipeline.letters.write(&letters)).await;
        // Otherwise the runtime is going down.
        let written = written.unwrap_or_else(|end| Err(io::Error::other(end).into()));
        let path = self.letters.path().display();
        let usage = match written {
            Ok(usage) => usage,
            Err(unkept) => {
                self.log.trouble(
                    Level::Error,
                    "dead_letter_disk",
                    &format!(
                        "dead letters cannot be written to {path}: {unkept}; the records that are to become some wait \
                         until they can, and all others go on"
                    ),
                );
                return Err(unkept);
            }
        };
        self.metrics.records.add(Record::DeadLetter, events);
        for reason in reasons {
            self.metrics.letters.add(reason, 1);
        }
        self.log.trouble(
            Level::Warn,
            "dead_letter",
            &format!("{count} dead letters were written to {path}; the first: {first}"),
        );
        let delivered = self.metrics.records.get(Record::Delivered);
        let alarm = {
            let mut rate = self.letter_rate.lock();
            let rate = rate.as_mut().expect("nothing panics with this lock");
            rate.note(Instant::now(), events, usage, delivered)
        };
        if let Some(alarm) = alarm {
            let tag = String::from_utf8_lossy(&tag[..tag.len().min(200)]);
            self.log.say(
                Level::Error,
                &format!("{alarm}. The last one came with tag '{tag}', {first}; all of them are in {path}"),
            );
        }
        if let Some(warning) = usage.warning() {
            self.log.trouble(Level::Warn, "dead_letter_room", &warning);
        }
        self.log
            .recovered("dead_letter_disk", "dead letters can be written again");
        Ok(())
    }
}

/// Seconds from one time to another; 0 where the clock was set back.
fn since(then: Time, now: Time) -> f64 {
    let seconds = now.seconds.saturating_sub(then.seconds) as f64;
    let nanos = f64::from(now.nanos) - f64::from(then.nanos);
    (seconds + nanos / 1e9).max(0.0)
}

/// A piece and where it goes.
type Queued = (Arc<str>, Piece<Ticket>);

/// A flush of a chunk on its way to its targets.
struct Outing {
    /// What is settled of it.
    flight: Flight,
    /// One for each target that something was handed over for.
    legs: Vec<Leg>,
    /// Nothing of it was left out, or has failed.
    all: bool,
    /// There are letters that could not be kept: bytes that they need, as far as that is known.
    unkept: Option<u64>,
    /// The same, where all else is settled.
    waits: Option<u64>,
    /// Lines that were handed over.
    lines: u64,
    /// Events without the `log_key`.
    skipped: usize,
}

impl Outing {
    /// Waits for all targets but those that take nothing.
    async fn landed(&self) -> Verdict {
        let mut verdict = match self.all {
            true => Verdict::Ok,
            false => Verdict::Retry,
        };
        for leg in &self.legs {
            if leg.landed().await == Verdict::Retry {
                verdict = Verdict::Retry;
            }
        }
        verdict
    }

    /// Keeps of the legs only those that are on their way.
    fn forget_landed(&mut self) {
        for leg in self.legs.extract_if(.., |leg| leg.flight.has_landed()) {
            self.all &= leg.flight.verdict() == Verdict::Ok;
        }
    }

    /// Bytes of memory it needs, about, with its place among others.
    fn footprint(&self) -> usize {
        let leg = size_of::<Leg>() + size_of::<Flight>();
        4 * size_of::<ChunkId>()
            + size_of::<Outing>()
            + self.flight.footprint()
            + leg * self.legs.len()
    }

    /// Whether nothing of it is on its way.
    fn has_landed(&self) -> bool {
        self.legs.iter().all(|leg| leg.flight.has_landed())
    }
}

/// What of a chunk goes through one lane, which lets it.
struct Waiting {
    circuit: Arc<Circuit>,
    permit: Permit,
    parts: Vec<(Arc<str>, Part)>,
}

/// The same, when it is known what the target takes.
struct Load {
    lane: String,
    circuit: Arc<Circuit>,
    permit: Permit,
    shape: Shape,
    parts: Vec<(Arc<str>, Part)>,
}

fn count(lines: usize) -> u32 {
    u32::try_from(lines).unwrap_or(u32::MAX)
}

fn too_large(tag: &Arc<[u8]>, line: &[u8], bytes: usize, limit: usize) -> Letter {
    Letter {
        tag: Arc::clone(tag),
        reason: Reason::TooLarge,
        detail: format!("a record of {bytes} bytes; the destination takes at most {limit}"),
        target: None,
        request_id: None,
        record: line.strip_suffix(b"\n").unwrap_or(line).to_vec().into(),
    }
}

/// Where the text of some lines begins and ends.
fn span(ends: &[usize], lines: &Range<usize>) -> Range<usize> {
    let start = lines.start.checked_sub(1).map_or(0, |before| ends[before]);
    start..ends[lines.end - 1]
}

/// Takes lines out of a part that no record can hold.
fn drop_long_lines(part: &mut Part, tag: &Arc<[u8]>, limit: usize, encoded: &mut Encoded) {
    let ends = &part.ends;
    let spans = (0..ends.len()).map(|line| span(ends, &(line..line + 1)));
    if spans.clone().all(|span| span.len() <= limit) {
        return;
    }
    let mut kept = Part {
        text: Vec::with_capacity(part.text.len()),
        ends: Vec::with_capacity(ends.len()),
        events: Vec::with_capacity(part.events.len()),
        name: part.name.clone(),
        first: part.first,
    };
    for (span, event) in spans.zip(&part.events) {
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

#[cfg(test)]
mod tests;
