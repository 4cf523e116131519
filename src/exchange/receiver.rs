//! The receiving half of a stream: items in any order in, in order and exactly once out
//! (protocol 5.4).
//!
//! Pure: time comes in as an argument. Bounded three ways: by the credit it granted, by the
//! distance of an early item from the expected one, and by the budgets.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{
    budget::{Held, ITEM_COST},
    sender::Time,
};
use crate::wire::limits::{MAX_WINDOW, RTO_MIN, STREAM_LOST_AFTER, UNACKED_ITEMS};

/// Chunks up to this size are joined while the consumer is busy elsewhere, so that a slow one
/// neither holds nor is handed thousands of tiny items.
const JOIN_BYTES: usize = 16 * 1024;

/// Acks sent at once while one gap is open.
const GAP_ACKS: u32 = 3;

/// What arrives with a number: `L` leads the data (`accept`, `head`), `T` ends it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part<L, T> {
    pub(super) lead: Option<L>,
    pub(super) data: Bytes,
    pub(super) last: Option<T>,
}

/// What became of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is in order; the consumer has something.
    Ready,
    /// It is early and waits.
    Early,
    /// It was here before.
    Duplicate,
    /// A budget has no room; it will be sent again.
    NoRoom,
}

/// How the other side broke the rules; the stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Violation {
    /// More data than its credit.
    Credit,
    /// An item after the last one, or a second last one.
    PastEnd,
    /// A number no honest sender could have reached.
    Jump,
    /// More data than announced or allowed in all.
    TooLong,
}

/// When an ack is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// Nothing to say.
    No,
    /// With the next batch.
    Batch,
    /// At once.
    Now,
}

/// Numbered items from one peer.
#[derive(Debug)]
pub(super) struct Receiver<L, T> {
    next: u64,
    ahead: BTreeMap<u64, Part<L, T>>,
    ready: VecDeque<Part<L, T>>,
    /// Bytes taken, early ones included.
    received: u64,
    /// The same in order only.
    in_order: u64,
    consumed: u64,
    max: u64,
    window: u64,
    /// Most bytes in all.
    limit: u64,
    last: Option<u64>,
    due: Due,
    told_max: u64,
    /// Bytes and items that arrived since the last ack.
    untold_bytes: u64,
    untold_items: u64,
    /// When and where the present window began to be emptied.
    epoch: (Time, u64),
    gap_since: Option<Time>,
    /// Items that came early since the present gap opened.
    early: u32,
    /// An item that was here before and has come again, and when.
    again: Option<(u64, Time)>,
    held: Held,
}

impl<L, T> Receiver<L, T> {
    /// `window` is the first credit; more than `limit` bytes in all are refused.
    pub(super) fn new(window: u64, limit: u64, now: Time, held: Held) -> Self {
        Self {
            next: 0,
            ahead: BTreeMap::new(),
            ready: VecDeque::new(),
            received: 0,
            in_order: 0,
            consumed: 0,
            max: window,
            window,
            limit,
            last: None,
            due: Due::No,
            told_max: window,
            untold_bytes: 0,
            untold_items: 0,
            epoch: (now, 0),
            gap_since: None,
            early: 0,
            again: None,
            held,
        }
    }

    /// Takes one item.
    ///
    /// # Errors
    /// [`Violation`]; the item is not taken.
    pub(super) fn arrive(
        &mut self,
        seq: u64,
        part: Part<L, T>,
        now: Time,
    ) -> Result<Arrival, Violation> {
        let past_end = self
            .last
            .is_some_and(|last| seq > last || (part.last.is_some() && seq != last));
        if past_end {
            return Err(Violation::PastEnd);
        }
        if seq < self.next || self.ahead.contains_key(&seq) {
            self.due = self.due.max(Due::Batch);
            return Ok(Arrival::Duplicate);
        }
        let ends = part.last.is_some();
        if ends
            && self
                .ahead
                .last_key_value()
                .is_some_and(|(far, _)| *far > seq)
        {
            return Err(Violation::PastEnd);
        }
        if seq - self.next >= UNACKED_ITEMS {
            return Err(Violation::Jump);
        }
        let bytes = part.data.len() as u64;
        if self.received + bytes > self.limit {
            return Err(Violation::TooLong);
        }
        if self.received + bytes > self.max {
            return Err(Violation::Credit);
        }
        let cost = part.data.len() + ITEM_COST;
        if ends && bytes == 0 {
            self.held.force(cost);
        } else if !self.held.grow(cost) {
            return Ok(Arrival::NoRoom);
        }
        self.received += bytes;
        if ends {
            self.last = Some(seq);
        }
        self.untold_bytes += bytes;
        self.untold_items += 1;
        if seq != self.next {
            self.ahead.insert(seq, part);
            if self.gap_since.is_none() {
                self.gap_since = Some(now);
                self.early = 0;
            }
            self.early += 1;
            // The first acks tell of the gap; the rest would only tell the same again.
            let due = if self.early <= GAP_ACKS {
                Due::Now
            } else {
                Due::Batch
            };
            self.due = self.due.max(due);
            return Ok(Arrival::Early);
        }
        self.admit(part);
        if !self.ahead.is_empty() {
            // A gap closes: the sender is in recovery and waits for word.
            self.due = Due::Now;
            while let Some(part) = self.ahead.remove(&self.next) {
                self.admit(part);
            }
            self.gap_since = (!self.ahead.is_empty()).then_some(now);
            self.early = 0;
        }
        let much = self.untold_bytes * 2 >= self.window || self.untold_items * 2 >= UNACKED_ITEMS;
        self.due = self.due.max(if much { Due::Now } else { Due::Batch });
        Ok(Arrival::Ready)
    }

    /// Item `seq` was here before. Whether that is so for the second time, long enough after the first
    /// for our word of it to have arrived: then what we say gets lost.
    pub(super) fn came_again(&mut self, seq: u64, now: Time, rtt: Option<Duration>) -> bool {
        self.due = self.due.max(Due::Batch);
        if seq >= self.next {
            // It waits behind a gap, of which acks do not speak.
            return false;
        }
        match self.again {
            Some((same, since)) if same == seq => {
                let pause = rtt.map_or(RTO_MIN, |rtt| (rtt * 4).max(RTO_MIN));
                let unheard = now.saturating_sub(since) >= pause;
                if unheard {
                    self.again = Some((seq, now));
                }
                unheard
            }
            _ => {
                self.again = Some((seq, now));
                false
            }
        }
    }

    /// Says once more what has arrived: the last word of it may be lost.
    pub(super) fn remind(&mut self) {
        if self.next > 0 {
            self.due = self.due.max(Due::Batch);
        }
    }

    /// Puts the expected item into the ready queue.
    fn admit(&mut self, part: Part<L, T>) {
        self.next += 1;
        self.in_order += part.data.len() as u64;
        if part.lead.is_none() && part.last.is_none() {
            if part.data.is_empty() {
                self.held.shrink(ITEM_COST);
                return;
            }
            if let Some(tail) = self.ready.back_mut()
                && tail.last.is_none()
                && tail.lead.is_none()
                && tail.data.len() + part.data.len() <= JOIN_BYTES
            {
                let mut joined = match std::mem::take(&mut tail.data).try_into_mut() {
                    Ok(own) => own,
                    Err(shared) => {
                        let mut own = BytesMut::with_capacity(2 * (shared.len() + part.data.len()));
                        own.extend_from_slice(&shared);
                        own
                    }
                };
                joined.extend_from_slice(&part.data);
                tail.data = joined.freeze();
                self.held.shrink(ITEM_COST);
                return;
            }
        }
        self.ready.push_back(part);
    }

    /// The next item in order. Taking it is what grants further credit.
    pub(super) fn pop(&mut self, now: Time, rtt: Option<Duration>) -> Option<Part<L, T>> {
        let part = self.ready.pop_front()?;
        self.held.shrink(part.data.len() + ITEM_COST);
        self.consumed += part.data.len() as u64;
        if self.complete() {
            return Some(part);
        }
        if self.consumed - self.epoch.1 >= self.window {
            let quick = rtt.is_some_and(|rtt| now.saturating_sub(self.epoch.0) <= rtt * 2);
            if quick && !self.held.tight() {
                self.window = (self.window * 2).min(MAX_WINDOW);
            }
            self.epoch = (now, self.consumed);
        }
        self.max = self.max.max(self.consumed + self.window);
        if self.max > self.told_max {
            let half = (self.max - self.told_max) * 2 >= self.window;
            self.due = self.due.max(if half { Due::Now } else { Due::Batch });
        }
        Some(part)
    }

    /// Whether the consumer has something to take.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether the last item has arrived in order.
    pub(super) fn complete(&self) -> bool {
        self.last.is_some_and(|last| self.next > last)
    }

    /// Number of the item expected next.
    pub(super) fn next_seq(&self) -> u64 {
        self.next
    }

    /// Bytes that have arrived in order.
    pub(super) fn in_order_bytes(&self) -> u64 {
        self.in_order
    }

    /// Bytes that arrived since the last ack.
    pub(super) fn untold_bytes(&self) -> u64 {
        self.untold_bytes
    }

    /// When an ack is due.
    pub(super) fn due(&self) -> Due {
        self.due
    }

    /// What to ack: `next` and `max`.
    pub(super) fn take_ack(&mut self) -> (u64, u64) {
        self.due = Due::No;
        self.told_max = self.max;
        self.untold_bytes = 0;
        self.untold_items = 0;
        (self.next, self.max)
    }

    /// Looks at the clock: whether a gap stayed open too long. An open gap is acked again.
    pub(super) fn tick(&mut self, now: Time) -> bool {
        let Some(since) = self.gap_since else {
            return false;
        };
        self.due = self.due.max(Due::Batch);
        now.saturating_sub(since) >= STREAM_LOST_AFTER
    }

    /// Gives back everything held: nobody will take it any more.
    pub(super) fn clear(&mut self) {
        for part in self
            .ready
            .drain(..)
            .chain(std::mem::take(&mut self.ahead).into_values())
        {
            self.held.shrink(part.data.len() + ITEM_COST);
        }
        self.gap_since = None;
    }
}
