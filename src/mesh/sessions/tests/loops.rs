//! Frames in tables that lead in a circle.

use super::{liars::Member, *};

/// T74: each relay believes that the next one leads to office, as stale tables may for a moment.
#[tokio::test(start_paused = true)]
async fn a_frame_in_a_circle_dies() {
    let ring = ["r0", "r1", "r2"].map(|name| Member::new(name, true));
    let next = |n: usize| &ring[(n + 1) % ring.len()];
    for (n, member) in ring.iter().enumerate() {
        member.join(next(n)).await;
    }
    let home = Relay::new("home", false);
    home.joins(&ring[0]).await;
    tokio::time::sleep(20 * SECOND).await;
    for (n, member) in ring.iter().enumerate() {
        let links = member.mesh.hub.open_links();
        let to_next = |link: &Arc<Link>| link.neighbour().node == next(n).us.node_id;
        let hop = Hop {
            link: links.into_iter().find(to_next).unwrap(),
            direct: false,
            rtt: None,
        };
        let table = HashMap::from([(node("office"), hop)]);
        member.mesh.hub.sessions.0.hops.replace(table);
    }
    let tie = SessionId([1; 16]);
    home.inject(
        "r0",
        Frame::plain(Kind::Routed, "home", "office", &tie, vec![0; 64]),
    );
    tokio::time::sleep(SECOND / 2).await;
    let passed = ring.iter().map(|at| at.mesh.carried().relayed_frames);
    let passed: u64 = passed.sum();
    assert!((3..=8).contains(&passed), "{passed} transmissions");
    let ended = ring
        .iter()
        .map(|at| at.dropped(Reason::Repeated) + at.dropped(Reason::TtlSpent));
    assert_eq!(ended.sum::<u64>(), 1);
}
