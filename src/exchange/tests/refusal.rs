//! Requests that never begin, and frames that break the rules (T56, T62, T82).

use super::*;

async fn refused(call: &mut Call) -> Failure {
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.stage, Stage::NotStarted);
    failure
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_refuses_both_ways_and_finishes_what_runs() {
    let mut pair = Pair::new();
    let (mut running, incoming) = pair.start(request("q")).await;
    pair.b.exchange.drain();
    let mut late = pair.open(request("late"));
    assert_eq!(refused(&mut late).await.code, Code::ShuttingDown);
    let own = pair
        .b
        .exchange
        .open(&pair.cable.session_b, request("own"))
        .unwrap_err();
    assert_eq!(own.code, Code::ShuttingDown);
    let mut reply = incoming.reply;
    reply
        .head(200, "{}", Bytes::from_static(b"done"), Some(good()))
        .await
        .unwrap();
    assert_eq!(answer(&mut running).await.unwrap().data, b"done");
    drop((reply, incoming.body, running, late));
    pair.quiet().await;
    // Nothing of the exchange keeps a drained node from closing.
    until(|| pair.b.exchange.shared.tasks.running() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_is_refused_before_any_byte() {
    let mut pair = Pair::new();
    let limits = Limits {
        request_body_bytes: 1000,
        ..Limits::default()
    };
    pair.b = Node::with_limits("office-02", 3, limits);
    pair.cable = Cable::new(&pair.a, &pair.b, Manner::default());
    let mut call = pair.open(request(noise(1_000_000)));
    assert_eq!(refused(&mut call).await.code, Code::PayloadTooLarge);
    assert!(pair.b.inbox.try_recv().is_err());
    drop(call);
    pair.quiet().await;
    let ours = pair
        .a
        .exchange
        .open(
            &pair.cable.session_a,
            request(vec![0; 32 * 1024 * 1024 + 1]),
        )
        .unwrap_err();
    assert_eq!(ours.code, Code::PayloadTooLarge);
}

#[tokio::test(start_paused = true)]
async fn fields_larger_than_a_frame_are_refused_here() {
    let pair = Pair::new();
    let new = NewRequest {
        fields: format!("\"hdr\":\"{}\"", "x".repeat(70_000)),
        ..request("q")
    };
    let failure = pair
        .a
        .exchange
        .open(&pair.cable.session_a, new)
        .unwrap_err();
    assert_eq!(failure.code, Code::PayloadTooLarge);
    assert_eq!(pair.a.exchange.stats().outbound_open, 0);
}

/// T124.
#[tokio::test(start_paused = true)]
async fn a_request_held_back_on_its_way_is_stale() {
    let mut pair = Pair::new();
    *pair.cable.b.skew.lock().unwrap() = 61 * SECOND;
    let mut call = pair.open(once("x"));
    let failure = refused(&mut call).await;
    assert_eq!(failure.code, Code::StaleRequest);
    assert_eq!(drops(&pair.b, DropReason::Stale), 1);
    // An idempotent one may come late.
    let (_call, _incoming) = pair.start(request("q")).await;
    *pair.cable.b.skew.lock().unwrap() = 59 * SECOND;
    let (_call, incoming) = pair.start(once("x")).await;
    let left = incoming.deadline.unwrap() - Instant::now();
    assert!(left <= (1800 - 59) * SECOND, "`dl` counts from `at`");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_must_carry_at_is_refused_without() {
    let pair = Pair::new();
    let rid = RequestId::random();
    pair.cable.forge_to_b(
        &format!(r#"{{"type":"tool_req","rid":"{rid}","dl":1000,"blen":0}}"#),
        b"",
    );
    assert_eq!(pair.b.exchange.stats().inbound_total, 0);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_never_runs_twice() {
    let mut pair = Pair::with(Manner {
        up: Box::new(|_, _| Fate::Twice),
        down: Box::new(|_, _| Fate::Twice),
        ..Manner::default()
    });
    let (mut call, incoming) = pair.start(once("x")).await;
    let mut reply = incoming.reply;
    reply
        .head(200, "{}", Bytes::from_static(b"x"), Some(good()))
        .await
        .unwrap();
    let got = answer(&mut call).await.unwrap();
    assert_eq!((&got.data[..], got.items), (&b"x"[..], 1));
    drop((call, reply, incoming.body));
    pair.quiet().await;
    assert!(pair.b.inbox.try_recv().is_err());
    assert_eq!(pair.b.exchange.stats().inbound_total, 1);
    assert!(drops(&pair.b, DropReason::Duplicate) >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_an_ended_request_is_ignored_for_ten_minutes() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(once("x")).await;
    let json = String::from_utf8(incoming.json.to_vec()).unwrap();
    incoming.reply.fail(Failure::started(Code::Internal, "no"));
    answer(&mut call).await.unwrap_err();
    drop((call, incoming.body));
    pair.quiet().await;
    for _ in 0..9 {
        tokio::time::sleep(60 * SECOND).await;
        // As if its time were right again.
        *pair.cable.b.skew.lock().unwrap() = Duration::ZERO;
        pair.cable.forge_to_b(&json, b"x");
    }
    assert_eq!(pair.b.exchange.stats().inbound_total, 1);
}

/// T125.
#[tokio::test(start_paused = true)]
async fn a_query_of_an_unknown_request_fences_it() {
    let mut pair = Pair::new();
    let rid = RequestId::random();
    let ask = |rid| {
        pair.a
            .exchange
            .query(&pair.cable.session_a, rid, 5 * SECOND)
    };
    assert_eq!(ask(rid).await.unwrap(), Phase::Unknown);
    let mut call = pair.open(NewRequest { rid, ..once("x") });
    assert_eq!(refused(&mut call).await.code, Code::StaleRequest);
    let (_call, incoming) = pair.start(once("x")).await;
    let ask = |rid| {
        pair.a
            .exchange
            .query(&pair.cable.session_a, rid, 5 * SECOND)
    };
    assert_eq!(ask(incoming.rid).await.unwrap(), Phase::Accepted);
    let mut reply = incoming.reply;
    reply.head(200, "{}", "x".into(), None).await.unwrap();
    assert_eq!(ask(incoming.rid).await.unwrap(), Phase::Running);
    reply.end(good()).await.unwrap();
    assert_eq!(ask(incoming.rid).await.unwrap(), Phase::Done);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_type_is_answered_and_ends_the_request() {
    let mut pair = Pair::new();
    let (mut call, _incoming) = pair.start(request("q")).await;
    pair.cable.forge_to_b(
        &format!(r#"{{"type":"teleport","rid":"{}"}}"#, call.rid()),
        b"",
    );
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.code, Code::UnsupportedType);
}

#[tokio::test(start_paused = true)]
async fn malformed_frames_are_dropped_and_counted() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let rid = call.rid();
    let bad = [
        "{".to_owned(),
        "[]".to_owned(),
        r#"{"type":7}"#.to_owned(),
        r#"{"type":"chunk"}"#.to_owned(),
        format!(r#"{{"type":"chunk","rid":"{rid}","seq":0}}"#),
        format!(r#"{{"type":"chunk","rid":"{rid}","dir":"sideways","seq":0}}"#),
        format!(r#"{{"type":"chunk","rid":"{rid}","dir":"up","seq":-1}}"#),
        format!(r#"{{"type":"head","rid":"{rid}","seq":0}}"#),
        format!(r#"{{"type":"end","rid":"{rid}","rid":"{rid}","seq":0,"ok":true}}"#),
        format!(r#"{{"type":"end","rid":"{rid}","seq":9007199254740992,"ok":true}}"#),
        r#"{"type":"ack","a":[["xx","up",0,0]]}"#.to_owned(),
        r#"{"type":"cancel","rid":"short"}"#.to_owned(),
        r#"{"type":"error","rid":3}"#.to_owned(),
    ];
    for json in &bad {
        pair.cable.forge_to_a(json, b"");
    }
    assert_eq!(drops(&pair.a, DropReason::Malformed), bad.len() as u64);
    pair.cable.exchange_a.frame(
        &pair.cable.session_a,
        Class::Bulk,
        Bytes::from_static(b"\x07nonsense"),
    );
    let mut reply = incoming.reply;
    reply
        .head(200, "{}", Bytes::from_static(b"x"), Some(good()))
        .await
        .unwrap();
    assert_eq!(answer(&mut call).await.unwrap().data, b"x");
}

/// Items a hostile node sends after `accept` number 0 and a head number 1.
async fn broken(items: &[&str]) -> (Result<Answer, Failure>, Pair) {
    let pair = Pair::new();
    let mut call = pair.open(request("q"));
    let rid = call.rid();
    let head = r#"{"type":"head","seq":0,"status":200,"meta":{}"#;
    for item in [&[head], items].concat() {
        let json = format!(r#"{item},"rid":"{rid}"}}"#);
        pair.cable.forge_to_a(&json, b"");
    }
    let answer = answer(&mut call).await;
    (answer, pair)
}

#[tokio::test(start_paused = true)]
async fn a_chunk_after_the_end_is_not_delivered() {
    let (answer, pair) = broken(&[
        r#"{"type":"end","seq":1,"ok":true"#,
        r#"{"type":"chunk","dir":"down","seq":2"#,
    ])
    .await;
    assert!(answer.unwrap().ok);
    assert!(drops(&pair.a, DropReason::Late) + drops(&pair.a, DropReason::Unknown) >= 1);
}

#[tokio::test(start_paused = true)]
async fn two_ends_in_different_places_are_an_error() {
    let (answer, _) = broken(&[
        r#"{"type":"end","seq":3,"ok":true"#,
        r#"{"type":"end","seq":2,"ok":true"#,
    ])
    .await;
    assert_eq!(answer.unwrap_err().code, Code::ProtocolError);
}

#[tokio::test(start_paused = true)]
async fn an_item_beyond_a_waiting_end_is_an_error() {
    let (answer, _) = broken(&[
        r#"{"type":"end","seq":3,"ok":true"#,
        r#"{"type":"chunk","dir":"down","seq":4"#,
    ])
    .await;
    assert_eq!(answer.unwrap_err().code, Code::ProtocolError);
}

#[tokio::test(start_paused = true)]
async fn a_number_out_of_reach_is_an_error() {
    let (answer, _) = broken(&[r#"{"type":"chunk","dir":"down","seq":5000"#]).await;
    assert_eq!(answer.unwrap_err().code, Code::ProtocolError);
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_never_closes_ends_the_stream() {
    let (answer, _) = broken(&[r#"{"type":"end","seq":3,"ok":true"#]).await;
    let failure = answer.unwrap_err();
    assert!(matches!(failure.code, Code::StreamLost | Code::Timeout));
}

#[tokio::test(start_paused = true)]
async fn more_body_than_announced_is_an_error() {
    let mut pair = Pair::new();
    let rid = RequestId::random();
    pair.cable.forge_to_b(
        &format!(r#"{{"type":"model_req","rid":"{rid}","dl":1000,"blen":3}}"#),
        b"ab",
    );
    let mut incoming = pair.b.incoming().await;
    pair.cable.forge_to_b(
        &format!(r#"{{"type":"chunk","rid":"{rid}","dir":"up","seq":1}}"#),
        b"cd",
    );
    let failure = body(&mut incoming.body).await.unwrap_err();
    assert_eq!(failure.code, Code::ProtocolError);
}

#[tokio::test(start_paused = true)]
async fn another_boot_ends_what_the_earlier_process_left() {
    let mut pair = Pair::new();
    let (mut call, _incoming) = pair.start(request("q")).await;
    pair.b.boot = Boot::random();
    let second = Cable::new(&pair.a, &pair.b, Manner::default());
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.code, Code::StreamLost);
    let mut call = pair
        .a
        .exchange
        .open(&second.session_a, request("again"))
        .unwrap();
    let incoming = pair.b.incoming().await;
    incoming.reply.fail(Failure::started(Code::Internal, "no"));
    assert_eq!(answer(&mut call).await.unwrap_err().code, Code::Internal);
}
