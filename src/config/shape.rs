//! First check: does the configuration have the shape of its schema? What does not is reported
//! and taken out, so that the rest can be checked for meaning in the same go.

use jsonschema::error::{TypeKind, ValidationError, ValidationErrorKind};
use serde_json::Value;

use super::{
    problem::{Problem, nearest, path_text, quote, show},
    schema,
    substitute::Substituted,
};

/// Checks `config` against `schema` and takes out what is wrong. `done` tells which values came
/// from environment variables and may be secret, and which are gone already.
pub(super) fn check(config: &mut Value, schema: &Value, done: &Substituted) -> Vec<Problem> {
    if !config.is_object() {
        let problem = Problem {
            path: String::new(),
            message: format!("the configuration is {}, not an object", show(config)),
            hint: "write `{\"nodeId\": …, \"secretFile\": …}`, or run `clawmatrix setup`".into(),
        };
        *config = Value::Object(serde_json::Map::new());
        return vec![problem];
    }
    let validator = jsonschema::draft7::new(schema).expect("the generated schema is a valid one");
    let mut findings = Vec::new();
    for error in validator.iter_errors(config) {
        explain(&error, schema, done, &mut findings);
    }
    let mut problems = Vec::with_capacity(findings.len());
    for (problem, place) in findings {
        if let Some(place) = place {
            take_out(config, &place);
        }
        problems.push(problem);
    }
    problems
}

/// What is wrong, and the place to take out if there is something to take out.
type Finding = (Problem, Option<Vec<String>>);

fn explain(
    error: &ValidationError<'_>,
    schema: &Value,
    done: &Substituted,
    findings: &mut Vec<Finding>,
) {
    let place = segments(error);
    if done.gone.contains(&place) {
        return;
    }
    let (here, secret) = schema::at(schema, &place);
    let secret = secret || done.hidden.contains(&place);
    let value = if secret {
        "the value (not shown)".to_owned()
    } else {
        show(error.instance())
    };
    let about = here.map(help).unwrap_or_default();
    let mut add = |message: String, hint: String| {
        let path = path_text(place.iter().map(String::as_str));
        findings.push((
            Problem {
                path,
                message,
                hint,
            },
            Some(place.clone()),
        ));
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let known: Vec<&str> = here
                .and_then(|h| {
                    h.get("properties")
                        .or_else(|| object_branch(h)?.get("properties"))
                })
                .and_then(Value::as_object)
                .map(|p| p.keys().map(String::as_str).collect())
                .unwrap_or_default();
            for key in unexpected {
                let mut inner = place.clone();
                inner.push(key.clone());
                let hint = match nearest(key, known.iter().copied()) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None if known.len() <= 12 => format!("known here: {}", listed(&known)),
                    None => "remove it; `clawmatrix schema` prints every key".into(),
                };
                let path = path_text(inner.iter().map(String::as_str));
                let message = "unknown key".to_owned();
                findings.push((
                    Problem {
                        path,
                        message,
                        hint,
                    },
                    Some(inner),
                ));
            }
        }
        ValidationErrorKind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            let mut inner = place.clone();
            inner.push(key.to_owned());
            let path = path_text(inner.iter().map(String::as_str));
            let hint = schema::at(schema, &inner).0.map(help).unwrap_or_default();
            let message = "missing".to_owned();
            findings.push((
                Problem {
                    path,
                    message,
                    hint,
                },
                None,
            ));
        }
        ValidationErrorKind::Type { kind } => {
            add(format!("{value} is not {}", expected(kind)), about);
        }
        ValidationErrorKind::Enum { options } => {
            let options: Vec<&str> = options
                .as_array()
                .map(|o| o.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            let guess = error.instance().as_str().filter(|_| !secret);
            let hint = match guess.and_then(|g| nearest(g, options.iter().copied())) {
                Some(name) => format!("did you mean `{name}`?"),
                None => about,
            };
            add(format!("{value} is not one of {}", listed(&options)), hint);
        }
        ValidationErrorKind::Minimum { limit } => {
            add(format!("{value} is less than {limit}"), about)
        }
        ValidationErrorKind::Maximum { limit } => {
            add(format!("{value} is more than {limit}"), about)
        }
        ValidationErrorKind::MinLength { .. } => add(format!("{value} is too short"), about),
        ValidationErrorKind::MaxLength { limit } => {
            add(format!("{value} is longer than {limit} characters"), about);
        }
        ValidationErrorKind::MaxItems { limit } => {
            add(format!("more than {limit} entries"), about);
        }
        ValidationErrorKind::AnyOf { context } => {
            // The branch that was meant: one whose own type fits, so that its inner errors are
            // worth telling. Without one, the kinds of value that would fit.
            let meant = context.iter().find(|branch| {
                !branch
                    .iter()
                    .any(|e| segments(e) == place && is_kind(e.kind()))
            });
            match meant {
                Some(branch) => {
                    for inner in branch {
                        explain(inner, schema, done, findings);
                    }
                }
                None => {
                    let kinds: Vec<String> = context
                        .iter()
                        .flatten()
                        .filter(|e| segments(e) == place)
                        .map(|e| kind_text(e.kind()))
                        .collect();
                    add(format!("{value} is not {}", kinds.join(" or ")), about);
                }
            }
        }
        _ => add(format!("{value} does not fit"), about),
    }
}

/// Whether an error says that the value is of another kind altogether.
fn is_kind(kind: &ValidationErrorKind) -> bool {
    matches!(
        kind,
        ValidationErrorKind::Type { .. } | ValidationErrorKind::Enum { .. }
    )
}

fn kind_text(kind: &ValidationErrorKind) -> String {
    match kind {
        ValidationErrorKind::Type { kind } => expected(kind),
        ValidationErrorKind::Enum { options } => options
            .as_array()
            .map(|o| listed(&o.iter().filter_map(Value::as_str).collect::<Vec<_>>()))
            .unwrap_or_default(),
        other => other.keyword().to_owned(),
    }
}

fn expected(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(kind) => article(kind.as_str()).to_owned(),
        TypeKind::Multiple(kinds) => kinds
            .iter()
            .map(|k| article(k.as_str()))
            .collect::<Vec<_>>()
            .join(" or "),
    }
}

fn article(kind: &str) -> &'static str {
    match kind {
        "string" => "a text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        "array" => "a list",
        "object" => "an object",
        _ => "nothing",
    }
}

fn listed(names: &[&str]) -> String {
    names
        .iter()
        .map(|n| quote(n))
        .collect::<Vec<_>>()
        .join(", ")
}

/// What the manual says of a place: title and first sentence.
fn help(schema: &Value) -> String {
    let text = schema
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or("");
    let end = text.find(". ").unwrap_or(text.trim_end_matches('.').len());
    text[..end].to_owned()
}

fn object_branch(schema: &Value) -> Option<&Value> {
    schema
        .get("anyOf")?
        .as_array()?
        .iter()
        .find(|b| b.get("properties").is_some())
}

fn segments(error: &ValidationError<'_>) -> Vec<String> {
    error
        .instance_path()
        .as_str()
        .split('/')
        .skip(1)
        .map(|s| s.replace("~1", "/").replace("~0", "~"))
        .collect()
}

/// Removes a key; an entry of a list becomes null, so that the others keep their index.
fn take_out(config: &mut Value, place: &[String]) {
    let Some((last, parents)) = place.split_last() else {
        return;
    };
    let mut at = config;
    for segment in parents {
        let next = match at {
            Value::Object(object) => object.get_mut(segment),
            Value::Array(items) => segment.parse::<usize>().ok().and_then(|i| items.get_mut(i)),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => return,
        }
    }
    match at {
        Value::Object(object) => {
            object.shift_remove(last);
        }
        Value::Array(items) => {
            if let Some(item) = last.parse::<usize>().ok().and_then(|i| items.get_mut(i)) {
                *item = Value::Null;
            }
        }
        _ => {}
    }
}
