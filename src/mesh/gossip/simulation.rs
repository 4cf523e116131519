//! Many nodes in virtual time: whole engines, delays between them, no sockets.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::*;
use crate::{
    config::TrustConfig,
    crypto::identity::Identity,
    mesh::{
        linkstate::{ToRelay, short},
        testkit::{node, peer_with},
    },
};

/// Travel time of a message.
const DELAY: Duration = Duration::from_millis(20);

/// One simulated node.
pub(super) struct Node {
    pub(super) name: NodeId,
    pub(super) identity: Arc<Identity>,
    pub(super) relay: bool,
    pub(super) gossip: Gossip,
    links: BTreeMap<LinkId, usize>,
}

enum Event {
    Arrives(usize, LinkId, Out),
    Timer(usize),
}

/// A mesh of simulated nodes.
pub(super) struct Net {
    pub(super) nodes: Vec<Node>,
    pub(super) now: Instant,
    pub(super) start: Instant,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    events: BTreeMap<u64, Event>,
    timers: Vec<Option<Instant>>,
    next: u64,
    /// Bytes of records and messages sent so far.
    pub(super) bytes: u64,
    /// Records sent so far.
    pub(super) records: u64,
}

impl Net {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            nodes: Vec::new(),
            now,
            start: now,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            timers: Vec::new(),
            next: 0,
            bytes: 0,
            records: 0,
        }
    }

    pub(super) fn add(&mut self, name: &str, relay: bool) -> usize {
        self.add_with(name, relay, Arc::new(Identity::generate()), 1)
    }

    pub(super) fn add_with(
        &mut self,
        name: &str,
        relay: bool,
        identity: Arc<Identity>,
        incarnation: u64,
    ) -> usize {
        let name = node(name);
        let trust = TrustStore::in_memory(&TrustConfig::default(), &[]).unwrap();
        let gossip = Gossip::new(&name, identity.clone(), trust, incarnation, relay, self.now);
        self.nodes.push(Node {
            name,
            identity,
            relay,
            gossip,
            links: BTreeMap::new(),
        });
        self.timers.push(None);
        self.nodes.len() - 1
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((at, self.next)));
        self.events.insert(self.next, event);
    }

    pub(super) fn link(&mut self, a: usize, b: usize) -> LinkId {
        self.next += 1;
        let link = LinkId(self.next);
        for (us, them, dialed) in [(a, b, true), (b, a, false)] {
            let about = Neighbour {
                node: self.nodes[them].name.clone(),
                level: Level::Trusted,
                relay: self.nodes[them].relay,
                dialed,
            };
            let peer = peer_with(&self.nodes[them].name, self.nodes[them].identity.public());
            let now = self.now;
            let node = &mut self.nodes[us];
            node.links.insert(link, them);
            node.gossip
                .members
                .up(&peer, "test", std::time::SystemTime::UNIX_EPOCH);
            node.gossip.link_up(link, about, now);
            self.tell_links(us);
        }
        link
    }

    pub(super) fn linked(&self, a: usize, b: usize) -> bool {
        self.nodes[a].links.values().any(|them| *them == b)
    }

    pub(super) fn cut(&mut self, link: LinkId) {
        for us in 0..self.nodes.len() {
            if let Some(them) = self.nodes[us].links.remove(&link) {
                let name = self.nodes[them].name.clone();
                let node = &mut self.nodes[us];
                node.gossip.link_down(link);
                let linked = node.links.values().any(|other| *other == them);
                if !linked {
                    let wall = std::time::SystemTime::UNIX_EPOCH;
                    node.gossip.members.down(&name, "cut".into(), wall);
                }
                self.tell_links(us);
            }
        }
    }

    fn tell_links(&mut self, us: usize) {
        let mut state = LinkState {
            relay: self.nodes[us].relay,
            ..LinkState::default()
        };
        for them in self.nodes[us].links.values() {
            let them = &self.nodes[*them];
            if them.relay {
                let to = them.name.clone();
                state.relays.push(ToRelay { to, cost: 20 });
            } else {
                let id = them.identity.public().id();
                state.leaves.push((short(&id), 20));
            }
        }
        let now = self.now;
        self.nodes[us].gossip.set_links(state, now);
        self.flush(us);
    }

    /// Sends what a node may send now, and comes back when it may send more.
    pub(super) fn flush(&mut self, us: usize) {
        if self.nodes.len() <= 4 {
            self.nodes[us].gossip.check_hashes();
        }
        let mut sent = Vec::new();
        let now = self.now;
        self.nodes[us]
            .gossip
            .drain(now, |_| 512, |link, out| sent.push((link, out)));
        for (link, out) in sent {
            self.bytes += match &out {
                Out::Record(record) => record.bytes() as u64,
                Out::Digest(_, body) | Out::Vector(_, body) | Out::Want(body) => body.len() as u64,
            };
            self.records += u64::from(matches!(out, Out::Record(_)));
            if let Some(them) = self.nodes[us].links.get(&link).copied() {
                self.schedule(now + DELAY, Event::Arrives(them, link, out));
            }
        }
        let due = self.nodes[us].gossip.next(now).max(now + DELAY / 4);
        if self.timers[us].is_none_or(|at| due < at || at <= now) {
            self.timers[us] = Some(due);
            self.schedule(due, Event::Timer(us));
        }
    }

    fn deliver(&mut self, us: usize, link: LinkId, out: &Out) {
        let now = self.now;
        let node = &mut self.nodes[us];
        if !node.links.contains_key(&link) {
            return;
        }
        let gossip = &mut node.gossip;
        match out {
            Out::Record(record) => {
                let taken = gossip.record(link, (&record.header, &record.body), now);
                if let Taken::Ours(incarnation) = taken.unwrap() {
                    gossip.raise(incarnation + 1, now);
                }
            }
            Out::Digest(ls, body) => gossip
                .message(link, Comparison::Digest(*ls, body), now)
                .unwrap(),
            Out::Vector(ask, body) => {
                gossip
                    .message(link, Comparison::Vector(*ask, body), now)
                    .unwrap();
            }
            Out::Want(body) => gossip.message(link, Comparison::Want(body), now).unwrap(),
        }
        self.flush(us);
    }

    /// Lets time pass until `good` holds; how long that took. Looks ten times a second.
    pub(super) fn until(&mut self, most: Duration, good: impl Fn(&Self) -> bool) -> Duration {
        let began = self.now;
        while !good(self) {
            assert!(self.now - began < most, "not within {most:?}");
            self.pass(Duration::from_millis(100));
        }
        self.now - began
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(Reverse((at, id))) = self.queue.peek().copied() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.now = at;
            match self.events.remove(&id) {
                Some(Event::Arrives(us, link, out)) => self.deliver(us, link, &out),
                Some(Event::Timer(us)) if self.timers[us] == Some(at) => {
                    self.timers[us] = None;
                    self.nodes[us].gossip.tick(at);
                    self.flush(us);
                }
                Some(Event::Timer(_)) | None => {}
            }
        }
        self.now = end;
    }

    /// Whether node `a` has the current record of this kind of node `b`.
    pub(super) fn has(&self, a: usize, b: usize, kind: RecordKind) -> bool {
        let key = self.nodes[b].identity.public().id();
        let item = Item { kind, key };
        let own = self.nodes[b].gossip.own.record(&item);
        a == b || self.nodes[a].gossip.members.record(&item) == own
    }

    /// Whether every node has the descriptors of all, and every relay their links.
    pub(super) fn converged(&self) -> bool {
        let all = 0..self.nodes.len();
        let told = |node: &Node| node.gossip.own.has_told();
        self.nodes.iter().all(told)
            && all.clone().all(|a| {
                all.clone().all(|b| {
                    self.has(a, b, RecordKind::Descriptor)
                        && (!self.nodes[a].relay || self.has(a, b, RecordKind::LinkState))
                })
            })
    }
}
