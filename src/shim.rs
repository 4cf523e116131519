//! The conversation with the JavaScript shim: one JSON object a line on standard input and output
//! (`run --parent stdio`). Logs go to standard error. End of input means: exit within 1 s.

pub mod keys;
pub mod stdio;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::mesh::view::ModelOffer;

/// What the shim says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToSidecar {
    /// Always the first line: the plugin's configuration as OpenClaw resolved it.
    Config {
        /// `plugins.entries.clawmatrix.config`.
        config: Value,
        /// The providers named in `models`, resolved; by provider id.
        #[serde(default)]
        providers: BTreeMap<String, ProviderEntry>,
        /// What the shim noticed and `status` should show: `no agent can see the cluster tools`.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// Providers changed, or the answer to `refresh_key`. Replaces the whole table.
    Providers {
        /// As above.
        providers: BTreeMap<String, ProviderEntry>,
        /// Replaces the earlier warnings of the shim.
        #[serde(default)]
        warnings: Vec<String>,
        /// The `id` of the `refresh_key` this answers, if it does.
        #[serde(default)]
        id: Option<u64>,
    },
    /// Stop taking work, finish what runs, exit 0.
    Drain,
}

/// One provider of OpenClaw, resolved by the shim. Holds a key: never logged.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProviderEntry {
    /// Base URL as OpenClaw would use it.
    pub base_url: String,
    /// Api kind in OpenClaw's words.
    pub api: String,
    /// Extra request headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The key, if it needs one.
    #[serde(default)]
    pub api_key: Option<String>,
    /// Its models, as far as OpenClaw knows them.
    #[serde(default)]
    pub models: Vec<ModelOffer>,
}

impl std::fmt::Debug for ProviderEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderEntry")
            .field("api", &self.api)
            .finish_non_exhaustive()
    }
}

/// What the sidecar says.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromSidecar {
    /// Local API and listener are up.
    Ready {
        /// Port of the local API.
        #[serde(rename = "proxyPort")]
        proxy_port: u16,
        /// Port of the mesh listener, if it listens.
        #[serde(rename = "listenPort")]
        listen_port: Option<u16>,
    },
    /// The sidecar cannot start and exits next; the text is for the operator.
    Failed {
        /// Exit code that follows.
        code: u8,
        /// Every problem, one a line.
        message: String,
    },
    /// A provider refused its key: resolve it afresh once and answer with `providers` and this id.
    RefreshKey {
        /// Names the question.
        id: u64,
        /// The provider.
        provider: String,
    },
    /// The provider entries OpenClaw should have, whole. Sent when one changes, never for load.
    Catalog {
        /// By entry name: node ids, and `clawmatrix` for the bare ids.
        entries: Vec<CatalogEntry>,
    },
}

/// One provider entry for OpenClaw (contract 5).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CatalogEntry {
    /// Node id, or `clawmatrix`.
    pub provider: String,
    /// Our address for it: `http://127.0.0.1:<proxyPort>/nodes/<nodeId>/v1` or `…/v1`.
    pub base_url: String,
    /// Api kind of these models.
    pub api: String,
    /// The models.
    pub models: Vec<ModelOffer>,
}
