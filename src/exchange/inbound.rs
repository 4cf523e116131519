//! Requests of others: one entry each, from arrival until the other side has acked its end.

mod events;
mod handles;

use std::{
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;

use super::{
    End,
    message::{self, Dir, Phase},
    receiver::Receiver,
    rids::Slot,
    sender::{Outgoing, Sender, Time},
};
use crate::{
    ids::RequestId,
    mesh::session::Class,
    wire::{
        code::{Code, Failure},
        inner,
        limits::SMALL_CHUNK_BYTES,
    },
};

/// One request of another node.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) up: Receiver<(), ()>,
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
    /// A person is asked since then; the deadline stands still (protocol 8.4).
    waits: Option<Time>,
    slot: Option<Slot>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The budget had no room for an item.
    no_room: bool,
    watcher: Option<Waker>,
    reply_gone: bool,
    body_gone: bool,
}

/// One item of an answer on its way into its stream.
#[derive(Debug)]
pub(super) enum Offer<'a> {
    Accept,
    /// A person is asked, for so long at most.
    Waits(Duration),
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
        let json = message::error(rid, Some(self.down.next_seq()), failure);
        let item = Outgoing {
            json,
            data: Bytes::new(),
            // In the class of the items before it: the other side would take an early number for
            // a gap.
            class: self.class,
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
        } else if self.waits.is_some() {
            Phase::ApprovalPending
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
            Offer::Accept => {
                let phase = self.waits.map(|_| Phase::Running);
                (
                    message::accept(rid, seq, phase, None),
                    Bytes::new(),
                    false,
                    false,
                )
            }
            Offer::Waits(left) => {
                let left = u64::try_from(left.as_millis()).ok();
                let json = message::accept(rid, seq, Some(Phase::ApprovalPending), left);
                (json, Bytes::new(), false, false)
            }
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
                if room < data.len().min(SMALL_CHUNK_BYTES) {
                    self.down.starve(now);
                    return Poll::Pending;
                }
                let piece = data.slice(..data.len().min(room).min(self.down.piece(self.class)));
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
            self.no_room = true;
            return Poll::Pending;
        }
        if matches!(offer, Offer::Waits(_)) {
            self.waits.get_or_insert(now);
        } else if let Some(since) = self.waits.take() {
            // Waiting for a person is not counted.
            let waited = now.saturating_sub(since);
            self.deadline = self.deadline.and_then(|end| end.checked_add(waited));
        }
        self.headed |= !matches!(offer, Offer::Accept | Offer::Waits(_));
        if let Offer::Chunk { data, .. } = offer {
            let _ = data.split_to(bytes);
        }
        if bytes > 0 && !last && self.until_first_byte {
            self.deadline = None;
        }
        Poll::Ready(Ok(more))
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
