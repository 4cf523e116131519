//! `/metrics`: each part writes what it counts, in the text form of Prometheus.

use std::fmt::{Debug, Write};

/// Something that counts.
pub trait MetricSource: Send + Sync + Debug {
    /// Appends its metrics.
    fn write(&self, out: &mut String);
}

/// Appends one counter with its values; each has its labels, `{status="2xx"}`, or none.
pub fn counter(out: &mut String, name: &str, help: &str, values: &[(String, u64)]) {
    family(out, name, help, "counter");
    for (labels, value) in values {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

/// The same for a value that also falls.
pub fn gauge(out: &mut String, name: &str, help: &str, values: &[(String, f64)]) {
    family(out, name, help, "gauge");
    for (labels, value) in values {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

fn family(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
