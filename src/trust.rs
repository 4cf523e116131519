//! Whose keys we believe: pins, labels, denials (protocol 2).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a key is trusted (protocol 2). Ordered: a later one implies the earlier.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Known from a signed record only.
    Seen,
    /// Trusted on first use, from a verified handshake.
    Pinned,
    /// Confirmed by the operator, or given in the configuration.
    Trusted,
}
