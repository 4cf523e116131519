//! Links that one node claims and the other does not confirm (protocol 6.3). No way ever uses them;
//! here is noticed who goes on claiming them.

use std::collections::HashMap;

use tokio::time::Instant;

use crate::{
    crypto::identity::KeyId,
    ids::NodeId,
    mesh::{
        linkstate::LinkState,
        membership::{Membership, Vertex},
        signed::{Item, RecordKind, Version},
    },
    wire::limits::{LINK_STATE_LEAVES, LINK_STATE_RELAYS, UNCONFIRMED_AFTER},
};

/// Nodes that claim links which are not confirmed, and since when.
#[derive(Debug, Default)]
pub struct Claims(HashMap<NodeId, Claim>);

#[derive(Debug)]
struct Claim {
    since: Instant,
    /// Its link state at that time. A node that is gone signs no other: what it said last is old, not
    /// wrong.
    version: Version,
    told: bool,
}

/// Whether a link state is so long that links were left out of it.
fn full(links: &LinkState) -> bool {
    links.relays.len() >= LINK_STATE_RELAYS || links.leaves.len() >= LINK_STATE_LEAVES
}

impl Claims {
    /// Looks at what all nodes say now; `linked` tells who has a link to `us`. Gives those that claim
    /// such links for long, each once.
    pub fn look(
        &mut self,
        members: &Membership,
        (us, key): (&NodeId, &KeyId),
        linked: impl Fn(&NodeId) -> bool,
        now: Instant,
    ) -> Vec<NodeId> {
        let all: Vec<Vertex<'_>> = members.vertices().collect();
        let version = |key: KeyId| {
            let kind = RecordKind::LinkState;
            members.version(&Item { kind, key })
        };
        let by_name: HashMap<&NodeId, &Vertex<'_>> = all.iter().map(|v| (v.node, v)).collect();
        let denied = |one: &Vertex<'_>| {
            let by_us = one.links.cost(us, key).is_some() && !linked(one.node);
            let mut relays = one.links.relays.iter();
            by_us
                || relays.any(|link| {
                    by_name.get(&link.to).is_some_and(|other| {
                        version(other.key).is_some()
                            && !full(other.links)
                            && other.links.cost(one.node, &one.key).is_none()
                    })
                })
        };
        let mut denied: HashMap<&NodeId, Version> = all
            .iter()
            .filter(|one| denied(one))
            .filter_map(|one| Some((one.node, version(one.key)?)))
            .collect();
        let mut told = Vec::new();
        self.0.retain(|node, claim| {
            let Some(version) = denied.remove(node) else {
                return false;
            };
            let long = now.saturating_duration_since(claim.since) >= UNCONFIRMED_AFTER;
            if long && version > claim.version && !claim.told {
                claim.told = true;
                told.push(node.clone());
            }
            true
        });
        for (node, version) in denied {
            let claim = Claim {
                since: now,
                version,
                told: false,
            };
            self.0.insert(node.clone(), claim);
        }
        told
    }
}
