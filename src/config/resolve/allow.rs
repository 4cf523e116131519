//! `allow` lists and other patterns.

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::{Check, entries};
use crate::config::{Allow, problem::quote, raw};

/// An `allow` list: node name patterns and `label:` entries. A self-asserted tag grants nothing,
/// so one in an `allow` is an error (protocol 8.1).
pub(super) fn allow(
    check: &mut Check<'_>,
    path: &str,
    list: Option<&raw::List<String>>,
) -> Option<Allow> {
    let mut texts = Vec::new();
    let mut labels = Vec::new();
    for (i, entry) in entries(list?) {
        let path = format!("{path}[{i}]");
        if let Some(label) = entry.strip_prefix("label:") {
            labels.extend(check.label(&path, label));
        } else if entry.starts_with("tag:") || entry.starts_with("tags:") {
            check.problem(
                path,
                format!(
                    "{}: tags are self-asserted and cannot allow anything",
                    quote(entry)
                ),
                "give the node a label in `trust.nodes` and write `label:<name>`",
            );
        } else if glob(check, &path, entry).is_some() {
            texts.push(entry.clone());
        }
    }
    Some(Allow {
        nodes: set(&texts),
        patterns: texts,
        labels,
    })
}

/// Names with `*` and `?` as one set; every name when there is no list.
pub(super) fn names(check: &mut Check<'_>, path: &str, list: Option<&[Option<String>]>) -> GlobSet {
    match list {
        Some(_) => set(&patterns(check, path, list)),
        None => set(&["*".to_owned()]),
    }
}

/// Names with `*` and `?`, each checked.
pub(super) fn patterns(
    check: &mut Check<'_>,
    path: &str,
    list: Option<&[Option<String>]>,
) -> Vec<String> {
    entries(list.unwrap_or_default())
        .filter(|(i, text)| glob(check, &format!("{path}[{i}]"), text).is_some())
        .map(|(_, text)| text.clone())
        .collect()
}

pub(super) fn glob(check: &mut Check<'_>, path: &str, text: &str) -> Option<Glob> {
    if text.is_empty() {
        check.problem(
            path,
            "is empty",
            "write a name, or a pattern with `*` and `?`",
        );
        return None;
    }
    match Glob::new(text) {
        Ok(glob) => Some(glob),
        Err(error) => {
            check.problem(
                path,
                format!("{} is not a pattern: {}", quote(text), error.kind()),
                "write a name, or a pattern with `*` and `?` such as `home-*`",
            );
            None
        }
    }
}

fn set(texts: &[String]) -> GlobSet {
    let mut builder = GlobSetBuilder::new();
    for glob in texts.iter().filter_map(|t| Glob::new(t).ok()) {
        builder.add(glob);
    }
    // Each pattern compiled on its own; together they only share their tables.
    builder.build().unwrap_or_else(|_| GlobSet::empty())
}
