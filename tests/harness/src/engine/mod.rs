//! A stand-in for Fluent Bit's engine: it loads any Go-proxy output, and calls it like the host.
//!
//! - [`abi`]: the calls into a library
//! - [`stack`]: the stacks of flushes, and the detection of their overflow
//! - [`input`], [`chunk`]: the sources of events, and their encoding
//! - [`storage`]: chunks on disk
//! - [`pipeline`]: the engine's thread: tasks, retries, workers
//! - [`schedule`]: the times of retries
//! - [`report`]: the results and the cost of a run
//!
//! This file is the host's main thread: it loads configurations and libraries, forks for `Daemon on`, waits for
//! signals, and performs hot reloads. As in the host, the engine runs on a thread of its own, a new one after each
//! reload, which a plugin can tell from thread ids.

mod abi;
mod chunk;
mod input;
mod pipeline;
mod report;
mod schedule;
mod stack;
pub mod storage;

use std::env;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::abi::{LOG_ERROR, LOG_INFO, LOG_WARN, Proxy};
use self::input::Slot;
use self::pipeline::{Event, Generation, Lasting, Order, Plan, Shared};
use self::report::{Tally, foreign_threads, own_this_thread, process_cpu, spawn_own};
use self::schedule::RetryLimit;
use self::storage::Store;
use crate::config::{Config, Instance, Service, log_level};

pub use self::report::{Cpu, Dropped, InputReport, Latency, OutputReport, Report};
pub use self::stack::{EXIT_DEF_OVERRUN, EXIT_RAN_AFTER_UNLOAD, EXIT_STACK_OVERFLOW};

/// The interval at which the supervisor checks signals and clocks.
const TICK: Duration = Duration::from_millis(50);
/// The time for which a joined thread may still be listed.
const THREADS_MAY_LINGER: Duration = Duration::from_millis(250);

/// The arguments of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The configuration, in the classic format or YAML
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// A library to load before the configuration; may be given several times
    #[arg(short = 'e', long = "plugin", value_name = "LIB.so")]
    plugins: Vec<PathBuf>,
    /// Hot-reload after N chunks in all; may be given several times
    #[arg(long, value_name = "N")]
    reload_after_chunks: Vec<u64>,
    /// Also write the report to this file, as JSON
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Print no progress lines
    #[arg(short, long)]
    quiet: bool,
    /// Stop as on SIGTERM after this time, such as 500ms, 10s or 5m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    stop_after: Option<Duration>,
    /// Hide the stop from the library, like a program that embeds Fluent Bit
    #[arg(long)]
    hide_stop: bool,
    /// Delay the removal of a settled chunk's file by this time, so that a kill in between makes the chunk come again
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    settle_late: Duration,
    /// The seed of the retry jitter
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// A configuration whose libraries are loaded and registered, but whose outputs are not started.
struct Loaded {
    service: Service,
    proxies: Vec<Proxy>,
    plans: Vec<Plan>,
    slots: Vec<Slot>,
    store: Option<Store>,
}

impl Loaded {
    /// Loads a configuration. Calls `FLBPluginPreRegister(hot_reload)` and `FLBPluginRegister`, first for the libraries
    /// of the command line, then for those of the configuration.
    fn load(args: &RunArgs, hot_reload: bool) -> Result<Self> {
        let mut proxies = Vec::new();
        match Self::load_into(&mut proxies, args, hot_reload) {
            Ok(loaded) => Ok(Self { proxies, ..loaded }),
            Err(error) => {
                unload(proxies);
                Err(error)
            }
        }
    }

    /// Like [`Loaded::load`], but adds the libraries to `proxies` one by one, so that they can be unloaded after an
    /// error.
    fn load_into(proxies: &mut Vec<Proxy>, args: &RunArgs, hot_reload: bool) -> Result<Self> {
        for library in &args.plugins {
            proxies.extend(Proxy::load(library, hot_reload)?);
        }
        let config = Config::load(&args.config)?;
        for warning in &config.warnings {
            abi::log(LOG_WARN, warning);
        }
        for (library, place) in &config.plugins {
            let proxy = Proxy::load(library, hot_reload);
            proxies.extend(proxy.with_context(|| place.to_string())?);
        }
        let one_to_one = config.inputs.len() == 1 && config.outputs.len() == 1;
        let plans = config.outputs.iter().enumerate();
        let plans = plans
            .map(|(number, output)| {
                plan(
                    output,
                    number,
                    one_to_one,
                    config.service.log_level,
                    proxies,
                )
            })
            .collect::<Result<_>>()?;
        let slots = input::build(&config.inputs, &config.parsers, &config.service)?;
        let store = config.service.storage_path.as_ref();
        let store = store.map(|(dir, place)| Store::open(dir).with_context(|| place.to_string()));
        Ok(Self {
            proxies: Vec::new(),
            plans,
            slots,
            store: store.transpose()?,
            service: config.service,
        })
    }
}

/// The host's own settings of an output. The later of two equal keys takes effect.
fn plan(
    output: &Instance,
    number: usize,
    one_to_one: bool,
    service_log_level: i32,
    proxies: &[Proxy],
) -> Result<Plan> {
    let mut proxies_by_name = proxies.iter();
    let Some(proxy) = proxies_by_name.position(|p| p.name.eq_ignore_ascii_case(&output.name))
    else {
        let known: Vec<_> = proxies.iter().map(|proxy| proxy.name.as_str()).collect();
        bail!(
            "{}: there is no output '{}'; the libraries loaded have: {}",
            output.place,
            output.name,
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        );
    };
    let library = &proxies[proxy];
    let mut plan = Plan {
        name: format!("{}.{number}", library.name),
        proxy,
        definition: output.clone(),
        tag_pattern: one_to_one.then(|| "*".to_owned()),
        retry_limit: RetryLimit::Limit(1),
        workers: 0,
        log_level: service_log_level,
    };
    for property in &output.properties {
        let (key, place) = (&property.key, &property.place);
        let Some(value) = property.value.as_deref() else {
            continue;
        };
        match key.to_lowercase().as_str() {
            "match" => plan.tag_pattern = Some(value.to_owned()),
            "match_regex" => bail!("{place}: {key} is not known here; use Match"),
            "alias" => plan.name = value.to_owned(),
            "workers" => {
                let workers = value.parse();
                plan.workers = workers
                    .with_context(|| format!("{place}: {key} is '{value}'; it must be a number"))?;
            }
            "retry_limit" => {
                let understood;
                (plan.retry_limit, understood) = RetryLimit::read(value);
                if !understood {
                    let text = format!("[config] {place}: invalid retry_limit '{value}': it is 1");
                    abi::log(LOG_WARN, &text);
                }
            }
            "log_level" => {
                plan.log_level = log_level(value)
                    .with_context(|| format!("{place}: {key} is '{value}'; it is not a level"))?;
            }
            "tls" => {
                let on = output.flag(key, false)?;
                ensure!(
                    !on || library.does_tls(),
                    "{place}: [config] {} does not support TLS",
                    plan.name
                );
            }
            _ => {}
        }
    }
    if plan.tag_pattern.is_none() {
        abi::log(
            LOG_WARN,
            &format!("[router] NO match for {} output instance", plan.name),
        );
    }
    Ok(plan)
}

fn unload(proxies: Vec<Proxy>) {
    proxies.into_iter().for_each(Proxy::unload);
}

/// The signals, as flags set by their handlers.
struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    fn catch() -> Result<Self> {
        let signals = Self {
            stop: Arc::default(),
            reload: Arc::default(),
        };
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, signals.stop.clone())?;
        }
        signal_hook::flag::register(SIGHUP, signals.reload.clone())?;
        Ok(signals)
    }
}

/// Runs a configuration to its end. Returns the exit status: 1 if a record was dropped, and otherwise 0. An error is
/// one of the configuration.
pub fn run(mut args: RunArgs) -> Result<ExitCode> {
    own_this_thread();
    let signals = Signals::catch()?;
    let loaded = Loaded::load(&args, false)?;
    let daemon = loaded.service.daemon;
    let mut threads_lost_at_fork = 0;
    if daemon {
        // A daemon's directory is `/`, so paths are made absolute.
        args.config = std::path::absolute(&args.config)?;
        for library in args.plugins.iter_mut().filter(|library| library.exists()) {
            *library = std::path::absolute(&library)?;
        }
        args.report = args.report.map(std::path::absolute).transpose()?;
        threads_lost_at_fork = go_to_the_background()?;
    }
    let coro_stack_bytes = loaded.service.coro_stack_size;
    let storage = loaded.service.storage_path.clone();
    args.quiet |= daemon;
    let mut supervisor = Supervisor::new(args, signals);
    let tally = supervisor.run(loaded)?;

    let patience = Instant::now() + THREADS_MAY_LINGER;
    while !foreign_threads().is_empty() && Instant::now() < patience {
        thread::sleep(Duration::from_millis(1));
    }
    supervisor.shared.sample_cpu();
    let mut report = tally.report(supervisor.began.elapsed().as_secs_f64());
    report.threads_left_behind = foreign_threads().len();
    report.threads_lost_at_fork = threads_lost_at_fork;
    report.coro_stack_bytes = coro_stack_bytes;
    report.reloads = supervisor.reloads;
    report.stopping_seconds = supervisor.stopping.as_secs_f64();
    if let Some((dir, _)) = storage {
        report.chunks_left_on_disk = storage::count(&dir)?;
    }
    report.cpu_seconds = Cpu {
        process: process_cpu().as_secs_f64(),
        library_threads: supervisor.library_cpu().as_secs_f64(),
    };
    if !daemon {
        print!("{}", report.table());
    }
    if let Some(path) = &supervisor.args.report {
        report
            .write(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::from(report.exit_status))
}

/// Forks. Only the child returns, with the number of threads that it lost.
fn go_to_the_background() -> Result<usize> {
    let threads = foreign_threads().len();
    if threads > 0 {
        let text = format!("[daemon] the library runs {threads} threads already: they end here");
        abi::log(LOG_WARN, &text);
    }
    // SAFETY: this is the only thread of our own, so no lock of ours is held by another.
    match unsafe { libc::fork() } {
        -1 => return Err(std::io::Error::last_os_error()).context("cannot fork for 'Daemon on'"),
        0 => {}
        _ => process::exit(0),
    }
    own_this_thread();
    // SAFETY: umask has no preconditions.
    unsafe { libc::umask(0) };
    // SAFETY: setsid has no preconditions.
    unsafe { libc::setsid() };
    env::set_current_dir("/")?;
    let text = format!("switching to background mode (PID={})", process::id());
    abi::log(LOG_INFO, &text);
    // As in the host, the descriptors are closed, and may be reused by the library.
    abi::mute_log();
    for descriptor in [libc::STDERR_FILENO, libc::STDOUT_FILENO] {
        // SAFETY: nothing of ours writes there any more.
        unsafe { libc::close(descriptor) };
    }
    Ok(threads)
}

/// The host's main thread while the engine runs.
struct Supervisor {
    args: RunArgs,
    signals: Signals,
    shared: Arc<Shared>,
    began: Instant,
    /// The time at which `--stop-after` ends.
    deadline: Option<Instant>,
    /// The time at which the last generation was told to stop, and the time it took from then on.
    stop_began: Option<Instant>,
    stopping: Duration,
    /// The number of progress lines.
    lines: u64,
    bytes_at_line: u64,
    reloads: u32,
}

impl Supervisor {
    /// Creates the supervisor of the calling thread.
    fn new(args: RunArgs, signals: Signals) -> Self {
        let began = Instant::now();
        Self {
            deadline: args.stop_after.map(|after| began + after),
            args,
            signals,
            stop_began: None,
            stopping: Duration::ZERO,
            began,
            shared: Arc::new(Shared {
                progress: Default::default(),
                cpu: Default::default(),
                wants_reload: AtomicBool::new(false),
                supervisor: thread::current(),
            }),
            lines: 0,
            bytes_at_line: 0,
            reloads: 0,
        }
    }

    /// Returns the parts of the first generation.
    fn begin(&self) -> Lasting {
        let mut reload_after = self.args.reload_after_chunks.clone();
        reload_after.sort_unstable();
        Lasting {
            tally: Tally::default(),
            random: SmallRng::seed_from_u64(self.args.seed),
            reload_after: reload_after.into(),
            chunks_made: 0,
        }
    }

    /// Runs generations until one ends without a reload.
    fn run(&mut self, mut loaded: Loaded) -> Result<Tally> {
        let mut lasting = self.begin();
        loop {
            let generation = Generation {
                service: loaded.service,
                proxies: loaded.proxies,
                plans: loaded.plans,
                slots: loaded.slots,
                store: loaded.store,
                settle_late: self.args.settle_late,
                lasting,
            };
            let (generation, result, next) = self.supervise(generation)?;
            unload(generation.proxies);
            if let Err(failure) = result {
                if let Some(next) = next {
                    unload(next.proxies);
                }
                bail!(failure);
            }
            lasting = generation.lasting;
            let Some(mut next) = next else {
                return Ok(lasting.tally);
            };
            input::carry_over(generation.slots, &mut next.slots);
            self.reloads += 1;
            loaded = next;
        }
    }

    /// Runs a generation. Returns it with its result, and after a reload the next configuration.
    fn supervise(
        &mut self,
        generation: Generation,
    ) -> Result<(Generation, Result<(), String>, Option<Loaded>)> {
        let hot_reload = generation.service.hot_reload;
        let (orders, events) = mpsc::channel();
        let (results, shared) = (orders.clone(), self.shared.clone());
        let engine = spawn_own("flb-pipeline".to_owned(), move || {
            let ended = generation.run(shared.clone(), results, &events);
            shared.supervisor.unpark();
            ended
        })?;
        // If the engine has already ended, the order is not needed.
        let order = |order| drop(orders.send(Event::Order(order)));

        let mut next = None;
        let mut stopping = false;
        while !engine.is_finished() {
            let busy = stopping || next.is_some();
            let reload = self.is_reload_wanted(hot_reload);
            let time_is_up = self
                .deadline
                .is_some_and(|deadline| Instant::now() >= deadline);
            if !busy && (time_is_up || self.signals.stop.load(Ordering::Relaxed)) {
                self.stop_began = Some(Instant::now());
                if !self.args.hide_stop {
                    abi::ends(SIGTERM);
                }
                abi::log(LOG_INFO, "[engine] caught a signal to stop");
                order(Order::Stop { by_reload: false });
                stopping = true;
            } else if !busy && reload {
                match Loaded::load(&self.args, true) {
                    Ok(loaded) => {
                        abi::log(LOG_INFO, "[reload] stop everything of the old context");
                        order(Order::Stop { by_reload: true });
                        next = Some(loaded);
                    }
                    Err(error) => {
                        let text = format!("[reload] {error:#}. Reloading is halted");
                        abi::log(LOG_ERROR, &text);
                        order(Order::Resume);
                    }
                }
            }
            self.shared.sample_cpu();
            self.print_progress();
            thread::park_timeout(TICK);
        }
        let (generation, result) = match engine.join() {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        self.stopping = self.stop_began.map(|it| it.elapsed()).unwrap_or_default();
        Ok((generation, result, next))
    }

    fn is_reload_wanted(&self, enabled: bool) -> bool {
        let signalled = self.signals.reload.swap(false, Ordering::Relaxed);
        if signalled && !enabled {
            abi::log(
                LOG_WARN,
                "[reload] hot reloading is not enabled: set 'Hot_Reload on'",
            );
        }
        self.shared.wants_reload.swap(false, Ordering::AcqRel) || (signalled && enabled)
    }

    fn print_progress(&mut self) {
        let second = self.began.elapsed().as_secs();
        if self.args.quiet || second <= self.lines {
            return;
        }
        let progress = &self.shared.progress;
        eprintln!("{}", progress.line(second, self.bytes_at_line));
        self.bytes_at_line = progress.bytes.load(Ordering::Relaxed);
        self.lines = second;
    }

    fn library_cpu(&self) -> Duration {
        let cpu = self.shared.cpu.lock();
        cpu.map(|cpu| cpu.total()).unwrap_or_default()
    }
}
