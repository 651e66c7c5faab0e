//! The keys of `format parquet`.

use std::str;

use super::keys::{self, Key};
use super::reader::Reader;
use super::value::{is_shown, shown};
use super::{Algorithm, DestinationKind, ZSTD_LEVEL};
use crate::codec::json::Options;
use crate::codec::time::TimeFormat;
use crate::format::parquet::columns::{Columns, REST, TAG, TIME};
use crate::format::parquet::{Packing, Table};

/// The highest level of zstd that takes a reasonable time.
const MAX_LEVEL: i32 = 19;

impl Reader<'_> {
    /// Reads the table. The names of its time and tag are set in `letters`, too: dead letters are lines.
    pub(super) fn table(&mut self, kind: Option<DestinationKind>, letters: &mut Options) -> Table {
        if kind == Some(DestinationKind::Firehose) {
            self.problem(
                &keys::FORMAT,
                "parquet needs a blob store: set url, or let Firehose convert JSON lines by a Glue table",
            );
        }
        if letters.log_key.is_some() {
            self.problem(
                &keys::LOG_KEY,
                "does nothing with format parquet, which takes whole records: remove one of them, and declare the key in \
                 parquet_columns",
            );
        }
        if self.flag(&keys::SPOOL) == Some(false) {
            self.problem(
                &keys::FORMAT,
                "parquet needs spool on: without it each chunk would be a file of its own",
            );
        }
        if self.is_set(&keys::TIME_KEY_FORMAT) {
            self.problem(
                &keys::TIME_KEY_FORMAT,
                "does nothing with format parquet, whose time is a timestamp: remove it",
            );
        }
        let time = letters.time.take();
        let (time, format) = time.unwrap_or_else(|| (TIME.to_owned(), TimeFormat::Iso8601));
        letters.time = Some((time.clone(), format));
        let tag = letters
            .tag_key
            .get_or_insert_with(|| TAG.to_owned())
            .clone();
        let columns = Columns {
            time,
            tag,
            metadata: letters.metadata_key.clone(),
            declared: self.declared().unwrap_or_default(),
            rest: self
                .text(&keys::PARQUET_REST)
                .unwrap_or_else(|| REST.to_owned()),
        };
        if let Err(error) = columns.check() {
            let mut names = columns.all().into_iter().map(|column| column.name);
            let message = match names.find(|name| !is_shown(name)) {
                None => error.to_string(),
                Some(secret) => format!(
                    "{} is not a column's name: use at most 128 letters, digits and '_'",
                    shown(secret)
                ),
            };
            self.problem(&keys::PARQUET_COLUMNS, message);
        }
        Table {
            columns,
            packing: self.packing(),
        }
    }

    /// Reads the declared columns.
    fn declared(&mut self) -> Option<Vec<crate::format::parquet::columns::Column>> {
        let written = self.text(&keys::PARQUET_COLUMNS)?;
        let list = match written.strip_prefix('@') {
            None => written,
            Some(path) => {
                let bytes = self.file(&keys::PARQUET_COLUMNS, path)?;
                let Ok(list) = str::from_utf8(&bytes) else {
                    let message = format!("the file '{path}' is not UTF-8: save it as text");
                    self.problem(&keys::PARQUET_COLUMNS, message);
                    return None;
                };
                list.to_owned()
            }
        };
        match Columns::parse_list(&list) {
            Ok(columns) => Some(columns),
            Err(error) => {
                let mut parts = list.split([',', '\n']).map(str::trim);
                let message = match parts.find(|part| !is_shown(part)) {
                    None => error.to_string(),
                    Some(secret) => format!("{} is not a column: write 'name type'", shown(secret)),
                };
                self.problem(&keys::PARQUET_COLUMNS, message);
                None
            }
        }
    }

    fn packing(&mut self) -> Packing {
        let chosen = self.choice(&keys::COMPRESSION);
        if self.flag(&keys::COMPRESS_BLOB) == Some(true) && chosen.is_none() {
            self.problem(
                &keys::COMPRESS_BLOB,
                "means gzip, which is for lines: remove it, or set compression zstd or snappy",
            );
        }
        let packing = match chosen {
            Some(Algorithm::None) => Packing::None,
            Some(Algorithm::Snappy) => Packing::Snappy,
            Some(Algorithm::Zstd) | None => Packing::Zstd(ZSTD_LEVEL),
            Some(Algorithm::Gzip) => {
                self.problem(
                    &keys::COMPRESSION,
                    "gzip is for lines, and slow to read in tables: use zstd, snappy or none",
                );
                Packing::None
            }
        };
        let Some(level) = self.text(&keys::COMPRESSION_LEVEL) else {
            return packing;
        };
        match (level.parse::<i32>(), packing) {
            (Ok(level), Packing::Zstd(_)) if (1..=MAX_LEVEL).contains(&level) => {
                Packing::Zstd(level)
            }
            (_, Packing::Zstd(_)) => {
                let message =
                    format!("'{level}' is not a level of zstd for parquet, 1 to {MAX_LEVEL}");
                self.problem(&keys::COMPRESSION_LEVEL, message);
                packing
            }
            _ => {
                self.problem(
                    &keys::COMPRESSION_LEVEL,
                    "needs compression zstd: set it, or remove this",
                );
                packing
            }
        }
    }

    /// Refuses the keys of tables where objects are lines.
    pub(super) fn refuse_table_keys(&mut self) {
        let keys: [&'static Key; 2] = [&keys::PARQUET_COLUMNS, &keys::PARQUET_REST];
        for key in keys {
            if self.is_set(key) {
                self.problem(key, "needs format parquet: set it, or remove this");
            }
            // It is known, though not used.
            self.raw(key);
        }
    }

    /// Checks that readers can take the folders of a table for columns.
    pub(super) fn check_table_path(&mut self, path: &str, columns: &Columns) {
        if path.contains(':') {
            self.problem(
                &keys::PATH,
                "contains ':', which Spark and Hadoop do not take in the names of a table's folders: use another character",
            );
        }
        for folder in path.split('/') {
            let Some((name, _)) = folder.split_once('=') else {
                continue;
            };
            let all = columns.all();
            if let Some(column) = all.iter().find(|it| it.name.eq_ignore_ascii_case(name)) {
                let message = format!(
                    "has the folder '{folder}', and the table has the column {}: readers would find it twice; name one of \
                     them otherwise, or leave the column out",
                    column.name
                );
                self.problem(&keys::PATH, message);
            }
        }
    }

    /// Checks that objects have room for values beside the descriptions of their columns.
    pub(super) fn check_table_size(&mut self, table: &Table, bytes: usize) {
        let least = table.least_bytes();
        if bytes < least {
            let message = format!(
                "{bytes} bytes are less than {least}, below which files of {} columns would be mostly descriptions of them: \
                 raise it, or declare fewer columns",
                table.columns.all().len()
            );
            self.problem(&keys::BLOB_MAX_SIZE, message);
        }
    }
}
