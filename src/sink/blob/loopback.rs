//! A scripted server on the loopback interface, for tests that need a real connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The server's reaction to a request.
pub(crate) enum Reply {
    /// Send this and close.
    Text(String),
    /// Wait for the signal, then reply.
    Late(Receiver<()>, Box<Reply>),
    /// Close without a response.
    Cut,
    /// Send nothing until the script is over and the server dropped.
    Hang,
    /// Send the first text, then the second repeatedly, until the client disconnects or [`ENDLESS`] bytes are sent.
    Endless(String, String),
}

/// The bytes after which an endless reply ends, so that a failing test terminates.
pub(crate) const ENDLESS: usize = 256 * 1024 * 1024;
/// More than fits into buffers, mainly those of both sockets, after the client has disconnected.
pub(crate) const IN_BUFFERS: usize = 64 * 1024 * 1024;

/// A response with an endless body.
pub(crate) fn endless(status: u16, headers: &[(&str, &str)], begin: &str) -> Reply {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let length = match headers.contains("Content-Length") {
        true => "",
        false => "Transfer-Encoding: chunked\r\n",
    };
    let head = format!("HTTP/1.1 {status} X\r\n{headers}{length}\r\n");
    match length {
        "" => Reply::Endless(head + begin, "x".repeat(64 * 1024)),
        _ => {
            let begin = match begin.len() {
                0 => String::new(),
                length => format!("{length:x}\r\n{begin}\r\n"),
            };
            Reply::Endless(
                head + &begin,
                format!("10000\r\n{}\r\n", "x".repeat(64 * 1024)),
            )
        }
    }
}

/// A response with a status, headers, and a body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let length = match headers.contains("Content-Length") {
        true => String::new(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    Reply::Text(format!(
        "HTTP/1.1 {status} X\r\n{headers}{length}Connection: close\r\n\r\n{body}"
    ))
}

/// A server that plays its script, one reply per connection, and then refuses connections.
pub(crate) struct Loopback {
    address: SocketAddr,
    requests: Receiver<String>,
    release: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// The bytes of endless replies that were sent.
    sent: Arc<AtomicUsize>,
}

impl Loopback {
    pub(crate) fn start(script: Vec<Reply>) -> Self {
        Loopback::on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// Starts on IPv6; `None` on a machine without it.
    pub(crate) fn start_v6(script: Vec<Reply>) -> Option<Self> {
        let listener = TcpListener::bind("[::1]:0").ok()?;
        Some(Loopback::on(listener, script))
    }

    fn on(listener: TcpListener, script: Vec<Reply>) -> Self {
        let address = listener.local_addr().unwrap();
        let (seen, requests) = channel();
        let (release, released) = channel::<()>();
        let sent = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&sent);
        let thread = std::thread::spawn(move || {
            let mut hanging = Vec::new();
            for reply in script {
                let Ok((mut stream, _)) = listener.accept() else {
                    return;
                };
                let request = read_request(&stream);
                let ended = request.is_empty();
                let _ = seen.send(request);
                let reply = match reply {
                    Reply::Late(told, reply) if !ended => {
                        let _ = told.recv();
                        *reply
                    }
                    reply => reply,
                };
                match reply {
                    _ if ended => return,
                    Reply::Text(text) => drop(stream.write_all(text.as_bytes())),
                    Reply::Cut | Reply::Late(..) => {}
                    Reply::Hang => hanging.push(stream),
                    Reply::Endless(first, again) => {
                        let mut bytes = first;
                        while counter.load(Ordering::Relaxed) < ENDLESS
                            && stream.write_all(bytes.as_bytes()).is_ok()
                        {
                            counter.fetch_add(bytes.len(), Ordering::Relaxed);
                            bytes.clone_from(&again);
                        }
                    }
                }
            }
            drop(listener);
            if !hanging.is_empty() {
                let _ = released.recv();
            }
        });
        Loopback {
            address,
            requests,
            release: Some(release),
            thread: Some(thread),
            sent,
        }
    }

    /// Ends the script and returns the number of bytes of endless replies that were sent. Requires a runtime with
    /// worker threads, on which connections close.
    pub(crate) fn sent(mut self) -> usize {
        self.end();
        self.sent.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.release.take();
        // Unblocks a script that has not finished.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests since the last call, heads and bodies, in order.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.try_iter().collect()
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.end();
    }
}

fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    let mut length = 0;
    loop {
        let start = request.len();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return String::new();
        }
        let line = request[start..].to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    request + &String::from_utf8_lossy(&body)
}

/// Runs a test again in a child process with other environment variables. Returns true in the child, and false in the
/// parent after the child has passed.
pub(crate) fn with_environment(test: &str, variables: &[(&str, &str)]) -> bool {
    const MARK: &str = "FERRY_TEST_ENVIRONMENT";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let inherited = std::env::vars().filter(|(name, _)| {
        let name = name.to_ascii_uppercase();
        let clouds = ["AWS_", "AZURE_", "IDENTITY_"];
        !clouds.iter().any(|cloud| name.starts_with(cloud)) && !name.ends_with("_PROXY")
    });
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env_clear()
        .envs(inherited)
        .envs([
            (MARK, "1"),
            ("HOME", "/nonexistent"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(
        child.status.success() && output.contains("1 passed"),
        "{output}"
    );
    false
}
