//! What other nodes say of approvals: one shows a request that waits there, or brings the decision of a
//! person about one that waits here (protocol 8.4).
//!
//! Who may is the configuration's word alone. A decision counts like one at this machine: an approval is
//! an operator's signature over exactly the request, which the other node only carries. A denial needs
//! no more than a listed node, since it does nothing but refuse.

use std::{borrow::Cow, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::time::sleep;

use super::{ApprovalId, Desk, Inbox, Nodes, Refused, Request, Shown};
use crate::{
    drain::Tasks,
    exchange::{BodyReader, End, InboundHandler, Incoming, Kind},
    ids::NodeId,
    mesh::session::Peer,
    trust::Level,
    wire::{
        code::{Code, Failure},
        limits::{APPROVAL_BODY_BYTES, APPROVAL_SHOWN_BYTES, APPROVAL_WAIT},
    },
};

/// Answers other nodes; cheap to clone.
#[derive(Debug, Clone)]
pub struct ApprovalService(Arc<Parts>);

/// What it is made of.
#[derive(Debug)]
pub struct Parts {
    /// Ourselves.
    pub node: NodeId,
    /// What waits here.
    pub desk: Desk,
    /// What waits elsewhere.
    pub inbox: Inbox,
    /// Show it.
    pub tasks: Tasks,
}

/// `approval_req`: the body is what is shown, then the content.
#[derive(Deserialize)]
struct Req<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    /// Bytes of what is shown.
    slen: u64,
    /// ms it may still wait.
    dl: u64,
}

/// `approval`.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    decision: Cow<'a, str>,
    #[serde(borrow, default)]
    token: Option<Cow<'a, str>>,
}

impl InboundHandler for ApprovalService {
    fn handle(&self, incoming: Incoming) {
        let this = self.clone();
        // Ends with the other node's request.
        self.0.tasks.spawn(async move {
            if incoming.kind == Kind::Approval {
                this.decide(incoming).await;
            } else {
                this.show(incoming).await;
            }
        });
    }
}

impl ApprovalService {
    /// A service made of `parts`.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Shows a request of another node until that node, its loss or its time ends it.
    async fn show(&self, incoming: Incoming) {
        let Incoming {
            caller,
            json,
            body_bytes,
            mut body,
            mut reply,
            ..
        } = incoming;
        let mut nodes = self.0.inbox.nodes();
        let read = async {
            let listed = nodes.borrow().approves_for.contains(&caller.node);
            if !listed || caller.level < Level::Pinned {
                return Err(Failure::not_started(
                    Code::Forbidden,
                    format!(
                        "node `{}` shows no requests of node `{}`: it is not in `approvals.approvesFor` there",
                        self.0.node, caller.node
                    ),
                ));
            }
            self.read(&caller, &json, &mut body, body_bytes).await
        };
        let Some(read) = reply.unless_cancelled(read).await else {
            return;
        };
        let shown = read.and_then(|(id, request, left)| {
            let kept = self.0.inbox.show(id, request, left)?;
            Ok((id, kept, left))
        });
        let (id, kept, left) = match shown {
            Ok(shown) => shown,
            Err(failure) => {
                tracing::info!(peer = %caller.node, code = failure.code.as_str(), "a request that waits there is not shown here");
                reply.fail(failure);
                return;
            }
        };
        if reply.accept().await.is_err() {
            return;
        }
        tracing::info!(peer = %caller.node, approval = %id, "a request waits at another node for a person here");
        let unlisted = async {
            let gone = |nodes: &Nodes| !nodes.approves_for.contains(&caller.node);
            drop(nodes.wait_for(gone).await);
        };
        let failure = tokio::select! {
            biased;
            why = reply.cancelled() => why,
            // It is shown again once the node is back.
            () = self.0.inbox.closed() => Failure::not_started(Code::ShuttingDown, "the node is shutting down"),
            () = sleep(left) => Failure::not_started(Code::ApprovalExpired, "its time is up"),
            () = unlisted => Failure::not_started(Code::Forbidden, "it is shown here no more"),
        };
        tracing::debug!(approval = %id, %failure, "a request of another node is shown no more");
        drop(kept);
        reply.fail(failure);
    }

    async fn read(
        &self,
        caller: &Peer,
        json: &[u8],
        body: &mut BodyReader,
        body_bytes: u64,
    ) -> Result<(ApprovalId, Request, Duration), Failure> {
        let invalid = |text: &str| Failure::not_started(Code::InvalidRequest, text);
        let strange = || invalid("not a request that waits for a person");
        let req: Req<'_> = serde_json::from_slice(json).map_err(|_| strange())?;
        let id: ApprovalId = req.id.parse().map_err(|_| strange())?;
        let shown_bytes = usize::try_from(req.slen).unwrap_or(usize::MAX);
        if shown_bytes > APPROVAL_SHOWN_BYTES
            || body_bytes.saturating_sub(req.slen) > APPROVAL_BODY_BYTES as u64
        {
            return Err(Failure::not_started(
                Code::PayloadTooLarge,
                "the request that waits is too large to be shown",
            ));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await? {
            bytes.extend_from_slice(&piece);
        }
        let (text, data) = bytes.split_at_checked(shown_bytes).ok_or_else(strange)?;
        let shown: Shown = serde_json::from_slice(text).map_err(|_| strange())?;
        // What is signed names its node: nobody is shown a request as another's.
        if shown.to != caller.node || shown.id != id {
            return Err(invalid("a node shows requests of its own alone"));
        }
        let left = Duration::from_millis(req.dl).min(APPROVAL_WAIT);
        Ok((id, shown.request(data.to_vec().into()), left))
    }

    /// A person at another node has decided.
    async fn decide(&self, incoming: Incoming) {
        let Incoming {
            caller,
            json,
            reply,
            ..
        } = incoming;
        match self.decided(&caller, &json) {
            Ok(result) => {
                let end = End {
                    ok: true,
                    usage: None,
                    result: RawValue::from_string(result).ok(),
                };
                // Nothing can be done for a node that is gone.
                let _ = reply.end(end).await;
            }
            Err(failure) => {
                tracing::warn!(peer = %caller.node, %failure, "an approval of another node was refused");
                reply.fail(failure);
            }
        }
    }

    fn decided(&self, caller: &Peer, json: &[u8]) -> Result<String, Failure> {
        let parts = &self.0;
        let invalid = |text: &str| Failure::not_started(Code::InvalidRequest, text);
        let listed = parts
            .inbox
            .nodes()
            .borrow()
            .approvers
            .contains(&caller.node);
        if !listed || caller.level < Level::Pinned {
            return Err(Failure::not_started(
                Code::Forbidden,
                format!(
                    "node `{}` takes no approvals from node `{}`: it is not in `approvals.approvers` there",
                    parts.node, caller.node
                ),
            ));
        }
        let said: Said<'_> =
            serde_json::from_slice(json).map_err(|_| invalid("not a decision of a person"))?;
        let id = said.id.parse().map_err(|_| Refused::Unknown.failure())?;
        match &*said.decision {
            "approve" => {
                let token = said.token.as_deref().unwrap_or_default();
                let by = parts.desk.approve_from_afar(id, &signature(token));
                let by = by.map_err(Refused::failure)?;
                tracing::info!(approval = %id, peer = %caller.node, %by, "approved from another node");
                Ok(json!({"state": "approved", "by": by}).to_string())
            }
            "deny" => {
                parts.desk.deny(id).map_err(Refused::failure)?;
                tracing::info!(approval = %id, peer = %caller.node, "denied from another node");
                Ok(json!({"state": "denied"}).to_string())
            }
            _ => Err(invalid("`decision` is `approve` or `deny`")),
        }
    }
}

/// A signature as text; what is none is a wrong one.
#[must_use]
pub fn signature(text: &str) -> [u8; 64] {
    let bytes = URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
    <[u8; 64]>::try_from(bytes).unwrap_or([0; 64])
}
