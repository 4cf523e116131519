//! `clawmatrix read`, `write`, `edit`, `list` and `tool`: files and tools of another node.

use std::{
    io::{self, Read as _},
    path::PathBuf,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{
    Context,
    client::{Client, block_on},
    error::{CliError, USAGE},
    output::{self, Target},
};

#[derive(Debug, clap::Args)]
pub(super) struct Read {
    /// Where: a node, `tags:<tag>` or `any`.
    node: String,
    /// The file.
    path: String,
    /// First byte.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Bytes wanted.
    #[arg(long, value_name = "BYTES")]
    limit: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Write {
    /// Where: a node, `tags:<tag>` or `any`.
    node: String,
    /// The file.
    path: String,
    /// File whose content is written; standard input if none is given.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Edit {
    /// Where: a node, `tags:<tag>` or `any`.
    node: String,
    /// The file.
    path: String,
    /// The text to replace; it must match exactly, in one place only.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    old: String,
    /// What to put in its place.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    new: String,
    /// Replace it wherever it stands.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Where: a node, `tags:<tag>` or `any`.
    node: String,
    /// The folder.
    path: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Tool {
    /// Where: a node, `tags:<tag>` or `any`.
    node: String,
    /// Name of the tool there.
    tool: String,
    /// Its arguments, a JSON object.
    #[arg(default_value = "{}")]
    args: String,
}

pub(super) fn read(args: &Read, context: &Context) -> Result<u8, CliError> {
    let mut body = json!({"node": args.node, "path": args.path});
    if let Some(offset) = args.offset {
        body["offset"] = json!(offset);
    }
    if let Some(limit) = args.limit {
        body["limit"] = json!(limit);
    }
    let answer = ask("read", &body, context)?;
    if context.common.json {
        output::json(&answer)?;
        return Ok(0);
    }
    let base64 = answer["encoding"] == "base64";
    let (text, encoded) = if base64 {
        (&Value::Null, &answer["content"])
    } else {
        (&answer["content"], &Value::Null)
    };
    output::content(Target::Out, &output::decoded(text, encoded))?;
    if answer["truncated"] == true && args.limit.is_none() {
        output::note("the file goes on; --offset reads further");
    }
    Ok(0)
}

pub(super) fn write(args: &Write, context: &Context) -> Result<u8, CliError> {
    let content = match &args.from {
        Some(file) => std::fs::read(file).map_err(|error| {
            CliError::failed(format!("cannot read `{}`: {error}", file.display()), "")
        })?,
        None => {
            let mut content = Vec::new();
            io::stdin()
                .lock()
                .read_to_end(&mut content)
                .map_err(|error| {
                    CliError::failed(format!("cannot read standard input: {error}"), "")
                })?;
            content
        }
    };
    let body = json!({
        "node": args.node,
        "path": args.path,
        "content": BASE64_STANDARD.encode(content),
        "encoding": "base64",
    });
    let answer = ask("write", &body, context)?;
    told(&answer, context, || {
        format!("{} bytes written on {}", answer["bytes"], node(&answer))
    })
}

pub(super) fn edit(args: &Edit, context: &Context) -> Result<u8, CliError> {
    let body = json!({
        "node": args.node,
        "path": args.path,
        "oldText": args.old,
        "newText": args.new,
        "all": args.all,
    });
    let answer = ask("edit", &body, context)?;
    told(&answer, context, || {
        format!("{} replaced on {}", answer["replaced"], node(&answer))
    })
}

pub(super) fn list(args: &List, context: &Context) -> Result<u8, CliError> {
    let body = json!({"node": args.node, "path": args.path});
    let answer = ask("list", &body, context)?;
    if context.common.json {
        output::json(&answer)?;
        return Ok(0);
    }
    let empty = Vec::new();
    for entry in answer["entries"].as_array().unwrap_or(&empty) {
        let name = output::clean(entry["name"].as_str().unwrap_or_default());
        let mark = match entry["type"].as_str() {
            Some("folder") => "/",
            Some("link") => "@",
            _ => "",
        };
        let size = entry["size"].as_u64().unwrap_or_default();
        output::line(&format!("{size:>12}  {name}{mark}"))?;
    }
    if answer["truncated"] == true {
        output::note("the folder holds more than is shown");
    }
    Ok(0)
}

pub(super) fn tool(args: &Tool, context: &Context) -> Result<u8, CliError> {
    let wanted: Value = serde_json::from_str(&args.args).map_err(|error| {
        CliError::with(
            USAGE,
            format!("the arguments are not JSON: {error}"),
            "write an object, '{\"url\":\"https://example.org\"}'",
        )
    })?;
    let body = json!({"node": args.node, "tool": args.tool, "args": wanted});
    let answer = ask("invoke", &body, context)?;
    let result = if context.common.json {
        &answer
    } else {
        answer.get("result").unwrap_or(&answer)
    };
    output::json(result)?;
    Ok(0)
}

fn ask(verb: &str, body: &Value, context: &Context) -> Result<Value, CliError> {
    let client = Client::open(&context.common)?;
    block_on(client.post_patient(&format!("/api/v1/tools/{verb}"), body))
}

fn node(answer: &Value) -> String {
    output::clean(answer["nodeId"].as_str().unwrap_or_default())
}

fn told(answer: &Value, context: &Context, line: impl FnOnce() -> String) -> Result<u8, CliError> {
    if context.common.json {
        output::json(answer)?;
    } else {
        output::line(&line())?;
    }
    Ok(0)
}
