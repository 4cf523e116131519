//! The configuration as it stands in the file: one struct a section, every key optional.
//!
//! The doc comments here are the operator's manual: they become the help texts of the generated
//! schema, of OpenClaw's settings form and of `docs/configuration.md`. Types are checked against
//! the schema first ([`super::shape`]), so these structs only ever see values of the right type.

mod agents;
mod approvals;
mod limits;
mod mesh;
mod models;
mod secret;
mod tools;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

pub use self::{
    agents::Agent,
    approvals::{Approvals, Notify, Operator},
    limits::{Limits, PeerLimits},
    mesh::{
        AcceptSecret, DialAdvertised, MinTrust, Outbound, Peer, Tls, Trust, TrustMode, TrustedNode,
    },
    models::{Auto, Model, ModelEntry, ModelRegistration, Models, ProxyModel},
    secret::{SecretInput, SecretReference},
    tools::{Rule, RuleEffect, RuleLimits, ToolProxy},
};

/// A list as written. An entry of the wrong type is reported and then read as nothing, so that
/// the others keep their index in later messages.
pub type List<T> = Vec<Option<T>>;

/// `plugins.entries.clawmatrix.config` of OpenClaw, or the file of a node on its own.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "ClawMatrix")]
pub struct RawConfig {
    /// Unique name of this node in its mesh: 1 to 64 of letters, digits, `.`, `_` and `-`, first
    /// and last a letter or digit. Required.
    #[schemars(title = "Node id", length(min = 1, max = 64))]
    pub node_id: Option<String>,

    /// The cluster secret, the same on every node of the mesh, at least 16 characters. Exactly one
    /// of `secret` and `secretFile` is required. `clawmatrix secret new` makes a good one.
    #[schemars(title = "Cluster secret", extend("writeOnly" = true))]
    pub secret: Option<SecretInput>,

    /// File that holds the cluster secret and nothing else; only its owner may read it. A relative
    /// path starts at the folder of the configuration file, under OpenClaw at the node's state
    /// folder.
    #[schemars(title = "Cluster secret file")]
    pub secret_file: Option<String>,

    /// Accept a trivial secret (one character repeated, a sequence, an example from the
    /// documentation) instead of refusing to start.
    #[schemars(title = "Allow a weak secret", extend("default" = false))]
    pub allow_weak_secret: Option<bool>,

    /// Accept links from other nodes. A node that only dials leaves it off.
    #[schemars(title = "Listen", extend("default" = false))]
    pub listen: Option<bool>,

    /// IP address to listen on; `::` accepts both IP versions.
    #[schemars(title = "Listen address", extend("default" = "0.0.0.0"))]
    pub listen_host: Option<String>,

    /// Port to listen on; 0 = any free one.
    #[schemars(title = "Listen port", extend("default" = 19000))]
    pub listen_port: Option<u16>,

    /// Nodes to dial.
    #[schemars(title = "Peers", extend("default" = []))]
    pub peers: Option<List<Peer>>,

    /// Agents of this node offered to others for handoff.
    #[schemars(title = "Agents", extend("default" = []))]
    pub agents: Option<List<Agent>>,

    /// Models lent to other nodes: a list of entries, or `"auto"` for everything this node can
    /// serve. `"auto"` may also stand among the entries.
    #[schemars(title = "Models lent", extend("default" = []))]
    pub models: Option<Models>,

    /// Models of other nodes to show in OpenClaw before their node is seen.
    #[schemars(title = "Models of others", extend("default" = []))]
    pub proxy_models: Option<List<ProxyModel>>,

    /// Free labels of this node, for `tags:<tag>` targets. They are self-asserted and grant nothing.
    #[schemars(title = "Tags", extend("default" = []))]
    pub tags: Option<List<String>>,

    /// Port of the local API on 127.0.0.1; 0 = any free one.
    #[schemars(title = "Local API port", extend("default" = 19001))]
    pub proxy_port: Option<u16>,

    /// Longest silence of a handoff, in milliseconds; every piece of output starts it anew.
    #[schemars(title = "Handoff timeout (ms)", range(min = 1000, max = 86_400_000), extend("default" = 600_000))]
    pub handoff_timeout: Option<u64>,

    /// Tools of this node that other nodes may use.
    #[schemars(title = "Remote tools")]
    pub tool_proxy: Option<ToolProxy>,

    /// Name of the mesh; nodes of another mesh are refused.
    #[schemars(title = "Mesh", length(min = 1, max = 64), extend("default" = "default"))]
    pub mesh: Option<String>,

    /// Whose keys are believed.
    #[schemars(title = "Trust")]
    pub trust: Option<Trust>,

    /// Older secrets that this node still accepts from nodes that dial it, while the secret is
    /// changed everywhere. At most 3.
    #[schemars(title = "Older secrets", length(max = 3), extend("default" = []))]
    pub accept_secrets: Option<List<AcceptSecret>>,

    /// Pass on frames of other nodes. Default: the value of `listen`.
    #[schemars(title = "Relay")]
    pub relay: Option<bool>,

    /// Node names, with `*` and `?`, whose claim to be a relay is believed.
    #[schemars(title = "Believed relays", extend("default" = ["*"]))]
    pub relays: Option<List<String>>,

    /// Certificate and key of the listener, for `wss://` without a reverse proxy. With them it speaks
    /// nothing else.
    #[schemars(title = "TLS")]
    pub tls: Option<Tls>,

    /// Addresses of this node's listener, as others reach it: `ws://192.168.1.5:19000`. All nodes of the
    /// mesh are told; they dial them if their `dialAdvertised` allows it. At most 4.
    #[schemars(title = "Advertised addresses", length(max = 4), extend("default" = []))]
    pub advertise: Option<List<String>>,

    /// Dial nodes that are reached through others, or not at all, at addresses they advertise: `true`
    /// within private networks (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, fc00::/7),
    /// `{cidrs}` within other ranges. At most 8 nodes at once; only nodes whose key is pinned, with that
    /// key. Never this machine, link-local addresses or those of cloud metadata.
    #[schemars(title = "Dial advertised addresses", extend("default" = false))]
    pub dial_advertised: Option<DialAdvertised>,

    /// Whom this node sends prompts to.
    #[schemars(title = "Outbound")]
    pub outbound: Option<Outbound>,

    /// Aliases, fallback chains and weights, by alias. It has no effect in this version.
    #[schemars(title = "Routes", extend("default" = {}))]
    pub routes: Option<BTreeMap<String, Value>>,

    /// Sizes, rates and budgets.
    #[schemars(title = "Limits")]
    pub limits: Option<Limits>,

    /// Let requests that only a model made wait for a person before exec and write.
    #[schemars(title = "Guard against model-made requests", extend("default" = false))]
    pub llm_guard: Option<bool>,

    /// Who approves requests that wait for a person, and how long they wait.
    #[schemars(title = "Approvals")]
    pub approvals: Option<Approvals>,

    /// Put `[Model: <description>]` at the head of the system message of chat completions whose
    /// `proxyModels` entry has a description.
    #[schemars(title = "Tell models who they are", extend("default" = true))]
    pub model_identity: Option<bool>,

    /// How models of other nodes get into OpenClaw: `config` writes provider entries into its
    /// configuration, `dynamic` leaves that file alone.
    #[schemars(title = "Model registration", extend("default" = "config"))]
    pub model_registration: Option<ModelRegistration>,

    /// Seconds that running work may take to finish at a stop. Default: 30 alone, 5 under OpenClaw.
    #[schemars(title = "Drain timeout (s)", range(min = 0, max = 3600))]
    pub drain_timeout: Option<u64>,

    /// OTLP export: `false`, or `{endpoint}`. It has no effect in this version.
    #[schemars(title = "Telemetry", with = "Option<Switch>", extend("default" = false))]
    pub telemetry: Option<Value>,

    /// Keep an audit record of what nodes ask one another here. Settings instead of `true` have no effect
    /// in this version.
    #[schemars(title = "Audit", with = "Option<Switch>", extend("default" = true))]
    pub audit: Option<Value>,

    /// Another `clawmatrix` binary for the plugin to start.
    #[schemars(title = "Sidecar path")]
    pub sidecar_path: Option<String>,

    /// File of this node's key when it is not to lie in the state folder, as in containers without
    /// a volume: a path, or under OpenClaw a secret reference to the key itself.
    #[schemars(title = "Identity file", extend("writeOnly" = true))]
    pub identity_file: Option<SecretInput>,
}

/// Schema only: on, off, or settings.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes a schema, is never built")]
enum Switch {
    Simple(bool),
    Settings(BTreeMap<String, Value>),
}
