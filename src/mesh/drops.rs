//! What was dropped or refused, and why: one enum, one set of counters (protocol 5.5).

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// Why a record, an attempt or a link was dropped or refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in metrics and reports.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// A routed frame says it comes from somebody else than the neighbour that sent it.
    ForeignOrigin = "foreign_origin";
    /// A routed frame is for another node, and this node does not relay.
    NotForUs = "not_for_us";
    /// A routed frame that was here before.
    Repeated = "repeated";
    /// A routed frame that has made all the hops it may.
    TtlSpent = "ttl_spent";
    /// A routed frame for which there is no room on its way.
    QueueFull = "queue_full";
    /// A routed frame of a session that does not exist.
    UnknownSession = "unknown_session";
    /// A body that is sealed end to end and does not open.
    BadBody = "e2e_auth_failed";
    /// A frame that was here before, or whose number is too old to tell.
    Replayed = "replayed";
    /// A message of an end-to-end handshake that does not verify or belongs to none.
    BadHello = "bad_hello";
    /// A message of an end-to-end handshake above its limits.
    HelloLimited = "hello_limited";
    /// A hint of a relay that means nothing here.
    BadNotice = "bad_notice";
    /// A frame for a node to which no way leads.
    NoRoute = "no_route";
    /// A link message type that this version does not know.
    UnknownLinkType = "unknown_link_type";
    /// A signed record whose name or key is not believed here.
    RefusedGossip = "refused_gossip";
    /// A signed record of an unknown node above the limits for them.
    GossipLimited = "gossip_limited";
    /// A signed record that is forged or malformed.
    BadGossip = "bad_gossip";
    /// A signed record that contradicts an earlier one of its node.
    Contradiction = "contradiction";
    /// A signed record of a node that signs new ones faster than they are taken.
    HastyGossip = "hasty_gossip";
    /// A signed record that is not newer than the one we have.
    OldGossip = "old_gossip";
    /// A signed record of a kind that this version does not handle.
    UnhandledGossip = "unhandled_gossip";
    /// An attempt to connect above the limits of its source.
    AttemptLimited = "attempt_limited";
    /// A connection that was dropped because too many had not authenticated yet.
    PendingOverflow = "pending_overflow";
    /// A connection that was too slow before it authenticated.
    UpgradeTimeout = "upgrade_timeout";
    /// A TLS handshake that failed at the listener.
    TlsFailed = "tls_failed";
    /// A request that is no upgrade to our protocol.
    BadUpgrade = "bad_upgrade";
    /// A node that speaks the earlier plugin's protocol.
    OldPlugin = "old_plugin";
    /// A handshake that failed.
    AuthFailed = "auth_failed";
    /// A link that another one between the same nodes beats.
    DuplicateLink = "duplicate_link";
    /// A link of a peer that replaces its links too often.
    HoldOff = "hold_off";
    /// A link that was closed for what its neighbour sent.
    Misbehaviour = "misbehaviour";
}

/// One counter per [`Reason`].
#[derive(Debug, Default)]
pub struct Drops([AtomicU64; Reason::ALL.len()]);

impl Drops {
    /// Counts one.
    pub fn count(&self, reason: Reason) {
        // Counters order nothing.
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts several.
    pub fn add(&self, reason: Reason, count: u64) {
        self.0[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// One counter.
    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// All counters that are not zero.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        Reason::ALL
            .iter()
            .map(|reason| (reason.as_str(), self.get(*reason)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}
