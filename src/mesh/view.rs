//! What this node knows about the others, as an immutable snapshot that readers hold without a lock.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{carriage::Carriage, linkstate::Load};
use crate::{crypto::identity::KeyId, ids::NodeId, trust::Level};

/// What a node says of itself (payload of a `desc` record, protocol 6.1). Nothing in it grants a
/// right; texts are cleaned and clamped before they get here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    /// Program name and version.
    pub software: String,
    /// Agents offered for handoff.
    pub agents: Vec<AgentOffer>,
    /// Models lent.
    pub models: Vec<ModelOffer>,
    /// Free labels, self-asserted.
    pub tags: Vec<String>,
    /// Tools the node would run for somebody; a hint.
    pub tools: Vec<String>,
    /// Optional abilities, by name.
    pub capabilities: Vec<String>,
    /// Where its listener may be dialed, as it says: `ws://10.0.0.5:19000`. Dialed only as the
    /// `dialAdvertised` of the other node allows (protocol 6.8).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

/// One agent of a [`Descriptor`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentOffer {
    /// Its id on that node.
    pub id: String,
    /// What it is good for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Free labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// One lent model of a [`Descriptor`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelOffer {
    /// Its id on that node; may contain `/`.
    pub id: String,
    /// Name for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The api its provider speaks, in OpenClaw's words: `openai-completions`, `anthropic-messages`.
    pub api: String,
    /// Context window in tokens.
    pub context_window: u64,
    /// Longest answer in tokens.
    pub max_tokens: u64,
    /// Input kinds: `text`, `image`.
    pub input: Vec<String>,
    /// Whether it reasons.
    pub reasoning: bool,
    /// Prices per million tokens, as OpenClaw writes them; passed on unread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<serde_json::Value>,
    /// Where it runs, in the lender's words: `local`, `cloud`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// What it is good for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// How a node is reached (contract 3).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Over a link of our own.
    Direct,
    /// Through other nodes.
    Relay,
    /// Not at present.
    Unreachable,
}

/// One other node as this node sees it.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its name.
    pub node: NodeId,
    /// Short form of its key; none before the first contact.
    pub key_id: Option<KeyId>,
    /// Our trust in that key; none before the first contact.
    pub level: Option<Level>,
    /// How it is reached.
    pub reach: Reach,
    /// The neighbour it is reached through, when relayed.
    pub reachable_via: Option<NodeId>,
    /// Round-trip time in milliseconds.
    pub latency_ms: Option<f64>,
    /// What it says of itself.
    pub descriptor: Arc<Descriptor>,
    /// How busy it says it is.
    pub load: Option<Load>,
    /// When something authenticated last came from it.
    pub last_seen: Option<SystemTime>,
    /// Why it is not reached, for the operator: `secrets differ`, `connection refused`.
    pub problem: Option<String>,
}

impl NodeView {
    /// Whether a session to it may turn out to be one with a node trusted at `least`. A name known
    /// by record only, or never met, is pinned by the handshake (protocol 7.4), if the rules of trust
    /// let it; the session's own level is what counts then.
    #[must_use]
    pub fn may_be_trusted(&self, least: Level) -> bool {
        self.level
            .is_none_or(|level| level.max(Level::Pinned) >= least)
    }

    /// Its place among several that would do, by trust: what the operator confirmed comes first, what
    /// nobody here has met comes last.
    #[must_use]
    pub fn trust_rank(&self) -> u8 {
        match self.level {
            Some(Level::Trusted) => 0,
            Some(Level::Pinned) => 1,
            Some(Level::Seen) | None => 2,
        }
    }
}

/// Every other node, by name. Shared by `watch`; readers never see a half-made change.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Configured and seen nodes.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// What carries the links of our own, by the node at their other end.
    pub links: BTreeMap<NodeId, Carriage>,
    /// Nodes that break the rules, in words with the way out, the latest first.
    pub alerts: Vec<String>,
    /// Nodes with which a link or session is still proved with another secret than the present one, by
    /// name: the older secret must not be taken away yet (protocol 2).
    pub outdated: Vec<NodeId>,
}
