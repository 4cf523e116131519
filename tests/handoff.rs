//! Handoffs over the local API of nodes in one process, with agents that do what a test says.
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
    sync::{Arc, Mutex},
    time::Duration,
};

use clawmatrix::{
    audit::{self, Audit, verify::verify},
    crypto::identity::Identity,
    drain::Tasks,
    exchange::{Chain, SESSION_HEADER},
    handoff::{
        record::{Ended, Phase, Record, ToolUse},
        runner::{AgentRun, AgentRunner, Begun, RunGuard},
    },
    mesh::view::Reach,
    state::StateDir,
    trust::Level,
    wire::code::{Code, Failure},
};
use local_node::{Cable, Node, Setup, agent, join};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// An agent whose runs the test takes in hand one by one.
#[derive(Debug)]
struct Scripted {
    runs: mpsc::Sender<Taken>,
    /// Refuses every run.
    refuses: bool,
}

/// One run in the hands of the test.
struct Taken {
    run: AgentRun,
    record: Record,
    begun: Option<Begun>,
    aborted: watch::Receiver<bool>,
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Taken")
    }
}

impl AgentRunner for Scripted {
    fn start(&self, run: AgentRun, record: Record, begun: Begun) -> Result<RunGuard, Failure> {
        if self.refuses {
            return Err(Failure::not_started(Code::Overloaded, "no time"));
        }
        let (abort, aborted) = watch::channel(false);
        let taken = Taken {
            run,
            record,
            begun: Some(begun),
            aborted,
        };
        self.runs.try_send(taken).unwrap();
        Ok(RunGuard::new(move || {
            abort.send_replace(true);
        }))
    }
}

impl Taken {
    fn begin(&mut self) {
        self.begun.take().unwrap()();
    }

    fn finish(&self, text: &str) {
        self.record.end(Ended::answered(text));
    }

    async fn wait_aborted(&mut self) {
        let aborted = self.aborted.wait_for(|aborted| *aborted);
        timeout(PATIENCE, aborted).await.unwrap().unwrap();
    }
}

struct Agent(mpsc::Receiver<Taken>);

impl Agent {
    /// An agent and the node that offers it.
    async fn node(name: &'static str, change: impl FnOnce(&mut Setup)) -> (Node, Self) {
        let (runs, taken) = mpsc::channel(64);
        let scripted = Scripted {
            runs,
            refuses: false,
        };
        let mut setup = Setup::new(name);
        setup.agents.push(agent("main", Arc::new(scripted)));
        change(&mut setup);
        (Node::start(setup).await, Self(taken))
    }

    async fn next(&mut self) -> Taken {
        timeout(PATIENCE, self.0.recv()).await.unwrap().unwrap()
    }

    fn idle(&mut self) -> bool {
        self.0.try_recv().is_err()
    }
}

/// Home, and office with an agent.
struct World {
    home: Node,
    office: Node,
    agent: Agent,
    cable: Cable,
}

impl World {
    async fn new(change: impl FnOnce(&mut Setup)) -> Self {
        let (office, agent) = Agent::node("office", change).await;
        let home = Node::start(Setup::new("home")).await;
        let cable = join(&home, &office, 1.0);
        Self {
            home,
            office,
            agent,
            cable,
        }
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn request(node: &Node, body: &Value) -> reqwest::RequestBuilder {
    client()
        .post(node.url("/api/v1/handoff"))
        .bearer_auth(&node.launch)
        .json(body)
}

async fn send(request: reqwest::RequestBuilder) -> reqwest::Response {
    timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

async fn json_of(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = timeout(PATIENCE, response.json()).await.unwrap().unwrap();
    (status, body)
}

/// A handoff as JSON, in a task of its own.
fn handoff(node: &Node, body: Value) -> tokio::task::JoinHandle<(u16, Value)> {
    let request = request(node, &body);
    tokio::spawn(async move { json_of(request.send().await.unwrap()).await })
}

async fn joined(task: tokio::task::JoinHandle<(u16, Value)>) -> (u16, Value) {
    timeout(PATIENCE * 3, task).await.unwrap().unwrap()
}

/// The events that have come up to the one called `last`.
async fn events_until(response: &mut reqwest::Response, last: &str) -> Vec<(String, Value)> {
    let mut text = String::new();
    loop {
        let piece = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
        let piece = piece.unwrap_or_else(|| panic!("no `{last}` in {text}"));
        text.push_str(&String::from_utf8_lossy(&piece));
        let events = parse(&text);
        if events.iter().any(|(name, _)| name == last) {
            return events;
        }
    }
}

fn parse(text: &str) -> Vec<(String, Value)> {
    let whole = text.split_inclusive("\n\n").filter(|e| e.ends_with("\n\n"));
    whole
        .map(|event| {
            let field = |name: &str| {
                let line = event.lines().find(|line| line.starts_with(name));
                line.map(|line| line[name.len()..].to_owned()).unwrap()
            };
            let data = serde_json::from_str(&field("data: ")).unwrap();
            (field("event: "), data)
        })
        .collect()
}

#[tokio::test]
async fn text_and_tools_come_as_they_happen() {
    let mut world = World::new(|_| {}).await;
    let body = json!({"target": "office/main", "task": "look", "context": "it rains"});
    let request = request(&world.home, &body).header("accept", "text/event-stream");
    let task = tokio::spawn(async move { send(request).await });
    let mut run = world.agent.next().await;
    assert!(
        run.run
            .session_key
            .starts_with("agent:main:clawmatrix:home-")
    );
    let prompt = &run.run.prompt;
    let (task_at, context_at) = (
        prompt.find("look").unwrap(),
        prompt.find("it rains").unwrap(),
    );
    assert!(prompt[..task_at].contains("TASK from node home"));
    assert!(prompt[task_at..context_at].contains("CONTEXT from node home"));
    run.begin();
    run.record.delta("one ");
    let mut response = task.await.unwrap();
    let events = events_until(&mut response, "delta").await;
    assert_eq!(events[0].0, "accepted");
    assert_eq!(events[0].1["nodeId"], "office");
    assert_eq!(events[1].1["text"], "one ");
    run.record.tool(ToolUse {
        name: "read".into(),
        phase: Phase::Start,
        failed: false,
    });
    let events = events_until(&mut response, "tool").await;
    assert_eq!(
        events[0].1,
        json!({"name": "read", "phase": "start", "failed": false})
    );
    run.record.delta("two");
    run.finish("one two");
    let events = events_until(&mut response, "end").await;
    let (_, end) = events.last().unwrap();
    assert_eq!(end["outcome"], "completed");
    assert_eq!(
        (&end["result"], &end["agent"]),
        (&json!("one two"), &json!("main"))
    );
    assert!(
        timeout(PATIENCE, response.chunk())
            .await
            .unwrap()
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_session_continues_for_its_caller_alone() {
    let mut world = World::new(|_| {}).await;
    let other = Node::start(Setup::new("other")).await;
    let _cable = join(&other, &world.office, 1.0);
    let first = handoff(&world.home, json!({"target": "office", "task": "a"}));
    let mut run = world.agent.next().await;
    run.begin();
    run.finish("INPUT_REQUIRED: which one?");
    let (status, body) = joined(first).await;
    assert_eq!((status, &body["outcome"]), (200, &json!("input_required")));
    assert_eq!(
        (&body["success"], &body["result"]),
        (&json!(true), &json!("which one?"))
    );
    let session = body["session"].as_str().unwrap().to_owned();
    let again = json!({"target": "office", "task": "this one", "session": session});
    let second = handoff(&world.home, again.clone());
    let mut next = world.agent.next().await;
    assert_eq!(next.run.session_key, run.run.session_key);
    assert_eq!(next.run.session_id, run.run.session_id);
    next.begin();
    // While it runs, the same session takes no second task.
    let (status, busy) = joined(handoff(&world.home, again.clone())).await;
    assert_eq!((status, &busy["outcome"]), (503, &json!("not_dispatched")));
    next.finish("done");
    assert_eq!(joined(second).await.1["result"], "done");
    let stranger = handoff(&other, again);
    let mut theirs = world.agent.next().await;
    assert_ne!(theirs.run.session_key, run.run.session_key);
    theirs.begin();
    theirs.finish("new");
    joined(stranger).await;
    let odd = json!({"target": "office", "task": "a", "session": "a:b"});
    let (status, body) = joined(handoff(&world.home, odd)).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (400, &json!("invalid_request"))
    );
}

/// T85 for handoffs: abort at the origin ends the run within a second.
#[tokio::test]
async fn a_client_that_goes_away_cancels_unless_detached() {
    let mut world = World::new(|_| {}).await;
    for events in [true, false] {
        let mut request = request(&world.home, &json!({"target": "main", "task": "a"}));
        if events {
            request = request.header("accept", "text/event-stream");
        }
        let client = tokio::spawn(async move {
            let mut response = request.send().await.unwrap();
            while response.chunk().await.unwrap().is_some() {}
        });
        let mut run = world.agent.next().await;
        run.begin();
        run.record.delta("x");
        client.abort();
        let since = Instant::now();
        run.wait_aborted().await;
        assert!(
            since.elapsed() < Duration::from_secs(1),
            "{:?}",
            since.elapsed()
        );
    }
    let body = json!({"target": "main", "task": "a", "detach": true});
    let detached = handoff(&world.home, body);
    let mut run = world.agent.next().await;
    run.begin();
    let (status, body) = joined(detached).await;
    assert_eq!((status, &body["state"]), (202, &json!("running")));
    run.record.delta("so far");
    run.record.silent(Duration::ZERO).await;
    let path = format!("/api/v1/handoff/{}", body["handoffId"].as_str().unwrap());
    let look = || {
        client()
            .get(world.home.url(&path))
            .bearer_auth(&world.home.launch)
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, seen) = json_of(send(look()).await).await;
        if seen["text"] == "so far" {
            break;
        }
        assert!(Instant::now() < deadline, "{seen}");
        tokio::task::yield_now().await;
    }
    assert!(!*run.aborted.borrow());
    run.finish("all");
    loop {
        let (status, seen) = json_of(send(look()).await).await;
        if seen["state"] == "done" {
            assert_eq!((status, &seen["result"]), (200, &json!("all")));
            break;
        }
        assert!(Instant::now() < deadline, "{seen}");
    }
}

#[tokio::test]
async fn a_cancelled_handoff_says_so_everywhere() {
    let mut world = World::new(|_| {}).await;
    let request = request(&world.home, &json!({"target": "main", "task": "a"}))
        .header("accept", "text/event-stream");
    let task = tokio::spawn(async move { send(request).await });
    let mut run = world.agent.next().await;
    run.begin();
    let mut response = task.await.unwrap();
    let events = events_until(&mut response, "accepted").await;
    let id = events[0].1["handoffId"].as_str().unwrap().to_owned();
    let delete = client()
        .delete(world.home.url(&format!("/api/v1/handoff/{id}")))
        .bearer_auth(&world.home.launch);
    let (status, body) = json_of(send(delete).await).await;
    assert_eq!((status, &body["outcome"]), (200, &json!("cancelled")));
    run.wait_aborted().await;
    let end = events_until(&mut response, "end").await;
    assert_eq!(end.last().unwrap().1["error"]["code"], "cancelled");
    let missing = client()
        .get(world.home.url("/api/v1/handoff/nope"))
        .bearer_auth(&world.home.launch);
    assert_eq!(send(missing).await.status(), 404);
}

#[tokio::test]
async fn silence_ends_a_run_and_every_piece_restarts_it() {
    let mut world = World::new(|setup| setup.idle = Duration::from_millis(400)).await;
    let task = handoff(&world.home, json!({"target": "main", "task": "a"}));
    let mut run = world.agent.next().await;
    let began = Instant::now();
    run.begin();
    for _ in 0..4 {
        run.record.silent(Duration::from_millis(200)).await;
        run.record.delta("x");
    }
    let (status, body) = joined(task).await;
    assert!(began.elapsed() >= Duration::from_millis(1200));
    assert_eq!((status, &body["outcome"]), (504, &json!("failed")));
    assert_eq!(body["error"]["code"], "timeout");
    assert_eq!(body["result"], "xxxx", "what it had said is not lost");
    run.wait_aborted().await;
}

/// T80, T82 for handoffs: the next node is asked only while nothing can have begun.
#[tokio::test]
async fn a_second_node_is_asked_only_when_the_first_never_began() {
    let (first, mut at_first) = Agent::node("first", |_| {}).await;
    let (second, mut at_second) = Agent::node("second", |_| {}).await;
    let (runs, _none) = mpsc::channel(64);
    let mut setup = Setup::new("busy");
    let refuses = true;
    setup
        .agents
        .push(agent("main", Arc::new(Scripted { runs, refuses })));
    let busy = Node::start(setup).await;
    let home = Node::start(Setup::new("home")).await;
    let _cables = [
        join(&home, &busy, 1.0),
        join(&home, &first, 2.0),
        join(&home, &second, 3.0),
    ];
    // Only heard of: the session that the handoff opens pins it (protocol 7.4).
    home.see_at(&second, Reach::Direct, 3.0, Level::Seen);
    let task = handoff(&home, json!({"target": "main", "task": "a"}));
    let mut run = at_first.next().await;
    run.begin();
    run.record.end(Ended::failed(Failure::started(
        Code::UpstreamError,
        "broke",
    )));
    let (status, body) = joined(task).await;
    assert_eq!((status, &body["outcome"]), (502, &json!("failed")));
    assert_eq!(body["nodeId"], "first");
    assert!(at_second.idle(), "what has begun is not repeated elsewhere");
    let task = handoff(&home, json!({"target": "main", "task": "a"}));
    let refused = at_first.next().await;
    let never = Failure::not_started(Code::UpstreamError, "no model");
    refused.record.end(Ended::failed(never));
    let mut run = at_second.next().await;
    run.begin();
    run.finish("second did it");
    assert_eq!(joined(task).await.1["nodeId"], "second");
}

/// T86: an agent that hands its task back to where it came from.
#[tokio::test]
async fn a_circle_of_agents_is_refused() {
    let (home, mut at_home) = Agent::node("home", |_| {}).await;
    let (office, mut at_office) = Agent::node("office", |_| {}).await;
    let _cable = join(&home, &office, 1.0);
    let task = handoff(&home, json!({"target": "office/main", "task": "a"}));
    let mut run = at_office.next().await;
    run.begin();
    for target in ["home/main", "office/main"] {
        let back = request(&office, &json!({"target": target, "task": "b"}))
            .header(SESSION_HEADER, &run.run.session_key);
        let (status, body) = json_of(send(back).await).await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (508, &json!("loop_detected")),
            "{body}"
        );
    }
    assert!(at_home.idle() && at_office.idle());
    run.finish("gave up");
    joined(task).await;
    // The session belongs to nobody any more: its agent may ask on its own account.
    let own = request(&office, &json!({"target": "home/main", "task": "c"}))
        .header(SESSION_HEADER, &run.run.session_key);
    let own = tokio::spawn(async move { json_of(own.send().await.unwrap()).await });
    let mut theirs = at_home.next().await;
    theirs.begin();
    theirs.finish("ok");
    assert_eq!(joined(own).await.1["result"], "ok");
}

/// T84: two seconds for a chain of three nodes are two seconds for each of them, whatever a nested
/// request would like.
#[tokio::test]
async fn the_time_of_a_chain_ends_every_run_in_it() {
    let (office, mut at_office) = Agent::node("office", |_| {}).await;
    let (lab, mut at_lab) = Agent::node("lab", |_| {}).await;
    let (attic, mut at_attic) = Agent::node("attic", |_| {}).await;
    let home = Node::start(Setup::new("home")).await;
    let _cables = [
        join(&home, &office, 1.0),
        join(&office, &lab, 1.0),
        join(&lab, &attic, 1.0),
    ];
    let within = |node: &Node, target: &str, session: &str| {
        let nested = json!({"target": target, "task": "more", "timeout": 600});
        let nested = request(node, &nested).header(SESSION_HEADER, session);
        tokio::spawn(async move { json_of(nested.send().await.unwrap()).await })
    };
    let since = Instant::now();
    let two_seconds = Chain {
        hops: vec![],
        deadline: Some(since + Duration::from_secs(2)),
    };
    let _entered = home.lineage.enter("root", two_seconds);
    let root = within(&home, "office/main", "root");
    let mut first = at_office.next().await;
    first.begin();
    let second = within(&office, "lab/main", &first.run.session_key);
    let mut middle = at_lab.next().await;
    middle.begin();
    let third = within(&lab, "attic/main", &middle.run.session_key);
    let mut last = at_attic.next().await;
    last.begin();
    for run in [&mut last, &mut middle, &mut first] {
        run.wait_aborted().await;
    }
    let took = since.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    for asked in [third, second, root] {
        let (status, body) = joined(asked).await;
        assert_eq!(status, 504, "{body}");
    }
    assert!(at_office.idle() && at_lab.idle() && at_attic.idle());
}

#[tokio::test]
async fn a_lost_link_leaves_the_run_and_finds_it_again() {
    let mut world = World::new(|_| {}).await;
    let request = request(&world.home, &json!({"target": "main", "task": "a"}))
        .header("accept", "text/event-stream");
    let task = tokio::spawn(async move { send(request).await });
    let mut run = world.agent.next().await;
    run.begin();
    run.record.delta("before ");
    let mut response = task.await.unwrap();
    events_until(&mut response, "delta").await;
    world.cable.pull();
    run.record.delta("meanwhile ");
    let cable = join(&world.home, &world.office, 1.0);
    let events = events_until(&mut response, "delta").await;
    assert_eq!(
        events[0].1["text"], "meanwhile ",
        "neither lost nor repeated"
    );
    cable.pull();
    run.record.delta("after");
    run.finish("before meanwhile after");
    let _cable = join(&world.home, &world.office, 1.0);
    let events = events_until(&mut response, "end").await;
    assert_eq!(events[0].1["text"], "after");
    let (_, end) = events.last().unwrap();
    assert_eq!(end["outcome"], "completed");
    assert_eq!(end["result"], "before meanwhile after");
    assert!(world.agent.idle(), "it ran once");
}

/// T39 for handoffs: a destination that was restarted has forgotten the run; nobody repeats it.
/// 7.1: a node that knows nothing of a handoff never had it, unless it may have forgotten it since.
#[tokio::test]
async fn a_node_that_knows_nothing_is_believed_for_nine_minutes() {
    for (suspended, outcome) in [(539, "not_dispatched"), (541, "outcome_unknown")] {
        let mut world = World::new(|_| {}).await;
        world.cable.lose();
        let task = handoff(&world.home, json!({"target": "main", "task": "a"}));
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.cable.suspend(suspended);
        world.cable.pull();
        let _cable = join(&world.home, &world.office, 1.0);
        let (_, body) = joined(task).await;
        assert_eq!(body["outcome"], outcome, "{suspended} s: {body}");
        assert!(world.agent.idle());
    }
}

#[tokio::test]
async fn a_restarted_node_leaves_the_outcome_unknown() {
    let mut world = World::new(|_| {}).await;
    let task = handoff(&world.home, json!({"target": "office", "task": "a"}));
    let mut run = world.agent.next().await;
    run.begin();
    run.record.delta("half");
    let deadline = Instant::now() + PATIENCE;
    while world.home.exchange.stats().outbound_open == 0 {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    world.cable.pull();
    let (again, mut agent) = Agent::node("office", |setup| setup.boot = 2).await;
    let _cable = join(&world.home, &again, 1.0);
    let (status, body) = joined(task).await;
    assert_eq!((status, &body["outcome"]), (502, &json!("outcome_unknown")));
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("restarted")
    );
    assert!(agent.idle());
}

#[tokio::test]
async fn wrong_requests_are_told_apart() {
    let mut world = World::new(|setup| {
        let mut hidden = setup.agents[0].clone();
        hidden.id = "hidden".into();
        hidden.allow = Some(clawmatrix::config::Allow {
            patterns: vec![],
            nodes: globset::GlobSet::empty(),
            labels: vec![],
        });
        setup.agents.push(hidden);
    })
    .await;
    world.home.see(&world.office, Reach::Direct, 1.0);
    let long = "x".repeat((1 << 20) + 1);
    for (body, status, code) in [
        (
            json!({"target": "office", "task": " "}),
            400,
            "invalid_request",
        ),
        (json!({"target": "office"}), 400, "invalid_request"),
        (json!({"target": "", "task": "a"}), 400, "invalid_request"),
        (
            json!({"target": "office", "task": "a", "tsk": 1}),
            400,
            "invalid_request",
        ),
        (
            json!({"target": "office", "task": "a", "timeout": 0}),
            400,
            "invalid_request",
        ),
        (
            json!({"target": "office", "task": long}),
            413,
            "payload_too_large",
        ),
        (
            json!({"target": "nobody", "task": "a"}),
            404,
            "agent_not_found",
        ),
        (
            json!({"target": "lab/main", "task": "a"}),
            404,
            "node_not_found",
        ),
        (
            json!({"target": "office/hidden", "task": "a"}),
            404,
            "agent_not_found",
        ),
        (
            json!({"target": "office/none", "task": "a"}),
            404,
            "agent_not_found",
        ),
        (
            json!({"target": "home/main", "task": "a"}),
            404,
            "agent_not_found",
        ),
    ] {
        let (seen, answer) = joined(handoff(&world.home, body)).await;
        assert_eq!(
            (seen, &answer["error"]["code"]),
            (status, &json!(code)),
            "{answer}"
        );
    }
    let models_only = client()
        .post(world.home.url("/api/v1/handoff"))
        .bearer_auth(&world.home.openclaw)
        .json(&json!({"target": "office", "task": "a"}));
    assert_eq!(send(models_only).await.status(), 403);
    assert!(world.agent.idle());
}

#[tokio::test]
async fn too_many_handoffs_of_one_node_are_refused() {
    let mut world = World::new(|_| {}).await;
    let mut open = Vec::new();
    let runs = Mutex::new(Vec::new());
    for _ in 0..8 {
        open.push(handoff(&world.home, json!({"target": "main", "task": "a"})));
        let mut run = world.agent.next().await;
        run.begin();
        runs.lock().unwrap().push(run);
    }
    let (status, body) = joined(handoff(&world.home, json!({"target": "main", "task": "a"}))).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("overloaded"))
    );
    assert_eq!(body["outcome"], "not_dispatched");
    for run in runs.into_inner().unwrap() {
        run.finish("ok");
    }
    for task in open {
        assert_eq!(joined(task).await.0, 200);
    }
}

/// Protocol 8.6: a handoff is on the disk before it begins, and its end and refusals follow.
#[tokio::test]
async fn handoffs_are_recorded_before_they_begin() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let tasks = Tasks::new();
    let identity = Arc::new(Identity::generate());
    let audit = Audit::open(&state, identity.clone(), &tasks).unwrap();
    let mut world = World::new(|setup| setup.audit = audit.clone()).await;
    let folder = state.path(audit::FOLDER);
    let lines = || -> Vec<Value> {
        let files = audit::files(&folder).unwrap().into_iter();
        let texts: Vec<String> = files
            .map(|(_, path)| std::fs::read_to_string(path).unwrap())
            .collect();
        let lines = texts.concat();
        let values = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        values.collect()
    };
    let first = handoff(
        &world.home,
        json!({"target": "office", "task": "secret words"}),
    );
    let mut run = world.agent.next().await;
    let before = lines();
    assert_eq!(before.len(), 1, "{before:?}");
    assert_eq!(before[0]["from"], "home");
    assert_eq!(before[0]["decision"], "allow");
    assert_eq!(before[0]["result"], "begun");
    run.begin();
    run.finish("done");
    assert_eq!(joined(first).await.0, 200);
    let (status, _) = joined(handoff(
        &world.home,
        json!({"target": "office/nobody", "task": "x"}),
    ))
    .await;
    assert_eq!(status, 404);
    audit.flush().await;
    let all = lines();
    assert!(
        all.iter().any(|line| line["result"] == "completed"),
        "{all:?}"
    );
    assert!(!format!("{all:?}").contains("secret words"));
    assert!(verify(&folder, &[identity.public()]).is_ok());
}

/// T104, the other part: what cannot be recorded is not done.
#[tokio::test]
async fn no_handoff_begins_without_its_record() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let writer = Tasks::new();
    let audit = Audit::open(&state, Arc::new(Identity::generate()), &writer).unwrap();
    let mut world = World::new(|setup| setup.audit = audit).await;
    writer.close(Duration::ZERO).await;
    let task = handoff(&world.home, json!({"target": "office", "task": "x"}));
    let (status, body) = joined(task).await;
    assert_eq!(status, 503);
    assert_eq!(body["error"]["code"], "audit_unavailable", "{body}");
    assert!(world.agent.idle());
}
