//! Links that are replaced under running requests: what the exchange above must not notice.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::{
    exchange::{End, Exchange, InboundHandler, Incoming, Item, Kind, NewRequest, Timeouts},
    ids::RequestId,
    mesh::{
        dial::{
            connect::{Way, connect},
            tls::web_tls,
        },
        handshake::initiate,
    },
    trust::Level,
};

/// Answers every request with as many numbered chunks as a test wants, one each few milliseconds.
#[derive(Debug)]
struct Counter(Tasks);

const CHUNKS: u32 = 150;

impl InboundHandler for Counter {
    fn handle(&self, mut incoming: Incoming) {
        self.0.spawn(async move {
            incoming.reply.accept().await.unwrap();
            for n in 0..CHUNKS {
                let text = format!("{n},");
                incoming.reply.chunk(text.into(), None).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let end = End {
                ok: true,
                ..End::default()
            };
            incoming.reply.end(end).await.unwrap();
        });
    }
}

struct Working {
    node: Node,
    exchange: Exchange,
}

async fn working(name: &str) -> Working {
    let us = ourselves(name, 1);
    let tasks = Tasks::new();
    let exchange = Exchange::new(tasks.clone(), Arc::new(Counter(tasks.clone())));
    let node = Node::handled(us, 0, Arc::new(exchange.clone())).await;
    Working { node, exchange }
}

#[tokio::test]
async fn stream_survives_the_replacement_of_its_link() {
    let (office, home) = (working("office").await, working("home").await);
    // Dialed by the larger key, so that a link dialed by the smaller one beats it.
    let (from, to) = if home.node.us.identity.public() < office.node.us.identity.public() {
        (&office.node, &home.node)
    } else {
        (&home.node, &office.node)
    };
    from.dial(to);
    home.node.linked_to("office").await;
    let session = home.node.mesh.session(&node("office")).await.unwrap();
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
    let mut call = home.exchange.open(&session, request).unwrap();
    let mut text = Vec::new();
    let mut replaced = false;
    while let Some(item) = timeout(Duration::from_secs(30), call.next())
        .await
        .unwrap()
        .unwrap()
    {
        if let Item::Chunk { data, .. } = item {
            text.extend_from_slice(&data);
        }
        if text.len() > 20 && !replaced {
            replaced = true;
            second_link(&home.node, &office.node).await;
        }
    }
    let expected: String = (0..CHUNKS).map(|n| format!("{n},")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    // Both sides may have opened one at the start, so it need not be the newest.
    let alive = session.send(Class::Interactive, b"{\"type\":\"noop\"}", b"");
    assert_eq!(alive, Ok(()), "a session outlives its link");
}

/// Makes a link in the direction that is kept, or one after the other side has gone quiet.
async fn second_link(home: &Node, office: &Node) {
    let was = home.mesh.hub.open_links()[0].sid();
    let (dialer, listener) = if home.us.identity.public() < office.us.identity.public() {
        (home, office)
    } else {
        (office, home)
    };
    let way = Way {
        url: listener.peer().url,
        tls: web_tls(),
        pinned: false,
        proxy: None,
        rotations: None,
        bounds: None,
    };
    let connected = connect(&way).await.unwrap();
    let (ws, carriage) = (connected.ws, connected.carriage);
    let (mut sink, mut stream) = ws.split();
    let established = initiate(
        &mut sink,
        &mut stream,
        &dialer.us,
        &listener.name,
        Vec::new(),
    )
    .await
    .unwrap();
    assert_ne!(established.sid, was);
    let link = dialer
        .mesh
        .hub
        .admit(established, carriage, (sink, stream))
        .await;
    assert_ne!(link.unwrap().sid(), was, "another link");
}

#[tokio::test]
async fn changed_rights_hold_on_the_running_link() {
    let (office, home) = pair().await;
    let session = office.mesh.session(&home.name).await.unwrap();
    assert_eq!(session.peer().level, Level::Pinned);
    let key = home.us.identity.public();
    let labels = ["family".to_owned()];
    office.us.trust.add(&home.name, &key, &labels).unwrap();
    office
        .sees("home", |view| view.level == Some(Level::Trusted))
        .await;
    assert_eq!(session.peer().level, Level::Trusted);
    assert_eq!(*session.peer().labels, labels);
    let now = office.mesh.session(&home.name).await.unwrap();
    assert_eq!(now.id(), session.id(), "the same link");
}

#[tokio::test]
async fn nodes_that_dial_one_another_end_with_one_link() {
    for _ in 0..10 {
        let (a, b) = (Node::start("a", 1).await, Node::start("b", 1).await);
        a.dial(&b);
        b.dial(&a);
        let same = async {
            loop {
                let (at_a, at_b) = (a.mesh.session(&b.name).await, b.mesh.session(&a.name).await);
                if let (Ok(at_a), Ok(_)) = (at_a, at_b)
                    && let ([one], [other]) =
                        (&a.mesh.hub.open_links()[..], &b.mesh.hub.open_links()[..])
                    && one.sid() == other.sid()
                {
                    // It carries a frame, so neither side is about to give it up.
                    let before = b.seen.frames().len();
                    at_a.send(Class::Interactive, b"{}", b"").unwrap();
                    b.seen.until(|seen| seen.frames().len() > before).await;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), same)
            .await
            .expect("one link");
    }
}
