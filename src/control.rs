//! The control API under `/api/v1`, for the command line, the shim and the dashboard, and `/metrics`.
//! Handlers parse, call one function, render.

mod answer;
pub mod approvals;
mod client;
pub mod events;
pub mod handoff;
pub mod metrics;
pub mod policy;
pub mod send;
pub mod socket;
pub mod status;
pub mod tokens;
pub mod tools;
pub mod trust;
mod usage;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header::CONTENT_TYPE, request::Parts};
use hyper::body::Incoming;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use self::{client::Client, metrics::MetricSource, status::Facts};
use crate::{
    approvals::outbound::Approvers,
    budgets::Budgets,
    drain::Tasks,
    events::Events,
    exchange::{Lineage, NodeBudget},
    handoff::{outbound::Handoffs, record::Ended},
    ids::RequestId,
    messages::outbound::Messages,
    models::catalog::Catalog,
    once::{Full, Once},
    proxy::{
        body::ReplyBody,
        error::{self, Asked},
        list::json,
        method_not_allowed, require,
        tokens::{Grant, Scope, TokenStore},
        upload::{self, Upload},
    },
    tools::outbound::Tools,
    wire::{
        code::{Code, Failure},
        limits::{HANDOFF_BODY_BYTES, IDEMPOTENT_KEYS, MESSAGE_BYTES},
    },
};

/// Where tools are asked for.
const TOOLS: &str = "/api/v1/tools/";
/// One request that waits for a person.
const APPROVALS: &str = "/api/v1/approvals/";
/// Longest body of a control request.
const CONTROL_BODY_BYTES: u64 = 64 * 1024;

/// What the control API shows and changes.
#[derive(Debug)]
pub struct Control {
    /// Status and peers.
    pub facts: Facts,
    /// Tokens.
    pub tokens: TokenStore,
    /// Known models.
    pub catalog: Catalog,
    /// Handoffs of ours.
    pub handoffs: Handoffs,
    /// Messages of ours.
    pub messages: Messages,
    /// Tools of other nodes, and ours.
    pub tools: Tools,
    /// What others use of us.
    pub budgets: Budgets,
    /// What waits here for a person, and at nodes whose requests are shown here.
    pub approvers: Approvers,
    /// What happens here.
    pub events: Events,
    /// What now runs here for other nodes.
    pub lineage: Lineage,
    /// Bodies now held.
    pub budget: NodeBudget,
    /// What came of requests that may be repeated.
    pub kept: Kept,
    /// Follow tools that nobody reads, and sockets of those who watch.
    pub tasks: Tasks,
    /// Whatever counts.
    pub metrics: Vec<Arc<dyn MetricSource>>,
}

/// What came of requests, for as long as they may be repeated or asked for.
#[derive(Debug)]
pub struct Kept {
    handoffs: Once<RequestId>,
    messages: Once<String>,
    tools: tools::Kept,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            handoffs: Once::new(IDEMPOTENT_KEYS, Full::Refuse),
            messages: Once::new(IDEMPOTENT_KEYS, Full::Refuse),
            tools: tools::Kept::default(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Forget {
    node: Option<String>,
    model: Option<String>,
}

/// Whether a POST there asks another node to do something, so that its answer always names an outcome.
fn remote_action(path: &str) -> bool {
    matches!(path, "/api/v1/handoff" | "/api/v1/send") || path.starts_with(TOOLS)
}

impl Control {
    /// Answers one request below `/api/v1`, for `/ws/events` or `/metrics`.
    pub async fn handle(
        &self,
        grant: &Grant,
        head: &Parts,
        path: &str,
        body: Incoming,
        asked: Asked,
    ) -> Response<ReplyBody> {
        let result = self.route(grant, head, path, body, asked).await;
        result.unwrap_or_else(|failure| {
            if head.method != Method::POST || !remote_action(path) {
                return error::response(&failure, asked);
            }
            let outcome = Ended::failed(failure.clone()).outcome.as_str();
            let told = Map::from_iter([("outcome".to_owned(), Value::from(outcome))]);
            answer::whole(told, Some(&failure), asked)
        })
    }

    async fn route(
        &self,
        grant: &Grant,
        head: &Parts,
        path: &str,
        body: Incoming,
        asked: Asked,
    ) -> Result<Response<ReplyBody>, Failure> {
        let method = &head.method;
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match path {
            "/metrics" if reads => {
                require(grant, Scope::Read)?;
                Ok(self.metrics(asked))
            }
            "/api/v1/status" if reads => {
                require(grant, Scope::Read)?;
                Ok(json(self.facts.status(), asked))
            }
            "/api/v1/peers" if reads => {
                require(grant, Scope::Read)?;
                Ok(json(self.facts.peers(), asked))
            }
            "/api/v1/events" if *method == Method::GET => {
                require(grant, Scope::Read)?;
                events::follow(&self.events, asked)
            }
            "/api/v1/usage" if reads => {
                require(grant, Scope::Read)?;
                let quotas = self.tools.service().quotas();
                Ok(json(
                    usage::usage(&self.budgets, &quotas, &self.facts),
                    asked,
                ))
            }
            "/ws/events" if *method == Method::GET => {
                require(grant, Scope::Read)?;
                socket::follow(&self.events, &self.tasks, head, asked)
            }
            "/metrics" | "/api/v1/status" | "/api/v1/peers" | "/api/v1/events" | "/ws/events"
            | "/api/v1/usage" => Ok(method_not_allowed("GET", asked)),
            "/api/v1/handoff" => {
                if *method != Method::POST {
                    return Ok(method_not_allowed("POST", asked));
                }
                require(grant, Scope::Send)?;
                let body = self.read(body, HANDOFF_BODY_BYTES as u64 * 2).await?;
                let client = self.client(grant, head, path, &body, asked)?;
                let once = &self.kept.handoffs;
                handoff::start(&self.handoffs, once, parsed(&body)?, &client).await
            }
            "/api/v1/send" => {
                if *method != Method::POST {
                    return Ok(method_not_allowed("POST", asked));
                }
                require(grant, Scope::Send)?;
                // Escaped, the longest message is twice as long.
                let body = self.read(body, MESSAGE_BYTES as u64 * 3).await?;
                let client = self.client(grant, head, path, &body, asked)?;
                let (handoffs, once) = (&self.handoffs, &self.kept.messages);
                send::send(handoffs, &self.messages, once, parsed(&body)?, &client).await
            }
            _ if path.starts_with(TOOLS) => {
                let verb = &path[TOOLS.len()..];
                if !matches!(verb, "exec" | "read" | "write" | "edit" | "list" | "invoke") {
                    require(grant, Scope::Tools)?;
                    return match *method {
                        Method::GET | Method::HEAD => tools::look(&self.kept.tools, verb, asked),
                        Method::DELETE => tools::cancel(&self.kept.tools, verb, asked).await,
                        _ => Err(Failure::not_started(Code::NotFound, "no such route")),
                    };
                }
                if *method != Method::POST {
                    return Ok(method_not_allowed("POST", asked));
                }
                require(grant, Scope::Tools)?;
                let body = self.read(body, tools::BODY_BYTES).await?;
                let client = self.client(grant, head, path, &body, asked)?;
                let (kept, tasks) = (&self.kept.tools, &self.tasks);
                tools::run(&self.tools, kept, tasks, verb, parsed(&body)?, &client).await
            }
            _ if path.starts_with("/api/v1/handoff/") => {
                require(grant, Scope::Send)?;
                let id = path.trim_start_matches("/api/v1/handoff/");
                match *method {
                    Method::GET | Method::HEAD => handoff::look(&self.handoffs, id, asked),
                    Method::DELETE => handoff::cancel(&self.handoffs, id, asked).await,
                    _ => Ok(method_not_allowed("GET, DELETE", asked)),
                }
            }
            "/api/v1/policy/can" => {
                if *method != Method::POST {
                    return Ok(method_not_allowed("POST", asked));
                }
                require(grant, Scope::Read)?;
                let asked_for = self.parse(body).await?;
                let answer = policy::can(&self.tools, &self.facts, asked_for).await?;
                Ok(json(answer, asked))
            }
            "/api/v1/models/forget" => {
                if *method != Method::POST {
                    return Ok(method_not_allowed("POST", asked));
                }
                require(grant, Scope::Admin)?;
                let Forget { node, model } = self.parse(body).await?;
                let count = self
                    .catalog
                    .forget(node.as_deref(), model.as_deref())
                    .await
                    .map_err(internal)?;
                Ok(json(format!("{{\"forgotten\":{count}}}"), asked))
            }
            "/api/v1/approvals" => {
                require(grant, Scope::Approve)?;
                if !reads {
                    return Ok(method_not_allowed("GET", asked));
                }
                Ok(json(approvals::list(&self.approvers), asked))
            }
            _ if path.starts_with(APPROVALS) => {
                require(grant, Scope::Approve)?;
                let id = &path[APPROVALS.len()..];
                let answer = match *method {
                    Method::GET | Method::HEAD => approvals::show(&self.approvers, id)?,
                    Method::POST => {
                        let said = self.parse(body).await?;
                        approvals::decide(&self.approvers, id, &said).await?
                    }
                    _ => return Ok(method_not_allowed("GET, POST", asked)),
                };
                Ok(json(answer, asked))
            }
            "/api/v1/trust" => {
                require(grant, Scope::Admin)?;
                let answer = match *method {
                    Method::GET | Method::HEAD => trust::list(&self.facts.trust),
                    Method::POST => {
                        trust::change(&self.facts.trust, self.parse(body).await?).await?
                    }
                    _ => return Ok(method_not_allowed("GET, POST", asked)),
                };
                Ok(json(answer, asked))
            }
            "/api/v1/tokens" => {
                require(grant, Scope::Admin)?;
                let answer = match *method {
                    Method::GET | Method::HEAD => tokens::list(&self.tokens),
                    Method::POST => tokens::create(&self.tokens, self.parse(body).await?).await?,
                    Method::DELETE => tokens::revoke(&self.tokens, self.parse(body).await?).await?,
                    _ => return Ok(method_not_allowed("GET, POST, DELETE", asked)),
                };
                Ok(json(answer, asked))
            }
            _ => Err(Failure::not_started(Code::NotFound, "no such route")),
        }
    }

    fn client<'a>(
        &'a self,
        grant: &Grant,
        head: &'a Parts,
        path: &'a str,
        body: &'a [u8],
        asked: Asked,
    ) -> Result<Client<'a>, Failure> {
        Client::new(grant, &head.headers, &self.lineage, asked, path, body)
    }

    /// Reads a small JSON body.
    async fn parse<T: DeserializeOwned>(&self, body: Incoming) -> Result<T, Failure> {
        parsed(&self.read(body, CONTROL_BODY_BYTES).await?)
    }

    /// Reads a body of up to `limit` bytes.
    async fn read(&self, body: Incoming, limit: u64) -> Result<Bytes, Failure> {
        let (bytes, _held) = upload::read(Upload {
            body,
            limit,
            budget: &self.budget,
        })
        .await?;
        Ok(bytes)
    }

    fn metrics(&self, asked: Asked) -> Response<ReplyBody> {
        let mut out = String::with_capacity(4096);
        self.facts.write(&mut out);
        for source in &self.metrics {
            source.write(&mut out);
        }
        let mut response = json(out, asked);
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        response
    }
}

/// A JSON body; an empty one stands for `{}`.
fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes)
        .map_err(|error| Failure::not_started(Code::InvalidRequest, error.to_string()))
}

/// A fault of this node: its cause goes to the log, which only the operator reads.
fn internal(error: impl std::error::Error) -> Failure {
    tracing::warn!(%error, "control request failed");
    Failure::started(Code::Internal, error.to_string())
}
