//! A reverse proxy on the loopback interface that injects faults in front of any HTTP server.
//!
//! It forwards each request to a server such as Azurite as it is: method, path, query, headers (including `Host`) and
//! body, except for hop-by-hop headers. Requests and responses are buffered completely. Faults are injected by a
//! script:
#![doc = include_str!("faults.md")]

mod exchange;
mod faults;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::http::Uri;
use hyper::http::uri::{Authority, Scheme};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::faults::{Faults, Faulty, GRAMMAR};
use crate::faults::from_argument;

/// Only the newest requests are kept, since a soak test must not fill the memory.
const REQUESTS_KEPT: usize = 100_000;
/// The time for which idle connections to the server are reused. Servers close idle ones after some seconds, and a
/// request sent at that moment would fail without a fault.
const IDLE: Duration = Duration::from_secs(1);
const BACKLOG: u32 = 1024;
/// The switch that [`Proxy::set_down`] sets.
const DOWN: &str = "down";

/// The options of a proxy; the default forwards everything.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The loopback address to listen on; with port 0, a free port is chosen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// The fault script; on the command line, a file with it or the script itself (see --help)
    #[arg(long, value_name = "FILE|SCRIPT", default_value = "", long_help = faults_help())]
    #[arg(hide_default_value = true)]
    pub faults: String,
    /// The seed for the randomness of faults
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A folder of switches, for shell scripts: a switch is on while a file of its name exists. While `down` exists,
    /// connections are refused, and open ones are closed
    #[arg(long, value_name = "DIR")]
    pub switches: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            faults: String::new(),
            seed: 1,
            switches: None,
        }
    }
}

/// A request and its outcome so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The method, such as `PUT`.
    pub method: String,
    /// Path and query, as received.
    pub path: String,
    /// The length of the body.
    pub bytes: usize,
    /// Whether it was sent to the server, which may then have processed it.
    pub forwarded: bool,
    /// The server's status.
    pub upstream_status: Option<u16>,
    /// The status sent to the client; `None` without a complete response (yet).
    pub status: Option<u16>,
    /// The faults that applied, as in the script, such as `delay 1s, status 503 ServerBusy`.
    pub fault: Option<String>,
}

/// The totals of all requests since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The requests that were received completely.
    pub requests: u64,
    /// The requests sent to the server.
    pub forwarded: u64,
    /// The answered requests, by the status sent to the client.
    pub answered: BTreeMap<u16, u64>,
    /// The requests with a fault, by fault.
    pub faults: BTreeMap<String, u64>,
}

impl Counts {
    /// Returns the number of requests without a response: closed, hanging, or in flight.
    pub fn unanswered(&self) -> u64 {
        self.requests - self.answered.values().sum::<u64>()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "requests: {}", self.requests)?;
        writeln!(f, "  forwarded: {}", self.forwarded)?;
        for (status, count) in &self.answered {
            writeln!(f, "  answered {status}: {count}")?;
        }
        write!(f, "  unanswered: {}", self.unanswered())?;
        for (fault, count) in &self.faults {
            write!(f, "\nfault {fault}: {count}")?;
        }
        Ok(())
    }
}

struct Shared {
    server: Authority,
    client: Client<HttpConnector, Full<Bytes>>,
    switches: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    faults: Faults,
    on: HashSet<String>,
    requests: VecDeque<Request>,
    /// The number of the oldest kept request.
    first: u64,
    counts: Counts,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds the state")
    }

    fn has_switch_file(&self, name: &str) -> bool {
        let folder = self.switches.as_ref();
        folder.is_some_and(|folder| folder.join(name).exists())
    }
}

impl State {
    /// Keeps a request. Returns its number.
    fn remember(&mut self, request: Request) -> u64 {
        self.counts.requests += 1;
        if let Some(fault) = &request.fault {
            *self.counts.faults.entry(fault.clone()).or_default() += 1;
        }
        if self.requests.len() == REQUESTS_KEPT {
            self.requests.pop_front();
            self.first += 1;
        }
        self.requests.push_back(request);
        self.first + self.requests.len() as u64 - 1
    }

    /// Updates a request, if it is still kept.
    fn update(&mut self, number: u64, change: impl FnOnce(&mut Request)) {
        let at = number.checked_sub(self.first);
        if let Some(request) = at.and_then(|at| self.requests.get_mut(at as usize)) {
            change(request);
        }
    }
}

/// An order to be up or down, and the sender for its result.
type Order = (bool, std_mpsc::Sender<std::io::Result<()>>);

/// A running proxy. It stops on drop, and closes its connections.
pub struct Proxy {
    shared: Arc<Shared>,
    url: String,
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy with its own runtime, in front of a server such as `http://127.0.0.1:10000`. Fails if that is not
    /// a loopback URL, the fault script is invalid, or the address is not available.
    pub fn start(upstream: &str, options: Options) -> Result<Self> {
        let listen = options.listen;
        ensure!(
            listen.ip().is_loopback(),
            "cannot listen on {listen}: the proxy serves loopback addresses alone, such as 127.0.0.1:0"
        );
        let server = parse_upstream(upstream)?;
        let mut faults = Faults::new(options.seed);
        faults.push(&options.faults)?;
        let shared = Arc::new(Shared {
            server,
            client: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .set_host(false)
                .http1_preserve_header_case(true)
                .build_http(),
            switches: options.switches,
            state: Mutex::new(State {
                faults,
                on: HashSet::new(),
                requests: VecDeque::new(),
                first: 0,
                counts: Counts::default(),
            }),
        });
        let cannot = || format!("cannot listen on {listen}");
        // Bound but never listening, this reserves the port while connections are refused.
        let place = socket(listen).with_context(cannot)?;
        let address = place.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = {
            let _runtime = runtime.enter();
            socket(address)
                .and_then(|socket| socket.listen(BACKLOG))
                .with_context(cannot)?
        };
        let (orders, received) = mpsc::unbounded_channel();
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(serve(listener, address, serving, received));
            drop(place);
        });
        let proxy = Self {
            shared,
            url: format!("http://{address}"),
            orders: Some(orders),
            thread: Some(thread),
        };
        Ok(proxy)
    }

    /// Returns the proxy's URL, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Adds the rules of a fault script; their `call N` counts from now.
    pub fn push_fault(&self, script: &str) -> Result<()> {
        self.shared.state().faults.push(script)
    }

    /// Removes all fault rules. Requests that already hang or are delayed are not affected.
    pub fn clear_faults(&self) {
        self.shared.state().faults.clear();
    }

    /// Sets a switch, for rules with `while NAME`.
    pub fn set_switch(&self, name: &str, on: bool) {
        let mut state = self.shared.state();
        if on {
            state.on.insert(name.to_owned());
        } else {
            state.on.remove(name);
        }
    }

    /// Sets the proxy down or up. Down, it refuses connections, and has closed all open ones when this returns; a
    /// request in flight to the server still arrives there. Up, it listens on the same port again; an error means that
    /// the port is not available.
    pub fn set_down(&self, down: bool) -> Result<()> {
        let (done, outcome) = std_mpsc::channel();
        let orders = self.orders.as_ref().context("the proxy has stopped")?;
        orders.send((down, done)).context("the proxy has stopped")?;
        outcome
            .recv()
            .context("the proxy has stopped")?
            .with_context(|| format!("cannot listen on {} again", self.url))
    }

    /// Returns all requests since the start (the newest 100,000), in the order of their arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.iter().cloned().collect()
    }

    /// Returns the totals so far.
    pub fn counts(&self) -> Counts {
        self.shared.state().counts.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.orders.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn parse_upstream(upstream: &str) -> Result<Authority> {
    let wrong = || {
        format!(
            "the upstream '{upstream}' must be the root of a plain HTTP server on loopback, such as \
             http://127.0.0.1:10000"
        )
    };
    let uri: Uri = upstream.parse().with_context(wrong)?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let local = host == "localhost"
        || host
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let root = uri.path() == "/" && uri.query().is_none();
    ensure!(
        uri.scheme() == Some(&Scheme::HTTP) && local && root,
        wrong()
    );
    uri.into_parts().authority.with_context(wrong)
}

/// Binds a socket to an address that is shared with others, of which only one listens.
fn socket(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => {
                let Some((down, done)) = order else {
                    return;
                };
                let outcome = match (down, &listener) {
                    (true, _) => {
                        listener = None;
                        connections.shutdown().await;
                        Ok(())
                    }
                    (false, Some(_)) => Ok(()),
                    (false, None) => socket(address).and_then(|socket| socket.listen(BACKLOG)).map(|up| {
                        listener = Some(up);
                    }),
                };
                // The sender of the order may have stopped waiting.
                let _ = done.send(outcome);
            }
            stream = accept(listener.as_ref()) => {
                let _ = stream.set_nodelay(true);
                connections.spawn(exchange::converse(stream, shared.clone()));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Accepts the next connection; pending without a listener.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Probably out of file descriptors, which ending connections will free.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Forwards HTTP requests to a server on loopback, with faults, until SIGINT or SIGTERM.
///
/// The first line is `listening on URL`; at the end it prints its totals.
#[derive(Debug, clap::Args)]
pub struct ProxyArgs {
    /// The server to forward to: plain HTTP, on loopback, such as http://127.0.0.1:10000
    #[arg(long, value_name = "URL")]
    upstream: String,
    #[command(flatten)]
    options: Options,
}

fn faults_help() -> String {
    format!("The fault script: a file with it, or the script itself.\n\n{GRAMMAR}")
}

/// The interval at which the switch `down` in `--switches` is checked.
const LOOK: Duration = Duration::from_millis(50);

/// Runs `ferry-harness proxy`.
pub fn run(args: ProxyArgs) -> Result<ExitCode> {
    // Handle signals before the first line is printed, since its reader may send one at once.
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGINT, libc::SIGTERM])?;
    let mut options = args.options;
    options.faults = from_argument::<Faulty>(options.faults)?;
    let proxy = Proxy::start(&args.upstream, options)?;
    println!("listening on {}", proxy.url());
    std::io::stdout().flush()?;

    let (sender, signalled) = std_mpsc::channel();
    std::thread::spawn(move || signals.forever().next().map(|signal| sender.send(signal)));
    let mut was_down = false;
    while signalled.recv_timeout(LOOK) == Err(std_mpsc::RecvTimeoutError::Timeout) {
        let down = proxy.shared.has_switch_file(DOWN);
        if down != was_down {
            proxy.set_down(down)?;
            was_down = down;
        }
    }
    println!("{}", proxy.counts());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_of_a_plain_server_on_loopback_is_forwarded_to() {
        for good in [
            "http://127.0.0.1:1",
            "http://localhost:1/",
            "http://[::1]:1",
        ] {
            let server = parse_upstream(good).expect(good);
            assert_eq!(server.port_u16(), Some(1));
        }
        for bad in [
            "https://127.0.0.1:1",
            "http://192.0.2.1:1",
            "http://example.com",
            "http://127.0.0.1:1/path",
            "http://127.0.0.1:1?query",
            "127.0.0.1:1",
            "",
        ] {
            let error = format!("{:#}", parse_upstream(bad).expect_err(bad));
            assert!(error.contains("such as http://127.0.0.1:10000"), "{error}");
        }
    }

    #[test]
    fn the_oldest_requests_are_forgotten_and_still_counted() {
        let mut state = State {
            faults: Faults::new(1),
            on: HashSet::new(),
            requests: VecDeque::new(),
            first: 0,
            counts: Counts::default(),
        };
        let numbers = (0..=REQUESTS_KEPT).map(|_| state.remember(Request::default()));
        let numbers: Vec<_> = numbers.collect();
        for &number in [0, 1, REQUESTS_KEPT].map(|at| &numbers[at]).iter().copied() {
            state.update(number, |request| request.status = Some(200));
        }
        let kept = state.requests.iter();
        assert_eq!(kept.filter(|request| request.status.is_some()).count(), 2);
        assert_eq!(state.counts.requests, REQUESTS_KEPT as u64 + 1);
    }
}
