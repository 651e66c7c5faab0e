//! Reads what is in a spool's directory. The one reader of the format: recovery acts on what it finds, the
//! tool prints it. Changes nothing, and works beside a spool that is at work.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;

use super::disk::{Disk, File, remedied, says_remedy};
use super::frame::{
    ALIGN, Begin, END, HEADER, Head, Kind, OtherVersion, QUARANTINE, RESERVE, SUSPECTS, VERSION,
    crc, is_spare, quarantine_place, segment_first, segment_name,
};
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
    /// Those in the last segment: the only one that a crash can have torn.
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

/// A segment that is not there, though a newer one was begun behind it and an older one is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The number in its name.
    pub first: Seq,
    /// The numbers of the frames that are missing: its own, and those of others between the two that are there.
    pub frames: Range<Seq>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = segment_name(self.first);
        let (from, to) = (self.frames.start, self.frames.end - 1);
        write!(f, "{name} is not there: frames {from} to {to} are missing")
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
    /// The last segment only: bytes behind the last whole frame, of a write that goes on or never ended.
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
    /// Files of damaged bytes that were kept apart, and their lengths.
    pub quarantine: Vec<(String, u64)>,
    /// Files of removed segments that wait to be written again, and their lengths.
    pub spares: Vec<(String, u64)>,
    /// What the notes amount to.
    pub(super) ledger: Ledger,
    /// The ids of the last accepted chunks, oldest first.
    pub(super) window: VecDeque<ChunkId>,
    /// Empty files: creations that were cut short. They stand for nothing.
    pub(super) empty: Vec<String>,
    /// Segments that were there when the directory was listed, and are gone since.
    pub(super) vanished: Vec<Seq>,
    /// Whether a run left its reserve there.
    pub(super) reserve: bool,
    /// What a run left in the file `suspects`, or why that cannot be read.
    suspects: Option<Result<Record, String>>,
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

    /// Segments that somebody took away. Segments go oldest first, so there is none missing behind one that is there;
    /// of those before all others nobody knows whether they were finished.
    pub fn missing(&self) -> Vec<Missing> {
        let missing = |pair: &[Segment]| {
            let [older, newer] = pair else { return None };
            let first = newer.previous?;
            let name = segment_name(first);
            let is_known = self.vanished.contains(&first)
                || self.foreign.iter().any(|(foreign, _)| *foreign == name);
            let read_to = older.damage.last().map_or(0, |damage| damage.missing.end);
            (first > older.first && !is_known).then(|| Missing {
                first,
                frames: older.next.max(read_to).min(first)..newer.first,
            })
        };
        self.segments.windows(2).filter_map(missing).collect()
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

    // One file is open at a time, and read through one buffer: there may be more of them than a process may open.
    let mut buffer = Vec::new();
    let mut labels = Vec::new();
    for (first, _) in names {
        match Source::open(disk, first, &mut buffer)? {
            Some(mut source) => labels.push((first, source.label()?)),
            None => survey.vanished.push(first),
        }
    }
    survey.spool = whose(disk, &labels, &mut buffer)?;
    // Without a chunk nobody is suspected of anything.
    let spool = survey.spool.filter(|_| has_suspects);
    survey.suspects = spool.map(|spool| suspects::read(disk, spool));
    let mut own = Vec::new();
    for (first, label) in labels {
        match stranger(disk, first, label, survey.spool, &mut buffer)? {
            Some(what) => survey.foreign.push((segment_name(first), what)),
            None => own.push(first),
        }
    }

    for (index, first) in own.iter().enumerate() {
        let bound = own.get(index + 1).copied();
        let check_chunks = bound.is_none() || check == Check::All;
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
    Ok(survey)
}

/// Bytes of all segments in a directory.
pub fn segment_bytes(disk: &dyn Disk) -> io::Result<u64> {
    let files = disk.list()?.into_iter();
    let segments = files.filter(|(name, _)| segment_first(name).is_some());
    Ok(segments.map(|(_, bytes)| bytes).sum())
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

fn read_segment(
    mut source: Source<'_>,
    bound: Option<Seq>,
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
        if bound.is_some_and(|bound| head.number >= bound) {
            // Nothing behind a void frame was acknowledged.
            let end = broken.take().unwrap_or(at);
            lay_to_rest(&mut segment, end..source.len, bound);
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
    remedied(
        error.kind(),
        format!(
            "{name} cannot be read at offset {offset}: {error}; it holds what was accepted, and the spool is not \
             started without it. Where the disk cannot be mended, moving the file out of the spool's folder lets the rest \
             be delivered: what was accepted in that file is then not delivered"
        ),
    )
}
