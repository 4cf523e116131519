//! The handle of a request of ours.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
};

use super::{Item, remote::Flow, remote::Remote};
use crate::{ids::RequestId, wire::code::Failure};

/// One request of ours. Dropping it before its end sends `cancel`.
#[derive(Debug)]
pub struct Call {
    remote: Arc<Remote>,
    rid: RequestId,
    over: bool,
}

impl Call {
    pub(super) fn new(remote: Arc<Remote>, rid: RequestId) -> Self {
        Self {
            remote,
            rid,
            over: false,
        }
    }

    /// Names the exchange at both ends.
    #[must_use]
    pub fn rid(&self) -> RequestId {
        self.rid
    }

    /// The next item of the answer; none after the last. Safe to drop and call again.
    ///
    /// # Errors
    /// [`Failure`]: the one outcome, after which nothing more comes.
    pub async fn next(&mut self) -> Result<Option<Item>, Failure> {
        if self.over {
            return Ok(None);
        }
        let result = poll_fn(|cx| self.poll(cx.waker())).await;
        self.over = match &result {
            Err(_) | Ok(None) => true,
            Ok(Some(item)) => item.is_last(),
        };
        result
    }

    fn poll(&self, waker: &Waker) -> Poll<Result<Option<Item>, Failure>> {
        let (result, _) = self
            .remote
            .with(|state, out, at| state.next_item(self.rid, waker, out, at));
        result.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.over {
            self.remote
                .with(|state, out, at| state.drop_call(self.rid, out, at));
        }
    }
}

/// How far an upload is.
enum Step {
    /// Everything is in the hands of the link, or nobody wants it any more.
    Done,
    /// Some is left, and credit or budget is missing.
    Wait,
}

/// Sends what did not leave with [`super::Exchange::open`]: the request itself when the link was
/// full, and a body too large to ride in it. Ends with the request at the latest.
pub(super) async fn upload(remote: Arc<Remote>, rid: RequestId) {
    loop {
        let (step, flow) = poll_fn(|cx| {
            let (step, flow) = remote.with(|state, out, at| {
                let Some(entry) = state.outbound.get_mut(&rid) else {
                    return Step::Done;
                };
                let more = entry.fill(rid, at.now);
                out.pump(rid, super::message::Dir::Up, &mut entry.up, at);
                if more {
                    entry.uploader = Some(cx.waker().clone());
                    Step::Wait
                } else {
                    Step::Done
                }
            });
            match (&step, &flow) {
                (Step::Wait, Flow::Clear | Flow::Gone) => Poll::Pending,
                _ => Poll::Ready((step, flow)),
            }
        })
        .await;
        match (step, flow) {
            (_, Flow::Blocked(session, class)) => session.room(class).await,
            (Step::Done, _) => return,
            (Step::Wait, _) => {}
        }
    }
}
