//! A client's connection, with its requests one after the other.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::uri::{PathAndQuery, Scheme};
use hyper::http::{HeaderMap, Response, Uri, request};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::faults::{Decision, How};
use super::{Request, Shared};

/// The error that closes the connection: hyper closes it when a service fails.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection was cut")
    }
}

impl std::error::Error for Cut {}

/// Serves a connection to its end.
pub(super) async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let tear = Arc::new(AtomicBool::new(false));
    let tearable = Tearable {
        stream,
        tear: tear.clone(),
        torn: false,
    };
    let service = service_fn(move |request| answer(shared.clone(), tear.clone(), request));
    let connection = http1::Builder::new()
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(tearable), service);
    // Each fault that closes the connection ends in an error here.
    let _ = connection.await;
}

async fn answer(
    shared: Arc<Shared>,
    tear: Arc<AtomicBool>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Cut> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let (number, decision) = decide(&shared, &head, body.len());

    let reply = if decision.forwards() {
        // In a task of its own, which continues when the client disconnects.
        let forwarded = forward(shared.clone(), number, decision.delay, head, body);
        tokio::spawn(forwarded).await.map_err(|_| Cut)?
    } else {
        tokio::time::sleep(decision.delay).await;
        page(502)
    };
    tokio::time::sleep(decision.delay_after_forward).await;
    let reply = match decision.end.map(|end| end.how) {
        None => reply,
        Some(How::Status(status, Some(name))) => error(number, status, &name),
        Some(How::Status(status, None)) => page(status),
        Some(How::Cut) => return Err(Cut),
        Some(How::CutMidAnswer) => {
            tear.store(true, Ordering::Relaxed);
            return Ok(reply);
        }
        Some(How::Hang(Some(time))) => {
            tokio::time::sleep(time).await;
            return Err(Cut);
        }
        // hyper drops this when the client disconnects.
        Some(How::Hang(None)) => std::future::pending().await,
    };
    let status = reply.status().as_u16();
    let mut state = shared.state();
    *state.counts.answered.entry(status).or_default() += 1;
    state.update(number, |request| request.status = Some(status));
    Ok(reply)
}

fn decide(shared: &Shared, head: &request::Parts, bytes: usize) -> (u64, Decision) {
    let method = head.method.as_str();
    let path = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let mut state = shared.state();
    let state = &mut *state;
    let on = &state.on;
    let is_on = |switch: &str| on.contains(switch) || shared.has_switch_file(switch);
    let decision = state.faults.decide(method, path, is_on);
    let number = state.remember(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        bytes,
        fault: decision.words(),
        ..Request::default()
    });
    (number, decision)
}

/// Sends a request to the server and waits for its response; without one, returns a gateway's page.
async fn forward(
    shared: Arc<Shared>,
    number: u64,
    delay: std::time::Duration,
    mut head: request::Parts,
    body: Bytes,
) -> Response<Full<Bytes>> {
    tokio::time::sleep(delay).await;
    remove_connection_headers(&mut head.headers, &[]);
    let mut uri = head.uri.into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(shared.server.clone());
    uri.path_and_query
        .get_or_insert(PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(uri).expect("it has all its parts");
    {
        let mut state = shared.state();
        state.counts.forwarded += 1;
        state.update(number, |request| request.forwarded = true);
    }
    let sent = shared
        .client
        .request(hyper::Request::from_parts(head, Full::new(body)));
    let (mut head, body) = match sent.await {
        Ok(answer) => answer.into_parts(),
        Err(error) => {
            if error.is_connect() {
                let mut state = shared.state();
                state.counts.forwarded -= 1;
                state.update(number, |request| request.forwarded = false);
            }
            return page(502);
        }
    };
    let status = head.status.as_u16();
    shared
        .state()
        .update(number, |request| request.upstream_status = Some(status));
    let Ok(body) = body.collect().await else {
        return page(502);
    };
    // The length of a chunked body is known by now.
    remove_connection_headers(&mut head.headers, &[header::TRANSFER_ENCODING]);
    Response::from_parts(head, Full::new(body.to_bytes()))
}

/// The hop-by-hop headers (<https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1>).
fn remove_connection_headers(headers: &mut HeaderMap, more: &[HeaderName]) {
    let own = [
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    for name in own.iter().chain(more) {
        headers.remove(name);
    }
}

/// Creates an error in Azure's format; S3's XML is the same.
fn error(number: u64, status: u16, name: &str) -> Response<Full<Bytes>> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{name}</Code>\
         <Message>This fault was asked for.</Message></Error>"
    );
    let mut reply = respond(status, "application/xml", body);
    let text = |text: String| HeaderValue::try_from(text).ok();
    let id = text(format!("00000000-0000-4000-8000-{number:012x}"));
    for (header, value) in [
        ("x-ms-error-code", text(name.to_owned())),
        ("x-ms-request-id", id),
    ] {
        if let Some(value) = value {
            reply.headers_mut().insert(header, value);
        }
    }
    reply
}

/// Creates the HTML page of a gateway or load balancer for this status.
fn page(status: u16) -> Response<Full<Bytes>> {
    let body = format!("<html><body><h1>{status}</h1></body></html>");
    respond(status, "text/html", body)
}

fn respond(status: u16, content_type: &str, body: String) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .body(Full::from(body))
        .expect("the status and type of the content are well formed")
}

/// A connection that can be closed in the middle of a write.
struct Tearable {
    stream: TcpStream,
    /// Whether only half of the next write is passed on.
    tear: Arc<AtomicBool>,
    torn: bool,
}

impl AsyncRead for Tearable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// Not vectored, so that hyper writes head and body together, and half of that is the middle of the response.
impl AsyncWrite for Tearable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.torn {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let tear = self.tear.load(Ordering::Relaxed);
        let part = if tear {
            &data[..data.len().div_ceil(2)]
        } else {
            data
        };
        let written = Pin::new(&mut self.stream).poll_write(cx, part);
        self.torn = tear && written.is_ready();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
