//! `clawmatrix can`: is this allowed here, by which rule?

use http::Method;
use serde_json::{Map, Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::{CliError, FAILED, USAGE},
    output,
};
use crate::policy::{EDIT, EXEC, LIST, READ, WRITE};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The node that would ask.
    from: String,
    /// The tool: `exec`, `read`, `write`, `edit`, `list`, or any other name.
    action: String,
    /// The node that would be touched: the one this command runs on.
    node: String,
    /// For exec program and arguments, for files the path.
    #[arg(last = true)]
    args: Vec<String>,
    /// For exec: a text for the shell instead.
    #[arg(short = 'c', long, value_name = "TEXT", conflicts_with = "args")]
    shell: Option<String>,
    /// As if a model asked, and no person.
    #[arg(long)]
    agent: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let client = Client::open(&context.common)?;
    let mut body = Map::new();
    body.insert("from".into(), json!(args.from));
    body.insert("action".into(), json!(args.action));
    body.insert("node".into(), json!(args.node));
    body.insert("agent".into(), json!(args.agent));
    let tool = args.action.strip_prefix("tool:").unwrap_or(&args.action);
    match (tool, &*args.args, &args.shell) {
        (EXEC, [], Some(text)) => body.insert("command".into(), json!(text)),
        (EXEC, [_, ..], None) => body.insert("argv".into(), json!(args.args)),
        (READ | WRITE | EDIT | LIST, [path], None) => body.insert("path".into(), json!(path)),
        (EXEC | READ | WRITE | EDIT | LIST, ..) => {
            return Err(CliError::with(
                USAGE,
                format!("say what `{}` would touch", output::clean(tool)),
                "`clawmatrix can home-01 exec office-01 -- git status`, `clawmatrix can home-01 read office-01 -- /srv/a.txt`",
            ));
        }
        _ => None,
    };
    let path = "/api/v1/policy/can";
    let answer = block_on(client.call(Method::POST, path, Some(&Value::Object(body))))?;
    if context.common.json {
        output::json(&answer)?;
    } else {
        output::line(&told(&answer))?;
    }
    Ok(if answer["allowed"] == true { 0 } else { FAILED })
}

/// `deny by `default`: no pattern of `paths` fits`
pub(super) fn told(answer: &Value) -> String {
    let text = |key: &str| output::clean(answer[key].as_str().unwrap_or_default());
    let mut line = format!("{} by `{}`", text("verdict"), text("rule"));
    if answer["verdict"] != "deny" {
        line.push_str(&format!(", level {}", answer["level"]));
    }
    if answer["note"].is_string() {
        line.push_str(": ");
        line.push_str(&text("note"));
    }
    line
}
