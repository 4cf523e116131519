//! TLS at the door (protocol 3.1, 3.5): within the same five seconds as the upgrade.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::upgrade::Refusal;
use crate::{
    mesh::socket::Socket,
    wire::limits::{CLOSE_LINGER, UPGRADE_HEADER_BYTES},
};

/// First byte of a TLS connection: a record with a handshake message.
const TLS_HANDSHAKE: u8 = 0x16;
/// What one who speaks plain HTTP or WebSocket gets; a node that dials `ws://` can name the mistake.
const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// The TLS handshake, if this listener speaks TLS.
///
/// # Errors
/// [`Refusal`]; the connection is of no use then.
pub(super) async fn secure(
    mut socket: TcpStream,
    acceptor: Option<TlsAcceptor>,
    deadline: Instant,
) -> Result<Socket, Refusal> {
    let Some(acceptor) = acceptor else {
        return Ok(Socket::Plain(socket));
    };
    let mut first = [0];
    match timeout_at(deadline, socket.peek(&mut first)).await {
        Ok(Ok(1)) if first == [TLS_HANDSHAKE] => {}
        Ok(Ok(1)) => {
            let _ = timeout(CLOSE_LINGER, turn_away(&mut socket)).await;
            return Err(Refusal::NotTls);
        }
        // Looked whether the port is open, and left.
        Ok(_) => return Err(Refusal::NotOurs),
        Err(_) => return Err(Refusal::Timeout),
    }
    match timeout_at(deadline, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => Ok(Socket::Tls(Box::new(stream.into()))),
        Ok(Err(_)) => Err(Refusal::Tls),
        Err(_) => Err(Refusal::Timeout),
    }
}

/// Answers in plain text, and reads what was sent away: a socket closed with unread bytes would be
/// reset, and the reset can overtake the answer.
async fn turn_away(socket: &mut TcpStream) {
    if socket.write_all(ANSWER).await.is_err() || socket.shutdown().await.is_err() {
        return;
    }
    let mut left = UPGRADE_HEADER_BYTES;
    let mut buffer = [0; 1024];
    while left > 0 {
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => left = left.saturating_sub(read),
        }
    }
}
