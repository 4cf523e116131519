//! Writing by hand: headers are a good part of what a record costs.

use bytes::Bytes;

use super::{Ack, Dir, Phase, clip};
use crate::{
    exchange::{End, Kind},
    ids::RequestId,
    wire::{
        code::{Code, Failure, Stage},
        json::{put_number, put_string},
    },
};

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
        checked(self.0)
    }
}

/// In builds for development every message is held against its schema (T46). Requests that tests of
/// the exchange alone make up have no fields of a handler, which is told by the missing `actor`.
fn checked(json: Vec<u8>) -> Bytes {
    #[cfg(debug_assertions)]
    {
        let has = |text: &str| json.windows(text.len()).any(|part| part == text.as_bytes());
        if !has("\"dl\":") || has("\"actor\":") {
            crate::wire::shapes::assert_written("inner", "type", &json);
        }
    }
    json.into()
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

pub(in crate::exchange) fn request(
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

pub(in crate::exchange) fn accept(
    rid: RequestId,
    seq: u64,
    phase: Option<Phase>,
    left_ms: Option<u64>,
) -> Bytes {
    let mut writer = Writer::new("accept", SMALL).rid(rid).number("seq", seq);
    if let Some(phase) = phase {
        writer = writer.text("phase", phase.as_str());
    }
    if let Some(left) = left_ms {
        writer = writer.number("left", left);
    }
    writer.done()
}

pub(in crate::exchange) fn head(
    rid: RequestId,
    seq: u64,
    status: u16,
    meta: &str,
    fin: Option<&End>,
) -> Bytes {
    Writer::new("head", SMALL + meta.len())
        .rid(rid)
        .number("seq", seq)
        .number("status", status.into())
        .raw("meta", meta)
        .fin(fin)
        .done()
}

pub(in crate::exchange) fn chunk(rid: RequestId, dir: Dir, seq: u64, fin: Option<&End>) -> Bytes {
    let mut writer = Writer::new("chunk", SMALL).rid(rid);
    writer.key("dir");
    writer.0.push(b'"');
    writer.0.extend_from_slice(dir.as_str().as_bytes());
    writer.0.push(b'"');
    writer.number("seq", seq).fin(fin).done()
}

pub(in crate::exchange) fn end(rid: RequestId, seq: u64, end: &End) -> Bytes {
    Writer::new("end", SMALL)
        .rid(rid)
        .number("seq", seq)
        .end(end)
        .done()
}

pub(in crate::exchange) fn error(rid: RequestId, seq: Option<u64>, failure: &Failure) -> Bytes {
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

pub(in crate::exchange) fn ack(entries: &[Ack]) -> Bytes {
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
    checked(bytes)
}

pub(in crate::exchange) fn cancel(rid: RequestId, reason: Code) -> Bytes {
    Writer::new("cancel", SMALL)
        .rid(rid)
        .text("reason", reason.as_str())
        .done()
}

pub(in crate::exchange) fn query(rid: RequestId) -> Bytes {
    Writer::new("query", SMALL).rid(rid).done()
}

pub(in crate::exchange) fn state(rid: RequestId, phase: Phase, next: u64) -> Bytes {
    Writer::new("state", SMALL)
        .rid(rid)
        .text("phase", phase.as_str())
        .number("next", next)
        .done()
}

pub(in crate::exchange) fn noop() -> Bytes {
    Bytes::from_static(b"{\"type\":\"noop\"}")
}
