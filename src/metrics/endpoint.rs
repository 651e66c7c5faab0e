//! The HTTP endpoint `/metrics`, in Prometheus's text format.

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
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
/// The time limit of a connection. The page has a few kilobytes, so a client that is still there has it in milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The maximum number of concurrent connections; further clients wait.
const CONNECTIONS: usize = 8;
/// The pause after a failed accept, as when the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(500);

/// Renders the page for a request.
pub type Page = Arc<dyn Fn() -> String + Send + Sync>;

/// Binds the address. Fails if it is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves the page until the future is dropped.
pub async fn serve(listener: TcpListener, page: Page) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let Ok((connection, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let page = Arc::clone(&page);
        tokio::spawn(async move {
            let _place = place;
            let answer = service_fn(|request| {
                std::future::ready(Ok::<_, Infallible>(answer(&request, &page)))
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(connection), answer);
            // An error or timeout concerns only this client.
            let _ = timeout(PATIENCE, connection).await;
        });
    }
}

fn answer(request: &Request<Incoming>, page: &Page) -> Response<String> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, page()),
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
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

    #[tokio::test]
    async fn only_the_page_is_served() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let taken = bind(address).expect_err("it is taken");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        tokio::spawn(serve(listener, Arc::new(|| "figures 1\n".to_owned())));
        let page = ask(address, "GET /metrics HTTP/1.1\r\nHost: f\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(
            page.contains("content-type: text/plain; version=0.0.4"),
            "{page}"
        );
        assert!(page.ends_with("\r\n\r\nfigures 1\n"), "{page}");
        for (request, status) in [
            ("HEAD /metrics HTTP/1.1\r\nHost: f\r\n\r\n", "200"),
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
    async fn those_who_never_ask_keep_nobody_from_asking() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(String::new)));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let page = ask(address, "GET /metrics HTTP/1.1\r\nHost: f\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
    }
}
