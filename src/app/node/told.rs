//! What a running node is told: by its operator, who changed the configuration, and by the shim.

use std::sync::PoisonError;

use super::{
    Node, digests, name_operators,
    secrets::{learn_keys, learn_secrets},
};
use crate::{
    app::Providers,
    config::{Config, ConfigError, render},
    shim::ToSidecar,
};

/// Begin of the warning of a configuration that could not be read again.
const RELOAD_FAILED: &str =
    "the configuration could not be read again, the settings of before are in force";

impl Node {
    /// Puts the secrets, the operators and the tool policy of a configuration that was read again in force. One that
    /// cannot be read leaves everything as it is, and the operator is told.
    pub(in crate::app) fn reload(&self, read: Result<Config, ConfigError>) {
        let warnings = match read {
            Ok(config) => {
                self.tools.set_config(&config.tools);
                self.budgets.set_per_peer(config.limits.per_peer);
                let before = self.desk.operators();
                self.desk
                    .set(&config.approvals.operators, config.approvals.wait);
                self.tokens.set_operators(digests(&config.approvals));
                self.inbox.set(config.approvals.nodes.clone());
                if self.desk.operators() != before {
                    tracing::warn!("other operator keys may approve from now on");
                    name_operators(&self.desk);
                }
                // Before anything could name them.
                learn_secrets(&self.redactor, &config, &Providers::new());
                let (mesh, keys) = &self.secrets;
                let (secret, older) = (config.secret, config.accept_secrets);
                let accepted = older.len();
                let changed = keys.replace(mesh, secret, older, &self.tasks);
                tracing::info!(
                    secrets_changed = changed,
                    accepted,
                    "secrets, tool policy, `approvals` and `limits.perPeer` were read again; other settings take effect at the next start"
                );
                config.warnings
            }
            Err(error) => {
                let problems = render(&error.0);
                tracing::error!(
                    problems,
                    "the configuration is wrong: the settings of before stay in force"
                );
                let mut warnings = self.warnings.borrow().clone();
                warnings.retain(|warning| !warning.starts_with(RELOAD_FAILED));
                warnings.push(format!("{RELOAD_FAILED}: {problems}"));
                warnings
            }
        };
        self.warnings.send_replace(warnings);
    }

    /// Takes what the shim says of its work for us; gives back what is for the node as a whole.
    pub(in crate::app) fn heard(&self, message: ToSidecar) -> Option<ToSidecar> {
        match &self.bridge {
            Some(bridge) => bridge.heard(message),
            None => Some(message),
        }
    }

    /// What the gateway worked on for us has ended with it.
    pub(in crate::app) fn gateway_gone(&self) {
        if let Some(bridge) = &self.bridge {
            bridge.gateway_gone();
        }
    }

    /// Puts a new provider table in force and wakes who asked for it by `id`.
    pub(in crate::app) fn set_providers(&self, providers: &Providers, id: Option<u64>) {
        learn_keys(&self.redactor, providers);
        self.lent.set_providers(providers);
        if let (Some(keys), Some(id)) = (&self.keys, id) {
            keys.answered(id);
        }
    }

    /// Replaces what the shim wants the operator to know.
    pub(in crate::app) fn set_shim_warnings(&self, warnings: Vec<String>) {
        let mut present = self
            .shim_warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for warning in warnings.iter().filter(|w| !present.contains(w)) {
            tracing::warn!(warning, "gateway");
        }
        *present = warnings;
        let mut all = self.config_warnings.clone();
        all.extend(present.iter().cloned());
        self.warnings.send_replace(all);
    }
}
