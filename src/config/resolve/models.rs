//! Agents, models lent, models of others.

use std::collections::BTreeMap;

use serde_json::Value;
use url::Url;

use super::{Check, allow::allow, allow::patterns, entries, secret};
use crate::{
    config::{AgentConfig, AgentEndpoint, ModelConfig, ProxyModel, problem::quote, raw},
    wire::limits,
};

pub(super) fn agents(
    check: &mut Check<'_>,
    list: Option<&[Option<raw::Agent>]>,
) -> Vec<AgentConfig> {
    let list = list.unwrap_or_default();
    too_many(check, "agents", list.len(), limits::DESCRIPTOR_AGENTS);
    let mut agents = Vec::new();
    let mut seen = Ids::default();
    for (i, entry) in entries(list) {
        let path = format!("agents[{i}]");
        let id = entry
            .id
            .as_deref()
            .and_then(|id| check.label(&format!("{path}.id"), id));
        let tags = check.labels(
            &format!("{path}.tags"),
            entry.tags.as_ref(),
            limits::DESCRIPTOR_TAGS,
        );
        let allow = allow(check, &format!("{path}.allow"), entry.allow.as_ref());
        let tools = entry
            .tools
            .as_deref()
            .map(|tools| patterns(check, &format!("{path}.tools"), Some(tools)));
        let url = entry
            .base_url
            .as_deref()
            .and_then(|text| base_url(check, &format!("{path}.baseUrl"), text));
        let key = api_key(
            check,
            &path,
            entry.api_key.as_ref(),
            entry.api_key_env.as_deref(),
        );
        let model = entry
            .model
            .as_deref()
            .and_then(|model| check.label(&format!("{path}.model"), model));
        if entry.base_url.is_none() && !check.source.openclaw {
            check.warnings.push(format!(
                "`{path}` has no `baseUrl`, and this node runs without OpenClaw: nothing can run it"
            ));
        }
        if let Some(id) = id {
            seen.add(check, "agents", i, &id);
            agents.push(AgentConfig {
                description: entry.description.clone().unwrap_or_default(),
                tags,
                allow,
                tools,
                endpoint: url.map(|base_url| AgentEndpoint {
                    base_url,
                    api_key: key,
                    model: model.unwrap_or_else(|| id.clone()),
                }),
                id,
            });
        }
    }
    unbound(check, &agents);
    agents
}

/// Says which agents a handoff runs with everything they have.
fn unbound(check: &mut Check<'_>, agents: &[AgentConfig]) {
    let names: Vec<String> = agents
        .iter()
        .filter(|agent| agent.tools.is_none() && agent.endpoint.is_none())
        .map(|agent| quote(&agent.id))
        .collect();
    if check.source.openclaw && !names.is_empty() {
        check.warnings.push(format!(
            "a handoff runs agent {} with all of its own tools: `toolProxy` does not bind it, `agents[].tools` does",
            names.join(", ")
        ));
    }
}

pub(super) fn models(check: &mut Check<'_>, raw: Option<&raw::Models>) -> (Vec<ModelConfig>, bool) {
    let mut auto = false;
    let mut models = Vec::new();
    let mut seen = Ids::default();
    match raw {
        None => {}
        Some(raw::Models::Auto(raw::Auto::Auto)) => auto = true,
        Some(raw::Models::List(list)) => {
            too_many(check, "models", list.len(), limits::DESCRIPTOR_MODELS);
            for (i, entry) in entries(list) {
                match entry {
                    raw::ModelEntry::Auto(raw::Auto::Auto) => auto = true,
                    raw::ModelEntry::Model(entry) => {
                        if let Some(model) = model(check, &format!("models[{i}]"), entry) {
                            seen.add(check, "models", i, &model.id);
                            models.push(model);
                        }
                    }
                }
            }
        }
    }
    if auto && !check.source.openclaw {
        check.problem(
            "models",
            "`auto` needs OpenClaw, which knows what this node can serve",
            "list the models, each with `id` and `baseUrl`",
        );
    }
    (models, auto)
}

fn model(check: &mut Check<'_>, path: &str, raw: &raw::Model) -> Option<ModelConfig> {
    let base_url = raw
        .base_url
        .as_deref()
        .and_then(|text| base_url(check, &format!("{path}.baseUrl"), text));
    if raw.base_url.is_some() && raw.provider.is_some() {
        check.warnings.push(format!(
            "`{path}` names a `provider` and a `baseUrl`; the `baseUrl` is used"
        ));
    }
    if !check.source.openclaw && raw.base_url.is_none() {
        let message = match raw.provider.as_deref() {
            Some(provider) => format!(
                "provider {} is OpenClaw's, and this node runs without OpenClaw",
                quote(provider)
            ),
            None => "missing".to_owned(),
        };
        check.problem(
            format!("{path}.baseUrl"),
            message,
            "give the server's base URL, such as `http://127.0.0.1:11434/v1`",
        );
    }
    let api_key = api_key(
        check,
        path,
        raw.api_key.as_ref(),
        raw.api_key_env.as_deref(),
    );
    let allow = allow(check, &format!("{path}.allow"), raw.allow.as_ref());
    let input = raw.input.as_ref().map(|kinds| {
        entries(kinds)
            .filter_map(|(i, kind)| check.label(&format!("{path}.input[{i}]"), kind))
            .collect()
    });
    let mut text = |key: &str, value: &Option<String>| {
        value
            .as_deref()
            .and_then(|v| check.label(&format!("{path}.{key}"), v))
    };
    let provider = text("provider", &raw.provider);
    let upstream_model = text("upstreamModel", &raw.upstream_model);
    let api = text("api", &raw.api);
    let locality = text("locality", &raw.locality);
    let id = text("id", &raw.id)?;
    Some(ModelConfig {
        id,
        provider: if base_url.is_some() { None } else { provider },
        upstream_model,
        base_url,
        api_key,
        api,
        description: raw.description.clone().unwrap_or_default(),
        reasoning: raw.reasoning,
        input,
        cost: raw
            .cost
            .as_ref()
            .map(|cost| Value::Object(cost.iter().map(|(k, v)| (k.clone(), v.clone())).collect())),
        context_window: raw.context_window,
        max_tokens: raw.max_tokens,
        max_concurrent: raw.max_concurrent,
        locality,
        allow,
    })
}

fn api_key(
    check: &mut Check<'_>,
    path: &str,
    key: Option<&raw::SecretInput>,
    variable: Option<&str>,
) -> Option<crate::crypto::secret::Secret<String>> {
    match (key, variable) {
        // Under OpenClaw the plugin reads the variable and hands its value over beside the name.
        (Some(key), Some(_)) if check.source.openclaw => {
            secret::text(check, &format!("{path}.apiKey"), key)
        }
        (Some(_), Some(_)) => {
            check.problem(
                format!("{path}.apiKeyEnv"),
                "`apiKey` is given too",
                "keep one of `apiKey` and `apiKeyEnv`",
            );
            None
        }
        (Some(key), None) => secret::text(check, &format!("{path}.apiKey"), key),
        (None, Some(name)) => secret::variable(check, &format!("{path}.apiKeyEnv"), name),
        (None, None) => None,
    }
}

fn base_url(check: &mut Check<'_>, path: &str, text: &str) -> Option<Url> {
    const FORM: &str =
        "write the address up to and with `/v1`, such as `http://127.0.0.1:11434/v1`";
    // A key in the URL must not get into a message.
    let shown = |text: &str| {
        if text.contains(['@', '?']) {
            "the URL (not shown)".to_owned()
        } else {
            quote(text)
        }
    };
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            check.problem(path, format!("{} is not a URL: {error}", shown(text)), FORM);
            return None;
        }
    };
    let message = if !matches!(url.scheme(), "http" | "https") {
        format!("{} is not an `http://` or `https://` URL", shown(text))
    } else if !url.username().is_empty() || url.password().is_some() {
        "the URL holds a user name or password (not shown)".to_owned()
    } else if url.fragment().is_some() {
        format!("{} has a `#` part", shown(text))
    } else {
        return Some(url);
    };
    let hint = if message.contains("password") {
        "use `apiKey` or `apiKeyEnv`"
    } else {
        FORM
    };
    check.problem(path, message, hint);
    None
}

pub(super) fn proxy_models(
    check: &mut Check<'_>,
    list: Option<&[Option<raw::ProxyModel>]>,
) -> Vec<ProxyModel> {
    let mut models = Vec::new();
    let mut seen = Ids::default();
    for (i, entry) in entries(list.unwrap_or_default()) {
        let path = format!("proxyModels[{i}]");
        let id = entry
            .id
            .as_deref()
            .and_then(|id| check.label(&format!("{path}.id"), id));
        let node_id = entry
            .node_id
            .as_deref()
            .and_then(|text| check.node_id(&format!("{path}.nodeId"), text));
        if let Some(id) = id {
            let whole = node_id
                .as_ref()
                .map_or_else(|| id.clone(), |n| format!("{n}/{id}"));
            seen.add(check, "proxyModels", i, &whole);
            models.push(ProxyModel {
                id,
                node_id,
                description: entry.description.clone(),
            });
        }
    }
    models
}

fn too_many(check: &mut Check<'_>, path: &str, count: usize, most: usize) {
    if count > most {
        check.problem(
            path,
            format!("{count} entries, more than {most}"),
            "remove some",
        );
    }
}

/// Ids seen so far, with the index of their entry.
#[derive(Default)]
struct Ids(BTreeMap<String, usize>);

impl Ids {
    fn add(&mut self, check: &mut Check<'_>, list: &str, index: usize, id: &str) {
        if let Some(first) = self.0.insert(id.to_owned(), index) {
            check.problem(
                format!("{list}[{index}].id"),
                format!("{} stands in `{list}[{first}]` already", quote(id)),
                "keep one of them, or give one another id",
            );
        }
    }
}
