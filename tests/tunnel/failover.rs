//! A bare model id goes to the best node, and to the next one while nothing was delivered.

use super::*;
use clawmatrix::{mesh::view::Reach, trust::Level};

use crate::provider::Then;

struct Two {
    near: FakeProvider,
    far: FakeProvider,
    home: Node,
    _others: (Node, Node, Cable, Cable),
}

/// Two nodes lend the same model; `near` is asked first.
async fn two(near: Vec<Script>, far: Vec<Script>) -> Two {
    let (near, far) = (
        FakeProvider::start(near).await,
        FakeProvider::start(far).await,
    );
    let lend = |name, provider: &FakeProvider| {
        Setup::new(name).lend("m", &provider.url(), "openai-completions")
    };
    let office = Node::start(lend("office", &near)).await;
    let lab = Node::start(lend("lab", &far)).await;
    let home = Node::start(Setup::new("home")).await;
    let cables = (
        local_node::join(&home, &office, 1.0),
        local_node::join(&home, &lab, 9.0),
    );
    Two {
        near,
        far,
        home,
        _others: (office, lab, cables.0, cables.1),
    }
}

impl Two {
    async fn ask(&self) -> reqwest::Response {
        post(
            &self.home,
            "/v1/chat/completions",
            "{\"model\":\"m\",\"stream\":true}",
        )
        .await
    }
}

const ROLE: &[u8] =
    b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const WORD: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";

fn good() -> Script {
    Script::events(&[ROLE, WORD, b"data: [DONE]\n\n"], Then::KeepAlive)
}

#[tokio::test]
async fn the_nearest_answers_when_it_can() {
    let two = two(vec![good()], vec![good()]).await;
    let response = two.ask().await;
    assert_eq!(
        response.headers()["x-clawmatrix-route"],
        "node=office; path=direct; attempts=1"
    );
    assert_eq!(
        response.bytes().await.unwrap(),
        [ROLE, WORD, b"data: [DONE]\n\n"].concat()
    );
    assert!(two.far.requests().is_empty());
}

/// Protocol 7.4: the session that the request opens pins a node that was only heard of.
#[tokio::test]
async fn a_node_only_heard_of_answers_when_it_must() {
    let two = two(vec![good(), good()], vec![good()]).await;
    let (office, ..) = &two._others;
    two.home.see_at(office, Reach::Direct, 1.0, Level::Seen);
    let route = |response: reqwest::Response| {
        let route = response.headers()["x-clawmatrix-route"].to_str().unwrap();
        (response.status().as_u16(), route.to_owned())
    };
    let first = route(two.ask().await);
    assert_eq!(first, (200, "node=lab; path=direct; attempts=1".into()));
    let body = "{\"model\":\"office/m\",\"stream\":true}";
    let named = route(post(&two.home, "/v1/chat/completions", body).await);
    assert_eq!(named, (200, "node=office; path=direct; attempts=1".into()));
    two.home.lose(&two._others.1.name);
    let alone = route(two.ask().await);
    assert_eq!(alone, (200, "node=office; path=direct; attempts=1".into()));
}

/// T80.
#[tokio::test]
async fn before_the_commit_point_another_node_takes_over() {
    for broken in [
        Script::json(500, "{}"),
        Script::json(429, "{}"),
        Script::raw("", Then::Close),
        Script::events(&[], Then::Close),
        Script::events(&[ROLE], Then::Close),
    ] {
        let two = two(vec![broken], vec![good()]).await;
        let response = two.ask().await;
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers()["x-clawmatrix-route"],
            "node=lab; path=direct; attempts=2"
        );
        // Nothing of the first attempt is left in it.
        assert_eq!(
            response.bytes().await.unwrap(),
            [ROLE, WORD, b"data: [DONE]\n\n"].concat()
        );
        assert_eq!(two.near.requests().len(), 1);
    }
}

/// T81.
#[tokio::test]
async fn after_the_commit_point_nobody_is_asked_again() {
    let broken = Script::events(&[ROLE, WORD], Then::Close);
    let two = two(vec![broken], vec![good()]).await;
    let text = two.ask().await.text().await.unwrap();
    assert!(text.starts_with(std::str::from_utf8(&[ROLE, WORD].concat()).unwrap()));
    assert!(text.contains("\"code\":\"upstream_error\"") && !text.contains("[DONE]"));
    assert!(two.far.requests().is_empty());
}

#[tokio::test]
async fn a_request_that_is_wrong_is_not_repeated() {
    let two = two(vec![Script::json(400, "{}")], vec![good()]).await;
    assert_eq!(two.ask().await.status(), 400);
    assert!(two.far.requests().is_empty());
}

#[tokio::test]
async fn when_all_refuse_the_last_refusal_counts() {
    let two = two(
        vec![Script::json(500, "{}")],
        vec![Script::json(429, "{\"slow\":1}")],
    )
    .await;
    let response = two.ask().await;
    assert_eq!(response.status(), 429);
    assert_eq!(
        response.headers()["x-clawmatrix-route"],
        "node=lab; path=direct; attempts=2; error=provider"
    );
    assert_eq!(response.text().await.unwrap(), "{\"slow\":1}");
}

#[tokio::test]
async fn a_named_node_never_fails_over() {
    let two = two(vec![Script::json(500, "{}")], vec![good()]).await;
    let body = "{\"model\":\"office/m\",\"stream\":true}";
    assert_eq!(
        post(&two.home, "/v1/chat/completions", body).await.status(),
        502
    );
    assert!(two.far.requests().is_empty());
}
