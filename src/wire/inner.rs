//! The inner frame: what a session carries from origin to destination (protocol 4.4).
//!
//! ```text
//! u8 1 | u8 flags 0 | u16 jlen | u32 dlen | JSON (jlen) | data (dlen) | zero padding
//! ```
//!
//! Padding blunts what the length of a record tells about the length of a token: those of up to 100
//! bytes take one size (T38).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::limits::{INNER_BYTES, INNER_JSON_BYTES};

/// Bytes before the JSON.
pub const FIXED_BYTES: usize = 8;
const VERSION: u8 = 1;
/// From this size on frames are rounded up to [`COARSE`], below it to [`FINE`], with data to [`TOKEN`].
const COARSE_FROM: usize = 2048;
const FINE: usize = 128;
/// The same with data, which may be one token.
const TOKEN: usize = 256;
const COARSE: usize = 1024;

/// Why bytes are not an inner frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InnerError {
    /// Fewer bytes than the fixed part, or than its lengths say.
    #[error("inner frame shorter than it says")]
    Short,
    /// Another version.
    #[error("inner frame version {0} is unknown")]
    Version(u8),
    /// A flag that does not exist.
    #[error("inner frame flags are not zero")]
    Flags,
    /// Something hides in the padding.
    #[error("padding is not zero")]
    Padding,
    /// More than one record holds.
    #[error("inner frame larger than one record")]
    TooLarge,
}

/// One decoded inner frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inner {
    /// Its JSON, not yet looked at.
    pub json: Bytes,
    /// Its data.
    pub data: Bytes,
}

/// Length of an inner frame on the wire for this much JSON and data.
#[must_use]
pub const fn padded_bytes(json: usize, data: usize) -> usize {
    let exact = FIXED_BYTES + json + data;
    exact.next_multiple_of(if exact >= COARSE_FROM {
        COARSE
    } else if data > 0 {
        TOKEN
    } else {
        FINE
    })
}

/// Whether this much JSON and data fit into one frame.
#[must_use]
pub const fn fits(json: usize, data: usize) -> bool {
    json <= INNER_JSON_BYTES && data <= INNER_BYTES && padded_bytes(json, data) <= INNER_BYTES
}

/// Appends one inner frame.
///
/// # Errors
/// [`InnerError::TooLarge`]; nothing was written then.
pub fn put(buffer: &mut BytesMut, json: &[u8], data: &[u8]) -> Result<(), InnerError> {
    if !fits(json.len(), data.len()) {
        return Err(InnerError::TooLarge);
    }
    let total = padded_bytes(json.len(), data.len());
    buffer.reserve(total);
    buffer.put_slice(&[VERSION, 0]);
    // Both fit: `fits` holds them below INNER_BYTES.
    buffer.put_u16(json.len() as u16);
    buffer.put_u32(data.len() as u32);
    buffer.put_slice(json);
    buffer.put_slice(data);
    buffer.put_bytes(0, total - FIXED_BYTES - json.len() - data.len());
    Ok(())
}

impl Inner {
    /// Takes an inner frame apart. Total: any bytes give a frame or an error.
    ///
    /// # Errors
    /// [`InnerError`].
    pub fn decode(mut bytes: Bytes) -> Result<Self, InnerError> {
        if bytes.len() < FIXED_BYTES {
            return Err(InnerError::Short);
        }
        let version = bytes.get_u8();
        if version != VERSION {
            return Err(InnerError::Version(version));
        }
        if bytes.get_u8() != 0 {
            return Err(InnerError::Flags);
        }
        let json_bytes = usize::from(bytes.get_u16());
        let data_bytes = usize::try_from(bytes.get_u32()).map_err(|_| InnerError::Short)?;
        if bytes.len() < json_bytes || bytes.len() - json_bytes < data_bytes {
            return Err(InnerError::Short);
        }
        let json = bytes.split_to(json_bytes);
        let data = bytes.split_to(data_bytes);
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(InnerError::Padding);
        }
        Ok(Self { json, data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(json: &[u8], data: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::new();
        put(&mut buffer, json, data).unwrap();
        buffer
    }

    #[test]
    fn layout_is_pinned() {
        assert_eq!(encode(b"{}", b"").len(), 128);
        let bytes = encode(b"{}", b"abc");
        assert_eq!(bytes.len(), 256);
        assert_eq!(
            &bytes[..13],
            [1, 0, 0, 2, 0, 0, 0, 3, b'{', b'}', b'a', b'b', b'c']
        );
        assert!(bytes[13..].iter().all(|b| *b == 0));
    }

    #[test]
    fn short_tokens_fall_into_one_size() {
        // As long as that of a chunk gets.
        let json = [b' '; 90];
        let sizes: std::collections::BTreeSet<usize> = (1..=100)
            .map(|n| encode(&json, &vec![b'x'; n]).len())
            .collect();
        assert_eq!(sizes.len(), 1);
        assert_eq!(padded_bytes(0, 2039), 2048);
        assert_eq!(padded_bytes(0, 2041), 3072);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut buffer = BytesMut::new();
        assert_eq!(
            put(&mut buffer, b"{}", &vec![0; INNER_BYTES]),
            Err(InnerError::TooLarge)
        );
        assert!(buffer.is_empty());
        assert!(fits(512, crate::wire::limits::CHUNK_BYTES));
    }

    #[test]
    fn version_flags_padding_and_lengths_are_checked() {
        let decode = |at: usize, value: u8| {
            let mut bytes = encode(b"{}", b"abc");
            bytes[at] = value;
            Inner::decode(bytes.freeze())
        };
        assert_eq!(decode(0, 2), Err(InnerError::Version(2)));
        assert_eq!(decode(1, 1), Err(InnerError::Flags));
        assert_eq!(decode(255, 1), Err(InnerError::Padding));
        assert_eq!(decode(2, 255), Err(InnerError::Short));
        assert_eq!(decode(4, 255), Err(InnerError::Short));
    }

    proptest! {
        #[test]
        fn frames_come_back(json in "[ -~]{0,300}", data in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let inner = Inner::decode(encode(json.as_bytes(), &data).freeze()).unwrap();
            prop_assert_eq!(&inner.json[..], json.as_bytes());
            prop_assert_eq!(&inner.data[..], &data[..]);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Inner::decode(bytes.into());
        }
    }
}
