//! Requests of ours: one entry each, from open to its one outcome.

use std::{task::Waker, time::Duration};

use bytes::Bytes;

use super::{
    Item, Timeouts,
    budget::HeldBody,
    message::{self, Ack, Dir, DownItem, Last, Lead},
    receiver::{Arrival, Due, Part, Receiver, Violation},
    remote::{Moment, Outbox, State},
    rids::Fate,
    sender::{Outgoing, Sender, Tick, Time},
    stats::Drop as Dropped,
};
use crate::{
    ids::RequestId,
    mesh::session::Class,
    wire::{
        code::{Code, Failure},
        limits::{CHUNK_BYTES, RTO_MAX, RTO_MIN, STREAM_LOST_AFTER},
    },
};

/// Smallest piece sent while more of the body waits: credit may come in small steps.
pub(super) const PIECE_BYTES: usize = 16 * 1024;

/// A `cancel` that the other side has not answered yet.
#[derive(Debug)]
struct Cancelling {
    since: Time,
    again: Time,
    pause: Duration,
    reason: Code,
}

/// One request of ours.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) up: Sender,
    pub(super) down: Receiver<Lead, Last>,
    /// What is not in an item yet.
    pub(super) body: Bytes,
    pub(super) class: Class,
    pub(super) idempotent: bool,
    /// Protocol 7.1 binds it to one session.
    pub(super) once: bool,
    pub(super) timeouts: Timeouts,
    pub(super) opened: Time,
    pub(super) deadline: Option<Time>,
    /// Last sign that the request moves on.
    pub(super) progress: Time,
    /// Something was answered.
    pub(super) answered: bool,
    /// Counts the whole body while it is needed.
    pub(super) held_body: Option<HeldBody>,
    pub(super) reader: Option<Waker>,
    pub(super) uploader: Option<Waker>,
    /// Our own end of it, told after what has arrived.
    pub(super) failure: Option<Failure>,
    cancelling: Option<Cancelling>,
    /// Nobody asks for its outcome any more.
    abandoned: bool,
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Outbound {
    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of a new entry, used once"
    )]
    pub(super) fn new(
        up: Sender,
        down: Receiver<Lead, Last>,
        class: Class,
        idempotent: bool,
        once: bool,
        timeouts: Timeouts,
        body: Bytes,
        held_body: Option<HeldBody>,
        now: Time,
    ) -> Self {
        Self {
            up,
            down,
            body,
            class,
            idempotent,
            once,
            timeouts,
            opened: now,
            deadline: now.checked_add(timeouts.deadline),
            progress: now,
            answered: false,
            held_body,
            reader: None,
            uploader: None,
            failure: None,
            cancelling: None,
            abandoned: false,
        }
    }

    /// Whether the outcome is settled: its last item is here, or we gave up.
    fn settled(&self) -> bool {
        self.failure.is_some() || self.abandoned || self.down.complete()
    }

    /// Whether word from the other side is still awaited.
    fn waiting(&self) -> bool {
        !self.settled() || self.cancelling.is_some()
    }

    /// Turns as much of the body into items as credit allows. Returns whether some is left.
    pub(super) fn fill(&mut self, rid: RequestId, now: Time) -> bool {
        while !self.body.is_empty() {
            let want = self.body.len().min(PIECE_BYTES);
            let Some(room) = self
                .up
                .allowance()
                .and_then(|room| usize::try_from(room).ok())
            else {
                return true;
            };
            if room < want {
                self.up.starve(now);
                return true;
            }
            let data = self
                .body
                .slice(..room.min(self.body.len()).min(CHUNK_BYTES));
            let bytes = data.len();
            let item = Outgoing {
                json: message::chunk(rid, Dir::Up, self.up.next_seq(), None),
                data,
                class: self.class,
            };
            if !self.up.push(item, false) {
                return true;
            }
            let _ = self.body.split_to(bytes);
        }
        false
    }

    /// Asks for the credit whose ack may be lost.
    fn probe(&mut self, rid: RequestId) {
        let item = Outgoing {
            json: message::chunk(rid, Dir::Up, self.up.next_seq(), None),
            data: Bytes::new(),
            class: self.class,
        };
        // Without room for it in the budget the next probe will do.
        let _ = self.up.push(item, false);
    }

    /// Forgets what is left to send: nobody wants it.
    fn stop_sending(&mut self) {
        self.up.abandon();
        self.body = Bytes::new();
        self.held_body = None;
        wake(&mut self.uploader);
    }

    /// Settles it on our side. The other side is told if it may know of the request.
    fn give_up(&mut self, rid: RequestId, failure: Failure, out: &mut Outbox, now: Time) {
        if self.settled() {
            return;
        }
        let reason = failure.code;
        self.failure = Some(failure);
        self.cancel(rid, reason, out, now);
        wake(&mut self.reader);
    }

    fn cancel(&mut self, rid: RequestId, reason: Code, out: &mut Outbox, now: Time) {
        if self.up.left() {
            out.control(message::cancel(rid, reason));
            self.cancelling = Some(Cancelling {
                since: now,
                again: now + RTO_MIN,
                pause: RTO_MIN,
                reason,
            });
        }
        self.stop_sending();
    }

    /// Settles it as failed by the other side, which wants no cancel.
    fn fail(&mut self, failure: Failure) {
        if !self.settled() {
            self.failure = Some(failure);
        }
        self.cancelling = None;
        self.stop_sending();
        wake(&mut self.reader);
    }

    /// What the loss of every path means for it (protocol 4.6, 7.1).
    fn lost(&self) -> Failure {
        if !self.up.left() {
            return Failure::not_started(Code::PeerUnreachable, "the node went away");
        }
        if !self.idempotent {
            return unknown_outcome("the node went away");
        }
        Failure {
            // Nothing of an answer was seen: another attempt does no harm.
            retryable: !self.answered,
            ..Failure::started(
                Code::StreamLost,
                "the node went away before the answer was complete",
            )
        }
    }

    /// The first timeout that has run out, if any.
    fn overdue(&self, now: Time) -> Option<Failure> {
        let timeouts = &self.timeouts;
        let failure = if self.deadline.is_some_and(|deadline| now >= deadline) {
            Failure::started(Code::DeadlineExceeded, "the request's time is up")
        } else if !self.answered && now >= self.opened + timeouts.accept {
            if !self.up.left() {
                return Some(Failure::not_started(
                    Code::PeerUnreachable,
                    "the request could not be sent in time",
                ));
            }
            if !self.idempotent {
                return Some(unknown_outcome("the node did not answer in time"));
            }
            Failure::started(Code::PeerUnreachable, "the node did not answer in time")
        } else if timeouts
            .idle
            .is_some_and(|idle| now >= self.progress + idle)
        {
            Failure::started(Code::Timeout, "no further part of the answer came in time")
        } else {
            return None;
        };
        Some(Failure {
            retryable: failure.retryable && self.idempotent,
            ..failure
        })
    }
}

/// The failure of a request that may have had its effect.
pub(super) fn unknown_outcome(what: &str) -> Failure {
    Failure::started(
        Code::OutcomeUnknown,
        format!("{what}; the request may have taken effect"),
    )
}

fn violation_failure(violation: Violation) -> Failure {
    match violation {
        Violation::Credit => Failure::started(Code::FlowControl, "the node ignored its credit"),
        Violation::TooLong => {
            Failure::started(Code::PayloadTooLarge, "the answer is longer than allowed")
        }
        Violation::PastEnd | Violation::Jump => Failure::started(
            Code::ProtocolError,
            "the node broke the order of its answer",
        ),
    }
}

/// An item as callers see it, or the failure in it.
pub(super) fn item(part: Part<Lead, Last>) -> Result<Item, Failure> {
    let fin = match part.last {
        Some(Last::Failed(failure)) => return Err(failure),
        Some(Last::End(end)) => Some(end),
        None => None,
    };
    Ok(match (part.lead, fin) {
        (Some(Lead::Accept), _) => Item::Accept,
        (Some(Lead::Head { status, meta }), fin) => Item::Head {
            status,
            meta,
            data: part.data,
            fin,
        },
        (None, Some(end)) if part.data.is_empty() => Item::End(end),
        (None, fin) => Item::Chunk {
            data: part.data,
            fin,
        },
    })
}

impl State {
    /// One item of an answer. Returns whether the other side ignored its credit.
    pub(super) fn on_down(
        &mut self,
        item: DownItem,
        data: Bytes,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> bool {
        let DownItem {
            rid,
            seq,
            lead,
            last,
        } = item;
        let Some(entry) = self.outbound.get_mut(&rid) else {
            let known = self.asked.fate(&rid).is_some();
            at.shared.counters.dropped(if known {
                Dropped::Late
            } else {
                Dropped::Unknown
            });
            // It is over for us: let the other side forget it too.
            if let Some(seq) = seq {
                self.late_ack(Ack(rid, Dir::Down, seq + 1, 0), out);
                if last.is_none() {
                    out.control(message::cancel(rid, Code::Cancelled));
                }
            }
            return false;
        };
        if entry.cancelling.is_some() || entry.failure.is_some() {
            if last.is_some() {
                entry.cancelling = None;
                let abandoned = entry.abandoned;
                if let Some(seq) = seq {
                    self.late_acks.push(Ack(rid, Dir::Down, seq + 1, 0));
                }
                if abandoned {
                    self.conclude_outbound(rid, at);
                }
            } else {
                at.shared.counters.dropped(Dropped::Late);
            }
            return false;
        }
        let Some(seq) = seq else {
            if let Some(Last::Failed(failure)) = last {
                entry.fail(failure);
            }
            return false;
        };
        let streams = !data.is_empty() && last.is_none();
        match entry.down.arrive(seq, Part { lead, data, last }, at.now) {
            Ok(Arrival::Ready) => {
                entry.progress = at.now;
                entry.answered = true;
                if streams && entry.timeouts.until_first_byte {
                    entry.deadline = None;
                }
                if entry.down.complete() {
                    entry.stop_sending();
                }
                wake(&mut entry.reader);
            }
            Ok(Arrival::Early) => entry.answered = true,
            Ok(Arrival::Duplicate) => at.shared.counters.dropped(Dropped::Duplicate),
            Ok(Arrival::NoRoom) => at.shared.counters.dropped(Dropped::NoRoom),
            Err(_) if entry.down.complete() => at.shared.counters.dropped(Dropped::Late),
            Err(violation) => {
                at.shared.counters.dropped(Dropped::Violation);
                entry.give_up(rid, violation_failure(violation), out, at.now);
                return violation == Violation::Credit;
            }
        }
        if entry.down.due() == Due::Now {
            let (next, max) = entry.down.take_ack();
            out.control(message::ack(&[Ack(rid, Dir::Down, next, max)]));
        }
        false
    }

    /// An ack of items of ours.
    pub(super) fn on_ack(&mut self, ack: Ack, out: &mut Outbox, at: &Moment<'_>) {
        let Ack(rid, dir, next, max) = ack;
        let result = match dir {
            Dir::Up => {
                let Some(entry) = self.outbound.get_mut(&rid) else {
                    return;
                };
                entry.progress = at.now;
                let result = entry.up.on_ack(next, max, at.now, at.rtt);
                out.pump(rid, dir, &mut entry.up, at);
                wake(&mut entry.uploader);
                result
            }
            Dir::Down => {
                let Some(entry) = self.inbound.get_mut(&rid) else {
                    return;
                };
                let result = entry.down.on_ack(next, max, at.now, at.rtt);
                out.pump(rid, dir, &mut entry.down, at);
                entry.wake_writer();
                self.conclude_inbound(rid, at);
                result
            }
        };
        if result.is_err() {
            at.shared.counters.dropped(Dropped::BadAck);
        }
    }

    /// The next item for the caller; `None` while there is none.
    pub(super) fn next_item(
        &mut self,
        rid: RequestId,
        waker: &Waker,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> Option<Result<Option<Item>, Failure>> {
        let Some(entry) = self.outbound.get_mut(&rid) else {
            return Some(Ok(None));
        };
        if let Some(part) = entry.down.pop(at.now, at.rtt) {
            entry.progress = at.now;
            let over = part.last.is_some();
            if over {
                entry.abandoned = true;
                self.conclude_outbound(rid, at);
            } else if entry.down.due() == Due::Now {
                let (next, max) = entry.down.take_ack();
                out.control(message::ack(&[Ack(rid, Dir::Down, next, max)]));
            }
            return Some(item(part).map(Some));
        }
        if let Some(failure) = entry.failure.clone() {
            entry.abandoned = true;
            if entry.cancelling.is_none() {
                self.conclude_outbound(rid, at);
            }
            return Some(Err(failure));
        }
        if !entry
            .reader
            .as_ref()
            .is_some_and(|old| old.will_wake(waker))
        {
            entry.reader = Some(waker.clone());
        }
        None
    }

    /// The caller went away. Without an outcome yet, its outcome is `cancelled`.
    pub(super) fn drop_call(&mut self, rid: RequestId, out: &mut Outbox, at: &Moment<'_>) {
        let Some(entry) = self.outbound.get_mut(&rid) else {
            return;
        };
        if !entry.settled() {
            entry.cancel(rid, Code::Cancelled, out, at.now);
        }
        entry.abandoned = true;
        entry.down.clear();
        if entry.cancelling.is_none() {
            self.conclude_outbound(rid, at);
        }
    }

    /// Moves one that is over on both counts to the remembered ones.
    fn conclude_outbound(&mut self, rid: RequestId, at: &Moment<'_>) {
        let Some(mut entry) = self.outbound.remove(&rid) else {
            return;
        };
        if entry.down.due() != Due::No {
            let (next, max) = entry.down.take_ack();
            self.late_acks.push(Ack(rid, Dir::Down, next, max));
        }
        wake(&mut entry.uploader);
        self.asked.bury(rid, Fate::Ended, None, at.now);
        at.shared.counters.closed_outbound();
    }

    /// Timers of our requests. Returns how many wait for word.
    pub(super) fn tick_outbound(
        &mut self,
        acks: &mut Vec<Ack>,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> usize {
        let mut waiting = 0;
        let mut over = Vec::new();
        for (rid, entry) in &mut self.outbound {
            if !entry.settled() {
                if entry.down.has_ready() {
                    // Our own caller is the slow one.
                    entry.progress = at.now;
                }
                if let Some(failure) = entry.overdue(at.now) {
                    entry.give_up(*rid, failure, out, at.now);
                } else if entry.down.tick(at.now) {
                    let failure = entry.lost();
                    entry.give_up(*rid, failure, out, at.now);
                } else {
                    match entry.up.tick(at.now, at.rtt) {
                        Tick::Quiet | Tick::Resend => {}
                        Tick::Probe => entry.probe(*rid),
                        Tick::Lost => {
                            let failure = entry.lost();
                            entry.give_up(*rid, failure, out, at.now);
                        }
                    }
                    out.pump(*rid, Dir::Up, &mut entry.up, at);
                    // A budget that had no room may have some now.
                    wake(&mut entry.uploader);
                }
            }
            if let Some(cancelling) = &mut entry.cancelling {
                if at.now >= cancelling.since + STREAM_LOST_AFTER {
                    entry.cancelling = None;
                } else if at.now >= cancelling.again {
                    cancelling.pause = (cancelling.pause * 2).min(RTO_MAX);
                    cancelling.again = at.now + cancelling.pause;
                    out.control(message::cancel(*rid, cancelling.reason));
                }
            }
            if entry.down.due() != Due::No {
                let (next, max) = entry.down.take_ack();
                acks.push(Ack(*rid, Dir::Down, next, max));
            }
            if entry.abandoned && entry.cancelling.is_none() {
                over.push(*rid);
            }
            waiting += usize::from(entry.waiting());
        }
        for rid in over {
            self.conclude_outbound(rid, at);
        }
        waiting
    }

    /// No path is left: every request of either side ends.
    pub(super) fn lose_all(&mut self, at: &Moment<'_>) {
        self.late_acks.clear();
        self.queries.clear();
        let mut over = Vec::new();
        for (rid, entry) in &mut self.outbound {
            let failure = entry.lost();
            entry.fail(failure);
            if entry.abandoned {
                over.push(*rid);
            }
        }
        for rid in over {
            self.conclude_outbound(rid, at);
        }
        self.lose_inbound(at);
    }

    /// The path in use is gone, another is there: what is not acked goes again, but for what may
    /// be sent in one session only (protocol 7.1).
    pub(super) fn rewind_all(&mut self, out: &mut Outbox, at: &Moment<'_>) {
        for (rid, entry) in &mut self.outbound {
            if entry.once && entry.up.left() && !entry.up.acked(0) {
                let failure = entry.lost();
                entry.give_up(*rid, failure, out, at.now);
                continue;
            }
            entry.up.rewind(at.now);
            out.pump(*rid, Dir::Up, &mut entry.up, at);
        }
        for (rid, entry) in &mut self.inbound {
            entry.down.rewind(at.now);
            out.pump(*rid, Dir::Down, &mut entry.down, at);
        }
    }

    /// An item turned out larger than a frame: its stream cannot go on.
    pub(super) fn break_off(
        &mut self,
        rid: RequestId,
        dir: Dir,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) {
        let failure = || Failure::started(Code::Internal, "an item is larger than a frame");
        match dir {
            Dir::Up => {
                if let Some(entry) = self.outbound.get_mut(&rid) {
                    entry.give_up(rid, failure(), out, at.now);
                }
            }
            Dir::Down => self.stop_inbound(rid, failure(), out, at),
        }
    }
}
