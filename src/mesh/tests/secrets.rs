//! The secret is changed while nodes run (protocol 2): T24, T25.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::{
    exchange::{End, Exchange, InboundHandler, Incoming, Item, Kind, NewRequest, Timeouts},
    ids::RequestId,
};

const CHUNKS: usize = 25;

/// Answers every request with a stream of a quarter of a second.
#[derive(Debug)]
struct Ticker(Tasks);

impl InboundHandler for Ticker {
    fn handle(&self, mut incoming: Incoming) {
        self.0.spawn(async move {
            let stream = async {
                incoming.reply.accept().await?;
                for _ in 0..CHUNKS {
                    incoming.reply.chunk(Bytes::from_static(b"."), None).await?;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let end = End {
                    ok: true,
                    ..End::default()
                };
                incoming.reply.end(end).await
            };
            // Who asked counts what is missing.
            let _ = stream.await;
        });
    }
}

struct Busy {
    node: Node,
    exchange: Exchange,
    whole: Arc<AtomicUsize>,
    broken: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Busy {
    async fn start(name: &str, relay: bool) -> Self {
        let mut us = ourselves(name, 1);
        us.params.relay = relay;
        let tasks = Tasks::new();
        let exchange = Exchange::new(tasks.clone(), Arc::new(Ticker(tasks.clone())));
        Self {
            node: Node::handled(us, 0, Arc::new(exchange.clone())).await,
            exchange,
            whole: Arc::default(),
            broken: Arc::default(),
        }
    }

    /// One stream from `to`, whole or with what went wrong.
    async fn stream(mesh: &Mesh, exchange: &Exchange, to: &NodeId) -> Result<(), String> {
        let session = mesh.session(to).await.map_err(|e| e.message)?;
        let request = NewRequest {
            rid: RequestId::random(),
            kind: Kind::Model,
            fields: "\"model\":\"m\"".into(),
            body: Bytes::new(),
            class: Class::Interactive,
            idempotent: true,
            timeouts: Timeouts {
                accept: Duration::from_secs(20),
                idle: Some(Duration::from_secs(20)),
                deadline: Duration::from_secs(60),
                until_first_byte: false,
            },
        };
        let mut call = exchange.open(&session, request).map_err(|e| e.message)?;
        // Chunks may come joined.
        let mut chunks = 0;
        while let Some(item) = call.next().await.map_err(|e| e.message)? {
            if let Item::Chunk { data, .. } = item {
                chunks += data.len();
            }
        }
        (chunks == CHUNKS)
            .then_some(())
            .ok_or_else(|| format!("{chunks} chunks"))
    }

    /// Streams from `to` one after the other until `stop`.
    fn work(&self, to: &str, stop: &Arc<AtomicBool>, tasks: &Tasks) {
        let (mesh, exchange) = (self.node.mesh.clone(), self.exchange.clone());
        let (whole, broken) = (self.whole.clone(), self.broken.clone());
        let (to, stop) = (node(to), stop.clone());
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match Self::stream(&mesh, &exchange, &to).await {
                    Ok(()) => {
                        whole.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(why) => {
                        broken.lock().unwrap().push(format!("to {to}: {why}"));
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }

    /// What an operator waits for before the next round.
    fn uses_the_present_secret(&self) -> bool {
        let own = self.node.us.keys.own_id();
        let links = self.node.mesh.hub.open_links();
        !links.is_empty()
            && links.iter().all(|link| link.secret() == own)
            && self.node.mesh.view().borrow().outdated.is_empty()
    }
}

async fn eventually(what: &str, good: impl Fn() -> bool) {
    let wait = async {
        while !good() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        timeout(Duration::from_secs(20), wait).await.is_ok(),
        "{what}"
    );
}

fn key(byte: u8) -> MeshKey {
    MeshKey::from_bytes([byte; 32])
}

/// T24: the three rounds of a change under constant streams, over links and over a relay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_changes_under_streams_and_none_of_them_breaks() {
    let names = ["relay", "n1", "n2", "n3", "n4"];
    let mut nodes = Vec::new();
    for name in names {
        nodes.push(Busy::start(name, name == "relay").await);
    }
    for busy in &nodes[1..] {
        busy.node.dial(&nodes[0].node);
    }
    let (stop, tasks) = (Arc::new(AtomicBool::new(false)), Tasks::new());
    for (at, busy) in nodes.iter().enumerate() {
        let to = names[(at + 1) % names.len()];
        busy.node
            .sees(to, |view| view.reach != Reach::Unreachable)
            .await;
        busy.work(to, &stop, &tasks);
    }
    let more = |than: usize| {
        let before: Vec<usize> = nodes
            .iter()
            .map(|busy| busy.whole.load(Ordering::Relaxed))
            .collect();
        move |nodes: &[Busy]| {
            let now = nodes.iter().map(|busy| busy.whole.load(Ordering::Relaxed));
            now.zip(&before).all(|(now, before)| now >= before + than)
        }
    };
    let rounds: [fn() -> (MeshKey, Vec<_>); 3] = [
        || (key(1), vec![(key(2), None)]),
        || (key(2), vec![(key(1), None)]),
        || (key(2), vec![]),
    ];
    for (round, secrets) in rounds.into_iter().enumerate() {
        let goes_on = more(3);
        for busy in &nodes {
            let (own, older) = secrets();
            busy.node.us.keys.replace_ready(own, older);
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        eventually(&format!("streams go on after round {round}"), || {
            goes_on(&nodes)
        })
        .await;
        eventually("links and sessions have the present secret", || {
            nodes.iter().all(Busy::uses_the_present_secret)
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    tasks.close(Duration::from_secs(10)).await;
    for (busy, name) in nodes.iter().zip(names) {
        assert_eq!(*busy.broken.lock().unwrap(), Vec::<String>::new(), "{name}");
    }
    // Who has slept through it is refused.
    let late = Node::start("late", 1).await;
    late.dial(&nodes[0].node);
    let view = late.sees("relay", |view| view.problem.is_some()).await;
    assert!(view.problem.unwrap().contains("secrets differ"));
}

/// Office accepts two secrets; home proves the one, attic the other.
async fn three(end: Option<SystemTime>) -> (Node, Node, Node) {
    let mut us = ourselves("office", 1);
    us.keys = MeshKeys::ready(key(1), vec![(key(2), end)]);
    let office = Node::with(us, 0).await;
    let (home, attic) = (Node::start("home", 1).await, Node::start("attic", 2).await);
    for other in [&home, &attic] {
        other.dial(&office);
        other.linked_to("office").await;
        office.linked_to(name_of(&other.us)).await;
        other.mesh.session(&office.name).await.unwrap();
    }
    // A session counts at both ends once a frame has come.
    let up = |seen: &Recorder, name: &str| seen.events().contains(&Event::Up(node(name)));
    office
        .seen
        .until(|seen| up(seen, "home") && up(seen, "attic"))
        .await;
    (office, home, attic)
}

async fn attic_alone_was_cut_off(office: &Node, home: &Node, attic: &Node) {
    attic
        .sees("office", |view| view.reach == Reach::Unreachable)
        .await;
    let lost = |name: &str| office.seen.events().contains(&Event::Lost(node(name)));
    office.seen.until(|_| lost("attic")).await;
    assert!(!lost("home"), "it proved the secret that stays");
    let link = home.mesh.hub.open_links().pop().unwrap();
    assert_eq!(
        link.id(),
        crate::ids::LinkId(1),
        "it is the first one still"
    );
}

#[tokio::test]
async fn a_removed_secret_ends_what_it_proved_and_nothing_else() {
    let (office, home, attic) = three(None).await;
    office.us.keys.replace_ready(key(1), vec![]);
    attic_alone_was_cut_off(&office, &home, &attic).await;
    let refused = |view: &NodeView| {
        let problem = view.problem.as_deref();
        problem.is_some_and(|problem| problem.contains("secrets differ"))
    };
    attic.sees("office", refused).await;
    // Refused nodes wait a minute, unless their secret has changed.
    attic.us.keys.replace_ready(key(1), vec![]);
    attic.linked_to("office").await;
}

/// Whose renewal was refused tries again by itself, and tells its operator until then.
#[tokio::test]
async fn a_session_is_renewed_though_nobody_asks_for_it() {
    let (office, home, _attic) = three(None).await;
    let outdated = |home: &Node| home.mesh.view().borrow().outdated.clone();
    assert_eq!(outdated(&home), Vec::<NodeId>::new());
    // A round too early: office does not have it yet.
    home.us.keys.replace_ready(key(3), vec![(key(1), None)]);
    eventually("home tells what is behind", || {
        outdated(&home) == [office.name.clone()]
    })
    .await;
    let sessions = &home.mesh.hub.sessions;
    eventually("the handshake fails", || !sessions.is_opening(&office.name)).await;
    assert_eq!(sessions.outdated(), std::slice::from_ref(&office.name));
    let accepted = vec![(key(2), None), (key(3), None)];
    office.us.keys.replace_ready(key(1), accepted);
    eventually("the session is renewed", || sessions.outdated().is_empty()).await;
}

/// T25.
#[tokio::test]
async fn an_expired_secret_ends_what_it_proved_and_nothing_else() {
    let end = SystemTime::now() + Duration::from_millis(1500);
    let (office, home, attic) = three(Some(end)).await;
    attic_alone_was_cut_off(&office, &home, &attic).await;
    assert!(SystemTime::now() > end);
}
