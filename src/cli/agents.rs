//! `clawmatrix agents`: who can be given tasks and messages from here.

use serde_json::{Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::CliError,
    output,
};

pub(super) fn run(context: &Context) -> Result<u8, CliError> {
    let client = Client::open(&context.common)?;
    let status = block_on(client.get("/api/v1/status"))?;
    let empty = Vec::new();
    let mut agents = Vec::new();
    let mut add = |node: &Value, state: Value, offered: &Value| {
        for agent in offered.as_array().unwrap_or(&empty) {
            agents.push(json!({
                "nodeId": node,
                "id": agent["id"],
                "description": agent["description"].as_str().unwrap_or_default(),
                "tags": agent["tags"].as_array().unwrap_or(&empty),
                "state": state,
            }));
        }
    };
    add(&status["nodeId"], json!("local"), &status["agents"]);
    for peer in status["peers"].as_array().unwrap_or(&empty) {
        add(&peer["nodeId"], peer["state"].clone(), &peer["agents"]);
    }
    if context.common.json {
        output::json(&agents)?;
        return Ok(0);
    }
    if agents.is_empty() {
        output::note(
            "no agent is offered here or by a known node; `agents` in the configuration offers some",
        );
    }
    let paint = context.paint;
    for agent in &agents {
        let text = |key: &str| output::clean(agent[key].as_str().unwrap_or_default());
        let name = format!("{}/{}", text("nodeId"), text("id"));
        let away = agent["state"] == "unreachable";
        let name = if away {
            paint.dim(&name)
        } else {
            paint.bold(&name)
        };
        let mut line = format!("{name}  {}", text("state"));
        let description = text("description");
        if !description.is_empty() {
            line.push_str("  ");
            line.push_str(&description);
        }
        output::line(&line)?;
    }
    Ok(0)
}
