//! On which node a tool is to run: node id, `tags:<tag>`, `any`. Pure; what nodes say of themselves chooses
//! among them, and grants nothing.

use crate::{
    ids::NodeId,
    mesh::view::{NodeView, Reach, View},
    trust::Level,
    wire::code::{Code, Failure},
};

/// The nodes that fit, the best first; never empty. The asking node only when it is named.
///
/// # Errors
/// `node_not_found`, naming what there is; `invalid_request` for an empty name.
pub fn find(us: &NodeId, view: &View, least: Level, wanted: &str) -> Result<Vec<NodeId>, Failure> {
    if wanted.is_empty() {
        return Err(Failure::not_started(
            Code::InvalidRequest,
            "`node` is empty: name a node, `tags:<tag>` or `any`",
        ));
    }
    if let Ok(node) = wanted.parse::<NodeId>()
        && (node == *us || view.nodes.contains_key(&node))
    {
        return Ok(vec![node]);
    }
    let tag = wanted.strip_prefix("tags:");
    let fits = |node: &&NodeView| match tag {
        Some(tag) => node.descriptor.tags.iter().any(|t| t == tag),
        None => wanted == "any",
    };
    let mut found: Vec<&NodeView> = view
        .nodes
        .values()
        .filter(|node| node.node != *us && node.reach != Reach::Unreachable)
        .filter(|node| node.may_be_trusted(least))
        .filter(fits)
        .collect();
    if found.is_empty() {
        return Err(nobody(us, view, wanted));
    }
    found.sort_by(|a, b| {
        // Trust, few hops, near.
        let key = |node: &NodeView| (node.trust_rank(), node.reach != Reach::Direct);
        let latency = |node: &NodeView| node.latency_ms.unwrap_or(f64::MAX);
        key(a).cmp(&key(b)).then(latency(a).total_cmp(&latency(b)))
    });
    Ok(found.into_iter().map(|node| node.node.clone()).collect())
}

fn nobody(us: &NodeId, view: &View, wanted: &str) -> Failure {
    let wanted: String = wanted
        .chars()
        .take(128)
        .flat_map(char::escape_debug)
        .collect();
    let there: Vec<String> = view
        .nodes
        .values()
        .take(32)
        .map(|node| {
            let tags = node.descriptor.tags.join(", ");
            let away = if node.reach == Reach::Unreachable {
                ", away"
            } else {
                ""
            };
            let tags = if tags.is_empty() {
                tags
            } else {
                format!(", tags {tags}")
            };
            format!("`{}`{tags}{away}", node.node)
        })
        .collect();
    let there = if there.is_empty() {
        "no other node is known".to_owned()
    } else {
        format!("known nodes: {}", there.join("; "))
    };
    Failure::not_started(
        Code::NodeNotFound,
        format!("no node fits `{wanted}`: {there}; this node is `{us}`"),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mesh::view::Descriptor;

    fn view() -> View {
        let node = |name: &str, reach, level, ms, tags: &[&str]| NodeView {
            node: name.parse().unwrap(),
            key_id: None,
            level: Some(level),
            reach,
            reachable_via: None,
            latency_ms: Some(ms),
            descriptor: Arc::new(Descriptor {
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                ..Descriptor::default()
            }),
            load: None,
            last_seen: None,
            problem: None,
        };
        let nodes = [
            node("far", Reach::Relay, Level::Pinned, 1.0, &["gpu"]),
            node("near", Reach::Direct, Level::Pinned, 9.0, &["gpu", "work"]),
            node("known", Reach::Relay, Level::Trusted, 50.0, &["gpu"]),
            node(
                "gone",
                Reach::Unreachable,
                Level::Trusted,
                0.0,
                &["gpu", "old"],
            ),
            node("seen", Reach::Direct, Level::Seen, 0.0, &["gpu"]),
            node("home", Reach::Direct, Level::Trusted, 0.0, &["gpu"]),
        ];
        View {
            nodes: nodes.into_iter().map(|n| (n.node.clone(), n)).collect(),
            ..View::default()
        }
    }

    #[test]
    fn the_best_node_comes_first_and_the_asking_one_never_unless_named() {
        let us = "home".parse().unwrap();
        let names = |wanted: &str| {
            let found = find(&us, &view(), Level::Pinned, wanted)?;
            Ok(found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let all = |wanted: &str| names(wanted).map_err(|f: Failure| f.message);
        assert_eq!(all("gone"), Ok(vec!["gone".into()]));
        assert_eq!(all("home"), Ok(vec!["home".into()]));
        let gpu = vec![
            "known".to_owned(),
            "near".into(),
            "far".into(),
            "seen".into(),
        ];
        assert_eq!(all("tags:gpu"), Ok(gpu.clone()));
        assert_eq!(all("any"), Ok(gpu));
        assert_eq!(all("tags:work"), Ok(vec!["near".into()]));
        let trusted = find(&us, &view(), Level::Trusted, "any").unwrap();
        assert_eq!(trusted, ["known".parse().unwrap()]);
        for nobody in ["tags:old", "tags:", "nowhere", "x\u{202e}y"] {
            let failure = find(&us, &view(), Level::Pinned, nobody).unwrap_err();
            assert_eq!(failure.code, Code::NodeNotFound);
            assert!(
                failure.message.contains("`near`, tags gpu, work")
                    && failure.message.contains("away")
            );
            assert!(!failure.message.contains('\u{202e}'));
        }
        assert!(find(&us, &view(), Level::Pinned, "").is_err());
        assert!(
            find(&us, &View::default(), Level::Pinned, "any")
                .unwrap_err()
                .message
                .contains("no other node")
        );
    }
}
