//! Cuts a chunk's encoded events into pieces within the limits of their targets.

use std::ops::Range;
use std::sync::Arc;

use super::ack::{AckGuard, AckTracker};
use super::batch::{Piece, runs};
use super::context::Context;
use super::memory::Share;
use crate::buffers;
use crate::codec::rejected::Letter;
use crate::codec::{Encoded, Encoding, NeedsMore, Part, Place};
use crate::compress::Compression;
use crate::format::Format;
use crate::log::Level;
use crate::metrics::{Record, Stage};
use crate::sink::Shape;

/// The amount of text compressed at once, at least: more than a chunk of the host holds.
const COMPRESSED_RUN_BYTES: usize = 8 * 1024 * 1024;
/// The size of a line's event number.
pub(super) const LINE_NUMBER_BYTES: usize = size_of::<u32>();
/// The overhead of a piece in flight: its guard, its record, its place in the queue.
pub(super) const PIECE_BYTES: usize = 512;
/// The approximate overhead of an object, besides its bytes and guards: its names, tracker, note, and place with its
/// sender. If each event becomes an object, this is most of the memory used.
pub(super) const OBJECT_BYTES: usize = 2_816;
/// The overhead of a line of an object: the end of its text, and its event's number.
const LINE_BYTES: usize = 32;

/// Encodes chunks and cuts them into pieces.
pub(super) struct Cutter {
    context: Arc<Context>,
    /// What new objects are made by.
    format: Arc<dyn Format>,
}

impl Cutter {
    pub(super) fn new(context: Arc<Context>) -> Cutter {
        let objects = context.traits.object_layout.as_ref();
        let most = objects.map_or(usize::MAX, |objects| objects.bounds.bytes);
        Cutter {
            format: context.config.format(most),
            context,
        }
    }

    /// Returns what new objects are made by.
    pub(super) fn format(&self) -> &Arc<dyn Format> {
        &self.format
    }

    /// Returns the settings for encoding chunks as new objects have them.
    pub(super) fn encoding(&self) -> Encoding<'_> {
        self.encoding_for(&*self.format)
    }

    /// Returns the settings for encoding chunks as the objects of a format have them.
    pub(super) fn encoding_for<'c>(&'c self, format: &'c dyn Format) -> Encoding<'c> {
        let lines = Encoding {
            options: &self.context.config.encode,
            ..self.line_encoding()
        };
        match format.rows() {
            None => lines,
            rows => Encoding {
                rows,
                longest_line: usize::MAX,
                ..lines
            },
        }
    }

    /// Returns the settings for encoding chunks as lines, which dead letters have in any format.
    pub(super) fn line_encoding(&self) -> Encoding<'_> {
        let Context {
            config,
            traits,
            sink,
            ..
        } = &*self.context;
        Encoding {
            longest_line: match config.compression {
                Compression::None => sink.longest_line(),
                // The compressed size of a line is not known in advance.
                Compression::Gzip(_) | Compression::Zstd(_) => usize::MAX,
            },
            line_bytes: match traits.object_layout {
                Some(_) => LINE_BYTES,
                // Each line may become a record.
                None => PIECE_BYTES,
            },
            name_bytes: OBJECT_BYTES,
            targets: traits.target_template.as_ref(),
            ..Encoding::new(&config.letters, &traits.name_template)
        }
    }

    pub(super) fn encode_step(
        &self,
        tag: &Arc<[u8]>,
        data: &[u8],
        from: Place,
        memory: usize,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Encoded, NeedsMore> {
        let encoded = self.encoding().step(tag, data, from, memory, wanted)?;
        let bytes: usize = encoded.parts.iter().map(|part| part.text.len()).sum();
        self.context.metrics.bytes.add(Stage::Encoded, bytes as u64);
        Ok(encoded)
    }

    /// Returns the target of a part, which names its sender.
    pub(super) fn target(&self, part: &Part) -> String {
        match (&self.context.traits.object_layout, &part.target) {
            (None, _) => (self.context.traits.target_of_name)(&part.name),
            (Some(_), Some(target)) => target.clone(),
            (Some(_), None) => String::new(),
        }
    }

    /// Returns the name that a request for a part uses: the stream, or the object named after its chunk.
    pub(super) fn request_target(&self, part: &Part, chunk: &str) -> Arc<str> {
        match &self.context.traits.object_layout {
            None => (self.context.traits.target_of_name)(&part.name).into(),
            Some(objects) => objects.name(&part.name, part.first, chunk).into(),
        }
    }

    /// Cuts a part into pieces within its target's limits, each of which holds a part of `share`. Lines that are too
    /// long become letters.
    pub(super) fn pieces(
        &self,
        mut part: Part,
        shape: Shape,
        tracker: &Arc<AckTracker>,
        encoded: &mut Encoded,
        share: &mut Share,
    ) -> Vec<Piece<AckGuard>> {
        let limits = shape.limits;
        let compression = if shape.compression {
            self.context.config.compression
        } else {
            Compression::None
        };
        let of_lines = |lines: usize| lines * size_of::<u32>();
        if compression == Compression::None {
            drop_long_lines(&mut part, tracker.tag(), limits.record_bytes, encoded);
            let runs = runs(&part.ends, shape.piece_bytes, limits.record_lines);
            let overhead = of_lines(part.events.len()) + runs.len() * self.piece_bytes();
            let text = buffers::fit(part.text);
            let (text, events) = (share.attach(text, overhead), part.events.into());
            let piece = |run: Range<usize>| Piece {
                bytes: text.slice(span(&part.ends, &run)).into(),
                lines: count(run.len()),
                compressed: false,
                guard: tracker.guard(&events, run),
            };
            let pieces = runs.into_iter().map(piece).collect();
            return set_targets(pieces, part.target);
        }
        let text_bytes = limits.record_bytes.max(COMPRESSED_RUN_BYTES);
        let mut todo = runs(&part.ends, text_bytes, limits.record_lines);
        todo.reverse();
        let events = part.events.into();
        let mut pieces = Vec::new();
        while let Some(run) = todo.pop() {
            let text = &part.text[span(&part.ends, &run)];
            let body = compression.apply(text);
            if body.len() <= limits.record_bytes {
                let overhead = of_lines(run.len()) + self.piece_bytes();
                pieces.push(Piece {
                    bytes: share.attach(body, overhead).into(),
                    lines: count(run.len()),
                    compressed: true,
                    guard: tracker.guard(&events, run),
                });
            } else if run.len() == 1 {
                let detail = oversized_detail(limits.record_bytes, body.len());
                let letter = Letter::too_large(tracker.tag(), text, detail);
                encoded.letter(events[run.start], letter);
            } else {
                let middle = run.start + run.len() / 2;
                todo.push(middle..run.end);
                todo.push(run.start..middle);
            }
        }
        buffers::give(part.text);
        set_targets(pieces, part.target)
    }

    /// Returns the overhead of a piece.
    fn piece_bytes(&self) -> usize {
        match self.context.traits.object_layout {
            None => PIECE_BYTES,
            Some(_) => OBJECT_BYTES,
        }
    }

    pub(super) fn count_skipped(&self, skipped: usize) {
        if skipped > 0 {
            self.context
                .metrics
                .records
                .add(Record::Skipped, skipped as u64);
            self.context.log.trouble(
                Level::Warn,
                "log_key",
                &format!("{skipped} records without the log_key were skipped"),
            );
        }
    }
}

/// Sets the target of pieces whose sender serves several targets.
fn set_targets(mut pieces: Vec<Piece<AckGuard>>, target: Option<String>) -> Vec<Piece<AckGuard>> {
    if let Some(target) = target {
        let target: Arc<str> = target.into();
        for piece in &mut pieces {
            piece.guard.set_target(&target);
        }
    }
    pieces
}

fn count(lines: usize) -> u32 {
    u32::try_from(lines).unwrap_or(u32::MAX)
}

/// Describes a line of `bytes` bytes that exceeds the limit.
fn oversized_detail(limit: usize, bytes: usize) -> String {
    format!("a record of {bytes} bytes; the destination takes at most {limit}")
}

/// Returns the range of the text of some lines.
fn span(ends: &[usize], lines: &Range<usize>) -> Range<usize> {
    let start = lines.start.checked_sub(1).map_or(0, |before| ends[before]);
    start..ends[lines.end - 1]
}

/// Removes the lines that exceed a record's limit; they become letters.
fn drop_long_lines(part: &mut Part, tag: &Arc<[u8]>, limit: usize, encoded: &mut Encoded) {
    let ends = &part.ends;
    let spans = (0..ends.len()).map(|line| span(ends, &(line..line + 1)));
    if spans.clone().all(|span| span.len() <= limit) {
        return;
    }
    let mut kept = Part {
        text: Vec::with_capacity(part.text.len()),
        ends: Vec::with_capacity(ends.len()),
        events: Vec::with_capacity(part.events.len()),
        name: part.name.clone(),
        target: part.target.clone(),
        first: part.first,
    };
    for (span, event) in spans.zip(&part.events) {
        let line = &part.text[span];
        if line.len() > limit {
            let letter = Letter::too_large(tag, line, oversized_detail(limit, line.len()));
            encoded.letter(*event, letter);
        } else {
            kept.text.extend_from_slice(line);
            kept.ends.push(kept.text.len());
            kept.events.push(*event);
        }
    }
    *part = kept;
}

/// The memory that lines take as pieces of a target's requests.
pub(super) mod weight {
    use super::{LINE_NUMBER_BYTES, PIECE_BYTES};
    use crate::sink::Shape;

    /// Returns the approximate size of lines that end at `ends`.
    pub(in crate::delivery) fn of(ends: &[usize], shape: &Shape) -> usize {
        let bytes = ends.last().copied().unwrap_or(0);
        let by_lines = ends.len() / shape.limits.record_lines.max(1) as usize;
        let pieces = 1 + by_lines.max(bytes / shape.piece_bytes.max(1));
        bytes + ends.len() * LINE_NUMBER_BYTES + pieces * PIECE_BYTES
    }

    /// Returns the number of lines that fit into `room`: at least one, unless `room` is 0.
    pub(in crate::delivery) fn fitting(ends: &[usize], shape: &Shape, room: usize) -> usize {
        if room == 0 {
            return 0;
        }
        let (mut low, mut high) = (1, ends.len().max(1));
        while low < high {
            let middle = (low + high).div_ceil(2);
            match of(&ends[..middle], shape) <= room {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        low.min(ends.len())
    }
}
