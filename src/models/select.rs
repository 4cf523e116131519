//! Who may answer a model request, best first. Pure: a snapshot and names go in, a list comes out.

use crate::{
    config::ProxyModel,
    ids::NodeId,
    mesh::view::{NodeView, Reach, View},
    trust::Level,
    wire::code::{Code, Failure},
};

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Exactly this node; never another one.
    Node(NodeId),
    /// Whoever lends the model.
    Any,
}

/// How a candidate is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// It is this node.
    Local,
    /// Over a link of our own.
    Direct,
    /// Through other nodes.
    Relay,
}

impl Path {
    /// The word in `x-clawmatrix-route` and in model lists.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }

    /// How a node is reached, if it is.
    #[must_use]
    pub const fn of(reach: Reach) -> Option<Self> {
        match reach {
            Reach::Direct => Some(Self::Direct),
            Reach::Relay => Some(Self::Relay),
            Reach::Unreachable => None,
        }
    }
}

/// One node that may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name; ours when local.
    pub node: NodeId,
    /// How it is reached.
    pub path: Path,
}

/// What selecting needs to know of this node.
#[derive(Debug)]
pub struct Us {
    /// Our name.
    pub node: NodeId,
    /// Lowest trust of a node we send prompts to.
    pub min_trust: Level,
    /// Models named in our configuration.
    pub proxy_models: Vec<ProxyModel>,
}

impl Us {
    /// Reads a `model` of a `/v1` request (contract 3): node in front of the first `/` when there is
    /// such a node, else a bare id, which a `proxyModels` entry may bind to a node.
    #[must_use]
    pub fn resolve(&self, text: &str, view: &View) -> (Target, String) {
        if let Some((first, rest)) = text.split_once('/')
            && let Ok(node) = first.parse::<NodeId>()
            && self.knows(&node, view)
        {
            return (Target::Node(node), rest.to_owned());
        }
        let bound = self
            .proxy_models
            .iter()
            .find(|entry| entry.id == text)
            .and_then(|entry| entry.node_id.clone());
        (bound.map_or(Target::Any, Target::Node), text.to_owned())
    }

    /// Whether a node of this name is known or configured.
    #[must_use]
    pub fn knows(&self, node: &NodeId, view: &View) -> bool {
        *node == self.node
            || view.nodes.contains_key(node)
            || self
                .proxy_models
                .iter()
                .any(|entry| entry.node_id.as_ref() == Some(node))
    }

    /// The candidates for `model`, best first: local, then trusted, pinned, only heard of;
    /// among these direct, then lowest latency. A node only heard of is pinned by the session that the
    /// request opens, and judged by it once more.
    ///
    /// # Errors
    /// `node_not_found`, `model_not_found`, `no_route` and `forbidden`, all `not_started`.
    pub fn select(
        &self,
        target: &Target,
        model: &str,
        lent_here: bool,
        view: &View,
    ) -> Result<Vec<Candidate>, Failure> {
        match target {
            Target::Node(node) => self.one(node, model, lent_here, view),
            Target::Any => self.any(model, lent_here, view),
        }
    }

    fn one(
        &self,
        node: &NodeId,
        model: &str,
        lent_here: bool,
        view: &View,
    ) -> Result<Vec<Candidate>, Failure> {
        if *node == self.node {
            return if lent_here {
                Ok(vec![self.local()])
            } else {
                Err(model_not_found(model, view))
            };
        }
        if !self.knows(node, view) {
            let message = format!("no node is called `{node}`; {}", alive(view));
            return Err(Failure::not_started(Code::NodeNotFound, message));
        }
        let known = view.nodes.get(node);
        let Some(path) = known.and_then(|known| Path::of(known.reach)) else {
            let why = known.and_then(|known| known.problem.as_deref());
            return Err(Failure::not_started(
                Code::NoRoute,
                match why {
                    Some(why) => format!("node `{node}` is not reachable: {why}"),
                    None => format!("node `{node}` is not reachable"),
                },
            ));
        };
        if known.is_some_and(|known| !known.may_be_trusted(self.min_trust)) {
            return Err(Failure::not_started(
                Code::Forbidden,
                format!("node `{node}` is trusted less than `outbound.minTrust` asks for"),
            ));
        }
        // The node itself knows best what it lends to us.
        let node = node.clone();
        Ok(vec![Candidate { node, path }])
    }

    fn any(&self, model: &str, lent_here: bool, view: &View) -> Result<Vec<Candidate>, Failure> {
        let lends = |node: &&NodeView| {
            let offers = &node.descriptor.models;
            node.node != self.node
                && node.may_be_trusted(self.min_trust)
                && offers.iter().any(|m| m.id == model)
        };
        let mut lenders: Vec<_> = view.nodes.values().filter(lends).collect();
        let away = lenders.len();
        lenders.retain(|node| node.reach != Reach::Unreachable);
        lenders.sort_by(|a, b| {
            let rank = |node: &NodeView| (node.trust_rank(), Path::of(node.reach));
            let latency = |node: &NodeView| node.latency_ms.unwrap_or(f64::MAX);
            rank(a)
                .cmp(&rank(b))
                .then(latency(a).total_cmp(&latency(b)))
        });
        let mut out = Vec::with_capacity(lenders.len() + 1);
        if lent_here {
            out.push(self.local());
        }
        out.extend(lenders.into_iter().filter_map(|node| {
            Some(Candidate {
                node: node.node.clone(),
                path: Path::of(node.reach)?,
            })
        }));
        if !out.is_empty() {
            return Ok(out);
        }
        if away > 0 || self.proxy_models.iter().any(|entry| entry.id == model) {
            return Err(Failure::not_started(
                Code::NoRoute,
                format!("no node that lends model `{model}` is reachable"),
            ));
        }
        Err(model_not_found(model, view))
    }

    fn local(&self) -> Candidate {
        Candidate {
            node: self.node.clone(),
            path: Path::Local,
        }
    }
}

fn model_not_found(model: &str, view: &View) -> Failure {
    // The text is the client's own, but bounded: it ends up in logs of SDKs.
    let shown: String = model.chars().take(128).collect();
    Failure::not_started(
        Code::ModelNotFound,
        format!(
            "no live node lends model `{shown}`; {}; `GET /v1/models` lists what they lend",
            alive(view)
        ),
    )
}

fn alive(view: &View) -> String {
    let live = view.nodes.values();
    match live.filter(|n| n.reach != Reach::Unreachable).count() {
        1 => "1 other node is alive".into(),
        n => format!("{n} other nodes are alive"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mesh::view::{Descriptor, ModelOffer};

    fn node(name: &str, reach: Reach, level: Level, ms: f64, models: &[&str]) -> NodeView {
        NodeView {
            node: name.parse().unwrap(),
            key_id: None,
            level: Some(level),
            reach,
            reachable_via: None,
            latency_ms: Some(ms),
            descriptor: Arc::new(Descriptor {
                models: models
                    .iter()
                    .map(|id| ModelOffer {
                        id: (*id).into(),
                        ..ModelOffer::default()
                    })
                    .collect(),
                ..Descriptor::default()
            }),
            load: None,
            last_seen: None,
            problem: Some("secrets differ".into()),
        }
    }

    fn view(nodes: Vec<NodeView>) -> View {
        View {
            nodes: nodes.into_iter().map(|n| (n.node.clone(), n)).collect(),
            ..View::default()
        }
    }

    fn us(proxy_models: Vec<ProxyModel>) -> Us {
        Us {
            node: "home".parse().unwrap(),
            min_trust: Level::Pinned,
            proxy_models,
        }
    }

    fn proxy_model(id: &str, node: Option<&str>) -> ProxyModel {
        ProxyModel {
            id: id.into(),
            node_id: node.map(|n| n.parse().unwrap()),
            description: None,
        }
    }

    fn names(found: Result<Vec<Candidate>, Failure>) -> Vec<String> {
        found
            .unwrap()
            .iter()
            .map(|c| format!("{} {}", c.node, c.path.as_str()))
            .collect()
    }

    #[test]
    fn a_prefix_counts_only_when_it_names_a_node() {
        let us = us(vec![
            proxy_model("bound", Some("far")),
            proxy_model("free", None),
        ]);
        let view = view(vec![node("office", Reach::Direct, Level::Pinned, 1.0, &[])]);
        let at = |name: &str| Target::Node(name.parse().unwrap());
        for (text, target, model) in [
            ("office/m", at("office"), "m"),
            ("office/qwen/q3", at("office"), "qwen/q3"),
            ("qwen/q3", Target::Any, "qwen/q3"),
            ("home/m", at("home"), "m"),
            ("far/x", at("far"), "x"),
            ("bound", at("far"), "bound"),
            ("free", Target::Any, "free"),
            ("/m", Target::Any, "/m"),
        ] {
            assert_eq!(us.resolve(text, &view), (target, model.into()), "{text}");
        }
    }

    #[test]
    fn candidates_come_local_then_by_trust_then_direct_then_near() {
        let view = view(vec![
            node("a", Reach::Relay, Level::Pinned, 1.0, &["m"]),
            node("b", Reach::Direct, Level::Pinned, 9.0, &["m"]),
            node("c", Reach::Direct, Level::Pinned, 3.0, &["m"]),
            node("d", Reach::Relay, Level::Trusted, 50.0, &["m"]),
            node("e", Reach::Unreachable, Level::Trusted, 1.0, &["m"]),
            node("f", Reach::Direct, Level::Seen, 1.0, &["m"]),
            node("g", Reach::Direct, Level::Trusted, 1.0, &["other"]),
        ]);
        assert_eq!(
            names(us(vec![]).select(&Target::Any, "m", true, &view)),
            [
                "home local",
                "d relay",
                "c direct",
                "b direct",
                "a relay",
                "f direct"
            ]
        );
        let mut strict = us(vec![]);
        strict.min_trust = Level::Trusted;
        assert_eq!(
            names(strict.select(&Target::Any, "m", false, &view)),
            ["d relay"],
            "no session makes a node trusted"
        );
    }

    #[test]
    fn each_dead_end_has_its_own_code() {
        let mut us = us(vec![proxy_model("promised", None)]);
        us.min_trust = Level::Trusted;
        let view = view(vec![
            node("away", Reach::Unreachable, Level::Trusted, 1.0, &["m"]),
            node("low", Reach::Direct, Level::Seen, 1.0, &["n"]),
        ]);
        let code = |target: &str, model: &str| {
            let (target, model) = match target {
                "" => (Target::Any, model),
                node => (Target::Node(node.parse().unwrap()), model),
            };
            us.select(&target, model, false, &view).unwrap_err().code
        };
        assert_eq!(code("", "m"), Code::NoRoute);
        assert_eq!(code("", "promised"), Code::NoRoute);
        assert_eq!(code("", "n"), Code::ModelNotFound);
        assert_eq!(code("away", "m"), Code::NoRoute);
        assert_eq!(code("low", "n"), Code::Forbidden);
        assert_eq!(code("nobody", "n"), Code::NodeNotFound);
        assert_eq!(code("home", "n"), Code::ModelNotFound);
    }
}
