//! What a month of logs costs: in the configured output, and in other ways of keeping the same lines. Pure.

use serde::Serialize;

use super::cost::{self, COMPRESSION_FACTOR, Growth, Load, MONTH};
use crate::config::{Aggregation, Config, Destination, Store};
use crate::delivery::small_objects::S3_DOLLARS_PER_MILLION;

/// Bytes of a GB, as prices count them here. AWS bills some services by GiB, which is 7% more.
const GB: f64 = 1e9;
/// The unit that Firehose rounds each record up to: <https://aws.amazon.com/firehose/pricing/>
const FIREHOSE_UNIT: f64 = 5_120.0;
/// The largest record that Firehose takes:
/// <https://docs.aws.amazon.com/firehose/latest/dev/limits.html>
const FIREHOSE_RECORD: f64 = 1_024_000.0;
/// The size at which Firehose writes an object with the buffering hints that it proposes, and the time in seconds:
/// <https://docs.aws.amazon.com/firehose/latest/dev/create-configure.html>
const FIREHOSE_BUFFER: (f64, f64) = (128e6, 300.0);
/// CloudWatch Logs bills what it stores by the compressed size, which it estimates as this part of the lines:
/// <https://aws.amazon.com/cloudwatch/pricing/>
const CLOUDWATCH_STORED: f64 = 0.15;
/// The age and size of a Parquet object, as `format parquet` has them by default.
const PARQUET: Growth = Growth {
    age: 900.0,
    bytes: 64e6,
    factor: COMPRESSION_FACTOR,
};

/// The prices of a region in US dollars. `None`: no source at hand; the row then says so instead of guessing.
struct Prices {
    region: &'static str,
    /// A GB of lines into CloudWatch Logs, standard class, and a GB there for a month.
    cloudwatch: Option<(f64, f64)>,
    /// A GB into Firehose by direct PUT, first tier.
    firehose: Option<f64>,
    /// A GB that Firehose converts to Parquet, by its size before.
    conversion: Option<f64>,
    /// S3 Standard.
    s3: StorePrices,
}

/// The prices of a store in US dollars.
#[derive(Clone, Copy)]
struct StorePrices {
    /// A million write requests.
    million_puts: Option<f64>,
    /// A GB for a month, first tier.
    gb_month: Option<f64>,
}

impl StorePrices {
    const UNKNOWN: StorePrices = StorePrices {
        million_puts: None,
        gb_month: None,
    };
}

/// Where the prices come from, for the reader of a report.
pub const SOURCES: &str = "Prices are list prices as published by third parties until November 2026, without free tiers, transfer and \
                           queries. They change: compare them with those of your account";

/// us-east-1: published summaries of AWS's price pages, 2026. ap-northeast-2: a published bill.
const PRICES: [Prices; 2] = [
    Prices {
        region: "us-east-1",
        cloudwatch: Some((0.50, 0.03)),
        firehose: Some(0.029),
        conversion: Some(0.018),
        s3: StorePrices {
            million_puts: Some(S3_DOLLARS_PER_MILLION as f64),
            gb_month: Some(0.023),
        },
    },
    Prices {
        region: "ap-northeast-2",
        cloudwatch: None,
        firehose: Some(0.036),
        conversion: Some(0.022),
        s3: StorePrices::UNKNOWN,
    },
];

/// Hot block blobs: the example prices of Microsoft's documentation, $0.055 for 10,000 writes.
const AZURE: StorePrices = StorePrices {
    million_puts: Some(5.5),
    gb_month: None,
};

/// The regions with prices.
pub fn regions() -> impl Iterator<Item = &'static str> {
    PRICES.iter().map(|prices| prices.region)
}

/// The lines of a month.
#[derive(Clone, Copy, Debug)]
pub struct Month {
    /// The load.
    pub load: Load,
    /// The mean length of a line, in bytes.
    pub line: u64,
}

impl Month {
    fn bytes(&self) -> f64 {
        self.load.rate as f64 * MONTH.as_secs_f64()
    }

    fn gigabytes(&self) -> f64 {
        self.bytes() / GB
    }
}

/// One way to keep a month of lines, and what it costs in US dollars. `None`: the price is not known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Way {
    /// The way, in words.
    pub way: String,
    /// The GB that are billed for ingestion; 0 if none is.
    pub billed_gb: f64,
    /// The write requests to the store; `None` if they depend on what is not known.
    pub puts: Option<f64>,
    /// The GB that a month leaves in the store.
    pub stored_gb: f64,
    /// The dollars for ingestion.
    pub ingestion: Option<f64>,
    /// The dollars for conversion to Parquet.
    pub conversion: Option<f64>,
    /// The dollars for write requests.
    pub requests: Option<f64>,
    /// The dollars to store what a month leaves, for a month.
    pub storage: Option<f64>,
    /// The sum.
    pub total: Option<f64>,
}

impl Way {
    fn new(way: impl Into<String>) -> Way {
        Way {
            way: way.into(),
            billed_gb: 0.0,
            puts: Some(0.0),
            stored_gb: 0.0,
            ingestion: Some(0.0),
            conversion: Some(0.0),
            requests: Some(0.0),
            storage: Some(0.0),
            total: None,
        }
    }

    fn in_store(mut self, puts: Option<f64>, stored: f64, prices: StorePrices) -> Way {
        (self.puts, self.stored_gb) = (puts, stored);
        self.requests = puts
            .zip(prices.million_puts)
            .map(|(puts, million)| puts / 1e6 * million);
        self.storage = prices.gb_month.map(|price| stored * price);
        self
    }

    fn summed(mut self) -> Way {
        let parts = [self.ingestion, self.conversion, self.requests, self.storage];
        self.total = parts.into_iter().sum();
        self
    }
}

/// Returns the GB that Firehose bills for a month of lines, `lines` of them in each record.
fn billed(month: &Month, record: f64) -> f64 {
    month.gigabytes() * (record / FIREHOSE_UNIT).ceil() * FIREHOSE_UNIT / record
}

/// Returns the bytes of a record that gathers lines for `linger` seconds.
fn gathered(month: &Month, linger: f64) -> f64 {
    let line = month.line as f64;
    (month.load.rate as f64 * linger).clamp(line, FIREHOSE_RECORD.max(line))
}

fn firehose(
    way: impl Into<String>,
    month: &Month,
    record: f64,
    converts: bool,
    prices: &Prices,
) -> Way {
    let (size, time) = FIREHOSE_BUFFER;
    let stored = month.gigabytes() / if converts { COMPRESSION_FACTOR } else { 1.0 };
    let puts = (MONTH.as_secs_f64() / time).max(month.bytes() / size);
    let mut way = Way::new(way).in_store(Some(puts), stored, prices.s3);
    way.billed_gb = billed(month, record);
    way.ingestion = prices.firehose.map(|price| way.billed_gb * price);
    if converts {
        way.conversion = prices.conversion.map(|price| way.billed_gb * price);
    }
    way.summed()
}

/// Returns the configured output first, and then other ways, in a region of [`regions`]; `None` for any other region.
pub fn ways(config: &Config, month: &Month, region: &str) -> Option<Vec<Way>> {
    let prices = PRICES.iter().find(|prices| prices.region == region)?;
    let line = month.line as f64;
    let second = gathered(month, 1.0);
    let mut cloudwatch = Way::new("CloudWatch Logs");
    cloudwatch.billed_gb = month.gigabytes();
    cloudwatch.stored_gb = month.gigabytes() * CLOUDWATCH_STORED;
    cloudwatch.ingestion = prices.cloudwatch.map(|(gb, _)| cloudwatch.billed_gb * gb);
    cloudwatch.storage = prices.cloudwatch.map(|(_, gb)| cloudwatch.stored_gb * gb);
    let parquet = PARQUET.objects_a_month(month.load.rate as f64, month.load.folders as f64);
    let stored = month.gigabytes() / COMPRESSION_FACTOR;
    Some(vec![
        configured(config, month, prices),
        cloudwatch.summed(),
        firehose(
            "Firehose, a record for each line, conversion to Parquet",
            month,
            line,
            true,
            prices,
        ),
        firehose(
            "Firehose, lines gathered by Ferry, conversion to Parquet",
            month,
            second,
            true,
            prices,
        ),
        firehose(
            "Firehose, lines gathered by Ferry, no conversion",
            month,
            second,
            false,
            prices,
        ),
        Way::new("Parquet by Ferry into S3")
            .in_store(Some(parquet), stored, prices.s3)
            .summed(),
    ])
}

fn configured(config: &Config, month: &Month, prices: &Prices) -> Way {
    match &config.destination {
        Destination::Firehose(settings) => {
            let record = match settings.aggregation {
                Aggregation::Off => month.line as f64,
                Aggregation::On | Aggregation::Auto => {
                    gathered(month, settings.linger.as_secs_f64())
                }
            };
            firehose(
                "this output, without conversion",
                month,
                record,
                false,
                prices,
            )
        }
        Destination::Blob { blob, .. } => {
            let store = match &blob.store {
                Store::S3 { .. } => prices.s3,
                Store::Azure(_) => AZURE,
                Store::Gcs { .. } => StorePrices::UNKNOWN,
                Store::File(_) => StorePrices {
                    million_puts: Some(0.0),
                    gb_month: Some(0.0),
                },
            };
            // In direct mode, the host's flushes decide how many objects there are.
            let objects = cost::objects(config, month.load).map(|objects| objects.a_month);
            let stored = month.gigabytes() / cost::factor(config);
            Way::new("this output")
                .in_store(objects, stored, store)
                .summed()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONTH_OF_50_GB: Month = Month {
        load: Load {
            rate: 19_290,
            folders: 1,
        },
        line: 500,
    };

    fn ways_of(keys: &[(&str, &str)], month: &Month, region: &str) -> Vec<Way> {
        let get = |key: &str| {
            let own = keys.iter().find(|(name, _)| *name == key);
            own.map(|(_, value)| (*value).to_owned())
        };
        let config = Config::read(&get).expect("a good configuration");
        ways(&config, month, region).expect("a region with prices")
    }

    fn cents(dollars: Option<f64>) -> Option<i64> {
        dollars.map(|dollars| (dollars * 100.0).round() as i64)
    }

    #[test]
    fn each_way_costs_what_is_computed_by_hand() {
        let ways = ways_of(&[("url", "s3://logs")], &MONTH_OF_50_GB, "us-east-1");
        // 50.0 GB. This output: 8,640 objects of 5 minutes, 10 GB stored. CloudWatch: 50 x 0.50 + 7.5 x 0.03. A record for each
        // line: 512 GB billed. Gathered for a second: 19,290 bytes billed as 20,480, so 53.1 GB.
        let expected = [
            ("this output", 0.04 + 0.23),
            ("CloudWatch Logs", 25.0 + 0.225),
            (
                "Firehose, a record for each line, conversion to Parquet",
                512.0 * 0.047 + 0.0432 + 0.23,
            ),
            (
                "Firehose, lines gathered by Ferry, conversion to Parquet",
                53.08 * 0.047 + 0.0432 + 0.23,
            ),
            (
                "Firehose, lines gathered by Ferry, no conversion",
                53.08 * 0.029 + 0.0432 + 1.15,
            ),
            ("Parquet by Ferry into S3", 2_880.0 * 5e-6 + 0.23),
        ];
        assert_eq!(ways.len(), expected.len());
        for (way, (name, dollars)) in ways.iter().zip(expected) {
            assert_eq!(way.way, name);
            let total = way.total.expect("known prices");
            assert!(
                (total - dollars).abs() < 0.02,
                "{way:?}, expected {dollars}"
            );
        }
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn an_output_of_parquet_costs_what_parquet_does() {
        let keys = [("url", "s3://logs"), ("format", "parquet")];
        let ways = ways_of(&keys, &MONTH_OF_50_GB, "us-east-1");
        assert_eq!(cents(ways[0].total), cents(ways[5].total), "{ways:?}");
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let unknown = |ways: &[Way], way: usize| ways[way].total.is_none();
        let seoul = ways_of(&[("url", "s3://logs")], &MONTH_OF_50_GB, "ap-northeast-2");
        assert!(unknown(&seoul, 0) && unknown(&seoul, 1), "{seoul:?}");
        // 50 GB for $0.036 and $0.022: the published bill had 47 GB, $1.68 and $1.03.
        assert_eq!(cents(seoul[3].conversion), Some(117));
        let direct = [("url", "s3://logs"), ("spool", "off")];
        let direct = ways_of(&direct, &MONTH_OF_50_GB, "us-east-1");
        assert!(unknown(&direct, 0), "{direct:?}");
        assert_eq!(direct[0].puts, None);
        let folder = ways_of(&[("url", "file:///logs")], &MONTH_OF_50_GB, "us-east-1");
        assert_eq!(cents(folder[0].total), Some(0));
        let config = Config::read(&|key: &str| (key == "url").then(|| "s3://logs".to_owned()));
        let config = config.expect("a good configuration");
        assert!(ways(&config, &MONTH_OF_50_GB, "mars-1").is_none());
    }

    #[test]
    fn lines_of_a_firehose_output_are_billed_as_it_gathers_them() {
        let stream = |aggregation| {
            [
                ("delivery_stream", "app"),
                ("region", "us-east-1"),
                ("aggregation", aggregation),
            ]
        };
        let [alone, gathered] = ["off", "on"].map(|aggregation| {
            ways_of(&stream(aggregation), &MONTH_OF_50_GB, "us-east-1")[0].billed_gb
        });
        assert!((alone - 512.0).abs() < 1.0, "{alone}");
        assert!(gathered < 54.0, "{gathered}");
    }
}
