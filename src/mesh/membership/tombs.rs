//! What is remembered of nodes that are gone (protocol 6.1).

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{
    crypto::identity::KeyId,
    mesh::signed::{Item, RecordKind, Signed, Version},
    wire::limits::GONE_NODES,
};

#[derive(Debug)]
struct Tomb {
    version: Version,
    /// The `leave` by which it went; none when it fell silent.
    leave: Option<Signed>,
    since: Instant,
}

/// The last versions of keys that are gone: nothing up to them is taken again.
#[derive(Debug, Default)]
pub(super) struct Tombs {
    held: HashMap<KeyId, Tomb>,
    /// Counts every change.
    revision: u64,
}

impl Tombs {
    /// Whether a record of `key` with this version is one of a node that is gone.
    pub(super) fn covers(&self, key: &KeyId, version: Version) -> bool {
        let tomb = self.held.get(key);
        tomb.is_some_and(|tomb| version <= tomb.version)
    }

    /// The node fell silent; `version` was its newest.
    pub(super) fn bury(&mut self, key: KeyId, version: Version, now: Instant) {
        if !self.covers(&key, version) {
            self.put(key, version, None, now);
        }
    }

    /// The node has left.
    pub(super) fn leave(&mut self, key: KeyId, version: Version, leave: Signed, now: Instant) {
        self.put(key, version, Some(leave), now);
    }

    fn put(&mut self, key: KeyId, version: Version, leave: Option<Signed>, now: Instant) {
        self.revision += 1;
        if self.held.len() >= GONE_NODES && !self.held.contains_key(&key) {
            let oldest = self
                .held
                .iter()
                .min_by_key(|(key, tomb)| (tomb.since, **key));
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.held.remove(&oldest);
            }
        }
        let since = now;
        self.held.insert(
            key,
            Tomb {
                version,
                leave,
                since,
            },
        );
    }

    /// The node is back.
    pub(super) fn lift(&mut self, key: &KeyId) {
        self.revision += u64::from(self.held.remove(key).is_some());
    }

    /// The `leave` of a key.
    pub(super) fn record(&self, key: &KeyId) -> Option<&Signed> {
        self.held.get(key)?.leave.as_ref()
    }

    /// The number of the `leave` of a key.
    pub(super) fn left(&self, key: &KeyId) -> Option<Version> {
        let tomb = self.held.get(key).filter(|tomb| tomb.leave.is_some())?;
        Some(tomb.version)
    }

    /// Every `leave`.
    pub(super) fn items(&self) -> impl Iterator<Item = (Item, Version)> + '_ {
        self.held
            .iter()
            .filter(|(_, tomb)| tomb.leave.is_some())
            .map(|(key, tomb)| {
                let kind = RecordKind::Leave;
                (Item { kind, key: *key }, tomb.version)
            })
    }

    /// Forgets those older than `age`; true when there were some.
    pub(super) fn expire(&mut self, now: Instant, age: Duration) -> bool {
        let before = self.held.len();
        self.held
            .retain(|_, tomb| now.saturating_duration_since(tomb.since) < age);
        let fewer = self.held.len() < before;
        self.revision += u64::from(fewer);
        fewer
    }

    /// Another number whenever something has changed.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }
}
