//! `POST /api/v1/send`: a message for an agent.

use http::Response;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, Turn};
use crate::{
    handoff::outbound::Handoffs,
    messages::outbound::{Messages, NewMessage, Sent},
    once::Once,
    proxy::{body::ReplyBody, list::json as json_answer},
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

/// Sends it, or tells what became of it under the same `Idempotency-Key`.
///
/// # Errors
/// What [`Messages::send`] says; `agent_not_found` and `node_not_found` when nobody is meant;
/// `idempotency_mismatch`.
pub async fn send(
    handoffs: &Handoffs,
    messages: &Messages,
    once: &Once<String>,
    wanted: Wanted,
    client: &Client<'_>,
) -> Result<Response<ReplyBody>, Failure> {
    let ticket = match client.turn(once, |_| true).await? {
        Turn::Run(ticket) => ticket,
        Turn::Done(answer) => return Ok(json_answer(answer, client.asked)),
    };
    let (chain, agent) = client.chain();
    let found = handoffs.find_agents(&wanted.target, true)?;
    let sent = messages
        .send(NewMessage {
            // The other node takes a name once: a repeat after a failure does no harm.
            id: client.name(),
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
    let answer = answer.to_string();
    if let Some(ticket) = ticket {
        ticket.done(answer.clone());
    }
    Ok(json_answer(answer, client.asked))
}
