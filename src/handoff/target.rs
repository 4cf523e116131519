//! For whom a handoff or a message is: `nodeId/agentId`, agent id, node id, `tags:<tag>`, `any`, tried
//! in this order. Pure; what other nodes say of themselves chooses among them, and grants nothing.

use crate::{
    ids::NodeId,
    mesh::view::{AgentOffer, NodeView, Reach, View},
    trust::Level,
    wire::code::{Code, Failure},
};

/// One node that may take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its agent; none = the first one it offers.
    pub agent: Option<String>,
}

/// What a search looks at.
#[derive(Debug)]
pub struct Search<'a> {
    /// Ourselves: never picked unless named.
    pub us: &'a NodeId,
    /// Agents we offer.
    pub agents: &'a [String],
    /// The others.
    pub view: &'a View,
    /// Least trust in a node we send to.
    pub min_trust: Level,
    /// Whether nodes that are away may be picked, behind the others.
    pub away: bool,
}

impl Search<'_> {
    /// Who may take what is for `target`, the best first; never empty.
    ///
    /// # Errors
    /// `agent_not_found` or `node_not_found`, naming what there is; `invalid_request` for an empty
    /// target.
    pub fn find(&self, target: &str) -> Result<Vec<Candidate>, Failure> {
        if target.is_empty() {
            return Err(Failure::not_started(
                Code::InvalidRequest,
                "`target` is empty: name `node/agent`, an agent, a node, `tags:<tag>` or `any`",
            ));
        }
        if let Some((node, agent)) = target.split_once('/')
            && let Ok(node) = node.parse::<NodeId>()
            && (node == *self.us || self.view.nodes.contains_key(&node))
        {
            return Ok(vec![Candidate {
                node,
                agent: Some(agent.to_owned()),
            }]);
        }
        let by_agent = self.pick(|node| offers(node, target).then(|| Some(target.to_owned())));
        if !by_agent.is_empty() {
            return Ok(by_agent);
        }
        if let Ok(node) = target.parse::<NodeId>()
            && (node == *self.us || self.view.nodes.contains_key(&node))
        {
            return Ok(vec![Candidate { node, agent: None }]);
        }
        let found = if let Some(tag) = target.strip_prefix("tags:") {
            self.pick(|node| tagged(node, tag))
        } else if target == "any" {
            self.pick(|node| (!node.descriptor.agents.is_empty()).then_some(None))
        } else {
            Vec::new()
        };
        if found.is_empty() {
            return Err(self.nobody(target));
        }
        Ok(found)
    }

    /// The nodes `choose` finds an agent on, the best first: reachable, trusted, few hops,
    /// near.
    fn pick(&self, choose: impl Fn(&NodeView) -> Option<Option<String>>) -> Vec<Candidate> {
        let mut found: Vec<(&NodeView, Option<String>)> = self
            .view
            .nodes
            .values()
            .filter(|node| node.node != *self.us)
            .filter(|node| self.away || node.reach != Reach::Unreachable)
            .filter(|node| node.may_be_trusted(self.min_trust))
            .filter_map(|node| choose(node).map(|agent| (node, agent)))
            .collect();
        found.sort_by(|(a, _), (b, _)| {
            let key = |node: &NodeView| {
                let away = node.reach == Reach::Unreachable;
                let hops = node.reach != Reach::Direct;
                (away, node.trust_rank(), hops)
            };
            let latency = |node: &NodeView| node.latency_ms.unwrap_or(f64::MAX);
            key(a).cmp(&key(b)).then(latency(a).total_cmp(&latency(b)))
        });
        found
            .into_iter()
            .map(|(node, agent)| Candidate {
                node: node.node.clone(),
                agent,
            })
            .collect()
    }

    fn nobody(&self, target: &str) -> Failure {
        let target: String = target
            .chars()
            .take(128)
            .flat_map(char::escape_debug)
            .collect();
        let there: Vec<String> = self.view.nodes.values().map(told).collect();
        let there = if there.is_empty() {
            "no other node is known".to_owned()
        } else {
            format!("known nodes: {}", there.join("; "))
        };
        let here = if self.agents.contains(&target) {
            format!("; `{}/{target}` names the agent of this node", self.us)
        } else {
            String::new()
        };
        let (node, _) = target.split_once('/').unwrap_or((&target, ""));
        let code = if target.contains('/') && node.parse::<NodeId>().is_ok() {
            Code::NodeNotFound
        } else {
            Code::AgentNotFound
        };
        Failure::not_started(code, format!("nobody is `{target}`: {there}{here}"))
    }
}

fn offers(node: &NodeView, agent: &str) -> bool {
    node.descriptor.agents.iter().any(|offer| offer.id == agent)
}

/// The agent of a node that has the tag, or its first one when the node itself has it.
fn tagged(node: &NodeView, tag: &str) -> Option<Option<String>> {
    let about = &node.descriptor;
    let has = |tags: &[String]| tags.iter().any(|t| t == tag);
    let agent = about.agents.iter().find(|agent| has(&agent.tags));
    match agent {
        Some(agent) => Some(Some(agent.id.clone())),
        None => (has(&about.tags) && !about.agents.is_empty()).then_some(None),
    }
}

/// A node and what it offers, in few words.
fn told(node: &NodeView) -> String {
    let agents: Vec<&str> = node
        .descriptor
        .agents
        .iter()
        .take(8)
        .map(|AgentOffer { id, .. }| id.as_str())
        .collect();
    let agents = if agents.is_empty() {
        "no agents".to_owned()
    } else {
        format!("agents {}", agents.join(", "))
    };
    let away = if node.reach == Reach::Unreachable {
        ", away"
    } else {
        ""
    };
    format!("`{}` ({agents}{away})", node.node)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mesh::view::Descriptor;

    fn node(name: &str, reach: Reach, ms: f64, agents: &[(&str, &str)], tags: &str) -> NodeView {
        let list =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        NodeView {
            node: name.parse().unwrap(),
            key_id: None,
            level: Some(Level::Pinned),
            reach,
            reachable_via: None,
            latency_ms: Some(ms),
            descriptor: Arc::new(Descriptor {
                agents: agents
                    .iter()
                    .map(|(id, tags)| AgentOffer {
                        id: (*id).into(),
                        tags: list(tags),
                        ..AgentOffer::default()
                    })
                    .collect(),
                tags: list(tags),
                ..Descriptor::default()
            }),
            load: None,
            last_seen: None,
            problem: None,
        }
    }

    fn find(view: &View, away: bool, target: &str) -> Result<Vec<String>, Failure> {
        let us = "home".parse().unwrap();
        let search = Search {
            us: &us,
            agents: &["main".to_owned()],
            view,
            min_trust: Level::Pinned,
            away,
        };
        let found = search.find(target)?;
        let text = |c: Candidate| format!("{}/{}", c.node, c.agent.unwrap_or_default());
        Ok(found.into_iter().map(text).collect())
    }

    fn mesh() -> View {
        let mut nodes = vec![
            node(
                "far",
                Reach::Relay,
                1.0,
                &[("main", ""), ("coder", "gpu")],
                "",
            ),
            node("near", Reach::Direct, 2.0, &[("main", "")], "work"),
            node(
                "gone",
                Reach::Unreachable,
                0.0,
                &[("main", ""), ("lost", "")],
                "work",
            ),
            node("coder", Reach::Direct, 1.0, &[("odd", "")], ""),
            node("bare", Reach::Direct, 0.0, &[], "work"),
        ];
        let mut doubtful = node("seen", Reach::Direct, 0.0, &[("main", "")], "work");
        doubtful.level = Some(Level::Seen);
        nodes.push(doubtful);
        View {
            nodes: nodes.into_iter().map(|n| (n.node.clone(), n)).collect(),
            ..View::default()
        }
    }

    #[test]
    fn targets_are_tried_in_order() {
        let view = mesh();
        for (target, expected) in [
            ("far/coder", &["far/coder"][..]),
            ("home/main", &["home/main"]),
            ("gone/lost", &["gone/lost"]),
            ("main", &["near/main", "far/main", "seen/main"]),
            // An agent of that name comes before the node of that name.
            ("coder", &["far/coder"]),
            ("near", &["near/"]),
            ("home", &["home/"]),
            ("tags:gpu", &["far/coder"]),
            ("tags:work", &["near/", "seen/"]),
            ("any", &["coder/", "near/", "far/", "seen/"]),
        ] {
            assert_eq!(find(&view, false, target).unwrap(), expected, "{target}");
        }
        assert_eq!(find(&view, true, "lost").unwrap(), ["gone/lost"]);
        assert_eq!(
            find(&view, true, "main").unwrap(),
            ["near/main", "far/main", "seen/main", "gone/main"]
        );
    }

    #[test]
    fn a_target_nobody_is_names_those_there_are() {
        let view = mesh();
        for target in ["lost", "tags:none", "nobody", "x\u{202e}y"] {
            let failure = find(&view, false, target).unwrap_err();
            assert_eq!(failure.code, Code::AgentNotFound, "{target}");
            assert!(
                failure.message.contains("`near` (agents main)"),
                "{failure}"
            );
            assert!(failure.message.contains("`gone` (agents main, lost, away)"));
            assert!(!failure.message.contains('\u{202e}'));
        }
        let node = find(&view, false, "nowhere/main").unwrap_err();
        assert_eq!(node.code, Code::NodeNotFound);
        let alone = find(&View::default(), false, "main").unwrap_err();
        assert!(
            alone
                .message
                .contains("`home/main` names the agent of this node")
        );
        assert!(find(&view, false, "").is_err());
    }
}
