//! Two links between the same two nodes (protocol 6.7), over memory with handshakes made by hand.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::{
    crypto::{identity::PublicKey, secret::Secret},
    ids::SessionId,
    mesh::{
        handshake::{Established, Role},
        hub::Hub,
        memory::{self, End},
        session::Peer,
        testkit::carriage,
    },
    trust::Level,
};

struct Half {
    hub: Arc<Hub>,
    us: Ourselves,
    seen: Arc<Recorder>,
}

fn half(name: &str) -> Half {
    let (us, seen) = (ourselves(name, 1), Recorder::new());
    let settings = MeshSettings::new(us.clone(), 1);
    Half {
        hub: Hub::new(settings, seen.clone(), Tasks::new()),
        us,
        seen,
    }
}

/// Two halves; the first has the smaller key.
fn halves() -> (Half, Half) {
    let (a, b) = (half("a"), half("b"));
    if a.us.identity.public() < b.us.identity.public() {
        (a, b)
    } else {
        (b, a)
    }
}

fn established(of: &Half, dialed: bool, sid: u8, boot: Boot) -> Established {
    let peer = |key: PublicKey| Peer {
        node: of.us.node_id.clone(),
        key,
        boot,
        level: Level::Pinned,
        labels: Arc::new([]),
    };
    let (send, recv) = if dialed { (1, 2) } else { (2, 1) };
    Established {
        peer: peer(of.us.identity.public()),
        params: of.us.params.clone(),
        sid: SessionId([sid; 16]),
        role: if dialed { Role::Dialer } else { Role::Listener },
        send_key: Secret::new([send; 32]),
        recv_key: Secret::new([recv; 32]),
        secret: crate::crypto::stretch::SecretId(0),
    }
}

/// `at` takes in its half of a link to `of`.
async fn admit(at: &Half, of: &Half, dialed: bool, sid: u8, end: End) -> bool {
    let established = established(of, dialed, sid, of.us.params.boot);
    let admitted = at
        .hub
        .admit(established, carriage(), (end.sink, end.stream))
        .await;
    admitted.is_some()
}

async fn settled(side: &Half, other: &Half, sid: u8) {
    let good = || match &side.hub.open_links()[..] {
        [link] => link.sid() == SessionId([sid; 16]) && link.neighbour().node == other.us.node_id,
        _ => false,
    };
    let mut changed = side.hub.links_changed.subscribe();
    let wait = async {
        while !good() {
            changed.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(2), wait)
        .await
        .expect("one link within 2 s");
}

/// T71, with the two handshakes ending in every order.
#[tokio::test(start_paused = true)]
async fn simultaneous_dials_leave_the_link_of_the_smaller_key() {
    for round in 0..240 {
        let (small, large) = halves();
        // Link 1 was dialed by the smaller key, link 2 by the larger one.
        let (one, two) = (memory::pair(), memory::pair());
        let mut ends = vec![
            (&small, &large, true, 1, one.0),
            (&large, &small, false, 1, one.1),
            (&large, &small, true, 2, two.0),
            (&small, &large, false, 2, two.1),
        ];
        let mut order = round % 24;
        while !ends.is_empty() {
            let (at, of, dialed, sid, end) = ends.swap_remove(order % ends.len());
            order /= ends.len() + 1;
            admit(at, of, dialed, sid, end).await;
        }
        settled(&small, &large, 1).await;
        settled(&large, &small, 1).await;
        // And it works.
        let session = small.hub.session(&large.us.node_id).await.unwrap();
        session.send(Class::Interactive, b"{}", b"").unwrap();
        large.seen.until(|seen| seen.frames().len() == 1).await;
        small.hub.stop.cancel();
        large.hub.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn second_dial_loses_to_a_link_that_answers() {
    let (a, b) = halves();
    let ((near, far), (near2, far2)) = (memory::pair(), memory::pair());
    assert!(admit(&a, &b, false, 1, near).await);
    assert!(admit(&b, &a, true, 1, far).await);
    // `b` dials again although its first link is fine.
    let began = Instant::now();
    assert!(!admit(&a, &b, false, 2, near2).await);
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(far2);
    settled(&a, &b, 1).await;
}

#[tokio::test(start_paused = true)]
async fn second_dial_replaces_a_link_that_does_not_answer() {
    let (a, b) = halves();
    let ((near, _silent), (near2, far2)) = (memory::pair(), memory::pair());
    assert!(admit(&a, &b, false, 1, near).await);
    let began = Instant::now();
    assert!(admit(&a, &b, false, 2, near2).await);
    assert!(admit(&b, &a, true, 2, far2).await);
    assert!(began.elapsed() <= Duration::from_secs(3));
    settled(&a, &b, 2).await;
}

#[tokio::test(start_paused = true)]
async fn ever_new_links_are_held_off() {
    let (a, b) = halves();
    let mut ends = Vec::new();
    for n in 0..8 {
        let (near, far) = memory::pair();
        ends.push(far);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let admitted = admit(&a, &b, false, n, near).await;
        assert_eq!(admitted, n < 7, "the first and six replacements");
    }
    assert_eq!(a.hub.drops.get(Reason::HoldOff), 1);
}

#[tokio::test(start_paused = true)]
async fn restarted_node_takes_over_at_once() {
    let (a, b) = halves();
    let ((near, _far), (near2, _far2)) = (memory::pair(), memory::pair());
    assert!(admit(&a, &b, true, 1, near).await);
    let new_boot = established(&b, false, 2, Boot::random());
    assert!(
        a.hub
            .admit(new_boot, carriage(), (near2.sink, near2.stream))
            .await
            .is_some()
    );
    settled(&a, &b, 2).await;
}
