//! What goes through the tunnel arrives as it was.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::*;
use crate::provider::Then;

const SSE: &[&[u8]] = &[
    b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n",
    b"data: {\"choices\":[{\"delta\":{\"content\":\"Gr\xc3\xbc",
    b"\xc3\x9fe\"}}],\"vendor\":1e400}\n\n: comment\n\n",
    b"data: {\"choices\":[],\"usage\":{\"total_tokens\":7}}\n\ndata: [DONE]\n\n",
];

#[tokio::test]
async fn bodies_cross_byte_for_byte_but_for_the_model() {
    for place in PLACES {
        let answer = "{ \"id\" : \"x\",\"n\":1e400, \"text\":\"\\u00fc\u{fc}\" }\n";
        let world = World::new(place, vec![Script::json(200, answer)]).await;
        let extra = ",\n \"messages\":[{\"role\":\"user\",\"content\":\"\\\"model\\\": 1e400\"}],\"tools\":[{}], \"seed\":12345678901234567890,\"model_\":null,\"stream\":false";
        let response = world.ask(extra).await;
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers()["content-length"],
            answer.len().to_string()
        );
        assert!(response.headers().contains_key("x-request-id"));
        let (node, path) = match place {
            Place::Here => ("home", "local"),
            Place::There => ("office", "direct"),
        };
        assert_eq!(
            response.headers()["x-clawmatrix-route"],
            format!("node={node}; path={path}; attempts=1")
        );
        assert_eq!(response.text().await.unwrap(), answer, "{place:?}");
        let sent = &world.provider.requests()[0];
        assert_eq!(
            String::from_utf8_lossy(&sent.body),
            format!("{{\"model\":\"up/stream\"{extra}}}")
        );
        assert_eq!(sent.header("authorization"), Some("Bearer sk-upstream-key"));
        assert_eq!(sent.path(), "/v1/chat/completions");
        let told = world.lender().lent.load().unwrap().ttfb_ms;
        assert_eq!(told, 0, "a whole answer tells nothing of how it begins");
    }
}

#[tokio::test]
async fn event_streams_cross_byte_for_byte_as_they_come() {
    for place in PLACES {
        let gate = Arc::new(Semaphore::new(1));
        let script = Script::events(SSE, Then::KeepAlive).gated(&gate);
        let world = World::new(place, vec![script]).await;
        let mut response = world.ask(",\"stream\":true").await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-vendor"], "yes");
        assert!(!response.headers().contains_key("set-cookie"));
        let mut got = Vec::new();
        for (index, piece) in SSE.iter().enumerate() {
            // The provider sends the next piece only now, so nothing waits for company.
            gate.add_permits(1);
            let expected: usize = SSE[..=index].iter().map(|p| p.len()).sum();
            while got.len() < expected {
                let chunk = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
                got.extend_from_slice(&chunk.expect("more"));
            }
            assert!(got.ends_with(piece), "{place:?}");
        }
        gate.add_permits(1);
        assert_eq!(
            timeout(PATIENCE, response.chunk()).await.unwrap().unwrap(),
            None
        );
        assert_eq!(got, SSE.concat());
        // 6.1: a moment at least.
        assert!(world.lender().lent.load().unwrap().ttfb_ms > 0, "{place:?}");
    }
}

#[tokio::test]
async fn every_route_reaches_the_same_path_at_the_provider() {
    for place in PLACES {
        for (route, api, path) in [
            (
                "chat/completions",
                "openai-completions",
                "/v1/chat/completions",
            ),
            ("responses", "openai-responses", "/v1/responses"),
            ("embeddings", "openai-completions", "/v1/embeddings"),
            ("completions", "openai-completions", "/v1/completions"),
            ("messages", "anthropic-messages", "/v1/messages"),
        ] {
            let world = World::with_api(place, api, vec![Script::json(200, "{}")]).await;
            let response = post(&world.home, &format!("/v1/{route}"), world.body("")).await;
            assert_eq!(response.status(), 200, "{route}");
            let node = match place {
                Place::Here => "home",
                Place::There => "office",
            };
            // The same on the node's own address, where the name stands alone.
            let path_of_node = format!("/nodes/{node}/v1/{route}");
            let response = post(&world.home, &path_of_node, "{\"model\":\"m\"}").await;
            assert_eq!(response.status(), 200, "{path_of_node}");
            for sent in world.provider.requests() {
                assert_eq!(sent.path(), path);
                assert_eq!(sent.body, b"{\"model\":\"up/stream\"}");
                let key = match api {
                    "anthropic-messages" => sent.header("x-api-key"),
                    _ => sent.header("authorization"),
                };
                assert!(key.unwrap().ends_with("sk-upstream-key"));
            }
        }
    }
}

#[tokio::test]
async fn large_bodies_cross_both_ways() {
    for place in PLACES {
        // Bytes that repeat nowhere near a chunk's length, so that a swap would show.
        let noise: String = (0_u32..).map(|i| format!("{i:x}.")).take(900_000).collect();
        let answer = format!("{{\"echo\":\"{noise}\"}}");
        let world = World::new(place, vec![Script::json(200, &answer)]).await;
        let filler = "x".repeat(31 * 1024 * 1024 - noise.len());
        let extra = format!(",\"image\":\"{noise}{filler}\"");
        let response = world.ask(&extra).await;
        assert_eq!(response.status(), 200, "{place:?}");
        let got = timeout(PATIENCE, response.bytes()).await.unwrap().unwrap();
        assert!(got == answer.as_bytes(), "{place:?}");
        let sent = &world.provider.requests()[0].body;
        assert!(*sent == format!("{{\"model\":\"up/stream\"{extra}}}").into_bytes());
    }
}

#[tokio::test]
async fn a_large_event_in_small_pieces_arrives_whole() {
    for place in PLACES {
        let event = format!(
            "data: {{\"choices\":[],\"big\":\"{}\"}}\n\n",
            "y".repeat(4 * 1024 * 1024)
        );
        let pieces: Vec<&[u8]> = event.as_bytes().chunks(1460).collect();
        let world = World::new(place, vec![Script::events(&pieces, Then::KeepAlive)]).await;
        let response = world.ask(",\"stream\":true").await;
        let got = timeout(PATIENCE, response.bytes()).await.unwrap().unwrap();
        assert!(got == event.as_bytes(), "{place:?}");
    }
}

#[tokio::test]
async fn vendor_headers_cross_and_credentials_do_not() {
    for place in PLACES {
        let script = Script::reply(
            200,
            &[
                ("content-type", "application/json"),
                ("openai-processing-ms", "12"),
                ("x-ratelimit-remaining-tokens", "3"),
                ("x-request-id", "req_upstream"),
                ("server", "secret-server"),
                ("set-cookie", "a=b"),
                ("content-encoding", "gzip"),
            ],
            b"not really gzip",
        );
        let world = World::new(place, vec![script]).await;
        let response = client()
            .post(world.home.url("/v1/chat/completions"))
            .bearer_auth(&world.home.launch)
            .header("content-type", "application/json")
            .header("openai-organization", "org")
            .header("x-stainless-lang", "rust")
            .header("cookie", "a=b")
            .header("x-forwarded-for", "10.0.0.1")
            .header("idempotency-key", "once")
            .body(world.body(""))
            .send()
            .await
            .unwrap();
        let headers = response.headers();
        assert_eq!(headers["openai-processing-ms"], "12");
        assert_eq!(headers["x-ratelimit-remaining-tokens"], "3");
        assert_eq!(headers["x-upstream-request-id"], "req_upstream");
        assert_eq!(headers["x-request-id"].len(), 32);
        assert_eq!(headers["content-encoding"], "gzip");
        assert!(!headers.contains_key("server") && !headers.contains_key("set-cookie"));
        // Nothing is unpacked on the way.
        assert_eq!(response.bytes().await.unwrap(), "not really gzip");
        let sent = &world.provider.requests()[0];
        assert_eq!(sent.header("openai-organization"), Some("org"));
        assert_eq!(sent.header("x-stainless-lang"), Some("rust"));
        for name in [
            "cookie",
            "x-forwarded-for",
            "accept-encoding",
            "referer",
            "connection",
        ] {
            assert_eq!(sent.header(name), None, "{name}");
        }
        assert!(!sent.head.contains(&world.home.launch));
    }
}

#[tokio::test]
async fn redirects_are_passed_on_not_followed() {
    for place in PLACES {
        let script = Script::reply(307, &[("location", "http://127.0.0.1:1/elsewhere")], b"");
        let world = World::new(place, vec![script]).await;
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        let response = client
            .post(world.home.url("/v1/chat/completions"))
            .bearer_auth(&world.home.launch)
            .header("content-type", "application/json")
            .body(world.body(""))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 307);
        assert_eq!(
            response.headers()["location"],
            "http://127.0.0.1:1/elsewhere"
        );
        assert_eq!(world.provider.requests().len(), 1);
    }
}

#[tokio::test]
async fn connections_to_the_provider_are_kept() {
    for place in PLACES {
        let world = World::new(place, vec![Script::json(200, "{}")]).await;
        for _ in 0..5 {
            assert_eq!(world.ask("").await.text().await.unwrap(), "{}");
        }
        assert_eq!(world.provider.connections(), 1, "{place:?}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced() {
    // It closes after its answer without a word, as servers do after a while.
    let mut short = Script::json(200, "{}");
    short.then = Then::Close;
    let world = World::new(Place::Here, vec![short]).await;
    for _ in 0..5 {
        assert_eq!(world.ask("").await.status(), 200);
    }
    assert_eq!(world.provider.requests().len(), 5);
}

#[tokio::test]
async fn a_described_model_is_told_its_name() {
    let provider = FakeProvider::start(vec![Script::json(200, "{}")]).await;
    let mut setup = Setup::new("home").lend("m", &provider.url(), "openai-completions");
    setup.proxy_models.push(clawmatrix::config::ProxyModel {
        id: "m".into(),
        node_id: None,
        description: Some("Big one".into()),
    });
    let home = Node::start(setup).await;
    let body = "{\"messages\":[{\"role\":\"system\",\"content\":\"hi\"}],\"model\":\"m\"}";
    assert_eq!(
        post(&home, "/v1/chat/completions", body).await.status(),
        200
    );
    assert_eq!(post(&home, "/v1/responses", body).await.status(), 200);
    let sent = provider.requests();
    assert_eq!(
        String::from_utf8_lossy(&sent[0].body),
        "{\"messages\":[{\"role\":\"system\",\"content\":\"[Model: Big one]\\n\\nhi\"}],\"model\":\"up/stream\"}"
    );
    // Other routes pass untouched.
    assert!(!String::from_utf8_lossy(&sent[1].body).contains("Big one"));
}

#[tokio::test]
async fn a_repeated_idempotency_key_runs_once() {
    for place in PLACES {
        let scripts = vec![
            Script::events(SSE, Then::KeepAlive),
            Script::json(200, "{\"second\":true}"),
        ];
        let world = World::new(place, scripts).await;
        let ask = async |extra: &str| {
            client()
                .post(world.home.url("/v1/chat/completions"))
                .bearer_auth(&world.home.launch)
                .header("content-type", "application/json")
                .header("idempotency-key", "once")
                .body(world.body(extra))
                .send()
                .await
                .unwrap()
        };
        for _ in 0..2 {
            let response = ask(",\"stream\":true").await;
            assert_eq!(response.headers()["content-type"], "text/event-stream");
            assert_eq!(response.bytes().await.unwrap(), SSE.concat(), "{place:?}");
        }
        assert_eq!(world.provider.requests().len(), 1);
        let other = ask(",\"stream\":false").await;
        assert_eq!(other.status(), 422);
        let body: serde_json::Value = other.json().await.unwrap();
        assert_eq!(body["error"]["code"], "idempotency_mismatch");
        assert_eq!(world.provider.requests().len(), 1);
    }
}
