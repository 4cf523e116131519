//! We ask: picks who answers a model request and asks them in turn, until one begins to answer.
//!
//! A request that has produced output is never repeated. Until then, when other candidates are left and
//! the failure is one that another node may not have, the next one is asked, at most three in all.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{sync::watch, time::Instant};

use super::{
    Route,
    answer::{Answer, AnswerBody, Clock, check},
    commit::CommitPoint,
    headers,
    select::{Candidate, Path, Target, Us},
    serve::{Ask, Server},
    splice::{Scan, push_string},
};
use crate::{
    audit::Asking,
    exchange::{Exchange, HeldBody, Item, Kind, NewRequest, SessionRef, Sessions, Timeouts},
    ids::{NodeId, RequestId},
    mesh::{session::Class, view::View},
    once::Key,
    wire::{
        code::{Code, Failure},
        limits::{
            COMMIT_HOLD_BYTES, INITIAL_WINDOW, MODEL_ACCEPT_TIMEOUT, MODEL_ATTEMPTS,
            MODEL_DEADLINE, MODEL_IDLE_TIMEOUT,
        },
    },
};

/// One model request of a local client.
#[derive(Debug)]
pub struct ModelRequest {
    /// Names it at the client and in every log.
    pub id: RequestId,
    /// For whom.
    pub target: Target,
    /// The model there.
    pub model: String,
    /// Which route.
    pub route: Route,
    /// The client's headers that pass.
    pub headers: HeaderMap,
    /// `Idempotency-Key`.
    pub idempotency: Option<String>,
    /// The body and what the scan found in it.
    pub body: Bytes,
    /// See `body`.
    pub scan: Scan,
    /// Counts the body against the node's budget.
    pub held: Option<HeldBody>,
    /// Whether an agent asks, not a person.
    pub agent: bool,
}

/// Who was asked last, for `x-clawmatrix-route`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    /// The node, if any was chosen.
    pub node: Option<NodeId>,
    /// How it is reached.
    pub path: Option<Path>,
    /// Nodes asked.
    pub attempts: usize,
}

/// Asks for models; cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbound(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    us: Us,
    server: Server,
    exchange: Exchange,
    sessions: Arc<dyn Sessions>,
    view: watch::Receiver<Arc<View>>,
    audit: Asking,
}

/// The `meta` of an answer's head.
#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(default)]
    content_type: Option<String>,
    #[serde(borrow, default)]
    hdr: Option<&'a RawValue>,
    #[serde(default)]
    length: Option<u64>,
}

impl Outbound {
    /// Joins what can answer: our own models (`server`) and other nodes (`exchange` over `sessions`);
    /// `audit` hears of what others are asked.
    #[must_use]
    pub fn new(
        us: Us,
        server: Server,
        exchange: Exchange,
        sessions: Arc<dyn Sessions>,
        view: watch::Receiver<Arc<View>>,
        audit: Asking,
    ) -> Self {
        Self(Arc::new(Inner {
            us,
            server,
            exchange,
            sessions,
            view,
            audit,
        }))
    }

    /// What this node knows of itself.
    #[must_use]
    pub fn us(&self) -> &Us {
        &self.0.us
    }

    /// The other nodes as they are now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.0.view.borrow().clone()
    }

    /// Sends `request` to the best candidate, then to the next; resolves at the head of the answer that
    /// counts.
    pub async fn send(&self, mut request: ModelRequest) -> (Trail, Result<Answer, Failure>) {
        let inner = &*self.0;
        let lent_here = inner.server.lent().find(&request.model, None).is_some();
        let view = self.view();
        let mut trail = Trail {
            node: None,
            path: None,
            attempts: 0,
        };
        let selected = inner
            .us
            .select(&request.target, &request.model, lent_here, &view);
        drop(view);
        let candidates = match selected {
            Ok(candidates) => candidates,
            Err(failure) => {
                if let Target::Node(node) = &request.target {
                    trail.node = Some(node.clone());
                }
                return (trail, Err(failure));
            }
        };
        let deadline = Instant::now() + MODEL_DEADLINE;
        let tries = candidates.len().min(MODEL_ATTEMPTS);
        let mut outcome = Err(Failure::not_started(Code::Internal, "no candidate"));
        for (index, candidate) in candidates.into_iter().take(tries).enumerate() {
            trail.node = Some(candidate.node.clone());
            trail.path = Some(candidate.path);
            trail.attempts = index + 1;
            let others = index + 1 < tries;
            if !others && candidate.path != Path::Local {
                // The exchange counts the body from here on.
                request.held = None;
            }
            outcome = self
                .attempt(&request, &candidate, index, deadline, others)
                .await;
            let again = match &outcome {
                Ok(answer) => answer.status == 429,
                // A node may advertise what it does not lend to us.
                Err(failure) => failure.retryable || failure.code == Code::ModelNotFound,
            };
            if !(others && again) {
                break;
            }
            tracing::debug!(request = ?request.id, node = %candidate.node, "asking the next candidate");
        }
        (trail, outcome)
    }

    async fn attempt(
        &self,
        request: &ModelRequest,
        candidate: &Candidate,
        index: usize,
        deadline: Instant,
        others: bool,
    ) -> Result<Answer, Failure> {
        let answer = match candidate.path {
            Path::Local => self.local(request, deadline).await?,
            Path::Direct | Path::Relay => {
                self.mesh(request, &candidate.node, index, deadline).await?
            }
        };
        if others && answer.status < 300 {
            hold(answer).await
        } else {
            Ok(answer)
        }
    }

    async fn local(&self, request: &ModelRequest, deadline: Instant) -> Result<Answer, Failure> {
        let server = &self.0.server;
        let lent = server
            .lent()
            .find(&request.model, None)
            .ok_or_else(|| Failure::not_started(Code::ModelNotFound, "no longer lent"))?;
        let ask = Ask {
            route: request.route,
            headers: request.headers.clone(),
            body: request.body.clone(),
            span: request.scan.span.clone(),
            once: request.idempotency.as_ref().map(|key| Key {
                from: self.0.us.node.to_string(),
                key: key.clone(),
            }),
            clock: Some(Clock {
                idle: request.scan.stream.then_some(MODEL_IDLE_TIMEOUT),
                deadline,
            }),
        };
        server.serve(&lent, ask).await
    }

    async fn mesh(
        &self,
        request: &ModelRequest,
        node: &NodeId,
        index: usize,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let inner = &*self.0;
        let rid = if index == 0 {
            request.id
        } else {
            RequestId::random()
        };
        let fields = fields(request, &inner.us.node);
        let action = format!("model:{}", request.model);
        let question = inner.audit.ask(node, rid, &action, fields.as_bytes());
        question.announced();
        let session = inner.sessions.session(node).await;
        let (question, session) = question.after(session)?;
        let question = question.admit(session.peer(), inner.us.min_trust)?;
        let answer = self.ask(request, &session, rid, fields, deadline).await;
        let (question, answer) = question.after(answer)?;
        question.ended(&answer.status.to_string());
        Ok(answer)
    }

    async fn ask(
        &self,
        request: &ModelRequest,
        session: &SessionRef,
        rid: RequestId,
        fields: String,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let new = NewRequest {
            rid,
            kind: Kind::Model,
            fields,
            body: request.body.clone(),
            class: if request.body.len() as u64 > INITIAL_WINDOW {
                Class::Bulk
            } else {
                Class::Interactive
            },
            idempotent: true,
            timeouts: Timeouts {
                accept: MODEL_ACCEPT_TIMEOUT,
                idle: request.scan.stream.then_some(MODEL_IDLE_TIMEOUT),
                deadline: deadline.saturating_duration_since(Instant::now()),
                until_first_byte: request.scan.stream,
            },
        };
        let mut call = self.0.exchange.open(session, new)?;
        loop {
            match call.next().await? {
                Some(Item::Accept | Item::Waits(_)) => {}
                Some(Item::Head {
                    status,
                    meta,
                    data,
                    fin,
                }) => {
                    check(fin.as_ref())?;
                    let (headers, length) = read_meta(&meta);
                    let body = if fin.is_some() {
                        AnswerBody::Whole(Some(data))
                    } else {
                        let rest = AnswerBody::Mesh(call);
                        if data.is_empty() {
                            rest
                        } else {
                            let piece = super::provider::Piece { data, last: false };
                            AnswerBody::Held([piece].into(), Box::new(rest))
                        }
                    };
                    return Ok(Answer {
                        status,
                        headers,
                        length,
                        body,
                    });
                }
                Some(Item::Chunk { .. } | Item::End(_)) | None => {
                    return Err(Failure::started(
                        Code::ProtocolError,
                        "the node answered without a head",
                    ));
                }
            }
        }
    }
}

/// The fields of `model_req` that are ours to say.
fn fields(request: &ModelRequest, us: &NodeId) -> String {
    let mut out = String::with_capacity(512);
    out.push_str("\"model\":");
    push_string(&mut out, &request.model);
    out.push_str(",\"path\":\"/v1/");
    out.push_str(request.route.tail());
    out.push_str("\",\"hdr\":");
    out.push_str(&headers::to_json(&request.headers));
    out.push_str(if request.scan.stream {
        ",\"stream\":true"
    } else {
        ",\"stream\":false"
    });
    if let Some(key) = &request.idempotency {
        out.push_str(",\"idem\":");
        push_string(&mut out, key);
    }
    out.push_str(",\"hops\":[");
    push_string(&mut out, us.as_str());
    out.push_str(if request.agent {
        "],\"actor\":\"agent\""
    } else {
        "],\"actor\":\"user\""
    });
    out
}

fn read_meta(meta: &RawValue) -> (HeaderMap, Option<u64>) {
    let Ok(meta) = serde_json::from_str::<Meta<'_>>(meta.get()) else {
        return (HeaderMap::new(), None);
    };
    let mut out = meta.hdr.map_or_else(HeaderMap::new, |hdr| {
        headers::from_json(hdr.get(), headers::response_passes)
    });
    if let Some(id) = out.remove("x-request-id") {
        out.insert("x-upstream-request-id", id);
    }
    if let Some(kind) = meta.content_type
        && let Ok(kind) = HeaderValue::try_from(kind)
    {
        out.insert(CONTENT_TYPE, kind);
    }
    (out, meta.length)
}

/// Waits until `answer` has begun in earnest, so that a provider that dies before can be replaced.
async fn hold(mut answer: Answer) -> Result<Answer, Failure> {
    let events = is_event_stream(&answer.headers);
    let mut point = CommitPoint::default();
    let (mut held, mut bytes) = (VecDeque::new(), 0);
    while let Some(piece) = answer.body.next().await? {
        bytes += piece.data.len();
        let committed = events && point.reached(&piece.data);
        let last = piece.last;
        held.push_back(piece);
        if committed || last || bytes >= COMMIT_HOLD_BYTES {
            break;
        }
    }
    answer.body = AnswerBody::Held(held, Box::new(answer.body));
    Ok(answer)
}

/// Whether an answer is a stream of server-sent events.
#[must_use]
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}
