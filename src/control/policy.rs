//! `POST /api/v1/policy/can`: would this node allow it, and by which rule?

use serde_json::{Map, Value};

use super::status::Facts;
use crate::{
    tools::{args::invalid, can::Question, outbound::Tools},
    wire::code::{Code, Failure},
};

/// Answers a [`Question`] that also names the `node` it is about, which must be this one.
///
/// # Errors
/// `invalid_request`, and `node_not_found` for another node: only it knows its rules.
pub async fn can(
    tools: &Tools,
    facts: &Facts,
    mut asked: Map<String, Value>,
) -> Result<String, Failure> {
    let node = asked.remove("node");
    let node = node.as_ref().and_then(Value::as_str).unwrap_or_default();
    if node != facts.node.as_str() {
        return Err(Failure::not_started(
            Code::NodeNotFound,
            format!(
                "this node is `{}`: every node knows its own rules alone, so ask on the node that would be touched",
                facts.node
            ),
        ));
    }
    let mut question: Question = serde_json::from_value(Value::Object(asked))
        .map_err(|error| invalid(&error.to_string()))?;
    let (level, labels) = facts.trust.rights_of(&question.from);
    if question.tags.is_empty() {
        let view = facts.view.borrow();
        if let Some(seen) = view.nodes.get(&question.from) {
            question.tags.clone_from(&seen.descriptor.tags);
        }
    }
    let subject = question.subject(level, &labels);
    let answer = tools.service().can(&question, &subject).await?;
    Ok(answer.json().to_string())
}
