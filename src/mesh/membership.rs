//! What is known about every other node: its signed records, our own links to it, and what both
//! amount to (protocol 6.1, 6.2). Pure: time comes in as an argument.
//!
//! A record is believed about the node that signed it and about nobody else. Which names and keys may
//! appear here is the trust store's decision; how many may appear without ever having been met is
//! decided here. What is gone leaves a tombstone, else neighbours that forget at different times would
//! keep it alive among them for ever.

mod admission;
mod known;
mod rotations;
#[cfg(test)]
mod tests;
mod tombs;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use tokio::time::Instant;

use self::{admission::Introducers, rotations::Rotations, tombs::Tombs};
use super::{
    bucket::Bucket,
    descriptor,
    linkstate::LinkState,
    session::Peer,
    signed::{self, Claim, Item, RecordError, RecordKind, Signed, Version},
    view::{Descriptor, NodeView, Reach, View},
};
use crate::{
    crypto::identity::{KeyId, PublicKey},
    ids::NodeId,
    trust::{Level, TrustStore},
    wire::limits::{
        CONTRADICTION_EVERY, RECORD_EXPIRY, RECORDS_PER_NODE_BURST, RECORDS_PER_NODE_SECOND,
        TOMBSTONE_AGE,
    },
};

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is the newest of its kind and node: to be passed on.
    News,
    /// We have it, or a newer one, or know that its node is gone.
    Old,
    /// Another text under a number we have seen: the first is kept. True when the others are to hear
    /// of it, since they have not of late.
    Equivocation(bool),
    /// Its node signs new records faster than they are taken.
    TooFast,
    /// Its name or key is not believed here.
    Refused,
    /// Too many unknown names, in all or over this neighbour.
    Limited,
}

/// Who passed a record on.
#[derive(Debug, Clone)]
pub struct Introducer {
    /// The neighbour.
    pub node: NodeId,
    /// How far we trust it.
    pub level: Level,
    /// When its link came up.
    pub since: Instant,
}

#[derive(Debug)]
struct Held {
    version: Version,
    signed: Signed,
}

#[derive(Debug, Default)]
struct Member {
    key: Option<PublicKey>,
    level: Option<Level>,
    linked: bool,
    latency_ms: Option<f64>,
    descriptor: Arc<Descriptor>,
    links: Arc<LinkState>,
    /// Its descriptor and link state, by [`RecordKind`].
    records: [Option<Held>; 2],
    /// When a record of it last was news.
    fresh: Option<Instant>,
    /// Since when it is known to go away on purpose.
    left: Option<Instant>,
    /// The neighbour that brought the first record of a name we had never met.
    introducer: Option<NodeId>,
    configured: bool,
    /// How fast its records have come.
    pace: Option<Bucket>,
    /// When it last contradicted itself and the others were told.
    contradicted: Option<Instant>,
    last_seen: Option<SystemTime>,
    problem: Option<String>,
}

impl Member {
    /// What another key said under this name does not count any more.
    fn forget_records(&mut self) {
        self.records = [None, None];
        self.links = Arc::default();
        self.fresh = None;
        self.left = None;
    }

    /// A record of it was taken. Forged ones never are, so nobody else can use up what it may say.
    fn spoke(&mut self, now: Instant) {
        let new = || Bucket::new(RECORDS_PER_NODE_SECOND, RECORDS_PER_NODE_BURST, now);
        self.pace.get_or_insert_with(new).take_strictly(now);
    }

    fn newest(&self) -> Option<Version> {
        self.records.iter().flatten().map(|held| held.version).max()
    }
}

/// How a node is reached now, as the routes have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Passage {
    /// The neighbour through which, when there is no link of our own.
    pub via: Option<NodeId>,
    /// Round trip in milliseconds, when known.
    pub latency_ms: Option<f64>,
}

/// One node for the topology.
#[derive(Debug)]
pub struct Vertex<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its key.
    pub key: KeyId,
    /// Its links, as it says.
    pub links: &'a LinkState,
    /// Whether it takes new requests of others: not while it leaves.
    pub stays: bool,
}

/// Every configured, met or announced node.
#[derive(Debug, Default)]
pub struct Membership {
    members: BTreeMap<NodeId, Member>,
    /// Which name a key that has records goes by.
    names: HashMap<KeyId, NodeId>,
    tombs: Tombs,
    rotations: Rotations,
    introducers: Introducers,
    revision: Revision,
}

/// Counts changes of the records of [`Membership::items`], so that what is worked out of them can be
/// kept. Link states are apart: they change all the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revision {
    /// Of link states.
    pub links: u64,
    /// Of everything; a change here may be one of link states, too.
    pub other: u64,
}

impl Membership {
    /// A node of our configuration; it is shown before it was ever seen.
    pub fn configured(&mut self, node: &NodeId) {
        self.members.entry(node.clone()).or_default().configured = true;
    }

    /// A link to a node is up.
    pub fn up(&mut self, peer: &Peer, software: &str, now: SystemTime) {
        let member = self.members.entry(peer.node.clone()).or_default();
        if member.key != Some(peer.key) {
            // Another key is another node, whatever its name: nothing it said before counts.
            if let Some(old) = member.key {
                self.names.remove(&old.id());
            }
            member.forget_records();
            self.revision.other += 1;
            member.descriptor = Arc::new(Descriptor {
                software: software.to_owned(),
                ..Descriptor::default()
            });
        }
        member.key = Some(peer.key);
        member.level = Some(peer.level);
        member.introducer = None;
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

    /// Why a configured node cannot be reached over a link of ours. True when that is new.
    pub fn problem(&mut self, node: &NodeId, problem: &str) -> bool {
        let member = self.members.entry(node.clone()).or_default();
        if member.linked || member.problem.as_deref() == Some(problem) {
            return false;
        }
        member.problem = Some(problem.to_owned());
        true
    }

    /// Asks the trust store about everybody anew, after it has changed.
    pub fn judge_again(&mut self, trust: &TrustStore, now: Instant) {
        // A handshake may have brought a new key of a node.
        let given_up = self.members.iter().filter_map(|(node, member)| {
            let key = member.key?;
            let current = trust.current(&key);
            (current != key).then(|| (node.clone(), key, current))
        });
        for (node, old, new) in given_up.collect::<Vec<_>>() {
            self.rekey(&node, old, new, now);
        }
        for (node, member) in &mut self.members {
            let Some(key) = member.key else { continue };
            if let Ok(level) = trust.see(node, &key, false) {
                member.level = Some(level);
            } else {
                // Its links end elsewhere.
                if let Some(version) = member.newest() {
                    self.tombs.bury(key.id(), version, now);
                }
                self.names.remove(&key.id());
                member.forget_records();
                self.revision.other += 1;
                member.level = None;
            }
        }
    }

    /// Something came from a linked node; its round trip may be known by now.
    pub fn alive(&mut self, node: &NodeId, latency_ms: Option<f64>, now: SystemTime) {
        if let Some(member) = self.members.get_mut(node).filter(|member| member.linked) {
            member.latency_ms = latency_ms;
            member.last_seen = Some(now);
        }
    }

    /// What speaks against a claim before its signature is looked at; none when it may be news.
    fn stale(&self, claim: &Claim, body: &[u8]) -> Option<Outcome> {
        let id = claim.key.id();
        if self.tombs.covers(&id, claim.version) {
            return Some(Outcome::Old);
        }
        let name = self.names.get(&id)?;
        let member = self.members.get(name)?;
        if *name != claim.node {
            // The node goes by another name now. Whichever is newer counts.
            let newest = member.newest()?;
            return (newest >= claim.version).then_some(Outcome::Old);
        }
        let held = match claim.kind {
            RecordKind::Leave => return (member.newest()? > claim.version).then_some(Outcome::Old),
            kind => member.records[kind as usize].as_ref()?,
        };
        match held.version.cmp(&claim.version) {
            std::cmp::Ordering::Greater => Some(Outcome::Old),
            std::cmp::Ordering::Equal if held.signed.body == body => Some(Outcome::Old),
            std::cmp::Ordering::Equal => Some(Outcome::Equivocation(false)),
            std::cmp::Ordering::Less => None,
        }
    }

    /// Takes a record that `from` passed on. Its signature is checked only if it could be news.
    ///
    /// # Errors
    /// [`RecordError`]; the record changes nothing then.
    pub fn take(
        &mut self,
        claim: &Claim,
        (header, body): (&[u8], &[u8]),
        from: &Introducer,
        trust: &TrustStore,
        now: Instant,
    ) -> Result<Outcome, RecordError> {
        if claim.kind == RecordKind::Rotation {
            return self.take_rotation(claim, (header, body), from, trust, now);
        }
        if trust
            .given_up(&claim.key)
            .is_some_and(|seq| claim.version.0 <= seq)
        {
            // Said before the key was given up: no news, and nothing to be alarmed at.
            self.tombs.bury(claim.key.id(), claim.version, now);
            return Ok(Outcome::Old);
        }
        let stale = self.stale(claim, body);
        if stale == Some(Outcome::Old) {
            return Ok(Outcome::Old);
        }
        let pace = self
            .member_of(claim)
            .and_then(|member| member.pace.as_ref());
        if stale.is_none() && pace.is_some_and(|pace| !pace.has_room(now)) {
            return Ok(Outcome::TooFast);
        }
        let payload = signed::verify(claim, header, body)?;
        if stale.is_some() {
            return Ok(Outcome::Equivocation(self.contradicts(claim, now)));
        }
        let said = Said::read(claim.kind, payload).ok_or(RecordError::Malformed)?;
        let vouched = from.level == Level::Trusted;
        let Ok(level) = trust.see(&claim.node, &claim.key, vouched) else {
            return Ok(Outcome::Refused);
        };
        if !self.admit(claim, level, from, now) {
            if level == Level::Seen && !self.names.contains_key(&claim.key.id()) {
                trust.forget(&claim.node, &claim.key);
            }
            return Ok(Outcome::Limited);
        }
        self.keep(claim, Signed::copied(header, body), said, level, now);
        if level == Level::Seen
            && claim.node != from.node
            && let Some(member) = self.members.get_mut(&claim.node)
        {
            member.introducer.get_or_insert_with(|| from.node.clone());
        }
        Ok(Outcome::News)
    }

    /// The node with this key, if records of it live here.
    fn member_of(&mut self, claim: &Claim) -> Option<&mut Member> {
        self.members.get_mut(self.names.get(&claim.key.id())?)
    }

    /// A node has signed two records with one number. Whether the others are to hear of it.
    fn contradicts(&mut self, claim: &Claim, now: Instant) -> bool {
        let Some(member) = self.member_of(claim) else {
            return false;
        };
        let age = |at: Instant| now.saturating_duration_since(at);
        let lately = member
            .contradicted
            .is_some_and(|at| age(at) < CONTRADICTION_EVERY);
        if !lately {
            member.contradicted = Some(now);
        }
        !lately
    }

    /// Whether there is room for a node's records. A node that is pinned always finds some.
    fn admit(&mut self, claim: &Claim, level: Level, from: &Introducer, now: Instant) -> bool {
        let id = claim.key.id();
        if let Some(old) = self.names.get(&id).filter(|old| **old != claim.node) {
            // Renamed: the old name's records are superseded, whoever of us heard of it first.
            let old = old.clone();
            self.names.remove(&id);
            if let Some(member) = self.members.get_mut(&old) {
                member.forget_records();
                self.revision.other += 1;
            }
            self.drop_if_unmet(&old);
        }
        if self.names.contains_key(&id) {
            return true;
        }
        if self.names.len() >= crate::wire::limits::MESH_NODES && !self.make_room(level) {
            return false;
        }
        if level > Level::Seen || claim.node == from.node {
            return true;
        }
        let brought = self
            .members
            .values()
            .filter(|member| member.introducer.as_ref() == Some(&from.node))
            .count();
        self.introducers.allow(from, brought, now)
    }

    /// Makes room for a pinned node by forgetting one that was never met.
    fn make_room(&mut self, level: Level) -> bool {
        if level == Level::Seen {
            return false;
        }
        let unmet = self
            .members
            .iter()
            .find(|(_, member)| member.level == Some(Level::Seen) && !member.linked)
            .map(|(node, _)| node.clone());
        let Some(node) = unmet else { return false };
        self.revision.other += 1;
        if let Some(key) = self.members.remove(&node).and_then(|member| member.key) {
            self.names.remove(&key.id());
        }
        true
    }

    fn keep(&mut self, claim: &Claim, signed: Signed, said: Said, level: Level, now: Instant) {
        let id = claim.key.id();
        if claim.kind == RecordKind::Leave {
            self.tombs.leave(id, claim.version, signed, now);
            // Its links still carry what it finishes; they go with it.
            if let Some(member) = self.members.get_mut(&claim.node) {
                member.left = Some(now);
                member.records = [None, None];
                self.revision.other += 1;
                member.spoke(now);
            }
            return;
        }
        self.tombs.lift(&id);
        let member = self.members.entry(claim.node.clone()).or_default();
        if member.key != Some(claim.key) {
            member.forget_records();
            self.revision.other += 1;
            member.descriptor = Arc::default();
        }
        member.key = Some(claim.key);
        member.level = Some(level);
        member.left = None;
        member.fresh = Some(now);
        member.spoke(now);
        // For people to look at, never compared with anything.
        member.last_seen = Some(SystemTime::now());
        match said {
            Said::Descriptor(descriptor) => member.descriptor = Arc::new(descriptor),
            Said::LinkState(links) => member.links = Arc::new(links),
            Said::Leave => {}
        }
        member.records[claim.kind as usize] = Some(Held {
            version: claim.version,
            signed,
        });
        match claim.kind {
            RecordKind::LinkState => self.revision.links += 1,
            RecordKind::Descriptor | RecordKind::Leave | RecordKind::Rotation => {
                self.revision.other += 1;
            }
        }
        self.names.insert(id, claim.node.clone());
    }

    /// Forgets what is too old (protocol 6.1, 6.4): records that their node did not sign anew, links
    /// of those that left, tombstones.
    pub fn expire(&mut self, trust: &TrustStore, now: Instant) -> bool {
        let mut forgotten = Vec::new();
        let mut changed = self.tombs.expire(now, TOMBSTONE_AGE);
        for (node, member) in &mut self.members {
            let age = |since: Option<Instant>| since.map(|at| now.saturating_duration_since(at));
            let gone = age(member.left).is_some_and(|age| age >= LEFT_LINKS);
            let silent =
                !member.linked && age(member.fresh).is_some_and(|age| age >= RECORD_EXPIRY);
            if !gone && !silent {
                continue;
            }
            if let (Some(key), Some(version)) = (member.key, member.newest()) {
                self.tombs.bury(key.id(), version, now);
            }
            if let Some(key) = member.key {
                self.names.remove(&key.id());
            }
            let left = member.left.is_some();
            member.forget_records();
            self.revision.other += 1;
            if left && !member.linked {
                member.problem = Some("has left the mesh".to_owned());
            }
            forgotten.push(node.clone());
            changed = true;
        }
        for node in forgotten {
            if let Some(key) = self.drop_if_unmet(&node) {
                trust.forget(&node, &key);
            }
        }
        self.introducers.tidy(now);
        changed
    }

    /// Forgets a node that nobody here has met, and gives its key.
    fn drop_if_unmet(&mut self, node: &NodeId) -> Option<PublicKey> {
        let member = self.members.get(node)?;
        let unmet = member.level == Some(Level::Seen) && !member.linked && !member.configured;
        if !unmet {
            return None;
        }
        self.revision.other += 1;
        self.members.remove(node)?.key
    }
}

/// How long the links of a node that has left still count: it finishes what runs, at most this long.
const LEFT_LINKS: std::time::Duration = std::time::Duration::from_secs(60);

/// What a payload says.
enum Said {
    Descriptor(Descriptor),
    LinkState(LinkState),
    Leave,
}

impl Said {
    fn read(kind: RecordKind, payload: &[u8]) -> Option<Self> {
        match kind {
            RecordKind::Descriptor => descriptor::read(payload).map(Self::Descriptor),
            RecordKind::LinkState => LinkState::read(payload).map(Self::LinkState),
            RecordKind::Leave => Some(Self::Leave),
            // Taken elsewhere.
            RecordKind::Rotation => None,
        }
    }
}
