//! The four messages as text, and the parts inside their boxes. Reading is total and strict: one
//! value has one text, everything else is [`Abort::Malformed`] (protocol 3.1).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    crypto::{identity::PublicKey, transcript},
    ids::NodeId,
    wire::limits::{HANDSHAKE_MESSAGE_BYTES, HANDSHAKE_VERSIONS},
};

use super::{Abort, Named};

/// M1.
pub(super) struct Hello {
    pub(super) versions: Vec<u8>,
    pub(super) nonce: [u8; 32],
    pub(super) ek: [u8; 32],
}

/// M2.
pub(super) struct Challenge {
    pub(super) version: u8,
    pub(super) nonce: [u8; 32],
    pub(super) ek: [u8; 32],
    pub(super) sealed: Vec<u8>,
}

/// M3 and M4: a box and nothing else.
pub(super) struct Sealed;

// The texts are borrowed: a string with JSON escapes in it is refused, since nobody writes one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HelloText<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    v: Vec<u8>,
    nonce: &'a str,
    ek: &'a str,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChallengeText<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    v: u8,
    nonce: &'a str,
    ek: &'a str,
    #[serde(rename = "box")]
    sealed: &'a str,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedText<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(rename = "box")]
    sealed: &'a str,
}

/// Parses one message. Duplicate and unknown fields and trailing text are refused by serde; arrays
/// are refused here, as serde takes one for a struct.
fn parse<'a, T: Deserialize<'a>>(text: &'a str, what: &'static str) -> Result<T, Abort> {
    if text.len() > HANDSHAKE_MESSAGE_BYTES || !text.starts_with('{') {
        return Err(Abort::Malformed(what));
    }
    serde_json::from_str(text).map_err(|_| {
        if is_old_plugin(text) {
            Abort::OldPlugin
        } else {
            Abort::Malformed(what)
        }
    })
}

/// Whether a message that is not ours looks like a login of the earlier plugin: a typed JSON object
/// about authentication, with neither versions nor a box. A guess that only words our log.
fn is_old_plugin(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Any<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        v: Option<serde::de::IgnoredAny>,
        #[serde(rename = "box")]
        sealed: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str(text).is_ok_and(|any: Any<'_>| {
        matches!(
            any.kind,
            "auth" | "auth_challenge" | "auth_ok" | "auth_fail"
        ) && any.v.is_none()
            && any.sealed.is_none()
    })
}

fn print(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("handshake messages are plain JSON")
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &str, what: &'static str) -> Result<Vec<u8>, Abort> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Abort::Malformed(what))
}

fn decode_array(text: &str, what: &'static str) -> Result<[u8; 32], Abort> {
    decode(text, what)?
        .try_into()
        .map_err(|_| Abort::Malformed(what))
}

fn expect_kind(found: &str, expected: &str, what: &'static str) -> Result<(), Abort> {
    if found == expected {
        Ok(())
    } else {
        Err(Abort::Malformed(what))
    }
}

impl Hello {
    pub(super) fn read(text: &str) -> Result<Self, Abort> {
        const WHAT: &str = "hello";
        let message: HelloText<'_> = parse(text, WHAT)?;
        expect_kind(message.kind, "auth_hello", WHAT)?;
        if message.v.is_empty() || message.v.len() > HANDSHAKE_VERSIONS {
            return Err(Abort::Malformed(WHAT));
        }
        Ok(Self {
            versions: message.v,
            nonce: decode_array(message.nonce, WHAT)?,
            ek: decode_array(message.ek, WHAT)?,
        })
    }

    pub(super) fn text(&self) -> String {
        print(&HelloText {
            kind: "auth_hello",
            v: self.versions.clone(),
            nonce: &encode(&self.nonce),
            ek: &encode(&self.ek),
        })
    }

    /// `m1 = u8 count || versions || nD || ekD`.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let count = u8::try_from(self.versions.len()).expect("bounded when read and when made");
        [&[count], &self.versions[..], &self.nonce, &self.ek].concat()
    }
}

impl Challenge {
    pub(super) fn read(text: &str) -> Result<Self, Abort> {
        const WHAT: &str = "challenge";
        let message: ChallengeText<'_> = parse(text, WHAT)?;
        expect_kind(message.kind, "auth_challenge", WHAT)?;
        Ok(Self {
            version: message.v,
            nonce: decode_array(message.nonce, WHAT)?,
            ek: decode_array(message.ek, WHAT)?,
            sealed: decode(message.sealed, WHAT)?,
        })
    }

    pub(super) fn text(&self) -> String {
        print(&ChallengeText {
            kind: "auth_challenge",
            v: self.version,
            nonce: &encode(&self.nonce),
            ek: &encode(&self.ek),
            sealed: &encode(&self.sealed),
        })
    }

    /// `m2 = u8 v || nL || ekL`.
    pub(super) fn bytes(&self) -> Vec<u8> {
        [&[self.version], &self.nonce[..], &self.ek].concat()
    }
}

impl Sealed {
    pub(super) fn read(kind: &'static str, text: &str) -> Result<Vec<u8>, Abort> {
        let what = if kind == "auth" {
            "proof"
        } else {
            "last message"
        };
        let message: SealedText<'_> = parse(text, what)?;
        expect_kind(message.kind, kind, what)?;
        decode(message.sealed, what)
    }

    pub(super) fn text(kind: &'static str, sealed: &[u8]) -> String {
        print(&SealedText {
            kind,
            sealed: &encode(sealed),
        })
    }
}

/// Reads the parts of an opened box one after the other.
pub(super) struct Parts<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Parts<'a> {
    pub(super) fn of(opened: &'a Zeroizing<Vec<u8>>, what: &'static str) -> Self {
        Self { rest: opened, what }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Abort> {
        let (part, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Abort::Malformed(self.what))?;
        self.rest = rest;
        Ok(part)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Abort> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// `lp(x)` with at most `max` bytes.
    pub(super) fn prefixed(&mut self, max: usize) -> Result<&'a [u8], Abort> {
        let len = usize::from(u16::from_be_bytes(self.array()?));
        if len > max {
            return Err(Abort::Malformed(self.what));
        }
        self.take(len)
    }

    /// `ID_x`.
    pub(super) fn named(&mut self) -> Result<Named, Abort> {
        let malformed = Abort::Malformed(self.what);
        let name = std::str::from_utf8(self.prefixed(64)?).map_err(|_| malformed.clone())?;
        let node: NodeId = name.parse().map_err(|_| malformed)?;
        let key = PublicKey(self.array()?);
        let id = transcript::id(&node, &key);
        Ok(Named { node, key, id })
    }

    /// Refuses what follows the last part.
    pub(super) fn end(self) -> Result<(), Abort> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Abort::Malformed(self.what))
        }
    }
}
