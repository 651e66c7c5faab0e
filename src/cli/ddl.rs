//! `ferry ddl`: the statements that create a table over the Parquet of an output. The implementation is in
//! [`ferry::format::parquet::ddl`].

use std::path::PathBuf;

use ferry::check::host;
use ferry::config::{Destination, Properties as _, TABLE_PATH};
use ferry::format::parquet::ddl::{Dialect, ExternalTable};

use super::{Done, chosen, print};

/// Print the statements that create a table over the Parquet of an output: columns, partitions, and a view that reads
/// older objects through the column of the rest
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct Args {
    /// For whom: athena, glue (the input of `aws glue create-table`), duckdb or spark
    #[arg(value_parser = dialect)]
    dialect: Dialect,
    /// Fluent Bit's configuration: classic, or YAML where it is named .yaml or .yml
    file: PathBuf,
    /// The output's alias or Fluent Bit's name for it, such as ferry.1; needed if several write Parquet
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// The table's name; the view is named after it, with _all
    #[arg(long, value_name = "NAME", default_value = "logs")]
    table: String,
    /// The URL of the folder of all objects, as the reader has to write it; by default that of the configuration
    #[arg(long, value_name = "URL")]
    location: Option<String>,
}

const STATUS: &str = "\
Athena finds the folders by partition projection, so no crawler and no MSCK REPAIR TABLE is needed. Folders have to be partitions,
such as path dt=%F/service={record.service}; of those that tags or records name, each question in Athena has to name one.

Examples:
  ferry ddl athena /etc/fluent-bit/fluent-bit.conf --table app_logs
  ferry ddl glue fluent-bit.conf >table.json; aws glue create-table --database-name logs --table-input file://table.json
  ferry ddl duckdb fluent-bit.conf | duckdb -f /dev/stdin logs.db

Exit status: 0, printed; 2, the configuration cannot be read, or no output of it writes Parquet into such folders";

fn dialect(word: &str) -> Result<Dialect, String> {
    let found = Dialect::ALL.into_iter().find(|it| it.to_string() == word);
    found.ok_or_else(|| "expected athena, glue, duckdb or spark".to_owned())
}

pub(super) fn run(args: &Args) -> Done {
    let file = args.file.display();
    let configuration = host::read(&args.file, |name| name == "ferry")?;
    let mut tables = Vec::new();
    for output in &configuration.outputs {
        if args
            .output
            .as_ref()
            .is_some_and(|name| *name != output.label)
        {
            continue;
        }
        let config = chosen::configuration(output, &file)?;
        if let Some(table) = &config.table
            && let Destination::Blob { blob, prefix, .. } = &config.destination
        {
            let path = output.get("path").unwrap_or_else(|| TABLE_PATH.to_owned());
            let location = match &args.location {
                Some(location) => location.clone(),
                None => format!("{}/{prefix}", blob.store),
            };
            tables.push((&output.label, table.columns.clone(), location, path));
        }
    }
    let [(label, columns, location, path)] = &tables[..] else {
        return Err(match (tables.is_empty(), &args.output) {
            (true, Some(name)) => format!("{file}: no output {name} has format parquet"),
            (true, None) => format!("{file}: no ferry output has format parquet"),
            (false, _) => {
                let labels: Vec<&str> = tables.iter().map(|(label, ..)| label.as_str()).collect();
                format!(
                    "{file}: several outputs have format parquet: name one of {} with --output",
                    labels.join(", ")
                )
            }
        }
        .into());
    };
    let table = ExternalTable::new(columns.clone(), &args.table, location, path);
    let table = table.map_err(|error| format!("{file}: {label}: {error}"))?;
    print(&table.ddl(args.dialect))?;
    Ok(true)
}
