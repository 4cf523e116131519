//! A client that goes away stops the provider, whatever the request is doing.

use super::*;
use crate::provider::Then;

/// Sends `request`, waits until the provider has it, goes away.
async fn leave_after(world: &World, request: &str) {
    let mut stream = connect(&world.home).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    world.provider.wait_requests(1).await;
    drop(stream);
    let since = tokio::time::Instant::now();
    world.provider.wait_gone(1).await;
    assert!(
        since.elapsed() < Duration::from_millis(200),
        "{:?}",
        since.elapsed()
    );
    assert_idle(world).await;
}

/// Nothing is left behind at either node.
async fn assert_idle(world: &World) {
    let lent = match &world.office {
        Some((office, _)) => &office.lent,
        None => &world.home.lent,
    };
    let model = lent.find("m", None).unwrap().model;
    eventually("the place is given back", || model.active() == 0).await;
}

#[tokio::test]
async fn before_the_head_the_provider_is_stopped() {
    for place in PLACES {
        for extra in [",\"stream\":true", ",\"stream\":false"] {
            let world = World::new(place, vec![Script::hang()]).await;
            let request = raw_post(&world.home, "/v1/chat/completions", &world.body(extra));
            leave_after(&world, &request).await;
        }
    }
}

#[tokio::test]
async fn in_a_stream_the_provider_is_stopped() {
    for place in PLACES {
        let script = Script::events(&[b"data: {}\n\n"], Then::Hang);
        let world = World::new(place, vec![script]).await;
        let request = raw_post(
            &world.home,
            "/v1/chat/completions",
            &world.body(",\"stream\":true"),
        );
        let mut stream = connect(&world.home).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.windows(8).any(|w| w == b"data: {}") {
            timeout(PATIENCE, stream.read_buf(&mut got))
                .await
                .unwrap()
                .unwrap();
        }
        drop(stream);
        world.provider.wait_gone(1).await;
        assert_idle(&world).await;
    }
}

#[tokio::test]
async fn in_a_plain_body_the_provider_is_stopped() {
    for place in PLACES {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{\"half\":";
        let world = World::new(place, vec![Script::raw(head, Then::Hang)]).await;
        let request = raw_post(&world.home, "/v1/embeddings", &world.body(""));
        leave_after(&world, &request).await;
    }
}

#[tokio::test]
async fn bytes_of_a_next_request_do_not_hide_a_close() {
    for place in PLACES {
        let world = World::new(place, vec![Script::hang()]).await;
        let mut request = raw_post(&world.home, "/v1/chat/completions", &world.body(""));
        request.push_str("GET /v1/models HTTP/1.1\r\nhost: x\r\n");
        leave_after(&world, &request).await;
    }
}

#[tokio::test]
async fn a_stalled_upload_does_not_hide_a_close() {
    let world = World::new(Place::Here, vec![Script::hang()]).await;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{{\"model\":",
        world.home.port, world.home.launch
    );
    let mut stream = connect(&world.home).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let grant = world.home.tokens.check(&world.home.launch).unwrap();
    eventually("the request is under way", || grant.in_flight() == 1).await;
    drop(stream);
    eventually("the request is dropped", || grant.in_flight() == 0).await;
    assert!(world.provider.requests().is_empty());
}

#[tokio::test]
async fn a_lost_node_ends_the_stream_with_an_error_event() {
    let script = Script::events(&[b"data: {\"a\":1}\n\n"], Then::Hang);
    let world = World::new(Place::There, vec![script]).await;
    let mut response = world.ask(",\"stream\":true").await;
    let first = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
    assert_eq!(first.unwrap(), "data: {\"a\":1}\n\n");
    let (office, cable) = world.office.as_ref().unwrap();
    cable.pull();
    // The lending node stops at the latest when the session is lost for good.
    let rest = timeout(Duration::from_secs(45), response.bytes())
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8_lossy(&rest);
    assert!(text.starts_with("data: {\"error\":{"), "{text}");
    assert!(
        text.contains("\"code\":\"stream_lost\"") && !text.contains("[DONE]"),
        "{text}"
    );
    let model = office.lent.find("m", None).unwrap().model;
    timeout(Duration::from_secs(45), world.provider.wait_gone(1))
        .await
        .unwrap();
    eventually("the place is given back", || model.active() == 0).await;
}
