//! Requests that wait at other nodes and are shown here, and which nodes have a say at all.
//!
//! What is here is gone as soon as its node says so, is lost, or its time is up; nothing of it is on the
//! disk. A node that is not configured puts nothing here.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{ApprovalId, Desk, Request, request::About};
use crate::{
    events::{Events, Happening},
    ids::NodeId,
    wire::{
        code::{Code, Failure},
        limits::{APPROVAL_WAIT, APPROVALS, APPROVALS_SHOWN_BYTES, APPROVALS_SHOWN_PER_NODE},
    },
};

/// Which nodes have a say, as the configuration names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Where requests that wait here are shown, and from where their decision may come.
    pub approvers: Vec<NodeId>,
    /// Whose requests are shown here.
    pub approves_for: Vec<NodeId>,
}

/// The requests of other nodes; cheap to clone.
#[derive(Clone)]
pub struct Inbox(Arc<Inner>);

struct Inner {
    nodes: watch::Sender<Nodes>,
    /// Names of our own requests, which no other's may take.
    desk: Desk,
    /// Never held across an await.
    table: Mutex<BTreeMap<ApprovalId, Entry>>,
    count: watch::Sender<usize>,
    events: Events,
    /// The node ends.
    closed: CancellationToken,
}

struct Entry {
    request: Request,
    until: Instant,
    /// What the person here said, once it was taken there.
    said: &'static str,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

/// One request of another node with the time it has left.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// Its name there and here.
    pub id: ApprovalId,
    /// What is asked; `to` is its node.
    pub request: Request,
    /// How long it may still wait.
    pub left: Duration,
}

impl Inbox {
    /// Shows requests of the nodes that `nodes` names, beside those of `desk`.
    #[must_use]
    pub fn new(nodes: Nodes, desk: Desk, events: Events) -> Self {
        Self(Arc::new(Inner {
            nodes: watch::Sender::new(nodes),
            desk,
            table: Mutex::default(),
            count: watch::Sender::new(0),
            events,
            closed: CancellationToken::new(),
        }))
    }

    /// From now on these nodes have a say.
    pub fn set(&self, nodes: Nodes) {
        self.0.nodes.send_replace(nodes);
    }

    /// Which nodes have a say, as it changes.
    #[must_use]
    pub fn nodes(&self) -> watch::Receiver<Nodes> {
        self.0.nodes.subscribe()
    }

    /// The node ends: what is shown here is shown no more, so that nobody's request keeps it.
    pub fn close(&self) {
        self.0.closed.cancel();
    }

    /// Resolves once the node ends.
    pub async fn closed(&self) {
        self.0.closed.cancelled().await;
    }

    /// How many requests of other nodes are shown, as it changes.
    #[must_use]
    pub fn count(&self) -> watch::Receiver<usize> {
        self.0.count.subscribe()
    }

    /// Shows a request of another node for `left` at most, until the guard is dropped.
    ///
    /// # Errors
    /// `overloaded`: too many, too much, or its name is taken.
    pub fn show(&self, id: ApprovalId, request: Request, left: Duration) -> Result<Kept, Failure> {
        let full = |what: &str| Err(Failure::not_started(Code::Overloaded, what));
        let mut table = self.table();
        if table.contains_key(&id) || self.0.desk.knows(id) {
            return full("a request of that name is shown already");
        }
        let theirs = table.values().filter(|e| e.request.to == request.to);
        if table.len() >= APPROVALS || theirs.count() >= APPROVALS_SHOWN_PER_NODE {
            return full("as many requests are shown as may be");
        }
        let held: usize = table.values().map(|e| bytes_of(&e.request)).sum();
        if held + bytes_of(&request) > APPROVALS_SHOWN_BYTES {
            return full("the requests that are shown hold as much as they may");
        }
        let about = About::of(&request);
        let entry = Entry {
            request,
            until: Instant::now() + left.min(APPROVAL_WAIT),
            said: "ended",
        };
        table.insert(id, entry);
        self.counted(&table);
        drop(table);
        let events = &self.0.events;
        events.tell(Happening::ApprovalAsked, || about.told(id));
        Ok(Kept {
            inbox: self.clone(),
            id,
            about,
        })
    }

    /// What is shown, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Elsewhere> {
        let table = self.table();
        let mut all: Vec<_> = table.iter().map(elsewhere).collect();
        all.sort_by_key(|one| one.request.asked);
        all
    }

    /// One of them.
    #[must_use]
    pub fn find(&self, id: ApprovalId) -> Option<Elsewhere> {
        let table = self.table();
        table.get_key_value(&id).map(elsewhere)
    }

    /// The node has taken what a person here said.
    pub fn said(&self, id: ApprovalId, what: &'static str) {
        if let Some(entry) = self.table().get_mut(&id) {
            entry.said = what;
        }
    }

    fn counted(&self, table: &BTreeMap<ApprovalId, Entry>) {
        self.0.count.send_replace(table.len());
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<ApprovalId, Entry>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn elsewhere((id, entry): (&ApprovalId, &Entry)) -> Elsewhere {
    Elsewhere {
        id: *id,
        request: entry.request.clone(),
        left: entry.until.saturating_duration_since(Instant::now()),
    }
}

/// About as much as a request holds.
fn bytes_of(request: &Request) -> usize {
    let touches: usize = request.touches.iter().map(String::len).sum();
    request.data.len() + request.args.len() + touches
}

/// A request that is shown; gone when dropped.
#[derive(Debug)]
pub struct Kept {
    inbox: Inbox,
    id: ApprovalId,
    about: About,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut table = self.inbox.table();
        let entry = table.remove(&self.id);
        self.inbox.counted(&table);
        drop(table);
        let said = entry.map_or("ended", |entry| entry.said);
        self.inbox.0.events.tell(Happening::ApprovalDecided, || {
            let mut fields = self.about.told(self.id);
            fields["decision"] = json!(said);
            fields
        });
    }
}
