//! Tool requests of the last ten minutes, by id: for `GET /api/v1/tools/{id}`, and for who repeats one
//! under its `Idempotency-Key`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    control::answer::with_error,
    ids::RequestId,
    wire::{
        code::{Code, Failure},
        limits::{TOOL_KEPT_ANSWER, TOOL_KEPT_BYTES, TOOL_MEMORY, TOOL_REQUESTS},
    },
};

/// What a long answer consists of: left out where only the outcome is kept.
const LONG: [&str; 5] = ["stdout", "stderr", "content", "entries", "result"];

/// The state of a request that waits for a person.
pub(super) const PENDING: &str = "approval_pending";

/// What whoever asked is told meanwhile.
pub(super) fn waiting(node: Option<&str>) -> String {
    format!("waiting for approval on {}", named(node))
}

pub(super) fn named(node: Option<&str>) -> &str {
    node.unwrap_or("the node")
}

/// How a request ended.
#[derive(Debug)]
pub struct Done {
    /// The whole answer as JSON, the error included.
    pub text: Bytes,
    /// What it failed with.
    pub failure: Option<Failure>,
}

/// What there is to tell of a request.
#[derive(Debug)]
pub enum Came {
    /// A person is asked; as [`Requests::shown`] has it.
    Waits(Value),
    /// It has ended.
    Done(Arc<Done>),
}

/// How far a request has come.
#[derive(Debug, Clone)]
enum Progress {
    Runs,
    /// A person is asked; how long at most, in seconds since 1970.
    Waits(u64),
    Done(Arc<Done>),
}

impl Progress {
    const fn done(&self) -> Option<&Arc<Done>> {
        match self {
            Self::Done(done) => Some(done),
            Self::Runs | Self::Waits(_) => None,
        }
    }
}

#[derive(Debug)]
struct Entry {
    tool: String,
    node: Option<String>,
    ended: Option<Instant>,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
}

impl Entry {
    fn bytes(&self) -> usize {
        let progress = self.progress.borrow();
        progress.done().map_or(0, |done| done.text.len())
    }
}

/// The requests; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<Mutex<HashMap<RequestId, Entry>>>);

impl Requests {
    /// A request for `tool` begins.
    ///
    /// # Errors
    /// `overloaded` when as many are under way as may.
    pub fn begin(&self, id: RequestId, tool: &str) -> Result<Slot, Failure> {
        let mut table = self.lock();
        table.retain(|_, entry| entry.ended.is_none_or(|at| at.elapsed() < TOOL_MEMORY));
        if table.len() >= TOOL_REQUESTS && !drop_oldest(&mut table) {
            return Err(Failure::not_started(
                Code::Overloaded,
                "as many tools are asked for as may be",
            ));
        }
        let entry = Entry {
            tool: tool.to_owned(),
            node: None,
            ended: None,
            progress: watch::Sender::new(Progress::Runs),
            cancel: CancellationToken::new(),
        };
        let cancel = entry.cancel.clone();
        table.insert(id, entry);
        Ok(Slot {
            requests: self.clone(),
            id,
            cancel,
            over: false,
        })
    }

    /// What came of a request: waits until it has ended, or, unless `patient`, until a person is asked.
    /// None when it is not known any more.
    pub async fn come_to(&self, id: RequestId, patient: bool) -> Option<Came> {
        let mut progress = self.lock().get(&id)?.progress.subscribe();
        let enough = |progress: &Progress| match progress {
            Progress::Runs => false,
            Progress::Waits(_) => !patient,
            Progress::Done(_) => true,
        };
        let came = progress.wait_for(enough).await.ok()?.clone();
        match came.done() {
            Some(done) => Some(Came::Done(done.clone())),
            None => self.shown(&id).map(Came::Waits),
        }
    }

    /// Ends a request that is under way; whether it is known.
    #[must_use]
    pub fn cancel(&self, id: &RequestId) -> bool {
        let table = self.lock();
        let entry = table.get(id);
        entry.inspect(|entry| entry.cancel.cancel()).is_some()
    }

    /// Whether a repeat of `id` must not run: it is under way, or it had begun when it ended. What is
    /// forgotten may have.
    #[must_use]
    pub fn stands(&self, id: &RequestId) -> bool {
        let table = self.lock();
        let progress = table.get(id).map(|entry| entry.progress.borrow().clone());
        let done = progress.as_ref().and_then(Progress::done);
        done.is_none_or(|done| {
            let failure = done.failure.as_ref();
            failure.is_none_or(|failure| failure.stage == crate::wire::code::Stage::Started)
        })
    }

    /// What `GET` shows.
    #[must_use]
    pub fn shown(&self, id: &RequestId) -> Option<Value> {
        let table = self.lock();
        let entry = table.get(id)?;
        let progress = entry.progress.borrow().clone();
        let told = progress
            .done()
            .and_then(|done| serde_json::from_slice(&done.text).ok());
        let mut out: Map<String, Value> = told.unwrap_or_default();
        out.insert("id".into(), json!(id));
        out.insert("tool".into(), json!(entry.tool));
        out.entry("nodeId").or_insert_with(|| json!(entry.node));
        let state = match progress {
            Progress::Done(_) => "done",
            Progress::Runs => "running",
            Progress::Waits(until) => {
                out.insert("expiresAt".into(), json!(until));
                out.insert("message".into(), json!(waiting(entry.node.as_deref())));
                PENDING
            }
        };
        out.insert("state".into(), json!(state));
        Some(Value::Object(out))
    }

    fn end(&self, id: RequestId, done: Done) {
        let mut table = self.lock();
        let Some(entry) = table.get_mut(&id) else {
            return;
        };
        entry.ended = Some(Instant::now());
        entry.progress.send_replace(Progress::Done(Arc::new(done)));
        while table.values().map(Entry::bytes).sum::<usize>() > TOOL_KEPT_BYTES
            && drop_oldest(&mut table)
        {}
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request that ended first makes room.
fn drop_oldest(table: &mut HashMap<RequestId, Entry>) -> bool {
    let ended = table
        .iter()
        .filter_map(|(id, entry)| Some((entry.ended?, *id)));
    let oldest = ended.min_by_key(|(at, _)| *at);
    oldest.is_some_and(|(_, id)| table.remove(&id).is_some())
}

/// A request under way. Dropped before its end is told, it was cancelled.
#[derive(Debug)]
pub struct Slot {
    requests: Requests,
    id: RequestId,
    cancel: CancellationToken,
    over: bool,
}

impl Slot {
    /// That node has it.
    pub fn started(&self, node: &str) {
        if let Some(entry) = self.requests.lock().get_mut(&self.id) {
            entry.node = Some(node.to_owned());
        }
    }

    /// Says when somebody wants it ended.
    pub fn cancelled(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// A person there is asked, until that second since 1970 at most.
    pub fn waits(&self, until: u64) {
        self.come_to(Progress::Waits(until));
    }

    /// That person has agreed.
    pub fn goes_on(&self) {
        self.come_to(Progress::Runs);
    }

    fn come_to(&self, progress: Progress) {
        if let Some(entry) = self.requests.lock().get(&self.id) {
            entry.progress.send_replace(progress);
        }
    }

    /// It ended so. Gives the whole answer as text; a long one is kept without what is long in it.
    pub fn end(mut self, told: Map<String, Value>, failure: Option<&Failure>) -> Bytes {
        self.put(told, failure)
    }

    fn put(&mut self, told: Map<String, Value>, failure: Option<&Failure>) -> Bytes {
        self.over = true;
        let mut whole = with_error(told, failure, self.id);
        let text = Bytes::from(whole.to_string());
        let kept = if text.len() <= TOOL_KEPT_ANSWER {
            text.clone()
        } else {
            if let Value::Object(whole) = &mut whole {
                whole.retain(|name, _| !LONG.contains(&name.as_str()));
                whole.insert("kept".into(), json!(false));
            }
            whole.to_string().into()
        };
        let done = Done {
            text: kept,
            failure: failure.cloned(),
        };
        self.requests.end(self.id, done);
        text
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let failure = Failure::started(
            Code::Cancelled,
            "the client went away, and the tool was ended; what it did until then stands",
        );
        let mut told = Map::new();
        told.insert("id".into(), json!(self.id));
        told.insert("outcome".into(), json!("cancelled"));
        self.put(told, Some(&failure));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Map<String, Value> {
        Map::from_iter([
            ("stdout".to_owned(), json!(text)),
            ("exitCode".to_owned(), json!(0)),
        ])
    }

    fn id(n: usize) -> RequestId {
        RequestId((n as u128).to_be_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_known_from_its_begin_until_ten_minutes_after_its_end() {
        let requests = Requests::default();
        let slot = requests.begin(id(1), "exec").unwrap();
        slot.started("office");
        let shown = requests.shown(&id(1)).unwrap();
        assert_eq!(
            (&shown["state"], &shown["nodeId"]),
            (&json!("running"), &json!("office"))
        );
        slot.waits(77);
        let shown = requests.shown(&id(1)).unwrap();
        assert_eq!(
            (&shown["state"], &shown["expiresAt"], &shown["message"]),
            (
                &json!(PENDING),
                &json!(77),
                &json!("waiting for approval on office")
            )
        );
        // Whoever has no patience hears of the wait, the other of the end alone.
        assert!(
            matches!(requests.come_to(id(1), false).await, Some(Came::Waits(told)) if told == shown)
        );
        slot.goes_on();
        let waits = requests.come_to(id(1), true);
        let ends = async {
            tokio::task::yield_now().await;
            slot.end(told("hi"), None)
        };
        let (done, text) = tokio::join!(waits, ends);
        assert!(matches!(done, Some(Came::Done(done)) if done.text == text));
        let shown = requests.shown(&id(1)).unwrap();
        assert_eq!(
            (&shown["state"], &shown["stdout"]),
            (&json!("done"), &json!("hi"))
        );
        tokio::time::advance(TOOL_MEMORY).await;
        drop(requests.begin(id(2), "exec").unwrap());
        assert!(requests.shown(&id(1)).is_none());
        assert!(requests.come_to(id(1), true).await.is_none() && !requests.cancel(&id(1)));
    }

    #[tokio::test]
    async fn what_had_begun_stands_and_what_had_not_does_not() {
        let requests = Requests::default();
        assert!(requests.stands(&id(0)), "forgotten");
        drop(requests.begin(id(1), "exec").unwrap());
        assert!(requests.stands(&id(1)), "cancelled");
        assert_eq!(requests.shown(&id(1)).unwrap()["outcome"], "cancelled");
        let refused = Failure::not_started(Code::PolicyDenied, "no");
        requests
            .begin(id(2), "exec")
            .unwrap()
            .end(told(""), Some(&refused));
        assert!(!requests.stands(&id(2)));
        assert_eq!(
            requests.shown(&id(2)).unwrap()["error"]["code"],
            "policy_denied"
        );
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let requests = Requests::default();
        let large = "x".repeat(TOOL_KEPT_ANSWER);
        requests
            .begin(id(0), "exec")
            .unwrap()
            .end(told(&large), None);
        let shown = requests.shown(&id(0)).unwrap();
        assert_eq!(
            (&shown["kept"], &shown["exitCode"]),
            (&json!(false), &json!(0))
        );
        assert!(shown.get("stdout").is_none());
        let half = "x".repeat(TOOL_KEPT_ANSWER / 2);
        for n in 1..TOOL_REQUESTS + 8 {
            requests
                .begin(id(n), "exec")
                .unwrap()
                .end(told(&half), None);
        }
        let bytes: usize = requests.lock().values().map(Entry::bytes).sum();
        assert!(bytes <= TOOL_KEPT_BYTES, "{bytes}");
        let held: Vec<Slot> = (0..TOOL_REQUESTS)
            .map(|n| requests.begin(id(1_000_000 + n), "exec").unwrap())
            .collect();
        let more = requests.begin(id(7), "exec").unwrap_err();
        assert_eq!(more.code, Code::Overloaded);
        drop(held);
    }
}
