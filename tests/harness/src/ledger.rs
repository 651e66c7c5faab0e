//! A count of every line by its sequence number, which shows lost and duplicated lines.
//!
//! The producer numbers its lines 0, 1, 2, … at a key (`seq`, or a path such as `log.seq`). The fake Firehose adds the
//! records of each accepted call; [`verify_objects`] reads the files of a blob store. [`Ledger::report`] then lists
//! missing and repeated numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::Field;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The multiple of bytes to which Direct PUT rounds up each record (<https://aws.amazon.com/firehose/pricing/>).
pub const BILLING_UNIT: u64 = 5_120;

/// The most numbers or lines that a report names; the counts next to them are complete.
const EXAMPLES: usize = 10;

/// The path of the sequence number in a line: a key, or keys joined by dots.
#[derive(Clone, Debug)]
pub struct SeqKey(Vec<String>);

impl From<&str> for SeqKey {
    fn from(path: &str) -> Self {
        Self(path.split('.').map(str::to_owned).collect())
    }
}

impl SeqKey {
    /// Checks that `line` is a JSON document, and returns its number.
    fn find(&self, line: &[u8]) -> Result<Option<u64>, String> {
        // serde_json does not check the UTF-8 of strings that it skips.
        let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
        let mut json = serde_json::Deserializer::from_str(text);
        let found = AtPath(&self.0).deserialize(&mut json);
        match found.and_then(|seq| json.end().map(|()| seq)) {
            Ok(seq) => Ok(seq),
            // There is no map on the path to the number, or it is not JSON.
            Err(error) => match serde_json::from_str::<IgnoredAny>(text) {
                Ok(_) => Ok(None),
                Err(_) => Err(error.to_string()),
            },
        }
    }
}

/// Reads nested maps completely and keeps the unsigned integer at a path.
struct AtPath<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for AtPath<'_> {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Option<u64>, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for AtPath<'_> {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<u64>, A::Error> {
        #[derive(Deserialize)]
        struct Key<'k>(#[serde(borrow)] Cow<'k, str>);

        let (first, rest) = self.0.split_first().expect("no path is empty");
        let mut found = None;
        while let Some(Key(key)) = map.next_key()? {
            if key != *first {
                map.next_value::<IgnoredAny>()?;
            } else if rest.is_empty() {
                found = map.next_value::<Value>()?.as_u64();
            } else {
                found = map.next_value_seed(AtPath(rest))?;
            }
        }
        Ok(found)
    }
}

/// The totals of records (or objects) and their lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// The number of Firehose records, or of files.
    pub records: u64,
    /// The lines in them, after decompression, valid or not.
    pub lines: u64,
    /// The valid lines without an unsigned integer at the sequence key.
    pub lines_without_seq: u64,
    /// The lines that are not a JSON document in UTF-8, and compressed data that cannot be decoded.
    pub invalid_lines: u64,
    /// The records whose last line does not end in `\n`.
    pub unterminated: u64,
    /// The bytes of the lines, after decompression.
    pub raw_bytes: u64,
    /// The bytes of the records as sent: before base64, after compression.
    pub record_bytes: u64,
    /// The billed bytes: every record is rounded up to a multiple of [`BILLING_UNIT`].
    pub billed_bytes: u64,
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        self.records += other.records;
        self.lines += other.lines;
        self.lines_without_seq += other.lines_without_seq;
        self.invalid_lines += other.invalid_lines;
        self.unterminated += other.unterminated;
        self.raw_bytes += other.raw_bytes;
        self.record_bytes += other.record_bytes;
        self.billed_bytes += other.billed_bytes;
    }
}

/// The contents of a call (or file), read without the ledger's lock.
#[derive(Debug, Default)]
pub struct Delivery {
    counts: Counts,
    seqs: Vec<u64>,
    invalid_examples: Vec<String>,
}

impl Delivery {
    /// Reads a record or object, called `name` in messages: plain lines, gzip members, zstd frames or Parquet, recognised by the
    /// magic bytes.
    pub fn add(&mut self, name: &str, data: &[u8], key: &SeqKey) {
        self.counts.records += 1;
        self.counts.record_bytes += data.len() as u64;
        self.counts.billed_bytes += (data.len() as u64).next_multiple_of(BILLING_UNIT);
        let mut lines = Vec::new();
        let decoded = match data {
            [b'P', b'A', b'R', b'1', ..] => table_lines(data, &mut lines),
            data => decode(data, &mut lines)
                .map(|_| ())
                .map_err(anyhow::Error::from),
        };
        // Lines decoded before an error count, since a reader of the object would see them too.
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.add_line(line, key);
        }
        if let Err(error) = decoded {
            self.invalid(format!("{name}: {error}"));
        }
    }

    /// Returns the number of lines so far.
    pub fn lines(&self) -> u64 {
        self.counts.lines
    }

    fn add_line(&mut self, line: &[u8], key: &SeqKey) {
        self.counts.lines += 1;
        self.counts.raw_bytes += line.len() as u64;
        let content = line.strip_suffix(b"\n").unwrap_or_else(|| {
            self.counts.unterminated += 1;
            line
        });
        match key.find(content) {
            Ok(Some(seq)) => self.seqs.push(seq),
            Ok(None) => self.counts.lines_without_seq += 1,
            Err(error) => {
                let head = String::from_utf8_lossy(&content[..content.len().min(120)]);
                self.invalid(format!("{error}: {head}"));
            }
        }
    }

    fn invalid(&mut self, example: String) {
        self.counts.invalid_lines += 1;
        if self.invalid_examples.len() < EXAMPLES {
            self.invalid_examples.push(example);
        }
    }
}

/// Returns the rows of a Parquet file as lines: the values of its columns, and those in its column `rest`.
fn table_lines(data: &[u8], lines: &mut Vec<u8>) -> anyhow::Result<()> {
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(data))?;
    for row in reader.get_row_iter(None)? {
        let mut record = serde_json::Map::new();
        for (name, field) in row?.get_column_iter() {
            match field {
                Field::Null => {}
                Field::Str(text) if name == "rest" => {
                    record.append(&mut serde_json::from_str(text)?);
                }
                field => {
                    let value = match field {
                        Field::Bool(it) => Value::from(*it),
                        Field::Long(it) | Field::TimestampMicros(it) => Value::from(*it),
                        Field::Double(it) => Value::from(*it),
                        Field::Str(text) => Value::from(text.as_str()),
                        other => anyhow::bail!("column {name} has {other}"),
                    };
                    record.insert(name.clone(), value);
                }
            }
        }
        serde_json::to_writer(&mut *lines, &record)?;
        lines.push(b'\n');
    }
    Ok(())
}

/// Decompresses gzip members or zstd frames, recognised by the magic bytes; other data is returned as it is.
pub(crate) fn decode(mut data: &[u8], lines: &mut Vec<u8>) -> std::io::Result<usize> {
    match data {
        [0x1f, 0x8b, ..] => flate2::bufread::MultiGzDecoder::new(data).read_to_end(lines),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::with_buffer(data)?.read_to_end(lines),
        _ => data.read_to_end(lines),
    }
}

/// Counts by number, with a byte each (up to 255), in pages: dense numbers cost a byte, and a single large one no more
/// than a page.
#[derive(Clone, Debug, Default)]
struct Tally(BTreeMap<u64, Box<[u8; PAGE as usize]>>);

const PAGE: u64 = 4_096;

impl Tally {
    /// Counts a number. Returns its count before.
    fn add(&mut self, number: u64) -> u8 {
        let page = self.0.entry(number / PAGE);
        let page = page.or_insert_with(|| Box::new([0; PAGE as usize]));
        let count = &mut page[(number % PAGE) as usize];
        let before = *count;
        *count = before.saturating_add(1);
        before
    }

    fn get(&self, number: u64) -> u8 {
        let page = self.0.get(&(number / PAGE));
        page.map_or(0, |page| page[(number % PAGE) as usize])
    }

    /// Returns the numbers in ascending order, with their counts.
    fn iter(&self) -> impl Iterator<Item = (u64, u8)> {
        let pages = self.0.iter();
        let all = pages.flat_map(|(page, counts)| (page * PAGE..).zip(counts.iter().copied()));
        all.filter(|(_, count)| *count > 0)
    }
}

/// A summary of a [`Ledger`]. The `first_…` lists and examples have at most ten entries.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The totals.
    #[serde(flatten)]
    pub totals: Counts,
    /// The totals of each stream.
    pub streams: BTreeMap<String, Counts>,
    /// The number of distinct sequence numbers.
    pub distinct: u64,
    /// The number of expected numbers, if given.
    pub expected: Option<u64>,
    /// The number of expected numbers that are missing.
    pub missing: u64,
    /// The lowest missing numbers.
    pub first_missing: Vec<u64>,
    /// The number of lines beyond the first with the same number.
    pub duplicates: u64,
    /// The lowest repeated numbers.
    pub first_duplicates: Vec<u64>,
    /// The duplicates that no ambiguous call explains (each explains one more of each of its lines).
    pub unexplained_duplicates: u64,
    /// The errors of the first invalid lines.
    pub invalid_examples: Vec<String>,
    /// The PutRecord and PutRecordBatch calls, by outcome.
    pub calls: BTreeMap<String, u64>,
    /// The calls that were written although the producer received no success.
    pub ambiguous_calls: u64,
    /// The lines in those calls.
    pub ambiguous_lines: u64,
    /// The bytes of the HTTP bodies of all calls, with any outcome.
    pub wire_bytes: u64,
    /// The calls over a limit of the service, and malformed ones.
    pub limit_violations: u64,
    /// The service's error messages for the first of them.
    pub limit_reasons: Vec<String>,
}

/// A count of everything that arrived.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    seen: Tally,
    ambiguous: Tally,
    /// The totals that are updated with each call.
    sums: Report,
}

impl Ledger {
    /// Records the contents of a call to a stream.
    pub fn add(&mut self, stream: &str, delivery: &Delivery) {
        let sums = &mut self.sums;
        sums.totals += &delivery.counts;
        *sums.streams.entry(stream.to_owned()).or_default() += &delivery.counts;
        for &seq in &delivery.seqs {
            match self.seen.add(seq) {
                0 => sums.distinct += 1,
                _ => sums.duplicates += 1,
            }
        }
        let room = EXAMPLES - sums.invalid_examples.len();
        let examples = delivery.invalid_examples.iter().take(room).cloned();
        sums.invalid_examples.extend(examples);
    }

    /// Records that the producer cannot know whether this delivery was written: each of its lines may be sent once
    /// more.
    pub fn mark_ambiguous(&mut self, delivery: &Delivery) {
        self.sums.ambiguous_calls += u64::from(delivery.counts.records > 0);
        self.sums.ambiguous_lines += delivery.counts.lines;
        for &seq in &delivery.seqs {
            self.ambiguous.add(seq);
        }
    }

    /// Counts a call, with the bytes of its HTTP body, by outcome.
    pub fn add_call(&mut self, outcome: &str, wire_bytes: usize) {
        *self.sums.calls.entry(outcome.to_owned()).or_default() += 1;
        self.sums.wire_bytes += wire_bytes as u64;
    }

    /// Counts a call that no sender should make: over a limit, or malformed.
    pub fn add_limit_violation(&mut self, reason: &str) {
        self.sums.limit_violations += 1;
        if self.sums.limit_reasons.len() < EXAMPLES {
            self.sums.limit_reasons.push(reason.to_owned());
        }
    }

    /// Returns a summary; with `expect`, the numbers `0..expect` are expected.
    pub fn report(&self, expect: Option<u64>) -> Report {
        let mut report = self.sums.clone();
        report.expected = expect;
        let end = expect.unwrap_or(0);
        let arrived = self.seen.iter().map(|(seq, _)| seq);
        let mut next = 0;
        for seq in arrived.take_while(|seq| *seq < end).chain([end]) {
            report.missing += seq - next;
            let room = EXAMPLES - report.first_missing.len();
            report.first_missing.extend((next..seq).take(room));
            next = seq + 1;
        }
        for (seq, count) in self.seen.iter().filter(|(_, count)| *count > 1) {
            if report.first_duplicates.len() < EXAMPLES {
                report.first_duplicates.push(seq);
            }
            let unexplained = (count - 1).saturating_sub(self.ambiguous.get(seq));
            report.unexplained_duplicates += u64::from(unexplained);
        }
        report
    }
}

impl Report {
    /// Whether everything expected arrived once and is JSON.
    pub fn is_exact(&self) -> bool {
        self.missing == 0 && self.duplicates == 0 && self.totals.invalid_lines == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sums = &self.totals;
        writeln!(f, "lines: {} in {} records", sums.lines, sums.records)?;
        writeln!(f, "  without a number: {}", sums.lines_without_seq)?;
        writeln!(f, "  not JSON: {}", sums.invalid_lines)?;
        writeln!(f, "  without a newline: {}", sums.unterminated)?;
        writeln!(f, "  distinct numbers: {}", self.distinct)?;
        if let Some(expected) = self.expected {
            let first = &self.first_missing;
            writeln!(f, "missing: {} of {expected} {first:?}", self.missing)?;
        }
        let first = &self.first_duplicates;
        writeln!(f, "duplicates: {} {first:?}", self.duplicates)?;
        write!(f, "  unexplained: {}", self.unexplained_duplicates)?;
        for example in self.invalid_examples.iter().chain(&self.limit_reasons) {
            write!(f, "\n! {example}")?;
        }
        if self.calls.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nbytes: {} in lines", sums.raw_bytes)?;
        writeln!(f, "  in records: {}", sums.record_bytes)?;
        writeln!(f, "  billed: {}", sums.billed_bytes)?;
        writeln!(f, "  on the wire: {}", self.wire_bytes)?;
        writeln!(f, "calls: {:?}", self.calls)?;
        let lines = self.ambiguous_lines;
        writeln!(
            f,
            "  ambiguous: {} with {lines} lines",
            self.ambiguous_calls
        )?;
        write!(f, "  over a limit: {}", self.limit_violations)?;
        for (stream, sums) in &self.streams {
            let Counts { lines, records, .. } = sums;
            write!(f, "\nstream {stream}: {lines} lines in {records} records")?;
        }
        Ok(())
    }
}

/// Reads every file under `dir` as an object of lines: plain, gzip or zstd, by the magic bytes. `seq_key` is the path
/// of a line's sequence number (keys joined by dots).
pub fn verify_objects(dir: &Path, seq_key: &str) -> anyhow::Result<Ledger> {
    let key = SeqKey::from(seq_key);
    let mut ledger = Ledger::default();
    for path in files_under(dir)? {
        let name = path.display().to_string();
        let data = std::fs::read(&path).with_context(|| format!("cannot read {name}"))?;
        let mut delivery = Delivery::default();
        delivery.add(&name, &data, &key);
        ledger.add("objects", &delivery);
    }
    Ok(ledger)
}

fn files_under(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot = || format!("cannot list the directory {}", dir.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        match path.is_dir() {
            true => files.extend(files_under(&path)?),
            false => files.push(path),
        }
    }
    files.sort();
    Ok(files)
}

/// Counts the lines of the objects under a directory by sequence number.
///
/// Every file is read as newline-separated JSON, plain or compressed with gzip or zstd. Exits with 1 if a number is
/// missing or repeated, or a line is not JSON.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// How many lines should be there: the numbers 0 to N-1, once each
    #[arg(long, value_name = "N")]
    expect: u64,
    /// The key of the sequence number; dots lead into nested maps
    #[arg(long, value_name = "KEY", default_value = "seq")]
    seq_key: String,
    /// The directory, including subdirectories
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Runs `ferry-harness verify`.
pub fn run_verify(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let report = verify_objects(&args.dir, &args.seq_key)?.report(Some(args.expect));
    println!("{report}");
    Ok(ExitCode::from(u8::from(!report.is_exact())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn delivery(records: &[&[u8]]) -> Delivery {
        let mut delivery = Delivery::default();
        for record in records {
            delivery.add("record", record, &"seq".into());
        }
        delivery
    }

    fn report(records: &[&[u8]], expect: u64) -> Report {
        let mut ledger = Ledger::default();
        ledger.add("a", &delivery(records));
        ledger.report(Some(expect))
    }

    fn lines(seqs: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let lines = seqs.into_iter().map(|seq| format!("{{\"seq\":{seq}}}\n"));
        lines.collect::<String>().into_bytes()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn lost_and_duplicate_lines_are_counted_exactly() {
        let mut ledger = Ledger::default();
        // Across several pages: 5 and 9,000 to 9,002 are lost, 7 is there three times.
        ledger.add("a", &delivery(&[&lines((0..5).chain(6..9_000))]));
        ledger.add("b", &delivery(&[&lines(9_003..10_000), &lines([7, 7])]));
        let report = ledger.report(Some(10_002));
        assert_eq!((report.distinct, report.missing), (9_996, 6));
        assert_eq!((report.duplicates, report.unexplained_duplicates), (2, 2));
        assert_eq!(report.streams["b"].lines, 999);
        assert!(!report.is_exact());
        let text = report.to_string();
        let missing = "missing: 6 of 10002 [5, 9000, 9001, 9002, 10000, 10001]";
        assert!(text.contains(missing), "{text}");
        assert!(
            text.contains("duplicates: 2 [7]\n  unexplained: 2"),
            "{text}"
        );
    }

    #[test]
    fn an_ambiguous_call_excuses_each_of_its_lines_once() {
        let mut ledger = Ledger::default();
        let cut = delivery(&[&lines([0, 1])]);
        ledger.add("a", &cut);
        ledger.mark_ambiguous(&cut);
        ledger.add("a", &delivery(&[&lines([0, 1, 2])]));
        assert_eq!(ledger.report(None).unexplained_duplicates, 0);
        ledger.add("a", &delivery(&[&lines([1, 2])]));
        let report = ledger.report(None);
        assert_eq!((report.duplicates, report.unexplained_duplicates), (4, 2));
        assert_eq!((report.ambiguous_calls, report.ambiguous_lines), (1, 2));
    }

    #[test]
    fn compressed_records_decode_to_their_last_member() {
        let members = [gzip(&lines([0, 1])), gzip(&lines([2]))].concat();
        let frame = |seq| zstd::encode_all(&lines([seq])[..], 1).unwrap();
        let frames = [frame(3), frame(4)].concat();
        let report = report(&[&members, &frames], 5);
        assert!(report.is_exact(), "{report}");
        let (raw, records) = (report.totals.raw_bytes, report.totals.record_bytes);
        assert_eq!((raw, records), (50, (members.len() + frames.len()) as u64));
    }

    #[test]
    fn a_truncated_member_keeps_its_lines_and_shows() {
        let whole = gzip(&lines(0..1_000));
        let report = report(&[&whole[..whole.len() - 4]], 1_000);
        assert_eq!((report.missing, report.totals.invalid_lines), (0, 1));
    }

    #[test]
    fn lines_are_judged_one_by_one() {
        #[rustfmt::skip] // a table: line, invalid, without a number, unterminated
        let cases: [(&[u8], u64, u64, u64); 14] = [
            (b"{\"seq\":1}\n", 0, 0, 0),
            (b"{\"seq\":1}", 0, 0, 1),
            (b"{\"a\":{\"seq\":1}}\n", 0, 1, 0),
            (b"{\"seq\":{\"a\":1}}\n", 0, 1, 0),
            (b"{\"seq\":-1}\n", 0, 1, 0),
            (b"{\"seq\":1.5}\n", 0, 1, 0),
            (b"{\"seq\":\"1\"}\n", 0, 1, 0),
            (b"{\"seq\":null,\"b\":[true]}\n", 0, 1, 0),
            (b"[1,{\"seq\":2}]\n", 0, 1, 0),
            (b"{\"seq\":1}{\"seq\":2}\n", 1, 0, 0),
            (b"{\"seq\":1\n", 1, 0, 0),
            (b"\n", 1, 0, 0),
            (b"{\"seq\":1,\"s\":\"caf\xe9\"}\n", 1, 0, 0),
            (b"{\"seq\":1,\"s\":\"\x01\"}\n", 1, 0, 0),
        ];
        for (line, invalid, without_seq, unterminated) in cases {
            let expected = (invalid, without_seq, unterminated);
            let counts = delivery(&[line]).counts;
            let judged = (
                counts.invalid_lines,
                counts.lines_without_seq,
                counts.unterminated,
            );
            assert_eq!(judged, expected, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn the_number_may_stand_deeper() {
        let find = |line: &[u8]| SeqKey::from("log.seq").find(line);
        assert_eq!(find(br#"{"log":{"x":[1],"seq":12},"seq":3}"#), Ok(Some(12)));
        assert_eq!(find(br#"{"log.seq":12,"log":1}"#), Ok(None));
        assert!(find(br#"{"log":1"#).is_err());
    }

    #[test]
    fn each_record_is_billed_in_whole_units() {
        let sizes = [1, 5_120, 5_121, 1_024_000].map(|size| vec![b' '; size]);
        let counts = delivery(&sizes.each_ref().map(Vec::as_slice)).counts;
        assert_eq!(counts.billed_bytes, BILLING_UNIT * (1 + 1 + 2 + 200));
    }

    #[test]
    fn objects_in_nested_directories_are_read_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("2025/01");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(dir.path().join("a.ndjson"), lines([0, 1])).unwrap();
        std::fs::write(deep.join("b.gz"), gzip(&lines([2]))).unwrap();
        std::fs::write(deep.join("empty"), b"").unwrap();
        let verify = |expect| {
            let (seq_key, dir) = ("seq".to_owned(), dir.path().to_owned());
            run_verify(VerifyArgs {
                expect,
                seq_key,
                dir,
            })
            .unwrap()
        };
        assert_eq!(verify(3), ExitCode::SUCCESS);
        assert_eq!(verify(4), ExitCode::FAILURE);
        std::fs::write(deep.join("c"), lines([1])).unwrap();
        assert_eq!(verify(3), ExitCode::FAILURE);
        assert!(verify_objects(&dir.path().join("none"), "seq").is_err());
    }
}
