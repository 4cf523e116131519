//! Whose certificates a dialing node believes (protocol 3.1). There is no way to believe all of them.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::pin::pinned_tls;
use crate::mesh::tls::ALPN;

/// How the certificate of a `wss` peer is judged.
#[derive(Debug, Clone, Default)]
pub enum PeerTls {
    /// By the web's authorities.
    #[default]
    Web,
    /// By these authorities and no other.
    Authorities(Arc<RootCertStore>),
    /// By the SHA-256 of its public key (SPKI), whatever the certificate says.
    Pinned([u8; 32]),
}

impl PeerTls {
    /// The settings; `web` are those for the web's authorities, made once.
    pub(in crate::mesh) fn settings(&self, web: &Arc<ClientConfig>) -> Arc<ClientConfig> {
        match self {
            Self::Web => web.clone(),
            Self::Authorities(roots) => trusting(roots.clone()),
            Self::Pinned(sha256) => pinned_tls(*sha256),
        }
    }
}

fn trusting(roots: Arc<RootCertStore>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// TLS settings by the web's authorities, HTTP/1.1 only.
#[must_use]
pub fn web_tls() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    trusting(Arc::new(roots))
}
