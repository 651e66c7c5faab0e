//! A fleet of senders on one delivery stream, in simulated time. The policies are those of the plugin
//! ([`ferry::delivery::policy`]); what is simulated is the service, the network, and a sender's queue.
//!
//! What this leaves out: how the service really measures its quotas, which is not documented (here they refill all the
//! time, and what is not used within a second is lost) and which shards it spreads a stream over; lost answers, and
//! requests that hang; that lines have different lengths, and are never cut to the exact size of a request; compressed
//! lines, which are cut into larger pieces; memory that is short, and several streams of one sender; senders that
//! restart, or come and go; clocks, and wakes that are late. The outage is one of errors, not of silence.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use ferry::delivery::policy::pace::{SMALL_REQUEST, is_throttling};
use ferry::delivery::policy::{Adaptive, Admission, Breaker, Pace, backoff};
use ferry::sink::Class;
use ferry::sink::firehose::describe::{Called, Starts, next_call};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// The quota of a stream in us-east-1, us-west-2 and eu-west-1, for what is put into it directly:
/// <https://docs.aws.amazon.com/firehose/latest/dev/limits.html>
pub(crate) const QUOTA_BYTES: f64 = 5.0 * 1024.0 * 1024.0;
const QUOTA_REQUESTS: f64 = 2_000.0;
const QUOTA_RECORDS: f64 = 500_000.0;
/// The quota of an account and region for DescribeDeliveryStream, in calls a second.
const DESCRIBE_QUOTA: f64 = 5.0;
/// The most bytes in a request and in a record.
const REQUEST_BYTES: usize = 4 * 1024 * 1024;
const RECORD_BYTES: usize = 1_000 * 1024;
/// What a sender may hold with the default `memory_limit`, less what it reserves for reading.
const MEMORY: usize = 48 * 1024 * 1024;
/// The time to the service and back, without the time for the bytes …
const ROUND_TRIP: (u64, u64) = (40_000, 80_000);
/// … of which this many go out a microsecond.
const BYTES_A_MICROSECOND: usize = 12;
/// The interval between the chunks of a host, in microseconds.
const CHUNK_INTERVAL: u64 = 1_000_000;
/// The slices of a second in which bytes are counted.
pub(crate) const SLICES: u64 = 10;
const SLICE: u64 = 1_000_000 / SLICES;

/// Microseconds since the beginning.
type Time = u64;

/// What the fleet goes through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Story {
    pub(crate) senders: usize,
    pub(crate) seed: u64,
    /// Whether senders have a pace, besides all other policies.
    pub(crate) paced: bool,
    /// The share of the quota that the logs of all senders take together; infinite if there is always more to send.
    pub(crate) load: f64,
    /// When the service fails, and when it works again.
    pub(crate) outage: Option<(Duration, Duration)>,
    pub(crate) end: Duration,
}

/// What happened.
pub(crate) struct Record {
    /// Bytes that reached the service, in each slice.
    pub(crate) attempted: Vec<u64>,
    /// Bytes that it accepted.
    pub(crate) accepted: Vec<u64>,
    /// Of each sender, the bytes accepted in each minute.
    pub(crate) shares: Vec<Vec<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    bytes: usize,
    attempts: u32,
}

struct Request {
    records: Vec<Piece>,
    admission: Admission,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A chunk of lines arrives.
    Chunk,
    /// The sender may send now.
    Wake,
    /// A request reaches the service.
    Reach(usize),
    /// The answer to a request reaches its sender.
    Answer(usize),
}

/// A sender of the plugin, as far as it matters here.
struct Sender {
    rng: StdRng,
    adaptive: Adaptive,
    breaker: Breaker,
    pace: Option<Pace>,
    /// The bytes in the spool.
    backlog: f64,
    /// The records that failed and may be sent again.
    failed: VecDeque<Piece>,
    /// Those that wait.
    waiting: Vec<(Time, Vec<Piece>)>,
    in_flight: usize,
    /// The bytes in memory.
    held: usize,
    /// The earliest wake that is due.
    wakes_at: Option<Time>,
}

/// The allowance of a quota: what was not used for a second is lost.
struct Bucket {
    rate: f64,
    tokens: f64,
    at: Time,
}

impl Bucket {
    fn new(rate: f64) -> Bucket {
        Bucket {
            rate,
            tokens: rate,
            at: 0,
        }
    }

    fn take(&mut self, amount: f64, now: Time) -> bool {
        let passed = (now - self.at) as f64 / 1e6;
        self.tokens = (self.tokens + passed * self.rate).min(self.rate);
        self.at = now;
        let fits = self.tokens >= amount;
        if fits {
            self.tokens -= amount;
        }
        fits
    }
}

struct Fleet {
    story: Story,
    epoch: Instant,
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, usize, Event)>>,
    count: u64,
    senders: Vec<Sender>,
    requests: Vec<Option<Request>>,
    /// The results of requests that were answered: for each record whether it was accepted, or why all of them failed.
    answers: Vec<Option<Result<Vec<bool>, Class>>>,
    free: Vec<usize>,
    quota: [Bucket; 3],
    rng: StdRng,
    record: Record,
}

/// Tells a story.
pub(crate) fn tell(story: Story) -> Record {
    let end = story.end.as_micros() as Time;
    let slices = (end / SLICE + 1) as usize;
    let minutes = (end / 60_000_000 + 1) as usize;
    let epoch = Instant::now();
    let senders = (0..story.senders).map(|number| Sender {
        rng: StdRng::seed_from_u64(
            story
                .seed
                .wrapping_mul(1_000_003)
                .wrapping_add(number as u64),
        ),
        adaptive: Adaptive::default(),
        breaker: Breaker::default(),
        pace: story.paced.then(|| Pace::new(epoch)),
        backlog: if story.load.is_finite() {
            0.0
        } else {
            f64::INFINITY
        },
        failed: VecDeque::new(),
        waiting: Vec::new(),
        in_flight: 0,
        held: 0,
        wakes_at: None,
    });
    let mut fleet = Fleet {
        senders: senders.collect(),
        story,
        epoch,
        now: 0,
        events: BinaryHeap::new(),
        count: 0,
        requests: Vec::new(),
        answers: Vec::new(),
        free: Vec::new(),
        quota: [QUOTA_BYTES, QUOTA_REQUESTS, QUOTA_RECORDS].map(Bucket::new),
        rng: StdRng::seed_from_u64(story.seed),
        record: Record {
            attempted: vec![0; slices],
            accepted: vec![0; slices],
            shares: vec![vec![0; minutes]; story.senders],
        },
    };
    for sender in 0..story.senders {
        let at = fleet.rng.random_range(0..CHUNK_INTERVAL);
        let first = if story.load.is_finite() {
            Event::Chunk
        } else {
            Event::Wake
        };
        fleet.at(at, sender, first);
    }
    while let Some(Reverse((at, _, sender, event))) = fleet.events.pop() {
        if at > end {
            break;
        }
        fleet.now = at;
        match event {
            Event::Chunk => fleet.chunk(sender),
            Event::Wake => {
                if fleet.senders[sender].wakes_at.is_some_and(|due| due <= at) {
                    fleet.senders[sender].wakes_at = None;
                }
                fleet.send(sender);
            }
            Event::Reach(request) => fleet.reach(sender, request),
            Event::Answer(request) => fleet.answer(sender, request),
        }
    }
    fleet.record
}

impl Fleet {
    fn at(&mut self, at: Time, sender: usize, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, sender, event)));
    }

    fn wake(&mut self, sender: usize, at: Time) {
        let due = &mut self.senders[sender].wakes_at;
        if due.is_none_or(|due| at < due) {
            *due = Some(at);
            self.at(at, sender, Event::Wake);
        }
    }

    fn instant(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now)
    }

    fn chunk(&mut self, sender: usize) {
        let mean = self.story.load * QUOTA_BYTES / self.story.senders as f64;
        let it = &mut self.senders[sender];
        // Hosts do not log the same all the time.
        it.backlog += mean * it.rng.random_range(0.5..1.5) * CHUNK_INTERVAL as f64 / 1e6;
        self.at(self.now + CHUNK_INTERVAL, sender, Event::Chunk);
        self.send(sender);
    }

    /// Sends all that a sender may send now, and sees to it that it wakes when it may send more. As `Sender::run`.
    fn send(&mut self, sender: usize) {
        let now = self.instant();
        loop {
            let it = &mut self.senders[sender];
            while let Some(due) = it.waiting.iter().position(|(at, _)| *at <= self.now) {
                let (_, records) = it.waiting.remove(due);
                for record in records.into_iter().rev() {
                    it.failed.push_front(record);
                }
            }
            let again = it.waiting.iter().map(|(at, _)| *at).min();
            if let Some(again) = again {
                self.wake(sender, again);
            }
            let it = &mut self.senders[sender];
            let room = MEMORY.saturating_sub(it.held);
            let fresh = (it.backlog.min(REQUEST_BYTES as f64) as usize).min(room);
            if (it.failed.is_empty() && fresh == 0) || it.in_flight >= it.adaptive.limit() {
                return;
            }
            if let (Some(pace), false) = (&mut it.pace, it.breaker.is_open()) {
                let ready = pace.ready_at(now);
                if ready > now {
                    let at = self.now + (ready - now).as_micros() as Time + 1;
                    return self.wake(sender, at);
                }
            }
            let admission = match it.breaker.admit(now) {
                Admission::Wait(Some(until)) => {
                    let at = self.now + (until - now).as_micros() as Time + 1;
                    return self.wake(sender, at);
                }
                Admission::Wait(None) => return,
                admission => admission,
            };
            let most = match (&it.pace, admission) {
                (None, _) => REQUEST_BYTES,
                (Some(_), Admission::Probe) => SMALL_REQUEST,
                (Some(pace), _) => pace.most_bytes().min(REQUEST_BYTES),
            };
            let records = it.take(most, fresh);
            let bytes = records.iter().map(|record| record.bytes).sum();
            if let Some(pace) = &mut it.pace {
                pace.sent(bytes, now);
            }
            it.in_flight += 1;
            let request = Request { records, admission };
            let number = match self.free.pop() {
                Some(number) => number,
                None => {
                    self.requests.push(None);
                    self.answers.push(None);
                    self.requests.len() - 1
                }
            };
            self.requests[number] = Some(request);
            let upload = (bytes / BYTES_A_MICROSECOND) as Time;
            let there = self.rng.random_range(ROUND_TRIP.0..ROUND_TRIP.1) / 2;
            self.at(self.now + upload + there, sender, Event::Reach(number));
        }
    }

    /// What the service does with a request: as many of its records as the quota allows are accepted, in their order, and
    /// each of the others has an error of its own.
    fn reach(&mut self, sender: usize, number: usize) {
        let request = self.requests[number].as_ref().expect("a request is sent");
        let bytes: usize = request.records.iter().map(|record| record.bytes).sum();
        let slice = (self.now / SLICE) as usize;
        self.record.attempted[slice] += bytes as u64;
        let down = self.story.outage.is_some_and(|(from, to)| {
            let now = Duration::from_micros(self.now);
            from <= now && now < to
        });
        let [of_bytes, of_requests, of_records] = &mut self.quota;
        let answer: Result<Vec<bool>, Class> = if down {
            Err(Class::Transient)
        } else if !of_requests.take(1.0, self.now) {
            Err(Class::Throttle)
        } else {
            let now = self.now;
            let mut accepts = |record: &Piece| {
                of_records.take(1.0, now) && of_bytes.take(record.bytes as f64, now)
            };
            Ok(request.records.iter().map(&mut accepts).collect())
        };
        if let Ok(accepted) = &answer {
            let records = request.records.iter().zip(accepted);
            let records = records.filter(|(_, ok)| **ok);
            let accepted: usize = records.map(|(record, _)| record.bytes).sum();
            self.record.accepted[slice] += accepted as u64;
            self.record.shares[sender][(self.now / 60_000_000) as usize] += accepted as u64;
        }
        self.answers[number] = Some(answer);
        let back = self.rng.random_range(ROUND_TRIP.0..ROUND_TRIP.1) / 2;
        self.at(self.now + back, sender, Event::Answer(number));
    }

    /// What a sender does with an answer. As `Senders::send` and `Sender::apply_answer`.
    fn answer(&mut self, sender: usize, number: usize) {
        let now = self.instant();
        let request = self.requests[number]
            .take()
            .expect("a request is answered once");
        let answer = self.answers[number].take().expect("it has an answer");
        self.free.push(number);
        let it = &mut self.senders[sender];
        it.in_flight -= 1;
        let sent = request.records.len();
        let (accepted, class) = match answer {
            Ok(accepted) => (accepted, Class::Throttle),
            Err(class) => (vec![false; sent], class),
        };
        let mut failed = Vec::new();
        let mut bytes = 0;
        for (record, ok) in request.records.into_iter().zip(accepted) {
            match ok {
                true => bytes += record.bytes,
                false => failed.push(Piece {
                    attempts: record.attempts + 1,
                    ..record
                }),
            }
        }
        it.held -= bytes;
        let throttled = if class == Class::Throttle {
            failed.len()
        } else {
            0
        };
        match throttled * 2 > sent {
            true => it.adaptive.throttled(now),
            false if failed.is_empty() => it.adaptive.success(),
            false => {}
        }
        let recovered = match class == Class::Transient {
            true => {
                it.breaker
                    .failed(request.admission, class, now, &mut it.rng);
                false
            }
            false => it.breaker.succeeded(request.admission),
        };
        if recovered {
            it.waiting.iter_mut().for_each(|(at, _)| *at = self.now);
        }
        if let Some(pace) = &mut it.pace {
            if recovered {
                pace.recovered(now);
            }
            pace.accepted(bytes, now);
            if is_throttling(throttled, sent) {
                pace.throttled(now, &mut it.rng);
            }
        }
        if let Some(most) = failed.iter().map(|record| record.attempts).max() {
            let wait = backoff(class, most, &mut it.rng);
            it.waiting
                .push((self.now + wait.as_micros() as Time, failed));
        }
        self.send(sender);
    }
}

impl Sender {
    /// Takes a request's records: those that failed first, then what is in the spool. As `Packer::take`.
    fn take(&mut self, most: usize, fresh: usize) -> Vec<Piece> {
        let mut records: Vec<Piece> = Vec::new();
        let mut left = most;
        while let Some(first) = self.failed.front_mut()
            && left > 0
        {
            if first.bytes <= left {
                left -= first.bytes;
                records.extend(self.failed.pop_front());
            } else if records.is_empty() {
                first.bytes -= left;
                records.push(Piece {
                    bytes: std::mem::take(&mut left),
                    attempts: first.attempts,
                });
            } else {
                return records;
            }
        }
        let mut fresh = fresh.min(left);
        self.backlog -= fresh as f64;
        self.held += fresh;
        while fresh > 0 {
            let bytes = fresh.min(RECORD_BYTES).min(most);
            records.push(Piece { bytes, attempts: 0 });
            fresh -= bytes;
        }
        records
    }
}

/// The figures of a span of time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// The share of the quota that was accepted.
    pub(crate) used: f64,
    /// Jain's index of what each sender got: 1 if all got the same.
    pub(crate) fairness: f64,
    /// The most bytes that reached the service within a second, as a multiple of the quota …
    pub(crate) attempted: f64,
    /// … and that it accepted.
    pub(crate) accepted: f64,
}

impl Record {
    /// Returns the figures of whole minutes.
    pub(crate) fn figures(&self, from: Duration, to: Duration) -> Figures {
        let slices = |time: Duration| (time.as_micros() as Time / SLICE) as usize;
        let span = slices(from)..slices(to);
        let minutes = from.as_secs() as usize / 60..to.as_secs() as usize / 60;
        let sum: u64 = self.accepted[span.clone()].iter().sum();
        let shares = self
            .shares
            .iter()
            .map(|of| of[minutes.clone()].iter().sum::<u64>() as f64);
        let (sum_of, squares) = shares.fold((0.0, 0.0), |(sum, squares), share| {
            (sum + share, squares + share * share)
        });
        let highest = |series: &[u64]| {
            let windows = series.windows(SLICES as usize);
            let most = windows.map(|window| window.iter().sum::<u64>()).max();
            most.unwrap_or(0) as f64 / QUOTA_BYTES
        };
        Figures {
            used: sum as f64 / QUOTA_BYTES / (to - from).as_secs_f64(),
            fairness: sum_of * sum_of / (self.shares.len() as f64 * squares),
            attempted: highest(&self.attempted[span.clone()]),
            accepted: highest(&self.accepted[span]),
        }
    }
}

/// Lets a fleet start at once, each sender with a stream to describe, while the account's quota is five calls a second.
/// Returns the number of calls in each second until all are described.
pub(crate) fn describe(senders: usize, seed: u64) -> Vec<u32> {
    let epoch = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut quota = Bucket::new(DESCRIBE_QUOTA);
    let mut starts = vec![Starts::new(); senders];
    let mut failures = vec![0; senders];
    let time = |at: Instant| (at - epoch).as_micros() as Time;
    let first = |(sender, starts): (usize, &mut Starts)| {
        Reverse((time(starts.next(epoch, &mut rng)), sender))
    };
    let mut due: BinaryHeap<Reverse<(Time, usize)>> =
        starts.iter_mut().enumerate().map(first).collect();
    let mut calls = Vec::new();
    while let Some(Reverse((at, sender))) = due.pop() {
        let now = epoch + Duration::from_micros(at);
        let second = (at / 1_000_000) as usize;
        calls.resize(calls.len().max(second + 1), 0);
        calls[second] += 1;
        starts[sender].started(now);
        let described = quota.take(1.0, at);
        starts[sender].answered(!described, now);
        if !described {
            failures[sender] += 1;
            let again = now + next_call(Called::Throttled, failures[sender], &mut rng);
            let again = starts[sender].next(again, &mut rng);
            due.push(Reverse((time(again), sender)));
        }
    }
    calls
}
