//! A run of the real host with one output, monitored until its process ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::cpu::{Cpu, Threads};

/// The interval at which threads are read.
const READ_EVERY: Duration = Duration::from_millis(20);
/// The interval while the process stops, since a thread's last usage is lost when it ends.
const READ_EVERY_AT_STOP: Duration = Duration::from_millis(2);
/// The time of near idleness after which a host has nothing left to do. Longer than the waits between its retries.
const IDLE: Duration = Duration::from_secs(4);
/// The most CPU time within [`IDLE`] that counts as idle: that of the host's timers.
const IDLE_CPU: Duration = Duration::from_millis(60);
/// The time that a stopping host may take beyond its `Grace`.
const STOPPED_WITHIN: Duration = Duration::from_secs(90);

/// The parameters of a run.
pub(super) struct Run<'a> {
    /// The `fluent-bit` executable.
    pub(super) executable: &'a Path,
    /// A library to load before the configuration.
    pub(super) library: Option<&'a Path>,
    /// The folder of the configuration and the log.
    pub(super) folder: PathBuf,
    /// The file of JSON lines that `tail` reads from the beginning.
    pub(super) input: &'a Path,
    /// The output's keys, one per line, `Name` first.
    pub(super) output: String,
    /// The timeout.
    pub(super) deadline: Duration,
}

/// The cost of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) cpu: Cpu,
    /// The time from the start until everything had arrived, or nothing happened any more.
    pub(super) wall: Duration,
    /// The largest resident size, in bytes.
    pub(super) peak_memory: u64,
}

/// A process that is killed on drop.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        // Both fail if it has ended, as it should have.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    fn stop(&self) {
        let process = self.0.id().cast_signed();
        // SAFETY: the process was not waited for yet, so the number is still its own.
        unsafe { libc::kill(process, libc::SIGTERM) };
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }
}

impl Run<'_> {
    /// Runs until `arrived` returns that everything has arrived, or the host has nothing left to do, and then stops it.
    pub(super) fn watch(&self, mut arrived: impl FnMut() -> bool) -> Result<Cost> {
        fs::create_dir_all(&self.folder)?;
        let parsers = self.folder.join("parsers.conf");
        fs::write(&parsers, "[PARSER]\n    Name json\n    Format json\n")?;
        let config = self.folder.join("bench.conf");
        fs::write(&config, self.config(&parsers))?;
        let log = self.folder.join("host.log");
        let mut command = Command::new(self.executable);
        command.arg("-c").arg(&config);
        if let Some(library) = self.library {
            command.arg("-e").arg(library);
        }
        // Without the caller's proxies, certificates and credentials.
        command.env_clear().envs([
            ("AWS_ACCESS_KEY_ID", "TESTKEY"),
            ("AWS_SECRET_ACCESS_KEY", "bench"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        let output = File::create(&log)?;
        command
            .stdout(output.try_clone()?)
            .stderr(output)
            .stdin(Stdio::null());
        let started = Instant::now();
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot run {}", self.executable.display()))?;
        let mut host = Host(child);
        let mut threads = Threads::of(host.0.id());
        let said = || format!("its log is {}", log.display());

        let mut busy = (started, Duration::ZERO);
        let wall = loop {
            thread::sleep(READ_EVERY);
            threads.read();
            let now = Instant::now();
            if let Some(status) = host.ended()? {
                anyhow::bail!("the host ended by itself ({status}); {}", said());
            }
            if arrived() {
                break now - started;
            }
            let cpu = threads.cpu();
            let spent = cpu.host + cpu.output + cpu.waited;
            if spent - busy.1 > IDLE_CPU {
                busy = (now, spent);
            } else if now - busy.0 > IDLE {
                break busy.0 - started;
            }
            let late = now - started > self.deadline;
            ensure!(
                !late,
                "not at its end after {:?}; {}",
                self.deadline,
                said()
            );
        };

        let all_there = arrived();
        let stopping = Instant::now();
        host.stop();
        let status = loop {
            threads.read();
            if let Some(status) = host.ended()? {
                break status;
            }
            let late = stopping.elapsed() > STOPPED_WITHIN;
            ensure!(!late, "it does not stop; {}", said());
            thread::sleep(READ_EVERY_AT_STOP);
        };
        ensure!(status.success(), "the host ended with {status}; {}", said());
        fs::write(
            self.folder.join("threads.txt"),
            format!("{:#?}\n", threads.by_name()),
        )?;
        let last = if all_there {
            Duration::ZERO
        } else {
            stopping.elapsed()
        };
        Ok(Cost {
            cpu: threads.cpu(),
            wall: wall + last,
            peak_memory: threads.peak_memory(),
        })
    }

    /// The input may run ahead of the output by sixteen chunks, and is then paused. Otherwise the data that it read
    /// ahead would count as the output's memory.
    fn config(&self, parsers: &Path) -> String {
        let mut config = format!(
            "[SERVICE]\n    Flush 0.5\n    Grace 60\n    Log_Level info\n    Parsers_File {}\n    \
             scheduler.base 1\n    scheduler.cap 2\n\
             [INPUT]\n    Name tail\n    Tag app.http\n    Path {}\n    Read_from_Head on\n    \
             Parser json\n    Buffer_Chunk_Size 512K\n    Buffer_Max_Size 512K\n    Mem_Buf_Limit 32M\n\
             [OUTPUT]\n",
            parsers.display(),
            self.input.display(),
        );
        for line in self.output.lines() {
            config += &format!("    {}\n", line.trim());
        }
        config += "    Match *\n    Workers 1\n    Retry_Limit no_limits\n";
        config
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A script that waits for SIGTERM.
    const WAITS: &str = "trap 'kill $!; exit 0' TERM; sleep 1000 & wait";

    /// Runs a one-line script in place of the host. Also returns its output.
    fn watch(script: &str, arrived: impl FnMut() -> bool) -> (Result<Cost>, String) {
        let dir = tempfile::tempdir().unwrap();
        let run = Run {
            executable: Path::new(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/fixture/host.sh"
            )),
            library: Some(Path::new("/lib/out_ferry.so")),
            folder: dir.path().join("run"),
            input: Path::new("/lines"),
            output: format!("Name ferry\nScript {script}"),
            deadline: Duration::from_secs(60),
        };
        let cost = run.watch(arrived);
        let log = fs::read_to_string(dir.path().join("run/host.log"));
        (cost, log.unwrap())
    }

    /// Returns a function that reports on its n-th call that everything has arrived.
    fn after(polls: u32) -> impl FnMut() -> bool {
        let asked = Cell::new(0);
        move || {
            asked.set(asked.get() + 1);
            asked.get() > polls
        }
    }

    #[test]
    fn the_host_gets_the_output_and_the_library_and_stops_once_all_has_arrived() {
        let script = format!("echo $1 $3 $4; cat $2; {WAITS}");
        let (cost, log) = watch(&script, after(100));
        let cost = cost.unwrap();
        assert!(log.starts_with("-c -e /lib/out_ferry.so\n"), "{log}");
        assert!(
            log.contains("[OUTPUT]\n    Name ferry\n    Script"),
            "{log}"
        );
        assert!(log.contains("\n    Match *\n    Workers 1\n"), "{log}");
        assert!(log.contains("    Path /lines\n"), "{log}");
        assert!(cost.wall < IDLE, "{cost:?}");
        assert!(cost.peak_memory > 0, "{cost:?}");
    }

    #[test]
    fn a_host_with_nothing_left_to_do_is_stopped_and_the_wait_for_that_is_no_wall_time() {
        let (cost, _) = watch(WAITS, || false);
        let cost = cost.unwrap();
        assert!(cost.wall < IDLE, "{cost:?}");
    }

    #[test]
    fn a_host_that_fails_is_told_with_its_log() {
        let script = "trap 'kill $!; exit 3' TERM; sleep 1000 & wait";
        #[rustfmt::skip] // a table
        let cases = [
            ("exit 255", "the host ended by itself (exit status: 255); its log is "),
            (script, "the host ended with exit status: 3; its log is "),
        ];
        for (script, expected) in cases {
            let error = watch(script, after(100)).0.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{script}: {error}");
        }
    }
}
