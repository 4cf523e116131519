//! Frame headers: the JSON in a record that says what it is and for whom (protocol 5.1, 5.3, 6.1).
//!
//! Writers append to the buffer the record is built in; readers borrow from the record. Fields that
//! this version does not know are ignored, so that later ones can add some.

use std::{
    borrow::Cow,
    fmt,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Deserializer, de};

use super::{
    json::{self, JsonError},
    limits::JSON_INTEGER_MAX,
};
use crate::ids::{NodeId, SessionId, hex, random_bytes};

/// The `i` of a routed frame: 26 characters of Crockford base32, unique per sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ulid(pub u128);

const BASE32: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const ULID_CHARS: usize = 26;

impl Ulid {
    /// From a time in milliseconds since 1970 (48 bits) and 80 random bits.
    #[must_use]
    pub const fn new(unix_ms: u64, random: u128) -> Self {
        Self((unix_ms as u128) << 80 | random & ((1 << 80) - 1))
    }

    /// One of now.
    #[must_use]
    pub fn random() -> Self {
        let unix_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        Self::new(unix_ms, u128::from_be_bytes(random_bytes()))
    }

    /// The `n`th after this.
    #[must_use]
    pub const fn plus(self, n: u64) -> Self {
        Self(self.0.wrapping_add(n as u128))
    }

    fn text(self) -> [u8; ULID_CHARS] {
        let mut text = [0; ULID_CHARS];
        let mut rest = self.0;
        for slot in text.iter_mut().rev() {
            *slot = BASE32[(rest & 31) as usize];
            rest >>= 5;
        }
        text
    }
}

impl fmt::Display for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text()
            .iter()
            .try_for_each(|byte| fmt::Write::write_char(f, char::from(*byte)))
    }
}

impl FromStr for Ulid {
    type Err = JsonError;
    fn from_str(text: &str) -> Result<Self, JsonError> {
        let bytes = text.as_bytes();
        // The first of 26 characters holds three bits.
        if bytes.len() != ULID_CHARS || bytes[0] > b'7' {
            return Err(JsonError::Shape);
        }
        bytes.iter().try_fold(Self(0), |Self(value), byte| {
            let digit = BASE32
                .iter()
                .position(|b| b == byte)
                .ok_or(JsonError::Shape)?;
            Ok(Self(value << 5 | digit as u128))
        })
    }
}

impl<'de> Deserialize<'de> for Ulid {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(d)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Header of a routed record (kinds 1, 3, 4).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RoutedHeader<'a> {
    /// Names the frame.
    pub i: Ulid,
    /// Origin. Not checked against the grammar: whoever uses it compares it with a name it knows.
    #[serde(borrow)]
    pub f: Cow<'a, str>,
    /// Destination, likewise.
    #[serde(borrow)]
    pub t: Cow<'a, str>,
    /// Session.
    pub s: SessionId,
    /// Number within the session; 0 for kinds 3 and 4.
    pub n: u64,
}

impl<'a> RoutedHeader<'a> {
    /// Reads a header.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn decode(header: &'a [u8]) -> Result<Self, JsonError> {
        json::parse(header)
    }
}

/// Appends the header of a routed record.
pub fn put_routed(buffer: &mut BytesMut, i: Ulid, f: &NodeId, t: &NodeId, s: &SessionId, n: u64) {
    #[cfg(debug_assertions)]
    let start = buffer.len();
    buffer.put_slice(b"{\"i\":\"");
    buffer.put_slice(&i.text());
    buffer.put_slice(b"\",\"f\":\"");
    // The grammar of names has nothing to escape.
    buffer.put_slice(f.as_str().as_bytes());
    buffer.put_slice(b"\",\"t\":\"");
    buffer.put_slice(t.as_str().as_bytes());
    buffer.put_slice(b"\",\"s\":\"");
    buffer.put_slice(hex(&s.0).as_bytes());
    buffer.put_slice(b"\",\"n\":");
    json::put_number(buffer, n & JSON_INTEGER_MAX);
    buffer.put_slice(b"}");
    #[cfg(debug_assertions)]
    super::shapes::assert_written("header", "routed", &buffer[start..]);
}

/// Header of a link record (kind 0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkHeader<'a> {
    /// Are you there?
    Ping {
        /// Comes back in the pong.
        n: u64,
    },
    /// Yes.
    Pong {
        /// From the ping.
        n: u64,
    },
    /// The sender goes away soon: start nothing new over this link.
    Goaway {
        /// Why, for the log; written by the neighbour.
        why: Cow<'a, str>,
        /// In about how many milliseconds.
        ms: u64,
    },
    /// The sender closes now, on purpose.
    Bye,
    /// Hashes of what the sender knows are in the body (protocol 6.4).
    Digest {
        /// Whether link states are among it.
        ls: bool,
    },
    /// Versions of what the sender knows are in the body.
    Vector {
        /// Whether the receiver is to tell its own in return.
        ask: bool,
    },
    /// Names of records that the sender lacks are in the body.
    Want,
    /// A type of a later version or of a part not built yet; ignored.
    Unknown,
}

#[derive(Deserialize)]
struct RawLink<'a> {
    #[serde(borrow)]
    y: Cow<'a, str>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(borrow, default)]
    why: Cow<'a, str>,
    #[serde(default)]
    ms: u64,
    #[serde(default)]
    ls: bool,
    #[serde(default)]
    ask: bool,
}

impl<'a> LinkHeader<'a> {
    /// Reads a header.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn decode(header: &'a [u8]) -> Result<Self, JsonError> {
        let raw: RawLink<'a> = json::parse(header)?;
        Ok(match (&*raw.y, raw.n) {
            ("ping", Some(n)) => Self::Ping { n },
            ("pong", Some(n)) => Self::Pong { n },
            ("ping" | "pong", None) => return Err(JsonError::Shape),
            ("goaway", _) => Self::Goaway {
                why: raw.why,
                ms: raw.ms,
            },
            ("bye", _) => Self::Bye,
            ("digest", _) => Self::Digest { ls: raw.ls },
            ("vector", _) => Self::Vector { ask: raw.ask },
            ("want", _) => Self::Want,
            _ => Self::Unknown,
        })
    }

    /// Appends the header.
    pub fn put(&self, buffer: &mut BytesMut) {
        #[cfg(debug_assertions)]
        let start = buffer.len();
        let numbered = |buffer: &mut BytesMut, start: &[u8], n: u64| {
            buffer.put_slice(start);
            json::put_number(buffer, n & JSON_INTEGER_MAX);
            buffer.put_slice(b"}");
        };
        match self {
            Self::Ping { n } => numbered(buffer, b"{\"y\":\"ping\",\"n\":", *n),
            Self::Pong { n } => numbered(buffer, b"{\"y\":\"pong\",\"n\":", *n),
            Self::Goaway { why, ms } => {
                buffer.put_slice(b"{\"y\":\"goaway\",\"why\":");
                json::put_string(buffer, why);
                numbered(buffer, b",\"ms\":", *ms);
            }
            Self::Bye => buffer.put_slice(b"{\"y\":\"bye\"}"),
            Self::Digest { ls: true } => buffer.put_slice(b"{\"y\":\"digest\",\"ls\":true}"),
            Self::Digest { ls: false } => buffer.put_slice(b"{\"y\":\"digest\"}"),
            Self::Vector { ask: true } => buffer.put_slice(b"{\"y\":\"vector\",\"ask\":true}"),
            Self::Vector { ask: false } => buffer.put_slice(b"{\"y\":\"vector\"}"),
            Self::Want => buffer.put_slice(b"{\"y\":\"want\"}"),
            Self::Unknown => buffer.put_slice(b"{\"y\":\"\"}"),
        }
        #[cfg(debug_assertions)]
        if *self != Self::Unknown {
            super::shapes::assert_written("link", "y", &buffer[start..]);
        }
    }
}

/// Header of a gossip record (kind 2): who says something, and how new it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GossipHeader<'a> {
    /// `desc`, `ls`, `rot`, `leave`, or one of a later version.
    #[serde(borrow)]
    pub k: Cow<'a, str>,
    /// Whose record it is.
    pub node: NodeId,
    /// The key that signs it.
    #[serde(deserialize_with = "key_bytes")]
    pub key: [u8; 32],
    /// Incarnation: grows with each start of that node.
    pub inc: u64,
    /// Version within the incarnation.
    pub ver: u64,
}

fn key_bytes<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
    let text = Cow::<'de, str>::deserialize(d)?;
    URL_SAFE_NO_PAD
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| de::Error::custom("not a key"))
}

impl<'a> GossipHeader<'a> {
    /// Reads a header.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn decode(header: &'a [u8]) -> Result<Self, JsonError> {
        json::parse(header)
    }

    /// Appends the header.
    pub fn put(&self, buffer: &mut BytesMut) {
        #[cfg(debug_assertions)]
        let start = buffer.len();
        buffer.put_slice(b"{\"k\":");
        json::put_string(buffer, &self.k);
        buffer.put_slice(b",\"node\":\"");
        buffer.put_slice(self.node.as_str().as_bytes());
        buffer.put_slice(b"\",\"key\":\"");
        buffer.put_slice(URL_SAFE_NO_PAD.encode(self.key).as_bytes());
        buffer.put_slice(b"\",\"inc\":");
        json::put_number(buffer, self.inc & JSON_INTEGER_MAX);
        buffer.put_slice(b",\"ver\":");
        json::put_number(buffer, self.ver & JSON_INTEGER_MAX);
        buffer.put_slice(b"}");
        #[cfg(debug_assertions)]
        super::shapes::assert_written("header", "gossip", &buffer[start..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(text: &str) -> NodeId {
        text.parse().unwrap()
    }

    #[test]
    fn routed_header_is_pinned() {
        let mut buffer = BytesMut::new();
        let i = Ulid::new(1_469_918_176_385, 0x1234);
        let s = SessionId([0xab; 16]);
        put_routed(
            &mut buffer,
            i,
            &node("home-01"),
            &node("office-01"),
            &s,
            123,
        );
        assert_eq!(
            std::str::from_utf8(&buffer).unwrap(),
            "{\"i\":\"01ARYZ6S4100000000000004HM\",\"f\":\"home-01\",\"t\":\"office-01\",\
             \"s\":\"abababababababababababababababab\",\"n\":123}"
        );
        let header = RoutedHeader::decode(&buffer).unwrap();
        assert_eq!((header.i, header.s, header.n), (i, s, 123));
        assert!(matches!(header.f, Cow::Borrowed("home-01")));
    }

    #[test]
    fn unknown_fields_are_ignored_and_bad_ones_refused() {
        let header = |text: &str| RoutedHeader::decode(text.as_bytes()).map(|h| h.n);
        let i = "01ARYZ6S4100000000000004HM";
        let s = "0".repeat(32);
        let good = format!(r#"{{"i":"{i}","f":"a","t":"b","s":"{s}","n":1,"later":{{"x":[]}}}}"#);
        assert_eq!(header(&good), Ok(1));
        assert_eq!(
            header(&good.replace("\"f\"", "\"t\"")),
            Err(JsonError::DuplicateKey)
        );
        assert_eq!(
            header(&good.replace("\"n\":1", "\"n\":-1")),
            Err(JsonError::Shape)
        );
        assert_eq!(header(&good.replace(i, "01ARYZ")), Err(JsonError::Shape));
        assert_eq!(header(&good.replace("01A", "81A")), Err(JsonError::Shape));
        assert_eq!(header("[]"), Err(JsonError::Shape));
    }

    #[test]
    fn link_headers_come_back() {
        let cases = [
            LinkHeader::Ping { n: 7 },
            LinkHeader::Pong { n: 0 },
            LinkHeader::Goaway {
                why: "shutting \"down\"".into(),
                ms: 5000,
            },
            LinkHeader::Bye,
            LinkHeader::Digest { ls: true },
            LinkHeader::Digest { ls: false },
            LinkHeader::Vector { ask: true },
            LinkHeader::Vector { ask: false },
            LinkHeader::Want,
        ];
        for header in cases {
            let mut buffer = BytesMut::new();
            header.put(&mut buffer);
            assert_eq!(LinkHeader::decode(&buffer), Ok(header));
        }
        assert_eq!(
            LinkHeader::decode(br#"{"y":"later","b64":"x"}"#),
            Ok(LinkHeader::Unknown)
        );
        assert_eq!(
            LinkHeader::decode(br#"{"y":"ping"}"#),
            Err(JsonError::Shape)
        );
    }

    #[test]
    fn gossip_headers_come_back() {
        let header = GossipHeader {
            k: "desc".into(),
            node: node("office-01"),
            key: [9; 32],
            inc: 1_700_000_000_000,
            ver: 3,
        };
        let mut buffer = BytesMut::new();
        header.put(&mut buffer);
        assert_eq!(GossipHeader::decode(&buffer), Ok(header));
    }

    proptest! {
        #[test]
        fn ulids_come_back(value: u128) {
            prop_assert_eq!(Ulid(value).to_string().parse(), Ok(Ulid(value)));
        }

        #[test]
        fn any_header_reads_or_fails(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RoutedHeader::decode(&bytes);
            let _ = LinkHeader::decode(&bytes);
            let _ = GossipHeader::decode(&bytes);
        }
    }
}
