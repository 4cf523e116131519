//! Following changes of key (protocol 2): the one way in which what another node says replaces a pin.

use std::sync::atomic::Ordering;

use super::{Followed, NotFollowed, TrustStore, file, lock, unix_seconds};
use crate::{
    crypto::{identity::PublicKey, rotation::Rotation},
    ids::NodeId,
};

impl TrustStore {
    /// Follows a rotation whose two signatures hold ([`crate::mesh::rotation::verify`]). Does not touch
    /// the disk: [`TrustStore::save`] does, later; a node that is killed in between hears of it again.
    ///
    /// # Errors
    /// [`NotFollowed`]; the operator is told.
    pub fn follow(&self, rotation: &Rotation) -> Result<Followed, NotFollowed> {
        let (node, new) = (&rotation.node, &rotation.new);
        let outcome = lock(&self.inner.book).follow(rotation, unix_seconds());
        match outcome {
            Ok(Followed::Now) => tracing::warn!(%node, old = %rotation.old.id(), new = %new.id(),
                "node has a new key, signed by its old one"),
            Ok(Followed::Before) => {}
            Ok(Followed::Known | Followed::Stranger) => return outcome,
            Err(why) => {
                self.refuse_rotation(node, new, &why.to_string());
                return outcome;
            }
        }
        self.inner.unsaved.store(true, Ordering::Relaxed);
        self.inner.changes.send_modify(|count| *count += 1);
        outcome
    }

    /// Tells the operator of a change of a key that was not followed.
    pub fn refuse_rotation(&self, node: &NodeId, key: &PublicKey, why: &str) {
        if lock(&self.inner.book).note_rotation(node, key, why, unix_seconds()) {
            tracing::warn!(%node, key = %key.id(), why, "a change of a node's key was refused");
        }
    }

    /// Whether this is the key that we hold for the name.
    #[must_use]
    pub fn holds(&self, node: &NodeId, key: &PublicKey) -> bool {
        lock(&self.inner.book).holds(node, key)
    }

    /// The key that counts where `key` was written down: itself, unless its node gave it up.
    #[must_use]
    pub fn current(&self, key: &PublicKey) -> PublicKey {
        lock(&self.inner.book).current(*key)
    }

    /// Number of the rotation by which `key` was given up, if it was.
    #[must_use]
    pub fn given_up(&self, key: &PublicKey) -> Option<u64> {
        lock(&self.inner.book).given_up(key)
    }

    /// Writes rotations to disk that were followed. Blocks on it.
    pub fn save(&self) {
        let _writing = lock(&self.inner.writing);
        if !self.inner.unsaved.swap(false, Ordering::Relaxed) {
            return;
        }
        let stored = lock(&self.inner.book).stored();
        let Some(dir) = &self.inner.dir else { return };
        if let Err(error) = file::write(dir, &stored) {
            self.inner.unsaved.store(true, Ordering::Relaxed);
            let cause: &(dyn std::error::Error + 'static) = &error;
            tracing::warn!(error = cause, "a new key of a node is not on disk");
        }
    }

    /// Whether [`TrustStore::save`] has something to do.
    #[must_use]
    pub fn is_unsaved(&self) -> bool {
        self.inner.unsaved.load(Ordering::Relaxed)
    }
}
