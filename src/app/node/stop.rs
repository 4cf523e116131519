//! How a node stops (protocol 6.6b).

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{ENDPOINT, Node};

/// What is left of the grace period for parts to close their files once the work has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long answers that say why they end may take to leave.
const TELL_TIMEOUT: Duration = Duration::from_millis(300);
/// How often a drain looks whether the last request of another node has ended.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

impl Node {
    /// Takes no new work, lets running work finish for `grace`, then stops it (protocol 6.6b).
    pub(in crate::app) async fn drain(self, grace: Duration) {
        let begun = Instant::now();
        self.mesh.announce_shutdown(grace);
        self.api.drain();
        // Nobody waits for a person on a node that ends.
        self.desk.close();
        self.inbox.close();
        // Who watches would keep his connection, and us, for as long as we wait.
        self.events.close();
        self.exchange.drain();
        let open = self.exchange.stats();
        if open.outbound_open + open.inbound_open > 0 {
            tracing::info!(
                grace_s = grace.as_secs(),
                ours = open.outbound_open,
                of_others = open.inbound_open,
                "draining"
            );
        }
        let served = async {
            while self.exchange.stats().inbound_open > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        let (finished, ()) = tokio::join!(timeout(grace, served), self.local.close(grace));
        if finished.is_err() {
            // Who waits for a command hears that it was ended, not silence.
            self.tools.end_all();
            let told = async {
                while self.exchange.stats().inbound_open > 0 {
                    tokio::time::sleep(DRAIN_LOOK).await;
                }
            };
            let _ = timeout(TELL_TIMEOUT, told).await;
        }
        self.mesh.shutdown(CLOSE_TIMEOUT.min(grace)).await;
        self.state.remove(ENDPOINT);
        // The last lines, and a signature under them.
        let last = async { tokio::join!(self.audit.flush(), self.budgets.flush()) };
        let _ = timeout(CLOSE_TIMEOUT, last).await;
        self.tasks.close(Duration::ZERO).await;
        tracing::info!(
            finished = finished.is_ok(),
            ms = millis(begun.elapsed()),
            "node has stopped"
        );
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
