//! `wss://` through a TLS terminator, as a reverse proxy is one: the node behind it speaks plain
//! `ws`, and the mesh handshake does not depend on TLS (protocol 3.1).

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::*;

// A self-signed certificate for `localhost`, used by these tests alone.
const CERTIFICATE: &[u8] = include_bytes!("../../../tests/fixtures/tls/localhost.crt.der");
const KEY: &[u8] = include_bytes!("../../../tests/fixtures/tls/localhost.key.der");

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_that_trusts_the_fixture() -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(CERTIFICATE)).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Terminates TLS on a free port and passes everything to `port`.
async fn terminator(port: u16) -> u16 {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(CERTIFICATE)],
            PrivateKeyDer::try_from(KEY).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own_port = listener.local_addr().unwrap().port();
    let tasks = Tasks::new();
    tasks.clone().spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tasks.spawn(async move {
                if let Ok(mut secure) = acceptor.accept(socket).await {
                    let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let _ = copy_bidirectional(&mut secure, &mut plain).await;
                }
            });
        }
    });
    own_port
}

fn secure_peer(port: u16) -> PeerConfig {
    PeerConfig {
        node_id: node("office"),
        url: Url::parse(&format!("wss://localhost:{port}/mesh/v1")).unwrap(),
        port_given: true,
        key: None,
        tls: PeerTls::Web,
        proxy: None,
    }
}

#[tokio::test]
async fn wss_link_works_behind_a_tls_terminator() {
    let office = Node::start("office", 1).await;
    let port = terminator(office.port).await;
    let (us, seen) = (ourselves("home", 1), Recorder::new());
    let settings = MeshSettings {
        tls: client_that_trusts_the_fixture(),
        ..MeshSettings::new(us, 1)
    };
    let mesh = Mesh::new(settings, seen, Tasks::new());
    mesh.dial(vec![secure_peer(port)]);
    office.linked_to("home").await;
    let session = office.mesh.session(&node("home")).await.unwrap();
    assert_eq!(session.peer().node, node("home"));
}

#[tokio::test]
async fn untrusted_certificate_is_refused_and_named() {
    let office = Node::start("office", 1).await;
    let home = Node::start("home", 1).await;
    home.mesh
        .dial(vec![secure_peer(terminator(office.port).await)]);
    let problem = home
        .sees("office", |view| view.problem.is_some())
        .await
        .problem
        .unwrap();
    assert!(problem.contains("TLS failed"), "{problem}");
}

#[tokio::test]
async fn pinned_key_is_believed_and_no_other() {
    let certificate = rustls::pki_types::CertificateDer::from(CERTIFICATE);
    let parsed = rustls::server::ParsedCertificate::try_from(&certificate).unwrap();
    let pin: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        parsed.subject_public_key_info(),
    ))
    .into();
    let office = Node::start("office", 1).await;
    let port = terminator(office.port).await;
    let pinned = |pin| PeerConfig {
        tls: PeerTls::Pinned(pin),
        ..secure_peer(port)
    };
    let home = Node::start("home", 1).await;
    home.mesh.dial(vec![pinned(pin)]);
    home.linked_to("office").await;
    let attic = Node::start("attic", 1).await;
    attic.mesh.dial(vec![pinned([7; 32])]);
    let problem = attic
        .sees("office", |view| view.problem.is_some())
        .await
        .problem
        .unwrap();
    assert!(problem.contains("TLS failed"), "{problem}");
}
