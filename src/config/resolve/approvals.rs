//! `approvals`: operator keys (protocol 8.4).

use std::time::Duration;

use super::{Check, entries};
use crate::{
    approvals::{Nodes, Operator},
    config::{ApprovalConfig, problem::quote, raw},
    crypto::identity::PublicKey,
    ids::{NodeId, unhex},
    policy::APPROVAL_LEVEL,
    shim::notices::Notify,
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
        let Some(text) = entry.key.as_deref() else {
            continue;
        };
        let key = text.parse::<PublicKey>().map_err(|error| {
            check.problem(
                format!("{path}.key"),
                format!("{}: {error}", quote(text)),
                ENROLL,
            );
        });
        let digest = entry.token_sha256.as_deref().map(unhex).transpose();
        let token_sha256 = digest.map_err(|error| {
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
    let (approvers, approves_for) = (&written.approvers, &written.approves_for);
    let us = raw.node_id.as_deref();
    let nodes = Nodes {
        approvers: named(
            check,
            "approvers",
            approvers.as_deref(),
            limits::APPROVERS,
            us,
        ),
        approves_for: named(
            check,
            "approvesFor",
            approves_for.as_deref(),
            limits::APPROVES_FOR,
            us,
        ),
    };
    if operators.is_empty() && list.is_empty() && nodes != Nodes::default() {
        check.warnings.push(
            "`approvals` names other nodes, and `approvals.operators` is empty: nobody's approval counts here and nobody sees theirs".to_owned(),
        );
    }
    let notify = written.notify.as_ref().and_then(|raw| notify(check, raw));
    if notify.is_some() && !check.source.openclaw {
        check.warnings.push(
            "`approvals.notify` has no effect without OpenClaw, whose channels it uses".to_owned(),
        );
    }
    ApprovalConfig {
        operators,
        nodes,
        notify,
        wait: written
            .wait
            .map_or(limits::APPROVAL_WAIT, Duration::from_secs),
    }
}

/// Where notices go.
fn notify(check: &mut Check<'_>, raw: &raw::Notify) -> Option<Notify> {
    let mut word = |key: &str, text: Option<&str>| {
        let text = text?;
        let good = !text.is_empty() && text.len() <= 256 && !text.chars().any(char::is_control);
        if !good {
            check.problem(
                format!("approvals.notify.{key}"),
                "is empty, longer than 256 bytes, or holds control characters",
                "write it as `openclaw message send` takes it",
            );
        }
        good.then(|| text.to_owned())
    };
    let account = raw
        .account
        .as_deref()
        .map(|text| word("account", Some(text)));
    let channel = word("channel", raw.channel.as_deref());
    let to = word("to", raw.to.as_deref());
    Some(Notify {
        channel: channel?,
        to: to?,
        account: account.flatten(),
    })
}

/// Other nodes by their names.
fn named(
    check: &mut Check<'_>,
    key: &str,
    list: Option<&[Option<String>]>,
    most: usize,
    us: Option<&str>,
) -> Vec<NodeId> {
    let list = list.unwrap_or_default();
    let path = format!("approvals.{key}");
    if list.len() > most {
        check.problem(
            path.clone(),
            format!("{} entries, more than {most}", list.len()),
            "remove some",
        );
    }
    let mut nodes: Vec<NodeId> = Vec::new();
    for (i, text) in entries(list) {
        let path = format!("{path}[{i}]");
        match text.parse::<NodeId>() {
            Err(error) => check.problem(
                path,
                format!("{}: {error}", quote(text)),
                "write the `nodeId` of another node",
            ),
            Ok(_) if us == Some(text) => check.problem(
                path,
                format!("{} is this node itself", quote(text)),
                "remove it; its own operators need no entry here",
            ),
            Ok(node) if nodes.contains(&node) => {
                check.problem(path, "is listed before", "remove one of the two");
            }
            Ok(node) => nodes.push(node),
        }
    }
    nodes
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
        assert_eq!(config.operators[0].token_sha256, Some([0xab; 32]));
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
        for path in ["[1].key", "[2].tokenSha256", "[3].key", "[4].key"] {
            let path = format!("approvals.operators{path}");
            assert!(problems.contains(&path), "{path}: {problems:?}");
        }
        assert_eq!(problems.len(), 4, "{problems:?}");
        for wait in [0, 601] {
            assert!(
                read(json!({"approvals": {"wait": wait}})).is_err(),
                "{wait}"
            );
        }
    }

    #[test]
    fn other_nodes_are_named_and_mistakes_told_with_their_place() {
        let key = operator()["key"].clone();
        let good = json!({"approvals": {"operators": [{"key": key}], "approvers": ["home-01"], "approvesFor": ["attic"]}});
        let config = read(good).unwrap();
        let approvals = &config.approvals;
        assert_eq!(approvals.operators[0].token_sha256, None);
        assert_eq!(
            (
                approvals.nodes.approvers[0].as_str(),
                approvals.nodes.approves_for[0].as_str()
            ),
            ("home-01", "attic")
        );
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let lonely = read(json!({"approvals": {"approvesFor": ["attic"]}})).unwrap();
        assert!(lonely.warnings[0].contains("nobody sees theirs"));
        let many: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        let problems = |approvals: Value| -> Vec<String> {
            let problems = read(json!({"approvals": approvals})).unwrap_err().0;
            problems.into_iter().map(|p| p.path).collect()
        };
        assert_eq!(
            problems(json!({"approvers": ["a b", "office-01", "x", "x"], "approvesFor": ["-"]})),
            [
                "approvals.approvers[0]",
                "approvals.approvers[1]",
                "approvals.approvers[3]",
                "approvals.approvesFor[0]"
            ]
        );
        assert_eq!(
            problems(json!({"approvers": many})),
            ["approvals.approvers"]
        );
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
