//! The conversation with the JavaScript shim: one JSON object a line on standard input and output
//! (`run --parent stdio`). Logs go to standard error. End of input means: exit within 1 s.

pub mod bridge;
pub mod keys;
pub mod notices;
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
    /// A run has begun: OpenClaw has taken it.
    RunStarted {
        /// The `id` of the `run_agent`.
        id: u64,
    },
    /// Further text of the agent.
    RunDelta {
        /// As above.
        id: u64,
        /// The text that is new.
        text: String,
    },
    /// The agent uses a tool.
    RunTool {
        /// As above.
        id: u64,
        /// The tool.
        name: String,
        /// Whether it begins or has ended.
        phase: ToolPhase,
        /// Whether it failed, once it has ended.
        #[serde(default)]
        failed: bool,
    },
    /// A run is over; nothing follows for its id.
    RunEnd {
        /// As above.
        id: u64,
        /// How it ended.
        outcome: RunOutcome,
        /// What the agent answered in the end.
        #[serde(default)]
        text: String,
        /// Why it failed, for people.
        #[serde(default)]
        error: Option<String>,
    },
    /// A message is in the agent's session, or cannot get there.
    MessageDone {
        /// The `id` of the `message`.
        id: u64,
        /// Why not.
        #[serde(default)]
        error: Option<String>,
    },
    /// What `/tools/invoke` of the gateway answered.
    ToolResult {
        /// The `id` of the `invoke_tool`.
        id: u64,
        /// HTTP status of the gateway; 0 when it could not be asked.
        status: u16,
        /// Its JSON answer, or `{"error":{"message"}}` when it could not be asked.
        #[serde(default)]
        body: Value,
    },
    /// Stop taking work, finish what runs, exit 0.
    Drain,
}

/// Where a tool of a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolPhase {
    /// It begins.
    Start,
    /// It has ended.
    End,
}

/// How a run ended, as the shim tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// The agent answered.
    Completed,
    /// It could not.
    Failed,
    /// It never began: no such agent, or OpenClaw refused it.
    Refused,
    /// It was aborted.
    Cancelled,
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
    /// Run one turn of an agent. Answered by `run_started`, `run_delta`, `run_tool` and one `run_end`.
    RunAgent {
        /// Names the run in all that follows.
        id: u64,
        /// The agent.
        agent: String,
        /// Its session: the same key continues it.
        #[serde(rename = "sessionKey")]
        session_key: String,
        /// Name of the session's transcript, the same for the same key.
        #[serde(rename = "sessionId")]
        session_id: String,
        /// What the agent is told.
        prompt: String,
        /// The only tools the run may use; none = those of the agent.
        #[serde(skip_serializing_if = "Option::is_none")]
        tools: Option<Vec<String>>,
        /// Longest time the run may take.
        #[serde(rename = "timeoutMs")]
        timeout_ms: u64,
    },
    /// End a run; its `run_end` still follows.
    AbortRun {
        /// The `id` of the `run_agent`.
        id: u64,
    },
    /// Put a text into the main session of an agent. Answered by `message_done`.
    Message {
        /// Names the question.
        id: u64,
        /// The agent.
        agent: String,
        /// The text, marked as another node's.
        text: String,
        /// Whether the agent is to look at it now; if not, it waits for the next turn.
        wake: bool,
        /// Names the message: the same key twice is one message.
        key: String,
    },
    /// Send a text to a person through a channel of the gateway. What fails is said in the log.
    Notice {
        /// The channel: `telegram`.
        channel: String,
        /// Whom, as that channel names people and rooms.
        to: String,
        /// Which account of the channel; none = its default.
        #[serde(skip_serializing_if = "Option::is_none")]
        account: Option<String>,
        /// The text.
        text: String,
    },
    /// Call a tool through the gateway's `/tools/invoke`. Answered by `tool_result`.
    InvokeTool {
        /// Names the question.
        id: u64,
        /// The tool.
        tool: String,
        /// Its arguments.
        args: Value,
        /// OpenClaw session to call it in; none = the gateway's main one.
        #[serde(rename = "sessionKey", skip_serializing_if = "Option::is_none")]
        session_key: Option<String>,
        /// Longest time the call may take.
        #[serde(rename = "timeoutMs")]
        timeout_ms: u64,
    },
    /// Nobody waits for a tool call any more; its `tool_result` still follows.
    AbortTool {
        /// The `id` of the `invoke_tool`.
        id: u64,
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
