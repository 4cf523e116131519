//! The real transport: WebSocket messages over a socket (protocol 3.1, 3.5).
//!
//! Before authentication messages are limited to handshake size and the read buffer is small, so
//! that strangers cost little; [`Ws::grow`] lifts both once the handshake has succeeded. Pings and
//! fragments are counted below the WebSocket library, which does not show them ([`meter`]).

pub mod meter;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use futures_util::{Sink, Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Error as WsError,
        error::ProtocolError,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::Utf8Bytes},
    },
};

use self::meter::{Flood, Meter};
use super::{
    socket::Socket,
    transport::{Message, MessageSink, MessageStream, TransportError},
};
use crate::wire::limits::{HANDSHAKE_MESSAGE_BYTES, RECORD_MAX_BYTES, WS_WRITE_BUFFER_BYTES};

/// Read buffer of a stranger: one handshake message fits.
const SMALL_BUFFER: usize = 4 * 1024;
/// Read buffer of a link. The library fills it with zeroes before each read, so a larger one makes
/// small records dearer than it makes large bodies cheaper.
const LINK_BUFFER: usize = 64 * 1024;
/// RFC 6455: the other side gave no close code.
const NO_CODE: u16 = 1005;

/// Settings of a connection before the handshake has succeeded.
fn stranger_config() -> WebSocketConfig {
    link_config()
        .read_buffer_size(SMALL_BUFFER)
        .max_message_size(Some(HANDSHAKE_MESSAGE_BYTES))
        .max_frame_size(Some(HANDSHAKE_MESSAGE_BYTES))
}

/// Settings of a link, and of a connection that we dialed from the start: its address is our own
/// choice, and what follows M4 at once must not be lost with a smaller buffer.
#[must_use]
pub fn link_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(LINK_BUFFER)
        // Above a batch: nothing is written before the flush, so a batch is one write.
        .write_buffer_size(WS_WRITE_BUFFER_BYTES / 2)
        .max_write_buffer_size(WS_WRITE_BUFFER_BYTES)
        .max_message_size(Some(RECORD_MAX_BYTES))
        .max_frame_size(Some(RECORD_MAX_BYTES))
}

/// Sets what every link socket needs: no delay for small records.
pub fn tune(socket: &TcpStream) {
    // A socket that refuses an option still works, only slower.
    let _ = socket.set_nodelay(true);
}

/// A connection whose queue in the system can be kept short.
pub trait Backlog {
    /// Asks for no more than so many unsent bytes in it, else that queue would undo our own order
    /// (protocol 5.5). What the system cannot do is left undone.
    fn hold_back(&self, bytes: usize);
}

impl Backlog for TcpStream {
    fn hold_back(&self, bytes: usize) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = socket2::SockRef::from(self)
            .set_tcp_notsent_lowat(u32::try_from(bytes).unwrap_or(u32::MAX));
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = bytes;
    }
}

impl Backlog for Socket {
    fn hold_back(&self, bytes: usize) {
        self.tcp().hold_back(bytes);
    }
}

type Inner<I> = Option<WebSocketStream<Meter<I>>>;

/// One WebSocket connection, shared by its two halves.
///
/// The mutex is never held across an await, and both halves live on one thread.
#[derive(Debug)]
pub struct Ws<I>(Arc<Mutex<Inner<I>>>);

impl<I> Clone for Ws<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The sending half.
#[derive(Debug)]
pub struct WsSink<I>(Ws<I>);

/// The receiving half.
#[derive(Debug)]
pub struct WsStream<I>(Ws<I>);

impl<I: AsyncRead + AsyncWrite + Unpin> Ws<I> {
    /// The listening side, after the upgrade was answered.
    pub async fn accepted(io: I) -> Self {
        let stream = WebSocketStream::from_raw_socket(
            Meter::frames(io),
            Role::Server,
            Some(stranger_config()),
        )
        .await;
        Self::dialed(stream)
    }

    /// The dialing side, after the upgrade was answered.
    #[must_use]
    pub fn dialed(stream: WebSocketStream<Meter<I>>) -> Self {
        Self(Arc::new(Mutex::new(Some(stream))))
    }

    /// The two halves.
    #[must_use]
    pub fn split(&self) -> (WsSink<I>, WsStream<I>) {
        (WsSink(self.clone()), WsStream(self.clone()))
    }

    /// Lifts the limits of a stranger. Called between the last handshake message and the first
    /// record. On the listening side bytes that came before M4 was sent are thrown away: no honest
    /// neighbour sends any, and the record that is missing then does not open.
    pub async fn grow(&self) {
        let small = |stream: &WebSocketStream<Meter<I>>| {
            stream.get_config().read_buffer_size == SMALL_BUFFER
        };
        let Some(stream) = self.lock().take_if(|stream| small(stream)) else {
            return;
        };
        let io = stream.into_inner();
        let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(link_config())).await;
        *self.lock() = Some(stream);
    }

    fn lock(&self) -> MutexGuard<'_, Inner<I>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll<T>(
        &self,
        poll: impl FnOnce(Pin<&mut WebSocketStream<Meter<I>>>) -> Poll<Result<T, WsError>>,
    ) -> Poll<Result<T, TransportError>> {
        match &mut *self.lock() {
            Some(stream) => poll(Pin::new(stream)).map_err(transport_error),
            None => Poll::Ready(Err(TransportError::Closed)),
        }
    }
}

fn transport_error(error: WsError) -> TransportError {
    match error {
        WsError::ConnectionClosed
        | WsError::AlreadyClosed
        | WsError::Protocol(
            ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing,
        ) => TransportError::Closed,
        WsError::Capacity(_) => TransportError::TooLarge,
        WsError::Io(error) if is_flood(&error) => TransportError::Flood,
        WsError::Io(error) => TransportError::Io(error),
        WsError::Utf8(_) => TransportError::Protocol("text that is not UTF-8"),
        _ => TransportError::Protocol("malformed frame"),
    }
}

fn is_flood(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Flood>())
}

impl<I: AsyncRead + AsyncWrite + Backlog + Unpin + Send + 'static> MessageSink for WsSink<I> {
    async fn feed(&mut self, message: Message) -> Result<(), TransportError> {
        let message = match message {
            Message::Text(text) => tungstenite::Message::Text(text.into()),
            Message::Binary(bytes) => tungstenite::Message::Binary(bytes.freeze()),
            Message::Close { code, reason } => {
                self.close(code, &reason).await;
                return Ok(());
            }
        };
        let mut message = Some(message);
        poll_fn(|cx| {
            self.0.poll(|mut stream| {
                ready!(stream.as_mut().poll_ready(cx))?;
                Poll::Ready(match message.take() {
                    Some(message) => stream.start_send(message),
                    None => Ok(()),
                })
            })
        })
        .await
    }

    async fn flush(&mut self) -> Result<(), TransportError> {
        poll_fn(|cx| self.0.poll(|stream| stream.poll_flush(cx))).await
    }

    fn hold_back(&mut self, bytes: usize) {
        if let Some(stream) = &*self.0.lock() {
            stream.get_ref().get_ref().hold_back(bytes);
        }
    }

    async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame {
            code: code.into(),
            reason: Utf8Bytes::from(reason),
        };
        let started = self.0.poll(|stream| {
            Poll::Ready(stream.start_send(tungstenite::Message::Close(Some(frame))))
        });
        // An error here means that the other side has closed before; its answer is flushed below.
        let _ = started;
        let _ = self.flush().await;
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin + Send + 'static> MessageStream for WsStream<I> {
    async fn next(&mut self) -> Result<Option<Message>, TransportError> {
        poll_fn(|cx| self.poll_message(cx)).await
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> WsStream<I> {
    fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Message>, TransportError>> {
        loop {
            let next = self
                .0
                .poll(|stream| stream.poll_next(cx).map(Option::transpose));
            let message = match ready!(next)? {
                None => return Poll::Ready(Ok(None)),
                Some(tungstenite::Message::Text(text)) => Message::Text(text.as_str().to_owned()),
                Some(tungstenite::Message::Binary(bytes)) => Message::Binary(BytesMut::from(bytes)),
                Some(tungstenite::Message::Close(frame)) => frame.map_or(
                    Message::Close {
                        code: NO_CODE,
                        reason: String::new(),
                    },
                    |frame| Message::Close {
                        code: frame.code.into(),
                        reason: frame.reason.as_str().to_owned(),
                    },
                ),
                // The library answers pings; the meter counts both.
                Some(
                    tungstenite::Message::Ping(_)
                    | tungstenite::Message::Pong(_)
                    | tungstenite::Message::Frame(_),
                ) => continue,
            };
            return Poll::Ready(Ok(Some(message)));
        }
    }
}
