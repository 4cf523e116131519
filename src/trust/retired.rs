//! Keys that their nodes gave up for others (protocol 2): never believed again, under any name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    crypto::{
        identity::{KeyId, PublicKey},
        rotation::Rotation,
    },
    ids::NodeId,
    wire::limits::{RETIRED_KEYS, ROTATIONS_PER_DAY},
};

const DAY: u64 = 24 * 3600;

/// What took the place of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retired {
    /// Whose key it was.
    pub(super) node: NodeId,
    /// The key that followed it.
    pub(super) successor: PublicKey,
    /// Number of the rotation.
    pub(super) seq: u64,
    /// When we followed it, Unix time in seconds.
    pub(super) since: u64,
}

/// Why a rotation that both keys signed is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotFollowed {
    /// The operator denied one of the keys.
    #[error("one of its keys is denied")]
    Denied,
    /// Another key is held for the name.
    #[error("another key is held for the name")]
    OtherKey,
    /// One of the keys was given up before.
    #[error("one of its keys was given up before")]
    Retired,
    /// Its number is not above that of the last one.
    #[error("it is older than the last one")]
    Replayed,
    /// More than four within a day.
    #[error("too many within a day")]
    TooMany,
    /// No room to remember another key.
    #[error("too many keys were given up")]
    Full,
}

/// Keys that were given up.
#[derive(Debug, Clone, Default)]
pub(super) struct RetiredKeys(pub(super) BTreeMap<KeyId, Retired>);

impl RetiredKeys {
    /// What took the place of this key, if it was given up.
    pub(super) fn get(&self, key: &KeyId) -> Option<&Retired> {
        self.0.get(key)
    }

    /// The key that counts where `key` was written down: itself, or the last of its successors.
    pub(super) fn current(&self, key: PublicKey) -> PublicKey {
        let mut current = key;
        // A key that was given up is never a successor again, so this ends.
        while let Some(retired) = self.0.get(&current.id()) {
            current = retired.successor;
        }
        current
    }

    /// Judges a rotation by what is remembered; true when this very one was followed before.
    pub(super) fn judge(&self, rotation: &Rotation, unix: u64) -> Result<bool, NotFollowed> {
        if let Some(retired) = self.0.get(&rotation.old.id()) {
            let same = retired.successor == rotation.new && retired.node == rotation.node;
            return same.then_some(true).ok_or(NotFollowed::Retired);
        }
        if self.0.contains_key(&rotation.new.id()) {
            return Err(NotFollowed::Retired);
        }
        let of_node = || self.0.values().filter(|held| held.node == rotation.node);
        if of_node().any(|held| held.seq >= rotation.seq) {
            return Err(NotFollowed::Replayed);
        }
        if of_node()
            .filter(|held| held.since.saturating_add(DAY) > unix)
            .count()
            >= ROTATIONS_PER_DAY
        {
            return Err(NotFollowed::TooMany);
        }
        if self.0.len() >= RETIRED_KEYS {
            return Err(NotFollowed::Full);
        }
        Ok(false)
    }

    /// Remembers a rotation that is followed.
    pub(super) fn put(&mut self, rotation: &Rotation, unix: u64) {
        let retired = Retired {
            node: rotation.node.clone(),
            successor: rotation.new,
            seq: rotation.seq,
            since: unix,
        };
        self.0.insert(rotation.old.id(), retired);
    }
}

#[cfg(test)]
mod tests;
