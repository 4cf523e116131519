//! Shows what waits here at the nodes that may approve, and carries what a person here said to the node
//! where a request waits (protocol 8.4).

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{ApprovalId, Desk, Inbox, Request, Shown};
use crate::{
    drain::Tasks,
    exchange::{Exchange, Item, Kind, NewRequest, SessionRef, Sessions, Timeouts},
    ids::{NodeId, RequestId},
    mesh::session::Class,
    trust::Level,
    wire::{
        code::{Code, Failure},
        limits::{APPROVAL_ANSWER, APPROVAL_RETRY, APPROVAL_RETRY_MOST},
    },
};

/// What is made of it.
#[derive(Debug)]
pub struct Parts {
    /// What waits here.
    pub desk: Desk,
    /// What waits elsewhere, and which nodes have a say.
    pub inbox: Inbox,
    /// Least trust in a node we show contents to.
    pub min_trust: Level,
    /// How others are asked.
    pub exchange: Exchange,
    /// How they are reached.
    pub sessions: Arc<dyn Sessions>,
    /// Ask them.
    pub tasks: Tasks,
}

/// Speaks to the nodes that have a say; cheap to clone.
#[derive(Debug, Clone)]
pub struct Approvers(Arc<Parts>);

/// What a person said.
#[derive(Debug, Clone, Copy)]
pub enum Word {
    /// It may happen, once; the operator's signature.
    Approve([u8; 64]),
    /// It may not.
    Deny,
}

impl Approvers {
    /// Made of `parts`.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// What waits here.
    #[must_use]
    pub fn desk(&self) -> &Desk {
        &self.0.desk
    }

    /// What waits elsewhere.
    #[must_use]
    pub fn inbox(&self) -> &Inbox {
        &self.0.inbox
    }

    /// Shows what waits here for as long as it waits. Ends with the node.
    pub async fn run(self) {
        let parts = &self.0;
        let (mut waiting, mut nodes) = (parts.desk.count(), parts.inbox.nodes());
        let mut shown: HashMap<(ApprovalId, NodeId), DropGuard> = HashMap::new();
        loop {
            waiting.borrow_and_update();
            let approvers = nodes.borrow_and_update().approvers.clone();
            let pending = parts.desk.list();
            shown.retain(|(id, node), _| {
                approvers.contains(node) && pending.iter().any(|(waits, _)| waits == id)
            });
            for (id, request) in &pending {
                for node in &approvers {
                    shown
                        .entry((*id, node.clone()))
                        .or_insert_with(|| self.begin(*id, request, node));
                }
            }
            tokio::select! {
                changed = waiting.changed() => if changed.is_err() { return },
                changed = nodes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Shows one request at one node until the guard is dropped.
    fn begin(&self, id: ApprovalId, request: &Request, node: &NodeId) -> DropGuard {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let (this, request, node) = (self.clone(), request.clone(), node.clone());
        // Ends when the request waits no more, at the latest with its time.
        self.0.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = this.show(id, &request, &node) => {}
            }
        });
        guard
    }

    async fn show(&self, id: ApprovalId, request: &Request, node: &NodeId) {
        let mut pause = APPROVAL_RETRY;
        let mut told = false;
        loop {
            let Err(failure) = self.show_once(id, request, node).await else {
                return;
            };
            let late = matches!(failure.code, Code::ApprovalExpired | Code::DeadlineExceeded);
            if late || request.left().is_zero() {
                return;
            }
            if !later(&failure) {
                tracing::warn!(approval = %id, %node, %failure, "a request that waits cannot be shown at a node that may approve");
                return;
            }
            if !told {
                tracing::info!(approval = %id, %node, %failure, "a request that waits is shown later at a node that may approve");
                told = true;
            }
            sleep(pause).await;
            pause = (pause * 2).min(APPROVAL_RETRY_MOST);
        }
    }

    async fn show_once(
        &self,
        id: ApprovalId,
        request: &Request,
        node: &NodeId,
    ) -> Result<(), Failure> {
        let session = self.session(node).await?;
        let shown = serde_json::to_vec(&Shown::of(id, request))
            .map_err(|error| Failure::not_started(Code::Internal, error.to_string()))?;
        let fields = json!({"id": id, "slen": shown.len()});
        let body = [&shown[..], &request.data[..]].concat();
        let kind = Kind::ApprovalReq;
        self.ask(&session, kind, &fields, body.into(), request.left())
            .await
            .map(|_result| ())
    }

    /// Tells node `to` what a person here said of a request there.
    ///
    /// # Errors
    /// What that node says: `forbidden`, `approval_expired`, `not_found`; or why it could not be told.
    pub async fn decide(&self, to: &NodeId, id: ApprovalId, word: Word) -> Result<Value, Failure> {
        let (fields, said) = match word {
            Word::Approve(signature) => {
                let token = URL_SAFE_NO_PAD.encode(signature);
                let fields = json!({"id": id, "decision": "approve", "token": token});
                (fields, "approved")
            }
            Word::Deny => (json!({"id": id, "decision": "deny"}), "denied"),
        };
        let session = self.session(to).await?;
        let kind = Kind::Approval;
        let result = self
            .ask(&session, kind, &fields, Bytes::new(), APPROVAL_ANSWER)
            .await?;
        self.0.inbox.said(id, said);
        Ok(result)
    }

    async fn session(&self, node: &NodeId) -> Result<SessionRef, Failure> {
        let session = self.0.sessions.session(node).await?;
        if session.peer().level < self.0.min_trust {
            return Err(Failure::not_started(
                Code::Forbidden,
                format!("node `{node}` is trusted less than `outboundMinTrust` wants"),
            ));
        }
        Ok(session)
    }

    /// One question, answered by the result at its end.
    async fn ask(
        &self,
        session: &SessionRef,
        kind: Kind,
        fields: &Value,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Value, Failure> {
        let fields = fields.to_string();
        let mut call = self.0.exchange.open(
            session,
            NewRequest {
                rid: RequestId::random(),
                kind,
                fields: fields[1..fields.len() - 1].to_owned(),
                body,
                class: Class::Interactive,
                // An approval counts once, however often it is brought.
                idempotent: true,
                timeouts: Timeouts {
                    accept: APPROVAL_ANSWER,
                    idle: None,
                    deadline,
                    until_first_byte: false,
                },
            },
        )?;
        while let Some(item) = call.next().await? {
            if let Item::End(end)
            | Item::Head { fin: Some(end), .. }
            | Item::Chunk { fin: Some(end), .. } = item
            {
                let result = end.result.as_deref().map_or("{}", |raw| raw.get());
                return Ok(serde_json::from_str(result).unwrap_or_default());
            }
        }
        Ok(Value::Null)
    }
}

/// Whether the same may go through at another time. What a node refuses by its configuration may be
/// allowed by the next one; it is then shown with the next request.
fn later(failure: &Failure) -> bool {
    !matches!(
        failure.code,
        Code::Forbidden
            | Code::InvalidRequest
            | Code::UnsupportedType
            | Code::PayloadTooLarge
            | Code::PolicyDenied
            | Code::ProtocolError
            | Code::IdentityConflict
    )
}
