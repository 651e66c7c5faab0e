//! Tests of the engine with a plugin that is controlled by the test: `fixture/out_probe.c`.

mod storage;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use ferry_harness::engine::{EXIT_DEF_OVERRUN, EXIT_RAN_AFTER_UNLOAD, EXIT_STACK_OVERFLOW};
use serde_json::Value;
use tempfile::TempDir;

/// Settings with waits and retries of milliseconds instead of seconds.
const QUICK: &str = "
[SERVICE]
    Flush           0.01
    scheduler.base  0.002
    scheduler.cap   0.01
    Log_Level       info
";
const ONE_RECORD: &str = "
[INPUT]
    Name     dummy
    Tag      app
    Rate     1000
    Samples  1
";

/// Compiles the probe, once per set of flags.
fn probe(name: &str, flags: &[&str]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = directory.join(format!("{name}.so"));
    // Another process of these tests may have loaded it.
    let fresh = directory.join(format!("{name}.{}.so", std::process::id()));
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
        .args(["-Wno-infinite-recursion", "-fno-optimize-sibling-calls"])
        .args(flags)
        .arg("-o")
        .arg(&fresh)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixture/out_probe.c"
        ))
        .arg("-lpthread")
        .status()
        .expect("a C compiler is needed");
    assert!(compiled.success());
    std::fs::rename(&fresh, &library).unwrap();
    library
}

fn the_probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| probe("out_probe", &[]))
}

/// A run of `ferry-harness run`, in a directory of its own.
struct Run {
    directory: TempDir,
    command: Command,
}

struct Ran {
    status: Option<i32>,
    stderr: String,
    /// The report; null if the run ended without one.
    report: Value,
    /// The probe's records.
    log: Vec<String>,
    directory: TempDir,
}

impl Run {
    fn new(configuration: &str) -> Self {
        Self::with_library(configuration, the_probe())
    }

    fn with_library(configuration: &str, library: &Path) -> Self {
        Self::in_directory(tempfile::tempdir().unwrap(), configuration, library)
    }

    /// Runs in the directory of an earlier run, with a new log.
    fn in_directory(directory: TempDir, configuration: &str, library: &Path) -> Self {
        let _ = fs::remove_file(directory.path().join("log"));
        let at = |name: &str| directory.path().join(name);
        fs::write(at("fluent-bit.conf"), configuration).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferry-harness"));
        command
            .current_dir(directory.path())
            .args([
                "run",
                "--quiet",
                "-c",
                "fluent-bit.conf",
                "--report",
                "report.json",
                "-e",
            ])
            .arg(library)
            .env("PROBE_LOG", at("log"))
            .env_remove("FLB_LOG_LEVEL")
            .stdin(Stdio::null());
        Self { directory, command }
    }

    fn arguments(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.directory.path().join(name), content).unwrap();
        self
    }

    fn run(mut self) -> Ran {
        let output = self.command.output().unwrap();
        Ran::from(self.directory, &output)
    }

    fn run_with_input(mut self, input: &[u8]) -> Ran {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        Ran::from(self.directory, &output)
    }
}

impl Ran {
    fn from(directory: TempDir, output: &Output) -> Self {
        let read = |name: &str| fs::read(directory.path().join(name)).unwrap_or_default();
        let log = String::from_utf8(read("log")).unwrap();
        Self {
            status: output.status.code(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            report: serde_json::from_slice(&read("report.json")).unwrap_or_default(),
            log: log.lines().map(str::to_owned).collect(),
            directory,
        }
    }

    fn number(&self, pointer: &str) -> u64 {
        let found = self.report.pointer(pointer).and_then(Value::as_u64);
        found.unwrap_or_else(|| panic!("no {pointer} in the report; stderr:\n{}", self.stderr))
    }

    /// Returns the log lines with this prefix.
    fn lines(&self, begin: &str) -> Vec<&str> {
        let lines = self.log.iter().map(String::as_str);
        lines.filter(|line| line.starts_with(begin)).collect()
    }

    fn assert_lines(&self, wanted: &[&str]) {
        assert_eq!(self.log, wanted, "stderr:\n{}", self.stderr);
    }
}

fn output(properties: &str) -> String {
    format!("{QUICK}{ONE_RECORD}[OUTPUT]\n    Name  probe\n    Match *\n{properties}")
}

#[test]
fn calls_come_in_the_hosts_order() {
    let ran = Run::new(&output("    Id one\n    Log_Level debug\n")).run();
    ran.assert_lines(&[
        "pre_register 0",
        "register",
        "init one",
        "pre_run 0",
        "flush one app o here",
        "pre_exit 0",
        "exit one",
        "unregister probe",
    ]);
    assert_eq!(ran.status, Some(0));
    assert_eq!(ran.number("/records_in"), 1);
    assert_eq!(ran.number("/records_acknowledged"), 1);
    assert_eq!(ran.number("/threads_left_behind"), 0);
    assert_eq!(ran.number("/coro_stack_bytes"), 24 * 1024);
    let deepest = ran.number("/stack_high_water_bytes");
    assert!((500..24 * 1024).contains(&deepest), "{deepest}");
    assert!(
        ran.stderr
            .contains("] [debug] [out_probe] one has 3 of debug\n"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_library_without_contexts_is_called_without() {
    let library = probe("out_probe_plain", &["-DPLAIN"]);
    let ran = Run::with_library(&output("    Id one\n"), &library).run();
    assert_eq!(ran.lines("flush"), ["flush one app o here"]);
    assert_eq!(ran.lines("exit"), ["exit"]);
    assert_eq!(ran.number("/records_acknowledged"), 1);
}

#[test]
fn a_registration_longer_than_32_bytes_is_caught() {
    let library = probe("out_probe_overrun", &["-DOVERRUN"]);
    let ran = Run::with_library(&output(""), &library).run();
    assert_eq!(ran.status, Some(EXIT_DEF_OVERRUN));
    assert!(
        ran.stderr.contains("out_probe_overrun.so"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("past `description`"), "{}", ran.stderr);
}

#[test]
fn a_flush_that_overflows_its_stack_is_caught_on_any_thread() {
    for (workers, size, wanted) in [
        (0, "", 24_576),
        (2, "", 24_576),
        (0, "    Coro_Stack_Size 65536\n", 65_536),
    ] {
        let configuration = output(&format!(
            "    Recurse on\n    Workers {workers}\n    Alias deep\n"
        ));
        let configuration = configuration.replace("[SERVICE]\n", &format!("[SERVICE]\n{size}"));
        let ran = Run::new(&configuration).run();
        assert_eq!(ran.status, Some(EXIT_STACK_OVERFLOW), "{workers} workers");
        let message = format!("deep: flush overflowed its {wanted}-byte coroutine stack\n");
        assert!(ran.stderr.contains(&message), "{}", ran.stderr);
    }
}

#[test]
fn a_chunk_is_retried_and_dropped_by_the_hosts_rules() {
    // (answers, Retry_Limit, acknowledged, dropped by error, dropped by limit, retries)
    let cases = [
        ("o", "1", 1, 0, 0, 0),
        ("e", "1", 0, 1, 0, 0),
        ("ro", "1", 1, 0, 0, 1),
        ("rr", "1", 0, 0, 1, 1),
        ("re", "1", 0, 1, 0, 1),
        ("rrro", "3", 1, 0, 0, 3),
        ("rrrr", "3", 0, 0, 1, 3),
        ("rrrrrrro", "no_limits", 1, 0, 0, 7),
        ("r", "no_retries", 0, 0, 1, 0),
    ];
    for (answers, limit, acknowledged, error, exhausted, retries) in cases {
        let case = format!("{answers} with {limit}");
        let ran = Run::new(&output(&format!(
            "    Answers {answers}\n    Retry_Limit {limit}\n"
        )))
        .run();
        assert_eq!(ran.number("/records_acknowledged"), acknowledged, "{case}");
        assert_eq!(ran.number("/dropped/error"), error, "{case}");
        assert_eq!(ran.number("/dropped/retry_limit"), exhausted, "{case}");
        assert_eq!(ran.number("/retries"), retries, "{case}");
        assert_eq!(ran.number("/flush_calls"), retries + 1, "{case}");
        assert_eq!(ran.status, Some((error + exhausted) as i32), "{case}");
        assert_eq!(
            ran.stderr.contains("cannot be retried"),
            exhausted == 1 && retries > 0,
            "{case}"
        );
    }
}

#[test]
fn every_output_of_a_chunk_is_retried_by_itself() {
    let outputs = "
        [OUTPUT]
            Name    probe
            Match   app
            Id      quick
        [OUTPUT]
            Name    probe
            Match   a*
            Id      slow
            Answers rro
            Retry_Limit 2
        [OUTPUT]
            Name    probe
            Match   other
            Id      none
        [OUTPUT]
            Name    probe
            Id      unmatched
    ";
    let outputs: String = outputs
        .lines()
        .map(|line| format!("{}\n", line.trim_start_matches("        ")))
        .collect();
    let ran = Run::new(&format!("{QUICK}{ONE_RECORD}{outputs}")).run();
    assert_eq!(ran.lines("flush quick").len(), 1);
    assert_eq!(ran.lines("flush slow").len(), 3);
    assert!(ran.lines("flush none").is_empty() && ran.lines("flush unmatched").is_empty());
    assert_eq!(ran.number("/records_in"), 1);
    assert_eq!(ran.number("/outputs/probe.0/acknowledged"), 1);
    assert_eq!(ran.number("/outputs/probe.1/acknowledged"), 1);
    assert_eq!(ran.number("/outputs/probe.1/retried"), 2);
    assert_eq!(ran.status, Some(0));
}

#[test]
fn a_record_that_no_output_wants_is_dropped() {
    let ran = Run::new(&output("").replace("Match *", "Match other")).run();
    assert_eq!(ran.number("/dropped/unmatched"), 1);
    assert_eq!(ran.status, Some(1));
}

#[test]
fn workers_flush_elsewhere_in_turn() {
    let many = ONE_RECORD
        .replace("dummy", "nestjs_sample")
        .replace("Samples  1", "Samples  400\n    Tags 8")
        .replace("Tag      app", "Tag      app.{n}");
    let configuration = output("    Id w\n    Workers 3\n").replace(ONE_RECORD, &many);
    let ran = Run::new(&configuration).run();
    let flushes = ran.lines("flush w");
    assert!(flushes.len() >= 8, "{flushes:?}");
    assert!(
        flushes.iter().all(|line| line.ends_with("elsewhere")),
        "{flushes:?}"
    );
    for tag in 0..8 {
        assert!(
            flushes
                .iter()
                .any(|line| line.contains(&format!(" app.{tag} "))),
            "tag {tag}"
        );
    }
    assert_eq!(ran.number("/records_acknowledged"), 400);
    assert_eq!(ran.number("/outputs/probe.0/workers"), 3);
    assert_eq!(ran.number("/threads_left_behind"), 0);
}

#[test]
fn keys_of_the_host_are_hidden_and_the_rest_is_readable() {
    let keys = "
    Show        answers,MISSING,match,alias,workers,retry_limit,tls,net.dns.mode,Region,Path,empty,twice
    Alias       a
    Workers     1
    Retry_Limit 3
    tls         off
    net.dns.mode TCP
    region      ${TEST_REGION}
    path        x/${NOT_SET_HERE}/${ALSO_NOT:-else}
    empty       ${NOT_SET_HERE}
    twice       first
    Twice       second
    answers     o
";
    let mut run = Run::new(&output(keys));
    run.command.env("TEST_REGION", "ap-northeast-2");
    let ran = run.run();
    let shown: Vec<_> = ran.log.iter().filter(|line| line.contains('=')).collect();
    let wanted = [
        "answers=o",
        "MISSING=(null)",
        "match=(null)",
        "alias=(null)",
        "workers=(null)",
        "retry_limit=(null)",
        "tls=(null)",
        "net.dns.mode=(null)",
        "Region=ap-northeast-2",
        "Path=x//else",
        "empty=(null)",
        "twice=first",
    ];
    assert_eq!(shown, wanted);
    assert!(
        ran.stderr
            .contains("variable ${NOT_SET_HERE} is used but not set"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_hot_reload_registers_first_and_starts_the_new_after_the_old_ended() {
    let many = ONE_RECORD
        .replace("dummy", "nestjs_sample")
        .replace("Samples  1", "Samples  40\n    Tags 4");
    let configuration = output("    Id one\n    Answers rrroooooooooo\n    Retry_Limit 5\n")
        .replace(ONE_RECORD, &many);
    // There are four chunks in all: the engine pauses after the second and after the third.
    for _ in 0..2 {
        let run = Run::new(&configuration).arguments(&[
            "--reload-after-chunks",
            "2",
            "--reload-after-chunks",
            "3",
        ]);
        let ran = run.run();
        let calls: Vec<_> = ran
            .log
            .iter()
            .filter(|line| !line.starts_with("flush"))
            .collect();
        let first = ["pre_register 0", "register", "init one", "pre_run 0"];
        let reload = [
            "pre_register 1",
            "register",
            "pre_exit 1",
            "exit one",
            "unregister probe",
            "init one",
            "pre_run 0",
        ];
        let last = ["pre_exit 0", "exit one", "unregister probe"];
        assert_eq!(
            calls,
            [&first[..], &reload, &reload, &last].concat(),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.number("/reloads"), 2);
        assert_eq!(
            ran.number("/records_in"),
            40,
            "the input goes on where it was"
        );
        assert_eq!(ran.number("/records_acknowledged"), 40);
        assert_eq!(ran.status, Some(0));
    }
}

#[test]
fn what_is_pending_when_grace_is_over_is_dropped_and_counted() {
    let service = |more: &str| format!("[SERVICE]\n    Grace 0\n{more}");
    let forever = "    Answers r\n    Retry_Limit no_limits\n";

    let endless = "\n[INPUT]\n    Name dummy\n    Tag other\n";
    let configuration = output(&format!("{forever}    Signal 15 3\n{endless}"));
    let ran = Run::new(&configuration.replace("[SERVICE]\n", &service(""))).run();
    assert!(ran.number("/dropped/stop") >= 1, "{}", ran.stderr);
    assert_eq!(ran.number("/dropped/stop"), ran.number("/records_in"));
    assert_eq!(ran.lines("pre_exit"), ["pre_exit 0"]);
    assert_eq!(ran.status, Some(1));

    let impatient = service("    Hot_Reload.Ensure_Thread_Safety off\n");
    let configuration = output(forever).replace("[SERVICE]\n", &impatient);
    let configuration = configuration.replace("dummy", "http_sample");
    let ran = Run::new(&configuration)
        .arguments(&["--reload-after-chunks", "1"])
        .run();
    assert_eq!(ran.number("/dropped/reload"), 1, "{}", ran.stderr);
    assert_eq!(ran.number("/reloads"), 1);
    assert_eq!(ran.lines("pre_exit"), ["pre_exit 1", "pre_exit 0"]);
    assert_eq!(ran.status, Some(1));
}

#[test]
fn a_hot_reload_sees_pending_retries_through_by_default() {
    let configuration = output("    Answers rrrro\n    Retry_Limit no_limits\n")
        .replace("[SERVICE]\n", "[SERVICE]\n    Grace 0\n")
        .replace("dummy", "http_sample");
    let ran = Run::new(&configuration)
        .arguments(&["--reload-after-chunks", "1"])
        .run();
    assert_eq!(ran.number("/records_acknowledged"), 1, "{}", ran.stderr);
    let calls = ran.log.iter().filter(|line| !line.starts_with("pre_r"));
    let calls: Vec<_> = calls.map(|line| line.split(' ').next().unwrap()).collect();
    let old = calls.iter().position(|&call| call == "pre_exit").unwrap();
    assert_eq!(
        calls[..old].iter().filter(|&&call| call == "flush").count(),
        5
    );
    assert!(!calls[old..].contains(&"flush"));
    assert_eq!(ran.status, Some(0));
}

#[test]
fn sighup_reloads_the_configuration_as_it_is_by_then() {
    let endless = ONE_RECORD.replace("Samples  1", "Samples  0");
    let first = output("    Id first\n    Replace second.conf\n    Signal 1 1\n")
        .replace("[SERVICE]\n", "[SERVICE]\n    Hot_Reload on\n")
        .replace(ONE_RECORD, &endless);
    let ran = Run::new(&first)
        .file("second.conf", output("    Id second\n"))
        .run();
    assert_eq!(ran.number("/reloads"), 1, "{}", ran.stderr);
    assert_eq!(ran.lines("init"), ["init first", "init second"]);
    assert_eq!(ran.lines("flush second").len(), 1);
    assert_eq!(
        ran.number("/records_acknowledged"),
        ran.number("/records_in")
    );
}

#[test]
fn a_reload_of_a_broken_configuration_changes_nothing() {
    let configuration = output("    Id one\n    Replace broken.conf\n");
    let configuration = configuration.replace("Samples  1", "Samples  3");
    let run = Run::new(&configuration).arguments(&["--reload-after-chunks", "1"]);
    let ran = run.file("broken.conf", "[SERVICE\n").run();
    assert!(
        ran.stderr
            .contains("fluent-bit.conf:1: the section header has no ']'"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("Reloading is halted"), "{}", ran.stderr);
    assert_eq!(ran.number("/reloads"), 0);
    assert_eq!(ran.number("/records_acknowledged"), 3);
    assert_eq!(ran.lines("init"), ["init one"]);
    assert_eq!(ran.status, Some(0));
}

#[test]
fn an_output_that_does_not_start_ends_the_others() {
    let second = "[OUTPUT]\n    Name probe\n    Match *\n    Id two\n    Fail_Init on\n";
    let third = "[OUTPUT]\n    Name probe\n    Match *\n    Id three\n";
    let ran = Run::new(&output(&format!("    Id one\n{second}{third}"))).run();
    ran.assert_lines(&[
        "pre_register 0",
        "register",
        "init one",
        "init two",
        "pre_exit 0",
        "exit one",
        "pre_exit 0",
        "exit (null)",
        "unregister probe",
    ]);
    assert_eq!(ran.status, Some(2));
}

#[test]
fn threads_of_the_library_are_told_from_our_own() {
    let ran = Run::new(&output("    Workers 2\n    Burn 60\n")).run();
    let used = ran.report["cpu_seconds"]["library_threads"]
        .as_f64()
        .unwrap();
    assert!((0.06..0.5).contains(&used), "{used}");
    assert!(ran.report["cpu_seconds"]["process"].as_f64().unwrap() >= used);
    assert_eq!(ran.number("/threads_left_behind"), 0);

    let ran = Run::new(&output("    Thread pause\n")).run();
    assert_eq!(ran.number("/threads_left_behind"), 1);

    let ran = Run::new(&output("    Thread spin\n")).run();
    assert_eq!(ran.status, Some(EXIT_RAN_AFTER_UNLOAD), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("ran on after the library was unloaded"),
        "{}",
        ran.stderr
    );
}

#[test]
fn captured_chunks_are_handed_over_byte_for_byte() {
    // A record in the current format, one in the old format, and the markers around a group.
    let mut chunk = vec![
        0x92, 0x92, 0xd7, 0x00, 1, 2, 3, 4, 0, 0, 0, 0, 0x80, 0x81, 0xa1, b'a', 0xc4, 1, 0xff,
    ];
    chunk.extend([0x92, 0x07, 0xdf, 0, 0, 0, 1, 0xa1, b'b', 0xca, 0, 0, 0, 0]);
    for end in [0xff, 0xfe] {
        chunk.extend([
            0x92, 0x92, 0xc7, 8, 0, 0xff, 0xff, 0xff, end, 0, 0, 0, 0, 0x80, 0x80,
        ]);
    }
    let input = "\n[INPUT]\n    Name chunks\n    Path chunks\n    Repeat 2\n";
    let run = Run::new(&output("    Dump dump\n").replace(ONE_RECORD, input));
    fs::create_dir(run.directory.path().join("chunks")).unwrap();
    fs::create_dir(run.directory.path().join("dump")).unwrap();
    let ran = run
        .file("chunks/app.types.msgpack", &chunk)
        .file("chunks/README", "x")
        .run();
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    for number in 1..=2 {
        let name = format!("dump/app.types.{number}");
        assert_eq!(fs::read(ran.directory.path().join(name)).unwrap(), chunk);
    }
    assert_eq!(ran.number("/records_in"), 4, "markers are no records");
    assert_eq!(ran.number("/chunks"), 2);
}

#[test]
fn files_and_standard_input_are_read_to_their_end() {
    let lines = concat!(
        r#"{"time":"2026-11-21T13:00:00.250+0900","zebra":1,"apple":2}"#,
        "\nnot json\n"
    );
    let parsers =
        "[PARSER]\n    Name json_time\n    Format json\n    Time_Format %Y-%m-%dT%H:%M:%S.%L%z\n";
    let tail = "
[INPUT]
    Name            tail
    Tag             file.*
    Path            logs/*.log
    Read_from_Head  on
    Exit_On_Eof     on
    Parser          json_time
";
    let configuration = output("    Dump .\n").replace(ONE_RECORD, tail);
    let configuration =
        configuration.replace("[SERVICE]\n", "[SERVICE]\n    Parsers_File parsers.conf\n");
    let run = Run::new(&configuration).file("parsers.conf", parsers);
    fs::create_dir(run.directory.path().join("logs")).unwrap();
    let ran = run.file("logs/a.log", lines).run();
    assert_eq!(ran.number("/records_in"), 2, "{}", ran.stderr);
    let chunk = fs::read(ran.directory.path().join("file.logs.a.log.1")).unwrap();
    // 2026-11-21T04:00:00.25Z; the keys in order, without the time.
    let parsed = [
        &[0x92, 0x92, 0xd7, 0x00][..],
        &1_795_233_600_u32.to_be_bytes(),
        &250_000_000_u32.to_be_bytes(),
        &[0x80, 0x82, 0xa5],
        b"zebra\x01\xa5apple\x02",
    ]
    .concat();
    assert_eq!(chunk[..parsed.len()], parsed);
    assert!(chunk.ends_with(b"\x81\xa3log\xa8not json"));

    let stdin = "[INPUT]\n    Name stdin\n    Tag app\n";
    let ran =
        Run::new(&output("").replace(ONE_RECORD, stdin)).run_with_input(b"{\"a\":1}\n[1]\n{}\n");
    assert_eq!(ran.number("/records_acknowledged"), 2, "{}", ran.stderr);
}

#[test]
fn a_full_memory_buffer_pauses_its_input() {
    let input = "
[INPUT]
    Name           nestjs_sample
    Tag            app
    Samples        20000
    Mem_Buf_Limit  1k
";
    let ran = Run::new(&output("    Workers 1\n").replace(ONE_RECORD, input)).run();
    assert_eq!(
        ran.number("/records_acknowledged"),
        20_000,
        "{}",
        ran.stderr
    );
    assert!(ran.number("/inputs/nestjs_sample.0/pauses") > 0);
    assert!(
        ran.stderr.contains("nestjs_sample.0 paused"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_daemon_leaves_its_parent_and_works_on() {
    let configuration = output("    Id one\n").replace("[SERVICE]\n", "[SERVICE]\n    Daemon on\n");
    let mut run = Run::new(&configuration);
    let output = run.command.output().unwrap();
    assert!(output.status.success(), "the parent ends at once");
    let report = run.directory.path().join("report.json");
    wait_until("the daemon has written its report", || report.exists());
    let ran = Ran::from(run.directory, &output);
    assert_eq!(ran.number("/records_acknowledged"), 1);
    assert_eq!(ran.number("/threads_lost_at_fork"), 0);
    assert_eq!(ran.lines("register"), ["register"], "before the fork");
    assert!(output.stdout.is_empty(), "a daemon has nowhere to print");
}

#[test]
fn a_steady_load_of_small_chunks_is_measured() {
    let load = "
[INPUT]
    Name     http_sample
    Tag      app
    Tags     50
    Samples  50
    Rate     5000
";
    let ran = Run::new(&output("    Workers 1\n").replace(ONE_RECORD, load)).run();
    assert_eq!(ran.number("/chunks"), 50, "a chunk for each tag");
    assert_eq!(ran.number("/flush_calls"), 50);
    let report = |pointer: &str| ran.report.pointer(pointer).and_then(Value::as_f64).unwrap();
    let rate = report("/chunks_per_second") * report("/seconds");
    assert!((49.9..50.1).contains(&rate), "{rate}");
    for at in ["", "/outputs/probe.0"] {
        let latency = ["p50_ms", "p99_ms", "max_ms"];
        let latency = latency.map(|name| report(&format!("{at}/flush_latency/{name}")));
        assert!(latency[0] > 0.0 && latency.is_sorted(), "{latency:?}");
    }
}

#[test]
fn wrong_configurations_are_status_2_and_name_the_place() {
    let cases = [
        (
            "Name  probe",
            "Name  nobody",
            "there is no output 'nobody'; the libraries loaded have: probe",
        ),
        (
            "Name     dummy",
            "Name     cpu",
            "there is no input 'cpu' here",
        ),
        ("Match *", "Match_Regex .*", "use Match"),
        ("Match *", "tls on", "does not support TLS"),
        (
            "Samples  1",
            "Samples  few",
            "Samples is 'few'; it must be a number",
        ),
        (
            "Samples  1",
            "storage.type filesystem",
            "set storage.path in [SERVICE]",
        ),
        (
            "Samples  1",
            "storage.type disk",
            "storage.type is 'disk'; it must be memory, memrb or filesystem",
        ),
    ];
    for (good, bad, message) in cases {
        let ran = Run::new(&output("").replace(good, bad)).run();
        assert_eq!(ran.status, Some(2), "{bad}: {}", ran.stderr);
        assert!(
            ran.stderr.to_lowercase().contains(&message.to_lowercase()),
            "{bad}: {}",
            ran.stderr
        );
        assert!(
            ran.stderr.contains("fluent-bit.conf:"),
            "{bad}: {}",
            ran.stderr
        );
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < patience, "{what}: not within 30 seconds");
        thread::sleep(Duration::from_millis(5));
    }
}
