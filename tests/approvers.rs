//! A person at another node approves (protocol 8.4): home asks, office would be touched, attic has the
//! person.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    dead_code,
    reason = "a helper that fails is a failed test, tasks end with it; not every helper is used by every test binary"
)]

#[path = "support/local_node.rs"]
mod local_node;

use std::{path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD, prelude::BASE64_STANDARD};
use bytes::Bytes;
use clawmatrix::{
    approvals::{Desk, Nodes, Operator, Request, Shown},
    config::{Config, Source, ToolConfig},
    crypto::identity::{Identity, KeyId},
    exchange::{Item, Kind, NewRequest, Sessions as _, Timeouts},
    ids::RequestId,
    mesh::session::Class,
    wire::code::{Code, Failure},
};
use local_node::{Cable, Node, Setup, join};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{task::JoinHandle, time::timeout};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// The token of the operator, who is at attic.
const TOKEN: &str = "cmx_of-the-operator";

fn lent(whole: Value) -> ToolConfig {
    let source = Source {
        openclaw: false,
        folder: Path::new("/"),
        env: &|_| None,
    };
    let mut base = json!({"nodeId": "office", "secret": "vT2mQ9xLr4Kc8WzYp6NdBh3sJf7GaE5u"});
    base["toolProxy"] = whole;
    Config::from_value(base, &source).unwrap().tools
}

struct World {
    home: Node,
    office: Node,
    attic: Node,
    /// Between attic and office.
    cable: Option<Cable>,
    _other: Cable,
    desk: Desk,
    operator: Identity,
    temp: tempfile::TempDir,
}

impl World {
    async fn new(level: u8, wait: Duration) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let operator = Identity::generate();
        let who = Operator {
            key: operator.public(),
            token_sha256: None,
        };
        let named = |name: &str| vec![name.parse().unwrap()];
        let mut setup = Setup::new("office");
        setup.tools = lent(json!({"enabled": true, "roots": [root], "rules": [
            {"id": "w", "effect": "allow", "from": ["*"], "minTrust": "pinned", "action": ["tool:write"], "level": level},
        ]}));
        setup.desk = Desk::new(&[who], wait, setup.events.clone());
        setup.nodes.approvers = named("attic");
        let desk = setup.desk.clone();
        let office = Node::start(setup).await;
        let home = Node::start(Setup::new("home")).await;
        let mut setup = Setup::new("attic");
        setup.nodes.approves_for = named("office");
        let attic = Node::start(setup).await;
        attic.tokens.set_operators([Sha256::digest(TOKEN).into()]);
        let other = join(&home, &office, 1.0);
        let cable = Some(join(&attic, &office, 1.0));
        Self {
            home,
            office,
            attic,
            cable,
            _other: other,
            desk,
            operator,
            temp,
        }
    }

    /// Home asks for a file of that name; what is said comes when it has ended.
    fn ask(&self, name: &str) -> JoinHandle<Value> {
        let url = self.home.url("/api/v1/tools/write");
        let body = json!({"node": "office", "path": name, "content": "some words"});
        let request = client()
            .post(url)
            .bearer_auth(&self.home.launch)
            .header("accept", "text/event-stream")
            .json(&body);
        tokio::spawn(async move {
            let text = request.send().await.unwrap().text().await.unwrap();
            let end = text.lines().rfind(|line| line.starts_with("data: "));
            serde_json::from_str(&end.unwrap()[6..]).unwrap()
        })
    }

    fn made(&self, name: &str) -> bool {
        self.temp.path().join(name).exists()
    }

    /// What attic shows, once there are so many.
    async fn shown(&self, many: usize) -> Vec<Value> {
        let found = async {
            loop {
                let list = client().get(self.attic.url("/api/v1/approvals"));
                let (status, list) = answer(list.bearer_auth(TOKEN)).await;
                assert_eq!(status, 200, "{list}");
                let all = list["approvals"].as_array().unwrap().clone();
                if all.len() == many {
                    return all;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, found).await.unwrap()
    }

    /// The one request that attic shows, whole, as its person's command reads it.
    async fn one(&self) -> (String, Request) {
        let id = self.shown(1).await[0]["id"].as_str().unwrap().to_owned();
        let url = self.attic.url(&format!("/api/v1/approvals/{id}"));
        let (status, shown) = answer(client().get(url).bearer_auth(TOKEN)).await;
        assert_eq!(
            (status, &shown["here"], &shown["to"]),
            (200, &json!(false), &json!("office")),
            "{shown}"
        );
        assert!(shown.get("challenge").is_none());
        let data = BASE64_STANDARD.decode(shown["data"].as_str().unwrap());
        let told: Shown = serde_json::from_value(shown).unwrap();
        (id, told.request(data.unwrap().into()))
    }

    async fn decide(&self, id: &str, said: Value) -> (u16, Value) {
        let url = self.attic.url(&format!("/api/v1/approvals/{id}"));
        answer(client().post(url).bearer_auth(TOKEN).json(&said)).await
    }

    /// Node `from` says to office what no part of it would say.
    async fn raw(&self, from: &Node, to: &Node, kind: Kind, fields: Value, body: Bytes) -> Failure {
        let session = from.sessions.session(&to.name).await.unwrap();
        let fields = fields.to_string();
        let new = NewRequest {
            rid: RequestId::random(),
            kind,
            fields: fields[1..fields.len() - 1].to_owned(),
            body,
            class: Class::Interactive,
            idempotent: true,
            timeouts: Timeouts {
                accept: PATIENCE,
                idle: None,
                deadline: PATIENCE,
                until_first_byte: false,
            },
        };
        let mut call = from.exchange.open(&session, new).unwrap();
        loop {
            match timeout(PATIENCE, call.next()).await.unwrap() {
                Err(failure) => return failure,
                Ok(Some(Item::End(_)) | None) => panic!("it was taken"),
                Ok(Some(_)) => {}
            }
        }
    }
}

fn signed(request: &Request, by: &Identity) -> Value {
    json!({"decision": "approve", "signature": token(request, by)})
}

fn token(request: &Request, by: &Identity) -> String {
    URL_SAFE_NO_PAD.encode(request.sign(by))
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or(Value::Null))
}

fn code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or_default()
}

async fn ended(asked: JoinHandle<Value>) -> Value {
    timeout(PATIENCE, asked).await.unwrap().unwrap()
}

/// The signature of an operator over exactly what was shown counts, once; nothing else does.
#[tokio::test]
async fn a_person_elsewhere_signs_what_office_would_do() {
    let world = World::new(2, Duration::from_secs(60)).await;
    let asked = world.ask("made");
    let (id, request) = world.one().await;
    assert_eq!(
        (request.from.as_str(), &request.data[..]),
        ("home", &b"some words"[..])
    );
    // Whoever is no operator of attic sees and decides nothing there.
    for token in [&world.attic.launch, &world.attic.openclaw] {
        for path in ["/api/v1/approvals", &format!("/api/v1/approvals/{id}")] {
            let look = client().get(world.attic.url(path)).bearer_auth(token);
            assert_eq!(answer(look).await.0, 403);
        }
        let url = world.attic.url(&format!("/api/v1/approvals/{id}"));
        let said = client().post(url).bearer_auth(token);
        let good = signed(&request, &world.operator);
        assert_eq!(answer(said.json(&good)).await.0, 403);
    }
    let mut other = request.clone();
    other.args = other.args.replace("made", "else");
    let mut content = request.clone();
    content.data = Bytes::from_static(b"other words");
    let mut elsewhere = request.clone();
    elsewhere.to = "attic".parse().unwrap();
    for bad in [
        json!({"decision": "approve", "signature": "AAAA"}),
        signed(&request, &Identity::generate()),
        signed(&other, &world.operator),
        signed(&content, &world.operator),
        signed(&elsewhere, &world.operator),
    ] {
        let (status, body) = world.decide(&id, bad).await;
        assert_eq!((status, code(&body)), (403, "forbidden"), "{body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("no signature of an operator"), "{message}");
    }
    assert!(!asked.is_finished() && !world.made("made"));
    let (status, body) = world.decide(&id, signed(&request, &world.operator)).await;
    let by: KeyId = world.operator.public().id();
    assert_eq!(
        (status, &body["state"], &body["by"], &body["nodeId"]),
        (200, &json!("approved"), &json!(by), &json!("office")),
        "{body}"
    );
    assert_eq!(ended(asked).await["outcome"], "completed");
    assert!(world.made("made"));
    world.shown(0).await;
    // Again, by the same way and past it.
    let (status, body) = world.decide(&id, signed(&request, &world.operator)).await;
    assert_eq!((status, code(&body)), (404, "not_found"), "{body}");
    let again = json!({"id": id, "decision": "approve", "token": token(&request, &world.operator)});
    let failure = world
        .raw(
            &world.attic,
            &world.office,
            Kind::Approval,
            again,
            Bytes::new(),
        )
        .await;
    assert_eq!(failure.code, Code::Forbidden, "{failure}");
    assert!(failure.message.contains("decided before"), "{failure}");

    let denied = world.ask("denied");
    let (id, _) = world.one().await;
    let (status, body) = world.decide(&id, json!({"decision": "deny"})).await;
    assert_eq!((status, &body["state"]), (200, &json!("denied")), "{body}");
    assert_eq!(code(&ended(denied).await), "approval_denied");
}

/// What is decided at office, withdrawn or late is gone at attic; the first decision counts.
#[tokio::test]
async fn what_waits_no_more_is_shown_no_more() {
    let world = World::new(2, Duration::from_secs(60)).await;
    let asked = world.ask("a");
    let (id, request) = world.one().await;
    let parsed = id.parse().unwrap();
    world
        .desk
        .approve(parsed, &request.sign(&world.operator), "")
        .unwrap();
    assert_eq!(ended(asked).await["outcome"], "completed");
    world.shown(0).await;

    let asked = world.ask("b");
    world.shown(1).await;
    asked.abort();
    world.shown(0).await;

    let world = World::new(2, Duration::from_millis(1500)).await;
    let asked = world.ask("c");
    let (id, request) = world.one().await;
    assert_eq!(code(&ended(asked).await), "approval_expired");
    world.shown(0).await;
    let late = json!({"id": id, "decision": "approve", "token": token(&request, &world.operator)});
    let failure = world
        .raw(
            &world.attic,
            &world.office,
            Kind::Approval,
            late,
            Bytes::new(),
        )
        .await;
    assert_eq!(failure.code, Code::ApprovalExpired, "{failure}");
    assert!(!world.made("c"));
}

/// A lost link takes nothing from office; what still waits is shown again when attic is back.
#[tokio::test]
async fn a_lost_approver_is_shown_it_again() {
    let mut world = World::new(2, Duration::from_secs(60)).await;
    let asked = world.ask("a");
    let (id, request) = world.one().await;
    drop(world.cable.take());
    world.shown(0).await;
    let (status, body) = world.decide(&id, signed(&request, &world.operator)).await;
    assert_eq!((status, code(&body)), (404, "not_found"), "{body}");
    world.cable = Some(join(&world.attic, &world.office, 1.0));
    let (again, request) = world.one().await;
    assert_eq!(again, id);
    let (status, _) = world.decide(&id, signed(&request, &world.operator)).await;
    assert_eq!(status, 200);
    assert_eq!(ended(asked).await["outcome"], "completed");
}

/// A node that ends shows nothing any more, so that no request of others keeps it; office does not give up.
#[tokio::test]
async fn an_approver_that_stops_lets_go() {
    let world = World::new(2, Duration::from_secs(60)).await;
    let asked = world.ask("a");
    let (id, request) = world.one().await;
    world.attic.inbox.close();
    world.shown(0).await;
    // Told and acknowledged, which a drain waits for.
    let let_go = async {
        while world.attic.exchange.stats().inbound_open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, let_go).await.unwrap();
    let parsed = id.parse().unwrap();
    let by = request.sign(&world.operator);
    world.desk.approve(parsed, &by, "").unwrap();
    assert_eq!(ended(asked).await["outcome"], "completed");
}

/// Level 3 is shown elsewhere and can be refused there, but is approved at its own node alone.
#[tokio::test]
async fn level_3_is_approved_at_its_own_node() {
    let world = World::new(3, Duration::from_secs(60)).await;
    let asked = world.ask("a");
    let (id, request) = world.one().await;
    let (status, body) = world.decide(&id, signed(&request, &world.operator)).await;
    assert_eq!((status, code(&body)), (403, "forbidden"), "{body}");
    // Office says so, too, to a node that does not.
    let said = json!({"id": id, "decision": "approve", "token": token(&request, &world.operator)});
    let failure = world
        .raw(
            &world.attic,
            &world.office,
            Kind::Approval,
            said,
            Bytes::new(),
        )
        .await;
    assert_eq!(failure.code, Code::Forbidden);
    assert!(
        failure.message.contains("on its own node alone"),
        "{failure}"
    );
    assert!(!asked.is_finished());
    let (status, _) = world.decide(&id, json!({"decision": "deny"})).await;
    assert_eq!(status, 200);
    assert_eq!(code(&ended(asked).await), "approval_denied");
}

/// Nodes that are not named say nothing, whatever they bring.
#[tokio::test]
async fn who_is_not_named_has_no_say() {
    let world = World::new(2, Duration::from_secs(60)).await;
    let asked = world.ask("a");
    let (id, request) = world.one().await;
    let token = token(&request, &world.operator);
    for said in [
        json!({"id": id, "decision": "approve", "token": token}),
        json!({"id": id, "decision": "deny"}),
    ] {
        let failure = world
            .raw(
                &world.home,
                &world.office,
                Kind::Approval,
                said,
                Bytes::new(),
            )
            .await;
        assert_eq!(failure.code, Code::Forbidden);
        assert!(failure.message.contains("approvals.approvers"), "{failure}");
    }
    // One that is named, and talks nonsense.
    for (said, expected) in [
        (
            json!({"id": "00000000", "decision": "deny"}),
            Code::NotFound,
        ),
        (json!({"id": "x", "decision": "deny"}), Code::NotFound),
        (json!({"id": id, "decision": "maybe"}), Code::InvalidRequest),
        (json!({"id": id, "decision": "approve"}), Code::Forbidden),
        (json!({"decision": "approve"}), Code::InvalidRequest),
    ] {
        let failure = world
            .raw(
                &world.attic,
                &world.office,
                Kind::Approval,
                said.clone(),
                Bytes::new(),
            )
            .await;
        assert_eq!(failure.code, expected, "{said}: {failure}");
    }
    assert!(!asked.is_finished() && !world.made("a"));
    // Attic shows nothing of office, to which it was not asked; and of others' nothing at all.
    let attic = &world.attic;
    let shown = serde_json::to_vec(&Shown::of(id.parse().unwrap(), &request)).unwrap();
    let req = |id: &str| json!({"id": id, "slen": shown.len()});
    let failure = world
        .raw(
            &world.office,
            &world.home,
            Kind::ApprovalReq,
            req(&id),
            shown.clone().into(),
        )
        .await;
    assert_eq!(failure.code, Code::Forbidden);
    assert!(
        failure.message.contains("approvals.approvesFor"),
        "{failure}"
    );
    for (fields, body, expected) in [
        // Its name is taken.
        (req(&id), shown.clone(), Code::Overloaded),
        (req("0a0b0c0d"), shown.clone(), Code::InvalidRequest),
        (
            json!({"id": id, "slen": 7}),
            shown.clone(),
            Code::InvalidRequest,
        ),
        (
            json!({"id": id, "slen": 1_u64 << 40}),
            shown.clone(),
            Code::PayloadTooLarge,
        ),
        (json!({"id": id}), shown.clone(), Code::InvalidRequest),
        (req("0a0b0c0d"), foreign(&request), Code::InvalidRequest),
    ] {
        let failure = world
            .raw(
                &world.office,
                attic,
                Kind::ApprovalReq,
                fields.clone(),
                body.into(),
            )
            .await;
        assert_eq!(failure.code, expected, "{fields}: {failure}");
    }
    world.shown(1).await;
    // Named no more, it is neither shown to nor heard.
    world.attic.inbox.set(Nodes::default());
    world.shown(0).await;
    world.office.inbox.set(Nodes::default());
    let said = json!({"id": id, "decision": "approve", "token": token});
    let failure = world
        .raw(attic, &world.office, Kind::Approval, said, Bytes::new())
        .await;
    assert_eq!(failure.code, Code::Forbidden);
}

/// The same request as if it were another node's.
fn foreign(request: &Request) -> Vec<u8> {
    let mut other = request.clone();
    other.to = "cellar".parse().unwrap();
    serde_json::to_vec(&Shown::of("0a0b0c0d".parse().unwrap(), &other)).unwrap()
}
