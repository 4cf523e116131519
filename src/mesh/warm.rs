//! Opens sessions before they are needed (protocol 4.2): to nodes that lend models, and to those the
//! configuration names as the home of one, as soon as a way leads there. The first request then does
//! not wait for a handshake.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    hub::Hub,
    view::{Reach, View},
};
use crate::ids::NodeId;

/// Pause between two looks at the view, which may change often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause between two attempts with one node: one that does not answer is not asked all the time.
const TRY_EVERY: Duration = Duration::from_secs(60);

/// Which nodes to open a session with now.
fn due(
    view: &View,
    named: &HashSet<NodeId>,
    tried: &HashMap<NodeId, Instant>,
    now: Instant,
) -> Vec<NodeId> {
    let recently = |node: &NodeId| {
        tried
            .get(node)
            .is_some_and(|at| now.saturating_duration_since(*at) < TRY_EVERY)
    };
    let nodes = view.nodes.values();
    nodes
        .filter(|node| node.reach != Reach::Unreachable)
        .filter(|node| !node.descriptor.models.is_empty() || named.contains(&node.node))
        .filter(|node| !recently(&node.node))
        .map(|node| node.node.clone())
        .collect()
}

/// Keeps sessions open until the mesh stops.
pub(super) async fn run(hub: Arc<Hub>, named: HashSet<NodeId>) {
    let mut view = hub.view.subscribe();
    let mut tried = HashMap::new();
    loop {
        let now = Instant::now();
        let nodes = due(&view.borrow_and_update(), &named, &tried, now);
        tried.retain(|_, at| now.saturating_duration_since(*at) < TRY_EVERY);
        for node in nodes {
            if hub.sessions.warm(&node) {
                tried.insert(node, now);
            }
        }
        tokio::select! {
            () = hub.stop.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
        }
        tokio::select! {
            () = hub.stop.cancelled() => return,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{
        testkit::node,
        view::{Descriptor, ModelOffer, NodeView},
    };

    fn seen(name: &str, reach: Reach, models: usize) -> (NodeId, NodeView) {
        let descriptor = Descriptor {
            models: vec![ModelOffer::default(); models],
            ..Descriptor::default()
        };
        let view = NodeView {
            node: node(name),
            key_id: None,
            level: None,
            reach,
            reachable_via: None,
            latency_ms: None,
            descriptor: Arc::new(descriptor),
            load: None,
            last_seen: None,
            problem: None,
        };
        (node(name), view)
    }

    #[tokio::test(start_paused = true)]
    async fn reachable_nodes_with_models_are_due_once_a_minute() {
        let view = View {
            nodes: [
                seen("lender", Reach::Relay, 1),
                seen("named", Reach::Direct, 0),
                seen("other", Reach::Direct, 0),
                seen("away", Reach::Unreachable, 1),
            ]
            .into(),
            ..View::default()
        };
        let named = HashSet::from([node("named"), node("nowhere")]);
        let start = Instant::now();
        let mut tried = HashMap::new();
        assert_eq!(
            due(&view, &named, &tried, start),
            [node("lender"), node("named")]
        );
        tried.insert(node("lender"), start);
        assert_eq!(due(&view, &named, &tried, start), [node("named")]);
        let later = start + TRY_EVERY;
        assert_eq!(due(&view, &named, &tried, later).len(), 2);
    }
}
