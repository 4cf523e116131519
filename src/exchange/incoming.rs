//! The handles of a request of another node: its body and its answer.

use std::{fmt, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;

use super::{
    End, Kind,
    inbound::Offer,
    remote::{Flow, Remote},
};
use crate::{
    ids::RequestId,
    mesh::session::{Class, Peer},
    wire::{
        code::{Code, Failure},
        inner,
        limits::INLINE_BODY_BYTES,
    },
};

/// One request from another node.
pub struct Incoming {
    /// Who asks; verified.
    pub caller: Peer,
    /// Names the exchange.
    pub rid: RequestId,
    /// What is asked.
    pub kind: Kind,
    /// The request's JSON object, whole; checked to be strict JSON (protocol 5.2).
    pub json: Bytes,
    /// Total body length, already checked against the limit.
    pub body_bytes: u64,
    /// When its time is up, if it said so; the exchange stops it then. Nested requests inherit
    /// what remains (protocol 7.3).
    pub deadline: Option<tokio::time::Instant>,
    /// The body.
    pub body: BodyReader,
    /// Where the answer goes.
    pub reply: Reply,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the content: prompts and arguments are nobody's business in a log.
        f.debug_struct("Incoming")
            .field("caller", &self.caller.node)
            .field("rid", &self.rid)
            .field("kind", &self.kind)
            .field("body_bytes", &self.body_bytes)
            .finish_non_exhaustive()
    }
}

/// The body of a request, in order.
#[derive(Debug)]
pub struct BodyReader {
    remote: Arc<Remote>,
    rid: RequestId,
}

impl BodyReader {
    pub(super) fn new(remote: Arc<Remote>, rid: RequestId) -> Self {
        Self { remote, rid }
    }

    /// The next bytes of the body; none at its end. Reading is what grants further credit. Safe
    /// to drop and call again.
    ///
    /// # Errors
    /// [`Failure`] when the asking side cancelled, was lost, or ran out of time.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        poll_fn(|cx| {
            self.remote
                .with(|state, out, at| state.next_body(self.rid, cx.waker(), out, at))
                .0
        })
        .await
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        self.remote.with(|state, _, _| state.drop_body(self.rid));
    }
}

/// Where the answer to a request goes. Dropped without an end it answers `internal`.
///
/// Nothing needs to be accepted early: a request that nothing was answered to for a second is
/// accepted by itself, so that a quick answer is one record.
#[derive(Debug)]
pub struct Reply {
    remote: Arc<Remote>,
    rid: RequestId,
    ended: bool,
    meter: Option<Box<dyn Meter>>,
}

/// Counts what an answer carries; dropped when the answer is over.
pub trait Meter: Send + Sync + fmt::Debug {
    /// Takes note of bytes that were handed over. Must not block.
    fn sent(&mut self, data: &Bytes);
}

impl Reply {
    pub(super) fn new(remote: Arc<Remote>, rid: RequestId) -> Self {
        Self {
            remote,
            rid,
            ended: false,
            meter: None,
        }
    }

    /// Has what the answer carries counted by `meter`.
    pub fn set_meter(&mut self, meter: Box<dyn Meter>) {
        self.meter = Some(meter);
    }

    /// Sends what follows in another class: [`Class::Bulk`] for a large body. Begins as
    /// [`Class::Interactive`].
    pub fn set_class(&mut self, class: Class) {
        self.remote
            .with(|state, _, _| state.set_class(self.rid, class));
    }

    /// Says that the request is taken.
    ///
    /// # Errors
    /// [`Failure`] when the asking side cancelled, was lost, or ran out of time; the same below.
    pub async fn accept(&mut self) -> Result<(), Failure> {
        self.send(Offer::Accept).await
    }

    /// Says that a person is asked: from now until the next item its time stands still on both
    /// sides (protocol 8.4), for `left` at most. [`Reply::accept`] says that it goes on.
    ///
    /// # Errors
    /// As [`Reply::accept`].
    pub async fn waits(&mut self, left: Duration) -> Result<(), Failure> {
        self.send(Offer::Waits(left)).await
    }

    /// Begins the answer; `fin` makes it the whole of it. `meta` is a JSON object. An answer of
    /// known length up to 32 KiB given here whole leaves as one record.
    ///
    /// # Errors
    /// As [`Reply::accept`].
    pub async fn head(
        &mut self,
        status: u16,
        meta: &str,
        data: Bytes,
        fin: Option<End>,
    ) -> Result<(), Failure> {
        self.count(&data);
        let small = data.len() <= INLINE_BODY_BYTES;
        let extra = fin.as_ref().map_or(0, End::json_bytes);
        let fits = small && inner::fits(HEAD_BYTES + meta.len() + extra, data.len());
        let (now, later) = if fits {
            (data, Bytes::new())
        } else {
            (Bytes::new(), data)
        };
        let whole = later.is_empty();
        self.send(Offer::Head {
            status,
            meta,
            data: now,
            fin: if whole { fin.as_ref() } else { None },
        })
        .await?;
        if whole {
            self.ended |= fin.is_some();
            return Ok(());
        }
        self.pass(later, fin).await
    }

    /// Sends further bytes, waiting for credit and for room on the link.
    ///
    /// # Errors
    /// As [`Reply::accept`].
    pub async fn chunk(&mut self, data: Bytes, fin: Option<End>) -> Result<(), Failure> {
        self.count(&data);
        self.pass(data, fin).await
    }

    fn count(&mut self, data: &Bytes) {
        if let Some(meter) = &mut self.meter {
            meter.sent(data);
        }
    }

    async fn pass(&mut self, data: Bytes, fin: Option<End>) -> Result<(), Failure> {
        if data.is_empty() && fin.is_none() {
            return Ok(());
        }
        self.send(Offer::Chunk {
            data,
            fin: fin.as_ref(),
        })
        .await?;
        self.ended |= fin.is_some();
        Ok(())
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// As [`Reply::accept`].
    pub async fn end(mut self, end: End) -> Result<(), Failure> {
        self.send(Offer::End(&end)).await?;
        self.ended = true;
        Ok(())
    }

    /// Ends it with a failure. Synchronous, so that it can be called from `Drop` guards.
    pub fn fail(mut self, failure: Failure) {
        self.fail_now(&failure);
    }

    fn fail_now(&mut self, failure: &Failure) {
        self.ended = true;
        self.remote
            .with(|state, out, at| state.fail_inbound(self.rid, failure, out, at));
    }

    /// Resolves when the asking side cancelled, was lost, or ran out of time; the reason is what
    /// [`Reply::chunk`] would return.
    pub async fn cancelled(&self) -> Failure {
        poll_fn(|cx| {
            let (stopped, _) = self
                .remote
                .with(|state, _, _| state.stopped(self.rid, cx.waker()));
            stopped.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Does what comes before the answer; none when the asking side goes away first, which drops
    /// `work`.
    pub async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            why = self.cancelled() => {
                tracing::debug!(request = ?self.rid, %why, "given up before anything was answered");
                None
            }
        }
    }

    async fn send(&mut self, mut offer: Offer<'_>) -> Result<(), Failure> {
        loop {
            let (more, flow) = poll_fn(|cx| {
                let (result, flow) = self
                    .remote
                    .with(|state, out, at| state.offer(self.rid, &mut offer, cx.waker(), out, at));
                result.map(|result| result.map(|more| (more, flow)))
            })
            .await?;
            self.settle(flow).await?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Waits until the link has taken what is in the stream: the pace of the link is the pace of
    /// whoever produces the answer.
    async fn settle(&self, mut flow: Flow) -> Result<(), Failure> {
        loop {
            match flow {
                Flow::Clear => return Ok(()),
                Flow::Gone => return Err(self.cancelled().await),
                Flow::Blocked(session, class) => {
                    tokio::select! {
                        biased;
                        failure = self.cancelled() => return Err(failure),
                        () = session.room(class) => {}
                    }
                }
            }
            flow = self
                .remote
                .with(|state, out, at| state.pump_inbound(self.rid, out, at))
                .1;
        }
    }
}

/// The fixed part of a `head`.
const HEAD_BYTES: usize = 192;

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.ended {
            self.fail_now(&Failure::started(
                Code::Internal,
                "the node gave up on the request",
            ));
        }
        self.remote
            .with(|state, _, at| state.drop_reply(self.rid, at));
    }
}
