//! The way out through an HTTP proxy: `CONNECT` (protocol 3.5), to the one the operator names in the
//! peer's entry. Environment variables are not read.

use std::{fmt, io};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use url::{Host, Url};

use crate::{crypto::secret::Secret, wire::limits::PROXY_HEAD_BYTES};

/// A proxy and what it is told.
#[derive(Debug, Clone)]
pub struct HttpProxy {
    host: Host<String>,
    port: u16,
    /// User and password as the header wants them.
    credentials: Option<Secret<String>>,
}

impl fmt::Display for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why a text names no proxy. Says nothing of its content, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadProxy {
    /// Not a URL.
    #[error("not a URL")]
    Url,
    /// Another scheme than `http`.
    #[error("not an `http://` URL")]
    Scheme,
    /// More than host, port and credentials.
    #[error("a proxy has no path")]
    Path,
}

impl HttpProxy {
    /// Reads `http://[user:password@]host[:port]`; no port means 80.
    ///
    /// # Errors
    /// [`BadProxy`].
    pub fn parse(text: &str) -> Result<Self, BadProxy> {
        let url = Url::parse(text).map_err(|_| BadProxy::Url)?;
        if url.scheme() != "http" {
            return Err(BadProxy::Scheme);
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(BadProxy::Path);
        }
        let host = url.host().ok_or(BadProxy::Url)?.to_owned();
        let named = !url.username().is_empty() || url.password().is_some();
        let credentials = named.then(|| {
            let user = percent_decode_str(url.username());
            let mut plain: Vec<u8> = user.collect();
            plain.push(b':');
            plain.extend(percent_decode_str(url.password().unwrap_or_default()));
            Secret::new(STANDARD.encode(plain))
        });
        Ok(Self {
            host,
            port: url.port_or_known_default().ok_or(BadProxy::Url)?,
            credentials,
        })
    }

    /// Its name or address.
    pub(super) fn host(&self) -> Host<&str> {
        match &self.host {
            Host::Domain(name) => Host::Domain(name),
            Host::Ipv4(ip) => Host::Ipv4(*ip),
            Host::Ipv6(ip) => Host::Ipv6(*ip),
        }
    }

    /// Its port.
    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// What must not appear in a log.
    #[must_use]
    pub const fn credentials(&self) -> Option<&Secret<String>> {
        self.credentials.as_ref()
    }
}

/// Why a proxy did not let us through.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It could not be reached.
    #[error("proxy `{0}`: {1}")]
    Unreached(String, String),
    /// It wants to know who asks.
    #[error(
        "proxy `{0}` wants a user name and password (HTTP 407); put them into `proxy`: `http://USER:PASSWORD@HOST:PORT`"
    )]
    Unauthorised(String),
    /// It does not want to.
    #[error("proxy `{0}` answered HTTP {1} to CONNECT; does it allow this host and port?")]
    Refused(String, u16),
    /// It answered something else.
    #[error("proxy `{0}` does not answer as an HTTP proxy")]
    NoProxy(String),
    /// The connection to it broke.
    #[error("the connection to proxy `{0}` broke: {1}")]
    Broken(String, io::Error),
}

/// Asks the proxy at the other end of `socket` for a connection to `host:port`.
///
/// # Errors
/// [`ProxyError`]; the connection is of no use then.
pub(super) async fn tunnel(
    socket: &mut TcpStream,
    proxy: &HttpProxy,
    host: Host<&str>,
    port: u16,
) -> Result<(), ProxyError> {
    let broken = |error| ProxyError::Broken(proxy.to_string(), error);
    // `Host` puts an IPv6 address into brackets.
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n");
    if let Some(credentials) = &proxy.credentials {
        request.push_str("proxy-authorization: Basic ");
        request.push_str(credentials.reveal());
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    let request = zeroize::Zeroizing::new(request);
    socket.write_all(request.as_bytes()).await.map_err(broken)?;
    let head = head(socket).await.map_err(broken)?;
    match head.as_deref().and_then(status) {
        Some(200..=299) => Ok(()),
        Some(407) => Err(ProxyError::Unauthorised(proxy.to_string())),
        Some(status) => Err(ProxyError::Refused(proxy.to_string(), status)),
        None => Err(ProxyError::NoProxy(proxy.to_string())),
    }
}

/// The head of the answer; none when it is too long. Not a byte more is read: what follows belongs
/// to the node.
async fn head(socket: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == PROXY_HEAD_BYTES {
            return Ok(None);
        }
        head.push(socket.read_u8().await?);
    }
    Ok(Some(head))
}

fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    let code = rest.get(1..)?.strip_prefix(b" ")?.get(..3)?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_and_shown_without_credentials() {
        let proxy = HttpProxy::parse("http://me:p%40ss@proxy.example:3128").unwrap();
        assert_eq!(proxy.to_string(), "proxy.example:3128");
        assert_eq!(
            proxy.credentials().unwrap().reveal(),
            &STANDARD.encode("me:p@ss")
        );
        let shown = format!("{proxy:?}");
        assert!(
            !shown.contains("p@ss") && !shown.contains(&STANDARD.encode("me:p@ss")),
            "{shown}"
        );
        assert_eq!(
            HttpProxy::parse("http://[::1]").unwrap().to_string(),
            "[::1]:80"
        );
        for (text, error) in [
            ("proxy.example:3128", BadProxy::Scheme),
            ("socks5://proxy.example", BadProxy::Scheme),
            ("https://proxy.example", BadProxy::Scheme),
            ("http://proxy.example/path", BadProxy::Path),
            ("http://", BadProxy::Url),
        ] {
            assert_eq!(HttpProxy::parse(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn only_a_status_line_is_a_status() {
        assert_eq!(
            status(b"HTTP/1.1 200 Connection established\r\n\r\n"),
            Some(200)
        );
        assert_eq!(status(b"HTTP/1.0 407 x\r\n\r\n"), Some(407));
        for other in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 2\r\n\r\n",
        ] {
            assert_eq!(status(other), None);
        }
    }
}
