//! What a value is: sizes, times, secrets, addresses, certificates.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};

/// A value that must not reach a log: `Debug` and `Display` show that it is there, not what it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The value itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A secret written in the configuration, or kept in a file that may change while we run (`@/path`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// Written in the configuration.
    Value(Secret),
    /// The file it is read from, again whenever the file changes.
    File(PathBuf),
}

pub(super) fn is_full_url(value: &str) -> bool {
    let rest = value
        .strip_prefix("https://")
        .or_else(|| value.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty()) && value.parse::<hyper::Uri>().is_ok()
}

/// The words of a flag; the first of each meaning is the one to show.
pub(super) const FLAGS: &[(&str, bool)] = &[
    ("on", true),
    ("true", true),
    ("yes", true),
    ("off", false),
    ("false", false),
    ("no", false),
];

/// A value in quotes for a message, unless it looks like a secret that was written to the wrong key.
pub(super) fn shown(value: &str) -> String {
    match looks_like_a_secret(value) {
        true => "a value that looks like a secret, and is not repeated here,".to_owned(),
        false if value.contains("://") || names_a_user(value) => {
            format!("'{}'", without_secrets(value))
        }
        false => format!("'{value}'"),
    }
}

/// Whether a value has the shape of a key, a signature or a connection string: one of Azure's own words, or at least 24
/// characters of base64 with capitals, small letters and digits.
fn looks_like_a_secret(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    let words = ["sig=", "accountkey=", "sharedaccesssignature="];
    if words.iter().any(|word| lower.contains(word)) {
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

/// Whether an address holds more than scheme, host, port and path: a user, a query, or a fragment, which a password with a
/// `#` in it makes of what is behind.
pub(crate) fn holds_secrets(url: &str) -> bool {
    url.contains(['@', '?', '#']) || url.contains("%40")
}

/// Whether a value begins with `user:password@`.
fn names_a_user(value: &str) -> bool {
    value
        .split_once('@')
        .is_some_and(|(user, _)| user.contains(':'))
}

/// An address for a message. People write passwords before the `@` and signatures behind the `?`. A password may hold any
/// character, so that nobody knows where it begins and ends: then nothing is shown but the scheme.
pub(crate) fn without_secrets(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let behind_host = authority
        .rsplit_once(']')
        .map_or(authority, |(_, rest)| rest);
    // What is behind the colon is a port, or else a password.
    let port = behind_host.split_once(':').map_or("", |(_, port)| port);
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

/// An endpoint for the log.
pub(super) fn at(endpoint: &Option<String>) -> String {
    match endpoint {
        Some(endpoint) => format!(" at {}", without_secrets(endpoint)),
        None => String::new(),
    }
}

/// What is wrong with the certificates of a private CA; it goes on from the name of what they are in.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// They cannot be read.
    #[error("is not PEM: {0:?}")]
    Pem(#[from] pem::Error),
    /// One of them is of no use.
    #[error("holds a certificate that cannot be used: {0}")]
    Certificate(#[from] rustls::Error),
    /// There are none.
    #[error("holds no certificate: give PEM, -----BEGIN CERTIFICATE-----")]
    None,
}

/// Checks PEM certificates of a private CA.
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

/// `4M`, `500K`, `1GB`, `1.5M` or plain bytes, as the host reads them: K is 1,000.
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

/// `30`, `500ms`, `30s`, `5m`, `1h` or `1d`.
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
