//! One rule and whether it matches.

use std::sync::Arc;

use globset::GlobMatcher;

use super::{
    EDIT, EXEC, EXEC_SHELL, LIST, READ, Request, Resource, Subject, WRITE, command, usual_trust,
};
use crate::trust::Level;

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It may happen.
    Allow,
    /// It may not, whatever else matches.
    Deny,
}

/// How much of something a rule lets one caller do. None: only the node's own limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests within a minute.
    pub per_minute: Option<u32>,
    /// Requests within a day.
    pub per_day: Option<u32>,
    /// Requests at once.
    pub concurrent: Option<u32>,
    /// Tokens within a day.
    pub tokens_per_day: Option<u64>,
    /// Bytes within a day.
    pub bytes_per_day: Option<u64>,
}

/// Whom a rule is about.
#[derive(Debug, Clone, Default)]
pub struct Who {
    /// Node names: the text as written and its pattern.
    pub names: Vec<(String, GlobMatcher)>,
    /// Labels our operator gives.
    pub labels: Vec<String>,
    /// Tags nodes give themselves; only a deny has any.
    pub tags: Vec<String>,
}

impl Who {
    /// Whether `subject` is meant. In an allow a pattern that is not exactly `*` holds for confirmed
    /// keys only: anybody can take a name that fits (protocol 8.1).
    fn includes(&self, subject: &Subject, effect: Effect) -> bool {
        let by_name = self.names.iter().any(|(text, pattern)| {
            let exact = !text.contains(['*', '?', '[', '{']);
            let holds =
                exact || text == "*" || effect == Effect::Deny || subject.level >= Level::Trusted;
            holds && pattern.is_match(subject.node.as_str())
        });
        by_name
            || self.labels.iter().any(|l| subject.labels.contains(l))
            || self.tags.iter().any(|t| subject.tags.contains(t))
    }
}

/// Which arguments a program may have.
#[derive(Debug, Clone)]
pub enum Args {
    /// Any.
    Any,
    /// One pattern each.
    Each {
        /// In order: the text as written and its pattern.
        patterns: Vec<(String, GlobMatcher)>,
        /// Whether the last pattern may match further arguments.
        repeat: bool,
    },
}

impl Args {
    /// A pattern that does not itself begin with `-` matches no option: `git -c …` is not hidden in
    /// `git *`.
    fn match_all(&self, args: &[String]) -> bool {
        let Self::Each { patterns, repeat } = self else {
            return true;
        };
        let enough = args.len() == patterns.len() || (*repeat && args.len() > patterns.len());
        enough
            && args.iter().enumerate().all(|(i, arg)| {
                let Some((text, pattern)) = patterns.get(i).or(patterns.last()) else {
                    return false;
                };
                let option = arg.starts_with('-') && !text.starts_with('-');
                !option && pattern.is_match(arg)
            })
    }
}

/// Which programs a rule is about.
#[derive(Debug, Clone)]
pub struct ProgramRule {
    /// Patterns over the real path.
    pub paths: Vec<GlobMatcher>,
    /// Patterns over the arguments.
    pub args: Args,
    /// Whether programs that run other programs are meant, too.
    pub dangerous: bool,
}

/// One rule, compiled.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name, for verdicts.
    pub id: Arc<str>,
    /// Allow or deny.
    pub effect: Effect,
    /// Whom it is about.
    pub from: Who,
    /// Least trust in the caller; the usual one of the tool if none is given. A deny has none.
    pub min_trust: Option<Level>,
    /// Patterns over names of tools, without regard to case.
    pub tools: Vec<GlobMatcher>,
    /// Patterns over real paths; none = every path.
    pub paths: Option<Vec<GlobMatcher>>,
    /// Programs; none = every program, shell or not, where `raw` says so, else every plain one.
    pub program: Option<ProgramRule>,
    /// Patterns over shell texts, in a deny.
    pub text: Option<Vec<GlobMatcher>>,
    /// Level; the usual one of the tool if none is given.
    pub level: Option<u8>,
    /// Environment variables the caller may set.
    pub env: Arc<[String]>,
    /// Whether arguments may hold control characters and the like.
    pub raw: bool,
    /// How much one caller may do under it.
    pub quota: Quota,
}

impl Rule {
    /// A rule of the lists of `toolProxy`: from everyone, for tools of that name, whatever they touch.
    #[must_use]
    pub fn of_list(
        id: &str,
        effect: Effect,
        tool: GlobMatcher,
        everyone: GlobMatcher,
        min_trust: Level,
        env: Arc<[String]>,
    ) -> Self {
        Self {
            id: id.into(),
            effect,
            from: Who {
                names: vec![("*".into(), everyone)],
                ..Who::default()
            },
            min_trust: (effect == Effect::Allow).then_some(min_trust),
            tools: vec![tool],
            paths: None,
            program: None,
            text: None,
            level: Some(1),
            env,
            raw: true,
            quota: Quota::default(),
        }
    }

    /// Whether it is about this request. The error is why an allow that is about the tool and the
    /// caller does not hold, if that can be told.
    pub(super) fn matches(
        &self,
        subject: &Subject,
        request: &Request<'_>,
    ) -> Result<(), Option<&'static str>> {
        let deny = self.effect == Effect::Deny;
        // What may run no program may run no shell either.
        let whole = deny && self.program.is_none() && self.text.is_none();
        let named = |name: &str| self.tools.iter().any(|tool| tool.is_match(name));
        let shell = whole && request.tool == EXEC_SHELL && named(EXEC);
        if !named(request.tool) && !shell {
            return Err(None);
        }
        if !self.from.includes(subject, self.effect) {
            return Err(Some(
                "the caller is not in `from`; a pattern other than `*` needs a confirmed key",
            ));
        }
        if !deny {
            let least = self.min_trust.unwrap_or_else(|| usual_trust(request.tool));
            if subject.level < least.max(Level::Pinned) {
                return Err(Some("the caller's key is trusted too little (`minTrust`)"));
            }
        }
        self.touches(request)
    }

    fn touches(&self, request: &Request<'_>) -> Result<(), Option<&'static str>> {
        let deny = self.effect == Effect::Deny;
        let on_files = matches!(request.tool, READ | WRITE | EDIT | LIST);
        let on_programs = matches!(request.tool, EXEC | EXEC_SHELL);
        // Conditions about other kinds of things: such a rule is not about this request.
        if (self.paths.is_some() && !on_files)
            || (self.program.is_some() && !on_programs)
            || (self.text.is_some() && request.tool != EXEC_SHELL)
        {
            return Err(None);
        }
        match request.resource {
            Resource::None => Ok(()),
            Resource::Path(path) => match &self.paths {
                Some(patterns) if !within(patterns, path, deny) => {
                    Err(Some("no pattern of `paths` fits"))
                }
                _ => Ok(()),
            },
            Resource::Text(text) => match (&self.text, &self.program) {
                (Some(patterns), _) if !patterns.iter().any(|p| p.is_match(text)) => Err(None),
                // A shell runs whatever it likes: no list of programs can vouch for it.
                (None, Some(_)) => Err(Some("the command needs a shell (`tool:exec_shell`)")),
                _ => Ok(()),
            },
            Resource::Program { path, argv } => self.runs(path, argv, deny),
        }
    }

    fn runs(&self, path: &str, argv: &[String], deny: bool) -> Result<(), Option<&'static str>> {
        let called = argv.first().map_or("", String::as_str);
        let args = argv.get(1..).unwrap_or_default();
        let Some(program) = &self.program else {
            // Under `toolProxy` every program; a rule without `program` only harmless ones.
            let plain = deny || self.raw || command::plain(path, called, args, true);
            return if plain {
                Ok(())
            } else {
                Err(Some(
                    "such a program needs a rule with `program` and `dangerous: true`",
                ))
            };
        };
        if !program.paths.iter().any(|p| p.is_match(path)) {
            return Err(Some("no pattern of `program` fits"));
        }
        if !program.args.match_all(args) {
            return Err(Some("no pattern of `args` fits"));
        }
        let any = matches!(program.args, Args::Any);
        if deny || program.dangerous || command::plain(path, called, args, any) {
            Ok(())
        } else {
            Err(Some("such a program needs `dangerous: true`"))
        }
    }
}

/// Whether `path` fits a pattern; a deny also covers what lies beneath what it names.
fn within(patterns: &[GlobMatcher], path: &str, deny: bool) -> bool {
    let fits = |path: &str| patterns.iter().any(|p| p.is_match(path));
    if fits(path) {
        return true;
    }
    deny && path
        .char_indices()
        .filter(|(i, c)| *c == '/' && *i > 0)
        .any(|(i, _)| fits(&path[..i]))
}
