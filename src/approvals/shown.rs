//! A request as it is shown to a person: by the local API, and at another node.
//!
//! It holds all that is signed and what one wants to know besides, and not the content, which goes
//! apart. Whoever signs makes the hashes himself, of what he was shown.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ApprovalId, Request};
use crate::{
    crypto::identity::PublicKey,
    ids::{NodeId, RequestId},
};

/// The fields of one request.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Names it on its node.
    pub id: ApprovalId,
    /// Names the exchange.
    pub rid: RequestId,
    /// Who asks.
    pub from: NodeId,
    /// With which key.
    pub from_key: PublicKey,
    /// Which node would be touched.
    pub to: NodeId,
    /// `tool:` and its name.
    pub action: String,
    /// The arguments, JSON, as they came.
    pub args: String,
    /// 2 or 3.
    pub level: u8,
    /// The rule that wants a person.
    pub rule: String,
    /// What would really be touched.
    pub touches: Vec<String>,
    /// Where a command starts.
    pub workdir: Option<String>,
    /// Whether a model asks on its own, as the caller says.
    pub agent: bool,
    /// When it was asked, ms since 1970.
    pub asked_ms: u64,
    /// End of its time by the clock of its node, ms since 1970.
    pub exp_ms: u64,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As of the request: no arguments in a log.
        f.debug_struct("Shown")
            .field("id", &self.id)
            .field("from", &self.from)
            .field("action", &self.action)
            .finish_non_exhaustive()
    }
}

impl Shown {
    /// What is shown of `request`.
    #[must_use]
    pub fn of(id: ApprovalId, request: &Request) -> Self {
        Self {
            id,
            rid: request.rid,
            from: request.from.clone(),
            from_key: request.from_key,
            to: request.to.clone(),
            action: request.action.clone(),
            args: request.args.clone(),
            level: request.level,
            rule: request.rule.clone(),
            touches: request.touches.clone(),
            workdir: request.workdir.clone(),
            agent: request.agent,
            asked_ms: request.asked,
            exp_ms: request.exp,
        }
    }

    /// The request it shows, with its content.
    #[must_use]
    pub fn request(self, data: Bytes) -> Request {
        Request {
            rid: self.rid,
            from: self.from,
            from_key: self.from_key,
            to: self.to,
            action: self.action,
            args: self.args,
            data,
            level: self.level,
            rule: self.rule,
            touches: self.touches,
            workdir: self.workdir,
            agent: self.agent,
            asked: self.asked_ms,
            exp: self.exp_ms,
        }
    }
}
