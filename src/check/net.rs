//! The way to a service, step by step, so that the first step that fails has a name: the host's name, the
//! connection, the proxy, the TLS handshake, and what time it is over there.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hyper::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Options, Report, blocking};
use crate::sink::tls;

/// How far clocks may differ before a person should know.
const NOTABLE_SKEW: Duration = Duration::from_secs(60);
/// A certificate that ends sooner is worth a word.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);
/// No head of an answer is larger.
const HEAD_BYTES: usize = 16 * 1024;

/// A service's address and what it asks of our clock.
pub(super) struct Service {
    /// Scheme, host and port.
    pub(super) url: Uri,
    /// PEM to trust beside the system's roots.
    pub(super) ca_pem: Option<Vec<u8>>,
    /// By how much our clock may differ, and who says so.
    pub(super) skew: Skew,
}

/// By how much a clock may differ before signatures are refused.
#[derive(Clone, Copy)]
pub(super) struct Skew {
    limit: Duration,
    of: &'static str,
}

/// "In most cases, a request must reach AWS within five minutes of the time stamp in the request":
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html>
pub(super) const AWS_SKEW: Skew = Skew {
    limit: Duration::from_secs(5 * 60),
    of: "AWS",
};
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html>
pub(super) const S3_SKEW: Skew = Skew {
    limit: Duration::from_secs(15 * 60),
    of: "S3",
};
/// <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key#specifying-the-date-header>
pub(super) const AZURE_SKEW: Skew = Skew {
    limit: Duration::from_secs(15 * 60),
    of: "Azure",
};
/// Its requests carry no time; the tokens that it issues live for an hour.
pub(super) const GOOGLE_SKEW: Skew = Skew {
    limit: Duration::from_secs(3_600),
    of: "Google",
};

/// Goes the whole way. Whether the service can be reached.
pub(super) async fn check(service: Service, options: &Options, report: &mut Report<'_>) -> bool {
    let url = &service.url;
    let proxy = Matcher::from_env().intercept(url);
    let (host, port, what) = match &proxy {
        Some(proxy) => {
            let (host, port) = host_and_port(proxy.uri());
            (
                host,
                port,
                format!("the proxy of the environment, {host}:{port}"),
            )
        }
        None => {
            let (host, port) = host_and_port(url);
            (host, port, format!("{host}:{port}"))
        }
    };
    if let Some(scheme) = proxy.as_ref().and_then(|proxy| proxy.uri().scheme_str())
        && scheme != "http"
    {
        let words =
            format!("the way leads through a proxy that speaks {scheme}, which this tool does not");
        report.skip("connect", words);
        return true;
    }

    let asked = (host.trim_matches(['[', ']']).to_owned(), port);
    let addresses = match blocking(options, move || asked.to_socket_addrs()).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            report.fail(
                "name",
                format!("'{host}' has no address: {error}"),
                "check the region or the endpoint for mistypes, and this machine's DNS",
            );
            return false;
        }
        Err(late) => {
            report.fail(
                "name",
                format!("'{host}': {late}"),
                "look after this machine's DNS",
            );
            return false;
        }
    };
    let shown: Vec<String> = addresses.iter().map(|a| a.ip().to_string()).collect();
    report.ok("name", format!("{host} is {}", shown.join(", ")));

    let timeout = options.timeout;
    let since = Instant::now();
    let connected = blocking(options, move || connect(&addresses, timeout)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            report.fail(
                "connect",
                format!("{what} takes no connection: {error}"),
                "check the port, security groups, network policies and, in a private network, the VPC endpoint",
            );
            return false;
        }
        Err(late) => {
            report.fail(
                "connect",
                format!("{what}: {late}"),
                "a firewall or a security group swallows the packets, or the route is missing",
            );
            return false;
        }
    };
    report.ok(
        "connect",
        format!("{what} took the connection within {:.0?}", since.elapsed()),
    );
    talk(service, proxy, stream, options, report).await
}

/// Over an open connection: TLS, and an answer's date.
async fn talk(
    service: Service,
    proxy: Option<Intercept>,
    mut stream: TcpStream,
    options: &Options,
    report: &mut Report<'_>,
) -> bool {
    let (url, skew) = (service.url.clone(), service.skew);
    let secure = url.scheme_str() == Some("https");
    if secure && let Some(proxy) = proxy.clone() {
        let to = url.clone();
        let tunnel = blocking(options, move || tunnel(stream, &to, &proxy)).await;
        stream = match tunnel.map_err(io::Error::other).flatten() {
            Ok(stream) => stream,
            Err(error) => {
                report.fail(
                    "proxy",
                    format!("the proxy does not let us through: {error}"),
                    "check HTTPS_PROXY, its user and password, and NO_PROXY",
                );
                return false;
            }
        };
    }
    if !secure {
        report.skip(
            "tls",
            "the endpoint is http://: what is sent can be read on the way",
        );
        let target = match proxy {
            Some(_) => url.to_string(),
            None => "/".to_owned(),
        };
        let answer = blocking(options, move || date(&mut stream, &url, &target)).await;
        say_clock(answer.map_err(io::Error::other).flatten(), skew, report);
        return true;
    }
    let shaken = blocking(options, move || {
        let mut shaken = handshake(stream, &service)?;
        let answer = date(&mut shaken.stream, &service.url, "/");
        Ok((shaken.told, answer))
    })
    .await;
    match shaken {
        Ok(Ok((told, answer))) => {
            match told.ends_in {
                Some(left) if left < EXPIRES_SOON => report.warn(
                    "tls",
                    format!("{told}, ends in {} days", left.as_secs() / 86_400),
                    "have the certificate renewed",
                ),
                _ => report.ok("tls", told.to_string()),
            }
            say_clock(answer, skew, report);
            true
        }
        Ok(Err(Refused { message, remedy })) => {
            report.fail("tls", message, remedy);
            false
        }
        Err(late) => {
            report.fail(
                "tls",
                late,
                "something on the way holds back the handshake: look for a firewall or a proxy",
            );
            false
        }
    }
}

fn host_and_port(url: &Uri) -> (&str, u16) {
    let port = match url.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    (
        url.host().unwrap_or_default(),
        url.port_u16().unwrap_or(port),
    )
}

fn connect(addresses: &[SocketAddr], timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::other("it has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, timeout) {
            Ok(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Has the proxy connect us.
fn tunnel(mut stream: TcpStream, url: &Uri, proxy: &Intercept) -> io::Result<TcpStream> {
    let (host, port) = host_and_port(url);
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(user) = proxy.basic_auth().and_then(|user| user.to_str().ok()) {
        request += &format!("Proxy-Authorization: {user}\r\n");
    }
    stream.write_all((request + "\r\n").as_bytes())?;
    let head = head(&mut stream)?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(stream),
        _ => Err(io::Error::other(
            head.lines().next().unwrap_or_default().to_owned(),
        )),
    }
}

/// The head of an answer. Read byte by byte, so that nothing behind it is lost.
fn head(stream: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while head.len() < HEAD_BYTES && stream.read(&mut byte)? > 0 {
        head.push(byte[0]);
        if head.ends_with(b"\r\n\r\n") {
            return Ok(String::from_utf8_lossy(&head).into_owned());
        }
    }
    Err(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "no HTTP answer came",
    ))
}

/// Asks for anything, and gives what the answer's date is ahead of our clock, in seconds. Any answer will
/// do: a refusal carries a date as well.
fn date(stream: &mut (impl Read + Write), url: &Uri, target: &str) -> io::Result<Option<i64>> {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: ferry-check/{}\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    )?;
    stream.flush()?;
    let head = head(stream)?;
    let now = SystemTime::now();
    let date = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let named = name.eq_ignore_ascii_case("date");
        named.then(|| httpdate::parse_http_date(value.trim()).ok())?
    });
    Ok(date.map(|theirs| match theirs.duration_since(now) {
        Ok(ahead) => ahead.as_secs().cast_signed(),
        Err(behind) => -behind.duration().as_secs().cast_signed(),
    }))
}

fn say_clock(answer: io::Result<Option<i64>>, skew: Skew, report: &mut Report<'_>) {
    let seconds = match answer {
        Ok(Some(seconds)) => seconds,
        Ok(None) => {
            return report.skip("clock", "the service's answer has no Date to compare with");
        }
        Err(error) => {
            return report.warn(
                "clock",
                format!("the service did not answer an HTTP request: {error}"),
                "check that the endpoint is the service's, with the right scheme and port",
            );
        }
    };
    let (by, side) = (
        seconds.unsigned_abs(),
        if seconds > 0 { "behind" } else { "ahead of" },
    );
    let off = format!("this machine's clock is {by} s {side} the service's");
    let remedy = "set the clock: run chrony or systemd-timesyncd";
    if by > skew.limit.as_secs() {
        let limit = skew.limit.as_secs() / 60;
        let message = format!(
            "{off}; {} refuses signatures beyond {limit} minutes",
            skew.of
        );
        report.fail("clock", message, remedy);
    } else if by > NOTABLE_SKEW.as_secs() {
        report.warn("clock", off, remedy);
    } else {
        report.ok("clock", format!("within {by} s of the service's"));
    }
}

/// Why a handshake did not come about.
struct Refused {
    message: String,
    remedy: String,
}

/// What a handshake told.
struct Told {
    version: String,
    subject: String,
    issuer: String,
    trusted_by: &'static str,
    ends_in: Option<Duration>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told {
            version,
            subject,
            issuer,
            trusted_by,
            ..
        } = self;
        write!(
            f,
            "{version}; certificate of '{subject}', issued by '{issuer}', trusted by {trusted_by}"
        )
    }
}

struct Shaken {
    stream: rustls::StreamOwned<ClientConnection, TcpStream>,
    told: Told,
}

fn handshake(stream: TcpStream, service: &Service) -> Result<Shaken, Refused> {
    let broken = |error: String, remedy: &str| Refused {
        message: error,
        remedy: remedy.to_owned(),
    };
    let verifier = Arc::new(
        Verifier::new(service.ca_pem.as_deref())
            .map_err(|e| broken(e, "install ca-certificates, or set tls_ca_file"))?,
    );
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| broken(e.to_string(), "correct the endpoint"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let (host, _) = host_and_port(&service.url);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| {
        broken(
            format!("'{host}' is no name of a server: {e}"),
            "correct the endpoint",
        )
    })?;
    let connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|e| broken(e.to_string(), "correct the endpoint"))?;
    let mut stream = rustls::StreamOwned::new(connection, stream);
    let done = stream.conn.complete_io(&mut stream.sock);
    let seen = verifier.seen();
    if let Err(error) = done {
        return Err(refused(&error, &seen));
    }
    let version = stream
        .conn
        .protocol_version()
        .and_then(|v| v.as_str().map(str::to_owned));
    let told = Told {
        version: version.unwrap_or_else(|| "TLS".to_owned()),
        subject: seen.subject,
        issuer: seen.issuer,
        trusted_by: seen.trusted_by,
        ends_in: seen.ends_in,
    };
    Ok(Shaken { stream, told })
}

fn refused(error: &io::Error, seen: &Seen) -> Refused {
    use rustls::{CertificateError as Bad, Error};
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    let Seen {
        subject, issuer, ..
    } = seen;
    let of = format!("the certificate of '{subject}', issued by '{issuer}',");
    let (message, remedy) = match inner {
        Some(Error::InvalidCertificate(bad)) => match bad {
            Bad::UnknownIssuer => (
                format!(
                    "{of} comes from nobody that is trusted, neither by the system nor by tls_ca_file"
                ),
                "set tls_ca_file to the PEM of the CA that issued it (a proxy that looks into TLS has one of its own)",
            ),
            Bad::Expired | Bad::ExpiredContext { .. } => (
                format!("{of} has expired"),
                "have it renewed, or set this machine's clock",
            ),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                (format!("{of} is not valid yet"), "set this machine's clock")
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => (
                format!("{of} is for another name: {bad}"),
                "write the name that stands in the certificate into the endpoint",
            ),
            other => (
                format!("{of} is refused: {other}"),
                "have the certificate mended",
            ),
        },
        Some(Error::InvalidMessage(_)) => (
            "what answers there does not speak TLS".to_owned(),
            "write http:// if that is meant, or correct the port",
        ),
        _ => (
            format!("the handshake failed: {error}"),
            "something on the way cuts TLS: look for a firewall or a proxy, and correct the port",
        ),
    };
    Refused {
        message,
        remedy: remedy.to_owned(),
    }
}

/// What the server's certificate says.
#[derive(Clone, Default)]
struct Seen {
    subject: String,
    issuer: String,
    trusted_by: &'static str,
    ends_in: Option<Duration>,
}

/// Verifies as rustls does, and remembers the certificate and whose roots vouch for it.
#[derive(Debug)]
struct Verifier {
    /// The system's roots and those of `tls_ca_file`, each where there are any.
    by: Vec<(&'static str, Arc<WebPkiServerVerifier>)>,
    seen: Mutex<Seen>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.subject)
    }
}

impl Verifier {
    fn new(ca_pem: Option<&[u8]>) -> Result<Verifier, String> {
        let mut by = Vec::new();
        let mut trust = |whose, certificates: Vec<CertificateDer<'static>>| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates);
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider());
            if let Ok(verifier) = verifier.build() {
                by.push((whose, verifier));
            }
        };
        // What the clients use as well; SSL_CERT_FILE and SSL_CERT_DIR are heeded.
        trust(
            "the system's roots",
            rustls_native_certs::load_native_certs().certs,
        );
        let private = CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default());
        trust("tls_ca_file", private.filter_map(Result::ok).collect());
        if by.is_empty() {
            return Err("this machine has no certificates to trust".to_owned());
        }
        Ok(Verifier {
            by,
            seen: Mutex::default(),
        })
    }

    fn seen(&self) -> Seen {
        self.seen
            .lock()
            .expect("nothing panics with this lock")
            .clone()
    }

    fn remember(&self, certificate: &CertificateDer<'_>, trusted_by: &'static str) {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return;
        };
        let left = parsed.validity().time_to_expiration();
        // A certificate may name its subject only among the alternative names.
        let subject = match parsed.subject().to_string() {
            empty if empty.is_empty() => "no subject".to_owned(),
            subject => subject,
        };
        *self.seen.lock().expect("nothing panics with this lock") = Seen {
            subject,
            issuer: parsed.issuer().to_string(),
            trusted_by,
            ends_in: left.and_then(|left| left.try_into().ok()),
        };
    }

    fn any(&self) -> &WebPkiServerVerifier {
        &self.by[0].1
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut refusal = None;
        for (whose, verifier) in &self.by {
            match verifier.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ) {
                Ok(verified) => {
                    self.remember(end_entity, whose);
                    return Ok(verified);
                }
                // The last word is that of tls_ca_file, if there is one.
                Err(error) => refusal = Some(error),
            }
        }
        self.remember(end_entity, "nobody");
        Err(refusal.expect("there is at least one verifier"))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any()
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any()
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any().supported_verify_schemes()
    }
}
