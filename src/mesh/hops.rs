//! Which link leads to which node at present: written by the hub whenever links or routes change,
//! read by sessions and by the relay for every frame.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, futures::Notified};

use super::link::Link;
use crate::ids::NodeId;

/// The way to one node.
#[derive(Debug, Clone)]
pub(super) struct Hop {
    /// Over this link.
    pub(super) link: Arc<Link>,
    /// Whether it ends at the node itself.
    pub(super) direct: bool,
    /// Round trip of the whole way, once known.
    pub(super) rtt: Option<Duration>,
}

/// The table of next hops.
#[derive(Debug, Default)]
pub(super) struct Hops {
    // Std mutex: held for a look or an exchange, never across an await.
    table: Mutex<HashMap<NodeId, Hop>>,
    generation: AtomicU64,
    changed: Notify,
    /// Neighbours over which frames timed out end to end; each once.
    blamed: Mutex<BTreeSet<NodeId>>,
    blame: Notify,
}

impl Hops {
    fn table(&self) -> MutexGuard<'_, HashMap<NodeId, Hop>> {
        // Replaced as a whole; a panic leaves none half made.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to `node`, if its link still takes frames.
    #[must_use]
    pub(super) fn get(&self, node: &str) -> Option<Hop> {
        let hop = self.table().get(node)?.clone();
        hop.link.is_open().then_some(hop)
    }

    /// Puts another table in force.
    pub(super) fn replace(&self, table: HashMap<NodeId, Hop>) {
        let old = std::mem::replace(&mut *self.table(), table);
        self.generation.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
        // Links are dropped without the lock.
        drop(old);
    }

    /// Frames sent over `hop` timed out end to end: another way may be better.
    pub(super) fn blame(&self, hop: &NodeId) {
        let mut blamed = self.blamed.lock().unwrap_or_else(PoisonError::into_inner);
        blamed.insert(hop.clone());
        self.blame.notify_one();
    }

    /// Resolves when somebody is blamed.
    pub(super) fn blaming(&self) -> Notified<'_> {
        self.blame.notified()
    }

    /// Those blamed since the last call.
    pub(super) fn take_blamed(&self) -> BTreeSet<NodeId> {
        let mut blamed = self.blamed.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *blamed)
    }

    /// Counts the tables so far: while it stands still, what was looked up holds.
    #[must_use]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Resolves at the next [`Hops::replace`].
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}
