//! Rotations of other nodes' keys, kept so that others hear of them (protocol 2, 6.1).

use std::collections::HashMap;

use tokio::time::Instant;

use super::{Introducer, Membership, Outcome};
use crate::{
    crypto::identity::{KeyId, PublicKey},
    ids::NodeId,
    mesh::{
        rotation,
        signed::{Claim, Item, RecordError, RecordKind, Signed, Version},
    },
    trust::{Followed, Level, TrustStore},
    wire::limits::ROTATIONS_KEPT,
};

#[derive(Debug)]
struct Kept {
    version: Version,
    signed: Signed,
}

/// By the key that was given up. Bounded; the oldest goes first, since its node shows it again.
#[derive(Debug, Default)]
pub(super) struct Rotations {
    kept: HashMap<KeyId, Kept>,
    /// Counts every change.
    revision: u64,
}

impl Rotations {
    pub(super) fn version(&self, key: &KeyId) -> Option<Version> {
        self.kept.get(key).map(|kept| kept.version)
    }

    pub(super) fn record(&self, key: &KeyId) -> Option<&Signed> {
        self.kept.get(key).map(|kept| &kept.signed)
    }

    pub(super) fn items(&self) -> impl Iterator<Item = (Item, Version)> + '_ {
        let kind = RecordKind::Rotation;
        self.kept
            .iter()
            .map(move |(key, kept)| (Item { kind, key: *key }, kept.version))
    }

    fn put(&mut self, key: KeyId, version: Version, signed: Signed) {
        self.revision += 1;
        if self.kept.len() >= ROTATIONS_KEPT
            && let Some(oldest) = self
                .kept
                .iter()
                .min_by_key(|(key, kept)| (kept.version, **key))
        {
            let oldest = *oldest.0;
            self.kept.remove(&oldest);
        }
        self.kept.insert(key, Kept { version, signed });
    }

    /// Another number whenever something has changed.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }
}

impl Membership {
    /// Takes a rotation that `from` passed on: both signatures, then what the trust store says.
    ///
    /// # Errors
    /// [`RecordError`]; the record changes nothing then.
    pub(super) fn take_rotation(
        &mut self,
        claim: &Claim,
        (header, body): (&[u8], &[u8]),
        from: &Introducer,
        trust: &TrustStore,
        now: Instant,
    ) -> Result<Outcome, RecordError> {
        let old = claim.key.id();
        if self
            .rotations
            .version(&old)
            .is_some_and(|held| held >= claim.version)
        {
            return Ok(Outcome::Old);
        }
        let rotation = match rotation::verify(claim, header, body) {
            Ok(rotation) => rotation,
            Err(error) => {
                // Said of a key that counts it is an attempt to replace it; of others it is noise.
                if trust.holds(&claim.node, &claim.key) {
                    trust.refuse_rotation(
                        &claim.node,
                        &claim.key,
                        "a signature of it does not hold",
                    );
                }
                return Err(error);
            }
        };
        match trust.follow(&rotation) {
            Ok(Followed::Now) => self.rekey(&rotation.node, rotation.old, rotation.new, now),
            Ok(Followed::Before | Followed::Known) => {}
            Ok(Followed::Stranger) => {
                // As for any other record of a name that nobody here has met.
                let Ok(level) = trust.see(&rotation.node, &rotation.new, false) else {
                    return Ok(Outcome::Refused);
                };
                let newest = Claim {
                    key: rotation.new,
                    ..claim.clone()
                };
                if !self.admit(&newest, level, from, now) {
                    trust.forget(&rotation.node, &rotation.new);
                    return Ok(Outcome::Limited);
                }
                self.introduce(&rotation.node, rotation.new, level, from, now);
            }
            Err(_) => return Ok(Outcome::Refused),
        }
        self.rotations
            .put(old, claim.version, Signed::copied(header, body));
        Ok(Outcome::News)
    }

    /// Holds a place for a node of which nothing but its present key is known yet.
    fn introduce(
        &mut self,
        node: &NodeId,
        key: PublicKey,
        level: Level,
        from: &Introducer,
        now: Instant,
    ) {
        let member = self.members.entry(node.clone()).or_default();
        member.key = Some(key);
        self.revision.other += 1;
        member.level = Some(level);
        member.fresh = Some(now);
        if level == Level::Seen && *node != from.node {
            member.introducer = Some(from.node.clone());
        }
        self.names.insert(key.id(), node.clone());
    }

    /// A node goes on with another key. What it said is shown until it says it again with the new one,
    /// but not passed on: the old key's word counts nowhere any more.
    pub(super) fn rekey(&mut self, node: &NodeId, old: PublicKey, new: PublicKey, now: Instant) {
        let Some(member) = self.members.get_mut(node).filter(|m| m.key == Some(old)) else {
            return;
        };
        if let Some(version) = member.newest() {
            self.tombs.bury(old.id(), version, now);
        }
        member.records = [None, None];
        self.revision.other += 1;
        member.key = Some(new);
        if self.names.remove(&old.id()).is_some() {
            self.names.insert(new.id(), node.clone());
        }
    }
}
