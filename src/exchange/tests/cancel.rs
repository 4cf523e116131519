//! Cancellation at every state (T59), loss of the session, deadlines (T84).

use super::*;

/// After a cancel both ends have nothing, and two minutes later they remember nothing.
async fn leaves_nothing(pair: &Pair) {
    pair.quiet().await;
    tokio::time::sleep(121 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.exchange.stats().remembered, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_the_request_is_seen_keeps_it_from_running() {
    let mut pair = Pair::new();
    // In the control class it overtakes the request on the link.
    drop(pair.open(request("q")));
    pair.quiet().await;
    assert!(pair.b.inbox.try_recv().is_err());
    leaves_nothing(&pair).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_accept_stops_the_handler_at_once() {
    let mut pair = Pair::new();
    let (call, incoming) = pair.start(request("q")).await;
    let began = Instant::now();
    drop(call);
    let failure = within(incoming.reply.cancelled()).await;
    assert_eq!(failure.code, Code::Cancelled);
    assert!(began.elapsed() < Duration::from_millis(50));
    drop(incoming);
    leaves_nothing(&pair).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_in_the_middle_of_the_upload_stops_the_reader() {
    let mut pair = Pair::new();
    let (call, mut incoming) = pair.start(request(noise(5_000_000))).await;
    assert!(within(incoming.body.next()).await.unwrap().is_some());
    tokio::time::sleep(SECOND).await;
    drop(call);
    let failure = body(&mut incoming.body).await.unwrap_err();
    assert_eq!(failure.code, Code::Cancelled);
    drop(incoming);
    leaves_nothing(&pair).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_in_the_middle_of_the_answer_stops_a_writer_without_credit() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    let server = spawn(async move {
        reply.head(200, "{}", Bytes::new(), None).await.unwrap();
        let failure = reply.chunk(noise(5_000_000), None).await.unwrap_err();
        assert_eq!(failure.code, Code::Cancelled);
    });
    assert!(matches!(
        within(call.next()).await,
        Ok(Some(Item::Head { .. }))
    ));
    tokio::time::sleep(5 * SECOND).await;
    drop(call);
    server.await.unwrap();
    drop(incoming.body);
    leaves_nothing(&pair).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_after_the_end_changes_nothing() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    reply
        .head(200, "{}", Bytes::from_static(b"x"), Some(good()))
        .await
        .unwrap();
    answer(&mut call).await.unwrap();
    let rid = call.rid();
    drop((call, reply, incoming.body));
    pair.cable
        .forge_to_b(&format!(r#"{{"type":"cancel","rid":"{rid}"}}"#), b"");
    leaves_nothing(&pair).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_with_its_end_unread_sends_no_cancel() {
    let mut pair = Pair::new();
    let (call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    reply
        .head(200, "{}", Bytes::from_static(b"x"), Some(good()))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop((call, reply, incoming.body));
    pair.quiet().await;
    // Request and batch of acks.
    assert_eq!(pair.cable.a.sent.load(Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_repeated_until_answered() {
    let mut lost = 3;
    let mut pair = Pair::with(Manner {
        up: Box::new(move |_, json| {
            let cancel = json.starts_with(b"{\"type\":\"cancel\"");
            lost -= i32::from(cancel && lost > 0);
            if cancel && lost > 0 {
                Fate::Drop
            } else {
                Fate::Deliver
            }
        }),
        ..Manner::default()
    });
    let (call, incoming) = pair.start(request("q")).await;
    drop(call);
    assert_eq!(
        within(incoming.reply.cancelled()).await.code,
        Code::Cancelled
    );
    drop(incoming);
    leaves_nothing(&pair).await;
}

#[tokio::test(start_paused = true)]
async fn loss_of_the_session_ends_both_sides() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let (mut run_once, incoming_once) = pair.start(once("x")).await;
    let mut reply = incoming.reply;
    reply.head(200, "{}", "half".into(), None).await.unwrap();
    tokio::time::sleep(SECOND).await;
    pair.cable.cut();
    // What has arrived comes first, then the one outcome.
    assert!(matches!(
        within(call.next()).await,
        Ok(Some(Item::Head { .. }))
    ));
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.code, Code::StreamLost);
    assert!(!failure.retryable, "a part was delivered");
    assert!(within(call.next()).await.unwrap().is_none());
    loop {
        match within(run_once.next()).await {
            Ok(Some(Item::Accept)) => {}
            Err(failure) => {
                assert_eq!(failure.code, Code::OutcomeUnknown);
                assert!(!failure.retryable);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let told = within(reply.cancelled()).await;
    assert_eq!(told.code, Code::StreamLost);
    assert_eq!(reply.chunk("more".into(), None).await, Err(told));
    assert_eq!(
        within(incoming_once.reply.cancelled()).await.code,
        Code::StreamLost
    );
    drop((call, run_once, reply, incoming.body, incoming_once));
    pair.quiet().await;
    let none = pair
        .a
        .exchange
        .open(&pair.cable.session_a, request("again"))
        .unwrap_err();
    assert_eq!(
        (none.code, none.stage),
        (Code::PeerUnreachable, Stage::NotStarted)
    );
    // The one that ran once is remembered ten minutes, across sessions.
    tokio::time::sleep(61 * SECOND).await;
    assert_eq!(pair.b.exchange.stats().remembered, 1);
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(pair.b.exchange.stats().remembered, 0);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_idempotent_request_may_be_tried_elsewhere() {
    let mut pair = Pair::new();
    let (mut call, _incoming) = pair.start(request("q")).await;
    pair.cable.cut();
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.code, Code::StreamLost);
    assert!(failure.retryable);
}

#[tokio::test(start_paused = true)]
async fn what_never_left_is_not_started() {
    let pair = Pair::with(Manner {
        room: 0,
        ..Manner::default()
    });
    let mut call = pair.open(once("x"));
    pair.cable.cut();
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(
        (failure.code, failure.stage),
        (Code::PeerUnreachable, Stage::NotStarted)
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_lost_after_thirty_seconds() {
    let mut pair = Pair::with(Manner {
        down: Box::new(|_, _| Fate::Drop),
        ..Manner::default()
    });
    let timeouts = Timeouts {
        accept: 100 * SECOND,
        ..request("").timeouts
    };
    let (mut call, _incoming) = pair
        .start(NewRequest {
            timeouts,
            ..request("q")
        })
        .await;
    let began = Instant::now();
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.code, Code::StreamLost);
    let took = began.elapsed();
    assert!(took >= 29 * SECOND && took < 32 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_keep_a_quiet_request() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    reply.accept().await.unwrap();
    tokio::time::sleep(200 * SECOND).await;
    reply
        .head(200, "{}", Bytes::from_static(b"late"), Some(good()))
        .await
        .unwrap();
    assert_eq!(answer(&mut call).await.unwrap().data, b"late");
    assert!(pair.a.exchange.stats().noops_sent >= 15);
    drop((call, reply, incoming.body));
    pair.quiet().await;
    let noops = pair.a.exchange.stats().noops_sent;
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(pair.a.exchange.stats().noops_sent, noops, "none when idle");
}

#[tokio::test(start_paused = true)]
async fn an_idle_hour_before_a_request_is_no_silence() {
    let mut pair = Pair::new();
    tokio::time::sleep(3000 * SECOND).await;
    let (mut call, incoming) = pair.start(request("q")).await;
    tokio::time::sleep(2 * SECOND).await;
    let mut reply = incoming.reply;
    reply
        .head(200, "{}", Bytes::from_static(b"x"), Some(good()))
        .await
        .unwrap();
    assert_eq!(answer(&mut call).await.unwrap().data, b"x");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_both_sides() {
    let mut pair = Pair::new();
    let timeouts = Timeouts {
        deadline: 2 * SECOND,
        ..request("").timeouts
    };
    let began = Instant::now();
    let (mut call, incoming) = pair
        .start(NewRequest {
            timeouts,
            ..request("q")
        })
        .await;
    let left = incoming.deadline.unwrap() - began;
    assert!(left > SECOND && left <= 2 * SECOND + Duration::from_millis(10));
    let failure = within(incoming.reply.cancelled()).await;
    assert!(matches!(
        failure.code,
        Code::DeadlineExceeded | Code::Cancelled
    ));
    assert!(began.elapsed() < Duration::from_millis(2500));
    let failure = loop {
        match within(call.next()).await {
            Ok(Some(Item::Accept)) => {}
            Err(failure) => break failure,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failure.code, Code::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_millis(2500));
    drop((call, incoming));
    leaves_nothing(&pair).await;
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_to_apply_at_the_first_streamed_byte() {
    let mut pair = Pair::new();
    let timeouts = Timeouts {
        deadline: 2 * SECOND,
        ..request("").timeouts
    };
    let (mut call, incoming) = pair
        .start(NewRequest {
            timeouts,
            ..request("q")
        })
        .await;
    let mut reply = incoming.reply;
    reply.head(200, "{}", "first".into(), None).await.unwrap();
    tokio::time::sleep(20 * SECOND).await;
    reply.chunk(" last".into(), None).await.unwrap();
    reply.end(good()).await.unwrap();
    assert_eq!(answer(&mut call).await.unwrap().data, b"first last");
}

#[tokio::test(start_paused = true)]
async fn silence_between_chunks_ends_the_request() {
    let mut pair = Pair::new();
    let timeouts = Timeouts {
        idle: Some(3 * SECOND),
        ..request("").timeouts
    };
    let (mut call, incoming) = pair
        .start(NewRequest {
            timeouts,
            ..request("q")
        })
        .await;
    let mut reply = incoming.reply;
    let client = spawn(async move {
        let failure = answer(&mut call).await.unwrap_err();
        assert_eq!(failure.code, Code::Timeout);
    });
    for _ in 0..5 {
        reply.chunk("x".into(), None).await.unwrap();
        tokio::time::sleep(2 * SECOND).await;
    }
    let began = Instant::now();
    assert_eq!(within(reply.cancelled()).await.code, Code::Cancelled);
    assert!(began.elapsed() < 2 * SECOND);
    client.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_taken_for_silence() {
    let mut pair = Pair::new();
    let timeouts = Timeouts {
        idle: Some(3 * SECOND),
        ..request("").timeouts
    };
    let (mut call, incoming) = pair
        .start(NewRequest {
            timeouts,
            ..request("q")
        })
        .await;
    let mut reply = incoming.reply;
    let server = spawn(async move {
        reply
            .head(200, "{}", noise(1_000_000), Some(good()))
            .await
            .unwrap();
    });
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(answer(&mut call).await.unwrap().data, noise(1_000_000));
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_answer_in_time_is_typed_by_what_may_have_happened() {
    for (new, code, retryable) in [
        (request("q"), Code::PeerUnreachable, true),
        (once("q"), Code::OutcomeUnknown, false),
    ] {
        let pair = Pair::with(Manner {
            up: Box::new(|_, json| {
                if json.starts_with(b"{\"type\":\"noop\"") {
                    Fate::Deliver
                } else {
                    Fate::Drop
                }
            }),
            ..Manner::default()
        });
        let mut call = pair.open(new);
        let began = Instant::now();
        let failure = within(call.next()).await.unwrap_err();
        assert_eq!((failure.code, failure.retryable), (code, retryable));
        assert!(began.elapsed() < 6 * SECOND);
    }
}
