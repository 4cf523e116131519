//! Reading: strict, total, borrowed.

use std::{borrow::Cow, fmt, time::Duration};

use serde::{Deserialize, de};
use serde_json::value::RawValue;

use super::{Ack, Dir, DownItem, Last, Lead, Message, Phase, Request, clip};
use crate::{
    exchange::{End, Kind},
    ids::RequestId,
    wire::{
        code::{Code, Failure, Stage},
        json::{self, JsonError},
    },
};

/// Reads a rid without allocating.
pub(super) fn rid<'de, D: de::Deserializer<'de>>(d: D) -> Result<RequestId, D::Error> {
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
    #[serde(borrow)]
    phase: Option<Cow<'a, str>>,
    left: Option<u64>,
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
pub(in crate::exchange) fn decode(bytes: &[u8]) -> Result<Message, JsonError> {
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
            let waits = fields.phase.as_deref() == Some(Phase::ApprovalPending.as_str());
            let lead = if waits {
                Lead::Waits(fields.left.map(Duration::from_millis))
            } else {
                Lead::Accept
            };
            fields.down(Some(lead), None)
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
