//! Which neighbour leads to which node (protocol 6.3). Pure.
//!
//! A link counts only if both its ends say that it is there, so nobody can claim one to a node that
//! does not confirm it; the dearer of both claims is believed. Ways go through relays only. Nodes
//! with a link of our own are reached over that link, unless it is in doubt.

pub mod claims;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::membership::Membership;
use crate::{
    crypto::identity::KeyId,
    ids::NodeId,
    wire::limits::{PENALTY, PENALTY_TIME, PENALTY_TIME_MAX, RELAY_COST, SUSPECT_FACTOR},
};

/// A node and its confirmed links.
#[derive(Debug, Clone)]
pub struct Vertex {
    /// Its name.
    pub node: NodeId,
    /// Its key, which settles ties alike at every node.
    pub key: KeyId,
    /// Whether ways may lead through it.
    pub relay: bool,
    /// Its links: the other end, and what it costs.
    pub edges: Vec<(usize, u32)>,
}

/// All confirmed links between other nodes.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// The nodes.
    pub vertices: Vec<Vertex>,
}

impl Topology {
    /// From what the nodes say; `believed` tells whose claim to relay counts here.
    #[must_use]
    pub fn of(members: &Membership, believed: impl Fn(&NodeId) -> bool) -> Self {
        let all: Vec<_> = members.vertices().collect();
        let by_name: HashMap<&NodeId, usize> =
            all.iter().enumerate().map(|(at, v)| (v.node, at)).collect();
        let by_short: HashMap<_, usize> = all
            .iter()
            .enumerate()
            .map(|(at, v)| (super::linkstate::short(&v.key), at))
            .collect();
        let vertices = all.iter().map(|vertex| {
            let relays = vertex.links.relays.iter();
            let relays = relays.filter_map(|link| Some((*by_name.get(&link.to)?, link.cost)));
            let leaves = vertex.links.leaves.iter();
            let leaves = leaves.filter_map(|(short, cost)| Some((*by_short.get(short)?, *cost)));
            let edges = relays.chain(leaves).filter_map(|(to, cost)| {
                let confirmed = all[to].links.cost(vertex.node, &vertex.key)?;
                Some((to, u32::from(cost.max(confirmed))))
            });
            Vertex {
                node: vertex.node.clone(),
                key: vertex.key,
                relay: vertex.links.relay && vertex.stays && believed(vertex.node),
                edges: edges.collect(),
            }
        });
        Self {
            vertices: vertices.collect(),
        }
    }
}

/// A link of our own.
#[derive(Debug, Clone)]
pub struct FirstHop {
    /// The neighbour.
    pub node: NodeId,
    /// Its key.
    pub key: KeyId,
    /// What the link costs, in milliseconds.
    pub cost: u16,
    /// Whether the neighbour may be gone.
    pub suspect: bool,
    /// Whether it goes away soon: nothing new is led through it.
    pub leaving: bool,
}

impl FirstHop {
    fn cost(&self) -> u32 {
        let factor = if self.suspect { SUSPECT_FACTOR } else { 1 };
        u32::from(self.cost) * u32::from(factor)
    }
}

/// The way to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The neighbour that comes first; the node itself when there is a link to it.
    pub via: NodeId,
    /// What the way costs.
    pub cost: u32,
    /// Relays on it.
    pub relays: u32,
}

impl Way {
    /// The round trip that the links on the way add up to.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        Duration::from_millis(u64::from(
            self.cost.saturating_sub(self.relays * RELAY_COST),
        ))
    }
}

/// Ways to every node that can be reached.
pub type Ways = HashMap<NodeId, Way>;

/// Next hops that lost frames of ours: dearer for a while (protocol 6.3). Ours alone: nobody else
/// hears of it.
#[derive(Debug, Default)]
pub struct Penalties(HashMap<NodeId, Penalty>);

#[derive(Debug, Clone, Copy)]
struct Penalty {
    until: Instant,
    time: Duration,
}

impl Penalties {
    /// Frames over `hop` timed out end to end. True when that is news.
    pub fn punish(&mut self, hop: &NodeId, now: Instant) -> bool {
        let time = match self.0.get(hop) {
            Some(penalty) if now < penalty.until => return false,
            Some(penalty) => (penalty.time * 2).min(PENALTY_TIME_MAX),
            None => PENALTY_TIME,
        };
        let until = now + time;
        self.0.insert(hop.clone(), Penalty { until, time });
        true
    }

    fn cost(&self, hop: &NodeId, now: Instant) -> u32 {
        let penalty = self.0.get(hop);
        penalty.map_or(0, |penalty| if now < penalty.until { PENALTY } else { 0 })
    }

    /// When the next penalty ends; those that ended long ago are forgotten.
    pub fn next(&mut self, now: Instant) -> Option<Instant> {
        self.0
            .retain(|_, penalty| now < penalty.until + penalty.time * 4);
        let running = self.0.values().map(|penalty| penalty.until);
        running.filter(|until| now < *until).min()
    }
}

/// Old ways that are followed up when others look better; above that the better ones are simply
/// taken.
const FOLLOWED: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Reached {
    cost: u32,
    relays: u32,
    /// Index into the first hops.
    first: usize,
}

/// Works out the ways from here. `old` are those in force: they are kept unless another is a fifth
/// better.
#[must_use]
pub fn ways(
    topology: &Topology,
    first: &[FirstHop],
    penalties: &Penalties,
    old: &Ways,
    now: Instant,
) -> Ways {
    let vertices = &topology.vertices;
    let at: HashMap<&NodeId, usize> = vertices
        .iter()
        .enumerate()
        .map(|(at, v)| (&v.node, at))
        .collect();
    let penalty: Vec<u32> = first
        .iter()
        .map(|hop| penalties.cost(&hop.node, now))
        .collect();
    let starts: Vec<(usize, usize)> = first
        .iter()
        .enumerate()
        .filter_map(|(n, hop)| Some((*at.get(&hop.node)?, n)))
        .collect();
    let best = dijkstra(vertices, first, &starts, &penalty);
    let mut ways = Ways::new();
    for (vertex, reached) in vertices.iter().zip(&best) {
        if let Some(reached) = reached {
            let way = Way {
                via: first[reached.first].node.clone(),
                cost: reached.cost,
                relays: reached.relays,
            };
            ways.insert(vertex.node.clone(), way);
        }
    }
    // Neighbours of whom nothing is known but the link.
    for hop in first {
        ways.entry(hop.node.clone()).or_insert_with(|| Way {
            via: hop.node.clone(),
            cost: hop.cost(),
            relays: 0,
        });
    }
    keep_old(topology, (first, &starts, &penalty), old, &mut ways);
    ways
}

/// Costs from our first hops to every vertex.
fn dijkstra(
    vertices: &[Vertex],
    first: &[FirstHop],
    starts: &[(usize, usize)],
    penalty: &[u32],
) -> Vec<Option<Reached>> {
    let mut best: Vec<Option<Reached>> = vec![None; vertices.len()];
    // A link of our own that is not in doubt is the way, whatever else is cheaper.
    let mut fixed = vec![false; vertices.len()];
    let mut heap = BinaryHeap::new();
    for (vertex, n) in starts {
        let hop = &first[*n];
        fixed[*vertex] = !hop.suspect;
        heap.push(Reverse((hop.cost(), hop.key.0, *vertex, *n, 0_u32)));
    }
    while let Some(Reverse((cost, key, vertex, n, relays))) = heap.pop() {
        if best[vertex].is_some() || (fixed[vertex] && relays > 0) {
            continue;
        }
        best[vertex] = Some(Reached {
            cost,
            relays,
            first: n,
        });
        let about = &vertices[vertex];
        let neighbour = relays == 0;
        if !about.relay || (neighbour && first[n].leaving) {
            continue;
        }
        let extra = RELAY_COST + if neighbour { penalty[n] } else { 0 };
        for (to, edge) in &about.edges {
            if best[*to].is_none() {
                let cost = cost.saturating_add(*edge).saturating_add(extra);
                heap.push(Reverse((cost, key, *to, n, relays + 1)));
            }
        }
    }
    best
}

type Hops<'a> = (&'a [FirstHop], &'a [(usize, usize)], &'a [u32]);

/// Keeps old ways that are hardly worse. Only if the old next hop is nearer to the node than we are:
/// otherwise two nodes that both hold on to what they had could send a frame to and fro for ever.
fn keep_old(topology: &Topology, (first, starts, penalty): Hops<'_>, old: &Ways, ways: &mut Ways) {
    let mut changed: HashMap<&NodeId, Vec<&NodeId>> = HashMap::new();
    for (node, way) in ways.iter() {
        if let Some(before) = old.get(node)
            && before.via != way.via
            && way.relays > 0
        {
            changed.entry(&before.via).or_default().push(node);
        }
    }
    let mut kept = Vec::new();
    for (via, nodes) in changed.into_iter().take(FOLLOWED) {
        let start = starts.iter().find(|(_, n)| first[*n].node == *via);
        let Some(start) = start.filter(|(_, n)| !first[*n].suspect) else {
            continue;
        };
        let through = dijkstra(&topology.vertices, first, &[*start], penalty);
        for (vertex, reached) in topology.vertices.iter().zip(through) {
            let Some(reached) = reached.filter(|_| nodes.contains(&&vertex.node)) else {
                continue;
            };
            let better = &ways[&vertex.node];
            let hardly = f64::from(better.cost) > 0.8 * f64::from(reached.cost);
            let nearer = reached.cost - first[reached.first].cost() < better.cost;
            if hardly && nearer {
                let way = Way {
                    via: via.clone(),
                    cost: reached.cost,
                    relays: reached.relays,
                };
                kept.push((vertex.node.clone(), way));
            }
        }
    }
    ways.extend(kept);
}
