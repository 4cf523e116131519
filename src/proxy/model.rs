//! The model routes: reads the body, finds out for whom it is, forwards the answer as it comes.

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};

use super::{
    body::{Broken, ByteStream, ReplyBody},
    error::{self, Asked},
    identity,
    upload::{self, Upload},
};
use crate::{
    exchange::NodeBudget,
    ids::{NodeId, RequestId},
    models::{
        Route,
        answer::{Answer, AnswerBody},
        headers,
        outbound::{ModelRequest, Outbound, Trail, is_event_stream},
        select::Target,
        splice::{ends_event, scan},
    },
    wire::code::{Code, Failure},
};

/// Longest `Idempotency-Key`.
const IDEMPOTENCY_CHARS: usize = 256;

/// What the model routes work with.
#[derive(Debug)]
pub struct Models {
    /// Where requests go.
    pub outbound: Outbound,
    /// Bodies now held.
    pub budget: NodeBudget,
    /// Whether `modelIdentity` is on.
    pub identity: bool,
}

/// Answers one `POST`.
pub async fn post(
    models: &Models,
    route: Route,
    node: Option<NodeId>,
    headers: &HeaderMap,
    body: Upload<'_>,
    asked: Asked,
) -> Response<ReplyBody> {
    let request = match read(models, route, node, headers, body, asked).await {
        Ok(request) => request,
        Err(failure) => return error::response(&failure, asked),
    };
    let (trail, answer) = models.outbound.send(request).await;
    match answer {
        Ok(answer) => render(answer, &trail, route, asked.id),
        Err(failure) => {
            let mut response = error::response(&failure, asked);
            let whose = if failure.code == Code::UpstreamError {
                "provider"
            } else {
                "mesh"
            };
            error::mark(&mut response, Some(&trail), Some(whose));
            response
        }
    }
}

/// The `Idempotency-Key` of a request, if it has one.
///
/// # Errors
/// `invalid_request` for one that is empty, too long or no text.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = key.to_str().ok();
    let key = key.filter(|key| !key.is_empty() && key.len() <= IDEMPOTENCY_CHARS);
    let key = key.ok_or_else(|| {
        Failure::not_started(
            Code::InvalidRequest,
            format!("`idempotency-key` is 1 to {IDEMPOTENCY_CHARS} characters of plain text"),
        )
    })?;
    Ok(Some(key.to_owned()))
}

async fn read(
    models: &Models,
    route: Route,
    node: Option<NodeId>,
    given: &HeaderMap,
    body: Upload<'_>,
    asked: Asked,
) -> Result<ModelRequest, Failure> {
    let invalid = |text: String| Failure::not_started(Code::InvalidRequest, text);
    let idempotency = idempotency_key(given)?;
    let (mut body, held) = upload::read(body).await?;
    let refused = |error: crate::models::splice::ScanError| invalid(error.to_string());
    let mut found = scan(&body).map_err(refused)?;
    let us = models.outbound.us();
    let (target, model) = match node {
        Some(node) => (Target::Node(node), found.model.clone()),
        None => us.resolve(&found.model, &models.outbound.view()),
    };
    if models.identity && route == Route::ChatCompletions {
        let entry = us.proxy_models.iter().find(|entry| {
            entry.id == model
                && match (&entry.node_id, &target) {
                    (Some(listed), Target::Node(node)) => listed == node,
                    (None, _) => true,
                    (Some(_), Target::Any) => false,
                }
        });
        if let Some(description) = entry.and_then(|entry| entry.description.as_deref()) {
            body = identity::insert(&body, description);
            found = scan(&body).map_err(refused)?;
        }
    }
    Ok(ModelRequest {
        id: asked.id,
        target,
        model,
        route,
        headers: headers::pick(given, headers::request_passes),
        idempotency,
        body,
        scan: found,
        held: Some(held),
        agent: asked.openclaw,
    })
}

fn render(answer: Answer, trail: &Trail, route: Route, id: RequestId) -> Response<ReplyBody> {
    let Answer {
        status,
        headers,
        length,
        body,
    } = answer;
    let events = is_event_stream(&headers) && !headers.contains_key(CONTENT_ENCODING);
    let body = match body {
        AnswerBody::Whole(data) => ReplyBody::whole(data.unwrap_or_default()),
        body @ (AnswerBody::Provider(_)
        | AnswerBody::Mesh(_)
        | AnswerBody::Recorded(_)
        | AnswerBody::Held(..)) => {
            // An error event must fit behind what came, so an event stream promises no length.
            let length = length.filter(|_| !events);
            ReplyBody::stream(forward(body, events.then_some(route), id), length)
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let failed = status >= 400;
    *response.headers_mut() = headers;
    error::stamp(&mut response, id);
    error::mark(&mut response, Some(trail), failed.then_some("provider"));
    if !response.headers().contains_key(CONTENT_TYPE) {
        tracing::trace!(request = ?id, "answer without a content type");
    }
    response
}

/// An answer on its way to the client.
struct Forward {
    body: AnswerBody,
    /// Set for an event stream: how its errors are written.
    events: Option<Route>,
    /// Last bytes sent, to know whether an event is unfinished.
    tail: Vec<u8>,
    ended: bool,
    id: RequestId,
}

fn forward(body: AnswerBody, events: Option<Route>, id: RequestId) -> ByteStream {
    let state = Forward {
        body,
        events,
        tail: Vec::with_capacity(8),
        ended: false,
        id,
    };
    Box::pin(stream::unfold(state, |mut state| async move {
        let item = state.next().await?;
        Some((item, state))
    }))
}

impl Forward {
    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        loop {
            if self.ended {
                return None;
            }
            match self.body.next().await {
                Ok(None) => return None,
                Ok(Some(piece)) => {
                    self.ended = piece.last;
                    if piece.data.is_empty() {
                        continue;
                    }
                    if self.events.is_some() {
                        self.remember(&piece.data);
                    }
                    return Some(Ok(piece.data));
                }
                Err(failure) => {
                    self.ended = true;
                    tracing::debug!(request = ?self.id, code = failure.code.as_str(), "answer broke off");
                    let Some(route) = self.events else {
                        return Some(Err(Broken));
                    };
                    let torn = !ends_event(&self.tail);
                    let named = route == Route::Messages;
                    return Some(Ok(error::event(&failure, self.id, torn, named)));
                }
            }
        }
    }

    fn remember(&mut self, data: &[u8]) {
        self.tail
            .extend_from_slice(&data[data.len().saturating_sub(4)..]);
        let surplus = self.tail.len().saturating_sub(4);
        self.tail.drain(..surplus);
    }
}
