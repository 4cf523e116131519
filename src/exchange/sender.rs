//! The sending half of a stream: numbered items, kept until acked (protocol 5.4).
//!
//! Pure: time comes in as an argument, frames go out by [`Sender::take`]. An item is pushed when
//! credit allows, is taken when the link has room, and leaves when the other side has acked it.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    budget::{Held, ITEM_COST},
    congestion::{Flight, Flying},
};
use crate::{
    ids::SessionId,
    mesh::session::Class,
    wire::limits::{NOOP_AFTER, RTO_MAX, RTO_MIN, STREAM_LOST_AFTER, UNACKED_ITEMS},
};

/// Time since the exchange layer began.
pub(super) type Time = Duration;

/// Most items sent again at once. Each ack during recovery doubles the number, as the other side
/// has probably kept what came after the gap.
const BURST_MAX: u64 = 64;

/// One item: its JSON with the number in it, and its data.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) json: Bytes,
    pub(super) data: Bytes,
    pub(super) class: Class,
}

/// The other side acked what was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadAck;

/// What a look at the clock found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tick {
    /// Nothing is due.
    Quiet,
    /// Something is to be sent again: call [`Sender::take`].
    Resend,
    /// Credit has been missing for a while with nothing under way: the ack that grants more may
    /// be lost. Push an item without data; its ack tells.
    Probe,
    /// Nothing was acked for [`STREAM_LOST_AFTER`].
    Lost,
}

/// Numbered items on their way to one peer.
#[derive(Debug)]
pub(super) struct Sender {
    /// Items `acked..next`.
    items: VecDeque<Outgoing>,
    acked: u64,
    /// First item never handed to the link.
    fresh: u64,
    next: u64,
    /// Items to be sent again before fresh ones.
    resend: Range<u64>,
    /// Acks below this one come from the same loss.
    recover: u64,
    burst: u64,
    /// Sum of all data pushed, and what the other side allows.
    bytes: u64,
    max: u64,
    /// The last item has been pushed.
    closed: bool,
    backoff: u32,
    /// When the retransmission timer began to run.
    timer: Time,
    /// When the other side last acked something new.
    progress: Time,
    /// When a gap was last answered.
    gap_answered: Option<Time>,
    /// Since when the caller waits for credit, and the pause before the next probe.
    starved: Option<(Time, Duration)>,
    /// It waits for room on the way, in the queue of its node.
    pub(super) queued: bool,
    /// The one session that item 0 may leave in, when protocol 7.1 binds it.
    bound: Option<SessionId>,
    flying: Flying,
    held: Held,
}

impl Sender {
    pub(super) fn new(window: u64, held: Held, flight: Arc<Flight>) -> Self {
        Self {
            items: VecDeque::new(),
            acked: 0,
            fresh: 0,
            next: 0,
            resend: 0..0,
            recover: 0,
            burst: 1,
            bytes: 0,
            max: window,
            closed: false,
            backoff: 0,
            timer: Time::ZERO,
            progress: Time::ZERO,
            gap_answered: None,
            starved: None,
            queued: false,
            bound: None,
            flying: Flying::new(flight),
            held,
        }
    }

    /// Nothing leaves in another session before item 0 is acked: its `at` was read from the clock
    /// of this one (protocol 7.1).
    pub(super) fn bind(&mut self, session: SessionId) {
        self.bound = Some(session);
    }

    /// Whether what it holds must not leave in `session`.
    pub(super) fn strands_without(&self, session: Option<SessionId>) -> bool {
        self.bound.is_some() && self.bound != session && self.acked == 0
    }

    /// Number of the item that [`Sender::push`] takes next.
    pub(super) fn next_seq(&self) -> u64 {
        self.next
    }

    /// Whether the last item was pushed.
    pub(super) fn closed(&self) -> bool {
        self.closed
    }

    /// Whether the last item was pushed and everything is acked.
    pub(super) fn done(&self) -> bool {
        self.closed && self.items.is_empty()
    }

    /// Nobody will ack anything any more.
    pub(super) fn give_up(&mut self) {
        self.abandon();
        self.closed = true;
    }

    /// Whether an item was ever handed to the link.
    pub(super) fn left(&self) -> bool {
        self.fresh > 0
    }

    /// Bytes of data that the next item may carry; none when it must wait. Zero is a full window:
    /// only an item without data may go. One place is kept for the last item, which need not ask.
    pub(super) fn allowance(&self) -> Option<u64> {
        (self.next - self.acked < UNACKED_ITEMS - 1).then(|| self.max.saturating_sub(self.bytes))
    }

    /// The caller waits: what [`Sender::allowance`] said is too little.
    pub(super) fn starve(&mut self, now: Time) {
        self.starved.get_or_insert((now, RTO_MIN));
    }

    /// Takes one item; false when the budget has no room for it, and nothing was taken. The
    /// caller has asked for the [`Sender::allowance`], except for the last item, which is always
    /// taken: it frees what the others hold.
    pub(super) fn push(&mut self, item: Outgoing, last: bool) -> bool {
        debug_assert!(!self.closed, "nothing follows the last item");
        let cost = item.json.len() + item.data.len() + ITEM_COST;
        if last {
            self.held.force(cost);
        } else if !self.held.grow(cost) {
            return false;
        }
        if !item.data.is_empty() {
            self.starved = None;
        }
        self.bytes += item.data.len() as u64;
        self.items.push_back(item);
        self.next += 1;
        self.closed = last;
        true
    }

    /// Forgets what is not acked, for a stream whose other side wants no more of it: only the
    /// last item, pushed next, is still sent.
    pub(super) fn abandon(&mut self) {
        for item in std::mem::take(&mut self.items) {
            self.held
                .shrink(item.json.len() + item.data.len() + ITEM_COST);
        }
        self.flying.back(u64::MAX);
        self.acked = self.next;
        self.fresh = self.next;
        self.resend = self.next..self.next;
        self.recover = self.next;
        self.closed = false;
    }

    /// Whether an item waits only because the way to its node carries no more now.
    pub(super) fn congested(&self) -> bool {
        self.resend.is_empty() && self.fresh != self.next && !self.has_way()
    }

    fn fresh_item(&self) -> Option<&Outgoing> {
        self.items
            .get(usize::try_from(self.fresh - self.acked).ok()?)
    }

    /// Whether the way carries the next fresh item.
    fn has_way(&self) -> bool {
        let item = self.fresh_item();
        item.is_none_or(|item| self.flying.room(item.data.len() as u64, item.class))
    }

    /// The next item for the link: `seq`, whether it was sent before, and the item.
    pub(super) fn take(&mut self, now: Time) -> Option<(u64, bool, Outgoing)> {
        let (seq, again) = if self.resend.is_empty() {
            if self.fresh == self.next || !self.has_way() {
                return None;
            }
            let bytes = self.fresh_item().map_or(0, |item| item.data.len() as u64);
            self.flying.left(bytes);
            if self.fresh == self.acked {
                // The first one on its way: both clocks begin here.
                self.timer = now;
                self.progress = now;
            }
            self.fresh += 1;
            (self.fresh - 1, false)
        } else {
            self.resend.start += 1;
            (self.resend.start - 1, true)
        };
        let item = self.items.get(usize::try_from(seq - self.acked).ok()?)?;
        Some((seq, again, item.clone()))
    }

    /// Undoes [`Sender::take`]: the link had no room. Items taken later are put back first.
    pub(super) fn put_back(&mut self, seq: u64, again: bool) {
        if seq < self.acked {
            return;
        }
        if again {
            let end = self.resend.end.max(seq + 1);
            self.resend = seq..end;
        } else if self.fresh == seq + 1 {
            self.fresh = seq;
            let bytes = self.fresh_item().map_or(0, |item| item.data.len() as u64);
            self.flying.back(bytes);
        }
    }

    /// Applies `ack`: everything below `next` has arrived, and `max` bytes are allowed in all.
    /// Old acks change nothing.
    ///
    /// # Errors
    /// [`BadAck`] when `next` was never sent.
    pub(super) fn on_ack(
        &mut self,
        next: u64,
        max: u64,
        now: Time,
        rtt: Option<Duration>,
    ) -> Result<(), BadAck> {
        if next > self.fresh {
            return Err(BadAck);
        }
        let grew = max > self.max;
        self.max = self.max.max(max);
        if next > self.acked {
            self.forget_below(next);
            self.backoff = 0;
            self.timer = now;
            self.progress = now;
            if self.acked < self.recover {
                self.burst = (self.burst * 2).min(BURST_MAX);
                self.resend_from_acked();
            }
        } else if next == self.acked && !grew && self.fresh > self.acked {
            // Nothing new in it: the other side says that it still misses `next`. Several such
            // acks come from one loss, so only one of a round trip is answered.
            let pause = rtt.unwrap_or(RTO_MIN);
            let due = self.gap_answered.is_none_or(|at| now >= at + pause);
            if due && self.resend.is_empty() {
                self.gap_answered = Some(now);
                self.lost(now, rtt);
            }
        }
        Ok(())
    }

    /// Something may be missing on the other side: sends the first item again, and more with each
    /// ack that follows.
    fn lost(&mut self, now: Time, rtt: Option<Duration>) {
        self.flying.flight().lost(now, rtt);
        self.recover = self.fresh;
        self.burst = 1;
        self.resend_from_acked();
    }

    /// A relay says that it dropped a frame to this node, or the way has moved: looks what is
    /// missing without waiting for the clock.
    pub(super) fn suspect(&mut self, now: Time, rtt: Option<Duration>) {
        if self.fresh > self.acked && self.resend.is_empty() {
            self.timer = now;
            self.lost(now, rtt);
        }
    }

    /// Times the clock ran out in a row.
    pub(super) fn timeouts(&self) -> u32 {
        self.backoff
    }

    /// Sends everything unacked again: the way it took is gone.
    pub(super) fn rewind(&mut self, now: Time) {
        let end = self.bounded(self.fresh);
        if end < self.fresh {
            // The rest follows with the acks.
            self.recover = self.fresh;
            self.burst = (end - self.acked).clamp(1, BURST_MAX);
        }
        self.resend = self.acked..end;
        self.timer = now;
    }

    /// The end of what may be sent again at once, from the first item that is not acked: no more
    /// than the way carries.
    fn bounded(&self, end: u64) -> u64 {
        let most = self.flying.flight().most_again();
        let mut bytes = 0;
        let mut at = self.acked;
        for item in &self.items {
            bytes += item.data.len() as u64;
            if at >= end || (bytes > most && at > self.acked) {
                break;
            }
            at += 1;
        }
        at
    }

    /// Looks at the clock.
    pub(super) fn tick(&mut self, now: Time, rtt: Option<Duration>) -> Tick {
        if self.next == self.acked
            && let Some((since, pause)) = self.starved
            && now >= since + pause
        {
            self.starved = Some((now, (pause * 2).min(NOOP_AFTER)));
            return Tick::Probe;
        }
        if self.fresh == self.acked {
            return Tick::Quiet;
        }
        if now.saturating_sub(self.progress) >= STREAM_LOST_AFTER {
            return Tick::Lost;
        }
        let base = rtt.map_or(RTO_MIN, |rtt| (rtt * 4).max(RTO_MIN));
        let timeout = (base * (1 << self.backoff)).min(RTO_MAX);
        if now.saturating_sub(self.timer) < timeout {
            return Tick::Quiet;
        }
        // One item, not all: a slow link has them all still in its queue.
        self.backoff = (self.backoff + 1).min(3);
        self.timer = now;
        self.lost(now, rtt);
        Tick::Resend
    }

    fn resend_from_acked(&mut self) {
        self.resend = self.acked..self.bounded((self.acked + self.burst).min(self.recover));
    }

    fn forget_below(&mut self, next: u64) {
        while self.acked < next {
            self.acked += 1;
            if let Some(item) = self.items.pop_front() {
                self.flying.acked(item.data.len() as u64);
                self.held
                    .shrink(item.json.len() + item.data.len() + ITEM_COST);
            }
        }
        let start = self.resend.start.max(self.acked);
        self.resend = start..self.resend.end.max(start);
    }
}
