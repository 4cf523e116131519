//! `${VAR}` in texts of a configuration file, for a node without OpenClaw. Under OpenClaw the
//! gateway has put the values in before the plugin sees them, and nothing is done here.

use std::collections::BTreeSet;

use serde_json::Value;

use super::problem::{Problem, path_text};

/// A set of places in a configuration.
pub(super) type Places = BTreeSet<Vec<String>>;

/// What putting the variables in left behind.
#[derive(Debug, Default)]
pub(super) struct Substituted {
    /// Places whose text came from the environment: it may be secret and is never shown.
    pub(super) hidden: Places,
    /// Places whose text was taken out, because a variable is not set.
    pub(super) gone: Places,
    /// One for each variable that is not set.
    pub(super) problems: Vec<Problem>,
}

/// Puts the values of variables in place of `${VAR}`; `$${VAR}` stays as `${VAR}`. A variable that
/// is not set is a problem, and its text is taken out.
pub(super) fn substitute(config: &mut Value, env: &dyn Fn(&str) -> Option<String>) -> Substituted {
    let mut walk = Walk {
        env,
        done: Substituted::default(),
    };
    walk.visit(config, &mut Vec::new());
    walk.done
}

struct Walk<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    done: Substituted,
}

impl Walk<'_> {
    /// False when the value must be taken out.
    fn visit(&mut self, value: &mut Value, path: &mut Vec<String>) -> bool {
        match value {
            Value::String(text) => return self.text(text, path),
            Value::Object(object) => {
                let mut unset = Vec::new();
                for (key, inner) in object.iter_mut() {
                    path.push(key.clone());
                    if !self.visit(inner, path) {
                        unset.push(key.clone());
                    }
                    path.pop();
                }
                for key in unset {
                    object.shift_remove(&key);
                }
            }
            Value::Array(items) => {
                for (index, inner) in items.iter_mut().enumerate() {
                    path.push(index.to_string());
                    if !self.visit(inner, path) {
                        *inner = Value::Null;
                    }
                    path.pop();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        true
    }

    fn text(&mut self, text: &mut String, path: &[String]) -> bool {
        let mut out = String::new();
        let mut rest = text.as_str();
        let mut complete = true;
        let mut changed = false;
        while let Some(at) = rest.find("${") {
            let Some((name, after)) = variable(&rest[at..]) else {
                out.push_str(&rest[..at + 2]);
                rest = &rest[at + 2..];
                continue;
            };
            changed = true;
            if at > 0 && rest.as_bytes()[at - 1] == b'$' {
                out.push_str(&rest[..at]);
                out.push_str(&rest[at + 1..rest.len() - after.len()]);
            } else {
                out.push_str(&rest[..at]);
                match (self.env)(name).filter(|v| !v.is_empty()) {
                    Some(value) => {
                        self.done.hidden.insert(path.to_vec());
                        out.push_str(&value);
                    }
                    None => {
                        complete = false;
                        self.done.gone.insert(path.to_vec());
                        self.done.problems.push(Problem {
                            path: path_text(path.iter().map(String::as_str)),
                            message: format!("environment variable `{name}` is not set"),
                            hint: format!(
                                "set `{name}` for the process that runs the node, or write `$${{{name}}}` for the text itself"
                            ),
                        });
                    }
                }
            }
            rest = after;
        }
        if changed {
            out.push_str(rest);
            *text = out;
        }
        complete
    }
}

/// The name and what follows, of a text that starts with `${NAME}`.
fn variable(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix("${")?;
    let end = inner.find('}')?;
    let name = &inner[..end];
    let valid = name
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    valid.then(|| (name, &inner[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(mut value: Value) -> (Value, Places, Vec<Problem>) {
        let env = |name: &str| (name == "SET").then(|| "value".to_owned());
        let done = substitute(&mut value, &env);
        (value, done.hidden, done.problems)
    }

    #[test]
    fn set_variables_are_put_in_and_marked() {
        let (value, places, problems) =
            run(json!({"a": "x${SET}y", "b": ["$${SET}", "${lower}", "$"]}));
        assert_eq!(
            value,
            json!({"a": "xvaluey", "b": ["${SET}", "${lower}", "$"]})
        );
        assert_eq!(places.len(), 1);
        assert!(problems.is_empty());
    }

    #[test]
    fn unset_variable_is_named_with_its_place() {
        let (value, _, problems) = run(json!({"a": "${UNSET}", "b": ["${UNSET}", "k"]}));
        assert_eq!(value, json!({"b": [null, "k"]}));
        assert_eq!(problems.len(), 2);
        assert_eq!(problems[1].path, "b[0]");
        assert!(problems[0].message.contains("`UNSET` is not set"));
    }
}
