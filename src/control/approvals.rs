//! `/api/v1/approvals`: what waits for a person, and the decision (protocol 8.4). Every route needs a
//! token with scope `approve`, which the configuration alone gives; an approval needs an operator's
//! signature besides.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    approvals::{ApprovalId, Desk, Refused, Request, book::CONSOLE_LEVEL},
    ids::hex,
    wire::code::{Code, Failure},
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

/// What waits, the oldest first, without contents.
#[must_use]
pub fn list(desk: &Desk) -> String {
    let waiting: Vec<Value> = desk
        .list()
        .iter()
        .map(|(id, request)| about(*id, request))
        .collect();
    json!({"approvals": waiting}).to_string()
}

/// One that waits, with its content.
///
/// # Errors
/// `not_found`, `forbidden` when it was decided, `approval_expired`.
pub fn show(desk: &Desk, id: &str) -> Result<String, Failure> {
    let id = read(id)?;
    let (request, challenge) = desk.find(id).map_err(refused)?;
    let mut out = about(id, &request);
    out["dataSha256"] = json!(hex(&Sha256::digest(&request.data)));
    out["data"] = json!(BASE64_STANDARD.encode(&request.data));
    if request.level >= CONSOLE_LEVEL {
        out["challenge"] = json!(challenge);
    }
    Ok(out.to_string())
}

/// A person has decided.
///
/// # Errors
/// `not_found`, `approval_expired`, and `forbidden` for what is no valid decision; nothing has changed.
pub fn decide(desk: &Desk, id: &str, said: &Said) -> Result<String, Failure> {
    let id = read(id)?;
    match said {
        Said::Approve {
            signature,
            challenge,
        } => {
            let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
            // What is no signature is a wrong one.
            let signature = <[u8; 64]>::try_from(bytes).unwrap_or([0; 64]);
            let by = desk.approve(id, &signature, challenge);
            let by = by.inspect_err(|error| {
                tracing::warn!(approval = %id, %error, "an approval was refused");
            });
            let by = by.map_err(refused)?;
            Ok(json!({"id": id.to_string(), "state": "approved", "by": by}).to_string())
        }
        Said::Deny {} => {
            desk.deny(id).map_err(refused)?;
            Ok(json!({"id": id.to_string(), "state": "denied"}).to_string())
        }
    }
}

fn read(id: &str) -> Result<ApprovalId, Failure> {
    id.parse().map_err(|_| refused(Refused::Unknown))
}

fn refused(why: Refused) -> Failure {
    let code = match why {
        Refused::Unknown => Code::NotFound,
        Refused::Expired => Code::ApprovalExpired,
        Refused::Decided | Refused::Signature | Refused::Challenge => Code::Forbidden,
    };
    Failure::not_started(code, why.to_string())
}

/// Everything that is signed, and what a person wants to know besides.
fn about(id: ApprovalId, request: &Request) -> Value {
    json!({
        "id": id.to_string(),
        "rid": request.rid,
        "from": request.from,
        "fromKey": request.from_key,
        "fromKeyId": request.from_key.id(),
        "to": request.to,
        "action": request.action,
        "args": request.args,
        "argsSha256": hex(&Sha256::digest(request.args.as_bytes())),
        "dataBytes": request.data.len(),
        "level": request.level,
        "rule": request.rule,
        "touches": request.touches,
        "workdir": request.workdir,
        "agent": request.agent,
        "askedMs": request.asked,
        "expMs": request.exp,
    })
}
