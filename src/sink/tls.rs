//! TLS: rustls with ring, and the trusted certificates.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, RootCertStore};

use crate::config::{self, CaError};

/// Returns the crypto provider. It is always passed explicitly, since this library installs none for the process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Returns a configuration of TLS 1.2 and 1.3 for HTTP/1.1 that trusts the system's roots (or `SSL_CERT_FILE`) and,
/// in addition, a private CA. Roots that cannot be read or used are skipped. Fails with a CA that
/// [`config::check_ca`] refuses.
pub(crate) fn client_config(ca_pem: Option<&[u8]>) -> Result<Arc<ClientConfig>, CaError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(pem) = ca_pem {
        config::trust_ca(pem, &mut roots)?;
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
