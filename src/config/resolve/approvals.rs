//! `approvals`: operator keys (protocol 8.4).

use std::time::Duration;

use super::{Check, entries};
use crate::{
    approvals::Operator,
    config::{ApprovalConfig, problem::quote, raw},
    crypto::identity::PublicKey,
    ids::unhex,
    policy::APPROVAL_LEVEL,
    wire::limits,
};

/// How the way out of every problem here begins.
const ENROLL: &str = "copy the entry that `clawmatrix approvals enroll` prints";

/// What `approvals` says.
pub(super) fn approvals(check: &mut Check<'_>, raw: &raw::RawConfig) -> ApprovalConfig {
    let none = raw::Approvals::default();
    let written = raw.approvals.as_ref().unwrap_or(&none);
    let list = written.operators.as_deref().unwrap_or_default();
    if list.len() > limits::OPERATORS {
        check.problem(
            "approvals.operators",
            format!("{} entries, more than {}", list.len(), limits::OPERATORS),
            "remove some",
        );
    }
    let mut operators: Vec<Operator> = Vec::new();
    for (i, entry) in entries(list) {
        let path = format!("approvals.operators[{i}]");
        // What is missing was told with the shape.
        let (Some(text), Some(digest)) = (entry.key.as_deref(), entry.token_sha256.as_deref())
        else {
            continue;
        };
        let key = text.parse::<PublicKey>().map_err(|error| {
            check.problem(
                format!("{path}.key"),
                format!("{}: {error}", quote(text)),
                ENROLL,
            );
        });
        let token_sha256 = unhex(digest).map_err(|error| {
            check.problem(format!("{path}.tokenSha256"), error.to_string(), ENROLL);
        });
        if let (Ok(key), Ok(token_sha256)) = (key, token_sha256) {
            if operators.iter().any(|known| known.key == key) {
                check.problem(
                    format!("{path}.key"),
                    "is listed before",
                    "remove one of the two",
                );
            }
            operators.push(Operator { key, token_sha256 });
        }
    }
    if operators.is_empty() && list.is_empty() && waits(raw) {
        check.warnings.push(
            "some tools wait for a person, and `approvals.operators` is empty: they are refused until you run `clawmatrix approvals enroll`".to_owned(),
        );
    }
    ApprovalConfig {
        operators,
        wait: written
            .wait
            .map_or(limits::APPROVAL_WAIT, Duration::from_secs),
    }
}

/// Whether anything may ever wait for a person.
fn waits(raw: &raw::RawConfig) -> bool {
    let Some(proxy) = raw.tool_proxy.as_ref().filter(|p| p.enabled == Some(true)) else {
        return false;
    };
    let rules = entries(proxy.rules.as_deref().unwrap_or_default());
    let mut levels = rules.filter_map(|(_, rule)| rule.level);
    let lists = proxy.rules.is_none() && proxy.ask.as_ref().is_some_and(|ask| !ask.is_empty());
    lists || raw.llm_guard == Some(true) || levels.any(|level| level >= APPROVAL_LEVEL)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::{Config, ConfigError, Source},
        crypto::identity::Identity,
    };

    fn read(more: Value) -> Result<Config, ConfigError> {
        let source = Source {
            openclaw: false,
            folder: Path::new("/"),
            env: &|_| None,
        };
        let mut whole =
            json!({"nodeId": "office-01", "secret": "Zx7-pq2LmV9sKd0-tR4wYh8uB3nC6jF1"});
        for (key, value) in more.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Config::from_value(whole, &source)
    }

    fn operator() -> Value {
        json!({"key": Identity::generate().public(), "tokenSha256": "ab".repeat(32)})
    }

    #[test]
    fn operators_are_read_and_mistakes_told_with_their_place() {
        let one = operator();
        let good = json!({"approvals": {"operators": [one, operator()], "wait": 30}});
        let config = read(good).unwrap().approvals;
        assert_eq!(config.operators.len(), 2);
        assert_eq!(config.operators[0].key.to_string(), one["key"]);
        assert_eq!(config.operators[0].token_sha256, [0xab; 32]);
        assert_eq!(config.wait, Duration::from_secs(30));
        let mut short = operator();
        short["tokenSha256"] = json!("ab");
        let weak = json!({"key": "A".repeat(43), "tokenSha256": "ab".repeat(32)});
        let bad = json!({"approvals": {"operators": [one, one, short, weak, {}], "wait": 30}});
        let problems: Vec<String> = read(bad)
            .unwrap_err()
            .0
            .into_iter()
            .map(|p| p.path)
            .collect();
        for path in [
            "[1].key",
            "[2].tokenSha256",
            "[3].key",
            "[4].key",
            "[4].tokenSha256",
        ] {
            let path = format!("approvals.operators{path}");
            assert!(problems.contains(&path), "{path}: {problems:?}");
        }
        assert_eq!(problems.len(), 5, "{problems:?}");
        for wait in [0, 601] {
            assert!(
                read(json!({"approvals": {"wait": wait}})).is_err(),
                "{wait}"
            );
        }
    }

    #[test]
    fn what_nobody_can_approve_is_warned_about() {
        let warned = |more: Value| {
            let warnings = read(more).unwrap().warnings;
            warnings.iter().any(|w| w.contains("approvals enroll"))
        };
        let proxy = |more: Value| {
            let mut proxy = json!({"enabled": true, "allow": ["read"], "roots": ["/srv"]});
            for (key, value) in more.as_object().unwrap() {
                proxy[key] = value.clone();
            }
            proxy
        };
        let rule = |level: u8| json!([{"id": "r", "effect": "allow", "from": ["*"], "action": ["tool:write"], "level": level}]);
        for (more, expected) in [
            (json!({"toolProxy": proxy(json!({}))}), false),
            (json!({"toolProxy": proxy(json!({"ask": ["read"]}))}), true),
            (
                json!({"toolProxy": {"enabled": false, "ask": ["read"]}}),
                false,
            ),
            (
                json!({"toolProxy": proxy(json!({})), "llmGuard": true}),
                true,
            ),
            (
                json!({"toolProxy": proxy(json!({"rules": rule(1)}))}),
                false,
            ),
            (json!({"toolProxy": proxy(json!({"rules": rule(2)}))}), true),
            // Finer rules decide alone.
            (
                json!({"toolProxy": proxy(json!({"ask": ["read"], "rules": rule(1)}))}),
                false,
            ),
            (
                json!({"toolProxy": proxy(json!({"ask": ["read"]})), "approvals": {"operators": [operator()]}}),
                false,
            ),
        ] {
            assert_eq!(warned(more.clone()), expected, "{more}");
        }
    }
}
