//! What changes a request of another node from outside: its frames, the clock, the loss of its way.

use std::{sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;

use super::{Inbound, Offer, overloaded, shutting_down, wake};
use crate::{
    exchange::{
        Kind,
        budget::PeerBudget,
        message::{self, Ack, Dir, Phase, Request},
        receiver::{Arrival, Due, Part, Receiver, Violation},
        remote::{Moment, Outbox, State},
        rids::{Fate, Slot},
        sender::{Sender, Tick},
        stats::Drop as Dropped,
    },
    ids::RequestId,
    mesh::session::Class,
    wire::{
        code::{Code, Failure},
        limits::{AUTO_ACCEPT, INITIAL_WINDOW, RIDS_PER_PEER, STALE_AFTER},
    },
};

/// A request as the exchange has admitted it.
#[derive(Debug)]
pub(in crate::exchange) struct Admitted {
    pub(in crate::exchange) deadline: Option<Duration>,
}

impl State {
    /// One request. None when it is a duplicate or was refused.
    pub(in crate::exchange) fn on_request(
        &mut self,
        request: &Request,
        data: Bytes,
        elapsed: Duration,
        budget: &PeerBudget,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> Option<Admitted> {
        let rid = request.rid;
        if let Some(entry) = self.inbound.get_mut(&rid) {
            at.shared.counters.dropped(Dropped::Duplicate);
            // The request is item 0 of its stream: without another ack the asking node gives up.
            self.unheard |= entry.up.came_again(0, at.now, at.rtt);
            return None;
        }
        if let Some(fate) = self.served.fate(&rid) {
            at.shared.counters.dropped(Dropped::Duplicate);
            let code = match fate {
                Fate::Refused(code) => code,
                Fate::Fenced => Code::StaleRequest,
                // Its answer has been given, and was acked or given up.
                Fate::Ended | Fate::Cancelled => return None,
            };
            let again = Failure::not_started(code, "the request was refused before");
            out.soft(message::error(rid, None, &again));
            return None;
        }
        let late = request
            .at
            .map(Duration::from_millis)
            .filter(|_| request.kind.once());
        let (slot, deadline) = match self.admit(request, &data, elapsed, late, budget, at) {
            Ok(admitted) => admitted,
            Err(failure) => {
                self.refuse(request, &failure, out, at);
                return None;
            }
        };
        self.wake_clocks(at.now);
        let mut up = Receiver::new(INITIAL_WINDOW, request.blen, at.now, budget.account());
        let part = Part {
            lead: None,
            data,
            last: None,
        };
        match up.arrive(0, part, at.now) {
            Ok(Arrival::Ready) => {}
            Ok(Arrival::NoRoom) => {
                at.shared.counters.dropped(Dropped::NoRoom);
                self.refuse(request, &overloaded(), out, at);
                return None;
            }
            Ok(Arrival::Early | Arrival::Duplicate) | Err(_) => {
                let failure = Failure::not_started(Code::ProtocolError, "more data than credit");
                self.refuse(request, &failure, out, at);
                return None;
            }
        }
        self.inbound.insert(
            rid,
            Inbound {
                up,
                body_bytes: request.blen,
                down: Sender::new(INITIAL_WINDOW, budget.account(), Arc::clone(at.flight)),
                class: Class::Interactive,
                stop: None,
                headed: false,
                opened: at.now,
                deadline: deadline.and_then(|left| at.now.checked_add(left)),
                waits: None,
                until_first_byte: request.kind == Kind::Model && request.stream,
                slot,
                reader: None,
                writer: None,
                no_room: false,
                watcher: None,
                reply_gone: false,
                body_gone: false,
            },
        );
        at.shared.counters.opened_inbound();
        Some(Admitted { deadline })
    }

    /// Whether a new request may run, and how long.
    fn admit(
        &self,
        request: &Request,
        data: &Bytes,
        elapsed: Duration,
        sent: Option<Duration>,
        budget: &PeerBudget,
        at: &Moment<'_>,
    ) -> Result<(Option<Slot>, Option<Duration>), Failure> {
        if at.shared.draining() {
            return Err(shutting_down());
        }
        if request.blen > at.shared.limits.request_body_bytes {
            return Err(Failure::not_started(
                Code::PayloadTooLarge,
                "the request body is larger than this node takes",
            ));
        }
        if data.len() as u64 > request.blen {
            return Err(Failure::not_started(
                Code::InvalidRequest,
                "the request carries more data than it announces",
            ));
        }
        let mut deadline = request.dl.map(Duration::from_millis);
        let mut slot = None;
        if request.kind.once() {
            let Some(sent) = sent else {
                return Err(Failure::not_started(
                    Code::InvalidRequest,
                    "the request lacks `at`",
                ));
            };
            if elapsed.abs_diff(sent) > STALE_AFTER {
                at.shared.counters.dropped(Dropped::Stale);
                return Err(Failure::not_started(
                    Code::StaleRequest,
                    "the request was held back on its way",
                ));
            }
            // `dl` counts from `at` (protocol 7.1).
            deadline = deadline.map(|dl| dl.saturating_sub(elapsed.saturating_sub(sent)));
            let mine = self.served.long() + self.inbound.len();
            slot = (mine < RIDS_PER_PEER)
                .then(|| at.shared.slots.take())
                .flatten();
            if slot.is_none() {
                at.shared.counters.dropped(Dropped::Overloaded);
                return Err(overloaded());
            }
        }
        if budget.tight() || self.inbound.len() >= RIDS_PER_PEER {
            at.shared.counters.dropped(Dropped::Overloaded);
            return Err(overloaded());
        }
        Ok((slot, deadline))
    }

    /// Refuses a request before it began, and keeps refusing its copies. Nothing is said about one
    /// that must not run twice when that cannot be remembered: a copy of it might still run.
    fn refuse(&mut self, request: &Request, failure: &Failure, out: &mut Outbox, at: &Moment<'_>) {
        let (rid, fate) = (request.rid, Fate::Refused(failure.code));
        if !request.kind.once() {
            self.served.bury(rid, fate, None, at.now);
        } else if !self.served.bar(rid, fate, at.now) {
            at.shared.counters.dropped(Dropped::Overloaded);
            return;
        }
        out.soft(message::error(rid, None, failure));
    }

    /// A further piece of a request's body. Returns whether the other side ignored its credit.
    pub(in crate::exchange) fn on_up_chunk(
        &mut self,
        rid: RequestId,
        seq: u64,
        data: Bytes,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> bool {
        let Some(entry) = self.inbound.get_mut(&rid) else {
            let known = self.served.fate(&rid).is_some();
            at.shared.counters.dropped(if known {
                Dropped::Late
            } else {
                Dropped::Unknown
            });
            return false;
        };
        if entry.stop.is_some() || entry.down.closed() || entry.body_gone {
            at.shared.counters.dropped(Dropped::Late);
            return false;
        }
        let part = Part {
            lead: None,
            data,
            last: None,
        };
        match entry.up.arrive(seq, part, at.now) {
            Ok(Arrival::Ready) => wake(&mut entry.reader),
            Ok(Arrival::Early) => {}
            Ok(Arrival::Duplicate) => {
                at.shared.counters.dropped(Dropped::Duplicate);
                self.unheard |= entry.up.came_again(seq, at.now, at.rtt);
            }
            Ok(Arrival::NoRoom) => at.shared.counters.dropped(Dropped::NoRoom),
            Err(violation) => {
                at.shared.counters.dropped(Dropped::Violation);
                let failure = match violation {
                    Violation::Credit => {
                        Failure::started(Code::FlowControl, "the request ignored its credit")
                    }
                    Violation::TooLong => {
                        Failure::started(Code::ProtocolError, "the body is longer than announced")
                    }
                    Violation::PastEnd | Violation::Jump => {
                        Failure::started(Code::ProtocolError, "the order of the body is broken")
                    }
                };
                self.stop_inbound(rid, failure, out, at);
                return violation == Violation::Credit;
            }
        }
        if entry.up.due() == Due::Now {
            let (next, max) = entry.up.take_ack();
            out.control(message::ack(&[Ack(rid, Dir::Up, next, max)]));
        }
        false
    }

    /// Ends one request with a failure that its handler did not choose.
    pub(in crate::exchange) fn stop_inbound(
        &mut self,
        rid: RequestId,
        failure: Failure,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) {
        if let Some(entry) = self.inbound.get_mut(&rid)
            && entry.stop.is_none()
        {
            if !entry.down.closed() {
                entry.push_error(rid, &failure);
                out.pump(rid, Dir::Down, &mut entry.down, at);
            }
            entry.stop(failure);
            self.conclude_inbound(rid, at);
        }
    }

    /// The other side gave up.
    pub(in crate::exchange) fn on_cancel(
        &mut self,
        rid: RequestId,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) {
        let failure = Failure::started(Code::Cancelled, "the asking node cancelled");
        let Some(entry) = self.inbound.get_mut(&rid) else {
            // Overtook its request, or came late: in either case the request never runs from now
            // on, and the answer stops the repetition.
            if self.served.fate(&rid).is_none() && !self.served.bar(rid, Fate::Cancelled, at.now) {
                at.shared.counters.dropped(Dropped::Overloaded);
                return;
            }
            out.soft(message::error(rid, None, &failure));
            return;
        };
        if entry.stop.is_none() {
            // Nothing before the answer to the cancel is wanted any more.
            entry.down.abandon();
            entry.push_error(rid, &failure);
            entry.stop(failure);
        }
        out.pump(rid, Dir::Down, &mut entry.down, at);
        self.conclude_inbound(rid, at);
    }

    /// How far a request has come. An unknown one is refused from now on (protocol 7.1).
    pub(in crate::exchange) fn on_query(
        &mut self,
        rid: RequestId,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) {
        let (phase, next) = match (self.inbound.get(&rid), self.served.fate(&rid)) {
            (Some(entry), _) => (entry.phase(), entry.down.next_seq()),
            (None, Some(Fate::Ended)) => (Phase::Done, 0),
            (None, Some(Fate::Refused(_) | Fate::Cancelled | Fate::Fenced)) => (Phase::Unknown, 0),
            // Later copies are stale by their `at`.
            (None, None) if self.served.bar(rid, Fate::Fenced, at.now) => (Phase::Unknown, 0),
            (None, None) => {
                // What cannot be remembered must not be promised: the asker asks again.
                at.shared.counters.dropped(Dropped::Overloaded);
                return;
            }
        };
        out.control(message::state(rid, phase, next));
    }

    /// Moves one that is over on all counts to the remembered ones.
    pub(in crate::exchange) fn conclude_inbound(&mut self, rid: RequestId, at: &Moment<'_>) {
        let over = self
            .inbound
            .get(&rid)
            .is_some_and(|entry| entry.reply_gone && entry.down.done());
        if over && let Some(mut entry) = self.inbound.remove(&rid) {
            wake(&mut entry.reader);
            self.served
                .bury(rid, Fate::Ended, entry.slot.take(), at.now);
            at.shared.counters.closed_inbound();
        }
    }

    /// Timers of the requests of others. Returns how many wait for word.
    pub(in crate::exchange) fn tick_inbound(
        &mut self,
        acks: &mut Vec<Ack>,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> usize {
        let mut waiting = 0;
        let mut over = Vec::new();
        for (rid, entry) in &mut self.inbound {
            if entry.stop.is_none() && !entry.down.closed() {
                let late = entry.deadline.is_some_and(|deadline| at.now >= deadline);
                let failure = if late && entry.waits.is_none() {
                    Some(Failure::started(
                        Code::DeadlineExceeded,
                        "the request's time is up",
                    ))
                } else if entry.up.tick(at.now) {
                    Some(Failure::started(
                        Code::StreamLost,
                        "a part of the request is missing",
                    ))
                } else {
                    None
                };
                if let Some(failure) = failure {
                    entry.push_error(*rid, &failure);
                    entry.stop(failure);
                } else if entry.down.next_seq() == 0
                    && at.now >= entry.opened + AUTO_ACCEPT
                    && let Poll::Ready(Err(failure)) = entry.offer(*rid, &mut Offer::Accept, at.now)
                {
                    tracing::debug!(request = ?rid, %failure, "cannot accept");
                }
            }
            match entry.down.tick(at.now, at.rtt) {
                Tick::Quiet | Tick::Resend => {}
                Tick::Probe => entry.probe(*rid),
                Tick::Lost => {
                    // Nobody listens; there is nobody to tell either.
                    entry.down.give_up();
                    if entry.stop.is_none() {
                        entry.stop(Failure::started(
                            Code::StreamLost,
                            "the asking node acks nothing",
                        ));
                    }
                }
            }
            out.pump(*rid, Dir::Down, &mut entry.down, at);
            if std::mem::take(&mut entry.no_room) {
                // There may be some now.
                wake(&mut entry.writer);
            }
            // The end of the answer also ends the request: nothing more is sent for it.
            if entry.up.due() != Due::No && !entry.down.closed() {
                let (next, max) = entry.up.take_ack();
                acks.push(Ack(*rid, Dir::Up, next, max));
            }
            if entry.down.done() {
                over.push(*rid);
            } else {
                waiting += 1;
            }
        }
        for rid in over {
            self.conclude_inbound(rid, at);
        }
        waiting
    }

    /// No path is left: the work of all of them ends.
    pub(in crate::exchange) fn lose_inbound(&mut self, at: &Moment<'_>) {
        let rids: Vec<RequestId> = self.inbound.keys().copied().collect();
        for rid in rids {
            if let Some(entry) = self.inbound.get_mut(&rid) {
                entry.down.give_up();
                if entry.stop.is_none() {
                    entry.stop(Failure::started(
                        Code::StreamLost,
                        "the asking node went away",
                    ));
                }
                self.conclude_inbound(rid, at);
            }
        }
    }
}
