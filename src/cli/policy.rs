//! `clawmatrix policy test`: a file of questions with the verdicts they should get, judged by the
//! configuration, without a node that runs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context, can,
    client::block_on,
    error::{CONFIG, CliError, FAILED},
    output, run as run_verb,
};
use crate::{
    approvals::Desk,
    audit::Audit,
    budgets::Budgets,
    config::{Config, Source, process_env, render},
    drain::Tasks,
    ids::NodeId,
    tools::{
        can::{Answer, Question},
        host::running::Register,
        inbound::{Parts, ToolService},
    },
    trust::Level,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Judge every case of a file: `{"cases": [{"from", "action", "argv" or "path", "expect"}]}`.
    Test {
        /// The file; a `toolProxy` in it is judged instead of the configuration's.
        file: PathBuf,
        /// Configuration whose rules are judged [default: ~/.config/clawmatrix/node.json].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cases {
    #[serde(default)]
    tool_proxy: Option<Value>,
    cases: Vec<Value>,
}

/// What a case should come to.
struct Case {
    question: Question,
    expect: String,
    rule: Option<String>,
}

impl Case {
    fn read(mut value: Value) -> Result<Self, String> {
        let object = value.as_object_mut().ok_or("is no object")?;
        let expect = match object.remove("expect") {
            Some(Value::String(text)) if matches!(&*text, "allow" | "ask" | "deny") => text,
            _ => return Err("`expect` is `allow`, `ask` or `deny`".into()),
        };
        let rule = match object.remove("rule") {
            None => None,
            Some(Value::String(rule)) => Some(rule),
            Some(_) => return Err("`rule` is no text".into()),
        };
        let question = serde_json::from_value(value).map_err(|error| error.to_string())?;
        Ok(Self {
            question,
            expect,
            rule,
        })
    }

    fn met(&self, answer: &Answer) -> bool {
        answer.verdict == self.expect && self.rule.as_ref().is_none_or(|rule| *rule == answer.rule)
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let Verb::Test { file, config } = &args.verb;
    let unreadable = |error: &dyn std::fmt::Display| {
        CliError::failed(format!("cannot read `{}`: {error}", file.display()), "")
    };
    let text = fs::read(file).map_err(|error| unreadable(&error))?;
    let cases: Cases = serde_json::from_slice(&text).map_err(|error| unreadable(&error))?;
    let config = match &cases.tool_proxy {
        Some(proxy) => alone(proxy, file)?,
        None => run_verb::read(config.as_deref())?,
    };
    let service = ToolService::new(Parts {
        node: config.node_id.clone(),
        denied: config.private_files.clone(),
        free: Vec::new(),
        gateway: None,
        tags: Arc::new(|_| Vec::new()),
        budgets: Budgets::default(),
        running: Register::default(),
        audit: Audit::off(),
        desk: Desk::unmanned(),
        tasks: Tasks::new(),
        config: config.tools.clone(),
    });
    let mut results = Vec::new();
    for (index, value) in cases.cases.into_iter().enumerate() {
        let case = Case::read(value)
            .map_err(|why| CliError::failed(format!("`cases[{index}]` {why}"), ""))?;
        let (level, labels) = known(&config, &case.question.from);
        let subject = case.question.subject(level, &labels);
        let answer = block_on(async {
            let answer = service.can(&case.question, &subject).await;
            answer.map_err(|failure| {
                CliError::failed(format!("`cases[{index}]`: {}", failure.message), "")
            })
        })?;
        results.push((index, case.met(&answer), case, answer));
    }
    tell(&results, context)
}

fn tell(results: &[(usize, bool, Case, Answer)], context: &Context) -> Result<u8, CliError> {
    let wrong = results.iter().filter(|(_, met, ..)| !met).count();
    if context.common.json {
        let told: Vec<Value> = results
            .iter()
            .map(|(_, met, case, answer)| {
                let mut told = answer.json();
                told["expect"] = json!(case.expect);
                told["met"] = json!(met);
                told
            })
            .collect();
        output::json(&told)?;
    } else {
        for (index, met, case, answer) in results {
            let mark = if *met { "ok" } else { "WRONG" };
            let expected = if *met {
                String::new()
            } else {
                let rule = case
                    .rule
                    .as_ref()
                    .map_or_else(String::new, |rule| format!(" by `{rule}`"));
                format!(" (expected {}{rule})", case.expect)
            };
            let line = format!(
                "{mark} cases[{index}] {} {}: {}{expected}",
                case.question.from,
                case.question.action,
                can::told(&answer.json())
            );
            output::line(&output::clean(&line))?;
        }
        output::line(&format!("{} cases, {wrong} wrong", results.len()))?;
    }
    Ok(if wrong == 0 { 0 } else { FAILED })
}

/// A configuration of nothing but these rules.
fn alone(proxy: &Value, file: &Path) -> Result<Config, CliError> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let source = Source {
        openclaw: false,
        folder: &std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()),
        env: &process_env,
    };
    let whole = json!({
        "nodeId": "this-node",
        // Never used: nothing is dialled.
        "secret": crate::ids::hex(&crate::ids::random_bytes::<32>()),
        "toolProxy": proxy,
    });
    Config::from_value(whole, &source).map_err(|error| CliError::with(CONFIG, render(&error.0), ""))
}

/// What the configuration says of a node; a node it does not name is pinned.
fn known(config: &Config, node: &NodeId) -> (Level, Vec<String>) {
    let named = config.trust.nodes.iter().find(|known| known.node == *node);
    let dialled = config.peers.iter().find(|peer| peer.node_id == *node);
    let key = named
        .and_then(|known| known.key)
        .or(dialled.and_then(|peer| peer.key));
    let level = if key.is_some() {
        Level::Trusted
    } else {
        Level::Pinned
    };
    (
        level,
        named.map_or_else(Vec::new, |known| known.labels.clone()),
    )
}
