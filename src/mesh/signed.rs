//! Signed records: what a node says to all others, believed because its key signed it (protocol 6.1).
//!
//! ```text
//! header {"k","node","key","inc","ver"} | body: u16 siglen || sig("rec", lp(header) || payload) || payload
//! ```
//!
//! The bytes that were signed are kept and passed on as they are, so nothing depends on how JSON is
//! written. What a payload means is the business of [`super::descriptor`], [`super::linkstate`] and
//! [`super::rotation`].

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    crypto::identity::{Identity, KeyId, Label, PublicKey},
    ids::NodeId,
    wire::{
        frame::GossipHeader,
        limits::{DESCRIPTOR_BYTES, LINK_STATE_BYTES, ROTATION_BYTES},
    },
};

const SIGNATURE_BYTES: usize = 64;
const LENGTH_BYTES: usize = 2;

/// Which of two records of one node is newer: `(inc, ver)`.
pub type Version = (u64, u64);

/// What a record says; the discriminant is the byte in digests, vectors and wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// What the node offers.
    Descriptor = 0,
    /// Its links.
    LinkState = 1,
    /// It goes away on purpose.
    Leave = 2,
    /// It has another key now; signed by the old one, named by it.
    Rotation = 3,
}

impl RecordKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Descriptor,
        Self::LinkState,
        Self::Leave,
        Self::Rotation,
    ];

    /// Its `k` in a header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Descriptor => "desc",
            Self::LinkState => "ls",
            Self::Leave => "leave",
            Self::Rotation => "rot",
        }
    }

    /// The kind with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Longest payload, in bytes.
    const fn most(self) -> usize {
        match self {
            Self::Descriptor => DESCRIPTOR_BYTES,
            Self::LinkState => LINK_STATE_BYTES,
            Self::Leave => 0,
            Self::Rotation => ROTATION_BYTES,
        }
    }
}

/// Names the latest record of one kind of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item {
    /// What it says.
    pub kind: RecordKind,
    /// Who signs it.
    pub key: KeyId,
}

/// One signed record as it lies on the wire. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Header JSON.
    pub header: Bytes,
    /// Length, signature, payload.
    pub body: Bytes,
}

impl Signed {
    /// A copy that holds on to nothing else: what arrives is a slice of a whole read buffer.
    #[must_use]
    pub fn copied(header: &[u8], body: &[u8]) -> Self {
        Self {
            header: Bytes::copy_from_slice(header),
            body: Bytes::copy_from_slice(body),
        }
    }

    /// Bytes it takes on a link, seals and framing aside.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.header.len() + self.body.len()
    }
}

/// What a header claims, before any signature is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it says.
    pub kind: RecordKind,
    /// Whose record it is.
    pub node: NodeId,
    /// Who signs it.
    pub key: PublicKey,
    /// How new it is.
    pub version: Version,
}

/// Why a record is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The header is no header at all: the neighbour itself breaks the protocol.
    #[error("malformed gossip header")]
    Header,
    /// Another kind of record.
    #[error("kind of record not handled")]
    Kind,
    /// Sizes do not fit, or the payload is not what it should be.
    #[error("malformed record")]
    Malformed,
    /// The signature is wrong.
    #[error("signature does not verify")]
    Forged,
}

fn length_of(bytes: &[u8]) -> [u8; LENGTH_BYTES] {
    // Headers are at most 512 bytes, signatures 64.
    (bytes.len() as u16).to_be_bytes()
}

/// Signs what we say.
#[must_use]
pub fn sign(
    identity: &Identity,
    node: &NodeId,
    kind: RecordKind,
    (inc, ver): Version,
    payload: &[u8],
) -> Signed {
    let mut header = BytesMut::new();
    GossipHeader {
        k: kind.name().into(),
        node: node.clone(),
        key: identity.public().0,
        inc,
        ver,
    }
    .put(&mut header);
    let signature = identity.sign(Label::Record, &[&length_of(&header), &header, payload]);
    let mut body = BytesMut::with_capacity(LENGTH_BYTES + SIGNATURE_BYTES + payload.len());
    body.put_slice(&length_of(&signature));
    body.put_slice(&signature);
    body.put_slice(payload);
    Signed {
        header: header.freeze(),
        body: body.freeze(),
    }
}

/// Reads what a header claims.
///
/// # Errors
/// [`RecordError::Header`], [`RecordError::Kind`].
pub fn claim(header: &[u8]) -> Result<Claim, RecordError> {
    let read = GossipHeader::decode(header).map_err(|_| RecordError::Header)?;
    let kind = RecordKind::ALL
        .into_iter()
        .find(|kind| kind.name() == read.k);
    Ok(Claim {
        kind: kind.ok_or(RecordError::Kind)?,
        node: read.node,
        key: PublicKey(read.key),
        version: (read.inc, read.ver),
    })
}

/// Checks that the claimed key signed this header and body; gives the payload.
///
/// # Errors
/// [`RecordError::Malformed`], [`RecordError::Forged`].
pub fn verify<'a>(claim: &Claim, header: &[u8], body: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let (length, rest) = body
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or(RecordError::Malformed)?;
    let (signature, payload) = rest
        .split_first_chunk::<SIGNATURE_BYTES>()
        .ok_or(RecordError::Malformed)?;
    if *length != length_of(signature) || payload.len() > claim.kind.most() {
        return Err(RecordError::Malformed);
    }
    let parts = [&length_of(header)[..], header, payload];
    if claim.key.verify_strict(Label::Record, &parts, signature) {
        Ok(payload)
    } else {
        Err(RecordError::Forged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node() -> NodeId {
        "office-01".parse().unwrap()
    }

    fn open(header: &[u8], body: &[u8]) -> Result<(Claim, Vec<u8>), RecordError> {
        let claim = claim(header)?;
        let payload = verify(&claim, header, body)?.to_vec();
        Ok((claim, payload))
    }

    #[test]
    fn signed_record_comes_back() {
        let identity = Identity::generate();
        for (kind, payload) in [
            (RecordKind::Descriptor, &b"{\"a\":1}"[..]),
            (RecordKind::LinkState, b"{}"),
            (RecordKind::Leave, b""),
            (RecordKind::Rotation, b"{\"b\":2}"),
        ] {
            let signed = sign(&identity, &node(), kind, (7, 3), payload);
            let (claim, read) = open(&signed.header, &signed.body).unwrap();
            assert_eq!((claim.kind, claim.version), (kind, (7, 3)));
            assert_eq!((claim.node, claim.key), (node(), identity.public()));
            assert_eq!(read, payload);
        }
    }

    /// T65: what was altered is not believed.
    #[test]
    fn altered_records_are_refused() {
        let (identity, other) = (Identity::generate(), Identity::generate());
        let signed = sign(&identity, &node(), RecordKind::Descriptor, (7, 3), b"{}");
        for at in 0..signed.body.len() {
            let mut body = signed.body.to_vec();
            body[at] ^= 1;
            assert!(open(&signed.header, &body).is_err(), "byte {at}");
        }
        let text = String::from_utf8(signed.header.to_vec()).unwrap();
        let forged = |from: &str, to: &str| open(text.replace(from, to).as_bytes(), &signed.body);
        assert_eq!(forged("\"ver\":3", "\"ver\":4"), Err(RecordError::Forged));
        assert_eq!(forged("office-01", "office-02"), Err(RecordError::Forged));
        assert_eq!(forged("\"desc\"", "\"ls\""), Err(RecordError::Forged));
        assert_eq!(forged("\"desc\"", "\"later\""), Err(RecordError::Kind));
        assert_eq!(open(b"[]", &signed.body), Err(RecordError::Header));
        let of_other = sign(&other, &node(), RecordKind::Descriptor, (7, 3), b"{}");
        assert_eq!(
            open(&signed.header, &of_other.body),
            Err(RecordError::Forged)
        );
    }

    #[test]
    fn too_long_payloads_are_refused_before_the_signature_is_looked_at() {
        let identity = Identity::generate();
        for (kind, most) in [
            (RecordKind::Descriptor, DESCRIPTOR_BYTES),
            (RecordKind::LinkState, LINK_STATE_BYTES),
            (RecordKind::Leave, 0),
            (RecordKind::Rotation, ROTATION_BYTES),
        ] {
            let fits = sign(&identity, &node(), kind, (1, 1), &vec![b' '; most]);
            assert!(open(&fits.header, &fits.body).is_ok());
            let long = sign(&identity, &node(), kind, (1, 1), &vec![b' '; most + 1]);
            assert_eq!(open(&long.header, &long.body), Err(RecordError::Malformed));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_open_or_fail(header: Vec<u8>, body: Vec<u8>) {
            prop_assert!(open(&header, &body).is_err());
        }
    }
}
