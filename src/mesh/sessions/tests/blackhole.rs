//! Relays that lose what they are to pass on while streams run over them (T68).

use super::{
    liars::{Member, attracted},
    streams::{all, exchange, request, well},
    *,
};
use crate::exchange::{Exchange, InboundHandler, Incoming, Item, Kind as RequestKind};

/// Streams for a minute: longer than a stream of which nothing is acked.
#[derive(Debug)]
struct Minute(Tasks);

const PIECES: usize = 300;

impl InboundHandler for Minute {
    fn handle(&self, mut incoming: Incoming) {
        self.0.spawn(async move {
            incoming.reply.accept().await.unwrap();
            for n in 0..PIECES {
                let piece = format!("{n},").into();
                if incoming.reply.chunk(piece, None).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let _ = incoming.reply.end(well()).await;
        });
    }
}

/// Which way the relay loses frames.
#[derive(Debug, Clone, Copy)]
enum Lost {
    Both,
    /// The stream itself.
    Answers,
    /// Acks alone: the stream arrives.
    Acks,
}

impl Lost {
    fn takes(self, way: Way) -> bool {
        match self {
            Self::Both => true,
            Self::Answers => way == Way::ToHome,
            Self::Acks => way == Way::ToOffice,
        }
    }
}

/// A stream over a relay that begins to lose it; how long its longest gap was.
async fn stream_over_a_relay_that_begins_to_lose(lost: Lost) -> Duration {
    let (ours, _) = exchange();
    let tasks = Tasks::new();
    let theirs = Exchange::new(tasks.clone(), Arc::new(Minute(tasks)));
    let home = Member::handled("home", false, Arc::new(ours.clone()));
    let office = Member::handled("office", false, Arc::new(theirs));
    let (liar, _cloud) = attracted(&home, &office).await;
    let whole: String = (0..PIECES).map(|n| format!("{n},")).collect();
    let ask = async || {
        let session = home.mesh.session(&office.us.node_id).await.unwrap();
        ours.open(&session, request(RequestKind::Model)).unwrap()
    };
    let mut call = ask().await;
    let mut text = Vec::new();
    let (mut came, mut longest) = (Instant::now(), Duration::ZERO);
    let mut obeys = true;
    while let Some(item) = timeout(100 * SECOND, call.next())
        .await
        .unwrap()
        .unwrap_or_else(|failure| panic!("{lost:?}: {failure:?}"))
    {
        let Item::Chunk { data, .. } = item else {
            continue;
        };
        longest = longest.max(came.elapsed());
        came = Instant::now();
        text.extend_from_slice(&data);
        if obeys && text.len() > 60 {
            obeys = false;
            liar.does(move |way, frame| {
                let passes = frame.kind != Kind::Routed || !lost.takes(way);
                if passes { vec![frame] } else { Vec::new() }
            });
        }
    }
    assert_eq!(String::from_utf8(text).unwrap(), whole, "{lost:?}");
    assert_eq!(all(&mut ask().await).await.unwrap(), whole);
    longest
}

#[tokio::test(start_paused = true)]
async fn a_running_stream_leaves_a_relay_that_loses_it() {
    let gap = stream_over_a_relay_that_begins_to_lose(Lost::Answers).await;
    // The first time-out and the second, twice as long.
    assert!(gap < Duration::from_millis(3_600), "{gap:?}");
}

/// Whoever only receives has nothing that times out: it learns from what comes again and again that
/// its acks do not arrive.
#[tokio::test(start_paused = true)]
async fn a_running_stream_leaves_a_relay_that_loses_its_acks() {
    let gap = stream_over_a_relay_that_begins_to_lose(Lost::Acks).await;
    assert!(gap < SECOND, "{gap:?}");
}

/// Each side leaves it by itself, the one that acks after the one that sends.
#[tokio::test(start_paused = true)]
async fn a_running_stream_leaves_a_relay_that_loses_everything() {
    let gap = stream_over_a_relay_that_begins_to_lose(Lost::Both).await;
    assert!(gap < Duration::from_millis(7_500), "{gap:?}");
}
