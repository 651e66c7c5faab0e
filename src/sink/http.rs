//! The HTTP client for all services, stores and token services. It bounds the size of responses:
//!
//! - The **body of an error** is read up to [`ERROR_BYTES`], and the rest ignored: codes and messages come first.
//! - The **body of a success** may have the size in the request's extensions ([`BodyLimit`]), by default
//!   [`RESPONSE_BYTES`]. A longer one is an error, [`BodyTooLong`]: the request may have been processed, but its
//!   result is unknown.
//! - The **head** may have [`HEAD_BYTES`] and, by hyper's own limit, 100 headers.
//! - There may be [`INTERIM_RESPONSES`] **interim responses** (100 Continue), which hyper would read without limit.
//!   When there are more, it has buffered at most 128 × [`HEAD_BYTES`].
//!
//! The client uses HTTP/1.1 only: every destination supports it, and the last two bounds are those of its parser. It
//! has no timeout for responses; callers set their own.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::http::Extensions;
use hyper::http::header::PROXY_AUTHORIZATION;
use hyper::http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{
    Connected, Connection, HttpConnector, capture_connection,
};
use hyper_util::client::legacy::{self, Builder};
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tower_service::Service;

use super::proxy;
use crate::config::Problem;

/// The bytes of an error's body that are read.
pub(crate) const ERROR_BYTES: usize = 64 * 1024;
/// The longest body of a success, in bytes, without a [`BodyLimit`]: enough for a put or a token.
pub(crate) const RESPONSE_BYTES: usize = 64 * 1024;
/// The longest head of a response, in bytes, and the largest read buffer.
const HEAD_BYTES: usize = 64 * 1024;
/// The most responses of status 1xx to one request. Servers usually send one, and only to requests that expect it,
/// which ours do not.
const INTERIM_RESPONSES: usize = 16;

/// The idle time before TCP keepalive probes, and between them.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;
/// `TCP_USER_TIMEOUT`: the longest time that sent data may stay unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The time after which a connection is not used again, since its name may have another address by then. A name of AWS
/// is valid for a minute, but a connection costs a TLS handshake.
const CONNECTION_LIFE: Duration = Duration::from_secs(5 * 60);
/// The longest time that a connection is kept without a request: shorter than the idle timeouts of load balancers and
/// proxies (60 s at an AWS Application Load Balancer), which otherwise close it under a request. hyper sends a request
/// again at once if the connection was closed before any of it was written; later, its fate is unknown.
const IDLE: Duration = Duration::from_secs(30);

type BoxError = Box<dyn StdError + Send + Sync>;

/// The longest body of a success, in bytes: a request extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimit(pub(crate) usize);

/// The use of proxies.
#[derive(Clone, Debug)]
pub(crate) enum Proxies {
    /// Use the proxies of the environment.
    Environment(Arc<proxy::Environment>),
    /// Always connect directly.
    None,
}

impl Proxies {
    /// Reads the environment.
    pub(crate) fn from_environment() -> Result<Proxies, Problem> {
        Ok(Proxies::Environment(Arc::new(proxy::Environment::read()?)))
    }
}

/// A client with its own connection pool, which clones share.
pub(crate) struct Client<B> {
    inner: legacy::Client<ConnectTimeout<HttpsConnector<Route>>, B>,
    route: Route,
    /// The age from which a connection is not used again.
    life: Duration,
}

impl<B> Client<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// Creates a client with `tls` for HTTPS and a timeout for connecting.
    pub(crate) fn new(
        tls: &Arc<ClientConfig>,
        proxies: &Proxies,
        connect_timeout: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let route = Route {
            tcp,
            tls: Arc::clone(tls),
            proxies: proxies.clone(),
        };
        Client::with_route(route, connect_timeout, CONNECTION_LIFE)
    }

    fn with_route(route: Route, connect_timeout: Duration, life: Duration) -> Self {
        let connector = ConnectTimeout {
            inner: HttpsConnector::from((route.clone(), Arc::clone(&route.tls))),
            limit: connect_timeout,
        };
        let inner = Builder::new(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(HEAD_BYTES)
            .build(connector);
        Client { inner, route, life }
    }

    /// Sends a request and reads the head of the response; the body is read on demand.
    pub(crate) async fn send(
        &self,
        mut request: Request<B>,
    ) -> Result<Response<BoundedBody>, BoxError> {
        let limit = request.extensions().get().copied();
        let BodyLimit(limit) = limit.unwrap_or(BodyLimit(RESPONSE_BYTES));
        if let Some(proxy) = self.route.forwards(request.uri())
            && let Some(authorization) = proxy.basic_auth()
        {
            request
                .headers_mut()
                .entry(PROXY_AUTHORIZATION)
                .or_insert_with(|| authorization.clone());
        }
        let interim = Arc::new(InterimCount::default());
        let counted = Arc::clone(&interim);
        hyper::ext::on_informational(&mut request, move |_| counted.increment());
        let connection = capture_connection(&mut request);
        let answer = tokio::select! {
            biased;
            () = interim.too_many.notified() => return Err(Box::new(TooManyInterim)),
            answer = self.inner.request(request) => answer?,
        };
        if let Some(connected) = &*connection.connection_metadata() {
            let mut extras = Extensions::new();
            connected.get_extras(&mut extras);
            let opened = extras.get::<Opened>();
            if opened.is_some_and(|Opened(at)| at.elapsed() >= self.life) {
                connected.poison();
            }
        }
        let failed = !answer.status().is_success();
        Ok(answer.map(|body| BoundedBody {
            body,
            left: if failed { ERROR_BYTES } else { limit },
            excess: if failed {
                Excess::Ignore
            } else {
                Excess::Error(limit)
            },
            exceeded: false,
        }))
    }
}

impl<B> Clone for Client<B> {
    fn clone(&self) -> Self {
        Client {
            inner: self.inner.clone(),
            route: self.route.clone(),
            life: self.life,
        }
    }
}

impl<B> fmt::Debug for Client<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// A counter of interim responses. hyper offers no way to stop reading them, so the request has to be dropped.
#[derive(Default)]
struct InterimCount {
    seen: AtomicUsize,
    too_many: Notify,
}

impl InterimCount {
    fn increment(&self) {
        if self.seen.fetch_add(1, Ordering::Relaxed) == INTERIM_RESPONSES {
            self.too_many.notify_one();
        }
    }
}

/// An error: more interim responses than [`INTERIM_RESPONSES`].
#[derive(Debug, thiserror::Error)]
#[error("more than {INTERIM_RESPONSES} interim responses and no final one")]
pub(crate) struct TooManyInterim;

/// An error: the body of a success exceeds the limit.
#[derive(Debug, thiserror::Error)]
#[error("the response is longer than {0} bytes")]
pub(crate) struct BodyTooLong(usize);

/// Returns an error and its chain of causes, including those wrapped in an [`io::Error`], which `source` omits.
pub(crate) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

/// Whether an error's causes prove that no part of the request was received.
pub(crate) fn was_not_sent(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|cause| {
        let connecting = cause
            .downcast_ref::<legacy::Error>()
            .is_some_and(legacy::Error::is_connect);
        let never_written = cause
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_canceled);
        let refused = cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        connecting || never_written || refused
    })
}

/// Whether a request failed because this process, or the machine, has no descriptor left for a socket or a file.
pub(crate) fn is_out_of_descriptors(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|cause| {
        let code = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        code.is_some_and(|code| {
            [Errno::MFILE, Errno::NFILE]
                .map(Errno::raw_os_error)
                .contains(&code)
        })
    })
}

/// The handling of a body beyond its limit.
#[derive(Clone, Copy, Debug)]
enum Excess {
    /// End the body.
    Ignore,
    /// Fail with [`BodyTooLong`] and this limit.
    Error(usize),
}

/// A body with a size limit.
#[derive(Debug)]
pub(crate) struct BoundedBody<B = Incoming> {
    body: B,
    left: usize,
    excess: Excess,
    exceeded: bool,
}

impl<B> Body for BoundedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.exceeded {
            let Excess::Error(limit) = std::mem::replace(&mut self.excess, Excess::Ignore) else {
                return Poll::Ready(None);
            };
            return Poll::Ready(Some(Err(Box::new(BodyTooLong(limit)))));
        }
        let mut data = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            },
        };
        if data.len() > self.left {
            self.exceeded = true;
            data.truncate(self.left);
        }
        self.left -= data.len();
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match self.excess {
            Excess::Ignore => self.exceeded || self.body.is_end_stream(),
            Excess::Error(_) => !self.exceeded && self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.size_hint();
        match hint.upper() {
            Some(upper) if upper <= self.left as u64 => hint,
            _ => SizeHint::default(),
        }
    }
}

/// A connector to destinations, directly or through a proxy. TLS with the destination is layered on top.
#[derive(Clone)]
struct Route {
    tcp: HttpConnector,
    tls: Arc<ClientConfig>,
    proxies: Proxies,
}

impl Route {
    fn proxy(&self, destination: &Uri) -> Option<Intercept> {
        match &self.proxies {
            Proxies::Environment(environment) => environment.proxy(destination),
            Proxies::None => None,
        }
    }

    /// Returns the proxy that forwards a plain HTTP request.
    fn forwards(&self, destination: &Uri) -> Option<Intercept> {
        let plain = destination.scheme() == Some(&Scheme::HTTP);
        plain.then(|| self.proxy(destination)).flatten()
    }
}

impl Service<Uri> for Route {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        let Some(proxy) = self.proxy(&destination) else {
            return Box::pin(async move {
                let stream = MaybeHttpsStream::Http(tcp.call(destination).await?);
                Ok(Stream::new(stream, false))
            });
        };
        // The proxy's own address may be HTTPS.
        let mut to_proxy = HttpsConnector::from((tcp, Arc::clone(&self.tls)));
        let forwards = destination.scheme() == Some(&Scheme::HTTP);
        Box::pin(async move {
            let stream = if forwards {
                to_proxy.call(proxy.uri().clone()).await?
            } else {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
                if let Some(authorization) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                tunnel.call(destination).await?
            };
            Ok(Stream::new(stream, forwards))
        })
    }
}

/// A connection to a destination, or to the proxy that forwards requests to it.
struct Stream {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    forwards: bool,
    opened: Opened,
}

/// The time at which a connection was opened.
#[derive(Clone, Copy, Debug)]
struct Opened(Instant);

impl Stream {
    fn new(stream: MaybeHttpsStream<TokioIo<TcpStream>>, forwards: bool) -> Stream {
        Stream {
            stream,
            forwards,
            opened: Opened(Instant::now()),
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = self.stream.connected().proxy(self.forwards);
        connected.extra(self.opened)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A connector with a timeout.
#[derive(Clone)]
struct ConnectTimeout<C> {
    inner: C,
    limit: Duration,
}

impl<C> Service<Uri> for ConnectTimeout<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.limit, self.inner.call(destination));
        let limit = self.limit;
        Box::pin(async move {
            connecting.await.unwrap_or_else(|_| {
                let message = format!("no connection within {limit:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    /// Returns the number of bytes read of a body in pieces, and whether it ended without an error.
    async fn read(
        pieces: impl Iterator<Item = usize> + Send,
        left: usize,
        excess: Excess,
    ) -> (usize, bool) {
        let frame = |length| Ok::<_, io::Error>(Frame::data(Bytes::from(vec![0; length])));
        let mut body = BoundedBody {
            body: StreamBody::new(futures::stream::iter(pieces.map(frame))),
            left,
            excess,
            exceeded: false,
        };
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => read += frame.into_data().unwrap().len(),
                Err(error) => {
                    assert!(error.is::<BodyTooLong>(), "{error}");
                    assert_eq!(
                        error.to_string(),
                        format!("the response is longer than {left} bytes")
                    );
                    return (read, false);
                }
            }
        }
        (read, true)
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_and_no_further() {
        let error = Excess::Error(10);
        let table: [(&[usize], Excess, (usize, bool)); 10] = [
            (&[], error, (0, true)),
            (&[4, 5], error, (9, true)),
            (&[4, 6], error, (10, true)),
            (&[4, 6, 0], error, (10, true)),
            (&[4, 6, 1], error, (10, false)),
            (&[4, 7], error, (10, false)),
            (&[11], error, (10, false)),
            (&[4, 6], Excess::Ignore, (10, true)),
            (&[4, 7, 1], Excess::Ignore, (10, true)),
            (&[11], Excess::Ignore, (10, true)),
        ];
        for (pieces, excess, expected) in table {
            let read = read(pieces.iter().copied(), 10, excess).await;
            assert_eq!(read, expected, "{pieces:?} {excess:?}");
        }
        let endless = || std::iter::repeat(1_000);
        assert_eq!(
            read(endless(), ERROR_BYTES, Excess::Ignore).await,
            (ERROR_BYTES, true)
        );
        let limit = RESPONSE_BYTES;
        assert!(!read(endless(), limit, Excess::Error(limit)).await.1);
    }

    /// A proxy for one connection, which reports the head of its request and forwards the rest.
    fn proxy() -> (String, std::sync::mpsc::Receiver<String>) {
        use std::io::{BufRead as _, BufReader, Write as _, copy};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(client.try_clone().unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            let target = head.split(' ').nth(1).unwrap().to_owned();
            tell.send(head).unwrap();
            let mut server = std::net::TcpStream::connect(target).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let mut back = (server.try_clone().unwrap(), client);
            std::thread::spawn(move || copy(&mut back.0, &mut back.1));
            let _ = copy(&mut reader, &mut server);
        });
        (address, told)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn tls_goes_through_a_proxy_to_the_destination_itself() {
        use ferry_harness::firehose::{FakeFirehose, Options};
        let server = FakeFirehose::start(Options {
            tls: true,
            ..Options::default()
        })
        .unwrap();
        let (address, told) = proxy();
        let environment = proxy::Environment::of(|name| {
            (name == "HTTP_PROXY").then(|| format!("http://u:p@{address}"))
        });
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let ca_pem = server.ca_pem().map(str::as_bytes);
        let route = Route {
            tcp,
            tls: crate::sink::tls::client_config(ca_pem).unwrap(),
            proxies: Proxies::Environment(Arc::new(environment.unwrap())),
        };
        let client = Client::with_route(route, Duration::from_secs(60), CONNECTION_LIFE);
        let request = Request::get(server.url()).body(String::new()).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status(), 400, "the service's own refusal");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body.starts_with(b"{"), "{body:?}");
        let head = told.recv().unwrap();
        let host = server.url().trim_start_matches("https://");
        assert!(
            head.starts_with(&format!("CONNECT {host} HTTP/1.1\r\n")),
            "{head}"
        );
        assert!(
            head.to_ascii_lowercase()
                .contains("proxy-authorization: basic dtpw\r\n"),
            "{head}"
        );
    }

    /// A client without a proxy, whose connections live that long.
    fn client(life: Duration) -> Client<String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let route = Route {
            tcp,
            tls: crate::sink::tls::client_config(None).unwrap(),
            proxies: Proxies::None,
        };
        Client::with_route(route, Duration::from_secs(60), life)
    }

    async fn get(client: &Client<String>, url: &str) -> Result<(), BoxError> {
        let request = Request::get(url).body(String::new())?;
        let answer = client.send(request).await?;
        answer.into_body().collect().await?;
        Ok(())
    }

    /// Reads the head of a request; false at the end of the connection.
    fn read_head(stream: &mut std::net::TcpStream) -> bool {
        use std::io::Read as _;
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return false,
            }
        }
        true
    }

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_connection_is_not_used_beyond_its_life() {
        use std::io::Write as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let opened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&opened);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    while read_head(&mut stream) && stream.write_all(ANSWER).is_ok() {}
                });
            }
        });
        const REQUESTS: usize = 20;
        for life in [Duration::MAX, Duration::ZERO] {
            let before = opened.load(Ordering::SeqCst);
            let client = client(life);
            for _ in 0..REQUESTS {
                get(&client, &url).await.unwrap();
            }
            let used = opened.load(Ordering::SeqCst) - before;
            assert_eq!(
                used == REQUESTS,
                life == Duration::ZERO,
                "{used} connections"
            );
        }
    }

    /// As a load balancer does with a connection that was idle for too long.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_connection_that_was_cut_while_it_was_idle_costs_nothing() {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (tell, told) = tokio::sync::oneshot::channel();
        let server = std::thread::spawn(move || {
            let (mut first, _) = listener.accept().unwrap();
            assert!(read_head(&mut first));
            first.write_all(ANSWER).unwrap();
            first.shutdown(std::net::Shutdown::Write).unwrap();
            // The client has noticed once it closes its side.
            let rest = first.read(&mut [0]);
            tell.send(matches!(rest, Ok(0) | Err(_))).unwrap();
            let (mut second, _) = listener.accept().unwrap();
            assert!(read_head(&mut second));
            second.write_all(ANSWER).unwrap();
        });
        let client = client(Duration::MAX);
        get(&client, &url).await.unwrap();
        assert!(told.await.unwrap(), "nothing was sent on it");
        get(&client, &url).await.unwrap();
        server.join().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_request_that_was_written_to_a_cut_connection_is_not_known_to_be_lost() {
        use std::io::Write as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), requests) = (stream, Arc::clone(&requests)) else {
                    return;
                };
                // The first request has an answer, on whichever connection; the second is read, and no more.
                std::thread::spawn(move || {
                    while read_head(&mut stream)
                        && requests.fetch_add(1, Ordering::SeqCst) == 0
                        && stream.write_all(ANSWER).is_ok()
                    {}
                });
            }
        });
        let client = client(Duration::MAX);
        get(&client, &url).await.unwrap();
        let error = get(&client, &url).await.unwrap_err();
        assert!(!was_not_sent(&*error), "{error}");
    }
}
