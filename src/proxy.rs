//! The local API on 127.0.0.1 (contract 3): one accept loop, one route table. Model routes are served
//! here; what begins with `/api/v1` belongs to [`crate::control`].
//!
//! Order of checks for every request: `Host`, browser marks, token, route, scope, content type. What
//! fails says no more than it must, and costs no upstream call.

pub mod body;
pub mod connection;
pub mod error;
pub mod guard;
pub mod identity;
pub mod io;
pub mod list;
pub mod metrics;
pub mod model;
pub mod tokens;
pub mod upload;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, AUTHORIZATION, WWW_AUTHENTICATE},
    request::Parts,
};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{
    body::ReplyBody,
    connection::Handler,
    error::Asked,
    io::Busy,
    metrics::Counters,
    model::Models,
    tokens::{Grant, Scope, TokenKind, TokenStore},
};
use crate::{
    control::Control,
    drain::Tasks,
    ids::{NodeId, RequestId},
    models::{Route, catalog::Catalog},
    wire::{
        code::{Code, Failure},
        limits::{LOCAL_CONNECTIONS, REQUEST_BODY_BYTES, REQUESTS_PER_TOKEN},
    },
};

/// The local API of one node; cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalApi(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    port: u16,
    tokens: TokenStore,
    models: Models,
    catalog: Catalog,
    control: Control,
    counters: Arc<Counters>,
    limits: Limits,
    ready: AtomicBool,
    drain: CancellationToken,
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Healthz,
    Readyz,
    /// A model route, on all nodes or on one.
    Ask(Option<NodeId>, Route),
    /// The model list, or one model of it.
    List(Option<NodeId>, Option<String>),
    /// Something of the control API, `/metrics` and `/ws/events` included.
    Control(&'a str),
    /// A node part that is no node name.
    BadNode,
    Nothing,
}

fn place(path: &str) -> Place<'_> {
    match path {
        "/healthz" => return Place::Healthz,
        "/readyz" => return Place::Readyz,
        "/metrics" | "/ws/events" => return Place::Control(path),
        _ => {}
    }
    if path.starts_with("/api/v1/") {
        return Place::Control(path);
    }
    let (node, rest) = match path.strip_prefix("/nodes/") {
        None => (None, path),
        Some(rest) => {
            let Some((node, _)) = rest.split_once('/') else {
                return Place::Nothing;
            };
            let Some(node) = decode(node).and_then(|node| node.parse::<NodeId>().ok()) else {
                return Place::BadNode;
            };
            (Some(node), &rest[rest.find('/').unwrap_or(rest.len())..])
        }
    };
    let Some(tail) = rest.strip_prefix("/v1/") else {
        return Place::Nothing;
    };
    // Clients of the Anthropic api put `/v1/messages` behind a base URL that ends in `/v1`.
    let tail = tail.strip_prefix("v1/").unwrap_or(tail);
    if let Some(route) = Route::from_tail(tail) {
        return Place::Ask(node, route);
    }
    match tail.strip_prefix("models") {
        Some("" | "/") => Place::List(node, None),
        Some(id) if id.starts_with('/') => match decode(&id[1..]) {
            Some(id) => Place::List(node, Some(id)),
            None => Place::Nothing,
        },
        _ => Place::Nothing,
    }
}

fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// Limits an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest request body.
    pub request_body_bytes: u64,
    /// Connections at once.
    pub connections: usize,
    /// Requests at once with one token.
    pub requests_per_token: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_body_bytes: REQUEST_BODY_BYTES as u64,
            connections: LOCAL_CONNECTIONS,
            requests_per_token: REQUESTS_PER_TOKEN,
        }
    }
}

/// Everything a [`LocalApi`] is made of.
#[derive(Debug)]
pub struct Assembly {
    /// Bound port: `Host` must name it.
    pub port: u16,
    /// Who may ask.
    pub tokens: TokenStore,
    /// Model routes.
    pub models: Models,
    /// Model lists.
    pub catalog: Catalog,
    /// `/api/v1`.
    pub control: Control,
    /// Counted here, shown by `control`.
    pub counters: Arc<Counters>,
    /// See there.
    pub limits: Limits,
}

impl LocalApi {
    /// An API that is not ready yet.
    #[must_use]
    pub fn new(parts: Assembly) -> Self {
        Self(Arc::new(Inner {
            port: parts.port,
            tokens: parts.tokens,
            models: parts.models,
            catalog: parts.catalog,
            control: parts.control,
            counters: parts.counters,
            limits: parts.limits,
            ready: AtomicBool::new(false),
            drain: CancellationToken::new(),
        }))
    }

    /// Serves `listener`, which must be bound to a loopback address, until [`LocalApi::drain`].
    pub fn serve(&self, listener: TcpListener, tasks: &Tasks) {
        let accept = connection::accept(
            listener,
            self.clone(),
            self.0.limits.connections,
            self.0.drain.clone(),
            tasks.clone(),
        );
        tasks.spawn(accept);
    }

    /// What `/readyz` says from now on.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    /// Takes no more connections and ends each one after its present request.
    pub fn drain(&self) {
        self.set_ready(false);
        self.0.drain.cancel();
    }

    async fn answer(self, request: Request<Incoming>, busy: Busy) -> Response<ReplyBody> {
        let (head, body) = request.into_parts();
        let mut in_flight = None;
        let mut response = self.route(head, body, &mut in_flight).await;
        self.0.counters.answered(response.status());
        response.body_mut().hold(busy, in_flight);
        response
    }

    async fn route(
        &self,
        head: Parts,
        body: Incoming,
        in_flight: &mut Option<tokens::InFlight>,
    ) -> Response<ReplyBody> {
        let inner = &*self.0;
        let mut asked = Asked {
            id: RequestId::random(),
            openclaw: false,
        };
        if let Err(failure) = guard::check(&head.method, &head.uri, &head.headers, inner.port) {
            return error::response(&failure, asked);
        }
        let place = place(head.uri.path());
        if matches!(place, Place::Healthz | Place::Readyz) {
            return self.probe(&place, &head.method, asked);
        }
        let grant = match self.authenticate(&head.headers, &place) {
            Ok(grant) => grant,
            Err(failure) => {
                let mut response = error::response(&failure, asked);
                if failure.code == Code::InvalidApiKey {
                    let value = HeaderValue::from_static("Bearer");
                    response.headers_mut().insert(WWW_AUTHENTICATE, value);
                }
                return response;
            }
        };
        asked.openclaw = grant.kind == TokenKind::OpenClaw;
        *in_flight = grant.enter(inner.limits.requests_per_token);
        if in_flight.is_none() {
            let failure = Failure::not_started(
                Code::RateLimited,
                "this token has as many requests under way as it may",
            );
            return error::response(&failure, asked);
        }
        let posts = !matches!(head.method, Method::GET | Method::HEAD | Method::DELETE);
        if posts
            && !matches!(place, Place::Nothing | Place::BadNode)
            && let Err(failure) = guard::check_content_type(head.uri.path(), &head.headers)
        {
            return error::response(&failure, asked);
        }
        self.dispatch(place, &grant, &head, body, asked).await
    }

    async fn dispatch(
        &self,
        place: Place<'_>,
        grant: &Grant,
        head: &Parts,
        body: Incoming,
        asked: Asked,
    ) -> Response<ReplyBody> {
        let inner = &*self.0;
        match place {
            Place::Ask(node, route) => {
                if head.method != Method::POST {
                    return method_not_allowed("POST", asked);
                }
                if let Err(failure) = require(grant, Scope::Models) {
                    return error::response(&failure, asked);
                }
                inner.counters.model_request();
                let body = upload::Upload {
                    body,
                    limit: inner.limits.request_body_bytes,
                    budget: &inner.models.budget,
                };
                model::post(&inner.models, route, node, &head.headers, body, asked).await
            }
            Place::List(node, wanted) => {
                if !matches!(head.method, Method::GET | Method::HEAD) {
                    return method_not_allowed("GET", asked);
                }
                if !grant.allows(Scope::Read)
                    && let Err(failure) = require(grant, Scope::Models)
                {
                    return error::response(&failure, asked);
                }
                if let Some(node) = &node {
                    let models = &inner.models.outbound;
                    if !models.us().knows(node, &models.view()) {
                        return error::response(&no_such_node(), asked);
                    }
                }
                list::get(&inner.catalog, node.as_ref(), wanted.as_deref(), asked)
            }
            Place::Control(path) => inner.control.handle(grant, head, path, body, asked).await,
            Place::BadNode => error::response(&no_such_node(), asked),
            Place::Nothing | Place::Healthz | Place::Readyz => {
                let failure = Failure::not_started(Code::NotFound, "no such route");
                error::response(&failure, asked)
            }
        }
    }

    fn probe(&self, place: &Place<'_>, method: &Method, asked: Asked) -> Response<ReplyBody> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return method_not_allowed("GET", asked);
        }
        let good = *place == Place::Healthz || self.0.ready.load(Ordering::Relaxed);
        let mut response = Response::new(ReplyBody::empty());
        if !good {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }

    fn authenticate(&self, headers: &HeaderMap, place: &Place<'_>) -> Result<Grant, Failure> {
        let refused = || {
            Failure::not_started(
                Code::InvalidApiKey,
                "this is not a token of this node; send one as `Authorization: Bearer`",
            )
        };
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let shown = match (given.next(), given.next()) {
            (Some(value), None) => value.to_str().ok().and_then(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
            }),
            // Clients of the Anthropic api know no other place for a key. It is a header too, so
            // what a browser may send by itself stays out.
            (None, _) if matches!(place, Place::Ask(..) | Place::List(..)) => headers
                .get("x-api-key")
                .and_then(|value| value.to_str().ok()),
            _ => None,
        };
        let grant = shown.and_then(|token| self.0.tokens.check(token));
        if grant.is_none() {
            self.0.counters.refused();
        }
        grant.ok_or_else(refused)
    }
}

impl Handler for LocalApi {
    fn handle(
        self,
        request: Request<Incoming>,
        busy: Busy,
    ) -> impl Future<Output = Response<ReplyBody>> + Send + 'static {
        // Boxed: the future of a model request is large, and hyper moves it about.
        Box::pin(self.answer(request, busy))
    }
}

/// Whether the token may do this.
///
/// # Errors
/// `forbidden`, naming the scope.
pub fn require(grant: &Grant, scope: Scope) -> Result<(), Failure> {
    if grant.allows(scope) {
        return Ok(());
    }
    Err(Failure::not_started(
        Code::Forbidden,
        format!("this needs a token with scope `{scope}`"),
    ))
}

fn no_such_node() -> Failure {
    Failure::not_started(
        Code::NodeNotFound,
        "no node has that name; `GET /api/v1/peers` lists them",
    )
}

/// 405 with the method that fits.
#[must_use]
pub fn method_not_allowed(allowed: &'static str, asked: Asked) -> Response<ReplyBody> {
    let failure = Failure::not_started(
        Code::MethodNotAllowed,
        format!("this route answers {allowed}"),
    );
    let mut response = error::response(&failure, asked);
    let value = HeaderValue::from_static(allowed);
    response.headers_mut().insert(ALLOW, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_they_should() {
        let node = |name: &str| Some(name.parse().unwrap());
        for (path, expected) in [
            (
                "/v1/chat/completions",
                Place::Ask(None, Route::ChatCompletions),
            ),
            (
                "/nodes/office-01/v1/responses",
                Place::Ask(node("office-01"), Route::Responses),
            ),
            (
                "/nodes/a/v1/v1/messages",
                Place::Ask(node("a"), Route::Messages),
            ),
            ("/v1/models", Place::List(None, None)),
            ("/v1/models/a%2Fb", Place::List(None, Some("a/b".into()))),
            ("/v1/models/a/b", Place::List(None, Some("a/b".into()))),
            ("/nodes/a/v1/models", Place::List(node("a"), None)),
            ("/nodes/..%2f/v1/models", Place::BadNode),
            ("/nodes/a", Place::Nothing),
            ("/nodes/a/v2/models", Place::Nothing),
            ("/v1/modelsx", Place::Nothing),
            ("/v1/audio/speech", Place::Nothing),
            ("/api/v1/status", Place::Control("/api/v1/status")),
            ("/metrics", Place::Control("/metrics")),
            ("/ws/events", Place::Control("/ws/events")),
            ("/ws/event", Place::Nothing),
            ("/healthz", Place::Healthz),
            ("/", Place::Nothing),
        ] {
            assert_eq!(place(path), expected, "{path}");
        }
    }
}
