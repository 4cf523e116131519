//! Tools over the local API of nodes in one process: real commands and files, an office that lends them.
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
    sync::{Arc, Mutex},
    time::Duration,
};

use clawmatrix::{
    audit::{self, Audit, verify::verify},
    config::{Config, Source, ToolConfig},
    crypto::identity::Identity,
    drain::Tasks,
    exchange::{Chain, SESSION_HEADER},
    mesh::view::Reach,
    state::StateDir,
    tools::{Invoking, ToolRunner},
    trust::Level,
    wire::code::{Code, Failure},
};
use local_node::{Cable, Node, Setup, join};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `toolProxy` lends.
fn lent(proxy: &Value) -> ToolConfig {
    let source = Source {
        openclaw: false,
        folder: Path::new("/"),
        env: &|_| None,
    };
    let whole = json!({"nodeId": "office", "secret": "vT2mQ9xLr4Kc8WzYp6NdBh3sJf7GaE5u", "toolProxy": proxy});
    Config::from_value(whole, &source).unwrap().tools
}

/// Home, and office with tools and a folder.
struct World {
    home: Node,
    office: Node,
    cable: Cable,
    temp: tempfile::TempDir,
}

impl World {
    /// Office lends what `proxy` says; `ROOT` in it is the folder.
    async fn new(proxy: Value, change: impl FnOnce(&mut Setup)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let text = proxy.to_string().replace(
            "ROOT",
            temp.path().canonicalize().unwrap().to_str().unwrap(),
        );
        let mut setup = Setup::new("office");
        setup.tools = lent(&serde_json::from_str(&text).unwrap());
        change(&mut setup);
        let office = Node::start(setup).await;
        let home = Node::start(Setup::new("home")).await;
        let cable = join(&home, &office, 1.0);
        Self {
            home,
            office,
            cable,
            temp,
        }
    }

    async fn open() -> Self {
        Self::new(json!({"enabled": true, "roots": ["ROOT"]}), |_| {}).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    async fn ask(&self, verb: &str, body: Value) -> (u16, Value) {
        ask(&self.home, verb, body).await
    }
}

fn request(node: &Node, verb: &str, body: &Value) -> reqwest::RequestBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(node.url(&format!("/api/v1/tools/{verb}")))
        .bearer_auth(&node.launch)
        .json(body)
}

async fn ask(node: &Node, verb: &str, body: Value) -> (u16, Value) {
    let response = timeout(PATIENCE, request(node, verb, &body).send());
    let response = response.await.unwrap().unwrap();
    let status = response.status().as_u16();
    let text = timeout(PATIENCE, response.text()).await.unwrap().unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
    (status, body)
}

fn code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or_default()
}

/// The pid a command wrote down.
async fn pid_in(file: &Path) -> i32 {
    let found = async {
        loop {
            if let Ok(text) = std::fs::read_to_string(file)
                && let Ok(pid) = text.trim().parse()
            {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, found).await.unwrap()
}

/// Waits until a process is gone, or only waits to be collected.
async fn gone(pid: i32) {
    let end = async {
        loop {
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
                return;
            };
            let state = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.chars().next());
            if matches!(state, Some('Z' | 'X')) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, end)
        .await
        .expect("a process was left behind");
}

#[tokio::test]
async fn a_command_runs_there_and_its_end_is_told() {
    let world = World::open().await;
    let (status, body) = world
        .ask(
            "exec",
            json!({"node": "office", "command": "printf 'a b'; echo no >&2; exit 3"}),
        )
        .await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["stdout"], "a b");
    assert_eq!(body["stderr"], "no\n");
    for (key, value) in [
        ("nodeId", json!("office")),
        ("outcome", json!("completed")),
        ("exitCode", json!(3)),
        ("signal", Value::Null),
        ("timedOut", json!(false)),
        ("truncated", json!(false)),
    ] {
        assert_eq!(body[key], value, "{key}: {body}");
    }
    assert!(body["durationMs"].is_u64());
    let here = world.temp.path().canonicalize().unwrap();
    // Only heard of: the session that the command opens pins it (protocol 7.4).
    world
        .home
        .see_at(&world.office, Reach::Direct, 1.0, Level::Seen);
    let (_, body) = world
        .ask("exec", json!({"node": "any", "argv": ["pwd"]}))
        .await;
    assert_eq!(
        body["stdout"].as_str().unwrap().trim(),
        here.to_str().unwrap()
    );
    std::fs::create_dir(world.path("sub")).unwrap();
    let (_, body) = world
        .ask(
            "exec",
            json!({"node": "office", "argv": ["pwd"], "workdir": "sub"}),
        )
        .await;
    assert_eq!(
        body["stdout"].as_str().unwrap().trim(),
        here.join("sub").to_str().unwrap()
    );
    let (_, body) = world
        .ask(
            "exec",
            json!({"node": "office", "argv": ["printf", "%s", "$(id); 'x'"]}),
        )
        .await;
    assert_eq!(body["stdout"], "$(id); 'x'");
    let (_, body) = world
        .ask(
            "invoke",
            json!({"node": "office", "tool": "exec", "args": {"command": "echo hi"}}),
        )
        .await;
    assert_eq!(body["stdout"], "hi\n");
    let (_, body) = world
        .ask(
            "exec",
            json!({"node": "office", "command": "printf '\\377'"}),
        )
        .await;
    assert_eq!(
        (&body["stdout"], &body["stdoutEncoding"]),
        (&json!("/w=="), &json!("base64"))
    );
}

#[tokio::test]
async fn output_comes_as_it_is_printed() {
    let world = World::open().await;
    let go = world.path("go");
    let command = format!(
        "echo one; while [ ! -e {} ]; do sleep 0.02; done; echo two >&2",
        go.display()
    );
    let asked = request(
        &world.home,
        "exec",
        &json!({"node": "office", "command": command}),
    )
    .header("accept", "text/event-stream");
    let mut response = timeout(PATIENCE, asked.send()).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let mut text = String::new();
    while !text.contains("event: stdout\ndata: {\"text\":\"one\\n\",\"stream\":\"stdout\"}\n\n") {
        let piece = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&piece.unwrap()));
    }
    assert!(!text.contains("event: end"));
    std::fs::write(&go, "").unwrap();
    while let Some(piece) = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap() {
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    assert!(
        text.contains("event: stderr\ndata: {\"text\":\"two\\n\",\"stream\":\"stderr\"}\n\n"),
        "{text}"
    );
    let end = text.split("event: end\ndata: ").nth(1).unwrap();
    let end: Value = serde_json::from_str(end.trim()).unwrap();
    assert_eq!(
        (&end["outcome"], &end["exitCode"], &end["nodeId"]),
        (&json!("completed"), &json!(0), &json!("office"))
    );
}

#[tokio::test]
async fn a_command_out_of_time_is_an_error_that_shows_what_it_said() {
    let world = World::open().await;
    let (status, body) = world
        .ask(
            "exec",
            json!({"node": "office", "command": "echo begun; sleep 60", "timeout": 0.3}),
        )
        .await;
    assert_eq!((status, code(&body)), (504, "timeout"), "{body}");
    assert_eq!(
        (&body["outcome"], &body["timedOut"], &body["stdout"]),
        (&json!("failed"), &json!(true), &json!("begun\n"))
    );
}

/// T85: whoever goes away takes the command with him, with its children.
#[tokio::test]
async fn a_client_that_goes_away_ends_the_command() {
    let world = World::open().await;
    for (turn, events) in [(0, true), (1, false)] {
        let file = world.path(&format!("pid{turn}"));
        let command = format!("sh -c 'echo $$ > {}; sleep 60'; :", file.display());
        let mut asked = request(
            &world.home,
            "exec",
            &json!({"node": "office", "command": command}),
        );
        if events {
            asked = asked.header("accept", "text/event-stream");
        }
        let client = tokio::spawn(async move {
            let mut response = asked.send().await.unwrap();
            while response.chunk().await.unwrap().is_some() {}
        });
        let pid = pid_in(&file).await;
        client.abort();
        let since = Instant::now();
        gone(pid).await;
        assert!(
            since.elapsed() < Duration::from_secs(2),
            "{:?}",
            since.elapsed()
        );
    }
}

#[tokio::test]
async fn a_lost_link_ends_the_command_and_nobody_knows_how() {
    let world = World::open().await;
    let file = world.path("pid");
    let command = format!("sh -c 'echo $$ > {}; sleep 60'", file.display());
    let asked = request(
        &world.home,
        "exec",
        &json!({"node": "office", "command": command}),
    );
    let client = tokio::spawn(async move {
        let response = asked.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    });
    let pid = pid_in(&file).await;
    world.cable.pull();
    let (status, body) = timeout(PATIENCE * 3, client).await.unwrap().unwrap();
    assert_eq!((status, code(&body)), (502, "outcome_unknown"), "{body}");
    assert_eq!(body["outcome"], "outcome_unknown");
    gone(pid).await;
}

/// T82: commands whose link fails at any moment run at most once, and never when it is said that
/// they did not.
#[tokio::test]
async fn a_command_runs_at_most_once_under_failures() {
    let world = World::open().await;
    world.cable.pull();
    let file = world.path("count");
    let (mut completed, mut unknown, mut never) = (Vec::new(), 0, Vec::new());
    for turn in 0..1000_u32 {
        let cable = join(&world.home, &world.office, 1.0);
        let command = format!("echo {turn} >> {}", file.display());
        let body = json!({"node": "office", "command": command});
        let asked = request(&world.home, "exec", &body);
        let client =
            tokio::spawn(async move { asked.send().await.unwrap().json::<Value>().await.unwrap() });
        // From before the request arrives to after its answer.
        tokio::time::sleep(Duration::from_micros(u64::from(turn % 100) * 60)).await;
        cable.pull();
        let body = timeout(PATIENCE * 3, client).await.unwrap().unwrap();
        match body["outcome"].as_str().or(body["error"]["code"].as_str()) {
            Some("completed") => completed.push(turn),
            Some("not_dispatched" | "no_route") => never.push(turn),
            Some("outcome_unknown") => unknown += 1,
            other => panic!("{other:?}: {body}"),
        }
    }
    // What was cut off may still be writing.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let mut counts = vec![0; 1000];
    for line in text.lines() {
        counts[line.parse::<usize>().unwrap()] += 1;
    }
    assert!(
        counts.iter().all(|count| *count <= 1),
        "something ran twice"
    );
    assert!(completed.iter().all(|turn| counts[*turn as usize] == 1));
    assert!(never.iter().all(|turn| counts[*turn as usize] == 0));
    assert!(
        unknown > 0 && !completed.is_empty(),
        "{unknown} {} {}",
        completed.len(),
        never.len()
    );
    println!(
        "{} completed, {unknown} unknown, {} never began",
        completed.len(),
        never.len()
    );
}

#[tokio::test]
async fn files_are_read_written_edited_and_listed() {
    let world = World::open().await;
    let (status, body) = world
        .ask(
            "write",
            json!({"node": "office", "path": "notes/a.txt", "content": "one\ntwo\n"}),
        )
        .await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        (&body["bytes"], &body["created"], &body["path"]),
        (&json!(8), &json!(true), &json!("notes/a.txt"))
    );
    let (_, body) = world
        .ask("read", json!({"node": "office", "path": "notes/a.txt"}))
        .await;
    assert_eq!(
        (
            &body["content"],
            &body["encoding"],
            &body["size"],
            &body["truncated"]
        ),
        (
            &json!("one\ntwo\n"),
            &json!("utf-8"),
            &json!(8),
            &json!(false)
        )
    );
    let (_, body) = world
        .ask(
            "read",
            json!({"node": "office", "path": "notes/a.txt", "offset": 4, "limit": 3}),
        )
        .await;
    assert_eq!(
        (&body["content"], &body["offset"], &body["truncated"]),
        (&json!("two"), &json!(4), &json!(true))
    );
    let edit = json!({"node": "office", "path": "notes/a.txt", "oldText": "two", "newText": "2"});
    let (_, body) = world.ask("edit", edit.clone()).await;
    assert_eq!(body["replaced"], 1, "{body}");
    let (status, body) = world.ask("edit", edit).await;
    assert_eq!((status, code(&body)), (400, "invalid_request"));
    assert_eq!(body["outcome"], "not_dispatched");
    let (_, body) = world
        .ask("list", json!({"node": "office", "path": "notes"}))
        .await;
    assert_eq!(body["entries"][0]["name"], "a.txt");
    assert_eq!(
        std::fs::read_to_string(world.path("notes/a.txt")).unwrap(),
        "one\n2\n"
    );

    let (status, _) = world
        .ask(
            "write",
            json!({"node": "office", "path": "b", "content": "/wD+", "encoding": "base64"}),
        )
        .await;
    assert_eq!(status, 200);
    let (_, body) = world
        .ask("read", json!({"node": "office", "path": "b"}))
        .await;
    assert_eq!(
        (&body["content"], &body["encoding"]),
        (&json!("/wD+"), &json!("base64"))
    );
    let (status, body) = world
        .ask(
            "read",
            json!({"node": "office", "path": "b", "encoding": "utf-8"}),
        )
        .await;
    assert_eq!((status, code(&body)), (400, "invalid_request"));
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("no UTF-8 text")
    );

    // Larger than a request can carry in itself, and than an answer in one record.
    let large = "0123456789abcdef".repeat(40_000);
    let (status, _) = world
        .ask(
            "write",
            json!({"node": "office", "path": "large", "content": large}),
        )
        .await;
    assert_eq!(status, 200);
    let (_, body) = world
        .ask("read", json!({"node": "office", "path": "large"}))
        .await;
    assert_eq!(body["content"].as_str().unwrap(), large);
    let (status, body) = world
        .ask("read", json!({"node": "office", "path": "none"}))
        .await;
    assert_eq!((status, code(&body)), (404, "not_found"));
}

#[tokio::test]
async fn what_no_rule_allows_is_refused_by_name_and_without_effect() {
    let off = World::new(json!({}), |_| {}).await;
    for (verb, body) in [
        ("exec", json!({"node": "office", "command": "touch x"})),
        ("read", json!({"node": "office", "path": "/etc/hosts"})),
        (
            "write",
            json!({"node": "office", "path": "x", "content": ""}),
        ),
        (
            "invoke",
            json!({"node": "office", "tool": "browser", "args": {}}),
        ),
    ] {
        let (status, answer) = off.ask(verb, body).await;
        assert_eq!((status, code(&answer)), (403, "policy_denied"), "{answer}");
        assert_eq!(answer["outcome"], "not_dispatched");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("`toolProxy.enabled`"), "{message}");
    }
    let proxy = json!({"enabled": true, "roots": ["ROOT"], "allow": ["read", "exec"], "deny": ["exec"], "ask": ["write"]});
    let some = World::new(proxy, |_| {}).await;
    let target = some.path("made");
    let (_, body) = some
        .ask("exec", json!({"node": "office", "argv": ["touch", target]}))
        .await;
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("`toolProxy.deny[0]`"),
        "{body}"
    );
    let (_, body) = some
        .ask(
            "write",
            json!({"node": "office", "path": "made", "content": "x"}),
        )
        .await;
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("`default`"),
        "{body}"
    );
    let (_, body) = some
        .ask("read", json!({"node": "office", "path": "/etc/hosts"}))
        .await;
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("`toolProxy.roots`"),
        "{body}"
    );
    assert!(!target.exists());
    // Where nobody is enrolled, nobody is asked.
    let asks = World::new(
        json!({"enabled": true, "roots": ["ROOT"], "ask": ["write"]}),
        |_| {},
    )
    .await;
    let (status, body) = asks
        .ask(
            "write",
            json!({"node": "office", "path": "made", "content": "x"}),
        )
        .await;
    assert_eq!(status, 403, "{body}");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("clawmatrix approvals enroll"), "{message}");
    assert!(!asks.path("made").exists());
}

/// T96, T98 over the wire: rules let a program run with the arguments they name, and no shell.
#[tokio::test]
async fn rules_run_programs_and_no_shell() {
    let proxy = json!({"enabled": true, "roots": ["ROOT"], "rules": [
        {"id": "echo", "effect": "allow", "from": ["*"], "minTrust": "pinned", "action": ["tool:exec"], "program": ["/bin/echo", "/usr/bin/echo"], "args": ["*", "..."]},
        {"id": "ls", "effect": "allow", "from": ["*"], "minTrust": "pinned", "action": ["tool:exec"], "program": ["/bin/ls", "/usr/bin/ls"], "args": "any", "env": ["LC_ALL"]},
    ]});
    let world = World::new(proxy, |_| {}).await;
    let exec = |body: Value| {
        let mut body = body;
        body["node"] = json!("office");
        world.ask("exec", body)
    };
    let (_, body) = exec(json!({"command": "echo 'a;b' c"})).await;
    assert_eq!(body["stdout"], "a;b c\n", "{body}");
    let (_, body) = exec(json!({"argv": ["ls", "--exec=x\u{ff1b}"]})).await;
    assert_eq!(body["outcome"], "completed", "{body}");
    std::fs::write(world.path("ls"), "#!/bin/sh\ntouch ran\n").unwrap();
    for refused in [
        json!({"command": "echo a; id"}),
        json!({"command": "echo $(id)"}),
        json!({"command": "echo a\nid"}),
        json!({"argv": ["echo", "a\nb"]}),
        json!({"argv": ["echo", "a\u{200b}b"]}),
        json!({"argv": ["echo", "-e", "x"]}),
        json!({"argv": ["./ls"]}),
        json!({"argv": [world.path("ls")]}),
        json!({"argv": ["sh", "-c", "id"]}),
        json!({"argv": ["nowhere-to-be-found"]}),
        json!({"argv": ["ls"], "env": {"LD_PRELOAD": "x"}}),
        json!({"argv": ["ls"], "env": {"PATH": "."}}),
        json!({"argv": ["ls"], "env": {"BASH_ENV": "x"}}),
        json!({"argv": ["ls"], "env": {"TZ": "x"}}),
        json!({"argv": ["ls"], "workdir": "/etc"}),
    ] {
        let (status, body) = exec(refused.clone()).await;
        assert!(matches!(status, 400 | 403), "{refused}: {status} {body}");
        assert_eq!(body["outcome"], "not_dispatched", "{refused}");
    }
    assert!(!world.path("ran").exists());
    let (status, _) = exec(json!({"argv": ["ls"], "env": {"LC_ALL": "C"}})).await;
    assert_eq!(status, 200);
}

/// T97: the environment of a command.
#[tokio::test]
async fn a_command_gets_a_clean_environment() {
    let world = World::open().await;
    let (_, body) = world
        .ask("exec", json!({"node": "office", "argv": ["env"]}))
        .await;
    let names: Vec<&str> = body["stdout"]
        .as_str()
        .unwrap()
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["HOME", "LANG", "PATH"], "{names:?}");
}

#[derive(Debug, Default)]
struct Gateway {
    calls: Mutex<Vec<(String, Value)>>,
    hangs: bool,
}

impl ToolRunner for Gateway {
    fn invoke<'a>(&'a self, tool: &'a str, args: Value, _: Duration) -> Invoking<'a> {
        self.calls.lock().unwrap().push((tool.to_owned(), args));
        Box::pin(async move {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            Ok(match tool {
                "web_fetch" => (
                    200,
                    json!({"ok": true, "result": {"content": [{"type": "text", "text": "page"}]}}),
                ),
                "broken" => (
                    500,
                    json!({"ok": false, "error": {"type": "tool_error", "message": "tool execution failed"}}),
                ),
                "guarded" => (
                    403,
                    json!({"ok": false, "error": {"type": "tool_call_blocked", "message": "blocked"}}),
                ),
                "dead" => return Err(Failure::started(Code::OutcomeUnknown, "the gateway ended")),
                _ => (
                    404,
                    json!({"ok": false, "error": {"type": "not_found", "message": "Tool not available: x"}}),
                ),
            })
        })
    }
}

#[tokio::test]
async fn other_tools_are_the_gateways_with_its_own_answers() {
    let gateway = Arc::new(Gateway::default());
    let proxy = json!({"enabled": true, "roots": ["ROOT"], "deny": ["browser"]});
    let lends = gateway.clone();
    let world = World::new(proxy, |setup| setup.gateway = Some(lends)).await;
    let tool = |name: &str| {
        world.ask(
            "invoke",
            json!({"node": "office", "tool": name, "args": {"url": "x"}}),
        )
    };
    let (status, body) = tool("web_fetch").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["result"]["content"][0]["text"], "page");
    assert_eq!(
        (&body["tool"], &body["nodeId"]),
        (&json!("web_fetch"), &json!("office"))
    );
    for (name, status, wanted, outcome) in [
        ("cron", 404, "not_found", "not_dispatched"),
        ("guarded", 403, "policy_denied", "not_dispatched"),
        ("broken", 502, "upstream_error", "failed"),
        ("dead", 502, "outcome_unknown", "outcome_unknown"),
        ("browser", 403, "policy_denied", "not_dispatched"),
        ("cluster_exec", 403, "policy_denied", "not_dispatched"),
        ("tool_call", 403, "policy_denied", "not_dispatched"),
    ] {
        let (seen, body) = tool(name).await;
        assert_eq!((seen, code(&body)), (status, wanted), "{name}: {body}");
        if body.get("outcome").is_some() {
            assert_eq!(body["outcome"], outcome, "{name}");
        }
        if name == "cron" {
            assert!(
                body["error"]["message"]
                    .as_str()
                    .unwrap()
                    .contains("gateway.tools.allow"),
                "{body}"
            );
        }
    }
    let calls: Vec<String> = gateway
        .calls
        .lock()
        .unwrap()
        .iter()
        .map(|(tool, _)| tool.clone())
        .collect();
    assert_eq!(calls, ["web_fetch", "cron", "guarded", "broken", "dead"]);
    let bare = World::open().await;
    let (status, body) = bare
        .ask("invoke", json!({"node": "office", "tool": "web_fetch"}))
        .await;
    assert_eq!((status, code(&body)), (404, "not_found"));
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("no OpenClaw gateway")
    );
}

#[tokio::test]
async fn a_node_asks_itself_by_the_same_rules_and_only_by_name() {
    let world = World::open().await;
    let (status, body) = world
        .ask("exec", json!({"node": "home", "command": "id"}))
        .await;
    assert_eq!((status, code(&body)), (403, "policy_denied"), "{body}");
    let (status, body) = ask(
        &world.office,
        "exec",
        json!({"node": "office", "command": "echo here"}),
    )
    .await;
    assert_eq!((status, &body["stdout"]), (200, &json!("here\n")), "{body}");
    let (status, body) = ask(
        &world.office,
        "exec",
        json!({"node": "any", "command": "id"}),
    )
    .await;
    assert_eq!(
        (status, code(&body)),
        (403, "policy_denied"),
        "home lends nothing: {body}"
    );
    let alone = Node::start(Setup::new("alone")).await;
    let (status, body) = ask(&alone, "exec", json!({"node": "any", "command": "id"})).await;
    assert_eq!((status, code(&body)), (404, "node_not_found"), "{body}");
}

#[tokio::test]
async fn bad_requests_name_what_is_wrong() {
    let world = World::open().await;
    for (verb, body, status, wanted) in [
        ("exec", json!({"command": "id"}), 400, "invalid_request"),
        ("exec", json!({"node": "office"}), 400, "invalid_request"),
        (
            "exec",
            json!({"node": "office", "command": "id", "argv": ["id"]}),
            400,
            "invalid_request",
        ),
        (
            "exec",
            json!({"node": "office", "command": "id", "timeout": -1}),
            400,
            "invalid_request",
        ),
        (
            "exec",
            json!({"node": "office", "command": "id", "shell": true}),
            400,
            "invalid_request",
        ),
        (
            "exec",
            json!({"node": "nowhere", "command": "id"}),
            404,
            "node_not_found",
        ),
        (
            "exec",
            json!({"node": "tags:gpu", "command": "id"}),
            404,
            "node_not_found",
        ),
        (
            "exec",
            json!({"node": "office", "command": "x".repeat(30_000)}),
            413,
            "payload_too_large",
        ),
        (
            "exec",
            json!({"node": "office", "argv": ["no-such-program"]}),
            400,
            "invalid_request",
        ),
        (
            "exec",
            json!({"node": "office", "command": "id", "workdir": "nowhere"}),
            404,
            "not_found",
        ),
        ("read", json!({"node": "office"}), 400, "invalid_request"),
        (
            "read",
            json!({"node": "office", "path": "../x"}),
            400,
            "invalid_request",
        ),
        (
            "write",
            json!({"node": "office", "path": "x"}),
            400,
            "invalid_request",
        ),
        (
            "list",
            json!({"node": "office", "path": "none"}),
            404,
            "not_found",
        ),
        ("dance", json!({"node": "office"}), 404, "not_found"),
    ] {
        let (seen, answer) = world.ask(verb, body.clone()).await;
        assert_eq!((seen, code(&answer)), (status, wanted), "{verb} {answer}");
    }
    let models_only = request(
        &world.home,
        "exec",
        &json!({"node": "office", "command": "id"}),
    )
    .bearer_auth(&world.home.openclaw);
    // The second header is the one that counts for neither: reqwest sends both.
    assert!(models_only.send().await.unwrap().status().is_client_error());
    world.home.lose(&world.office.name);
    let (status, _) = world
        .ask("exec", json!({"node": "any", "command": "id"}))
        .await;
    assert_eq!(status, 404);
}

/// T86 for tools, and the deadline of the request they belong to.
#[tokio::test]
async fn a_tool_within_a_chain_carries_it_on() {
    let world = World::open().await;
    let within = |session: &str, chain: Chain| {
        let entered = world.home.lineage.enter(session, chain);
        let asked = request(
            &world.home,
            "exec",
            &json!({"node": "office", "command": "sleep 30"}),
        )
        .header(SESSION_HEADER, session);
        async move {
            let _entered = entered;
            let response = timeout(PATIENCE, asked.send()).await.unwrap().unwrap();
            response.json::<Value>().await.unwrap()
        }
    };
    let circle = Chain {
        hops: vec![world.office.name.clone()],
        deadline: None,
    };
    assert_eq!(code(&within("circle", circle).await), "loop_detected");
    let short = Chain {
        hops: vec![],
        deadline: Some(Instant::now() + Duration::from_millis(500)),
    };
    let since = Instant::now();
    assert_eq!(code(&within("short", short).await), "deadline_exceeded");
    assert!(since.elapsed() < Duration::from_secs(5));
}

/// T107 over the wire, and how many at once.
#[tokio::test]
async fn rates_and_places_are_bounded() {
    let proxy = json!({"enabled": true, "roots": ["ROOT"], "rules": [
        {"id": "few", "effect": "allow", "from": ["*"], "minTrust": "pinned", "action": ["tool:exec"], "program": ["/bin/true", "/usr/bin/true", "/bin/coreutils", "/usr/bin/coreutils"], "limits": {"perMinute": 10}},
        {"id": "slow", "effect": "allow", "from": ["*"], "minTrust": "pinned", "action": ["tool:exec"], "program": ["/bin/sleep", "/usr/bin/sleep"], "args": ["*"]},
    ]});
    let world = World::new(proxy, |_| {}).await;
    for turn in 0..11 {
        let (status, body) = world
            .ask("exec", json!({"node": "office", "argv": ["true"]}))
            .await;
        let expected = if turn < 10 { 200 } else { 429 };
        assert_eq!(status, expected, "{turn}: {body}");
    }
    let mut clients = Vec::new();
    for _ in 0..4 {
        let asked = request(
            &world.home,
            "exec",
            &json!({"node": "office", "argv": ["sleep", "30"]}),
        );
        clients.push(tokio::spawn(async move { asked.send().await.map(drop) }));
    }
    let full = async {
        loop {
            let (status, body) = world
                .ask("exec", json!({"node": "office", "argv": ["sleep", "0"]}))
                .await;
            if status == 503 {
                assert_eq!(code(&body), "overloaded");
                return;
            }
        }
    };
    timeout(PATIENCE, full).await.unwrap();
    for client in &clients {
        client.abort();
    }
    let free = async {
        while world
            .ask("exec", json!({"node": "office", "argv": ["sleep", "0"]}))
            .await
            .0
            != 200
        {}
    };
    timeout(PATIENCE, free).await.unwrap();
}

/// T106: another policy takes the place of the old one as a whole.
#[tokio::test]
async fn a_new_policy_is_in_force_at_once() {
    let world = World::open().await;
    let exec = || world.ask("exec", json!({"node": "office", "command": "echo x"}));
    assert_eq!(exec().await.0, 200);
    world
        .office
        .tool_service
        .set_config(&lent(&json!({"enabled": true, "allow": ["read"]})));
    assert_eq!(code(&exec().await.1), "policy_denied");
    world
        .office
        .tool_service
        .set_config(&lent(&json!({"enabled": true})));
    assert_eq!(exec().await.0, 200);
}

/// Protocol 8.6: what runs is on the disk before it begins; refusals are there with their rule.
#[tokio::test]
async fn tools_are_recorded_before_they_begin() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let tasks = Tasks::new();
    let identity = Arc::new(Identity::generate());
    let audit = Audit::open(&state, identity.clone(), &tasks).unwrap();
    let folder = state.path(audit::FOLDER);
    let proxy = json!({"enabled": true, "roots": ["ROOT"], "deny": ["browser"]});
    let world = World::new(proxy, |setup| setup.audit = audit.clone()).await;
    // The command itself looks at the record.
    let command = format!("cat {}/*.jsonl # hidden words", folder.display());
    let (_, body) = world
        .ask("exec", json!({"node": "office", "command": command}))
        .await;
    let seen: Value =
        serde_json::from_str(body["stdout"].as_str().unwrap().lines().last().unwrap()).unwrap();
    assert_eq!(
        (
            &seen["action"],
            &seen["rule"],
            &seen["level"],
            &seen["decision"],
            &seen["result"]
        ),
        (
            &json!("tool:exec"),
            &json!("toolProxy.allow"),
            &json!(1),
            &json!("allow"),
            &json!("begun")
        ),
        "{seen}"
    );
    world
        .ask("invoke", json!({"node": "office", "tool": "browser"}))
        .await;
    world
        .ask("read", json!({"node": "office", "path": "/etc/hosts"}))
        .await;
    audit.flush().await;
    let files = audit::files(&folder).unwrap().into_iter();
    let text: String = files
        .map(|(_, path)| std::fs::read_to_string(path).unwrap())
        .collect();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let has = |action: &str, rule: &str, decision: &str, result: &str| {
        lines.iter().any(|l| {
            l["action"] == action
                && l["rule"] == rule
                && l["decision"] == decision
                && l["result"] == result
        })
    };
    assert!(
        has("tool:exec", "toolProxy.allow", "allow", "completed"),
        "{text}"
    );
    assert!(
        has("tool:browser", "toolProxy.deny[0]", "deny", "policy_denied"),
        "{text}"
    );
    assert!(
        has("tool:read", "toolProxy.roots", "deny", "policy_denied"),
        "{text}"
    );
    assert!(!text.contains("hidden words"));
    assert!(verify(&folder, &[identity.public()]).is_ok());
}

/// T104: what cannot be recorded is not done.
#[tokio::test]
async fn no_tool_begins_without_its_record() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let writer = Tasks::new();
    let audit = Audit::open(&state, Arc::new(Identity::generate()), &writer).unwrap();
    let world = World::new(json!({"enabled": true, "roots": ["ROOT"]}), |setup| {
        setup.audit = audit
    })
    .await;
    writer.close(Duration::ZERO).await;
    for (verb, body) in [
        (
            "exec",
            json!({"node": "office", "argv": ["touch", world.path("made")]}),
        ),
        (
            "write",
            json!({"node": "office", "path": "made", "content": "x"}),
        ),
    ] {
        let (status, body) = world.ask(verb, body).await;
        assert_eq!((status, code(&body)), (503, "audit_unavailable"), "{body}");
    }
    assert!(!world.path("made").exists());
}

/// T99: much more output than is told costs no memory and ends the command in its own time.
#[tokio::test]
async fn a_flood_is_cut_at_the_limit() {
    let proxy = json!({"enabled": true, "roots": ["ROOT"], "maxOutputBytes": 1_048_576});
    let world = World::new(proxy, |_| {}).await;
    let before = resident();
    let (status, body) = world
        .ask(
            "exec",
            json!({"node": "office", "command": "head -c 1000000000 /dev/zero | tr '\\0' x"}),
        )
        .await;
    assert_eq!(status, 200, "{}", code(&body));
    assert_eq!(body["stdout"].as_str().unwrap().len(), 1_048_576);
    assert_eq!(
        (&body["truncated"], &body["exitCode"]),
        (&json!(true), &json!(0))
    );
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}
