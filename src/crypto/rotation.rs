//! A node's new key: what its old and its new key say together (protocol 2).
//!
//! The new key signs the five facts here, in the payload; the old key signs the record around it, as
//! it does all others. A [`Rotation`] in hand has both signatures behind it only when it comes from
//! [`crate::mesh::rotation::verify`]; this module knows the new key's half.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::identity::{Identity, Label, PublicKey};
use crate::{ids::NodeId, wire::json};

/// Node `node` gives up `old` for `new`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// Whose keys they are.
    pub node: NodeId,
    /// The key that must not be believed any more.
    pub old: PublicKey,
    /// The key that takes its place.
    pub new: PublicKey,
    /// Grows with each rotation of this node: the Unix time in milliseconds, or one more than the last.
    pub seq: u64,
    /// When it was made, Unix time in seconds. For people.
    pub ts: u64,
}

/// The payload of the record.
#[derive(Serialize, Deserialize)]
struct Payload {
    node: NodeId,
    old: PublicKey,
    new: PublicKey,
    seq: u64,
    ts: u64,
    sig: String,
}

impl Rotation {
    /// `lp(node)||old||new||u64 seq||u64 ts`.
    fn facts(&self) -> Vec<u8> {
        let name = self.node.as_str().as_bytes();
        let mut facts = Vec::with_capacity(2 + name.len() + 80);
        // Names have at most 64 bytes.
        facts.extend_from_slice(&(name.len() as u16).to_be_bytes());
        facts.extend_from_slice(name);
        facts.extend_from_slice(&self.old.0);
        facts.extend_from_slice(&self.new.0);
        facts.extend_from_slice(&self.seq.to_be_bytes());
        facts.extend_from_slice(&self.ts.to_be_bytes());
        facts
    }

    /// The payload, signed by the new key.
    #[must_use]
    pub fn payload(&self, new: &Identity) -> Vec<u8> {
        let payload = Payload {
            node: self.node.clone(),
            old: self.old,
            new: self.new,
            seq: self.seq,
            ts: self.ts,
            sig: URL_SAFE_NO_PAD.encode(new.sign(Label::Rotation, &[&self.facts()])),
        };
        serde_json::to_vec(&payload).expect("names, keys and numbers are plain JSON")
    }

    /// Reads a payload; none when it is no rotation or the new key did not sign it. Fields of later
    /// versions are passed over.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let read: Payload = json::object(payload).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(&read.sig).ok()?.try_into().ok()?;
        let rotation = Self {
            node: read.node,
            old: read.old,
            new: read.new,
            seq: read.seq,
            ts: read.ts,
        };
        let signed = rotation
            .new
            .verify_strict(Label::Rotation, &[&rotation.facts()], &signature);
        (signed && rotation.old != rotation.new).then_some(rotation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_holds_only_with_the_signature_of_the_new_key() {
        let (old, new) = (Identity::generate(), Identity::generate());
        let rotation = Rotation {
            node: "office-01".parse().unwrap(),
            old: old.public(),
            new: new.public(),
            seq: 7,
            ts: 1_700_000_000,
        };
        let payload = rotation.payload(&new);
        assert_eq!(Rotation::read(&payload), Some(rotation.clone()));
        assert_eq!(Rotation::read(&rotation.payload(&old)), None, "T27");
        let text = String::from_utf8(payload).unwrap();
        for (from, to) in [
            ("office-01", "office-02"),
            ("\"seq\":7", "\"seq\":8"),
            ("\"ts\":1700000000", "\"ts\":1700000001"),
            (&old.public().to_string(), &new.public().to_string()),
        ] {
            assert_eq!(
                Rotation::read(text.replace(from, to).as_bytes()),
                None,
                "{from}"
            );
        }
        let same = Rotation {
            new: old.public(),
            ..rotation
        };
        assert_eq!(Rotation::read(&same.payload(&old)), None, "no other key");
    }
}
