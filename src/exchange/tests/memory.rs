//! Bounds: bytes held, entries remembered, floods (T57 and the leak checks).

use super::*;
use crate::wire::limits::{PEER_BUDGET_BYTES, RIDS_PER_PEER};

#[tokio::test(start_paused = true)]
async fn a_thousand_stalled_streams_stay_under_the_budget_and_recover() {
    let mut pair = Pair::with(Manner {
        room: 64 * 1024 * 1024,
        ..Manner::default()
    });
    let mut calls = Vec::new();
    for i in 0..1000 {
        match pair.a.exchange.open(&pair.cable.session_a, request("q")) {
            Ok(call) => calls.push(call),
            Err(failure) => {
                assert_eq!(failure.code, Code::Overloaded);
                assert!(failure.retry_after.is_some());
                assert!(i > 40);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        if let Ok(incoming) = pair.b.inbox.try_recv() {
            spawn(async move {
                let mut reply = incoming.reply;
                let _ = reply.head(200, "{}", noise(400_000), Some(good())).await;
            });
        }
        assert!(pair.a.exchange.stats().bytes_held <= PEER_BUDGET_BYTES);
    }
    assert!(calls.len() < 200, "{}", calls.len());
    // A reader that reads frees it, and new requests are taken again.
    let started = calls.len();
    let mut whole = 0;
    for call in &mut calls {
        whole += usize::from(
            answer(call)
                .await
                .is_ok_and(|got| got.data.len() == 400_000),
        );
    }
    assert_eq!(whole, started);
    drop(calls);
    pair.quiet().await;
    let (_call, _incoming) = pair.start(request("again")).await;
}

#[tokio::test(start_paused = true)]
async fn the_node_asked_refuses_when_bodies_fill_it() {
    for limits in [
        Limits {
            node_budget_bytes: 1024 * 1024,
            ..Limits::default()
        },
        Limits {
            peer_budget_bytes: 1024 * 1024,
            ..Limits::default()
        },
    ] {
        bodies_fill(limits).await;
    }
}

/// Requests with bodies until 1 MiB is held.
async fn bodies_fill(limits: Limits) {
    let mut pair = Pair::new();
    pair.b = Node::with_limits("office-02", 3, limits);
    pair.cable = Cable::new(&pair.a, &pair.b, Manner::default());
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..10 {
        let mut call = pair.open(request(noise(300_000)));
        tokio::time::sleep(2 * SECOND).await;
        match pair.b.inbox.try_recv() {
            Ok(incoming) => open.push((call, incoming)),
            Err(_) => {
                let failure = within(call.next()).await.unwrap_err();
                assert_eq!(
                    (failure.code, failure.stage),
                    (Code::Overloaded, Stage::NotStarted)
                );
                refused += 1;
            }
        }
        assert!(pair.b.exchange.stats().bytes_held <= 1024 * 1024);
    }
    assert!(open.len() >= 3 && refused >= 5);
    for (call, incoming) in &mut open {
        assert_eq!(body(&mut incoming.body).await.unwrap(), noise(300_000));
        assert!(call.rid() == incoming.rid);
    }
    drop(open);
    pair.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn bodies_that_callers_hold_count_against_the_node() {
    let limits = Limits {
        node_budget_bytes: 1024 * 1024,
        ..Limits::default()
    };
    let mut pair = Pair::new();
    pair.a = Node::with_limits("home-02", 3, limits);
    pair.cable = Cable::new(&pair.a, &pair.b, Manner::default());
    let budget = pair.a.exchange.budget();
    let mut body = budget.hold(700_000).unwrap();
    assert!(body.grow(200_000));
    assert!(!body.grow(200_000));
    let refused = pair
        .a
        .exchange
        .open(&pair.cable.session_a, request("q"))
        .unwrap_err();
    assert_eq!(
        (refused.code, refused.stage),
        (Code::Overloaded, Stage::NotStarted)
    );
    drop(body);
    let (_call, _incoming) = pair.start(request("q")).await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_cancels_and_queries_is_remembered_within_bounds() {
    let pair = Pair::new();
    for i in 0..20_000_u32 {
        let kind = if i % 2 == 0 { "cancel" } else { "query" };
        let rid = RequestId::random();
        pair.cable
            .forge_to_b(&format!(r#"{{"type":"{kind}","rid":"{rid}"}}"#), b"");
        if i % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(pair.b.exchange.stats().remembered <= RIDS_PER_PEER);
    tokio::time::sleep(122 * SECOND).await;
    assert_eq!(pair.b.exchange.stats().remembered, 0);
}

#[tokio::test(start_paused = true)]
async fn items_for_nobody_are_acked_in_bounded_batches() {
    let pair = Pair::new();
    for _ in 0..5000 {
        let rid = RequestId::random();
        pair.cable.forge_to_a(
            &format!(r#"{{"type":"end","rid":"{rid}","seq":4,"ok":true}}"#),
            b"",
        );
    }
    assert_eq!(drops(&pair.a, DropReason::Unknown), 5000);
    // A frame for 64 of them.
    tokio::time::sleep(SECOND).await;
    assert!(pair.cable.a.sent.load(Relaxed) <= 5000 / 64 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_went_away_is_forgotten_when_its_requests_are() {
    let mut pair = Pair::new();
    for _ in 0..20 {
        let (call, incoming) = pair.start(request("q")).await;
        drop((call, incoming));
    }
    pair.quiet().await;
    assert!(pair.a.exchange.stats().remembered >= 20);
    pair.cable.cut();
    tokio::time::sleep(65 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.exchange.stats().remembered, 0);
        let table = node.exchange.shared.table();
        assert!(table.remotes.is_empty() && table.sessions.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn thousands_of_callers_that_leave_at_once_do_not_flood_the_link() {
    let mut pair = Pair::new();
    let calls: Vec<Call> = (0..2000).map(|_| pair.open(request("q"))).collect();
    let mut incoming = Vec::new();
    for _ in 0..2000 {
        incoming.push(pair.b.incoming().await);
    }
    drop(calls);
    let queued = pair.cable.a.queue.lock().unwrap().len();
    assert!(queued <= 256, "{queued}");
    let began = Instant::now();
    for incoming in incoming {
        assert_eq!(
            within(incoming.reply.cancelled()).await.code,
            Code::Cancelled
        );
    }
    assert!(began.elapsed() < SECOND);
    pair.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_refused_requests_leaves_the_control_class_alone() {
    let pair = Pair::new();
    pair.b.exchange.drain();
    for _ in 0..5000 {
        let rid = RequestId::random();
        pair.cable.forge_to_b(
            &format!(r#"{{"type":"model_req","rid":"{rid}","dl":1000,"blen":0}}"#),
            b"",
        );
    }
    let queue = pair.cable.b.queue.lock().unwrap();
    assert!(!queue.is_empty());
    assert!(queue.iter().all(|(class, _)| *class != Class::Control));
}
