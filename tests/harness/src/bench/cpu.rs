//! The CPU time of another process's threads, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The host's own threads, which do not depend on its output: the engine with its inputs, the log, inputs with their
/// own threads, the HTTP server, and the main thread.
const HOSTS_OWN: [&str; 5] = [
    "flb-pipeline",
    "flb-logger",
    "flb-in-",
    "flb-http",
    "flb-mon",
];

/// The threads of a process, as last read.
pub(super) struct Threads {
    process: PathBuf,
    /// The process's id, which is also that of its main thread.
    main: u32,
    /// The threads by id and start time, since ids are reused.
    seen: BTreeMap<(u32, u64), Thread>,
    /// The process's CPU time, including threads that existed only between two readings.
    total: Duration,
    peak_memory: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Thread {
    name: String,
    used: Duration,
    /// The time it waited for a processor.
    waited: Duration,
}

/// CPU time so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cpu {
    /// The CPU time of the host's own threads.
    pub(super) host: Duration,
    /// The CPU time of all other threads: the output's workers, those that it created, and threads that no reading saw.
    pub(super) output: Duration,
    /// The time that all threads waited for a processor.
    pub(super) waited: Duration,
}

impl Threads {
    pub(super) fn of(process: u32) -> Self {
        Self {
            process: format!("/proc/{process}").into(),
            main: process,
            seen: BTreeMap::new(),
            total: Duration::ZERO,
            peak_memory: 0,
        }
    }

    /// Reads the usage of all threads. Usage after the last reading is lost.
    pub(super) fn read(&mut self) {
        let tasks = fs::read_dir(self.process.join("task"));
        for task in tasks.into_iter().flatten().flatten() {
            let number = task.file_name().to_str().and_then(|n| n.parse().ok());
            if let (Some(number), Some((started, thread))) = (number, read_thread(&task.path())) {
                self.seen.insert((number, started), thread);
            }
        }
        let stat = fs::read_to_string(self.process.join("stat"));
        if let Some((_, ticks, _)) = stat.ok().as_deref().and_then(parse_stat) {
            self.total = self.total.max(from_ticks(ticks));
        }
        let status = fs::read_to_string(self.process.join("status"));
        let peak = status.ok().and_then(|status| peak_memory(&status));
        self.peak_memory = self.peak_memory.max(peak.unwrap_or(0));
    }

    /// Returns the usage of all threads, including those that have ended.
    pub(super) fn cpu(&self) -> Cpu {
        let mut cpu = Cpu::default();
        for ((number, _), thread) in &self.seen {
            let hosts = HOSTS_OWN.iter().any(|own| thread.name.starts_with(own));
            if hosts || *number == self.main {
                cpu.host += thread.used;
            } else {
                cpu.output += thread.used;
            }
            cpu.waited += thread.waited;
        }
        cpu.output += self.total.saturating_sub(cpu.host + cpu.output);
        cpu
    }

    /// Returns the largest resident size of the process, in bytes.
    pub(super) fn peak_memory(&self) -> u64 {
        self.peak_memory
    }

    /// Returns the names and CPU seconds of all threads, for a closer look.
    pub(super) fn by_name(&self) -> BTreeMap<&str, f64> {
        let mut names = BTreeMap::new();
        for thread in self.seen.values() {
            *names.entry(thread.name.as_str()).or_default() += thread.used.as_secs_f64();
        }
        names
    }
}

/// The start of a thread, in ticks since the machine's start, and its usage.
fn read_thread(task: &Path) -> Option<(u64, Thread)> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (name, ticks, started) = parse_stat(&stat)?;
    // In nanoseconds, if the kernel provides it: a tick is ten milliseconds.
    let precise = fs::read_to_string(task.join("schedstat")).ok();
    let (used, waited) = match precise.as_deref().and_then(parse_schedstat) {
        Some(precise) => precise,
        None => (from_ticks(ticks), Duration::ZERO),
    };
    let name = name.to_owned();
    Some((started, Thread { name, used, waited }))
}

/// Parses a line of `/proc/…/stat` into name, ticks used (user and system) and start; see proc(5). A name may contain
/// spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(&str, u64, u64)> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The first field after the name is the third one.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((name, field(14)? + field(15)?, field(22)?))
}

/// Returns the time on a processor, and the time waiting for one.
fn parse_schedstat(schedstat: &str) -> Option<(Duration, Duration)> {
    let mut fields = schedstat.split_whitespace();
    let mut next = || Some(Duration::from_nanos(fields.next()?.parse().ok()?));
    Some((next()?, next()?))
}

fn peak_memory(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

fn from_ticks(ticks: u64) -> Duration {
    // SAFETY: sysconf has no preconditions.
    let a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_secs_f64(ticks as f64 / a_second as f64)
}

/// Returns the CPU time of the calling thread.
pub(super) fn this_thread() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the write.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_whatever_name_the_thread_has() {
        let fields = "S 1 2 3 0 -1 64 5 0 0 0 123 45 7 8 20 0 4 0 98765 1000 20";
        for name in ["flb-pipeline", "a b", "odd) S 1 (name", ""] {
            let stat = format!("4711 ({name}) {fields}");
            assert_eq!(parse_stat(&stat), Some((name, 168, 98_765)), "{stat}");
        }
        for broken in [
            "",
            "4711",
            "4711 (name)",
            "4711 (name) S 1 2",
            "4711 (n) S x x x x x x x x x x y",
        ] {
            assert_eq!(parse_stat(broken), None, "{broken}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_absent() {
        let (used, waited) = (Duration::from_nanos(5), Duration::from_nanos(7));
        assert_eq!(parse_schedstat("5 7 9\n"), Some((used, waited)));
        assert_eq!(parse_schedstat("5\n"), None);
        let status = "VmPeak:\t 99 kB\nVmHWM:\t   63808 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(peak_memory(status), Some(63_808 * 1_024));
        assert_eq!(peak_memory("Name:\tx\n"), None);
    }

    #[test]
    fn threads_are_told_apart_by_name_and_remembered_after_their_end() {
        // The bytes that a kernel keeps of a name suffice to tell an input from an output.
        let busy = |name: &str| {
            let (done, wait) = (mpsc::channel::<()>(), mpsc::channel::<()>());
            let (tell, waiting) = (done.0, wait.1);
            let thread = std::thread::Builder::new().name(name.into());
            let thread = thread.spawn(move || {
                let until = Duration::from_millis(30);
                while this_thread() < until {
                    std::hint::spin_loop();
                }
                tell.send(()).unwrap();
                let _ = waiting.recv();
            });
            (done.1, wait.0, thread.unwrap())
        };
        let started = Instant::now();
        let mut threads = Threads::of(std::process::id());
        let spinning = ["flb-pipeline", "flb-out-kinesis_firehose.0-w0", "ferry"].map(busy);
        for (done, _, _) in &spinning {
            done.recv().unwrap();
        }
        threads.read();
        for (_, stop, thread) in spinning {
            drop(stop);
            thread.join().unwrap();
        }
        threads.read();
        let names = threads.by_name();
        for name in ["flb-pipeline", "flb-out-kinesis", "ferry"] {
            assert!(names[name] >= 0.02, "{name}: {names:?}");
        }
        let cpu = threads.cpu();
        assert!(cpu.host >= Duration::from_millis(20), "{cpu:?}");
        assert!(cpu.output >= Duration::from_millis(40), "{cpu:?}");
        let most = started.elapsed() * 64;
        assert!(cpu.host + cpu.output < most, "{cpu:?}");
        assert!(threads.peak_memory() > 1 << 20);
    }
}
