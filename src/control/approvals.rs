//! `/api/v1/approvals`: what waits for a person, and the decision (protocol 8.4). Every route needs a
//! token with scope `approve`, which the configuration alone gives; an approval needs an operator's
//! signature besides.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    approvals::{
        ApprovalId, Desk, Refused, Request, Shown,
        book::CONSOLE_LEVEL,
        inbound::signature,
        inbox::Elsewhere,
        outbound::{Approvers, Word},
    },
    ids::hex,
    wire::code::Failure,
};

/// The body of `POST /api/v1/approvals/{id}`.
#[derive(Debug, Deserialize)]
#[serde(tag = "decision", rename_all = "lowercase", deny_unknown_fields)]
pub enum Said {
    /// It may happen, once.
    Approve {
        /// The operator's Ed25519 signature, base64url.
        signature: String,
        /// What level 3 wants typed.
        #[serde(default)]
        challenge: String,
    },
    /// It may not.
    Deny {},
}

/// What waits here, and at nodes whose requests are shown here, the oldest first, without contents.
#[must_use]
pub fn list(approvers: &Approvers) -> String {
    let here = approvers.desk().list();
    let here = here
        .iter()
        .map(|(id, request)| about(*id, request, true, request.left()));
    let elsewhere = approvers.inbox().list();
    let elsewhere = elsewhere
        .iter()
        .map(|one| about(one.id, &one.request, false, one.left));
    let mut waiting: Vec<Value> = here.chain(elsewhere).collect();
    waiting.sort_by_key(|one| one["askedMs"].as_u64());
    json!({"approvals": waiting}).to_string()
}

/// One that waits, with its content.
///
/// # Errors
/// `not_found`, `forbidden` when it was decided, `approval_expired`.
pub fn show(approvers: &Approvers, id: &str) -> Result<String, Failure> {
    let id = read(id)?;
    let (mut out, request) = match elsewhere(approvers, id) {
        Some(Elsewhere { request, left, .. }) => (about(id, &request, false, left), request),
        None => {
            let (request, challenge) = approvers.desk().find(id).map_err(Refused::failure)?;
            let mut out = about(id, &request, true, request.left());
            if request.level >= CONSOLE_LEVEL {
                out["challenge"] = json!(challenge);
            }
            (out, request)
        }
    };
    out["dataSha256"] = json!(hex(&Sha256::digest(&request.data)));
    out["data"] = json!(BASE64_STANDARD.encode(&request.data));
    Ok(out.to_string())
}

/// A person has decided; what waits at another node is decided by that node.
///
/// # Errors
/// `not_found`, `approval_expired`, and `forbidden` for what is no valid decision; nothing has changed.
/// For another node also why it could not be told.
pub async fn decide(approvers: &Approvers, id: &str, said: &Said) -> Result<String, Failure> {
    let id = read(id)?;
    let mut told = match elsewhere(approvers, id) {
        Some(one) => decide_elsewhere(approvers, &one, said).await,
        None => decide_here(approvers.desk(), id, said),
    }
    .inspect_err(|error| tracing::warn!(approval = %id, %error, "a decision was refused"))?;
    told["id"] = json!(id);
    Ok(told.to_string())
}

fn decide_here(desk: &Desk, id: ApprovalId, said: &Said) -> Result<Value, Failure> {
    match said {
        Said::Approve {
            signature: text,
            challenge,
        } => {
            let by = desk.approve(id, &signature(text), challenge);
            let by = by.map_err(Refused::failure)?;
            Ok(json!({"state": "approved", "by": by}))
        }
        Said::Deny {} => {
            desk.deny(id).map_err(Refused::failure)?;
            Ok(json!({"state": "denied"}))
        }
    }
}

async fn decide_elsewhere(
    approvers: &Approvers,
    one: &Elsewhere,
    said: &Said,
) -> Result<Value, Failure> {
    let node = &one.request.to;
    let told = match said {
        // That node would refuse it, too.
        Said::Approve { .. } if one.request.level >= CONSOLE_LEVEL => {
            return Err(Refused::Console.failure());
        }
        Said::Approve {
            signature: text, ..
        } => approvers.decide(node, one.id, Word::Approve(signature(text))),
        Said::Deny {} => approvers.decide(node, one.id, Word::Deny),
    };
    let mut told = told.await?;
    if !told.is_object() {
        told = json!({});
    }
    told["nodeId"] = json!(node);
    Ok(told)
}

/// What waits at another node; our own come first.
fn elsewhere(approvers: &Approvers, id: ApprovalId) -> Option<Elsewhere> {
    match approvers.desk().find(id) {
        Err(Refused::Unknown) => approvers.inbox().find(id),
        Ok(_) | Err(_) => None,
    }
}

fn read(id: &str) -> Result<ApprovalId, Failure> {
    id.parse().map_err(|_| Refused::Unknown.failure())
}

/// Everything that is signed, and what a person wants to know besides.
fn about(id: ApprovalId, request: &Request, here: bool, left: Duration) -> Value {
    let mut out = serde_json::to_value(Shown::of(id, request)).unwrap_or_default();
    out["fromKeyId"] = json!(request.from_key.id());
    out["argsSha256"] = json!(hex(&Sha256::digest(request.args.as_bytes())));
    out["dataBytes"] = json!(request.data.len());
    out["here"] = json!(here);
    out["leftMs"] = json!(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    out
}
