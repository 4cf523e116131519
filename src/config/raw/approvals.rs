//! Who approves what waits for a person.

use schemars::JsonSchema;
use serde::Deserialize;

use super::List;

/// Who approves dangerous requests, and how long they wait.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Approvals {
    /// Keys of the people who may approve, as `clawmatrix approvals enroll` prints them. Empty: what
    /// needs a person is refused.
    #[schemars(title = "Operators", extend("default" = []))]
    pub operators: Option<List<Operator>>,
    /// Nodes at which what waits here is shown, with its content, so that an operator there can approve it.
    /// Each of them names this node in its `approvesFor`. Level 3 is approved here alone.
    #[schemars(title = "Nodes that may approve", extend("default" = []))]
    pub approvers: Option<List<String>>,
    /// Nodes whose waiting requests are shown here to the operators of this node.
    #[schemars(title = "Approves for these nodes", extend("default" = []))]
    pub approves_for: Option<List<String>>,
    /// Tells a person of what waits, by a text through a channel of the OpenClaw gateway. It names who asks for
    /// which tool, never contents, and nothing can be decided by answering it.
    #[schemars(title = "Notices")]
    pub notify: Option<Notify>,
    /// Longest wait for a person, in seconds; then the request is refused.
    #[schemars(title = "Longest wait (s)", range(min = 1, max = 600), extend("default" = 600))]
    pub wait: Option<u64>,
}

/// Somebody who may approve.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operator {
    /// The public key.
    #[schemars(title = "Public key", required)]
    pub key: Option<String>,
    /// SHA-256 of the token with which its commands see what waits, in hexadecimal. The token gives
    /// scope `approve`; an approval needs a signature by the key besides. Left out for an operator who
    /// decides from other nodes alone.
    #[schemars(title = "Digest of the token")]
    pub token_sha256: Option<String>,
}

/// Where notices of waiting requests are sent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Notify {
    /// A channel of the gateway: `telegram`.
    #[schemars(title = "Channel", required)]
    pub channel: Option<String>,
    /// Whom, as that channel names people and rooms.
    #[schemars(title = "To", required)]
    pub to: Option<String>,
    /// Which account of the channel, if not its default.
    #[schemars(title = "Account")]
    pub account: Option<String>,
}
