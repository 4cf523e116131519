//! Messages of ours: sent at once, or kept on disk until their node is back.
//!
//! Each attempt is a request of its own that names the message's id; the other side takes an id once,
//! so an attempt whose answer was lost does no harm.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    inbound::{MessageService, on_disk},
    store::{Store, Waiting, now, now_micros},
};
use crate::{
    audit::{Asking, Question},
    exchange::{Chain, Exchange, Kind, NewRequest, SessionRef, Sessions, Timeouts, looped},
    ids::{NodeId, RequestId},
    mesh::{
        session::Class,
        view::{Reach, View},
    },
    trust::Level,
    wire::{
        code::{Code, Failure},
        limits::{MESSAGE_ACCEPT_TIMEOUT, MESSAGE_BYTES, MESSAGE_LIFE, MESSAGE_RETRY},
    },
};

/// A message of somebody on this node.
#[derive(Debug)]
pub struct NewMessage {
    /// Names it, if it may be sent again; the node it is for takes a name once.
    pub id: Option<RequestId>,
    /// Nodes and agents that may take it, the best first.
    pub addressees: Vec<(NodeId, Option<String>)>,
    /// The text.
    pub text: String,
    /// Whether the agent is to look at it at once.
    pub wake: bool,
    /// The chain it belongs to.
    pub chain: Chain,
    /// Whether an agent sends it, not a person.
    pub agent: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// That node has it.
    Delivered(NodeId),
    /// It waits until then, in seconds since 1970.
    Queued(u64),
}

/// What messages of ours are sent with.
#[derive(Debug)]
pub struct Parts {
    /// Ourselves.
    pub us: NodeId,
    /// Least trust in a node we write to.
    pub min_trust: Level,
    /// How others are asked.
    pub exchange: Exchange,
    /// How they are reached.
    pub sessions: Arc<dyn Sessions>,
    /// Who they are.
    pub view: watch::Receiver<Arc<View>>,
    /// Our own agents, when they are named.
    pub service: MessageService,
    /// Where messages wait.
    pub store: Store,
    /// Hears of what others are sent.
    pub audit: Asking,
}

/// Sends messages; cheap to clone.
#[derive(Debug, Clone)]
pub struct Messages(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    stored: Notify,
}

impl Messages {
    /// A sender made of `parts`.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            stored: Notify::new(),
        }))
    }

    /// Sends a message to the first addressee that can be reached, or keeps it for the first of all.
    ///
    /// # Errors
    /// What the addressee's node says of it; `invalid_request`, `payload_too_large`, `loop_detected`;
    /// `overloaded` when as many messages wait as may.
    pub async fn send(&self, new: NewMessage) -> Result<Sent, Failure> {
        let parts = &self.0.parts;
        if new.text.trim().is_empty() {
            return Err(Failure::not_started(
                Code::InvalidRequest,
                "`message` is empty",
            ));
        }
        if new.text.len() > MESSAGE_BYTES {
            return Err(Failure::not_started(
                Code::PayloadTooLarge,
                format!("a message is at most {MESSAGE_BYTES} bytes"),
            ));
        }
        let view = parts.view.borrow().clone();
        let reachable = |node: &NodeId| *node == parts.us || here(&view, node);
        let Some((node, agent)) = new
            .addressees
            .iter()
            .find(|(node, _)| reachable(node))
            .or(new.addressees.first())
            .cloned()
        else {
            return Err(Failure::not_started(Code::AgentNotFound, "nobody is named"));
        };
        let id = new.id.unwrap_or_else(RequestId::random);
        if node == parts.us {
            if !new.chain.hops.is_empty() {
                return Err(looped());
            }
            let service = &parts.service;
            service
                .take(None, id, agent.as_deref(), new.text, new.wake, MESSAGE_LIFE)
                .await?;
            return Ok(Sent::Delivered(node));
        }
        let message = Waiting {
            id,
            node: node.clone(),
            agent,
            text: new.text,
            wake: new.wake,
            hops: new.chain.hops_from(&parts.us)?,
            actor_agent: new.agent,
            since: now_micros(),
            until: now() + MESSAGE_LIFE.as_secs(),
        };
        match self.attempt(&message).await {
            Ok(()) => return Ok(Sent::Delivered(node)),
            Err(failure) if !later(&failure) => return Err(failure),
            Err(failure) => {
                tracing::debug!(id = ?id, %node, code = failure.code.as_str(), "message waits");
            }
        }
        let until = message.until;
        let question = self.question(&message);
        let stored = on_disk(&parts.store, move |store| store.put(&message)).await;
        let (question, ()) = question.after(stored)?;
        question.ended("queued");
        self.0.stored.notify_one();
        Ok(Sent::Queued(until))
    }

    /// What the record shows of a message: for whom it is, and the hash of what is said.
    fn question(&self, message: &Waiting) -> Question {
        let agent = message.agent.as_deref().unwrap_or("?");
        let action = format!("send:{agent}");
        let audit = &self.0.parts.audit;
        audit.ask(&message.node, message.id, &action, message.text.as_bytes())
    }

    async fn attempt(&self, message: &Waiting) -> Result<(), Failure> {
        let parts = &self.0.parts;
        let session = parts.sessions.session(&message.node).await?;
        let question = self.question(message);
        let question = question.admit(session.peer(), parts.min_trust)?;
        let sent = self.put(&session, message).await;
        match &sent {
            Ok(()) => question.ended("delivered"),
            Err(failure) if later(failure) => question.put_off(),
            Err(failure) => question.failed(failure),
        }
        sent
    }

    async fn put(&self, session: &SessionRef, message: &Waiting) -> Result<(), Failure> {
        let left = Duration::from_secs(message.until.saturating_sub(now()));
        let fields = json!({
            "id": message.id,
            "agent": message.agent,
            "mime": "text/plain",
            "wake": message.wake,
            "exp": u64::try_from(left.as_millis()).unwrap_or(0),
            "hops": message.hops,
            "actor": if message.actor_agent { "agent" } else { "user" },
        })
        .to_string();
        let mut call = self.0.parts.exchange.open(
            session,
            NewRequest {
                // A fresh one: the exchange at the other side does not answer an old one again.
                rid: RequestId::random(),
                kind: Kind::Send,
                fields: fields[1..fields.len() - 1].to_owned(),
                body: Bytes::from(message.text.clone()),
                class: Class::Interactive,
                idempotent: true,
                timeouts: Timeouts {
                    accept: MESSAGE_ACCEPT_TIMEOUT,
                    idle: Some(MESSAGE_ACCEPT_TIMEOUT),
                    deadline: MESSAGE_ACCEPT_TIMEOUT * 3,
                    until_first_byte: false,
                },
            },
        )?;
        while let Some(item) = call.next().await? {
            if item.is_last() {
                break;
            }
        }
        Ok(())
    }

    /// Sends what waits, whenever its node may be back.
    pub async fn run(self) {
        let parts = &self.0.parts;
        let mut view = parts.view.clone();
        loop {
            self.round().await;
            let woken = async {
                tokio::select! {
                    changed = view.changed() => changed.is_ok(),
                    () = self.0.stored.notified() => true,
                }
            };
            // Also without a sign: what failed for another reason is tried again.
            if let Ok(false) = timeout(MESSAGE_RETRY, woken).await {
                return;
            }
        }
    }

    /// Tries everything that waits once; a node that fails is not asked again in this round.
    async fn round(&self) {
        let parts = &self.0.parts;
        let Ok(waiting) = on_disk(&parts.store, |store| store.waiting()).await else {
            return;
        };
        let view = parts.view.borrow().clone();
        let mut done = Vec::new();
        let mut failing = HashSet::new();
        for message in waiting {
            if message.until <= now() {
                tracing::warn!(id = ?message.id, node = %message.node, "a message was never delivered: its node stayed away");
                self.question(&message).ended("expired");
                done.push(message.id);
            } else if here(&view, &message.node) && !failing.contains(&message.node) {
                match self.attempt(&message).await {
                    Ok(()) => {
                        tracing::info!(id = ?message.id, node = %message.node, "a stored message is delivered");
                        done.push(message.id);
                    }
                    Err(failure) if later(&failure) => {
                        failing.insert(message.node.clone());
                    }
                    Err(failure) => {
                        tracing::warn!(id = ?message.id, node = %message.node, %failure, "a stored message was refused");
                        done.push(message.id);
                    }
                }
            }
        }
        if !done.is_empty() {
            // What stays is sent again, and known at the other side.
            let _ = on_disk(&parts.store, move |store| store.remove(&done)).await;
        }
    }
}

/// Whether there is a way to `node` at present.
fn here(view: &View, node: &NodeId) -> bool {
    let node = view.nodes.get(node);
    node.is_some_and(|node| node.reach != Reach::Unreachable)
}

/// Whether the same message may go through at another time.
fn later(failure: &Failure) -> bool {
    match failure.code {
        Code::NoRoute
        | Code::PeerUnreachable
        | Code::Overloaded
        | Code::ShuttingDown
        | Code::StaleRequest
        | Code::Timeout
        | Code::DeadlineExceeded
        | Code::StreamLost
        | Code::OutcomeUnknown
        | Code::RateLimited
        | Code::Cancelled
        | Code::Internal
        | Code::AuditUnavailable
        | Code::E2eAuthFailed => true,
        Code::InvalidRequest
        | Code::UnsupportedType
        | Code::ProtocolError
        | Code::InvalidApiKey
        | Code::Forbidden
        | Code::PolicyDenied
        | Code::ApprovalDenied
        | Code::ApprovalExpired
        | Code::ModelNotFound
        | Code::AgentNotFound
        | Code::NodeNotFound
        | Code::NotFound
        | Code::MethodNotAllowed
        | Code::PayloadTooLarge
        | Code::UnsupportedMediaType
        | Code::MisdirectedRequest
        | Code::IdempotencyMismatch
        | Code::BudgetExceeded
        | Code::UpstreamError
        | Code::FlowControl
        | Code::LoopDetected
        | Code::IdentityConflict => false,
    }
}
