//! What an event becomes: a line, or a row of another format.

use super::json::{Encoder, Options, Skip};
use super::msgpack::{Event, Events, Head};

/// A format of rows other than lines.
pub trait RowFormat: std::fmt::Debug + Send + Sync {
    /// Creates an encoder of rows. `options` select a record's fields; what they add to it is the format's own affair.
    fn encoder<'o>(&'o self, options: &'o Options) -> Box<dyn RowEncoder + 'o>;

    /// Returns the most bytes that a row has, its tag included, besides those that its event becomes as JSON.
    fn row_bytes(&self, tag: &[u8]) -> usize;
}

/// Encodes events as rows.
pub trait RowEncoder {
    /// Appends the row of an event. Returns the end of its body. On an error `out` may have a part of the row.
    ///
    /// # Errors
    ///
    /// The event is nested too deep, or malformed.
    fn row(&mut self, tag: &[u8], head: &Head<'_>, out: &mut Vec<u8>) -> Result<usize, Skip>;
}

/// Encodes events as lines or as rows of another format.
#[allow(clippy::large_enum_variant)] // one for each step
pub(super) enum AnyEncoder<'o> {
    /// Lines.
    Lines(Encoder<'o>),
    /// Others.
    Rows(Box<dyn RowEncoder + 'o>),
}

impl<'o> AnyEncoder<'o> {
    pub(super) fn new(options: &'o Options, rows: Option<&'o dyn RowFormat>) -> Self {
        match rows {
            None => AnyEncoder::Lines(Encoder::new(options)),
            Some(rows) => AnyEncoder::Rows(rows.encoder(options)),
        }
    }

    /// [`Encoder::line`], or the row in its place.
    pub(super) fn line(
        &mut self,
        tag: &[u8],
        event: &Event<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Skip> {
        let rows = match self {
            AnyEncoder::Lines(lines) => return lines.line(tag, event, out),
            AnyEncoder::Rows(rows) => rows,
        };
        let head = Head {
            time: event.time,
            metadata: event.metadata,
            group: event.group,
            bytes: event.body,
            body: 0,
        };
        row(rows, tag, &head, out).map(|_| ())
    }

    /// [`Encoder::lines`], or rows in their place.
    pub(super) fn lines(
        &mut self,
        tag: &[u8],
        events: &mut Events<'_>,
        out: &mut Vec<u8>,
        mut wanted: impl FnMut(&Head<'_>) -> bool,
        mut written: impl FnMut(usize),
    ) -> Result<(), Skip> {
        let rows = match self {
            AnyEncoder::Lines(lines) => return lines.lines(tag, events, out, wanted, written),
            AnyEncoder::Rows(rows) => rows,
        };
        while let Some(head) = events.head()
            && wanted(&head)
        {
            let end = row(rows, tag, &head, out)?;
            events.advance_to(end);
            written(out.len());
        }
        Ok(())
    }
}

/// Appends a row, or nothing on an error.
fn row(
    rows: &mut Box<dyn RowEncoder + '_>,
    tag: &[u8],
    head: &Head<'_>,
    out: &mut Vec<u8>,
) -> Result<usize, Skip> {
    let start = out.len();
    let end = rows.row(tag, head, out);
    if end.is_err() {
        out.truncate(start);
    }
    end
}
