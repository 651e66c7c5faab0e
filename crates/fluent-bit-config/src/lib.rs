//! A parser of Fluent Bit's configuration files that follows Fluent Bit's own rules: the classic format and YAML yield
//! the same [`Section`]s, with unresolved `${VARIABLE}`s and the place of every line. Their interpretation is left to
//! the caller.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

mod classic;
mod variables;
mod yaml;

pub use variables::Variables;

/// A line of a file, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path of the file, as given.
    pub file: Arc<str>,
    /// The line number, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The format of a file and of all files that it includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `[SECTION]` and indented `Key value` lines.
    Classic,
    /// YAML, for files named `.yaml` or `.yml`.
    Yaml,
}

/// A section: `[OUTPUT]` in the classic format, an item of `pipeline.outputs` in YAML.
#[derive(Clone, Debug)]
pub struct Section {
    /// `SERVICE`, `INPUT`, `OUTPUT` and so on, as written; in YAML the singular in lower case.
    pub name: String,
    /// Its entries, in order. Groups (processors and the like) are left out, since proxy outputs never see them.
    pub entries: Vec<Entry>,
    /// Its first line.
    pub place: Place,
}

impl Section {
    /// Whether the section has this name, ignoring case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Returns the first entry with this key, ignoring case: the one that takes effect.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        let mut entries = self.entries.iter();
        entries.find(|entry| entry.key.eq_ignore_ascii_case(key))
    }
}

/// A key and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key, as written; in YAML camelCase becomes snake_case, as in the host.
    pub key: String,
    /// The value, as written, with its variables. Every YAML scalar is text, as in the host.
    pub value: String,
    /// Its line.
    pub place: Place,
}

/// A file and everything that it includes.
#[derive(Debug)]
pub struct Document {
    /// The format.
    pub format: Format,
    /// All sections, in order.
    pub sections: Vec<Section>,
    /// The folder of the main file, relative to which files are looked up that the working directory does not have.
    pub root: PathBuf,
    sets: Vec<(String, String)>,
    seen: Vec<(u64, u64)>,
}

impl Document {
    /// Reads `path` and its includes. Errors name file and line.
    pub fn read(path: &Path) -> Result<Self> {
        let real = fs::canonicalize(path)
            .with_context(|| format!("cannot open the configuration file {}", path.display()))?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        let mut document = Self {
            format: match extension {
                Some("yaml" | "yml") => Format::Yaml,
                _ => Format::Classic,
            },
            sections: Vec::new(),
            sets: Vec::new(),
            root: real.parent().unwrap_or(Path::new("/")).to_owned(),
            seen: Vec::new(),
        };
        document.read_file(path)?;
        Ok(document)
    }

    /// Returns the variables of its values.
    pub fn variables(&self) -> Variables {
        Variables::with(&self.sets)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let metadata =
            fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
        let identity = (metadata.dev(), metadata.ino());
        ensure!(
            !self.seen.contains(&identity),
            "{} is read twice",
            path.display()
        );
        self.seen.push(identity);
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read {} as UTF-8 text", path.display()))?;
        let file: Arc<str> = path.to_string_lossy().into();
        match self.format {
            Format::Classic => self.read_classic(&file, &text),
            Format::Yaml => self.read_yaml(&file, &text),
        }
    }
}

/// Returns the path of a file that a configuration names: relative to the working directory if it exists there, and
/// otherwise to `root`.
pub fn beside(file: &str, root: &Path) -> PathBuf {
    let path = Path::new(file);
    if path.exists() || path.is_absolute() {
        path.to_owned()
    } else {
        root.join(path)
    }
}
