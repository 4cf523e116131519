//! `clawmatrix models`: what is usable from here.

use http::Method;
use serde_json::{Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::CliError,
    output::{self, Paint, clean},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List them; the same as no verb.
    List,
    /// Forget the models of a node that will not come back.
    Forget {
        /// The node.
        node: String,
        /// One of its models [default: all].
        model: Option<String>,
    },
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let client = Client::open(&context.common)?;
    match &args.verb {
        None | Some(Verb::List) => {
            let models = block_on(client.get("/v1/models"))?;
            if context.common.json {
                output::json(&models)?;
            } else {
                output::print(&render(&models, context.paint))?;
            }
        }
        Some(Verb::Forget { node, model }) => {
            let body = json!({"node": node, "model": model});
            let answer = block_on(client.call(Method::POST, "/api/v1/models/forget", Some(&body)))?;
            let count = answer["forgotten"].as_u64().unwrap_or(0);
            if context.common.json {
                output::json(&answer)?;
            } else if count > 0 {
                output::line(&format!(
                    "forgot {count} {} of {}",
                    if count == 1 { "model" } else { "models" },
                    clean(node)
                ))?;
            }
            if count == 0 {
                return Err(CliError::failed(
                    format!("no such model of `{}` is remembered", clean(node)),
                    "`clawmatrix models` lists what is; what a live node lends comes back at once",
                ));
            }
        }
    }
    Ok(0)
}

/// A table of the models named with their node; the bare ids are the same models again.
fn render(models: &Value, paint: Paint) -> String {
    let empty = Vec::new();
    let all = models["data"].as_array().unwrap_or(&empty);
    let text = |model: &Value, keys: &[&str]| {
        keys.iter()
            .find_map(|k| match &model[*k] {
                Value::String(s) => Some(clean(s)),
                Value::Number(n) => Some(n.to_string()),
                _ => None,
            })
            .unwrap_or_default()
    };
    let rows: Vec<[String; 4]> = all
        .iter()
        .filter(|m| {
            let id = m["id"].as_str().unwrap_or_default();
            let node = m["owned_by"].as_str().unwrap_or_default();
            id.strip_prefix(node)
                .is_some_and(|rest| rest.starts_with('/'))
        })
        .map(|m| {
            [
                text(m, &["id"]),
                text(m, &["context_window", "contextWindow"]),
                text(m, &["api"]),
                text(m, &["path"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no models are usable from here yet\n".to_owned();
    }
    let head = ["MODEL", "WINDOW", "API", "PATH"].map(str::to_owned);
    let mut widths = [0; 4];
    for row in rows.iter().chain([&head]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 4]| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut out = paint.bold(&line(&head));
    out.push('\n');
    for row in &rows {
        out.push_str(&line(row));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_listed_once_each() {
        let models = json!({"object": "list", "data": [
            {"id": "office-01/qwen/q3", "owned_by": "office-01", "context_window": 128_000, "api": "openai-completions", "path": "direct"},
            {"id": "qwen/q3", "owned_by": "office-01"}
        ]});
        assert_eq!(
            render(&models, Paint::PLAIN),
            "MODEL              WINDOW  API                 PATH\n\
             office-01/qwen/q3  128000  openai-completions  direct\n"
        );
        assert!(render(&json!({"data": []}), Paint::PLAIN).contains("no models"));
    }
}
