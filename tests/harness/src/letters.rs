//! Dead letters: what a destination refused, one JSON document a line, in files that the library writes
//! and a replay takes away again.
//!
//! A file is taken by renaming it to `NAME.replaying`: its writer then begins a new one. In a taken file
//! the first byte of a line becomes `#` once the letter needs nothing more, delivered or kept elsewhere.
//! That is one write of one byte: a replay that is killed at any moment is taken up where it was, and at
//! most the letters that were on their way are sent once more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use crate::ledger;

/// `dead-letters.ndjson`, and `dead-letters.SOMETHING.ndjson` where it was rotated.
const BEGIN: &str = "dead-letters.";
const WRITTEN: &str = ".ndjson";
const TAKEN: &str = ".replaying";
const DONE: u8 = b'#';

/// One thing that was not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Letter {
    time: String,
    /// The tag that its chunk came with.
    pub(crate) tag: String,
    /// Why, in a word.
    pub(crate) reason: String,
    /// The delivery stream or the object that it was on its way to.
    pub(crate) target: Option<String>,
    record: Option<String>,
    record_base64: Option<String>,
}

impl Letter {
    /// Reads a line. The error says what is wrong with it.
    pub(crate) fn read(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| format!("the line is no letter: {error}"))
    }

    /// When it was written.
    pub(crate) fn time(&self) -> SystemTime {
        humantime::parse_rfc3339(&self.time).unwrap_or_else(|_| SystemTime::now())
    }

    /// Why it cannot be sent as it is, and what helps; nothing where it can.
    pub(crate) fn why_not_sent(&self) -> Option<&'static str> {
        Some(match self.reason.as_str() {
            "refused" => return None,
            "too_large" => {
                "a line that no destination of this kind takes: shorten it, or send it elsewhere by hand"
            }
            "malformed" => {
                "msgpack that is no event: mend the input or filter that made it; what can be read of it \
                 must be sent by hand"
            }
            "too_deep" => {
                "an event whose maps are nested too deep: flatten it with a filter (nest, lift); this one \
                 must be sent by hand"
            }
            _ => {
                "a reason that this version does not know: replay it with the version that wrote it"
            }
        })
    }

    /// The lines of the record, unpacked where it was compressed. The error says what is wrong.
    pub(crate) fn lines(&self) -> Result<Vec<Vec<u8>>, String> {
        let packed = match (&self.record, &self.record_base64) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(text)) => BASE64_STANDARD
                .decode(text)
                .map_err(|error| format!("its record_base64 cannot be read: {error}"))?,
            _ => return Err("it must have either record or record_base64".to_owned()),
        };
        let mut body = Vec::new();
        ledger::decode(&packed, &mut body)
            .map_err(|error| format!("its record cannot be unpacked: {error}"))?;
        if body.is_empty() {
            return Err("its record is empty".to_owned());
        }
        if body.starts_with(b"PAR1") {
            return Err("its record is a Parquet file, which has no lines".to_owned());
        }
        let lines = body.strip_suffix(b"\n").unwrap_or(&body);
        Ok(lines
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect())
    }
}

/// Files of letters in a folder, by name: those nobody has taken, and those that a replay has.
pub(crate) fn find(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let cannot = || format!("cannot list the dead letters in {}", dir.display());
    let (mut written, mut taken) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        let name = name_of(&path);
        if !name.starts_with(BEGIN) || !name.contains(WRITTEN) {
            continue;
        }
        if name.ends_with(WRITTEN) {
            written.push(path);
        } else if name.ends_with(TAKEN) {
            taken.push(path);
        }
    }
    written.sort();
    taken.sort();
    Ok((written, taken))
}

/// Takes all files in a folder: what an earlier replay has left comes first.
pub(crate) fn take(dir: &Path) -> Result<Vec<PathBuf>> {
    let (written, mut taken) = find(dir)?;
    for path in written {
        let name = name_of(&path);
        let names = (0..).map(|number| match number {
            0 => format!("{name}{TAKEN}"),
            _ => format!("{name}.{number}{TAKEN}"),
        });
        let free = names
            .map(|name| path.with_file_name(name))
            .find(|path| !path.exists());
        let free = free.expect("the numbers do not end");
        fs::rename(&path, &free).with_context(|| format!("cannot rename {}", path.display()))?;
        taken.push(free);
    }
    Ok(taken)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Where a letter stands in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    offset: u64,
    length: usize,
    /// Counted from 1.
    pub(crate) number: u64,
}

/// A file of letters.
pub(crate) struct LetterFile {
    path: PathBuf,
    file: File,
}

impl LetterFile {
    /// To be read only, where `taken` is not set.
    pub(crate) fn open(path: &Path, taken: bool) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(taken).open(path);
        Ok(Self {
            file: file.with_context(|| format!("cannot open {}", path.display()))?,
            path: path.to_owned(),
        })
    }

    /// The name as the library wrote it.
    pub(crate) fn name(&self) -> String {
        let name = name_of(&self.path);
        let end = name
            .find(WRITTEN)
            .map_or(name.len(), |at| at + WRITTEN.len());
        name[..end].to_owned()
    }

    /// Goes through the letters that still need something, and lines that are none.
    pub(crate) fn scan(&self, mut each: impl FnMut(Place, Result<Letter, String>)) -> Result<()> {
        let cannot = || format!("cannot read {}", self.path.display());
        // A handle of its own: a clone would share its position with other scans.
        let mut reader =
            BufReader::with_capacity(1 << 16, File::open(&self.path).with_context(cannot)?);
        let (mut offset, mut line) = (0, Vec::new());
        for number in 1.. {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).with_context(cannot)?;
            if read == 0 {
                break;
            }
            let content = line.strip_suffix(b"\n").unwrap_or(&line);
            if !content.trim_ascii().is_empty() && content[0] != DONE {
                let place = Place {
                    offset,
                    length: content.len(),
                    number,
                };
                each(place, Letter::read(content));
            }
            offset += read as u64;
        }
        Ok(())
    }

    fn line(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut line = vec![0; place.length];
        self.file.read_exact_at(&mut line, place.offset)?;
        Ok(line)
    }

    /// Reads one letter again.
    pub(crate) fn read(&self, place: Place) -> Result<Letter, String> {
        let line = self.line(place).map_err(|error| error.to_string())?;
        Letter::read(&line)
    }

    /// Notes that a letter needs nothing more.
    pub(crate) fn strike(&self, place: Place) -> io::Result<()> {
        self.file.write_all_at(&[DONE], place.offset)
    }

    /// Where [`Self::keep`] writes to.
    pub(crate) fn kept_path(&self) -> PathBuf {
        self.path.with_file_name(format!("{}.kept", self.name()))
    }

    /// Moves letters to the file of those that are kept. Where this is interrupted, some stand there
    /// twice after the next time.
    pub(crate) fn keep(&self, places: &[Place]) -> io::Result<()> {
        let mut kept = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.kept_path())?;
        for &place in places {
            let mut line = self.line(place)?;
            line.push(b'\n');
            kept.write_all(&line)?;
        }
        kept.sync_all()?;
        places.iter().try_for_each(|&place| self.strike(place))
    }

    /// Deletes the file when nothing in it needs anything more, or else leaves only what does. Returns
    /// the number of lines that are left.
    pub(crate) fn finish(self) -> Result<usize> {
        let cannot = || format!("cannot shorten {}", self.path.display());
        let mut left = Vec::new();
        self.scan(|place, _| left.push(place))?;
        if left.is_empty() {
            fs::remove_file(&self.path)
                .with_context(|| format!("cannot delete {}", self.path.display()))?;
            return Ok(0);
        }
        let mut part = self.path.clone().into_os_string();
        part.push(".part");
        let copy = || -> io::Result<()> {
            let mut rest = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&part)?;
            for &place in &left {
                let mut line = self.line(place)?;
                line.push(b'\n');
                rest.write_all(&line)?;
            }
            rest.sync_all()?;
            fs::rename(&part, &self.path)
        };
        copy().with_context(cannot)?;
        Ok(left.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn letter(more: Value) -> Vec<u8> {
        let mut letter = json!({
            "time": "2025-11-21T13:00:00.250Z", "tag": "app", "reason": "refused", "error": "X: no",
        });
        letter
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        letter.to_string().into_bytes()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Those wanted, or how the error begins.
    type Lines<'a> = Result<Vec<&'a [u8]>, &'a str>;

    #[test]
    fn a_record_is_unpacked_and_split_into_its_lines() {
        let base64 = |data: &[u8]| json!({ "record_base64": BASE64_STANDARD.encode(data) });
        #[rustfmt::skip] // a table
        let cases: Vec<(Value, Lines<'_>)> = vec![
            (json!({ "record": "{\"a\":1}" }), Ok(vec![b"{\"a\":1}"])),
            (json!({ "record": "{\"a\":1}\n{\"b\":2}\n" }), Ok(vec![b"{\"a\":1}", b"{\"b\":2}"])),
            (json!({ "record": "a\r\n\n b" }), Ok(vec![b"a\r", b"", b" b"])),
            (json!({ "record": "\n" }), Ok(vec![b""])),
            (base64(b"\xff\x00\n\xfe"), Ok(vec![b"\xff\x00", b"\xfe"])),
            (base64(&gzip(b"x\ny\n")), Ok(vec![b"x", b"y"])),
            (base64(&[gzip(b"x\n"), gzip(b"y\n")].concat()), Ok(vec![b"x", b"y"])),
            (base64(&zstd::encode_all(&b"x\ny\n"[..], 1).unwrap()), Ok(vec![b"x", b"y"])),
            (base64(&gzip(b"x\ny\n")[..12]), Err("its record cannot be unpacked: ")),
            (json!({ "record_base64": "x" }), Err("its record_base64 cannot be read: ")),
            (json!({ "record": "a", "record_base64": "YQ==" }), Err("it must have either record or record_base64")),
            (json!({}), Err("it must have either")),
            (json!({ "record": "" }), Err("its record is empty")),
            (base64(b"PAR1\n\xff"), Err("its record is a Parquet file")),
        ];
        for (more, wanted) in cases {
            let letter = Letter::read(&letter(more.clone())).unwrap();
            match (letter.lines(), wanted) {
                (Ok(lines), Ok(wanted)) => assert_eq!(lines, wanted, "{more}"),
                (Err(error), Err(wanted)) => assert!(error.starts_with(wanted), "{more}: {error}"),
                (lines, wanted) => panic!("{more}: {lines:?}, not {wanted:?}"),
            }
        }
    }

    #[test]
    fn only_what_was_refused_is_sent_again() {
        for (reason, sent) in [
            ("refused", true),
            ("too_large", false),
            ("too_deep", false),
            ("malformed", false),
            ("something_new", false),
        ] {
            let more = json!({ "reason": reason, "record": "x", "unknown": 1 });
            let letter = Letter::read(&letter(more)).unwrap();
            assert_eq!(letter.why_not_sent().is_none(), sent, "{reason}");
            assert_eq!(
                letter.time(),
                humantime::parse_rfc3339("2025-11-21T13:00:00.250Z").unwrap()
            );
        }
    }

    /// The numbers of lines that still need something, and whether they are letters.
    fn scanned(file: &LetterFile) -> Vec<(u64, bool)> {
        let mut found = Vec::new();
        file.scan(|place, letter| found.push((place.number, letter.is_ok())))
            .unwrap();
        found
    }

    fn written(lines: &[&[u8]]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letters.ndjson.replaying");
        fs::write(&path, lines.concat()).unwrap();
        (dir, path)
    }

    #[test]
    fn torn_and_empty_lines_do_not_hide_the_letters_beside_them() {
        let whole = letter(json!({ "record": "x" }));
        let lines: &[&[u8]] = &[
            &whole,
            b"\n\n",
            b"{\"time\":\"20\n",
            b"  \r\n",
            &whole,
            b"\n",
            &whole[..30],
        ];
        let (_dir, path) = written(lines);
        let file = LetterFile::open(&path, true).unwrap();
        assert_eq!(
            scanned(&file),
            [(1, true), (3, false), (5, true), (6, false)]
        );
        let mut places = Vec::new();
        file.scan(|place, _| places.push(place)).unwrap();
        assert_eq!(file.read(places[2]).unwrap(), Letter::read(&whole).unwrap());
        assert_eq!(file.line(places[3]).unwrap(), whole[..30]);
    }

    #[test]
    fn what_is_struck_out_stays_so_and_the_rest_is_all_that_is_left() {
        let whole = |n: u8| letter(json!({ "record": n.to_string() }));
        let lines: Vec<_> = (0..4).flat_map(|n| [whole(n), b"\n".to_vec()]).collect();
        let lines: Vec<_> = lines.iter().map(Vec::as_slice).collect();
        let (dir, path) = written(&lines);
        let file = LetterFile::open(&path, true).unwrap();
        let mut places = Vec::new();
        file.scan(|place, _| places.push(place)).unwrap();
        file.strike(places[1]).unwrap();
        file.keep(&places[3..]).unwrap();
        let again = LetterFile::open(&path, true).unwrap();
        assert_eq!(scanned(&again), [(1, true), (3, true)]);
        assert_eq!(again.finish().unwrap(), 2);
        assert_eq!(
            fs::read(&path).unwrap(),
            [whole(0), whole(2), vec![]].join(&b'\n')
        );
        let kept = dir.path().join("dead-letters.ndjson.kept");
        assert_eq!(fs::read(kept).unwrap(), [whole(3), vec![]].join(&b'\n'));

        let file = LetterFile::open(&path, true).unwrap();
        file.scan(|place, _| file.strike(place).unwrap()).unwrap();
        assert_eq!(file.finish().unwrap(), 0);
        assert!(!path.exists());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "only what is kept"
        );
    }

    #[test]
    fn files_are_taken_once_and_those_taken_before_come_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "dead-letters.ndjson",
            "dead-letters.20251121.ndjson",
            "dead-letters.ndjson.replaying",
            "dead-letters.ndjson.kept",
            "dead-letters.ndjson.replaying.part",
            "notes.ndjson",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        for _ in 0..2 {
            let taken = take(dir.path()).unwrap();
            let names: Vec<_> = taken.iter().map(|path| name_of(path)).collect();
            let wanted = [
                "dead-letters.ndjson.replaying",
                "dead-letters.20251121.ndjson.replaying",
                "dead-letters.ndjson.1.replaying",
            ];
            for (name, path) in names.iter().zip(&taken) {
                assert!(wanted.contains(&name.as_str()), "{name}");
                let own = LetterFile::open(path, true).unwrap().name();
                assert!(
                    ["dead-letters.ndjson", "dead-letters.20251121.ndjson"].contains(&own.as_str())
                );
            }
            assert_eq!(taken.len(), wanted.len());
        }
        let earlier = fs::read(dir.path().join("dead-letters.ndjson.replaying")).unwrap();
        assert_eq!(
            earlier, b"dead-letters.ndjson.replaying",
            "nothing was written over"
        );
    }
}
