//! What waits for a person, over the local API of nodes in one process (protocol 8.4).
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

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clawmatrix::{
    approvals::{Desk, Operator, Request, desk::unix_ms},
    audit::{self, Audit},
    config::{Config, Source, ToolConfig},
    crypto::identity::Identity,
    drain::Tasks,
    exchange::SESSION_HEADER,
    state::StateDir,
    wire::code::Code,
};
use local_node::{Cable, Node, Setup, join};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{task::JoinHandle, time::timeout};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// The operator's token.
const TOKEN: &str = "cmx_of-the-operator";

fn lent(whole: Value) -> ToolConfig {
    let source = Source {
        openclaw: false,
        folder: Path::new("/"),
        env: &|_| None,
    };
    let mut base = json!({"nodeId": "office", "secret": "vT2mQ9xLr4Kc8WzYp6NdBh3sJf7GaE5u"});
    base.as_object_mut()
        .unwrap()
        .extend(whole.as_object().unwrap().clone());
    Config::from_value(base, &source).unwrap().tools
}

/// Home asks, office waits for its operator.
struct World {
    home: Node,
    office: Node,
    cable: Cable,
    desk: Desk,
    operator: Identity,
    temp: tempfile::TempDir,
}

impl World {
    /// `config` with `ROOT` as the folder that is lent.
    async fn new(config: Value, wait: Duration, change: impl FnOnce(&mut Setup)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let text = config.to_string().replace("ROOT", root.to_str().unwrap());
        let operator = Identity::generate();
        let who = Operator {
            key: operator.public(),
            token_sha256: Some(Sha256::digest(TOKEN).into()),
        };
        let mut setup = Setup::new("office");
        setup.tools = lent(serde_json::from_str(&text).unwrap());
        setup.desk = Desk::new(std::slice::from_ref(&who), wait, setup.events.clone());
        change(&mut setup);
        let desk = setup.desk.clone();
        let office = Node::start(setup).await;
        office.tokens.set_operators(who.token_sha256);
        let home = Node::start(Setup::new("home")).await;
        let cable = join(&home, &office, 1.0);
        Self {
            home,
            office,
            cable,
            desk,
            operator,
            temp,
        }
    }

    async fn asking(tools: &[&str]) -> Self {
        let config = json!({"toolProxy": {"enabled": true, "roots": ["ROOT"], "ask": tools}});
        Self::new(config, Duration::from_secs(60), |_| {}).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Home asks; what is said comes when it has ended.
    fn ask(&self, verb: &str, mut body: Value) -> JoinHandle<(u16, Value)> {
        body["node"] = json!("office");
        let request = request(&self.home, verb, &body);
        tokio::spawn(followed(request, self.home.port, self.home.launch.clone()))
    }

    /// The one request that waits at office.
    async fn waiting(&self) -> (String, Request) {
        let found = async {
            loop {
                if let [(id, request)] = &self.desk.list()[..] {
                    return (id.to_string(), request.clone());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, found).await.unwrap()
    }

    /// Waits until nothing waits.
    async fn none_waits(&self) {
        let mut count = self.desk.count();
        let none = count.wait_for(|count| *count == 0);
        timeout(PATIENCE, none).await.unwrap().unwrap();
    }

    async fn decide(&self, token: &str, id: &str, body: Value) -> (u16, Value) {
        let url = self.office.url(&format!("/api/v1/approvals/{id}"));
        let request = client().post(url).bearer_auth(token).json(&body);
        answer(request).await
    }

    async fn approve(&self, id: &str, request: &Request) -> (u16, Value) {
        self.decide(TOKEN, id, signed(request, &self.operator))
            .await
    }
}

fn signed(request: &Request, by: &Identity) -> Value {
    let signature = URL_SAFE_NO_PAD.encode(request.sign(by));
    json!({"decision": "approve", "signature": signature})
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn request(node: &Node, verb: &str, body: &Value) -> reqwest::RequestBuilder {
    let url = node.url(&format!("/api/v1/tools/{verb}"));
    client().post(url).bearer_auth(&node.launch).json(body)
}

/// What came of a request for a tool, asked for by its id where it waits for a person.
async fn followed(request: reqwest::RequestBuilder, port: u16, token: String) -> (u16, Value) {
    let (status, body) = answer(request).await;
    if status != 202 {
        return (status, body);
    }
    let id = body["id"].as_str().unwrap();
    let url = format!("http://127.0.0.1:{port}/api/v1/tools/{id}");
    loop {
        let (status, shown) = answer(client().get(&url).bearer_auth(&token)).await;
        if shown["state"] == "done" {
            assert_eq!(status, 200, "{shown}");
            let failed = Code::from_text(code(&shown));
            return (failed.map_or(200, Code::http_status), shown);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or(Value::Null))
}

fn code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or_default()
}

async fn ended(asked: JoinHandle<(u16, Value)>) -> (u16, Value) {
    timeout(PATIENCE, asked).await.unwrap().unwrap()
}

/// T101, T102: it runs when an operator agreed to exactly it, once, and by nothing else.
#[tokio::test]
async fn nothing_runs_until_the_operator_agrees_to_it() {
    let world = World::asking(&["write"]).await;
    let asked = world.ask("write", json!({"path": "made", "content": "x"}));
    let (id, parked) = world.waiting().await;
    assert_eq!((parked.from.as_str(), parked.level), ("home", 2));
    assert_eq!(
        parked.touches,
        [world.path("made").canonicalize().map_or_else(
            |_| world
                .temp
                .path()
                .canonicalize()
                .unwrap()
                .join("made")
                .display()
                .to_string(),
            |path| path.display().to_string(),
        )]
    );
    // Whoever is no operator learns and decides nothing.
    for token in [
        &world.office.launch,
        &world.office.openclaw,
        "cmx_of-nobody",
    ] {
        let list = client().get(world.office.url("/api/v1/approvals"));
        let (status, _) = answer(list.bearer_auth(token)).await;
        assert_eq!(status, if token.ends_with("nobody") { 401 } else { 403 });
        let good = signed(&parked, &world.operator);
        let (status, _) = world.decide(token, &id, good).await;
        assert!(matches!(status, 401 | 403), "{status}");
        let (status, _) = world.decide(token, &id, json!({"decision": "deny"})).await;
        assert!(matches!(status, 401 | 403), "{status}");
    }
    // The token alone, other keys, other requests.
    let mut other = parked.clone();
    other.args = other.args.replace("made", "else");
    let mut elsewhere = parked.clone();
    elsewhere.rid.0[0] ^= 1;
    for bad in [
        json!({"decision": "approve", "signature": ""}),
        json!({"decision": "approve", "signature": "AAAA"}),
        signed(&parked, &Identity::generate()),
        signed(&other, &world.operator),
        signed(&elsewhere, &world.operator),
    ] {
        let (status, body) = world.decide(TOKEN, &id, bad).await;
        assert_eq!((status, code(&body)), (403, "forbidden"), "{body}");
    }
    assert!(!asked.is_finished() && !world.path("made").exists());
    let (status, _) = world
        .decide(TOKEN, "00000000", signed(&parked, &world.operator))
        .await;
    assert_eq!(status, 404);

    let (status, body) = world.approve(&id, &parked).await;
    assert_eq!(
        (status, &body["state"]),
        (200, &json!("approved")),
        "{body}"
    );
    let (status, body) = ended(asked).await;
    assert_eq!(
        (status, &body["outcome"]),
        (200, &json!("completed")),
        "{body}"
    );
    assert_eq!(std::fs::read(world.path("made")).unwrap(), b"x");
    // Reused, for this and for a new request of the same words.
    let (status, body) = world.approve(&id, &parked).await;
    assert_eq!((status, code(&body)), (403, "forbidden"), "{body}");
    let again = world.ask("write", json!({"path": "made", "content": "x"}));
    let (next, _) = world.waiting().await;
    let (status, _) = world.approve(&next, &parked).await;
    assert_eq!(status, 403);
    let (status, _) = world
        .decide(TOKEN, &next, json!({"decision": "deny"}))
        .await;
    assert_eq!(status, 200);
    let (status, body) = ended(again).await;
    assert_eq!((status, code(&body)), (403, "approval_denied"), "{body}");
    assert_eq!(body["outcome"], "not_dispatched");
}

#[tokio::test]
async fn a_person_who_does_not_come_is_a_refusal() {
    let config = json!({"toolProxy": {"enabled": true, "roots": ["ROOT"], "ask": ["exec"]}});
    let world = World::new(config, Duration::from_millis(1500), |_| {}).await;
    let asked = world.ask("exec", json!({"command": "touch ran"}));
    let (id, parked) = world.waiting().await;
    let (status, body) = ended(asked).await;
    assert_eq!((status, code(&body)), (403, "approval_expired"), "{body}");
    assert_eq!(body["outcome"], "not_dispatched");
    let (status, body) = world.approve(&id, &parked).await;
    assert_eq!((status, code(&body)), (403, "approval_expired"), "{body}");
    assert!(!world.path("ran").exists());
}

/// The origin is told, its time stands still, and a client that goes away takes the request along.
#[tokio::test]
async fn whoever_asks_is_told_and_loses_no_time() {
    let world = World::asking(&["exec"]).await;
    let body = json!({"node": "office", "command": "echo out", "timeout": 0.5});
    let request = || request(&world.home, "exec", &body).header("accept", "text/event-stream");
    let mut stream = request().send().await.unwrap();
    let mut text = String::new();
    while !text.contains("event: approval") {
        let piece = timeout(PATIENCE, stream.chunk()).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    assert!(text.contains("waiting for approval on office"), "{text}");
    let (id, parked) = world.waiting().await;
    // Longer than the command may take.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    world.approve(&id, &parked).await;
    while let Some(piece) = timeout(PATIENCE, stream.chunk()).await.unwrap().unwrap() {
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    for said in [
        "\"approval\":\"approved\"",
        "\"text\":\"out\\n\"",
        "\"outcome\":\"completed\"",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }

    let mut stream = request().send().await.unwrap();
    timeout(PATIENCE, stream.chunk()).await.unwrap().unwrap();
    let (id, parked) = world.waiting().await;
    drop(stream);
    world.none_waits().await;
    let (status, _) = world.approve(&id, &parked).await;
    assert_eq!(status, 404);
}

/// Who cannot hear of a wait is told where to ask, and may leave: the request goes on by itself, until a
/// person, `DELETE` or its time ends it.
#[tokio::test]
async fn who_asks_in_json_is_told_of_the_wait_and_asks_again() {
    let world = World::asking(&["exec"]).await;
    let body = json!({"node": "office", "command": "echo out"});
    let asking = || request(&world.home, "exec", &body).header("idempotency-key", "k");
    let (status, told) = answer(asking()).await;
    assert_eq!(
        (status, &told["state"], &told["nodeId"], &told["tool"]),
        (
            202,
            &json!("approval_pending"),
            &json!("office"),
            &json!("exec")
        ),
        "{told}"
    );
    assert_eq!(told["message"], "waiting for approval on office");
    let left = told["expiresAt"].as_u64().unwrap() - unix_ms() / 1000;
    assert!((55..=60).contains(&left), "{left}");
    let (id, parked) = world.waiting().await;
    let url = |told: &Value| {
        let id = told["id"].as_str().unwrap();
        world.home.url(&format!("/api/v1/tools/{id}"))
    };
    let look = || client().get(url(&told)).bearer_auth(&world.home.launch);
    assert_eq!(answer(look()).await, (202, told.clone()));
    // A repeat runs nothing and waits for nobody.
    assert_eq!(answer(asking()).await, (202, told.clone()));
    assert_eq!(*world.desk.count().borrow(), 1);
    world.approve(&id, &parked).await;
    let done = followed(asking(), world.home.port, world.home.launch.clone()).await;
    assert_eq!((done.0, &done.1["stdout"]), (200, &json!("out\n")));
    let (status, shown) = answer(look()).await;
    assert_eq!(
        (status, &shown["state"], &shown["stdout"]),
        (200, &json!("done"), &json!("out\n")),
        "{shown}"
    );

    let (status, told) = answer(request(&world.home, "exec", &body)).await;
    assert_eq!(status, 202);
    let (id, parked) = world.waiting().await;
    let delete = || {
        let request = client().delete(url(&told));
        request.bearer_auth(&world.home.launch)
    };
    let (status, shown) = answer(delete()).await;
    assert_eq!(
        (status, &shown["state"], &shown["outcome"]),
        (200, &json!("done"), &json!("cancelled")),
        "{shown}"
    );
    world.none_waits().await;
    assert_eq!(world.approve(&id, &parked).await.0, 404);
    assert_eq!(answer(delete()).await, (200, shown));
    let unknown = world.home.url("/api/v1/tools/00");
    let unknown = client().delete(unknown).bearer_auth(&world.home.launch);
    assert_eq!(answer(unknown).await.0, 404);
}

/// `DELETE` ends a tool that runs, too; whoever follows it hears so.
#[tokio::test]
async fn a_tool_that_runs_is_cancelled_by_its_id() {
    let world = World::asking(&["write"]).await;
    let body = json!({"node": "office", "command": "echo begun; exec cat /dev/zero > /dev/null"});
    let asking = request(&world.home, "exec", &body).header("accept", "text/event-stream");
    let mut stream = asking.send().await.unwrap();
    let id = stream.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let mut text = String::new();
    while !text.contains("begun") {
        let piece = timeout(PATIENCE, stream.chunk()).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    let url = world.home.url(&format!("/api/v1/tools/{id}"));
    let delete = client().delete(url).bearer_auth(&world.home.launch);
    // What follows the events ends the request; both are polled here.
    let rest = async {
        while let Some(piece) = stream.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
        text
    };
    let ((status, shown), text) = timeout(PATIENCE, async { tokio::join!(answer(delete), rest) })
        .await
        .unwrap();
    assert_eq!(
        (status, &shown["outcome"]),
        (200, &json!("cancelled")),
        "{shown}"
    );
    assert!(text.contains("\"outcome\":\"cancelled\""), "{text}");
}

/// What changed while the person thought counts: a rule, and where a path leads.
#[tokio::test]
async fn what_was_agreed_to_is_judged_again() {
    let world = World::asking(&["write"]).await;
    let folder = world.path("d");
    std::fs::create_dir(&folder).unwrap();
    let asked = world.ask("write", json!({"path": "d/f", "content": "x"}));
    let (id, parked) = world.waiting().await;
    std::fs::rename(&folder, world.path("e")).unwrap();
    std::os::unix::fs::symlink("e", &folder).unwrap();
    world.approve(&id, &parked).await;
    let (status, body) = ended(asked).await;
    assert_eq!((status, code(&body)), (403, "policy_denied"), "{body}");
    assert!(!world.path("e/f").exists());

    let asked = world.ask("write", json!({"path": "g", "content": "x"}));
    let (id, parked) = world.waiting().await;
    let root = world.temp.path().canonicalize().unwrap();
    let stricter = json!({"toolProxy": {"enabled": true, "roots": [root], "deny": ["write"]}});
    world.office.tool_service.set_config(&lent(stricter));
    world.approve(&id, &parked).await;
    let (status, body) = ended(asked).await;
    assert_eq!((status, code(&body)), (403, "policy_denied"), "{body}");
    assert!(!world.path("g").exists());
}

/// A node's own agent gets no right here that others have not.
#[tokio::test]
async fn a_node_waits_for_its_own_person_too() {
    let world = World::asking(&["exec"]).await;
    let body = json!({"node": "office", "command": "echo out"});
    let asked = tokio::spawn(followed(
        request(&world.office, "exec", &body),
        world.office.port,
        world.office.launch.clone(),
    ));
    let (id, parked) = world.waiting().await;
    assert_eq!(parked.from.as_str(), "office");
    let url = world.office.url("/api/v1/status");
    let (_, status) = answer(client().get(url).bearer_auth(&world.office.launch)).await;
    let warnings = status["warnings"].to_string();
    assert!(
        warnings.contains("a request waits for a person"),
        "{warnings}"
    );
    world.approve(&id, &parked).await;
    let (status, body) = ended(asked).await;
    assert_eq!((status, &body["stdout"]), (200, &json!("out\n")), "{body}");
}

/// A file that waits and is read comes as it would without a wait, to clients that hear of it and to those
/// that do not.
#[tokio::test]
async fn a_read_that_waited_has_its_usual_answer() {
    let world = World::asking(&["read"]).await;
    std::fs::write(world.path("f"), "text").unwrap();
    let body = json!({"node": "office", "path": "f"});
    let asking = request(&world.home, "read", &body).header("accept", "text/event-stream");
    let asked = tokio::spawn(async move { asking.send().await.unwrap().text().await.unwrap() });
    let (id, parked) = world.waiting().await;
    world.approve(&id, &parked).await;
    let text = timeout(PATIENCE, asked).await.unwrap().unwrap();
    assert!(text.contains("event: end"), "{text}");
    assert!(text.contains("\"content\":\"text\""), "{text}");
    world.none_waits().await;
    let asked = world.ask("read", body);
    let (id, parked) = world.waiting().await;
    world.approve(&id, &parked).await;
    let (status, shown) = ended(asked).await;
    assert_eq!(
        (status, &shown["content"]),
        (200, &json!("text")),
        "{shown}"
    );
}

/// `llmGuard`: what a model asks for on its own waits when it changes something, a person's does not.
#[tokio::test]
async fn a_model_alone_waits_for_a_person() {
    let config = json!({"llmGuard": true, "toolProxy": {"enabled": true, "roots": ["ROOT"]}});
    let world = World::new(config, Duration::from_secs(60), |_| {}).await;
    let (status, _) = ended(world.ask("write", json!({"path": "a", "content": "x"}))).await;
    assert_eq!(status, 200, "a person");
    let body = json!({"node": "office", "path": "a"});
    let agent = |verb, body: &Value| {
        request(&world.home, verb, body).header(SESSION_HEADER, "agent:main:main")
    };
    let (status, _) = answer(agent("read", &body)).await;
    assert_eq!(status, 200, "a model that reads");
    let write = json!({"node": "office", "path": "b", "content": "x"});
    let asked = tokio::spawn(followed(
        agent("write", &write),
        world.home.port,
        world.home.launch.clone(),
    ));
    let (id, parked) = world.waiting().await;
    assert_eq!((parked.rule.as_str(), parked.agent), ("llmGuard", true));
    assert!(!world.path("b").exists());
    world.approve(&id, &parked).await;
    assert_eq!(ended(asked).await.0, 200);
    assert!(world.path("b").exists());
}

/// Level 3 wants its challenge, too; the record names who agreed.
#[tokio::test]
async fn level_3_is_typed_and_the_record_names_who_agreed() {
    let config = json!({"toolProxy": {"enabled": true, "roots": ["ROOT"], "rules": [
        {"id": "w", "effect": "allow", "from": ["*"], "minTrust": "pinned", "action": ["tool:write"], "level": 3},
    ]}});
    let state = tempfile::tempdir().unwrap();
    let dir = StateDir::open(state.path()).unwrap();
    let record = Audit::open(&dir, Arc::new(Identity::generate()), &Tasks::new()).unwrap();
    let world = World::new(config, Duration::from_secs(60), |setup| {
        setup.audit = record.clone();
    })
    .await;
    let asked = world.ask("write", json!({"path": "a", "content": "x"}));
    let (id, parked) = world.waiting().await;
    let (status, body) = world.approve(&id, &parked).await;
    assert_eq!((status, code(&body)), (403, "forbidden"), "{body}");
    let url = world.office.url(&format!("/api/v1/approvals/{id}"));
    let (_, shown) = answer(client().get(url).bearer_auth(TOKEN)).await;
    assert_eq!(shown["data"], "eA==", "{shown}");
    let mut said = signed(&parked, &world.operator);
    said["challenge"] = shown["challenge"].clone();
    let (status, body) = world.decide(TOKEN, &id, said).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(ended(asked).await.0, 200);
    timeout(PATIENCE, record.flush()).await.unwrap();
    let files = audit::files(&dir.path(audit::FOLDER)).unwrap();
    let text = std::fs::read_to_string(&files.last().unwrap().1).unwrap();
    let by = format!("w, approved by {}", world.operator.public().id());
    assert!(text.contains(&by), "{text}");
}

/// Waiting requests take no place among the running tools, and a caller has few of them.
#[tokio::test]
async fn a_caller_has_five_places_to_wait_in_and_still_works() {
    let world = World::asking(&["write"]).await;
    let mut asked = Vec::new();
    let mut count = world.desk.count();
    for waiting in 1..=5 {
        asked.push(world.ask("write", json!({"path": "a", "content": "x"})));
        // One by one: until a request is known to wait it counts as one of four that may run at once.
        let parked = count.wait_for(|count| *count == waiting);
        timeout(PATIENCE, parked).await.unwrap().unwrap();
    }
    let (status, body) = ended(world.ask("write", json!({"path": "a", "content": "x"}))).await;
    assert_eq!((status, code(&body)), (503, "overloaded"), "{body}");
    let (status, _) = ended(world.ask("exec", json!({"command": "true"}))).await;
    assert_eq!(status, 200);
    // The node ends: nothing of it runs, and everybody is told.
    world.desk.close();
    for asked in asked {
        let (status, body) = ended(asked).await;
        assert_eq!((status, code(&body)), (503, "shutting_down"), "{body}");
    }
    assert!(!world.path("a").exists());
}
