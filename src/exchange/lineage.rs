//! Nested requests (protocol 7.3): an agent that works for another node may itself ask nodes. What it
//! asks carries the nodes passed so far and the time that remains, so that a circle of agents ends
//! and everything stops with the request at its root.
//!
//! The plugin's tools name the session they run in ([`SESSION_HEADER`]); whoever runs a session for
//! another node enters it here for as long as it runs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    ids::NodeId,
    wire::{
        code::{Code, Failure},
        limits::{HOPS, NESTED_MARGIN},
    },
};

/// Request header of the control API with the OpenClaw session a tool is called in.
pub const SESSION_HEADER: &str = "x-clawmatrix-session";

/// Where a request stands in a chain of requests. The default is a request at the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Nodes that asked before this one, the first one first.
    pub hops: Vec<NodeId>,
    /// When the root's time is up.
    pub deadline: Option<Instant>,
}

impl Chain {
    /// What a request of `us` within this chain carries as `hops`.
    ///
    /// # Errors
    /// `loop_detected` when the chain is as long as one may be, or has passed `us` before.
    pub fn hops_from(&self, us: &NodeId) -> Result<Vec<NodeId>, Failure> {
        if self.hops.last() == Some(us) {
            // What `us` asked of itself has taken no step.
            return Ok(self.hops.clone());
        }
        if self.hops.len() >= HOPS || self.hops.contains(us) {
            return Err(looped());
        }
        let mut hops = self.hops.clone();
        hops.push(us.clone());
        Ok(hops)
    }

    /// What remains of `wanted` for a nested request.
    ///
    /// # Errors
    /// `deadline_exceeded` when nothing remains.
    pub fn remaining(&self, wanted: Duration) -> Result<Duration, Failure> {
        let Some(deadline) = self.deadline else {
            return Ok(wanted);
        };
        let left = deadline
            .saturating_duration_since(Instant::now())
            .saturating_sub(NESTED_MARGIN);
        if left.is_zero() {
            return Err(Failure::not_started(
                Code::DeadlineExceeded,
                "the time of the request this belongs to is up",
            ));
        }
        Ok(left.min(wanted))
    }

    /// Reads the `hops` of a request that has arrived at `us`.
    ///
    /// # Errors
    /// `loop_detected` when it has passed `us` before or too many nodes; `invalid_request` when an
    /// entry is no name.
    pub fn arrived(
        hops: &[impl AsRef<str>],
        us: &NodeId,
        deadline: Option<Instant>,
    ) -> Result<Self, Failure> {
        let names: Result<Vec<NodeId>, _> = hops.iter().map(|hop| hop.as_ref().parse()).collect();
        let hops = names.map_err(|_| {
            Failure::not_started(Code::InvalidRequest, "`hops` holds what is no node name")
        })?;
        if hops.len() > HOPS || hops.contains(us) {
            return Err(looped());
        }
        Ok(Self { hops, deadline })
    }
}

/// The refusal of a request that closes a circle.
#[must_use]
pub fn looped() -> Failure {
    Failure::not_started(
        Code::LoopDetected,
        "the request has passed this node before, or too many nodes",
    )
}

/// The sessions that now run for other nodes; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lineage(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Number of the next entry: the guard of a replaced one must not remove its successor.
    next: u64,
    running: HashMap<String, (u64, Chain)>,
}

/// A session is entered until this is dropped.
#[derive(Debug)]
pub struct Entered {
    lineage: Lineage,
    session: String,
    number: u64,
}

impl Lineage {
    /// Enters `session`, which runs for another node within `chain`. A later entry of the same
    /// session replaces an earlier one.
    #[must_use]
    pub fn enter(&self, session: &str, chain: Chain) -> Entered {
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.running.insert(session.to_owned(), (number, chain));
        Entered {
            lineage: self.clone(),
            session: session.to_owned(),
            number,
        }
    }

    /// The chain of `session`; the root's when it runs for nobody else.
    #[must_use]
    pub fn of(&self, session: Option<&str>) -> Chain {
        session
            .and_then(|session| {
                let table = self.lock();
                table.running.get(session).map(|(_, chain)| chain.clone())
            })
            .unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut table = self.lineage.lock();
        let entry = table.running.get(&self.session);
        if entry.is_some_and(|(number, _)| *number == self.number) {
            table.running.remove(&self.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    /// T86: a circle is found at the node that closes it, and a straight chain ends at its length.
    #[test]
    fn circles_and_long_chains_are_refused() {
        let root = Chain::default();
        let at_b = Chain::arrived(&["a"], &node("b"), None).unwrap();
        assert_eq!(root.hops_from(&node("a")).unwrap(), [node("a")]);
        assert_eq!(at_b.hops_from(&node("b")).unwrap(), [node("a"), node("b")]);
        let own = Chain {
            hops: vec![node("a")],
            deadline: None,
        };
        assert_eq!(own.hops_from(&node("a")).unwrap(), [node("a")]);
        let back = Chain::arrived(&["a", "b"], &node("a"), None).unwrap_err();
        assert_eq!(back.code, Code::LoopDetected);
        let longest = Chain::arrived(&["a", "b", "c", "d"], &node("e"), None).unwrap();
        let further = longest.hops_from(&node("e")).unwrap_err();
        assert_eq!(further.code, Code::LoopDetected);
        let long = Chain::arrived(&["a", "b", "c", "d", "e"], &node("f"), None).unwrap_err();
        assert_eq!(long.code, Code::LoopDetected);
        let bad = Chain::arrived(&["no name"], &node("f"), None).unwrap_err();
        assert_eq!(bad.code, Code::InvalidRequest);
    }

    /// T84: each nesting takes a margin off the time of the root.
    #[tokio::test(start_paused = true)]
    async fn time_runs_out_for_the_whole_chain() {
        let chain = Chain {
            hops: vec![node("a")],
            deadline: Some(Instant::now() + Duration::from_secs(2)),
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(chain.remaining(hour).unwrap(), Duration::from_millis(1950));
        let second = Duration::from_secs(1);
        assert_eq!(chain.remaining(second).unwrap(), second);
        tokio::time::advance(Duration::from_secs(2)).await;
        let over = chain.remaining(second).unwrap_err();
        assert_eq!(over.code, Code::DeadlineExceeded);
        assert_eq!(Chain::default().remaining(hour).unwrap(), hour);
    }

    #[test]
    fn sessions_are_known_while_they_run() {
        let lineage = Lineage::default();
        let chain = |name: &str| Chain {
            hops: vec![node(name)],
            deadline: None,
        };
        let first = lineage.enter("s", chain("a"));
        assert_eq!(lineage.of(Some("s")), chain("a"));
        assert_eq!(lineage.of(Some("t")), Chain::default());
        assert_eq!(lineage.of(None), Chain::default());
        let second = lineage.enter("s", chain("b"));
        drop(first);
        assert_eq!(lineage.of(Some("s")), chain("b"));
        drop(second);
        assert_eq!(lineage.of(Some("s")), Chain::default());
    }
}
