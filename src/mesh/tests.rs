//! Whole nodes on loopback sockets, and the registry over memory. Numbers T.. are those of
//! protocol 10.

mod door;
mod duplicates;
mod field;
mod flood;
mod relayed;
mod resume;
mod rotation;
mod secrets;
mod secure;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{net::TcpListener, time::timeout};
use url::Url;

use super::{
    Mesh, MeshSettings,
    dial::tls::PeerTls,
    drops::Reason,
    handshake::{Ourselves, Params},
    session::{Class, SessionHandler},
    testkit::{Event, Recorder, node},
    tls::ListenerTls,
    view::{Descriptor, ModelOffer, NodeView, Reach},
};
use crate::{
    config::{PeerConfig, TrustConfig},
    crypto::{
        identity::Identity,
        stretch::{MeshKey, MeshKeys},
    },
    drain::Tasks,
    ids::{Boot, MeshName, NodeId},
    trust::TrustStore,
    wire::code::Code,
};

/// Everything of one node below the exchange.
struct Node {
    name: NodeId,
    mesh: Mesh,
    seen: Arc<Recorder>,
    us: Ourselves,
    port: u16,
}

fn ourselves(name: &str, secret: u8) -> Ourselves {
    Ourselves {
        node_id: node(name),
        mesh: "test".parse::<MeshName>().unwrap(),
        identity: Arc::new(Identity::generate()),
        keys: MeshKeys::ready(MeshKey::from_bytes([secret; 32]), Vec::new()),
        trust: TrustStore::in_memory(&TrustConfig::default(), &[]).unwrap(),
        params: Params {
            relay: false,
            hb: 15,
            boot: Boot::random(),
            sw: "clawmatrix/test".into(),
        },
    }
}

impl Node {
    async fn start(name: &str, secret: u8) -> Self {
        Self::with(ourselves(name, secret), 0).await
    }

    async fn with(us: Ourselves, port: u16) -> Self {
        let seen = Recorder::new();
        Self {
            seen: seen.clone(),
            ..Self::handled(us, port, seen).await
        }
    }

    /// A node whose sessions belong to `handler`.
    async fn handled(us: Ourselves, port: u16, handler: Arc<dyn SessionHandler>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        Self::listening(us, listener, None, handler)
    }

    /// A node that accepts links on `listener`.
    fn listening(
        us: Ourselves,
        listener: TcpListener,
        tls: Option<ListenerTls>,
        handler: Arc<dyn SessionHandler>,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let incarnation = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_millis() as u64;
        let settings = MeshSettings::new(us.clone(), incarnation);
        let mesh = Mesh::new(settings, handler, Tasks::new());
        mesh.listen(listener, tls);
        Self {
            name: node(name_of(&us)),
            mesh,
            seen: Recorder::new(),
            us,
            port,
        }
    }

    fn peer(&self) -> PeerConfig {
        self.peer_called(self.name.as_str())
    }

    fn peer_called(&self, name: &str) -> PeerConfig {
        PeerConfig {
            node_id: node(name),
            url: Url::parse(&format!("ws://127.0.0.1:{}/mesh/v1", self.port)).unwrap(),
            port_given: true,
            key: None,
            tls: PeerTls::Web,
            proxy: None,
        }
    }

    fn dial(&self, other: &Node) {
        self.mesh.dial(vec![other.peer()]);
    }

    /// Waits until this node sees `other` as `good` wants.
    async fn sees(&self, other: &str, good: impl Fn(&NodeView) -> bool) -> NodeView {
        let other = node(other);
        let mut view = self.mesh.view();
        let found = view.wait_for(|view| view.nodes.get(&other).is_some_and(&good));
        let found = timeout(Duration::from_secs(20), found)
            .await
            .map(|view| view.unwrap().clone());
        match found {
            Ok(view) => view.nodes[&other].clone(),
            Err(_) => panic!("never seen; last: {:?}", self.mesh.view().borrow().nodes),
        }
    }

    async fn linked_to(&self, other: &str) -> NodeView {
        self.sees(other, |view| view.reach == Reach::Direct).await
    }
}

fn name_of(us: &Ourselves) -> &str {
    us.node_id.as_str()
}

async fn pair() -> (Node, Node) {
    let office = Node::start("office", 1).await;
    let home = Node::start("home", 1).await;
    home.dial(&office);
    home.linked_to("office").await;
    office.linked_to("home").await;
    (office, home)
}

#[tokio::test]
async fn linked_nodes_see_and_hear_one_another() {
    let (office, home) = pair().await;
    let session = home.mesh.session(&office.name).await.unwrap();
    session
        .send(Class::Interactive, b"{\"hello\":1}", b"")
        .unwrap();
    office
        .seen
        .until(|seen| seen.frames() == ["{\"hello\":1}"])
        .await;
    let back = office.mesh.session(&home.name).await.unwrap();
    assert_eq!(back.id(), session.id());
    assert_eq!(back.peer().key, home.us.identity.public());
    let view = home.sees("office", |view| view.latency_ms.is_some()).await;
    assert_eq!(view.key_id, Some(office.us.identity.public().id()));
    assert_eq!(view.descriptor.software, "clawmatrix/test");
    assert!(view.last_seen.is_some() && view.problem.is_none());
}

#[tokio::test]
async fn offers_arrive_at_once_and_on_change() {
    let offer = |id: &str| Descriptor {
        software: "clawmatrix/test".into(),
        models: vec![ModelOffer {
            id: id.into(),
            ..ModelOffer::default()
        }],
        ..Descriptor::default()
    };
    let office = Node::start("office", 1).await;
    office.mesh.set_offer(offer("early"));
    let home = Node::start("home", 1).await;
    home.dial(&office);
    let has = |id: &'static str| {
        move |view: &NodeView| view.descriptor.models.iter().any(|model| model.id == id)
    };
    home.sees("office", has("early")).await;
    office.mesh.set_offer(offer("late"));
    home.sees("office", has("late")).await;
}

#[tokio::test]
async fn different_secrets_are_named_and_nothing_is_learned() {
    let office = Node::start("office", 1).await;
    let home = Node::start("home", 2).await;
    home.dial(&office);
    let view = home.sees("office", |view| view.problem.is_some()).await;
    assert!(view.problem.unwrap().contains("secrets differ"));
    assert_eq!(office.mesh.view().borrow().nodes.len(), 0);
    assert!(
        office
            .mesh
            .drops()
            .contains(&(Reason::AuthFailed.as_str(), 1))
    );
    assert_eq!(
        home.mesh.session(&office.name).await.unwrap_err().code,
        Code::NoRoute
    );
}

#[tokio::test]
async fn another_name_at_the_address_is_told_with_both_names() {
    let office = Node::start("office", 1).await;
    let home = Node::start("home", 1).await;
    home.mesh.dial(vec![office.peer_called("attic")]);
    let problem = home
        .sees("attic", |view| view.problem.is_some())
        .await
        .problem
        .unwrap();
    assert!(
        problem.contains("attic") && problem.contains("office"),
        "{problem}"
    );
}

#[tokio::test]
async fn link_comes_back_after_a_restart_of_the_other_node() {
    let (office, home) = pair().await;
    let (us, port) = (office.us.clone(), office.port);
    office.mesh.shutdown(Duration::from_secs(5)).await;
    let away = home
        .sees("office", |view| view.reach == Reach::Unreachable)
        .await;
    assert_eq!(away.descriptor.software, "clawmatrix/test");
    let problem = away.problem.unwrap();
    assert!(problem.contains("shutting_down"), "{problem}");
    assert_eq!(
        home.mesh.session(&office.name).await.unwrap_err().code,
        Code::NoRoute
    );
    drop(office);
    let us = Ourselves {
        params: Params {
            boot: Boot::random(),
            ..us.params
        },
        ..us
    };
    let office = Node::with(us, port).await;
    home.linked_to("office").await;
    office.linked_to("home").await;
}

#[tokio::test]
async fn node_that_goes_away_gets_nothing_new() {
    let (office, home) = pair().await;
    office.mesh.announce_shutdown(Duration::from_secs(30));
    let told = async {
        loop {
            match home.mesh.session(&office.name).await {
                Err(failure) => return failure.code,
                Ok(_) => tokio::task::yield_now().await,
            }
        }
    };
    let code = timeout(Duration::from_secs(20), told).await.unwrap();
    assert_eq!(code, Code::ShuttingDown);
    assert!(
        home.seen
            .events()
            .iter()
            .all(|e| !matches!(e, Event::Lost(_))),
        "what runs goes on"
    );
}

#[tokio::test]
async fn denied_key_loses_its_link_and_gets_no_other() {
    let (office, home) = pair().await;
    office
        .us
        .trust
        .deny(home.us.identity.public().id())
        .unwrap();
    home.sees("office", |view| view.reach == Reach::Unreachable)
        .await;
    let refused = |view: &NodeView| {
        view.problem
            .as_deref()
            .is_some_and(|problem| problem.contains("refused us"))
    };
    home.sees("office", refused).await;
    office
        .sees("home", |view| view.reach == Reach::Unreachable)
        .await;
}

#[tokio::test]
async fn unknown_node_is_told_apart_from_an_unreached_one() {
    let home = Node::start("home", 1).await;
    let code = home.mesh.session(&node("nowhere")).await.unwrap_err().code;
    assert_eq!(code, Code::NodeNotFound);
}

#[tokio::test]
async fn large_frames_cross_sockets_in_order_both_ways() {
    let (office, home) = pair().await;
    let to_office = home.mesh.session(&office.name).await.unwrap();
    let to_home = office.mesh.session(&home.name).await.unwrap();
    for n in 0..200u32 {
        let json = format!("{{\"n\":{n}}}");
        let data = vec![n as u8; 60_000];
        for session in [&to_office, &to_home] {
            while session.send(Class::Bulk, json.as_bytes(), &data).is_err() {
                session.room(Class::Bulk).await;
            }
        }
    }
    let expected: Vec<String> = (0..200).map(|n| format!("{{\"n\":{n}}}")).collect();
    for side in [&office, &home] {
        side.seen.until(|seen| seen.frames().len() == 200).await;
        assert_eq!(side.seen.frames(), expected);
    }
}
