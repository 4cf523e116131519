//! Agents offered for handoff.

use schemars::JsonSchema;
use serde::Deserialize;

use super::List;

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
    /// Tools a run for another node may use. Default: those of the agent.
    #[schemars(title = "Tools")]
    pub tools: Option<List<String>>,
}
