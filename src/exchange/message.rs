//! The inner JSON of exchanges (protocol 5.3): written by hand, read into borrowed structs.
//!
//! Decoding is total and strict (protocol 5.2). Unknown fields are ignored, so that later versions
//! may add some.

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use super::{End, Kind};
use crate::{
    ids::RequestId,
    wire::{
        code::{Code, Failure, Stage},
        json::{self, JsonError, put_number, put_string},
        limits::FAILURE_MESSAGE_BYTES,
    },
};

/// Which half-stream of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Dir {
    /// From the node that asks.
    Up,
    /// From the node asked.
    Down,
}

impl Dir {
    const fn as_str(self) -> &'static str {
        match self {
            Dir::Up => "up",
            Dir::Down => "down",
        }
    }
}

/// What leads the data of a down item.
#[derive(Debug, Clone)]
pub(super) enum Lead {
    Accept,
    Head { status: u16, meta: Box<RawValue> },
}

/// What ends a down half-stream.
#[derive(Debug, Clone)]
pub(super) enum Last {
    End(End),
    Failed(Failure),
}

/// One item of an answer, without its data.
#[derive(Debug)]
pub(super) struct DownItem {
    pub(super) rid: RequestId,
    /// None in a refusal by a node that keeps nothing of the request.
    pub(super) seq: Option<u64>,
    pub(super) lead: Option<Lead>,
    pub(super) last: Option<Last>,
}

/// What the exchange itself reads of a request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) rid: RequestId,
    pub(super) kind: Kind,
    /// Milliseconds since the session began (protocol 7.1).
    pub(super) at: Option<u64>,
    /// Milliseconds the request may take.
    pub(super) dl: Option<u64>,
    /// Length of the whole body.
    pub(super) blen: u64,
    /// Whether the answer is streamed: its deadline ends to apply at the first byte.
    pub(super) stream: bool,
}

/// One entry of an `ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Ack(
    #[serde(deserialize_with = "rid")] pub(super) RequestId,
    pub(super) Dir,
    pub(super) u64,
    pub(super) u64,
);

/// How far a request has come, as `state` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Never seen; it will be refused from now on, so it never ran and never will.
    Unknown,
    /// Taken, not yet begun.
    Accepted,
    /// A person is asked.
    ApprovalPending,
    /// Under way.
    Running,
    /// Ended.
    Done,
}

impl Phase {
    const fn as_str(self) -> &'static str {
        match self {
            Phase::Unknown => "unknown",
            Phase::Accepted => "accepted",
            Phase::ApprovalPending => "approval_pending",
            Phase::Running => "running",
            Phase::Done => "done",
        }
    }
}

/// One inner message.
#[derive(Debug)]
pub(super) enum Message {
    Request(Request),
    UpChunk {
        rid: RequestId,
        seq: u64,
    },
    Down(DownItem),
    Ack(Vec<Ack>),
    Cancel {
        rid: RequestId,
    },
    Query {
        rid: RequestId,
    },
    State {
        rid: RequestId,
        phase: Phase,
    },
    Noop,
    /// A type of a later version, and the request it names, if any.
    Unknown {
        rid: Option<RequestId>,
    },
    /// A failure that names no request.
    Complaint(Failure),
}

impl Kind {
    /// The inner `type` of a request of this kind.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Model => "model_req",
            Kind::Handoff => "handoff_req",
            Kind::Tool => "tool_req",
            Kind::Send => "send",
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        [Kind::Model, Kind::Handoff, Kind::Tool, Kind::Send]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }

    /// Whether protocol 7.1 binds it: such a request carries `at`, runs in one session only and is
    /// remembered for ten minutes.
    #[must_use]
    pub const fn once(self) -> bool {
        matches!(self, Kind::Handoff | Kind::Tool)
    }
}

// -- reading -------------------------------------------------------------------------------------

/// Reads a rid without allocating.
fn rid<'de, D: de::Deserializer<'de>>(d: D) -> Result<RequestId, D::Error> {
    struct Hex;
    impl de::Visitor<'_> for Hex {
        type Value = RequestId;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("32 hexadecimal digits")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<RequestId, E> {
            text.parse().map_err(E::custom)
        }
    }
    d.deserialize_str(Hex)
}

fn rid_option<'de, D: de::Deserializer<'de>>(d: D) -> Result<Option<RequestId>, D::Error> {
    rid(d).map(Some)
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(default, deserialize_with = "rid_option")]
    rid: Option<RequestId>,
}

#[derive(Deserialize)]
struct RequestFields {
    #[serde(deserialize_with = "rid")]
    rid: RequestId,
    at: Option<u64>,
    dl: Option<u64>,
    #[serde(default)]
    blen: u64,
    #[serde(default)]
    stream: bool,
}

/// The fields of `accept`, `head`, `chunk`, `end`, `error` and `cancel`.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(default, deserialize_with = "rid_option")]
    rid: Option<RequestId>,
    seq: Option<u64>,
    dir: Option<Dir>,
    status: Option<u16>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
    #[serde(default)]
    fin: bool,
    #[serde(default)]
    ok: bool,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    #[serde(default)]
    retryable: bool,
    stage: Option<Stage>,
    retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct AckFields {
    a: Vec<Ack>,
}

#[derive(Deserialize)]
struct QueryFields {
    #[serde(deserialize_with = "rid")]
    rid: RequestId,
    phase: Option<Phase>,
}

impl Fields<'_> {
    fn rid(&self) -> Result<RequestId, JsonError> {
        self.rid.ok_or(JsonError::Shape)
    }

    fn end(&self) -> Last {
        Last::End(End {
            ok: self.ok,
            usage: self.usage.map(ToOwned::to_owned),
            result: self.result.map(ToOwned::to_owned),
        })
    }

    fn failure(&self) -> Failure {
        // A code of a later version is none of ours; its text still tells a person.
        let text = self.code.as_deref().unwrap_or_default();
        let code = Code::from_text(text);
        let said = self.message.as_deref().unwrap_or_default();
        let message = match code {
            Some(_) => clip(said).to_owned(),
            None => format!("{}: {}", clip(text), clip(said)),
        };
        Failure {
            code: code.unwrap_or(Code::UpstreamError),
            message,
            retryable: self.retryable,
            stage: self.stage.unwrap_or(Stage::Started),
            retry_after: self.retry_after_ms.map(Duration::from_millis),
        }
    }

    fn down(&self, lead: Option<Lead>, last: Option<Last>) -> Result<Message, JsonError> {
        Ok(Message::Down(DownItem {
            rid: self.rid()?,
            seq: Some(self.seq.ok_or(JsonError::Shape)?),
            lead,
            last,
        }))
    }
}

/// The `type` of a message as our own kind writes it: the first key, without escapes. Saves
/// reading the whole object twice.
fn first_type(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("{\"type\":\"")?;
    let end = rest.find('"')?;
    let name = &rest[..end];
    (!name.contains('\\')).then_some(name)
}

/// Reads one inner JSON.
pub(super) fn decode(bytes: &[u8]) -> Result<Message, JsonError> {
    let text = json::check(bytes)?;
    let tag = match first_type(text) {
        Some(name) => Cow::Borrowed(name),
        None => read::<Tag<'_>>(text)?.r#type,
    };
    if let Some(kind) = Kind::from_text(&tag) {
        let fields: RequestFields = read(text)?;
        return Ok(Message::Request(Request {
            rid: fields.rid,
            kind,
            at: fields.at,
            dl: fields.dl,
            blen: fields.blen,
            stream: fields.stream,
        }));
    }
    match tag.as_ref() {
        "chunk" => {
            let fields: Fields<'_> = read(text)?;
            match fields.dir {
                Some(Dir::Up) => Ok(Message::UpChunk {
                    rid: fields.rid()?,
                    seq: fields.seq.ok_or(JsonError::Shape)?,
                }),
                Some(Dir::Down) => fields.down(None, fields.fin.then(|| fields.end())),
                None => Err(JsonError::Shape),
            }
        }
        "accept" => {
            let fields: Fields<'_> = read(text)?;
            fields.down(Some(Lead::Accept), None)
        }
        "head" => {
            let fields: Fields<'_> = read(text)?;
            let lead = Lead::Head {
                status: fields.status.ok_or(JsonError::Shape)?,
                meta: fields.meta.ok_or(JsonError::Shape)?.to_owned(),
            };
            fields.down(Some(lead), fields.fin.then(|| fields.end()))
        }
        "end" => {
            let fields: Fields<'_> = read(text)?;
            fields.down(None, Some(fields.end()))
        }
        "error" => {
            let fields: Fields<'_> = read(text)?;
            let failure = fields.failure();
            Ok(match fields.rid {
                Some(rid) => Message::Down(DownItem {
                    rid,
                    seq: fields.seq,
                    lead: None,
                    last: Some(Last::Failed(failure)),
                }),
                None => Message::Complaint(failure),
            })
        }
        "ack" => Ok(Message::Ack(read::<AckFields>(text)?.a)),
        "cancel" => Ok(Message::Cancel {
            rid: read::<Fields<'_>>(text)?.rid()?,
        }),
        "noop" => Ok(Message::Noop),
        "query" => Ok(Message::Query {
            rid: read::<QueryFields>(text)?.rid,
        }),
        "state" => {
            let fields: QueryFields = read(text)?;
            Ok(Message::State {
                rid: fields.rid,
                phase: fields.phase.ok_or(JsonError::Shape)?,
            })
        }
        _ => Ok(Message::Unknown {
            rid: read::<Tag<'_>>(text)?.rid,
        }),
    }
}

/// Reads what [`json::check`] has already passed.
fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, JsonError> {
    serde_json::from_str(text).map_err(|_| JsonError::Shape)
}

/// The beginning of a text, whole characters only.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(FAILURE_MESSAGE_BYTES)]
}

// -- writing -------------------------------------------------------------------------------------

/// A JSON object under construction: `{"type":..,"rid":..`, left open.
struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: &str, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(b"{\"type\":\"");
        bytes.extend_from_slice(kind.as_bytes());
        bytes.push(b'"');
        Self(bytes)
    }

    fn rid(mut self, rid: RequestId) -> Self {
        self.0.extend_from_slice(b",\"rid\":\"");
        put_rid(&mut self.0, rid);
        self.0.push(b'"');
        self
    }

    fn raw(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        self.0.extend_from_slice(value.as_bytes());
        self
    }

    fn number(mut self, key: &str, value: u64) -> Self {
        self.key(key);
        put_number(&mut self.0, value);
        self
    }

    fn text(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        put_string(&mut self.0, value);
        self
    }

    fn key(&mut self, key: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn end(mut self, end: &End) -> Self {
        self = self.raw("ok", if end.ok { "true" } else { "false" });
        if let Some(usage) = &end.usage {
            self = self.raw("usage", usage.get());
        }
        if let Some(result) = &end.result {
            self = self.raw("result", result.get());
        }
        self
    }

    fn fin(self, fin: Option<&End>) -> Self {
        match fin {
            Some(end) => self.raw("fin", "true").end(end),
            None => self,
        }
    }

    fn done(mut self) -> Bytes {
        self.0.push(b'}');
        self.0.into()
    }
}

fn put_rid(buffer: &mut Vec<u8>, rid: RequestId) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in rid.0 {
        buffer.push(DIGITS[usize::from(byte >> 4)]);
        buffer.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// Room for the fixed fields of any message.
const SMALL: usize = 128;

pub(super) fn request(
    kind: Kind,
    rid: RequestId,
    at: Option<u64>,
    dl: u64,
    blen: u64,
    fields: &str,
) -> Bytes {
    let mut writer = Writer::new(kind.as_str(), SMALL + fields.len()).rid(rid);
    if let Some(at) = at {
        writer = writer.number("at", at);
    }
    writer = writer.number("dl", dl).number("blen", blen);
    if !fields.is_empty() {
        writer.0.push(b',');
        writer.0.extend_from_slice(fields.as_bytes());
    }
    writer.done()
}

pub(super) fn accept(rid: RequestId, seq: u64) -> Bytes {
    Writer::new("accept", SMALL)
        .rid(rid)
        .number("seq", seq)
        .done()
}

pub(super) fn head(rid: RequestId, seq: u64, status: u16, meta: &str, fin: Option<&End>) -> Bytes {
    Writer::new("head", SMALL + meta.len())
        .rid(rid)
        .number("seq", seq)
        .number("status", status.into())
        .raw("meta", meta)
        .fin(fin)
        .done()
}

pub(super) fn chunk(rid: RequestId, dir: Dir, seq: u64, fin: Option<&End>) -> Bytes {
    let mut writer = Writer::new("chunk", SMALL).rid(rid);
    writer.key("dir");
    writer.0.push(b'"');
    writer.0.extend_from_slice(dir.as_str().as_bytes());
    writer.0.push(b'"');
    writer.number("seq", seq).fin(fin).done()
}

pub(super) fn end(rid: RequestId, seq: u64, end: &End) -> Bytes {
    Writer::new("end", SMALL)
        .rid(rid)
        .number("seq", seq)
        .end(end)
        .done()
}

pub(super) fn error(rid: RequestId, seq: Option<u64>, failure: &Failure) -> Bytes {
    let message = clip(&failure.message);
    let mut writer = Writer::new("error", 2 * SMALL + message.len()).rid(rid);
    if let Some(seq) = seq {
        writer = writer.number("seq", seq);
    }
    let stage = match failure.stage {
        Stage::NotStarted => "not_started",
        Stage::Started => "started",
    };
    writer = writer
        .text("code", failure.code.as_str())
        .text("message", message)
        .raw(
            "retryable",
            if failure.retryable { "true" } else { "false" },
        )
        .text("stage", stage);
    if let Some(after) = failure.retry_after {
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX >> 11);
        writer = writer.number("retry_after_ms", millis.min(u64::MAX >> 11));
    }
    writer.done()
}

pub(super) fn ack(entries: &[Ack]) -> Bytes {
    let mut bytes = Vec::with_capacity(24 + entries.len() * 72);
    bytes.extend_from_slice(b"{\"type\":\"ack\",\"a\":[");
    for (i, Ack(rid, dir, next, max)) in entries.iter().enumerate() {
        bytes.extend_from_slice(if i == 0 { b"[\"" } else { b",[\"" });
        put_rid(&mut bytes, *rid);
        bytes.extend_from_slice(b"\",\"");
        bytes.extend_from_slice(dir.as_str().as_bytes());
        bytes.extend_from_slice(b"\",");
        put_number(&mut bytes, *next);
        bytes.push(b',');
        put_number(&mut bytes, *max);
        bytes.push(b']');
    }
    bytes.extend_from_slice(b"]}");
    bytes.into()
}

pub(super) fn cancel(rid: RequestId, reason: Code) -> Bytes {
    Writer::new("cancel", SMALL)
        .rid(rid)
        .text("reason", reason.as_str())
        .done()
}

pub(super) fn query(rid: RequestId) -> Bytes {
    Writer::new("query", SMALL).rid(rid).done()
}

pub(super) fn state(rid: RequestId, phase: Phase, next: u64) -> Bytes {
    Writer::new("state", SMALL)
        .rid(rid)
        .text("phase", phase.as_str())
        .number("next", next)
        .done()
}

pub(super) fn noop() -> Bytes {
    Bytes::from_static(b"{\"type\":\"noop\"}")
}
