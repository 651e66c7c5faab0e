//! Checks of a delivery stream: that it exists and accepts records, and that the configuration suits its destination.

use std::sync::Arc;

use aws_sdk_firehose::error::ProvideErrorMetadata as _;
use aws_sdk_firehose::types::{
    CompressionFormat, DeliveryStreamDescription, DeliveryStreamStatus, DeliveryStreamType,
    DestinationDescription,
};
use bytes::Bytes;
use serde_json::json;

use super::{Options, Report, aws, compresses, examples, net, warn_of_unfilled, within};
use crate::codec::time::{TimeFormat, write_iso8601};
use crate::config::{self, Aggregation, Config, MissingAction};
use crate::ids::Time;
use crate::log::{Level, Log, Output};
use crate::sink::aws::Loaded;
use crate::sink::firehose::{FirehoseSink, answer_of, fault, shape_of};
use crate::sink::{Batch, Class, Outcome, Sink as _};

/// Checks everything of a Firehose output but the disk.
pub(super) async fn check(
    config: &Config,
    firehose: &config::Firehose,
    options: &Options,
    report: &mut Report<'_>,
) {
    let ca = firehose.ca_pem.as_deref();
    let Some(loaded) = aws::load(&firehose.aws, ca, options, report).await else {
        return;
    };
    let endpoint = firehose.aws.endpoint.as_deref();
    let url = aws::firehose_url(&loaded, endpoint)
        .await
        .unwrap_or_default();
    let Ok(address) = url.parse() else {
        report.fail(
            "endpoint",
            format!("there is none for the region '{}'", loaded.region),
            "correct region",
        );
        return;
    };
    let service = net::Service {
        url: address,
        ca_pem: firehose.ca_pem.clone(),
        skew: net::AWS_SKEW,
    };
    let reachable = net::check(service, options, report).await;
    let authenticated =
        aws::credentials(&loaded, &firehose.aws, aws::is_aws(&url), options, report).await;
    let streams = examples(&firehose.delivery_stream, options);
    warn_of_unfilled(
        "delivery_stream",
        &firehose.delivery_stream,
        options,
        report,
    );
    let fallback = match &firehose.missing_target.action {
        MissingAction::Fallback(stream) => Some(stream.clone()),
        MissingAction::Hold | MissingAction::DeadLetter => None,
    };
    if streams.is_empty() {
        report.skip(
            "stream",
            "its name depends on each record, and neither Match nor the spool has an example: give one with --tag \
             and --record '{\"key\":\"value\"}'",
        );
        if fallback.is_none() {
            return;
        }
    }
    if !(reachable && authenticated) {
        report.skip("stream", "not tried until the failures above are fixed");
        return;
    }
    let mut checked = Vec::new();
    for stream in streams
        .iter()
        .map(|stream| config::stream_name(stream))
        .chain(fallback)
    {
        if checked.contains(&stream) {
            continue;
        }
        describe(config, firehose, &loaded, &stream, options, report).await;
        put(config, firehose, &loaded, &stream, options, report).await;
        checked.push(stream);
    }
}

async fn describe(
    config: &Config,
    firehose: &config::Firehose,
    loaded: &Loaded,
    stream: &str,
    options: &Options,
    report: &mut Report<'_>,
) {
    let mut client = aws_sdk_firehose::config::Builder::from(&loaded.sdk);
    if let Some(endpoint) = &firehose.aws.endpoint {
        client = client.endpoint_url(endpoint);
    }
    let client = aws_sdk_firehose::Client::from_conf(client.build());
    let request = client
        .describe_delivery_stream()
        .delivery_stream_name(stream)
        .send();
    let response = match within(options, request).await {
        Ok(response) => response,
        Err(timeout) => {
            report.fail(
                "stream",
                format!("'{stream}': {timeout}"),
                "try again; see --timeout",
            );
            return;
        }
    };
    let error = match response {
        Ok(response) => {
            match response.delivery_stream_description() {
                Some(found) => compare(config, firehose.aggregation, found, report),
                None => report.skip("stream", "the response describes no stream"),
            }
            return;
        }
        Err(error) => error,
    };
    let absent = error
        .code()
        .is_some_and(|code| code.contains("ResourceNotFound"));
    let fault = fault(answer_of(error).0);
    if absent {
        report.fail(
            "stream",
            format!("'{stream}' does not exist in {}", loaded.region),
            "create it, or correct delivery_stream, region and the account",
        );
    } else if fault.class == Class::Configuration && fault.code.contains("AccessDenied") {
        let remedy = match firehose.aggregation {
            Aggregation::Auto => {
                "allow firehose:DescribeDeliveryStream; without it each line is billed as 5 KB, unless aggregation is on"
            }
            _ => "allow firehose:DescribeDeliveryStream, or try with --put",
        };
        report.warn(
            "stream",
            format!("not allowed to describe '{stream}': {fault}"),
            remedy,
        );
    } else {
        let remedy = aws::remedy(&fault, "firehose:DescribeDeliveryStream", "the stream");
        report.fail("stream", format!("'{stream}': {fault}"), remedy);
    }
}

/// Compares the configuration with the description of a stream.
fn compare(
    config: &Config,
    aggregation: Aggregation,
    stream: &DeliveryStreamDescription,
    report: &mut Report<'_>,
) {
    let name = stream.delivery_stream_name();
    let status = stream.delivery_stream_status();
    let destination = stream.destinations().first();
    let (shape, what) = match destination {
        Some(destination) => shape_of(destination),
        None => {
            return report.fail("stream", format!("'{name}' has no destination"), "add one");
        }
    };
    if *stream.delivery_stream_type() != DeliveryStreamType::DirectPut {
        report.fail(
            "stream",
            format!(
                "'{name}' gets its records from {}, not from producers",
                stream.delivery_stream_type()
            ),
            "create a stream with the source Direct PUT",
        );
    } else if *status != DeliveryStreamStatus::Active {
        let message = format!("'{name}' is {status}, not ACTIVE");
        report.fail(
            "stream",
            message,
            "wait until it is, or fix it in the console",
        );
    } else {
        report.ok(
            "stream",
            format!("'{name}' is ACTIVE and delivers to {what}"),
        );
    }

    let lines = shape.limits.record_lines;
    match aggregation {
        Aggregation::Auto if lines == 1 => report.ok("aggregation", format!("auto: one line per record, for {what}")),
        Aggregation::Auto if lines == u32::MAX => report.ok("aggregation", "auto: as many lines per record as fit"),
        Aggregation::Auto => report.ok("aggregation", format!("auto: at most {lines} lines per record")),
        Aggregation::On if lines == 1 => report.fail(
            "aggregation",
            format!("on, but the stream delivers to {what}, which cannot split joined lines"),
            "write aggregation auto",
        ),
        Aggregation::On if lines != u32::MAX => report.warn(
            "aggregation",
            format!("on, but the stream delivers to {what}, which splits at most {lines} lines per record"),
            "write aggregation auto",
        ),
        Aggregation::On => report.ok("aggregation", "on, which the stream can read"),
        Aggregation::Off if lines == 1 => report.ok("aggregation", format!("off, as {what} requires")),
        Aggregation::Off => report.warn(
            "aggregation",
            format!("off, though the stream delivers to {what}: each line is billed as at least 5 KB"),
            "write aggregation auto",
        ),
    }

    let s3 = destination.and_then(DestinationDescription::extended_s3_destination_description);
    if compresses(config) {
        let format = s3.map(|s3| s3.compression_format());
        if !shape.compression && aggregation == Aggregation::Auto {
            report.warn(
                "compression",
                format!("the stream delivers to {what}, which cannot read compressed records: they are sent uncompressed"),
                "remove compression",
            );
        } else if !shape.compression {
            report.fail(
                "compression",
                format!("the stream delivers to {what}, which cannot read compressed records"),
                "remove compression",
            );
        } else if format.is_some_and(|format| *format != CompressionFormat::Uncompressed) {
            report.warn(
                "compression",
                "the stream compresses as well: its objects are compressed twice",
                "remove compression, or turn it off in the stream",
            );
        } else {
            report.ok(
                "compression",
                format!("{}, which {what} stores as it is", config.compression),
            );
        }
    }

    let conversion = s3
        .and_then(|s3| s3.data_format_conversion_configuration())
        .filter(|conversion| conversion.enabled() == Some(true));
    if let (Some(conversion), Some((key, format))) = (conversion, &config.encode.time) {
        let deserializer = conversion
            .input_format_configuration()
            .and_then(|input| input.deserializer());
        let hive = deserializer.is_some_and(|reader| reader.hive_json_ser_de().is_some());
        check_time(key, format, hive, report);
    }
}

/// Checks that format conversion can read the times that are written.
fn check_time(key: &str, format: &TimeFormat, hive: bool, report: &mut Report<'_>) {
    let written = written(format);
    if hive {
        report.warn(
            "time",
            format!("the stream's Hive SerDe reads '{written}' only if its TimestampFormats include that format"),
            "check them, or use the OpenX SerDe",
        );
    } else if openx_reads(&written) {
        report.ok(
            "time",
            format!("{key} is written as {written}, which the stream's OpenX SerDe reads"),
        );
    } else {
        report.warn(
            "time",
            format!("{key} is written as '{written}', which the stream's OpenX SerDe does not read: a column of type timestamp arrives as null"),
            "remove time_key_format (the default is read), or end it with Z",
        );
    }
}

/// Returns an example time in the format of records.
fn written(format: &TimeFormat) -> String {
    let at = Time {
        seconds: 1_751_489_071,
        nanos: 123_456_789,
    };
    match format {
        TimeFormat::Iso8601 => {
            let mut bytes = Vec::new();
            write_iso8601(at, &mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        }
        TimeFormat::Epoch => at.seconds.to_string(),
        TimeFormat::EpochMs => format!("{}123", at.seconds),
        TimeFormat::Strftime(format) => {
            let mut text = String::new();
            format.write(at, &mut text);
            text
        }
    }
}

/// Whether the OpenX SerDe reads a time: `2025-07-02T20:44:31.123Z` with up to nine digits of fraction,
/// `2025-07-02 20:44:31.1`, or seconds or milliseconds since the epoch.
/// <https://docs.aws.amazon.com/firehose/latest/dev/enable-record-format-conversion.html>
fn openx_reads(text: &str) -> bool {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let digits = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte == b'0')
    };
    let (whole, fraction) = match shape.strip_suffix('Z').unwrap_or(&shape).split_once('.') {
        Some((whole, fraction)) => (whole.to_owned(), Some(fraction.to_owned())),
        None => (shape.trim_end_matches('Z').to_owned(), None),
    };
    let fraction_reads = fraction.is_none_or(|fraction| digits(&fraction, 9));
    match whole.as_str() {
        "0000-00-00T00:00:00" => shape.ends_with('Z') && fraction_reads,
        "0000-00-00 00:00:00" => !shape.ends_with('Z') && fraction_reads,
        number => digits(number, 13) && !shape.ends_with('Z') && fraction_reads,
    }
}

/// A log that discards everything, since the checks report it already.
struct NoLog;

impl Output for NoLog {
    fn enabled(&self, _level: Level) -> bool {
        false
    }

    fn write(&self, _level: Level, _line: &str) {}
}

/// Sends a marked record, if requested.
async fn put(
    config: &Config,
    firehose: &config::Firehose,
    loaded: &Loaded,
    stream: &str,
    options: &Options,
    report: &mut Report<'_>,
) {
    if !options.put {
        report.skip(
            "put",
            "nothing is written without --put; it sends one marked record",
        );
        return;
    }
    let log = Arc::new(Log::new(Box::new(NoLog), &config.instance));
    let endpoint = firehose.aws.endpoint.as_deref();
    let sink = FirehoseSink::new(
        loaded,
        endpoint,
        firehose.aggregation,
        compresses(config),
        log,
    );
    let mut now = Vec::new();
    write_iso8601(crate::codec::time::now(), &mut now);
    let record = json!({
        "ferry_check": String::from_utf8_lossy(&now),
        "message": "a record of ferry check: it proves that this stream can be written to",
    });
    let batch = Batch {
        target: stream.into(),
        tag: (*b"ferry-check").into(),
        records: vec![Bytes::from(format!("{record}\n")).into()],
        token: None,
    };
    match within(options, sink.send(batch))
        .await
        .map(|mut outcomes| outcomes.pop())
    {
        Ok(Some(Outcome::Delivered)) => report.ok(
            "put",
            format!("'{stream}' accepted one marked record (key ferry_check)"),
        ),
        Ok(Some(Outcome::Retry(fault) | Outcome::Ambiguous(fault) | Outcome::Rejected(fault))) => {
            let remedy = aws::remedy(&fault, "firehose:PutRecordBatch", "the stream");
            report.fail(
                "put",
                format!("'{stream}' did not accept a record: {fault}"),
                remedy,
            );
        }
        Ok(None) => report.fail("put", "no response", "try again"),
        Err(timeout) => report.fail("put", timeout, "try again; see --timeout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::time::Strftime;

    #[test]
    fn openx_reads_the_documented_formats() {
        let strftime = |format: &str| TimeFormat::Strftime(Strftime::parse(format).unwrap());
        let table = [
            (TimeFormat::Iso8601, true),
            (TimeFormat::Epoch, true),
            (TimeFormat::EpochMs, true),
            (strftime("%Y-%m-%dT%H:%M:%SZ"), true),
            (strftime("%Y-%m-%dT%H:%M:%S.%9NZ"), true),
            (strftime("%F %T"), true),
            (strftime("%F %T.%3N"), true),
            (strftime("%s.%3N"), true),
            // The default of other plugins.
            (strftime("%Y-%m-%dT%H:%M:%S"), false),
            (strftime("%Y-%m-%dT%H:%M:%S%z"), false),
            (strftime("%F %TZ"), false),
            (strftime("%d/%b/%Y"), false),
            (strftime("noon"), false),
        ];
        for (format, reads) in table {
            let text = written(&format);
            assert_eq!(openx_reads(&text), reads, "{text}");
        }
    }
}
