//! Azurite (Azure Blob) and moto (Firehose, S3), each started once per test process, on a port chosen by the system.
//! `tests/emulators/install.sh` installs them.

use std::collections::VecDeque;
use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ferry_harness::ledger::{Report, verify_objects};
use futures::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::{Certificate, ClientOptions, ObjectStore, ObjectStoreExt as _};

/// The time limit for a start: on two cores busy with compilers moto took 50 seconds.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The number of output lines shown of an emulator that failed.
const LINES_SHOWN: usize = 20;

/// A running Azurite.
pub(crate) struct Azurite {
    origin: String,
    /// The CA of its certificate (PEM), if it uses TLS.
    pub(crate) ca_pem: Option<String>,
}

impl Azurite {
    /// The well-known account of every Azurite.
    pub(crate) const ACCOUNT: &str = "devstoreaccount1";
    /// The well-known shared key of [`Self::ACCOUNT`].
    pub(crate) const KEY: &str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// The blob service of [`Self::ACCOUNT`], such as `http://127.0.0.1:40000/devstoreaccount1`.
    pub(crate) fn blob_url(&self) -> String {
        format!("{}/{}", self.origin, Self::ACCOUNT)
    }

    /// A client for a container.
    pub(crate) fn store(&self, container: &str) -> impl ObjectStore {
        super::install_tls();
        let mut options = ClientOptions::new().with_allow_http(true);
        if let Some(ca_pem) = &self.ca_pem {
            let ca = Certificate::from_pem(ca_pem.as_bytes()).expect("a certificate");
            options = options.with_root_certificate(ca);
        }
        MicrosoftAzureBuilder::new()
            .with_endpoint(self.blob_url())
            .with_client_options(options)
            .with_account(Self::ACCOUNT)
            .with_access_key(Self::KEY)
            .with_container_name(container)
            .build()
            .expect("the settings are complete")
    }

    /// Reports which of `expected` numbered lines are in a container.
    pub(crate) fn report(&self, container: &str, expected: u64) -> Report {
        report(&self.store(container), expected)
    }
}

/// A running moto.
pub(crate) struct Moto {
    origin: String,
}

/// Reports which of `expected` numbered lines are in a store.
fn report(store: &impl ObjectStore, expected: u64) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
        for (number, object) in objects.iter().enumerate() {
            let object = store.get(&object.location).await.unwrap();
            let bytes = object.bytes().await.unwrap();
            std::fs::write(dir.path().join(number.to_string()), bytes).unwrap();
        }
    });
    let ledger = verify_objects(dir.path(), "seq").unwrap();
    ledger.report(Some(expected))
}

impl Moto {
    /// Reports which of `expected` numbered lines are in a bucket.
    pub(crate) fn report(&self, bucket: &str, expected: u64) -> Report {
        report(&self.store(bucket), expected)
    }

    /// The endpoint of every service, such as `http://127.0.0.1:40000`.
    pub(crate) fn url(&self) -> &str {
        &self.origin
    }

    /// Creates a delivery stream in us-east-1 that delivers into a new bucket.
    pub(crate) fn create_stream(&self, stream: &str, bucket: &str) {
        self.create_bucket(bucket);
        let body = serde_json::json!({
            "DeliveryStreamName": stream,
            "ExtendedS3DestinationConfiguration": {
                "RoleARN": "arn:aws:iam::123456789012:role/firehose",
                "BucketARN": format!("arn:aws:s3:::{bucket}"),
            },
        });
        self.call(
            "POST",
            "/",
            "firehose",
            "Firehose_20150804.CreateDeliveryStream",
            &body.to_string(),
        );
    }

    /// Creates a bucket.
    pub(crate) fn create_bucket(&self, bucket: &str) {
        self.call("PUT", &format!("/{bucket}"), "s3", "", "");
    }

    /// A client for a bucket.
    pub(crate) fn store(&self, bucket: &str) -> impl ObjectStore {
        super::install_tls();
        AmazonS3Builder::new()
            .with_endpoint(&self.origin)
            .with_allow_http(true)
            .with_bucket_name(bucket)
            .with_access_key_id("moto")
            .with_secret_access_key("takes any")
            .build()
            .expect("the settings are complete")
    }

    /// Sends a request that must succeed. moto takes the service from the signature's scope, and does not verify the
    /// signature.
    fn call(&self, method: &str, path: &str, service: &str, target: &str, body: &str) {
        let address = self
            .origin
            .strip_prefix("http://")
            .expect("moto uses plain HTTP");
        let mut connection = TcpStream::connect(address).expect("moto accepts a connection");
        write!(
            connection,
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nX-Amz-Target: {target}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/{service}/aws4_request\r\n\
             Content-Type: application/x-amz-json-1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("moto accepts a request");
        let mut answer = String::new();
        connection
            .read_to_string(&mut answer)
            .expect("moto answers");
        let status = answer.split(' ').nth(1);
        assert_eq!(status, Some("200"), "{method} {path} {target}: {answer}");
    }
}

/// Azurite over plain HTTP.
///
/// # Panics
/// If it is not installed, or not ready in time.
pub(crate) fn azurite() -> &'static Azurite {
    static RUNNING: OnceLock<Azurite> = OnceLock::new();
    RUNNING.get_or_init(|| Azurite {
        origin: start("Azurite", azurite_command()),
        ca_pem: None,
    })
}

/// Azurite over TLS, with a certificate for `127.0.0.1` from a private CA.
///
/// # Panics
/// Like [`azurite`].
pub(crate) fn azurite_tls() -> &'static Azurite {
    static RUNNING: OnceLock<Azurite> = OnceLock::new();
    RUNNING.get_or_init(|| {
        // Azurite reads its certificate before it listens, so the files are not needed after the start.
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (certificate, key) = (
            folder.path().join("leaf.pem"),
            folder.path().join("leaf.key"),
        );
        let ca_pem = write_certificate(&certificate, &key).expect("a certificate can be created");
        let mut command = azurite_command();
        command
            .arg("--cert")
            .arg(&certificate)
            .arg("--key")
            .arg(&key)
            // Accepts tokens with any signature, if issuer, audience and time are right.
            .args(["--oauth", "basic"]);
        Azurite {
            origin: start("Azurite", command),
            ca_pem: Some(ca_pem),
        }
    })
}

/// moto's server, for Firehose and S3.
///
/// # Panics
/// Like [`azurite`].
pub(crate) fn moto() -> &'static Moto {
    static RUNNING: OnceLock<Moto> = OnceLock::new();
    RUNNING.get_or_init(|| {
        let mut command = Command::new(installed("moto/bin/moto_server"));
        // Python buffers its output to a pipe.
        command
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("PYTHONUNBUFFERED", "1");
        Moto {
            origin: start("moto", command),
        }
    })
}

fn azurite_command() -> Command {
    let mut command = Command::new(installed("azurite/node_modules/.bin/azurite-blob"));
    command.args(["--blobHost", "127.0.0.1", "--blobPort", "0"]);
    // In megabytes, allocated as needed: a benchmark puts more than two gigabytes.
    command.args(["--inMemoryPersistence", "--extentMemoryLimit", "4096"]);
    command.args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"]);
    command
}

/// The path of a program installed by `tests/emulators/install.sh`.
pub(crate) fn installed(program: &str) -> PathBuf {
    let folder = env::var_os("FERRY_EMULATORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/emulators"),
        PathBuf::from,
    );
    let path = folder.join(program);
    assert!(
        path.exists(),
        "{} is not installed. Remedy: make emulators (or make test, which includes it)",
        path.display()
    );
    path
}

/// Starts an emulator and waits until it listens. Returns its origin.
fn start(name: &str, mut command: Command) -> String {
    let (ready, origin) = mpsc::channel();
    let parent = process::id();
    // SAFETY: between fork and exec the closure makes system calls only: it takes no lock and allocates no memory.
    unsafe { command.pre_exec(move || end_with(parent)) };

    // The kernel kills the child when the *thread* that created it ends, and a test's thread ends with the test. So a
    // dedicated thread creates the child, and drains its output.
    let thread = thread::Builder::new().name(name.to_owned());
    let attend = move || {
        let end = run(command, |origin| {
            // Fails for a second matching line, since only one is received.
            ready.send(Ok(origin)).ok();
        });
        ready
            .send(Err(
                end.unwrap_or_else(|error| format!("cannot be run: {error}"))
            ))
            .ok();
    };
    thread.spawn(attend).expect("a thread can be started");

    match origin.recv_timeout(READY_WITHIN) {
        Ok(Ok(origin)) => origin,
        Ok(Err(reason)) => {
            panic!("{name} {reason}\nRemedy: make emulators, and see its output above")
        }
        Err(error) => {
            panic!("{name} did not report its address within {READY_WITHIN:?}: {error}")
        }
    }
}

/// Runs an emulator to its end, and calls `on_listening` with its origin. Returns the reason of the end.
fn run(mut command: Command, on_listening: impl Fn(String)) -> io::Result<String> {
    let (reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn()?;
    // Close our copies of the pipe's writing end, or the pipe would never end.
    drop(command);
    let mut last_lines = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if let Some(origin) = listening(&line) {
            on_listening(origin);
        }
        if last_lines.len() == LINES_SHOWN {
            last_lines.pop_front();
        }
        last_lines.push_back(line);
    }
    let status = child.wait()?;
    Ok(format!(
        "ended with {status}\n{}",
        Vec::from(last_lines).join("\n")
    ))
}

/// The origin in a line such as `Azurite Blob service successfully listens on http://127.0.0.1:40000`.
fn listening(line: &str) -> Option<String> {
    let (_, rest) = line
        .split_once("listens on ")
        .or_else(|| line.split_once("Running on "))?;
    Some(rest.trim_end().trim_end_matches('/').to_owned())
}

/// Makes the child die with its parent. Runs in the child.
fn end_with(parent: u32) -> io::Result<()> {
    // SAFETY: prctl reads its integer arguments only.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before that call.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Writes a leaf certificate and its key. Returns the CA's certificate.
///
/// rustls rejects a CA certificate as a leaf, so there are two.
fn write_certificate(certificate: &Path, key: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "CA of the tests");
    ca.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let ca = rcgen::CertifiedIssuer::self_signed(ca, rcgen::KeyPair::generate()?)?;
    let leaf_key = rcgen::KeyPair::generate()?;
    let leaf =
        rcgen::CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&leaf_key, &ca)?;
    std::fs::write(certificate, leaf.pem())?;
    std::fs::write(key, leaf_key.serialize_pem())?;
    Ok(ca.pem())
}
