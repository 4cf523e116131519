//! The control API as clients see it over a real listener: requests repeated under an `Idempotency-Key`,
//! tool requests by id, events, the record of what is asked of others, and how each error looks.
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
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use clawmatrix::{
    audit::{self, Audit, verify::verify},
    config::{Config, Source, ToolConfig},
    crypto::identity::Identity,
    drain::Tasks,
    events::Happening,
    handoff::{
        record::{Ended, Record},
        runner::{AgentRun, AgentRunner, Begun, RunGuard},
    },
    messages::{Courier, Note},
    proxy::tokens::Scope,
    state::StateDir,
    wire::{
        code::{Code, Failure},
        limits::EVENTS_KEPT,
    },
};
use futures_util::{SinkExt as _, StreamExt as _};
use local_node::{Cable, Node, Setup, agent, join};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error as WsError, Message, client::IntoClientRequest as _},
};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent that answers at once, or when the test says so, and counts.
#[derive(Debug, Default)]
struct Counting(Arc<AtomicUsize>);

impl AgentRunner for Counting {
    fn start(&self, run: AgentRun, record: Record, begun: Begun) -> Result<RunGuard, Failure> {
        if run.prompt.contains("refuse") {
            return Err(Failure::not_started(Code::Overloaded, "no time"));
        }
        let count = self.0.fetch_add(1, Relaxed) + 1;
        begun();
        record.delta("so ");
        let slow = run.prompt.contains("slow");
        tokio::spawn(async move {
            if slow {
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            record.end(Ended::answered(&format!("run {count}")));
        });
        Ok(RunGuard::new(|| {}))
    }
}

/// Counts the messages that come.
#[derive(Debug, Default)]
struct Mailbox(Arc<AtomicUsize>);

impl Courier for Mailbox {
    fn deliver(&self, _: Note) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + '_>> {
        self.0.fetch_add(1, Relaxed);
        Box::pin(async { Ok(()) })
    }
}

fn lent(proxy: Value) -> ToolConfig {
    let source = Source {
        openclaw: false,
        folder: Path::new("/"),
        env: &|_| None,
    };
    let whole = json!({"nodeId": "office", "secret": "vT2mQ9xLr4Kc8WzYp6NdBh3sJf7GaE5u", "toolProxy": proxy});
    Config::from_value(whole, &source).unwrap().tools
}

/// Home, and office with tools, an agent and its mailbox.
struct World {
    home: Node,
    office: Node,
    cable: Cable,
    runs: Arc<AtomicUsize>,
    notes: Arc<AtomicUsize>,
    temp: tempfile::TempDir,
}

impl World {
    async fn new(change: impl FnOnce(&mut Setup)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let (runs, notes) = (Arc::default(), Arc::default());
        let mut setup = Setup::new("office");
        setup.tools = lent(json!({"enabled": true, "roots": [root], "deny": ["browser"]}));
        setup.agents = vec![agent("main", Arc::new(Counting(Arc::clone(&runs))))];
        setup.courier = Some(Arc::new(Mailbox(Arc::clone(&notes))));
        let office = Node::start(setup).await;
        let mut setup = Setup::new("home");
        change(&mut setup);
        let home = Node::start(setup).await;
        let cable = join(&home, &office, 1.0);
        Self {
            home,
            office,
            cable,
            runs,
            notes,
            temp,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn lines(&self, name: &str) -> usize {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().count()
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        request(&self.home, Method::POST, path).json(body)
    }

    fn exec(&self, command: &str) -> RequestBuilder {
        let body = json!({"node": "office", "command": command, "workdir": "."});
        self.post("/api/v1/tools/exec", &body)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(request(&self.home, Method::GET, path)).await
    }
}

fn request(node: &Node, method: Method, path: &str) -> RequestBuilder {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client
        .request(method, node.url(path))
        .bearer_auth(&node.launch)
}

async fn sent(request: RequestBuilder) -> Response {
    timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = sent(request).await;
    let status = response.status().as_u16();
    let body = timeout(PATIENCE, response.json()).await.unwrap();
    (status, body.unwrap())
}

async fn text(request: RequestBuilder) -> String {
    let response = sent(request).await;
    assert_eq!(response.status(), 200);
    timeout(PATIENCE, response.text()).await.unwrap().unwrap()
}

fn code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or_default()
}

fn keyed(request: RequestBuilder, key: &str) -> RequestBuilder {
    request.header("idempotency-key", key)
}

async fn until(what: impl Fn() -> bool) {
    let happened = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, happened).await.unwrap();
}

/// T83 for tools: executed once, whatever is repeated and however it is asked for.
#[tokio::test]
async fn a_repeated_command_gets_the_first_result() {
    let world = World::new(|_| {}).await;
    let command = "echo x >> marks; wc -l < marks; echo no >&2; exit 3";
    let exec = || keyed(world.exec(command), "one");
    let (status, first) = answer(exec()).await;
    assert_eq!((status, &first["exitCode"]), (200, &json!(3)), "{first}");
    let (_, again) = answer(exec()).await;
    assert_eq!(again, first);
    let events = text(exec().header("accept", "text/event-stream")).await;
    let out = "event: stdout\ndata: {\"stream\":\"stdout\",\"text\":\"1\\n\"}\n\n";
    let err = "event: stderr\ndata: {\"stream\":\"stderr\",\"text\":\"no\\n\"}\n\n";
    let same = |text: &str| {
        let text = text.replace(
            "{\"text\":\"1\\n\",\"stream\":\"stdout\"}",
            "{\"stream\":\"stdout\",\"text\":\"1\\n\"}",
        );
        text.replace(
            "{\"text\":\"no\\n\",\"stream\":\"stderr\"}",
            "{\"stream\":\"stderr\",\"text\":\"no\\n\"}",
        )
    };
    assert!(
        same(&events).starts_with(&format!("{out}{err}event: end\n")),
        "{events}"
    );
    assert!(events.contains("\"exitCode\":3") && !events.contains("\"stdout\":\""));
    assert_eq!(world.lines("marks"), 1);
    // Another body, or the same at another route, is another request.
    let (status, body) = answer(keyed(world.exec("echo other"), "one")).await;
    assert_eq!((status, code(&body)), (422, "idempotency_mismatch"));
    let read = json!({"node": "office", "command": command, "workdir": "."});
    let (status, _) = answer(keyed(world.post("/api/v1/tools/read", &read), "one")).await;
    assert_eq!(status, 422);
    // Another key, and another client's same key, are other requests.
    assert_eq!(answer(keyed(world.exec(command), "two")).await.0, 200);
    let token = world.home.tokens.create("other", &[Scope::Tools]).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let theirs = client
        .post(world.home.url("/api/v1/tools/exec"))
        .bearer_auth(token.reveal())
        .header("idempotency-key", "one")
        .json(&read);
    assert_eq!(answer(theirs).await.0, 200);
    assert_eq!(world.lines("marks"), 3);
    let (status, body) = answer(keyed(world.exec(command), &"k".repeat(257))).await;
    assert_eq!((status, code(&body)), (400, "invalid_request"));
}

#[tokio::test]
async fn a_repeat_of_a_running_command_waits_for_it() {
    let world = World::new(|_| {}).await;
    let command = "echo x >> marks; sleep 0.4; echo done";
    let (first, second) = tokio::join!(
        answer(keyed(world.exec(command), "k")),
        answer(keyed(world.exec(command), "k")),
    );
    assert_eq!(first.1["stdout"], "done\n");
    assert_eq!(first, second);
    assert_eq!(world.lines("marks"), 1);
}

/// What never began may be asked for again; what was cut off may not.
#[tokio::test]
async fn only_what_never_began_is_done_again() {
    let world = World::new(|_| {}).await;
    let tools = |enabled: bool| {
        let root = world.temp.path().canonicalize().unwrap();
        let config = lent(json!({"enabled": enabled, "roots": [root]}));
        world.office.tool_service.set_config(&config);
    };
    tools(false);
    let command = "echo x >> marks; sleep 30";
    let (status, body) = answer(keyed(world.exec(command), "k")).await;
    assert_eq!((status, code(&body)), (403, "policy_denied"));
    tools(true);
    let client = tokio::spawn(keyed(world.exec(command), "k").send());
    until(|| world.lines("marks") == 1).await;
    client.abort();
    let again = || keyed(world.exec(command), "k");
    let (status, body) = answer(again()).await;
    assert_eq!((status, code(&body)), (499, "cancelled"), "{body}");
    assert_eq!(body["outcome"], "cancelled");
    assert_eq!(answer(again()).await, (status, body));
    assert_eq!(world.lines("marks"), 1);
}

/// T83 for handoffs and messages.
#[tokio::test]
async fn a_repeated_handoff_or_message_is_one() {
    let world = World::new(|_| {}).await;
    let task = json!({"target": "office/main", "task": "slow work"});
    let handoff = || keyed(world.post("/api/v1/handoff", &task), "k");
    let (first, second) = tokio::join!(answer(handoff()), answer(handoff()));
    assert_eq!((first.0, &first.1["result"]), (200, &json!("run 1")));
    assert_eq!(first, second);
    let events = text(handoff().header("accept", "text/event-stream")).await;
    assert!(events.starts_with("event: accepted\n"), "{events}");
    assert!(events.contains("\"result\":\"run 1\""), "{events}");
    let other = json!({"target": "office/main", "task": "other work"});
    let (status, body) = answer(keyed(world.post("/api/v1/handoff", &other), "k")).await;
    assert_eq!((status, code(&body)), (422, "idempotency_mismatch"));
    assert_eq!(world.runs.load(Relaxed), 1);
    // Refused before it began: the key is free again.
    let refused = json!({"target": "office/main", "task": "refuse"});
    for _ in 0..2 {
        let (status, body) = answer(keyed(world.post("/api/v1/handoff", &refused), "r")).await;
        assert_eq!((status, code(&body)), (503, "overloaded"), "{body}");
    }

    let message = json!({"target": "office/main", "message": "hello"});
    let send = || keyed(world.post("/api/v1/send", &message), "k");
    let first = answer(send()).await;
    assert_eq!(first, (200, json!({"delivered": true, "nodeId": "office"})));
    assert_eq!(answer(send()).await, first);
    until(|| world.notes.load(Relaxed) == 1).await;
    assert_eq!(answer(world.post("/api/v1/send", &message)).await.0, 200);
    until(|| world.notes.load(Relaxed) == 2).await;
}

#[tokio::test]
async fn a_tool_request_is_known_by_its_id() {
    let world = World::new(|_| {}).await;
    let running = world.exec("echo x >> marks; while [ ! -e go ]; do sleep 0.02; done; echo y");
    let running = running.header("accept", "text/event-stream");
    let response: JoinHandle<Response> = tokio::spawn(sent(running));
    until(|| world.lines("marks") == 1).await;
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    let id = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let path = format!("/api/v1/tools/{id}");
    let (status, body) = world.get(&path).await;
    assert_eq!((status, &body["state"]), (200, &json!("running")), "{body}");
    assert_eq!((&body["tool"], &body["id"]), (&json!("exec"), &json!(id)));
    std::fs::write(world.path("go"), "").unwrap();
    timeout(PATIENCE, response.text()).await.unwrap().unwrap();
    let (_, body) = world.get(&path).await;
    assert_eq!(
        (
            &body["state"],
            &body["outcome"],
            &body["stdout"],
            &body["nodeId"]
        ),
        (
            &json!("done"),
            &json!("completed"),
            &json!("y\n"),
            &json!("office")
        )
    );
    let denied = json!({"node": "office", "tool": "browser"});
    let (status, body) = answer(world.post("/api/v1/tools/invoke", &denied)).await;
    assert_eq!(status, 403);
    let id = body["id"].as_str().unwrap();
    let (status, body) = world.get(&format!("/api/v1/tools/{id}")).await;
    assert_eq!((status, code(&body)), (200, "policy_denied"));
    let unknown = "0".repeat(32);
    for id in [unknown.as_str(), "nonsense"] {
        assert_eq!(world.get(&format!("/api/v1/tools/{id}")).await.0, 404);
    }
    let models = request(&world.home, Method::GET, &path);
    let (client, built) = models.build_split();
    let mut built = built.unwrap();
    let value = format!("Bearer {}", world.home.openclaw).parse().unwrap();
    built.headers_mut().insert("authorization", value);
    assert_eq!(client.execute(built).await.unwrap().status(), 403);
}

/// What has come of a stream of events until all of `wanted` have.
async fn events_until(response: &mut Response, wanted: &[&str]) -> Vec<Value> {
    let mut text = String::new();
    loop {
        let piece = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&piece.unwrap()));
        let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
        let lines = whole.lines().filter_map(|line| line.strip_prefix("data: "));
        let events: Vec<Value> = lines
            .map(|data| serde_json::from_str(data).unwrap())
            .collect();
        if wanted
            .iter()
            .all(|name| events.iter().any(|event| event["type"] == **name))
        {
            return events;
        }
    }
}

/// Opens `/ws/events` at home with these headers; the status when it is no WebSocket.
async fn socket(
    world: &World,
    headers: &[(&'static str, String)],
) -> Result<WebSocketStream<TcpStream>, u16> {
    let port = world.home.port;
    let url = format!("ws://127.0.0.1:{port}/ws/events");
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    match timeout(PATIENCE, client_async(request, stream))
        .await
        .unwrap()
    {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => Err(response.status().as_u16()),
        Err(other) => panic!("{other}"),
    }
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Message {
    timeout(PATIENCE, socket.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

/// Code and reason with which it is closed.
async fn closed(socket: &mut WebSocketStream<TcpStream>) -> (u16, String) {
    loop {
        match next(socket).await {
            Message::Text(_) => {}
            Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

/// The socket is guarded like every route, and tells what the stream tells.
#[tokio::test]
async fn events_come_over_a_websocket_to_who_may_read() {
    let world = World::new(|_| {}).await;
    let launch = bearer(&world.home.launch);
    for (headers, expected) in [
        (vec![], 401),
        (vec![bearer("cmx_of-nobody")], 401),
        (vec![bearer(&world.home.openclaw)], 403),
        (
            vec![launch.clone(), ("origin", "http://127.0.0.1".into())],
            403,
        ),
        (vec![launch.clone(), ("host", "evil.example".into())], 421),
    ] {
        assert_eq!(
            socket(&world, &headers).await.err(),
            Some(expected),
            "{headers:?}"
        );
    }
    let plain = sent(request(&world.home, Method::GET, "/ws/events")).await;
    assert_eq!(plain.status(), 400);
    let post = request(&world.home, Method::POST, "/ws/events").json(&json!({}));
    assert_eq!(sent(post).await.status(), 405);
    let mut here = socket(&world, std::slice::from_ref(&launch)).await.unwrap();
    assert_eq!(answer(world.exec("true")).await.0, 200);
    let event: Value = serde_json::from_str(next(&mut here).await.to_text().unwrap()).unwrap();
    assert_eq!(
        (&event["type"], &event["to"]),
        (&json!("request_started"), &json!("office"))
    );
    // Who talks is sent away, and makes room.
    let mut talks = socket(&world, std::slice::from_ref(&launch)).await.unwrap();
    talks.send(Message::text("hello")).await.unwrap();
    let talked = closed(&mut talks).await;
    assert_eq!(talked, (1003, "this socket only tells".to_owned()));
    world.home.events.close();
    let stopped = closed(&mut here).await;
    assert_eq!(stopped, (1001, "the node stops".to_owned()));
}

#[tokio::test]
async fn who_reads_a_websocket_too_slowly_is_cut_off_with_the_reason() {
    let world = World::new(|_| {}).await;
    let mut slow = socket(&world, &[bearer(&world.home.launch)]).await.unwrap();
    let watched = async {
        while !world.home.events.watched() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, watched).await.unwrap();
    for n in 0..=EVENTS_KEPT {
        world
            .home
            .events
            .tell(Happening::Verdict, || json!({"n": n}));
    }
    let (code, reason) = closed(&mut slow).await;
    assert!(
        code == 1008 && reason.contains("too slow"),
        "{code} {reason}"
    );
    let gone = async {
        while world.home.events.watched() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn events_tell_both_sides_what_happens_and_by_which_rule() {
    let world = World::new(|_| {}).await;
    let mut here = sent(request(&world.home, Method::GET, "/api/v1/events")).await;
    let mut there = sent(request(&world.office, Method::GET, "/api/v1/events")).await;
    assert_eq!(
        here.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    assert_eq!(answer(world.exec("true # hidden words")).await.0, 200);
    let ours = events_until(&mut here, &["request_started", "request_ended"]).await;
    for event in &ours {
        assert_eq!(
            (
                &event["direction"],
                &event["from"],
                &event["to"],
                &event["action"]
            ),
            (
                &json!("out"),
                &json!("home"),
                &json!("office"),
                &json!("tool:exec")
            ),
            "{event}"
        );
        assert!(event["timeMs"].is_u64() && event["seq"].is_u64());
    }
    let theirs = events_until(&mut there, &["verdict", "request_started", "request_ended"]).await;
    assert_eq!(
        (
            &theirs[0]["type"],
            &theirs[0]["decision"],
            &theirs[0]["rule"]
        ),
        (
            &json!("verdict"),
            &json!("allow"),
            &json!("toolProxy.allow")
        )
    );
    assert_eq!(theirs[2]["result"], "completed");
    assert_eq!(ours[0]["requestId"], theirs[0]["requestId"]);
    assert!(!format!("{ours:?}{theirs:?}").contains("hidden words"));
    let denied = json!({"node": "office", "tool": "browser"});
    assert_eq!(
        answer(world.post("/api/v1/tools/invoke", &denied)).await.0,
        403
    );
    let theirs = events_until(&mut there, &["verdict"]).await;
    assert_eq!(
        (&theirs[0]["decision"], &theirs[0]["rule"]),
        (&json!("deny"), &json!("toolProxy.deny[0]"))
    );
    // A node that stops ends its streams, whole.
    world.office.events.close();
    while timeout(PATIENCE, there.chunk())
        .await
        .unwrap()
        .unwrap()
        .is_some()
    {}
}

/// T111, T113: not for web pages, and not for every token.
#[tokio::test]
async fn events_are_for_whoever_may_read() {
    let world = World::new(|_| {}).await;
    for path in ["/api/v1/events", "/ws/events"] {
        let page = request(&world.home, Method::GET, path)
            .header("origin", "http://evil.example")
            .header("upgrade", "websocket")
            .header("connection", "upgrade");
        assert_eq!(sent(page).await.status(), 403, "{path}");
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let models = client.get(world.home.url("/api/v1/events"));
    let models = models.bearer_auth(&world.home.openclaw);
    assert_eq!(sent(models).await.status(), 403);
    let nobody = client.get(world.home.url("/api/v1/events"));
    assert_eq!(sent(nobody).await.status(), 401);
}

/// Protocol 8.6, the asking side: what was asked of whom, and how it ended.
#[tokio::test]
async fn what_is_asked_of_others_is_recorded() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let identity = Arc::new(Identity::generate());
    let audit = Audit::open(&state, identity.clone(), &Tasks::new()).unwrap();
    let world = World::new(|setup| setup.audit = audit.clone()).await;
    answer(world.exec("true # hidden words")).await;
    let denied = json!({"node": "office", "tool": "browser"});
    answer(world.post("/api/v1/tools/invoke", &denied)).await;
    let task = json!({"target": "office/main", "task": "hidden words"});
    answer(world.post("/api/v1/handoff", &task)).await;
    let message = json!({"target": "office/main", "message": "hidden words"});
    answer(world.post("/api/v1/send", &message)).await;
    let model = json!({"model": "office/none", "messages": []});
    answer(world.post("/v1/chat/completions", &model)).await;
    // Its own tools are its own affair.
    let own = json!({"node": "home", "command": "true"});
    answer(world.post("/api/v1/tools/exec", &own)).await;
    let client = tokio::spawn(world.exec("echo x >> marks; sleep 30").send());
    until(|| world.lines("marks") == 1).await;
    client.abort();
    let folder = state.path(audit::FOLDER);
    let lines = || -> Vec<Value> {
        let files = audit::files(&folder).unwrap().into_iter();
        let text: String = files
            .map(|(_, path)| std::fs::read_to_string(path).unwrap())
            .collect();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let has = |action: &str, result: &str| {
        lines().iter().any(|line| {
            line["dir"] == "out"
                && (&line["from"], &line["to"]) == (&json!("home"), &json!("office"))
                && line["action"] == action
                && line["result"] == result
                && line["decision"] == "allow"
                && line["rule"] == "outbound.minTrust"
        })
    };
    let cancelled = async {
        while !has("tool:exec", "cancelled") {
            audit.flush().await;
        }
    };
    timeout(PATIENCE, cancelled).await.unwrap();
    for (action, result) in [
        ("tool:exec", "begun"),
        ("tool:exec", "completed"),
        ("tool:browser", "policy_denied"),
        ("agent:main", "begun"),
        ("agent:main", "completed"),
        ("send:main", "delivered"),
        ("model:none", "model_not_found"),
    ] {
        assert!(has(action, result), "{action} {result}: {:?}", lines());
    }
    let text = format!("{:?}", lines());
    assert!(!text.contains("hidden words"));
    assert!(verify(&folder, &[identity.public()]).is_ok());
}

/// T87 over a listener: status, shape and `Retry-After` of what a client can provoke.
#[tokio::test]
async fn every_error_has_its_status_and_shape() {
    let world = World::new(|_| {}).await;
    let node = &world.home;
    let exec = |body: Value| world.post("/api/v1/tools/exec", &body);
    let raw = |path: &str, body: &'static str| {
        let request = request(node, Method::POST, path).body(body);
        request.header("content-type", "application/json")
    };
    let bare = reqwest::Client::builder().no_proxy().build().unwrap();
    let used = keyed(world.exec("true"), "k");
    assert_eq!(answer(used).await.0, 200);
    let long = json!({"target": "office/main", "message": "x".repeat(50_000)});
    let slow = json!({"node": "office", "command": "sleep 30", "timeout": 0.2});
    let cases = [
        ("invalid_request", 400, raw("/api/v1/handoff", "{")),
        ("invalid_request", 400, raw("/v1/chat/completions", "{")),
        ("invalid_api_key", 401, bare.get(node.url("/v1/models"))),
        (
            "forbidden",
            403,
            bare.get(node.url("/api/v1/status"))
                .bearer_auth(&node.openclaw),
        ),
        (
            "forbidden",
            403,
            request(node, Method::GET, "/api/v1/status").header("origin", "null"),
        ),
        (
            "policy_denied",
            403,
            world.post(
                "/api/v1/tools/invoke",
                &json!({"node": "office", "tool": "browser"}),
            ),
        ),
        (
            "model_not_found",
            404,
            raw("/v1/chat/completions", "{\"model\":\"nothing\"}"),
        ),
        (
            "agent_not_found",
            404,
            world.post(
                "/api/v1/handoff",
                &json!({"target": "office/nobody", "task": "x"}),
            ),
        ),
        (
            "node_not_found",
            404,
            exec(json!({"node": "nowhere", "command": "true"})),
        ),
        ("not_found", 404, request(node, Method::GET, "/nothing")),
        (
            "method_not_allowed",
            405,
            request(node, Method::PUT, "/api/v1/handoff").json(&json!({})),
        ),
        ("payload_too_large", 413, world.post("/api/v1/send", &long)),
        (
            "unsupported_media_type",
            415,
            request(node, Method::POST, "/api/v1/send").body("hi"),
        ),
        (
            "misdirected_request",
            421,
            request(node, Method::GET, "/api/v1/status").header("host", "evil.example"),
        ),
        ("idempotency_mismatch", 422, keyed(world.exec("false"), "k")),
        (
            "overloaded",
            503,
            world.post(
                "/api/v1/handoff",
                &json!({"target": "office/main", "task": "refuse"}),
            ),
        ),
        ("timeout", 504, exec(slow)),
    ];
    for (code, status, request) in cases {
        check(code, status, request).await;
    }
    world.cable.pull();
    world.home.lose(&world.office.name);
    let lost = exec(json!({"node": "office", "command": "true"}));
    let response = sent(lost).await;
    assert_eq!(response.status(), 503);
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=30).contains(&wait));
}

async fn check(code: &str, status: u16, request: RequestBuilder) {
    let response = sent(request).await;
    assert_eq!(response.status().as_u16(), status, "{code}");
    let listed = matches!(status, 429 | 503);
    assert_eq!(
        response.headers().contains_key("retry-after"),
        listed,
        "{code}"
    );
    assert_eq!(
        response.headers()["content-type"],
        "application/json",
        "{code}"
    );
    let id = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let body: Value = timeout(PATIENCE, response.json()).await.unwrap().unwrap();
    let error = body["error"].as_object().unwrap();
    let mut names: Vec<&str> = error.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["code", "message", "param", "request_id", "type"],
        "{code}"
    );
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!(code), &Value::Null)
    );
    assert_eq!(error["request_id"], json!(id), "{code}");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    assert!(error["type"].is_string());
}
