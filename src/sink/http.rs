//! The one HTTP client: services, stores and token services are all asked through it, and so what an answer may
//! cost is bounded here, whoever gives it and whoever asked.
//!
//! - Of an **error's body** [`ERROR_BYTES`] are read, and the rest is left: words and codes stand at its front.
//! - A **success's body** may be as long as the asker says in the request's extensions ([`AtMost`]), or else
//!   [`ANSWER_BYTES`]. One that is longer is an error of its own, [`TooLong`]: the request may have been taken,
//!   and what it answered is not known.
//! - **Heads** may have [`HEAD_BYTES`] and, by hyper's own limit, 100 headers.
//! - **Interim answers** (100 Continue) may be [`INTERIM_ANSWERS`]: hyper would read them for ever. What it had begun to
//!   read when they became too many are at most 128 buffers of [`HEAD_BYTES`].
//!
//! HTTP/1.1 alone: every destination speaks it, and the last two bounds are those of its parser.
//! Nothing here limits the time of an answer; those who ask do.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::http::header::PROXY_AUTHORIZATION;
use hyper::http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::legacy::{self, Builder};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tower_service::Service;

/// Bytes that are read of the body of an error.
pub(crate) const ERROR_BYTES: usize = 64 * 1024;
/// The longest body of a success, in bytes, where the request does not say [`AtMost`]: what a put answers, or a token.
pub(crate) const ANSWER_BYTES: usize = 64 * 1024;
/// The longest head of an answer, in bytes, and what is read at once of one that is longer.
const HEAD_BYTES: usize = 64 * 1024;
/// Answers of status 1xx to one request. One is usual, to a request that waits for it; ours do not.
const INTERIM_ANSWERS: usize = 16;

/// Probes of a connection on which nothing comes, and how long what was sent may stay without a sign of having arrived.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

type BoxError = Box<dyn StdError + Send + Sync>;

/// The longest body of a success, in bytes; to be put into a request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtMost(pub(crate) usize);

/// Whether requests may go by way of the environment's proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxies {
    /// By the proxy that `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` name for the destination. Never to
    /// the metadata services of clouds.
    FromEnvironment,
    /// Always straight to the destination.
    None,
}

/// A client with its own pool of connections; clones share it.
pub(crate) struct Client<B> {
    inner: legacy::Client<InTime<HttpsConnector<Way>>, B>,
    way: Way,
}

impl<B> Client<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// A client that trusts as `tls` says, and gives up to connect after `connect_timeout`.
    pub(crate) fn new(
        tls: &Arc<ClientConfig>,
        proxies: Proxies,
        connect_timeout: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let matcher = match proxies {
            Proxies::FromEnvironment => Some(Arc::new(Matcher::from_env())),
            Proxies::None => None,
        };
        let way = Way {
            tcp,
            tls: Arc::clone(tls),
            proxies: matcher,
        };
        Client::by(way, connect_timeout)
    }

    fn by(way: Way, connect_timeout: Duration) -> Self {
        let connector = InTime {
            inner: HttpsConnector::from((way.clone(), Arc::clone(&way.tls))),
            limit: connect_timeout,
        };
        let inner = Builder::new(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(HEAD_BYTES)
            .build(connector);
        Client { inner, way }
    }

    /// Sends a request; the answer's head is read, its body as it is asked for.
    pub(crate) async fn ask(&self, mut request: Request<B>) -> Result<Response<Bounded>, BoxError> {
        let most = request.extensions().get().copied();
        let AtMost(most) = most.unwrap_or(AtMost(ANSWER_BYTES));
        if let Some(proxy) = self.way.forwards(request.uri())
            && let Some(authorization) = proxy.basic_auth()
        {
            request
                .headers_mut()
                .entry(PROXY_AUTHORIZATION)
                .or_insert_with(|| authorization.clone());
        }
        let interim = Arc::new(Interim::default());
        let counted = Arc::clone(&interim);
        hyper::ext::on_informational(&mut request, move |_| counted.one());
        let answer = tokio::select! {
            biased;
            () = interim.too_many.notified() => return Err(Box::new(TooManyInterim)),
            answer = self.inner.request(request) => answer?,
        };
        let failed = !answer.status().is_success();
        Ok(answer.map(|body| Bounded {
            body,
            left: if failed { ERROR_BYTES } else { most },
            rest: if failed {
                Rest::Left
            } else {
                Rest::Wrong(most)
            },
            over: false,
        }))
    }
}

impl<B> Clone for Client<B> {
    fn clone(&self) -> Self {
        Client {
            inner: self.inner.clone(),
            way: self.way.clone(),
        }
    }
}

impl<B> fmt::Debug for Client<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Counts interim answers. hyper reads on whatever it is told, so that the request has to be dropped.
#[derive(Default)]
struct Interim {
    seen: AtomicUsize,
    too_many: Notify,
}

impl Interim {
    fn one(&self) {
        if self.seen.fetch_add(1, Ordering::Relaxed) == INTERIM_ANSWERS {
            self.too_many.notify_one();
        }
    }
}

/// More interim answers than [`INTERIM_ANSWERS`].
#[derive(Debug, thiserror::Error)]
#[error("more than {INTERIM_ANSWERS} interim answers and no final one")]
pub(crate) struct TooManyInterim;

/// A success whose body is longer than the asker takes.
#[derive(Debug, thiserror::Error)]
#[error("the answer is longer than {0} bytes")]
pub(crate) struct TooLong(usize);

/// An error and what caused it, also through an [`io::Error`], which hides what it wraps.
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

/// Whether no part of a request can have been received, by the chain of what went wrong.
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

/// What becomes of a body's rest beyond its limit.
#[derive(Clone, Copy, Debug)]
enum Rest {
    /// It is left, and the body ends.
    Left,
    /// It makes the body wrong, since it may have been at most so long.
    Wrong(usize),
}

/// A body that ends where it may not go on.
#[derive(Debug)]
pub(crate) struct Bounded<B = Incoming> {
    body: B,
    left: usize,
    rest: Rest,
    over: bool,
}

impl<B> Body for Bounded<B>
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
        if self.over {
            let Rest::Wrong(most) = std::mem::replace(&mut self.rest, Rest::Left) else {
                return Poll::Ready(None);
            };
            return Poll::Ready(Some(Err(Box::new(TooLong(most)))));
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
            self.over = true;
            data.truncate(self.left);
        }
        self.left -= data.len();
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match self.rest {
            Rest::Left => self.over || self.body.is_end_stream(),
            Rest::Wrong(_) => !self.over && self.body.is_end_stream(),
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

/// How a destination is connected to: straight, or by way of a proxy. TLS with the destination comes on top of it.
#[derive(Clone)]
struct Way {
    tcp: HttpConnector,
    tls: Arc<ClientConfig>,
    proxies: Option<Arc<Matcher>>,
}

impl Way {
    fn proxy(&self, destination: &Uri) -> Option<Intercept> {
        let host = destination.host()?;
        self.proxies
            .as_ref()
            .filter(|_| !is_metadata(host))?
            .intercept(destination)
    }

    /// The proxy that a request in the clear is handed to, which passes it on.
    fn forwards(&self, destination: &Uri) -> Option<Intercept> {
        let plain = destination.scheme() == Some(&Scheme::HTTP);
        plain.then(|| self.proxy(destination)).flatten()
    }
}

/// Whether an address is that of a cloud's metadata service, which is this machine's own: no proxy knows the way.
fn is_metadata(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse() {
        // Of virtual machines everywhere, ECS and EKS.
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.is_unicast_link_local() || address.segments().starts_with(&[0xfd00, 0x0ec2])
        }
        Err(_) => host.eq_ignore_ascii_case("metadata.google.internal"),
    }
}

impl Service<Uri> for Way {
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
                let forwards = false;
                Ok(Stream { stream, forwards })
            });
        };
        // The proxy may speak TLS itself.
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
            Ok(Stream { stream, forwards })
        })
    }
}

/// A connection to a destination, or to the proxy that forwards requests to it.
struct Stream {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    forwards: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.forwards)
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

/// A connector that gives up.
#[derive(Clone)]
struct InTime<C> {
    inner: C,
    limit: Duration,
}

impl<C> Service<Uri> for InTime<C>
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
                let words = format!("no connection within {limit:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, words).into())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    /// What is read of a body in these pieces, and whether it ended well.
    async fn read(
        pieces: impl Iterator<Item = usize> + Send,
        left: usize,
        rest: Rest,
    ) -> (usize, bool) {
        let frame = |length| Ok::<_, io::Error>(Frame::data(Bytes::from(vec![0; length])));
        let mut body = Bounded {
            body: StreamBody::new(futures::stream::iter(pieces.map(frame))),
            left,
            rest,
            over: false,
        };
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => read += frame.into_data().unwrap().len(),
                Err(error) => {
                    assert!(error.is::<TooLong>(), "{error}");
                    assert_eq!(
                        error.to_string(),
                        format!("the answer is longer than {left} bytes")
                    );
                    return (read, false);
                }
            }
        }
        (read, true)
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_and_no_further() {
        let wrong = Rest::Wrong(10);
        let table: [(&[usize], Rest, (usize, bool)); 10] = [
            (&[], wrong, (0, true)),
            (&[4, 5], wrong, (9, true)),
            (&[4, 6], wrong, (10, true)),
            (&[4, 6, 0], wrong, (10, true)),
            (&[4, 6, 1], wrong, (10, false)),
            (&[4, 7], wrong, (10, false)),
            (&[11], wrong, (10, false)),
            (&[4, 6], Rest::Left, (10, true)),
            (&[4, 7, 1], Rest::Left, (10, true)),
            (&[11], Rest::Left, (10, true)),
        ];
        for (pieces, rest, expected) in table {
            let read = read(pieces.iter().copied(), 10, rest).await;
            assert_eq!(read, expected, "{pieces:?} {rest:?}");
        }
        let endless = || std::iter::repeat(1_000);
        assert_eq!(
            read(endless(), ERROR_BYTES, Rest::Left).await,
            (ERROR_BYTES, true)
        );
        let most = ANSWER_BYTES;
        assert!(!read(endless(), most, Rest::Wrong(most)).await.1);
    }

    /// A proxy for one connection: tells what it was asked for, and passes on what comes.
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
        let matcher = Matcher::builder()
            .https(format!("http://u:p@{address}"))
            .build();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let ca_pem = server.ca_pem().map(str::as_bytes);
        let way = Way {
            tcp,
            tls: crate::sink::tls::client_config(ca_pem).unwrap(),
            proxies: Some(Arc::new(matcher)),
        };
        let client = Client::by(way, Duration::from_secs(60));
        let request = Request::get(server.url()).body(String::new()).unwrap();
        let answer = client.ask(request).await.unwrap();
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

    #[test]
    fn metadata_services_are_asked_past_any_proxy_and_all_others_by_way_of_theirs() {
        let matcher = Matcher::builder()
            .http("http://u:p@plain.proxy:3128")
            .https("http://secure.proxy:3128")
            .no("inside.example")
            .build();
        let way = Way {
            tcp: HttpConnector::new(),
            tls: crate::sink::tls::client_config(None).unwrap(),
            proxies: Some(Arc::new(matcher)),
        };
        let table = [
            ("http://store.example/a", Some("plain.proxy"), true),
            ("https://store.example/a", Some("secure.proxy"), false),
            ("https://inside.example/a", None, false),
            ("http://169.254.169.254/latest/api/token", None, false),
            ("http://169.254.170.2/creds", None, false),
            ("http://169.254.170.23/v1/credentials", None, false),
            ("http://[fd00:ec2::254]/latest/api/token", None, false),
            ("http://[fd00:ec2::23]/v1/credentials", None, false),
            ("http://[fe80::1]/", None, false),
            (
                "http://metadata.google.internal/computeMetadata/v1",
                None,
                false,
            ),
            (
                "http://METADATA.google.internal/computeMetadata/v1",
                None,
                false,
            ),
            ("http://169.253.0.1/", Some("plain.proxy"), true),
            ("http://[fd00:ec3::254]/", Some("plain.proxy"), true),
            ("http://127.0.0.1/", Some("plain.proxy"), true),
        ];
        for (url, proxy, forwards) in table {
            let url: Uri = url.parse().unwrap();
            let found = way.proxy(&url);
            let host = found.as_ref().and_then(|found| found.uri().host());
            assert_eq!(host, proxy, "{url}");
            assert_eq!(way.forwards(&url).is_some(), forwards, "{url}");
        }
    }
}
