//! What a provider does wrong, and how a client sees it.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};

use clawmatrix::{
    models::lent::{KeyRefresher, LentModels},
    shim::ProviderEntry,
};
use serde_json::Value;

use super::*;
use crate::{local_node::model, provider::Then};

async fn error(response: reqwest::Response) -> (u16, Value, String) {
    let status = response.status().as_u16();
    let route = response.headers()["x-clawmatrix-route"]
        .to_str()
        .unwrap()
        .to_owned();
    let body: Value = response.json().await.unwrap();
    (status, body["error"].clone(), route)
}

#[tokio::test]
async fn a_providers_own_refusal_passes_as_it_is() {
    for place in PLACES {
        for status in [400, 401, 403, 404, 429] {
            let body = "{\"error\":{\"message\":\"no\",\"odd\":1e400}}";
            let script = Script::reply(
                status,
                &[("content-type", "application/json"), ("retry-after", "7")],
                body.as_bytes(),
            );
            let world = World::new(place, vec![script]).await;
            let response = world.ask("").await;
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["retry-after"], "7");
            let route = response.headers()["x-clawmatrix-route"].to_str().unwrap();
            assert!(route.ends_with("error=provider"), "{route}");
            assert_eq!(response.text().await.unwrap(), body);
            assert_eq!(world.provider.requests().len(), 1);
        }
    }
}

/// T88, a 5xx.
#[tokio::test]
async fn a_failing_provider_is_a_bad_gateway_without_its_key() {
    for place in PLACES {
        let long = format!("boom sk-upstream-key {}", "z".repeat(20_000));
        let world = World::new(place, vec![Script::json(503, &long)]).await;
        let (status, error, route) = error(world.ask(",\"stream\":true").await).await;
        assert_eq!(status, 502);
        assert_eq!(error["code"], "upstream_error");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("answered 503: boom [redacted] zz"),
            "{message}"
        );
        assert!(message.len() < 9000);
        assert!(route.ends_with("error=provider"), "{route}");
    }
}

/// T88, a 4xx; what is logged of it passes the redactor, which learns every key at the start.
#[tokio::test]
async fn a_key_that_a_refusal_repeats_is_removed() {
    for place in PLACES {
        let world = World::new(place, vec![Script::json(401, "bad key sk-upstream-key!")]).await;
        let response = world.ask("").await;
        assert_eq!(response.status(), 401);
        assert_eq!(response.text().await.unwrap(), "bad key [redacted]!");
    }
}

#[tokio::test]
async fn garbage_and_silence_before_the_head_are_upstream_errors() {
    for place in PLACES {
        for script in [
            Script::raw("SSH-2.0-OpenSSH\r\n", Then::Close),
            Script::raw("", Then::Close),
            Script::raw("HTTP/1.1 200 OK\r\ncontent-le", Then::Close),
        ] {
            let world = World::new(place, vec![script]).await;
            let (status, error, _) = error(world.ask("").await).await;
            assert_eq!(status, 502);
            assert_eq!(error["code"], "upstream_error");
        }
    }
}

#[tokio::test]
async fn a_provider_that_is_down_is_an_upstream_error() {
    for place in PLACES {
        let world = World::new(place, vec![Script::hang()]).await;
        // A port that was free a moment ago.
        let port = {
            let socket = tokio::net::TcpListener::bind(("127.0.0.1", 0))
                .await
                .unwrap();
            socket.local_addr().unwrap().port()
        };
        let setup = |name| {
            let url = format!("http://127.0.0.1:{port}/v1");
            Setup::new(name).lend("down", &url, "openai-completions")
        };
        let (node, _other, _cable);
        let asked = match place {
            Place::Here => {
                node = Node::start(setup("home")).await;
                &node
            }
            Place::There => {
                node = Node::start(Setup::new("home")).await;
                _other = Node::start(setup("office")).await;
                _cable = local_node::join(&node, &_other, 1.0);
                &node
            }
        };
        let response = post(asked, "/v1/chat/completions", "{\"model\":\"down\"}").await;
        let (status, error, _) = error(response).await;
        assert_eq!((status, &error["code"]), (502, &"upstream_error".into()));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("the provider of model `down` cannot be reached"));
        assert!(
            !message.contains(&port.to_string()),
            "no addresses: {message}"
        );
        drop(world);
    }
}

#[tokio::test]
async fn a_cut_stream_ends_with_an_error_event() {
    for place in PLACES {
        for (piece, torn) in [
            (&b"data: {\"a\":1}\n\n"[..], false),
            (&b"data: {\"a\":"[..], true),
        ] {
            let world = World::new(place, vec![Script::events(&[piece], Then::Close)]).await;
            let response = world.ask(",\"stream\":true").await;
            assert_eq!(response.status(), 200);
            // It ends properly: an SDK must be able to read the event.
            let text = response.text().await.unwrap();
            let rest = text
                .strip_prefix(std::str::from_utf8(piece).unwrap())
                .unwrap();
            let rest = if torn {
                rest.strip_prefix("\n\n").unwrap()
            } else {
                rest
            };
            let event = rest
                .strip_prefix("data: ")
                .unwrap()
                .strip_suffix("\n\n")
                .unwrap();
            let event: Value = serde_json::from_str(event).unwrap();
            assert_eq!(event["error"]["code"], "upstream_error", "{place:?}");
            assert!(!text.contains("[DONE]"));
            assert_eq!(world.provider.requests().len(), 1, "no second attempt");
        }
    }
}

#[tokio::test]
async fn a_cut_plain_body_is_cut_at_the_client_too() {
    for place in PLACES {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{\"half\":";
        let world = World::new(place, vec![Script::raw(half, Then::Close)]).await;
        let response = world.ask("").await;
        assert!(response.bytes().await.is_err(), "{place:?}");
    }
}

#[derive(Debug)]
struct Shim(
    Mutex<Option<LentModels>>,
    BTreeMap<String, ProviderEntry>,
    Mutex<usize>,
);

#[derive(Debug)]
struct Asks(Arc<Shim>);

impl KeyRefresher for Asks {
    fn refresh(&self, provider: String) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        assert_eq!(provider, "corp");
        *self.0.2.lock().unwrap() += 1;
        let lent = self.0.0.lock().unwrap().clone().unwrap();
        lent.set_providers(&self.0.1);
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test]
async fn a_refused_key_is_asked_for_afresh_once() {
    let provider = FakeProvider::start(vec![
        Script::json(401, "{\"error\":\"old key\"}"),
        Script::json(200, "{\"ok\":true}"),
        Script::json(401, "{\"error\":\"again\"}"),
    ])
    .await;
    let entry = |key: &str| {
        let entry = ProviderEntry {
            base_url: provider.url(),
            api: "openai-completions".into(),
            headers: BTreeMap::new(),
            api_key: Some(key.into()),
            models: vec![],
        };
        BTreeMap::from([("corp".to_owned(), entry)])
    };
    let shim = Arc::new(Shim(Mutex::new(None), entry("sk-new-key"), Mutex::new(0)));
    let mut lent = model("m");
    lent.provider = Some("corp".into());
    let mut setup = Setup::new("office");
    setup.models.push(lent);
    setup.providers = entry("sk-old-key");
    setup.refresher = Some(Arc::new(Asks(shim.clone())));
    let office = Node::start(setup).await;
    *shim.0.lock().unwrap() = Some(office.lent.clone());
    let home = Node::start(Setup::new("home")).await;
    let _cable = local_node::join(&home, &office, 1.0);

    let response = post(&home, "/v1/chat/completions", "{\"model\":\"office/m\"}").await;
    assert_eq!(response.text().await.unwrap(), "{\"ok\":true}");
    let keys: Vec<_> = provider
        .requests()
        .iter()
        .map(|r| r.header("authorization").unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["Bearer sk-old-key", "Bearer sk-new-key"]);
    // Refused again although the key is the newest: that is the answer.
    let response = post(&home, "/v1/chat/completions", "{\"model\":\"office/m\"}").await;
    assert_eq!(response.status(), 401);
    assert_eq!(provider.requests().len(), 3);
    assert_eq!(*shim.2.lock().unwrap(), 1);
}

#[tokio::test]
async fn openclaw_gets_404_where_its_fallback_should_take_over() {
    let home = Node::start(Setup::new("home")).await;
    let office =
        Node::start(Setup::new("office").lend("m", "http://127.0.0.1:1/v1", "openai-completions"))
            .await;
    home.see(&office, clawmatrix::mesh::view::Reach::Unreachable, 1.0);
    let ask = async |token: &str, path: &str| {
        error(post_as(&home, token, path, "{\"model\":\"m\"}").await).await
    };
    let path = "/nodes/office/v1/chat/completions";
    let (status, body, route) = ask(&home.openclaw, path).await;
    assert_eq!((status, &body["code"]), (404, &"no_route".into()));
    assert!(
        route.ends_with("error=mesh") && route.contains("node=office"),
        "{route}"
    );
    let response = post(&home, path, "{\"model\":\"m\"}").await;
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(response.status(), 503);
    // A failing provider is no such case.
    drop(office);
    let (status, body, _) = ask(&home.launch, "/nodes/nobody/v1/chat/completions").await;
    assert_eq!((status, &body["code"]), (404, &"node_not_found".into()));
}

#[tokio::test]
async fn a_model_that_is_not_lent_to_the_caller_does_not_exist() {
    let world = World::new(Place::There, vec![Script::json(200, "{}")]).await;
    let body = "{\"model\":\"office/other\"}";
    let (status, body, route) = error(post(&world.home, "/v1/chat/completions", body).await).await;
    assert_eq!((status, &body["code"]), (404, &"model_not_found".into()));
    assert!(route.ends_with("error=mesh"), "{route}");
    assert!(world.provider.requests().is_empty());
}

#[tokio::test]
async fn requests_that_cannot_be_routed_are_refused_here() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    for body in [
        "",
        "[]",
        "{}",
        "{\"model\":1}",
        "{\"model\":\"home/m\",\"model\":\"home/m\"}",
    ] {
        let response = post(&world.home, "/v1/chat/completions", body).await;
        let (status, error, _) = error(response).await;
        assert_eq!(
            (status, &error["code"]),
            (400, &"invalid_request".into()),
            "{body}"
        );
    }
    assert!(world.provider.requests().is_empty());
}

#[tokio::test]
async fn a_limited_model_refuses_more_than_it_may_serve() {
    let provider = FakeProvider::start(vec![Script::hang()]).await;
    let mut setup = Setup::new("home").lend("m", &provider.url(), "openai-completions");
    setup.models[0].max_concurrent = Some(1);
    let home = Node::start(setup).await;
    let mut stream = connect(&home).await;
    let request = raw_post(&home, "/v1/chat/completions", "{\"model\":\"m\"}");
    stream.write_all(request.as_bytes()).await.unwrap();
    provider.wait_requests(1).await;
    let response = post(&home, "/v1/chat/completions", "{\"model\":\"m\"}").await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, body, _) = error(response).await;
    assert_eq!((status, &body["code"]), (503, &"overloaded".into()));
}
