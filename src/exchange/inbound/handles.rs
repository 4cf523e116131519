//! What the handles of a request do to it: its body is read, its answer written.

use std::task::{Poll, Waker};

use bytes::Bytes;

use super::{Offer, note, over};
use crate::{
    exchange::{
        message::{self, Ack, Dir},
        receiver::Due,
        remote::{Moment, Outbox, State},
    },
    ids::RequestId,
    mesh::session::Class,
    wire::code::Failure,
};

impl State {
    /// Takes (a piece of) an item of the answer; pending while it must wait.
    pub(in crate::exchange) fn offer(
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
    pub(in crate::exchange) fn pump_inbound(
        &mut self,
        rid: RequestId,
        out: &mut Outbox,
        at: &Moment<'_>,
    ) {
        if let Some(entry) = self.inbound.get_mut(&rid) {
            out.pump(rid, Dir::Down, &mut entry.down, at);
        }
    }

    /// Ends an answer with a failure of its handler, unless it has ended.
    pub(in crate::exchange) fn fail_inbound(
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
    pub(in crate::exchange) fn drop_reply(&mut self, rid: RequestId, at: &Moment<'_>) {
        if let Some(entry) = self.inbound.get_mut(&rid) {
            entry.reply_gone = true;
            self.conclude_inbound(rid, at);
        }
    }

    /// Class of the answer's further items.
    pub(in crate::exchange) fn set_class(&mut self, rid: RequestId, class: Class) {
        if let Some(entry) = self.inbound.get_mut(&rid) {
            entry.class = class;
        }
    }

    /// Why the work must end; none while it may go on.
    pub(in crate::exchange) fn stopped(
        &mut self,
        rid: RequestId,
        waker: &Waker,
    ) -> Option<Failure> {
        let Some(entry) = self.inbound.get_mut(&rid) else {
            return Some(over());
        };
        if entry.stop.is_none() {
            note(&mut entry.watcher, waker);
        }
        entry.stop.clone()
    }

    /// The next bytes of a body.
    pub(in crate::exchange) fn next_body(
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
    pub(in crate::exchange) fn drop_body(&mut self, rid: RequestId) {
        if let Some(entry) = self.inbound.get_mut(&rid) {
            entry.body_gone = true;
            entry.up.clear();
        }
    }
}
