//! The decisions themselves: no disk, no clock, no logging.

mod follow;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::{PeerConfig, TrustConfig},
    crypto::identity::{KeyId, PublicKey},
    ids::NodeId,
    wire::limits::{FREE_PINS, NEW_PINS_PER_MINUTE, PINS},
};

use super::{
    Admission, Level, Refusal, TrustEntry, TrustError, Via,
    conflicts::{Conflict, ConflictKind, Conflicts, Crowd},
    file::{Denial, Pin, Stored},
    retired::RetiredKeys,
};

pub use self::follow::Followed;

const MINUTE: Duration = Duration::from_secs(60);

/// What the configuration says about one name.
#[derive(Debug, Clone)]
struct Configured {
    node: NodeId,
    key: Option<PublicKey>,
    labels: Vec<String>,
}

/// A pin with the name as it is written.
#[derive(Debug, Clone)]
struct Named {
    node: NodeId,
    pin: Pin,
}

/// A key that signed a record and is not pinned.
#[derive(Debug, Clone)]
struct Seen {
    node: NodeId,
    key: PublicKey,
    /// Whether a neighbour that the operator trusts brought the record.
    vouched: bool,
}

/// Everything known about keys. Both maps go by the folded name, so that two names that differ only
/// in case can never stand side by side.
#[derive(Debug)]
pub(super) struct Book {
    explicit: bool,
    configured: BTreeMap<String, Configured>,
    pins: BTreeMap<String, Named>,
    /// Keys that signed a record and are not pinned, held while the record lives. Their number is
    /// bounded by membership.
    seen: BTreeMap<String, Seen>,
    denied: BTreeMap<KeyId, Denial>,
    retired: RetiredKeys,
    conflicts: Conflicts,
    crowd: Crowd,
    /// When the latest new pins that count were made; at most [`NEW_PINS_PER_MINUTE`].
    recent: VecDeque<Instant>,
}

impl Book {
    pub(super) fn new(
        stored: Stored,
        config: &TrustConfig,
        peers: &[PeerConfig],
    ) -> Result<Self, TrustError> {
        let mut configured: BTreeMap<String, Configured> = BTreeMap::new();
        let nodes = config.nodes.iter();
        let listed = nodes.map(|n| (&n.node, n.key, n.labels.as_slice()));
        let dialled = peers.iter().map(|p| (&p.node_id, p.key, &[][..]));
        for (node, key, labels) in listed.chain(dialled) {
            if key.is_none() && labels.is_empty() {
                continue;
            }
            let entry = configured
                .entry(node.folded())
                .or_insert_with(|| Configured {
                    node: node.clone(),
                    key: None,
                    labels: Vec::new(),
                });
            if let (Some(one), Some(other)) = (entry.key, key)
                && one != other
            {
                return Err(TrustError::TwoKeys(node.clone()));
            }
            entry.key = entry.key.or(key);
            entry.labels.extend_from_slice(labels);
        }
        let named = |(node, pin): (NodeId, Pin)| (node.folded(), Named { node, pin });
        Ok(Self {
            explicit: config.explicit,
            configured,
            pins: stored.pins.into_iter().map(named).collect(),
            seen: BTreeMap::new(),
            denied: stored.denied,
            retired: RetiredKeys(stored.retired),
            conflicts: Conflicts::default(),
            crowd: Crowd::default(),
            recent: VecDeque::new(),
        })
    }

    /// What goes to disk.
    pub(super) fn stored(&self) -> Stored {
        let pins = self.pins.values();
        Stored {
            pins: pins.map(|n| (n.node.clone(), n.pin.clone())).collect(),
            denied: self.denied.clone(),
            retired: self.retired.0.clone(),
        }
    }

    /// Whether the name means anything to us: it is configured or pinned.
    pub(super) fn knows(&self, node: &NodeId) -> bool {
        let folded = node.folded();
        self.configured.contains_key(&folded) || self.pins.contains_key(&folded)
    }

    /// Judges a name and the key that signs for it.
    pub(super) fn judge(
        &self,
        node: &NodeId,
        key: &PublicKey,
        now: Instant,
    ) -> Result<Admission, Refusal> {
        let admission = self.compare(node, key)?;
        // Names the configuration vouches for always find room.
        if admission.new && admission.level == Level::Pinned {
            self.room(node, key, now)?;
        }
        Ok(admission)
    }

    /// Judges a name and the key that signed a record for it, and holds the key for that name.
    /// `vouched`: a trusted neighbour brought the record. Once is enough.
    pub(super) fn see(
        &mut self,
        node: &NodeId,
        key: &PublicKey,
        vouched: bool,
    ) -> Result<Level, Refusal> {
        let admission = self.compare(node, key)?;
        if !admission.new || admission.level > Level::Pinned {
            return Ok(admission.level);
        }
        let seen = self.seen.entry(node.folded()).or_insert_with(|| Seen {
            node: node.clone(),
            key: *key,
            vouched,
        });
        seen.vouched |= vouched;
        Ok(Level::Seen)
    }

    /// Whether pinning this name takes one of the few turns of a minute.
    fn counts(&self, node: &NodeId, key: &PublicKey) -> bool {
        let seen = self.seen.get(&node.folded());
        let vouched = seen.is_some_and(|seen| seen.key == *key && seen.vouched);
        self.pins.len() >= FREE_PINS && !vouched
    }

    /// The record that made `key` known is gone.
    pub(super) fn forget(&mut self, node: &NodeId, key: &PublicKey) {
        let folded = node.folded();
        if self.seen.get(&folded).is_some_and(|seen| seen.key == *key) {
            self.seen.remove(&folded);
        }
    }

    /// Compares a name and key with those we hold, whatever room there is for new ones.
    fn compare(&self, node: &NodeId, key: &PublicKey) -> Result<Admission, Refusal> {
        let (folded, found) = (node.folded(), key.id());
        if self.denied.contains_key(&found) {
            return Err(Refusal::Denied(found));
        }
        if let Some(retired) = self.retired.get(&found) {
            return Err(Refusal::Retired {
                node: node.clone(),
                key: found,
                successor: retired.successor.id(),
            });
        }
        let configured = self.configured.get(&folded);
        let pinned = self.pins.get(&folded);
        let looks_like = |like: &NodeId| Refusal::LooksLike {
            node: node.clone(),
            like: like.clone(),
            found,
        };
        let conflict = |held: &PublicKey, configured| Refusal::Conflict {
            node: node.clone(),
            held: held.id(),
            found,
            configured,
        };
        if let Some(configured) = configured {
            if configured.node != *node {
                return Err(looks_like(&configured.node));
            }
            if let Some(held) = configured.key.map(|key| self.current(key)) {
                if held != *key {
                    return Err(conflict(&held, true));
                }
                // The pin may still be the key the configuration replaces.
                let new = pinned.is_none_or(|p| p.pin.key != *key);
                return Ok(self.admission(&folded, Level::Trusted, new));
            }
        }
        let Some(Named { node: like, pin }) = pinned else {
            return match self.seen.get(&folded) {
                Some(seen) if seen.node != *node => Err(looks_like(&seen.node)),
                Some(seen) if seen.key != *key => Err(conflict(&seen.key, false)),
                _ if self.explicit => Err(Refusal::NotListed {
                    node: node.clone(),
                    key: *key,
                }),
                _ => Ok(self.admission(&folded, Level::Pinned, true)),
            };
        };
        if like != node {
            Err(looks_like(like))
        } else if pin.key != *key {
            Err(conflict(&pin.key, false))
        } else if self.explicit && pin.level < Level::Trusted {
            Err(Refusal::NotListed {
                node: node.clone(),
                key: *key,
            })
        } else {
            Ok(self.admission(&folded, pin.level, false))
        }
    }

    /// Whether this new name may be pinned now.
    fn room(&self, node: &NodeId, key: &PublicKey, now: Instant) -> Result<(), Refusal> {
        let fresh = |at: &&Instant| now.saturating_duration_since(**at) < MINUTE;
        if self.pins.len() >= PINS {
            Err(Refusal::Full)
        } else if self.counts(node, key)
            && self.recent.iter().filter(fresh).count() >= NEW_PINS_PER_MINUTE as usize
        {
            Err(Refusal::TooFast)
        } else {
            Ok(())
        }
    }

    fn admission(&self, folded: &str, level: Level, new: bool) -> Admission {
        Admission {
            level,
            labels: self.labels(folded).into(),
            new,
        }
    }

    /// How a request of `node` would be seen: an unknown name would be pinned first.
    pub(super) fn rights_of(&self, node: &NodeId) -> (Level, Vec<String>) {
        let folded = node.folded();
        let confirmed = self
            .configured
            .get(&folded)
            .is_some_and(|c| c.key.is_some());
        let level = match self.pins.get(&folded) {
            _ if confirmed => Level::Trusted,
            Some(named) => named.pin.level,
            None => Level::Pinned,
        };
        (level, self.labels(&folded))
    }

    fn labels(&self, folded: &str) -> Vec<String> {
        let configured = self.configured.get(folded).map(|c| &c.labels);
        let pinned = self.pins.get(folded).map(|p| &p.pin.labels);
        let mut labels: Vec<String> = configured
            .into_iter()
            .chain(pinned)
            .flatten()
            .cloned()
            .collect();
        labels.sort();
        labels.dedup();
        labels
    }

    /// Remembers a refusal the operator can settle; true when it is new.
    pub(super) fn note(
        &mut self,
        node: &NodeId,
        key: &PublicKey,
        refusal: &Refusal,
        unix: u64,
    ) -> bool {
        let (kind, held) = match refusal {
            Refusal::Conflict { held, .. } => (ConflictKind::OtherKey, Some(*held)),
            Refusal::LooksLike { .. } => (ConflictKind::LooksLike, None),
            Refusal::NotListed { .. } => (ConflictKind::NotListed, None),
            Refusal::TooFast | Refusal::Full => {
                let why = format!("{refusal}; {}", refusal.hint());
                return self.crowd.note(node, why, unix);
            }
            Refusal::Retired { successor, .. } => (ConflictKind::Retired, Some(*successor)),
            Refusal::Denied(_) => return false,
        };
        self.conflicts.note(Conflict {
            node: node.clone(),
            kind,
            key: *key,
            key_id: key.id(),
            held,
            count: 1,
            first_seen: unix,
            last_seen: unix,
            hint: refusal.hint(),
        })
    }

    /// Pins a key after a handshake.
    pub(super) fn pin(
        &mut self,
        node: &NodeId,
        key: &PublicKey,
        via: Via,
        now: Instant,
        unix: u64,
    ) -> Result<Admission, Refusal> {
        let admission = self.judge(node, key, now)?;
        if !admission.new {
            return Ok(admission);
        }
        // Names the configuration vouches for are few, and do not use up what strangers may.
        if admission.level == Level::Pinned && self.counts(node, key) {
            if self.recent.len() >= NEW_PINS_PER_MINUTE as usize {
                self.recent.pop_front();
            }
            self.recent.push_back(now);
        }
        self.put(node, key, Level::Pinned, via, &[], unix);
        Ok(Admission {
            new: false,
            ..admission
        })
    }

    fn put(
        &mut self,
        node: &NodeId,
        key: &PublicKey,
        level: Level,
        via: Via,
        labels: &[String],
        unix: u64,
    ) {
        let pin = Pin {
            key: *key,
            level,
            first_seen: unix,
            via,
            labels: labels.to_vec(),
        };
        let named = Named {
            node: node.clone(),
            pin,
        };
        self.seen.remove(&node.folded());
        self.pins.insert(node.folded(), named);
        self.conflicts.settle(node);
    }

    pub(super) fn add(
        &mut self,
        node: &NodeId,
        key: &PublicKey,
        labels: &[String],
        unix: u64,
    ) -> Result<(), TrustError> {
        let id = key.id();
        if self.denied.contains_key(&id) {
            return Err(TrustError::Denied(id));
        }
        if self.retired.get(&id).is_some() {
            return Err(TrustError::Retired(id));
        }
        self.refuse_configured(node, key)?;
        match self.pins.get_mut(&node.folded()) {
            Some(Named { node: held, pin }) if held != node || pin.key != *key => {
                Err(TrustError::Held {
                    node: held.clone(),
                    held: pin.key.id(),
                })
            }
            Some(Named { pin, .. }) => {
                pin.level = Level::Trusted;
                for label in labels {
                    if !pin.labels.contains(label) {
                        pin.labels.push(label.clone());
                    }
                }
                Ok(())
            }
            None => {
                self.put(node, key, Level::Trusted, Via::Operator, labels, unix);
                Ok(())
            }
        }
    }

    pub(super) fn accept(&mut self, node: &NodeId, id: KeyId, unix: u64) -> Result<(), TrustError> {
        if self.denied.contains_key(&id) {
            return Err(TrustError::Denied(id));
        }
        if self.retired.get(&id).is_some() {
            return Err(TrustError::Retired(id));
        }
        let folded = node.folded();
        if let Some(Named { node: held, pin }) = self.pins.get_mut(&folded)
            && held == node
            && pin.key.id() == id
        {
            pin.level = Level::Trusted;
            self.conflicts.settle(node);
            return Ok(());
        }
        let key = self
            .conflicts
            .key(node, id)
            .ok_or_else(|| TrustError::NotOffered {
                node: node.clone(),
                key: id,
            })?;
        self.refuse_configured(node, &key)?;
        // Labels belong to what the operator calls by that name, so they stay with it.
        let labels = match self.pins.get(&folded) {
            Some(named) if named.node == *node => named.pin.labels.clone(),
            _ => Vec::new(),
        };
        self.put(node, &key, Level::Trusted, Via::Operator, &labels, unix);
        Ok(())
    }

    /// Commands do not contradict the configuration: it would win again at the next start.
    fn refuse_configured(&self, node: &NodeId, key: &PublicKey) -> Result<(), TrustError> {
        match self.configured.get(&node.folded()) {
            Some(c) if c.node != *node || c.key.is_some_and(|held| self.current(held) != *key) => {
                Err(TrustError::Configured(c.node.clone()))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn deny(&mut self, id: KeyId, unix: u64) {
        self.denied.entry(id).or_insert(Denial { since: unix });
        self.conflicts.settle_key(id);
    }

    pub(super) fn remove(&mut self, node: &NodeId) -> Result<(), TrustError> {
        let folded = node.folded();
        if self.pins.get(&folded).is_some_and(|p| p.node == *node) {
            self.pins.remove(&folded);
            return Ok(());
        }
        match self.configured.get(&folded) {
            Some(c) if c.key.is_some() => Err(TrustError::Configured(node.clone())),
            _ => Err(TrustError::Unknown(node.to_string())),
        }
    }

    pub(super) fn lift(&mut self, id: KeyId) -> Result<(), TrustError> {
        match (self.denied.remove(&id), self.retired.0.remove(&id)) {
            (Some(_), _) | (_, Some(_)) => Ok(()),
            (None, None) => Err(TrustError::Unknown(id.to_string())),
        }
    }

    pub(super) fn list(&self) -> Vec<TrustEntry> {
        let entry = |node: &NodeId, key: PublicKey, level, first_seen, via| TrustEntry {
            node: node.clone(),
            key,
            key_id: key.id(),
            level,
            first_seen,
            via,
            labels: self.labels(&node.folded()),
            denied: self.denied.contains_key(&key.id()),
        };
        let mut entries = BTreeMap::new();
        for (folded, Named { node, pin }) in &self.pins {
            let first_seen = Some(pin.first_seen);
            entries.insert(folded, entry(node, pin.key, pin.level, first_seen, pin.via));
        }
        for (folded, configured) in &self.configured {
            if let Some(key) = configured.key.map(|key| self.current(key)) {
                let pinned = self.pins.get(folded).filter(|p| p.pin.key == key);
                let first_seen = pinned.map(|p| p.pin.first_seen);
                let trusted = entry(
                    &configured.node,
                    key,
                    Level::Trusted,
                    first_seen,
                    Via::Config,
                );
                entries.insert(folded, trusted);
            }
        }
        entries.into_values().collect()
    }

    pub(super) fn denied(&self) -> Vec<KeyId> {
        self.denied.keys().copied().collect()
    }

    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        self.conflicts.latest_first()
    }

    pub(super) fn conflicts_total(&self) -> u64 {
        self.conflicts.total()
    }

    /// Whether new nodes find no room, in words.
    pub(super) fn crowded(&self, unix: u64) -> Option<String> {
        self.crowd.warning(unix)
    }

    pub(super) fn crowded_total(&self) -> u64 {
        self.crowd.total()
    }

    /// Pins without limits.
    #[cfg(test)]
    pub(super) fn pins_for_test(&mut self, node: &NodeId, key: &PublicKey) {
        self.put(node, key, Level::Pinned, Via::Link, &[], 0);
    }
}
