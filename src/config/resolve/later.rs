//! Keys that are read and checked but have no effect in this version. Saying so at every start is
//! better than silence, and better than refusing a configuration that will be right later.

use serde_json::Value;

use super::Check;
use crate::config::raw::RawConfig;

/// Warns of each key in use whose feature is not built.
pub(super) fn warn(check: &mut Check<'_>, raw: &RawConfig) {
    let on = |value: &Option<Value>| value.as_ref().is_some_and(|v| *v != Value::Bool(false));
    let later = [
        ("routes", raw.routes.as_ref().is_some_and(|r| !r.is_empty())),
        ("telemetry", on(&raw.telemetry)),
        ("audit", raw.audit.as_ref().is_some_and(Value::is_object)),
    ];
    for (key, used) in later {
        if used {
            check.warnings.push(if key == "audit" {
                "the settings of `audit` have no effect in this version: it is on".to_owned()
            } else {
                format!("`{key}` has no effect in this version")
            });
        }
    }
}
