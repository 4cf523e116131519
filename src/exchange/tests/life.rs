//! The life of a request that goes well.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_short_answer_is_one_record_each_way() {
    let mut pair = Pair::new();
    let (mut call, mut incoming) = pair.start(request("{\"model\":\"m\"}")).await;
    assert_eq!(incoming.caller.node, pair.a.name);
    assert_eq!(incoming.kind, Kind::Model);
    assert_eq!(incoming.body_bytes, 13);
    let json: serde_json::Value = serde_json::from_slice(&incoming.json).unwrap();
    assert_eq!(json["type"], "model_req");
    assert_eq!(json["model"], "m");
    assert_eq!(json["blen"], 13);
    assert_eq!(json["dl"], 600_000);
    assert!(json.get("at").is_none());
    assert_eq!(
        body(&mut incoming.body).await.unwrap(),
        b"{\"model\":\"m\"}"
    );
    let mut reply = incoming.reply;
    let meta = r#"{"content_type":"application/json"}"#;
    reply
        .head(200, meta, Bytes::from_static(b"hello"), Some(good()))
        .await
        .unwrap();
    let Some(Item::Head {
        status,
        meta: got,
        data,
        fin,
    }) = within(call.next()).await.unwrap()
    else {
        panic!("no head");
    };
    assert_eq!((status, got.get(), &data[..]), (200, meta, &b"hello"[..]));
    let fin = fin.unwrap();
    assert!(fin.ok);
    assert_eq!(fin.usage.unwrap().get(), r#"{"total_tokens":3}"#);
    assert!(within(call.next()).await.unwrap().is_none());
    assert_eq!(pair.cable.a.sent.load(Relaxed), 1);
    assert_eq!(pair.cable.b.sent.load(Relaxed), 1);
    drop((call, reply));
    pair.quiet().await;
    // The batch of acks, and nothing else.
    assert_eq!(pair.cable.a.sent.load(Relaxed), 2);
    assert_eq!(pair.cable.b.sent.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_streamed_answer_comes_in_order_with_its_end() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    reply.accept().await.unwrap();
    reply.head(200, "{}", Bytes::new(), None).await.unwrap();
    for word in ["one ", "two ", "three"] {
        reply.chunk(word.into(), None).await.unwrap();
        tokio::time::sleep(SECOND).await;
    }
    reply.end(good()).await.unwrap();
    let answer = answer(&mut call).await.unwrap();
    assert_eq!(answer.data, b"one two three");
    assert!(answer.accepted && answer.ok);
    assert_eq!(answer.status, Some(200));
    pair.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn large_bodies_pass_whole_both_ways() {
    let mut pair = Pair::new();
    let sent = noise(10_000_000);
    let call = request(sent.clone());
    let (mut call, mut incoming) = pair
        .start(NewRequest {
            class: Class::Bulk,
            ..call
        })
        .await;
    assert!(incoming.body_bytes == 10_000_000);
    assert_eq!(body(&mut incoming.body).await.unwrap(), sent);
    let mut reply = incoming.reply;
    let back = sent.clone();
    let server = spawn(async move {
        reply.set_class(Class::Bulk);
        reply.head(200, "{}", back, Some(good())).await.unwrap();
    });
    let answer = answer(&mut call).await.unwrap();
    assert_eq!(answer.data, sent);
    assert!(answer.ok);
    server.await.unwrap();
    drop(incoming.body);
    pair.quiet().await;
    assert_eq!(pair.a.exchange.stats().items_resent, 0);
    assert_eq!(pair.b.exchange.stats().items_resent, 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_handler_is_accepted_for() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let began = Instant::now();
    assert!(matches!(within(call.next()).await, Ok(Some(Item::Accept))));
    assert!(began.elapsed() < 2 * SECOND);
    // No second one when the handler says so too, but its items go on counting.
    let mut reply = incoming.reply;
    reply
        .head(200, "{}", Bytes::from_static(b"x"), Some(good()))
        .await
        .unwrap();
    assert_eq!(answer(&mut call).await.unwrap().data, b"x");
}

#[tokio::test(start_paused = true)]
async fn a_failure_arrives_with_everything_in_it() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let failure = Failure {
        code: Code::RateLimited,
        message: "slow \"down\"\n\u{1}é".to_owned(),
        retryable: true,
        stage: Stage::Started,
        retry_after: Some(Duration::from_millis(1500)),
    };
    incoming.reply.fail(failure.clone());
    assert_eq!(within(call.next()).await.unwrap_err(), failure);
    assert!(within(call.next()).await.unwrap().is_none());
    drop((call, incoming.body));
    pair.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_comes_after_what_was_sent_before_it() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    reply.head(200, "{}", "begun".into(), None).await.unwrap();
    reply.fail(Failure::started(Code::UpstreamError, "cut"));
    let Some(Item::Head { data, .. }) = within(call.next()).await.unwrap() else {
        panic!("no head");
    };
    assert_eq!(&data[..], b"begun");
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.code, Code::UpstreamError);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_reply_answers_internal() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request("q")).await;
    drop(incoming);
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(
        (failure.code, failure.stage),
        (Code::Internal, Stage::Started)
    );
    drop(call);
    pair.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_link_delays_and_loses_nothing() {
    let mut pair = Pair::with(Manner {
        room: 1,
        ..Manner::default()
    });
    let mut calls: Vec<Call> = (0..50)
        .map(|i| pair.open(request(noise(40_000 + i))))
        .collect();
    for _ in 0..50 {
        let mut incoming = pair.b.incoming().await;
        spawn(async move {
            let whole = body(&mut incoming.body).await.unwrap();
            let mut reply = incoming.reply;
            reply.head(200, "{}", whole.into(), None).await.unwrap();
            reply.end(good()).await.unwrap();
        });
    }
    for (i, call) in calls.iter_mut().enumerate() {
        assert_eq!(answer(call).await.unwrap().data, noise(40_000 + i));
    }
    drop(calls);
    pair.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn both_sides_may_ask_at_once() {
    let mut pair = Pair::new();
    let mut ours = pair.open(request("from a"));
    let mut theirs = pair
        .b
        .exchange
        .open(&pair.cable.session_b, request("from b"))
        .unwrap();
    for node in [&mut pair.a, &mut pair.b] {
        let mut incoming = node.incoming().await;
        let mut whole = body(&mut incoming.body).await.unwrap();
        whole.extend_from_slice(b" answered");
        incoming
            .reply
            .head(200, "{}", whole.into(), Some(good()))
            .await
            .unwrap();
    }
    assert_eq!(answer(&mut ours).await.unwrap().data, b"from a answered");
    assert_eq!(answer(&mut theirs).await.unwrap().data, b"from b answered");
}

/// Protocol 8.4: while a person is asked neither side's clock runs, and it goes on where it stood.
#[tokio::test(start_paused = true)]
async fn time_stands_still_while_a_person_is_asked() {
    let mut pair = Pair::new();
    let mut asked = request("q");
    asked.timeouts.deadline = 20 * SECOND;
    asked.timeouts.idle = Some(15 * SECOND);
    let (mut call, incoming) = pair.start(asked).await;
    let mut reply = incoming.reply;
    tokio::time::sleep(10 * SECOND).await;
    assert!(matches!(within(call.next()).await, Ok(Some(Item::Accept))));
    reply.waits(500 * SECOND).await.unwrap();
    assert!(
        matches!(within(call.next()).await, Ok(Some(Item::Waits(Some(left)))) if left == 500 * SECOND)
    );
    tokio::time::sleep(500 * SECOND).await;
    reply.accept().await.unwrap();
    assert!(matches!(within(call.next()).await, Ok(Some(Item::Accept))));
    tokio::time::sleep(8 * SECOND).await;
    reply.head(200, "{}", Bytes::new(), None).await.unwrap();
    assert!(matches!(
        within(call.next()).await,
        Ok(Some(Item::Head { .. }))
    ));
    // Ten and eight seconds are gone; two are left.
    let began = Instant::now();
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.code, Code::DeadlineExceeded);
    let took = began.elapsed();
    assert!(took > SECOND && took < 4 * SECOND, "{took:?}");
}

/// A node that says for ever that it asks a person holds nobody.
#[tokio::test(start_paused = true)]
async fn one_wait_for_a_person_has_an_end() {
    let mut pair = Pair::new();
    let mut asked = request("q");
    asked.timeouts.deadline = 20 * SECOND;
    let (mut call, incoming) = pair.start(asked).await;
    let mut reply = incoming.reply;
    let began = Instant::now();
    let keep_on = spawn(async move {
        loop {
            for waits in [true, false] {
                let said = if waits {
                    reply.waits(500 * SECOND).await
                } else {
                    reply.accept().await
                };
                if said.is_err() {
                    return;
                }
                tokio::time::sleep(if waits { 300 * SECOND } else { SECOND }).await;
            }
        }
    });
    let failure = loop {
        match tokio::time::timeout(3000 * SECOND, call.next())
            .await
            .unwrap()
        {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no outcome"),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.code, Code::DeadlineExceeded, "{failure:?}");
    assert!(began.elapsed() < 1000 * SECOND, "{:?}", began.elapsed());
    drop(call);
    keep_on.await.unwrap();
}
