//! `clawmatrix status`: this node and its peers.

use serde::Deserialize;
use serde_json::Value;

use super::{
    Context,
    client::{Client, block_on},
    error::CliError,
    output::{self, Paint, clean},
};

/// `GET /api/v1/status` (contract 3), as far as it is shown. Unknown keys are left alone.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    node_id: String,
    key_id: String,
    listen: Value,
    listen_tls: Option<String>,
    proxy_port: u16,
    agents: Vec<Named>,
    models: Vec<Named>,
    tags: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) peers: Vec<Peer>,
}

/// An agent or a model; the text alone, or an object with `id`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Named {
    Text(String),
    Object {
        id: String,
        #[serde(default)]
        description: String,
    },
}

impl Named {
    fn id(&self) -> String {
        match self {
            Self::Text(id) | Self::Object { id, .. } => clean(id),
        }
    }

    fn described(&self) -> String {
        match self {
            Self::Object { description, .. } if !description.is_empty() => {
                format!("{} ({})", self.id(), clean(description))
            }
            _ => self.id(),
        }
    }
}

/// One peer, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Peer {
    pub(super) node_id: String,
    pub(super) connected: bool,
    reachable_via: Option<String>,
    link: Option<Link>,
    latency_ms: Option<f64>,
    agents: Vec<Named>,
    models: Vec<Named>,
    tags: Vec<String>,
    /// Why it is not reached.
    pub(super) problem: Option<String>,
}

/// What a link of ours runs over, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Link {
    tls: String,
    dialed: bool,
    network: String,
    address: String,
    proxy: bool,
    #[serde(default)]
    advertised: bool,
}

impl Link {
    /// `dialed cloud.example.com:443, public, tls`.
    fn described(&self) -> String {
        let who = if self.dialed {
            "dialed"
        } else {
            "accepted from"
        };
        let proxy = if self.proxy { " through a proxy" } else { "" };
        let advertised = if self.advertised { ", advertised" } else { "" };
        let (address, network, tls) =
            (clean(&self.address), clean(&self.network), clean(&self.tls));
        format!("{who} {address}{proxy}, {network}, {tls}{advertised}")
    }
}

pub(super) fn run(context: &Context) -> Result<u8, CliError> {
    let client = Client::open(&context.common)?;
    let status = block_on(client.get("/api/v1/status"))?;
    if context.common.json {
        output::json(&status)?;
    } else {
        output::print(&render(&read(status)?, context.paint))?;
    }
    Ok(0)
}

/// The node's answer as this version knows it.
pub(super) fn read(status: Value) -> Result<Status, CliError> {
    serde_json::from_value(status).map_err(|error| {
        CliError::failed(
            format!("the node's status is of another form: {error}"),
            "node and command are of different versions; restart the node",
        )
    })
}

/// The form people know from the earlier plugin.
fn render(status: &Status, paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(paint.bold("ClawMatrix Cluster"));
    line(String::new());
    line(format!("Node: {}", clean(&status.node_id)));
    if !status.key_id.is_empty() {
        line(format!("Key: {}", clean(&status.key_id)));
    }
    line(format!("Tags: {}", list(&status.tags, |t| clean(t))));
    let listen = match status.listen.as_u64() {
        Some(port) if status.listen_tls.as_deref() == Some("tls") => format!("port {port}, tls"),
        Some(port) => format!("port {port}"),
        None => "off".to_owned(),
    };
    line(format!("Listen: {listen}"));
    line(format!(
        "Model proxy: http://127.0.0.1:{}/v1",
        status.proxy_port
    ));
    line(format!(
        "Agents: {}",
        list(&status.agents, Named::described)
    ));
    line(format!("Models: {}", list(&status.models, Named::id)));
    line(String::new());
    let connected = status.peers.iter().filter(|p| p.connected).count();
    line(paint.bold(&format!(
        "Peers ({connected}/{} connected)",
        status.peers.len()
    )));
    for peer in &status.peers {
        line(String::new());
        line(head(peer, paint));
        if let Some(link) = peer.link.as_ref().filter(|_| peer.connected) {
            line(format!("  Link: {}", link.described()));
        }
        line(format!("  Tags: {}", list(&peer.tags, |t| clean(t))));
        line(format!(
            "  Agents: {}",
            list(&peer.agents, Named::described)
        ));
        line(format!("  Models: {}", list(&peer.models, Named::id)));
        if let Some(problem) = &peer.problem {
            line(paint.yellow(&format!("  Problem: {}", clean(problem))));
            if let Some(way) = way_out(&peer.node_id, problem) {
                line(format!("  Hint: {way}"));
            }
        }
    }
    let warnings: Vec<&String> = status
        .warnings
        .iter()
        .filter(|w| !told_with_peer(status, w))
        .collect();
    if !warnings.is_empty() {
        line(String::new());
        line(paint.bold("Warnings"));
        for warning in warnings {
            line(paint.yellow(&format!("  {}", clean(warning))));
        }
    }
    text
}

/// Whether a warning says again what a peer's problem says.
fn told_with_peer(status: &Status, warning: &str) -> bool {
    status.peers.iter().any(|peer| {
        let problem = peer.problem.as_deref().unwrap_or_default();
        let said = problem.split(';').next().unwrap_or_default();
        !said.is_empty() && warning.starts_with(said)
    })
}

fn head(peer: &Peer, paint: Paint) -> String {
    let name = paint.bold(&clean(&peer.node_id));
    if !peer.connected {
        return format!("{name} ({})", paint.red("unreachable"));
    }
    let mut how = paint.green("connected");
    if let Some(via) = &peer.reachable_via {
        how.push_str(&format!(" via {}", clean(via)));
    }
    if let Some(latency) = peer.latency_ms {
        how.push_str(&format!(", {}ms", latency.round()));
    }
    format!("{name} ({how})")
}

fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What to do about a peer's problem.
/// Whether a problem as the node tells it says what to do about it.
pub(super) fn names_way_out(problem: &str) -> bool {
    problem.contains("`clawmatrix ")
}

pub(super) fn way_out(node: &str, problem: &str) -> Option<String> {
    if names_way_out(problem) {
        return None;
    }
    let problem = problem.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| problem.contains(w));
    let node = clean(node);
    if has(&["identity conflict", "identity_conflict", "another key"]) {
        Some(format!(
            "compare `clawmatrix identity` on {node}; if the new key is right: `clawmatrix trust accept {node} <keyId>`"
        ))
    } else if has(&["secret"]) {
        Some("`secret` must match on both nodes".to_owned())
    } else if has(&["mesh"]) {
        Some("`mesh` must match on both nodes".to_owned())
    } else if has(&["denied"]) {
        Some("the key is denied there or here: `clawmatrix trust list`".to_owned())
    } else if has(&["refused"]) {
        Some(format!(
            "is the node {node} running and its port open? the default port is 19000"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_prints_the_known_form() {
        let status = read(json!({
            "nodeId": "home-01", "version": "0.1.0", "keyId": "ab12-cd34", "uptimeMs": 5,
            "listen": false, "proxyPort": 19001, "agents": [{"id": "coder", "description": "writes code"}],
            "models": [{"id": "qwen3-32b"}], "tags": ["family", "gpu"],
            "warnings": ["`secret` is weak"],
            "peers": [
                {"nodeId": "office-01", "connected": true, "state": "direct", "reachableVia": null,
                 "link": {"tls": "pinned", "dialed": true, "network": "public", "address": "office.example:443", "proxy": true},
                 "latencyMs": 12.3, "agents": [], "models": ["claude"], "tags": ["work"]},
                {"nodeId": "lab", "connected": true, "state": "direct", "agents": [], "models": [], "tags": [],
                 "link": {"tls": "insecure", "dialed": true, "network": "private", "address": "10.0.0.7:19000", "proxy": false, "advertised": true}},
                {"nodeId": "attic", "connected": true, "state": "relay", "reachableVia": "office-01",
                 "latencyMs": null, "agents": [], "models": [], "tags": []},
                {"nodeId": "cellar\u{1b}[1m", "connected": false, "state": "unreachable",
                 "problem": "identity conflict: another key"}
            ]
        }))
        .unwrap();
        assert_eq!(
            render(&status, Paint::PLAIN),
            "\
ClawMatrix Cluster

Node: home-01
Key: ab12-cd34
Tags: family, gpu
Listen: off
Model proxy: http://127.0.0.1:19001/v1
Agents: coder (writes code)
Models: qwen3-32b

Peers (3/4 connected)

office-01 (connected, 12ms)
  Link: dialed office.example:443 through a proxy, public, pinned
  Tags: work
  Agents: none
  Models: claude

lab (connected)
  Link: dialed 10.0.0.7:19000, private, insecure, advertised
  Tags: none
  Agents: none
  Models: none

attic (connected via office-01)
  Tags: none
  Agents: none
  Models: none

cellar\\u{1b}[1m (unreachable)
  Tags: none
  Agents: none
  Models: none
  Problem: identity conflict: another key
  Hint: compare `clawmatrix identity` on cellar\\u{1b}[1m; if the new key is right: `clawmatrix trust accept cellar\\u{1b}[1m <keyId>`

Warnings
  `secret` is weak
"
        );
    }

    #[test]
    fn empty_status_prints_too() {
        let text = render(
            &read(json!({"nodeId": "a", "listen": 19000})).unwrap(),
            Paint::PLAIN,
        );
        assert!(text.contains("Listen: port 19000\n") && text.ends_with("Peers (0/0 connected)\n"));
    }
}
