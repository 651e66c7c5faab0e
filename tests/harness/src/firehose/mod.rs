//! A fake Amazon Data Firehose on the loopback interface, with injected faults.
//!
//! It implements PutRecordBatch, PutRecord and DescribeDeliveryStream in the JSON 1.1 protocol, and AssumeRole of STS,
//! and checks every call against the limits of the real service. Accepted records are counted in a [`Ledger`]. Faults
//! are injected by a script:
#![doc = include_str!("faults.md")]

mod api;
mod faults;

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use self::api::ApiError;
pub use self::api::{MAX_CALL_BYTES, MAX_RECORD_BYTES, MAX_RECORDS};
use self::faults::{Faults, Faulty, GRAMMAR};
use crate::faults::from_argument;
use crate::ledger::{Ledger, Report, SeqKey};

/// Only the newest requests are kept, since a soak test must not fill the memory.
const REQUESTS_KEPT: usize = 100_000;

/// The kind of a stream in DescribeDeliveryStream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StreamKind {
    /// Delivers to S3 unchanged
    S3,
    /// Converts JSON to Parquet on the way to S3
    S3Parquet,
    /// Partitions by keys of the JSON on the way to S3
    S3Partitioned,
    /// Delivers to OpenSearch
    #[value(name = "opensearch")]
    OpenSearch,
}

/// The options of a fake; the default is a service without faults where every stream exists.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The loopback address to listen on; with port 0, a free port is chosen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Serve TLS with a fresh certificate for localhost and 127.0.0.1
    #[arg(long)]
    pub tls: bool,
    /// The fault script; on the command line, a file with it or the script itself (see --help)
    #[arg(long, value_name = "FILE|SCRIPT", default_value = "", long_help = faults_help())]
    #[arg(hide_default_value = true)]
    pub faults: String,
    /// The seed for the randomness of faults
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// An existing stream, with KIND s3, s3-parquet, s3-partitioned or opensearch; may be given several times. Without
    /// any, every name exists as s3
    #[arg(long = "stream", value_name = "NAME=KIND", value_parser = parse_stream)]
    pub streams: Vec<(String, StreamKind)>,
    /// Refuse DescribeDeliveryStream, as if the sender's policy did not allow it
    #[arg(long)]
    pub deny_describe: bool,
    /// Throttle the records of a stream beyond this number of bytes per second, with a burst of one second
    #[arg(long, value_name = "BYTES")]
    pub quota_bytes_per_second: Option<u64>,
    /// The key of a line's sequence number; dots lead into nested maps
    #[arg(long, value_name = "KEY", default_value = "seq")]
    pub seq_key: String,
    /// The clock for signatures, quotas and the expiry of credentials
    #[arg(skip = SystemTime::now as fn() -> SystemTime)]
    pub clock: fn() -> SystemTime,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            faults: String::new(),
            seed: 1,
            streams: Vec::new(),
            deny_describe: false,
            quota_bytes_per_second: None,
            seq_key: "seq".to_owned(),
            clock: SystemTime::now,
        }
    }
}

/// A request, as received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The operation: `PutRecordBatch`, `PutRecord`, `DescribeDeliveryStream`, `AssumeRole`, or any other name that was
    /// requested.
    pub operation: String,
    /// The delivery stream's name.
    pub stream: String,
    /// The number of records in the call.
    pub records: usize,
    /// The bytes of its records, before base64.
    pub raw_bytes: usize,
    /// The access key id that signed the request; empty if the signature is malformed.
    pub access_key_id: String,
    /// The token of temporary credentials.
    pub session_token: Option<String>,
    /// The User-Agent header.
    pub user_agent: String,
    /// The outcome: `ok`, `some records failed`, `all records failed`, an error code, `status N`, or the fault that
    /// closed the connection.
    pub outcome: String,
}

/// The parameters of an AssumeRole call, and the credentials by which later requests are recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssumedRole {
    /// The requested role.
    pub role_arn: String,
    /// The external id, if there is one.
    pub external_id: Option<String>,
    /// The session name.
    pub session_name: String,
    /// The returned access key id.
    pub access_key_id: String,
    /// The returned session token.
    pub session_token: String,
}

struct Shared {
    options: Options,
    seq_key: SeqKey,
    state: Mutex<State>,
}

struct State {
    ledger: Ledger,
    faults: Faults,
    requests: VecDeque<Request>,
    roles: Vec<AssumedRole>,
    buckets: HashMap<String, Bucket>,
    last_id: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds the state")
    }

    fn now(&self) -> SystemTime {
        (self.options.clock)()
    }

    fn kind(&self, stream: &str) -> Result<StreamKind, ApiError> {
        let streams = &self.options.streams;
        match streams.iter().find(|(name, _)| name == stream) {
            Some((_, kind)) => Ok(*kind),
            None if streams.is_empty() => Ok(StreamKind::S3),
            None => Err(ApiError::not_found(stream)),
        }
    }
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Counts a request and keeps it for [`FakeFirehose::requests`]. Returns its id.
    fn remember(&mut self, request: Request, wire_bytes: usize) -> u64 {
        if request.operation.starts_with("Put") {
            self.ledger.add_call(&request.outcome, wire_bytes);
        }
        if self.requests.len() == REQUESTS_KEPT {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
        self.next_id()
    }

    fn within_quota(&mut self, shared: &Shared, stream: &str, bytes: usize) -> bool {
        let Some(rate) = shared.options.quota_bytes_per_second else {
            return true;
        };
        let bucket = self.buckets.entry(stream.to_owned()).or_default();
        bucket.take(rate as f64, shared.now(), bytes)
    }
}

/// A token bucket of bytes with a burst of one second.
#[derive(Default)]
struct Bucket {
    taken: f64,
    at: Option<SystemTime>,
}

impl Bucket {
    /// A record may overdraw it, since one larger than the bucket would never pass otherwise.
    fn take(&mut self, rate: f64, now: SystemTime, bytes: usize) -> bool {
        let at = self.at.replace(now).unwrap_or(now);
        let elapsed = now.duration_since(at).unwrap_or_default();
        self.taken = (self.taken - elapsed.as_secs_f64() * rate).max(0.0);
        let within = self.taken < rate;
        if within {
            self.taken += bytes as f64;
        }
        within
    }
}

/// A running fake. It stops on drop, and closes its connections.
pub struct FakeFirehose {
    shared: Arc<Shared>,
    url: String,
    ca_pem: Option<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeFirehose {
    /// Starts a server with its own runtime. Fails if the fault script is invalid or the address is not available.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let listen = options.listen;
        ensure!(
            listen.ip().is_loopback(),
            "cannot listen on {listen}: the fake serves loopback addresses alone, such as 127.0.0.1:0"
        );
        let mut faults = Faults::new(options.seed);
        faults.push(&options.faults)?;
        let tls = options.tls.then(self_signed).transpose()?;
        let (acceptor, ca_pem) = tls.unzip();
        let listener = std::net::TcpListener::bind(listen);
        let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
        listener.set_nonblocking(true)?;
        let scheme = if options.tls { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr()?);

        let seq_key = SeqKey::from(options.seq_key.as_str());
        let state = Mutex::new(State {
            ledger: Ledger::default(),
            faults,
            requests: VecDeque::new(),
            roles: Vec::new(),
            buckets: HashMap::new(),
            last_id: 0,
        });
        let shared = Arc::new(Shared {
            options,
            seq_key,
            state,
        });
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, acceptor, serving) => {}
                }
            });
        });
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(Self {
            shared,
            url,
            ca_pem,
            stop,
            thread,
        })
    }

    /// Returns the endpoint, `http://127.0.0.1:PORT` or with `https`; it also serves STS.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the certificate authority to trust, with [`Options::tls`].
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Returns the accepted records so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.state().ledger.clone()
    }

    /// Returns a summary of the accepted records so far; see [`Ledger::report`].
    pub fn report(&self, expect: Option<u64>) -> Report {
        self.shared.state().ledger.report(expect)
    }

    /// Returns all requests since the start (the newest 100,000), in the order of their outcomes.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.iter().cloned().collect()
    }

    /// Returns all assumed roles since the start.
    pub fn assumed_roles(&self) -> Vec<AssumedRole> {
        self.shared.state().roles.clone()
    }

    /// Adds the rules of a fault script; their `call N` counts from now.
    pub fn push_fault(&self, script: &str) -> anyhow::Result<()> {
        self.shared.state().faults.push(script)
    }

    /// Removes all fault rules.
    pub fn clear_faults(&self) {
        self.shared.state().faults.clear();
    }
}

impl Drop for FakeFirehose {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("a listening socket that does not block");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Probably out of file descriptors, which ending connections will free.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            let Some(tls) = tls else {
                return converse(stream, shared).await;
            };
            if let Ok(stream) = tls.accept(stream).await {
                converse(stream, shared).await;
            }
        });
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(move |request| api::answer(shared.clone(), request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Each fault that closes the connection ends in an error here.
    let _ = connection.await;
}

/// Creates a server certificate signed by a new authority, and returns that authority as PEM too.
fn self_signed() -> anyhow::Result<(TlsAcceptor, String)> {
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    // OpenSSL considers a certificate self-signed if its subject is its issuer's name.
    let name = rcgen::DnType::CommonName;
    ca.distinguished_name.push(name, "fake Firehose authority");
    let ca = rcgen::CertifiedIssuer::self_signed(ca, rcgen::KeyPair::generate()?)?;
    let names = ["localhost", "127.0.0.1"].map(str::to_owned);
    let key = rcgen::KeyPair::generate()?;
    let leaf = rcgen::CertificateParams::new(names)?.signed_by(&key, &ca)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.into())?;
    Ok((TlsAcceptor::from(Arc::new(config)), ca.pem()))
}

/// Runs a fake Amazon Data Firehose until SIGINT or SIGTERM.
///
/// The first line is `listening on URL`; at the end it prints what arrived. Exits with 1 if `--expect` is given and a
/// line is missing, duplicated or not JSON.
#[derive(Debug, clap::Args)]
pub struct FirehoseArgs {
    #[command(flatten)]
    options: Options,
    /// Write the certificate authority to trust to this file, as PEM
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca_out: Option<PathBuf>,
    /// Write the ledger to this file as JSON, each second and at the end
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// The number of expected lines: the numbers 0 to N-1, once each
    #[arg(long, value_name = "N")]
    expect: Option<u64>,
}

fn faults_help() -> String {
    format!("The fault script: a file with it, or the script itself.\n\n{GRAMMAR}")
}

fn parse_stream(text: &str) -> Result<(String, StreamKind), String> {
    let (name, kind) = text
        .split_once('=')
        .ok_or("expected NAME=KIND, such as logs=s3-parquet")?;
    let kind = <StreamKind as clap::ValueEnum>::from_str(kind, false);
    let wrong = |_| "KIND is none of s3, s3-parquet, s3-partitioned and opensearch";
    Ok((name.to_owned(), kind.map_err(wrong)?))
}

/// Runs `ferry-harness firehose`.
pub fn run(args: FirehoseArgs) -> anyhow::Result<ExitCode> {
    // Handle signals before the first line is printed, since its reader may send one at once.
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGINT, libc::SIGTERM])?;
    let mut options = args.options;
    options.faults = from_argument::<Faulty>(options.faults)?;
    let fake = FakeFirehose::start(options)?;
    if let (Some(path), Some(pem)) = (&args.ca_out, fake.ca_pem()) {
        std::fs::write(path, pem).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("listening on {}", fake.url());
    std::io::stdout().flush()?;

    let (sender, signalled) = mpsc::channel();
    std::thread::spawn(move || signals.forever().next().map(|signal| sender.send(signal)));
    loop {
        let wait = signalled.recv_timeout(Duration::from_secs(1));
        let report = fake.report(args.expect);
        if let Some(path) = &args.ledger {
            write_ledger(path, &report)?;
        }
        if wait != Err(RecvTimeoutError::Timeout) {
            println!("{report}");
            let failed = args.expect.is_some() && !report.is_exact();
            return Ok(ExitCode::from(u8::from(failed)));
        }
    }
}

/// Replaces the file atomically, so that no reader sees half of it.
fn write_ledger(path: &Path, report: &Report) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let json = serde_json::to_vec_pretty(report)?;
    let written = std::fs::write(&part, json).and_then(|()| std::fs::rename(&part, path));
    written.with_context(|| format!("cannot write the ledger {}", path.display()))
}
