//! Bytes held for peers, against the two budgets of protocol 5.4: one a peer, one a node.
//!
//! What is held is counted, not what is promised. Guards give back on drop, so no path of an
//! exchange can leak.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// What one held item costs beside its data: queue slot, JSON and allocation headers. Without it
/// a flood of empty chunks would cost nothing.
pub(super) const ITEM_COST: usize = 128;

/// One budget.
#[derive(Debug)]
struct Gauge {
    held: AtomicUsize,
    limit: usize,
}

impl Gauge {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            limit,
        })
    }

    fn try_add(&self, bytes: usize) -> bool {
        let before = self.held.fetch_add(bytes, Relaxed);
        let fits = before.saturating_add(bytes) <= self.limit;
        if !fits {
            self.held.fetch_sub(bytes, Relaxed);
        }
        fits
    }

    fn tight(&self) -> bool {
        self.held.load(Relaxed) > self.limit / 4 * 3
    }
}

/// The budget of the node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeBudget(Arc<Gauge>);

impl NodeBudget {
    pub(super) fn new(limit: usize) -> Self {
        Self(Gauge::new(limit))
    }

    /// Counts `bytes` that a caller buffers, a whole request body say; none when there is no room.
    #[must_use]
    pub fn hold(&self, bytes: usize) -> Option<HeldBody> {
        let mut held = HeldBody {
            node: Arc::clone(&self.0),
            bytes: 0,
        };
        held.grow(bytes).then_some(held)
    }

    /// Whether so much is held that new work is refused.
    #[must_use]
    pub fn tight(&self) -> bool {
        self.0.tight()
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held.load(Relaxed)
    }
}

/// Bytes counted against the node alone; given back on drop.
#[derive(Debug)]
pub struct HeldBody {
    node: Arc<Gauge>,
    bytes: usize,
}

impl HeldBody {
    /// Counts `bytes` more; false when there is no room, and nothing was counted.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let fits = self.node.try_add(bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.node.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// The budget of one peer within the node's.
#[derive(Debug, Clone)]
pub(super) struct PeerBudget {
    peer: Arc<Gauge>,
    node: NodeBudget,
}

impl PeerBudget {
    pub(super) fn new(limit: usize, node: NodeBudget) -> Self {
        Self {
            peer: Gauge::new(limit),
            node,
        }
    }

    /// Above three quarters of either budget: no window grows, no new request is taken.
    pub(super) fn tight(&self) -> bool {
        self.peer.tight() || self.node.tight()
    }

    /// An account with nothing in it yet.
    pub(super) fn account(&self) -> Held {
        Held {
            budget: self.clone(),
            bytes: 0,
        }
    }
}

/// What one half-stream holds; given back on drop.
#[derive(Debug)]
pub(super) struct Held {
    budget: PeerBudget,
    bytes: usize,
}

impl Held {
    /// Counts `bytes` more; false when either budget has no room, and nothing was counted.
    #[must_use]
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        if !self.budget.peer.try_add(bytes) {
            return false;
        }
        if !self.budget.node.0.try_add(bytes) {
            self.budget.peer.held.fetch_sub(bytes, Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// Counts `bytes` more whatever the limits: for the one last item that must always fit.
    pub(super) fn force(&mut self, bytes: usize) {
        self.budget.peer.held.fetch_add(bytes, Relaxed);
        self.budget.node.0.held.fetch_add(bytes, Relaxed);
        self.bytes += bytes;
    }

    /// Gives `bytes` back.
    pub(super) fn shrink(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.bytes, "given back more than was held");
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.peer.held.fetch_sub(bytes, Relaxed);
        self.budget.node.0.held.fetch_sub(bytes, Relaxed);
    }

    /// Whether either budget is above three quarters.
    pub(super) fn tight(&self) -> bool {
        self.budget.tight()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_budgets_bind_and_drop_gives_back() {
        let node = NodeBudget::new(100);
        let one = PeerBudget::new(60, node.clone());
        let two = PeerBudget::new(60, node.clone());
        let mut first = one.account();
        let mut second = two.account();
        assert!(first.grow(60));
        assert!(!first.grow(1), "the peer's own limit");
        assert!(!second.grow(41), "the node's limit");
        assert!(second.grow(40));
        assert_eq!(node.held(), 100);
        assert!(two.tight(), "the node is full, so every peer is tight");
        drop(first);
        assert_eq!(node.held(), 40);
        assert!(!two.tight());
        let body = node.hold(60).unwrap();
        assert!(node.hold(1).is_none());
        drop((second, body));
        assert_eq!(node.held(), 0);
    }
}
