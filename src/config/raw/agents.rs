//! Agents offered for handoff.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{List, SecretInput};

/// An agent other nodes may hand tasks to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Agent {
    /// Its id in OpenClaw.
    #[schemars(title = "Agent id", required)]
    pub id: Option<String>,
    /// What it is good for.
    #[schemars(title = "Description")]
    pub description: Option<String>,
    /// Free labels, for `tags:<tag>` targets.
    #[schemars(title = "Tags", extend("default" = []))]
    pub tags: Option<List<String>>,
    /// Who may use it: node names with `*` and `?`, or `label:<name>`. Default: every member.
    #[schemars(title = "Allow")]
    pub allow: Option<List<String>>,
    /// The only tools a run for another node may use. Default: all of the agent's own; `toolProxy`
    /// does not bind a handoff.
    #[schemars(title = "Tools")]
    pub tools: Option<List<String>>,
    /// Base URL of an OpenAI-style server that runs the agent, on a node without OpenClaw: tasks go
    /// to its `/chat/completions`, streamed, with the session in OpenClaw's session header and in
    /// `user`.
    #[schemars(title = "Base URL")]
    pub base_url: Option<String>,
    /// Key for `baseUrl`.
    #[schemars(title = "API key", extend("writeOnly" = true))]
    pub api_key: Option<SecretInput>,
    /// Environment variable that holds the key for `baseUrl`.
    #[schemars(title = "API key variable")]
    pub api_key_env: Option<String>,
    /// The `model` the server is asked for. Default: the agent's id.
    #[schemars(title = "Model at the server")]
    pub model: Option<String>,
}
