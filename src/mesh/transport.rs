//! What carries a link: whole messages, in order, both ways (protocol 3.1).
//!
//! The handshake and the link run over these traits and know nothing of sockets. `ws` is
//! the real carrier, [`super::memory`] the one for tests; both run the same test suite. Limits on
//! message size and on pings and fragments are the carrier's own business, since only it sees them.

use std::{future::Future, io};

use bytes::BytesMut;

/// One WebSocket message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text: the four handshake messages, nothing else.
    Text(String),
    /// Binary: one link record. Mutable, so that it is opened where it lies.
    Binary(BytesMut),
    /// The other side ends the connection; nothing follows.
    Close {
        /// WebSocket close code; 1005 when the other side gave none.
        code: u16,
        /// Its text; written by a stranger until the handshake is over.
        reason: String,
    },
}

/// Why a transport can carry nothing more.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The connection is gone, without a close message.
    #[error("connection closed")]
    Closed,
    /// The system refused.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// A message or frame above [`crate::wire::limits::RECORD_MAX_BYTES`], refused before it was read.
    #[error("message too large")]
    TooLarge,
    /// More pings or fragments than protocol 5.5 allows.
    #[error("too many pings or fragments")]
    Flood,
    /// Not what RFC 6455 says.
    #[error("not the WebSocket protocol: {0}")]
    Protocol(&'static str),
}

/// The sending half.
pub trait MessageSink: Send + 'static {
    /// Takes one message; it may lie in a buffer until [`MessageSink::flush`].
    fn feed(&mut self, message: Message)
    -> impl Future<Output = Result<(), TransportError>> + Send;
    /// Resolves once everything fed has left user space.
    fn flush(&mut self) -> impl Future<Output = Result<(), TransportError>> + Send;
    /// Asks the system to hold no more unsent bytes than these, where it can be asked.
    fn hold_back(&mut self, bytes: usize) {
        let _ = bytes;
    }
    /// Sends a close message and flushes; nothing can be fed afterwards. An error is of no use to
    /// anybody: the connection is given up either way.
    fn close(&mut self, code: u16, reason: &str) -> impl Future<Output = ()> + Send;
}

/// The receiving half.
pub trait MessageStream: Send + 'static {
    /// The next message; none after the end. Cancel safe: a dropped call loses no message.
    fn next(&mut self) -> impl Future<Output = Result<Option<Message>, TransportError>> + Send;
}
