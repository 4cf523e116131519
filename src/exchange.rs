//! Requests, replies and streams by id over [`Session`]s: deadlines, cancellation, credit,
//! tombstones, exactly one outcome at both ends (protocol 5.3, 5.4, 7.1-7.3).
//!
//! It knows nothing of models or tools: a request is a kind, a JSON object and a body. Callers open
//! a [`Call`]; the node asked gets an [`Incoming`] through its [`InboundHandler`].

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    ids::RequestId,
    mesh::session::{Class, Peer, Session},
    wire::code::Failure,
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
}

/// One request to another node.
#[derive(Debug)]
pub struct NewRequest {
    /// Names the exchange at both ends.
    pub rid: RequestId,
    /// What is asked.
    pub kind: Kind,
    /// The fields of the request as the inside of a JSON object, `"model":"m","stream":true`,
    /// without `type`, `rid`, `at`, `dl` and `blen`, which the exchange adds.
    pub fields: String,
    /// The whole body. Up to 32 KiB ride in the request, the rest follows as chunks under credit.
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
    pub usage: Option<Box<serde_json::value::RawValue>>,
    /// Result, as raw JSON, for kinds that have one.
    pub result: Option<Box<serde_json::value::RawValue>>,
}

/// One item of an answer, in order.
#[derive(Debug)]
pub enum Item {
    /// The node has taken the request.
    Accept,
    /// Begin of the answer.
    Head {
        /// HTTP-like status.
        status: u16,
        /// The `meta` object as raw JSON.
        meta: Box<serde_json::value::RawValue>,
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

/// One request from another node.
#[derive(Debug)]
pub struct Incoming {
    /// Who asks; verified.
    pub caller: Peer,
    /// Names the exchange.
    pub rid: RequestId,
    /// What is asked.
    pub kind: Kind,
    /// The request's JSON object, whole.
    pub json: Bytes,
    /// Total body length, already checked against the limit.
    pub body_bytes: u64,
    /// The body.
    pub body: BodyReader,
    /// Where the answer goes.
    pub reply: Reply,
}

/// The session type that carries exchanges.
pub type SessionRef = Arc<dyn Session>;

/// Placeholder until the implementation lands.
#[derive(Debug)]
pub struct BodyReader {}

impl BodyReader {
    /// The next bytes of the body; none at its end. Reading is what grants further credit.
    ///
    /// # Errors
    /// [`Failure`] when the asking side cancelled, was lost, or ran out of time.
    #[expect(
        clippy::unused_async,
        clippy::todo,
        reason = "replaced by the implementation"
    )]
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        todo!()
    }
}

/// Placeholder until the implementation lands. Dropped without an end it answers `internal`.
#[derive(Debug)]
pub struct Reply {}

#[expect(
    clippy::unused_async,
    clippy::todo,
    reason = "replaced by the implementation"
)]
impl Reply {
    /// Says that the request is taken.
    ///
    /// # Errors
    /// [`Failure`] when the asking side cancelled, was lost, or ran out of time; the same below.
    pub async fn accept(&mut self) -> Result<(), Failure> {
        todo!()
    }
    /// Begins the answer; `fin` makes it the whole of it.
    ///
    /// # Errors
    /// As [`Reply::accept`].
    pub async fn head(
        &mut self,
        _status: u16,
        _meta: &str,
        _data: Bytes,
        _fin: Option<End>,
    ) -> Result<(), Failure> {
        todo!()
    }
    /// Sends further bytes, waiting for credit and for room on the link.
    ///
    /// # Errors
    /// As [`Reply::accept`].
    pub async fn chunk(&mut self, _data: Bytes, _fin: Option<End>) -> Result<(), Failure> {
        todo!()
    }
    /// Ends the answer.
    ///
    /// # Errors
    /// As [`Reply::accept`].
    pub async fn end(self, _end: End) -> Result<(), Failure> {
        todo!()
    }
    /// Ends it with a failure. Synchronous, so that it can be called from `Drop` guards.
    pub fn fail(self, _failure: Failure) {
        todo!()
    }
    /// Resolves when the asking side cancelled, was lost, or ran out of time; the reason is what
    /// [`Reply::chunk`] would return.
    pub async fn cancelled(&self) -> Failure {
        todo!()
    }
}

/// One request of ours. Dropping it before its end sends `cancel`.
#[derive(Debug)]
pub struct Call {}

impl Call {
    /// The next item of the answer; none after the last.
    ///
    /// # Errors
    /// [`Failure`]: the one outcome, after which nothing more comes.
    #[expect(
        clippy::unused_async,
        clippy::todo,
        reason = "replaced by the implementation"
    )]
    pub async fn next(&mut self) -> Result<Option<Item>, Failure> {
        todo!()
    }
}

/// Handle to all exchanges of this node; cheap to clone. Implements
/// [`crate::mesh::session::SessionHandler`].
#[derive(Debug, Clone)]
pub struct Exchange {}

#[expect(clippy::todo, reason = "replaced by the implementation")]
impl Exchange {
    /// All exchanges of one node, `inbound` being asked for what others send.
    #[must_use]
    pub fn new(_tasks: crate::drain::Tasks, _inbound: Arc<dyn InboundHandler>) -> Self {
        todo!()
    }
    /// Sends a request over `session`.
    ///
    /// # Errors
    /// [`Failure`] with stage `not_started`: `overloaded`, `peer_unreachable`, `payload_too_large`,
    /// `shutting_down`.
    pub fn open(&self, _session: &SessionRef, _request: NewRequest) -> Result<Call, Failure> {
        todo!()
    }
}
