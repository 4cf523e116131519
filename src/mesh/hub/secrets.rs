//! Follows changes of the mesh's secret while the node runs (protocol 2): what was proved with a secret
//! that is not accepted any more ends; what was proved with another one than `secret` is renewed first,
//! so that nothing is left to end by the time the operator takes the older secret away.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

use super::Hub;
use crate::{crypto::stretch::SecretId, ids::NodeId, wire::close::CloseCode};

/// How often the wall clock is looked at, which may be set, for secrets that end.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Runs until the mesh stops.
pub(super) async fn run(hub: Arc<Hub>) {
    let keys = hub.settings.us.keys.clone();
    let mut changes = keys.changes();
    loop {
        let now = SystemTime::now();
        let next = match keys.next_end(now) {
            // Just after it: at its end it is still valid.
            Some(end) => {
                let left = end.duration_since(now).unwrap_or_default();
                LOOK_EVERY.min(left + Duration::from_millis(1))
            }
            None => LOOK_EVERY,
        };
        let changed = tokio::select! {
            () = hub.stop.cancelled() => return,
            () = changes.changed() => true,
            () = sleep(next) => false,
        };
        hub.end_unaccepted();
        if changed {
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

    /// Whether the link to `node` is one that we dialed and proved with another secret than the
    /// present one: another is to take its place.
    pub(in crate::mesh) fn is_outdated(&self, node: &NodeId) -> bool {
        let state = self.state();
        let link = state.links.get(node.as_str());
        link.is_some_and(|link| link.dialed() && link.secret() != self.settings.us.keys.own_id())
    }
}
