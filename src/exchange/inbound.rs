//! Requests of others: one entry each, from arrival until the other side has acked its end.

use std::{
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;

use super::{
    End, Kind,
    message::{self, Ack, Dir, Phase, Request},
    outbound::PIECE_BYTES,
    receiver::{Arrival, Due, Part, Receiver, Violation},
    remote::{Moment, Outbox, State},
    rids::{Fate, Slot},
    sender::{Outgoing, Sender, Tick, Time},
    stats::Drop as Dropped,
};
use crate::{
    ids::RequestId,
    mesh::session::Class,
    wire::{
        code::{Code, Failure},
        inner,
        limits::{AUTO_ACCEPT, CHUNK_BYTES, INITIAL_WINDOW, RIDS_PER_PEER, STALE_AFTER},
    },
};

/// One request of another node.
#[derive(Debug)]
pub(super) struct Inbound {
    up: Receiver<(), ()>,
    /// Total length of the body.
    body_bytes: u64,
    pub(super) down: Sender,
    /// Class of the answer's items.
    class: Class,
    /// Why the work must end; told to everybody who waits.
    stop: Option<Failure>,
    /// The answer has begun.
    headed: bool,
    opened: Time,
    deadline: Option<Time>,
    /// `deadline` ends to apply at the first streamed byte.
    until_first_byte: bool,
    slot: Option<Slot>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    watcher: Option<Waker>,
    reply_gone: bool,
    body_gone: bool,
}

/// One item of an answer on its way into its stream.
#[derive(Debug)]
pub(super) enum Offer<'a> {
    Accept,
    Head {
        status: u16,
        meta: &'a str,
        data: Bytes,
        fin: Option<&'a End>,
    },
    Chunk {
        data: Bytes,
        fin: Option<&'a End>,
    },
    End(&'a End),
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn note(slot: &mut Option<Waker>, waker: &Waker) {
    if !slot.as_ref().is_some_and(|old| old.will_wake(waker)) {
        *slot = Some(waker.clone());
    }
}

/// What the handles of an entry that is gone say.
fn over() -> Failure {
    Failure::started(Code::Cancelled, "the exchange is over")
}

impl Inbound {
    pub(super) fn wake_writer(&mut self) {
        wake(&mut self.writer);
    }

    /// Ends the work: nobody waits for it, or its time is up.
    fn stop(&mut self, failure: Failure) {
        self.stop = Some(failure);
        self.up.clear();
        wake(&mut self.reader);
        wake(&mut self.writer);
        wake(&mut self.watcher);
    }

    /// Whether all of the body has arrived.
    fn body_here(&self) -> bool {
        self.up.next_seq() > 0 && self.up.in_order_bytes() == self.body_bytes
    }

    /// Pushes the last item, a failure.
    fn push_error(&mut self, rid: RequestId, failure: &Failure) {
        // An error may overtake what others send, but not the items before it in its own stream:
        // the other side would take the early number for a gap.
        let class = if self.down.all_acked() {
            Class::Control
        } else {
            self.class
        };
        let json = message::error(rid, Some(self.down.next_seq()), failure);
        let item = Outgoing {
            json,
            data: Bytes::new(),
            class,
        };
        self.down.push(item, true);
    }

    /// Asks for the credit whose ack may be lost.
    fn probe(&mut self, rid: RequestId) {
        if self.down.closed() {
            return;
        }
        let item = Outgoing {
            json: message::chunk(rid, Dir::Down, self.down.next_seq(), None),
            data: Bytes::new(),
            class: self.class,
        };
        // Without room for it in the budget the next probe will do.
        let _ = self.down.push(item, false);
    }

    fn phase(&self) -> Phase {
        if self.down.closed() {
            Phase::Done
        } else if self.headed {
            Phase::Running
        } else {
            Phase::Accepted
        }
    }

    /// Takes one offer, or the next piece of it, if credit and budget allow. `Ready(true)` means
    /// that more of it is left.
    fn offer(
        &mut self,
        rid: RequestId,
        offer: &mut Offer<'_>,
        now: Time,
    ) -> Poll<Result<bool, Failure>> {
        if let Some(failure) = &self.stop {
            return Poll::Ready(Err(failure.clone()));
        }
        if self.down.closed() {
            return Poll::Ready(Err(Failure::started(
                Code::Internal,
                "the answer has already ended",
            )));
        }
        let Some(room) = self.down.allowance() else {
            return Poll::Pending;
        };
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let seq = self.down.next_seq();
        let (json, data, last, more) = match offer {
            Offer::Accept => (message::accept(rid, seq), Bytes::new(), false, false),
            Offer::Head {
                status,
                meta,
                data,
                fin,
            } => {
                if room < data.len() {
                    self.down.starve(now);
                    return Poll::Pending;
                }
                let json = message::head(rid, seq, *status, meta, *fin);
                (json, data.clone(), fin.is_some(), false)
            }
            Offer::Chunk { data, fin } => {
                if room < data.len().min(PIECE_BYTES) {
                    self.down.starve(now);
                    return Poll::Pending;
                }
                let piece = data.slice(..data.len().min(room).min(CHUNK_BYTES));
                let more = piece.len() < data.len();
                let fin = if more { None } else { *fin };
                let json = message::chunk(rid, Dir::Down, seq, fin);
                (json, piece, fin.is_some(), more)
            }
            Offer::End(end) => (message::end(rid, seq, end), Bytes::new(), true, false),
        };
        if !inner::fits(json.len(), data.len()) {
            return Poll::Ready(Err(Failure::started(
                Code::Internal,
                "an item of the answer is larger than a frame",
            )));
        }
        let bytes = data.len();
        let item = Outgoing {
            json,
            data,
            class: self.class,
        };
        if !self.down.push(item, last) {
            return Poll::Pending;
        }
        self.headed |= !matches!(offer, Offer::Accept);
        if let Offer::Chunk { data, .. } = offer {
            let _ = data.split_to(bytes);
        }
        if bytes > 0 && !last && self.until_first_byte {
            self.deadline = None;
        }
        Poll::Ready(Ok(more))
    }
}

/// A request as the exchange has admitted it.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) deadline: Option<Duration>,
}

impl State {
    /// One request. None when it is a duplicate or was refused.
    pub(super) fn on_request(
        &mut self,
        request: &Request,
        data: Bytes,
        elapsed: Duration,
        budget: &super::budget::PeerBudget,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> Option<Admitted> {
        let rid = request.rid;
        if self.inbound.contains_key(&rid) {
            at.shared.counters.dropped(Dropped::Duplicate);
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
            out.control(message::error(rid, None, &again));
            return None;
        }
        let late = request
            .at
            .map(Duration::from_millis)
            .filter(|_| request.kind.once());
        let (slot, deadline) = match self.admit(request, &data, elapsed, late, budget, at) {
            Ok(admitted) => admitted,
            Err(failure) => {
                self.refuse(rid, &failure, out, at);
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
                self.refuse(rid, &overloaded(), out, at);
                return None;
            }
            Ok(Arrival::Early | Arrival::Duplicate) | Err(_) => {
                let failure = Failure::not_started(Code::ProtocolError, "more data than credit");
                self.refuse(rid, &failure, out, at);
                return None;
            }
        }
        self.inbound.insert(
            rid,
            Inbound {
                up,
                body_bytes: request.blen,
                down: Sender::new(INITIAL_WINDOW, budget.account()),
                class: Class::Interactive,
                stop: None,
                headed: false,
                opened: at.now,
                deadline: deadline.and_then(|left| at.now.checked_add(left)),
                until_first_byte: request.kind == Kind::Model && request.stream,
                slot,
                reader: None,
                writer: None,
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
        budget: &super::budget::PeerBudget,
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

    /// Refuses a request before it began, and keeps refusing its copies.
    fn refuse(&mut self, rid: RequestId, failure: &Failure, out: &mut Outbox, at: &Moment<'_>) {
        out.control(message::error(rid, None, failure));
        self.served
            .bury(rid, Fate::Refused(failure.code), None, at.now);
    }

    /// A further piece of a request's body. Returns whether the other side ignored its credit.
    pub(super) fn on_up_chunk(
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
            Ok(Arrival::Duplicate) => at.shared.counters.dropped(Dropped::Duplicate),
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
    pub(super) fn stop_inbound(
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
    pub(super) fn on_cancel(&mut self, rid: RequestId, out: &mut Outbox, at: &Moment<'_>) {
        let failure = Failure::started(Code::Cancelled, "the asking node cancelled");
        let Some(entry) = self.inbound.get_mut(&rid) else {
            // Overtook its request, or came late: in either case the request never runs from now
            // on, and the answer stops the repetition.
            if self.served.fate(&rid).is_none() {
                self.served.bury(rid, Fate::Cancelled, None, at.now);
            }
            out.control(message::error(rid, None, &failure));
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
    pub(super) fn on_query(&mut self, rid: RequestId, out: &mut Outbox, at: &Moment<'_>) {
        let (phase, next) = match (self.inbound.get(&rid), self.served.fate(&rid)) {
            (Some(entry), _) => (entry.phase(), entry.down.next_seq()),
            (None, Some(Fate::Ended)) => (Phase::Done, 0),
            (None, Some(Fate::Refused(_) | Fate::Cancelled | Fate::Fenced)) => (Phase::Unknown, 0),
            (None, None) => {
                // A minute is enough: later copies are stale by their `at`.
                self.served.bury(rid, Fate::Fenced, None, at.now);
                (Phase::Unknown, 0)
            }
        };
        out.control(message::state(rid, phase, next));
    }

    /// Moves one that is over on all counts to the remembered ones.
    pub(super) fn conclude_inbound(&mut self, rid: RequestId, at: &Moment<'_>) {
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
    pub(super) fn tick_inbound(
        &mut self,
        acks: &mut Vec<Ack>,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> usize {
        let mut waiting = 0;
        let mut over = Vec::new();
        for (rid, entry) in &mut self.inbound {
            if entry.stop.is_none() && !entry.down.closed() {
                let failure = if entry.deadline.is_some_and(|deadline| at.now >= deadline) {
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
            wake(&mut entry.writer);
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
    pub(super) fn lose_inbound(&mut self, at: &Moment<'_>) {
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

    // -- what the handles of a request do --------------------------------------------------------

    /// Takes (a piece of) an item of the answer; pending while it must wait.
    pub(super) fn offer(
        &mut self,
        rid: RequestId,
        offer: &mut Offer<'_>,
        waker: &Waker,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> Poll<Result<bool, Failure>> {
        let Some(entry) = self.inbound.get_mut(&rid) else {
            return Poll::Ready(Err(over()));
        };
        let result = entry.offer(rid, offer, at.now);
        match &result {
            Poll::Pending => note(&mut entry.writer, waker),
            Poll::Ready(_) => out.pump(rid, Dir::Down, &mut entry.down, at),
        }
        result
    }

    /// Sends what the link had no room for.
    pub(super) fn pump_inbound(&mut self, rid: RequestId, out: &mut Outbox, at: &Moment<'_>) {
        if let Some(entry) = self.inbound.get_mut(&rid) {
            out.pump(rid, Dir::Down, &mut entry.down, at);
        }
    }

    /// Ends an answer with a failure of its handler, unless it has ended.
    pub(super) fn fail_inbound(
        &mut self,
        rid: RequestId,
        failure: &Failure,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) {
        if let Some(entry) = self.inbound.get_mut(&rid)
            && entry.stop.is_none()
            && !entry.down.closed()
        {
            entry.push_error(rid, failure);
            out.pump(rid, Dir::Down, &mut entry.down, at);
        }
    }

    /// The handle of the answer is gone.
    pub(super) fn drop_reply(&mut self, rid: RequestId, at: &Moment<'_>) {
        if let Some(entry) = self.inbound.get_mut(&rid) {
            entry.reply_gone = true;
            self.conclude_inbound(rid, at);
        }
    }

    /// Class of the answer's further items.
    pub(super) fn set_class(&mut self, rid: RequestId, class: Class) {
        if let Some(entry) = self.inbound.get_mut(&rid) {
            entry.class = class;
        }
    }

    /// Why the work must end; none while it may go on.
    pub(super) fn stopped(&mut self, rid: RequestId, waker: &Waker) -> Option<Failure> {
        let Some(entry) = self.inbound.get_mut(&rid) else {
            return Some(over());
        };
        if entry.stop.is_none() {
            note(&mut entry.watcher, waker);
        }
        entry.stop.clone()
    }

    /// The next bytes of a body.
    pub(super) fn next_body(
        &mut self,
        rid: RequestId,
        waker: &Waker,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) -> Poll<Result<Option<Bytes>, Failure>> {
        let Some(entry) = self.inbound.get_mut(&rid) else {
            return Poll::Ready(Err(over()));
        };
        if let Some(failure) = &entry.stop {
            return Poll::Ready(Err(failure.clone()));
        }
        if let Some(part) = entry.up.pop(at.now, at.rtt) {
            if entry.up.due() == Due::Now && !entry.body_here() {
                let (next, max) = entry.up.take_ack();
                out.control(message::ack(&[Ack(rid, Dir::Up, next, max)]));
            }
            return Poll::Ready(Ok(Some(part.data)));
        }
        if entry.body_here() {
            return Poll::Ready(Ok(None));
        }
        note(&mut entry.reader, waker);
        Poll::Pending
    }

    /// The reader of a body is gone: what is there is given back, what comes is not taken.
    pub(super) fn drop_body(&mut self, rid: RequestId) {
        if let Some(entry) = self.inbound.get_mut(&rid) {
            entry.body_gone = true;
            entry.up.clear();
        }
    }
}

/// The refusal of a node with too much in hand.
pub(super) fn overloaded() -> Failure {
    Failure {
        retry_after: Some(Duration::from_secs(1)),
        ..Failure::not_started(Code::Overloaded, "the node has too much in hand")
    }
}

/// The refusal of a node that is going down.
pub(super) fn shutting_down() -> Failure {
    Failure {
        retry_after: Some(Duration::from_secs(5)),
        ..Failure::not_started(Code::ShuttingDown, "the node is shutting down")
    }
}
