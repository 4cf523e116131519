//! Follows changes of whom we believe (protocol 2): denied and given up keys lose their links and sessions,
//! other rights hold from then on.

use std::sync::Arc;

use tokio::time::Instant;

use super::Hub;
use crate::wire::close::CloseCode;

/// Closes the links of keys that are not believed any more, and follows changes of rights.
pub(super) async fn run(hub: Arc<Hub>) {
    let trust = hub.settings.us.trust.clone();
    let mut changes = trust.subscribe();
    loop {
        tokio::select! {
            () = hub.stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        hub.sessions.follow(&trust);
        {
            let mut state = hub.state();
            state.gossip.members.judge_again(&trust, Instant::now());
            state.routes.wanted(Instant::now());
            hub.publish(&mut state);
        }
        hub.wake.notify_one();
        for link in hub.open_links() {
            let peer = link.neighbour();
            match trust.standing(&peer.node, &peer.key) {
                None => link.end(CloseCode::AuthFailed, "key not trusted any more"),
                Some(now) if now.level != peer.level || now.labels != peer.labels => {
                    link.change_rights(now.level, now.labels);
                    hub.state().gossip.level(link.id(), now.level);
                }
                Some(_) => {}
            }
        }
        if trust.is_unsaved() {
            let trust = trust.clone();
            // Last: a slow disk must not keep links open. Its failure is logged there.
            let _ = tokio::task::spawn_blocking(move || trust.save()).await;
        }
    }
}
