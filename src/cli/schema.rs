//! `clawmatrix schema`: every schema of this program, printed from its types.

use std::{fs, path::PathBuf};

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{
    Context,
    error::{CliError, USAGE},
    output,
};
use crate::{config::schema as config, mesh::view::Descriptor, shim, wire::shapes};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which one: config, descriptor, to-sidecar, from-sidecar, or a frame: inner-chunk, link-ping
    /// [default: config].
    #[arg(value_parser = known)]
    name: Option<String>,
    /// Write all of them into a folder, as `<name>.schema.json`.
    #[arg(long, value_name = "DIR", conflicts_with = "name")]
    write: Option<PathBuf>,
    /// Put schema, hints and secret paths of the configuration into a plugin manifest.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    manifest: Option<PathBuf>,
    /// Write the table of all settings as Markdown.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    manual: Option<PathBuf>,
}

/// The schemas there are beside those of frames.
const NAMES: [&str; 4] = ["config", "to-sidecar", "from-sidecar", "descriptor"];

/// Every name.
fn names() -> Vec<String> {
    let frames = shapes::schemas().into_iter().map(|(name, _)| name);
    NAMES.into_iter().map(str::to_owned).chain(frames).collect()
}

/// Reads a name.
fn known(name: &str) -> Result<String, String> {
    let names = names();
    if names.iter().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    Err(format!("there are {}", names.join(", ")))
}

pub(super) fn run(args: &Args, _context: &Context) -> Result<u8, CliError> {
    let mut wrote = false;
    if let Some(dir) = &args.write {
        for name in names() {
            let path = dir.join(format!("{name}.schema.json"));
            write(&path, &text(&schema(&name)))?;
        }
        wrote = true;
    }
    if let Some(path) = &args.manifest {
        let before = fs::read_to_string(path).map_err(|error| {
            CliError::failed(format!("cannot read `{}`: {error}", path.display()), "")
        })?;
        write(path, &manifest(&before)?)?;
        wrote = true;
    }
    if let Some(path) = &args.manual {
        write(path, &manual())?;
        wrote = true;
    }
    if !wrote {
        output::print(&text(&schema(args.name.as_deref().unwrap_or("config"))))?;
    }
    Ok(0)
}

fn write(path: &std::path::Path, text: &str) -> Result<(), CliError> {
    fs::write(path, text).map_err(|error| {
        CliError::failed(format!("cannot write `{}`: {error}", path.display()), "")
    })
}

fn schema(name: &str) -> Value {
    let messages = SchemaSettings::draft2020_12();
    match name {
        "to-sidecar" => messages
            .into_generator()
            .into_root_schema_for::<shim::ToSidecar>()
            .to_value(),
        "from-sidecar" => messages
            .for_serialize()
            .into_generator()
            .into_root_schema_for::<shim::FromSidecar>()
            .to_value(),
        "descriptor" => messages
            .into_generator()
            .into_root_schema_for::<Descriptor>()
            .to_value(),
        "config" => config::config_schema(),
        frame => {
            let mut frames = shapes::schemas().into_iter();
            // Names are checked when the arguments are read.
            frames
                .find(|(name, _)| name == frame)
                .map_or(Value::Null, |(_, schema)| schema)
        }
    }
}

fn text(value: &Value) -> String {
    // Printing a value of strings, numbers, lists and objects cannot fail.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// A manifest with its configuration part made anew.
fn manifest(before: &str) -> Result<String, CliError> {
    let mut manifest: Map<String, Value> = serde_json::from_str(before).map_err(|error| {
        CliError::with(
            USAGE,
            format!("the manifest is not a JSON object: {error}"),
            "",
        )
    })?;
    config::fill_manifest(&mut manifest);
    Ok(text(&manifest.into()))
}

/// The table of all settings.
fn manual() -> String {
    let schema = config::config_schema();
    let mut out = String::from(
        "# Configuration\n\n\
         One JSON object: `plugins.entries.clawmatrix.config` in OpenClaw's configuration, or the file of a node \
         without OpenClaw (`~/.config/clawmatrix/node.json`, or `clawmatrix run --config FILE`).\n\n\
         Every mistake is told at once, with its place, its value and the way out; the exit code is 78.\n\n\
         `[]` stands for each entry of a list, `*` for each name. This page is printed from the program \
         (`clawmatrix schema --manual docs/configuration.md`); a test fails when it differs.\n\n\
         | key | type | default | meaning |\n| --- | --- | --- | --- |\n",
    );
    for field in config::fields(&schema) {
        let default = field
            .schema
            .get("default")
            .map_or_else(String::new, |d| format!("`{d}`"));
        let meaning = field
            .text("description")
            .replace('|', "\\|")
            .replace('\n', " ");
        let secret = if field.secret() {
            " Never shown in messages."
        } else {
            ""
        };
        out.push_str(&format!(
            "| `{}` | {} | {default} | {meaning}{secret} |\n",
            field.path,
            kind(&Value::Object(field.schema.clone()))
        ));
    }
    out
}

/// A type as people say it.
fn kind(schema: &Value) -> String {
    if let Some(options) = schema["enum"].as_array() {
        let options: Vec<String> = options.iter().map(|o| format!("`{o}`")).collect();
        return options.join(" or ");
    }
    if let Some(branches) = schema["anyOf"].as_array() {
        let kinds: Vec<String> = branches.iter().map(kind).collect();
        return kinds.join(" or ");
    }
    match schema["type"].as_str().unwrap_or_default() {
        "integer" => match (schema["minimum"].as_u64(), schema["maximum"].as_u64()) {
            (Some(low), Some(high)) => format!("{low} to {high}"),
            (Some(low), None) => format!("number from {low}"),
            _ => "number".to_owned(),
        },
        "string" => "text".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => match schema["items"]["type"].as_str() {
            Some("string") => "list of texts".to_owned(),
            _ => "list".to_owned(),
        },
        _ => "object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Files printed from the types and kept in the repository, with the command that renews them.
    #[test]
    fn printed_files_are_up_to_date() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        for name in names() {
            let path = format!("schemas/{name}.schema.json");
            assert!(
                read(&path) == text(&schema(&name)),
                "{path} differs: `cargo run -- schema --write schemas`"
            );
        }
        let path = "plugin/openclaw.plugin.json";
        assert!(
            read(path) == manifest(&read(path)).unwrap(),
            "{path} differs: `cargo run -- schema --manifest {path}`"
        );
        let path = "docs/configuration.md";
        assert!(
            read(path) == manual(),
            "{path} differs: `cargo run -- schema --manual {path}`"
        );
    }

    #[test]
    fn manifest_keeps_what_is_not_ours() {
        let before = r#"{"id": "clawmatrix", "configContracts": {"other": 1}, "contracts": {"tools": ["t"]}}"#;
        let after: Value = serde_json::from_str(&manifest(before).unwrap()).unwrap();
        assert_eq!(after["contracts"]["tools"][0], "t");
        assert_eq!(after["configContracts"]["other"], 1);
        assert_eq!(after["configSchema"]["type"], "object");
        assert!(after["configSchema"].get("required").is_none());
        assert_eq!(after["uiHints"]["secret"]["sensitive"], true);
        let paths = after["configContracts"]["secretInputs"]["paths"]
            .as_array()
            .unwrap();
        assert!(paths.iter().any(|p| p["path"] == "models.*.apiKey"));
    }
}
