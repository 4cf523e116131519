//! `clawmatrix exec`: runs a command on another node; its output comes as it is printed, and its exit
//! code is ours.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::{CliError, FAILED},
    output::{self, Target},
};
/// ClawMatrix failed, not the command; as ssh does.
const NOT_THE_COMMAND: u8 = 255;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where: a node, `tags:<tag>` or `any`.
    node: String,
    /// Program and arguments, run without a shell.
    #[arg(
        required_unless_present = "shell",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
    /// A text for the shell there instead.
    #[arg(short = 'c', long, value_name = "TEXT", conflicts_with = "command")]
    shell: Option<String>,
    /// Folder to run it in.
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Longest run, in seconds [default: execTimeout of the node].
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
    /// Set an environment variable, where the node lets callers set it.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "write NAME=VALUE".to_owned())
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let ended = Client::open(&context.common).and_then(|client| {
        let body = body(args);
        block_on(follow(&client, &body, !context.common.json))
    });
    let end = ended.map_err(|mut error| {
        if error.code == FAILED {
            error.code = NOT_THE_COMMAND;
        }
        error
    })?;
    if context.common.json {
        output::json(&end)?;
    } else if end["truncated"] == true {
        output::note("the output is longer than the node lends; its end is missing");
    }
    if end["outcome"] != "completed" {
        let message = end["error"]["message"].as_str().unwrap_or("no reason");
        return Err(CliError::with(NOT_THE_COMMAND, output::clean(message), ""));
    }
    if let Some(signal) = end["signal"].as_str() {
        output::note(&format!("ended by {}", output::clean(signal)));
        return Ok(NOT_THE_COMMAND);
    }
    let code = end["exitCode"]
        .as_u64()
        .and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(NOT_THE_COMMAND))
}

fn body(args: &Args) -> Value {
    let mut body = Map::new();
    body.insert("node".into(), json!(args.node));
    match &args.shell {
        Some(text) => body.insert("command".into(), json!(text)),
        None => body.insert("argv".into(), json!(args.command)),
    };
    if let Some(folder) = &args.workdir {
        body.insert("workdir".into(), json!(folder));
    }
    if let Some(seconds) = args.timeout {
        body.insert("timeout".into(), json!(seconds));
    }
    if !args.env.is_empty() {
        let env: Map<String, Value> = args
            .env
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        body.insert("env".into(), Value::Object(env));
    }
    Value::Object(body)
}

/// Follows the command to its end and gives the last event. Its output is printed as it comes, or, as
/// JSON, put into that event.
async fn follow(client: &Client, body: &Value, printed: bool) -> Result<Value, CliError> {
    let path = "/api/v1/tools/exec";
    let mut told = if printed {
        client.tell(path, body).await?
    } else {
        client.tell_any(path, body).await?
    };
    let mut gathered = [Vec::new(), Vec::new()];
    loop {
        let next = told.next().await;
        let Some(event) = next.map_err(|error| incomplete(error.message()))? else {
            return Err(incomplete("the stream ended without its end"));
        };
        if event.get("outcome").is_some() {
            return Ok(if printed {
                event
            } else {
                whole(event, &gathered)
            });
        }
        if event.get("approval").is_some() {
            output::note(&output::clean(
                event["message"].as_str().unwrap_or_default(),
            ));
            continue;
        }
        let piece = output::decoded(&event["text"], &event["base64"]);
        let (at, target) = match event["stream"].as_str() {
            Some("stderr") => (1, Target::Err),
            _ => (0, Target::Out),
        };
        if printed {
            output::content(target, &piece)?;
        } else {
            gathered[at].extend_from_slice(&piece);
        }
    }
}

/// The answer of a command as the node gives it in one piece.
fn whole(mut end: Value, [stdout, stderr]: &[Vec<u8>; 2]) -> Value {
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        end[name] = match std::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => {
                end[format!("{name}Encoding")] = json!("base64");
                json!(BASE64_STANDARD.encode(bytes))
            }
        };
    }
    end
}

fn incomplete(why: &str) -> CliError {
    CliError::failed(
        format!("the answer is incomplete: {why}"),
        "the command may have run, in part or whole",
    )
}
