//! Benchmarks of each step from a chunk to the destination, each with a reference in the same run: `make bench`.
//! Throughput is that of JSON lines before compression. Wall-clock time is noisy on a busy machine: compare only within
//! a run.

#[allow(
    dead_code,
    reason = "the tests' helpers, of which some are needed here"
)]
#[path = "../tests/support/mod.rs"]
mod support;
mod work;

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ferry::codec::encode;
use ferry::codec::json::{Encoder, Options};
use ferry::codec::template::Template;
use ferry::compress::Compression;
use ferry::config::Config;
use ferry::delivery::Pipeline;
use ferry::delivery::batch::{Packer, Piece};
use ferry::delivery::dead_letter::DeadLetters;
use ferry::delivery::identity::Identity;
use ferry::ids::{Verdict, chunk_id};
use ferry::log::{Level as LogLevel, Log, Output};
use ferry::sink::Limits;
use ferry::sink::{Batch, Outcome, Shape, Sink};
use ferry::spool::disk::LocalDisk;
use ferry::spool::{Chunk, Spool};
use futures::future::BoxFuture;
use object_store::{ObjectStoreExt as _, PutPayload};
use support::emulators;
use support::plugin::{Plugin, chunk};
use tokio::time::Instant;
use work::EVENTS;

fn lines(data: &[u8]) -> Vec<u8> {
    let names = Template::parse("x", false).expect("a name");
    let mut parts = encode(&Options::default(), &names, b"app", data, |_| true).parts;
    parts.remove(0).text
}

fn encoding(c: &mut Criterion) {
    let data = chunk(0..EVENTS);
    let text = lines(&data);
    let bodies = work::bodies(&data);
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Bytes(text.len() as u64));
    let options = Options::default();
    for level in ferry::codec::json::simd::Level::all() {
        let mut out = Vec::new();
        group.bench_function(format!("ferry {level:?}"), |b| {
            b.iter(|| {
                out.clear();
                let mut encoder = Encoder::at_level(&options, level);
                work::encode(&mut encoder, &data, &mut out);
            });
            assert_eq!(out, text);
        });
    }
    group.bench_function("ferry, sorted into parts", |b| b.iter(|| lines(&data)));
    let mut out = Vec::new();
    group.bench_function("reference: rmp-serde and serde_json", |b| {
        b.iter(|| {
            out.clear();
            work::transcode(&bodies, &mut out);
        });
        // Both format numbers and escapes in the same way, so they do the same work.
        assert_eq!(out.len(), text.len());
    });
    group.finish();
}

fn compressing(c: &mut Criterion) {
    let text = lines(&chunk(0..EVENTS));
    let mut group = c.benchmark_group("compress");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for compression in [
        Compression::Gzip(1),
        Compression::Gzip(2),
        Compression::Gzip(5),
        Compression::Zstd(1),
    ] {
        let times = text.len() as f64 / compression.apply(&text).len() as f64;
        let name = format!("{compression:?}, {times:.2} times smaller");
        group.bench_function(name, |b| b.iter(|| compression.apply(&text)));
    }
    // The compressor of Fluent Bit's own outputs.
    let reference = |text: &[u8]| miniz_oxide::deflate::compress_to_vec(text, 6);
    let times = text.len() as f64 / reference(&text).len() as f64;
    let name = format!("reference: miniz 6, {times:.2} times smaller");
    group.bench_function(name, |b| b.iter(|| reference(&text)));
    group.finish();
}

fn batching(c: &mut Criterion) {
    let text = Bytes::from(lines(&chunk(0..EVENTS)));
    let limits = Limits {
        record_bytes: 1_024_000,
        record_lines: u32::MAX,
        joins: true,
        batch_records: 500,
        batch_bytes: 4 * 1024 * 1024,
    };
    let target: Arc<str> = "app".into();
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Bytes(4 * text.len() as u64));
    group.bench_function("pieces into requests", |b| {
        b.iter(|| {
            let mut packer = Packer::default();
            for _ in 0..4 {
                for at in (0..text.len()).step_by(16 * 1024) {
                    let bytes = text.slice(at..text.len().min(at + 16 * 1024)).into();
                    let piece = Piece {
                        bytes,
                        compressed: false,
                        lines: 40,
                        guard: at,
                    };
                    packer.push(&target, piece, &limits, Instant::now());
                }
            }
            while !packer.is_empty() {
                let bodies = packer.take(&limits);
                black_box(
                    bodies
                        .iter()
                        .map(|record| record.body())
                        .collect::<Vec<_>>(),
                );
            }
        });
    });
    group.finish();
}

fn spooling(c: &mut Criterion) {
    let data = Bytes::from(chunk(0..EVENTS));
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("spool");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(4));

    let disk = LocalDisk::open(&dir.path().join("spool")).expect("a folder that can be written");
    let options = ferry::spool::Options {
        limit: 8 << 30,
        segment_bytes: None,
    };
    let (spool, _) = Spool::open(Arc::new(disk), options).expect("a spool");
    let mut number = 0u64;
    group.bench_function("append a chunk, synced", |b| {
        b.iter(|| {
            // Distinct chunks, since the spool recognises repeated ones.
            number += 1;
            let tag = format!("app.{number}");
            let chunk = Chunk {
                id: chunk_id(tag.as_bytes(), &data),
                tag: tag.as_bytes(),
                data: data.clone(),
                arrived: ferry::codec::time::now(),
            };
            let deadline = Instant::now() + Duration::from_secs(60);
            runtime
                .block_on(spool.append(chunk, deadline))
                .expect("room on the disk")
        });
    });
    assert_eq!(spool.usage().unfinished, number);
    spool.close();
    let mut file = std::fs::File::create(dir.path().join("plain")).expect("a file");
    group.bench_function("reference: write and fdatasync", |b| {
        b.iter(|| {
            file.write_all(&data).expect("room on the disk");
            file.sync_data().expect("a disk that works");
        });
    });
    group.finish();
}

/// A sink that accepts everything at once.
struct Nowhere;

impl Sink for Nowhere {
    fn shape<'a>(&'a self, _target: &'a str) -> BoxFuture<'a, Shape> {
        Box::pin(std::future::ready(Shape {
            limits: Limits {
                record_bytes: 1_024_000,
                record_lines: u32::MAX,
                joins: true,
                batch_records: 500,
                batch_bytes: 4 * 1024 * 1024,
            },
            piece_bytes: 16 * 1024,
            compression: true,
        }))
    }

    fn send(&self, batch: Batch) -> BoxFuture<'_, Vec<Outcome>> {
        let count = batch.records.len();
        black_box(batch);
        Box::pin(std::future::ready(vec![Outcome::Delivered; count]))
    }
}

/// A log that discards everything.
struct Silent;

impl Output for Silent {
    fn enabled(&self, _level: LogLevel) -> bool {
        false
    }

    fn write(&self, _level: LogLevel, _line: &str) {}
}

fn pipeline_into_nowhere(c: &mut Criterion) {
    let data = Bytes::from(chunk(0..EVENTS));
    let text = lines(&data).len() as u64;
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("pipeline into nowhere");
    group.throughput(Throughput::Bytes(text));
    for compression in ["none", "gzip", "zstd"] {
        let letters = dir.path().display().to_string();
        let keys = [
            ("delivery_stream", "app"),
            ("region", "us-east-1"),
            ("compression", compression),
            ("dead_letter_dir", &letters),
        ];
        let get = |key: &str| {
            let found = keys.iter().find(|(name, _)| *name == key)?;
            Some(found.1.to_owned())
        };
        let config = Config::read(&get).expect("a good configuration");
        let letters = DeadLetters::open(dir.path(), 1_000_000).expect("a folder");
        let log = Arc::new(Log::new(Box::new(Silent), "bench"));
        let sender = Identity::of_this_run();
        let pipeline = Pipeline::new(config, Arc::new(Nowhere), letters, sender, log);
        let pipeline = Arc::new(pipeline);
        group.bench_function(BenchmarkId::new("flush", compression), |b| {
            b.iter(|| {
                let verdict = runtime.block_on(pipeline.flush(b"app", data.clone()));
                assert_eq!(verdict, Verdict::Ok);
            });
        });
    }
    group.finish();
}

/// Sends the same chunk again and again. The ledger counts lines, so that a missing one is noticed.
fn firehose(c: &mut Criterion) {
    use aws_sdk_firehose::primitives::Blob;
    use aws_sdk_firehose::types::Record;

    let options = ferry_harness::firehose::Options::default();
    let fake = ferry_harness::firehose::FakeFirehose::start(options).expect("a fake Firehose");
    let data = chunk(0..EVENTS);
    let text = lines(&data);
    let mut group = c.benchmark_group("fake Firehose");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(4));
    for compression in ["none", "gzip", "zstd"] {
        let stream = format!("app-{compression}");
        let plugin = Plugin::start(&[
            ("delivery_stream", &stream),
            ("region", "us-east-1"),
            ("endpoint", fake.url()),
            ("compression", compression),
        ]);
        let mut sent = 0;
        group.bench_function(BenchmarkId::new("flush", compression), |b| {
            b.iter(|| {
                assert_eq!(plugin.flush("app", &data), Verdict::Ok);
                sent += EVENTS as u64;
            });
        });
        if sent > 0 {
            assert_eq!(
                fake.report(None).streams[&stream].lines,
                sent,
                "{compression}"
            );
        }
    }

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let aws = ferry::config::Aws {
        region: Some("us-east-1".into()),
        ..ferry::config::Aws::default()
    };
    let loaded = runtime
        .block_on(ferry::sink::aws::load(&aws, None))
        .expect("credentials");
    let config = aws_sdk_firehose::config::Builder::from(&loaded.sdk).endpoint_url(fake.url());
    let client = aws_sdk_firehose::Client::from_conf(config.build());
    group.bench_function("reference: the SDK with encoded lines", |b| {
        b.iter(|| {
            let records = text.chunks(1_024_000).map(|data| {
                let record = Record::builder().data(Blob::new(data));
                record.build().expect("a record needs only data")
            });
            let call = client.put_record_batch().delivery_stream_name("reference");
            let answer = call.set_records(Some(records.collect())).send();
            let answer = runtime
                .block_on(answer)
                .expect("the fake accepts everything");
            assert_eq!(answer.failed_put_count(), 0);
        });
    });
    group.finish();
}

fn azurite(c: &mut Criterion) {
    let azurite = emulators::azurite();
    let endpoint = azurite.blob_url();
    let text = lines(&chunk(0..EVENTS));
    let mut group = c.benchmark_group("Azurite");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    for compression in ["none", "gzip", "zstd"] {
        let container = format!("bench-{compression}");
        let plugin = Plugin::start(&[
            ("account_name", emulators::Azurite::ACCOUNT),
            ("shared_key", emulators::Azurite::KEY),
            ("container_name", &container),
            ("auto_create_container", "on"),
            ("endpoint", &endpoint),
            ("spool", "off"),
            ("compression", compression),
        ]);
        let mut sent = 0;
        group.bench_function(BenchmarkId::new("flush", compression), |b| {
            b.iter_batched(
                // Distinct lines, since the same chunk would be the same object.
                || {
                    sent += 1;
                    chunk(EVENTS * (sent - 1)..EVENTS * sent)
                },
                |data| assert_eq!(plugin.flush("app", &data), Verdict::Ok),
                BatchSize::PerIteration,
            );
        });
        if sent > 0 {
            let report = azurite.report(&container, (EVENTS * sent) as u64);
            assert_eq!((report.missing, report.duplicates), (0, 0), "{report:?}");
        }
    }

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = azurite.store("bench-none");
    let mut number = 0;
    group.bench_function("reference: a put of encoded lines", |b| {
        b.iter(|| {
            number += 1;
            let path = object_store::path::Path::from(format!("reference/{number}"));
            let put = store.put(&path, PutPayload::from(text.clone()));
            runtime.block_on(put).expect("Azurite accepts everything")
        });
    });
    group.finish();
}

criterion_group!(
    benches,
    encoding,
    compressing,
    batching,
    spooling,
    pipeline_into_nowhere,
    firehose,
    azurite
);
criterion_main!(benches);
