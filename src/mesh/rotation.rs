//! Key rotation as records and files (protocol 2): what is signed, how it is shown at a door, and how
//! this node's own new key comes into force.
//!
//! A new key is prepared while the node runs or stands still ([`prepare`]) and comes into force at its
//! next start ([`take_over`]): the process that began with a key ends with it, so nothing that was proved
//! with the old key outlives it. Three whole files are written, one after the other:
//!
//! ```text
//! identity.next    the new seed            \  prepare
//! rotations.json   records, the new one last /
//! identity.key     the new seed             > take_over, which then removes identity.next
//! ```
//!
//! Killed anywhere, a node starts either with its old key and no record of a new one, or with the new
//! key and the record: [`take_over`] decides by the record that was stored, and drops one whose seed is
//! not there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::signed::{self, Claim, RecordError, RecordKind, Signed};
use crate::{
    crypto::{
        identity::{Identity, IdentityError, PublicKey},
        rotation::Rotation,
    },
    ids::NodeId,
    state::{StateDir, StateError},
    wire::limits::{JSON_INTEGER_MAX, ROTATION_BYTES, ROTATIONS_OWN, ROTATIONS_SHOWN},
};

/// Header of the upgrade, of both request and answer, that shows a node's latest rotations. A
/// neighbour that was away while they spread learns of them here, before it refuses the new key.
pub const HEADER: &str = "x-clawmatrix-rotation";

/// Our own records, the newest last.
const RECORDS: &str = "rotations.json";
/// The seed of the key that the next start begins with.
const NEXT: &str = "identity.next";
/// Longest line of [`HEADER`] that is read, in characters.
const SHOWN_CHARS: usize = ROTATIONS_SHOWN * 2 * (ROTATION_BYTES + 1024);

/// Why no new key was prepared, or why it is not in force.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The key is not in the state folder.
    #[error("the key of this node is given by `identityFile`, it does not lie in the state folder")]
    Foreign,
    /// One is prepared already.
    #[error("a new key is prepared already; it comes into force at the next start")]
    Prepared,
    /// `rotations.json` is not what we wrote.
    #[error("`{0}` is damaged")]
    Damaged(String),
    /// The key cannot be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The disk refused.
    #[error(transparent)]
    State(#[from] StateError),
}

impl RotationError {
    /// The way out, for the operator.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Foreign => "replace it where it is kept, and have every other node accept it: \
                 `clawmatrix trust accept`"
                .into(),
            Self::Prepared => "restart the node".into(),
            Self::Damaged(_) => {
                "restore it from a backup, or delete it: nodes that were away at the last \
                 change must then run `clawmatrix trust accept`"
                    .into()
            }
            Self::Identity(error) => error.hint(),
            Self::State(_) => {
                "free disk space or mend its permissions, then repeat the command".into()
            }
        }
    }
}

/// Signs `rotation` with both keys.
#[must_use]
pub fn sign(rotation: &Rotation, old: &Identity, new: &Identity) -> Signed {
    let (version, payload) = ((rotation.seq, 1), rotation.payload(new));
    signed::sign(old, &rotation.node, RecordKind::Rotation, version, &payload)
}

/// Checks both signatures of a record, and that it says what its header claims.
///
/// # Errors
/// [`RecordError`].
pub fn verify(claim: &Claim, header: &[u8], body: &[u8]) -> Result<Rotation, RecordError> {
    let payload = signed::verify(claim, header, body)?;
    // What the old key signed is read only now.
    let rotation = Rotation::read(payload).ok_or(RecordError::Malformed)?;
    let same = rotation.node == claim.node
        && rotation.old == claim.key
        && (rotation.seq, 1) == claim.version;
    same.then_some(rotation).ok_or(RecordError::Malformed)
}

/// The value of [`HEADER`]; none when there is nothing to show.
#[must_use]
pub fn shown(records: &[Signed]) -> Option<http::HeaderValue> {
    let from = records.len().saturating_sub(ROTATIONS_SHOWN);
    let texts = records[from..].iter().map(|record| {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        format!("{}.{}", part(&record.header), part(&record.body))
    });
    let line = texts.collect::<Vec<_>>().join(",");
    (!line.is_empty())
        .then(|| http::HeaderValue::try_from(line).ok())
        .flatten()
}

/// The records of a [`HEADER`]: any that can be read, believed by nobody yet.
#[must_use]
pub fn read_shown(value: Option<&http::HeaderValue>) -> Vec<Signed> {
    let line = value.and_then(|value| value.to_str().ok());
    let line = line.filter(|line| line.len() <= SHOWN_CHARS).unwrap_or("");
    let record = |text: &str| {
        let (header, body) = text.trim().split_once('.')?;
        let part = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        Some(Signed::copied(&part(header)?, &part(body)?))
    };
    let records = line.split(',').take(ROTATIONS_SHOWN);
    records.filter_map(record).collect()
}

/// One record in the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    header: String,
    body: String,
}

fn read(state: &StateDir) -> Result<Vec<Signed>, RotationError> {
    let Some(bytes) = state.read(RECORDS)? else {
        return Ok(Vec::new());
    };
    let damaged = || RotationError::Damaged(state.path(RECORDS).display().to_string());
    let stored: Vec<Stored> = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| damaged());
    let record = |stored: Stored| Ok(Signed::copied(&part(&stored.header)?, &part(&stored.body)?));
    stored.into_iter().map(record).collect()
}

fn write(state: &StateDir, records: &[Signed]) -> Result<(), StateError> {
    let stored: Vec<Stored> = records
        .iter()
        .map(|record| Stored {
            header: URL_SAFE_NO_PAD.encode(&record.header),
            body: URL_SAFE_NO_PAD.encode(&record.body),
        })
        .collect();
    let text = serde_json::to_vec(&stored).expect("texts are plain JSON");
    state.write(RECORDS, &text)
}

fn verified(record: &Signed) -> Option<Rotation> {
    let claim = signed::claim(&record.header).ok()?;
    verify(&claim, &record.header, &record.body).ok()
}

/// The prepared seed, if it is whole.
fn next_seed(state: &StateDir) -> Result<Option<Zeroizing<[u8; 32]>>, StateError> {
    let bytes = state.read(NEXT)?.map(Zeroizing::new);
    let seed = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
    Ok(seed.map(Zeroizing::new))
}

/// Makes a new key for `node` and the record that says so; both lie on disk when this returns, and come
/// into force by [`take_over`]. `old` is the key in force. Blocks on the disk.
///
/// # Errors
/// [`RotationError`]; nothing has changed then.
pub fn prepare(state: &StateDir, node: &NodeId, old: &Identity) -> Result<Identity, RotationError> {
    let mut records = read(state)?;
    let last = records.last().and_then(verified);
    if last.as_ref().is_some_and(|last| last.old == old.public()) {
        return Err(RotationError::Prepared);
    }
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let unix_ms = u64::try_from(since.as_millis()).unwrap_or(0);
    let after = last.map_or(0, |last| last.seq.saturating_add(1));
    let seed = Zeroizing::new(crate::ids::random_bytes());
    let new = Identity::from_seed(&seed);
    let rotation = Rotation {
        node: node.clone(),
        old: old.public(),
        new: new.public(),
        seq: unix_ms.max(after).min(JSON_INTEGER_MAX),
        ts: since.as_secs(),
    };
    records.push(sign(&rotation, old, &new));
    let surplus = records.len().saturating_sub(ROTATIONS_OWN);
    records.drain(..surplus);
    state.write(NEXT, seed.as_ref())?;
    write(state, &records)?;
    Ok(new)
}

/// Puts a prepared key in force, if there is one, and gives the key to begin with and our records, the
/// newest last. `held` is the key that the node has; `in_folder` says that it lies in the state folder, where
/// it can be replaced. Called once at start, with the folder locked. Blocks on the disk.
///
/// # Errors
/// [`RotationError`].
pub fn take_over(
    state: &StateDir,
    held: Identity,
    in_folder: bool,
) -> Result<(Identity, Vec<Signed>), RotationError> {
    let mut records = read(state)?;
    let Some(last) = records.last().and_then(verified) else {
        // A key without a record was never in force.
        state.remove(NEXT);
        return Ok((held, Vec::new()));
    };
    if last.old != held.public() {
        // In force already; or another key lies there now, of which the records say nothing.
        state.remove(NEXT);
        if last.new != held.public() {
            records.clear();
        }
        return Ok((held, records));
    }
    let seed = next_seed(state)?.filter(|seed| Identity::from_seed(seed).public() == last.new);
    let Some(seed) = seed.filter(|_| in_folder) else {
        records.pop();
        write(state, &records)?;
        state.remove(NEXT);
        return Ok((held, records));
    };
    let new = Identity::store(state, &seed)?;
    state.remove(NEXT);
    tracing::warn!(old = %last.old.id(), new = %last.new.id(),
        "this node has a new key; the other nodes follow by its record");
    Ok((new, records))
}

/// The public key that the next start begins with, if one is prepared for a node whose key is `held`.
///
/// # Errors
/// [`RotationError`].
pub fn prepared(state: &StateDir, held: PublicKey) -> Result<Option<PublicKey>, RotationError> {
    let records = read(state)?;
    let last = records.last().and_then(verified);
    Ok(last.filter(|last| last.old == held).map(|last| last.new))
}

/// Keys that this node had before `held`, as far as its records reach back. Blocks on the disk.
#[must_use]
pub fn earlier(state: &StateDir, held: PublicKey) -> Vec<PublicKey> {
    let records = read(state).unwrap_or_default();
    let mut keys = Vec::new();
    for rotation in records.iter().rev().filter_map(verified) {
        if rotation.new == *keys.last().unwrap_or(&held) {
            keys.push(rotation.old);
        }
    }
    keys
}

#[cfg(test)]
mod tests;
