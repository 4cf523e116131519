//! Follows changes of the mesh's secret while the node runs (protocol 2): what was proved with a secret
//! that is not accepted any more ends; what was proved with another one than `secret` is renewed first,
//! so that nothing is left to end by the time the operator takes the older secret away.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use super::Hub;
use crate::{
    crypto::stretch::SecretId,
    ids::NodeId,
    wire::{close::CloseCode, limits::HELLO_TIMEOUT},
};

/// How often the wall clock is looked at, which may be set, for secrets that end.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How often it is shown what is proved with another secret than the present one, while something is.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Runs until the mesh stops.
pub(super) async fn run(hub: Arc<Hub>) {
    let keys = hub.settings.us.keys.clone();
    let mut changes = keys.changes();
    let mut links = hub.links_changed.subscribe();
    let mut renewed = Instant::now();
    loop {
        let now = SystemTime::now();
        let mut next = if hub.show_outdated() {
            SHOW_EVERY
        } else {
            LOOK_EVERY
        };
        if let Some(end) = keys.next_end(now) {
            // Just after it: at its end it is still valid.
            let left = end.duration_since(now).unwrap_or_default();
            next = next.min(left + Duration::from_millis(1));
        }
        let changed = tokio::select! {
            () = hub.stop.cancelled() => return,
            () = changes.changed() => true,
            _ = links.changed() => false,
            () = sleep(next) => false,
        };
        hub.end_unaccepted();
        // Again when a handshake must have failed: nobody may ask for the session before its end.
        if changed || renewed.elapsed() > HELLO_TIMEOUT {
            renewed = Instant::now();
            hub.sessions.renew();
        }
    }
}

impl Hub {
    /// Whether what was proved with this secret may go on.
    pub(super) fn accepts(&self, secret: SecretId) -> bool {
        self.settings.us.keys.is_valid(secret, SystemTime::now())
    }

    /// Ends links and sessions whose secret is gone, and no others.
    fn end_unaccepted(&self) {
        for link in self.open_links() {
            if !self.accepts(link.secret()) {
                link.end(CloseCode::AuthFailed, "its secret is not accepted any more");
            }
        }
        self.sessions.end_unaccepted();
    }

    /// Shows readers the nodes that we still speak to under another secret than the present one; true
    /// when there are any. What is served by a renewed link or session does not count.
    fn show_outdated(&self) -> bool {
        let own = self.settings.us.keys.own_id();
        let mut nodes: BTreeSet<NodeId> = self.sessions.outdated().into_iter().collect();
        let mut state = self.state();
        let links = state.links.open().into_iter();
        let older = links.filter(|link| link.secret() != own);
        nodes.extend(older.map(|link| link.neighbour().node.clone()));
        let some = !nodes.is_empty();
        if state.outdated != nodes {
            state.outdated = nodes;
            self.publish(&mut state);
        }
        some
    }

    /// Whether the link to `node` is one that we dialed and proved with another secret than the
    /// present one: another is to take its place.
    pub(in crate::mesh) fn is_outdated(&self, node: &NodeId) -> bool {
        let state = self.state();
        let link = state.links.get(node.as_str());
        link.is_some_and(|link| link.dialed() && link.secret() != self.settings.us.keys.own_id())
    }
}
