//! Our own records: when each is signed anew (protocol 6.1, 6.4).

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    crypto::identity::{Identity, KeyId, PublicKey},
    ids::NodeId,
    mesh::{
        descriptor,
        linkstate::{LinkState, Load},
        signed::{self, Item, RecordKind, Signed, Version},
        view::Descriptor,
    },
    wire::limits::{
        LINK_STATE_BURST, LINK_STATE_EVERY, LINK_STATE_PER_NODE, RECORD_REFRESH, ROTATIONS_SHOWN,
    },
};

/// Links that come up together are told together.
const GATHER: Duration = Duration::from_millis(50);
/// Shortest time between two link states while there are turns left.
const APART: Duration = Duration::from_secs(1);

/// Why the others should hear of our links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A cost or our load has moved.
    Moved,
    /// A link has come.
    Appeared,
    /// A link is gone.
    Lost,
}

#[derive(Debug)]
struct Signing {
    version: Version,
    record: Signed,
    at: Instant,
}

/// What we say and when we said it.
#[derive(Debug)]
pub(super) struct Own {
    node: NodeId,
    identity: Arc<Identity>,
    id: KeyId,
    version: Version,
    descriptor: Descriptor,
    desc: Signing,
    /// Our links as they are, and as the others were told.
    links: LinkState,
    told: LinkState,
    ls: Signing,
    leave: Option<(Version, Signed)>,
    /// Our changes of key by the key given up, the newest last.
    rotations: Vec<(Item, Version, Signed)>,
    /// Since when the others should hear of what is different, and why.
    due: Option<(Due, Instant)>,
    /// Turns left for link states out of their usual time.
    turns: f64,
    turns_at: Instant,
}

impl Own {
    pub(super) fn new(
        node: NodeId,
        identity: Arc<Identity>,
        incarnation: u64,
        relay: bool,
        now: Instant,
    ) -> Self {
        let (descriptor, links) = (
            Descriptor::default(),
            LinkState {
                relay,
                ..LinkState::default()
            },
        );
        let signing = |kind, ver, payload: &[u8]| Signing {
            version: (incarnation, ver),
            record: signed::sign(&identity, &node, kind, (incarnation, ver), payload),
            at: now,
        };
        Self {
            id: identity.public().id(),
            version: (incarnation, 2),
            desc: signing(RecordKind::Descriptor, 1, &descriptor::payload(&descriptor)),
            ls: signing(RecordKind::LinkState, 2, &links.payload()),
            descriptor,
            told: links.clone(),
            links,
            leave: None,
            rotations: Vec::new(),
            due: None,
            turns: f64::from(LINK_STATE_BURST),
            turns_at: now,
            node,
            identity,
        }
    }

    pub(super) fn key(&self) -> PublicKey {
        self.identity.public()
    }

    pub(super) fn id(&self) -> KeyId {
        self.id
    }

    /// The newest number we have used.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Our changes of key, the newest last. The latest of them are what the others are to
    /// hear of before all else.
    pub(super) fn set_rotations(&mut self, records: &[Signed]) {
        let read = |record: &Signed| {
            let claim = signed::claim(&record.header).ok()?;
            let item = Item {
                kind: claim.kind,
                key: claim.key.id(),
            };
            Some((item, claim.version, record.clone()))
        };
        let from = records.len().saturating_sub(ROTATIONS_SHOWN);
        self.rotations = records[from..].iter().filter_map(read).collect();
    }

    /// Whether this is one of our changes of key.
    pub(super) fn has_rotation(&self, item: &Item) -> bool {
        self.rotations.iter().any(|(held, ..)| held == item)
    }

    fn item(&self, kind: RecordKind) -> Item {
        Item { kind, key: self.id }
    }

    fn sign(&mut self, kind: RecordKind, payload: &[u8]) -> (Version, Signed) {
        self.version.1 += 1;
        let record = signed::sign(&self.identity, &self.node, kind, self.version, payload);
        (self.version, record)
    }

    fn sign_descriptor(&mut self, now: Instant) -> Item {
        let payload = descriptor::payload(&self.descriptor);
        let (version, record) = self.sign(RecordKind::Descriptor, &payload);
        self.desc = Signing {
            version,
            record,
            at: now,
        };
        self.item(RecordKind::Descriptor)
    }

    fn sign_links(&mut self, now: Instant) -> Item {
        let payload = self.links.payload();
        let (version, record) = self.sign(RecordKind::LinkState, &payload);
        self.ls = Signing {
            version,
            record,
            at: now,
        };
        self.told = self.links.clone();
        self.due = None;
        self.item(RecordKind::LinkState)
    }

    /// Changes what we offer; the item to be told if it is another.
    pub(super) fn offer(&mut self, descriptor: Descriptor) -> Option<Item> {
        let same = self.descriptor == descriptor;
        self.descriptor = descriptor;
        let at = self.desc.at;
        (!same && self.leave.is_none()).then(|| self.sign_descriptor(at))
    }

    /// Our links are these now.
    pub(super) fn links(&mut self, mut links: LinkState, now: Instant) {
        links.load = self.links.load;
        links.relays.sort_by(|a, b| a.to.cmp(&b.to));
        links.leaves.sort_unstable_by_key(|(short, _)| *short);
        self.links = links;
        self.look(now);
    }

    /// How busy we are now.
    pub(super) fn load(&mut self, load: Option<Load>, now: Instant) {
        self.links.load = load;
        self.look(now);
    }

    fn look(&mut self, now: Instant) {
        let due = if self.told.lost_some(&self.links) {
            Due::Lost
        } else if self.told.reshaped(&self.links) {
            Due::Appeared
        } else if self.told.moved(&self.links) {
            Due::Moved
        } else {
            self.due = None;
            return;
        };
        let since = self.due.map_or(now, |(_, since)| since);
        self.due = Some((due, since));
    }

    /// Usual time between two link states.
    fn every(nodes: usize) -> Duration {
        LINK_STATE_EVERY.max(LINK_STATE_PER_NODE * u32::try_from(nodes).unwrap_or(u32::MAX))
    }

    /// Whether the others were told of our links as they are.
    #[cfg(test)]
    pub(super) fn has_told(&self) -> bool {
        self.due.is_none()
    }

    /// When our links are to be told; none when they are not.
    fn links_at(&self, nodes: usize, now: Instant) -> Option<Instant> {
        let (due, since) = self.due?;
        if self.leave.is_some() {
            return None;
        }
        let every = Self::every(nodes);
        let usual = self.ls.at + every;
        let passed = now.saturating_duration_since(self.turns_at);
        let turns = self.turns + passed.as_secs_f64() / every.as_secs_f64();
        Some(match due {
            Due::Moved => usual,
            _ if turns < 1.0 => usual.min(now + every.mul_f64(1.0 - turns)),
            // The first links of all follow a record that nobody has seen yet.
            Due::Appeared if self.told.relays.is_empty() && self.told.leaves.is_empty() => {
                since + GATHER
            }
            Due::Appeared => (since + GATHER).max(self.ls.at + APART.min(every)),
            Due::Lost => since,
        })
    }

    /// Signs our links anew if that is due.
    pub(super) fn due_links(&mut self, nodes: usize, now: Instant) -> Option<Item> {
        let at = self.links_at(nodes, now)?;
        if now < at {
            return None;
        }
        let passed = now.saturating_duration_since(self.turns_at);
        self.turns_at = now;
        let gained = passed.as_secs_f64() / Self::every(nodes).as_secs_f64();
        self.turns = (self.turns + gained).min(f64::from(LINK_STATE_BURST));
        self.turns = (self.turns - 1.0).max(0.0);
        Some(self.sign_links(now))
    }

    /// Signs anew what the others would forget soon. One of the two is enough to keep both alive.
    pub(super) fn refresh(&mut self, now: Instant) -> Option<Item> {
        let old = now.saturating_duration_since(self.ls.at) >= RECORD_REFRESH;
        (old && self.leave.is_none()).then(|| self.sign_links(now))
    }

    /// Says that we go away.
    pub(super) fn leave(&mut self) -> Item {
        if self.leave.is_none() {
            self.leave = Some(self.sign(RecordKind::Leave, b""));
        }
        self.item(RecordKind::Leave)
    }

    /// Goes on in another incarnation.
    pub(super) fn raise(&mut self, incarnation: u64, now: Instant) -> Vec<Item> {
        if incarnation <= self.version.0 || self.leave.is_some() {
            return Vec::new();
        }
        self.version = (incarnation, 0);
        vec![self.sign_descriptor(now), self.sign_links(now)]
    }

    /// What the others are to hear of us.
    pub(super) fn items(&self) -> Vec<Item> {
        self.versions().map(|(item, _)| item).collect()
    }

    pub(super) fn versions(&self) -> impl Iterator<Item = (Item, Version)> + '_ {
        let living = [
            (self.item(RecordKind::Descriptor), self.desc.version),
            (self.item(RecordKind::LinkState), self.ls.version),
        ];
        let left = self
            .leave
            .as_ref()
            .map(|(version, _)| (self.item(RecordKind::Leave), *version));
        let stays = left.is_none();
        let rotations = self
            .rotations
            .iter()
            .map(|(item, version, _)| (*item, *version));
        let living = living.into_iter().filter(move |_| stays);
        rotations.chain(living).chain(left)
    }

    pub(super) fn record(&self, item: &Item) -> Option<&Signed> {
        if item.kind == RecordKind::Rotation {
            let mut rotations = self.rotations.iter();
            return rotations
                .find(|(held, ..)| held == item)
                .map(|(.., record)| record);
        }
        if item.key != self.id {
            return None;
        }
        match item.kind {
            RecordKind::Descriptor => Some(&self.desc.record),
            RecordKind::LinkState => Some(&self.ls.record),
            RecordKind::Leave => self.leave.as_ref().map(|(_, record)| record),
            RecordKind::Rotation => None,
        }
    }

    /// When something of ours is due.
    pub(super) fn next(&self, nodes: usize, now: Instant) -> Instant {
        let refresh = self.ls.at + RECORD_REFRESH;
        self.links_at(nodes, now)
            .map_or(refresh, |at| refresh.min(at))
    }
}
