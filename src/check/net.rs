//! Checks the connection to a service step by step, so that the step that fails is known: name lookup, connection,
//! proxy, TLS handshake, and clock.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hyper::Uri;
use hyper_util::client::proxy::matcher::Intercept;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Options, Report, blocking};
use crate::sink::proxy::Environment;
use crate::sink::tls;

/// The clock skew above which to warn.
const NOTABLE_SKEW: Duration = Duration::from_secs(60);
/// The remaining lifetime of a certificate below which to warn.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);
/// The largest head of a response, in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// A service to connect to.
pub(super) struct Service {
    /// Its scheme, host and port.
    pub(super) url: Uri,
    /// Certificates to trust in addition to the system's roots, in PEM.
    pub(super) ca_pem: Option<Vec<u8>>,
    /// The clock skew that it tolerates.
    pub(super) skew: Skew,
}

/// The clock skew beyond which signatures are refused, and the vendor that refuses them.
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
/// Requests have no timestamp, but tokens are valid for an hour.
pub(super) const GOOGLE_SKEW: Skew = Skew {
    limit: Duration::from_secs(3_600),
    of: "Google",
};

/// Checks all steps. Returns whether the service is reachable.
pub(super) async fn check(service: Service, options: &Options, report: &mut Report<'_>) -> bool {
    let url = &service.url;
    let proxy = match Environment::read() {
        Ok(environment) => environment.proxy(url),
        Err(problem) => {
            let remedy = "correct the variable in the environment of Fluent Bit";
            report.fail("proxy", problem.to_string(), remedy);
            return false;
        }
    };
    let (host, port, peer) = match &proxy {
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
        let message = format!("the proxy uses {scheme}, which this tool does not support");
        report.skip("connect", message);
        return true;
    }

    let target = (host.trim_matches(['[', ']']).to_owned(), port);
    let addresses = match blocking(options, move || target.to_socket_addrs()).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            report.fail(
                "name",
                format!("'{host}' has no address: {error}"),
                "check the region or the endpoint for typos, and this machine's DNS",
            );
            return false;
        }
        Err(timeout) => {
            report.fail(
                "name",
                format!("'{host}': {timeout}"),
                "check this machine's DNS",
            );
            return false;
        }
    };
    let shown: Vec<String> = addresses.iter().map(|a| a.ip().to_string()).collect();
    report.ok("name", format!("{host} is {}", shown.join(", ")));

    let timeout = options.timeout;
    let start = Instant::now();
    let connected = blocking(options, move || connect(&addresses, timeout)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            report.fail(
                "connect",
                format!("{peer} accepts no connection: {error}"),
                "check the port, security groups, network policies and, in a private network, the VPC endpoint",
            );
            return false;
        }
        Err(timeout) => {
            report.fail(
                "connect",
                format!("{peer}: {timeout}"),
                "look for a firewall or security group that drops the packets, or a missing route",
            );
            return false;
        }
    };
    report.ok(
        "connect",
        format!("{peer} accepted the connection in {:.0?}", start.elapsed()),
    );
    check_stream(service, proxy, stream, options, report).await
}

/// Checks TLS and the clock over an open connection.
async fn check_stream(
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
                    format!("the proxy refuses the connection: {error}"),
                    "check HTTPS_PROXY, its user and password, and NO_PROXY",
                );
                return false;
            }
        };
    }
    if !secure {
        report.skip("tls", "the endpoint is http://: traffic is not encrypted");
        let target = match proxy {
            Some(_) => url.to_string(),
            None => "/".to_owned(),
        };
        let offset = blocking(options, move || clock_offset(&mut stream, &url, &target)).await;
        report_clock(offset.map_err(io::Error::other).flatten(), skew, report);
        return true;
    }
    let connected = blocking(options, move || {
        let mut connected = handshake(stream, &service)?;
        let offset = clock_offset(&mut connected.stream, &service.url, "/");
        Ok((connected.session, offset))
    })
    .await;
    match connected {
        Ok(Ok((session, offset))) => {
            match session.expires_in {
                Some(left) if left < EXPIRES_SOON => report.warn(
                    "tls",
                    format!("{session}, expires in {} days", left.as_secs() / 86_400),
                    "renew the certificate",
                ),
                _ => report.ok("tls", session.to_string()),
            }
            report_clock(offset, skew, report);
            true
        }
        Ok(Err(Refused { message, remedy })) => {
            report.fail("tls", message, remedy);
            false
        }
        Err(timeout) => {
            report.fail(
                "tls",
                timeout,
                "look for a firewall or proxy in between that blocks the handshake",
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

/// Opens a tunnel through the proxy.
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

/// Reads the head of a response, byte by byte, so that nothing after it is consumed.
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
        "no HTTP response",
    ))
}

/// Sends a request, and returns the seconds that the response's date is ahead of this machine's clock, or `None` if it
/// has no date. Any response will do, even an error.
fn clock_offset(
    stream: &mut (impl Read + Write),
    url: &Uri,
    target: &str,
) -> io::Result<Option<i64>> {
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
        let is_date = name.eq_ignore_ascii_case("date");
        is_date.then(|| httpdate::parse_http_date(value.trim()).ok())?
    });
    Ok(date.map(|theirs| match theirs.duration_since(now) {
        Ok(ahead) => ahead.as_secs().cast_signed(),
        Err(behind) => -behind.duration().as_secs().cast_signed(),
    }))
}

fn report_clock(offset: io::Result<Option<i64>>, skew: Skew, report: &mut Report<'_>) {
    let seconds = match offset {
        Ok(Some(seconds)) => seconds,
        Ok(None) => {
            return report.skip(
                "clock",
                "the service's response has no Date to compare with",
            );
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

/// A failed handshake.
struct Refused {
    message: String,
    remedy: String,
}

/// The properties of a TLS session.
struct Session {
    version: String,
    subject: String,
    issuer: String,
    trusted_by: &'static str,
    expires_in: Option<Duration>,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session {
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

struct Connected {
    stream: rustls::StreamOwned<ClientConnection, TcpStream>,
    session: Session,
}

fn handshake(stream: TcpStream, service: &Service) -> Result<Connected, Refused> {
    let failed = |error: String, remedy: &str| Refused {
        message: error,
        remedy: remedy.to_owned(),
    };
    let verifier = Arc::new(
        Verifier::new(service.ca_pem.as_deref())
            .map_err(|e| failed(e, "install ca-certificates, or set tls_ca_file"))?,
    );
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string(), "correct the endpoint"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let (host, _) = host_and_port(&service.url);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| {
        failed(
            format!("'{host}' is not a server name: {e}"),
            "correct the endpoint",
        )
    })?;
    let connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|e| failed(e.to_string(), "correct the endpoint"))?;
    let mut stream = rustls::StreamOwned::new(connection, stream);
    let done = stream.conn.complete_io(&mut stream.sock);
    let certificate = verifier.certificate();
    if let Err(error) = done {
        return Err(refused(&error, &certificate));
    }
    let version = stream
        .conn
        .protocol_version()
        .and_then(|v| v.as_str().map(str::to_owned));
    let session = Session {
        version: version.unwrap_or_else(|| "TLS".to_owned()),
        subject: certificate.subject,
        issuer: certificate.issuer,
        trusted_by: certificate.trusted_by,
        expires_in: certificate.expires_in,
    };
    Ok(Connected { stream, session })
}

fn refused(error: &io::Error, certificate: &Certificate) -> Refused {
    use rustls::{CertificateError as Bad, Error};
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    let Certificate {
        subject, issuer, ..
    } = certificate;
    let it = format!("the certificate of '{subject}', issued by '{issuer}',");
    let (message, remedy) = match inner {
        Some(Error::InvalidCertificate(bad)) => match bad {
            Bad::UnknownIssuer => (
                format!("{it} is trusted neither by the system's roots nor by tls_ca_file"),
                "set tls_ca_file to the PEM of the CA that issued it (a proxy that intercepts TLS has its own)",
            ),
            Bad::Expired | Bad::ExpiredContext { .. } => (
                format!("{it} has expired"),
                "renew it, or set this machine's clock",
            ),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                (format!("{it} is not valid yet"), "set this machine's clock")
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => (
                format!("{it} is for another name: {bad}"),
                "write the certificate's name into the endpoint",
            ),
            other => (format!("{it} is refused: {other}"), "fix the certificate"),
        },
        Some(Error::InvalidMessage(_)) => (
            "the server does not speak TLS".to_owned(),
            "write http:// if that is intended, or correct the port",
        ),
        _ => (
            format!("the handshake failed: {error}"),
            "look for a firewall or proxy in between, and check the port",
        ),
    };
    Refused {
        message,
        remedy: remedy.to_owned(),
    }
}

/// The properties of the server's certificate.
#[derive(Clone, Default)]
struct Certificate {
    subject: String,
    issuer: String,
    trusted_by: &'static str,
    expires_in: Option<Duration>,
}

/// A verifier that works like that of rustls, and records the certificate and the roots that trust it.
#[derive(Debug)]
struct Verifier {
    /// The verifiers of the system's roots and of `tls_ca_file`, if there are any.
    by_roots: Vec<(&'static str, Arc<WebPkiServerVerifier>)>,
    certificate: Mutex<Certificate>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.subject)
    }
}

impl Verifier {
    fn new(ca_pem: Option<&[u8]>) -> Result<Verifier, String> {
        let mut by_roots = Vec::new();
        let mut trust = |name, certificates: Vec<CertificateDer<'static>>| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates);
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider());
            if let Ok(verifier) = verifier.build() {
                by_roots.push((name, verifier));
            }
        };
        // As in the clients; honours SSL_CERT_FILE and SSL_CERT_DIR.
        trust(
            "the system's roots",
            rustls_native_certs::load_native_certs().certs,
        );
        let private = CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default());
        trust("tls_ca_file", private.filter_map(Result::ok).collect());
        if by_roots.is_empty() {
            return Err("this machine has no trusted certificates".to_owned());
        }
        Ok(Verifier {
            by_roots,
            certificate: Mutex::default(),
        })
    }

    fn certificate(&self) -> Certificate {
        self.certificate
            .lock()
            .expect("nothing panics with this lock")
            .clone()
    }

    fn record(&self, certificate: &CertificateDer<'_>, trusted_by: &'static str) {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return;
        };
        let left = parsed.validity().time_to_expiration();
        // A certificate may have alternative names only.
        let subject = match parsed.subject().to_string() {
            empty if empty.is_empty() => "no subject".to_owned(),
            subject => subject,
        };
        let mut recorded = self
            .certificate
            .lock()
            .expect("nothing panics with this lock");
        *recorded = Certificate {
            subject,
            issuer: parsed.issuer().to_string(),
            trusted_by,
            expires_in: left.and_then(|left| left.try_into().ok()),
        };
    }

    fn any(&self) -> &WebPkiServerVerifier {
        &self.by_roots[0].1
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
        for (name, verifier) in &self.by_roots {
            match verifier.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ) {
                Ok(verified) => {
                    self.record(end_entity, name);
                    return Ok(verified);
                }
                // The last error is that of tls_ca_file, if it is set.
                Err(error) => refusal = Some(error),
            }
        }
        self.record(end_entity, "no root");
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
