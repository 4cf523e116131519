//! `/api/v1/tools/…`: runs a tool on a node, as JSON or, for commands, as events while it runs.

mod live;
mod requests;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::requests::{Came, PENDING, Requests, Slot};
use super::{
    answer,
    client::{Client, Turn},
    handoff::{CANCEL_WAIT, forgotten},
};
use crate::{
    approvals::desk::unix_ms,
    drain::Tasks,
    handoff::record::Ended,
    ids::RequestId,
    once::{Full, Once},
    policy::{EDIT, EXEC, LIST, READ, WRITE},
    proxy::{body::ReplyBody, error::Asked, list::json as json_answer},
    tools::{
        Event, Finished, Stream,
        args::invalid,
        outbound::{Following, NewTool, Tools},
    },
    wire::{
        code::{Code, Failure},
        limits::{IDEMPOTENT_KEYS, TOOL_FILE_BYTES},
    },
};

/// Longest body of a request: the longest file, escaped.
pub const BODY_BYTES: u64 = 2 * TOOL_FILE_BYTES as u64;
/// Body of a request for a tool: an object.
pub type Wanted = Map<String, Value>;

/// What this API keeps of tool requests; cheap to clone.
#[derive(Debug, Clone)]
pub struct Kept {
    /// By id.
    pub requests: Requests,
    /// By `Idempotency-Key`.
    pub once: Once<RequestId>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            requests: Requests::default(),
            once: Once::new(IDEMPOTENT_KEYS, Full::Refuse),
        }
    }
}

/// Runs `verb` (`exec`, `read`, `write`, `edit`, `list`, `invoke`) as the body says, or tells what came of
/// it under the same `Idempotency-Key`. What waits for a person is told as events, or by 202 and goes on
/// by itself.
///
/// # Errors
/// What [`Tools::start`] says, `invalid_request`, `idempotency_mismatch`, and `outcome_unknown` when what
/// a repeat asks for is forgotten; what fails later is in the answer.
pub async fn run(
    tools: &Tools,
    kept: &Kept,
    tasks: &Tasks,
    verb: &str,
    wanted: Wanted,
    client: &Client<'_>,
) -> Result<Response<ReplyBody>, Failure> {
    let (chain, agent) = client.chain();
    let asked = client.asked;
    let Prepared {
        node,
        tool,
        args,
        body,
        face,
    } = prepare(verb, wanted)?;
    let streamed = client.wants_events();
    let live = streamed && matches!(face, Face::Exec);
    let requests = &kept.requests;
    let ticket = match client.turn(&kept.once, |id| requests.stands(id)).await? {
        Turn::Run(ticket) => ticket,
        Turn::Done(id) => {
            let came = requests.come_to(id, streamed).await;
            return Ok(match came.ok_or_else(forgotten)? {
                Came::Waits(shown) => pending(&shown, asked),
                Came::Done(done) if live => live::again(&done, asked),
                Came::Done(done) => answer::text(done.text.clone(), done.failure.as_ref(), asked),
            });
        }
    };
    let name = tool.clone();
    let following = tools.start(NewTool {
        node,
        tool,
        args,
        body,
        chain,
        agent,
    })?;
    let slot = requests.begin(asked.id, &name)?;
    if let Some(ticket) = ticket {
        ticket.done(asked.id);
    }
    let mut work = Work {
        cancel: slot.cancelled(),
        following,
        asks: false,
    };
    let mut answer = Answer::new(face, slot, asked.id);
    // Until something has happened the status is open.
    let Some(first) = work.next().await else {
        return Err(Failure::started(Code::Internal, "the tool told nothing"));
    };
    if live && !matches!(first, Event::End(Err(_))) {
        return Ok(live::events(work, answer, first, asked));
    }
    let mut next = Some(first);
    while let Some(event) = next {
        if let Event::End(ended) = event {
            return Ok(answer.whole(ended, asked));
        }
        let waits = matches!(event, Event::Waits(_));
        if waits && streamed {
            // It may take minutes: whoever can hear of it does.
            return Ok(live::events(work, answer, event, asked));
        }
        answer.take(event);
        if waits {
            // Whoever cannot asks for it by its id; it goes on without him.
            let response = requests
                .shown(&asked.id)
                .map(|shown| pending(&shown, asked));
            follow(tasks, work, answer);
            return response.ok_or_else(forgotten);
        }
        next = work.next().await;
    }
    Err(Failure::started(Code::Internal, "the tool never ended"))
}

/// Follows a tool that nobody reads, to keep what comes of it. Its own times end it: that of the
/// wait, then the tool's.
fn follow(tasks: &Tasks, mut work: Work, mut answer: Answer) {
    // Ends with the tool, by `DELETE`, or with the node.
    tasks.spawn(async move {
        while let Some(event) = work.next().await {
            if let Event::End(ended) = event {
                answer.keep(ended);
                return;
            }
            answer.take(event);
        }
    });
}

/// 202: what came of it is to be asked for.
fn pending(shown: &Value, asked: Asked) -> Response<ReplyBody> {
    let mut response = json_answer(shown.to_string(), asked);
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// State and result of one request.
///
/// # Errors
/// `not_found`.
pub fn look(kept: &Kept, id: &str, asked: Asked) -> Result<Response<ReplyBody>, Failure> {
    let id = id.parse().map_err(|_| unknown())?;
    let shown = kept.requests.shown(&id).ok_or_else(unknown)?;
    if shown["state"] == PENDING {
        return Ok(pending(&shown, asked));
    }
    Ok(json_answer(shown.to_string(), asked))
}

/// Cancels one request, and tells its state: nothing changes for one that has ended.
///
/// # Errors
/// `not_found`.
pub async fn cancel(kept: &Kept, id: &str, asked: Asked) -> Result<Response<ReplyBody>, Failure> {
    let parsed = id.parse().map_err(|_| unknown())?;
    if !kept.requests.cancel(&parsed) {
        return Err(unknown());
    }
    // What is not over by then shows as running.
    let _ = timeout(CANCEL_WAIT, kept.requests.come_to(parsed, true)).await;
    look(kept, id, asked)
}

fn unknown() -> Failure {
    Failure::not_started(
        Code::NotFound,
        "no such tool request; results are kept for ten minutes after their end",
    )
}

/// A tool at work. Dropped, it is cancelled.
#[derive(Debug)]
struct Work {
    following: Following,
    cancel: CancellationToken,
    /// A person is asked, so nothing was done yet.
    asks: bool,
}

impl Work {
    /// As [`Following::next`]; whoever cancels it by its id ends it, too.
    async fn next(&mut self) -> Option<Event> {
        let event = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Event::End(Err(self.cancelled())),
            event = self.following.next() => event?,
        };
        self.asks = match &event {
            Event::Waits(_) => true,
            Event::Alive => self.asks,
            _ => false,
        };
        Some(event)
    }

    fn cancelled(&self) -> Failure {
        if self.asks {
            return Failure::not_started(
                Code::Cancelled,
                "the request was cancelled before a person decided; nothing of it was done",
            );
        }
        Failure::started(
            Code::Cancelled,
            "the request was cancelled, and the tool was ended; what it did until then stands",
        )
    }
}

/// A request, taken apart.
struct Prepared {
    node: String,
    tool: String,
    args: Value,
    body: Bytes,
    face: Face,
}

/// How an answer looks.
#[derive(Debug)]
enum Face {
    Exec,
    /// Path, and whether only text is wanted.
    Read(String, bool),
    /// Path.
    File(String),
    /// Name of the tool.
    Other(String),
}

fn prepare(verb: &str, mut wanted: Wanted) -> Result<Prepared, Failure> {
    let node = text(&mut wanted, "node")?;
    if verb != "invoke" {
        return prepare_native(node, verb, wanted);
    }
    let tool = text(&mut wanted, "tool")?;
    let args = wanted.remove("args").unwrap_or_else(|| json!({}));
    if let Some(unknown) = wanted.keys().next() {
        return Err(unknown_key(unknown));
    }
    if matches!(&*tool, EXEC | READ | WRITE | EDIT | LIST) {
        let Value::Object(args) = args else {
            return Err(invalid("`args` is no object"));
        };
        return prepare_native(node, &tool, args);
    }
    Ok(Prepared {
        node,
        face: Face::Other(tool.clone()),
        tool,
        args,
        body: Bytes::new(),
    })
}

fn prepare_native(node: String, tool: &str, mut args: Wanted) -> Result<Prepared, Failure> {
    let mut body = Bytes::new();
    let path = args
        .get("path")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let face = match tool {
        READ => match args.remove("encoding").as_ref().map(Value::as_str) {
            None => Face::Read(path, false),
            Some(Some("utf-8" | "utf8")) => Face::Read(path, true),
            Some(_) => return Err(invalid("`encoding` of a read is `utf-8` or left out")),
        },
        WRITE => {
            let content = text(&mut args, "content")?;
            body = match args.remove("encoding").as_ref().map(Value::as_str) {
                None | Some(Some("utf-8" | "utf8")) => content.into(),
                Some(Some("base64")) => BASE64_STANDARD
                    .decode(content)
                    .map_err(|_| invalid("`content` is not base64"))?
                    .into(),
                Some(_) => return Err(invalid("`encoding` is `utf-8` or `base64`")),
            };
            Face::File(path)
        }
        EDIT => {
            let old = text(&mut args, "oldText")?;
            let new = text(&mut args, "newText")?;
            args.insert("oldBytes".into(), json!(old.len()));
            body = [old, new].concat().into();
            Face::File(path)
        }
        LIST => Face::File(path),
        _ => Face::Exec,
    };
    Ok(Prepared {
        node,
        tool: tool.to_owned(),
        args: Value::Object(args),
        body,
        face,
    })
}

fn text(wanted: &mut Wanted, key: &str) -> Result<String, Failure> {
    match wanted.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(invalid(&format!("`{key}` is no text"))),
        None => Err(invalid(&format!("`{key}` is missing"))),
    }
}

fn unknown_key(key: &str) -> Failure {
    let key: String = key.chars().take(64).flat_map(char::escape_debug).collect();
    invalid(&format!(
        "unknown field `{key}`; there are `node`, `tool`, `args`"
    ))
}

/// What has come so far.
struct Answer {
    face: Face,
    /// Where it is kept; dropped with a client that goes away.
    slot: Slot,
    id: RequestId,
    node: Option<String>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    body: Vec<u8>,
}

impl Answer {
    const fn new(face: Face, slot: Slot, id: RequestId) -> Self {
        Self {
            face,
            slot,
            id,
            node: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            body: Vec::new(),
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Started(node) => {
                self.slot.started(node.as_str());
                self.node = Some(node.to_string());
            }
            Event::Output(Stream::Out, data) => self.stdout.extend_from_slice(&data),
            Event::Output(Stream::Err, data) => self.stderr.extend_from_slice(&data),
            Event::Body(data) => self.body.extend_from_slice(&data),
            Event::Waits(left) => {
                let left = u64::try_from(left.as_millis()).unwrap_or(0);
                self.slot.waits(unix_ms().saturating_add(left) / 1000);
            }
            Event::GoesOn => self.slot.goes_on(),
            Event::Alive | Event::End(_) => {}
        }
    }

    /// That a person is asked, or has agreed.
    fn approval(&self, state: &str) -> Value {
        let message = match state {
            "pending" => requests::waiting(self.node.as_deref()),
            _ => format!("approved on {}", requests::named(self.node.as_deref())),
        };
        json!({"nodeId": self.node, "approval": state, "message": message})
    }

    /// The whole answer; a failure with its status.
    fn whole(mut self, ended: Result<Finished, Failure>, asked: Asked) -> Response<ReplyBody> {
        let (told, failure) = self.told(ended);
        let text = self.slot.end(told, failure.as_ref());
        answer::text(text, failure.as_ref(), asked)
    }

    /// The same for whoever asks later.
    fn keep(mut self, ended: Result<Finished, Failure>) {
        let (told, failure) = self.told(ended);
        self.slot.end(told, failure.as_ref());
    }

    /// `{id, nodeId, outcome, …}`.
    fn told(&mut self, ended: Result<Finished, Failure>) -> (Map<String, Value>, Option<Failure>) {
        let (result, mut failure) = match ended {
            Ok(Finished {
                result, failure, ..
            }) => (Some(result), failure),
            Err(failure) => (None, Some(failure)),
        };
        let mut out = Map::new();
        out.insert("id".into(), json!(self.id));
        out.insert("nodeId".into(), json!(self.node));
        out.insert("outcome".into(), Value::Null);
        match &self.face {
            Face::Exec => {
                merge(&mut out, result);
                put_text(&mut out, "stdout", &self.stdout);
                put_text(&mut out, "stderr", &self.stderr);
            }
            Face::Read(path, only_text) => {
                out.insert("path".into(), json!(path));
                if let Some(result) = result {
                    let text = std::str::from_utf8(&self.body).ok();
                    match text {
                        None if *only_text => failure = Some(no_text(path)),
                        _ => put_content(&mut out, text, &self.body),
                    }
                    merge(&mut out, Some(result));
                }
            }
            Face::File(path) => {
                out.insert("path".into(), json!(path));
                merge(&mut out, serde_json::from_slice(&self.body).ok());
                merge(&mut out, result);
            }
            Face::Other(tool) => {
                out.insert("tool".into(), json!(tool));
                let answer: Option<Value> = serde_json::from_slice(&self.body).ok();
                if result.is_some() {
                    out.insert("result".into(), answer.unwrap_or(Value::Null));
                }
            }
        }
        let outcome = match &failure {
            None => "completed",
            Some(failure) => Ended::failed(failure.clone()).outcome.as_str(),
        };
        out.insert("outcome".into(), json!(outcome));
        (out, failure)
    }
}

fn no_text(path: &str) -> Failure {
    let path: String = path
        .chars()
        .take(256)
        .flat_map(char::escape_debug)
        .collect();
    invalid(&format!(
        "`{path}` is no UTF-8 text; read it without `encoding` to get it as base64"
    ))
}

fn merge(out: &mut Map<String, Value>, more: Option<Value>) {
    if let Some(Value::Object(more)) = more {
        out.extend(more);
    }
}

fn put_text(out: &mut Map<String, Value>, name: &str, data: &[u8]) {
    match std::str::from_utf8(data) {
        Ok(text) => out.insert(name.into(), json!(text)),
        Err(_) => {
            out.insert(format!("{name}Encoding"), json!("base64"));
            out.insert(name.into(), json!(BASE64_STANDARD.encode(data)))
        }
    };
}

fn put_content(out: &mut Map<String, Value>, text: Option<&str>, data: &[u8]) {
    match text {
        Some(text) => {
            out.insert("content".into(), json!(text));
            out.insert("encoding".into(), json!("utf-8"));
        }
        None => {
            out.insert("content".into(), json!(BASE64_STANDARD.encode(data)));
            out.insert("encoding".into(), json!("base64"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_checked_before_anybody_is_asked() {
        let refused = |verb: &str, body: Value| {
            let Value::Object(body) = body else {
                unreachable!()
            };
            prepare(verb, body).err().map(|failure| failure.message)
        };
        for (verb, body, said) in [
            ("exec", json!({"command": "id"}), "`node` is missing"),
            ("exec", json!({"node": 1}), "`node` is no text"),
            (
                "write",
                json!({"node": "a", "path": "b"}),
                "`content` is missing",
            ),
            (
                "write",
                json!({"node": "a", "path": "b", "content": "!", "encoding": "base64"}),
                "not base64",
            ),
            (
                "edit",
                json!({"node": "a", "path": "b", "oldText": "c"}),
                "`newText` is missing",
            ),
            ("invoke", json!({"node": "a"}), "`tool` is missing"),
            (
                "invoke",
                json!({"node": "a", "tool": "b", "arg": 1}),
                "unknown field `arg`",
            ),
            (
                "invoke",
                json!({"node": "a", "tool": "exec", "args": 1}),
                "is no object",
            ),
        ] {
            let message = refused(verb, body).unwrap_or_default();
            assert!(message.contains(said), "{verb}: {message}");
        }
    }
}
