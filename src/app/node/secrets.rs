//! What the log must never show.

use crate::{app::Providers, config::Config, mesh::dial::proxy::HttpProxy, telemetry::Redactor};

/// No secret of this node may leave through a log line.
pub(super) fn learn_secrets(redactor: &Redactor, config: &Config, providers: &Providers) {
    redactor.learn(config.secret.reveal());
    for older in &config.accept_secrets {
        redactor.learn(older.secret.reveal());
    }
    let of_agents = config.agents.iter().filter_map(|a| a.endpoint.as_ref());
    let of_agents = of_agents.filter_map(|endpoint| endpoint.api_key.as_ref());
    let of_models = config.models.iter().filter_map(|m| m.api_key.as_ref());
    for key in of_models.chain(of_agents) {
        redactor.learn(key.reveal());
    }
    let proxies = config.peers.iter().filter_map(|peer| peer.proxy.as_ref());
    for credentials in proxies.filter_map(HttpProxy::credentials) {
        redactor.learn(credentials.reveal());
    }
    learn_keys(redactor, providers);
}

pub(super) fn learn_keys(redactor: &Redactor, providers: &Providers) {
    for key in providers.values().filter_map(|p| p.api_key.as_ref()) {
        redactor.learn(key);
    }
}
