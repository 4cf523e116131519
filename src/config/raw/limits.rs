//! Sizes, rates and budgets that an operator may change.

use schemars::JsonSchema;
use serde::Deserialize;

use super::List;

/// Sizes, rates and budgets.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Longest request body, in bytes.
    #[schemars(title = "Request body (bytes)", range(min = 65_536, max = 1_073_741_824), extend("default" = 33_554_432))]
    pub request_body_bytes: Option<u64>,
    /// Longest answer, in bytes.
    #[schemars(title = "Answer (bytes)", range(min = 65_536, max = 17_179_869_184_u64), extend("default" = 268_435_456))]
    pub response_body_bytes: Option<u64>,
    /// Longest file that is read or written for another node, in bytes.
    #[schemars(title = "File (bytes)", range(min = 1024, max = 1_073_741_824), extend("default" = 67_108_864))]
    pub file_bytes: Option<u64>,
    /// Bytes held in memory for one peer.
    #[schemars(title = "Memory for a peer (bytes)", range(min = 1_048_576), extend("default" = 16_777_216))]
    pub peer_memory_bytes: Option<u64>,
    /// Bytes held in memory for all streams of this node.
    #[schemars(title = "Memory for streams (bytes)", range(min = 1_048_576), extend("default" = 134_217_728))]
    pub node_memory_bytes: Option<u64>,
    /// Connections to the local API.
    #[schemars(title = "Local connections", range(min = 16, max = 65_536), extend("default" = 2048))]
    pub connections: Option<u32>,
    /// Requests at once with one local token.
    #[schemars(title = "Requests per token", range(min = 1, max = 65_536), extend("default" = 1024))]
    pub requests_per_token: Option<u32>,
    /// Seconds between signs of life on a quiet link, 1 to 60.
    #[schemars(title = "Heartbeat (s)", range(min = 1, max = 60), extend("default" = 15))]
    pub heartbeat: Option<u64>,
    /// Addresses or ranges (CIDR) of reverse proxies before the listener: the source in their
    /// `X-Forwarded-For` is believed, so that limits count the caller and not the proxy.
    #[schemars(title = "Trusted proxies", extend("default" = []))]
    pub trusted_proxies: Option<List<String>>,
    /// What every other node may use of this one, counted here by its key. Default: no bound. A new
    /// value takes effect on SIGHUP.
    #[schemars(title = "For each peer")]
    pub per_peer: Option<PeerLimits>,
}

/// What every other node may use of this one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerLimits {
    /// Requests within any minute.
    #[schemars(title = "Requests a minute", range(min = 1, max = 100_000))]
    pub requests_per_minute: Option<u64>,
    /// Requests at once.
    #[schemars(title = "Requests at once", range(min = 1))]
    pub concurrent: Option<u64>,
    /// Tokens a day (UTC) of models, agents and messages: what a model's answer says it took, else
    /// a third of the bytes that passed. A request that has begun is finished.
    #[schemars(title = "Tokens a day", range(min = 1))]
    pub tokens_per_day: Option<u64>,
    /// Bytes of requests and answers a day (UTC). A request that has begun is finished.
    #[schemars(title = "Bytes a day", range(min = 1))]
    pub bytes_per_day: Option<u64>,
}
