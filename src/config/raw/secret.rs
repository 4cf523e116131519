//! Values that are secrets: text, or a reference that OpenClaw resolves.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use crate::crypto::secret::Secret;

/// A secret as text, or an OpenClaw secret reference.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("writeOnly" = true))]
pub enum SecretInput {
    // The text itself, or `${VAR}`.
    Text(
        #[serde(deserialize_with = "secret_text")]
        #[schemars(with = "String")]
        Secret<String>,
    ),
    // Where OpenClaw finds it.
    Reference(SecretReference),
}

/// Where OpenClaw finds a secret: `{source, provider, id}`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretReference {
    /// Kind of store: `env`, `file` or `exec`.
    #[schemars(required)]
    pub source: Option<String>,
    /// Name of the store in OpenClaw's `secrets.providers`.
    #[schemars(required)]
    pub provider: Option<String>,
    /// The secret's name in that store; for `env` the variable.
    #[schemars(required)]
    pub id: Option<String>,
}

fn secret_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}
