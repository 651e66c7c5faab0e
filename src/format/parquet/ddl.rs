//! The statements that create a table over the objects: columns, partitions, and a view that reads older objects, in which
//! a column did not exist yet, through the column of the rest.

use std::fmt;

use super::columns::{Column, Columns, Stored, Type, Unit};
use super::paths::Path;

/// The language of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Athena: a table with partition projection, and a view.
    Athena,
    /// Glue: the input of `aws glue create-table`, with partition projection.
    Glue,
    /// DuckDB: a view over the files.
    DuckDb,
    /// Spark: a table over the files, and a view.
    Spark,
}

/// The first day that partitions are projected from, if none is named.
const SINCE: &str = "2020-01-01";

/// A table over the objects of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalTable {
    columns: Columns,
    name: String,
    /// The URL of the folder that all objects are below, without a slash at its end.
    location: String,
    partitions: Vec<Partition>,
}

/// A column that is in the folders' names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Partition {
    name: String,
    kind: Projection,
}

/// How Athena finds a partition's values without a catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Projection {
    /// A date in a format of Java, and the unit of its steps.
    Date(&'static str, &'static str),
    /// Numbers from, to, with that many digits.
    Integer(u16, u16, u8),
    /// Values that each question names: they depend on tags or records.
    Injected,
}

/// What keeps a table from being described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DdlError {
    /// The name is none.
    #[error(
        "'{0}' is not the name of a table: use letters, digits and '_', beginning with a letter"
    )]
    Name(String),
    /// A folder is not a partition.
    #[error(
        "the folder '{0}' of path changes and is not a partition: write it as key=value, as in dt=%F or service={{record.service}}"
    )]
    Folder(String),
    /// A partition is not one by itself.
    #[error(
        "the partition '{0}' of path is neither one time specifier (%F, %Y-%m-%d, %Y-%m, %Y, %m, %d, %H) nor one {{…}}: split it \
         into folders"
    )]
    Partition(String),
}

impl ExternalTable {
    /// Describes the table `name` of objects below `location` in folders of the template `path`.
    ///
    /// # Errors
    ///
    /// The name is none, or the folders are not partitions. A fixed folder becomes a part of the location, if it is before
    /// all partitions.
    pub fn new(
        columns: Columns,
        name: &str,
        location: &str,
        path: &str,
    ) -> Result<ExternalTable, DdlError> {
        let begins = name
            .bytes()
            .next()
            .is_some_and(|it| it.is_ascii_alphabetic());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !begins || !name.bytes().all(plain) {
            return Err(DdlError::Name(name.to_owned()));
        }
        let mut location = location.trim_end_matches('/').to_owned();
        let mut partitions = Vec::new();
        for folder in path.split('/').filter(|folder| !folder.is_empty()) {
            match folder.split_once('=') {
                Some((name, value)) => partitions.push(Partition {
                    name: name.to_owned(),
                    kind: projection(value)
                        .ok_or_else(|| DdlError::Partition(folder.to_owned()))?,
                }),
                None if folder.contains(['%', '{']) || !partitions.is_empty() => {
                    return Err(DdlError::Folder(folder.to_owned()));
                }
                None => {
                    location.push('/');
                    location.push_str(folder);
                }
            }
        }
        Ok(ExternalTable {
            columns,
            name: name.to_owned(),
            location,
            partitions,
        })
    }

    /// Returns the statements, or for Glue the document.
    pub fn ddl(&self, dialect: Dialect) -> String {
        match dialect {
            Dialect::Athena => self.athena(),
            Dialect::Glue => self.glue(),
            Dialect::DuckDb => self.duckdb(),
            Dialect::Spark => self.spark(),
        }
    }

    fn athena(&self) -> String {
        let mut text = format!("CREATE EXTERNAL TABLE `{}` (\n", self.name);
        text += &lines(
            self.columns
                .all()
                .iter()
                .map(|column| format!("  `{}` {}", column.name, hive_type(column.stored))),
        );
        text += ")\n";
        if !self.partitions.is_empty() {
            text += "PARTITIONED BY (\n";
            text +=
                &lines(self.partitions.iter().map(|partition| {
                    format!("  `{}` {}", partition.name, partition.kind.sql_type())
                }));
            text += ")\n";
        }
        text += &format!(
            "STORED AS PARQUET\nLOCATION '{}/'\nTBLPROPERTIES (\n",
            quoted(&self.location)
        );
        text += &lines(
            self.properties()
                .into_iter()
                .map(|(key, value)| format!("  '{}' = '{}'", quoted(&key), quoted(&value))),
        );
        text + ");\n\n" + &self.view("CREATE OR REPLACE VIEW", '"', Dialect::Athena)
    }

    fn spark(&self) -> String {
        let mut text = format!("CREATE TABLE IF NOT EXISTS {} (\n", self.name);
        let columns = self.columns.all();
        let columns = columns.iter().map(|column| {
            format!(
                "  `{}` {}",
                column.name,
                hive_type(column.stored).to_uppercase()
            )
        });
        let partitions = self.partitions.iter().map(|partition| {
            format!(
                "  `{}` {}",
                partition.name,
                partition.kind.sql_type().to_uppercase()
            )
        });
        text += &lines(columns.chain(partitions));
        text += ") USING PARQUET\n";
        if !self.partitions.is_empty() {
            let names: Vec<String> = self
                .partitions
                .iter()
                .map(|partition| format!("`{}`", partition.name))
                .collect();
            text += &format!("PARTITIONED BY ({})\n", names.join(", "));
        }
        text += &format!("LOCATION '{}/';\n\n", quoted(&self.location));
        if !self.partitions.is_empty() {
            text += &format!(
                "-- Finds new folders; run it again when there are more.\nMSCK REPAIR TABLE {};\n\n",
                self.name
            );
        }
        text + &self.view("CREATE OR REPLACE VIEW", '`', Dialect::Spark)
    }

    fn duckdb(&self) -> String {
        let hive = !self.partitions.is_empty();
        let location = self
            .location
            .strip_prefix("file://")
            .unwrap_or(&self.location);
        let files = format!("{}/**/*.parquet", quoted(location));
        // Partitions keep the type that their names have.
        let types: Vec<String> = self
            .partitions
            .iter()
            .map(|partition| {
                format!(
                    "'{}': {}",
                    quoted(&partition.name),
                    partition.kind.duckdb_type()
                )
            })
            .collect();
        let types = match hive {
            true => format!(",\n    hive_types = {{{}}}", types.join(", ")),
            false => String::new(),
        };
        format!(
            "CREATE OR REPLACE VIEW {} AS\n  SELECT * FROM read_parquet('{files}', union_by_name = true, hive_partitioning = \
             {hive}{types});\n\n{}",
            self.name,
            self.view("CREATE OR REPLACE VIEW", '"', Dialect::DuckDb)
        )
    }

    fn glue(&self) -> String {
        let column = |name: &str, kind: &str| {
            format!("      {{\"Name\": {}, \"Type\": \"{kind}\"}}", json(name))
        };
        let all = self.columns.all();
        let columns = all.iter().map(|it| column(it.name, hive_type(it.stored)));
        let partitions = self
            .partitions
            .iter()
            .map(|it| column(&it.name, it.kind.sql_type()).trim_start().to_owned())
            .map(|it| format!("    {it}"));
        let properties = [("classification".to_owned(), "parquet".to_owned())]
            .into_iter()
            .chain(self.properties());
        let properties =
            properties.map(|(key, value)| format!("    {}: {}", json(&key), json(&value)));
        format!(
            "{{\n  \"Name\": {},\n  \"TableType\": \"EXTERNAL_TABLE\",\n  \"Parameters\": {{\n{}  }},\n  \"PartitionKeys\": \
             [\n{}  ],\n  \"StorageDescriptor\": {{\n    \"Location\": {},\n    \"InputFormat\": \
             \"org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat\",\n    \"OutputFormat\": \
             \"org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat\",\n    \"SerdeInfo\": \
             {{\"SerializationLibrary\": \"org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe\"}},\n    \"Columns\": \
             [\n{}    ]\n  }}\n}}\n",
            json(&self.name),
            lines(properties),
            lines(partitions),
            json(&format!("{}/", self.location)),
            lines(columns),
        )
    }

    /// Returns the properties of partition projection:
    /// <https://docs.aws.amazon.com/athena/latest/ug/partition-projection-supported-types.html>
    fn properties(&self) -> Vec<(String, String)> {
        if self.partitions.is_empty() {
            return vec![("projection.enabled".to_owned(), "false".to_owned())];
        }
        let mut properties = vec![("projection.enabled".to_owned(), "true".to_owned())];
        let mut template = self.location.clone();
        for Partition { name, kind } in &self.partitions {
            let mut add = |key: &str, value: String| {
                properties.push((format!("projection.{name}.{key}"), value));
            };
            match kind {
                Projection::Date(format, unit) => {
                    add("type", "date".to_owned());
                    add("format", (*format).to_owned());
                    add("range", format!("{},NOW", &SINCE[..format.len()]));
                    add("interval", "1".to_owned());
                    add("interval.unit", (*unit).to_owned());
                }
                Projection::Integer(from, to, digits) => {
                    add("type", "integer".to_owned());
                    add("range", format!("{from},{to}"));
                    add("digits", digits.to_string());
                }
                Projection::Injected => add("type", "injected".to_owned()),
            }
            template += &format!("/{name}=${{{name}}}");
        }
        properties.push((
            "storage.location.template".to_owned(),
            format!("{template}/"),
        ));
        properties
    }

    /// Returns a view in which each declared column has the value of the rest where it is null.
    fn view(&self, create: &str, quote: char, dialect: Dialect) -> String {
        let name = |name: &str| format!("{quote}{name}{quote}");
        let rest = name(&self.columns.rest);
        let columns = self.columns.all();
        let mut declared = self.columns.declared.iter();
        let selected = columns.iter().map(|column| {
            let plain = name(column.name);
            let own = declared.clone().next().filter(|it| it.name == column.name);
            let Some(own) = own else {
                return format!("  {plain}");
            };
            declared.next();
            match from_rest(own, &rest, dialect) {
                Some(value) => format!("  coalesce({plain}, {value}) AS {plain}"),
                None => format!("  {plain}"),
            }
        });
        let partitions = self
            .partitions
            .iter()
            .map(|it| format!("  {}", name(&it.name)));
        let selected: Vec<String> = selected.collect();
        format!(
            "-- Objects in which a column was not declared yet have its values in {}; this view reads them there.\n\
             {create} {}_all AS SELECT\n{}FROM {};\n",
            self.columns.rest,
            self.name,
            lines(selected.into_iter().chain(partitions)),
            self.name,
        )
    }
}

/// Returns the projection of a folder's value; `None` if it is none.
fn projection(value: &str) -> Option<Projection> {
    let is_placeholder = value.starts_with('{') && value.find('}') == Some(value.len() - 1);
    Some(match value {
        "%F" | "%Y-%m-%d" => Projection::Date("yyyy-MM-dd", "DAYS"),
        "%Y-%m" => Projection::Date("yyyy-MM", "MONTHS"),
        "%Y" => Projection::Integer(2020, 2100, 4),
        "%m" => Projection::Integer(1, 12, 2),
        "%d" => Projection::Integer(1, 31, 2),
        "%H" => Projection::Integer(0, 23, 2),
        _ if is_placeholder => Projection::Injected,
        _ => return None,
    })
}

impl Projection {
    /// All are strings, so that names keep their leading zeros.
    fn sql_type(&self) -> &'static str {
        "string"
    }

    fn duckdb_type(&self) -> &'static str {
        match self {
            Projection::Date("yyyy-MM-dd", _) => "DATE",
            _ => "VARCHAR",
        }
    }
}

fn hive_type(stored: Stored) -> &'static str {
    match stored {
        Stored::Text => "string",
        Stored::Int => "bigint",
        Stored::Float => "double",
        Stored::Bool => "boolean",
        Stored::Timestamp => "timestamp",
    }
}

/// Returns the expression of a column's value in the rest. A text that is no whole value of the column's type is null, never
/// rounded. `None`: the dialect cannot write the path.
fn from_rest(column: &Column, rest: &str, dialect: Dialect) -> Option<String> {
    let path = json_path(&column.path, dialect)?;
    let text = match dialect {
        Dialect::Athena | Dialect::Glue => format!("json_extract_scalar({rest}, '{path}')"),
        Dialect::DuckDb => format!("({rest} ->> '{path}')"),
        Dialect::Spark => format!("get_json_object({rest}, '{path}')"),
    };
    let matches = |text: &str, pattern: &str| match dialect {
        Dialect::Athena | Dialect::Glue => format!("regexp_like({text}, '^{pattern}$')"),
        Dialect::DuckDb => format!("regexp_full_match({text}, '{pattern}')"),
        Dialect::Spark => format!("{text} RLIKE '^{pattern}$'"),
    };
    let cast = |text: &str, kind: &str| match dialect {
        Dialect::Spark => format!("try_cast({text} AS {kind})"),
        _ => format!("TRY_CAST({text} AS {kind})"),
    };
    let int = format!(
        "CASE WHEN {} THEN {} END",
        matches(&text, "-?[0-9]+"),
        cast(&text, "BIGINT")
    );
    Some(match column.kind {
        Type::String => text,
        Type::Json => match dialect {
            Dialect::Athena | Dialect::Glue => {
                format!("json_format(json_extract({rest}, '{path}'))")
            }
            Dialect::DuckDb => format!("CAST(({rest} -> '{path}') AS VARCHAR)"),
            Dialect::Spark => text,
        },
        Type::Int => int,
        Type::Float => cast(&text, "DOUBLE"),
        // Other words are booleans for some readers.
        Type::Bool => format!(
            "CASE WHEN {text} IN ('true', 'false') THEN {} END",
            cast(&text, "BOOLEAN")
        ),
        Type::Timestamp(None) => match dialect {
            Dialect::Athena | Dialect::Glue => {
                format!(
                    "CAST(TRY(from_iso8601_timestamp({text})) AT TIME ZONE 'UTC' AS timestamp(3))"
                )
            }
            Dialect::DuckDb => cast(&text, "TIMESTAMPTZ"),
            Dialect::Spark => cast(&text, "TIMESTAMP"),
        },
        Type::Timestamp(Some(unit)) => {
            let micros = match unit {
                Unit::Seconds => format!("({int}) * 1000000"),
                Unit::Millis => format!("({int}) * 1000"),
                Unit::Micros => format!("({int})"),
                Unit::Nanos => format!("({int}) / 1000"),
            };
            match dialect {
                Dialect::Athena | Dialect::Glue => {
                    format!(
                        "CAST(from_unixtime(({micros}) / 1e6) AT TIME ZONE 'UTC' AS timestamp(3))"
                    )
                }
                Dialect::DuckDb => format!("make_timestamptz(CAST({micros} AS BIGINT))"),
                Dialect::Spark => format!("timestamp_micros(CAST({micros} AS BIGINT))"),
            }
        }
    })
}

/// Returns a path in a dialect's JSON functions, inside of a quoted string. `None` if it cannot be written there.
fn json_path(path: &Path, dialect: Dialect) -> Option<String> {
    let mut text = String::from("$");
    for key in path.keys() {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if key.chars().all(plain) {
            text += &format!(".{key}");
        } else if key.contains(['"', '\'', '\\', ']']) {
            return None;
        } else {
            text += &match dialect {
                Dialect::Athena | Dialect::Glue => format!("[\"{key}\"]"),
                Dialect::DuckDb => format!(".\"{key}\""),
                // Two single quotes are one within a string … and Spark takes a backslash.
                Dialect::Spark => format!("[\\'{key}\\']"),
            };
        }
    }
    Some(text)
}

/// Joins lines with commas.
fn lines(lines: impl IntoIterator<Item = String>) -> String {
    let lines: Vec<String> = lines.into_iter().collect();
    match lines.is_empty() {
        true => String::new(),
        false => lines.join(",\n") + "\n",
    }
}

/// Returns a text inside of a quoted SQL string.
fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}

/// Returns a text as a JSON string.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Dialect {
    /// All of them.
    pub const ALL: [Dialect; 4] = [
        Dialect::Athena,
        Dialect::Glue,
        Dialect::DuckDb,
        Dialect::Spark,
    ];
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dialect::Athena => "athena",
            Dialect::Glue => "glue",
            Dialect::DuckDb => "duckdb",
            Dialect::Spark => "spark",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(path: &str) -> Result<ExternalTable, DdlError> {
        let declared = "level string, status int = response.statusCode, trace string bloom = ['trace-id'], took float, \
                        ok bool, at timestamp, sent timestamp_ms, body json";
        let columns = Columns {
            declared: Columns::parse_list(declared).unwrap(),
            ..Columns::default()
        };
        ExternalTable::new(columns, "logs", "s3://lake/app/", path)
    }

    #[test]
    fn partitions_are_projected_from_the_folders() {
        let athena = table("fixed/dt=%F/hour=%H/service={record.service}")
            .unwrap()
            .ddl(Dialect::Athena);
        for expected in [
            "PARTITIONED BY (\n  `dt` string,\n  `hour` string,\n  `service` string\n)",
            "LOCATION 's3://lake/app/fixed/'",
            "'projection.dt.format' = 'yyyy-MM-dd'",
            "'projection.dt.range' = '2020-01-01,NOW'",
            "'projection.hour.digits' = '2'",
            "'projection.service.type' = 'injected'",
            "'storage.location.template' = 's3://lake/app/fixed/dt=${dt}/hour=${hour}/service=${service}/'",
            "  `status` bigint,\n",
        ] {
            assert!(athena.contains(expected), "{expected}: {athena}");
        }
        let months = table("month=%Y-%m").unwrap().ddl(Dialect::Athena);
        assert!(
            months.contains("'projection.month.range' = '2020-01,NOW'"),
            "{months}"
        );
    }

    #[test]
    fn glue_gets_a_document() {
        let glue = table("dt=%F").unwrap().ddl(Dialect::Glue);
        let glue: serde_json::Value = serde_json::from_str(&glue).unwrap();
        assert_eq!(glue["StorageDescriptor"]["Columns"][3]["Type"], "bigint");
        assert_eq!(glue["PartitionKeys"][0]["Name"], "dt");
        assert_eq!(glue["Parameters"]["projection.enabled"], "true");
        let plain: serde_json::Value =
            serde_json::from_str(&table("").unwrap().ddl(Dialect::Glue)).unwrap();
        assert_eq!(plain["PartitionKeys"], serde_json::json!([]));
    }

    #[test]
    fn the_view_reads_each_type_from_the_rest_without_rounding() {
        let duckdb = table("dt=%F").unwrap().ddl(Dialect::DuckDb);
        for expected in [
            "coalesce(\"level\", (\"rest\" ->> '$.level')) AS \"level\"",
            "CASE WHEN regexp_full_match((\"rest\" ->> '$.response.statusCode'), '-?[0-9]+')",
            "'$.\"trace-id\"'",
            "hive_types = {'dt': DATE}",
        ] {
            assert!(duckdb.contains(expected), "{expected}: {duckdb}");
        }
        let spark = table("dt=%F").unwrap().ddl(Dialect::Spark);
        assert!(
            spark.contains("get_json_object(`rest`, '$[\\'trace-id\\']')"),
            "{spark}"
        );
    }

    #[test]
    fn what_is_no_table_is_refused_with_the_remedy() {
        for (path, part) in [
            ("%Y/%m", "key=value"),
            ("dt=%F/{tag}", "'{tag}'"),
            ("dt=%F/fixed", "'fixed'"),
            ("dt=%F-%H", "split it into folders"),
            ("s={a}{b}", "split it into folders"),
        ] {
            let error = table(path).unwrap_err().to_string();
            assert!(error.contains(part), "{path}: {error}");
        }
        let error = ExternalTable::new(Columns::default(), "my-logs", "s3://b", "").unwrap_err();
        assert_eq!(error, DdlError::Name("my-logs".to_owned()));
    }
}
