//! Counters of the exchange layer, for status and metrics.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

macro_rules! drops {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// Why something that arrived was not used.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Drop { $($(#[$doc])* $name,)* }

        impl Drop {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Drop] = &[$(Drop::$name),*];

            /// The reason as a metric label.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Drop::$name => $text,)* }
            }
        }
    };
}

drops! {
    /// Not a message of this protocol.
    Malformed = "malformed";
    /// An item or request that was here before.
    Duplicate = "duplicate";
    /// For a request that has ended.
    Late = "late";
    /// For a request never heard of.
    Unknown = "unknown_request";
    /// A budget had no room; it comes again.
    NoRoom = "no_room";
    /// The stream was aborted: credit ignored, numbers out of bounds, items after the end.
    Violation = "violation";
    /// An ack of what was never sent.
    BadAck = "bad_ack";
    /// A type of a later version.
    UnsupportedType = "unsupported_type";
    /// A request held back on its way, or fenced.
    Stale = "stale";
    /// A request refused for lack of room.
    Overloaded = "overloaded";
}

/// Plain atomics, one set a node.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) outbound_open: AtomicUsize,
    pub(super) inbound_open: AtomicUsize,
    pub(super) outbound_total: AtomicU64,
    pub(super) inbound_total: AtomicU64,
    pub(super) resent: AtomicU64,
    pub(super) noops: AtomicU64,
    drops: [AtomicU64; Drop::ALL.len()],
}

impl Counters {
    pub(super) fn dropped(&self, why: Drop) {
        self.drops[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn opened_outbound(&self) {
        self.outbound_open.fetch_add(1, Relaxed);
        self.outbound_total.fetch_add(1, Relaxed);
    }

    pub(super) fn closed_outbound(&self) {
        self.outbound_open.fetch_sub(1, Relaxed);
    }

    pub(super) fn opened_inbound(&self) {
        self.inbound_open.fetch_add(1, Relaxed);
        self.inbound_total.fetch_add(1, Relaxed);
    }

    pub(super) fn closed_inbound(&self) {
        self.inbound_open.fetch_sub(1, Relaxed);
    }

    pub(super) fn snapshot(&self, bytes_held: usize, remembered: usize) -> Stats {
        Stats {
            outbound_open: self.outbound_open.load(Relaxed),
            inbound_open: self.inbound_open.load(Relaxed),
            outbound_total: self.outbound_total.load(Relaxed),
            inbound_total: self.inbound_total.load(Relaxed),
            items_resent: self.resent.load(Relaxed),
            noops_sent: self.noops.load(Relaxed),
            bytes_held,
            remembered,
            drops: Drop::ALL
                .iter()
                .map(|why| (why.as_str(), self.drops[*why as usize].load(Relaxed)))
                .collect(),
        }
    }
}

/// One look at the exchange layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests of ours that are open, cancelled ones included until the other side has answered.
    pub outbound_open: usize,
    /// Requests of others that are open, until the other side has acked their end.
    pub inbound_open: usize,
    /// Requests we ever sent.
    pub outbound_total: u64,
    /// Requests we ever took.
    pub inbound_total: u64,
    /// Items sent again.
    pub items_resent: u64,
    /// Signs of life sent.
    pub noops_sent: u64,
    /// Bytes held for streams and bodies, against the node's budget.
    pub bytes_held: usize,
    /// Ended requests still remembered.
    pub remembered: usize,
    /// What was not used, by reason.
    pub drops: Vec<(&'static str, u64)>,
}
