//! What a node says of its links and its load: payload of an `ls` record (protocol 6.1).
//!
//! Costs and load are hints: clamped, and used for nothing but the choice among ways and candidates.
//! A link counts only once both its ends say that it is there (protocol 6.3).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    crypto::identity::KeyId,
    ids::NodeId,
    wire::{
        json,
        limits::{COST_MAX, COST_MIN, LINK_STATE_LEAVES, LINK_STATE_RELAYS},
    },
};

/// How a leaf is named in a packed list: the first half of its key's id.
pub type Short = [u8; 8];

/// Bytes of one packed leaf: its name and its cost.
const LEAF_BYTES: usize = 10;

/// The short name of a key.
#[must_use]
pub fn short(key: &KeyId) -> Short {
    let mut short = Short::default();
    short.copy_from_slice(&key.0[..8]);
    short
}

/// How busy a node says it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Requests that run.
    pub active: u32,
    /// Requests that wait. This version lets none wait.
    pub queued: u32,
    /// Requests that could run at once.
    pub cap: u32,
    /// How long streamed answers of late took to begin, in milliseconds; 0 when there were none.
    pub ttfb_ms: u32,
}

/// Nobody chooses another node for so many milliseconds.
const BLINK_MS: u32 = 50;

impl Load {
    /// How full the node is: 0 is idle, 1 is as much as it takes at once, more is a queue. None when
    /// it says nothing of what it could take.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        let busy = f64::from(self.active) + f64::from(self.queued);
        (self.cap > 0).then(|| busy / f64::from(self.cap))
    }

    /// Whether the others should hear of the difference: by more than a fifth of what there was, or of
    /// what the node takes at once; what it answers in by more than a blink as well.
    #[must_use]
    pub fn moved(&self, new: &Self) -> bool {
        let far = |a: u32, b: u32| u64::from(a.abs_diff(b)) * 5 > u64::from(a.max(b)).max(5);
        let share = self.share().unwrap_or(0.0) - new.share().unwrap_or(0.0);
        self.cap != new.cap
            || share.abs() > 0.2
            || far(self.active, new.active)
            || far(self.queued, new.queued)
            || far(self.ttfb_ms, new.ttfb_ms) && self.ttfb_ms.abs_diff(new.ttfb_ms) > BLINK_MS
    }
}

/// One link to a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToRelay {
    /// The relay.
    pub to: NodeId,
    /// What the link costs, in milliseconds.
    pub cost: u16,
}

/// A node's links.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LinkState {
    /// Whether it relays for others.
    pub relay: bool,
    /// Its links to relays.
    pub relays: Vec<ToRelay>,
    /// Its links to other nodes, sorted by short name.
    pub leaves: Vec<(Short, u16)>,
    /// How busy it is.
    pub load: Option<Load>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Payload {
    relay: bool,
    links: Vec<ToRelay>,
    #[serde(skip_serializing_if = "String::is_empty")]
    leaves: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<Load>,
}

/// A cost within its bounds.
#[must_use]
pub fn clamped(cost: u16) -> u16 {
    cost.clamp(COST_MIN, COST_MAX)
}

impl LinkState {
    /// Its payload. Links above the limits are left out, the dearest first: a node with so many is
    /// reached by others all the same.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        let mut links = self.relays.clone();
        links.sort_by_key(|link| link.cost);
        links.truncate(LINK_STATE_RELAYS);
        let mut leaves = self.leaves.clone();
        leaves.sort_by_key(|(_, cost)| *cost);
        leaves.truncate(LINK_STATE_LEAVES);
        if links.len() < self.relays.len() || leaves.len() < self.leaves.len() {
            tracing::warn!("more links than one record holds: the dearest are left out");
        }
        let mut packed = Vec::with_capacity(leaves.len() * LEAF_BYTES);
        for (short, cost) in leaves {
            packed.extend_from_slice(&short);
            packed.extend_from_slice(&cost.to_be_bytes());
        }
        let payload = Payload {
            relay: self.relay,
            links,
            leaves: URL_SAFE_NO_PAD.encode(packed),
            load: self.load,
        };
        serde_json::to_vec(&payload).unwrap_or_default()
    }

    /// Reads another node's payload, clamped; none when it is no link state. A link named twice is
    /// refused: which of the two counts would depend on who reads it.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let read: Payload = json::object(payload).ok()?;
        let packed = URL_SAFE_NO_PAD.decode(read.leaves).ok()?;
        let leaf = |bytes: &[u8]| {
            let (short, cost) = bytes.split_first_chunk::<8>()?;
            let cost = u16::from_be_bytes(cost.try_into().ok()?);
            Some((*short, clamped(cost)))
        };
        let mut leaves = packed
            .chunks(LEAF_BYTES)
            .map(leaf)
            .collect::<Option<Vec<_>>>()?;
        leaves.sort_unstable_by_key(|(short, _)| *short);
        let mut relays = read.links;
        for link in &mut relays {
            link.cost = clamped(link.cost);
        }
        relays.sort_by(|a, b| a.to.cmp(&b.to));
        let twice = leaves.windows(2).any(|pair| pair[0].0 == pair[1].0)
            || relays.windows(2).any(|pair| pair[0].to == pair[1].to);
        let fits = leaves.len() <= LINK_STATE_LEAVES && relays.len() <= LINK_STATE_RELAYS;
        (fits && !twice).then_some(Self {
            relay: read.relay,
            relays,
            leaves,
            load: read.load,
        })
    }

    /// What it says its link to a node costs; none when it names no such link.
    #[must_use]
    pub fn cost(&self, node: &NodeId, key: &KeyId) -> Option<u16> {
        let relay = self.relays.iter().find(|link| link.to == *node);
        relay.map(|link| link.cost).or_else(|| {
            let short = short(key);
            let at = self
                .leaves
                .binary_search_by_key(&short, |(short, _)| *short);
            at.ok().map(|at| self.leaves[at].1)
        })
    }

    /// Whether `new` differs in which links there are, or who relays.
    #[must_use]
    pub fn reshaped(&self, new: &Self) -> bool {
        let relays = |state: &Self| -> Vec<NodeId> {
            state.relays.iter().map(|link| link.to.clone()).collect()
        };
        let leaves =
            |state: &Self| -> Vec<Short> { state.leaves.iter().map(|(short, _)| *short).collect() };
        self.relay != new.relay || relays(self) != relays(new) || leaves(self) != leaves(new)
    }

    /// Whether a link of this state is not in `new` any more.
    #[must_use]
    pub fn lost_some(&self, new: &Self) -> bool {
        let relay = |to: &NodeId| new.relays.iter().any(|link| link.to == *to);
        let leaf = |name: &Short| new.leaves.iter().any(|(short, _)| short == name);
        // One that has begun or ceased to relay is in the other list now, which is no loss; the
        // difference is told soon enough.
        self.relays.iter().any(|link| !relay(&link.to))
            || self.leaves.iter().any(|(short, _)| !leaf(short))
    }

    /// Whether costs or load have moved so far that the others should hear of it (protocol 6.4).
    #[must_use]
    pub fn moved(&self, new: &Self) -> bool {
        let far = |a: u16, b: u16| {
            let apart = u32::from(a.abs_diff(b));
            apart > 5 && apart * 5 > u32::from(a)
        };
        let relays = self.relays.iter().zip(&new.relays);
        let leaves = self.leaves.iter().zip(&new.leaves);
        let load = match (&self.load, &new.load) {
            (Some(old), Some(new)) => old.moved(new),
            (old, new) => old.is_some() != new.is_some(),
        };
        load || relays.clone().any(|(a, b)| far(a.cost, b.cost))
            || leaves.clone().any(|(a, b)| far(a.1, b.1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{mesh::testkit::node, wire::limits::LINK_STATE_BYTES};

    fn id(byte: u8) -> KeyId {
        KeyId([byte; 16])
    }

    fn sample() -> LinkState {
        LinkState {
            relay: true,
            relays: vec![ToRelay {
                to: node("cloud"),
                cost: 12,
            }],
            leaves: vec![(short(&id(1)), 7), (short(&id(9)), 10_000)],
            load: Some(Load {
                active: 1,
                queued: 0,
                cap: 4,
                ttfb_ms: 300,
            }),
        }
    }

    #[test]
    fn link_state_comes_back() {
        let read = LinkState::read(&sample().payload()).unwrap();
        assert_eq!(read, sample());
        assert_eq!(read.cost(&node("cloud"), &id(5)), Some(12));
        assert_eq!(read.cost(&node("home"), &id(9)), Some(10_000));
        assert_eq!(read.cost(&node("home"), &id(2)), None);
        assert_eq!(read.load.unwrap().share(), Some(0.25));
    }

    #[test]
    fn costs_are_clamped_and_odd_lists_refused() {
        let read = |text: &str| LinkState::read(text.as_bytes());
        let zero = read(r#"{"links":[{"to":"a","cost":0},{"to":"b","cost":65535}]}"#).unwrap();
        assert_eq!((zero.relays[0].cost, zero.relays[1].cost), (1, 10_000));
        assert!(read(r#"{"links":[{"to":"a","cost":1},{"to":"a","cost":2}]}"#).is_none());
        assert!(read(r#"{"links":[{"to":"bad name","cost":1}]}"#).is_none());
        assert!(read(r#"{"links":[{"to":"a","cost":-1}]}"#).is_none());
        assert!(read(r#"{"leaves":"AAAA"}"#).is_none(), "no whole entry");
        assert!(read(r#"{"leaves":"="}"#).is_none());
        assert!(read("[]").is_none());
        assert_eq!(read("{}"), Some(LinkState::default()));
    }

    #[test]
    fn the_longest_link_state_fits_its_record() {
        let relays = (0..100).map(|n| ToRelay {
            to: format!("{n:064}").parse().unwrap(),
            cost: 10_000,
        });
        let leaves = (0..3000_u64).map(|n| (n.to_be_bytes(), 10_000));
        let long = LinkState {
            relays: relays.collect(),
            leaves: leaves.collect(),
            ..sample()
        };
        let payload = long.payload();
        assert!(payload.len() <= LINK_STATE_BYTES, "{}", payload.len());
        let read = LinkState::read(&payload).unwrap();
        assert_eq!(read.leaves.len(), LINK_STATE_LEAVES);
        assert_eq!(read.relays.len(), LINK_STATE_RELAYS);
    }

    #[test]
    fn small_changes_are_not_told() {
        let old = sample();
        let mut new = sample();
        assert!(!old.moved(&new) && !old.reshaped(&new) && !old.lost_some(&new));
        new.relays[0].cost = 16;
        assert!(!old.moved(&new), "4 ms");
        new.relays[0].cost = 18;
        assert!(old.moved(&new), "6 of 12 ms");
        new = sample();
        new.leaves[1].1 = 8100;
        assert!(!old.moved(&new), "less than a fifth");
        new.load = Some(Load {
            active: 3,
            ..new.load.unwrap()
        });
        assert!(old.moved(&new));
        let one_place = |active| Load {
            active,
            cap: 1,
            ..Load::default()
        };
        assert!(one_place(0).moved(&one_place(1)), "full now");
        let begins_after = |ttfb_ms| Load {
            ttfb_ms,
            ..one_place(0)
        };
        assert!(!begins_after(10).moved(&begins_after(60)), "50 ms");
        assert!(!begins_after(1000).moved(&begins_after(1200)), "a fifth");
        assert!(begins_after(300).moved(&begins_after(400)));
        new = sample();
        new.leaves.pop();
        assert!(old.reshaped(&new) && old.lost_some(&new));
        assert!(new.reshaped(&old) && !new.lost_some(&old));
    }

    proptest! {
        #[test]
        fn any_bytes_read_or_fail(payload: Vec<u8>) {
            let _ = LinkState::read(&payload);
        }
    }
}
