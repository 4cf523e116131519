//! Tools of this node that others may use.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{List, MinTrust};

/// Tools of this node that other nodes may use.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToolProxy {
    /// Let other nodes use tools here.
    #[schemars(title = "Enabled", extend("default" = false))]
    pub enabled: Option<bool>,
    /// Tool names, with `*` and `?`, that may be used. Empty or `["*"]` allows every tool, which
    /// is answered by a warning.
    #[schemars(title = "Allow", extend("default" = []))]
    pub allow: Option<List<String>>,
    /// Tool names, with `*` and `?`, that may not be used; beats `allow`.
    #[schemars(title = "Deny", extend("default" = []))]
    pub deny: Option<List<String>>,
    /// Longest output of one call, in bytes; more is cut and marked.
    #[schemars(title = "Longest output (bytes)", range(min = 1024, max = 67_108_864), extend("default" = 1_048_576))]
    pub max_output_bytes: Option<u64>,
    /// Tools that wait for a person's approval.
    #[schemars(title = "Ask first", extend("default" = []))]
    pub ask: Option<List<String>>,
    /// Folders that read, write, edit, list and exec's `workdir` are bound to. Empty: everything
    /// but the built-in deny list.
    #[schemars(title = "Folders", extend("default" = []))]
    pub roots: Option<List<String>>,
    /// Longest run of a command, in seconds.
    #[schemars(title = "Command timeout (s)", range(min = 1, max = 86_400), extend("default" = 1800))]
    pub exec_timeout: Option<u64>,
    /// Finer rules (protocol 8.1); when present they alone decide.
    #[schemars(title = "Rules")]
    pub rules: Option<List<BTreeMap<String, Value>>>,
    /// `pinned`: every member whose key is pinned; `trusted`: only confirmed keys.
    #[schemars(title = "Least trust", extend("default" = "pinned"))]
    pub min_trust: Option<MinTrust>,
}
