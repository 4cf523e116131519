//! The record: the plaintext of one sealed link message (protocol 5.1).
//!
//! ```text
//! 0 u8 rver=1 | 1 u8 kind | 2 u8 ttl | 3 u8 class | 4 u16 hlen<=512 | 6 u16 reserved=0 | 8 header JSON | 8+hlen body
//! ```
//!
//! A record is built in the buffer in which it will be sealed: [`begin`] leaves room for the length
//! in front, the header and body are written behind it, [`end_header`] notes how long the header
//! became. A decoded record is two slices of the buffer it came in.

use bytes::{BufMut, Bytes, BytesMut};

use super::limits::{HEADER_BYTES, TTL};

/// Bytes in front of every record on the wire: `slen` (protocol 4.1).
pub const LENGTH_BYTES: usize = 2;
/// Bytes before the header.
pub const FIXED_BYTES: usize = 8;
/// The only version.
const VERSION: u8 = 1;

/// What a record is for; the discriminant is the byte on the wire. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Between two neighbours: ping, goaway.
    Link = 0,
    /// From node to node, an inner frame as body.
    Routed = 1,
    /// A signed record of a node about itself.
    Gossip = 2,
    /// A handshake message from node to node.
    RoutedHandshake = 3,
    /// A relay's hint to an origin.
    RoutedNotice = 4,
}

/// Scheduling class of a frame (protocol 5.1); the discriminant is the byte on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Acks, cancels, errors: always first.
    Control = 0,
    /// Requests and token streams.
    Interactive = 1,
    /// Large bodies.
    Bulk = 2,
}

/// Why bytes are not a record. Each is a `protocol_error` of the neighbour (protocol 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than the fixed part.
    #[error("record shorter than its fixed part")]
    Short,
    /// Another record version.
    #[error("record version {0} is unknown")]
    Version(u8),
    /// Another kind.
    #[error("record kind {0} is unknown")]
    Kind(u8),
    /// Another class.
    #[error("record class {0} is unknown")]
    Class(u8),
    /// Reserved bits are set.
    #[error("reserved bytes are not zero")]
    Reserved,
    /// `hlen` above its limit.
    #[error("header of {0} bytes exceeds its limit")]
    HeaderTooLong(u16),
    /// `hlen` goes beyond the record.
    #[error("header goes beyond the record")]
    HeaderBeyondEnd,
}

/// One decoded record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is for.
    pub kind: Kind,
    /// Hops left, at most [`TTL`].
    pub ttl: u8,
    /// How it is scheduled.
    pub class: Class,
    /// Header JSON, not yet looked at.
    pub header: Bytes,
    /// What follows the header.
    pub body: Bytes,
}

/// The fixed part of a record, for readers that leave the rest where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    /// What the record is for.
    pub kind: Kind,
    /// Hops left, at most [`TTL`].
    pub ttl: u8,
    /// How it is scheduled.
    pub class: Class,
    /// Bytes of header JSON, which follow the fixed part.
    pub header_bytes: usize,
}

impl Fixed {
    /// Reads the fixed part of the record `bytes`, header included. Total.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read(bytes: &[u8]) -> Result<Self, RecordError> {
        let fixed: [u8; FIXED_BYTES] = *bytes.first_chunk().ok_or(RecordError::Short)?;
        let [version, kind, ttl, class, h0, h1, r0, r1] = fixed;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let kind = match kind {
            0 => Kind::Link,
            1 => Kind::Routed,
            2 => Kind::Gossip,
            3 => Kind::RoutedHandshake,
            4 => Kind::RoutedNotice,
            other => return Err(RecordError::Kind(other)),
        };
        let class = match class {
            0 => Class::Control,
            1 => Class::Interactive,
            2 => Class::Bulk,
            other => return Err(RecordError::Class(other)),
        };
        if [r0, r1] != [0, 0] {
            return Err(RecordError::Reserved);
        }
        let header_bytes = u16::from_be_bytes([h0, h1]);
        if usize::from(header_bytes) > HEADER_BYTES {
            return Err(RecordError::HeaderTooLong(header_bytes));
        }
        let header_bytes = usize::from(header_bytes);
        if FIXED_BYTES + header_bytes > bytes.len() {
            return Err(RecordError::HeaderBeyondEnd);
        }
        Ok(Self {
            kind,
            ttl: ttl.min(TTL),
            class,
            header_bytes,
        })
    }
}

impl Record {
    /// Takes a record apart. Total: any bytes give a record or an error.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(mut bytes: Bytes) -> Result<Self, RecordError> {
        let fixed = Fixed::read(&bytes)?;
        let body = bytes.split_off(FIXED_BYTES + fixed.header_bytes);
        Ok(Self {
            kind: fixed.kind,
            ttl: fixed.ttl,
            class: fixed.class,
            header: bytes.split_off(FIXED_BYTES),
            body,
        })
    }
}

/// What a link covers of a waiting record: of a frame that is sealed end to end the fixed part and
/// the header alone (protocol 4.1); none when it is all of it. `record` begins with its length.
#[must_use]
pub fn covered(record: &[u8]) -> Option<usize> {
    let fixed = record.get(LENGTH_BYTES..LENGTH_BYTES + FIXED_BYTES)?;
    let header_bytes = u16::from_be_bytes([fixed[4], fixed[5]]);
    (fixed[1] == Kind::Routed as u8).then_some(FIXED_BYTES + usize::from(header_bytes))
}

/// Takes one hop from the `ttl` of a record that begins with its length; false when none is left.
#[must_use]
pub fn take_hop(record: &mut [u8]) -> bool {
    match record.get_mut(LENGTH_BYTES + 2) {
        Some(ttl) if *ttl > 1 => {
            *ttl = (*ttl).min(TTL) - 1;
            true
        }
        _ => false,
    }
}

/// Begins a record in an empty `buffer`: room for the length, then the fixed part. The header is
/// written next, then [`end_header`] is called, then the body is written.
pub fn begin(buffer: &mut BytesMut, kind: Kind, class: Class) {
    debug_assert!(buffer.is_empty(), "a record begins its buffer");
    buffer.put_bytes(0, LENGTH_BYTES);
    buffer.put_slice(&[VERSION, kind as u8, TTL, class as u8, 0, 0, 0, 0]);
}

/// Notes the length of the header just written.
///
/// # Panics
/// When the header exceeds [`HEADER_BYTES`]: our own encoders write bounded names only.
pub fn end_header(buffer: &mut BytesMut) {
    let header_bytes = buffer.len() - LENGTH_BYTES - FIXED_BYTES;
    assert!(
        header_bytes <= HEADER_BYTES,
        "our own headers hold bounded names"
    );
    let at = LENGTH_BYTES + 4;
    // Fits: HEADER_BYTES is far below u16::MAX.
    buffer[at..at + 2].copy_from_slice(&(header_bytes as u16).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> BytesMut {
        let mut buffer = BytesMut::new();
        begin(&mut buffer, Kind::Routed, Class::Bulk);
        buffer.put_slice(b"{}");
        end_header(&mut buffer);
        buffer.put_slice(b"body");
        buffer.split_off(LENGTH_BYTES)
    }

    #[test]
    fn layout_is_pinned() {
        assert_eq!(
            &sample()[..],
            [1, 1, 8, 2, 0, 2, 0, 0, b'{', b'}', b'b', b'o', b'd', b'y']
        );
        let record = Record::decode(sample().freeze()).unwrap();
        assert_eq!(record.kind, Kind::Routed);
        assert_eq!(record.class, Class::Bulk);
        assert_eq!(
            (&record.header[..], &record.body[..]),
            (&b"{}"[..], &b"body"[..])
        );
    }

    #[test]
    fn every_rule_of_the_fixed_part_refuses() {
        let decode = |at: usize, value: u8| {
            let mut bytes = sample();
            bytes[at] = value;
            Record::decode(bytes.freeze())
        };
        assert_eq!(decode(0, 2), Err(RecordError::Version(2)));
        assert_eq!(decode(1, 5), Err(RecordError::Kind(5)));
        assert_eq!(decode(3, 3), Err(RecordError::Class(3)));
        assert_eq!(decode(6, 1), Err(RecordError::Reserved));
        assert_eq!(decode(7, 1), Err(RecordError::Reserved));
        assert_eq!(decode(5, 7), Err(RecordError::HeaderBeyondEnd));
        assert_eq!(
            Record::decode(Bytes::from_static(&[1; 7])),
            Err(RecordError::Short)
        );
        let mut long = BytesMut::from(&[1, 0, 8, 0, 2, 1, 0, 0][..]);
        long.put_bytes(b' ', 600);
        assert_eq!(
            Record::decode(long.freeze()),
            Err(RecordError::HeaderTooLong(513))
        );
    }

    #[test]
    fn larger_ttl_counts_as_the_largest() {
        let mut bytes = sample();
        bytes[2] = 255;
        assert_eq!(Record::decode(bytes.freeze()).unwrap().ttl, TTL);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let total = bytes.len();
            if let Ok(record) = Record::decode(bytes.into()) {
                prop_assert_eq!(record.header.len() + record.body.len() + FIXED_BYTES, total);
            }
        }

        #[test]
        fn damaged_records_decode_or_fail(at in 0usize..14, value: u8) {
            let mut bytes = sample();
            bytes[at] = value;
            let _ = Record::decode(bytes.freeze());
        }
    }
}
