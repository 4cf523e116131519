//! Credit, and what happens to those who ignore it (T53, T54).

use super::*;

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_stalls_its_sender_at_the_window_and_nobody_else() {
    let mut pair = Pair::new();
    let (mut stalled, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    spawn(async move {
        let _ = reply.head(200, "{}", noise(3_000_000), Some(good())).await;
    });
    tokio::time::sleep(10 * SECOND).await;
    let held = pair.a.exchange.stats().bytes_held;
    assert!((200_000..300_000).contains(&held), "{held}");
    let sent = pair.cable.b.sent.load(Relaxed);
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(pair.a.exchange.stats().bytes_held, held);
    assert!(
        pair.cable.b.sent.load(Relaxed) - sent < 100,
        "signs of life at most"
    );
    // Another stream of the same session runs at full speed.
    let began = Instant::now();
    let (mut quick, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    let server = spawn(async move {
        reply
            .head(200, "{}", noise(3_000_000), Some(good()))
            .await
            .unwrap();
    });
    assert_eq!(answer(&mut quick).await.unwrap().data.len(), 3_000_000);
    assert!(began.elapsed() < SECOND);
    server.await.unwrap();
    // And the first goes on when its reader does.
    assert_eq!(answer(&mut stalled).await.unwrap().data, noise(3_000_000));
}

#[tokio::test(start_paused = true)]
async fn the_window_grows_while_the_reader_keeps_up() {
    let mut pair = Pair::with(Manner {
        delay: Duration::from_millis(50),
        room: 64 * 1024 * 1024,
        ..Manner::default()
    });
    let (mut call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    spawn(async move {
        reply
            .head(200, "{}", noise(40_000_000), Some(good()))
            .await
            .unwrap();
    });
    let began = Instant::now();
    assert_eq!(answer(&mut call).await.unwrap().data.len(), 40_000_000);
    // 256 KiB a round trip of 100 ms would take 15 s.
    assert!(began.elapsed() < 6 * SECOND, "{:?}", began.elapsed());
}

/// Sends more data than the first credit allows.
fn overrun(pair: &Pair, rid: RequestId) {
    let head = format!(r#"{{"type":"head","rid":"{rid}","seq":0,"status":200,"meta":{{}}}}"#);
    pair.cable.forge_to_a(&head, b"");
    for seq in 1..=5 {
        let json = format!(r#"{{"type":"chunk","rid":"{rid}","dir":"down","seq":{seq}}}"#);
        pair.cable.forge_to_a(&json, &noise(60 * 1024));
    }
}

#[tokio::test(start_paused = true)]
async fn ignored_credit_aborts_the_stream_and_the_third_time_the_session() {
    let pair = Pair::new();
    for round in 1..=3 {
        assert_eq!(*pair.cable.a.failed.lock().unwrap(), None);
        let mut call = pair.open(request("q"));
        overrun(&pair, call.rid());
        let failure = answer(&mut call).await.unwrap_err();
        assert_eq!(failure.code, Code::FlowControl, "round {round}");
    }
    assert!(pair.cable.a.failed.lock().unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_ignores_its_credit_is_aborted() {
    let mut pair = Pair::new();
    let rid = RequestId::random();
    pair.cable.forge_to_b(
        &format!(r#"{{"type":"model_req","rid":"{rid}","dl":10000,"blen":1000000}}"#),
        b"",
    );
    let mut incoming = pair.b.incoming().await;
    for seq in 1..=5 {
        let json = format!(r#"{{"type":"chunk","rid":"{rid}","dir":"up","seq":{seq}}}"#);
        pair.cable.forge_to_b(&json, &noise(60 * 1024));
    }
    let failure = body(&mut incoming.body).await.unwrap_err();
    assert_eq!(failure.code, Code::FlowControl);
    assert_eq!(
        within(incoming.reply.cancelled()).await.code,
        Code::FlowControl
    );
}

#[tokio::test(start_paused = true)]
async fn acks_of_what_was_never_sent_change_nothing() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let rid = call.rid();
    pair.cable.forge_to_b(
        &format!(r#"{{"type":"ack","a":[["{rid}","down",7,99999999],["{rid}","up",1,5]]}}"#),
        b"",
    );
    assert_eq!(drops(&pair.b, DropReason::BadAck), 1);
    let mut reply = incoming.reply;
    reply
        .head(200, "{}", Bytes::from_static(b"x"), Some(good()))
        .await
        .unwrap();
    assert_eq!(answer(&mut call).await.unwrap().data, b"x");
}
