//! Random handlers, callers, ways and cuts: every request has exactly one outcome at both ends,
//! and nothing is left.

use proptest::prelude::*;

use super::*;

/// What one caller and one handler do with a request.
#[derive(Debug, Clone)]
struct Plan {
    once: bool,
    body: usize,
    answer: usize,
    /// The caller goes away after so many milliseconds.
    leaves: Option<u64>,
    /// What the handler does in the end.
    ends: u8,
    pause: u64,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        any::<bool>(),
        prop_oneof![0..100_usize, 0..400_000_usize],
        prop_oneof![0..100_usize, 0..400_000_usize],
        proptest::option::of(0..3000_u64),
        0..5_u8,
        0..2000_u64,
    )
        .prop_map(|(once, body, answer, leaves, ends, pause)| Plan {
            once,
            body,
            answer,
            leaves,
            ends,
            pause,
        })
}

/// Plays the handler; counts that it saw an outcome.
async fn serve(mut incoming: Incoming, plan: Plan, outcomes: Arc<AtomicUsize>) {
    let _outcome = Count(outcomes);
    if plan.ends != 1 && body(&mut incoming.body).await.is_err() {
        return;
    }
    let mut reply = incoming.reply;
    tokio::time::sleep(Duration::from_millis(plan.pause)).await;
    let sent = match plan.ends {
        0 => {
            reply
                .head(200, "{}", noise(plan.answer), Some(good()))
                .await
        }
        1 => {
            reply.fail(Failure::started(Code::UpstreamError, "no"));
            return;
        }
        2 => return,
        3 => {
            let _ = reply.cancelled().await;
            return;
        }
        _ => {
            let _ = reply.head(200, "{}", Bytes::new(), None).await;
            let _ = reply.chunk(noise(plan.answer), None).await;
            reply.end(good()).await
        }
    };
    drop(sent);
}

/// Counts itself when dropped: a task may end at any await.
struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Plays the caller: how many outcomes it saw, after every one asking once more.
async fn ask(mut call: Call, plan: Plan) -> usize {
    let read = async {
        let mut outcomes = 0;
        let mut data = Vec::new();
        loop {
            match call.next().await {
                Ok(Some(item)) => {
                    assert_eq!(outcomes, 0, "nothing follows the outcome");
                    outcomes += usize::from(item.is_last());
                    match item {
                        Item::Head { data: more, .. } | Item::Chunk { data: more, .. } => {
                            data.extend_from_slice(&more);
                        }
                        Item::Accept | Item::Waits(_) | Item::End(_) => {}
                    }
                }
                Ok(None) => break,
                Err(failure) => {
                    assert_eq!(outcomes, 0, "{failure:?}");
                    outcomes += 1;
                    assert!(call.next().await.unwrap().is_none());
                    return outcomes;
                }
            }
        }
        assert_eq!(data, noise(plan.answer));
        outcomes
    };
    match plan.leaves {
        Some(millis) => tokio::time::timeout(Duration::from_millis(millis), read)
            .await
            .unwrap_or(1),
        None => within(read).await,
    }
}

async fn run(plans: Vec<Plan>, seed: u32, cut: Option<u64>, restart: bool) {
    let pair = Pair::with(Manner {
        room: 100_000,
        up: loss::unreliable(seed | 1, 30),
        down: loss::unreliable(seed.rotate_left(7) | 1, 30),
        ..Manner::default()
    });
    let outcomes = Arc::new(AtomicUsize::new(0));
    let mut asking = Vec::new();
    let mut by_rid = std::collections::HashMap::new();
    for plan in &plans {
        let mut new = if plan.once {
            once(noise(plan.body))
        } else {
            request(noise(plan.body))
        };
        new.timeouts.deadline = 20 * SECOND;
        new.timeouts.until_first_byte = false;
        by_rid.insert(new.rid, plan.clone());
        let call = pair.open(new);
        asking.push(spawn(ask(call, plan.clone())));
    }
    let (served, mut inbox) = (Arc::clone(&outcomes), pair.b.inbox);
    let server = spawn(async move {
        let mut seen = 0;
        while let Some(incoming) = inbox.recv().await {
            seen += 1;
            let plan = by_rid.remove(&incoming.rid).expect("a request runs once");
            spawn(serve(incoming, plan, Arc::clone(&served)));
            if seen == 1000 {
                break;
            }
        }
    });
    if let Some(millis) = cut {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        pair.cable.cut();
    }
    for task in asking {
        assert_eq!(task.await.unwrap(), 1);
    }
    let quiet = |node: &Exchange| {
        let stats = node.stats();
        stats.outbound_open + stats.inbound_open + stats.bytes_held == 0
    };
    let (a, b) = (pair.a.exchange.clone(), pair.b.exchange.clone());
    if restart {
        a.drain();
        b.drain();
    }
    until(|| quiet(&a) && quiet(&b)).await;
    until(|| outcomes.load(Relaxed) as u64 == b.stats().inbound_total).await;
    tokio::time::sleep(601 * SECOND).await;
    assert_eq!(
        a.stats().remembered.max(b.stats().remembered) * usize::from(!restart),
        0
    );
    server.abort();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_request_has_one_outcome_at_both_ends(
        plans in proptest::collection::vec(plan(), 1..20),
        seed in any::<u32>(),
        cut in proptest::option::of(0..4000_u64),
        restart in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(plans, seed, cut, restart));
    }
}
