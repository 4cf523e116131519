//! How two neighbours find out in what they differ (protocol 6.4): hashes of buckets, then the
//! versions in those that differ, then the records that are lacking.
//!
//! ```text
//! digest  64 x 8 bytes
//! vector  u64 buckets || n x (u8 kind || 16 keyId || u64 inc || u64 ver)
//! want    n x (u8 kind || 16 keyId)
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::{
    crypto::identity::KeyId,
    mesh::signed::{Item, RecordKind, Version},
    wire::limits::DIGEST_BUCKETS,
};

const HASH_BYTES: usize = 8;
const WANT_BYTES: usize = 17;
const ENTRY_BYTES: usize = WANT_BYTES + 16;
/// Entries of one vector: with its buckets they fit one record.
const ENTRIES: usize = 1800;

/// Hashes of all buckets.
pub(super) type Hashes = [[u8; HASH_BYTES]; DIGEST_BUCKETS];

fn bucket(item: &Item) -> usize {
    usize::from(item.key.0[0]) % DIGEST_BUCKETS
}

fn put_item(buffer: &mut impl BufMut, item: &Item) {
    buffer.put_u8(item.kind as u8);
    buffer.put_slice(&item.key.0);
}

fn put_entry(buffer: &mut impl BufMut, (item, (inc, ver)): &(Item, Version)) {
    put_item(buffer, item);
    buffer.put_u64(*inc);
    buffer.put_u64(*ver);
}

/// Hashes all buckets, whatever the order of `items`.
pub(super) fn hashes(mut items: Vec<(Item, Version)>) -> Hashes {
    items.sort_unstable();
    let mut hashers: Vec<Option<Sha256>> = vec![None; DIGEST_BUCKETS];
    for entry in &items {
        let mut bytes = [0; ENTRY_BYTES];
        put_entry(&mut &mut bytes[..], entry);
        hashers[bucket(&entry.0)]
            .get_or_insert_with(Sha256::new)
            .update(bytes);
    }
    let mut hashes = Hashes::from([[0; HASH_BYTES]; DIGEST_BUCKETS]);
    for (hash, hasher) in hashes.iter_mut().zip(hashers) {
        if let Some(hasher) = hasher {
            hash.copy_from_slice(&hasher.finalize()[..HASH_BYTES]);
        }
    }
    hashes
}

/// The body of a digest.
pub(super) fn digest(hashes: &Hashes) -> Bytes {
    Bytes::copy_from_slice(hashes.as_flattened())
}

/// Reads a digest.
pub(super) fn read_digest(body: &[u8]) -> Option<Hashes> {
    let (hashes, rest) = body.as_chunks::<HASH_BYTES>();
    let hashes = hashes.try_into().ok()?;
    rest.is_empty().then_some(hashes)
}

/// The buckets in which two digests differ, one bit each.
pub(super) fn differing(ours: &Hashes, theirs: &Hashes) -> u64 {
    let pairs = ours.iter().zip(theirs).enumerate();
    pairs
        .filter(|(_, (ours, theirs))| ours != theirs)
        .fold(0, |bits, (at, _)| bits | 1 << at)
}

/// The bodies of the vectors that tell what we have in these buckets: one at least.
pub(super) fn vectors(items: &[(Item, Version)], buckets: u64) -> Vec<Bytes> {
    let told: Vec<_> = items
        .iter()
        .filter(|(item, _)| buckets >> bucket(item) & 1 == 1)
        .collect();
    let mut bodies: Vec<BytesMut> = Vec::new();
    for (at, entry) in told.iter().enumerate() {
        if at % ENTRIES == 0 {
            let mut body = BytesMut::new();
            // The buckets are told once: what comes back covers all of them.
            body.put_u64(if at == 0 { buckets } else { 0 });
            bodies.push(body);
        }
        if let Some(body) = bodies.last_mut() {
            put_entry(body, entry);
        }
    }
    if bodies.is_empty() {
        bodies.push(BytesMut::from(&buckets.to_be_bytes()[..]));
    }
    bodies.into_iter().map(BytesMut::freeze).collect()
}

fn read_item(kind: u8, key: [u8; 16]) -> Option<Item> {
    // Kinds of later versions are passed over.
    RecordKind::from_number(kind).map(|kind| Item {
        kind,
        key: KeyId(key),
    })
}

/// Reads a vector: its buckets, and what the other side has.
pub(super) fn read_vector(mut body: &[u8]) -> Option<(u64, Vec<(Item, Version)>)> {
    let buckets = body.try_get_u64().ok()?;
    let (entries, rest) = body.as_chunks::<ENTRY_BYTES>();
    let entry = |mut bytes: &[u8]| {
        let kind = bytes.get_u8();
        let mut key = [0; 16];
        bytes.copy_to_slice(&mut key);
        let version = (bytes.get_u64(), bytes.get_u64());
        Some((read_item(kind, key)?, version))
    };
    let entries = entries.iter().filter_map(|bytes| entry(bytes)).collect();
    rest.is_empty().then_some((buckets, entries))
}

/// The body of a want.
pub(super) fn want(items: &[Item]) -> Bytes {
    let mut body = BytesMut::with_capacity(items.len() * WANT_BYTES);
    for item in items {
        put_item(&mut body, item);
    }
    body.freeze()
}

/// Reads a want.
pub(super) fn read_want(body: &[u8]) -> Option<Vec<Item>> {
    let (items, rest) = body.as_chunks::<WANT_BYTES>();
    let item = |bytes: &[u8; WANT_BYTES]| {
        let (kind, key) = bytes.split_first()?;
        read_item(*kind, key.try_into().ok()?)
    };
    let items = items.iter().filter_map(item).collect();
    rest.is_empty().then_some(items)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(kind: RecordKind, first: u8, ver: u64) -> (Item, Version) {
        let mut key = [7; 16];
        key[0] = first;
        let key = KeyId(key);
        (Item { kind, key }, (1, ver))
    }

    #[test]
    fn equal_knowledge_has_equal_digests_whatever_its_order() {
        let a = entry(RecordKind::Descriptor, 1, 1);
        let b = entry(RecordKind::LinkState, 65, 2);
        let of = |items: &[_]| hashes(items.to_vec());
        assert_eq!(digest(&of(&[a, b])), digest(&of(&[b, a])));
        assert_eq!(digest(&of(&[a, b])).len(), 512);
        let theirs = read_digest(&digest(&of(&[a]))).unwrap();
        assert_eq!(differing(&of(&[a]), &theirs), 0);
        assert_eq!(
            differing(&of(&[a, b]), &theirs),
            1 << 1,
            "65 and 1 share a bucket"
        );
        let newer = entry(RecordKind::Descriptor, 1, 2);
        assert_eq!(differing(&of(&[newer]), &theirs), 1 << 1);
    }

    #[test]
    fn vectors_tell_the_differing_buckets_alone() {
        let items = [
            entry(RecordKind::Descriptor, 1, 1),
            entry(RecordKind::Leave, 2, 9),
        ];
        let [body] = &vectors(&items, 1 << 2)[..] else {
            panic!("one vector");
        };
        assert_eq!(read_vector(body), Some((1 << 2, vec![items[1]])));
        let many = vec![items[0]; ENTRIES + 1];
        let bodies = vectors(&many, 2);
        assert_eq!(bodies.len(), 2);
        assert!(bodies.iter().all(|body| body.len() < 60 * 1024));
        assert_eq!(read_vector(&bodies[1]).unwrap().0, 0);
        assert_eq!(vectors(&[], 6).len(), 1, "an empty side says so");
    }

    #[test]
    fn wants_come_back_and_later_kinds_are_passed_over() {
        let items = [entry(RecordKind::LinkState, 3, 0).0];
        let mut body = want(&items).to_vec();
        body.extend([99; WANT_BYTES]);
        assert_eq!(read_want(&body), Some(items.to_vec()));
    }

    proptest! {
        #[test]
        fn any_bytes_read_or_fail(body: Vec<u8>) {
            let _ = (read_digest(&body), read_vector(&body), read_want(&body));
        }
    }
}
