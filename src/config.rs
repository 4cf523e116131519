//! Configuration: the raw file (contract: README "Configuration") and its resolved form.
//!
//! Only [`crate::app`] and the commands that write configuration know this module.

use std::{net::IpAddr, path::PathBuf, time::Duration, time::SystemTime};

use globset::GlobSet;
use serde_json::Value;

use crate::{
    crypto::{identity::PublicKey, secret::Secret},
    ids::{MeshName, NodeId},
    trust::Level,
};

/// A validated configuration, with every default filled in.
#[derive(Debug)]
pub struct Config {
    /// Our name.
    pub node_id: NodeId,
    /// Our mesh.
    pub mesh: MeshName,
    /// The cluster secret.
    pub secret: Secret<String>,
    /// Older secrets a listener still accepts.
    pub accept_secrets: Vec<AcceptSecret>,
    /// Where links are accepted; none for a node that only dials.
    pub listen: Option<Listen>,
    /// Nodes to dial.
    pub peers: Vec<PeerConfig>,
    /// Agents offered for handoff.
    pub agents: Vec<AgentConfig>,
    /// Models lent.
    pub models: Vec<ModelConfig>,
    /// Whether `"auto"` is among `models`: lend everything the gateway can serve.
    pub models_auto: bool,
    /// Models to show before their node is seen.
    pub proxy_models: Vec<ProxyModel>,
    /// Free labels.
    pub tags: Vec<String>,
    /// Port of the local API; 0 = any.
    pub proxy_port: u16,
    /// Trust mode and configured keys.
    pub trust: TrustConfig,
    /// Serve as a relay.
    pub relay: bool,
    /// Heartbeat interval.
    pub heartbeat: Duration,
    /// Addresses whose `X-Forwarded-For` is believed, as CIDR texts.
    pub trusted_proxies: Vec<String>,
    /// Lowest level of a node we send prompts to.
    pub outbound_min_trust: Level,
    /// Put `[Model: …]` into chat completions.
    pub model_identity: bool,
    /// `config` or `dynamic`.
    pub model_registration: ModelRegistration,
    /// Grace period of a drain.
    pub drain_timeout: Duration,
    /// What the operator should know, without any secret: weak secret, open tool policy.
    pub warnings: Vec<String>,
    /// The tool policy as written, for the part that will judge by it.
    pub tool_proxy: Value,
    /// Key file elsewhere than in the state dir.
    pub identity_file: Option<PathBuf>,
}

/// An older secret during rotation (protocol 2).
#[derive(Debug, Clone)]
pub struct AcceptSecret {
    /// The secret.
    pub secret: Secret<String>,
    /// Wall-clock end of its validity.
    pub not_after: Option<SystemTime>,
}

/// The mesh listener.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Address to bind; `::` accepts both IP versions.
    pub host: IpAddr,
    /// Port; 0 = any.
    pub port: u16,
}

/// A node to dial.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Its expected name.
    pub node_id: NodeId,
    /// `ws` or `wss`, path and port filled in.
    pub url: url::Url,
    /// Whether the port was written out; if not, a refused dial hints at `:19000`.
    pub port_given: bool,
    /// Its key, when known beforehand: pinned as `trusted`.
    pub key: Option<PublicKey>,
}

/// An agent offered for handoff.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Its id.
    pub id: String,
    /// What it is good for.
    pub description: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// Who may use it; none = everyone at `pinned`.
    pub allow: Option<Allow>,
}

/// Patterns over node names and `label:` of an `allow` list.
#[derive(Debug, Clone)]
pub struct Allow {
    /// The node name patterns of `nodes`, in its order: one with a wildcard, unless it is exactly
    /// `*`, holds for `trusted` pins only (protocol 8.1), so their texts are needed.
    pub patterns: Vec<String>,
    /// Node name patterns.
    pub nodes: GlobSet,
    /// Labels our operator gives.
    pub labels: Vec<String>,
}

/// Where a lent model is served and what it can do.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The id others use.
    pub id: String,
    /// OpenClaw provider that serves it, resolved by the shim.
    pub provider: Option<String>,
    /// The id at the provider; the last part of `id` if not given.
    pub upstream_model: Option<String>,
    /// Base URL, for a server named directly.
    pub base_url: Option<url::Url>,
    /// Key for that server, from `apiKey` or `apiKeyEnv`.
    pub api_key: Option<Secret<String>>,
    /// The api it speaks, `openai-completions` if not given.
    pub api: Option<String>,
    /// What it is good for.
    pub description: String,
    /// Whether it reasons.
    pub reasoning: Option<bool>,
    /// Input kinds.
    pub input: Option<Vec<String>>,
    /// Prices, passed on unread.
    pub cost: Option<Value>,
    /// Context window in tokens.
    pub context_window: Option<u64>,
    /// Longest answer in tokens.
    pub max_tokens: Option<u64>,
    /// Requests at once.
    pub max_concurrent: Option<u32>,
    /// `local`, `cloud`.
    pub locality: Option<String>,
    /// Who may use it; none = everyone at `pinned`.
    pub allow: Option<Allow>,
}

/// A model to show before its node is seen.
#[derive(Debug, Clone)]
pub struct ProxyModel {
    /// The id.
    pub id: String,
    /// The node that lends it.
    pub node_id: Option<NodeId>,
    /// Its name for people; also the text of `modelIdentity`.
    pub description: Option<String>,
}

/// Trust mode and configured keys (protocol 2).
#[derive(Debug, Clone, Default)]
pub struct TrustConfig {
    /// Only listed keys may link.
    pub explicit: bool,
    /// Keys and labels by name.
    pub nodes: Vec<TrustedNode>,
}

/// One entry of `trust.nodes`.
#[derive(Debug, Clone)]
pub struct TrustedNode {
    /// Its name.
    pub node: NodeId,
    /// Its key.
    pub key: Option<PublicKey>,
    /// Labels that may grant rights.
    pub labels: Vec<String>,
}

/// How lent models get into OpenClaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelRegistration {
    /// As provider entries in its configuration.
    Config,
    /// Through a provider that is asked at run time.
    Dynamic,
}

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `peers[2].url`.
    pub path: String,
    /// What, with the value unless it is a secret.
    pub message: String,
    /// How to mend it.
    pub hint: String,
}
