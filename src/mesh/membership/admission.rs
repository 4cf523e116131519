//! How many names that nobody here has met a neighbour may bring in (protocol 6.2).

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::Introducer;
use crate::{
    ids::NodeId,
    mesh::bucket::Bucket,
    trust::Level,
    wire::limits::{SEEN_PER_MINUTE, SEEN_PER_NEIGHBOUR, SEEN_PER_TRUSTED, SEEN_SETTLE},
};

/// A neighbour that has brought nothing new for this long starts anew.
const IDLE: Duration = Duration::from_secs(120);

/// Counts new names by the neighbour that brought them.
#[derive(Debug, Default)]
pub(super) struct Introducers(HashMap<NodeId, (Instant, Bucket)>);

impl Introducers {
    /// Whether `from`, which has brought so many names that live, may bring one more.
    pub(super) fn allow(&mut self, from: &Introducer, brought: usize, now: Instant) -> bool {
        let most = if from.level == Level::Trusted {
            SEEN_PER_TRUSTED
        } else {
            SEEN_PER_NEIGHBOUR
        };
        if brought >= most {
            return false;
        }
        if now.saturating_duration_since(from.since) < SEEN_SETTLE {
            return true;
        }
        // One a second is the same rate as 60 a minute, and needs no window.
        let per_second = SEEN_PER_MINUTE / 60;
        let (last, bucket) = self
            .0
            .entry(from.node.clone())
            .or_insert_with(|| (now, Bucket::new(per_second, SEEN_PER_MINUTE, now)));
        *last = now;
        bucket.take_strictly(now)
    }

    /// Forgets those that have brought nothing for a while.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.0
            .retain(|_, (last, _)| now.saturating_duration_since(*last) < IDLE);
    }
}
