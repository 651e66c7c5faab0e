//! A fake Azure Blob service on the loopback interface, for benchmarks. It accepts whole blobs and blobs in blocks, and
//! any signature, and uses little CPU time.
//!
//! It counts the lines of committed blobs, and does not keep their bytes.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH, LAST_MODIFIED};
use hyper::http::request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::ledger::{Delivery, Ledger, Report, SeqKey};

/// The requests that the service received, and the committed blobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The number of requests by kind, including refused ones: `Put Blob`, `Put Block`, `Put Block List`, `Get Blob
    /// Properties`, `container` or `unknown`.
    pub requests: BTreeMap<&'static str, u64>,
    /// The bytes of all request bodies.
    pub wire_bytes: u64,
    /// The number of committed blobs.
    pub blobs: u64,
    /// The bytes in them.
    pub stored_bytes: u64,
}

impl Usage {
    fn count(&mut self, operation: &'static str, bytes: usize) {
        *self.requests.entry(operation).or_default() += 1;
        self.wire_bytes += bytes as u64;
    }
}

/// A running service. It stops on drop, and closes its connections.
pub struct FakeBlobs {
    shared: Arc<Shared>,
    url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    seq_key: SeqKey,
    latency: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    usage: Usage,
    /// The uncommitted blocks, by blob and id.
    blocks: HashMap<String, HashMap<String, Bytes>>,
    blobs: BTreeMap<String, Blob>,
}

struct Blob {
    length: u64,
    /// The headers of a response to HEAD.
    metadata: HeaderMap,
    lines: Delivery,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds the state")
    }
}

impl FakeBlobs {
    /// Starts a service with this latency on a free port. `seq_key` is the key of a line's number. Fails if no port is
    /// available.
    pub fn start(seq_key: &str, latency: Duration) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0");
        let listener = listener.context("cannot listen on 127.0.0.1")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            seq_key: SeqKey::from(seq_key),
            latency,
            state: Mutex::default(),
        });
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, serving) => {}
                }
            });
        });
        Ok(Self {
            shared,
            url,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns the endpoint of every account, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the requests so far.
    pub fn usage(&self) -> Usage {
        self.shared.state().usage.clone()
    }

    /// Returns the number of lines in the blobs committed so far.
    pub fn lines(&self) -> u64 {
        let state = self.shared.state();
        state.blobs.values().map(|blob| blob.lines.lines()).sum()
    }

    /// Returns a summary of the blobs committed so far; see [`Ledger::report`].
    pub fn report(&self, expect: Option<u64>) -> Report {
        let mut ledger = Ledger::default();
        for blob in self.shared.state().blobs.values() {
            ledger.add("blobs", &blob.lines);
        }
        ledger.report(expect)
    }
}

impl Drop for FakeBlobs {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("a listening socket that does not block");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Probably out of file descriptors, which ending connections will free.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(shared.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Ignore clients that disconnect.
            let _ = connection.await;
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(refuse(StatusCode::BAD_REQUEST, "IncompleteBody")),
    };
    let response = take(&shared, &head, body);
    tokio::time::sleep(shared.latency).await;
    Ok(response)
}

/// Handles a request.
fn take(shared: &Shared, head: &request::Parts, body: Bytes) -> Response<Full<Bytes>> {
    let query = head.uri.query().unwrap_or_default();
    let query: HashMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
    let about = |key: &str| query.get(key).map_or("", |value| value.as_ref());
    let name = head.uri.path().to_owned();
    let operation = match (&head.method, about("restype"), about("comp")) {
        (_, "container", _) => "container",
        (&Method::PUT, _, "block") => "Put Block",
        (&Method::PUT, _, "blocklist") => "Put Block List",
        (&Method::PUT, _, "") => "Put Blob",
        (&Method::HEAD, _, "") => "Get Blob Properties",
        _ => "unknown",
    };
    shared.state().usage.count(operation, body.len());
    match operation {
        "container" if head.method == Method::PUT => created(),
        "container" => reply(StatusCode::OK, Bytes::new()),
        "Put Block" => {
            let mut state = shared.state();
            let blocks = state.blocks.entry(name).or_default();
            blocks.insert(about("blockid").to_owned(), body);
            created()
        }
        "Put Block List" => {
            let waiting = shared.state().blocks.remove(&name).unwrap_or_default();
            let list = String::from_utf8_lossy(&body);
            let mut whole = Vec::new();
            for id in block_ids(&list) {
                match waiting.get(id) {
                    Some(block) => whole.extend_from_slice(block),
                    None => return refuse(StatusCode::BAD_REQUEST, "InvalidBlockList"),
                }
            }
            commit(shared, head, name, &whole)
        }
        "Put Blob" => commit(shared, head, name, &body),
        "Get Blob Properties" => match shared.state().blobs.get(&name) {
            Some(blob) => {
                let mut found = reply(StatusCode::OK, Bytes::new());
                let headers = found.headers_mut();
                headers.extend(blob.metadata.clone());
                headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.length));
                found
            }
            None => refuse(StatusCode::NOT_FOUND, "BlobNotFound"),
        },
        _ => refuse(StatusCode::BAD_REQUEST, "UnsupportedQueryParameter"),
    }
}

/// Writes a blob, or overwrites it unless the request forbids that.
fn commit(
    shared: &Shared,
    head: &request::Parts,
    name: String,
    whole: &[u8],
) -> Response<Full<Bytes>> {
    // Read without the lock, so that others do not wait.
    let mut lines = Delivery::default();
    lines.add(&name, whole, &shared.seq_key);
    let metadata = head.headers.iter();
    let metadata = metadata.filter(|(name, _)| name.as_str().starts_with("x-ms-meta-"));
    let blob = Blob {
        length: whole.len() as u64,
        metadata: metadata.map(|(k, v)| (k.clone(), v.clone())).collect(),
        lines,
    };
    let mut state = shared.state();
    let create_only = head.headers.get(IF_NONE_MATCH).is_some_and(|v| v == "*");
    if create_only && state.blobs.contains_key(&name) {
        return refuse(StatusCode::CONFLICT, "BlobAlreadyExists");
    }
    state.usage.stored_bytes += blob.length;
    if let Some(before) = state.blobs.insert(name, blob) {
        state.usage.stored_bytes -= before.length;
    }
    state.usage.blobs = state.blobs.len() as u64;
    created()
}

/// Returns the ids of a block list in order, from any of its lists.
fn block_ids(list: &str) -> impl Iterator<Item = &str> {
    let places = ["<Latest>", "<Uncommitted>", "<Committed>"];
    list.split("</").filter_map(move |piece| {
        let found = places.iter().find_map(|place| piece.split_once(place));
        found.map(|(_, id)| id.trim())
    })
}

fn created() -> Response<Full<Bytes>> {
    reply(StatusCode::CREATED, Bytes::new())
}

fn refuse(status: StatusCode, code: &'static str) -> Response<Full<Bytes>> {
    let body =
        format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code></Error>");
    let mut refusal = reply(status, body.into());
    let name = HeaderName::from_static("x-ms-error-code");
    refusal
        .headers_mut()
        .insert(name, HeaderValue::from_static(code));
    refusal
}

fn reply(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(ETAG, HeaderValue::from_static("\"0x8D000000000000\""));
    let date = HeaderValue::from_static("Wed, 01 Jan 2025 00:00:00 GMT");
    headers.insert(LAST_MODIFIED, date);
    reply
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn blobs() -> FakeBlobs {
        FakeBlobs::start("seq", Duration::ZERO).unwrap()
    }

    /// Sends a request on a new connection. Returns the status and the whole response.
    fn send(
        blobs: &FakeBlobs,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> (u16, String) {
        let address = blobs.url().strip_prefix("http://").unwrap();
        let mut connection = TcpStream::connect(address).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\
             content-length: {length}\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).unwrap();
        connection.write_all(body).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    fn status(blobs: &FakeBlobs, method: &str, path: &str, body: &[u8]) -> u16 {
        send(blobs, method, path, "", body).0
    }

    #[test]
    fn blocks_count_once_their_list_is_put_in_the_list_s_order() {
        let blobs = blobs();
        assert_eq!(
            status(&blobs, "GET", "/acc/logs?restype=container", b""),
            200
        );
        // The ids are base64, escaped in the query and unescaped in the list.
        let block = "/acc/logs/app.1?blockid=Zmx%3D&comp=block";
        assert_eq!(status(&blobs, "PUT", block, b"\"seq\":0}\n"), 201);
        let block = "/acc/logs/app.1?comp=block&blockid=YWI%3D";
        assert_eq!(status(&blobs, "PUT", block, b"{"), 201);
        assert_eq!(blobs.report(Some(1)).missing, 1);

        let list = "<?xml version=\"1.0\"?><BlockList>\n <Uncommitted>YWI=</Uncommitted>\n \
                    <Latest>Zmx=</Latest>\n</BlockList>";
        let path = "/acc/logs/app.1?comp=blocklist";
        assert_eq!(status(&blobs, "PUT", path, list.as_bytes()), 201);
        let report = blobs.report(Some(1));
        assert!(report.is_exact(), "{report}");
        let usage = blobs.usage();
        assert_eq!((usage.blobs, usage.stored_bytes), (1, 10));
        assert_eq!(usage.wire_bytes, 10 + list.len() as u64);
        assert_eq!(usage.requests["Put Block"], 2);
    }

    #[test]
    fn a_list_of_blocks_that_never_came_is_refused() {
        let blobs = blobs();
        let list = b"<BlockList><Latest>Zmx=</Latest></BlockList>";
        let (status, answer) = send(&blobs, "PUT", "/acc/logs/a?comp=blocklist", "", list);
        assert_eq!(status, 400);
        assert!(
            answer.contains("x-ms-error-code: InvalidBlockList"),
            "{answer}"
        );
        assert_eq!(blobs.usage().blobs, 0);
    }

    #[test]
    fn a_whole_blob_is_created_once_and_tells_its_metadata() {
        let blobs = blobs();
        let headers = "if-none-match: *\r\nx-ms-blob-type: BlockBlob\r\nx-ms-meta-token: ours\r\n";
        let line = b"{\"seq\":0}\n";
        assert_eq!(send(&blobs, "PUT", "/acc/logs/a", headers, line).0, 201);
        let (status, answer) = send(&blobs, "PUT", "/acc/logs/a", headers, line);
        assert_eq!(status, 409);
        assert!(
            answer.contains("x-ms-error-code: BlobAlreadyExists"),
            "{answer}"
        );
        let (status, answer) = send(&blobs, "HEAD", "/acc/logs/a", "", b"");
        assert_eq!(status, 200);
        for header in ["x-ms-meta-token: ours", "content-length: 10", "etag: "] {
            assert!(answer.contains(header), "{header}: {answer}");
        }
        assert_eq!(send(&blobs, "HEAD", "/acc/logs/b", "", b"").0, 404);
        assert!(blobs.report(Some(1)).is_exact());
    }

    #[test]
    fn a_blob_that_is_written_anew_counts_as_it_is_now() {
        let blobs = blobs();
        for line in ["{\"seq\":7}\n{\"seq\":8}\n", "{\"seq\":0}\n"] {
            assert_eq!(status(&blobs, "PUT", "/acc/logs/a", line.as_bytes()), 201);
        }
        assert!(blobs.report(Some(1)).is_exact());
        let usage = blobs.usage();
        assert_eq!((usage.blobs, usage.stored_bytes), (1, 10));
        assert_eq!(status(&blobs, "DELETE", "/acc/logs/a", b""), 400);
    }
}
