//! What is known about every other node. Pure: time comes in as an argument.
//!
//! In this release all of it comes from our own configuration and our own links: a node describes
//! itself over its link, and is believed about itself alone. Records that others pass on come later
//! and enter here too.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use super::{
    descriptor::{Statement, Version},
    session::Peer,
    view::{Descriptor, NodeView, Reach, View},
};
use crate::{crypto::identity::PublicKey, ids::NodeId, trust::Level};

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is the newest of that node.
    News,
    /// We have it, or a newer one.
    Old,
    /// Another text under a number we have seen: the first is kept.
    Equivocation,
}

#[derive(Debug, Default)]
struct Member {
    key: Option<PublicKey>,
    level: Option<Level>,
    linked: bool,
    latency_ms: Option<f64>,
    descriptor: Arc<Descriptor>,
    record: Option<(Version, bytes::Bytes)>,
    last_seen: Option<SystemTime>,
    problem: Option<String>,
}

/// Every configured or seen node.
#[derive(Debug, Default)]
pub struct Membership {
    members: BTreeMap<NodeId, Member>,
}

impl Membership {
    /// A node of our configuration; it is shown before it was ever seen.
    pub fn configured(&mut self, node: &NodeId) {
        self.members.entry(node.clone()).or_default();
    }

    /// A link to a node is up.
    pub fn up(&mut self, peer: &Peer, software: &str, now: SystemTime) {
        let member = self.members.entry(peer.node.clone()).or_default();
        if member.key != Some(peer.key) {
            // Another key is another node, whatever its name: nothing it said before counts.
            member.record = None;
            member.descriptor = Arc::new(Descriptor {
                software: software.to_owned(),
                ..Descriptor::default()
            });
        }
        member.key = Some(peer.key);
        member.level = Some(peer.level);
        member.linked = true;
        member.latency_ms = None;
        member.last_seen = Some(now);
        member.problem = None;
    }

    /// The last link to a node is gone.
    pub fn down(&mut self, node: &NodeId, problem: String, now: SystemTime) {
        if let Some(member) = self.members.get_mut(node) {
            member.linked = false;
            member.latency_ms = None;
            member.last_seen = Some(now);
            member.problem = Some(problem);
        }
    }

    /// Why a configured node cannot be reached. True when that is new.
    pub fn problem(&mut self, node: &NodeId, problem: &str) -> bool {
        let member = self.members.entry(node.clone()).or_default();
        if member.linked || member.problem.as_deref() == Some(problem) {
            return false;
        }
        member.problem = Some(problem.to_owned());
        true
    }

    /// Our operator trusts a node more or less than before.
    pub fn level(&mut self, node: &NodeId, level: Level) {
        if let Some(member) = self.members.get_mut(node) {
            member.level = Some(level);
        }
    }

    /// Something came from a linked node; its round trip may be known by now.
    pub fn alive(&mut self, node: &NodeId, latency_ms: Option<f64>, now: SystemTime) {
        if let Some(member) = self.members.get_mut(node).filter(|member| member.linked) {
            member.latency_ms = latency_ms;
            member.last_seen = Some(now);
        }
    }

    /// A verified statement of `node` about itself.
    pub fn told(&mut self, node: &NodeId, statement: Statement) -> Outcome {
        let member = self.members.entry(node.clone()).or_default();
        if let Some((version, payload)) = &member.record {
            if statement.version < *version {
                return Outcome::Old;
            }
            if statement.version == *version {
                return if *payload == statement.payload {
                    Outcome::Old
                } else {
                    Outcome::Equivocation
                };
            }
        }
        // A copy: the payload is a slice of a whole read buffer.
        let payload = bytes::Bytes::copy_from_slice(&statement.payload);
        member.record = Some((statement.version, payload));
        member.descriptor = Arc::new(statement.descriptor);
        Outcome::News
    }

    /// Whether a node is known at all.
    #[must_use]
    pub fn knows(&self, node: &NodeId) -> bool {
        self.members.contains_key(node)
    }

    /// Why a node is not reached.
    #[must_use]
    pub fn why_not(&self, node: &NodeId) -> Option<&str> {
        self.members.get(node)?.problem.as_deref()
    }

    /// A snapshot.
    #[must_use]
    pub fn view(&self) -> View {
        let nodes = self.members.iter().map(|(node, member)| {
            let view = NodeView {
                node: node.clone(),
                key_id: member.key.map(|key| key.id()),
                level: member.level,
                reach: if member.linked {
                    Reach::Direct
                } else {
                    Reach::Unreachable
                },
                reachable_via: None,
                latency_ms: member.latency_ms,
                descriptor: member.descriptor.clone(),
                last_seen: member.last_seen,
                problem: member.problem.clone(),
            };
            (node.clone(), view)
        });
        View {
            nodes: nodes.collect(),
            ..View::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::testkit::{node, peer};

    fn statement(version: Version, software: &str) -> Statement {
        Statement {
            version,
            payload: software.as_bytes().to_vec().into(),
            descriptor: Descriptor {
                software: software.into(),
                ..Descriptor::default()
            },
        }
    }

    #[test]
    fn newest_statement_wins_and_equivocation_keeps_the_first() {
        let mut members = Membership::default();
        let a = node("a");
        assert_eq!(members.told(&a, statement((1, 2), "two")), Outcome::News);
        assert_eq!(members.told(&a, statement((1, 1), "one")), Outcome::Old);
        assert_eq!(members.told(&a, statement((1, 2), "two")), Outcome::Old);
        assert_eq!(
            members.told(&a, statement((1, 2), "lie")),
            Outcome::Equivocation
        );
        assert_eq!(members.view().nodes[&a].descriptor.software, "two");
        assert_eq!(members.told(&a, statement((2, 0), "new")), Outcome::News);
    }

    #[test]
    fn configured_node_is_shown_before_during_and_after_its_link() {
        let mut members = Membership::default();
        let now = SystemTime::UNIX_EPOCH;
        let a = node("a");
        members.configured(&a);
        assert!(members.problem(&a, "connection refused"));
        assert!(!members.problem(&a, "connection refused"), "told once");
        let view = |members: &Membership| members.view().nodes[&a].clone();
        assert_eq!(view(&members).reach, Reach::Unreachable);
        assert_eq!(
            view(&members).problem.as_deref(),
            Some("connection refused")
        );
        members.up(&peer("a", 1), "clawmatrix/1", now);
        members.alive(&a, Some(1.5), now);
        let up = view(&members);
        assert_eq!(
            (up.reach, up.problem, up.latency_ms),
            (Reach::Direct, None, Some(1.5))
        );
        members.told(&a, statement((1, 1), "said"));
        members.down(&a, "connection closed".into(), now);
        let down = view(&members);
        assert_eq!((down.reach, down.latency_ms), (Reach::Unreachable, None));
        assert_eq!(down.descriptor.software, "said", "kept while it is away");
    }

    #[test]
    fn another_key_starts_from_nothing() {
        let mut members = Membership::default();
        members.up(&peer("a", 1), "one", SystemTime::UNIX_EPOCH);
        members.told(&node("a"), statement((9, 9), "said"));
        members.up(&peer("a", 2), "two", SystemTime::UNIX_EPOCH);
        assert_eq!(members.view().nodes[&node("a")].descriptor.software, "two");
        assert_eq!(
            members.told(&node("a"), statement((1, 1), "new")),
            Outcome::News
        );
    }
}
