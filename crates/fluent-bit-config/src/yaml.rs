//! The YAML format. Sections are built from parser events, so that scalars remain the text that was written (`on`,
//! `0750`, `1.0`), as in the host, and have a line number.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use saphyr_parser::{Event, Parser, Span, StrInput};

use crate::{Document, Entry, Place, Section};

/// A value and its place.
struct Node {
    value: Value,
    place: Place,
}

enum Value {
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// The deepest nesting, far beyond any real configuration, so that parsing cannot overflow the stack.
const MAX_DEPTH: usize = 64;

impl Document {
    pub(crate) fn read_yaml(&mut self, file: &Arc<str>, text: &str) -> Result<()> {
        let mut reader = Reader {
            file: Arc::clone(file),
            parser: Parser::new_from_str(text),
        };
        let Some(root) = reader.document()? else {
            return Ok(()); // an empty file
        };
        let Value::Map(parts) = root.value else {
            bail!(
                "{}: the file is not a mapping; begin it with service: or pipeline:",
                root.place
            );
        };
        for (key, node) in parts {
            self.part(&key.text()?.to_lowercase(), node)?;
        }
        Ok(())
    }

    /// Reads one of the file's top-level keys.
    fn part(&mut self, name: &str, node: Node) -> Result<()> {
        match name {
            "env" => {
                for (key, value) in node.map("env")? {
                    self.sets
                        .push((key.text()?.to_owned(), value.text()?.to_owned()));
                }
            }
            "includes" => {
                for item in node.list("includes")? {
                    let pattern = item.text()?;
                    for file in self.included(pattern, &item.place)? {
                        self.read_file(&file)
                            .with_context(|| format!("{}: includes {pattern}", item.place))?;
                    }
                }
            }
            "service" => self.section("service", node)?,
            "pipeline" => {
                for (kind, list) in node.map("pipeline")? {
                    let name = match kind.text()?.to_lowercase().as_str() {
                        "inputs" => "input",
                        "filters" => "filter",
                        "outputs" => "output",
                        other => bail!(
                            "{}: '{other}' is not part of a pipeline; use inputs, filters or outputs",
                            kind.place
                        ),
                    };
                    for item in list.list(name)? {
                        self.section(name, item)?;
                    }
                }
            }
            "plugins" => {
                for item in node.list("plugins")? {
                    let path = Entry {
                        key: "path".to_owned(),
                        value: item.text()?.to_owned(),
                        place: item.place.clone(),
                    };
                    self.sections.push(Section {
                        name: "plugins".to_owned(),
                        place: item.place,
                        entries: vec![path],
                    });
                }
            }
            "parsers" | "multiline_parsers" | "customs" | "upstream_servers"
            | "stream_processor" => {
                for item in node.list(name)? {
                    self.section(name.strip_suffix('s').unwrap_or(name), item)?;
                }
            }
            "extensions" => {}
            _ => bail!(
                "{}: unknown key '{name}'; use env, includes, service, pipeline, parsers, plugins and others",
                node.place
            ),
        }
        Ok(())
    }

    fn section(&mut self, name: &str, node: Node) -> Result<()> {
        let place = node.place.clone();
        let mut entries = Vec::new();
        for (key, value) in node.map(name)? {
            let place = key.place.clone();
            let key = snake_case(key.text()?);
            let values = match value.value {
                Value::Scalar(text) => vec![text],
                // The host sets the key once for each item.
                Value::List(items) => {
                    let plain = items.into_iter().filter_map(|item| match item.value {
                        Value::Scalar(text) => Some(text),
                        _ => None,
                    });
                    plain.collect()
                }
                Value::Map(_) => continue, // processors and the like
            };
            entries.extend(values.into_iter().map(|value| Entry {
                key: key.clone(),
                value,
                place: place.clone(),
            }));
        }
        self.sections.push(Section {
            name: name.to_owned(),
            entries,
            place,
        });
        Ok(())
    }
}

impl Node {
    fn text(&self) -> Result<&str> {
        match &self.value {
            Value::Scalar(text) => Ok(text),
            _ => bail!("{}: expected a plain value", self.place),
        }
    }

    fn list(self, name: &str) -> Result<Vec<Node>> {
        match self.value {
            Value::List(items) => Ok(items),
            _ => bail!("{}: {name} must be a list, '- …'", self.place),
        }
    }

    fn map(self, name: &str) -> Result<Vec<(Node, Node)>> {
        match self.value {
            Value::Map(pairs) => Ok(pairs),
            _ => bail!("{}: {name} must be a mapping, 'key: value'", self.place),
        }
    }
}

/// Converts `deliveryStream` to `delivery_stream`, as the host does for keys that begin with a lower-case letter and
/// have no underscore.
fn snake_case(key: &str) -> String {
    if key.contains('_') || !key.starts_with(|c: char| c.is_ascii_lowercase()) {
        return key.to_owned();
    }
    let mut snake = String::with_capacity(key.len() + 4);
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

struct Reader<'t> {
    file: Arc<str>,
    parser: Parser<'t, StrInput<'t>>,
}

impl<'t> Reader<'t> {
    /// Parses the first document of the file.
    fn document(&mut self) -> Result<Option<Node>> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(None),
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                Event::DocumentEnd => return Ok(None),
                event => return self.node(event, span, 0).map(Some),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span)> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => bail!(
                "{}:{}: invalid YAML: {}",
                self.file,
                error.marker().line(),
                error.info()
            ),
            None => bail!("{}: unexpected end of file", self.file),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node> {
        let place = Place {
            file: Arc::clone(&self.file),
            line: span.start.line(),
        };
        ensure!(depth < MAX_DEPTH, "{place}: nested too deeply");
        let value = match event {
            Event::Scalar(text, ..) => Value::Scalar(text.into_owned()),
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if event == Event::SequenceEnd {
                        break Value::List(items);
                    }
                    items.push(self.node(event, span, depth + 1)?);
                }
            }
            Event::MappingStart(..) => {
                let mut pairs = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if event == Event::MappingEnd {
                        break Value::Map(pairs);
                    }
                    let key = self.node(event, span, depth + 1)?;
                    let (event, span) = self.next()?;
                    pairs.push((key, self.node(event, span, depth + 1)?));
                }
            }
            Event::Alias(_) => {
                bail!("{place}: Fluent Bit does not support aliases ('*name'): write the value out")
            }
            other => bail!("{place}: unexpected {other:?}"),
        };
        Ok(Node { value, place })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Format;

    /// Reads `main` as `fluent-bit.yaml`, in a folder with other files.
    fn read(main: &str, files: &[(&str, &str)]) -> Result<Document> {
        let folder = tempfile::tempdir()?;
        for (name, text) in files.iter().chain(&[("fluent-bit.yaml", main)]) {
            fs::write(folder.path().join(name), text)?;
        }
        Document::read(&folder.path().join("fluent-bit.yaml"))
    }

    #[test]
    fn sections_are_those_of_the_classic_format() {
        let main = "\
env:
  stream: app-logs
includes:
  - more-*.yaml
service:
  flush: 0.50
  hot_reload: on
plugins:
  - /a/out_ferry.so
pipeline:
  inputs:
    - name: dummy
      processors: {logs: [{name: sql}]}
  outputs:
    - name: ferry
      match: '*'
      deliveryStream: \"${stream}\"
      Match_Regex: x
      data_keys: [a, b]
";
        let document = read(
            main,
            &[("more-1.yaml", "pipeline:\n  outputs:\n    - name: stdout\n")],
        )
        .unwrap();
        assert_eq!(document.format, Format::Yaml);
        let shown: Vec<String> = document
            .sections
            .iter()
            .map(|section| {
                let entries = section.entries.iter();
                let pairs: Vec<String> = entries
                    .map(|entry| format!("{}={}@{}", entry.key, entry.value, entry.place.line))
                    .collect();
                format!(
                    "{}@{} {}",
                    section.name,
                    section.place.line,
                    pairs.join(" ")
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "output@3 name=stdout@3",
                "service@6 flush=0.50@6 hot_reload=on@7",
                "plugins@9 path=/a/out_ferry.so@9",
                "input@12 name=dummy@12",
                "output@15 name=ferry@15 match=*@16 delivery_stream=${stream}@17 Match_Regex=x@18 data_keys=a@19 data_keys=b@19",
            ]
        );
        let stream = document.sections[4].entry("delivery_stream").unwrap();
        assert_eq!(document.variables().resolve(&stream.value), "app-logs");
    }

    #[test]
    fn errors_name_file_and_line() {
        let cases = [
            ("service: [\n", "fluent-bit.yaml:2: invalid YAML"),
            ("- a\n", ":1: the file is not a mapping"),
            ("service:\n  - a\n", ":2: service must be a mapping"),
            (
                "pipeline:\n  outputs:\n    name: x\n",
                ":3: output must be a list",
            ),
            (
                "pipeline:\n  sinks: []\n",
                ":2: 'sinks' is not part of a pipeline",
            ),
            ("output:\n  name: x\n", "unknown key 'output'"),
            ("includes:\n  - none.yaml\n", ":2: includes none.yaml"),
            ("includes:\n  - fluent-bit.yaml\n", "is read twice"),
            (
                "service: &a\n  flush: 1\nenv: *a\n",
                ":3: Fluent Bit does not support aliases",
            ),
        ];
        for (main, message) in cases {
            let error = format!("{:#}", read(main, &[]).expect_err(main));
            assert!(error.contains(message), "{main:?}: {error}");
        }
        assert!(read("", &[]).unwrap().sections.is_empty());
    }
}
