//! Messages over the local API of nodes in one process.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a helper that fails is a failed test; not every helper is used by every test binary"
)]

#[path = "support/local_node.rs"]
mod local_node;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clawmatrix::{
    exchange::{Kind, NewRequest, Sessions, Timeouts},
    handoff::inbound::OfferedAgent,
    ids::RequestId,
    mesh::{session::Class, view::Reach},
    messages::{Courier, Note},
    trust::Level,
    wire::code::{Code, Failure},
};
use local_node::{Node, Setup, join};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hands every message to the test.
#[derive(Debug)]
struct Mailbox {
    notes: mpsc::Sender<Note>,
    /// Refuses the next message, once.
    fails: AtomicBool,
}

impl Courier for Mailbox {
    fn deliver(
        &self,
        note: Note,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + '_>> {
        let failed = self.fails.swap(false, Ordering::Relaxed);
        Box::pin(async move {
            if failed {
                return Err(Failure::started(Code::Timeout, "starting"));
            }
            self.notes.send(note).await.unwrap();
            Ok(())
        })
    }
}

struct Mail(mpsc::Receiver<Note>);

impl Mail {
    async fn next(&mut self) -> Note {
        timeout(PATIENCE, self.0.recv()).await.unwrap().unwrap()
    }

    fn empty(&mut self) -> bool {
        self.0.try_recv().is_err()
    }
}

/// A node whose agent `main` takes messages.
async fn office(change: impl FnOnce(&mut Setup)) -> (Node, Mail) {
    let (notes, mail) = mpsc::channel(64);
    let mut setup = Setup::new("office");
    setup.agents.push(OfferedAgent {
        id: "main".into(),
        allow: None,
        tools: None,
        runner: None,
    });
    setup.courier = Some(Arc::new(Mailbox {
        notes,
        fails: AtomicBool::new(false),
    }));
    change(&mut setup);
    (Node::start(setup).await, Mail(mail))
}

async fn send(node: &Node, body: Value) -> (u16, Value) {
    let request = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(node.url("/api/v1/send"))
        .bearer_auth(&node.launch)
        .json(&body);
    let response = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn hello(text: &str) -> Value {
    json!({"target": "office/main", "message": text})
}

#[tokio::test]
async fn a_message_arrives_marked_with_its_verified_sender() {
    let (office, mut mail) = office(|_| {}).await;
    let home = Node::start(Setup::new("home")).await;
    let _cable = join(&home, &office, 1.0);
    let answer = send(&home, hello("lunch?")).await;
    assert_eq!(
        answer,
        (200, json!({"delivered": true, "nodeId": "office"}))
    );
    let note = mail.next().await;
    assert_eq!((&*note.agent, note.wake), ("main", true));
    assert!(note.text.contains("from node `home`"), "{}", note.text);
    let (before, text) = note.text.split_once("<<<MESSAGE from node home ").unwrap();
    assert!(before.contains("not as the word of your owner") && text.contains("\nlunch?\n"));
    let body = json!({"target": "main", "message": "later", "wake": false});
    assert_eq!(send(&home, body).await.0, 200);
    let second = mail.next().await;
    assert!(!second.wake);
    assert_ne!(note.key, second.key);
    // To an agent of the node itself, when it is named.
    assert_eq!(
        send(&office, hello("note to self")).await.1["delivered"],
        true
    );
    assert!(mail.next().await.text.contains("note to self"));
}

/// Protocol 7.4, for messages: the session that is opened pins the node.
#[tokio::test]
async fn a_node_only_heard_of_gets_messages() {
    let (office, mut mail) = office(|_| {}).await;
    let home = Node::start(Setup::new("home")).await;
    let _cable = join(&home, &office, 1.0);
    home.see_at(&office, Reach::Direct, 1.0, Level::Seen);
    let body = json!({"target": "main", "message": "lunch?"});
    let answer = send(&home, body).await;
    assert_eq!(
        answer,
        (200, json!({"delivered": true, "nodeId": "office"}))
    );
    assert!(mail.next().await.text.contains("\nlunch?\n"));
}

#[tokio::test]
async fn a_message_waits_for_its_node_over_a_restart_and_arrives_once() {
    let (office, mut mail) = office(|_| {}).await;
    let home = Node::start(Setup::new("home")).await;
    home.see(&office, Reach::Unreachable, 1.0);
    for text in ["one", "two"] {
        let (status, answer) = send(&home, hello(text)).await;
        assert_eq!((status, &answer["queued"]), (200, &json!(true)), "{answer}");
        assert!(answer["expiresAt"].as_u64().is_some());
    }
    assert!(mail.empty());
    let mut setup = Setup::new("home");
    setup.folder = Some(home.stop().await);
    setup.boot = 2;
    let home = Node::start(setup).await;
    let _cable = join(&home, &office, 1.0);
    let both = [mail.next().await.text, mail.next().await.text];
    assert!(
        both[0].contains("\none\n") && both[1].contains("\ntwo\n"),
        "{both:?}"
    );
    // Nothing is left that could come again.
    home.lose(&office.name);
    home.see(&office, Reach::Direct, 1.0);
    assert_eq!(send(&home, hello("three")).await.1["delivered"], true);
    assert!(mail.next().await.text.contains("\nthree\n"));
    assert!(mail.empty());
}

/// A repeated attempt, after its answer was lost, also over a restart of the destination.
#[tokio::test]
async fn the_same_message_is_taken_once() {
    let (mut node, mut mail) = office(|_| {}).await;
    let home = Node::start(Setup::new("home")).await;
    let id = RequestId::random();
    let mut cables = Vec::new();
    for boot in 1..=2 {
        let cable = join(&home, &node, 1.0);
        for _ in 0..2 {
            let session = home.sessions.session(&node.name).await.unwrap();
            let request = NewRequest {
                rid: RequestId::random(),
                kind: Kind::Send,
                fields: format!(
                    "\"id\":\"{id}\",\"agent\":\"main\",\"exp\":60000,\"hops\":[\"home\"]"
                ),
                body: Bytes::from_static(b"once"),
                class: Class::Interactive,
                idempotent: true,
                timeouts: Timeouts {
                    accept: PATIENCE,
                    idle: None,
                    deadline: PATIENCE,
                    until_first_byte: false,
                },
            };
            let mut call = home.exchange.open(&session, request).unwrap();
            while call.next().await.unwrap().is_some() {}
        }
        if boot == 1 {
            assert!(mail.next().await.text.contains("\nonce\n"));
            drop(cable);
            let folder = node.stop().await;
            (node, mail) = office(|setup| {
                setup.folder = Some(folder);
                setup.boot = 2;
            })
            .await;
        } else {
            cables.push(cable);
        }
    }
    assert_eq!(send(&home, hello("after")).await.1["delivered"], true);
    assert!(
        mail.next().await.text.contains("\nafter\n"),
        "`once` came again"
    );
    assert!(mail.empty());
}

#[tokio::test]
async fn a_gateway_that_is_not_ready_gets_the_message_later() {
    let (notes, received) = mpsc::channel(64);
    let (office, _) = office(|setup| {
        setup.courier = Some(Arc::new(Mailbox {
            notes,
            fails: AtomicBool::new(true),
        }));
    })
    .await;
    let home = Node::start(Setup::new("home")).await;
    let _cable = join(&home, &office, 1.0);
    assert_eq!(send(&home, hello("patience")).await.1["delivered"], true);
    // A further message wakes the one that failed.
    assert_eq!(send(&home, hello("more")).await.1["delivered"], true);
    let mut mail = Mail(received);
    let mut texts = [mail.next().await.text, mail.next().await.text];
    texts.sort();
    assert!(
        texts.iter().any(|text| text.contains("\npatience\n")),
        "{texts:?}"
    );
}

#[tokio::test]
async fn wrong_messages_are_told_apart() {
    let (office, mut mail) = office(|_| {}).await;
    let mut bare = Setup::new("bare");
    bare.agents.push(OfferedAgent {
        id: "mute".into(),
        allow: None,
        tools: None,
        runner: None,
    });
    let bare = Node::start(bare).await;
    let home = Node::start(Setup::new("home")).await;
    let _cables = [join(&home, &office, 1.0), join(&home, &bare, 1.0)];
    let long = "x".repeat(48 * 1024 + 1);
    for (body, status, code) in [
        (hello(" "), 400, "invalid_request"),
        (json!({"target": "office"}), 400, "invalid_request"),
        (hello(&long), 413, "payload_too_large"),
        (
            json!({"target": "nobody", "message": "a"}),
            404,
            "agent_not_found",
        ),
        (
            json!({"target": "office/none", "message": "a"}),
            404,
            "agent_not_found",
        ),
        (
            json!({"target": "mute", "message": "a"}),
            404,
            "agent_not_found",
        ),
    ] {
        let (seen, answer) = send(&home, body).await;
        assert_eq!(
            (seen, &answer["error"]["code"]),
            (status, &json!(code)),
            "{answer}"
        );
    }
    assert!(mail.empty());
    // The longest one, all of it escaped on its way.
    assert_eq!(
        send(
            &home,
            hello(&"\n".repeat(48 * 1024 - 1).replacen('\n', "x", 1))
        )
        .await
        .0,
        200
    );
}
