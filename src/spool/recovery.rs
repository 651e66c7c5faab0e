//! Makes what a run left behind fit to be gone on with.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, Write};

use super::disk::{Disk, File};
use super::frame::{
    ALIGN, HEADER, QUARANTINE, SUSPECTS, aside_chunk, copy_first, displaced_name, quarantine_name,
    quarantine_place, segment_first, segment_name,
};
use super::manifest::{Entry, Keeper};
use super::scan::{self, Check, Damage, Doubted, Place, Segment, Survey};
use super::suspects::Record;
use super::{Active, Holding, Limits, Recovered, Seq, State};
use crate::ids::ChunkId;

/// Bytes that are copied into the quarantine at once.
const BLOCK: usize = 256 * 1024;

/// Missing segments that are named one by one.
const MOST_NAMED: usize = 5;

/// What a run begins with.
pub(super) struct Resumed {
    pub(super) spool: Option<u64>,
    pub(super) state: State,
    /// The number of the next frame.
    pub(super) next: Seq,
    /// The segment that is gone on with, where the last one is fit for it.
    pub(super) active: Option<Active>,
    pub(super) keeper: Keeper,
    /// The numbers before `next` are not all used.
    pub(super) apart: bool,
    pub(super) recovered: Recovered,
    /// Which chunks were being worked on when processes ended.
    pub(super) suspects: Record,
}

/// Reads the directory, keeps damaged bytes apart, cuts a torn tail off, and makes durable what is there.
///
/// Fails only where the disk does, whatever the files hold.
pub(super) fn recover(disk: &dyn Disk, limits: &Limits) -> io::Result<Resumed> {
    take_copies(disk)?;
    let mut survey = scan::survey(disk, Check::LastSegment)?;
    let mut findings: Vec<String> = survey
        .foreign
        .iter()
        .map(|(name, what)| format!("{name} is left alone: {what}"))
        .collect();
    let mut quarantine = Quarantine {
        disk,
        bytes: survey.quarantine.iter().map(|(_, bytes)| bytes).sum(),
        there: survey
            .quarantine
            .iter()
            .map(|(name, _)| name.clone())
            .collect(),
    };
    for segment in &survey.segments {
        for damage in &segment.damage {
            findings.extend(quarantine.find(segment.first, damage));
        }
    }
    for segment in &survey.segments {
        if let Some(doubted) = &segment.doubted {
            findings.extend(quarantine.doubt(segment.first, doubted));
        }
    }
    // The last one may end in a write that was not finished, unless others were begun behind it that are away.
    let count = survey.segments.len();
    let closed = survey.closed();
    for segment in survey.segments[..closed]
        .iter()
        .filter(|segment| segment.torn > 0)
    {
        findings.extend(quarantine.keep_end(segment));
    }
    for (name, bytes) in &survey.returned {
        // The process ended when it had made the file, and before it wrote to it.
        let is_empty = disk.open(name).and_then(|file| file.len());
        if is_empty.is_ok_and(|bytes| bytes == 0) && disk.remove(name).is_ok() {
            continue;
        }
        findings.push(quarantine.put_aside(name, *bytes));
    }
    findings.extend(absences(&survey));
    let suspects = survey.suspects().unwrap_or_else(|why| {
        findings.push(format!(
            "{SUSPECTS} is not read, and begun anew: {why}. A chunk that ended the last run is found out if it ends two more"
        ));
        Record::default()
    });
    let next = next_number(&survey);
    let active = match survey.segments.last_mut() {
        Some(last) if closed < count => {
            settle_last(disk, last, limits, &mut quarantine, &mut findings)?
        }
        // What is written behind a segment that others were begun behind would be void when those come back.
        _ => None,
    };
    let keeper = match survey.manifest.clone() {
        Some(found) => Keeper::resume(disk, found)?,
        None => Keeper::new(next, survey.generation),
    };
    for name in &survey.empty {
        // Nothing is lost with it, and nothing hangs on it: its name alone could be in the way.
        let _ = disk.remove(name);
    }
    for (name, bytes) in &survey.spares {
        match disk.remove(name) {
            // A predecessor's last thread was faster.
            Err(error) if error.kind() != ErrorKind::NotFound => findings.push(format!(
                "{name} ({bytes} bytes, of no more use) cannot be removed: {error}"
            )),
            _ => {}
        }
    }
    // What a crash interrupted may be in the page cache only; from here on it is relied on.
    disk.sync_dir()?;

    let state = state(&survey, limits, quarantine.bytes);
    let recovered = recovered(&survey, &state, findings);
    Ok(Resumed {
        spool: survey.spool,
        next,
        active,
        keeper,
        apart: survey.newest_is_absent(),
        recovered,
        state,
        suspects,
    })
}

/// What was to take the place of a segment that was taken away does so now, unless the segment is there: nothing else is
/// left of it, if this is not all of it either.
fn take_copies(disk: &dyn Disk) -> io::Result<()> {
    let files = disk.list()?;
    for (copy, _) in &files {
        let Some(first) = copy_first(copy) else {
            continue;
        };
        let name = segment_name(first);
        match files.iter().any(|(file, _)| *file == name) {
            // Where it cannot be removed it is in nobody's way.
            true => drop(disk.remove(copy)),
            false => disk.rename(copy, &name)?,
        }
    }
    Ok(())
}

/// What is not there and should be.
fn absences(survey: &Survey) -> Vec<String> {
    let mut absences: Vec<String> = Vec::new();
    let put_back = "what was accepted in it and not delivered is not delivered unless it is put back while Fluent Bit \
                    is stopped";
    let missing = survey.missing();
    let (named, more) = missing.split_at(missing.len().min(MOST_NAMED));
    for missing in named {
        absences.push(format!("{missing}; {put_back}"));
    }
    if !more.is_empty() {
        let more = more.len();
        absences.push(format!(
            "{more} more segments are not there: ferry spool verify names them"
        ));
    }
    for first in &survey.vanished {
        let name = segment_name(*first);
        absences.push(format!("{name} was taken away just now; {put_back}"));
    }
    if survey.others_manifest {
        absences.push(
            "the list of segments in the spool's folder is another spool's: what is missing of that one is not known"
                .to_owned(),
        );
    }
    if survey.segments.is_empty() && survey.reserve && survey.manifest.is_none() {
        absences.push(
            "no segment is there, though an earlier run left its reserve: unless it ended before it accepted anything, \
             its segments were taken away, and what was not delivered of them is not delivered unless they are put back \
             while Fluent Bit is stopped"
                .to_owned(),
        );
    }
    absences
}

/// A number that no frame ever had, the unreadable ones included.
fn next_number(survey: &Survey) -> Seq {
    let own = survey.segments.last().map(|last| {
        let unread = last.torn + last.damage.iter().map(|damage| damage.bytes).sum::<u64>();
        (last.next + unread / HEADER).max(last.first + 1)
    });
    let foreign = survey.foreign.iter();
    let foreign = foreign.filter_map(|(name, _)| Some(segment_first(name)? + 1));
    // What is quarantined bears a segment's name, or a chunk's: another one must not get it.
    let names = survey.quarantine.iter();
    let place = |name: &str| quarantine_place(name).map(|(first, _)| first);
    let quarantined = names.filter_map(|(name, _)| Some(place(name).or(aside_chunk(name))? + 1));
    let vanished = survey.vanished.iter().map(|first| first + 1);
    // Nobody knows how many of them the newest segment used, if it is not there: it may come back.
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

/// Cuts the torn tail off and makes the segment durable. Gives it back where it can be gone on with.
fn settle_last(
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
        findings.extend(quarantine.find(last.first, &damage));
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
        }))
}

fn state(survey: &Survey, limits: &Limits, quarantined: u64) -> State {
    let mut chunks: BTreeMap<Seq, Place> = BTreeMap::new();
    let mut segments = BTreeMap::new();
    for segment in &survey.segments {
        let mut unfinished = 0;
        for (chunk, place) in &segment.chunks {
            if !survey.is_finished(*chunk) {
                unfinished += 1;
                chunks.insert(*chunk, *place);
            }
        }
        let holding = Holding {
            bytes: segment.bytes,
            unfinished,
            begun: segment.begin.is_some(),
            bare: segment.is_bare(),
            reusable: false,
        };
        segments.insert(segment.first, holding);
    }
    let excess = survey.window.len().saturating_sub(limits.window);
    let window: VecDeque<ChunkId> = survey.window.iter().skip(excess).copied().collect();
    let mut replayable: HashMap<ChunkId, u32> = HashMap::new();
    for id in &window {
        *replayable.entry(*id).or_insert(0) += 1;
    }
    // The newest is never forgotten: what numbers it used is not known from elsewhere.
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
            .map(|segment: &Holding| segment.bytes)
            .sum::<u64>()
            + quarantined,
        quarantined,
        chunks,
        segments,
        replayable,
        window,
        next_batch: survey.ledger.next_batch(),
        absent: absent.map(|(first, entry)| (*first, *entry)).collect(),
        ..State::default()
    }
}

fn recovered(survey: &Survey, state: &State, findings: Vec<String>) -> Recovered {
    let settled = |chunk: &Seq| (*chunk, survey.settled(*chunk).to_vec());
    let settled = state.chunks.keys().map(settled);
    Recovered {
        unfinished: state.chunks.len() as u64,
        pending: survey.pending(),
        settled: settled.filter(|(_, runs)| !runs.is_empty()).collect(),
        next_batch: state.next_batch,
        // They are known when the spool's file about them is open.
        suspects: Vec::new(),
        findings,
    }
}

/// Copies damaged bytes to where a person finds them.
pub(super) struct Quarantine<'d> {
    disk: &'d dyn Disk,
    /// Bytes of all files in it, as far as they are known of.
    pub(super) bytes: u64,
    /// Names of the files that are in it already.
    there: Vec<String>,
}

impl<'d> Quarantine<'d> {
    pub(super) fn new(disk: &'d dyn Disk) -> Quarantine<'d> {
        Quarantine {
            disk,
            bytes: 0,
            there: Vec::new(),
        }
    }

    /// Keeps damaged bytes of a segment, and says so; says nothing where an earlier run did both.
    fn find(&mut self, segment: Seq, damage: &Damage) -> Option<String> {
        let name = quarantine_name(segment, damage.offset);
        if self.there.contains(&name) {
            return None;
        }
        let from = self.disk.open(&segment_name(segment));
        let kept = from.and_then(|from| self.keep(segment, damage, &*from));
        let what = describe(segment, damage, kept.as_ref().map(|_| ()));
        Some(format!("{what}. Reading goes on behind them"))
    }

    /// Keeps chunks that are in doubt, and says so; says nothing where an earlier run did both.
    fn doubt(&mut self, segment: Seq, doubted: &Doubted) -> Option<String> {
        let kept = self.keep_part(segment, doubted.offset, doubted.bytes)?;
        let segment = segment_name(segment);
        Some(format!(
            "{segment}: {doubted}; they are not delivered, and {kept}"
        ))
    }

    /// Keeps the end of a segment that nothing more is written to, and says so; says nothing where an earlier run did both.
    fn keep_end(&mut self, segment: &Segment) -> Option<String> {
        let (name, bytes) = (segment.name(), segment.torn);
        let kept = self.keep_part(segment.first, segment.bytes - bytes, bytes)?;
        Some(format!(
            "{name} ends in {bytes} bytes that are no whole frame: of a write that was never finished, unless they are \
             damaged; {kept}"
        ))
    }

    /// Keeps a part of a segment. Gives words about that, unless an earlier run did it.
    fn keep_part(&mut self, segment: Seq, offset: u64, bytes: u64) -> Option<String> {
        let name = quarantine_name(segment, offset);
        if self.there.contains(&name) {
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

    /// Moves the file of a segment here that was done with, and says so.
    fn put_aside(&mut self, name: &str, bytes: u64) -> String {
        let first = segment_first(name).unwrap_or(0);
        let mut asides = (1..u32::MAX).map(|n| displaced_name(first, n));
        let aside = asides.find(|aside| !self.there.contains(aside));
        let aside = aside.expect("not all of them are there");
        let what = format!(
            "{name} was finished and removed by an earlier run and put back since, or the machine stopped when it was begun: \
             nothing in it is to be delivered"
        );
        match self.disk.rename(name, &aside) {
            Ok(()) => {
                self.bytes += bytes;
                let what = format!("{what}, and it lies in {aside} now");
                self.there.push(aside);
                what
            }
            Err(error) => {
                format!("{what}. It stays where it is, as it cannot be moved to {aside}: {error}")
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
        self.fill(&name, &*to, from, damage.offset, damage.bytes)?;
        self.there.push(name);
        Ok(())
    }

    /// Copies so many bytes of a segment's file, all of them, into a file of this name. What is left there of an earlier
    /// try may be less.
    pub(super) fn copy(
        &mut self,
        name: &str,
        from: &dyn File,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        let to = match self.disk.create(name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.disk.remove(name)?;
                self.disk.create(name)?
            }
            created => created?,
        };
        match self.fill(name, &*to, from, offset, bytes)? == bytes {
            true => Ok(()),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Copies bytes into a file that was just made, or removes it. Gives how many there were.
    fn fill(
        &mut self,
        name: &str,
        to: &dyn File,
        from: &dyn File,
        offset: u64,
        bytes: u64,
    ) -> io::Result<u64> {
        let copied = copy_bytes(from, offset, bytes, to);
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
    /// Writes a file, as `content` hands it over. Gives its name.
    pub(super) fn write(
        &mut self,
        name: &str,
        content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<String> {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let others = (2..u32::MAX).map(|n| format!("{QUARANTINE}{stem}-{n}.{extension}"));
        let mut names = std::iter::once(format!("{QUARANTINE}{name}")).chain(others);
        let (name, to) = loop {
            let name = names.next().expect("not all of them are there");
            match self.disk.create(&name) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => break (name, created?),
            }
        };
        let mut appended = Appended {
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

/// A file that is written from its beginning.
struct Appended<'f> {
    file: &'f dyn File,
    bytes: u64,
}

impl Write for Appended<'_> {
    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        self.file.write_at(&[IoSlice::new(block)], self.bytes)?;
        self.bytes += block.len() as u64;
        Ok(block.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says what is damaged, and where it is kept.
pub(super) fn describe(segment: Seq, damage: &Damage, kept: Result<(), &io::Error>) -> String {
    let what = format!("{}: {damage}", segment_name(segment));
    let name = quarantine_name(segment, damage.offset);
    match kept {
        Ok(()) => format!("{what}; they are kept in {name}"),
        Err(error) => format!("{what}; they are not kept: {name} cannot be written: {error}"),
    }
}

/// Copies bytes to the beginning of a file. Gives how many there were.
pub(super) fn copy_bytes(
    from: &dyn File,
    mut offset: u64,
    mut left: u64,
    to: &dyn File,
) -> io::Result<u64> {
    let mut buffer = Vec::new();
    let mut copied = 0;
    while left > 0 {
        let wanted = BLOCK.min(usize::try_from(left).unwrap_or(BLOCK));
        buffer.clear();
        from.read_at(&mut buffer, wanted, offset)?;
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
