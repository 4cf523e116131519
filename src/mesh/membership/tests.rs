//! Records in and out. Numbers T.. are those of protocol 10.

use std::time::Duration;

use super::*;
use crate::{
    config::TrustConfig,
    crypto::identity::Identity,
    mesh::testkit::{node, peer},
    trust::Via,
    wire::limits::{MESH_NODES, SEEN_PER_NEIGHBOUR},
};

const SECOND: Duration = Duration::from_secs(1);

/// A node that signs whatever a test wants.
struct Signer {
    name: NodeId,
    identity: Identity,
}

impl Signer {
    fn new(name: &str) -> Self {
        Self {
            name: node(name),
            identity: Identity::generate(),
        }
    }

    fn desc(&self, version: Version, software: &str) -> Signed {
        let descriptor = Descriptor {
            software: software.into(),
            ..Descriptor::default()
        };
        let payload = descriptor::payload(&descriptor);
        self.sign(RecordKind::Descriptor, version, &payload)
    }

    fn leave(&self, version: Version) -> Signed {
        self.sign(RecordKind::Leave, version, b"")
    }

    fn sign(&self, kind: RecordKind, version: Version, payload: &[u8]) -> Signed {
        signed::sign(&self.identity, &self.name, kind, version, payload)
    }
}

struct Bench {
    members: Membership,
    trust: TrustStore,
    from: Introducer,
    now: Instant,
    /// What there was under which revision.
    before: (Revision, Vec<(Item, Version)>),
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            members: Membership::default(),
            trust: TrustStore::in_memory(&TrustConfig::default(), &[]).unwrap(),
            from: Introducer {
                node: node("relay"),
                level: Level::Pinned,
                since: now,
            },
            now,
            before: Default::default(),
        }
    }

    /// What was worked out of the items holds as long as the revision does: compared with the last look.
    fn look(&mut self) {
        let mut items: Vec<_> = self.members.items().collect();
        items.sort_unstable();
        let revision = self.members.revision();
        let (old, before) = std::mem::replace(&mut self.before, (revision, items.clone()));
        let but_links = |items: &[(Item, Version)]| {
            let mut items = items.to_vec();
            items.retain(|(item, _)| item.kind != RecordKind::LinkState);
            items
        };
        if revision == old {
            assert_eq!(items, before);
        }
        if revision.other == old.other {
            assert_eq!(but_links(&items), but_links(&before));
        }
    }

    fn take(&mut self, signed: &Signed) -> Result<Outcome, RecordError> {
        let claim = signed::claim(&signed.header)?;
        let record = (&signed.header[..], &signed.body[..]);
        let taken = self
            .members
            .take(&claim, record, &self.from, &self.trust, self.now);
        self.look();
        taken
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.members.expire(&self.trust, self.now);
        self.look();
    }

    fn view(&self, name: &str) -> Option<NodeView> {
        self.members.view(|_| None).nodes.get(&node(name)).cloned()
    }
}

#[test]
fn newest_record_wins_and_equivocation_keeps_the_first() {
    let (mut bench, a) = (Bench::new(), Signer::new("a"));
    assert_eq!(bench.take(&a.desc((1, 2), "two")), Ok(Outcome::News));
    assert_eq!(bench.take(&a.desc((1, 1), "one")), Ok(Outcome::Old));
    assert_eq!(bench.take(&a.desc((1, 2), "two")), Ok(Outcome::Old));
    // T66
    assert_eq!(
        bench.take(&a.desc((1, 2), "lie")),
        Ok(Outcome::Equivocation(true))
    );
    assert_eq!(
        bench.take(&a.desc((1, 2), "another lie")),
        Ok(Outcome::Equivocation(false)),
        "told once"
    );
    assert_eq!(bench.view("a").unwrap().descriptor.software, "two");
    assert_eq!(bench.take(&a.desc((2, 0), "new")), Ok(Outcome::News));
    assert_eq!(bench.view("a").unwrap().level, Some(Level::Seen));
}

/// T65: and what is forged is no equivocation either.
#[test]
fn forged_records_change_nothing() {
    let (mut bench, a, b) = (Bench::new(), Signer::new("a"), Signer::new("b"));
    let good = a.desc((1, 2), "good");
    assert_eq!(bench.take(&good), Ok(Outcome::News));
    let mut forged = a.desc((1, 3), "bad");
    forged.body = b.desc((1, 3), "bad").body;
    assert_eq!(bench.take(&forged), Err(RecordError::Forged));
    forged.header = good.header;
    assert_eq!(bench.take(&forged), Err(RecordError::Forged));
    assert_eq!(bench.view("a").unwrap().descriptor.software, "good");
    let odd = a.sign(RecordKind::LinkState, (1, 4), b"[]");
    assert_eq!(bench.take(&odd), Err(RecordError::Malformed));
}

#[test]
fn configured_node_is_shown_before_during_and_after_its_link() {
    let mut bench = Bench::new();
    let now = SystemTime::UNIX_EPOCH;
    let a = node("a");
    bench.members.configured(&a);
    assert!(bench.members.problem(&a, "connection refused"));
    assert!(
        !bench.members.problem(&a, "connection refused"),
        "told once"
    );
    let down = bench.view("a").unwrap();
    assert_eq!(down.reach, Reach::Unreachable);
    assert_eq!(down.problem.as_deref(), Some("connection refused"));
    bench.members.up(&peer("a", 1), "clawmatrix/1", now);
    bench.look();
    bench.members.alive(&a, Some(1.5), now);
    let up = bench.view("a").unwrap();
    assert_eq!(
        (up.reach, up.problem, up.latency_ms),
        (Reach::Direct, None, Some(1.5))
    );
    bench.members.down(&a, "connection closed".into(), now);
    let passage = |_: &NodeId| {
        Some(Passage {
            via: Some(node("relay")),
            latency_ms: Some(20.0),
        })
    };
    let relayed = bench.members.view(passage).nodes[&a].clone();
    assert_eq!(
        (relayed.reach, relayed.latency_ms),
        (Reach::Relay, Some(20.0))
    );
    assert_eq!(relayed.reachable_via, Some(node("relay")));
    assert_eq!(relayed.problem, None, "it is reached");
    let down = bench.view("a").unwrap();
    assert_eq!((down.reach, down.latency_ms), (Reach::Unreachable, None));
    assert_eq!(down.descriptor.software, "clawmatrix/1", "kept while away");
}

#[test]
fn another_key_starts_from_nothing() {
    let mut bench = Bench::new();
    let a = Signer::new("a");
    assert_eq!(bench.take(&a.desc((9, 9), "said")), Ok(Outcome::News));
    bench
        .members
        .up(&peer("a", 2), "two", SystemTime::UNIX_EPOCH);
    assert_eq!(bench.view("a").unwrap().descriptor.software, "two");
    assert_eq!(bench.members.items().count(), 0);
}

#[test]
fn a_name_belongs_to_the_key_that_is_held_for_it() {
    let (mut bench, a, liar) = (Bench::new(), Signer::new("a"), Signer::new("a"));
    assert_eq!(bench.take(&a.desc((1, 1), "first")), Ok(Outcome::News));
    assert_eq!(
        bench.take(&liar.desc((9, 9), "second")),
        Ok(Outcome::Refused)
    );
    assert_eq!(
        bench.take(&Signer::new("A").desc((1, 1), "like")),
        Ok(Outcome::Refused),
        "T79"
    );
    assert_eq!(bench.trust.conflicts().len(), 2, "for the operator");
    assert!(
        bench
            .trust
            .pin(&node("a"), &liar.identity.public(), Via::Link)
            .is_err()
    );
    // Once the record is gone so is its hold on the name.
    bench.pass(RECORD_EXPIRY);
    assert_eq!(bench.take(&liar.desc((9, 9), "second")), Ok(Outcome::News));
}

#[test]
fn explicit_mode_admits_listed_keys_alone() {
    let (mut bench, a, b) = (Bench::new(), Signer::new("a"), Signer::new("b"));
    let config = TrustConfig {
        explicit: true,
        ..TrustConfig::default()
    };
    bench.trust = TrustStore::in_memory(&config, &[]).unwrap();
    bench
        .trust
        .add(&node("a"), &a.identity.public(), &[])
        .unwrap();
    assert_eq!(bench.take(&a.desc((1, 1), "a")), Ok(Outcome::News));
    assert_eq!(bench.take(&b.desc((1, 1), "b")), Ok(Outcome::Refused));
    assert_eq!(bench.view("a").unwrap().level, Some(Level::Trusted));
    assert!(bench.view("b").is_none());
}

#[test]
fn a_denied_key_loses_its_records() {
    let (mut bench, a) = (Bench::new(), Signer::new("a"));
    assert_eq!(bench.take(&a.desc((1, 1), "a")), Ok(Outcome::News));
    bench.trust.deny(a.identity.public().id()).unwrap();
    bench.members.judge_again(&bench.trust, bench.now);
    bench.look();
    assert_eq!(bench.members.items().count(), 0);
    assert_eq!(bench.take(&a.desc((1, 2), "a")), Ok(Outcome::Refused));
}

/// T70 and 6.1: only the node itself leaves, and what it said before does not bring it back.
#[test]
fn who_has_left_comes_back_with_something_newer_only() {
    let (mut bench, a, b) = (Bench::new(), Signer::new("a"), Signer::new("b"));
    assert_eq!(bench.take(&a.desc((1, 1), "a")), Ok(Outcome::News));
    let mut forged = a.leave((1, 5));
    forged.body = b.leave((1, 5)).body;
    assert_eq!(bench.take(&forged), Err(RecordError::Forged));
    assert_eq!(bench.take(&a.leave((1, 0))), Ok(Outcome::Old));
    assert!(bench.members.hears_of(&node("a")));
    assert_eq!(bench.take(&a.leave((1, 5))), Ok(Outcome::News));
    assert!(bench.members.leaves(&node("a")) && !bench.members.hears_of(&node("a")));
    let items: Vec<_> = bench.members.items().collect();
    assert_eq!(items.len(), 1, "the leave alone is passed on");
    assert_eq!(bench.take(&a.desc((1, 4), "late")), Ok(Outcome::Old));
    bench.pass(LEFT_LINKS);
    assert!(bench.view("a").is_none(), "nobody here has met it");
    assert_eq!(bench.take(&a.desc((1, 4), "late")), Ok(Outcome::Old));
    assert_eq!(bench.take(&a.desc((2, 1), "back")), Ok(Outcome::News));
    assert!(!bench.members.leaves(&node("a")));
    assert_eq!(bench.members.items().count(), 1);
}

/// T129 for one node: what fell silent is forgotten, and stays so.
#[test]
fn a_silent_node_is_forgotten_and_not_brought_back() {
    let (mut bench, a) = (Bench::new(), Signer::new("a"));
    let record = a.desc((1, 1), "a");
    assert_eq!(bench.take(&record), Ok(Outcome::News));
    bench.pass(RECORD_EXPIRY - SECOND);
    assert!(bench.view("a").is_some());
    bench.pass(SECOND);
    assert!(bench.view("a").is_none());
    assert_eq!(bench.take(&record), Ok(Outcome::Old));
    assert_eq!(bench.take(&a.desc((1, 2), "a")), Ok(Outcome::News));
    bench.pass(RECORD_EXPIRY);
    bench.pass(TOMBSTONE_AGE);
    assert_eq!(bench.take(&record), Ok(Outcome::News), "after a day");
}

#[test]
fn a_node_with_another_name_gives_up_the_old_one() {
    let (mut bench, a) = (Bench::new(), Signer::new("a"));
    assert_eq!(bench.take(&a.desc((1, 1), "old")), Ok(Outcome::News));
    let renamed = Signer {
        name: node("b"),
        identity: a.identity,
    };
    assert_eq!(renamed.name, node("b"));
    assert_eq!(bench.take(&renamed.desc((1, 1), "same")), Ok(Outcome::Old));
    assert_eq!(bench.take(&renamed.desc((2, 1), "new")), Ok(Outcome::News));
    assert!(bench.view("a").is_none());
    assert_eq!(bench.members.items().count(), 1);
}

/// T69: names from one member; and they never push out a node that was met.
#[test]
fn one_neighbour_brings_in_so_many_unknown_names() {
    let mut bench = Bench::new();
    let met = Signer::new("met");
    bench
        .trust
        .pin(&met.name, &met.identity.public(), Via::Link)
        .unwrap();
    let names = |from: usize, to: usize| (from..to).map(|n| Signer::new(&format!("sybil-{n}")));
    let mut admitted = 0;
    for sybil in names(0, 400) {
        if bench.take(&sybil.desc((1, 1), "x")) == Ok(Outcome::News) {
            admitted += 1;
        }
    }
    assert_eq!(admitted, SEEN_PER_NEIGHBOUR);
    assert_eq!(bench.take(&met.desc((1, 1), "met")), Ok(Outcome::News));
    assert_eq!(bench.members.count(), SEEN_PER_NEIGHBOUR + 1);
    // Later ones over another neighbour come slowly.
    bench.from.node = node("other");
    bench.now += 2 * SECOND * 60;
    let late =
        names(400, 600).filter(|sybil| bench.take(&sybil.desc((1, 1), "x")) == Ok(Outcome::News));
    assert_eq!(late.count(), 60);
}

#[test]
fn a_full_mesh_still_has_room_for_those_we_met() {
    let mut bench = Bench::new();
    bench.from.level = Level::Trusted;
    for n in 0..MESH_NODES + 10 {
        let _ = bench.take(&Signer::new(&format!("n{n}")).desc((1, 1), "x"));
    }
    assert_eq!(bench.members.count(), MESH_NODES);
    let met = Signer::new("met");
    bench
        .trust
        .pin(&met.name, &met.identity.public(), Via::Link)
        .unwrap();
    assert_eq!(bench.take(&met.desc((1, 1), "met")), Ok(Outcome::News));
    assert_eq!(bench.members.count(), MESH_NODES);
    assert_eq!(bench.view("met").unwrap().level, Some(Level::Pinned));
}

/// A member that signs ever new records is heard at its pace; forged ones do not use that up.
#[test]
fn records_of_one_node_are_taken_at_its_pace() {
    let (mut bench, a, b) = (Bench::new(), Signer::new("a"), Signer::new("b"));
    assert_eq!(bench.take(&a.desc((1, 0), "first")), Ok(Outcome::News));
    for ver in 1..1000 {
        let mut forged = a.desc((1, ver), "forged");
        forged.body = b.desc((1, ver), "forged").body;
        assert_eq!(bench.take(&forged), Err(RecordError::Forged));
    }
    let taken = (1..1000).filter(|ver| bench.take(&a.desc((1, *ver), "x")) == Ok(Outcome::News));
    assert_eq!(taken.count(), RECORDS_PER_NODE_BURST as usize - 1);
    assert_eq!(bench.take(&a.desc((1, 1000), "x")), Ok(Outcome::TooFast));
    assert_eq!(bench.take(&b.desc((1, 1), "b")), Ok(Outcome::News));
    bench.now += SECOND;
    assert_eq!(bench.take(&a.desc((1, 1000), "x")), Ok(Outcome::News));
    assert_eq!(bench.take(&a.desc((1, 1001), "x")), Ok(Outcome::TooFast));
}

/// T27: a valid rotation is news once and moves the node to its new key; others are refused.
#[test]
fn a_node_goes_on_with_its_new_key() {
    let (mut bench, a, b) = (Bench::new(), Signer::new("a"), Signer::new("a"));
    let rotation = |old: &Signer, new: &Signer, seq| crate::crypto::rotation::Rotation {
        node: node("a"),
        old: old.identity.public(),
        new: new.identity.public(),
        seq,
        ts: 0,
    };
    let sign = |old: &Signer, new: &Signer, seq| {
        let rotation = rotation(old, new, seq);
        crate::mesh::rotation::sign(&rotation, &old.identity, &new.identity)
    };
    assert_eq!(bench.take(&a.desc((1, 2), "before")), Ok(Outcome::News));
    assert_eq!(bench.take(&b.desc((2, 1), "early")), Ok(Outcome::Refused));

    let c = Signer::new("a");
    let unsigned = rotation(&a, &b, 5);
    let half = crate::mesh::rotation::sign(&unsigned, &a.identity, &c.identity);
    assert_eq!(bench.take(&half), Err(RecordError::Malformed));
    let told = bench.trust.conflicts();
    assert!(
        told.iter()
            .any(|c| c.hint.contains("a signature of it does not hold"))
    );
    assert_eq!(
        bench.view("a").unwrap().key_id,
        Some(a.identity.public().id())
    );

    let good = sign(&a, &b, 5);
    let item = Item {
        kind: RecordKind::Rotation,
        key: a.identity.public().id(),
    };
    assert!(bench.members.lacks(&item, (5, 1)));
    assert_eq!(bench.take(&good), Ok(Outcome::News));
    assert_eq!(bench.take(&good), Ok(Outcome::Old));
    assert!(!bench.members.lacks(&item, (5, 1)));
    assert_eq!(bench.members.record(&item), Some(&good));
    assert_eq!(
        bench.members.items().next(),
        Some((item, (5, 1))),
        "before all else"
    );
    let view = bench.view("a").unwrap();
    assert_eq!(view.key_id, Some(b.identity.public().id()));
    assert_eq!(view.descriptor.software, "before", "until it speaks again");

    let told = bench.trust.conflicts().len();
    assert_eq!(bench.take(&a.leave((5, 0))), Ok(Outcome::Old));
    assert_eq!(
        bench.trust.conflicts().len(),
        told,
        "said before the change"
    );
    assert_eq!(bench.take(&a.desc((9, 9), "old key")), Ok(Outcome::Refused));
    assert_eq!(bench.trust.conflicts().len(), told + 1);
    assert_eq!(bench.take(&b.desc((2, 1), "after")), Ok(Outcome::News));
    assert_eq!(bench.view("a").unwrap().descriptor.software, "after");
    // Replayed numbers, and a second successor.
    assert_eq!(bench.take(&sign(&b, &c, 5)), Ok(Outcome::Refused));
    assert_eq!(bench.take(&sign(&a, &c, 6)), Ok(Outcome::Refused));
    assert_eq!(
        bench.view("a").unwrap().key_id,
        Some(b.identity.public().id())
    );
}

#[test]
fn a_rotation_of_a_stranger_makes_its_new_key_known() {
    let (mut bench, a, b) = (Bench::new(), Signer::new("a"), Signer::new("a"));
    let rotation = crate::crypto::rotation::Rotation {
        node: node("a"),
        old: a.identity.public(),
        new: b.identity.public(),
        seq: 5,
        ts: 0,
    };
    let record = crate::mesh::rotation::sign(&rotation, &a.identity, &b.identity);
    assert_eq!(bench.take(&record), Ok(Outcome::News));
    assert_eq!(bench.view("a").unwrap().level, Some(Level::Seen));
    assert_eq!(bench.take(&a.desc((1, 1), "old key")), Ok(Outcome::Refused));
    assert_eq!(bench.take(&b.desc((1, 1), "new key")), Ok(Outcome::News));
    bench.pass(RECORD_EXPIRY + SECOND);
    assert!(bench.view("a").is_none(), "nobody here has met it");
}
