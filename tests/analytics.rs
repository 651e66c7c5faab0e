//! `examples/analytics`: logs go through Ferry to Azurite, are fetched and loaded twice, and the answers to all
//! questions are compared with values computed from the original lines.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use ferry_harness::samples::{Shape, generate};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support;
use crate::support::emulators::{Azurite, azurite, installed};

/// The number of lines of each log.
const LINES: usize = 1_500;
/// Service, host, shape of the lines, and compression.
const LOGS: [(&str, &str, Shape, &str); 5] = [
    ("api", "web-1", Shape::Nestjs, "gzip"),
    ("api", "web-2", Shape::Nestjs, "gzip"),
    ("billing", "web-1", Shape::Nestjs, "zstd"),
    ("billing", "web-2", Shape::Nestjs, "none"),
    ("shop", "web-3", Shape::Http, "gzip"),
];
const CONTAINER: &str = "analytics";
/// 2025-07-02T20:44:31Z
const START: u64 = 1_751_489_071;

/// A logged line.
struct Logged {
    service: &'static str,
    host: &'static str,
    time: SystemTime,
    line: Value,
}

impl Logged {
    fn status(&self) -> Option<u64> {
        let status = &self.line["statusCode"];
        status.as_u64().or(self.line["response"]["status"].as_u64())
    }

    fn method(&self) -> &str {
        let method = self.line["method"].as_str();
        method.or(self.line["request"]["method"].as_str()).unwrap()
    }

    fn took(&self) -> f64 {
        let took = self.line["responseTimeMs"].as_f64();
        took.or(self.line["latency"].as_f64()).unwrap()
    }

    /// The path without its query, with `:id` instead of numbers.
    fn route(&self) -> String {
        let url = self.line["url"].as_str();
        let url = url.or(self.line["request"]["path"].as_str()).unwrap();
        let path = url.split('?').next().unwrap();
        let parts = path.split('/').map(|part| {
            let number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if number { ":id" } else { part }
        });
        parts.collect::<Vec<_>>().join("/")
    }

    /// The start of its minute.
    fn minute(&self) -> String {
        let since = self.time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        iso(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs() / 60 * 60))
    }
}

/// Formats a time like Ferry, in milliseconds.
fn iso(time: SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(time).to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

fn logged() -> Vec<Logged> {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(START);
    let mut all = Vec::new();
    for (seed, (service, host, shape, _)) in (1..).zip(LOGS) {
        let lines = generate(shape, seed, start).take(LINES);
        all.extend(lines.map(|(time, line)| Logged {
            service,
            host,
            time,
            line,
        }));
    }
    // A value that is not a number where one is expected must not affect the rest.
    let time = all[0].time;
    let line = json!({
        "timestamp": iso(time), "seq": LINES, "statusCode": "unknown", "responseTimeMs": "long",
    });
    let (service, host, ..) = LOGS[0];
    all.push(Logged {
        service,
        host,
        time,
        line,
    });
    all
}

/// Sends the logs to Azurite, as many small objects.
fn deliver(folder: &Path, logged: &[Logged]) {
    let here = folder.display();
    let library = support::library();
    let mut config = format!(
        "[SERVICE]\n    Flush 0.2\n    Grace 30\n    Plugins_File {here}/plugins.conf\n    \
         Parsers_File {here}/parsers.conf\n"
    );
    let plugins = format!("[PLUGINS]\n    Path {}\n", library.display());
    fs::write(folder.join("plugins.conf"), plugins).unwrap();
    // The event's time is taken from the line, which keeps it.
    let parser = |name: &str, key: &str| {
        format!(
            "[PARSER]\n    Name {name}\n    Format json\n    Time_Key {key}\n    \
             Time_Format %Y-%m-%dT%H:%M:%S.%L%z\n    Time_Keep on\n"
        )
    };
    let parsers = parser("nestjs", "timestamp") + &parser("http", "time");
    fs::write(folder.join("parsers.conf"), parsers).unwrap();
    for (number, (service, host, shape, compression)) in LOGS.into_iter().enumerate() {
        let mine = logged
            .iter()
            .filter(|one| one.service == service && one.host == host);
        let lines: String = mine.map(|one| format!("{}\n", one.line)).collect();
        let log = folder.join(format!("{service}.{host}.log"));
        fs::write(&log, lines).unwrap();
        let parser = match shape {
            Shape::Http => "http",
            Shape::Nestjs => "nestjs",
        };
        config += &format!(
            "[INPUT]\n    Name tail\n    Tag {service}.{host}\n    Path {}\n    Parser {parser}\n    \
             Read_from_Head on\n    Exit_On_Eof on\n\
             [OUTPUT]\n    Name ferry\n    Match {service}.{host}\n    Retry_Limit no_limits\n    \
             container_name {CONTAINER}\n    emulator_mode on\n    endpoint {}\n    path {{tag}}/%Y/%m/%d/%H\n    \
             time_key time\n    tag_key tag\n    compression {compression}\n    blob_max_size 20K\n    \
             spool_dir {here}/spool-{number}\n",
            log.display(),
            azurite().blob_url(),
        );
    }
    fs::write(folder.join("fluent-bit.conf"), config).unwrap();
    let output = Command::new(support::harness())
        .args(["run", "--quiet", "-c"])
        .arg(folder.join("fluent-bit.conf"))
        .output()
        .expect("the harness starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

/// Runs ferry_logs.py, which must succeed. Returns its output.
fn ferry_logs(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/analytics/ferry_logs.py");
    let connection = format!(
        "DefaultEndpointsProtocol=http;AccountName={};AccountKey={};BlobEndpoint={};",
        Azurite::ACCOUNT,
        Azurite::KEY,
        azurite().blob_url()
    );
    let output = Command::new(installed("analytics/bin/python"))
        .arg(script)
        .args(arguments)
        .env("AZURE_STORAGE_CONNECTION_STRING", connection)
        .output()
        .expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn ask(place: &[&str], question: &[&str]) -> Vec<Value> {
    let arguments = [&["ask"], question, place, &["--json"]].concat();
    serde_json::from_str(&ferry_logs(&arguments)).expect("JSON")
}

/// A percentile of sorted values, interpolated linearly.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// Asks every question, and compares the answers with the logged lines.
fn assert_answers(place: &[&str], logged: &[Logged]) {
    // Errors by service, host and route, minute by minute.
    let mut expected: BTreeMap<[String; 5], [u64; 3]> = BTreeMap::new();
    for one in logged {
        let Some(status) = one.status() else { continue };
        let key = [
            one.minute(),
            one.service.to_owned(),
            one.host.to_owned(),
            one.method().to_owned(),
            one.route(),
        ];
        let counts = expected.entry(key).or_default();
        counts[0] += u64::from((400..500).contains(&status));
        counts[1] += u64::from(status >= 500);
        counts[2] += 1;
    }
    expected.retain(|_, counts| counts[0] + counts[1] > 0);
    let answer = ask(place, &["errors", "--bucket", "minute"]);
    let got: BTreeMap<[String; 5], [u64; 3]> = answer
        .iter()
        .map(|row| {
            let key = ["since", "service", "host", "method", "route"];
            let counts = ["client_errors", "server_errors", "requests"];
            (
                key.map(|key| row[key].as_str().unwrap().to_owned()),
                counts.map(|count| row[count].as_u64().unwrap()),
            )
        })
        .collect();
    assert_eq!(got.len(), answer.len(), "each group occurs once");
    assert_eq!(got, expected);
    assert!(expected.values().any(|counts| counts[1] > 0));

    // The slowest routes.
    let mut took: BTreeMap<[String; 3], Vec<f64>> = BTreeMap::new();
    for one in logged.iter().filter(|one| one.status().is_some()) {
        let key = [one.service.to_owned(), one.method().to_owned(), one.route()];
        took.entry(key).or_default().push(one.took());
    }
    let answer = ask(place, &["slowest", "--limit", "1000"]);
    assert_eq!(answer.len(), took.len());
    let mut last = f64::INFINITY;
    for row in &answer {
        let key = ["service", "method", "route"].map(|key| row[key].as_str().unwrap().to_owned());
        let values = took.get_mut(&key).expect("a route that was asked for");
        values.sort_by(f64::total_cmp);
        assert_eq!(row["requests"], values.len());
        for (column, share) in [("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)] {
            let (got, expected) = (row[column].as_f64().unwrap(), percentile(values, share));
            assert!(
                (got - expected).abs() < 1e-6,
                "{key:?} {column}: {got}, not {expected}"
            );
        }
        let p95 = row["p95_ms"].as_f64().unwrap();
        assert!(p95 <= last, "the slowest come first");
        last = p95;
    }

    // A time in the middle limits the result.
    let from = iso(SystemTime::UNIX_EPOCH + Duration::from_secs(START + 60));
    let answer = ask(place, &["slowest", "--limit", "1000", "--from", &from]);
    let counted: u64 = answer
        .iter()
        .map(|row| row["requests"].as_u64().unwrap())
        .sum();
    let expected = logged
        .iter()
        .filter(|one| one.status().is_some() && iso(one.time) >= from);
    assert_eq!(counted, expected.count() as u64);

    // The trace of one failed request.
    let failed = logged
        .iter()
        .find(|one| one.status() == Some(500))
        .expect("one failed");
    let trace = failed.line["traceId"].as_str().unwrap();
    let steps: Vec<_> = logged
        .iter()
        .filter(|one| one.line["traceId"] == trace)
        .collect();
    let answer = ask(place, &["trace", "--trace", trace]);
    assert_eq!((answer.len(), steps.len()), (2, 2));
    for (row, one) in answer.iter().zip(steps) {
        assert_eq!(row["logged_at"], iso(one.time));
        assert_eq!(
            (&row["service"], &row["host"]),
            (&one.service.into(), &one.host.into())
        );
        assert_eq!(row["message"], one.line["message"]);
        assert_eq!(row["status"].as_u64(), one.status());
    }
}

/// A PostgreSQL server in a folder of its own, with its socket there.
struct Postgres {
    server: Child,
    folder: TempDir,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Postgres {
    /// Starts a server. The error says what is missing.
    fn start() -> Result<Postgres, &'static str> {
        let initdb =
            program("initdb").ok_or("PostgreSQL is not installed (apt install postgresql)")?;
        let folder = tempfile::tempdir().unwrap();
        // PostgreSQL does not run as root, so it runs as nobody.
        // SAFETY: geteuid reads a number of this process and cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        if root {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let command = |program: &Path| {
            let mut command = Command::new(program);
            command.current_dir(folder.path()).stdin(Stdio::null());
            if root {
                command.uid(NOBODY).gid(NOBODY);
            }
            command
        };
        let made = command(&initdb)
            .args([
                "--auth",
                "trust",
                "--username",
                "ferry",
                "--encoding",
                "UTF8",
            ])
            .args(["--locale", "C", "--no-sync", "-D", "data"])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb: {stderr}");
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let server = command(&initdb.with_file_name("postgres"))
            .args([
                "-D",
                "data",
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-k",
            ])
            .arg(folder.path())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut postgres = Postgres { server, folder };
        let limit = Instant::now() + Duration::from_secs(60);
        while !postgres.log().contains("ready to accept connections") {
            assert!(
                postgres.server.try_wait().unwrap().is_none(),
                "{}",
                postgres.log()
            );
            assert!(Instant::now() < limit, "{}", postgres.log());
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(postgres)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn dsn(&self) -> String {
        format!(
            "host={} user=ferry dbname=postgres",
            self.folder.path().display()
        )
    }

    /// The rows of a query, each as text.
    fn query(&self, query: &str) -> Vec<String> {
        let code = "import sys, psycopg\n\
                    for row in psycopg.connect(sys.argv[1]).execute(sys.argv[2]): print(*row)";
        let output = Command::new(installed("analytics/bin/python"))
            .args(["-c", code, &self.dsn(), query])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{query}: {stderr}");
        let rows = String::from_utf8(output.stdout).unwrap();
        rows.lines().map(str::to_owned).collect()
    }
}

const NOBODY: u32 = 65_534;

/// The path of a PostgreSQL program: on the PATH, or in Debian's folder.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&path).collect();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    places.extend(
        debian
            .filter_map(Result::ok)
            .map(|entry| entry.path().join("bin")),
    );
    let found = places
        .into_iter()
        .map(|place| place.join(name))
        .find(|path| path.is_file())?;
    // Resolve a link to the folder with the other programs.
    fs::canonicalize(found).ok()
}

#[test]
fn delivered_objects_answer_questions_and_are_loaded_once() {
    let logged = logged();
    let folder = tempfile::tempdir().unwrap();
    deliver(folder.path(), &logged);
    let source = format!("az://{CONTAINER}");

    let files = folder.path().join("files").display().to_string();
    let first = ferry_logs(&["fetch", &source, &files]);
    let objects = first.split(' ').next().unwrap();
    assert!(objects.parse::<u32>().unwrap() > 10, "{first}");
    assert_eq!(first, format!("{objects} objects fetched, 0 were there\n"));
    let again = ferry_logs(&["fetch", &source, &files]);
    assert_eq!(again, format!("0 objects fetched, {objects} were there\n"));
    assert_answers(&["--files", &files], &logged);

    let postgres = match Postgres::start() {
        Ok(postgres) => postgres,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let dsn = postgres.dsn();
    let load = |source: &str| ferry_logs(&["load", source, "--postgres", &dsn]);
    let lines = logged.len();
    assert_eq!(
        load(&source),
        format!("{objects} objects loaded ({lines} lines), 0 were there\n")
    );
    assert_eq!(
        load(&source),
        format!("0 objects loaded (0 lines), {objects} were there\n")
    );
    assert_eq!(
        postgres.query("SELECT count(*), count(logged_at) FROM ferry.lines"),
        [format!("{lines} {lines}")]
    );
    let numbers = "SELECT count(DISTINCT (line ->> 'tag', line ->> 'seq')) FROM ferry.lines";
    assert_eq!(postgres.query(numbers), [lines.to_string()]);
    assert_answers(&["--postgres", &dsn], &logged);
    assert_the_dashboard_shows_something(&postgres, &logged);
}

/// Runs the queries of the Grafana dashboard, with Grafana's variables replaced.
fn assert_the_dashboard_shows_something(postgres: &Postgres, logged: &[Logged]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/analytics/grafana.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let trace = logged
        .iter()
        .find_map(|one| one.line["traceId"].as_str())
        .unwrap();
    let mut queries: Vec<&str> = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        queries.push(panel["targets"][0]["rawSql"].as_str().unwrap());
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    queries.extend(
        variables
            .iter()
            .filter_map(|variable| variable["definition"].as_str()),
    );
    assert_eq!(queries.len(), 7);
    for query in queries {
        let query = query
            .replace(
                "$__timeFilter(logged_at)",
                "logged_at BETWEEN '2025-07-02' AND '2025-07-03'",
            )
            .replace(
                "$__timeGroupAlias(logged_at, $__interval)",
                "date_trunc('minute', logged_at) AS \"time\"",
            )
            .replace("${service:sqlstring}", "'api','billing','shop'")
            .replace("${trace:sqlstring}", &format!("'{trace}'"));
        assert!(!query.contains('$'), "{query}");
        assert!(!postgres.query(&query).is_empty(), "no row: {query}");
    }
}
