//! Members that lie, linked to whole nodes over memory: what they say is dropped, counted, shown to the
//! operator, and harms nobody else. Numbers T.. are those of protocol 10.

use super::*;
use crate::{
    mesh::{
        Mesh, MeshSettings, descriptor,
        linkstate::{LinkState, ToRelay, short},
        signed::{self, RecordKind, Signed},
        view::{Descriptor, NodeView, Reach},
    },
    wire::limits::{RECORDS_PER_NODE_BURST, SEEN_PER_NEIGHBOUR},
};

/// An honest node without sockets.
pub(super) struct Member {
    pub(super) us: Ourselves,
    pub(super) mesh: Mesh,
    seen: Arc<Recorder>,
}

impl Member {
    pub(super) fn new(name: &str, relay: bool) -> Self {
        let seen = Recorder::new();
        Self {
            seen: seen.clone(),
            ..Self::handled(name, relay, seen)
        }
    }

    /// Its sessions are another's to handle.
    pub(super) fn handled(name: &str, relay: bool, handler: Arc<dyn SessionHandler>) -> Self {
        let mut us = ourselves(name);
        us.params.relay = relay;
        let settings = MeshSettings::new(us.clone(), 1);
        Self {
            mesh: Mesh::new(settings, handler, Tasks::new()),
            us,
            seen: Recorder::new(),
        }
    }

    fn id(&self) -> crate::crypto::identity::KeyId {
        self.us.identity.public().id()
    }

    pub(super) async fn join(&self, other: &Self) {
        let (mut ours, mut theirs) = memory::pair();
        let name = &other.us.node_id;
        let dialing = initiate(&mut ours.sink, &mut ours.stream, &self.us, name, vec![]);
        let accepting = respond(&mut theirs.sink, &mut theirs.stream, &other.us, vec![]);
        let (dialed, accepted) = tokio::join!(dialing, accepting);
        let accepted = accepted.unwrap();
        let theirs = (theirs.sink, theirs.stream);
        let there = other.mesh.hub.admit(accepted, carriage(), theirs);
        let ours = (ours.sink, ours.stream);
        let here = self.mesh.hub.admit(dialed.unwrap(), carriage(), ours);
        let (here, there) = tokio::join!(here, there);
        assert!(here.is_some() && there.is_some());
    }

    fn node(&self, name: &str) -> Option<NodeView> {
        self.mesh.view().borrow().nodes.get(&node(name)).cloned()
    }

    async fn sees(&self, name: &str, good: impl Fn(&NodeView) -> bool) -> NodeView {
        until(&format!("{} sees {name} so", self.us.node_id), || {
            self.node(name).is_some_and(|view| good(&view))
        })
        .await;
        self.node(name).unwrap()
    }

    pub(super) async fn reaches(&self, name: &str, via: &str) {
        let via = node(via);
        self.sees(name, |view| view.reachable_via.as_ref() == Some(&via))
            .await;
    }

    fn alerts(&self) -> Vec<String> {
        self.mesh.view().borrow().alerts.clone()
    }

    /// Waits for the one warning about `name` that says `what`.
    async fn warns(&self, name: &str, what: &str) {
        let wanted = format!("node `{name}`");
        let of = |all: Vec<String>| -> Vec<String> {
            let about = |text: &String| text.starts_with(&wanted) && text.contains(what);
            all.into_iter().filter(about).collect()
        };
        let what = format!("{}: {name} {what}", self.us.node_id);
        until(&what, || !of(self.alerts()).is_empty()).await;
        assert_eq!(of(self.alerts()).len(), 1, "{:?}", self.alerts());
    }

    pub(super) fn dropped(&self, reason: Reason) -> u64 {
        let all = self.mesh.drops();
        let found = all.into_iter().find(|(name, _)| *name == reason.as_str());
        found.map_or(0, |(_, count)| count)
    }

    async fn tells(&self, other: &Self, n: u64) {
        let session = self.mesh.session(&other.us.node_id).await.unwrap();
        let json = format!("{{\"n\":{n}}}");
        session
            .send(Class::Interactive, json.as_bytes(), b"")
            .unwrap();
        other.seen.until(|seen| seen.frames().contains(&json)).await;
    }
}

impl Relay {
    /// Links itself to a whole node.
    pub(super) async fn joins(&self, member: &Member) -> Arc<Link> {
        let (mut ours, mut theirs) = memory::pair();
        let name = &member.us.node_id;
        let dialing = initiate(&mut ours.sink, &mut ours.stream, &self.us, name, vec![]);
        let accepting = respond(&mut theirs.sink, &mut theirs.stream, &member.us, vec![]);
        let (dialed, accepted) = tokio::join!(dialing, accepting);
        self.work(name.clone(), dialed.unwrap(), ours);
        let theirs = (theirs.sink, theirs.stream);
        let admitted = member.mesh.hub.admit(accepted.unwrap(), carriage(), theirs);
        admitted.await.unwrap()
    }

    fn says(&self, to: &str, record: &Signed) {
        let (header, body) = (record.header.to_vec(), record.body.to_vec());
        self.inject(to, Frame::new(Kind::Gossip, header, body));
    }

    /// Says that it is a relay with these links, each for nothing.
    fn claims(&self, to: &str, ver: u64, relays: &[&str], leaves: &[&Member]) {
        let relay = |to: &&str| ToRelay {
            to: node(to),
            cost: 0,
        };
        let mut leaves: Vec<_> = leaves.iter().map(|leaf| (short(&leaf.id()), 0)).collect();
        leaves.sort_unstable();
        let links = LinkState {
            relay: true,
            relays: relays.iter().map(relay).collect(),
            leaves,
            load: None,
        };
        let us = &self.us;
        let record = signed::sign(
            &us.identity,
            &us.node_id,
            RecordKind::LinkState,
            (1, ver),
            &links.payload(),
        );
        self.says(to, &record);
    }
}

fn desc(us: &Ourselves, ver: u64, software: &str) -> Signed {
    let descriptor = Descriptor {
        software: software.into(),
        ..Descriptor::default()
    };
    let payload = descriptor::payload(&descriptor);
    let kind = RecordKind::Descriptor;
    signed::sign(&us.identity, &us.node_id, kind, (1, ver), &payload)
}

/// T66: two texts under one number. Every node hears of it, also those that met one of them only.
#[tokio::test(start_paused = true)]
async fn contradictions_are_shown_everywhere() {
    let (one, two) = (Member::new("one", true), Member::new("two", true));
    let (home, office) = (Member::new("home", false), Member::new("office", false));
    one.join(&two).await;
    home.join(&one).await;
    office.join(&two).await;
    let liar = Relay::new("mallory", false);
    liar.joins(&one).await;
    liar.joins(&two).await;
    liar.says("one", &desc(&liar.us, 5, "kind"));
    liar.says("two", &desc(&liar.us, 5, "cruel"));
    for node in [&one, &two, &home, &office] {
        node.warns("mallory", "contradict each other").await;
    }
    let says = |at: &Member| at.node("mallory").unwrap().descriptor.software.clone();
    assert_eq!((says(&one), says(&two)), ("kind".into(), "cruel".into()));
    assert!(home.dropped(Reason::Contradiction) >= 1);
    // Again and again: no more of it crosses the mesh, and it stays one warning.
    let before = home.dropped(Reason::Contradiction);
    for n in 0..100 {
        liar.says("one", &desc(&liar.us, 5, &format!("cruel-{n}")));
    }
    until("one has had them", || {
        one.dropped(Reason::Contradiction) >= 100
    })
    .await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(home.dropped(Reason::Contradiction), before);
    one.warns("mallory", "the first one counts (").await;
}

/// T65 and T70: what is said of others without their signature.
#[tokio::test(start_paused = true)]
async fn forged_records_are_believed_by_nobody_and_the_forger_is_named() {
    let cloud = Member::new("cloud", true);
    let (home, office) = (Member::new("home", false), Member::new("office", false));
    home.join(&cloud).await;
    office.join(&cloud).await;
    home.reaches("office", "cloud").await;
    let liar = Relay::new("mallory", true);
    liar.joins(&cloud).await;
    let kinds = [
        RecordKind::Descriptor,
        RecordKind::LinkState,
        RecordKind::Leave,
    ];
    for kind in kinds {
        // Its header names office and the key of office, but it is signed by the liar.
        let identity = &office.us.identity;
        let version = (u64::from(u32::MAX), 9);
        let true_one = signed::sign(identity, &office.us.node_id, kind, version, b"{}");
        let mut forged = signed::sign(&liar.us.identity, &office.us.node_id, kind, version, b"{}");
        forged.header = true_one.header;
        liar.says("cloud", &forged);
    }
    cloud.warns("mallory", "forged").await;
    until("all are dropped", || cloud.dropped(Reason::BadGossip) == 3).await;
    assert_eq!(home.dropped(Reason::BadGossip), 0, "nothing was passed on");
    assert!(home.alerts().is_empty(), "{:?}", home.alerts());
    assert_eq!(home.node("office").unwrap().reach, Reach::Relay);
    home.tells(&office, 1).await;
}

/// T34: frames under the name of another node.
#[tokio::test(start_paused = true)]
async fn a_leaf_that_speaks_for_others_is_shown() {
    let office = Member::new("office", false);
    let liar = Relay::new("mallory", false);
    liar.joins(&office).await;
    let tie = SessionId([1; 16]);
    for _ in 0..5 {
        let frame = Frame::plain(Kind::Routed, "home", "office", &tie, vec![0; 64]);
        liar.inject("office", frame);
    }
    office.warns("mallory", "names of other nodes").await;
    until("all are dropped", || {
        office.dropped(Reason::ForeignOrigin) == 5
    })
    .await;
    assert_eq!(office.mesh.alerts(), [("foreign_names", 1)]);
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(office.mesh.alerts(), [("foreign_names", 5)]);
}

/// T67: a link to a node that does not confirm it.
#[tokio::test(start_paused = true)]
async fn a_claimed_link_attracts_nothing() {
    let cloud = Member::new("cloud", true);
    let (home, office) = (Member::new("home", false), Member::new("office", false));
    office.join(&cloud).await;
    let liar = Relay::new("mallory", true);
    liar.does(|_, _| Vec::new());
    liar.joins(&home).await;
    liar.joins(&cloud).await;
    home.join(&cloud).await;
    home.reaches("office", "cloud").await;
    for to in ["home", "cloud"] {
        liar.says(to, &desc(&liar.us, 1, "fast relay"));
        liar.claims(to, 2, &["cloud"], &[&home, &office]);
    }
    cloud
        .sees("mallory", |view| view.descriptor.software == "fast relay")
        .await;
    tokio::time::sleep(30 * SECOND).await;
    home.reaches("office", "cloud").await;
    home.tells(&office, 1).await;
    let towards = |(way, frame): &(Way, Frame)| *way == Way::ToOffice && frame.head().t == "office";
    assert!(!liar.seen().iter().any(towards), "nothing was sent there");
    // It goes on for long, and signs it anew: each node that can tell says so. Office, of which it
    // speaks, knows best.
    assert_eq!(
        home.alerts(),
        Vec::<String>::new(),
        "nothing is said too early"
    );
    for ver in 3..6 {
        tokio::time::sleep(300 * SECOND).await;
        for to in ["home", "cloud"] {
            liar.claims(to, ver, &["cloud"], &[&home, &office]);
        }
    }
    office.warns("mallory", "do not confirm").await;
    assert_eq!(office.alerts().len(), 1, "{:?}", office.alerts());
    home.tells(&office, 2).await;
}

/// What a node said before it was killed is old, not a lie.
#[tokio::test(start_paused = true)]
async fn a_node_that_died_is_not_called_a_liar() {
    let cloud = Member::new("cloud", true);
    let (home, office) = (Member::new("home", false), Member::new("office", false));
    home.join(&cloud).await;
    office.join(&cloud).await;
    home.reaches("office", "cloud").await;
    office.mesh.hub.stop.cancel();
    for link in office.mesh.hub.open_links() {
        link.end(CloseCode::Normal, "killed");
    }
    tokio::time::sleep(800 * SECOND).await;
    assert!(home.node("office").is_some(), "its records still live");
    tokio::time::sleep(400 * SECOND).await;
    for node in [&home, &cloud] {
        assert_eq!(node.alerts(), Vec::<String>::new());
    }
}

/// Puts a relay with true links, for nothing, between two nodes, and an honest one beside it. What goes
/// from one to the other goes over the first, until it does not.
pub(super) async fn attracted(home: &Member, office: &Member) -> (Relay, Member) {
    let cloud = Member::new("cloud", true);
    // Ties go to the smaller key; in memory both relays are equally near.
    let liar = loop {
        let liar = Relay::new("mallory", true);
        if liar.us.identity.public().id().0 < cloud.id().0 {
            break liar;
        }
    };
    for member in [home, office] {
        liar.joins(member).await;
    }
    for to in ["home", "office"] {
        liar.says(to, &desc(&liar.us, 1, "fast relay"));
        liar.claims(to, 2, &[], &[home, office]);
    }
    tokio::time::sleep(5 * SECOND).await;
    home.join(&cloud).await;
    office.join(&cloud).await;
    tokio::time::sleep(30 * SECOND).await;
    // Else the rest would show nothing.
    home.reaches("office", "mallory").await;
    office.reaches("home", "mallory").await;
    (liar, cloud)
}

/// T68: a relay that drops what it is to pass on.
#[tokio::test(start_paused = true)]
async fn a_relay_that_drops_everything_loses_its_traffic() {
    let (home, office) = (Member::new("home", false), Member::new("office", false));
    let (liar, _cloud) = attracted(&home, &office).await;
    liar.does(|_, frame| {
        let dropped = frame.head().f != "mallory" && frame.head().t != "mallory";
        if dropped { Vec::new() } else { vec![frame] }
    });
    let began = Instant::now();
    let session = home.mesh.session(&office.us.node_id).await.unwrap();
    assert!(began.elapsed() < 6 * SECOND, "{:?}", began.elapsed());
    say(&session, Class::Interactive, 1);
    office
        .seen
        .until(|seen| seen.frames() == numbered([1]))
        .await;
    home.reaches("office", "cloud").await;
    assert_eq!(home.mesh.alerts().len(), 1, "{:?}", home.mesh.alerts());
}

/// A relay that forty new nodes dial at once takes all of them, and each sees all others.
#[tokio::test(start_paused = true)]
async fn a_mesh_that_starts_all_at_once_is_complete_within_seconds() {
    let cloud = Member::new("cloud", true);
    let nodes: Vec<_> = (0..40)
        .map(|n| Member::new(&format!("n{n}"), false))
        .collect();
    let began = Instant::now();
    for node in &nodes {
        node.join(&cloud).await;
    }
    let complete = |at: &Member| {
        let view = at.mesh.view().borrow().clone();
        let reached = view
            .nodes
            .values()
            .filter(|n| n.reach != Reach::Unreachable);
        reached.count() == nodes.len()
    };
    until("all see all", || nodes.iter().all(complete)).await;
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    // And they meet end to end, as nodes do that lend and use models.
    for other in &nodes[1..] {
        nodes[0].tells(other, 1).await;
    }
}

/// T69 over a link: 400 names that nobody has met.
#[tokio::test(start_paused = true)]
async fn made_up_names_fill_their_share_and_no_more() {
    let cloud = Member::new("cloud", true);
    let (home, office) = (Member::new("home", false), Member::new("office", false));
    home.join(&cloud).await;
    office.join(&cloud).await;
    let liar = Relay::new("mallory", true);
    liar.joins(&cloud).await;
    for n in 0..SEEN_PER_NEIGHBOUR + 150 {
        liar.says("cloud", &desc(&ourselves(&format!("sybil-{n}")), 1, "x"));
    }
    cloud.warns("mallory", "more unknown nodes").await;
    until("the rest is dropped", || {
        cloud.dropped(Reason::GossipLimited) == 150
    })
    .await;
    tokio::time::sleep(10 * SECOND).await;
    let made_up = |at: &Member| {
        let view = at.mesh.view().borrow().clone();
        let names = view.nodes.keys();
        names.filter(|n| n.as_str().starts_with("sybil")).count()
    };
    assert_eq!(made_up(&cloud), SEEN_PER_NEIGHBOUR);
    assert!(made_up(&home) <= SEEN_PER_NEIGHBOUR);
    home.tells(&office, 1).await;
    assert_eq!(cloud.alerts().len(), 1, "one line, not 150");
}

/// A member that signs ever new records of its own costs the others a few a second.
#[tokio::test(start_paused = true)]
async fn a_flood_of_true_records_stops_at_the_first_neighbour() {
    let cloud = Member::new("cloud", true);
    let home = Member::new("home", false);
    home.join(&cloud).await;
    let liar = Relay::new("mallory", false);
    liar.joins(&cloud).await;
    let before = cloud.mesh.carried().sent;
    for ver in 1..=1000 {
        liar.says("cloud", &desc(&liar.us, ver, &"x".repeat(200)));
    }
    cloud.warns("mallory", "faster than they are taken").await;
    until("the rest is dropped", || {
        cloud.dropped(Reason::HastyGossip) >= 900
    })
    .await;
    tokio::time::sleep(SECOND).await;
    let (sent, most) = (
        cloud.mesh.carried().sent - before,
        u64::from(RECORDS_PER_NODE_BURST) * 1000,
    );
    assert!(sent < most, "{sent} of {most} bytes");
    // It is not cut off: what it says a little later counts.
    liar.says("cloud", &desc(&liar.us, 5000, "calm"));
    home.sees("mallory", |view| view.descriptor.software == "calm")
        .await;
}

/// A relay that alters what it passes on, or says it again and again.
#[tokio::test(start_paused = true)]
async fn a_relay_that_alters_and_repeats_is_shown_at_both_ends() {
    let (home, office) = (Member::new("home", false), Member::new("office", false));
    let liar = Relay::new("mallory", true);
    for member in [&home, &office] {
        liar.joins(member).await;
    }
    for to in ["home", "office"] {
        liar.says(to, &desc(&liar.us, 1, "relay"));
        liar.claims(to, 2, &[], &[&home, &office]);
    }
    // Each needs the other's records; a relay would pass them on, this one has them from us.
    introduce(&liar, &home, &office);
    home.reaches("office", "mallory").await;
    home.tells(&office, 1).await;
    let session = home.mesh.session(&office.us.node_id).await.unwrap();
    let mut n = 0;
    liar.does(move |_, mut frame| {
        if frame.kind != Kind::Routed {
            return vec![frame];
        }
        n += 1;
        if n % 2 == 0 {
            frame.body[0] ^= 1;
            return vec![frame];
        }
        vec![frame; 20]
    });
    for n in 2..32 {
        say(&session, Class::Interactive, n);
    }
    office.warns("mallory", "altered or forged").await;
    office.warns("mallory", "that were here before").await;
    let frames = office.seen.frames();
    let mut once = frames.clone();
    once.dedup();
    assert_eq!(frames, once, "each is seen once");
    assert!(frames.len() >= 15, "{frames:?}");
}

/// Gives each of two leaves the true records of the other one, as a relay would.
fn introduce(relay: &Relay, a: &Member, b: &Member) {
    for (of, to) in [(a, b), (b, a)] {
        let links = LinkState {
            relays: vec![ToRelay {
                to: relay.us.node_id.clone(),
                cost: 1,
            }],
            ..LinkState::default()
        };
        let us = &of.us;
        let kind = RecordKind::LinkState;
        let links = signed::sign(&us.identity, &us.node_id, kind, (1, 1), &links.payload());
        relay.says(to.us.node_id.as_str(), &links);
        relay.says(to.us.node_id.as_str(), &desc(us, 1, "honest"));
    }
}
