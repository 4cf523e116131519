//! `clawmatrix events`: what happens on this node, as it happens.

use serde_json::Value;

use super::{
    Context,
    client::{Client, block_on},
    error::CliError,
    output::{self, Paint, clean},
};
use crate::civil::utc;

/// Prints events until Ctrl-C, or until nobody reads them.
pub(super) fn run(context: &Context) -> Result<u8, CliError> {
    let client = Client::open(&context.common)?;
    block_on(async {
        let mut told = client.watch("/api/v1/events").await?;
        while let Some(event) = told.next().await? {
            let text = if context.common.json {
                format!("{event}\n")
            } else {
                shown(&event, context.paint)
            };
            if !output::print_while_read(&text)? {
                return Ok(0);
            }
        }
        Err(CliError::failed(
            "the node has stopped",
            "events go on with `clawmatrix events` once it is back",
        ))
    })
}

/// One line.
fn shown(event: &Value, paint: Paint) -> String {
    let text = |key: &str| clean(event[key].as_str().unwrap_or_default());
    let kind = text("type");
    let time = utc(event["timeMs"].as_u64().unwrap_or(0) / 1000);
    let head = format!("{} {kind:<17}", paint.dim(&time));
    let who = || {
        let to = event["to"].as_str().map_or("here".into(), clean);
        format!("{} -> {to} {}", text("from"), text("action"))
    };
    let rest = match &*kind {
        "request_started" => who(),
        "request_ended" => format!("{} {}, {} ms", who(), text("result"), event["durationMs"]),
        "verdict" => format!("{} {} by `{}`", who(), text("decision"), text("rule"),),
        "approval_asked" => format!("{} {}, level {}", text("id"), who(), event["level"]),
        "approval_decided" => format!("{} {} {}", text("id"), who(), text("decision")),
        "gap" => format!("{} events were missed", event["missed"]),
        _ => match event["reachableVia"].as_str() {
            Some(via) => format!("{} via {}", text("nodeId"), clean(via)),
            None => text("nodeId"),
        },
    };
    format!("{head} {rest}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_event_is_one_inert_line() {
        for (event, line) in [
            (
                json!({"type": "approval_asked", "timeMs": 0, "id": "0a0b0c0d", "from": "home", "to": "office",
                    "action": "tool:exec", "level": 2}),
                "approval_asked    0a0b0c0d home -> office tool:exec, level 2\n",
            ),
            (
                json!({"type": "approval_decided", "timeMs": 0, "id": "0a0b0c0d", "from": "home", "to": "office",
                    "action": "tool:exec", "decision": "denied"}),
                "approval_decided  0a0b0c0d home -> office tool:exec denied\n",
            ),
            (
                json!({"type": "request_ended", "timeMs": 0, "from": "home", "to": "office", "action": "model:x\u{1b}[2J",
                    "result": "completed", "durationMs": 7}),
                "request_ended     home -> office model:x\\u{1b}[2J completed, 7 ms\n",
            ),
            (
                json!({"type": "verdict", "timeMs": 0, "from": "home", "to": null, "action": "tool:exec",
                    "decision": "deny", "rule": "default"}),
                "verdict           home -> here tool:exec deny by `default`\n",
            ),
            (
                json!({"type": "route_changed", "timeMs": 0, "nodeId": "office", "reachableVia": "cloud"}),
                "route_changed     office via cloud\n",
            ),
            (
                json!({"type": "gap", "timeMs": 0, "missed": 3}),
                "gap               3 events were missed\n",
            ),
        ] {
            let shown = shown(&event, Paint::PLAIN);
            assert_eq!(shown, format!("1970-01-01T00:00:00Z {line}"));
        }
    }
}
