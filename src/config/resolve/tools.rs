//! The tool policy: `toolProxy` with its lists, or its finer rules (protocol 8.1).

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use globset::{GlobBuilder, GlobMatcher};
use serde_json::Value;

use super::{Check, entries};
use crate::{
    config::{ToolConfig, problem::quote, raw},
    policy::{Args, Effect, Policy, ProgramRule, Quota, Rule, Who, command},
    tools::host::{
        bounds::{self, Bounds, Helper},
        command::Commands,
    },
    trust::Level,
    wire::limits,
};

/// How a pattern is meant.
#[derive(Clone, Copy)]
enum Match {
    /// Names of tools and nodes in a deny: without regard to case.
    Folded,
    /// Names and arguments.
    Exact,
    /// Paths: `*` does not pass a `/`.
    Path,
}

/// What `toolProxy` says; nothing is the same as `enabled: false`.
pub(super) fn tools(check: &mut Check<'_>, raw: &raw::RawConfig) -> ToolConfig {
    let none = raw::ToolProxy::default();
    let proxy = raw.tool_proxy.as_ref().unwrap_or(&none);
    let roots = entries(proxy.roots.as_deref().unwrap_or_default())
        .filter_map(|(i, folder)| {
            let path = check.path(folder);
            if path.is_absolute() {
                return Some(path);
            }
            check.problem(
                format!("toolProxy.roots[{i}]"),
                format!("{} is not an absolute path", quote(folder)),
                "write the whole path, `/srv/shared` or `~/shared`",
            );
            None
        })
        .collect::<Vec<_>>();
    let env = variables(check, "toolProxy.env", proxy.env.as_ref());
    let lists = lists(check, proxy, &env);
    let rules = proxy.rules.as_ref().map(|list| rules(check, list, &env));
    let open_list = proxy.rules.is_none() && open(proxy.allow.as_deref());
    let policy = if proxy.enabled != Some(true) {
        Policy::disabled()
    } else {
        rules.unwrap_or(lists)
    };
    if policy.enabled() {
        if open_list {
            check.warnings.push(
                "`toolProxy.allow` is open: other nodes may use every tool of this node, commands included; list the tools they need".to_owned(),
            );
        }
        if roots.is_empty() {
            check.warnings.push(
                "`toolProxy.roots` is empty: other nodes may reach every file of this account outside the built-in deny list; name the folders they need".to_owned(),
            );
        }
    }
    let bounds = bounds(check, proxy, &roots, policy.enabled());
    ToolConfig {
        policy: policy.guarded(raw.llm_guard == Some(true)),
        roots,
        max_output_bytes: proxy
            .max_output_bytes
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or(limits::TOOL_OUTPUT_BYTES),
        commands: Commands {
            timeout: proxy
                .exec_timeout
                .map_or(limits::EXEC_TIMEOUT, Duration::from_secs),
            bounds,
        },
    }
}

/// What commands are bound to. To be confined and to have nowhere to be is a mistake; a kernel that cannot
/// do it makes every command refused, which is said at the start.
fn bounds(
    check: &mut Check<'_>,
    proxy: &raw::ToolProxy,
    roots: &[PathBuf],
    enabled: bool,
) -> Bounds {
    let confine = proxy.confine == Some(true);
    if confine && roots.is_empty() {
        check.problem(
            bounds::CONFINE,
            "needs `toolProxy.roots`",
            "name the folders that commands may read and write",
        );
    }
    if confine
        && enabled
        && let Err(why) = bounds::supported()
    {
        check.warnings.push(format!(
            "`{}`: this system cannot confine commands ({why}): it takes Linux 6.2 with Landlock; until then none runs here",
            bounds::CONFINE
        ));
    }
    let limited = proxy.max_memory_bytes.is_some() || proxy.max_processes.is_some();
    if proxy.max_processes.is_some() && enabled && !bounds::counts_processes() {
        check.warnings.push(format!(
            "`{}` binds nothing: the system does not count the processes of root; run the node under an account of its own, or set `TasksMax` in its systemd unit",
            bounds::MAX_PROCESSES
        ));
    }
    Bounds {
        memory: proxy.max_memory_bytes,
        processes: proxy.max_processes.unwrap_or(bounds::PROCESSES),
        helper: (confine || (limited && bounds::LIMITS)).then(|| Helper {
            program: bounds::OURSELVES.into(),
            roots: confine.then(|| roots.to_vec()),
        }),
    }
}

/// Whether the list lets every tool through.
fn open(allow: Option<&[Option<String>]>) -> bool {
    let allow = allow.unwrap_or_default();
    allow.is_empty() || allow.iter().flatten().any(|text| text == "*")
}

fn lists(check: &mut Check<'_>, proxy: &raw::ToolProxy, env: &Arc<[String]>) -> Policy {
    let least = match proxy.min_trust {
        Some(raw::MinTrust::Trusted) => Level::Trusted,
        Some(raw::MinTrust::Pinned) | None => Level::Pinned,
    };
    let mut rules = Vec::new();
    let Some(everyone) = compiled("*", Match::Exact) else {
        return Policy::disabled();
    };
    let mut add = |id: &str, effect, tool| {
        let everyone = everyone.clone();
        rules.push(Rule::of_list(
            id,
            effect,
            tool,
            everyone,
            least,
            env.clone(),
        ));
    };
    for (i, tool) in globs(
        check,
        "toolProxy.deny",
        proxy.deny.as_deref(),
        Match::Folded,
    ) {
        add(&format!("toolProxy.deny[{i}]"), Effect::Deny, tool);
    }
    if proxy.allow.as_deref().unwrap_or_default().is_empty() {
        add("toolProxy.allow", Effect::Allow, everyone.clone());
    }
    for (i, tool) in globs(
        check,
        "toolProxy.allow",
        proxy.allow.as_deref(),
        Match::Folded,
    ) {
        add(&format!("toolProxy.allow[{i}]"), Effect::Allow, tool);
    }
    let asks = globs(check, "toolProxy.ask", proxy.ask.as_deref(), Match::Folded)
        .into_iter()
        .map(|(i, tool)| (format!("toolProxy.ask[{i}]").into(), tool))
        .collect();
    Policy::of_lists(rules, asks)
}

fn rules(check: &mut Check<'_>, list: &raw::List<raw::Rule>, env: &Arc<[String]>) -> Policy {
    let mut seen = BTreeMap::new();
    let mut rules = Vec::new();
    for (i, raw) in entries(list) {
        let path = format!("toolProxy.rules[{i}]");
        let id = raw
            .id
            .as_deref()
            .and_then(|id| check.label(&format!("{path}.id"), id));
        let Some(id) = id else { continue };
        if let Some(first) = seen.insert(id.clone(), i) {
            check.problem(
                format!("{path}.id"),
                format!(
                    "{} stands in `toolProxy.rules[{first}]` already",
                    quote(&id)
                ),
                "give each rule a name of its own",
            );
        }
        rules.extend(rule(check, &path, &id, raw, env));
    }
    Policy::of_rules(rules)
}

fn rule(
    check: &mut Check<'_>,
    path: &str,
    id: &str,
    raw: &raw::Rule,
    env: &Arc<[String]>,
) -> Option<Rule> {
    let effect = match raw.effect? {
        raw::RuleEffect::Allow => Effect::Allow,
        raw::RuleEffect::Deny => Effect::Deny,
    };
    let deny = effect == Effect::Deny;
    let from = who(check, &format!("{path}.from"), raw.from.as_ref(), effect);
    let tools = actions(check, &format!("{path}.action"), raw.action.as_ref());
    let paths = raw
        .paths
        .as_deref()
        .map(|list| paths(check, &format!("{path}.paths"), list));
    let program = program(check, path, raw);
    let text = raw.text.as_deref().map(|list| {
        let found = globs(check, &format!("{path}.text"), Some(list), Match::Exact);
        found.into_iter().map(|(_, glob)| glob).collect()
    });
    if text.is_some() && !deny {
        check.problem(
            format!("{path}.text"),
            "a shell text cannot be allowed by its looks",
            "allow `tool:exec_shell` as a whole, or better `tool:exec` with `program` and `args`",
        );
    }
    if deny && raw.min_trust.is_some() {
        check.problem(
            format!("{path}.minTrust"),
            "has no meaning in a deny",
            "remove it: a deny holds for everyone in `from`",
        );
    }
    let mut variables = variables(check, &format!("{path}.env"), raw.env.as_ref()).to_vec();
    variables.extend(env.iter().cloned());
    let none = raw::RuleLimits::default();
    let limits = raw.limits.as_ref().unwrap_or(&none);
    Some(Rule {
        id: id.into(),
        effect,
        from,
        min_trust: raw.min_trust.map(|least| match least {
            raw::MinTrust::Pinned => Level::Pinned,
            raw::MinTrust::Trusted => Level::Trusted,
        }),
        tools,
        paths,
        program,
        text,
        level: raw.level,
        env: variables.into(),
        raw: raw.raw == Some(true),
        quota: Quota {
            per_minute: limits.per_minute,
            per_day: limits.per_day,
            concurrent: limits.concurrent,
            tokens_per_day: limits.tokens_per_day,
            bytes_per_day: limits.bytes_per_day,
        },
    })
}

/// Whom a rule is about. A tag a node gives itself grants nothing (protocol 8.1).
fn who(check: &mut Check<'_>, path: &str, list: Option<&raw::List<String>>, effect: Effect) -> Who {
    let mut who = Who::default();
    for (i, entry) in entries(list.map(Vec::as_slice).unwrap_or_default()) {
        let path = format!("{path}[{i}]");
        let tag = entry
            .strip_prefix("tags:")
            .or_else(|| entry.strip_prefix("tag:"));
        if let Some(label) = entry.strip_prefix("label:") {
            who.labels.extend(check.label(&path, label));
        } else if let Some(tag) = tag {
            if effect == Effect::Allow {
                check.problem(
                    path,
                    format!(
                        "{}: tags are self-asserted and cannot allow anything",
                        quote(entry)
                    ),
                    "give the node a label in `trust.nodes` and write `label:<name>`",
                );
            } else {
                who.tags.extend(check.label(&path, tag));
            }
        } else {
            let how = match effect {
                Effect::Allow => Match::Exact,
                Effect::Deny => Match::Folded,
            };
            let pattern = glob(check, &path, entry, how);
            who.names
                .extend(pattern.map(|pattern| (entry.clone(), pattern)));
        }
    }
    if list.is_some_and(Vec::is_empty) {
        check.problem(
            path,
            "is empty",
            "name whom the rule is about; `*` is everyone",
        );
    }
    who
}

fn actions(
    check: &mut Check<'_>,
    path: &str,
    list: Option<&raw::List<String>>,
) -> Vec<GlobMatcher> {
    let mut tools = Vec::new();
    for (i, entry) in entries(list.map(Vec::as_slice).unwrap_or_default()) {
        let path = format!("{path}[{i}]");
        if let Some(tool) = entry.strip_prefix("tool:") {
            tools.extend(glob(check, &path, tool, Match::Folded));
        } else {
            check.problem(
                path,
                format!("{} is no action of a tool", quote(entry)),
                "write `tool:<name>`; models and agents have `allow` at their own entries",
            );
        }
    }
    tools
}

/// Patterns over paths; one that ends in `/**` means the folder itself, too.
fn paths(check: &mut Check<'_>, path: &str, list: &[Option<String>]) -> Vec<GlobMatcher> {
    let mut found = Vec::new();
    for (i, text) in entries(list) {
        let path = format!("{path}[{i}]");
        let full = check.path(text).to_string_lossy().into_owned();
        if !full.starts_with('/') {
            check.problem(
                path,
                format!("{} is not an absolute path", quote(text)),
                "write the whole path, `/srv/shared/**` or `~/shared/**`",
            );
            continue;
        }
        found.extend(glob(check, &path, &full, Match::Path));
        let folder = full.strip_suffix("/**").filter(|folder| !folder.is_empty());
        found.extend(folder.and_then(|folder| compiled(folder, Match::Path)));
    }
    found
}

fn program(check: &mut Check<'_>, path: &str, raw: &raw::Rule) -> Option<ProgramRule> {
    let args = args(check, &format!("{path}.args"), raw.args.as_ref());
    let Some(list) = &raw.program else {
        if raw.args.is_some() || raw.dangerous.is_some() {
            check.problem(
                format!("{path}.program"),
                "missing",
                "`args` and `dangerous` are about programs: name them, `/usr/bin/git`",
            );
        }
        return None;
    };
    let mut paths = Vec::new();
    for (i, text) in entries(list) {
        let path = format!("{path}.program[{i}]");
        if text.starts_with(['/', '*']) {
            paths.extend(glob(check, &path, text, Match::Path));
        } else {
            check.problem(
                path,
                format!("{} is not an absolute path", quote(text)),
                "write where the program really lies, `/usr/bin/git`",
            );
        }
    }
    Some(ProgramRule {
        paths,
        args,
        dangerous: raw.dangerous == Some(true),
    })
}

fn args(check: &mut Check<'_>, path: &str, raw: Option<&Value>) -> Args {
    let Some(raw) = raw else {
        return Args::Each {
            patterns: Vec::new(),
            repeat: false,
        };
    };
    if raw == "any" {
        return Args::Any;
    }
    let list = raw.as_array().map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    let repeat = texts.len() > 1 && texts.last() == Some(&"...");
    let texts = &texts[..texts.len() - usize::from(repeat)];
    let mut patterns = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        // An argument may be empty.
        let pattern = glob(check, &format!("{path}[{i}]"), text, Match::Exact);
        patterns.extend(pattern.map(|pattern| ((*text).to_owned(), pattern)));
    }
    Args::Each { patterns, repeat }
}

fn variables(check: &mut Check<'_>, path: &str, list: Option<&raw::List<String>>) -> Arc<[String]> {
    entries(list.map(Vec::as_slice).unwrap_or_default())
        .filter(|(i, name)| {
            let bad = command::forbidden_variable(name);
            if bad {
                check.problem(
                    format!("{path}[{i}]"),
                    format!("{} cannot be left to a caller", quote(name)),
                    "name a variable that does not change which code programs run",
                );
            }
            !bad
        })
        .map(|(_, name)| name.clone())
        .collect::<Vec<_>>()
        .into()
}

fn globs(
    check: &mut Check<'_>,
    path: &str,
    list: Option<&[Option<String>]>,
    how: Match,
) -> Vec<(usize, GlobMatcher)> {
    entries(list.unwrap_or_default())
        .filter_map(|(i, text)| Some((i, glob(check, &format!("{path}[{i}]"), text, how)?)))
        .collect()
}

fn glob(check: &mut Check<'_>, path: &str, text: &str, how: Match) -> Option<GlobMatcher> {
    super::allow::glob(check, path, text)?;
    compiled(text, how)
}

fn compiled(text: &str, how: Match) -> Option<GlobMatcher> {
    GlobBuilder::new(text)
        .case_insensitive(matches!(how, Match::Folded))
        .literal_separator(matches!(how, Match::Path))
        .build()
        .ok()
        .map(|glob| glob.compile_matcher())
}
