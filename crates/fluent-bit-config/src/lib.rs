//! Fluent Bit's configuration files, read as Fluent Bit reads them: the classic format and YAML become
//! the same [`Section`]s, whose values still hold their `${VARIABLE}`s, and every one of which knows its
//! place. What the sections mean is the reader's business.

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

/// A file and a line in it, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// How a file is written. What it includes is written alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `[SECTION]` and indented `Key value` lines.
    Classic,
    /// What a file named `.yaml` or `.yml` holds.
    Yaml,
}

/// A section: `[OUTPUT]` in the classic format, an item of `pipeline.outputs` in YAML.
#[derive(Clone, Debug)]
pub struct Section {
    /// `SERVICE`, `INPUT`, `OUTPUT` and so on, as written; in YAML the singular in small letters.
    pub name: String,
    /// Its lines, in order. What stands in a group (processors and the like) is left out: no proxy output sees it.
    pub entries: Vec<Entry>,
    /// Where it begins.
    pub place: Place,
}

impl Section {
    /// Whether it is called so; names compare without regard to case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// The first line with that key, which is the one that counts; keys compare without regard to case.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        let mut entries = self.entries.iter();
        entries.find(|entry| entry.key.eq_ignore_ascii_case(key))
    }
}

/// A key and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As written; in YAML camelCase becomes snake_case, as in the host.
    pub key: String,
    /// As written, with its variables. Every scalar of YAML is text, as it is to the host.
    pub value: String,
    /// Where it stands.
    pub place: Place,
}

/// One file and all it includes.
#[derive(Debug)]
pub struct Document {
    /// How it is written.
    pub format: Format,
    /// All sections, in order.
    pub sections: Vec<Section>,
    /// The folder of the main file, where files are looked for that are not found from the current one.
    pub root: PathBuf,
    sets: Vec<(String, String)>,
    seen: Vec<(u64, u64)>,
}

impl Document {
    /// Reads `path` and what it includes. Errors name file and line.
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

    /// What `${…}` stands for in its values.
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

/// A file named in the main file: as it stands, or else in the main file's directory.
pub fn beside(file: &str, root: &Path) -> PathBuf {
    let path = Path::new(file);
    if path.exists() || path.is_absolute() {
        path.to_owned()
    } else {
        root.join(path)
    }
}
