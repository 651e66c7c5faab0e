//! The HTTP endpoint of an output: `/metrics` in Prometheus's text format, `/ready`, `/live` and `/status.json`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
/// The time limit of a connection. The page has a few kilobytes, so a client that is still there has it in milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The maximum number of concurrent connections. One more ends the oldest, which has had time for its request.
const CONNECTIONS: usize = 32;
/// The pause after a failed accept, as when the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(500);

/// <https://www.rfc-editor.org/rfc/rfc8259>
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What is served, made for each request.
pub trait Pages: Send + Sync {
    /// `/metrics`.
    fn metrics(&self) -> String;
    /// `/ready`: whether the output delivers, and the text that says so, or why not.
    fn ready(&self) -> (bool, String);
    /// `/status.json`.
    fn status(&self) -> String;
}

/// Binds the address. Fails if it is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves the pages until the future is dropped.
pub async fn serve(listener: TcpListener, pages: Arc<dyn Pages>) -> io::Result<()> {
    serve_within(listener, pages, PATIENCE).await
}

async fn serve_within(
    listener: TcpListener,
    pages: Arc<dyn Pages>,
    patience: Duration,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    // The oldest is at the front.
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS);
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        open.retain(|task| !task.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let pages = Arc::clone(&pages);
        let task = tokio::spawn(async move {
            let answer = service_fn(|request| {
                std::future::ready(Ok::<_, Infallible>(answer(&request, &*pages)))
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(connection), answer);
            // An error or timeout concerns only this client.
            let _ = timeout(patience, connection).await;
        });
        open.push_back(task.abort_handle());
    }
}

fn answer(request: &Request<Incoming>, pages: &dyn Pages) -> Response<String> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, TEXT, pages.metrics()),
        // That a thread of the output answers is the answer.
        (&Method::GET | &Method::HEAD, "/live") => (StatusCode::OK, TEXT, "live\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/ready") => match pages.ready() {
            (true, text) => (StatusCode::OK, TEXT, text),
            (false, text) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, text),
        },
        (&Method::GET | &Method::HEAD, "/status.json") => (StatusCode::OK, JSON, pages.status()),
        (&Method::GET | &Method::HEAD, _) => {
            let text = "see /metrics, /ready, /live and /status.json\n";
            (StatusCode::NOT_FOUND, TEXT, text.to_owned())
        }
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET\n".to_owned(),
        ),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        answer
    }

    struct Fixed(bool);

    impl Pages for Fixed {
        fn metrics(&self) -> String {
            "figures 1\n".to_owned()
        }

        fn ready(&self) -> (bool, String) {
            (self.0, "why\n".to_owned())
        }

        fn status(&self) -> String {
            "{}\n".to_owned()
        }
    }

    #[tokio::test]
    async fn only_the_pages_are_served() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let taken = bind(address).expect_err("it is taken");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        tokio::spawn(serve(listener, Arc::new(Fixed(true))));
        let page = ask(address, "GET /metrics HTTP/1.1\r\nHost: f\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(
            page.contains("content-type: text/plain; version=0.0.4"),
            "{page}"
        );
        assert!(page.ends_with("\r\n\r\nfigures 1\n"), "{page}");
        for (request, status) in [
            ("HEAD /metrics HTTP/1.1\r\nHost: f\r\n\r\n", "200"),
            ("GET /live HTTP/1.1\r\nHost: f\r\n\r\n", "200"),
            ("GET /ready HTTP/1.1\r\nHost: f\r\n\r\n", "200"),
            ("HEAD /ready HTTP/1.1\r\nHost: f\r\n\r\n", "200"),
            ("GET /status.json HTTP/1.1\r\nHost: f\r\n\r\n", "200"),
            ("GET / HTTP/1.1\r\nHost: f\r\n\r\n", "404"),
            (
                "POST /metrics HTTP/1.1\r\nHost: f\r\nContent-Length: 0\r\n\r\n",
                "405",
            ),
            ("no http\r\n\r\n", "400"),
        ] {
            let answer = ask(address, request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request}: {answer}"
            );
            assert!(!answer.contains("figures"), "{request}: {answer}");
        }
    }

    #[tokio::test]
    async fn an_output_that_is_not_ready_lives_and_says_why() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(Fixed(false))));
        let ready = ask(address, "GET /ready HTTP/1.1\r\nHost: f\r\n\r\n").await;
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        assert!(ready.ends_with("\r\n\r\nwhy\n"), "{ready}");
        let live = ask(address, "GET /live HTTP/1.1\r\nHost: f\r\n\r\n").await;
        assert!(live.starts_with("HTTP/1.1 200 "), "{live}");
        let status = ask(address, "GET /status.json HTTP/1.1\r\nHost: f\r\n\r\n").await;
        assert!(
            status.contains("content-type: application/json\r\n"),
            "{status}"
        );
    }

    /// With a patience that no test outlasts, the places are never given up by time.
    #[tokio::test]
    async fn those_who_never_ask_keep_nobody_from_asking() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let forever = Duration::from_secs(1_000_000);
        tokio::spawn(serve_within(listener, Arc::new(Fixed(true)), forever));
        let mut silent = VecDeque::new();
        for _ in 0..137 {
            silent.push_back(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..3 {
            let page = ask(address, "GET /metrics HTTP/1.1\r\nHost: f\r\n\r\n").await;
            assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
        }
        let mut oldest = silent.pop_front().unwrap();
        let read = oldest.read(&mut [0]).await;
        assert_eq!(read.unwrap_or_default(), 0, "the oldest made room");
    }
}
