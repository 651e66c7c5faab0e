//! The files of `examples/`: each configuration runs in the harness, and in a real Fluent Bit if one is given, with the
//! environment of its deployment; manifests and policies are checked for consistency.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ferry_harness::samples::{Shape, generate};
use flate2::read::MultiGzDecoder;
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support;
use crate::support::emulators::{Azurite, azurite, azurite_tls, installed, moto};

/// The number of records that each example delivers.
const RECORDS: usize = 2_000;
/// A SAS that may create the container, which the example's own may not; signed with Azurite's public key.
const SAS_OF_AN_OWNER: &str = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00%3A00%3A00Z&spr=https,http&\
                               sig=jlSI%2B5DohmjtlB2oCr2Vhd9u7l%2F%2FvB9E8D7vhfmKGX4%3D";
/// A SAS as docs/authentication.md describes: it may read, create and write objects, and nothing else.
const SAS_OF_THE_README: &str = "se=2099-01-01T00%3A00%3A00Z&sp=rwc&spr=https%2Chttp&sv=2026-10-06&ss=b&srt=o&\
                                 sig=VsigGaw7HryuByw%2BRaZGNxZndvQtr3wAdqXFNBN9WOQ%3D";

/// The service account token that Kubernetes projects into the pod.
const KUBERNETES_TOKEN: &str = "the.service.account";

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json_file(path: &str) -> Value {
    serde_json::from_str(&read(&examples().join(path)))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents of a YAML file, read by PyYAML.
fn yaml_file(path: &str) -> Vec<Value> {
    let output = Command::new(installed("moto/bin/python"))
        .args(["-c", "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))"])
        .arg(examples().join(path))
        .output()
        .expect("Python starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{path}: {said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

type Environment = BTreeMap<String, String>;

/// Converts `[{"name": …, "value": …}]`, as in task definitions and pods.
fn pairs(list: &Value) -> Environment {
    let pair = |entry: &Value| {
        let text = |key: &str| entry[key].as_str().expect("a text").to_owned();
        (text("name"), text("value"))
    };
    list.as_array().expect("a list").iter().map(pair).collect()
}

/// An example, with the environment that its deployment sets for Fluent Bit.
struct Example {
    /// The folder of its `fluent-bit.conf`.
    folder: &'static str,
    environment: Environment,
    /// The tag of its input.
    tag: &'static str,
    shape: Shape,
}

fn ecs() -> Example {
    let task = json_file("ecs-fargate/task-definition.json");
    Example {
        folder: "ecs-fargate",
        environment: pairs(&task["containerDefinitions"][0]["environment"]),
        tag: "api-firelens-0123456789abcdef0123456789abcdef",
        shape: Shape::Nestjs,
    }
}

fn kubernetes() -> Example {
    let pod = &yaml_file("kubernetes-azure/daemon-set.yaml")[0]["spec"]["template"]["spec"];
    Example {
        folder: "kubernetes-azure",
        environment: pairs(&pod["containers"][0]["env"]),
        tag: "kube.shop.api.api-7d9f4.x2k4p",
        shape: Shape::Nestjs,
    }
}

fn beanstalk() -> Example {
    let settings = &yaml_file("elastic-beanstalk/.ebextensions/ferry.config")[0];
    let properties = &settings["option_settings"]["aws:elasticbeanstalk:application:environment"];
    let compose = &yaml_file("elastic-beanstalk/docker-compose.yml")[0];
    let environment = compose["services"]["log-router"]["environment"]
        .as_object()
        .expect("a map");
    let resolve = |(name, value): (&String, &Value)| {
        let variable = value.as_str().and_then(|value| value.strip_prefix("${"));
        let variable = variable.and_then(|value| value.strip_suffix('}'));
        let value = &properties[variable.expect("a property of the environment")];
        (name.clone(), value.as_str().expect("it is set").to_owned())
    };
    Example {
        folder: "elastic-beanstalk/log-router",
        environment: environment.iter().map(resolve).collect(),
        tag: "docker",
        shape: Shape::Nestjs,
    }
}

fn systemd() -> Example {
    let lines = read(&examples().join("systemd/ferry.env"));
    let lines = lines.lines().filter(|line| !line.starts_with('#'));
    let pair = |line: &str| {
        let (name, value) = line.split_once('=').expect("NAME=value");
        (name.to_owned(), value.to_owned())
    };
    Example {
        folder: "systemd",
        environment: lines.map(pair).collect(),
        tag: "app",
        shape: Shape::Http,
    }
}

/// An example in a folder where it can run.
struct Stage {
    dir: TempDir,
    environment: Environment,
    http_port: u16,
    tag: &'static str,
    shape: Shape,
    /// The lines of the application.
    lines: Vec<(SystemTime, Value)>,
}

impl Stage {
    /// Copies the configuration. Replaced are only the library, the folders of logs and state, local ports, and
    /// (`replaced`) the addresses of the services.
    fn new(example: Example, replaced: &[(&str, &str)]) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path();
        for entry in fs::read_dir(examples().join(example.folder)).unwrap() {
            let from = entry.unwrap().path();
            if from
                .extension()
                .is_some_and(|extension| extension == "conf")
            {
                fs::copy(&from, here.join(from.file_name().unwrap())).unwrap();
            }
        }
        let plugins = format!("[PLUGINS]\n    Path {}\n", support::library().display());
        fs::write(here.join("plugins.conf"), plugins).unwrap();
        if here.join("journal.conf").exists() {
            // A test has no journal to read.
            fs::write(here.join("journal.conf"), "").unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let http_port = port.expect("a free port").port();
        let path = |name: &str| here.join(name).display().to_string();
        let mut environment = example.environment;
        for (name, value) in [
            ("FERRY_DIR", path("")),
            ("FERRY_CONF", path("")),
            ("STATE_DIR", path("state")),
            ("SPOOL_DIR", path("spool")),
            ("LOGS", path("logs")),
            ("FIRELENS_SOCKET", path("fluent.sock")),
            ("AZURE_FEDERATED_TOKEN_FILE", path("token")),
            ("HTTP_LISTEN", "127.0.0.1".to_owned()),
            ("HTTP_PORT", http_port.to_string()),
            ("METRICS_LISTEN", "127.0.0.1:0".to_owned()),
            ("HOSTNAME", "web-1".to_owned()),
        ] {
            environment.insert(name.to_owned(), value);
        }
        for (name, value) in replaced {
            environment.insert((*name).to_owned(), (*value).to_owned());
        }
        fs::create_dir(here.join("logs")).unwrap();
        fs::create_dir(here.join("state")).unwrap();
        fs::write(here.join("token"), KUBERNETES_TOKEN).unwrap();
        let (tag, shape) = (example.tag, example.shape);
        Stage {
            dir,
            environment,
            http_port,
            tag,
            shape,
            lines: generate(shape, 1, SystemTime::now())
                .take(RECORDS)
                .collect(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .envs(&self.environment)
            .env("AWS_ACCESS_KEY_ID", "TESTKEY")
            .env("AWS_SECRET_ACCESS_KEY", "s")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdin(Stdio::null());
        command
    }

    /// Runs the harness to its end. It supports neither filters nor the inputs of these examples, so a sample input
    /// replaces both.
    fn run_in_the_harness(&self) {
        let config = read(&self.path("fluent-bit.conf"));
        let shape = match self.shape {
            Shape::Http => "http_sample",
            Shape::Nestjs => "nestjs_sample",
        };
        let mut inputs = format!(
            "[INPUT]\n    Name {shape}\n    Tag {}\n    Samples {RECORDS}\n",
            self.tag
        );
        for section in config.split("\n[").skip(1) {
            if !section.starts_with("INPUT") && !section.starts_with("FILTER") {
                inputs += &format!("\n[{section}");
            }
        }
        fs::write(self.path("harness.conf"), inputs).unwrap();
        let output = self
            .command(&support::harness())
            .args(["run", "--quiet", "-c"])
            .arg(self.path("harness.conf"))
            .arg("--report")
            .arg(self.path("report.json"))
            .output()
            .expect("the harness starts");
        let log = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{log}");
        let report: Value = serde_json::from_str(&read(&self.path("report.json"))).unwrap();
        assert_eq!(report["records_acknowledged"], RECORDS, "{log}");
        assert_eq!(report["records_dropped"], 0, "{log}");
    }

    /// Runs Fluent Bit with the unchanged configuration until all records are delivered, and stops it like a service
    /// manager. `feed` is called once it is up.
    fn run_in_fluent_bit(&self, fluent_bit: &Path, feed: impl FnOnce(&Stage)) {
        let log = fs::File::create(self.path("log")).unwrap();
        let child = self
            .command(fluent_bit)
            .arg("-c")
            .arg(self.path("fluent-bit.conf"))
            .current_dir("/")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("Fluent Bit starts");
        let mut host = Host(child);
        host.until(self, "it is up", || self.get("/api/v1/uptime").is_some());
        feed(self);
        host.until(self, "all records are delivered", || {
            let delivered = |metrics: Value| {
                let outputs = metrics["output"].as_object().expect("outputs");
                outputs.values().any(|one| one["proc_records"] == RECORDS)
            };
            self.get("/api/v1/metrics").is_some_and(delivered)
        });
        host.stop(self);
    }

    /// Requests JSON from the host's HTTP server.
    fn get(&self, path: &str) -> Option<Value> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.http_port)).ok()?;
        write!(
            connection,
            "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }

    fn log(&self) -> String {
        read(&self.path("log"))
    }
}

/// A host process, killed on drop.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    /// Polls until `done`, for 90 s at most.
    fn until(&mut self, stage: &Stage, what: &str, mut done: impl FnMut() -> bool) {
        let limit = Instant::now() + Duration::from_secs(90);
        while !done() {
            if let Some(status) = self.0.try_wait().unwrap() {
                panic!("{what}: the host ended with {status}: {}", stage.log());
            }
            assert!(
                Instant::now() < limit,
                "{what}: not within 90 s: {}",
                stage.log()
            );
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn stop(mut self, stage: &Stage) {
        let sent = Command::new("kill")
            .args(["-s", "TERM", &self.0.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let limit = Instant::now() + Duration::from_secs(60);
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < limit, "it does not stop: {}", stage.log());
            std::thread::park_timeout(Duration::from_millis(50));
        }
        assert!(self.0.wait().unwrap().success(), "{}", stage.log());
    }
}

/// All lines in a store, with the names of their objects.
fn arrived(store: &dyn ObjectStore) -> Vec<(String, Value)> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let objects: Vec<(String, Vec<u8>)> = runtime.block_on(async {
        let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
        let mut objects = Vec::new();
        for object in listed {
            let bytes = store.get(&object.location).await.unwrap();
            let bytes = bytes.bytes().await.unwrap().to_vec();
            objects.push((object.location.to_string(), bytes));
        }
        objects
    });
    let mut lines = Vec::new();
    for (name, bytes) in objects {
        let mut text = String::new();
        match bytes.starts_with(&[0x1f, 0x8b]) {
            true => MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text),
            false => (&bytes[..]).read_to_string(&mut text),
        }
        .unwrap_or_else(|error| panic!("{name}: {error}"));
        for line in text.lines() {
            let line = serde_json::from_str(line);
            lines.push((name.clone(), line.expect("each line is one JSON document")));
        }
    }
    lines
}

/// Asserts that every number arrived once, with a time that queries and format conversion can parse.
fn assert_each_once_with_a_time(lines: &[(String, Value)], time_key: &str) {
    let mut numbers: Vec<u64> = lines
        .iter()
        .filter_map(|(_, line)| line["seq"].as_u64())
        .collect();
    numbers.sort_unstable();
    assert!(
        numbers.iter().copied().eq(0..RECORDS as u64),
        "{} of {RECORDS} numbers",
        numbers.len()
    );
    assert_eq!(lines.len(), RECORDS);
    for (_, line) in lines {
        let time = line[time_key].as_str().expect("a time");
        // The OpenX SerDe of Firehose reads ISO 8601 with a Z.
        assert!(
            time.ends_with('Z') && chrono::DateTime::parse_from_rfc3339(time).is_ok(),
            "{time}"
        );
    }
}

/// Asserts that the application's lines arrived unchanged, except that the key of the time may differ.
fn assert_the_same(stage: &Stage, lines: &[(String, Value)], own_time: &str, time_key: &str) {
    let by_number: BTreeMap<u64, &Value> = lines
        .iter()
        .map(|(_, line)| (line["seq"].as_u64().unwrap(), line))
        .collect();
    for (number, (_, wrote)) in stage.lines.iter().enumerate() {
        let line = by_number[&(number as u64)];
        let wrote = wrote.as_object().unwrap();
        if wrote.contains_key("kind") {
            continue; // the extremes of JSON, which the host's own reader does not all keep
        }
        for (key, value) in wrote {
            let key = if key == own_time { time_key } else { key };
            assert_eq!(&line[key], value, "{key} of {number}");
        }
    }
}

#[test]
fn ecs_fargate_delivers_to_firehose_what_format_conversion_reads() {
    let check = |bucket: &str| {
        let lines = arrived(&moto().store(bucket));
        assert_each_once_with_a_time(&lines, "timestamp");
        let table = read(&examples().join("ecs-fargate/glue-table.sql"));
        let columns: BTreeSet<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
            .map(|name| name.trim_matches('`'))
            .collect();
        for (_, line) in &lines {
            for key in line.as_object().unwrap().keys() {
                assert!(
                    columns.contains(key.to_lowercase().as_str()),
                    "{key} is not a column of {columns:?}"
                );
            }
        }
        lines
    };
    let stage = |bucket: &str| {
        let example = ecs();
        let stream = format!("{}-{bucket}", example.environment["DELIVERY_STREAM"]);
        moto().create_stream(&stream, bucket);
        let endpoint = ("AWS_ENDPOINT_URL_FIREHOSE", moto().url());
        Stage::new(example, &[endpoint, ("DELIVERY_STREAM", &stream)])
    };

    stage("examples-ecs-harness").run_in_the_harness();
    check("examples-ecs-harness");

    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let stage = stage("examples-ecs");
    stage.run_in_fluent_bit(&fluent_bit, |stage| {
        let mut log_driver = UnixStream::connect(stage.path("fluent.sock")).unwrap();
        for (_, line) in &stage.lines {
            // Like Docker's fluentd driver: tag, seconds, record.
            let record = json!({
                "container_id": "3f2b8a7c", "container_name": "/ecs-shop-api-1-api-a1b2",
                "source": "stdout", "log": line.to_string(),
            });
            let message = json!([stage.tag, 1_763_700_000, record]);
            let message = rmp_serde::to_vec(&message).unwrap();
            log_driver.write_all(&message).unwrap();
        }
    });
    let lines = check("examples-ecs");
    assert_the_same(&stage, &lines, "timestamp", "timestamp");
    assert!(lines.iter().all(|(_, line)| line["source"] == "stdout"));
}

/// A fake Entra ID that exchanges the Kubernetes token of the example's ServiceAccount, and no other, for a storage
/// token. Returns its address, and the number of tokens issued.
fn entra(client_id: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let given = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&given);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    let part = |json: Value| base64_simd::URL_SAFE_NO_PAD.encode_to_string(json.to_string());
    let token = format!(
        "{}.{}.c2lnbmF0dXJl",
        part(json!({ "alg": "RS256", "typ": "JWT" })),
        part(json!({
            "aud": "https://storage.azure.com", "iss": format!("https://sts.windows.net/{TENANT}/"),
            "iat": now - 60, "nbf": now - 60, "exp": now + 3_600,
        }))
    );
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = Vec::new();
            let mut piece = [0; 4_096];
            // The grant is the last field of the form.
            while !request.ends_with(b"grant_type=client_credentials") {
                match connection.read(&mut piece) {
                    Ok(length @ 1..) => request.extend_from_slice(&piece[..length]),
                    _ => break,
                }
            }
            let request = String::from_utf8_lossy(&request);
            let asked = [
                format!("POST /{TENANT}/oauth2/v2.0/token HTTP"),
                format!("client_id={client_id}&"),
                format!("client_assertion={KUBERNETES_TOKEN}&"),
            ];
            let (status, body) = match asked.iter().all(|part| request.contains(part)) {
                true => {
                    count.fetch_add(1, Ordering::SeqCst);
                    (200, json!({ "access_token": token, "expires_in": 3_600 }))
                }
                false => (401, json!({ "error": "invalid_client" })),
            };
            let body = body.to_string();
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}", body.len());
            let _ = write!(connection, "{head}\r\nConnection: close\r\n\r\n{body}");
        }
    });
    (format!("http://{address}/"), given)
}

/// The tenant of the example's identity.
const TENANT: &str = "11111111-2222-3333-4444-555555555555";

/// Creates a container, as an owner of the account.
fn make_container(server: &Azurite, container: &str) {
    support::install_tls();
    let url = format!(
        "{}/{container}?restype=container&{SAS_OF_AN_OWNER}",
        server.blob_url()
    );
    let mut client = reqwest::Client::builder().no_proxy();
    if let Some(ca_pem) = &server.ca_pem {
        let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).unwrap();
        client = client.add_root_certificate(ca);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let made = runtime.block_on(client.build().unwrap().put(url).body("").send());
    assert!(made.unwrap().status().is_success());
}

#[test]
fn kubernetes_builds_objects_in_azure_with_the_sas_of_the_readme() {
    let container = "examples-k8s-sas";
    make_container(azurite(), container);
    let replaced = [
        ("STORAGE_ACCOUNT", Azurite::ACCOUNT),
        ("STORAGE_CONTAINER", container),
        ("STORAGE_ENDPOINT", &azurite().blob_url()),
    ];
    let stage = Stage::new(kubernetes(), &replaced);
    fs::write(stage.path("sas"), SAS_OF_THE_README).unwrap();
    let sas = stage.path("sas").display().to_string();
    let readme = read(&examples().join("kubernetes-azure/README.md"));
    let (_, lines) = readme.split_once("```ini\n").expect("the keys for a SAS");
    let (lines, _) = lines.split_once("```").expect("their end");
    let own = "/var/run/secrets/ferry/sas";
    assert!(lines.contains(own), "{lines}");
    let config = read(&stage.path("fluent-bit.conf"));
    let identity = "    auth_type       workload_identity\n";
    assert!(config.contains(identity), "{config}");
    let config = config.replace(identity, &lines.replace(own, &sas));
    fs::write(stage.path("fluent-bit.conf"), config).unwrap();
    stage.run_in_the_harness();
    assert_each_once_with_a_time(&arrived(&azurite().store(container)), "time");
}

#[test]
fn kubernetes_builds_objects_in_azure_by_its_workload_identity() {
    let account = &yaml_file("kubernetes-azure/service-account.yaml")[0];
    let client_id =
        account["metadata"]["annotations"]["azure.workload.identity/client-id"].as_str();
    let client_id = client_id.expect("the identity's client ID");
    let (authority, given) = entra(client_id.to_owned());
    let server = azurite_tls();
    let stage = |container: &str| {
        make_container(server, container);
        let mut stage = Stage::new(
            kubernetes(),
            &[
                ("STORAGE_ACCOUNT", Azurite::ACCOUNT),
                ("STORAGE_CONTAINER", container),
                ("STORAGE_ENDPOINT", &server.blob_url()),
                // Set by Azure's webhook, from the ServiceAccount's annotation and the cluster.
                ("AZURE_CLIENT_ID", client_id),
                ("AZURE_TENANT_ID", TENANT),
                ("AZURE_AUTHORITY_HOST", &authority),
            ],
        );
        let ca = stage.path("ca.pem");
        fs::write(&ca, server.ca_pem.as_deref().unwrap()).unwrap();
        stage
            .environment
            .insert("SSL_CERT_FILE".to_owned(), ca.display().to_string());
        stage
    };
    let check = |container: &str| {
        let lines = arrived(&server.store(container));
        assert_each_once_with_a_time(&lines, "time");
        for (object, line) in &lines {
            assert!(object.starts_with("shop/api/2"), "{object}");
            assert_eq!(line["tag"], "kube.shop.api.api-7d9f4.x2k4p");
        }
        lines
    };

    stage("examples-k8s-harness").run_in_the_harness();
    check("examples-k8s-harness");
    assert_eq!(given.load(Ordering::SeqCst), 1, "one token for all objects");

    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let stage = stage("examples-k8s");
    stage.run_in_fluent_bit(&fluent_bit, |stage| {
        let id = "0123456789abcdef".repeat(4);
        let mut text = String::new();
        for (number, (time, line)) in stage.lines.iter().enumerate() {
            let time = chrono::DateTime::<chrono::Utc>::from(*time)
                .to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
            let line = line.to_string();
            // containerd splits long lines.
            let cut = (line.len() / 2..).find(|at| line.is_char_boundary(*at));
            let (head, tail) = line.split_at(cut.unwrap());
            match number % 10 {
                0 => text += &format!("{time} stdout P {head}\n{time} stdout F {tail}\n"),
                _ => text += &format!("{time} stdout F {line}\n"),
            }
        }
        fs::write(
            stage.path(&format!("logs/api-7d9f4.x2k4p_shop_api-{id}.log")),
            text,
        )
        .unwrap();
        let own = format!("logs/fluent-bit-x_ferry_fluent-bit-{id}.log");
        fs::write(
            stage.path(&own),
            "2025-01-01T00:00:00Z stdout F not for us\n",
        )
        .unwrap();
    });
    let lines = check("examples-k8s");
    assert_the_same(&stage, &lines, "timestamp", "timestamp");
}

#[test]
fn elastic_beanstalk_delivers_dockers_logs_to_firehose() {
    let stage = |bucket: &str| {
        let example = beanstalk();
        let stream = format!("{}-{bucket}", example.environment["DELIVERY_STREAM"]);
        moto().create_stream(&stream, bucket);
        let endpoint = ("AWS_ENDPOINT_URL_FIREHOSE", moto().url());
        Stage::new(example, &[endpoint, ("DELIVERY_STREAM", &stream)])
    };
    let check = |bucket: &str| {
        let lines = arrived(&moto().store(bucket));
        assert_each_once_with_a_time(&lines, "time");
        lines
    };

    stage("examples-eb-harness").run_in_the_harness();
    check("examples-eb-harness");

    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let stage = stage("examples-eb");
    stage.run_in_fluent_bit(&fluent_bit, |stage| {
        let mut text = String::new();
        for (number, (time, line)) in stage.lines.iter().enumerate() {
            let time = chrono::DateTime::<chrono::Utc>::from(*time)
                .to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
            let mut write = |part: &str| {
                let line = json!({
                    "log": part, "stream": "stdout", "attrs": { "tag": "current-api-1" }, "time": time,
                });
                text += &format!("{line}\n");
            };
            let line = format!("{line}\n");
            let cut = (line.len() / 2..).find(|at| line.is_char_boundary(*at));
            // Docker splits lines of more than 16 KB; only the last part ends in a newline.
            match number % 10 {
                0 => {
                    let (head, tail) = line.split_at(cut.unwrap());
                    write(head);
                    write(tail);
                }
                _ => write(&line),
            }
        }
        fs::create_dir(stage.path("logs/3f2b")).unwrap();
        fs::write(stage.path("logs/3f2b/3f2b-json.log"), text).unwrap();
    });
    let lines = check("examples-eb");
    assert_the_same(&stage, &lines, "timestamp", "timestamp");
    for (_, line) in &lines {
        assert_eq!(line["attrs"]["tag"], "current-api-1", "{line}");
    }
}

#[test]
fn a_plain_host_builds_objects_in_s3() {
    let stage = |bucket: &str| {
        moto().create_bucket(bucket);
        let endpoint = ("AWS_ENDPOINT_URL_S3", moto().url());
        Stage::new(systemd(), &[endpoint, ("BUCKET", bucket)])
    };
    let check = |bucket: &str| {
        let lines = arrived(&moto().store(bucket));
        assert_each_once_with_a_time(&lines, "time");
        for (object, line) in &lines {
            assert!(object.starts_with("web-1/app/2"), "{object}");
            assert_eq!(line["tag"], "app");
        }
        lines
    };

    stage("examples-host-harness").run_in_the_harness();
    check("examples-host-harness");

    let Some(fluent_bit) = support::fluent_bit() else {
        println!("skipped: FLUENT_BIT is not set");
        return;
    };
    let stage = stage("examples-host");
    stage.run_in_fluent_bit(&fluent_bit, |stage| {
        let lines: String = stage
            .lines
            .iter()
            .map(|(_, line)| format!("{line}\n"))
            .collect();
        fs::write(stage.path("logs/api.log"), lines).unwrap();
    });
    let lines = check("examples-host");
    assert_the_same(&stage, &lines, "time", "time");
}

#[test]
fn every_variable_of_a_configuration_has_a_default_or_is_set_by_its_deployment() {
    for example in [ecs(), kubernetes(), beanstalk(), systemd()] {
        let config = read(&examples().join(example.folder).join("fluent-bit.conf"));
        let used: BTreeSet<&str> = config
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(|line| line.split("${").skip(1))
            .filter_map(|rest| rest.split('}').next())
            .filter(|variable| !variable.contains(":-"))
            .collect();
        let mut set: BTreeSet<&str> = example.environment.keys().map(String::as_str).collect();
        if example.folder == "systemd" {
            set.insert("HOSTNAME"); // the host's own
        }
        assert_eq!(used, set, "{}", example.folder);
    }
}

/// Ferry's calls to AWS, and their place in the source.
const CALLS: [(&str, &str, &str); 4] = [
    (
        "firehose:PutRecordBatch",
        "src/sink/firehose/mod.rs",
        ".put_record_batch()",
    ),
    (
        "firehose:DescribeDeliveryStream",
        "src/sink/firehose/mod.rs",
        ".describe_delivery_stream()",
    ),
    ("s3:PutObject", "src/sink/blob/mod.rs", ".put_opts("),
    ("s3:GetObject", "src/sink/blob/mod.rs", ".get_opts("),
];

#[test]
fn the_policies_allow_ferrys_calls_and_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (action, file, call) in CALLS {
        assert!(
            read(&root.join(file)).contains(call),
            "{action}: no {call} in {file}"
        );
    }
    for (policy, needed) in [
        (
            "ecs-fargate/task-role-policy.json",
            &["firehose:PutRecordBatch"][..],
        ),
        (
            "elastic-beanstalk/instance-role-policy.json",
            &["firehose:PutRecordBatch"],
        ),
        (
            "systemd/instance-role-policy.json",
            &["s3:PutObject", "s3:GetObject"],
        ),
    ] {
        let mut allowed = Vec::new();
        for statement in json_file(policy)["Statement"]
            .as_array()
            .expect("statements")
        {
            assert_eq!(statement["Effect"], "Allow");
            assert_ne!(statement["Resource"], "*", "{policy}");
            for action in statement["Action"].as_array().expect("actions") {
                let action = action.as_str().unwrap();
                assert!(
                    CALLS.iter().any(|(call, ..)| *call == action),
                    "{policy}: {action}"
                );
                allowed.push(action.to_owned());
            }
        }
        assert_eq!(allowed, needed, "{policy}");
    }
}

/// moto and AWS's own client validate the shapes.
#[test]
fn aws_accepts_the_policies_the_task_and_the_stream() {
    let output = Command::new(installed("moto/bin/python"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws_shapes.py"))
        .arg(moto().url())
        .arg(examples())
        .output()
        .expect("Python starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "taken: 8\n");
}

#[test]
fn the_manifests_of_kubernetes_fit_together() {
    let customization = &yaml_file("kubernetes-azure/kustomization.yaml")[0];
    let listed = customization["resources"].as_array().expect("a list");
    let mut kinds = BTreeMap::new();
    for file in listed {
        for document in yaml_file(&format!("kubernetes-azure/{}", file.as_str().unwrap())) {
            kinds.insert(document["kind"].as_str().unwrap().to_owned(), document);
        }
    }
    let pod = &kinds["DaemonSet"]["spec"]["template"]["spec"];
    assert_eq!(
        pod["serviceAccountName"],
        kinds["ServiceAccount"]["metadata"]["name"]
    );
    let template = &kinds["DaemonSet"]["spec"]["template"]["metadata"];
    assert_eq!(template["labels"]["azure.workload.identity/use"], "true");
    let generated = &customization["configMapGenerator"][0];
    assert_eq!(generated["name"], pod["volumes"][0]["configMap"]["name"]);
    for file in generated["files"].as_array().expect("files") {
        let path = examples()
            .join("kubernetes-azure")
            .join(file.as_str().unwrap());
        assert!(path.is_file(), "{}", path.display());
    }
    let names = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|entry| entry["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(&pod["volumes"]),
        names(&pod["containers"][0]["volumeMounts"])
    );
    assert_eq!(
        customization["namespace"],
        kinds["Namespace"]["metadata"]["name"]
    );
}
