//! What the local API counts.

use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;

use crate::control::metrics::{MetricSource, counter};

/// Counters of the local API.
#[derive(Debug, Default)]
pub struct Counters {
    classes: [AtomicU64; 5],
    models: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    pub(super) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.classes[class].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn model_request(&self) {
        self.models.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl MetricSource for Counters {
    fn write(&self, out: &mut String) {
        let name = "clawmatrix_local_requests_total";
        let classes: Vec<_> = ["1xx", "2xx", "3xx", "4xx", "5xx"]
            .iter()
            .zip(&self.classes)
            .map(|(class, count)| {
                (
                    format!("{{status=\"{class}\"}}"),
                    count.load(Ordering::Relaxed),
                )
            })
            .collect();
        counter(
            out,
            name,
            "Answers of the local API by status class.",
            &classes,
        );
        for (name, help, count) in [
            (
                "clawmatrix_model_requests_total",
                "Requests on the model routes.",
                &self.models,
            ),
            (
                "clawmatrix_local_refused_total",
                "Requests without a valid token.",
                &self.refused,
            ),
        ] {
            let value = count.load(Ordering::Relaxed);
            counter(out, name, help, &[(String::new(), value)]);
        }
    }
}
