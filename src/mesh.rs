//! The mesh: links to other nodes, sessions over them, and what is known about who is there.
//! Carries opaque payloads; knows neither HTTP nor models nor tools.
//!
//! [`Mesh`] is the handle for everybody above. Below it: `accept` and `dial` make connections,
//! [`handshake`] proves who is at the other end, `hub` keeps one [`link`] per node, [`gossip`] spreads
//! what nodes say of themselves, [`routing`] finds the ways, `relay` passes frames of others on, and
//! [`sessions`] holds the end-to-end keys.

pub mod accept;
pub mod alerts;
pub mod bucket;
pub mod carriage;
pub mod clock;
pub mod descriptor;
pub mod dial;
pub mod drops;
pub mod duel;
pub mod gossip;
pub mod handshake;
mod hops;
mod hub;
pub mod incarnation;
pub mod limiter;
pub mod link;
mod links;
pub mod linkstate;
pub mod liveness;
pub mod membership;
pub mod memory;
mod relay;
pub mod rotation;
pub mod routing;
pub mod schedule;
pub mod session;
mod sessions;
pub mod signed;
pub mod socket;
mod standing;
#[cfg(test)]
pub(crate) mod testkit;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod traffic;
pub mod transport;
pub mod view;
mod warm;
pub mod ws;

use std::{collections::HashSet, sync::Arc, time::Duration};

use globset::GlobSet;
use tokio::{net::TcpListener, sync::watch, time::timeout};

use self::{
    accept::Gate,
    dial::bounds::Bounds,
    drops::Drops,
    handshake::Ourselves,
    hub::Hub,
    limiter::Cidr,
    linkstate::Load,
    session::{SessionHandler, SessionRef},
    signed::Signed,
    tls::ListenerTls,
    traffic::Carried,
    view::{Descriptor, View},
};
use crate::{
    config::PeerConfig,
    drain::Tasks,
    ids::NodeId,
    state::StateDir,
    wire::{close::CloseCode, code::Failure, limits::HEARTBEAT},
};

/// What a mesh needs to know at start.
#[derive(Debug, Clone)]
pub struct MeshSettings {
    /// What we bring into handshakes.
    pub us: Ourselves,
    /// From [`incarnation::advance`].
    pub incarnation: u64,
    /// How often we ping.
    pub heartbeat: Duration,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// TLS settings for `wss` peers.
    pub tls: Arc<rustls::ClientConfig>,
    /// Names whose claim to relay is believed; none is believed when it is empty.
    pub relays: GlobSet,
    /// Our own changes of key, the newest last.
    pub rotations: Vec<Signed>,
    /// Where a greater incarnation is stored.
    pub state: Option<StateDir>,
}

impl MeshSettings {
    /// Settings with every default.
    #[must_use]
    pub fn new(us: Ourselves, incarnation: u64) -> Self {
        Self {
            us,
            incarnation,
            heartbeat: HEARTBEAT,
            trusted_proxies: Vec::new(),
            tls: dial::tls::web_tls(),
            relays: every_name(),
            rotations: Vec::new(),
            state: None,
        }
    }

    /// Whether `node` may be taken for a relay if it says that it is one (protocol 5.6).
    #[must_use]
    pub fn believes(&self, node: &NodeId) -> bool {
        self.relays.is_match(node.as_str())
    }
}

fn every_name() -> GlobSet {
    let every = globset::Glob::new("*").and_then(|glob| GlobSet::builder().add(glob).build());
    every.unwrap_or_else(|_| GlobSet::empty())
}

/// Handle to this node's part of the mesh. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mesh {
    hub: Arc<Hub>,
    gate: Arc<Gate>,
}

impl Mesh {
    /// A mesh without links; `handler` is told of sessions and gets their frames. Must be called
    /// within a runtime.
    #[must_use]
    pub fn new(settings: MeshSettings, handler: Arc<dyn SessionHandler>, tasks: Tasks) -> Self {
        Self {
            hub: Hub::new(settings, handler, tasks),
            gate: Arc::default(),
        }
    }

    /// Accepts links on `listener` until shutdown; over TLS if there is a certificate, which is followed
    /// when its files change.
    pub fn listen(&self, listener: TcpListener, tls: Option<ListenerTls>) {
        if let Some(tls) = tls.clone() {
            self.hub.tasks.spawn(tls.follow());
        }
        let accepting = accept::run(self.hub.clone(), self.gate.clone(), listener, tls);
        self.hub.tasks.spawn(accepting);
    }

    /// Dials these peers until shutdown, each whenever no link to it is up.
    pub fn dial(&self, peers: Vec<PeerConfig>) {
        for peer in peers {
            self.hub.configured(&peer.node_id);
            self.hub.tasks.spawn(dial::run(self.hub.clone(), peer));
        }
    }

    /// Dials addresses that other nodes advertise, within `bounds`, until shutdown; not those of
    /// `configured` nodes, which are dialed where the operator says.
    pub fn dial_advertised(&self, bounds: Bounds, configured: HashSet<NodeId>) {
        let dialing = dial::advertised::run(self.hub.clone(), bounds, configured);
        self.hub.tasks.spawn(dialing);
    }

    /// Opens sessions ahead of need until shutdown: to `named` nodes and to all that lend models.
    pub fn keep_warm(&self, named: HashSet<NodeId>) {
        self.hub.tasks.spawn(warm::run(self.hub.clone(), named));
    }

    /// What is known about every other node.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.hub.view.subscribe()
    }

    /// The session to `node`; opened now when there is none yet, which takes a handshake and ends
    /// after 10 s.
    ///
    /// # Errors
    /// `node_not_found`, `no_route` or `shutting_down` at once; `peer_unreachable` when the node does
    /// not answer.
    pub async fn session(&self, node: &NodeId) -> Result<SessionRef, Failure> {
        self.hub.session(node).await
    }

    /// End-to-end sessions at work.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.hub.sessions.count()
    }

    /// Changes what we say of ourselves, and tells every neighbour.
    pub fn set_offer(&self, descriptor: Descriptor) {
        self.hub.set_offer(descriptor);
    }

    /// Says how busy this node is, to nodes that choose among several; none when it lends nothing. They
    /// hear of it once it has moved far enough (protocol 6.4).
    pub fn set_load(&self, load: Option<Load>) {
        self.hub.set_load(load);
    }

    /// What was dropped and refused on links that have ended, and at the door; by reason.
    #[must_use]
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        let total = Drops::default();
        for reason in drops::Reason::ALL {
            total.add(*reason, self.hub.drops.get(*reason));
            for link in self.hub.open_links() {
                total.add(*reason, link.drops.get(*reason));
            }
        }
        total.all()
    }

    /// How often nodes broke the rules since the start, by what they did.
    #[must_use]
    pub fn alerts(&self) -> Vec<(&'static str, u64)> {
        self.hub.alerts()
    }

    /// Tells every neighbour that we go away within `grace`, and makes no new links. What runs goes
    /// on. The first half of [`Mesh::shutdown`], for a drain that finishes requests in between.
    pub fn announce_shutdown(&self, grace: Duration) {
        if !self.hub.stop.is_cancelled() {
            self.hub.stop.cancel();
            for link in self.hub.open_links() {
                link.send_goaway("shutting down", grace);
            }
            self.hub.leave();
        }
    }

    /// What the links have carried since the start, those that have ended included.
    #[must_use]
    pub fn carried(&self) -> Carried {
        self.hub.traffic.carried()
    }

    /// Closes every link after what waits on it was sent, within `grace`.
    pub async fn shutdown(&self, grace: Duration) {
        self.announce_shutdown(grace);
        let links = self.hub.open_links();
        for link in &links {
            link.drain(CloseCode::ShuttingDown, "shutting down");
        }
        let all_stopped = async {
            for link in &links {
                link.stopped().await;
            }
        };
        if timeout(grace, all_stopped).await.is_err() {
            for link in &links {
                link.end(CloseCode::ShuttingDown, "shutting down");
            }
        }
    }
}
