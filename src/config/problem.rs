//! What can be wrong with a configuration, and how it is told: all of it at once, each with its
//! place, its value (never a secret's) and the way out.

use std::fmt::Write as _;

use serde_json::Value;

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `peers[2].url`.
    pub path: String,
    /// What, with the value unless it is a secret.
    pub message: String,
    /// How to mend it.
    pub hint: String,
}

/// Why there is no configuration to run with; exit code 78.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", render(.0))]
pub struct ConfigError(pub Vec<Problem>);

impl ConfigError {
    /// A single problem.
    #[must_use]
    pub fn one(
        path: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self(vec![Problem {
            path: path.into(),
            message: message.into(),
            hint: hint.into(),
        }])
    }
}

/// All problems as text, in the form of every message of this program.
#[must_use]
pub fn render(problems: &[Problem]) -> String {
    let mut text = String::new();
    for problem in problems {
        if !text.is_empty() {
            text.push('\n');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "error: ");
        if !problem.path.is_empty() {
            let _ = write!(text, "`{}`: ", problem.path);
        }
        let _ = write!(text, "{}", problem.message);
        if !problem.hint.is_empty() {
            let _ = write!(text, "\n  hint: {}", problem.hint);
        }
    }
    text
}

/// A path of keys and list positions as people write it: `peers[2].url`.
pub(super) fn path_text<'a>(segments: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for segment in segments {
        if segment.bytes().all(|b| b.is_ascii_digit()) && !segment.is_empty() && !text.is_empty() {
            let _ = write!(text, "[{segment}]");
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.extend(segment.chars().flat_map(char::escape_debug).take(128));
        }
    }
    text
}

/// A value in a message: short, on one line, and never the content of an object or list, which
/// may hold a secret.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("`{n}`"),
        Value::String(s) => quote(s),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// A text in a message: quoted, escaped, at most 80 characters.
pub(super) fn quote(text: &str) -> String {
    let short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    let more = if text.chars().count() > 80 { "…" } else { "" };
    format!("`{short}{more}`")
}

/// The candidate most like `word`, if one is near enough to be what was meant.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let folded = word.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (distance(&folded, &c.to_lowercase()), c))
        .filter(|(d, c)| *d <= (c.chars().count().max(folded.chars().count()) / 3).max(1))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Edits between two texts: insert, delete, replace, swap of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = usize::from(a[i - 1] != b[j - 1]);
                let mut best = (rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(rows[i - 1][j - 1] + change);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_found_for_a_slip_only() {
        let keys = ["nodeId", "listenPort", "listenHost", "peers"];
        assert_eq!(nearest("nodeid", keys), Some("nodeId"));
        assert_eq!(nearest("listenprot", keys), Some("listenPort"));
        assert_eq!(nearest("peer", keys), Some("peers"));
        assert_eq!(nearest("bogus", keys), None);
    }

    #[test]
    fn paths_read_as_people_write_them() {
        assert_eq!(path_text(["peers", "2", "url"]), "peers[2].url");
        assert_eq!(
            path_text(["trust", "nodes", "a", "key"]),
            "trust.nodes.a.key"
        );
        assert_eq!(path_text(["bad\nkey"]), "bad\\nkey");
    }

    #[test]
    fn values_never_show_what_an_object_holds() {
        assert_eq!(show(&serde_json::json!({"secret": "s"})), "an object");
        assert_eq!(quote("a\u{1b}[1m").matches('\u{1b}').count(), 0);
    }
}
