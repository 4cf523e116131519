//! What happens on this node, for whoever watches it: the dashboard, `GET /api/v1/events`, scripts.
//!
//! Told by the parts it happens in, never waited for: a ring of [`EVENTS_KEPT`] events is shared by all
//! who watch, and who reads too slowly is told how many he missed. Nothing is built while nobody
//! watches. Names of nodes, agents, models and tools are told, never what was asked or answered.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::wire::{
    code::{Code, Failure},
    limits::{EVENT_WATCHERS, EVENTS_KEPT},
};

/// What may happen (contract 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// A node can be reached that could not before.
    NodeJoined,
    /// A node cannot be reached any more.
    NodeLeft,
    /// A link of our own came up.
    LinkUp,
    /// A link of our own went down.
    LinkDown,
    /// A node is reached another way.
    RouteChanged,
    /// Work for another node, or by another node for us, has begun.
    RequestStarted,
    /// It has ended, or for a model its answer has begun.
    RequestEnded,
    /// Something was allowed or refused, and by which rule.
    Verdict,
    /// A request waits for a person.
    ApprovalAsked,
    /// It waits no more.
    ApprovalDecided,
    /// The watcher was too slow and missed some.
    Gap,
}

impl Happening {
    /// Its name, as the event's and in its data.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeJoined => "node_joined",
            Self::NodeLeft => "node_left",
            Self::LinkUp => "link_up",
            Self::LinkDown => "link_down",
            Self::RouteChanged => "route_changed",
            Self::RequestStarted => "request_started",
            Self::RequestEnded => "request_ended",
            Self::Verdict => "verdict",
            Self::ApprovalAsked => "approval_asked",
            Self::ApprovalDecided => "approval_decided",
            Self::Gap => "gap",
        }
    }
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Counts what was told since the start; none for a gap.
    pub seq: Option<u64>,
    /// What happened.
    pub what: Happening,
    /// `{"type","seq","timeMs",…}`.
    pub data: Value,
}

/// Where events are told; cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    /// [`EVENTS_KEPT`] deep; the oldest makes room, and who had not read it hears of a gap.
    ring: broadcast::Sender<Arc<Event>>,
    told: AtomicU64,
    /// The node ends, and with it every stream of events.
    closed: CancellationToken,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Inner {
            ring: broadcast::Sender::new(EVENTS_KEPT),
            told: AtomicU64::new(0),
            closed: CancellationToken::new(),
        }))
    }
}

impl Events {
    /// Whether anybody watches.
    #[must_use]
    pub fn watched(&self) -> bool {
        self.0.ring.receiver_count() > 0
    }

    /// Tells of it; `fields`, an object, is only built for somebody who watches.
    pub fn tell(&self, what: Happening, fields: impl FnOnce() -> Value) {
        if !self.watched() {
            return;
        }
        let seq = self.0.told.fetch_add(1, Relaxed) + 1;
        let event = Event {
            seq: Some(seq),
            what,
            data: data(what, Some(seq), fields()),
        };
        // Fails when the last watcher has just gone.
        let _ = self.0.ring.send(Arc::new(event));
    }

    /// Watches from now on.
    ///
    /// # Errors
    /// `overloaded` when as many watch as may.
    pub fn watch(&self) -> Result<Watcher, Failure> {
        if self.0.ring.receiver_count() >= EVENT_WATCHERS {
            return Err(Failure::not_started(
                Code::Overloaded,
                format!("{EVENT_WATCHERS} clients watch the events already"),
            ));
        }
        Ok(Watcher {
            ring: self.0.ring.subscribe(),
            closed: self.0.closed.clone(),
        })
    }

    /// Ends every stream of events: the node stops.
    pub fn close(&self) {
        self.0.closed.cancel();
    }
}

/// Who watches. Dropped, it watches no more.
#[derive(Debug)]
pub struct Watcher {
    ring: broadcast::Receiver<Arc<Event>>,
    closed: CancellationToken,
}

impl Watcher {
    /// The next event; none when the node stops. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        let next = tokio::select! {
            biased;
            () = self.closed.cancelled() => return None,
            next = self.ring.recv() => next,
        };
        match next {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(missed)) => Some(Arc::new(Event {
                seq: None,
                what: Happening::Gap,
                data: data(Happening::Gap, None, json!({"missed": missed})),
            })),
            Err(RecvError::Closed) => None,
        }
    }
}

fn data(what: Happening, seq: Option<u64>, fields: Value) -> Value {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let time = since.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(0));
    let mut out = Map::new();
    out.insert("type".into(), json!(what.as_str()));
    if let Some(seq) = seq {
        out.insert("seq".into(), json!(seq));
    }
    out.insert("timeMs".into(), json!(time));
    if let Value::Object(fields) = fields {
        out.extend(fields);
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_watcher_is_told_what_it_missed() {
        let events = Events::default();
        events.tell(Happening::LinkUp, || unreachable!("nobody watches"));
        let mut slow = events.watch().unwrap();
        for n in 0..EVENTS_KEPT as u64 + 5 {
            events.tell(Happening::Verdict, || json!({"n": n}));
        }
        let gap = slow.next().await.unwrap();
        assert_eq!(gap.what, Happening::Gap);
        assert_eq!(gap.data["missed"], 5);
        let next = slow.next().await.unwrap();
        assert_eq!((next.seq, &next.data["n"]), (Some(6), &json!(5)));
        let rest = async {
            let mut last = None;
            for _ in 1..EVENTS_KEPT {
                last = slow.next().await;
            }
            last.and_then(|event| event.seq)
        };
        assert_eq!(rest.await, Some(EVENTS_KEPT as u64 + 5));
        events.close();
        assert!(slow.next().await.is_none());
    }

    #[tokio::test]
    async fn watchers_are_few_and_make_room() {
        let events = Events::default();
        let mut watchers: Vec<Watcher> = (0..EVENT_WATCHERS)
            .map(|_| events.watch().unwrap())
            .collect();
        assert_eq!(events.watch().unwrap_err().code, Code::Overloaded);
        watchers.pop();
        assert!(events.watch().is_ok());
    }
}
