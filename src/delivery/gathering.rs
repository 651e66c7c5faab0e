//! Gathers the lines of many folders on disk: when they are spilled, and when their objects are made.
//!
//! A *pass* merges all runs and sends one object for each folder. It begins when the oldest spilled line reaches the age of
//! an object, when the file has taken its share of the disk, or when the spool is half full. Meanwhile the next runs go to
//! another file. There is one pass at a time: if the store takes objects more slowly than lines arrive, the second file
//! fills, reading stops, and the spool keeps what arrives.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::ack::AckGuard;
use super::objects::{Objects, OpenObject};
use super::spill::{ByChunk, Left, Merge, Spill, SpilledObject};
use crate::metrics::Sealed;
use crate::spool::Seq;

/// The part of `spool_limit` that the runs of a pass take. Those of the next pass take as much, and the spool counts both.
pub const FILE_SHARE: u64 = 6;
/// The part of `memory_limit` for reading runs, and for what is known of spilled lines.
const MERGE_SHARE: usize = 8;
/// The maximum number of runs of a pass: with more, each would be read in pieces that are too small.
const MAX_RUNS: usize = 512;
/// The time without spilling after the disk failed, or the work panicked.
const BACKOFF: Duration = Duration::from_secs(10);
/// The approximate memory use of the events of a chunk in an object in flight.
const IN_FLIGHT_BYTES: usize = 512;
/// The objects that one step of a pass makes: at most this many, of this many bytes together.
const STEP_OBJECTS: usize = 64;
const STEP_BYTES: usize = 1024 * 1024;

/// The lines that wait on disk.
pub(super) struct Gathering {
    /// The folder of the file: the spool's.
    dir: PathBuf,
    /// The size of a pass, in bytes.
    file_bytes: u64,
    /// The bytes for reading runs.
    merge_bytes: usize,
    /// What is spilled since the last pass began. Taken while a run is being written.
    spill: Option<Spill>,
    /// The events in it.
    left: Left,
    pass: Option<Pass>,
    /// The time before which nothing is spilled, after a failure.
    spills_from: Instant,
}

struct Pass {
    /// Taken while a step is being made.
    merge: Option<Merge>,
    /// The size of its file, which is freed at its end.
    file_bytes: u64,
    /// The events that are in no object yet.
    left: Left,
    /// Why its objects are sealed.
    why: Sealed,
}

/// The result of writing a run.
pub(super) struct Spilled {
    spill: Option<Spill>,
    objects: Vec<(String, OpenObject)>,
    result: io::Result<ByChunk>,
}

/// The result of a step of a pass.
pub(super) struct Step {
    merge: Merge,
    objects: Vec<SpilledObject>,
    /// Whether more is to come.
    result: io::Result<bool>,
}

/// Spilled lines that cannot be read back. Their events have to be read from the spool again.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// The reason. `None`: the work panicked.
    pub(super) error: Option<io::Error>,
    pub(super) events: ByChunk,
}

impl Gathering {
    /// Starts without any lines.
    pub(super) fn new(dir: PathBuf, spool_limit: u64, memory_limit: usize) -> Gathering {
        Gathering {
            dir,
            file_bytes: spool_limit / FILE_SHARE,
            merge_bytes: memory_limit / MERGE_SHARE,
            spill: None,
            left: Left::default(),
            pass: None,
            spills_from: Instant::now(),
        }
    }

    /// Returns whether events of a chunk wait here.
    pub(super) fn holds(&self, chunk: Seq) -> bool {
        let in_pass = |pass: &Pass| pass.left.holds(chunk);
        self.left.holds(chunk) || self.pass.as_ref().is_some_and(in_pass)
    }

    /// Returns whether nothing waits here.
    pub(super) fn is_empty(&self) -> bool {
        self.spill.is_none() && self.pass.is_none()
    }

    /// Returns whether a pass is in progress.
    pub(super) fn is_passing(&self) -> bool {
        self.pass.is_some()
    }

    /// Returns the size of the files, in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        let spill = self.spill.as_ref().map_or(0, Spill::file_bytes);
        spill + self.pass.as_ref().map_or(0, |pass| pass.file_bytes)
    }

    /// Returns the approximate memory use.
    pub(super) fn bytes(&self) -> usize {
        let merging = |pass: &Pass| pass.left.bytes() + pass.merge.as_ref().map_or(0, Merge::bytes);
        let passing = self.pass.as_ref().map_or(0, merging);
        self.left.bytes() + self.spill.as_ref().map_or(0, Spill::bytes) + passing
    }

    /// Returns whether the disk failed recently: open objects are then sealed, however small.
    pub(super) fn has_failed(&self, now: Instant) -> bool {
        now < self.spills_from
    }

    /// Returns whether nothing more is spilled before a pass begins, which has to wait for the one in progress.
    pub(super) fn is_full(&self) -> bool {
        let full = |it: &Spill| {
            it.file_bytes() >= self.file_bytes
                || it.runs() >= MAX_RUNS
                || it.bytes() + self.left.bytes() >= self.merge_bytes
                || it.merge_bytes() >= self.merge_bytes
        };
        self.spill.as_ref().is_some_and(full)
    }

    /// Returns when the next pass is due, if nothing requires it earlier.
    pub(super) fn due(&self, age: Duration) -> Option<Instant> {
        let spill = self.spill.as_ref().filter(|_| self.pass.is_none());
        spill.map(|spill| spill.since() + age)
    }

    /// Prepares to spill all open objects, on another thread. [`Gathering::spilled`] follows.
    pub(super) fn spill(
        &mut self,
        objects: &mut Objects,
    ) -> impl FnOnce() -> Spilled + Send + use<> {
        let (spill, dir) = (self.spill.take(), self.dir.clone());
        let mut objects = objects.take_all();
        move || {
            let created = match spill {
                Some(spill) => Ok(spill),
                None => Spill::create(&dir),
            };
            let (spill, result) = match created {
                Ok(mut spill) => {
                    let written = spill.write(&mut objects);
                    (Some(spill), written)
                }
                Err(error) => (None, Err(error)),
            };
            Spilled {
                spill,
                objects,
                result,
            }
        }
    }

    /// Takes over the run that was written: its events count as settled for their chunks' trackers, and are held here. If
    /// that failed, the objects are open again, and the error is returned.
    pub(super) fn spilled(
        &mut self,
        spilled: Spilled,
        objects: &mut Objects,
        now: Instant,
    ) -> io::Result<()> {
        self.spill = spilled.spill.filter(|spill| spill.runs() > 0);
        match spilled.result {
            Ok(events) => {
                // Held before the guards are gone: a chunk is finished with its last guard, unless it is held.
                for (chunk, events) in events {
                    self.left.add(chunk, &events);
                }
                let objects = spilled.objects.into_iter();
                objects
                    .flat_map(|(_, open)| open.into_guards())
                    .for_each(AckGuard::keep);
                Ok(())
            }
            Err(error) => {
                objects.put_back(spilled.objects);
                self.spills_from = now + BACKOFF;
                Err(error)
            }
        }
    }

    /// Gives up the file that was being written, because the work panicked. Its open objects are lost: their trackers fail.
    pub(super) fn spill_panicked(&mut self, now: Instant) -> Unreadable {
        self.spills_from = now + BACKOFF;
        self.spill = None;
        let events = std::mem::take(&mut self.left).into_events();
        let error = None;
        Unreadable { error, events }
    }

    /// Begins a pass over all that is spilled, unless one is in progress.
    pub(super) fn begin_pass(&mut self, why: Sealed) {
        if self.pass.is_none()
            && let Some(spill) = self.spill.take()
        {
            self.pass = Some(Pass {
                file_bytes: spill.file_bytes(),
                merge: Some(spill.merge(self.merge_bytes)),
                left: std::mem::take(&mut self.left),
                why,
            });
        }
    }

    /// Prepares the next step of the pass, on another thread. `None`: there is no pass. [`Gathering::stepped`] follows.
    pub(super) fn step(
        &mut self,
        objects: &Objects,
    ) -> Option<impl FnOnce() -> Step + Send + use<>> {
        let mut merge = self.pass.as_mut()?.merge.take()?;
        let (format, bounds) = objects.settings();
        Some(move || {
            let (mut made, mut bytes) = (Vec::new(), 0);
            let result = loop {
                if made.len() >= STEP_OBJECTS || bytes >= STEP_BYTES {
                    break Ok(true);
                }
                match merge.next(&format, bounds.object_bytes) {
                    Ok(Some(object)) => {
                        bytes += object.body.bytes() + object.events.len() * IN_FLIGHT_BYTES;
                        made.push(object);
                    }
                    Ok(None) => break Ok(false),
                    Err(error) => break Err(error),
                }
            };
            Step {
                merge,
                objects: made,
                result,
            }
        })
    }

    /// Takes over a step (`None`: it panicked). Returns its objects and why they are sealed; their events are no longer held
    /// here.
    pub(super) fn stepped(
        &mut self,
        step: Option<Step>,
        now: Instant,
    ) -> (Vec<SpilledObject>, Sealed, Result<(), Unreadable>) {
        let Some(mut pass) = self.pass.take() else {
            return (Vec::new(), Sealed::Age, Ok(()));
        };
        let why = pass.why;
        let Some(step) = step else {
            self.spills_from = now + BACKOFF;
            let (error, events) = (None, pass.left.into_events());
            return (Vec::new(), why, Err(Unreadable { error, events }));
        };
        for (chunk, events) in step.objects.iter().flat_map(|object| &object.events) {
            pass.left.remove(*chunk, events);
        }
        let result = match step.result {
            Ok(true) => {
                pass.merge = Some(step.merge);
                self.pass = Some(pass);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                self.spills_from = now + BACKOFF;
                Err(Unreadable {
                    error: Some(error),
                    events: pass.left.into_events(),
                })
            }
        };
        (step.objects, why, result)
    }
}
