//! The measured outputs, and the plugins that Ferry's rows are compared with.

/// The destination of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Nothing,
    Firehose,
    Blobs,
}

/// An output with its keys.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) service: Service,
    /// The keys and values, one pair per line. `{url}`, `{port}`, `{ca}` and `{folder}` are replaced by those of the
    /// run.
    pub(super) keys: String,
    /// Whether Ferry's library is loaded.
    pub(super) library: bool,
    /// For Ferry's rows: the row of the plugin to compare with, and the goal.
    pub(super) goals: Option<(&'static str, Goals)>,
}

/// The upper limits that Ferry should stay below.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goals {
    /// The CPU time, relative to the plugin's.
    pub(super) cpu: f64,
    /// The bytes in records or blobs, relative to the plugin's.
    pub(super) stored: Option<f64>,
    /// The billed bytes, relative to those of the lines.
    pub(super) billed: Option<f64>,
}

/// The bytes of memory above that of a host whose output discards everything.
pub(super) const MEMORY_GOAL: u64 = 64_000_000;

/// The name of that host's row.
pub(super) const NULL: &str = "null";

/// All rows, each plugin's before Ferry's.
pub(super) fn all() -> Vec<Row> {
    let row = |id: &str, title: &str, service, keys: String| Row {
        id: id.to_owned(),
        title: title.to_owned(),
        service,
        keys,
        library: false,
        goals: None,
    };
    let firehose = |id, title, more: &str| {
        let keys = format!(
            "Name kinesis_firehose\nendpoint 127.0.0.1\nport {{port}}\ntls.ca_file {{ca}}\n{STREAM}\n{more}"
        );
        row(id, title, Service::Firehose, keys)
    };
    let azure = |id, title, more: &str| {
        let keys =
            format!("Name azure_blob\nendpoint {{url}}\n{CONTAINER}\nblob_type blockblob\n{more}");
        row(id, title, Service::Blobs, keys)
    };
    let mut rows = vec![
        row(NULL, "null", Service::Nothing, "Name null".to_owned()),
        firehose("firehose-lines", "kinesis_firehose, a record a line", ""),
        firehose(
            "firehose-none",
            "kinesis_firehose, aggregated",
            "simple_aggregation on",
        ),
        firehose(
            "firehose-gzip",
            "kinesis_firehose, aggregated, gzip",
            "simple_aggregation on\ncompression gzip",
        ),
        firehose(
            "firehose-zstd",
            "kinesis_firehose, aggregated, zstd",
            "simple_aggregation on\ncompression zstd",
        ),
    ];
    for (way, spool) in [
        ("direct", "spool off"),
        ("spooled", "spool on\nspool_dir {folder}/spool"),
    ] {
        for (compression, level, beside, goals) in [
            ("none", "", "firehose-none", goals(0.75, None, Some(1.02))),
            ("gzip", "1", "firehose-gzip", goals(0.25, None, None)),
            ("gzip", "2", "firehose-gzip", goals(0.25, Some(1.10), None)),
            ("zstd", "1", "firehose-gzip", goals(0.15, None, None)),
        ] {
            let name = format!("{compression} {level}");
            let level = match level {
                "" => String::new(),
                level => format!("compression_level {level}\n"),
            };
            let keys = format!(
                "Name ferry\nendpoint {{url}}\ntls_ca_file {{ca}}\n{STREAM}\naggregation on\n\
                 compression {compression}\n{level}{spool}\ndead_letter_dir {{folder}}/dead-letters"
            );
            let compression = name.trim_end();
            rows.push(Row {
                id: format!("ferry-{way}-{}", compression.replace(' ', "-")),
                title: format!("ferry, aggregated, {compression}, {way}"),
                service: Service::Firehose,
                keys,
                library: true,
                goals: Some((beside, goals)),
            });
        }
    }
    rows.push(azure("azure-none", "azure_blob, block blobs", ""));
    rows.push(azure(
        "azure-gzip",
        "azure_blob, block blobs, gzip",
        "compress_blob on\ncompress gzip",
    ));
    // The plugin always adds the time to each line.
    for (compression, beside, cpu) in [("none", "azure-none", 0.35), ("gzip", "azure-gzip", 0.25)] {
        let keys = format!(
            "Name ferry\nendpoint {{url}}/bench\n{CONTAINER}\ncompression {compression}\nspool on\n\
             spool_dir {{folder}}/spool\ndate_key @timestamp\ndead_letter_dir {{folder}}/dead-letters"
        );
        rows.push(Row {
            id: format!("ferry-blob-{compression}"),
            title: format!("ferry, block blobs, {compression}, spooled"),
            service: Service::Blobs,
            keys,
            library: true,
            goals: Some((beside, goals(cpu, None, None))),
        });
    }
    rows
}

const STREAM: &str = "region us-east-1\ndelivery_stream bench";
/// Not a secret: the fake accepts every signature.
pub(super) const CONTAINER: &str = "account_name bench\nshared_key YmVuY2g=\ncontainer_name logs";

fn goals(cpu: f64, stored: Option<f64>, billed: Option<f64>) -> Goals {
    Goals {
        cpu,
        stored,
        billed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_ferry_has_a_plugin_beside_it_that_runs_before() {
        let rows = all();
        for (number, row) in rows.iter().enumerate() {
            let ferry = row.keys.starts_with("Name ferry\n");
            assert_eq!(row.goals.is_some(), ferry, "{}", row.id);
            assert_eq!(row.library, ferry, "{}", row.id);
            let before: Vec<_> = rows[..number].iter().map(|row| row.id.as_str()).collect();
            assert!(
                !before.contains(&row.id.as_str()),
                "{} is there twice",
                row.id
            );
            if let Some((beside, _)) = row.goals {
                assert!(before.contains(&beside), "{}: no {beside}", row.id);
            }
        }
        assert_eq!(rows[0].id, NULL);
    }
}
