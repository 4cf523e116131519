//! What the parts below the local API count, in the text form of Prometheus.

use crate::{
    audit::Audit,
    control::metrics::{MetricSource, counter, gauge},
    drain::Tasks,
    exchange::Exchange,
    mesh::{Mesh, view::Reach},
    telemetry::Dropped,
};

/// Exchanges, links and the log of one node.
#[derive(Debug)]
pub(super) struct NodeMetrics {
    pub(super) exchange: Exchange,
    pub(super) mesh: Mesh,
    pub(super) log: Dropped,
    pub(super) audit: Audit,
    pub(super) tasks: Tasks,
}

impl MetricSource for NodeMetrics {
    fn write(&self, out: &mut String) {
        let stats = self.exchange.stats();
        let of = |who: &str| format!("{{of=\"{who}\"}}");
        counter(
            out,
            "clawmatrix_exchanges_total",
            "Requests to other nodes (ours) and from them (theirs).",
            &[
                (of("ours"), stats.outbound_total),
                (of("theirs"), stats.inbound_total),
            ],
        );
        gauge(
            out,
            "clawmatrix_exchanges_open",
            "Requests under way.",
            &[
                (of("ours"), stats.outbound_open as f64),
                (of("theirs"), stats.inbound_open as f64),
            ],
        );
        gauge(
            out,
            "clawmatrix_held_bytes",
            "Bytes held for streams and bodies.",
            &[(String::new(), stats.bytes_held as f64)],
        );
        let by_reason = |drops: Vec<(&'static str, u64)>| -> Vec<_> {
            drops
                .into_iter()
                .map(|(reason, count)| (format!("{{reason=\"{reason}\"}}"), count))
                .collect()
        };
        counter(
            out,
            "clawmatrix_stream_drops_total",
            "Items of streams that were not used.",
            &by_reason(stats.drops),
        );
        counter(
            out,
            "clawmatrix_link_drops_total",
            "Frames and connections that were refused, by reason.",
            &by_reason(self.mesh.drops()),
        );
        let by_kind: Vec<_> = self
            .mesh
            .alerts()
            .into_iter()
            .map(|(kind, count)| (format!("{{kind=\"{kind}\"}}"), count))
            .collect();
        counter(
            out,
            "clawmatrix_mesh_alerts_total",
            "What nodes did against the rules of the mesh, by kind.",
            &by_kind,
        );
        let view = self.mesh.view();
        let linked = view
            .borrow()
            .nodes
            .values()
            .filter(|n| n.reach == Reach::Direct)
            .count();
        gauge(
            out,
            "clawmatrix_links",
            "Nodes linked directly.",
            &[(String::new(), linked as f64)],
        );
        gauge(
            out,
            "clawmatrix_tasks",
            "Tasks of this process, connections to the local API apart.",
            &[(String::new(), self.tasks.running() as f64)],
        );
        let carried = self.mesh.carried();
        counter(
            out,
            "clawmatrix_link_bytes_total",
            "Bytes of sealed records on links.",
            &[
                ("{direction=\"sent\"}".to_owned(), carried.sent),
                ("{direction=\"received\"}".to_owned(), carried.received),
            ],
        );
        counter(
            out,
            "clawmatrix_relayed_bytes_total",
            "Bytes of other nodes' frames passed on.",
            &[(String::new(), carried.relayed)],
        );
        counter(
            out,
            "clawmatrix_relayed_frames_total",
            "Other nodes' frames passed on.",
            &[(String::new(), carried.relayed_frames)],
        );
        counter(
            out,
            "clawmatrix_log_lines_lost_total",
            "Log lines nobody read in time.",
            &[(String::new(), self.log.count())],
        );
        let audit = self.audit.stats();
        counter(
            out,
            "clawmatrix_audit_lines_total",
            "Lines of the audit record, and those that could not be written.",
            &[
                ("{result=\"written\"}".to_owned(), audit.written),
                ("{result=\"lost\"}".to_owned(), audit.lost),
            ],
        );
    }
}
