//! What all parts of the layer share, and its clock.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    InboundHandler, Limits, NodeBudget, remote::Remote, rids::Slots, sender::Time, stats::Counters,
};
use crate::{
    crypto::identity::PublicKey,
    drain::Tasks,
    ids::{Boot, SessionId},
    wire::limits::{ACK_DELAY, PAUSE},
};

/// What all parts of the layer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) tasks: Tasks,
    pub(super) inbound: Arc<dyn InboundHandler>,
    pub(super) limits: Limits,
    pub(super) started: Instant,
    pub(super) budget: NodeBudget,
    pub(super) slots: Slots,
    pub(super) counters: Counters,
    pub(super) draining: AtomicBool,
    /// The clock task runs every 100 ms; otherwise it sleeps until [`Shared::wake_soon`].
    pub(super) ticking: AtomicBool,
    pub(super) wake: Arc<Notify>,
    pub(super) table: Mutex<Table>,
}

/// Which process a session belongs to.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) sessions: HashMap<SessionId, Arc<Remote>>,
    /// One boot a key: another one has taken its place.
    pub(super) remotes: HashMap<PublicKey, (Boot, Arc<Remote>)>,
    pub(super) clock_runs: bool,
}

impl Shared {
    pub(super) fn now(&self) -> Time {
        self.started.elapsed()
    }

    pub(super) fn draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is open now: the clock must tick.
    pub(super) fn wake_soon(&self) {
        if !self.ticking.swap(true, Relaxed) {
            self.wake.notify_one();
        }
    }

    /// One look at every clock. Returns how long the next may wait; none for until woken.
    fn tick(&self, paused: bool) -> (usize, Option<Duration>) {
        self.ticking.store(false, Relaxed);
        let remotes: Vec<(PublicKey, Arc<Remote>)> = self
            .table()
            .remotes
            .iter()
            .map(|(key, (_, remote))| (*key, Arc::clone(remote)))
            .collect();
        let mut soon = false;
        let mut live = 0;
        let mut expiry: Option<Time> = None;
        for (key, remote) in remotes {
            let next = remote.tick(paused);
            soon |= next.soon;
            live += next.live;
            if let Some(at) = next.expiry {
                expiry = Some(expiry.map_or(at, |earlier| earlier.min(at)));
            }
            if next.live == 0 && next.remembered == 0 && next.unreachable {
                let mut table = self.table();
                // Unless a session came meanwhile.
                if !table
                    .sessions
                    .values()
                    .any(|other| Arc::ptr_eq(other, &remote))
                    && table
                        .remotes
                        .get(&key)
                        .is_some_and(|(_, r)| Arc::ptr_eq(r, &remote))
                {
                    table.remotes.remove(&key);
                }
            }
        }
        if soon {
            self.ticking.store(true, Relaxed);
            return (live, Some(ACK_DELAY));
        }
        let wait = expiry.map(|at| at.saturating_sub(self.now()).max(ACK_DELAY));
        (live, wait)
    }
}

/// Ticks while anything is open. Ends when the layer is gone, or drained and idle.
pub(super) async fn run_clock(shared: Weak<Shared>, wake: Arc<Notify>) {
    let mut due = None;
    loop {
        let wait = {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let now = shared.now();
            let paused = due.is_some_and(|due| now > due + PAUSE);
            let (live, wait) = shared.tick(paused);
            if live == 0 && shared.draining() {
                shared.table().clock_runs = false;
                return;
            }
            due = wait.map(|wait| now + wait);
            wait
        };
        let woken = match wait {
            Some(ACK_DELAY) => {
                tokio::time::sleep(ACK_DELAY).await;
                false
            }
            Some(wait) => tokio::time::timeout(wait, wake.notified()).await.is_ok(),
            None => {
                wake.notified().await;
                true
            }
        };
        if woken {
            // What is due now waits for company (protocol 5.4).
            due = None;
            tokio::time::sleep(ACK_DELAY).await;
        }
    }
}
