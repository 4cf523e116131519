//! A node comes back with another key (protocol 2): T27 over sockets.

use super::*;
use crate::{
    crypto::rotation::Rotation,
    mesh::{rotation, signed::Signed},
};

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_millis() as u64
}

/// `us` with another key, as after a restart, and the record that says so.
fn rotated(us: &Ourselves) -> (Ourselves, Signed) {
    let new = Identity::generate();
    let rotation = Rotation {
        node: us.node_id.clone(),
        old: us.identity.public(),
        new: new.public(),
        seq: unix_ms(),
        ts: 0,
    };
    let record = rotation::sign(&rotation, &us.identity, &new);
    let us = Ourselves {
        identity: Arc::new(new),
        params: Params {
            boot: Boot::random(),
            ..us.params.clone()
        },
        ..us.clone()
    };
    (us, record)
}

/// A later start of a node at `port`, which shows `rotations`.
async fn again(us: Ourselves, port: u16, rotations: Vec<Signed>) -> Node {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let settings = MeshSettings {
        rotations,
        ..MeshSettings::new(us.clone(), unix_ms())
    };
    let seen = Recorder::new();
    let mesh = Mesh::new(settings, seen.clone(), Tasks::new());
    mesh.listen(listener, None);
    Node {
        name: node(name_of(&us)),
        mesh,
        seen,
        us,
        port,
    }
}

fn has_key(us: &Ourselves) -> impl Fn(&NodeView) -> bool + use<> {
    let id = us.identity.public().id();
    move |view| view.reach == Reach::Direct && view.key_id == Some(id)
}

#[tokio::test]
async fn who_dials_learns_the_new_key_at_the_door() {
    let (office, home) = pair().await;
    let (us, record) = rotated(&office.us);
    let (port, old) = (office.port, office.us.clone());
    office.mesh.shutdown(Duration::from_secs(1)).await;
    let office = again(us, port, vec![record]).await;
    home.sees("office", has_key(&office.us)).await;
    assert!(
        home.us
            .trust
            .holds(&office.name, &office.us.identity.public())
    );
    assert_eq!(home.us.trust.conflicts(), [], "nothing to alert of");
    home.mesh.session(&office.name).await.unwrap();

    // Somebody who has the old key is not the node any more.
    office.mesh.shutdown(Duration::from_secs(1)).await;
    let _thief = Node::with(old, port).await;
    let refused = |view: &NodeView| {
        let problem = view.problem.as_deref();
        problem.is_some_and(|problem| problem.contains("was given up for"))
    };
    home.sees("office", refused).await;
    assert_eq!(home.us.trust.conflicts().len(), 1);
}

#[tokio::test]
async fn who_is_dialed_learns_the_new_key_after_the_proof() {
    let (office, home) = pair().await;
    let (us, record) = rotated(&home.us);
    let port = home.port;
    home.mesh.shutdown(Duration::from_secs(1)).await;
    let home = again(us, port, vec![record]).await;
    home.dial(&office);
    home.linked_to("office").await;
    office.sees("home", has_key(&home.us)).await;
    assert_eq!(office.us.trust.conflicts(), []);
}

/// A record that one key alone has signed, shown by a node that has a key of its own.
#[tokio::test]
async fn half_a_record_opens_no_door() {
    let (office, home) = pair().await;
    let (us, _) = rotated(&office.us);
    let claim = Rotation {
        node: office.name.clone(),
        old: office.us.identity.public(),
        new: us.identity.public(),
        seq: 5,
        ts: 0,
    };
    // The thief has no old key: it signs both halves with its own.
    let forged = rotation::sign(&claim, &us.identity, &us.identity);
    let port = office.port;
    office.mesh.shutdown(Duration::from_secs(1)).await;
    let _thief = again(us, port, vec![forged]).await;
    let refused = |view: &NodeView| {
        let problem = view.problem.as_deref();
        problem.is_some_and(|problem| problem.contains("identity conflict"))
    };
    home.sees("office", refused).await;
    assert!(
        home.us
            .trust
            .holds(&office.name, &office.us.identity.public())
    );
}

/// Nodes behind a relay hear of the new key by its record, and one that was away hears at its return.
#[tokio::test]
async fn the_record_reaches_who_is_not_linked_and_who_was_away() {
    let mut us = ourselves("relay", 1);
    us.params.relay = true;
    let relay = Node::with(us, 0).await;
    let (office, home, away) = (
        Node::start("office", 1).await,
        Node::start("home", 1).await,
        Node::start("away", 1).await,
    );
    for one in [&office, &home, &away] {
        one.dial(&relay);
    }
    for one in [&home, &away] {
        one.sees("office", |view| view.reach == Reach::Relay).await;
        one.mesh.session(&office.name).await.unwrap();
    }
    let (away_us, away_port) = (away.us.clone(), away.port);
    away.mesh.shutdown(Duration::from_secs(1)).await;
    let (us, record) = rotated(&office.us);
    let port = office.port;
    office.mesh.shutdown(Duration::from_secs(1)).await;
    let office = again(us, port, vec![record]).await;
    office.dial(&relay);
    let id = office.us.identity.public().id();
    let reached = |view: &NodeView| view.reach == Reach::Relay && view.key_id == Some(id);
    home.sees("office", reached).await;
    home.mesh.session(&office.name).await.unwrap();

    let away_us = Ourselves {
        params: Params {
            boot: Boot::random(),
            ..away_us.params
        },
        ..away_us
    };
    let away = Node::with(away_us, away_port).await;
    away.dial(&relay);
    away.sees("office", reached).await;
    let session = away.mesh.session(&office.name).await.unwrap();
    assert_eq!(session.peer().key, office.us.identity.public());
    for one in [&relay, &home, &away] {
        assert_eq!(one.us.trust.conflicts(), [], "{}", one.name);
    }
}
