//! Is this allowed, and by which rule? The way of a request without doing it: the same search for what
//! would be touched, the same judge.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    args::{Call, Exec, invalid},
    inbound::ToolService,
};
use crate::{
    ids::NodeId,
    policy::{EDIT, EXEC, LIST, READ, Subject, WRITE},
    trust::Level,
    wire::code::{Code, Failure},
};

/// What is asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Question {
    /// Who would ask.
    pub from: NodeId,
    /// Name of the tool, with or without `tool:`.
    pub action: String,
    /// How far that node's key is trusted; as this node knows it if not given.
    #[serde(default)]
    pub trust: Option<Level>,
    /// Labels of that node; as this node knows them if not given.
    #[serde(default)]
    pub labels: Option<Vec<String>>,
    /// Tags that node gives itself.
    #[serde(default)]
    pub tags: Vec<String>,
    /// For exec: program and arguments.
    #[serde(default)]
    pub argv: Option<Vec<String>>,
    /// For exec: a text for a shell.
    #[serde(default)]
    pub command: Option<String>,
    /// For read, write, edit and list: the path.
    #[serde(default)]
    pub path: Option<String>,
    /// Whether a model would ask.
    #[serde(default)]
    pub agent: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `allow`, `ask` or `deny`.
    pub verdict: &'static str,
    /// The rule that decided.
    pub rule: String,
    /// Its level.
    pub level: u8,
    /// What else there is to know.
    pub note: Option<String>,
}

impl Answer {
    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "allowed": self.verdict == "allow",
            "verdict": self.verdict,
            "rule": self.rule,
            "level": self.level,
            "note": self.note,
        })
    }
}

impl Question {
    /// Who would ask; `level` and `labels` where the question does not say.
    #[must_use]
    pub fn subject(&self, level: Level, labels: &[String]) -> Subject {
        Subject {
            node: self.from.clone(),
            level: self.trust.unwrap_or(level),
            labels: self
                .labels
                .clone()
                .unwrap_or_else(|| labels.to_vec())
                .into(),
            tags: self.tags.clone(),
        }
    }

    fn call(&self) -> Result<Call, Failure> {
        let tool = self.action.strip_prefix("tool:").unwrap_or(&self.action);
        if let Some((kind, _)) = self.action.split_once(':')
            && matches!(kind, "model" | "agent" | "send")
        {
            return Err(invalid(
                "models and agents have `allow` at their own entries; ask here about tools, `tool:exec`",
            ));
        }
        if tool == EXEC {
            if self.argv.is_none() && self.command.is_none() {
                return Err(invalid("say what would run: the program and its arguments"));
            }
            return Ok(Call::Exec(Exec {
                command: self.command.clone(),
                argv: self.argv.clone(),
                ..Exec::default()
            }));
        }
        if matches!(tool, READ | WRITE | EDIT | LIST) {
            let Some(path) = &self.path else {
                return Err(invalid("say which file or folder"));
            };
            let args = if tool == EDIT {
                json!({"path": path, "oldBytes": 0})
            } else {
                json!({"path": path})
            };
            return Call::read(tool, args);
        }
        Call::read(tool, json!({}))
    }
}

impl ToolService {
    /// What would be said to such a request. Touches nothing.
    ///
    /// # Errors
    /// `invalid_request` for a question that is none.
    pub async fn can(&self, question: &Question, subject: &Subject) -> Result<Answer, Failure> {
        let call = match question.call() {
            Err(failure) if failure.code == Code::PolicyDenied => {
                return Ok(Answer {
                    verdict: "deny",
                    rule: "builtin.tools".into(),
                    level: 0,
                    note: Some(failure.message),
                });
            }
            call => call?,
        };
        let (verdict, trouble) = self.look_only(subject, &call, question.agent).await;
        let refused = trouble
            .as_ref()
            .is_some_and(|failure| !matches!(failure.code, Code::NotFound));
        Ok(Answer {
            verdict: match verdict.effect {
                crate::policy::Effect::Deny => "deny",
                crate::policy::Effect::Allow if refused => "deny",
                crate::policy::Effect::Allow if !verdict.runs() => "ask",
                crate::policy::Effect::Allow => "allow",
            },
            rule: verdict.rule.to_string(),
            level: verdict.level,
            note: trouble
                .filter(|_| verdict.effect == crate::policy::Effect::Allow)
                .map(|failure| failure.message)
                .or_else(|| verdict.note.map(str::to_owned)),
        })
    }
}
