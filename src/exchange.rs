//! Requests, replies and streams by id over [sessions](crate::mesh::session::Session): deadlines,
//! cancellation, credit, tombstones, exactly one outcome at both ends (protocol 5.3, 5.4, 7.1-7.3).
//!
//! It knows nothing of models or tools: a request is a kind, a JSON object and a body. Callers open
//! a [`Call`]; the node asked gets an [`Incoming`] through its [`InboundHandler`].

//!
//! ```text
//! Call -- outbound --.                                  .-- inbound -- BodyReader, Reply
//!                     remote (one per peer and boot) --+
//! sender, receiver --'  timers, acks, sessions          '-- sender, receiver
//! ```
//!
//! [`sender`] and [`receiver`] are pure; [`remote`] holds the table of one other process under one
//! mutex; one task of the whole layer looks at the clock every 100 ms while anything is open.

mod budget;
mod call;
mod congestion;
mod dispatch;
mod handlers;
mod inbound;
mod incoming;
mod lineage;
mod message;
mod outbound;
mod receiver;
mod remote;
mod request;
mod rids;
mod sender;
mod shared;
mod stats;
#[cfg(test)]
mod tests;
mod trip;

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use self::{
    remote::{Flow, Remote},
    rids::Slots,
    shared::{Shared, run_clock},
    stats::Counters,
};
use crate::{
    drain::Tasks,
    ids::RequestId,
    mesh::session::{Class, SessionHandler},
    wire::code::{Code, Failure},
};

pub use self::{
    budget::{HeldBody, NodeBudget},
    call::Call,
    handlers::Handlers,
    incoming::{BodyReader, Incoming, Meter, Reply},
    lineage::{Chain, Entered, Lineage, SESSION_HEADER, looped},
    message::Phase,
    request::{End, InboundHandler, Item, Kind, Limits, NewRequest, Opening, Sessions, Timeouts},
    stats::{Drop as DropReason, Stats},
};
pub use crate::mesh::session::SessionRef;

/// Whether `json` is an inner message of this version: what every frame of a session is read with,
/// for the fuzzer.
#[doc(hidden)]
#[must_use]
pub fn is_message(json: &[u8]) -> bool {
    message::decode(json).is_ok()
}

/// Handle to all exchanges of this node; cheap to clone. Implements
/// [`crate::mesh::session::SessionHandler`].
#[derive(Debug, Clone)]
pub struct Exchange {
    shared: Arc<Shared>,
}

impl Exchange {
    /// All exchanges of one node, `inbound` being asked for what others send.
    #[must_use]
    pub fn new(tasks: Tasks, inbound: Arc<dyn InboundHandler>) -> Self {
        Self::with_limits(tasks, inbound, Limits::default())
    }

    /// The same with limits of the operator's.
    #[must_use]
    pub fn with_limits(tasks: Tasks, inbound: Arc<dyn InboundHandler>, limits: Limits) -> Self {
        Self {
            shared: Arc::new(Shared {
                tasks,
                inbound,
                started: Instant::now(),
                budget: NodeBudget::new(limits.node_budget_bytes),
                limits,
                slots: Slots::default(),
                counters: Counters::default(),
                draining: AtomicBool::new(false),
                ticking: AtomicBool::new(false),
                wake: Arc::new(Notify::new()),
                table: Mutex::default(),
            }),
        }
    }

    /// Sends a request to the process behind `session`, in the newest session with it. What protocol
    /// 7.1 binds to one session leaves in that one or not at all.
    ///
    /// # Errors
    /// [`Failure`] with stage `not_started`: `overloaded`, `peer_unreachable`, `payload_too_large`,
    /// `shutting_down`.
    pub fn open(&self, session: &SessionRef, request: NewRequest) -> Result<Call, Failure> {
        let shared = &self.shared;
        if shared.draining() {
            return Err(inbound::shutting_down());
        }
        let remote = self.remote(session)?;
        let rid = request.rid;
        let (opened, flow) =
            remote.with(|state, out, at| state.open(request, &remote.budget, out, at));
        let more = opened?;
        let call = Call::new(Arc::clone(&remote), rid);
        if more || matches!(flow, Flow::Blocked(..)) {
            shared.tasks.spawn(call::upload(remote, rid));
        }
        shared.wake_soon();
        Ok(call)
    }

    /// Asks how far a request of ours has come at the other side. One that it does not know is
    /// refused there from now on (protocol 7.1).
    ///
    /// # Errors
    /// [`Failure`] when no answer came within `timeout`.
    pub async fn query(
        &self,
        session: &SessionRef,
        rid: RequestId,
        timeout: Duration,
    ) -> Result<Phase, Failure> {
        let remote = self.remote(session)?;
        let (answer, answered) = oneshot::channel();
        remote.with(|state, out, _| {
            state.queries.insert(rid, answer);
            out.control(message::query(rid));
        });
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(phase)) => Ok(phase),
            Ok(Err(_)) | Err(_) => Err(outbound::unknown_outcome("the node did not answer")),
        }
    }

    /// Takes no new work and sends none; what is open goes on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Relaxed);
        // Not only when idle: the clock task ends by itself once all is done.
        self.shared.wake.notify_one();
    }

    /// The node's budget, for callers that buffer whole bodies.
    #[must_use]
    pub fn budget(&self) -> NodeBudget {
        self.shared.budget.clone()
    }

    /// One look at the counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let remotes: Vec<Arc<Remote>> = self
            .shared
            .table()
            .remotes
            .values()
            .map(|(_, remote)| Arc::clone(remote))
            .collect();
        let remembered = remotes.iter().map(|remote| remote.remembered()).sum();
        self.shared
            .counters
            .snapshot(self.shared.budget.held(), remembered)
    }

    fn remote(&self, session: &SessionRef) -> Result<Arc<Remote>, Failure> {
        self.shared
            .table()
            .sessions
            .get(&session.id())
            .cloned()
            .ok_or_else(|| Failure::not_started(Code::PeerUnreachable, "the node is not connected"))
    }
}

impl SessionHandler for Exchange {
    fn up(&self, session: &SessionRef) {
        let peer = session.peer();
        let mut replaced = None;
        let (remote, start_clock) = {
            let mut table = self.shared.table();
            let known = table
                .remotes
                .get(&peer.key)
                .filter(|(boot, _)| *boot == peer.boot)
                .map(|(_, remote)| Arc::clone(remote));
            let remote = known.unwrap_or_else(|| {
                let remote = Arc::new(Remote::new(Arc::clone(&self.shared)));
                replaced = table
                    .remotes
                    .insert(peer.key, (peer.boot, Arc::clone(&remote)));
                remote
            });
            table.sessions.insert(session.id(), Arc::clone(&remote));
            (remote, !std::mem::replace(&mut table.clock_runs, true))
        };
        if let Some((_, old)) = replaced {
            // The process behind it is gone and has forgotten everything (protocol 4.5).
            self.shared
                .table()
                .sessions
                .retain(|_, remote| !Arc::ptr_eq(remote, &old));
            old.end();
        }
        remote.add_session(session);
        if start_clock {
            let clock = run_clock(Arc::downgrade(&self.shared), Arc::clone(&self.shared.wake));
            self.shared.tasks.spawn(clock);
        }
    }

    fn frame(&self, session: &SessionRef, _class: Class, inner: Bytes) {
        // A frame of a session that was never up, or is lost, belongs to nobody.
        if let Ok(remote) = self.remote(session) {
            dispatch::frame(&remote, session, inner);
            self.shared.wake_soon();
        }
    }

    fn rerouted(&self, session: &SessionRef) {
        if let Ok(remote) = self.remote(session) {
            remote.rewind();
            self.shared.wake_soon();
        }
    }

    fn dropped(&self, session: &SessionRef) {
        if let Ok(remote) = self.remote(session) {
            remote.suspect();
            self.shared.wake_soon();
        }
    }

    fn moved(&self, session: &SessionRef) {
        if let Ok(remote) = self.remote(session) {
            remote.moved();
            self.shared.wake_soon();
        }
    }

    fn lost(&self, session: &SessionRef) {
        let remote = self.shared.table().sessions.remove(&session.id());
        if let Some(remote) = remote {
            remote.remove_session(session);
            // To forget what ended, in time.
            self.shared.wake_soon();
        }
    }
}
