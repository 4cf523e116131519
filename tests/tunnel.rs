//! The model tunnel and the local API over real sockets: scripted providers, one node or two.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a helper that fails is a failed test; not every helper is used by every test binary"
)]

#[path = "support/local_node.rs"]
mod local_node;
#[path = "support/provider.rs"]
mod provider;

#[path = "tunnel/cancel.rs"]
mod cancel;
#[path = "tunnel/failover.rs"]
mod failover;
#[path = "tunnel/failures.rs"]
mod failures;
#[path = "tunnel/surface.rs"]
mod surface;
#[path = "tunnel/through.rs"]
mod through;
#[path = "tunnel/tls.rs"]
mod tls;

use std::time::Duration;

use local_node::{Cable, Node, Setup};
use provider::{FakeProvider, PATIENCE, Script};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Where the provider stands: beside the asking node, or behind another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Here,
    There,
}

const PLACES: [Place; 2] = [Place::Here, Place::There];

/// A provider, the node a client asks, and perhaps the node that lends.
struct World {
    provider: FakeProvider,
    home: Node,
    office: Option<(Node, Cable)>,
    /// The model as the client names it.
    model: &'static str,
}

impl World {
    async fn new(place: Place, scripts: Vec<Script>) -> Self {
        Self::with_api(place, "openai-completions", scripts).await
    }

    async fn with_api(place: Place, api: &str, scripts: Vec<Script>) -> Self {
        let provider = FakeProvider::start(scripts).await;
        let lend = |name| Setup::new(name).lend("m", &provider.url(), api);
        match place {
            Place::Here => Self {
                home: Node::start(lend("home")).await,
                provider,
                office: None,
                model: "home/m",
            },
            Place::There => {
                let office = Node::start(lend("office")).await;
                let home = Node::start(Setup::new("home")).await;
                let cable = local_node::join(&home, &office, 1.0);
                Self {
                    home,
                    provider,
                    office: Some((office, cable)),
                    model: "office/m",
                }
            }
        }
    }

    /// A request for the model with `extra` fields.
    fn body(&self, extra: &str) -> String {
        format!("{{\"model\":\"{}\"{extra}}}", self.model)
    }

    /// The node that lends.
    fn lender(&self) -> &Node {
        self.office
            .as_ref()
            .map_or(&self.home, |(office, _)| office)
    }

    async fn ask(&self, extra: &str) -> reqwest::Response {
        post(&self.home, "/v1/chat/completions", self.body(extra)).await
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn post(node: &Node, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
    post_as(node, &node.launch, path, body).await
}

async fn post_as(
    node: &Node,
    token: &str,
    path: &str,
    body: impl Into<reqwest::Body>,
) -> reqwest::Response {
    let request = client()
        .post(node.url(path))
        .bearer_auth(token)
        .header("content-type", "application/json")
        .body(body);
    timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

async fn get(node: &Node, path: &str) -> reqwest::Response {
    let request = client().get(node.url(path)).bearer_auth(&node.launch);
    timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

/// Sends raw bytes and reads until the node closes.
async fn raw(node: &Node, request: &str) -> String {
    let mut stream = connect(node).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the node closes")
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn connect(node: &Node) -> TcpStream {
    TcpStream::connect(("127.0.0.1", node.port)).await.unwrap()
}

/// A raw request with a body and the launch token.
fn raw_post(node: &Node, path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        node.port,
        node.launch,
        body.len()
    )
}

/// Waits for a condition that nothing announces.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}
