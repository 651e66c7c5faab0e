//! What the objects of a blob store cost in requests, from the rate of lines and the number of folders.

use std::time::Duration;

use super::Report;
use crate::compress::Compression;
use crate::config::{Config, Destination, open_objects, parse_size};
use crate::delivery::gathering::FILE_SHARE;
use crate::delivery::small_objects::{MANY_A_MONTH, S3_DOLLARS_PER_MILLION, SMALL};
use crate::format::parquet::Packing;
use crate::log::size;

/// How many times smaller compression makes JSON log lines, about: 5 to 6 were measured (`docs/performance.md`).
pub(super) const COMPRESSION_FACTOR: f64 = 5.0;
/// A month of 30 days.
pub(super) const MONTH: Duration = Duration::from_secs(30 * 24 * 3_600);

/// An expected load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Bytes of lines per second.
    pub rate: u64,
    /// The folders that receive lines at the same time.
    pub folders: u64,
}

/// Reads a rate, written like the sizes of a configuration.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = parse_size(text).filter(|rate| *rate > 0);
    rate.map(|rate| rate as u64)
        .ok_or_else(|| format!("'{text}' is not a size: write 500K, 2M or 1G (K is 1,000)"))
}

/// The expected objects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Objects {
    /// The bytes of an object, compressed.
    bytes: f64,
    /// The time in which each folder gets an object.
    interval: f64,
    /// The spool is too small for the objects to reach `blob_max_age`.
    is_cut_short: bool,
    pub(super) a_month: f64,
}

/// How the object of a folder grows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    /// The time after which it is sealed, in seconds.
    pub(super) age: f64,
    /// The size at which it is sealed, in compressed bytes.
    pub(super) bytes: f64,
    /// How many times smaller compression makes the lines.
    pub(super) factor: f64,
}

impl Growth {
    /// Returns the bytes of lines that each of the folders gets until its object is sealed by age, compressed, and the number
    /// of objects they make.
    fn until_sealed(&self, rate: f64, folders: f64) -> (f64, f64) {
        let all = rate * self.age / folders / self.factor;
        (all, (all / self.bytes).ceil().max(1.0))
    }

    /// Returns the objects of a month, for a rate in bytes per second that is spread evenly over the folders.
    pub(super) fn objects_a_month(&self, rate: f64, folders: f64) -> f64 {
        let (_, objects) = self.until_sealed(rate, folders);
        folders * objects * MONTH.as_secs_f64() / self.age
    }
}

/// Returns how many times smaller the configured compression makes lines.
pub(super) fn factor(config: &Config) -> f64 {
    if let Some(table) = &config.table {
        return match table.packing {
            Packing::None => 1.0,
            Packing::Snappy | Packing::Zstd(_) => COMPRESSION_FACTOR,
        };
    }
    match config.compression {
        Compression::None => 1.0,
        Compression::Gzip(_) | Compression::Zstd(_) => COMPRESSION_FACTOR,
    }
}

/// Returns the objects of a spooled output. The load is spread evenly over the folders.
pub(super) fn objects(config: &Config, load: Load) -> Option<Objects> {
    let Destination::Blob { object, .. } = &config.destination else {
        return None;
    };
    let spool = config.spool.as_ref()?;
    let (rate, folders) = (load.rate.max(1) as f64, load.folders.max(1) as f64);
    let factor = factor(config);
    // Lines are gathered on disk when they do not fit into memory.
    let age = object.age.as_secs_f64();
    let is_gathered =
        rate * age / factor > open_objects(config.memory_limit) as f64 && folders > 1.0;
    let fills = (spool.limit / FILE_SHARE) as f64 / rate;
    let interval = if is_gathered { age.min(fills) } else { age };
    let growth = Growth {
        age: interval,
        bytes: object.bytes as f64,
        factor,
    };
    let (all, objects) = growth.until_sealed(rate, folders);
    Some(Objects {
        bytes: all / objects,
        interval,
        is_cut_short: interval < age,
        a_month: growth.objects_a_month(rate, folders),
    })
}

/// Reports the size and the number of objects.
pub(super) fn check(config: &Config, load: Load, report: &mut Report<'_>) {
    let Some(objects) = objects(config, load) else {
        let why = match config.destination {
            Destination::Firehose(_) => "Firehose does not charge for requests",
            Destination::Blob { .. } => {
                "without a spool, each chunk of the host is an object in each of its folders"
            }
        };
        return report.skip("objects", why);
    };
    let dollars = objects.a_month / 1e6 * S3_DOLLARS_PER_MILLION as f64;
    let message = format!(
        "at {} of lines per second in {} folders, an object has about {} and is due every {:.0} s: {:.1} million a month, for \
         which Amazon S3 charges ${dollars:.0} in requests",
        size(load.rate),
        load.folders,
        size(objects.bytes as u64),
        objects.interval,
        objects.a_month / 1e6,
    );
    let is_small = objects.bytes < SMALL as f64 && objects.a_month >= MANY_A_MONTH as f64;
    match (is_small, objects.is_cut_short) {
        (false, _) => report.ok("objects", message),
        (true, true) => report.warn(
            "objects",
            message,
            "raise spool_limit, a sixth of which fills before blob_max_age, or use fewer folders in path",
        ),
        (true, false) => report.warn("objects", message, "raise blob_max_age, or use fewer folders in path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(keys: &[(&str, &str)]) -> Config {
        let get = |key: &str| {
            let own = keys.iter().find(|(name, _)| *name == key);
            let url = ("url", "file:///var/log/lake");
            own.or(Some(&url).filter(|(name, _)| *name == key))
                .map(|(_, value)| (*value).to_owned())
        };
        Config::read(&get).expect("a good configuration")
    }

    fn found(keys: &[(&str, &str)], rate: u64, folders: u64) -> Vec<super::super::Finding> {
        let mut findings = Vec::new();
        let mut sink = |finding| findings.push(finding);
        let mut report = Report {
            said: &mut std::collections::HashMap::new(),
            output: "out",
            sink: &mut sink,
        };
        check(&config(keys), Load { rate, folders }, &mut report);
        findings
    }

    #[test]
    fn objects_are_as_large_as_age_size_and_the_disk_allow() {
        /// The configuration, the load, and the expected size and interval.
        type Case<'c> = (&'c [(&'c str, &'c str)], u64, u64, f64, f64);
        let cases: [Case<'_>; 5] = [
            // Age alone: 100 KB a second for 300 s, in one folder, a fifth of it stored.
            (&[], 100_000, 1, 6_000_000.0, 300.0),
            (&[("compression", "none")], 100_000, 10, 3_000_000.0, 300.0),
            // Size: four objects of 5 MB instead of one of 20 MB.
            (
                &[("blob_max_size", "5M"), ("compression", "none")],
                100_000,
                1,
                5_000_000.0,
                300.0,
            ),
            // The disk: a sixth of 600 MB is full after 10 s.
            (
                &[("spool_limit", "600M")],
                10_000_000,
                1_000,
                20_000.0,
                10.0,
            ),
            (
                &[("spool_limit", "60G")],
                10_000_000,
                1_000,
                600_000.0,
                300.0,
            ),
        ];
        for (keys, rate, folders, bytes, interval) in cases {
            let objects = objects(&config(keys), Load { rate, folders }).expect("objects");
            let near = |a: f64, b: f64| (a - b).abs() <= b / 4.0;
            assert!(near(objects.bytes, bytes), "{keys:?}: {objects:?}");
            assert!(near(objects.interval, interval), "{keys:?}: {objects:?}");
        }
    }

    #[test]
    fn many_small_objects_are_warned_of_with_what_they_cost() {
        let findings = found(&[("spool_limit", "600M")], 10_000_000, 1_000);
        assert_eq!(
            findings[0].to_string(),
            "warn out objects: at 10 MB of lines per second in 1000 folders, an object has about 20 KB and is due every 10 s: \
             259.2 million a month, for which Amazon S3 charges $1296 in requests; remedy: raise spool_limit, a sixth of which \
             fills before blob_max_age, or use fewer folders in path"
        );
        let findings = found(&[("spool_limit", "60G")], 1_000_000, 10_000);
        let remedy = findings[0].remedy.as_deref();
        assert_eq!(
            remedy,
            Some("raise blob_max_age, or use fewer folders in path")
        );
        let findings = found(&[], 100_000, 10);
        assert!(
            findings[0].to_string().starts_with("ok "),
            "{}",
            findings[0]
        );
        let findings = found(&[("spool", "off")], 100_000, 10);
        assert!(
            findings[0].to_string().starts_with("skip "),
            "{}",
            findings[0]
        );
    }
}
