//! Names and keys that were refused and wait for the operator. Bounded: what fills it is partly
//! chosen by others.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    crypto::identity::{KeyId, PublicKey},
    ids::NodeId,
    wire::limits::{CONFLICTS, CONFLICTS_PER_NAME},
};

/// What was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictKind {
    /// Another key is pinned for the name.
    OtherKey,
    /// The name differs only in case from a known one.
    LooksLike,
    /// Mode `explicit`, and the key is not listed.
    NotListed,
    /// The node gave this key up for another.
    Retired,
    /// A change of the node's key that was not followed.
    Rotation,
}

/// One refused name and key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// The name as it was shown.
    #[schemars(with = "String")]
    pub node: NodeId,
    /// What was wrong.
    pub kind: ConflictKind,
    /// The key it showed.
    #[schemars(with = "String")]
    pub key: PublicKey,
    /// The same as people compare it.
    #[schemars(with = "String")]
    pub key_id: KeyId,
    /// The key we hold for the name.
    #[schemars(with = "Option<String>")]
    pub held: Option<KeyId>,
    /// Attempts.
    pub count: u64,
    /// Unix time of the first attempt in seconds.
    pub first_seen: u64,
    /// Unix time of the latest attempt in seconds.
    pub last_seen: u64,
    /// The way out.
    pub hint: String,
}

impl Conflict {
    /// In words, with the way out.
    #[must_use]
    pub fn warning(&self) -> String {
        let Self {
            node, key_id, hint, ..
        } = self;
        let what = match (self.kind, self.held) {
            (ConflictKind::OtherKey, Some(held)) => {
                format!("shows key {key_id}, but key {held} is pinned for it")
            }
            (ConflictKind::OtherKey, None) => format!("shows another key, {key_id}"),
            (ConflictKind::LooksLike, _) => {
                format!("with key {key_id} differs only in case from a known name")
            }
            (ConflictKind::Retired, held) => {
                let held = held.map(|held| format!(" for {held}")).unwrap_or_default();
                format!("shows key {key_id}, which it gave up{held}")
            }
            (ConflictKind::Rotation, _) => format!("would change its key to {key_id}"),
            (ConflictKind::NotListed, _) => {
                return format!("node `{node}` with key {key_id} asks to be listed; {hint}");
            }
        };
        let times = if self.count == 1 { "time" } else { "times" };
        format!(
            "identity conflict: node `{node}` {what} (refused {} {times}); {hint}",
            self.count
        )
    }
}

/// How long a refusal for want of room is shown.
const CROWD_SHOWN: Duration = Duration::from_secs(3600);

/// New nodes that were refused because too many came. Whoever holds the secret can make names, so
/// they are counted together, not kept one by one.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    total: u64,
    /// Since the first that is shown.
    count: u64,
    last: Option<(NodeId, String, u64)>,
}

impl Crowd {
    /// Counts one more; true when none was refused lately. `why` tells reason and way out.
    pub(super) fn note(&mut self, node: &NodeId, why: String, unix: u64) -> bool {
        let new = self.shown(unix).is_none();
        self.total = self.total.saturating_add(1);
        self.count = if new { 1 } else { self.count.saturating_add(1) };
        self.last = Some((node.clone(), why, unix));
        new
    }

    fn shown(&self, unix: u64) -> Option<&(NodeId, String, u64)> {
        let lately = |at: u64| unix.saturating_sub(at) < CROWD_SHOWN.as_secs();
        self.last.as_ref().filter(|(_, _, at)| lately(*at))
    }

    /// What is shown of it now.
    pub(super) fn warning(&self, unix: u64) -> Option<String> {
        let (node, why, _) = self.shown(unix)?;
        let times = if self.count == 1 { "time" } else { "times" };
        Some(format!(
            "new nodes were refused {} {times}, lately `{node}`: {why}",
            self.count
        ))
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

/// The refused names and keys, the latest last.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    entries: Vec<Conflict>,
    total: u64,
}

impl Conflicts {
    /// Counts one more attempt; true when the name and key are new here.
    pub(super) fn note(&mut self, conflict: Conflict) -> bool {
        self.total = self.total.saturating_add(1);
        if let Some(place) = self.place(&conflict.node, conflict.key_id) {
            let known = self.entries.remove(place);
            self.entries.push(Conflict {
                count: known.count.saturating_add(1),
                first_seen: known.first_seen,
                ..conflict
            });
            return false;
        }
        // One name that shows ever new keys must not push out what is known of others.
        let folded = conflict.node.folded();
        let of_name = |entry: &Conflict| entry.node.folded() == folded;
        let same_name = self.entries.iter().filter(|e| of_name(e)).count();
        if same_name >= CONFLICTS_PER_NAME {
            if let Some(oldest) = self.entries.iter().position(of_name) {
                self.entries.remove(oldest);
            }
        } else if self.entries.len() >= CONFLICTS {
            self.entries.remove(0);
        }
        self.entries.push(conflict);
        true
    }

    /// The key that showed up for `node` under this id.
    pub(super) fn key(&self, node: &NodeId, id: KeyId) -> Option<PublicKey> {
        self.place(node, id).map(|place| self.entries[place].key)
    }

    /// Forgets what no longer waits: every entry of a name that was decided, and of a denied key.
    pub(super) fn settle(&mut self, node: &NodeId) {
        let folded = node.folded();
        self.entries.retain(|entry| entry.node.folded() != folded);
    }

    /// Forgets a key.
    pub(super) fn settle_key(&mut self, id: KeyId) {
        self.entries.retain(|entry| entry.key_id != id);
    }

    pub(super) fn latest_first(&self) -> Vec<Conflict> {
        self.entries.iter().rev().cloned().collect()
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn place(&self, node: &NodeId, id: KeyId) -> Option<usize> {
        let same = |entry: &Conflict| entry.node == *node && entry.key_id == id;
        self.entries.iter().position(same)
    }
}
