//! Files of dead letters, with one JSON document per line, which the library writes and a replay claims.
//!
//! A replay claims a file by renaming it to `NAME.replaying`; the writer then creates a new one. In a claimed file the
//! first byte of a line is overwritten with `#` once its letter is done. Since that is a write of one byte, a replay
//! that was killed at any moment can be resumed, and at most the letters in flight are sent again.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use chrono::DateTime;
use ferry::delivery::dead_letter::line::Line;
use ferry::ids::Time;
use serde_json::Value;

use super::{Failure, cannot_be, inaccessible, metadata};

/// The prefix of names: `dead-letters.ndjson`, or `dead-letters.SOMETHING.ndjson` after a rotation.
const PREFIX: &str = "dead-letters";
/// The suffixes of files that are not claimed; earlier versions kept remaining letters in `.kept`.
const UNCLAIMED: [&str; 2] = [".ndjson", ".kept"];
const CLAIMED: &str = ".replaying";
const DONE: u8 = b'#';

/// A dead letter: a record, or several lines, that were not delivered.
pub(super) type Letter = Line<'static>;

/// Parses a line. The error describes what is wrong with it.
pub(super) fn read(line: &[u8]) -> Result<Letter, String> {
    serde_json::from_slice(line).map_err(|error| {
        problem(line).unwrap_or_else(|| format!("the line is not a letter: {error}"))
    })
}

/// Returns the time at which a letter was written; 1970 if that is invalid.
pub(super) fn time(letter: &Letter) -> Time {
    let time = DateTime::parse_from_rfc3339(&letter.time).unwrap_or_default();
    Time {
        seconds: time.timestamp(),
        nanos: time.timestamp_subsec_nanos(),
    }
}

/// Returns a letter's record, decompressed. The error describes what is wrong.
pub(super) fn body(letter: &Letter) -> Result<Vec<u8>, String> {
    let raw = letter.bytes().map_err(|error| error.to_string())?;
    let mut body = Vec::new();
    let decompressed = match raw.as_slice() {
        mut data @ [0x1f, 0x8b, ..] => {
            flate2::bufread::MultiGzDecoder::new(&mut data).read_to_end(&mut body)
        }
        data @ [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::Decoder::with_buffer(data).and_then(|mut frames| frames.read_to_end(&mut body))
        }
        _ => {
            body = raw;
            Ok(0)
        }
    };
    decompressed.map_err(|error| format!("its record cannot be decompressed: {error}"))?;
    if body.is_empty() {
        return Err("its record is empty".to_owned());
    }
    if body.starts_with(b"PAR1") {
        return Err("its record is a Parquet file, which has no lines".to_owned());
    }
    Ok(body)
}

/// The fields of a letter, whether it must have them, and whether they may be null.
const FIELDS: [(&str, bool, bool); 8] = [
    ("time", true, false),
    ("tag", true, false),
    ("reason", true, false),
    ("error", false, false),
    ("request_id", false, true),
    ("target", false, true),
    ("record", false, true),
    ("record_base64", false, true),
];

/// Returns the problem of JSON that is not a letter; `None` for invalid JSON.
fn problem(line: &[u8]) -> Option<String> {
    let Value::Object(fields) = serde_json::from_slice(line).ok()? else {
        return Some("the line is not a JSON object".to_owned());
    };
    FIELDS.iter().find_map(|(name, required, nullable)| {
        let kind = match fields.get(*name) {
            Some(Value::String(_)) => return None,
            None => return required.then(|| format!("{name} is missing")),
            Some(Value::Null) if *nullable => return None,
            Some(Value::Null) => "null",
            Some(Value::Bool(_)) => "true or false",
            Some(Value::Number(_)) => "a number",
            Some(Value::Array(_)) => "an array",
            Some(Value::Object(_)) => "an object",
        };
        Some(format!("{name} must be a string, not {kind}"))
    })
}

/// Returns the lines of a letter's body.
pub(super) fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.strip_suffix(b"\n")
        .unwrap_or(body)
        .split(|byte| *byte == b'\n')
}

/// Files of letters.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Files that an earlier replay claimed.
    claimed: BTreeSet<PathBuf>,
    unclaimed: BTreeSet<PathBuf>,
}

impl Sources {
    /// Finds the named files, those in named folders, and for each file what an earlier replay has left of it.
    pub(super) fn find(paths: &[PathBuf]) -> Result<Sources, Failure> {
        let mut sources = Sources::default();
        for path in paths {
            let found = metadata(path)?;
            if found.as_ref().is_some_and(Metadata::is_dir) {
                for entry in list(path)? {
                    let name = name_of(&entry);
                    if !name.starts_with(PREFIX) {
                        continue;
                    }
                    if name.ends_with(CLAIMED) {
                        sources.claimed.insert(entry);
                    } else if UNCLAIMED.iter().any(|suffix| name.ends_with(suffix)) {
                        sources.unclaimed.insert(entry);
                    }
                }
                continue;
            }
            let is_file = found.as_ref().is_some_and(Metadata::is_file);
            if is_file && !may_hold_letters(path)? {
                return Err(format!(
                    "{} contains no dead letter: no line in it is one; nothing was changed",
                    path.display()
                )
                .into());
            }
            let name = name_of(path);
            let folder = folder_of(path);
            let prefix = format!("{name}.");
            if metadata(&folder)?.is_none() {
                let folder = folder.display();
                let reason = format!("there is no folder {folder}");
                return Err(cannot_be(path.display(), "read", reason));
            }
            let left = list(&folder)?;
            let left = left.into_iter().filter(|other| {
                let other = name_of(other);
                other.starts_with(&prefix) && other.ends_with(CLAIMED)
            });
            let before = sources.claimed.len();
            sources.claimed.extend(left);
            match is_file {
                true if name.ends_with(CLAIMED) => sources.claimed.insert(path.clone()),
                true => sources.unclaimed.insert(path.clone()),
                false if sources.claimed.len() > before => true,
                false => {
                    let reason = match found {
                        Some(_) => "it is neither a file nor a folder",
                        None => "there is no such file or folder",
                    };
                    return Err(cannot_be(path.display(), "read", reason));
                }
            };
        }
        Ok(sources)
    }

    /// Returns the folders of the files.
    pub(super) fn folders(&self) -> BTreeSet<PathBuf> {
        self.all().map(|path| folder_of(path)).collect()
    }

    /// Returns all files, those of an earlier replay first.
    pub(super) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.claimed.iter().chain(&self.unclaimed)
    }

    /// Claims all files, and returns their new paths.
    pub(super) fn claim(self) -> Result<Vec<PathBuf>, Failure> {
        let mut claimed: Vec<PathBuf> = self.claimed.into_iter().collect();
        for path in self.unclaimed {
            let name = name_of(&path);
            let names = (1..).map(|number| format!("{name}.{number}{CLAIMED}"));
            let mut names = names.map(|name| path.with_file_name(name));
            let mut free = path.with_file_name(format!("{name}{CLAIMED}"));
            while metadata(&free)?.is_some() {
                free = names.next().expect("there is no last number");
            }
            fs::rename(&path, &free)
                .map_err(|error| cannot_be(path.display(), "renamed", error))?;
            claimed.push(free);
        }
        Ok(claimed)
    }
}

/// Whether a file has a letter, done or not, or is empty. Protects from replaying another file by mistake, since a
/// replay renames and changes it.
fn may_hold_letters(path: &Path) -> Result<bool, Failure> {
    let unreadable = |error| cannot_be(path.display(), "read", error);
    let file = File::open(path).map_err(unreadable)?;
    let mut is_empty = true;
    for line in BufReader::new(file).split(b'\n') {
        let mut line = line.map_err(unreadable)?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        is_empty = false;
        if line[0] == DONE {
            line[0] = b'{';
        }
        if read(&line).is_ok() {
            return Ok(true);
        }
    }
    Ok(is_empty)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let listed: io::Result<Vec<PathBuf>> =
        fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    listed.map_err(|error| inaccessible(folder, &error))
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Returns the folder of a file.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The position of a letter in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    offset: u64,
    length: usize,
    /// The number of its line, from 1.
    pub(super) number: u64,
}

impl Place {
    /// The length of its line, newline included.
    pub(super) fn bytes(&self) -> u64 {
        self.length as u64 + 1
    }
}

/// A letter that is not done, or a line that is not a letter.
pub(super) struct Found {
    pub(super) place: Place,
    /// An id that is unique, even among letters with the same bytes.
    pub(super) id: String,
    /// The number of earlier letters in the file with the same bytes.
    pub(super) twin: u32,
    pub(super) letter: Result<Letter, String>,
}

/// A claimed file of letters.
pub(super) struct LetterFile {
    path: PathBuf,
    file: File,
    state: Mutex<State>,
}

/// The state of a claimed file.
#[derive(Default)]
struct State {
    /// The length of the file.
    end: u64,
    /// The offset of the original letter, by the offset of the remainder that was appended.
    originals: HashMap<u64, u64>,
    /// [`Found::twin`], by the letter's offset.
    twins: HashMap<u64, u32>,
}

impl LetterFile {
    pub(super) fn open(path: &Path) -> Result<LetterFile, Failure> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(LetterFile {
            file: file.map_err(|error| cannot_be(path.display(), "opened", error))?,
            path: path.to_owned(),
            state: Mutex::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `each` for letters that are not done, and for lines that are not letters. Returns the file's length.
    pub(super) fn scan(&self, each: impl FnMut(Found)) -> Result<u64, Failure> {
        let state = scan(&self.path, each)?;
        let end = state.end;
        *self.state.lock().expect("nothing panics with this lock") = state;
        Ok(end)
    }

    fn line(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut line = vec![0; place.length];
        self.file.read_exact_at(&mut line, place.offset)?;
        Ok(line)
    }

    /// Reads a letter again.
    pub(super) fn read(&self, place: Place) -> Result<Letter, String> {
        let line = self.line(place).map_err(|error| error.to_string())?;
        read(&line)
    }

    /// Marks a letter as done.
    pub(super) fn mark_done(&self, place: Place) -> io::Result<()> {
        self.file.write_all_at(&[DONE], place.offset)
    }

    /// Replaces a letter with its remainder: `rest` are letters as the library wrote them.
    pub(super) fn replace(&self, place: Place, rest: Vec<Letter>) -> io::Result<()> {
        let original: Letter = serde_json::from_slice(&self.line(place)?)?;
        let mut state = self.state.lock().expect("nothing panics with this lock");
        for mut letter in rest {
            letter.time.clone_from(&original.time);
            letter.tag.clone_from(&original.tag);
            if original.target.is_some() {
                letter.target.clone_from(&original.target);
            }
            // Starts with a newline, in case a crash truncated the last line.
            let mut line = b"\n".to_vec();
            serde_json::to_writer(&mut line, &letter)?;
            line.push(b'\n');
            if let Err(error) = self.file.write_all_at(&line, state.end) {
                // A part of it, as on a full disk, would not be a letter.
                let _ = self.file.set_len(state.end);
                return Err(error);
            }
            let offset = state.end + 1;
            state.originals.insert(offset, place.offset);
            state.end += line.len() as u64;
        }
        drop(state);
        // Synced before the original is marked: a duplicate is better than a loss.
        self.file.sync_data()?;
        self.mark_done(place)
    }

    /// Deletes the file if all its letters are done, and otherwise rewrites it with the others, in order. Returns the
    /// new line number of each letter, by its old one.
    pub(super) fn finish(self) -> Result<HashMap<u64, u64>, Failure> {
        let mut places = Vec::new();
        scan(&self.path, |found| places.push(found.place))?;
        let numbers = self.shorten(places);
        numbers.map_err(|error| cannot_be(self.path.display(), "shortened", error))
    }

    fn shorten(&self, places: Vec<Place>) -> io::Result<HashMap<u64, u64>> {
        if places.is_empty() {
            fs::remove_file(&self.path)?;
            File::open(folder_of(&self.path))?.sync_all()?;
            return Ok(HashMap::new());
        }
        let mut part = self.path.clone().into_os_string();
        part.push(".part");
        let shortened = self.write_rest(places, Path::new(&part));
        if shortened.is_err() {
            // The file would count towards dead_letter_limit.
            let _ = fs::remove_file(&part);
        }
        shortened
    }

    fn write_rest(&self, mut places: Vec<Place>, part: &Path) -> io::Result<HashMap<u64, u64>> {
        let state = self.state.lock().expect("nothing panics with this lock");
        let origin = |place: &Place| {
            let original = state.originals.get(&place.offset);
            original.copied().unwrap_or(place.offset)
        };
        places.sort_by_key(|place| (origin(place), place.offset));
        let rest = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(part)?;
        rest.set_permissions(self.file.metadata()?.permissions())?;
        let mut rest = io::BufWriter::new(rest);
        let mut now = HashMap::new();
        let mut before: HashMap<u64, u64> = HashMap::new();
        scan_numbers(&self.path, &mut before)?;
        for (index, &place) in places.iter().enumerate() {
            let mut line = self.line(place)?;
            if let Some(twin) = state.twins.get(&place.offset)
                && line.ends_with(b"}")
            {
                // Keeps its id distinct from those of letters with the same bytes that are gone.
                line.truncate(without_twin(&line).0.len());
                line.extend(format!(",\"twin\":{twin}}}").bytes());
            }
            line.push(b'\n');
            rest.write_all(&line)?;
            if let Some(number) = before.get(&origin(&place)) {
                now.entry(*number).or_insert(index as u64 + 1);
            }
        }
        rest.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        fs::rename(part, &self.path)?;
        File::open(folder_of(&self.path))?.sync_all()?;
        Ok(now)
    }
}

/// Returns a letter without its last brace and its `twin` field, and the value of that field, which an earlier replay
/// may have added. The id depends on the rest only, so that it is the same in every replay.
fn without_twin(line: &[u8]) -> (&[u8], Option<u32>) {
    let Some(line) = line.strip_suffix(b"}") else {
        return (line, None);
    };
    let noted = std::str::from_utf8(line).ok().and_then(|text| {
        let (letter, number) = text.rsplit_once(",\"twin\":")?;
        Some((letter.as_bytes(), Some(number.parse().ok()?)))
    });
    noted.unwrap_or((line, None))
}

/// Reads a file of letters, claimed or not, without changing it.
pub(super) fn look(path: &Path, each: impl FnMut(Found)) -> Result<(), Failure> {
    scan(path, each).map(drop)
}

fn scan(path: &Path, mut each: impl FnMut(Found)) -> Result<State, Failure> {
    let mut state = State::default();
    // The number of letters by hash, those that are done included.
    let mut known: HashMap<[u8; 16], u32> = HashMap::new();
    let read = walk(path, |offset, number, line| {
        let content = line.strip_suffix(b"\n").unwrap_or(line);
        state.end = offset + line.len() as u64;
        if content.trim_ascii().is_empty() {
            return;
        }
        let (letter, noted) = without_twin(content);
        let mut hash = [0; 16];
        let mut hasher = blake3::Hasher::new();
        let rest = letter.get(1..).unwrap_or_default();
        hasher.update(b"{").update(rest).update(b"}");
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        let twins = known.entry(hash).or_default();
        let twin = noted.unwrap_or(*twins);
        *twins = (*twins).max(twin) + 1;
        if content[0] == DONE {
            return;
        }
        let mut id: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        if twin > 0 {
            state.twins.insert(offset, twin);
            id.push_str(&format!("-{twin}"));
        }
        let place = Place {
            offset,
            length: content.len(),
            number,
        };
        let letter = read(content);
        each(Found {
            place,
            id,
            twin,
            letter,
        });
    });
    read.map_err(|error| cannot_be(path.display(), "read", error))?;
    Ok(state)
}

/// Collects line numbers by offset.
fn scan_numbers(path: &Path, numbers: &mut HashMap<u64, u64>) -> io::Result<()> {
    walk(path, |offset, number, _| {
        numbers.insert(offset, number);
    })
}

fn walk(path: &Path, mut each: impl FnMut(u64, u64, &[u8])) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
    let (mut offset, mut line) = (0, Vec::new());
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        each(offset, number, &line);
        offset += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(more: Value) -> String {
        let mut letter = json!({
            "time": "2025-11-21T13:00:00.250Z", "tag": "app", "reason": "refused", "error": "X: no",
        });
        let fields = letter.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        letter.to_string()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn letters_with_the_same_bytes_keep_their_ids_in_every_replay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("letters");
        let same = line(json!({ "record": "x" }));
        fs::write(&path, format!("{same}\n{same}\n}}\n{same}\n")).unwrap();
        let found = || {
            let file = LetterFile::open(&path).unwrap();
            let mut found = Vec::new();
            file.scan(|letter| found.push((letter.id, letter.twin, letter.place)))
                .unwrap();
            (file, found)
        };
        let mut ids: Vec<String> = found().1.into_iter().map(|(id, ..)| id).collect();
        assert!(
            ids[1] == format!("{}-1", ids[0]) && ids[3] == format!("{}-2", ids[0]),
            "{ids:?}"
        );
        while !ids.is_empty() {
            let (file, letters) = found();
            let now: Vec<&String> = letters.iter().map(|(id, ..)| id).collect();
            assert_eq!(now, ids.iter().collect::<Vec<_>>());
            file.mark_done(letters[0].2).unwrap();
            file.finish().unwrap();
            ids.remove(0);
        }
    }

    /// The expected lines, or the beginning of the error.
    type Lines<'a> = Result<Vec<&'a [u8]>, &'a str>;

    #[test]
    fn a_record_is_decompressed_and_split_into_its_lines() {
        let base64 =
            |data: &[u8]| json!({ "record_base64": base64_simd::STANDARD.encode_to_string(data) });
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
            (base64(&gzip(b"x\ny\n")[..12]), Err("its record cannot be decompressed: ")),
            (json!({ "record_base64": "x" }), Err("its record_base64 cannot be read: ")),
            (json!({ "record": "a", "record_base64": "YQ==" }), Err("it must have either")),
            (json!({}), Err("it must have either")),
            (json!({ "record": "" }), Err("its record is empty")),
            (base64(b"PAR1\n\xff"), Err("its record is a Parquet file")),
        ];
        for (more, wanted) in cases {
            let letter = read(line(more.clone()).as_bytes()).unwrap();
            match (body(&letter), wanted) {
                (Ok(body), Ok(wanted)) => assert!(lines(&body).eq(wanted), "{more}"),
                (Err(error), Err(wanted)) => assert!(error.starts_with(wanted), "{more}: {error}"),
                (body, wanted) => panic!("{more}: {body:?}, not {wanted:?}"),
            }
        }
    }

    #[test]
    fn a_path_that_cannot_be_accessed_is_not_reported_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let message = |path: PathBuf| match Sources::find(&[path]) {
            Err(Failure::Message(message)) => message,
            other => panic!("{other:?}"),
        };
        let below = file.join("dead-letters");
        let denied = message(below.clone());
        assert!(
            denied.starts_with(&format!("{} cannot be accessed: ", below.display()))
                && denied.contains("; remedy: "),
            "{denied}"
        );
        let none = message(dir.path().join("none"));
        assert!(none.ends_with("there is no such file or folder"), "{none}");
        // A file in a missing folder.
        let lost = message(dir.path().join("none/dead-letters.ndjson"));
        let folder = format!("there is no folder {}", dir.path().join("none").display());
        assert!(lost.contains(&folder), "{lost}");
    }

    /// Returns the places and ids of the letters that are not done, and of lines that are not letters.
    fn found(file: &LetterFile) -> Vec<(Place, String)> {
        let mut all = Vec::new();
        let scanned = file.scan(|found| all.push((found.place, found.id)));
        assert!(scanned.is_ok());
        all
    }

    #[test]
    fn done_letters_stay_done_and_the_others_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letters.ndjson.replaying");
        let whole = |n: u8| line(json!({ "record": n.to_string() }));
        let text = format!("{}\n\n  \r\n{}\n{}\n{{\"time", whole(0), whole(1), whole(2));
        fs::write(&path, text).unwrap();
        let open = || LetterFile::open(&path).unwrap_or_else(|_| panic!("it opens"));
        let file = open();
        let all = found(&file);
        let numbers: Vec<u64> = all.iter().map(|(place, _)| place.number).collect();
        assert_eq!(numbers, [1, 4, 5, 6], "empty lines are not letters");
        let rest = json!({
            "time": "later", "tag": "replay", "reason": "too_large", "error": "Y", "record": "rest",
        });
        let rest = serde_json::from_value(rest).unwrap();
        file.replace(all[0].0, vec![rest]).unwrap();
        file.mark_done(all[1].0).unwrap();
        let Ok(numbers) = file.finish() else {
            panic!("it cannot be shortened");
        };
        // The remainder of the first letter takes its position.
        assert_eq!(numbers, HashMap::from([(1, 1), (5, 2), (6, 3)]));
        let text = fs::read_to_string(&path).unwrap();
        let left: Vec<&str> = text.lines().collect();
        assert!(
            left[0].contains("\"rest\"") && left[0].contains("2025-11-21"),
            "{text}"
        );
        assert_eq!(left[1..], [whole(2).as_str(), "{\"time"]);

        let file = open();
        for (place, _) in found(&file) {
            file.mark_done(place).unwrap();
        }
        assert!(file.finish().is_ok_and(|left| left.is_empty()));
        assert!(!path.exists());
    }

    #[test]
    fn letters_with_the_same_bytes_are_distinct_even_when_the_first_of_them_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letters.ndjson.replaying");
        let same = line(json!({ "record": "x" }));
        fs::write(&path, format!("{same}\n{same}\n")).unwrap();
        let open = || LetterFile::open(&path).unwrap_or_else(|_| panic!("it opens"));
        let file = open();
        let before = found(&file);
        assert_ne!(before[0].1, before[1].1);
        file.mark_done(before[0].0).unwrap();
        // As after a crash.
        assert_eq!(found(&file), before[1..]);
        assert!(file.finish().is_ok());
        let after = found(&open());
        assert!(after.len() == 1 && after[0].1 != before[0].1);
    }
}
