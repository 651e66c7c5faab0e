//! The spool: an append-only, segmented, checksummed log in one directory.
//!
//! A chunk that is [`Appended::Kept`] is on disk and survives kill -9 and a power cut, until it is finished.
//! The same log holds [notes](Note) on what became of chunks, so that one stream of fsyncs serves both.
//!
//! # Format
//!
//! Segments are files `<number of the first frame, 20 digits>.seg`. A segment is a sequence of frames that
//! begin at multiples of 8 bytes:
//!
//! ```text
//!  0  magic      f5 'S' 'p' 0a
//!  4  checksum   CRC-32 of bytes 8 to 63
//!  8  kind       0 Begin, 1 chunk, 2 note
//! 12  tag        its length
//! 16  data       its length
//! 20  arrival    nanoseconds (chunks; else 0)
//! 24  number     of the frame, 64 bits
//! 32  arrival    seconds since 1970, signed, 64 bits (Begin: the number of the segment before, 0: none or not said)
//! 40  spool      the spool's own random number, 64 bits
//! 48  id         16 bytes: ids::chunk_id(tag, data)
//! 64  tag, data, zeros up to the next multiple of 8
//! ```
//!
//! All numbers are little-endian; where nothing is said they have 32 bits. The id is a chunk's identity and
//! the payload's checksum in one; what a run wrote itself it checks by a CRC-32 that it has in memory, which costs
//! a fraction of that. Notes and Begin frames have no tag. A note's data is msgpack (`note.rs`).
//! A Begin frame is a segment's first; its data is the format's version (32 bits), 1 where the file was another
//! segment's before, else 0 (32 bits), a number greater than every batch's before it (64 bits), and the
//! *window*: the ids of the chunks accepted last.
//!
//! Frames are numbered one up across segments, and a number that was acknowledged is never used again.
//! Numbers are missing only where frames are damaged, and behind segments that were away when the next one was begun.
//! A Begin frame's nanoseconds are the generation of the manifest that lists its segment first (31 bits; 0: an earlier
//! version), and 1 in the highest bit where the numbers before it are not all used.
//!
//! **Void frames.** When a write or an fsync fails, what was not synced in that segment is void: its numbers
//! are used again by the next segment. So a frame counts only if its number is smaller than the first one of
//! the next segment. Notes among the void frames that were answered already ([`Durability::Written`]) are
//! held in memory until an fsync, and the next segment begins with them.
//!
//! **Spares.** A file system that frees a segment's blocks, or discards them on the device, holds up everybody's
//! fsync meanwhile; and one that writes over blocks it has needs no journal for that. So a segment that is finished
//! becomes `<its number>.spare`, and a later one is written over what it holds. A frame of the former
//! has a number below the segment's own, and so is none of its frames. Behind the last frame stand 8 zero bytes
//! where the file goes on. Only what this run began, and wrote without a failure, is written again:
//! what failed may have left frames with numbers yet to come. All spares together have at most a quarter of the
//! limit, give way to chunks and where a write fails (the disk may be full), and are removed at close and at open.
//!
//! **The reserve** is a file of zeros beside the segments, `reserve`: some room that the disk has for notes when it is
//! full otherwise. Nothing is sent before a note about it is written, so without it a disk that fills up while the
//! destination is away would stay full for ever. When notes alone find no room, the reserve is removed; no chunk is
//! taken until it can be made again.
//!
//! **The manifest** says which segments should be there, whatever is: those that were begun and are not finished, how many
//! chunks of each were not finished when it was written, and a number greater than all that frames were ever given. It is
//! in two files, `manifest.0` and `manifest.1`, which are written in turn, so that a torn one leaves the other; each has a
//! generation, the spool's number and a checksum. It is synced when a segment begins, which is there for certain by then,
//! and before anything in it is answered: the segments of a run are listed, but for the last one perhaps, whose Begin frame
//! tells. So it is before a finished segment is removed, and at close. In between it is brought up to date about once a second
//! without an fsync, for the figures' sake.
//!
//! - A run that does not find the newest segment listed begins another one behind all numbers that it may have used.
//!   Were they used again, the frames would be void when the file comes back. Such a segment's last frame is not followed
//!   by the next one's first.
//! - What is listed and not there is said at every start until it is there again, or somebody removes both files. What is
//!   there and not listed was finished and removed before: its file goes to `quarantine/`, as `<number>.<n>.seg`, unless
//!   it is older than all others and notes say that all in it is finished. So does one that was begun and not listed when
//!   the machine stopped, and was away when the next manifest was written. Neither voids a frame of those that are listed.
//!   But of segments from before the first manifest nothing is known.
//! - Whole chunks among void frames that are nowhere else are copied into `quarantine/`: that they were refused is not known.
//! - One that is torn, another spool's or older than a segment of an earlier version counts for nothing. Earlier
//!   versions do not know it.
//!
//! **Suspects.** The file `suspects` says which chunk is being worked on, so that one at which the process ends twice is set
//! aside (`suspects.rs`): its frame goes to `quarantine/chunk-<its number>.bin`.
//!
//! **The spool's number in each header** tells a frame from what a recycled disk block held before, and from
//! what somebody writes into a log to look like a frame.
//!
//! # The medium
//!
//! It may tear and lose what was not synced, in any order of pages, lengths and directory entries. A write
//! that was synced stays. An fsync that failed says nothing: the file is never relied on again beyond what
//! was synced before, since the kernel may call pages clean that it could not write. One gap is left: where
//! an fsync fails, cutting the file back fails too, and then the process (not the machine) dies, the next
//! process finds frames in the page cache, and has only a new fsync's word that they are on the disk.
//!
//! # Names
//!
//! A restart finds what has its name in the directory that the path leads to, and nothing else. People and cleaners
//! move, remove and restore files while a spool is at work:
//!
//! - Everything is reached through the directory as it was opened, so it may be moved or mounted over. The file that is
//!   written to stays open, and 16 of the others, the last ones used: they are read whatever becomes of their names.
//! - A chunk is answered only if, after its fsync, the segment's name leads to the file that was written to, and the
//!   path to the directory; device and inode are compared. What becomes of chunks can be noted wherever the directory is,
//!   since they are in it as well.
//! - An open file whose name is gone, or another file's, is written again: into `<number>.copy`, which is synced and then
//!   renamed to the segment's name. Numbers and places stay what they were. What had the name goes to
//!   `quarantine/`, as `<number>.<n>.seg`. Until that is done nobody is answered. About once a second
//!   ([`Spool::look`]) all open files are looked at, so that what is idle is written again as well.
//! - A directory that was deleted is made anew, with what is open. It is not if another spool has its path.
//! - A closed segment that is not there, or shorter than it was, is waited for ([`Unreadable::Missing`]): nothing in it is
//!   finished. Each Begin frame names the segment before it, so that recovery says which ones are missing between others
//!   where the manifest does not.
//! - The lock is one on the directory itself, and one on the file `lock` for earlier versions and for file systems that lock
//!   no directories. Where the file was removed it is made again. Should an earlier version have been there in
//!   between, this one touches nothing any more: it has its own idea of what is finished.
//!
//! # What each fsync buys
//!
//! - *A group's* (the segment's file): its chunks may be answered, and become visible to readers.
//! - *A new segment's* (its file with the Begin frame and the group that asked for it, then the directory),
//!   before anything in it counts: that it voids what the one before it failed to write, and that a power
//!   cut does not take it away whole.
//! - *The manifest's, when a segment began:* its chunks may be answered; no later run gives their numbers to others, and every
//!   later run misses it.
//! - *Before a segment is removed* (the active segment's): the notes that finished its chunks. Otherwise
//!   chunks of the next one might come back without what was settled of them. Then the manifest's, unless one before did
//!   for several: a start would miss it otherwise.
//! - *After a segment is removed* (the directory), before the next one is, and at the end: an unlink that
//!   was not durable may come back, but then all newer segments with the notes about it are still there.
//! - *Before a spare is written to* (the directory): a segment that came back would otherwise hold what is
//!   not its own.
//! - *Before a spare has a segment's name* (its file with the Begin frame), and after it (the directory); so for a copy
//!   that takes the place of a file that was taken away.
//! - *At open* (the last segment, the directory): what the last process wrote and did not live to sync is
//!   relied on from there on.
//!
//! # Who does what
//!
//! `frame.rs`, `note.rs` and `manifest.rs` are the format. `scan.rs` reads it, for recovery and for the tool alike;
//! `recovery.rs` makes what was found fit to go on with. `writer.rs` is the one thread that writes, in
//! groups: it takes all that waits, writes it in one go, syncs once, answers all, and looks after the names.
//! `handles.rs` keeps files open for readers, which are not in its way. `suspects.rs` remembers at which chunk a process
//! ended. `disk.rs` is the directory.
//!
//! # Limits
//!
//! At most 32 files are open at a time, however many there are: segments are read one after the other, through one buffer,
//! and a removed file waits under another name, closed, until its blocks are freed. Finished segments are removed one by
//! one, between groups: who waits for an fsync never waits for thousands of removals.
//!
//! Chunks are refused when all files together, the spares left out, would grow over [`Options::limit`]. The reserve,
//! 1 MiB at most, and the two manifests, 16 bytes for each segment, come on top of that.
//! Notes and the Begin frames of the segments they need are written in any case, since they are what lets chunks be finished;
//! so are copies of damaged bytes in `quarantine/`, since they were acknowledged. Whoever has looked at
//! those may delete them; they are counted again at the next open. A file that is missing counts for nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::{Bound, Range};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::ids::Time;
use crate::ids::{ChunkId, chunk_id};

pub mod disk;
mod frame;
pub mod handles;
mod manifest;
mod note;
mod recovery;
pub mod scan;
mod suspects;
mod writer;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use disk::{Disk, File, remedied, says_remedy};
use frame::{Head, Kind, aside_name, crc, segment_name};
use handles::Handles;
use manifest::Entry;
use recovery::{Quarantine, describe};
use scan::{Damage, Flaw, Place};
use suspects::Suspects;
use writer::{Job, Slot, Waiting, Writer};

pub use suspects::{Suspect, Work};

/// A frame's number in the log.
pub type Seq = u64;
/// Bytes of a tag that are put into a line of the log.
const TOLD_TAG: usize = 200;

/// Some events of a chunk, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Events {
    /// All of them.
    All,
    /// These: sorted, not touching, not empty.
    Runs(Vec<Range<u32>>),
}

/// Some events of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The chunk.
    pub chunk: Seq,
    /// Its events.
    pub events: Events,
}

/// What became of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A batch (an object, a request) is about to be sent for the first time. Written before its first byte.
    Begun {
        /// Its number.
        batch: u64,
        /// The object's name, or the stream's.
        name: String,
        /// What it is recognised by at the destination.
        token: String,
        /// Lines in it.
        lines: u64,
        /// What it is made of.
        contents: Vec<Content>,
    },
    /// The batch has its final answer.
    Ended {
        /// Its number.
        batch: u64,
        /// What needs nothing more; the rest goes into another batch. `None`: all of it.
        delivered: Option<Vec<Content>>,
    },
    /// These events need nothing more (dead letters, skipped).
    Done {
        /// The events.
        contents: Vec<Content>,
    },
}

/// When a note is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After write(2): survives the end of the process.
    Written,
    /// After fsync: survives a power cut.
    Synced,
}

/// How a spool is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes that all files together may have before chunks are refused.
    pub limit: u64,
    /// Bytes of a segment; `None`: a 16th of the limit, between 1 MiB and 32 MiB. A frame that is larger
    /// gets a segment of its own.
    pub segment_bytes: Option<u64>,
}

/// A chunk to be kept.
#[derive(Clone, Debug)]
pub struct Chunk<'a> {
    /// `ids::chunk_id(tag, data)`. With another id the chunk would be found corrupt when it is read.
    pub id: ChunkId,
    /// Its tag.
    pub tag: &'a [u8],
    /// Its msgpack. No clone of it is held when the answer is given.
    pub data: Bytes,
    /// When it came.
    pub arrived: Time,
}

/// A chunk that the host may forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is on disk.
    Kept,
    /// It was on disk already, from before the restart: nothing was written.
    Replayed,
}

/// Why a chunk was not kept. It will not be seen in this run. Should the process or the machine die before
/// the disk works again, then the next run may find it nevertheless, and recognises it when it comes again.
#[derive(Debug)]
pub enum Refusal {
    /// It does not fit.
    Full {
        /// Bytes of all files.
        bytes: u64,
        /// What they may be.
        limit: u64,
    },
    /// Its deadline passed while it waited.
    TooLate,
    /// The disk failed.
    Disk(io::Error),
    /// The spool is closed.
    Closed,
}

const CLOSED: &str = "the spool is closed";

/// What was found at open.
#[derive(Debug)]
pub struct Recovered {
    /// Chunks that are not finished.
    pub unfinished: u64,
    /// Batches begun and not ended, by their numbers. Those of finished chunks only are left out.
    pub pending: Vec<Pending>,
    /// Settled events of unfinished chunks, without what is in `pending`.
    pub settled: HashMap<Seq, Vec<Range<u32>>>,
    /// Greater than every batch number ever seen in the log.
    pub next_batch: u64,
    /// Chunks at which an earlier process ended, and which are not finished.
    pub suspects: Vec<Suspect>,
    /// What a person should read in the log: truncated, quarantined, with file, offset, bytes.
    pub findings: Vec<String>,
}

/// A batch that was begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub batch: u64,
    /// The object's name, or the stream's.
    pub name: String,
    /// What it is recognised by at the destination.
    pub token: String,
    /// Lines in it.
    pub lines: u64,
    /// What it is made of.
    pub contents: Vec<Content>,
}

/// A chunk as it was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its tag.
    pub tag: Vec<u8>,
    /// Its msgpack.
    pub data: Bytes,
    /// When it came.
    pub arrived: Time,
}

/// Why a chunk cannot be read.
#[derive(Debug)]
pub enum Unreadable {
    /// It needs nothing any more, or never was in the log.
    Finished,
    /// Its bytes are not what was written, and never will be; or it ended the process twice. It is finished.
    Corrupt {
        /// For the log: what, where, kept where.
        words: String,
        /// Its bytes lie in the quarantine.
        kept: bool,
    },
    /// The file of this segment is not there, or not whole. It may come back: [`Spool::is_missing`].
    Missing(Seq),
    /// The disk failed; may be tried again.
    Disk(io::Error),
}

/// What a person should know of a spool at work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What happened since this was asked for last, each with what counts as the same ([`crate::log::Log::trouble`]).
    pub notices: Vec<(&'static str, String)>,
    /// What is the matter as long as it lasts: a restart would not find all that was accepted.
    pub trouble: Option<String>,
    /// Files that are not there or not whole, and how many unfinished chunks are in each.
    pub missing: Vec<(String, u64)>,
}

/// How full the spool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all files, without those that only wait to be written again.
    pub bytes: u64,
    /// Those among them in `quarantine/`, which wait for a person.
    pub quarantined: u64,
    /// What they may be.
    pub limit: u64,
    /// Chunks that are not finished.
    pub unfinished: u64,
    /// Those of them whose file is not there, or not whole.
    pub missing: u64,
    /// Chunks beside them that are in files which were not there at the start, as far as it is known.
    pub absent: u64,
    /// When the oldest of them came.
    pub oldest: Option<Time>,
}

impl Usage {
    /// Bytes of the log itself, which delivery makes fewer.
    pub fn log_bytes(&self) -> u64 {
        self.bytes - self.quarantined
    }
}

/// Chunks that are remembered across restarts, so that they are recognised when a killed host hands them
/// over again. In the window they cost 16 bytes each, in every segment.
const REMEMBERED: u64 = 16_384;
/// The part of the limit that files may take which wait to be written again.
const SPARE_SHARE: u64 = 4;
/// The part of a segment that its window may take.
const WINDOW_SHARE: u64 = 16;

/// What a spool holds to.
#[derive(Clone, Copy, Debug)]
struct Limits {
    limit: u64,
    segment_bytes: u64,
    /// Ids in the window.
    window: usize,
}

impl Limits {
    fn new(options: Options) -> Limits {
        const MIB: u64 = 1 << 20;
        let of_limit = || (options.limit / 16).clamp(MIB, 32 * MIB);
        let segment_bytes = options.segment_bytes.unwrap_or_else(of_limit);
        let ids = segment_bytes / WINDOW_SHARE / size_of::<ChunkId>() as u64;
        Limits {
            limit: options.limit,
            segment_bytes,
            window: ids.min(REMEMBERED) as usize,
        }
    }

    /// Bytes of the reserve: enough for thousands of notes, and a Begin frame with the window before them.
    fn reserve_bytes(&self) -> usize {
        self.segment_bytes.min(1 << 20) as usize
    }
}

/// A segment, as far as it is known from memory.
#[derive(Clone, Copy, Debug)]
struct Holding {
    bytes: u64,
    /// Chunks.
    unfinished: u64,
    /// Its Begin frame can be read.
    begun: bool,
    /// It holds its Begin frame and nothing else.
    bare: bool,
    /// This run began it, and no write to it has failed: nothing in its file has a number that is not used up.
    reusable: bool,
}

/// The segment that is written to.
struct Active {
    file: Arc<dyn File>,
    first: Seq,
    /// Bytes of what was answered for. What stands behind them is being written, or is void.
    len: u64,
    /// Bytes that its file has.
    capacity: u64,
    /// It holds its Begin frame and nothing else.
    bare: bool,
}

/// What the thread and the callers share.
#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Of all files but the spares.
    bytes: u64,
    /// Those among them in `quarantine/`.
    quarantined: u64,
    /// Those among them that the newest segment's file has behind its last frame, to be written over.
    room: u64,
    /// Of files that wait to be written again.
    spares: u64,
    /// Of frames that wait in the queue.
    reserved: u64,
    /// Unfinished and visible.
    chunks: BTreeMap<Seq, Place>,
    segments: BTreeMap<Seq, Holding>,
    /// How many chunks of an id an earlier run kept, that were not handed over again in this run.
    replayable: HashMap<ChunkId, u32>,
    /// The ids of the chunks kept last, oldest first.
    window: VecDeque<ChunkId>,
    next_batch: u64,
    /// A chunk was refused for want of room since the last one was kept.
    needs_space: bool,
    /// The thread was asked to tidy, and has not begun yet.
    tidying: bool,
    /// The thread was asked to look, and has not begun yet.
    looking: bool,
    /// Segments whose file is not there or not whole, and the bytes that it had: they count for nothing meanwhile.
    missing: BTreeMap<Seq, u64>,
    /// Segments that were not there at the start, and should have been.
    absent: BTreeMap<Seq, Entry>,
    /// Another process has the directory's lock, or had it and changed something: nothing is read or written.
    ousted: bool,
    notices: Vec<(&'static str, String)>,
    trouble: Option<String>,
}

impl State {
    fn keep(&mut self, chunk: Seq, place: Place, window: usize) {
        self.needs_space = false;
        self.window.push_back(place.id);
        while self.window.len() > window {
            self.window.pop_front();
        }
        if let Some(holding) = self.segments.get_mut(&place.segment) {
            holding.unfinished += 1;
        }
        self.chunks.insert(chunk, place);
    }

    fn finish(&mut self, chunk: Seq) {
        let Some(place) = self.chunks.remove(&chunk) else {
            return;
        };
        if let Some(holding) = self.segments.get_mut(&place.segment) {
            holding.unfinished -= 1;
        }
    }

    /// Whether a chunk with this id was kept by an earlier run, and is handed over again only now.
    fn take_replayable(&mut self, id: &ChunkId) -> bool {
        match self.replayable.get_mut(id) {
            None => false,
            Some(1) => self.replayable.remove(id).is_some(),
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// A chunk is lost: should it be handed over again, then it is welcome.
    fn forget_id(&mut self, id: &ChunkId) {
        self.take_replayable(id);
        if let Some(at) = self.window.iter().position(|known| known == id) {
            self.window.remove(at);
        }
    }

    /// Files in `quarantine/` take so many bytes more.
    fn add_quarantined(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.quarantined += bytes;
    }

    /// Files in `quarantine/` take so many bytes.
    fn set_quarantined(&mut self, bytes: u64) {
        self.bytes = self.bytes - self.quarantined + bytes;
        self.quarantined = bytes;
    }

    /// Bytes that are in use.
    fn used(&self) -> u64 {
        self.bytes - self.room
    }

    /// A segment's file has this length now.
    fn resize(&mut self, segment: Seq, bytes: u64) {
        if let Some(holding) = self.segments.get_mut(&segment) {
            self.bytes = self.bytes - holding.bytes + bytes;
            holding.bytes = bytes;
        }
    }

    /// Nothing stays as it was in a segment.
    fn touch(&mut self, segment: Seq) {
        if let Some(holding) = self.segments.get_mut(&segment) {
            holding.bare = false;
        }
    }

    /// A write to a segment failed.
    fn mistrust(&mut self, segment: Seq) {
        if let Some(holding) = self.segments.get_mut(&segment) {
            holding.reusable = false;
        }
    }

    /// A segment's file is not there, or not whole.
    fn miss(&mut self, segment: Seq) {
        // One without unfinished chunks is just being removed.
        if let Some(holding) = self.segments.get(&segment)
            && holding.unfinished > 0
            && !self.missing.contains_key(&segment)
        {
            self.missing.insert(segment, holding.bytes);
            self.resize(segment, 0);
        }
    }

    /// A segment's file is there again.
    fn regain(&mut self, segment: Seq) {
        if let Some(bytes) = self.missing.remove(&segment) {
            self.resize(segment, bytes);
        }
    }

    /// Segments that are missing, and how many chunks are waited for in each.
    fn waited_for(&self) -> impl Iterator<Item = (Seq, u64)> {
        let missing = self.missing.keys();
        let unfinished = |segment: &Seq| Some((*segment, self.segments.get(segment)?.unfinished));
        missing
            .filter_map(unfinished)
            .filter(|(_, unfinished)| *unfinished > 0)
    }

    /// A segment is gone. Gives the bytes of its file.
    fn forget(&mut self, segment: Seq) -> u64 {
        self.missing.remove(&segment);
        let bytes = self.segments.remove(&segment).map(|holding| holding.bytes);
        self.bytes -= bytes.unwrap_or(0);
        bytes.unwrap_or(0)
    }

    /// The oldest segment, if nothing in it is needed and it is not the newest.
    fn removable(&self) -> Option<Seq> {
        let (first, holding) = self.segments.first_key_value()?;
        (self.segments.len() > 1 && holding.unfinished == 0).then_some(*first)
    }

    /// What a manifest lists. `active` is written to. Without those that are finished and older than all others, unless
    /// what finished them is not `noted` for certain.
    fn listed(&self, active: Option<Seq>, noted: bool) -> BTreeMap<Seq, Entry> {
        let newest = self.segments.last_key_value().map(|(first, _)| *first);
        let there = self.segments.iter().skip_while(|(first, holding)| {
            noted && holding.unfinished == 0 && Some(**first) != newest
        });
        let there = there.map(|(first, holding)| {
            let entry = Entry {
                unfinished: holding.unfinished,
                open: active == Some(*first),
            };
            (*first, entry)
        });
        there
            .chain(self.absent.iter().map(|(first, entry)| (*first, *entry)))
            .collect()
    }

    /// Whether the newest segment has the window, and all that a Begin frame says.
    fn is_begun(&self) -> bool {
        let newest = self.segments.last_key_value();
        newest.is_some_and(|(_, holding)| holding.begun)
    }

    /// Whether nothing but finished chunks in the newest segment is in the way of one that did not fit.
    fn wants_room(&self) -> bool {
        self.needs_space && self.segments.len() == 1 && self.can_be_shorter()
    }

    /// Whether all chunks are finished, and more is left of them than one small file.
    fn can_be_shorter(&self) -> bool {
        let bare = |holding: &Holding| holding.bare;
        self.chunks.is_empty() && (self.segments.len() > 1 || !self.segments.values().all(bare))
    }
}

struct Shared {
    disk: Arc<dyn Disk>,
    handles: Handles,
    suspects: Suspects,
    limits: Limits,
    spool: u64,
    state: Mutex<State>,
    more: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with this lock")
    }
}

/// A spool that is at work. It holds the directory's lock for as long as it lives.
pub struct Spool {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut spool = f.debug_struct("Spool");
        spool.field("id", &self.id()).field("usage", &self.usage());
        spool.finish_non_exhaustive()
    }
}

impl Spool {
    /// Recovers what is in the directory and starts the thread `ferry`, which writes. Fails only where the
    /// disk or the system does, never for what the files contain.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> io::Result<(Arc<Spool>, Recovered)> {
        let limits = Limits::new(options);
        let mut resumed = recovery::recover(&*disk, &limits)?;
        let handles = Handles::new(Arc::clone(&disk));
        let number = || StdRng::from_os_rng().random();
        let spool = resumed.spool.unwrap_or_else(number);
        let chunks = &resumed.state.chunks;
        let holds = |it: &Suspect| chunks.get(&it.chunk).is_some_and(|place| place.id == it.id);
        let (suspects, words) = Suspects::resume(&disk, spool, resumed.suspects, holds);
        resumed.recovered.findings.extend(words);
        resumed.recovered.suspects = suspects.all();
        if let Some(active) = &resumed.active {
            handles.write_to(active.first, &active.file);
        }
        let shared = Arc::new(Shared {
            disk,
            handles,
            suspects,
            limits,
            spool,
            state: Mutex::new(resumed.state),
            more: Notify::new(),
        });
        let (jobs, queue) = channel();
        let mut writer = Writer::new(
            Arc::clone(&shared),
            queue,
            resumed.active,
            resumed.next,
            resumed.keeper,
            resumed.apart,
        );
        writer.tidy();
        // Where it cannot be written, it is before anything is answered.
        let _ = writer.list_newest();
        let thread = thread::Builder::new()
            .name("ferry".into())
            .spawn(move || writer.run())?;
        let spool = Arc::new(Spool {
            shared,
            jobs,
            thread: Mutex::new(Some(thread)),
        });
        Ok((spool, resumed.recovered))
    }

    /// The spool's own random number. The same in every run, once anything was written.
    pub fn id(&self) -> u64 {
        self.shared.spool
    }

    /// Keeps a chunk. The answer comes when it is on disk, or at the deadline if it still waits for its
    /// turn then; when its turn has come, the disk decides how long it takes.
    ///
    /// When the future is dropped, the chunk is kept or not.
    pub async fn append(&self, chunk: Chunk<'_>, deadline: Instant) -> Result<Appended, Refusal> {
        debug_assert_eq!(chunk.id, chunk_id(chunk.tag, &chunk.data));
        let too_long = || {
            let words = "a chunk and its tag have at most 4 GiB each";
            Refusal::Disk(io::Error::new(ErrorKind::InvalidInput, words))
        };
        let head = Head {
            kind: Kind::Chunk,
            number: 0,
            spool: 0,
            tag_len: u32::try_from(chunk.tag.len()).map_err(|_| too_long())?,
            data_len: u32::try_from(chunk.data.len()).map_err(|_| too_long())?,
            arrived: chunk.arrived,
            id: chunk.id,
        };
        let length = head.length();
        if let Some(answer) = self.answer_at_once(&chunk.id, length, deadline) {
            return answer;
        }
        let mut waits = Waits {
            shared: &self.shared,
            length,
            slot: Arc::new(Slot::new(Waiting {
                head,
                crc: crc(&[chunk.tag, &chunk.data]),
                tag: chunk.tag.into(),
                data: chunk.data,
            })),
        };
        let (answer, mut answered) = oneshot::channel();
        let job = Job::Chunk {
            slot: Arc::clone(&waits.slot),
            length,
            answer,
        };
        if self.jobs.send(job).is_err() {
            return Err(Refusal::Closed);
        }
        let answer = match timeout_at(deadline, &mut answered).await {
            Ok(answer) => answer,
            Err(_) if waits.cancel() => return Err(Refusal::TooLate),
            Err(_) => answered.await,
        };
        answer.unwrap_or(Err(Refusal::Closed))
    }

    /// The answer to a chunk that need not wait. `None`: its frame's bytes are reserved.
    fn answer_at_once(
        &self,
        id: &ChunkId,
        length: u64,
        deadline: Instant,
    ) -> Option<Result<Appended, Refusal>> {
        let limit = self.shared.limits.limit;
        let mut state = self.shared.state();
        if state.closed {
            return Some(Err(Refusal::Closed));
        }
        if state.take_replayable(id) {
            return Some(Ok(Appended::Replayed));
        }
        if deadline <= Instant::now() {
            return Some(Err(Refusal::TooLate));
        }
        if state.used() + state.reserved + length > limit {
            state.needs_space |= length <= limit;
            let bytes = state.bytes;
            self.ask_to_tidy(state);
            return Some(Err(Refusal::Full { bytes, limit }));
        }
        state.reserved += length;
        None
    }

    /// Writes a note, whatever the limit. When the future is dropped after it was polled once, the note is
    /// still written or failed as a whole.
    pub async fn note(&self, note: Note, durability: Durability) -> io::Result<()> {
        let (answer, answered) = oneshot::channel();
        self.queue_note(&note, durability, answer)?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    fn queue_note(
        &self,
        note: &Note,
        durability: Durability,
        answer: oneshot::Sender<io::Result<()>>,
    ) -> io::Result<()> {
        let payload = note::encode(note);
        if u32::try_from(payload.len()).is_err() {
            let words = "a note has at most 4 GiB";
            return Err(io::Error::new(ErrorKind::InvalidInput, words));
        }
        if self.shared.state().closed {
            return Err(closed());
        }
        let next_batch = match note {
            Note::Begun { batch, .. } | Note::Ended { batch, .. } => batch.saturating_add(1),
            Note::Done { .. } => 0,
        };
        let job = Job::Note {
            payload: payload.into(),
            durability,
            next_batch,
            answer,
        };
        self.jobs.send(job).map_err(|_| closed())
    }

    /// The chunk needs nothing any more. That is forgotten at the end of the process, if no note says so.
    pub fn finish(&self, chunk: Seq) {
        let mut state = self.shared.state();
        state.finish(chunk);
        if state.removable().is_some() || state.wants_room() {
            self.ask_to_tidy(state);
        }
    }

    fn ask_to_tidy(&self, mut state: MutexGuard<'_, State>) {
        if !state.tidying {
            state.tidying = true;
            drop(state);
            // Fails where the spool is closed and there is nobody to tidy.
            let _ = self.jobs.send(Job::Tidy);
        }
    }

    /// Whether the log has this chunk, and it is not finished.
    pub fn holds(&self, chunk: Seq) -> bool {
        self.shared.state().chunks.contains_key(&chunk)
    }

    /// One chunk, checked. Blocks on the disk.
    pub fn read(&self, chunk: Seq) -> Result<Stored, Unreadable> {
        let place = {
            let state = self.shared.state();
            if state.ousted {
                return Err(Unreadable::Disk(ousted()));
            }
            state.chunks.get(&chunk).copied()
        };
        let place = place.ok_or(Unreadable::Finished)?;
        let read = match self.shared.suspects.condemns(chunk) {
            true => Err(self.set_aside(chunk, place)),
            false => self.fetch(chunk, place),
        };
        read.map_err(|unreadable| match unreadable {
            corrupt @ Unreadable::Corrupt { .. } => corrupt,
            // What is finished meanwhile may be gone, emptied or written over.
            _ if !self.holds(chunk) => Unreadable::Finished,
            other => other,
        })
    }

    /// The next unfinished chunk behind `after` (the oldest: `None`), and the bytes of its data, without reading
    /// it. `None`: there is none yet.
    pub fn peek(&self, after: Option<Seq>) -> Option<(Seq, usize)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.shared.state();
        let (chunk, place) = state.chunks.range((from, Bound::Unbounded)).next()?;
        Some((*chunk, place.data_len as usize))
    }

    fn fetch(&self, chunk: Seq, place: Place) -> Result<Stored, Unreadable> {
        let file = self.file_of(place)?;
        match place.read(&*file).map_err(Unreadable::Disk)? {
            Ok(stored) => Ok(stored),
            Err(Flaw::Short) => Err(self.miss(place)),
            Err(Flaw::Damaged) => Err(self.condemn(chunk, place, &*file)),
        }
    }

    fn file_of(&self, place: Place) -> Result<Arc<dyn File>, Unreadable> {
        match self.shared.handles.get(place.segment) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.shared.state().miss(place.segment);
                Err(Unreadable::Missing(place.segment))
            }
            file => file.map_err(Unreadable::Disk),
        }
    }

    /// A chunk's file is shorter than it was when it was written or recovered. Perhaps somebody is copying it back just now.
    fn miss(&self, place: Place) -> Unreadable {
        if self.shared.handles.forget(place.segment) {
            self.shared.state().miss(place.segment);
        }
        Unreadable::Missing(place.segment)
    }

    /// Work on a chunk's bytes begins, and all other work on chunks is over. Should the process end before the next call of
    /// this or of [`Spool::end_work`], the next run knows at which chunk. `alone`: this is done for [`Recovered::suspects`],
    /// and nothing else meanwhile. One write of 512 bytes into the page cache, which may block.
    pub fn begin_work(&self, chunk: Seq, work: Work, alone: bool) {
        let id = {
            let state = self.shared.state();
            let place = state.chunks.get(&chunk).filter(|_| !state.ousted);
            place.map(|place| place.id)
        };
        if let Some(id) = id {
            self.warn(self.shared.suspects.begin(chunk, id, work, alone));
        }
    }

    /// No chunk is being worked on. Costs what [`Spool::begin_work`] does, or nothing where none was.
    pub fn end_work(&self) {
        if !self.shared.state().ousted {
            self.warn(self.shared.suspects.end());
        }
    }

    /// This work was done on the whole chunk, and the process lives: a suspect is none any more.
    pub fn acquit(&self, chunk: Seq, work: Work) {
        if !self.shared.state().ousted {
            self.warn(self.shared.suspects.acquit(chunk, work));
        }
    }

    fn warn(&self, words: Option<String>) {
        let notices = words.map(|words| ("spool_suspects", words));
        if notices.is_some() {
            self.shared.state().notices.extend(notices);
        }
    }

    /// Finishes a chunk that ended the process twice, once its frame is kept apart. What cannot be kept stays.
    fn set_aside(&self, chunk: Seq, place: Place) -> Unreadable {
        let file = match self.file_of(place) {
            Ok(file) => file,
            Err(unreadable) => return unreadable,
        };
        let mut tag = Vec::new();
        let told = TOLD_TAG.min(place.tag_len as usize);
        if let Err(error) = file.read_at(&mut tag, told, place.offset) {
            return Unreadable::Disk(error);
        }
        let disk = &*self.shared.disk;
        let (name, bytes) = (aside_name(chunk), place.frame_bytes());
        let mut quarantine = Quarantine::new(disk);
        let copied = quarantine.copy(&name, &*file, place.frame(), bytes);
        let kept = copied.and_then(|()| disk.sync_dir());
        self.shared.state().add_quarantined(quarantine.bytes);
        match kept {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return self.miss(place),
            Err(error) => return Unreadable::Disk(error),
        }
        let contents = vec![Content {
            chunk,
            events: Events::All,
        }];
        // Nobody waits: were the note lost, the next run would set the chunk aside again.
        let (answer, _) = oneshot::channel();
        if let Err(error) = self.queue_note(&Note::Done { contents }, Durability::Synced, answer) {
            return Unreadable::Disk(error);
        }
        self.finish(chunk);
        let tag = String::from_utf8_lossy(&tag).escape_debug().to_string();
        let segment = segment_name(chunk);
        Unreadable::Corrupt {
            words: format!(
                "chunk {chunk} (tag '{tag}', {} bytes) is set aside and not delivered, but for what was delivered of it \
                 before: the process ended twice while this chunk was read and encoded, for want of memory or by a fault. \
                 It is kept in the spool's {name} ({bytes} bytes). Copied as {segment} into an empty folder of its own it \
                 is a spool: 'ferry spool export' shows its records, and an output with that folder as spool_dir sends \
                 them; give it more memory",
                place.data_len
            ),
            kept: true,
        }
    }

    /// Finishes a chunk whose bytes are not what was written, for good, and keeps apart what there is of it.
    fn condemn(&self, chunk: Seq, place: Place, file: &dyn File) -> Unreadable {
        if !self.holds(chunk) {
            return Unreadable::Finished;
        }
        let damage = Damage {
            offset: place.frame(),
            bytes: place.frame_bytes(),
            missing: chunk..chunk + 1,
        };
        let mut quarantine = Quarantine::new(&*self.shared.disk);
        let kept = quarantine.keep(place.segment, &damage, file);
        let words = describe(place.segment, &damage, kept.as_ref().map(|_| ()));
        let mut state = self.shared.state();
        state.add_quarantined(quarantine.bytes);
        match kept {
            // It is kept when descriptors are free again, or the folder is back.
            Err(error) if says_remedy(&error) || error.kind() == ErrorKind::NotFound => {
                return Unreadable::Disk(error);
            }
            _ => state.forget_id(&place.id),
        }
        drop(state);
        self.finish(chunk);
        Unreadable::Corrupt {
            words: format!("chunk {chunk} is lost: {words}"),
            kept: kept.is_ok(),
        }
    }

    /// Writes a file of this name into `quarantine/`, or one of a similar name where there is one, and syncs it. It
    /// counts towards the limit. Gives its name. Blocks on the disk.
    pub fn quarantine(
        &self,
        name: &str,
        content: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<String> {
        let disk = &*self.shared.disk;
        let mut quarantine = Quarantine::new(disk);
        let written = quarantine.write(name, content);
        self.shared.state().add_quarantined(quarantine.bytes);
        let name = written?;
        disk.sync_dir()?;
        Ok(name)
    }

    /// Whether the file of a segment was found to be missing, and is not back yet.
    pub fn is_missing(&self, segment: Seq) -> bool {
        self.shared.state().missing.contains_key(&segment)
    }

    /// Asks for a look at whether a restart would find what was accepted, and says what was found so far. To be called
    /// about once a second. Waits for nothing.
    pub fn look(&self) -> Health {
        let mut state = self.shared.state();
        let waited_for = state.waited_for();
        let health = Health {
            missing: waited_for
                .map(|(segment, chunks)| (segment_name(segment), chunks))
                .collect(),
            trouble: state.trouble.clone(),
            notices: std::mem::take(&mut state.notices),
        };
        if !state.looking {
            state.looking = true;
            drop(state);
            // Fails where the spool is closed, and there is nobody to look.
            let _ = self.jobs.send(Job::Look);
        }
        health
    }

    /// Waits for a chunk that becomes visible after this call; nothing is missed between the call and the
    /// first poll.
    pub fn more(&self) -> impl Future<Output = ()> + Send + '_ {
        self.shared.more.notified()
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let state = self.shared.state();
        Usage {
            bytes: state.bytes,
            quarantined: state.quarantined,
            limit: self.shared.limits.limit,
            unfinished: state.chunks.len() as u64,
            missing: state.waited_for().map(|(_, chunks)| chunks).sum(),
            absent: state.absent.values().map(|entry| entry.unfinished).sum(),
            oldest: state.chunks.values().next().map(|place| place.arrived),
        }
    }

    /// Writes what waits, syncs, leaves one small file where every chunk is finished, and ends the thread.
    /// Later calls are refused [`Refusal::Closed`]; reading goes on. Blocks on the disk. Once is enough.
    pub fn close(&self) {
        self.shared.state().closed = true;
        if !self.shared.state().ousted {
            self.shared.suspects.close();
        }
        self.stop(true);
    }

    /// Waits until the thread has done all it was asked to.
    #[cfg(test)]
    fn rest(&self) {
        let (done, rested) = channel();
        let _ = self.jobs.send(Job::Rest(done));
        let _ = rested.recv();
    }

    fn stop(&self, shorten: bool) {
        let thread = self
            .thread
            .lock()
            .expect("nothing panics with this lock")
            .take();
        if let Some(thread) = thread {
            let _ = self.jobs.send(Job::Stop { shorten });
            // A thread that panicked has answered everybody by its end.
            let _ = thread.join();
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.stop(false);
    }
}

fn ousted() -> io::Error {
    let words = "another instance uses the spool's folder, though this one has it: its lock was removed. This one reads and \
                 writes nothing there any more; stop the other one, and restart this one to deliver what is left";
    remedied(ErrorKind::WouldBlock, words.to_owned())
}

fn closed() -> io::Error {
    io::Error::other(CLOSED)
}

/// A chunk in the queue. When its caller goes away, it is taken out again if it still waits.
struct Waits<'s> {
    shared: &'s Shared,
    length: u64,
    slot: Arc<Slot>,
}

impl Waits<'_> {
    /// Whether the chunk still waited. Its bytes are let go then.
    fn cancel(&mut self) -> bool {
        let waited = self.slot.take().is_some();
        if waited {
            self.shared.state().reserved -= self.length;
        }
        waited
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.cancel();
    }
}
