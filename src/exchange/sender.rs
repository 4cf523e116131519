//! The sending half of a stream: numbered items, kept until acked (protocol 5.4).
//!
//! Pure: time comes in as an argument, frames go out by [`Sender::take`]. An item is pushed when
//! credit allows, is taken when the link has room, and leaves when the other side has acked it.
//! What is sent again, and when, is decided in [`recovery`].

mod recovery;

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

use self::recovery::Recovery;
use super::{
    budget::{Held, ITEM_COST},
    congestion::{Flight, Flying},
};
use crate::{
    ids::SessionId,
    mesh::session::Class,
    wire::limits::{NOOP_AFTER, RTO_MIN, UNACKED_ITEMS},
};

/// Time since the exchange layer began.
pub(super) type Time = Duration;

/// One item: its JSON with the number in it, and its data.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) json: Bytes,
    pub(super) data: Bytes,
    pub(super) class: Class,
}

/// An item that is not acked.
#[derive(Debug)]
struct Kept {
    item: Outgoing,
    /// When it was first and last handed to the link.
    first: Time,
    last: Time,
    /// It was sent more than once.
    again: bool,
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
    /// Nothing was acked for [`crate::wire::limits::STREAM_LOST_AFTER`].
    Lost,
}

/// Numbered items on their way to one peer.
#[derive(Debug)]
pub(super) struct Sender {
    /// Items `acked..next`.
    items: VecDeque<Kept>,
    acked: u64,
    /// First item never handed to the link.
    fresh: u64,
    next: u64,
    /// Items to be sent again before fresh ones.
    resend: Range<u64>,
    recovery: Recovery,
    /// Sum of all data pushed, and what the other side allows.
    bytes: u64,
    max: u64,
    /// The last item has been pushed.
    closed: bool,
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
            recovery: Recovery::default(),
            bytes: 0,
            max: window,
            closed: false,
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

    /// Most bytes of data that one item should carry.
    pub(super) fn piece(&self, class: Class) -> usize {
        self.flying.flight().piece(class)
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
        self.items.push_back(Kept {
            item,
            first: Time::ZERO,
            last: Time::ZERO,
            again: false,
        });
        self.next += 1;
        self.closed = last;
        true
    }

    /// Forgets what is not acked, for a stream whose other side wants no more of it: only the
    /// last item, pushed next, is still sent.
    pub(super) fn abandon(&mut self) {
        for Kept { item, .. } in std::mem::take(&mut self.items) {
            self.held
                .shrink(item.json.len() + item.data.len() + ITEM_COST);
        }
        self.flying.clear();
        self.acked = self.next;
        self.fresh = self.next;
        self.resend = self.next..self.next;
        self.recovery.end();
        self.closed = false;
    }

    /// Whether an item waits only because the way to its node carries no more now.
    pub(super) fn congested(&self) -> bool {
        self.resend.is_empty() && self.fresh != self.next && !self.has_way()
    }

    fn kept(&self, seq: u64) -> Option<&Kept> {
        let at = usize::try_from(seq.checked_sub(self.acked)?).ok()?;
        self.items.get(at)
    }

    /// Whether the way carries the next fresh item.
    fn has_way(&self) -> bool {
        let room = |Kept { item, .. }: &Kept| self.flying.room(item.data.len() as u64, item.class);
        self.recovery.scouts() || self.kept(self.fresh).is_none_or(room)
    }

    /// The next item for the link: `seq`, whether it was sent before, and the item.
    pub(super) fn take(&mut self, now: Time) -> Option<(u64, bool, Outgoing)> {
        let (seq, again) = if self.resend.is_empty() {
            if self.fresh == self.next || !self.has_way() {
                return None;
            }
            if let Some(Kept { item, .. }) = self.kept(self.fresh) {
                let (bytes, class) = (item.data.len() as u64, item.class);
                self.flying.left(bytes, class);
            }
            if self.fresh == self.acked {
                // The first one on its way: both clocks begin here.
                self.recovery.begin(now);
            }
            self.recovery.scouted();
            self.fresh += 1;
            (self.fresh - 1, false)
        } else {
            self.resend.start += 1;
            self.recovery.copied(self.fresh);
            (self.resend.start - 1, true)
        };
        let at = usize::try_from(seq - self.acked).ok()?;
        let kept = self.items.get_mut(at)?;
        kept.last = now;
        kept.again = again;
        if !again {
            kept.first = now;
        }
        Some((seq, again, kept.item.clone()))
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
            if let Some(Kept { item, .. }) = self.kept(seq) {
                let (bytes, class) = (item.data.len() as u64, item.class);
                self.flying.back(bytes, class);
            }
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
            self.measure(next, now, rtt);
            self.forget_below(next);
            self.advanced();
        } else if next == self.acked && !grew && self.fresh > self.acked {
            self.missed(now, rtt);
        }
        Ok(())
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
        self.look(now, rtt)
    }

    fn forget_below(&mut self, next: u64) {
        while self.acked < next {
            self.acked += 1;
            if let Some(Kept { item, .. }) = self.items.pop_front() {
                self.flying.acked(item.data.len() as u64, item.class);
                self.held
                    .shrink(item.json.len() + item.data.len() + ITEM_COST);
            }
        }
        let start = self.resend.start.max(self.acked);
        self.resend = start..self.resend.end.max(start);
    }
}
