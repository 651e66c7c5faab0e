//! One output in this process: the whole plugin, without a host.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use ferry::ids::Verdict;
use ferry::log::{Level, Output};
use ferry::output::Instance;
use ferry_harness::samples::{Shape, generate};
use tempfile::TempDir;

/// The lines that an output logged.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Output for Lines {
    fn enabled(&self, _level: Level) -> bool {
        true
    }

    fn write(&self, level: Level, line: &str) {
        self.0.lock().unwrap().push(format!("{level:?} {line}"));
    }
}

/// An output and its folder.
pub(crate) struct Plugin {
    instance: Instance,
    lines: Lines,
    dir: TempDir,
    asked_to_end: Arc<OnceLock<Instant>>,
}

impl Plugin {
    /// Starts an output with dead letters in a folder of its own. The error is its log.
    pub(crate) fn try_start(keys: &[(&str, &str)]) -> Result<Plugin, String> {
        let dir = tempfile::tempdir().unwrap();
        let mut all: Vec<(String, String)> = keys
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect();
        all.push((
            "dead_letter_dir".into(),
            dir.path().join("letters").display().to_string(),
        ));
        let get = |key: &str| {
            let found = all.iter().find(|(name, _)| name == key);
            found.map(|(_, value)| value.clone())
        };
        let lines = Lines::default();
        let asked_to_end: Arc<OnceLock<Instant>> = Arc::default();
        let asked = Arc::clone(&asked_to_end);
        let asked = Arc::new(move || asked.get().copied());
        match Instance::start(&get, Box::new(lines.clone()), None, asked) {
            Some(instance) => Ok(Plugin {
                instance,
                lines,
                dir,
                asked_to_end,
            }),
            None => Err(lines.0.lock().unwrap().join("\n")),
        }
    }

    /// Like `try_start`, but panics on failure.
    pub(crate) fn start(keys: &[(&str, &str)]) -> Plugin {
        Plugin::try_start(keys).unwrap_or_else(|log| panic!("{log}"))
    }

    /// Flushes a chunk like a host's worker thread.
    pub(crate) fn flush(&self, tag: &str, chunk: &[u8]) -> Verdict {
        self.flush_bytes(tag.as_bytes(), chunk)
    }

    /// Like `flush`, with a tag of arbitrary bytes.
    pub(crate) fn flush_bytes(&self, tag: &[u8], chunk: &[u8]) -> Verdict {
        self.instance
            .flush(tag, Bytes::copy_from_slice(chunk), false)
    }

    /// Asks the output to end, like a host's signal handler.
    pub(crate) fn ask_to_end(&self) {
        self.asked_to_end.get_or_init(Instant::now);
    }

    /// Stops the output like a host, possibly while flushes wait.
    pub(crate) fn stop(&self) {
        self.instance.stop();
    }

    /// Flushes a chunk until it is accepted, like a host with `Retry_Limit no_limits`.
    pub(crate) fn deliver(&self, tag: &str, chunk: &[u8]) {
        for _ in 0..20 {
            if self.flush(tag, chunk) == Verdict::Ok {
                return;
            }
        }
        panic!("not delivered in 20 tries: {}", self.log());
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.lines.0.lock().unwrap().join("\n")
    }

    /// The dead-letter file.
    pub(crate) fn letters_file(&self) -> PathBuf {
        self.dir.path().join("letters/dead-letters.ndjson")
    }

    /// The dead letters.
    pub(crate) fn letters(&self) -> Vec<serde_json::Value> {
        std::fs::read_to_string(self.letters_file())
            .unwrap_or_default()
            .lines()
            .map(|line| serde_json::from_str(line).expect("valid JSON"))
            .collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.instance.stop();
    }
}

/// Sample HTTP logs with sequence numbers `range`, as a chunk.
pub(crate) fn chunk(range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let lines = generate(Shape::Http, 1, SystemTime::UNIX_EPOCH);
    for (number, (time, value)) in lines.enumerate().take(range.end).skip(range.start) {
        assert_eq!(value["seq"], number);
        push_event(&mut bytes, time, &value);
    }
    bytes
}

/// Appends one event in the host's format.
pub(crate) fn push_event(chunk: &mut Vec<u8>, time: SystemTime, body: &serde_json::Value) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    chunk.extend_from_slice(&[0x92, 0x92, 0xd7, 0x00]);
    chunk.extend_from_slice(&u32::try_from(since.as_secs()).unwrap().to_be_bytes());
    chunk.extend_from_slice(&since.subsec_nanos().to_be_bytes());
    chunk.push(0x80);
    chunk.extend(rmp_serde::to_vec(body).unwrap());
}
