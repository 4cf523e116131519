//! Models lent, and models of others.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{List, SecretInput};

/// `"auto"`, or a list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Models {
    // Everything this node can serve.
    Auto(Auto),
    // These.
    List(List<ModelEntry>),
}

/// One entry of `models`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ModelEntry {
    // Everything this node can serve.
    Auto(Auto),
    // This model.
    Model(Box<Model>),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    // The only value.
    Auto,
}

/// A model lent to other nodes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// The id others use; it may contain `/`.
    #[schemars(title = "Model id", required)]
    pub id: Option<String>,
    /// OpenClaw provider that serves it, built-in ones included. Its base URL, api kind, headers
    /// and key are taken from OpenClaw.
    #[schemars(title = "Provider")]
    pub provider: Option<String>,
    /// The model's id at the provider. Default: `id`, without the provider's name in front.
    #[schemars(title = "Id at the provider")]
    pub upstream_model: Option<String>,
    /// Base URL of the server, such as `http://127.0.0.1:11434/v1`, when no provider of OpenClaw
    /// is named.
    #[schemars(title = "Base URL")]
    pub base_url: Option<String>,
    /// Key for `baseUrl`.
    #[schemars(title = "API key", extend("writeOnly" = true))]
    pub api_key: Option<SecretInput>,
    /// Environment variable that holds the key for `baseUrl`.
    #[schemars(title = "API key variable")]
    pub api_key_env: Option<String>,
    /// The api the server speaks, in OpenClaw's words: `openai-completions`, `openai-responses`,
    /// `anthropic-messages`. Default: the provider's, else `openai-completions`.
    #[schemars(title = "Api")]
    pub api: Option<String>,
    /// What it is good for, for people and agents.
    #[schemars(title = "Description")]
    pub description: Option<String>,
    /// Whether it reasons. Default: what OpenClaw says, else no.
    #[schemars(title = "Reasoning")]
    pub reasoning: Option<bool>,
    /// Input kinds: `text`, `image`. Default: what OpenClaw says, else `text`.
    #[schemars(title = "Input")]
    pub input: Option<List<String>>,
    /// Prices per million tokens, as OpenClaw writes them: `input`, `output`, `cacheRead`,
    /// `cacheWrite`.
    #[schemars(title = "Cost")]
    pub cost: Option<BTreeMap<String, Value>>,
    /// Context window in tokens. Default: what OpenClaw says, else 128000.
    #[schemars(title = "Context window", range(min = 1))]
    pub context_window: Option<u64>,
    /// Longest answer in tokens. Default: what OpenClaw says, else 4096.
    #[schemars(title = "Longest answer", range(min = 1))]
    pub max_tokens: Option<u64>,
    /// Requests at once from other nodes; more are refused as `overloaded`. Default: no bound.
    #[schemars(title = "Requests at once", range(min = 1))]
    pub max_concurrent: Option<u32>,
    /// Where it runs, for people: `local`, `cloud`.
    #[schemars(title = "Locality")]
    pub locality: Option<String>,
    /// Who may use it: node names with `*` and `?`, or `label:<name>`. Default: every member.
    #[schemars(title = "Allow")]
    pub allow: Option<List<String>>,
}

/// A model of another node.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyModel {
    /// Its id there.
    #[schemars(title = "Model id", required)]
    pub id: Option<String>,
    /// The node that lends it; the bare id then goes to that node.
    #[schemars(title = "Node id")]
    pub node_id: Option<String>,
    /// Its name for people, and the text of `modelIdentity`.
    #[schemars(title = "Description")]
    pub description: Option<String>,
}

/// How models of others get into OpenClaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelRegistration {
    // Provider entries in its configuration.
    Config,
    // A provider asked at run time.
    Dynamic,
}
