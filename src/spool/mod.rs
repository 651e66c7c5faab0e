//! The spool: an append-only, segmented, checksummed write-ahead log in one directory.
//!
//! Once [`Appended::Kept`] is returned for a chunk, it survives kill -9 and a power cut until it is finished. The same log
//! holds [notes](Note) on what became of chunks, so one stream of fsyncs serves both.
//!
//! # Format
//!
//! A segment is a file named `<number of its first frame, 20 digits>.seg`: a sequence of frames, each starting at a
//! multiple of 8 bytes.
//!
//! ```text
//!  0  magic      f5 'S' 'p' 0a
//!  4  checksum   CRC-32 of bytes 8 to 63
//!  8  kind       0 Begin, 1 chunk, 2 note, 3 relocated chunk
//! 12  tag        length
//! 16  data       length
//! 20  arrival    nanoseconds (note: 0; Begin: see below)
//! 24  number     of the frame, 64 bits
//! 32  arrival    seconds since 1970, signed, 64 bits (Begin: number of the previous segment, 0: none or unknown)
//! 40  spool      random id of the spool, 64 bits
//! 48  id         16 bytes: ids::chunk_id(tag, data)
//! 64  tag, data, zeros up to a multiple of 8
//! ```
//!
//! Numbers are little-endian and have 32 bits unless stated otherwise. The id is both a chunk's identity and its payload's
//! checksum; what a run wrote itself it verifies with a CRC-32 kept in memory, at a fraction of the cost. Notes and Begin
//! frames have no tag. A note's data is msgpack (`note.rs`). A Begin frame is the first of its segment. Its data is the
//! format version (32 bits), 1 if the file was reused from another segment, else 0 (32 bits), a number greater than every
//! earlier batch number (64 bits), and the *window*: the ids of the most recently accepted chunks.
//!
//! Frames are numbered consecutively across segments, and a number that was acknowledged is never reused. Gaps occur only
//! where frames are damaged, and after segments that were missing when the next one began. A Begin frame's nanoseconds hold
//! the generation of the first manifest that lists its segment (31 bits; 0: written by an earlier version); the top bit is
//! set if some numbers before it are unused.
//!
//! **Relocated chunks.** Segments are removed oldest first, so a few events that cannot be delivered for long would keep all
//! segments after theirs. Such events are written again at the log's head ([`Spool::relocate`]), as a frame that also settles
//! them where they were. A relocated chunk's data is the length of its *origins* (32 bits), the origins (msgpack, as in a
//! note: which events of which chunks), and the events. The frame is both the new chunk and a note, with one checksum, so the
//! events are in one place at any time:
//!
//! - If the frame is torn, void or damaged, it settles nothing, and the events are where they were. Recovery therefore reads
//!   relocated chunks in full, in all segments, and a chunk of which some byte is damaged has no origins.
//! - A relocated chunk's number is greater than those of its origins. So as long as a segment with an origin exists, the
//!   segment with the relocated chunk does too, even if that is delivered long since: no origin comes back. A segment that
//!   is removed takes the origins that its frames settled along, or they were removed before.
//! - Events are not relocated while they are in a pending batch, which would settle them where they no longer are.
//!
//! As with a note, what a relocated chunk settled is no longer known if its frame is damaged afterwards, if its file is
//! missing, or if it was removed while the file of an origin was missing that is put back later: where an origin exists, its
//! events are then delivered from there, although they may have been delivered before. A relocated chunk is not in the
//! window, since the host never hands it over.
//!
//! A segment with relocated chunks has format version 2, all others have version 1. An active segment of version 1 is closed
//! when something is relocated. A Ferry that reads only version 1 leaves segments of version 2 alone, with all that is in
//! them, and does not know what their notes and relocated chunks settled: it would deliver that once more from older
//! segments. Without the manifest, which the first version does not know, its new chunks also get numbers that count for
//! nothing once segments of version 2 count again. Before a downgrade a spool has to be drained until no segment of version 2
//! is left; one that is empty when it is closed has version 1.
//!
//! **Void frames.** When a write or an fsync fails, the unsynced frames of that segment become void: the next segment
//! reuses their numbers. A frame is therefore valid only if its number is below the first one of the next segment. Notes
//! among the void frames that were already acknowledged ([`Durability::Written`]) are held in memory until an fsync, and
//! the next segment starts with them. A relocated chunk is never among those: it is acknowledged after an fsync.
//!
//! **Spares.** When a file system frees a segment's blocks, or discards them on the device, every fsync stalls meanwhile;
//! overwriting allocated blocks needs no journal. A finished segment is therefore renamed to `<its number>.spare`, and a
//! later segment overwrites it. Frames left from the former segment have numbers below the new segment's own, so they do
//! not count. If the file continues after the last frame, 8 zero bytes follow that frame. Only segments that this run began
//! and wrote without a failure are reused: a failed write may have left frames with numbers that are still to come. Spares
//! take at most a quarter of the limit, give way to chunks and to failing writes (the disk may be full), and are removed at
//! close and at open.
//!
//! **The reserve**, the file `reserve`, holds zeros: space for notes on a disk that is otherwise full. Nothing is sent
//! before a note about it is written, so without the reserve a disk that fills up while the destination is unreachable
//! could never drain. When notes find no space, the reserve is removed; no chunk is accepted until it can be recreated.
//!
//! **The manifest** records which segments should exist: those begun and not finished, with the number of unfinished chunks
//! in each at the time of writing, and an upper bound for all frame numbers. It is written alternately to `manifest.0` and
//! `manifest.1`, so a torn write leaves the other copy; each has a generation, the spool's id and a checksum. It is synced
//! when a segment begins, after the segment is durable and before anything in it is acknowledged, so at most the newest
//! segment is unlisted, which its Begin frame shows. It is also synced before a finished segment is removed, and at close. In
//! between it is updated about once a second without an fsync, to keep the chunk counts current.
//!
//! - A run that does not find the newest listed segment begins another one after all numbers that it may have used. If they
//!   were reused, the frames would be void when the file comes back. Such a segment's last frame is not followed by the next
//!   one's first.
//! - A listed segment that is missing is reported at every start until it is back, or both manifest files are deleted. An
//!   existing segment that is not listed was finished and removed: it is moved to `quarantine/` as `<number>.<n>.seg`,
//!   unless it is older than all others and notes finish everything in it. The same goes for a segment that was begun, not
//!   yet listed when the machine stopped, and missing when the next manifest was written. Neither voids frames of listed
//!   segments. About segments older than the first manifest nothing is known.
//! - Whole chunks that exist only as void frames are copied to `quarantine/`, since they may have been accepted. A relocated
//!   chunk whose origins all exist is not: nothing but they can count.
//! - The manifest also holds a *checkpoint*: the delivery state when the newest segment began, which is what all notes before
//!   that amount to: the finished chunks as ranges, the settled events of others, the pending batches, and where relocated
//!   chunks are. It follows the entries, with a checksum of its own. Versions that do not know it ignore it, and write
//!   manifests without one. Above 1 MiB, and while notes are not known (a segment was missing when they were read, or they could
//!   not be read yet), none is made, and an older one stays: it is the state when the segment that it names began. On a disk that
//!   is too full for it, it is left out.
//! - A manifest is ignored if it is torn, belongs to another spool, or is older than a segment written by an earlier version
//!   of Ferry, which does not know manifests.
//!
//! **Suspects.** The file `suspects` records which chunk is being worked on, so that a chunk at which the process ends twice
//! is set aside (`suspects.rs`): its frame goes to `quarantine/chunk-<its number>.bin`.
//!
//! **The spool's id in each header** distinguishes a frame from the former contents of a recycled disk block, and from log
//! data crafted to look like a frame.
//!
//! # The medium
//!
//! Anything unsynced may be torn or lost: pages, lengths and directory entries, in any order. A synced write stays. A failed
//! fsync proves nothing: nothing in the file beyond the last successful sync is relied on again, since the kernel may mark
//! pages clean that it could not write. One gap remains: if an fsync fails, truncating the file fails too, and then the
//! process (not the machine) dies, the next process finds frames in the page cache, and must trust a new fsync that they
//! are on disk.
//!
//! # Names
//!
//! A restart finds only files that have their names in the directory at the configured path. People and cleanup jobs move,
//! remove and restore files while a spool is running:
//!
//! - Everything is reached through the open directory, so it may be moved or mounted over. The active segment's file stays
//!   open, and so do the 16 most recently used others: they remain readable whatever happens to their names.
//! - A chunk is acknowledged only if, after its fsync, the segment's name still refers to the file that was written, and the
//!   path to the directory; device and inode are compared. Notes can be written wherever the directory is, since the chunks
//!   that they are about are in it as well.
//! - An open file whose name is gone, or refers to another file, is copied to `<number>.copy`, which is synced and then
//!   renamed to the segment's name. Numbers and offsets do not change. The file found under the name goes to `quarantine/`
//!   as `<number>.<n>.seg`. Nothing is acknowledged before that is done. All open files are checked about once a second
//!   ([`Spool::look`]), so idle segments are restored as well.
//! - A deleted directory is recreated with the files that are open, unless another spool is at its path.
//! - A closed segment that is missing, or shorter than before, is waited for ([`Unreadable::Missing`]): nothing in it is
//!   finished. Each Begin frame names the segment before it, so recovery can report gaps that the manifest does not cover.
//! - The lock is on the directory itself, and on the file `lock` for earlier versions and for file systems that cannot lock
//!   directories. If the file is removed, it is recreated. If an earlier version used the directory in between, this run
//!   stops reading and writing: the other one has its own record of what is finished.
//!
//! # The start
//!
//! A spool may hold terabytes, and the host waits for the start. If the manifest covers all segments and the newest one is
//! whole, `open` reads no other: it has the window, the next numbers and the newest chunks, and the manifest has the names and
//! the counts of the others. Flushes are accepted from then on. A thread reads the rest ([`Spool::history`], [`Spool::peek`]):
//!
//! - *First the delivery state:* the checkpoint and the notes of the newest segment. What relocated chunks settled counts only if
//!   they are whole, so those in the checkpoint of which an origin may exist are read and verified. If one is damaged, or there
//!   is no checkpoint, the notes of all segments are read; with an older checkpoint, those since then. Nothing is delivered before.
//! - *Then segment after segment,* oldest first: damage is found and copied to `quarantine/`, and the unfinished chunks come into
//!   the *index*, in memory. It follows the reader: a segment is read when fewer than 50,000 chunks wait for the reader. What
//!   lies beyond this *frontier* is not visible, and has only a count for each segment. That goes for closed segments that
//!   this run wrote as well, if the reader is that far behind.
//!
//! A segment that is not indexed is not removed, and the manifest lists it as one that may hold more chunks than are known.
//! One that goes missing before its turn, or that this user may not open, delays no other: its chunks are visible when it is
//! back ([`Spool::take_late`]).
//! Chunks among void frames are searched for in all segments, since one that was accepted later is not doubted.
//!
//! Otherwise, with a manifest that is missing, damaged or older than a segment, a newest segment that is missing or damaged,
//! or segments that were put back, everything is read at `open`, which then takes as long as that.
//!
//! # What each fsync buys
//!
//! - *A group's* (the segment's file): its chunks may be acknowledged, and become visible to readers.
//! - *A new segment's* (its file with the Begin frame and the first group, then the directory), before anything in it counts:
//!   it voids what its predecessor failed to write, and a power cut cannot remove it as a whole.
//! - *The manifest's, when a segment began:* its chunks may be acknowledged; no later run reuses their numbers, and every
//!   later run reports the segment if it is missing.
//! - *Before a segment is removed* (the active segment's): the notes that finished its chunks. Otherwise chunks of the next
//!   segment might come back without their settled events. Then the manifest's, unless an earlier one covers several
//!   segments: otherwise the next start would report it missing.
//! - *After a segment is removed* (the directory), before the next one is, and at the end: an unlink that was not durable may
//!   be undone, but then all newer segments with the notes about it still exist.
//! - *Before a spare is written to* (the directory): otherwise a segment that comes back would hold foreign frames.
//! - *Before a spare gets a segment's name* (its file with the Begin frame), and after (the directory); the same for a copy
//!   that replaces a removed file.
//! - *At open* (the last segment, the directory): from then on, unsynced writes of the last process are relied on.
//!
//! # Modules
//!
//! `frame.rs`, `note.rs` and `manifest.rs` define the format. `scan.rs` reads it, for recovery and for the tool alike;
//! `recovery.rs` repairs what it found and resumes from there, `past.rs` reads the rest behind the start. `writer.rs` is the only thread that writes, with group
//! commit: it takes everything queued, writes it at once, syncs once, answers all, and checks the names. `handles.rs` keeps
//! files open for readers, which do not block the writer. `suspects.rs` records at which chunk a process ended. `disk.rs` is
//! the directory.
//!
//! # Limits
//!
//! At most 32 files are open at a time, regardless of the number of segments: segments are read one after the other, through
//! one buffer, and a removed file waits under another name, closed, until its blocks are freed. Finished segments are removed
//! one by one, between groups, so no fsync waits for thousands of removals.
//!
//! The index takes some 120 bytes for each chunk in it: those that wait for the reader (50,000, or two segments if those have
//! more), those of the segment being written, and those that the reader has passed and not finished. Everything else takes
//! some 100 bytes for each segment. The ledger takes a range for each gap in what is finished, and what notes settled of
//! chunks in part, from the oldest segment on.
//!
//! Chunks are refused when all files together, excluding spares and including the caller's own
//! ([`Spool::set_gathered`]), would exceed [`Options::limit`]. The reserve, at most 1 MiB,
//! and the two manifests, 16 bytes for each segment, are not counted. Notes, and the Begin frames of the segments that they
//! need, are written regardless of the limit, since they are what finishes chunks; so are copies of damaged bytes in
//! `quarantine/`, since those were acknowledged. Relocated chunks may pass the limit, or what notes made of
//! it, by a 16th until as much is removed, since they let more than that be removed. The copies may be deleted after inspection; they are counted again at the
//! next open. Missing files are not counted.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::ids::Time;
use crate::ids::{ChunkId, chunk_id, chunk_id_of_parts};

pub mod disk;
mod frame;
pub mod handles;
mod manifest;
mod note;
mod past;
mod recovery;
pub mod scan;
pub mod stranded;
mod suspects;
mod writer;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use disk::{Disk, File, has_lost_bytes, says_remedy, with_remedy};
use frame::{Head, Kind, crc, segment_name, set_aside_name};
use handles::Handles;
use manifest::Entry;
use note::Live;
use past::{Ahead, Behind};
use recovery::{Quarantine, describe};
use scan::{Damage, Flaw, Place};
use suspects::Suspects;
use writer::{Job, Relocating, Slot, Waiting, Writer};

pub(crate) use note::merge;
pub use suspects::{Suspect, Work};

/// The number of a frame in the log.
pub type Seq = u64;
/// The maximum length of a tag in a log line, in bytes.
const LOGGED_TAG_BYTES: usize = 200;

/// A selection of a chunk's events, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Events {
    /// Every event.
    All,
    /// Sorted, non-adjacent, non-empty ranges.
    Runs(Vec<Range<u32>>),
}

/// A selection of one chunk's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The chunk.
    pub chunk: Seq,
    /// The selected events.
    pub events: Events,
}

/// A record of the fate of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A batch (an object, a request) is about to be sent for the first time. Written before its first byte is sent.
    Begun {
        /// The batch number.
        batch: u64,
        /// The name of the object or stream.
        name: String,
        /// The token that identifies the batch at the destination.
        token: String,
        /// The number of lines.
        lines: u64,
        /// The events in the batch, in the order in which it has them; a chunk may be named more than once.
        contents: Vec<Content>,
        /// What an object is made by. `None`: no object, or begun by a version that wrote no recipes.
        recipe: Option<String>,
    },
    /// The batch has its final answer.
    Ended {
        /// The batch number.
        batch: u64,
        /// The settled events, `None` for all; the rest goes into another batch.
        delivered: Option<Vec<Content>>,
    },
    /// These events are settled without a batch (dead letters, skipped).
    Done {
        /// The events.
        contents: Vec<Content>,
    },
}

/// When a note is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After write(2): survives the end of the process.
    Written,
    /// After fsync: survives a power cut.
    Synced,
}

/// Size limits of a spool, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The total size of all files above which chunks are refused.
    pub limit: u64,
    /// The size of a segment; `None`: a 16th of the limit, between 1 MiB and 32 MiB. A larger frame gets a segment of
    /// its own.
    pub segment_bytes: Option<u64>,
}

/// A chunk to append.
#[derive(Clone, Debug)]
pub struct Chunk<'a> {
    /// `ids::chunk_id(tag, data)`. With any other id the chunk would be corrupt when it is read.
    pub id: ChunkId,
    /// The tag.
    pub tag: &'a [u8],
    /// The msgpack events. No clone is held once the append has been answered.
    pub data: Bytes,
    /// The time of arrival.
    pub arrived: Time,
}

/// Events of older chunks, to be written again at the log's head.
#[derive(Clone, Debug)]
pub struct Relocation {
    /// The tag.
    pub tag: Vec<u8>,
    /// The msgpack events, and nothing else of their chunks. No clone is held once the relocation has been answered.
    pub data: Bytes,
    /// The time at which the events arrived, that of their chunk.
    pub arrived: Time,
    /// Which events of which chunks they are. All of those chunks must be unfinished, and none of these events settled or in
    /// a pending batch.
    pub origins: Vec<Content>,
}

/// The result for a chunk that the host may forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The chunk is on disk.
    Kept,
    /// The chunk was already on disk, from before the restart: nothing was written.
    Replayed,
}

/// Why a chunk was refused. It does not become visible in this run. If the process or the machine dies before the disk
/// recovers, the next run may find it nevertheless, and recognises it when it is handed over again.
#[derive(Debug)]
pub enum Refusal {
    /// The chunk does not fit.
    Full {
        /// The total size of all files, in bytes.
        bytes: u64,
        /// The limit on that size.
        limit: u64,
    },
    /// The deadline passed while the chunk was queued.
    TooLate,
    /// The disk failed.
    Disk(io::Error),
    /// The spool is closed.
    Closed,
}

const CLOSED: &str = "the spool is closed";

/// The state that is known at open. What else earlier runs left is read behind the start: see [`Spool::history`] and
/// [`Health::findings`].
#[derive(Debug)]
pub struct Recovered {
    /// The number of unfinished chunks, as far as the manifest knew: it may be some seconds old.
    pub unfinished: u64,
    /// Greater than every batch number in the log.
    pub next_batch: u64,
    /// Lines for the log: truncations, quarantined bytes, missing files.
    pub findings: Vec<String>,
}

/// What earlier runs had begun. All chunks in it are known to the spool.
#[derive(Debug, Default)]
pub struct History {
    /// Batches begun and not ended, by number, except those of which all chunks are finished.
    pub pending: Vec<Pending>,
    /// Unfinished chunks at which an earlier process ended.
    pub suspects: Vec<Suspect>,
}

/// A batch that was begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The batch number.
    pub batch: u64,
    /// The name of the object or stream.
    pub name: String,
    /// The token that identifies the batch at the destination.
    pub token: String,
    /// The number of lines.
    pub lines: u64,
    /// The events in the batch, in the order in which it has them; a chunk may be named more than once.
    pub contents: Vec<Content>,
    /// What an object is made by. `None`: no object, or begun by a version that wrote no recipes.
    pub recipe: Option<String>,
}

/// A chunk read from the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The tag.
    pub tag: Vec<u8>,
    /// The msgpack events.
    pub data: Bytes,
    /// The time at which the host handed the chunk over; of a relocated chunk, the oldest of those that its events were in.
    pub arrived: Time,
}

/// Why a chunk cannot be read.
#[derive(Debug)]
pub enum Unreadable {
    /// The chunk is finished, or was never in the log.
    Finished,
    /// The bytes are permanently damaged, or the chunk ended the process twice. It is finished.
    Corrupt {
        /// For the log: the damage, its place, and where the bytes are kept.
        words: String,
        /// Whether the bytes are in the quarantine.
        kept: bool,
    },
    /// The file of this segment is missing or too short. It may come back: [`Spool::is_missing`].
    Missing(Seq),
    /// The disk failed; reading may be retried.
    Disk(io::Error),
}

/// The problems of a running spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Events since the last call, each with its kind for [`crate::log::Log::trouble`].
    pub notices: Vec<(&'static str, String)>,
    /// Lines for the log since the last call, about what earlier runs left.
    pub findings: Vec<String>,
    /// Why a restart would not find everything that was accepted, or why some of it cannot be read, as long as that lasts.
    pub trouble: Option<String>,
    /// Files that are missing or too short, with the number of unfinished chunks in each.
    pub missing: Vec<(String, u64)>,
}

/// The usage of the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The total size of all files except spares, in bytes.
    pub bytes: u64,
    /// The part of it in `quarantine/`, which only an operator removes.
    pub quarantined: u64,
    /// The limit on `bytes`.
    pub limit: u64,
    /// The number of unfinished chunks.
    pub unfinished: u64,
    /// The number of those whose file is missing or too short.
    pub missing: u64,
    /// The known number of further chunks, in files that were already missing at the start.
    pub absent: u64,
    /// The arrival time of the oldest unfinished chunk.
    pub oldest: Option<Time>,
    /// The size of the events in unfinished relocated chunks, in bytes.
    pub relocated: u64,
}

impl Usage {
    /// The size of the log itself, which shrinks as chunks are delivered.
    pub fn log_bytes(&self) -> u64 {
        self.bytes - self.quarantined
    }

    /// Whether the log takes more than half of the limit: whatever keeps its oldest segment is then moved out of the way.
    pub fn is_half_full(&self) -> bool {
        self.log_bytes() > self.limit / 2
    }
}

/// The number of chunks remembered across restarts, so that they are recognised when a killed host hands them over
/// again. In the window they cost 16 bytes each, in every segment.
const REMEMBERED: u64 = 16_384;
/// Spares may take one part in this many of the limit.
const SPARE_SHARE: u64 = 4;
/// Relocated chunks may pass the limit by one part in this many: they let older segments be removed, which hold more.
const RELOCATION_SHARE: u64 = 16;
/// The window may take one part in this many of a segment.
const WINDOW_SHARE: u64 = 16;
/// The number of chunks in the index that wait for the reader, some 120 bytes each, above which no further segment is indexed.
const INDEXED: usize = 50_000;

/// The limits of a spool, resolved from its [`Options`].
#[derive(Clone, Copy, Debug)]
struct Limits {
    limit: u64,
    segment_bytes: u64,
    /// The maximum number of ids in the window.
    window: usize,
    /// [`INDEXED`].
    indexed: usize,
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
            indexed: INDEXED,
        }
    }

    /// The size of the reserve: enough for thousands of notes, and a Begin frame with the window before them.
    fn reserve_bytes(&self) -> usize {
        self.segment_bytes.min(1 << 20) as usize
    }
}

/// The state of a segment.
#[derive(Clone, Copy, Debug)]
struct SegmentInfo {
    bytes: u64,
    /// The number of unfinished chunks; of a segment that is not indexed, what is known of it.
    unfinished: u64,
    /// Its unfinished chunks are in the index. Otherwise it may have any number of them, and is not removed.
    indexed: bool,
    /// A manifest lists it, or does not cover it. Otherwise it was finished, or was put back after that.
    listed: bool,
    /// The Begin frame is readable.
    has_begin: bool,
    /// The Begin frame is the only frame.
    bare: bool,
    /// This run began it, and no write to it has failed: its file has no frame with a number that is still to come.
    reusable: bool,
}

impl SegmentInfo {
    /// Whether it has unfinished chunks, or may have some.
    fn may_hold_chunks(&self) -> bool {
        self.unfinished > 0 || !self.indexed
    }
}

/// The segment that is being written.
struct Active {
    file: Arc<dyn File>,
    first: Seq,
    /// The length of the acknowledged part, in bytes. Anything after it is being written, or is void.
    len: u64,
    /// The length of the file, in bytes.
    capacity: u64,
    /// The Begin frame is the only frame.
    bare: bool,
    /// The format version in the Begin frame.
    version: u32,
}

/// The state shared by the writer thread and callers. Sizes are in bytes.
#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// The size of all files except spares.
    bytes: u64,
    /// The part of `bytes` in `quarantine/`.
    quarantined: u64,
    /// The part of `bytes` after the last frame of the newest segment, in a file that is being reused.
    slack: u64,
    /// The size of all spares.
    spares: u64,
    /// The size of all queued frames.
    reserved: u64,
    /// The size of a file beside the log, without a name, with lines that are gathered for objects.
    gathered: u64,
    /// The index: the unfinished chunks of the segments before the frontier and of the one being written, those that this run
    /// relocated, and those in the [`History`].
    chunks: BTreeMap<Seq, Place>,
    /// The number of all unfinished chunks.
    unfinished: u64,
    /// The first segment that is not indexed and not in `skipped`: what follows is not visible. [`Seq::MAX`]: there is none.
    frontier: Seq,
    /// The segment being written, or the newest one.
    resident: Option<Seq>,
    ahead: Ahead,
    /// The segment that was being written when the run before ended, if not all segments were read at the start.
    opened: Option<Seq>,
    /// The reader has come to the frontier.
    starved: bool,
    /// Segments before the frontier that were missing when they were to be indexed.
    skipped: BTreeSet<Seq>,
    /// The chunks of those that are back, for [`Spool::take_late`].
    late: Vec<Seq>,
    /// Chunks of segments that are not indexed that were finished all the same: those in the [`History`], and relocated ones.
    finished_early: BTreeSet<Seq>,
    /// The settled events of chunks in the index, as earlier runs noted.
    settled: HashMap<Seq, Vec<Range<u32>>>,
    /// Not yet taken.
    history: Option<History>,
    /// Why what earlier runs left cannot be read.
    behind: Option<String>,
    /// It is to be tried again.
    retry: bool,
    /// The thread that reads it is to end.
    ended: bool,
    findings: Vec<String>,
    /// The relocated ones of them by arrival: they arrived before the chunks with the numbers before theirs.
    relocated: BTreeSet<(Time, Seq)>,
    /// The size of their events.
    relocated_bytes: u64,
    /// The size of the relocated chunks written for which as much was not removed yet.
    relocated_unpaid: u64,
    segments: BTreeMap<Seq, SegmentInfo>,
    /// For each id, the number of chunks kept by earlier runs and not yet handed over again in this one.
    replayable: HashMap<ChunkId, u32>,
    /// The ids of the most recently kept chunks, oldest first.
    window: VecDeque<ChunkId>,
    next_batch: u64,
    /// A chunk was refused for lack of space since the last one was kept.
    needs_space: bool,
    /// A cleanup is queued, and has not begun.
    cleanup_queued: bool,
    /// A look is queued, and has not begun.
    look_queued: bool,
    /// Segments whose file is missing or too short, with its former size, which is not counted meanwhile.
    missing: BTreeMap<Seq, u64>,
    /// Those of them that this user may not open, and the error.
    barred: BTreeMap<Seq, String>,
    /// Listed segments that were missing at the start.
    absent: BTreeMap<Seq, Entry>,
    /// Another process holds the directory's lock, or held it and changed something: nothing is read or written.
    lock_lost: bool,
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
        self.show(chunk, place);
    }

    /// Makes a written chunk visible.
    fn show(&mut self, chunk: Seq, place: Place) {
        if let Some(info) = self.segments.get_mut(&place.segment) {
            info.unfinished += 1;
            self.unfinished += 1;
        }
        if self.frontier == Seq::MAX {
            self.ahead.grow();
        }
        if place.is_relocated() {
            self.relocated_unpaid += place.frame_bytes();
        }
        self.index(chunk, place);
    }

    /// Adds a chunk to the index.
    fn index(&mut self, chunk: Seq, place: Place) {
        if place.is_relocated() {
            self.relocated.insert((place.arrived, chunk));
            self.relocated_bytes += place.events_len() as u64;
        }
        self.chunks.insert(chunk, place);
    }

    fn finish(&mut self, chunk: Seq) {
        let Some(place) = self.chunks.remove(&chunk) else {
            return;
        };
        self.settled.remove(&chunk);
        if let Some(info) = self.segments.get_mut(&place.segment) {
            if !info.indexed {
                self.finished_early.insert(chunk);
            }
            if info.unfinished > 0 {
                info.unfinished -= 1;
                self.unfinished -= 1;
            }
        }
        if self.relocated.remove(&(place.arrived, chunk)) {
            self.relocated_bytes -= place.events_len() as u64;
        }
    }

    /// The arrival time of the oldest unfinished chunk.
    fn oldest(&self) -> Option<Time> {
        let first = self.chunks.range(..self.frontier).next();
        let first = first.map(|(_, place)| place.arrived);
        let relocated = self.relocated.first().map(|(arrived, _)| *arrived);
        first.into_iter().chain(relocated).min()
    }

    /// Whether an earlier run kept a chunk with this id that is handed over again only now.
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

    /// Forgets a lost chunk, so that it is accepted when it is handed over again.
    fn forget_id(&mut self, id: &ChunkId) {
        self.take_replayable(id);
        if let Some(at) = self.window.iter().position(|known| known == id) {
            self.window.remove(at);
        }
    }

    /// Adds to the size of the files in `quarantine/`.
    fn add_quarantined(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.quarantined += bytes;
    }

    /// Sets the size of the files in `quarantine/`.
    fn set_quarantined(&mut self, bytes: u64) {
        self.bytes = self.bytes - self.quarantined + bytes;
        self.quarantined = bytes;
    }

    /// The total size of all files above which nothing is relocated. Notes are written regardless of the limit, and must
    /// not take the room that relocation needs to have segments removed: what counts is what was relocated and not made up for
    /// by removals yet.
    fn relocation_limit(&self, limits: &Limits) -> u64 {
        let others = self.bytes.saturating_sub(self.relocated_unpaid);
        let share = limits.limit / RELOCATION_SHARE;
        others.max(limits.limit).saturating_add(share)
    }

    /// The size of all files except spares and slack.
    fn used(&self) -> u64 {
        self.bytes - self.slack + self.gathered
    }

    /// Sets the size of a segment's file.
    fn resize(&mut self, segment: Seq, bytes: u64) {
        if let Some(info) = self.segments.get_mut(&segment) {
            self.bytes = self.bytes - info.bytes + bytes;
            info.bytes = bytes;
        }
    }

    /// Records that a segment has more than its Begin frame.
    fn mark_written(&mut self, segment: Seq) {
        if let Some(info) = self.segments.get_mut(&segment) {
            info.bare = false;
        }
    }

    /// Records that a write to a segment failed.
    fn mark_unreusable(&mut self, segment: Seq) {
        if let Some(info) = self.segments.get_mut(&segment) {
            info.reusable = false;
        }
    }

    /// The same for a segment that is not indexed, whatever is known of its chunks.
    fn set_missing(&mut self, segment: Seq) {
        let bytes = self.segments.get(&segment).map(|info| info.bytes);
        if let Some(bytes) = bytes.filter(|_| !self.missing.contains_key(&segment)) {
            self.missing.insert(segment, bytes);
            self.resize(segment, 0);
        }
    }

    /// Records that a segment's file is missing or too short.
    fn mark_missing(&mut self, segment: Seq) {
        // A segment without unfinished chunks is just being removed.
        if let Some(info) = self.segments.get(&segment)
            && info.may_hold_chunks()
            && !self.missing.contains_key(&segment)
        {
            self.missing.insert(segment, info.bytes);
            self.resize(segment, 0);
        }
    }

    /// Records that a segment's file is back.
    fn mark_present(&mut self, segment: Seq) {
        self.barred.remove(&segment);
        if let Some(bytes) = self.missing.remove(&segment) {
            self.resize(segment, bytes);
        }
    }

    /// The missing segments that have unfinished chunks, with the number of these.
    fn missing_segments(&self) -> impl Iterator<Item = (Seq, u64)> {
        let missing = self.missing.keys();
        let found = |segment: &Seq| Some((*segment, self.segments.get(segment)?));
        let needed = missing.filter_map(found);
        let needed = needed.filter(|(_, info)| info.may_hold_chunks());
        needed.map(|(segment, info)| (segment, info.unfinished))
    }

    /// Removes a segment, and returns the size of its file.
    fn remove_segment(&mut self, segment: Seq) -> u64 {
        self.missing.remove(&segment);
        self.barred.remove(&segment);
        let Some(info) = self.segments.remove(&segment) else {
            return 0;
        };
        self.bytes -= info.bytes;
        self.unfinished -= info.unfinished;
        self.relocated_unpaid = self.relocated_unpaid.saturating_sub(info.bytes);
        info.bytes
    }

    /// The oldest segment, if it is finished and not the newest.
    fn removable(&self) -> Option<Seq> {
        let (first, info) = self.segments.first_key_value()?;
        (self.segments.len() > 1 && !info.may_hold_chunks()).then_some(*first)
    }

    /// The segments that a manifest lists, `active` as the open one. Finished segments older than all others are left out
    /// if the notes that finished them are durable (`noted`).
    fn manifest_entries(&self, active: Option<Seq>, noted: bool) -> BTreeMap<Seq, Entry> {
        let newest = self.segments.last_key_value().map(|(first, _)| *first);
        let needed = self
            .segments
            .iter()
            .filter(|(_, info)| info.listed)
            .skip_while(|(first, info)| {
                noted && !info.may_hold_chunks() && Some(**first) != newest
            });
        let needed = needed.map(|(first, info)| {
            let entry = Entry {
                unfinished: info.unfinished,
                // What was not read may hold more.
                open: active == Some(*first) || !info.indexed,
            };
            (*first, entry)
        });
        needed
            .chain(self.absent.iter().map(|(first, entry)| (*first, *entry)))
            .collect()
    }

    /// Whether the newest segment has a readable Begin frame, and so the window.
    fn newest_has_begin(&self) -> bool {
        let newest = self.segments.last_key_value();
        newest.is_some_and(|(_, info)| info.has_begin)
    }

    /// Whether a chunk did not fit, and only finished chunks in the newest segment take its space.
    fn needs_rotation(&self) -> bool {
        self.needs_space && self.segments.len() == 1 && self.can_shrink()
    }

    /// Whether all chunks are finished, and more than one bare segment is left of them.
    fn can_shrink(&self) -> bool {
        let bare = |info: &SegmentInfo| info.bare;
        let all_finished = self.unfinished == 0 && self.segments.values().all(|it| it.indexed);
        all_finished && (self.segments.len() > 1 || !self.segments.values().all(bare))
    }
}

struct Shared {
    disk: Arc<dyn Disk>,
    handles: Handles,
    suspects: Suspects,
    limits: Limits,
    spool: u64,
    /// Locked before `state`, if both are.
    live: Mutex<Live>,
    state: Mutex<State>,
    more: Notify,
    /// The history is known.
    told: Notify,
    /// A segment was indexed, or could not be.
    indexed: Condvar,
    /// There is something to index, or to try again.
    work: Condvar,
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("nothing panics with this lock")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with this lock")
    }
}

/// A running spool. Holds the directory's lock until it is dropped.
pub struct Spool {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
    behind: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut spool = f.debug_struct("Spool");
        spool.field("id", &self.id()).field("usage", &self.usage());
        spool.finish_non_exhaustive()
    }
}

impl Spool {
    /// Resumes from the newest segment and starts two threads, named `ferry`: the writer, and one that reads what else earlier
    /// runs left. If the newest segment or the manifest is missing or damaged, everything is read first. Fails only if the
    /// disk or the system does, never because of the files' contents.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> io::Result<(Arc<Spool>, Recovered)> {
        Spool::open_with(disk, Limits::new(options))
    }

    fn open_with(disk: Arc<dyn Disk>, limits: Limits) -> io::Result<(Arc<Spool>, Recovered)> {
        let mut resumed = recovery::recover(&*disk, &limits)?;
        let handles = Handles::new(Arc::clone(&disk));
        let number = || StdRng::from_os_rng().random();
        let spool = resumed.spool.unwrap_or_else(number);
        let suspects = Suspects::new(&disk, spool, resumed.suspects);
        if let Some(history) = &mut resumed.state.history {
            let chunks = &resumed.state.chunks;
            let holds = |it: &Suspect| chunks.get(&it.chunk).is_some_and(|place| place.id == it.id);
            resumed.recovered.findings.extend(suspects.resume(holds));
            history.suspects = suspects.all();
        }
        if let Some(active) = &resumed.active {
            handles.set_active(active.first, &active.file);
        }
        let shared = Arc::new(Shared {
            disk,
            handles,
            suspects,
            limits,
            spool,
            live: Mutex::new(resumed.live),
            state: Mutex::new(resumed.state),
            more: Notify::new(),
            told: Notify::new(),
            indexed: Condvar::new(),
            work: Condvar::new(),
        });
        let (jobs, queue) = channel();
        let mut writer = Writer::new(
            Arc::clone(&shared),
            queue,
            resumed.active,
            resumed.next,
            resumed.manifest,
            resumed.after_gap,
        );
        writer.clean_up();
        // If this fails, it is retried before anything is acknowledged.
        let _ = writer.ensure_newest_listed();
        let behind = Behind::new(Arc::clone(&shared), jobs.clone(), resumed.past);
        let named = || thread::Builder::new().name("ferry".into());
        let thread = named().spawn(move || writer.run())?;
        let spool = Arc::new(Spool {
            shared,
            jobs,
            thread: Mutex::new(Some(thread)),
            behind: Mutex::default(),
        });
        let behind = named().spawn(move || behind.run())?;
        *spool.behind.lock().expect("nothing panics with this lock") = Some(behind);
        Ok((spool, resumed.recovered))
    }

    /// The random id of the spool. The same in every run, once anything was written.
    pub fn id(&self) -> u64 {
        self.shared.spool
    }

    /// Appends a chunk. Completes when it is on disk, or at the deadline if it is still queued then; once it is being
    /// written, the disk determines how long it takes.
    ///
    /// If the future is dropped, the chunk may or may not be kept.
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
        if let Some(answer) = self.answer_or_reserve(&chunk.id, length, deadline) {
            return answer;
        }
        let mut queued = Queued {
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
            slot: Arc::clone(&queued.slot),
            length,
            answer,
        };
        if self.jobs.send(job).is_err() {
            return Err(Refusal::Closed);
        }
        let answer = match timeout_at(deadline, &mut answered).await {
            Ok(answer) => answer,
            Err(_) if queued.cancel() => return Err(Refusal::TooLate),
            Err(_) => answered.await,
        };
        answer.unwrap_or(Err(Refusal::Closed))
    }

    /// The answer to a chunk that is not queued, or `None` after reserving space for its frame.
    fn answer_or_reserve(
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
            let bytes = state.bytes + state.gathered;
            self.request_cleanup(state);
            return Some(Err(Refusal::Full { bytes, limit }));
        }
        state.reserved += length;
        None
    }

    /// Writes a note, regardless of the limit. If the future is dropped after its first poll, the note is still either
    /// written or not, as a whole.
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

    /// Writes events once more as a new chunk at the log's head, and settles them where they were, in one step: `origins` are
    /// settled if and only if the new chunk exists, now and in every later run. That lets segments be removed that only
    /// events which cannot be delivered for long still need. Completes when it is on disk, with the new chunk's number, which
    /// is greater than those of its origins. Hashes the data on the calling thread.
    ///
    /// The new chunk is like an appended one, except that it is not recognised if the host hands it over: it can be
    /// [peeked](Spool::peek) at, before this completes as well ([`Spool::is_relocated`]), read, noted, finished, and
    /// relocated. A chunk of which nothing is left is still to be [finished](Spool::finish) by the caller; the next run finds
    /// one that was settled as a whole ([`Events::All`]) finished.
    ///
    /// Events of a pending batch must not be relocated: the next run would find them in both. Nor may any of them be sent
    /// or settled before this has completed.
    ///
    /// # Errors
    ///
    /// The events are still where they were. If the process or the machine dies before anything more is written, the next run
    /// may find them relocated nevertheless, in one place either way.
    ///
    /// - [`ErrorKind::QuotaExceeded`]: all files together would exceed [`Options::limit`] by more than a 16th, or the disk's
    ///   own quota is exceeded. Possible again once a segment is removed.
    /// - [`ErrorKind::InvalidInput`]: there are no origins, one of them is not an unfinished chunk, or the tag or the data with
    ///   the origins (some bytes for each chunk and run) has more than 4 GiB.
    /// - All others: the disk failed, or the spool is closed.
    ///
    /// If the future is dropped after its first poll, the events are still either relocated or not, as a whole.
    pub async fn relocate(&self, relocation: Relocation) -> io::Result<Seq> {
        let (answer, answered) = oneshot::channel();
        self.queue_relocation(relocation, answer)?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    fn queue_relocation(
        &self,
        relocation: Relocation,
        answer: oneshot::Sender<io::Result<Seq>>,
    ) -> io::Result<()> {
        let Relocation {
            tag,
            data,
            arrived,
            origins,
        } = relocation;
        let invalid = |words| io::Error::new(ErrorKind::InvalidInput, words);
        let too_long = || invalid("a relocated chunk's tag and data have at most 4 GiB each");
        let encoded = note::encode_origins(&origins);
        let before = u32::try_from(encoded.len()).map_err(|_| too_long())?;
        let head = Head {
            kind: Kind::Relocated,
            number: 0,
            spool: 0,
            tag_len: u32::try_from(tag.len()).map_err(|_| too_long())?,
            data_len: u32::try_from(encoded.len() + data.len()).map_err(|_| too_long())?,
            arrived,
            id: chunk_id_of_parts(&tag, &[&encoded, &data]),
        };
        let length = head.length();
        {
            let mut state = self.shared.state();
            if state.closed {
                return Err(closed());
            }
            let is_held = |origin: &Content| state.chunks.contains_key(&origin.chunk);
            if origins.is_empty() || !origins.iter().all(is_held) {
                return Err(invalid("a relocated chunk's origins are unfinished chunks"));
            }
            let limit = state.relocation_limit(&self.shared.limits);
            if state.used() + state.reserved + length > limit {
                let full = no_room_to_relocate(state.bytes, limit);
                self.request_cleanup(state);
                return Err(full);
            }
            state.reserved += length;
        }
        let job = Job::Relocation {
            relocating: Relocating {
                head,
                crc: crc(&[&tag, &encoded, &data]),
                before_events: [tag, encoded].concat().into(),
                origins: before,
                events: data,
            },
            answer,
        };
        self.jobs.send(job).map_err(|_| {
            self.shared.state().reserved -= length;
            closed()
        })
    }

    /// Whether a chunk was relocated by this run, and is unfinished: whoever relocated it knows its events already.
    pub fn is_relocated(&self, chunk: Seq) -> bool {
        let state = self.shared.state();
        let place = state.chunks.get(&chunk);
        // Only what this run wrote has a CRC-32.
        place.is_some_and(|place| place.is_relocated() && place.crc.is_some())
    }

    /// The earliest arrival of some unfinished chunks.
    pub fn oldest_of(&self, chunks: impl Iterator<Item = Seq>) -> Option<Time> {
        let state = self.shared.state();
        let arrived = chunks.filter_map(|chunk| Some(state.chunks.get(&chunk)?.arrived));
        arrived.min()
    }

    /// Marks a chunk as finished, in memory: only a note makes that survive the process.
    pub fn finish(&self, chunk: Seq) {
        let mut state = self.shared.state();
        state.finish(chunk);
        if state.removable().is_some() || state.needs_rotation() {
            self.request_cleanup(state);
        }
    }

    fn request_cleanup(&self, mut state: MutexGuard<'_, State>) {
        if !state.cleanup_queued {
            state.cleanup_queued = true;
            drop(state);
            // Fails if the spool is closed, and nothing is to be cleaned up.
            let _ = self.jobs.send(Job::CleanUp);
        }
    }

    /// Waits until it is known what earlier runs had begun, and returns it. Nothing is to be delivered before: what had been
    /// begun goes on as it was. To be called once. Never completes if that cannot be read or the spool is closed before.
    pub async fn history(&self) -> History {
        loop {
            // Registered before the look, so that nothing is missed in between.
            let told = self.shared.told.notified();
            let history = self.shared.state().history.take();
            match history {
                Some(history) => return history,
                None => told.await,
            }
        }
    }

    /// The events of a chunk that earlier runs settled, excluding those in pending batches.
    pub fn settled(&self, chunk: Seq) -> Vec<Range<u32>> {
        let state = self.shared.state();
        state.settled.get(&chunk).cloned().unwrap_or_default()
    }

    /// The chunks that became visible behind a reader that has come to `after`, since their file was missing: [`Spool::peek`]
    /// no longer shows them to it. Each is returned once.
    pub fn take_late(&self, after: Option<Seq>) -> Vec<Seq> {
        let mut late = std::mem::take(&mut self.shared.state().late);
        late.retain(|chunk| after.is_some_and(|after| *chunk <= after));
        late
    }

    /// Whether nothing follows `after`, as [`Spool::peek`] would show: not even what is still to be read of earlier runs.
    pub fn is_read(&self, after: Option<Seq>) -> bool {
        if self.peek(after).is_some() {
            return false;
        }
        // Both with one lock: what was still to be read may have come into the index in between.
        let mut state = self.shared.state();
        let next = state.next_indexed(after, self.shared.limits.indexed);
        next.is_none() && state.frontier == Seq::MAX
    }

    /// Like [`Spool::peek`], but waits for what is still to be read of earlier runs. `None`: there is nothing more. Blocks on
    /// the disk, and fails if that does.
    pub fn next(&self, after: Option<Seq>) -> io::Result<Option<(Seq, usize)>> {
        let mut state = self.shared.state();
        loop {
            let next = state.next_indexed(after, self.shared.limits.indexed);
            let frontier = state.frontier;
            if next.is_some() || frontier == Seq::MAX || state.ended {
                return Ok(next.map(|(chunk, place)| (chunk, place.events_len() as usize)));
            }
            if let Some(why) = state.behind.as_ref().filter(|_| !state.retry) {
                return Err(io::Error::other(why.clone()));
            }
            self.shared.work.notify_one();
            let waited = self.shared.indexed.wait_while(state, |state| {
                let goes_on = state.behind.is_none() || state.retry;
                state.frontier == frontier && goes_on && !state.ended
            });
            state = waited.expect("nothing panics with this lock");
        }
    }

    /// Whether the log has this chunk, unfinished.
    pub fn holds(&self, chunk: Seq) -> bool {
        self.shared.state().chunks.contains_key(&chunk)
    }

    /// Whether a chunk that the log does not have may be in a file that is missing: if that is put back, the chunk is there
    /// again, now or after a restart, with all of its events that no note has settled by then.
    pub fn may_come_back(&self, chunk: Seq) -> bool {
        let live = self.shared.live();
        let settled = live.ledger.as_ref().and_then(|it| it.settled(chunk));
        if settled == Some(&Events::All) {
            return false;
        }
        let state = self.shared.state();
        let present = state.segments.range(..=chunk).next_back();
        let absent = state.absent.range(..=chunk).next_back();
        let absent = absent.map(|(first, _)| *first);
        match present {
            _ if state.chunks.contains_key(&chunk) => false,
            Some((first, info)) if absent.is_none_or(|absent| absent < *first) => {
                !info.indexed && state.missing.contains_key(first)
            }
            _ => absent.is_some(),
        }
    }

    /// Reads and verifies a chunk. Blocks on the disk.
    pub fn read(&self, chunk: Seq) -> Result<Stored, Unreadable> {
        let place = {
            let state = self.shared.state();
            if state.lock_lost {
                return Err(Unreadable::Disk(lock_lost()));
            }
            state.chunks.get(&chunk).copied()
        };
        let place = place.ok_or(Unreadable::Finished)?;
        let read = match self.shared.suspects.condemns(chunk) {
            true => Err(self.set_aside(
                chunk,
                place,
                "the process ended twice while reading and encoding it, out of memory or because of a bug",
                "give more memory to an output with that folder as spool_dir",
            )),
            false => self.fetch(chunk, place),
        };
        read.map_err(|unreadable| match unreadable {
            corrupt @ Unreadable::Corrupt { .. } => corrupt,
            // A segment finished meanwhile may have been removed, truncated or overwritten.
            _ if !self.holds(chunk) => Unreadable::Finished,
            other => other,
        })
    }

    /// The next unfinished chunk after `after` (`None`: the oldest), with the length of its events, without reading it.
    /// `None`: there is none yet, or it is still to be read what earlier runs left; [`Spool::more`] tells when there is more.
    pub fn peek(&self, after: Option<Seq>) -> Option<(Seq, usize)> {
        let mut state = self.shared.state();
        let next = state.next_indexed(after, self.shared.limits.indexed);
        if state.wants_more(self.shared.limits.indexed) {
            self.shared.work.notify_one();
        }
        next.map(|(chunk, place)| (chunk, place.events_len() as usize))
    }

    fn fetch(&self, chunk: Seq, place: Place) -> Result<Stored, Unreadable> {
        let file = self.file_of(place)?;
        match place.read(&*file).map_err(Unreadable::Disk)? {
            Ok(stored) => Ok(stored),
            Err(Flaw::Short) => Err(self.report_missing(place)),
            Err(Flaw::Damaged) => Err(self.quarantine_damaged(chunk, place, &*file)),
        }
    }

    fn file_of(&self, place: Place) -> Result<Arc<dyn File>, Unreadable> {
        match self.shared.handles.get(place.segment) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.shared.state().mark_missing(place.segment);
                Err(Unreadable::Missing(place.segment))
            }
            // It holds up no other.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let words = scan::barred(&segment_name(place.segment), &error);
                let mut state = self.shared.state();
                state.mark_missing(place.segment);
                state.barred.insert(place.segment, words);
                Err(Unreadable::Missing(place.segment))
            }
            file => file.map_err(Unreadable::Disk),
        }
    }

    /// Handles a file shorter than it was when written or recovered: it may be in the middle of being copied back.
    fn report_missing(&self, place: Place) -> Unreadable {
        if self.shared.handles.forget(place.segment) {
            self.shared.state().mark_missing(place.segment);
        }
        Unreadable::Missing(place.segment)
    }

    /// Records that work on a chunk's bytes begins, and that all other work on chunks has ended. If the process ends before
    /// the next call of this or [`Spool::end_work`], the next run knows at which chunk. `alone`: it is one of
    /// [`History::suspects`], and nothing else is being done. Writes 512 bytes into the page cache, which may block.
    pub fn begin_work(&self, chunk: Seq, work: Work, alone: bool) {
        let id = {
            let state = self.shared.state();
            let place = state.chunks.get(&chunk).filter(|_| !state.lock_lost);
            place.map(|place| place.id)
        };
        if let Some(id) = id {
            self.add_notice(self.shared.suspects.begin(chunk, id, work, alone));
        }
    }

    /// Records that no chunk is being worked on. Costs the same as [`Spool::begin_work`], or nothing if none was.
    pub fn end_work(&self) {
        if !self.shared.state().lock_lost {
            self.add_notice(self.shared.suspects.end());
        }
    }

    /// Records that the process survived this work on the whole chunk, which is then no longer a suspect.
    pub fn acquit(&self, chunk: Seq, work: Work) {
        if !self.shared.state().lock_lost {
            self.add_notice(self.shared.suspects.acquit(chunk, work));
        }
    }

    fn add_notice(&self, words: Option<String>) {
        let notices = words.map(|words| ("spool_suspects", words));
        if notices.is_some() {
            self.shared.state().notices.extend(notices);
        }
    }

    /// Gives up an unfinished chunk for a reason that its caller states: finishes it after copying its frame to the quarantine.
    /// Returns what to log, or why that failed and the chunk stays. Blocks on the disk.
    pub fn give_up(&self, chunk: Seq, why: &str) -> Unreadable {
        let place = self.shared.state().chunks.get(&chunk).copied();
        match place {
            Some(place) => self.set_aside(
                chunk,
                place,
                why,
                "start an output with that folder as spool_dir",
            ),
            None => Unreadable::Finished,
        }
    }

    /// Finishes a chunk that cannot be delivered, after copying its frame to the quarantine. If the copy fails, the chunk
    /// stays.
    fn set_aside(&self, chunk: Seq, place: Place, why: &str, remedy: &str) -> Unreadable {
        let file = match self.file_of(place) {
            Ok(file) => file,
            Err(unreadable) => return unreadable,
        };
        let mut tag = Vec::new();
        let shown = LOGGED_TAG_BYTES.min(place.tag_len as usize);
        match file.read_at(&mut tag, shown, place.offset) {
            // It is only for the log.
            Err(error) if has_lost_bytes(&error) => tag = b"?".to_vec(),
            Err(error) => return Unreadable::Disk(error),
            Ok(()) => {}
        }
        let disk = &*self.shared.disk;
        let (name, bytes) = (set_aside_name(chunk), place.frame_bytes());
        let mut quarantine = Quarantine::new(disk);
        let copied = quarantine.copy(&name, &*file, place.frame(), bytes);
        let kept = copied.and_then(|lost| disk.sync_dir().map(|()| lost));
        self.shared.state().add_quarantined(quarantine.bytes);
        let lost = match kept {
            Ok(lost) => lost,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return self.report_missing(place);
            }
            Err(error) => return Unreadable::Disk(error),
        };
        let contents = vec![Content {
            chunk,
            events: Events::All,
        }];
        // Not waited for: if the note is lost, the next run sets the chunk aside again.
        let (answer, _) = oneshot::channel();
        if let Err(error) = self.queue_note(&Note::Done { contents }, Durability::Synced, answer) {
            return Unreadable::Disk(error);
        }
        self.finish(chunk);
        let tag = String::from_utf8_lossy(&tag).escape_debug().to_string();
        let segment = segment_name(chunk);
        let kept = match lost {
            0 => format!(
                "To deliver it, copy that file as {segment} into an empty folder and {remedy}; 'ferry spool export' shows its \
                 records"
            ),
            lost => format!("{lost} of these bytes are lost, and are zeros there"),
        };
        Unreadable::Corrupt {
            words: format!(
                "chunk {chunk} (tag '{tag}', {} bytes) is set aside and not delivered, except for events delivered before: \
                 {why}. It is kept in the spool's {name} ({bytes} bytes). {kept}",
                place.events_len()
            ),
            kept: true,
        }
    }

    /// Finishes a permanently damaged chunk, and copies its bytes to the quarantine.
    fn quarantine_damaged(&self, chunk: Seq, place: Place, file: &dyn File) -> Unreadable {
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
            // Retried when descriptors are free again, or the folder is back.
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

    /// Writes a file into `quarantine/` and syncs it, with a suffix if the name is taken. Returns its name. The file counts
    /// towards the limit. Blocks on the disk.
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

    /// Whether a segment's file was found missing and is not back.
    pub fn is_missing(&self, segment: Seq) -> bool {
        self.shared.state().missing.contains_key(&segment)
    }

    /// Requests a check whether a restart would find everything accepted, and returns the findings so far. To be called
    /// about once a second. Does not block.
    pub fn look(&self) -> Health {
        let mut state = self.shared.state();
        let missing_segments = state.missing_segments();
        let barred = state.barred.values().next().cloned();
        let health = Health {
            missing: missing_segments
                .filter(|(segment, _)| !state.barred.contains_key(segment))
                .map(|(segment, chunks)| (segment_name(segment), chunks))
                .collect(),
            trouble: state.trouble.clone().or(state.behind.clone()).or(barred),
            notices: std::mem::take(&mut state.notices),
            findings: std::mem::take(&mut state.findings),
        };
        state.retry = true;
        self.shared.work.notify_one();
        if !state.look_queued {
            state.look_queued = true;
            drop(state);
            // Fails if the spool is closed, and nothing is to be checked.
            let _ = self.jobs.send(Job::Look);
        }
        health
    }

    /// Sets the size of the caller's own files on the spool's disk: they leave less room for chunks.
    pub fn set_gathered(&self, bytes: u64) {
        self.shared.state().gathered = bytes;
    }

    /// Waits for a chunk that becomes visible after this call, including between the call and the first poll.
    pub fn more(&self) -> impl Future<Output = ()> + Send + '_ {
        self.shared.more.notified()
    }

    /// The current usage.
    pub fn usage(&self) -> Usage {
        let state = self.shared.state();
        Usage {
            bytes: state.bytes,
            quarantined: state.quarantined,
            limit: self.shared.limits.limit,
            unfinished: state.unfinished,
            missing: state.missing_segments().map(|(_, chunks)| chunks).sum(),
            absent: state.absent.values().map(|entry| entry.unfinished).sum(),
            oldest: state.oldest(),
            relocated: state.relocated_bytes,
        }
    }

    /// Writes everything queued, syncs, removes all but one bare segment if every chunk is finished, and ends the writer
    /// thread. Later appends return [`Refusal::Closed`]; reading goes on. Blocks on the disk. Idempotent.
    pub fn close(&self) {
        self.shared.state().closed = true;
        if !self.shared.state().lock_lost {
            self.shared.suspects.close();
        }
        self.stop(true);
    }

    /// Waits until the writer thread has nothing left to do.
    #[cfg(test)]
    pub(crate) fn wait_until_idle(&self) {
        let (done, idle) = channel();
        let _ = self.jobs.send(Job::WaitIdle(done));
        let _ = idle.recv();
    }

    /// Has what could not be read tried again.
    #[cfg(test)]
    fn retry_reading(&self) {
        self.shared.state().retry = true;
        self.shared.work.notify_one();
    }

    /// Waits until the thread that reads what earlier runs left has nothing to do and nothing to try again.
    #[cfg(test)]
    fn wait_until_indexed(&self) {
        let most = self.shared.limits.indexed;
        let busy = |state: &mut State| {
            state.retry && state.behind.is_some()
                || state.behind.is_none() && state.wants_more(most)
        };
        let waited = self.shared.indexed.wait_while(self.shared.state(), busy);
        drop(waited.expect("nothing panics with this lock"));
    }

    fn stop(&self, shrink: bool) {
        self.shared.state().ended = true;
        self.shared.work.notify_all();
        self.shared.indexed.notify_all();
        let behind = self
            .behind
            .lock()
            .expect("nothing panics with this lock")
            .take();
        if let Some(behind) = behind {
            // It holds no lock while it works, and leaves nothing half done if it panicked.
            let _ = behind.join();
        }
        let thread = self
            .thread
            .lock()
            .expect("nothing panics with this lock")
            .take();
        if let Some(thread) = thread {
            let _ = self.jobs.send(Job::Stop { shrink });
            // A thread that panicked has answered all callers by dropping their channels.
            let _ = thread.join();
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.stop(false);
    }
}

fn lock_lost() -> io::Error {
    let words = "another instance uses this spool's folder, since its lock file was removed. This one has stopped reading \
                 and writing there; stop the other one and restart this one to deliver what is left";
    with_remedy(ErrorKind::WouldBlock, words.to_owned())
}

fn no_room_to_relocate(bytes: u64, limit: u64) -> io::Error {
    let words =
        format!("the spool's {bytes} bytes leave no room to relocate events below {limit} bytes");
    io::Error::new(ErrorKind::QuotaExceeded, words)
}

fn closed() -> io::Error {
    io::Error::other(CLOSED)
}

/// A queued chunk. When its caller drops this, it is taken out of the queue unless it is already being written.
struct Queued<'s> {
    shared: &'s Shared,
    length: u64,
    slot: Arc<Slot>,
}

impl Queued<'_> {
    /// Takes the chunk out of the queue and drops its bytes. Returns whether it was still queued.
    fn cancel(&mut self) -> bool {
        let was_queued = self.slot.take().is_some();
        if was_queued {
            self.shared.state().reserved -= self.length;
        }
        was_queued
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.cancel();
    }
}
