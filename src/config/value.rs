//! Types of values: sizes, times, secrets, URLs, certificates.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};

/// A value that must not reach a log: `Debug` shows stars instead.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// Returns the value, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The source of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// The configuration itself.
    Value(Secret),
    /// A file (`@/path`), which is read again whenever it changes.
    File(PathBuf),
}

pub(super) fn is_full_url(value: &str) -> bool {
    let rest = value
        .strip_prefix("https://")
        .or_else(|| value.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty()) && value.parse::<hyper::Uri>().is_ok()
}

/// The words of a flag; the first one of each meaning is shown.
pub(super) const FLAGS: &[(&str, bool)] = &[
    ("on", true),
    ("true", true),
    ("yes", true),
    ("off", false),
    ("false", false),
    ("no", false),
];

/// Returns a value in quotes for a message, unless it looks like a secret that was set under the wrong key.
pub(super) fn shown(value: &str) -> String {
    match looks_like_a_secret(value) {
        true => "a value that looks like a secret (not shown)".to_owned(),
        false if value.contains("://") || names_a_user(value) => {
            format!("'{}'", without_secrets(value))
        }
        false => format!("'{value}'"),
    }
}

/// Returns the value of a key for URLs in quotes for a message, which may be a secret that was set under the wrong key.
pub(super) fn shown_url(value: &str) -> String {
    match !value.contains("://") && looks_like_a_secret(value) {
        true => shown(value),
        false => format!("'{}'", without_secrets(value)),
    }
}

/// Whether [`shown`] shows a value as it is.
pub(super) fn is_shown(value: &str) -> bool {
    shown(value) == format!("'{value}'")
}

/// Whether a value may be a key, a signature or a connection string: it contains the name of such a parameter, or is at
/// least 24 characters of base64 with upper-case and lower-case letters and digits, or 32 hexadecimal ones.
pub(super) fn looks_like_a_secret(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    let words = [
        "sig=",
        "accountkey=",
        "sharedaccesssignature=",
        "signature=",
        "password=",
        "pwd=",
        "secret=",
        "token=",
        "credential=",
    ];
    if words.iter().any(|word| lower.contains(word)) {
        return true;
    }
    if value.len() >= 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return true;
    }
    let has = |kind: fn(&u8) -> bool| value.bytes().any(|byte| kind(&byte));
    value.len() >= 24
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=_-~.".contains(&byte))
        && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_digit)
}

/// Whether a URL contains more than scheme, host, port and path: a user, a query, or a fragment. A parser reads the
/// rest of a password after a `#` as a fragment.
pub(crate) fn holds_secrets(url: &str) -> bool {
    url.contains(['@', '?', '#']) || url.contains("%40")
}

/// Whether a value starts with `user:password@`.
pub(super) fn names_a_user(value: &str) -> bool {
    value
        .split_once('@')
        .is_some_and(|(user, _)| user.contains(':'))
}

/// Returns a URL for a message. Passwords precede `@`, and signatures follow `?`. Since a password may contain any
/// character, its bounds are unknown: if there may be one, only the scheme is shown.
pub(crate) fn without_secrets(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let after_host = authority
        .rsplit_once(']')
        .map_or(authority, |(_, rest)| rest);
    // What follows the colon is a password unless it is a port.
    let port = after_host.split_once(':').map_or("", |(_, port)| port);
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    if is_port && !holds_secrets(url) {
        return url.to_owned();
    }
    let is_plain = |scheme: &&str| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match scheme.filter(is_plain) {
        Some(scheme) => format!("{scheme}://***"),
        None => "***".to_owned(),
    }
}

/// Returns an endpoint for the log.
pub(super) fn at(endpoint: &Option<String>) -> String {
    match endpoint {
        Some(endpoint) => format!(" at {}", without_secrets(endpoint)),
        None => String::new(),
    }
}

/// A problem with the certificates of a private CA. Its text continues a sentence that starts with the file's name.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The text is not PEM.
    #[error("is not PEM: {0:?}")]
    Pem(#[from] pem::Error),
    /// A certificate is invalid as a trust anchor.
    #[error("contains a certificate that cannot be used: {0}")]
    Certificate(#[from] rustls::Error),
    /// There is no certificate.
    #[error("contains no certificate: it must be PEM, with -----BEGIN CERTIFICATE-----")]
    None,
}

/// Checks the PEM certificates of a private CA.
pub fn check_ca(pem: &[u8]) -> Result<(), CaError> {
    trust_ca(pem, &mut RootCertStore::empty())
}

/// Adds PEM certificates of a private CA to `roots`.
pub(crate) fn trust_ca(pem: &[u8], roots: &mut RootCertStore) -> Result<(), CaError> {
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate?)?;
    }
    match roots.len() > before {
        true => Ok(()),
        false => Err(CaError::None),
    }
}

/// Parses `4M`, `500K`, `1GB`, `1.5M` or plain bytes, as the host does: K is 1,000.
pub(crate) fn parse_size(value: &str) -> Option<usize> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match value[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 1.0,
        "K" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        _ => return None,
    };
    let number: f64 = digits.parse().ok()?;
    let bytes = number * unit;
    (0.0..1e15).contains(&bytes).then_some(bytes as usize)
}

/// Parses `30` (seconds), `500ms`, `30s`, `5m`, `1h` or `1d`.
pub(super) fn parse_time(value: &str) -> Option<Duration> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis = match value[digits.len()..].to_ascii_lowercase().as_str() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let number = digits.parse::<u64>().ok()?;
    Some(Duration::from_millis(number.checked_mul(millis)?))
}
/// The values of `auth_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthType {
    Key,
    Sas,
    ConnectionString,
    ManagedIdentity,
    WorkloadIdentity,
    ClientSecret,
}

impl AuthType {
    pub(super) const WORDS: [(&str, AuthType); 6] = [
        ("key", AuthType::Key),
        ("sas", AuthType::Sas),
        ("connection_string", AuthType::ConnectionString),
        ("managed_identity", AuthType::ManagedIdentity),
        ("workload_identity", AuthType::WorkloadIdentity),
        ("client_secret", AuthType::ClientSecret),
    ];

    /// Returns the word of the configuration.
    pub(super) fn name(self) -> &'static str {
        let mut words = AuthType::WORDS.iter();
        words
            .find(|(_, auth)| *auth == self)
            .map_or("", |(word, _)| word)
    }
}
