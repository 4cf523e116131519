//! What one node may use of another, over real requests (protocol 8.5).
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
#[path = "support/provider.rs"]
mod provider;

use std::path::Path;

use clawmatrix::{
    budgets::{Budgets, Caps},
    config::{Config, Source},
    state::StateDir,
};
use local_node::{Cable, Node, Setup, join};
use provider::{FakeProvider, Script};
use serde_json::{Value, json};

/// An answer of 60 tokens.
const ANSWER: &str = r#"{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":50,"completion_tokens":10,"total_tokens":60}}"#;

/// Home, and office that lends a model and its tools within `budgets`.
async fn world(budgets: &Budgets) -> (Node, Node, Cable, FakeProvider) {
    lending(budgets, json!({"enabled": true})).await
}

/// The same with tools as `proxy` says.
async fn lending(budgets: &Budgets, proxy: Value) -> (Node, Node, Cable, FakeProvider) {
    let provider = FakeProvider::start(vec![Script::json(200, ANSWER)]).await;
    let mut setup = Setup::new("office").lend("m", &provider.url(), "openai-completions");
    let source = Source {
        openclaw: false,
        folder: Path::new("/"),
        env: &|_| None,
    };
    let whole = json!({"nodeId": "office", "secret": "vT2mQ9xLr4Kc8WzYp6NdBh3sJf7GaE5u", "toolProxy": proxy});
    setup.tools = Config::from_value(whole, &source).unwrap().tools;
    setup.budgets = budgets.clone();
    let office = Node::start(setup).await;
    let home = Node::start(Setup::new("home")).await;
    let cable = join(&home, &office, 1.0);
    (home, office, cable, provider)
}

async fn post(node: &Node, path: &str, body: Value) -> (u16, Option<String>, Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client
        .post(node.url(path))
        .bearer_auth(&node.launch)
        .json(&body);
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let retry = answer.headers().get("retry-after");
    let retry = retry.map(|value| value.to_str().unwrap().to_owned());
    (status, retry, answer.json().await.unwrap())
}

async fn chat(node: &Node) -> (u16, Option<String>, Value) {
    let body = json!({"model": "office/m", "messages": [{"role": "user", "content": "hello"}]});
    post(node, "/v1/chat/completions", body).await
}

async fn run(node: &Node) -> (u16, Option<String>, Value) {
    post(
        node,
        "/api/v1/tools/exec",
        json!({"node": "office", "argv": ["true"]}),
    )
    .await
}

/// T107: whatever they are for, ten requests a minute are ten; a new limit is in force at once.
#[tokio::test]
async fn requests_of_a_peer_are_counted_whatever_they_are_for() {
    let budgets = Budgets::default();
    let ten = Caps {
        per_minute: Some(10),
        ..Caps::default()
    };
    budgets.set_per_peer(ten);
    let (home, office, _cable, provider) = world(&budgets).await;
    for _ in 0..5 {
        assert_eq!(chat(&home).await.0, 200);
        assert_eq!(run(&home).await.0, 200);
    }
    for (status, retry, body) in [chat(&home).await, run(&home).await] {
        assert_eq!(
            (status, &body["error"]["code"]),
            (429, &json!("rate_limited")),
            "{body}"
        );
        let seconds: u64 = retry.unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
        let text = body["error"]["message"].as_str().unwrap();
        assert!(
            text.contains("`limits.perPeer` lets 10 requests a minute through"),
            "{text}"
        );
    }
    assert_eq!(provider.requests().len(), 5);
    // What a node does for itself is no other node's.
    assert_eq!(run(&office).await.0, 200);
    budgets.set_per_peer(Caps::default());
    assert_eq!(run(&home).await.0, 200);
}

/// What a model's answer says it took is what counts, also after a restart.
#[tokio::test]
async fn tokens_of_a_day_are_those_the_provider_tells() {
    let temp = tempfile::tempdir().unwrap();
    let state = || StateDir::open(temp.path()).unwrap();
    let caps = Caps {
        tokens_per_day: Some(300),
        ..Caps::default()
    };
    let budgets = Budgets::load(state(), caps);
    let (home, _office, _cable, provider) = world(&budgets).await;
    let mut answered = 0;
    let refused = loop {
        let (status, retry, body) = chat(&home).await;
        if status != 200 {
            break (status, retry, body);
        }
        answered += 1;
        assert!(answered < 10, "nothing bounds it");
    };
    // 60 each, and what the next one would take by its length does not fit any more.
    assert_eq!(answered, 4);
    assert_eq!(
        (refused.0, &refused.2["error"]["code"]),
        (429, &json!("budget_exceeded"))
    );
    assert!(refused.1.is_some());
    // Tools cost no tokens.
    assert_eq!(run(&home).await.0, 200);
    budgets.flush().await;

    let (again, _office, _cable, _) = world(&Budgets::load(state(), caps)).await;
    assert_eq!(chat(&again).await.0, 429);
    assert_eq!(provider.requests().len(), 4);
}

async fn usage(node: &Node) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.get(node.url("/api/v1/usage"));
    let answer = request.bearer_auth(&node.launch).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// What a command prints counts under its rule, and both sides of a budget are shown.
#[tokio::test]
async fn bytes_of_a_rule_are_counted_and_shown() {
    let budgets = Budgets::default();
    let rule = json!({
        "id": "print", "effect": "allow", "from": ["*"], "minTrust": "pinned", "action": ["tool:exec"],
        "program": ["/usr/bin/*", "/bin/*"], "args": "any", "dangerous": true,
        "limits": {"bytesPerDay": 5000, "tokensPerDay": 100_000, "perDay": 10},
    });
    let proxy = json!({"enabled": true, "rules": [rule]});
    let (home, office, _cable, _provider) = lending(&budgets, proxy).await;
    budgets.set_per_peer(Caps {
        per_minute: Some(100),
        ..Caps::default()
    });
    assert_eq!(usage(&office).await["peers"], json!([]));
    let print = async || {
        let body = json!({"node": "office", "argv": ["head", "-c", "3000", "/dev/zero"]});
        post(&home, "/api/v1/tools/exec", body).await
    };
    for _ in 0..2 {
        let (status, _, body) = print().await;
        assert_eq!(status, 200, "{body}");
    }
    // Over by the second one, which had begun.
    let (status, retry, body) = print().await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (429, &json!("budget_exceeded")),
        "{body}"
    );
    assert!(retry.is_some());
    let text = body["error"]["message"].as_str().unwrap();
    assert!(
        text.contains("rule `print` lets 5000 bytes a day through"),
        "{text}"
    );

    let shown = usage(&office).await;
    assert_eq!(
        shown["limits"]["perPeer"],
        json!({"requestsPerMinute": 100})
    );
    let limits = json!({"requestsPerDay": 10, "tokensPerDay": 100_000, "bytesPerDay": 5000});
    assert_eq!(shown["limits"]["rules"], json!({"print": limits}));
    let peers = shown["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 1, "{shown}");
    let [all, print] = &peers[0]["usage"].as_array().unwrap()[..] else {
        panic!("{shown}");
    };
    assert_eq!(all["rule"], Value::Null);
    assert_eq!(
        all["limits"],
        json!({"requestsPerMinute": {"used": 3, "most": 100}})
    );
    assert_eq!(print["rule"], "print");
    assert_eq!(
        print["limits"]["requestsPerDay"],
        json!({"used": 2, "most": 10})
    );
    let bytes = print["limits"]["bytesPerDay"]["used"].as_u64().unwrap();
    // What was asked counts, too.
    assert!((6001..7000).contains(&bytes), "{shown}");
    let tokens = print["limits"]["tokensPerDay"]["used"].as_u64().unwrap();
    assert!(tokens.abs_diff(bytes / 3) <= 1, "{shown}");
}

#[tokio::test]
async fn places_of_a_peer_are_given_back() {
    let budgets = Budgets::default();
    budgets.set_per_peer(Caps {
        concurrent: Some(1),
        ..Caps::default()
    });
    let (home, _office, _cable, _provider) = world(&budgets).await;
    let slow = json!({"node": "office", "argv": ["sleep", "30"]});
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(home.url("/api/v1/tools/exec"));
    let running = tokio::spawn(request.bearer_auth(&home.launch).json(&slow).send());
    let until = async |status: u16| {
        while run(&home).await.0 != status {}
    };
    tokio::time::timeout(provider::PATIENCE, until(503))
        .await
        .unwrap();
    running.abort();
    tokio::time::timeout(provider::PATIENCE, until(200))
        .await
        .unwrap();
}
