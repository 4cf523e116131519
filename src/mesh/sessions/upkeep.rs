//! What ends sessions and what renews them, from outside and in time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Sessions,
    live::{Live, WayNow},
};
use crate::{
    ids::{Boot, NodeId},
    mesh::session::{Session, SessionRef},
    trust::TrustStore,
    wire::limits::{SESSION_AGE, SESSION_IDLE},
};

/// How often sessions that nobody uses any more are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// A session the other side began is forgotten when no frame of it came for this long.
const UNCONFIRMED: Duration = Duration::from_secs(30);
/// Our old session stays this much longer than it is used for sending.
const AGE_GRACE: Duration = Duration::from_secs(60);

impl Sessions {
    fn end_where(&self, reason: &'static str, over: impl Fn(&Live) -> bool) {
        let mut ended = Vec::new();
        {
            let mut table = self.table();
            ended.extend(
                table
                    .live
                    .extract_if(|_, live| over(live))
                    .map(|(_, live)| live),
            );
            for old in &ended {
                if let Some(peers) = table.peers.get_mut(old.node()) {
                    peers.live.retain(|live| live.id() != old.id());
                }
            }
        }
        for old in &ended {
            tracing::debug!(peer = %old.node(), session = %old.id(), reason, "session ended");
            self.lost(old);
        }
    }

    /// The process of `node` that began as `boot` has said goodbye.
    pub(in crate::mesh) fn gone(&self, node: &NodeId, boot: Boot) {
        self.end_where("the node has stopped", |live| {
            live.node() == node && live.peer().boot == boot
        });
    }

    /// `node` has said that it leaves, and is out of reach: nobody answers what waits for it.
    pub(in crate::mesh) fn left(&self, node: &NodeId) {
        self.end_where("the node has left", |live| live.node() == node);
    }

    /// Nodes with which there is a session.
    pub(in crate::mesh) fn peers(&self) -> Vec<NodeId> {
        let table = self.table();
        let with = table
            .peers
            .iter()
            .filter(|(_, peers)| !peers.live.is_empty());
        with.map(|(node, _)| node.clone()).collect()
    }

    /// Another process of `node` is there.
    pub(in crate::mesh) fn restarted(&self, node: &NodeId, boot: Boot) {
        self.end_where("the node was restarted", |live| {
            live.node() == node && live.peer().boot != boot
        });
    }

    /// Ends sessions with keys that are not believed any more, and follows changes of rights.
    pub(in crate::mesh) fn follow(&self, trust: &TrustStore) {
        let believed = |live: &Live| trust.standing(live.node(), &live.peer().key);
        self.end_where("key not trusted any more", |live| believed(live).is_none());
        let all: Vec<Arc<Live>> = self.table().live.values().cloned().collect();
        for live in all {
            if let Some(now) = believed(&live)
                && (now.level != live.peer().level || now.labels != live.peer().labels)
            {
                live.change_rights(now.level, now.labels);
            }
        }
    }

    /// Ends sessions that were proved with a secret which is not accepted any more.
    pub(in crate::mesh) fn end_unaccepted(&self) {
        let (keys, now) = (&self.0.us.keys, SystemTime::now());
        self.end_where("its secret is not accepted any more", |live| {
            !keys.is_valid(live.secret, now)
        });
    }

    /// Opens sessions with the present secret beside those that have another one.
    pub(in crate::mesh) fn renew(&self) {
        for node in self.outdated() {
            self.warm(&node);
        }
    }

    /// Nodes with which only sessions of another secret than the present one are up.
    pub(in crate::mesh) fn outdated(&self) -> Vec<NodeId> {
        let nodes: Vec<NodeId> = self.table().peers.keys().cloned().collect();
        let outdated = |node: &NodeId| self.best(node).is_some_and(|(_, outdated)| outdated);
        nodes.into_iter().filter(outdated).collect()
    }

    /// Another table of routes is in force: sessions whose way has broken send again what may be
    /// lost, and those whose way has moved look what is missing.
    pub(in crate::mesh) fn rerouted(&self) {
        let usable = |live: &&Arc<Live>| live.usable();
        let all: Vec<_> = self.table().live.values().filter(usable).cloned().collect();
        for live in all {
            let way = live.way_now();
            let session: SessionRef = live;
            match way {
                WayNow::Lost => self.0.handler.rerouted(&session),
                WayNow::Moved => self.0.handler.moved(&session),
                WayNow::Same | WayNow::None => {}
            }
        }
    }

    /// Sessions at work, for metrics.
    pub(in crate::mesh) fn count(&self) -> usize {
        self.table().live.len()
    }
}

/// Ends what nobody uses any more, and sessions that the exchange gave up.
pub(super) async fn run(sessions: Sessions, stop: CancellationToken) {
    loop {
        let faults = sessions.0.faults.clone();
        tokio::select! {
            () = stop.cancelled() => return,
            () = faults.notified() => {}
            () = sleep(TIDY_EVERY) => {}
        }
        sessions.end_where("given up", |live| live.fault().is_some());
        sessions.end_where("idle or old", |live| {
            let age = live.up_since.elapsed();
            live.idle() > SESSION_IDLE
                || age > SESSION_AGE + AGE_GRACE
                || (!live.usable() && age > UNCONFIRMED)
        });
        let mut table = sessions.table();
        table.pending.retain(|_, answer| !answer.is_over());
        table.proofs.retain(|_, answer| !answer.is_over());
        table
            .hellos
            .retain(|_, hellos| !hellos.is_idle(Instant::now()));
        table.peers.retain(|_, peers| !peers.is_over());
        table.notices.clear();
    }
}
