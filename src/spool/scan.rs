//! Reads what is in a spool's directory. The one reader of the format: recovery acts on what it finds, the
//! tool prints it. Changes nothing, and works beside a spool that is at work.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;

use super::disk::{Disk, File, remedied, remedy_of_reading, says_remedy};
use super::frame::{
    ALIGN, Begin, END, HEADER, Head, Kind, OtherVersion, QUARANTINE, RESERVE, SUSPECTS, VERSION,
    crc, is_spare, quarantine_place, segment_first, segment_name,
};
use super::manifest::{self, Entry, Manifest};
use super::note::{self, Ledger};
use super::suspects::{self, Record, Suspect};
use super::{Events, Pending, Seq, Stored};
use crate::buffers;
use crate::ids::Time;
use crate::ids::{ChunkId, chunk_id};

/// Bytes that are read at once where frames are small.
const BLOCK: usize = 64 * 1024;

/// Whose chunks' bytes are checked. Notes always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Those in the last segment, and in one that was the last when it went away: the only ones that a crash can have torn.
    LastSegment,
    /// All.
    All,
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number in its segment's name.
    pub segment: Seq,
    /// Of its tag in the file; its data stands behind.
    pub offset: u64,
    /// Bytes.
    pub tag_len: u32,
    /// Bytes.
    pub data_len: u32,
    /// When it came.
    pub arrived: Time,
    /// What it is known by.
    pub id: ChunkId,
    /// Of its tag and its data, where this run wrote them. Else their id tells whether they are whole.
    pub(super) crc: Option<u32>,
}

impl Place {
    pub(super) fn new(segment: Seq, frame: u64, head: &Head, crc: Option<u32>) -> Place {
        Place {
            segment,
            offset: frame + HEADER,
            tag_len: head.tag_len,
            data_len: head.data_len,
            arrived: head.arrived,
            id: head.id,
            crc,
        }
    }

    /// Where its frame begins.
    pub(super) fn frame(&self) -> u64 {
        self.offset - HEADER
    }

    /// Bytes of its header, tag and data.
    pub(super) fn frame_bytes(&self) -> u64 {
        HEADER + u64::from(self.tag_len) + u64::from(self.data_len)
    }

    /// Its tag, unchecked, as far as its segment's file goes.
    pub fn tag(&self, file: &dyn File) -> io::Result<Vec<u8>> {
        let mut tag = Vec::new();
        file.read_at(&mut tag, self.tag_len as usize, self.offset)?;
        Ok(tag)
    }

    /// The chunk, from its segment's file.
    pub fn read(&self, file: &dyn File) -> io::Result<Result<Stored, Flaw>> {
        let tag_len = self.tag_len as usize;
        let len = tag_len + self.data_len as usize;
        let mut payload = buffers::take(len);
        file.read_at(&mut payload, len, self.offset)?;
        let mut data = buffers::share(payload);
        if data.len() < len {
            return Ok(Err(Flaw::Short));
        }
        if !self.vouches_for(&data) {
            return Ok(Err(Flaw::Damaged));
        }
        let tag = data.split_to(tag_len).to_vec();
        Ok(Ok(Stored {
            tag,
            data,
            arrived: self.arrived,
        }))
    }

    /// Whether `payload` (tag, data; all of it) is what was written.
    fn vouches_for(&self, payload: &[u8]) -> bool {
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
    /// The file ends before their end.
    Short,
    /// They are others.
    Damaged,
}

/// Bytes that should be frames and are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where they begin in the file.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// The numbers of the frames that are missing there.
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

/// Whole chunks that are numbered like frames of newer segments. A chunk is refused when it cannot be written for certain,
/// and may be there all the same; but what was accepted looks like that too where its file was away while its numbers were
/// used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubted {
    /// Where the first one begins in the file.
    pub offset: u64,
    /// Bytes down to the end of the last one.
    pub bytes: u64,
    /// How many.
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
             were refused when they were written, or their file was put back too late"
        )
    }
}

/// A segment that is not there and should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The number in its name.
    pub first: Seq,
    /// What is known of it.
    pub lost: Lost,
}

/// What a segment holds that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// By the manifest.
    Chunks {
        /// How many were not finished when it was written.
        unfinished: u64,
        /// The segment was written to after that.
        perhaps_more: bool,
    },
    /// The numbers of frames: its own, and those of others between the two that are there. By the segment behind it.
    Frames(Range<Seq>),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not there: ", segment_name(self.first))?;
        match &self.lost {
            Lost::Frames(frames) => {
                let (from, to) = (frames.start, frames.end - 1);
                write!(f, "frames {from} to {to} are missing")
            }
            Lost::Chunks { unfinished: 0, .. } => {
                f.write_str("whether chunks in it are not delivered is not known")
            }
            Lost::Chunks {
                unfinished,
                perhaps_more,
            } => {
                let more = if *perhaps_more { ", perhaps more" } else { "" };
                write!(
                    f,
                    "{unfinished} chunks in it{more} were not delivered when that was noted last"
                )
            }
        }
    }
}

/// One segment.
#[derive(Debug)]
pub struct Segment {
    /// The number in its name.
    pub first: Seq,
    /// The segment that was the newest when this one was begun, where its Begin frame says so.
    previous: Option<Seq>,
    /// The file's length.
    pub bytes: u64,
    /// Bytes of its Begin frame, if that can be read.
    pub begin: Option<u64>,
    /// Its chunks, by their numbers.
    pub chunks: Vec<(Seq, Place)>,
    /// How many notes it has.
    pub notes: u64,
    /// What cannot be read.
    pub damage: Vec<Damage>,
    /// Bytes of frames that were never acknowledged, whose numbers a newer segment uses again.
    pub void: u64,
    /// Chunks among them that are nowhere else.
    pub doubted: Option<Doubted>,
    /// Whole chunks among them: their ids and where they are.
    renumbered: Vec<(ChunkId, Range<u64>)>,
    /// Bytes behind the last whole frame, of a write that goes on or never ended. Only in the last segment, and in one that
    /// was away when the next one was begun.
    pub torn: u64,
    /// Bytes behind its last frame that are there to be written over: the file was another segment's before.
    pub room: u64,
    /// Its Begin frame says that the file was another segment's before.
    reused: bool,
    /// Greater than every number in it.
    pub next: Seq,
}

impl Segment {
    /// Its file's name.
    pub fn name(&self) -> String {
        segment_name(self.first)
    }

    /// Whether any frame can be read.
    pub(super) fn is_readable(&self) -> bool {
        self.begin.is_some() || self.notes > 0 || !self.chunks.is_empty()
    }

    /// All of its bytes, where no frame can be read: that is no write that was never finished.
    pub fn unreadable(&self) -> Option<Damage> {
        (self.torn > 0 && !self.is_readable()).then(|| Damage {
            offset: 0,
            bytes: self.torn,
            missing: self.first..self.first + 1,
        })
    }

    /// Whether it has a Begin frame and nothing else.
    pub(super) fn is_bare(&self) -> bool {
        self.begin == Some(self.bytes)
    }
}

/// A frame whose header is good.
#[derive(Clone, Copy)]
struct Frame {
    offset: u64,
    head: Head,
}

/// What is in a spool's directory.
#[derive(Debug, Default)]
pub struct Survey {
    /// The spool's own number, where any frame can be read.
    pub spool: Option<u64>,
    /// Oldest first.
    pub segments: Vec<Segment>,
    /// Segments that are another spool's or another version's: their names, and what they are. They are
    /// left alone.
    pub foreign: Vec<(String, String)>,
    /// Segments of which nothing is to be delivered, and their lengths: they were finished and removed, and somebody put them
    /// back; or the machine stopped when they were begun.
    pub returned: Vec<(String, u64)>,
    /// Files of damaged bytes that were kept apart, and their lengths.
    pub quarantine: Vec<(String, u64)>,
    /// Files of removed segments that wait to be written again, and their lengths.
    pub spares: Vec<(String, u64)>,
    /// What the notes amount to.
    pub(super) ledger: Ledger,
    /// The ids of the last accepted chunks, oldest first.
    pub(super) window: VecDeque<ChunkId>,
    /// Empty files: creations that were cut short. They stand for nothing.
    pub empty: Vec<String>,
    /// Segments that were there when the directory was listed, and are gone since.
    pub(super) vanished: Vec<Seq>,
    /// Whether a run left its reserve there.
    pub(super) reserve: bool,
    /// What a run left in the file `suspects`, or why that cannot be read.
    suspects: Option<Result<Record, String>>,
    /// What the manifest says, and which file it is in.
    pub(super) manifest: Option<(usize, Manifest)>,
    /// The manifest is another spool's.
    pub(super) others_manifest: bool,
    /// No manifest or segment that is there has a later generation.
    pub(super) generation: u64,
    /// Segments that the manifest lists and that are not there.
    pub(super) absent: BTreeMap<Seq, Entry>,
}

impl Survey {
    /// Whether a chunk needs nothing any more, by the notes.
    pub fn is_finished(&self, chunk: Seq) -> bool {
        self.ledger.settled(chunk) == Some(&Events::All)
    }

    /// Which events of an unfinished chunk need nothing any more.
    pub fn settled(&self, chunk: Seq) -> &[Range<u32>] {
        match self.ledger.settled(chunk) {
            Some(Events::Runs(runs)) => runs,
            Some(Events::All) | None => &[],
        }
    }

    /// Segments that somebody took away: by the manifest. Of those that it does not know, the ones between two that are
    /// there; segments go oldest first, so there is none missing behind one that is there.
    pub fn missing(&self) -> Vec<Missing> {
        let is_said = |first: &Seq| {
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
            let first = newer.previous?;
            let read_to = older.damage.last().map_or(0, |damage| damage.missing.end);
            let is_unknown = first < known_from && !self.absent.contains_key(&first);
            (first > older.first && is_unknown).then(|| Missing {
                first,
                lost: Lost::Frames(older.next.max(read_to).min(first)..newer.first),
            })
        };
        let mut missing: Vec<Missing> = self.segments.windows(2).filter_map(between).collect();
        missing.extend(by_manifest);
        missing.retain(|missing| !is_said(&missing.first));
        missing.sort_unstable_by_key(|missing| missing.first);
        missing
    }

    /// Whether the newest segment that was ever begun is not there: of the numbers that it used nothing is known.
    pub(super) fn newest_is_absent(&self) -> bool {
        let newest = self.segments.last().map(|segment| segment.first);
        self.manifest
            .as_ref()
            .is_some_and(|(_, manifest)| newest.is_none_or(|newest| newest < manifest.newest()))
    }

    /// How many of the segments, from the oldest on, nothing more is written to: a write that was never finished is not
    /// what they may end in. The last one may, unless others were begun behind it that are away.
    pub fn closed(&self) -> usize {
        match self.newest_is_absent() {
            true => self.segments.len(),
            false => self.segments.len().saturating_sub(1),
        }
    }

    /// The chunk that is being worked on, by a process that lives or by one that ended at it; and those at which one
    /// ended before.
    pub fn suspected(&self) -> (Option<Suspect>, &[Suspect]) {
        match &self.suspects {
            Some(Ok(record)) => (record.under_way(), record.suspects()),
            Some(Err(_)) | None => (None, &[]),
        }
    }

    pub(super) fn suspects(&self) -> Result<Record, &str> {
        match &self.suspects {
            Some(Ok(record)) => Ok(record.clone()),
            Some(Err(why)) => Err(why),
            None => Ok(Record::default()),
        }
    }

    /// All chunks with their numbers, in order.
    pub fn chunks(&self) -> impl Iterator<Item = (Seq, Place)> + '_ {
        let segments = self.segments.iter();
        segments.flat_map(|segment| segment.chunks.iter().copied())
    }

    /// Batches begun and not ended, of chunks that are not finished all.
    pub fn pending(&self) -> Vec<Pending> {
        let unfinished = self.chunks().map(|(chunk, _)| chunk);
        let unfinished: HashSet<Seq> = unfinished
            .filter(|chunk| !self.is_finished(*chunk))
            .collect();
        self.ledger.pending(|chunk| unfinished.contains(&chunk))
    }
}

/// Reads a directory. Segments that are removed meanwhile are passed over: they were done.
///
/// Fails only where the disk does.
pub fn survey(disk: &dyn Disk, check: Check) -> io::Result<Survey> {
    survey_while(disk, check, &mut |_| {})
}

/// The same; `read` is told the bytes of each segment when it was read. See [`segment_bytes`].
pub fn survey_while(
    disk: &dyn Disk,
    check: Check,
    read: &mut dyn FnMut(u64),
) -> io::Result<Survey> {
    let mut survey = Survey::default();
    // Before the files are listed: what is begun meanwhile is not missed then.
    let manifests = manifest::read(disk);
    let mut names = Vec::new();
    let mut has_suspects = false;
    for (name, bytes) in disk.list()? {
        if let Some(first) = segment_first(&name) {
            names.push((first, bytes));
        } else if name.starts_with(QUARANTINE) {
            survey.quarantine.push((name, bytes));
        } else if is_spare(&name) {
            survey.spares.push((name, bytes));
        } else if name == RESERVE {
            survey.reserve = true;
        } else if name == SUSPECTS {
            has_suspects = true;
        }
    }
    names.sort_unstable();
    let empty = names.extract_if(.., |(_, bytes)| *bytes == 0);
    survey.empty = empty.map(|(first, _)| segment_name(first)).collect();

    let lengths: BTreeMap<Seq, u64> = names.iter().copied().collect();
    // One file is open at a time, and read through one buffer: there may be more of them than a process may open.
    let mut buffer = Vec::new();
    let mut labels = Vec::new();
    for (first, _) in names {
        match Source::open(disk, first, &mut buffer)? {
            Some(mut source) => labels.push((first, source.label()?)),
            None => survey.vanished.push(first),
        }
    }
    let manifests = manifests?;
    survey.spool = match whose(disk, &labels, &mut buffer)? {
        None => manifest::newest(&manifests, None).map(|(_, manifest)| manifest.spool),
        spool => spool,
    };
    // Without a chunk nobody is suspected of anything.
    let spool = survey.spool.filter(|_| has_suspects);
    survey.suspects = spool.map(|spool| suspects::read(disk, spool));
    let mut own = Vec::new();
    for (first, label) in labels {
        match stranger(disk, first, label, survey.spool, &mut buffer)? {
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
    survey.others_manifest = listed.is_none() && manifests.iter().any(Option::is_some);
    let mut given_up = Vec::new();
    let listed = listed.filter(|(_, manifest)| {
        // A segment's Begin frame is on the medium before the segment is listed, and before anything in it is answered.
        let is_given_up = |(first, label): &mut (Seq, Label)| {
            *first > manifest.newest()
                && label.as_ref().is_none_or(|(begin, _)| {
                    let generation = begin.generation();
                    generation.is_some_and(|generation| generation <= manifest.generation)
                })
        };
        given_up = own
            .extract_if(.., is_given_up)
            .map(|(first, _)| first)
            .collect();
        is_up_to_date(manifest, &own)
    });
    survey.manifest = listed.map(|(slot, manifest)| (slot, manifest.clone()));
    let bounds = Bounds::new(&own, listed.map(|(_, manifest)| manifest));

    for (first, _) in &own {
        let bound = bounds.of(*first);
        // One that was away when the next was begun was the last one, and nobody has looked for what tore since.
        let may_be_torn = bound.is_none_or(|bound| !bound.is_next);
        let check_chunks = may_be_torn || check == Check::All;
        let Some(source) = Source::open(disk, *first, &mut buffer)? else {
            survey.vanished.push(*first);
            continue;
        };
        let segment = read_segment(source, bound, check_chunks, &mut survey)?;
        read(segment.bytes);
        let whole = segment.damage.is_empty() && segment.torn == 0 && segment.void == 0;
        match whole || is_there(disk, *first)? {
            true => survey.segments.push(segment),
            false => survey.vanished.push(*first),
        }
    }
    doubt(&mut survey);
    if let Some((_, manifest)) = survey.manifest.clone() {
        let firsts = survey.segments.iter().map(|segment| segment.first);
        let oldest = firsts.filter(|first| !manifest.is_finished(*first)).min();
        let is_returned = |segment: &mut Segment| {
            let mut chunks = segment.chunks.iter();
            // What was only not removed yet is older than all others, and known to be finished. A chunk that is in several
            // objects is settled in parts, and no note says how many events it has.
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
            // What was finished meanwhile is not missing.
            absent.retain(|first, _| now.segments.contains_key(first));
        }
        survey.absent = absent;
    }
    for first in given_up {
        let bytes = lengths.get(&first).copied().unwrap_or(0);
        survey.returned.push((segment_name(first), bytes));
    }
    Ok(survey)
}

/// Bytes of all segments in a directory.
pub fn segment_bytes(disk: &dyn Disk) -> io::Result<u64> {
    let files = disk.list()?.into_iter();
    let segments = files.filter(|(name, _)| segment_first(name).is_some());
    Ok(segments.map(|(_, bytes)| bytes).sum())
}

/// Whether no segment was begun without a manifest, as by an earlier version, but for one at most: a segment is there before
/// the manifest that lists it.
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

/// Finds the chunks that are nowhere but among void frames. A refused one is not in doubt where it was accepted later.
fn doubt(survey: &mut Survey) {
    if survey
        .segments
        .iter()
        .all(|segment| segment.renumbered.is_empty())
    {
        return;
    }
    let known: HashSet<ChunkId> = survey.chunks().map(|(_, place)| place.id).collect();
    for segment in &mut survey.segments {
        segment.renumbered.retain(|(id, _)| !known.contains(id));
        let places = segment.renumbered.iter().map(|(_, place)| place);
        let first = places.clone().map(|place| place.start).min();
        let end = places.map(|place| place.end).max();
        segment.doubted = first.zip(end).map(|(offset, end)| Doubted {
            offset,
            bytes: end - offset,
            chunks: segment.renumbered.len() as u64,
        });
    }
}

/// Whether nobody has removed it: what is removed is emptied or written again while it is read.
fn is_there(disk: &dyn Disk, segment: Seq) -> io::Result<bool> {
    match disk.id(&segment_name(segment)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a segment's first bytes say: the header of its Begin frame, and the format's version behind it.
type Label = Option<(Head, u32)>;

/// The number of the spool that the segments belong to: the newest one's word counts.
fn whose(
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

/// Why a segment is none of ours, if it is certainly none.
fn stranger(
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
    if version == VERSION {
        return Ok(None);
    }
    // Unless it is damaged.
    let Some(mut source) = Source::open(disk, first, buffer)? else {
        return Ok(None);
    };
    let payload = source.bytes(HEADER, head.payload())?;
    Ok(match head.vouches_for(payload) {
        true => Begin::decode(payload).err().map(|OtherVersion(version)| {
            format!("its format is version {version}, this program reads version {VERSION}")
        }),
        false => None,
    })
}

/// Where the numbers of a segment end.
#[derive(Clone, Copy)]
struct Bound {
    /// The first number of the next segment.
    first: Seq,
    /// That was begun right behind this one, for certain: all numbers in between were used.
    is_next: bool,
}

/// Where the numbers of segments end. What voids frames is that the next segment was begun, wherever that is now; but one
/// that somebody put back, and that is not listed, voids nothing of those that are: perhaps they were gone on with without it.
struct Bounds {
    /// Those that are there, and what each says of the one before.
    there: BTreeMap<Seq, Option<Head>>,
    /// Those that are or should be there.
    all: BTreeSet<Seq>,
    /// The ones of them that the manifest lists or knows nothing of.
    counted: BTreeSet<Seq>,
}

impl Bounds {
    fn new(own: &[(Seq, Label)], manifest: Option<&Manifest>) -> Bounds {
        let there = own
            .iter()
            .map(|(first, label)| (*first, label.map(|(head, _)| head)));
        let there: BTreeMap<_, _> = there.collect();
        let listed = manifest
            .iter()
            .flat_map(|manifest| manifest.segments.keys());
        let all: BTreeSet<Seq> = there.keys().chain(listed).copied().collect();
        let is_counted =
            |first: &&Seq| manifest.is_none_or(|manifest| !manifest.is_finished(**first));
        Bounds {
            counted: all.iter().filter(is_counted).copied().collect(),
            there,
            all,
        }
    }

    fn of(&self, segment: Seq) -> Option<Bound> {
        let among = match self.counted.contains(&segment) {
            true => &self.counted,
            false => &self.all,
        };
        let first = among.range(segment + 1..).next().copied()?;
        let is_next = self.there.get(&first).is_some_and(|begin| {
            let is_behind = |begin: &Head| {
                let previous = begin.previous();
                !begin.is_apart() && previous.is_none_or(|previous| previous == segment)
            };
            begin.as_ref().is_none_or(is_behind)
        });
        Some(Bound { first, is_next })
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
        notes: 0,
        damage: Vec::new(),
        void: 0,
        doubted: None,
        renumbered: Vec::new(),
        torn: 0,
        room: 0,
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
    // Where the bytes begin that are no frame, if the last ones were none.
    let mut broken: Option<u64> = None;
    while at < source.len {
        let next = segment.next;
        let fits = |head: &Head| Some(head.spool) == spool && head.number >= next;
        let head = source.head(at)?.filter(|head| fits(head));
        // What aligns the next frame may be missing behind the last one.
        let whole = head.filter(|head| at + HEADER + head.payload() <= source.len);
        let Some(head) = whole else {
            broken.get_or_insert(at);
            let found = source.search(at + ALIGN, fits)?;
            at = found.map_or(source.len, |(offset, _)| offset);
            continue;
        };
        if let Some(bound) = bound.filter(|bound| head.number >= bound.first) {
            // Nothing behind a void frame was acknowledged, unless its file was away meanwhile.
            segment.renumbered = source.whole_chunks(at, fits)?;
            let end = broken.take().unwrap_or(at);
            lay_to_rest(&mut segment, end..source.len, Some(bound.first));
            return Ok(segment);
        }
        let frame = Frame { offset: at, head };
        at = (at + head.length()).min(source.len);
        // What an earlier run found damaged is not found anew when it is read.
        let check = check_chunks || suspect.iter().any(|bytes| bytes.contains(&frame.offset));
        if !take_frame(&mut source, frame, check, &mut segment, survey)? {
            broken.get_or_insert(frame.offset);
            continue;
        }
        if let Some(start) = broken.take() {
            lay_to_rest(&mut segment, start..frame.offset, Some(head.number));
        }
        segment.next = head.number + 1;
    }
    if let Some(start) = broken {
        // Older frames are passed over by their numbers.
        let bound = bound.filter(|bound| bound.is_next).map(|bound| bound.first);
        let all_read = bound.is_none_or(|bound| bound <= segment.next);
        if segment.reused && all_read && source.bytes(start, ALIGN)? == END {
            segment.room = source.len - start;
        } else {
            lay_to_rest(&mut segment, start..source.len, bound);
        }
    }
    Ok(segment)
}

/// Says what bytes are that no frame was read from. `until` is the number that comes behind them.
fn lay_to_rest(segment: &mut Segment, range: Range<u64>, until: Option<Seq>) {
    let bytes = range.end - range.start;
    match until {
        None => segment.torn = bytes,
        // No number is missing, and so no frame: they were given up in the run that wrote them.
        Some(until) if until <= segment.next => segment.void += bytes,
        Some(until) => segment.damage.push(Damage {
            offset: range.start,
            bytes,
            missing: segment.next..until,
        }),
    }
}

/// Takes note of a frame whose header is good. `false`: its payload is not.
fn take_frame(
    source: &mut Source<'_>,
    frame: Frame,
    check: bool,
    segment: &mut Segment,
    survey: &mut Survey,
) -> io::Result<bool> {
    let Frame { offset, head } = frame;
    if head.kind == Kind::Chunk && !check {
        segment
            .chunks
            .push((head.number, Place::new(segment.first, offset, &head, None)));
        survey.window.push_back(head.id);
        return Ok(true);
    }
    let payload = source.bytes(offset + HEADER, head.payload())?;
    if !head.vouches_for(payload) {
        return Ok(false);
    }
    match head.kind {
        Kind::Chunk => {
            segment
                .chunks
                .push((head.number, Place::new(segment.first, offset, &head, None)));
            survey.window.push_back(head.id);
        }
        Kind::Note => match note::decode(payload) {
            Some(note) => {
                segment.notes += 1;
                survey.ledger.take(note);
            }
            None => return Ok(false),
        },
        Kind::Begin => match Begin::decode(payload) {
            Ok(begin) if offset == 0 => {
                segment.begin = Some(head.length());
                segment.previous = head.previous();
                survey.ledger.batches_before(begin.next_batch);
                survey.window = begin.window.into();
                segment.reused = begin.reused;
            }
            Ok(_) | Err(OtherVersion(_)) => return Ok(false),
        },
    }
    Ok(true)
}

/// A segment's file, read through a buffer that others are read through as well.
struct Source<'b> {
    first: Seq,
    name: String,
    file: Box<dyn File>,
    len: u64,
    buffer: &'b mut Vec<u8>,
    start: u64,
}

impl<'b> Source<'b> {
    /// `None`: it is gone, and so it was done.
    fn open(
        disk: &dyn Disk,
        first: Seq,
        buffer: &'b mut Vec<u8>,
    ) -> io::Result<Option<Source<'b>>> {
        let name = segment_name(first);
        let file = match disk.open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unread(&name, 0, &error)),
        };
        let len = file.len().map_err(|error| unread(&name, 0, &error))?;
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

    /// So many bytes at `offset`, or what there is of them.
    fn bytes(&mut self, offset: u64, wanted: u64) -> io::Result<&[u8]> {
        let there = self.len.saturating_sub(offset).min(wanted) as usize;
        let held =
            offset >= self.start && offset + there as u64 <= self.start + self.buffer.len() as u64;
        if !held {
            let ahead = self.len.saturating_sub(offset).min(BLOCK as u64) as usize;
            let wanted = there.max(ahead);
            self.buffer.clear();
            self.start = offset;
            self.read_at(offset, wanted)?;
            if self.buffer.len() < wanted {
                // It is shorter by now.
                self.len = offset + self.buffer.len() as u64;
            }
        }
        let from = (offset - self.start) as usize;
        let to = (from + there).min(self.buffer.len());
        Ok(&self.buffer[from.min(to)..to])
    }

    /// Fills the buffer, which is empty.
    fn read_at(&mut self, offset: u64, wanted: usize) -> io::Result<()> {
        let read = self.file.read_at(self.buffer, wanted, offset);
        let read = read.inspect_err(|_| self.buffer.clear());
        read.map_err(|error| unread(&self.name, offset, &error))
    }

    /// Reads no more than it needs: there may be thousands of segments.
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

    /// Ids and places of the chunks from `offset` on that are whole, and whose header is `wanted`.
    fn whole_chunks(
        &mut self,
        offset: u64,
        wanted: impl Fn(&Head) -> bool,
    ) -> io::Result<Vec<(ChunkId, Range<u64>)>> {
        let mut chunks = Vec::new();
        let mut next = offset;
        while let Some((at, head)) = self.search(next, &wanted)? {
            let is_whole = head.vouches_for(self.bytes(at + HEADER, head.payload())?);
            if is_whole && head.kind == Kind::Chunk {
                chunks.push((head.id, at..at + HEADER + head.payload()));
            }
            next = at + if is_whole { head.length() } else { ALIGN };
        }
        Ok(chunks)
    }

    /// The next place from `offset` on where a header stands that is `wanted`.
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

fn unread(name: &str, offset: u64, error: &io::Error) -> io::Error {
    if says_remedy(error) {
        return remedied(error.kind(), format!("{name} cannot be opened: {error}"));
    }
    let remedy = remedy_of_reading(
        error,
        "moving the file out of the spool's folder lets the rest be delivered: what was accepted in that file is then not \
         delivered",
    );
    remedied(
        error.kind(),
        format!(
            "{name} cannot be read at offset {offset}: {error}; it holds what was accepted, and the spool is not started \
             without it. {remedy}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_that_fails_is_a_reason_to_leave_what_was_accepted_behind() {
        let said = |code| unread("1.seg", 64, &io::Error::from_raw_os_error(code)).to_string();
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
