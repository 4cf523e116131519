//! Frames lost, doubled and reordered on the way, and a change of the way (T61, T82).

use super::*;

/// A judge that misjudges about one frame in `every`, the same way each time it runs.
pub(super) fn unreliable(mut x: u32, every: u32) -> Judge {
    Box::new(move |_, _| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        match (x >> 8) % (every * 3) {
            0..=2 => match x % 3 {
                0 => Fate::Drop,
                1 => Fate::Twice,
                _ => Fate::Late(Duration::from_millis(u64::from(x >> 24))),
            },
            _ => Fate::Deliver,
        }
    })
}

async fn echo(mut incoming: Incoming) {
    let mut reply = incoming.reply;
    let mut headed = false;
    while let Ok(Some(bytes)) = incoming.body.next().await {
        let sent = if headed {
            reply.chunk(bytes, None).await
        } else {
            headed = true;
            reply.head(200, "{}", bytes, None).await
        };
        if sent.is_err() {
            return;
        }
    }
    let _ = reply.end(good()).await;
}

#[tokio::test(start_paused = true)]
async fn streams_are_whole_over_a_lossy_way() {
    for seed in 1..=5 {
        let mut pair = Pair::with(Manner {
            up: unreliable(seed * 7919, 20),
            down: unreliable(seed * 104_729, 20),
            ..Manner::default()
        });
        let mut calls: Vec<(usize, Call)> = (0..40_usize)
            .map(|i| i * i * 900)
            .map(|len| (len, pair.open(request(noise(len)))))
            .collect();
        for _ in 0..40 {
            spawn(echo(pair.b.incoming().await));
        }
        for (len, call) in &mut calls {
            let got = answer(call).await.unwrap();
            assert_eq!(got.data, noise(*len), "seed {seed}");
            assert!(got.ok);
        }
        assert!(pair.a.exchange.stats().items_resent > 0);
        drop(calls);
        pair.quiet().await;
        assert_eq!(pair.b.exchange.stats().inbound_total, 40);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_in_the_second_session_of_one_boot() {
    let mut pair = Pair::new();
    let (mut call, incoming) = pair.start(request(noise(3_000_000))).await;
    spawn(echo(incoming));
    let second = Cable::new(&pair.a, &pair.b, Manner::default());
    let reader = spawn(async move { answer(&mut call).await });
    tokio::time::sleep(Duration::from_millis(8)).await;
    // The newest is in use; the older one takes over what was on its way.
    second.cut();
    assert_eq!(reader.await.unwrap().unwrap().data, noise(3_000_000));
    pair.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn what_may_run_once_is_not_sent_again_in_another_session() {
    let pair = Pair::new();
    let second = Cable::new(
        &pair.a,
        &pair.b,
        Manner {
            up: Box::new(|_, _| Fate::Drop),
            ..Manner::default()
        },
    );
    let mut call = pair.a.exchange.open(&second.session_a, once("x")).unwrap();
    tokio::time::sleep(SECOND / 2).await;
    second.cut();
    let failure = within(call.next()).await.unwrap_err();
    assert_eq!(failure.code, Code::OutcomeUnknown);
    drop(call);
    pair.quiet().await;
    assert_eq!(pair.b.exchange.stats().inbound_total, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_never_runs_the_work_twice() {
    // Every way an answer can be lost at the first, second, .. frame, then a cut.
    let mut unknown = 0;
    for lost in 0..50_u32 {
        let mut seen = 0;
        let mut pair = Pair::with(Manner {
            up: unreliable(lost * 31 + 1, 3),
            down: Box::new(move |_, _| {
                seen += 1;
                if seen > lost % 4 {
                    Fate::Drop
                } else {
                    Fate::Deliver
                }
            }),
            ..Manner::default()
        });
        let runs = Arc::new(AtomicUsize::new(0));
        let mut call = pair.open(once("x"));
        let counter = Arc::clone(&runs);
        let server = spawn(async move {
            while let Some(incoming) = pair.b.inbox.recv().await {
                counter.fetch_add(1, Relaxed);
                let mut reply = incoming.reply;
                let _ = reply.accept().await;
                let _ = reply.head(200, "{}", "done".into(), None).await;
                let _ = reply.end(good()).await;
            }
        });
        tokio::time::sleep(SECOND * (lost % 7)).await;
        pair.cable.cut();
        let outcome = answer(&mut call).await;
        assert!(runs.load(Relaxed) <= 1);
        match outcome {
            Ok(answer) => assert_eq!(answer.data, b"done"),
            Err(failure) => {
                assert_eq!(failure.code, Code::OutcomeUnknown);
                unknown += 1;
            }
        }
        server.abort();
    }
    assert!(unknown > 10);
}

/// The ack of a request is one frame, however long the request runs: it is said again when the request
/// comes again.
#[tokio::test(start_paused = true)]
async fn a_lost_ack_of_a_long_request_does_not_end_it() {
    let mut left = 2;
    let mut pair = Pair::with(Manner {
        down: Box::new(move |_, json| {
            let lost = left > 0 && json.starts_with(b"{\"type\":\"ack\"");
            left -= i32::from(lost);
            if lost { Fate::Drop } else { Fate::Deliver }
        }),
        ..Manner::default()
    });
    let (mut call, incoming) = pair.start(once("x")).await;
    tokio::time::sleep(100 * SECOND).await;
    incoming.reply.end(good()).await.unwrap();
    assert!(answer(&mut call).await.unwrap().ok);
    drop((call, incoming.body));
    pair.quiet().await;
    assert_eq!(pair.b.exchange.stats().inbound_total, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_grant_of_credit_is_asked_for() {
    let deaf = Arc::new(AtomicBool::new(false));
    let ear = Arc::clone(&deaf);
    let mut pair = Pair::with(Manner {
        up: Box::new(move |_, _| {
            if ear.load(Relaxed) {
                Fate::Drop
            } else {
                Fate::Deliver
            }
        }),
        ..Manner::default()
    });
    let (mut call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    let server = spawn(async move {
        reply
            .head(200, "{}", noise(400_000), Some(good()))
            .await
            .unwrap();
    });
    // The window is full and everything in it is acked.
    tokio::time::sleep(5 * SECOND).await;
    deaf.store(true, Relaxed);
    let client = spawn(async move { answer(&mut call).await });
    tokio::time::sleep(5 * SECOND).await;
    deaf.store(false, Relaxed);
    assert_eq!(client.await.unwrap().unwrap().data, noise(400_000));
    server.await.unwrap();
}

/// The other side says nothing for a while, so that it is asked twice; then it answers for longer than an
/// unacked request would live.
#[tokio::test(start_paused = true)]
async fn a_request_whose_ack_is_lost_is_acked_again() {
    let began = Instant::now();
    let mut pair = Pair::with(Manner {
        down: Box::new(move |_, _| {
            if began.elapsed() < SECOND / 2 {
                Fate::Drop
            } else {
                Fate::Deliver
            }
        }),
        ..Manner::default()
    });
    let (mut call, incoming) = pair.start(request("q")).await;
    let mut reply = incoming.reply;
    let server = spawn(async move {
        reply.head(200, "{}", Bytes::new(), None).await.unwrap();
        for _ in 0..45 {
            tokio::time::sleep(SECOND).await;
            reply.chunk("x".into(), None).await.unwrap();
        }
        reply.end(good()).await.unwrap();
    });
    assert_eq!(answer(&mut call).await.unwrap().data.len(), 45);
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_duel_of_links_harms_nothing() {
    let mut pair = Pair::new();
    // On its way in the older session when a newer one takes over and the older is closed.
    let mut early = pair.open(request(noise(200_000)));
    let second = Cable::new(&pair.a, &pair.b, Manner::default());
    let mut bound = pair.a.exchange.open(&second.session_a, once("x")).unwrap();
    pair.cable.cut();
    for _ in 0..2 {
        spawn(echo(pair.b.incoming().await));
    }
    assert_eq!(answer(&mut early).await.unwrap().data, noise(200_000));
    assert_eq!(answer(&mut bound).await.unwrap().data, b"x");
    drop((early, bound));
    pair.quiet().await;
    assert_eq!(pair.b.exchange.stats().inbound_total, 2);
}
