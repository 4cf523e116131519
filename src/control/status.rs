//! `GET /api/v1/status` and `GET /api/v1/peers`, with the fields of contract 3.

use std::{sync::Arc, time::UNIX_EPOCH};

use serde::Serialize;
use tokio::{sync::watch, time::Instant};

use super::metrics::{counter, gauge};
use crate::{
    crypto::identity::KeyId,
    ids::NodeId,
    mesh::{
        carriage::{Carriage, Posture},
        tls::ListenerTls,
        view::{AgentOffer, ModelOffer, NodeView, Reach, View},
    },
    models::lent::LentModels,
    trust::{Level, TrustStore},
};

/// What `status` knows of this node.
#[derive(Debug)]
pub struct Facts {
    /// Our name.
    pub node: NodeId,
    /// Short form of our key.
    pub key_id: KeyId,
    /// When this process began.
    pub started: Instant,
    /// Bound port of the mesh listener, if there is one.
    pub listen_port: Option<u16>,
    /// Its certificate, if it speaks TLS; its warnings are shown too.
    pub tls: Option<ListenerTls>,
    /// Bound port of the local API.
    pub proxy_port: u16,
    /// Agents we offer.
    pub agents: Vec<AgentOffer>,
    /// Our labels.
    pub tags: Vec<String>,
    /// What we lend; its warnings are shown too.
    pub lent: LentModels,
    /// What the operator should know, from configuration, shim and mesh.
    pub warnings: watch::Receiver<Vec<String>>,
    /// Whose keys are believed; its conflicts are shown too.
    pub trust: TrustStore,
    /// How many requests wait here for a person.
    pub waiting: watch::Receiver<usize>,
    /// How many of other nodes' wait for one here.
    pub waiting_elsewhere: watch::Receiver<usize>,
    /// The other nodes.
    pub view: watch::Receiver<Arc<View>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    node_id: &'a NodeId,
    version: &'static str,
    key_id: KeyId,
    uptime_ms: u64,
    listen: Listen,
    /// What the listener speaks; null without one.
    listen_tls: Option<Posture>,
    proxy_port: u16,
    agents: &'a [AgentOffer],
    models: Vec<ModelOffer>,
    tags: &'a [String],
    warnings: Vec<String>,
    peers: Vec<Peer<'a>>,
}

/// A port, or `false`.
#[derive(Serialize)]
#[serde(untagged)]
enum Listen {
    Port(u16),
    No(bool),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Peer<'a> {
    node_id: &'a NodeId,
    key_id: Option<KeyId>,
    trust: Option<Level>,
    agents: &'a [AgentOffer],
    models: &'a [ModelOffer],
    tags: &'a [String],
    connected: bool,
    state: Reach,
    reachable_via: Option<&'a NodeId>,
    /// What our own link to it runs over; null without one.
    link: Option<&'a Carriage>,
    latency_ms: Option<f64>,
    /// Requests that run and wait, as a share of what the node takes at once: 1 is full. Null when it
    /// does not say.
    load: Option<f64>,
    version: Option<&'a str>,
    /// Seconds since 1970.
    last_seen: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
}

fn peer<'a>(node: &'a NodeView, link: Option<&'a Carriage>) -> Peer<'a> {
    let about = &*node.descriptor;
    Peer {
        node_id: &node.node,
        key_id: node.key_id,
        trust: node.level,
        agents: &about.agents,
        models: &about.models,
        tags: &about.tags,
        connected: node.reach != Reach::Unreachable,
        state: node.reach,
        reachable_via: node.reachable_via.as_ref(),
        link,
        // A tenth of a millisecond is all that means anything.
        latency_ms: node.latency_ms.map(|ms| (ms * 10.0).round() / 10.0),
        // A thousandth is one place of a model without a bound.
        load: node
            .load
            .and_then(|load| load.share())
            .map(|share| (share * 1000.0).round() / 1000.0),
        version: (!about.software.is_empty()).then_some(&about.software),
        last_seen: node
            .last_seen
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            .map(|since| since.as_secs()),
        problem: node.problem.as_deref(),
    }
}

/// What the operator should know before an older secret is taken away.
fn other_secret(nodes: &[NodeId]) -> Option<String> {
    let (first, more) = nodes.split_first()?;
    let others = match more.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Some(format!(
        "another secret than `secret` is in use with `{first}`{others}: keep it in `acceptSecrets` until this is gone"
    ))
}

/// What the operator should know of requests that wait for a person; `whose` is empty for our own.
fn waiting(count: usize, whose: &str) -> Option<String> {
    let text = match count {
        0 => return None,
        1 => format!("a request{whose} waits for a person"),
        _ => format!("{count} requests{whose} wait for a person"),
    };
    Some(format!("{text}: `clawmatrix approvals list`"))
}

impl Facts {
    /// The body of `status`.
    #[must_use]
    pub fn status(&self) -> String {
        let view = self.view.borrow().clone();
        let mut warnings = self.warnings.borrow().clone();
        warnings.extend(self.lent.table().warnings.iter().cloned());
        warnings.extend(self.trust.warnings());
        warnings.extend(view.alerts.iter().cloned());
        warnings.extend(other_secret(&view.outdated));
        warnings.extend(self.tls.iter().flat_map(ListenerTls::warnings));
        warnings.extend(waiting(*self.waiting.borrow(), ""));
        warnings.extend(waiting(*self.waiting_elsewhere.borrow(), " of other nodes"));
        let status = Status {
            node_id: &self.node,
            version: env!("CARGO_PKG_VERSION"),
            key_id: self.key_id,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            listen: self.listen_port.map_or(Listen::No(false), Listen::Port),
            listen_tls: self.listen_port.map(|_| match &self.tls {
                Some(_) => Posture::Tls,
                None => Posture::Insecure,
            }),
            proxy_port: self.proxy_port,
            agents: &self.agents,
            models: self.lent.offers(),
            tags: &self.tags,
            warnings,
            peers: self.others(&view),
        };
        serde_json::to_string(&status).unwrap_or_default()
    }

    /// The body of `peers`.
    #[must_use]
    pub fn peers(&self) -> String {
        let view = self.view.borrow().clone();
        serde_json::to_string(&self.others(&view)).unwrap_or_default()
    }

    fn others<'a>(&self, view: &'a View) -> Vec<Peer<'a>> {
        let others = view.nodes.values().filter(|node| node.node != self.node);
        others
            .map(|node| peer(node, view.links.get(&node.node)))
            .collect()
    }

    /// Gauges of this node.
    pub fn write(&self, out: &mut String) {
        let view = self.view.borrow().clone();
        let count = |reach: Reach| {
            let nodes = view.nodes.values().filter(|node| node.reach == reach);
            f64::from(u32::try_from(nodes.count()).unwrap_or(u32::MAX))
        };
        let nodes = [
            ("{state=\"direct\"}".to_owned(), count(Reach::Direct)),
            ("{state=\"relay\"}".to_owned(), count(Reach::Relay)),
            (
                "{state=\"unreachable\"}".to_owned(),
                count(Reach::Unreachable),
            ),
        ];
        gauge(
            out,
            "clawmatrix_nodes",
            "Other nodes by how they are reached.",
            &nodes,
        );
        counter(
            out,
            "clawmatrix_identity_conflicts_total",
            "Keys refused because another key holds their name.",
            &[(String::new(), self.trust.conflicts_total())],
        );
        counter(
            out,
            "clawmatrix_new_nodes_refused_total",
            "New nodes refused because too many came.",
            &[(String::new(), self.trust.crowded_total())],
        );
        let uptime = [(String::new(), self.started.elapsed().as_secs_f64().round())];
        gauge(
            out,
            "clawmatrix_uptime_seconds",
            "Age of this process.",
            &uptime,
        );
        let active: Vec<_> = self
            .lent
            .table()
            .models
            .iter()
            .map(|(id, lent)| (label("model", id), f64::from(lent.model.active())))
            .collect();
        gauge(
            out,
            "clawmatrix_lent_requests",
            "Requests now running at our providers, by lent model.",
            &active,
        );
    }
}

/// `{name="value"}`, escaped as Prometheus wants it.
fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    format!("{{{name}=\"{}\"}}", value.replace('\n', "\\n"))
}
