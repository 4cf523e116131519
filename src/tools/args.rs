//! What a request for a tool says, read once: the fields of `tool_req` and the arguments of our own
//! tools. Pure.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    policy::{EDIT, EXEC, LIST, READ, WRITE},
    wire::code::{Code, Failure},
};

/// The fields of `tool_req` we read (protocol 5.3, 8).
#[derive(Debug, Deserialize)]
pub struct ToolReq<'a> {
    /// Name of the tool.
    #[serde(borrow)]
    pub tool: Cow<'a, str>,
    /// Its arguments.
    #[serde(default)]
    pub args: Value,
    /// Nodes passed so far.
    #[serde(borrow, default)]
    pub hops: Vec<Cow<'a, str>>,
    /// `agent` when a model asks.
    #[serde(borrow, default)]
    pub actor: Option<Cow<'a, str>>,
}

/// A tool and its arguments.
#[derive(Debug, Clone)]
pub enum Call {
    /// Runs a command.
    Exec(Exec),
    /// Reads a file.
    Read(Read),
    /// Writes a file; the body is its content.
    Write(Write),
    /// Changes a piece of a file; the body is old and new text, one behind the other.
    Edit(Edit),
    /// Shows a folder.
    List(List),
    /// Anything else, by the gateway.
    Other(String, Value),
}

/// Arguments of `exec`: `command` or `argv`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// A text for a shell.
    #[serde(default)]
    pub command: Option<String>,
    /// A program and its arguments.
    #[serde(default)]
    pub argv: Option<Vec<String>>,
    /// Where to run it.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Longest run, in seconds.
    #[serde(default)]
    pub timeout: Option<f64>,
    /// Environment variables to set.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Arguments of `read`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// The file.
    pub path: String,
    /// First byte.
    #[serde(default)]
    pub offset: u64,
    /// Bytes wanted.
    #[serde(default)]
    pub limit: Option<u64>,
}

/// Arguments of `write`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// The file.
    pub path: String,
}

/// Arguments of `edit`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edit {
    /// The file.
    pub path: String,
    /// Bytes of the old text at the begin of the body.
    pub old_bytes: usize,
    /// Replace every place, not the only one.
    #[serde(default)]
    pub all: bool,
}

/// Arguments of `list`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// The folder.
    pub path: String,
}

impl Call {
    /// Reads the arguments of `tool`.
    ///
    /// # Errors
    /// `invalid_request`, saying what is wrong with them.
    pub fn read(tool: &str, args: Value) -> Result<Self, Failure> {
        Ok(match tool {
            EXEC => {
                let exec: Exec = typed(tool, args)?;
                exec.check()?;
                Self::Exec(exec)
            }
            READ => Self::Read(typed(tool, args)?),
            WRITE => Self::Write(typed(tool, args)?),
            EDIT => Self::Edit(typed(tool, args)?),
            LIST => Self::List(typed(tool, args)?),
            other => {
                forwardable(other)?;
                Self::Other(other.to_owned(), args)
            }
        })
    }

    /// Whether it changes nothing, so that it may be asked again.
    #[must_use]
    pub const fn reads(&self) -> bool {
        matches!(self, Self::Read(_) | Self::List(_))
    }
}

impl Exec {
    fn check(&self) -> Result<(), Failure> {
        let given = (self.command.as_deref(), self.argv.as_deref());
        let text = match given {
            (Some(command), None) if !command.trim().is_empty() => {
                return if command.contains('\0') {
                    Err(invalid("`command` holds a NUL character"))
                } else {
                    Ok(())
                };
            }
            (None, Some([program, ..])) if !program.is_empty() => return Ok(()),
            (Some(_), Some(_)) => "give `command` or `argv`, not both",
            (Some(_), None) => "`command` is empty",
            (None, Some(_)) => "`argv` is empty: its first entry is the program",
            (None, None) => {
                "`command` is missing: a text for a shell, or `argv` for a program and its arguments"
            }
        };
        Err(invalid(text))
    }

    /// The longest run wanted, at most `most`.
    ///
    /// # Errors
    /// `invalid_request` for what is no time.
    pub fn limit(&self, most: Duration) -> Result<Duration, Failure> {
        match self.timeout {
            None => Ok(most),
            Some(seconds) if seconds > 0.0 && seconds.is_finite() => {
                Ok(Duration::from_secs_f64(seconds.min(most.as_secs_f64())))
            }
            Some(_) => Err(invalid("`timeout` is a number of seconds above 0")),
        }
    }
}

/// Refuses tools by which a request would leave its rules: our own, whose requests would look like those
/// of this node, and those that call other tools by name.
fn forwardable(tool: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    if tool.is_empty() || tool.len() > 128 || !tool.chars().all(plain) {
        return Err(invalid("`tool` is no name of a tool"));
    }
    let name = tool.to_ascii_lowercase();
    // A tool may be called by its plugin and its name.
    let bare = name.rsplit([':', '.', '/']).next().unwrap_or(&name);
    if bare.starts_with("cluster_") || bare.starts_with("cluster-") {
        return Err(Failure::not_started(
            Code::PolicyDenied,
            "the cluster tools are not run for other nodes: ask the node you want by its own name",
        ));
    }
    if bare.starts_with("tool_") {
        return Err(Failure::not_started(
            Code::PolicyDenied,
            "tools that call other tools are not run for other nodes: name the tool itself",
        ));
    }
    Ok(())
}

fn typed<T: DeserializeOwned>(tool: &str, args: Value) -> Result<T, Failure> {
    serde_json::from_value(args)
        .map_err(|error| invalid(&format!("the arguments of `{tool}` are wrong: {error}")))
}

/// A request that is wrong in itself.
#[must_use]
pub fn invalid(text: &str) -> Failure {
    Failure::not_started(Code::InvalidRequest, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_are_checked_before_anything_is_done() {
        for (tool, args, said) in [
            ("exec", json!({}), "`command` is missing"),
            ("exec", json!({"command": " "}), "is empty"),
            ("exec", json!({"command": "a\0b"}), "NUL"),
            ("exec", json!({"command": "a", "argv": ["a"]}), "not both"),
            ("exec", json!({"argv": []}), "is empty"),
            (
                "exec",
                json!({"argv": ["a"], "cwd": "/"}),
                "unknown field `cwd`",
            ),
            (
                "exec",
                json!({"argv": ["a"], "env": {"A": 1}}),
                "invalid type",
            ),
            ("read", json!({}), "missing field `path`"),
            ("read", json!({"path": "a", "offset": -1}), "invalid value"),
            (
                "write",
                json!({"path": "a", "content": "b"}),
                "unknown field",
            ),
            ("edit", json!({"path": "a"}), "missing field `oldBytes`"),
            ("list", json!(null), "invalid type"),
            ("a b", json!({}), "no name"),
            ("", json!({}), "no name"),
        ] {
            let failure = Call::read(tool, args.clone()).unwrap_err();
            assert!(failure.message.contains(said), "{tool} {args}: {failure}");
        }
        let exec = |timeout| Exec {
            command: Some("id".into()),
            timeout: Some(timeout),
            ..Exec::default()
        };
        let most = Duration::from_secs(10);
        assert_eq!(exec(1.5).limit(most).unwrap(), Duration::from_millis(1500));
        assert_eq!(exec(1e300).limit(most).unwrap(), most);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(exec(bad).limit(most).is_err(), "{bad}");
        }
    }

    #[test]
    fn tools_that_would_leave_the_rules_are_not_forwarded() {
        for tool in [
            "cluster_exec",
            "Cluster_Exec",
            "openclaw:clawmatrix:cluster_exec",
            "clawmatrix.cluster_tool",
            "tool_call",
            "TOOL_CALL",
            "tool_search_code",
        ] {
            let failure = Call::read(tool, json!({})).unwrap_err();
            assert_eq!(failure.code, Code::PolicyDenied, "{tool}");
        }
        for tool in ["web_fetch", "mcp:files/read", "Browser"] {
            assert!(
                matches!(Call::read(tool, json!({})), Ok(Call::Other(..))),
                "{tool}"
            );
        }
    }
}
