//! Tells who watches what changes among the nodes: who comes and goes, and by which way.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    events::{Events, Happening},
    ids::NodeId,
    mesh::view::{NodeView, Reach, View},
};

/// Compares each view with the one before, until the mesh is gone.
pub(super) async fn tell(mut views: watch::Receiver<Arc<View>>, events: Events) {
    let mut before = views.borrow_and_update().clone();
    while views.changed().await.is_ok() {
        let now = views.borrow_and_update().clone();
        if events.watched() {
            for (what, fields) in between(&before.nodes, &now.nodes) {
                events.tell(what, || fields);
            }
        }
        before = now;
    }
}

fn between(
    before: &BTreeMap<NodeId, NodeView>,
    now: &BTreeMap<NodeId, NodeView>,
) -> Vec<(Happening, Value)> {
    let mut out = Vec::new();
    let names = before
        .keys()
        .chain(now.keys().filter(|name| !before.contains_key(*name)));
    for name in names {
        let was = before.get(name).map(way).unwrap_or_default();
        let node = now.get(name);
        let is = node.map(way).unwrap_or_default();
        if was == is {
            continue;
        }
        let fields = |what| (what, shown(name, node));
        let up = |way: &Way| way.reach.is_some();
        let direct = |way: &Way| way.reach == Some(Reach::Direct);
        match (direct(&was), direct(&is)) {
            (false, true) => out.push(fields(Happening::LinkUp)),
            (true, false) => out.push(fields(Happening::LinkDown)),
            _ => {}
        }
        out.push(match (up(&was), up(&is)) {
            (false, true) => fields(Happening::NodeJoined),
            (true, false) => fields(Happening::NodeLeft),
            _ => fields(Happening::RouteChanged),
        });
    }
    out
}

/// How a node is reached; nothing when it is not.
#[derive(PartialEq, Eq, Default)]
struct Way {
    reach: Option<Reach>,
    via: Option<NodeId>,
}

fn way(node: &NodeView) -> Way {
    if node.reach == Reach::Unreachable {
        return Way::default();
    }
    Way {
        reach: Some(node.reach),
        via: node.reachable_via.clone(),
    }
}

/// In the words of `GET /api/v1/peers`.
fn shown(name: &NodeId, node: Option<&NodeView>) -> Value {
    json!({
        "nodeId": name,
        "state": node.map_or(Reach::Unreachable, |node| node.reach),
        "reachableVia": node.and_then(|node| node.reachable_via.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(reach: Reach, via: Option<&str>) -> BTreeMap<NodeId, NodeView> {
        let node = NodeView {
            node: "attic".parse().unwrap(),
            key_id: None,
            level: None,
            reach,
            reachable_via: via.map(|via| via.parse().unwrap()),
            latency_ms: None,
            descriptor: Arc::default(),
            load: None,
            last_seen: None,
            problem: None,
        };
        BTreeMap::from([(node.node.clone(), node)])
    }

    #[test]
    fn changes_are_told_once_and_by_name() {
        let away = seen(Reach::Unreachable, None);
        let direct = seen(Reach::Direct, None);
        let relayed = |via| seen(Reach::Relay, Some(via));
        let none = BTreeMap::new();
        for (before, now, expected) in [
            (&none, &direct, vec!["link_up", "node_joined"]),
            (&away, &direct, vec!["link_up", "node_joined"]),
            (&direct, &away, vec!["link_down", "node_left"]),
            (&direct, &none, vec!["link_down", "node_left"]),
            (&away, &relayed("cloud"), vec!["node_joined"]),
            (
                &direct,
                &relayed("cloud"),
                vec!["link_down", "route_changed"],
            ),
            (&relayed("cloud"), &relayed("hill"), vec!["route_changed"]),
            (&relayed("cloud"), &direct, vec!["link_up", "route_changed"]),
            (&none, &away, vec![]),
            (&direct, &direct, vec![]),
        ] {
            let told = between(before, now);
            let names: Vec<&str> = told.iter().map(|(what, _)| what.as_str()).collect();
            assert_eq!(names, expected);
        }
        let (_, fields) = between(&away, &relayed("cloud")).remove(0);
        assert_eq!(
            fields,
            json!({"nodeId": "attic", "state": "relay", "reachableVia": "cloud"})
        );
    }
}
