//! What a sender sends again, and when (protocol 5.4).
//!
//! The other side says only what it lacks next. Whether that was lost or is still on its way nobody
//! says, and a slow way with long queues looks like one that loses everything. What is taken for lost
//! there fills the way with copies, which are acked like losses. So:
//!
//! - The clock runs after the time that items took to their acks before (`trip`), and sends one
//!   item again. The first ack that follows may be that of the first copy: only the next one tells.
//!   It brings more, although nothing more was sent again: all of it was only late. It says that the
//!   same is missing, or does not come: items were lost (after RFC 5682). One fresh item goes ahead to
//!   be asked about.
//! - While copies are on their way, an ack without news may come from one of them. It proves a loss only
//!   once the missing item itself is overdue.
//! - After a proven loss each ack doubles what is sent again, behind what was sent again before: the
//!   other side has probably kept what came after the gap.

use std::time::Duration;

use super::{Sender, Tick, Time};
use crate::{
    mesh::session::Class,
    wire::limits::{RTO_MAX, RTO_MIN, STREAM_LOST_AFTER},
};

/// Most items sent again at once.
const BURST_MAX: u64 = 64;

/// Timeouts in a row after which another way is tried.
const STALLED_AFTER: u32 = 2;

/// Doublings of the timeout.
const BACKOFF_MAX: u32 = 3;
/// The same after an ack that may be one of a copy: it says nothing of how long items take, so the
/// next one is given more time too, but a stream that gets on does not wait the longest time again.
const BACKOFF_UNSURE: u32 = 2;

/// What is known of the items between the first that is not acked and [`Recovery::until`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Nothing is thought lost.
    #[default]
    None,
    /// The first one was sent again because it was overdue.
    Doubted,
    /// It was acked since. What follows it may be lost or late.
    Awaited,
    /// Some were lost.
    Lost,
}

/// What a sender knows of losses.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    stage: Stage,
    /// Items below were sent when the loss was noticed: their acks belong to it.
    until: u64,
    /// Items below were sent again since.
    copied_to: u64,
    burst: u64,
    /// First item that was sent after the last copy, until its ack shows that all copies have arrived.
    behind_copies: Option<u64>,
    /// One fresh item may leave whether there is room for it or not: how it is acked tells whether
    /// those before it were lost.
    scout: bool,
    /// A relay says that it dropped something below.
    hinted: u64,
    /// That was looked after, and nothing was acked since.
    probed: bool,
    /// Doublings of the timeout, and timeouts without any progress.
    backoff: u32,
    timeouts: u32,
    /// There have just been so many that the way may be to blame.
    stalled: bool,
    /// When the retransmission timer began to run.
    timer: Time,
    /// When the other side last acked something new.
    progress: Time,
    /// When a gap was last answered.
    answered: Option<Time>,
}

impl Recovery {
    /// The first item is on its way.
    pub(super) fn begin(&mut self, now: Time) {
        self.timer = now;
        self.progress = now;
    }

    /// Something was sent again when all below `fresh` had been sent.
    pub(super) fn copied(&mut self, fresh: u64) {
        self.behind_copies = Some(fresh);
    }

    /// Whether a fresh item may leave without room for it.
    pub(super) fn scouts(&self) -> bool {
        self.scout
    }

    /// A fresh item has left.
    pub(super) fn scouted(&mut self) {
        self.scout = false;
    }

    /// Nothing is missing any more, as far as we know.
    pub(super) fn end(&mut self) {
        self.stage = Stage::None;
        self.scout = false;
    }
}

impl Sender {
    /// Class of the first item that is not acked.
    fn class(&self) -> Class {
        self.kept(self.acked)
            .map_or(Class::Bulk, |kept| kept.item.class)
    }

    /// When an ack is overdue, once that is known.
    fn overdue(&self) -> Option<Duration> {
        let trip = self.flying.flight().trip(self.class());
        trip.map(|trip| trip.overdue())
    }

    /// Everything below `next` is acked: learns how long that took, and sets the clocks anew.
    pub(super) fn measure(&mut self, next: u64, now: Time, rtt: Option<Duration>) {
        let (mut once, mut first, mut last) = (true, now, Time::ZERO);
        for kept in (self.acked..next).filter_map(|seq| self.kept(seq)) {
            once &= !kept.again;
            first = kept.first;
            last = last.max(kept.last);
        }
        let class = self.kept(next - 1).map(|kept| kept.item.class);
        if let Some(class) = class {
            let (flight, first) = (self.flying.flight(), now.saturating_sub(first));
            if once {
                flight.measured(class, first, rtt, now);
            } else {
                flight.guessed(class, first, now.saturating_sub(last));
            }
        }
        let recovery = &mut self.recovery;
        recovery.backoff = recovery.backoff.min(if once { 0 } else { BACKOFF_UNSURE });
        recovery.timeouts = 0;
        recovery.probed = false;
        recovery.timer = now;
        recovery.progress = now;
    }

    /// The first item that is not acked is another one now.
    pub(super) fn advanced(&mut self) {
        let recovery = &mut self.recovery;
        if recovery.behind_copies.is_some_and(|seq| self.acked > seq) {
            recovery.behind_copies = None;
        }
        if self.acked >= recovery.until {
            recovery.end();
            return;
        }
        match recovery.stage {
            Stage::None => {}
            Stage::Doubted => {
                recovery.stage = Stage::Awaited;
                recovery.scout = true;
                self.resend = self.acked..self.acked;
            }
            Stage::Awaited => {
                recovery.end();
                self.resend = self.acked..self.acked;
            }
            Stage::Lost => self.resend_more(),
        }
    }

    /// An ack with nothing new in it: the other side still misses the first item, or a copy has
    /// arrived of one that it had. Several such acks come from one loss, so only one of a round
    /// trip is answered.
    pub(super) fn missed(&mut self, now: Time, rtt: Option<Duration>) {
        let recovery = &self.recovery;
        let pause = rtt.unwrap_or(RTO_MIN);
        let due = recovery.answered.is_none_or(|at| now >= at + pause);
        let sent = self.kept(self.acked).map_or(now, |kept| kept.last);
        let proven = recovery.behind_copies.is_none()
            || now.saturating_sub(sent) >= self.overdue().unwrap_or(RTO_MIN);
        if due && proven && self.resend.is_empty() {
            self.recovery.answered = Some(now);
            self.lost(Stage::Lost, now, rtt);
        }
    }

    /// Sends the first item again; more follows as `stage` says.
    fn lost(&mut self, stage: Stage, now: Time, rtt: Option<Duration>) {
        self.narrow(now, rtt);
        let recovery = &mut self.recovery;
        recovery.stage = stage;
        recovery.scout = false;
        recovery.until = self.fresh;
        recovery.copied_to = self.acked;
        recovery.burst = 1;
        recovery.hinted = 0;
        recovery.timer = now;
        self.resend = self.acked..self.acked;
        self.resend_burst();
    }

    fn narrow(&self, now: Time, rtt: Option<Duration>) {
        self.flying.flight().lost(now, self.class(), rtt);
    }

    fn resend_more(&mut self) {
        self.recovery.burst = (self.recovery.burst * 2).min(BURST_MAX);
        self.resend_burst();
    }

    /// Has the next items sent again, behind those that are on their way again already.
    fn resend_burst(&mut self) {
        let recovery = &self.recovery;
        let from = recovery.copied_to.max(self.acked);
        let end = self.bounded((from + recovery.burst).min(recovery.until));
        let from = from.min(end);
        let left = if self.resend.is_empty() {
            from
        } else {
            self.resend.start
        };
        self.resend = left..end.max(left);
        self.recovery.copied_to = end.max(self.recovery.copied_to);
    }

    /// The end of what may be sent again at once, from the first item that is not acked: no more
    /// than the way carries.
    fn bounded(&self, end: u64) -> u64 {
        let most = self.flying.flight().most_again();
        let mut bytes = 0;
        let mut at = self.acked;
        for kept in &self.items {
            bytes += kept.item.data.len() as u64;
            if at >= end || (bytes > most && at > self.acked) {
                break;
            }
            at += 1;
        }
        at
    }

    /// A relay says that it dropped a frame to this node, or the way has moved. What was dropped is
    /// probably the last that was sent, and the acks of what is before it still come: the clock is
    /// only set to when the next of them is overdue.
    pub(in crate::exchange) fn suspect(&mut self, now: Time, rtt: Option<Duration>) {
        if self.fresh > self.acked {
            self.narrow(now, rtt);
            self.recovery.hinted = self.fresh;
        }
    }

    /// The way has moved: how long the earlier one was waited for says nothing of this one.
    pub(in crate::exchange) fn forget_waits(&mut self) {
        self.recovery.backoff = 0;
    }

    /// Whether it has waited in vain for its second ack in a row; said once. The way may be another
    /// by the next look, and would be blamed for what this one lost.
    pub(in crate::exchange) fn take_stalled(&mut self) -> bool {
        std::mem::take(&mut self.recovery.stalled)
    }

    /// Sends everything unacked again: the way it took is gone.
    pub(in crate::exchange) fn rewind(&mut self, now: Time) {
        let end = self.bounded(self.fresh);
        self.recovery.timer = now;
        self.recovery.copied_to = end;
        self.recovery.until = self.fresh;
        // What does not go at once follows with the acks.
        self.recovery.stage = Stage::Lost;
        self.recovery.burst = (end - self.acked).clamp(1, BURST_MAX);
        self.resend = self.acked..end;
    }

    /// Looks at the clock while something is not acked.
    pub(super) fn look(&mut self, now: Time, rtt: Option<Duration>) -> Tick {
        let trip = self.flying.flight().trip(self.class());
        let overdue = trip.map(|trip| trip.overdue());
        let recovery = &mut self.recovery;
        if now.saturating_sub(recovery.progress) >= STREAM_LOST_AFTER {
            return Tick::Lost;
        }
        let base = overdue.max(rtt.map(|rtt| rtt * 4)).unwrap_or(RTO_MIN);
        let timeout = (base.max(RTO_MIN) * (1 << recovery.backoff)).min(RTO_MAX);
        let overdue = overdue.map_or(timeout, |overdue| overdue.min(timeout));
        let waited = now.saturating_sub(recovery.timer);
        let behind = trip.map_or(timeout, |trip| trip.behind());
        if recovery.stage == Stage::Awaited && waited >= behind.min(timeout) {
            recovery.stage = Stage::Lost;
            recovery.scout = false;
            recovery.copied_to = self.acked;
            recovery.timer = now;
            self.resend = self.acked..self.acked;
            self.resend_more();
            return Tick::Resend;
        }
        let hinted = self.acked < recovery.hinted && !recovery.probed;
        if hinted && waited >= overdue {
            recovery.probed = true;
            self.lost(Stage::Doubted, now, rtt);
            return Tick::Resend;
        }
        if waited < timeout {
            return Tick::Quiet;
        }
        // One item, not all: a slow link has them all still in its queue.
        recovery.backoff = (recovery.backoff + 1).min(BACKOFF_MAX);
        recovery.timeouts += 1;
        recovery.stalled |= recovery.timeouts == STALLED_AFTER;
        self.lost(Stage::Doubted, now, rtt);
        Tick::Resend
    }
}
