//! `clawmatrix usage`: what other nodes use of what this one lets them have.

use serde_json::Map;

use super::{
    Context,
    client::{Client, block_on},
    error::CliError,
    output,
};

pub(super) fn run(context: &Context) -> Result<u8, CliError> {
    let client = Client::open(&context.common)?;
    let usage = block_on(client.get("/api/v1/usage"))?;
    if context.common.json {
        output::json(&usage)?;
        return Ok(0);
    }
    let none = (Vec::new(), Map::new());
    let peers = usage["peers"].as_array().unwrap_or(&none.0);
    let limits = &usage["limits"];
    let unlimited = |of: &str| limits[of].as_object().is_none_or(Map::is_empty);
    if unlimited("perPeer") && unlimited("rules") {
        output::note(
            "nothing is limited, so nothing is counted: `limits.perPeer`, and `limits` of a rule, set what other nodes may use",
        );
        return Ok(0);
    }
    if peers.is_empty() {
        output::note("no other node has used anything that is limited");
        return Ok(0);
    }
    let paint = context.paint;
    for peer in peers {
        let key = peer["keyId"].as_str().unwrap_or_default();
        let name = output::clean(peer["nodeId"].as_str().unwrap_or(key));
        output::line(&paint.bold(&name))?;
        for account in peer["usage"].as_array().unwrap_or(&none.0) {
            let under = match account["rule"].as_str() {
                Some(rule) => format!("rule `{}`", output::clean(rule)),
                None => "`limits.perPeer`".to_owned(),
            };
            let limits = account["limits"].as_object().unwrap_or(&none.1);
            let shown: Vec<String> = limits
                .iter()
                .map(|(name, limit)| {
                    let text = format!("{} {} of {}", words(name), limit["used"], limit["most"]);
                    if limit["used"].as_u64() >= limit["most"].as_u64() {
                        paint.yellow(&text)
                    } else {
                        text
                    }
                })
                .collect();
            output::line(&format!("  {under}: {}", shown.join(", ")))?;
        }
    }
    let left = usage["resetsIn"].as_u64().unwrap_or_default();
    output::line(&paint.dim(&format!(
        "the day ends in {} h {} min",
        left / 3600,
        left % 3600 / 60
    )))?;
    Ok(0)
}

/// The name of a limit, as people read it.
fn words(name: &str) -> &str {
    match name {
        "requestsPerMinute" => "requests in a minute",
        "concurrent" => "requests at once",
        "requestsPerDay" => "requests today",
        "tokensPerDay" => "tokens today",
        "bytesPerDay" => "bytes today",
        other => other,
    }
}
