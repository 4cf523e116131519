//! What a rotation of a key means for the pins (protocol 2).

use super::{Book, Named, Seen};
use crate::{
    crypto::{identity::PublicKey, rotation::Rotation},
    ids::NodeId,
    trust::{
        NotFollowed,
        conflicts::{Conflict, ConflictKind},
    },
};

/// What came of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// The new key has just taken the place of the old.
    Now,
    /// We knew the new key already, and know now that the old one is worthless.
    Before,
    /// This rotation was followed before.
    Known,
    /// The name is not known here.
    Stranger,
}

impl Book {
    /// The key that counts where `key` was written down.
    pub(in crate::trust) fn current(&self, key: PublicKey) -> PublicKey {
        self.retired.current(key)
    }

    /// Number of the rotation by which a key was given up.
    pub(in crate::trust) fn given_up(&self, key: &PublicKey) -> Option<u64> {
        self.retired.get(&key.id()).map(|retired| retired.seq)
    }

    /// The key that we hold for a name, whatever we think of it.
    fn held(&self, node: &NodeId) -> Option<PublicKey> {
        let folded = node.folded();
        let configured = self.configured.get(&folded).filter(|c| c.node == *node);
        if let Some(key) = configured.and_then(|c| c.key) {
            return Some(self.current(key));
        }
        if let Some(named) = self.pins.get(&folded).filter(|named| named.node == *node) {
            return Some(named.pin.key);
        }
        let seen = self.seen.get(&folded).filter(|seen| seen.node == *node);
        seen.map(|seen| seen.key)
    }

    /// Whether this is the key that we hold for the name.
    pub(in crate::trust) fn holds(&self, node: &NodeId, key: &PublicKey) -> bool {
        self.held(node) == Some(*key)
    }

    /// Follows a rotation that both keys have signed: the new key takes the place of the old with its
    /// level and labels.
    pub(in crate::trust) fn follow(
        &mut self,
        rotation: &Rotation,
        unix: u64,
    ) -> Result<Followed, NotFollowed> {
        let (node, old, new) = (&rotation.node, rotation.old, rotation.new);
        let denied = |key: &PublicKey| self.denied.contains_key(&key.id());
        if denied(&old) || denied(&new) {
            return Err(NotFollowed::Denied);
        }
        if self.retired.judge(rotation, unix)? {
            return Ok(Followed::Known);
        }
        let held = self.held(node);
        if held.is_none() && self.holds_alike(node) {
            return Err(NotFollowed::OtherKey);
        }
        let outcome = match held {
            None => return Ok(Followed::Stranger),
            Some(held) if held == new => Followed::Before,
            Some(held) if held == old => Followed::Now,
            Some(_) => return Err(NotFollowed::OtherKey),
        };
        self.retired.put(rotation, unix);
        let folded = node.folded();
        if let Some(Named { pin, .. }) = self.pins.get_mut(&folded)
            && pin.key == old
        {
            pin.key = new;
        }
        if let Some(Seen { key, .. }) = self.seen.get_mut(&folded)
            && *key == old
        {
            *key = new;
        }
        self.conflicts.settle(node);
        Ok(outcome)
    }

    /// Whether a name that differs only in case is known.
    fn holds_alike(&self, node: &NodeId) -> bool {
        let folded = node.folded();
        self.knows(node)
            && self
                .pins
                .get(&folded)
                .is_none_or(|named| named.node != *node)
            && self.configured.get(&folded).is_none_or(|c| c.node != *node)
    }

    /// Names whose key in the configuration was given up, with the key to write there.
    pub(in crate::trust) fn outdated(&self) -> Vec<(NodeId, PublicKey)> {
        let configured = self.configured.values();
        let outdated = configured.filter_map(|c| {
            let current = self.current(c.key?);
            (Some(current) != c.key).then(|| (c.node.clone(), current))
        });
        outdated.collect()
    }

    /// Remembers a change of a key that was not followed; true when it is new.
    pub(in crate::trust) fn note_rotation(
        &mut self,
        node: &NodeId,
        key: &PublicKey,
        why: &str,
        unix: u64,
    ) -> bool {
        let held = self.held(node).map(|key| key.id());
        self.conflicts.note(Conflict {
            node: node.clone(),
            kind: ConflictKind::Rotation,
            key: *key,
            key_id: key.id(),
            held,
            count: 1,
            first_seen: unix,
            last_seen: unix,
            hint: format!("refused, since {why}: ask its operator; if the new key is right, `clawmatrix trust remove {node}` and `trust add`"),
        })
    }
}
