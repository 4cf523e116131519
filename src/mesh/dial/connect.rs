//! From a URL to a WebSocket (protocol 3.1, 3.5): names resolved anew, addresses raced, TLS, no
//! redirects, no proxies but the one the operator names.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{HeaderValue, header};
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{Error as WsError, client::IntoClientRequest, error::ProtocolError},
};
use url::{Host, Url};

use super::{
    bounds::Bounds,
    proxy::{HttpProxy, ProxyError, tunnel},
};
use crate::{
    mesh::{
        accept::upgrade::SUBPROTOCOL,
        carriage::{Carriage, Network, Posture},
        rotation,
        signed::Signed,
        socket::Socket,
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
    /// An advertised address that is not to be dialed.
    #[error("it leads nowhere that `dialAdvertised` permits")]
    OutOfBounds,
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// The system gave another reason.
    #[error("cannot connect: {0}")]
    Io(io::Error),
    /// The proxy could not be reached, or does not let us through.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
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

/// Asks the system for the addresses of a name.
async fn look_up(name: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(lookup_host((name, port)).await?.collect())
}

/// The addresses of a host, both families in turn, so that one dead family costs one delay.
async fn addresses<F>(
    host: Host<&str>,
    port: u16,
    look_up: impl FnOnce(String, u16) -> F,
) -> Result<Vec<SocketAddr>, ConnectError>
where
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let name = match host {
        Host::Ipv4(ip) => return Ok(vec![(IpAddr::V4(ip), port).into()]),
        Host::Ipv6(ip) => return Ok(vec![(IpAddr::V6(ip), port).into()]),
        Host::Domain(name) => name,
    };
    let unresolved = |_| ConnectError::Resolve(name.to_owned());
    let all = look_up(name.to_owned(), port).await.map_err(unresolved)?;
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

/// Those of the addresses that `bounds` permit. The name is looked up once, and what is returned is what
/// is dialed: an answer that changes afterwards changes nothing.
async fn permitted<F>(
    host: Host<&str>,
    port: u16,
    bounds: &Bounds,
    look_up: impl FnOnce(String, u16) -> F,
) -> Result<Vec<SocketAddr>, ConnectError>
where
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let mut found = addresses(host, port, look_up).await?;
    found.retain(|address| bounds.permit(address.ip()));
    if found.is_empty() {
        return Err(ConnectError::OutOfBounds);
    }
    Ok(found)
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

/// A connection to whichever of these addresses answers first.
async fn reach(addresses: Vec<SocketAddr>) -> Result<TcpStream, ConnectError> {
    let socket = race(addresses).await.map_err(|error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            ConnectError::Refused
        } else {
            ConnectError::Io(error)
        }
    })?;
    tune(&socket);
    Ok(socket)
}

/// The way to one node.
#[derive(Debug, Clone)]
pub struct Way {
    /// `ws` or `wss`.
    pub url: Url,
    /// TLS settings of `wss`.
    pub tls: Arc<rustls::ClientConfig>,
    /// Whether those settings believe one key alone.
    pub pinned: bool,
    /// The HTTP proxy in between.
    pub proxy: Option<HttpProxy>,
    /// Our changes of key, shown in the request.
    pub rotations: Option<HeaderValue>,
    /// Where it may lead, when another node advertises it; it goes through no proxy then.
    pub bounds: Option<Bounds>,
}

/// A node that has answered.
#[derive(Debug)]
pub struct Connected {
    /// The WebSocket.
    pub ws: Ws<Socket>,
    /// What it runs over.
    pub carriage: Carriage,
    /// Changes of its key that the node has shown; nothing of them is checked yet.
    pub rotations: Vec<Signed>,
}

impl Way {
    fn secure(&self) -> Result<bool, ConnectError> {
        match self.url.scheme() {
            "ws" => Ok(false),
            "wss" => Ok(true),
            _ => Err(ConnectError::Url),
        }
    }

    /// TCP to the node, through the proxy if there is one.
    async fn tcp(&self) -> Result<TcpStream, ConnectError> {
        let host = self.url.host().ok_or(ConnectError::Url)?;
        let port = self.url.port_or_known_default().ok_or(ConnectError::Url)?;
        if let Some(bounds) = &self.bounds {
            return reach(permitted(host, port, bounds, look_up).await?).await;
        }
        let Some(proxy) = &self.proxy else {
            return reach(addresses(host, port, look_up).await?).await;
        };
        let reached = async {
            let found = addresses(proxy.host(), proxy.port(), look_up).await?;
            reach(found).await
        };
        let mut socket = match reached.await {
            Ok(socket) => socket,
            Err(error) => {
                return Err(ProxyError::Unreached(proxy.to_string(), error.to_string()).into());
            }
        };
        tunnel(&mut socket, proxy, host, port).await?;
        Ok(socket)
    }

    async fn open(&self) -> Result<Socket, ConnectError> {
        let secure = self.secure()?;
        let socket = self.tcp().await?;
        if !secure {
            return Ok(Socket::Plain(socket));
        }
        let name = match self.url.host().ok_or(ConnectError::Url)? {
            Host::Domain(name) => {
                ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Url)?
            }
            Host::Ipv4(ip) => IpAddr::V4(ip).into(),
            Host::Ipv6(ip) => IpAddr::V6(ip).into(),
        };
        let stream = TlsConnector::from(self.tls.clone())
            .connect(name, socket)
            .await
            .map_err(ConnectError::Tls)?;
        Ok(Socket::Tls(Box::new(stream.into())))
    }

    fn carriage(&self, socket: &Socket) -> Carriage {
        let network = match socket.tcp().peer_addr() {
            Ok(address) => Network::of(address.ip()),
            Err(_) => Network::Public,
        };
        let host = self.url.host_str().unwrap_or_default();
        Carriage {
            tls: match socket {
                Socket::Plain(_) => Posture::Insecure,
                Socket::Tls(_) if self.pinned => Posture::Pinned,
                Socket::Tls(_) => Posture::Tls,
            },
            dialed: true,
            network,
            address: match self.url.port_or_known_default() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            },
            proxy: self.proxy.is_some(),
            advertised: self.bounds.is_some(),
        }
    }
}

/// Connects to a node and asks for the upgrade.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(way: &Way) -> Result<Connected, ConnectError> {
    let io = timeout(DIAL_TIMEOUT, way.open())
        .await
        .map_err(|_| ConnectError::Timeout(DIAL_TIMEOUT))??;
    let carriage = way.carriage(&io);
    let mut request = way
        .url
        .as_str()
        .into_client_request()
        .map_err(|_| ConnectError::Url)?;
    request.headers_mut().insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(SUBPROTOCOL),
    );
    if let Some(rotations) = &way.rotations {
        request
            .headers_mut()
            .insert(rotation::HEADER, rotations.clone());
    }
    let upgrade = client_async_with_config(request, Meter::after_http(io), Some(link_config()));
    match timeout(HANDSHAKE_TIMEOUT, upgrade).await {
        Ok(Ok((stream, answer))) => Ok(Connected {
            ws: Ws::dialed(stream),
            carriage,
            rotations: rotation::read_shown(answer.headers().get(rotation::HEADER)),
        }),
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
    use crate::{drain::Tasks, mesh::dial::tls::web_tls};

    async fn dialed(url: &str) -> Result<Ws<Socket>, ConnectError> {
        let way = Way {
            url: Url::parse(url).unwrap(),
            tls: web_tls(),
            pinned: false,
            proxy: None,
            rotations: None,
            bounds: None,
        };
        connect(&way).await.map(|connected| connected.ws)
    }

    async fn answered(answer: &'static [u8]) -> Result<Ws<Socket>, ConnectError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Tasks::new().spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 2048];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(answer).await;
            let _ = socket.read(&mut request).await;
        });
        dialed(&format!("ws://127.0.0.1:{port}/mesh/v1")).await
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
        let url = format!("ws://localhost:{port}/mesh/v1");
        let error = dialed(&url).await.err().unwrap();
        assert!(matches!(error, ConnectError::Refused), "{error}");
    }

    /// T117 with names: what they stand for is asked once, and counts.
    #[tokio::test]
    async fn advertised_names_lead_only_where_bounds_permit() {
        let bounds = Bounds::new(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
        let host = || Host::Domain("office.example");
        // Asked again it would say something else; there is no again, since it can be asked but once.
        let says = async |found: &[&str]| {
            let found: Vec<SocketAddr> = found.iter().map(|a| a.parse().unwrap()).collect();
            let look_up = |name: String, port| async move {
                assert_eq!((name.as_str(), port), ("office.example", 19000));
                Ok(found)
            };
            let permitted = permitted(host(), 19000, &bounds, look_up).await;
            permitted.map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let good = ["10.0.0.1:19000", "[fd00::1]:19000"];
        assert_eq!(says(&good).await.unwrap(), good);
        let mixed = ["127.0.0.1:19000", "10.0.0.1:19000", "[::1]:19000"];
        assert_eq!(says(&mixed).await.unwrap(), ["10.0.0.1:19000"]);
        for bad in ["127.0.0.1:1", "169.254.169.254:80", "[::ffff:10.0.0.1]:1"] {
            let error = says(&[bad]).await.unwrap_err();
            assert!(matches!(error, ConnectError::OutOfBounds), "{bad}: {error}");
        }
        let error = says(&[]).await.unwrap_err();
        assert!(matches!(error, ConnectError::Resolve(_)), "{error}");
        let unknown = async |_: String, _| Err(io::ErrorKind::NotFound.into());
        let error = permitted(host(), 19000, &bounds, unknown)
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::Resolve(_)), "{error}");
    }

    /// T117 with the system's own answer: this machine is never dialed, by whatever name.
    #[tokio::test]
    async fn advertised_addresses_never_lead_to_this_machine() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in [
            "localhost",
            "127.0.0.1",
            "0.0.0.0",
            "[::1]",
            "[::ffff:7f00:1]",
        ] {
            let way = Way {
                url: Url::parse(&format!("ws://{host}:{port}/mesh/v1")).unwrap(),
                tls: web_tls(),
                pinned: false,
                proxy: None,
                rotations: None,
                bounds: Some(Bounds::new(vec![
                    "0.0.0.0/0".parse().unwrap(),
                    "::/0".parse().unwrap(),
                ])),
            };
            let error = connect(&way).await.err().unwrap();
            assert!(
                matches!(error, ConnectError::OutOfBounds),
                "{host}: {error}"
            );
        }
        tokio::select! {
            biased;
            _ = listener.accept() => panic!("it was dialed"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn plain_server_fails_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Tasks::new().spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.write_all(b"HTTP/1.1 400 x\r\n\r\n").await;
        });
        let url = format!("wss://127.0.0.1:{port}/mesh/v1");
        let error = dialed(&url).await.err().unwrap();
        assert!(matches!(error, ConnectError::Tls(_)), "{error}");
    }
}
