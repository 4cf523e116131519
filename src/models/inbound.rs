//! Another node asks us for a model: checks who and what, calls the provider, sends its answer back.
//!
//! The provider is stopped by dropping its answer, which happens wherever this task is when the asking
//! side cancels, is lost, or runs out of time.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use super::{
    Route,
    answer::{Answer, AnswerBody},
    headers,
    provider::Piece,
    serve::{Ask, Server},
    splice::{push_string, scan},
};
use crate::{
    audit::{Audit, Entry},
    drain::Tasks,
    exchange::{BodyReader, End, HeldBody, InboundHandler, Incoming, NodeBudget, Reply},
    ids::{NodeId, RequestId},
    mesh::session::{Class, Peer},
    once::Key,
    wire::{
        code::{Code, Failure},
        limits::{HOPS, INITIAL_WINDOW, INLINE_BODY_BYTES},
    },
};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Answers model requests of other nodes; requests of other kinds never get here
/// ([`crate::exchange::Handlers`]).
#[derive(Debug, Clone)]
pub struct ModelService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeId,
    server: Server,
    audit: Audit,
    tasks: Tasks,
    /// The node's budget; the exchange that owns it is made after this service.
    budget: OnceLock<NodeBudget>,
}

/// The fields of `model_req` we read (protocol 5.3).
#[derive(Debug, Deserialize)]
struct ModelReq<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow, default)]
    hdr: Option<&'a RawValue>,
    #[serde(borrow, default)]
    hops: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    idem: Option<Cow<'a, str>>,
}

impl InboundHandler for ModelService {
    fn handle(&self, incoming: Incoming) {
        let this = self.clone();
        self.0
            .tasks
            .spawn(async move { this.answer(incoming).await });
    }
}

impl ModelService {
    /// A service of `node` that answers from `server` and tells `audit`.
    #[must_use]
    pub fn new(node: NodeId, server: Server, audit: Audit, tasks: Tasks) -> Self {
        Self(Arc::new(Inner {
            node,
            server,
            audit,
            tasks,
            budget: OnceLock::new(),
        }))
    }

    /// Counts the bodies it holds against `budget` from now on.
    pub fn count_bodies(&self, budget: NodeBudget) {
        // Set once, when the node starts.
        let _ = self.0.budget.set(budget);
    }

    async fn answer(&self, incoming: Incoming) {
        let Incoming {
            caller,
            rid,
            json,
            body_bytes,
            mut body,
            reply,
            ..
        } = incoming;
        if let Some(entry) = self.0.audit.watched().then(|| entry(&caller, rid, &json)) {
            self.0.audit.announce(&entry);
        }
        let served = self.serve(&caller, &json, body_bytes, &mut body);
        let Some(served) = reply.unless_cancelled(served).await else {
            return;
        };
        match served {
            Err(failure) => {
                tracing::debug!(request = ?rid, peer = %caller.node, code = failure.code.as_str(), "model request failed");
                self.audit(&caller, rid, &json, |entry| entry.failed(&failure));
                reply.fail(failure);
            }
            Ok((model, answer)) => {
                self.audit(&caller, rid, &json, |entry| {
                    entry.ended(&answer.status.to_string())
                });
                self.send(&model, answer, reply).await;
            }
        }
    }

    /// Tells the record how a request went, up to the provider's status. Level 0: it has no effect
    /// here, so it never waits for the disk.
    fn audit(&self, caller: &Peer, rid: RequestId, json: &[u8], told: impl FnOnce(Entry) -> Entry) {
        self.0.audit.record(told(entry(caller, rid, json)));
    }

    /// Everything up to the head of the provider's answer.
    async fn serve(
        &self,
        caller: &Peer,
        json: &[u8],
        body_bytes: u64,
        body: &mut BodyReader,
    ) -> Result<(String, Answer), Failure> {
        let invalid = |text: &str| Failure::not_started(Code::InvalidRequest, text);
        let request: ModelReq<'_> = serde_json::from_slice(json)
            .map_err(|_| invalid("the request lacks `model` or `path`"))?;
        if request.hops.len() > HOPS || request.hops.iter().any(|hop| *hop == self.0.node.as_str())
        {
            return Err(Failure::not_started(
                Code::LoopDetected,
                "the request has passed this node before",
            ));
        }
        let route = request
            .path
            .strip_prefix("/v1/")
            .and_then(Route::from_tail)
            .ok_or_else(|| Failure::not_started(Code::NotFound, "no such model route"))?;
        // One text for absent and forbidden, so that nobody can list what he may not use.
        let lent = self
            .0
            .server
            .lent()
            .find(&request.model, Some(caller))
            .ok_or_else(|| {
                Failure::not_started(
                    Code::ModelNotFound,
                    format!(
                        "node `{}` does not lend model `{}`",
                        self.0.node, request.model
                    ),
                )
            })?;
        let headers = request.hdr.map_or_else(Default::default, |hdr| {
            headers::from_json(hdr.get(), headers::request_passes)
        });
        // Counted until the head of the answer: from then on the body is not needed again.
        let _held = self.hold(body_bytes)?;
        let body = read(body, body_bytes).await?;
        let scan = scan(&body).map_err(|error| invalid(&error.to_string()))?;
        let model = lent.model.offer.id.clone();
        let ask = Ask {
            route,
            headers,
            body,
            span: scan.span,
            once: request.idem.map(|key| Key {
                from: caller.node.to_string(),
                key: key.into_owned(),
            }),
            // The exchange keeps the caller's time.
            clock: None,
        };
        Ok((model, self.0.server.serve(&lent, ask).await?))
    }

    fn hold(&self, body_bytes: u64) -> Result<Option<HeldBody>, Failure> {
        let bytes = usize::try_from(body_bytes).unwrap_or(usize::MAX);
        let Some(budget) = self.0.budget.get().filter(|_| bytes > INLINE_BODY_BYTES) else {
            return Ok(None);
        };
        let held = budget.hold(bytes);
        held.map(Some).ok_or_else(|| {
            Failure::not_started(
                Code::Overloaded,
                "the node holds as many request bodies as it may",
            )
        })
    }

    async fn send(&self, model: &str, answer: Answer, mut reply: Reply) {
        let length = answer.length;
        let meta = meta(&answer, model, &self.0.node);
        let mut body = answer.body;
        // A short answer of known length goes as one record.
        let short = length.is_some_and(|length| length <= INLINE_BODY_BYTES as u64);
        let mut first = Piece {
            data: Bytes::new(),
            last: false,
        };
        if short {
            match next(&mut body, &reply).await {
                Ok(Some(piece)) => first = piece,
                Ok(None) => first.last = true,
                Err(Some(failure)) => return reply.fail(failure),
                Err(None) => return,
            }
        }
        if length.is_some_and(|length| length > INITIAL_WINDOW) {
            // Beside token streams, not in front of them.
            reply.set_class(Class::Bulk);
        }
        let (data, fin) = (first.data, first.last.then(done));
        let ended = fin.is_some();
        if reply.head(answer.status, &meta, data, fin).await.is_err() || ended {
            return;
        }
        loop {
            match next(&mut body, &reply).await {
                Ok(Some(piece)) if piece.last => {
                    let _ = reply.chunk(piece.data, Some(done())).await;
                    return;
                }
                Ok(Some(piece)) => {
                    if reply.chunk(piece.data, None).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {
                    let _ = reply.end(done()).await;
                    return;
                }
                Err(Some(failure)) => return reply.fail(failure),
                Err(None) => return,
            }
        }
    }
}

fn entry(caller: &Peer, rid: RequestId, json: &[u8]) -> Entry {
    let model = serde_json::from_slice::<ModelReq<'_>>(json).map(|request| request.model);
    let action = format!("model:{}", model.as_deref().unwrap_or("?"));
    Entry::new(caller, rid, &action, json).ruled("models", 0)
}

/// The next bytes, unless the asking side gives up first (`Err(None)`).
async fn next(body: &mut AnswerBody, reply: &Reply) -> Result<Option<Piece>, Option<Failure>> {
    tokio::select! {
        biased;
        piece = body.next() => piece.map_err(Some),
        _ = reply.cancelled() => Err(None),
    }
}

fn done() -> End {
    End {
        ok: true,
        ..End::default()
    }
}

/// The `meta` of a head: what the client's HTTP answer needs beside its bytes.
fn meta(answer: &Answer, model: &str, node: &NodeId) -> String {
    let mut out = String::with_capacity(256);
    out.push('{');
    if let Some(kind) = answer.headers.get(http::header::CONTENT_TYPE)
        && let Ok(kind) = kind.to_str()
    {
        out.push_str("\"content_type\":");
        push_string(&mut out, kind);
        out.push(',');
    }
    out.push_str("\"model\":");
    push_string(&mut out, model);
    out.push_str(",\"node\":");
    push_string(&mut out, node.as_str());
    if let Some(length) = answer.length {
        out.push_str(&format!(",\"length\":{length}"));
    }
    out.push_str(",\"hdr\":");
    out.push_str(&headers::to_json(&answer.headers));
    out.push('}');
    out
}

/// Reads a whole body: the provider may have to be asked again, with a fresh key or over a new
/// connection. The exchange counts what it holds; its length was checked against the limit.
async fn read(body: &mut BodyReader, body_bytes: u64) -> Result<Bytes, Failure> {
    let first = body.next().await?.unwrap_or_default();
    if first.len() as u64 >= body_bytes {
        return Ok(first);
    }
    let expected = usize::try_from(body_bytes).unwrap_or(0);
    // The exchange refused what is longer than a body may be.
    let mut all = BytesMut::with_capacity(expected);
    all.extend_from_slice(&first);
    while let Some(data) = body.next().await? {
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}
