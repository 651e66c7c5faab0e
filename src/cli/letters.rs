//! Files of dead letters: one JSON document a line, written by the library and taken away by a replay.
//!
//! A file is taken by renaming it to `NAME.replaying`: its writer then begins a new one. In a taken file the first
//! byte of a line becomes `#` once its letter needs nothing more. That is one write of one byte: a replay that is
//! killed at any moment is taken up where it was, and at most the letters that were on their way are sent once more.

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

use super::{Failure, about, stands, unseen};

/// `dead-letters.ndjson`, and `dead-letters.SOMETHING.ndjson` where it was renamed.
const BEGIN: &str = "dead-letters";
/// Ends of the names of files that nobody has taken; `.kept` is that of earlier versions for what stayed.
const WRITTEN: [&str; 2] = [".ndjson", ".kept"];
const TAKEN: &str = ".replaying";
const DONE: u8 = b'#';

/// One thing that was not delivered.
pub(super) type Letter = Line<'static>;

/// Reads a line. The error says what is wrong with it.
pub(super) fn read(line: &[u8]) -> Result<Letter, String> {
    serde_json::from_slice(line)
        .map_err(|error| flaw(line).unwrap_or_else(|| format!("the line is no letter: {error}")))
}

/// When a letter was written; 1970 where it does not say.
pub(super) fn time(letter: &Letter) -> Time {
    let time = DateTime::parse_from_rfc3339(&letter.time).unwrap_or_default();
    Time {
        seconds: time.timestamp(),
        nanos: time.timestamp_subsec_nanos(),
    }
}

/// A letter's bytes, unpacked where they were compressed. The error says what is wrong.
pub(super) fn body(letter: &Letter) -> Result<Vec<u8>, String> {
    let packed = letter.bytes().map_err(|error| error.to_string())?;
    let mut body = Vec::new();
    let unpacked = match packed.as_slice() {
        mut data @ [0x1f, 0x8b, ..] => {
            flate2::bufread::MultiGzDecoder::new(&mut data).read_to_end(&mut body)
        }
        data @ [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::Decoder::with_buffer(data).and_then(|mut frames| frames.read_to_end(&mut body))
        }
        _ => {
            body = packed;
            Ok(0)
        }
    };
    unpacked.map_err(|error| format!("its record cannot be unpacked: {error}"))?;
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

/// What is wrong with JSON that is no letter; `None` where it is no JSON.
fn flaw(line: &[u8]) -> Option<String> {
    let Value::Object(fields) = serde_json::from_slice(line).ok()? else {
        return Some("the line is no JSON object".to_owned());
    };
    FIELDS.iter().find_map(|(name, needed, nullable)| {
        let kind = match fields.get(*name) {
            Some(Value::String(_)) => return None,
            None => return needed.then(|| format!("{name} is missing")),
            Some(Value::Null) if *nullable => return None,
            Some(Value::Null) => "null",
            Some(Value::Bool(_)) => "true or false",
            Some(Value::Number(_)) => "a number",
            Some(Value::Array(_)) => "an array",
            Some(Value::Object(_)) => "an object",
        };
        Some(format!("{name} must be a string, and is {kind}"))
    })
}

/// The lines of a letter's bytes.
pub(super) fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.strip_suffix(b"\n")
        .unwrap_or(body)
        .split(|byte| *byte == b'\n')
}

/// Files of letters, and whether each is taken already.
#[derive(Debug, Default)]
pub(super) struct Sources {
    taken: BTreeSet<PathBuf>,
    written: BTreeSet<PathBuf>,
}

impl Sources {
    /// Finds what is named: files, folders of them, and for each file what an earlier replay has left of it.
    pub(super) fn find(paths: &[PathBuf]) -> Result<Sources, Failure> {
        let mut sources = Sources::default();
        for path in paths {
            let found = stands(path)?;
            if found.as_ref().is_some_and(Metadata::is_dir) {
                for entry in list(path)? {
                    let name = name_of(&entry);
                    if !name.starts_with(BEGIN) {
                        continue;
                    }
                    if name.ends_with(TAKEN) {
                        sources.taken.insert(entry);
                    } else if WRITTEN.iter().any(|end| name.ends_with(end)) {
                        sources.written.insert(entry);
                    }
                }
                continue;
            }
            let is_file = found.as_ref().is_some_and(Metadata::is_file);
            if is_file && !may_hold_letters(path)? {
                return Err(format!(
                    "{} holds no dead letter: no line in it is one; nothing was changed",
                    path.display()
                )
                .into());
            }
            let name = name_of(path);
            let folder = folder_of(path);
            let begin = format!("{name}.");
            if stands(&folder)?.is_none() {
                let folder = folder.display();
                let why = format!("there is no folder {folder}");
                return Err(about(path.display(), "read", why));
            }
            let left = list(&folder)?;
            let left = left.into_iter().filter(|other| {
                let other = name_of(other);
                other.starts_with(&begin) && other.ends_with(TAKEN)
            });
            let before = sources.taken.len();
            sources.taken.extend(left);
            match is_file {
                true if name.ends_with(TAKEN) => sources.taken.insert(path.clone()),
                true => sources.written.insert(path.clone()),
                false if sources.taken.len() > before => true,
                false => {
                    let why = match found {
                        Some(_) => "it is neither a file nor a folder",
                        None => "there is no such file or folder",
                    };
                    return Err(about(path.display(), "read", why));
                }
            };
        }
        Ok(sources)
    }

    /// The folders that the files are in.
    pub(super) fn folders(&self) -> BTreeSet<PathBuf> {
        self.all().map(|path| folder_of(path)).collect()
    }

    /// All files: those that an earlier replay has left come first.
    pub(super) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.taken.iter().chain(&self.written)
    }

    /// Takes those that nobody has taken.
    pub(super) fn take(self) -> Result<Vec<PathBuf>, Failure> {
        let mut taken: Vec<PathBuf> = self.taken.into_iter().collect();
        for path in self.written {
            let name = name_of(&path);
            let names = (1..).map(|number| format!("{name}.{number}{TAKEN}"));
            let mut names = names.map(|name| path.with_file_name(name));
            let mut free = path.with_file_name(format!("{name}{TAKEN}"));
            while stands(&free)?.is_some() {
                free = names.next().expect("the numbers do not end");
            }
            fs::rename(&path, &free).map_err(|error| about(path.display(), "renamed", error))?;
            taken.push(free);
        }
        Ok(taken)
    }
}

/// Whether a line of a file is a letter, or was one before it was struck out, or there is no line. A replay takes a file and
/// changes it, and what it is given may be another by a slip.
fn may_hold_letters(path: &Path) -> Result<bool, Failure> {
    let unreadable = |error| about(path.display(), "read", error);
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
    listed.map_err(|error| unseen(folder, &error))
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The folder that a file is in.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Where a letter stands in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    offset: u64,
    length: usize,
    /// The number of its line, from 1.
    pub(super) number: u64,
}

impl Place {
    /// Bytes of its line.
    pub(super) fn bytes(&self) -> u64 {
        self.length as u64 + 1
    }
}

/// A letter that needs something, or a line that is none.
pub(super) struct Found {
    pub(super) place: Place,
    /// What tells it from all other letters, also those with the same bytes.
    pub(super) id: String,
    /// How many letters before it in the file have the same bytes.
    pub(super) twin: u32,
    pub(super) letter: Result<Letter, String>,
}

/// A file of letters that is taken.
pub(super) struct LetterFile {
    path: PathBuf,
    file: File,
    left: Mutex<Left>,
}

/// What becomes of letters that stay.
#[derive(Default)]
struct Left {
    /// Bytes of the file.
    end: u64,
    /// The offsets of letters with what stays of them, by the offset that it was appended at.
    instead_of: HashMap<u64, u64>,
    /// See [`Found::twin`], by their offset.
    twins: HashMap<u64, u32>,
}

impl LetterFile {
    pub(super) fn open(path: &Path) -> Result<LetterFile, Failure> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(LetterFile {
            file: file.map_err(|error| about(path.display(), "opened", error))?,
            path: path.to_owned(),
            left: Mutex::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Goes through the letters that still need something, and lines that are none. Gives the file's length.
    pub(super) fn scan(&self, each: impl FnMut(Found)) -> Result<u64, Failure> {
        let left = scan(&self.path, each)?;
        let end = left.end;
        *self.left.lock().expect("nothing panics with this lock") = left;
        Ok(end)
    }

    fn line(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut line = vec![0; place.length];
        self.file.read_exact_at(&mut line, place.offset)?;
        Ok(line)
    }

    /// Reads one letter again.
    pub(super) fn read(&self, place: Place) -> Result<Letter, String> {
        let line = self.line(place).map_err(|error| error.to_string())?;
        read(&line)
    }

    /// Notes that a letter needs nothing more.
    pub(super) fn strike(&self, place: Place) -> io::Result<()> {
        self.file.write_all_at(&[DONE], place.offset)
    }

    /// Puts what stays of a letter in its place: `rest` are letters as the library wrote them.
    pub(super) fn replace(&self, place: Place, rest: Vec<Letter>) -> io::Result<()> {
        let original: Letter = serde_json::from_slice(&self.line(place)?)?;
        let mut left = self.left.lock().expect("nothing panics with this lock");
        for mut letter in rest {
            letter.time.clone_from(&original.time);
            letter.tag.clone_from(&original.tag);
            if original.target.is_some() {
                letter.target.clone_from(&original.target);
            }
            // A line of its own, even behind one that a crash cut short.
            let mut line = b"\n".to_vec();
            serde_json::to_writer(&mut line, &letter)?;
            line.push(b'\n');
            if let Err(error) = self.file.write_all_at(&line, left.end) {
                // A full disk may have taken a part of it, which would be no letter.
                let _ = self.file.set_len(left.end);
                return Err(error);
            }
            let offset = left.end + 1;
            left.instead_of.insert(offset, place.offset);
            left.end += line.len() as u64;
        }
        drop(left);
        // Before the letter itself is struck out: twice is better than not at all.
        self.file.sync_data()?;
        self.strike(place)
    }

    /// Deletes the file when nothing in it needs anything more, or else leaves only what does, in order. Gives
    /// the line that each letter now stands in, by the number of its line before.
    pub(super) fn finish(self) -> Result<HashMap<u64, u64>, Failure> {
        let mut places = Vec::new();
        scan(&self.path, |found| places.push(found.place))?;
        let numbers = self.shorten(places);
        numbers.map_err(|error| about(self.path.display(), "shortened", error))
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
            // It would count towards dead_letter_limit.
            let _ = fs::remove_file(&part);
        }
        shortened
    }

    fn write_rest(&self, mut places: Vec<Place>, part: &Path) -> io::Result<HashMap<u64, u64>> {
        let left = self.left.lock().expect("nothing panics with this lock");
        let origin = |place: &Place| {
            let of = left.instead_of.get(&place.offset);
            of.copied().unwrap_or(place.offset)
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
            if let Some(twin) = left.twins.get(&place.offset)
                && line.ends_with(b"}")
            {
                // The others of the same bytes are gone now, and it must stay another than they were.
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

/// A letter without its last brace, and the number among twins that an earlier replay noted in it. Its name comes from the
/// rest, so that it is the same letter in every replay.
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

/// Reads a file of letters, which may be anybody's.
pub(super) fn look(path: &Path, each: impl FnMut(Found)) -> Result<(), Failure> {
    scan(path, each).map(drop)
}

fn scan(path: &Path, mut each: impl FnMut(Found)) -> Result<Left, Failure> {
    let mut left = Left::default();
    // How many letters of the same bytes there were; those that are struck out count.
    let mut known: HashMap<[u8; 16], u32> = HashMap::new();
    let read = walk(path, |offset, number, line| {
        let content = line.strip_suffix(b"\n").unwrap_or(line);
        left.end = offset + line.len() as u64;
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
            left.twins.insert(offset, twin);
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
    read.map_err(|error| about(path.display(), "read", error))?;
    Ok(left)
}

/// The numbers of lines, by their offsets.
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
    fn letters_with_the_same_bytes_are_the_same_ones_in_every_replay() {
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
            file.strike(letters[0].2).unwrap();
            file.finish().unwrap();
            ids.remove(0);
        }
    }

    /// Those wanted, or how the error begins.
    type Lines<'a> = Result<Vec<&'a [u8]>, &'a str>;

    #[test]
    fn a_record_is_unpacked_and_split_into_its_lines() {
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
            (base64(&gzip(b"x\ny\n")[..12]), Err("its record cannot be unpacked: ")),
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
    fn what_cannot_be_looked_at_is_not_taken_for_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let words = |path: PathBuf| match Sources::find(&[path]) {
            Err(Failure::Words(words)) => words,
            other => panic!("{other:?}"),
        };
        let below = file.join("dead-letters");
        let said = words(below.clone());
        assert!(
            said.starts_with(&format!("{} cannot be looked at: ", below.display()))
                && said.contains("; remedy: "),
            "{said}"
        );
        let none = words(dir.path().join("none"));
        assert!(none.ends_with("there is no such file or folder"), "{none}");
        // One that is named in place of a folder that is not there.
        let lost = words(dir.path().join("none/dead-letters.ndjson"));
        let folder = format!("there is no folder {}", dir.path().join("none").display());
        assert!(lost.contains(&folder), "{lost}");
    }

    /// The numbers of lines that need something, and their ids.
    fn found(file: &LetterFile) -> Vec<(Place, String)> {
        let mut all = Vec::new();
        let scanned = file.scan(|found| all.push((found.place, found.id)));
        assert!(scanned.is_ok());
        all
    }

    #[test]
    fn what_is_struck_out_stays_so_and_the_rest_is_left_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letters.ndjson.replaying");
        let whole = |n: u8| line(json!({ "record": n.to_string() }));
        let text = format!("{}\n\n  \r\n{}\n{}\n{{\"time", whole(0), whole(1), whole(2));
        fs::write(&path, text).unwrap();
        let open = || LetterFile::open(&path).unwrap_or_else(|_| panic!("it opens"));
        let file = open();
        let all = found(&file);
        let numbers: Vec<u64> = all.iter().map(|(place, _)| place.number).collect();
        assert_eq!(numbers, [1, 4, 5, 6], "empty lines are none");
        let rest = json!({
            "time": "later", "tag": "replay", "reason": "too_large", "error": "Y", "record": "rest",
        });
        let rest = serde_json::from_value(rest).unwrap();
        file.replace(all[0].0, vec![rest]).unwrap();
        file.strike(all[1].0).unwrap();
        let Ok(numbers) = file.finish() else {
            panic!("it cannot be shortened");
        };
        // What stays of the first letter stands where that stood.
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
            file.strike(place).unwrap();
        }
        assert!(file.finish().is_ok_and(|left| left.is_empty()));
        assert!(!path.exists());
    }

    #[test]
    fn letters_with_the_same_bytes_are_told_apart_also_when_the_first_of_them_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letters.ndjson.replaying");
        let same = line(json!({ "record": "x" }));
        fs::write(&path, format!("{same}\n{same}\n")).unwrap();
        let open = || LetterFile::open(&path).unwrap_or_else(|_| panic!("it opens"));
        let file = open();
        let before = found(&file);
        assert_ne!(before[0].1, before[1].1);
        file.strike(before[0].0).unwrap();
        // As after a kill.
        assert_eq!(found(&file), before[1..]);
        assert!(file.finish().is_ok());
        let after = found(&open());
        assert!(after.len() == 1 && after[0].1 != before[0].1);
    }
}
