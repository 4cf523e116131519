//! `clawmatrix handoff`: gives a task to an agent of another node; the answer streams to the terminal.

use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::{
    Context,
    chat::from_stdin,
    client::{Client, block_on},
    error::CliError,
    output,
};
use crate::sse::Events;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// For whom: `node/agent`, an agent, a node, `tags:<tag>` or `any`.
    target: Option<String>,
    /// The task; read from standard input when it is not given.
    task: Option<String>,
    /// What the agent should know besides the task.
    #[arg(long, value_name = "TEXT")]
    context: Option<String>,
    /// The session of an earlier handoff, to continue it.
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
    /// Longest silence of the agent, in seconds [default: handoffTimeout].
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
    /// Do not wait: print the handoff's id and leave it running.
    #[arg(long)]
    detach: bool,
    /// Show state and result of a handoff instead.
    #[arg(long, value_name = "ID", conflicts_with_all = ["target", "cancel"])]
    show: Option<String>,
    /// Cancel a handoff instead.
    #[arg(long, value_name = "ID", conflicts_with = "target")]
    cancel: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let client = Client::open(&context.common)?;
    let (method, id) = match (&args.show, &args.cancel) {
        (Some(id), _) => (Method::GET, id),
        (None, Some(id)) => (Method::DELETE, id),
        (None, None) => return hand_off(&client, args, context),
    };
    let path = format!("/api/v1/handoff/{id}");
    let state = block_on(client.call(method, &path, None))?;
    output::json(&state)?;
    Ok(0)
}

fn hand_off(client: &Client, args: &Args, context: &Context) -> Result<u8, CliError> {
    let Some(target) = &args.target else {
        return Err(CliError::with(
            super::error::USAGE,
            "nobody is named",
            "`clawmatrix handoff TARGET TASK`; `clawmatrix agents` lists who there is",
        ));
    };
    let task = match &args.task {
        Some(task) => task.clone(),
        None => from_stdin("nothing to do", "clawmatrix handoff TARGET TASK")?,
    };
    let body = json!({
        "target": target,
        "task": task,
        "context": args.context,
        "session": args.session,
        "timeout": args.timeout,
        "detach": args.detach,
    });
    if args.detach {
        let state = block_on(client.post_long("/api/v1/handoff", &body))?;
        if context.common.json {
            output::json(&state)?;
        } else {
            output::line(state["handoffId"].as_str().unwrap_or_default())?;
        }
        return Ok(0);
    }
    let end = block_on(follow(client, &body, context.common.json))?;
    if context.common.json {
        output::json(&end)?;
    }
    if let Some(session) = end["session"].as_str()
        && end["outcome"] == "input_required"
    {
        output::note(&format!(
            "the agent asks back; answer with --session {}",
            output::clean(session)
        ));
    }
    if end["success"] == true {
        return Ok(0);
    }
    let error = &end["error"];
    Err(CliError::failed(
        output::clean(error["message"].as_str().unwrap_or("the handoff failed")),
        "",
    ))
}

/// Prints text as it comes; gives the last event.
async fn follow(client: &Client, body: &Value, quiet: bool) -> Result<Value, CliError> {
    let mut response = client.stream("/api/v1/handoff", body).await?;
    let mut events = Events::default();
    let mut printed = String::new();
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(|error| incomplete(&error.to_string()))?;
        let Some(bytes) = frame.data_ref() else {
            continue;
        };
        for event in events.feed(bytes).map_err(|e| incomplete(&e.to_string()))? {
            let event: Value =
                serde_json::from_str(&event).map_err(|_| incomplete("an event is not JSON"))?;
            if let Some(text) = event["text"].as_str() {
                printed.push_str(text);
                if !quiet {
                    output::print(&output::clean_text(text))?;
                }
            } else if let Some(name) = event["name"].as_str() {
                if !quiet && event["phase"] == "start" {
                    output::note(&format!("[{}]", output::clean(name)));
                }
            } else if event.get("outcome").is_some() {
                if !quiet {
                    end_line(&printed, event["result"].as_str().unwrap_or_default())?;
                }
                return Ok(event);
            }
        }
    }
    Err(incomplete("the stream ended without its end"))
}

/// The result, unless the pieces have shown it already.
fn end_line(printed: &str, result: &str) -> Result<(), CliError> {
    let shown = printed.trim_end().ends_with(result.trim());
    if !printed.is_empty() && !printed.ends_with('\n') {
        output::line("")?;
    }
    if shown {
        return Ok(());
    }
    output::line(&output::clean_text(result))
}

fn incomplete(why: &str) -> CliError {
    CliError::failed(
        format!("the answer is incomplete: {why}"),
        "the agent may have done the task in part",
    )
}
