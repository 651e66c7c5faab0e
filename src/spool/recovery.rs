//! Recovery: repairs the spool that an earlier run left, and resumes from there.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, Write};

use super::disk::{Disk, File, has_lost_bytes};
use super::frame::{
    ALIGN, HEADER, QUARANTINE, SUSPECTS, copy_first, displaced_name, quarantine_name,
    quarantine_place, segment_first, segment_name, set_aside_chunk,
};
use super::manifest::{Entry, ManifestWriter};
use super::note::Live;
use super::past::{Ahead, Past};
use super::scan::{self, Check, Damage, Doubted, Missing, Outline, Place, Segment, Survey};
use super::suspects::Record;
use super::{Active, History, Limits, Recovered, SegmentInfo, Seq, State};
use crate::ids::ChunkId;

/// The copy buffer's size, in bytes.
const BLOCK: usize = 256 * 1024;

/// The maximum number of missing segments that are named one by one.
const MAX_NAMED: usize = 5;

/// The recovered state that a run starts with.
pub(super) struct Resumed {
    pub(super) spool: Option<u64>,
    pub(super) state: State,
    /// The number of the next frame.
    pub(super) next: Seq,
    /// The last segment, if it is fit to be continued.
    pub(super) active: Option<Active>,
    pub(super) manifest: ManifestWriter,
    /// Not all numbers before `next` are known to be used.
    pub(super) after_gap: bool,
    pub(super) recovered: Recovered,
    /// The chunks at which earlier processes ended.
    pub(super) suspects: Record,
    /// What is to be read behind the start.
    pub(super) past: Past,
    pub(super) live: Live,
}

/// Reads the directory, quarantines damaged bytes, truncates a torn tail, and makes the result durable.
///
/// Fails only if the disk does, never because of the files' contents.
pub(super) fn recover(disk: &dyn Disk, limits: &Limits) -> io::Result<Resumed> {
    adopt_copies(disk)?;
    if let Some(outline) = scan::outline(disk)? {
        return resume(disk, limits, outline);
    }
    let mut survey = scan::survey(disk, Check::LastSegment)?;
    let mut findings: Vec<String> = survey
        .foreign
        .iter()
        .map(|(name, what)| format!("{name} is left alone: {what}"))
        .collect();
    let mut quarantine = Quarantine {
        disk,
        bytes: survey.quarantine.iter().map(|(_, bytes)| bytes).sum(),
        existing: survey
            .quarantine
            .iter()
            .map(|(name, _)| name.clone())
            .collect(),
    };
    for segment in &survey.segments {
        for damage in &segment.damage {
            findings.extend(quarantine.report_damage(segment.first, damage));
        }
    }
    for segment in &survey.segments {
        if let Some(doubted) = &segment.doubted {
            findings.extend(quarantine.report_doubted(segment.first, doubted));
        }
    }
    // The last one may end in an unfinished write, unless missing segments were begun after it.
    let count = survey.segments.len();
    let closed = survey.closed();
    for segment in survey.segments[..closed]
        .iter()
        .filter(|segment| segment.torn > 0)
    {
        findings.extend(quarantine.report_torn_end(segment));
    }
    for (name, bytes) in &survey.returned {
        // The process ended after creating the file and before writing to it.
        let is_empty = disk.open(name).and_then(|file| file.len());
        if is_empty.is_ok_and(|bytes| bytes == 0) && disk.remove(name).is_ok() {
            continue;
        }
        findings.push(quarantine.move_aside(name, *bytes));
    }
    findings.extend(missing_findings(&survey));
    let suspects = suspects(&survey, &mut findings);
    let next = next_number(&survey);
    let active = match survey.segments.last_mut() {
        Some(last) if closed < count => {
            repair_last(disk, last, limits, &mut quarantine, &mut findings)?
        }
        // Frames appended here would be void once the missing segments come back.
        _ => None,
    };
    let manifest = match survey.manifest.clone() {
        Some(found) => ManifestWriter::resume(disk, found)?,
        None => ManifestWriter::new(next, survey.generation),
    };
    for name in &survey.empty {
        // It contains nothing, but a later segment may need its name.
        let _ = disk.remove(name);
    }
    for spare in &survey.spares {
        findings.extend(remove_spare(disk, spare));
    }
    // Names may exist in the page cache only; from here on they are relied on.
    disk.sync_dir()?;

    let mut state = state(&survey, limits, quarantine.bytes);
    let settled = |chunk: &Seq| (*chunk, survey.settled(*chunk).to_vec());
    let settled = state.chunks.keys().map(settled);
    state.settled = settled.filter(|(_, runs)| !runs.is_empty()).collect();
    state.history = Some(History {
        pending: survey.pending(),
        // Filled in by `Spool::open`, which opens the file.
        suspects: Vec::new(),
    });
    // The notes of segments that come back are not known.
    let is_whole =
        survey.absent.is_empty() && survey.vanished.is_empty() && survey.foreign.is_empty();
    Ok(Resumed {
        spool: survey.spool,
        next,
        active,
        manifest,
        after_gap: survey.newest_is_absent(),
        recovered: recovered(&state, findings),
        state,
        suspects,
        past: Past::default(),
        live: Live::new(survey.ledger, is_whole),
    })
}

/// Resumes from the newest segment, and leaves the older ones to be read behind the start.
fn resume(disk: &dyn Disk, limits: &Limits, outline: Outline) -> io::Result<Resumed> {
    let Outline {
        mut survey,
        older,
        has_checkpoint,
        base,
    } = outline;
    let mut findings = missing_findings(&survey);
    let suspects = suspects(&survey, &mut findings);
    let next = next_number(&survey);
    let mut quarantine = Quarantine::new(disk);
    let newest = survey.segments.last_mut().expect("it was read");
    let active = repair_last(disk, newest, limits, &mut quarantine, &mut findings)?;
    let (newest, newest_bytes) = (newest.first, newest.bytes);
    let found = survey.manifest.clone().expect("it was read");
    let listed = found.1.segments.clone();
    let since = found.1.since;
    let manifest = ManifestWriter::resume(disk, found)?;
    for name in &survey.empty {
        // It contains nothing, but a later segment may need its name.
        let _ = disk.remove(name);
    }
    // Names may exist in the page cache only; from here on they are relied on.
    disk.sync_dir()?;

    let quarantined = survey.quarantine.iter().map(|(_, bytes)| bytes).sum();
    let mut state = state(&survey, limits, quarantined);
    for (first, bytes) in &older {
        let entry = listed.get(first);
        let info = SegmentInfo {
            bytes: *bytes,
            unfinished: entry.map_or(0, |entry| entry.unfinished),
            indexed: false,
            listed: entry.is_some() || *first < since,
            has_begin: true,
            bare: false,
            reusable: false,
        };
        state.bytes += info.bytes;
        state.unfinished += info.unfinished;
        state.segments.insert(*first, info);
    }
    state.frontier = older.keys().next().copied().unwrap_or(newest);
    state.opened = state.resident;
    state.ahead = Ahead::default();
    let bounds = older.keys().chain(listed.keys()).copied();
    let mut newest_segment = survey.segments.pop();
    if let Some(segment) = &mut newest_segment {
        segment.chunks = Vec::new();
    }
    Ok(Resumed {
        spool: survey.spool,
        next,
        active,
        manifest,
        after_gap: false,
        recovered: recovered(&state, findings),
        state,
        suspects,
        past: Past {
            older: older.keys().copied().collect(),
            newest: Some((newest, newest_bytes)),
            newest_segment,
            checkpoint: has_checkpoint.then_some(survey.ledger),
            base,
            absent: survey.absent.keys().next_back().copied(),
            bounds: bounds.chain([newest]).collect(),
            listed: listed.keys().copied().collect(),
            since,
            quarantine: survey.quarantine,
            spares: survey.spares,
        },
        live: Live::default(),
    })
}

/// The record of the chunks at which processes ended.
fn suspects(survey: &Survey, findings: &mut Vec<String>) -> Record {
    survey.suspects().unwrap_or_else(|why| {
        findings.push(format!(
            "{SUSPECTS} is ignored and replaced: {why}. A chunk that ended the last run is set aside only after ending two \
             more"
        ));
        Record::default()
    })
}

/// Removes a spare of an earlier run. Returns a finding if that fails.
pub(super) fn remove_spare(disk: &dyn Disk, (name, bytes): &(String, u64)) -> Option<String> {
    match disk.remove(name) {
        // NotFound: the predecessor's background thread was faster.
        Err(error) if error.kind() != ErrorKind::NotFound => Some(format!(
            "{name} ({bytes} bytes, no longer used) cannot be removed: {error}"
        )),
        _ => None,
    }
}

/// Renames copies to their segments' names where these are missing: a copy may be partial, but nothing else is left of the
/// segment.
fn adopt_copies(disk: &dyn Disk) -> io::Result<()> {
    let files = disk.list()?;
    for (copy, _) in &files {
        let Some(first) = copy_first(copy) else {
            continue;
        };
        let name = segment_name(first);
        match files.iter().any(|(file, _)| *file == name) {
            // A copy that cannot be removed does no harm.
            true => drop(disk.remove(copy)),
            false => disk.rename(copy, &name)?,
        }
    }
    Ok(())
}

const PUT_BACK: &str =
    "put it back while Fluent Bit is stopped: until then its undelivered chunks are not delivered";

/// Reports a segment that should exist and does not.
pub(super) fn missing_finding(missing: &Missing) -> String {
    format!("{missing}; {PUT_BACK}")
}

/// Reports segments that should exist and do not.
fn missing_findings(survey: &Survey) -> Vec<String> {
    let mut findings: Vec<String> = Vec::new();
    let missing = survey.missing();
    let (named, more) = missing.split_at(missing.len().min(MAX_NAMED));
    for missing in named {
        findings.push(missing_finding(missing));
    }
    if !more.is_empty() {
        let more = more.len();
        findings.push(format!(
            "{more} more segments are missing: ferry spool verify names them"
        ));
    }
    for first in &survey.vanished {
        let name = segment_name(*first);
        findings.push(format!("{name} was just taken away; {PUT_BACK}"));
    }
    if survey.foreign_manifest {
        findings.push(
            "the manifest in the spool's folder belongs to another spool: missing segments of that one cannot be reported"
                .to_owned(),
        );
    }
    if survey.segments.is_empty() && survey.has_reserve && survey.manifest.is_none() {
        findings.push(
            "no segment is there, though an earlier run left its reserve file: unless that run accepted nothing, its \
             segments were taken away; put them back while Fluent Bit is stopped to have them delivered"
                .to_owned(),
        );
    }
    findings
}

/// A number that was never given to a frame, including unreadable ones.
fn next_number(survey: &Survey) -> Seq {
    let own = survey.segments.last().map(|last| {
        let unread = last.torn + last.damage.iter().map(|damage| damage.bytes).sum::<u64>();
        (last.next + unread / HEADER).max(last.first + 1)
    });
    let foreign = survey.foreign.iter();
    let foreign = foreign.filter_map(|(name, _)| Some(segment_first(name)? + 1));
    // Quarantined files are named after a segment or chunk: its number must not be reused.
    let names = survey.quarantine.iter();
    let place = |name: &str| quarantine_place(name).map(|(first, _)| first);
    let quarantined =
        names.filter_map(|(name, _)| Some(place(name).or(set_aside_chunk(name))? + 1));
    let vanished = survey.vanished.iter().map(|first| first + 1);
    // A missing newest segment may have used any of its reserved numbers, and may come back.
    let absent = survey
        .manifest
        .as_ref()
        .filter(|_| survey.newest_is_absent());
    let absent = absent.map(|(_, manifest)| manifest.numbers);
    let numbers = foreign
        .chain(own)
        .chain(quarantined)
        .chain(vanished)
        .chain(absent);
    numbers.max().unwrap_or(1)
}

/// Truncates a torn tail and makes the last segment durable. Returns it if it is fit to be continued.
fn repair_last(
    disk: &dyn Disk,
    last: &mut Segment,
    limits: &Limits,
    quarantine: &mut Quarantine<'_>,
    findings: &mut Vec<String>,
) -> io::Result<Option<Active>> {
    let name = last.name();
    let file = disk.open(&name)?;
    let mut sound = last.damage.is_empty() && last.void == 0;
    if let Some(damage) = last.unreadable() {
        findings.extend(quarantine.report_damage(last.first, &damage));
        sound = false;
    } else if last.torn + last.room > 0 {
        let whole = last.bytes - last.torn - last.room;
        match file.truncate(whole) {
            Ok(()) if last.torn == 0 => last.bytes = whole,
            Ok(()) => {
                findings.push(format!(
                    "{name} was truncated from {} to {whole} bytes: its last write was never finished",
                    last.bytes
                ));
                last.bytes = whole;
            }
            Err(_) if last.torn == 0 => sound = false,
            Err(error) => {
                findings.push(format!(
                    "{name} ends in {} bytes of a write that was never finished; they cannot be cut off: {error}",
                    last.torn
                ));
                sound = false;
            }
        }
    }
    sound &= last.bytes.is_multiple_of(ALIGN);
    file.sync()?;
    Ok(last
        .begin
        .filter(|_| sound && last.bytes < limits.segment_bytes)
        .map(|_| Active {
            file: file.into(),
            first: last.first,
            len: last.bytes,
            capacity: last.bytes,
            bare: last.is_bare(),
            version: last.version,
        }))
}

fn state(survey: &Survey, limits: &Limits, quarantined: u64) -> State {
    let mut chunks: BTreeMap<Seq, Place> = BTreeMap::new();
    let (mut segments, mut relocated) = (BTreeMap::new(), BTreeSet::new());
    let mut relocated_bytes = 0;
    for segment in &survey.segments {
        let mut unfinished = 0;
        for (chunk, place) in &segment.chunks {
            if !survey.is_finished(*chunk) {
                unfinished += 1;
                chunks.insert(*chunk, *place);
                if place.is_relocated() {
                    relocated.insert((place.arrived, *chunk));
                    relocated_bytes += place.events_len() as u64;
                }
            }
        }
        let info = SegmentInfo {
            bytes: segment.bytes,
            unfinished,
            indexed: true,
            listed: true,
            has_begin: segment.begin.is_some(),
            bare: segment.is_bare(),
            reusable: false,
        };
        segments.insert(segment.first, info);
    }
    let excess = survey.window.len().saturating_sub(limits.window);
    let window: VecDeque<ChunkId> = survey.window.iter().skip(excess).copied().collect();
    let mut replayable: HashMap<ChunkId, u32> = HashMap::new();
    for id in &window {
        *replayable.entry(*id).or_insert(0) += 1;
    }
    // The newest is always kept: the numbers that it used are not known otherwise.
    let newest = survey
        .manifest
        .as_ref()
        .map(|(_, manifest)| manifest.newest());
    let is_needed =
        |(first, entry): &(&Seq, &Entry)| entry.may_hold_chunks() || Some(**first) == newest;
    let absent = survey.absent.iter().filter(is_needed);
    State {
        bytes: segments
            .values()
            .map(|segment: &SegmentInfo| segment.bytes)
            .sum::<u64>()
            + quarantined,
        quarantined,
        unfinished: chunks.len() as u64,
        frontier: Seq::MAX,
        resident: segments.keys().next_back().copied(),
        ahead: Ahead::of(&chunks),
        chunks,
        relocated,
        relocated_bytes,
        segments,
        replayable,
        window,
        next_batch: survey.ledger.next_batch(),
        absent: absent.map(|(first, entry)| (*first, *entry)).collect(),
        ..State::default()
    }
}

fn recovered(state: &State, findings: Vec<String>) -> Recovered {
    Recovered {
        unfinished: state.unfinished,
        next_batch: state.next_batch,
        findings,
    }
}

/// The folder that damaged bytes are copied to, for inspection.
pub(super) struct Quarantine<'d> {
    disk: &'d dyn Disk,
    /// The size of the known files in it.
    pub(super) bytes: u64,
    /// The names of the known files in it.
    existing: Vec<String>,
}

impl<'d> Quarantine<'d> {
    pub(super) fn new(disk: &'d dyn Disk) -> Quarantine<'d> {
        Quarantine {
            disk,
            bytes: 0,
            existing: Vec::new(),
        }
    }

    /// The quarantine with the names of the files in it, which [`Quarantine::into_names`] returns.
    pub(super) fn with_names(disk: &'d dyn Disk, existing: Vec<String>) -> Quarantine<'d> {
        Quarantine {
            disk,
            bytes: 0,
            existing,
        }
    }

    pub(super) fn into_names(self) -> Vec<String> {
        self.existing
    }

    /// Keeps a segment's damaged bytes. Returns a finding, or `None` if an earlier run already did.
    pub(super) fn report_damage(&mut self, segment: Seq, damage: &Damage) -> Option<String> {
        let name = quarantine_name(segment, damage.offset);
        if self.existing.contains(&name) {
            return None;
        }
        let from = self.disk.open(&segment_name(segment));
        let kept = from.and_then(|from| self.keep(segment, damage, &*from));
        let what = describe(segment, damage, kept.as_ref().map(|_| ()));
        Some(format!("{what}. Reading continues after them"))
    }

    /// Keeps doubted chunks. Returns a finding, or `None` if an earlier run already did.
    pub(super) fn report_doubted(&mut self, segment: Seq, doubted: &Doubted) -> Option<String> {
        let kept = self.keep_part(segment, doubted.offset, doubted.bytes)?;
        let segment = segment_name(segment);
        Some(format!(
            "{segment}: {doubted}; they are not delivered, and {kept}"
        ))
    }

    /// Keeps the torn end of a closed segment. Returns a finding, or `None` if an earlier run already did.
    pub(super) fn report_torn_end(&mut self, segment: &Segment) -> Option<String> {
        let (name, bytes) = (segment.name(), segment.torn);
        let kept = self.keep_part(segment.first, segment.bytes - bytes, bytes)?;
        Some(format!(
            "{name} ends in {bytes} bytes that are not a whole frame: they are damaged, or of a write that was never \
             finished; {kept}"
        ))
    }

    /// Keeps a part of a segment. Returns the result in words, or `None` if an earlier run already did.
    fn keep_part(&mut self, segment: Seq, offset: u64, bytes: u64) -> Option<String> {
        let name = quarantine_name(segment, offset);
        if self.existing.contains(&name) {
            return None;
        }
        let part = Damage {
            offset,
            bytes,
            missing: segment..segment + 1,
        };
        let from = self.disk.open(&segment_name(segment));
        let kept = from.and_then(|from| self.keep(segment, &part, &*from));
        Some(match kept {
            Ok(()) => format!("they are kept in {name}"),
            Err(error) => format!("they are not kept: {name} cannot be written: {error}"),
        })
    }

    /// Moves a returned segment's file to the quarantine. Returns a finding.
    pub(super) fn move_aside(&mut self, name: &str, bytes: u64) -> String {
        let first = segment_first(name).unwrap_or(0);
        let mut asides = (1..u32::MAX).map(|n| displaced_name(first, n));
        let aside = asides.find(|aside| !self.existing.contains(aside));
        let aside = aside.expect("fewer files than numbers");
        let what = format!(
            "{name} was finished and removed by an earlier run and put back since, or the machine stopped when it began: \
             nothing in it needs to be delivered"
        );
        match self.disk.rename(name, &aside) {
            Ok(()) => {
                self.bytes += bytes;
                let what = format!("{what}, and it was moved to {aside}");
                self.existing.push(aside);
                what
            }
            Err(error) => {
                format!("{what}. It cannot be moved to {aside}: {error}")
            }
        }
    }

    /// Copies damaged bytes of a segment's file.
    pub(super) fn keep(
        &mut self,
        segment: Seq,
        damage: &Damage,
        from: &dyn File,
    ) -> io::Result<()> {
        let name = quarantine_name(segment, damage.offset);
        let to = match self.disk.create(&name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
            created => created?,
        };
        let read = |into: &mut Vec<u8>, len, offset| from.read_at(into, len, offset);
        self.fill(&name, &*to, read, damage.offset, damage.bytes)?;
        self.existing.push(name);
        Ok(())
    }

    /// Copies exactly `bytes` bytes of a segment's file into a file of this name, replacing what an earlier attempt left. Bytes
    /// that the disk has lost become zeros. Returns their number.
    pub(super) fn copy(
        &mut self,
        name: &str,
        from: &dyn File,
        offset: u64,
        bytes: u64,
    ) -> io::Result<u64> {
        let to = match self.disk.create(name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.disk.remove(name)?;
                self.disk.create(name)?
            }
            created => created?,
        };
        let mut lost = 0;
        let read = |into: &mut Vec<u8>, len, offset| {
            lost += read_with_gaps(from, into, len, offset)?;
            Ok(())
        };
        match self.fill(name, &*to, read, offset, bytes)? == bytes {
            true => Ok(lost),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Copies bytes into a new file, which is removed on failure. Returns the number of bytes copied.
    fn fill(
        &mut self,
        name: &str,
        to: &dyn File,
        from: impl FnMut(&mut Vec<u8>, usize, u64) -> io::Result<()>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<u64> {
        let copied = copy_from(from, offset, bytes, to);
        match copied.and_then(|bytes| to.sync().map(|()| bytes)) {
            Ok(bytes) => {
                self.bytes += bytes;
                Ok(bytes)
            }
            Err(error) => {
                let left = to.len().unwrap_or(bytes);
                if self.disk.remove(name).is_err() {
                    self.bytes += left;
                }
                Err(error)
            }
        }
    }
}

impl Quarantine<'_> {
    /// Writes a file with `content`. Returns its name.
    pub(super) fn write(
        &mut self,
        name: &str,
        content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<String> {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let others = (2..u32::MAX).map(|n| format!("{QUARANTINE}{stem}-{n}.{extension}"));
        let mut names = std::iter::once(format!("{QUARANTINE}{name}")).chain(others);
        let (name, to) = loop {
            let name = names.next().expect("fewer files than numbers");
            match self.disk.create(&name) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => break (name, created?),
            }
        };
        let mut appended = Appender {
            file: &*to,
            bytes: 0,
        };
        let written = content(&mut appended).and_then(|()| to.sync());
        let bytes = appended.bytes;
        if written.is_ok() || self.disk.remove(&name).is_err() {
            self.bytes += bytes;
        }
        written?;
        Ok(name)
    }
}

/// A writer that fills a file from its beginning.
struct Appender<'f> {
    file: &'f dyn File,
    bytes: u64,
}

impl Write for Appender<'_> {
    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        self.file.write_at(&[IoSlice::new(block)], self.bytes)?;
        self.bytes += block.len() as u64;
        Ok(block.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Describes damage and where the bytes are kept.
pub(super) fn describe(segment: Seq, damage: &Damage, kept: Result<(), &io::Error>) -> String {
    let what = format!("{}: {damage}", segment_name(segment));
    let name = quarantine_name(segment, damage.offset);
    match kept {
        Ok(()) => format!("{what}; they are kept in {name}"),
        Err(error) => format!("{what}; they are not kept: {name} cannot be written: {error}"),
    }
}

/// Appends `len` bytes from `offset` on, fewer at the end of the file. Bytes that the disk has lost become zeros. Returns their
/// number.
fn read_with_gaps(from: &dyn File, into: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<u64> {
    /// What disks lose at once, in bytes.
    const SECTOR: usize = 4_096;
    let start = into.len();
    match from.read_at(into, len, offset) {
        Err(error) if has_lost_bytes(&error) => into.truncate(start),
        read => return read.map(|()| 0),
    }
    let end = from.len()?.min(offset + len as u64);
    let (mut at, mut lost) = (offset, 0);
    while at < end {
        let wanted = SECTOR.min((end - at) as usize);
        let before = into.len();
        match from.read_at(into, wanted, at) {
            Err(error) if has_lost_bytes(&error) => {
                into.truncate(before);
                into.resize(before + wanted, 0);
                lost += wanted as u64;
            }
            read => read?,
        }
        at += wanted as u64;
    }
    Ok(lost)
}

/// Copies up to `left` bytes to the beginning of a file. Returns the number of bytes copied.
pub(super) fn copy_bytes(
    from: &dyn File,
    offset: u64,
    left: u64,
    to: &dyn File,
) -> io::Result<u64> {
    let read = |into: &mut Vec<u8>, len, offset| from.read_at(into, len, offset);
    copy_from(read, offset, left, to)
}

/// The same for a function that reads.
fn copy_from(
    mut from: impl FnMut(&mut Vec<u8>, usize, u64) -> io::Result<()>,
    mut offset: u64,
    mut left: u64,
    to: &dyn File,
) -> io::Result<u64> {
    let mut buffer = Vec::new();
    let mut copied = 0;
    while left > 0 {
        let wanted = BLOCK.min(usize::try_from(left).unwrap_or(BLOCK));
        buffer.clear();
        from(&mut buffer, wanted, offset)?;
        if buffer.is_empty() {
            break;
        }
        to.write_at(&[IoSlice::new(&buffer)], copied)?;
        let read = buffer.len() as u64;
        offset += read;
        left -= read;
        copied += read;
    }
    Ok(copied)
}
