//! Tests of the spool, mostly on a simulated disk that fails and loses data.

mod away;
mod behind;
mod crashes;
mod damage;
mod descriptors;
mod model;
mod numbers;
mod relocation;
mod stories;
mod suspects;
mod versions;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::sim::Sim;
use super::*;

/// Small segments, so that a few chunks fill several.
const SMALL: Options = Options {
    limit: 64 * 1024,
    segment_bytes: Some(4_096),
};

/// A configuration with the same `count` cases in each run, unless the environment overrides it (`PROPTEST_CASES`,
/// `PROPTEST_RNG_SEED`).
pub(super) fn cases(count: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let overridden = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig {
        cases: if overridden { default.cases } else { count },
        rng_seed: match default.rng_seed {
            RngSeed::Random => RngSeed::Fixed(count.into()),
            seed => seed,
        },
        failure_persistence: None,
        ..default
    }
}

/// Everything that earlier runs left, once all of it was read.
#[derive(Debug)]
struct Recovered {
    unfinished: u64,
    pending: Vec<Pending>,
    settled: HashMap<Seq, Vec<Range<u32>>>,
    next_batch: u64,
    suspects: Vec<Suspect>,
    findings: Vec<String>,
}

/// Waits until everything that earlier runs left was read, and nothing is to be done. Fails if the disk does.
fn recovered(spool: &Spool, start: super::Recovered) -> io::Result<Recovered> {
    let mut settled = HashMap::new();
    let mut after = None;
    while let Some((chunk, _)) = spool.next(after)? {
        settled.insert(chunk, spool.settled(chunk));
        after = Some(chunk);
    }
    settled.retain(|_, runs| !runs.is_empty());
    spool.wait_until_idle();
    let mut state = spool.shared.state();
    let history = state.history.take().expect("it was read");
    let mut findings = start.findings;
    findings.append(&mut state.findings);
    Ok(Recovered {
        unfinished: state.unfinished,
        pending: history.pending,
        settled,
        next_batch: start.next_batch,
        suspects: history.suspects,
        findings,
    })
}

/// Opens a spool, and waits until everything was read.
fn open_all(disk: Arc<dyn Disk>, options: Options) -> io::Result<(Arc<Spool>, Recovered)> {
    let (spool, start) = Spool::open(disk, options)?;
    let recovered = recovered(&spool, start)?;
    Ok((spool, recovered))
}

/// A spool on a simulated disk, driven synchronously.
struct Bench {
    sim: Sim,
    options: Options,
    /// [`Limits::indexed`].
    indexed: usize,
    runtime: Runtime,
    /// `None`: between two runs.
    spool: Option<Arc<Spool>>,
}

impl Bench {
    fn new(options: Options) -> Bench {
        Bench::on(Sim::new(1), options).0
    }

    /// Opens the spool on a disk.
    fn on(sim: Sim, options: Options) -> (Bench, Recovered) {
        let mut bench = Bench {
            sim,
            options,
            indexed: INDEXED,
            runtime: Builder::new_current_thread().enable_time().build().unwrap(),
            spool: None,
        };
        let recovered = bench.open().unwrap();
        (bench, recovered)
    }

    fn open(&mut self) -> io::Result<Recovered> {
        let start = self.start()?;
        recovered(self.spool(), start).inspect_err(|_| self.spool = None)
    }

    /// Opens the spool, and does not wait until everything was read.
    fn start(&mut self) -> io::Result<super::Recovered> {
        let limits = Limits {
            indexed: self.indexed,
            ..Limits::new(self.options)
        };
        let (spool, start) = Spool::open_with(self.sim.mount(), limits)?;
        self.spool = Some(spool);
        Ok(start)
    }

    fn spool(&self) -> &Arc<Spool> {
        self.spool.as_ref().unwrap()
    }

    fn append(&self, tag: &[u8], data: &[u8]) -> Result<Appended, Refusal> {
        let deadline = Instant::now() + Duration::from_secs(600);
        let append = self.spool().append(chunk(tag, data), deadline);
        self.runtime.block_on(append)
    }

    /// Keeps a chunk of `len` equal bytes.
    fn keep(&self, byte: u8, len: usize) {
        let answer = self.append(b"app.log", &vec![byte; len]);
        assert!(matches!(answer, Ok(Appended::Kept)), "{answer:?}");
    }

    fn note(&self, note: Note, durability: Durability) -> io::Result<()> {
        self.runtime.block_on(self.spool().note(note, durability))
    }

    /// Relocates events to a chunk of `len` equal bytes.
    fn relocate(&self, byte: u8, len: usize, origins: &[Content]) -> io::Result<Seq> {
        let relocation = relocation(byte, len, origins);
        self.runtime.block_on(self.spool().relocate(relocation))
    }

    /// Reads all visible chunks, in order.
    fn peeked(&self) -> Vec<(Seq, Result<Stored, Unreadable>)> {
        let mut after = None;
        let read = || {
            let (seq, stored) = next(self.spool(), after)?;
            after = Some(seq);
            Some((seq, stored))
        };
        std::iter::from_fn(read).collect()
    }

    /// All visible chunks, in order, none of them unreadable.
    fn visible(&self) -> Vec<(Seq, Stored)> {
        let read = self.peeked().into_iter();
        read.map(|(seq, stored)| (seq, stored.unwrap())).collect()
    }

    /// The first bytes of all visible chunks.
    fn bytes(&self) -> Vec<u8> {
        let visible = self.visible();
        visible.iter().map(|(_, stored)| stored.data[0]).collect()
    }

    fn finish_all(&self) {
        for (chunk, _) in self.visible() {
            self.note(done(chunk), Durability::Written).unwrap();
            self.spool().finish(chunk);
        }
        self.spool().wait_until_idle();
    }

    /// Ends the run by a power cut or by killing the process.
    fn end(&mut self, power_goes: bool) {
        if power_goes {
            self.sim.fault(sim::Faults {
                down_at: Some(0),
                ..Default::default()
            });
        }
        self.spool = None;
        if power_goes {
            self.sim.crash();
        } else {
            self.sim.kill();
        }
    }

    /// Cuts the power and reopens the spool.
    fn crash(&mut self) -> Recovered {
        self.end(true);
        self.open().unwrap()
    }

    /// Closes the spool and reopens it.
    fn restart(&mut self) -> Recovered {
        self.spool().close();
        self.end(false);
        self.open().unwrap()
    }

    fn segments(&self) -> Vec<String> {
        let files = self.sim.files().into_iter();
        files
            .map(|(name, _)| name)
            .filter(|name| frame::segment_first(name).is_some())
            .collect()
    }
}

fn chunk<'a>(tag: &'a [u8], data: &[u8]) -> Chunk<'a> {
    Chunk {
        id: chunk_id(tag, data),
        tag,
        data: Bytes::copy_from_slice(data),
        arrived: Time {
            seconds: i64::from(data.first().copied().unwrap_or(0)),
            nanos: 7,
        },
    }
}

fn relocation(byte: u8, len: usize, origins: &[Content]) -> Relocation {
    Relocation {
        tag: b"app.log".to_vec(),
        data: vec![byte; len].into(),
        arrived: Time {
            seconds: i64::from(byte),
            nanos: 7,
        },
        origins: origins.to_vec(),
    }
}

fn all(chunk: Seq) -> Content {
    let events = Events::All;
    Content { chunk, events }
}

fn runs(chunk: Seq, runs: &[(u32, u32)]) -> Content {
    let events = Events::Runs(ranges(runs));
    Content { chunk, events }
}

/// Half-open ranges.
fn ranges(runs: &[(u32, u32)]) -> Vec<Range<u32>> {
    runs.iter().map(|(start, end)| *start..*end).collect()
}

fn done(chunk: Seq) -> Note {
    Note::Done {
        contents: Vec::from([all(chunk)]),
    }
}

fn begun(batch: u64, contents: &[Content]) -> Note {
    Note::Begun {
        batch,
        name: format!("app/{batch}.gz"),
        token: "0123".into(),
        lines: 3,
        contents: contents.to_vec(),
        recipe: None,
    }
}

/// Reads the next chunk after another.
fn next(spool: &Spool, after: Option<Seq>) -> Option<(Seq, Result<Stored, Unreadable>)> {
    // Faults may have kept it from being indexed.
    spool.retry_reading();
    let (chunk, _) = spool.next(after).unwrap()?;
    Some((chunk, spool.read(chunk)))
}

fn ended(batch: u64) -> Note {
    Note::Ended {
        batch,
        delivered: None,
    }
}
