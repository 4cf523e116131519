//! From a URL to a WebSocket (protocol 3.1, 3.5): names resolved anew, addresses raced, TLS by web
//! roots, no redirects, no proxies from the environment.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{HeaderValue, header};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{Error as WsError, client::IntoClientRequest, error::ProtocolError},
};
use url::{Host, Url};

use crate::{
    mesh::{
        accept::upgrade::SUBPROTOCOL,
        ws::{Ws, link_config, meter::Meter, tune},
    },
    wire::limits::{DIAL_RACE_DELAY, DIAL_TIMEOUT, HANDSHAKE_TIMEOUT},
};

/// Why a node could not be reached; short enough for a status line.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL has no host, or another scheme.
    #[error("not a WebSocket URL")]
    Url,
    /// The name has no address.
    #[error("cannot resolve `{0}`")]
    Resolve(String),
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// The system gave another reason.
    #[error("cannot connect: {0}")]
    Io(io::Error),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The other side's certificate is not what it should be.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    /// An HTTP server, but none of ours.
    #[error("the server there answered HTTP {0}, not as a ClawMatrix node")]
    Http(u16),
    /// A redirect, which is not followed.
    #[error(
        "the server there answered with a redirect, which is not followed; put its target into `url`"
    )]
    Redirect,
    /// A WebSocket server that does not speak our subprotocol.
    #[error("old plugin, upgrade it")]
    OldPlugin,
    /// Anything else.
    #[error("the server there does not speak WebSocket")]
    NotWebSocket,
}

/// What carries a dialed link.
#[derive(Debug)]
pub enum DialIo {
    /// `ws`
    Plain(TcpStream),
    /// `wss`; boxed, its state is large.
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! delegate {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            DialIo::Plain($io) => {
                let $io = Pin::new($io);
                $call
            }
            DialIo::Tls($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for DialIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for DialIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, io => io.poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_shutdown(cx))
    }
}

/// TLS settings for `wss`: web roots, HTTP/1.1 only, no way to switch checks off.
///
/// # Panics
/// Never: the provider supports the default protocol versions.
#[must_use]
pub fn web_tls() -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// The addresses of a host, both families in turn, so that one dead family costs one delay.
async fn addresses(url: &Url) -> Result<Vec<SocketAddr>, ConnectError> {
    let port = url.port_or_known_default().ok_or(ConnectError::Url)?;
    let name = match url.host().ok_or(ConnectError::Url)? {
        Host::Ipv4(ip) => return Ok(vec![(IpAddr::V4(ip), port).into()]),
        Host::Ipv6(ip) => return Ok(vec![(IpAddr::V6(ip), port).into()]),
        Host::Domain(name) => name,
    };
    let unresolved = |_| ConnectError::Resolve(name.to_owned());
    let all: Vec<SocketAddr> = lookup_host((name, port))
        .await
        .map_err(unresolved)?
        .collect();
    let first_is_v6 = all.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<SocketAddr>, Vec<SocketAddr>) =
        all.into_iter().partition(|a| a.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut mixed = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            break;
        }
        mixed.extend(pair.into_iter().flatten());
    }
    if mixed.is_empty() {
        return Err(ConnectError::Resolve(name.to_owned()));
    }
    Ok(mixed)
}

/// The first address that connects, each with a head start over the next (RFC 8305).
async fn race(addresses: Vec<SocketAddr>) -> Result<TcpStream, io::Error> {
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => running.push(TcpStream::connect(address)),
            None if running.is_empty() => return Err(last),
            None => {}
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(socket) => return Ok(socket),
                // A refusal says more than an unreachable family does.
                Err(error) if last.kind() != io::ErrorKind::ConnectionRefused => last = error,
                Err(_) => {}
            },
            () = sleep(DIAL_RACE_DELAY), if more => {}
        }
    }
}

async fn open(url: &Url, tls: &Arc<rustls::ClientConfig>) -> Result<DialIo, ConnectError> {
    let secure = match url.scheme() {
        "ws" => false,
        "wss" => true,
        _ => return Err(ConnectError::Url),
    };
    let socket = race(addresses(url).await?).await.map_err(|error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            ConnectError::Refused
        } else {
            ConnectError::Io(error)
        }
    })?;
    tune(&socket);
    if !secure {
        return Ok(DialIo::Plain(socket));
    }
    let name = match url.host().ok_or(ConnectError::Url)? {
        Host::Domain(name) => {
            ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Url)?
        }
        Host::Ipv4(ip) => IpAddr::V4(ip).into(),
        Host::Ipv6(ip) => IpAddr::V6(ip).into(),
    };
    let stream = TlsConnector::from(tls.clone())
        .connect(name, socket)
        .await
        .map_err(ConnectError::Tls)?;
    Ok(DialIo::Tls(Box::new(stream)))
}

/// Connects to `url` and asks for the upgrade.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(
    url: &Url,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Ws<DialIo>, ConnectError> {
    let io = timeout(DIAL_TIMEOUT, open(url, tls))
        .await
        .map_err(|_| ConnectError::Timeout(DIAL_TIMEOUT))??;
    let mut request = url
        .as_str()
        .into_client_request()
        .map_err(|_| ConnectError::Url)?;
    request.headers_mut().insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(SUBPROTOCOL),
    );
    let upgrade = client_async_with_config(request, Meter::after_http(io), Some(link_config()));
    match timeout(HANDSHAKE_TIMEOUT, upgrade).await {
        Ok(Ok((stream, _))) => Ok(Ws::dialed(stream)),
        Ok(Err(error)) => Err(upgrade_error(error)),
        Err(_) => Err(ConnectError::Timeout(HANDSHAKE_TIMEOUT)),
    }
}

fn upgrade_error(error: WsError) -> ConnectError {
    match error {
        WsError::Http(response) => match response.status() {
            status if status.is_redirection() => ConnectError::Redirect,
            status => ConnectError::Http(status.as_u16()),
        },
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
            ConnectError::OldPlugin
        }
        WsError::Io(error) => ConnectError::Io(error),
        _ => ConnectError::NotWebSocket,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::drain::Tasks;

    async fn answered(answer: &'static [u8]) -> Result<Ws<DialIo>, ConnectError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Tasks::new().spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 2048];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(answer).await;
            let _ = socket.read(&mut request).await;
        });
        let url = Url::parse(&format!("ws://127.0.0.1:{port}/mesh/v1")).unwrap();
        connect(&url, &web_tls()).await
    }

    #[tokio::test]
    async fn foreign_servers_are_told_apart() {
        let redirect =
            b"HTTP/1.1 307 x\r\nlocation: ws://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(
            answered(redirect).await,
            Err(ConnectError::Redirect)
        ));
        let missing = b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(
            answered(missing).await,
            Err(ConnectError::Http(404))
        ));
        let ssh = b"SSH-2.0-OpenSSH_9.0\r\n";
        assert!(matches!(
            answered(ssh).await,
            Err(ConnectError::NotWebSocket)
        ));
    }

    #[tokio::test]
    async fn closed_port_is_refused_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url = Url::parse(&format!("ws://localhost:{port}/mesh/v1")).unwrap();
        let error = connect(&url, &web_tls()).await.err().unwrap();
        assert!(matches!(error, ConnectError::Refused), "{error}");
    }

    #[tokio::test]
    async fn plain_server_fails_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Tasks::new().spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.write_all(b"HTTP/1.1 400 x\r\n\r\n").await;
        });
        let url = Url::parse(&format!("wss://127.0.0.1:{port}/mesh/v1")).unwrap();
        let error = connect(&url, &web_tls()).await.err().unwrap();
        assert!(matches!(error, ConnectError::Tls(_)), "{error}");
    }
}
