//! The JSON Schema of the configuration, printed from the types, and what OpenClaw's manifest
//! takes from it: the schema, hints for its settings form, and where secrets lie.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::raw::RawConfig;

/// The schema of one type: draft 7 (what OpenClaw reads), without references, without `null`
/// (leaving a key out is the way to say nothing), and without number formats of Rust.
#[must_use]
pub fn schema_of<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft07();
    settings.inline_subschemas = true;
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    tidy(&mut schema);
    schema
}

/// The schema of the configuration. Nothing is required at its top, so that installing the plugin
/// leaves it enabled; what is required is enforced by [`super::Config`].
#[must_use]
pub fn config_schema() -> Value {
    schema_of::<RawConfig>()
}

fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.remove("format");
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|t| t != "null");
                if let [only] = types.as_slice() {
                    object["type"] = only.clone();
                }
            }
            if let Some(Value::Array(branches)) = object.get_mut("anyOf") {
                branches.retain(|b| b.get("type").is_none_or(|t| t != "null"));
                if branches.len() == 1 {
                    let only = branches.remove(0);
                    object.remove("anyOf");
                    if let Value::Object(inner) = only {
                        for (key, value) in inner {
                            object.entry(key).or_insert(value);
                        }
                    }
                }
            }
            if let Some(Value::Array(values)) = object.get_mut("enum") {
                values.retain(|v| !v.is_null());
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = unwrap_lines(text);
            }
            for (key, value) in object.iter_mut() {
                // Their content is data, not schema.
                if !matches!(key.as_str(), "default" | "enum" | "const" | "required") {
                    tidy(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Joins the lines of a paragraph: they are wrapped for the source file only.
fn unwrap_lines(text: &str) -> String {
    text.split("\n\n")
        .map(|p| p.lines().map(str::trim).collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// One key of the configuration, with what the manual says of it.
#[derive(Debug)]
pub struct Field<'a> {
    /// `peers[].url`; `trust.nodes.*.key`.
    pub path: String,
    /// Its schema.
    pub schema: &'a Map<String, Value>,
}

impl Field<'_> {
    /// A text of the schema, empty if it has none.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.schema.get(key).and_then(Value::as_str).unwrap_or("")
    }

    /// Whether its value must never be shown.
    #[must_use]
    pub fn secret(&self) -> bool {
        self.schema.get("writeOnly").is_some_and(|v| v == true)
    }

    /// The path with `*` for list entries, as OpenClaw's manifest writes it.
    #[must_use]
    pub fn dotted(&self) -> String {
        self.path.replace("[]", ".*")
    }
}

/// Every key with a title, parents before children, in the order of the types.
#[must_use]
pub fn fields(schema: &Value) -> Vec<Field<'_>> {
    let mut found = Vec::new();
    collect(schema, "", &mut found);
    found
}

fn collect<'a>(schema: &'a Value, path: &str, found: &mut Vec<Field<'a>>) {
    let Some(object) = schema.as_object() else {
        return;
    };
    if let Some(properties) = object.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            if let Some(schema) = property.as_object()
                && schema.contains_key("title")
            {
                found.push(Field {
                    path: path.clone(),
                    schema,
                });
            }
            collect(property, &path, found);
        }
    }
    if let Some(items) = object.get("items") {
        collect(items, &format!("{path}[]"), found);
    }
    if let Some(values) = object.get("additionalProperties") {
        collect(values, &format!("{path}.*"), found);
    }
    for branch in object
        .get("anyOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        collect(branch, path, found);
    }
}

/// `uiHints` of OpenClaw's manifest.
#[must_use]
pub fn ui_hints(schema: &Value) -> Value {
    let mut hints = Map::new();
    for field in fields(schema) {
        let mut hint = Map::new();
        hint.insert("label".into(), field.text("title").into());
        hint.insert("help".into(), field.text("description").into());
        if field.secret() {
            hint.insert("sensitive".into(), true.into());
        }
        hints.insert(field.dotted(), hint.into());
    }
    hints.into()
}

/// `configContracts.secretInputs` of OpenClaw's manifest.
#[must_use]
pub fn secret_inputs(schema: &Value) -> Value {
    let paths: Vec<Value> = fields(schema)
        .iter()
        .filter(|field| field.secret())
        .map(|field| json!({"path": field.dotted(), "expected": "string"}))
        .collect();
    json!({ "paths": paths })
}

/// Puts the configuration's schema, hints and secret paths into a plugin manifest; everything else
/// in it stays.
pub fn fill_manifest(manifest: &mut Map<String, Value>) {
    let schema = config_schema();
    let hints = ui_hints(&schema);
    let secrets = secret_inputs(&schema);
    // OpenClaw needs neither the dialect nor a title there.
    let mut own = schema;
    if let Some(object) = own.as_object_mut() {
        object.shift_remove("$schema");
    }
    manifest.insert("configSchema".into(), own);
    manifest.insert("uiHints".into(), hints);
    let contracts = manifest
        .entry("configContracts")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Some(contracts) = contracts.as_object_mut() {
        contracts.insert("secretInputs".into(), secrets);
    }
}

/// The schema that stands at a place of a configuration, with whether a secret lies there.
pub(super) fn at<'a>(schema: &'a Value, path: &[String]) -> (Option<&'a Value>, bool) {
    let secret = schema.get("writeOnly").is_some_and(|v| v == true);
    let Some((first, rest)) = path.split_first() else {
        return (Some(schema), secret);
    };
    let step = schema
        .get("properties")
        .and_then(|p| p.get(first))
        .or_else(|| schema.get("additionalProperties").filter(|a| a.is_object()))
        .or_else(|| schema.get("items"));
    if let Some(next) = step {
        let (found, inner) = at(next, rest);
        return (found, secret || inner);
    }
    for branch in schema
        .get("anyOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let (found, inner) = at(branch, path);
        if found.is_some() {
            return (found, secret || inner);
        }
    }
    (None, secret)
}
