//! What a person is asked, and the bytes an approval signs.

use std::{fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::desk::unix_ms;
use crate::{
    crypto::identity::{Identity, Label, PublicKey},
    ids::{NodeId, RequestId, hex, random_bytes, unhex},
};

/// Names one request that waits, for people to type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApprovalId(pub [u8; 4]);

impl ApprovalId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(random_bytes())
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ApprovalId {
    type Err = crate::ids::HexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        unhex(text).map(Self)
    }
}

impl Serialize for ApprovalId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ApprovalId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// One request that a person is to decide. What is here is what is run, or nothing is.
#[derive(Clone)]
pub struct Request {
    /// Names the exchange.
    pub rid: RequestId,
    /// Who asks.
    pub from: NodeId,
    /// With which key.
    pub from_key: PublicKey,
    /// Which node would be touched: this one.
    pub to: NodeId,
    /// `tool:` and its name.
    pub action: String,
    /// The arguments, JSON, as they came.
    pub args: String,
    /// Content, for tools that have some.
    pub data: Bytes,
    /// 2, or 3 for one that asks for a typed challenge, too.
    pub level: u8,
    /// The rule that wants a person.
    pub rule: String,
    /// What would really be touched: a path without links, a program with all its words.
    pub touches: Vec<String>,
    /// Where a command starts.
    pub workdir: Option<String>,
    /// Whether a model asks on its own, as the caller says.
    pub agent: bool,
    /// When it was asked, in ms since 1970.
    pub asked: u64,
    /// End of its time, in ms since 1970.
    pub exp: u64,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without arguments and content: they are nobody's business in a log.
        f.debug_struct("Request")
            .field("rid", &self.rid)
            .field("from", &self.from)
            .field("action", &self.action)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// What an approval signs, behind `P||"approval\0"` (protocol 8.4).
    #[must_use]
    pub fn signed(&self) -> Signed {
        let mut out = Vec::with_capacity(256);
        lp(&mut out, self.rid.to_string().as_bytes());
        lp(&mut out, self.from.as_str().as_bytes());
        out.extend_from_slice(&self.from_key.0);
        lp(&mut out, self.to.as_str().as_bytes());
        lp(&mut out, self.action.as_bytes());
        out.extend_from_slice(&Sha256::digest(self.args.as_bytes()));
        out.extend_from_slice(&Sha256::digest(&self.data));
        out.push(self.level);
        out.extend_from_slice(&self.exp.to_be_bytes());
        Signed(out)
    }

    /// How long it may still wait, by the wall clock that its end is judged by.
    #[must_use]
    pub fn left(&self) -> Duration {
        Duration::from_millis(self.exp.saturating_sub(unix_ms()))
    }

    /// The operator agrees.
    #[must_use]
    pub fn sign(&self, operator: &Identity) -> [u8; 64] {
        operator.sign(Label::Approval, &[&self.signed().0])
    }
}

/// What an approval signs, hashed once for all who may have signed it.
#[derive(Debug)]
pub struct Signed(Vec<u8>);

impl Signed {
    /// Whether `signature` is this operator's.
    #[must_use]
    pub fn is_by(&self, operator: &PublicKey, signature: &[u8; 64]) -> bool {
        operator.verify_strict(Label::Approval, &[&self.0], signature)
    }
}

/// u16 length and bytes. Names of nodes and tools are far shorter than that.
fn lp(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// What may be told of a request to whoever sees the mesh: names, never what is asked.
#[derive(Debug)]
pub(super) struct About {
    rid: RequestId,
    from: NodeId,
    to: NodeId,
    action: String,
    level: u8,
    pub(super) exp: u64,
}

impl About {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            rid: request.rid,
            from: request.from.clone(),
            to: request.to.clone(),
            action: request.action.clone(),
            level: request.level,
            exp: request.exp,
        }
    }

    pub(super) fn told(&self, id: ApprovalId) -> Value {
        json!({
            "id": id.to_string(),
            "requestId": self.rid,
            "from": self.from,
            "to": self.to,
            "action": self.action,
            "level": self.level,
            "expMs": self.exp,
        })
    }
}
