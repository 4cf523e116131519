//! Second check: does what is there make sense? Fills in every default, and goes on after a
//! problem, so that all of them are told together.

mod allow;
mod approvals;
mod later;
mod mesh;
mod models;
mod secret;
mod tools;

use std::{path::PathBuf, time::Duration};

use serde_json::Value;

use super::{
    Config, ConfigError, Limits, ModelRegistration, Source,
    problem::{Problem, quote},
    raw::{self, RawConfig},
};
use crate::{
    ids::{MeshName, NodeId},
    trust::Level,
    wire::limits,
};

/// What the checks of all sections share.
struct Check<'a> {
    source: &'a Source<'a>,
    /// Keys written at the top of the file, also those that were taken out for their shape.
    written: Vec<String>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Check<'_> {
    fn problem(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.problems.push(Problem {
            path: path.into(),
            message: message.into(),
            hint: hint.into(),
        });
    }

    fn wrote(&self, key: &str) -> bool {
        self.written.iter().any(|w| w == key)
    }

    /// A path as the operator writes it: `~` is home, relative is beside the configuration.
    fn path(&self, text: &str) -> PathBuf {
        if let Some(rest) = text.strip_prefix("~/")
            && let Some(home) = (self.source.env)("HOME").or_else(|| super::process_env("HOME"))
        {
            return PathBuf::from(home).join(rest);
        }
        self.source.folder.join(text)
    }

    fn node_id(&mut self, path: &str, text: &str) -> Option<NodeId> {
        text.parse()
            .map_err(|error: crate::ids::NameError| {
                self.problem(path, error.to_string(), "choose a name such as `office-01`");
            })
            .ok()
    }

    /// A text for others to read: not empty, no control characters, of bounded length.
    fn label(&mut self, path: &str, text: &str) -> Option<String> {
        let most = limits::DESCRIPTOR_STRING_CHARS;
        let message = if text.trim().is_empty() {
            "is empty".to_owned()
        } else if text.chars().count() > most {
            format!("is longer than {most} characters")
        } else if text.chars().any(char::is_control) {
            format!("{} holds control characters", quote(text))
        } else {
            return Some(text.to_owned());
        };
        self.problem(path, message, "write a short text on one line");
        None
    }

    fn labels(&mut self, path: &str, list: Option<&raw::List<String>>, most: usize) -> Vec<String> {
        let list = list.map(Vec::as_slice).unwrap_or_default();
        if list.len() > most {
            self.problem(
                path,
                format!("{} entries, more than {most}", list.len()),
                "remove some",
            );
        }
        entries(list)
            .filter_map(|(i, text)| self.label(&format!("{path}[{i}]"), text))
            .collect()
    }
}

/// The entries of a list with the index they have in the file.
fn entries<T>(list: &[Option<T>]) -> impl Iterator<Item = (usize, &T)> {
    list.iter()
        .enumerate()
        .filter_map(|(i, e)| Some((i, e.as_ref()?)))
}

/// Checks the meaning of `raw` and fills in defaults. `before` are the problems of its shape.
pub(super) fn resolve(
    raw: &RawConfig,
    written: Vec<String>,
    before: Vec<Problem>,
    source: &Source<'_>,
) -> Result<Config, ConfigError> {
    let mut check = Check {
        source,
        written,
        problems: before,
        warnings: Vec::new(),
    };
    let node_id = match raw.node_id.as_deref() {
        Some(text) => check.node_id("nodeId", text),
        None => {
            if !check.wrote("nodeId") {
                check.problem(
                    "nodeId",
                    "missing",
                    format!("give this node a unique name, or run `{}`", source.setup()),
                );
            }
            None
        }
    };
    let mesh = match raw.mesh.as_deref().unwrap_or("default").parse::<MeshName>() {
        Ok(mesh) => Some(mesh),
        Err(error) => {
            check.problem("mesh", error.to_string(), "choose a name such as `family`");
            None
        }
    };
    let secret = secret::cluster_secret(&mut check, raw);
    let accept_secrets = secret::accept_secrets(&mut check, raw.accept_secrets.as_deref());
    let listen = mesh::listen(&mut check, raw);
    let peers = mesh::peers(&mut check, raw.peers.as_deref(), node_id.as_ref());
    let advertise = mesh::advertise(&mut check, raw);
    let dial_advertised = mesh::dial_advertised(&mut check, raw);
    let trust = mesh::trust(&mut check, raw.trust.as_ref());
    let none = raw::Limits::default();
    let raw_limits = raw.limits.as_ref().unwrap_or(&none);
    let trusted_proxies = mesh::trusted_proxies(&mut check, raw_limits.trusted_proxies.as_deref());
    let agents = models::agents(&mut check, raw.agents.as_deref());
    let (models, models_auto) = models::models(&mut check, raw.models.as_ref());
    let proxy_models = models::proxy_models(&mut check, raw.proxy_models.as_deref());
    let tags = check.labels("tags", raw.tags.as_ref(), limits::DESCRIPTOR_TAGS);
    let tools = tools::tools(&mut check, raw);
    let approvals = approvals::approvals(&mut check, raw);
    let relays = allow::names(&mut check, "relays", raw.relays.as_deref());
    let proxy_port = raw.proxy_port.unwrap_or(super::DEFAULT_PROXY_PORT);
    if let Some(listen) = &listen
        && listen.port == proxy_port
        && proxy_port != 0
    {
        check.problem(
            "proxyPort",
            format!("`{proxy_port}` is also `listenPort`"),
            format!(
                "use another port for one of them; {} is the default of `proxyPort`",
                super::DEFAULT_PROXY_PORT
            ),
        );
    }
    let identity = secret::identity(&mut check, raw.identity_file.as_ref());
    let (identity_file, identity_seed) = match identity {
        Some(secret::IdentitySource::File(file)) => (Some(file), None),
        Some(secret::IdentitySource::Seed(seed)) => (None, Some(seed)),
        None => (None, None),
    };
    later::warn(&mut check, raw);

    let mut private_files: Vec<PathBuf> = identity_file.iter().cloned().collect();
    private_files.extend(raw.secret_file.as_deref().map(|file| check.path(file)));
    let drain = raw
        .drain_timeout
        .unwrap_or(if source.openclaw { 5 } else { 30 });
    match (node_id, mesh, secret) {
        (Some(node_id), Some(mesh), Some(secret)) if check.problems.is_empty() => Ok(Config {
            node_id,
            mesh,
            secret,
            accept_secrets,
            relay: raw.relay.unwrap_or(listen.is_some()),
            relays,
            listen,
            peers,
            advertise,
            dial_advertised,
            agents,
            models,
            models_auto,
            proxy_models,
            tags,
            proxy_port,
            trust,
            heartbeat: raw_limits
                .heartbeat
                .map_or(limits::HEARTBEAT, Duration::from_secs),
            trusted_proxies,
            outbound_min_trust: match raw.outbound.as_ref().and_then(|o| o.min_trust) {
                Some(raw::MinTrust::Trusted) => Level::Trusted,
                Some(raw::MinTrust::Pinned) | None => Level::Pinned,
            },
            model_identity: raw.model_identity.unwrap_or(true),
            model_registration: match raw.model_registration {
                Some(raw::ModelRegistration::Dynamic) => ModelRegistration::Dynamic,
                Some(raw::ModelRegistration::Config) | None => ModelRegistration::Config,
            },
            drain_timeout: Duration::from_secs(drain),
            handoff_timeout: Duration::from_millis(raw.handoff_timeout.unwrap_or(600_000)),
            limits: Limits::from_raw(raw_limits),
            audit: raw.audit != Some(Value::Bool(false)),
            warnings: check.warnings,
            tools,
            approvals,
            private_files,
            identity_file,
            identity_seed,
            secret_inline: matches!(raw.secret, Some(raw::SecretInput::Text(_))),
        }),
        _ => Err(ConfigError(check.problems)),
    }
}
