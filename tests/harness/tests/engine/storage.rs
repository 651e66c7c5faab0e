//! Tests of chunks on disk, which a killed or stopped host finds at its next start.

use ferry_harness::engine::storage::{self, Stored};

use super::*;

const DIR: &str = "storage";

/// A configuration without inputs, so that all chunks come from the backlog.
fn backlog_alone(properties: &str) -> String {
    on_disk(&output(properties).replace(ONE_RECORD, ""))
}

fn on_disk(configuration: &str) -> String {
    configuration.replace("[SERVICE]\n", "[SERVICE]\n    storage.path storage\n")
}

/// A record on disk.
fn one_stored_record(properties: &str) -> String {
    let input = ONE_RECORD.replace("Samples  1", "Samples  1\n    storage.type filesystem");
    on_disk(&output(properties).replace(ONE_RECORD, &input))
}

/// `[[EventTime, {}], {"n": n}]` with `n` below 128.
fn event(n: u8) -> Vec<u8> {
    let mut event = vec![0x92, 0x92, 0xd7, 0x00, 1, 2, 3, 4, 0, 0, 0, 0, 0x80];
    event.extend([0x81, 0xa1, b'n', n]);
    event
}

/// Creates a directory with a backlog of `count` chunks, `app.0` with event 0 and so on.
fn with_backlog(count: u8) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for n in 0..count {
        let tag = format!("app.{n}");
        storage::put(&directory.path().join(DIR), n.into(), &tag, &event(n)).unwrap();
    }
    directory
}

fn run_in(directory: TempDir, configuration: &str, arguments: &[&str]) -> Ran {
    let run = Run::in_directory(directory, configuration, the_probe());
    run.arguments(arguments).run()
}

impl Ran {
    fn stored(&self) -> Vec<Stored> {
        storage::list(&self.directory.path().join(DIR)).unwrap()
    }

    fn was_killed(&self) -> bool {
        self.status.is_none() && self.report.is_null()
    }

    fn flushed_tags(&self) -> Vec<&str> {
        let lines = self.lines("flush").into_iter();
        lines.map(|line| line.split(' ').nth(2).unwrap()).collect()
    }
}

#[test]
fn a_killed_host_finds_what_was_not_settled() {
    let ran = run_in(with_backlog(5), &backlog_alone("    Signal 9 3\n"), &[]);
    assert!(ran.was_killed(), "{}", ran.stderr);
    assert_eq!(ran.flushed_tags(), ["app.0", "app.1", "app.2"]);
    let left = ran.stored();
    assert_eq!(
        left.iter()
            .map(|chunk| chunk.tag.as_str())
            .collect::<Vec<_>>(),
        ["app.2", "app.3", "app.4"],
        "the third had no answer yet"
    );

    let ran = run_in(ran.directory, &backlog_alone("    Dump .\n"), &[]);
    assert_eq!(ran.flushed_tags(), ["app.2", "app.3", "app.4"]);
    for (call, n) in (1..).zip(2..5) {
        let dump = ran.directory.path().join(format!("app.{n}.{call}"));
        assert_eq!(fs::read(dump).unwrap(), event(n), "the same bytes");
    }
    assert_eq!(ran.number("/backlog_chunks"), 3);
    assert_eq!(ran.number("/chunks_left_on_disk"), 0);
    assert_eq!(ran.number("/inputs/storage_backlog.0/records"), 3);
    assert_eq!(ran.number("/records_acknowledged"), 3);
    assert_eq!(ran.status, Some(0));
    assert_eq!(ran.stored(), []);
}

#[test]
fn a_chunk_comes_again_when_the_kill_falls_between_its_answer_and_its_file() {
    let late = ["--settle-late", "1h"];
    let ran = run_in(with_backlog(3), &backlog_alone("    Signal 9 3\n"), &late);
    assert!(ran.was_killed());
    assert_eq!(ran.stored().len(), 3, "two of them were answered OK");
    let ran = run_in(ran.directory, &backlog_alone("    Dump .\n"), &late);
    for n in 0..3 {
        let dump = ran.directory.path().join(format!("app.{n}.{}", n + 1));
        assert_eq!(fs::read(dump).unwrap(), event(n), "the same bytes");
    }
    assert_eq!(
        ran.stored(),
        [],
        "an orderly end does not wait for the hour"
    );
    assert_eq!(ran.number("/records_acknowledged"), 3);
}

#[test]
fn an_inputs_chunk_is_on_disk_until_it_is_settled() {
    // (answers, flush in which the host is killed, chunks then on disk)
    for (answers, killed_in, left) in [
        ("o", 1, 1),
        ("rrr", 3, 1),
        ("o", 9, 0),
        ("e", 9, 0),
        ("rr", 9, 0),
    ] {
        let case = format!("{answers}, killed in {killed_in}");
        let limit = if killed_in == 3 { 5 } else { 1 };
        let properties =
            format!("    Answers {answers}\n    Retry_Limit {limit}\n    Signal 9 {killed_in}\n");
        let ran = Run::new(&one_stored_record(&properties)).run();
        assert_eq!(ran.was_killed(), killed_in != 9, "{case}: {}", ran.stderr);
        let stored = ran.stored();
        assert_eq!(stored.len(), left, "{case}");
        for chunk in stored {
            assert_eq!(chunk.tag, "app", "{case}");
            assert!(chunk.data.ends_with(b"\x81\xa7message\xa5dummy"), "{case}");
        }
    }
}

#[test]
fn a_chunk_for_two_outputs_stays_for_the_slower_one() {
    let slow = "    Id quick\n[OUTPUT]\n    Name probe\n    Match *\n    Id slow\n";
    let killed = format!("{slow}    Answers r\n    Signal 9 2\n");
    let ran = Run::new(&one_stored_record(&killed)).run();
    assert!(ran.was_killed());
    assert_eq!(ran.lines("flush quick").len(), 1);
    assert_eq!(ran.stored().len(), 1);
    let ran = run_in(ran.directory, &backlog_alone(slow), &[]);
    assert_eq!(
        ran.lines("flush").len(),
        2,
        "as in the host, both get it again"
    );
    assert_eq!(ran.stored(), []);
}

#[test]
fn what_waits_at_a_stop_stays_on_disk_and_is_not_lost() {
    let forever = "    Answers r\n    Retry_Limit no_limits\n    Signal 15 3\n";
    let no_grace = |text: &str| text.replace("[SERVICE]\n", "[SERVICE]\n    Grace 0\n");
    let ran = Run::new(&no_grace(&one_stored_record(forever))).run();
    assert_eq!(ran.number("/records_dropped"), 0, "{}", ran.stderr);
    assert_eq!(ran.number("/chunks_left_on_disk"), 1);
    assert_eq!(ran.status, Some(0));

    let slow = backlog_alone("    Workers 1\n    Burn 300\n    Signal 15 1\n");
    let ran = run_in(ran.directory, &no_grace(&slow), &[]);
    assert_eq!(ran.number("/records_acknowledged"), 1, "{}", ran.stderr);
    assert_eq!(
        ran.number("/chunks_left_on_disk"),
        1,
        "an answer that comes after the grace is not looked at"
    );
}

#[test]
fn a_hot_reload_finds_what_the_old_pipeline_left() {
    let impatient = "    Answers r\n    Retry_Limit no_limits\n    Replace second.conf\n";
    let first = one_stored_record(impatient).replace(
        "[SERVICE]\n",
        "[SERVICE]\n    Grace 0\n    Hot_Reload.Ensure_Thread_Safety off\n",
    );
    let ran = Run::new(&first)
        .file("second.conf", backlog_alone("    Id second\n"))
        .arguments(&["--reload-after-chunks", "1"])
        .run();
    assert_eq!(ran.number("/reloads"), 1, "{}", ran.stderr);
    assert_eq!(ran.lines("flush second").len(), 1);
    assert_eq!(ran.number("/backlog_chunks"), 1);
    assert_eq!(ran.number("/records_dropped"), 0);
    assert_eq!(ran.stored(), []);
}

#[test]
fn a_large_backlog_comes_oldest_first_and_a_little_at_a_time() {
    let configuration = backlog_alone("    Workers 1\n").replace(
        "[SERVICE]\n",
        "[SERVICE]\n    storage.backlog.mem_limit 0\n",
    );
    let ran = run_in(with_backlog(30), &configuration, &[]);
    let wanted: Vec<_> = (0..30).map(|n| format!("app.{n}")).collect();
    assert_eq!(ran.flushed_tags(), wanted);
    assert!(ran.number("/inputs/storage_backlog.0/pauses") > 0);
}

#[test]
fn new_input_and_backlog_come_together() {
    let configuration = one_stored_record("").replace("Match *", "Match app*");
    let ran = run_in(with_backlog(2), &configuration, &[]);
    assert_eq!(ran.number("/chunks"), 3, "{}", ran.stderr);
    assert_eq!(ran.number("/backlog_chunks"), 2);
    assert_eq!(ran.stored(), []);
}

#[test]
fn what_has_no_output_or_is_no_chunk_is_left_alone() {
    let directory = with_backlog(2);
    let torn = directory.path().join(DIR).join("1.flb");
    fs::write(&torn, "FLBCHNK1 and no more").unwrap();
    let never_whole = directory.path().join(DIR).join("2.part");
    fs::write(&never_whole, "FLB").unwrap();
    let configuration = backlog_alone("").replace("Match *", "Match app.1");
    let ran = run_in(directory, &configuration, &[]);
    assert_eq!(ran.flushed_tags(), ["app.1"]);
    assert_eq!(ran.number("/dropped/unmatched"), 0);
    assert_eq!(ran.number("/chunks_left_on_disk"), 2);
    assert_eq!(ran.status, Some(0));
    assert!(torn.exists() && !never_whole.exists());
    for message in [
        "1.flb is not a whole chunk: it is left where it is",
        "2.part was never whole: removed",
        "no output matches the tag 'app.0': 00000000000000000000.flb stays on disk",
    ] {
        assert!(ran.stderr.contains(message), "{message}: {}", ran.stderr);
    }
}
