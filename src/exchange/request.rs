//! What callers and handlers say to the exchange: requests, items of an answer, limits.

use std::{fmt, pin::Pin, time::Duration};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::Incoming;
use crate::{
    ids::{NodeId, RequestId},
    mesh::session::{Class, SessionRef},
    wire::{
        code::Failure,
        limits::{NODE_BUDGET_BYTES, PEER_BUDGET_BYTES, REQUEST_BODY_BYTES, RESPONSE_BODY_BYTES},
    },
};

/// Kinds of request (protocol 5.3); the text is the inner `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `model_req`
    Model,
    /// `handoff_req`
    Handoff,
    /// `tool_req`
    Tool,
    /// `send`
    Send,
    /// `approval_req`
    ApprovalReq,
    /// `approval`
    Approval,
}

/// One request to another node.
pub struct NewRequest {
    /// Names the exchange at both ends.
    pub rid: RequestId,
    /// What is asked.
    pub kind: Kind,
    /// The fields of the request as the inside of a JSON object, `"model":"m","stream":true`,
    /// without `type`, `rid`, `at`, `dl` and `blen`, which the exchange adds.
    pub fields: String,
    /// The whole body. Up to 32 KiB ride in the request, a larger one follows as chunks under
    /// credit. The caller, who may need it for another attempt, counts it against
    /// [`super::Exchange::budget`].
    pub body: Bytes,
    /// Class of the request and its chunks.
    pub class: Class,
    /// Whether it may run twice without harm; if not, protocol 7.1 binds it.
    pub idempotent: bool,
    /// Time limits.
    pub timeouts: Timeouts,
}

/// Time limits of one request (protocol 7).
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until the first answer of any kind.
    pub accept: Duration,
    /// Silence until the first chunk and between chunks; none for no limit.
    pub idle: Option<Duration>,
    /// The whole request; travels as `dl`.
    pub deadline: Duration,
    /// Whether `deadline` ends to apply at the first streamed byte.
    pub until_first_byte: bool,
}

/// The last item of an answer.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// Whether the work succeeded.
    pub ok: bool,
    /// Token usage, as raw JSON, when known.
    pub usage: Option<Box<RawValue>>,
    /// Result, as raw JSON, for kinds that have one.
    pub result: Option<Box<RawValue>>,
}

impl End {
    /// About the length of its JSON.
    pub(super) fn json_bytes(&self) -> usize {
        let raw = |value: &Option<Box<RawValue>>| {
            value.as_ref().map_or(0, |value| value.get().len() + 16)
        };
        raw(&self.usage) + raw(&self.result) + 32
    }
}

impl fmt::Debug for NewRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without fields and body: prompts are nobody's business in a log.
        f.debug_struct("NewRequest")
            .field("rid", &self.rid)
            .field("kind", &self.kind)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// One item of an answer, in order.
#[derive(Debug)]
pub enum Item {
    /// The node has taken the request.
    Accept,
    /// The node asks a person first, for so long at most, as it says.
    Waits(Option<Duration>),
    /// Begin of the answer.
    Head {
        /// HTTP-like status.
        status: u16,
        /// The `meta` object as raw JSON.
        meta: Box<RawValue>,
        /// First bytes, perhaps none.
        data: Bytes,
        /// Set when this is the whole answer.
        fin: Option<End>,
    },
    /// Further bytes.
    Chunk {
        /// The bytes.
        data: Bytes,
        /// Set on the last item.
        fin: Option<End>,
    },
    /// The end, apart.
    End(End),
}

/// The node asked: takes each request that arrives. Must not block; it spawns its work.
pub trait InboundHandler: Send + Sync + fmt::Debug {
    /// Takes one request. Dropping `incoming` answers it with a failure.
    fn handle(&self, incoming: Incoming);
}

/// Where sessions to other nodes come from; the mesh implements it.
pub trait Sessions: Send + Sync + fmt::Debug {
    /// A session with `node`, opened first if there is none, which takes up to 10 s.
    ///
    /// # Errors
    /// `no_route` at once, or `peer_unreachable`.
    fn session<'a>(&'a self, node: &'a NodeId) -> Opening<'a>;
}

/// What [`Sessions::session`] gives.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<SessionRef, Failure>> + Send + 'a>>;

impl Item {
    /// Whether nothing follows it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        match self {
            Item::Accept | Item::Waits(_) => false,
            Item::Head { fin, .. } | Item::Chunk { fin, .. } => fin.is_some(),
            Item::End(_) => true,
        }
    }
}

/// Limits an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest request body this node takes or sends.
    pub request_body_bytes: u64,
    /// Longest answer this node takes.
    pub response_body_bytes: u64,
    /// Bytes held for one peer.
    pub peer_budget_bytes: usize,
    /// Bytes held for all peers.
    pub node_budget_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_body_bytes: REQUEST_BODY_BYTES as u64,
            response_body_bytes: RESPONSE_BODY_BYTES as u64,
            peer_budget_bytes: PEER_BUDGET_BYTES,
            node_budget_bytes: NODE_BUDGET_BYTES,
        }
    }
}
