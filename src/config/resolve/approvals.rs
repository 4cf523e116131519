//! `approvals`: operator keys (protocol 8.4).

use std::time::Duration;

use super::{Check, entries};
use crate::{
    approvals::Operator,
    config::{ApprovalConfig, problem::quote, raw},
    crypto::identity::PublicKey,
    ids::unhex,
    policy::APPROVAL_LEVEL,
    wire::limits,
};

/// How the way out of every problem here begins.
const ENROLL: &str = "copy the entry that `clawmatrix approvals enroll` prints";

/// What `approvals` says.
pub(super) fn approvals(check: &mut Check<'_>, raw: &raw::RawConfig) -> ApprovalConfig {
    let none = raw::Approvals::default();
    let written = raw.approvals.as_ref().unwrap_or(&none);
    let list = written.operators.as_deref().unwrap_or_default();
    if list.len() > limits::OPERATORS {
        check.problem(
            "approvals.operators",
            format!("{} entries, more than {}", list.len(), limits::OPERATORS),
            "remove some",
        );
    }
    let mut operators: Vec<Operator> = Vec::new();
    for (i, entry) in entries(list) {
        let path = format!("approvals.operators[{i}]");
        let text = entry.key.as_deref().unwrap_or_default();
        let key = text.parse::<PublicKey>().map_err(|error| {
            check.problem(
                format!("{path}.key"),
                format!("{}: {error}", quote(text)),
                ENROLL,
            );
        });
        let digest = entry.token_sha256.as_deref().unwrap_or_default();
        let token_sha256 = unhex(digest).map_err(|error| {
            check.problem(format!("{path}.tokenSha256"), error.to_string(), ENROLL);
        });
        if let (Ok(key), Ok(token_sha256)) = (key, token_sha256) {
            if operators.iter().any(|known| known.key == key) {
                check.problem(
                    format!("{path}.key"),
                    "is listed before",
                    "remove one of the two",
                );
            }
            operators.push(Operator { key, token_sha256 });
        }
    }
    if operators.is_empty() && list.is_empty() && waits(raw) {
        check.warnings.push(
            "some tools wait for a person, and `approvals.operators` is empty: they are refused until you run `clawmatrix approvals enroll`".to_owned(),
        );
    }
    ApprovalConfig {
        operators,
        wait: written
            .wait
            .map_or(limits::APPROVAL_WAIT, Duration::from_secs),
    }
}

/// Whether anything may ever wait for a person.
fn waits(raw: &raw::RawConfig) -> bool {
    let Some(proxy) = raw.tool_proxy.as_ref().filter(|p| p.enabled == Some(true)) else {
        return false;
    };
    let rules = entries(proxy.rules.as_deref().unwrap_or_default());
    let mut levels = rules.filter_map(|(_, rule)| rule.level);
    let lists = proxy.rules.is_none() && proxy.ask.as_ref().is_some_and(|ask| !ask.is_empty());
    lists || raw.llm_guard == Some(true) || levels.any(|level| level >= APPROVAL_LEVEL)
}
