//! `pins.json`: names with their keys, and denied keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    crypto::identity::{KeyId, PublicKey},
    ids::NodeId,
    state::{StateDir, StateError},
};

use super::{Level, TrustError, Via, retired::Retired};

const NAME: &str = "pins.json";

/// The file as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    /// By name.
    pub(super) pins: BTreeMap<NodeId, Pin>,
    /// By key.
    #[serde(default)]
    pub(super) denied: BTreeMap<KeyId, Denial>,
    /// Keys that were given up, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) retired: BTreeMap<KeyId, Retired>,
}

/// One pinned key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pin {
    pub(super) key: PublicKey,
    pub(super) level: Level,
    /// Unix time in seconds.
    pub(super) first_seen: u64,
    pub(super) via: Via,
    #[serde(default)]
    pub(super) labels: Vec<String>,
}

/// One denied key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Denial {
    /// Unix time in seconds.
    pub(super) since: u64,
}

/// The stored pins; none at the first start.
pub(super) fn read(dir: &StateDir) -> Result<Stored, TrustError> {
    let Some(bytes) = dir.read(NAME)? else {
        return Ok(Stored::default());
    };
    let damaged = |reason: String| TrustError::Damaged {
        path: dir.path(NAME).display().to_string(),
        reason,
    };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    // `Seen` lives in memory only, and two names that fold alike cannot both be believed.
    let mut folded = BTreeMap::new();
    for (node, pin) in &stored.pins {
        if pin.level == Level::Seen {
            return Err(damaged(format!("`{node}` has no stored level")));
        }
        if let Some(other) = folded.insert(node.folded(), node) {
            return Err(damaged(format!("`{other}` and `{node}` are one name")));
        }
    }
    Ok(stored)
}

pub(super) fn write(dir: &StateDir, stored: &Stored) -> Result<(), StateError> {
    let text = serde_json::to_vec_pretty(stored).expect("names, keys and numbers are plain JSON");
    dir.write(NAME, &text)
}
