//! The classic format: sections, indentation, `@SET` and `@INCLUDE`, with the host's rules.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use crate::{Document, Entry, Place, Section, beside};

impl Document {
    pub(crate) fn read_classic(&mut self, file: &Arc<str>, text: &str) -> Result<()> {
        let mut indent: Option<&str> = None;
        // An index, since the last section may be an included file's.
        let mut current = None;
        let mut in_group = false;
        for (number, line) in text.lines().enumerate() {
            let place = Place {
                file: file.clone(),
                line: number + 1,
            };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(command) = line.strip_prefix('@') {
                self.command(command, &place)?;
                continue;
            }
            if let Some(header) = line.strip_prefix('[') {
                let (name, _) = header
                    .split_once(']')
                    .with_context(|| format!("{place}: the section header has no ']'"))?;
                self.sections.push(Section {
                    name: name.to_owned(),
                    entries: Vec::new(),
                    place,
                });
                (current, in_group) = (Some(self.sections.len() - 1), false);
                continue;
            }
            let body = line.trim_start_matches([' ', '\t']);
            let margin = &line[..line.len() - body.len()];
            if body.is_empty() || body.starts_with('#') {
                continue;
            }
            ensure!(
                !margin.is_empty(),
                "{place}: indentation level is too low: keys are indented below their section"
            );
            let first = *indent.get_or_insert(margin);
            let deeper = margin.strip_prefix(first).with_context(|| {
                format!("{place}: invalid indentation level: the file's first key sets it")
            })?;
            ensure!(
                deeper.is_empty() || deeper.len() == first.len(),
                "{place}: extra indentation level found"
            );
            let section =
                current.with_context(|| format!("{place}: the key is outside of any section"))?;
            if deeper.is_empty() {
                in_group = body.starts_with('[');
            }
            if in_group {
                continue; // processors and the like, which proxy outputs never see
            }
            let (key, value) = body.split_once(' ').with_context(|| {
                // The rest of the line may be a secret, and so may a line that has no separator at all.
                let key = match body.split_once(['\t', '=', ':']) {
                    Some((key, _)) => format!("'{key}'"),
                    None => "the key".to_owned(),
                };
                format!("{place}: {key} has no value: separate key and value by a space, not a tab")
            })?;
            self.sections[section].entries.push(Entry {
                key: key.trim().to_owned(),
                value: value.trim().to_owned(),
                place,
            });
        }
        Ok(())
    }

    fn command(&mut self, command: &str, place: &Place) -> Result<()> {
        let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
        match name.to_lowercase().as_str() {
            "include" => {
                let files = self.included(rest.trim(), place)?;
                for file in files {
                    self.read_file(&file)
                        .with_context(|| format!("{place}: @INCLUDE {rest}"))?;
                }
            }
            "set" => {
                let (key, value) = rest.trim().split_once('=').with_context(|| {
                    let name = rest.split_whitespace().next().unwrap_or_default();
                    format!("{place}: '@SET {name}' must be '@SET name=value'")
                })?;
                self.sets.push((key.to_owned(), value.to_owned()));
            }
            _ => bail!("{place}: '@{name}' is not a command; use @SET or @INCLUDE"),
        }
        Ok(())
    }

    pub(crate) fn included(&self, pattern: &str, place: &Place) -> Result<Vec<PathBuf>> {
        if !pattern.contains('*') {
            return Ok(vec![beside(pattern, &self.root)]);
        }
        let pattern = self.root.join(pattern);
        let found: Vec<_> = glob::glob(&pattern.to_string_lossy())
            .with_context(|| format!("{place}: @INCLUDE {}", pattern.display()))?
            .collect::<Result<_, _>>()?;
        ensure!(
            !found.is_empty(),
            "{place}: @INCLUDE {}: no file matches",
            pattern.display()
        );
        Ok(found)
    }
}
