//! A generation of the engine, on its own thread: from the outputs' Init, through inputs, chunks, tasks and retries, to
//! their Exit. A hot reload ends a generation and starts another.
//!
//! A task is a chunk in flight to all outputs that match its tag. Each output is a route, with its own retries. The
//! task ends when its last route is settled.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::ffi::CString;
use std::io;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;

use super::abi::{
    self, FLB_OK, FLB_RETRY, FlushCall, LOG_DEBUG, LOG_ERROR, LOG_INFO, LOG_WARN, Plugin, Proxy,
};
use super::chunk::{Appender, Chunk, Origin, Outcome, count_records};
use super::input::{Next, Slot};
use super::report::{Dropped, LibraryCpu, Progress, Tally, spawn_own};
use super::schedule::{RetryLimit, Schedule};
use super::stack::{AlternateStack, FlushStack};
use super::storage::Store;
use crate::config::{Instance, Service};

/// The most chunks in flight (`FLB_CONFIG_DEFAULT_TASK_MAP_SIZE_LIMIT`); others wait.
const TASK_LIMIT: usize = 16_384;

/// The settings of an output.
pub(crate) struct Plan {
    /// Its name, such as `ferry.0`, or its alias.
    pub(crate) name: String,
    /// The index of its library.
    pub(crate) proxy: usize,
    pub(crate) definition: Instance,
    /// The pattern of tags; without one it gets no chunks.
    pub(crate) tag_pattern: Option<String>,
    pub(crate) retry_limit: RetryLimit,
    pub(crate) workers: usize,
    pub(crate) log_level: i32,
}

/// The state that the engine's thread shares with the supervisor.
pub(crate) struct Shared {
    pub(crate) progress: Progress,
    pub(crate) cpu: Mutex<LibraryCpu>,
    /// Whether a threshold of `--reload-after-chunks` was reached.
    pub(crate) wants_reload: AtomicBool,
    pub(crate) supervisor: thread::Thread,
}

impl Shared {
    pub(crate) fn sample_cpu(&self) {
        let mut cpu = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        cpu.sample();
    }
}

/// The parts of a generation, which it returns when it ends.
pub(crate) struct Generation {
    pub(crate) service: Service,
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) plans: Vec<Plan>,
    pub(crate) slots: Vec<Slot>,
    /// The chunks of inputs with `storage.type filesystem`.
    pub(crate) store: Option<Store>,
    /// The delay between the last answer for a chunk and the removal of its file.
    pub(crate) settle_late: Duration,
    /// The state that outlives a reload.
    pub(crate) lasting: Lasting,
}

/// The state that outlives a reload.
pub(crate) struct Lasting {
    pub(crate) tally: Tally,
    pub(crate) random: SmallRng,
    /// The numbers of chunks after which to reload, ascending.
    pub(crate) reload_after: VecDeque<u64>,
    pub(crate) chunks_made: u64,
}

/// An order of the supervisor to the engine.
pub(crate) enum Order {
    Stop {
        by_reload: bool,
    },
    /// Continue, since the reload that the engine requested is cancelled.
    Resume,
}

pub(crate) enum Event {
    Order(Order),
    Flushed(Flushed),
}

/// A completed flush.
pub(crate) struct Flushed {
    task: usize,
    output: usize,
    answer: i32,
    took: Duration,
}

struct Job {
    task: usize,
    output: usize,
    data: Arc<Vec<u8>>,
    tag: Arc<str>,
}

impl Job {
    fn run(self, call: FlushCall, stack: &mut FlushStack) -> Flushed {
        // Like the host, passes a copy of the tag that is freed after the call.
        let tag = CString::new(self.tag.replace('\0', "")).expect("no nul is left in it");
        let began = Instant::now();
        let answer = stack.run(|| call.call(&self.data, &tag));
        Flushed {
            task: self.task,
            output: self.output,
            answer,
            took: began.elapsed(),
        }
    }
}

struct Task {
    chunk_name: String,
    slot: usize,
    tag: Arc<str>,
    data: Arc<Vec<u8>>,
    records: u64,
    routes: Vec<Route>,
    origin: Option<Box<dyn Origin>>,
    /// [`Outcome::Dropped`] once an output has not accepted it.
    outcome: Outcome,
}

struct Route {
    output: usize,
    /// The number of retries.
    retries: u32,
    in_flight: bool,
}

struct Output {
    plan: Plan,
    /// The instance; `None` once it has exited.
    plugin: Option<Plugin>,
    call: FlushCall,
    /// The stack for flushes on the engine's thread; workers have their own.
    stack: Option<FlushStack>,
    workers: VecDeque<Worker>,
}

struct Worker {
    jobs: Sender<Job>,
    /// The thread, which returns the most stack used by its flushes.
    thread: JoinHandle<usize>,
}

impl Output {
    /// Starts the workers, after Init, since calls contain the pointer that the plugin stored then.
    fn start(
        plan: Plan,
        plugin: Plugin,
        proxy: &Proxy,
        stack_size: usize,
        results: &Sender<Event>,
    ) -> io::Result<Self> {
        let call = plugin.flush_call(proxy);
        let mut output = Self {
            plugin: Some(plugin),
            call,
            stack: None,
            workers: VecDeque::new(),
            plan,
        };
        if output.plan.workers == 0 {
            output.stack = Some(FlushStack::new(stack_size, &output.plan.name)?);
        }
        for number in 0..output.plan.workers {
            let (jobs, todo) = mpsc::channel::<Job>();
            let mut stack = FlushStack::new(stack_size, &output.plan.name)?;
            let results = results.clone();
            let thread = spawn_own(
                format!("flb-out-{}-w{number}", output.plan.name),
                move || {
                    let _alternate = AlternateStack::install();
                    for job in todo {
                        // Fails once the engine has ended, and the answer is not needed.
                        let _ = results.send(Event::Flushed(job.run(call, &mut stack)));
                    }
                    stack.high_water()
                },
            )?;
            output.workers.push_back(Worker { jobs, thread });
        }
        Ok(output)
    }

    /// Lets the workers finish their jobs, one worker after the other, like the host.
    fn join_workers(&mut self) -> usize {
        let mut high_water = self.stack.as_ref().map_or(0, FlushStack::high_water);
        for worker in self.workers.drain(..) {
            drop(worker.jobs);
            let deepest = worker.thread.join().unwrap_or(0);
            high_water = high_water.max(deepest);
        }
        high_water
    }
}

/// The chunks of an input.
#[derive(Default)]
struct Buffer {
    appender: Appender,
    /// The chunks that wait for a task, with their number of records.
    ready: VecDeque<(Chunk, u64)>,
    /// The bytes of chunks that are ready or in flight.
    on_the_way: usize,
    paused: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Running,
    /// Whether a threshold was reached: nothing new starts until the supervisor has answered.
    Held,
    /// Whether all inputs have ended: every chunk is completed on its ordinary schedule.
    Draining,
    Stopping {
        deadline: Option<Instant>,
        by_reload: bool,
    },
}

struct Engine {
    service: Service,
    outputs: Vec<Output>,
    slots: Vec<Slot>,
    buffers: Vec<Buffer>,
    tasks: BTreeMap<usize, Task>,
    /// The unused task numbers below the highest one.
    free: BTreeSet<usize>,
    /// The flushes for the engine's own thread.
    local: VecDeque<Job>,
    retries: BinaryHeap<Reverse<(Instant, usize, usize)>>,
    schedule: Schedule,
    state: State,
    next_flush: Instant,
    store: Option<Store>,
    settle_late: Duration,
    /// The settled chunks whose files are not removed yet, oldest first.
    late: VecDeque<(Instant, Box<dyn Origin>, Outcome)>,
    lasting: Lasting,
    shared: Arc<Shared>,
}

impl Generation {
    /// Runs to the end; the caller unloads the libraries. An error means that an output did not start.
    pub(crate) fn run(
        mut self,
        shared: Arc<Shared>,
        results: Sender<Event>,
        events: &Receiver<Event>,
    ) -> (Self, Result<(), String>) {
        let _alternate = AlternateStack::install();
        let mut outputs = Vec::new();
        let mut plugins: VecDeque<_> = self
            .plans
            .drain(..)
            .map(|plan| {
                let plugin = Plugin::new(&plan.definition, plan.log_level);
                (plan, plugin)
            })
            .collect();
        while let Some((plan, mut plugin)) = plugins.pop_front() {
            let proxy = &mut self.proxies[plan.proxy];
            let name = plan.name.clone();
            let index = plan.proxy;
            let failure = if plugin.init(proxy) {
                let stack_size = self.service.coro_stack_size;
                match Output::start(plan, plugin, proxy, stack_size, &results) {
                    Ok(output) => {
                        outputs.push(output);
                        continue;
                    }
                    Err(error) => {
                        format!("[output] could not start thread pool for '{name}': {error}")
                    }
                }
            } else {
                let plugin = &self.proxies[index].name;
                abi::log(
                    LOG_ERROR,
                    &format!("[go proxy]: plugin '{plugin}' failed to initialize"),
                );
                format!("[output] could not initialize '{name}'")
            };
            abi::log(LOG_ERROR, &failure);
            // The one that failed is only freed; all others exit, initialised or not.
            for output in &mut outputs {
                output.join_workers();
            }
            let started = outputs.into_iter();
            let started = started.filter_map(|output| Some((output.plan, output.plugin?)));
            for (plan, plugin) in started.chain(plugins) {
                plugin.exit(&self.proxies[plan.proxy], false);
            }
            return (self, Err(failure));
        }
        for output in &outputs {
            let proxy = &self.proxies[output.plan.proxy];
            proxy.pre_run(self.service.hot_reload);
            let tally = self.lasting.tally.outputs.entry(output.plan.name.clone());
            tally.or_default().report.workers = output.plan.workers;
        }
        let mut engine = Engine {
            outputs,
            buffers: self.slots.iter().map(|_| Buffer::default()).collect(),
            slots: std::mem::take(&mut self.slots),
            tasks: BTreeMap::new(),
            free: BTreeSet::new(),
            local: VecDeque::new(),
            retries: BinaryHeap::new(),
            schedule: Schedule {
                base: self.service.scheduler_base,
                cap: self.service.scheduler_cap,
            },
            state: State::Running,
            next_flush: Instant::now() + self.service.flush,
            store: self.store.take(),
            settle_late: self.settle_late,
            late: VecDeque::new(),
            service: self.service.clone(),
            lasting: self.lasting,
            shared,
        };
        engine.run(events);
        engine.shut_down(&self.proxies, events);
        self.slots = engine.slots;
        self.lasting = engine.lasting;
        (self, Ok(()))
    }
}

impl Engine {
    fn run(&mut self, events: &Receiver<Event>) {
        loop {
            let now = Instant::now();
            while let Ok(event) = events.try_recv() {
                self.handle(event, now);
            }
            self.start_due_retries(now);
            self.tell_origins(now);
            if now >= self.next_flush {
                self.next_flush = (self.next_flush + self.service.flush).max(now);
                self.gather(true);
                self.start_tasks();
            }
            let wake = self.poll_inputs(now);
            self.check_reload_threshold();
            self.publish();
            if self.is_over(now) {
                return;
            }
            if let Some(job) = self.local.pop_front() {
                let output = &mut self.outputs[job.output];
                let stack = output.stack.as_mut();
                let stack = stack.expect("without workers there is a stack");
                let flushed = job.run(output.call, stack);
                self.settle(flushed, Instant::now());
            } else if wake.is_none_or(|wake| wake > now) {
                self.wait(events, now, wake);
            }
        }
    }

    fn wait(&mut self, events: &Receiver<Event>, now: Instant, wake: Option<Instant>) {
        let retry = self.retries.peek().map(|Reverse((due, ..))| *due);
        let deadline = match self.state {
            State::Stopping { deadline, .. } => deadline,
            _ => None,
        };
        let late = self.late.front().map(|(due, ..)| *due);
        let due = [wake, retry, deadline, late].into_iter().flatten();
        let due = due.fold(self.next_flush, Instant::min);
        match events.recv_timeout(due.saturating_duration_since(now)) {
            Ok(event) => self.handle(event, Instant::now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("the supervisor waits for us"),
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let deadline = match self.state {
            State::Draining => None,
            State::Stopping { deadline, .. } => deadline,
            State::Running | State::Held => return false,
        };
        let mut buffers = self.buffers.iter();
        let idle = self.tasks.is_empty() && buffers.all(|buffer| buffer.ready.is_empty());
        idle || deadline.is_some_and(|deadline| now >= deadline)
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Flushed(flushed) => self.settle(flushed, now),
            Event::Order(Order::Stop { by_reload }) => self.begin_stop(by_reload, now),
            Event::Order(Order::Resume) if self.state == State::Held => self.state = State::Running,
            Event::Order(Order::Resume) => {}
        }
    }

    fn begin_stop(&mut self, by_reload: bool, now: Instant) {
        if matches!(self.state, State::Stopping { .. }) {
            return;
        }
        let waits = by_reload && self.service.reload_waits;
        let grace = self.service.grace.filter(|_| !waits);
        self.say(
            LOG_WARN,
            &match grace {
                Some(grace) => format!(
                    "[engine] service will shutdown in max {} seconds",
                    grace.as_secs_f64()
                ),
                None => {
                    "[engine] service will shutdown when all remaining tasks are flushed".into()
                }
            },
        );
        self.state = State::Stopping {
            deadline: grace.map(|grace| now + grace),
            by_reload,
        };
        self.gather(true);
        self.start_tasks();
        // Tasks that have nothing in flight are retried at once.
        let waiting = std::mem::take(&mut self.retries).into_iter();
        self.retries = waiting
            .map(|Reverse((due, task, output))| {
                let mut routes = self.tasks[&task].routes.iter();
                let running = routes.any(|route| route.in_flight);
                Reverse((if running { due } else { now }, task, output))
            })
            .collect();
    }

    /// Calls every input that may run. Returns the earliest time of the next call.
    fn poll_inputs(&mut self, now: Instant) -> Option<Instant> {
        if self.state != State::Running {
            return None;
        }
        let mut wake: Option<Instant> = None;
        let mut stop = false;
        for at in 0..self.slots.len() {
            if self.slots[at].ended || self.is_paused(at) {
                continue;
            }
            let slot = &mut self.slots[at];
            let next = slot.input.poll(now, &mut self.buffers[at].appender);
            let next = next.unwrap_or_else(|error| {
                abi::log(LOG_ERROR, &format!("[input] {}: {error:#}", slot.name));
                Next::Ended
            });
            let due = match next {
                Next::Now => now,
                Next::At(due) => due,
                Next::Ended | Next::EndedWithTheEngine => {
                    slot.ended = true;
                    stop |= matches!(next, Next::EndedWithTheEngine);
                    continue;
                }
            };
            wake = Some(wake.map_or(due, |wake| wake.min(due)));
        }
        if self.slots.iter().all(|slot| slot.ended) {
            self.say(LOG_INFO, "[engine] all inputs have ended");
            self.state = State::Draining;
            self.gather(true);
            self.start_tasks();
        } else if stop {
            self.begin_stop(false, now);
        } else if self.buffers.iter().any(|buffer| buffer.appender.has_full()) {
            self.gather(false);
            self.start_tasks();
        }
        wake
    }

    fn is_paused(&mut self, at: usize) -> bool {
        let (slot, buffer) = (&self.slots[at], &mut self.buffers[at]);
        let Some(limit) = slot.mem_buf_limit else {
            return false;
        };
        let over = buffer.on_the_way + buffer.appender.bytes() >= limit;
        let was = std::mem::replace(&mut buffer.paused, over);
        if over && !was {
            let name = slot.name.clone();
            let tally = self.lasting.tally.inputs.entry(name.clone()).or_default();
            tally.pauses += 1;
            let level = if tally.pauses == 1 {
                LOG_WARN
            } else {
                LOG_DEBUG
            };
            self.say(level, &format!("[input] {name} paused (mem buf overlimit)"));
        }
        over
    }

    /// Takes the full chunks of the inputs, or all of them, and counts their records.
    fn gather(&mut self, all: bool) {
        for (slot, buffer) in self.slots.iter().zip(&mut self.buffers) {
            for mut chunk in buffer.appender.take(all) {
                let records = count_records(&chunk.data)
                    .expect("inputs make whole events, and captured chunks were checked");
                let tally = self
                    .lasting
                    .tally
                    .inputs
                    .entry(slot.name.clone())
                    .or_default();
                tally.chunks += 1;
                tally.records += records;
                tally.bytes += chunk.data.len() as u64;
                self.shared
                    .progress
                    .records_in
                    .fetch_add(records, Ordering::Relaxed);
                if let Some(store) = self.store.as_mut().filter(|_| slot.on_disk) {
                    match store.keep(&chunk.tag, &chunk.data) {
                        Ok(origin) => chunk.origin = Some(origin),
                        Err(error) => {
                            let text = format!(
                                "[storage] a chunk of {} stays in memory: {error}",
                                slot.name
                            );
                            abi::log(LOG_ERROR, &text);
                        }
                    }
                }
                buffer.on_the_way += chunk.data.len();
                buffer.ready.push_back((chunk, records));
            }
        }
    }

    /// Creates tasks of the chunks that are ready, up to the limit.
    fn start_tasks(&mut self) {
        for slot in 0..self.slots.len() {
            while self.tasks.len() < TASK_LIMIT
                && self.state != State::Held
                && !self.is_threshold_reached()
            {
                let Some((chunk, records)) = self.buffers[slot].ready.pop_front() else {
                    break;
                };
                self.start_task(slot, chunk, records);
            }
        }
        self.check_reload_threshold();
    }

    fn start_task(&mut self, slot: usize, chunk: Chunk, records: u64) {
        self.lasting.chunks_made += 1;
        let matching = |output: &Output| {
            let pattern = output.plan.tag_pattern.as_deref();
            pattern.is_some_and(|pattern| tag_matches(pattern, &chunk.tag))
        };
        let outputs: Vec<_> = (0..self.outputs.len())
            .filter(|&at| matching(&self.outputs[at]))
            .collect();
        if outputs.is_empty() {
            self.buffers[slot].on_the_way -= chunk.data.len();
            let name = self.slots[slot].name.clone();
            if let Some(origin) = chunk.origin {
                if origin.stays_without_a_match() {
                    let (file, tag) = (origin.name(), chunk.tag);
                    let text = format!(
                        "[storage] no output matches the tag '{tag}': {file} stays on disk"
                    );
                    self.say(LOG_INFO, &text);
                    return;
                }
                origin.settled(Outcome::Dropped);
            }
            self.say(
                LOG_DEBUG,
                &format!("[task] no output matches the tag '{}'", chunk.tag),
            );
            self.lasting.tally.inputs.entry(name).or_default().unmatched += records;
            self.shared
                .progress
                .dropped
                .fetch_add(records, Ordering::Relaxed);
            return;
        }
        let id = self.free.pop_first().unwrap_or(self.tasks.len());
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
        let route = |&output: &usize| Route {
            output,
            retries: 0,
            in_flight: false,
        };
        let in_memory = || format!("{}-{seconds}.{nanos:09}.flb", process::id());
        let task = Task {
            chunk_name: chunk.origin.as_ref().map_or_else(in_memory, |it| it.name()),
            slot,
            tag: chunk.tag,
            data: Arc::new(chunk.data),
            records,
            routes: outputs.iter().map(route).collect(),
            origin: chunk.origin,
            outcome: Outcome::Delivered,
        };
        self.tasks.insert(id, task);
        for output in outputs {
            self.start_flush(id, output);
        }
    }

    fn start_flush(&mut self, id: usize, at: usize) {
        let task = self.tasks.get_mut(&id).expect("a route belongs to a task");
        let mut routes = task.routes.iter_mut();
        let route = routes.find(|route| route.output == at);
        route
            .expect("an unsettled route stays with its task")
            .in_flight = true;
        let job = Job {
            task: id,
            output: at,
            data: task.data.clone(),
            tag: task.tag.clone(),
        };
        let workers = &mut self.outputs[at].workers;
        if workers.is_empty() {
            self.local.push_back(job);
        } else {
            workers[0]
                .jobs
                .send(job)
                .expect("a worker ends after its channel");
            workers.rotate_left(1);
        }
    }

    fn start_due_retries(&mut self, now: Instant) {
        while let Some(&Reverse((due, task, output))) = self.retries.peek()
            && due <= now
        {
            self.retries.pop();
            self.start_flush(task, output);
        }
    }

    /// Counts a flush.
    fn count_call(&mut self, flushed: &Flushed) {
        let name = self.outputs[flushed.output].plan.name.clone();
        let tally = self.lasting.tally.outputs.entry(name).or_default();
        tally.report.flush_calls += 1;
        let micros = flushed.took.as_micros() as u64;
        tally.latency.record(micros).expect("the histogram resizes");
    }

    /// Handles the answer of a flush, with the host's log messages.
    fn settle(&mut self, flushed: Flushed, now: Instant) {
        self.count_call(&flushed);
        let Flushed {
            task: id,
            output: at,
            ..
        } = flushed;
        let plan = &self.outputs[at].plan;
        let task = self.tasks.get_mut(&id).expect("a flush runs for a task");
        let mut routes = task.routes.iter_mut();
        let route = routes.find(|route| route.output == at);
        let route = route.expect("an unsettled route stays with its task");
        route.in_flight = false;

        let outputs = &mut self.lasting.tally.outputs;
        let tally = outputs.entry(plan.name.clone()).or_default();
        let chunk = &task.chunk_name;
        let way = format!(
            "input={} > output={}",
            self.slots[task.slot].name, plan.name
        );
        let progress = &self.shared.progress;
        match flushed.answer {
            FLB_OK => {
                tally.report.acknowledged += task.records;
                tally.report.chunks += 1;
                tally.report.bytes += task.data.len() as u64;
                progress
                    .acknowledged
                    .fetch_add(task.records, Ordering::Relaxed);
                progress
                    .bytes
                    .fetch_add(task.data.len() as u64, Ordering::Relaxed);
                if route.retries > 0 {
                    let text = format!(
                        "[engine] flush chunk '{chunk}' succeeded at retry {}: task_id={id}, {way} (out_id={at})",
                        route.retries
                    );
                    self.say(LOG_INFO, &text);
                }
                self.release(id, at);
            }
            FLB_RETRY if plan.retry_limit.allows(route.retries) => {
                route.retries += 1;
                tally.report.retries += 1;
                tally.report.retried += task.records;
                progress.retried.fetch_add(task.records, Ordering::Relaxed);
                let wait = match self.state {
                    State::Stopping { .. } => self.schedule.wait_at_stop(),
                    _ => self.schedule.wait(route.retries, &mut self.lasting.random),
                };
                let text = format!(
                    "[engine] failed to flush chunk '{chunk}', retry in {} seconds: task_id={id}, {way} (out_id={at})",
                    wait.as_secs_f64()
                );
                self.retries.push(Reverse((now + wait, id, at)));
                self.say(LOG_WARN, &text);
            }
            FLB_RETRY => {
                let (level, why) = match plan.retry_limit {
                    RetryLimit::Never => (LOG_INFO, "is not retried (no retry config)"),
                    _ => (LOG_ERROR, "cannot be retried"),
                };
                let text = format!("[engine] chunk '{chunk}' {why}: task_id={id}, {way}");
                self.say(level, &text);
                self.drop_route(id, at, |dropped| &mut dropped.retry_limit);
            }
            answer => {
                // The host logs nothing here, but tests need it.
                let text = format!(
                    "[engine] chunk '{chunk}' is dropped, flush answered {answer}: task_id={id}, {way}"
                );
                self.say(LOG_ERROR, &text);
                self.drop_route(id, at, |dropped| &mut dropped.error);
            }
        }
    }

    fn drop_route(&mut self, id: usize, at: usize, why: fn(&mut Dropped) -> &mut u64) {
        let records = self.tasks[&id].records;
        let name = self.outputs[at].plan.name.clone();
        let tally = self.lasting.tally.outputs.entry(name).or_default();
        *why(&mut tally.report.dropped) += records;
        self.shared
            .progress
            .dropped
            .fetch_add(records, Ordering::Relaxed);
        let task = self.tasks.get_mut(&id).expect("a route belongs to a task");
        task.outcome = Outcome::Dropped;
        self.release(id, at);
    }

    /// Settles a route; after the last one, the chunk is settled.
    fn release(&mut self, id: usize, at: usize) {
        let task = self.tasks.get_mut(&id).expect("a route belongs to a task");
        task.routes.retain(|route| route.output != at);
        if task.routes.is_empty() {
            self.buffers[task.slot].on_the_way -= task.data.len();
            let task = self.tasks.remove(&id).expect("it was there just now");
            self.free.insert(id);
            if let Some(origin) = task.origin {
                let due = Instant::now() + self.settle_late;
                self.late.push_back((due, origin, task.outcome));
                self.tell_origins(Instant::now());
            }
        }
    }

    fn tell_origins(&mut self, now: Instant) {
        while self.late.front().is_some_and(|(due, ..)| *due <= now) {
            if let Some((_, origin, outcome)) = self.late.pop_front() {
                origin.settled(outcome);
            }
        }
    }

    fn is_threshold_reached(&self) -> bool {
        let stopping = matches!(self.state, State::Stopping { .. });
        let next = self.lasting.reload_after.front();
        !stopping && next.is_some_and(|&after| self.lasting.chunks_made >= after)
    }

    /// Pauses the engine after this number of chunks until the supervisor has reloaded, or failed to. That makes the
    /// chunks before and after the reload the same in every run.
    fn check_reload_threshold(&mut self) {
        if self.state != State::Held && self.is_threshold_reached() {
            self.lasting.reload_after.pop_front();
            self.state = State::Held;
            self.shared.wants_reload.store(true, Ordering::Release);
            self.shared.supervisor.unpark();
        }
    }

    /// Joins the workers, and then calls PreExit and Exit for each output. Answers in that time count: the host ignores
    /// them, but the plugin has the chunks.
    fn shut_down(&mut self, proxies: &[Proxy], events: &Receiver<Event>) {
        let by_reload = matches!(
            self.state,
            State::Stopping {
                by_reload: true,
                ..
            }
        );
        self.say(
            LOG_INFO,
            &format!(
                "[engine] service has stopped ({} pending tasks)",
                self.tasks.len()
            ),
        );
        for at in 0..self.outputs.len() {
            let output = &mut self.outputs[at];
            let high_water = output.join_workers();
            let name = output.plan.name.clone();
            self.shared.sample_cpu();
            if let Some(plugin) = output.plugin.take() {
                plugin.exit(&proxies[output.plan.proxy], by_reload);
            }
            let report = &mut self.lasting.tally.outputs.entry(name).or_default().report;
            report.stack_high_water_bytes = report.stack_high_water_bytes.max(high_water);
        }
        let settled = self.late.drain(..);
        settled.for_each(|(_, origin, outcome)| origin.settled(outcome));
        self.settle_late = Duration::ZERO;
        for event in events.try_iter() {
            match event {
                Event::Flushed(flushed) if flushed.answer == FLB_OK => {
                    let task = self.tasks.get_mut(&flushed.task);
                    task.expect("a flush runs for a task").outcome = Outcome::DeliveredTooLate;
                    self.settle(flushed, Instant::now());
                }
                Event::Flushed(flushed) => self.count_call(&flushed),
                Event::Order(_) => {}
            }
        }
        self.abandon(by_reload);
        self.publish();
    }

    /// Drops all pending chunks. Those with a file stay on disk.
    fn abandon(&mut self, by_reload: bool) {
        // Chunks without a task get one, beyond the limit, so that they can be dropped.
        for slot in 0..self.slots.len() {
            while let Some((chunk, records)) = self.buffers[slot].ready.pop_front() {
                if chunk.origin.is_none() {
                    self.start_task(slot, chunk, records);
                }
            }
        }
        self.tasks.retain(|_, task| task.origin.is_none());
        let routes = self.tasks.iter();
        let routes: Vec<_> = routes
            .flat_map(|(&id, task)| task.routes.iter().map(move |route| (id, route.output)))
            .collect();
        for (id, at) in routes {
            if by_reload {
                self.drop_route(id, at, |dropped| &mut dropped.reload);
            } else {
                self.drop_route(id, at, |dropped| &mut dropped.stop);
            }
        }
    }

    fn publish(&self) {
        let ready: usize = self.buffers.iter().map(|buffer| buffer.ready.len()).sum();
        let pending = (self.tasks.len() + ready) as u64;
        self.shared
            .progress
            .pending
            .store(pending, Ordering::Relaxed);
    }

    fn say(&self, level: i32, text: &str) {
        if self.service.log_level >= level {
            abi::log(level, text);
        }
    }
}

/// Whether a tag matches the host's `Match`, where `*` is any sequence of characters.
fn tag_matches(pattern: &str, tag: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| tag.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_any_run_of_characters() {
        let cases = [
            ("*", "app", true),
            ("*", "", true),
            ("app", "app", true),
            ("app", "apps", false),
            ("app.*", "app.http", true),
            ("app.*", "app.", true),
            ("app.*", "app", false),
            ("*.log", "var.app.log", true),
            ("*.log", "var.app.logs", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("**a", "a", true),
            ("a*a", "a", false),
        ];
        for (pattern, tag, matches) in cases {
            assert_eq!(tag_matches(pattern, tag), matches, "{pattern} on {tag}");
        }
    }
}
