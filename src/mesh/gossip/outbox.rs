//! What one neighbour still has to hear, and how fast (protocol 6.4).
//!
//! Items, not records, wait: whatever is the newest when an item's turn comes is sent, so that a
//! neighbour that is slow gets fewer versions instead of a longer queue.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    mesh::signed::{Item, Signed},
    wire::limits::{
        GOSSIP_BYTES_PER_SECOND, GOSSIP_FRAMES_BURST, GOSSIP_FRAMES_PER_SECOND, LEAF_BATCH_PER_NODE,
    },
};

/// When a pause for want of tokens or room is over.
const AGAIN: Duration = Duration::from_millis(50);

/// A rate and what is left of it.
#[derive(Debug)]
struct Pace {
    per_second: f64,
    burst: f64,
    left: f64,
}

impl Pace {
    fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second: f64::from(per_second),
            burst: f64::from(burst),
            left: f64::from(burst),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.left = (self.left + time.as_secs_f64() * self.per_second).min(self.burst);
    }
}

/// The queue of one neighbour. Bounded by the number of items there are.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: VecDeque<Item>,
    queued: HashSet<Item>,
    /// Link states for a node that does not relay, until the next batch.
    later: BTreeSet<Item>,
    batch_at: Option<Instant>,
    bytes: Pace,
    frames: Pace,
    at: Instant,
}

impl Outbox {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            queue: VecDeque::new(),
            queued: HashSet::new(),
            later: BTreeSet::new(),
            batch_at: None,
            bytes: Pace::new(GOSSIP_BYTES_PER_SECOND, GOSSIP_BYTES_PER_SECOND),
            frames: Pace::new(GOSSIP_FRAMES_PER_SECOND, GOSSIP_FRAMES_BURST),
            at: now,
        }
    }

    /// Queues an item.
    pub(super) fn put(&mut self, item: Item) {
        self.later.remove(&item);
        if self.queued.insert(item) {
            self.queue.push_back(item);
        }
    }

    /// Queues an item for the next batch.
    pub(super) fn put_later(&mut self, item: Item) {
        if !self.queued.contains(&item) {
            self.later.insert(item);
        }
    }

    /// The neighbour has it.
    pub(super) fn drop_item(&mut self, item: &Item) {
        self.later.remove(item);
        // Its place in the queue is passed over when its turn comes.
        self.queued.remove(item);
    }

    /// Queues what waited for a batch, `every` so often.
    pub(super) fn release(&mut self, every: Duration, now: Instant) {
        if self.later.is_empty() {
            return;
        }
        if self.batch_at.is_none_or(|at| now >= at) {
            self.batch_at = Some(now + every.max(LEAF_BATCH_PER_NODE));
            for item in std::mem::take(&mut self.later) {
                self.put(item);
            }
        }
    }

    /// The next record, if one may go now. `record` gives the newest of an item.
    pub(super) fn pop(
        &mut self,
        now: Instant,
        record: impl Fn(&Item) -> Option<Signed>,
    ) -> Option<Signed> {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        self.bytes.pass(passed);
        self.frames.pass(passed);
        loop {
            if self.bytes.left <= 0.0 || self.frames.left < 1.0 {
                return None;
            }
            let item = self.queue.pop_front()?;
            if !self.queued.remove(&item) {
                continue;
            }
            // Gone since it was queued.
            let Some(record) = record(&item) else {
                continue;
            };
            self.bytes.left -= record.bytes() as f64;
            self.frames.left -= 1.0;
            return Some(record);
        }
    }

    /// When something may go, if anything waits.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        if !self.queued.is_empty() {
            return Some(now + AGAIN);
        }
        let batch = self.batch_at.unwrap_or(now);
        (!self.later.is_empty()).then_some(batch)
    }
}
