//! The HTTP/1.1 call to a provider: plain or over TLS by web roots, through a pool of kept
//! connections. No proxy variables, no redirects, no decompression, no header of its own.
//!
//! Dropping a call or its answer before the last byte closes the connection, which is how a provider
//! learns that nobody listens any more.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use super::{Route, endpoint::Endpoint, pool::Pool};
use crate::{
    drain::Tasks,
    wire::limits::{CHUNK_BYTES, PROVIDER_CONNECT_TIMEOUT},
};

/// One of several addresses of a name gets this long before the next is tried.
const NEXT_ADDRESS: Duration = Duration::from_secs(2);

/// A kept connection that the other side has just closed fails within a round trip. What fails later
/// was being worked on, and asking again would be a second request.
const STALE_WITHIN: Duration = Duration::from_secs(2);

/// Why a provider gave no answer, or no further part of one. Nothing of it goes to another node.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// No connection.
    #[error("cannot connect to the provider")]
    Connect(#[source] io::Error),
    /// The connection broke, or what came is not HTTP.
    #[error("the provider broke off")]
    Http(#[source] hyper::Error),
}

/// A request body in up to three pieces: what stands before `model`, the new name, what follows.
/// Its length is known, so that it goes out with `content-length`.
#[derive(Debug, Clone)]
pub struct Pieces {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl Pieces {
    /// A body of these pieces.
    pub fn new(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let pieces: VecDeque<_> = pieces.into_iter().filter(|p| !p.is_empty()).collect();
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { pieces, left }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        self.left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Calls providers; cheap to clone.
#[derive(Clone)]
pub struct Client {
    tls: TlsConnector,
    pool: Pool,
    tasks: Tasks,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// A client that trusts the web's certificate authorities.
    #[must_use]
    pub fn new(tasks: Tasks) -> Self {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        Self::with_roots(tasks, roots)
    }

    /// A client that trusts `roots`.
    ///
    /// # Panics
    /// Never: the ring provider has the protocol versions that rustls calls safe.
    #[must_use]
    pub fn with_roots(tasks: Tasks, roots: RootCertStore) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring supports TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            tls: TlsConnector::from(Arc::new(config)),
            pool: Pool::default(),
            tasks,
        }
    }

    /// Posts `body` to `route` of `endpoint`; resolves at the head of the answer.
    ///
    /// A kept connection may have been closed by the other side just now: when it gives no byte of an
    /// answer, the request goes out once more over a new one.
    ///
    /// # Errors
    /// [`ProviderError`].
    pub async fn post(
        &self,
        endpoint: &Endpoint,
        route: Route,
        client_headers: &HeaderMap,
        body: Pieces,
    ) -> Result<ProviderAnswer, ProviderError> {
        let request = || {
            let mut request = Request::new(body.clone());
            *request.method_mut() = http::Method::POST;
            // Joined from a parsed URL and a fixed route, so it parses; a bare `/` would be a 404.
            *request.uri_mut() = endpoint.target(route).parse().unwrap_or_default();
            *request.headers_mut() = endpoint.headers(client_headers);
            request
        };
        if let Some(mut sender) = self.pool.take(&endpoint.origin) {
            let began = Instant::now();
            let sent = match sender.ready().await {
                Ok(()) => sender.send_request(request()).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(response) => return Ok(self.answer(endpoint, sender, response)),
                // Bytes came, and they are wrong: that is an answer too.
                Err(error) if error.is_parse() || began.elapsed() > STALE_WITHIN => {
                    return Err(ProviderError::Http(error));
                }
                Err(_) => {}
            }
        }
        let mut sender = self.connect(endpoint).await?;
        let response = sender
            .send_request(request())
            .await
            .map_err(ProviderError::Http)?;
        Ok(self.answer(endpoint, sender, response))
    }

    fn answer(
        &self,
        endpoint: &Endpoint,
        sender: SendRequest<Pieces>,
        response: http::Response<Incoming>,
    ) -> ProviderAnswer {
        let (head, body) = response.into_parts();
        let length = body.size_hint().exact();
        ProviderAnswer {
            status: head.status,
            headers: head.headers,
            length,
            body: ProviderBody {
                incoming: Some(body),
                kept: Some((self.pool.clone(), endpoint.origin.clone(), sender)),
                failed: None,
            },
        }
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<SendRequest<Pieces>, ProviderError> {
        timeout(PROVIDER_CONNECT_TIMEOUT, async {
            let stream = connect_tcp(&endpoint.host, endpoint.port).await?;
            if endpoint.tls {
                let name = ServerName::try_from(endpoint.host.clone())
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                let stream = self.tls.connect(name, stream).await?;
                Ok(self.handshake(stream).await)
            } else {
                Ok(self.handshake(stream).await)
            }
        })
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
        .map_err(ProviderError::Connect)?
        .map_err(ProviderError::Http)
    }

    async fn handshake<S>(&self, stream: S) -> Result<SendRequest<Pieces>, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the sender and the answer are dropped, or the provider closes.
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to provider ended");
            }
        });
        Ok(sender)
    }
}

/// Connects to the first address of `host` that answers.
async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (index, address) in addresses.iter().enumerate() {
        let attempt = TcpStream::connect(address);
        let result = if index + 1 < addresses.len() {
            timeout(NEXT_ADDRESS, attempt)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        } else {
            attempt.await
        };
        match result {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The head of a provider's answer; its body follows.
#[derive(Debug)]
pub struct ProviderAnswer {
    /// Status as given.
    pub status: StatusCode,
    /// Every header as given.
    pub headers: HeaderMap,
    /// Body length, when the provider said it.
    pub length: Option<u64>,
    /// The body.
    pub body: ProviderBody,
}

/// Bytes that arrived together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The bytes; empty only when `last`.
    pub data: Bytes,
    /// Whether nothing follows.
    pub last: bool,
}

/// The body of an answer. Dropped before its end, it closes the connection.
pub struct ProviderBody {
    incoming: Option<Incoming>,
    kept: Option<(Pool, Arc<str>, SendRequest<Pieces>)>,
    /// Came right behind bytes that had to go first.
    failed: Option<hyper::Error>,
}

impl std::fmt::Debug for ProviderBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderBody")
            .field("open", &self.incoming.is_some())
            .finish_non_exhaustive()
    }
}

impl ProviderBody {
    /// What has arrived since the last call, joined up to one chunk; waits when nothing has. After the
    /// piece marked `last` it gives none.
    ///
    /// # Errors
    /// [`ProviderError::Http`] when the body broke off.
    pub async fn next(&mut self) -> Result<Option<Piece>, ProviderError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, ProviderError>> {
        if let Some(error) = self.failed.take() {
            self.close();
            return Poll::Ready(Err(ProviderError::Http(error)));
        }
        let mut first = Bytes::new();
        let mut joined = BytesMut::new();
        let last = loop {
            let held = first.len().max(joined.len());
            if held >= CHUNK_BYTES {
                break false;
            }
            let Some(incoming) = &mut self.incoming else {
                return Poll::Ready(Ok(None));
            };
            let frame = match Pin::new(incoming).poll_frame(cx) {
                Poll::Pending if held == 0 => return Poll::Pending,
                Poll::Pending => break false,
                Poll::Ready(frame) => frame,
            };
            match frame {
                None => {
                    self.finish();
                    break true;
                }
                Some(Ok(frame)) => {
                    // Trailers have no place in the tunnel.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    if held == 0 {
                        first = data;
                    } else {
                        if joined.is_empty() {
                            joined.extend_from_slice(&first);
                        }
                        joined.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) if held == 0 => {
                    self.close();
                    return Poll::Ready(Err(ProviderError::Http(error)));
                }
                Some(Err(error)) => {
                    self.failed = Some(error);
                    break false;
                }
            }
        };
        let data = if joined.is_empty() {
            first
        } else {
            joined.freeze()
        };
        Poll::Ready(Ok(Some(Piece { data, last })))
    }

    /// The last byte is read: the connection can serve again.
    fn finish(&mut self) {
        self.incoming = None;
        if let Some((pool, origin, sender)) = self.kept.take() {
            pool.put(origin, sender);
        }
    }

    fn close(&mut self) {
        self.incoming = None;
        self.kept = None;
    }

    /// Reads to the end, or until more than `limit` bytes have come: then what came so far and
    /// `false`.
    ///
    /// # Errors
    /// As [`ProviderBody::next`].
    pub async fn collect(&mut self, limit: usize) -> Result<(Bytes, bool), ProviderError> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.next().await? {
            if all.is_empty() && piece.last {
                let whole = piece.data.len() <= limit;
                return Ok((piece.data, whole));
            }
            all.extend_from_slice(&piece.data);
            if all.len() > limit {
                return Ok((all.freeze(), false));
            }
            if piece.last {
                break;
            }
        }
        Ok((all.freeze(), true))
    }
}
