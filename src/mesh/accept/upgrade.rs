//! From a raw socket to a WebSocket, or to an answer that says no (protocol 3.1, 3.5).
//!
//! The listener knows one path and a bodyless health check. What a stranger can make us do here is
//! parse 16 KiB of headers, once, within five seconds.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::{
    mesh::{
        limiter::{Cidr, source::behind_proxies},
        rotation,
        signed::Signed,
        socket::Socket,
        ws::Ws,
    },
    wire::limits::{UPGRADE_HEADER_BYTES, UPGRADE_HEADERS, UPGRADE_TIMEOUT},
};

/// Path of links.
pub const LINK_PATH: &str = "/mesh/v1";
/// The only subprotocol.
pub const SUBPROTOCOL: &str = "clawmatrix.v1";

/// Why a connection did not become a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing is wrong: it asked for the health check.
    #[error("health check")]
    Health,
    /// A web page tried.
    #[error("request of a web page")]
    Browser,
    /// A WebSocket without our path and subprotocol.
    #[error("not our subprotocol: old plugin, upgrade it")]
    OldPlugin,
    /// Anything else.
    #[error("not an upgrade to our protocol")]
    NotOurs,
    /// Plain text where TLS is spoken.
    #[error("no TLS, at a port that speaks TLS")]
    NotTls,
    /// The TLS handshake failed.
    #[error("TLS handshake failed")]
    Tls,
    /// Too slow, or it went away.
    #[error("no upgrade in time")]
    Timeout,
}

/// What the listener brings into an upgrade.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// Proxies that are believed.
    pub trusted_proxies: &'a [Cidr],
    /// Our changes of key, shown in the answer.
    pub rotations: Option<&'a HeaderValue>,
}

/// A connection after the upgrade.
#[derive(Debug)]
pub struct Upgraded {
    /// The WebSocket.
    pub ws: Ws<Socket>,
    /// Where it comes from, trusted proxies looked through.
    pub from: IpAddr,
    /// Whether a trusted proxy says that it was reached over TLS.
    pub proxy_tls: bool,
    /// Changes of its key that the dialer has shown; nothing of them is checked yet.
    pub rotations: Vec<Signed>,
}

/// What the one request deserves, where it really comes from, whether a proxy saw TLS, and the changes
/// of key it shows.
type Verdict = (Result<(), Refusal>, IpAddr, bool, Vec<Signed>);

enum Answer {
    Link(HeaderValue),
    No(Refusal, StatusCode),
}

/// Whether a comma separated header holds `token`, in any case.
fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

fn judge<B>(request: &Request<B>) -> Answer {
    let headers = request.headers();
    let path = request.uri().path();
    if headers.contains_key(header::ORIGIN) {
        return Answer::No(Refusal::Browser, StatusCode::FORBIDDEN);
    }
    if request.method() != Method::GET {
        return Answer::No(Refusal::NotOurs, StatusCode::METHOD_NOT_ALLOWED);
    }
    if path == "/healthz" {
        return Answer::No(Refusal::Health, StatusCode::OK);
    }
    let websocket = has_token(headers, header::UPGRADE, "websocket")
        && has_token(headers, header::CONNECTION, "upgrade");
    if !websocket {
        let status = if path == LINK_PATH {
            StatusCode::UPGRADE_REQUIRED
        } else {
            StatusCode::NOT_FOUND
        };
        return Answer::No(Refusal::NotOurs, status);
    }
    let ours = has_token(headers, header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    if !ours {
        // The earlier plugin asks for other paths, or for this one without a subprotocol.
        return Answer::No(Refusal::OldPlugin, StatusCode::UPGRADE_REQUIRED);
    }
    if path != LINK_PATH {
        return Answer::No(Refusal::NotOurs, StatusCode::NOT_FOUND);
    }
    let version = has_token(headers, header::SEC_WEBSOCKET_VERSION, "13");
    match headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key) if version && key.len() == 24 => {
            match HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
                Ok(accept) => Answer::Link(accept),
                Err(_) => Answer::No(Refusal::NotOurs, StatusCode::BAD_REQUEST),
            }
        }
        _ => Answer::No(Refusal::NotOurs, StatusCode::BAD_REQUEST),
    }
}

fn respond(answer: &Answer, rotations: Option<&HeaderValue>) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    match answer {
        Answer::Link(accept) => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.clone());
            headers.insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(SUBPROTOCOL),
            );
            if let Some(rotations) = rotations {
                headers.insert(rotation::HEADER, rotations.clone());
            }
        }
        Answer::No(_, status) => {
            *response.status_mut() = *status;
            // One request is all a connection gets. (The builder's own switch for that would
            // overwrite the `connection` header of an upgrade.)
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

/// Whether a proxy that is believed says that the client came over TLS.
fn over_tls(headers: &HeaderMap, address: IpAddr, trusted_proxies: &[Cidr]) -> bool {
    trusted_proxies.iter().any(|range| range.contains(address))
        && headers
            .get("x-forwarded-proto")
            .is_some_and(|proto| matches!(proto.as_bytes(), b"https" | b"wss"))
}

/// Serves one request on `socket`, which came from `address`, until `deadline` at the latest.
///
/// # Errors
/// [`Refusal`]; the connection has been answered and closed.
pub async fn upgrade(
    socket: Socket,
    address: IpAddr,
    facts: Facts<'_>,
    deadline: Instant,
) -> Result<Upgraded, Refusal> {
    let trusted_proxies = facts.trusted_proxies;
    // The service cannot return the verdict, so it leaves it here.
    let verdict: Arc<Mutex<Option<Verdict>>> = Arc::default();
    let service = service_fn(|request: Request<Incoming>| {
        let answer = judge(&request);
        let result = match &answer {
            Answer::Link(_) => Ok(()),
            Answer::No(refusal, _) => Err(*refusal),
        };
        let lines = request.headers().get_all("x-forwarded-for");
        let lines: Vec<&str> = lines.iter().filter_map(|l| l.to_str().ok()).collect();
        let from = behind_proxies(address, lines.into_iter(), trusted_proxies);
        let proxy_tls = over_tls(request.headers(), address, trusted_proxies);
        let shown = rotation::read_shown(request.headers().get(rotation::HEADER));
        *verdict.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((result, from, proxy_tls, shown));
        let response = respond(&answer, facts.rotations);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(UPGRADE_TIMEOUT)
        .max_headers(UPGRADE_HEADERS)
        .max_buf_size(UPGRADE_HEADER_BYTES)
        .half_close(false)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(socket), service)
        .without_shutdown();
    // The outer timer covers what hyper's does not: a slow reader of the answer.
    let parts = timeout_at(deadline, connection).await;
    let verdict = verdict
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match (parts, verdict) {
        (Ok(Ok(parts)), Some((Ok(()), from, proxy_tls, rotations)))
            if parts.read_buf.is_empty() =>
        {
            Ok(Upgraded {
                ws: Ws::accepted(parts.io.into_inner()).await,
                from,
                proxy_tls,
                rotations,
            })
        }
        // Frames sent before our answer: no honest dialer does that.
        (Ok(Ok(_)), Some((Ok(()), ..))) => Err(Refusal::NotOurs),
        (_, Some((Err(refusal), ..))) => Err(refusal),
        (Ok(_), None) => Err(Refusal::NotOurs),
        (_, _) => Err(Refusal::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::Instant,
    };

    use super::*;
    use crate::drain::Tasks;

    /// Serves one connection; gives the client's socket and where the result will be.
    async fn served() -> (
        TcpStream,
        tokio::sync::oneshot::Receiver<Result<Upgraded, Refusal>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (socket, address) = listener.accept().await.unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        Tasks::new().spawn(async move {
            let deadline = Instant::now() + UPGRADE_TIMEOUT;
            let socket = Socket::Plain(socket);
            let _ = tell.send(upgrade(socket, address.ip(), Facts::default(), deadline).await);
        });
        (client, told)
    }

    const GOOD: &str = "GET /mesh/v1 HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-protocol: clawmatrix.v1\r\n";

    async fn exchange(request: &str) -> (String, Result<Upgraded, Refusal>) {
        let (mut client, told) = served().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let result = told.await.unwrap();
        let mut answer = vec![0; 1024];
        let read = if result.is_ok() {
            client.read(&mut answer).await.unwrap()
        } else {
            let mut all = Vec::new();
            // A reset after the answer is as good as an end.
            let _ = client.read_to_end(&mut all).await;
            answer = all;
            answer.len()
        };
        (
            String::from_utf8_lossy(&answer[..read]).into_owned(),
            result,
        )
    }

    #[tokio::test]
    async fn our_upgrade_is_answered_with_the_subprotocol() {
        let (answer, result) = exchange(&format!("{GOOD}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(answer.contains("sec-websocket-protocol: clawmatrix.v1"));
        assert!(answer.contains("connection: Upgrade"));
        assert!(result.is_ok());
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        let swap = |from: &str, to: &str| format!("{}\r\n", GOOD.replace(from, to));
        let cases = [
            (
                format!("{GOOD}origin: http://evil.example\r\n\r\n"),
                "403",
                Refusal::Browser,
            ),
            (
                format!("{GOOD}origin: null\r\n\r\n"),
                "403",
                Refusal::Browser,
            ),
            (swap("GET", "POST"), "405", Refusal::NotOurs),
            (swap("/mesh/v1", "/mesh/v1/join"), "404", Refusal::NotOurs),
            (swap("/mesh/v1", "/other"), "404", Refusal::NotOurs),
            (swap("clawmatrix.v1", "other"), "426", Refusal::OldPlugin),
            (
                swap("GET /mesh/v1", "GET /ws")
                    .replace("sec-websocket-protocol: clawmatrix.v1\r\n", ""),
                "426",
                Refusal::OldPlugin,
            ),
            (swap("upgrade: websocket", "x: y"), "426", Refusal::NotOurs),
            (swap("version: 13", "version: 8"), "400", Refusal::NotOurs),
            (
                swap("dGhlIHNhbXBsZSBub25jZQ==", "short"),
                "400",
                Refusal::NotOurs,
            ),
            (
                "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".into(),
                "200",
                Refusal::Health,
            ),
            (
                "GET / HTTP/1.1\r\nhost: x\r\n\r\n".into(),
                "404",
                Refusal::NotOurs,
            ),
            ("garbage\r\n\r\n".into(), "", Refusal::NotOurs),
        ];
        for (request, status, refusal) in cases {
            let (answer, result) = exchange(&request).await;
            assert_eq!(result.err(), Some(refusal), "{request}");
            assert!(answer.contains(status), "{request} -> {answer}");
            assert!(!answer.contains("101 Switching"));
        }
    }

    #[tokio::test]
    async fn large_or_many_headers_are_refused() {
        let long = format!("{GOOD}x: {}\r\n\r\n", "y".repeat(20_000));
        assert_eq!(exchange(&long).await.1.err(), Some(Refusal::NotOurs));
        let many: String = (0..70).map(|n| format!("x{n}: y\r\n")).collect();
        assert_eq!(
            exchange(&format!("{GOOD}{many}\r\n")).await.1.err(),
            Some(Refusal::NotOurs)
        );
        let some: String = (0..50).map(|n| format!("x{n}: y\r\n")).collect();
        assert!(exchange(&format!("{GOOD}{some}\r\n")).await.1.is_ok());
    }

    #[tokio::test]
    async fn frames_before_our_answer_are_refused() {
        let (_, result) = exchange(&format!("{GOOD}\r\n\u{1}\u{2}")).await;
        assert_eq!(result.err(), Some(Refusal::NotOurs));
    }

    /// T48, the part before the upgrade; real time, since sockets do not pause.
    #[tokio::test]
    async fn silent_and_dripping_connections_end_within_six_seconds() {
        let (silent, silent_told) = served().await;
        let (mut dripping, dripping_told) = served().await;
        let began = Instant::now();
        let drip = async {
            for byte in GOOD.as_bytes() {
                if dripping.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let ended = async {
            let silent = silent_told.await.unwrap();
            let dripping = dripping_told.await.unwrap();
            (silent.is_err(), dripping.is_err(), began.elapsed())
        };
        tokio::pin!(drip, ended);
        let ended = tokio::select! {
            ended = &mut ended => ended,
            () = &mut drip => ended.await,
        };
        assert!(ended.0 && ended.1);
        assert!(ended.2 < Duration::from_secs(7), "{:?}", ended.2);
        drop(silent);
    }
}
