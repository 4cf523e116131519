//! `clawmatrix send`: a message for an agent of another node.

use serde_json::json;

use super::{
    Context,
    chat::from_stdin,
    client::{Client, block_on},
    error::CliError,
    output,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// For whom: `node/agent`, an agent, a node, `tags:<tag>` or `any`.
    target: String,
    /// What to say; read from standard input when it is not given.
    message: Option<String>,
    /// Do not wake the agent: it sees the message in its next turn.
    #[arg(long)]
    no_wake: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let message = match &args.message {
        Some(message) => message.clone(),
        None => from_stdin("nothing to say", "clawmatrix send TARGET MESSAGE")?,
    };
    let client = Client::open(&context.common)?;
    let body = json!({"target": args.target, "message": message, "wake": !args.no_wake});
    let sent = block_on(client.post_long("/api/v1/send", &body))?;
    if context.common.json {
        output::json(&sent)?;
    } else if sent["delivered"] == true {
        let node = sent["nodeId"].as_str().unwrap_or_default();
        output::line(&format!("delivered to {}", output::clean(node)))?;
    } else {
        output::line("queued: it goes out when the node is back, within a day")?;
    }
    Ok(0)
}
