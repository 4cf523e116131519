//! Configuration: the file as written ([`raw`]) and its resolved form ([`Config`]).
//!
//! Reading goes in steps, each of which adds to one list of problems, so that the operator sees
//! all of them at once: text -> JSON -> `${VAR}` put in -> shape against the generated [`schema`]
//! -> meaning, with every default filled in. Only [`crate::app`] and [`crate::cli`] know this
//! module.

mod problem;
pub mod raw;
mod resolve;
pub mod schema;
mod shape;
pub mod strength;
mod substitute;
mod when;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use globset::GlobSet;
use serde_json::Value;
use zeroize::Zeroizing;

pub use self::problem::{ConfigError, Problem, render};

use crate::{
    approvals::{Nodes, Operator},
    budgets::Caps,
    crypto::{
        identity::{Identity, IdentityError, PublicKey},
        secret::Secret,
    },
    ids::{MeshName, NodeId},
    mesh::{
        dial::{bounds::Bounds, proxy::HttpProxy, tls::PeerTls},
        session::Peer,
        tls::TlsFiles,
    },
    policy::Policy,
    state::StateDir,
    tools::host::command::Commands,
    trust::Level,
    wire::limits,
};

/// A validated configuration, with every default filled in.
#[derive(Debug)]
pub struct Config {
    /// Our name.
    pub node_id: NodeId,
    /// Our mesh.
    pub mesh: MeshName,
    /// The cluster secret.
    pub secret: Secret<String>,
    /// Older secrets a listener still accepts.
    pub accept_secrets: Vec<AcceptSecret>,
    /// Where links are accepted; none for a node that only dials.
    pub listen: Option<Listen>,
    /// Nodes to dial.
    pub peers: Vec<PeerConfig>,
    /// Addresses of our listener that others may dial.
    pub advertise: Vec<String>,
    /// Where we dial addresses that others advertise.
    pub dial_advertised: Option<Bounds>,
    /// Agents offered for handoff.
    pub agents: Vec<AgentConfig>,
    /// Models lent.
    pub models: Vec<ModelConfig>,
    /// Whether `"auto"` is among `models`: lend everything the gateway can serve.
    pub models_auto: bool,
    /// Models to show before their node is seen.
    pub proxy_models: Vec<ProxyModel>,
    /// Free labels.
    pub tags: Vec<String>,
    /// Port of the local API; 0 = any.
    pub proxy_port: u16,
    /// Trust mode and configured keys.
    pub trust: TrustConfig,
    /// Serve as a relay.
    pub relay: bool,
    /// Names whose claim to be a relay is believed.
    pub relays: globset::GlobSet,
    /// Heartbeat interval.
    pub heartbeat: Duration,
    /// Addresses whose `X-Forwarded-For` is believed, as CIDR texts.
    pub trusted_proxies: Vec<String>,
    /// Lowest level of a node we send prompts to.
    pub outbound_min_trust: Level,
    /// Put `[Model: …]` into chat completions.
    pub model_identity: bool,
    /// `config` or `dynamic`.
    pub model_registration: ModelRegistration,
    /// Grace period of a drain.
    pub drain_timeout: Duration,
    /// Longest silence of a handoff.
    pub handoff_timeout: Duration,
    /// Sizes and rates.
    pub limits: Limits,
    /// Keep the audit record.
    pub audit: bool,
    /// What the operator should know, without any secret: weak secret, open tool policy.
    pub warnings: Vec<String>,
    /// Tools others may use.
    pub tools: ToolConfig,
    /// Who approves what waits for a person.
    pub approvals: ApprovalConfig,
    /// Key file elsewhere than in the state dir.
    pub identity_file: Option<PathBuf>,
    /// The seed of the key itself, handed over by a secret reference.
    pub identity_seed: Option<Secret<[u8; 32]>>,
    /// Files that hold secrets of this node: no tool opens them.
    pub private_files: Vec<PathBuf>,
    /// Whether a secret stands in the configuration itself, so that its file must be private.
    pub secret_inline: bool,
}

/// An older secret during rotation (protocol 2).
#[derive(Debug, Clone)]
pub struct AcceptSecret {
    /// The secret.
    pub secret: Secret<String>,
    /// Wall-clock end of its validity.
    pub not_after: Option<SystemTime>,
}

/// The mesh listener.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Address to bind; `::` accepts both IP versions.
    pub host: IpAddr,
    /// Port; 0 = any.
    pub port: u16,
    /// Certificate and key, to speak `wss`; they were good when the configuration was read.
    pub tls: Option<TlsFiles>,
}

/// A node to dial.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Its expected name.
    pub node_id: NodeId,
    /// `ws` or `wss`, path and port filled in.
    pub url: url::Url,
    /// Whether the port was written out; if not, a refused dial hints at `:19000`.
    pub port_given: bool,
    /// Its key, when known beforehand: pinned as `trusted`.
    pub key: Option<PublicKey>,
    /// How its certificate is judged; of effect for `wss` only.
    pub tls: PeerTls,
    /// The HTTP proxy to dial through.
    pub proxy: Option<HttpProxy>,
}

/// An agent offered for handoff.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Its id.
    pub id: String,
    /// What it is good for.
    pub description: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// Who may use it; none = everyone at `pinned`.
    pub allow: Option<Allow>,
    /// The only tools a run for another node may use; none = those of the agent.
    pub tools: Option<Vec<String>>,
    /// The server that runs it instead of OpenClaw.
    pub endpoint: Option<AgentEndpoint>,
}

/// An OpenAI-style server that runs an agent.
#[derive(Debug, Clone)]
pub struct AgentEndpoint {
    /// Base URL, up to and with `/v1`.
    pub base_url: url::Url,
    /// Its key.
    pub api_key: Option<Secret<String>>,
    /// What to ask for as `model`.
    pub model: String,
}

/// Patterns over node names and `label:` of an `allow` list.
#[derive(Debug, Clone)]
pub struct Allow {
    /// The node name patterns of `nodes`, in its order: one with a wildcard, unless it is exactly
    /// `*`, holds for `trusted` pins only (protocol 8.1), so their texts are needed.
    pub patterns: Vec<String>,
    /// Node name patterns.
    pub nodes: GlobSet,
    /// Labels our operator gives.
    pub labels: Vec<String>,
}

impl Allow {
    /// Whether `list` lets `caller` in; no list lets everyone at `pinned` in. A pattern with a
    /// wildcard, unless it is exactly `*`, holds for `trusted` keys only: anybody could mint a fitting
    /// name (protocol 8.1).
    #[must_use]
    pub fn admits(list: Option<&Self>, caller: &Peer) -> bool {
        if caller.level < Level::Pinned {
            return false;
        }
        let Some(allow) = list else {
            return true;
        };
        let by_name = allow.nodes.matches(caller.node.as_str()).iter().any(|i| {
            let pattern = allow.patterns.get(*i).map_or("", String::as_str);
            let exact = !pattern.contains(['*', '?', '[', '{']);
            exact || pattern == "*" || caller.level >= Level::Trusted
        });
        by_name || allow.labels.iter().any(|l| caller.labels.contains(l))
    }
}

/// Where a lent model is served and what it can do.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The id others use.
    pub id: String,
    /// OpenClaw provider that serves it, resolved by the shim.
    pub provider: Option<String>,
    /// The id at the provider; the last part of `id` if not given.
    pub upstream_model: Option<String>,
    /// Base URL, for a server named directly.
    pub base_url: Option<url::Url>,
    /// Key for that server, from `apiKey` or `apiKeyEnv`.
    pub api_key: Option<Secret<String>>,
    /// The api it speaks, `openai-completions` if not given.
    pub api: Option<String>,
    /// What it is good for.
    pub description: String,
    /// Whether it reasons.
    pub reasoning: Option<bool>,
    /// Input kinds.
    pub input: Option<Vec<String>>,
    /// Prices, passed on unread.
    pub cost: Option<Value>,
    /// Context window in tokens.
    pub context_window: Option<u64>,
    /// Longest answer in tokens.
    pub max_tokens: Option<u64>,
    /// Requests at once.
    pub max_concurrent: Option<u32>,
    /// `local`, `cloud`.
    pub locality: Option<String>,
    /// Who may use it; none = everyone at `pinned`.
    pub allow: Option<Allow>,
}

/// Tools of this node that others may use.
#[derive(Debug, Clone)]
pub struct ToolConfig {
    /// Who may use which.
    pub policy: Policy,
    /// Folders that files are bound to; none = every folder.
    pub roots: Vec<PathBuf>,
    /// Longest output of one call.
    pub max_output_bytes: usize,
    /// What commands may do to the machine.
    pub commands: Commands,
}

/// Who approves what waits for a person (protocol 8.4).
#[derive(Debug, Clone)]
pub struct ApprovalConfig {
    /// Their keys.
    pub operators: Vec<Operator>,
    /// Other nodes that have a say.
    pub nodes: Nodes,
    /// Who is told of what waits, by the gateway.
    pub notify: Option<crate::shim::notices::Notify>,
    /// Longest wait.
    pub wait: Duration,
}

/// A model to show before its node is seen.
#[derive(Debug, Clone)]
pub struct ProxyModel {
    /// The id.
    pub id: String,
    /// The node that lends it.
    pub node_id: Option<NodeId>,
    /// Its name for people; also the text of `modelIdentity`.
    pub description: Option<String>,
}

/// Trust mode and configured keys (protocol 2).
#[derive(Debug, Clone, Default)]
pub struct TrustConfig {
    /// Only listed keys may link.
    pub explicit: bool,
    /// Keys and labels by name.
    pub nodes: Vec<TrustedNode>,
}

/// One entry of `trust.nodes`.
#[derive(Debug, Clone)]
pub struct TrustedNode {
    /// Its name.
    pub node: NodeId,
    /// Its key.
    pub key: Option<PublicKey>,
    /// Labels that may grant rights.
    pub labels: Vec<String>,
}

/// How lent models get into OpenClaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelRegistration {
    /// As provider entries in its configuration.
    Config,
    /// Through a provider that is asked at run time.
    Dynamic,
}

/// Sizes and rates an operator may change (protocol 5 and 9).
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest request body.
    pub request_body_bytes: u64,
    /// Longest answer.
    pub response_body_bytes: u64,
    /// Memory for one peer's streams.
    pub peer_memory_bytes: u64,
    /// Memory for all streams.
    pub node_memory_bytes: u64,
    /// Connections to the local API.
    pub connections: u32,
    /// Requests at once with one local token.
    pub requests_per_token: u32,
    /// What every other node may use of this one.
    pub per_peer: Caps,
}

impl Limits {
    fn from_raw(raw: &raw::Limits) -> Self {
        let size = |written: Option<u64>, default: usize| written.unwrap_or(default as u64);
        let count = |written: Option<u32>, default: usize| {
            written.unwrap_or(u32::try_from(default).unwrap_or(u32::MAX))
        };
        Self {
            request_body_bytes: size(raw.request_body_bytes, limits::REQUEST_BODY_BYTES),
            response_body_bytes: size(raw.response_body_bytes, limits::RESPONSE_BODY_BYTES),
            peer_memory_bytes: size(raw.peer_memory_bytes, limits::PEER_BUDGET_BYTES),
            node_memory_bytes: size(raw.node_memory_bytes, limits::NODE_BUDGET_BYTES),
            connections: count(raw.connections, limits::LOCAL_CONNECTIONS),
            requests_per_token: count(raw.requests_per_token, limits::REQUESTS_PER_TOKEN),
            per_peer: raw
                .per_peer
                .as_ref()
                .map_or_else(Caps::default, |peer| Caps {
                    per_minute: peer.requests_per_minute,
                    concurrent: peer.concurrent,
                    per_day: None,
                    tokens_per_day: peer.tokens_per_day,
                    bytes_per_day: peer.bytes_per_day,
                }),
        }
    }
}

/// `listenPort` when it is not given.
pub const DEFAULT_LISTEN_PORT: u16 = 19000;
/// `proxyPort` when it is not given.
pub const DEFAULT_PROXY_PORT: u16 = 19001;
/// A configuration longer than this is not one.
const CONFIG_BYTES: usize = 4 << 20;

/// Where a configuration comes from. It decides what may be read on its behalf.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Handed over by the plugin: variables and secret references are resolved already.
    pub openclaw: bool,
    /// Folder that relative paths start at.
    pub folder: &'a Path,
    /// Environment variables the operator names are asked for here.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("openclaw", &self.openclaw)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Source<'_> {
    /// The command that makes a configuration here.
    #[must_use]
    pub fn setup(&self) -> &'static str {
        if self.openclaw {
            "openclaw clawmatrix setup"
        } else {
            "clawmatrix setup"
        }
    }
}

/// The process's own environment, for [`Source::env`].
#[must_use]
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Config {
    /// Reads a configuration file of a node on its own, with the environment of this process.
    ///
    /// # Errors
    /// Every problem of the file, or why it cannot be read.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display();
        let bytes = fs::read(path).map_err(|error| {
            ConfigError::one(
                "",
                format!("cannot read the configuration `{shown}`: {error}"),
                "run `clawmatrix setup`, or name another file with `--config`",
            )
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let source = Source {
            openclaw: false,
            folder: &std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()),
            env: &process_env,
        };
        let mut config = Self::from_text(&bytes, &source).map_err(|mut error| {
            // What concerns no key concerns the file.
            for problem in error.0.iter_mut().filter(|p| p.path.is_empty()) {
                problem.message = format!("configuration `{shown}`: {}", problem.message);
            }
            error
        })?;
        config.private_files.push(path.to_owned());
        let holds_secret = config.secret_inline;
        if holds_secret && crate::state::open_to_others(path).is_ok_and(|open| open) {
            config.warnings.push(format!(
                "`{shown}` holds a secret and can be read by other accounts: `chmod 600 {shown}`"
            ));
        }
        Ok(config)
    }

    /// The node's key: handed over, in the configured file, or in the state folder, where it is
    /// made when missing. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Identity::load_or_create`].
    pub fn identity(&self, state: &StateDir) -> Result<Identity, IdentityError> {
        match &self.identity_seed {
            Some(seed) => Ok(Identity::from_seed(&Zeroizing::new(*seed.reveal()))),
            None => Identity::load_or_create(state, self.identity_file.as_deref()),
        }
    }

    /// Reads a configuration as text.
    ///
    /// # Errors
    /// Every problem; a text that is not JSON is told with line and column.
    pub fn from_text(bytes: &[u8], source: &Source<'_>) -> Result<Self, ConfigError> {
        Self::from_value(parse(bytes)?, source)
    }

    /// Reads a configuration as JSON.
    ///
    /// # Errors
    /// Every problem.
    pub fn from_value(mut config: Value, source: &Source<'_>) -> Result<Self, ConfigError> {
        let written: Vec<String> = config
            .as_object()
            .map(|o| o.keys().cloned().collect())
            .unwrap_or_default();
        let mut done = if source.openclaw {
            substitute::Substituted::default()
        } else {
            substitute::substitute(&mut config, source.env)
        };
        let mut problems = std::mem::take(&mut done.problems);
        problems.extend(shape::check(&mut config, &schema::config_schema(), &done));
        let raw = match serde_json::from_value(config) {
            Ok(raw) => raw,
            Err(error) => {
                // The schema and the types come from one source, so this is a fault of ours; the
                // serde text may quote a value and is not shown.
                problems.push(Problem {
                    path: String::new(),
                    message: format!("the configuration cannot be read ({:?})", error.classify()),
                    hint: "please report this".into(),
                });
                raw::RawConfig::default()
            }
        };
        resolve::resolve(&raw, written, problems, source)
    }
}

/// JSON with the place of a slip.
fn parse(bytes: &[u8]) -> Result<Value, ConfigError> {
    if bytes.len() > CONFIG_BYTES {
        return Err(ConfigError::one(
            "",
            format!("the configuration is longer than {CONFIG_BYTES} bytes"),
            "name the right file with `--config`",
        ));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ConfigError::one(
            "",
            "the configuration is empty",
            "run `clawmatrix setup`",
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let what = text
            .rsplit_once(" at line ")
            .map_or(text.as_str(), |(what, _)| what);
        ConfigError::one(
            "",
            format!(
                "not JSON: {what}, line {} column {}",
                error.line(),
                error.column()
            ),
            if error.is_eof() {
                "the file ends too early: it may be half-written"
            } else {
                "look for a missing quote, comma or brace just before that place"
            },
        )
    })
}

#[cfg(test)]
mod tests;
