//! The one TLS implementation of this library.

/// Installs the process's TLS implementation, which `reqwest` and `object_store` look for. Each shared
/// library has its own, so the host's is not touched. Calling it again does nothing.
pub fn install() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
