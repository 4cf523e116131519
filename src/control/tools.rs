//! `/api/v1/tools/…`: runs a tool on a node, as JSON or, for commands, as events while it runs.

mod requests;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use self::requests::{Done, Requests, Slot, WAITING};
use super::{
    answer::{self, put_event, with_error},
    client::{Client, Turn},
    handoff::forgotten,
};
use crate::{
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
/// What a command prints.
const OUTPUT: [&str; 2] = ["stdout", "stderr"];
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
/// it under the same `Idempotency-Key`.
///
/// # Errors
/// What [`Tools::start`] says, `invalid_request`, `idempotency_mismatch`, and `outcome_unknown` when what
/// a repeat asks for is forgotten; what fails later is in the answer.
pub async fn run(
    tools: &Tools,
    kept: &Kept,
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
            let done = requests.end_of(id).await.ok_or_else(forgotten)?;
            return Ok(if live {
                again(&done, asked)
            } else {
                answer::text(done.text.clone(), done.failure.as_ref(), asked)
            });
        }
    };
    let name = tool.clone();
    let mut following = tools.start(NewTool {
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
    let mut answer = Answer::new(face, slot, asked.id);
    // Until something has happened the status is open.
    let Some(first) = following.next().await else {
        return Err(Failure::started(Code::Internal, "the tool told nothing"));
    };
    if live && !matches!(first, Event::End(Err(_))) {
        return Ok(events(following, answer, first, asked));
    }
    let mut next = Some(first);
    while let Some(event) = next {
        if let Event::End(ended) = event {
            return Ok(answer.whole(ended, asked));
        }
        if streamed && matches!(event, Event::Waits) {
            // It may take minutes: whoever can hear of it does.
            return Ok(events(following, answer, event, asked));
        }
        answer.take(event);
        next = following.next().await;
    }
    Err(Failure::started(Code::Internal, "the tool never ended"))
}

/// State and result of one request.
///
/// # Errors
/// `not_found`.
pub fn look(kept: &Kept, id: &str, asked: Asked) -> Result<Response<ReplyBody>, Failure> {
    let shown = id.parse().ok().and_then(|id| kept.requests.shown(&id));
    let shown = shown.ok_or_else(|| {
        Failure::not_started(
            Code::NotFound,
            "no such tool request; results are kept for ten minutes after their end",
        )
    })?;
    let mut response = json_answer(shown.to_string(), asked);
    if shown["state"] == WAITING {
        *response.status_mut() = StatusCode::ACCEPTED;
    }
    Ok(response)
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
            Event::Waits => self.slot.waits(true),
            Event::GoesOn => self.slot.waits(false),
            Event::Alive | Event::End(_) => {}
        }
    }

    /// That a person is asked, or has agreed.
    fn approval(&self, state: &str) -> Value {
        let node = self.node.as_deref().unwrap_or("the node");
        let message = match state {
            "pending" => format!("waiting for approval on {node}"),
            _ => format!("approved on {node}"),
        };
        json!({"nodeId": self.node, "approval": state, "message": message})
    }

    /// The whole answer; a failure with its status.
    fn whole(mut self, ended: Result<Finished, Failure>, asked: Asked) -> Response<ReplyBody> {
        let (told, failure) = self.told(ended);
        let text = self.slot.end(told, failure.as_ref());
        answer::text(text, failure.as_ref(), asked)
    }

    /// `{id, nodeId, outcome, …}`.
    fn told(&mut self, ended: Result<Finished, Failure>) -> (Map<String, Value>, Option<Failure>) {
        let (result, mut failure) = match ended {
            Ok(Finished { result, failure }) => (Some(result), failure),
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

/// Bytes as pieces of text, a character never cut; what is no text as base64.
#[derive(Debug, Default)]
struct Decoder(Vec<u8>);

impl Decoder {
    fn feed(&mut self, data: &[u8]) -> Option<Value> {
        self.0.extend_from_slice(data);
        let whole = match std::str::from_utf8(&self.0) {
            Ok(_) => self.0.len(),
            // A character that lacks its end waits for it.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return self.rest(),
        };
        let text = String::from_utf8_lossy(&self.0[..whole]).into_owned();
        self.0.drain(..whole);
        (!text.is_empty()).then(|| json!({"text": text}))
    }

    fn rest(&mut self) -> Option<Value> {
        let left = std::mem::take(&mut self.0);
        (!left.is_empty()).then(|| json!({"base64": BASE64_STANDARD.encode(left)}))
    }
}

/// A command followed as events. Gone with its client, which cancels it.
struct Live {
    following: Following,
    first: Option<Event>,
    /// None once it has ended.
    answer: Option<Answer>,
    out: Decoder,
    err: Decoder,
}

fn events(following: Following, answer: Answer, first: Event, asked: Asked) -> Response<ReplyBody> {
    let live = Live {
        following,
        first: Some(first),
        answer: Some(answer),
        out: Decoder::default(),
        err: Decoder::default(),
    };
    let pieces = stream::unfold(
        live,
        |mut live| async move { Some((live.next().await?, live)) },
    );
    answer::events(pieces, asked)
}

impl Live {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() && self.answer.is_some() {
            let event = match self.first.take() {
                Some(first) => first,
                None => self.following.next().await?,
            };
            self.put(&mut out, event);
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn put_approval(&self, out: &mut Vec<u8>, state: &str) {
        if let Some(answer) = &self.answer {
            put_event(out, "approval", &answer.approval(state));
        }
    }

    fn put(&mut self, out: &mut Vec<u8>, event: Event) {
        match &event {
            // The head goes out, so that the client knows that it runs.
            Event::Started(_) | Event::Alive => out.extend_from_slice(b": alive\n\n"),
            Event::Waits => self.put_approval(out, "pending"),
            Event::GoesOn => self.put_approval(out, "approved"),
            Event::Output(Stream::Out, data) => put_output(out, "stdout", self.out.feed(data)),
            Event::Output(Stream::Err, data) => put_output(out, "stderr", self.err.feed(data)),
            Event::Body(_) => {}
            Event::End(_) => {
                put_output(out, "stdout", self.out.rest());
                put_output(out, "stderr", self.err.rest());
            }
        }
        if let Event::End(ended) = event {
            if let Some(mut answer) = self.answer.take() {
                let (told, failure) = answer.told(ended);
                answer.slot.end(told.clone(), failure.as_ref());
                put_end(out, with_error(told, failure.as_ref(), answer.id));
            }
        } else if let Some(answer) = &mut self.answer {
            answer.take(event);
        }
    }
}

/// The last event, without the output that was told before.
fn put_end(out: &mut Vec<u8>, mut told: Value) {
    if let Value::Object(told) = &mut told {
        for name in OUTPUT {
            told.remove(name);
            told.remove(&format!("{name}Encoding"));
        }
    }
    put_event(out, "end", &told);
}

/// A command that has ended, once more as events.
fn again(done: &Done, asked: Asked) -> Response<ReplyBody> {
    let mut out = Vec::new();
    let told: Value = serde_json::from_slice(&done.text).unwrap_or_default();
    for name in OUTPUT {
        let text = told[name].as_str().filter(|text| !text.is_empty());
        let kind = match told[format!("{name}Encoding")] {
            Value::Null => "text",
            _ => "base64",
        };
        put_output(&mut out, name, text.map(|text| json!({kind: text})));
    }
    put_end(&mut out, told);
    answer::events(stream::iter([Bytes::from(out)]), asked)
}

fn put_output(out: &mut Vec<u8>, name: &str, data: Option<Value>) {
    if let Some(mut data) = data {
        // Some readers see the data alone.
        data["stream"] = json!(name);
        put_event(out, name, &data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_text_however_it_is_cut_and_base64_otherwise() {
        let mut decoder = Decoder::default();
        let text = "añ日🙂";
        let mut seen = String::new();
        for byte in text.as_bytes() {
            if let Some(piece) = decoder.feed(&[*byte]) {
                seen.push_str(piece["text"].as_str().unwrap());
            }
        }
        assert_eq!((seen.as_str(), decoder.rest()), (text, None));
        assert_eq!(decoder.feed(b"a\xff"), Some(json!({"base64": "Yf8="})));
        assert_eq!(decoder.feed(b"ok\xe6"), Some(json!({"text": "ok"})));
        assert_eq!(decoder.rest(), Some(json!({"base64": "5g=="})));
    }

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
