//! `POST /api/v1/send`: a message for an agent.

use http::{HeaderMap, Response};
use serde::Deserialize;
use serde_json::json;

use super::handoff::chain_of;
use crate::{
    exchange::Lineage,
    handoff::outbound::Handoffs,
    messages::outbound::{Messages, NewMessage, Sent},
    proxy::{body::ReplyBody, error::Asked, list::json as json_answer},
    wire::code::Failure,
};

/// The body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    target: String,
    message: String,
    #[serde(default = "yes")]
    wake: bool,
}

const fn yes() -> bool {
    true
}

/// Sends it.
///
/// # Errors
/// What [`Messages::send`] says; `agent_not_found` and `node_not_found` when nobody is meant.
pub async fn send(
    handoffs: &Handoffs,
    messages: &Messages,
    lineage: &Lineage,
    headers: &HeaderMap,
    wanted: Wanted,
    asked: Asked,
) -> Result<Response<ReplyBody>, Failure> {
    let (chain, agent) = chain_of(lineage, headers);
    let found = handoffs.find_agents(&wanted.target, true)?;
    let sent = messages
        .send(NewMessage {
            addressees: found.into_iter().map(|c| (c.node, c.agent)).collect(),
            text: wanted.message,
            wake: wanted.wake,
            chain,
            agent,
        })
        .await?;
    let answer = match sent {
        Sent::Delivered(node) => json!({"delivered": true, "nodeId": node}),
        Sent::Queued(until) => json!({"queued": true, "expiresAt": until}),
    };
    Ok(json_answer(answer.to_string(), asked))
}
