//! Which tools of this node others may use (protocol 8.1-8.4): from rules, a verified caller, a tool and
//! what it would touch to a verdict that names the rule which decided.
//!
//! Pure: whoever runs tools looks up paths and programs first and asks here before anything is
//! touched. A matching deny beats every allow; what no rule allows is denied. What the caller says of
//! itself (tags, that a model asks) can only take rights away.

pub mod command;
mod rule;

use std::{fmt, sync::Arc};

use globset::GlobMatcher;

pub use self::rule::{Args, Effect, ProgramRule, Quota, Rule, Who};
use crate::{ids::NodeId, mesh::session::Peer, trust::Level};

/// Rule name when no rule matched.
pub const NO_RULE: &str = "default";
/// Rule name when no tool may be used at all.
pub const DISABLED: &str = "toolProxy.enabled";
/// Level at which a person must agree (protocol 8.4).
pub const APPROVAL_LEVEL: u8 = 2;
/// The tool that reads a file.
pub const READ: &str = "read";
/// The tool that shows a folder.
pub const LIST: &str = "list";
/// The tool that writes a file.
pub const WRITE: &str = "write";
/// The tool that changes a piece of a file.
pub const EDIT: &str = "edit";
/// The tool that runs a command.
pub const EXEC: &str = "exec";
/// A command that needs a shell, under `toolProxy.rules` (protocol 8.3).
pub const EXEC_SHELL: &str = "exec_shell";

/// Who asks, as our own node knows it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The verified name.
    pub node: NodeId,
    /// How far its key is trusted.
    pub level: Level,
    /// Labels our operator gave.
    pub labels: Arc<[String]>,
    /// Tags it gives itself; they can only deny.
    pub tags: Vec<String>,
}

impl Subject {
    /// The subject of a request from `peer`, which says of itself that it has `tags`.
    #[must_use]
    pub fn of(peer: &Peer, tags: Vec<String>) -> Self {
        Self {
            node: peer.node.clone(),
            level: peer.level,
            labels: peer.labels.clone(),
            tags,
        }
    }
}

/// What would be touched.
#[derive(Debug, Clone, Copy)]
pub enum Resource<'a> {
    /// Nothing that rules look at.
    None,
    /// A file or folder: its real path, without links.
    Path(&'a str),
    /// A program without a shell.
    Program {
        /// Its real path.
        path: &'a str,
        /// All words, the name it was called by first.
        argv: &'a [String],
    },
    /// A text for a shell.
    Text(&'a str),
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Name of the tool.
    pub tool: &'a str,
    /// What it would touch.
    pub resource: Resource<'a>,
    /// Whether a model asks and no person, as the caller says.
    pub agent: bool,
}

/// The answer, and the rule that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Allow or deny.
    pub effect: Effect,
    /// Name of the rule.
    pub rule: Arc<str>,
    /// 0 reads only, 1 runs by itself, 2 needs a person, 3 needs one at the machine.
    pub level: u8,
    /// Why an allow that looked fitting did not hold; for this node's operator only.
    pub note: Option<&'static str>,
    /// Environment variables the caller may set.
    pub env: Arc<[String]>,
    /// Whether arguments may hold control characters and the like.
    pub raw: bool,
    /// How much of it.
    pub quota: Quota,
    /// The rule whose quota that is: another may have raised the level.
    pub quota_of: Arc<str>,
}

impl Verdict {
    /// Whether it may happen without asking anybody.
    #[must_use]
    pub const fn runs(&self) -> bool {
        matches!(self.effect, Effect::Allow) && self.level < APPROVAL_LEVEL
    }
}

/// The tool policy of a node, compiled.
#[derive(Debug, Clone)]
pub struct Policy {
    enabled: bool,
    rules: Vec<Rule>,
    /// Tools that wait for a person: name of the entry and pattern.
    asks: Vec<(Arc<str>, GlobMatcher)>,
    /// Whether commands are taken apart into words, as finer rules want.
    split: bool,
    /// What a model asks for on its own waits for a person when it changes something.
    guard: bool,
}

impl Policy {
    /// No tool may be used.
    #[must_use]
    pub const fn disabled() -> Self {
        Self {
            enabled: false,
            rules: Vec::new(),
            asks: Vec::new(),
            split: false,
            guard: false,
        }
    }

    /// The lists of `toolProxy`: each rule for everyone, in which a shell text is an `exec`.
    #[must_use]
    pub fn of_lists(rules: Vec<Rule>, asks: Vec<(Arc<str>, GlobMatcher)>) -> Self {
        Self {
            enabled: true,
            rules,
            asks,
            split: false,
            guard: false,
        }
    }

    /// Finer rules, which decide alone.
    #[must_use]
    pub fn of_rules(rules: Vec<Rule>) -> Self {
        Self {
            enabled: true,
            rules,
            asks: Vec::new(),
            split: true,
            guard: false,
        }
    }

    /// With `llmGuard` as given.
    #[must_use]
    pub const fn guarded(mut self, guard: bool) -> Self {
        self.guard = guard;
        self
    }

    /// Whether any tool may be used by anybody.
    #[must_use]
    pub const fn enabled(&self) -> bool {
        self.enabled
    }

    /// Whether a command is split into words where that is possible (protocol 8.3).
    #[must_use]
    pub const fn splits(&self) -> bool {
        self.split
    }

    /// Rules that limit how much.
    pub fn quotas(&self) -> impl Iterator<Item = (&Arc<str>, Quota)> {
        let limited = |rule: &&Rule| rule.quota != Quota::default();
        self.rules
            .iter()
            .filter(limited)
            .map(|rule| (&rule.id, rule.quota))
    }

    /// Judges one request.
    #[must_use]
    pub fn judge(&self, subject: &Subject, request: Request<'_>) -> Verdict {
        if !self.enabled {
            return Verdict::deny(DISABLED.into(), None);
        }
        let denied = self
            .rules
            .iter()
            .find(|rule| rule.effect == Effect::Deny && rule.matches(subject, &request) == Ok(()));
        if let Some(rule) = denied {
            return Verdict::deny(rule.id.clone(), None);
        }
        let mut note = None;
        for rule in self.rules.iter().filter(|r| r.effect == Effect::Allow) {
            match rule.matches(subject, &request) {
                Ok(()) => return self.allow(rule, &request),
                Err(why) => note = note.or(why),
            }
        }
        Verdict::deny(NO_RULE.into(), note)
    }

    fn allow(&self, rule: &Rule, request: &Request<'_>) -> Verdict {
        let mut verdict = Verdict {
            effect: Effect::Allow,
            rule: rule.id.clone(),
            level: rule.level.unwrap_or_else(|| usual_level(request.tool)),
            note: None,
            env: rule.env.clone(),
            raw: rule.raw,
            quota: rule.quota,
            quota_of: rule.id.clone(),
        };
        let asked = self
            .asks
            .iter()
            .find(|(_, pattern)| pattern.is_match(request.tool));
        if let Some((id, _)) = asked
            && verdict.level < APPROVAL_LEVEL
        {
            verdict.level = APPROVAL_LEVEL;
            verdict.rule = id.clone();
        }
        let changes = matches!(request.tool, EXEC | EXEC_SHELL | WRITE | EDIT);
        if self.guard && request.agent && changes && verdict.level < APPROVAL_LEVEL {
            verdict.level = APPROVAL_LEVEL;
            verdict.rule = "llmGuard".into();
        }
        verdict
    }
}

impl Verdict {
    fn deny(rule: Arc<str>, note: Option<&'static str>) -> Self {
        Self {
            effect: Effect::Deny,
            quota_of: rule.clone(),
            rule,
            level: 0,
            note,
            env: Arc::from([]),
            raw: false,
            quota: Quota::default(),
        }
    }
}

/// Level of a rule that names none.
fn usual_level(tool: &str) -> u8 {
    match tool {
        READ | LIST => 0,
        EXEC_SHELL => APPROVAL_LEVEL,
        _ => 1,
    }
}

/// The least trust a rule asks for that names none.
fn usual_trust(tool: &str) -> Level {
    match tool {
        READ | LIST => Level::Pinned,
        _ => Level::Trusted,
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.effect {
            Effect::Allow if self.level >= APPROVAL_LEVEL => "ask",
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        };
        write!(f, "{what} by `{}`", self.rule)
    }
}

#[cfg(test)]
mod tests;
