//! `/api/v1/handoff`: starts a handoff and follows it, as JSON or as events; looks at one, cancels one.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    answer::{self, put_event, with_error},
    client::{Client, Turn},
};
use crate::{
    handoff::{
        outbound::{Handoffs, NewHandoff},
        record::{Cursor, Ended, Event, Outcome, Record},
    },
    ids::RequestId,
    once::Once,
    proxy::{body::ReplyBody, error::Asked, list::json as json_answer},
    wire::code::{Code, Failure},
};

/// How long a cancelled handoff is waited for before its state is told.
pub(super) const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// The body of `POST /api/v1/handoff`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    target: String,
    task: String,
    #[serde(default)]
    context: Option<String>,
    #[serde(default)]
    session: Option<String>,
    /// Longest silence, in seconds.
    #[serde(default)]
    timeout: Option<f64>,
    #[serde(default)]
    detach: bool,
}

/// Cancels a handoff whose client has gone.
struct CancelOnDrop(Option<Record>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(record) = self.0.take() {
            record.cancel();
        }
    }
}

/// Starts a handoff, or follows the one that was started under the same `Idempotency-Key`.
///
/// # Errors
/// What [`Handoffs::start`] says; `idempotency_mismatch`, and `outcome_unknown` when what a repeat asks
/// for is forgotten.
pub async fn start(
    handoffs: &Handoffs,
    once: &Once<RequestId>,
    wanted: Wanted,
    client: &Client<'_>,
) -> Result<Response<ReplyBody>, Failure> {
    let begun = |id: &RequestId| {
        let ended = handoffs.find(id).and_then(|record| record.ended());
        ended.is_none_or(|ended| ended.outcome != Outcome::NotDispatched)
    };
    let ticket = match client.turn(once, begun).await? {
        Turn::Run(ticket) => ticket,
        Turn::Done(id) => {
            let record = handoffs.find(&id).ok_or_else(forgotten)?;
            // Who repeats does not own it: it ends with its first client.
            let guard = CancelOnDrop(None);
            return Ok(told_as(id, record, guard, wanted.detach, client).await);
        }
    };
    let (chain, agent) = client.chain();
    let idle = match wanted.timeout {
        None => None,
        Some(seconds) if seconds > 0.0 && seconds.is_finite() => Some(
            // More than a day is a day; no handoff lives that long.
            Duration::from_secs_f64(seconds.min(86_400.0)),
        ),
        Some(_) => {
            return Err(Failure::not_started(
                Code::InvalidRequest,
                "`timeout` is a number of seconds above 0",
            ));
        }
    };
    let (id, record) = handoffs.start(NewHandoff {
        target: wanted.target,
        task: wanted.task,
        context: wanted.context,
        session: wanted.session,
        idle,
        chain,
        agent,
    })?;
    if let Some(ticket) = ticket {
        ticket.done(id);
    }
    let guard = CancelOnDrop((!wanted.detach).then(|| record.clone()));
    Ok(told_as(id, record, guard, wanted.detach, client).await)
}

/// The refusal to a repeat whose result is not kept any more.
pub(super) fn forgotten() -> Failure {
    Failure::started(
        Code::OutcomeUnknown,
        "the request of this `Idempotency-Key` was begun before, and what came of it is no longer kept",
    )
}

/// Follows it in the way the client wants.
async fn told_as(
    id: RequestId,
    record: Record,
    guard: CancelOnDrop,
    detach: bool,
    client: &Client<'_>,
) -> Response<ReplyBody> {
    let asked = client.asked;
    let mut cursor = Cursor::default();
    // Until something has happened the status is open.
    let first = record.next(&mut cursor).await;
    if client.wants_events() && matches!(first, Event::Started(_)) {
        return follow(id, record, cursor, first, guard, asked);
    }
    if detach && matches!(first, Event::Started(_)) {
        let mut response = json_answer(state(id, &record).to_string(), asked);
        *response.status_mut() = StatusCode::ACCEPTED;
        return response;
    }
    let ended = record.finished().await;
    drop(guard);
    if client.wants_events() && ended.failure.is_none() {
        let guard = CancelOnDrop(None);
        return follow(id, record, cursor, first, guard, asked);
    }
    let told = told(id, &record, Some(&ended));
    answer::whole(told, ended.failure.as_ref(), asked)
}

/// State and result of one handoff.
///
/// # Errors
/// `not_found`.
pub fn look(handoffs: &Handoffs, id: &str, asked: Asked) -> Result<Response<ReplyBody>, Failure> {
    let (id, record) = find(handoffs, id)?;
    Ok(json_answer(state(id, &record).to_string(), asked))
}

/// Cancels one and tells its state.
///
/// # Errors
/// `not_found`.
pub async fn cancel(
    handoffs: &Handoffs,
    id: &str,
    asked: Asked,
) -> Result<Response<ReplyBody>, Failure> {
    let (id, record) = find(handoffs, id)?;
    record.cancel();
    // What is not over by then shows as running.
    let _ = tokio::time::timeout(CANCEL_WAIT, record.finished()).await;
    Ok(json_answer(state(id, &record).to_string(), asked))
}

fn find(handoffs: &Handoffs, id: &str) -> Result<(RequestId, Record), Failure> {
    id.parse()
        .ok()
        .and_then(|id| handoffs.find(&id).map(|record| (id, record)))
        .ok_or_else(|| {
            Failure::not_started(
                Code::NotFound,
                "no such handoff; results are kept for ten minutes after their end",
            )
        })
}

/// `{handoffId, outcome, success, nodeId, agent, session, result}`.
fn told(id: RequestId, record: &Record, ended: Option<&Ended>) -> Map<String, Value> {
    let place = record.place();
    let mut out = Map::new();
    out.insert("handoffId".into(), json!(id));
    out.insert("outcome".into(), json!(ended.map(|ended| ended.outcome)));
    out.insert(
        "success".into(),
        json!(ended.is_some_and(|ended| ended.outcome.success())),
    );
    out.insert("nodeId".into(), json!(place.as_ref().map(|p| &p.node)));
    out.insert("agent".into(), json!(place.as_ref().map(|p| &p.agent)));
    out.insert("session".into(), json!(place.as_ref().map(|p| &p.session)));
    out.insert("result".into(), json!(ended.map(|ended| &ended.result)));
    out
}

/// What `GET` shows.
fn state(id: RequestId, record: &Record) -> Value {
    let ended = record.ended();
    let mut out = told(id, record, ended.as_deref());
    let running = if ended.is_some() { "done" } else { "running" };
    out.insert("state".into(), json!(running));
    if ended.is_none() {
        out.insert("text".into(), json!(record.text()));
    }
    let failure = ended.as_ref().and_then(|ended| ended.failure.as_ref());
    with_error(out, failure, id)
}

struct Following {
    id: RequestId,
    record: Record,
    cursor: Cursor,
    first: Option<Event>,
    /// Gone with the client.
    guard: CancelOnDrop,
    ended: bool,
}

fn follow(
    id: RequestId,
    record: Record,
    cursor: Cursor,
    first: Event,
    guard: CancelOnDrop,
    asked: Asked,
) -> Response<ReplyBody> {
    let following = Following {
        id,
        record,
        cursor,
        first: Some(first),
        guard,
        ended: false,
    };
    let pieces = stream::unfold(following, |mut following| async move {
        Some((following.next().await?, following))
    });
    answer::events(pieces, asked)
}

impl Following {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut event = match self.first.take() {
            Some(first) => Some(first),
            None => Some(self.record.next(&mut self.cursor).await),
        };
        let mut out = Vec::new();
        while let Some(next) = event {
            self.put(&mut out, next);
            if self.ended {
                // It is over: a client that goes now cancels nothing.
                self.guard.0 = None;
                break;
            }
            event = self.record.poll(&mut self.cursor);
        }
        Some(out.into())
    }

    fn put(&mut self, out: &mut Vec<u8>, event: Event) {
        match event {
            Event::Started(place) => put_event(
                out,
                "accepted",
                &json!({
                    "handoffId": self.id,
                    "nodeId": place.node,
                    "agent": place.agent,
                    "session": place.session,
                }),
            ),
            Event::Delta(text) => put_event(out, "delta", &json!({"text": text})),
            Event::Tool(tool) => put_event(out, "tool", &json!(tool)),
            Event::Ended(ended) => {
                let told = told(self.id, &self.record, Some(&ended));
                let data = with_error(told, ended.failure.as_ref(), self.id);
                put_event(out, "end", &data);
                self.ended = true;
            }
        }
    }
}
