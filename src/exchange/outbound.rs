//! Requests of ours: one entry each, from open to its one outcome.

mod events;

use std::{sync::Arc, task::Waker, time::Duration};

use bytes::Bytes;

use super::{
    Item, Timeouts,
    message::{self, Dir, Last, Lead},
    receiver::{Part, Receiver, Violation},
    remote::Outbox,
    sender::{Outgoing, Sender, Time},
};
use crate::{
    ids::RequestId,
    mesh::session::{Class, SessionRef},
    wire::{
        code::{Code, Failure},
        limits::{APPROVAL_MARGIN, APPROVAL_WAIT, NEVER_BEGAN_FOR, RTO_MIN, SMALL_CHUNK_BYTES},
    },
};

/// A `cancel` that the other side has not answered yet.
#[derive(Debug)]
struct Cancelling {
    since: Time,
    again: Time,
    pause: Duration,
    reason: Code,
}

/// The one session that carries a request, and the moment on its clock that the request says.
#[derive(Debug)]
pub(super) struct Carrier {
    session: SessionRef,
    /// The request's `at`.
    pub(super) at: Duration,
}

impl Carrier {
    pub(super) fn new(session: &SessionRef) -> Self {
        Self {
            at: session.elapsed(),
            session: Arc::clone(session),
        }
    }

    /// Whether the other side may already have forgotten that the request ran: then what it says of
    /// a request that never began proves nothing (protocol 7.1).
    fn outdated(&self) -> bool {
        self.session.elapsed().saturating_sub(self.at) > NEVER_BEGAN_FOR
    }
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
    /// What carries it, when protocol 7.1 binds it to one session.
    carrier: Option<Carrier>,
    /// The budget had no room for a piece of the body.
    pub(super) no_room: bool,
    pub(super) timeouts: Timeouts,
    pub(super) opened: Time,
    pub(super) deadline: Option<Time>,
    /// Last sign that the request moves on.
    pub(super) progress: Time,
    /// A person there is asked since then: deadline and silence are not counted (protocol 8.4).
    waits: Option<Time>,
    /// How long that was before.
    waited: Duration,
    /// Something was answered.
    pub(super) answered: bool,
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
        carrier: Option<Carrier>,
        timeouts: Timeouts,
        body: Bytes,
        now: Time,
    ) -> Self {
        Self {
            up,
            down,
            body,
            class,
            idempotent,
            carrier,
            no_room: false,
            timeouts,
            opened: now,
            deadline: now.checked_add(timeouts.deadline),
            progress: now,
            waits: None,
            waited: Duration::ZERO,
            answered: false,
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
            // No smaller while more waits: credit may come in small steps.
            let want = self.body.len().min(SMALL_CHUNK_BYTES);
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
                .slice(..room.min(self.body.len()).min(self.up.piece(self.class)));
            let bytes = data.len();
            let item = Outgoing {
                json: message::chunk(rid, Dir::Up, self.up.next_seq(), None),
                data,
                class: self.class,
            };
            if !self.up.push(item, false) {
                self.no_room = true;
                return true;
            }
            let _ = self.body.split_to(bytes);
        }
        false
    }

    /// Whether word that it never began must not be believed: something of it was answered, or it
    /// was sent long ago.
    fn may_have_begun(&self) -> bool {
        self.answered || self.carrier.as_ref().is_some_and(Carrier::outdated)
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
            let sent = out.cancel(|| message::cancel(rid, reason));
            self.cancelling = Some(Cancelling {
                since: now,
                again: if sent { now + RTO_MIN } else { now },
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

    /// Takes note of what an item says about a person who is asked.
    pub(super) fn note_wait(&mut self, part: &Part<Lead, Last>, now: Time) {
        match &part.lead {
            // One wait and no more: who keeps saying so must not hold us for ever.
            Some(Lead::Waits(_)) if self.waited < APPROVAL_WAIT => {
                self.waits.get_or_insert(now);
            }
            Some(Lead::Waits(_)) => {}
            None if part.data.is_empty() && part.last.is_none() => {}
            _ => {
                if let Some(since) = self.waits.take() {
                    let waited = now.saturating_sub(since);
                    self.waited += waited;
                    self.deadline = self.deadline.and_then(|end| end.checked_add(waited));
                    self.progress = now;
                }
            }
        }
    }

    /// The first timeout that has run out, if any.
    fn overdue(&self, now: Time) -> Option<Failure> {
        let timeouts = &self.timeouts;
        if let Some(since) = self.waits {
            // The other side ends the wait itself; one that does not must not hold us.
            let left = APPROVAL_WAIT.saturating_sub(self.waited) + APPROVAL_MARGIN;
            return (now >= since + left).then(|| {
                if self.idempotent {
                    Failure {
                        retryable: false,
                        ..Failure::started(Code::Timeout, "the node tells nothing of the approval")
                    }
                } else {
                    unknown_outcome("the node tells nothing of the approval")
                }
            });
        }
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
        (Some(Lead::Waits(left)), _) => Item::Waits(left),
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
