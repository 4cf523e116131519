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
    /// scope `approve`; an approval needs a signature by the key besides.
    #[schemars(title = "Digest of the token", required)]
    pub token_sha256: Option<String>,
}
