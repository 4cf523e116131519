//! Nodes that never see each other, joined by relays. Numbers T.. are those of protocol 10.

use super::*;
use crate::{mesh::linkstate::Load, wire::limits::RTO_MIN};

impl Node {
    async fn relay(name: &str) -> Self {
        let mut us = ourselves(name, 1);
        us.params.relay = true;
        Self::with(us, 0).await
    }

    async fn reaches(&self, other: &str, via: &str) -> NodeView {
        let via = node(via);
        self.sees(other, |view| {
            view.reach == Reach::Relay && view.reachable_via.as_ref() == Some(&via)
        })
        .await
    }

    /// Sends a frame to `other` and waits until it is there.
    async fn tells(&self, other: &Node, json: &str) {
        let session = self.mesh.session(&other.name).await.unwrap();
        session
            .send(Class::Interactive, json.as_bytes(), b"")
            .unwrap();
        other
            .seen
            .until(|seen| seen.frames().iter().any(|frame| frame == json))
            .await;
    }
}

/// home - cloud - office; neither of the outer two can be dialed by the other.
async fn three() -> (Node, Node, Node) {
    let cloud = Node::relay("cloud").await;
    let (home, office) = (Node::start("home", 1).await, Node::start("office", 1).await);
    home.dial(&cloud);
    office.dial(&cloud);
    home.reaches("office", "cloud").await;
    office.reaches("home", "cloud").await;
    (home, cloud, office)
}

#[tokio::test]
async fn nodes_behind_a_relay_work_as_if_they_were_linked() {
    let (home, cloud, office) = three().await;
    home.tells(&office, "{\"hello\":1}").await;
    office.tells(&home, "{\"hello\":2}").await;
    let peer = home.mesh.session(&office.name).await.unwrap();
    assert_eq!(peer.peer().key, office.us.identity.public());
    assert!(!peer.direct());
    let seen = home.sees("office", |view| view.latency_ms.is_some()).await;
    assert_eq!(
        seen.level,
        Some(crate::trust::Level::Pinned),
        "met end to end"
    );
    assert_eq!(seen.key_id, Some(office.us.identity.public().id()));
    assert!(cloud.seen.frames().is_empty(), "the relay opens nothing");
    let (passed, carried) = (cloud.mesh.carried(), home.mesh.carried());
    assert!(passed.relayed_frames >= 2, "{passed:?}");
    assert!(
        passed.relayed > 0 && passed.relayed <= passed.received,
        "{passed:?}"
    );
    assert!(carried.sent > 0 && carried.received > 0, "{carried:?}");
    assert_eq!(carried.relayed_frames, 0, "{carried:?}");
    assert_eq!(
        cloud
            .mesh
            .drops()
            .iter()
            .find(|(name, _)| *name == "not_for_us"),
        None
    );
}

/// 6.6b behind a relay: what waits for a node that has left ends, and not only when it would be lost.
#[tokio::test]
async fn session_ends_with_the_node_that_left_behind_a_relay() {
    let (home, cloud, office) = three().await;
    home.tells(&office, "{\"hello\":1}").await;
    home.mesh.announce_shutdown(Duration::from_secs(30));
    let told = async {
        while !matches!(office.mesh.session(&home.name).await, Err(failure) if failure.code == Code::ShuttingDown)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), told).await.unwrap();
    // It finishes what runs: as long as a way leads there, nothing has ended.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let lost = |seen: &Recorder| seen.events().contains(&Event::Lost(node("home")));
    assert!(!lost(&office.seen));
    home.mesh.shutdown(Duration::from_secs(1)).await;
    let ended = office.seen.until(lost);
    assert!(timeout(Duration::from_secs(10), ended).await.is_ok());
    drop(cloud);
}

#[tokio::test]
async fn a_node_that_does_not_relay_passes_nothing_on() {
    let middle = Node::start("middle", 1).await;
    let (home, office) = (Node::start("home", 1).await, Node::start("office", 1).await);
    home.dial(&middle);
    office.dial(&middle);
    home.sees("office", |view| view.key_id.is_some()).await;
    let refused = home.mesh.session(&office.name).await.unwrap_err();
    assert_eq!(refused.code, Code::NoRoute);
}

/// 6.2: a relay is believed only if the operator believes it.
#[tokio::test]
async fn a_relay_that_is_not_believed_is_not_used() {
    let cloud = Node::relay("cloud").await;
    let office = Node::start("office", 1).await;
    office.dial(&cloud);
    office.linked_to("cloud").await;
    let us = ourselves("home", 1);
    let mut settings = MeshSettings::new(us.clone(), 1);
    settings.relays = globset::GlobSet::empty();
    let mesh = Mesh::new(settings, Recorder::new(), Tasks::new());
    let home = Node {
        name: us.node_id.clone(),
        mesh,
        seen: Recorder::new(),
        us,
        port: 0,
    };
    home.dial(&cloud);
    home.sees("office", |view| view.key_id.is_some()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let refused = home.mesh.session(&office.name).await.unwrap_err();
    assert_eq!(refused.code, Code::NoRoute);
    home.tells(&cloud, "{\"itself\":1}").await;
}

/// T60 at the level of the mesh: the way moves to the other relay.
#[tokio::test]
async fn another_relay_takes_over() {
    let (one, two) = (Node::relay("one").await, Node::relay("two").await);
    let (home, office) = (Node::start("home", 1).await, Node::start("office", 1).await);
    for relay in [&one, &two] {
        home.dial(relay);
        office.dial(relay);
    }
    let reached = home.sees("office", |view| view.reach == Reach::Relay).await;
    home.tells(&office, "{\"n\":1}").await;
    let used = reached.reachable_via.unwrap();
    let (gone, left) = if used.as_str() == "one" {
        (one, "two")
    } else {
        (two, "one")
    };
    gone.mesh.shutdown(Duration::from_secs(1)).await;
    home.reaches("office", left).await;
    home.tells(&office, "{\"n\":2}").await;
    office.tells(&home, "{\"n\":3}").await;
}

#[tokio::test]
async fn a_target_that_goes_is_said_so() {
    let (home, _cloud, office) = three().await;
    home.tells(&office, "{\"n\":1}").await;
    office.mesh.announce_shutdown(Duration::from_secs(5));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        match home.mesh.session(&office.name).await {
            Err(refused) => {
                assert_eq!(refused.code, Code::ShuttingDown);
                break;
            }
            Ok(_) => assert!(tokio::time::Instant::now() < deadline, "never said"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    office.mesh.shutdown(Duration::from_secs(1)).await;
    home.sees("office", |view| view.reach == Reach::Unreachable)
        .await;
    let refused = home.mesh.session(&office.name).await.unwrap_err();
    assert!(
        matches!(refused.code, Code::NoRoute | Code::ShuttingDown),
        "{refused:?}"
    );
}

/// A relay answers for a node that it does not reach either.
#[tokio::test]
async fn no_way_is_said_at_once() {
    let (home, cloud, office) = three().await;
    office.mesh.shutdown(Duration::from_secs(1)).await;
    home.sees("office", |view| view.reach == Reach::Unreachable)
        .await;
    let asked = tokio::time::Instant::now();
    assert!(home.mesh.session(&office.name).await.is_err());
    assert!(asked.elapsed() < 4 * RTO_MIN);
    drop(cloud);
}

/// A session outlives its way, but no new request may leave over it: what was sent may have had effects.
#[tokio::test]
async fn nothing_new_is_sent_where_no_way_leads_any_more() {
    let (home, _cloud, office) = three().await;
    home.tells(&office, "{\"n\":1}").await;
    // As if it was killed: no goodbye, and it does not come back.
    office.mesh.hub.stop.cancel();
    for link in office.mesh.hub.open_links() {
        link.end(crate::wire::close::CloseCode::Normal, "killed");
    }
    home.sees("office", |view| view.reach == Reach::Unreachable)
        .await;
    let refused = home.mesh.session(&office.name).await.unwrap_err();
    assert_eq!(refused.code, Code::NoRoute, "{refused:?}");
}

#[tokio::test]
async fn offers_cross_the_relay() {
    let (home, _cloud, office) = three().await;
    office.mesh.set_offer(Descriptor {
        software: "clawmatrix/test".into(),
        models: vec![ModelOffer {
            id: "qwen".into(),
            ..ModelOffer::default()
        }],
        ..Descriptor::default()
    });
    home.sees("office", |view| view.descriptor.models.len() == 1)
        .await;
}

#[tokio::test]
async fn load_crosses_the_relay() {
    let (home, _cloud, office) = three().await;
    let load = |active| Load {
        active,
        cap: 2,
        ..Load::default()
    };
    for (active, share) in [(0, 0.0), (2, 1.0)] {
        office.mesh.set_load(Some(load(active)));
        home.sees("office", |view| {
            view.load.and_then(|load| load.share()) == Some(share)
        })
        .await;
    }
}

#[tokio::test]
async fn three_relays_in_a_row_carry_frames() {
    let relays = [
        Node::relay("r1").await,
        Node::relay("r2").await,
        Node::relay("r3").await,
    ];
    relays[1].dial(&relays[0]);
    relays[2].dial(&relays[1]);
    let (home, office) = (Node::start("home", 1).await, Node::start("office", 1).await);
    home.dial(&relays[0]);
    office.dial(&relays[2]);
    home.reaches("office", "r1").await;
    office.reaches("home", "r3").await;
    home.tells(&office, "{\"far\":1}").await;
    office.tells(&home, "{\"far\":2}").await;
}
