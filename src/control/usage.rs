//! `GET /api/v1/usage`: what other nodes use of what this one lets them have (protocol 8.5).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::status::Facts;
use crate::{
    budgets::{Budgets, Caps, Usage},
    crypto::identity::KeyId,
    ids::NodeId,
    policy::Quota,
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// Seconds until the next day, in UTC.
    resets_in: u64,
    limits: Limits,
    peers: Vec<PeerUsage>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Limits {
    per_peer: Map<String, Value>,
    /// By the rule's name.
    rules: BTreeMap<Arc<str>, Map<String, Value>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerUsage {
    /// Null for a key that no known node has any more.
    node_id: Option<NodeId>,
    key_id: KeyId,
    usage: Vec<AccountUsage>,
}

#[derive(Debug, Serialize)]
struct AccountUsage {
    /// Null for `limits.perPeer`.
    rule: Option<Arc<str>>,
    /// By the limit's name: `{"used","most"}`.
    limits: Map<String, Value>,
}

/// The limits there are, by the names of `limits.perPeer`, with what `usage` has of each.
fn shown(caps: &Caps, usage: Option<&Usage>) -> Map<String, Value> {
    let day = usage.map(|usage| usage.day).unwrap_or_default();
    let named = [
        (
            "requestsPerMinute",
            caps.per_minute,
            usage.map_or(0, |usage| usage.minute),
        ),
        (
            "concurrent",
            caps.concurrent,
            usage.map_or(0, |usage| usage.open),
        ),
        ("requestsPerDay", caps.per_day, day.requests),
        ("tokensPerDay", caps.tokens_per_day, day.tokens),
        ("bytesPerDay", caps.bytes_per_day, day.bytes),
    ];
    let limited = named.into_iter().filter_map(|(name, most, used)| {
        let most = most?;
        let value = match usage {
            None => json!(most),
            Some(_) => json!({"used": used, "most": most}),
        };
        Some((name.to_owned(), value))
    });
    limited.collect()
}

/// The whole answer.
pub(super) fn usage(budgets: &Budgets, quotas: &[(Arc<str>, Quota)], facts: &Facts) -> String {
    let per_peer = budgets.per_peer();
    let rules: HashMap<&str, Caps> = quotas
        .iter()
        .map(|(rule, quota)| (&**rule, Caps::from(*quota)))
        .collect();
    let names: HashMap<KeyId, NodeId> = facts
        .trust
        .list()
        .into_iter()
        .map(|entry| (entry.key_id, entry.node))
        .chain([(facts.key_id, facts.node.clone())])
        .collect();
    let (counted, left) = budgets.usage();
    let mut peers: HashMap<KeyId, Vec<AccountUsage>> = HashMap::new();
    for one in &counted {
        let caps = match &one.account.rule {
            None => Some(&per_peer),
            Some(rule) => rules.get(&**rule),
        };
        // What is not limited any more needs no telling.
        let limits = caps.map(|caps| shown(caps, Some(one))).unwrap_or_default();
        if !limits.is_empty() {
            peers
                .entry(one.account.peer)
                .or_default()
                .push(AccountUsage {
                    rule: one.account.rule.clone(),
                    limits,
                });
        }
    }
    let mut peers: Vec<PeerUsage> = peers
        .into_iter()
        .map(|(key_id, mut usage)| {
            usage.sort_by(|a, b| a.rule.cmp(&b.rule));
            PeerUsage {
                node_id: names.get(&key_id).cloned(),
                key_id,
                usage,
            }
        })
        .collect();
    peers.sort_by_cached_key(|peer| (peer.node_id.clone(), peer.key_id.to_string()));
    let answer = Answer {
        resets_in: left.as_secs(),
        limits: Limits {
            per_peer: shown(&per_peer, None),
            rules: quotas
                .iter()
                .map(|(rule, quota)| (rule.clone(), shown(&Caps::from(*quota), None)))
                .collect(),
        },
        peers,
    };
    serde_json::to_string(&answer).unwrap_or_default()
}
