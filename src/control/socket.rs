//! `GET /ws/events`: the events of `GET /api/v1/events`, over a WebSocket.
//!
//! Each event is one text message. The client only listens: one that reads too slowly, says something, or
//! answers no ping is cut off and told why.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
    request::Parts,
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Bytes, Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    drain::Tasks,
    events::{Events, Happening, Watcher},
    proxy::{
        body::ReplyBody,
        error::{self, Asked},
    },
    wire::{
        code::{Code, Failure},
        limits::{EVENT_KEEP_ALIVE, EVENT_SEND, LOCAL_HEADER_TIMEOUT},
    },
};

/// Nothing a client may say is longer: it answers pings, and closes.
const HEARD_BYTES: usize = 4 * 1024;
/// How long a client may take for the last message.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers the upgrade, and tells events from then on.
///
/// # Errors
/// `invalid_request` for what is no WebSocket, `overloaded` when as many watch as may.
pub fn follow(
    events: &Events,
    tasks: &Tasks,
    head: &Parts,
    asked: Asked,
) -> Result<Response<ReplyBody>, Failure> {
    let wrong = || {
        Failure::not_started(
            Code::InvalidRequest,
            "connect here with a WebSocket (version 13), or read `GET /api/v1/events`",
        )
    };
    let accept = accepted(&head.headers).ok_or_else(wrong)?;
    let upgrade = head.extensions.get::<OnUpgrade>().ok_or_else(wrong)?;
    let watcher = events.watch()?;
    // Ends with its client, or with the node's events.
    tasks.spawn(serve(upgrade.clone(), watcher));
    let mut response = Response::new(ReplyBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    error::stamp(&mut response, asked.id);
    Ok(response)
}

/// The answer to a client's key, if it asks for a WebSocket as it should.
fn accepted(headers: &HeaderMap) -> Option<HeaderValue> {
    let has = |name: HeaderName, word: &str| {
        let values = headers.get_all(name).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let asked =
        has(UPGRADE, "websocket") && has(CONNECTION, "upgrade") && has(SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| asked)?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()
}

async fn serve(upgrade: OnUpgrade, mut watcher: Watcher) {
    let Ok(Ok(upgraded)) = timeout(LOCAL_HEADER_TIMEOUT, upgrade).await else {
        return;
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(HEARD_BYTES)
        .max_message_size(Some(HEARD_BYTES))
        .max_frame_size(Some(HEARD_BYTES));
    let io = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    if let Some((code, reason)) = tell(&mut socket, &mut watcher).await {
        tracing::debug!(reason, "a client that watches events is cut off");
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        // Who takes not even that has lost it.
        let _ = timeout(CLOSE_TIMEOUT, socket.close(Some(frame))).await;
    }
}

/// Tells events until there is a reason to close; none when the client is gone.
async fn tell<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    watcher: &mut Watcher,
) -> Option<(CloseCode, &'static str)> {
    /// What a slow client is told, however its slowness shows.
    const SLOW: (CloseCode, &str) = (CloseCode::Policy, "too slow: events were missed");
    let mut unanswered = false;
    loop {
        let message = tokio::select! {
            event = timeout(EVENT_KEEP_ALIVE, watcher.next()) => match event {
                Ok(Some(event)) if event.what == Happening::Gap => return Some(SLOW),
                Ok(Some(event)) => Message::text(event.data.to_string()),
                Ok(None) => return Some((CloseCode::Away, "the node stops")),
                Err(_) if unanswered => return Some((CloseCode::Policy, "a ping was not answered")),
                Err(_) => {
                    unanswered = true;
                    Message::Ping(Bytes::new())
                }
            },
            heard = socket.next() => match heard {
                Some(Ok(Message::Pong(_))) => {
                    unanswered = false;
                    continue;
                }
                // Its answer goes out with what is told next.
                Some(Ok(Message::Ping(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                    return Some((CloseCode::Unsupported, "this socket only tells"));
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            },
        };
        match timeout(EVENT_SEND, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return None,
            Err(_) => return Some(SLOW),
        }
    }
}
