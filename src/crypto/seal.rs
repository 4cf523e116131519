//! Link records: sealing and opening in place, with implicit counters (protocol 4.1).
//!
//! ```text
//! u16 slen || AEAD(K_dir, n, aad = slen || tail, first slen bytes of the record) || rest
//! ```
//!
//! `rest` is a body that is already sealed end to end, and `tail` its last 16 bytes; for every other
//! record both are empty. Each direction of a link has one [`Sealer`] and one [`Opener`], which count
//! alike: a record that is lost, repeated or moved does not open, and the link ends.

use std::fmt;

use bytes::{Buf, BytesMut};
use hkdf::Hkdf;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::wire::{
    limits::{RECORD_MAX_BYTES, RECORD_MIN_BYTES, REKEY_RECORDS},
    record::LENGTH_BYTES,
};

/// Bytes of an AEAD tag.
pub const TAG_BYTES: usize = 16;

/// Why a record does not open. The link ends with close code 4403.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Outside 26..65,536 bytes, or its lengths do not fit together.
    #[error("record size out of bounds")]
    Size,
    /// Altered, or not the next one.
    #[error("record does not open")]
    Seal,
}

/// The key of one direction and how far it is used.
struct Chain {
    key: Zeroizing<[u8; 32]>,
    aead: LessSafeKey,
    next: u64,
    rekey_after: u64,
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key of 32 bytes fits");
    LessSafeKey::new(key)
}

impl Chain {
    fn new(key: &[u8; 32], rekey_after: u64) -> Self {
        Self {
            key: Zeroizing::new(*key),
            aead: aead(key),
            next: 0,
            rekey_after,
        }
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[4..].copy_from_slice(&self.next.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Counts one record; after `rekey_after` of them the key is replaced by one derived from it.
    fn advance(&mut self) {
        self.next += 1;
        if self.next == self.rekey_after {
            let mut key = Zeroizing::new([0; 32]);
            Hkdf::<Sha256>::from_prk(&*self.key)
                .and_then(|hkdf| {
                    hkdf.expand(b"clawmatrix/1 rekey", &mut *key)
                        .map_err(|_| hkdf::InvalidPrkLength)
                })
                .expect("32 bytes are a valid key and a valid output");
            self.aead = aead(&key);
            self.key = key;
            self.next = 0;
        }
    }
}

/// `slen || tail`, and how long it is.
fn associated(sealed: u16, rest: &[u8]) -> ([u8; LENGTH_BYTES + TAG_BYTES], usize) {
    let mut aad = [0; LENGTH_BYTES + TAG_BYTES];
    aad[..LENGTH_BYTES].copy_from_slice(&sealed.to_be_bytes());
    match rest.last_chunk::<TAG_BYTES>() {
        Some(tail) => {
            aad[LENGTH_BYTES..].copy_from_slice(tail);
            (aad, LENGTH_BYTES + TAG_BYTES)
        }
        None => (aad, LENGTH_BYTES),
    }
}

/// Seals the records of one direction, in the order in which they are sent.
pub struct Sealer(Chain);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer(n={})", self.0.next)
    }
}

impl Sealer {
    /// A sealer for the direction whose data key is `key`.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self::with_rekey(key, REKEY_RECORDS)
    }

    /// The same with another number of records under one key, so that tests see the change.
    #[must_use]
    pub fn with_rekey(key: &[u8; 32], rekey_after: u64) -> Self {
        Self(Chain::new(key, rekey_after))
    }

    /// Seals in place a whole record: two bytes of room, then the plaintext.
    ///
    /// # Errors
    /// [`OpenError::Size`] when the record would be too large; the buffer is spoilt then.
    pub fn seal(&mut self, record: &mut BytesMut) -> Result<(), OpenError> {
        let sealed = record.len().saturating_sub(LENGTH_BYTES);
        record.resize(record.len() + TAG_BYTES, 0);
        self.seal_before_rest(record, sealed)
    }

    /// Seals a record of which only the first `sealed` bytes of plaintext are covered: two bytes of
    /// room, these bytes, 16 bytes of room for the tag, then the rest, already sealed end to end.
    ///
    /// # Errors
    /// As [`Sealer::seal`].
    pub fn seal_before_rest(
        &mut self,
        record: &mut BytesMut,
        sealed: usize,
    ) -> Result<(), OpenError> {
        let body = LENGTH_BYTES + sealed;
        let fits = (RECORD_MIN_BYTES..=RECORD_MAX_BYTES).contains(&record.len())
            && body + TAG_BYTES <= record.len();
        let slen = u16::try_from(sealed).map_err(|_| OpenError::Size)?;
        if !fits {
            return Err(OpenError::Size);
        }
        let (aad, aad_bytes) = associated(slen, &record[body + TAG_BYTES..]);
        let tag = self
            .0
            .aead
            .seal_in_place_separate_tag(
                self.0.nonce(),
                Aad::from(&aad[..aad_bytes]),
                &mut record[LENGTH_BYTES..body],
            )
            .map_err(|_| OpenError::Size)?;
        record[..LENGTH_BYTES].copy_from_slice(&slen.to_be_bytes());
        record[body..body + TAG_BYTES].copy_from_slice(tag.as_ref());
        self.0.advance();
        Ok(())
    }
}

/// One opened record, where it lay: a relay seals it again without moving a byte.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// Length, what the link's seal covered, its tag.
    record: BytesMut,
    /// What was sealed end to end already; empty for all but kind 1.
    pub rest: BytesMut,
}

impl Opened {
    /// What the link's seal covered.
    #[must_use]
    pub fn plain(&self) -> &[u8] {
        &self.record[LENGTH_BYTES..self.record.len() - TAG_BYTES]
    }

    /// The same, without the rest.
    #[must_use]
    pub fn into_plain(mut self) -> BytesMut {
        self.record.truncate(self.record.len() - TAG_BYTES);
        self.record.advance(LENGTH_BYTES);
        self.record
    }

    /// The record as a [`Sealer`] takes it for the next link: [`Sealer::seal_before_rest`] when there
    /// is a rest, else [`Sealer::seal`].
    #[must_use]
    pub fn into_record(mut self) -> BytesMut {
        if self.rest.is_empty() {
            self.record.truncate(self.record.len() - TAG_BYTES);
        } else {
            // They lie side by side, so nothing is copied.
            self.record.unsplit(self.rest);
        }
        self.record
    }
}

/// Opens the records of one direction, in the order in which they were sent.
pub struct Opener(Chain);

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener(n={})", self.0.next)
    }
}

impl Opener {
    /// An opener for the direction whose data key is `key`.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self::with_rekey(key, REKEY_RECORDS)
    }

    /// See [`Sealer::with_rekey`].
    #[must_use]
    pub fn with_rekey(key: &[u8; 32], rekey_after: u64) -> Self {
        Self(Chain::new(key, rekey_after))
    }

    /// Opens the next record where it lies.
    ///
    /// # Errors
    /// [`OpenError`]: nothing of the record may be used, and the link must end.
    pub fn open(&mut self, mut record: BytesMut) -> Result<Opened, OpenError> {
        if !(RECORD_MIN_BYTES..=RECORD_MAX_BYTES).contains(&record.len()) {
            return Err(OpenError::Size);
        }
        let slen = u16::from_be_bytes([record[0], record[1]]);
        let end = LENGTH_BYTES + usize::from(slen) + TAG_BYTES;
        if end > record.len() {
            return Err(OpenError::Size);
        }
        let rest = record.split_off(end);
        if (1..TAG_BYTES).contains(&rest.len()) {
            return Err(OpenError::Size);
        }
        let (aad, aad_bytes) = associated(slen, &rest);
        self.0
            .aead
            .open_in_place(
                self.0.nonce(),
                Aad::from(&aad[..aad_bytes]),
                &mut record[LENGTH_BYTES..],
            )
            .map_err(|_| OpenError::Seal)?;
        self.0.advance();
        Ok(Opened { record, rest })
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn plain(text: &[u8]) -> BytesMut {
        let mut record = BytesMut::new();
        record.put_bytes(0, LENGTH_BYTES);
        record.put_slice(text);
        record
    }

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> BytesMut {
        let mut record = plain(text);
        sealer.seal(&mut record).unwrap();
        record
    }

    fn with_rest(sealer: &mut Sealer, text: &[u8], rest: &[u8]) -> BytesMut {
        let mut record = plain(text);
        record.put_bytes(0, TAG_BYTES);
        record.put_slice(rest);
        sealer.seal_before_rest(&mut record, text.len()).unwrap();
        record
    }

    /// The AEAD line of vector V1 (protocol 3.7), with this module's length in front and in the aad.
    #[test]
    fn ciphertext_is_that_of_the_vector() {
        let key =
            crate::ids::unhex("78df45e7046cbc89b4d214b148abe8bd1d8810d28f7978f4e562dd455cc53ebc")
                .unwrap();
        let record = sealed(&mut Sealer::new(&key), b"hello...");
        assert_eq!(
            &record[..7],
            &crate::ids::unhex::<7>("0008dead3328ac").unwrap()
        );
        assert_eq!(record.len(), LENGTH_BYTES + 8 + TAG_BYTES);
    }

    #[test]
    fn records_open_in_order_only() {
        let mut sealer = Sealer::new(&KEY);
        let [first, second] = [&b"first---"[..], b"second--"].map(|t| sealed(&mut sealer, t));
        let mut opener = Opener::new(&KEY);
        assert_eq!(
            opener.open(second.clone()),
            Err(OpenError::Seal),
            "one dropped"
        );
        assert_eq!(opener.open(first.clone()).unwrap().plain(), b"first---");
        assert_eq!(opener.open(first), Err(OpenError::Seal), "one repeated");
        assert_eq!(opener.open(second).unwrap().plain(), b"second--");
    }

    #[test]
    fn every_flipped_bit_of_length_seal_and_tail_is_found() {
        let rest = [0x5a; 40];
        let record = with_rest(&mut Sealer::new(&KEY), b"fixed part and header", &rest);
        let tail = record.len() - TAG_BYTES..record.len();
        let covered = LENGTH_BYTES + 21 + TAG_BYTES;
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let opened = Opener::new(&KEY).open(damaged);
            let inside = bit / 8 < covered || tail.contains(&(bit / 8));
            assert_eq!(opened.is_err(), inside, "bit {bit}");
        }
    }

    #[test]
    fn rest_passes_untouched() {
        let rest: Vec<u8> = (0..100).collect();
        let record = with_rest(&mut Sealer::new(&KEY), b"12345678", &rest);
        assert_eq!(&record[LENGTH_BYTES + 8 + TAG_BYTES..], &rest[..]);
        let opened = Opener::new(&KEY).open(record.clone()).unwrap();
        assert_eq!(
            (opened.plain(), &opened.rest[..]),
            (&b"12345678"[..], &rest[..])
        );
        // A relay seals it for the next link where it lies.
        let at = opened.plain().as_ptr();
        let mut onward = opened.into_record();
        Sealer::new(&[8; 32])
            .seal_before_rest(&mut onward, 8)
            .unwrap();
        assert_eq!(onward[LENGTH_BYTES..].as_ptr(), at);
        let opened = Opener::new(&[8; 32]).open(onward).unwrap();
        assert_eq!(
            (opened.plain(), &opened.rest[..]),
            (&b"12345678"[..], &rest[..])
        );
        let whole = sealed(&mut Sealer::new(&KEY), b"12345678");
        let mut onward = Opener::new(&KEY).open(whole).unwrap().into_record();
        Sealer::new(&KEY).seal(&mut onward).unwrap();
        assert_eq!(onward, sealed(&mut Sealer::new(&KEY), b"12345678"));
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        let open = |record: &[u8]| Opener::new(&KEY).open(record.into());
        assert_eq!(open(&[0; 25]), Err(OpenError::Size));
        assert_eq!(open(&vec![0; RECORD_MAX_BYTES + 1]), Err(OpenError::Size));
        assert_eq!(open(&[255; 40]), Err(OpenError::Size));
        let short_rest = [&[0, 8][..], &[0; 24 + 15]].concat();
        assert_eq!(open(&short_rest), Err(OpenError::Size));
        let mut sealer = Sealer::new(&KEY);
        let largest = RECORD_MAX_BYTES - LENGTH_BYTES - TAG_BYTES;
        assert!(sealer.seal(&mut plain(&vec![0; largest])).is_ok());
        assert_eq!(
            sealer.seal(&mut plain(&vec![0; largest + 1])),
            Err(OpenError::Size)
        );
        assert_eq!(sealer.seal(&mut plain(b"1234567")), Err(OpenError::Size));
    }

    #[test]
    fn keys_change_after_their_records_and_the_stream_goes_on() {
        let (mut sealer, mut opener) = (Sealer::with_rekey(&KEY, 16), Opener::with_rekey(&KEY, 16));
        let mut fixed = Sealer::new(&KEY);
        for n in 0..100u64 {
            let text = n.to_be_bytes();
            let record = sealed(&mut sealer, &text);
            let same_key = record == sealed(&mut fixed, &text);
            assert_eq!(same_key, n < 16, "record 16 is the first under the new key");
            assert_eq!(opener.open(record).unwrap().plain(), &text[..]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_open_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Opener::new(&KEY).open(BytesMut::from(&bytes[..])).is_err());
        }
    }
}
