//! What the sizes of frames tell a relay (protocol 4.4).

use std::collections::BTreeMap;

use super::{
    streams::{Working, all, exchange, well},
    *,
};
use crate::exchange::{Exchange, InboundHandler, Incoming};

/// Bytes of the longest token.
const LONGEST: usize = 100;

/// Streams one token of each length, as a provider sends them.
#[derive(Debug)]
struct Tokens {
    tasks: Tasks,
    before: &'static str,
    after: &'static str,
}

impl InboundHandler for Tokens {
    fn handle(&self, mut incoming: Incoming) {
        let (before, after) = (self.before, self.after);
        self.tasks.spawn(async move {
            incoming.reply.accept().await.unwrap();
            for length in 1..=LONGEST {
                let token = format!("{before}{}{after}", "x".repeat(length));
                incoming.reply.chunk(token.into(), None).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            incoming.reply.end(well()).await.unwrap();
        });
    }
}

/// T38: a relay sees as many frames of one size as there are tokens, whatever their length.
#[tokio::test(start_paused = true)]
async fn tokens_of_any_usual_length_look_alike_to_a_relay() {
    const EVENT: &str = r#"data: {"id":"chatcmpl-9xYpQ2mT7rKc4LwZ","object":"chat.completion.chunk","created":1764230400,"model":"qwen3","choices":[{"index":0,"delta":{"content":""#;
    const REST: &str = "\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    for (before, after) in [("", ""), ("{\"delta\":\"", "\"}\n"), (EVENT, REST)] {
        let tasks = Tasks::new();
        let (home, _) = exchange();
        let (_, worker) = exchange();
        let office = Exchange::new(
            tasks.clone(),
            Arc::new(Tokens {
                tasks,
                before,
                after,
            }),
        );
        let working = Working {
            trio: Trio::with(Arc::new(home.clone()), Arc::new(office)).await,
            home,
            office: worker,
        };
        let text = all(&mut working.stream().await).await.unwrap();
        let tokens = LONGEST * (LONGEST + 1) / 2;
        assert_eq!(text.len(), tokens + LONGEST * (before.len() + after.len()));
        let mut sizes = BTreeMap::<usize, usize>::new();
        for (way, frame) in working.trio.relay.seen() {
            if way == Way::ToHome && frame.kind == Kind::Routed && frame.class == Class::Interactive
            {
                *sizes.entry(frame.body.len()).or_default() += 1;
            }
        }
        let alike = sizes.values().filter(|count| **count >= LONGEST);
        assert_eq!(alike.count(), 1, "{before:?}: {sizes:?}");
    }
}
