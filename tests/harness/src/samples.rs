//! Sample logs: the same lines for the same seed, each with its number at `seq`.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// The kind of sample lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// HTTP logs with nested maps; one line in 50 has the extremes of JSON
    Http,
    /// A NestJS access log: a request line and a response line with the same traceId
    Nestjs,
}

/// The interval of extreme lines among `http` lines.
const EXTREME_EVERY: u64 = 50;

const MESSAGES: [&str; 6] = [
    "회원가입에 성공했습니다.",
    "주문이 접수되었습니다. 결제를 진행해 주세요.",
    "request completed",
    "비밀번호가 변경되었습니다.",
    "cache miss, read from database",
    "장바구니에 상품을 담았습니다 🛒",
];
const FAILURES: [&str; 3] = [
    "결제 승인에 실패했습니다: 카드 한도 초과",
    "upstream did not answer within 3000 ms",
    "데이터베이스 연결이 끊어졌습니다",
];
const ROUTES: [(&str, &str); 6] = [
    ("GET", "/api/v1/products?page=3&sort=latest"),
    ("GET", "/api/v1/users/me"),
    ("POST", "/api/v1/orders"),
    ("PUT", "/api/v1/cart/items/88"),
    ("DELETE", "/api/v1/sessions/current"),
    ("GET", "/api/v1/search?q=%EC%9A%B4%EB%8F%99%ED%99%94"),
];
const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
    "okhttp/4.12.0",
    "curl/8.5.0",
];

/// Returns an endless iterator over lines, with their non-decreasing times.
pub fn generate(
    shape: Shape,
    seed: u64,
    start: SystemTime,
) -> Box<dyn Iterator<Item = (SystemTime, Value)> + Send> {
    let mut source = Source {
        dice: SmallRng::seed_from_u64(seed),
        now: start,
    };
    let mut waiting = None;
    Box::new((0..).map(move |seq| {
        let (time, mut line) = match shape {
            Shape::Http => source.http(seq),
            Shape::Nestjs => waiting.take().unwrap_or_else(|| {
                let (request, response) = source.nestjs();
                waiting = Some(response);
                request
            }),
        };
        line["seq"] = json!(seq);
        (time, line)
    }))
}

struct Source {
    dice: SmallRng,
    now: SystemTime,
}

impl Source {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let picked = from.choose(&mut self.dice);
        *picked.expect("the lists are not empty")
    }

    fn advance(&mut self, up_to: Duration) -> SystemTime {
        self.now += Duration::from_micros(self.dice.random_range(1..=up_to.as_micros() as u64));
        self.now
    }

    fn ip(&mut self) -> String {
        let [a, b, c]: [u8; 3] = self.dice.random();
        format!("10.{a}.{b}.{c}")
    }

    fn http(&mut self, seq: u64) -> (SystemTime, Value) {
        let now = self.advance(Duration::from_millis(20));
        if seq % EXTREME_EVERY == EXTREME_EVERY - 1 {
            return (now, extreme(seq / EXTREME_EVERY));
        }
        let (method, path) = self.pick(&ROUTES);
        let failed = self.dice.random_bool(0.02);
        let status = match failed {
            true => 503,
            false => self.pick(&[200, 200, 200, 201, 204, 304, 404]),
        };
        let line = json!({
            "time": timestamp(now),
            "level": if failed { "error" } else { "info" },
            "message": if failed { self.pick(&FAILURES) } else { self.pick(&MESSAGES) },
            "request": {
                "method": method,
                "path": path,
                "userAgent": self.pick(&AGENTS),
                "headers": { "host": "shop.example.com", "content-length": self.dice.random_range(0..9_000) },
            },
            "response": {
                "status": status,
                "bytes": self.dice.random_range(120..90_000),
                "cached": self.dice.random_bool(0.3),
            },
            "latency": f64::from(self.dice.random_range(300..900_000)) / 1_000.0,
            "remote": self.ip(),
            "user": if self.dice.random_bool(0.7) { json!(self.dice.random::<u32>()) } else { Value::Null },
        });
        (now, line)
    }

    /// Returns a request and its response.
    fn nestjs(&mut self) -> ((SystemTime, Value), (SystemTime, Value)) {
        let asked = self.advance(Duration::from_millis(20));
        let (method, url) = self.pick(&ROUTES);
        let request = json!({
            "level": "info",
            "timestamp": timestamp(asked),
            "context": "HttpLoggingInterceptor",
            "traceId": format!("{:032x}", self.dice.random::<u128>()),
            "method": method,
            "url": url,
            "userAgent": self.pick(&AGENTS),
            "ip": self.ip(),
            "message": format!("{method} {url} 요청"),
        });
        let answered = self.advance(Duration::from_millis(400));
        let took = answered.duration_since(asked).unwrap_or_default();
        let mut response = request.clone();
        response["timestamp"] = json!(timestamp(answered));
        response["responseTimeMs"] = json!(took.as_micros() as f64 / 1_000.0);
        if self.dice.random_bool(0.02) {
            let failure = self.pick(&FAILURES);
            response["level"] = json!("error");
            response["context"] = json!("AllExceptionsFilter");
            response["statusCode"] = json!(500);
            response["message"] = json!(failure);
            response["stack"] = json!(format!(
                "Error: {failure}\n    at OrdersService.pay (/app/dist/orders/orders.service.js:88:15)\n    \
                 at process.processTicksAndRejections (node:internal/process/task_queues:95:5)"
            ));
        } else {
            response["statusCode"] = json!(self.pick(&[200, 200, 201, 304, 404]));
            response["message"] = json!(self.pick(&MESSAGES));
        }
        ((asked, request), (answered, response))
    }
}

/// Returns lines with edge cases for an encoder, in turn.
fn extreme(number: u64) -> Value {
    match number % 6 {
        0 => json!({
            "kind": "numbers", "i64min": i64::MIN, "u64max": u64::MAX, "u32max": u32::MAX, "minus": -1,
            "tenth": 0.1, "huge": 1e300, "tiny": 5e-324, "negative zero": -0.0, "whole": 100.0,
            "exact": 123_456_789.125, "true": true, "null": null, "map": {}, "list": [],
        }),
        1 => json!({
            "kind": "escapes",
            "text": "quote\" back\\ slash/ nl\n tab\t cr\r bs\u{8} ff\u{c} nul\0 esc\u{1b} del\u{7f} \u{2028} \u{2029}",
        }),
        2 => json!({
            "kind": "unicode", "ko": "회원가입에 성공했습니다.", "emoji": "😀👨‍👩‍👧‍👦", "mix": "aé漢字😀z", "bom": "\u{feff}x",
        }),
        3 => json!({
            "kind": "nested", "list": [1, [2, [3, { "x": [{ "y": { "z": [null, true, "s"] } }] }]]],
            "map": { "b": { "c": { "d": { "e": 1.5 } } } },
        }),
        4 => json!({
            "kind": "keys", "a.b": { "c.d": [{ "e.f": 1 }] }, "kubernetes.labels/app": "x", "": "empty key",
            "한글 키": "값", "quote\"key": 1,
        }),
        _ => json!({ "kind": "long", "text": "x".repeat(5_000) }),
    }
}

fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// Writes sample logs, one JSON document per line, numbered from 0 at `seq`.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// The kind of lines
    #[arg(long)]
    shape: Shape,
    /// The number of lines to write
    #[arg(short = 'n', value_name = "N")]
    lines: u64,
    /// The seed: the same seed yields the same lines
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The start of the lines' timestamps, in RFC 3339 and UTC
    #[arg(long, value_name = "TIME", default_value = "2025-01-01T00:00:00Z", value_parser = humantime::parse_rfc3339)]
    start: SystemTime,
    /// Write to this file instead of standard output
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs `ferry-harness generate`.
pub fn run_generate(args: GenerateArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.output {
        write(path, args.shape, args.lines, args.seed, args.start)?;
        return Ok(ExitCode::SUCCESS);
    }
    let output = std::io::stdout().lock();
    match write_to(output, args.shape, args.lines, args.seed, args.start) {
        // The reader has closed the pipe.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("cannot write the sample lines"),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

/// Writes lines of [`generate`] to a file.
pub fn write(
    path: &Path,
    shape: Shape,
    lines: u64,
    seed: u64,
    start: SystemTime,
) -> anyhow::Result<()> {
    let written = File::create(path).and_then(|file| write_to(file, shape, lines, seed, start));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn write_to(
    output: impl Write,
    shape: Shape,
    lines: u64,
    seed: u64,
    start: SystemTime,
) -> std::io::Result<()> {
    let mut output = BufWriter::with_capacity(1 << 16, output);
    for (_, (_, line)) in (0..lines).zip(generate(shape, seed, start)) {
        writeln!(output, "{line}")?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn lines(shape: Shape, seed: u64, count: usize) -> Vec<(SystemTime, Value)> {
        let lines = generate(shape, seed, SystemTime::UNIX_EPOCH);
        lines.take(count).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_numbered_lines_in_order_of_time() {
        for shape in [Shape::Http, Shape::Nestjs] {
            let sample = lines(shape, 7, 2_000);
            assert_eq!(sample, lines(shape, 7, 2_000));
            assert_ne!(sample, lines(shape, 8, 2_000));
            assert!(sample.is_sorted_by_key(|(time, _)| *time), "{shape:?}");
            for (seq, (_, line)) in (0..).zip(&sample) {
                assert_eq!(line["seq"], json!(seq), "{shape:?}");
            }
        }
    }

    #[test]
    fn http_lines_are_of_ordinary_size_and_reach_every_extreme() {
        let sample = lines(Shape::Http, 1, 10_000).into_iter();
        let sample: Vec<_> = sample.map(|(_, line)| line.to_string()).collect();
        let bytes: usize = sample.iter().map(|line| line.len() + 1).sum();
        let mean = bytes / sample.len();
        assert!((400..=440).contains(&mean), "{mean} bytes a line");
        for kind in ["numbers", "escapes", "unicode", "nested", "keys", "long"] {
            let text = format!("\"kind\":\"{kind}\"");
            assert!(sample.iter().any(|line| line.contains(&text)), "{kind}");
        }
        let numbers = "\"i64min\":-9223372036854775808";
        assert!(sample.iter().any(|line| line.contains(numbers)));
    }

    #[test]
    fn each_nestjs_request_is_answered_under_its_trace_id() {
        let mut open = HashMap::new();
        let mut errors = 0;
        for (_, line) in lines(Shape::Nestjs, 1, 2_000) {
            let trace = line["traceId"].as_str().unwrap().to_owned();
            if line.get("statusCode").is_none() {
                assert!(open.insert(trace, line).is_none(), "a trace id came twice");
                continue;
            }
            let request = open.remove(&trace).expect("the request line came before");
            assert_eq!(line["url"], request["url"]);
            assert!(line["responseTimeMs"].as_f64().unwrap() > 0.0);
            errors += u32::from(line["level"] == "error" && line["stack"].is_string());
        }
        assert_eq!(open.len(), 0, "requests without a response");
        assert!(errors > 0);
    }

    #[test]
    fn the_file_holds_a_line_for_each_number() {
        let dir = tempfile::tempdir().unwrap();
        let output = Some(dir.path().join("out.ndjson"));
        let start = SystemTime::UNIX_EPOCH;
        run_generate(GenerateArgs {
            shape: Shape::Http,
            lines: 300,
            seed: 1,
            start,
            output,
        })
        .unwrap();
        let ledger = crate::ledger::verify_objects(dir.path(), "seq").unwrap();
        let report = ledger.report(Some(300));
        assert!(report.is_exact(), "{report}");
    }
}
