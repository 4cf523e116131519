//! `clawmatrix exec`: runs a command on another node; its output comes as it is printed, and its exit
//! code is ours.

use http_body_util::BodyExt as _;
use serde_json::{Map, Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::{CliError, FAILED},
    output::{self, Target},
};
use crate::sse::Events;

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
        if context.common.json {
            block_on(client.post_any("/api/v1/tools/exec", &body))
        } else {
            block_on(follow(&client, &body))
        }
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

/// Prints output as it comes; gives the last event.
async fn follow(client: &Client, body: &Value) -> Result<Value, CliError> {
    let mut response = client.stream("/api/v1/tools/exec", body).await?;
    let mut events = Events::default();
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(|error| incomplete(&error.to_string()))?;
        let Some(bytes) = frame.data_ref() else {
            continue;
        };
        for event in events.feed(bytes).map_err(|e| incomplete(&e.to_string()))? {
            let event: Value =
                serde_json::from_str(&event).map_err(|_| incomplete("an event is not JSON"))?;
            if event.get("outcome").is_some() {
                return Ok(event);
            }
            if event.get("approval").is_some() {
                output::note(&output::clean(
                    event["message"].as_str().unwrap_or_default(),
                ));
                continue;
            }
            let target = if event["stream"] == "stderr" {
                Target::Err
            } else {
                Target::Out
            };
            output::content(target, &output::decoded(&event["text"], &event["base64"]))?;
        }
    }
    Err(incomplete("the stream ended without its end"))
}

fn incomplete(why: &str) -> CliError {
    CliError::failed(
        format!("the answer is incomplete: {why}"),
        "the command may have run, in part or whole",
    )
}
