//! What may run once only leaves in the one session whose clock it names, and word that it never began
//! is believed only while it must be true (7.1, T124, T125).

use super::*;
use crate::wire::limits::{NEVER_BEGAN_FOR, RIDS_PER_PEER, UNRUN_MEMORY};

/// A way that loses everything.
fn deaf() -> Manner {
    Manner {
        up: Box::new(|_, _| Fate::Drop),
        ..Manner::default()
    }
}

/// The outcome of a call, as code and stage.
async fn outcome(call: &mut Call) -> (Code, Stage) {
    let failure = within(call.next()).await.unwrap_err();
    (failure.code, failure.stage)
}

#[tokio::test(start_paused = true)]
async fn what_met_a_full_link_does_not_leave_in_a_later_session() {
    for body in [1, 200_000] {
        let pair = Pair::with(Manner {
            room: 0,
            ..Manner::default()
        });
        let mut call = pair.open(once(noise(body)));
        let mut harmless = pair.open(request("q"));
        // Between two looks at the clock.
        tokio::time::sleep(SECOND * 13 / 100).await;
        let _second = Cable::new(&pair.a, &pair.b, Manner::default());
        // The first one has room again, before the clock has looked at anything.
        pair.cable.a.freed.notify_waiters();
        assert_eq!(
            outcome(&mut call).await,
            (Code::PeerUnreachable, Stage::NotStarted)
        );
        tokio::time::sleep(10 * SECOND).await;
        let stats = pair.b.exchange.stats();
        assert_eq!(stats.inbound_total, 1, "only what may run twice went over");
        harmless.next().await.unwrap();
    }
}

/// A hint, a gap, an ack of the other stream, the clock: whatever makes the exchange send again.
#[tokio::test(start_paused = true)]
async fn nothing_makes_a_bound_request_leave_in_another_session() {
    let pair = Pair::with(deaf());
    let mut call = pair.open(once("x"));
    tokio::time::sleep(SECOND / 10).await;
    let second = Cable::new(&pair.a, &pair.b, Manner::default());
    let mut other = pair.open(request("q"));
    let rid = call.rid();
    for _ in 0..2 {
        pair.a.exchange.dropped(&second.session_a);
        // Each alone, or the cancel of a later one would overtake what an earlier one sent.
        tokio::time::sleep(SECOND).await;
        second.forge_to_a(
            &format!(r#"{{"type":"ack","a":[["{rid}","up",0,262144]]}}"#),
            b"",
        );
        tokio::time::sleep(SECOND).await;
    }
    pair.a.exchange.rerouted(&second.session_a);
    assert_eq!(
        outcome(&mut call).await,
        (Code::OutcomeUnknown, Stage::Started)
    );
    other.next().await.unwrap();
    assert_eq!(pair.b.exchange.stats().inbound_total, 1);
}

/// The caller found an older session than the one that is sent in.
#[tokio::test(start_paused = true)]
async fn a_request_says_the_time_of_the_session_it_leaves_in() {
    let mut pair = Pair::new();
    tokio::time::sleep(100 * SECOND).await;
    let _second = Cable::new(&pair.a, &pair.b, Manner::default());
    let (_call, incoming) = pair.start(once("x")).await;
    let json: serde_json::Value = serde_json::from_slice(&incoming.json).unwrap();
    assert_eq!(json["at"], 0);
    assert_eq!(drops(&pair.b, DropReason::Stale), 0);
}

/// The asker was suspended, so that its own clocks stood still: the node asked may have run it and
/// forgotten it since.
#[tokio::test(start_paused = true)]
async fn a_refusal_long_after_sending_proves_nothing() {
    for (age, wanted) in [
        (NEVER_BEGAN_FOR, (Code::StaleRequest, Stage::NotStarted)),
        (
            NEVER_BEGAN_FOR + SECOND,
            (Code::OutcomeUnknown, Stage::Started),
        ),
    ] {
        let pair = Pair::with(deaf());
        let mut call = pair.open(once("x"));
        *pair.cable.a.skew.lock().unwrap() = age;
        let rid = call.rid();
        pair.cable.forge_to_a(
            &format!(
                r#"{{"type":"error","rid":"{rid}","code":"stale_request","message":"held back","retryable":true,"stage":"not_started"}}"#
            ),
            b"",
        );
        assert_eq!(outcome(&mut call).await, wanted, "{age:?}");
    }
}

/// 7.1: what cannot be remembered is not answered, and is answered once there is room.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_remembered_is_not_promised() {
    let mut pair = Pair::new();
    let (exchange, session) = (pair.a.exchange.clone(), pair.cable.session_a.clone());
    let ask = |rid| exchange.query(&session, rid, 5 * SECOND);
    for _ in 0..RIDS_PER_PEER {
        let rid = RequestId::random();
        pair.cable
            .forge_to_b(&format!(r#"{{"type":"query","rid":"{rid}"}}"#), b"");
    }
    let rid = RequestId::random();
    assert_eq!(
        ask(rid).await.unwrap_err().code,
        Code::OutcomeUnknown,
        "no fence without room for it"
    );
    // A refusal is not told either: the copy that comes next might be taken.
    *pair.cable.b.skew.lock().unwrap() = 61 * SECOND;
    let mut stale = pair.open(once("x"));
    assert_eq!(outcome(&mut stale).await.0, Code::OutcomeUnknown);
    *pair.cable.b.skew.lock().unwrap() = Duration::ZERO;
    assert!(drops(&pair.b, DropReason::Overloaded) >= 2);
    // What may run still runs.
    let (mut call, incoming) = pair.start(once("y")).await;
    drop(incoming);
    assert_eq!(outcome(&mut call).await.1, Stage::Started);
    tokio::time::sleep(UNRUN_MEMORY).await;
    assert_eq!(ask(rid).await.unwrap(), Phase::Unknown);
    let mut fenced = pair.open(NewRequest { rid, ..once("z") });
    assert_eq!(
        outcome(&mut fenced).await,
        (Code::StaleRequest, Stage::NotStarted)
    );
}

/// T124, T125: a relay keeps the only copies of a command while its asker learns that it never began
/// and asks again. However late and into however churned a table the copies come, nothing runs twice.
#[tokio::test(start_paused = true)]
async fn copies_held_back_never_run_beside_the_repetition() {
    let held = Arc::new(Mutex::new(None));
    let holding = Arc::new(AtomicBool::new(true));
    let (keep, holds) = (Arc::clone(&held), Arc::clone(&holding));
    let mut pair = Pair::with(Manner {
        up: Box::new(move |_, json| {
            let text = String::from_utf8(json.to_vec()).unwrap();
            if !holds.load(Relaxed) || !text.contains("tool_req") {
                return Fate::Deliver;
            }
            keep.lock().unwrap().get_or_insert(text);
            Fate::Drop
        }),
        ..Manner::default()
    });
    let mut first = pair.open(once("x"));
    tokio::time::sleep(SECOND).await;
    let asked = pair
        .a
        .exchange
        .query(&pair.cable.session_a, first.rid(), 5 * SECOND);
    assert_eq!(asked.await.unwrap(), Phase::Unknown);
    // So it never began: it goes again, as another one.
    holding.store(false, Relaxed);
    let (mut second, incoming) = pair.start(once("x")).await;
    let copies = [
        held.lock().unwrap().take().unwrap(),
        String::from_utf8(incoming.json.to_vec()).unwrap(),
    ];
    incoming.reply.end(good()).await.unwrap();
    assert!(answer(&mut second).await.unwrap().ok);
    assert_eq!(
        outcome(&mut first).await,
        (Code::StaleRequest, Stage::NotStarted),
        "the fence refuses what comes now"
    );
    drop((first, second, incoming.body));
    pair.quiet().await;
    for (after, churn) in [(0, 0), (61, 0), (11 * 60, 0), (2 * 3600, 2 * RIDS_PER_PEER)] {
        tokio::time::sleep(after * SECOND).await;
        for _ in 0..churn {
            let rid = RequestId::random();
            for word in ["query", "cancel"] {
                let json = format!(r#"{{"type":"{word}","rid":"{rid}","reason":"cancelled"}}"#);
                pair.cable.forge_to_b(&json, b"");
            }
        }
        for copy in &copies {
            pair.cable.forge_to_b(copy, b"x");
        }
        assert_eq!(pair.b.exchange.stats().inbound_total, 1, "{after} s later");
    }
    assert_eq!(drops(&pair.b, DropReason::Stale), 4);
}
