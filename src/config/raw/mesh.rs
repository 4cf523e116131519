//! Peers, trust and transport.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{List, SecretInput};

/// A node to dial.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Name of the node there.
    #[schemars(title = "Node id", required)]
    pub node_id: Option<String>,
    /// `ws://` or `wss://` address. No path means `/mesh/v1`; no port means 80 or 443.
    #[schemars(title = "URL", required)]
    pub url: Option<String>,
    /// Its public key as `clawmatrix identity` prints it there; with it the first contact is
    /// safe too, and the node counts as `trusted`.
    #[schemars(title = "Public key")]
    pub key: Option<String>,
    /// SHA-256 of the certificate's public key (SPKI), base64 or hexadecimal, for `wss://` with a
    /// certificate no web authority signed.
    #[schemars(title = "TLS pin")]
    pub tls_pin: Option<String>,
    /// PEM file with the authorities that may sign its certificate, for `wss://` with an authority of
    /// one's own; the web's authorities do not count then. Read at the start.
    #[schemars(title = "TLS authorities")]
    pub tls_ca: Option<String>,
    /// HTTP proxy to dial through, by `CONNECT`: `http://proxy.example:3128`, with
    /// `USER:PASSWORD@` before the host if it wants them. Proxy variables of the environment are not
    /// read.
    #[schemars(title = "HTTP proxy", extend("writeOnly" = true))]
    pub proxy: Option<SecretInput>,
}

/// Whose keys are believed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trust {
    /// `tofu` believes the first key seen under a name; `explicit` only keys listed here, in
    /// `peers`, or added with `clawmatrix trust add`.
    #[schemars(title = "Mode", extend("default" = "tofu"))]
    pub mode: Option<TrustMode>,
    /// Keys and labels, by node id.
    #[schemars(title = "Nodes", extend("default" = {}))]
    pub nodes: Option<BTreeMap<String, TrustedNode>>,
}

/// How unknown keys are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrustMode {
    // Trust on first use.
    Tofu,
    // Listed keys only.
    Explicit,
}

/// What the operator says of one node.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustedNode {
    /// Its public key as `clawmatrix identity` prints it there.
    #[schemars(title = "Public key")]
    pub key: Option<String>,
    /// Labels for `label:<name>` in `allow` lists; unlike tags they are this operator's word.
    #[schemars(title = "Labels", extend("default" = []))]
    pub labels: Option<List<String>>,
}

/// An older secret during a change of secrets.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptSecret {
    /// The older secret.
    #[schemars(title = "Secret", required)]
    pub secret: Option<SecretInput>,
    /// When it stops being accepted, as `2026-12-31` or `2026-12-31T18:00:00Z`. Default: never.
    #[schemars(title = "Not after")]
    pub not_after: Option<String>,
}

/// Certificate and key of the listener. New files are taken while the node runs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate chain, the node's own certificate first.
    #[schemars(title = "Certificate file", required)]
    pub cert: Option<String>,
    /// PEM file with the private key; only its owner may read it.
    #[schemars(title = "Key file", required)]
    pub key: Option<String>,
}

/// Whether, and where, advertised addresses are dialed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DialAdvertised {
    // Off, or within one's own networks.
    Simple(bool),
    // Within these ranges.
    Within(DialRanges),
}

/// Ranges of addresses.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DialRanges {
    /// The ranges (CIDR) within which advertised addresses are dialed, instead of the private networks;
    /// `0.0.0.0/0` and `::/0` for all of the internet.
    #[schemars(title = "Ranges", required)]
    pub cidrs: Option<List<String>>,
}

/// Whom this node sends prompts to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Outbound {
    /// `pinned`: every member whose key is pinned; `trusted`: only confirmed keys.
    #[schemars(title = "Least trust", extend("default" = "pinned"))]
    pub min_trust: Option<MinTrust>,
}

/// Least level of trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MinTrust {
    // Every member.
    Pinned,
    // Confirmed keys only.
    Trusted,
}
