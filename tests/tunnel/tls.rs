//! Providers over TLS: only with a certificate that a trusted authority signed for that name.

use std::sync::Arc;

use clawmatrix::{
    drain::Tasks,
    models::{
        Route,
        endpoint::Endpoint,
        provider::{Client, Pieces, ProviderError},
    },
};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const AUTHORITY: &[u8] = include_bytes!("../fixtures/tls/ca.der");
const SERVER: &[u8] = include_bytes!("../fixtures/tls/server.der");
const KEY: &[u8] = include_bytes!("../fixtures/tls/server-key.der");

/// Answers one request on each connection.
async fn server() -> u16 {
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![SERVER.to_vec().into()],
                KEY.to_vec().try_into().unwrap(),
            )
            .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that does not trust us ends the handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            assert_eq!(stream.get_ref().1.alpn_protocol(), None);
            let mut request = Vec::new();
            while !request.ends_with(b"{\"a\":1}") {
                stream.read_buf(&mut request).await.unwrap();
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    port
}

async fn ask(client: &Client, host: &str, port: u16) -> Result<String, ProviderError> {
    let url = format!("https://{host}:{port}/v1").parse().unwrap();
    let endpoint = Endpoint::new(None, &url, "openai-completions", None, &[].into()).unwrap();
    let body = Pieces::new([bytes::Bytes::from_static(b"{\"a\":1}")]);
    let headers = http::HeaderMap::new();
    let mut answer = client
        .post(&endpoint, Route::Responses, &headers, body)
        .await?;
    let (body, whole) = answer.body.collect(100).await?;
    assert!(whole);
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_trusted_provider_answers_and_others_are_not_asked() {
    let port = server().await;
    let mut roots = RootCertStore::empty();
    roots.add(AUTHORITY.to_vec().into()).unwrap();
    let trusting = Client::with_roots(Tasks::new(), roots);
    for host in ["localhost", "127.0.0.1"] {
        assert_eq!(ask(&trusting, host, port).await.unwrap(), "ok", "{host}");
    }
    // The web's authorities did not sign it.
    let ordinary = Client::new(Tasks::new());
    let refused = ask(&ordinary, "localhost", port).await;
    assert!(matches!(refused, Err(ProviderError::Connect(_))));
    // Signed, but for another name.
    let refused = ask(&trusting, "127.0.0.2", port).await;
    assert!(matches!(refused, Err(ProviderError::Connect(_))));
}
