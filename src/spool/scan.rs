//! Reads a spool's directory. The only reader of the format: recovery acts on the survey, the tool prints it. Changes
//! nothing, and works while a spool is running.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;

use bytes::Buf as _;

use super::disk::{Disk, File, remedy_of_reading, says_remedy, with_remedy};
use super::frame::{
    ALIGN, Begin, END, HEADER, Head, Kind, OtherVersion, QUARANTINE, RESERVE, SUSPECTS, VERSION,
    crc, is_read, is_spare, quarantine_place, segment_first, segment_name,
};
use super::manifest::{self, Entry, Manifest};
use super::note::{self, Ledger, Moved};
use super::suspects::{self, Record, Suspect};
use super::{Events, Pending, Seq, Stored};
use crate::buffers;
use crate::ids::Time;
use crate::ids::{ChunkId, chunk_id};

/// The minimum number of bytes read at once.
const BLOCK: usize = 64 * 1024;

/// Which chunks' payloads are verified. Notes and relocated chunks always are, since they settle events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Those in the last segment, and in segments that were last when they went missing: only these can be torn by a crash.
    LastSegment,
    /// Those in all segments.
    All,
}

/// The location of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number in its segment's name.
    pub segment: Seq,
    /// The offset of the tag in the file; the data follows it.
    pub offset: u64,
    /// The length of the tag, in bytes.
    pub tag_len: u32,
    /// The length of the data, in bytes, including a relocated chunk's origins.
    pub data_len: u32,
    /// The length of what precedes the events in a relocated chunk's data, in bytes; 0: it is not relocated.
    pub(super) origins: u32,
    /// The time of arrival.
    pub arrived: Time,
    /// The chunk's id.
    pub id: ChunkId,
    /// The CRC-32 of tag and data, if this run wrote them. Otherwise the id verifies them.
    pub(super) crc: Option<u32>,
}

impl Place {
    pub(super) fn new(
        segment: Seq,
        frame: u64,
        head: &Head,
        origins: u32,
        crc: Option<u32>,
    ) -> Place {
        Place {
            segment,
            offset: frame + HEADER,
            tag_len: head.tag_len,
            data_len: head.data_len,
            origins,
            arrived: head.arrived,
            id: head.id,
            crc,
        }
    }

    /// The length of the events, in bytes.
    pub fn events_len(&self) -> u32 {
        self.data_len - self.origins
    }

    /// Whether it was relocated: its events were in older chunks before.
    pub fn is_relocated(&self) -> bool {
        self.origins > 0
    }

    /// The offset of its frame.
    pub(super) fn frame(&self) -> u64 {
        self.offset - HEADER
    }

    /// The length of header, tag and data, in bytes.
    pub(super) fn frame_bytes(&self) -> u64 {
        HEADER + u64::from(self.tag_len) + u64::from(self.data_len)
    }

    /// Reads the tag without verifying it. It is cut short where the segment's file ends.
    pub fn tag(&self, file: &dyn File) -> io::Result<Vec<u8>> {
        let mut tag = Vec::new();
        file.read_at(&mut tag, self.tag_len as usize, self.offset)?;
        Ok(tag)
    }

    /// Reads and verifies the chunk from its segment's file.
    pub fn read(&self, file: &dyn File) -> io::Result<Result<Stored, Flaw>> {
        let tag_len = self.tag_len as usize;
        let len = tag_len + self.data_len as usize;
        let mut payload = buffers::take(len);
        file.read_at(&mut payload, len, self.offset)?;
        let mut data = buffers::share(payload);
        if data.len() < len {
            return Ok(Err(Flaw::Short));
        }
        if !self.matches(&data) {
            return Ok(Err(Flaw::Damaged));
        }
        let tag = data.split_to(tag_len).to_vec();
        data.advance(self.origins as usize);
        Ok(Ok(Stored {
            tag,
            data,
            arrived: self.arrived,
        }))
    }

    /// Whether `payload` (the whole tag and data) is what was written.
    fn matches(&self, payload: &[u8]) -> bool {
        match self.crc {
            Some(written) => crc(&[payload]) == written,
            None => {
                let (tag, data) = payload.split_at(self.tag_len as usize);
                chunk_id(tag, data) == self.id
            }
        }
    }
}

/// Why a chunk's bytes are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The file ends before the chunk does.
    Short,
    /// The bytes differ.
    Damaged,
}

/// A range of bytes in which no frame can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The offset in the file.
    pub offset: u64,
    /// The length, in bytes.
    pub bytes: u64,
    /// The numbers of the frames that are lost there.
    pub missing: Range<Seq>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage {
            offset,
            bytes,
            missing,
        } = self;
        write!(f, "{bytes} bytes at offset {offset} are damaged")?;
        match missing.end - missing.start {
            1 => write!(f, " (frame {})", missing.start),
            _ => write!(f, " (frames {} to {})", missing.start, missing.end - 1),
        }
    }
}

/// Whole chunks with numbers that frames of newer segments have too. A chunk that was refused after an uncertain write may
/// exist all the same; but an accepted chunk looks the same if its file was missing while its number was reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubted {
    /// The offset of the first one in the file.
    pub offset: u64,
    /// The length up to the end of the last one, in bytes.
    pub bytes: u64,
    /// The number of chunks.
    pub chunks: u64,
}

impl fmt::Display for Doubted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Doubted {
            offset,
            bytes,
            chunks,
        } = self;
        write!(
            f,
            "{chunks} whole chunks in the {bytes} bytes at offset {offset} have numbers that a newer segment has too: they \
             were refused when written, or their file was put back too late"
        )
    }
}

/// A segment that should exist and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The number in its name.
    pub first: Seq,
    /// The known part of its contents.
    pub lost: Lost,
}

/// The known contents of a missing segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Known from the manifest.
    Chunks {
        /// The number of chunks that were unfinished when the manifest was written.
        unfinished: u64,
        /// The segment was still being written then.
        perhaps_more: bool,
    },
    /// Known from the next segment: frame numbers, including those of other missing segments between the same two.
    Frames(Range<Seq>),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is missing: ", segment_name(self.first))?;
        match &self.lost {
            Lost::Frames(frames) => {
                let (from, to) = (frames.start, frames.end - 1);
                write!(f, "frames {from} to {to} are lost")
            }
            Lost::Chunks { unfinished: 0, .. } => f.write_str("it may have undelivered chunks"),
            Lost::Chunks {
                unfinished,
                perhaps_more,
            } => {
                let more = if *perhaps_more { ", perhaps more" } else { "" };
                write!(
                    f,
                    "{unfinished} chunks in it{more} were not delivered at the last count"
                )
            }
        }
    }
}

/// A segment that was read. Sizes are in bytes.
#[derive(Debug)]
pub struct Segment {
    /// The number in its name.
    pub first: Seq,
    /// The newest segment when this one began, if its Begin frame names it.
    previous: Option<Seq>,
    /// The size of the file.
    pub bytes: u64,
    /// The length of the Begin frame, if that is readable.
    pub begin: Option<u64>,
    /// The chunks, by number.
    pub chunks: Vec<(Seq, Place)>,
    /// The number of those that were relocated.
    pub relocated: u64,
    /// The number of notes.
    pub notes: u64,
    /// The unreadable ranges.
    pub damage: Vec<Damage>,
    /// The size of void frames: never acknowledged, with numbers that a newer segment reuses.
    pub void: u64,
    /// The chunks among the void frames that exist nowhere else.
    pub doubted: Option<Doubted>,
    /// The whole chunks among the void frames.
    renumbered: Vec<Renumbered>,
    /// The number of bytes after the last whole frame, of a write in progress or cut short. Only in the last segment, and
    /// in one that was missing when the next one began.
    pub torn: u64,
    /// The number of bytes after the last frame that are left from another segment, to be overwritten.
    pub room: u64,
    /// The format version in the Begin frame, if that is readable.
    pub(super) version: u32,
    /// The Begin frame marks the file as reused from another segment.
    reused: bool,
    /// Greater than every frame number in the segment.
    pub next: Seq,
}

impl Segment {
    /// The name of its file.
    pub fn name(&self) -> String {
        segment_name(self.first)
    }

    /// Whether any frame is readable.
    pub(super) fn is_readable(&self) -> bool {
        self.begin.is_some() || self.notes > 0 || !self.chunks.is_empty()
    }

    /// All bytes of the segment, if no frame is readable: then it is not just an unfinished write.
    pub fn unreadable(&self) -> Option<Damage> {
        (self.torn > 0 && !self.is_readable()).then(|| Damage {
            offset: 0,
            bytes: self.torn,
            missing: self.first..self.first + 1,
        })
    }

    /// Whether the Begin frame is the only frame.
    pub(super) fn is_bare(&self) -> bool {
        self.begin == Some(self.bytes)
    }

    /// The numbers of segments and frames that are missing between this segment and the next one, `newer`, if that names
    /// another one as its predecessor.
    pub(super) fn gap_before(&self, newer: &Segment) -> Option<Missing> {
        let first = newer.previous.filter(|first| *first > self.first)?;
        let read_to = self.damage.last().map_or(0, |damage| damage.missing.end);
        Some(Missing {
            first,
            lost: Lost::Frames(self.next.max(read_to).min(first)..newer.first),
        })
    }

    /// Keeps those of the chunks among void frames that are nowhere else. `is_known` says whether a readable chunk has an id,
    /// `exists` whether one has a number.
    fn keep_doubted(&mut self, is_known: impl Fn(&ChunkId) -> bool, exists: impl Fn(Seq) -> bool) {
        self.renumbered.retain(|chunk| {
            // A void frame settles nothing: the events are still where they were.
            let origins = &chunk.origins;
            let is_at_origin = !origins.is_empty() && origins.iter().all(|it| exists(*it));
            !is_known(&chunk.id) && !is_at_origin
        });
        let places = self.renumbered.iter().map(|chunk| &chunk.place);
        let first = places.clone().map(|place| place.start).min();
        let end = places.map(|place| place.end).max();
        self.doubted = first.zip(end).map(|(offset, end)| Doubted {
            offset,
            bytes: end - offset,
            chunks: self.renumbered.len() as u64,
        });
    }
}

/// A whole chunk among void frames.
#[derive(Debug)]
struct Renumbered {
    id: ChunkId,
    /// Its bytes in the file.
    place: Range<u64>,
    /// The chunks that its events were in before, if it is relocated.
    origins: Vec<Seq>,
}

/// A frame with a valid header.
#[derive(Clone, Copy)]
struct Frame {
    offset: u64,
    head: Head,
}

/// The contents of a spool's directory. Files are listed with their sizes in bytes.
#[derive(Debug, Default)]
pub struct Survey {
    /// The spool's id, if any frame or manifest is readable.
    pub spool: Option<u64>,
    /// The segments, oldest first.
    pub segments: Vec<Segment>,
    /// Segments of another spool or version, with the reason. They are left alone.
    pub foreign: Vec<(String, String)>,
    /// Segments that need no delivery: finished, removed and put back since, or begun when the machine stopped.
    pub returned: Vec<(String, u64)>,
    /// The files in the quarantine.
    pub quarantine: Vec<(String, u64)>,
    /// The spares.
    pub spares: Vec<(String, u64)>,
    /// The result of all notes.
    pub(super) ledger: Ledger,
    /// The ids of the most recently accepted chunks, oldest first.
    pub(super) window: VecDeque<ChunkId>,
    /// Empty segment files, left by interrupted creations.
    pub empty: Vec<String>,
    /// Segments that disappeared after the directory was listed.
    pub(super) vanished: Vec<Seq>,
    /// Whether a reserve exists.
    pub(super) has_reserve: bool,
    /// Whether the file `suspects` exists.
    has_suspects: bool,
    /// Its contents, or why it cannot be read.
    suspects: Option<Result<Record, String>>,
    /// The current manifest, and the index of its file.
    pub(super) manifest: Option<(usize, Manifest)>,
    /// The only manifest belongs to another spool.
    pub(super) foreign_manifest: bool,
    /// The latest generation among the manifests and segments.
    pub(super) generation: u64,
    /// Segments that the manifest lists and that are missing.
    pub(super) absent: BTreeMap<Seq, Entry>,
}

impl Survey {
    /// Whether a chunk is finished as a whole, according to the notes. One that was settled in parts is not: it is read
    /// again, and what is settled of it is skipped.
    pub fn is_finished(&self, chunk: Seq) -> bool {
        self.ledger.settled(chunk) == Some(&Events::All)
    }

    /// The settled events of an unfinished chunk.
    pub fn settled(&self, chunk: Seq) -> &[Range<u32>] {
        match self.ledger.settled(chunk) {
            Some(Events::Runs(runs)) => runs,
            Some(Events::All) | None => &[],
        }
    }

    /// The events of a chunk that are in relocated chunks, which are all in this survey. They are settled as well.
    pub fn relocated(&self, chunk: Seq) -> Option<&Events> {
        self.ledger.relocated(chunk)
    }

    /// The missing segments: those that the manifest lists, and those older than the manifest that left a gap between two
    /// existing ones. Segments are removed oldest first, so a gap is never legitimate.
    pub fn missing(&self) -> Vec<Missing> {
        let is_reported = |first: &Seq| {
            let name = segment_name(*first);
            self.vanished.contains(first)
                || self.foreign.iter().any(|(foreign, _)| *foreign == name)
        };
        let by_manifest = self
            .absent
            .iter()
            .filter(|(_, entry)| entry.may_hold_chunks());
        let by_manifest = by_manifest.map(|(first, entry)| Missing {
            first: *first,
            lost: Lost::Chunks {
                unfinished: entry.unfinished,
                perhaps_more: entry.open,
            },
        });
        let known_from = self.manifest.as_ref();
        let known_from = known_from.map_or(Seq::MAX, |(_, manifest)| manifest.since);
        let between = |pair: &[Segment]| {
            let [older, newer] = pair else { return None };
            let gap = older.gap_before(newer)?;
            let is_unknown = gap.first < known_from && !self.absent.contains_key(&gap.first);
            is_unknown.then_some(gap)
        };
        let mut missing: Vec<Missing> = self.segments.windows(2).filter_map(between).collect();
        missing.extend(by_manifest);
        missing.retain(|missing| !is_reported(&missing.first));
        missing.sort_unstable_by_key(|missing| missing.first);
        missing
    }

    /// Whether the newest segment ever begun is missing: the numbers that it used are then unknown.
    pub(super) fn newest_is_absent(&self) -> bool {
        let newest = self.segments.last().map(|segment| segment.first);
        self.manifest
            .as_ref()
            .is_some_and(|(_, manifest)| newest.is_none_or(|newest| newest < manifest.newest()))
    }

    /// The number of segments, from the oldest on, that are complete. Only the last one may end in an unfinished write,
    /// unless missing segments were begun after it.
    pub fn closed(&self) -> usize {
        match self.newest_is_absent() {
            true => self.segments.len(),
            false => self.segments.len().saturating_sub(1),
        }
    }

    /// The chunk being worked on by the running or last process, and the chunks at which earlier processes ended.
    pub fn suspected(&self) -> (Option<Suspect>, &[Suspect]) {
        match &self.suspects {
            Some(Ok(record)) => (record.under_way(), record.suspects()),
            Some(Err(_)) | None => (None, &[]),
        }
    }

    fn read_suspects(&mut self, disk: &dyn Disk) {
        // Without a readable segment or manifest there is no chunk to suspect.
        let spool = self.spool.filter(|_| self.has_suspects);
        self.suspects = spool.map(|spool| suspects::read(disk, spool));
    }

    pub(super) fn suspects(&self) -> Result<Record, &str> {
        match &self.suspects {
            Some(Ok(record)) => Ok(record.clone()),
            Some(Err(why)) => Err(why),
            None => Ok(Record::default()),
        }
    }

    /// All chunks in order, with their numbers.
    pub fn chunks(&self) -> impl Iterator<Item = (Seq, Place)> + '_ {
        let segments = self.segments.iter();
        segments.flat_map(|segment| segment.chunks.iter().copied())
    }

    /// Batches begun and not ended that contain an unfinished chunk.
    pub fn pending(&self) -> Vec<Pending> {
        let unfinished = self.chunks().map(|(chunk, _)| chunk);
        let unfinished: HashSet<Seq> = unfinished
            .filter(|chunk| !self.is_finished(*chunk))
            .collect();
        self.ledger.pending(|chunk| unfinished.contains(&chunk))
    }
}

/// The lock file of a spool.
const LOCK: &str = "lock";
/// The other files of a spool besides its segments.
const FILES: [&str; 4] = [manifest::NAMES[0], manifest::NAMES[1], RESERVE, SUSPECTS];

/// Whether a directory contains files of a spool. Other programs have lock files of the same name: it only counts if it
/// is the only file, as in a new spool.
pub fn is_spool(disk: &dyn Disk) -> io::Result<bool> {
    let files = disk.list()?;
    let mut names = files.iter().map(|(name, _)| name.as_str());
    let new = !files.is_empty() && names.clone().all(|name| name == LOCK);
    let is_spool_file = |name: &str| {
        FILES.contains(&name)
            || name.starts_with(QUARANTINE)
            || [".seg", ".spare", ".copy"]
                .iter()
                .any(|end| name.ends_with(end))
    };
    Ok(new || names.any(is_spool_file))
}

/// Reads a directory. Segments that are removed meanwhile are skipped: they were finished.
///
/// Fails only if the disk does.
pub fn survey(disk: &dyn Disk, check: Check) -> io::Result<Survey> {
    survey_while(disk, check, &mut |_| {})
}

/// Like [`survey`]; calls `read` with the size of each segment that was read. See [`segment_bytes`].
pub fn survey_while(
    disk: &dyn Disk,
    check: Check,
    read: &mut dyn FnMut(u64),
) -> io::Result<Survey> {
    // Before the files are listed, so that a segment begun meanwhile is not reported missing.
    let manifests = manifest::read(disk);
    let (mut survey, names) = list(disk)?;
    let lengths: BTreeMap<Seq, u64> = names.iter().copied().collect();
    // One file is open at a time: there may be more segments than descriptors.
    let mut buffer = Vec::new();
    let mut labels = Vec::new();
    for (first, _) in names {
        match Source::open(disk, first, &mut buffer)? {
            Some(mut source) => labels.push((first, source.label()?)),
            None => survey.vanished.push(first),
        }
    }
    let manifests = manifests?;
    survey.spool = match find_spool_id(disk, &labels, &mut buffer)? {
        None => manifest::newest(&manifests, None).map(|(_, manifest)| manifest.spool),
        spool => spool,
    };
    survey.read_suspects(disk);
    let mut own = Vec::new();
    for (first, label) in labels {
        match foreign_reason(disk, first, label, survey.spool, &mut buffer)? {
            Some(what) => survey.foreign.push((segment_name(first), what)),
            None => own.push((first, label)),
        }
    }
    let listed = manifest::newest(&manifests, survey.spool);
    let begun_with = own
        .iter()
        .filter_map(|(_, label)| label.as_ref()?.0.generation());
    let written = manifests
        .iter()
        .flatten()
        .map(|manifest| manifest.generation);
    survey.generation = begun_with.chain(written).max().unwrap_or(0);
    survey.foreign_manifest = listed.is_none() && manifests.iter().any(Option::is_some);
    let mut uncommitted = Vec::new();
    let listed = listed.filter(|(_, manifest)| {
        // A segment's Begin frame is on the medium before the segment is listed, and before anything in it is answered.
        let is_given_up = |(first, label): &mut (Seq, Label)| {
            *first > manifest.newest()
                && label.as_ref().is_none_or(|(begin, _)| {
                    let generation = begin.generation();
                    generation.is_some_and(|generation| generation <= manifest.generation)
                })
        };
        uncommitted = own
            .extract_if(.., is_given_up)
            .map(|(first, _)| first)
            .collect();
        is_up_to_date(manifest, &own)
    });
    survey.manifest = listed.map(|(slot, manifest)| (slot, manifest.clone()));
    let bounds = Bounds::new(&own, listed.map(|(_, manifest)| manifest));

    for (first, _) in &own {
        let bound = bounds.of(*first);
        // A segment that was missing when the next one began was the last one then, and was not repaired since.
        let may_be_torn = bound.is_none_or(|bound| !bound.is_next);
        let check_chunks = may_be_torn || check == Check::All;
        let Some(source) = Source::open(disk, *first, &mut buffer)? else {
            survey.vanished.push(*first);
            continue;
        };
        let segment = read_segment(source, bound, check_chunks, &mut survey)?;
        read(segment.bytes);
        let whole = segment.damage.is_empty() && segment.torn == 0 && segment.void == 0;
        match whole || exists(disk, *first)? {
            true => survey.segments.push(segment),
            false => survey.vanished.push(*first),
        }
    }
    find_doubted(&mut survey);
    if let Some((_, manifest)) = survey.manifest.clone() {
        let firsts = survey.segments.iter().map(|segment| segment.first);
        let oldest = firsts.filter(|first| !manifest.is_finished(*first)).min();
        let is_returned = |segment: &mut Segment| {
            let mut chunks = segment.chunks.iter();
            // A finished segment that was only not removed yet is older than all others, and its notes exist. A chunk in
            // several objects is settled in parts, and no note tells how many events it has.
            let is_left = oldest.is_some_and(|oldest| segment.first < oldest)
                && chunks.all(|(chunk, _)| survey.ledger.settled(*chunk).is_some());
            manifest.is_finished(segment.first) && !is_left
        };
        let returned = survey.segments.extract_if(.., is_returned);
        survey.returned = returned
            .map(|segment| (segment.name(), segment.bytes))
            .collect();
        let mut absent = manifest.segments;
        absent.retain(|first, _| survey.segments.iter().all(|there| there.first != *first));
        if !absent.is_empty()
            && let Some((_, now)) = manifest::newest(&manifest::read(disk)?, survey.spool)
        {
            // A segment finished meanwhile is not missing.
            absent.retain(|first, _| now.segments.contains_key(first));
        }
        survey.absent = absent;
    }
    for first in uncommitted {
        let bytes = lengths.get(&first).copied().unwrap_or(0);
        survey.returned.push((segment_name(first), bytes));
    }
    Ok(survey)
}

/// Lists a directory. Returns the segments with their sizes, oldest first, beside the survey's lists of the other files.
fn list(disk: &dyn Disk) -> io::Result<(Survey, Vec<(Seq, u64)>)> {
    let mut survey = Survey::default();
    let mut names = Vec::new();
    for (name, bytes) in disk.list()? {
        if let Some(first) = segment_first(&name) {
            names.push((first, bytes));
        } else if name.starts_with(QUARANTINE) {
            survey.quarantine.push((name, bytes));
        } else if is_spare(&name) {
            survey.spares.push((name, bytes));
        } else if name == RESERVE {
            survey.has_reserve = true;
        } else if name == SUSPECTS {
            survey.has_suspects = true;
        }
    }
    names.sort_unstable();
    let empty = names.extract_if(.., |(_, bytes)| *bytes == 0);
    survey.empty = empty.map(|(first, _)| segment_name(first)).collect();
    Ok((survey, names))
}

/// What a run needs to know before it accepts chunks, of a spool in good order.
pub(super) struct Outline {
    /// The newest segment as the only one, and what is known without reading others.
    pub(super) survey: Survey,
    /// The older segments, with the sizes of their files.
    pub(super) older: BTreeMap<Seq, u64>,
    /// The survey's ledger is that of the whole log, provided that the relocated chunks in it are there.
    pub(super) has_checkpoint: bool,
    /// Otherwise the ledger as it was when this segment began, if that is known.
    pub(super) base: Option<(Seq, Ledger)>,
}

/// Reads the newest segment and the names of the others. Returns `None` if that does not tell all that a run needs to know
/// before it accepts chunks: unless the manifest covers every segment, and the newest one is whole.
pub(super) fn outline(disk: &dyn Disk) -> io::Result<Option<Outline>> {
    let manifests = manifest::read(disk);
    let (mut survey, mut names) = list(disk)?;
    let Some((newest, _)) = names.pop().filter(|_| !names.is_empty()) else {
        return Ok(None);
    };
    let mut buffer = Vec::new();
    let label = match Source::open(disk, newest, &mut buffer)? {
        Some(mut source) => source.label()?,
        None => None,
    };
    let Some((head, _)) = label.filter(|(_, version)| is_read(*version)) else {
        return Ok(None);
    };
    survey.spool = Some(head.spool);
    let manifests = manifests?;
    let Some((slot, manifest)) = manifest::newest(&manifests, survey.spool) else {
        return Ok(None);
    };
    let older: BTreeMap<Seq, u64> = names.into_iter().collect();
    // One segment may be newer than the manifest, if no other manifest was written since.
    let is_known = newest == manifest.newest()
        || newest > manifest.newest() && head.generation() == Some(manifest.generation + 1);
    let firsts = || older.keys().copied();
    if !is_known || firsts().any(|first| first > manifest.newest()) {
        return Ok(None);
    }
    // Segments that were finished and not removed yet are older than all others: anything else was put back.
    let oldest = firsts().find(|first| !manifest.is_finished(*first));
    let oldest = oldest.unwrap_or(newest);
    if firsts().any(|first| first > oldest && manifest.is_finished(first)) {
        return Ok(None);
    }
    survey.generation = manifest.generation.max(head.generation().unwrap_or(0));
    survey.absent = manifest.segments.clone();
    survey
        .absent
        .retain(|first, _| *first != newest && !older.contains_key(first));
    survey.manifest = Some((slot, manifest.clone()));
    survey.read_suspects(disk);
    let saved = manifest.checkpoint.as_ref();
    let mut saved = saved.and_then(|saved| Some((saved.segment, Ledger::restore(&saved.ledger)?)));
    let current = saved.take_if(|(segment, _)| *segment == newest);
    let has_checkpoint = current.is_some();
    let base = saved.filter(|(segment, _)| *segment < newest);
    // The notes in the newest segment follow.
    survey.ledger = current.map(|(_, ledger)| ledger).unwrap_or_default();
    let Some(source) = Source::open(disk, newest, &mut buffer)? else {
        return Ok(None);
    };
    let segment = read_segment(source, None, true, &mut survey)?;
    let is_whole = segment.begin.is_some() && segment.damage.is_empty() && segment.void == 0;
    survey.segments.push(segment);
    Ok(is_whole.then_some(Outline {
        survey,
        older,
        has_checkpoint,
        base,
    }))
}

/// What one segment turned out to be.
pub(super) enum Found {
    /// It is there.
    Segment(Box<Segment>),
    /// Its file is not there.
    Gone,
    /// Its file is there, and this user may not open it.
    Barred(io::Error),
    /// It belongs to another spool or version, for this reason.
    Foreign(String),
}

/// A reader of single segments, behind the start of a run.
pub(super) struct Reader<'d> {
    pub(super) disk: &'d dyn Disk,
    pub(super) spool: u64,
    /// Everything that begins after segments, and so bounds their frame numbers: segments that exist or should exist.
    pub(super) bounds: BTreeSet<Seq>,
    /// Those that the manifest lists, which bound others wherever they are.
    pub(super) listed: BTreeSet<Seq>,
    /// The files in the quarantine.
    pub(super) quarantine: Vec<(String, u64)>,
    pub(super) buffer: Vec<u8>,
}

impl Reader<'_> {
    fn label(&mut self, segment: Seq) -> io::Result<Option<Label>> {
        match Source::open(self.disk, segment, &mut self.buffer)? {
            Some(mut source) => source.label().map(Some),
            None => Ok(None),
        }
    }

    fn foreign(&mut self, segment: Seq, label: Label) -> io::Result<Option<String>> {
        foreign_reason(
            self.disk,
            segment,
            label,
            Some(self.spool),
            &mut self.buffer,
        )
    }

    /// The bound of a segment's frame numbers. `None`: it is the newest.
    fn bound(&mut self, segment: Seq) -> io::Result<Option<Bound>> {
        while let Some(first) = self.bounds.range(segment + 1..).next().copied() {
            let label = match self.label(first) {
                // What it begins with is not known.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    return Ok(Some(Bound::new(segment, first, None)));
                }
                label => label?,
            };
            let foreign = match label {
                Some(label) => self.foreign(first, label)?.is_some(),
                None => false,
            };
            if foreign && !self.listed.contains(&first) {
                self.bounds.remove(&first);
                continue;
            }
            let begin = label.filter(|_| !foreign);
            let begin = begin.map(|label| label.map(|(head, _)| head));
            return Ok(Some(Bound::new(segment, first, begin)));
        }
        Ok(None)
    }

    /// Reads a segment, or the first `len` bytes of it. What its notes and relocated chunks settle goes into a ledger.
    pub(super) fn read(
        &mut self,
        segment: Seq,
        len: u64,
        ledger: &mut Ledger,
    ) -> io::Result<Found> {
        let label = match self.label(segment) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Ok(Found::Barred(error));
            }
            label => label?,
        };
        let Some(label) = label else {
            return Ok(Found::Gone);
        };
        if let Some(why) = self.foreign(segment, label)? {
            return Ok(Found::Foreign(why));
        }
        let bound = self.bound(segment)?;
        let mut survey = Survey {
            spool: Some(self.spool),
            quarantine: std::mem::take(&mut self.quarantine),
            ledger: std::mem::take(ledger),
            ..Survey::default()
        };
        let read = match Source::open(self.disk, segment, &mut self.buffer) {
            Ok(Some(mut source)) => {
                source.len = source.len.min(len);
                let may_be_torn = bound.is_none_or(|bound| !bound.is_next);
                read_segment(source, bound, may_be_torn, &mut survey).map(Some)
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        (self.quarantine, *ledger) = (survey.quarantine, survey.ledger);
        let Some(read) = read? else {
            return Ok(Found::Gone);
        };
        let whole = read.damage.is_empty() && read.torn == 0 && read.void == 0;
        Ok(match whole || exists(self.disk, segment)? {
            true => Found::Segment(Box::new(read)),
            false => Found::Gone,
        })
    }

    /// Whether a relocated chunk is where it was written, whole.
    pub(super) fn is_whole(&mut self, moved: Moved) -> io::Result<bool> {
        let source = Source::open(self.disk, moved.segment, &mut self.buffer)?;
        let Some(mut source) = source else {
            return Ok(false);
        };
        let Some(head) = source.head(moved.offset)? else {
            return Ok(false);
        };
        let is_it =
            (head.kind, head.number, head.spool) == (Kind::Relocated, moved.chunk, self.spool);
        Ok(is_it && head.matches(source.bytes(moved.offset + HEADER, head.payload())?))
    }

    /// Finds the chunks of a segment that exist only among void frames. Reads all segments if there may be any, since a
    /// refused chunk that was accepted later is not doubted. `was_there`: whether this run knew a chunk's segment, and removed
    /// it since. Returns `false` if `go_on` did.
    pub(super) fn find_doubted(
        &mut self,
        segment: &mut Segment,
        was_there: impl Fn(Seq) -> bool,
        go_on: impl Fn() -> bool,
    ) -> io::Result<bool> {
        if segment.renumbered.is_empty() {
            return Ok(true);
        }
        let renumbered = std::mem::take(&mut segment.renumbered);
        let mut ids: HashSet<ChunkId> = renumbered.iter().map(|chunk| chunk.id).collect();
        let origins = renumbered.iter().flat_map(|chunk| &chunk.origins);
        let mut origins: HashSet<Seq> = origins.copied().collect();
        origins.retain(|origin| !was_there(*origin));
        for first in self.bounds.clone() {
            if !go_on() {
                return Ok(false);
            }
            // What it settles is applied when it is its turn.
            if let Found::Segment(other) = self.read(first, u64::MAX, &mut Ledger::default())? {
                for (chunk, place) in &other.chunks {
                    ids.remove(&place.id);
                    origins.remove(chunk);
                }
            }
        }
        segment.renumbered = renumbered;
        segment.keep_doubted(|id| !ids.contains(id), |origin| !origins.contains(&origin));
        Ok(true)
    }
}

/// The total size of all segments in a directory, in bytes.
pub fn segment_bytes(disk: &dyn Disk) -> io::Result<u64> {
    let files = disk.list()?.into_iter();
    let segments = files.filter(|(name, _)| segment_first(name).is_some());
    Ok(segments.map(|(_, bytes)| bytes).sum())
}

/// Whether no segment was begun without a manifest, as earlier versions do. One may be newer than the manifest, since a
/// segment is durable before the manifest that lists it.
fn is_up_to_date(manifest: &Manifest, labels: &[(Seq, Label)]) -> bool {
    let newer = labels
        .iter()
        .filter(|(first, _)| *first > manifest.newest());
    let [newer] = newer.collect::<Vec<_>>()[..] else {
        return labels.iter().all(|(first, _)| *first <= manifest.newest());
    };
    let (_, label) = newer;
    label.is_some_and(|(begin, _)| begin.generation() == Some(manifest.generation + 1))
}

/// Finds the chunks that exist only among void frames. A refused chunk that was accepted later is not doubted.
fn find_doubted(survey: &mut Survey) {
    if survey
        .segments
        .iter()
        .all(|segment| segment.renumbered.is_empty())
    {
        return;
    }
    let known: HashSet<ChunkId> = survey.chunks().map(|(_, place)| place.id).collect();
    let numbers: HashSet<Seq> = survey.chunks().map(|(chunk, _)| chunk).collect();
    for segment in &mut survey.segments {
        segment.keep_doubted(|id| known.contains(id), |chunk| numbers.contains(&chunk));
    }
}

/// Whether a segment still exists: a removed one is truncated or overwritten while it is read.
fn exists(disk: &dyn Disk, segment: Seq) -> io::Result<bool> {
    match disk.id(&segment_name(segment)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The start of a segment: the header of its Begin frame, and the format version.
type Label = Option<(Head, u32)>;

/// The id of the spool that the segments belong to, taken from the newest readable one.
fn find_spool_id(
    disk: &dyn Disk,
    labels: &[(Seq, Label)],
    buffer: &mut Vec<u8>,
) -> io::Result<Option<u64>> {
    let newest_first = || labels.iter().rev();
    if let Some((head, _)) = newest_first().find_map(|(_, label)| *label) {
        return Ok(Some(head.spool));
    }
    for (first, _) in newest_first() {
        if let Some(mut source) = Source::open(disk, *first, buffer)?
            && let Some((_, head)) = source.search(0, |_| true)?
        {
            return Ok(Some(head.spool));
        }
    }
    Ok(None)
}

/// Why a segment is foreign, if it certainly is.
fn foreign_reason(
    disk: &dyn Disk,
    first: Seq,
    label: Label,
    spool: Option<u64>,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<String>> {
    let Some((head, version)) = label else {
        return Ok(None);
    };
    if Some(head.spool) != spool {
        return Ok(Some("it belongs to another spool".into()));
    }
    if is_read(version) {
        return Ok(None);
    }
    // The version counts only if the frame is undamaged.
    let Some(mut source) = Source::open(disk, first, buffer)? else {
        return Ok(None);
    };
    let payload = source.bytes(HEADER, head.payload())?;
    Ok(match head.matches(payload) {
        true => Begin::decode(payload).err().map(|OtherVersion(version)| {
            format!("its format is version {version}, this program reads version {VERSION} and older ones")
        }),
        false => None,
    })
}

/// The upper bound of a segment's frame numbers.
#[derive(Clone, Copy)]
struct Bound {
    /// The first number of the next segment.
    first: Seq,
    /// The next segment certainly began right after this one: all numbers in between were used.
    is_next: bool,
}

impl Bound {
    /// The bound of a segment that the one at `first` sets, which exists if `begin` is `Some`, with this header of its Begin
    /// frame if that is readable.
    fn new(segment: Seq, first: Seq, begin: Option<Option<Head>>) -> Bound {
        let follows_directly = |begin: Head| {
            let previous = begin.previous();
            !begin.follows_gap() && previous.is_none_or(|previous| previous == segment)
        };
        let is_next = begin.is_some_and(|begin| begin.is_none_or(follows_directly));
        Bound { first, is_next }
    }
}

/// The upper bounds of all segments' frame numbers. The next segment voids frames by having begun, even if it is missing
/// now. But a returned segment that is not listed voids nothing in listed ones, which may have been continued without it.
struct Bounds {
    /// The existing segments, with the headers of their Begin frames.
    present: BTreeMap<Seq, Option<Head>>,
    /// The segments that exist or should exist.
    all: BTreeSet<Seq>,
    /// Those that the manifest lists or does not cover.
    counted: BTreeSet<Seq>,
}

impl Bounds {
    fn new(own: &[(Seq, Label)], manifest: Option<&Manifest>) -> Bounds {
        let present = own
            .iter()
            .map(|(first, label)| (*first, label.map(|(head, _)| head)));
        let present: BTreeMap<_, _> = present.collect();
        let listed = manifest
            .iter()
            .flat_map(|manifest| manifest.segments.keys());
        let all: BTreeSet<Seq> = present.keys().chain(listed).copied().collect();
        let is_counted =
            |first: &&Seq| manifest.is_none_or(|manifest| !manifest.is_finished(**first));
        Bounds {
            counted: all.iter().filter(is_counted).copied().collect(),
            present,
            all,
        }
    }

    fn of(&self, segment: Seq) -> Option<Bound> {
        let among = match self.counted.contains(&segment) {
            true => &self.counted,
            false => &self.all,
        };
        let first = among.range(segment + 1..).next().copied()?;
        Some(Bound::new(
            segment,
            first,
            self.present.get(&first).copied(),
        ))
    }
}

fn read_segment(
    mut source: Source<'_>,
    bound: Option<Bound>,
    check_chunks: bool,
    survey: &mut Survey,
) -> io::Result<Segment> {
    let mut segment = Segment {
        first: source.first,
        previous: None,
        bytes: source.len,
        begin: None,
        chunks: Vec::new(),
        relocated: 0,
        notes: 0,
        damage: Vec::new(),
        void: 0,
        doubted: None,
        renumbered: Vec::new(),
        torn: 0,
        room: 0,
        version: 0,
        reused: false,
        next: source.first,
    };
    let spool = survey.spool;
    let suspect: Vec<_> = survey
        .quarantine
        .iter()
        .filter_map(|(name, bytes)| Some((quarantine_place(name)?, bytes)))
        .filter(|((first, _), _)| *first == source.first)
        .map(|((_, offset), bytes)| offset..offset + bytes)
        .collect();
    let mut at = 0;
    // The start of the unreadable range that ends at `at`, if there is one.
    let mut broken: Option<u64> = None;
    while at < source.len {
        let next = segment.next;
        let fits = |head: &Head| Some(head.spool) == spool && head.number >= next;
        let head = source.head(at)?.filter(|head| fits(head));
        // The last frame's padding may be missing.
        let whole = head.filter(|head| at + HEADER + head.payload() <= source.len);
        let Some(head) = whole else {
            broken.get_or_insert(at);
            let found = source.search(at + ALIGN, fits)?;
            at = found.map_or(source.len, |(offset, _)| offset);
            continue;
        };
        if let Some(bound) = bound.filter(|bound| head.number >= bound.first) {
            // Nothing after a void frame was acknowledged, unless the file was missing meanwhile.
            segment.renumbered = source.whole_chunks(at, fits)?;
            let end = broken.take().unwrap_or(at);
            record_unread(&mut segment, end..source.len, Some(bound.first));
            return Ok(segment);
        }
        let frame = Frame { offset: at, head };
        at = (at + head.length()).min(source.len);
        // Verify what an earlier run quarantined, so that it is not found damaged again when it is read.
        let check = check_chunks || suspect.iter().any(|bytes| bytes.contains(&frame.offset));
        if !add_frame(&mut source, frame, check, &mut segment, survey)? {
            broken.get_or_insert(frame.offset);
            continue;
        }
        if let Some(start) = broken.take() {
            record_unread(&mut segment, start..frame.offset, Some(head.number));
        }
        segment.next = head.number + 1;
    }
    if let Some(start) = broken {
        // Older frames were skipped by their numbers.
        let bound = bound.filter(|bound| bound.is_next).map(|bound| bound.first);
        let all_read = bound.is_none_or(|bound| bound <= segment.next);
        if segment.reused && all_read && source.bytes(start, ALIGN)? == END {
            segment.room = source.len - start;
        } else {
            record_unread(&mut segment, start..source.len, bound);
        }
    }
    Ok(segment)
}

/// Classifies a range of unread bytes as torn, void or damaged. `until` is the frame number that follows it.
fn record_unread(segment: &mut Segment, range: Range<u64>, until: Option<Seq>) {
    let bytes = range.end - range.start;
    match until {
        None => segment.torn = bytes,
        // No number is missing, and so no frame: the run that wrote them abandoned them.
        Some(until) if until <= segment.next => segment.void += bytes,
        Some(until) => segment.damage.push(Damage {
            offset: range.start,
            bytes,
            missing: segment.next..until,
        }),
    }
}

/// Adds a frame with a valid header. Returns `false` if the payload is invalid.
fn add_frame(
    source: &mut Source<'_>,
    frame: Frame,
    check: bool,
    segment: &mut Segment,
    survey: &mut Survey,
) -> io::Result<bool> {
    let Frame { offset, head } = frame;
    if head.kind == Kind::Chunk && !check {
        segment.chunks.push((
            head.number,
            Place::new(segment.first, offset, &head, 0, None),
        ));
        survey.window.push_back(head.id);
        return Ok(true);
    }
    let payload = source.bytes(offset + HEADER, head.payload())?;
    if !head.matches(payload) {
        return Ok(false);
    }
    match head.kind {
        Kind::Chunk => {
            segment.chunks.push((
                head.number,
                Place::new(segment.first, offset, &head, 0, None),
            ));
            survey.window.push_back(head.id);
        }
        Kind::Relocated => {
            let data = payload.get(head.tag_len as usize..).unwrap_or_default();
            let Some((origins, before)) = note::decode_origins(data) else {
                return Ok(false);
            };
            let place = Place::new(segment.first, offset, &head, before, None);
            segment.chunks.push((head.number, place));
            segment.relocated += 1;
            let moved = Moved {
                chunk: head.number,
                segment: segment.first,
                offset,
            };
            survey.ledger.relocate_to(moved, origins);
            // Not in the window: the host never hands it over.
        }
        Kind::Note => match note::decode(payload) {
            Some(note) => {
                segment.notes += 1;
                survey.ledger.apply(note);
                survey.ledger.pass(head.number);
            }
            None => return Ok(false),
        },
        Kind::Begin => match Begin::decode(payload) {
            Ok(begin) if offset == 0 => {
                segment.begin = Some(head.length());
                segment.previous = head.previous();
                survey.ledger.raise_next_batch(begin.next_batch);
                survey.window = begin.window.into();
                segment.version = begin.version;
                segment.reused = begin.reused;
                survey.ledger.pass(head.number);
            }
            Ok(_) | Err(OtherVersion(_)) => return Ok(false),
        },
    }
    Ok(true)
}

/// A segment's file, read through a shared buffer.
struct Source<'b> {
    first: Seq,
    name: String,
    file: Box<dyn File>,
    len: u64,
    buffer: &'b mut Vec<u8>,
    start: u64,
}

impl<'b> Source<'b> {
    /// Opens a segment's file. `None`: it was removed, so it was finished.
    fn open(
        disk: &dyn Disk,
        first: Seq,
        buffer: &'b mut Vec<u8>,
    ) -> io::Result<Option<Source<'b>>> {
        let name = segment_name(first);
        let file = match disk.open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read_error(&name, 0, &error)),
        };
        let len = file.len().map_err(|error| read_error(&name, 0, &error))?;
        buffer.clear();
        Ok(Some(Source {
            first,
            name,
            file,
            len,
            buffer,
            start: 0,
        }))
    }

    /// Up to `wanted` bytes at `offset`, fewer at the end of the file.
    fn bytes(&mut self, offset: u64, wanted: u64) -> io::Result<&[u8]> {
        let available = self.len.saturating_sub(offset).min(wanted) as usize;
        let buffered = offset >= self.start
            && offset + available as u64 <= self.start + self.buffer.len() as u64;
        if !buffered {
            let ahead = self.len.saturating_sub(offset).min(BLOCK as u64) as usize;
            let wanted = available.max(ahead);
            self.buffer.clear();
            self.start = offset;
            self.read_at(offset, wanted)?;
            if self.buffer.len() < wanted {
                // The file has shrunk meanwhile.
                self.len = offset + self.buffer.len() as u64;
            }
        }
        let from = (offset - self.start) as usize;
        let to = (from + available).min(self.buffer.len());
        Ok(&self.buffer[from.min(to)..to])
    }

    /// Fills the empty buffer.
    fn read_at(&mut self, offset: u64, wanted: usize) -> io::Result<()> {
        let read = self.file.read_at(self.buffer, wanted, offset);
        let read = read.inspect_err(|_| self.buffer.clear());
        read.map_err(|error| read_error(&self.name, offset, &error))
    }

    /// Reads the label only: there may be thousands of segments.
    fn label(&mut self) -> io::Result<Label> {
        let version = HEADER as usize + size_of::<u32>();
        self.read_at(0, version)?;
        let head = Head::decode(self.buffer).filter(|head| head.kind == Kind::Begin);
        let version = Begin::version(self.buffer.get(HEADER as usize..).unwrap_or_default());
        Ok(head.map(|head| (head, version)))
    }

    fn head(&mut self, offset: u64) -> io::Result<Option<Head>> {
        Ok(Head::decode(self.bytes(offset, HEADER)?))
    }

    /// The whole chunks from `offset` on with a `wanted` header.
    fn whole_chunks(
        &mut self,
        offset: u64,
        wanted: impl Fn(&Head) -> bool,
    ) -> io::Result<Vec<Renumbered>> {
        let mut chunks = Vec::new();
        let mut next = offset;
        while let Some((at, head)) = self.search(next, &wanted)? {
            let payload = self.bytes(at + HEADER, head.payload())?;
            let is_whole = head.matches(payload);
            if is_whole && head.kind.is_chunk() {
                let data = payload.get(head.tag_len as usize..).unwrap_or_default();
                let origins = match head.kind {
                    Kind::Relocated => note::decode_origins(data),
                    _ => None,
                };
                let origins = origins.into_iter().flat_map(|(origins, _)| origins);
                chunks.push(Renumbered {
                    id: head.id,
                    place: at..at + HEADER + head.payload(),
                    origins: origins.map(|origin| origin.chunk).collect(),
                });
            }
            next = at + if is_whole { head.length() } else { ALIGN };
        }
        Ok(chunks)
    }

    /// The next `wanted` header from `offset` on, with its offset.
    fn search(
        &mut self,
        offset: u64,
        wanted: impl Fn(&Head) -> bool,
    ) -> io::Result<Option<(u64, Head)>> {
        let mut at = offset.next_multiple_of(ALIGN);
        while at + HEADER <= self.len {
            if let Some(head) = self.head(at)?.filter(&wanted) {
                return Ok(Some((at, head)));
            }
            at += ALIGN;
        }
        Ok(None)
    }
}

/// Says that this user may not open a segment.
pub(super) fn barred(name: &str, error: &io::Error) -> String {
    let remedy = remedy_of_reading(error, "");
    format!("{name} cannot be opened: {error}; the chunks in it wait until it can. {remedy}")
}

fn read_error(name: &str, offset: u64, error: &io::Error) -> io::Error {
    if error.kind() == ErrorKind::PermissionDenied {
        return with_remedy(error.kind(), barred(name, error));
    }
    if says_remedy(error) {
        return with_remedy(error.kind(), format!("{name} cannot be opened: {error}"));
    }
    let remedy = remedy_of_reading(
        error,
        "moving the file out of the spool's folder lets the rest be delivered: what was accepted in that file is then not \
         delivered",
    );
    with_remedy(
        error.kind(),
        format!(
            "{name} cannot be read at offset {offset}: {error}; it holds accepted chunks, so nothing is delivered \
             without it. {remedy}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_that_fails_is_a_reason_to_leave_what_was_accepted_behind() {
        let said = |code| read_error("1.seg", 64, &io::Error::from_raw_os_error(code)).to_string();
        for code in [libc::EIO, libc::EBADMSG, libc::EUCLEAN, libc::EREMOTEIO] {
            let words = said(code);
            assert!(words.contains("moving the file out"), "{words}");
        }
        for code in [libc::EACCES, libc::EPERM] {
            let words = said(code);
            assert!(
                words.contains("run this as the user that Fluent Bit runs as"),
                "{words}"
            );
        }
        for code in [
            libc::EACCES,
            libc::EPERM,
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOMEM,
            libc::ESTALE,
            libc::ELOOP,
            libc::EISDIR,
            libc::ETIMEDOUT,
            libc::ENOTCONN,
        ] {
            let words = said(code);
            assert!(words.starts_with("1.seg cannot be "), "{words}");
            assert!(!words.contains("moving"), "{words}");
            assert!(words.contains(": "), "{words}");
        }
    }
}
