//! The local API as a client, a stranger and a web page see it.

use serde_json::Value;

use super::*;

fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(0)
}

/// A raw request with these header lines.
fn request(line: &str, headers: &[String]) -> String {
    let mut out = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    for header in headers {
        out.push_str(header);
        out.push_str("\r\n");
    }
    out.push_str("\r\n");
    out
}

#[tokio::test]
async fn only_our_own_host_names_are_answered() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let auth = format!("authorization: Bearer {}", world.home.launch);
    let port = world.home.port;
    for (host, expected) in [
        (format!("host: 127.0.0.1:{port}"), 200),
        (format!("host: localhost:{port}"), 200),
        (format!("host: [::1]:{port}"), 200),
        ("host: evil.example".into(), 421),
        (format!("host: 127.0.0.1.nip.example:{port}"), 421),
        ("x: y".into(), 421),
    ] {
        let answer = raw(
            &world.home,
            &request("GET /v1/models", &[host.clone(), auth.clone()]),
        )
        .await;
        assert_eq!(status(&answer), expected, "{host}");
    }
}

#[tokio::test]
async fn web_pages_get_nothing_and_cost_nothing() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let host = format!("host: 127.0.0.1:{}", world.home.port);
    let auth = format!("authorization: Bearer {}", world.home.launch);
    for (line, header, expected) in [
        ("GET /v1/models", "origin: http://evil", 403),
        ("GET /v1/models", "origin: null", 403),
        ("GET /v1/models", "sec-fetch-site: cross-site", 403),
        ("GET /v1/models", "sec-fetch-site: same-origin", 403),
        ("GET /v1/models", "sec-fetch-mode: cors", 200),
        (
            "OPTIONS /v1/models",
            "access-control-request-method: POST",
            403,
        ),
        ("POST /v1/chat/completions", "content-type: text/plain", 415),
        (
            "POST /v1/chat/completions",
            "content-type: application/x-www-form-urlencoded",
            415,
        ),
        (
            "POST /v1/chat/completions",
            "content-type: multipart/form-data; boundary=x",
            415,
        ),
        ("POST /v1/chat/completions", "x: no content type", 415),
        (
            "GET /api/v1/status",
            "upgrade: websocket\r\norigin: http://evil",
            403,
        ),
    ] {
        let headers = [host.clone(), auth.clone(), header.to_owned()];
        let answer = raw(&world.home, &request(line, &headers)).await;
        assert_eq!(status(&answer), expected, "{line} {header}");
        assert!(!answer.to_ascii_lowercase().contains("access-control-allow"));
    }
    assert!(world.provider.requests().is_empty());
}

/// T112, but for the time of a refusal.
#[tokio::test]
async fn a_token_is_needed_and_only_in_its_header() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let home = &world.home;
    for path in [
        "/v1/models",
        "/v1/models/x",
        "/api/v1/status",
        "/metrics",
        "/nothing",
    ] {
        let response = client().get(home.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 401, "{path}");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        assert_eq!(
            response.headers()["x-clawmatrix-route"],
            "node=-; path=-; attempts=0; error=mesh"
        );
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], "invalid_api_key");
    }
    let with = |name: &'static str, value: String| {
        client()
            .get(home.url("/v1/models"))
            .header(name, value)
            .send()
    };
    let token = &home.launch;
    for (name, value, expected) in [
        ("authorization", format!("Bearer {token}"), 200),
        ("authorization", format!("bearer {token}"), 200),
        ("x-api-key", token.clone(), 200),
        ("authorization", token.clone(), 401),
        ("authorization", format!("Basic {token}"), 401),
        (
            "authorization",
            format!("Bearer {}", &token[..token.len() - 1]),
            401,
        ),
        ("authorization", format!("Bearer {token}x"), 401),
        ("authorization", "Bearer ".into(), 401),
        ("cookie", format!("token={token}"), 401),
    ] {
        assert_eq!(
            with(name, value).await.unwrap().status(),
            expected,
            "{name}"
        );
    }
    let query = client()
        .get(home.url(&format!("/v1/models?token={token}")))
        .send();
    assert_eq!(query.await.unwrap().status(), 401);
    // The other way of showing a key is for model clients alone.
    let control = client()
        .get(home.url("/api/v1/status"))
        .header("x-api-key", token)
        .send();
    assert_eq!(control.await.unwrap().status(), 401);
}

#[tokio::test]
async fn scopes_bound_what_a_token_may_do() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let home = &world.home;
    let body = "{\"model\":\"home/m\"}";
    let ask = async |method: &str, token: &str, path: &str| {
        let request = match method {
            "GET" => client().get(home.url(path)),
            _ => client()
                .post(home.url(path))
                .header("content-type", "application/json")
                .body(body),
        };
        request
            .bearer_auth(token)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    for (method, path, openclaw, launch) in [
        ("POST", "/v1/chat/completions", 200, 200),
        ("GET", "/v1/models", 200, 200),
        ("GET", "/api/v1/status", 403, 200),
        ("GET", "/api/v1/peers", 403, 200),
        ("GET", "/metrics", 403, 200),
        ("GET", "/api/v1/tokens", 403, 200),
        ("GET", "/api/v1/trust", 403, 200),
        ("POST", "/api/v1/models/forget", 403, 200),
        ("GET", "/api/v1/nothing", 404, 404),
        ("POST", "/api/v1/status", 405, 405),
        ("GET", "/v1/chat/completions", 405, 405),
    ] {
        assert_eq!(
            ask(method, &home.openclaw, path).await,
            openclaw,
            "openclaw {path}"
        );
        assert_eq!(
            ask(method, &home.launch, path).await,
            launch,
            "launch {path}"
        );
    }
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let home = &world.home;
    let made = post(
        home,
        "/api/v1/tokens",
        "{\"name\":\"editor\",\"scopes\":[\"read\"]}",
    )
    .await;
    assert_eq!(made.status(), 200);
    let made: Value = made.json().await.unwrap();
    let token = made["token"].as_str().unwrap().to_owned();
    let status = client()
        .get(home.url("/api/v1/status"))
        .bearer_auth(&token)
        .send()
        .await
        .unwrap();
    assert_eq!(status.status(), 200);
    let refused = post_as(
        home,
        &token,
        "/v1/chat/completions",
        "{\"model\":\"home/m\"}",
    )
    .await;
    assert_eq!(refused.status(), 403);
    for (body, expected) in [
        ("{\"name\":\"editor\"}", 400),
        ("{\"name\":\"a b\"}", 400),
        ("{\"name\":\"x\",\"scopes\":[\"all\"]}", 400),
        ("{\"name\":\"x\",\"scopes\":[\"approve\"]}", 403),
        ("{}", 400),
    ] {
        assert_eq!(
            post(home, "/api/v1/tokens", body).await.status(),
            expected,
            "{body}"
        );
    }
    let list = get(home, "/api/v1/tokens").await.text().await.unwrap();
    assert!(list.contains("editor") && !list.contains(&token), "{list}");
    let delete = client()
        .delete(home.url("/api/v1/tokens"))
        .bearer_auth(&home.launch)
        .body("{\"name\":\"editor\"}");
    assert_eq!(delete.send().await.unwrap().status(), 200);
    let status = client()
        .get(home.url("/api/v1/status"))
        .bearer_auth(&token)
        .send()
        .await
        .unwrap();
    assert_eq!(status.status(), 401);
}

#[tokio::test]
async fn the_model_list_names_each_model_twice() {
    let world = World::new(Place::There, vec![Script::json(200, "{}")]).await;
    let list: Value = get(&world.home, "/v1/models").await.json().await.unwrap();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["office/m", "m"]);
    let first = &list["data"][0];
    assert_eq!(first["owned_by"], "office");
    assert_eq!(first["path"], "direct");
    assert_eq!(first["api"], "openai-completions");
    assert_eq!(first["context_window"], 128_000);
    for path in [
        "/v1/models/office/m",
        "/v1/models/office%2Fm",
        "/v1/models/m",
        "/nodes/office/v1/models/m",
    ] {
        let response = get(&world.home, path).await;
        assert_eq!(response.status(), 200, "{path}");
        let model: Value = response.json().await.unwrap();
        assert_eq!(model["owned_by"], "office");
    }
    for path in [
        "/v1/models/nothing",
        "/nodes/nobody/v1/models",
        "/nodes/a%20b/v1/models",
    ] {
        assert_eq!(get(&world.home, path).await.status(), 404, "{path}");
    }
    let own: Value = get(&world.home, "/nodes/office/v1/models")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(own["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn status_and_peers_have_the_fields_of_the_contract() {
    let world = World::new(Place::There, vec![Script::json(200, "{}")]).await;
    let status: Value = get(&world.home, "/api/v1/status")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(status["nodeId"], "home");
    assert_eq!(status["listen"], false);
    assert_eq!(status["proxyPort"], world.home.port);
    assert_eq!(status["warnings"][0], "be careful");
    assert!(status["uptimeMs"].is_u64() && status["keyId"].is_string());
    assert_eq!(status["peers"][0]["nodeId"], "office");
    let peers: Value = get(&world.home, "/api/v1/peers")
        .await
        .json()
        .await
        .unwrap();
    let peer = &peers[0];
    for (field, value) in [
        ("nodeId", Value::from("office")),
        ("trust", "pinned".into()),
        ("connected", true.into()),
        ("state", "direct".into()),
        ("reachableVia", Value::Null),
        ("latencyMs", 1.0.into()),
        ("load", Value::Null),
        ("lastSeen", Value::Null),
    ] {
        assert_eq!(peer[field], value, "{field}");
    }
    assert_eq!(peer["models"][0]["id"], "m");
    let metrics = get(&world.home, "/metrics").await.text().await.unwrap();
    assert!(
        metrics.contains("clawmatrix_nodes{state=\"direct\"} 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("clawmatrix_local_requests_total{status=\"2xx\"} 2"),
        "{metrics}"
    );
}

#[tokio::test]
async fn probes_need_no_token_and_have_no_body() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    for (path, ready, expected) in [
        ("/healthz", false, 200),
        ("/readyz", false, 503),
        ("/readyz", true, 200),
    ] {
        world.home.api.set_ready(ready);
        let response = client().get(world.home.url(path)).send().await.unwrap();
        assert_eq!(response.status(), expected, "{path}");
        assert_eq!(response.headers()["content-length"], "0");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let limit = 32 * 1024 * 1024;
    let head = |length: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n{length}\r\n\r\n",
            world.home.port, world.home.launch
        )
    };
    // Announced: not one byte of it is needed.
    let mut stream = connect(&world.home).await;
    let announced = head(&format!("content-length: {}", limit + 1));
    stream.write_all(announced.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    timeout(PATIENCE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
    // Unannounced: it ends as soon as it has grown too large, though the client goes on sending.
    let mut stream = connect(&world.home).await;
    let (mut reading, mut writing) = stream.split();
    let upload = async {
        writing
            .write_all(head("transfer-encoding: chunked").as_bytes())
            .await?;
        let chunk = [&b"100000\r\n"[..], &vec![b' '; 0x10_0000], b"\r\n"].concat();
        for _ in 0..40 {
            writing.write_all(&chunk).await?;
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let mut answer = vec![0; 12];
    tokio::select! {
        read = timeout(PATIENCE, reading.read_exact(&mut answer)) => read.unwrap().unwrap(),
        sent = upload => panic!("the upload ended first: {sent:?}"),
    };
    assert_eq!(answer, b"HTTP/1.1 413");
    assert_eq!(world.home.exchange.budget().held(), 0);
}

#[tokio::test]
async fn headers_over_the_limit_are_refused() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let host = format!("host: 127.0.0.1:{}", world.home.port);
    let large = format!("x-large: {}", "a".repeat(17 * 1024));
    let answer = raw(&world.home, &request("GET /healthz", &[host, large])).await;
    assert_eq!(status(&answer), 431);
}

#[tokio::test]
async fn an_unfinished_head_is_closed_after_five_seconds() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let since = tokio::time::Instant::now();
    let answer = raw(&world.home, "GET /healthz HTTP/1.1\r\nhost:").await;
    assert_eq!(answer, "");
    assert!(since.elapsed() >= Duration::from_secs(5));
    // A connection that has answered may rest longer; it still serves.
}

#[tokio::test]
async fn a_kept_connection_serves_many_requests() {
    let world = World::new(Place::Here, vec![Script::json(200, "{}")]).await;
    let mut stream = connect(&world.home).await;
    for _ in 0..3 {
        let request = raw_post(&world.home, "/v1/chat/completions", "{\"model\":\"m\"}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n{}") {
            let read = timeout(PATIENCE, stream.read_buf(&mut got))
                .await
                .unwrap()
                .unwrap();
            assert!(read > 0, "closed");
        }
    }
}

#[tokio::test]
async fn a_drain_lets_requests_finish() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(2));
    let script = Script::events(
        &[b"data: 1\n\n", b"data: 2\n\n"],
        crate::provider::Then::KeepAlive,
    );
    let world = World::new(Place::Here, vec![script.gated(&gate)]).await;
    let mut response = world.ask(",\"stream\":true").await;
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 1\n\n");
    world.home.api.drain();
    gate.add_permits(2);
    assert_eq!(response.bytes().await.unwrap(), "data: 2\n\n");
    eventually("no new connection", || {
        std::net::TcpStream::connect(("127.0.0.1", world.home.port)).is_err()
    })
    .await;
}
