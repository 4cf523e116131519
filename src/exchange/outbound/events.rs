//! What changes a request of ours: answers, acks, its caller, the clock, the loss of its way.

use std::{sync::Arc, task::Waker, time::Duration};

use bytes::Bytes;

use super::{Carrier, Outbound, item, violation_failure, wake};
use crate::{
    exchange::{
        Item, NewRequest,
        budget::PeerBudget,
        inbound::overloaded,
        message::{self, Ack, Dir, DownItem, Last},
        receiver::{Arrival, Due, Part, Receiver, Violation},
        remote::{Moment, Outbox, State},
        rids::Fate,
        sender::{Outgoing, Sender, Tick},
        stats::Drop as Dropped,
    },
    ids::RequestId,
    mesh::session::Class,
    wire::{
        code::{Code, Failure, Stage},
        inner,
        limits::{INITIAL_WINDOW, INLINE_BODY_BYTES, RIDS_PER_PEER, RTO_MAX, STREAM_LOST_AFTER},
    },
};

/// Milliseconds as they travel.
fn millis(time: Duration) -> u64 {
    const LONGEST: u64 = u64::MAX >> 11;
    u64::try_from(time.as_millis()).map_or(LONGEST, |ms| ms.min(LONGEST))
}

impl State {
    /// Takes a request of ours and sends what may leave of it. Returns whether some of its body is
    /// left.
    ///
    /// # Errors
    /// [`Failure`] with stage `not_started`: `overloaded`, `peer_unreachable`, `payload_too_large`.
    pub(in crate::exchange) fn open(
        &mut self,
        request: NewRequest,
        budget: &PeerBudget,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> Result<bool, Failure> {
        let too_large = |text| Failure::not_started(Code::PayloadTooLarge, text);
        let limits = &at.shared.limits;
        let body_bytes = request.body.len() as u64;
        if body_bytes > limits.request_body_bytes {
            return Err(too_large(
                "the request body is larger than a request may be",
            ));
        }
        let rid = request.rid;
        let full = self.outbound.len() >= RIDS_PER_PEER || self.outbound.contains_key(&rid);
        if full || budget.tight() {
            return Err(overloaded());
        }
        // The session that this very change sends in, not the one the caller found.
        let session = self
            .session()
            .ok_or_else(|| Failure::not_started(Code::PeerUnreachable, "the node went away"))?;
        let carrier = request.kind.once().then(|| Carrier::new(session));
        let bound = carrier.is_some().then(|| session.id());
        let json = message::request(
            request.kind,
            rid,
            carrier.as_ref().map(|carrier| millis(carrier.at)),
            millis(request.timeouts.deadline),
            body_bytes,
            &request.fields,
        );
        if !inner::fits(json.len(), 0) {
            return Err(too_large("the request's fields are larger than a frame"));
        }
        let rides =
            request.body.len() <= INLINE_BODY_BYTES && inner::fits(json.len(), request.body.len());
        let (data, body) = if rides {
            (request.body, Bytes::new())
        } else {
            (Bytes::new(), request.body)
        };
        self.wake_clocks(at.now);
        let mut up = Sender::new(INITIAL_WINDOW, budget.account(), Arc::clone(at.flight));
        if let Some(session) = bound {
            up.bind(session);
        }
        // A request whose body follows is small: it does not wait behind other bodies.
        let class = if body.is_empty() {
            request.class
        } else {
            Class::Interactive
        };
        if !up.push(Outgoing { json, data, class }, false) {
            return Err(overloaded());
        }
        let down = Receiver::new(
            INITIAL_WINDOW,
            limits.response_body_bytes,
            at.now,
            budget.account(),
        );
        let mut entry = Outbound::new(
            up,
            down,
            request.class,
            request.idempotent,
            carrier,
            request.timeouts,
            body,
            at.now,
        );
        let more = entry.fill(rid, at.now);
        out.pump(rid, Dir::Up, &mut entry.up, at);
        self.outbound.insert(rid, entry);
        at.shared.counters.opened_outbound();
        Ok(more)
    }

    /// One item of an answer. Returns whether the other side ignored its credit.
    pub(in crate::exchange) fn on_down(
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
                self.late_ack(Ack(rid, Dir::Down, seq + 1, 0), 0, out);
                if last.is_none() {
                    out.soft(message::cancel(rid, Code::Cancelled));
                }
            }
            return false;
        };
        if entry.cancelling.is_some() || entry.failure.is_some() {
            if last.is_some() {
                entry.cancelling = None;
                let abandoned = entry.abandoned;
                if let Some(seq) = seq {
                    self.late_ack(Ack(rid, Dir::Down, seq + 1, 0), 0, out);
                }
                if abandoned {
                    self.conclude_outbound(rid, out, at);
                }
            } else {
                at.shared.counters.dropped(Dropped::Late);
            }
            return false;
        }
        let Some(seq) = seq else {
            if let Some(Last::Failed(failure)) = last {
                // A refusal that comes late, or after the request was taken, is one of another
                // copy: what became of the first it does not know.
                let doubtful = failure.stage == Stage::NotStarted && entry.may_have_begun();
                let failure = if doubtful { entry.lost() } else { failure };
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
            Ok(Arrival::Duplicate) => {
                at.shared.counters.dropped(Dropped::Duplicate);
                self.unheard |= entry.down.came_again(seq, at.now, at.rtt);
            }
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
    pub(in crate::exchange) fn on_ack(&mut self, ack: Ack, out: &mut Outbox, at: &Moment<'_>) {
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
    pub(in crate::exchange) fn next_item(
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
            entry.note_wait(&part, at.now);
            let over = part.last.is_some();
            if over {
                entry.abandoned = true;
                self.conclude_outbound(rid, out, at);
            } else if entry.down.due() == Due::Now {
                let (next, max) = entry.down.take_ack();
                out.control(message::ack(&[Ack(rid, Dir::Down, next, max)]));
            }
            return Some(item(part).map(Some));
        }
        if let Some(failure) = entry.failure.clone() {
            entry.abandoned = true;
            if entry.cancelling.is_none() {
                self.conclude_outbound(rid, out, at);
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
    pub(in crate::exchange) fn drop_call(
        &mut self,
        rid: RequestId,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) {
        let Some(entry) = self.outbound.get_mut(&rid) else {
            return;
        };
        if !entry.settled() {
            entry.cancel(rid, Code::Cancelled, out, at.now);
        }
        entry.abandoned = true;
        entry.down.clear();
        if entry.cancelling.is_none() {
            self.conclude_outbound(rid, out, at);
        }
    }

    /// Moves one that is over on both counts to the remembered ones.
    fn conclude_outbound(&mut self, rid: RequestId, out: &mut Outbox, at: &Moment<'_>) {
        let Some(mut entry) = self.outbound.remove(&rid) else {
            return;
        };
        if entry.down.due() != Due::No {
            let bytes = entry.down.untold_bytes();
            let (next, max) = entry.down.take_ack();
            self.late_ack(Ack(rid, Dir::Down, next, max), bytes, out);
        }
        wake(&mut entry.uploader);
        self.asked.bury(rid, Fate::Ended, None, at.now);
        at.shared.counters.closed_outbound();
    }

    /// Timers of our requests. Returns how many wait for word.
    pub(in crate::exchange) fn tick_outbound(
        &mut self,
        acks: &mut Vec<Ack>,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> usize {
        let mut waiting = 0;
        let mut over = Vec::new();
        let session = self.session().map(|session| session.id());
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
                } else if entry.up.strands_without(session) {
                    if !entry.up.left() {
                        // The link was full until its session was replaced: it never leaves.
                        let failure = entry.lost();
                        entry.fail(failure);
                    }
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
                    if std::mem::take(&mut entry.no_room) {
                        // There may be some now.
                        wake(&mut entry.uploader);
                    }
                }
            }
            if let Some(cancelling) = &mut entry.cancelling {
                if at.now >= cancelling.since + STREAM_LOST_AFTER {
                    entry.cancelling = None;
                } else if at.now >= cancelling.again
                    && out.cancel(|| message::cancel(*rid, cancelling.reason))
                {
                    cancelling.pause = (cancelling.pause * 2).min(RTO_MAX);
                    cancelling.again = at.now + cancelling.pause;
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
            self.conclude_outbound(rid, out, at);
        }
        waiting
    }

    /// No path is left: every request of either side ends.
    pub(in crate::exchange) fn lose_all(&mut self, out: &mut Outbox, at: &Moment<'_>) {
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
            self.conclude_outbound(rid, out, at);
        }
        self.lose_inbound(at);
    }

    /// A path is gone, another is there: what is not acked goes again, but for what may be sent
    /// in one session only (protocol 7.1).
    pub(in crate::exchange) fn rewind_all(&mut self, out: &mut Outbox, at: &Moment<'_>) {
        let session = self.session().map(|session| session.id());
        for (rid, entry) in &mut self.outbound {
            if entry.up.strands_without(session) {
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
    pub(in crate::exchange) fn break_off(
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
