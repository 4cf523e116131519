//! The inner JSON of exchanges (protocol 5.3): written by hand, read into borrowed structs.
//!
//! Decoding is total and strict (protocol 5.2). Unknown fields are ignored, so that later versions
//! may add some.

mod read;
mod write;

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{End, Kind};
use crate::{
    ids::RequestId,
    wire::{code::Failure, limits::FAILURE_MESSAGE_BYTES},
};

pub(super) use self::{
    read::decode,
    write::{accept, ack, cancel, chunk, end, error, head, noop, query, request, state},
};

/// Which half-stream of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Dir {
    /// From the node that asks.
    Up,
    /// From the node asked.
    Down,
}

impl Dir {
    const fn as_str(self) -> &'static str {
        match self {
            Dir::Up => "up",
            Dir::Down => "down",
        }
    }
}

/// What leads the data of a down item.
#[derive(Debug, Clone)]
pub(super) enum Lead {
    Accept,
    /// Taken, and a person is asked (protocol 8.4), for so long at most.
    Waits(Option<Duration>),
    Head {
        status: u16,
        meta: Box<RawValue>,
    },
}

/// What ends a down half-stream.
#[derive(Debug, Clone)]
pub(super) enum Last {
    End(End),
    Failed(Failure),
}

/// One item of an answer, without its data.
#[derive(Debug)]
pub(super) struct DownItem {
    pub(super) rid: RequestId,
    /// None in a refusal by a node that keeps nothing of the request.
    pub(super) seq: Option<u64>,
    pub(super) lead: Option<Lead>,
    pub(super) last: Option<Last>,
}

/// What the exchange itself reads of a request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) rid: RequestId,
    pub(super) kind: Kind,
    /// Milliseconds since the session began (protocol 7.1).
    pub(super) at: Option<u64>,
    /// Milliseconds the request may take.
    pub(super) dl: Option<u64>,
    /// Length of the whole body.
    pub(super) blen: u64,
    /// Whether the answer is streamed: its deadline ends to apply at the first byte.
    pub(super) stream: bool,
}

/// One entry of an `ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Ack(
    #[serde(deserialize_with = "read::rid")] pub(super) RequestId,
    pub(super) Dir,
    pub(super) u64,
    pub(super) u64,
);

/// How far a request has come, as `state` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Never seen; it will be refused from now on, so it never ran and never will.
    Unknown,
    /// Taken, not yet begun.
    Accepted,
    /// A person is asked.
    ApprovalPending,
    /// Under way.
    Running,
    /// Ended.
    Done,
}

impl Phase {
    const fn as_str(self) -> &'static str {
        match self {
            Phase::Unknown => "unknown",
            Phase::Accepted => "accepted",
            Phase::ApprovalPending => "approval_pending",
            Phase::Running => "running",
            Phase::Done => "done",
        }
    }
}

/// One inner message.
#[derive(Debug)]
pub(super) enum Message {
    Request(Request),
    UpChunk {
        rid: RequestId,
        seq: u64,
    },
    Down(DownItem),
    Ack(Vec<Ack>),
    Cancel {
        rid: RequestId,
    },
    Query {
        rid: RequestId,
    },
    State {
        rid: RequestId,
        phase: Phase,
    },
    Noop,
    /// A type of a later version, and the request it names, if any.
    Unknown {
        rid: Option<RequestId>,
    },
    /// A failure that names no request.
    Complaint(Failure),
}

impl Kind {
    /// The inner `type` of a request of this kind.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Model => "model_req",
            Kind::Handoff => "handoff_req",
            Kind::Tool => "tool_req",
            Kind::Send => "send",
            Kind::ApprovalReq => "approval_req",
            Kind::Approval => "approval",
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        [
            Kind::Model,
            Kind::Handoff,
            Kind::Tool,
            Kind::Send,
            Kind::ApprovalReq,
            Kind::Approval,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == text)
    }

    /// Whether protocol 7.1 binds it: such a request carries `at`, runs in one session only and is
    /// remembered for ten minutes.
    #[must_use]
    pub const fn once(self) -> bool {
        matches!(self, Kind::Handoff | Kind::Tool)
    }
}

/// The beginning of a text, whole characters only.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(FAILURE_MESSAGE_BYTES)]
}
