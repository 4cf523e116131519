//! How what nodes say of themselves spreads (protocol 6.4). Pure: no clock, no tasks, no sockets.
//!
//! ```text
//! our links and offer -> Own -- signed records --.
//! record of a neighbour -> Membership -- news ----+-> one outbox per neighbour -> drain
//! digest of a neighbour -> what differs -> vector -> want -> outbox
//! ```
//!
//! News go to every neighbour but the one they came from, once each, at a bounded rate. Neighbours
//! compare what they know when their link comes up and from time to time, so that whatever got lost
//! is made good. Nodes that do not relay need no fresh picture of the routes, so link states wait for
//! company on their way to them.

mod outbox;
mod own;
mod reconcile;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use self::{outbox::Outbox, own::Own, reconcile::Hashes};
use super::{
    bucket::Bucket,
    linkstate::{LinkState, Load},
    membership::{Introducer, Membership, Outcome, Revision},
    rotation,
    signed::{self, Item, RecordError, RecordKind, Signed, Version},
    view::Descriptor,
};
use crate::{
    crypto::identity::Identity,
    ids::{LinkId, NodeId},
    trust::{Level, TrustStore},
    wire::limits::{DIGEST_EVERY, LEAF_BATCH_PER_NODE},
};

/// How often old records are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(10);
/// Digests and vectors a second that are answered to one neighbour, and how many at once.
const ANSWERS: (u32, u32) = (1, 130);

/// What goes over a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// A signed record.
    Record(Signed),
    /// Hashes of all we know; `true` when link states are among it.
    Digest(bool, Bytes),
    /// Versions of what we know in some buckets; `true` asks for the same in return.
    Vector(bool, Bytes),
    /// Records we lack.
    Want(Bytes),
}

/// What came of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// As membership has it; on news, whose it is and what it says.
    Outcome(Outcome, NodeId, RecordKind),
    /// A record of our own from an earlier life: our numbers must grow beyond this incarnation.
    Ours(u64),
}

/// A neighbour that has just been linked.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// Its name.
    pub node: NodeId,
    /// How far we trust it.
    pub level: Level,
    /// Whether it relays, and is believed.
    pub relay: bool,
    /// Whether we dialed: one side of a new link begins to compare.
    pub dialed: bool,
}

#[derive(Debug)]
struct Peer {
    about: Neighbour,
    since: Instant,
    outbox: Outbox,
    /// Messages for this link alone, sent before its records.
    said: Vec<Out>,
    digest_at: Instant,
    answers: Bucket,
}

/// Everything that is known and who still has to hear of it.
#[derive(Debug)]
pub struct Gossip {
    us: NodeId,
    /// Whether we relay.
    relay: bool,
    trust: TrustStore,
    /// The other nodes.
    pub members: Membership,
    own: Own,
    peers: BTreeMap<LinkId, Peer>,
    expire_at: Instant,
    /// Spreads the neighbours' comparisons over time.
    jitter: u64,
    /// The hashes without and with link states.
    hashes: [Option<Hashed>; 2],
}

/// Hashes of all we know, kept until it changes: a node with a thousand links compares what it knows
/// dozens of times a second, and mostly nothing has happened.
#[derive(Debug)]
struct Hashed {
    members: Revision,
    own: Vec<(Item, Version)>,
    hashes: Hashes,
}

impl Gossip {
    /// We alone, with an empty offer. `incarnation` is on disk already.
    #[must_use]
    pub fn new(
        us: &NodeId,
        identity: Arc<Identity>,
        trust: TrustStore,
        incarnation: u64,
        relay: bool,
        now: Instant,
    ) -> Self {
        let id = identity.public().id();
        let seed =
            id.0.first_chunk()
                .map_or(1, |bytes| u64::from_be_bytes(*bytes));
        Self {
            us: us.clone(),
            relay,
            trust,
            members: Membership::default(),
            own: Own::new(us.clone(), identity, incarnation, relay, now),
            peers: BTreeMap::new(),
            expire_at: now + EXPIRE_EVERY,
            jitter: seed | 1,
            hashes: [None, None],
        }
    }

    /// Our changes of key, the newest last. Called before the first link.
    pub fn set_rotations(&mut self, records: &[Signed]) {
        self.own.set_rotations(records);
    }

    /// Nodes of the mesh, ourselves among them.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.members.count() + 1
    }

    fn next_digest(&mut self, now: Instant) -> Instant {
        // xorshift: any spread will do, and tests want the same one every time.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        now + DIGEST_EVERY.mul_f64(0.8 + 0.4 * (self.jitter % 1000) as f64 / 1000.0)
    }

    /// A link is up.
    pub fn link_up(&mut self, link: LinkId, about: Neighbour, now: Instant) {
        let digest_at = self.next_digest(now);
        let mut peer = Peer {
            since: now,
            outbox: Outbox::new(now),
            said: Vec::new(),
            digest_at,
            answers: Bucket::new(ANSWERS.0, ANSWERS.1, now),
            about,
        };
        for item in self.own.items() {
            peer.outbox.put(item);
        }
        if peer.about.dialed {
            let digest = reconcile::digest(self.hashes(true));
            peer.said.push(Out::Digest(true, digest));
        }
        self.peers.insert(link, peer);
    }

    /// A link is gone.
    pub fn link_down(&mut self, link: LinkId) {
        self.peers.remove(&link);
    }

    /// The operator trusts a neighbour more or less than before.
    pub fn level(&mut self, link: LinkId, level: Level) {
        if let Some(peer) = self.peers.get_mut(&link) {
            peer.about.level = level;
        }
    }

    /// Changes what we offer.
    pub fn set_offer(&mut self, descriptor: Descriptor) {
        if let Some(item) = self.own.offer(descriptor) {
            self.flood(item, None);
        }
    }

    /// What we offer now.
    #[must_use]
    pub fn offer(&self) -> &Descriptor {
        self.own.descriptor()
    }

    /// Our links are these now; the others hear of it when it is due.
    pub fn set_links(&mut self, links: LinkState, now: Instant) {
        self.own.links(links, now);
        self.tell_links(now);
    }

    /// How busy we are now.
    pub fn set_load(&mut self, load: Option<Load>, now: Instant) {
        self.own.load(load, now);
        self.tell_links(now);
    }

    fn tell_links(&mut self, now: Instant) {
        if let Some(item) = self.own.due_links(self.nodes(), now) {
            self.flood(item, None);
        }
    }

    /// Says that we go away, for good as far as this incarnation is concerned.
    pub fn leave(&mut self) {
        let item = self.own.leave();
        self.flood(item, None);
    }

    /// Our numbers go on in this incarnation, which is on disk already: an earlier life of ours used
    /// higher ones than we did.
    pub fn raise(&mut self, incarnation: u64, now: Instant) {
        for item in self.own.raise(incarnation, now) {
            self.flood(item, None);
        }
    }

    /// A signed record has come over `link`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn record(
        &mut self,
        link: LinkId,
        (header, body): (&[u8], &[u8]),
        now: Instant,
    ) -> Result<Taken, RecordError> {
        let claim = signed::claim(header)?;
        let item = Item {
            kind: claim.kind,
            key: claim.key.id(),
        };
        if claim.key == self.own.key() && claim.kind == RecordKind::Rotation {
            return self.stolen(&claim, (header, body));
        }
        if claim.key == self.own.key() {
            return self.own_record(&claim, (header, body));
        }
        let Some(peer) = self.peers.get(&link) else {
            return Ok(Taken::Outcome(Outcome::Old, claim.node, claim.kind));
        };
        let from = Introducer {
            node: peer.about.node.clone(),
            level: peer.about.level,
            since: peer.since,
        };
        let outcome = if self.own.has_rotation(&item) {
            Outcome::Old
        } else if claim.node == self.us {
            Outcome::Refused
        } else {
            self.members
                .take(&claim, (header, body), &from, &self.trust, now)?
        };
        match outcome {
            Outcome::News => self.flood(item, Some(link)),
            // The neighbour has it as well: no need to send it back.
            Outcome::Old if self.members.version(&item) == Some(claim.version) => {
                if let Some(peer) = self.peers.get_mut(&link) {
                    peer.outbox.drop_item(&item);
                }
            }
            // Both records together show it to everybody; the first is known already.
            Outcome::Equivocation(true) => {
                let record = Signed::copied(header, body);
                for (_, peer) in self.peers.iter_mut().filter(|(to, _)| **to != link) {
                    peer.said.push(Out::Record(record.clone()));
                }
            }
            Outcome::Old
            | Outcome::Equivocation(false)
            | Outcome::Refused
            | Outcome::Limited
            | Outcome::TooFast => {}
        }
        Ok(Taken::Outcome(outcome, claim.node, claim.kind))
    }

    /// Our present key is given up, and not by us: somebody else has it. Nothing but the operator can
    /// help, so the operator hears of it.
    fn stolen(
        &self,
        claim: &signed::Claim,
        (header, body): (&[u8], &[u8]),
    ) -> Result<Taken, RecordError> {
        let rotation = rotation::verify(claim, header, body)?;
        let why = "this node did not make it: somebody else has its key";
        self.trust.refuse_rotation(&claim.node, &rotation.new, why);
        let refused = Outcome::Refused;
        Ok(Taken::Outcome(refused, claim.node.clone(), claim.kind))
    }

    fn own_record(
        &mut self,
        claim: &signed::Claim,
        (header, body): (&[u8], &[u8]),
    ) -> Result<Taken, RecordError> {
        if claim.version <= self.own.version() || claim.node != self.us {
            return Ok(Taken::Outcome(Outcome::Old, claim.node.clone(), claim.kind));
        }
        signed::verify(claim, header, body)?;
        Ok(Taken::Ours(claim.version.0))
    }

    /// Queues an item for every neighbour but the one it came from.
    fn flood(&mut self, item: Item, from: Option<LinkId>) {
        for (link, peer) in &mut self.peers {
            if Some(*link) == from {
                continue;
            }
            let ours = item.key == self.own.id();
            if item.kind == RecordKind::LinkState && !peer.about.relay && !ours {
                peer.outbox.put_later(item);
            } else {
                peer.outbox.put(item);
            }
        }
    }

    /// A message of a neighbour about what it knows; wrong ones change nothing.
    ///
    /// # Errors
    /// Why the neighbour broke the protocol.
    pub fn message(
        &mut self,
        link: LinkId,
        message: Comparison<'_>,
        now: Instant,
    ) -> Result<(), &'static str> {
        let limited = |peer: &mut Peer| !peer.answers.take_strictly(now);
        match message {
            Comparison::Digest(links, theirs) => {
                let theirs = reconcile::read_digest(theirs).ok_or("malformed digest")?;
                let differs = reconcile::differing(self.hashes(links), &theirs);
                if differs == 0 {
                    return Ok(());
                }
                let items = self.all_items(links);
                let Some(peer) = self.peers.get_mut(&link) else {
                    return Ok(());
                };
                if !limited(peer) {
                    let vectors = reconcile::vectors(&items, differs);
                    let out = vectors.into_iter().map(|body| Out::Vector(true, body));
                    peer.said.extend(out);
                }
            }
            Comparison::Vector(ask, theirs) => {
                let (buckets, theirs) = reconcile::read_vector(theirs).ok_or("malformed vector")?;
                let ours = if ask {
                    self.all_items(true)
                } else {
                    Vec::new()
                };
                let lacking: Vec<Item> = theirs
                    .into_iter()
                    .filter(|(item, version)| {
                        if item.key == self.own.id() {
                            // Of an earlier life with greater numbers: its signature must be seen.
                            return *version > self.own.version();
                        }
                        if self.own.has_rotation(item) {
                            return false;
                        }
                        self.members.lacks(item, *version)
                    })
                    .map(|(item, _)| item)
                    .collect();
                let Some(peer) = self.peers.get_mut(&link) else {
                    return Ok(());
                };
                if !lacking.is_empty() {
                    peer.said.push(Out::Want(reconcile::want(&lacking)));
                }
                if ask && !limited(peer) {
                    let vectors = reconcile::vectors(&ours, buckets);
                    let out = vectors.into_iter().map(|body| Out::Vector(false, body));
                    peer.said.extend(out);
                }
            }
            Comparison::Want(wanted) => {
                let wanted = reconcile::read_want(wanted).ok_or("malformed want")?;
                if let Some(peer) = self.peers.get_mut(&link) {
                    for item in wanted {
                        peer.outbox.put(item);
                    }
                }
            }
        }
        Ok(())
    }

    /// Everything we could pass on: the others' records and our own.
    fn all_items(&self, links: bool) -> Vec<(Item, Version)> {
        let all = self.members.items().chain(self.own.versions());
        all.filter(|(item, _)| links || item.kind != RecordKind::LinkState)
            .collect()
    }

    /// The hashes of [`Gossip::all_items`].
    fn hashes(&mut self, links: bool) -> &Hashes {
        let mut members = self.members.revision();
        if !links {
            members.links = 0;
        }
        let own = self.own.versions();
        let own: Vec<_> = own
            .filter(|(item, _)| links || item.kind != RecordKind::LinkState)
            .collect();
        let held = self.hashes[usize::from(links)].take();
        let held = held.filter(|held| held.members == members && held.own == own);
        let fresh = || Hashed {
            hashes: reconcile::hashes(self.all_items(links)),
            members,
            own,
        };
        let hashed = held.unwrap_or_else(fresh);
        &self.hashes[usize::from(links)].insert(hashed).hashes
    }

    /// What is kept is what would be worked out now.
    #[cfg(test)]
    fn check_hashes(&mut self) {
        for links in [false, true] {
            let now = reconcile::hashes(self.all_items(links));
            assert_eq!(*self.hashes(links), now, "with links: {links}");
        }
    }

    /// Does what is due. True when something about other nodes has changed.
    pub fn tick(&mut self, now: Instant) -> bool {
        if let Some(item) = self.own.refresh(now) {
            self.flood(item, None);
        }
        self.tell_links(now);
        let due: Vec<LinkId> = self
            .peers
            .iter()
            .filter(|(_, peer)| now >= peer.digest_at)
            .map(|(link, _)| *link)
            .collect();
        for link in due {
            let next = self.next_digest(now);
            let links = self.relay && self.peers[&link].about.relay;
            let digest = reconcile::digest(self.hashes(links));
            if let Some(peer) = self.peers.get_mut(&link) {
                peer.digest_at = next;
                peer.said.push(Out::Digest(links, digest));
            }
        }
        if now < self.expire_at {
            return false;
        }
        self.expire_at = now + EXPIRE_EVERY;
        self.members.expire(&self.trust, now)
    }

    /// Gives out what may be sent now. `room` says how many more messages a link's queue takes.
    pub fn drain(
        &mut self,
        now: Instant,
        room: impl Fn(LinkId) -> usize,
        mut send: impl FnMut(LinkId, Out),
    ) {
        let batch = LEAF_BATCH_PER_NODE * u32::try_from(self.nodes()).unwrap_or(u32::MAX);
        let (own, members) = (&self.own, &self.members);
        for (link, peer) in &mut self.peers {
            let mut left = room(*link);
            while left > 0 && !peer.said.is_empty() {
                send(*link, peer.said.remove(0));
                left -= 1;
            }
            peer.outbox.release(batch, now);
            let record = |item: &Item| own.record(item).or_else(|| members.record(item)).cloned();
            while left > 0
                && let Some(record) = peer.outbox.pop(now, record)
            {
                send(*link, Out::Record(record));
                left -= 1;
            }
        }
    }

    /// When [`Gossip::tick`] and [`Gossip::drain`] are to be called again at the latest.
    #[must_use]
    pub fn next(&self, now: Instant) -> Instant {
        let mut next = self.expire_at.min(self.own.next(self.nodes(), now));
        for peer in self.peers.values() {
            next = next.min(peer.digest_at);
            if !peer.said.is_empty() {
                return now;
            }
            if let Some(at) = peer.outbox.next(now) {
                next = next.min(at);
            }
        }
        next
    }
}

/// What neighbours tell one another to find what differs.
#[derive(Debug, Clone, Copy)]
pub enum Comparison<'a> {
    /// Hashes of all the neighbour knows; `true` when link states are among it.
    Digest(bool, &'a [u8]),
    /// Versions of some of it; `true` asks for ours in return.
    Vector(bool, &'a [u8]),
    /// Records it lacks.
    Want(&'a [u8]),
}
