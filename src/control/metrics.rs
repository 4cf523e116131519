//! `/metrics`: each part writes what it counts, in the text form of Prometheus.

use std::fmt::{Debug, Write};

use crate::exchange::Exchange;

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

impl MetricSource for Exchange {
    fn write(&self, out: &mut String) {
        let stats = self.stats();
        let one = |value: u64| [(String::new(), value)];
        // Counts of one process stay far below what a float holds exactly.
        let now = |value: usize| [(String::new(), value as f64)];
        for (name, help, value) in [
            (
                "clawmatrix_requests_sent_total",
                "Requests sent to other nodes.",
                stats.outbound_total,
            ),
            (
                "clawmatrix_requests_taken_total",
                "Requests taken from other nodes.",
                stats.inbound_total,
            ),
            (
                "clawmatrix_items_resent_total",
                "Parts of streams sent again.",
                stats.items_resent,
            ),
        ] {
            counter(out, name, help, &one(value));
        }
        for (name, help, value) in [
            (
                "clawmatrix_requests_sent_open",
                "Requests of ours now under way.",
                stats.outbound_open,
            ),
            (
                "clawmatrix_requests_taken_open",
                "Requests of others now under way.",
                stats.inbound_open,
            ),
            (
                "clawmatrix_held_bytes",
                "Bytes held for streams and bodies.",
                stats.bytes_held,
            ),
        ] {
            gauge(out, name, help, &now(value));
        }
        let drops: Vec<_> = stats
            .drops
            .iter()
            .map(|(why, count)| (format!("{{reason=\"{why}\"}}"), *count))
            .collect();
        let help = "Frames of exchanges that were not used.";
        counter(out, "clawmatrix_exchange_dropped_total", help, &drops);
    }
}
