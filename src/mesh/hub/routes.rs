//! Which way leads where, and when that is worked out anew (protocol 6.3).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{Hub, State};
use crate::{
    ids::NodeId,
    mesh::{
        alerts::AlertKind,
        hops::Hop,
        link::Link,
        linkstate::{LinkState, ToRelay, clamped, short},
        membership::Passage,
        routing::{self, FirstHop, Penalties, Topology, Ways, claims::Claims},
    },
    wire::{
        code::{Code, Failure},
        limits::{ROUTE_DEBOUNCE, ROUTE_EVERY, SUSPECT_FACTOR},
    },
};

/// When to come back to a node that is not reached now.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// What a link costs that has not been measured yet, in milliseconds.
const UNMEASURED: u16 = 100;
/// How long a node that has said it leaves is out of reach before it counts as gone: what it still
/// finishes may change its way meanwhile.
const GONE_AFTER: Duration = Duration::from_secs(2);
/// How long a request waits for routes that are about to be worked out.
const ROUTES_WAIT: Duration = Duration::from_millis(600);

/// The ways in force.
#[derive(Debug, Default)]
pub(super) struct Routes {
    ways: Ways,
    /// Nodes to which a way led once and none leads now. Others without a way may just be new.
    lost: HashSet<NodeId>,
    penalties: Penalties,
    /// Nodes that have said they leave and to which no way leads, since then.
    leaving: HashMap<NodeId, Instant>,
    claims: Claims,
    worked_out: Option<Instant>,
    due: Option<Instant>,
}

impl Routes {
    /// What others say has changed: the ways are to follow.
    pub(super) fn wanted(&mut self, now: Instant) {
        let soonest = self.worked_out.map_or(now, |at| at + ROUTE_EVERY);
        self.due.get_or_insert(soonest.max(now + ROUTE_DEBOUNCE));
    }

    /// When the ways are to be worked out, if they are.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How a node is reached.
    pub(super) fn passage(&self, node: &NodeId) -> Option<Passage> {
        let way = self.ways.get(node)?;
        let relayed = way.relays > 0;
        Some(Passage {
            via: relayed.then(|| way.via.clone()),
            latency_ms: relayed.then(|| way.rtt().as_secs_f64() * 1000.0),
        })
    }
}

fn cost(link: &Link) -> u16 {
    let ms = |rtt: Duration| u16::try_from(rtt.as_millis()).unwrap_or(u16::MAX);
    clamped(link.rtt().map_or(UNMEASURED, ms))
}

impl Hub {
    /// Works the ways out anew.
    pub(super) fn route(&self, state: &mut State) {
        let now = Instant::now();
        let links: HashMap<NodeId, Arc<Link>> = state
            .links
            .open()
            .into_iter()
            .map(|link| (link.neighbour().node.clone(), link))
            .collect();
        let first: Vec<FirstHop> = links
            .values()
            .map(|link| FirstHop {
                node: link.neighbour().node.clone(),
                key: link.neighbour().key.id(),
                cost: cost(link),
                suspect: link.suspect(),
                leaving: link.going_away() || !self.believes(link),
            })
            .collect();
        let members = &state.gossip.members;
        let topology = Topology::of(members, |node| self.settings.believes(node));
        let routes = &mut state.routes;
        let ways = routing::ways(&topology, &first, &routes.penalties, &routes.ways, now);
        routes.lost.extend(routes.ways.keys().cloned());
        routes
            .lost
            .retain(|node| !ways.contains_key(node) && members.knows(node));
        routes.ways = ways;
        routes.worked_out = Some(now);
        routes.due = routes.penalties.next(now);
        let us = (&self.settings.us.node_id, &self.key.id());
        let liars = routes
            .claims
            .look(members, us, |node| links.contains_key(node), now);
        let hop = |(node, way): (&NodeId, &routing::Way)| {
            let link = links.get(&way.via)?.clone();
            let direct = way.relays == 0;
            let rtt = (!direct).then(|| way.rtt());
            Some((node.clone(), Hop { link, direct, rtt }))
        };
        let mut table: HashMap<NodeId, Hop> = routes.ways.iter().filter_map(hop).collect();
        self.lead_the_rest_up(&topology, &links, &mut table);
        self.hops.replace(table);
        for node in liars {
            state.alert(AlertKind::FalseLinks, &node);
        }
    }

    /// A node that does not relay hears late of links of others. What is known and has no way here
    /// goes to the nearest relay, which knows better and answers if it has none either.
    fn lead_the_rest_up(
        &self,
        topology: &Topology,
        links: &HashMap<NodeId, Arc<Link>>,
        table: &mut HashMap<NodeId, Hop>,
    ) {
        if self.settings.us.params.relay {
            return;
        }
        let relays = links
            .values()
            .filter(|link| self.believes(link) && !link.going_away());
        let Some(nearest) = relays.min_by_key(|link| (cost(link), link.neighbour().key.id().0))
        else {
            return;
        };
        for vertex in &topology.vertices {
            table.entry(vertex.node.clone()).or_insert_with(|| Hop {
                link: nearest.clone(),
                direct: false,
                rtt: None,
            });
        }
    }

    /// Works the ways out anew and tells everybody whom that concerns.
    pub(super) fn reroute(&self) {
        let mut state = self.state();
        self.route(&mut state);
        state.stale = true;
        drop(state);
        self.sessions.rerouted();
        self.wake.notify_one();
    }

    /// Those of `peers` that have gone: they have said they leave, and for a while no way has led
    /// there. A way that breaks while a node still finishes its work is none of it, nor is that we
    /// are alone ourselves.
    pub(super) fn left(&self, state: &mut State, peers: &[NodeId], now: Instant) -> Vec<NodeId> {
        let alone = state.links.open().is_empty();
        let members = &state.gossip.members;
        let Routes { ways, leaving, .. } = &mut state.routes;
        leaving.retain(|node, _| peers.contains(node));
        let mut gone = Vec::new();
        for node in peers {
            if alone || ways.contains_key(node) || !members.leaves(node) {
                leaving.remove(node);
            } else {
                let since = *leaving.entry(node.clone()).or_insert(now);
                if now.saturating_duration_since(since) >= GONE_AFTER {
                    gone.push(node.clone());
                }
            }
        }
        gone
    }

    /// Those over whom frames timed out cost more from now on.
    pub(super) fn punish(&self) {
        let now = Instant::now();
        let blamed = self.hops.take_blamed();
        let mut state = self.state();
        for hop in blamed {
            if state.routes.penalties.punish(&hop, now) {
                tracing::info!(relay = %hop, "frames sent through it get lost: other ways first");
                state.alert(AlertKind::LosesFrames, &hop);
                state.routes.wanted(now);
            }
        }
    }

    /// Our links as the others should see them.
    pub(super) fn own_links(&self, state: &State) -> LinkState {
        let mut own = LinkState {
            relay: self.settings.us.params.relay,
            ..LinkState::default()
        };
        for link in state.links.open() {
            let factor = if link.suspect() { SUSPECT_FACTOR } else { 1 };
            let cost = clamped(cost(&link).saturating_mul(factor));
            let peer = link.neighbour();
            if self.believes(&link) {
                let to = peer.node.clone();
                own.relays.push(ToRelay { to, cost });
            } else {
                own.leaves.push((short(&peer.key.id()), cost));
            }
        }
        own
    }

    /// Whether a way leads to `node` that new requests may take.
    ///
    /// # Errors
    /// `shutting_down`, `no_route`, `node_not_found`.
    pub(super) async fn way(&self, node: &NodeId) -> Result<(), Failure> {
        let not_now = |code, message: String| Failure {
            retry_after: Some(RETRY_AFTER),
            ..Failure::not_started(code, message)
        };
        // What others have just said may lead there.
        let changed = self.hops.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let pending = {
            let state = self.state();
            state.gossip.members.hears_of(node) && state.routes.due.is_some()
        };
        if self.hops.get(node.as_str()).is_none() && pending {
            let _ = timeout(ROUTES_WAIT, changed).await;
        }
        let state = self.state();
        let members = &state.gossip.members;
        let leaving = |hop: &Hop| hop.direct && hop.link.going_away();
        match self.hops.get(node.as_str()) {
            Some(hop) if leaving(&hop) || members.leaves(node) => Err(not_now(
                Code::ShuttingDown,
                format!("node `{node}` is shutting down"),
            )),
            // The relay would say the same, but only after the request had left us.
            Some(hop) if hop.direct || !state.routes.lost.contains(node) => Ok(()),
            _ if members.knows(node) => Err(not_now(
                Code::NoRoute,
                match members.why_not(node) {
                    Some(why) => format!("node `{node}` is not reachable: {why}"),
                    None => format!("node `{node}` is not reachable yet"),
                },
            )),
            _ => Err(Failure::not_started(
                Code::NodeNotFound,
                format!("no node `{node}` is known"),
            )),
        }
    }
}
